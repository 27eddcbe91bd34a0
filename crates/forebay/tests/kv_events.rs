//! What servers say of their caches, all the way: simulated servers publish it over ZMQ, the gateway
//! subscribes, and requests go where the prompt really is. Servers are also asked directly here, so
//! that nothing but their events can tell the gateway.

mod support;

use std::net::SocketAddr;

use serde_json::{Value, json};
use support::{World, exchange, free_port, get, manifests_with, wait_for};

/// Tokens of the simulated servers' cache: room for two of [`prompt`], and no more.
const KV_BLOCKS: &str = "160";
/// Tokens of a prompt, 63 whole blocks of 16 among them.
const PROMPT_TOKENS: u64 = 1_017;

/// A prompt of [`PROMPT_TOKENS`] of the simulated tokenizer: what sets it apart, and four bytes for
/// each token but the first.
fn prompt(number: u32) -> String {
    let text = format!("{number:04}").repeat(PROMPT_TOKENS as usize - 1);
    assert_eq!(text.len() as u64, (PROMPT_TOKENS - 1) * 4);
    text
}

struct Bed {
    world: World,
}

impl Bed {
    fn start(count: u8, more: &[&str]) -> Self {
        let (port, replay_port) = (free_port(count), free_port(count));
        let (port_text, replay_text) = (port.to_string(), replay_port.to_string());
        let mut arguments = vec![
            "--kv-events-port",
            &port_text,
            "--kv-replay-port",
            &replay_text,
        ];
        arguments.extend(["--kv-blocks", KV_BLOCKS]);
        arguments.extend(more);
        let world = World::start_with(count, &arguments);
        let picker = format!(
            "'{{precisePrefix: {{port: {port}, replayPort: {replay_port}, tokenizer: simulated}}}}'"
        );
        world.write(&manifests_with(world.port, &world.servers, "", &picker));
        let bed = Self { world };
        for server in &bed.world.servers {
            wait_for("the server's events are followed", || {
                (bed.following(*server) == "wholly").then_some(())
            });
        }
        bed
    }

    fn following(&self, server: SocketAddr) -> String {
        let following = &self.world.endpoint(server)["kv_events"]["following"];
        following.as_str().unwrap_or_default().to_owned()
    }

    /// The server's blocks as the gateway knows them.
    fn blocks(&self, server: SocketAddr) -> u64 {
        let blocks = &self.world.endpoint(server)["kv_events"]["blocks"];
        blocks.as_u64().unwrap_or(0)
    }

    fn wait_for_blocks(&self, server: SocketAddr, enough: impl Fn(u64) -> bool) {
        wait_for("the gateway knows the server's blocks", || {
            enough(self.blocks(server)).then_some(())
        });
    }

    /// Asks through the gateway; what the decision says of each server, in their order.
    fn ask(&self, id: &str, number: u32) -> Vec<Value> {
        let line = format!("POST /v1/completions HTTP/1.1\r\nx-request-id: {id}\r\n");
        let answer = exchange(self.world.address(), &line, &body(number));
        assert_eq!(answer.status, 200, "{answer:?}");
        let decision = wait_for("the decision", || {
            let decisions = self.world.admin_json(&format!("/debug/decisions?id={id}"));
            decisions.get(0).cloned()
        });
        let considered = decision["pick"]["endpoints"].as_array();
        considered.cloned().expect("a report")
    }

    fn metric(&self, name: &str) -> f64 {
        let page = get(self.world.admin, "/metrics").expect("the admin server answers");
        let lines = page.lines().filter(|line| line.starts_with(name));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum()
    }
}

fn body(number: u32) -> String {
    json!({"model": "sim", "prompt": prompt(number), "max_tokens": 1}).to_string()
}

/// Asks a server without the gateway.
fn ask_server(server: SocketAddr, number: u32) {
    let answer = exchange(server, "POST /v1/completions HTTP/1.1\r\n", &body(number));
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn lose(server: SocketAddr, what: &Value) {
    let answer = exchange(
        server,
        "POST /sim/kv-events HTTP/1.1\r\n",
        &what.to_string(),
    );
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn hit(considered: &Value) -> (&str, u64) {
    let knowledge = considered["knowledge"].as_str().unwrap_or_default();
    (knowledge, considered["hit_tokens"].as_u64().unwrap_or(0))
}

#[test]
fn requests_follow_prompts_into_caches_and_out_of_them() {
    for format in ["map", "array"] {
        let bed = Bed::start(2, &["--kv-events-format", format]);
        let second = bed.world.servers[1];
        // The gateway has not sent this anywhere.
        ask_server(second, 1);
        bed.wait_for_blocks(second, |blocks| blocks == 63);
        let considered = bed.ask("told", 1);
        assert_eq!(hit(&considered[1]), ("events", 63 * 16), "{format}");
        assert_eq!(hit(&considered[0]), ("events", 0), "{format}");
        // Others push it out: by what was sent it would still be there.
        for number in 2..6 {
            ask_server(second, number);
        }
        wait_for("the last of them is known", || {
            let considered = bed.ask("last", 5);
            (hit(&considered[1]) == ("events", 63 * 16)).then_some(())
        });
        let considered = bed.ask("evicted", 1);
        assert_eq!(hit(&considered[1]), ("events", 0), "{format}");
        // Wherever that went, it is there now.
        let considered = bed.ask("again", 1);
        let hits: Vec<_> = considered.iter().map(hit).collect();
        assert!(hits.contains(&("events", 63 * 16)), "{format}: {hits:?}");
    }
}

#[test]
fn missed_events_are_had_again_and_those_that_cannot_be_are_said_to_be_missing() {
    let bed = Bed::start(1, &[]);
    let server = bed.world.servers[0];
    ask_server(server, 1);
    bed.wait_for_blocks(server, |blocks| blocks == 63);
    lose(server, &json!({"drop": 1}));
    ask_server(server, 2);
    // The batch after the lost one shows the gap.
    ask_server(server, 3);
    wait_for("the gap is noticed", || {
        let gaps = "forebay_kv_event_interruptions_total{pool=\"default/sims\",reason=\"gap\"}";
        (bed.metric(gaps) >= 1.0).then_some(())
    });
    wait_for("the gap is healed", || {
        let considered = bed.ask("healed", 2);
        (hit(&considered[0]) == ("events", 63 * 16)).then_some(())
    });
    assert_eq!(bed.following(server), "wholly");

    // What is missed now, is not kept either.
    lose(server, &json!({"drop": 1000, "forget": false}));
    ask_server(server, 4);
    lose(server, &json!({"drop": 0, "forget": true}));
    ask_server(server, 5);
    wait_for("the loss is said", || {
        (bed.following(server) == "partly").then_some(())
    });
    assert!(bed.metric("forebay_kv_event_interruptions_total") >= 2.0);
    assert!(bed.metric("forebay_endpoint_kv_events_followed") == 0.5);
    let considered = bed.ask("lost", 7);
    assert_eq!(hit(&considered[0]), ("events-in-part", 0));
}
