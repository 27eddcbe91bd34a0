//! Upstream dranet's own end-to-end cases and examples: its manifests, from its module, with our driver.
//!
//! They apply as they are but for the kind of link: the kernel may have no dummies, so veths have their names.
//! What the pods run is a stand-in under the name of upstream's image. A case that cannot run here is
//! a row all the same, with what is missing.

use super::stage::Stage;
use super::world::{Node, World, ip};
use super::{Table, get, install, rolled_out, upstream, wait};
use crate::cluster;
use crate::shell;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the driver publishes meanwhile: the interfaces of the cases and no others, since some cases ask for
/// any of a type.
const PUBLISHED: &str = "virtual={dummy*,mlx5_6,pbr-*,vrf-*}";

/// Cases that need what is not here, whatever the driver can do.
const ELSEWHERE: [(&str, &str); 4] = [
    (
        "validate tc bpf filter attributes",
        "not published on purpose (docs/device-network.md, attributes): dra.net/ebpf, tcFilterNames",
    ),
    (
        "validate tcx bpf filter attributes",
        "not published on purpose: dra.net/ebpf, tcxProgramNames; and it fetches bpftool, which no package registry has",
    ),
    (
        "validate whereabouts cni integration",
        "needs whereabouts' image, which no package registry has",
    ),
    (
        "validate python webhook configuration integration",
        "needs an image with Python, which no package registry has",
    ),
];

/// Upstream's examples, and what of them this machine lacks.
const EXAMPLES: [(&str, &str); 10] = [
    ("alibaba_ack_examples/gpu-erdma", "GPUs, eRDMA"),
    ("aws_eks_examples/gpu-efa", "GPUs, EFA"),
    ("azure_aks_examples", "GPUs, RDMA"),
    ("demo_gke_multinetwork", "GCE's networks (cloudNetwork)"),
    ("demo_gke_rdma", "GPUs, RDMA"),
    ("demo_nvidia_dranet", "GPUs and their driver"),
    ("distributed_training", "GPUs, RDMA"),
    ("mpi_operator", "GPUs, the MPI operator"),
    ("nixl-kv-transfer", "GPUs, RDMA"),
    ("oci_oke_examples", "GPUs, RDMA"),
];

/// Runs them.
pub(super) fn run(world: &World<'_>, table: &mut Table) {
    if !CASES.iter().any(|case| table.wants(&row(case.name))) {
        return;
    }
    let made = upstream::folder().and_then(|folder| {
        let archive = folder_of_bed(world)?.join("agnhost.tar");
        cluster::pack_agnhost(&archive)?;
        world.bed.import(&[archive])?;
        install(world.bed, &[PUBLISHED])?;
        rolled_out(world.bed)?;
        // Cases that ask for any NIC of a type are not to get one of these.
        for node in &world.nodes {
            wait(&format!("no NIC of {} to be published", node.name), || {
                Ok(world.devices(node)?.is_empty().then_some(()))
            })?;
        }
        Ok(folder)
    });
    let folder = match made {
        Ok(folder) => folder,
        Err(error) => return table.skip(&row("all"), &format!("{error:#}")),
    };
    let [one, two] = &world.nodes[..] else { return };
    let stage = Stage {
        world,
        node: one,
        other: two,
        tests: folder.join("tests/manifests"),
    };
    for case in &CASES {
        stage.run(table, case);
    }
    for (name, reason) in ELSEWHERE {
        table.skip(&row(name), reason);
    }
    table.check(
        "upstream's examples have parameters that are accepted",
        || lint(world, &folder.join("examples")),
    );
    for (name, lacks) in EXAMPLES {
        table.skip(
            &format!("upstream's example {name}"),
            &format!("no {lacks} here"),
        );
    }
    table.check("upstream's cases leave the nodes as they were", || {
        install(world.bed, &[])?;
        rolled_out(world.bed)?;
        Ok("the driver publishes its own NICs again".to_owned())
    });
}

/// What a case is called among the checks.
pub(super) fn row(case: &str) -> String {
    format!("upstream: {case}")
}

