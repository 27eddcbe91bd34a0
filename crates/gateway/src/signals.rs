//! The scraper: reads every routed endpoint's `/metrics` and tells the pools what it says.
//!
//! One thread with one runtime; one task and one connection per address, also where several pools
//! share it. Endpoints start spread over the interval. How often each is read is decided in
//! `pace.rs`, how an answer is read in `response.rs`, what the numbers mean in
//! `forebay_dialect::metrics`, and what follows from them in `forebay_decide`.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use forebay_decide::{EjectionCause, PoolState, Rng};
use forebay_dialect::metrics;
use forebay_model::route::{Filter, RouteTable, Rule, Target};
use forebay_model::{Engine, Load, ObjectName, Pool, Snapshot};
use rustc_hash::FxBuildHasher;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle as TaskHandle, LocalSet};

use self::pace::{Outcome, Pace};
use self::response::{ANSWER_BYTES_MAX, Answer, Progress, Unreadable};
use crate::clock;
use crate::pools::{Live, PoolRuntime};
use crate::telemetry::Telemetry;

mod pace;
mod response;

pub use pace::Settings;

/// Room offered to one read; about what a server's metrics page takes.
const READ_BYTES: usize = 64 << 10;

/// Buffers kept for reuse, and how large one of them may be to be kept. A buffer is held only while
/// an answer is arriving, so a handful serves hundreds of endpoints.
const BUFFERS_KEPT_MAX: usize = 64;
const BUFFER_KEPT_BYTES_MAX: usize = 512 << 10;

/// The running scraper; it ends when this is dropped.
#[derive(Debug)]
pub struct Scraper {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Scraper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed already.
            drop(thread.join());
        }
    }
}

/// Starts to scrape whatever `live` routes to, or all of its pools, and follows its changes.
///
/// # Errors
/// When the thread or its runtime cannot be started.
pub fn spawn(
    live: Arc<ArcSwap<Live>>,
    telemetry: Arc<Telemetry>,
    settings: Settings,
) -> io::Result<Scraper> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("scraper".to_owned())
        .spawn(move || {
            let shared = Rc::new(Shared {
                telemetry,
                settings,
                buffers: RefCell::default(),
            });
            LocalSet::new().block_on(&runtime, async move {
                tokio::select! {
                    () = follow(&live, &shared) => {}
                    _dropped = stopped => {}
                }
            });
        })?;
    Ok(Scraper {
        stop: Some(stop),
        thread: Some(thread),
    })
}

#[derive(Debug)]
struct Shared {
    telemetry: Arc<Telemetry>,
    settings: Settings,
    buffers: RefCell<Vec<Vec<u8>>>,
}

/// Pools that share an address, each with the engine that its endpoint's label names.
type Owners = Vec<(Arc<PoolRuntime>, Option<Engine>)>;

/// One address that is scraped.
#[derive(Debug)]
struct Endpoint {
    address: SocketAddr,
    owners: RefCell<Owners>,
    /// Requests that this gateway has under way there.
    inflight: Cell<u32>,
    /// Work has been sent to an endpoint that was idle.
    woken: Notify,
}

#[derive(Debug)]
struct Task {
    endpoint: Rc<Endpoint>,
    handle: TaskHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Keeps one task per routed endpoint, and wakes those that get work while they are read rarely.
async fn follow(live: &ArcSwap<Live>, shared: &Rc<Shared>) {
    let mut watched = Watched::default();
    let mut routed: Vec<Arc<PoolRuntime>> = Vec::new();
    let mut followed: Option<Arc<Live>> = None;
    let mut ticks = tokio::time::interval(shared.settings.interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let current = live.load_full();
        let last = followed.as_ref();
        if last.is_none_or(|last| !Arc::ptr_eq(last, &current)) {
            if last.is_none_or(|last| !leads_to_the_same(last, &current)) {
                routed = match shared.settings.unrouted {
                    true => current.pools.values().cloned().collect(),
                    false => routed_pools(&current),
                };
            }
            watched.adjust(&routed, shared);
            followed = Some(current);
        }
        note_inflight(&watched.tasks, &routed);
    }
}

/// What is scraped, and for whom.
#[derive(Debug, Default)]
struct Watched {
    tasks: HashMap<SocketAddr, Task>,
    /// Each pool with the endpoints that it had when it was last looked at.
    pools: HashMap<ObjectName, (Arc<PoolRuntime>, Arc<Pool>)>,
}

impl Watched {
    /// Scrapes for these pools and no others. Only pools that differ cost anything.
    fn adjust(&mut self, routed: &[Arc<PoolRuntime>], shared: &Rc<Shared>) {
        let mut before = std::mem::take(&mut self.pools);
        for runtime in routed {
            let pool = runtime.pool();
            let last = before.remove(&runtime.name);
            let same = |(own, last): &(Arc<PoolRuntime>, Arc<Pool>)| {
                Arc::ptr_eq(own, runtime) && Arc::ptr_eq(last, &pool)
            };
            if !last.as_ref().is_some_and(same) {
                // Endpoints that are not ready get no requests; their load is nobody's concern.
                for endpoint in pool.ready() {
                    self.join(endpoint.address, runtime, endpoint.engine, shared);
                }
                if let Some((own, last)) = &last {
                    let now = Arc::ptr_eq(own, runtime).then_some(&*pool);
                    self.leave(own, last, now);
                }
            }
            self.pools
                .insert(runtime.name.clone(), (Arc::clone(runtime), pool));
        }
        for (runtime, pool) in before.into_values() {
            self.leave(&runtime, &pool, None);
        }
    }

