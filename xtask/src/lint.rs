//! `cargo xtask lint`: everything that is checked before the tests run.
//!
//! Every step runs even when an earlier one failed, so that one run shows all there is to mend.
//! Advisories need a database from the network; when it cannot be fetched the summary says so
//! and the lint does not fail for it.

use crate::{codegen, shell, unused};
use anyhow::{Result, bail};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The version whose configuration format `deny.toml` has.
const CARGO_DENY: &str = "0.20.2";

/// Crates whose documentation is held to be complete and free of broken links.
const DOCUMENTED: [&str; 4] = [
    "forebay-model",
    "forebay-dialect",
    "forebay-decide",
    "forebay-api",
];

/// How long the advisory database may take to arrive before it counts as unreachable.
const ADVISORY_FETCH_LIMIT: Duration = Duration::from_secs(60);

/// One check; it returns a remark for the summary, mostly empty.
type Step = fn() -> Result<String>;

/// Runs every step, prints one line for each, and fails when one failed.
pub(crate) fn run() -> Result<()> {
    let steps: [(&str, Step); 6] = [
        ("format", format),
        ("clippy", clippy),
        ("documentation", documentation),
        ("generated files", codegen::check),
        ("unused dependencies", unused::check),
        ("licences, bans, sources", deny),
    ];
    let mut lines = Vec::new();
    let mut failed = 0;
    for (name, step) in steps {
        let started = Instant::now();
        let done = step();
        let seconds = started.elapsed().as_secs();
        lines.push(match done {
            Ok(remark) if remark.is_empty() => format!("ok      {name} ({seconds} s)"),
            Ok(remark) => format!("ok      {name} ({seconds} s): {remark}"),
            Err(error) => {
                failed += 1;
                format!("FAILED  {name} ({seconds} s): {error:#}")
            }
        });
    }
    println!("\n{}", lines.join("\n"));
    if failed > 0 {
        bail!("{failed} lint step(s) failed");
    }
    Ok(())
}

fn format() -> Result<String> {
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    Ok(String::new())
}

fn clippy() -> Result<String> {
    shell::run(shell::cargo().args([
        "clippy",
        "--all-features",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    Ok(String::new())
}

fn documentation() -> Result<String> {
    let mut command = shell::cargo();
    command
        .args(["doc", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings");
    for name in DOCUMENTED {
        command.args(["-p", name]);
    }
    shell::run(&mut command)?;
    Ok(String::new())
}

fn deny() -> Result<String> {
    let program = shell::pinned_tool("cargo-deny", CARGO_DENY)?;
    let deny = || {
        let mut command = Command::new(&program);
        command.current_dir(shell::root());
        command
    };
    let fences = ["bans", "licenses", "sources"];
    shell::run(
        deny()
            .args(["check", "--hide-inclusion-graph"])
            .args(fences),
    )?;
    if !ends_well_within(
        deny().args(["--log-level", "error", "fetch", "db"]),
        ADVISORY_FETCH_LIMIT,
    ) {
        return Ok("advisories not checked: their database cannot be fetched from here".to_owned());
    }
    shell::run(deny().args(["check", "advisories"]))?;
    Ok("advisories checked".to_owned())
}

/// Runs a command quietly; false when it fails or is still running at the limit.
fn ends_well_within(command: &mut Command, limit: Duration) -> bool {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let Ok(mut child) = quiet.spawn() else {
        return false;
    };
    let started = Instant::now();
    while started.elapsed() < limit {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(Duration::from_millis(100)),
            Err(_) => return false,
        }
    }
    // Past the limit: it is ours, and nobody waits for it any more.
    child
        .kill()
        .and_then(|()| child.wait())
        .is_ok_and(|status| status.success())
}
