//! The scraper against real sockets. Waits for conditions, never for time.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use forebay_decide::{EndpointView, Standing};
use forebay_model::route::{
    Entry, Matcher, PathMatch, RouteTable, Speaks, Timeouts, WeightedTarget,
};
use forebay_model::snapshot::{Listener, Port};
use forebay_model::{AppProtocol, Endpoint as ModelEndpoint, PickerConfig, Pool, Role, Topology};

use super::*;
use crate::telemetry;

/// Patience with a busy machine; what is promised takes less than a second.
const LIMIT: Duration = Duration::from_secs(30);

fn pool(name: &str, endpoints: &[SocketAddr]) -> Arc<Pool> {
    let endpoint = |address: &SocketAddr| ModelEndpoint {
        address: *address,
        pod: "pod".into(),
        labels: Arc::default(),
        engine: None,
        role: Role::Both,
        topology: Topology::default(),
        ready: true,
    };
    let mut endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    endpoints.sort_by_key(|endpoint| endpoint.address);
    Arc::new(Pool {
        name: ObjectName::new("default", name),
        endpoints,
        protocol: AppProtocol::Http,
        picker: PickerConfig::default(),
        objectives: BTreeMap::new(),
        external: None,
        rewrites: Vec::new(),
    })
}

/// A configuration in which every one of `routed` is reached by a rule, and `idle` by none.
pub(crate) fn snapshot(routed: &[Arc<Pool>], idle: &[Arc<Pool>]) -> Arc<Snapshot> {
    let rule = Rule {
        route: ObjectName::new("default", "route"),
        speaks: Speaks::Http,
        index: 0,
        filters: Vec::new(),
        targets: routed
            .iter()
            .map(|pool| WeightedTarget {
                weight: 1,
                target: Target::Pool(pool.name.clone()),
                filters: Vec::new(),
            })
            .collect(),
        timeouts: Timeouts::default(),
        retry: None,
    };
    let path = PathMatch::Prefix("".into());
    let matcher = Matcher {
        path,
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
    };
    let entry = Entry {
        matcher,
        rule: Arc::new(rule),
    };
    let listener = Listener {
        gateway: ObjectName::new("default", "edge"),
        name: "http".into(),
        hostname: None,
        refused: false,
        certificates: Vec::new(),
        clients: None,
        routes: Arc::new(RouteTable::build(vec![(None, entry)])),
        tls_routes: None,
    };
    let pools = routed
        .iter()
        .chain(idle)
        .map(|p| (p.name.clone(), Arc::clone(p)))
        .collect();
    let ports = BTreeMap::from([(
        8080,
        Port {
            number: 8080,
            tls: false,
            listeners: vec![listener],
        },
    )]);
    Arc::new(Snapshot {
        generation: 7,
        ports,
        pools,
        services: HashMap::new(),
        problems: Vec::new(),
    })
}

/// A `Live` with one routed pool, `default/chat`.
pub(crate) fn live(endpoints: &[SocketAddr]) -> Arc<ArcSwap<Live>> {
    let routed = snapshot(&[pool("chat", endpoints)], &[]);
    Arc::new(ArcSwap::from_pointee(
        Live::empty().next(routed, clock::now()),
    ))
}

/// A model server of which only the metrics page exists.
struct Server {
    address: SocketAddr,
    answer: Arc<Mutex<String>>,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

fn page(waiting: u32, running: u32) -> String {
    let page = format!(
        "# TYPE vllm:num_requests_waiting gauge\n\
         vllm:num_requests_waiting{{model_name=\"m\"}} {waiting}.0\n\
         vllm:num_requests_running{{model_name=\"m\"}} {running}.0\n"
    );
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}",
        page.len()
    )
}