    fn join(
        &mut self,
        address: SocketAddr,
        runtime: &Arc<PoolRuntime>,
        engine: Option<Engine>,
        shared: &Rc<Shared>,
    ) {
        let task = self.tasks.entry(address).or_insert_with(|| {
            let endpoint = Rc::new(Endpoint {
                address,
                owners: RefCell::default(),
                inflight: Cell::new(0),
                woken: Notify::new(),
            });
            let watch = watch(Rc::clone(&endpoint), Rc::clone(shared));
            Task {
                endpoint,
                handle: tokio::task::spawn_local(watch),
            }
        });
        let mut owners = task.endpoint.owners.borrow_mut();
        owners.retain(|(own, _)| !Arc::ptr_eq(own, runtime));
        owners.push((Arc::clone(runtime), engine));
    }

    /// Scrapes no more for `runtime` what it had as `last` and has not in `now`.
    fn leave(&mut self, runtime: &Arc<PoolRuntime>, last: &Pool, now: Option<&Pool>) {
        let has = |pool: &Pool, address| {
            // They are in order.
            let at = pool.endpoints.binary_search_by_key(&address, |e| e.address);
            at.is_ok_and(|at| pool.endpoints[at].ready)
        };
        for endpoint in last.ready() {
            let address = endpoint.address;
            if now.is_some_and(|now| has(now, address)) {
                continue;
            }
            let Some(task) = self.tasks.get(&address) else {
                continue;
            };
            let mut owners = task.endpoint.owners.borrow_mut();
            owners.retain(|(own, _)| !Arc::ptr_eq(own, runtime));
            let idle = owners.is_empty();
            drop(owners);
            if idle {
                self.tasks.remove(&address);
            }
        }
    }
}

fn note_inflight(tasks: &HashMap<SocketAddr, Task>, routed: &[Arc<PoolRuntime>]) {
    let now = clock::now();
    let mut inflight: HashMap<SocketAddr, u32> = HashMap::with_capacity(tasks.len());
    for runtime in routed {
        for view in runtime
            .state()
            .view(now)
            .filter(|view| view.inflight_requests > 0)
        {
            *inflight.entry(view.address).or_default() += view.inflight_requests;
        }
    }
    for (address, task) in tasks {
        let (before, after) = (
            task.endpoint.inflight.get(),
            inflight.get(address).copied().unwrap_or(0),
        );
        task.endpoint.inflight.set(after);
        if before == 0 && after > 0 {
            task.endpoint.woken.notify_one();
        }
    }
}

/// Whether both have the same pools and the same rules, which is told by where they are.
fn leads_to_the_same(a: &Live, b: &Live) -> bool {
    let at = |live: &Live| -> Vec<_> {
        let tables = tables(&live.snapshot).map(std::ptr::from_ref);
        tables.collect()
    };
    Arc::ptr_eq(&a.pools, &b.pools) && at(a) == at(b)
}

/// The pools that some route reaches, mirrors included.
fn routed_pools(live: &Live) -> Vec<Arc<PoolRuntime>> {
    let mut seen: HashSet<&ObjectName> = HashSet::new();
    for target in rules(&live.snapshot).flat_map(targets) {
        match target {
            Target::Pool(name) => {
                seen.insert(name);
            }
            Target::Service(_) | Target::Broken(_) => {}
        }
    }
    seen.iter()
        .filter_map(|name| live.pools.get(*name).cloned())
        .collect()
}

/// Where a rule may send, mirrors included.
fn targets(rule: &Rule) -> impl Iterator<Item = &Target> {
    let of_targets = rule.targets.iter().flat_map(|weighted| &weighted.filters);
    let mirrors = rule.filters.iter().chain(of_targets);
    let mirrors = mirrors.filter_map(|filter| match filter {
        Filter::Mirror(mirror) => Some(&mirror.target),
        Filter::RequestHeaders(_)
        | Filter::ResponseHeaders(_)
        | Filter::Redirect(_)
        | Filter::Rewrite(_)
        | Filter::Cors(_) => None,
    });
    rule.targets
        .iter()
        .map(|weighted| &weighted.target)
        .chain(mirrors)
}

fn tables(snapshot: &Snapshot) -> impl Iterator<Item = &RouteTable> {
    let listeners = snapshot.ports.values().flat_map(|port| &port.listeners);
    listeners.map(|listener| &*listener.routes)
}

fn rules(snapshot: &Snapshot) -> impl Iterator<Item = &Rule> {
    tables(snapshot).flat_map(|table| {
        let exact = table.exact.values().flatten();
        let suffix = table.suffix.iter().flat_map(|(_, entries)| entries);
        exact
            .chain(suffix)
            .chain(&table.any)
            .map(|entry| &*entry.rule)
    })
}

/// Scrapes one endpoint until the task is dropped.
async fn watch(endpoint: Rc<Endpoint>, shared: Rc<Shared>) {
    let mut client = Client::new(endpoint.address);
    let mut pace = Pace::default();
    let mut rng = Rng::seeded(FxBuildHasher.hash_one(endpoint.address));
    let interval_us = u64::try_from(shared.settings.interval.as_micros()).unwrap_or(u64::MAX);
    tokio::time::sleep(Duration::from_micros(rng.next_u64() % interval_us.max(1))).await;
    loop {
        let outcome = scrape(&endpoint, &mut client, &shared).await;
        let pause = pace.next(outcome, &shared.settings, rng.next_u64());
        let idle = matches!(outcome, Outcome::Read { idle: true, .. });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = endpoint.woken.notified(), if idle => {}
        }
    }
}

