//! The Prometheus metrics that are counted as things happen; those of exchanges are in `counts.rs`.
//!
//! What can be read off the state when a scraper asks (endpoints, in-flight, saturation, process)
//! is not kept here but collected in `current.rs`, so it costs requests nothing and never goes stale.
//! Names follow the Prometheus conventions: base units, `_total` for counters.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use forebay_decide::Applied;
use forebay_model::ObjectName;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::connections::{Connections, WorkerConnections};
use super::counts::{AllCounts, Names};
use super::{ending, llm_d};
use crate::per_worker::lock;
use crate::record::StreamRecord;

/// Counters, histograms and gauges of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Those of parts of the process that this crate does not know.
    others: Mutex<Vec<Registry>>,
    pub(super) names: Names,
    /// What exchanges count, one part per worker.
    pub(super) exchanges: AllCounts,
    /// The same by the names of llm-d's picker, if they are asked for.
    pub(super) llm_d: Option<llm_d::AllCounts>,
    ejections: Family<PoolReason, Counter>,
    picker_response_failures: Family<PoolReason, Counter>,
    kv_batches: Family<PoolReason, Counter>,
    kv_blocks: Family<PoolReason, Counter>,
    kv_interruptions: Family<PoolReason, Counter>,
    tokenizations: Family<PoolReason, Counter>,
    scrapes: Counter,
    scrape_errors: Family<Reason, Counter>,
    /// Their sum, under llm-d's name.
    scrapes_failed: Counter,
    connections: Connections,
    connections_now: Family<ConnectionLabels, Gauge>,
    reload_successful: Gauge,
    reload_success_timestamp: Gauge,
    reloads: Family<ResultLabel, Counter>,
    /// Whether the picker's own file holds; nothing without one.
    picker_reload: OnceLock<[Gauge; 2]>,
    spans: Family<ResultLabel, Counter>,
    streams: Family<StreamLabels, Counter>,
    tls_failures: Family<Reason, Counter>,
    /// Access log lines that the writer could not take.
    pub(super) log_lines_dropped: Counter,
}

