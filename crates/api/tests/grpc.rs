//! GRPCRoutes: matches, filters, and HTTPRoutes that want the same hosts.

mod common;

use common::{check_all, check_problems, gateway, object, service};

const HTTP: &str = "{name: http, port: 80, protocol: HTTP}";

#[test]
fn services_and_methods_become_paths_in_the_order_of_precedence() {
    check_all(
        &[
            gateway("gw", "", HTTP),
            service("s", "ports: [{port: 80}, {port: 81, appProtocol: kubernetes.io/ws}]"),
            object(
                "GRPCRoute",
                "g",
                "parentRefs: [{name: gw}], rules: [
  {backendRefs: [{name: s, port: 80}]},
  {name: any, matches: [{method: {method: Chat}}], backendRefs: [{name: s, port: 80}]},
  {matches: [{method: {service: a.B}}, {method: {service: a.B, method: Chat}, headers: [{name: X-A, value: '1'}]}, {method: {type: RegularExpression, service: 'a\\\\..*'}}],
   filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: a}]}}, {type: RequestMirror, requestMirror: {backendRef: {name: s, port: 80}}}],
   backendRefs: [{name: s, port: 80, weight: 2}, {name: s, port: 81}, {name: gone, port: 80}]},
  {matches: [{method: {type: RegularExpression, service: 'a)|(b'}}], backendRefs: [{name: s, port: 80}]}]",
            ),
        ],
        "
port 80 http
  listener default/gw http for *
    * =/a.B/Chat x-a=1 grpc -> default/g[2] request(a=a) mirror(100/100 service default/s:80 h2c []) | 2 x service default/s:80 h2c [] | 1 x 503 UnsupportedProtocol | 1 x 503 BackendNotFound
    * /a.B/* grpc -> default/g[2] request(a=a) mirror(100/100 service default/s:80 h2c []) | 2 x service default/s:80 h2c [] | 1 x 503 UnsupportedProtocol | 1 x 503 BackendNotFound
    * ~^(?:/[^/]+/Chat)$ grpc -> default/g[1] | 1 x service default/s:80 h2c []
    * ~^(?:/(?:a\\\\..*)/[^/]+)$ grpc -> default/g[2] request(a=a) mirror(100/100 service default/s:80 h2c []) | 2 x service default/s:80 h2c [] | 1 x 503 UnsupportedProtocol | 1 x 503 BackendNotFound
    * /* grpc -> default/g[0] | 1 x service default/s:80 h2c []
problem GRPCRoute default/g spec.rules[2].backendRefs[1]: UnsupportedProtocol: Service default/s port 81 has appProtocol kubernetes.io/ws; a GRPCRoute needs http, https or kubernetes.io/h2c
problem GRPCRoute default/g spec.rules[2].backendRefs[2]: BackendNotFound: Service default/gone does not exist; check its name and namespace
problem GRPCRoute default/g spec.rules[3].matches[0].method.service: UnsupportedValue: not a regular expression (RE2): unopened group
Gateway default/gw Accepted Programmed ResolvedRefs
  listener http: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
GRPCRoute default/g
  at Gateway default/gw Accepted !ResolvedRefs(UnsupportedProtocol) PartiallyInvalid(UnsupportedValue)
",
    );
}

#[test]
fn of_an_http_and_a_grpc_route_with_a_host_in_common_the_older_is_taken() {
    let hosts = |hosts: &str| format!("parentRefs: [{{name: gw}}], hostnames: [{hosts}]");
    check_all(
        &[
            gateway("gw", "", HTTP),
            object("HTTPRoute", "old@9", &hosts("a.com, '*.b.com'")),
            object("GRPCRoute", "young@1", &hosts("x.b.com")),
            object("GRPCRoute", "other@1", &hosts("b.com, c.com")),
            object("HTTPRoute", "late", &hosts("'*.com'")),
        ],
        "
port 80 http
  listener default/gw http for *
    a.com /* -> default/old[0]
    *.b.com /* -> default/old[0]
problem GRPCRoute default/young spec.parentRefs[0]: HostnameConflict: an older route of the other kind (HTTPRoute, GRPCRoute) has a host name of it at listener http of Gateway default/gw
problem HTTPRoute default/late spec.parentRefs[0]: HostnameConflict: an older route of the other kind (HTTPRoute, GRPCRoute) has a host name of it at listener http of Gateway default/gw
Gateway default/gw Accepted Programmed ResolvedRefs
  listener http: 2 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
HTTPRoute default/late
  at Gateway default/gw !Accepted(HostnameConflict) ResolvedRefs
HTTPRoute default/old
  at Gateway default/gw Accepted ResolvedRefs
GRPCRoute default/other
  at Gateway default/gw Accepted ResolvedRefs
GRPCRoute default/young
  at Gateway default/gw !Accepted(HostnameConflict) ResolvedRefs
",
    );
}

#[test]
fn what_a_grpc_route_does_not_have_is_refused() {
    check_problems(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: g}, spec: {rules: [{matches: [{method: {}}, {method: {service: a/b, method: 'c d'}}], filters: [{type: URLRewrite, urlRewrite: {hostname: a.com}}], sessionPersistence: {}, timeouts: {}, backendRefs: [{name: s}]}]}}",
        "
GRPCRoute default/g spec.rules[0].matches[0].method: InvalidValue: write service, method or both
GRPCRoute default/g spec.rules[0].matches[1].method.service: InvalidValue: a service is names of letters, digits and _ joined by dots
GRPCRoute default/g spec.rules[0].matches[1].method.method: InvalidValue: a method is letters, digits and _
GRPCRoute default/g spec.rules[0].filters: InvalidValue: a GRPCRoute has no filters of type URLRewrite
GRPCRoute default/g spec.rules[0].backendRefs[0].port: InvalidValue: a Service needs a port
",
    );
}
