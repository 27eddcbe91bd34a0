//! One pick: candidates, filters, scores, order.
//!
//! Reads the pool's state, changes nothing; what a chosen endpoint owes to the choice is booked
//! by `PoolState::begin`. Formulas are in `score.rs`, standings in `health.rs`.

use std::net::SocketAddr;
use std::sync::Arc;

use forebay_model::Moment;
use forebay_model::picker::{PickerConfig, PickerKind};
use smallvec::SmallVec;

use crate::ask::Ask;
use crate::cached::{Hit, Hits};
use crate::health::Standing;
use crate::plan::Plan;
use crate::pool::PoolState;
use crate::prefix::base_blocks;
use crate::report::{
    Choice, Considered, Counts, Exclusion, Pick, REPORTED_ALL_UP_TO, REPORTED_BEST, Reason,
    Refusal, Report, Sticky,
};
use crate::rng::Rng;
use crate::score::{self, Facts, Look};
use crate::slot::Slot;

/// Totals this close are equal: far below any difference that a scorer means, far above what
/// adding floats in another order changes.
const TIE: f32 = 1e-5;

/// What each slot's endpoint is in this pick.
type Verdicts = SmallVec<[Option<Exclusion>; 128]>;

// These are filled in place: as return values their kilobytes would be copied.

pub(crate) struct Candidates {
    /// Of every slot.
    hits: Hits,
    pub(crate) facts: SmallVec<[Facts; 32]>,
    pub(crate) sticky: Sticky,
    panic: bool,
}

struct Totals {
    /// One run of scores per scorer.
    columns: SmallVec<[f32; 256]>,
    totals: SmallVec<[f32; 64]>,
}

impl PoolState {
    /// Chooses where one request goes. Reads only its arguments.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] if no endpoint may take the request or the pool is too full for it.
    pub fn choose(&self, ask: &Ask<'_>, now: Moment, rng: &mut Rng) -> Result<Pick, Refusal> {
        let plan = self.plan(ask)?;
        self.shed(ask.priority, now)?;
        if ask.avoid.is_empty() {
            self.shed_gradually(ask.priority, now, rng)?;
        }
        let mut verdicts = Verdicts::new();
        verdicts.resize(self.slots.len(), None);
        let panic = self.rule_out(ask, now, &mut verdicts)?;
        let mut candidates = Candidates {
            hits: Hits::new(),
            facts: SmallVec::new(),
            sticky: Sticky::Idle,
            panic,
        };
        self.hits(ask, &mut candidates.hits);
        self.facts(ask, now, &verdicts, &candidates.hits, &mut candidates.facts);
        if plan.predicts || ask.slo.is_some() {
            self.predict(ask, now, &mut candidates.facts);
        }
        self.admit_by_slo(ask, &candidates.facts)?;
        let look = Look {
            ask,
            slots: &self.slots,
            sites: &self.sites,
            output_tokens: self.expected_output_tokens(ask),
        };
        if plan.sticky {
            candidates.keep_sticky(&self.config, &mut verdicts);
        }
        if !plan.filters.is_empty() {
            self.filter(plan, look, &mut candidates, &mut verdicts, rng)?;
        }
        let mut totals = Totals {
            columns: SmallVec::new(),
            totals: SmallVec::new(),
        };
        score_all(plan, look, &candidates.facts, &mut totals);
        let (order, reason) = self.order(plan, &candidates.facts, &totals.totals, rng);
        let choice = |&at: &usize| {
            let facts = &candidates.facts[at];
            Choice {
                address: self.slots[usize::from(facts.slot)].address,
                hit_blocks: facts.hit.blocks,
                hit_tokens: facts.hit.tokens,
            }
        };
        Ok(Pick {
            order: order.iter().map(choice).collect(),
            report: self.report(plan, ask, &candidates, &verdicts, &totals, reason),
        })
    }

