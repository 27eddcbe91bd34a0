//! TLS on both sides: TLSRoutes, certificates of clients and of Gateways, and policies for backends.

mod common;

use common::{bundle, check_all, check_problems, gateway, object, secret, service};

fn listener(name: &str, port: u16, rest: &str) -> String {
    format!("{{name: {name}, port: {port}, {rest}}}")
}

const TERMINATE: &str = "protocol: TLS, tls: {mode: Terminate, certificateRefs: [{name: cert}]}";
const PASSTHROUGH: &str = "protocol: TLS, tls: {mode: Passthrough}";
const HTTPS: &str = "protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}";

#[test]
fn tls_routes_are_ended_here_or_passed_on_by_the_name_that_the_client_sends() {
    let listeners = [
        listener("ends", 443, &format!("hostname: tls.a.com, {TERMINATE}")),
        listener(
            "passes",
            443,
            &format!("hostname: '*.a.com', {PASSTHROUGH}"),
        ),
        listener("https", 443, &format!("hostname: www.a.com, {HTTPS}")),
        listener("plain", 80, "protocol: HTTP"),
    ];
    let route = |name: &str, rest: &str| {
        object(
            "TLSRoute",
            name,
            &format!("parentRefs: [{{name: gw}}], {rest}"),
        )
    };
    check_all(
        &[
            gateway("gw", "", &listeners.join(", ")),
            secret("cert"),
            bundle("ca"),
            service("s", "ports: [{name: raw, port: 80, appProtocol: redis}]"),
            object("BackendTLSPolicy", "p", "targetRefs: [{group: '', kind: Service, name: s}], validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}], hostname: s.internal}"),
            route("both@3", "hostnames: [tls.a.com, x.a.com, '*.y.a.com'], rules: [{backendRefs: [{name: s, port: 80, weight: 3}, {name: gone, port: 80}]}]"),
            route("young", "hostnames: [x.a.com, z.a.com], rules: [{backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: p}]}]"),
            route("elsewhere", "hostnames: [b.com], rules: [{backendRefs: [{name: s, port: 80}]}]"),
            object("TLSRoute", "plain", "parentRefs: [{name: gw, sectionName: plain}], hostnames: [x.a.com], rules: [{backendRefs: [{name: s, port: 80}]}]"),
            object("HTTPRoute", "h", "parentRefs: [{name: gw, port: 443}]"),
        ],
        "
port 80 http
  listener default/gw plain for *
port 443 tls
  listener default/gw ends for tls.a.com certificate default/cert
    tls.a.com -> default/both | 3 x service default/s:80 tls(s.internal bundle of 1) [] | 1 x 500 BackendNotFound
  listener default/gw https for www.a.com certificate default/cert
    www.a.com /* -> default/h[0]
  listener default/gw passes for *.a.com passed on
    tls.a.com -> default/both | 3 x service default/s:80 [] | 1 x 500 BackendNotFound
    x.a.com -> default/both | 3 x service default/s:80 [] | 1 x 500 BackendNotFound
    z.a.com -> default/young | 1 x 500 InvalidKind
    *.y.a.com -> default/both | 3 x service default/s:80 [] | 1 x 500 BackendNotFound
problem TLSRoute default/both spec.rules[0].backendRefs[1]: BackendNotFound: Service default/gone does not exist; check its name and namespace
problem TLSRoute default/elsewhere spec.parentRefs[0]: NoMatchingListenerHostname: no hostname of the route is one of listener passes of Gateway default/gw
problem TLSRoute default/plain spec.parentRefs[0]: NotAllowedByListeners: listener plain of Gateway default/gw does not allow TLSRoutes of namespace default; see its allowedRoutes
problem TLSRoute default/young spec.rules[0].backendRefs[0]: InvalidKind: inference.networking.k8s.io/InferencePool is no backend; use a Service
Gateway default/gw Accepted Programmed ResolvedRefs
  listener ends: 1 routes of TLSRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener passes: 2 routes of TLSRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener https: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener plain: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
HTTPRoute default/h
  at Gateway default/gw Accepted ResolvedRefs
TLSRoute default/both
  at Gateway default/gw Accepted !ResolvedRefs(BackendNotFound)
TLSRoute default/elsewhere
  at Gateway default/gw !Accepted(NoMatchingListenerHostname) ResolvedRefs
TLSRoute default/plain
  at Gateway default/gw#plain !Accepted(NotAllowedByListeners) ResolvedRefs
TLSRoute default/young
  at Gateway default/gw Accepted !ResolvedRefs(InvalidKind)
BackendTLSPolicy default/p
  at Gateway default/gw Accepted ResolvedRefs
",
    );
}

#[test]
fn listeners_that_could_not_be_told_apart_are_refused() {
    let listeners = [
        listener("a", 443, &format!("hostname: a.com, {HTTPS}")),
        listener("b", 443, &format!("hostname: a.com, {TERMINATE}")),
        listener("c", 443, &format!("hostname: c.com, {HTTPS}")),
        listener("none", 444, "protocol: HTTPS"),
        listener(
            "options",
            445,
            "protocol: HTTPS, tls: {options: {a.dev/b: c}}",
        ),
        listener(
            "kinds",
            446,
            &format!(
                "{HTTPS}, allowedRoutes: {{kinds: [{{kind: TCPRoute}}, {{kind: GRPCRoute}}, {{kind: TLSRoute}}]}}"
            ),
        ),
    ];
    check_all(
        &[gateway("gw", "", &listeners.join(", ")), secret("cert")],
        "
port 443 https
  listener default/gw c for c.com certificate default/cert
  listener default/gw a for a.com refused
port 444 https
  listener default/gw none for * refused
port 445 https
  listener default/gw options for * refused
port 446 https
  listener default/gw kinds for * certificate default/cert
problem Gateway default/gw spec.listeners[0]: ProtocolConflict: HTTPS and TLS cannot share a host name of port 443
problem Gateway default/gw spec.listeners[1]: ProtocolConflict: HTTPS and TLS cannot share a host name of port 443
problem Gateway default/gw spec.listeners[3]: InvalidCertificateRef: names no certificate; write tls.certificateRefs
problem Gateway default/gw spec.listeners[4]: InvalidCertificateRef: names no certificate; write tls.certificateRefs
problem Gateway default/gw spec.listeners[5]: InvalidRouteKinds: routes of kind TCPRoute cannot be served here; allow HTTPRoute or GRPCRoute
Gateway default/gw Accepted(ListenersNotValid) Programmed !ResolvedRefs(ListenersNotResolved)
  listener a: 0 routes of HTTPRoute,GRPCRoute !Accepted(ProtocolConflict) !Programmed(Invalid) ResolvedRefs Conflicted(ProtocolConflict)
  listener b: 0 routes of TLSRoute !Accepted(ProtocolConflict) !Programmed(Invalid) ResolvedRefs Conflicted(ProtocolConflict)
  listener c: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener none: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Invalid) !ResolvedRefs(InvalidCertificateRef) !Conflicted(NoConflicts)
  listener options: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Invalid) !ResolvedRefs(InvalidCertificateRef) !Conflicted(NoConflicts)
  listener kinds: 0 routes of GRPCRoute Accepted Programmed !ResolvedRefs(InvalidRouteKinds) !Conflicted(NoConflicts)
",
    );
}

#[test]
fn a_listener_without_its_certificate_keeps_its_host_from_the_others_of_the_port() {
    let without = |protocol: &str| {
        format!("protocol: {protocol}, tls: {{certificateRefs: [{{name: missing}}]}}")
    };
    let listeners = [
        listener("wild", 443, &format!("hostname: '*.a.com', {HTTPS}")),
        listener(
            "https",
            443,
            &format!("hostname: b.a.com, {}", without("HTTPS")),
        ),
        listener(
            "raw",
            443,
            &format!("hostname: c.a.com, {}", without("TLS")),
        ),
    ];
    check_all(
        &[
            gateway("gw", "", &listeners.join(", ")),
            secret("cert"),
            service("s", "ports: [{port: 80}]"),
            object("HTTPRoute", "h", "parentRefs: [{name: gw}]"),
            object(
                "TLSRoute",
                "t",
                "parentRefs: [{name: gw, sectionName: raw}], hostnames: [c.a.com], rules: [{backendRefs: [{name: s, port: 80}]}]",
            ),
        ],
        "
port 443 https
  listener default/gw https for b.a.com refused
  listener default/gw raw for c.a.com refused
  listener default/gw wild for *.a.com certificate default/cert
    *.a.com /* -> default/h[0]
problem Gateway default/gw spec.listeners[1]: InvalidCertificateRef: Secret default/missing does not exist
problem Gateway default/gw spec.listeners[2]: InvalidCertificateRef: Secret default/missing does not exist
Gateway default/gw Accepted(ListenersNotValid) Programmed !ResolvedRefs(ListenersNotResolved)
  listener wild: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts) OverlappingTLSConfig(OverlappingHostnames)
  listener https: 1 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Invalid) !ResolvedRefs(InvalidCertificateRef) !Conflicted(NoConflicts) OverlappingTLSConfig(OverlappingHostnames)
  listener raw: 1 routes of TLSRoute Accepted !Programmed(Invalid) !ResolvedRefs(InvalidCertificateRef) !Conflicted(NoConflicts) OverlappingTLSConfig(OverlappingHostnames)
HTTPRoute default/h
  at Gateway default/gw Accepted ResolvedRefs
TLSRoute default/t
  at Gateway default/gw#raw Accepted ResolvedRefs
",
    );
}

#[test]
fn listeners_with_hosts_in_common_say_so() {
    let on = |name: &str, host: &str| {
        let host = if host.is_empty() {
            String::new()
        } else {
            format!("hostname: '{host}', ")
        };
        listener(name, 443, &format!("{host}{HTTPS}"))
    };
    let listeners = [
        on("wild", "*.a.com"),
        on("one", "x.a.com"),
        on("alone", "b.com"),
        listener("other", 444, HTTPS),
    ];
    check_all(
        &[gateway("gw", "", &listeners.join(", ")), secret("cert")],
        "
port 443 https
  listener default/gw one for x.a.com certificate default/cert
  listener default/gw alone for b.com certificate default/cert
  listener default/gw wild for *.a.com certificate default/cert
port 444 https
  listener default/gw other for * certificate default/cert
Gateway default/gw Accepted Programmed ResolvedRefs
  listener wild: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts) OverlappingTLSConfig(OverlappingHostnames)
  listener one: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts) OverlappingTLSConfig(OverlappingHostnames)
  listener alone: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener other: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
",
    );
}

#[test]
fn clients_are_asked_for_certificates_as_their_port_says() {
    let ca = |name: &str, rest: &str| {
        format!(
            "{{validation: {{{rest} caCertificateRefs: [{{group: '', kind: ConfigMap, name: {name}}}]}}}}"
        )
    };
    let frontend = format!(
        "tls: {{frontend: {{default: {}, perPort: [{{port: 444, tls: {}}}, {{port: 445, tls: {{}}}}, {{port: 446, tls: {}}}, {{port: 447, tls: {}}}, {{port: 448, tls: {}}}, {{port: 449, tls: {}}}]}}}},",
        ca("ca", ""),
        ca("ca", "mode: AllowInsecureFallback,"),
        ca("gone", ""),
        ca("ca", "").replace("ConfigMap", "Secret"),
        ca("ca, namespace: far", ""),
        "{validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: gone}, {group: '', kind: ConfigMap, name: ca}]}}",
    );
    let listeners: Vec<_> = (443..=449)
        .map(|port| listener(&format!("l{port}"), port, HTTPS))
        .chain([listener("plain", 80, "protocol: HTTP")])
        .collect();
    check_all(
        &[
            gateway("gw", &frontend, &listeners.join(", ")),
            secret("cert"),
            bundle("ca"),
            bundle("far/ca"),
        ],
        "
port 80 http
  listener default/gw plain for *
port 443 https
  listener default/gw l443 for * certificate default/cert clients(bundle of 1)
port 444 https
  listener default/gw l444 for * certificate default/cert clients(bundle of 1, optional)
port 445 https
  listener default/gw l445 for * certificate default/cert
port 446 https
  listener default/gw l446 for * refused
port 447 https
  listener default/gw l447 for * refused
port 448 https
  listener default/gw l448 for * refused
port 449 https
  listener default/gw l449 for * certificate default/cert clients(bundle of 1)
problem Gateway default/gw spec.listeners[3]: NoValidCACertificate: no certificate of an authority for clients can be had
problem Gateway default/gw spec.listeners[4]: NoValidCACertificate: no certificate of an authority for clients can be had
problem Gateway default/gw spec.listeners[5]: NoValidCACertificate: no certificate of an authority for clients can be had
problem Gateway default/gw spec.listeners[6]: InvalidCACertificateRef: ConfigMap default/gone does not exist or has no PEM in ca.crt
Gateway default/gw Accepted(ListenersNotValid) Programmed !ResolvedRefs(ListenersNotResolved) InsecureFrontendValidationMode(ConfigurationChanged)
  listener l443: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener l444: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener l445: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener l446: 0 routes of HTTPRoute,GRPCRoute !Accepted(NoValidCACertificate) !Programmed(Invalid) !ResolvedRefs(InvalidCACertificateRef) !Conflicted(NoConflicts)
  listener l447: 0 routes of HTTPRoute,GRPCRoute !Accepted(NoValidCACertificate) !Programmed(Invalid) !ResolvedRefs(InvalidCACertificateKind) !Conflicted(NoConflicts)
  listener l448: 0 routes of HTTPRoute,GRPCRoute !Accepted(NoValidCACertificate) !Programmed(Invalid) !ResolvedRefs(RefNotPermitted) !Conflicted(NoConflicts)
  listener l449: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed !ResolvedRefs(InvalidCACertificateRef) !Conflicted(NoConflicts)
  listener plain: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
",
    );
}

#[test]
fn policies_say_how_backends_prove_themselves_and_one_that_does_not_hold_stops_its_service() {
    let policy = |name: &str, target: &str, validation: &str| {
        object(
            "BackendTLSPolicy",
            name,
            &format!(
                "targetRefs: [{{group: '', kind: Service, name: {target}}}], validation: {{{validation}}}"
            ),
        )
    };
    let by = |kind: &str, name: &str| {
        format!(
            "caCertificateRefs: [{{group: '', kind: {kind}, name: {name}}}], hostname: in.example"
        )
    };
    let backend =
        |name: &str, port: u16| format!("{{backendRefs: [{{name: {name}, port: {port}}}]}}");
    let rules = [
        backend("good", 443),
        backend("ports", 1),
        backend("ports", 2),
        backend("lost", 443),
        backend("kind", 443),
        backend("system", 443),
        backend("odd", 443),
        backend("half", 443),
        backend("bare", 443),
    ];
    let one = "ports: [{port: 443, appProtocol: HTTPS}]";
    check_all(
        &[
            gateway("gw", "", "{name: http, port: 80, protocol: HTTP}"),
            bundle("ca"),
            service("good", "ports: [{port: 443, appProtocol: kubernetes.io/h2c}]"),
            service("ports", "ports: [{name: a, port: 1}, {name: b, port: 2}]"),
            service("lost", one),
            service("kind", one),
            service("system", one),
            service("odd", one),
            service("half", one),
            service("bare", one),
            object("HTTPRoute", "r", &format!("parentRefs: [{{name: gw}}], rules: [{}]", rules.join(", "))),
            policy("good", "good", &(by("ConfigMap", "ca") + ", subjectAltNames: [{type: Hostname, hostname: a.com}, {type: URI, uri: 'spiffe://x/y'}]")),
            policy("whole", "ports", &by("ConfigMap", "ca")),
            policy("port@2", "ports, sectionName: b", &by("ConfigMap", "ca").replace("in.", "b.")),
            policy("port-young", "ports, sectionName: b", &by("ConfigMap", "ca").replace("in.", "c.")),
            policy("section", "ports, sectionName: z", &by("ConfigMap", "ca")),
            policy("lost", "lost", &by("ConfigMap", "gone")),
            policy("kind", "kind", &by("Secret", "ca")),
            policy("system", "system", "wellKnownCACertificates: System, hostname: in.example"),
            policy("odd", "odd", "wellKnownCACertificates: x.dev/own, hostname: in.example"),
            policy("half", "half", "caCertificateRefs: [{group: '', kind: ConfigMap, name: gone}, {group: '', kind: ConfigMap, name: ca}], hostname: in.example"),
            policy("idle", "nobody", &by("ConfigMap", "ca")),
            object("BackendTLSPolicy", "pool", "targetRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: p}], validation: {wellKnownCACertificates: System, hostname: a.com}"),
        ],
        "
port 80 http
  listener default/gw http for *
    * /* -> default/r[0] | 1 x service default/good:443 h2c tls(in.example bundle of 1 names a.com,spiffe://x/y) []
    * /* -> default/r[1] | 1 x service default/ports:1 tls(in.example bundle of 1) []
    * /* -> default/r[2] | 1 x service default/ports:2 tls(b.example bundle of 1) []
    * /* -> default/r[3] | 1 x 500 InvalidBackendTLS
    * /* -> default/r[4] | 1 x 500 InvalidBackendTLS
    * /* -> default/r[5] | 1 x service default/system:443 tls(in.example system) []
    * /* -> default/r[6] | 1 x 500 InvalidBackendTLS
    * /* -> default/r[7] | 1 x service default/half:443 tls(in.example bundle of 1) []
    * /* -> default/r[8] | 1 x 500 UnsupportedProtocol
problem BackendTLSPolicy default/half spec.validation: InvalidCACertificateRef: ConfigMap default/gone does not exist or has no PEM in ca.crt
problem BackendTLSPolicy default/kind spec.validation: NoValidCACertificate: no certificate of an authority can be had: Secret holds no authorities; use a ConfigMap
problem BackendTLSPolicy default/lost spec.validation: NoValidCACertificate: no certificate of an authority can be had: ConfigMap default/gone does not exist or has no PEM in ca.crt
problem BackendTLSPolicy default/odd spec.validation: Invalid: wellKnownCACertificates x.dev/own are not known; use System
problem BackendTLSPolicy default/pool spec.targetRefs[0]: UnsupportedValue: InferencePool is no target; only Services are
problem HTTPRoute default/r spec.rules[3].backendRefs[0]: InvalidBackendTLS: BackendTLSPolicy default/lost: no certificate of an authority can be had: ConfigMap default/gone does not exist or has no PEM in ca.crt
problem HTTPRoute default/r spec.rules[4].backendRefs[0]: InvalidBackendTLS: BackendTLSPolicy default/kind: no certificate of an authority can be had: Secret holds no authorities; use a ConfigMap
problem HTTPRoute default/r spec.rules[6].backendRefs[0]: InvalidBackendTLS: BackendTLSPolicy default/odd: wellKnownCACertificates x.dev/own are not known; use System
problem HTTPRoute default/r spec.rules[8].backendRefs[0]: UnsupportedProtocol: Service default/bare port 443 has appProtocol HTTPS; a BackendTLSPolicy must say whom to trust, or its requests would go in cleartext
Gateway default/gw Accepted Programmed ResolvedRefs
  listener http: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
HTTPRoute default/r
  at Gateway default/gw Accepted !ResolvedRefs(InvalidBackendTLS)
BackendTLSPolicy default/good
  at Gateway default/gw Accepted ResolvedRefs
BackendTLSPolicy default/half
  at Gateway default/gw Accepted !ResolvedRefs(InvalidCACertificateRef)
BackendTLSPolicy default/idle
BackendTLSPolicy default/kind
  at Gateway default/gw !Accepted(NoValidCACertificate) !ResolvedRefs(InvalidKind)
BackendTLSPolicy default/lost
  at Gateway default/gw !Accepted(NoValidCACertificate) !ResolvedRefs(InvalidCACertificateRef)
BackendTLSPolicy default/odd
  at Gateway default/gw !Accepted(Invalid) ResolvedRefs
BackendTLSPolicy default/pool
BackendTLSPolicy default/port
  at Gateway default/gw Accepted ResolvedRefs
BackendTLSPolicy default/port-young
  at Gateway default/gw !Accepted(Conflicted) ResolvedRefs
BackendTLSPolicy default/section
  at Gateway default/gw !Accepted(TargetNotFound) ResolvedRefs
BackendTLSPolicy default/system
  at Gateway default/gw Accepted ResolvedRefs
BackendTLSPolicy default/whole
  at Gateway default/gw Accepted ResolvedRefs
",
    );
}

#[test]
fn each_gateway_shows_its_own_certificate_to_backends() {
    let client =
        |name: &str| format!("tls: {{backend: {{clientCertificateRef: {{name: {name}}}}}}},");
    let http = |port: u16| format!("{{name: http, port: {port}, protocol: HTTP}}");
    check_all(
        &[
            gateway("plain", "", &http(80)),
            gateway("one", &client("cert"), &http(81)),
            gateway("gone", &client("gone"), &http(82)),
            gateway("far", &client("cert, namespace: far"), &http(83)),
            secret("cert"),
            secret("far/cert"),
            service("tls", "ports: [{port: 443}]"),
            service("clear", "ports: [{port: 80}]"),
            object("BackendTLSPolicy", "p", "targetRefs: [{group: '', kind: Service, name: tls}], validation: {wellKnownCACertificates: System, hostname: a.com}"),
            object("HTTPRoute", "r", "parentRefs: [{name: plain}, {name: one}, {name: gone}, {name: far}], rules: [{backendRefs: [{name: tls, port: 443}, {name: clear, port: 80}]}]"),
        ],
        "
port 80 http
  listener default/plain http for *
    * /* -> default/r[0] | 1 x service default/tls:443 tls(a.com system) [] | 1 x service default/clear:80 []
port 81 http
  listener default/one http for *
    * /* -> default/r[0] | 1 x service default/tls:443 tls(a.com system client default/cert) [] | 1 x service default/clear:80 []
port 82 http
  listener default/gone http for *
    * /* -> default/r[0] | 1 x service default/tls:443 tls(a.com system) [] | 1 x service default/clear:80 []
port 83 http
  listener default/far http for *
    * /* -> default/r[0] | 1 x service default/tls:443 tls(a.com system) [] | 1 x service default/clear:80 []
problem Gateway default/far spec.tls.backend.clientCertificateRef: RefNotPermitted: Secret far/cert is in another namespace; a ReferenceGrant there must allow Gateway of default
problem Gateway default/gone spec.tls.backend.clientCertificateRef: InvalidClientCertificateRef: Secret default/gone does not exist
Gateway default/far Accepted Programmed !ResolvedRefs(RefNotPermitted)
  listener http: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
Gateway default/gone Accepted Programmed !ResolvedRefs(InvalidClientCertificateRef)
  listener http: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
Gateway default/one Accepted Programmed ResolvedRefs
  listener http: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
Gateway default/plain Accepted Programmed ResolvedRefs
  listener http: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
HTTPRoute default/r
  at Gateway default/plain Accepted ResolvedRefs
  at Gateway default/one Accepted ResolvedRefs
  at Gateway default/gone Accepted ResolvedRefs
  at Gateway default/far Accepted ResolvedRefs
BackendTLSPolicy default/p
  at Gateway default/far Accepted ResolvedRefs
  at Gateway default/gone Accepted ResolvedRefs
  at Gateway default/one Accepted ResolvedRefs
  at Gateway default/plain Accepted ResolvedRefs
",
    );
}

#[test]
fn tls_routes_and_policies_obey_their_rules() {
    check_problems(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: TLSRoute, metadata: {name: t}, spec: {rules: [{backendRefs: []}, {backendRefs: [{name: s}]}]}}",
        "
TLSRoute default/t spec.hostnames: InvalidValue: has 0 items, 1 to 1024 are allowed
TLSRoute default/t spec.rules: InvalidValue: has 2 items, 1 to 1 are allowed
TLSRoute default/t spec.rules[0].backendRefs: InvalidValue: has 0 items, 1 to 16 are allowed
TLSRoute default/t spec.rules[1].backendRefs[0].port: InvalidValue: a Service needs a port
",
    );
    check_problems(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: BackendTLSPolicy, metadata: {name: p}, spec: {targetRefs: [], validation: {hostname: '*.a', subjectAltNames: [{type: URI, hostname: a}, {type: Hostname, hostname: A}]}}}",
        "
BackendTLSPolicy default/p spec.targetRefs: InvalidValue: has 0 items, 1 to 16 are allowed
BackendTLSPolicy default/p spec.validation: InvalidValue: write either caCertificateRefs or wellKnownCACertificates
BackendTLSPolicy default/p spec.validation.hostname: InvalidValue: write a host name in lower case without wildcard
BackendTLSPolicy default/p spec.validation.subjectAltNames[0]: InvalidValue: this type has the field uri and no other
BackendTLSPolicy default/p spec.validation.subjectAltNames[1].hostname: InvalidValue: write a host name in lower case, or a URI with its scheme
",
    );
}
