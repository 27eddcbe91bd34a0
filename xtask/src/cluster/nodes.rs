//! `cluster stop-node`, `start-node` and `load`: what can be done to the nodes of a bed that is up.

use super::binaries::{self, Binaries, Module};
use super::plan::{Cluster, Node, log_file, node_group};
use super::report::Report;
use super::state::{self, Record};
use super::{cgroup, env, images, node};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which node.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask cluster stop-node c1-n2    as if its power went: nothing is told, nothing drained\n  \
    cargo xtask cluster start-node c1-n2   it boots again with its disk as it was")]
pub(crate) struct NodeArgs {
    /// Name of the node, as in `kubectl get nodes`
    node: String,
    #[command(flatten)]
    bed: super::BedArgs,
}

/// What to import.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask cluster load --forebay target/release/forebay\n  \
    cargo xtask cluster load --conformance\n  \
    cargo xtask cluster load image.tar\n\n\
    Forebay becomes bed.forebay.dev/forebay:dev. Set imagePullPolicy to Never or IfNotPresent: there\n\
    is no registry to ask. Running pods keep the image that they started with.")]
pub(crate) struct LoadArgs {
    /// A built Forebay, to be packed and imported
    #[arg(long, value_name = "PROGRAM")]
    forebay: Option<PathBuf>,
    /// The backends of the public conformance suites, under the names that their manifests use
    #[arg(long)]
    conformance: bool,
    /// The reference picker of the Inference Extension, under the name that its suite's manifests use
    #[arg(long)]
    reference_picker: bool,
    /// The Forebay of --forebay in the place of the reference picker
    #[arg(long, requires = "forebay", conflicts_with = "reference_picker")]
    as_reference_picker: bool,
    /// The picker and the model servers of our own inference suite
    #[arg(long)]
    inference: bool,
    /// Archives as `docker save` writes them
    archives: Vec<PathBuf>,
    #[command(flatten)]
    bed: super::BedArgs,
}

/// Kills everything on a node.
pub(super) fn stop(args: &NodeArgs) -> Result<()> {
    let _lock = state::lock(&args.bed.name)?;
    let record = ready(&args.bed.name)?;
    let (cluster, node) = find(&record, &args.node)?;
    let groups = cgroup::under(&record.groups, &node_group(&cluster, &node));
    cgroup::end(&groups)?;
    eprintln!("node {} is gone", node.name);
    Ok(())
}

/// Boots a stopped node and waits until it is Ready.
pub(super) fn start(args: &NodeArgs) -> Result<()> {
    let _lock = state::lock(&args.bed.name)?;
    let record = ready(&args.bed.name)?;
    let (cluster, node) = find(&record, &args.node)?;
    let groups = cgroup::under(&record.groups, &node_group(&cluster, &node));
    if !cgroup::members(&groups).is_empty() {
        bail!(
            "node {} is running: `cluster stop-node` it first",
            node.name
        );
    }
    // Its images are on its disk already.
    node::start(
        &cluster,
        &[&node],
        &binaries::locate(Module::Cluster)?,
        &[],
        &record.groups,
        &Report::start(),
    )
    .map(drop)
}

/// Imports images into every node that runs.
pub(super) fn load(args: &LoadArgs) -> Result<()> {
    let _lock = state::lock(&args.bed.name)?;
    let record = ready(&args.bed.name)?;
    let binaries = binaries::locate(Module::Cluster)?;
    let mut archives = args.archives.clone();
    if let Some(program) = &args.forebay {
        let archive = record.bed.dir.join("forebay.tar");
        images::forebay(program, images::FOREBAY, &archive)?;
        archives.push(archive);
        if args.as_reference_picker {
            let archive = record.bed.dir.join("forebay-picker.tar");
            images::forebay_as_picker(program, &archive)?;
            archives.push(archive);
        }
    }
    if args.conformance {
        archives.extend(images::backends()?);
    }
    if args.reference_picker {
        archives.push(images::reference_picker()?);
    }
    if args.inference {
        archives.extend(images::inference_backends()?);
    }
    if archives.is_empty() {
        bail!(
            "nothing to load: give --forebay, --conformance, --reference-picker, --inference or archives"
        );
    }
    for cluster in record.bed.clusters() {
        for node in &cluster.nodes {
            for archive in &archives {
                import(&record, &cluster, node, &binaries, archive).with_context(|| {
                    format!("cannot import {} into {}", archive.display(), node.name)
                })?;
            }
            eprintln!(
                "{}: {} image archive(s) imported",
                node.name,
                archives.len()
            );
        }
    }
    Ok(())
}

/// containerd's socket lies in the node's own `/run`, which is reached by way of its process.
fn import(
    record: &Record,
    cluster: &Cluster,
    node: &Node,
    binaries: &Binaries,
    archive: &Path,
) -> Result<()> {
    let groups = cgroup::under(&record.groups, &node_group(cluster, node));
    let containerd = cgroup::members(&groups)
        .into_iter()
        .find(|pid| cgroup::program_name(*pid) == "containerd")
        .with_context(|| {
            let log = log_file(&node.log_dir(), "containerd");
            format!("containerd does not run; see {}", log.display())
        })?;
    let socket = format!(
        "/proc/{containerd}/root{}",
        super::config::CONTAINERD_SOCKET
    );
    let flags = ["--namespace", "k8s.io", "images", "import"];
    let mut ctr = Command::new(binaries.program("ctr"));
    shell::capture(ctr.args(["--address", &socket]).args(flags).arg(archive)).map(drop)
}

fn ready(bed: &str) -> Result<Record> {
    Record::read(bed)?
        .filter(|record| record.ready)
        .with_context(|| {
            format!(
                "bed {bed} is not up: `cargo xtask cluster up{}`",
                env::bed_flag(bed)
            )
        })
}

fn find(record: &Record, name: &str) -> Result<(Cluster, Node)> {
    let mut known = Vec::new();
    for cluster in record.bed.clusters() {
        for node in cluster.nodes.clone() {
            if node.name == name {
                return Ok((cluster, node));
            }
            known.push(node.name);
        }
    }
    bail!(
        "bed {} has no node {name} with a kubelet; it has: {}",
        record.bed.name,
        known.join(", ")
    )
}
