use serde_json::json;

use super::*;
use crate::profile::{Seen, derive};

fn node(labels: &[(&str, &str)], gpus: u64, nics: u64, rdma: bool) -> (NodeFacts, Option<Profile>) {
    let nic = |index: u64| Seen {
        rdma,
        is_virtual: false,
        has_rail: true,
        has_accelerators: true,
        peers: vec![format!("gpu-{}", index % gpus)],
    };
    let labels = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let resource = if rdma {
        "nvidia.com/gpu"
    } else {
        "google.com/tpu"
    };
    let facts = NodeFacts {
        labels: labels.collect(),
        accelerators: Some((resource.to_owned(), gpus)),
        devices: (0..nics).map(nic).collect(),
    };
    let profile = derive(&facts, &BTreeMap::new());
    (facts, profile)
}

fn pod(resource: &str, count: u64, selector: Value) -> Value {
    json!({
        "metadata": { "annotations": { ANNOTATION: "auto" } },
        "spec": {
            "nodeSelector": selector,
            "containers": [
                { "name": "sidecar" },
                { "name": "server", "resources": { "limits": { resource: count.to_string() } } },
            ],
        },
    })
}

fn auto(pod: &Value, nodes: &[(NodeFacts, Option<Profile>)]) -> Result<Option<Injection>, String> {
    let nodes = nodes.iter().map(|(facts, profile)| (facts, profile));
    inject(pod, ("auto", "dra.net"), nodes, &BTreeMap::new())
}

