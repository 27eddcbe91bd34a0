//! Requests that come to a saturated pool: who waits, who goes next, and how a wait ends.
//!
//! The server answers when the test says so. One unanswered request fills it; its load is told once
//! and then follows from what is sent and answered, except where a test scrapes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::*;
use forebay_gateway::explain::Queue;
use forebay_gateway::pools::PoolRuntime;
use forebay_gateway::settings::Settings;
use forebay_gateway::{clock, signals};
use forebay_model::route::Target;
use forebay_model::{Load, PickerConfig, Pool};

const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
const FAIRNESS: &str = "x-llm-d-inference-fairness-id";

/// A model server that answers a request once a test allows it.
struct Server {
    upstream: Upstream,
    allowed: Arc<(Mutex<HashSet<String>>, Condvar)>,
}

impl Server {
    fn start() -> Self {
        let allowed = Arc::<(Mutex<HashSet<String>>, Condvar)>::default();
        // In the server and not answered yet, which its metrics call waiting.
        let inside = Arc::new(Mutex::new(0_usize));
        let shared = Arc::clone(&allowed);
        let upstream = Upstream::start(move |side| {
            while let Some(request) = side.peer.message(None) {
                if request.start.starts_with("GET /metrics ") {
                    let waiting = *inside.lock().unwrap();
                    side.send(ok(&format!("vllm:num_requests_waiting {waiting}\n")));
                    continue;
                }
                *inside.lock().unwrap() += 1;
                let id = request.field("x-request-id").unwrap();
                side.note(request);
                let (ids, changed) = &*shared;
                let wait = changed
                    .wait_timeout_while(ids.lock().unwrap(), PATIENCE, |ids| !ids.contains(&id));
                drop(wait.unwrap());
                *inside.lock().unwrap() -= 1;
                side.send(ok("{}"));
            }
        });
        Self { upstream, allowed }
    }

    /// Lets the server answer these requests, when it gets them.
    fn answer(&self, ids: &[&str]) {
        let (allowed, changed) = &*self.allowed;
        let ids = ids.iter().map(|id| (*id).to_owned());
        allowed.lock().unwrap().extend(ids);
        changed.notify_all();
    }

    /// The requests that it got, in order.
    fn got(&self) -> Vec<String> {
        let seen = self.upstream.seen();
        let ids = seen.iter().map(|r| r.field("x-request-id").unwrap());
        ids.collect()
    }

    #[track_caller]
    fn gets(&self, ids: &[&str]) {
        eventually(&format!("the server gets {ids:?}"), || {
            self.got().len() >= ids.len()
        });
        assert_eq!(self.got(), ids);
    }
}

/// One server behind a gateway, which it has told that it is idle.
struct Scene {
    world: World,
    server: Server,
}

fn narrow() -> PickerConfig {
    PickerConfig {
        saturation_queue: 1,
        load_stale_after_ms: 3_600_000,
        ..PickerConfig::default()
    }
}

fn pool_with(picker: PickerConfig, endpoints: &[SocketAddr]) -> Target {
    let priorities = [("urgent", 5), ("normal", 0), ("batch", -1)];
    to_pool(Pool {
        picker,
        objectives: priorities.map(|(name, p)| (name.into(), p)).into(),
        ..pool_of("pool", endpoints)
    })
}

impl Scene {
    fn new(picker: PickerConfig) -> Self {
        Self::with(settings(), picker)
    }

    fn with(settings: Settings, picker: PickerConfig) -> Self {
        let server = Server::start();
        let target = pool_with(picker, &[server.upstream.address]);
        let world = World::with(settings, vec![entry("/", rule(vec![target]))]);
        let scene = Self { world, server };
        scene.tell_load(scene.server.upstream.address, 0);
        scene
    }

    fn runtime(&self) -> Arc<PoolRuntime> {
        let live = self.world.gateway.shared().live.load_full();
        Arc::clone(live.pools.values().next().unwrap())
    }

    fn tell_load(&self, endpoint: SocketAddr, waiting: u32) {
        let load = Load {
            waiting: Some(waiting),
            ..Load::default()
        };
        let now = clock::now();
        self.runtime()
            .change(now, |state| state.scraped(endpoint, load, now));
    }

    /// Sends a request on a connection of its own.
    fn send(&self, id: &str, fields: &str) -> Peer {
        let mut client = self.world.client();
        let fields = format!("x-request-id: {id}\r\n{fields}");
        client.send(post_with(CHAT, &fields, BODY));
        client
    }

