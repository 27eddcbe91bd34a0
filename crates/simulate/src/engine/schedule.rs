//! What goes into the next step: running sequences first, then the queue in order of arrival.
//!
//! These are the rules of vLLM's v1 scheduler: one token budget for prompt chunks and output tokens
//! alike; on a lack of blocks the last running sequence starts over at the head of the queue; nobody
//! is admitted in a step that preempted. Durations are not decided here.

use std::collections::BTreeSet;

use super::blocks::{BlockId, StoredBlock};
use super::tokens::{BLOCK_TOKENS, block_hash, output_token};
use super::{AdapterId, Admitted, Engine, RequestId, Sequence, StepReport};
use crate::profile::{Batch, Chunk};

/// One step to come.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// What the GPU works on.
    pub(super) batch: Batch,
    /// Slot and request of each sequence that gets an output token.
    pub(super) emitting: Vec<(usize, RequestId)>,
}

impl Engine {
    /// Plans one step; `None` if nothing can go on.
    pub(super) fn schedule(&mut self, report: &mut StepReport) -> Option<Plan> {
        let mut plan = Plan::default();
        let mut budget = self.settings.max_num_batched_tokens;
        let preempted_before = report.preempted.len();
        self.continue_running(&mut plan, &mut budget, report);
        if report.preempted.len() == preempted_before {
            self.admit_waiting(&mut plan, &mut budget, report);
        }
        (plan.batch.tokens() > 0).then_some(plan)
    }

    fn continue_running(&mut self, plan: &mut Plan, budget: &mut u32, report: &mut StepReport) {
        let mut at = 0;
        while at < self.running.len() && *budget > 0 {
            let slot = self.running[at];
            at += 1;
            let sequence = self.sequence(slot);
            if sequence.planned >= sequence.request.output_tokens {
                continue; // its last token is in the step in flight
            }
            let tokens = (sequence.total() - sequence.computed).min(*budget);
            if !self.grow_or_preempt(slot, tokens, report) {
                break;
            }
            *budget -= tokens;
            self.plan_tokens(slot, tokens, plan);
        }
    }

    /// Finds blocks for `tokens` more, at the cost of the sequences admitted last. False if the
    /// sequence itself had to go.
    fn grow_or_preempt(&mut self, slot: usize, tokens: u32, report: &mut StepReport) -> bool {
        while !self.grow(slot, tokens) {
            let victim = self.running.pop().expect("the sequence itself runs");
            self.release_blocks(victim);
            self.waiting.push_front(victim);
            self.totals.preemptions += 1;
            report.preempted.push(self.sequence(victim).request.id);
            if victim == slot {
                return false;
            }
        }
        true
    }

    /// Takes the blocks for `tokens` more, all or none.
    fn grow(&mut self, slot: usize, tokens: u32) -> bool {
        let sequence = self.sequences[slot].as_mut().expect("a slot in use");
        let needed = blocks_for(sequence.computed + tokens) - sequence.blocks.len();
        if needed > self.pool.free() as usize {
            return false;
        }
        for _ in 0..needed {
            sequence
                .blocks
                .push(self.pool.take_new().expect("free blocks counted above"));
        }
        true
    }

    fn admit_waiting(&mut self, plan: &mut Plan, budget: &mut u32, report: &mut StepReport) {
        let mut adapters: BTreeSet<AdapterId> = self
            .running
            .iter()
            .filter_map(|slot| self.sequence(*slot).request.adapter)
            .collect();
        let mut at = 0;
        while at < self.waiting.len()
            && *budget > 0
            && self.running.len() < self.settings.max_num_seqs as usize
        {
            let slot = self.waiting[at];
            if self.is_deferred(slot, &adapters) {
                at += 1;
                continue;
            }
            let Some(tokens) = self.enter(slot, *budget, report) else {
                break; // in order of arrival: nobody overtakes for want of blocks
            };
            self.waiting.remove(at);
            self.running.push(slot);
            adapters.extend(self.sequence(slot).request.adapter);
            *budget -= tokens;
            self.plan_tokens(slot, tokens, plan);
        }
    }

    /// Whether the sequence waits for an adapter slot.
    pub(super) fn is_deferred(&self, slot: usize, running: &BTreeSet<AdapterId>) -> bool {
        self.sequence(slot).request.adapter.is_some_and(|adapter| {
            !running.contains(&adapter) && running.len() >= self.settings.max_loras as usize
        })
    }

