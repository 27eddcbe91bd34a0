//! Worlds as text, picks as text. See `world` for the notation.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_model::load::LoraLoad;
use forebay_model::picker::{PickerConfig, PickerKind, Scorer, WeightedScorer};
use forebay_model::{AppProtocol, Endpoint, Load, Moment, ObjectName, Pool, Role, Topology};

use crate::*;

mod admission;
mod events;
mod profiles;
mod scenarios;
mod tables;

/// The address of endpoint `a`, `b`, ...
fn address(name: char) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, name as u8 - b'a' + 1], 8000))
}

fn letter(address: SocketAddr) -> char {
    match address {
        SocketAddr::V4(v4) => char::from(v4.ip().octets()[3] - 1 + b'a'),
        SocketAddr::V6(_) => '?',
    }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint {
        address,
        pod: "pod".into(),
        labels: Arc::default(),
        engine: None,
        role: Role::Both,
        topology: Topology::default(),
        ready: true,
    }
}

fn pool_of(addresses: impl IntoIterator<Item = SocketAddr>, picker: PickerConfig) -> Pool {
    Pool {
        name: ObjectName::new("chat", "deepseek"),
        endpoints: addresses.into_iter().map(endpoint).collect(),
        protocol: AppProtocol::Http,
        picker,
        objectives: Default::default(),
        external: None,
        rewrites: Vec::new(),
    }
}

fn only(scorers: &[(Scorer, f32)]) -> PickerConfig {
    let weighted = |(scorer, weight): &(Scorer, f32)| WeightedScorer {
        scorer: scorer.clone(),
        weight: *weight,
    };
    PickerConfig {
        scorers: scorers.iter().map(weighted).collect(),
        sticky_share: 1.0,
        ..PickerConfig::default()
    }
}

fn ms(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

/// Builds a pool from words like `a:3/0.2`: endpoint a, three requests waiting, a fifth of its KV
/// cache in use. `-` is a number that the server does not report, a word without a colon an
/// endpoint that was never scraped, a `!` in front one that is not ready.
fn world(text: &str, picker: PickerConfig) -> PoolState {
    let names = text.split_whitespace().map(|w| w.trim_start_matches('!'));
    let names = names.map(|w| w.chars().next().unwrap());
    let mut pool = pool_of(names.map(address), picker);
    for (endpoint, word) in pool.endpoints.iter_mut().zip(text.split_whitespace()) {
        endpoint.ready = !word.starts_with('!');
    }
    let mut state = PoolState::new(&pool, ms(0));
    for word in text.split_whitespace() {
        let word = word.trim_start_matches('!');
        if let Some((name, load)) = word.split_once(':') {
            let (waiting, kv) = load.split_once('/').unwrap();
            let load = Load {
                waiting: waiting.parse().ok(),
                kv_used: kv.parse().ok(),
                ..Load::default()
            };
            state.scraped(address(name.chars().next().unwrap()), load, ms(0));
        }
    }
    state
}

/// The endpoints of a pick by name, or the refusal.
fn picked(state: &PoolState, ask: &Ask<'_>, now: Moment, seed: u64) -> String {
    match state.choose(ask, now, &mut Rng::seeded(seed)) {
        Ok(pick) => pick.order.iter().fold(String::new(), |mut text, choice| {
            let gap = if text.is_empty() { "" } else { " " };
            write!(text, "{gap}{}", letter(choice.address)).unwrap();
            text
        }),
        Err(refusal) => format!("refused: {refusal}"),
    }
}

fn begin(state: &mut PoolState, name: char, ask: &Ask<'_>, now: Moment) -> Flight {
    state.begin(ask, address(name), now)
}

fn prompt(text: &[u8]) -> Vec<BlockHash> {
    let mut hashes = Vec::new();
    let seed = ChainSeed {
        model: "m",
        cache_salt: None,
    };
    chain(seed, std::iter::once(text), 256, 2048, &mut hashes);
    hashes
}

/// A prompt of so many tokens (four bytes each) that starts like no other of another `id`.
fn long_prompt(id: u8, tokens: usize) -> Vec<BlockHash> {
    prompt(&vec![id; tokens * 4])
}

fn served() -> End {
    End::plain(EndKind::Served)
}

fn failed(kind: FailureKind) -> End {
    End::plain(EndKind::Failed(kind))
}
