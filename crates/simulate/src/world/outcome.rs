//! What became of the requests of one run, and what users would say of it.

use std::time::Duration;

use forebay_decide::Prediction;
use forebay_model::Moment;

use super::World;
use crate::engine::Totals;

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Passage {
    pub(super) conversation: u32,
    /// When it arrived at the gateway.
    pub arrived: Moment,
    /// Whether it counts.
    pub measured: bool,
    /// When it was sent, and where to.
    pub sent: Option<(Moment, usize)>,
    pub(super) emitted: bool,
    /// When its first token was at the gateway.
    pub first: Option<Moment>,
    /// When its last token was.
    pub last: Option<Moment>,
    /// Whether it was refused.
    pub refused: bool,
    /// Length of its prompt, in tokens.
    pub prompt_tokens: u32,
    /// Those of them that the server found in its cache.
    pub cached_tokens: Option<u32>,
    /// Length of its answer, in tokens.
    pub output_tokens: u32,
    /// The latency that it was predicted to have.
    pub predicted: Option<Prediction>,
}

impl Passage {
    pub(super) fn new(conversation: u32, arrived: Moment, measured: bool) -> Self {
        Self {
            conversation,
            arrived,
            measured,
            sent: None,
            emitted: false,
            first: None,
            last: None,
            refused: false,
            prompt_tokens: 0,
            cached_tokens: None,
            output_tokens: 0,
            predicted: None,
        }
    }

    /// From its arrival to its first token; `None` if there is none.
    #[must_use]
    pub fn ttft(&self) -> Option<Duration> {
        self.first.map(|first| first.since(self.arrived))
    }

    /// Between tokens after the first, in milliseconds, on average; `None` for an answer that is not
    /// complete or has one token.
    #[must_use]
    pub fn tpot_ms(&self) -> Option<f64> {
        let span = self.last?.since(self.first?);
        let gaps = self.output_tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some(span.as_secs_f64() * 1e3 / f64::from(gaps))
    }

    fn meets(&self, slo: Slo) -> bool {
        let ttft_ms = self.ttft().map(|t| t.as_secs_f64() * 1e3);
        let complete = self.last.is_some();
        complete
            && ttft_ms.is_some_and(|ms| ms <= slo.ttft_ms)
            && self.tpot_ms().is_none_or(|ms| ms <= slo.tpot_ms)
    }
}

/// What an answer must keep to count for goodput.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Slo {
    /// First token within this time, in milliseconds.
    pub ttft_ms: f64,
    /// Further tokens this far apart on average, in milliseconds.
    pub tpot_ms: f64,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Every request in the order of arrival.
    pub passages: Vec<Passage>,
    /// When the run ended.
    pub end: Moment,
    /// Totals of each server.
    pub totals: Vec<Totals>,
    measured_s: f64,
}

/// Predictions against what came.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Predicted {
    /// Predictions made.
    pub count: u32,
    /// Mean of |came − predicted| / came.
    pub mape: f64,
    /// Median of the same.
    pub error_p50: f64,
    /// Share that stayed below what 90 % should.
    pub coverage: f64,
}

impl Predicted {
    /// Of what came with its prediction and its high prediction, in milliseconds.
    fn of(all: impl Iterator<Item = (f64, f32, f32)>) -> Self {
        let (mut errors, mut covered) = (Vec::new(), 0.0);
        for (came, predicted, high) in all {
            errors.push((came - f64::from(predicted)).abs() / came.max(1e-3));
            covered += f64::from(u8::from(came <= f64::from(high)));
        }
        errors.sort_unstable_by(f64::total_cmp);
        let count = errors.len().max(1) as f64;
        Self {
            count: errors.len() as u32,
            mape: errors.iter().sum::<f64>() / count,
            error_p50: quantile(&errors, 0.5),
            coverage: covered / count,
        }
    }
}

/// A run in numbers.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Score {
    /// Median time to the first token, in milliseconds. An answer that never began counts with the
    /// time until the run ended, one that was refused as if it never began.
    pub ttft_p50_ms: f64,
    /// The same, 95th percentile.
    pub ttft_p95_ms: f64,
    /// Mean of the answers' mean time between tokens, in milliseconds.
    pub tpot_ms: f64,
    /// Answers within the SLO per second of arrivals.
    pub goodput_per_s: f64,
    /// Prompt tokens found in a cache, as a share of those of requests that were admitted.
    pub hit_rate: f64,
    /// Measured requests...
    pub requests: u32,
    /// ...and those that were refused.
    pub refused: u32,
    /// How well the policy predicted times to first tokens...
    pub ttft_predicted: Predicted,
    /// ...and times between further ones.
    pub tpot_predicted: Predicted,
}

impl Outcome {
    pub(super) fn new(
        world: &World,
        passages: Vec<Passage>,
        end: Moment,
        totals: Vec<Totals>,
    ) -> Self {
        Self {
            passages,
            end,
            totals,
            measured_s: world.measured.as_secs_f64(),
        }
    }

    /// The run in numbers.
    #[must_use]
    pub fn score(&self, slo: Slo) -> Score {
        let measured = || self.passages.iter().filter(|p| p.measured);
        let never = self.end.since(Moment::ORIGIN);
        let ttft = |p: &Passage| match (p.refused, p.ttft()) {
            (false, Some(ttft)) => ttft,
            (true, _) => never,
            (false, None) => self.end.since(p.arrived),
        };
        let mut ttfts: Vec<f64> = measured().map(|p| ttft(p).as_secs_f64() * 1e3).collect();
        ttfts.sort_unstable_by(f64::total_cmp);
        let tpots: Vec<f64> = measured().filter_map(Passage::tpot_ms).collect();
        let admitted = || measured().filter_map(|p| Some((p.prompt_tokens, p.cached_tokens?)));
        let prompt: f64 = admitted().map(|(prompt, _)| f64::from(prompt)).sum();
        let cached: f64 = admitted().map(|(_, cached)| f64::from(cached)).sum();
        Score {
            ttft_p50_ms: quantile(&ttfts, 0.5),
            ttft_p95_ms: quantile(&ttfts, 0.95),
            tpot_ms: tpots.iter().sum::<f64>() / tpots.len().max(1) as f64,
            goodput_per_s: measured().filter(|p| p.meets(slo)).count() as f64 / self.measured_s,
            hit_rate: cached / prompt.max(1.0),
            requests: measured().count() as u32,
            refused: measured().filter(|p| p.refused).count() as u32,
            ttft_predicted: Predicted::of(measured().filter_map(|p| {
                let (predicted, (sent, _)) = (p.predicted?, p.sent?);
                let came = p.first?.since(sent).as_secs_f64() * 1e3;
                Some((came, predicted.ttft_ms, predicted.ttft_high_ms))
            })),
            tpot_predicted: Predicted::of(measured().filter_map(|p| {
                let predicted = p.predicted?;
                Some((p.tpot_ms()?, predicted.tpot_ms, predicted.tpot_high_ms))
            })),
        }
    }
}

/// The quantile of sorted values by the nearest rank; 0 if there are none.
#[must_use]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    let at = rank.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or(0.0)
}
