//! Where Gateways are reached when a Service leads to the process: bound ports and addresses.

mod common;

use common::{describe_all, parse};
use forebay_api::{Index, Settings};
use forebay_model::ObjectName;

const CLASS: &str = "
---
{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: forebay}, spec: {controllerName: forebay.dev/gateway}}";

fn settings() -> Settings {
    Settings {
        infrastructure_namespace: Some("infra".to_owned()),
        ..Settings::cluster()
    }
}

fn gateway(name: &str, rest: &str, listeners: &str) -> String {
    format!(
        "\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: {name}, namespace: a}}, spec: {{gatewayClassName: forebay, {rest} listeners: [{listeners}]}}}}"
    )
}

/// The Service of the Gateway `a/name`.
fn service(name: &str, namespace: &str, spec: &str, ingress: &str) -> String {
    format!(
        "\n---\n{{apiVersion: v1, kind: Service, metadata: {{name: s-{name}, namespace: {namespace}, labels: {{gateway.networking.k8s.io/gateway-name: {name}, forebay.dev/gateway-namespace: a, app.kubernetes.io/managed-by: forebay}}}}, spec: {{{spec}}}, status: {{loadBalancer: {{ingress: [{ingress}]}}}}}}"
    )
}

/// The snapshot and the statuses of `objects`.
#[track_caller]
fn check(settings: Settings, objects: &[String], want: &str) {
    let mut index = Index::new(settings);
    let all = objects.concat() + CLASS;
    parse(&all).into_iter().for_each(|o| index.apply(o));
    common::compare(&describe_all(&index.publish()), want);
}

const HTTP: &str = "{name: http, port: 80, protocol: HTTP}";

#[test]
fn listeners_bind_what_the_service_leads_to_and_two_gateways_have_ports_of_their_own() {
    check(
        settings(),
        &[
            gateway("one", "", HTTP),
            gateway(
                "two",
                "",
                &format!("{HTTP}, {{name: alt, port: 8080, protocol: HTTP}}"),
            ),
            service(
                "one",
                "infra",
                "type: LoadBalancer, clusterIP: 10.0.0.1, ports: [{port: 80, targetPort: 20000}]",
                "{ip: 192.0.2.1}, {hostname: lb.example.com}",
            ),
            service(
                "two",
                "infra",
                "clusterIP: 10.0.0.2, ports: [{port: 80, targetPort: 20001}]",
                "",
            ),
            // One that lies elsewhere is not looked at.
            service("two", "a", "clusterIP: 10.0.0.3, ports: [{port: 80}]", ""),
        ],
        "
port 20000 of 80 http
  listener a/one http for *
port 20001 of 80 http
  listener a/two http for *
GatewayClass default/forebay Accepted SupportedVersion
Gateway a/one Accepted Programmed ResolvedRefs 192.0.2.1 lb.example.com
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
Gateway a/two Accepted !Programmed(Pending) ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
  listener alt: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
",
    );
}

#[test]
fn a_gateway_without_service_or_address_waits_and_is_not_bound() {
    check(
        settings(),
        &[
            gateway("none", "", HTTP),
            gateway("late", "", HTTP),
            gateway("thief", "", HTTP),
            gateway("victim", "", HTTP),
            service(
                "late",
                "infra",
                "type: LoadBalancer, clusterIP: 10.0.0.1, ports: [{port: 80, targetPort: 20000}]",
                "",
            ),
            service(
                "thief",
                "infra",
                "clusterIP: 10.0.0.4, ports: [{port: 80, targetPort: 20002}]",
                "",
            ),
            service(
                "victim",
                "infra",
                "clusterIP: 10.0.0.5, ports: [{port: 80, targetPort: 20002}]",
                "",
            ),
        ],
        "
port 20002 of 80 http
  listener a/thief http for *
problem Gateway a/late: AddressNotAssigned: Service infra/s-late has no address yet
problem Gateway a/none: Pending: there is no Service for it in namespace infra yet
GatewayClass default/forebay Accepted SupportedVersion
Gateway a/late Accepted !Programmed(AddressNotAssigned) ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
Gateway a/none Accepted !Programmed(Pending) ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
Gateway a/thief Accepted Programmed ResolvedRefs 10.0.0.4
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
Gateway a/victim Accepted !Programmed(Pending) ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
",
    );
}

