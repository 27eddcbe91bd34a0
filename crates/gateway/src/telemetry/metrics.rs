//! The Prometheus metrics that are counted as things happen.
//!
//! What can be read off the state when a scraper asks (endpoints, in-flight, saturation, process)
//! is not kept here but collected in `current.rs`, so it costs requests nothing and never goes stale.
//! Names follow the Prometheus conventions: base units, `_total` for counters.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use forebay_model::ObjectName;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::Measured;
use super::bounded::Bounded;
use crate::record::{Ending, Record};

/// Counters, histograms and gauges of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    names: Names,
    requests: Family<RequestLabels, Counter>,
    duration: Histograms,
    ttft: Histograms,
    inter_token: Histograms,
    pick: Histograms,
    input_tokens: Family<ModelLabels, Counter>,
    cached_tokens: Family<ModelLabels, Counter>,
    output_tokens: Family<ModelLabels, Counter>,
    retries: Family<PoolReason, Counter>,
    ejections: Family<PoolReason, Counter>,
    scrapes: Counter,
    scrape_errors: Family<Reason, Counter>,
    connections: Family<ConnectionLabels, Gauge>,
    reload_successful: Gauge,
    reload_success_timestamp: Gauge,
    reloads: Family<ResultLabel, Counter>,
    spans: Family<ResultLabel, Counter>,
    /// Access log lines that the writer could not take.
    pub(super) log_lines_dropped: Counter,
}

/// What [`Metrics::connections`] counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ConnectionState {
    /// Open to a client.
    Client,
    /// Open to an endpoint and in use.
    UpstreamBusy,
    /// Open to an endpoint and kept for the next request.
    UpstreamIdle,
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

type Histograms = Family<PoolLabel, Histogram, fn() -> Histogram>;

