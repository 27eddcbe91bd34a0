//! Messages that somebody made wrong, by mistake or on purpose: what is refused, what is made
//! unambiguous, and what each limit answers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use forebay_gateway::settings::Settings;
use forebay_model::route::{Filter, HeaderEdits};

/// Sends `request` as it is; returns the answer and whether the connection stays open.
fn sent(world: &World, request: &str) -> (Message, bool) {
    let mut client = world.client();
    client.send(request);
    let got = client.response("POST");
    client.send(get("/again"));
    (got, client.head().is_some())
}

fn refused(request: &str, status: u16) {
    let upstream = Upstream::saying("x");
    let world = World::to(service(&[upstream.address]));
    let (got, _) = sent(&world, request);
    assert_eq!(got.status(), status, "{request:?}");
    let passed = upstream.seen().iter().any(|r| !r.start.contains("/again"));
    assert!(!passed, "{request:?} reached the endpoint");
}

#[test]
fn ambiguous_requests_are_refused() {
    refused("POST / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\nhost: a b\r\n\r\n", 400);
    refused("POST / HTTP/1.1\r\nhost: a/b\r\n\r\n", 400);
    refused(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        400,
    );
    refused(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3, 3\r\n\r\nabc",
        400,
    );
    refused(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc",
        400,
    );
    refused(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        400,
    );
    refused(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 3\r\n\r\nabc",
        400,
    );
    refused("POST / HTTP/1.1\r\nhost: a\r\nx: 1\r\n folded\r\n\r\n", 400);
    refused(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
        400,
    );
    refused(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        400,
    );
    refused(
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    );
}

#[test]
fn a_coding_under_the_chunks_is_not_passed_on_as_plain() {
    for coding in [
        "gzip, chunked",
        "chunked\r\ntransfer-encoding: chunked",
        "x\tchunked",
    ] {
        let upstream = Upstream::saying("x");
        let world = World::to(service(&[upstream.address]));
        let request = format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: {coding}\r\n\r\n1\r\na\r\n0\r\n\r\n"
        );
        let (got, _) = sent(&world, &request);
        assert!(
            matches!(got.status(), 400 | 501),
            "{coding:?} {}",
            got.start
        );
    }
}

#[test]
fn a_length_beside_chunks_is_ignored_and_the_connection_ends() {
    for (first, second) in [
        ("content-length: 5", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: 5"),
    ] {
        let upstream = Upstream::saying("x");
        let world = World::to(service(&[upstream.address]));
        let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
        let request =
            format!("POST / HTTP/1.1\r\nhost: a\r\n{first}\r\n{second}\r\n\r\n0\r\n\r\n{smuggled}");
        let mut client = world.client();
        client.send(&request);
        assert_eq!(client.response("POST").status(), 200);
        assert!(client.closes(), "{first}");
        let seen = upstream.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].field("content-length"), None);
    }
}

#[test]
fn broken_chunks_of_a_request_end_it() {
    for body in [
        "x\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "-1\r\n",
        "ffffffffffffffffff\r\n",
        "1\na\n0\n\n",
    ] {
        for target in [service, pool] {
            let upstream = Upstream::saying("x");
            let world = World::to(target(&[upstream.address]));
            let mut client = world.client();
            client.send(format!(
                "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}"
            ));
            let got = client.response("POST");
            assert_eq!(got.status(), 400, "{body:?}");
            assert!(client.closes(), "{body:?}");
            assert!(upstream.seen().iter().all(|r| !r.complete), "{body:?}");
        }
    }
}

#[test]
fn connect_is_refused() {
    refused(
        "CONNECT a.test:443 HTTP/1.1\r\nhost: a.test:443\r\n\r\n",
        405,
    );
}

#[test]
fn heads_have_limits() {
    let small = || Settings {
        head_bytes_max: 8192,
        headers_max: 20,
        ..settings()
    };
    let upstream = Upstream::saying("x");
    let world = World::with(
        small(),
        vec![entry("/", rule(vec![service(&[upstream.address])]))],
    );
    let long = format!("x-long: {}\r\n", "y".repeat(9000));
    assert_eq!(world.ask(&get_with("/", &long)).status(), 431);
    let many: String = (0..25).map(|n| format!("x-{n}: 1\r\n")).collect();
    assert_eq!(world.ask(&get_with("/", &many)).status(), 431);
    let few: String = (0..15).map(|n| format!("x-{n}: 1\r\n")).collect();
    assert_eq!(world.ask(&get_with("/", &few)).status(), 200);
}

#[test]
fn a_head_limit_below_what_is_possible_does_no_harm() {
    let tiny = Settings {
        head_bytes_max: 100,
        ..settings()
    };
    let upstream = Upstream::saying("x");
    let world = World::with(
        tiny,
        vec![entry("/", rule(vec![service(&[upstream.address])]))],
    );
    assert_eq!(world.ask(&get("/")).status(), 200);
    let long = format!("x-long: {}\r\n", "y".repeat(200));
    assert_eq!(world.ask(&get_with("/", &long)).status(), 431);
}

