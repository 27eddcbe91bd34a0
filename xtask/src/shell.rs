//! Running other programs: where the repository and the cache are, and commands that say what
//! they do.
//!
//! No shell is involved: arguments are passed as they are. Long-lived children are not started
//! here (`bench::peers` owns those, because they must be ended again).

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder of the workspace's `Cargo.toml`.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies one folder below the root")
}

/// Where virtual environments and tools are kept between runs; safe to delete at any time.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(
            std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?,
        )
        .join(".cache"),
    };
    let dir = base.join("forebay");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// Cargo as the caller runs it, in the root of the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let text = capture(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let target = metadata["target_directory"].as_str();
    target
        .map(PathBuf::from)
        .context("cargo metadata has no target_directory")
}

/// The program as it would be typed, for messages.
pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy()
        .into_owned();
    command.get_args().fold(name, |text, arg| {
        format!("{text} {}", arg.to_string_lossy())
    })
}

/// Runs a command with its output shown. Never reads the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", describe(command));
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", describe(command));
    }
    Ok(())
}

/// Runs a command and returns what it printed; on failure the error carries the end of stderr.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            describe(command),
            output.status,
            last_words(&stderr)
        );
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    // Some programs, nginx among them, print their version on stderr.
    Ok(if stdout.trim().is_empty() {
        stderr
    } else {
        stdout
    }
    .trim()
    .to_owned())
}

/// The first program of that name in PATH or in the system's own program folders.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// True when this process may install system packages.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A tool from crates.io in exactly this version: the one in PATH, or one installed into the
/// cache folder. Returns the program to run.
pub(crate) fn pinned_tool(name: &str, version: &str) -> Result<PathBuf> {
    let is_pinned = |program: &Path| {
        capture(Command::new(program).arg("--version")).is_ok_and(|text| {
            text.split_whitespace()
                .last()
                .is_some_and(|word| word == version)
        })
    };
    if let Some(found) = which(name).filter(|program| is_pinned(program)) {
        return Ok(found);
    }
    let home = cache_dir()?.join("tools").join(format!("{name}-{version}"));
    let program = home.join("bin").join(name);
    if !is_pinned(&program) {
        run(cargo()
            .arg("install")
            .arg(format!("{name}@{version}"))
            .args(["--locked", "--root"])
            .arg(&home)
            // A tool's own build must not land in, or be keyed by, the workspace's target folder.
            .env("CARGO_TARGET_DIR", cache_dir()?.join("tools-target"))
            .current_dir(cache_dir()?))
        .with_context(|| format!("{name} {version} is needed and could not be installed"))?;
    }
    Ok(program)
}

/// The end of a program's complaint, on one line and of bounded length.
fn last_words(stderr: &str) -> String {
    const LINES: usize = 3;
    const BYTES_MAX: usize = 400;
    let lines: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let tail = lines[lines.len().saturating_sub(LINES)..].join(" / ");
    tail.chars().take(BYTES_MAX).collect()
}
