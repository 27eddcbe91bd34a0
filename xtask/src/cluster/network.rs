//! The network of a bed: one namespace per bed that joins host and clusters (the fabric), one per
//! cluster, one per node.
//!
//! ```text
//!  host ── fabric ─┬─ c1: control plane, kube-proxy ─┬─ c1-n1: node ── pods
//!                  └─ c2: ...                        └─ c1-n2: node ── pods
//! ```
//!
//! Everything is routed and nothing is masqueraded. The host gets one interface and a route per
//! range; its own settings stay as they are, and traffic between clusters never touches it.
//! `plan` writes the steps down; `apply` hands them to iproute2.

use super::plan::{Bed, Cluster, Net, Node, Nodes};
use crate::shell;
use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};
use serde::Deserialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Written in every namespace of a bed before it gets interfaces: it forwards, and does not send
/// anybody a shorter way.
const SETTINGS: [(&str, &str); 3] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// One line for `ip -batch`, in a namespace or on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    netns: Option<String>,
    line: String,
}

fn on_host(line: String) -> Step {
    Step { netns: None, line }
}

fn inside(netns: &str, line: String) -> Step {
    Step {
        netns: Some(netns.to_owned()),
        line,
    }
}

/// Every namespace of the bed.
pub(super) fn namespaces(bed: &Bed) -> Vec<String> {
    let mut names = vec![bed.netns()];
    for cluster in bed.clusters() {
        names.push(cluster.netns);
        names.extend(cluster.nodes.into_iter().map(|node| node.netns));
    }
    names
}

/// What builds the network, in order. The namespaces exist.
pub(super) fn plan(bed: &Bed) -> Vec<Step> {
    let fabric = bed.netns();
    let link = bed.host_link();
    let mut steps = vec![
        inside(&fabric, "link set lo up".to_owned()),
        on_host(format!(
            "link add {link} type veth peer name host netns {fabric}"
        )),
        on_host(format!("addr add {}/30 dev {link}", bed.host_address())),
        on_host(format!("link set {link} up")),
        inside(
            &fabric,
            format!("addr add {}/30 dev host", bed.fabric_address()),
        ),
        inside(&fabric, "link set host up".to_owned()),
    ];
    for cluster in bed.clusters() {
        steps.extend(plan_cluster(&fabric, &cluster, bed.shape.kind));
        for range in cluster.routed() {
            steps.push(on_host(format!(
                "route add {range} via {}",
                bed.fabric_address()
            )));
        }
        for node in &cluster.nodes {
            steps.extend(plan_node(&cluster, node));
        }
    }
    steps
}

fn plan_cluster(fabric: &str, cluster: &Cluster, kind: Nodes) -> Vec<Step> {
    let Cluster { name, netns, .. } = cluster;
    let mut steps = vec![
        inside(
            fabric,
            format!("link add {name} type veth peer name uplink netns {netns}"),
        ),
        inside(fabric, format!("addr add {}/30 dev {name}", cluster.fabric)),
        inside(fabric, format!("link set {name} up")),
        inside(netns, "link set lo up".to_owned()),
        inside(netns, format!("addr add {}/30 dev uplink", cluster.uplink)),
        inside(netns, "link set uplink up".to_owned()),
        inside(netns, "link add nodes type bridge".to_owned()),
        inside(netns, format!("addr add {}/24 dev nodes", cluster.api)),
        inside(netns, "link set nodes up".to_owned()),
        // The API server asks webhooks on the host, which knows no way back to the uplink's address.
        inside(
            netns,
            format!(
                "route add default via {} src {}",
                cluster.fabric, cluster.api
            ),
        ),
        // More specific routes follow for each node; the rest must not go back up.
        inside(netns, format!("route add unreachable {}", cluster.pod_net)),
    ];
    for range in [cluster.service_net, cluster.balancer_net] {
        steps.push(inside(
            netns,
            match kind {
                // kube-proxy translates these, but a packet of this namespace itself needs a route
                // before it gets that far.
                Nodes::Real => format!("route add {range} dev nodes"),
                Nodes::Fake => format!("route add unreachable {range}"),
            },
        ));
    }
    let routes = cluster.routed();
    steps.extend(
        routes
            .iter()
            .map(|range| inside(fabric, format!("route add {range} via {}", cluster.uplink))),
    );
    steps
}

fn plan_node(cluster: &Cluster, node: &Node) -> Vec<Step> {
    let Node {
        netns,
        port,
        address,
        pod_net,
        ..
    } = node;
    vec![
        inside(
            &cluster.netns,
            format!("link add {port} type veth peer name eth0 netns {netns}"),
        ),
        inside(&cluster.netns, format!("link set {port} master nodes")),
        inside(&cluster.netns, format!("link set {port} up")),
        inside(netns, "link set lo up".to_owned()),
        inside(netns, format!("addr add {address}/24 dev eth0")),
        inside(netns, "link set eth0 up".to_owned()),
        inside(netns, format!("route add default via {}", cluster.api)),
        // Each pod gets a route of its own; addresses without a pod must not go back up.
        inside(netns, format!("route add unreachable {pod_net}")),
        inside(&cluster.netns, format!("route add {pod_net} via {address}")),
    ]
}

