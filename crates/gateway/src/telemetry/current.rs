//! Metrics that are read when a scraper asks: pools and endpoints as the picker sees them, the
//! configuration in force, the process.
//!
//! Series of an endpoint or pool that went away are gone with it. The state of each pool is copied
//! out under its lock and written outside of it.

use std::fmt;
use std::fs;
use std::time::SystemTime;

use forebay_decide::{Accuracy, EndpointView, Following, PredictorAccuracy, Standing};
use forebay_model::Moment;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::bounded::LABEL_VALUES_MAX;
use crate::pools::{Live, PoolRuntime};

/// Endpoints that are described one by one in one page. The rest count in their pool's sums, and
/// `forebay_endpoints_omitted` says how many there are.
const ENDPOINTS_MAX: usize = 10_000;

/// Clock ticks per second in `/proc`: fixed at 100 in the interface that programs see.
const TICKS_PER_S: f64 = 100.0;

/// Writes all of it as OpenMetrics text, without the end mark.
/// `llm_d` adds the names of llm-d's picker.
pub(super) fn encode(page: &mut String, live: &Live, now: Moment, llm_d: bool) -> fmt::Result {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Current {
        llm_d,
        ..Current::read(live, now)
    }));
    text::encode_registry(page, &registry)
}

#[derive(Debug)]
struct Current {
    llm_d: bool,
    generation: u64,
    problems: usize,
    pools: Vec<PoolNow>,
    pools_omitted: usize,
    endpoints_omitted: usize,
    process: Process,
}

#[derive(Debug)]
struct PoolNow {
    name: String,
    saturation: f32,
    queue_requests: usize,
    queue_bytes: usize,
    prefix_bytes: usize,
    predicted: PredictorAccuracy,
    sums: Sums,
    endpoints: Vec<(String, EndpointView)>,
}

#[derive(Debug, Default)]
struct Sums {
    ready: usize,
    ejected: usize,
    inflight: u64,
    prefix_blocks: usize,
}

impl Current {
    fn read(live: &Live, now: Moment) -> Self {
        let mut names: Vec<&PoolRuntime> = live.pools.values().map(|p| &**p).collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        let pools_omitted = names.len().saturating_sub(LABEL_VALUES_MAX);
        names.truncate(LABEL_VALUES_MAX);
        let (mut room, mut endpoints_omitted) = (ENDPOINTS_MAX, 0);
        let pools = names
            .into_iter()
            .map(|pool| {
                let mut described = PoolNow::read(pool, now);
                endpoints_omitted += described.endpoints.len().saturating_sub(room);
                described.endpoints.truncate(room);
                room -= described.endpoints.len();
                described
            })
            .collect();
        Self {
            llm_d: false,
            generation: live.snapshot.generation,
            problems: live.snapshot.problems.len(),
            pools,
            pools_omitted,
            endpoints_omitted,
            process: Process::read(),
        }
    }
}

impl PoolNow {
    fn read(pool: &PoolRuntime, now: Moment) -> Self {
        let (views, saturation, prefix_bytes, predicted, queue) = {
            let state = pool.state();
            (
                state.view(now).collect::<Vec<_>>(),
                state.saturation(now),
                state.prefix_bytes(),
                state.prediction_accuracy(),
                (state.gate().len(), state.gate().bytes()),
            )
        };
        let mut sums = Sums::default();
        for view in &views {
            let ejected = view.standing == Standing::Ejected;
            sums.ready += usize::from(view.ready && !ejected);
            sums.ejected += usize::from(ejected);
            sums.inflight += u64::from(view.inflight_requests);
            sums.prefix_blocks += view.prefix_blocks;
        }
        Self {
            name: pool.name.to_string(),
            saturation,
            queue_requests: queue.0,
            queue_bytes: queue.1,
            prefix_bytes,
            predicted,
            sums,
            endpoints: views
                .into_iter()
                .map(|v| (v.address.to_string(), v))
                .collect(),
        }
    }
}

