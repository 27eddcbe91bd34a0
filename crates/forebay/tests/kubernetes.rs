//! `forebay gateway --kubernetes` against a real API server: what users apply is served, what they
//! see in statuses is true, and what happens when parts of it go away.
//!
//! Every test has a namespace and a Forebay of its own that follows that namespace alone, so that
//! they do not write each other's statuses.

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/cluster_world.rs"]
mod cluster_world;
mod support;

use std::net::{Ipv4Addr, SocketAddr};

use cluster::{Relay, conditions};
use cluster_world::{ROUTE, World};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Ending, Program, chat, exchange, forebay, free_port, get, wait_for};

#[test]
fn objects_become_a_served_route_with_true_statuses_and_cease_to_be_one() {
    let Some(world) = World::start("served") else {
        return;
    };
    // Another controller has the route too.
    let other = json!({
        "controllerName": "example.com/other",
        "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "elsewhere"},
        "conditions": [{
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": "2026-11-01T00:00:00Z",
        }],
    });
    let namespace = &world.namespace.name;
    let parents = json!({ "parents": [other] });
    world
        .cluster
        .patch_status("httproute", namespace, "all", &parents);
    let forebay = world.forebay();
    forebay.wait_until_ready();
    world.wait_until_served();

    let held = ["Accepted=True", "ResolvedRefs=True"];
    for (kind, name) in [("httproute", "all"), ("inferencepool", "sims")] {
        wait_for(&format!("the status of {kind} {name}"), || {
            (world.parent(kind, name)? == held).then_some(())
        });
    }
    let route = world.get("httproute", "all");
    assert_eq!(
        route["status"]["parents"][0], other,
        "an entry of another's"
    );
    let gateway = wait_for("the status of the Gateway", || {
        let gateway = world.get("gateway", "edge");
        let held = conditions(&gateway["status"]["conditions"]);
        (held == ["Accepted=True", "Programmed=True", "ResolvedRefs=True"]).then_some(gateway)
    });
    let status = &gateway["status"];
    assert_eq!(status["listeners"][0]["attachedRoutes"], 1);
    assert_eq!(
        status["addresses"],
        json!([{"type": "IPAddress", "value": "127.0.0.1"}])
    );

    let class = wait_for("the status of the class", || {
        let class = world.get("gatewayclass", "forebay");
        let held = conditions(&class["status"]["conditions"]);
        (held == ["Accepted=True", "SupportedVersion=True"]).then_some(class)
    });
    let features = class["status"]["supportedFeatures"].as_array();
    assert!(features.is_some_and(|list| list.contains(&json!({"name": "HTTPRoute"}))));

    // A second look finds nothing to write. The class is everybody's, and may be written by others here.
    let versions = || {
        [
            ("gateway", "edge"),
            ("httproute", "all"),
            ("inferencepool", "sims"),
        ]
        .map(|(kind, name)| world.get(kind, name)["metadata"]["resourceVersion"].clone())
    };
    let before = versions();
    world.apply_pod("sim-2", "127.0.0.2");
    forebay.wait_for_status("127.0.0.2:");
    assert_eq!(versions(), before);

    // Somebody takes our entry away; we put it back, and leave theirs.
    world
        .cluster
        .patch_status("httproute", namespace, "all", &parents);
    wait_for("our entry is back", || world.parent("httproute", "all"));
    let route = world.get("httproute", "all");
    assert_eq!(route["status"]["parents"][0], other);

    // The pod goes, and the route after it.
    world.delete("pod", "sim-1");
    wait_for("the endpoint is gone", || {
        (!forebay.status().contains(&world.server.to_string())).then_some(())
    });
    world.delete("httproute", "all");
    wait_for("the route is gone", || {
        let answer = exchange(world.address(), "GET / HTTP/1.1\r\n", "");
        (answer.status == 404).then_some(())
    });
    wait_for("the Gateway says so", || {
        let gateway = world.get("gateway", "edge");
        (gateway["status"]["listeners"][0]["attachedRoutes"] == 0).then_some(())
    });
}

