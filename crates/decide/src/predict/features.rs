//! What latencies are made of: the state of an endpoint as a regression sees it.
//!
//! Each feature is of the order of 1 and has a coefficient in milliseconds that is not negative.
//! An engine computes prompts in the order of arrival in steps that it shares with the batch, so the
//! time to a first token is: a step or two (constant, longer with the batch and the cache that it
//! reads), the prompts ahead and this one by length, attention by length times context, and, where the
//! cache is full or the adapter has no slot, a wait for others to end. The time between tokens is that of a step: weights
//! (constant), sequences and the context that each reads (a prompt that several share is held once and
//! read by each), and the prefill that it is shared with.

use super::regress::{Prior, Regression};

/// Counts beyond are as bad as this many: keeps hostile numbers finite.
const COUNT_MAX: f32 = 1e6;
/// The same for tokens.
const TOKENS_MAX: f32 = 1e8;
/// KV use from which requests may have to wait for room.
const KV_TIGHT: f64 = 0.9;

/// What a pick knows of an endpoint, for one request.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Situation {
    /// Requests that wait there.
    pub(crate) waiting: f32,
    /// Requests that run there.
    pub(crate) running: f32,
    /// Share of its KV cache in use.
    pub(crate) kv_used: f32,
    /// Uncached prompt tokens that were sent from here and are not answered.
    pub(crate) ahead_tokens: f32,
    /// Uncached tokens of this prompt...
    pub(crate) uncached_tokens: f32,
    /// ...of so many.
    pub(crate) prompt_tokens: f32,
    /// Uncached prompt tokens per second that were sent there lately.
    pub(crate) prefill_tokens_per_s: f32,
    /// Tokens of prompts and expected answers in flight there from here: what the batch reads.
    pub(crate) context_tokens: f32,
    /// Whether the request's adapter is not in the batch and has no room there.
    pub(crate) adapter_blocked: bool,
    /// What is likely to be computed again for each token that is computed there now, because the
    /// cache is full and something that others come back for makes room; 0 to 1.
    pub(crate) displaced: f32,
}

/// A number that is finite and between 0 and `max`, whatever was given.
fn bounded(value: f32, max: f32) -> f64 {
    if value.is_nan() {
        0.0
    } else {
        f64::from(value.clamp(0.0, max))
    }
}

impl Situation {
    fn batch(&self) -> f64 {
        bounded(self.running, COUNT_MAX) + bounded(self.waiting, COUNT_MAX)
    }

    fn kv(&self) -> f64 {
        bounded(self.kv_used, 1.0)
    }
}

/// Features of the time to the first token.
pub(super) struct Ttft;

impl Ttft {
    pub(super) const LEN: usize = 8;
    /// Before anything is known: a coefficient may be this large, in milliseconds.
    pub(super) const PRIOR: Prior<{ Self::LEN }> = Prior {
        deviation: [100.0, 100.0, 200.0, 100.0, 100.0, 100.0, 1_000.0, 5_000.0],
    };

    pub(super) fn of(s: &Situation) -> [f64; Self::LEN] {
        let uncached = bounded(s.uncached_tokens, TOKENS_MAX);
        let waiting = bounded(s.waiting, COUNT_MAX);
        [
            1.0,
            (bounded(s.ahead_tokens, TOKENS_MAX) + uncached) / 1e3,
            uncached * bounded(s.prompt_tokens, TOKENS_MAX) / 1e8,
            s.batch() / 32.0,
            s.kv(),
            waiting / 8.0,
            waiting / 8.0 * (s.kv() - KV_TIGHT).max(0.0) / (1.0 - KV_TIGHT),
            f64::from(u8::from(s.adapter_blocked)),
        ]
    }

    /// Delay of the running requests, summed, while the prompt is prefilled; and of as many as run
    /// now, and of one more, when what it displaces from the cache is computed again.
    pub(super) fn others(regression: &Regression<{ Self::LEN }>, s: &Situation) -> f64 {
        let own = bounded(s.uncached_tokens, TOKENS_MAX) / 1e3;
        let running = bounded(s.running, COUNT_MAX);
        let later = bounded(s.displaced, 1.0) * (running + 1.0);
        own * regression.coefficients()[1] * (running + later)
    }
}

/// Features of the time between tokens.
pub(super) struct Tpot;

impl Tpot {
    pub(super) const LEN: usize = 7;
    /// As for [`Ttft::PRIOR`].
    pub(super) const PRIOR: Prior<{ Self::LEN }> = Prior {
        deviation: [20.0, 10.0, 20.0, 20.0, 10.0, 20.0, 20.0],
    };

    pub(super) fn of(s: &Situation) -> [f64; Self::LEN] {
        let batch = (s.batch() + 1.0) / 32.0;
        let rate = bounded(s.prefill_tokens_per_s, TOKENS_MAX) / 1e4;
        [
            1.0,
            batch,
            s.kv(),
            rate,
            batch * rate,
            bounded(s.ahead_tokens, TOKENS_MAX) / 1e4,
            (bounded(s.context_tokens, TOKENS_MAX) + bounded(s.prompt_tokens, TOKENS_MAX)) / 1e5,
        ]
    }

    /// Delay of the others in the batch, summed, by each token of one more request.
    pub(super) fn others(regression: &Regression<{ Self::LEN }>, s: &Situation) -> f64 {
        let rate = bounded(s.prefill_tokens_per_s, TOKENS_MAX) / 1e4;
        let coefficients = regression.coefficients();
        let each = (coefficients[1] + coefficients[4] * rate) / 32.0;
        let reads = coefficients[6] * bounded(s.prompt_tokens, TOKENS_MAX) / 1e5;
        // What one sequence more takes of the cache is unknown; on average it is the mean.
        let held = coefficients[2] * s.kv() / s.batch().max(1.0);
        (each + reads + held) * s.batch()
    }
}
