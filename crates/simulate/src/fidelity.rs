//! Is the simulator right? Replays the requests of real vLLM runs and compares.
//!
//! Each run has the timestamps of 300 requests and the server's state once a second. The profile's
//! factor was fitted on even-numbered requests ([`crate::calibrate`]); the verdict looks at the
//! odd-numbered ones and at the curves. The data is not part of the repository.

use std::fmt;
use std::fs;
use std::path::Path;

use forebay_model::Moment;
use serde::Deserialize;

use crate::calibrate::CalibrateError;
use crate::engine::{Engine, Prompt, Request, Settings};
use crate::profile::{self, Profile};

/// One real run and the profile that should reproduce it.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Folder under the data directory.
    pub folder: &'static str,
    /// File under `workloads/`, with the prompts' tokens.
    pub workload: &'static str,
    /// Name of the profile.
    pub profile: &'static str,
}

/// The runs at hand.
pub const RUNS: &[Run] = &[
    Run {
        folder: "RTXPRO6000_Llama-3.1-8B",
        workload: "sharegpt-llama-3.1-8b-300-sps10.jsonl",
        profile: "rtxpro6000-llama-3.1-8b-tp1",
    },
    Run {
        folder: "RTXPRO6000_Qwen3-32B",
        workload: "sharegpt-qwen3-32b-300-sps10.jsonl",
        profile: "rtxpro6000-qwen3-32b-tp2",
    },
];

/// What a real run recorded.
#[derive(Clone, Debug)]
pub struct Truth {
    requests: Vec<Recorded>,
    samples: Vec<Sample>,
    max_num_seqs: u32,
    max_num_batched_tokens: u32,
}

#[derive(Clone, Debug)]
struct Recorded {
    /// Microseconds after the first request.
    arrival_us: u64,
    prompt: Prompt,
    times: Times,
}

/// When the engine saw a request, and when its first and last token came out, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    queued_s: f64,
    first_s: f64,
    last_s: f64,
    output_tokens: u32,
}

/// The server's state at one second of the run.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at_s: f64,
    running: f64,
    waiting: f64,
}

/// What a replay gives: the same as a recording.
#[derive(Clone, Debug)]
pub struct Replay {
    times: Vec<Times>,
    /// State at the end of each step.
    curve: Vec<Sample>,
}

/// A part of the requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Half {
    /// Numbers 0, 2, 4...: the factor is fitted on them.
    Even,
    /// Numbers 1, 3, 5...: the verdict is about them.
    Odd,
}

/// Latencies of a set of requests.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Metrics {
    /// From the queue to the first token.
    pub ttft_ms: Distribution,
    /// Between tokens after the first, mean per request.
    pub tpot_ms: Distribution,
    /// From the queue to the last token.
    pub e2e_ms: Distribution,
}

/// A mean and three quantiles.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Distribution {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// Ninth decile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
}

#[derive(Deserialize)]
struct RequestLine {
    request_id: String,
    output_toks: u32,
    arrival_time: f64,
    queued_ts: f64,
    first_token_ts: f64,
    last_token_ts: f64,
}

#[derive(Deserialize)]
struct WorkloadLine {
    input_tok_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct MetaFile {
    engine_kwargs: EngineArguments,
}

#[derive(Deserialize)]
struct EngineArguments {
    max_num_seqs: u32,
    max_num_batched_tokens: u32,
}

impl Truth {
    /// Reads a run.
    ///
    /// # Errors
    /// If a file is absent or looks different.
    pub fn read(data_dir: &Path, run: &Run) -> Result<Self, CalibrateError> {
        let folder = data_dir.join(run.folder);
        let mut lines: Vec<RequestLine> = json_lines(&folder.join("requests.jsonl"))?;
        lines.sort_by_key(|line| request_number(&line.request_id));
        let prompts: Vec<WorkloadLine> =
            json_lines(&data_dir.join("workloads").join(run.workload))?;
        if lines.is_empty() || lines.len() != prompts.len() {
            let problem = format!("{} requests, {} prompts", lines.len(), prompts.len());
            return Err(CalibrateError::Content(folder, problem));
        }
        let start_s = lines[0].queued_ts;
        let arrival_s = lines[0].arrival_time;
        let requests = lines.iter().zip(&prompts).map(|(line, prompt)| Recorded {
            arrival_us: ((line.arrival_time - arrival_s) * 1e6) as u64,
            prompt: Prompt::from_tokens(&prompt.input_tok_ids, 0),
            times: Times {
                queued_s: line.queued_ts - start_s,
                first_s: line.first_token_ts - start_s,
                last_s: line.last_token_ts - start_s,
                output_tokens: line.output_toks,
            },
        });
        let requests = requests.collect();
        let meta: MetaFile = json(&folder.join("meta.json"))?;
        let EngineArguments {
            max_num_seqs,
            max_num_batched_tokens,
        } = meta.engine_kwargs;
        let samples = samples(&folder.join("timeseries.csv"))?;
        Ok(Self {
            requests,
            samples,
            max_num_seqs,
            max_num_batched_tokens,
        })
    }

