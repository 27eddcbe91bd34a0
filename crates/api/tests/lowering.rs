//! Objects as YAML in, the whole snapshot or the statuses as text out.

mod common;

use std::sync::Arc;

use common::{check, check_statuses, index, parse, values};
use forebay_api::{Index, Kind, Object, Settings, describe};
use forebay_model::ObjectName;

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw}
spec: {gatewayClassName: forebay, listeners: [{name: http, port: 80, protocol: HTTP}]}
";

const POOL: &str = "
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: llm}
spec: {selector: {matchLabels: {app: vllm}}, targetPorts: [{number: 8000}, {number: 8001}]}
---
apiVersion: v1
kind: Pod
metadata: {name: vllm-0, labels: {app: vllm, llm-d.ai/engine-type: vllm, topology.kubernetes.io/zone: z1}}
spec: {nodeName: n1}
status: {podIP: 10.0.0.1}
";

/// A route of `spec` at the Gateway `gw`.
fn route(name: &str, spec: &str) -> String {
    format!(
        "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{{name: gw}}]
  {spec}
"
    )
}

fn service(name: &str, rest: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{{rest}}}
"
    )
}

#[test]
fn a_gateway_a_route_and_a_pool_make_a_snapshot() {
    let objects = format!(
        "{GATEWAY}---{POOL}{}",
        route(
            "chat",
            "rules: [{backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: llm}]}]"
        )
    );
    check(
        &objects,
        "
port 80 http
  listener default/gw http for *
    * /* -> default/chat[0] | 1 x pool default/llm
pool default/llm picker default
  10.0.0.1:8000 vllm-0 Vllm zone=z1 host=n1
  10.0.0.1:8001 vllm-0 Vllm zone=z1 host=n1
",
    );
    check_statuses(
        &objects,
        "
Gateway default/gw Accepted Programmed ResolvedRefs
  listener http: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
HTTPRoute default/chat
  at Gateway default/gw Accepted ResolvedRefs
InferencePool default/llm
  at Gateway default/gw Accepted ResolvedRefs
",
    );
}

#[test]
fn matches_are_ordered_by_precedence_and_age() {
    let objects = format!(
        "{GATEWAY}{}{}{}",
        route("b", "rules: [{matches: [{path: {value: /v1/}, headers: [{name: X-Gateway-Model-Name, value: m}]}, {path: {type: RegularExpression, value: '/x.*'}}]}]"),
        route("a", "{hostnames: [a.com, '*.com'], rules: [{matches: [{path: {type: Exact, value: /v1}, method: POST}]}]}")
            .replace("  {hostnames", "  hostnames").replace("], rules", "]\n  rules").replace("]}]}\n", "]}]\n"),
        route("old", "rules: [{matches: [{path: {value: /v1}, queryParams: [{name: q, value: '[0-9]', type: RegularExpression}]}, {path: {value: /}}]}]")
            .replace("name: old", "name: old, creationTimestamp: '2026-01-01T00:00:00Z'"),
    );
    check(
        &objects,
        "
port 80 http
  listener default/gw http for * reads model
    a.com =/v1 POST -> default/a[0]
    *.com =/v1 POST -> default/a[0]
    * /v1/* x-gateway-model-name=m -> default/b[0]
    * /v1/* ?q~^(?:[0-9])$ -> default/old[0]
    * ~^(?:/x.*)$ -> default/b[0]
    * /* -> default/old[0]
",
    );
}

#[test]
fn every_filter_and_limit_arrives() {
    let rule = "rules:
  - matches: [{path: {value: /v1}}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: '1'}], add: [{name: B, value: b}], remove: [C]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [Server]}}
    - {type: URLRewrite, urlRewrite: {hostname: in.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: s, port: 80}, percent: 10}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: none, port: 80}, fraction: {numerator: 1, denominator: 3}}}
    - {type: CORS, cors: {allowOrigins: ['https://a'], allowCredentials: true, allowMethods: [GET]}}
    timeouts: {request: 1m, backendRequest: 10s500ms}
    retry: {codes: [503], attempts: 2, backoff: 100ms}
    backendRefs:
    - {name: s, port: 80, weight: 0, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: k, value: v}]}}]}
  - filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443, statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /x}}}]
    timeouts: {request: 0s}
  - filters: [{type: ExtensionRef, extensionRef: {group: g, kind: K, name: n}}]
    matches: [{path: {value: /ext}}]
    backendRefs: [{name: s, port: 80}]";
    check(
        &format!("{GATEWAY}{}{}", route("r", rule), service("s", "ports: [{port: 80}]")),
        "
port 80 http
  listener default/gw http for *
    * /ext/* -> default/r[2] | 1 x 500 InvalidKind
    * /v1/* -> default/r[0] request(x-a=1 b+=b -c) response(-server) rewrite(host=in.example prefix=/v2) mirror(10/100 service default/s:80 []) mirror(1/3 500 BackendNotFound) cors(https://a credentials methods GET headers  expose  5s) | 0 x service default/s:80 [] request(k=v) request<60s backend<10.5s retry 2 on 503 after 100ms
    * /* -> default/r[1] redirect(301 scheme=https port=8443 path=/x)
problem HTTPRoute default/r spec.rules[0].filters[4].requestMirror.backendRef: BackendNotFound: Service default/none does not exist; check its name and namespace
problem HTTPRoute default/r spec.rules[2].filters[0]: InvalidKind: filters of type ExtensionRef are not supported
",
    );
}

#[test]
fn a_wrong_reference_keeps_its_share_and_says_why() {
    let objects = format!(
        "{GATEWAY}{}{}{}
---
{{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {{name: g, namespace: open}},
  spec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}}], to: [{{group: '', kind: Service}}]}}}}
---
{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: open}}, spec: {{ports: [{{port: 80}}]}}}}
",
        route("r", "rules: [{backendRefs: [{name: s, port: 80, weight: 9}, {name: s, port: 81}, {name: x, port: 80}, {name: ext, port: 80}, {name: s, namespace: open, port: 80}, {name: s, namespace: shut, port: 80}, {group: g, kind: K, name: k}, {group: inference.networking.k8s.io, kind: InferencePool, name: none}]}]"),
        service("s", "ports: [{port: 80, appProtocol: kubernetes.io/h2c}]"),
        service("ext", "type: ExternalName, externalName: e.com, ports: [{port: 80}]"),
    );
    check(
        &objects,
        "
port 80 http
  listener default/gw http for *
    * /* -> default/r[0] | 9 x service default/s:80 h2c [] | 1 x 500 BackendNotFound | 1 x 500 BackendNotFound | 1 x 500 UnsupportedValue | 1 x service open/s:80 [] | 1 x 500 RefNotPermitted | 1 x 500 InvalidKind | 1 x 500 BackendNotFound
problem HTTPRoute default/r spec.rules[0].backendRefs[1]: BackendNotFound: Service default/s has no port 81, only 80
problem HTTPRoute default/r spec.rules[0].backendRefs[2]: BackendNotFound: Service default/x does not exist; check its name and namespace
problem HTTPRoute default/r spec.rules[0].backendRefs[3]: UnsupportedValue: Service default/ext is an ExternalName, which could reach anything; write an EndpointSlice with the addresses instead
problem HTTPRoute default/r spec.rules[0].backendRefs[5]: RefNotPermitted: Service shut/s is in another namespace; a ReferenceGrant there must allow HTTPRoute of default
problem HTTPRoute default/r spec.rules[0].backendRefs[6]: InvalidKind: g/K is no backend; use a Service or an InferencePool of inference.networking.k8s.io
problem HTTPRoute default/r spec.rules[0].backendRefs[7]: BackendNotFound: InferencePool default/none does not exist; check its name and namespace
",
    );
    check_statuses(
        &objects,
        "
Gateway default/gw Accepted Programmed ResolvedRefs
  listener http: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
HTTPRoute default/r
  at Gateway default/gw Accepted !ResolvedRefs(BackendNotFound)
",
    );
}

#[test]
fn services_are_resolved_by_slices_or_else_by_their_selector() {
    let objects = format!(
        "{GATEWAY}{}{}{}
---
{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: a-1, labels: {{kubernetes.io/service-name: a}}}},
  addressType: IPv4, ports: [{{name: web, port: 8080}}, {{name: m, port: 1}}],
  endpoints: [{{addresses: [10.0.0.2], conditions: {{ready: true}}}}, {{addresses: [10.0.0.1]}}, {{addresses: [10.0.0.3], conditions: {{ready: false}}}}]}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: p, labels: {{app: b}}}}, spec: {{containers: [{{ports: [{{name: web, containerPort: 9000}}]}}]}}, status: {{podIP: 10.0.1.1}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: q, labels: {{app: b}}}}, status: {{podIP: 10.0.1.2, conditions: [{{type: Ready, status: 'False'}}]}}}}
",
        route("r", "rules: [{backendRefs: [{name: a, port: 80}, {name: b, port: 80}, {name: b, port: 81}]}]"),
        service("a", "ports: [{name: web, port: 80}]"),
        service("b", "selector: {app: b}, ports: [{port: 80, targetPort: web}, {port: 81}]"),
    );
    check(
        &objects,
        "
port 80 http
  listener default/gw http for *
    * /* -> default/r[0] | 1 x service default/a:80 [10.0.0.1:8080,10.0.0.2:8080] | 1 x service default/b:80 [10.0.1.1:9000] | 1 x service default/b:81 [10.0.1.1:81]
",
    );
}

#[test]
fn pools_carry_pickers_objectives_and_rewrites_in_precedence() {
    let rewrite = |name: &str, group: &str, age: &str, rules: &str| {
        format!(
            "\n---\n{{apiVersion: {group}, kind: InferenceModelRewrite, metadata: {{name: {name}, creationTimestamp: '{age}'}}, spec: {{poolRef: {{name: llm}}, rules: [{rules}]}}}}"
        )
    };
    let objective = |name: &str, group: &str, pool: &str, rest: &str| {
        format!(
            "\n---\n{{apiVersion: {group}, kind: InferenceObjective, metadata: {{name: {name}}}, spec: {{poolRef: {{name: {pool}}}{rest}}}}}"
        )
    };
    let (new, old) = (
        "llm-d.ai/v1alpha2",
        "inference.networking.x-k8s.io/v1alpha2",
    );
    let objects = [
        POOL.replace(
            "{name: llm}",
            "{name: llm, annotations: {forebay.dev/picker: round-robin}}",
        ),
        rewrite(
            "generic",
            new,
            "2025-01-01T00:00:00Z",
            "{targets: [{modelRewrite: any}]}",
        ),
        rewrite(
            "young",
            new,
            "2026-02-01T00:00:00Z",
            "{matches: [{model: {value: m}}], targets: [{modelRewrite: late}]}",
        ),
        rewrite(
            "old",
            new,
            "2026-01-01T00:00:00Z",
            "{matches: [{model: {value: m}}, {model: {value: n}}], targets: [{modelRewrite: a, weight: 9}, {modelRewrite: b, weight: 1}]}",
        ),
        rewrite(
            "old",
            old,
            "2024-01-01T00:00:00Z",
            "{targets: [{modelRewrite: hidden}]}",
        ),
        objective("high", new, "llm", ", priority: 10"),
        objective("high", old, "llm", ", priority: 1"),
        objective("batch", old, "llm", ", priority: -1"),
        objective("lost", new, "none", ""),
    ];
    check(
        &objects.concat(),
        "
pool default/llm picker RoundRobin()
  10.0.0.1:8000 vllm-0 Vllm zone=z1 host=n1
  10.0.0.1:8001 vllm-0 Vllm zone=z1 host=n1
  objective batch -1
  objective high 10
  rewrite m,n -> 9 x a | 1 x b
  rewrite m -> 1 x late
  rewrite * -> 1 x any
problem InferenceObjective default/lost spec.poolRef.name: NotFound: InferencePool default/none does not exist; this has no effect
",
    );
}

#[test]
fn a_pool_may_be_named_by_each_group_that_it_has_had_and_by_no_other() {
    for kind in [
        "InferenceObjective, metadata: {name: o}, spec: {priority: 3, ",
        "InferenceModelRewrite, metadata: {name: w}, spec: {rules: [{targets: [{modelRewrite: m}]}], ",
    ] {
        for version in [
            "llm-d.ai/v1alpha2",
            "inference.networking.x-k8s.io/v1alpha2",
        ] {
            let named = |reference: &str| {
                let object = format!(
                    "{{apiVersion: {version}, kind: {kind}poolRef: {{name: llm{reference}}}}}}}"
                );
                let mut index = index(POOL);
                let refused = match Object::parse(values(&object).remove(0)) {
                    Ok(parsed) => {
                        index.apply(parsed.object);
                        0
                    }
                    Err(problems) => problems.len(),
                };
                let snapshot = index.publish().snapshot;
                let pool = &snapshot.pools[&ObjectName::new("default", "llm")];
                (pool.objectives.len() + pool.rewrites.len(), refused)
            };
            for group in [
                "",
                ", group: inference.networking.k8s.io",
                ", group: inference.networking.x-k8s.io",
                ", group: llm-d.ai",
            ] {
                assert_eq!(named(group), (1, 0), "{version} {kind} {group}");
            }
            assert_eq!(named(", group: example.com"), (0, 1), "{version} {kind}");
        }
    }
}

#[test]
fn pods_say_what_they_are_and_whether_they_are_ready() {
    let pod = |name: &str, labels: &str, meta: &str, status: &str| {
        format!(
            "\n---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: vllm{labels}}}{meta}}}, status: {{{status}}}}}"
        )
    };
    let objects = [
        "{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: llm}, spec: {selector: {matchLabels: {app: vllm}}, appProtocol: kubernetes.io/h2c, targetPorts: [{number: 1}], endpointPickerRef: {name: epp, port: {number: 9002}}}}".to_owned(),
        pod("a", ", llm-d.ai/role: prefill, forebay.dev/rail: r0, forebay.dev/block: b1, nvidia.com/gpu.clique: c1", "", "podIP: 10.0.0.1"),
        pod("b", ", llm-d.ai/role: odd, llm-d.ai/engine-type: sglang", ", deletionTimestamp: '2026-01-01T00:00:00Z'", "podIP: 10.0.0.2"),
        pod("c", "", "", "podIP: 10.0.0.3, conditions: [{type: Ready, status: 'False'}]"),
        pod("d", "", "", "podIP: 10.0.0.4, phase: Succeeded"),
        pod("e", "", "", "phase: Pending"),
        pod("f", "", "", "podIP: 10.0.0.1"),
        pod("g", "", ", namespace: other", "podIP: 10.0.0.7"),
        pod("h", "", "", "podIP: 'fd00::1'").replace("app: vllm", "app: vllm, llm-d.ai/role: decode"),
    ];
    check(
        &objects.concat(),
        "
pool default/llm h2c picker default
  10.0.0.1:1 a Prefill rail=r0 block=b1 nvlink=c1
  10.0.0.2:1 b unready Sglang
  10.0.0.3:1 c unready
  [fd00::1]:1 h Decode
  picked by default/epp:9002 FailClose []
problem Pod default/b metadata.labels[llm-d.ai/role]: UnknownLabelValue: \"odd\" is no role that we know; the pod gets whole requests
problem InferencePool default/llm spec.selector: DuplicateEndpoint: pods a and f both have 10.0.0.1:1; the first is used
problem InferencePool default/llm spec.endpointPickerRef: InvalidExtensionRef: Service default/epp does not exist
",
    );
}

#[test]
fn a_picker_may_be_written_whole_and_a_wrong_one_is_named() {
    let with = |picker: &str| {
        POOL.replace(
            "{name: llm}",
            &format!("\n  name: llm\n  annotations:\n    forebay.dev/picker: |\n      {picker}\n"),
        )
    };
    let first_line = |objects: &str| {
        let text = describe::snapshot(&index(objects).publish().snapshot);
        let line = text
            .lines()
            .find(|line| !line.starts_with("  "))
            .unwrap()
            .to_owned();
        (line, text.lines().last().unwrap().to_owned())
    };
    let (pool, _) = first_line(&with(
        "{picker: {power-of: 2}, scorers: [{scorer: queue, weight: 1}]}",
    ));
    assert_eq!(pool, "pool default/llm picker PowerOf2(Queue*1)");
    for (picker, complaint) in [
        (
            "{scorers: [{scorer: queue, weight: -1}]}",
            "scorers: a weight is zero or more",
        ),
        ("{endpointsMax: 0}", "endpointsMax is 1 or more"),
        ("{stickyShare: 2}", "stickyShare is 0 to 1"),
        ("{scorrers: []}", "unknown field"),
        ("fastest", ""),
    ] {
        let (pool, problem) = first_line(&with(picker));
        assert_eq!(pool, "pool default/llm picker default");
        let start = "problem InferencePool default/llm metadata.annotations[forebay.dev/picker]: InvalidPicker: ";
        assert!(
            problem.starts_with(start) && problem.contains(complaint),
            "{problem}"
        );
    }
}

#[test]
fn a_pool_that_did_not_change_keeps_its_arc_and_equal_content_its_generation() {
    let mut index = index(&format!("{GATEWAY}---{POOL}"));
    let name = ObjectName::new("default", "llm");
    let first = index.publish().snapshot;
    assert_eq!(first.generation, 1);
    for object in parse(POOL) {
        index.apply(object);
    }
    assert!(Arc::ptr_eq(&index.publish().snapshot, &first));
    // A pod that the pool does not select makes the namespace stale, but no difference.
    for object in
        parse("{apiVersion: v1, kind: Pod, metadata: {name: x}, status: {podIP: 10.9.9.9}}")
    {
        index.apply(object);
    }
    assert!(Arc::ptr_eq(&index.publish().snapshot, &first));
    index.delete(Kind::Gateway, &ObjectName::new("default", "gw"));
    let second = index.publish().snapshot;
    assert_eq!(second.generation, 2);
    assert!(Arc::ptr_eq(&second.pools[&name], &first.pools[&name]));
    index.delete(Kind::Pod, &ObjectName::new("default", "vllm-0"));
    let third = index.publish().snapshot;
    assert_eq!(third.generation, 3);
    assert!(third.pools[&name].endpoints.is_empty());
}

#[test]
fn in_a_cluster_a_class_object_is_needed_and_pods_must_say_that_they_are_ready() {
    let class = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: forebay}
spec: {controllerName: forebay.dev/gateway}";
    let mut index = Index::new(Settings::cluster());
    for object in parse(&format!("{GATEWAY}---{POOL}")) {
        index.apply(object);
    }
    let published = index.publish().snapshot;
    assert!(published.ports.is_empty());
    assert_eq!(
        published.pools[&ObjectName::new("default", "llm")]
            .ready()
            .count(),
        0
    );
    for object in parse(class) {
        index.apply(object);
    }
    assert_eq!(index.publish().snapshot.ports.len(), 1);
    for object in parse(&class.replace("forebay.dev/gateway", "other.dev/gateway")) {
        index.apply(object);
    }
    assert!(index.publish().snapshot.ports.is_empty());
}
