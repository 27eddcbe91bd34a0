//! References across namespaces hold where a ReferenceGrant there allows them, pair by pair of kinds.

mod common;

use common::{bundle, gateway, index, object, secret, service};

/// The kind that refers, the group and kind that it refers to, the objects in which it does so, and
/// where on which object it is said whether the reference holds.
fn pairs() -> Vec<(&'static str, &'static str, &'static str, String)> {
    let http = "{name: l, port: 80, protocol: HTTP}";
    let https = "{name: l, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}";
    let far = "{name: l, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: far, namespace: far}]}}";
    let tls = "{name: l, port: 443, protocol: TLS, tls: {mode: Passthrough}}";
    let service = "[{backendRefs: [{name: far, namespace: far, port: 80}]}]";
    let pool = "[{backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: far, namespace: far}]}]";
    let route = |kind, spec: &str, listener: &str| {
        gateway("gw", "", listener)
            + &object(kind, "r", &format!("parentRefs: [{{name: gw}}], {spec}"))
    };
    let mirror = "[{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: far, namespace: far, port: 80}}}]}]";
    let ca = "tls: {frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: far, namespace: far}]}}}},";
    let client = "tls: {backend: {clientCertificateRef: {name: far, namespace: far}}},";
    let set = format!("parentRef: {{name: gw}}, listeners: [{far}]");
    let sets = "allowedListeners: {namespaces: {from: All}},";
    vec![
        (
            "HTTPRoute",
            "",
            "Service",
            route("HTTPRoute", &format!("rules: {service}"), http),
        ),
        (
            "HTTPRoute",
            "",
            "Service",
            route("HTTPRoute", &format!("rules: {mirror}"), http),
        ),
        (
            "HTTPRoute",
            "inference.networking.k8s.io",
            "InferencePool",
            route("HTTPRoute", &format!("rules: {pool}"), http),
        ),
        (
            "GRPCRoute",
            "",
            "Service",
            route("GRPCRoute", &format!("rules: {service}"), http),
        ),
        (
            "GRPCRoute",
            "inference.networking.k8s.io",
            "InferencePool",
            route("GRPCRoute", &format!("rules: {pool}"), http),
        ),
        (
            "TLSRoute",
            "",
            "Service",
            route(
                "TLSRoute",
                &format!("hostnames: [a.com], rules: {service}"),
                tls,
            ),
        ),
        ("Gateway", "", "Secret", gateway("gw", "", far)),
        ("Gateway", "", "Secret", gateway("gw", client, http)),
        ("Gateway", "", "ConfigMap", gateway("gw", ca, https)),
        (
            "ListenerSet",
            "",
            "Secret",
            gateway("gw", sets, http) + &object("ListenerSet", "s", &set),
        ),
    ]
}

fn grant(from: &str, from_namespace: &str, group: &str, kind: &str, name: &str) -> String {
    object(
        "ReferenceGrant",
        "far/g",
        &format!(
            "from: [{{group: gateway.networking.k8s.io, kind: {from}, namespace: {from_namespace}}}], to: [{{group: '{group}', kind: {kind}{name}}}]"
        ),
    )
}

/// How many conditions say that a reference is not permitted.
fn refusals(objects: &str) -> usize {
    let statuses = index(objects).publish().statuses;
    let conditions = statuses.iter().flat_map(|status| {
        let of_listeners = status.listeners.iter().flat_map(|l| &l.conditions);
        let of_parents = status.parents.iter().flat_map(|p| &p.conditions);
        status
            .conditions
            .iter()
            .chain(of_listeners)
            .chain(of_parents)
    });
    conditions
        .filter(|c| c.kind == "ResolvedRefs" && c.reason == "RefNotPermitted")
        .count()
}

#[test]
fn a_grant_is_for_a_pair_of_kinds_a_namespace_and_perhaps_a_name() {
    let there = [
        service("far/far", "ports: [{port: 80}]"),
        secret("far/far"),
        secret("cert"),
        bundle("far/far"),
        "\n---\n{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: far, namespace: far}, spec: {selector: {matchLabels: {a: b}}, targetPorts: [{number: 1}]}}".to_owned(),
    ]
    .concat();
    for (from, group, kind, objects) in pairs() {
        let with = |grant: &str| refusals(&format!("{objects}{there}{grant}"));
        let what = format!("{from} to {kind}: {objects}");
        assert_eq!(with(""), 1, "without a grant, {what}");
        assert_eq!(with(&grant(from, "default", group, kind, "")), 0, "{what}");
        assert_eq!(
            with(&grant(from, "default", group, kind, ", name: far")),
            0,
            "by name, {what}"
        );
        for (why, grant) in [
            (
                "other name",
                grant(from, "default", group, kind, ", name: other"),
            ),
            ("other namespace", grant(from, "other", group, kind, "")),
            ("other kind", grant(from, "default", group, "Other", "")),
            ("other group", grant(from, "default", "x.dev", kind, "")),
            (
                "from another kind",
                grant("TCPRoute", "default", group, kind, ""),
            ),
            (
                "elsewhere",
                grant(from, "default", group, kind, "")
                    .replace("namespace: far", "namespace: near"),
            ),
        ] {
            assert_eq!(with(&grant), 1, "{why}, {what}");
        }
    }
}