/// The label values in use, one bounded set per label.
#[derive(Debug, Default)]
struct Names {
    gateways: Bounded<ObjectName>,
    routes: Bounded<ObjectName>,
    pools: Bounded<ObjectName>,
    models: Bounded<String>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RequestLabels {
    gateway: Arc<str>,
    route: Arc<str>,
    pool: Arc<str>,
    code: u16,
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PoolLabel {
    pool: Arc<str>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ModelLabels {
    pool: Arc<str>,
    model: Arc<str>,
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
struct ResultLabel {
    result: &'static str,
}

/// Seconds of whole exchanges: from a cache hit on a small model to a long agentic answer.
const DURATION_S: [f64; 15] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0,
];
/// Seconds to the first token.
const TTFT_S: [f64; 14] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
/// Seconds between tokens.
const INTER_TOKEN_S: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0,
];
/// Seconds of a pick; the promise is 20 µs at the median and 100 µs at the 99th percentile.
const PICK_S: [f64; 10] = [
    2e-6, 5e-6, 10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 10e-3,
];

impl Metrics {
    /// All metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let histograms = |new: fn() -> Histogram| Histograms::new_with_constructor(new);
        let mut metrics = Self {
            registry: Registry::default(),
            names: Names::default(),
            requests: Family::default(),
            duration: histograms(|| Histogram::new(DURATION_S)),
            ttft: histograms(|| Histogram::new(TTFT_S)),
            inter_token: histograms(|| Histogram::new(INTER_TOKEN_S)),
            pick: histograms(|| Histogram::new(PICK_S)),
            input_tokens: Family::default(),
            cached_tokens: Family::default(),
            output_tokens: Family::default(),
            retries: Family::default(),
            ejections: Family::default(),
            scrapes: Counter::default(),
            scrape_errors: Family::default(),
            connections: Family::default(),
            reload_successful: Gauge::default(),
            reload_success_timestamp: Gauge::default(),
            reloads: Family::default(),
            spans: Family::default(),
            log_lines_dropped: Counter::default(),
        };
        metrics.register_traffic();
        metrics.register_inner_life();
        metrics
    }

    fn register_traffic(&mut self) {
        let r = &mut self.registry;
        r.register(
            "forebay_requests",
            "Exchanges by where they went, status and reason; code 0 is a client that left first",
            self.requests.clone(),
        );
        r.register(
            "forebay_request_duration_seconds",
            "From the request's head to the last byte of the answer",
            self.duration.clone(),
        );
        r.register(
            "forebay_ttft_seconds",
            "From the request's head to the first token of a stream, or the first byte",
            self.ttft.clone(),
        );
        r.register(
            "forebay_inter_token_seconds",
            "Mean time between tokens of one stream",
            self.inter_token.clone(),
        );
        r.register(
            "forebay_pick_seconds",
            "Choice of the endpoint, hashing of the prompt included",
            self.pick.clone(),
        );
        r.register(
            "forebay_input_tokens",
            "Prompt tokens that servers reported",
            self.input_tokens.clone(),
        );
        r.register(
            "forebay_cached_tokens",
            "Prompt tokens that servers found in their prefix cache",
            self.cached_tokens.clone(),
        );
        r.register(
            "forebay_output_tokens",
            "Tokens that servers generated",
            self.output_tokens.clone(),
        );
        r.register(
            "forebay_retries",
            "Tries that were followed by another, by what ended them",
            self.retries.clone(),
        );
        r.register(
            "forebay_ejections",
            "Endpoints taken out of a pool because they failed",
            self.ejections.clone(),
        );
    }

    fn register_inner_life(&mut self) {
        let r = &mut self.registry;
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
            self.connections.clone(),
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

    /// Counts one exchange.
    pub(super) fn observe(&self, record: &Record, measured: &Measured) {
        let pool = self.names.pools.value(record.pool.as_ref());
        let requests = RequestLabels {
            gateway: self.names.gateways.value(record.gateway.as_ref()),
            route: self.names.routes.value(record.route.as_ref()),
            pool: Arc::clone(&pool),
            code: record.status,
            reason: record.reason.unwrap_or_else(|| ending(record.end)),
        };
        self.requests.get_or_create(&requests).inc();
        self.observe_times(record, measured, &pool);
        self.observe_tokens(record, measured, &pool);
        if let Some((_served, given_up)) = record.tries.split_last() {
            for reason in given_up.iter().filter_map(|t| t.failure) {
                let labels = PoolReason {
                    pool: Arc::clone(&pool),
                    reason,
                };
                self.retries.get_or_create(&labels).inc();
            }
        }
    }

    fn observe_times(&self, record: &Record, measured: &Measured, pool: &Arc<str>) {
        let label = PoolLabel {
            pool: Arc::clone(pool),
        };
        let observe = |family: &Histograms, seconds: Option<f64>| {
            if let Some(seconds) = seconds {
                family.get_or_create(&label).observe(seconds);
            }
        };
        observe(&self.duration, Some(measured.duration.as_secs_f64()));
        observe(&self.ttft, measured.ttft.map(|t| t.as_secs_f64()));
        observe(
            &self.inter_token,
            measured.inter_token.map(|t| t.as_secs_f64()),
        );
        observe(&self.pick, record.pick_us.map(|us| f64::from(us) / 1e6));
    }

    /// Only answers that carry a usage count, so a made-up model name does not become a label.
    fn observe_tokens(&self, record: &Record, measured: &Measured, pool: &Arc<str>) {
        if measured.input_tokens.is_none() && measured.output_tokens.is_none() {
            return;
        }
        let model = record.model_served.as_deref().or(record.model.as_deref());
        let labels = ModelLabels {
            pool: Arc::clone(pool),
            model: self.names.models.value(model),
        };
        let add = |family: &Family<ModelLabels, Counter>, tokens: Option<u64>| {
            if let Some(tokens) = tokens {
                family.get_or_create(&labels).inc_by(tokens);
            }
        };
        add(&self.input_tokens, measured.input_tokens);
        add(&self.cached_tokens, measured.cached_tokens);
        add(&self.output_tokens, measured.output_tokens);
    }

    /// An endpoint of `pool` was ejected.
    pub fn ejected(&self, pool: &ObjectName, reason: &'static str) {
        let labels = PoolReason {
            pool: self.names.pools.value(Some(pool)),
            reason,
        };
        self.ejections.get_or_create(&labels).inc();
    }

    /// An endpoint was scraped; `error` says why nothing came of it.
    pub fn scraped(&self, error: Option<&'static str>) {
        self.scrapes.inc();
        if let Some(reason) = error {
            self.scrape_errors.get_or_create(&Reason { reason }).inc();
        }
    }

    /// The gauge of connections in `state`, to be kept by whoever opens and closes them.
    #[must_use]
    pub fn connections(&self, state: ConnectionState) -> Gauge {
        let state = match state {
            ConnectionState::Client => "client",
            ConnectionState::UpstreamBusy => "upstream_busy",
            ConnectionState::UpstreamIdle => "upstream_idle",
        };
        self.connections
            .get_or_create_owned(&ConnectionLabels { state })
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
        text::encode_registry(page, &self.registry)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The reason of an exchange that has none of its own.
fn ending(end: Ending) -> &'static str {
    match end {
        Ending::Complete => "",
        Ending::ClientGone => "ClientGone",
        Ending::UpstreamDied => "UpstreamDied",
        Ending::TimedOut => "TimedOut",
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
