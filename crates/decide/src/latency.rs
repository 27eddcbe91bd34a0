//! What is made of predicted latency: scores, a filter and an admission by SLO.
//!
//! Where nothing is predicted yet, scores are those of other scorers ([`LATENCY_FALLBACK`],
//! [`DELAY_FALLBACK`]), and filter and admission let everybody pass. An endpoint keeps an SLO if 90 % of
//! requests like this one are predicted to.

use forebay_model::picker::Scorer;
use forebay_model::policy::{Headroom, LatencyScoring, SloAdmission};
use smallvec::SmallVec;

use crate::ask::{Ask, Slo};
use crate::pool::PoolState;
use crate::predict::Prediction;
use crate::report::Refusal;
use crate::score::{self, Facts, Look};

/// What is between scores of endpoints that keep an SLO and of those that do not.
const KEPT_SCORE_MIN: f32 = 0.5;

/// What [`Scorer::Latency`] says while nothing is predicted: what llm-d's says then.
const LATENCY_FALLBACK: [(Scorer, f32); 3] = [
    (Scorer::Queue, 1.0),
    (Scorer::KvCache, 1.0),
    (Scorer::Prefix, 1.0),
];
/// What [`Scorer::AddedDelay`] says while nothing is predicted: the best that the compared worlds know
/// without (`docs/decision-quality.md`).
const DELAY_FALLBACK: [(Scorer, f32); 5] = [
    (Scorer::TokenLoad, 4.0),
    (Scorer::KvCache, 3.0),
    (Scorer::Running, 3.0),
    (Scorer::Prefix, 1.0),
    (Scorer::Queue, 1.0),
];

/// How an endpoint stands to an SLO, each part as a share of its limit, 1 for no latency at all and
/// below zero where it is not kept. A part that has no limit says nothing.
fn headroom(slo: Slo, predicted: &Prediction, scoring: &LatencyScoring) -> Option<(f32, bool)> {
    let part = |limit: Option<f32>, ms: f32, weight: f32| Some((1.0 - ms / limit?, weight));
    let ttft = part(slo.ttft_ms, predicted.ttft_high_ms, scoring.ttft_weight);
    let tpot = part(slo.tpot_ms, predicted.tpot_high_ms, scoring.tpot_weight);
    let parts: SmallVec<[(f32, f32); 2]> = ttft.into_iter().chain(tpot).collect();
    if parts.is_empty() {
        return None;
    }
    let kept = parts.iter().all(|(room, _)| *room >= 0.0);
    // What one part has left does not make up for what another lacks.
    let counts = |room: f32| if kept { room } else { room.min(0.0) };
    let weights: f32 = parts.iter().map(|(_, weight)| weight.max(1e-3)).sum();
    let sum: f32 = parts
        .iter()
        .map(|(room, weight)| counts(*room) * weight.max(1e-3))
        .sum();
    Some((sum / weights, kept))
}

/// Whether an endpoint is predicted to keep the SLO; `None` if there is none, or no prediction.
pub(crate) fn keeps(slo: Slo, facts: &Facts) -> Option<bool> {
    let predicted = facts.predicted.as_ref()?;
    headroom(slo, predicted, &LatencyScoring::default()).map(|(_, kept)| kept)
}

/// Scores by headroom to the SLO, or by how much slower than the fastest an endpoint is.
pub(crate) fn score_latency(
    scoring: &LatencyScoring,
    look: Look<'_>,
    facts: &[Facts],
    out: &mut [f32],
) {
    let least = |value: fn(&Prediction) -> f32| {
        let all = facts.iter().filter_map(|f| f.predicted.as_ref().map(value));
        all.fold(f32::MAX, f32::min)
    };
    let (ttft, tpot) = (least(|p| p.ttft_ms), least(|p| p.tpot_ms));
    let weights = (scoring.ttft_weight + scoring.tpot_weight).max(1e-3);
    let score = |predicted: &Prediction| match headroom(look.ask.slo, predicted, scoring) {
        Some((room, true)) => {
            let share = match scoring.headroom {
                Headroom::Least => 1.0 - room,
                Headroom::Most => room,
            };
            KEPT_SCORE_MIN + (1.0 - KEPT_SCORE_MIN) * share.clamp(0.0, 1.0)
        }
        Some((lack, false)) => 0.98 * KEPT_SCORE_MIN / (1.0 - lack),
        None => {
            let ttft = scoring.ttft_weight * ttft / predicted.ttft_ms;
            (ttft + scoring.tpot_weight * tpot / predicted.tpot_ms) / weights
        }
    };
    each_predicted(look, facts, out, &LATENCY_FALLBACK, score);
}

/// Scores by the delay that the request would have and cause: 1 for the least, and less in
/// proportion.
pub(crate) fn score_added_delay(look: Look<'_>, facts: &[Facts], out: &mut [f32]) {
    let tokens = look.output_tokens;
    let delay = |p: &Prediction| {
        let own = p.ttft_ms + tokens * p.tpot_ms;
        own + p.cost.prefill_ms + tokens * p.cost.token_ms
    };
    let all = facts.iter().filter_map(|f| f.predicted.as_ref().map(delay));
    let least = all.fold(f32::MAX, f32::min);
    each_predicted(look, facts, out, &DELAY_FALLBACK, |p| least / delay(p));
}