/// A folder of the bed's that may be written to.
fn folder_of_bed(world: &World<'_>) -> Result<PathBuf> {
    let logs = world.nodes.first().map(|node| node.logs.clone());
    logs.context("no node")
}

/// Every manifest below a folder is held against what the driver accepts.
fn lint(world: &World<'_>, folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    let mut configurations = 0_u32;
    for file in &files {
        // That of a chart: what is below `parameters` there is no configuration.
        if file.ends_with("values.yaml") {
            continue;
        }
        let said = lint_one(world, file)?;
        let last = said.lines().last().unwrap_or_default();
        configurations += last
            .split(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
    }
    Ok(format!(
        "{} manifests, {configurations} configurations",
        files.len()
    ))
}

/// Holds a manifest against what the driver accepts.
pub(super) fn lint_one(world: &World<'_>, file: &Path) -> Result<String> {
    shell::capture(
        Command::new(&world.program)
            .args(["node", "lint"])
            .arg(file),
    )
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// A case of upstream's suite.
pub(super) struct Case {
    /// As upstream names it.
    pub(super) name: &'static str,
    pub(super) manifest: &'static str,
    /// Links that it makes.
    pub(super) links: &'static [Link],
    /// A kind of link that it needs besides.
    pub(super) needs: Option<&'static str>,
    pub(super) check: fn(&Stage<'_>) -> Result<String>,
}

/// A veth of a case: its name, that of its other end, and an address, all on the first node.
type Link = (&'static str, &'static str, &'static str);

const fn case(
    name: &'static str,
    manifest: &'static str,
    links: &'static [Link],
    check: fn(&Stage<'_>) -> Result<String>,
) -> Case {
    Case {
        name,
        manifest,
        links,
        needs: None,
        check,
    }
}

/// Those of `tests/e2e.bats`, in its order.
const CASES: [Case; 17] = [
    case(
        "dummy interface with IP addresses ResourceClaim",
        "resourceclaim.yaml",
        &[("dummy0", "peer0", "")],
        address_of_claim,
    ),
    case(
        "dummy interface with IP addresses ResourceClaim and normalized name",
        "resourceclaim.yaml",
        &[("mlx5_6", "peer0", "")],
        address_of_claim,
    ),
    case(
        "dummy interface with IP addresses ResourceClaimTemplate",
        "resourceclaimtemplate.yaml",
        &[("dummy0", "peer0", "169.254.169.14/32")],
        |stage| stage.has_address("app=MyApp", "dummy0", "169.254.169.14"),
    ),
    case(
        "dummy interface with IP addresses ResourceClaim and routes",
        "resourceclaim_route.yaml",
        &[("dummy0", "peer0", "")],
        |stage| {
            stage.has_address("app=pod", "eth99", "169.254.169.13")?;
            stage.shows(
                "app=pod",
                &["route", "show"],
                "169.254.169.0/24 via 169.254.169.1",
            )
        },
    ),
    case(
        "test metric server is up and operating on host",
        "deviceclass.yaml",
        &[],
        |stage| {
            let page = super::measure::page(stage.node)?;
            ensure!(
                page.contains("process_start_time_seconds"),
                "it has no process_start_time_seconds"
            );
            Ok("process_start_time_seconds is on the page".to_owned())
        },
    ),
    case(
        "validate advanced network configurations with dummy",
        "resourceclaim_advanced.yaml",
        &[("dummy0", "peer0", "")],
        |stage| {
            stage.has_address("app=pod", "dranet0", "169.254.169.14/24")?;
            stage.shows("app=pod", &["link", "show", "dranet0"], "mtu 4321")?;
            stage.shows("app=pod", &["link", "show", "dranet0"], "00:11:22:33:44:55")?;
            stage.features(
                "app=pod",
                "dranet0",
                &[("tx-tcp-segmentation", false), ("rx-gro", false)],
            )
        },
    ),
    case(
        "validate big tcp network configurations on dummy interface",
        "resourceclaim_bigtcp.yaml",
        &[("dummy0", "peer0", "")],
        |stage| {
            let mut expected = vec!["mtu 8896", "gso_max_size 65536", "gro_max_size 65536"];
            // Older ones of iproute2 do not tell; the driver has read it back all the same.
            let tells = ip(&stage.node.netns, &["-d", "link", "show", "lo"])?;
            let tells = tells.contains("gso_ipv4_max_size");
            if tells {
                expected.extend(["gso_ipv4_max_size 65536", "gro_ipv4_max_size 65536"]);
            }
            for expected in expected {
                stage.shows("app=bigtcp", &["-d", "link", "show", "dranet1"], expected)?;
            }
            let features = [("tx-tcp-segmentation", true), ("rx-gro", true)];
            let seen = stage.features("app=bigtcp", "dranet1", &features)?;
            let not = if tells {
                ""
            } else {
                "; this machine's ip does not tell the sizes for IPv4"
            };
            Ok(format!("{seen}{not}"))
        },
    ),
    case(
        "validate bpf programs are removed",
        "resourceclaim_disable_ebpf.yaml",
        &[("dummy0", "peer0", "")],
        |stage| {
            let filters = stage.in_pod(
                "app=pod",
                &["tc", "filter", "show", "dev", "dummy0", "ingress"],
            )?;
            ensure!(
                !filters.contains("dummy_bpf.o"),
                "there still is: {filters}"
            );
            Ok(
                "the filter of tc is gone in the pod; that of tcx needs bpftool, which is not here"
                    .to_owned(),
            )
        },
    ),
    case(
        "2 dummy interfaces with IP addresses ResourceClaimTemplate",
        "resourceclaimtemplate_double.yaml",
        &[
            ("dummy0", "peer0", "169.254.169.13/32"),
            ("dummy1", "peer1", "169.254.169.14/32"),
        ],
        |stage| {
            stage.has_address("app=MyApp", "dummy0", "169.254.169.13")?;
            stage.has_address("app=MyApp", "dummy1", "169.254.169.14")
        },
    ),
    case(
        "reapply pod with dummy resource claim",
        "repeatresourceclaimtemplate.yaml",
        &[("dummy8", "peer0", "169.254.169.14/32")],
        |stage| {
            stage.has_address("app=reapplyApp", "dummy8", "169.254.169.14")?;
            stage.remove("repeatresourceclaimtemplate.yaml")?;
            // Upstream has to give the address again here.
            stage.apply("repeatresourceclaimtemplate.yaml")?;
            stage.has_address("app=reapplyApp", "dummy8", "169.254.169.14")?;
            Ok("twice, and the address came back by itself".to_owned())
        },
    ),
    case(
        "driver should gracefully shutdown when terminated",
        "deviceclass.yaml",
        &[],
        sockets_go,
    ),
    case(
        "unprepare claims on driver restart after pod deletion during driver downtime",
        "resourceclaim.yaml",
        &[("dummy-downtime", "peer0", "")],
        unprepared_later,
    ),
    case(
        "permanent neighbor entry is copied to pod namespace",
        "resourceclaim.yaml",
        &[("dummy-neigh", "peer0", "169.254.169.15/32")],
        |stage| {
            stage.shows(
                "app=pod",
                &["neigh", "show"],
                "192.168.1.1 dev eth99 lladdr 00:11:22:33:44:55 PERM",
            )?;
            stage.shows(
                "app=pod",
                &["neigh", "show"],
                "2001:db8::1 dev eth99 lladdr 00:aa:bb:cc:dd:ee PERM",
            )
        },
    ),
    case(
        "route rules and routes with non-default table are copied to pod namespace",
        "resourceclaim.yaml",
        &[("dummy-rules", "peer0", "169.254.169.13/24")],
        |stage| {
            stage.shows(
                "app=pod",
                &["route", "show", "table", "100"],
                "10.10.10.0/24 via 169.254.169.1 dev eth99",
            )?;
            stage.shows(
                "app=pod",
                &["rule", "show"],
                "from 10.20.30.0/24 lookup 100",
            )
        },
    ),
    case(
        "dummy interface with IPv6 subnet route",
        "resourceclaim_ipv6_subnet.yaml",
        &[("dummy-ipv6", "peer0", "fd36::3:0:e:0:0/96")],
        |stage| {
            let routes = stage.in_pod("app=pod-ipv6", &["ip", "-6", "route", "show"])?;
            ensure!(
                routes.contains("fd36::3:0:e:0:0/96 dev dummy-ipv6 proto kernel metric 256"),
                "{routes}"
            );
            ensure!(
                !routes.contains("fd36::3:0:e:0:0/96 dev dummy-ipv6 metric 1024"),
                "{routes}"
            );
            Ok("the kernel's route and no other".to_owned())
        },
    ),
    case(
        "validate pbr configuration",
        "resourceclaim_pbr.yaml",
        &[
            ("pbr-test-pod-1", "pbr-rtr-1", ""),
            ("pbr-test-pod-2", "pbr-rtr-2", ""),
        ],
        |stage| {
            for label in ["app=pod-pbr-router", "app=pod-pbr-2"] {
                stage.pod(label)?;
            }
            stage.pings("app=pod-pbr-1", &["192.168.200.10"])
        },
    ),
    Case {
        name: "validate vrf routing",
        manifest: "resourceclaim_vrf.yaml",
        links: &[
            ("vrf-test-pod-1", "vrf-rtr-1", ""),
            ("vrf-test-pod-2", "vrf-rtr-2", ""),
        ],
        needs: Some("vrf"),
        check: |stage| {
            for label in ["app=pod-vrf-router", "app=pod-vrf-2"] {
                stage.pod(label)?;
            }
            stage.pings("app=pod-vrf-1", &["-I", "eth1", "10.10.20.1"])
        },
    },
];

fn address_of_claim(stage: &Stage<'_>) -> Result<String> {
    stage.has_address("app=pod", "eth99", "169.254.169.13")?;
    let claim = "dummy-interface-static-ip";
    wait("the claim's status", || {
        let claim = get(stage.world.bed, &["resourceclaim", claim])?;
        let ips = claim["status"]["devices"][0]["networkData"]["ips"].to_string();
        Ok(ips.contains("169.254.169.13").then_some(()))
    })?;
    Ok("169.254.169.13 on eth99 and in the claim's status".to_owned())
}

/// On the node without the driver its sockets are gone, on the other they are there.
fn sockets_go(stage: &Stage<'_>) -> Result<String> {
    let sockets = |node: &Node| -> Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in ["plugins_registry", "plugins/dra.net"] {
            // A folder may go with its last socket.
            let entries = fs::read_dir(node.inside(&format!("/var/lib/kubelet/{folder}"))?);
            let entries = entries.into_iter().flatten();
            names.extend(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()));
        }
        names.retain(|name| name.ends_with(".sock"));
        Ok(names)
    };
    stage.without_driver(|| {
        let left = sockets(stage.node)?;
        ensure!(left.is_empty(), "still there: {left:?}");
        let there = sockets(stage.other)?;
        ensure!(there.len() == 2, "on the other node: {there:?}");
        Ok(())
    })?;
    Ok("no socket on the node that it left, two on the other".to_owned())
}

fn unprepared_later(stage: &Stage<'_>) -> Result<String> {
    let bed = stage.world.bed;
    let pod = stage.pod("app=pod")?;
    let claim = get(bed, &["resourceclaim", "dummy-interface-static-ip"])?;
    let uid = claim["metadata"]["uid"]
        .as_str()
        .context("no UID")?
        .to_owned();
    let known = || -> Result<bool> {
        let mut files = Vec::new();
        everything(&stage.node.inside("/var/lib/forebay")?, &mut files);
        Ok(files.iter().any(|file| file.contains(&uid)))
    };
    stage.without_driver(|| {
        bed.kubectl(&["delete", "pod", &pod, "--force", "--grace-period=0"])?;
        ensure!(
            known()?,
            "the ledger does not know the claim while there is no driver"
        );
        Ok(())
    })?;
    wait("the ledger to forget the claim", || {
        Ok((!known()?).then_some(()))
    })?;
    wait("the NIC to be on the node", || {
        Ok(stage.node.link("dummy-downtime").map(drop))
    })?;
    Ok("the claim is forgotten and the NIC is back".to_owned())
}

/// Paths of all files below a folder.
fn everything(folder: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        files.push(path.display().to_string());
        if path.is_dir() {
            everything(&path, files);
        }
    }
}
