//! What all workers share: the live configuration, telemetry, the drain, the memory budget.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::epp::Seats;
use crate::kv_events::peers::Copies;
use crate::pools::Live;
use crate::settings::Settings;
use crate::telemetry::Telemetry;
use crate::tokenizers::Tokenizers;

/// Shared by the workers, the scraper and the admin server.
#[derive(Debug)]
pub struct Shared {
    /// Limits and addresses.
    pub settings: Settings,
    /// The configuration in force.
    pub live: Arc<ArcSwap<Live>>,
    /// Grows with each configuration, to wake those who follow it.
    pub published: watch::Sender<u64>,
    /// True once the process should end.
    pub drain: watch::Sender<bool>,
    /// Where records go.
    pub telemetry: Arc<Telemetry>,
    /// What other replicas knew of caches when this one began.
    pub(crate) peers: Copies,
    /// Tokenizers that pools name.
    pub tokenizers: Arc<Tokenizers>,
    /// Where connections of proxies go that ask for endpoints.
    pub(crate) seats: Seats,
    buffered_bytes: AtomicUsize,
    ports: watch::Sender<BTreeMap<u16, PortState>>,
}

/// How opening one port went, over all workers.
#[derive(Clone, Debug, Default)]
pub struct PortState {
    /// Workers that listen on it.
    pub bound: usize,
    /// Why some worker could not.
    pub error: Option<String>,
}

impl Shared {
    /// Shared state with nothing configured.
    #[must_use]
    pub fn new(settings: Settings, telemetry: Arc<Telemetry>) -> Self {
        let tokenizers = Arc::new(Tokenizers::new(settings.tokenizers.clone()));
        Self {
            settings,
            tokenizers,
            peers: Copies::default(),
            live: Arc::new(ArcSwap::from_pointee(Live::empty())),
            published: watch::Sender::new(0),
            drain: watch::Sender::new(false),
            telemetry,
            seats: Seats::default(),
            buffered_bytes: AtomicUsize::new(0),
            ports: watch::Sender::default(),
        }
    }

    /// Notes how opening a port went.
    pub(crate) fn bound(&self, port: u16, result: io::Result<()>) {
        let result = result.map_err(|error| explained(port, &error));
        self.ports.send_modify(|ports| {
            let state = ports.entry(port).or_default();
            match result {
                Ok(()) => {
                    state.bound += 1;
                    state.error = None;
                }
                Err(error) => {
                    if state.error.is_none() {
                        tracing::error!(port, %error, "cannot listen; trying again every second");
                    }
                    state.error = Some(error);
                }
            }
        });
    }

    /// Notes that a worker stopped listening on a port.
    pub(crate) fn unbound(&self, port: u16) {
        self.ports.send_modify(|ports| {
            if let Some(state) = ports.get_mut(&port) {
                state.bound = state.bound.saturating_sub(1);
            }
        });
    }

    /// Drops what is known of ports that are neither configured nor open.
    pub(crate) fn forget_ports(&self, configured: impl Fn(u16) -> bool) {
        self.ports.send_modify(|ports| {
            ports.retain(|port, state| state.bound > 0 || configured(*port));
        });
    }

    /// The ports as they are now.
    #[must_use]
    pub fn ports(&self) -> BTreeMap<u16, PortState> {
        self.ports.borrow().clone()
    }

    /// Tells of every change of a port.
    #[must_use]
    pub fn watch_ports(&self) -> watch::Receiver<BTreeMap<u16, PortState>> {
        self.ports.subscribe()
    }

    /// Whether a body of so many bytes could be buffered now. Takes nothing.
    pub(crate) fn may_buffer(&self, bytes: usize) -> bool {
        let taken = self.buffered_bytes.load(Ordering::Relaxed);
        taken.saturating_add(bytes) <= self.settings.buffered_bytes_max
    }

    /// Takes a part of the budget for bodies; false, and nothing taken, if there is not as much.
    pub(crate) fn take_budget(&self, bytes: usize) -> bool {
        let limit = self.settings.buffered_bytes_max;
        self.buffered_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                taken.checked_add(bytes).filter(|sum| *sum <= limit)
            })
            .is_ok()
    }

    pub(crate) fn return_budget(&self, bytes: usize) {
        self.buffered_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Ports below are a privilege, unless the machine says otherwise.
const PRIVILEGED_BELOW: u16 = 1024;

/// Why a port could not be opened, and what to do where that is not plain.
fn explained(port: u16, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied || port >= PRIVILEGED_BELOW {
        return error.to_string();
    }
    format!(
        "{error}: ports below {PRIVILEGED_BELOW} need the capability NET_BIND_SERVICE \
         (`setcap cap_net_bind_service=+ep` on the program, `securityContext.capabilities.add` in a \
         pod), or the sysctl net.ipv4.ip_unprivileged_port_start set to {port} or less; else let the \
         listener have a higher port"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_a_privilege_names_the_cure() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let says = |port, error: &io::Error| explained(port, error).contains("NET_BIND_SERVICE");
        assert!(says(443, &denied));
        assert!(!says(8443, &denied));
        assert!(!says(443, &io::ErrorKind::AddrInUse.into()));
    }
}
