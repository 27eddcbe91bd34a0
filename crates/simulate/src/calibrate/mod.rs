//! Profiles from measurements: reads the operator-time tables, writes `profiles/*.json`.
//!
//! One profile per hardware, model and tensor-parallel degree. The one factor of a profile is fitted
//! on the even-numbered requests of a real run where there is one; the others get the mean of the
//! fitted factors. Reading tables is in `tables.rs`, the facts about models in `setups.rs`, the
//! comparison with the other half of the requests in [`crate::fidelity`].

mod setups;
mod tables;

use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};

use crate::fidelity::{self, Half, Truth};
use crate::profile::Profile;
use setups::SETUPS;

/// Why calibration cannot go on.
#[derive(Debug)]
pub enum CalibrateError {
    /// The measurements are not there; they are not part of the repository.
    Absent(PathBuf),
    /// A file cannot be read or written.
    File(PathBuf, std::io::Error),
    /// A file does not look as expected.
    Content(PathBuf, String),
    /// With `check`: these profiles differ from what the measurements give.
    Stale(Vec<String>),
}

impl fmt::Display for CalibrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(path) => write!(
                f,
                "no measurements at {}: put the vllm-serving-truth data there or name another folder",
                path.display()
            ),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Content(path, problem) => write!(f, "{}: {problem}", path.display()),
            Self::Stale(names) => {
                write!(
                    f,
                    "profiles differ from the measurements: {}",
                    names.join(", ")
                )?;
                f.write_str("; run cargo xtask calibrate")
            }
        }
    }
}

impl std::error::Error for CalibrateError {}

/// Makes every profile from the measurements in `data_dir` (`../shared/data/vllm-serving-truth`).
///
/// # Errors
/// If the folder is absent or a table in it cannot be read.
pub fn fit(data_dir: &Path) -> Result<Vec<Profile>, CalibrateError> {
    if !data_dir.is_dir() {
        return Err(CalibrateError::Absent(data_dir.to_owned()));
    }
    let mut profiles = Vec::new();
    for setup in SETUPS {
        profiles.push(tables::profile(setup, &data_dir.join("operator-times"))?);
    }
    let mut fitted = Vec::new();
    for run in fidelity::RUNS {
        let truth = Truth::read(data_dir, run)?;
        let profile = profiles
            .iter_mut()
            .find(|profile| profile.name == run.profile);
        let profile = profile.expect("every run names a setup");
        profile.factor = fit_factor(profile, &truth);
        profile.factor_note = format!(
            "fitted on the even-numbered requests of {}: mean end-to-end latency",
            run.folder
        );
        fitted.push(profile.factor);
    }
    let mean = round(fitted.iter().sum::<f64>() / fitted.len() as f64, 3);
    for profile in &mut profiles {
        if fidelity::RUNS.iter().all(|run| run.profile != profile.name) {
            profile.factor = mean;
            profile.factor_note = "mean of the fitted factors; no run to compare with".to_owned();
        }
    }
    Ok(profiles)
}

/// The factor with which the mean end-to-end latency of the even half comes out right. The latency
/// grows with the factor, so halving the interval finds it.
fn fit_factor(profile: &Profile, truth: &Truth) -> f64 {
    let target = truth.metrics(Half::Even).e2e_ms.mean;
    let (mut low, mut high) = (0.5, 2.0);
    for _ in 0..14 {
        let middle = f64::midpoint(low, high);
        let tried = Profile {
            factor: middle,
            ..profile.clone()
        };
        let mean = fidelity::replay(&tried, truth)
            .metrics(Half::Even)
            .e2e_ms
            .mean;
        if mean < target {
            low = middle;
        } else {
            high = middle;
        }
    }
    round(f64::midpoint(low, high), 3)
}

/// Fits and writes the profiles to `out_dir`; with `check` it only compares.
///
/// # Errors
/// As [`fit`], if a file cannot be written, or with `check` if one differs.
pub fn run_calibrate(
    data_dir: &Path,
    out_dir: &Path,
    check: bool,
) -> Result<String, CalibrateError> {
    let mut report = String::new();
    let mut stale = Vec::new();
    for profile in fit(data_dir)? {
        let path = out_dir.join(format!("{}.json", profile.name));
        let text = profile.render();
        let same = fs::read_to_string(&path).is_ok_and(|old| old == text);
        if !same && check {
            stale.push(profile.name.clone());
        } else if !same {
            fs::write(&path, &text).map_err(|error| CalibrateError::File(path.clone(), error))?;
        }
        let state = if same { "as it was" } else { "changed" };
        let (name, factor, blocks) = (&profile.name, profile.factor, profile.kv_blocks);
        let kib = text.len() / 1024;
        writeln!(
            report,
            "{name:36} factor {factor:.3}  {blocks:6} blocks  {kib:3} KiB  {state}"
        )
        .expect("writing to a string");
    }
    if stale.is_empty() {
        Ok(report)
    } else {
        Err(CalibrateError::Stale(stale))
    }
}

/// `value` with `digits` digits after the point: files stay small and diffs readable.
fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}