#[test]
fn an_object_that_cannot_be_served_is_named_and_stops_nothing() {
    let Some(world) = World::start("refused") else {
        return;
    };
    let forebay = world.forebay();
    world.wait_until_served();
    // The server takes it, since its rules know nothing of expressions.
    world.apply_route(
        "{matches: [{path: {type: RegularExpression, value: '('}}], \
         backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: sims}]}",
    );
    forebay.wait_for_status("spec.rules[0].matches[0].path.value");
    world.apply_pod("sim-2", "127.0.0.2");
    forebay.wait_for_status("127.0.0.2:");
    world.apply_route(ROUTE);
    forebay.wait_for_status("no problems");
}

#[test]
fn a_definition_that_comes_later_is_noticed_and_an_object_of_the_wrong_shape_is_named() {
    // Of the old group, which nobody else here uses, and without any rule for its objects.
    const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: inferenceobjectives.inference.networking.x-k8s.io}
spec:
  group: inference.networking.x-k8s.io
  names: {kind: InferenceObjective, plural: inferenceobjectives}
  scope: Namespaced
  versions:
  - name: v1alpha2
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";
    const NAME: &str = "inferenceobjectives.inference.networking.x-k8s.io";
    let Some(world) = World::start("later") else {
        return;
    };
    world
        .cluster
        .kubectl(&["delete", "crd", "--ignore-not-found", NAME]);
    let forebay = world.forebay();
    world.wait_until_served();
    world.apply(DEFINITION);
    world
        .cluster
        .kubectl(&["wait", "--for=condition=Established", "crd", NAME]);
    let objective = |name: &str, priority: &str| {
        format!(
            "{{apiVersion: inference.networking.x-k8s.io/v1alpha2, kind: InferenceObjective, metadata: {{name: {name}}}, \
             spec: {{priority: {priority}, poolRef: {{name: sims}}}}}}"
        )
    };
    world.apply(&objective("wrong", "high"));
    forebay.wait_for_status("InferenceObjective");
    assert!(
        forebay.status().contains("/wrong spec.priority: Malformed"),
        "{}",
        forebay.status()
    );
    world.apply(&objective("right", "5"));
    let conditions_of = |name: &str| {
        let object = world.get(NAME, name);
        conditions(&object["status"]["conditions"])
    };
    world.delete(NAME, "wrong");
    forebay.wait_for_status("no problems");
    let _conditions = conditions_of("right");
    world.cluster.kubectl(&["delete", "crd", NAME]);
    assert!(world.is_served());
}

#[test]
fn one_of_two_leads_and_the_other_takes_over_after_a_release_and_after_a_crash() {
    let Some(world) = World::start("leader") else {
        return;
    };
    let first = world.forebay();
    wait_for("the first leads", || first.leads().then_some(()));
    let mut second = world.forebay_with(
        world.cluster.kubeconfig(),
        &[
            "--gateway-service-type",
            "None",
            "--gateway-address",
            "127.0.0.2",
        ],
    );
    second.wait_until_ready();
    // Both serve, and one writes.
    world.wait_until_served();
    let address = |want: &str| {
        let gateway = world.get("gateway", "edge");
        (gateway["status"]["addresses"][0]["value"] == want).then_some(())
    };
    wait_for("the first writes", || address("127.0.0.1"));
    assert!(!second.leads());
    assert_eq!(
        second.metric("forebay_status_writes_total{result=\"success\"}"),
        None
    );

    // An orderly end hands over at once.
    let mut first = first;
    first.program.signal(Signal::TERM);
    wait_for("the second leads", || second.leads().then_some(()));
    wait_for("the second writes", || address("127.0.0.2"));
    assert_eq!(wait_for("the first ends", || first.program.ended()), 0);
    let lease = world.get("lease", "forebay-gateway");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);

    // After a crash the lease has to run out.
    let third = world.forebay();
    third.wait_until_ready();
    second.program.kill();
    wait_for("the third leads", || third.leads().then_some(()));
    wait_for("the third writes", || address("127.0.0.1"));
    assert_eq!(
        world.get("lease", "forebay-gateway")["spec"]["leaseTransitions"],
        2
    );
}

