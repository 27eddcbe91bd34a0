//! What errors are usual, whether they have changed, and how good predictions were.

use super::Accuracy;

/// Share of answers that should stay below the high prediction.
const QUANTILE: f64 = 0.9;
/// How far one answer moves the quantile, in logarithms; less once it has settled.
const QUANTILE_STEP: f64 = 0.05;
/// The same at the start, so that the first hundred answers find it.
const QUANTILE_STEP_START: f64 = 0.2;
/// The quantile of the ratio is between 1 and this.
const HIGH_MAX: f64 = 20.0;
/// Weight of the last answer in the mean error that shows drift.
const LEAN_GAIN: f64 = 0.1;
/// A mean ratio beyond this or its inverse is drift...
const LEAN_MAX: f64 = 1.6;
/// ...unless errors are usually so large that it need not be: this many times the usual error.
const LEAN_SPREADS: f64 = 1.5;
/// Weight of the last answer in the usual error.
const SPREAD_GAIN: f64 = 0.01;
/// Answers before drift is looked for, at the start and after each time that it was found.
const LEAN_AFTER: u32 = 30;
/// One answer counts in that mean as at most this ratio.
const RATIO_MAX: f64 = 3.0;
/// Weight of the last answer in the accuracy.
const SCORE_GAIN: f64 = 0.005;
/// An error counts as at most this share of what came.
const ERROR_MAX: f64 = 10.0;

/// Errors of one regression, as ratios of what came and what was predicted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ErrorTrack {
    /// Logarithm of the quantile.
    log_high: f64,
    /// Moving mean of the logarithm.
    lean: f64,
    /// Moving mean of its distance from 0: the usual error.
    spread: f64,
    count: u32,
    since_drift: u32,
}

impl ErrorTrack {
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// What a prediction is multiplied with to be a bound that [`QUANTILE`] keep.
    pub(super) fn high(&self) -> f64 {
        self.log_high.exp()
    }

    /// Takes in one ratio. True if the errors have come to lean to one side.
    pub(super) fn observe(&mut self, ratio: f64) -> bool {
        self.count = self.count.saturating_add(1);
        self.since_drift = self.since_drift.saturating_add(1);
        let log = ratio.clamp(1e-6, 1e6).ln();
        let step = QUANTILE_STEP.max(QUANTILE_STEP_START / f64::from(self.count).sqrt());
        let moved = match log > self.log_high {
            true => step * QUANTILE,
            false => -step * (1.0 - QUANTILE),
        };
        self.log_high = (self.log_high + moved).clamp(0.0, HIGH_MAX.ln());
        let (least, most) = (-RATIO_MAX.ln(), RATIO_MAX.ln());
        self.lean += LEAN_GAIN * (log.clamp(least, most) - self.lean);
        let gain = SPREAD_GAIN.max(1.0 / f64::from(self.count));
        self.spread += gain * (log.abs().min(most) - self.spread);
        let usual = LEAN_MAX.ln().max(LEAN_SPREADS * self.spread);
        if self.since_drift < LEAN_AFTER || self.lean.abs() <= usual {
            return false;
        }
        self.lean = 0.0;
        self.since_drift = 0;
        true
    }
}

/// How good the predictions of one kind were that requests began with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ScoreTrack {
    count: u64,
    error: f64,
    covered: f64,
}

impl ScoreTrack {
    pub(super) fn observe(&mut self, came: f64, predicted: f64, high: f64) {
        self.count += 1;
        let gain = SCORE_GAIN.max(1.0 / self.count as f64);
        let error = ((came - predicted).abs() / came).min(ERROR_MAX);
        self.error += gain * (error - self.error);
        let covered = f64::from(u8::from(came <= high));
        self.covered += gain * (covered - self.covered);
    }

    pub(super) fn accuracy(&self, drifts: u64) -> Accuracy {
        Accuracy {
            observations: self.count,
            mape: self.error as f32,
            coverage: self.covered as f32,
            drifts,
        }
    }
}
