//! What filters leave of the candidates. Each works on what the one before left, and notes with
//! every endpoint that it takes away why.

use forebay_model::policy::{Filter, LoadLimits, PrefixAffinity, SignalFilter, SignalTest};
use smallvec::SmallVec;

use crate::choose::Candidates;
use crate::latency;
use crate::plan::Plan;
use crate::pool::PoolState;
use crate::report::{Exclusion, Refusal, Sticky};
use crate::rng::Rng;
use crate::score::{Facts, Look};
use crate::site;

impl PoolState {
    /// Runs the filters of `plan`.
    pub(crate) fn filter(
        &self,
        plan: &Plan,
        look: Look<'_>,
        candidates: &mut Candidates,
        verdicts: &mut [Option<Exclusion>],
        rng: &mut Rng,
    ) -> Result<(), Refusal> {
        let endpoints = candidates.facts.len() as u32;
        for (filter, passes) in &plan.filters {
            let by = why(filter);
            match filter {
                Filter::Labels(_) | Filter::LabelOrNone { .. } | Filter::Stage(_) => {
                    candidates.keep(by, verdicts, |f| passes[usize::from(f.slot)]);
                }
                Filter::PrefixAffinity(affinity) => {
                    if rng_spares(affinity, rng) {
                        continue;
                    }
                    candidates.keep_warm(affinity, verdicts);
                }
                Filter::Session => candidates.keep_if_any(by, verdicts, |f| f.had_session),
                Filter::Load(limits) => candidates.keep_below(limits, verdicts),
                Filter::Signal(filter) => candidates.keep_passing(filter, verdicts),
                Filter::ContextLength(label) => candidates.keep(by, verdicts, |f| {
                    let text = look.sites[usize::from(f.slot)].labels.get(label);
                    let tokens = look.ask.prompt_tokens;
                    text.is_none_or(|text| {
                        let range = site::token_range(text);
                        range.is_some_and(|(min, max)| (min..=max).contains(&tokens))
                    })
                }),
                Filter::Unsaturated { headroom } => {
                    let room = 1.0 + headroom;
                    candidates.keep_if_any(by, verdicts, |f| self.has_room(f, room));
                }
                Filter::SloHeadroom { exploration } => {
                    if *exploration > 0.0 && rng.unit() < f64::from(*exploration) {
                        continue;
                    }
                    let slo = look.ask.slo;
                    candidates
                        .keep_if_any(by, verdicts, |f| latency::keeps(slo, f).unwrap_or(true));
                }
                Filter::Near(least) => {
                    let Some(near) = look.ask.near else {
                        continue;
                    };
                    candidates.keep_if_any(by, verdicts, |f| {
                        let own = &look.sites[usize::from(f.slot)].topology;
                        own.proximity(near).is_some_and(|found| found >= *least)
                    });
                }
            }
            if candidates.facts.is_empty() {
                return Err(Refusal::Filtered { endpoints, by });
            }
        }
        Ok(())
    }

    /// Whether an endpoint is below `room` times what makes it count as saturated.
    fn has_room(&self, facts: &Facts, room: f32) -> bool {
        use forebay_model::policy::Saturation;
        let below = |value: Option<f32>, limit: f32| value.is_none_or(|value| value <= limit);
        match self.config.saturation {
            Saturation::Reported => {
                let queue = self.config.saturation_queue as f32 * room;
                let kv = (self.config.saturation_kv * room).min(1.0);
                below(facts.waiting, queue) && below(facts.kv_used, kv)
            }
            Saturation::Inflight {
                requests_max,
                tokens_max,
            } => {
                let fewer = |value: f32, limit: Option<f32>| limit.is_none_or(|l| value < l * room);
                fewer(facts.inflight_requests, requests_max.map(|n| n as f32))
                    && fewer(facts.backlog_tokens, tokens_max.map(|n| n as f32))
            }
        }
    }
}

/// A random share of requests is left alone; none of them without a draw, so that policies which
/// leave nothing to chance do not depend on it.
fn rng_spares(affinity: &PrefixAffinity, rng: &mut Rng) -> bool {
    affinity.exploration > 0.0 && rng.unit() < f64::from(affinity.exploration)
}

fn why(filter: &Filter) -> Exclusion {
    match filter {
        Filter::Labels(_) | Filter::LabelOrNone { .. } => Exclusion::Label,
        Filter::Stage(_) => Exclusion::Stage,
        Filter::PrefixAffinity(_) => Exclusion::ColdCache,
        Filter::Session => Exclusion::Session,
        Filter::Load(_) | Filter::Signal(_) | Filter::Unsaturated { .. } => Exclusion::Load,
        Filter::ContextLength(_) => Exclusion::ContextLength,
        Filter::SloHeadroom { .. } => Exclusion::Slo,
        Filter::Near(_) => Exclusion::Far,
    }
}

impl Candidates {
    fn keep(
        &mut self,
        by: Exclusion,
        verdicts: &mut [Option<Exclusion>],
        passes: impl Fn(&Facts) -> bool,
    ) {
        self.facts.retain(|f| {
            let stays = passes(f);
            if !stays {
                verdicts[usize::from(f.slot)] = Some(by);
            }
            stays
        });
    }

