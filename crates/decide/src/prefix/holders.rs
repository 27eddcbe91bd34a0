//! Who holds each block: the half of the index that a lookup reads.
//!
//! A block that one or two endpoints hold takes a table entry; what more of them hold, like the
//! beginning of a system prompt, has a bit set, so that a thousand holders are sixteen words.
//! [`jump`] finds how far each endpoint holds a prompt.

use smallvec::{SmallVec, smallvec};

use super::chain::BlockHash;
use super::table::{Entry, Table};

const NIL: u32 = u32::MAX;
pub(super) const NOBODY: u16 = u16::MAX;

/// A block and who holds it: up to two endpoints in place, more in a bit set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    block: BlockHash,
    pair: [u16; 2],
    set: u32,
}

impl Entry for Block {
    const VACANT: Self = Self {
        block: BlockHash(0),
        pair: [NOBODY; 2],
        set: NIL,
    };
    fn is_vacant(&self) -> bool {
        self.pair == [NOBODY; 2] && self.set == NIL
    }
}

/// Bit sets of equal length, for blocks that more than two endpoints hold.
#[derive(Clone, Debug, Default)]
struct Sets {
    words: Vec<u64>,
    /// Words per set.
    stride: usize,
    free: Vec<u32>,
}

/// The table of blocks with their holders.
#[derive(Clone, Debug)]
pub(super) struct Holders {
    blocks: Table<Block>,
    sets: Sets,
    blocks_max: usize,
    set_bytes_max: usize,
}

impl Holders {
    pub(super) fn new() -> Self {
        Self {
            blocks: Table::new(),
            sets: Sets::default(),
            blocks_max: 0,
            set_bytes_max: 0,
        }
    }

    pub(super) fn set_bounds(&mut self, blocks_max: usize, set_bytes_max: usize) {
        self.blocks_max = blocks_max;
        self.set_bytes_max = set_bytes_max;
    }

    pub(super) fn clear(&mut self) {
        self.blocks = Table::new();
        self.sets = Sets {
            stride: self.sets.stride,
            ..Sets::default()
        };
    }

    pub(super) fn bytes(&self) -> usize {
        self.blocks.bytes()
            + self.sets.words.capacity() * size_of::<u64>()
            + self.sets.free.capacity() * size_of::<u32>()
    }

    fn find(&self, block: BlockHash) -> Option<usize> {
        self.blocks.find(block.0, |entry| entry.block == block)
    }

    /// See [`Table::warm`].
    pub(super) fn warm(&self, blocks: impl Iterator<Item = BlockHash>) {
        self.blocks.warm(blocks.map(|block| block.0));
    }

    /// Sets `mask` to the holders of `block`; false if there are none.
    pub(super) fn mask(&self, block: BlockHash, mask: &mut [u64]) -> bool {
        let Some(place) = self.find(block) else {
            mask.fill(0);
            return false;
        };
        let entry = self.blocks.get(place);
        if entry.set == NIL {
            mask.fill(0);
            for slot in entry.pair.iter().filter(|&&slot| slot != NOBODY) {
                mask[usize::from(*slot) / 64] |= 1 << (slot % 64);
            }
        } else {
            let len = mask.len();
            mask.copy_from_slice(&self.sets.get(entry.set)[..len]);
        }
        true
    }

    /// Blocks that anybody holds.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn contains(&self, block: BlockHash, slot: u16) -> bool {
        let Some(place) = self.find(block) else {
            return false;
        };
        let entry = self.blocks.get(place);
        match entry.set {
            NIL => entry.pair.contains(&slot),
            set => {
                let word = self.sets.get(set).get(usize::from(slot) / 64);
                word.is_some_and(|word| word >> (slot % 64) & 1 == 1)
            }
        }
    }

    /// False if the bit sets have used up their share of the memory.
    pub(super) fn add(&mut self, block: BlockHash, slot: u16) -> bool {
        let Some(place) = self.find(block) else {
            let entry = Block {
                block,
                pair: [slot, NOBODY],
                set: NIL,
            };
            self.blocks
                .insert(block.0, entry, self.blocks_max, |entry| entry.block.0);
            return true;
        };
        let entry = self.blocks.get_mut(place);
        if entry.set == NIL {
            if let Some(room) = entry.pair.iter_mut().find(|slot| **slot == NOBODY) {
                *room = slot;
                return true;
            }
            let Some(set) = self.sets.allocate(self.set_bytes_max) else {
                return false;
            };
            for member in entry.pair {
                self.sets.insert(set, member);
            }
            (entry.pair, entry.set) = ([NOBODY; 2], set);
        }
        self.sets.insert(entry.set, slot);
        true
    }

    pub(super) fn remove(&mut self, block: BlockHash, slot: u16) {
        let place = self
            .find(block)
            .expect("every block in a list is in the table");
        let entry = self.blocks.get_mut(place);
        if entry.set == NIL {
            for member in entry.pair.iter_mut().filter(|member| **member == slot) {
                *member = NOBODY;
            }
        } else if let Some(pair) = self.sets.remove(entry.set, slot) {
            self.sets.free.push(entry.set);
            (entry.pair, entry.set) = (pair, NIL);
        }
        if entry.is_vacant() {
            self.blocks.remove(place, |entry| entry.block.0);
        }
    }

    /// Makes every bit set at least `words` long; false if they do not fit their bound then, and
    /// everything has to be forgotten.
    pub(super) fn widen(&mut self, words: usize) -> bool {
        if words <= self.sets.stride {
            return true;
        }
        let stride = words.next_power_of_two();
        let sets = self.sets.words.len().checked_div(self.sets.stride);
        let sets = sets.unwrap_or(0);
        if sets * stride * size_of::<u64>() > self.set_bytes_max {
            self.sets.stride = stride;
            return false;
        }
        let mut wide = vec![0; sets * stride];
        for (set, old) in self.sets.words.chunks(self.sets.stride.max(1)).enumerate() {
            wide[set * stride..][..old.len()].copy_from_slice(old);
        }
        (self.sets.words, self.sets.stride) = (wide, stride);
        true
    }
}

