//! Runtime state of pools: the picker's memory, shared by all workers.
//!
//! A pool's state sits behind one short mutex that is never held across an await. Configuration is
//! swapped in whole as [`Live`]; the state of a pool outlives the snapshots that describe it.
//! Requests that wait for a place in a saturated pool are told of it from here; the waiting itself
//! is in [`crate::queue`].

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use forebay_decide::{
    Ask, End, EndKind, Flight, GateRefusal, Offer, PoolState, Refusal, Ticket, Waiter,
};
use forebay_model::route::ServiceTarget;
use forebay_model::snapshot::Listener;
use forebay_model::{Moment, ObjectName, Pool, Snapshot};
use rustc_hash::FxHashMap;
use tokio::sync::{oneshot, watch};

use crate::catalogue::Catalogue;
use crate::changes::{Addresses, Changes};
use crate::clock;
use crate::per_worker::lock;
use crate::tls::backend::Connectors;
use crate::tls::{self, Ends, TlsPorts};
use crate::upstream::Key;
use crate::worker::Worker;

/// A snapshot with the runtime state of its pools. A request takes one and keeps it.
#[derive(Debug)]
pub struct Live {
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// The pools by name.
    pub pools: Arc<FxHashMap<ObjectName, Arc<PoolRuntime>>>,
    /// TLS by port.
    pub(crate) tls: TlsPorts,
    /// TLS towards Services.
    pub(crate) connectors: Connectors,
    addresses: Addresses,
    ejections: Arc<watch::Sender<u64>>,
}

/// One pool at run time.
#[derive(Debug)]
pub struct PoolRuntime {
    /// The `InferencePool`.
    pub name: ObjectName,
    books: Mutex<Books>,
    pool: ArcSwap<Pool>,
    /// Common to all pools, so that a worker follows one.
    ejections: Arc<watch::Sender<u64>>,
    pub(crate) catalogue: Catalogue,
}

/// What the pool's mutex guards.
#[derive(Debug)]
struct Books {
    state: PoolState,
    /// Whom to tell of each place in the queue; as many as wait there.
    waiters: FxHashMap<Ticket, oneshot::Sender<Turn>>,
}

/// The end of a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// The request goes; it is counted as on its way until [`PoolState::arrived`].
    Go,
    /// It does not.
    Refused(GateRefusal),
}

/// A place in the queue.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) ticket: Ticket,
    pub(crate) turn: oneshot::Receiver<Turn>,
    /// Requests that go before it, as things are.
    pub(crate) ahead: usize,
    pub(crate) saturation: f32,
}

/// Why a request goes no further.
#[derive(Debug)]
pub(crate) enum Rejected {
    /// Shed for its priority.
    Shed(Refusal),
    /// It may not even wait.
    Queue(GateRefusal),
}

/// The picker's state, locked.
#[derive(Debug)]
pub struct StateGuard<'a>(MutexGuard<'a, Books>);

impl Deref for StateGuard<'_> {
    type Target = PoolState;
    fn deref(&self) -> &PoolState {
        &self.0.state
    }
}

impl DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut PoolState {
        &mut self.0.state
    }
}

impl Books {
    /// Those whose wait ends now, with what to tell them.
    fn turns(&mut self, now: Moment) -> Vec<(oneshot::Sender<Turn>, Turn)> {
        if self.waiters.is_empty() {
            return Vec::new();
        }
        let turns = self.state.turns(now);
        let expired = turns.expired.into_iter();
        let refused = expired.map(|ticket| (ticket, Turn::Refused(GateRefusal::Expired)));
        let released = turns.released.into_iter().map(|ticket| (ticket, Turn::Go));
        let ended = refused.chain(released);
        ended
            .filter_map(|(ticket, turn)| self.waiters.remove(&ticket).map(|waiter| (waiter, turn)))
            .collect()
    }
}

impl PoolRuntime {
    fn new(pool: &Arc<Pool>, ejections: &Arc<watch::Sender<u64>>, now: Moment) -> Self {
        Self {
            name: pool.name.clone(),
            books: Mutex::new(Books {
                state: PoolState::new(pool, now),
                waiters: FxHashMap::default(),
            }),
            pool: ArcSwap::from(Arc::clone(pool)),
            ejections: Arc::clone(ejections),
            catalogue: Catalogue::default(),
        }
    }

