//! What a run measured: counts and distributions, bounded whatever its length.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Endpoints that are counted apart; requests to further ones count as [`OTHERS`].
const ENDPOINTS_MAX: usize = 1024;
/// Name of the endpoints beyond the bound.
const OTHERS: &str = "others";
/// Longest time that a distribution tells apart, in microseconds: an hour.
const TIME_US_MAX: u64 = 3_600_000_000;

/// Why a request did not get its answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Failure {
    /// No connection.
    Connect,
    /// An answer with this status.
    Status(u16),
    /// The connection or the stream broke off.
    BrokenOff,
    /// No end within the time limit.
    Timeout,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("no connection"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::BrokenOff => f.write_str("broken off"),
            Self::Timeout => f.write_str("timeout"),
        }
    }
}

/// Times of one kind.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, TIME_US_MAX, 3).expect("bounds are in order"))
    }
}

impl Times {
    pub(super) fn record(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(us.max(1));
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Their mean in milliseconds, 0 if there are none.
    #[must_use]
    pub fn mean_ms(&self) -> f64 {
        if self.0.is_empty() {
            0.0
        } else {
            self.0.mean() / 1e3
        }
    }

    /// A quantile (0 to 1) in milliseconds, 0 if there are none.
    #[must_use]
    pub fn quantile_ms(&self, share: f64) -> f64 {
        if self.0.is_empty() {
            0.0
        } else {
            self.0.value_at_quantile(share) as f64 / 1e3
        }
    }
}

/// The result of a run, or of the part so far.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Time since the start.
    pub elapsed: Duration,
    /// Requests sent.
    pub started: u64,
    /// Requests answered in full.
    pub completed: u64,
    /// Requests that were not, by reason.
    pub failures: BTreeMap<Failure, u64>,
    /// From sending to the first token.
    pub ttft: Times,
    /// Between tokens. Tokens that arrive in one read count as simultaneous.
    pub itl: Times,
    /// From sending to the end.
    pub e2e: Times,
    /// From the planned moment to sending: the driver's own lag. Moments are planned for arrivals in
    /// an open loop, and for turns after a pause.
    pub lag: Times,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Tokens of prompts, as the server counted them.
    pub prompt_tokens: u64,
    /// Those of them that the server had in its cache.
    pub cached_tokens: u64,
    /// Completed requests by endpoint (`x-forebay-endpoint`).
    pub endpoints: BTreeMap<String, u64>,
}

impl Summary {
    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.started - self.completed - self.failed()
    }

    /// Requests that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Tokens of answers per second.
    #[must_use]
    pub fn output_tokens_per_s(&self) -> f64 {
        self.output_tokens as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Share of prompt tokens found in the cache, 0 to 1.
    #[must_use]
    pub fn prefix_hit_rate(&self) -> f64 {
        self.cached_tokens as f64 / (self.prompt_tokens as f64).max(1.0)
    }

    pub(super) fn count_endpoint(&mut self, endpoint: &str) {
        let known = self.endpoints.contains_key(endpoint) || self.endpoints.len() < ENDPOINTS_MAX;
        let name = if known { endpoint } else { OTHERS };
        *self.endpoints.entry(name.to_owned()).or_default() += 1;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (completed, failed, seconds) =
            (self.completed, self.failed(), self.elapsed.as_secs_f64());
        writeln!(
            f,
            "{completed} requests answered, {failed} failed, in {seconds:.1} s"
        )?;
        for (failure, count) in &self.failures {
            writeln!(f, "  {failure}: {count}")?;
        }
        for (name, times) in [("TTFT", &self.ttft), ("ITL", &self.itl), ("E2E", &self.e2e)] {
            let (mean, p50, p95) = (
                times.mean_ms(),
                times.quantile_ms(0.5),
                times.quantile_ms(0.95),
            );
            writeln!(
                f,
                "  {name:5} mean {mean:9.1} ms  p50 {p50:9.1} ms  p95 {p95:9.1} ms"
            )?;
        }
        let hits = self.prefix_hit_rate() * 100.0;
        writeln!(
            f,
            "  output {:.0} tokens/s, prefix hits {hits:.1} %",
            self.output_tokens_per_s()
        )?;
        let endpoints = self
            .endpoints
            .iter()
            .map(|(name, count)| format!("{name}: {count}"));
        write!(
            f,
            "  by endpoint: {}",
            endpoints.collect::<Vec<_>>().join(", ")
        )
    }
}
