//! Flags of `forebay node`, the host's side of the device network.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Name of the driver whose claims are ours, which is upstream dranet's too.
const DRIVER: &str = "dra.net";

#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: NodeCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum NodeCommand {
    /// Tell what a host has, and what would be published of it
    Inventory(InventoryArgs),
    /// Read claims, templates, classes and NetworkConfigs and tell what is wrong with them
    Lint(LintArgs),
    /// Let a container start only if its claim's NICs are in place: the hook of OCI runtimes
    Guard(GuardArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay node inventory                                     this host
  forebay node inventory --machine machines/a4-highgpu-8g.yaml          a described machine, without its hardware
  forebay node inventory --output json | kubectl apply -f -  its ResourceSlices, for a cluster of tests

Addresses of interfaces are not read here.")]
pub(crate) struct InventoryArgs {
    /// What /sys is to the host
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    pub(crate) sysfs_root: PathBuf,
    /// What /proc is to the host: interfaces of its default routes are left out
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub(crate) proc_root: PathBuf,
    /// A description to read in place of a host (SIMULATED hardware)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sysfs_root", "proc_root"])]
    pub(crate) machine: Option<PathBuf>,
    /// Name of the node, and of its pool of devices
    #[arg(long, value_name = "NAME", default_value = "node")]
    pub(crate) node: String,
    /// Name of the driver
    #[arg(long, value_name = "NAME", default_value = DRIVER)]
    pub(crate) driver: String,
    /// How to print it
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,
}

/// How something is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Output {
    /// A table for people
    Text,
    /// A List of ResourceSlices
    Json,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay node lint claims.yaml
  helm template . | forebay node lint -

Exit status: 0 if all is well, 1 if something is wrong, 2 if a file cannot be read.")]
pub(crate) struct LintArgs {
    /// Files; - is the standard input
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Parameters of which driver are looked at
    #[arg(long, value_name = "NAME", default_value = DRIVER)]
    pub(crate) driver: String,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Example, as a container runtime calls it, with the OCI state of the container on the standard input:
  forebay node guard --state-dir /var/lib/forebay --claim 0f9c… < state.json

Exit status: 0 lets the container start, 1 stops it; the reason is on the standard error.")]
pub(crate) struct GuardArgs {
    /// The driver's ledger
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// UID of the claim
    #[arg(long, value_name = "UID")]
    pub(crate) claim: String,
}
