//! `cargo xtask test`: the workspace's tests with everything they can use prepared, and every
//! skip named at the end.
//!
//! A test that cannot run says so by appending one line, `name: reason`, to the file named by
//! `FOREBAY_SKIPS`; a quiet skip would look like a pass. The tests themselves are cargo's.

use crate::cluster::TestBed;
use crate::{conformance, python, shell};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What to test.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask test                       the whole workspace\n  \
    cargo xtask test -- -p forebay sdk     one crate's tests whose name has `sdk`\n\n\
    Tests find the prepared Python in FOREBAY_SDK_PYTHON, or in FOREBAY_SDK_SKIP why there is\n\
    none; Envoy by FOREBAY_TEST_ENVOY, or in FOREBAY_ENVOY_SKIP why there is none; a Kubernetes API server with three fake nodes by FOREBAY_TEST_KUBECONFIG, its kubectl\n\
    by FOREBAY_TEST_KUBECTL and the module of Gateway API by FOREBAY_TEST_GATEWAY_API, or in\n\
    FOREBAY_CLUSTER_SKIP why there is none; in FOREBAY_DHCP_SKIP why there is no dnsmasq; and append what they skip to the file FOREBAY_SKIPS as `name: reason`.")]
pub(crate) struct Args {
    /// Arguments for `cargo test` in place of `--workspace`
    #[arg(last = true)]
    cargo_args: Vec<String>,
}

/// Counts from the runner's closing lines.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// Runs the tests; fails when one fails or when none ran.
pub(crate) fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let skip_log = scratch.path().join("skips");
    let mut command = shell::cargo();
    command
        .arg("test")
        .arg("--no-fail-fast")
        .env("FOREBAY_SKIPS", &skip_log);
    if args.cargo_args.is_empty() {
        command.arg("--workspace");
    } else {
        command.args(&args.cargo_args);
    }
    let sdk_skip = prepare_sdk(&mut command);
    let envoy_skip = prepare_envoy(&mut command);
    let (_bed, cluster_skip) = prepare_cluster(&mut command);
    let dhcp_skip = prepare_dhcp(&mut command);

    let (tally, success) = tee(&mut command)?;
    let mut skips: Vec<String> = fs::read_to_string(&skip_log)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect();
    for (what, reason) in [
        ("sdk", sdk_skip),
        ("envoy", envoy_skip),
        ("cluster", cluster_skip),
        ("dhcp", dhcp_skip),
    ] {
        let unsaid = |reason: &String| !skips.iter().any(|line| line.contains(reason));
        if let Some(reason) = reason.filter(unsaid) {
            skips.push(format!("{what}: {reason}"));
        }
    }
    print_closing(&skips, &tally, success, started.elapsed().as_secs());
    if !success {
        bail!(
            "{} test(s) failed, or the tests did not build",
            tally.failed
        );
    }
    if tally.passed == 0 {
        bail!("no test ran: check the arguments after `--`");
    }
    Ok(())
}

/// Makes the SDK environment known to the tests; returns why it is not there otherwise.
fn prepare_sdk(command: &mut Command) -> Option<String> {
    let list = shell::root().join("tests-sdk/requirements.txt");
    let prepared = fs::read_to_string(&list)
        .with_context(|| format!("cannot read {}", list.display()))
        .and_then(|text| python::venv("sdk", &text));
    match prepared {
        Ok(python) => {
            command.env("FOREBAY_SDK_PYTHON", python);
            None
        }
        Err(error) => {
            let reason = format!("{error:#}");
            command
                .env_remove("FOREBAY_SDK_PYTHON")
                .env("FOREBAY_SDK_SKIP", &reason);
            Some(reason)
        }
    }
}

/// Makes Envoy known to the tests; returns why it is not there otherwise.
fn prepare_envoy(command: &mut Command) -> Option<String> {
    match python::envoy() {
        Ok(program) => {
            command.env("FOREBAY_TEST_ENVOY", program);
            None
        }
        Err(error) => {
            let reason = format!("{error:#}");
            command
                .env_remove("FOREBAY_TEST_ENVOY")
                .env("FOREBAY_ENVOY_SKIP", &reason);
            Some(reason)
        }
    }
}

/// Makes a DHCP server known to the tests; returns why there is none otherwise.
fn prepare_dhcp(command: &mut Command) -> Option<String> {
    match crate::cluster::installed("dnsmasq", "dnsmasq-base") {
        Ok(()) => {
            command.env_remove("FOREBAY_DHCP_SKIP");
            None
        }
        Err(error) => {
            let reason = format!("{error:#}");
            command.env("FOREBAY_DHCP_SKIP", &reason);
            Some(reason)
        }
    }
}

/// Makes an API server known to the tests, which lives as long as the first value; returns why
/// there is none otherwise.
fn prepare_cluster(command: &mut Command) -> (Option<TestBed>, Option<String>) {
    match TestBed::start().and_then(|bed| Ok((conformance::gateway_api()?, bed))) {
        Ok((gateway_api, bed)) => {
            command
                .env("FOREBAY_TEST_KUBECONFIG", bed.kubeconfig())
                .env("FOREBAY_TEST_KUBECTL", bed.kubectl())
                .env("FOREBAY_TEST_GATEWAY_API", gateway_api);
            (Some(bed), None)
        }
        Err(error) => {
            let reason = format!("{error:#}");
            command
                .env_remove("FOREBAY_TEST_KUBECONFIG")
                .env("FOREBAY_CLUSTER_SKIP", &reason);
            (None, Some(reason))
        }
    }
}

/// Runs the tests, passing their output on while adding up the closing lines.
fn tee(command: &mut Command) -> Result<(Tally, bool)> {
    eprintln!("$ {}", shell::describe(command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let mut tally = Tally::default();
    let mut out = std::io::stdout().lock();
    let lines = BufReader::new(child.stdout.take().expect("stdout was set to piped above"));
    for line in lines.split(b'\n') {
        let line = line.context("the output of cargo test broke off")?;
        out.write_all(&line)?;
        out.write_all(b"\n")?;
        tally.add(&String::from_utf8_lossy(&line));
    }
    let status = child.wait().context("lost sight of cargo test")?;
    Ok((tally, status.success()))
}

/// The last lines of a run: what was skipped and why, then the totals in the runner's own words.
fn print_closing(skips: &[String], tally: &Tally, success: bool, seconds: u64) {
    println!();
    for skip in skips {
        println!("skipped {skip}");
    }
    let verdict = if success { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {} passed; {} failed; {} ignored; {} skipped; finished in {seconds} s",
        tally.passed,
        tally.failed,
        tally.ignored,
        skips.len(),
    );
}

impl Tally {
    /// Adds a line such as `test result: ok. 12 passed; 0 failed; 1 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some(rest) = line.trim_start().strip_prefix("test result:") else {
            return;
        };
        for part in rest.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(count) = count.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn closing_lines_add_up_and_other_lines_do_not_count() {
        let mut tally = Tally::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "test names_are_kept ... ok",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 5 filtered out; finished in 0.10s",
        ] {
            tally.add(line);
        }
        assert_eq!(
            tally,
            Tally {
                passed: 15,
                failed: 2,
                ignored: 1
            }
        );
    }
}