    /// Excludes endpoints that may not be chosen. True if all of the rest are ejected, in which
    /// case none is excluded for it: a request that may fail beats one that surely does.
    fn rule_out(
        &self,
        ask: &Ask<'_>,
        now: Moment,
        verdicts: &mut [Option<Exclusion>],
    ) -> Result<bool, Refusal> {
        if let Some(subset) = ask.subset {
            verdicts.fill(Some(Exclusion::OutsideSubset));
            if !self.mark(subset, None, verdicts) {
                return Err(Refusal::SubsetEmpty);
            }
        }
        let tried = self.mark_tried(ask.avoid, verdicts);
        // One pass: with many endpoints, reading their state is what a pick costs.
        let (mut unready, mut ejected, mut newcomers) = (0, 0, 0);
        let (mut settled, mut inflight) = (0, 0.0);
        for (slot, verdict) in self.slots.iter().zip(verdicts.iter_mut()) {
            if !slot.present || verdict.is_some() {
                continue;
            }
            if !slot.ready {
                unready += 1;
                *verdict = Some(Exclusion::Unready);
                continue;
            }
            match slot.health.standing(now) {
                Standing::Good => {
                    settled += 1;
                    inflight += slot.inflight_requests as f32;
                }
                Standing::Ramping(_) | Standing::Probing => newcomers += 1,
                Standing::Ejected => {
                    ejected += 1;
                    *verdict = Some(Exclusion::Ejected);
                }
            }
        }
        match (settled, newcomers, ejected) {
            (0, 0, 0) => {
                return Err(Refusal::NoReadyEndpoint {
                    endpoints: unready + tried,
                    unready,
                    tried,
                });
            }
            (0, 0, _) => readmit(verdicts, Exclusion::Ejected),
            (_, 0, _) | (0, _, _) => {}
            (settled, ..) => self.limit_newcomers(inflight / settled as f32, now, verdicts),
        }
        Ok(settled + newcomers == 0)
    }

    /// Sets the verdict on those of `addresses` that are in the pool; false if none is.
    fn mark(
        &self,
        addresses: &[SocketAddr],
        verdict: Option<Exclusion>,
        verdicts: &mut [Option<Exclusion>],
    ) -> bool {
        let mut any = false;
        for slot in addresses.iter().filter_map(|a| self.by_address.get(a)) {
            verdicts[usize::from(*slot)] = verdict;
            any = true;
        }
        any
    }

    fn mark_tried(&self, avoid: &[SocketAddr], verdicts: &mut [Option<Exclusion>]) -> u32 {
        let mut tried = 0;
        for slot in avoid.iter().filter_map(|a| self.by_address.get(a)) {
            let verdict = &mut verdicts[usize::from(*slot)];
            tried += u32::from(verdict.is_none());
            verdict.get_or_insert(Exclusion::Tried);
        }
        tried
    }

    /// Leaves out endpoints that came back and have as many requests as they may have for now.
    /// Only if others are in good standing, with a mean of `mean` requests in flight.
    fn limit_newcomers(&self, mean: f32, now: Moment, verdicts: &mut [Option<Exclusion>]) {
        for (slot, verdict) in self.slots.iter().zip(verdicts) {
            if !slot.present || verdict.is_some() {
                continue;
            }
            let allowed = match slot.health.standing(now) {
                Standing::Good => f32::MAX,
                Standing::Ramping(share) => (mean * share).max(1.0),
                Standing::Probing | Standing::Ejected => 1.0,
            };
            if slot.inflight_requests as f32 >= allowed {
                *verdict = Some(Exclusion::Ramping);
            }
        }
    }

