//! Whatever a publisher of KV cache events sends: the codec ends in messages or an error, a payload in
//! a batch or an error, and events in an index that stays within its bound and can be asked. The
//! input is a stream of ZMTP, and the same bytes as payloads.
#![no_main]

use forebay_decide::prefix::{PreciseIndex, Reach, TokenPlan};
use forebay_decide::{Following, TokenChain};
use forebay_dialect::kv_events::{self, Sequence};
use forebay_zmtp::codec::{Decoder, Incoming};
use forebay_zmtp::{Limits, Role};
use libfuzzer_sys::fuzz_target;

const BYTES_MAX: usize = 8 << 20;

fn take_in(index: &mut PreciseIndex, slot: u16, payload: &[u8]) {
    let Ok(batch) = kv_events::decode(payload) else {
        return;
    };
    for event in &batch.events {
        let before = index.following(slot);
        let applied = index.apply(slot, event);
        if before != Following::Wholly && before != Following::Partly {
            assert_eq!(applied, Default::default());
        }
    }
    assert!(index.bytes() <= BYTES_MAX);
}

fuzz_target!(|input: &[u8]| {
    let mut index = PreciseIndex::new(BYTES_MAX);
    index.follow(0, Following::Wholly);
    index.follow(1, Following::Partly);
    let mut sequence = Sequence::default();
    let limits = Limits {
        message_bytes: 4096,
        frames: 4,
    };
    let mut decoder = Decoder::new(Role::Subscriber, limits);
    for piece in input.chunks(97) {
        decoder.buffer().extend_from_slice(piece);
        while let Ok(Some(incoming)) = decoder.take() {
            let Incoming::Message(message) = incoming else {
                continue;
            };
            let size: usize = message.iter().map(|frame| frame.len()).sum();
            assert!(size <= limits.message_bytes && message.len() <= limits.frames);
            if let [_, number, payload] = message.as_slice() {
                let number = number.iter().fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
                let _verdict = sequence.judge(number, payload);
                take_in(&mut index, 1, payload);
            }
        }
    }
    take_in(&mut index, 0, input);
    let mut chains: Vec<TokenChain> = Vec::new();
    let plan = TokenPlan {
        grids: index.grids().take(4).collect(),
        blocks_max: 64,
        ..TokenPlan::default()
    };
    let tokens: Vec<u32> = input.iter().map(|byte| u32::from(*byte)).collect();
    if plan.grids.iter().all(|grid| *grid > 0) {
        plan.hash(&tokens, None, &mut chains);
    }
    let mut reaches = [Reach::default(); 3];
    index.reaches(&chains, &mut reaches);
    for (slot, reach) in (0..).zip(reaches) {
        // The two may differ where a server claims to have evicted the middle of a prompt.
        let one = index.reach_of(slot, &chains);
        assert!(one.all() as usize <= tokens.len());
        assert!(reach.all() as usize <= tokens.len());
    }
    index.apply(0, &forebay_model::kv::CacheEvent::Cleared);
    assert_eq!(index.held_by(0).0, 0);
});
