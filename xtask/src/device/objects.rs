//! Claims and pods of the checks, as users write them.

use super::Bed;
use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The image of test pods, which every node has.
const IMAGE: &str = "bed.forebay.dev/busybox:1";

/// A selector for the interface of this name on the host, guarded as every selector is to be.
pub(super) fn named(interface: &str) -> String {
    format!(
        "has(device.attributes[\"dra.net\"].ifName) && device.attributes[\"dra.net\"].ifName == \"{interface}\""
    )
}

/// A request for one NIC of these.
pub(super) fn request(name: &str, class: &str, selector: &str) -> Value {
    json!({ "name": name, "exactly": {
        "deviceClassName": class,
        "selectors": [{ "cel": { "expression": selector } }],
    } })
}

/// A template of claims; parameters by the request that they are for, or for all.
pub(super) fn template(name: &str, requests: &[Value], parameters: &[(&str, Value)]) -> Value {
    let config = parameters.iter().map(|(request, parameters)| {
        let mut config = json!({ "opaque": { "driver": "dra.net", "parameters": parameters } });
        if !request.is_empty() {
            config["requests"] = json!([request]);
        }
        config
    });
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
        "metadata": { "name": name },
        "spec": { "spec": { "devices": {
            "requests": requests,
            "config": config.collect::<Vec<_>>(),
        } } },
    })
}

/// A pod on a node with a claim of a template.
pub(super) fn pod(name: &str, node: &str, template: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "device-network" } },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["/bin/sleep", "36000"],
                "resources": { "claims": [{ "name": "nics" }] },
            }],
            "resourceClaims": [{ "name": "nics", "resourceClaimTemplateName": template }],
        },
    })
}

/// Makes objects.
pub(super) fn apply(bed: &Bed, objects: &[Value]) -> Result<()> {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    bed.feed(&["apply", "-f", "-"], list.to_string().as_bytes())
}

/// Waits until a pod is ready; the error has its events.
pub(super) fn ready(bed: &Bed, pod: &str) -> Result<()> {
    let wait = ["wait", "--for=condition=Ready", "--timeout=90s", "pod", pod];
    bed.kubectl(&wait).map(drop).with_context(|| {
        let field = format!("--field-selector=involvedObject.name={pod}");
        let path = "-o=jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}";
        bed.kubectl(&["get", "events", &field, path])
            .unwrap_or_default()
    })
}

/// Deletes pods and waits until they are gone.
pub(super) fn delete(bed: &Bed, pods: &[&str]) -> Result<()> {
    let words = [
        "delete",
        "pod",
        "--ignore-not-found",
        "--wait=true",
        "--timeout=90s",
    ];
    bed.kubectl(&[&words, pods].concat()).map(drop)
}

/// What a command in a pod printed.
pub(super) fn exec(bed: &Bed, pod: &str, command: &[&str]) -> Result<String> {
    bed.kubectl(&[&["exec", pod, "--"], command].concat())
}

/// The claim that was made for a pod.
pub(super) fn claim_of(bed: &Bed, pod: &str) -> Result<Value> {
    let path = "-o=jsonpath={.status.resourceClaimStatuses[0].resourceClaimName}";
    let name = bed.kubectl(&["get", "pod", pod, path])?;
    super::get(bed, &["resourceclaim", &name])
}
