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
        Self::start_with(count, more, "simulated", &[])
    }

    fn start_with(count: u8, more: &[&str], tokenizer: &str, gateway: &[&str]) -> Self {
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
        let world = World::start_with_all(count, &arguments, gateway);
        let picker = format!(
            "'{{precisePrefix: {{port: {port}, replayPort: {replay_port}, tokenizer: {tokenizer}}}}}'"
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

/// A small tokenizer: every byte is a token, and some pairs are one.
fn write_tokenizer(folder: &std::path::Path) {
    // The alphabet of byte-level tokenizers, as far as the test's texts need it.
    let mut vocabulary: serde_json::Map<String, Value> = serde_json::Map::new();
    let characters = ('!'..='~').map(String::from).chain(["\u{120}".to_owned()]);
    let pairs = ["00", "01", "<|", "|>"].map(str::to_owned);
    for token in characters.chain(pairs) {
        let id = vocabulary.len();
        vocabulary.insert(token, json!(id));
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": vocabulary,
            "merges": [["0", "0"], ["0", "1"], ["<", "|"], ["|", ">"]]},
    });
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|a|>";
    let config = json!({"chat_template": template});
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("a file");
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("a file");
}

#[test]
fn chats_are_rendered_and_tokenized_as_the_server_does_it() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let folder = root.path().join("small");
    std::fs::create_dir(&folder).expect("a folder");
    write_tokenizer(&folder);
    let (root, own) = (root.path().to_str(), folder.to_str());
    let gateway = ["--tokenizers", root.expect("UTF-8")];
    let sims = [
        "--tokenizer",
        own.expect("UTF-8"),
        "--max-model-len",
        "2000",
    ];
    let bed = Bed::start_with(2, &sims, "small", &gateway);
    let text = "0100 001 0<|x|> ".repeat(60);
    let body = json!({"model": "sim", "max_tokens": 1, "messages": [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "user", "content": text},
    ]});
    let second = bed.world.servers[1];
    let line = "POST /v1/chat/completions HTTP/1.1\r\n";
    let answer = exchange(second, line, &body.to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    bed.wait_for_blocks(second, |blocks| blocks > 20);
    wait_for(
        "the tokenizer is ready, and the server's blocks are recognised",
        || {
            let line = "POST /v1/chat/completions HTTP/1.1\r\nx-request-id: chat\r\n";
            let answer = exchange(bed.world.address(), line, &body.to_string());
            assert_eq!(answer.status, 200, "{answer:?}");
            let decision = bed.world.admin_json("/debug/decisions?id=chat")[0].clone();
            let (knowledge, hit) = hit(&decision["pick"]["endpoints"][1]);
            let prompt = decision["input_tokens"].as_u64()?;
            // All of it but what is left after the last whole block.
            (knowledge == "events" && hit == prompt / 16 * 16).then_some(())
        },
    );
    assert!(
        bed.metric("forebay_tokenizations_total{pool=\"default/sims\",reason=\"exact\"}") >= 1.0
    );
}

#[test]
fn a_new_replica_begins_with_what_another_knows() {
    let token = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(token.path(), "a token that both have\n").expect("a writable file");
    let token = token.path().to_str().expect("UTF-8");
    let peer = format!("127.0.0.1:{}", free_port(1));
    let listen = ["--peer-listen", &peer, "--peer-token-file", token];
    let bed = Bed::start_with(1, &[], "simulated", &listen);
    let server = bed.world.servers[0];
    ask_server(server, 1);
    bed.wait_for_blocks(server, |blocks| blocks == 63);
    // All that the server keeps for replay is what came last: the rest is only known to the peer.
    lose(server, &json!({"forget": true}));
    ask_server(server, 2);
    bed.wait_for_blocks(server, |blocks| blocks > 63);
    let blocks_at = |admin: SocketAddr| {
        let pools = get(admin, "/debug/pools").expect("the admin server answers");
        let pools: Value = serde_json::from_str(&pools).expect("JSON");
        pools[0]["endpoints"][0]["kv_events"].clone()
    };
    let blocks = bed.blocks(server);
    let peers = ["--peers", &peer, "--peer-token-file", token];
    let (_second, admin) = bed.world.second_gateway(free_port(1), &peers);
    wait_for("the second replica knows as much", || {
        (blocks_at(admin) == json!({"following": "wholly", "blocks": blocks, "block_tokens": 16}))
            .then_some(())
    });
    let (_blind, admin) = bed.world.second_gateway(free_port(1), &[]);
    wait_for(
        "without a peer it knows what the server still tells",
        || {
            let seen = blocks_at(admin);
            (seen["following"] == "partly" && seen["blocks"].as_u64()? < blocks).then_some(())
        },
    );
    let unknown = exchange(
        peer.parse().expect("an address"),
        "GET /peer/kv-events HTTP/1.1\r\nauthorization: Bearer a token that both hav\r\n",
        "",
    );
    assert_eq!(unknown.status, 401);
}
