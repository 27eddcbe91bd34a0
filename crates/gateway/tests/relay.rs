//! What happens to bytes between a client and an endpoint that both speak HTTP/1.1.
//!
//! Framing that somebody gets wrong on purpose is in `framing.rs`, HTTP/2 in `http2.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use forebay_model::route::Target;

/// Asks with `request`, is answered `answer`; returns what the client gets.
fn relayed(request: &str, answer: &str) -> Message {
    let upstream = Upstream::answering(answer);
    World::to(service(&[upstream.address])).ask(request)
}

fn check(request: &str, answer: &str, status: u16, body: &str) {
    let got = relayed(request, answer);
    assert!(got.complete, "{request:?} {answer:?} {got:?}");
    assert_eq!((got.status(), &*got.text()), (status, body), "{answer:?}");
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

#[test]
fn every_framing_of_a_body_is_passed_on() {
    let chunked = format!("{CHUNKED}{}{}0\r\n\r\n", chunk("abc"), chunk("de"));
    check(&get("/"), &ok("hello"), 200, "hello");
    check(&get("/"), &ok(""), 200, "");
    check(&get("/"), &chunked, 200, "abcde");
    check(&get("/"), &format!("{CHUNKED}0\r\n\r\n"), 200, "");
    check(
        &get("/"),
        "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
        404,
        "no",
    );
}

#[test]
fn a_body_that_the_end_of_the_connection_ends_is_passed_on() {
    for head in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n"] {
        let upstream = Upstream::start(move |side| {
            side.request();
            side.send(format!("{head}to the end"));
        });
        let got = World::to(service(&[upstream.address])).ask(&get("/"));
        assert!(got.complete);
        assert_eq!(got.text(), "to the end");
    }
}

#[test]
fn answers_without_a_body_keep_their_fields_and_end_at_once() {
    let head =
        |start: &str| format!("HTTP/1.1 {start}\r\ncontent-length: 5\r\netag: \"x\"\r\n\r\n");
    let check = |method: &str, answer: &str, status: u16, length: Option<&str>| {
        let upstream = Upstream::answering(answer);
        let world = World::to(service(&[upstream.address]));
        let mut client = world.client();
        let request = format!("{method} / HTTP/1.1\r\nhost: h.test\r\n\r\n");
        // The second one shows that the first one left both connections in step.
        for _ in 0..2 {
            client.send(&request);
            let got = client.response(method);
            assert_eq!(got.status(), status, "{answer:?}");
            assert_eq!(got.field("content-length").as_deref(), length, "{answer:?}");
            assert_eq!(got.field("etag").as_deref(), Some("\"x\""));
        }
        assert_eq!(upstream.connections(), 1, "{answer:?}");
    };
    check("HEAD", &head("200 OK"), 200, Some("5"));
    check("GET", &head("304 Not Modified"), 304, None);
    check("GET", &head("204 No Content"), 204, None);
}

#[test]
fn informational_answers_are_not_taken_for_the_final_one() {
    let answer = format!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{}",
        ok("final")
    );
    check(&get("/"), &answer, 200, "final");
    check(&post("/", "{}"), &answer, 200, "final");
}

#[test]
fn trailers_reach_a_client_that_takes_them() {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\
         x-sum: 7\r\ncontent-length: 99\r\ntransfer-encoding: gzip\r\n\r\n",
        chunk("data")
    );
    let got = relayed(
        &get_with("/", "te: trailers\r\nconnection: te\r\n"),
        &answer,
    );
    assert_eq!(got.text(), "data");
    assert_eq!(got.trailers, [("x-sum".to_owned(), "7".to_owned())]);
    let got = relayed(&get("/"), &answer);
    assert_eq!((got.complete, &*got.text()), (true, "data"));
    assert_eq!(got.trailers, []);
}

#[test]
fn an_exchange_that_ends_with_trailers_is_complete() {
    let answer = format!("{CHUNKED}{}0\r\nx-sum: 7\r\n\r\n", chunk("data"));
    let upstream = Upstream::answering(answer);
    let world = World::to(service(&[upstream.address]));
    let fields = "te: trailers\r\nconnection: te\r\nx-request-id: t\r\n";
    world.ask(&get_with("/", fields));
    assert_eq!(world.record("t").end, "complete");
}

