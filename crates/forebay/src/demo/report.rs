//! What the demo prints: progress while a run lasts, the table at its end.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use forebay_simulate::load::Summary;
use rustix::time::{ClockId, clock_gettime};

use super::workload::Scenario;
use crate::table::{render, row};

/// Time between lines where the output is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Lag at p95 of the load generator, in milliseconds, from which a run measured this machine.
const LAG_P95_MAX_MS: f64 = 20.0;
/// Share of a run's simulated time that the servers may skip before the same holds.
const SKIPPED_SHARE_MAX: f64 = 0.005;

/// One run's result.
pub(super) struct Run {
    pub(super) picker: &'static str,
    pub(super) summary: Summary,
    /// Simulated time that the servers gave up because the machine was too slow.
    pub(super) skipped: Duration,
    /// CPU time of the whole process.
    pub(super) cpu: Duration,
}

/// One line that follows a run.
pub(super) struct Progress {
    picker: String,
    planned_s: f64,
    terminal: bool,
    shown: Instant,
}

impl Progress {
    pub(super) fn new(picker: &str, scenario: &Scenario) -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            picker: picker.to_owned(),
            planned_s: scenario.duration().as_secs_f64(),
            terminal,
            shown: Instant::now(),
        }
    }

    pub(super) fn show(&mut self, so_far: &Summary) {
        if self.terminal {
            put(&format!("\r\x1b[2K{}", self.line(so_far)));
        } else if self.shown.elapsed() >= LINE_EVERY {
            self.shown = Instant::now();
            put(&format!("{}\n", self.line(so_far)));
        }
    }

    pub(super) fn end(&self, summary: &Summary) {
        let back = if self.terminal { "\r\x1b[2K" } else { "" };
        put(&format!("{back}{}\n", self.line(summary)));
    }

    /// Leaves the line that was shown last, so that what is said next stands below it.
    pub(super) fn break_off(&self) {
        if self.terminal {
            put("\n");
        }
    }

    fn line(&self, summary: &Summary) -> String {
        let ttft = match summary.ttft.count() {
            0 => "-".to_owned(),
            _ => format!("{:.0} ms", summary.ttft.quantile_ms(0.5)),
        };
        format!(
            "  {:<14} {:>5.1} of {:.0} s  {:>4} requests sent, {:>4} answered  TTFT p50 {:>9}  from cache {:>3.0} %",
            self.picker,
            summary.elapsed.as_secs_f64(),
            self.planned_s,
            summary.started,
            summary.completed,
            ttft,
            summary.prefix_hit_rate() * 100.0,
        )
    }
}

/// Progress is a courtesy: a closed pipe must not end the run.
fn put(text: &str) {
    let mut out = io::stdout().lock();
    let _closed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// CPU time of this process so far.
pub(super) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Both runs side by side. Times are the simulated servers': divided by the time scale.
pub(super) fn table(scenario: &Scenario, baseline: &Run, ours: &Run) -> String {
    let scale = scenario.time_scale;
    let mut rows = vec![row(["SIMULATED", baseline.picker, ours.picker, ""])];
    let mut time = |name: &str, of: fn(&Summary) -> f64| {
        let (a, b) = (of(&baseline.summary) / scale, of(&ours.summary) / scale);
        rows.push(vec![
            name.to_owned(),
            ms(a),
            ms(b),
            format!("{:.1} x", a / b.max(1e-9)),
        ]);
    };
    time("time to first token, p50", |s| s.ttft.quantile_ms(0.5));
    time("time to first token, p95", |s| s.ttft.quantile_ms(0.95));
    time("between tokens, p50", |s| s.itl.quantile_ms(0.5));
    time("whole answer, p50", |s| s.e2e.quantile_ms(0.5));
    let (a, b) = (rate(baseline, scale), rate(ours, scale));
    let change = format!("{:+.0} %", (b / a.max(1e-9) - 1.0) * 100.0);
    rows.push(vec![
        "output tokens/s".to_owned(),
        format!("{a:.0}"),
        format!("{b:.0}"),
        change,
    ]);
    let mut text = |name: &str, of: fn(&Run) -> String| {
        rows.push(vec![name.to_owned(), of(baseline), of(ours), String::new()]);
    };
    text("prompt tokens from cache", |r| {
        format!("{:.0} %", r.summary.prefix_hit_rate() * 100.0)
    });
    text("requests answered", |r| r.summary.completed.to_string());
    text("requests failed", |r| r.summary.failed().to_string());
    text("busiest / mean server", |r| {
        format!("{:.2}", spread(&r.summary))
    });
    text("CPU in use, cores", |r| {
        format!(
            "{:.2}",
            r.cpu.as_secs_f64() / r.summary.elapsed.as_secs_f64().max(1e-9)
        )
    });
    text("load generator lag, p95", |r| {
        ms(r.summary.lag.quantile_ms(0.95))
    });
    text("simulator lag", |r| ms(r.skipped.as_secs_f64() * 1e3));
    let warnings = [baseline, ours].map(|run| warning(scenario, run)).concat();
    format!("\n{}{warnings}", render(&rows, 2, 1))
}

fn ms(ms: f64) -> String {
    if ms < 100.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

fn rate(run: &Run, scale: f64) -> f64 {
    run.summary.output_tokens_per_s() * scale
}

/// Requests of the busiest endpoint over the mean: 1 is even.
fn spread(summary: &Summary) -> f64 {
    let most = summary.endpoints.values().max().copied().unwrap_or(0) as f64;
    let mean = summary.completed as f64 / f64::from(super::servers::COUNT);
    most / mean.max(1e-9)
}

/// Says when a run measured this machine rather than the pickers.
fn warning(scenario: &Scenario, run: &Run) -> String {
    let lag_ms = run.summary.lag.quantile_ms(0.95);
    let simulated = run.summary.elapsed.as_secs_f64() / scenario.time_scale;
    let skipped =
        run.skipped.as_secs_f64() / f64::from(super::servers::COUNT) / simulated.max(1e-9);
    if lag_ms <= LAG_P95_MAX_MS && skipped <= SKIPPED_SHARE_MAX {
        return String::new();
    }
    format!(
        "  {}: this machine was too busy for the run to be trusted; try --time-scale {} or a \
         release build\n",
        run.picker,
        scenario.time_scale * 2.0
    )
}