    fn facts(
        &self,
        ask: &Ask<'_>,
        now: Moment,
        verdicts: &[Option<Exclusion>],
        hits: &[Hit],
        facts: &mut SmallVec<[Facts; 32]>,
    ) {
        let adapter = self.adapter(ask.model);
        let session = ask.session.and_then(|session| self.sessions.get(session));
        let fact = |at: usize, slot: &Slot| {
            let load = slot.fresh(now, self.stale_after());
            let hit = hits[at];
            let uncached = ask.prompt_tokens.saturating_sub(hit.tokens) as f32;
            let ms_per_token = 1_000.0 / slot.speed.tokens_per_s();
            let backlog_tokens = slot.backlog_tokens(now);
            let backlog_ms = backlog_tokens * ms_per_token;
            Facts {
                slot: at as u16,
                hit,
                uncached_tokens: uncached,
                backlog_tokens,
                backlog_ms,
                prefill_ms: backlog_ms + uncached * ms_per_token,
                waiting: load.and_then(|load| slot.waiting(load)),
                running: load.and_then(|load| slot.running(load)),
                kv_used: load.and_then(|load| slot.kv_used(load)),
                own_waiting: slot.awaiting.len() as f32,
                inflight_requests: slot.inflight_requests as f32,
                inflight_tokens: slot.inflight_tokens as f32,
                lora: adapter.and_then(|(name, hash)| lora_worth(slot, load?, name, hash)),
                had_session: session
                    .is_some_and(|s| usize::from(s.slot) == at && s.generation == slot.generation),
                predicted: None,
            }
        };
        facts.reserve(self.by_address.len());
        for (at, (slot, verdict)) in self.slots.iter().zip(verdicts).enumerate() {
            if slot.present && verdict.is_none() {
                facts.push(fact(at, slot));
            }
        }
    }

    /// Adds what latency the request is predicted to have at each candidate.
    fn predict(&self, ask: &Ask<'_>, now: Moment, facts: &mut [Facts]) {
        let stale_after = self.stale_after();
        for f in facts {
            let at = usize::from(f.slot);
            let slot = &self.slots[at];
            let load = slot.fresh(now, stale_after);
            let uncached = ask.prompt_tokens.saturating_sub(f.hit.tokens);
            let mut situation = slot.situation(load, ask.prompt_tokens, uncached, f.lora, now);
            situation.displaced = self.displaced(at);
            f.predicted = self.predictor.predict(at, &situation);
        }
    }

    /// What one more token in the endpoint's cache is likely to cost later: as much of it as is full
    /// makes room, and as much of what was there would have been found by others as is now.
    fn displaced(&self, at: usize) -> f32 {
        let capacity = self.slots[at].prefix_capacity.max(1) as f32;
        let full = self.index.held_by(at as u16) as f32 / capacity;
        self.found.share() * full.min(1.0)
    }

    /// Positions of the winner and the fallbacks among the candidates.
    fn order(
        &self,
        plan: &Plan,
        facts: &[Facts],
        totals: &[f32],
        rng: &mut Rng,
    ) -> (SmallVec<[usize; 3]>, Reason) {
        let mut order: SmallVec<[usize; 3]> = SmallVec::new();
        let mut reason = Reason::from(plan.picker);
        let all = 0..totals.len();
        let winner = match plan.picker {
            PickerKind::MaxScore => {
                let (winner, tied) = best(all, totals, rng);
                if tied {
                    reason = Reason::TieBroken;
                }
                winner
            }
            PickerKind::WeightedRandom => drawn(totals, rng),
            PickerKind::PowerOf(n) => best_of_drawn(usize::from(n), totals, rng),
            PickerKind::RoundRobin => {
                let next = facts.iter().position(|f| f.slot > self.last_begun);
                Some(next.unwrap_or(0))
            }
            PickerKind::Random => Some(rng.below(totals.len())),
        };
        order.extend(winner);
        for _ in 1..plan.endpoints_max.min(totals.len()) {
            let rest = (0..totals.len()).filter(|at| !order.contains(at));
            let (next, _) = best(rest, totals, rng);
            order.extend(next);
        }
        if totals.len() == 1 {
            reason = Reason::OnlyCandidate;
        }
        (order, reason)
    }

