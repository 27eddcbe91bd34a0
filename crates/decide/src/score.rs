//! What each scorer says: 0 for the worst, 1 for the best.
//!
//! Three rules hold for all. Counts are judged by their distance from the best candidate against
//! a range with a floor, so that 0 against 1 waiting is a nuance and 0 against 50 is not. What a
//! server does not report, or reported too long ago, counts as the mean of what the others report,
//! which is neither idle nor full; if nobody reports it, everybody gets 0.5. And nothing here looks
//! at weights; `choose.rs` adds up.

use forebay_model::picker::Scorer;
use forebay_model::policy::{Proximity, Signal};
use smallvec::SmallVec;

use crate::ask::Ask;
use crate::cached::Hit;
use crate::latency;
use crate::predict::Prediction;
use crate::site::{self, Site};
use crate::slot::Slot;

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
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) slot: u16,
    /// What of the prompt is in its cache.
    pub(crate) hit: Hit,
    /// Prompt tokens that would have to be computed.
    pub(crate) uncached_tokens: f32,
    /// Tokens of prompts sent before that are still to be computed.
    pub(crate) backlog_tokens: f32,
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
    /// Its latency, where somebody asks for it and enough is known.
    pub(crate) predicted: Option<Prediction>,
}

/// What scorers look at besides the candidates' facts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look<'a> {
    pub(crate) ask: &'a Ask<'a>,
    pub(crate) slots: &'a [Slot],
    pub(crate) sites: &'a [Site],
    /// Tokens that the answer is expected to have.
    pub(crate) output_tokens: f32,
}

/// Writes one score per candidate.
pub(crate) fn score(scorer: &Scorer, look: Look<'_>, facts: &[Facts], out: &mut [f32]) {
    let labels = |f: &Facts| &*look.sites[usize::from(f.slot)].labels;
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
        Scorer::QueueSpan => span(facts, out, 1.0, true, |f| f.waiting),
        Scorer::RunningSpan => span(facts, out, 1.0, true, |f| f.running),
        Scorer::QueueShare { queue_max } => known_or_mean(facts, out, |f| {
            let share = f.waiting? / queue_max.max(1.0);
            Some(0.5 * (1.0 - share.min(1.0)))
        }),
        Scorer::PrefixLength { weight, tokens_max } => each(facts, out, |f| {
            let length = (f.hit.tokens as f32 / tokens_max.max(1.0)).min(1.0);
            weight * length * length + (1.0 - weight) * f.hit.share
        }),
        Scorer::ColdSpread => cold_spread(look.slots, facts, out),
        Scorer::PrefillShare { tokens_max } => each(facts, out, |f| {
            1.0 - ((f.backlog_tokens + f.uncached_tokens) / tokens_max.max(1.0)).min(1.0)
        }),
        Scorer::ActiveRequests {
            idle_max,
            busy_score_max,
        } => {
            let most = facts.iter().map(|f| f.inflight_requests);
            let most = most.fold(0.0, f32::max);
            each(facts, out, |f| match f.inflight_requests {
                few if few <= *idle_max as f32 => 1.0,
                many => (most - many) / most * busy_score_max,
            });
        }
        Scorer::ContextLength { label } => each(facts, out, |f| {
            let range = labels(f).get(label).map(|text| site::token_range(text));
            match range {
                None => UNKNOWN,
                Some(None) => 0.0,
                Some(Some(range)) => context_fit(look.ask.prompt_tokens, range),
            }
        }),
        Scorer::Latency(scoring) => latency::score_latency(scoring, look, facts, out),
        Scorer::AddedDelay => latency::score_added_delay(look, facts, out),
        Scorer::Near => each(facts, out, |f| {
            let own = &look.sites[usize::from(f.slot)].topology;
            match look.ask.near.and_then(|near| own.proximity(near)) {
                Some(Proximity::Host) => 1.0,
                Some(Proximity::Rack) => 0.2,
                Some(Proximity::Zone) => 0.05,
                Some(Proximity::Region) => 0.02,
                None => 0.0,
            }
        }),
        Scorer::HeaderLabel { header, label } => {
            let wanted = look.ask.field(header);
            each(facts, out, |f| {
                let own = labels(f).get(label).map(String::as_str);
                f32::from(u8::from(own.is_some() && own == wanted))
            });
        }
        Scorer::Signal {
            signal,
            lowest,
            range,
        } => match *range {
            None => span(facts, out, 0.0, *lowest, |f| f.signal(*signal)),
            Some((min, max)) => each(facts, out, |f| {
                let at = f.signal(*signal).map(|value| (value - min) / (max - min));
                let at = at.map(|at| at.clamp(0.0, 1.0));
                at.map_or(0.0, |at| if *lowest { 1.0 - at } else { at })
            }),
        },
    }
}

