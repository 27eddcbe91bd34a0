//! The door: what is refused, with which field and cure, and what only draws a remark.

mod common;

use common::{check_problems, values};
use forebay_api::{Kind, Object};
use forebay_model::ObjectName;

fn route(rule: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r}}, spec: {{rules: [{rule}]}}}}"
    )
}

#[test]
fn a_value_of_the_wrong_shape_is_named_by_its_path() {
    check_problems(
        &route("{backendRefs: [{name: a, port: 80}, {name: b, port: web}]}"),
        "HTTPRoute default/r spec.rules[0].backendRefs[1].port: Malformed: invalid type: string \"web\", expected u16\n",
    );
    check_problems(
        &route("{matches: [{path: {type: Prefix, value: /}}]}"),
        "HTTPRoute default/r spec.rules[0].matches[0].path.type: Malformed: unknown variant `Prefix`, expected one of `Exact`, `PathPrefix`, `RegularExpression`\n",
    );
    check_problems(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: g}, spec: {gatewayClassName: forebay}}",
        "Gateway default/g spec: Malformed: missing field `listeners`\n",
    );
}

#[test]
fn unknown_and_unsupported_fields_are_remarked_upon_and_nothing_more() {
    check_problems(
        &route("{matchs: [], backendRefs: [{name: a, port: 80, wieght: 3}], sessionPersistence: {}}"),
        "
HTTPRoute default/r spec.rules[0].backendRefs[0].wieght: UnknownField: no such field; it has no effect: check its spelling and place
HTTPRoute default/r spec.rules[0].matchs: UnknownField: no such field; it has no effect: check its spelling and place
HTTPRoute default/r spec.rules[0].sessionPersistence: UnsupportedField: not supported; it has no effect
",
    );
    check_problems(
        &route("{}").replace(
            "{name: r}",
            "{name: r, anotations: {}, uid: u, managedFields: [{a: b}]}, status: {parents: []}",
        ),
        "HTTPRoute default/r metadata.anotations: UnknownField: no such field; it has no effect: check its spelling and place\n",
    );
    // Core kinds have fields that routing does not read, and nulls are fields left out.
    check_problems(
        "{apiVersion: v1, kind: Pod, metadata: {name: p, labels: null, creationTimestamp: null}, spec: {restartPolicy: Always, containers: [{name: c, image: i}]}}",
        "",
    );
}

#[test]
fn kinds_that_are_not_read_are_named() {
    for (text, want) in [
        (
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}",
            "Deployment default/d: UnknownKind: apps/v1 Deployment is not read; the object has no effect\n",
        ),
        (
            "{apiVersion: gateway.networking.k8s.io/v1beta1, kind: HTTPRoute, metadata: {name: r}}",
            "HTTPRoute default/r: UnknownKind: HTTPRoute is read as gateway.networking.k8s.io/v1, not gateway.networking.k8s.io/v1beta1\n",
        ),
        (
            "{name: x}",
            "object default/(unnamed): UnknownKind: not an object: write apiVersion and kind\n",
        ),
    ] {
        check_problems(text, want);
    }
}

#[test]
fn every_mistake_of_a_route_is_reported_at_once() {
    check_problems(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: Bad_Name}
spec:
  hostnames: ['*.*.com', 1.2.3.4]
  rules:
  - name: x
    matches:
    - {path: {value: v1}, headers: [{name: 'a b', value: ''}, {name: X, value: '(', type: RegularExpression}]}
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replaceFullPath: /}}}
    - {type: RequestRedirect, requestRedirect: {statusCode: 200, hostname: '*.a'}}
    - {type: RequestRedirect, cors: {}}
    timeouts: {request: 1s, backendRequest: 2s}
    retry: {codes: [200], backoff: 1.5s}
    backendRefs: [{name: s, weight: 2000000}]
  - name: x
    matches: [{path: {type: Exact, value: /a}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: s, port: 1}, percent: 101, fraction: {numerator: 2, denominator: 1}}}
",
        "
