//! What is promised of the controller, as the chart installs it: webhooks, profiles, an election.

use super::objects::{apply, claim_of, delete, exec, named, pod, ready, request, template};
use super::world::{Node, World};
use super::{NAMESPACE, Table, get, gone, wait};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const CONTROLLER: &str = "deployment/forebay-node-controller";
const LEASE: &str = "forebay-node-controller";
/// By which a pod asks for the NICs of its node, and what a node is labelled with.
const PROFILE: &str = "forebay.dev/network-profile";
/// NICs of the profile of the checks.
const NICS: usize = 2;

/// Runs them.
pub(super) fn run(world: &World<'_>, table: &mut Table) {
    let [one, two] = &world.nodes[..] else { return };
    table.check(
        "a typo in parameters is refused by a webhook, with its path",
        || refused(world),
    );
    table.check(
        "a pod with an annotation gets the NICs of its node's profile",
        || injected(world, two),
    );
    table.check(
        "another controller writes when the elected one dies",
        || elected(world, one),
    );
    table.check(
        "without webhooks a typo is told on the pod, and no pod goes without its NICs",
        || alone(world, one),
    );
}

fn typo() -> Value {
    let wrong = json!({ "interface": { "nmae": "net0" } });
    let request = request("nic", "dra.net", &named("rail1"));
    template("typo", &[request], &[("", wrong)])
}

fn refused(world: &World<'_>) -> Result<String> {
    ready_controllers(world)?;
    let why = apply(world.bed, &[typo()]).err().context("it was taken")?;
    let why = format!("{why:#}");
    let field = "spec.spec.devices.config[0].opaque.parameters.interface.nmae";
    let at = why.find(field).with_context(|| why.clone())?;
    Ok(why[at..].lines().next().unwrap_or_default().to_owned())
}

fn profile(name: &str, node: &Node) -> Value {
    let veth = "device.attributes[\"dra.net\"].type == \"veth\"";
    json!({
        "apiVersion": "forebay.dev/v1alpha1", "kind": "NetworkProfile", "metadata": { "name": name },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node.name },
            "requests": [{
                "name": "nic", "deviceClassName": "netdev.google.com", "count": NICS,
                "selectors": [veth],
            }],
            "parameters": { "interface": { "mtu": 1380 } },
        },
    })
}

/// The profile that a node is labelled with.
fn label(world: &World<'_>, node: &Node) -> Result<Option<String>> {
    let object = get(world.bed, &["node", &node.name])?;
    let label = object["metadata"]["labels"][PROFILE].as_str();
    Ok(label.map(str::to_owned))
}

fn labelled(world: &World<'_>, node: &Node, expected: Option<&str>) -> Result<()> {
    wait(&format!("{} with profile {expected:?}", node.name), || {
        Ok((label(world, node)?.as_deref() == expected).then_some(()))
    })
}

/// A pod that names no claim.
fn asking(name: &str, profile: &str) -> Value {
    let mut pod = pod(name, "", "");
    pod["metadata"]["annotations"] = json!({ PROFILE: profile });
    if let Some(spec) = pod["spec"].as_object_mut() {
        spec.remove("resourceClaims");
        spec.remove("nodeSelector");
    }
    pod["spec"]["containers"][0]["resources"] = json!({});
    pod
}

