//! TLS towards backends: whom to trust, what to show, what is spoken within.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::tls::*;
use common::*;
use forebay_model::AppProtocol;
use forebay_model::route::{BackendTls, Filter, Mirror, SubjectName, Trust};

/// The policy of `authority` for `a.test`.
fn policy(authority: &Authority) -> BackendTls {
    BackendTls {
        hostname: "a.test".into(),
        trust: authority.trust(),
        names: Vec::new(),
        client: None,
    }
}

fn world(tls: BackendTls, front: &Front) -> World {
    World::to(service_with(AppProtocol::Http, Some(tls), &[front.address]))
}

fn code(got: &Message) -> String {
    let code = got.json()["error"]["code"].as_str().unwrap().to_owned();
    format!("{} {code}", got.status())
}

#[test]
fn requests_travel_within_tls_on_connections_that_are_kept() {
    let ca = Authority::new();
    let behind = Upstream::saying("hello");
    let front = Front::new(&ca.issue(&["a.test"]), behind.address);
    let world = world(policy(&ca), &front);
    let mut client = world.client();
    for body in ["", "short", &"long".repeat(100_000)] {
        client.send(post("/x", body));
        assert_eq!(client.response("POST").text(), "hello");
        assert_eq!(behind.last().text(), body);
    }
    let shaken = Shaken {
        name: Some("a.test".into()),
        protocol: Some("http/1.1".into()),
        client: None,
        resumed: false,
    };
    assert_eq!(front.seen(), [shaken], "one connection for all");
    assert_eq!(behind.last().field("host").as_deref(), Some("h.test"));
}

#[test]
fn a_further_connection_resumes_the_session() {
    let ca = Authority::new();
    let behind =
        Upstream::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let front = Front::new(&ca.issue(&["a.test"]), behind.address);
    let world = world(policy(&ca), &front);
    for _ in 0..3 {
        assert_eq!(world.ask(&get("/")).status(), 200);
    }
    let resumed: Vec<bool> = front.seen().iter().map(|shaken| shaken.resumed).collect();
    assert_eq!(resumed, [false, true, true]);
}

#[test]
fn a_certificate_must_be_signed_and_for_the_name() {
    let (ca, other) = (Authority::new(), Authority::new());
    let behind = Upstream::saying("hello");
    let check = |names: &[&str], tls: BackendTls, served: bool| {
        let front = Front::new(&ca.issue(names), behind.address);
        let got = world(tls, &front).ask(&get("/"));
        let expected = if served { 200 } else { 502 };
        assert_eq!(got.status(), expected, "{names:?}: {}", got.text());
        if !served {
            assert_eq!(code(&got), "502 backend_tls");
            assert_eq!(
                got.field("x-forebay-reason").as_deref(),
                Some("backend_tls")
            );
        }
    };
    let host = |name: &str| SubjectName::Hostname(name.into());
    let uri = |name: &str| SubjectName::Uri(name.into());
    let named = |names: Vec<SubjectName>| BackendTls {
        names,
        ..policy(&ca)
    };
    let policy_for = |name: &str| BackendTls {
        hostname: name.into(),
        ..policy(&ca)
    };
    let id = "spiffe://a.test/one";
    check(&["a.test"], policy(&ca), true);
    check(&["*.a.test"], policy_for("x.a.test"), true);
    check(&["b.test"], policy(&ca), false);
    check(&["a.test"], policy(&other), false);
    // With names the hostname is only what is asked for.
    check(&["b.test"], named(vec![host("b.test")]), true);
    check(&["*.b.test"], named(vec![host("x.b.test")]), true);
    check(&["a.test"], named(vec![host("b.test")]), false);
    check(&["a.test", id], named(vec![uri(id)]), true);
    check(&["a.test"], named(vec![uri(id)]), false);
    check(
        &["a.test", "spiffe://a.test/two"],
        named(vec![uri(id)]),
        false,
    );
    check(&["c.test", id], named(vec![host("b.test"), uri(id)]), true);
    check(&["*.b.test"], named(vec![host("*.b.test")]), true);
    check(&["x.b.test"], named(vec![host("*.b.test")]), false);
    // The right names do not make up for the wrong signature.
    let strange = BackendTls {
        names: vec![host("b.test"), uri(id)],
        ..policy(&other)
    };
    check(&["b.test", id], strange, false);
}

/// Roots are read once in a process: this test has one of its own.
#[test]
fn system_trust_is_that_of_the_machines_files() {
    const FILE: &str = "SSL_CERT_FILE";
    const CHILD: &str = "FOREBAY_TEST_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let file = std::env::temp_dir().join(format!("forebay-roots-{}.pem", std::process::id()));
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "system_trust_is_that_of_the_machines_files"])
            .envs([(CHILD, "1".as_ref()), (FILE, file.as_os_str())])
            .env_remove("SSL_CERT_DIR")
            .output()
            .unwrap();
        std::fs::remove_file(&file).unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        return assert!(child.status.success(), "{said}");
    }
    let (ca, other) = (Authority::new(), Authority::new());
    std::fs::write(std::env::var_os(FILE).unwrap(), &ca.pem).unwrap();
    let behind = Upstream::saying("hello");
    for (authority, status) in [(&ca, 200), (&other, 502)] {
        let front = Front::new(&authority.issue(&["a.test"]), behind.address);
        let tls = BackendTls {
            trust: Trust::System,
            ..policy(&ca)
        };
        assert_eq!(world(tls, &front).ask(&get("/")).status(), status);
    }
}

