//! The same numbers under the names that llm-d's endpoint picker gives them, for dashboards and
//! autoscalers that were made for it. Only counted where they are asked for.
//!
//! Tenants (`fairness_id`) are no label here: a client invents them. docs/observability.md lists what
//! is not exported, and why. What is read off the state of pools is in `current.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use rustc_hash::FxHashMap;

use super::Measured;
use super::counts::{DURATION_S, Histogram, INTER_TOKEN_S, Names, PICK_S, Page, QUEUE_S, TTFT_S};
use crate::per_worker::{PerWorker, lock};
use crate::record::{Record, StayEnd};

/// Tokens of prompts and answers.
const TOKENS: [f64; 15] = [
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0, 2_048.0, 4_096.0, 8_192.0, 16_384.0,
    65_536.0, 262_144.0,
];
/// Bytes of bodies.
const BYTES: [f64; 12] = [
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    131_072.0,
    262_144.0,
    524_288.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];
/// Shares.
const SHARES: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Model as asked for, model as served, priority.
type Request = (Arc<str>, Arc<str>, i32);
/// What became of a request that came to the queue, its priority, its pool.
type Flow = (&'static str, i32, Arc<str>);

/// What one worker has counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    requests: FxHashMap<Request, Figures>,
    errors: FxHashMap<(Request, u16), u64>,
    attempts: FxHashMap<(&'static str, Arc<str>), u64>,
    flows: FxHashMap<Flow, (u64, Histogram)>,
    rewrites: FxHashMap<(Arc<str>, Arc<str>), u64>,
    picks: Option<Histogram>,
    hits: Option<Histogram>,
}

/// The figures of requests of one kind.
#[derive(Clone, Debug)]
struct Figures {
    requests: u64,
    duration: Histogram,
    /// Whole answers and streams.
    ttft: [Histogram; 2],
    tpot: Histogram,
    ntpot: Histogram,
    bytes_in: Histogram,
    bytes_out: Histogram,
    input: Histogram,
    output: Histogram,
    cached: Histogram,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            requests: 0,
            duration: Histogram::new(&DURATION_S),
            ttft: [Histogram::new(&TTFT_S), Histogram::new(&TTFT_S)],
            tpot: Histogram::new(&INTER_TOKEN_S),
            ntpot: Histogram::new(&INTER_TOKEN_S),
            bytes_in: Histogram::new(&BYTES),
            bytes_out: Histogram::new(&BYTES),
            input: Histogram::new(&TOKENS),
            output: Histogram::new(&TOKENS),
            cached: Histogram::new(&TOKENS),
        }
    }
}

impl Figures {
    fn observe(&mut self, record: &Record, measured: &Measured) {
        let seconds = |time: std::time::Duration| time.as_secs_f64();
        let tokens = |count: Option<u64>| count.map(|count| count as f64);
        self.requests += 1;
        self.duration.observe(Some(seconds(measured.duration)));
        let first = measured.ttft.or(measured.first_byte).map(seconds);
        self.ttft[usize::from(record.stream)].observe(first);
        self.tpot.observe(measured.inter_token.map(seconds));
        let output = measured.output_tokens.filter(|count| *count > 0);
        let each = output.map(|count| seconds(measured.duration) / count as f64);
        self.ntpot.observe(each);
        self.bytes_in.observe(Some(record.bytes_in as f64));
        self.bytes_out.observe(Some(record.bytes_out as f64));
        self.input.observe(tokens(measured.input_tokens));
        self.output.observe(tokens(measured.output_tokens));
        self.cached.observe(tokens(measured.cached_tokens));
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.duration.add(&other.duration);
        for (sum, more) in self.ttft.iter_mut().zip(&other.ttft) {
            sum.add(more);
        }
        self.tpot.add(&other.tpot);
        self.ntpot.add(&other.ntpot);
        self.bytes_in.add(&other.bytes_in);
        self.bytes_out.add(&other.bytes_out);
        self.input.add(&other.input);
        self.output.add(&other.output);
        self.cached.add(&other.cached);
    }
}