    /// The picker's state. Hold the guard for one call only, never across an await. What makes
    /// room in the pool is a [`change`](Self::change).
    pub fn state(&self) -> StateGuard<'_> {
        StateGuard(self.lock())
    }

    /// Changes the state, and lets those go who have room after that.
    pub fn change<R>(&self, now: Moment, change: impl FnOnce(&mut PoolState) -> R) -> R {
        let (result, turns) = {
            let mut books = self.lock();
            let result = change(&mut books.state);
            (result, books.turns(now))
        };
        self.tell(turns, now);
        result
    }

    /// A request arrives: it goes at once (`None`), or waits.
    pub(crate) fn offer(&self, waiter: Waiter, now: Moment) -> Result<Option<Queued>, Rejected> {
        let mut books = self.lock();
        match books.state.offer(waiter, now).map_err(Rejected::Shed)? {
            Offer::Go => Ok(None),
            Offer::Refuse(refusal) => Err(Rejected::Queue(refusal)),
            Offer::Wait { ticket, displaced } => {
                let refused = Turn::Refused(GateRefusal::Displaced);
                let losers = displaced.iter().filter_map(|t| books.waiters.remove(t));
                let losers: Vec<_> = losers.map(|loser| (loser, refused)).collect();
                let (sender, turn) = oneshot::channel();
                books.waiters.insert(ticket, sender);
                let queued = Queued {
                    ticket,
                    turn,
                    ahead: books.state.gate().ahead_of(waiter.priority) - 1,
                    saturation: books.state.expected_saturation(now),
                };
                drop(books);
                self.tell(losers, now);
                Ok(Some(queued))
            }
        }
    }

    /// Gives a place in the queue up.
    pub(crate) fn leave(&self, ticket: Ticket) {
        let mut books = self.lock();
        books.waiters.remove(&ticket);
        books.state.withdraw(ticket);
    }

    /// Tells them outside of the lock. A place that was given to a request whose client just left
    /// goes to the next.
    fn tell(&self, mut turns: Vec<(oneshot::Sender<Turn>, Turn)>, now: Moment) {
        while !turns.is_empty() {
            let untold = turns
                .into_iter()
                .filter_map(|(waiter, turn)| waiter.send(turn).err());
            let unused = untold.filter(|turn| *turn == Turn::Go).count();
            if unused == 0 {
                return;
            }
            let mut books = self.lock();
            (0..unused).for_each(|_| books.state.arrived());
            turns = books.turns(now);
        }
    }

    /// Ends the queue of a pool that is no longer configured: nobody scrapes it any more, and its
    /// requests keep the configuration that they came under.
    fn retire(&self, now: Moment) {
        self.change(now, PoolState::open_gate);
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }

    /// The pool as last configured.
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.load_full()
    }

    /// Tells waiting requests that an endpoint was ejected, so that they may try another.
    pub fn note_ejection(&self) {
        self.ejections.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// One request in flight at one endpoint. Dropped unfinished it counts as cancelled.
#[derive(Debug)]
pub(crate) struct InFlight {
    pool: Arc<PoolRuntime>,
    address: SocketAddr,
    flight: Option<Flight>,
    worker: Rc<Worker>,
}

impl InFlight {
    /// Counts the request at `address` from now on.
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        pool: &Arc<PoolRuntime>,
        ask: &Ask<'_>,
        address: SocketAddr,
    ) -> Self {
        let flight = pool.state().begin(ask, address, clock::now());
        Self::begun(worker, pool, address, flight)
    }

    /// A request that has been counted already.
    pub(crate) fn begun(
        worker: &Rc<Worker>,
        pool: &Arc<PoolRuntime>,
        address: SocketAddr,
        flight: Flight,
    ) -> Self {
        Self {
            pool: Arc::clone(pool),
            address,
            flight: Some(flight),
            worker: Rc::clone(worker),
        }
    }

    /// Where.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Notes that the prefill is over.
    pub(crate) fn first_byte(&mut self, now: Moment) {
        if let Some(flight) = &mut self.flight {
            self.pool.change(now, |state| state.first_byte(flight, now));
        }
    }

    /// Counts the request no longer. A failure may put the endpoint out of rotation, which is
    /// told to those who wait on it.
    pub(crate) fn finish(&mut self, end: End, now: Moment) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        let newly_out = self.pool.change(now, |state| {
            let was_out = state.ejected(self.address, now).is_some();
            state.finish(flight, end, now);
            !was_out && state.ejected(self.address, now).is_some()
        });
        if newly_out {
            tracing::warn!(
                pool = %self.pool.name,
                endpoint = %self.address,
                "endpoint failed several requests in a row and gets none for a while"
            );
            let metrics = &self.worker.shared.telemetry.metrics;
            metrics.ejected(&self.pool.name, "failures");
            self.pool.note_ejection();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.finish(End::plain(EndKind::Cancelled), clock::now());
    }
}

