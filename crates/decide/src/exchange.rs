//! The books of one exchange: begun, first byte, finished, and what each teaches.
//!
//! Whatever `begin` adds to an endpoint's counters the same flight takes off again, once, and only
//! if the endpoint is still the one that it was booked on.

use std::net::SocketAddr;

use forebay_model::Moment;
use forebay_model::picker::{PickerConfig, Scorer};
use smallvec::SmallVec;

use crate::ask::{Ask, Claim, End, EndKind, FailureKind, Flight};
use crate::choose::lora_worth;
use crate::health::{Standing, may_eject_another};
use crate::plan::Plan;
use crate::pool::{NOWHERE, PoolState};
use crate::predict::Begun;
use crate::prefix::{base_blocks, block_weight};
use crate::session::Place;
use crate::slot::Slot;

/// Claims that are wrong by less than this are rounding: servers cache whole blocks only, and the
/// prompt's token count is an estimate.
const CLAIM_ERROR_TOKENS: u32 = 64;

/// Answers with fewer gaps between tokens say more of how they were packed than of the server.
const TPOT_GAPS_MIN: u32 = 4;

impl PoolState {
    /// Books a request to `address`: it is in flight from now on, its prompt counts as cached
    /// there. The flight must be handed back to [`finish`](Self::finish). An address that is not
    /// in the pool (any more) gives a flight that changes nothing.
    pub fn begin(&mut self, ask: &Ask<'_>, address: SocketAddr, now: Moment) -> Flight {
        let Some(&at) = self.by_address.get(&address) else {
            return Flight::nowhere(ask, now);
        };
        self.note_cold(at, ask);
        let held = self.index.hold(at, ask.prefix);
        let claimed = hit_tokens(ask, held.hit_blocks, &self.config);
        let next_claim = hit_tokens(ask, held.hit_blocks + 1, &self.config);
        let hit_tokens = self.hit_at(at, ask, claimed);
        self.guess(at, ask, now);
        let expected = self.expected_output_tokens(ask);
        let uncached_tokens = ask.prompt_tokens - hit_tokens;
        self.found.add(hit_tokens, ask.prompt_tokens);
        let latency = self.latency(at, ask, uncached_tokens, now);
        let adapter = self.adapter(ask.model).map(|(_, hash)| hash);
        let slot = &mut self.slots[usize::from(at)];
        let oldest_awaiting = slot.awaiting.iter().min();
        let settled = oldest_awaiting.is_none_or(|&stamp| held.tail_stamp < stamp);
        let flight = Flight {
            slot: at,
            generation: slot.generation,
            begun: now,
            stamp: held.stamp,
            stream: ask.stream,
            answered: false,
            first_byte: now,
            latency,
            unqueued: !slot.any_waiting(),
            prompt_tokens: ask.prompt_tokens,
            counted: !ask.tokens.is_empty(),
            uncached_tokens,
            ahead_tokens: slot.backlog_tokens(now) as u64,
            total_tokens: ask.prompt_tokens.saturating_add(expected as u32),
            hit_tokens,
            claim: Claim {
                hit_tokens: claimed,
                blurred_tokens: next_claim - claimed,
                tail_stamp: (settled && held.hit_blocks > 0).then_some(held.tail_stamp),
            },
            fresh_blocks: ask.prefix[held.hit_blocks..held.held_blocks].into(),
        };
        slot.book(&flight, adapter, now);
        self.last_begun = at;
        if let Some(session) = ask.session {
            let generation = slot.generation;
            let place = Place {
                slot: at,
                generation,
            };
            self.sessions.set(session, place);
        }
        flight
    }

    /// Remembers who got a prompt that nobody holds anything of, where a scorer asks for it. Nobody
    /// else pays for the look into the index.
    fn note_cold(&mut self, at: u16, ask: &Ask<'_>) {
        let spreads = |plan: &Plan| {
            let mut scorers = plan.scorers.iter();
            scorers.any(|s| matches!(s.scorer, Scorer::ColdSpread))
        };
        if !self.plans.iter().any(spreads) {
            return;
        }
        let mut depths = SmallVec::<[u16; 256]>::new();
        depths.resize(self.slots.len(), 0);
        self.index.matches(ask.prefix, &mut depths);
        if depths.iter().all(|&depth| depth == 0) {
            self.cold_prompts += 1;
            self.slots[usize::from(at)].cold_stamp = self.cold_prompts;
        }
    }