impl Collector for Current {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        page.one(
            "forebay_config_generation",
            "Number of the configuration",
            self.generation as f64,
        )?;
        page.one(
            "forebay_config_problems",
            "Problems in the configuration, see /debug/config",
            self.problems as f64,
        )?;
        page.one(
            "forebay_pools_omitted",
            "Pools beyond the bound of this page",
            self.pools_omitted as f64,
        )?;
        page.one(
            "forebay_endpoints_omitted",
            "Endpoints beyond the bound of this page",
            self.endpoints_omitted as f64,
        )?;
        self.encode_pools(&mut page)?;
        self.encode_predictions(&mut page)?;
        self.encode_endpoints(&mut page)?;
        if self.llm_d {
            self.encode_llm_d(&mut page)?;
        }
        self.process.encode(&mut page)
    }
}

impl Current {
    fn encode_pools(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut each = |name: &str, help: &str, value: fn(&PoolNow) -> f64| {
            page.gauges(
                name,
                help,
                self.pools
                    .iter()
                    .map(|p| ([("pool", p.name.as_str())], value(p))),
            )
        };
        each(
            "forebay_pool_saturation",
            "How full the pool is; 1 is full",
            |p| p.saturation.into(),
        )?;
        each(
            "forebay_queue_requests",
            "Requests that wait for a place in the pool",
            |p| p.queue_requests as f64,
        )?;
        each("forebay_queue_bytes", "Bytes of their bodies", |p| {
            p.queue_bytes as f64
        })?;
        each(
            "forebay_ready_endpoints",
            "Endpoints that may get requests",
            |p| p.sums.ready as f64,
        )?;
        each(
            "forebay_ejected_endpoints",
            "Endpoints out of rotation",
            |p| p.sums.ejected as f64,
        )?;
        each(
            "forebay_inflight_requests",
            "Requests under way at endpoints",
            |p| p.sums.inflight as f64,
        )?;
        each(
            "forebay_prefix_index_bytes",
            "Memory of the prefix index",
            |p| p.prefix_bytes as f64,
        )?;
        each(
            "forebay_prefix_index_blocks",
            "Prompt blocks believed to be in caches",
            |p| p.sums.prefix_blocks as f64,
        )
    }

    /// How well latencies are predicted, of pools that have had an answer which was.
    fn encode_predictions(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut each = |name: &str, help: &str, value: fn(&Accuracy) -> f64| {
            let values = self.pools.iter().flat_map(|pool| {
                [
                    ("ttft", &pool.predicted.ttft),
                    ("tpot", &pool.predicted.tpot),
                ]
                .into_iter()
                .filter(|(_, accuracy)| accuracy.observations > 0)
                .map(|(of, accuracy)| {
                    let labels = [("pool", pool.name.as_str()), ("of", of)];
                    (labels, value(accuracy))
                })
            });
            page.gauges(name, help, values)
        };
        each(
            "forebay_prediction_error_ratio",
            "Mean of |came - predicted| / came over the last few hundred answers",
            |accuracy| accuracy.mape.into(),
        )?;
        each(
            "forebay_prediction_coverage_ratio",
            "Share of those answers that came within what 90 % should",
            |accuracy| accuracy.coverage.into(),
        )
    }

