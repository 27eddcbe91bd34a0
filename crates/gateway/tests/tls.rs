//! TLS towards clients: which certificate, which protocol, what happens when they change.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::tls::*;
use common::*;
use forebay_model::route::RouteTable;
use forebay_model::snapshot::{Certificate, Listener, Port};
use http_body_util::BodyExt;
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::client::TlsStream;

fn tls_port(listeners: Vec<(Option<&str>, Arc<Certificate>)>, upstream: &Upstream) -> Port {
    let listeners = listeners
        .into_iter()
        .map(|(host, certificate)| {
            let to = rule(vec![service(&[upstream.address])]);
            Listener {
                certificates: vec![certificate],
                ..listener(host, RouteTable::build(vec![(None, entry("/", to))]))
            }
        })
        .collect();
    Port {
        number: 443,
        tls: true,
        listeners,
    }
}

/// A handshake for `host` by a client that trusts `trusted` and speaks `protocols`.
async fn shake(
    port: u16,
    host: &str,
    trusted: &[&Issued],
    protocols: &[&[u8]],
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let trusted: Vec<_> = trusted.iter().map(|issued| &issued.der).collect();
    let mut config = client_config(&trusted);
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    shake_with(&Arc::new(config), port, host).await
}

#[test]
fn the_name_that_the_client_gives_picks_the_certificate() {
    let upstream = Upstream::saying("x");
    let (a, wild, fallback) = (issue("a.test"), issue("*.b.test"), issue("other.test"));
    let world = World::empty(settings());
    let some = vec![
        (Some("a.test"), Arc::clone(&a.secret)),
        (Some("*.b.test"), Arc::clone(&wild.secret)),
    ];
    let open = free_port();
    let all = [some.clone(), vec![(None, Arc::clone(&fallback.secret))]].concat();
    world.publish_ports([
        (world.port, tls_port(some, &upstream)),
        (open, tls_port(all, &upstream)),
    ]);
    world.wait_bound(world.port);
    world.wait_bound(open);
    run(async {
        let trusted = [&a, &wild, &fallback];
        for (host, issued) in [("a.test", &a), ("A.test", &a), ("x.b.test", &wild)] {
            let stream = shake(world.port, host, &trusted, &[]).await.unwrap();
            assert_eq!(served(&stream), issued.der, "{host}");
        }
        // Nobody's name, and a client without one, get no certificate at all...
        for host in ["other.test", "b.test", "127.0.0.1"] {
            let error = shake(world.port, host, &trusted, &[]).await.unwrap_err();
            let alert = error.to_string();
            assert!(alert.contains("alert"), "{host}: {alert}");
        }
        // ...unless a listener is for every host.
        let stream = shake(open, "other.test", &trusted, &[]).await.unwrap();
        assert_eq!(served(&stream), fallback.der);
    });
}

#[test]
fn a_listener_that_does_not_hold_keeps_its_host_from_those_that_are_less_specific() {
    let upstream = Upstream::saying("x");
    let wild = issue("*.b.test");
    let world = World::empty(settings());
    let listeners = vec![(Some("*.b.test"), Arc::clone(&wild.secret))];
    let mut port = tls_port(listeners, &upstream);
    world.publish_ports([(world.port, port.clone())]);
    world.wait_bound(world.port);
    let reaches = |host: &str| run(shake(world.port, host, &[&wild], &[]));
    assert!(reaches("mine.b.test").is_ok());
    port.listeners.insert(
        0,
        Listener {
            refused: true,
            ..listener(Some("mine.b.test"), RouteTable::default())
        },
    );
    world.publish_ports([(world.port, port.clone())]);
    eventually("its handshakes are refused", || {
        reaches("mine.b.test").is_err()
    });
    assert!(world.shows("forebay_tls_failures_total{reason=\"certificate_invalid\"} 1"));
    // Nor does it come in by a connection that was made for another name.
    run(async {
        let mut stream = shake(world.port, "other.b.test", &[&wild], &[])
            .await
            .unwrap();
        let request = "GET / HTTP/1.1\r\nhost: mine.b.test\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        assert!(got.starts_with("HTTP/1.1 421 "), "{got}");
    });
    assert!(upstream.seen().is_empty());
    // Mended, it serves.
    port.listeners[0] = Listener {
        certificates: vec![Arc::clone(&wild.secret)],
        refused: false,
        ..port.listeners[0].clone()
    };
    world.publish_ports([(world.port, port)]);
    eventually("it serves", || reaches("mine.b.test").is_ok());
}

#[test]
fn without_tls_the_host_of_such_a_listener_is_answered_404() {
    let upstream = Upstream::saying("x");
    let world = World::empty(settings());
    let to = rule(vec![service(&[upstream.address])]);
    let port = Port {
        number: 80,
        tls: false,
        listeners: vec![
            Listener {
                refused: true,
                ..listener(Some("mine.test"), RouteTable::default())
            },
            listener(None, RouteTable::build(vec![(None, entry("/", to))])),
        ],
    };
    world.publish_ports([(world.port, port)]);
    world.wait_bound(world.port);
    let status = |host: &str| {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        world.ask(&request).status()
    };
    assert_eq!((status("mine.test"), status("other.test")), (404, 200));
}

