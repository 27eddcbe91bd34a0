use super::*;

/// Bytes of msgpack, written down as a list of parts.
#[derive(Default)]
struct Packed(Vec<u8>);

impl Packed {
    fn array(mut self, len: u8) -> Self {
        self.0.push(0x90 | len);
        self
    }
    fn map(mut self, len: u8) -> Self {
        self.0.push(0x80 | len);
        self
    }
    fn text(mut self, text: &str) -> Self {
        self.0.extend([0xd9, text.len() as u8]);
        self.0.extend(text.as_bytes());
        self
    }
    fn int(mut self, number: i64) -> Self {
        self.0.push(0xd3);
        self.0.extend(number.to_be_bytes());
        self
    }
    fn unsigned(mut self, number: u64) -> Self {
        self.0.push(0xcf);
        self.0.extend(number.to_be_bytes());
        self
    }
    fn float(mut self, number: f64) -> Self {
        self.0.push(0xcb);
        self.0.extend(number.to_be_bytes());
        self
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend([0xc4, bytes.len() as u8]);
        self.0.extend(bytes);
        self
    }
    fn nil(mut self) -> Self {
        self.0.push(0xc0);
        self
    }
    fn ints(self, numbers: &[i64]) -> Self {
        let start = self.array(numbers.len() as u8);
        numbers.iter().fold(start, |packed, n| packed.int(*n))
    }
}

fn stored() -> Stored {
    Stored {
        blocks: vec![u64::MAX, 7],
        parent: Some(9),
        tokens: vec![1, 2, 3, 4],
        block_tokens: 2,
        full_attention: true,
        ..Stored::default()
    }
}

fn stored_array(packed: Packed) -> Packed {
    let packed = packed.array(6).text("BlockStored");
    let packed = packed.array(2).unsigned(u64::MAX).int(7);
    packed.int(9).ints(&[1, 2, 3, 4]).int(2).nil()
}

