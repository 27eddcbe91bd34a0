//! Certificates of clients, and requests on connections that were made for another listener.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::tls::*;
use common::*;
use forebay_model::route::RouteTable;
use forebay_model::snapshot::{ClientTrust, Listener};
use http_body_util::BodyExt;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A listener whose routes say who it is.
fn listener_saying(host: Option<&str>, own: &Issued, says: &Upstream) -> Listener {
    let to = rule(vec![service(&[says.address])]);
    Listener {
        certificates: vec![Arc::clone(&own.secret)],
        ..listener(host, RouteTable::build(vec![(None, entry("/", to))]))
    }
}

fn asking(authority: &Authority, optional: bool, listener: Listener) -> Listener {
    Listener {
        clients: Some(Arc::new(ClientTrust {
            trust: authority.trust(),
            optional,
        })),
        ..listener
    }
}

/// The answer to a request over HTTP/1.1, and how its handshake went.
async fn ask(
    config: &Arc<ClientConfig>,
    port: u16,
    name: &str,
    host: &str,
) -> std::io::Result<(String, Option<HandshakeKind>)> {
    let mut stream = shake_with(config, port, name).await?;
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut got = String::new();
    stream.read_to_string(&mut got).await?;
    Ok((got, stream.get_ref().1.handshake_kind()))
}

async fn h2(port: u16, name: &str, config: ClientConfig) -> Client {
    let mut config = config;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = shake_with(&Arc::new(config), port, name).await.unwrap();
    http2(stream).await
}

async fn ask_h2(client: &mut Client, host: &str) -> (u16, String) {
    let uri = format!("https://{host}/");
    let request = http::Request::get(uri).body(full("")).unwrap();
    let response = client.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[test]
fn a_listener_that_asks_for_certificates_serves_those_who_have_one() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let own = servers.issue(&["a.test", "b.test"]);
    let (good, bad) = (clients.issue(&[]), strangers.issue(&[]));
    let upstream = Upstream::saying("in");
    let world = World::empty(settings());
    world.publish_tls(vec![
        asking(
            &clients,
            false,
            listener_saying(Some("a.test"), &own, &upstream),
        ),
        asking(
            &clients,
            true,
            listener_saying(Some("b.test"), &own, &upstream),
        ),
    ]);
    let check = |host: &str, client: Option<&Issued>, served: bool| {
        let config = Arc::new(client_with(&[&servers.der], client));
        let got = run(ask(&config, world.port, host, host));
        let ok = got.as_ref().is_ok_and(|(got, _)| got.ends_with("in"));
        assert_eq!(ok, served, "{host}: {got:?}");
    };
    check("a.test", Some(&good), true);
    check("a.test", Some(&bad), false);
    check("a.test", None, false);
    // `AllowInsecureFallback` serves everybody.
    check("b.test", Some(&good), true);
    check("b.test", Some(&bad), true);
    check("b.test", None, true);
    world.comes_to_show("forebay_tls_failures_total{reason=\"handshake\"} 2");
}

#[test]
fn roots_that_do_not_hold_shut_their_own_listener() {
    let servers = Authority::new();
    let own = servers.issue(&["a.test", "b.test"]);
    let upstream = Upstream::saying("in");
    let world = World::empty(settings());
    let nobody = ClientTrust {
        trust: forebay_model::route::Trust::Bundle(b"nothing".as_slice().into()),
        optional: true,
    };
    world.publish_tls(vec![
        Listener {
            clients: Some(Arc::new(nobody)),
            ..listener_saying(Some("a.test"), &own, &upstream)
        },
        listener_saying(Some("b.test"), &own, &upstream),
    ]);
    let config = Arc::new(client_config(&[&servers.der]));
    run(async {
        assert!(ask(&config, world.port, "a.test", "a.test").await.is_err());
        assert!(ask(&config, world.port, "b.test", "b.test").await.is_ok());
    });
}