    /// Latencies of one half of the recorded requests.
    #[must_use]
    pub fn metrics(&self, half: Half) -> Metrics {
        metrics(self.requests.iter().map(|request| &request.times), half)
    }
}

impl Replay {
    /// Latencies of one half of the replayed requests.
    #[must_use]
    pub fn metrics(&self, half: Half) -> Metrics {
        metrics(self.times.iter(), half)
    }

    fn at(&self, at_s: f64) -> Sample {
        let next = self.curve.partition_point(|sample| sample.at_s <= at_s);
        let none = Sample {
            at_s,
            running: 0.0,
            waiting: 0.0,
        };
        next.checked_sub(1).map_or(none, |last| self.curve[last])
    }
}

/// Runs the recorded requests through an engine with `profile`, in virtual time.
#[must_use]
pub fn replay(profile: &Profile, truth: &Truth) -> Replay {
    let settings = Settings {
        max_num_seqs: truth.max_num_seqs,
        max_num_batched_tokens: truth.max_num_batched_tokens,
        ..Settings::of(profile)
    };
    let mut engine = Engine::new(profile.clone(), settings, 0);
    let mut times: Vec<Times> = truth
        .requests
        .iter()
        .map(|request| Times {
            output_tokens: request.times.output_tokens,
            ..Times::default()
        })
        .collect();
    let mut curve = Vec::new();
    let (mut now, mut next) = (Moment::ORIGIN, 0);
    while next < truth.requests.len() || !engine.is_idle() {
        while let Some(request) = truth
            .requests
            .get(next)
            .filter(|request| request.arrival_us <= now.as_micros())
        {
            times[next].queued_s = seconds(now);
            let submitted = engine.submit(Request {
                id: next as u64,
                prompt: request.prompt.clone(),
                output_tokens: request.times.output_tokens,
                output_seed: next as u64,
                adapter: None,
            });
            submitted.expect("a recorded request was served by the real server");
            next += 1;
        }
        let Some(report) = engine.step(now) else {
            now = Moment::from_micros(truth.requests[next].arrival_us);
            continue;
        };
        now = report.ends_at;
        for id in &report.emitted {
            let times = &mut times[*id as usize];
            if times.first_s == 0.0 {
                times.first_s = seconds(now);
            }
            times.last_s = seconds(now);
        }
        let load = engine.load();
        let (running, waiting) = (f64::from(load.running), f64::from(load.waiting));
        curve.push(Sample {
            at_s: seconds(now),
            running,
            waiting,
        });
    }
    Replay { times, curve }
}

fn seconds(moment: Moment) -> f64 {
    moment.as_micros() as f64 / 1e6
}

fn metrics<'a>(times: impl Iterator<Item = &'a Times>, half: Half) -> Metrics {
    let first = usize::from(half == Half::Odd);
    let chosen: Vec<&Times> = times.skip(first).step_by(2).collect();
    let ms = |of: &dyn Fn(&Times) -> f64| {
        distribution(chosen.iter().map(|times| of(times) * 1e3).collect())
    };
    Metrics {
        ttft_ms: ms(&|times| times.first_s - times.queued_s),
        tpot_ms: ms(&|times| {
            (times.last_s - times.first_s) / f64::from(times.output_tokens.max(2) - 1)
        }),
        e2e_ms: ms(&|times| times.last_s - times.queued_s),
    }
}

