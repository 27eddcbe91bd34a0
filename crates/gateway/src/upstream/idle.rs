//! Idle connections of one worker, newest first.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::h1::Conn;
use super::h2::Multiplexed;

/// Idle connections kept per endpoint and worker; one more closes the oldest.
const IDLE_PER_ENDPOINT_MAX: usize = 256;

/// Connections that wait for their next request. Cheap to clone; belongs to one thread.
#[derive(Clone, Debug, Default)]
pub struct Idle(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    h1: FxHashMap<SocketAddr, VecDeque<(Instant, Conn)>>,
    h2: FxHashMap<SocketAddr, Multiplexed>,
}

impl Idle {
    /// The most recently used connection that is still open.
    pub(super) fn take(&self, address: SocketAddr) -> Option<Conn> {
        let mut inner = self.0.borrow_mut();
        let waiting = inner.h1.get_mut(&address)?;
        while let Some((_, conn)) = waiting.pop_back() {
            if conn.is_quiet() {
                return Some(conn);
            }
        }
        None
    }

    /// Keeps a connection whose response has been read to its end.
    pub(super) fn put(&self, conn: Conn) {
        let mut inner = self.0.borrow_mut();
        let waiting = inner.h1.entry(conn.address()).or_default();
        if waiting.len() >= IDLE_PER_ENDPOINT_MAX {
            waiting.pop_front();
        }
        waiting.push_back((Instant::now(), conn));
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
        inner
            .h2
            .retain(|address, conn| still_used(address) && !conn.is_closed());
    }
}