#[test]
fn addresses_that_were_asked_for_are_those_given_or_the_gateway_says_why() {
    let with =
        |name: &str, addresses: &str| gateway(name, &format!("addresses: [{addresses}],"), HTTP);
    let given = |name: &str, port: u16| {
        let spec = format!("type: LoadBalancer, ports: [{{port: 80, targetPort: {port}}}]");
        service(name, "infra", &spec, "{ip: 192.0.2.1}")
    };
    check(
        settings(),
        &[
            with("odd", "{type: x.dev/own, value: a}, {value: 192.0.2.1}"),
            with("other", "{value: 192.0.2.9}"),
            with("many", "{value: 192.0.2.1}, {value: 192.0.2.2}"),
            with("right", "{value: 192.0.2.1}"),
            with("any", "{type: IPAddress}"),
            given("odd", 1),
            given("other", 2),
            given("many", 3),
            given("right", 4),
            given("any", 5),
        ],
        "
port 4 of 80 http
  listener a/right http for *
port 5 of 80 http
  listener a/any http for *
problem Gateway a/many: AddressNotUsable: one address can be asked for, not several (192.0.2.1 to 192.0.2.2)
problem Gateway a/odd: UnsupportedAddress: addresses of type x.dev/own are not supported; use IPAddress or Hostname
problem Gateway a/other: AddressNotUsable: address 192.0.2.9 cannot be had; the Gateway has 192.0.2.1
GatewayClass default/forebay Accepted SupportedVersion
Gateway a/any Accepted Programmed ResolvedRefs 192.0.2.1
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
Gateway a/many Accepted !Programmed(AddressNotUsable) ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
Gateway a/odd !Accepted(UnsupportedAddress) !Programmed(Invalid) ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
Gateway a/other Accepted !Programmed(AddressNotUsable) ResolvedRefs
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
Gateway a/right Accepted Programmed ResolvedRefs 192.0.2.1
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
",
    );
}

/// A GatewayConfig of the namespace `infra`.
fn config(name: &str, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: forebay.dev/v1alpha1, kind: GatewayConfig, metadata: {{name: {name}, namespace: infra}}, spec: {{{spec}}}}}"
    )
}

/// A class with parameters, and a Gateway of it.
fn of_class(name: &str, parameters: &str) -> String {
    let class = format!(
        "\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {{name: class-{name}}}, spec: {{controllerName: forebay.dev/gateway, parametersRef: {{{parameters}}}}}}}"
    );
    class
        + &gateway(name, "", HTTP).replace(
            "gatewayClassName: forebay",
            &format!("gatewayClassName: class-{name}"),
        )
}

const OWN: &str = "group: forebay.dev, kind: GatewayConfig, name: own, namespace: infra";

#[test]
fn a_listener_set_waits_for_its_gateway_and_for_its_own_port() {
    let sets = "allowedListeners: {namespaces: {from: Same}},";
    let set = |name: &str, of: &str| {
        common::object(
            "ListenerSet",
            &format!("a/{name}"),
            &format!(
                "parentRef: {{name: {of}}}, listeners: [{{name: more, port: 81, protocol: HTTP}}]"
            ),
        )
    };
    check(
        settings(),
        &[
            gateway("early", sets, HTTP),
            gateway("here", sets, HTTP),
            service(
                "here",
                "infra",
                "clusterIP: 10.0.0.1, ports: [{port: 80, targetPort: 20000}]",
                "",
            ),
            set("of-early", "early"),
            set("of-here", "here"),
        ],
        "
port 20000 of 80 http
  listener a/here http for *
problem Gateway a/early: Pending: there is no Service for it in namespace infra yet
GatewayClass default/forebay Accepted SupportedVersion
Gateway a/early Accepted !Programmed(Pending) ResolvedRefs with 1 sets
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
Gateway a/here Accepted Programmed ResolvedRefs 10.0.0.1 with 1 sets
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
ListenerSet a/of-early Accepted !Programmed(ParentNotProgrammed)
  listener more: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
ListenerSet a/of-here Accepted !Programmed(Pending)
  listener more: 0 routes of HTTPRoute,GRPCRoute Accepted !Programmed(Pending) ResolvedRefs !Conflicted(NoConflicts)
",
    );
}