fn distribution(mut values: Vec<f64>) -> Distribution {
    if values.is_empty() {
        return Distribution::default();
    }
    values.sort_by(f64::total_cmp);
    let quantile = |share: f64| {
        let at = share * (values.len() - 1) as f64;
        let (low, high) = (at.floor() as usize, at.ceil() as usize);
        values[low] + (values[high] - values[low]) * at.fract()
    };
    Distribution {
        mean: values.iter().sum::<f64>() / values.len() as f64,
        p50: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
    }
}

/// One line of the comparison.
#[derive(Clone, PartialEq, Debug)]
pub struct Comparison {
    /// The run's folder.
    pub run: &'static str,
    /// What is compared.
    pub metric: &'static str,
    /// In the real run.
    pub truth: f64,
    /// In the simulator.
    pub simulated: f64,
    /// Relative difference; for curves the mean absolute difference over the mean of the real curve.
    pub difference: f64,
    /// What the difference may be.
    pub limit: f64,
}

/// The whole comparison.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// One line per run and metric.
    pub lines: Vec<Comparison>,
}

impl Report {
    /// Whether every difference is within its limit.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.lines.is_empty() && self.lines.iter().all(Comparison::passed)
    }
}

impl Comparison {
    /// Whether the difference is within the limit.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.difference.abs() <= self.limit
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut run = "";
        for line in &self.lines {
            if line.run != run {
                run = line.run;
                writeln!(
                    f,
                    "{run} (odd-numbered requests; curves: mean |difference| / mean)"
                )?;
                writeln!(f, "  metric           real  simulated    diff   limit")?;
            }
            let verdict = if line.passed() { "ok" } else { "FAILED" };
            writeln!(
                f,
                "  {:12} {:9.1}  {:9.1}  {:+5.1} %  {:3.0} %  {verdict}",
                line.metric,
                line.truth,
                line.simulated,
                line.difference * 100.0,
                line.limit * 100.0
            )?;
        }
        let verdict = if self.passed() {
            "within every limit"
        } else {
            "out of a limit"
        };
        write!(f, "simulated numbers are {verdict}")
    }
}

/// Compares every run with its embedded profile.
///
/// # Errors
/// If the measurements are absent or cannot be read.
pub fn run_fidelity(data_dir: &Path) -> Result<Report, CalibrateError> {
    if !data_dir.is_dir() {
        return Err(CalibrateError::Absent(data_dir.to_owned()));
    }
    let mut report = Report::default();
    for run in RUNS {
        let profile = profile::named(run.profile).map_err(|error| {
            CalibrateError::Content(Path::new(run.profile).to_owned(), error.to_string())
        })?;
        compare(run, &profile, &Truth::read(data_dir, run)?, &mut report);
    }
    Ok(report)
}

fn compare(run: &Run, profile: &Profile, truth: &Truth, report: &mut Report) {
    let replay = replay(profile, truth);
    let (real, simulated) = (truth.metrics(Half::Odd), replay.metrics(Half::Odd));
    for (metric, truth, simulated, limit) in [
        (
            "TTFT mean ms",
            real.ttft_ms.mean,
            simulated.ttft_ms.mean,
            0.05,
        ),
        (
            "TPOT mean ms",
            real.tpot_ms.mean,
            simulated.tpot_ms.mean,
            0.03,
        ),
        ("E2E p50 ms", real.e2e_ms.p50, simulated.e2e_ms.p50, 0.05),
        ("E2E p90 ms", real.e2e_ms.p90, simulated.e2e_ms.p90, 0.05),
        ("E2E p99 ms", real.e2e_ms.p99, simulated.e2e_ms.p99, 0.05),
    ] {
        let difference = simulated / truth - 1.0;
        report.lines.push(Comparison {
            run: run.folder,
            metric,
            truth,
            simulated,
            difference,
            limit,
        });
    }
    let running: fn(&Sample) -> f64 = |sample| sample.running;
    let waiting: fn(&Sample) -> f64 = |sample| sample.waiting;
    for (metric, of) in [("running mean", running), ("waiting mean", waiting)] {
        let count = truth.samples.len().max(1) as f64;
        let pairs = truth
            .samples
            .iter()
            .map(|sample| (of(sample), of(&replay.at(sample.at_s))));
        let (mut real, mut simulated, mut apart) = (0.0, 0.0, 0.0);
        for (one, other) in pairs {
            real += one / count;
            simulated += other / count;
            apart += (one - other).abs() / count;
        }
        let (truth, difference) = (real, apart / real);
        let limit = 0.10;
        report.lines.push(Comparison {
            run: run.folder,
            metric,
            truth,
            simulated,
            difference,
            limit,
        });
    }
}

