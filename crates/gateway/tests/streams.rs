//! Streams of tokens that break half-way, and what the client is told.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use forebay_model::Pool;
use forebay_model::pool::{RewriteRule, RewriteTarget};
use serde_json::Value;

const EVENT: &str =
    "data: {\"id\":1,\"model\":\"tiny\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";

/// Two events, then the end of the connection.
fn dies(side: &mut Script, _request: &Message, _nth: usize) -> bool {
    side.send(format!("{SSE_HEAD}{}{}", chunk(EVENT), chunk(EVENT)));
    false
}

/// The answer to a request on a connection of its own; `None` if not even a head came.
fn asked(world: &World, path: &str) -> Message {
    let mut client = world.client();
    let body = r#"{"model":"tiny","stream":true,"messages":[]}"#;
    client.send(post_with(path, "x-request-id: s\r\n", body));
    client.response("POST")
}

#[test]
fn a_stream_that_dies_says_so_in_its_own_language() {
    let check = |path: &str, member: &str| {
        let servers = fleet(2, TINY, dies);
        let world = World::to(pool(&addresses(&servers)));
        let got = asked(&world, path);
        // The stream ends properly: its last event is the error.
        assert!(got.complete, "{path}");
        let text = got.text();
        let error = text
            .strip_prefix(&EVENT.repeat(2))
            .expect("the events come first");
        let (_, data) = error.split_once("data: ").unwrap();
        let data: Value = serde_json::from_str(data.trim_end()).unwrap();
        let message = data.pointer(member).and_then(Value::as_str);
        assert!(
            message.is_some_and(|m| m.contains("stream broke")),
            "{path} {data}"
        );
        assert_eq!(
            error.contains("event: error\n"),
            path != "/v1/chat/completions"
        );
        let record = world.record("s");
        assert_eq!((&*record.end, record.tries.len()), ("upstream-died", 1));
    };
    check("/v1/chat/completions", "/error/message");
    check("/v1/messages", "/error/message");
    check("/v1/responses", "/message");
}

#[test]
fn broken_chunks_in_a_stream_are_its_death() {
    let (go, gone) = std::sync::mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let upstream = Upstream::start(move |side| {
        side.request();
        side.send(format!("{SSE_HEAD}{}", chunk(EVENT)));
        gone.lock().unwrap().recv().unwrap();
        side.send("nonsense\r\n");
    });
    let world = World::to(pool(&[upstream.address]));
    let mut client = world.client();
    client.send(post("/v1/chat/completions", r#"{"stream":true}"#));
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.chunk().unwrap(), EVENT.as_bytes());
    go.send(()).unwrap();
    let error = String::from_utf8(client.chunk().unwrap()).unwrap();
    assert!(
        error.starts_with("data: {\"error\"") && error.contains("broke HTTP"),
        "{error}"
    );
    assert_eq!(client.chunk().unwrap(), b"");
}

#[test]
fn a_body_that_is_no_stream_is_cut_off_instead() {
    let check = |serve: Serve| {
        let servers = fleet(1, TINY, serve);
        let world = World::to(pool(&addresses(&servers)));
        let mut client = world.client();
        let body = r#"{"model":"tiny","messages":[]}"#;
        client.send(post_with(
            "/v1/chat/completions",
            "x-request-id: s\r\n",
            body,
        ));
        let got = client.message(Some("POST"));
        assert!(got.is_none_or(|got| !got.complete));
        assert_eq!(world.record("s").end, "upstream-died");
    };
    check(|side, _, _| {
        side.send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{\"model\"");
        false
    });
    check(|side, _, _| {
        side.send(format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}",
            chunk("{\"mo")
        ));
        false
    });
    // Within an announced length an error event would pass for content.
    check(|side, _, _| {
        side.send(format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 300\r\n\r\n{EVENT}"));
        false
    });
}

/// Ends within an event, behind another: in the name of the model, which a rewrite holds back, and
/// behind it.
fn tears_an_event(side: &mut Script, _request: &Message, nth: usize) -> bool {
    let torn = ["data: {\"model\":\"ti", "data: {\"model\":\"tiny\",\"cho"][nth % 2];
    side.send(format!("{SSE_HEAD}{}", chunk(&format!("{EVENT}{torn}"))));
    false
}

