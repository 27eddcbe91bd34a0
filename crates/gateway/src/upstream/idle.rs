//! Connections of one worker that can carry another request, newest first.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use rustls::ClientConfig;

use super::h1::Conn;
use super::h2::Multiplexed;
use super::{Key, Peer};
use crate::telemetry::{Counted, WorkerConnections};
use crate::tls::backend::Inside;

/// Idle connections kept per endpoint and worker; one more closes the oldest.
const IDLE_PER_ENDPOINT_MAX: usize = 256;
/// Connections of HTTP/2 per endpoint and worker; when all carry as many requests as the endpoint
/// allows, further ones wait on the one with the fewest.
const MULTIPLEXED_PER_ENDPOINT_MAX: usize = 64;

/// Connections that wait for their next request. Cheap to clone; belongs to one thread.
#[derive(Clone, Debug)]
pub struct Idle(Rc<RefCell<Inner>>);

#[derive(Debug)]
struct Inner {
    h1: FxHashMap<Key, VecDeque<(Instant, Conn)>>,
    /// Connections in `h1`.
    count: usize,
    h2: FxHashMap<Key, Vec<Multiplexed>>,
    /// Settings of TLS, with the sessions that can be resumed.
    tls: FxHashMap<(Key, Inside), Arc<ClientConfig>>,
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
            tls: FxHashMap::default(),
            counts,
        })))
    }

    /// Counts a connection that was just opened.
    pub(super) fn opened(&self) -> Counted {
        self.0.borrow().counts.upstream()
    }

    /// The most recently used connection that is still open.
    pub(super) fn take(&self, key: Key) -> Option<Conn> {
        let mut inner = self.0.borrow_mut();
        let inner = &mut *inner;
        let waiting = inner.h1.get_mut(&key)?;
        let before = waiting.len();
        let newest_first = std::iter::from_fn(|| waiting.pop_back());
        let quiet = newest_first
            .map(|(_, conn)| conn)
            .find_map(|mut conn| conn.is_quiet().then_some(conn));
        let taken = before - waiting.len();
        inner.set_count(inner.count - taken);
        quiet
    }

    /// Keeps a connection whose response has been read to its end.
    pub(super) fn put(&self, conn: Conn) {
        let mut inner = self.0.borrow_mut();
        let inner = &mut *inner;
        let waiting = inner.h1.entry(conn.key()).or_default();
        let full = waiting.len() >= IDLE_PER_ENDPOINT_MAX;
        if full {
            waiting.pop_front();
        }
        waiting.push_back((Instant::now(), conn));
        inner.set_count(inner.count + usize::from(!full));
    }

    /// An open connection of HTTP/2 with room for another request; one without room where no
    /// further connection may be made.
    pub(super) fn multiplexed(&self, key: Key) -> Option<Multiplexed> {
        let mut inner = self.0.borrow_mut();
        let open = inner.h2.get_mut(&key)?;
        open.retain(|conn| !conn.is_closed());
        let free = open.iter().find(|conn| conn.has_room());
        free.or_else(|| {
            let full = open.len() >= MULTIPLEXED_PER_ENDPOINT_MAX;
            let least = || open.iter().min_by_key(|conn| conn.requests());
            full.then(least).flatten()
        })
        .cloned()
    }

    pub(super) fn put_multiplexed(&self, key: Key, conn: Multiplexed) {
        self.0.borrow_mut().h2.entry(key).or_default().push(conn);
    }

    /// How to agree on TLS with `peer`, which has a connector.
    pub(super) fn tls_config(&self, peer: &Peer, inside: Inside) -> Option<Arc<ClientConfig>> {
        let connector = peer.tls.as_ref()?;
        let mut inner = self.0.borrow_mut();
        let config = inner.tls.entry((peer.key(), inside));
        Some(Arc::clone(
            config.or_insert_with(|| connector.config(inside)),
        ))
    }

    /// Closes what has been idle for longer than `limit`, and what goes to endpoints that
    /// `still_used` denies.
    pub(crate) fn sweep(&self, limit: Duration, still_used: impl Fn(Key) -> bool) {
        let mut inner = self.0.borrow_mut();
        inner.h1.retain(|key, waiting| {
            if !still_used(*key) {
                return false;
            }
            waiting.retain(|(since, _)| since.elapsed() < limit);
            !waiting.is_empty()
        });
        let left = inner.h1.values().map(VecDeque::len).sum();
        inner.set_count(left);
        inner.h2.retain(|key, open| {
            if !still_used(*key) {
                return false;
            }
            let mut first = true;
            // One stays, however long nothing was asked of it: the next request need not wait.
            open.retain(|conn| {
                let kept = !conn.is_closed() && (first || conn.requests() > 0);
                first &= !kept;
                kept
            });
            !open.is_empty()
        });
        inner.tls.retain(|(key, _), _| still_used(*key));
    }
}
