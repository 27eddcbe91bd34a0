//! NICs for the nodes of a bed: the ends of veth pairs whose other ends are on a bridge per rail, so that pods
//! on two nodes can talk over them, a macvlan and an ifb. And what there is on a node, seen from outside.

use super::{Bed, get, wait};
use crate::bed::BedNode;
use crate::shell;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rails of a node.
pub(super) const RAILS: usize = 8;
/// What the driver publishes of a node.
pub(super) const PUBLISHED: [&str; 3] = ["rail*", "mv0", "fb7"];
/// Kinds of links that claims of others use, and that a kernel may lack.
const KINDS: [&str; 10] = [
    "veth", "macvlan", "ifb", "vxlan", "bridge", "dummy", "ipvlan", "vlan", "vrf", "bond",
];

/// A node of the bed.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) netns: String,
    pub(super) address: String,
    /// Folder of the logs of its programs.
    pub(super) logs: PathBuf,
    number: usize,
}

/// The bed with its NICs.
pub(super) struct World<'a> {
    pub(super) bed: &'a Bed,
    pub(super) nodes: Vec<Node>,
    /// The Forebay that is tested.
    pub(super) program: PathBuf,
    missing: Vec<&'static str>,
}

impl<'a> World<'a> {
    /// Makes the NICs, anew where they are there.
    pub(super) fn make(bed: &'a Bed, program: &Path) -> Result<World<'a>> {
        let (cluster, nodes) = bed.namespaces()?;
        let node = |(number, node): (usize, BedNode)| Node {
            name: node.name,
            netns: node.netns,
            address: node.address,
            logs: node.logs,
            number: number + 1,
        };
        let nodes: Vec<Node> = nodes.into_iter().enumerate().map(node).collect();
        if nodes.len() != 2 {
            bail!(
                "bed {} has {} nodes and is to have 2",
                bed.name(),
                nodes.len()
            );
        }
        for rail in 0..RAILS {
            let bridge = format!("railbr{rail}");
            if ip(&cluster, &["link", "show", &bridge]).is_err() {
                ip(&cluster, &["link", "add", &bridge, "type", "bridge"])?;
                ip(&cluster, &["link", "set", &bridge, "up"])?;
            }
        }
        for node in &nodes {
            node.make(&cluster)?;
        }
        Ok(World {
            bed,
            program: program.to_owned(),
            missing: missing(&cluster)?,
            nodes,
        })
    }

    /// Makes the NICs anew, as they were at first. No pod may have one.
    pub(super) fn renew(&self) -> Result<()> {
        let (cluster, _) = self.bed.namespaces()?;
        for node in &self.nodes {
            let rails = (0..RAILS).map(|rail| format!("rail{rail}"));
            for name in rails.chain(["mv0", "mvp", "fb7"].map(str::to_owned)) {
                // What is not there need not go.
                let _ = ip(&node.netns, &["link", "del", &name]);
            }
            node.make(&cluster)?;
        }
        Ok(())
    }

    /// Kinds of links that the kernel lacks.
    pub(super) fn missing(&self) -> &[&'static str] {
        &self.missing
    }

    /// The devices that a node publishes.
    pub(super) fn devices(&self, node: &Node) -> Result<Vec<Value>> {
        let selector = format!(
            "--field-selector=spec.nodeName={},spec.driver=dra.net",
            node.name
        );
        let list = get(self.bed, &["resourceslices", &selector])?;
        let slices = list["items"].as_array().context("no list")?;
        let devices = slices
            .iter()
            .filter_map(|slice| slice["spec"]["devices"].as_array());
        Ok(devices.flatten().cloned().collect())
    }
}

/// Kinds that cannot be made in a namespace.
fn missing(netns: &str) -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for kind in KINDS {
        let mut words = vec!["link", "add", "probe0"];
        match kind {
            "macvlan" | "ipvlan" => words.extend(["link", "railbr0", "type", kind]),
            "vlan" => words.extend(["link", "railbr0", "type", kind, "id", "7"]),
            "vxlan" => words.extend(["type", kind, "id", "7", "dstport", "4789"]),
            "vrf" => words.extend(["type", kind, "table", "77"]),
            _ => words.extend(["type", kind]),
        }
        match ip(netns, &words) {
            Ok(_) => drop(ip(netns, &["link", "del", "probe0"])?),
            Err(_) => missing.push(kind),
        }
    }
    Ok(missing)
}

/// `ip` in a namespace.
pub(super) fn ip(netns: &str, words: &[&str]) -> Result<String> {
    shell::capture(Command::new("ip").args(["-n", netns]).args(words))
}

impl Node {
    /// The address that this node's end of a rail has.
    pub(super) fn rail_address(&self, rail: usize) -> String {
        format!("10.60.{rail}.{}", self.number)
    }

