//! Workers: one thread, one current-thread runtime, one set of upstream connections each.
//!
//! Every worker opens every port with `SO_REUSEPORT`, so that the kernel spreads connections and a
//! request never changes threads. Ports follow the published configuration; closing one lets its
//! connections finish.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use forebay_decide::{RetryBudget, Rng};
use forebay_model::route::{ServicePort, ServiceTarget, WeightedTarget};
use rustc_hash::FxHashMap;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::MissedTickBehavior;

use crate::budget::Purse;
use crate::client_streams::Streams;
use crate::connection::{self, Held};
use crate::epp::{self, Seat};
use crate::external::Links;
use crate::shared::Shared;
use crate::telemetry::{Counted, Desk, WorkerConnections};
use crate::upstream::Idle;
use crate::view::{Newest, View};

/// How often it is looked what has been idle, or has waited for its client, for too long.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long after a failed bind it is tried again.
const BIND_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Services whose turn is remembered; then all begin anew.
const TURNS_MAX: usize = 10_000;

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
    turns: RefCell<FxHashMap<ServicePort, usize>>,
    /// Connections to pickers outside of the process.
    pub(crate) pickers: Links,
    /// Scratch space for block hashes.
    pub(crate) hashes: RefCell<Vec<forebay_decide::BlockHash>>,
    /// The same for hashes of tokens.
    pub(crate) token_chains: RefCell<Vec<forebay_decide::TokenChain>>,
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

/// Runs a worker until the drain is over.
pub(crate) fn run(shared: Arc<Shared>, seat: Seat, seed: u64) {
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
        pickers: Links::default(),
        hashes: RefCell::default(),
        token_chains: RefCell::default(),
        connections: Cell::new(0),
        released: Notify::new(),
    });
    local.block_on(&runtime, serve(worker, seat));
}

impl Worker {
    /// The configuration in force.
    pub(crate) fn live(&self) -> Rc<View> {
        self.newest.get(&self.shared.live)
    }

    /// Draws a target by weight; none if all weights are zero.
    pub(crate) fn draw<'t>(&self, targets: &'t [WeightedTarget]) -> Option<&'t WeightedTarget> {
        let total: u64 = targets.iter().map(|t| u64::from(t.weight)).sum();
        let mut at = match (total, targets.len()) {
            (0, _) => return None,
            (_, 1) => 0,
            (total, _) => self.rng.borrow_mut().next_u64() % total,
        };
        targets.iter().find(|target| {
            let rest = at.checked_sub(u64::from(target.weight));
            at = rest.unwrap_or(at);
            rest.is_none()
        })
    }

    /// The endpoint whose turn it is, of a Service that has some.
    pub(crate) fn turn(&self, to: &ServiceTarget) -> SocketAddr {
        let mut turns = self.turns.borrow_mut();
        if turns.len() >= TURNS_MAX {
            turns.clear();
        }
        let at = turns.entry(to.of.clone()).or_insert(0);
        *at = at.wrapping_add(1);
        to.endpoints[*at % to.endpoints.len()]
    }

    /// Counts a client's connection until [`Self::connection_closed`].
    pub(crate) fn connection_opened(&self) -> Counted {
        self.connections.set(self.connections.get() + 1);
        self.counts.client()
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.set(self.connections.get() - 1);
        self.released.notify_waiters();
    }

    /// Tells a task when the worker drains.
    pub(crate) fn drain_notice(&self) -> DrainNotice<'_> {
        let number = self.accepted.replace(self.accepted.get() + 1);
        DrainNotice {
            worker: self,
            number,
            waits: false,
        }
    }

    fn begin_drain(&self) {
        self.draining.set(true);
        self.waiting.take().into_values().for_each(Waker::wake);
    }
}

/// See [`Worker::drain_notice`].
#[derive(Debug)]
pub(crate) struct DrainNotice<'w> {
    worker: &'w Worker,
    number: u64,
    waits: bool,
}

impl DrainNotice<'_> {
    /// Ready once the worker drains. To be polled by one task, whose waker stays the same.
    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.worker.draining.get() {
            return Poll::Ready(());
        }
        if !self.waits {
            self.waits = true;
            let waker = cx.waker().clone();
            self.worker.waiting.borrow_mut().insert(self.number, waker);
        }
        Poll::Pending
    }
}

impl Drop for DrainNotice<'_> {
    fn drop(&mut self) {
        self.worker.waiting.borrow_mut().remove(&self.number);
    }
}

async fn serve(worker: Rc<Worker>, seat: Seat) {
    let mut generation = worker.shared.published.subscribe();
    let mut drain = worker.shared.drain.subscribe();
    spawn_local(follow_ejections(Rc::clone(&worker)));
    let arrivals = spawn_local(epp::take_seat(Rc::clone(&worker), seat));
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
    arrivals.abort();
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
        .sweep(settings.idle_timeout, |key| live.uses(key));
    worker.pickers.sweep(|address| live.uses_address(address));
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
                spawn_local(connection::serve(held, stream, address, port));
            }
            // Out of descriptors, or a client that left in the backlog: neither ends the port.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Lets hyper spawn onto the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}