fn injected(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let rails: Vec<(String, String)> = (0..super::world::RAILS)
        .filter_map(|rail| {
            let name = format!("rail{rail}");
            Some((name.clone(), node.link(&name)?))
        })
        .collect();
    apply(bed, &[profile("pair", node)])?;
    labelled(world, node, Some("pair"))?;
    let events = [
        "events",
        "-n",
        "default",
        "--field-selector=reason=NetworkProfile",
    ];
    wait("an event on the node", || {
        let events = get(bed, &events)?.to_string();
        Ok(events
            .contains("the network profile pair, from its NetworkProfile")
            .then_some(()))
    })?;
    apply(bed, &[asking("annotated", "pair")])?;
    ready(bed, "annotated")?;
    let made = get(bed, &["pod", "annotated"])?;
    ensure!(
        made["spec"]["nodeName"] == node.name.as_str(),
        "it is elsewhere: {made}"
    );
    let inside = exec(bed, "annotated", &["ls", "/sys/class/net"])?;
    let inside: Vec<&str> = inside
        .split_whitespace()
        .filter(|name| name.starts_with("rail"))
        .collect();
    ensure!(inside.len() == NICS, "in the pod: {inside:?}");
    for name in &inside {
        let mtu = exec(
            bed,
            "annotated",
            &["cat", &format!("/sys/class/net/{name}/mtu")],
        )?;
        ensure!(mtu == "1380", "{name} has an MTU of {mtu}");
    }
    let claim = claim_of(bed, "annotated")?;
    let told = exec(
        bed,
        "annotated",
        &[
            "cat",
            "/var/run/kubernetes.io/dra-device-attributes/resourceclaimtemplates/forebay-nics/nic/dra.net-metadata.json",
        ],
    )?;
    for name in &inside {
        ensure!(
            told.contains(&format!("\"{name}\"")),
            "the container is not told of {name}: {told}"
        );
    }
    let status = get(bed, &["networkprofile", "pair"])?["status"].clone();
    ensure!(status["nodes"] == 1, "{status}");
    delete(bed, &["annotated"])?;
    for (name, before) in &rails {
        node.wait_back(name, before)?;
    }
    bed.kubectl(&["delete", "networkprofile", "pair"])?;
    labelled(world, node, None)?;
    Ok(format!(
        "{} with {NICS} NICs as the profile has them, from claim {}, its container told of them; label and event on the node",
        inside.join(", "),
        claim["metadata"]["name"].as_str().unwrap_or_default()
    ))
}

/// The pod that has the Lease.
fn holder(world: &World<'_>) -> Result<Option<String>> {
    let lease = get(world.bed, &["lease", "-n", NAMESPACE, LEASE])?;
    let pods = world
        .bed
        .kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "name"])?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    let mut pods = pods.lines().filter_map(|line| line.strip_prefix("pod/"));
    let found = pods.find(|pod| holder.starts_with(pod));
    Ok(found.map(str::to_owned))
}

fn elected(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let first = wait("a controller with the Lease", || holder(world))?;
    // Without grace it cannot give the Lease back.
    let kill = [
        "delete",
        "pod",
        "-n",
        NAMESPACE,
        &first,
        "--force",
        "--grace-period=0",
    ];
    bed.kubectl(&kill)?;
    apply(bed, &[profile("later", node)])?;
    labelled(world, node, Some("later"))?;
    let second = wait("another controller with the Lease", || {
        Ok(holder(world)?.filter(|pod| *pod != first))
    })?;
    bed.kubectl(&["delete", "networkprofile", "later"])?;
    labelled(world, node, None)?;
    ready_controllers(world)?;
    Ok(format!("{first} was killed, {second} labels"))
}

fn ready_controllers(world: &World<'_>) -> Result<()> {
    let wait = [
        "rollout",
        "status",
        "--timeout=120s",
        "-n",
        NAMESPACE,
        CONTROLLER,
    ];
    world.bed.kubectl(&wait).map(drop)
}

fn scaled(world: &World<'_>, replicas: usize) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    (world.bed)
        .kubectl(&["scale", "-n", NAMESPACE, CONTROLLER, &replicas])
        .map(drop)
}

fn alone(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    scaled(world, 0)?;
    let controllers = "app.kubernetes.io/name=forebay-node-controller";
    let told = gone(bed, "the controllers to be gone", &["-l", controllers]).and_then(|()| {
        let why = apply(bed, &[asking("unanswered", "pair")]).err();
        let why = why.context("a pod with the annotation was taken")?;
        ensure!(
            format!("{why:#}").contains("pods.device-network.forebay.dev"),
            "{why:#}"
        );
        told_on_the_pod(world, node)
    });
    scaled(world, 2)?;
    ready_controllers(world)?;
    told
}

/// What is wrong with a claim's parameters is an event of the pod that was to have it.
fn told_on_the_pod(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    apply(bed, &[typo(), pod("typo", &node.name, "typo")])?;
    let message = wait("an event on the pod", || {
        let field =
            "--field-selector=involvedObject.name=typo,reason=FailedPrepareDynamicResources";
        let events = get(bed, &["events", field])?;
        let messages = events["items"].as_array().into_iter().flatten();
        let mut messages = messages.filter_map(|event| event["message"].as_str());
        Ok(messages
            .find(|message| message.contains("interface.nmae"))
            .map(str::to_owned))
    });
    delete(bed, &["typo"])?;
    bed.kubectl(&["delete", "resourceclaimtemplate", "typo"])?;
    let message = message?;
    let at = message.find("parameters").unwrap_or(0);
    Ok(message[at..].to_owned())
}
