//! The admin server: metrics, health, and what the gateway knows and decided.
//!
//! It has a thread and a runtime of its own, so that a scraper can neither slow down requests nor be
//! starved by them. It only reads (`GET` and `HEAD`), knows no authentication, and therefore listens
//! on loopback unless told otherwise.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use forebay_decide::Gate;
use forebay_model::Moment;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use crate::clock;
use crate::explain::Query;
use crate::pools::{Live, PoolRuntime};
use crate::telemetry::{Telemetry, to_prometheus_text};

/// Open connections; the kernel's backlog holds further ones until one closes.
const CONNECTIONS_MAX: usize = 64;

/// How long a connection may take for a head, idle time before it included. Longer than the
/// usual scrape interval of 15 s, so that Prometheus keeps its connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How long one connection may live. Idle readers in [`CONNECTIONS_MAX`] places must not keep
/// others out for ever.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(3600);

/// Pause after the operating system refused a connection (file descriptors used up).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Priorities that a pool's queue is broken down by, highest first.
const PRIORITIES_SHOWN_MAX: usize = 16;

/// Decisions shown when nobody says how many.
const DECISIONS_SHOWN: usize = 20;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the admin server shows.
#[derive(Debug)]
pub struct AdminState {
    /// Metrics and decisions.
    pub telemetry: Arc<Telemetry>,
    /// The configuration and pools.
    pub live: Arc<ArcSwap<Live>>,
    /// For `/readyz`.
    pub readiness: Arc<Readiness>,
    /// State of the sources (files, objects, conditions), told by whoever reads them;
    /// `forebay status` prints it.
    pub statuses: Told,
}

/// Something that is put into words when somebody asks: a large configuration takes milliseconds,
/// and changes far more often than it is looked at.
pub struct Told(Box<dyn Fn() -> Value + Send + Sync>);

impl Told {
    /// What `tell` says at the time.
    pub fn by(tell: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        Self(Box::new(tell))
    }
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").finish_non_exhaustive()
    }
}

/// Whether the gateway can serve.
#[derive(Debug, Default)]
pub struct Readiness {
    config_loaded: AtomicBool,
    listeners_bound: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    /// A first configuration is in force.
    pub fn set_config_loaded(&self) {
        self.config_loaded.store(true, Ordering::Relaxed);
    }

    /// Whether every port of the configuration is open.
    pub fn set_listeners_bound(&self, bound: bool) {
        self.listeners_bound.store(bound, Ordering::Relaxed);
    }

    /// The process is about to end: load balancers should look elsewhere.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// Why the gateway cannot serve.
    pub fn check(&self) -> Result<(), &'static str> {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        if is(&self.draining) {
            Err("draining: the process is shutting down")
        } else if !is(&self.config_loaded) {
            Err("no configuration has been loaded yet")
        } else if !is(&self.listeners_bound) {
            Err("not every port of the configuration is open, see /debug/config")
        } else {
            Ok(())
        }
    }
}

/// A running admin server; it ends when this is dropped.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Serves on `address`.
    ///
    /// # Errors
    /// When the address cannot be bound or the thread not be started.
    pub fn start(address: SocketAddr, state: AdminState) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    match TcpListener::from_std(listener) {
                        Ok(listener) => tokio::select! {
                            () = accept(listener, Arc::new(state)) => {}
                            _dropped = stopped => {}
                        },
                        Err(error) => tracing::error!(%error, "the admin server cannot run"),
                    }
                });
            })?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed already.
            drop(thread.join());
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<AdminState>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .expect("never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    serve(stream, state).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "admin connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<AdminState>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, &state);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_AGE_MAX, connection).await {
        // A peer that leaves or stalls is no news.
        Ok(Ok(()) | Err(_)) | Err(_) => {}
    }
}

type Answer = Response<Full<Bytes>>;