impl Counts {
    /// Counts one exchange with a pool.
    pub(super) fn observe(&mut self, names: &Names, record: &Record, measured: &Measured) {
        if record.pool.is_none() {
            return;
        }
        // Of a request that went nowhere the client may have made the model up.
        let went = !record.tries.is_empty();
        let asked = record.model.as_deref().filter(|_| went);
        let served = record.model_served.as_deref().or(asked);
        let model = names.models.value(asked);
        let target = names.models.value(served);
        let key = (Arc::clone(&model), Arc::clone(&target), record.priority);
        if record.status >= 400 || record.status == 0 {
            *self.errors.entry((key.clone(), record.status)).or_default() += 1;
        }
        self.requests
            .entry(key)
            .or_default()
            .observe(record, measured);
        if record.model_served.is_some() && went {
            let rewrite = (model, Arc::clone(&target));
            *self.rewrites.entry(rewrite).or_default() += 1;
        }
        if let Some(us) = record.pick_us {
            let picks = self.picks.get_or_insert_with(|| Histogram::new(&PICK_S));
            picks.observe(Some(f64::from(us) / 1e6));
            let status = if record.report.is_some() {
                "success"
            } else {
                "failure"
            };
            *self.attempts.entry((status, target)).or_default() += 1;
        }
        if let Some(share) = hit_share(record) {
            let hits = self.hits.get_or_insert_with(|| Histogram::new(&SHARES));
            hits.observe(Some(share));
        }
        if let Some(stay) = &record.stay {
            let flow = (outcome(stay.end), record.priority, pool(record));
            let (count, waits) = self
                .flows
                .entry(flow)
                .or_insert_with(|| (0, Histogram::new(&QUEUE_S)));
            *count += 1;
            let waited = stay.waited(record.finished);
            waits.observe(Some(waited.as_secs_f64()));
        }
    }

    fn add(&mut self, other: &Self) {
        for (key, figures) in &other.requests {
            self.requests.entry(key.clone()).or_default().add(figures);
        }
        for (key, count) in &other.errors {
            *self.errors.entry(key.clone()).or_default() += count;
        }
        for (key, count) in &other.attempts {
            *self.attempts.entry(key.clone()).or_default() += count;
        }
        for (key, count) in &other.rewrites {
            *self.rewrites.entry(key.clone()).or_default() += count;
        }
        for (key, (count, waits)) in &other.flows {
            let sum = self.flows.entry(key.clone());
            let (sum, all) = sum.or_insert_with(|| (0, Histogram::new(&QUEUE_S)));
            *sum += count;
            all.add(waits);
        }
        for (sum, more, bounds) in [
            (&mut self.picks, &other.picks, &PICK_S[..]),
            (&mut self.hits, &other.hits, &SHARES[..]),
        ] {
            if let Some(more) = more {
                sum.get_or_insert_with(|| Histogram::new(bounds)).add(more);
            }
        }
    }
}

/// How much of the prompt was believed to be in the cache of whom it was sent to first.
fn hit_share(record: &Record) -> Option<f64> {
    let report = record.report.as_ref()?;
    let first = record.tries.first()?.endpoint;
    let chosen = report.considered.iter().find(|c| c.address == first)?;
    let blocks = f64::from(report.prompt_blocks);
    (blocks > 0.0).then(|| f64::from(chosen.hit_blocks) / blocks)
}

fn pool(record: &Record) -> Arc<str> {
    let name = record.pool.as_ref().map(|pool| Arc::clone(&pool.name));
    name.unwrap_or_default()
}