    /// Sends one that fills the server.
    fn fill(&self) -> Peer {
        let client = self.send("filler", "");
        self.server.gets(&["filler"]);
        client
    }

    #[track_caller]
    fn waits(&self, count: usize) {
        let runtime = self.runtime();
        eventually(&format!("{count} requests wait"), || {
            runtime.state().gate().len() == count
        });
    }

    /// Sends one that has to wait behind so many others.
    #[track_caller]
    fn queue(&self, id: &str, fields: &str, behind: usize) -> Peer {
        let client = self.send(id, fields);
        self.waits(behind + 1);
        client
    }

    fn stay(&self, id: &str) -> Queue {
        self.world.record(id).queue.unwrap()
    }
}

fn objective(name: &str) -> String {
    format!("x-llm-d-inference-objective: {name}\r\n")
}

/// The answer of a request that was refused, with its machine-readable words.
#[track_caller]
fn refused(mut client: Peer, status: u16, reason: &str, dropped: &str) {
    let got = client.response("POST");
    let words = [
        got.field("x-forebay-reason"),
        got.field("x-llm-d-request-dropped-reason"),
    ];
    assert_eq!(got.status(), status, "{got:?}");
    assert_eq!(words, [Some(reason.to_owned()), Some(dropped.to_owned())]);
    assert_eq!(got.field("retry-after").as_deref(), Some("1"));
    assert_eq!(got.json()["error"]["code"], reason);
}

#[track_caller]
fn served(clients: impl IntoIterator<Item = Peer>) {
    for mut client in clients {
        assert_eq!(client.response("POST").status(), 200);
    }
}

#[test]
fn an_idle_pool_keeps_nobody_waiting() {
    let scene = Scene::new(narrow());
    scene.server.answer(&["a"]);
    served([scene.send("a", "")]);
    assert_eq!(scene.world.record("a").queue, None);
    assert!(
        scene
            .world
            .shows("forebay_queue_requests{pool=\"default/pool\"} 0.0")
    );
}

#[test]
fn the_urgent_overtake_those_who_wait() {
    let scene = Scene::new(narrow());
    let filler = scene.fill();
    let normal = scene.queue("normal", &objective("normal"), 0);
    let urgent = scene.queue("urgent", &objective("urgent"), 1);
    assert!(
        scene
            .world
            .shows("forebay_queue_requests{pool=\"default/pool\"} 2.0")
    );
    let bytes = 2 * BODY.len();
    assert!(scene.world.shows(&format!(
        "forebay_queue_bytes{{pool=\"default/pool\"}} {bytes}.0"
    )));
    scene.server.answer(&["filler", "urgent", "normal"]);
    served([filler, urgent, normal]);
    scene.server.gets(&["filler", "urgent", "normal"]);
    assert_eq!(scene.world.record("filler").queue, None);
    let (normal, urgent) = (scene.stay("normal"), scene.stay("urgent"));
    assert_eq!((&*normal.end, normal.ahead), ("sent", 0));
    assert_eq!((&*urgent.end, urgent.ahead), ("sent", 0));
    assert!(normal.saturation >= 1.0 && normal.wait_ms > 0.0);
    let sent = "forebay_queue_ends_total{pool=\"default/pool\",reason=\"sent\"} 2";
    assert!(scene.world.shows(sent));
    assert!(
        scene
            .world
            .shows("forebay_queue_seconds_count{pool=\"default/pool\"} 2")
    );
}

#[test]
fn a_tenant_with_one_request_does_not_wait_for_all_of_another() {
    let scene = Scene::new(narrow());
    let filler = scene.fill();
    let mut clients = vec![filler];
    for (at, id) in ["loud1", "loud2", "loud3", "quiet"].into_iter().enumerate() {
        let fields = format!("{FAIRNESS}: {}\r\n", &id[..4]);
        clients.push(scene.queue(id, &fields, at));
    }
    let all = ["filler", "loud1", "loud2", "loud3", "quiet"];
    scene.server.answer(&all);
    served(clients);
    let mut order = scene.server.got();
    let quiet = order.iter().position(|id| id == "quiet").unwrap();
    // Whose turn comes first is not said; each has had one after two.
    assert!(quiet <= 2, "{order:?}");
    order.remove(quiet);
    assert_eq!(order, ["filler", "loud1", "loud2", "loud3"]);
    // The server has no use for the field.
    assert_eq!(scene.server.upstream.last().field(FAIRNESS), None);
}

