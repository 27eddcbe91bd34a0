//! The index against a list per endpoint, and its bounds.

use proptest::prelude::*;

use super::*;

/// Slots in use: several words of the bit sets, and enough for more than a pair of holders.
const SLOTS: [u16; 6] = [0, 1, 2, 63, 64, 130];
const PLENTY: usize = 1 << 20;

/// The simplest thing that behaves alike: blocks with their stamps and weights, most recently used
/// first.
#[derive(Clone, Default)]
struct Model {
    blocks: Vec<(BlockHash, u64, usize)>,
    capacity: usize,
}

impl Model {
    fn base_blocks(&self) -> usize {
        self.blocks.iter().map(|(_, _, weight)| weight).sum()
    }

    fn depth(&self, chain: &[BlockHash]) -> usize {
        let held = |block: &&BlockHash| self.blocks.iter().any(|(b, ..)| b == *block);
        chain.iter().take_while(held).count()
    }

    fn hold(&mut self, chain: &[BlockHash], stamp: u64) -> (usize, usize, u64) {
        let hits = self.depth(chain);
        let tail = chain[..hits].last();
        let tail = tail.map_or(0, |t| self.blocks.iter().find(|(b, ..)| b == t).unwrap().1);
        self.blocks.retain(|(b, ..)| !chain[..hits].contains(b));
        let mut held = hits;
        while held < chain.len() {
            while base_blocks(held + 1) + self.base_blocks() > self.capacity {
                if self.blocks.pop().is_none() {
                    break;
                }
            }
            if base_blocks(held + 1) > self.capacity {
                break;
            }
            held += 1;
        }
        let weight = |at| usize::from(block_weight(at));
        let front = (0..held).map(|at| (chain[at], stamp, weight(at)));
        self.blocks = front.chain(self.blocks.iter().copied()).collect();
        (hits, held, tail)
    }

    fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
        while self.base_blocks() > capacity {
            self.blocks.pop();
        }
    }

    fn forget_older(&mut self, stamp: u64) {
        self.blocks.retain(|(_, s, _)| *s >= stamp);
    }

    fn retract(&mut self, added: &[BlockHash], stamp: u64) {
        self.blocks
            .retain(|(b, s, _)| *s != stamp || !added.contains(b));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Hold(usize, Vec<u8>),
    HoldAndRetract(usize, Vec<u8>),
    RetractLater(usize, Vec<u8>),
    RetractNow,
    Capacity(usize, usize),
    ForgetOlder(usize, u64),
    Forget(usize),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let slot = 0..SLOTS.len();
    // Few branches, so that chains share beginnings.
    let path = prop::collection::vec(0_u8..3, 0..24).prop_map(|mut path| {
        path.iter_mut().skip(3).for_each(|step| *step /= 2);
        path
    });
    prop_oneof![
        12 => (slot.clone(), path.clone()).prop_map(|(s, p)| Op::Hold(s, p)),
        1 => (slot.clone(), path.clone()).prop_map(|(s, p)| Op::HoldAndRetract(s, p)),
        1 => (slot.clone(), path).prop_map(|(s, p)| Op::RetractLater(s, p)),
        1 => Just(Op::RetractNow),
        1 => (slot.clone(), 0_usize..300).prop_map(|(s, n)| Op::Capacity(s, n)),
        1 => (slot.clone(), 0_u64..20).prop_map(|(s, n)| Op::ForgetOlder(s, n)),
        1 => slot.prop_map(Op::Forget),
        1 => Just(Op::Clear),
    ]
}

/// Six bytes a step, in blocks of a byte and more: up to 70 blocks of three sizes.
fn chain_of(path: &[u8]) -> Vec<BlockHash> {
    let mut out = Vec::new();
    let seed = ChainSeed::default();
    let text: Vec<u8> = path.iter().flat_map(|&step| [step; 6]).collect();
    chain(seed, std::iter::once(&text[..]), 1, text.len(), &mut out);
    out
}

fn depths(index: &PrefixIndex, chain: &[BlockHash]) -> Vec<usize> {
    let mut depths = [9; 131];
    index.matches(chain, &mut depths);
    SLOTS
        .map(|slot| usize::from(depths[usize::from(slot)]))
        .to_vec()
}

struct Pending {
    slot: usize,
    added: Vec<BlockHash>,
    stamp: u64,
}