async fn scrape(endpoint: &Endpoint, client: &mut Client, shared: &Shared) -> Outcome {
    let started = Instant::now();
    let limit = shared.settings.timeout;
    let fetched = tokio::time::timeout(limit, client.fetch(shared)).await;
    match fetched.unwrap_or(Err(Failure::Timeout)) {
        Ok(Some(page)) => {
            shared.telemetry.metrics.scraped(None);
            let idle = endpoint.loaded(page.body());
            shared.give_back(page.buffer);
            Outcome::Read {
                took: started.elapsed(),
                idle,
            }
        }
        Ok(None) => {
            shared.telemetry.metrics.scraped(None);
            endpoint.alive(&Load::default());
            Outcome::NoMetrics
        }
        Err(failure) => {
            shared.telemetry.metrics.scraped(Some(failure.reason()));
            endpoint.missed(&shared.telemetry);
            if failure == Failure::Timeout {
                Outcome::Silent
            } else {
                Outcome::Refused
            }
        }
    }
}

impl Endpoint {
    /// Takes in a metrics page; true if nothing is to do there.
    fn loaded(&self, page: &[u8]) -> bool {
        let engine = self.owners.borrow().iter().find_map(|(_, engine)| *engine);
        let load = metrics::parse(engine, page).load;
        self.alive(&load);
        self.inflight.get() == 0 && load.running.unwrap_or(0) == 0 && load.waiting.unwrap_or(0) == 0
    }

    fn alive(&self, load: &Load) {
        for (pool, _) in self.owners.borrow().iter() {
            let (now, load) = (clock::now(), load.clone());
            pool.change(now, |state| state.scraped(self.address, load, now));
        }
    }