fn answer<B>(request: &Request<B>, state: &AdminState) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD\n".to_owned(),
        );
        refusal
            .headers_mut()
            .insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    let live = state.live.load();
    match request.uri().path() {
        "/metrics" => metrics(request.headers(), state, &live),
        "/healthz" | "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match state.readiness.check() {
            Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        "/version" => json_answer(&json!({ "version": env!("CARGO_PKG_VERSION") })),
        "/debug/decisions" => decisions(request.uri().query().unwrap_or(""), state),
        "/debug/pools" => pools(request.uri().query().unwrap_or(""), &live),
        "/debug/config" => json_answer(&config(state, &live)),
        "/" => text(StatusCode::OK, INDEX.to_owned()),
        _ => text(StatusCode::NOT_FOUND, format!("no such page\n\n{INDEX}")),
    }
}

const INDEX: &str = "\
/metrics          Prometheus or OpenMetrics
/healthz, /livez  the process runs
/readyz           the gateway can serve
/debug/decisions  why requests went where they went (?limit= ?pool= ?id=)
/debug/pools      pools and their endpoints as the picker sees them
/debug/config     generation, problems, sources
/version          version
";

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .header(CACHE_CONTROL, "no-store")
        .body(Full::new(body.into()))
        .expect("constant header values")
}

fn text(status: StatusCode, body: String) -> Answer {
    respond(status, TEXT, body)
}

fn json_answer(value: &impl serde::Serialize) -> Answer {
    let body = serde_json::to_string(value).expect("plain values with string keys");
    respond(StatusCode::OK, JSON, body + "\n")
}

fn metrics(headers: &HeaderMap, state: &AdminState, live: &Live) -> Answer {
    let page = state.telemetry.render_metrics(live, clock::now());
    if prefers_openmetrics(headers) {
        respond(StatusCode::OK, OPENMETRICS, page)
    } else {
        respond(StatusCode::OK, PROMETHEUS, to_prometheus_text(&page))
    }
}

/// Whether `accept` names OpenMetrics, at least as much as plain text. Wildcards get plain text.
fn prefers_openmetrics(headers: &HeaderMap) -> bool {
    let accept = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok());
    let (mut openmetrics, mut plain) = (0.0_f32, 0.0_f32);
    for range in accept.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or("");
        let quality = parts
            .find_map(|p| p.strip_prefix("q="))
            .map_or(1.0, |q| q.parse().unwrap_or(0.0));
        if kind.eq_ignore_ascii_case("application/openmetrics-text") {
            openmetrics = openmetrics.max(quality);
        } else if kind.eq_ignore_ascii_case("text/plain") {
            plain = plain.max(quality);
        }
    }
    openmetrics > 0.0 && openmetrics >= plain
}