#[test]
fn a_gateway_with_pods_of_its_own_is_spoken_for_here_and_served_there() {
    let objects = [
        gateway("shared", "", HTTP),
        of_class("own", OWN),
        config("own", "placement: Dedicated"),
        service(
            "shared",
            "infra",
            "clusterIP: 10.0.0.1, ports: [{port: 80, targetPort: 20000}]",
            "",
        ),
        service(
            "own",
            "a",
            "clusterIP: 10.0.0.2, ports: [{port: 80, targetPort: 20000}]",
            "",
        ),
        // Not where it would have to be.
        service(
            "own",
            "infra",
            "clusterIP: 10.0.0.3, ports: [{port: 80, targetPort: 20001}]",
            "",
        ),
    ];
    let statuses = "
GatewayConfig infra/own Accepted
Gateway a/own Accepted Programmed ResolvedRefs 10.0.0.2
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs
";
    let published = |settings: Settings| {
        let mut index = Index::new(settings);
        let all = objects.concat() + CLASS;
        parse(&all).into_iter().for_each(|o| index.apply(o));
        describe_all(&index.publish())
    };
    let here = published(settings());
    let there = published(Settings {
        only_gateway: Some(ObjectName::new("a", "own")),
        infrastructure_namespace: Some("a".to_owned()),
        ..settings()
    });
    let ports = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|l| l.contains("port ") || l.contains("listener a/"));
        lines.map(|line| line.trim().to_owned()).collect()
    };
    assert_eq!(
        ports(&here),
        ["port 20000 of 80 http", "listener a/shared http for *"]
    );
    assert_eq!(
        ports(&there),
        ["port 20000 of 80 http", "listener a/own http for *"]
    );
    for line in statuses.trim().lines() {
        assert!(here.contains(line), "no {line:?} in\n{here}");
        assert!(there.contains(line), "no {line:?} in\n{there}");
    }
}

