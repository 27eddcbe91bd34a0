//! A real gateway on loopback, scripted peers on both sides of it, and eyes for wire bytes.
//!
//! [`World`] runs a gateway and publishes what a test describes; [`Upstream`] is an endpoint whose
//! every byte a test writes; [`Peer`] is one TCP connection, either side's (`wire.rs`). All waits end
//! after [`PATIENCE`], so that a bug fails a test instead of hanging it.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a part of each test crate, and each uses a part of it"
)]

pub mod tls;
mod wire;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use forebay_gateway::Gateway;
use forebay_gateway::explain::{Entry as Record, Query};
use forebay_gateway::settings::Settings;
use forebay_gateway::telemetry::{Format, Settings as TelemetrySettings, Telemetry};
use forebay_model::endpoint::{Endpoint, Role, Topology};
use forebay_model::route::{
    BackendTls, Broken, Entry, Filter, HostPattern, Matcher, PathMatch, RouteTable, Rule,
    ServicePort, ServiceTarget, Speaks, Target, Timeouts, TlsRoutes, TlsRule, WeightedTarget,
};
use forebay_model::snapshot::{Listener, Port};
use forebay_model::{AppProtocol, ObjectName, PickerConfig, Pool, Snapshot};

pub use wire::{Message, Peer};

/// How long anything may take that happens at once.
pub const PATIENCE: Duration = Duration::from_secs(10);

// === the gateway ===

/// A running gateway with what it was last told.
pub struct World {
    pub gateway: Gateway,
    /// The port that is bound.
    pub port: u16,
    generation: Mutex<u64>,
}

/// One worker, no admin server, on loopback.
pub fn settings() -> Settings {
    Settings {
        workers: 1,
        bind: Ipv4Addr::LOCALHOST.into(),
        admin: None,
        ..Settings::default()
    }
}

impl World {
    /// A gateway that sends everything to `target`.
    pub fn to(target: Target) -> Self {
        Self::with(settings(), vec![entry("/", rule(vec![target]))])
    }

    /// A gateway with these routes for every host.
    pub fn with(settings: Settings, entries: Vec<Entry>) -> Self {
        let world = Self::empty(settings);
        world.publish(entries);
        world
    }

    /// A gateway that has been told nothing.
    pub fn empty(settings: Settings) -> Self {
        Self::logging(settings, Format::Off, Box::new(std::io::sink()))
    }

    /// The same with an access log.
    pub fn logging(
        settings: Settings,
        access_log: Format,
        sink: Box<dyn std::io::Write + Send>,
    ) -> Self {
        watch_for_panics();
        let reports = TelemetrySettings {
            llm_d_names: false,
            access_log,
            otlp: None,
        };
        let telemetry = Arc::new(Telemetry::with_log_sink(&reports, sink).unwrap());
        Self {
            gateway: Gateway::start(settings, telemetry, 7).unwrap(),
            port: free_port(),
            generation: Mutex::new(0),
        }
    }

    /// Publishes these routes for every host, and waits until the port is open.
    pub fn publish(&self, entries: Vec<Entry>) {
        self.publish_as(self.port, entries);
    }

    /// The same on a port that clients know by another number.
    pub fn publish_as(&self, number: u16, entries: Vec<Entry>) {
        let entries = entries.into_iter().map(|entry| (None, entry)).collect();
        let listener = listener(None, RouteTable::build(entries));
        self.publish_ports([(
            self.port,
            Port {
                number,
                tls: false,
                listeners: vec![listener],
            },
        )]);
        self.wait_bound(self.port);
    }

    /// Publishes these ports, with the pools and Services that this test has named.
    pub fn publish_ports(&self, ports: impl IntoIterator<Item = (u16, Port)>) {
        let mut generation = self.generation.lock().unwrap();
        *generation += 1;
        let ports: std::collections::BTreeMap<_, _> = ports.into_iter().collect();
        let snapshot = Snapshot {
            generation: *generation,
            pools: KNOWN.with_borrow(|known| known.pools.clone()),
            services: KNOWN.with_borrow(|known| known.services.clone()),
            ports,
            problems: Vec::new(),
        };
        self.gateway.publish(Arc::new(snapshot));
    }