/// What is not predicted, all or none, gets the fallback.
fn each_predicted(
    look: Look<'_>,
    facts: &[Facts],
    out: &mut [f32],
    fallback: &[(Scorer, f32)],
    score: impl Fn(&Prediction) -> f32,
) {
    if facts.iter().any(|f| f.predicted.is_none()) {
        return fall_back(look, facts, out, fallback);
    }
    for (out, facts) in out.iter_mut().zip(facts) {
        *out = facts.predicted.as_ref().map_or(0.0, &score).clamp(0.0, 1.0);
    }
}

fn fall_back(look: Look<'_>, facts: &[Facts], out: &mut [f32], parts: &[(Scorer, f32)]) {
    let weights: f32 = parts.iter().map(|(_, weight)| weight).sum();
    let mut column: SmallVec<[f32; 64]> = SmallVec::new();
    column.resize(facts.len(), 0.0);
    out.fill(0.0);
    for (part, weight) in parts {
        score::score(part, look, facts, &mut column);
        for (out, score) in out.iter_mut().zip(&column) {
            *out += weight / weights * score;
        }
    }
}

impl PoolState {
    /// Refuses a request whose SLO no candidate is predicted to keep, if its like are refused. One
    /// that has nothing to do takes it all the same: it cannot get better than that.
    pub(crate) fn admit_by_slo(&self, ask: &Ask<'_>, facts: &[Facts]) -> Result<(), Refusal> {
        let concerned = match self.config.slo_admission {
            SloAdmission::Off => false,
            SloAdmission::Sheddable => ask.priority < 0,
            SloAdmission::All => true,
        };
        if !concerned || !ask.slo.is_some() {
            return Ok(());
        }
        let may_do = |f: &Facts| keeps(ask.slo, f) != Some(false) || f.inflight_requests == 0.0;
        if facts.is_empty() || facts.iter().any(may_do) {
            return Ok(());
        }
        let best = |value: fn(&Prediction) -> f32| {
            let all = facts.iter().filter_map(|f| f.predicted.as_ref().map(value));
            all.fold(f32::MAX, f32::min)
        };
        Err(Refusal::SloOutOfReach {
            ttft_ms: best(|p| p.ttft_high_ms),
            tpot_ms: best(|p| p.tpot_high_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predicted(ttft_ms: f32, tpot_ms: f32) -> Prediction {
        Prediction {
            ttft_ms,
            tpot_ms,
            ttft_high_ms: ttft_ms,
            tpot_high_ms: tpot_ms,
            cost: Default::default(),
            own: true,
        }
    }

    /// Scores of endpoints with these predictions.
    fn scores(scoring: &LatencyScoring, slo: Slo, all: &[(f32, f32)]) -> Vec<f32> {
        let facts = all.iter().map(|(ttft, tpot)| Facts {
            predicted: Some(predicted(*ttft, *tpot)),
            ..Facts::default()
        });
        let facts: Vec<Facts> = facts.collect();
        let ask = Ask {
            slo,
            ..Ask::default()
        };
        let look = Look {
            ask: &ask,
            slots: &[],
            sites: &[],
            output_tokens: 100.0,
        };
        let mut out = vec![0.0; facts.len()];
        score_latency(scoring, look, &facts, &mut out);
        out
    }

    #[test]
    fn without_an_slo_the_fastest_is_best_and_others_by_how_much_slower_they_are() {
        let out = scores(
            &LatencyScoring::default(),
            Slo::default(),
            &[(100.0, 10.0), (200.0, 10.0), (400.0, 40.0)],
        );
        let expected = [1.0, 0.6, 0.25];
        assert!(
            out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{out:?}"
        );
    }

    #[test]
    fn the_tightest_fit_that_keeps_the_slo_is_best_or_the_widest() {
        let slo = Slo {
            ttft_ms: Some(500.0),
            tpot_ms: Some(50.0),
        };
        // Fast, just in time, late to the first token, late between tokens and far off.
        let all = [(100.0, 10.0), (450.0, 45.0), (600.0, 10.0), (100.0, 500.0)];
        let order = |headroom| {
            let scoring = LatencyScoring {
                headroom,
                ..LatencyScoring::default()
            };
            let out = scores(&scoring, slo, &all);
            let mut order: Vec<usize> = (0..all.len()).collect();
            order.sort_by(|a, b| out[*b].total_cmp(&out[*a]));
            assert!(out[0].min(out[1]) >= KEPT_SCORE_MIN && out[2].max(out[3]) < KEPT_SCORE_MIN);
            order
        };
        assert_eq!(order(Headroom::Least), [1, 0, 2, 3]);
        assert_eq!(order(Headroom::Most), [0, 1, 2, 3]);
    }

    #[test]
    fn limits_are_numbers_of_milliseconds_above_zero() {
        for (text, expected) in [
            ("250", Some(250.0)),
            (" 12.5 ", Some(12.5)),
            ("0", None),
            ("-3", None),
            ("NaN", None),
            ("inf", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(Slo::parse_ms(text), expected, "{text}");
        }
    }
}