fn decisions(query: &str, state: &AdminState) -> Answer {
    match Query::parse(query) {
        Ok(mut query) => {
            query.limit.get_or_insert(DECISIONS_SHOWN);
            json_answer(&state.telemetry.decisions.find(&query))
        }
        Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

fn config(state: &AdminState, live: &Live) -> Value {
    let snapshot = &live.snapshot;
    let problems: Vec<Value> = snapshot
        .problems
        .iter()
        .map(|p| {
            json!({
                "object": p.object,
                "field": p.field,
                "reason": p.reason,
                "message": p.message,
            })
        })
        .collect();
    json!({
        "generation": snapshot.generation,
        "ports": snapshot.ports.keys().collect::<Vec<_>>(),
        "pools": snapshot.pools.len(),
        "ready": state.readiness.check().map_or_else(Value::from, |()| Value::Bool(true)),
        "problems": problems,
        "statuses": (state.statuses.0)(),
    })
}

/// The pools that are asked for, with their endpoints as the picker sees them, ordered by name.
fn pools(query: &str, live: &Live) -> Answer {
    let query = match Query::parse(query) {
        Ok(query) => query,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    let all = live.pools.values();
    let mut pools: Vec<_> = all.filter(|pool| query.means_pool(&pool.name)).collect();
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    pools.truncate(query.limit.unwrap_or(usize::MAX));
    json_answer(
        &pools
            .into_iter()
            .map(|pool| describe(pool))
            .collect::<Value>(),
    )
}

fn describe(pool: &PoolRuntime) -> Value {
    let now = clock::now();
    // Copied out under the lock, formatted outside of it.
    let (views, saturation, prefix_bytes, queue) = {
        let state = pool.state();
        (
            state.view(now).collect::<Vec<_>>(),
            state.saturation(now),
            state.prefix_bytes(),
            describe_queue(state.gate(), now),
        )
    };
    let configured = pool.pool();
    let pod = |address| {
        let endpoint = configured.endpoints.iter().find(|e| e.address == address);
        endpoint.map(|e| e.pod.to_string())
    };
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let endpoints: Vec<Value> = views
        .iter()
        .map(|view| {
            let load = view.load.as_ref();
            json!({
                "address": view.address,
                "pod": pod(view.address),
                "ready": view.ready,
                "standing": view.standing,
                "ejected": view.ejection.map(|e| json!({
                    "cause": e.cause,
                    "for_ms": ms(now.since(e.since)),
                    "left_ms": e.until.map(|until| ms(until.since(now))),
                })),
                "waiting": load.and_then(|l| l.waiting),
                "running": load.and_then(|l| l.running),
                "kv_used": load.and_then(|l| l.kv_used),
                "load_age_ms": view.load_age.map(ms),
                "inflight_requests": view.inflight_requests,
                "inflight_tokens": view.inflight_tokens,
                "waiting_expected": view.waiting,
                "backlog_ms": view.backlog_ms,
                "prefix_blocks": view.prefix_blocks,
                "prefix_blocks_max": view.prefix_blocks_max,
                "kv_events": view.kv,
                "prefill_tokens_per_s": view.prefill_tokens_per_s,
                "adapters": load.and_then(|l| l.lora.as_ref()).map(|lora| json!({
                    "max": lora.max,
                    "running": lora.running,
                    "waiting": lora.waiting,
                })),
            })
        })
        .collect();
    json!({
        "pool": pool.name.to_string(),
        "saturation": saturation,
        "queue": queue,
        "prefix_index_bytes": prefix_bytes,
        "prefix_index_blocks": views.iter().map(|v| v.prefix_blocks).sum::<usize>(),
        "picker": configured.picker,
        "endpoints": endpoints,
    })
}

fn describe_queue(gate: &Gate, now: Moment) -> Value {
    let band = |(priority, requests)| json!({ "priority": priority, "requests": requests });
    let longest_wait = gate.longest_wait(now);
    json!({
        "requests": gate.len(),
        "bytes": gate.bytes(),
        "longest_wait_ms": longest_wait.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        "priorities": gate.depths().take(PRIORITIES_SHOWN_MAX).map(band).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;
    use crate::explain::Entry;
    use crate::signals::tests::live;
    use crate::telemetry::{self, test_record};

    struct Running {
        admin: Admin,
        readiness: Arc<Readiness>,
    }

    fn running() -> Running {
        let settings = telemetry::Settings {
            llm_d_names: false,
            access_log: telemetry::Format::Off,
            otlp: None,
        };
        let telemetry = Arc::new(Telemetry::new(&settings).expect("no threads needed"));
        telemetry.desk().settle(Box::new(test_record()));
        let readiness = Arc::new(Readiness::default());
        let state = AdminState {
            telemetry,
            live: live(&[([10, 0, 0, 1], 8000).into()]),
            readiness: Arc::clone(&readiness),
            statuses: Told::by(|| json!({ "files": ["a.yaml"] })),
        };
        let admin = Admin::start(([127, 0, 0, 1], 0).into(), state).expect("loopback");
        Running { admin, readiness }
    }

    impl Running {
        /// Head and body of the answer to `request`, a method, a target and further header lines.
        fn ask(&self, request: &str) -> (String, String) {
            let (line, headers) = request.split_once('\n').unwrap_or((request, ""));
            let mut stream = TcpStream::connect(self.admin.address()).expect("listening");
            let head = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
            stream
                .write_all(head.as_bytes())
                .expect("read by the server");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("text");
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
            (head.to_owned(), body.to_owned())
        }

        fn json(&self, target: &str) -> Value {
            let (_, body) = self.ask(&format!("GET {target}"));
            serde_json::from_str(&body).expect("JSON")
        }

        #[track_caller]
        fn check_status(&self, request: &str, status: u16, body_has: &str) {
            let (head, body) = self.ask(request);
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request}: {head}"
            );
            assert!(body.contains(body_has), "{request}: {body}");
        }
    }

    #[test]
    fn readiness_follows_the_life_of_the_process() {
        let running = running();
        running.check_status("GET /healthz", 200, "ok");
        running.check_status("GET /readyz", 503, "no configuration");
        running.readiness.set_config_loaded();
        running.check_status("GET /readyz", 503, "not every port");
        running.readiness.set_listeners_bound(true);
        running.check_status("GET /readyz", 200, "ok");
        running.readiness.set_draining();
        running.check_status("GET /readyz", 503, "draining");
        running.check_status("GET /healthz", 200, "ok");
    }

    #[test]
    fn the_metrics_page_comes_in_the_format_that_is_asked_for() {
        let running = running();
        let prometheus = "GET /metrics\naccept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2,*/*;q=0.1\r\n";
        let (head, body) = running.ask(prometheus);
        assert!(
            head.contains("application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        assert!(body.ends_with("# EOF\n"));
        let (head, body) = running.ask("GET /metrics\naccept: */*\r\n");
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        assert!(!body.contains("# EOF"));
        for line in [
            "forebay_requests_total{gateway=\"default/edge\",route=\"default/chat-route\",pool=\"default/chat\",code=\"200\",reason=\"\"} 1",
            "forebay_input_tokens_total{pool=\"default/chat\",model=\"llama\"} 120",
            "forebay_cached_tokens_total{pool=\"default/chat\",model=\"llama\"} 64",
            "forebay_retries_total{pool=\"default/chat\",reason=\"connect\"} 1",
            "forebay_ttft_seconds_count{pool=\"default/chat\"} 1",
            "forebay_endpoint_inflight_requests{pool=\"default/chat\",endpoint=\"10.0.0.1:8000\"} 0.0",
            "forebay_ready_endpoints{pool=\"default/chat\"} 1.0",
            "forebay_config_generation 7.0",
            "# TYPE process_cpu_seconds_total counter",
        ] {
            assert!(
                body.lines().any(|l| l == line),
                "no line {line:?} in\n{body}"
            );
        }
        assert!(
            !body.contains("forebay_endpoint_waiting{"),
            "never scraped is not idle"
        );
    }

    #[test]
    fn decisions_are_shown_and_bad_questions_refused() {
        let running = running();
        let found: Vec<Entry> =
            serde_json::from_value(running.json("/debug/decisions?pool=chat")).expect("entries");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pick.as_ref().expect("picked").endpoints.len(), 3);
        assert_eq!(running.json("/debug/decisions?id=unknown"), json!([]));
        running.check_status("GET /debug/decisions?limit=many", 400, "whole number");
    }

    #[test]
    fn pools_and_configuration_are_shown() {
        let running = running();
        let pools = running.json("/debug/pools");
        assert_eq!(pools[0]["pool"], "default/chat");
        assert_eq!(pools[0]["endpoints"][0]["address"], "10.0.0.1:8000");
        assert_eq!(pools[0]["endpoints"][0]["waiting"], Value::Null);
        assert_eq!(running.json("/debug/pools?pool=default/chat"), pools);
        assert_eq!(running.json("/debug/pools?pool=other"), json!([]));
        running.check_status("GET /debug/pools?pod=a", 400, "no parameter");
        let config = running.json("/debug/config");
        assert_eq!(config["generation"], 7);
        assert_eq!(config["statuses"]["files"][0], "a.yaml");
    }

    #[test]
    fn only_reading_is_possible() {
        let running = running();
        running.check_status("POST /healthz", 405, "only GET");
        running.check_status("HEAD /healthz", 200, "");
        running.check_status("GET /nothing", 404, "/debug/pools");
    }

    #[test]
    fn stopping_frees_the_address() {
        let Running { admin, .. } = running();
        let address = admin.address();
        drop(admin);
        assert!(TcpStream::connect(address).is_err());
    }
}