#[test]
fn a_session_opens_only_the_listener_that_it_was_made_at() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let own = servers.issue(&["a.test"]);
    let upstream = Upstream::saying("in");
    let world = World::empty(settings());
    let open = || listener_saying(Some("a.test"), &own, &upstream);
    world.publish_tls(vec![open()]);
    let config = Arc::new(client_config(&[&servers.der]));
    run(async {
        let again = || ask(&config, world.port, "a.test", "a.test");
        assert_eq!(again().await.unwrap().1, Some(HandshakeKind::Full));
        assert_eq!(again().await.unwrap().1, Some(HandshakeKind::Resumed));
        world.publish_tls(vec![asking(&clients, false, open())]);
        assert!(again().await.is_err(), "the ticket is no certificate");
    });
}

#[test]
fn a_request_for_another_listener_than_its_connection_is_misdirected() {
    let ca = Authority::new();
    let own = ca.issue(&["first.test", "second.test", "unknown.test", "*.wild.test"]);
    let says = ["any", "second", "wild", "exact"].map(Upstream::saying);
    let [any, second, wild, exact] = &says;
    let world = World::empty(settings());
    let only_first = |listener: Listener| {
        let to = rule(vec![service(&[any.address])]);
        let first = forebay_model::route::HostPattern::parse("first.test");
        Listener {
            routes: Arc::new(RouteTable::build(vec![(Some(first), entry("/", to))])),
            ..listener
        }
    };
    world.publish_tls(vec![
        listener_saying(Some("exact.wild.test"), &own, exact),
        listener_saying(Some("second.test"), &own, second),
        listener_saying(Some("*.wild.test"), &own, wild),
        stream_listener("stream.test", vec![weighted(1, service(&[any.address]))]),
        only_first(listener_saying(None, &own, any)),
    ]);
    let check = |name: &str, host: &str, status: u16, by: &str| {
        let got = run(async {
            let mut client = h2(world.port, name, client_config(&[&ca.der])).await;
            let misdirected = ask_h2(&mut client, host).await;
            // The connection serves on what it was made for.
            if misdirected.0 == 421 {
                assert_eq!(ask_h2(&mut client, name).await.0, 200);
            }
            misdirected
        });
        assert_eq!(got.0, status, "{name} {host}: {}", got.1);
        if status == 200 {
            assert_eq!(got.1, by, "{name} {host}");
        } else if status == 421 {
            let error: serde_json::Value = serde_json::from_str(&got.1).unwrap();
            assert_eq!(error["error"]["code"], "misdirected_request");
        }
    };
    check("first.test", "first.test", 200, "any");
    check("first.test", "second.test", 421, "");
    check("first.test", "stream.test", 421, "");
    check("first.test", "unknown.test", 404, "");
    check("second.test", "second.test", 200, "second");
    check("second.test", "first.test", 421, "");
    check("second.test", "unknown.test", 421, "");
    check("x.wild.test", "x.wild.test", 200, "wild");
    check("x.wild.test", "y.wild.test", 200, "wild");
    check("x.wild.test", "exact.wild.test", 421, "");
    check("x.wild.test", "second.test", 421, "");
    check("exact.wild.test", "exact.wild.test", 200, "exact");
    check("exact.wild.test", "y.wild.test", 421, "");
    check("unknown.test", "first.test", 200, "any");
    check("unknown.test", "unknown.test", 404, "");
}

#[test]
fn a_connection_is_not_used_under_terms_that_it_was_not_made_under() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let own = servers.issue(&["a.test"]);
    let known = clients.issue(&[]);
    let upstream = Upstream::saying("in");
    let world = World::empty(settings());
    let open = || listener_saying(Some("a.test"), &own, &upstream);
    world.publish_tls(vec![open()]);
    run(async {
        let mut client = h2(world.port, "a.test", client_config(&[&servers.der])).await;
        assert_eq!(ask_h2(&mut client, "a.test").await.0, 200);
        world.publish_tls(vec![asking(&clients, false, open())]);
        assert_eq!(ask_h2(&mut client, "a.test").await.0, 421);
        let with = client_with(&[&servers.der], Some(&known));
        let mut client = h2(world.port, "a.test", with).await;
        assert_eq!(ask_h2(&mut client, "a.test").await.0, 200);
        // Read anew, as from a file: equal, and not the same.
        world.publish_tls(vec![asking(&clients, false, open())]);
        assert_eq!(ask_h2(&mut client, "a.test").await.0, 200);
    });
}