    /// The first byte of the answer came. For a streamed answer that is the end of prefill: the
    /// prompt leaves the backlog, and the time it took shows the endpoint's speed.
    pub fn first_byte(&mut self, flight: &mut Flight, now: Moment) {
        if std::mem::replace(&mut flight.answered, true) {
            return;
        }
        flight.fresh_blocks = Box::default();
        flight.first_byte = now;
        let took = now.since(flight.begun);
        let Some(slot) = self.slot_of(flight) else {
            return;
        };
        slot.leave_backlog(flight, now);
        slot.started(flight.begun);
        if flight.stream && flight.unqueued {
            let tokens = flight.ahead_tokens + u64::from(flight.uncached_tokens);
            slot.speed.measured(tokens, took);
        }
        if flight.stream {
            let (at, ms) = (usize::from(flight.slot), took.as_secs_f64() * 1e3);
            self.predictor.observe_ttft(at, &flight.latency, ms);
        }
    }

    /// Settles a request, however it ended.
    pub fn finish(&mut self, mut flight: Flight, end: End, now: Moment) {
        if let Some(output) = end.output_tokens {
            self.output_tokens += 0.02 * (output as f32 - self.output_tokens);
        }
        let served = end.kind == EndKind::Served;
        let Some(slot) = self.slot_of(&flight) else {
            return;
        };
        if !flight.answered {
            slot.leave_backlog(&flight, now);
        }
        slot.ended(&flight, served);
        slot.inflight_requests -= 1;
        slot.inflight_tokens -= u64::from(flight.total_tokens);
        if served {
            if let (true, Some(counted)) = (flight.counted, end.prompt_tokens) {
                self.token_counts.compared(counted == flight.prompt_tokens);
            }
            self.learn_tpot(&flight, end, now);
            self.correct(&flight, end);
        } else if !flight.answered {
            let added = std::mem::take(&mut flight.fresh_blocks);
            self.index.retract(flight.slot, &added, flight.stamp);
        }
        self.judge(flight.slot, end.kind, now);
    }

    /// Tokens that the answer is expected to have: as many as others had, within its own limit.
    pub(crate) fn expected_output_tokens(&self, ask: &Ask<'_>) -> f32 {
        let max = ask.output_tokens_max.map_or(f32::MAX, |max| max as f32);
        self.output_tokens.min(max)
    }

    /// What is known and predicted of a prompt at an endpoint, before it is booked there.
    fn latency(&self, at: u16, ask: &Ask<'_>, uncached_tokens: u32, now: Moment) -> Begun {
        let slot = &self.slots[usize::from(at)];
        let load = slot.fresh(now, self.stale_after());
        let adapter = self.adapter(ask.model);
        let lora = adapter.and_then(|(name, hash)| lora_worth(slot, load?, name, hash));
        let situation = slot.situation(load, ask.prompt_tokens, uncached_tokens, lora, now);
        Begun {
            situation,
            predicted: self.predictor.predict(usize::from(at), &situation),
        }
    }

    /// A streamed answer's tokens after the first show how long a step takes there.
    fn learn_tpot(&mut self, flight: &Flight, end: End, now: Moment) {
        let gaps = end.output_tokens.map_or(0, |n| n.saturating_sub(1));
        if !flight.stream || !flight.answered || gaps < TPOT_GAPS_MIN {
            return;
        }
        let ms = now.since(flight.first_byte).as_secs_f64() * 1e3 / f64::from(gaps);
        self.predictor
            .observe_tpot(usize::from(flight.slot), &flight.latency, ms);
    }

    fn judge(&mut self, at: u16, kind: EndKind, now: Moment) {
        let may_eject = self.slots[usize::from(at)].health.is_last_chance() && {
            let out = |slot: &&Slot| slot.present && slot.health.standing(now) == Standing::Ejected;
            may_eject_another(self.by_address.len(), self.slots.iter().filter(out).count())
        };
        let health = &mut self.slots[usize::from(at)].health;
        match kind {
            EndKind::Served => health.served(now),
            EndKind::Failed(kind) => {
                let ejected = health.failed(kind, may_eject, now);
                if ejected && kind == FailureKind::Connect {
                    // Nobody listens: the server restarts, with an empty cache.
                    self.index.forget(at);
                    self.lose(at);
                }
            }
            EndKind::Cancelled => {}
        }
    }