fn samples(path: &Path) -> Result<Vec<Sample>, CalibrateError> {
    let row = |line: &str| {
        let mut cells = line.split(',').map(|cell| cell.trim().parse::<f64>().ok());
        let (at_s, running) = (cells.next()??, cells.nth(2)??);
        Some(Sample {
            at_s,
            running,
            waiting: cells.next()??,
        })
    };
    let samples: Option<Vec<Sample>> = text(path)?.lines().skip(1).map(row).collect();
    samples.ok_or_else(|| {
        CalibrateError::Content(
            path.to_owned(),
            "a row without t, running, waiting".to_owned(),
        )
    })
}

fn request_number(id: &str) -> u64 {
    id.rsplit('-')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(u64::MAX)
}

fn text(path: &Path) -> Result<String, CalibrateError> {
    fs::read_to_string(path).map_err(|error| CalibrateError::File(path.to_owned(), error))
}

fn json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, CalibrateError> {
    serde_json::from_str(&text(path)?)
        .map_err(|error| CalibrateError::Content(path.to_owned(), error.to_string()))
}

fn json_lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Vec<T>, CalibrateError> {
    let line = |line: &str| {
        serde_json::from_str(line)
            .map_err(|error| CalibrateError::Content(path.to_owned(), error.to_string()))
    };
    text(path)?
        .lines()
        .filter(|line| !line.is_empty())
        .map(line)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data, or `None` after saying that `test` was skipped and why.
    fn data(test: &str) -> Option<std::path::PathBuf> {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/vllm-serving-truth");
        if !folder.is_dir() {
            println!("skipped {test}: no measurements at {}", folder.display());
            return None;
        }
        Some(folder)
    }

    #[test]
    fn simulated_latencies_and_queues_are_those_of_real_runs() {
        let Some(folder) = data("simulated_latencies_and_queues_are_those_of_real_runs") else {
            return;
        };
        let report = run_fidelity(&folder).expect("the measurements can be read");
        assert_eq!(report.lines.len(), 7 * RUNS.len());
        assert!(report.passed(), "{report}");
    }

    #[test]
    fn a_factor_fitted_on_the_other_setup_does_as_well() {
        let Some(folder) = data("a_factor_fitted_on_the_other_setup_does_as_well") else {
            return;
        };
        let profiles = RUNS
            .iter()
            .map(|run| profile::named(run.profile).expect("embedded"));
        let factors: Vec<f64> = profiles.clone().map(|profile| profile.factor).collect();
        let mut report = Report::default();
        for ((run, profile), factor) in RUNS.iter().zip(profiles).zip(factors.iter().rev()) {
            let truth = Truth::read(&folder, run).expect("the measurements can be read");
            compare(
                run,
                &Profile {
                    factor: *factor,
                    ..profile
                },
                &truth,
                &mut report,
            );
        }
        assert!(report.passed(), "{report}");
    }

    #[test]
    fn embedded_profiles_are_what_the_measurements_give() {
        let Some(folder) = data("embedded_profiles_are_what_the_measurements_give") else {
            return;
        };
        let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
        crate::calibrate::run_calibrate(&folder, &profiles, true).expect("up to date");
    }

    #[test]
    fn absent_measurements_are_named() {
        let error = run_fidelity(Path::new("/nowhere/truth")).expect_err("absent");
        assert!(
            error
                .to_string()
                .starts_with("no measurements at /nowhere/truth"),
            "{error}"
        );
    }
}