    /// Publishes these listeners on a port with TLS that clients know as 443.
    pub fn publish_tls(&self, listeners: Vec<Listener>) {
        let port = Port {
            number: 443,
            tls: true,
            listeners,
        };
        self.publish_ports([(self.port, port)]);
        self.wait_bound(self.port);
    }

    pub fn wait_bound(&self, port: u16) {
        eventually("the port is open", || {
            let ports = self.gateway.shared().ports();
            ports.get(&port).is_some_and(|state| state.bound > 0)
        });
    }

    /// A connection from a client.
    pub fn client(&self) -> Peer {
        Peer::connect(self.port)
    }

    /// Sends `request` on a connection of its own and reads one response.
    pub fn ask(&self, request: &str) -> Message {
        let mut client = self.client();
        client.send(request);
        client.response(&request[..request.find(' ').unwrap()])
    }

    /// Whether the metrics page has this line.
    pub fn shows(&self, line: &str) -> bool {
        let shared = self.gateway.shared();
        let live = shared.live.load();
        let now = forebay_gateway::clock::now();
        let page = shared.telemetry.render_metrics(&live, now);
        page.lines().any(|own| own == line)
    }

    /// Waits until the metrics page has this line.
    pub fn comes_to_show(&self, line: &str) {
        eventually(line, || self.shows(line));
    }

    /// Whether so many connections are counted in this state.
    pub fn counts(&self, state: &str, connections: usize) -> bool {
        let line = format!("forebay_connections{{state=\"{state}\"}} {connections}");
        self.shows(&line)
    }

    /// Settled exchanges, newest first.
    pub fn records(&self) -> Vec<Record> {
        let decisions = &self.gateway.shared().telemetry.decisions;
        decisions.find(&Query::default())
    }

    /// The record of the request with this id, once it is settled.
    pub fn record(&self, id: &str) -> Record {
        let mut found = None;
        eventually(&format!("exchange {id} is settled"), || {
            found = self.records().into_iter().find(|record| record.id == id);
            found.is_some()
        });
        found.unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.gateway.drain();
        if !std::thread::panicking() {
            assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a worker panicked");
        }
    }
}

/// Panics of workers in this process. tokio survives them, a test must not.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn watch_for_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let name = std::thread::current().name().map(str::to_owned);
            if name.is_some_and(|name| name.starts_with("worker-")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(info);
        }));
    });
}

pub fn listener(host: Option<&str>, routes: RouteTable) -> Listener {
    Listener {
        gateway: ObjectName::new("default", "edge"),
        name: host.unwrap_or("http").into(),
        hostname: host.map(HostPattern::parse),
        refused: false,
        certificates: Vec::new(),
        clients: None,
        routes: Arc::new(routes),
        tls_routes: None,
    }
}

/// A port that nothing listens on. Below the range that the kernel gives out by itself, so that
/// nobody takes it before the gateway does.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 10_000 + (std::process::id() % 200) as u16 * 100;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// An address that refuses connections.
pub fn dead_address() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

// === routes ===