/// The profile, and what is asked for: `rdma-8: mrdma.google.com All`.
fn check(pod: &Value, nodes: &[(NodeFacts, Option<Profile>)], expected: &str) {
    let injection = match auto(pod, nodes) {
        Ok(injection) => injection.expect("something to add"),
        Err(why) => return assert!(why.contains(expected), "{why}"),
    };
    let exactly = &injection.template_spec["spec"]["devices"]["requests"][0]["exactly"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let count = exactly["count"]
        .as_u64()
        .map_or_else(|| "All".to_owned(), |n| n.to_string());
    let class = text(&exactly["deviceClassName"]);
    assert_eq!(format!("{}: {class} {count}", injection.profile), expected);
    assert_eq!(
        injection.operations[1],
        json!({ "op": "add", "path": "/spec/resourceClaims",
                "value": [{ "name": CLAIM, "resourceClaimTemplateName": injection.template }] })
    );
}

#[test]
fn a_pod_with_all_gpus_gets_all_nics_and_one_with_a_part_gets_as_large_a_part() {
    let nodes = [node(&[(GKE_LABEL, "auto")], 8, 8, true)];
    let selector = json!({ GKE_LABEL: "auto" });
    for (gpus, expected) in [
        (8, "rdma-8: mrdma.google.com All"),
        (4, "rdma-8: mrdma.google.com 4"),
        (1, "rdma-8: mrdma.google.com 1"),
    ] {
        check(
            &pod("nvidia.com/gpu", gpus, selector.clone()),
            &nodes,
            expected,
        );
    }
    // Eight NICs for four GPUs: two for each.
    let nodes = [node(&[(GKE_LABEL, "auto")], 4, 8, true)];
    check(
        &pod("nvidia.com/gpu", 1, selector),
        &nodes,
        "rdma-8: mrdma.google.com 2",
    );
}

#[test]
fn the_nodes_that_a_pod_may_go_to_tell_its_profile() {
    let nodes = [
        node(&[(GKE_LABEL, "auto"), ("pool", "b200")], 8, 8, true),
        node(&[(GKE_LABEL, "auto"), ("pool", "tpu")], 4, 2, false),
        node(&[(GKE_LABEL, "auto"), ("pool", "gb200")], 4, 4, true),
    ];
    let selector = json!({ GKE_LABEL: "auto" });
    check(
        &pod("google.com/tpu", 4, selector.clone()),
        &nodes,
        "netdev-2: netdev.google.com All",
    );
    // Four GPUs are half of one node and all of the other.
    check(
        &pod("nvidia.com/gpu", 4, selector),
        &nodes,
        "rdma-8 on 1, rdma-4 on 1",
    );
    let one = json!({ GKE_LABEL: "auto", "pool": "gb200" });
    check(
        &pod("nvidia.com/gpu", 4, one),
        &nodes,
        "rdma-4: mrdma.google.com All",
    );
}

#[test]
fn without_a_node_the_machine_type_or_the_accelerator_tells() {
    let by_type = json!({ MACHINE_LABEL: "a4-highgpu-8g" });
    check(
        &pod("nvidia.com/gpu", 4, by_type),
        &[],
        "rdma-8: mrdma.google.com 4",
    );
    check(
        &pod("google.com/tpu", 4, json!({})),
        &[],
        "netdev: netdev.google.com All",
    );
    check(
        &pod("example.com/none", 1, json!({})),
        &[],
        "no node that it may go to",
    );
}

#[test]
fn only_containers_with_accelerators_name_the_claim() {
    let nodes = [node(&[], 8, 8, true)];
    let mut asking = pod("nvidia.com/gpu", 8, json!({}));
    let injection = auto(&asking, &nodes).unwrap().unwrap();
    let paths = |injection: &Injection| -> Vec<String> {
        let paths = injection.operations.iter();
        paths
            .map(|o| o["path"].as_str().unwrap().to_owned())
            .collect()
    };
    let annotation = "/metadata/annotations/forebay.dev~1network-profile-injected";
    assert_eq!(
        paths(&injection),
        [
            annotation,
            "/spec/resourceClaims",
            "/spec/containers/1/resources/claims"
        ]
    );
    // With a claim of another driver in place.
    asking["spec"]["resourceClaims"] = json!([{ "name": "imex" }]);
    asking["spec"]["containers"][1]["resources"]["claims"] = json!([{ "name": "imex" }]);
    let injection = auto(&asking, &nodes).unwrap().unwrap();
    assert_eq!(
        paths(&injection),
        [
            annotation,
            "/spec/resourceClaims/-",
            "/spec/containers/1/resources/claims/-"
        ]
    );
    asking["spec"]["resourceClaims"] = json!([{ "name": CLAIM }]);
    assert_eq!(auto(&asking, &nodes), Ok(None));
    asking["spec"] = json!({ "hostNetwork": true, "containers": [] });
    assert!(auto(&asking, &nodes).unwrap_err().contains("hostNetwork"));
}

#[test]
fn an_object_that_is_named_brings_the_pod_to_its_nodes() {
    let object = json!({
        "metadata": { "name": "fast" },
        "spec": {
            "nodeSelector": { "pool": "x" },
            "requests": [{ "name": "nic", "deviceClassName": "dra.net", "count": 2,
                           "selectors": ["device.attributes[\"dra.net\"].rdma"] }],
            "parameters": { "interface": { "mtu": 9000 } },
        },
    });
    let parsed = NetworkProfile::parse(&object, &|_| Ok(())).unwrap();
    let objects = BTreeMap::from([("fast".to_owned(), parsed)]);
    let inject = |pod: &Value, name: &str| {
        inject(pod, (name, "nic.example.com"), std::iter::empty(), &objects)
    };
    let mut asking = pod("nvidia.com/gpu", 1, json!({}));
    let injection = inject(&asking, "fast").unwrap().unwrap();
    let devices = &injection.template_spec["spec"]["devices"];
    assert_eq!(devices["requests"][0]["exactly"]["count"], 2);
    assert_eq!(devices["config"][0]["opaque"]["driver"], "nic.example.com");
    let last = injection.operations.last().unwrap();
    assert_eq!(
        last["path"],
        "/spec/nodeSelector/forebay.dev~1network-profile"
    );
    assert!(injection.template.starts_with("forebay-fast-"));
    asking["spec"]["nodeSelector"] = json!({ LABEL: "slow" });
    assert!(
        inject(&asking, "fast")
            .unwrap_err()
            .contains("nodes of slow")
    );
    assert!(
        inject(&asking, "fats")
            .unwrap_err()
            .contains("there are fast")
    );
}
