//! `cluster up`: from nothing, or from what a crash left, to a bed that is ready.

use super::binaries::{self, Binaries, Module};
use super::control_plane::{self, write_json};
use super::plan::{self, Bed, Cluster, Nodes, Shape};
use super::process::Process;
use super::report::Report;
use super::state::{self, Record};
use super::{cgroup, config, debian, down, env, images, network, node, pki};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// What to bring up.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask cluster up                                 one cluster with two nodes\n  \
    cargo xtask cluster up --clusters 2 --nodes 1          two clusters side by side\n  \
    cargo xtask cluster up --control-plane-only --nodes 5  no kubelets: five nodes in name only\n  \
    eval \"$(cargo xtask cluster env)\" && kubectl get nodes\n\n\
    The first run builds Kubernetes from its Go modules, which takes about 20 CPU minutes; later\n\
    runs take well under a minute. A bed that is up already with the same shape is left as it is.")]
pub(crate) struct Args {
    /// Nodes in each cluster
    #[arg(long, default_value_t = 2)]
    nodes: u16,
    /// Clusters in the bed
    #[arg(long, default_value_t = 1)]
    clusters: u8,
    /// Run no kubelet: nodes are objects that are kept Ready, their pods run in name only
    #[arg(long)]
    control_plane_only: bool,
    /// A built Forebay, to be packed as the image bed.forebay.dev/forebay:dev
    #[arg(long, value_name = "PROGRAM", conflicts_with = "control_plane_only")]
    forebay: Option<PathBuf>,
    #[command(flatten)]
    bed: super::BedArgs,
}

/// Brings the bed up, unless it is.
pub(super) fn run(args: &Args) -> Result<()> {
    let shape = Shape {
        clusters: args.clusters,
        nodes: args.nodes,
        kind: if args.control_plane_only {
            Nodes::Fake
        } else {
            Nodes::Real
        },
    };
    shape.check()?;
    plan::check_bed_name(&args.bed.name)?;
    ensure(&args.bed.name, shape, args.forebay.as_deref())
}

/// Brings up a bed of this shape, unless there is one.
pub(super) fn ensure(name: &str, shape: Shape, forebay: Option<&Path>) -> Result<()> {
    check_machine()?;
    let parts: &[binaries::Part] = match shape.kind {
        Nodes::Fake => &binaries::CONTROL_PLANE,
        Nodes::Real => &binaries::NODES,
    };
    let _lock = state::lock(name)?;
    if let Some(record) = Record::read(name)? {
        if record.ready && down::is_alive(&record) {
            return already_up(&record, shape);
        }
        eprintln!("cleaning up what an earlier run left of bed {name}");
        down::remove(&record)?;
    }
    let binaries = binaries::ensure(Module::Cluster, parts)?;
    if shape.kind == Nodes::Real {
        debian::ensure()?;
    }
    bring_up(name, shape, &binaries, forebay)
}

fn already_up(record: &Record, wanted: Shape) -> Result<()> {
    let Bed { name, shape, .. } = &record.bed;
    if *shape != wanted {
        bail!(
            "bed {name} is up with {shape}: `cargo xtask cluster down` it first, or give --bed another name"
        );
    }
    eprintln!("bed {name} is up already");
    Ok(())
}

/// Says early what would fail late.
fn check_machine() -> Result<()> {
    if !shell::is_root() {
        bail!("network namespaces and control groups need root: run this as root");
    }
    for program in ["ip", "unshare"] {
        shell::which(program).with_context(|| {
            format!("{program} is not installed: iproute2 and util-linux are needed")
        })?;
    }
    let home = state::home()?;
    if let Some(hidden) = ["/run", "/var/lib", "/var/log", "/sys"]
        .into_iter()
        .find(|dir| home.starts_with(dir))
    {
        bail!(
            "the cache folder {} lies in {hidden}, of which nodes have their own: set XDG_CACHE_HOME",
            home.display()
        );
    }
    Ok(())
}

fn bring_up(name: &str, shape: Shape, binaries: &Binaries, forebay: Option<&Path>) -> Result<()> {
    let report = Report::start();
    let hierarchies = cgroup::hierarchies()?;
    let mut record = state::reserve(name, shape, |bed| cgroup::roots(bed, &hierarchies))?;
    if let Err(error) = start(&record, binaries, forebay, &report) {
        return Err(error.context(format!(
            "bed {name} did not come up; its logs are below {} until the next `up` or `down`",
            record.bed.dir.display()
        )));
    }
    record.ready = true;
    record.write()?;
    report.say(name, &format!("up: {shape}"));
    eprintln!(
        "next: eval \"$(cargo xtask cluster env{})\"",
        env::bed_flag(name)
    );
    Ok(())
}

fn start(
    record: &Record,
    binaries: &Binaries,
    forebay: Option<&Path>,
    report: &Report,
) -> Result<()> {
    let bed = &record.bed;
    // An earlier bed may have died without its record.
    down::remove_running(record)?;
    cgroup::create_all(&record.groups)?;
    network::apply(bed)?;
    report.say(&bed.name, "network ready");
    let images = node_images(bed, binaries, forebay)?;
    let clusters = bed.clusters();
    std::thread::scope(|scope| {
        let starts: Vec<_> = clusters
            .iter()
            .map(|cluster| {
                scope.spawn(|| start_cluster(cluster, record, binaries, &images, report))
            })
            .collect();
        // All are waited for before the first error is told: nothing may go on behind it.
        let results: Vec<Result<()>> = starts
            .into_iter()
            .map(|start| {
                start
                    .join()
                    .unwrap_or_else(|_| bail!("the start of a cluster panicked"))
            })
            .collect();
        results.into_iter().collect::<Result<()>>()
    })?;
    let accesses = clusters
        .iter()
        .map(|cluster| config::Access::read(cluster, pki::ADMIN));
    let merged = config::merged_kubeconfig(accesses.collect::<Result<_>>()?);
    write_json(&env::kubeconfig(bed), &merged)
}

fn start_cluster(
    cluster: &Cluster,
    record: &Record,
    binaries: &Binaries,
    images: &[PathBuf],
    report: &Report,
) -> Result<()> {
    let mut processes = control_plane::start(cluster, binaries, &record.groups, report)
        .with_context(|| format!("cluster {}", cluster.name))?;
    if let Some(first) = cluster.nodes.first() {
        node::register(cluster, binaries)?;
        processes.push(control_plane::start_proxy(
            cluster,
            binaries,
            &record.groups,
            first,
        )?);
        let nodes: Vec<&plan::Node> = cluster.nodes.iter().collect();
        processes.extend(node::start(
            cluster,
            &nodes,
            binaries,
            images,
            &record.groups,
            report,
        )?);
        control_plane::wait_for_proxy(cluster, &mut processes)?;
    }
    processes.iter_mut().try_for_each(Process::check)
}

/// The archives that every node of the bed imports when it starts.
fn node_images(bed: &Bed, binaries: &Binaries, forebay: Option<&Path>) -> Result<Vec<PathBuf>> {
    if bed.shape.kind == Nodes::Fake {
        return Ok(Vec::new());
    }
    let mut archives = images::base(binaries)?;
    if let Some(program) = forebay {
        let archive = bed.dir.join("forebay.tar");
        images::forebay(program, images::FOREBAY, &archive)?;
        archives.push(archive);
    }
    Ok(archives)
}
