//! Runs a program of Go tests: its output goes to a log file, and a line for each test to the
//! terminal.

use crate::shell;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Lines of a failed test that are shown: enough for the assertion and where it stands.
const LINES_SHOWN: usize = 25;

/// What came of a run. Only the tests directly below the one that `go test` calls count; theirs are
/// parts of them.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) passed: Vec<String>,
    pub(super) failed: Vec<String>,
    pub(super) skipped: Vec<String>,
    /// As the program's exit status says.
    pub(super) success: bool,
    pub(super) seconds: u64,
}

impl Outcome {
    /// Whether something ran, and all of it passed.
    pub(super) fn is_flawless(&self) -> bool {
        self.success && self.failed.is_empty() && !self.passed.is_empty()
    }

    pub(super) fn closing_line(&self) -> String {
        let mut line = format!(
            "{} passed; {} failed; {} not claimed or left out; {} s",
            self.passed.len(),
            self.failed.len(),
            self.skipped.len(),
            self.seconds
        );
        for name in &self.failed {
            line += &format!("\n  failed: {name}");
        }
        line
    }
}

/// Runs it to its end, however long that takes.
pub(super) fn run(command: &mut Command, log: &Path) -> Result<Outcome> {
    let folder = log.parent().context("a log without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut file = BufWriter::new(file);
    eprintln!("$ {}", shell::describe(command));
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the suite")?;
    let mut reader = Reader::default();
    let lines = BufReader::new(child.stdout.take().context("the suite has no output")?);
    for line in lines.split(b'\n') {
        let line = line.context("the output of the suite broke off")?;
        let line = String::from_utf8_lossy(&line);
        writeln!(file, "{line}").context("the log cannot be written")?;
        if let Some(news) = reader.take(&line) {
            file.flush().context("the log cannot be written")?;
            println!("[{:6.1} s] {news}", started.elapsed().as_secs_f64());
        }
    }
    let status = child.wait().context("lost sight of the suite")?;
    if !status.success() && reader.outcome.failed.is_empty() {
        println!("{}", reader.last_words("").join("\n"));
    }
    Ok(Outcome {
        success: status.success(),
        seconds: started.elapsed().as_secs(),
        ..reader.outcome
    })
}

/// What Go puts before its own lines where it means a program to read them.
const MARK: char = '\u{16}';

/// Follows the output of `go test -v=test2json`, in which tests that run side by side take turns. With
/// -v alone, Go keeps the verdicts of tests within a test until that ends.
#[derive(Debug, Default)]
struct Reader {
    outcome: Outcome,
    /// The test that the next lines are from; empty outside of one.
    current: String,
    /// The last lines of each test that runs.
    tails: BTreeMap<String, VecDeque<String>>,
}

impl Reader {
    /// Takes one line; returns what to tell of it.
    fn take(&mut self, line: &str) -> Option<String> {
        let line = line.strip_prefix(MARK).unwrap_or(line);
        if let Some((verb, path)) = turn(line) {
            if verb != "PAUSE" {
                self.current = below_root(path).unwrap_or_default().to_owned();
            }
            return None;
        }
        let Some((verdict, name, seconds)) = end(line) else {
            let tail = self.tails.entry(self.current.clone()).or_default();
            if tail.len() == LINES_SHOWN {
                tail.pop_front();
            }
            tail.push_back(line.to_owned());
            return None;
        };
        let name = below_root(name).filter(|_| is_direct(name))?.to_owned();
        let told = match verdict {
            "PASS" => {
                self.outcome.passed.push(name.clone());
                Some(format!("pass  {seconds:>7}  {name}"))
            }
            "FAIL" => {
                let words = self.last_words(&name).join("\n    ");
                self.outcome.failed.push(name.clone());
                Some(format!("FAIL  {seconds:>7}  {name}\n    {words}"))
            }
            _ => {
                self.outcome.skipped.push(name.clone());
                None
            }
        };
        self.tails.remove(&name);
        told
    }

    fn last_words(&self, test: &str) -> Vec<String> {
        let lines = self.tails.get(test).into_iter().flatten();
        lines.map(|line| line.trim_end().to_owned()).collect()
    }
}

/// `=== RUN   TestA/B`: the verb and the test.
fn turn(line: &str) -> Option<(&str, &str)> {
    let mut words = line.strip_prefix("=== ")?.split_whitespace();
    Some((words.next()?, words.next()?))
}

/// `    --- PASS: TestA/B (1.23s)`: the verdict, the test and its time.
fn end(line: &str) -> Option<(&str, &str, &str)> {
    let rest = line.trim_start().strip_prefix("--- ")?;
    let (verdict, rest) = rest.split_once(": ")?;
    let (name, time) = rest.split_once(' ')?;
    let time = time.strip_prefix('(')?.strip_suffix(')')?;
    matches!(verdict, "PASS" | "FAIL" | "SKIP").then_some((verdict, name, time))
}

/// `B` of `TestA/B/C`.
fn below_root(path: &str) -> Option<&str> {
    path.split('/').nth(1)
}

fn is_direct(path: &str) -> bool {
    path.split('/').count() == 2
}

/// Which module the program was made of, and its checksum: `module v1.2.3 h1:...`.
pub(super) fn provenance(program: &Path) -> Result<String> {
    let text = shell::capture(Command::new("go").args(["version", "-m"]).arg(program))?;
    let line = text
        .lines()
        .map(str::trim_start)
        .find_map(|line| line.strip_prefix("mod\t"));
    let line = line.context("the suite does not say of which module it is")?;
    Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
\u{16}=== RUN   TestConformance
    suite.go:1: setup
\u{16}=== RUN   TestConformance/Simple
    http.go:1: asking
\u{16}=== RUN   TestConformance/Simple/one
\u{16}--- PASS: TestConformance/Simple/one (0.10s)
\u{16}--- PASS: TestConformance/Simple (1.50s)
=== RUN   TestConformance/Side
=== PAUSE TestConformance/Side
=== RUN   TestConformance/Mesh
    --- SKIP: TestConformance/Mesh (0.00s)
=== RUN   TestConformance/Broken
    http.go:9: wrong status
=== CONT  TestConformance/Side
    http.go:2: asking
=== NAME  TestConformance/Broken
    http.go:9: 503 for 200
    --- FAIL: TestConformance/Broken (2.00s)
    --- PASS: TestConformance/Side (3.00s)
--- FAIL: TestConformance (9.00s)
FAIL
";

    #[test]
    fn each_test_is_told_once_and_a_failure_with_its_own_last_words() {
        let mut reader = Reader::default();
        let told: Vec<String> = OUTPUT
            .lines()
            .filter_map(|line| reader.take(line))
            .collect();
        assert_eq!(
            told,
            [
                "pass    1.50s  Simple",
                "FAIL    2.00s  Broken\n        http.go:9: wrong status\n        http.go:9: 503 for 200",
                "pass    3.00s  Side",
            ]
        );
        let outcome = reader.outcome;
        assert_eq!(outcome.passed, ["Simple", "Side"]);
        assert_eq!(outcome.failed, ["Broken"]);
        assert_eq!(outcome.skipped, ["Mesh"]);
    }

    #[test]
    fn lines_that_only_look_like_an_end_are_the_test_s_own() {
        assert_eq!(end("--- a diff"), None);
        assert_eq!(end("--- Expected: 1 (got 2)"), None);
    }
}
