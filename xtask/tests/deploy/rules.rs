//! The rules of the definitions, as a table: a spec, and the word of the refusal if it is one.

use crate::cluster::{Cluster, cluster};
use serde_json::{Value, json};

/// Fields of a spec in JSON, in place of those of a valid one, with null for a field that is left out;
/// and what the server says: `Ok`, or a part of its complaint.
type Row = (&'static str, Result<(), &'static str>);

fn check(cluster: &Cluster, api_version: &str, kind: &str, valid: &Value, rows: &[Row]) {
    let mut wrong = Vec::new();
    for (changes, expected) in rows {
        let spec = changed(valid, changes);
        let object = object(api_version, kind, &spec);
        let found = cluster.try_apply(&object.to_string());
        let agrees = match (&found, expected) {
            (Ok(_), Ok(())) => true,
            (Err(complaint), Err(word)) => complaint.contains(word),
            _ => false,
        };
        if !agrees {
            let found = found.map(|_| "it is accepted".to_owned());
            let found = found.unwrap_or_else(|complaint| complaint);
            wrong.push(format!("{spec}\n  expected {expected:?}\n  {found}"));
        }
    }
    assert!(wrong.is_empty(), "{kind}:\n{}", wrong.join("\n"));
}

fn changed(valid: &Value, changes: &str) -> Value {
    let mut spec = valid.clone();
    let changes: Value = serde_json::from_str(changes).unwrap_or_else(|e| panic!("{changes}: {e}"));
    for (field, value) in changes.as_object().expect("an object") {
        spec[field] = value.clone();
    }
    let fields = spec.as_object_mut().expect("an object");
    fields.retain(|_, value| !value.is_null());
    spec
}

fn object(api_version: &str, kind: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": { "name": "a", "namespace": "default" },
        "spec": spec,
    })
}

