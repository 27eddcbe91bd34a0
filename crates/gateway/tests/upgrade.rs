//! Connections that become something else: WebSockets and their like, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nx-key: 1\r\n\r\n";

fn asks(connection: &str) -> String {
    get_with(
        "/ws",
        &format!("connection: {connection}\r\nupgrade: websocket\r\n"),
    )
}

/// Switches, greets in the same breath, and echoes.
fn echo() -> Upstream {
    Upstream::start(|side| {
        if side.request().is_none() {
            return;
        }
        side.send(format!("{SWITCH}early"));
        while let Some(line) = side.peer.until("\n") {
            side.send(line);
        }
        side.send("bye");
    })
}

#[test]
fn an_upgraded_connection_passes_bytes_both_ways() {
    for target in [service, pool] {
        for connection in ["Upgrade", "keep-alive, Upgrade", "upgrade\r\nconnection: x"] {
            let upstream = echo();
            let world = World::to(target(&[upstream.address]));
            let mut client = world.client();
            client.send(asks(connection));
            // Sent before the answer: it must not get lost on the way.
            client.send("first\n");
            let got = client.response("GET");
            assert_eq!(got.status(), 101, "{connection}");
            assert_eq!(got.field("upgrade").as_deref(), Some("websocket"));
            assert_eq!(got.field("x-key").as_deref(), Some("1"));
            assert_eq!(client.until("early").unwrap(), b"early");
            assert_eq!(client.until("\n").unwrap(), b"first\n");
            client.send("second\n");
            assert_eq!(client.until("\n").unwrap(), b"second\n");
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(client.rest(), b"bye");
            let seen = upstream.last();
            assert_eq!(seen.field("upgrade").as_deref(), Some("websocket"));
            assert_eq!(seen.field("connection").as_deref(), Some("upgrade"));
        }
    }
}

#[test]
fn a_tunnel_is_a_connection_like_any_other() {
    let upstream = echo();
    let world = World::to(service(&[upstream.address]));
    let mut client = world.client();
    client.send(asks("upgrade"));
    client.until("early").unwrap();
    eventually("the tunnel counts once on either side", || {
        world.counts("client", 1) && world.counts("upstream_busy", 1)
    });
    drop(client);
    eventually("and is given back", || {
        world.counts("client", 0) && world.counts("upstream_busy", 0)
    });
}

#[test]
fn a_tunnel_in_which_nothing_moves_is_closed() {
    let upstream = echo();
    let limited = forebay_gateway::settings::Settings {
        tunnel_idle_timeout: std::time::Duration::from_millis(50),
        ..settings()
    };
    let world = World::with(
        limited,
        vec![entry("/", rule(vec![service(&[upstream.address])]))],
    );
    let mut client = world.client();
    client.send(get_with(
        "/ws",
        "connection: upgrade\r\nupgrade: websocket\r\nx-request-id: idle\r\n",
    ));
    client.until("early").unwrap();
    assert!(client.closes());
    assert_eq!(world.record("idle").end, "timed-out");
}

#[test]
fn an_upgrade_that_the_endpoint_refuses_is_an_answer() {
    let upstream =
        Upstream::answering("HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno");
    let world = World::to(service(&[upstream.address]));
    let mut client = world.client();
    for _ in 0..2 {
        client.send(asks("upgrade"));
        let got = client.response("GET");
        assert_eq!((got.status(), &*got.text()), (426, "no"));
    }
}

#[test]
fn an_upgrade_that_is_not_asked_for_in_full_is_none() {
    let check = |request: String| {
        let upstream = Upstream::saying("plain");
        let got = World::to(service(&[upstream.address])).ask(&request);
        assert_eq!(got.text(), "plain", "{request:?}");
        assert_eq!(upstream.last().field("upgrade"), None, "{request:?}");
    };
    check(get_with("/", "upgrade: websocket\r\n"));
    check(get_with("/", "connection: upgrade\r\n"));
    check(get_with(
        "/",
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n",
    ));
    check(asks("upgrade").replace("HTTP/1.1", "HTTP/1.0"));
}
