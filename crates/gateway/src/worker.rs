//! Workers: one thread, one current-thread runtime, one set of upstream connections each.
//!
//! Every worker opens every port with `SO_REUSEPORT`, so that the kernel spreads connections and a
//! request never changes threads. Ports follow the published configuration; closing one lets its
//! connections finish.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use forebay_decide::{RetryBudget, Rng};
use forebay_model::route::ServicePort;
use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustc_hash::FxHashMap;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsAcceptor;

use crate::budget::Purse;
use crate::client_io::{ClientIo, Stream};
use crate::client_streams::{StreamBody, StreamExecutor, Streams};
use crate::exchange;
use crate::shared::Shared;
use crate::telemetry::{Counted, Desk, WorkerConnections};
use crate::upstream::Idle;
use crate::view::{Newest, View};

/// How often it is looked what has been idle, or has waited for its client, for too long.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long after a failed bind it is tried again.
const BIND_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long a TLS handshake or the protocol's first bytes may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait between two looks at the first bytes of a connection.
const PREFACE_POLL_MAX: Duration = Duration::from_millis(256);
/// Streams of one HTTP/2 connection at a time; its client has to wait with further ones.
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
/// What hyper insists on.
const HEAD_BYTES_LEAST: usize = 8192;

/// What the requests of one thread share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) idle: Idle,
    /// Towards clients.
    pub(crate) streams: Streams,
    pub(crate) rng: RefCell<Rng>,
    pub(crate) retries: RefCell<RetryBudget>,
    /// Whose turn it is among the endpoints of each Service's port.
    pub(crate) turns: RefCell<FxHashMap<ServicePort, usize>>,
    /// Scratch space for block hashes.
    pub(crate) hashes: RefCell<Vec<forebay_decide::BlockHash>>,
    /// Where exchanges are reported.
    pub(crate) desk: Desk,
    /// This worker's part of the memory for bodies.
    pub(crate) purse: Purse,
    /// Told when an endpoint of some pool was ejected or left.
    pub(crate) ejections: Notify,
    newest: Newest,
    /// Set once and for all; the connections that wait are woken then.
    draining: Cell<bool>,
    waiting: RefCell<FxHashMap<u64, Waker>>,
    accepted: Cell<u64>,
    counts: Arc<WorkerConnections>,
    connections: Cell<usize>,
    released: Notify,
}

/// Where a connection came from.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    /// Its IP address, as `X-Forwarded-For` says it.
    pub(crate) ip: HeaderValue,
    pub(crate) port: u16,
    pub(crate) tls: bool,
}

/// Runs a worker until the drain is over.
pub(crate) fn run(shared: Arc<Shared>, seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a current-thread runtime needs only an epoll descriptor");
    let local = tokio::task::LocalSet::new();
    let counts = shared.telemetry.metrics.worker_connections();
    let worker = Rc::new(Worker {
        retries: RefCell::new(RetryBudget::new(crate::clock::now())),
        desk: shared.telemetry.desk(),
        purse: Purse::new(Arc::clone(&shared)),
        newest: Newest::new(&shared.live),
        ejections: Notify::new(),
        draining: Cell::new(false),
        waiting: RefCell::default(),
        accepted: Cell::new(0),
        shared,
        idle: Idle::new(Arc::clone(&counts)),
        streams: Streams::default(),
        counts,
        rng: RefCell::new(Rng::seeded(seed)),
        turns: RefCell::default(),
        hashes: RefCell::default(),
        connections: Cell::new(0),
        released: Notify::new(),
    });
    local.block_on(&runtime, serve(worker));
}

impl Worker {
    /// The configuration in force.
    pub(crate) fn live(&self) -> Rc<View> {
        self.newest.get(&self.shared.live)
    }

    fn begin_drain(&self) {
        self.draining.set(true);
        self.waiting.take().into_values().for_each(Waker::wake);
    }
}

