//! A node, seen from outside: its files, its start, its end.
//!
//! What happens in the node's own namespaces is in `inside`.

use super::binaries::Binaries;
use super::control_plane::{Kubectl, write_json};
use super::inside::{self, Command, Spec};
use super::plan::{Cluster, Node, log_file, node_group};
use super::process::{Process, Program, this_program, wait_for};
use super::report::Report;
use super::{cgroup, config};
use crate::shell;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The programs as `status` lists them.
pub(super) const PROGRAMS: [&str; 3] = ["containerd", "kubelet", "kube-proxy"];

/// Until a node is Ready: 8 s on an idle machine, and much more while something is compiled.
const READY_LIMIT: Duration = Duration::from_secs(180);

/// Makes the objects of all nodes of a cluster.
pub(super) fn register(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    let objects = cluster
        .nodes
        .iter()
        .enumerate()
        .map(|(index, node)| config::node_object(node, index));
    Kubectl::new(cluster, binaries)
        .apply(objects.collect())
        .context("cannot make the nodes' objects")
}

/// Starts nodes of one cluster and waits until all are Ready.
pub(super) fn start(
    cluster: &Cluster,
    nodes: &[&Node],
    binaries: &Binaries,
    images: &[PathBuf],
    roots: &[PathBuf],
    report: &Report,
) -> Result<Vec<Process>> {
    let kubectl = Kubectl::new(cluster, binaries);
    // A node that was up before says Ready until its kubelet reports anew.
    let before: Vec<String> = nodes
        .iter()
        .map(|node| readiness(&kubectl, node))
        .collect::<Result<_>>()?;
    let mut processes = Vec::new();
    for node in nodes {
        let process = start_one(cluster, node, binaries, images, roots);
        processes.push(process.with_context(|| format!("node {}", node.name))?);
    }
    for (node, before) in nodes.iter().zip(before) {
        let what = format!("node {} is Ready", node.name);
        wait_for(&what, READY_LIMIT, &mut processes, || {
            let now = readiness(&kubectl, node)?;
            Ok(now.starts_with("True") && now != before)
        })?;
        report.say(&node.name, "ready");
    }
    Ok(processes)
}

/// The Ready condition with the time of its last report.
fn readiness(kubectl: &Kubectl, node: &Node) -> Result<String> {
    let condition = ".status.conditions[?(@.type==\"Ready\")]";
    let path = format!("-o=jsonpath={{{condition}.status}} {{{condition}.lastHeartbeatTime}}");
    kubectl.run(&["get", "node", &node.name, &path])
}

fn start_one(
    cluster: &Cluster,
    node: &Node,
    binaries: &Binaries,
    images: &[PathBuf],
    roots: &[PathBuf],
) -> Result<Process> {
    let spec = prepare(cluster, node, binaries, images)?;
    let file = node.dir.join("node.json");
    write_json(&file, &serde_json::to_value(&spec)?)?;
    // The namespaces are made by `unshare`, which becomes this program again, inside.
    let arguments = [
        "--mount",
        "--cgroup",
        "--propagation=private",
        "--",
        &this_program()?.display().to_string(),
        "cluster",
        "inside-node",
        &file.display().to_string(),
    ];
    Program {
        name: format!("node {}", node.name),
        executable: shell::which("unshare").context("unshare is not installed")?,
        arguments: arguments.map(str::to_owned).to_vec(),
        netns: node.netns.clone(),
        groups: cgroup::create(roots, &node_group(cluster, node))?,
        log: log_file(&node.log_dir(), "node"),
    }
    .start()
}

/// Writes the node's files and says what is to be done inside.
fn prepare(
    cluster: &Cluster,
    node: &Node,
    binaries: &Binaries,
    images: &[PathBuf],
) -> Result<Spec> {
    let dir = &node.dir;
    for folder in ["cni", "log", "containerd", inside::VAR_LIB, inside::VAR_LOG] {
        fs::create_dir_all(dir.join(folder))
            .with_context(|| format!("cannot create {}", dir.join(folder).display()))?;
    }
    let runc = shell::which("runc").context("runc is not installed")?;
    let containerd_config = dir.join("containerd.toml");
    fs::write(
        &containerd_config,
        config::containerd(node, binaries.dir(), &runc),
    )?;
    write_json(&dir.join("kubelet.json"), &config::kubelet(cluster, node))?;
    write_json(&dir.join("cni/10-pods.conflist"), &config::cni(node))?;
    let proxy_config = dir.join("kube-proxy.json");
    write_json(&proxy_config, &config::proxy(cluster, &node.name))?;
    let command = |name: &str, arguments: Vec<String>| Command {
        name: name.to_owned(),
        executable: binaries.program(name),
        arguments,
        log: log_file(&node.log_dir(), name),
    };
    Ok(Spec {
        dir: dir.clone(),
        hierarchies: cgroup::hierarchies()?,
        runtime: command(
            "containerd",
            vec![format!("--config={}", containerd_config.display())],
        ),
        ctr: binaries.program("ctr"),
        images: images.to_vec(),
        agents: vec![
            command(
                "kube-proxy",
                vec![format!("--config={}", proxy_config.display())],
            ),
            command("kubelet", config::kubelet_flags(cluster, node)),
        ],
    })
}
