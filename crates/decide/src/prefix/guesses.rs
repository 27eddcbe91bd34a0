//! What endpoints will soon hold: prompts that were sent to them and that they have not told of yet.
//!
//! Between a decision and the event that it causes lie the prefill and a message; in that time others
//! with the same prompt arrive. A guess lasts as long as the caller says and no longer, whatever
//! became of the request. At [`GUESSES_MAX`] the oldest guesses go.

use std::collections::VecDeque;

use forebay_model::Moment;
use rustc_hash::FxHashMap;

use super::chain::BlockHash;
use super::holders::Holders;

/// Blocks that can be guessed at a time.
pub(super) const GUESSES_MAX: usize = 65_536;
/// What they take at most: queue, map and holders.
pub(super) const GUESSES_BYTES_MAX: usize = GUESSES_MAX * 96;

#[derive(Clone, Debug)]
pub(super) struct Guesses {
    holders: Holders,
    ends: FxHashMap<(BlockHash, u16), Moment>,
    queue: VecDeque<(Moment, BlockHash, u16)>,
}

impl Guesses {
    pub(super) fn new() -> Self {
        let mut holders = Holders::new();
        holders.set_bounds(GUESSES_MAX, GUESSES_MAX * 8);
        Self {
            holders,
            ends: FxHashMap::default(),
            queue: VecDeque::new(),
        }
    }

    pub(super) fn widen(&mut self, words: usize) {
        if !self.holders.widen(words) {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.holders.clear();
        self.ends = FxHashMap::default();
        self.queue = VecDeque::new();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.holders.bytes()
            + self.ends.capacity() * (size_of::<((BlockHash, u16), Moment)>() + 1)
            + self.queue.capacity() * size_of::<(Moment, BlockHash, u16)>()
    }

    pub(super) fn mask(&self, block: BlockHash, mask: &mut [u64]) -> bool {
        self.holders.mask(block, mask)
    }

    pub(super) fn contains(&self, block: BlockHash, slot: u16) -> bool {
        self.ends.contains_key(&(block, slot))
    }

    /// The endpoint in `slot` holds `block` until `end`.
    pub(super) fn add(&mut self, block: BlockHash, slot: u16, end: Moment) {
        while self.queue.len() >= GUESSES_MAX {
            let Some((end, ..)) = self.queue.front() else {
                break;
            };
            self.expire(*end);
        }
        if self.ends.insert((block, slot), end).is_none() && !self.holders.add(block, slot) {
            self.ends.remove(&(block, slot));
            return;
        }
        self.queue.push_back((end, block, slot));
    }

    /// Ends those whose time has come.
    pub(super) fn expire(&mut self, now: Moment) {
        while let Some(&(end, block, slot)) = self.queue.front()
            && end <= now
        {
            self.queue.pop_front();
            // One that was guessed again since has a later end, and another place in the queue.
            if self.ends.get(&(block, slot)) == Some(&end) {
                self.ends.remove(&(block, slot));
                self.holders.remove(block, slot);
            }
        }
    }

    /// Ends those of one endpoint.
    pub(super) fn forget(&mut self, slot: u16) {
        let holders = &mut self.holders;
        self.ends.retain(|&(block, of), _| {
            if of == slot {
                holders.remove(block, of);
            }
            of != slot
        });
    }
}
