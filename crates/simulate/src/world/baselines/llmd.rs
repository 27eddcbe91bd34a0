//! llm-d's router: its approximate prefix producer and its two default profiles.
//!
//! [`Weighted`] is the profile that is compiled in: queue 2, KV use 2, prefix 3, from scrapes as they
//! are. [`Sticky`] is the one of its guides since August 2026: keep to pods with at least 80 % of the
//! prompt, unless they are too far behind; among those that stay, fewest uncached tokens in flight.

use std::collections::VecDeque;

use forebay_decide::{End, Rng};
use forebay_model::{Load, Moment};
use rustc_hash::FxHashMap;

use super::plain::highest;
use crate::world::router::{Id, Router, Seen};

/// Tokens per block: 16 are configured, 64 is the least that is taken.
const BLOCK_TOKENS: u32 = 64;
/// Blocks of 16 tokens in one of those.
const ENGINE_BLOCKS: usize = 4;
/// Blocks of a prompt that are matched (`maxPrefixBlocksToMatch`; `maxPrefixTokensToMatch`, 131,072,
/// is as much).
const MATCHED_BLOCKS_MAX: usize = 2048;
/// Blocks per server until its metrics tell (`lruCapacityPerServer`).
const LRU_CAPACITY: usize = 31_250;
/// `affinityThreshold`.
const AFFINITY: f64 = 0.8;
/// `maxTTFTPenaltyMs`.
const TTFT_PENALTY_MAX_MS: f64 = 18_000.0;
/// Tokens in flight at which a pod's score is 0.
const TOKEN_LOAD_MAX: f64 = 4_194_304.0;

/// Which blocks were sent where: one list of recent use per pod, filled by its own decisions only.
#[derive(Debug)]
pub struct ApproximatePrefix {
    pods: Vec<Lru>,
}

impl ApproximatePrefix {
    /// Over so many pods.
    #[must_use]
    pub fn new(pods: usize) -> Self {
        Self {
            pods: (0..pods).map(|_| Lru::new(LRU_CAPACITY)).collect(),
        }
    }

    /// Takes the capacity from the pod's metrics (`autoTune`).
    fn tune(&mut self, at: usize, load: &Load) {
        if let (Some(blocks), Some(tokens)) = (load.blocks, load.block_tokens) {
            let capacity = blocks.saturating_mul(u64::from(tokens)) / u64::from(BLOCK_TOKENS);
            self.pods[at].capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        }
    }

    /// The prompt's blocks: every fourth of the engine's hashes stands for 64 tokens and all before.
    fn chain<'a>(seen: &Seen<'a>) -> impl Iterator<Item = u64> + Clone + use<'a> {
        let hashes = seen.block_hashes.iter().skip(ENGINE_BLOCKS - 1);
        hashes
            .step_by(ENGINE_BLOCKS)
            .take(MATCHED_BLOCKS_MAX)
            .copied()
    }

    /// The share of the prompt's blocks that each pod is believed to hold.
    fn shares(&self, seen: &Seen<'_>) -> Vec<f64> {
        let chain = Self::chain(seen);
        let total = chain.clone().count().max(1) as f64;
        let held = |pod: &Lru| chain.clone().take_while(|hash| pod.has(*hash)).count();
        self.pods
            .iter()
            .map(|pod| held(pod) as f64 / total)
            .collect()
    }

    fn sent(&mut self, at: usize, seen: &Seen<'_>) {
        Self::chain(seen).for_each(|hash| self.pods[at].touch(hash));
    }
}

/// Hashes in the order of their last use. Entries of the queue whose stamp is not the map's are
/// left over from earlier uses.
#[derive(Debug)]
struct Lru {
    capacity: usize,
    stamps: FxHashMap<u64, u64>,
    queue: VecDeque<(u64, u64)>,
    clock: u64,
}

