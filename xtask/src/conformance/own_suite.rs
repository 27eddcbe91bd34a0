//! Forebay's own suite for InferencePools, which is not the public one of the Inference Extension, and a
//! page that says so.

use super::Scene;
use super::suite::Outcome;
use crate::shell;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

/// Runs it.
pub(super) fn run(scene: &Scene<'_>) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let outcome = scene.play("TestInference", folder.path(), &[])?;
    if let Some(out) = scene.args.report(scene.version, &outcome)? {
        let mut list = Command::new(scene.suite);
        let tests = shell::capture(list.args(["-test.run", "^TestInference$", "-list-tests"]))?;
        let page = describe(
            &tests,
            &scene.program.version,
            &scene.bed.kubernetes()?,
            &outcome,
        );
        if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::write(&out, page).with_context(|| format!("cannot write {}", out.display()))?;
        println!("report: {}", out.display());
    }
    Ok(outcome)
}

/// The page, from the suite's list of its tests: `test`, name and sentence, with tabs in between.
fn describe(tests: &str, program: &str, kubernetes: &str, outcome: &Outcome) -> String {
    let mut page = format!(
        "# Forebay's own inference suite\n\n\
         What `cargo xtask conformance --inference` wrote. The suite is ours, in \
         `tools/conformance/inference`; it is not\nthe public conformance suite of the Inference \
         Extension, and this page is no conformance report.\n\n\
         Forebay {program} on Kubernetes {kubernetes}, a test bed with two nodes: {} passed, {} \
         failed, {} s.\n\n\
         | test | what is asked for | |\n|---|---|---|\n",
        outcome.passed.len(),
        outcome.failed.len(),
        outcome.seconds,
    );
    for line in tests.lines() {
        let mut parts = line.split('\t');
        if let (Some("test"), Some(name), Some(checks)) = (parts.next(), parts.next(), parts.next())
        {
            let of = |names: &[String]| names.iter().any(|found| found == name);
            let result = if of(&outcome.passed) {
                "passed"
            } else if of(&outcome.failed) {
                "**failed**"
            } else {
                "not run"
            };
            writeln!(page, "| {name} | {checks} | {result} |").expect("a string takes every line");
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_whose_suite_it_is_and_what_came_of_each_test() {
        let outcome = Outcome {
            passed: vec!["FailOpen".to_owned()],
            failed: vec!["Trailers".to_owned()],
            ..Outcome::default()
        };
        let tests = "test\tFailOpen\tserved all the same\ntest\tTrailers\tthey pass\nPASS\n";
        let page = describe(tests, "0.1.0", "v1.36.3", &outcome);
        assert!(page.contains("it is not\nthe public conformance suite"));
        assert!(page.contains("| FailOpen | served all the same | passed |\n"));
        assert!(page.contains("| Trailers | they pass | **failed** |\n"));
        assert_eq!(page.matches("PASS").count(), 0);
    }
}