#[test]
fn traffic_goes_on_while_the_server_is_away_and_what_has_changed_is_found_afterwards() {
    let Some(world) = World::start("away") else {
        return;
    };
    let relay = Relay::start(world.cluster, world.folder.path());
    let host = [
        "--gateway-service-type",
        "None",
        "--gateway-address",
        "127.0.0.1",
    ];
    let forebay = world.forebay_with(&relay.kubeconfig, &host);
    world.wait_until_served();
    wait_for("it leads", || forebay.leads().then_some(()));
    assert_eq!(forebay.metric("forebay_kubernetes_synced"), Some(1.0));
    relay.set_cut(true);
    forebay.wait_for_status("SourceUnreachable");
    assert_eq!(forebay.metric("forebay_kubernetes_synced"), Some(0.0));
    assert!(forebay.is_ready() && world.is_served());
    // Its lease cannot be renewed, so somebody else may lead.
    wait_for("it leads no longer", || (!forebay.leads()).then_some(()));
    assert!(forebay.is_ready() && world.is_served());
    world.apply_pod("sim-2", "127.0.0.2");
    world.delete("pod", "sim-1");
    relay.set_cut(false);
    forebay.wait_for_status("127.0.0.2:");
    wait_for("the endpoint that went is gone", || {
        (!forebay.status().contains(&world.server.to_string())).then_some(())
    });
    forebay.wait_for_status("no problems");
    wait_for("it leads again", || forebay.leads().then_some(()));
    let warnings = forebay.log().matches("SourceUnreachable").count();
    assert_eq!(warnings, 1, "{}", forebay.log());
}

#[test]
fn a_process_that_has_never_seen_the_server_is_not_ready_and_one_begins_to_serve_when_it_comes() {
    let Some(world) = World::start("never") else {
        return;
    };
    let relay = Relay::start(world.cluster, world.folder.path());
    relay.set_cut(true);
    let host = [
        "--gateway-service-type",
        "None",
        "--gateway-address",
        "127.0.0.1",
    ];
    let forebay = world.forebay_with(&relay.kubeconfig, &host);
    wait_for("it says what it waits for", || {
        forebay
            .log()
            .contains("nothing is served yet")
            .then_some(())
    });
    assert!(!forebay.is_ready());
    assert!(get(forebay.admin, "/livez").is_ok());
    relay.set_cut(false);
    forebay.wait_until_ready();
    world.wait_until_served();
}

