//! `cargo xtask bench decisions`: our routing policy beside those of others, in simulated worlds.
//!
//! The work is `forebay_simulate::world`'s, which has to be built with optimisation; this builds and
//! runs its example `decisions`. Nothing here depends on how fast or busy the machine is: the
//! worlds have a time of their own, and the same seeds give the same numbers.

use crate::shell;
use anyhow::Result;

/// The page with the published table, from the repository's root.
const PAGE: &str = "docs/decision-quality.md";

/// What to play.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask bench decisions                         play all and write docs/decision-quality.md\n  \
    cargo xtask bench decisions --tuning --scenario agentic   on seeds to tune on; writes nothing\n  \
    cargo xtask bench decisions --tuning --variant 'cold={\"stickyShare\": 1.0}'")]
pub(crate) struct Args {
    /// Use the seeds to tune on, not those of the published table
    #[arg(long)]
    tuning: bool,
    /// Scenarios [default: all]
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// Forebay's policy with other settings, as JSON, beside the published ones
    #[arg(long = "variant", value_name = "NAME=JSON")]
    variants: Vec<String>,
}

/// Plays and prints; writes the page if everything was played as published.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = shell::cargo();
    command.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "forebay-simulate",
    ]);
    command.args(["--example", "decisions", "--"]);
    if args.tuning {
        command.arg("--tuning");
    }
    for scenario in &args.scenarios {
        command.args(["--scenario", scenario]);
    }
    for variant in &args.variants {
        command.args(["--variant", variant]);
    }
    if !args.tuning && args.scenarios.is_empty() && args.variants.is_empty() {
        command.args(["--out", PAGE]);
    }
    shell::run(command.current_dir(shell::root()))
}