async fn serve(worker: Rc<Worker>) {
    let mut generation = worker.shared.published.subscribe();
    let mut drain = worker.shared.drain.subscribe();
    spawn_local(follow_ejections(Rc::clone(&worker)));
    let mut ports: HashMap<u16, JoinHandle<()>> = HashMap::new();
    let mut sweep_at = tokio::time::interval(SWEEP_EVERY);
    sweep_at.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let unbound = open_ports(&worker, &mut ports);
        tokio::select! {
            changed = generation.changed() => if changed.is_err() { break },
            _ = drain.wait_for(|draining| *draining) => break,
            () = tokio::time::sleep(BIND_AGAIN_AFTER), if unbound => {}
            _ = sweep_at.tick() => sweep(&worker),
        }
    }
    ports.values().for_each(JoinHandle::abort);
    worker.begin_drain();
    let limit = worker.shared.settings.drain_timeout;
    let _cut_off = tokio::time::timeout(limit, async {
        while worker.connections.get() > 0 {
            tokio::select! {
                () = worker.released.notified() => {}
                // A drain does not wait for clients that do not read.
                _ = sweep_at.tick() => sweep(&worker),
            }
        }
    })
    .await;
}

/// Passes ejections on to the requests of this worker, until its runtime ends.
async fn follow_ejections(worker: Rc<Worker>) {
    let mut ejections = worker.shared.live.load().ejections();
    while ejections.changed().await.is_ok() {
        worker.ejections.notify_waiters();
    }
}

/// Lets go of what has been idle, or has waited for its client, for too long.
fn sweep(worker: &Worker) {
    let settings = &worker.shared.settings;
    // Lets go of an old configuration even where no request comes.
    let live = worker.live();
    worker
        .idle
        .sweep(settings.idle_timeout, |address| live.uses(address));
    worker.streams.cut_stalled(settings.write_stall_timeout);
}