    fn report(
        &self,
        plan: &Plan,
        ask: &Ask<'_>,
        candidates: &Candidates,
        verdicts: &[Option<Exclusion>],
        totals: &Totals,
        reason: Reason,
    ) -> Report {
        let mut counts = Counts {
            candidates: candidates.facts.len() as u32,
            ..Counts::default()
        };
        if candidates.facts.len() < self.by_address.len() {
            for (slot, verdict) in self.slots.iter().zip(verdicts) {
                if let (true, Some(exclusion)) = (slot.present, verdict) {
                    counts.add(*exclusion);
                }
            }
        }
        let considered = if self.by_address.len() <= REPORTED_ALL_UP_TO {
            self.describe_all(candidates, verdicts, totals)
        } else {
            self.describe_best(candidates, totals)
        };
        Report {
            scorers: Arc::clone(&plan.scorers),
            profile: plan.name.clone(),
            reason,
            sticky: candidates.sticky,
            panic: candidates.panic,
            counts,
            prompt_blocks: base_blocks(ask.prefix.len()) as u32,
            prompt_tokens: ask.prompt_tokens,
            considered,
        }
    }

    fn describe_all(
        &self,
        candidates: &Candidates,
        verdicts: &[Option<Exclusion>],
        totals: &Totals,
    ) -> Vec<Considered> {
        let mut scored = 0;
        let slots = self.slots.iter().zip(verdicts).zip(&candidates.hits);
        let present = slots.filter(|((slot, _), _)| slot.present);
        present
            .map(|((slot, verdict), hit)| match verdict {
                None => {
                    scored += 1;
                    self.describe(candidates, totals, scored - 1)
                }
                Some(exclusion) => Considered {
                    address: slot.address,
                    excluded: Some(*exclusion),
                    scores: SmallVec::new(),
                    total: 0.0,
                    hit_blocks: hit.blocks,
                    hit_tokens: hit.tokens,
                    knowledge: hit.knowledge,
                    prefill_ms: 0.0,
                    predicted: None,
                },
            })
            .collect()
    }

    fn describe_best(&self, candidates: &Candidates, totals: &Totals) -> Vec<Considered> {
        let mut best: SmallVec<[usize; REPORTED_BEST]> = SmallVec::new();
        for at in 0..totals.totals.len() {
            let rank = best.partition_point(|&b| totals.totals[b] >= totals.totals[at]);
            if rank < REPORTED_BEST {
                best.truncate(REPORTED_BEST - 1);
                best.insert(rank, at);
            }
        }
        best.iter()
            .map(|&at| self.describe(candidates, totals, at))
            .collect()
    }

    fn describe(&self, candidates: &Candidates, totals: &Totals, at: usize) -> Considered {
        let facts = &candidates.facts[at];
        let stride = candidates.facts.len();
        Considered {
            address: self.slots[usize::from(facts.slot)].address,
            excluded: None,
            scores: totals
                .columns
                .iter()
                .skip(at)
                .step_by(stride)
                .copied()
                .collect(),
            total: totals.totals[at],
            hit_blocks: facts.hit.blocks,
            hit_tokens: facts.hit.tokens,
            knowledge: facts.hit.knowledge,
            prefill_ms: facts.prefill_ms,
            predicted: facts.predicted,
        }
    }
}

impl Candidates {
    /// Keeps to the endpoints that hold most of the prompt, but not to those that are saturated:
    /// whose prefill backlog is too much longer than the best other's, or whose own queue is long
    /// while another's is not. If that leaves none, all stay candidates, and the prompt gets a
    /// second home.
    fn keep_sticky(&mut self, config: &PickerConfig, verdicts: &mut [Option<Exclusion>]) {
        if config.sticky_share >= 1.0 {
            return;
        }
        let warm = |f: &Facts| f.hit.tokens > 0 && f.hit.share >= config.sticky_share;
        let others = || self.facts.iter().filter(|f| !warm(f));
        if others().next().is_none() || !self.facts.iter().any(warm) {
            return;
        }
        let backlog_max = others().map(|f| f.backlog_ms).fold(f32::MAX, f32::min)
            + config.sticky_backlog_max_ms as f32;
        let queue_max = config.saturation_queue as f32;
        let spare = others().any(|f| f.waiting.is_some_and(|n| n < queue_max / 2.0));
        let overrun = |f: &Facts| {
            f.backlog_ms > backlog_max || (spare && f.waiting.is_some_and(|n| n > queue_max))
        };
        if !self.facts.iter().any(|f| warm(f) && !overrun(f)) {
            self.sticky = Sticky::Released;
            return;
        }
        self.sticky = Sticky::Kept;
        self.facts.retain(|f| {
            let excluded = match (warm(f), overrun(f)) {
                (true, false) => None,
                (true, true) => Some(Exclusion::Overrun),
                (false, _) => Some(Exclusion::ColdCache),
            };
            verdicts[usize::from(f.slot)] = excluded;
            excluded.is_none()
        });
    }
}

