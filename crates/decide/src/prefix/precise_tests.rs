use std::collections::{HashMap, HashSet};

use forebay_model::Moment;
use forebay_model::kv::{CacheEvent, ExtraKeys, Lora, Removed, Stored, Tier};
use proptest::prelude::*;

use super::precise::{Applied, Following, PreciseIndex, Reach};
use super::tokens::{TokenChain, TokenPlan};

const BLOCK: u32 = 16;

fn followed(slots: u16) -> PreciseIndex {
    let mut index = PreciseIndex::new(16 << 20);
    for slot in 0..slots {
        index.follow(slot, Following::Wholly);
    }
    index
}

fn tokens(seed: u32, blocks: u32) -> Vec<u32> {
    (0..blocks * BLOCK).map(|n| seed * 100_000 + n).collect()
}

/// A name as an engine would choose it: nothing to do with our hashes.
fn name(seed: u32, block: u32) -> u64 {
    u64::from(seed) << 32 | u64::from(block)
}

fn stored(seed: u32, from: u32, to: u32) -> Stored {
    Stored {
        blocks: (from..to).map(|block| name(seed, block)).collect(),
        parent: (from > 0).then(|| name(seed, from - 1)),
        tokens: tokens(seed, to)[(from * BLOCK) as usize..].to_vec(),
        block_tokens: BLOCK,
        full_attention: true,
        ..Stored::default()
    }
}

fn store(index: &mut PreciseIndex, slot: u16, stored: Stored) -> Applied {
    index.apply(slot, &CacheEvent::Stored(stored))
}

fn remove(index: &mut PreciseIndex, slot: u16, names: &[u64], tier: Tier) -> Applied {
    index.apply(
        slot,
        &CacheEvent::Removed(Removed {
            blocks: names.to_vec(),
            tier,
            group: 0,
        }),
    )
}

fn chains(tokens: &[u32], grids: &[u32], lora: Lora, salt: Option<&str>) -> Vec<TokenChain> {
    let plan = TokenPlan {
        grids: grids.iter().copied().collect(),
        lora,
        blocks_max: 1 << 14,
    };
    let mut chains = Vec::new();
    plan.hash(tokens, salt, &mut chains);
    chains
}

fn reach(index: &PreciseIndex, slot: u16, chains: &[TokenChain]) -> [u32; 3] {
    let mut all = vec![Reach::default(); 3];
    index.reaches(chains, &mut all);
    let one = all.get(usize::from(slot)).copied().unwrap_or_default();
    assert_eq!(one, index.reach_of(slot, chains), "both ways agree");
    one.tokens
}

fn plain(seed: u32, blocks: u32) -> Vec<TokenChain> {
    chains(&tokens(seed, blocks), &[BLOCK], Lora::Base, None)
}

#[test]
fn what_is_stored_is_held_and_what_is_removed_is_not() {
    let mut index = followed(2);
    let prompt = plain(1, 6);
    assert_eq!(store(&mut index, 0, stored(1, 0, 4)).blocks, 4);
    assert_eq!(store(&mut index, 1, stored(1, 0, 2)).blocks, 2);
    assert_eq!(reach(&index, 0, &prompt), [64; 3]);
    assert_eq!(reach(&index, 1, &prompt), [32; 3]);
    store(&mut index, 0, stored(1, 4, 6));
    assert_eq!(reach(&index, 0, &prompt), [96; 3]);
    let gone = remove(
        &mut index,
        0,
        &[name(1, 5), name(1, 4), name(7, 7)],
        Tier::Device,
    );
    assert_eq!((gone.blocks, gone.orphans), (2, 1));
    assert_eq!(reach(&index, 0, &prompt), [64; 3]);
    index.apply(0, &CacheEvent::Cleared);
    assert_eq!(reach(&index, 0, &prompt), [0; 3]);
    assert_eq!(reach(&index, 1, &prompt), [32; 3]);
    index.follow(1, Following::Lost);
    assert_eq!(reach(&index, 1, &prompt), [0; 3]);
    assert_eq!(store(&mut index, 1, stored(1, 0, 2)), Applied::default());
}

#[test]
fn a_block_after_one_that_is_not_known_has_no_place() {
    let mut index = followed(1);
    let applied = store(&mut index, 0, stored(1, 2, 4));
    assert_eq!((applied.blocks, applied.orphans), (0, 2));
    assert_eq!(index.held_by(0), (0, BLOCK));
}