#[test]
fn every_gateway_gets_a_service_whose_ports_outlive_the_process() {
    let Some(world) = World::start("service") else {
        return;
    };
    let namespace = world.namespace.name.clone();
    let arguments = [
        "--bind",
        "127.0.0.2",
        "--gateway-selector",
        "app.kubernetes.io/name=forebay",
        "--gateway-service-accounts",
    ];
    let start = || world.forebay_with(world.cluster.kubeconfig(), &arguments);
    let mut forebay = start();
    world.apply(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: second}, \
         spec: {gatewayClassName: forebay, \
           infrastructure: {labels: {team: a}, annotations: {example.com/note: kept}}, \
           listeners: [{name: http, protocol: HTTP, port: 80}, {name: alt, protocol: HTTP, port: 8080}]}}",
    );
    // Ports of the pods by Gateway and port.
    let ports = || {
        let list = world.cluster.kubectl(&[
            "get",
            "services",
            "-n",
            &namespace,
            "-l",
            "app.kubernetes.io/managed-by=forebay",
            "-o",
            "json",
        ]);
        let list: Value = serde_json::from_str(&list).expect("JSON");
        let mut ports = Vec::new();
        for service in list["items"].as_array().into_iter().flatten() {
            let gateway = &service["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"];
            for port in service["spec"]["ports"].as_array().into_iter().flatten() {
                let gateway = gateway.as_str().unwrap_or("?");
                ports.push(format!("{gateway} {}:{}", port["port"], port["targetPort"]));
            }
        }
        ports.sort();
        ports
    };
    wait_for("Services", || (ports().len() == 3).then_some(()));
    // Metadata of the Gateway beside it, whatever its pods are.
    let marked = || {
        let labels = "gateway.networking.k8s.io/gateway-name=second,team=a";
        let note = r"jsonpath={.items[*].metadata.annotations.example\.com/note}";
        let get = [
            "get",
            "serviceaccounts",
            "-n",
            &namespace,
            "-l",
            labels,
            "-o",
            note,
        ];
        world.cluster.kubectl(&get)
    };
    wait_for("a ServiceAccount", || (marked() == "kept").then_some(()));
    let first = ports();
    let bound = |line: &str| -> u16 {
        let number = line.rsplit(':').next().expect("a port");
        number.parse().expect("a number")
    };
    let mut numbers: Vec<u16> = first.iter().map(|line| bound(line)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [20_000, 20_001, 20_002]);
    let edge = first
        .iter()
        .find(|line| line.starts_with("edge"))
        .expect("edge");
    let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), bound(edge)));
    wait_for("traffic comes in by the Service's port", || {
        (chat(address, "hello?", 1).ending == Ending::Complete).then_some(())
    });
    wait_for("the Gateway has the Service's address", || {
        let gateway = world.get("gateway", "edge");
        gateway["status"]["addresses"][0]["value"].as_str()?;
        Some(())
    });
    // Another process, other Gateways: what is mapped stays so, what is free is taken first.
    forebay.program.signal(Signal::TERM);
    wait_for("it ends", || forebay.program.ended());
    world.delete("gateway", "edge");
    let forebay = start();
    world.apply_gateway(9000);
    wait_for("the Service of another port", || {
        ports()
            .iter()
            .any(|line| line.starts_with("edge 9000:"))
            .then_some(())
    });
    let second: Vec<String> = first
        .iter()
        .filter(|l| l.starts_with("second"))
        .cloned()
        .collect();
    let kept = ports();
    assert!(second.iter().all(|line| kept.contains(line)), "{kept:?}");
    world.delete("gateway", "second");
    wait_for("its Service goes with it", || {
        (ports().len() == 1).then_some(())
    });
    wait_for("and its ServiceAccount", || {
        marked().is_empty().then_some(())
    });
    drop(forebay);
}