    /// Notes a miss, and tells those who wait for the endpoint if it was one too many.
    fn missed(&self, telemetry: &Telemetry) {
        for (pool, _) in self.owners.borrow().iter() {
            let now = clock::now();
            let silenced = pool.change(now, |state| {
                let is_silent = |state: &PoolState| {
                    let ejection = state.ejected(self.address, now);
                    ejection.is_some_and(|e| e.cause == EjectionCause::Silence)
                };
                let before = is_silent(state);
                state.scrape_failed(self.address, now);
                !before && is_silent(state)
            });
            if silenced {
                tracing::warn!(
                    pool = %pool.name,
                    endpoint = %self.address,
                    "endpoint does not answer scrapes and gets no requests until it does"
                );
                telemetry.metrics.ejected(&pool.name, "silence");
                pool.note_ejection();
            }
        }
    }
}

impl Shared {
    fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < BUFFERS_KEPT_MAX && buffer.capacity() <= BUFFER_KEPT_BYTES_MAX {
            buffer.clear();
            buffers.push(buffer);
        }
    }
}

/// Why a scrape gave nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Failure {
    Connect,
    /// The connection ended before the first byte of an answer.
    Closed,
    Unreadable(Unreadable),
    /// A status of 500 and more, or one that HTTP does not have there.
    Status,
    Timeout,
}

impl Failure {
    /// The `reason` of `forebay_scrape_errors_total`.
    fn reason(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Closed => "closed",
            Self::Unreadable(Unreadable::Malformed) => "malformed",
            Self::Unreadable(Unreadable::TooLarge) => "too-large",
            Self::Unreadable(Unreadable::Cut) => "cut",
            Self::Status => "status",
            Self::Timeout => "timeout",
        }
    }
}

/// The one connection to one endpoint.
#[derive(Debug)]
struct Client {
    address: SocketAddr,
    request: Vec<u8>,
    stream: Option<TcpStream>,
}

/// A metrics page in a borrowed buffer.
#[derive(Debug)]
struct Page {
    buffer: Vec<u8>,
    at: Range<usize>,
}

impl Page {
    fn body(&self) -> &[u8] {
        &self.buffer[self.at.clone()]
    }
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            request: request(address, "/metrics"),
            stream: None,
        }
    }

    /// The endpoint's page; `None` if it says that there is none.
    async fn fetch(&mut self, shared: &Shared) -> Result<Option<Page>, Failure> {
        let reused = self.stream.is_some();
        let mut fetched = self.exchange(shared).await;
        if reused && matches!(fetched, Err(Failure::Closed)) {
            // The server ended an idle connection, as it may.
            fetched = self.exchange(shared).await;
        }
        let (mut answer, mut buffer) = fetched?;
        if answer.wants_slash {
            self.request = request(self.address, "/metrics/");
            shared.give_back(buffer);
            (answer, buffer) = self.exchange(shared).await?;
        }
        match answer.status {
            200 => Ok(Some(Page {
                buffer,
                at: answer.body,
            })),
            400..500 => {
                shared.give_back(buffer);
                Ok(None)
            }
            _ => Err(Failure::Status),
        }
    }

    /// One request and its answer. The connection is kept only after a complete answer, so one that
    /// is given up half way cannot leave anything behind.
    async fn exchange(&mut self, shared: &Shared) -> Result<(Answer, Vec<u8>), Failure> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.address).await.map_err(|_| Failure::Connect)?,
        };
        stream
            .write_all(&self.request)
            .await
            .map_err(|_| Failure::Closed)?;
        // Nothing is held while the server thinks.
        stream.readable().await.map_err(|_| Failure::Closed)?;
        let mut buffer = shared.buffer();
        let answer = receive(&stream, &mut buffer).await?;
        if answer.keep_alive {
            self.stream = Some(stream);
        }
        Ok((answer, buffer))
    }
}

fn request(address: SocketAddr, path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: text/plain;version=0.0.4\r\n\
         user-agent: forebay\r\n\r\n"
    )
    .into_bytes()
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn receive(stream: &TcpStream, buffer: &mut Vec<u8>) -> Result<Answer, Failure> {
    loop {
        if buffer.capacity() - buffer.len() < READ_BYTES / 4 {
            buffer.reserve(READ_BYTES);
        }
        let closed = match stream.try_read_buf(buffer) {
            Ok(bytes) => bytes == 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.readable().await.map_err(|_| Failure::Closed)?;
                continue;
            }
            Err(_) => true,
        };
        if closed && buffer.is_empty() {
            return Err(Failure::Closed);
        }
        if buffer.len() > ANSWER_BYTES_MAX {
            return Err(Failure::Unreadable(Unreadable::TooLarge));
        }
        match response::read(buffer, closed).map_err(Failure::Unreadable)? {
            Progress::Done(answer) => return Ok(answer),
            Progress::More => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
