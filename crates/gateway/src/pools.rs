//! Runtime state of pools: the picker's memory, shared by all workers.
//!
//! A pool's state sits behind one short mutex that is never held across an await. Configuration is
//! swapped in whole as [`Live`]; the state of a pool outlives the snapshots that describe it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use forebay_decide::{Ask, End, EndKind, Flight, PoolState};
use forebay_model::route::Target;
use forebay_model::{Moment, ObjectName, Pool, Snapshot};
use rustc_hash::FxHashMap;
use tokio::sync::watch;

use crate::catalogue::Catalogue;
use crate::clock;
use crate::tls::{self, TlsPorts};
use crate::worker::Worker;

/// A snapshot with the runtime state of its pools. A request takes one and keeps it.
#[derive(Debug)]
pub struct Live {
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// The pools by name.
    pub pools: FxHashMap<ObjectName, Arc<PoolRuntime>>,
    /// TLS by port.
    pub(crate) tls: TlsPorts,
    addresses: HashSet<SocketAddr>,
    ejections: Arc<watch::Sender<u64>>,
}

/// One pool at run time.
#[derive(Debug)]
pub struct PoolRuntime {
    /// The `InferencePool`.
    pub name: ObjectName,
    state: Mutex<PoolState>,
    pool: ArcSwap<Pool>,
    /// Common to all pools, so that a worker follows one.
    ejections: Arc<watch::Sender<u64>>,
    pub(crate) catalogue: Catalogue,
}

impl PoolRuntime {
    fn new(pool: &Arc<Pool>, ejections: &Arc<watch::Sender<u64>>, now: Moment) -> Self {
        Self {
            name: pool.name.clone(),
            state: Mutex::new(PoolState::new(pool, now)),
            pool: ArcSwap::from(Arc::clone(pool)),
            ejections: Arc::clone(ejections),
            catalogue: Catalogue::default(),
        }
    }

    /// The picker's state. Hold the guard for one call only, never across an await.
    pub fn state(&self) -> MutexGuard<'_, PoolState> {
        // A panic while the lock is held is a bug that took its request with it; the state is
        // counters and caches, usable whatever happened to one of them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            self.pool.state().first_byte(flight, now);
        }
    }

    /// Counts the request no longer. A failure may put the endpoint out of rotation, which is
    /// told to those who wait on it.
    pub(crate) fn finish(&mut self, end: End, now: Moment) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        let newly_out = {
            let mut state = self.pool.state();
            let was_out = state.ejected(self.address, now).is_some();
            state.finish(flight, end, now);
            !was_out && state.ejected(self.address, now).is_some()
        };
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
            pools: FxHashMap::default(),
            tls: TlsPorts::default(),
            addresses: HashSet::new(),
            ejections: Arc::default(),
        }
    }

    /// The next configuration; state of pools that stay is kept.
    #[must_use]
    pub fn next(&self, snapshot: Arc<Snapshot>, now: Moment) -> Self {
        let pools = snapshot
            .pools
            .iter()
            .map(|(name, pool)| {
                let runtime = match self.pools.get(name) {
                    None => Arc::new(PoolRuntime::new(pool, &self.ejections, now)),
                    Some(old) => {
                        if !Arc::ptr_eq(&old.pool.load(), pool) {
                            old.state().sync(pool, now);
                            old.pool.store(Arc::clone(pool));
                            // Requests that wait on an endpoint that went away look again.
                            old.note_ejection();
                        }
                        Arc::clone(old)
                    }
                };
                (name.clone(), runtime)
            })
            .collect();
        let tls = tls::ports(&snapshot, &mut |what| tracing::error!("{what}"));
        let addresses = addresses(&snapshot);
        Self {
            snapshot,
            pools,
            tls,
            addresses,
            ejections: Arc::clone(&self.ejections),
        }
    }

    /// Changes whenever an endpoint of any pool is ejected or leaves.
    #[must_use]
    pub fn ejections(&self) -> watch::Receiver<u64> {
        self.ejections.subscribe()
    }

    /// Whether connections to `address` may be kept.
    pub(crate) fn uses(&self, address: &SocketAddr) -> bool {
        self.addresses.contains(address)
    }
}

/// Every address that a pool or a Service has.
fn addresses(snapshot: &Snapshot) -> HashSet<SocketAddr> {
    let pools = snapshot
        .pools
        .values()
        .flat_map(|pool| pool.endpoints.iter().map(|e| e.address));
    let tables = snapshot
        .ports
        .values()
        .flat_map(|port| &port.listeners)
        .map(|l| &l.routes);
    let entries = tables.flat_map(|table| {
        let hosts = table
            .exact
            .values()
            .chain(table.suffix.iter().map(|(_, list)| list));
        hosts.chain([&table.any]).flatten()
    });
    let services = entries
        .flat_map(|entry| &entry.rule.targets)
        .flat_map(|to| match &to.target {
            Target::Service(service) => service.endpoints.as_slice(),
            Target::Pool(_) | Target::Broken(_) => &[],
        });
    pools.chain(services.copied()).collect()
}
