//! What is counted of the talk with API servers.

use forebay_api::Kind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters and gauges; clones count as one.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    watch_errors: Family<KindLabel, Counter>,
    synced: Gauge,
    leader: Gauge,
    status_writes: Family<ResultLabel, Counter>,
    infrastructure_writes: Family<ResultLabel, Counter>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Written {
    /// The server took it.
    Done,
    /// Somebody else had changed the object; it is tried again on the newer one.
    Conflict,
    /// The object is gone.
    Missing,
    /// The server refused or was not reached; it is tried again.
    Failed,
}

impl Written {
    fn label(self) -> ResultLabel {
        let result = match self {
            Self::Done => "success",
            Self::Conflict => "conflict",
            Self::Missing => "missing",
            Self::Failed => "failure",
        };
        ResultLabel { result }
    }
}

impl Metrics {
    /// Them for a page of metrics.
    #[must_use]
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        registry.register(
            "forebay_kubernetes_watch_errors",
            "Lists and watches of the API server that failed",
            self.watch_errors.clone(),
        );
        registry.register(
            "forebay_kubernetes_synced",
            "Whether every kind has been listed and is followed",
            self.synced.clone(),
        );
        registry.register(
            "forebay_leader",
            "Whether this process writes statuses and infrastructure",
            self.leader.clone(),
        );
        registry.register(
            "forebay_status_writes",
            "Statuses sent to the API server",
            self.status_writes.clone(),
        );
        registry.register(
            "forebay_infrastructure_writes",
            "Services and other infrastructure of Gateways sent to the API server",
            self.infrastructure_writes.clone(),
        );
        registry
    }

    pub(crate) fn watch_error(&self, kind: Kind) {
        let kind = kind.as_str();
        self.watch_errors.get_or_create(&KindLabel { kind }).inc();
    }

    pub(crate) fn set_synced(&self, synced: bool) {
        self.synced.set(synced.into());
    }

    pub(crate) fn set_leader(&self, leader: bool) {
        self.leader.set(leader.into());
    }

    pub(crate) fn status_written(&self, what: Written) {
        self.status_writes.get_or_create(&what.label()).inc();
    }

    pub(crate) fn infrastructure_written(&self, what: Written) {
        self.infrastructure_writes
            .get_or_create(&what.label())
            .inc();
    }
}