#[test]
fn a_backend_that_asks_gets_the_gateways_certificate() {
    let (ca, clients) = (Authority::new(), Authority::new());
    let own = clients.issue(&["gateway"]);
    let behind = Upstream::saying("hello");
    for protocol in [AppProtocol::Http, AppProtocol::H2c] {
        let front = Front::of(
            &ca.issue(&["a.test"]),
            Some(&clients),
            &["http/1.1", "h2"],
            behind.address,
        );
        let ask = |client| {
            let tls = BackendTls {
                client,
                ..policy(&ca)
            };
            World::to(service_with(protocol, Some(tls), &[front.address])).ask(&get("/"))
        };
        // Its alert may get lost behind the end of the connection.
        let got = code(&ask(None));
        assert!(
            ["502 backend_tls", "502 upstream_reset"].contains(&&*got),
            "{got}"
        );
        if protocol == AppProtocol::Http {
            assert_eq!(ask(Some(Arc::clone(&own.secret))).text(), "hello");
            assert_eq!(front.seen().last().unwrap().client.as_ref(), Some(&own.der));
        }
    }
}

#[test]
fn a_policy_that_cannot_be_followed_refuses_its_requests_and_no_others() {
    let ca = Authority::new();
    let behind = Upstream::saying("hello");
    let front = Front::new(&ca.issue(&["a.test"]), behind.address);
    let to = |tls| {
        rule(vec![service_with(
            AppProtocol::Http,
            Some(tls),
            &[front.address],
        )])
    };
    let no_roots = BackendTls {
        trust: Trust::Bundle(b"nothing".as_slice().into()),
        ..policy(&ca)
    };
    let no_name = BackendTls {
        hostname: "not a name".into(),
        ..policy(&ca)
    };
    let world = World::with(
        settings(),
        vec![
            entry("/roots", to(no_roots)),
            entry("/name", to(no_name)),
            entry("/", to(policy(&ca))),
        ],
    );
    for (path, says) in [("/roots", "no certificate"), ("/name", "not a name")] {
        let got = world.ask(&get(path));
        assert_eq!(code(&got), "502 backend_tls");
        assert!(got.text().contains(says), "{}", got.text());
    }
    assert_eq!(world.ask(&get("/")).text(), "hello");
}

#[test]
fn connections_of_a_policy_that_is_gone_are_not_used_by_the_next() {
    let (ca, other) = (Authority::new(), Authority::new());
    let behind = Upstream::saying("hello");
    let front = Front::new(&ca.issue(&["a.test"]), behind.address);
    let world = World::empty(settings());
    let publish = |tls: BackendTls| {
        let to = service_with(AppProtocol::Http, Some(tls), &[front.address]);
        world.publish(vec![entry("/", rule(vec![to]))]);
    };
    publish(policy(&ca));
    assert_eq!(world.ask(&get("/")).status(), 200);
    // An equal policy goes on with what is connected.
    publish(policy(&ca));
    assert_eq!(world.ask(&get("/")).status(), 200);
    assert_eq!(front.seen().len(), 1);
    publish(policy(&other));
    assert_eq!(code(&world.ask(&get("/"))), "502 backend_tls");
    publish(policy(&ca));
    eventually(
        "idle connections of policies that are gone are closed",
        || world.counts("upstream_idle", 1) || world.counts("upstream_idle", 0),
    );
    assert_eq!(world.ask(&get("/")).status(), 200);
}

#[test]
fn a_backend_that_breaks_off_within_tls_is_a_backend_that_breaks_off() {
    let ca = Authority::new();
    let silent = Upstream::start(|side| {
        side.request();
    });
    let front = Front::new(&ca.issue(&["a.test"]), silent.address);
    let got = world(policy(&ca), &front).ask(&post("/", "body"));
    assert_eq!(code(&got), "502 upstream_reset");
    // One that takes the connection and never shakes hands.
    let deaf = Upstream::start(|side| {
        side.peer.rest();
    });
    let to = service_with(AppProtocol::Http, Some(policy(&ca)), &[deaf.address]);
    let limited = forebay_model::route::Rule {
        timeouts: forebay_model::route::Timeouts {
            request: Some(std::time::Duration::from_millis(200)),
            backend: None,
        },
        ..rule(vec![to])
    };
    let world = World::with(settings(), vec![entry("/", limited)]);
    assert_eq!(code(&world.ask(&get("/"))), "504 upstream_timeout");
}

#[test]
fn websockets_and_mirrors_go_the_same_way() {
    let ca = Authority::new();
    let socket = Upstream::start(|side| {
        if side.request().is_none() {
            return;
        }
        side.send("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nearly");
        while let Some(line) = side.peer.until("\n") {
            side.send(line);
        }
    });
    let shadow = Upstream::saying("copy");
    let certificate = ca.issue(&["a.test"]);
    let (front, mirror) = (
        Front::new(&certificate, socket.address),
        Front::new(&certificate, shadow.address),
    );
    // The endpoint speaks HTTP/2 for everything but upgrades.
    let to = service_with(AppProtocol::H2c, Some(policy(&ca)), &[front.address]);
    let copies = Filter::Mirror(Mirror {
        target: service_with(AppProtocol::Http, Some(policy(&ca)), &[mirror.address]),
        numerator: 1,
        denominator: 1,
    });
    let world = World::with(settings(), vec![entry("/", filtered(vec![copies], to))]);
    let mut client = world.client();
    client.send(get_with(
        "/ws",
        "connection: upgrade\r\nupgrade: websocket\r\n",
    ));
    assert_eq!(client.response("GET").status(), 101);
    assert_eq!(client.until("early").unwrap(), b"early");
    client.send("hello\n");
    assert_eq!(client.until("\n").unwrap(), b"hello\n");
    assert_eq!(front.seen()[0].protocol.as_deref(), Some("http/1.1"));
    assert_eq!(shadow.last().start, "GET /ws HTTP/1.1");
}
