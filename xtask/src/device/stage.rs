//! Where a case of upstream's takes place: its links, its manifests, and looks into its pods.

use super::cases::{Case, lint_one, row};
use super::objects::exec;
use super::world::{Node, World, ip, sandbox_of};
use super::{DRIVERS, NAMESPACE, Table, get, gone, rolled_out, wait};
use crate::shell;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Where a case takes place.
pub(super) struct Stage<'a> {
    pub(super) world: &'a World<'a>,
    /// Where links and pods are.
    pub(super) node: &'a Node,
    pub(super) other: &'a Node,
    /// Folder of upstream's manifests.
    pub(super) tests: PathBuf,
}

impl Stage<'_> {
    pub(super) fn run(&self, table: &mut Table, case: &Case) {
        let name = row(case.name);
        if !table.wants(&name) {
            return;
        }
        if let Some(kind) = case
            .needs
            .filter(|kind| self.world.missing().contains(kind))
        {
            return table.skip(&name, &format!("this kernel has no links of type {kind}"));
        }
        let file = self.tests.join(case.manifest);
        if let Err(error) = lint_one(self.world, &file) {
            return table.refuse(&name, &format!("{error:#}"));
        }
        table.check(&name, || {
            self.links(case)?;
            self.apply("deviceclass.yaml")?;
            self.apply(case.manifest)?;
            let checked = (case.check)(self);
            self.remove(case.manifest)?;
            for (link, ..) in case.links {
                wait(&format!("{link} to be on the node again"), || {
                    Ok(self.node.link(link).map(drop))
                })?;
                ip(&self.node.netns, &["link", "del", link])?;
            }
            // Rules belong to no link.
            let _ = ip(&self.node.netns, &["rule", "del", "priority", "500"]);
            checked
        });
    }

    /// The links of a case, and what upstream's case gives them.
    fn links(&self, case: &Case) -> Result<()> {
        let ours = |words: &str| ip(&self.node.netns, &words.split(' ').collect::<Vec<_>>());
        for (link, peer, address) in case.links {
            // What a run before this one left.
            let _ = ours(&format!("link del {link}"));
            ours(&format!("link add {link} type veth peer name {peer}"))?;
            ours(&format!("link set {peer} up"))?;
            ours(&format!("link set {link} up"))?;
            if !address.is_empty() {
                ours(&format!("addr add {address} dev {link}"))?;
            }
            match *link {
                "dummy-neigh" => {
                    ours(
                        "neigh add 192.168.1.1 lladdr 00:11:22:33:44:55 dev dummy-neigh nud permanent",
                    )?;
                    ours(
                        "-6 neigh add 2001:db8::1 lladdr 00:aa:bb:cc:dd:ee dev dummy-neigh nud permanent",
                    )?;
                }
                "dummy-rules" => {
                    ours("route add 10.10.10.0/24 via 169.254.169.1 dev dummy-rules table 100")?;
                    ours("rule add from 10.20.30.0/24 table 100 priority 500")?;
                }
                _ => {}
            }
        }
        if case.manifest == "resourceclaim_disable_ebpf.yaml" {
            let program = self.tests.with_file_name("dummy_bpf.o");
            let netns = self.node.netns.as_str();
            let tc = |words: &str| {
                let mut tc = Command::new("tc");
                shell::capture(tc.args(["-n", netns]).args(words.split(' ')))
            };
            tc("qdisc add dev dummy0 clsact")?;
            tc(&format!(
                "filter add dev dummy0 ingress bpf direct-action obj {} sec classifier",
                program.display()
            ))?;
        }
        Ok(())
    }

    /// A manifest as it is, but for the kind of link.
    fn manifest(&self, file: &str) -> Result<String> {
        let path = self.tests.join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.replace(".type == \"dummy\"", ".type == \"veth\""))
    }

    pub(super) fn apply(&self, file: &str) -> Result<()> {
        self.world
            .bed
            .feed(&["apply", "-f", "-"], self.manifest(file)?.as_bytes())
    }

    /// What a manifest made, away; classes stay.
    pub(super) fn remove(&self, file: &str) -> Result<()> {
        if file == "deviceclass.yaml" {
            return Ok(());
        }
        // Some pods wait in a program that does not hear that it is to end.
        let delete = [
            "delete",
            "--ignore-not-found",
            "--timeout=90s",
            "--grace-period=1",
            "-f",
            "-",
        ];
        self.world
            .bed
            .feed(&delete, self.manifest(file)?.as_bytes())?;
        wait("the pods and claims of the case to be gone", || {
            let left = self
                .world
                .bed
                .kubectl(&["get", "pods,resourceclaims", "-o", "name"])?;
            Ok((!left.contains('/')).then_some(()))
        })
    }

    /// Name of the pod with a label, when it is ready.
    pub(super) fn pod(&self, label: &str) -> Result<String> {
        let mut events = String::new();
        wait(&format!("a pod {label} to be ready"), || {
            let pods = get(self.world.bed, &["pods", "-l", label])?;
            let pod = &pods["items"][0];
            let conditions = pod["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let is_ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
            let gone = !pod["metadata"]["deletionTimestamp"].is_null();
            if conditions.iter().any(is_ready) && !gone {
                return Ok(pod["metadata"]["name"].as_str().map(str::to_owned));
            }
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            events = self.events(name)?;
            Ok(None)
        })
        .with_context(|| events)
    }

    /// The last that went wrong with a pod.
    fn events(&self, pod: &str) -> Result<String> {
        let field = format!("--field-selector=type=Warning,involvedObject.name={pod}");
        let list = get(
            self.world.bed,
            &["events", "--sort-by=.lastTimestamp", &field],
        )?;
        let events = list["items"].as_array().into_iter().flatten();
        let told = events.filter_map(|event| {
            let reason = event["reason"].as_str()?;
            Some(format!("{reason}: {}", event["message"].as_str()?))
        });
        // The bed has no name server, which every pod that would use it is told.
        let told: Vec<String> = told
            .filter(|event| !event.starts_with("MissingClusterDNS"))
            .collect();
        let last = told.len().saturating_sub(3);
        Ok(told[last..].join(" / "))
    }

    /// What a program of the machine prints in the network of a pod: the tools of the pod know less.
    pub(super) fn in_pod(&self, label: &str, command: &[&str]) -> Result<String> {
        let pod = self.pod(label)?;
        let pod = get(self.world.bed, &["pod", &pod])?;
        let sandbox = sandbox_of(pod["metadata"]["uid"].as_str().context("no UID")?)?;
        let target = format!("--target={sandbox}");
        shell::capture(
            Command::new("nsenter")
                .args([&target, "--net", "--"])
                .args(command),
        )
    }

    pub(super) fn shows(&self, label: &str, words: &[&str], expected: &str) -> Result<String> {
        let shown = self.in_pod(label, &[&["ip"], words].concat())?;
        ensure!(
            shown.contains(expected),
            "ip {} has no {expected}: {shown}",
            words.join(" ")
        );
        Ok(expected.to_owned())
    }

    pub(super) fn has_address(
        &self,
        label: &str,
        interface: &str,
        address: &str,
    ) -> Result<String> {
        self.shows(label, &["addr", "show", interface], address)?;
        wait("the address in the status of a claim", || {
            let claims = self
                .world
                .bed
                .kubectl(&["get", "resourceclaims", "-o", "yaml"])?;
            Ok(claims
                .contains(address.split('/').next().unwrap_or(address))
                .then_some(()))
        })?;
        Ok(format!(
            "{address} on {interface} and in the claim's status"
        ))
    }

    /// Features of an interface, where the machine has ethtool to look with.
    pub(super) fn features(
        &self,
        label: &str,
        interface: &str,
        expected: &[(&str, bool)],
    ) -> Result<String> {
        if shell::which("ethtool").is_none() {
            return Ok(
                "features as the driver verified them: this machine has no ethtool".to_owned(),
            );
        }
        let shown = self.in_pod(label, &["ethtool", "-k", interface])?;
        for (name, on) in expected {
            let line = format!("{name}: {}", if *on { "on" } else { "off" });
            ensure!(shown.contains(&line), "no {line}: {shown}");
        }
        Ok("addresses, MTU and features".to_owned())
    }

    pub(super) fn pings(&self, label: &str, words: &[&str]) -> Result<String> {
        let pod = self.pod(label)?;
        let said = exec(
            self.world.bed,
            &pod,
            &[&["ping", "-c", "2", "-W", "2"], words].concat(),
        )?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        Ok("no packet lost".to_owned())
    }

    /// Does something while the first node has no driver, and has it come back.
    pub(super) fn without_driver(&self, what: impl FnOnce() -> Result<()>) -> Result<()> {
        let bed = self.world.bed;
        let label = "forebay.dev/device-network";
        bed.kubectl(&["label", "node", &self.node.name, &format!("{label}-")])?;
        let field = format!("--field-selector=spec.nodeName={}", self.node.name);
        let done = gone(
            bed,
            "the driver to leave the node",
            &["-l", DRIVERS, &field],
        )
        .and_then(|()| what());
        bed.kubectl(&["label", "node", &self.node.name, &format!("{label}=true")])?;
        wait("the driver to be told to come back", || {
            let set = get(bed, &["-n", NAMESPACE, super::DAEMON_SET])?;
            Ok((set["status"]["desiredNumberScheduled"] == 2).then_some(()))
        })?;
        rolled_out(bed)?;
        done
    }
}
