//! Programs that come from Debian: looked for first, installed if they are missing.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// A program and the package that brings it.
const NEEDED: [(&str, &str); 3] = [
    ("runc", "runc"),
    // kube-proxy and the port mapping of CNI write their rules with it.
    ("nft", "nftables"),
    // Goes into an image, so the static one.
    ("busybox", "busybox-static"),
];

/// Installs what nodes need and the machine lacks.
pub(super) fn ensure() -> Result<()> {
    add(&NEEDED).context("nodes need more than this machine has")
}

/// Installs a program that tests use, from its package, if the machine lacks it.
pub(crate) fn installed(program: &str, package: &str) -> Result<()> {
    add(&[(program, package)])
}

fn add(needed: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| shell::which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(", ");
    if !shell::is_root() {
        bail!("{names}: not installed, and installing needs root");
    }
    eprintln!("installing {names}");
    install(&missing)
        .or_else(|_| {
            // The lists of packages may be old or absent.
            shell::capture(apt_get().args(["update", "-qq"]))?;
            install(&missing)
        })
        .with_context(|| format!("{names}: install by hand what your system calls so"))
}

fn install(packages: &[&str]) -> Result<()> {
    let flags = ["install", "-y", "-qq", "--no-install-recommends"];
    shell::capture(apt_get().args(flags).args(packages)).map(drop)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
