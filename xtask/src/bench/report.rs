//! Findings as a Markdown page that can stand beside other pages of the documentation.
//!
//! Only the part between two marks is ours; whatever a person wrote around it stays.

use super::load::Sample;
use super::peers::Peer;
use super::promise::{Verdict, cost_us};
use super::scenario::{Kind, Scenario};
use super::stats::{Spread, short};
use super::{Findings, shell};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Other processes' share of the machine above which a run is called noisy: a tenth of one core
/// moves medians here by less than the rounds differ anyway.
pub(super) const QUIET_FOREIGN_CORES: f64 = 0.1;

/// Writes the part of this benchmark into the page, making the page if it is not there.
pub(crate) fn write(out: &Path, bench: &str, part: &str) -> Result<()> {
    let old = fs::read_to_string(out).unwrap_or_default();
    fs::write(out, replace(&old, bench, part))
        .with_context(|| format!("cannot write {}", out.display()))
}

/// The page with the marked part replaced, or added at its end.
fn replace(page: &str, bench: &str, part: &str) -> String {
    let mark = |which: &str| format!("<!-- bench {bench}: {which} -->");
    let (begin, end) = (mark("begin"), mark("end"));
    let marked = format!("{begin}\n\n{}\n\n{end}", part.trim());
    match (page.find(&begin), page.find(&end)) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{marked}{}", &page[..from], &page[to + end.len()..])
        }
        _ if page.trim().is_empty() => format!("{marked}\n"),
        _ => format!("{}\n\n{marked}\n", page.trim_end()),
    }
}

/// The whole part: the machine, the promises, a table for each scenario.
pub(super) fn render(findings: &Findings, verdicts: &[Verdict], load_at_start: &str) -> String {
    let mut page = String::new();
    rows(&mut page, &machine(findings, load_at_start));
    promises(&mut page, verdicts);
    for (index, scenario) in findings.scenarios.iter().enumerate() {
        table(&mut page, findings, index, scenario);
    }
    page
}

/// The load averages of the last 1, 5 and 15 minutes.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

/// A table of names and what they stand for.
pub(crate) fn rows(page: &mut String, rows: &[(&str, String)]) {
    page.push_str("| | |\n|---|---|\n");
    for (name, value) in rows {
        let _ = writeln!(page, "| {name} | {value} |");
    }
    page.push('\n');
}

/// When and on what is measured.
pub(crate) fn surroundings() -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let line = |text: &str, name: &str| {
        let found = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        found
            .split_once(':')
            .map_or("unknown", |(_, value)| value.trim())
            .to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let rustc = shell::capture(Command::new("rustc").arg("--version")).unwrap_or_default();
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC");
    let model = line(&read("/proc/cpuinfo"), "model name");
    vec![
        ("date", date.to_string()),
        ("processor", format!("{model}, {cores} cores")),
        ("memory", line(&read("/proc/meminfo"), "MemTotal")),
        (
            "kernel",
            read("/proc/sys/kernel/osrelease").trim().to_owned(),
        ),
        ("compiler", rustc),
    ]
}

/// Whether the kernel backs memory with huge pages, which makes what is resident larger than what is
/// in use: the word in brackets.
pub(super) fn huge_pages() -> String {
    let modes = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    modes.map_or_else(|_| "unknown".to_owned(), |modes| modes.trim().to_owned())
}

fn machine(findings: &Findings, load_at_start: &str) -> Vec<(&'static str, String)> {
    let mut rows = surroundings();
    let foreign = findings.samples.values().map(|sample| sample.foreign_cores);
    rows.extend([
        (
            "windows",
            format!("{} rounds of {} s", findings.rounds, findings.seconds),
        ),
        (
            "load average, start and end",
            format!("{load_at_start}; {}", load_average()),
        ),
        ("other processes", noise(Spread::of(foreign))),
    ]);
    let peers = findings.peers.iter();
    rows.extend(
        peers
            .filter(|(peer, _)| *peer != Peer::Direct)
            .map(|(peer, version)| (peer.name(), version.clone())),
    );
    rows.extend(findings.missing.iter().map(|(peer, reason)| {
        let reason = reason.replace(['\n', '|'], " ");
        (peer.name(), format!("missing: {reason}"))
    }));
    rows
}

/// Whether a run with these numbers of foreign busy cores is to be trusted.
pub(super) fn noise(foreign_cores: Option<Spread>) -> String {
    let Some(spread) = foreign_cores else {
        return "no window measured".to_owned();
    };
    let verdict = if spread.median <= QUIET_FOREIGN_CORES {
        "quiet"
    } else {
        "**noisy**"
    };
    format!("{} cores busy outside the rig: {verdict}", spread.text())
}