#[test]
fn copies_are_counted_and_tiers_are_told_apart() {
    let mut index = followed(1);
    let prompt = plain(1, 4);
    store(&mut index, 0, stored(1, 0, 4));
    store(&mut index, 0, stored(1, 0, 1));
    remove(&mut index, 0, &[name(1, 0)], Tier::Device);
    assert_eq!(reach(&index, 0, &prompt), [64; 3]);
    let to_host = Stored {
        tokens: Vec::new(),
        tier: Tier::Host,
        ..stored(1, 0, 4)
    };
    store(&mut index, 0, to_host);
    remove(&mut index, 0, &[name(1, 3), name(1, 2)], Tier::Device);
    assert_eq!(reach(&index, 0, &prompt), [32, 64, 64]);
    let worth = index.reach_of(0, &prompt).worth(0.75, 0.5);
    assert_eq!(worth, 32.0 + 24.0);
    remove(&mut index, 0, &[name(1, 3)], Tier::Host);
    assert_eq!(reach(&index, 0, &prompt), [32, 48, 48]);
    // Copied from nowhere: never seen on the device.
    let unknown = Stored {
        tokens: Vec::new(),
        tier: Tier::Disk,
        ..stored(2, 0, 1)
    };
    assert_eq!(store(&mut index, 0, unknown).orphans, 1);
}

#[test]
fn adapters_and_salts_have_caches_of_their_own() {
    let mut index = followed(1);
    let text = tokens(1, 2);
    let lora = Lora::Named("sql".into());
    let for_adapter = Stored {
        lora: lora.clone(),
        ..stored(1, 0, 2)
    };
    store(&mut index, 0, for_adapter);
    let salted = Stored {
        blocks: vec![7, 8],
        extra: vec![ExtraKeys::default().and(b"me"), ExtraKeys::default()],
        ..stored(1, 0, 2)
    };
    store(&mut index, 0, salted);
    let check = |lora, salt, tokens| {
        let prompt = chains(&text, &[BLOCK], lora, salt);
        assert_eq!(reach(&index, 0, &prompt)[0], tokens);
    };
    check(Lora::Base, None, 0);
    check(lora.clone(), None, 32);
    check(Lora::Base, Some("me"), 32);
    check(Lora::Base, Some("you"), 0);
    check(lora, Some("me"), 0);
}

#[test]
fn engines_with_blocks_of_other_lengths_are_compared_at_theirs() {
    let mut index = followed(3);
    let text = tokens(1, 6);
    let with = |block_tokens: u32| Stored {
        blocks: (0..96 / block_tokens).map(u64::from).collect(),
        tokens: text.clone(),
        block_tokens,
        full_attention: true,
        ..Stored::default()
    };
    store(&mut index, 0, with(1));
    store(&mut index, 1, with(32));
    store(&mut index, 2, with(16));
    let grids: HashSet<u32> = index.grids().collect();
    assert_eq!(grids, HashSet::from([16, 32]));
    let prompt = chains(&text[..81], &[16, 32], Lora::Base, None);
    assert_eq!(reach(&index, 0, &prompt)[0], 80);
    assert_eq!(reach(&index, 1, &prompt)[0], 64);
    assert_eq!(reach(&index, 2, &prompt)[0], 80);
    let end: Vec<u64> = (40..96).rev().collect();
    remove(&mut index, 0, &end, Tier::Device);
    assert_eq!(reach(&index, 0, &prompt)[0], 32);
}

#[test]
fn layers_that_keep_a_window_only_say_nothing_of_prefixes() {
    let mut index = followed(1);
    let windowed = Stored {
        full_attention: false,
        group: 1,
        ..stored(1, 0, 4)
    };
    assert_eq!(store(&mut index, 0, windowed), Applied::default());
    store(&mut index, 0, stored(1, 0, 4));
    let gone = Removed {
        blocks: vec![name(1, 0)],
        group: 1,
        ..Removed::default()
    };
    index.apply(0, &CacheEvent::Removed(gone));
    assert_eq!(reach(&index, 0, &plain(1, 4)), [64; 3]);
}

#[test]
fn a_prompt_that_was_sent_counts_until_its_time_is_over() {
    let mut index = followed(2);
    store(&mut index, 0, stored(1, 0, 1));
    let prompt = plain(1, 4);
    let ms = Moment::from_millis;
    index.guess(0, &prompt, ms(2_000));
    assert_eq!(reach(&index, 0, &prompt), [64; 3]);
    assert_eq!(reach(&index, 1, &prompt), [0; 3]);
    index.guess(0, &plain(1, 2), ms(3_000));
    index.expire(ms(2_000));
    assert_eq!(reach(&index, 0, &prompt), [32; 3]);
    index.expire(ms(3_000));
    assert_eq!(reach(&index, 0, &prompt), [16; 3]);
    store(&mut index, 0, stored(1, 1, 4));
    assert_eq!(reach(&index, 0, &prompt), [64; 3]);
}