impl Server {
    /// Answers every request with `answer` as it is then; with silence if it is empty.
    fn start(answer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let server = Self {
            address: listener.local_addr().expect("bound"),
            answer: Arc::new(Mutex::new(answer.to_owned())),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (answer, requests, connections) = (
            server.answer.clone(),
            server.requests.clone(),
            server.connections.clone(),
        );
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                connections.fetch_add(1, Ordering::SeqCst);
                let (answer, requests) = (answer.clone(), requests.clone());
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(1..) = stream.read(&mut buffer) {
                        requests.fetch_add(1, Ordering::SeqCst);
                        let answer = answer.lock().expect("no panic holds it").clone();
                        if stream.write_all(answer.as_bytes()).is_err()
                            || answer.contains("connection: close")
                        {
                            return;
                        }
                    }
                });
            }
        });
        server
    }

    fn answers(&self, answer: &str) {
        *self.answer.lock().expect("no panic holds it") = answer.to_owned();
    }
}

struct Watched {
    live: Arc<ArcSwap<Live>>,
    telemetry: Arc<Telemetry>,
    _scraper: Scraper,
}

fn watched(live: Arc<ArcSwap<Live>>) -> Watched {
    let settings = telemetry::Settings {
        llm_d_names: false,
        access_log: telemetry::Format::Off,
        otlp: None,
    };
    let telemetry = Arc::new(Telemetry::new(&settings).expect("no threads needed"));
    // A patient timeout: what is tested is order, not speed, and the machine may be busy.
    let settings = Settings {
        timeout: Duration::from_secs(2),
        ..Settings::default()
    };
    let scraper = spawn(Arc::clone(&live), Arc::clone(&telemetry), settings).expect("a thread");
    Watched {
        live,
        telemetry,
        _scraper: scraper,
    }
}

impl Watched {
    fn views(&self, pool: &str) -> Vec<EndpointView> {
        let live = self.live.load();
        live.pools[&ObjectName::new("default", pool)]
            .state()
            .view(clock::now())
            .collect()
    }

    fn page(&self) -> String {
        self.telemetry
            .render_metrics(&self.live.load(), clock::now())
    }
}

#[track_caller]
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        thread::yield_now();
    }
}

fn waiting(view: &EndpointView) -> Option<u32> {
    view.load.as_ref().and_then(|load| load.waiting)
}