    /// Takes cached blocks and those for the first chunk; the chunk's tokens, or `None` if they do
    /// not fit.
    fn enter(&mut self, slot: usize, budget: u32, report: &mut StepReport) -> Option<u32> {
        let sequence = self.sequence(slot);
        let total = sequence.total();
        let hits = self.cached_blocks(sequence);
        let cached = count_tokens(hits.len());
        let tokens = (total - cached).min(budget);
        let reserved = if self.settings.reserve_full_prompt {
            total
        } else {
            cached + tokens
        };
        let free = self.pool.free() - self.pool.free_among(&hits);
        if blocks_for(reserved) - hits.len() > free as usize {
            return None;
        }
        let first_time = !sequence.admitted;
        for block in &hits {
            self.pool.take_cached(*block);
        }
        let prefix_caching = self.settings.prefix_caching;
        let sequence = self.sequence_mut(slot);
        sequence.filled = hits.len();
        sequence.blocks = hits;
        sequence.computed = cached;
        sequence.admitted = true;
        let id = sequence.request.id;
        if first_time {
            report.admitted.push(Admitted {
                id,
                cached_tokens: cached,
            });
            self.totals.prompt_tokens += u64::from(total);
            self.totals.prefix_hits += u64::from(cached);
            self.totals.prefix_queries += if prefix_caching { u64::from(total) } else { 0 };
        }
        assert!(self.grow(slot, tokens), "free blocks counted above");
        Some(tokens)
    }

    /// Blocks of the longest cached prefix. The last token is always computed: its output is wanted.
    fn cached_blocks(&self, sequence: &Sequence) -> Vec<BlockId> {
        if !self.settings.prefix_caching {
            return Vec::new();
        }
        let usable = ((sequence.total() - 1) / BLOCK_TOKENS) as usize;
        self.pool
            .cached_prefix(&sequence.hashes[..usable.min(sequence.hashes.len())])
    }

    /// Adds `tokens` of a sequence that has the blocks for them.
    fn plan_tokens(&mut self, slot: usize, tokens: u32, plan: &mut Plan) {
        let sequence = self.sequence_mut(slot);
        let before = sequence.computed;
        sequence.computed += tokens;
        if tokens == 1 {
            plan.batch.decodes += 1;
            plan.batch.decode_context_tokens += u64::from(before + 1);
        } else {
            plan.batch.prefills.push(Chunk {
                tokens,
                context_tokens: before,
            });
        }
        if sequence.computed == sequence.total() {
            sequence.planned += 1;
            plan.batch.emitting += 1;
            plan.emitting.push((slot, sequence.request.id));
        }
        if self.settings.prefix_caching {
            self.register_full_blocks(slot);
        }
    }

    /// Offers the blocks that are full now to requests with the same prefix.
    fn register_full_blocks(&mut self, slot: usize) {
        let sequence = self.sequences[slot].as_mut().expect("a slot in use");
        let full = (sequence.computed / BLOCK_TOKENS) as usize;
        while sequence.filled < full {
            if sequence.hashes.len() == sequence.filled {
                sequence.hashes.push(output_block_hash(sequence));
            }
            let at = sequence.filled;
            let stored = StoredBlock {
                hash: sequence.hashes[at],
                parent: at.checked_sub(1).map(|before| sequence.hashes[before]),
                request: sequence.request.id,
                position: at as u32,
            };
            self.pool.set_hash(sequence.blocks[at], stored);
            sequence.filled += 1;
        }
    }
}

/// The hash of the first block that is not known from the prompt alone.
fn output_block_hash(sequence: &Sequence) -> u64 {
    let request = &sequence.request;
    let first = count_tokens(sequence.hashes.len());
    let tail_start = count_tokens(request.prompt.block_hashes.len());
    let token = |position: u32| match position.checked_sub(request.prompt.tokens) {
        Some(index) => output_token(request.output_seed, index),
        None => {
            let tail = &request.prompt.tail;
            tail.get((position - tail_start) as usize)
                .copied()
                .unwrap_or_default()
        }
    };
    let tokens: [u32; BLOCK_TOKENS as usize] = std::array::from_fn(|i| token(first + i as u32));
    block_hash(
        sequence
            .hashes
            .last()
            .copied()
            .unwrap_or(request.prompt.salt),
        &tokens,
    )
}

const fn blocks_for(tokens: u32) -> usize {
    tokens.div_ceil(BLOCK_TOKENS) as usize
}

fn count_tokens(blocks: usize) -> u32 {
    u32::try_from(blocks)
        .unwrap_or(u32::MAX)
        .saturating_mul(BLOCK_TOKENS)
}
