//! The findings as a Markdown page that can stand beside other pages of the documentation.
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

const BEGIN: &str = "<!-- bench proxy: begin -->";
const END: &str = "<!-- bench proxy: end -->";

/// Other processes' share of the machine above which a run is called noisy: a tenth of one core
/// moves medians here by less than the rounds differ anyway.
const QUIET_FOREIGN_CORES: f64 = 0.1;

/// Writes the part into the page, making the page if it is not there.
pub(super) fn write(out: &Path, part: &str) -> Result<()> {
    let old = fs::read_to_string(out).unwrap_or_default();
    fs::write(out, replace(&old, part)).with_context(|| format!("cannot write {}", out.display()))
}

/// The page with the marked part replaced, or added at its end.
fn replace(page: &str, part: &str) -> String {
    let marked = format!("{BEGIN}\n\n{}\n\n{END}", part.trim());
    match (page.find(BEGIN), page.find(END)) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{marked}{}", &page[..from], &page[to + END.len()..])
        }
        _ if page.trim().is_empty() => format!("{marked}\n"),
        _ => format!("{}\n\n{marked}\n", page.trim_end()),
    }
}

/// The whole part: the machine, the promises, a table for each scenario.
pub(super) fn render(findings: &Findings, verdicts: &[Verdict], load_at_start: &str) -> String {
    let mut page = String::new();
    machine(&mut page, findings, load_at_start);
    promises(&mut page, verdicts);
    for (index, scenario) in findings.scenarios.iter().enumerate() {
        table(&mut page, findings, index, scenario);
    }
    page
}

/// The load averages of the last 1, 5 and 15 minutes.
pub(super) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

fn machine(page: &mut String, findings: &Findings, load_at_start: &str) {
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
    let _ = writeln!(page, "| | |\n|---|---|");
    let mut row = |name: &str, value: &str| _ = writeln!(page, "| {name} | {value} |");
    row(
        "date",
        &jiff::Timestamp::now()
            .strftime("%Y-%m-%d %H:%M UTC")
            .to_string(),
    );
    row(
        "processor",
        &format!(
            "{}, {cores} cores",
            line(&read("/proc/cpuinfo"), "model name")
        ),
    );
    row("memory", &line(&read("/proc/meminfo"), "MemTotal"));
    row("kernel", read("/proc/sys/kernel/osrelease").trim());
    row("compiler", &rustc);
    row(
        "windows",
        &format!("{} rounds of {} s", findings.rounds, findings.seconds),
    );
    row(
        "load average, start and end",
        &format!("{load_at_start}; {}", load_average()),
    );
    row("other processes", &noise(findings));
    for (peer, version) in findings
        .peers
        .iter()
        .filter(|(peer, _)| *peer != Peer::Direct)
    {
        row(peer.name(), version);
    }
    for (peer, reason) in &findings.missing {
        row(
            peer.name(),
            &format!("missing: {}", reason.replace(['\n', '|'], " ")),
        );
    }
    page.push('\n');
}

fn noise(findings: &Findings) -> String {
    let cores = findings.samples.values().map(|sample| sample.foreign_cores);
    let Some(spread) = Spread::of(cores) else {
        return "no window measured".to_owned();
    };
    let verdict = if spread.median <= QUIET_FOREIGN_CORES {
        "quiet"
    } else {
        "**noisy**"
    };
    format!("{} cores busy outside the rig: {verdict}", spread.text())
}

fn promises(page: &mut String, verdicts: &[Verdict]) {
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
        "### {}\n\n| path | CPU µs/{unit} | × nginx | × Envoy | answers/s | p50 µs | added p50 µs | \
         p99 µs | first byte p50 µs | RSS MiB, peak | switches/{unit} | errors |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|",
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
    use super::{BEGIN, END, replace};

    #[test]
    fn a_page_keeps_what_stands_around_the_marks() {
        let page = format!("# Title\n\nwords\n\n{BEGIN}\nold\n{END}\n\nmore\n");
        let new = replace(&page, "new\n");
        assert_eq!(
            new,
            format!("# Title\n\nwords\n\n{BEGIN}\n\nnew\n\n{END}\n\nmore\n")
        );
        assert_eq!(replace(&new, "new"), new, "writing twice changes nothing");
    }

    #[test]
    fn a_page_without_marks_gets_the_part_at_its_end() {
        assert_eq!(
            replace("# Title\n", "new"),
            format!("# Title\n\n{BEGIN}\n\nnew\n\n{END}\n")
        );
        assert_eq!(replace("", "new"), format!("{BEGIN}\n\nnew\n\n{END}\n"));
    }
}
