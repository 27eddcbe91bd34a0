//! The precise prefix index of one pool: what each endpoint says is in its cache.
//!
//! Per endpoint a table leads from the server's name of a block to the state of the tokens up to its
//! end (`tokens.rs`), so that its children can be placed and its removal is understood; per tier a
//! table leads from that state's hash to the endpoints that hold it. Servers evict the end of a
//! prompt before its beginning, so a lookup jumps as in the approximate index: a hole within a prefix
//! is not noticed.
//!
//! Bounds: `bytes_max` for everything but 64 bytes per endpoint; blocks beyond are refused, and
//! counted, and their endpoint is followed in part from then on.

use forebay_model::Moment;
use forebay_model::kv::{BlockName, CacheEvent, Removed, Stored, Tier};
use serde::{Deserialize, Serialize};

use super::chain::BlockHash;
use super::guesses::{GUESSES_BYTES_MAX, Guesses};
use super::holders::{Block, Holders, jump};
use super::table::{Entry, LARGE_LOAD_64, Table};
use super::tokens::{TokenChain, TokenState, grid_of};

/// Copies of one block in one tier that are counted; engines may hold the same content twice for a
/// while, and tell of both.
const COPIES_MAX: u16 = 31;
const COPIES_BITS: u16 = 5;

/// A block as one server names it: 24 bytes.
#[derive(Clone, Copy, Debug)]
struct Known {
    name: BlockName,
    state: TokenState,
    /// Tokens up to its end; 0 marks a vacant place.
    position: u32,
    /// Copies per tier, five bits each.
    copies: u16,
}

impl Entry for Known {
    const VACANT: Self = Self {
        name: 0,
        state: TokenState(0),
        position: 0,
        copies: 0,
    };
    fn is_vacant(&self) -> bool {
        self.position == 0
    }
}

impl Known {
    fn copies(self, tier: Tier) -> u16 {
        self.copies >> (COPIES_BITS * tier as u16) & COPIES_MAX
    }

    fn set_copies(&mut self, tier: Tier, copies: u16) {
        let at = COPIES_BITS * tier as u16;
        self.copies = self.copies & !(COPIES_MAX << at) | copies.min(COPIES_MAX) << at;
    }
}

/// How well the events of an endpoint are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Following {
    /// Not at all: it publishes none, or none has been heard.
    #[default]
    No,
    /// From some point on: what it stored before is not known.
    Partly,
    /// All of them.
    Wholly,
    /// They were, until some went missing for good.
    Lost,
}

#[derive(Clone, Debug)]
struct Source {
    following: Following,
    /// Tokens of its blocks; 0 until it tells.
    block_tokens: u32,
    /// Groups of layers whose blocks say nothing of prefixes.
    ignored: u64,
    /// The last batch that has been taken in whole.
    mark: Option<(u64, u64)>,
    known: Table<Known>,
}

/// What is known of one endpoint, for another process that begins to follow it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SourceCopy {
    /// How well.
    pub following: Following,
    /// Number and digest of the last batch that it is made of.
    pub mark: (u64, u64),
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Groups of layers whose blocks do not count, a bit for each.
    pub ignored: u64,
    /// Of each block its name, its tokens' state, its end in tokens, and its copies by tier.
    pub blocks: Vec<(u64, u64, u32, u16)>,
}

/// What became of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Blocks that were recorded, or whose removal was.
    pub blocks: u32,
    /// Blocks that follow one which is not known, so that their place is not either.
    pub orphans: u32,
    /// Blocks for which there is no room.
    pub refused: u32,
}

impl Applied {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            blocks: self.blocks + other.blocks,
            orphans: self.orphans + other.orphans,
            refused: self.refused + other.refused,
        }
    }
}

/// How many leading tokens of a prompt an endpoint holds, in this tier or a faster one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reach {
    /// By tier, fastest first; never less than in the one before.
    pub tokens: [u32; 3],
}

impl Reach {
    /// All of them, wherever they are.
    #[must_use]
    pub fn all(self) -> u32 {
        self.tokens[2]
    }

