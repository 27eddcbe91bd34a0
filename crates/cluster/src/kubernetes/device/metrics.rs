//! What is counted of a driver's writes.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper bounds of the histogram's buckets, seconds: around what a prepare may take as a whole.
const BUCKETS_S: [f64; 9] = [0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.1, 1.0, 5.0];

/// Counters; clones count as one.
#[derive(Clone, Debug)]
pub struct DeviceMetrics {
    slices: Family<Result, Counter>,
    statuses: Family<Result, Counter>,
    events: Family<Result, Counter>,
    labels: Family<Result, Counter>,
    fetch: Histogram,
}

impl Default for DeviceMetrics {
    fn default() -> DeviceMetrics {
        DeviceMetrics {
            slices: Family::default(),
            statuses: Family::default(),
            events: Family::default(),
            labels: Family::default(),
            fetch: Histogram::new(BUCKETS_S),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

fn label(done: bool) -> Result {
    let result = if done { "success" } else { "failure" };
    Result { result }
}

impl DeviceMetrics {
    /// Adds them to a page of metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "forebay_node_slice_writes",
            "ResourceSlices written or deleted",
            self.slices.clone(),
        );
        registry.register(
            "forebay_node_claim_status_writes",
            "Statuses of claims sent to the API server",
            self.statuses.clone(),
        );
        self.register_events(registry);
        registry.register_with_unit(
            "forebay_node_claim_fetch_duration",
            "How long the API server took to tell of a claim that is to be prepared",
            Unit::Seconds,
            self.fetch.clone(),
        );
    }

    fn register_events(&self, registry: &mut Registry) {
        registry.register(
            "forebay_node_events",
            "Events sent to the API server; those that did not fit into the queue are failures",
            self.events.clone(),
        );
    }

    pub(super) fn fetched(&self, took: Duration) {
        self.fetch.observe(took.as_secs_f64());
    }

    /// Adds what a controller of all nodes writes.
    pub fn register_controller(&self, registry: &mut Registry) {
        registry.register(
            "forebay_node_label_writes",
            "Network profiles written to labels of nodes",
            self.labels.clone(),
        );
        self.register_events(registry);
    }

    pub(in crate::kubernetes) fn label(&self, done: bool) {
        self.labels.get_or_create(&label(done)).inc();
    }

    pub(super) fn slice(&self, done: bool) {
        self.slices.get_or_create(&label(done)).inc();
    }

    pub(super) fn status(&self, done: bool) {
        self.statuses.get_or_create(&label(done)).inc();
    }

    pub(super) fn event(&self, done: bool) {
        self.events.get_or_create(&label(done)).inc();
    }
}