/// What targets name. Each test runs on a thread of its own.
#[derive(Default)]
struct Known {
    pools: HashMap<ObjectName, Arc<Pool>>,
    services: HashMap<ServicePort, Arc<ServiceTarget>>,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// Lets what this test publishes from now on be without the pools and Services named so far.
pub fn forget() {
    KNOWN.take();
}

pub fn entry(prefix: &str, rule: Rule) -> Entry {
    Entry {
        matcher: Matcher {
            path: PathMatch::Prefix(prefix.trim_end_matches('/').into()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
        },
        rule: Arc::new(rule),
    }
}

/// A rule with these targets in equal parts.
pub fn rule(targets: Vec<Target>) -> Rule {
    Rule {
        route: ObjectName::new("default", "route"),
        speaks: Speaks::Http,
        index: 0,
        filters: Vec::new(),
        targets: targets
            .into_iter()
            .map(|target| weighted(1, target))
            .collect(),
        timeouts: Timeouts::default(),
        retry: None,
    }
}

pub fn filtered(filters: Vec<Filter>, target: Target) -> Rule {
    Rule {
        filters,
        ..rule(vec![target])
    }
}

pub fn weighted(weight: u32, target: Target) -> WeightedTarget {
    WeightedTarget {
        weight,
        target,
        filters: Vec::new(),
    }
}

/// Listener and route of connections that are no HTTP, for these hosts.
pub fn stream_listener(host: &str, targets: Vec<WeightedTarget>) -> Listener {
    let rule = TlsRule {
        route: ObjectName::new("default", "stream"),
        targets,
    };
    let host = HostPattern::parse(host);
    Listener {
        name: "stream".into(),
        hostname: Some(host.clone()),
        tls_routes: Some(Arc::new(TlsRoutes {
            routes: vec![(Some(host), Arc::new(rule))],
        })),
        ..listener(None, RouteTable::default())
    }
}

/// What cannot be served.
pub fn broken(status: u16) -> Target {
    Target::Broken(Arc::new(Broken {
        status,
        reason: "BackendNotFound",
        message: "Service default/gone does not exist".into(),
    }))
}

pub fn service(endpoints: &[SocketAddr]) -> Target {
    service_over(AppProtocol::Http, endpoints)
}

pub fn service_over(protocol: AppProtocol, endpoints: &[SocketAddr]) -> Target {
    service_with(protocol, None, endpoints)
}

pub fn service_with(
    protocol: AppProtocol,
    tls: Option<BackendTls>,
    endpoints: &[SocketAddr],
) -> Target {
    KNOWN.with_borrow_mut(|known| {
        let port = u16::try_from(known.services.len()).unwrap();
        let of = ServicePort::new(ObjectName::new("default", "svc"), port);
        let target = ServiceTarget {
            of: of.clone(),
            protocol,
            tls: tls.map(Arc::new),
            endpoints: endpoints.to_vec(),
        };
        known.services.insert(of.clone(), Arc::new(target));
        Target::Service(of)
    })
}

pub fn pool(endpoints: &[SocketAddr]) -> Target {
    to_pool(pool_of("pool", endpoints))
}

/// The target that `pool` is from now on, for all that this test publishes.
pub fn to_pool(pool: Pool) -> Target {
    let name = pool.name.clone();
    KNOWN.with_borrow_mut(|known| known.pools.insert(name.clone(), Arc::new(pool)));
    Target::Pool(name)
}

/// A pool that takes turns, so that tests know where a request goes.
pub fn pool_of(name: &str, endpoints: &[SocketAddr]) -> Pool {
    let mut endpoints = endpoints.to_vec();
    endpoints.sort();
    Pool {
        name: ObjectName::new("default", name),
        endpoints: endpoints.into_iter().map(endpoint).collect(),
        protocol: AppProtocol::Http,
        picker: PickerConfig::round_robin(),
        objectives: std::collections::BTreeMap::new(),
        external: None,
        rewrites: Vec::new(),
    }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint {
        address,
        pod: address.to_string().into(),
        labels: Arc::default(),
        engine: None,
        role: Role::Both,
        topology: Topology::default(),
        ready: true,
    }
}

// === waiting ===

/// Waits until `holds`.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

// === endpoints ===

/// An endpoint that plays a script.
pub struct Upstream {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Message>>>,
}

/// What a script has at hand.
pub struct Script {
    pub peer: Peer,
    /// Which connection of the endpoint this is, from zero.
    pub connection: usize,
    seen: Arc<Mutex<Vec<Message>>>,
}

impl Script {
    /// The next request; `None` when the gateway has closed.
    pub fn request(&mut self) -> Option<Message> {
        let message = self.peer.message(None)?;
        self.seen.lock().unwrap().push(message.clone());
        Some(message)
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.peer.send(bytes);
    }

    /// Counts a request that was read past [`Self::request`].
    pub fn note(&self, request: Message) {
        self.seen.lock().unwrap().push(request);
    }
}

impl Upstream {
    /// Answers every request; one for `/slow` only after it is told to go on.
    pub fn holding_slow() -> (Self, mpsc::Sender<()>) {
        let (go, gone) = mpsc::channel();
        let gone = Mutex::new(gone);
        let upstream = Self::start(move |side| {
            while let Some(request) = side.request() {
                if request.start.contains("/slow") {
                    gone.lock().unwrap().recv().unwrap();
                }
                side.send(ok("x"));
            }
        });
        (upstream, go)
    }

    /// Plays `script` on each connection, in a thread of its own.
    pub fn start(script: impl Fn(&mut Script) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, seen) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let (count, log, script) = (
            Arc::clone(&connections),
            Arc::clone(&seen),
            Arc::new(script),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut side = Script {
                    peer: Peer::of(stream.unwrap()),
                    connection: count.fetch_add(1, Ordering::SeqCst),
                    seen: Arc::clone(&log),
                };
                let script = Arc::clone(&script);
                std::thread::spawn(move || script(&mut side));
            }
        });
        Self {
            address,
            connections,
            seen,
        }
    }

    /// Answers every request with the same bytes and keeps connections open.
    pub fn answering(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |side| {
            while side.request().is_some() {
                side.send(&bytes);
            }
        })
    }

    /// Answers `200` with this body.
    pub fn saying(body: &str) -> Self {
        Self::answering(ok(body))
    }

    /// Connections taken so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests read so far.
    pub fn seen(&self) -> Vec<Message> {
        self.seen.lock().unwrap().clone()
    }

    /// The last request.
    pub fn last(&self) -> Message {
        eventually("the endpoint has seen a request", || {
            !self.seen().is_empty()
        });
        self.seen().pop().unwrap()
    }
}

