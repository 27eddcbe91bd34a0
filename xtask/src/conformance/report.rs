//! What is kept of a run: the suite's own report, and a page for people that says how it came about
//! and how to repeat it.

use super::suite::Outcome;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// What the report does not say by itself.
#[derive(Debug)]
pub(super) struct Run<'a> {
    /// What was called.
    pub(super) command: &'a str,
    /// Whose pickers ran, if the suite has any.
    pub(super) pickers: Option<&'a str>,
    /// Module, version and checksum of the suite.
    pub(super) suite: String,
    /// Forebay's version.
    pub(super) program: String,
    pub(super) kubernetes: String,
    pub(super) claimed: Vec<String>,
    pub(super) outcome: &'a Outcome,
}

/// The parts of the suite's report that the page repeats.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    date: String,
    #[serde(rename = "gatewayAPIVersion")]
    version: String,
    /// Only the Inference Extension's suite says it.
    #[serde(rename = "GatewayAPIInferenceExtensionVersion")]
    extension: Option<String>,
    #[serde(rename = "gatewayAPIChannel")]
    channel: String,
    #[serde(default)]
    profiles: Vec<Profile>,
    #[serde(default)]
    succeeded_provisional_tests: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Profile {
    name: String,
    core: Part,
    extended: Option<Part>,
}

#[derive(Debug, Deserialize)]
struct Part {
    result: String,
    statistics: Statistics,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Statistics {
    passed: u32,
    failed: u32,
    skipped: u32,
}

/// Copies the report to its place, with the page beside it.
pub(super) fn write(report: &Path, out: &Path, run: &Run<'_>) -> Result<()> {
    let text = fs::read_to_string(report)
        .context("the suite wrote no report: it failed before its tests, see the log")?;
    let mut read: Report = serde_saphyr::from_str(&text).context("the suite's report")?;
    // The suite lists them in no order.
    read.profiles
        .sort_by(|one, other| one.name.cmp(&other.name));
    if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(out, &text).with_context(|| format!("cannot write {}", out.display()))?;
    let page = out.with_extension("md");
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    fs::write(&page, describe(&read, &name, run))
        .with_context(|| format!("cannot write {}", page.display()))
}

/// The page.
fn describe(report: &Report, file: &str, run: &Run<'_>) -> String {
    let Report {
        date,
        version,
        channel,
        extension,
        ..
    } = report;
    let outcome = run.outcome;
    let title = match extension {
        Some(extension) => format!(
            "Gateway API Inference Extension {extension}, on Gateway API {version}, {channel} channel"
        ),
        None => format!("Gateway API {version}, {channel} channel"),
    };
    let pickers = run
        .pickers
        .map_or_else(String::new, |whose| format!("| pickers | {whose} |\n"));
    let command = run.command;
    let mut page = format!(
        "# {title}\n\n\
         What `{command}` wrote on {date}. The report itself is [{file}]({file}).\n\n\
         | | |\n|---|---|\n\
         | suite, unmodified | {} |\n\
         | Forebay | {} |\n\
         | Kubernetes | {} on a test bed with two nodes (docs/test-bed.md) |\n\
         {pickers}| tests | {} passed, {} failed, {} not claimed; {} s |\n\n\
         | profile | core | passed | failed | skipped | extended | passed | failed | skipped |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        run.suite,
        run.program,
        run.kubernetes,
        outcome.passed.len(),
        outcome.failed.len(),
        outcome.skipped.len(),
        outcome.seconds,
    );
    for profile in &report.profiles {
        let extended = profile.extended.as_ref().map_or_else(String::new, cells);
        let extended = if extended.is_empty() {
            "- | - | - | -".to_owned()
        } else {
            extended
        };
        let core = cells(&profile.core);
        writeln!(page, "| {} | {core} | {extended} |", profile.name)
            .expect("a string takes every line");
    }
    if report.extension.is_some() {
        list(&mut page, "Passed", &outcome.passed);
    }
    list(&mut page, "Failed", &outcome.failed);
    // The suite believes so before tests that run side by side have ended.
    let mut provisional = report.succeeded_provisional_tests.clone();
    provisional.retain(|name| !outcome.failed.contains(name));
    list(&mut page, "Provisional tests that passed", &provisional);
    list(&mut page, "Features claimed", &run.claimed);
    page
}

fn cells(part: &Part) -> String {
    let Statistics {
        passed,
        failed,
        skipped,
    } = part.statistics;
    format!("{} | {passed} | {failed} | {skipped}", part.result)
}

fn list(page: &mut String, title: &str, names: &[String]) {
    if !names.is_empty() {
        *page += &format!("\n{title} ({}): {}.\n", names.len(), names.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
date: \"2026-11-25T15:00:00Z\"
gatewayAPIChannel: standard
gatewayAPIVersion: v1.6.1
implementation:
  contact: [https://example.org]
  organization: forebay
kind: ConformanceReport
mode: default
profiles:
- core:
    result: success
    statistics: {Failed: 0, Passed: 37, Skipped: 0}
  extended:
    failedTests: [HTTPRouteCORS]
    result: failure
    statistics: {Failed: 1, Passed: 40, Skipped: 0}
    supportedFeatures: [HTTPRouteCORS]
  name: GATEWAY-HTTP
  summary: some
- core:
    result: success
    statistics: {Failed: 0, Passed: 15, Skipped: 0}
  name: GATEWAY-GRPC
  summary: all
succeededProvisionalTests: [HTTPRoute303Redirect, GatewayInfrastructure]
";

    #[test]
    fn the_page_has_a_line_for_each_profile_and_names_what_failed() {
        let folder = tempfile::tempdir().expect("a folder");
        let written = folder.path().join("r.yaml");
        fs::write(&written, REPORT).expect("a report");
        let out = folder.path().join("new/gateway-api-v1.6.1.yaml");
        let outcome = Outcome {
            passed: vec!["A".to_owned(), "B".to_owned()],
            failed: ["HTTPRouteCORS", "GatewayInfrastructure"]
                .map(str::to_owned)
                .to_vec(),
            ..Outcome::default()
        };
        let run = Run {
            command: "cargo xtask conformance",
            pickers: None,
            suite: "sigs.k8s.io/gateway-api/conformance v1.6.1 h1:x=".to_owned(),
            program: "0.1.0".to_owned(),
            kubernetes: "v1.36.3".to_owned(),
            claimed: vec!["Gateway".to_owned()],
            outcome: &outcome,
        };
        write(&written, &out, &run).expect("both files");
        assert_eq!(fs::read_to_string(&out).expect("the report"), REPORT);
        let page = fs::read_to_string(out.with_extension("md")).expect("the page");
        for line in [
            "# Gateway API v1.6.1, standard channel",
            "| tests | 2 passed, 2 failed, 0 not claimed; 0 s |",
            "| GATEWAY-HTTP | success | 37 | 0 | 0 | failure | 40 | 1 | 0 |",
            "| GATEWAY-GRPC | success | 15 | 0 | 0 | - | - | - | - |",
            "Failed (2): HTTPRouteCORS, GatewayInfrastructure.",
            "Provisional tests that passed (1): HTTPRoute303Redirect.",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
