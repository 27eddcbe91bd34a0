//! Predicted latency: a pick with and without it in pools of 100 and 1,000 endpoints, each of which has
//! answered, and what learning from one exchange costs. The prompt is not in any cache, so that every
//! endpoint is predicted.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use forebay_decide::{Ask, End, EndKind, PoolState, Rng};
use forebay_model::picker::{Scorer, WeightedScorer};
use forebay_model::{
    AppProtocol, Endpoint, Load, Moment, ObjectName, PickerConfig, Pool, Role, Topology,
};

fn pool(endpoints: u16, picker: PickerConfig) -> Pool {
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
        picker,
        objectives: Default::default(),
        external: None,
        rewrites: Vec::new(),
    }
}

fn ask(prompt_tokens: u32) -> Ask<'static> {
    Ask {
        prompt_tokens,
        stream: true,
        ..Ask::default()
    }
}

fn exchange(state: &mut PoolState, to: SocketAddr, tokens: u32, now: Moment) -> Moment {
    let mut flight = state.begin(&ask(tokens), to, now);
    let first = Moment::from_micros(now.as_micros() + 20_000 + u64::from(tokens) * 40);
    state.first_byte(&mut flight, first);
    let last = Moment::from_micros(first.as_micros() + 1_000_000);
    let end = End {
        output_tokens: Some(100),
        ..End::plain(EndKind::Served)
    };
    state.finish(flight, end, last);
    last
}

/// A pool in which each endpoint has answered ten times.
fn at_work(endpoints: u16, scorer: Scorer) -> PoolState {
    let picker = PickerConfig {
        scorers: vec![WeightedScorer {
            scorer,
            weight: 1.0,
        }],
        ..PickerConfig::default()
    };
    let pool = pool(endpoints, picker);
    let mut state = PoolState::new(&pool, Moment::ORIGIN);
    let mut rng = Rng::seeded(1);
    let mut now = Moment::ORIGIN;
    for endpoint in &pool.endpoints {
        for _ in 0..10 {
            let tokens = 100 + rng.below(8_000) as u32;
            now = now.max(exchange(
                &mut state,
                endpoint.address,
                tokens,
                Moment::ORIGIN,
            ));
        }
        let load = Load {
            waiting: Some(rng.below(4) as u32),
            running: Some(rng.below(100) as u32),
            kv_used: Some(rng.below(100) as f32 / 100.0),
            ..Load::default()
        };
        state.scraped(endpoint.address, load, now);
    }
    assert!(state.prediction_accuracy().ready);
    state
}

fn predict(c: &mut Criterion) {
    let mut group = c.benchmark_group("predict");
    for endpoints in [100, 1_000] {
        for (name, scorer) in [
            ("without", Scorer::TokenLoad),
            ("added_delay", Scorer::AddedDelay),
        ] {
            let mut state = at_work(endpoints, scorer);
            let mut rng = Rng::seeded(2);
            let now = Moment::from_millis(20_000);
            group.bench_function(format!("{name}/{endpoints}"), |b| {
                b.iter(|| black_box(state.choose(&ask(2_000), now, &mut rng)));
            });
            let to = SocketAddr::from(([10, 0, 0, 1], 1_000));
            group.bench_function(format!("{name}_exchange/{endpoints}"), |b| {
                b.iter(|| black_box(exchange(&mut state, to, 2_000, now)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, predict);
criterion_main!(benches);