#[test]
fn a_client_that_waits_for_100_is_told_to_go_on() {
    for target in [service, pool] {
        let upstream = Upstream::saying("done");
        let world = World::to(target(&[upstream.address]));
        let mut client = world.client();
        client.send(
            "POST /x HTTP/1.1\r\nhost: h.test\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n",
        );
        assert_eq!(client.head().unwrap().start, "HTTP/1.1 100 Continue");
        client.send("body");
        assert_eq!(client.response("POST").text(), "done");
        assert_eq!(upstream.last().text(), "body");
        assert_eq!(upstream.last().field("expect"), None);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::start(|side| {
        while let Some(request) = side.request() {
            side.send(ok(request.start.split(' ').nth(1).unwrap()));
        }
    });
    let world = World::to(service(&[upstream.address]));
    let mut client = world.client();
    client.send(format!("{}{}{}", get("/1"), post("/2", "{}"), get("/3")));
    for expected in ["/1", "/2", "/3"] {
        assert_eq!(client.response("GET").text(), expected);
    }
}

#[test]
fn connections_to_endpoints_are_used_again() {
    for target in [service, pool] {
        let upstream = Upstream::saying("x");
        let world = World::to(target(&[upstream.address]));
        for _ in 0..5 {
            assert_eq!(world.ask(&get("/")).status(), 200);
        }
        assert_eq!(upstream.connections(), 1);
    }
}

#[test]
fn a_connection_that_the_endpoint_ends_is_not_used_again() {
    let check = |answer: &str| {
        let upstream = Upstream::answering(answer);
        let world = World::to(service(&[upstream.address]));
        for _ in 0..2 {
            let mut client = world.client();
            client.send(get("/"));
            let got = client.head().unwrap();
            assert_eq!(got.field("connection"), None);
            assert_eq!(got.field("keep-alive"), None);
        }
        eventually("a second connection", || upstream.connections() == 2);
    };
    check("HTTP/1.1 200 OK\r\nConnection: Keep-Alive, Close\r\ncontent-length: 0\r\n\r\n");
    check("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n");
    check(&format!("{}surplus", ok("")));
}

#[test]
fn an_endpoint_that_closes_an_idle_connection_is_asked_again_unseen() {
    let check = |target: fn(&[std::net::SocketAddr]) -> Target, request: &str| {
        // Closes each connection instead of answering its second request: the worst moment.
        let upstream = Upstream::start(|side| {
            side.request();
            side.send(ok("x"));
            side.request();
        });
        let world = World::to(target(&[upstream.address]));
        for n in 1..=4 {
            let got = world.ask(request);
            assert_eq!((got.status(), n, upstream.connections()), (200, n, n));
        }
    };
    check(service, &get("/"));
    check(pool, &get("/"));
    check(pool, &post("/", "{}"));
}

#[test]
fn an_answer_before_the_end_of_the_upload_reaches_the_client() {
    let refusal = "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 3\r\n\r\nbig";
    let upstream = Upstream::start(move |side| {
        side.peer.head();
        side.send(refusal);
        // Keeps the connection open without reading, as a server in a hurry does.
        side.peer.rest();
    });
    let world = World::to(service(&[upstream.address]));
    let mut client = world.client();
    client.send("POST / HTTP/1.1\r\nhost: h.test\r\ncontent-length: 100000000\r\n\r\nbeginning");
    let got = client.response("POST");
    assert_eq!((got.status(), &*got.text()), (413, "big"));
}

#[test]
fn an_answer_outlives_an_endpoint_that_stops_reading() {
    let upstream = Upstream::start(|side| {
        side.peer.head();
        side.send(
            "HTTP/1.1 413 Payload Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig",
        );
        let _closed = side.peer.stream.shutdown(std::net::Shutdown::Write);
        side.peer.rest();
    });
    let world = World::to(service(&[upstream.address]));
    let mut client = world.client();
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: h.test\r\ncontent-length: {}\r\n\r\n",
        8 << 20
    ));
    assert_eq!(client.response("POST").status(), 413);
}

/// Text that would show if pieces of it were lost or swapped.
fn long_text(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 8);
    for n in 0.. {
        if text.len() >= bytes {
            break;
        }
        text.push_str(&format!("{n:07} "));
    }
    text.truncate(bytes);
    text
}

#[test]
fn large_bodies_pass_both_ways_unchanged() {
    for target in [service, pool] {
        for bytes in [220 << 10, 8 << 20] {
            let echo = Upstream::start(|side| {
                while let Some(request) = side.request() {
                    side.send(ok(&request.text()));
                }
            });
            let world = World::to(target(&[echo.address]));
            let body = long_text(bytes);
            let got = world.ask(&post("/x", &body));
            assert!(got.complete && got.text() == body, "{bytes} bytes");
        }
    }
}