impl Lru {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            stamps: FxHashMap::default(),
            queue: VecDeque::new(),
            clock: 0,
        }
    }

    fn has(&self, hash: u64) -> bool {
        self.stamps.contains_key(&hash)
    }

    fn touch(&mut self, hash: u64) {
        self.clock += 1;
        self.stamps.insert(hash, self.clock);
        self.queue.push_back((hash, self.clock));
        let leftovers_max = 4 * self.capacity.max(1024);
        while self.stamps.len() > self.capacity || self.queue.len() > leftovers_max {
            let Some((oldest, stamp)) = self.queue.pop_front() else {
                return;
            };
            if self.stamps.get(&oldest) == Some(&stamp) {
                if self.stamps.len() > self.capacity {
                    self.stamps.remove(&oldest);
                } else {
                    // Still the latest use: goes behind the leftovers, which shrink.
                    self.queue.push_front((oldest, stamp));
                    self.compact();
                }
            }
        }
    }

    fn compact(&mut self) {
        let stamps = &self.stamps;
        self.queue
            .retain(|(hash, stamp)| stamps.get(hash) == Some(stamp));
    }
}

/// The profile that is compiled in.
#[derive(Debug)]
pub struct Weighted {
    prefix: ApproximatePrefix,
    loads: Vec<Load>,
    rng: Rng,
}

impl Weighted {
    /// Over so many pods.
    #[must_use]
    pub fn new(pods: usize, seed: u64) -> Self {
        Self {
            prefix: ApproximatePrefix::new(pods),
            loads: vec![Load::default(); pods],
            rng: Rng::seeded(seed),
        }
    }
}

impl Router for Weighted {
    fn scraped(&mut self, at: usize, load: Load, _now: Moment) {
        self.prefix.tune(at, &load);
        self.loads[at] = load;
    }

    fn send(&mut self, _id: Id, seen: &Seen<'_>, _now: Moment) -> Option<usize> {
        let queue = |load: &Load| f64::from(load.waiting.unwrap_or(0));
        let (shortest, longest) = self
            .loads
            .iter()
            .fold((f64::MAX, 0.0_f64), |(min, max), l| {
                (min.min(queue(l)), max.max(queue(l)))
            });
        let queue_score = |load: &Load| match longest > shortest {
            true => (longest - queue(load)) / (longest - shortest),
            false => 1.0,
        };
        let kv_score = |load: &Load| 1.0 - f64::from(load.kv_used.unwrap_or(0.0));
        let shares = self.prefix.shares(seen);
        let scores = self.loads.iter().zip(&shares);
        let scores =
            scores.map(|(l, share)| 2.0 * queue_score(l) + 2.0 * kv_score(l) + 3.0 * share);
        let at = highest(scores, &mut self.rng)?;
        self.prefix.sent(at, seen);
        Some(at)
    }

    fn finish(&mut self, _id: Id, _end: End, _now: Moment) {}
}

/// Sticky until saturated.
#[derive(Debug)]
pub struct Sticky {
    prefix: ApproximatePrefix,
    /// Uncached prompt tokens of requests without a first byte, per pod.
    tokens: Vec<f64>,
    in_flight: FxHashMap<Id, (usize, f64)>,
    prefill_tokens_per_s: f64,
    rng: Rng,
}

impl Sticky {
    /// Over so many pods, each of which prefills so many tokens a second
    /// (`peakPrefillThroughput`: one number for all).
    #[must_use]
    pub fn new(pods: usize, prefill_tokens_per_s: f64, seed: u64) -> Self {
        Self {
            prefix: ApproximatePrefix::new(pods),
            tokens: vec![0.0; pods],
            in_flight: FxHashMap::default(),
            prefill_tokens_per_s,
            rng: Rng::seeded(seed),
        }
    }

    /// Pods that the affinity filter leaves.
    fn candidates(&self, shares: &[f64]) -> Vec<usize> {
        let all = || (0..shares.len()).collect::<Vec<_>>();
        let warm: Vec<usize> = all()
            .into_iter()
            .filter(|at| shares[*at] >= AFFINITY)
            .collect();
        if warm.is_empty() {
            return all();
        }
        let ttft_ms = |at: &usize| self.tokens[*at] / self.prefill_tokens_per_s * 1_000.0;
        let best = |pods: &[usize]| pods.iter().map(ttft_ms).fold(f64::MAX, f64::min);
        match best(&warm) - best(&all()) > TTFT_PENALTY_MAX_MS {
            true => all(),
            false => warm,
        }
    }