/// llm-d's words for the ends of a stay in the queue.
fn outcome(end: StayEnd) -> &'static str {
    use forebay_decide::GateRefusal;
    match end {
        StayEnd::Sent => "Dispatched",
        StayEnd::Shed => "RejectedCapacity",
        StayEnd::Refused(GateRefusal::QueueFull | GateRefusal::TooLarge) => "RejectedCapacity",
        StayEnd::Refused(GateRefusal::Expired) => "EvictedTTL",
        StayEnd::Refused(GateRefusal::Displaced) => "EvictedOther",
        StayEnd::TimedOut | StayEnd::ClientGone => "EvictedContextCancelled",
        StayEnd::Draining => "EvictedOther",
    }
}

/// The counts of all workers.
#[derive(Clone, Debug, Default)]
pub(super) struct AllCounts(Arc<PerWorker<Mutex<Counts>>>);

impl AllCounts {
    /// A place to count in, for one worker.
    pub(super) fn add_worker(&self) -> Arc<Mutex<Counts>> {
        self.0.add()
    }
}

impl Collector for AllCounts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut sums = Counts::default();
        for worker in self.0.all() {
            sums.add(&lock(&worker));
        }
        let mut page = Page(encoder);
        requests(&mut page, &sums)?;
        others(&mut page, &sums)
    }
}

const REQUEST: [&str; 3] = ["model_name", "target_model_name", "priority"];

fn labels((model, target, priority): &Request) -> [Arc<str>; 3] {
    [
        Arc::clone(model),
        Arc::clone(target),
        priority.to_string().into(),
    ]
}

type Shown = fn(&Figures) -> &Histogram;

fn requests(page: &mut Page<'_>, sums: &Counts) -> fmt::Result {
    let by_labels: BTreeMap<_, _> = sums.requests.iter().map(|(k, f)| (labels(k), f)).collect();
    page.counters(
        "llm_d_epp_request",
        "Requests",
        REQUEST,
        by_labels.iter().map(|(l, figures)| (l, figures.requests)),
    )?;
    let errors: BTreeMap<_, _> = sums
        .errors
        .iter()
        .map(|((request, code), count)| {
            let [model, target, priority] = labels(request);
            ([model, target, priority, code.to_string().into()], *count)
        })
        .collect();
    page.counters(
        "llm_d_epp_request_error",
        "Requests that were answered with an error, by status; 0 is a client that left first",
        ["model_name", "target_model_name", "priority", "error_code"],
        errors.iter().map(|(l, count)| (l, *count)),
    )?;
    let kinds: [(&str, &str, Shown); 8] = [
        ("duration_seconds", "Head to last byte", |f| &f.duration),
        ("size_bytes", "Bodies of requests", |f| &f.bytes_in),
        ("input_tokens", "Prompt tokens", |f| &f.input),
        ("output_tokens", "Tokens generated", |f| &f.output),
        ("cached_tokens", "Prompt tokens found in cache", |f| {
            &f.cached
        }),
        (
            "streaming_tpot_seconds",
            "Mean time between tokens of a stream",
            |f| &f.tpot,
        ),
        ("ntpot_seconds", "Whole duration by tokens generated", |f| {
            &f.ntpot
        }),
        // Named after what it is of.
        ("", "Bodies of responses", |f| &f.bytes_out),
    ];
    for (name, help, shown) in kinds {
        let name = match name {
            "" => "llm_d_epp_response_size_bytes".to_owned(),
            name => format!("llm_d_epp_request_{name}"),
        };
        let values = by_labels
            .iter()
            .map(|(labels, figures)| (labels, shown(figures)));
        page.histograms_of(&name, help, REQUEST, values)?;
    }
    let ttft: Vec<_> = by_labels
        .iter()
        .flat_map(|(labels, figures)| {
            let [model, target, priority] = labels.clone();
            ["false", "true"]
                .into_iter()
                .zip(&figures.ttft)
                .map(move |(streaming, histogram)| {
                    let (model, target, priority) =
                        (model.clone(), target.clone(), priority.clone());
                    ([model, target, priority, streaming.into()], histogram)
                })
        })
        .collect();
    page.histograms_of(
        "llm_d_epp_request_ttft_seconds",
        "Head to first token of a stream, or to the first byte",
        ["model_name", "target_model_name", "priority", "streaming"],
        ttft.iter().map(|(labels, histogram)| (labels, *histogram)),
    )
}

