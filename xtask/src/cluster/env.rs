//! `cluster env`: how programs and people reach a bed, as lines for a shell or as JSON.

use super::binaries::{self, Module};
use super::plan::{Bed, Cluster};
use super::state::Record;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::PathBuf;

/// What to print.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    eval \"$(cargo xtask cluster env)\"\n  \
    cargo xtask cluster env --json | jq -r .clusters[0].pods\n\n\
    KUBECONFIG has one context per cluster (c1, c2, ...); PATH gets a kubectl of the same version.")]
pub(crate) struct Args {
    /// Print JSON, with the address ranges of every cluster
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bed: super::BedArgs,
}

/// The kubeconfig with all clusters of a bed.
pub(super) fn kubeconfig(bed: &Bed) -> PathBuf {
    bed.dir.join("kubeconfig")
}

/// The flag that names a bed, if it needs one.
pub(super) fn bed_flag(name: &str) -> String {
    if name == super::DEFAULT_BED {
        String::new()
    } else {
        format!(" --bed {name}")
    }
}

/// Prints; an error if the bed is not up.
pub(super) fn run(args: &Args) -> Result<()> {
    let name = &args.bed.name;
    let record = Record::read(name)?
        .filter(|record| record.ready)
        .with_context(|| {
            format!(
                "bed {name} is not up: `cargo xtask cluster up{}`",
                bed_flag(name)
            )
        })?;
    let bin = binaries::locate(Module::Cluster)?.dir().to_owned();
    let bed = &record.bed;
    if args.json {
        println!("{:#}", describe(bed, &bin.display().to_string()));
        return Ok(());
    }
    println!(
        "export KUBECONFIG={}",
        quoted(&kubeconfig(bed).display().to_string())?
    );
    println!(
        "export FOREBAY_BED={}",
        quoted(&bed.dir.display().to_string())?
    );
    println!(
        "export PATH={}:\"$PATH\"",
        quoted(&bin.display().to_string())?
    );
    Ok(())
}

fn describe(bed: &Bed, bin: &str) -> Value {
    let clusters: Vec<Value> = bed.clusters().iter().map(describe_cluster).collect();
    json!({
        "name": bed.name,
        "folder": bed.dir,
        "kubeconfig": kubeconfig(bed),
        "programs": bin,
        "host": bed.host_address(),
        "clusters": clusters,
    })
}

fn describe_cluster(cluster: &Cluster) -> Value {
    let nodes = cluster.nodes.iter().map(|node| {
        json!({
            "name": node.name,
            "address": node.address,
            "pods": node.pod_net.to_string(),
            "networkNamespace": node.netns,
            "logs": node.log_dir(),
        })
    });
    json!({
        "name": cluster.name,
        "kubeconfig": cluster.kubeconfig(),
        "server": cluster.api_url(),
        "networkNamespace": cluster.netns,
        "pods": cluster.pod_net.to_string(),
        "services": cluster.service_net.to_string(),
        "loadBalancers": cluster.balancer_net.to_string(),
        "nodes": nodes.collect::<Vec<_>>(),
        "fakeNodes": cluster.fake_nodes,
    })
}

/// A word that a shell takes literally.
fn quoted(text: &str) -> Result<String> {
    if text.contains('\'') {
        bail!("the path {text} has a quote in it: set XDG_CACHE_HOME to a folder without");
    }
    Ok(format!("'{text}'"))
}
