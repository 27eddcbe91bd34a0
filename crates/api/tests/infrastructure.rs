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

#[test]
fn a_data_plane_of_one_gateway_serves_that_one_and_its_controller_none() {
    let objects = [
        gateway("one", "", HTTP),
        gateway("two", "", HTTP),
        service(
            "one",
            "a",
            "clusterIP: 10.0.0.1, ports: [{port: 80, targetPort: 8080}]",
            "",
        ),
        service(
            "two",
            "a",
            "clusterIP: 10.0.0.2, ports: [{port: 80, targetPort: 8080}]",
            "",
        ),
    ];
    let dedicated = Settings {
        dedicated: true,
        ..settings()
    };
    check(
        Settings {
            only_gateway: Some(ObjectName::new("a", "two")),
            ..dedicated.clone()
        },
        &objects,
        "
port 8080 of 80 http
  listener a/two http for *
GatewayClass default/forebay Accepted SupportedVersion
Gateway a/two Accepted Programmed ResolvedRefs 10.0.0.2
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
",
    );
    check(
        dedicated,
        &objects,
        "
GatewayClass default/forebay Accepted SupportedVersion
Gateway a/one Accepted Programmed ResolvedRefs 10.0.0.1
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
Gateway a/two Accepted Programmed ResolvedRefs 10.0.0.2
  listener http: 0 routes of HTTPRoute,GRPCRoute Accepted Programmed ResolvedRefs !Conflicted(NoConflicts)
",
    );
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