fn others(page: &mut Page<'_>, sums: &Counts) -> fmt::Result {
    let attempts: BTreeMap<_, _> = sums
        .attempts
        .iter()
        .map(|((status, target), count)| ([Arc::from(*status), Arc::clone(target)], *count))
        .collect();
    page.counters(
        "llm_d_epp_scheduler_attempts",
        "Choices of an endpoint",
        ["status", "target_model_name"],
        attempts.iter().map(|(l, count)| (l, *count)),
    )?;
    let rewrites: BTreeMap<_, _> = sums
        .rewrites
        .iter()
        .map(|((model, target), count)| ([Arc::clone(model), Arc::clone(target)], *count))
        .collect();
    page.counters(
        "llm_d_epp_model_rewrite_decisions",
        "Requests whose model a rule replaced",
        ["model_name", "target_model"],
        rewrites.iter().map(|(l, count)| (l, *count)),
    )?;
    let none: [Arc<str>; 0] = [];
    page.histograms_of(
        "llm_d_epp_scheduler_e2e_duration_seconds",
        "Choice of the endpoint, hashing of the prompt included",
        [],
        sums.picks.iter().map(|picks| (&none, picks)),
    )?;
    let index = [
        "approx-prefix-cache-producer".into(),
        "approx-prefix-cache-producer".into(),
    ];
    page.histograms_of(
        "llm_d_epp_prefix_indexer_hit_ratio",
        "Share of the prompt believed to be in the cache of the endpoint that was chosen",
        ["plugin_name", "plugin_type"],
        sums.hits.iter().map(|hits| (&index, hits)),
    )?;
    let flows: BTreeMap<[Arc<str>; 3], _> = sums
        .flows
        .iter()
        .map(|((outcome, priority, pool), waits)| {
            (
                [
                    Arc::from(*outcome),
                    priority.to_string().into(),
                    Arc::clone(pool),
                ],
                waits,
            )
        })
        .collect();
    let flow = ["outcome", "priority", "inference_pool"];
    page.counters(
        "llm_d_epp_flow_control_requests",
        "Requests that came to a saturated pool, by what became of them",
        flow,
        flows.iter().map(|(l, (count, _))| (l, *count)),
    )?;
    page.histograms_of(
        "llm_d_epp_flow_control_request_queue_duration_seconds",
        "Their stay in the queue",
        flow,
        flows.iter().map(|(l, (_, waits))| (l, waits)),
    )
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::telemetry::test_record;

    #[test]
    fn an_exchange_is_counted_under_the_names_that_dashboards_of_llm_d_ask_for() {
        let (all, names) = (AllCounts::default(), Names::default());
        let worker = all.add_worker();
        let mut record = test_record();
        lock(&worker).observe(&names, &record, &Measured::of(&record));
        record.status = 503;
        lock(&worker).observe(&names, &record, &Measured::of(&record));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(all));
        let mut page = String::new();
        text::encode_registry(&mut page, &registry).expect("a string takes everything");
        for part in [
            "llm_d_epp_request_total{model_name=\"llama\",target_model_name=\"llama\",priority=\"",
            "llm_d_epp_request_error_total{",
            "error_code=\"503\"} 1",
            "llm_d_epp_request_duration_seconds_count{",
            "llm_d_epp_request_ttft_seconds_count{",
            "streaming=\"true\"} 2",
            "llm_d_epp_request_input_tokens_sum{",
            "llm_d_epp_request_streaming_tpot_seconds_count{",
            "llm_d_epp_scheduler_e2e_duration_seconds_count",
            "llm_d_epp_scheduler_attempts_total{status=\"success\"",
        ] {
            assert!(page.contains(part), "no {part:?} in\n{page}");
        }
    }
}