impl Facts {
    /// What is known of a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Option<f32> {
        match signal {
            Signal::Waiting => self.waiting,
            Signal::Running => self.running,
            Signal::KvUsed => self.kv_used,
            Signal::InflightRequests => Some(self.inflight_requests),
            Signal::InflightTokens => Some(self.backlog_tokens),
        }
    }
}

/// On a line from the worst to the best of the known values; 1 for all where they are the same.
/// What is unknown counts as the mean of the known where that is better than nothing (`unknown` is
/// above zero), and else as `unknown`.
fn span(
    facts: &[Facts],
    out: &mut [f32],
    unknown: f32,
    lowest: bool,
    value: impl Fn(&Facts) -> Option<f32>,
) {
    let known = || facts.iter().filter_map(&value);
    let (min, max) = known().fold((f32::MAX, f32::MIN), |(min, max), v| {
        (min.min(v), max.max(v))
    });
    let at = |value: f32| match max > min {
        true if lowest => (max - value) / (max - min),
        true => (value - min) / (max - min),
        false => 1.0,
    };
    let otherwise = match mean(known()) {
        Some(mean) if unknown > 0.0 => at(mean),
        Some(_) | None => unknown,
    };
    each(facts, out, |f| value(f).map_or(otherwise, at));
}

/// If nobody holds any of the prompt, ranks the candidates by when each last had such a one; else
/// all are alike.
fn cold_spread(slots: &[Slot], facts: &[Facts], out: &mut [f32]) {
    if facts.iter().any(|f| f.hit.tokens > 0) {
        out.fill(UNKNOWN);
        return;
    }
    if facts.len() == 1 {
        out.fill(1.0);
        return;
    }
    let mut order: SmallVec<[(u64, usize); 128]> = facts
        .iter()
        .enumerate()
        .map(|(at, f)| (slots[usize::from(f.slot)].cold_stamp, at))
        .collect();
    order.sort_unstable();
    for (rank, (_, at)) in order.iter().enumerate() {
        out[*at] = 1.0 - rank as f32 / (facts.len() - 1) as f32;
    }
}

/// How well a range of prompt lengths fits: above 0.3 if the prompt is in it, the more the closer
/// the range and the more room is left, and below if not, the less the further away it is. The
/// values are llm-d's.
fn context_fit(tokens: u32, (min, max): (u32, u32)) -> f32 {
    const OUTSIDE_MAX: f32 = 0.3;
    if (min..=max).contains(&tokens) {
        let width = (max - min) as f32;
        if width == 0.0 {
            return 1.0;
        }
        let close = 1.0 / (1.0 + width / 10_000.0);
        let room = (max - tokens) as f32 / width;
        return OUTSIDE_MAX + (0.7 * close + 0.3 * room) * (1.0 - OUTSIDE_MAX);
    }
    let away = if tokens > max {
        tokens - max
    } else {
        min - tokens
    };
    OUTSIDE_MAX / (1.0 + away as f32 / 1_000.0)
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