impl Sets {
    fn get(&self, set: u32) -> &[u64] {
        &self.words[set as usize * self.stride..][..self.stride]
    }

    fn get_mut(&mut self, set: u32) -> &mut [u64] {
        &mut self.words[set as usize * self.stride..][..self.stride]
    }

    fn allocate(&mut self, bytes_max: usize) -> Option<u32> {
        if let Some(set) = self.free.pop() {
            self.get_mut(set).fill(0);
            return Some(set);
        }
        // Four more bytes per set, for the list of free ones.
        let set_bytes = self.stride * size_of::<u64>() + size_of::<u32>();
        let sets = self.words.len() / self.stride;
        let room = (bytes_max / set_bytes).saturating_sub(sets);
        if room == 0 {
            return None;
        }
        let len = self.words.len() + self.stride;
        if len > self.words.capacity() {
            let more = (sets / 2).max(8).min(room);
            self.words.reserve_exact(more * self.stride);
            self.free.reserve_exact(sets + more);
        }
        self.words.resize(len, 0);
        Some(sets as u32)
    }

    fn insert(&mut self, set: u32, slot: u16) {
        self.get_mut(set)[usize::from(slot) / 64] |= 1 << (slot % 64);
    }

    /// Gives back the last two members, when a pair will do again.
    fn remove(&mut self, set: u32, slot: u16) -> Option<[u16; 2]> {
        let words = self.get_mut(set);
        words[usize::from(slot) / 64] &= !(1 << (slot % 64));
        let members: u32 = words.iter().map(|word| word.count_ones()).sum();
        if members > 2 {
            return None;
        }
        let mut pair = [NOBODY; 2];
        let mut room = pair.iter_mut();
        for (at, word) in words.iter().enumerate() {
            each_bit(*word, |bit| {
                if let Some(place) = room.next() {
                    *place = (at * 64 + bit) as u16;
                }
            });
        }
        Some(pair)
    }
}

fn each_bit(mut word: u64, mut act: impl FnMut(usize)) {
    while word != 0 {
        act(word.trailing_zeros() as usize);
        word &= word - 1;
    }
}

/// Writes into `depths[slot]` how many leading blocks of `chain` each holds, for the slots that
/// `depths` has, given that whoever holds a block holds all before it. `mask` sets the bits of a
/// block's holders in `words` words.
///
/// One pass for all endpoints: it jumps ahead while nobody drops out, so a chain of n blocks on which
/// endpoints drop out in k places takes about k log(n / k) lookups, and never many more than n.
pub(super) fn jump(
    chain: &[BlockHash],
    words: usize,
    mask: impl Fn(BlockHash, &mut [u64]),
    depths: &mut [u16],
) {
    depths.fill(0);
    let mut current: SmallVec<[u64; 16]> = smallvec![0; words];
    let (mut next, mut trial) = (current.clone(), current.clone());
    let Some(&first) = chain.first() else {
        return;
    };
    mask(first, &mut current);
    if current.iter().all(|word| *word == 0) {
        return;
    }
    let chain = &chain[..chain.len().min(usize::from(u16::MAX))];
    let (mut at, mut step) = (0, 1);
    while at + 1 < chain.len() {
        let probe = (at + step).min(chain.len() - 1);
        mask(chain[probe], &mut next);
        if covers(&next, &current) {
            (at, step) = (probe, step * 2);
            continue;
        }
        let (mut still, mut lost) = (at, probe);
        while lost - still > 1 {
            let middle = still.midpoint(lost);
            mask(chain[middle], &mut trial);
            if covers(&trial, &current) {
                still = middle;
            } else {
                lost = middle;
                std::mem::swap(&mut next, &mut trial);
            }
        }
        let mut anybody = 0;
        for (word, (current, next)) in current.iter_mut().zip(&next).enumerate() {
            set_depth(depths, word, *current & !next, lost);
            *current &= next;
            anybody |= *current;
        }
        if anybody == 0 {
            return;
        }
        (at, step) = (lost, 1);
    }
    for (word, current) in current.iter().enumerate() {
        set_depth(depths, word, *current, chain.len());
    }
}

fn covers(outer: &[u64], inner: &[u64]) -> bool {
    outer.iter().zip(inner).all(|(o, i)| i & !o == 0)
}

fn set_depth(depths: &mut [u16], word: usize, members: u64, depth: usize) {
    each_bit(members, |bit| {
        if let Some(place) = depths.get_mut(word * 64 + bit) {
            *place = depth as u16;
        }
    });
}
