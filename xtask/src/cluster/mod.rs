//! `cargo xtask cluster`: real Kubernetes on one Linux machine, without a container engine and
//! without pulling an image. docs/test-bed.md is the manual.
//!
//! A *bed* is one or more clusters that reach each other. `plan` says what a bed consists of,
//! `config` and `pki` what each program is told: functions of the shape alone. `binaries` builds
//! the programs, `network`, `cgroup` and `process` act, `up` and `down` hold the order.

mod binaries;
mod cgroup;
mod config;
mod control_plane;
mod debian;
mod down;
mod env;
mod for_tests;
mod image;
mod images;
mod inside;
mod network;
mod node;
mod nodes;
mod pki;
mod plan;
mod process;
mod report;
mod state;
mod status;
mod up;

use crate::shell;
use anyhow::{Context, Result};
use binaries::Module;
use clap::Subcommand;
pub(crate) use debian::installed;
pub(crate) use for_tests::TestBed;
pub(crate) use process::enter;
use std::path::{Path, PathBuf};

/// The name of the bed that is meant when none is given.
const DEFAULT_BED: &str = "default";

/// Which bed is meant.
#[derive(Debug, clap::Args)]
struct BedArgs {
    /// Name of the bed: several can be up at once
    #[arg(id = "bed", long = "bed", env = "FOREBAY_BED_NAME", default_value = DEFAULT_BED)]
    name: String,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Bring up a bed, building Kubernetes first if need be
    Up(up::Args),
    /// Take a bed down, leaving nothing behind but what was built
    Down(down::Args),
    /// List the beds with their programs and memory
    Status(status::Args),
    /// Print how to reach a bed
    Env(env::Args),
    /// Import images into the nodes of a bed
    Load(nodes::LoadArgs),
    /// Lose a node, without warning
    StopNode(nodes::NodeArgs),
    /// Boot a node that was stopped
    StartNode(nodes::NodeArgs),
    /// Build what beds run, so that the first `up` need not
    Build(BuildArgs),
    /// Become a program of a bed
    #[command(hide = true)]
    Launch(process::LaunchArgs),
    /// Become the first process of a node
    #[command(hide = true)]
    InsideNode(inside::Args),
}

/// What to build.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask cluster build                         everything\n  \
    cargo xtask cluster build --control-plane-only --check && echo 'no build is needed'")]
pub(crate) struct BuildArgs {
    /// Only what a bed without kubelets runs
    #[arg(long)]
    control_plane_only: bool,
    /// Build nothing, and fail if there is something to build
    #[arg(long)]
    check: bool,
}

/// Does it.
pub(crate) fn run(action: &Action) -> Result<()> {
    match action {
        Action::Up(args) => up::run(args),
        Action::Down(args) => down::run(args),
        Action::Status(args) => status::run(args),
        Action::Env(args) => env::run(args),
        Action::Load(args) => nodes::load(args),
        Action::StopNode(args) => nodes::stop(args),
        Action::StartNode(args) => nodes::start(args),
        Action::Build(args) => build(args),
        Action::Launch(args) => process::launch(args),
        Action::InsideNode(args) => inside::run(args),
    }
}

/// Writes a built Forebay as an image archive.
pub(crate) fn pack_forebay(program: &Path, tag: &str, archive: &Path) -> Result<()> {
    images::forebay(program, tag, archive)
}

/// Helm, if it is built.
pub(crate) fn built_helm() -> Result<Option<PathBuf>> {
    let built = binaries::locate(Module::Deploy)?;
    let missing = binaries::missing(&built, &[binaries::Part::Helm]);
    Ok(missing.is_empty().then(|| built.program("helm")))
}

/// Helm, built if need be.
pub(crate) fn build_helm() -> Result<PathBuf> {
    let built = binaries::ensure(Module::Deploy, &[binaries::Part::Helm])?;
    Ok(built.program("helm"))
}

/// Upstream's dranet as an archive of its image, built if need be.
pub(crate) fn dranet_image() -> Result<PathBuf> {
    images::dranet()
}

/// The folder of upstream's dranet module, fetched if need be: its manifests are in it.
pub(crate) fn dranet_folder() -> Result<PathBuf> {
    let module = "sigs.k8s.io/dranet";
    let text = shell::capture(
        std::process::Command::new("go")
            .args(["mod", "download", "-json", module])
            .current_dir(Module::Dranet.dir()),
    )?;
    let described: serde_json::Value = serde_json::from_str(&text).context("go mod download")?;
    let folder = described["Dir"].as_str();
    folder
        .map(PathBuf::from)
        .with_context(|| format!("{module} has no folder: {text}"))
}

/// Packs what stands in for the image of the pods in upstream dranet's tests.
pub(crate) fn pack_agnhost(archive: &Path) -> Result<()> {
    images::agnhost(archive)
}

/// A suite of tests that runs against a bed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// The public one of the Gateway API.
    GatewayApi,
    /// Our own, for inference.
    Inference,
    /// The public one of the Inference Extension.
    InferenceExtension,
}

/// A suite as a program, built first if need be.
pub(crate) fn suite(suite: Suite) -> Result<PathBuf> {
    let (part, program) = match suite {
        Suite::GatewayApi => (binaries::Part::Suite, "conformance.test"),
        Suite::Inference => (binaries::Part::InferenceSuite, "inference.test"),
        Suite::InferenceExtension => (binaries::Part::ExtensionSuite, "extension.test"),
    };
    let built = binaries::ensure(Module::Conformance, &[part])?;
    Ok(built.program(program))
}

fn build(args: &BuildArgs) -> Result<()> {
    let parts: &[binaries::Part] = if args.control_plane_only {
        &binaries::CONTROL_PLANE
    } else {
        &binaries::NODES
    };
    if args.check {
        let missing = binaries::missing(&binaries::locate(Module::Cluster)?, parts);
        anyhow::ensure!(missing.is_empty(), "not built yet: {missing:?}");
        return Ok(());
    }
    let built = binaries::ensure(Module::Cluster, parts)?;
    println!("{}", built.dir().display());
    Ok(())
}