/// A response with a body of known length.
pub fn ok(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// The start of an event stream.
pub const SSE_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// One chunk of the chunked coding.
pub fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

/// A `POST` of JSON.
pub fn post(path: &str, body: &str) -> String {
    post_with(path, "", body)
}

/// The same with more fields, each ended by CRLF.
pub fn post_with(path: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: h.test\r\n{fields}content-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

/// A `GET`.
pub fn get(path: &str) -> String {
    get_with(path, "")
}

/// The same with more fields, each ended by CRLF.
pub fn get_with(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: h.test\r\n{fields}\r\n")
}

// === model servers ===

/// What one model server does with one request; the number counts requests over all servers of
/// the fleet from zero. False closes the connection.
pub type Serve = fn(&mut Script, &Message, usize) -> bool;

/// Model servers that list `models` and leave everything else to `serve`.
pub fn fleet(servers: usize, models: &'static str, serve: Serve) -> Vec<Upstream> {
    let count = Arc::new(AtomicUsize::new(0));
    let list = ok(models);
    let start = |_| {
        let (count, list) = (Arc::clone(&count), list.clone());
        Upstream::start(move |side| {
            while let Some(request) = side.peer.message(None) {
                if request.start.starts_with("GET /v1/models ") {
                    side.send(&list);
                    continue;
                }
                side.note(request.clone());
                if !serve(side, &request, count.fetch_add(1, Ordering::SeqCst)) {
                    return;
                }
            }
        })
    };
    (0..servers).map(start).collect()
}

pub fn addresses(of: &[Upstream]) -> Vec<SocketAddr> {
    of.iter().map(|upstream| upstream.address).collect()
}

/// The list of a server with one model, `tiny`.
pub const TINY: &str = r#"{"object":"list","data":[{"id":"tiny","object":"model"}]}"#;

// === clients of hyper ===

/// A runtime for the clients that are not worth writing by hand.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, future)
            .await
            .expect("in time")
    })
}

/// What an HTTP/2 client sends and gets.
pub type Body = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, std::io::Error>;
pub type Client = hyper::client::conn::http2::SendRequest<Body>;

/// Lets hyper spawn onto tokio.
#[derive(Clone)]
pub struct Spawner;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

/// An HTTP/2 client over an open connection.
pub async fn http2<S>(stream: S) -> Client
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    http2_with_window(stream, None).await
}

/// The same, with so many bytes of each response that the gateway may send before they are read.
pub async fn http2_with_window<S>(stream: S, window: Option<u32>) -> Client
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let io = hyper_util::rt::TokioIo::new(stream);
    let mut builder = hyper::client::conn::http2::Builder::new(Spawner);
    if window.is_some() {
        builder.initial_stream_window_size(window);
    }
    let (client, connection) = builder.handshake(io).await.unwrap();
    tokio::spawn(async move {
        let _closed = connection.await;
    });
    client
}

/// A body of these bytes.
pub fn full(bytes: impl Into<bytes::Bytes>) -> Body {
    use http_body_util::BodyExt as _;
    let whole = http_body_util::Full::new(bytes.into());
    whole.map_err(|never| match never {}).boxed_unsync()
}
