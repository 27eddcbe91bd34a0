//! The approximate prefix index of one pool: block hash to the endpoints that hold it.
//!
//! Each endpoint has a list of its blocks, most recently used first, with its own capacity. A
//! prompt's blocks are always put in that order, root first, so a block is never more recent than
//! its parent, eviction from the end takes leaves, and **an endpoint that holds a block holds
//! everything before it**. `matches` leans on that to jump along the chain instead of walking it.
//! Model servers evict leaves first for the same reason.
//!
//! Bounds: `bytes_max` for everything (the block whose use is longest ago among the ends of all
//! lists goes first), a capacity per endpoint, and 65,534 endpoints; those beyond hold nothing.

use smallvec::{SmallVec, smallvec};

use super::chain::BlockHash;
use super::table::{Entry, Table};

const NIL: u32 = u32::MAX;
const NOBODY: u16 = u16::MAX;
/// Blocks taken from one endpoint when the whole index is full: finding the endpoint looks at all
/// of them, so it is not done for every block.
const EVICTED_AT_ONCE: usize = 32;

/// One endpoint's hold on one block: 24 bytes.
#[derive(Clone, Debug)]
struct Hold {
    block: BlockHash,
    /// Towards more recent use; in a free one, the next free one.
    newer: u32,
    older: u32,
    stamp_low: u32,
    stamp_high: u16,
    slot: u16,
}

impl Hold {
    fn stamp(&self) -> u64 {
        u64::from(self.stamp_low) | u64::from(self.stamp_high) << 32
    }

    fn set_stamp(&mut self, stamp: u64) {
        self.stamp_low = stamp as u32;
        self.stamp_high = (stamp >> 32) as u16;
    }
}

/// A block and who holds it: up to two endpoints in place, more in a bit set.
#[derive(Clone, Copy, Debug)]
struct Block {
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

#[derive(Clone, Debug)]
struct List {
    newest: u32,
    oldest: u32,
    len: u32,
    capacity: u32,
}

/// Bit sets of equal length, for blocks that more than two endpoints hold.
#[derive(Clone, Debug, Default)]
struct Sets {
    words: Vec<u64>,
    /// Words per set.
    stride: usize,
    free: Vec<u32>,
}

/// What an endpoint held of a prompt when it was sent there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Leading blocks that it held already.
    pub hit_blocks: usize,
    /// Leading blocks that it holds now; fewer than the prompt has if there was no room.
    pub held_blocks: usize,
    /// When the last of the blocks it held already was used before, on the index's own clock.
    pub tail_stamp: u64,
    /// The index's clock now: one tick per call.
    pub stamp: u64,
}

/// The index.
#[derive(Clone, Debug)]
pub struct PrefixIndex {
    holds: Vec<Hold>,
    free: u32,
    in_use: usize,
    by_holder: Table<u32>,
    blocks: Table<Block>,
    sets: Sets,
    lists: Vec<List>,
    clock: u64,
    holds_max: usize,
    set_bytes_max: usize,
}

