//! No text breaks the reader of picker configurations; what holds can be written and read again, and
//! picks endpoints without breaking.
#![no_main]

use std::net::SocketAddr;
use std::sync::Arc;

use forebay_api::picker_config;
use forebay_decide::{Ask, PoolState, Rng};
use forebay_model::{
    AppProtocol, Endpoint, Moment, ObjectName, PickerConfig, Pool, Role, Topology,
};
use libfuzzer_sys::fuzz_target;

fn endpoint(at: u8) -> Endpoint {
    let role = if at.is_multiple_of(2) { "prefill" } else { "decode" };
    Endpoint {
        address: SocketAddr::from(([10, 0, 0, at], 8000)),
        pod: "pod".into(),
        labels: Arc::new([(Role::LABEL.to_owned(), role.to_owned())].into()),
        engine: None,
        role: Role::Both,
        topology: Topology::default(),
        ready: true,
    }
}

fuzz_target!(|text: &str| {
    match picker_config::read(text) {
        Err(problems) => assert!(!problems.is_empty(), "refused for no reason"),
        Ok(loaded) => {
            let written = serde_json::to_value(&loaded.picker).expect("plain values");
            let read: PickerConfig = serde_json::from_value(written).expect("what we wrote");
            assert_eq!(read, loaded.picker);
            let pool = Pool {
                name: ObjectName::new("chat", "fuzz"),
                endpoints: (1..6).map(endpoint).collect(),
                protocol: AppProtocol::Http,
                picker: loaded.picker,
                objectives: Default::default(),
                external: None,
                rewrites: Vec::new(),
            };
            let mut state = PoolState::new(&pool, Moment::ORIGIN);
            for seed in 0..4 {
                let ask = Ask {
                    prompt_tokens: 1_000,
                    ..Ask::default()
                };
                let picked = state.choose(&ask, Moment::ORIGIN, &mut Rng::seeded(seed));
                if let Ok(pick) = picked {
                    let _in_flight = state.begin(&ask, pick.winner().address, Moment::ORIGIN);
                }
            }
        }
    }
});