#[test]
fn parameters_that_do_not_hold_are_named_on_class_and_gateway() {
    let mut index = Index::new(settings());
    let all = [
        of_class(
            "missing",
            "group: forebay.dev, kind: GatewayConfig, name: none, namespace: infra",
        ),
        of_class(
            "nowhere",
            "group: forebay.dev, kind: GatewayConfig, name: own",
        ),
        config("own", ""),
    ];
    parse(&all.concat())
        .into_iter()
        .for_each(|o| index.apply(o));
    let text = describe_all(&index.publish());
    for line in [
        "GatewayClass default/class-missing !Accepted(InvalidParameters)",
        "GatewayClass default/class-nowhere !Accepted(InvalidParameters)",
        "problem Gateway a/missing: InvalidParameters: the parameters of its class: GatewayConfig infra/none does not exist",
        "problem Gateway a/nowhere: InvalidParameters: the parameters of its class: a GatewayConfig has a namespace: write parametersRef.namespace",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    let wanted = index.infrastructure();
    assert!(wanted.iter().all(|one| one.undecided), "{wanted:?}");
}

#[test]
fn what_gateways_want_follows_from_them_their_sets_and_their_parameters() {
    let set = |name: &str, namespace: &str, port: u16| {
        format!(
            "\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: ListenerSet, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{parentRef: {{name: plain, namespace: a}}, listeners: [{{name: l, port: {port}, protocol: HTTP}}]}}}}"
        )
    };
    let mut index = Index::new(settings());
    let all = [
        gateway(
            "plain",
            "allowedListeners: {namespaces: {from: Same}}, \
             infrastructure: {labels: {team: a}, annotations: {n: x}}, addresses: [{value: 192.0.2.1}],",
            &format!("{HTTP}, {{name: odd, port: 53, protocol: UDP}}"),
        ),
        set("near", "a", 81),
        set("far", "b", 82),
        gateway(
            "own",
            "infrastructure: {parametersRef: {group: forebay.dev, kind: GatewayConfig, name: of-gateway}},",
            HTTP,
        ),
        config(
            "of-gateway",
            "placement: Dedicated, replicas: 3, serviceType: NodePort, image: 'x/y:1', resources: {limits: {cpu: 1}}",
        )
        .replace("namespace: infra", "namespace: a"),
        gateway("foreign", "", HTTP).replace("gatewayClassName: forebay", "gatewayClassName: other"),
        CLASS.to_owned(),
    ];
    parse(&all.concat())
        .into_iter()
        .for_each(|o| index.apply(o));
    index.publish();
    let wanted = index.infrastructure();
    let [own, plain] = wanted.as_slice() else {
        panic!("{wanted:?}");
    };
    assert_eq!(own.gateway, ObjectName::new("a", "own"));
    assert_eq!(own.service_type.as_deref(), Some("NodePort"));
    let data_plane = own.data_plane.as_ref().unwrap();
    assert_eq!(
        (data_plane.replicas, data_plane.image.as_deref()),
        (3, Some("x/y:1"))
    );
    assert_eq!(data_plane.resources.as_ref().unwrap()["limits"]["cpu"], 1);
    // The set of a namespace that is not let in, and a protocol that is not served, open no port.
    assert_eq!(plain.ports.iter().copied().collect::<Vec<_>>(), [80, 81]);
    assert_eq!(
        (&*plain.labels["team"], &*plain.annotations["n"]),
        ("a", "x")
    );
    assert_eq!(plain.address.as_deref(), Some("192.0.2.1"));
    assert!(plain.data_plane.is_none() && !plain.undecided);
}

#[test]
fn classes_named_in_the_settings_are_ours_whoever_controls_them() {
    let foreign = |name: &str| {
        format!(
            "\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {{name: {name}}}, spec: {{controllerName: networking.gke.io/gateway}}}}"
        )
    };
    let of = |name: &str, class: &str| {
        gateway(name, "", HTTP).replace(
            "gatewayClassName: forebay",
            &format!("gatewayClassName: {class}"),
        )
    };
    check(
        Settings {
            controller: "example.com/ours".to_owned(),
            classes: vec!["gke-l7".to_owned(), "absent".to_owned()],
            addresses: vec!["192.0.2.1".to_owned()],
            ..Settings::cluster()
        },
        &[
            foreign("gke-l7"),
            of("gke", "gke-l7"),
            of("absent", "absent").replace("port: 80", "port: 81"),
            of("other", "forebay"),
        ],
        "
port 80 http
  listener a/gke http for *
port 81 http
  listener a/absent http for *
Gateway a/absent Accepted Programmed ResolvedRefs 192.0.2.1
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
Gateway a/gke Accepted Programmed ResolvedRefs 192.0.2.1
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
",
    );
}

#[test]
fn a_gateway_config_obeys_its_rules() {
    common::check_problems(
        &config("c", "replicas: 0, image: ' x', resources: [1], typo: 1"),
        "
GatewayConfig infra/c spec.replicas: InvalidValue: 1 to 100 pods are allowed
GatewayConfig infra/c spec.image: InvalidValue: not the name of an image
GatewayConfig infra/c spec.image: InvalidValue: is for placement Dedicated: shared pods have that of their Deployment
GatewayConfig infra/c spec.resources: InvalidValue: write requests and limits
GatewayConfig infra/c spec.resources: InvalidValue: are for placement Dedicated: shared pods have those of their Deployment
",
    );
    let right =
        "placement: Dedicated, replicas: 2, image: 'a.b/c:1@sha256:0', serviceType: ClusterIP";
    common::check_problems(&config("c", right), "");
    common::check_problems(
        &config("c", "serviceType: ExternalName"),
        "
GatewayConfig infra/c spec.serviceType: Malformed: unknown variant `ExternalName`, expected one of `LoadBalancer`, `NodePort`, `ClusterIP`
",
    );
}
