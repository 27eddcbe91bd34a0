//! The approximate prefix index of one pool: block hash to the endpoints that hold it.
//!
//! What an endpoint holds is a forest: each block knows the one before it, and using a prompt stamps
//! all of its blocks, so a block is never more recent than its parent. Of the blocks with one stamp
//! only the deepest is in the endpoint's list, most recent first, and hands its place to its parent
//! when it goes. So the end of the list is always a leaf, eviction takes leaves, and **an endpoint
//! that holds a block holds everything before it**. `matches` and `hold` lean on that to jump along
//! the chain instead of walking it. Model servers evict leaves first for the same reason.
//!
//! Blocks grow with their position (`size.rs`); capacities are in base blocks, and each held block
//! takes as many of them as it is long.
//!
//! Bounds: `bytes_max` for all blocks (those whose use is longest ago on any endpoint go first), a
//! capacity per endpoint, and 65,535 endpoints of 16 bytes each; those beyond hold nothing.

use smallvec::SmallVec;

use super::chain::BlockHash;
use super::holders::{Block, Holders, NOBODY, jump};
use super::size::{base_blocks, block_weight};
use super::table::{Entry, LOAD, Table};

const NIL: u32 = u32::MAX;
/// Blocks taken from one endpoint when the whole index is full: finding the endpoint looks at all
/// of them, so it is not done for every block.
const EVICTED_AT_ONCE: usize = 32;

/// One endpoint's hold on one block: 32 bytes.
#[derive(Clone, Debug)]
struct Hold {
    block: BlockHash,
    /// When it was last used: never before its children.
    stamp: u64,
    parent: u32,
    /// Towards more recent use, if listed; in a free one, the next free one.
    newer: u32,
    older: u32,
    slot: u16,
    /// Base blocks that it takes.
    weight: u8,
    /// Whether it is the deepest block with its stamp, and so in the endpoint's list.
    listed: bool,
}

/// Where a hold is, with enough of its hash to move it within the table without looking there.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u32,
    tag: u32,
}

impl Place {
    fn hash(self) -> u64 {
        u64::from(self.tag) << 32
    }
}

impl Entry for Place {
    const VACANT: Self = Self { at: NIL, tag: 0 };
    fn is_vacant(&self) -> bool {
        self.at == NIL
    }
}

#[derive(Clone, Debug)]
struct List {
    newest: u32,
    oldest: u32,
    /// Base blocks held, and how many may be.
    len: u32,
    capacity: u32,
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
    by_holder: Table<Place>,
    holders: Holders,
    lists: Vec<List>,
    clock: u64,
    holds_max: usize,
}

