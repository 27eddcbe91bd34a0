//! `cargo xtask helm`: the pinned Helm, built from its Go module when it is first needed.

use crate::{cluster, shell};
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// What to hand to Helm.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask helm -- template forebay deploy/chart/forebay --set replicas=3\n  \
    cargo xtask helm -- upgrade --install forebay deploy/chart/forebay -n forebay-system --create-namespace\n  \
    cargo xtask helm --check && echo 'no build is needed'")]
pub(crate) struct Args {
    /// Run nothing, and fail if Helm is still to be built
    #[arg(long)]
    check: bool,
    /// Helm's own arguments; paths are relative to the root of the repository
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs it, in its own words and with its output shown.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.check {
        return match cluster::built_helm()? {
            Some(_) => Ok(()),
            None => bail!("Helm is not built yet"),
        };
    }
    let mut helm = command()?;
    let status = helm.args(&args.arguments).status()?;
    if !status.success() {
        bail!("{} ended with {status}", shell::describe(&helm));
    }
    Ok(())
}

/// Helm, to be given arguments.
pub(crate) fn command() -> Result<Command> {
    let program: PathBuf = match cluster::built_helm()? {
        Some(program) => program,
        None => cluster::build_helm()?,
    };
    let mut helm = Command::new(program);
    helm.current_dir(shell::root());
    Ok(helm)
}