/// What became of a span; see [`Metrics::span`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SpanFate {
    /// The collector took it.
    Exported,
    /// The collector refused it or could not be reached.
    Failed,
    /// The queue was full.
    Dropped,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PoolReason {
    pool: Arc<str>,
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ConnectionLabels {
    state: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct StreamLabels {
    gateway: Arc<str>,
    route: Arc<str>,
    end: &'static str,
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

impl Metrics {
    /// All metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::with_names(false)
    }

    /// The same, with the names of llm-d's picker beside ours if `llm_d` says so.
    #[must_use]
    pub fn with_names(llm_d: bool) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            others: Mutex::default(),
            names: Names::default(),
            exchanges: AllCounts::default(),
            llm_d: llm_d.then(llm_d::AllCounts::default),
            ejections: Family::default(),
            picker_response_failures: Family::default(),
            kv_batches: Family::default(),
            kv_blocks: Family::default(),
            kv_interruptions: Family::default(),
            tokenizations: Family::default(),
            scrapes: Counter::default(),
            scrape_errors: Family::default(),
            scrapes_failed: Counter::default(),
            connections: Connections::default(),
            connections_now: Family::default(),
            reload_successful: Gauge::default(),
            reload_success_timestamp: Gauge::default(),
            reloads: Family::default(),
            picker_reload: OnceLock::new(),
            spans: Family::default(),
            streams: Family::default(),
            tls_failures: Family::default(),
            log_lines_dropped: Counter::default(),
        };
        let exchanges = metrics.exchanges.clone();
        metrics.registry.register_collector(Box::new(exchanges));
        if let Some(counts) = metrics.llm_d.clone() {
            metrics.registry.register_collector(Box::new(counts));
            metrics.register_llm_d();
        }
        metrics.register();
        metrics
    }

    fn register_llm_d(&mut self) {
        let source = ("source_type".into(), "metrics-data-source".into());
        self.registry.sub_registry_with_label(source).register(
            "llm_d_epp_datalayer_poll_errors",
            "Scrapes of endpoints that gave nothing",
            self.scrapes_failed.clone(),
        );
        self.registry.register(
            "llm_d_epp",
            "The running program",
            Info::new([("commit", ""), ("build_ref", env!("CARGO_PKG_VERSION"))]),
        );
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register(
            "forebay_ejections",
            "Endpoints taken out of a pool because they failed",
            self.ejections.clone(),
        );
        r.register(
            "forebay_external_picker_response_failures",
            "Responses that a picker outside did not see to their end, by what went wrong",
            self.picker_response_failures.clone(),
        );
        r.register(
            "forebay_kv_event_batches",
            "Batches of KV cache events taken in",
            self.kv_batches.clone(),
        );
        r.register(
            "forebay_kv_event_blocks",
            "Blocks in KV cache events, by what became of them",
            self.kv_blocks.clone(),
        );
        r.register(
            "forebay_kv_event_interruptions",
            "Times that the KV cache events of an endpoint were not what was expected, by what was wrong",
            self.kv_interruptions.clone(),
        );
        r.register(
            "forebay_tokenizations",
            "Prompts that were to be tokenized, by what came of it",
            self.tokenizations.clone(),
        );
        r.register(
            "forebay_scrapes",
            "Scrapes of endpoints",
            self.scrapes.clone(),
        );
        r.register(
            "forebay_scrape_errors",
            "Scrapes of endpoints that gave nothing",
            self.scrape_errors.clone(),
        );
        r.register(
            "forebay_connections",
            "Open connections",
            self.connections_now.clone(),
        );
        r.register(
            "forebay_config_last_reload_successful",
            "Whether the last configuration could be read",
            self.reload_successful.clone(),
        );
        r.register(
            "forebay_config_last_reload_success_timestamp_seconds",
            "When a configuration was last taken over",
            self.reload_success_timestamp.clone(),
        );
        r.register(
            "forebay_config_reloads",
            "Configurations read",
            self.reloads.clone(),
        );
        r.register(
            "forebay_spans",
            "Sampled spans by what became of them",
            self.spans.clone(),
        );
        r.register(
            "forebay_streams",
            "Connections of TLSRoutes that have ended",
            self.streams.clone(),
        );
        r.register(
            "forebay_tls_failures",
            "Connections of clients that came to nothing before their first request",
            self.tls_failures.clone(),
        );
        r.register(
            "forebay_access_log_lines_dropped",
            "Access log lines given up because the reader of stdout is too slow or gone",
            self.log_lines_dropped.clone(),
        );
        r.register(
            "forebay_build",
            "The running program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
    }

    /// Shows the metrics of `registry` too.
    pub fn add(&self, registry: Registry) {
        lock(&self.others).push(registry);
    }

    /// An endpoint of `pool` was ejected.
    pub fn ejected(&self, pool: &ObjectName, reason: &'static str) {
        let labels = PoolReason {
            pool: self.names.pools.value(Some(pool)),
            reason,
        };
        self.ejections.get_or_create(&labels).inc();
    }

    /// The picker of `pool` failed after an endpoint had answered.
    pub(crate) fn picker_response_failed(&self, pool: Option<&ObjectName>, reason: &'static str) {
        let labels = PoolReason {
            pool: self.names.pools.value(pool),
            reason,
        };
        self.picker_response_failures.get_or_create(&labels).inc();
    }

    /// A batch of KV cache events was taken in.
    pub(crate) fn kv_batch(&self, pool: &ObjectName, applied: Applied, unreadable: u32) {
        let pool = self.names.pools.value(Some(pool));
        let add = |family: &Family<PoolReason, Counter>, reason, count: u32| {
            if count > 0 {
                let pool = Arc::clone(&pool);
                let counter = family.get_or_create_owned(&PoolReason { pool, reason });
                counter.inc_by(count.into());
            }
        };
        add(&self.kv_batches, "", 1);
        add(&self.kv_blocks, "recorded", applied.blocks);
        add(&self.kv_blocks, "orphan", applied.orphans);
        add(&self.kv_blocks, "no-room", applied.refused);
        add(&self.kv_blocks, "unreadable-event", unreadable);
    }

    /// Something was wrong with the KV cache events of an endpoint.
    pub(crate) fn kv_interrupted(&self, pool: &ObjectName, reason: &'static str) {
        let labels = PoolReason {
            pool: self.names.pools.value(Some(pool)),
            reason,
        };
        self.kv_interruptions.get_or_create(&labels).inc();
    }

    /// A prompt was tokenized, or not.
    pub(crate) fn tokenized(&self, pool: &ObjectName, outcome: &'static str) {
        let labels = PoolReason {
            pool: self.names.pools.value(Some(pool)),
            reason: outcome,
        };
        self.tokenizations.get_or_create(&labels).inc();
    }

    /// An endpoint was scraped; `error` says why nothing came of it.
    pub fn scraped(&self, error: Option<&'static str>) {
        self.scrapes.inc();
        if let Some(reason) = error {
            self.scrape_errors.get_or_create(&Reason { reason }).inc();
            self.scrapes_failed.inc();
        }
    }

    /// A client and a listener did not come together.
    pub(crate) fn tls_failed(&self, reason: &'static str) {
        self.tls_failures.get_or_create(&Reason { reason }).inc();
    }

    /// A connection of a `TLSRoute` has ended.
    pub(super) fn stream_closed(&self, record: &StreamRecord) {
        let labels = StreamLabels {
            gateway: self.names.gateways.value(Some(&*record.gateway)),
            route: self.names.routes.value(record.route.as_deref()),
            end: ending(record.end),
            reason: record.reason.unwrap_or_default(),
        };
        self.streams.get_or_create(&labels).inc();
    }

    /// Where one worker counts its connections.
    #[must_use]
    pub fn worker_connections(&self) -> Arc<WorkerConnections> {
        self.connections.worker()
    }

    /// A configuration was read; `ok` says whether it was taken over.
    pub fn config_loaded(&self, ok: bool, at: SystemTime) {
        self.reload_successful.set(i64::from(ok));
        let result = if ok { "success" } else { "failure" };
        self.reloads.get_or_create(&ResultLabel { result }).inc();
        if ok {
            let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            self.reload_success_timestamp
                .set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
    }

    /// An EndpointPickerConfig was read; `ok` says whether it was taken over. Without one there are no
    /// such metrics.
    pub fn picker_config_loaded(&self, ok: bool, at: SystemTime) {
        let [successful, timestamp] = self.picker_reload.get_or_init(|| {
            let gauges = [Gauge::default(), Gauge::default()];
            let mut registry = Registry::default();
            registry.register(
                "forebay_picker_config_last_reload_successful",
                "Whether the last EndpointPickerConfig could be read",
                gauges[0].clone(),
            );
            registry.register(
                "forebay_picker_config_last_reload_success_timestamp_seconds",
                "When an EndpointPickerConfig was last taken over",
                gauges[1].clone(),
            );
            self.add(registry);
            gauges
        });
        successful.set(i64::from(ok));
        if ok {
            let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            timestamp.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
    }

    /// `count` sampled spans met their `fate`.
    pub(super) fn span(&self, fate: SpanFate, count: usize) {
        let result = match fate {
            SpanFate::Exported => "exported",
            SpanFate::Failed => "failed",
            SpanFate::Dropped => "dropped",
        };
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.spans
            .get_or_create(&ResultLabel { result })
            .inc_by(count);
    }

    /// Writes all of it as OpenMetrics text, without the end mark.
    pub(super) fn encode(&self, page: &mut String) -> fmt::Result {
        for (state, count) in self.connections.by_state() {
            let gauge = self
                .connections_now
                .get_or_create(&ConnectionLabels { state });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        text::encode_registry(page, &self.registry)?;
        let others = lock(&self.others);
        let mut others = others.iter();
        others.try_for_each(|registry| text::encode_registry(page, registry))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// OpenMetrics as the older Prometheus text format (0.0.4): counters are typed under their sample's
/// name, `info` is a gauge, units and the end mark are gone.
#[must_use]
pub fn to_prometheus_text(openmetrics: &str) -> String {
    let mut page = String::with_capacity(openmetrics.len() + 1024);
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // Held back: the name to print depends on the type, which comes next.
            help = rest.split_once(' ');
            continue;
        }
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|t| t.split_once(' '))
        else {
            page.push_str(line);
            page.push('\n');
            continue;
        };
        let (suffix, kind) = match kind {
            "counter" => ("_total", kind),
            "info" => ("_info", "gauge"),
            "unknown" => ("", "untyped"),
            _ => ("", kind),
        };
        if let Some((_, text)) = help.take() {
            page.extend(["# HELP ", name, suffix, " ", text, "\n"]);
        }
        page.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(metrics: &Metrics) -> String {
        let mut page = String::new();
        metrics
            .encode(&mut page)
            .expect("a string takes everything");
        page
    }

    #[test]
    fn the_older_format_types_counters_by_their_sample_name() {
        let metrics = Metrics::new();
        metrics.scraped(Some("timeout"));
        let page = to_prometheus_text(&(rendered(&metrics) + "# EOF\n"));
        for line in [
            "# TYPE forebay_scrape_errors_total counter",
            "forebay_scrape_errors_total{reason=\"timeout\"} 1",
            "# TYPE forebay_build_info gauge",
        ] {
            assert!(
                page.lines().any(|l| l == line),
                "no line {line:?} in\n{page}"
            );
        }
        assert!(!page.contains("# EOF"));
    }

    #[test]
    fn a_failed_reload_leaves_the_time_of_the_last_good_one() {
        let metrics = Metrics::new();
        let at = |s| UNIX_EPOCH + std::time::Duration::from_secs(s);
        metrics.config_loaded(true, at(100));
        metrics.config_loaded(false, at(200));
        let page = rendered(&metrics);
        assert!(page.contains("forebay_config_last_reload_success_timestamp_seconds 100\n"));
        assert!(page.contains("forebay_config_last_reload_successful 0\n"));
    }
}
