//! Idle connections of one worker, newest first.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::h1::Conn;
use super::h2::Multiplexed;
use crate::telemetry::{Counted, WorkerConnections};

/// Idle connections kept per endpoint and worker; one more closes the oldest.
const IDLE_PER_ENDPOINT_MAX: usize = 256;

/// Connections that wait for their next request. Cheap to clone; belongs to one thread.
#[derive(Clone, Debug)]
pub struct Idle(Rc<RefCell<Inner>>);

#[derive(Debug)]
struct Inner {
    h1: FxHashMap<SocketAddr, VecDeque<(Instant, Conn)>>,
    /// Connections in `h1`.
    count: usize,
    h2: FxHashMap<SocketAddr, Multiplexed>,
    counts: Arc<WorkerConnections>,
}

impl Inner {
    fn set_count(&mut self, count: usize) {
        self.count = count;
        self.counts.set_upstream_idle(count);
    }
}

impl Idle {
    /// No connection yet; those that come are counted in `counts`.
    #[must_use]
    pub fn new(counts: Arc<WorkerConnections>) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            h1: FxHashMap::default(),
            count: 0,
            h2: FxHashMap::default(),
            counts,
        })))
    }

    /// Counts a connection that was just opened.
    pub(super) fn opened(&self) -> Counted {
        self.0.borrow().counts.upstream()
    }

    /// The most recently used connection that is still open.
    pub(super) fn take(&self, address: SocketAddr) -> Option<Conn> {
        let mut inner = self.0.borrow_mut();
        let inner = &mut *inner;
        let waiting = inner.h1.get_mut(&address)?;
        let before = waiting.len();
        let quiet = std::iter::from_fn(|| waiting.pop_back()).find(|(_, conn)| conn.is_quiet());
        let taken = before - waiting.len();
        inner.set_count(inner.count - taken);
        quiet.map(|(_, conn)| conn)
    }

    /// Keeps a connection whose response has been read to its end.
    pub(super) fn put(&self, conn: Conn) {
        let mut inner = self.0.borrow_mut();
        let inner = &mut *inner;
        let waiting = inner.h1.entry(conn.address()).or_default();
        let full = waiting.len() >= IDLE_PER_ENDPOINT_MAX;
        if full {
            waiting.pop_front();
        }
        waiting.push_back((Instant::now(), conn));
        inner.set_count(inner.count + usize::from(!full));
    }

    pub(super) fn multiplexed(&self, address: SocketAddr) -> Option<Multiplexed> {
        self.0
            .borrow()
            .h2
            .get(&address)
            .filter(|m| !m.is_closed())
            .cloned()
    }

    pub(super) fn put_multiplexed(&self, address: SocketAddr, conn: Multiplexed) {
        self.0.borrow_mut().h2.insert(address, conn);
    }

    /// Closes what has been idle for longer than `limit`, and what goes to endpoints that
    /// `still_used` denies.
    pub fn sweep(&self, limit: Duration, still_used: impl Fn(&SocketAddr) -> bool) {
        let mut inner = self.0.borrow_mut();
        inner.h1.retain(|address, waiting| {
            if !still_used(address) {
                return false;
            }
            waiting.retain(|(since, _)| since.elapsed() < limit);
            !waiting.is_empty()
        });
        let left = inner.h1.values().map(VecDeque::len).sum();
        inner.set_count(left);
        inner
            .h2
            .retain(|address, conn| still_used(address) && !conn.is_closed());
    }
}