#[test]
fn a_gateway_that_is_placed_apart_gets_pods_and_a_service_beside_it() {
    let Some(world) = World::start("apart") else {
        return;
    };
    let namespace = world.namespace.name.clone();
    world.apply(
        "
apiVersion: forebay.dev/v1alpha1
kind: GatewayConfig
metadata: {name: apart}
spec: {placement: Dedicated, replicas: 1, serviceType: ClusterIP, resources: {requests: {cpu: '0.1'}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: apart}
spec:
  gatewayClassName: forebay
  infrastructure:
    labels: {team: a}
    parametersRef: {group: forebay.dev, kind: GatewayConfig, name: apart}
  listeners: [{name: http, protocol: HTTP, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: apart}
spec:
  parentRefs: [{name: apart}]
  rules: [{backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: sims}]}]
",
    );
    let arguments = [
        "--bind",
        "127.0.0.3",
        "--gateway-selector",
        "app.kubernetes.io/name=forebay",
        "--image",
        "in-name-only",
        "--data-plane-cluster-role",
        "view",
    ];
    let controller = world.forebay_with(world.cluster.kubeconfig(), &arguments);
    let all = |kinds: &str| -> Vec<Value> {
        let labels = "gateway.networking.k8s.io/gateway-name=apart,team=a";
        let list = world
            .cluster
            .kubectl(&["get", kinds, "-n", &namespace, "-l", labels, "-o", "json"]);
        let list: Value = serde_json::from_str(&list).expect("JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    };
    wait_for("a pod of its own", || {
        let pods = all("pods");
        let pod = pods.first()?;
        (pod["status"]["phase"] == "Running").then_some(())
    });
    wait_for("the Gateway is programmed", || {
        let gateway = world.get("gateway", "apart");
        let held = conditions(&gateway["status"]["conditions"]);
        held.contains(&"Programmed=True".to_owned()).then_some(())
    });
    let beside = all("services,serviceaccounts,deployments,rolebindings");
    assert_eq!(beside.len(), 4, "{beside:?}");
    let bindings = || {
        let labels = format!("forebay.dev/gateway-namespace={namespace}");
        let names = ["get", "clusterrolebindings", "-l", &labels, "-o", "name"];
        world.cluster.kubectl(&names)
    };
    assert_ne!(bindings(), "");
    wait_for("the GatewayConfig is accepted", || {
        let config = world.get("gatewayconfig", "apart");
        (conditions(&config["status"]["conditions"]) == ["Accepted=True"]).then_some(())
    });

    // In the place of the program in that pod, with the pod's own arguments.
    let deployment = &all("deployments")[0];
    let pod = &deployment["spec"]["template"]["spec"];
    let own = pod["containers"][0]["args"].as_array().expect("arguments");
    let own: Vec<&str> = own.iter().filter_map(Value::as_str).collect();
    assert_eq!(own[..2], ["gateway", "--kubernetes"]);
    let followed = format!("--watch-namespace={namespace}");
    let name = format!("--gateway={namespace}/apart");
    for argument in [&followed, &name, "--data-plane-only"] {
        assert!(own.contains(&argument), "no {argument} in {own:?}");
    }
    let arguments = ["--bind", "127.0.0.4", "--data-plane-only", &name];
    let data_plane = world.forebay_with(world.cluster.kubeconfig(), &arguments);
    let port = &all("services")[0]["spec"]["ports"][0];
    let port = u16::try_from(port["targetPort"].as_u64().expect("a port")).expect("a port");
    wait_for("its own process serves it", || {
        let address = SocketAddr::from(([127, 0, 0, 4], port));
        (chat(address, "hello?", 1).ending == Ending::Complete).then_some(())
    });
    let listener = |name: &str| format!("Gateway {namespace}/{name} listener");
    let (there, here) = (data_plane.status(), controller.status());
    assert!(!there.contains(&listener("edge")), "{there}");
    assert!(!here.contains(&listener("apart")), "{here}");
    assert_eq!(data_plane.metric("forebay_leader"), Some(0.0));

    world.delete("gateway", "apart");
    wait_for("everything goes with the Gateway", || {
        let left = all("services,serviceaccounts,deployments,rolebindings").len();
        (left == 0 && bindings().is_empty()).then_some(())
    });
}

#[test]
fn a_picker_follows_the_pods_of_its_pool_and_writes_nothing() {
    let Some(world) = World::start("picker") else {
        return;
    };
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(1)));
    let log = tempfile::NamedTempFile::new().expect("a temporary file");
    let ports = [free_port(1), free_port(1)].map(|port| port.to_string());
    let picker = Program::start(
        forebay()
            .args(["epp", "-poolName", "sims", "-poolNamespace"])
            .args([&*world.namespace.name, "--bind", "127.0.0.1"])
            .args(["--grpc-port", &ports[0], "--grpc-health-port", &ports[1]])
            .args(["--metrics-port", &admin.port().to_string()])
            .arg("--kubeconfig")
            .arg(world.cluster.kubeconfig())
            .stderr(log.reopen().expect("a readable file")),
    );
    wait_for("the picker is ready", || get(admin, "/readyz").ok());
    // The pod has an address once it is scheduled.
    let endpoints = || -> Option<Vec<String>> {
        let pools: Value = serde_json::from_str(&get(admin, "/debug/pools").ok()?).ok()?;
        let all = pools[0]["endpoints"].as_array()?.iter();
        Some(
            all.map(|e| e["address"].to_string().replace('"', ""))
                .collect(),
        )
    };
    let at =
        |n: u8| SocketAddr::from((Ipv4Addr::new(127, 0, 0, n), world.server.port())).to_string();
    wait_for("the pod is followed", || {
        (endpoints()? == [at(1)]).then_some(())
    });
    world.apply_pod("sim-2", "127.0.0.2");
    wait_for("the second pod is followed", || {
        (endpoints()? == [at(1), at(2)]).then_some(())
    });
    world.delete("pod", "sim-1");
    wait_for("the first is gone", || {
        (endpoints()? == [at(2)]).then_some(())
    });
    drop(picker);
    let said = std::fs::read_to_string(log.path()).expect("text");
    assert!(!said.contains("ERROR"), "{said}");
    // The Gateway and the route are nobody's here.
    assert_eq!(world.parent("httproute", "all"), None);
}