    /// Holds the prefix index's claim against what the server reports.
    ///
    /// A server that has lost what we thought it had evicted it, and with it everything that it
    /// used longer ago; what is left is about as much as it has room for. (The prompt itself is in
    /// its cache now in any case.) A claim that holds while the list is full lets the capacity grow
    /// towards what the server says it has, and a hit that was not claimed lets it grow past that,
    /// up to four times: caches that spill to host memory hold more than the server counts. A hit
    /// that ends within the block after the claimed ones says nothing.
    fn correct(&mut self, flight: &Flight, end: End) {
        let (Some(cached), Some(prompt)) = (end.cached_tokens, end.prompt_tokens) else {
            return;
        };
        let ratio = prompt as f32 / (flight.prompt_tokens.max(1)) as f32;
        let claimed = (flight.claim.hit_tokens as f32 * ratio) as u32;
        let at = usize::from(flight.slot);
        let held = self.index.held_by(flight.slot);
        let capacity = self.slots[at].prefix_capacity;
        if cached < claimed / 2 && claimed - cached > CLAIM_ERROR_TOKENS {
            if let Some(stamp) = flight.claim.tail_stamp {
                self.index.forget_older(flight.slot, stamp);
                let left = self.index.held_by(flight.slot);
                self.set_capacity(at, capacity.min(capacity / 2 + left / 2));
            }
        } else if held >= capacity - capacity / 8 {
            let blurred = (flight.claim.blurred_tokens as f32 * ratio) as u32;
            let unclaimed = cached.saturating_sub(claimed);
            let surplus = unclaimed > blurred.saturating_add(2 * CLAIM_ERROR_TOKENS);
            let limit = self.nominal_capacity(at) * if surplus { 4 } else { 1 };
            let grown = (capacity + capacity / 64 + 1).min(limit);
            self.set_capacity(at, grown.max(capacity));
        }
    }

    fn slot_of(&mut self, flight: &Flight) -> Option<&mut Slot> {
        self.slots
            .get_mut(usize::from(flight.slot))
            .filter(|slot| slot.present && slot.generation == flight.generation)
    }
}

impl Flight {
    fn nowhere(ask: &Ask<'_>, now: Moment) -> Self {
        Self {
            slot: NOWHERE,
            generation: 0,
            begun: now,
            stamp: 0,
            stream: ask.stream,
            answered: false,
            first_byte: now,
            latency: Begun::default(),
            unqueued: false,
            prompt_tokens: ask.prompt_tokens,
            counted: false,
            uncached_tokens: 0,
            ahead_tokens: 0,
            total_tokens: 0,
            hit_tokens: 0,
            claim: Claim::default(),
            fresh_blocks: Box::default(),
        }
    }
}

/// Prompt tokens in so many leading blocks. If the whole prompt was hashed its tokens are spread
/// evenly over its bytes, the last partial block counting half; otherwise a token is four bytes.
pub(crate) fn hit_tokens(ask: &Ask<'_>, hit_blocks: usize, config: &PickerConfig) -> u32 {
    let blocks = ask.prefix.len();
    if hit_blocks == 0 {
        return 0;
    }
    let per_base_block = if base_blocks(blocks + 1) <= config.prefix_blocks_max {
        let partial = f32::from(block_weight(blocks)) / 2.0;
        ask.prompt_tokens as f32 / (base_blocks(blocks) as f32 + partial)
    } else {
        config.prefix_block_bytes as f32 / 4.0
    };
    ((base_blocks(hit_blocks) as f32 * per_base_block) as u32).min(ask.prompt_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::BlockHash;

    #[test]
    fn a_hit_is_worth_its_bytes_whatever_the_size_of_its_blocks() {
        let config = PickerConfig::default();
        let check = |blocks: usize, prompt_tokens, hit_blocks, expected: u32| {
            let prefix = vec![BlockHash(1); blocks];
            let ask = Ask {
                prefix: &prefix,
                prompt_tokens,
                ..Ask::default()
            };
            assert_eq!(hit_tokens(&ask, hit_blocks, &config), expected);
        };
        check(0, 50, 0, 0);
        // 32 blocks of 64 tokens and half of one of 128.
        check(32, 2_112, 32, 2_048);
        check(32, 2_112, 16, 1_024);
        // 32 of 64, 32 of 128, half of one of 256: a half of the blocks is a third of the prompt.
        check(64, 6_272, 64, 6_144);
        check(64, 6_272, 32, 2_048);
        // Longer than is hashed: four bytes a token.
        check(192, 500_000, 192, 2_016 * 64);
        check(192, 500_000, 96, 224 * 64);
        check(192, 1_000, 192, 1_000);
    }
}