#[test]
fn the_protocol_is_agreed_on_in_the_handshake() {
    let upstream = Upstream::saying("x");
    let a = issue("a.test");
    let world = World::empty(settings());
    let listeners = vec![(None, Arc::clone(&a.secret))];
    world.publish_ports([(world.port, tls_port(listeners, &upstream))]);
    world.wait_bound(world.port);
    run(async {
        let h1: &[&[u8]] = &[b"http/1.1"];
        for protocols in [h1, &[]] {
            let mut stream = shake(world.port, "a.test", &[&a], protocols).await.unwrap();
            let request = get_with("/", "host-is: a\r\nconnection: close\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut got = String::new();
            stream.read_to_string(&mut got).await.unwrap();
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
        }
        let stream = shake(world.port, "a.test", &[&a], &[b"h2", b"http/1.1"])
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut client = http2(stream).await;
        let request = http::Request::get("https://a.test/")
            .body(full(""))
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    });
    assert_eq!(
        upstream.last().field("x-forwarded-proto").as_deref(),
        Some("https")
    );
}

#[test]
fn a_new_certificate_is_used_from_the_next_handshake_on() {
    let upstream = Upstream::saying("x");
    let (old, new) = (issue("a.test"), issue("a.test"));
    let world = World::empty(settings());
    let publish = |issued: &Issued| {
        let listeners = vec![(Some("a.test"), Arc::clone(&issued.secret))];
        world.publish_ports([(world.port, tls_port(listeners, &upstream))]);
    };
    publish(&old);
    world.wait_bound(world.port);
    run(async {
        let trusted = [&old, &new];
        let mut before = shake(world.port, "a.test", &trusted, &[]).await.unwrap();
        assert_eq!(served(&before), old.der);
        publish(&new);
        let after = shake(world.port, "a.test", &trusted, &[]).await.unwrap();
        assert_eq!(served(&after), new.der);
        // The old connection goes on.
        before
            .write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut got = String::new();
        before.read_to_string(&mut got).await.unwrap();
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
    });
}

#[test]
fn sessions_outlive_a_configuration_that_leaves_the_certificate_alone() {
    let upstream = Upstream::saying("x");
    let (kept, new) = (issue("a.test"), issue("a.test"));
    let world = World::empty(settings());
    let publish = |issued: &Issued| {
        // Read anew, as from a file: equal, and not the same.
        let secret = Arc::new((*issued.secret).clone());
        let listeners = vec![(Some("a.test"), secret)];
        world.publish_ports([(world.port, tls_port(listeners, &upstream))]);
    };
    publish(&kept);
    world.wait_bound(world.port);
    let config = Arc::new(client_config(&[&kept.der, &new.der]));
    let shaken = || async {
        let mut stream = shake_with(&config, world.port, "a.test").await.unwrap();
        let request = get_with("/", "connection: close\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        // The session's ticket comes along with the answer.
        stream.read_to_string(&mut String::new()).await.unwrap();
        stream.get_ref().1.handshake_kind().unwrap()
    };
    run(async {
        assert_eq!(shaken().await, HandshakeKind::Full);
        publish(&kept);
        assert_eq!(shaken().await, HandshakeKind::Resumed);
        publish(&new);
        assert_eq!(shaken().await, HandshakeKind::Full);
    });
}

#[test]
fn a_certificate_that_does_not_hold_breaks_its_own_host_only() {
    let upstream = Upstream::saying("x");
    let (good, other) = (issue("a.test"), issue("b.test"));
    let mixed = |chain: &Issued, key: &[u8]| {
        Arc::new(Certificate {
            key_pem: key.into(),
            ..(*chain.secret).clone()
        })
    };
    for bad in [
        mixed(&other, &good.secret.key_pem),
        mixed(&other, b"no key"),
    ] {
        let world = World::empty(settings());
        let listeners = vec![
            (Some("a.test"), Arc::clone(&good.secret)),
            (Some("b.test"), bad),
        ];
        world.publish_ports([(world.port, tls_port(listeners, &upstream))]);
        world.wait_bound(world.port);
        run(async {
            assert!(shake(world.port, "a.test", &[&good], &[]).await.is_ok());
            assert!(shake(world.port, "b.test", &[&other], &[]).await.is_err());
        });
    }
}

#[test]
fn plain_bytes_on_a_tls_port_end_the_connection() {
    let upstream = Upstream::saying("x");
    let world = World::empty(settings());
    let listeners = vec![(None, Arc::clone(&issue("a.test").secret))];
    world.publish_ports([(world.port, tls_port(listeners, &upstream))]);
    world.wait_bound(world.port);
    let mut client = world.client();
    client.send(get("/"));
    client.rest();
    assert_eq!(upstream.seen(), []);
}