    fn release(&mut self, id: Id) {
        if let Some((at, tokens)) = self.in_flight.remove(&id) {
            self.tokens[at] -= tokens;
        }
    }
}

impl Router for Sticky {
    fn scraped(&mut self, at: usize, load: Load, _now: Moment) {
        self.prefix.tune(at, &load);
    }

    fn send(&mut self, id: Id, seen: &Seen<'_>, _now: Moment) -> Option<usize> {
        let shares = self.prefix.shares(seen);
        let candidates = self.candidates(&shares);
        let uncached = |at: usize| f64::from(seen.prompt_tokens) * (1.0 - shares[at]);
        let score =
            |at: &usize| 1.0 - ((self.tokens[*at] + uncached(*at)) / TOKEN_LOAD_MAX).min(1.0);
        let best = highest(candidates.iter().map(score), &mut self.rng)?;
        let at = candidates[best];
        let tokens = uncached(at);
        self.tokens[at] += tokens;
        self.in_flight.insert(id, (at, tokens));
        self.prefix.sent(at, seen);
        Some(at)
    }

    fn first_byte(&mut self, id: Id, _now: Moment) {
        self.release(id);
    }

    fn finish(&mut self, id: Id, _end: End, _now: Moment) {
        self.release(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(block_hashes: &[u64]) -> Seen<'_> {
        Seen {
            model: "m",
            bytes: &[],
            block_hashes,
            prompt_tokens: block_hashes.len() as u32 * 16,
        }
    }

    fn loaded(waiting: u32, kv_used: f32) -> Load {
        Load {
            waiting: Some(waiting),
            kv_used: Some(kv_used),
            ..Load::default()
        }
    }

    #[test]
    fn the_least_recently_used_block_goes_first() {
        let mut lru = Lru::new(3);
        [1, 2, 3, 1, 4].into_iter().for_each(|hash| lru.touch(hash));
        let held: Vec<u64> = (1..=4).filter(|hash| lru.has(*hash)).collect();
        assert_eq!(held, [1, 3, 4]);
        (0..100_000).for_each(|n| lru.touch(n % 3));
        assert!(lru.queue.len() <= 4 * 1024 && (0..3).all(|hash| lru.has(hash)));
    }

    #[test]
    fn a_whole_prefix_outweighs_kv_use_but_not_queue_and_kv_use_together() {
        let prompt: Vec<u64> = (0..64).collect();
        let check = |warm: Load, expected| {
            let mut router = Weighted::new(2, 1);
            router.scraped(0, loaded(0, 0.0), Moment::ORIGIN);
            router.scraped(1, loaded(9, 0.0), Moment::ORIGIN);
            assert_eq!(router.send(0, &seen(&prompt), Moment::ORIGIN), Some(0));
            router.scraped(0, warm, Moment::ORIGIN);
            router.scraped(1, loaded(0, 0.0), Moment::ORIGIN);
            assert_eq!(
                router.send(1, &seen(&prompt), Moment::ORIGIN),
                Some(expected)
            );
        };
        check(loaded(0, 1.0), 0);
        check(loaded(9, 0.4), 0);
        check(loaded(9, 0.6), 1);
    }

    #[test]
    fn stickiness_ends_when_the_warm_pod_is_18_s_behind() {
        let prompt: Vec<u64> = (0..64).collect();
        let check = |behind_s: f64, expected| {
            let mut router = Sticky::new(2, 1_000.0, 1);
            router.prefix.sent(1, &seen(&prompt));
            router.tokens[1] = behind_s * 1_000.0;
            assert_eq!(
                router.send(0, &seen(&prompt), Moment::ORIGIN),
                Some(expected)
            );
            router.first_byte(0, Moment::ORIGIN);
            let tokens = behind_s * 1_000.0;
            assert!((router.tokens.iter().sum::<f64>() - tokens).abs() < 1e-9);
        };
        check(17.9, 1);
        check(18.1, 0);
    }
}