fn score_all(
    plan: &Plan,
    look: Look<'_>,
    facts: &[Facts],
    Totals { columns, totals }: &mut Totals,
) {
    columns.resize(facts.len() * plan.scorers.len(), 0.0);
    totals.resize(facts.len(), 0.0);
    let scorers = plan.scorers.iter();
    for (scorer, column) in scorers.zip(columns.chunks_exact_mut(facts.len())) {
        score::score(&scorer.scorer, look, facts, column);
        for (total, score) in totals.iter_mut().zip(column) {
            *total += scorer.weight * *score;
        }
    }
}

fn readmit(verdicts: &mut [Option<Exclusion>], whom: Exclusion) {
    for verdict in verdicts.iter_mut().filter(|v| **v == Some(whom)) {
        *verdict = None;
    }
}

/// Adapter in the batch 1, room for one more 0.8, others wait for it already 0.6, else 0: the
/// values of the Inference Extension.
pub(crate) fn lora_worth(
    slot: &Slot,
    load: &forebay_model::Load,
    name: &str,
    hash: u64,
) -> Option<f32> {
    let lora = load.lora.as_ref()?;
    let named = |names: &[std::sync::Arc<str>]| names.iter().any(|n| **n == *name);
    Some(if named(&lora.running) || slot.was_sent_adapter(hash) {
        1.0
    } else if lora.running.len() + lora.waiting.len() < lora.max as usize {
        0.8
    } else if named(&lora.waiting) {
        0.6
    } else {
        0.0
    })
}

/// The highest total among `those`, one of the equals at random; whether there were equals.
fn best(
    those: impl Iterator<Item = usize>,
    totals: &[f32],
    rng: &mut Rng,
) -> (Option<usize>, bool) {
    let (mut winner, mut equals) = (None, 0);
    let mut highest = f32::MIN;
    for at in those {
        if totals[at] > highest + TIE {
            (winner, equals, highest) = (Some(at), 1, totals[at]);
        } else if totals[at] >= highest - TIE {
            equals += 1;
            if rng.below(equals) == 0 {
                winner = Some(at);
            }
        }
    }
    (winner, equals > 1)
}

/// At random in proportion to the totals (A-Res: the highest U^(1/w), here in logarithms).
fn drawn(totals: &[f32], rng: &mut Rng) -> Option<usize> {
    let key = |total: f32, rng: &mut Rng| rng.unit().ln() / f64::from(total.max(1e-6));
    let keys = totals.iter().map(|&total| key(total, rng));
    keys.enumerate()
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(at, _)| at)
}

/// The best of `n` different ones drawn at random.
fn best_of_drawn(n: usize, totals: &[f32], rng: &mut Rng) -> Option<usize> {
    let n = n.clamp(1, totals.len());
    let mut drawn: SmallVec<[usize; 8]> = SmallVec::new();
    // Floyd's sampling: each subset of n is equally likely.
    for last in totals.len() - n..totals.len() {
        let at = rng.below(last + 1);
        drawn.push(if drawn.contains(&at) { last } else { at });
    }
    best(drawn.into_iter(), totals, rng).0
}