    /// What they are worth, in tokens of the fastest tier.
    #[must_use]
    pub fn worth(self, host_weight: f32, disk_weight: f32) -> f32 {
        let [device, host, disk] = self.tokens.map(|n| n as f32);
        device + (host - device) * host_weight + (disk - host) * disk_weight
    }
}

/// The index.
#[derive(Clone, Debug)]
pub struct PreciseIndex {
    sources: Vec<Source>,
    tiers: [Holders; 3],
    guesses: Guesses,
    /// Entries of all sources.
    known: usize,
    known_max: usize,
}

impl PreciseIndex {
    /// An empty index that takes no memory yet, and never more than `bytes_max` besides 64 bytes per
    /// endpoint. While a table grows, its old copy comes on top.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let mut index = Self {
            sources: Vec::new(),
            tiers: [Holders::new(), Holders::new(), Holders::new()],
            guesses: Guesses::new(),
            known: 0,
            known_max: 0,
        };
        index.set_bytes_max(bytes_max);
        index
    }

    /// Replaces the bound. A smaller one empties the index: every endpoint is lost.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        // Bit sets get an eighth: half of it for the fastest tier.
        let sets = bytes_max / 8;
        let per_block = (size_of::<Known>() + size_of::<Block>()) * LARGE_LOAD_64 / 64;
        let known_max = (bytes_max - sets).saturating_sub(GUESSES_BYTES_MAX) / per_block;
        if known_max < self.known_max {
            self.lose_all();
        }
        self.known_max = known_max;
        for (tier, share) in self.tiers.iter_mut().zip([2, 4, 4]) {
            tier.set_bounds(known_max, sets / share);
        }
    }

    /// Bytes taken from the allocator.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let tiers: usize = self.tiers.iter().map(Holders::bytes).sum();
        let known: usize = self.sources.iter().map(|s| s.known.bytes()).sum();
        let sources = self.sources.capacity() * size_of::<Source>();
        tiers + known + sources + self.guesses.bytes()
    }

    /// How the endpoint in `slot` is followed.
    #[must_use]
    pub fn following(&self, slot: u16) -> Following {
        let source = self.sources.get(usize::from(slot));
        source.map_or(Following::No, |source| source.following)
    }

    /// Blocks that the endpoint in `slot` has told of, and their length in tokens (0 if unknown).
    #[must_use]
    pub fn held_by(&self, slot: u16) -> (usize, u32) {
        let source = self.sources.get(usize::from(slot));
        source.map_or((0, 0), |source| (source.known.len(), source.block_tokens))
    }

    /// The distances at which blocks of the endpoints that are followed can be compared.
    pub fn grids(&self) -> impl Iterator<Item = u32> {
        let heard = |s: &&Source| matches!(s.following, Following::Partly | Following::Wholly);
        self.sources.iter().filter(heard).map(Source::grid)
    }

    /// From now on the endpoint in `slot` is followed so. [`Following::No`] and [`Following::Lost`]
    /// drop what is known of it.
    pub fn follow(&mut self, slot: u16, following: Following) {
        let at = usize::from(slot);
        if at >= self.sources.len() {
            if following == Following::No {
                return;
            }
            self.add_sources(at + 1);
        }
        match following {
            Following::No | Following::Lost => self.forget(slot),
            Following::Partly | Following::Wholly => {}
        }
        self.sources[at].following = following;
    }

    fn add_sources(&mut self, len: usize) {
        self.sources.resize_with(len, || Source {
            following: Following::No,
            block_tokens: 0,
            ignored: 0,
            mark: None,
            known: Table::new(),
        });
        let words = len.div_ceil(64);
        self.guesses.widen(words);
        let widened = self.tiers.iter_mut().map(|tier| tier.widen(words));
        if !widened.fold(true, |all, one| all & one) {
            self.lose_all();
        }
    }

    fn lose_all(&mut self) {
        self.tiers.iter_mut().for_each(Holders::clear);
        self.guesses.clear();
        self.known = 0;
        for source in &mut self.sources {
            source.known = Table::new();
            if source.following != Following::No {
                source.following = Following::Lost;
            }
        }
    }

    /// Forgets every block of the endpoint in `slot`; how it is followed stays.
    fn forget(&mut self, slot: u16) {
        self.guesses.forget(slot);
        let Some(source) = self.sources.get_mut(usize::from(slot)) else {
            return;
        };
        source.mark = None;
        let known = std::mem::replace(&mut source.known, Table::new());
        self.known -= known.len();
        for entry in known.entries() {
            let block = entry.state.hash();
            for tier in &mut self.tiers {
                if tier.contains(block, slot) {
                    tier.remove(block, slot);
                }
            }
        }
    }

    /// Notes which batch has been taken in whole, or that one is being taken in.
    pub fn mark(&mut self, slot: u16, mark: Option<(u64, u64)>) {
        if let Some(source) = self.sources.get_mut(usize::from(slot)) {
            source.mark = mark;
        }
    }

    /// What is known of the endpoint in `slot`; `None` if nothing is, or a batch is only half taken
    /// in.
    #[must_use]
    pub fn copy_of(&self, slot: u16) -> Option<SourceCopy> {
        let source = self.sources.get(usize::from(slot))?;
        let blocks = source.known.entries();
        Some(SourceCopy {
            following: source.following,
            mark: source.mark?,
            block_tokens: source.block_tokens,
            ignored: source.ignored,
            blocks: blocks
                .map(|known| (known.name, known.state.0, known.position, known.copies))
                .collect(),
        })
    }

    /// Takes over what another process knows of the endpoint in `slot`, in place of everything that
    /// is known here. Blocks beyond the bound are left out, and it is followed in part then.
    pub fn restore(&mut self, slot: u16, copy: &SourceCopy) {
        self.follow(slot, Following::Lost);
        self.follow(slot, copy.following);
        let source = &mut self.sources[usize::from(slot)];
        (source.block_tokens, source.ignored) = (copy.block_tokens, copy.ignored);
        for &(name, state, position, copies) in &copy.blocks {
            for tier in Tier::ALL {
                let known = Known {
                    copies,
                    ..Known::VACANT
                };
                for _ in 0..known.copies(tier) {
                    if !self.add(slot, name, (TokenState(state), position), tier) {
                        self.sources[usize::from(slot)].following = Following::Partly;
                    }
                }
            }
        }
        self.mark(slot, Some(copy.mark));
    }

    /// Takes in an event of the endpoint in `slot`. Without effect unless it is followed.
    pub fn apply(&mut self, slot: u16, event: &CacheEvent) -> Applied {
        match self.following(slot) {
            Following::No | Following::Lost => return Applied::default(),
            Following::Partly | Following::Wholly => {}
        }
        match event {
            CacheEvent::Stored(stored) => self.stored(slot, stored),
            CacheEvent::Removed(removed) => self.removed(slot, removed),
            CacheEvent::Cleared => {
                self.forget(slot);
                // Nothing is cached, and all that will be is told of from here on.
                self.sources[usize::from(slot)].following = Following::Wholly;
                Applied::default()
            }
        }
    }

    fn stored(&mut self, slot: u16, stored: &Stored) -> Applied {
        let source = &mut self.sources[usize::from(slot)];
        let group = 1_u64.checked_shl(stored.group).unwrap_or(0);
        if !stored.full_attention {
            source.ignored |= group;
        }
        if source.ignored & group != 0 || !stored.full_attention {
            return Applied::default();
        }
        if stored.tokens.is_empty() {
            return self.copied(slot, stored);
        }
        if source.block_tokens == 0 {
            source.block_tokens = stored.block_tokens;
        }
        let before = match stored.parent {
            None => Some((TokenState::start(&stored.lora), 0)),
            Some(parent) => source.find(parent).map(|at| {
                let known = source.known.get(at);
                (known.state, known.position)
            }),
        };
        let Some((mut state, mut position)) = before else {
            return Applied {
                orphans: count(stored.blocks.len()),
                ..Applied::default()
            };
        };
        let mut applied = Applied::default();
        let tokens = stored.tokens.chunks_exact(stored.block_tokens as usize);
        for (at, (name, tokens)) in stored.blocks.iter().zip(tokens).enumerate() {
            let extra = stored.extra.get(at).copied().unwrap_or_default();
            state = state.extra(extra).after(tokens);
            position = position.saturating_add(stored.block_tokens);
            if self.add(slot, *name, (state, position), stored.tier) {
                applied.blocks += 1;
            } else {
                applied.refused += 1;
            }
        }
        if applied.refused > 0 {
            self.sources[usize::from(slot)].following = Following::Partly;
        }
        applied
    }

    /// Blocks that are known already came into another tier.
    fn copied(&mut self, slot: u16, stored: &Stored) -> Applied {
        let mut applied = Applied::default();
        for name in &stored.blocks {
            let source = &self.sources[usize::from(slot)];
            match source.find(*name) {
                None => applied.orphans += 1,
                Some(at) => {
                    let known = *source.known.get(at);
                    self.add(slot, *name, (known.state, known.position), stored.tier);
                    applied.blocks += 1;
                }
            }
        }
        applied
    }

    /// One more copy of a block in a tier; false if there is no room for it.
    fn add(&mut self, slot: u16, name: BlockName, at: (TokenState, u32), tier: Tier) -> bool {
        let (state, position) = at;
        let source = &self.sources[usize::from(slot)];
        let mut place = source.find(name);
        if let Some(at) = place
            && source.known.get(at).state != state
        {
            // The same name for other content: the server forgot to say that the old one is gone.
            self.drop_known(slot, at);
            place = None;
        }
        let source = &mut self.sources[usize::from(slot)];
        if place.is_none() {
            if self.known >= self.known_max || position == 0 {
                return false;
            }
            let known = Known {
                name,
                state,
                position,
                copies: 0,
            };
            source
                .known
                .insert(mixed(name), known, usize::MAX, |known| mixed(known.name));
            self.known += 1;
        }
        let at = source.find(name).expect("found or inserted above");
        let known = source.known.get_mut(at);
        let copies = known.copies(tier);
        known.set_copies(tier, copies + 1);
        if copies > 0 || !position.is_multiple_of(source.grid()) {
            return true;
        }
        let holders: usize = self.tiers.iter().map(Holders::len).sum();
        let (block, tier) = (state.hash(), &mut self.tiers[tier as usize]);
        // Two names may be of the same content, where what sets them apart is not told.
        holders < self.known_max && (tier.contains(block, slot) || tier.add(block, slot))
    }

    fn removed(&mut self, slot: u16, removed: &Removed) -> Applied {
        let mut applied = Applied::default();
        let source = &self.sources[usize::from(slot)];
        if source.ignored & 1_u64.checked_shl(removed.group).unwrap_or(0) != 0 {
            return applied;
        }
        for name in &removed.blocks {
            let source = &mut self.sources[usize::from(slot)];
            let Some(at) = source.find(*name) else {
                applied.orphans += 1;
                continue;
            };
            let known = source.known.get_mut(at);
            let copies = known.copies(removed.tier);
            known.set_copies(removed.tier, copies.saturating_sub(1));
            applied.blocks += 1;
            if copies == 1 {
                let (block, gone) = (known.state.hash(), known.copies == 0);
                let tier = &mut self.tiers[removed.tier as usize];
                if tier.contains(block, slot) {
                    tier.remove(block, slot);
                }
                if gone {
                    self.drop_known(slot, at);
                }
            }
        }
        applied
    }

    fn drop_known(&mut self, slot: u16, at: usize) {
        let source = &mut self.sources[usize::from(slot)];
        let block = source.known.get(at).state.hash();
        source.known.remove(at, |known| mixed(known.name));
        self.known -= 1;
        for tier in &mut self.tiers {
            if tier.contains(block, slot) {
                tier.remove(block, slot);
            }
        }
    }

    /// Notes that a prompt goes to the endpoint in `slot`, which will hold it before it says so;
    /// believed until `end`.
    pub fn guess(&mut self, slot: u16, chains: &[TokenChain], end: Moment) {
        let Some(source) = self.sources.get(usize::from(slot)) else {
            return;
        };
        let grid = source.grid();
        let chain = chains.iter().find(|chain| chain.grid == grid);
        for block in chain.iter().flat_map(|chain| &chain.hashes) {
            if !self.tiers[0].contains(*block, slot) {
                self.guesses.add(*block, slot, end);
            }
        }
    }

    /// Ends guesses whose time has come.
    pub fn expire(&mut self, now: Moment) {
        self.guesses.expire(now);
    }

    /// How far the endpoint in `slot` holds a prompt.
    #[must_use]
    pub fn reach_of(&self, slot: u16, chains: &[TokenChain]) -> Reach {
        let mut reach = Reach::default();
        let Some(source) = self.sources.get(usize::from(slot)) else {
            return reach;
        };
        let Some(chain) = chains.iter().find(|chain| chain.grid == source.grid()) else {
            return reach;
        };
        for (level, tokens) in reach.tokens.iter_mut().enumerate() {
            let holds = |block: &BlockHash| {
                self.guesses.contains(*block, slot)
                    || self.tiers[..=level]
                        .iter()
                        .any(|t| t.contains(*block, slot))
            };
            *tokens = count(chain.hashes.partition_point(holds)) * chain.grid;
        }
        reach
    }

    /// Writes into `reaches[slot]` how far each endpoint holds a prompt, for the slots that
    /// `reaches` has.
    pub fn reaches(&self, chains: &[TokenChain], reaches: &mut [Reach]) {
        reaches.fill(Reach::default());
        let words = self.sources.len().div_ceil(64);
        let mut depths = smallvec::SmallVec::<[u16; 256]>::new();
        depths.resize(self.sources.len().min(reaches.len()), 0);
        for chain in chains {
            for level in 0..self.tiers.len() {
                if level == 0 || self.tiers[level].len() > 0 {
                    let mask = |block, mask: &mut [u64]| self.mask(level, block, mask);
                    jump(&chain.hashes, words, mask, &mut depths);
                }
                for ((reach, source), depth) in reaches.iter_mut().zip(&self.sources).zip(&depths) {
                    if source.grid() == chain.grid {
                        reach.tokens[level] = u32::from(*depth) * chain.grid;
                    }
                }
            }
        }
    }

    /// Sets `mask` to those who hold `block` in a tier up to `level`.
    fn mask(&self, level: usize, block: BlockHash, mask: &mut [u64]) {
        self.tiers[0].mask(block, mask);
        let mut more: smallvec::SmallVec<[u64; 16]> = smallvec::SmallVec::new();
        let mut also = |holds: &dyn Fn(&mut [u64]) -> bool| {
            more.resize(mask.len(), 0);
            if holds(&mut more) {
                mask.iter_mut()
                    .zip(&more)
                    .for_each(|(all, one)| *all |= one);
            }
        };
        if !self.guesses.is_empty() {
            also(&|mask| self.guesses.mask(block, mask));
        }
        for tier in self.tiers[1..=level].iter().filter(|tier| tier.len() > 0) {
            also(&|mask| tier.mask(block, mask));
        }
    }
}

impl Source {
    fn find(&self, name: BlockName) -> Option<usize> {
        self.known.find(mixed(name), |known| known.name == name)
    }

    /// Distance between positions that can be compared.
    fn grid(&self) -> u32 {
        grid_of(self.block_tokens)
    }
}

/// A server's hash spread over the whole range, since it may be anything.
fn mixed(name: BlockName) -> u64 {
    let z = (name ^ (name >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let z = (z ^ (z >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    z ^ (z >> 33)
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