/// The table of promises.
pub(super) fn promises(page: &mut String, verdicts: &[Verdict]) {
    page.push_str("### Promises\n\n| promise | limit | measured | verdict |\n|---|---|---|---|\n");
    for verdict in verdicts {
        let promise = verdict.promise;
        let _ = writeln!(
            page,
            "| {} | ≤ {} {unit} | {} | {} |",
            promise.text,
            promise.limit,
            verdict.measured.map_or_else(dash, |m| format!(
                "{} {unit}",
                m.text(),
                unit = promise.unit
            )),
            verdict.word(),
            unit = promise.unit,
        );
    }
    page.push('\n');
}

fn table(page: &mut String, findings: &Findings, index: usize, scenario: &Scenario) {
    let unit = match scenario.kind {
        Kind::Plain => "request",
        Kind::Stream { gap_ms, .. } if gap_ms > 0 => "event",
        Kind::Stream { .. } => "stream",
    };
    let _ = writeln!(
        page,
        "### {}\n\n| path | CPU µs/{unit} | of it kernel | × nginx | × Envoy | answers/s | p50 µs | added p50 µs | \
         p99 µs | first byte p50 µs | RSS MiB, peak | switches/{unit} | errors |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|",
        scenario.title
    );
    for (peer, _) in &findings.peers {
        let _ = writeln!(page, "| {} |", row(findings, index, *peer).join(" | "));
    }
    page.push('\n');
}

/// What stands in a cell without a value.
fn dash() -> String {
    "-".into()
}

/// The cells of one peer in one scenario.
fn row(findings: &Findings, index: usize, peer: Peer) -> Vec<String> {
    let kind = findings.scenarios[index].kind;
    let at = |peer: Peer, round| findings.samples.get(&(index, peer.name(), round));
    let spread =
        |value: &dyn Fn(usize) -> Option<f64>| Spread::of((0..findings.rounds).filter_map(value));
    let of = |value: &dyn Fn(&Sample) -> Option<f64>| spread(&|round| value(at(peer, round)?));
    let ratio_to = |other: Peer| {
        spread(&|round| Some(cost_us(kind, at(peer, round)?)? / cost_us(kind, at(other, round)?)?))
    };
    let text = |spread: Option<Spread>| spread.map_or_else(dash, |s| s.text());
    let middle = |spread: Option<Spread>| spread.map_or_else(dash, |s| short(s.median));
    let cost = of(&|s| cost_us(kind, s));
    let added = spread(&|round| Some(at(peer, round)?.p50_us - at(Peer::Direct, round)?.p50_us));
    let switches = of(&|s| {
        let units = s.proxy_cpu_us / cost_us(kind, s)?;
        Some(s.switches as f64 / units)
    });
    let kernel = of(&|s| Some(cost_us(kind, s)? * s.proxy_kernel_share?));
    let errors: u64 = (0..findings.rounds)
        .filter_map(|r| at(peer, r))
        .map(|s| s.errors)
        .sum();
    vec![
        if peer == Peer::Direct {
            "direct (the mocks' own CPU)"
        } else {
            peer.name()
        }
        .to_owned(),
        text(cost),
        if peer == Peer::Direct {
            dash()
        } else {
            middle(kernel)
        },
        middle(ratio_to(Peer::Nginx)),
        middle(ratio_to(Peer::Envoy)),
        middle(of(&|s| Some(s.requests as f64 / s.seconds))),
        text(of(&|s| Some(s.p50_us))),
        if peer == Peer::Direct {
            dash()
        } else {
            middle(added)
        },
        middle(of(&|s| Some(s.p99_us))),
        middle(of(&|s| Some(s.first_byte_p50_us))),
        middle(of(&|s| Some(s.rss_peak_kib as f64 / 1_024.0))),
        middle(switches),
        errors.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::replace;

    const BEGIN: &str = "<!-- bench proxy: begin -->";
    const END: &str = "<!-- bench proxy: end -->";

    #[test]
    fn a_page_keeps_what_stands_around_the_marks() {
        let page = format!("# Title\n\nwords\n\n{BEGIN}\nold\n{END}\n\nmore\n");
        let new = replace(&page, "proxy", "new\n");
        assert_eq!(
            new,
            format!("# Title\n\nwords\n\n{BEGIN}\n\nnew\n\n{END}\n\nmore\n")
        );
        assert_eq!(
            replace(&new, "proxy", "new"),
            new,
            "writing twice changes nothing"
        );
        let other = replace(&new, "footprint", "other");
        assert!(
            other.starts_with(&new),
            "another benchmark's part is another"
        );
    }

    #[test]
    fn a_page_without_marks_gets_the_part_at_its_end() {
        assert_eq!(
            replace("# Title\n", "proxy", "new"),
            format!("# Title\n\n{BEGIN}\n\nnew\n\n{END}\n")
        );
        assert_eq!(
            replace("", "proxy", "new"),
            format!("{BEGIN}\n\nnew\n\n{END}\n")
        );
    }
}