const POOLS: &[Row] = &[
    ("{}", Ok(())),
    (r#"{"selector":{"matchLabels":{"app":""}}}"#, Ok(())),
    (r#"{"targetPorts":[{"number":1},{"number":65535}]}"#, Ok(())),
    (
        r#"{"targetPorts":[{"number":1},{"number":2},{"number":3},{"number":4},{"number":5},{"number":6},{"number":7},{"number":8}]}"#,
        Ok(()),
    ),
    (r#"{"appProtocol":"kubernetes.io/h2c"}"#, Ok(())),
    (
        r#"{"endpointPickerRef":{"name":"p","port":{"number":9002}}}"#,
        Ok(()),
    ),
    (
        r#"{"endpointPickerRef":{"name":"p","port":{"number":1},"failureMode":"FailOpen"}}"#,
        Ok(()),
    ),
    (
        r#"{"endpointPickerRef":{"name":"p","kind":"Other","group":"example.com"}}"#,
        Ok(()),
    ),
    (r#"{"selector":null}"#, Err("spec.selector: Required value")),
    (
        r#"{"selector":{}}"#,
        Err("spec.selector.matchLabels: Required value"),
    ),
    (
        r#"{"selector":{"matchLabels":{}}}"#,
        Err("should have at least 1 properties"),
    ),
    (
        r#"{"selector":{"matchLabels":{"a":"-b"}}}"#,
        Err("should match"),
    ),
    (
        r#"{"selector":{"matchLabels":{"a":"x234567890123456789012345678901234567890123456789012345678901234"}}}"#,
        Err("Too long"),
    ),
    (
        r#"{"targetPorts":null}"#,
        Err("spec.targetPorts: Required value"),
    ),
    (r#"{"targetPorts":[]}"#, Err("should have at least 1 items")),
    (
        r#"{"targetPorts":[{"number":1},{"number":2},{"number":3},{"number":4},{"number":5},{"number":6},{"number":7},{"number":8},{"number":9}]}"#,
        Err("must have at most 8 items"),
    ),
    (
        r#"{"targetPorts":[{"number":0}]}"#,
        Err("greater than or equal to 1"),
    ),
    (
        r#"{"targetPorts":[{"number":65536}]}"#,
        Err("less than or equal to 65535"),
    ),
    (
        r#"{"targetPorts":[{}]}"#,
        Err("targetPorts[0].number: Required value"),
    ),
    (
        r#"{"targetPorts":[{"number":1},{"number":2},{"number":1}]}"#,
        Err("port number must be unique"),
    ),
    (r#"{"appProtocol":"grpc"}"#, Err("Unsupported value")),
    (
        r#"{"endpointPickerRef":{"name":"p"}}"#,
        Err("port is required when kind is 'Service'"),
    ),
    (
        r#"{"endpointPickerRef":{"name":"p","kind":"Service"}}"#,
        Err("port is required when kind is 'Service'"),
    ),
    (
        r#"{"endpointPickerRef":{"port":{"number":1}}}"#,
        Err("endpointPickerRef.name: Required value"),
    ),
    (
        r#"{"endpointPickerRef":{"name":"","port":{"number":1}}}"#,
        Err("at least 1 chars long"),
    ),
    (
        r#"{"endpointPickerRef":{"name":"p","port":{"number":1},"group":"Not.A.Domain"}}"#,
        Err("should match"),
    ),
    (
        r#"{"endpointPickerRef":{"name":"p","port":{"number":1},"kind":"9"}}"#,
        Err("should match"),
    ),
    (
        r#"{"endpointPickerRef":{"name":"p","port":{"number":1},"failureMode":"Maybe"}}"#,
        Err("Unsupported value"),
    ),
];

const OBJECTIVES: &[Row] = &[
    ("{}", Ok(())),
    (r#"{"priority":-2147483648}"#, Ok(())),
    (r#"{"poolRef":null}"#, Err("spec.poolRef: Required value")),
    (
        r#"{"poolRef":{}}"#,
        Err("spec.poolRef.name: Required value"),
    ),
    (r#"{"priority":"high"}"#, Err("must be of type integer")),
    (r#"{"priority":2147483648}"#, Err("int32")),
    (
        r#"{"poolRef":{"name":"llama","kind":"not a kind"}}"#,
        Err("should match"),
    ),
];

const REWRITES: &[Row] = &[
    ("{}", Ok(())),
    (
        r#"{"rules":[{"matches":[{"model":{"value":"gpt"}}],"targets":[{"modelRewrite":"a","weight":1},{"modelRewrite":"b","weight":1000000}]}]}"#,
        Ok(()),
    ),
    (r#"{"rules":null}"#, Err("spec.rules: Required value")),
    (r#"{"poolRef":null}"#, Err("spec.poolRef: Required value")),
    (
        r#"{"rules":[{"targets":[]}]}"#,
        Err("should have at least 1 items"),
    ),
    (
        r#"{"rules":[{"targets":[{"weight":1}]}]}"#,
        Err("modelRewrite: Required value"),
    ),
    (
        r#"{"rules":[{"targets":[{"modelRewrite":"a","weight":0}]}]}"#,
        Err("greater than or equal to 1"),
    ),
    (
        r#"{"rules":[{"targets":[{"modelRewrite":"a","weight":1000001}]}]}"#,
        Err("less than or equal to 1000000"),
    ),
    (
        r#"{"rules":[{"matches":[{"model":{"value":""}}],"targets":[{"modelRewrite":"a"}]}]}"#,
        Err("at least 1 chars long"),
    ),
    (
        r#"{"rules":[{"matches":[{"model":{"value":"a","type":"Prefix"}}],"targets":[{"modelRewrite":"a"}]}]}"#,
        Err("Unsupported value"),
    ),
];

const CONFIGS: &[Row] = &[
    ("{}", Ok(())),
    (r#"{"replicas":1,"serviceType":"ClusterIP"}"#, Ok(())),
    (
        r#"{"placement":"Dedicated","replicas":100,"image":"registry.example:5000/forebay@sha256:0a","serviceType":"NodePort"}"#,
        Ok(()),
    ),
    (
        r#"{"placement":"Dedicated","resources":{"requests":{"cpu":2,"memory":"1Gi"},"limits":{"cpu":"2","memory":"1024Mi"}}}"#,
        Ok(()),
    ),
    (
        r#"{"placement":"Dedicated","resources":{"requests":{"cpu":"500m"}}}"#,
        Ok(()),
    ),
    (r#"{"placement":"Somewhere"}"#, Err("Unsupported value")),
    (
        r#"{"serviceType":"ExternalName"}"#,
        Err("Unsupported value"),
    ),
    (r#"{"replicas":0}"#, Err("greater than or equal to 1")),
    (r#"{"replicas":101}"#, Err("less than or equal to 100")),
    (
        r#"{"image":"forebay:1"}"#,
        Err("image is for placement Dedicated"),
    ),
    (
        r#"{"placement":"Shared","resources":{"limits":{"cpu":1}}}"#,
        Err("resources are for placement Dedicated"),
    ),
    (
        r#"{"placement":"Dedicated","image":"two words"}"#,
        Err("should match"),
    ),
    (
        r#"{"placement":"Dedicated","image":""}"#,
        Err("at least 1 chars long"),
    ),
    (
        r#"{"placement":"Dedicated","resources":{"requests":{}}}"#,
        Err("should have at least 1 properties"),
    ),
    (
        r#"{"placement":"Dedicated","resources":{"limits":{"memory":"much"}}}"#,
        Err("should match"),
    ),
    (
        r#"{"placement":"Dedicated","resources":{"limits":{"memory":"0"}}}"#,
        Err("greater than zero"),
    ),
    (
        r#"{"placement":"Dedicated","resources":{"requests":{"cpu":-1}}}"#,
        Err("not negative"),
    ),
    (
        r#"{"placement":"Dedicated","resources":{"requests":{"cpu":"1500m"},"limits":{"cpu":1}}}"#,
        Err("must not exceed the limit"),
    ),
];

const POOL: &str = "inference.networking.k8s.io/v1";
const OBJECTIVE_VERSIONS: [&str; 2] = [
    "llm-d.ai/v1alpha2",
    "inference.networking.x-k8s.io/v1alpha2",
];
const CONFIG: &str = "forebay.dev/v1alpha1";

#[test]
fn the_rules_of_the_definitions_hold() {
    let Some(cluster) = cluster("rules of definitions") else {
        return;
    };
    let pool = json!({
        "selector": { "matchLabels": { "app": "llama" } },
        "targetPorts": [{ "number": 8000 }],
    });
    check(cluster, POOL, "InferencePool", &pool, POOLS);
    let objective = json!({ "poolRef": { "name": "llama" } });
    let rewrite = json!({ "poolRef": { "name": "llama" }, "rules": [] });
    for version in OBJECTIVE_VERSIONS {
        check(
            cluster,
            version,
            "InferenceObjective",
            &objective,
            OBJECTIVES,
        );
        check(
            cluster,
            version,
            "InferenceModelRewrite",
            &rewrite,
            REWRITES,
        );
    }
    check(cluster, CONFIG, "GatewayConfig", &json!({}), CONFIGS);
}

#[test]
fn what_is_left_out_gets_its_default() {
    let Some(cluster) = cluster("defaults of definitions") else {
        return;
    };
    let applied = |version: &str, kind: &str, spec: Value| {
        let object = object(version, kind, &spec);
        let applied = cluster.try_apply(&object.to_string());
        applied.expect("a valid object")["spec"].clone()
    };
    let labels = json!({ "matchLabels": { "a": "b" } });
    let pool = applied(
        POOL,
        "InferencePool",
        json!({
            "selector": labels,
            "targetPorts": [{ "number": 1 }],
            "endpointPickerRef": { "name": "p", "port": { "number": 1 } },
        }),
    );
    assert_eq!(pool["appProtocol"], "http");
    let picker = json!({
        "group": "", "kind": "Service", "name": "p", "port": { "number": 1 }, "failureMode": "FailClose",
    });
    assert_eq!(pool["endpointPickerRef"], picker);
    for version in OBJECTIVE_VERSIONS {
        let spec = json!({ "poolRef": { "name": "p" } });
        let objective = applied(version, "InferenceObjective", spec);
        let full =
            json!({ "group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "p" });
        assert_eq!(objective["poolRef"], full);
    }
    assert_eq!(
        applied(CONFIG, "GatewayConfig", json!({})),
        json!({ "placement": "Shared", "replicas": 2 })
    );
}

#[test]
fn the_status_of_a_pool_has_its_bounds() {
    let Some(cluster) = cluster("status of definitions") else {
        return;
    };
    let spec =
        json!({ "selector": { "matchLabels": { "a": "b" } }, "targetPorts": [{ "number": 1 }] });
    let mut pool = object(POOL, "InferencePool", &spec);
    pool["metadata"]["name"] = json!("bounded");
    let apply = ["apply", "--server-side", "-f", "-"];
    cluster.kubectl(&apply, &pool.to_string()).expect("a pool");
    let patch = |parents: Value| {
        let patch = json!({ "status": { "parents": parents } }).to_string();
        let arguments = [
            "patch",
            "inferencepool",
            "bounded",
            "-n",
            "default",
            "--subresource=status",
            "--type=merge",
            "--dry-run=server",
            "-o",
            "json",
            "-p",
            &patch,
        ];
        cluster.kubectl(&arguments, "")
    };
    let parent = |n: usize| json!({ "parentRef": { "name": format!("g{n}") } });
    let parents = |n: usize| Value::Array((0..n).map(parent).collect());
    let condition = |n: usize| {
        json!({
            "type": format!("T{n}"), "status": "True", "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let conditions = |n: usize| Value::Array((0..n).map(condition).collect());
    let with = |field: &str, value: Value| {
        let mut parent = parent(0);
        parent[field] = value;
        json!([parent])
    };

    let written = patch(parents(32)).expect("32 parents");
    let written: Value = serde_json::from_str(&written).expect("JSON");
    let full = json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g0" });
    assert_eq!(written["status"]["parents"][0]["parentRef"], full);
    patch(with("controllerName", json!("forebay.dev/gateway"))).expect("a controller's name");
    patch(with("conditions", conditions(8))).expect("8 conditions");
    for (parents, word) in [
        (parents(33), "must have at most 32 items"),
        (
            with("conditions", conditions(9)),
            "must have at most 8 items",
        ),
        (
            with("conditions", json!([condition(0), condition(0)])),
            "Duplicate value",
        ),
        (with("controllerName", json!("forebay")), "should match"),
        (json!([{}]), "parentRef: Required value"),
    ] {
        let complaint = patch(parents.clone()).expect_err("a refusal");
        assert!(complaint.contains(word), "{parents}: {complaint}");
    }
    let delete = ["delete", "inferencepool", "bounded", "-n", "default"];
    cluster.kubectl(&delete, "").expect("the pool goes");
}