fn run(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut index = PrefixIndex::new(PLENTY);
    let mut models = vec![Model::default(); SLOTS.len()];
    let mut pending: Option<Pending> = None;
    for (slot, model) in models.iter_mut().enumerate() {
        index.set_capacity(SLOTS[slot], 150);
        model.set_capacity(150);
    }
    for op in ops {
        match op {
            Op::Hold(slot, path)
            | Op::HoldAndRetract(slot, path)
            | Op::RetractLater(slot, path)
                if path.is_empty() && slot > 0 => {}
            Op::Hold(slot, ref path)
            | Op::HoldAndRetract(slot, ref path)
            | Op::RetractLater(slot, ref path) => {
                let chain = chain_of(path);
                let held = index.hold(SLOTS[slot], &chain);
                let expected = models[slot].hold(&chain, held.stamp);
                let got = (held.hit_blocks, held.held_blocks, held.tail_stamp);
                prop_assert_eq!(got, expected);
                let added = chain[held.hit_blocks..held.held_blocks].to_vec();
                let stamp = held.stamp;
                match op {
                    Op::HoldAndRetract(..) => {
                        index.retract(SLOTS[slot], &added, stamp);
                        models[slot].retract(&added, stamp);
                    }
                    Op::RetractLater(..) => pending = Some(Pending { slot, added, stamp }),
                    _ => {}
                }
            }
            Op::RetractNow => {
                if let Some(Pending { slot, added, stamp }) = pending.take() {
                    index.retract(SLOTS[slot], &added, stamp);
                    models[slot].retract(&added, stamp);
                }
            }
            Op::Capacity(slot, capacity) => {
                index.set_capacity(SLOTS[slot], capacity);
                models[slot].set_capacity(capacity);
            }
            Op::ForgetOlder(slot, stamp) => {
                index.forget_older(SLOTS[slot], stamp);
                models[slot].forget_older(stamp);
            }
            Op::Forget(slot) => {
                index.forget(SLOTS[slot]);
                models[slot].blocks.clear();
            }
            Op::Clear => {
                index.clear();
                models.iter_mut().for_each(|m| m.blocks.clear());
            }
        }
        let total: usize = models.iter().map(|m| m.blocks.len()).sum();
        prop_assert_eq!(index.holds(), total);
    }
    for a in 0..3 {
        for b in 0..3 {
            for c in 0..8_u8 {
                let path = [a, b, 0, c & 1, c >> 1 & 1, c >> 2, 0, 1, 0, 0, 1, 1, 0];
                let chain = chain_of(&path);
                let expected: Vec<_> = models.iter().map(|m| m.depth(&chain)).collect();
                prop_assert_eq!(depths(&index, &chain), expected);
            }
        }
    }
    for (slot, model) in models.iter().enumerate() {
        prop_assert_eq!(index.held_by(SLOTS[slot]), model.base_blocks());
    }
    Ok(())
}

proptest! {
    #[test]
    fn agrees_with_a_list_per_endpoint(ops in prop::collection::vec(op(), 0..120)) {
        run(ops)?;
    }

    #[test]
    fn whatever_happens_it_stays_within_its_bytes(
        bytes_max in 0_usize..20_000,
        ops in prop::collection::vec((0_u16..200, prop::collection::vec(0_u8..4, 1..40)), 0..200),
    ) {
        let mut index = PrefixIndex::new(bytes_max);
        for slot in 0..200 {
            index.set_capacity(slot, 1_000);
        }
        let lists = index.bytes();
        for (slot, path) in ops {
            let chain = chain_of(&path);
            let held = index.hold(slot, &chain);
            prop_assert!(index.bytes() - lists <= bytes_max, "{} bytes", index.bytes() - lists);
            // The prompt that was put last is never the one to go.
            let mut depths = [0; 200];
            index.matches(&chain, &mut depths);
            prop_assert_eq!(usize::from(depths[usize::from(slot)]), held.held_blocks);
        }
    }
}

/// A chain that starts like no other of another `id`.
fn numbered(id: u64, blocks: u64) -> Vec<BlockHash> {
    (0..blocks)
        .map(|i| BlockHash((id * 1_000_003 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect()
}

#[test]
fn a_million_blocks_take_less_than_a_hundred_mebibytes() {
    let mut index = PrefixIndex::new(100 << 20);
    for slot in 0..100 {
        index.set_capacity(slot, 62_500);
    }
    for id in 0..10_000 {
        index.hold((id % 100) as u16, &numbered(id, 100));
    }
    assert_eq!(index.holds(), 1_000_000);
    assert!(index.bytes() <= 100 << 20, "{} bytes", index.bytes());
}

#[test]
fn a_full_index_drops_what_was_used_longest_ago_on_any_endpoint() {
    let mut index = PrefixIndex::new(22_000);
    for slot in 0..4 {
        index.set_capacity(slot, 1_000);
    }
    for id in 0..100 {
        index.hold((id % 4) as u16, &numbered(id, 10));
    }
    let depth = |id: u64| {
        let mut depths = [0; 4];
        index.matches(&numbered(id, 10), &mut depths);
        depths[(id % 4) as usize]
    };
    assert!((85..100).all(|id| depth(id) == 10));
    assert!((0..60).all(|id| depth(id) == 0));
}

#[test]
fn an_endpoint_keeps_the_beginning_of_a_prompt_that_is_longer_than_its_cache() {
    let mut index = PrefixIndex::new(PLENTY);
    index.set_capacity(0, 3);
    index.hold(0, &numbered(1, 2));
    let held = index.hold(0, &numbered(2, 5));
    assert_eq!((held.hit_blocks, held.held_blocks), (0, 3));
    assert_eq!(index.holds(), 3);
}

#[test]
fn a_slot_that_was_never_given_room_holds_nothing() {
    let mut index = PrefixIndex::new(PLENTY);
    assert_eq!(index.hold(7, &numbered(1, 2)).held_blocks, 0);
    index.set_capacity(u16::MAX, 10);
    assert_eq!(index.hold(u16::MAX, &numbered(1, 2)).held_blocks, 0);
    assert_eq!((index.holds(), index.held_by(7)), (0, 0));
}

#[test]
fn blocks_that_all_endpoints_hold_are_found_on_all() {
    let mut index = PrefixIndex::new(8 << 20);
    for slot in 0..1_000 {
        index.set_capacity(slot, 100);
        index.hold(slot, &numbered(1, 20 + u64::from(slot % 7)));
    }
    let mut depths = [0; 1_000];
    index.matches(&numbered(1, 50), &mut depths);
    for (slot, depth) in depths.iter().enumerate() {
        assert_eq!(usize::from(*depth), 20 + slot % 7);
    }
    for slot in 0..999 {
        index.forget(slot);
    }
    index.matches(&numbered(1, 50), &mut depths);
    assert_eq!(depths.iter().filter(|d| **d > 0).count(), 1);
    assert_eq!(depths[999], 20 + 999 % 7);
}
