//! The Gateway API's public suite: its flags, and its own report.

use super::suite::{Outcome, provenance};
use super::{Scene, report};
use anyhow::{Context, Result};
use std::path::Path;

/// Runs it.
pub(super) fn run(scene: &Scene<'_>) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let written = folder.path().join("report.yaml");
    let outcome = scene.play("TestConformance", folder.path(), &flags(scene, &written))?;
    if let Some(out) = scene.args.report(scene.version, &outcome)? {
        let run = report::Run {
            suite: provenance(scene.suite)?,
            program: scene.program.version.clone(),
            kubernetes: scene.bed.kubernetes()?,
            claimed: scene.claimed.clone(),
            outcome: &outcome,
        };
        report::write(&written, &out, &run)?;
        println!("report: {}", out.display());
    }
    Ok(outcome)
}

fn flags(scene: &Scene<'_>, report: &Path) -> Vec<String> {
    vec![
        format!("-conformance-profiles={}", scene.args.profile.join(",")),
        format!("-supported-features={}", scene.claimed.join(",")),
        format!("-usable-address={}", scene.bed.free_address()),
        // Of a range that is for documentation, so no load balancer has it.
        "-unusable-address=192.0.2.1".to_owned(),
        format!("-report-output={}", report.display()),
        "-organization=forebay".to_owned(),
        "-project=forebay".to_owned(),
        "-url=https://github.com/forebay/forebay".to_owned(),
        "-contact=https://github.com/forebay/forebay/issues".to_owned(),
        format!("-version={}", scene.program.version),
    ]
}
