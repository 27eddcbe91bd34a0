//! The data plane: bytes in, bytes out.
//!
//! [`Gateway::start`] runs one worker per core; [`Gateway::publish`] swaps in a configuration;
//! [`Gateway::drain`] lets streams end. The life of a request is drawn in `exchange.rs`. Nothing
//! here knows Kubernetes, and no policy is made here: endpoints are chosen by `forebay-decide`,
//! bodies are read by `forebay-dialect`.

pub mod admin;
mod budget;
mod catalogue;
mod changes;
mod client_io;
mod client_streams;
pub mod clock;
mod connection;
pub mod epp;
mod exact;
mod exchange;
pub mod explain;
pub mod external;
mod filters;
mod grpc;
mod head;
mod inference;
pub mod kv_events;
mod mirror;
mod onward;
mod peek;
mod per_worker;
mod phases;
pub mod pools;
mod pump;
mod queue;
mod reading;
pub mod record;
mod relay;
mod respond;
mod service;
pub mod settings;
pub mod shared;
pub mod signals;
mod slo;
mod stream;
pub mod telemetry;
mod tls;
pub mod tokenizers;
mod told;
mod tunnel;
pub mod upstream;
mod view;
mod worker;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use forebay_model::Snapshot;

use crate::settings::Settings;
use crate::shared::Shared;
use crate::telemetry::Telemetry;

/// A running data plane.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Starts the workers. They listen once something is published.
    ///
    /// `seed` makes random choices repeatable.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(settings: Settings, telemetry: Arc<Telemetry>, seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(settings, telemetry));
        let seats = shared.seats.arrange(shared.settings.workers.max(1));
        let workers = (0_u64..)
            .zip(seats)
            .map(|(n, seat)| {
                let shared = Arc::clone(&shared);
                // Workers draw from different sequences.
                let seed = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                std::thread::Builder::new()
                    .name(format!("worker-{n}"))
                    .spawn(move || worker::run(shared, seat, seed))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { shared, workers })
    }

    /// What the workers share, for the admin server and the scraper.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Swaps in a configuration. Requests under way keep the one that they began with.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let next = self.shared.live.load().next(snapshot, clock::now());
        self.shared.live.store(Arc::new(next));
        self.shared
            .published
            .send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Stops listening and lets exchanges end, up to [`Settings::drain_timeout`].
    pub fn drain(&self) {
        self.shared.drain.send_replace(true);
    }

    /// Waits until the workers are done, which they are some time after [`Self::drain`].
    pub fn join(self) {
        for worker in self.workers {
            // A worker that panicked has said so on stderr.
            let _panicked = worker.join();
        }
    }
}
