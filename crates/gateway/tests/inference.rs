//! Requests for inference pools: what is read of them, what is refused, where they go, and what
//! another endpoint makes good. Streams that break half-way are in `streams.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use forebay_model::Pool;
use forebay_model::pool::{RewriteRule, RewriteTarget};
use forebay_model::route::{MODEL_HEADER, Target, TextMatch};
use serde_json::json;

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

fn serves(side: &mut Script, _request: &Message, _nth: usize) -> bool {
    side.send(ok(r#"{"model":"tiny"}"#));
    true
}

fn body(model: &str) -> String {
    json!({"model": model, "messages": [{"role": "user", "content": "hi"}]}).to_string()
}

#[test]
fn json_that_is_none_is_refused_with_its_place() {
    let servers = fleet(1, TINY, serves);
    let world = World::to(pool(&addresses(&servers)));
    for (bad, place) in [
        (r#"{"model":}"#, "9"),
        ("", "0"),
        (r#"{"model":"a"#, "11"),
        ("[1]", "0"),
    ] {
        let got = world.ask(&post(CHAT, bad));
        let error = &got.json()["error"];
        let message = error["message"].as_str().unwrap();
        assert_eq!(got.status(), 400, "{bad:?}");
        assert_eq!(error["code"], "invalid_json");
        assert!(
            message.contains(&format!("byte {place}")),
            "{bad:?}: {message}"
        );
    }
    assert_eq!(servers[0].seen(), []);
}

#[test]
fn an_unknown_model_is_refused_with_those_that_there_are() {
    let servers = fleet(2, TINY, serves);
    let world = World::to(pool(&addresses(&servers)));
    let got = world.ask(&post(CHAT, &body("huge")));
    let error = &got.json()["error"];
    assert_eq!(got.status(), 404);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("model_not_found"), &json!("model"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("`huge`") && message.contains("tiny"),
        "{message}"
    );
    assert_eq!(world.ask(&post(CHAT, &body("tiny"))).status(), 200);
}

#[test]
fn errors_speak_the_language_of_the_path() {
    let servers = fleet(1, TINY, serves);
    let world = World::to(pool(&addresses(&servers)));
    let got = world.ask(&post_with(MESSAGES, "x-request-id: a1\r\n", &body("huge")));
    assert_eq!(got.status(), 404);
    let json = got.json();
    assert_eq!(json["type"], "error");
    assert_eq!(json["error"]["type"], "not_found_error");
    assert_eq!(json["request_id"], "a1");
    assert_eq!(
        world.ask(&post(MESSAGES, "{")).json()["error"]["type"],
        "invalid_request_error"
    );
    let got = world.ask(&post(CHAT, "{"));
    assert_eq!(got.json()["error"]["type"], "invalid_request_error");
}

#[test]
fn models_are_listed_once_for_the_whole_pool() {
    let other = r#"{"object":"list","data":[{"id":"ad","parent":"tiny"},{"id":"tiny"}]}"#;
    let (one, two) = (fleet(1, TINY, serves), fleet(1, other, serves));
    let world = World::to(pool(&[one[0].address, two[0].address, dead_address()]));
    let got = world.ask(&get("/v1/models"));
    let json = got.json();
    let ids: Vec<_> = json["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(ids, ["tiny", "ad"]);
    assert_eq!(
        got.field("content-type").as_deref(),
        Some("application/json")
    );
}

#[test]
fn two_who_ask_for_the_models_at_once_both_get_them() {
    let servers = fleet(1, TINY, serves);
    let world = World::to(pool(&addresses(&servers)));
    let mut clients: Vec<Peer> = (0..8).map(|_| world.client()).collect();
    for client in &mut clients {
        client.send(get("/v1/models"));
    }
    for mut client in clients {
        assert_eq!(client.response("GET").status(), 200);
    }
}

/// What the first request of all meets; every other one is served.
fn check_moved(meets: Serve, reason: &str, request: &str) {
    let servers = fleet(2, TINY, meets);
    let world = World::to(pool(&addresses(&servers)));
    let got = world.ask(request);
    assert_eq!(got.status(), 200, "{reason}");
    assert!(
        got.complete && got.text().contains("tiny"),
        "{reason} {got:?}"
    );
    let record = world.record("moved");
    let failures: Vec<_> = record.tries.iter().map(|t| t.failure.as_deref()).collect();
    assert_eq!(failures, [Some(reason), None]);
    assert_ne!(record.tries[0].endpoint, record.tries[1].endpoint);
}

#[test]
fn what_fails_before_the_first_byte_is_made_good_elsewhere() {
    let request = post_with(CHAT, "x-request-id: moved\r\n", &body("tiny"));
    let check = |meets: Serve, reason: &str| check_moved(meets, reason, &request);
    // The first one meets a connection that was used before, which is worth a fresh one.
    check(|side, r, n| n > 1 && serves(side, r, n), "upstream_reset");
    check(
        |side, r, n| {
            if n == 0 {
                side.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n");
                return false;
            }
            serves(side, r, n)
        },
        "upstream_reset",
    );
    check(
        |side, r, n| {
            if n == 0 {
                side.send(SSE_HEAD);
                return false;
            }
            serves(side, r, n)
        },
        "upstream_reset",
    );
    check(
        |side, r, n| {
            if n == 0 {
                side.send("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy");
                return true;
            }
            serves(side, r, n)
        },
        "upstream_status",
    );
    check(
        |side, r, n| {
            if n == 0 {
                side.send("nonsense\r\n\r\n");
                return false;
            }
            serves(side, r, n)
        },
        "upstream_protocol",
    );
}

#[test]
fn an_endpoint_that_refuses_connections_is_passed_over() {
    let servers = fleet(1, TINY, serves);
    let world = World::to(pool(&[dead_address(), servers[0].address]));
    // Whoever is first in turn: among a few requests one meets the dead endpoint.
    let ids: Vec<String> = (0..4).map(|n| format!("r{n}")).collect();
    for id in &ids {
        let fields = format!("x-request-id: {id}\r\n");
        assert_eq!(
            world.ask(&post_with(CHAT, &fields, &body("tiny"))).status(),
            200
        );
    }
    let moved = ids
        .iter()
        .map(|id| world.record(id))
        .find(|r| r.tries.len() == 2);
    let moved = moved.expect("one of them met the dead endpoint");
    assert_eq!(moved.tries[0].failure.as_deref(), Some("upstream_connect"));
}

#[test]
fn a_pool_that_is_down_says_so() {
    let world = World::to(pool(&[dead_address(), dead_address()]));
    let got = world.ask(&post(CHAT, &body("tiny")));
    assert_eq!(got.status(), 503);
    assert_eq!(got.field("retry-after").as_deref(), Some("1"));
    let world = World::to(pool(&[]));
    let got = world.ask(&post(CHAT, &body("tiny")));
    assert_eq!(
        (got.status(), &got.json()["error"]["code"]),
        (503, &json!("no_ready_endpoint"))
    );
}

#[test]
fn the_last_answer_of_a_pool_that_fails_is_passed_on() {
    let servers = fleet(2, TINY, |side, _, _| {
        side.send("HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops");
        true
    });
    let world = World::to(pool(&addresses(&servers)));
    let got = world.ask(&post(CHAT, &body("tiny")));
    assert_eq!(got.status(), 500);
}

#[test]
fn failures_that_reach_the_client_count_like_those_that_are_made_good() {
    let failing = Upstream::start(|side| {
        while side.request().is_some() {
            side.send("HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops");
        }
    });
    let good = Upstream::saying("{}");
    let world = World::to(pool(&[failing.address, good.address]));
    // Passed on as it comes, so that it can be sent once only.
    let request = format!(
        "POST /v1/files HTTP/1.1\r\nhost: h.test\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
        chunk("x")
    );
    let mut failed = 0;
    while failed < 3 {
        failed += usize::from(world.ask(&request).status() == 500);
    }
    world.comes_to_show("forebay_ejections_total{pool=\"default/pool\",reason=\"failures\"} 1");
}

#[test]
fn a_request_that_waits_on_an_ejected_endpoint_moves() {
    for remove in [false, true] {
        let servers = fleet(2, TINY, |side, r, n| {
            if n == 0 {
                side.peer.rest();
                return false;
            }
            serves(side, r, n)
        });
        let world = World::to(pool(&addresses(&servers)));
        let mut client = world.client();
        client.send(post_with(CHAT, "x-request-id: m\r\n", &body("tiny")));
        let waits_at = |server: &&Upstream| !server.seen().is_empty();
        eventually("the request waits", || servers.iter().any(|s| waits_at(&s)));
        let silent = servers.iter().find(waits_at).unwrap().address;
        if remove {
            let left: Vec<_> = addresses(&servers)
                .into_iter()
                .filter(|a| *a != silent)
                .collect();
            world.publish(vec![entry("/", rule(vec![pool(&left)]))]);
        } else {
            let live = world.gateway.shared().live.load_full();
            let runtime = live.pools.values().next().unwrap();
            let now = forebay_gateway::clock::now();
            while runtime.state().ejected(silent, now).is_none() {
                runtime.state().scrape_failed(silent, now);
            }
            runtime.note_ejection();
        }
        assert_eq!(client.response("POST").status(), 200);
        let record = world.record("m");
        assert_eq!(record.tries.len(), 2);
        assert_eq!(record.tries[0].failure.as_deref(), Some("upstream_timeout"));
    }
}

#[test]
fn the_last_endpoint_may_be_removed_while_a_request_waits_on_it() {
    let servers = fleet(1, TINY, |side, r, n| {
        side.peer.until("go on");
        serves(side, r, n)
    });
    let _kept_open = Upstream::saying("");
    let world = World::to(pool(&addresses(&servers)));
    let mut client = world.client();
    let request = "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n";
    client.send(request);
    eventually("the request waits", || !servers[0].seen().is_empty());
    world.publish(vec![entry("/", rule(vec![pool(&[])]))]);
    // Nobody else could serve it, so it stays until its client leaves.
    client.stream.set_nonblocking(true).unwrap();
    let nothing = std::io::Read::read(&mut client.stream, &mut [0; 1]);
    assert_eq!(nothing.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

fn rewritten(models: &[&str], to: &str, servers: &[Upstream]) -> Target {
    let rule = RewriteRule {
        models: models.iter().map(|m| (*m).into()).collect(),
        targets: vec![RewriteTarget {
            weight: 1,
            model: to.into(),
        }],
    };
    to_pool(Pool {
        rewrites: vec![rule],
        ..pool_of("pool", &addresses(servers))
    })
}

#[test]
fn a_rewritten_model_is_spliced_in_and_restored() {
    let servers = fleet(1, TINY, |side, _, _| {
        side.send(ok(
            r#"{"id":1,"model":"tiny","choices":[{"text":"model tiny"}]}"#,
        ));
        true
    });
    let world = World::to(rewritten(&["gpt-4"], "tiny", &servers));
    let sent = r#"{ "stream":false, "model" : "gpt-4", "prompt":"\"model\":\"gpt-4\""}"#;
    let got = world.ask(&post("/v1/completions", sent));
    let seen = servers[0].last();
    assert_eq!(seen.text(), sent.replacen("gpt-4", "tiny", 1));
    assert!(got.complete);
    assert_eq!(
        got.text(),
        r#"{"id":1,"model":"gpt-4","choices":[{"text":"model tiny"}]}"#
    );
}

#[test]
fn a_name_is_restored_wherever_a_stream_is_split() {
    let event = "data: {\"id\":1,\"model\":\"tiny\",\"choices\":[]}\n\n";
    static SPLIT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let servers = fleet(1, TINY, |side, _, _| {
        let event = "data: {\"id\":1,\"model\":\"tiny\",\"choices\":[]}\n\n";
        let (a, b) = event.split_at(SPLIT.load(std::sync::atomic::Ordering::SeqCst));
        side.send(format!("{SSE_HEAD}{}", chunk(a)));
        // The gateway must have passed on the first part before the second one comes.
        side.peer
            .stream
            .set_read_timeout(Some(std::time::Duration::from_millis(5)))
            .unwrap();
        let _nothing = std::io::Read::read(&mut side.peer.stream, &mut [0; 1]);
        side.peer.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        side.send(format!("{}0\r\n\r\n", chunk(b)));
        true
    });
    let world = World::to(rewritten(&["gpt-4"], "tiny", &servers));
    for at in 1..event.len() {
        SPLIT.store(at, std::sync::atomic::Ordering::SeqCst);
        let got = world.ask(&post(CHAT, &body("gpt-4")));
        assert!(got.complete);
        assert_eq!(got.text(), event.replace("tiny", "gpt-4"), "split at {at}");
    }
}

#[test]
fn routes_match_on_the_model_of_the_body_and_not_on_the_clients_word() {
    let (a, b, rest) = (
        fleet(1, TINY, serves),
        fleet(1, TINY, serves),
        Upstream::saying("rest"),
    );
    let on_model = |model: &str, pool: Pool| {
        let mut entry = entry("/", rule(vec![to_pool(pool)]));
        let wanted = TextMatch::Exact(model.into());
        entry.matcher.headers = vec![(MODEL_HEADER.into(), wanted)];
        entry
    };
    let world = World::with(
        settings(),
        vec![
            on_model("tiny", pool_of("a", &addresses(&a))),
            on_model("other", pool_of("b", &addresses(&b))),
            entry("/", rule(vec![service(&[rest.address])])),
        ],
    );
    let spoof = format!("{MODEL_HEADER}: other\r\n");
    assert_eq!(
        world.ask(&post_with(CHAT, &spoof, &body("tiny"))).status(),
        200
    );
    assert_eq!((a[0].seen().len(), b[0].seen().len()), (1, 0));
    assert_eq!(a[0].last().field(MODEL_HEADER), None);
    // What no pool is for goes to the catch-all, with the model for all to see.
    let got = world.ask(&post_with(CHAT, &spoof, &body("third")));
    assert_eq!(got.text(), "rest");
    assert_eq!(rest.last().field(MODEL_HEADER).as_deref(), Some("third"));
    assert_eq!(world.ask(&get_with("/x", &spoof)).text(), "rest");
    assert_eq!(rest.last().field(MODEL_HEADER), None);
    assert_eq!(world.ask(&post(CHAT, "{")).status(), 400);
    // A name as long as a novel is no name, and no field for an endpoint to choke on.
    let got = world.ask(&post(CHAT, &body(&"m".repeat(100_000))));
    assert_eq!(got.text(), "rest");
    assert_eq!(rest.last().field(MODEL_HEADER), None);
}

#[test]
fn whoever_asks_is_told_which_endpoint_served() {
    let servers = fleet(1, TINY, serves);
    let world = World::to(pool(&addresses(&servers)));
    let got = world.ask(&post_with(CHAT, "x-forebay-explain: 1\r\n", &body("tiny")));
    let endpoint = servers[0].address.to_string();
    assert_eq!(got.field("x-forebay-endpoint"), Some(endpoint));
    assert_eq!(servers[0].last().field("x-forebay-explain"), None);
    let got = world.ask(&post(CHAT, &body("tiny")));
    assert_eq!(got.field("x-forebay-endpoint"), None);
}

#[test]
fn each_request_has_an_id() {
    let servers = fleet(1, TINY, serves);
    let world = World::to(pool(&addresses(&servers)));
    let ask = |fields: &str| {
        let got = world
            .ask(&post_with(CHAT, fields, &body("tiny")))
            .field("x-request-id");
        assert_eq!(servers[0].last().field("x-request-id"), got);
        got.unwrap()
    };
    assert_eq!(ask("x-request-id: mine\r\n"), "mine");
    let (one, two) = (ask(""), ask(""));
    assert!(one.len() == 32 && one != two, "{one} {two}");
    let long = "y".repeat(5000);
    assert_ne!(ask(&format!("x-request-id: {long}\r\n")), long);
    assert_eq!(world.record(&one).status, 200);
}
