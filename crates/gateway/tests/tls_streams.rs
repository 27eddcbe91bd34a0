//! Connections of `TLSRoute`s: passed through by server name, or ended here and passed on as bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::tls::*;
use common::*;
use forebay_gateway::settings::Settings;
use forebay_gateway::telemetry::Format;
use forebay_model::AppProtocol;
use forebay_model::route::{BackendTls, RouteTable, Target};
use forebay_model::snapshot::{Certificate, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Says what it hears until the client has said all, and then good-bye.
fn echo() -> Upstream {
    Upstream::start(|side| {
        while let Some(line) = side.peer.until("\n") {
            side.send(line);
        }
        side.send("bye");
    })
}

fn to(target: Target) -> Vec<forebay_model::route::WeightedTarget> {
    vec![weighted(1, target)]
}

fn ending_here(certificate: &Arc<Certificate>, listener: Listener) -> Listener {
    Listener {
        certificates: vec![Arc::clone(certificate)],
        ..listener
    }
}

/// What a client gets for `says`, after which it says no more; who served it, too.
async fn talk(
    port: u16,
    host: &str,
    trusted: &Authority,
    says: &str,
) -> std::io::Result<(String, rustls::pki_types::CertificateDer<'static>)> {
    let config = Arc::new(client_config(&[&trusted.der]));
    let mut stream = shake_with(&config, port, host).await?;
    stream.write_all(says.as_bytes()).await?;
    stream.shutdown().await?;
    let mut got = String::new();
    stream.read_to_string(&mut got).await?;
    Ok((got, served(&stream)))
}

#[test]
fn one_port_passes_on_ends_and_serves_by_server_name() {
    let ca = Authority::new();
    let (own, theirs) = (
        ca.issue(&["ours.test", "web.test"]),
        ca.issue(&["theirs.test"]),
    );
    let (behind, plain, web) = (echo(), echo(), Upstream::saying("web"));
    let front = Front::new(&theirs, behind.address);
    let world = World::empty(settings());
    let http = rule(vec![service(&[web.address])]);
    let http = RouteTable::build(vec![(None, entry("/", http))]);
    world.publish_tls(vec![
        stream_listener("theirs.test", to(service(&[front.address]))),
        ending_here(
            &own.secret,
            stream_listener("ours.test", to(service(&[plain.address]))),
        ),
        ending_here(&own.secret, listener(Some("web.test"), http)),
    ]);
    run(async {
        for (host, by) in [("theirs.test", &theirs), ("ours.test", &own)] {
            let (got, served) = talk(world.port, host, &ca, "one\ntwo\n").await.unwrap();
            assert_eq!((&*got, &served), ("one\ntwo\nbye", &by.der), "{host}");
        }
        let request = get_with("/", "connection: close\r\n").replace("h.test", "web.test");
        let config = Arc::new(client_config(&[&ca.der]));
        let mut stream = shake_with(&config, world.port, "web.test").await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        assert!(got.ends_with("web"), "{got}");
    });
    assert_eq!(front.seen()[0].name.as_deref(), Some("theirs.test"));
    assert_eq!(
        (behind.connections(), plain.connections(), web.connections()),
        (1, 1, 1)
    );
    eventually("every connection is given back", || {
        world.counts("client", 0) && world.counts("upstream_busy", 0)
    });
}

#[test]
fn what_ends_here_may_go_on_within_tls_of_its_own() {
    let ca = Authority::new();
    let (own, theirs) = (ca.issue(&["ours.test"]), ca.issue(&["inner.test"]));
    let behind = echo();
    let front = Front::new(&theirs, behind.address);
    let world = World::empty(settings());
    let tls = BackendTls {
        hostname: "inner.test".into(),
        trust: ca.trust(),
        names: Vec::new(),
        client: None,
    };
    let target = service_with(AppProtocol::Http, Some(tls), &[front.address]);
    world.publish_tls(vec![ending_here(
        &own.secret,
        stream_listener("ours.test", to(target)),
    )]);
    run(async {
        let (got, served) = talk(world.port, "ours.test", &ca, "x\n").await.unwrap();
        assert_eq!((&*got, &served), ("x\nbye", &own.der));
    });
    let seen = front.seen();
    assert_eq!(seen[0].name.as_deref(), Some("inner.test"));
    assert_eq!(seen[0].protocol, None, "nobody knows what is spoken within");
}

#[test]
fn much_goes_both_ways_at_once() {
    const BYTES: usize = 4 << 20;
    let ca = Authority::new();
    let (own, theirs) = (ca.issue(&["ours.test"]), ca.issue(&["theirs.test"]));
    let behind = echo();
    let front = Front::new(&theirs, behind.address);
    let world = World::empty(settings());
    world.publish_tls(vec![
        stream_listener("theirs.test", to(service(&[front.address]))),
        ending_here(
            &own.secret,
            stream_listener("ours.test", to(service(&[behind.address]))),
        ),
    ]);
    let line = format!("{}\n", "x".repeat(65_535));
    run(async {
        for host in ["theirs.test", "ours.test"] {
            let config = Arc::new(client_config(&[&ca.der]));
            let stream = shake_with(&config, world.port, host).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(stream);
            let write = async {
                for _ in 0..BYTES / line.len() {
                    writer.write_all(line.as_bytes()).await.unwrap();
                }
                writer.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(write, reader.read_to_end(&mut got));
            read.unwrap();
            assert_eq!(got.len(), BYTES + "bye".len(), "{host}");
        }
    });
}

#[test]
fn a_name_that_leads_nowhere_finds_the_connection_closed() {
    let ca = Authority::new();
    let own = ca.issue(&["*.test"]);
    let dead = service(&[dead_address()]);
    let world = World::empty(settings());
    let here = |host, target| ending_here(&own.secret, stream_listener(host, to(target)));
    world.publish_tls(vec![
        stream_listener("broken.test", to(broken(500))),
        here("broken-here.test", broken(500)),
        stream_listener("empty.test", to(service(&[]))),
        here("empty-here.test", service(&[])),
        stream_listener("dead.test", to(dead)),
        stream_listener("none.test", Vec::new()),
        stream_listener("pool.test", to(pool(&[dead_address()]))),
    ]);
    let check = |host: &str, counted: &str| {
        let got = run(talk(world.port, host, &ca, "x\n")).unwrap_err();
        // No alert: as the end of a connection, or its reset, clients take it for a refusal.
        let expected = [
            std::io::ErrorKind::UnexpectedEof,
            std::io::ErrorKind::ConnectionReset,
        ];
        assert!(expected.contains(&got.kind()), "{host}: {got}");
        world.comes_to_show(counted);
    };
    let streams = |reason: &str, n: u8| {
        format!(
            "forebay_streams_total{{gateway=\"default/edge\",route=\"default/stream\",\
             end=\"complete\",reason=\"{reason}\"}} {n}"
        )
    };
    check("broken.test", &streams("backend_invalid", 1));
    check("broken-here.test", &streams("backend_invalid", 2));
    check("pool.test", &streams("backend_invalid", 3));
    check("empty.test", &streams("no_ready_endpoint", 1));
    check("empty-here.test", &streams("no_ready_endpoint", 2));
    check("dead.test", &streams("upstream_connect", 1));
    check("none.test", &streams("no_backend", 1));
    check(
        "other.test",
        "forebay_tls_failures_total{reason=\"no_listener\"} 1",
    );
}

#[test]
fn connections_are_shared_out_by_weight_and_endpoint() {
    let ca = Authority::new();
    let theirs = ca.issue(&["theirs.test"]);
    let behind = echo();
    let fronts = [(); 3].map(|()| Front::new(&theirs, behind.address));
    let two = service(&[fronts[0].address, fronts[1].address]);
    let world = World::empty(settings());
    world.publish_tls(vec![stream_listener(
        "theirs.test",
        vec![
            weighted(3, two),
            weighted(0, broken(500)),
            weighted(1, service(&[fronts[2].address, dead_address()])),
        ],
    )]);
    run(async {
        for _ in 0..80 {
            talk(world.port, "theirs.test", &ca, "x\n").await.unwrap();
        }
    });
    let [first, second, third] = fronts.map(|front| front.seen().len());
    assert_eq!(first + second + third, 80);
    assert!(first.abs_diff(second) <= 1, "{first} and {second}");
    assert!(
        (8..=32).contains(&third),
        "{third} of 80 instead of about 20"
    );
}

#[test]
fn a_first_message_may_come_in_pieces_and_must_come_in_time() {
    let ca = Authority::new();
    let theirs = ca.issue(&["theirs.test"]);
    let behind = echo();
    let front = Front::new(&theirs, behind.address);
    let world = World::empty(Settings {
        head_timeout: Duration::from_millis(500),
        ..settings()
    });
    world.publish_tls(vec![stream_listener(
        "theirs.test",
        to(service(&[front.address])),
    )]);
    // A relay that hands on single bytes.
    let slow = Upstream::start({
        let port = world.port;
        move |side| {
            let mut gateway = Peer::connect(port);
            let mut theirs = side.peer.stream.try_clone().unwrap();
            let mut back = gateway.stream.try_clone().unwrap();
            std::thread::spawn(move || std::io::copy(&mut back, &mut theirs));
            let mut byte = [0];
            while std::io::Read::read(&mut side.peer.stream, &mut byte).is_ok_and(|n| n > 0) {
                gateway.send(byte);
            }
            let _over = gateway.stream.shutdown(std::net::Shutdown::Write);
        }
    });
    run(async {
        let (got, _) = talk(slow.address.port(), "theirs.test", &ca, "x\n")
            .await
            .unwrap();
        assert_eq!(got, "x\nbye");
    });
    // The head of a record that never comes.
    let mut client = world.client();
    client.send([22, 3, 1, 2, 0, 1]);
    assert!(client.closes());
    world.comes_to_show("forebay_tls_failures_total{reason=\"timeout\"} 1");
    let mut client = world.client();
    client.send(get("/"));
    client.rest();
    world.comes_to_show("forebay_tls_failures_total{reason=\"not_tls\"} 1");
    // A message that announces more than anybody has to say.
    let mut client = world.client();
    let mut record = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
    record.resize(5 + 0x4000, 0);
    for _ in 0..8 {
        client.send(&record);
    }
    client.rest();
    world.comes_to_show("forebay_tls_failures_total{reason=\"not_tls\"} 2");
    assert_eq!(front.seen().len(), 1);
}

#[test]
fn silence_in_both_directions_ends_a_connection() {
    let ca = Authority::new();
    let own = ca.issue(&["ours.test"]);
    let silent = Upstream::start(|side| {
        side.peer.rest();
    });
    let world = World::empty(Settings {
        tunnel_idle_timeout: Duration::from_millis(50),
        ..settings()
    });
    world.publish_tls(vec![ending_here(
        &own.secret,
        stream_listener("ours.test", to(service(&[silent.address]))),
    )]);
    run(async {
        let config = Arc::new(client_config(&[&ca.der]));
        let mut stream = shake_with(&config, world.port, "ours.test").await.unwrap();
        let mut got = Vec::new();
        let _cut = stream.read_to_end(&mut got).await;
        assert!(got.is_empty());
    });
    world.comes_to_show(
        "forebay_streams_total{gateway=\"default/edge\",route=\"default/stream\",\
         end=\"timed-out\",reason=\"\"} 1",
    );
}

/// A log that a test reads.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Pipe {
    fn lines(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    }
}

#[test]
fn a_connection_has_the_time_of_a_drain_and_leaves_a_line() {
    let ca = Authority::new();
    let own = ca.issue(&["ours.test"]);
    let behind = echo();
    let pipe = Pipe::default();
    let world = World::logging(
        Settings {
            drain_timeout: Duration::from_millis(300),
            ..settings()
        },
        Format::Json,
        Box::new(pipe.clone()),
    );
    world.publish_tls(vec![ending_here(
        &own.secret,
        stream_listener("ours.test", to(service(&[behind.address]))),
    )]);
    run(async {
        talk(world.port, "ours.test", &ca, "one\n").await.unwrap();
        let config = Arc::new(client_config(&[&ca.der]));
        let mut stream = shake_with(&config, world.port, "ours.test").await.unwrap();
        let mut line = [0; 4];
        stream.write_all(b"two\n").await.unwrap();
        stream.read_exact(&mut line).await.unwrap();
        world.gateway.drain();
        stream.write_all(b"six\n").await.unwrap();
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"six\n", "served while the gateway drains");
        let _cut = stream.read_to_end(&mut Vec::new()).await;
    });
    eventually("both connections have their lines", || {
        pipe.lines().len() == 2
    });
    let lines = pipe.lines();
    let said = |n: usize, key: &str| lines[n][key].clone();
    for (n, bytes_in, bytes_out, end) in [(0, 4, 7, "complete"), (1, 8, 8, "timed-out")] {
        for (key, value) in [
            ("tls", serde_json::json!("terminate")),
            ("server_name", "ours.test".into()),
            ("gateway", "default/edge".into()),
            ("listener", "stream".into()),
            ("route", "default/stream".into()),
            ("endpoint", behind.address.to_string().into()),
            ("bytes_in", bytes_in.into()),
            ("bytes_out", bytes_out.into()),
            ("end", end.into()),
        ] {
            assert_eq!(said(n, key), value, "{key} of {:?}", lines[n]);
        }
    }
    assert_eq!(said(1, "reason"), "shutting_down");
}
