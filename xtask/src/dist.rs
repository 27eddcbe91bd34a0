//! `cargo xtask dist`: the program as it is shipped and measured.
//!
//! Built as one unit with link-time optimisation and a profile of itself under load. A request of
//! two kilobytes runs through some four thousand cache lines of code, more than a core's first
//! cache holds by far, so what costs is where code lies; only a profile tells the compiler. The
//! load is that of the proxy benchmark: every kind of body and stream it knows.
//!
//! Everything lies below `target/dist`, apart from other builds, and is built anew only where
//! sources changed.

use crate::{bench, shell};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// How to build.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask dist                    builds twice with a load in between: about ten minutes\n  \
    cargo xtask dist --without-profile  builds once\n\n\
    Needs the toolchain's llvm-tools, and adds them by rustup if they are missing.")]
pub(crate) struct Args {
    /// Leave the profile out: quicker to build, slower to run
    #[arg(long)]
    without_profile: bool,
}

/// Builds and prints where the program is.
pub(crate) fn run(args: &Args) -> Result<()> {
    let program = build(!args.without_profile)?;
    println!("{}", program.display());
    Ok(())
}

/// Builds the program; returns where it is.
pub(crate) fn build(with_profile: bool) -> Result<PathBuf> {
    let folder = shell::target_dir()?.join("dist");
    if !with_profile {
        return compile(&folder.join("plain"), None);
    }
    let profdata = profdata_tool()?;
    let raw = folder.join("raw");
    let trained = compile(
        &folder.join("instrumented"),
        Some(format!("-Cprofile-generate={}", raw.display())),
    )?;
    let profile = folder.join("profile.profdata");
    if !is_newer(&profile, &trained) {
        // What an older program left would be read with the wrong numbers.
        if raw.exists() {
            std::fs::remove_dir_all(&raw)
                .with_context(|| format!("cannot empty {}", raw.display()))?;
        }
        eprintln!("loading the instrumented program with every scenario of the benchmark");
        bench::train(&trained)?;
        let mut merge = Command::new(profdata);
        shell::run(merge.args(["merge", "-o"]).arg(&profile).arg(&raw))?;
    }
    compile(
        &folder.join("program"),
        Some(format!("-Cprofile-use={}", profile.display())),
    )
}

/// Whether `made` was written after `from`.
fn is_newer(made: &Path, from: &Path) -> bool {
    let written = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    written(made) > written(from)
}

fn compile(target_dir: &Path, flags: Option<String>) -> Result<PathBuf> {
    let host = host()?;
    let mut cargo = shell::cargo();
    // With a target named, the flags are for the program and not for build scripts and macros.
    cargo
        .args(["build", "--profile", "dist", "-p", "forebay", "--target"])
        .arg(&host)
        .arg("--target-dir")
        .arg(target_dir);
    if let Some(flags) = flags {
        cargo.env("RUSTFLAGS", flags);
    }
    shell::run(&mut cargo)?;
    Ok(target_dir.join(host).join("dist/forebay"))
}

fn rustc(args: &[&str]) -> Result<String> {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    shell::capture(Command::new(program).args(args).current_dir(shell::root()))
}

fn host() -> Result<String> {
    let version = rustc(&["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .context("rustc -vV does not name its host")
}

/// The toolchain's own tool: a profile is read only by the LLVM that wrote it.
fn profdata_tool() -> Result<PathBuf> {
    let libraries = rustc(&["--print", "target-libdir"])?;
    let tool = Path::new(libraries.trim()).with_file_name("bin/llvm-profdata");
    if tool.exists() {
        return Ok(tool);
    }
    let mut add = Command::new("rustup");
    add.args(["component", "add", "llvm-tools"])
        .current_dir(shell::root());
    if let Err(error) = shell::run(&mut add) {
        bail!("no llvm-profdata, and {error:#}; --without-profile builds without it");
    }
    Ok(tool)
}