#[test]
fn a_free_place_is_one_request_s_and_not_everybody_s() {
    let scene = Scene::new(narrow());
    let filler = scene.fill();
    let ids: Vec<String> = (0..20).map(|n| format!("n{n:02}")).collect();
    let clients: Vec<Peer> = ids
        .iter()
        .enumerate()
        .map(|(at, id)| scene.queue(id, "", at))
        .collect();
    scene.server.answer(&["filler"]);
    served([filler]);
    scene.server.gets(&["filler", "n00"]);
    assert_eq!(scene.runtime().state().gate().len(), 19);
    ids.iter().for_each(|id| scene.server.answer(&[id]));
    served(clients);
    assert_eq!(scene.server.got()[1..], ids);
}

#[test]
fn a_wait_ends_after_its_time_limit() {
    let scene = Scene::new(PickerConfig {
        queue_timeout_ms: 30,
        ..narrow()
    });
    let _filler = scene.fill();
    refused(
        scene.send("late", ""),
        429,
        "queue_expired",
        "rejected-ttl-expired",
    );
    scene.waits(0);
    let stay = scene.stay("late");
    assert_eq!(stay.end, "queue-expired");
    assert!(stay.wait_ms >= 30.0, "{stay:?}");
    let reason = "forebay_queue_ends_total{pool=\"default/pool\",reason=\"queue-expired\"} 1";
    assert!(scene.world.shows(reason));
    assert_eq!(scene.server.got(), ["filler"]);
}

#[test]
fn the_routes_own_time_limit_holds_in_the_queue() {
    let server = Server::start();
    let mut limited = rule(vec![pool_with(narrow(), &[server.upstream.address])]);
    limited.timeouts.request = Some(Duration::from_millis(30));
    let unlimited = rule(vec![pool_with(narrow(), &[server.upstream.address])]);
    let entries = vec![entry("/limited", limited), entry("/", unlimited)];
    let world = World::with(settings(), entries);
    let scene = Scene { world, server };
    scene.tell_load(scene.server.upstream.address, 0);
    let _filler = scene.fill();
    let got = scene
        .world
        .ask(&post_with("/limited", "x-request-id: late\r\n", BODY));
    assert_eq!(got.status(), 504);
    assert_eq!(got.json()["error"]["code"], "request_timeout");
    assert_eq!(scene.stay("late").end, "timed-out");
    scene.waits(0);
}

#[test]
fn a_client_that_leaves_gives_its_place_up() {
    let scene = Scene::new(PickerConfig {
        queue_requests_max: 1,
        ..narrow()
    });
    let filler = scene.fill();
    let leaves = scene.queue("leaves", "", 0);
    refused(
        scene.send("refused", ""),
        429,
        "queue_full",
        "rejected-saturated",
    );
    assert_eq!(scene.stay("refused").end, "queue-full");
    drop(leaves);
    scene.waits(0);
    assert_eq!(scene.stay("leaves").end, "client-gone");
    assert_eq!(scene.world.record("leaves").status, 0);
    let stays = scene.queue("stays", "", 0);
    scene.server.answer(&["filler", "stays"]);
    served([filler, stays]);
    scene.server.gets(&["filler", "stays"]);
    assert_eq!(
        scene.runtime().state().expected_saturation(clock::now()),
        0.0
    );
}

#[test]
fn a_full_queue_makes_room_for_the_urgent() {
    let scene = Scene::new(PickerConfig {
        queue_requests_max: 1,
        ..narrow()
    });
    let filler = scene.fill();
    let normal = scene.queue("normal", "", 0);
    let urgent = scene.send("urgent", &objective("urgent"));
    refused(normal, 429, "queue_displaced", "rejected-saturated");
    assert_eq!(scene.stay("normal").end, "queue-displaced");
    scene.server.answer(&["filler", "urgent"]);
    served([filler, urgent]);
}

#[test]
fn a_body_larger_than_the_queue_is_refused() {
    let scene = Scene::new(PickerConfig {
        queue_bytes_max: BODY.len() - 1,
        ..narrow()
    });
    let _filler = scene.fill();
    let large = scene.send("large", "");
    refused(large, 429, "queue_too_large", "rejected-saturated");
}