#[test]
fn a_million_blocks_take_a_hundred_mebibytes_and_one_more_is_refused() {
    let mut index = PreciseIndex::new(100 << 20);
    let (mut recorded, mut seed) = (0, 0);
    for slot in 0..8 {
        index.follow(slot, Following::Wholly);
    }
    loop {
        let applied = store(&mut index, (seed % 8) as u16, stored(seed, 0, 64));
        recorded += applied.blocks;
        seed += 1;
        assert!(
            index.bytes() <= 100 << 20,
            "{} blocks: {}",
            recorded,
            index.bytes()
        );
        if applied.refused > 0 {
            break;
        }
    }
    assert!(recorded >= 1_000_000, "{recorded} blocks");
    assert_eq!(index.following((seed - 1) as u16 % 8), Following::Partly);
    for slot in 0..8 {
        index.apply(slot, &CacheEvent::Cleared);
    }
    assert_eq!(store(&mut index, 0, stored(0, 0, 64)).blocks, 64);
}

#[test]
fn what_one_process_knows_another_can_go_on_from() {
    let mut index = followed(2);
    store(&mut index, 1, stored(1, 0, 4));
    store(&mut index, 1, stored(1, 0, 1));
    let on_host = Stored {
        tokens: Vec::new(),
        tier: Tier::Host,
        ..stored(1, 0, 4)
    };
    store(&mut index, 1, on_host);
    assert_eq!(index.copy_of(1), None, "no batch has been taken in whole");
    index.mark(1, Some((7, 99)));
    let copy = index.copy_of(1).expect("a copy");
    let mut other = followed(1);
    store(&mut other, 0, stored(2, 0, 3));
    other.restore(0, &copy);
    assert_eq!(other.copy_of(0).map(|c| c.mark), Some((7, 99)));
    assert_eq!(reach(&other, 0, &plain(2, 3)), [0; 3]);
    for index in [(&mut index, 1), (&mut other, 0)] {
        let (index, slot) = index;
        remove(index, slot, &[name(1, 0), name(1, 3)], Tier::Device);
        assert_eq!(reach(index, slot, &plain(1, 4)), [48, 64, 64]);
        store(index, slot, stored(1, 4, 5));
        assert_eq!(reach(index, slot, &plain(1, 5)), [48, 80, 80]);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Store { slot: u16, seed: u32, to: u32 },
    Evict { slot: u16, seed: u32 },
    Clear { slot: u16 },
    Lose { slot: u16 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let slot = 0_u16..3;
    let step = prop_oneof![
        6 => (slot.clone(), 0_u32..4, 1_u32..9)
            .prop_map(|(slot, seed, to)| Step::Store { slot, seed, to }),
        4 => (slot.clone(), 0_u32..4).prop_map(|(slot, seed)| Step::Evict { slot, seed }),
        1 => slot.clone().prop_map(|slot| Step::Clear { slot }),
        1 => slot.prop_map(|slot| Step::Lose { slot }),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    /// Endpoints that store prompts from their beginning and evict them from their end, against a
    /// table of how much of each prompt each has.
    #[test]
    fn follows_endpoints_as_a_simple_table_would(steps in steps()) {
        let mut index = followed(3);
        let mut held: HashMap<(u16, u32), u32> = HashMap::new();
        for step in steps {
            match step {
                Step::Store { slot, seed, to } => {
                    let from = held.get(&(slot, seed)).copied().unwrap_or(0);
                    if to > from {
                        store(&mut index, slot, stored(seed, from, to));
                        held.insert((slot, seed), to);
                    }
                }
                Step::Evict { slot, seed } => {
                    if let Some(blocks) = held.get_mut(&(slot, seed)).filter(|n| **n > 0) {
                        *blocks -= 1;
                        remove(&mut index, slot, &[name(seed, *blocks)], Tier::Device);
                    }
                }
                Step::Clear { slot } => {
                    index.apply(slot, &CacheEvent::Cleared);
                    held.retain(|(of, _), _| *of != slot);
                }
                Step::Lose { slot } => {
                    index.follow(slot, Following::Lost);
                    index.follow(slot, Following::Partly);
                    held.retain(|(of, _), _| *of != slot);
                }
            }
            for seed in 0..4 {
                let prompt = plain(seed, 8);
                for slot in 0..3 {
                    let wanted = held.get(&(slot, seed)).copied().unwrap_or(0) * BLOCK;
                    prop_assert_eq!(reach(&index, slot, &prompt)[0], wanted);
                }
            }
        }
        let known: usize = (0..3).map(|slot| index.held_by(slot).0).sum();
        prop_assert_eq!(known as u32, held.values().sum::<u32>());
    }
}
