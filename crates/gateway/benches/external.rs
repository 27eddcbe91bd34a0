//! What a picker outside costs the gateway: CPU time of its worker per request, by the kernel's books,
//! without a picker, with one that sees heads alone, and with one that everything goes through.
//!
//! `cargo bench -p forebay-gateway --bench external`. Client, endpoint and picker are threads of the same
//! process; only the worker's own time counts, so their speed does not show.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/picker/mod.rs"]
mod picker;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use forebay_gateway::external::Settings as PickerSettings;
use forebay_gateway::settings::Settings;
use forebay_model::pool::{ExternalPicker, FailureMode, PickerTransport};
use forebay_model::{ObjectName, Pool};
use picker::Picker;

const CONNECTIONS: usize = 16;
const REQUESTS: usize = 8_000;
const ROUNDS: usize = 5;

/// Nanoseconds that this process's worker has run.
fn worker_cpu() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| {
            let path = task.ok()?.path();
            let name = std::fs::read_to_string(path.join("comm")).ok()?;
            let stat = std::fs::read_to_string(path.join("schedstat")).ok()?;
            name.starts_with("worker-")
                .then(|| stat.split(' ').next()?.parse::<u64>().ok())?
        })
        .sum()
}

/// Microseconds of the worker per request to `world`.
fn measure(world: &World, request: &str) -> f64 {
    let before = worker_cpu();
    let left = AtomicUsize::new(REQUESTS);
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut client = world.client();
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                    .is_ok()
                {
                    client.send(request);
                    assert_eq!(client.response("POST").status(), 200);
                }
            });
        }
    });
    (worker_cpu() - before) as f64 / 1e3 / REQUESTS as f64
}

/// The middle one of some rounds; a world at a time, so that there is one worker to count.
fn median(endpoint: &Upstream, picker: Option<(&Picker, bool)>, body: &str) -> f64 {
    let external = picker.map(|(picker, _)| ExternalPicker {
        service: ObjectName::new("default", "epp"),
        port: 9002,
        endpoints: vec![picker.address],
        failure_mode: FailureMode::FailClose,
        transport: PickerTransport::Plaintext,
    });
    let settings = Settings {
        picker: PickerSettings {
            response_bodies: picker.is_some_and(|(_, bodies)| bodies),
            ..PickerSettings::default()
        },
        drain_timeout: Duration::from_secs(1),
        ..settings()
    };
    let target = to_pool(Pool {
        external,
        ..pool_of("pool", &[endpoint.address])
    });
    let world = World::with(settings, vec![entry("/", rule(vec![target]))]);
    let fields = format!("x-pick: {}\r\n", endpoint.address);
    let request = post_with("/v1/chat/completions", &fields, body);
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| measure(&world, &request)).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn main() {
    let body = format!(
        r#"{{"model":"tiny","messages":[{{"role":"user","content":"{}"}}]}}"#,
        "x".repeat(1_900)
    );
    let answer = format!(r#"{{"choices":[],"pad":"{}"}}"#, "y".repeat(600));
    let event = chunk("data: {\"choices\":[{\"delta\":{\"content\":\"tok\"}}]}\n\n");
    let stream = format!("{SSE_HEAD}{}0\r\n\r\n", event.repeat(50));
    for (what, answer) in [
        ("2 KB request, 0.6 KB answer", ok(&answer)),
        ("50 events at once", stream),
    ] {
        let endpoint = Upstream::start(move |side| {
            // Without keeping what was seen.
            while side.peer.message(None).is_some() {
                side.send(&answer);
            }
        });
        let picker = Picker::forgetful();
        println!("{what}");
        for (name, picker) in [
            ("no picker outside", None),
            ("picker sees heads of responses", Some((&picker, false))),
            ("picker sees everything", Some((&picker, true))),
        ] {
            println!(
                "  {name:32} {:6.1} µs CPU per request",
                median(&endpoint, picker, &body)
            );
        }
    }
}