fn limited() -> (World, Upstream) {
    let limited = Settings {
        body_bytes_max: 1000,
        buffered_bytes_max: 1500,
        head_timeout: Duration::from_millis(200),
        body_stall_timeout: Duration::from_millis(200),
        ..settings()
    };
    let upstream = Upstream::saying("x");
    let world = World::with(
        limited,
        vec![entry("/", rule(vec![pool(&[upstream.address])]))],
    );
    (world, upstream)
}

#[test]
fn bodies_that_must_be_read_have_a_limit() {
    let (world, _upstream) = limited();
    let json = |bytes: usize| format!("{{\"p\":\"{}\"}}", "y".repeat(bytes));
    let path = "/v1/chat/completions";
    assert_eq!(world.ask(&post(path, &json(900))).status(), 200);
    let got = world.ask(&post(path, &json(1100)));
    assert_eq!(got.status(), 413);
    assert_eq!(got.json()["error"]["code"], "body_too_large");
    let chunked = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{}",
        chunk(&json(600)).repeat(2)
    );
    assert_eq!(world.ask(&chunked).status(), 413);
}

#[test]
fn announced_bytes_that_do_not_come_take_no_memory_from_others() {
    let (world, _upstream) = limited();
    let path = "/v1/chat/completions";
    let idle: Vec<Peer> = (0..5)
        .map(|_| {
            let mut client = world.client();
            client.send(format!(
                "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 900\r\n\r\n{{"
            ));
            client
        })
        .collect();
    let json = format!("{{\"p\":\"{}\"}}", "y".repeat(900));
    assert_eq!(world.ask(&post(path, &json)).status(), 200);
    drop(idle);
}

#[test]
fn a_slow_head_ends_the_connection() {
    let (world, _upstream) = limited();
    for start in ["", "P", "PR", "GET / HTTP/1.1\r\nho"] {
        let mut client = world.client();
        client.send(start);
        client.rest();
        let got = world.ask(&get("/"));
        assert_eq!(got.status(), 200, "{start:?}");
    }
}

#[test]
fn a_slow_body_is_answered_408() {
    let (world, _upstream) = limited();
    let mut client = world.client();
    client.send("POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n{");
    assert_eq!(client.response("POST").status(), 408);
    assert!(client.closes());
}

#[test]
fn answers_that_are_no_http_are_502() {
    let check = |answer: &'static str, reason: &str| {
        let upstream = Upstream::start(move |side| {
            while side.request().is_some() {
                side.send(answer);
                side.peer.rest();
            }
        });
        let world = World::to(service(&[upstream.address]));
        let got = world.ask(&get("/"));
        assert_eq!(got.status(), 502, "{answer:?}");
        assert_eq!(
            got.field("x-forebay-reason").as_deref(),
            Some(reason),
            "{answer:?}"
        );
        assert_eq!(got.json()["error"]["code"], reason);
    };
    let bad = "upstream_protocol";
    check("nonsense\r\n\r\n", bad);
    check(
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        bad,
    );
    check(
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        bad,
    );
    check("HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\n", bad);
    check(
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
        bad,
    );
    check(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        bad,
    );
    check("HTTP/1.1 200 OK\r\nx: 1\r\n folded\r\n\r\n", bad);
    check("HTTP/1.1 200 OK\r\nx : 1\r\n\r\n", bad);
    check("HTTP/1.1 999999 OK\r\n\r\n", bad);
    check(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        bad,
    );
    check("HTTP/1.1 099 Low\r\n\r\n", bad);
}

#[test]
fn a_head_of_an_answer_has_limits() {
    let check = |head: String| {
        let upstream = Upstream::answering(head);
        let got = World::to(service(&[upstream.address])).ask(&get("/"));
        assert_eq!(got.status(), 502);
    };
    check(format!(
        "HTTP/1.1 200 OK\r\nx: {}\r\n\r\n",
        "y".repeat(70_000)
    ));
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    check(format!("HTTP/1.1 200 OK\r\n{many}\r\n"));
}

#[test]
fn an_endpoint_that_closes_without_a_word_is_502() {
    for part in ["", "HTTP/1.1 200 OK\r\ncontent-le"] {
        let upstream = Upstream::start(move |side| {
            side.request();
            side.send(part);
        });
        let got = World::to(service(&[upstream.address])).ask(&get("/"));
        assert_eq!(got.status(), 502, "{part:?}");
        assert_eq!(got.json()["error"]["code"], "upstream_reset");
    }
}

#[test]
fn a_length_said_twice_alike_is_said_once() {
    let upstream =
        Upstream::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok");
    let got = World::to(service(&[upstream.address])).ask(&get("/"));
    assert_eq!(
        (got.field("content-length").as_deref(), &*got.text()),
        (Some("2"), "ok")
    );
}

