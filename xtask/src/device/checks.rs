//! What is promised while nothing goes wrong.

use super::objects::{apply, claim_of, delete, exec, named, pod, ready, request, template};
use super::world::{Node, RAILS, World};
use super::{Table, wait};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Runs them in an order in which a later one finds what an earlier one left.
pub(super) fn run(world: &World<'_>, table: &mut Table) {
    let [one, two] = &world.nodes[..] else { return };
    table.check(
        "slices have every NIC, each with the same attributes",
        || slices(world),
    );
    table.check("two pods on two nodes talk over their NICs", || {
        talk(world, one, two)
    });
    table.check("a macvlan and an ifb go into a pod and come back", || {
        kinds(world, one)
    });
    table.check("a pod gets all NICs of a class in one claim", || {
        all(world, two)
    });
    table.check("parameters of dranet's examples are carried out", || {
        parameters(world, two)
    });
    table.check(
        "a container is told of its NICs, and others of the pod are not",
        || told(world, one),
    );
}

fn slices(world: &World<'_>) -> Result<String> {
    let expected = RAILS + 2;
    let mut names = BTreeSet::new();
    for node in &world.nodes {
        let devices = wait(&format!("{expected} devices of {}", node.name), || {
            let devices = world.devices(node)?;
            Ok((devices.len() == expected).then_some(devices))
        })?;
        for device in &devices {
            let attributes = device["attributes"].as_object().context("no attributes")?;
            names.insert(attributes.keys().cloned().collect::<Vec<_>>());
        }
    }
    ensure!(
        names.len() == 1,
        "devices differ in their attributes: {names:?}"
    );
    let count = names.first().map_or(0, Vec::len);
    Ok(format!(
        "{expected} devices on each of two nodes, {count} attributes on each"
    ))
}

