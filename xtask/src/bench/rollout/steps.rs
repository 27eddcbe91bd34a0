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
    LoseNode,
    RegainNode,
}

/// In this order. The lost node comes last: what runs there is given up only after a while.
pub(super) const ALL: [Step; 7] = [
    Step::Nothing,
    Step::RollServers,
    Step::RollGateway,
    Step::ScaleUp,
    Step::ScaleDown,
    Step::LoseNode,
    Step::RegainNode,
];

impl Step {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing happens",
            Self::RollServers => "model servers roll over",
            Self::RollGateway => "gateway rolls over (2 replicas)",
            Self::ScaleUp => "servers 2 -> 20",
            Self::ScaleDown => "servers 20 -> 2",
            Self::LoseNode => "a node is lost",
            Self::RegainNode => "the node is back",
        }
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
            Self::LoseNode => {
                scale(bed, 6)?;
                let node = node_to_lose(bed)?;
                cluster(bed, &["stop-node", &node])?;
                wait_for(bed, &node, "Ready=Unknown")?;
                std::thread::sleep(CALM);
            }
            Self::RegainNode => {
                let node = node_to_lose(bed)?;
                cluster(bed, &["start-node", &node])?;
                wait_for(bed, &node, "Ready")?;
                std::thread::sleep(CALM);
            }
        }
        Ok(())
    }
}

/// Brings Forebay and the demo up; where the Gateway listens.
pub(super) fn install(bed: &Bed, program: &Path) -> Result<SocketAddr> {
    bed.load(&[], program)?;
    bed.install_definitions(&gateway_api()?)?;
    bed.install_forebay()?;
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

/// The last node by name; it has pods of both kinds.
fn node_to_lose(bed: &Bed) -> Result<String> {
    let names = bed.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])?;
    let last = names.split_whitespace().max().map(str::to_owned);
    last.context("the bed has no node")
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