/// Builds the network. Whatever of it exists already is an error: `remove` comes first.
pub(super) fn apply(bed: &Bed) -> Result<()> {
    let names = namespaces(bed);
    let add: Vec<String> = names
        .iter()
        .map(|name| format!("netns add {name}"))
        .collect();
    run_batch(None, &add.join("\n"))?;
    for name in &names {
        let writes: Vec<String> = SETTINGS
            .iter()
            .map(|(key, value)| format!("echo {value} > /proc/sys/{key}"))
            .collect();
        shell::capture(
            Command::new("ip")
                .args(["netns", "exec", name, "sh", "-ec"])
                .arg(writes.join("\n")),
        )
        .with_context(|| format!("cannot set up forwarding in namespace {name}"))?;
    }
    for group in plan(bed).chunk_by(|one, next| one.netns == next.netns) {
        let lines: Vec<&str> = group.iter().map(|step| step.line.as_str()).collect();
        run_batch(group[0].netns.as_deref(), &lines.join("\n"))?;
    }
    Ok(())
}

/// Takes down whatever there is of it. Processes inside are gone before.
pub(super) fn remove(bed: &Bed) -> Result<()> {
    if Path::new("/sys/class/net").join(bed.host_link()).exists() {
        shell::capture(Command::new("ip").args(["link", "del", &bed.host_link()]))?;
    }
    for name in existing_namespaces(bed)? {
        shell::capture(Command::new("ip").args(["netns", "del", &name]))?;
    }
    // The first namespace of a machine makes this folder a mount. With none left it may go; while
    // there is one, both refuse.
    if unmount(NETNS_DIR, UnmountFlags::empty()).is_ok() {
        let _ = std::fs::remove_dir(NETNS_DIR);
    }
    Ok(())
}

/// The namespaces of this bed that exist, also of an earlier bed of its name with another shape.
pub(super) fn existing_namespaces(bed: &Bed) -> Result<Vec<String>> {
    let fabric = bed.netns();
    let prefix = format!("{fabric}-");
    let entries = match std::fs::read_dir(NETNS_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("cannot list the network namespaces"),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == fabric || name.starts_with(&prefix) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

const NETNS_DIR: &str = "/run/netns";

/// The file by which processes join a namespace.
pub(super) fn netns_file(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// The route of this host that a bed in this slot would shadow, if there is one.
pub(super) fn conflict(bed: &Bed) -> Result<Option<String>> {
    let text = shell::capture(Command::new("ip").args(["-json", "-4", "route", "show"]))?;
    let routes: Vec<Route> = if text.is_empty() {
        Vec::new()
    } else {
        serde_json::from_str(&text).context("cannot read the routes of this host")?
    };
    let ranges = bed.ranges();
    let clashes = |route: &Route| {
        Net::parse(&route.dst).is_some_and(|range| ranges.iter().any(|own| own.overlaps(range)))
    };
    let found = routes.into_iter().find(clashes);
    Ok(found.map(|route| {
        format!(
            "{} on {}",
            route.dst,
            route.dev.as_deref().unwrap_or("no interface")
        )
    }))
}

/// A line of the routing table. `default` is no range and never clashes.
#[derive(Debug, Deserialize)]
struct Route {
    dst: String,
    dev: Option<String>,
}

fn run_batch(netns: Option<&str>, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(name) = netns {
        command.args(["-n", name]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start ip: iproute2 is needed")?;
    child
        .stdin
        .take()
        .context("ip has no standard input")?
        .write_all(lines.as_bytes())
        .context("cannot hand its lines to ip")?;
    let output = child.wait_with_output().context("lost sight of ip")?;
    if !output.status.success() {
        let place = netns.unwrap_or("the host");
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "ip refused a line in {place}: {}\n{lines}",
            complaint.trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_in(kind: Nodes, netns: Option<&str>) -> Vec<String> {
        let steps = plan(&Bed::small(kind)).into_iter();
        steps
            .filter(|step| step.netns.as_deref() == netns)
            .map(|step| step.line)
            .collect()
    }

    #[test]
    fn the_host_gets_one_interface_and_one_route_per_range() {
        assert_eq!(
            lines_in(Nodes::Real, None),
            [
                "link add forebay0 type veth peer name host netns forebay-t",
                "addr add 10.200.0.2/30 dev forebay0",
                "link set forebay0 up",
                "route add 10.201.0.0/24 via 10.200.0.1",
                "route add 10.208.0.0/18 via 10.200.0.1",
                "route add 10.216.0.0/20 via 10.200.0.1",
                "route add 10.218.0.0/24 via 10.200.0.1",
            ]
        );
    }

    #[test]
    fn a_node_has_a_way_out_and_answers_for_its_own_pods() {
        assert_eq!(
            lines_in(Nodes::Real, Some("forebay-t-c1-n1")),
            [
                "link set lo up",
                "addr add 10.201.0.11/24 dev eth0",
                "link set eth0 up",
                "route add default via 10.201.0.1",
                "route add unreachable 10.208.1.0/24",
            ]
        );
    }

    #[test]
    fn without_kubelets_the_addresses_of_services_are_refused_at_once() {
        let lines = lines_in(Nodes::Fake, Some("forebay-t-c1"));
        assert!(
            lines.contains(&"route add unreachable 10.216.0.0/20".to_owned()),
            "{lines:?}"
        );
        assert_eq!(
            namespaces(&Bed::small(Nodes::Fake)),
            ["forebay-t", "forebay-t-c1"]
        );
    }
}
