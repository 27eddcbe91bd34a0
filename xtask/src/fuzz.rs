//! `cargo xtask fuzz`: every parser's fuzz target for a while, on the nightly toolchain.
//!
//! The targets live in `fuzz/`, outside the workspace; what they find stays in
//! `fuzz/artifacts`, and a fix brings the input into a named test.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// The version that the targets were written for.
const CARGO_FUZZ: &str = "0.13.2";

/// What to fuzz, and for how long.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask fuzz                         every target for 60 s\n  \
    cargo xtask fuzz --seconds 600 peek      one target for ten minutes")]
pub(crate) struct Args {
    /// Seconds for each target
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
    /// Targets; all of them when none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// Runs the targets one after another and fails at the end when one crashed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let manifest = shell::root().join("fuzz/Cargo.toml");
    if !manifest.is_file() {
        bail!(
            "there are no fuzz targets: {} does not exist",
            manifest.display()
        );
    }
    if shell::which("rustup").is_none() {
        bail!("fuzzing needs the nightly toolchain, and rustup is not in PATH to select it");
    }
    let program = shell::pinned_tool("cargo-fuzz", CARGO_FUZZ)?;
    let fuzz = || {
        let mut command = Command::new("rustup");
        command
            .args(["run", "nightly"])
            .arg(&program)
            .arg("fuzz")
            .current_dir(shell::root());
        // Set by the outer cargo for its own toolchain; the nightly one must find its own.
        for name in [
            "CARGO",
            "RUSTC",
            "RUSTDOC",
            "RUSTUP_TOOLCHAIN",
            "CARGO_TARGET_DIR",
        ] {
            command.env_remove(name);
        }
        command
    };
    let known = shell::capture(fuzz().arg("list"))
        .context("cargo fuzz cannot list the targets (is the nightly toolchain installed?)")?;
    let targets: Vec<&str> = match args.targets.as_slice() {
        [] => known.lines().collect(),
        named => named.iter().map(String::as_str).collect(),
    };
    if let Some(unknown) = targets
        .iter()
        .find(|name| !known.lines().any(|line| line == **name))
    {
        bail!(
            "no fuzz target is called {unknown}; there are: {}",
            known.replace('\n', ", ")
        );
    }

    let mut crashed = Vec::new();
    for target in &targets {
        let limit = format!("-max_total_time={}", args.seconds);
        if let Err(error) = shell::run(fuzz().args(["run", target, "--", &limit])) {
            eprintln!("{error:#}");
            crashed.push(*target);
        }
    }
    if !crashed.is_empty() {
        bail!(
            "{} of {} targets found a fault: {}",
            crashed.len(),
            targets.len(),
            crashed.join(", ")
        );
    }
    eprintln!(
        "{} targets, {} s each: nothing found",
        targets.len(),
        args.seconds
    );
    Ok(())
}