#[test]
fn a_chunked_upload_arrives_whole() {
    for target in [service, pool] {
        let upstream = Upstream::saying("");
        let world = World::to(target(&[upstream.address]));
        let mut client = world.client();
        client.send("POST /x HTTP/1.1\r\nhost: h.test\r\ntransfer-encoding: chunked\r\n\r\n");
        let text = long_text(300_000);
        for piece in text.as_bytes().chunks(7_001) {
            client.send(chunk(std::str::from_utf8(piece).unwrap()));
        }
        client.send("0\r\nx-trailer: 1\r\n\r\n");
        assert_eq!(client.response("POST").status(), 200);
        assert!(upstream.last().text() == text);
    }
}

#[test]
fn a_burst_of_chunks_goes_out_in_few_pieces() {
    let events: Vec<String> = (0..50).map(|n| format!("data: {n}\n\n")).collect();
    let wire: String = events.iter().map(|event| chunk(event)).collect();
    let upstream = Upstream::answering(format!("{SSE_HEAD}{wire}0\r\n\r\n"));
    let got = World::to(service(&[upstream.address])).ask(&get("/"));
    assert_eq!(got.text(), events.concat());
    assert!(got.chunks.len() <= 3, "{:?}", got.chunks);
}

#[test]
fn each_event_is_passed_on_before_the_next_one_comes() {
    for target in [service, pool] {
        // The endpoint sends an event only when the test has read the one before.
        let (go, gone) = std::sync::mpsc::channel();
        let gone = std::sync::Mutex::new(gone);
        let upstream = Upstream::start(move |side| {
            side.request();
            side.send(SSE_HEAD);
            for n in 0..20 {
                side.send(chunk(&format!("data: {n}\n\n")));
                gone.lock().unwrap().recv().unwrap();
            }
            side.send("0\r\n\r\n");
        });
        let world = World::to(target(&[upstream.address]));
        let mut client = world.client();
        client.send(get("/"));
        assert_eq!(client.head().unwrap().status(), 200);
        for n in 0..20 {
            assert_eq!(client.chunk().unwrap(), format!("data: {n}\n\n").as_bytes());
            go.send(()).unwrap();
        }
        assert_eq!(client.chunk().unwrap(), b"");
    }
}

#[test]
fn a_body_that_breaks_off_is_not_passed_off_as_whole() {
    let check = |answer: &'static str| {
        let upstream = Upstream::start(move |side| {
            side.request();
            side.send(answer);
        });
        let world = World::to(service(&[upstream.address]));
        let mut client = world.client();
        client.send(get_with("/", "x-request-id: cut\r\n"));
        let got = client.message(Some("GET"));
        assert!(got.is_none_or(|got| !got.complete), "{answer:?}");
        assert_eq!(world.record("cut").end, "upstream-died", "{answer:?}");
    };
    check("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf");
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense\r\n");
}

#[test]
fn a_client_that_leaves_takes_its_request_to_the_endpoint_with_it() {
    for target in [service, pool] {
        for answered in [false, true] {
            let (tell, told) = std::sync::mpsc::channel();
            let upstream = Upstream::start(move |side| {
                side.request();
                if answered {
                    side.send(format!("{SSE_HEAD}{}", chunk("data: 1\n\n")));
                }
                tell.send("waiting").unwrap();
                assert!(side.peer.closes());
                tell.send("closed").unwrap();
            });
            let world = World::to(target(&[upstream.address]));
            let mut client = world.client();
            client.send(get_with("/", "x-request-id: gone\r\n"));
            assert_eq!(told.recv_timeout(PATIENCE), Ok("waiting"));
            if answered {
                client.until("data: 1");
            }
            drop(client);
            assert_eq!(told.recv_timeout(PATIENCE), Ok("closed"));
            let record = world.record("gone");
            assert_eq!(record.end, "client-gone");
            assert_eq!(record.status, if answered { 200 } else { 0 });
        }
    }
}

#[test]
fn connections_to_endpoints_are_probed_when_they_are_silent() {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let upstream = Upstream::start(move |side| {
        side.request();
        let _test_is_over = gone.lock().unwrap().recv();
    });
    let world = World::to(service(&[upstream.address]));
    let mut client = world.client();
    client.send(get("/"));
    eventually("the request waits", || !upstream.seen().is_empty());
    // Timer 2 of the gateway's socket: keepalive.
    let port = format!(":{:04X} 01 ", upstream.address.port());
    eventually("its keepalive timer runs", || {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let line = table.lines().find(|line| line.contains(&port)).unwrap();
        line.contains(" 02:")
    });
    drop(go);
}