HTTPRoute default/Bad_Name metadata.name: InvalidValue: give a name of lower-case letters, digits, - and .; at most 253 characters
HTTPRoute default/Bad_Name spec.hostnames[0]: InvalidValue: write a host name in lower case, such as chat.example.com or *.example.com; no port, no address
HTTPRoute default/Bad_Name spec.hostnames[1]: InvalidValue: write a host name in lower case, such as chat.example.com or *.example.com; no port, no address
HTTPRoute default/Bad_Name spec.rules[1].name: InvalidValue: x is there twice
HTTPRoute default/Bad_Name spec.rules[0].matches[0].path.value: InvalidValue: a path starts with /
HTTPRoute default/Bad_Name spec.rules[0].matches[0].headers[0].name: InvalidValue: a name is letters, digits and - . _ and the like
HTTPRoute default/Bad_Name spec.rules[0].matches[0].headers[0].value: InvalidValue: a value has 1 to 4096 characters
HTTPRoute default/Bad_Name spec.rules[0].filters: InvalidValue: RequestRedirect and URLRewrite exclude each other
HTTPRoute default/Bad_Name spec.rules[0].filters[0].urlRewrite.path: InvalidValue: this type has the field replacePrefixMatch and no other
HTTPRoute default/Bad_Name spec.rules[0].filters[1].requestRedirect.statusCode: InvalidValue: statusCode is 301, 302, 303, 307 or 308
HTTPRoute default/Bad_Name spec.rules[0].filters[1].requestRedirect.hostname: InvalidValue: write a host name in lower case without wildcard
HTTPRoute default/Bad_Name spec.rules[0].filters[2].type: InvalidValue: RequestRedirect is there twice
HTTPRoute default/Bad_Name spec.rules[0].filters[2].requestRedirect: InvalidValue: a filter of type RequestRedirect has the field requestRedirect and no other
HTTPRoute default/Bad_Name spec.rules[0].filters[2].cors: InvalidValue: a filter of type RequestRedirect has the field requestRedirect and no other
HTTPRoute default/Bad_Name spec.rules[0].backendRefs[0].port: InvalidValue: a Service needs a port
HTTPRoute default/Bad_Name spec.rules[0].backendRefs[0].weight: InvalidValue: a weight is 0 to 1000000
HTTPRoute default/Bad_Name spec.rules[0].backendRefs: InvalidValue: a rule that redirects has no backends
HTTPRoute default/Bad_Name spec.rules[0].retry.backoff: InvalidValue: write a duration such as 500ms, 10s or 1m30s
HTTPRoute default/Bad_Name spec.rules[0].timeouts.backendRequest: InvalidValue: cannot be longer than timeouts.request
HTTPRoute default/Bad_Name spec.rules[0].retry.codes[0]: InvalidValue: a code is 400 to 599
HTTPRoute default/Bad_Name spec.rules[1].filters[0].urlRewrite.path: InvalidValue: a prefix can be replaced only if every match of the rule has a PathPrefix
HTTPRoute default/Bad_Name spec.rules[1].filters[1].requestMirror: InvalidValue: write percent or fraction, not both
HTTPRoute default/Bad_Name spec.rules[1].filters[1].requestMirror.percent: InvalidValue: percent is 0 to 100
HTTPRoute default/Bad_Name spec.rules[1].filters[1].requestMirror.fraction: InvalidValue: numerator is at most denominator, which is 1 or more
",
    );
}

#[test]
fn gateways_pools_and_rewrites_obey_their_rules() {
    check_problems(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g}
spec:
  gatewayClassName: forebay
  addresses: []
  listeners:
  - {name: a, port: 80, protocol: HTTP}
  - {name: a, port: 80, protocol: HTTP, tls: {}}
  - {name: b, port: 0, protocol: HTTPS, hostname: 'A.com'}
  - {name: c, port: 1, protocol: HTTPS, tls: {mode: Passthrough}, allowedRoutes: {namespaces: {from: Selector}}}
",
        "
Gateway default/g spec.listeners[1].name: InvalidValue: a is there twice
Gateway default/g spec.listeners[1]: InvalidValue: HTTP port 80 for every host is there twice
Gateway default/g spec.listeners[1].tls: InvalidValue: only HTTPS and TLS listeners have tls
Gateway default/g spec.listeners[2].port: InvalidValue: a port is 1 to 65535
Gateway default/g spec.listeners[2].hostname: InvalidValue: write a host name in lower case, such as chat.example.com or *.example.com; no port, no address
Gateway default/g spec.listeners[3].tls.mode: InvalidValue: an HTTPS listener has mode Terminate
",
    );
    check_problems(
        "{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: p}, spec: {selector: {matchLabels: {'a/b/c': x}}, targetPorts: [{number: 1}, {number: 1}, {number: 0}], endpointPickerRef: {name: e}}}",
        "
InferencePool default/p spec.selector.matchLabels[a/b/c]: InvalidValue: not a label: letters, digits, -, _ and ., at most 63 characters
InferencePool default/p spec.targetPorts[1].number: InvalidValue: 1 is there twice
InferencePool default/p spec.targetPorts[2].number: InvalidValue: a port is 1 to 65535
InferencePool default/p spec.endpointPickerRef.port: InvalidValue: a picker that is a Service needs port.number
",
    );
    check_problems(
        "{apiVersion: llm-d.ai/v1alpha2, kind: InferenceModelRewrite, metadata: {name: m}, spec: {poolRef: {kind: Service, name: p}, rules: [{targets: [{modelRewrite: a, weight: 1}, {modelRewrite: ''}]}, {matches: [{model: {value: ''}}], targets: []}]}}",
        "
InferenceModelRewrite default/m spec.poolRef: InvalidValue: must name an InferencePool; its group is inference.networking.k8s.io, inference.networking.x-k8s.io, llm-d.ai
InferenceModelRewrite default/m spec.rules[0].targets: InvalidValue: give a weight to all targets or to none
InferenceModelRewrite default/m spec.rules[0].targets[1].modelRewrite: InvalidValue: name the model that the server sees
InferenceModelRewrite default/m spec.rules[1].matches[0].model.value: InvalidValue: name a model; leave matches out to match every model
InferenceModelRewrite default/m spec.rules[1].targets: InvalidValue: write one target at least
",
    );
}

#[test]
fn a_secret_is_never_quoted() {
    check_problems(
        "{apiVersion: v1, kind: Secret, metadata: {name: s}, data: hunter2}",
        "Secret default/s data: Malformed: not of the type that this field of a Secret has\n",
    );
}

#[test]
fn a_refused_object_still_has_a_name() {
    let value =
        values("{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: n}, spec: 7}").remove(0);
    assert_eq!(
        Object::key_of(&value),
        Some((Kind::Pod, ObjectName::new("n", "p")))
    );
    assert!(Object::parse(value).is_err());
}
