//! What each scorer says: 0 for the worst, 1 for the best.
//!
//! Three rules hold for all. Counts are judged by their distance from the best candidate against
//! a range with a floor, so that 0 against 1 waiting is a nuance and 0 against 50 is not. What a
//! server does not report, or reported too long ago, counts as the mean of what the others report,
//! which is neither idle nor full; if nobody reports it, everybody gets 0.5. And nothing here looks
//! at weights; `choose.rs` adds up.

use forebay_model::picker::Scorer;

use crate::cached::Hit;

/// A backlog this much longer than the best candidate's is as bad as it gets, in milliseconds.
/// Prefill of 32,000 tokens at the default speed: more than people wait for a first token.
const BACKLOG_RANGE_MS: f32 = 2_000.0;
/// Requests waiting that make a full difference, when the longest queue is not above ten.
const WAITING_RANGE_MIN: f32 = 5.0;
/// Requests running that make a full difference: batches of 64 to 256 are usual.
const RUNNING_RANGE_MIN: f32 = 16.0;
/// Requests in flight that make a full difference.
const INFLIGHT_RANGE_MIN: f32 = 16.0;
/// Tokens in flight that make a full difference: two long prompts.
const INFLIGHT_TOKENS_RANGE_MIN: f32 = 16_384.0;
/// What everybody gets from a scorer that knows nothing.
const UNKNOWN: f32 = 0.5;

/// One candidate as the scorers see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) slot: u16,
    /// What of the prompt is in its cache.
    pub(crate) hit: Hit,
    /// Time until prompts sent before are prefilled.
    pub(crate) backlog_ms: f32,
    /// The same with this prompt.
    pub(crate) prefill_ms: f32,
    pub(crate) waiting: Option<f32>,
    pub(crate) running: Option<f32>,
    pub(crate) kv_used: Option<f32>,
    /// Requests from here whose first byte is still to come.
    pub(crate) own_waiting: f32,
    pub(crate) inflight_requests: f32,
    pub(crate) inflight_tokens: f32,
    /// What the adapter's state there is worth; `None` if unknown or of no importance.
    pub(crate) lora: Option<f32>,
    pub(crate) had_session: bool,
}

/// Writes one score per candidate.
pub(crate) fn score(scorer: Scorer, facts: &[Facts], out: &mut [f32]) {
    match scorer {
        // What was sent from here and is not answered waits there, whatever a scrape says or not.
        Scorer::Queue => fewest(facts, out, WAITING_RANGE_MIN, |f| {
            (f.waiting, f.own_waiting)
        }),
        Scorer::Running => fewest(facts, out, RUNNING_RANGE_MIN, |f| {
            (f.running, f.inflight_requests - f.own_waiting)
        }),
        Scorer::InflightRequests => fewest(facts, out, INFLIGHT_RANGE_MIN, |f| {
            (Some(f.inflight_requests), 0.0)
        }),
        Scorer::InflightTokens => fewest(facts, out, INFLIGHT_TOKENS_RANGE_MIN, |f| {
            (Some(f.inflight_tokens), 0.0)
        }),
        Scorer::KvCache => known_or_mean(facts, out, |f| f.kv_used.map(|used| 1.0 - used)),
        Scorer::Lora => known_or_mean(facts, out, |f| f.lora),
        Scorer::Prefix => each(facts, out, |f| f.hit.share),
        Scorer::Session => each(facts, out, |f| f32::from(u8::from(f.had_session))),
        Scorer::TokenLoad => {
            let best = facts.iter().map(|f| f.prefill_ms).fold(f32::MAX, f32::min);
            each(facts, out, |f| {
                1.0 - ((f.prefill_ms - best) / BACKLOG_RANGE_MS).min(1.0)
            });
        }
    }
}

fn each(facts: &[Facts], out: &mut [f32], value: impl Fn(&Facts) -> f32) {
    for (out, facts) in out.iter_mut().zip(facts) {
        *out = value(facts);
    }
}

fn known_or_mean(facts: &[Facts], out: &mut [f32], value: impl Fn(&Facts) -> Option<f32>) {
    let mean = mean(facts.iter().filter_map(&value)).unwrap_or(UNKNOWN);
    each(facts, out, |f| value(f).unwrap_or(mean));
}

/// Scores counts of which fewer are better. `count` gives the count, if known, and a lower bound
/// that holds when it is not.
fn fewest(
    facts: &[Facts],
    out: &mut [f32],
    range_min: f32,
    count: impl Fn(&Facts) -> (Option<f32>, f32),
) {
    let Some(mean) = mean(facts.iter().filter_map(|f| count(f).0)) else {
        out.fill(UNKNOWN);
        return;
    };
    let count = |f: &Facts| match count(f) {
        (Some(known), _) => known,
        (None, at_least) => mean.max(at_least),
    };
    let (mut min, mut max) = (f32::MAX, 0.0_f32);
    for facts in facts {
        let count = count(facts);
        (min, max) = (min.min(count), max.max(count));
    }
    // Half of the largest count as the least range: 95 against 100 is a nuance as well.
    let range = (max - min).max(range_min).max(max / 2.0);
    each(facts, out, |f| 1.0 - (count(f) - min) / range);
}

fn mean(values: impl Iterator<Item = f32>) -> Option<f32> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
    (count > 0.0).then(|| sum / count)
}
