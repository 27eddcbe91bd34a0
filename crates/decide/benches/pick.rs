//! One pick with the default policy: a prompt of 8,000 tokens (32,000 bytes, 71 blocks) in pools of
//! 4, 100 and 1,000 endpoints, all of which hold the system prompt and some of which hold more.
//! Also what it costs to let the request in, to book it and to settle it.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use forebay_decide::{Ask, BlockHash, ChainSeed, End, EndKind, PoolState, Rng, Waiter, chain};
use forebay_model::{
    AppProtocol, Endpoint, Load, Moment, ObjectName, PickerConfig, Pool, Role, Topology,
};

const PROMPT_TOKENS: u32 = 8_000;
const NOW: Moment = Moment::from_millis(100);
const WAITER: Waiter = Waiter {
    priority: 0,
    fairness: 0,
    bytes: 32_000,
};

fn pool(endpoints: u16) -> Pool {
    let endpoint = |at| Endpoint {
        address: SocketAddr::from(([10, 0, 0, 1], 1_000 + at)),
        pod: "pod".into(),
        labels: Arc::default(),
        engine: None,
        role: Role::Both,
        topology: Topology::default(),
        ready: true,
    };
    Pool {
        name: ObjectName::new("chat", "deepseek"),
        endpoints: (0..endpoints).map(endpoint).collect(),
        protocol: AppProtocol::Http,
        picker: PickerConfig::default(),
        objectives: Default::default(),
        external: None,
        rewrites: Vec::new(),
    }
}

/// A prompt whose first `shared` blocks are the same for every `id`.
fn prompt(id: u32, shared: usize) -> Vec<BlockHash> {
    let mut text = vec![b' '; PROMPT_TOKENS as usize * 4];
    let own = id.to_le_bytes();
    for chunk in text[shared * 256..].chunks_exact_mut(4) {
        chunk.copy_from_slice(&own);
    }
    let mut hashes = Vec::new();
    let seed = ChainSeed {
        model: "deepseek",
        cache_salt: None,
    };
    chain(seed, std::iter::once(&text[..]), 256, 2_048, &mut hashes);
    hashes
}

fn ask(prefix: &[BlockHash]) -> Ask<'_> {
    Ask {
        model: Some("deepseek"),
        prefix,
        prompt_tokens: PROMPT_TOKENS,
        session: Some(7),
        stream: true,
        ..Ask::default()
    }
}

/// A pool at work: each endpoint was scraped, serves some, and holds the system prompt (16 blocks)
/// and ten conversations.
fn at_work(endpoints: u16) -> PoolState {
    let pool = pool(endpoints);
    let mut state = PoolState::new(&pool, Moment::ORIGIN);
    let mut rng = Rng::seeded(1);
    for (at, endpoint) in pool.endpoints.iter().enumerate() {
        for conversation in 0..10 {
            let prompt = prompt(at as u32 * 10 + conversation, 16);
            let mut flight = state.begin(&ask(&prompt), endpoint.address, Moment::ORIGIN);
            state.first_byte(&mut flight, Moment::from_millis(50));
            state.finish(flight, End::plain(EndKind::Served), NOW);
        }
        let load = Load {
            waiting: Some(rng.below(4) as u32),
            running: Some(rng.below(100) as u32),
            kv_used: Some(rng.below(100) as f32 / 100.0),
            block_tokens: Some(16),
            blocks: Some(20_000),
            ..Load::default()
        };
        state.scraped(endpoint.address, load, NOW);
    }
    state
}

fn pick(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for endpoints in [4, 100, 1_000] {
        let mut state = at_work(endpoints);
        let mut rng = Rng::seeded(2);
        // What a request adds that need not wait.
        group.bench_function(format!("admit/{endpoints}"), |b| {
            b.iter(|| black_box(state.offer(black_box(WAITER), NOW)));
        });
        group.bench_function(format!("no_prompt/{endpoints}"), |b| {
            b.iter(|| black_box(state.choose(&ask(&[]), NOW, &mut rng)));
        });
        // What everybody holds a part of: scored on all endpoints.
        let prompts: Vec<_> = (0..64).map(|id| prompt(1_000_000 + id, 16)).collect();
        let mut turn = 0;
        group.bench_function(format!("new_conversation/{endpoints}"), |b| {
            b.iter(|| {
                turn = (turn + 1) % prompts.len();
                black_box(state.choose(&ask(&prompts[turn]), NOW, &mut rng))
            });
        });
        // What one endpoint holds: the sticky filter leaves that one.
        let prompts: Vec<_> = (0..64).map(|id| prompt(id * 7, 16)).collect();
        group.bench_function(format!("known_conversation/{endpoints}"), |b| {
            b.iter(|| {
                turn = (turn + 1) % prompts.len();
                black_box(state.choose(&ask(&prompts[turn]), NOW, &mut rng))
            });
        });
        group.bench_function(format!("whole_exchange/{endpoints}"), |b| {
            b.iter_batched(
                || (),
                |()| {
                    turn = (turn + 1) % prompts.len();
                    let ask = ask(&prompts[turn]);
                    let pick = state.choose(&ask, NOW, &mut rng).expect("all are ready");
                    let mut flight = state.begin(&ask, pick.winner().address, NOW);
                    state.first_byte(&mut flight, NOW);
                    state.finish(flight, End::plain(EndKind::Served), NOW);
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, pick);
criterion_main!(benches);
