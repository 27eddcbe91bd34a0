//! What is installed, and what is done to it.

use super::address;
use crate::bed::{BED_IMAGE, Bed, with_image};
use crate::shell;
use anyhow::{Context, Result};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The model that the demo's servers have.
pub(super) const MODEL: &str = "llama-3.1-8b";
/// Where the demo lies.
const DEMO: &str = "forebay-demo";
/// Where Forebay lies.
const SYSTEM: &str = "forebay-system";
/// How long a rollout may take.
const PATIENCE: &str = "--timeout=180s";
/// How long the load runs before anything happens, and between things.
const CALM: Duration = Duration::from_secs(10);

/// A disturbance.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Nothing,
    RollServers,
    RollGateway,
    ScaleUp,
    ScaleDown,
    KillGateway,
    LoseNode,
    RegainNode,
    LoseGateway,
}

/// In this order. Lost nodes come last: what runs there is given up only after a while.
pub(super) const ALL: [Step; 9] = [
    Step::Nothing,
    Step::RollServers,
    Step::RollGateway,
    Step::ScaleUp,
    Step::ScaleDown,
    Step::KillGateway,
    Step::LoseNode,
    Step::RegainNode,
    Step::LoseGateway,
];

impl Step {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing happens",
            Self::RollServers => "model servers roll over",
            Self::RollGateway => "gateway rolls over (2 replicas)",
            Self::ScaleUp => "servers 2 -> 20",
            Self::ScaleDown => "servers 20 -> 2",
            Self::KillGateway => "a gateway is killed (1 of 2)",
            Self::LoseNode => "a node of servers is lost",
            Self::RegainNode => "the node is back",
            Self::LoseGateway => "a gateway's node is lost",
        }
    }

    /// Whether a request that fails in it before it streams breaks the promise. Packets to a node
    /// that is gone are answered by nobody, so who is connected to a gateway there can only run
    /// into a limit of its own; and kube-proxy sends new connections there until the node is
    /// declared lost.
    pub(super) fn is_promised(self) -> bool {
        !matches!(self, Self::LoseGateway)
    }

    pub(super) fn run(self, bed: &Bed) -> Result<()> {
        match self {
            Self::Nothing => std::thread::sleep(CALM),
            Self::RollServers => roll(bed, DEMO, "deployment/model-server")?,
            Self::RollGateway => roll(bed, SYSTEM, "deployment/forebay")?,
            Self::ScaleUp => {
                scale(bed, 2)?;
                scale(bed, 20)?;
            }
            Self::ScaleDown => scale(bed, 2)?,
            Self::KillGateway => {
                let pods = pods(bed, SYSTEM, "metadata.name")?;
                let pod = pods.first().context("no gateway runs")?;
                bed.kubectl(&[
                    "delete",
                    "pod",
                    pod,
                    "-n",
                    SYSTEM,
                    "--force",
                    "--grace-period=0",
                ])?;
                status(bed, SYSTEM, "deployment/forebay")?;
            }
            Self::LoseNode => {
                scale(bed, 6)?;
                lose(bed, &node(bed, false)?)?;
            }
            Self::RegainNode => {
                let node = lost_node(bed)?;
                cluster(bed, &["start-node", &node])?;
                wait_for(bed, &node, "Ready")?;
                std::thread::sleep(CALM);
            }
            Self::LoseGateway => lose(bed, &node(bed, true)?)?,
        }
        Ok(())
    }
}

/// Brings Forebay and the demo up; where the Gateway listens.
pub(super) fn install(bed: &Bed, program: &Path) -> Result<SocketAddr> {
    bed.load(&[], program)?;
    bed.install_definitions(&gateway_api()?)?;
    bed.install_forebay(&[])?;
    bed.wait_gone(SYSTEM)?;
    let file = shell::root().join("deploy/demo/demo.yaml");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let manifest = with_image(&text, BED_IMAGE)
        .with_context(|| format!("{}: no image to replace", file.display()))?;
    bed.apply(&manifest)?;
    status(bed, DEMO, "deployment/model-server")?;
    let programmed = ["wait", "gateway/demo", "-n", DEMO, PATIENCE];
    bed.kubectl(&[&programmed[..], &["--for=condition=Programmed"]].concat())?;
    let path = "jsonpath={.status.addresses[0].value}";
    let found = bed.kubectl(&["get", "gateway/demo", "-n", DEMO, "-o", path])?;
    address(&found)
}

/// The folder of the standard's definitions, which come with its Go module.
fn gateway_api() -> Result<PathBuf> {
    crate::conformance::gateway_api().map(|module| module.join("config/crd/standard"))
}

fn roll(bed: &Bed, namespace: &str, what: &str) -> Result<()> {
    bed.kubectl(&["rollout", "restart", what, "-n", namespace])?;
    status(bed, namespace, what)?;
    bed.wait_gone(namespace)
}

fn scale(bed: &Bed, replicas: u32) -> Result<()> {
    let what = "deployment/model-server";
    let replicas = format!("--replicas={replicas}");
    bed.kubectl(&["scale", what, "-n", DEMO, &replicas])?;
    status(bed, DEMO, what)?;
    bed.wait_gone(DEMO)
}

fn status(bed: &Bed, namespace: &str, what: &str) -> Result<()> {
    bed.kubectl(&["rollout", "status", what, "-n", namespace, PATIENCE])
        .map(drop)
}

/// A node that has model servers, and a gateway or none.
fn node(bed: &Bed, with_gateway: bool) -> Result<String> {
    let gateways = pods(bed, SYSTEM, "spec.nodeName")?;
    let servers = pods(bed, DEMO, "spec.nodeName")?;
    let mut fitting = servers
        .into_iter()
        .filter(|node| gateways.contains(node) == with_gateway);
    fitting.next().with_context(|| {
        let with = if with_gateway { "a" } else { "no" };
        format!("no node has model servers and {with} gateway")
    })
}

/// One field of each pod of a namespace.
fn pods(bed: &Bed, namespace: &str, field: &str) -> Result<Vec<String>> {
    let path = format!("jsonpath={{.items[*].{field}}}");
    let found = bed.kubectl(&["get", "pods", "-n", namespace, "-o", &path])?;
    Ok(found.split_whitespace().map(str::to_owned).collect())
}

/// The node that does not report.
fn lost_node(bed: &Bed) -> Result<String> {
    let path = "jsonpath={range .items[*]}{.metadata.name} \
                {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}";
    let found = bed.kubectl(&["get", "nodes", "-o", path])?;
    let lost = found.lines().find_map(|line| line.strip_suffix(" Unknown"));
    lost.map(str::to_owned).context("no node is lost")
}

/// Stops a node as a power cut would, and waits until Kubernetes has noticed, and some more.
fn lose(bed: &Bed, node: &str) -> Result<()> {
    cluster(bed, &["stop-node", node])?;
    wait_for(bed, node, "Ready=Unknown")?;
    std::thread::sleep(CALM);
    Ok(())
}

fn wait_for(bed: &Bed, node: &str, condition: &str) -> Result<()> {
    let condition = format!("--for=condition={condition}");
    bed.kubectl(&["wait", "node", node, &condition, PATIENCE])
        .map(drop)
}

fn cluster(bed: &Bed, arguments: &[&str]) -> Result<()> {
    let program = std::env::current_exe().context("this program has no path")?;
    let mut command = Command::new(program);
    command.arg("cluster").args(arguments);
    shell::run(command.args(["--bed", bed.name()]))
}