#[test]
fn a_pool_learns_the_load_of_its_endpoints_over_one_connection() {
    let server = Server::start(&page(3, 4));
    let watched = watched(live(&[server.address]));
    wait_for("the load", || waiting(&watched.views("chat")[0]) == Some(3));
    server.answers(&page(5, 4));
    wait_for("new load", || waiting(&watched.views("chat")[0]) == Some(5));
    wait_for("more scrapes", || {
        server.requests.load(Ordering::SeqCst) > 5
    });
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn an_address_in_two_pools_is_scraped_once_and_unrouted_pools_are_not() {
    let (shared, unrouted) = (Server::start(&page(2, 1)), Server::start(&page(1, 1)));
    let both = [
        pool("chat", &[shared.address]),
        pool("batch", &[shared.address]),
    ];
    let idle = [pool("idle", &[unrouted.address])];
    let next = Live::empty().next(snapshot(&both, &idle), clock::now());
    let watched = watched(Arc::new(ArcSwap::from_pointee(next)));
    wait_for("both pools", || {
        ["chat", "batch"]
            .iter()
            .all(|pool| waiting(&watched.views(pool)[0]) == Some(2))
    });
    wait_for("more scrapes", || {
        shared.requests.load(Ordering::SeqCst) > 5
    });
    assert_eq!(shared.connections.load(Ordering::SeqCst), 1);
    assert_eq!(unrouted.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn changes_of_the_configuration_are_followed() {
    let (first, second) = (Server::start(&page(1, 1)), Server::start(&page(2, 1)));
    let watched = watched(live(&[first.address]));
    wait_for("the first", || {
        waiting(&watched.views("chat")[0]) == Some(1)
    });
    let next = snapshot(&[pool("chat", &[second.address])], &[]);
    let next = watched.live.load().next(next, clock::now());
    watched.live.store(Arc::new(next));
    wait_for("the second", || {
        waiting(&watched.views("chat")[0]) == Some(2)
    });
    // The scrape under way when the change came may still be counted; none is after it.
    let seen = first.requests.load(Ordering::SeqCst);
    let scraped = second.requests.load(Ordering::SeqCst);
    wait_for("more of the second", || {
        second.requests.load(Ordering::SeqCst) > scraped + 5
    });
    assert!(first.requests.load(Ordering::SeqCst) <= seen + 1);
}

#[test]
fn a_server_that_fails_is_ejected_once_and_comes_back() {
    let server = Server::start("HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n");
    let live = live(&[server.address]);
    let ejections = live.load().ejections();
    let watched = watched(live);
    wait_for("the ejection", || {
        watched.views("chat")[0].standing == Standing::Ejected
    });
    wait_for("its news", || {
        ejections.has_changed().expect("the pool is there")
    });
    wait_for("further misses", || {
        server.requests.load(Ordering::SeqCst) > 4
    });
    server.answers(&page(0, 0));
    wait_for("the return", || {
        watched.views("chat")[0].standing != Standing::Ejected
    });
    let page = watched.page();
    let ejected = "forebay_ejections_total{pool=\"default/chat\",reason=\"silence\"} 1\n";
    assert!(page.contains(ejected), "{page}");
    assert!(
        page.contains("forebay_scrape_errors_total{reason=\"status\"}"),
        "{page}"
    );
}

#[test]
fn nobody_listening_is_an_ejection_too() {
    let address = TcpListener::bind("127.0.0.1:0")
        .expect("loopback")
        .local_addr()
        .expect("bound");
    let watched = watched(live(&[address]));
    wait_for("the ejection", || {
        watched.views("chat")[0].standing == Standing::Ejected
    });
}

#[test]
fn a_server_without_metrics_is_healthy_and_unknown() {
    let server = Server::start("HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n");
    let watched = watched(live(&[server.address]));
    wait_for("an answer", || {
        watched.views("chat")[0].load == Some(Load::default())
    });
    assert_eq!(watched.views("chat")[0].standing, Standing::Good);
}

#[test]
fn a_server_that_closes_after_each_answer_is_no_failure() {
    let closing = page(6, 1).replace(
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n",
    );
    let server = Server::start(&closing);
    let watched = watched(live(&[server.address]));
    wait_for("scrapes", || server.connections.load(Ordering::SeqCst) > 5);
    assert_eq!(waiting(&watched.views("chat")[0]), Some(6));
    assert!(!watched.page().contains("forebay_scrape_errors_total{"));
}

#[test]
fn a_redirect_to_the_slash_is_followed() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut buffer = [0; 4096];
        while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
            let answer = if buffer[..bytes].starts_with(b"GET /metrics/ ") {
                page(9, 1)
            } else {
                "HTTP/1.1 307 x\r\nlocation: /metrics/\r\ncontent-length: 0\r\n\r\n".to_owned()
            };
            stream
                .write_all(answer.as_bytes())
                .expect("the scraper reads");
        }
    });
    let watched = watched(live(&[address]));
    wait_for("the load", || waiting(&watched.views("chat")[0]) == Some(9));
}

#[test]
fn an_endpoint_that_several_pools_have_is_left_when_the_last_one_leaves_it() {
    let (shared, other) = (Server::start(&page(1, 1)), Server::start(&page(2, 1)));
    let start = [
        pool("chat", &[shared.address]),
        pool("batch", &[shared.address, other.address]),
    ];
    let next = Live::empty().next(snapshot(&start, &[]), clock::now());
    let watched = watched(Arc::new(ArcSwap::from_pointee(next)));
    let scrapes = |server: &Server| server.requests.load(Ordering::SeqCst);
    let goes_on = |server: &Server| {
        let seen = scrapes(server);
        wait_for("further scrapes", || scrapes(server) > seen + 3);
    };
    let becomes = |pools: &[Arc<Pool>]| {
        let next = watched.live.load().next(snapshot(pools, &[]), clock::now());
        watched.live.store(Arc::new(next));
    };
    goes_on(&shared);
    becomes(&[
        pool("chat", &[]),
        pool("batch", &[shared.address, other.address]),
    ]);
    goes_on(&shared);
    assert_eq!(shared.connections.load(Ordering::SeqCst), 1);
    // The pool goes, and with it what only it had.
    becomes(&[pool("chat", &[other.address])]);
    goes_on(&other);
    let seen = scrapes(&shared);
    goes_on(&other);
    assert!(scrapes(&shared) <= seen + 1);
    assert_eq!(other.connections.load(Ordering::SeqCst), 1);
}
