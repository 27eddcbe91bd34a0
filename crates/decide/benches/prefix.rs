//! Hashing a prompt of 32 KB, and the prefix index with a million blocks: what it takes in memory,
//! what an insertion and a match cost.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay_decide::prefix::{PrefixIndex, base_blocks};
use forebay_decide::{BlockHash, ChainSeed, chain};

const BLOCKS: u64 = 1_000_000;
const CHAIN: u64 = 128;
const ENDPOINTS: u64 = 100;

fn hashing(c: &mut Criterion) {
    let text: Vec<u8> = (0..32_768_u32).map(|i| (i % 251) as u8).collect();
    let mut out = Vec::new();
    let mut group = c.benchmark_group("chain");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for (name, span) in [("one_span", text.len()), ("spans_of_1000", 1_000)] {
        group.bench_function(format!("32_kib/{name}"), |b| {
            b.iter(|| {
                let seed = ChainSeed {
                    model: "deepseek",
                    cache_salt: None,
                };
                chain(seed, text.chunks(span), 256, 2_048, &mut out);
                black_box(out.len())
            });
        });
    }
    group.finish();
}

/// Chain `id`: its first quarter is shared by groups of eight.
fn numbered(id: u64) -> Vec<BlockHash> {
    let hash = |of: u64, i: u64| {
        let z = (of * 1_000_003 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        BlockHash((z ^ (z >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9))
    };
    (0..CHAIN)
        .map(|i| {
            hash(
                if i < CHAIN / 4 {
                    (1 << 40) | (id / 8)
                } else {
                    id
                },
                i,
            )
        })
        .collect()
}

/// Resident memory of this process.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark may look at its own process"
)]
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    pages.unwrap_or(0) * 4_096
}

fn index(c: &mut Criterion) {
    let before = resident_bytes();
    let mut index = PrefixIndex::new(100 << 20);
    for slot in 0..ENDPOINTS as u16 {
        let chains = (BLOCKS / ENDPOINTS).div_ceil(CHAIN) as usize;
        index.set_capacity(slot, chains * base_blocks(CHAIN as usize));
    }
    let mut id = 0;
    // Twice over, so that every endpoint is full.
    while id < 2 * BLOCKS / CHAIN {
        index.hold((id % ENDPOINTS) as u16, &numbered(id));
        id += 1;
    }
    println!(
        "prefix index: {} blocks on {ENDPOINTS} endpoints, {:.1} MiB by its own count, {:.1} MiB \
         more resident memory",
        index.holds(),
        index.bytes() as f64 / f64::from(1 << 20),
        (resident_bytes() - before) as f64 / f64::from(1 << 20),
    );
    let mut group = c.benchmark_group("index_of_a_million_blocks");
    let mut depths = vec![0; ENDPOINTS as usize];
    let known: Vec<_> = (0..4_096).map(|i| numbered(id - 1 - i)).collect();
    let mut turn = 0;
    group.bench_function("match_128_blocks", |b| {
        b.iter(|| {
            turn = (turn + 1) % known.len();
            index.matches(&known[turn], &mut depths);
            black_box(depths[0])
        });
    });
    group.bench_function("touch_128_blocks", |b| {
        b.iter(|| {
            turn = (turn + 1) % known.len();
            let slot = (id - 1 - turn as u64) % ENDPOINTS;
            black_box(index.hold(slot as u16, &known[turn]))
        });
    });
    group.bench_function("insert_128_blocks_and_evict_as_many", |b| {
        b.iter_batched(
            || {
                id += 1;
                ((id % ENDPOINTS) as u16, numbered(id))
            },
            |(slot, chain)| black_box(index.hold(slot, &chain)),
            criterion::BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, hashing, index);
criterion_main!(benches);