    fn keep_if_any(
        &mut self,
        by: Exclusion,
        verdicts: &mut [Option<Exclusion>],
        passes: impl Fn(&Facts) -> bool,
    ) {
        if self.facts.iter().any(&passes) {
            self.keep(by, verdicts, passes);
        }
    }

    /// Keeps to those that hold the prompt, all or none: once the best of them is too far behind
    /// the best other, everybody is a candidate, and the scorers weigh the load.
    fn keep_warm(&mut self, affinity: &PrefixAffinity, verdicts: &mut [Option<Exclusion>]) {
        let warm = |f: &Facts| f.hit.tokens > 0 && f.hit.share >= affinity.share;
        let best = |wanted: bool, value: fn(&Facts) -> f32| {
            let those = self.facts.iter().filter(|f| warm(f) == wanted);
            those.map(value).reduce(f32::min)
        };
        let tokens = |f: &Facts| f.backlog_tokens;
        let (Some(own), Some(other)) = (best(true, tokens), best(false, tokens)) else {
            return;
        };
        if affinity.predicted {
            let ttft = |wanted: bool| {
                let those = self.facts.iter().filter(|f| warm(f) == wanted);
                let ttft = those.filter_map(|f| f.predicted.map(|p| p.ttft_ms));
                ttft.reduce(f32::min)
            };
            let behind_ms = ttft(true).zip(ttft(false)).map(|(own, other)| own - other);
            let max = affinity.backlog_max_ms.unwrap_or(f32::INFINITY);
            self.sticky = match behind_ms {
                Some(behind_ms) if behind_ms <= max => Sticky::Kept,
                Some(_) => Sticky::Released,
                None => return,
            };
            if self.sticky == Sticky::Kept {
                self.keep(Exclusion::ColdCache, verdicts, warm);
            }
            return;
        }
        let too_many = affinity
            .backlog_max_tokens
            .is_some_and(|max| own - other > max as f32);
        let too_late = affinity.backlog_max_ms.is_some_and(|max| {
            let behind_ms = match affinity.prefill_tokens_per_s {
                Some(speed) => (own - other) * 1_000.0 / speed.max(1.0),
                None => {
                    let ms = |wanted| best(wanted, |f| f.backlog_ms).unwrap_or(0.0);
                    ms(true) - ms(false)
                }
            };
            behind_ms > max
        });
        if too_many || too_late {
            self.sticky = Sticky::Released;
            return;
        }
        self.sticky = Sticky::Kept;
        self.keep(Exclusion::ColdCache, verdicts, warm);
    }

    fn keep_below(&mut self, limits: &LoadLimits, verdicts: &mut [Option<Exclusion>]) {
        let passes = |f: &Facts| {
            let mut limits = limits.limits.iter();
            limits.all(|(signal, max)| f.signal(*signal).is_none_or(|value| value <= *max))
        };
        match limits.all_if_none {
            true => self.keep_if_any(Exclusion::Load, verdicts, passes),
            false => self.keep(Exclusion::Load, verdicts, passes),
        }
    }

    fn keep_passing(&mut self, filter: &SignalFilter, verdicts: &mut [Option<Exclusion>]) {
        let value = |f: &Facts| f.signal(filter.signal);
        let mut known: SmallVec<[f32; 128]> = self.facts.iter().filter_map(value).collect();
        let cut = cut(filter.passes, &mut known);
        let passes = |f: &Facts| match value(f) {
            None => filter.unknown_passes,
            Some(value) => match filter.passes {
                SignalTest::LessThan(limit) => value < limit,
                SignalTest::AtMost(limit) => value <= limit,
                SignalTest::GreaterThan(limit) => value > limit,
                SignalTest::AtLeast(limit) => value >= limit,
                SignalTest::Equal(wanted) => value == wanted,
                SignalTest::NotEqual(unwanted) => value != unwanted,
                SignalTest::Within(min, max) => (min..=max).contains(&value),
                SignalTest::Top { highest: true, .. }
                | SignalTest::Percentile { highest: true, .. } => value >= cut,
                SignalTest::Top { .. } | SignalTest::Percentile { .. } => value <= cut,
            },
        };
        match filter.all_if_none {
            true => self.keep_if_any(Exclusion::Load, verdicts, passes),
            false => self.keep(Exclusion::Load, verdicts, passes),
        }
    }
}

/// The last value that passes a test which depends on the candidates'. Equals pass together.
fn cut(test: SignalTest, known: &mut [f32]) -> f32 {
    known.sort_unstable_by(f32::total_cmp);
    let at = match test {
        SignalTest::Top { count, highest } => {
            let count = count.clamp(1, known.len().max(1));
            if highest {
                known.len().saturating_sub(count)
            } else {
                count - 1
            }
        }
        SignalTest::Percentile { percentile, .. } => {
            let rank = (percentile / 100.0 * known.len() as f32).ceil() as usize;
            rank.saturating_sub(1)
        }
        SignalTest::LessThan(_)
        | SignalTest::AtMost(_)
        | SignalTest::GreaterThan(_)
        | SignalTest::AtLeast(_)
        | SignalTest::Equal(_)
        | SignalTest::NotEqual(_)
        | SignalTest::Within(..) => return 0.0,
    };
    known.get(at).copied().unwrap_or(0.0)
}
