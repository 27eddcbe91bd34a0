//! What objects say of themselves beyond listeners: classes, Gateways, routes with rules that
//! cannot be served, objectives and rewrites.

mod common;

use common::{check_all, check_statuses, compare, gateway, object, parse, service};
use forebay_api::{Index, Settings, describe};

const HTTP: &str = "{name: http, port: 80, protocol: HTTP}";

#[test]
fn rules_that_cannot_be_served_are_dropped_and_a_route_without_others_is_refused() {
    let route = |name: &str, rules: &str| {
        object(
            "HTTPRoute",
            name,
            &format!("parentRefs: [{{name: gw}}], rules: [{rules}]"),
        )
    };
    let good = "{matches: [{path: {value: /good}}], backendRefs: [{name: s, port: 80}]}";
    let pattern = "{matches: [{path: {type: RegularExpression, value: '('}}], backendRefs: [{name: s, port: 80}]}";
    let auth = "{matches: [{path: {value: /auth}}], filters: [{type: ExternalAuth, externalAuth: {}}], backendRefs: [{name: s, port: 80}]}";
    let header = "{matches: [{path: {value: /header}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: \"b\\nc\"}]}}], backendRefs: [{name: s, port: 80}]}";
    let path = "{matches: [{path: {value: /path}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: '/a b'}}}], backendRefs: [{name: s, port: 80}]}";
    let retry = "{matches: [{path: {value: /retry}}], retry: {attempts: 1000}, backendRefs: [{name: s, port: 80}]}";
    check_all(
        &[
            gateway("gw", "", HTTP),
            service("s", "ports: [{port: 80}]"),
            route("all", &[pattern, auth].join(", ")),
            route("some", &[good, pattern, auth, header, path, retry].join(", ")),
        ],
        "
port 80 http
  listener default/gw http for *
    * /header/* -> default/some[3] | 1 x 500 UnsupportedValue
    * /retry/* -> default/some[5] | 1 x service default/s:80 [] retry 100 on 502,503,504 after 25ms
    * /auth/* -> default/some[2] | 1 x 500 UnsupportedValue
    * /good/* -> default/some[0] | 1 x service default/s:80 []
    * /path/* -> default/some[4] | 1 x 500 UnsupportedValue
problem HTTPRoute default/all spec.parentRefs[0]: UnsupportedValue: not a regular expression (RE2): unclosed group
problem HTTPRoute default/all spec.rules[0].matches[0].path.value: UnsupportedValue: not a regular expression (RE2): unclosed group
problem HTTPRoute default/all spec.rules[1].filters[0]: UnsupportedValue: filters of type ExternalAuth are not supported
problem HTTPRoute default/some spec.rules[1].matches[0].path.value: UnsupportedValue: not a regular expression (RE2): unclosed group
problem HTTPRoute default/some spec.rules[2].filters[0]: UnsupportedValue: filters of type ExternalAuth are not supported
problem HTTPRoute default/some spec.rules[3].filters[0].requestHeaderModifier: UnsupportedValue: a header value has no control characters
problem HTTPRoute default/some spec.rules[4].filters[0].urlRewrite.path: UnsupportedValue: write spaces and the like in a path as %xx
Gateway default/gw Accepted Programmed ResolvedRefs
  listener http: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
HTTPRoute default/all
  at Gateway default/gw !Accepted(UnsupportedValue) ResolvedRefs
HTTPRoute default/some
  at Gateway default/gw Accepted ResolvedRefs PartiallyInvalid(UnsupportedValue)
",
    );
}

#[test]
fn parameters_are_ours_or_refused() {
    let parameters = |group: &str| {
        format!(
            "infrastructure: {{parametersRef: {{group: {group}, kind: GatewayConfig, name: c}}}},"
        )
    };
    let class = "\n---\n{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: odd}, spec: {controllerName: forebay.dev/gateway, parametersRef: {group: '', kind: ConfigMap, name: c, namespace: d}}}";
    check_all(
        &[
            gateway("good", &parameters("forebay.dev"), HTTP),
            gateway("odd", &parameters("invalid.io"), &HTTP.replace("80", "81")),
            gateway("of-class", "", &HTTP.replace("80", "82")).replace("gatewayClassName: forebay", "gatewayClassName: odd"),
            class.to_owned(),
        ],
        "
port 80 http
  listener default/good http for *
problem Gateway default/odd: InvalidParameters: invalid.io/GatewayConfig holds no parameters of ours; use a GatewayConfig of forebay.dev
problem Gateway default/of-class: InvalidParameters: the parameters of its class: ConfigMap holds no parameters of ours; use a GatewayConfig of forebay.dev
GatewayClass default/odd !Accepted(InvalidParameters) SupportedVersion
Gateway default/good Accepted Programmed ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
Gateway default/odd !Accepted(InvalidParameters) !Programmed(Invalid) ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
Gateway default/of-class !Accepted(InvalidParameters) !Programmed(Invalid) ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
",
    );
}

#[test]
fn a_class_tells_the_features_and_whether_the_crds_are_of_a_known_release() {
    let class = "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: forebay, generation: 3}, spec: {controllerName: forebay.dev/gateway}}";
    let mut index = Index::new(Settings::cluster());
    parse(class).into_iter().for_each(|o| index.apply(o));
    for (version, want) in [
        (
            None,
            "GatewayClass default/forebay Accepted SupportedVersion\n",
        ),
        (
            Some("v1.6.0"),
            "GatewayClass default/forebay Accepted SupportedVersion\n",
        ),
        (
            Some("v1.5.1"),
            "GatewayClass default/forebay Accepted !SupportedVersion(UnsupportedVersion)\n",
        ),
    ] {
        index.set_bundle_version(version.map(str::to_owned));
        let statuses = index.publish().statuses;
        compare(&describe::statuses(&statuses), want);
        assert_eq!(statuses[0].generation, 3);
    }
}

#[test]
fn a_class_names_the_features_that_the_process_has_been_given_the_rights_for() {
    let named = |service_accounts: bool| {
        let mut index = Index::new(Settings {
            service_accounts,
            ..Settings::cluster()
        });
        let class = "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: forebay}, spec: {controllerName: forebay.dev/gateway}}";
        parse(class).into_iter().for_each(|o| index.apply(o));
        index.publish().statuses[0].supported_features.clone()
    };
    let all = forebay_api::features::SUPPORTED;
    assert_eq!(named(true), all);
    let without: Vec<_> = all
        .iter()
        .filter(|feature| **feature != "GatewayInfrastructurePropagation")
        .copied()
        .collect();
    assert_eq!(named(false), without);
}

#[test]
fn objectives_and_rewrites_say_whether_their_pool_exists() {
    let of = |kind: &str, group: &str, name: &str, pool: &str, rest: &str| {
        format!(
            "\n---\n{{apiVersion: {group}, kind: {kind}, metadata: {{name: {name}}}, spec: {{poolRef: {{name: {pool}}}{rest}}}}}"
        )
    };
    let (new, old) = (
        "llm-d.ai/v1alpha2",
        "inference.networking.x-k8s.io/v1alpha2",
    );
    let rules = ", rules: [{targets: [{modelRewrite: m}]}]";
    let objects = [
        "{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: p}, spec: {selector: {matchLabels: {a: b}}, targetPorts: [{number: 1}]}}".to_owned(),
        of("InferenceObjective", new, "good", "p", ""),
        of("InferenceObjective", old, "good", "p", ""),
        of("InferenceObjective", old, "old", "p", ""),
        of("InferenceObjective", new, "lost", "q", ""),
        of("InferenceModelRewrite", new, "good", "p", rules),
        of("InferenceModelRewrite", old, "lost", "q", rules),
    ];
    check_statuses(
        &objects.concat(),
        "
InferencePool default/p
InferenceObjective default/good Accepted
InferenceObjective default/lost !Accepted(NotFound)
InferenceObjective default/good !Accepted(Shadowed)
InferenceObjective default/old Accepted
InferenceModelRewrite default/good Accepted
InferenceModelRewrite default/lost !Accepted(NotFound)
",
    );
}

#[test]
fn pickers_are_followed_to_their_ready_endpoints() {
    let pool = |name: &str, picker: &str| {
        format!(
            "\n---\n{{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {{name: {name}}}, spec: {{selector: {{matchLabels: {{a: b}}}}, targetPorts: [{{number: 1}}], endpointPickerRef: {{{picker}}}}}}}"
        )
    };
    let with = |tls: &str, pool: String| {
        let annotated = format!(", annotations: {{forebay.dev/picker-tls: {tls}}}}}, spec");
        pool.replacen("}, spec", &annotated, 1)
    };
    let pools = [
        "slices", "pods", "gone", "port", "kind", "external", "clear", "said", "odd",
    ];
    let to = |pool: &str| {
        format!(
            "{{backendRefs: [{{group: inference.networking.k8s.io, kind: InferencePool, name: {pool}}}]}}"
        )
    };
    let rules: Vec<_> = pools.map(to).into();
    check_all(
        &[
            gateway("gw", "", HTTP),
            object("HTTPRoute", "r", &format!("parentRefs: [{{name: gw}}], rules: [{}]", rules.join(", "))),
            pool("slices", "name: slices, port: {number: 9002}, failureMode: FailOpen"),
            with("verify", pool("pods", "name: pods, port: {number: 9002}")),
            pool("gone", "name: gone, port: {number: 9002}"),
            pool("port", "name: slices, port: {number: 9003}"),
            pool("kind", "group: a.dev, kind: Picker, name: x"),
            pool("external", "name: external, port: {number: 9002}, failureMode: FailOpen"),
            with("plaintext", pool("clear", "name: pods, port: {number: 9002}")),
            with("insecure-skip-verify", pool("said", "name: slices, port: {number: 9002}")),
            with("verfiy", pool("odd", "name: slices, port: {number: 9002}")),
            service("slices", "ports: [{name: grpc, port: 9002, appProtocol: kubernetes.io/h2c}]"),
            service("pods", "selector: {app: epp}, ports: [{port: 9002, targetPort: 9000}]"),
            service("external", "type: ExternalName, externalName: e.com, ports: [{port: 9002}]"),
            "\n---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, labels: {kubernetes.io/service-name: slices}}, ports: [{name: grpc, port: 9002}], endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.1]}, {addresses: [10.0.0.3], conditions: {ready: false}}]}".to_owned(),
            "\n---\n{apiVersion: v1, kind: Pod, metadata: {name: epp, labels: {app: epp}}, status: {podIP: 10.0.1.1}}".to_owned(),
        ],
        "
port 80 http
  listener default/gw http for *
    * /* -> default/r[0] | 1 x pool default/slices
    * /* -> default/r[1] | 1 x pool default/pods
    * /* -> default/r[2] | 1 x pool default/gone
    * /* -> default/r[3] | 1 x pool default/port
    * /* -> default/r[4] | 1 x pool default/kind
    * /* -> default/r[5] | 1 x pool default/external
    * /* -> default/r[6] | 1 x pool default/clear
    * /* -> default/r[7] | 1 x pool default/said
    * /* -> default/r[8] | 1 x pool default/odd
pool default/clear picker default
  picked by default/pods:9002 plaintext FailClose [10.0.1.1:9000]
pool default/external picker default
  picked by default/external:9002 FailOpen []
pool default/gone picker default
  picked by default/gone:9002 FailClose []
pool default/kind picker default
  picked by default/x:0 FailClose []
pool default/odd picker default
  picked by default/slices:9002 FailClose []
pool default/pods picker default
  picked by default/pods:9002 tls(pods.default.svc system) FailClose [10.0.1.1:9000]
pool default/port picker default
  picked by default/slices:9003 FailClose []
pool default/said picker default
  picked by default/slices:9002 FailClose [10.0.0.1:9002,10.0.0.2:9002]
pool default/slices picker default
  picked by default/slices:9002 plaintext FailOpen [10.0.0.1:9002,10.0.0.2:9002]
problem InferencePool default/external spec.endpointPickerRef: InvalidExtensionRef: Service default/external is an ExternalName, which could reach anything; write an EndpointSlice with the addresses instead
problem InferencePool default/gone spec.endpointPickerRef: InvalidExtensionRef: Service default/gone does not exist
problem InferencePool default/kind spec.endpointPickerRef: InvalidExtensionRef: a.dev/Picker is no kind of picker; use a Service
problem InferencePool default/odd spec.endpointPickerRef: InvalidExtensionRef: forebay.dev/picker-tls is \"verfiy\"; write insecure-skip-verify, verify or plaintext
problem InferencePool default/port spec.endpointPickerRef: InvalidExtensionRef: Service default/slices has no port 9003, only 9002
Gateway default/gw Accepted Programmed ResolvedRefs
  listener http: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
HTTPRoute default/r
  at Gateway default/gw Accepted ResolvedRefs
InferencePool default/clear
  at Gateway default/gw Accepted ResolvedRefs
InferencePool default/external
  at Gateway default/gw Accepted !ResolvedRefs(InvalidExtensionRef)
InferencePool default/gone
  at Gateway default/gw Accepted !ResolvedRefs(InvalidExtensionRef)
InferencePool default/kind
  at Gateway default/gw Accepted !ResolvedRefs(InvalidExtensionRef)
InferencePool default/odd
  at Gateway default/gw Accepted !ResolvedRefs(InvalidExtensionRef)
InferencePool default/pods
  at Gateway default/gw Accepted ResolvedRefs
InferencePool default/port
  at Gateway default/gw Accepted !ResolvedRefs(InvalidExtensionRef)
InferencePool default/said
  at Gateway default/gw Accepted ResolvedRefs
InferencePool default/slices
  at Gateway default/gw Accepted ResolvedRefs
",
    );
}