    fn make(&self, cluster: &str) -> Result<()> {
        let netns = &self.netns;
        let ours = |words: &[&str]| ip(netns, words);
        for rail in 0..RAILS {
            let (name, port) = (format!("rail{rail}"), format!("n{}rail{rail}", self.number));
            if ours(&["link", "show", &name]).is_ok() {
                continue;
            }
            let pair = [
                "link", "add", &name, "netns", netns, "type", "veth", "peer", "name", &port,
            ];
            ip(cluster, &pair)?;
            ip(
                cluster,
                &[
                    "link",
                    "set",
                    &port,
                    "master",
                    &format!("railbr{rail}"),
                    "up",
                ],
            )?;
            let address = format!("{}/24", self.rail_address(rail));
            ours(&["addr", "add", &address, "dev", &name])?;
            ours(&["link", "set", &name, "up"])?;
        }
        if ours(&["link", "show", "mv0"]).is_err() {
            let port = format!("n{}mvp", self.number);
            let pair = [
                "link", "add", "mvp", "netns", netns, "type", "veth", "peer", "name", &port,
            ];
            ip(cluster, &pair)?;
            ip(cluster, &["link", "set", &port, "up"])?;
            ours(&["link", "set", "mvp", "up"])?;
            ours(&[
                "link", "add", "mv0", "link", "mvp", "type", "macvlan", "mode", "bridge",
            ])?;
            ours(&[
                "addr",
                "add",
                &format!("10.61.0.{}/24", self.number),
                "dev",
                "mv0",
            ])?;
            ours(&["link", "set", "mv0", "up"])?;
        }
        if ours(&["link", "show", "fb7"]).is_err() {
            ours(&["link", "add", "fb7", "type", "ifb"])?;
        }
        Ok(())
    }

    /// How an interface of the node is: what has to be the same after it was away. None if it is away.
    pub(super) fn link(&self, name: &str) -> Option<String> {
        let text = ip(&self.netns, &["-j", "-d", "addr", "show", "dev", name]).ok()?;
        let read: Value = serde_json::from_str(&text).ok()?;
        let link = &read[0];
        let up = link["flags"]
            .as_array()
            .is_some_and(|flags| flags.iter().any(|f| f == "UP"));
        let addresses = link["addr_info"].as_array().into_iter().flatten();
        // What the kernel gives by itself is there some time after a link is up.
        let addresses = addresses.filter(|address| address["scope"] != "link");
        let addresses: Vec<String> = addresses
            .map(|address| format!("{}/{}", address["local"], address["prefixlen"]))
            .collect();
        let routes = ip(&self.netns, &["route", "show", "dev", name]).unwrap_or_default();
        Some(format!(
            "{} mtu {} {} up={up} {addresses:?} {}",
            link["ifname"],
            link["mtu"],
            link["address"],
            routes.trim()
        ))
    }

    /// Waits until an interface is on the node as it was.
    pub(super) fn wait_back(&self, name: &str, before: &str) -> Result<()> {
        let mut last = None;
        wait(
            &format!("{name} on {} as it was ({before})", self.name),
            || {
                last = self.link(name);
                Ok((last.as_deref() == Some(before)).then_some(()))
            },
        )
        .with_context(|| format!("it is: {last:?}"))
    }

    /// The driver's process on this node, once there is exactly one.
    pub(super) fn driver(&self) -> Result<u32> {
        self.process("driver", |words| {
            words.len() > 3
                && words[0].ends_with(b"forebay")
                && words[1..3] == [&b"node"[..], b"run"]
        })
    }

    /// A process on this node that has these words, once there is exactly one.
    pub(super) fn process(&self, what: &str, is: impl Fn(&[&[u8]]) -> bool) -> Result<u32> {
        wait(&format!("one {what} on {}", self.name), || {
            match self.processes(&is)?[..] {
                [pid] => Ok(Some(pid)),
                _ => Ok(None),
            }
        })
    }

    /// The processes on this node that have these words.
    pub(super) fn processes(&self, is: impl Fn(&[&[u8]]) -> bool) -> Result<Vec<u32>> {
        let mut pids = ip_pids(&self.netns)?;
        pids.retain(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            is(&line.split(|byte| *byte == 0).collect::<Vec<_>>())
        });
        Ok(pids)
    }

    /// One of the node's own programs.
    pub(super) fn program(&self, name: &str) -> Result<u32> {
        let ending = format!("/{name}");
        self.process(name, |words| words[0].ends_with(ending.as_bytes()))
    }

    /// The process that the node's namespaces belong to.
    pub(super) fn init(&self) -> Result<u32> {
        self.process("init", |words| words.contains(&&b"inside-node"[..]))
    }

    /// A path of the node, seen from the machine.
    pub(super) fn inside(&self, path: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root{path}", self.init()?)))
    }
}

fn ip_pids(netns: &str) -> Result<Vec<u32>> {
    let text = shell::capture(Command::new("ip").args(["netns", "pids", netns]))?;
    Ok(text
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect())
}

/// The process that holds the sandbox of a pod.
pub(super) fn sandbox_of(uid: &str) -> Result<u32> {
    let entries = fs::read_dir("/proc").context("no /proc")?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let of_pod = |pid: &u32| {
        let read = |file: &str| {
            fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(file))
                .unwrap_or_default()
        };
        read("comm").trim() == "pause" && read("cgroup").contains(uid)
    };
    let mut found = pids.filter(of_pod);
    found
        .next()
        .with_context(|| format!("pod {uid} has no sandbox"))
}

/// Ends a process without warning.
pub(super) fn kill(pid: u32) -> Result<()> {
    signal(pid, Signal::KILL)
}

/// Sends a signal to a process.
pub(super) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let pid = pid.context("no process id")?;
    rustix::process::kill_process(pid, signal).context("it is not there")
}
