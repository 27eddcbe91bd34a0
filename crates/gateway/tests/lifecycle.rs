//! What running exchanges notice of a new configuration, of a shutdown, of a port that is taken:
//! nothing, if it can be helped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use forebay_gateway::settings::Settings;
use forebay_model::route::RouteTable;
use forebay_model::snapshot::Port;

/// One plain port with one route to `target`.
fn port_to(target: forebay_model::route::Target) -> Port {
    let entries = vec![(None, entry("/", rule(vec![target])))];
    Port {
        number: 80,
        tls: false,
        listeners: vec![listener(None, RouteTable::build(entries))],
    }
}

#[test]
fn new_configurations_drop_nothing() {
    let servers: Vec<Upstream> = (0..3).map(|_| Upstream::saying("x")).collect();
    let all = addresses(&servers);
    let world = World::to(pool(&all));
    let (other, done) = (free_port(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let load = |fresh: bool| {
            let (mut client, mut answered) = (world.client(), 0);
            while !done.load(Ordering::SeqCst) || answered < 50 {
                if fresh {
                    client = world.client();
                }
                client.send(post("/v1/chat/completions", r#"{"model":"m"}"#));
                let got = client.response("POST");
                assert_eq!((got.status(), got.complete), (200, true), "{got:?}");
                answered += 1;
            }
            answered
        };
        let loads = [false, false, true].map(|fresh| scope.spawn(move || load(fresh)));
        for round in 0..60 {
            let some = match round % 4 {
                0 => &all[..1],
                1 => &all[1..],
                2 => &all[..2],
                _ => &all[..],
            };
            let target = if round % 5 == 0 {
                service(some)
            } else {
                pool(some)
            };
            let ports = [
                (world.port, port_to(target.clone())),
                (other, port_to(target)),
            ];
            let count = 1 + round % 2;
            world.publish_ports(ports.into_iter().take(count));
            eventually("the other port follows", || {
                world.gateway.shared().ports().contains_key(&other) == (count == 2)
            });
        }
        done.store(true, Ordering::SeqCst);
        for load in loads {
            assert!(load.join().unwrap() >= 50);
        }
    });
}

#[test]
fn a_request_keeps_the_configuration_that_it_began_with() {
    let (go, gone) = std::sync::mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let slow = Upstream::start(move |side| {
        side.request();
        side.send(format!("{SSE_HEAD}{}", chunk("data: 1\n\n")));
        gone.lock().unwrap().recv().unwrap();
        side.send(format!("{}0\r\n\r\n", chunk("data: 2\n\n")));
    });
    let world = World::to(pool(&[slow.address]));
    let mut client = world.client();
    client.send(get("/"));
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.chunk().unwrap(), b"data: 1\n\n");
    // Its pool, its route and its port are gone.
    world.publish_ports([]);
    eventually("the port is closed", || {
        world.gateway.shared().ports().is_empty()
    });
    go.send(()).unwrap();
    assert_eq!(client.chunk().unwrap(), b"data: 2\n\n");
    assert_eq!(client.chunk().unwrap(), b"");
}

#[test]
fn a_port_can_come_back() {
    let upstream = Upstream::saying("x");
    let world = World::to(service(&[upstream.address]));
    for _ in 0..5 {
        world.publish_ports([]);
        eventually("the port is closed", || {
            world.gateway.shared().ports().is_empty()
        });
        world.publish(vec![entry("/", rule(vec![service(&[upstream.address])]))]);
        assert_eq!(world.ask(&get("/")).status(), 200);
        assert_eq!(world.gateway.shared().ports()[&world.port].bound, 1);
    }
}

#[test]
fn a_port_that_is_taken_is_reported_and_opened_once_it_is_free() {
    let upstream = Upstream::saying("x");
    let world = World::empty(settings());
    let squatter = TcpListener::bind(("127.0.0.1", world.port)).unwrap();
    world.publish_ports([(world.port, port_to(service(&[upstream.address])))]);
    let state = || world.gateway.shared().ports().get(&world.port).cloned();
    eventually("the failure is reported", || {
        state().is_some_and(|s| s.error.is_some_and(|e| e.contains("in use")) && s.bound == 0)
    });
    drop(squatter);
    world.wait_bound(world.port);
    assert_eq!(state().unwrap().error, None);
    assert_eq!(world.ask(&get("/")).status(), 200);
}

#[test]
fn a_drain_lets_streams_end_and_closes_what_is_idle() {
    let (go, gone) = std::sync::mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let upstream = Upstream::start(move |side| {
        while let Some(request) = side.request() {
            if request.start.contains("/quick") {
                side.send(ok("x"));
                continue;
            }
            side.send(format!("{SSE_HEAD}{}", chunk("data: 1\n\n")));
            gone.lock().unwrap().recv().unwrap();
            side.send(format!("{}0\r\n\r\n", chunk("data: 2\n\n")));
        }
    });
    let world = World::to(service(&[upstream.address]));
    let mut running = world.client();
    running.send(get("/stream"));
    assert_eq!(running.head().unwrap().status(), 200);
    assert_eq!(running.chunk().unwrap(), b"data: 1\n\n");
    let mut idle = world.client();
    idle.send(get("/quick"));
    assert_eq!(idle.response("GET").status(), 200);
    world.gateway.drain();
    assert!(idle.closes(), "an idle connection ends at once");
    eventually("no new connections", || {
        std::net::TcpStream::connect(("127.0.0.1", world.port)).is_err()
    });
    go.send(()).unwrap();
    assert_eq!(running.chunk().unwrap(), b"data: 2\n\n");
    assert_eq!(running.rest(), b"0\r\n\r\n");
    assert!(running.closes(), "its connection ends with it");
}

#[test]
fn a_drain_ends_in_time() {
    let upstream = Upstream::start(|side| {
        side.request();
        side.peer.rest();
    });
    let settings = Settings {
        drain_timeout: Duration::from_millis(50),
        ..settings()
    };
    let world = World::with(
        settings,
        vec![entry("/", rule(vec![service(&[upstream.address])]))],
    );
    let mut client = world.client();
    client.send(get("/"));
    eventually("the request waits", || !upstream.seen().is_empty());
    world.gateway.drain();
    assert!(client.closes());
}

#[test]
fn connections_are_counted_on_both_sides() {
    let (upstream, go) = Upstream::holding_slow();
    let world = World::to(service(&[upstream.address]));
    let counted = |client, busy, idle| {
        let states = [
            ("client", client),
            ("upstream_busy", busy),
            ("upstream_idle", idle),
        ];
        eventually(&format!("{states:?} are counted"), || {
            states.iter().all(|(state, n)| world.counts(state, *n))
        });
    };
    counted(0, 0, 0);
    let (mut slow, mut quick) = (world.client(), world.client());
    quick.send(get("/quick"));
    assert_eq!(quick.response("GET").status(), 200);
    counted(2, 0, 1);
    slow.send(get("/slow"));
    counted(2, 1, 0);
    quick.send(get("/quick"));
    assert_eq!(quick.response("GET").status(), 200);
    counted(2, 1, 1);
    go.send(()).unwrap();
    assert_eq!(slow.response("GET").status(), 200);
    counted(2, 0, 2);
    drop((slow, quick));
    world.publish(vec![entry("/", rule(vec![service(&[dead_address()])]))]);
    counted(0, 0, 0);
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let upstream = Upstream::saying("x");
    let settings = Settings {
        connections_per_worker_max: 2,
        ..settings()
    };
    let world = World::with(
        settings,
        vec![entry("/", rule(vec![service(&[upstream.address])]))],
    );
    let (mut one, mut two, mut three) = (world.client(), world.client(), world.client());
    for client in [&mut one, &mut two] {
        client.send(get("/"));
        assert_eq!(client.response("GET").status(), 200);
    }
    three.send(get("/"));
    drop(one);
    assert_eq!(three.response("GET").status(), 200);
    two.send(get("/"));
    assert_eq!(two.response("GET").status(), 200);
}