fn stored_map(packed: Packed) -> Packed {
    let packed = packed.map(9).text("type").text("BlockStored");
    let packed = packed.text("lora_name").text("sql");
    let packed = packed
        .text("extra_keys")
        .array(2)
        .array(2)
        .text("sql")
        .text("salt");
    let packed = packed.nil().text("token_ids").ints(&[1, 2, 3, 4]);
    let packed = packed.text("block_hashes").array(2);
    let packed = packed
        .bytes(&[1; 24])
        .bytes(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
    let packed = packed
        .text("parent_block_hash")
        .nil()
        .text("block_size")
        .int(2);
    packed
        .text("medium")
        .text("CPU")
        .text("novel")
        .map(1)
        .text("a")
        .array(1)
        .nil()
}

#[test]
fn batches_and_events_are_arrays_or_maps_in_any_mixture() {
    let array = stored_array(Packed::default().array(2).float(1.5).array(1));
    let batch = decode(&array.0).expect("the array form");
    assert_eq!(batch.timestamp_s, 1.5);
    assert_eq!((batch.rank, batch.unreadable), (None, 0));
    assert_eq!(batch.events, [CacheEvent::Stored(stored())]);

    let packed = Packed::default().map(3).text("ts").float(2.0);
    let packed = packed.text("data_parallel_rank").int(3);
    let packed = stored_map(packed.text("events").array(1));
    let batch = decode(&packed.0).expect("the map form");
    let wanted = Stored {
        blocks: vec![0x0101_0101_0101_0101, 5],
        parent: None,
        lora: Lora::Named("sql".into()),
        tier: Tier::Host,
        extra: vec![ExtraKeys::default().and(b"salt"), ExtraKeys::default()],
        ..stored()
    };
    assert_eq!(batch.rank, Some(3));
    assert_eq!(batch.events, [CacheEvent::Stored(wanted.clone())]);

    let packed = stored_map(Packed::default().array(3).float(2.0).array(1)).int(1);
    let batch = decode(&packed.0).expect("an array of maps");
    assert_eq!(batch.rank, Some(1));
    assert_eq!(batch.events, [CacheEvent::Stored(wanted)]);
}

#[test]
fn other_events_are_read_and_those_that_cannot_be_cost_nothing_but_themselves() {
    let packed = Packed::default().array(2).float(0.0).array(7);
    let packed = packed.array(2).text("BlockRemoved").ints(&[-1]);
    let packed = packed.array(1).text("AllBlocksCleared");
    // Tokens that are not enough for the blocks, a kind that is not known, a number, no tag at all.
    let packed = packed
        .array(5)
        .text("BlockStored")
        .ints(&[1, 2])
        .nil()
        .ints(&[1, 2, 3])
        .int(2);
    let packed = packed
        .array(2)
        .text("BlockPainted")
        .ints(&[1])
        .int(4)
        .array(0);
    let packed = packed.map(3).text("type").text("BlockRemoved");
    let packed = packed
        .text("block_hashes")
        .ints(&[6])
        .text("group_idx")
        .int(2);
    let batch = decode(&packed.0).expect("a batch");
    let removed = |name, group| {
        CacheEvent::Removed(Removed {
            blocks: vec![name],
            tier: Tier::Device,
            group,
        })
    };
    assert_eq!(batch.unreadable, 4);
    assert_eq!(
        batch.events,
        [removed(u64::MAX, 0), CacheEvent::Cleared, removed(6, 2)]
    );
}

#[test]
fn blocks_of_sliding_windows_are_told_apart_and_copies_have_no_tokens() {
    let packed = Packed::default().array(2).float(0.0).array(2);
    let packed = packed
        .map(5)
        .text("type")
        .text("BlockStored")
        .text("block_hashes")
        .ints(&[1]);
    let packed = packed
        .text("token_ids")
        .ints(&[])
        .text("block_size")
        .int(16);
    let packed = packed.text("kv_cache_spec_kind").text("sliding_window");
    let packed = packed
        .array(7)
        .text("BlockStored")
        .ints(&[1])
        .nil()
        .ints(&[])
        .int(16);
    let batch = decode(&packed.nil().text("CPU").0).expect("a batch");
    let event = |at: usize| match &batch.events[at] {
        CacheEvent::Stored(stored) => (stored.full_attention, stored.tier, stored.tokens.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(event(0), (false, Tier::Device, 0));
    assert_eq!(event(1), (true, Tier::Host, 0));
}

#[test]
fn what_is_no_batch_is_refused_and_claims_of_length_allocate_nothing() {
    let check = |bytes: &[u8], error| assert_eq!(decode(bytes), Err(error));
    check(&[], BatchError::Truncated);
    check(&[0x07], BatchError::Shape("neither an array nor a map"));
    check(&[0x91, 0x00], BatchError::Shape("it has no events"));
    check(
        &[0x92, 0x00, 0x00],
        BatchError::Shape("events are no array"),
    );
    check(
        &[0x92, 0x00, 0xdd, 0xff, 0xff, 0xff, 0xff],
        BatchError::Truncated,
    );
    let mut deep = vec![0x92, 0x00, 0x91];
    deep.extend([0x91; 100]);
    deep.push(0);
    check(&deep, BatchError::TooDeep);
    // An event whose list of hashes claims 2^32 of them.
    let mut lies = Packed::default().array(2).float(0.0).array(1);
    lies.0
        .extend([0x92, 0xa1, b'x', 0xdd, 0xff, 0xff, 0xff, 0xff]);
    check(&lies.0, BatchError::Truncated);
}

#[test]
fn gaps_echoes_and_restarts_are_told_apart() {
    let mut sequence = Sequence::default();
    assert_eq!(sequence.judge(4, b"e"), Verdict::Gap { from: 0 });
    assert_eq!(sequence.judge(0, b"a"), Verdict::Next);
    assert_eq!(sequence.judge(1, b"b"), Verdict::Next);
    assert_eq!(sequence.judge(1, b"b"), Verdict::Seen);
    assert_eq!(sequence.judge(3, b"d"), Verdict::Gap { from: 1 });
    assert_eq!(sequence.ask_from(), 1);
    assert_eq!(sequence.judge(2, b"c"), Verdict::Next);
    assert_eq!(sequence.judge(1, b"b"), Verdict::Seen);
    // The same number with another payload, or zero again: another process.
    assert_eq!(sequence.judge(2, b"x"), Verdict::Restarted);
    assert_eq!(sequence.judge(0, b"a"), Verdict::Restarted);
    sequence.reset();
    assert_eq!(sequence.judge(0, b"a"), Verdict::Next);
    sequence.resume_at(70, b"z");
    assert_eq!(sequence.judge(71, b"y"), Verdict::Next);
}

#[test]
fn topics_name_a_pod_and_a_model() {
    let check = |topic, parts| assert_eq!(topic_parts(topic), parts);
    check(
        "kv@10.0.0.1:8000@org/model",
        Some(("10.0.0.1:8000", "org/model")),
    );
    check("kv@pod", None);
    check("", None);
}
