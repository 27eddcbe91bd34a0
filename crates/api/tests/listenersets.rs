//! ListenerSets: which are attached, what their listeners come to, and routes that name them.

mod common;

use common::{check_all, check_problems, gateway, object, secret, service};

fn set(name: &str, listeners: &str) -> String {
    let spec = format!("parentRef: {{name: gw, namespace: default}}, listeners: [{listeners}]");
    object("ListenerSet", name, &spec)
}

fn http(name: &str, host: &str) -> String {
    format!("{{name: {name}, port: 80, protocol: HTTP, hostname: {host}}}")
}

const ALL: &str = "allowedListeners: {namespaces: {from: All}},";

#[test]
fn listeners_of_sets_come_after_the_gateways_own_and_the_first_to_claim_a_host_has_it() {
    check_all(
        &[
            gateway("gw", ALL, &http("own", "own.com")),
            set("old@9", &[http("a", "a.com"), http("taken", "own.com")].join(", ")),
            set("young@1", &[http("a", "b.com"), http("taken", "a.com"), "{name: tcp, port: 80, protocol: TCP}, {name: udp, port: 80, protocol: UDP}, {name: tls, port: 80, protocol: TLS, tls: {mode: Passthrough}}".to_owned()].join(", ")),
            set("none", &http("taken", "own.com")),
            service("s", "ports: [{port: 80}]"),
            object("HTTPRoute", "own", "parentRefs: [{name: gw}], rules: [{backendRefs: [{name: s, port: 80}]}]"),
            object("HTTPRoute", "set", "parentRefs: [{kind: ListenerSet, name: old}, {kind: ListenerSet, name: young, sectionName: a}], rules: [{backendRefs: [{name: s, port: 80}]}]"),
            object("HTTPRoute", "lost", "parentRefs: [{kind: ListenerSet, name: old, sectionName: own}, {name: gw, sectionName: a}, {kind: ListenerSet, name: gone}]"),
        ],
        "
port 80 http
  listener default/gw own for own.com
    own.com /* -> default/own[0] | 1 x service default/s:80 []
  listener default/gw default/old/a for a.com
    a.com /* -> default/set[0] | 1 x service default/s:80 []
  listener default/gw default/young/a for b.com
    b.com /* -> default/set[0] | 1 x service default/s:80 []
problem ListenerSet default/old spec.listeners[1]: HostnameConflict: another listener of the Gateway already has this host name on port 80
problem ListenerSet default/young spec.listeners[1]: HostnameConflict: another listener of the Gateway already has this host name on port 80
problem ListenerSet default/young spec.listeners[2]: ProtocolConflict: port 80 is taken by a listener of another protocol
problem ListenerSet default/young spec.listeners[3]: UnsupportedProtocol: protocol UDP is not supported; use HTTP, HTTPS or TLS
problem ListenerSet default/young spec.listeners[4]: ProtocolConflict: another listener of the Gateway speaks another protocol on port 80
problem ListenerSet default/none spec.listeners[0]: HostnameConflict: another listener of the Gateway already has this host name on port 80
problem HTTPRoute default/lost spec.parentRefs[0]: NoMatchingParent: ListenerSet default/old has no listener of this name or port
problem HTTPRoute default/lost spec.parentRefs[1]: NoMatchingParent: Gateway default/gw has no listener of this name or port
problem HTTPRoute default/lost spec.parentRefs[2]: NoMatchingParent: ListenerSet default/gone does not exist
Gateway default/gw Accepted Programmed ResolvedRefs with 2 sets
  listener own: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
ListenerSet default/none !Accepted(ListenersNotValid) !Programmed(ListenersNotValid)
  listener taken: 0 routes of HTTPRoute,GRPCRoute !Accepted(HostnameConflict) !Programmed(HostnameConflict) ResolvedRefs Conflicted(HostnameConflict)
ListenerSet default/old Accepted(ListenersNotValid) Programmed
  listener a: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener taken: 1 routes of HTTPRoute,GRPCRoute !Accepted(HostnameConflict) !Programmed(HostnameConflict) ResolvedRefs Conflicted(HostnameConflict)
ListenerSet default/young Accepted(ListenersNotValid) Programmed
  listener a: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener taken: 0 routes of HTTPRoute,GRPCRoute !Accepted(HostnameConflict) !Programmed(HostnameConflict) ResolvedRefs Conflicted(HostnameConflict)
  listener tcp: 0 routes of no kind !Accepted(ProtocolConflict) !Programmed(ProtocolConflict) ResolvedRefs Conflicted(ProtocolConflict)
  listener udp: 0 routes of no kind !Accepted(UnsupportedProtocol) !Programmed(Invalid) ResolvedRefs !Conflicted(NoConflicts)
  listener tls: 0 routes of TLSRoute !Accepted(ProtocolConflict) !Programmed(ProtocolConflict) ResolvedRefs Conflicted(ProtocolConflict)
HTTPRoute default/lost
  at ListenerSet default/old#own !Accepted(NoMatchingParent) ResolvedRefs
  at Gateway default/gw#a !Accepted(NoMatchingParent) ResolvedRefs
HTTPRoute default/own
  at Gateway default/gw Accepted ResolvedRefs
HTTPRoute default/set
  at ListenerSet default/old Accepted ResolvedRefs
  at ListenerSet default/young#a Accepted ResolvedRefs
",
    );
}

#[test]
fn a_gateway_chooses_the_namespaces_of_its_sets() {
    for (from, attached) in [
        ("", "none"),
        ("from: None", "none"),
        ("from: Same", "default/own"),
        (
            "from: Selector, selector: {matchLabels: {team: a}}",
            "a/far",
        ),
    ] {
        let allowed = format!("allowedListeners: {{namespaces: {{{from}}}}},");
        let objects = [
            gateway("gw", &allowed, &http("own", "own.com")),
            "\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: a}}}"
                .to_owned(),
            set("own", &http("l", "a.com")),
            set("a/far", &http("l", "b.com")),
        ];
        let published = common::index(&objects.concat()).publish();
        let sets = published.statuses.iter();
        let sets = sets.filter(|s| s.kind.as_str() == "ListenerSet" && s.conditions[0].holds);
        let sets: Vec<_> = sets.map(|s| s.name.to_string()).collect();
        let sets = if sets.is_empty() {
            "none".to_owned()
        } else {
            sets.join(",")
        };
        assert_eq!(sets, attached, "{from}");
    }
}

#[test]
fn a_set_says_why_it_is_not_attached_and_its_routes_do_so_too() {
    check_all(
        &[
            gateway("gw", "", &http("own", "own.com")),
            gateway("bad", ALL, "{name: udp, port: 1, protocol: UDP}"),
            set("refused", &http("l", "a.com")),
            object("ListenerSet", "orphan", "parentRef: {name: gone}, listeners: [{name: l, port: 80, protocol: HTTP}]"),
            object("ListenerSet", "of-bad", "parentRef: {name: bad}, listeners: [{name: l, port: 81, protocol: HTTP}]"),
            object("HTTPRoute", "r", "parentRefs: [{kind: ListenerSet, name: refused}, {kind: ListenerSet, name: orphan}, {kind: ListenerSet, name: of-bad}]"),
        ],
        "
port 80 http
  listener default/gw own for own.com
problem ListenerSet default/orphan spec.parentRef: NotFound: Gateway default/gone does not exist, so it has no effect
problem Gateway default/bad spec.listeners[0]: UnsupportedProtocol: protocol UDP is not supported; use HTTP, HTTPS or TLS
problem ListenerSet default/refused spec.parentRef: NotAllowed: Gateway default/gw does not allow ListenerSets of namespace default; see its allowedListeners
problem HTTPRoute default/r spec.parentRefs[0]: NoMatchingParent: ListenerSet default/refused is not attached: Gateway default/gw does not allow ListenerSets of namespace default; see its allowedListeners
Gateway default/bad !Accepted(ListenersNotValid) !Programmed(Invalid) ResolvedRefs
  listener udp: 0 routes of no kind !Accepted(UnsupportedProtocol) !Programmed(Invalid) ResolvedRefs !Conflicted(NoConflicts)
Gateway default/gw Accepted Programmed ResolvedRefs
  listener own: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
ListenerSet default/of-bad !Accepted(ParentNotAccepted) !Programmed(ParentNotAccepted)
  listener l: 1 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
ListenerSet default/refused !Accepted(NotAllowed) !Programmed(NotAllowed)
HTTPRoute default/r
  at ListenerSet default/refused !Accepted(NoMatchingParent) ResolvedRefs
  at ListenerSet default/of-bad Accepted ResolvedRefs
",
    );
}

#[test]
fn grants_and_routes_are_judged_by_the_namespace_of_the_set() {
    let https = |name: &str, secret: &str| {
        format!(
            "{{name: {name}, port: 443, protocol: HTTPS, hostname: {name}.com, tls: {{certificateRefs: [{secret}]}}}}"
        )
    };
    let grant = |kind: &str| {
        object(
            "ReferenceGrant",
            &format!("certs/{}", kind.to_lowercase()),
            &format!(
                "from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: a}}], to: [{{group: '', kind: Secret}}]"
            ),
        )
    };
    let objects = |kind: &str| {
        [
            gateway("gw", ALL, &http("own", "own.com")),
            set(
                "a/s",
                &[
                    https("own", "{name: cert}"),
                    https("far", "{name: cert, namespace: certs}"),
                ]
                .join(", "),
            ),
            secret("a/cert"),
            secret("certs/cert"),
            grant(kind),
            object(
                "HTTPRoute",
                "a/same",
                "parentRefs: [{kind: ListenerSet, name: s}]",
            ),
            object(
                "HTTPRoute",
                "default/other",
                "parentRefs: [{kind: ListenerSet, name: s, namespace: a}]",
            ),
        ]
    };
    check_all(
        &objects("ListenerSet"),
        "
port 80 http
  listener default/gw own for own.com
port 443 https
  listener default/gw a/s/own for own.com certificate a/cert
    own.com /* -> a/same[0]
  listener default/gw a/s/far for far.com certificate certs/cert
    far.com /* -> a/same[0]
problem HTTPRoute default/other spec.parentRefs[0]: NotAllowedByListeners: listener far of ListenerSet a/s does not allow HTTPRoutes of namespace default; see its allowedRoutes
Gateway default/gw Accepted Programmed ResolvedRefs with 1 sets
  listener own: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
ListenerSet a/s Accepted Programmed
  listener own: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener far: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
HTTPRoute a/same
  at ListenerSet a/s Accepted ResolvedRefs
HTTPRoute default/other
  at ListenerSet a/s !Accepted(NotAllowedByListeners) ResolvedRefs
",
    );
    check_all(
        &objects("Gateway"),
        "
port 80 http
  listener default/gw own for own.com
port 443 https
  listener default/gw a/s/own for own.com certificate a/cert
    own.com /* -> a/same[0]
  listener default/gw a/s/far for far.com refused
problem ListenerSet a/s spec.listeners[1]: RefNotPermitted: Secret certs/cert is in another namespace; a ReferenceGrant there must allow ListenerSet of a
problem HTTPRoute default/other spec.parentRefs[0]: NotAllowedByListeners: listener far of ListenerSet a/s does not allow HTTPRoutes of namespace default; see its allowedRoutes
Gateway default/gw Accepted Programmed ResolvedRefs with 1 sets
  listener own: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
ListenerSet a/s Accepted(ListenersNotValid) Programmed
  listener own: 1 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener far: 1 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Invalid) !ResolvedRefs(RefNotPermitted) !Conflicted(NoConflicts)
HTTPRoute a/same
  at ListenerSet a/s Accepted ResolvedRefs
HTTPRoute default/other
  at ListenerSet a/s !Accepted(NotAllowedByListeners) ResolvedRefs
",
    );
}

#[test]
fn a_set_names_a_gateway() {
    check_problems(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: ListenerSet, metadata: {name: s}, spec: {parentRef: {kind: Service, name: a}, listeners: []}}",
        "
ListenerSet default/s spec.parentRef: InvalidValue: must name a Gateway
ListenerSet default/s spec.listeners: InvalidValue: has 0 items, 1 to 64 are allowed
",
    );
}
