//! A week of prompts that nobody has sent before, as fast as it goes: ten a second, four endpoints
//! that tell of their caches, what they store and what they evict for it. Prints what the pool's state
//! takes in memory at the end of each day; it must not grow once the caches are full.
//!
//! `cargo bench -p forebay-decide --bench week`, about a minute or two.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use forebay_decide::{Ask, BlockHash, End, EndKind, Following, PoolState, Rng, TokenChain};
use forebay_model::kv::{CacheEvent, Removed, Stored};
use forebay_model::picker::PrecisePrefix;
use forebay_model::{
    AppProtocol, Endpoint, Load, Moment, ObjectName, PickerConfig, Pool, Role, Topology,
};

const DAYS: u64 = 7;
const PER_DAY: u64 = 10 * 86_400;
const ENDPOINTS: u8 = 4;
/// Tokens of a prompt: 2 KB.
const TOKENS: usize = 512;
const BLOCK_TOKENS: u32 = 16;
/// Blocks of a server's cache: an 8B model beside its weights on 80 GB.
const CACHE_BLOCKS: usize = 27_000;

fn pool() -> Pool {
    let endpoint = |n: u8| Endpoint {
        address: SocketAddr::from(([10, 0, 0, n], 8000)),
        pod: "pod".into(),
        labels: std::sync::Arc::default(),
        engine: None,
        role: Role::Both,
        topology: Topology::default(),
        ready: true,
    };
    Pool {
        name: ObjectName::new("default", "week"),
        endpoints: (1..=ENDPOINTS).map(endpoint).collect(),
        protocol: AppProtocol::Http,
        picker: PickerConfig {
            precise_prefix: Some(PrecisePrefix::default()),
            ..PickerConfig::default()
        },
        objectives: BTreeMap::new(),
        external: None,
        rewrites: Vec::new(),
    }
}

/// A server's cache: what it stored, oldest first.
#[derive(Default)]
struct Cache {
    blocks: VecDeque<u64>,
    next: u64,
}

impl Cache {
    fn serve(&mut self, tokens: &[u32]) -> Vec<CacheEvent> {
        let count = tokens.len() / BLOCK_TOKENS as usize;
        let blocks: Vec<u64> = (self.next..).take(count).collect();
        self.next += count as u64;
        let excess = (self.blocks.len() + count).saturating_sub(CACHE_BLOCKS);
        let removed = self.blocks.drain(..excess).collect();
        self.blocks.extend(&blocks);
        let removed = Removed {
            blocks: removed,
            ..Removed::default()
        };
        let stored = Stored {
            blocks,
            tokens: tokens.to_vec(),
            block_tokens: BLOCK_TOKENS,
            full_attention: true,
            ..Stored::default()
        };
        vec![CacheEvent::Removed(removed), CacheEvent::Stored(stored)]
    }
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

fn main() {
    let pool = pool();
    let mut state = PoolState::new(&pool, Moment::ORIGIN);
    let mut caches: BTreeMap<SocketAddr, Cache> = BTreeMap::new();
    for endpoint in &pool.endpoints {
        state.kv_follow(endpoint.address, Following::Wholly);
        caches.insert(endpoint.address, Cache::default());
    }
    let mut rng = Rng::seeded(7);
    let mut chains: Vec<TokenChain> = Vec::new();
    let mut tokens = vec![0_u32; TOKENS];
    let mut prefix = vec![BlockHash(0); TOKENS * 4 / 256];
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let (mut after_first, mut unique) = (0, 0_u64);
    for day in 1..=DAYS {
        for _ in 0..PER_DAY {
            unique += 1;
            let now = Moment::from_millis(unique * 100);
            for (at, token) in tokens.iter_mut().enumerate() {
                *token = (unique.wrapping_mul(0x9e37_79b9) as u32).wrapping_add(at as u32);
            }
            for (at, block) in (0..).zip(prefix.iter_mut()) {
                *block = BlockHash((unique << 8 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            }
            let plan = state.token_plan(None).unwrap_or_default();
            plan.hash(&tokens, None, &mut chains);
            let ask = Ask {
                prefix: &prefix,
                tokens: &chains,
                prompt_tokens: TOKENS as u32,
                ..Ask::default()
            };
            let pick = state.choose(&ask, now, &mut rng).expect("an endpoint");
            let address = pick.winner().address;
            let mut flight = state.begin(&ask, address, now);
            let events = caches
                .get_mut(&address)
                .expect("an endpoint")
                .serve(&tokens);
            state.kv_apply(address, &events);
            state.first_byte(&mut flight, now);
            state.finish(flight, End::plain(EndKind::Served), now);
            if unique.is_multiple_of(10) {
                state.scraped(address, Load::default(), now);
            }
        }
        let held: usize = state
            .view(Moment::ORIGIN)
            .filter_map(|v| v.kv)
            .map(|kv| kv.blocks)
            .sum();
        println!(
            "day {day}: {unique} prompts, {held} blocks told of, indices {:.1} MiB, resident {:.1} MiB",
            mib(state.prefix_bytes()),
            mib(resident_bytes() as usize),
        );
        match day {
            1 => after_first = state.prefix_bytes(),
            _ => assert!(
                state.prefix_bytes() <= after_first,
                "grown since the first day"
            ),
        }
    }
}
