//! Messages of external processing in any order: the fuzz target's own rules, on what it starts from and
//! on random input, so that they hold wherever tests run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(unreachable_pub, reason = "it is a part of the fuzz target")]
#[path = "../../../fuzz/fuzz_targets/drive/ext_proc.rs"]
mod drive;

use std::path::Path;

use proptest::prelude::*;

#[test]
fn what_fuzzing_starts_from_keeps_the_rules() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/ext_proc");
    let mut inputs = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        drive::drive(&std::fs::read(entry.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0);
}

/// Bytes that mean something more often than chance would have it.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let operation = prop_oneof![
        8 => (0..8_u8, any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(kind, end, told, eager)| {
                kind | u8::from(end) << 7 | u8::from(told) << 6 | u8::from(eager) << 5
            }),
        1 => Just(0xff),
    ];
    let step = (
        prop_oneof![9 => Just(0), 1 => Just(0xff)],
        operation,
        0..6_u8,
        0..6_u8,
    );
    let step = step.prop_map(|(which, operation, one, other)| vec![which, operation, one, other]);
    proptest::collection::vec(step, 0..24).prop_map(|steps| steps.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_messages_keeps_the_rules(input in input()) {
        drive::drive(&input);
    }

    #[test]
    fn any_bytes_keep_the_rules(input in proptest::collection::vec(any::<u8>(), 0..200)) {
        drive::drive(&input);
    }
}