fn talk(world: &World<'_>, one: &Node, two: &Node) -> Result<String> {
    let bed = world.bed;
    let before = [one.link("rail0"), two.link("rail0")];
    let [Some(first), Some(second)] = &before else {
        bail!("no rail0 on the nodes")
    };
    let published = |node: &Node| -> Result<Vec<Value>> { world.devices(node) };
    let slices = (published(one)?, published(two)?);
    let own =
        json!({ "interface": { "name": "net0", "addresses": ["10.60.0.99/24"], "mtu": 1400 } });
    apply(
        bed,
        &[
            template("rail", &[request("nic", "dra.net", &named("rail0"))], &[]),
            template(
                "addressed",
                &[request("nic", "dra.net", &named("rail0"))],
                &[("", own)],
            ),
            pod("talks", &one.name, "rail"),
            pod("answers", &two.name, "addressed"),
        ],
    )?;
    ready(bed, "talks")?;
    ready(bed, "answers")?;
    ensure!(
        one.link("rail0").is_none(),
        "rail0 is in the pod and on the node"
    );
    let there = exec(
        bed,
        "talks",
        &["ping", "-c", "3", "-W", "2", "-I", "rail0", "10.60.0.99"],
    )?;
    let back = exec(
        bed,
        "answers",
        &[
            "ping",
            "-c",
            "3",
            "-W",
            "2",
            "-I",
            "net0",
            &one.rail_address(0),
        ],
    )?;
    for said in [&there, &back] {
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    let mtu = exec(bed, "answers", &["cat", "/sys/class/net/net0/mtu"])?;
    ensure!(mtu == "1400", "mtu {mtu} in the pod");
    let status = wait("the claim's status", || {
        let claim = claim_of(bed, "answers")?;
        let device = claim["status"]["devices"][0].clone();
        Ok((device["conditions"][0]["status"] == "True").then_some(device))
    })?;
    let network = &status["networkData"];
    ensure!(network["interfaceName"] == "net0", "status: {status}");
    ensure!(
        network["ips"] == json!(["10.60.0.99/24"]),
        "status: {status}"
    );
    let held = (published(one)?, published(two)?);
    ensure!(slices == held, "devices changed while pods had them");
    delete(bed, &["talks", "answers"])?;
    one.wait_back("rail0", first)?;
    two.wait_back("rail0", second)?;
    Ok("no packet lost either way; status with address; slices unchanged; both NICs back with their addresses".to_owned())
}

fn kinds(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let names = ["mv0", "fb7"];
    let before: Vec<Option<String>> = names.iter().map(|name| node.link(name)).collect();
    let requests = names.map(|name| request(name, "netdev.google.com", &named(name)));
    apply(
        bed,
        &[
            template("kinds", &requests, &[]),
            pod("kinds", &node.name, "kinds"),
        ],
    )?;
    ready(bed, "kinds")?;
    let inside = exec(bed, "kinds", &["ls", "/sys/class/net"])?;
    let inside: BTreeSet<&str> = inside.split_ascii_whitespace().collect();
    ensure!(
        names.iter().all(|name| inside.contains(name)),
        "in the pod: {inside:?}"
    );
    delete(bed, &["kinds"])?;
    for (name, before) in names.iter().zip(before) {
        node.wait_back(name, &before.context("not there before")?)?;
    }
    Ok(format!("in the pod: {inside:?}"))
}

fn all(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let before: Vec<String> = (0..RAILS)
        .filter_map(|rail| node.link(&format!("rail{rail}")))
        .collect();
    let rails = "has(device.attributes[\"dra.net\"].type) && device.attributes[\"dra.net\"].type == \"veth\"";
    let mut request = request("nics", "netdev.google.com", rails);
    request["exactly"]["allocationMode"] = json!("All");
    apply(
        bed,
        &[
            template("every", &[request], &[]),
            pod("every", &node.name, "every"),
        ],
    )?;
    ready(bed, "every")?;
    let claim = claim_of(bed, "every")?;
    let got = claim["status"]["allocation"]["devices"]["results"]
        .as_array()
        .map_or(0, Vec::len);
    ensure!(got == RAILS, "{got} NICs were allocated");
    let inside = exec(bed, "every", &["ls", "/sys/class/net"])?;
    let count = inside
        .split_ascii_whitespace()
        .filter(|name| name.starts_with("rail"))
        .count();
    ensure!(count == RAILS, "in the pod: {inside}");
    delete(bed, &["every"])?;
    for (rail, before) in before.iter().enumerate() {
        node.wait_back(&format!("rail{rail}"), before)?;
    }
    Ok(format!("{count} NICs in the pod, and back"))
}

/// What parameters of dranet's examples ask for, as far as this kernel has it.
fn parameters(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let before = node.link("rail6").context("no rail6")?;
    let asked = json!({
        "interface": {
            "name": "fast", "mtu": 1300, "hardwareAddr": "02:00:00:00:00:66",
            "addresses": ["10.66.0.5/24", "fd66::5/64"],
            "gsoMaxSize": 61440, "groMaxSize": 61440,
            "arpIgnore": 1, "arpAnnounce": 2, "forwarding": true,
        },
        "routes": [
            { "destination": "10.67.0.0/16", "gateway": "10.66.0.1" },
            { "destination": "10.68.0.0/16", "gateway": "10.66.0.1", "table": 101 },
        ],
        "rules": [{ "priority": 1000, "source": "10.66.0.5/32", "table": 101 }],
        "neighbors": [{ "destination": "10.66.0.1", "hardwareAddr": "02:00:00:00:00:01" }],
    });
    apply(
        bed,
        &[
            template(
                "asked",
                &[request("nic", "dra.net", &named("rail6"))],
                &[("", asked)],
            ),
            pod("asks", &node.name, "asked"),
        ],
    )?;
    ready(bed, "asks")?;
    for (command, expected) in [
        ("ip addr show fast", "10.66.0.5/24"),
        ("ip addr show fast", "fd66::5/64"),
        ("ip link show fast", "mtu 1300"),
        ("ip link show fast", "02:00:00:00:00:66"),
        ("ip route", "10.67.0.0/16 via 10.66.0.1 dev fast"),
        (
            "ip route show table 101",
            "10.68.0.0/16 via 10.66.0.1 dev fast",
        ),
        ("ip rule", "from 10.66.0.5 lookup 101"),
        ("ip neigh", "10.66.0.1 dev fast lladdr 02:00:00:00:00:01"),
        ("cat /proc/sys/net/ipv4/conf/fast/arp_ignore", "1"),
        ("cat /proc/sys/net/ipv4/conf/fast/arp_announce", "2"),
        ("cat /proc/sys/net/ipv4/conf/fast/forwarding", "1"),
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        let seen = exec(bed, "asks", &words)?;
        ensure!(
            seen.contains(expected),
            "{command} has no {expected}: {seen}"
        );
    }
    delete(bed, &["asks"])?;
    node.wait_back("rail6", &before)?;
    Ok("name, MTU, MAC, addresses, segment sizes, routes, rules, neighbours, sysctls".to_owned())
}

/// Files of KEP-5304, and who has them.
fn told(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let before = node.link("rail5").context("no rail5")?;
    let own = json!({ "interface": { "name": "net0" } });
    let mut pod = pod("told", &node.name, "told");
    let mut other = pod["spec"]["containers"][0].clone();
    other["name"] = json!("other");
    other["resources"] = json!({});
    if let Some(containers) = pod["spec"]["containers"].as_array_mut() {
        containers.push(other);
    }
    let request = request("nic", "dra.net", &named("rail5"));
    apply(bed, &[template("told", &[request], &[("", own)]), pod])?;
    ready(bed, "told")?;
    let folder = "/var/run/kubernetes.io/dra-device-attributes";
    let file = format!("{folder}/resourceclaimtemplates/nics/nic/dra.net-metadata.json");
    let text = exec(bed, "told", &["cat", &file])?;
    // A stream of versions, of which a reader takes the first that it knows.
    let mut versions = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let first = versions.next().context("the file is empty")??;
    let device = &first["requests"][0]["devices"][0];
    let address = format!("{}/24", node.rail_address(5));
    ensure!(device["networkData"]["interfaceName"] == "net0", "{first}");
    ensure!(device["networkData"]["ips"] == json!([address]), "{first}");
    let named = &device["attributes"]["dra.net/ifName"];
    ensure!(named.to_string().contains("rail5"), "{first}");
    let other = bed.kubectl(&["exec", "told", "-c", "other", "--", "ls", folder]);
    ensure!(other.is_err(), "the other container has files: {other:?}");
    delete(bed, &["told"])?;
    node.wait_back("rail5", &before)?;
    let version = first["apiVersion"].as_str().unwrap_or_default();
    Ok(format!(
        "{version}: net0, {address}, {} attributes",
        device["attributes"]
            .as_object()
            .map_or(0, serde_json::Map::len)
    ))
}
