//! SGLang's router, policy `cache_aware`: an approximate prefix tree, and the shortest queue while
//! the load is out of balance.
//!
//! The original's tree has characters; here its steps are blocks of 16 tokens. Its bound of 2^26
//! characters per worker is not reached in the runs of this world.

use forebay_decide::{End, Rng};
use forebay_model::{Load, Moment};
use rustc_hash::FxHashMap;

use super::plain::{InFlight, highest};
use crate::world::router::{Id, Router, Seen};

/// `cache_threshold`: from this share of the prompt on a match decides.
const CACHE_THRESHOLD: f64 = 0.3;
/// `balance_abs_threshold`, in requests in flight.
const BALANCE_ABS: u32 = 64;
/// `balance_rel_threshold`.
const BALANCE_REL: f64 = 1.5;

/// See the module.
#[derive(Debug)]
pub struct CacheAware {
    in_flight: InFlight,
    /// The worker that each prefix was sent to last.
    tree: FxHashMap<u64, u16>,
    rng: Rng,
}

impl CacheAware {
    /// Over so many workers.
    #[must_use]
    pub fn new(workers: usize, seed: u64) -> Self {
        Self {
            in_flight: InFlight::new(workers),
            tree: FxHashMap::default(),
            rng: Rng::seeded(seed),
        }
    }

    /// The worker with the longest match, if that is long enough.
    fn matching(&self, seen: &Seen<'_>) -> Option<usize> {
        let known = seen
            .block_hashes
            .iter()
            .map_while(|hash| self.tree.get(hash));
        let (blocks, worker) = known.fold((0, None), |(n, _), worker| (n + 1, Some(*worker)));
        let share = f64::from(blocks) / seen.block_hashes.len().max(1) as f64;
        worker.filter(|_| share > CACHE_THRESHOLD).map(usize::from)
    }
}

impl Router for CacheAware {
    fn scraped(&mut self, _at: usize, _load: Load, _now: Moment) {}

    fn send(&mut self, id: Id, seen: &Seen<'_>, _now: Moment) -> Option<usize> {
        let counts = &self.in_flight.counts;
        let (min, max) = (counts.iter().min()?, counts.iter().max()?);
        let unbalanced = max - min > BALANCE_ABS && f64::from(*max) > BALANCE_REL * f64::from(*min);
        let matching = if unbalanced {
            None
        } else {
            self.matching(seen)
        };
        let shortest = || counts.iter().map(|n| -f64::from(*n));
        let at = match matching {
            Some(at) => at,
            None => highest(shortest(), &mut self.rng)?,
        };
        let worker = u16::try_from(at).ok()?;
        self.tree
            .extend(seen.block_hashes.iter().map(|hash| (*hash, worker)));
        self.in_flight.sent(id, at);
        Some(at)
    }

    fn finish(&mut self, id: Id, _end: End, _now: Moment) {
        self.in_flight.finished(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_match_decides_until_the_load_is_out_of_balance() {
        let mut router = CacheAware::new(2, 1);
        let prompt: Vec<u64> = (0..10).collect();
        let seen = |hashes| Seen {
            model: "m",
            bytes: &[],
            block_hashes: hashes,
            prompt_tokens: 160,
        };
        let home = router.send(0, &seen(&prompt), Moment::ORIGIN);
        for id in 1..65 {
            assert_eq!(router.send(id, &seen(&prompt), Moment::ORIGIN), home);
        }
        assert_ne!(router.send(65, &seen(&prompt), Moment::ORIGIN), home);
        // A match of less than the threshold goes to the shortest queue.
        let other: Vec<u64> = (0..3).chain(100..107).collect();
        assert_ne!(router.send(66, &seen(&other), Moment::ORIGIN), home);
    }
}