    /// The same by the names of llm-d's picker. Its `name` has no namespace, so that is a label of its
    /// own here.
    fn encode_llm_d(&self, page: &mut Page<'_>) -> fmt::Result {
        let parted = |pool: &'_ PoolNow| -> (String, String) {
            let (namespace, name) = pool.name.split_once('/').unwrap_or(("", &pool.name));
            (namespace.to_owned(), name.to_owned())
        };
        let names: Vec<(String, String)> = self.pools.iter().map(parted).collect();
        let pools = || self.pools.iter().zip(&names);
        let mut each =
            |name: &str, help: &str, label: &str, value: &dyn Fn(&PoolNow) -> Option<f64>| {
                let values = pools().filter_map(|(pool, (namespace, own))| {
                    let labels = [(label, own.as_str()), ("namespace", namespace.as_str())];
                    value(pool).map(|value| (labels, value))
                });
                page.gauges(name, help, values)
            };
        type Read = fn(&EndpointView) -> Option<f64>;
        let kinds: [(&str, Read); 3] = [
            ("kv_cache_utilization", |v| {
                v.load.as_ref()?.kv_used.map(f64::from)
            }),
            ("queue_size", |v| v.load.as_ref()?.waiting.map(f64::from)),
            ("running_requests", |v| {
                v.load.as_ref()?.running.map(f64::from)
            }),
        ];
        for (kind, value) in kinds {
            let spread =
                |pool: &PoolNow| spread(pool.endpoints.iter().filter_map(|(_, v)| value(v)));
            let name = format!("llm_d_epp_average_{kind}");
            each(&name, "Mean over the pool's endpoints", "name", &|p| {
                Some(spread(p)?.0)
            })?;
            let name = format!("llm_d_epp_std_dev_{kind}");
            each(
                &name,
                "Standard deviation over the pool's endpoints",
                "name",
                &|p| Some(spread(p)?.1),
            )?;
        }
        let count = |value: fn(&PoolNow) -> f64| move |pool: &PoolNow| Some(value(pool));
        for (name, help, label, value) in [
            (
                "llm_d_epp_ready_endpoints",
                "Endpoints that may get requests",
                "name",
                count(|p| p.sums.ready as f64),
            ),
            (
                "llm_d_epp_request_running",
                "Requests under way",
                "name",
                count(|p| p.sums.inflight as f64),
            ),
            (
                "llm_d_epp_flow_control_queue_size",
                "Requests that wait",
                "inference_pool",
                count(|p| p.queue_requests as f64),
            ),
            (
                "llm_d_epp_flow_control_queue_bytes",
                "Bytes of their bodies",
                "inference_pool",
                count(|p| p.queue_bytes as f64),
            ),
            (
                "llm_d_epp_flow_control_pool_saturation",
                "How full the pool is; 1 is full",
                "inference_pool",
                count(|p| f64::from(p.saturation)),
            ),
            (
                "llm_d_epp_prefix_indexer_size",
                "Prompt blocks believed to be in caches",
                "name",
                count(|p| p.sums.prefix_blocks as f64),
            ),
        ] {
            each(name, help, label, &value)?;
        }
        type OfEndpoint = fn(&EndpointView) -> Option<f64>;
        let kinds: [(&str, &str, &str, OfEndpoint); 3] = [
            (
                "llm_d_epp_per_endpoint_queue_size",
                "Requests in the server's queue",
                "model_server_endpoint",
                |v| v.load.as_ref()?.waiting.map(f64::from),
            ),
            (
                "llm_d_epp_inflight_requests",
                "Requests under way from here",
                "endpoint_name",
                |v| Some(f64::from(v.inflight_requests)),
            ),
            (
                "llm_d_epp_inflight_tokens",
                "Their prompt and expected output tokens",
                "endpoint_name",
                |v| Some(v.inflight_tokens as f64),
            ),
        ];
        for (name, help, label, value) in kinds {
            let values = pools().flat_map(|(pool, (namespace, own))| {
                pool.endpoints.iter().filter_map(move |(address, view)| {
                    let labels = [
                        ("name", own.as_str()),
                        ("namespace", namespace.as_str()),
                        (label, address.as_str()),
                    ];
                    value(view).map(|value| (labels, value))
                })
            });
            page.gauges(name, help, values)?;
        }
        Ok(())
    }

    /// A signal that an endpoint does not report has no series: absent is not zero.
    fn encode_endpoints(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut each = |name: &str, help: &str, value: fn(&EndpointView) -> Option<f64>| {
            let endpoints = self.pools.iter().flat_map(|pool| {
                pool.endpoints.iter().filter_map(move |(address, view)| {
                    let labels = [("pool", pool.name.as_str()), ("endpoint", address.as_str())];
                    value(view).map(|value| (labels, value))
                })
            });
            page.gauges(name, help, endpoints)
        };
        each(
            "forebay_endpoint_waiting",
            "Requests in the server's queue",
            |v| v.load.as_ref()?.waiting.map(f64::from),
        )?;
        each(
            "forebay_endpoint_running",
            "Requests in the server's batch",
            |v| v.load.as_ref()?.running.map(f64::from),
        )?;
        each(
            "forebay_endpoint_kv_used",
            "Share of KV cache in use, 0 to 1",
            |v| v.load.as_ref()?.kv_used.map(f64::from),
        )?;
        each(
            "forebay_endpoint_load_age_seconds",
            "Age of the last scrape",
            |v| v.load_age.map(|age| age.as_secs_f64()),
        )?;
        each(
            "forebay_endpoint_inflight_requests",
            "Requests under way from here",
            |v| Some(f64::from(v.inflight_requests)),
        )?;
        each(
            "forebay_endpoint_inflight_tokens",
            "Their prompt and expected output tokens",
            |v| Some(v.inflight_tokens as f64),
        )?;
        each(
            "forebay_endpoint_kv_events_followed",
            "How the server's KV cache events are followed: 1 all, 0.5 since some point, 0 not",
            |v| {
                v.kv.map(|kv| match kv.following {
                    Following::Wholly => 1.0,
                    Following::Partly => 0.5,
                    Following::No | Following::Lost => 0.0,
                })
            },
        )?;
        each(
            "forebay_endpoint_kv_blocks",
            "Blocks that the server says are in its caches",
            |v| v.kv.map(|kv| kv.blocks as f64),
        )
    }
}