impl PrefixIndex {
    /// An empty index that takes no memory yet, and never more than `bytes_max` (while a table
    /// grows, its old copy comes on top).
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let mut index = Self {
            holds: Vec::new(),
            free: NIL,
            in_use: 0,
            by_holder: Table::new(),
            blocks: Table::new(),
            sets: Sets::default(),
            lists: Vec::new(),
            clock: 0,
            holds_max: 0,
            set_bytes_max: 0,
        };
        index.set_bytes_max(bytes_max);
        index
    }

    /// Replaces the bound. A smaller one empties the index, since giving back memory means
    /// building it anew and a changed configuration is rare.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        // A hold and its two table entries take 24 + 5 + 20 bytes; bit sets get a quarter.
        let set_bytes_max = bytes_max / 4;
        let holds_max = (bytes_max - set_bytes_max).saturating_sub(64)
            / (size_of::<Hold>() + (size_of::<u32>() + size_of::<Block>()) * 5 / 4);
        if holds_max < self.holds_max {
            self.clear();
        }
        self.holds_max = holds_max.min(NIL as usize - 1);
        self.set_bytes_max = set_bytes_max;
    }

    /// Forgets every block and gives the memory back; capacities stay.
    pub fn clear(&mut self) {
        self.holds = Vec::new();
        self.free = NIL;
        self.in_use = 0;
        self.by_holder = Table::new();
        self.blocks = Table::new();
        self.sets = Sets {
            stride: self.sets.stride,
            ..Sets::default()
        };
        for list in &mut self.lists {
            (list.newest, list.oldest, list.len) = (NIL, NIL, 0);
        }
    }

    /// Bytes taken from the allocator.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.holds.capacity() * size_of::<Hold>()
            + self.by_holder.bytes()
            + self.blocks.bytes()
            + self.sets.words.capacity() * size_of::<u64>()
            + self.sets.free.capacity() * size_of::<u32>()
            + self.lists.capacity() * size_of::<List>()
    }

    /// Blocks held, counted once per endpoint that holds them.
    #[must_use]
    pub fn holds(&self) -> usize {
        self.in_use
    }

    /// Blocks that the endpoint in `slot` holds.
    #[must_use]
    pub fn held_by(&self, slot: u16) -> usize {
        self.lists
            .get(usize::from(slot))
            .map_or(0, |l| l.len as usize)
    }

    /// How many blocks the endpoint in `slot` may hold; it starts with none.
    pub fn set_capacity(&mut self, slot: u16, capacity: usize) {
        if slot == NOBODY {
            return;
        }
        let at = usize::from(slot);
        while self.lists.len() <= at {
            self.lists.push(List {
                newest: NIL,
                oldest: NIL,
                len: 0,
                capacity: 0,
            });
        }
        self.widen_sets(at / 64 + 1);
        self.lists[at].capacity = u32::try_from(capacity).unwrap_or(u32::MAX);
        while self.lists[at].len > self.lists[at].capacity {
            self.drop_hold(self.lists[at].oldest);
        }
    }

    /// Writes into `depths[slot]` how many leading blocks of `chain` the endpoint holds, for the
    /// slots that `depths` has. One pass for all endpoints: it jumps ahead while nobody drops
    /// out, so a chain of n blocks on which endpoints drop out in k places takes about
    /// k log(n / k) lookups, and never many more than n.
    pub fn matches(&self, chain: &[BlockHash], depths: &mut [u16]) {
        depths.fill(0);
        let words = self.lists.len().div_ceil(64);
        let mut current: SmallVec<[u64; 16]> = smallvec![0; words];
        let (mut next, mut trial) = (current.clone(), current.clone());
        if chain.is_empty() || !self.holders_into(chain[0], &mut current) {
            return;
        }
        let chain = &chain[..chain.len().min(usize::from(u16::MAX))];
        let (mut at, mut step) = (0, 1);
        while at + 1 < chain.len() {
            let probe = (at + step).min(chain.len() - 1);
            self.holders_into(chain[probe], &mut next);
            if covers(&next, &current) {
                (at, step) = (probe, step * 2);
                continue;
            }
            let (mut still, mut lost) = (at, probe);
            while lost - still > 1 {
                let middle = still.midpoint(lost);
                self.holders_into(chain[middle], &mut trial);
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

    /// Notes that `chain` goes to the endpoint in `slot` now: its blocks become the endpoint's
    /// most recent ones, others make room.
    pub fn hold(&mut self, slot: u16, chain: &[BlockHash]) -> Held {
        self.clock += 1;
        let mut held = Held {
            hit_blocks: 0,
            held_blocks: 0,
            tail_stamp: 0,
            stamp: self.clock,
        };
        if usize::from(slot) >= self.lists.len() {
            return held;
        }
        let mut parent = NIL;
        for &block in chain {
            // Past the first miss nothing can be held, see the head of this file.
            let known = (held.hit_blocks == held.held_blocks)
                .then(|| self.find_hold(slot, block))
                .flatten();
            let at = match known {
                Some(at) => {
                    held.hit_blocks += 1;
                    held.tail_stamp = self.holds[at as usize].stamp();
                    self.unlink(at);
                    at
                }
                None => match self.add_hold(slot, block, parent) {
                    Some(at) => at,
                    None => break,
                },
            };
            self.holds[at as usize].set_stamp(self.clock);
            self.link_after(at, parent);
            held.held_blocks += 1;
            parent = at;
        }
        held
    }

    /// Takes back what `hold` added at `stamp` and nobody used since: the request never arrived.
    pub fn retract(&mut self, slot: u16, added: &[BlockHash], stamp: u64) {
        for &block in added.iter().rev() {
            match self.find_hold(slot, block) {
                Some(at) if self.holds[at as usize].stamp() == stamp => self.drop_hold(at),
                // Used since, and then so was everything before it.
                Some(_) => return,
                None => {}
            }
        }
    }

    /// Forgets what the endpoint in `slot` last used before `stamp`. A server that evicted a block
    /// evicted everything that it used longer ago.
    pub fn forget_older(&mut self, slot: u16, stamp: u64) {
        while let Some(list) = self.lists.get(usize::from(slot)) {
            let oldest = list.oldest;
            if oldest == NIL || self.holds[oldest as usize].stamp() >= stamp {
                return;
            }
            self.drop_hold(oldest);
        }
    }

    /// Forgets everything that the endpoint in `slot` held.
    pub fn forget(&mut self, slot: u16) {
        self.forget_older(slot, u64::MAX);
    }

    fn find_hold(&self, slot: u16, block: BlockHash) -> Option<u32> {
        let place = self.find_place(slot, block)?;
        Some(*self.by_holder.get(place))
    }

    fn find_place(&self, slot: u16, block: BlockHash) -> Option<usize> {
        self.by_holder.find(holder_hash(slot, block), |&at| {
            let hold = &self.holds[at as usize];
            hold.block == block && hold.slot == slot
        })
    }

    /// A new hold, not linked yet; `None` if there is no room besides the prompt's own blocks.
    fn add_hold(&mut self, slot: u16, block: BlockHash, parent: u32) -> Option<u32> {
        while self.lists[usize::from(slot)].len >= self.lists[usize::from(slot)].capacity {
            let oldest = self.lists[usize::from(slot)].oldest;
            if oldest == NIL || oldest == parent {
                return None;
            }
            self.drop_hold(oldest);
        }
        if self.in_use >= self.holds_max && !self.evict_oldest() {
            return None;
        }
        if !self.add_holder(block, slot) && !(self.evict_oldest() && self.add_holder(block, slot)) {
            return None;
        }
        let at = self.allocate(slot, block);
        let holds = &self.holds;
        self.by_holder
            .insert(holder_hash(slot, block), at, self.holds_max, |&at| {
                let hold = &holds[at as usize];
                holder_hash(hold.slot, hold.block)
            });
        Some(at)
    }

    fn allocate(&mut self, slot: u16, block: BlockHash) -> u32 {
        let hold = Hold {
            block,
            newer: NIL,
            older: NIL,
            stamp_low: 0,
            stamp_high: 0,
            slot,
        };
        self.in_use += 1;
        self.lists[usize::from(slot)].len += 1;
        if self.free != NIL {
            let at = self.free;
            self.free = self.holds[at as usize].newer;
            self.holds[at as usize] = hold;
            return at;
        }
        if self.holds.len() == self.holds.capacity() {
            let more = (self.holds.len() / 2).clamp(32, self.holds_max.max(32));
            let room = self.holds_max.saturating_sub(self.holds.len()).max(1);
            self.holds.reserve_exact(more.min(room));
        }
        self.holds.push(hold);
        (self.holds.len() - 1) as u32
    }

    fn drop_hold(&mut self, at: u32) {
        let (slot, block) = {
            let hold = &self.holds[at as usize];
            (hold.slot, hold.block)
        };
        self.unlink(at);
        let place = self
            .find_place(slot, block)
            .expect("every hold in a list is in the table");
        let holds = &self.holds;
        self.by_holder.remove(place, |&at| {
            let hold = &holds[at as usize];
            holder_hash(hold.slot, hold.block)
        });
        self.remove_holder(block, slot);
        self.holds[at as usize].newer = self.free;
        self.free = at;
        self.in_use -= 1;
        self.lists[usize::from(slot)].len -= 1;
    }

    /// Drops a few blocks of the endpoint whose oldest block is the oldest of all, but none of
    /// the prompt that is being added.
    fn evict_oldest(&mut self) -> bool {
        let oldest_of = |list: &List| (list.oldest != NIL).then_some(list.oldest);
        let Some(mut victim) = self
            .lists
            .iter()
            .filter_map(oldest_of)
            .min_by_key(|&at| self.holds[at as usize].stamp())
        else {
            return false;
        };
        let mut evicted = 0;
        while victim != NIL
            && evicted < EVICTED_AT_ONCE
            && self.holds[victim as usize].stamp() < self.clock
        {
            let newer = self.holds[victim as usize].newer;
            self.drop_hold(victim);
            victim = newer;
            evicted += 1;
        }
        evicted > 0
    }

    fn unlink(&mut self, at: u32) {
        let (newer, older, slot) = {
            let hold = &self.holds[at as usize];
            (hold.newer, hold.older, usize::from(hold.slot))
        };
        match newer {
            NIL => self.lists[slot].newest = older,
            newer => self.holds[newer as usize].older = older,
        }
        match older {
            NIL => self.lists[slot].oldest = newer,
            older => self.holds[older as usize].newer = newer,
        }
    }

    /// Links behind `parent`, or as the most recent of all if there is none.
    fn link_after(&mut self, at: u32, parent: u32) {
        let slot = usize::from(self.holds[at as usize].slot);
        let older = match parent {
            NIL => std::mem::replace(&mut self.lists[slot].newest, at),
            parent => std::mem::replace(&mut self.holds[parent as usize].older, at),
        };
        self.holds[at as usize].newer = parent;
        self.holds[at as usize].older = older;
        match older {
            NIL => self.lists[slot].oldest = at,
            older => self.holds[older as usize].newer = at,
        }
    }
}

/// Who holds a block.
impl PrefixIndex {
    fn find_block(&self, block: BlockHash) -> Option<usize> {
        self.blocks.find(block.0, |entry| entry.block == block)
    }

    /// Sets `mask` to the holders of `block`; false if there are none.
    fn holders_into(&self, block: BlockHash, mask: &mut [u64]) -> bool {
        let Some(place) = self.find_block(block) else {
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

    /// False if the bit sets have used up their share of the memory.
    fn add_holder(&mut self, block: BlockHash, slot: u16) -> bool {
        let Some(place) = self.find_block(block) else {
            let entry = Block {
                block,
                pair: [slot, NOBODY],
                set: NIL,
            };
            self.blocks
                .insert(block.0, entry, self.holds_max, |entry| entry.block.0);
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

    fn remove_holder(&mut self, block: BlockHash, slot: u16) {
        let place = self
            .find_block(block)
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

    /// Makes every bit set at least `words` long.
    fn widen_sets(&mut self, words: usize) {
        if words <= self.sets.stride {
            return;
        }
        let stride = words.next_power_of_two();
        if !self.sets.words.is_empty() {
            let sets = self.sets.words.len() / self.sets.stride;
            if sets * stride * size_of::<u64>() > self.set_bytes_max {
                self.clear();
            } else {
                let mut wide = vec![0; sets * stride];
                for (set, old) in self.sets.words.chunks(self.sets.stride).enumerate() {
                    wide[set * stride..][..old.len()].copy_from_slice(old);
                }
                self.sets.words = wide;
            }
        }
        self.sets.stride = stride;
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
        let len = self.words.len() + self.stride;
        // Four more bytes per set, for the list of free ones.
        let bytes = |words: usize| words * size_of::<u64>() + words / self.stride * 4;
        if bytes(len) > bytes_max {
            return None;
        }
        if len > self.words.capacity() {
            let more = (self.words.len() / 2 / self.stride).max(8) * self.stride;
            let fits = bytes(self.words.len() + more) <= bytes_max;
            let more = if fits { more } else { self.stride };
            self.words.reserve_exact(more);
            let sets = self.words.capacity() / self.stride;
            self.free.reserve_exact(sets);
        }
        self.words.resize(len, 0);
        Some((len / self.stride - 1) as u32)
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

fn holder_hash(slot: u16, block: BlockHash) -> u64 {
    block.0 ^ (u64::from(slot) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
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

fn each_bit(mut word: u64, mut act: impl FnMut(usize)) {
    while word != 0 {
        act(word.trailing_zeros() as usize);
        word &= word - 1;
    }
}
