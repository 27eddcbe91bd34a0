//! How many connections there are. Each worker counts its own, which costs its requests a plain
//! store and no locked instruction; whoever reads the metrics adds them up.

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::per_worker::PerWorker;

/// The connections of one worker. Only that worker writes.
#[derive(Debug, Default)]
#[repr(align(128))] // A cache line of its own: workers must not slow each other down.
pub struct WorkerConnections {
    client: AtomicUsize,
    upstream: AtomicUsize,
    upstream_idle: AtomicUsize,
}

/// A counted connection, for as long as it lives. It stays in its worker's thread, which is the only
/// one to write.
#[derive(Debug)]
pub struct Counted {
    of: Arc<WorkerConnections>,
    which: Which,
    _in_its_thread: PhantomData<Rc<()>>,
}

#[derive(Clone, Copy, Debug)]
enum Which {
    Client,
    Upstream,
}

impl WorkerConnections {
    /// Counts a client's connection until the guard is dropped.
    #[must_use]
    pub fn client(self: &Arc<Self>) -> Counted {
        Counted::new(self, Which::Client)
    }

    /// Counts a connection to an endpoint until the guard is dropped.
    #[must_use]
    pub fn upstream(self: &Arc<Self>) -> Counted {
        Counted::new(self, Which::Upstream)
    }

    /// So many of those to endpoints wait for their next request.
    pub fn set_upstream_idle(&self, count: usize) {
        self.upstream_idle.store(count, Ordering::Relaxed);
    }

    fn count(&self, which: Which) -> &AtomicUsize {
        match which {
            Which::Client => &self.client,
            Which::Upstream => &self.upstream,
        }
    }
}

impl Counted {
    fn new(of: &Arc<WorkerConnections>, which: Which) -> Self {
        let of = Arc::clone(of);
        let count = of.count(which);
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Self {
            of,
            which,
            _in_its_thread: PhantomData,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let count = self.of.count(self.which);
        count.store(
            count.load(Ordering::Relaxed).saturating_sub(1),
            Ordering::Relaxed,
        );
    }
}

/// The connections of all workers.
#[derive(Debug, Default)]
pub(super) struct Connections(PerWorker<WorkerConnections>);

impl Connections {
    /// The counts of a further worker.
    pub(super) fn worker(&self) -> Arc<WorkerConnections> {
        self.0.add()
    }

    /// Open ones by state.
    pub(super) fn by_state(&self) -> [(&'static str, usize); 3] {
        let workers = self.0.all();
        let sum = |count: fn(&WorkerConnections) -> &AtomicUsize| {
            let counts = workers.iter().map(|w| count(w).load(Ordering::Relaxed));
            counts.sum::<usize>()
        };
        let (open, idle) = (sum(|w| &w.upstream), sum(|w| &w.upstream_idle));
        [
            ("client", sum(|w| &w.client)),
            ("upstream_busy", open.saturating_sub(idle)),
            ("upstream_idle", idle),
        ]
    }
}
