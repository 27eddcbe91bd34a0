//! The public suites, of the Gateway API and of the Inference Extension: their flags, and their own reports.

use super::suite::{Outcome, provenance};
use super::{Scene, report};
use crate::cluster::Suite;
use anyhow::{Context, Result};
use std::path::Path;

/// Runs that of the Gateway API.
pub(super) fn gateway_api(scene: &Scene<'_>) -> Result<Outcome> {
    play(scene, "cargo xtask conformance", &scene.claimed)
}

/// Runs that of the Inference Extension. It knows by itself which features its profile has.
pub(super) fn inference_extension(scene: &Scene<'_>) -> Result<Outcome> {
    let command = match scene.args.epp {
        true => "cargo xtask conformance --inference-extension --epp",
        false => "cargo xtask conformance --inference-extension",
    };
    play(scene, command, &[])
}

fn play(scene: &Scene<'_>, command: &str, claimed: &[String]) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let written = folder.path().join("report.yaml");
    let outcome = scene.play("TestConformance", folder.path(), &flags(scene, &written))?;
    if let Some(out) = scene.args.report(scene.version, &outcome)? {
        let run = report::Run {
            command,
            pickers: scene.pickers(),
            suite: provenance(scene.suite)?,
            program: scene.program.version.clone(),
            kubernetes: scene.bed.kubernetes()?,
            claimed: claimed.to_vec(),
            outcome: &outcome,
        };
        report::write(&written, &out, &run)?;
        println!("report: {}", out.display());
    }
    Ok(outcome)
}

fn flags(scene: &Scene<'_>, report: &Path) -> Vec<String> {
    let mut flags = match scene.which {
        Suite::InferenceExtension => Vec::new(),
        Suite::GatewayApi | Suite::Inference => vec![
            format!("-conformance-profiles={}", scene.args.profile.join(",")),
            format!("-supported-features={}", scene.claimed.join(",")),
            format!("-usable-address={}", scene.bed.free_address()),
            // Of a range that is for documentation, so no load balancer has it.
            "-unusable-address=192.0.2.1".to_owned(),
        ],
    };
    flags.extend([
        format!("-report-output={}", report.display()),
        "-organization=forebay".to_owned(),
        "-project=forebay".to_owned(),
        "-url=https://github.com/forebay/forebay".to_owned(),
        "-contact=https://github.com/forebay/forebay/issues".to_owned(),
        format!("-version={}", scene.program.version),
    ]);
    flags
}
