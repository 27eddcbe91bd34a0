//! Forebay's own suite for InferencePools, which is not the public one of the Inference Extension, and a
//! page that says so.

use super::Scene;
use super::suite::Outcome;
use crate::bed::BED_IMAGE;
use crate::shell;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

/// How Forebay's picker is started in the place of the suite's own; the suite knows the pool.
const EPP_ARGS: &str = "epp --pool-name={pool} --test-selection";

/// Runs it.
pub(super) fn run(scene: &Scene<'_>) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut flags = Vec::new();
    if scene.args.epp {
        flags.push(format!("-picker-image={BED_IMAGE}"));
        flags.push(format!("-picker-args={EPP_ARGS}"));
    }
    let outcome = scene.play("TestInference", folder.path(), &flags)?;
    if let Some(out) = scene.args.report(scene.version, &outcome)? {
        let mut list = Command::new(scene.suite);
        let tests = shell::capture(list.args(["-test.run", "^TestInference$", "-list-tests"]))?;
        let page = describe(
            &tests,
            scene.args.epp,
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
fn describe(tests: &str, epp: bool, program: &str, kubernetes: &str, outcome: &Outcome) -> String {
    let (flag, pickers) = match epp {
        true => (
            " --epp",
            format!("the pickers are Forebay's too: `forebay {EPP_ARGS}`"),
        ),
        false => ("", "the pickers are the suite's own".to_owned()),
    };
    let mut page = format!(
        "# Forebay's own inference suite\n\n\
         What `cargo xtask conformance --inference{flag}` wrote; {pickers}. The suite is ours, in \
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
            } else if of(&outcome.skipped) {
                "left out: it takes the suite's own picker, which is told what to refuse"
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
        let page = describe(tests, false, "0.1.0", "v1.36.3", &outcome);
        assert!(page.contains("it is not\nthe public conformance suite"));
        assert!(page.contains("| FailOpen | served all the same | passed |\n"));
        assert!(page.contains("| Trailers | they pass | **failed** |\n"));
        assert_eq!(page.matches("PASS").count(), 0);
        assert!(page.contains("the suite's own"));

        let page = describe(tests, true, "0.1.0", "v1.36.3", &outcome);
        assert!(page.contains("`forebay epp --pool-name={pool} --test-selection`"));
    }
}