#[test]
fn negative_priorities_are_shed_and_never_wait() {
    let scene = Scene::new(narrow());
    scene.server.answer(&["early"]);
    served([scene.send("early", &objective("batch"))]);
    let filler = scene.send("filler", "");
    scene.server.gets(&["early", "filler"]);
    let shed = scene.send("shed", &objective("batch"));
    refused(shed, 429, "saturated", "rejected-saturated");
    let stay = scene.stay("shed");
    assert_eq!((&*stay.end, stay.wait_ms), ("shed", 0.0));
    assert_eq!(scene.world.record("shed").priority, -1);
    scene.server.answer(&["filler"]);
    served([filler]);
}

#[test]
fn a_drain_serves_those_who_wait() {
    let scene = Scene::new(narrow());
    let filler = scene.fill();
    let waits = scene.queue("waits", "", 0);
    scene.world.gateway.drain();
    scene.server.answer(&["filler", "waits"]);
    served([filler, waits]);
}

#[test]
fn a_drain_that_ends_before_their_turn_tells_those_who_wait() {
    let settings = Settings {
        drain_timeout: Duration::from_secs(1),
        ..settings()
    };
    let scene = Scene::with(settings, narrow());
    let _filler = scene.fill();
    let waits = scene.queue("waits", "", 0);
    scene.world.gateway.drain();
    refused(waits, 503, "shutting_down", "rejected-shutting-down");
    assert_eq!(scene.stay("waits").end, "draining");
}

#[test]
fn a_pool_that_is_removed_lets_those_who_wait_go() {
    let scene = Scene::new(narrow());
    let filler = scene.fill();
    let waits = scene.queue("waits", "", 0);
    let other = Upstream::saying("x");
    forget();
    scene
        .world
        .publish(vec![entry("/", rule(vec![service(&[other.address])]))]);
    scene.server.gets(&["filler", "waits"]);
    scene.server.answer(&["filler", "waits"]);
    served([filler, waits]);
}

#[test]
fn an_endpoint_that_is_added_takes_those_who_wait() {
    let scene = Scene::new(narrow());
    let _filler = scene.fill();
    let waits = scene.queue("waits", "", 0);
    let added = Server::start();
    let both = [scene.server.upstream.address, added.upstream.address];
    let target = pool_with(narrow(), &both);
    scene.world.publish(vec![entry("/", rule(vec![target]))]);
    added.answer(&["waits"]);
    scene.tell_load(added.upstream.address, 0);
    served([waits]);
    added.gets(&["waits"]);
}

#[test]
fn where_queueing_is_switched_off_nobody_waits_any_longer() {
    let scene = Scene::new(narrow());
    let filler = scene.fill();
    let waits = scene.queue("waits", "", 0);
    let off = PickerConfig {
        queue_at_saturation: None,
        ..narrow()
    };
    let target = pool_with(off, &[scene.server.upstream.address]);
    scene.world.publish(vec![entry("/", rule(vec![target]))]);
    scene.server.gets(&["filler", "waits"]);
    let more = scene.send("more", "");
    scene.server.gets(&["filler", "waits", "more"]);
    scene.server.answer(&["filler", "waits", "more"]);
    served([filler, waits, more]);
}

#[test]
fn scrapes_open_and_close_the_queue() {
    let scene = Scene::new(PickerConfig {
        saturation_queue: 2,
        ..narrow()
    });
    let shared = scene.world.gateway.shared();
    let fast = signals::Settings {
        interval: Duration::from_millis(5),
        idle_interval: Duration::from_millis(5),
        ..signals::Settings::default()
    };
    let (live, telemetry) = (Arc::clone(&shared.live), Arc::clone(&shared.telemetry));
    let _scraper = signals::spawn(live, telemetry, fast).unwrap();
    // Straight to the server, so that the gateway learns of it by its metrics only.
    let others: Vec<Peer> = ["x", "y"]
        .map(|id| {
            let mut other = Peer::connect(scene.server.upstream.address.port());
            other.send(post_with(CHAT, &format!("x-request-id: {id}\r\n"), BODY));
            other
        })
        .into();
    let runtime = scene.runtime();
    eventually("the scrapes say that the server is full", || {
        runtime.state().saturation(clock::now()) >= 1.0
    });
    let waits = scene.queue("waits", "", 0);
    scene.server.answer(&["x", "y", "waits"]);
    served([waits]);
    assert_eq!(scene.stay("waits").end, "sent");
    served(others);
}