impl Live {
    /// Nothing configured yet.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            snapshot: Arc::default(),
            pools: Arc::default(),
            tls: TlsPorts::default(),
            connectors: Connectors::default(),
            addresses: Addresses::default(),
            ejections: Arc::default(),
        }
    }

    /// The next configuration. What both have in common is kept: the state of pools, sessions of
    /// TLS, connections to endpoints.
    #[must_use]
    pub fn next(&self, snapshot: Arc<Snapshot>, now: Moment) -> Self {
        let mut report = |what: String| tracing::error!("{what}");
        let pools = Changes::between(&self.snapshot.pools, &snapshot.pools);
        let services = Changes::between(&self.snapshot.services, &snapshot.services);
        let tls = tls::ports(&snapshot, (&self.snapshot, &self.tls), &mut report);
        let has_policy = |service: &ServiceTarget| service.tls.is_some();
        let connectors = if services.leaving().chain(services.coming()).any(has_policy) {
            self.connectors.next(&snapshot, &mut report)
        } else {
            self.connectors.clone()
        };
        let addresses = if pools.is_empty() && services.is_empty() {
            self.addresses.clone()
        } else {
            self.addresses.changed(
                addresses(pools.leaving(), services.leaving()),
                addresses(pools.coming(), services.coming()),
            )
        };
        Self {
            pools: self.next_pools(&pools, now),
            snapshot: Arc::clone(&snapshot),
            tls,
            connectors,
            addresses,
            ejections: Arc::clone(&self.ejections),
        }
    }

    fn next_pools(
        &self,
        changes: &Changes<'_, ObjectName, Pool>,
        now: Moment,
    ) -> Arc<FxHashMap<ObjectName, Arc<PoolRuntime>>> {
        for (name, _, pool) in &changes.changed {
            if let Some(runtime) = self.pools.get(*name) {
                runtime.pool.store(Arc::clone(pool));
                runtime.change(now, |state| state.sync(pool, now));
                // Requests that wait on an endpoint that went away look again.
                runtime.note_ejection();
            }
        }
        let mut pools = Arc::clone(&self.pools);
        if changes.come.is_empty() && changes.gone.is_empty() {
            return pools;
        }
        let listed = Arc::make_mut(&mut pools);
        for (name, _) in &changes.gone {
            if let Some(runtime) = listed.remove(*name) {
                runtime.retire(now);
            }
        }
        for (name, pool) in &changes.come {
            let runtime = PoolRuntime::new(pool, &self.ejections, now);
            listed.insert((*name).clone(), Arc::new(runtime));
        }
        pools
    }

    /// Changes whenever an endpoint of any pool is ejected or leaves.
    #[must_use]
    pub fn ejections(&self) -> watch::Receiver<u64> {
        self.ejections.subscribe()
    }

    /// A listener of a port with TLS.
    pub(crate) fn tls_listener(&self, bound: u16, at: usize) -> Option<(&Listener, &Ends)> {
        let port = self.snapshot.ports.get(&bound)?;
        let ends = self.tls.get(&bound)?;
        Some((port.listeners.get(at)?, ends.get(at)?))
    }

    /// Whether a pool, its picker or a Service has this address.
    pub(crate) fn uses_address(&self, address: &SocketAddr) -> bool {
        self.addresses.contains(address)
    }

    /// Whether connections of this kind may be kept.
    pub(crate) fn uses(&self, key: Key) -> bool {
        self.uses_address(&key.address)
            && (key.connector == 0 || self.connectors.uses(key.connector))
    }
}

fn addresses<'a>(
    pools: impl Iterator<Item = &'a Pool>,
    services: impl Iterator<Item = &'a ServiceTarget>,
) -> impl Iterator<Item = SocketAddr> {
    let of_pools = pools.flat_map(|pool| {
        let endpoints = pool.endpoints.iter().map(|e| e.address);
        let pickers = pool.external.iter().flat_map(|picker| &picker.endpoints);
        endpoints.chain(pickers.copied())
    });
    of_pools.chain(services.flat_map(|service| service.endpoints.iter().copied()))
}