/// Opens what is missing and closes what is gone; true if some port could not be opened.
fn open_ports(worker: &Rc<Worker>, ports: &mut HashMap<u16, JoinHandle<()>>) -> bool {
    let live = worker.shared.live.load();
    ports.retain(|port, task| {
        let keep = live.snapshot.ports.contains_key(port) && !task.is_finished();
        if !keep {
            task.abort();
            worker.shared.unbound(*port);
        }
        keep
    });
    worker
        .shared
        .forget_ports(|port| live.snapshot.ports.contains_key(&port));
    let mut unbound = false;
    for port in live.snapshot.ports.keys() {
        if ports.contains_key(port) {
            continue;
        }
        let address = SocketAddr::new(worker.shared.settings.bind, *port);
        match listen(address) {
            Ok(listener) => {
                worker.shared.bound(*port, Ok(()));
                ports.insert(
                    *port,
                    spawn_local(accept(Rc::clone(worker), listener, *port)),
                );
            }
            Err(error) => {
                worker.shared.bound(*port, Err(error));
                unbound = true;
            }
        }
    }
    unbound
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

async fn accept(worker: Rc<Worker>, listener: TcpListener, port: u16) {
    let limit = worker.shared.settings.connections_per_worker_max;
    loop {
        while worker.connections.get() >= limit {
            worker.released.notified().await;
        }
        match listener.accept().await {
            Ok((stream, address)) => {
                let held = Held::new(Rc::clone(&worker));
                spawn_local(connection(held, stream, address, port));
            }
            // Out of descriptors, or a client that left in the backlog: neither ends the port.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Counts a connection for as long as it lives.
#[derive(Debug)]
pub(crate) struct Held {
    worker: Rc<Worker>,
    _counted: Counted,
}

impl Held {
    pub(crate) fn new(worker: Rc<Worker>) -> Self {
        worker.connections.set(worker.connections.get() + 1);
        Self {
            _counted: worker.counts.client(),
            worker,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.worker
            .connections
            .set(self.worker.connections.get() - 1);
        self.worker.released.notify_waiters();
    }
}

async fn connection(held: Held, stream: TcpStream, address: SocketAddr, port: u16) {
    let worker = Rc::clone(&held.worker);
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let tls = worker.shared.live.load().tls.get(&port).cloned();
    let address = canonical(address);
    let Ok(ip) = HeaderValue::from_str(&address.ip().to_string()) else {
        return;
    };
    let client = Rc::new(Client {
        address,
        ip,
        port,
        tls: tls.is_some(),
    });
    let limit = HANDSHAKE_TIMEOUT.min(worker.shared.settings.head_timeout);
    let Ok(Some((stream, http2))) = tokio::time::timeout(limit, handshake(stream, tls)).await
    else {
        return;
    };
    let io = TokioIo::new(ClientIo::new(
        stream,
        worker.shared.settings.write_stall_timeout,
    ));
    // Errors of a connection are its client's business: each exchange has its own record.
    if http2 {
        speak_http2(&worker, client, io).await;
    } else {
        speak_http1(&worker, client, io).await;
    }
}

async fn speak_http1(worker: &Rc<Worker>, client: Rc<Client>, io: TokioIo<ClientIo>) {
    let (own, settings) = (Rc::clone(worker), &worker.shared.settings);
    let service = service_fn(move |request| {
        let (worker, client) = (Rc::clone(&own), Rc::clone(&client));
        // In a box of its own: hyper keeps room for the future as long as the connection lives, and
        // this one takes several kilobytes, which an idle connection need not hold.
        Box::pin(async move { Ok::<_, Infallible>(exchange::serve(worker, client, request).await) })
    });
    let conn = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.head_timeout)
        .max_buf_size(settings.head_bytes_max.max(HEAD_BYTES_LEAST))
        .max_header_size(settings.head_bytes_max)
        .max_headers(settings.headers_max)
        .half_close(false)
        .serve_connection(io, service)
        .with_upgrades();
    let mut conn = std::pin::pin!(conn);
    if until_drain(worker, conn.as_mut()).await {
        conn.as_mut().graceful_shutdown();
        let _closed = conn.await;
    }
}

async fn speak_http2(worker: &Rc<Worker>, client: Rc<Client>, io: TokioIo<ClientIo>) {
    let (own, settings) = (Rc::clone(worker), &worker.shared.settings);
    let service = service_fn(move |request| {
        let (worker, client) = (Rc::clone(&own), Rc::clone(&client));
        Box::pin(async move {
            let response = exchange::serve(Rc::clone(&worker), client, request).await;
            Ok::<_, Infallible>(response.map(|body| StreamBody::new(body, worker)))
        })
    });
    let conn = http2::Builder::new(StreamExecutor(Rc::clone(worker)))
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .max_header_list_size(u32::try_from(settings.head_bytes_max).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .serve_connection(io, service);
    let mut conn = std::pin::pin!(conn);
    if until_drain(worker, conn.as_mut()).await {
        conn.as_mut().graceful_shutdown();
        let _closed = conn.await;
    }
}

/// Polls `conn` to its end or until the worker drains; true if it is to be drained.
async fn until_drain(worker: &Worker, mut conn: Pin<&mut impl Future>) -> bool {
    let number = worker.accepted.replace(worker.accepted.get() + 1);
    let mut waits = false;
    let drained = std::future::poll_fn(|cx| {
        if conn.as_mut().poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        if worker.draining.get() {
            return Poll::Ready(true);
        }
        if !waits {
            // Once is enough: the waker of a task of its own stays the same.
            waits = true;
            let waker = cx.waker().clone();
            worker.waiting.borrow_mut().insert(number, waker);
        }
        Poll::Pending
    })
    .await;
    worker.waiting.borrow_mut().remove(&number);
    drained
}

/// Finishes TLS if there is any, and tells whether the client speaks HTTP/2.
async fn handshake(
    stream: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Option<(Stream, bool)> {
    match tls {
        Some(config) => {
            let stream = TlsAcceptor::from(config).accept(stream).await.ok()?;
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Some((Stream::Tls(Box::new(stream)), http2))
        }
        None => {
            let http2 = has_h2_preface(&stream).await.ok()?;
            Some((Stream::Plain(stream), http2))
        }
    }
}

/// Whether the first bytes are HTTP/2's preface. No HTTP/1.1 method is called `PRI`.
async fn has_h2_preface(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0_u8; 4];
    let mut wait = Duration::from_millis(1);
    loop {
        let n = stream.peek(&mut first).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[..n] != b"PRI "[..n] {
            return Ok(false);
        }
        if n == first.len() {
            return Ok(true);
        }
        if stream.ready(Interest::READABLE).await?.is_read_closed() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The rest of a split preface: peek would answer at once with what is there.
        tokio::time::sleep(wait).await;
        // Somebody who stops after `P` must not keep this thread busy.
        wait = (wait * 2).min(PREFACE_POLL_MAX);
    }
}

/// IPv4 clients of a dual-stack socket as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Lets hyper spawn onto the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}