/// Mean and standard deviation; nothing of nothing.
fn spread(values: impl Iterator<Item = f64> + Clone) -> Option<(f64, f64)> {
    let count = values.clone().count() as f64;
    if count == 0.0 {
        return None;
    }
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    Some((mean, variance.sqrt()))
}

/// Figures of `/proc/self`; what cannot be read is left out.
#[derive(Debug, Default)]
struct Process {
    cpu_s: Option<f64>,
    threads: Option<f64>,
    start_time_s: Option<f64>,
    resident_bytes: Option<f64>,
    virtual_bytes: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
}

impl Process {
    fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let (stat, status, limits) = (
            text("/proc/self/stat"),
            text("/proc/self/status"),
            text("/proc/self/limits"),
        );
        let kib = |key: &str| {
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix(key)?.strip_suffix("kB"));
            line.and_then(|n| n.trim().parse::<f64>().ok())
                .map(|kib| kib * 1024.0)
        };
        // The second field is the program's name in parentheses and may hold anything.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect());
        let field = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok());
        Self {
            cpu_s: field(11)
                .zip(field(12))
                .map(|(user, system)| (user + system) / TICKS_PER_S),
            threads: field(17),
            start_time_s: field(19).and_then(started_at),
            resident_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|fds| fds.count() as f64),
            max_fds: limits
                .lines()
                .find_map(|l| l.strip_prefix("Max open files")?.split_whitespace().next())
                .and_then(|n| n.parse().ok()),
        }
    }

    fn encode(&self, page: &mut Page<'_>) -> fmt::Result {
        if let Some(seconds) = self.cpu_s {
            let (name, help) = ("process_cpu_seconds", "User and system time");
            let counter = ConstCounter::new(seconds);
            counter.encode(
                page.0
                    .encode_descriptor(name, help, None, MetricType::Counter)?,
            )?;
        }
        for (name, help, value) in [
            ("process_threads", "Threads", self.threads),
            (
                "process_start_time_seconds",
                "Start, since 1970",
                self.start_time_s,
            ),
            (
                "process_resident_memory_bytes",
                "Resident memory",
                self.resident_bytes,
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory",
                self.virtual_bytes,
            ),
            ("process_open_fds", "Open file descriptors", self.open_fds),
            ("process_max_fds", "Limit of file descriptors", self.max_fds),
        ] {
            if let Some(value) = value {
                page.one(name, help, value)?;
            }
        }
        Ok(())
    }
}

/// Seconds since 1970 of a start given in ticks since boot.
fn started_at(ticks: f64) -> Option<f64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime_s: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let now_s = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?
        .as_secs_f64();
    Some((now_s - uptime_s + ticks / TICKS_PER_S).round())
}

/// The page under construction.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn one(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(
            name,
            help,
            None,
            MetricType::Gauge,
        )?)
    }

    fn gauges<'v, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = ([(&'v str, &'v str); LABELS], f64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            encode_value(&value, &mut family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn encode_value<V: EncodeGaugeValue>(
    value: &V,
    metric: &mut prometheus_client::encoding::MetricEncoder<'_>,
) -> fmt::Result {
    metric.encode_gauge(value)
}