impl PrefixIndex {
    /// An empty index that takes no memory yet, and never more than `bytes_max` besides 16 bytes
    /// per endpoint. While a table grows by half, its old copy comes on top.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let mut index = Self {
            holds: Vec::new(),
            free: NIL,
            in_use: 0,
            by_holder: Table::new(),
            holders: Holders::new(),
            lists: Vec::new(),
            clock: 0,
            holds_max: 0,
        };
        index.set_bytes_max(bytes_max);
        index
    }

    /// Replaces the bound. A smaller one empties the index, since giving back memory means
    /// building it anew and a changed configuration is rare.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        // A hold and its two table entries take 32 + 12 + 24 bytes; bit sets get a quarter.
        let set_bytes_max = bytes_max / 4;
        let holds_max = (bytes_max - set_bytes_max).saturating_sub(64)
            / (size_of::<Hold>() + (size_of::<Place>() + size_of::<Block>()) * LOAD.0 / LOAD.1);
        if holds_max < self.holds_max {
            self.clear();
        }
        self.holds_max = holds_max.min(NIL as usize - 1);
        self.holders.set_bounds(self.holds_max, set_bytes_max);
    }

    /// Forgets every block and gives the memory back; capacities stay.
    pub fn clear(&mut self) {
        self.holds = Vec::new();
        self.free = NIL;
        self.in_use = 0;
        self.by_holder = Table::new();
        self.holders.clear();
        for list in &mut self.lists {
            (list.newest, list.oldest, list.len) = (NIL, NIL, 0);
        }
    }

    /// Bytes taken from the allocator.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.holds.capacity() * size_of::<Hold>()
            + self.by_holder.bytes()
            + self.holders.bytes()
            + self.lists.capacity() * size_of::<List>()
    }

    /// Blocks held, of whatever size, counted once per endpoint that holds them.
    #[must_use]
    pub fn holds(&self) -> usize {
        self.in_use
    }

    /// Base blocks that the endpoint in `slot` holds.
    #[must_use]
    pub fn held_by(&self, slot: u16) -> usize {
        self.lists
            .get(usize::from(slot))
            .map_or(0, |l| l.len as usize)
    }

    /// How many base blocks the endpoint in `slot` may hold; it starts with none.
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
        if !self.holders.widen(at / 64 + 1) {
            self.clear();
        }
        self.lists[at].capacity = u32::try_from(capacity).unwrap_or(u32::MAX);
        while self.lists[at].len > self.lists[at].capacity {
            self.drop_hold(self.lists[at].oldest);
        }
    }

    /// Writes into `depths[slot]` how many leading blocks of `chain` the endpoint holds, for the
    /// slots that `depths` has.
    pub fn matches(&self, chain: &[BlockHash], depths: &mut [u16]) {
        let words = self.lists.len().div_ceil(64);
        let mask = |block, mask: &mut [u64]| {
            self.holders.mask(block, mask);
        };
        jump(chain, words, mask, depths);
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
        held.hit_blocks = chain.partition_point(|&block| self.find_hold(slot, block).is_some());
        held.held_blocks = held.hit_blocks;
        let hit = match held.hit_blocks {
            0 => NIL,
            hits => self.find_hold(slot, chain[hits - 1]).unwrap_or(NIL),
        };
        if hit != NIL {
            held.tail_stamp = self.holds[hit as usize].stamp;
            self.touch(hit);
        }
        let fresh = &chain[held.hit_blocks..];
        let weight = base_blocks(chain.len()) - base_blocks(held.hit_blocks);
        self.make_room(slot, u32::try_from(weight).unwrap_or(u32::MAX));
        self.warm(slot, fresh);
        let mut tail = hit;
        for (position, &block) in chain.iter().enumerate().skip(held.hit_blocks) {
            let Some(at) = self.add_hold(slot, block, block_weight(position)) else {
                break;
            };
            self.holds[at as usize].parent = tail;
            held.held_blocks += 1;
            tail = at;
        }
        if tail != hit {
            match hit {
                NIL => self.link_newest(tail),
                hit => self.replace_listed(hit, tail),
            }
        }
        held
    }

    /// Stamps a block and all before it, and lists it as the most recent of its endpoint.
    fn touch(&mut self, tail: u32) {
        let mut at = tail;
        while at != NIL {
            if self.holds[at as usize].listed {
                self.unlink(at);
            }
            let hold = &mut self.holds[at as usize];
            hold.stamp = self.clock;
            at = hold.parent;
        }
        self.link_newest(tail);
    }

    /// Takes back what `hold` added at `stamp` and nobody used since: the request never arrived.
    pub fn retract(&mut self, slot: u16, added: &[BlockHash], stamp: u64) {
        for &block in added.iter().rev() {
            match self.find_hold(slot, block) {
                Some(at) if self.holds[at as usize].stamp == stamp => self.drop_hold(at),
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
            if oldest == NIL || self.holds[oldest as usize].stamp >= stamp {
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
        let tag = tag_of(slot, block);
        let place = self.by_holder.find(tag.hash(), |place| {
            place.tag == tag.tag && {
                let hold = &self.holds[place.at as usize];
                hold.block == block && hold.slot == slot
            }
        })?;
        Some(self.by_holder.get(place).at)
    }

    /// Base blocks that are too many if `more` come.
    fn excess(&self, slot: u16, more: u32) -> u32 {
        let list = &self.lists[usize::from(slot)];
        list.len.saturating_add(more).saturating_sub(list.capacity)
    }

    /// Drops what was used longest ago until `more` base blocks fit, but none of the prompt that
    /// is being added.
    fn make_room(&mut self, slot: u16, more: u32) {
        let mut victims: SmallVec<[BlockHash; EVICTED_AT_ONCE]> = SmallVec::new();
        loop {
            let excess = self.excess(slot, more);
            victims.clear();
            let (mut at, mut found) = (self.lists[usize::from(slot)].oldest, 0);
            while at != NIL && found < excess && victims.len() < EVICTED_AT_ONCE {
                let hold = &self.holds[at as usize];
                if hold.stamp == self.clock {
                    break;
                }
                victims.push(hold.block);
                found += u32::from(hold.weight);
                at = self.next_oldest(at);
            }
            if victims.is_empty() {
                return;
            }
            self.warm(slot, &victims);
            for _ in 0..victims.len() {
                self.drop_hold(self.lists[usize::from(slot)].oldest);
            }
        }
    }

    /// What will be the oldest when the oldest, `at`, is gone.
    fn next_oldest(&self, at: u32) -> u32 {
        let hold = &self.holds[at as usize];
        match self.holds.get(hold.parent as usize) {
            Some(before) if before.stamp == hold.stamp => hold.parent,
            _ => hold.newer,
        }
    }

    /// Looks at the table entries of `blocks` in advance, see [`Table::warm`].
    fn warm(&self, slot: u16, blocks: &[BlockHash]) {
        let holds = blocks.iter().map(|&block| tag_of(slot, block).hash());
        self.by_holder.warm(holds);
        self.holders.warm(blocks.iter().copied());
    }

    /// A new hold, not linked yet; `None` if there is no room besides the prompt's own blocks.
    fn add_hold(&mut self, slot: u16, block: BlockHash, weight: u8) -> Option<u32> {
        if self.excess(slot, u32::from(weight)) > 0 {
            return None;
        }
        if self.in_use >= self.holds_max && !self.evict_oldest() {
            return None;
        }
        let added =
            self.holders.add(block, slot) || (self.evict_oldest() && self.holders.add(block, slot));
        if !added {
            return None;
        }
        let at = self.allocate(Hold {
            block,
            stamp: self.clock,
            parent: NIL,
            newer: NIL,
            older: NIL,
            slot,
            weight,
            listed: false,
        });
        let place = Place {
            at,
            ..tag_of(slot, block)
        };
        self.by_holder
            .insert(place.hash(), place, self.holds_max, |place| place.hash());
        Some(at)
    }

    fn allocate(&mut self, hold: Hold) -> u32 {
        self.in_use += 1;
        self.lists[usize::from(hold.slot)].len += u32::from(hold.weight);
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

    /// Drops a listed leaf. Its parent inherits the place, unless the parent was used since.
    fn drop_hold(&mut self, at: u32) {
        let Hold {
            block,
            stamp,
            parent,
            slot,
            weight,
            ..
        } = self.holds[at as usize];
        match self.holds.get(parent as usize) {
            Some(before) if before.stamp == stamp => self.replace_listed(at, parent),
            _ => self.unlink(at),
        }
        let place = self
            .by_holder
            .find(tag_of(slot, block).hash(), |place| place.at == at)
            .expect("every hold in use is in the table");
        self.by_holder.remove(place, |place| place.hash());
        self.holders.remove(block, slot);
        self.holds[at as usize].newer = self.free;
        self.free = at;
        self.in_use -= 1;
        self.lists[usize::from(slot)].len -= u32::from(weight);
    }

    /// Drops a few blocks of the endpoint whose oldest block is the oldest of all, but none of
    /// the prompt that is being added.
    fn evict_oldest(&mut self) -> bool {
        let oldest_of = |list: &List| (list.oldest != NIL).then_some(list.oldest);
        let Some(victim) = self
            .lists
            .iter()
            .filter_map(oldest_of)
            .min_by_key(|&at| self.holds[at as usize].stamp)
        else {
            return false;
        };
        let slot = usize::from(self.holds[victim as usize].slot);
        let mut evicted = 0;
        while evicted < EVICTED_AT_ONCE {
            let oldest = self.lists[slot].oldest;
            if oldest == NIL || self.holds[oldest as usize].stamp == self.clock {
                break;
            }
            self.drop_hold(oldest);
            evicted += 1;
        }
        evicted > 0
    }

    fn unlink(&mut self, at: u32) {
        let (newer, older, slot) = self.links(at);
        self.holds[at as usize].listed = false;
        self.set_older(newer, slot, older);
        self.set_newer(older, slot, newer);
    }

    fn link_newest(&mut self, at: u32) {
        let slot = usize::from(self.holds[at as usize].slot);
        let older = self.lists[slot].newest;
        self.list(at, NIL, older);
        self.set_older(NIL, slot, at);
        self.set_newer(older, slot, at);
    }

    /// Puts `heir`, which is not listed, into the place of `at`, which then is not.
    fn replace_listed(&mut self, at: u32, heir: u32) {
        let (newer, older, slot) = self.links(at);
        self.holds[at as usize].listed = false;
        self.list(heir, newer, older);
        self.set_older(newer, slot, heir);
        self.set_newer(older, slot, heir);
    }

    fn links(&self, at: u32) -> (u32, u32, usize) {
        let hold = &self.holds[at as usize];
        (hold.newer, hold.older, usize::from(hold.slot))
    }

    fn list(&mut self, at: u32, newer: u32, older: u32) {
        let hold = &mut self.holds[at as usize];
        (hold.newer, hold.older, hold.listed) = (newer, older, true);
    }

    /// Sets what comes after `at`, or first in the list.
    fn set_older(&mut self, at: u32, slot: usize, older: u32) {
        match at {
            NIL => self.lists[slot].newest = older,
            at => self.holds[at as usize].older = older,
        }
    }

    /// Sets what comes before `at`, or last in the list.
    fn set_newer(&mut self, at: u32, slot: usize, newer: u32) {
        match at {
            NIL => self.lists[slot].oldest = newer,
            at => self.holds[at as usize].newer = newer,
        }
    }
}

fn tag_of(slot: u16, block: BlockHash) -> Place {
    let hash = block.0 ^ (u64::from(slot) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Place {
        at: NIL,
        tag: (hash >> 32) as u32,
    }
}