#[test]
fn an_unasked_second_answer_is_given_to_nobody() {
    let upstream = Upstream::start(|side| {
        while side.request().is_some() {
            side.send(format!("{}{}", ok("mine"), ok("poison")));
        }
    });
    let world = World::to(service(&[upstream.address]));
    for _ in 0..5 {
        assert_eq!(world.ask(&get("/")).text(), "mine");
    }
}

#[test]
fn fields_of_one_hop_stay_there() {
    let answer = "HTTP/1.1 200 OK\r\nconnection: x-secret, keep-alive\r\nx-secret: 1\r\n\
                  keep-alive: timeout=5\r\nproxy-authenticate: Basic\r\nx-open: 1\r\n\
                  content-length: 0\r\n\r\n";
    let upstream = Upstream::answering(answer);
    let world = World::to(service(&[upstream.address]));
    let fields = "connection: x-mine, close\r\nx-mine: 1\r\nkeep-alive: 5\r\nte: gzip\r\n\
                  proxy-connection: keep-alive\r\nproxy-authorization: Basic eA==\r\n\
                  upgrade: h2c\r\nx-open: 1\r\n";
    let got = world.ask(&get_with("/", fields));
    let seen = upstream.last();
    for name in [
        "connection",
        "x-mine",
        "keep-alive",
        "te",
        "proxy-connection",
        "proxy-authorization",
        "upgrade",
    ] {
        assert_eq!(seen.field(name), None, "{name}");
    }
    for name in ["x-secret", "keep-alive", "proxy-authenticate"] {
        assert_eq!(got.field(name), None, "{name}");
    }
    assert_eq!(seen.field("x-open").as_deref(), Some("1"));
    assert_eq!(got.field("x-open").as_deref(), Some("1"));
}

#[test]
fn naming_the_host_in_connection_does_not_lose_it() {
    let upstream = Upstream::saying("x");
    let world = World::to(service(&[upstream.address]));
    world.ask("GET / HTTP/1.1\r\nhost: H.test:8080\r\nconnection: host, close\r\n\r\n");
    assert_eq!(
        upstream.last().field("host").as_deref(),
        Some("H.test:8080")
    );
}

#[test]
fn the_endpoint_sees_the_host_and_target_as_the_client_sent_them() {
    let check = |request: &str, start: &str, host: &str| {
        let upstream = Upstream::saying("x");
        World::to(service(&[upstream.address])).ask(request);
        let seen = upstream.last();
        assert_eq!(seen.start, start);
        assert_eq!(seen.field("host").as_deref(), Some(host));
    };
    check(
        "GET /a%2Fb?c=d%20e HTTP/1.1\r\nHost: H.test:81\r\n\r\n",
        "GET /a%2Fb?c=d%20e HTTP/1.1",
        "H.test:81",
    );
    check(
        "GET /a HTTP/1.1\r\nhost: [::1]:81\r\n\r\n",
        "GET /a HTTP/1.1",
        "[::1]:81",
    );
    check(
        "GET http://x.test/a?b HTTP/1.1\r\nhost: other\r\n\r\n",
        "GET /a?b HTTP/1.1",
        "x.test",
    );
    check(
        "OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n",
        "OPTIONS * HTTP/1.1",
        "h",
    );
    check("GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1", "");
}

#[test]
fn forwarding_fields_tell_who_asked() {
    let upstream = Upstream::saying("x");
    let world = World::to(service(&[upstream.address]));
    world.ask(&get_with(
        "/",
        "x-forwarded-for: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2, 3.3.3.3\r\n",
    ));
    let seen = upstream.last();
    assert_eq!(
        seen.field("x-forwarded-for").as_deref(),
        Some("1.1.1.1, 2.2.2.2, 3.3.3.3, 127.0.0.1")
    );
    assert_eq!(seen.field("x-forwarded-proto").as_deref(), Some("http"));
}

#[test]
fn a_route_cannot_reframe_messages() {
    let edits = || HeaderEdits {
        set: vec![
            ("content-length".into(), "1".into()),
            ("transfer-encoding".into(), "chunked".into()),
            ("connection".into(), "close".into()),
            ("x-ok".into(), "1".into()),
        ],
        add: vec![("content-length".into(), "2".into())],
        remove: vec!["content-length".into()],
    };
    let upstream = Upstream::saying("answer");
    let filters = vec![
        Filter::RequestHeaders(edits()),
        Filter::ResponseHeaders(edits()),
    ];
    let target = service(&[upstream.address]);
    let world = World::with(settings(), vec![entry("/", filtered(filters, target))]);
    let got = world.ask(&post("/", "body"));
    let seen = upstream.last();
    assert_eq!(seen.field("content-length").as_deref(), Some("4"));
    assert_eq!(seen.field("transfer-encoding"), None);
    assert_eq!(seen.field("x-ok").as_deref(), Some("1"));
    assert_eq!(got.field("content-length").as_deref(), Some("6"));
    assert_eq!(got.field("transfer-encoding"), None);
    assert_eq!(
        (got.field("x-ok").as_deref(), &*got.text()),
        (Some("1"), "answer")
    );
}
