//! Which listeners serve, and which routes they take.

mod common;

use common::{check, check_statuses};

/// A Gateway `name` with `listeners`.
fn gateway(name: &str, listeners: &str) -> String {
    format!(
        "\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: {name}}}, spec: {{gatewayClassName: forebay, listeners: [{listeners}]}}}}"
    )
}

fn route(name: &str, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
    )
}

#[test]
fn hosts_of_listener_and_route_are_intersected_and_listeners_go_from_narrow_to_wide() {
    let objects = [
        gateway(
            "gw",
            "{name: any, port: 80, protocol: HTTP}, {name: wild, port: 80, protocol: HTTP, hostname: '*.a.com'}, {name: one, port: 80, protocol: HTTP, hostname: x.a.com}, {name: wider, port: 80, protocol: HTTP, hostname: '*.com'}",
        ),
        route(
            "r",
            "parentRefs: [{name: gw}], hostnames: ['*.a.com', b.com]",
        ),
        route(
            "one",
            "parentRefs: [{name: gw, sectionName: one}, {name: gw, port: 80, sectionName: one}]",
        ),
        route(
            "none",
            "parentRefs: [{name: gw, sectionName: one}], hostnames: [y.a.com]",
        ),
        route(
            "lost",
            "parentRefs: [{name: gw, sectionName: gone}, {name: gone}]",
        ),
    ];
    check(
        &objects.concat(),
        "
port 80 http
  listener default/gw one for x.a.com
    x.a.com /* -> default/one[0]
    x.a.com /* -> default/r[0]
  listener default/gw wild for *.a.com
    *.a.com /* -> default/r[0]
  listener default/gw wider for *.com
    b.com /* -> default/r[0]
    *.a.com /* -> default/r[0]
  listener default/gw any for *
    b.com /* -> default/r[0]
    *.a.com /* -> default/r[0]
problem HTTPRoute default/lost spec.parentRefs[0]: NoMatchingParent: Gateway default/gw has no listener of this name or port
problem HTTPRoute default/lost spec.parentRefs[1]: NoMatchingParent: Gateway default/gone does not exist
problem HTTPRoute default/none spec.parentRefs[0]: NoMatchingListenerHostname: no hostname of the route is one of listener one of Gateway default/gw
",
    );
    check_statuses(
        &objects.concat(),
        "
Gateway default/gw Accepted Programmed ResolvedRefs
  listener any: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener wild: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener one: 2 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener wider: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
HTTPRoute default/lost
  at Gateway default/gw#gone !Accepted(NoMatchingParent) ResolvedRefs
HTTPRoute default/none
  at Gateway default/gw#one !Accepted(NoMatchingListenerHostname) ResolvedRefs
HTTPRoute default/one
  at Gateway default/gw#one Accepted ResolvedRefs
  at Gateway default/gw#one Accepted ResolvedRefs
HTTPRoute default/r
  at Gateway default/gw Accepted ResolvedRefs
",
    );
}

#[test]
fn listeners_choose_the_namespaces_and_kinds_of_their_routes() {
    let objects = [
        gateway(
            "gw",
            "{name: same, port: 1, protocol: HTTP}, {name: all, port: 2, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}, {name: some, port: 3, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}}, {name: named, port: 4, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [b]}]}}}}, {name: grpc, port: 5, protocol: HTTP, allowedRoutes: {namespaces: {from: All}, kinds: [{kind: GRPCRoute}]}}",
        ),
        "\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: a}}}"
            .to_owned(),
        route("ra", "parentRefs: [{name: gw, namespace: default}]")
            .replace("name: ra", "name: ra, namespace: a"),
        route("rb", "parentRefs: [{name: gw, namespace: default}]")
            .replace("name: rb", "name: rb, namespace: b"),
        route(
            "rc",
            "parentRefs: [{name: gw, namespace: default, port: 1}]",
        )
        .replace("name: rc", "name: rc, namespace: c"),
    ];
    check(
        &objects.concat(),
        "
port 1 http
  listener default/gw same for *
port 2 http
  listener default/gw all for *
    * /* -> a/ra[0]
    * /* -> b/rb[0]
port 3 http
  listener default/gw some for *
    * /* -> a/ra[0]
port 4 http
  listener default/gw named for *
    * /* -> b/rb[0]
port 5 http
  listener default/gw grpc for *
problem HTTPRoute c/rc spec.parentRefs[0]: NotAllowedByListeners: listener same of Gateway default/gw does not allow HTTPRoutes of namespace c; see its allowedRoutes
",
    );
}

#[test]
fn listeners_in_conflict_do_not_serve_and_the_older_gateway_wins() {
    let tls = "tls: {certificateRefs: [{name: cert}]}";
    let objects = [
        gateway("a", &format!("{{name: http, port: 80, protocol: HTTP}}, {{name: mixed, port: 81, protocol: HTTP}}, {{name: tls, port: 81, protocol: HTTPS, {tls}}}, {{name: tcp, port: 82, protocol: TCP}}")),
        gateway("b", "{name: http, port: 80, protocol: HTTP}"),
        gateway("c", "{name: http, port: 80, protocol: HTTP}, {name: host, port: 80, protocol: HTTP, hostname: c.com}")
            .replace("name: c}", "name: c, creationTimestamp: '2026-01-01T00:00:00Z'}"),
        gateway("other", "{name: http, port: 90, protocol: HTTP}").replace("gatewayClassName: forebay", "gatewayClassName: istio"),
    ];
    check_statuses(
        &objects.concat(),
        "
Gateway default/a !Accepted(ListenersNotValid) !Programmed(Invalid) !ResolvedRefs(ListenersNotResolved)
  listener http: 0 routes of HTTPRoute,GRPCRoute !Accepted(HostnameConflict) !Programmed(Invalid) ResolvedRefs Conflicted(HostnameConflict)
  listener mixed: 0 routes of HTTPRoute,GRPCRoute !Accepted(ProtocolConflict) !Programmed(Invalid) ResolvedRefs Conflicted(ProtocolConflict)
  listener tls: 0 routes of HTTPRoute,GRPCRoute !Accepted(ProtocolConflict) !Programmed(Invalid) !ResolvedRefs(InvalidCertificateRef) Conflicted(ProtocolConflict)
  listener tcp: 0 routes of no kind !Accepted(UnsupportedProtocol) !Programmed(Invalid) ResolvedRefs !Conflicted(NoConflicts)
Gateway default/b !Accepted(ListenersNotValid) !Programmed(Invalid) ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute !Accepted(HostnameConflict) !Programmed(Invalid) ResolvedRefs Conflicted(HostnameConflict)
Gateway default/c Accepted Programmed ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener host: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
",
    );
    check(
        &objects.concat(),
        "
port 80 http
  listener default/c host for c.com
  listener default/c http for *
problem Gateway default/a spec.listeners[0]: HostnameConflict: Gateway default/c already has this host name on port 80
problem Gateway default/a spec.listeners[1]: ProtocolConflict: HTTP and TLS cannot share port 81
problem Gateway default/a spec.listeners[2]: ProtocolConflict: HTTP and TLS cannot share port 81
problem Gateway default/a spec.listeners[3]: UnsupportedProtocol: protocol TCP is not supported; use HTTP, HTTPS or TLS
problem Gateway default/b spec.listeners[0]: HostnameConflict: Gateway default/c already has this host name on port 80
problem Gateway default/other spec.gatewayClassName: NotFound: GatewayClass istio does not exist, so the Gateway is nobody's; the class forebay needs no object in files
",
    );
}

#[test]
fn certificates_come_from_secrets_and_a_listener_without_one_keeps_port_and_host() {
    let secret = |name: &str, namespace: &str, rest: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\n{rest}\n"
        )
    };
    let pem = "type: kubernetes.io/tls\nstringData:\n  tls.crt: |\n    -----BEGIN CERTIFICATE-----\n    AAAA\n    -----END CERTIFICATE-----\n  tls.key: |\n    -----BEGIN EC PRIVATE KEY-----\n    AAAA\n    -----END EC PRIVATE KEY-----";
    let listener = |name: &str, refs: &str| {
        format!(
            "{{name: {name}, port: 443, protocol: HTTPS, hostname: {name}.com, tls: {{certificateRefs: [{refs}]}}}}"
        )
    };
    let listeners = [
        listener("good", "{name: cert}"),
        listener("gone", "{name: gone}"),
        listener("bad", "{name: bad}"),
        listener("kind", "{name: opaque}"),
        listener("far", "{name: cert, namespace: far}"),
    ];
    let objects = [
        gateway("gw", &listeners.join(", ")),
        secret("cert", "default", pem),
        secret("cert", "far", pem),
        secret("opaque", "default", "type: Opaque"),
        secret(
            "bad",
            "default",
            "type: kubernetes.io/tls\ndata: {tls.crt: SGVsbG8gd29ybGQ=, tls.key: SGVsbG8gd29ybGQ=}",
        ),
    ];
    check(
        &objects.concat(),
        "
port 443 https
  listener default/gw good for good.com certificate default/cert
  listener default/gw gone for gone.com refused
  listener default/gw bad for bad.com refused
  listener default/gw kind for kind.com refused
  listener default/gw far for far.com refused
problem Gateway default/gw spec.listeners[1]: InvalidCertificateRef: Secret default/gone does not exist
problem Gateway default/gw spec.listeners[2]: InvalidCertificateRef: Secret default/bad has no PEM certificate in tls.crt
problem Gateway default/gw spec.listeners[3]: InvalidCertificateRef: Secret default/opaque has type \"Opaque\", not kubernetes.io/tls
problem Gateway default/gw spec.listeners[4]: RefNotPermitted: Secret far/cert is in another namespace; a ReferenceGrant there must allow Gateway of default
",
    );
}

#[test]
fn a_pool_says_whether_a_gateway_takes_it_and_whether_its_picker_exists() {
    let pool = |name: &str, rest: &str| {
        format!(
            "\n---\n{{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {{name: {name}}}, spec: {{selector: {{matchLabels: {{a: b}}}}, targetPorts: [{{number: 1}}]{rest}}}}}"
        )
    };
    let to = |pool: &str| {
        format!(
            "rules: [{{backendRefs: [{{group: inference.networking.k8s.io, kind: InferencePool, name: {pool}, port: 7}}]}}]"
        )
    };
    let objects = [
        gateway(
            "gw",
            "{name: http, port: 80, protocol: HTTP, hostname: a.com}",
        ),
        pool("good", ""),
        pool("refused", ""),
        pool(
            "idle",
            ", endpointPickerRef: {name: epp, port: {number: 9002}}",
        ),
        pool(
            "picker",
            ", endpointPickerRef: {name: epp, port: {number: 9002}}",
        ),
        route(
            "good",
            &format!("parentRefs: [{{name: gw}}], {}", to("good")),
        ),
        route(
            "picker",
            &format!("parentRefs: [{{name: gw}}], {}", to("picker")),
        ),
        route(
            "refused",
            &format!(
                "parentRefs: [{{name: gw}}], hostnames: [b.com], {}",
                to("refused")
            ),
        ),
    ];
    check_statuses(
        &objects.concat(),
        "
Gateway default/gw Accepted Programmed ResolvedRefs
  listener http: 2 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
HTTPRoute default/good
  at Gateway default/gw Accepted ResolvedRefs
HTTPRoute default/picker
  at Gateway default/gw Accepted ResolvedRefs
HTTPRoute default/refused
  at Gateway default/gw !Accepted(NoMatchingListenerHostname) ResolvedRefs
InferencePool default/good
  at Gateway default/gw Accepted ResolvedRefs
InferencePool default/idle
InferencePool default/picker
  at Gateway default/gw Accepted !ResolvedRefs(InvalidExtensionRef)
InferencePool default/refused
  at Gateway default/gw !Accepted(HTTPRouteNotAccepted) ResolvedRefs
",
    );
}