#[test]
fn a_client_never_gets_half_an_event() {
    let servers = fleet(1, TINY, tears_an_event);
    let rewrites = vec![RewriteRule {
        models: vec!["gpt-4".into()],
        targets: vec![RewriteTarget {
            weight: 1,
            model: "tiny".into(),
        }],
    }];
    let pool = Pool {
        rewrites,
        ..pool_of("pool", &addresses(&servers))
    };
    let world = World::to(to_pool(pool));
    for model in ["gpt-4", "gpt-4", "tiny", "tiny"] {
        let body = format!(r#"{{"model":"{model}","stream":true}}"#);
        let got = world.ask(&post("/v1/chat/completions", &body));
        assert!(got.complete);
        let text = got.text();
        let events: Vec<Value> = text
            .split_terminator("\n\n")
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
            .collect();
        assert_eq!(events.len(), 2, "{text}");
        assert_eq!(events[0]["model"], model);
        assert_eq!(events[1]["error"]["code"], "stream_interrupted");
    }
}

#[test]
fn an_event_that_came_in_pieces_reaches_the_client_whole() {
    let (go, gone) = std::sync::mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let upstream = Upstream::start(move |side| {
        side.request();
        let (begin, end) = EVENT.split_at(20);
        side.send(format!("{SSE_HEAD}{}", chunk(&format!("{EVENT}{begin}"))));
        gone.lock().unwrap().recv().unwrap();
        // What follows the last event is no event, and the endpoint's all the same.
        side.send(format!("{}{}0\r\n\r\n", chunk(end), chunk(": end")));
        side.peer.rest();
    });
    let world = World::to(pool(&[upstream.address]));
    let mut client = world.client();
    client.send(post_with(
        "/v1/chat/completions",
        "x-request-id: s\r\n",
        r#"{"stream":true}"#,
    ));
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.chunk().unwrap(), EVENT.as_bytes());
    go.send(()).unwrap();
    let mut rest = String::new();
    while let Some(data) = client.chunk().filter(|data| !data.is_empty()) {
        rest += &String::from_utf8(data).unwrap();
    }
    assert_eq!(rest, format!("{EVENT}: end"));
    assert_eq!(world.record("s").end, "complete");
}

#[test]
fn silence_within_a_stream_has_a_limit() {
    let servers = fleet(1, TINY, |side, _, _| {
        side.send(format!("{SSE_HEAD}{}", chunk(EVENT)));
        side.peer.rest();
        false
    });
    let settings = forebay_gateway::settings::Settings {
        stream_idle_timeout: std::time::Duration::from_millis(100),
        ..settings()
    };
    let world = World::with(
        settings,
        vec![entry("/", rule(vec![pool(&addresses(&servers))]))],
    );
    let got = asked(&world, "/v1/chat/completions");
    assert!(
        got.complete && got.text().contains("sent nothing for too long"),
        "{}",
        got.text()
    );
    assert_eq!(world.record("s").end, "timed-out");
}

#[test]
fn load_is_given_back_however_a_request_ends() {
    let servers = fleet(1, TINY, |side, r, n| match n % 4 {
        0 => dies(side, r, n),
        1 => {
            side.send(ok("{}"));
            true
        }
        2 => {
            side.send(format!("{SSE_HEAD}{}0\r\nx: 1\r\n\r\n", chunk(EVENT)));
            true
        }
        _ => {
            side.peer.rest();
            false
        }
    });
    let world = World::to(pool(&addresses(&servers)));
    for n in 0..12 {
        let mut client = world.client();
        client.send(post(
            "/v1/chat/completions",
            r#"{"model":"tiny","stream":true}"#,
        ));
        if n % 4 == 3 {
            eventually("the request waits", || servers[0].seen().len() == n + 1);
        } else {
            client.response("POST");
        }
    }
    let live = world.gateway.shared().live.load_full();
    let runtime = live.pools.values().next().unwrap();
    eventually("nothing is in flight", || {
        let now = forebay_gateway::clock::now();
        let state = runtime.state();
        state
            .view(now)
            .all(|e| e.inflight_requests == 0 && e.inflight_tokens == 0)
    });
    eventually("all are settled", || world.records().len() == 12);
}
