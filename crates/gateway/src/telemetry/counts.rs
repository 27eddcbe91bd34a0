//! What exchanges count up, kept apart for each worker.
//!
//! A counter that all workers share is a cache line that every request has to fetch from another
//! core. Here each worker adds to numbers of its own behind a mutex that only a scrape contends
//! for; [`AllCounts`] adds them up when the page is written. Labels are small numbers while
//! counting and texts on the page; [`Bounded`] says which texts there may be, over all workers.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use forebay_model::ObjectName;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use rustc_hash::FxHashMap;

use super::Measured;
use super::bounded::{Bounded, OTHER};
use crate::per_worker::{PerWorker, lock};
use crate::record::{Ending, Record};

/// Seconds of whole exchanges: from a cache hit on a small model to a long agentic answer.
pub(super) const DURATION_S: [f64; 15] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0,
];
/// Seconds to the first token.
pub(super) const TTFT_S: [f64; 14] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
/// Seconds between tokens.
pub(super) const INTER_TOKEN_S: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0,
];
/// Seconds in the queue; the usual limit is 60.
pub(super) const QUEUE_S: [f64; 12] = [
    0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
/// Seconds of a pick; the promise is 20 µs at the median and 100 µs at the 99th percentile.
pub(super) const PICK_S: [f64; 10] = [
    2e-6, 5e-6, 10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 10e-3,
];

/// Seconds of asking a picker outside; the usual limit is 10.
const CONSULTATION_S: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// The names in use, one bounded set per label, common to all workers.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) gateways: Bounded<ObjectName>,
    pub(super) routes: Bounded<ObjectName>,
    pub(super) pools: Bounded<ObjectName>,
    pub(super) models: Bounded<String>,
}

/// A label's value as one worker numbers it.
type Id = u32;
/// No value.
const NONE: Id = 0;
/// [`OTHER`].
const REST: Id = 1;

/// One worker's numbers for the values of one label.
#[derive(Debug)]
struct Ids<K> {
    by_key: FxHashMap<K, Id>,
    texts: Vec<Arc<str>>,
}

impl<K> Default for Ids<K> {
    fn default() -> Self {
        Self {
            by_key: FxHashMap::default(),
            texts: vec![Arc::from(""), Arc::from(OTHER)],
        }
    }
}

impl<K: Eq + Hash> Ids<K> {
    fn of<Q>(&mut self, key: Option<&Q>, names: &Bounded<K>) -> Id
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ToString + ?Sized,
    {
        let Some(key) = key else {
            return NONE;
        };
        if let Some(&id) = self.by_key.get(key) {
            return id;
        }
        let text = names.value(Some(key));
        if *text == *OTHER {
            // Not kept: a client may invent names without end.
            return REST;
        }
        let id = Id::try_from(self.texts.len()).unwrap_or(REST);
        self.texts.push(text);
        self.by_key.insert(key.to_owned(), id);
        id
    }

    fn text(&self, id: Id) -> Arc<str> {
        Arc::clone(&self.texts[id as usize])
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct RequestKey {
    gateway: Id,
    route: Id,
    pool: Id,
    code: u16,
    reason: &'static str,
}

/// What one worker has counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    gateways: Ids<ObjectName>,
    routes: Ids<ObjectName>,
    pools: Ids<ObjectName>,
    models: Ids<String>,
    requests: FxHashMap<RequestKey, u64>,
    times: FxHashMap<Id, Times>,
    tokens: FxHashMap<(Id, Id), Tokens>,
    retries: FxHashMap<(Id, &'static str), u64>,
    queue_ends: FxHashMap<(Id, &'static str), u64>,
    consultations: FxHashMap<(Id, &'static str), u64>,
}

/// The histograms of one pool.
#[derive(Clone, Debug)]
struct Times {
    duration: Histogram,
    ttft: Histogram,
    inter_token: Histogram,
    queue: Histogram,
    pick: Histogram,
    consultation: Histogram,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            duration: Histogram::new(&DURATION_S),
            ttft: Histogram::new(&TTFT_S),
            inter_token: Histogram::new(&INTER_TOKEN_S),
            queue: Histogram::new(&QUEUE_S),
            pick: Histogram::new(&PICK_S),
            consultation: Histogram::new(&CONSULTATION_S),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Tokens {
    input: Option<u64>,
    cached: Option<u64>,
    output: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds: the last is beyond all of them.
    buckets: Box<[u64]>,
    sum: f64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            buckets: vec![0; bounds.len() + 1].into(),
            sum: 0.0,
        }
    }

    pub(super) fn observe(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            let bucket = self.bounds.partition_point(|bound| *bound < value);
            self.buckets[bucket] += 1;
            self.sum += value;
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (sum, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += more;
        }
        self.sum += other.sum;
    }
}

impl Counts {
    /// Counts one exchange.
    pub(super) fn observe(&mut self, names: &Names, record: &Record, measured: &Measured) {
        let pool = self.pools.of(record.pool.as_deref(), &names.pools);
        let key = RequestKey {
            gateway: self.gateways.of(record.gateway.as_deref(), &names.gateways),
            route: self.routes.of(record.route.as_deref(), &names.routes),
            pool,
            code: record.status,
            reason: record.reason.unwrap_or_else(|| reason_of(record)),
        };
        *self.requests.entry(key).or_default() += 1;
        let times = self.times.entry(pool).or_default();
        times
            .duration
            .observe(Some(measured.duration.as_secs_f64()));
        times.ttft.observe(measured.ttft.map(|t| t.as_secs_f64()));
        times
            .inter_token
            .observe(measured.inter_token.map(|t| t.as_secs_f64()));
        times
            .pick
            .observe(record.pick_us.map(|us| f64::from(us) / 1e6));
        times
            .queue
            .observe(measured.queued.map(|t| t.as_secs_f64()));
        if let Some(stay) = &record.stay {
            *self.queue_ends.entry((pool, stay.end.code())).or_default() += 1;
        }
        if let Some(consultation) = &record.consultation {
            let took = Some(consultation.took.as_secs_f64());
            times.consultation.observe(took);
            let key = (pool, consultation.outcome.code());
            *self.consultations.entry(key).or_default() += 1;
        }
        self.observe_tokens(names, record, measured, pool);
        if let Some((_served, given_up)) = record.tries.split_last() {
            for reason in given_up.iter().filter_map(|t| t.failure) {
                *self.retries.entry((pool, reason)).or_default() += 1;
            }
        }
    }

    /// Only answers that carry a usage count, so a made-up model name does not become a label.
    fn observe_tokens(&mut self, names: &Names, record: &Record, measured: &Measured, pool: Id) {
        if measured.input_tokens.is_none() && measured.output_tokens.is_none() {
            return;
        }
        let model = record.model_served.as_deref().or(record.model.as_deref());
        let model = self.models.of(model, &names.models);
        self.tokens.entry((pool, model)).or_default().add(Tokens {
            input: measured.input_tokens,
            cached: measured.cached_tokens,
            output: measured.output_tokens,
        });
    }
}

/// The reason of an exchange that has none of its own.
fn reason_of(record: &Record) -> &'static str {
    match record.end {
        Ending::Complete => "",
        Ending::ClientGone => "ClientGone",
        Ending::UpstreamDied => "UpstreamDied",
        Ending::TimedOut => "TimedOut",
        Ending::PickerFailed => "PickerFailed",
    }
}

impl Tokens {
    fn add(&mut self, more: Self) {
        let add = |sum: &mut Option<u64>, more: Option<u64>| {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or_default() + more);
            }
        };
        add(&mut self.input, more.input);
        add(&mut self.cached, more.cached);
        add(&mut self.output, more.output);
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

/// Everything that was counted, by the texts of the labels.
#[derive(Debug, Default)]
struct Sums {
    requests: BTreeMap<[Arc<str>; 5], u64>,
    times: BTreeMap<Arc<str>, Times>,
    tokens: BTreeMap<[Arc<str>; 2], Tokens>,
    retries: BTreeMap<[Arc<str>; 2], u64>,
    queue_ends: BTreeMap<[Arc<str>; 2], u64>,
    consultations: BTreeMap<[Arc<str>; 2], u64>,
}

impl Sums {
    fn add(&mut self, counts: &Counts) {
        for (key, count) in &counts.requests {
            let labels = [
                counts.gateways.text(key.gateway),
                counts.routes.text(key.route),
                counts.pools.text(key.pool),
                key.code.to_string().into(),
                key.reason.into(),
            ];
            *self.requests.entry(labels).or_default() += count;
        }
        for (pool, times) in &counts.times {
            let sum = self.times.entry(counts.pools.text(*pool)).or_default();
            sum.duration.add(&times.duration);
            sum.ttft.add(&times.ttft);
            sum.inter_token.add(&times.inter_token);
            sum.queue.add(&times.queue);
            sum.pick.add(&times.pick);
            sum.consultation.add(&times.consultation);
        }
        for ((pool, model), tokens) in &counts.tokens {
            let labels = [counts.pools.text(*pool), counts.models.text(*model)];
            self.tokens.entry(labels).or_default().add(*tokens);
        }
        for (by_reason, sums) in [
            (&counts.retries, &mut self.retries),
            (&counts.queue_ends, &mut self.queue_ends),
            (&counts.consultations, &mut self.consultations),
        ] {
            for ((pool, reason), count) in by_reason {
                let labels = [counts.pools.text(*pool), Arc::from(*reason)];
                *sums.entry(labels).or_default() += count;
            }
        }
    }
}

impl Collector for AllCounts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut sums = Sums::default();
        for worker in self.0.all() {
            sums.add(&lock(&worker));
        }
        let mut page = Page(encoder);
        page.counters(
            "forebay_requests",
            "Exchanges by where they went, status and reason; code 0 is a client that left first",
            ["gateway", "route", "pool", "code", "reason"],
            sums.requests.iter().map(|(labels, count)| (labels, *count)),
        )?;
        page.histograms(&sums)?;
        page.tokens(&sums)?;
        page.counters(
            "forebay_retries",
            "Tries that were followed by another, by what ended them",
            ["pool", "reason"],
            sums.retries.iter().map(|(labels, count)| (labels, *count)),
        )?;
        page.counters(
            "forebay_queue_ends",
            "Requests that came to a saturated pool by what became of them: sent, or why not",
            ["pool", "reason"],
            sums.queue_ends
                .iter()
                .map(|(labels, count)| (labels, *count)),
        )?;
        page.counters(
            "forebay_external_picker_requests",
            "Requests that a picker outside was asked about: picked, answered, or why not",
            ["pool", "outcome"],
            sums.consultations
                .iter()
                .map(|(labels, count)| (labels, *count)),
        )
    }
}

type Count = fn(&Tokens) -> Option<u64>;
type Shown = fn(&Times) -> &Histogram;

/// The page under construction.
pub(super) struct Page<'a>(pub(super) DescriptorEncoder<'a>);

impl Page<'_> {
    fn family<'v, const LABELS: usize, V>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        labels: [&str; LABELS],
        values: impl Iterator<Item = (&'v [Arc<str>; LABELS], V)>,
        mut write: impl FnMut(MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (texts, value) in values {
            let texts: [(&str, &str); LABELS] = std::array::from_fn(|n| (labels[n], &*texts[n]));
            write(family.encode_family(&texts)?, value)?;
        }
        Ok(())
    }

    pub(super) fn counters<'v, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; LABELS],
        values: impl Iterator<Item = (&'v [Arc<str>; LABELS], u64)>,
    ) -> fmt::Result {
        let family = (name, help, MetricType::Counter);
        self.family(family, labels, values, |mut encoder, count| {
            encoder.encode_counter::<NoLabelSet, u64, f64>(&count, None)
        })
    }

    fn tokens(&mut self, sums: &Sums) -> fmt::Result {
        let kinds: [(&str, &str, Count); 3] = [
            (
                "forebay_input_tokens",
                "Prompt tokens that servers reported",
                |t| t.input,
            ),
            (
                "forebay_cached_tokens",
                "Prompt tokens that servers found in their prefix cache",
                |t| t.cached,
            ),
            (
                "forebay_output_tokens",
                "Tokens that servers generated",
                |t| t.output,
            ),
        ];
        for (name, help, count) in kinds {
            let values = sums.tokens.iter();
            let values = values.filter_map(|(labels, tokens)| Some((labels, count(tokens)?)));
            self.counters(name, help, ["pool", "model"], values)?;
        }
        Ok(())
    }

    /// A histogram that has seen nothing is left out: a pool without a stream has no time between
    /// tokens, rather than a zero.
    pub(super) fn histograms_of<'v, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; LABELS],
        values: impl Iterator<Item = (&'v [Arc<str>; LABELS], &'v Histogram)>,
    ) -> fmt::Result {
        let values = values.filter(|(_, h)| h.buckets.iter().any(|count| *count > 0));
        let family = (name, help, MetricType::Histogram);
        self.family(family, labels, values, |mut encoder, histogram| {
            let bounds = histogram.bounds.iter().copied().chain([f64::MAX]);
            let buckets: Vec<_> = bounds.zip(histogram.buckets.iter().copied()).collect();
            let count = histogram.buckets.iter().sum();
            encoder.encode_histogram::<NoLabelSet>(histogram.sum, count, &buckets, None)
        })
    }

    fn histograms(&mut self, sums: &Sums) -> fmt::Result {
        let kinds: [(&str, &str, Shown); 6] = [
            (
                "forebay_request_duration_seconds",
                "From the request's head to the last byte of the answer",
                |t| &t.duration,
            ),
            (
                "forebay_ttft_seconds",
                "From the request's head to the first token of a stream, or the first byte",
                |t| &t.ttft,
            ),
            (
                "forebay_inter_token_seconds",
                "Mean time between tokens of one stream",
                |t| &t.inter_token,
            ),
            (
                "forebay_queue_seconds",
                "Wait for a place in a saturated pool, of requests that had to wait, however it ended",
                |t| &t.queue,
            ),
            (
                "forebay_pick_seconds",
                "Choice of the endpoint, hashing of the prompt included",
                |t| &t.pick,
            ),
            (
                "forebay_external_picker_seconds",
                "Asking a picker outside where a request goes, however it ended",
                |t| &t.consultation,
            ),
        ];
        for (name, help, histogram) in kinds {
            let values = sums.times.iter();
            let values = values.map(|(pool, times)| (std::array::from_ref(pool), histogram(times)));
            self.histograms_of(name, help, ["pool"], values)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::bounded::LABEL_VALUES_MAX;
    use crate::telemetry::test_record;
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    fn page(all: &AllCounts) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(all.clone()));
        let mut page = String::new();
        text::encode_registry(&mut page, &registry).expect("a string takes everything");
        page
    }

    fn count(counts: &Mutex<Counts>, names: &Names, record: &Record) {
        lock(counts).observe(names, record, &Measured::of(record));
    }

    #[test]
    fn what_workers_counted_apart_is_one_number_on_the_page() {
        let (all, names) = (AllCounts::default(), Names::default());
        let (first, second) = (all.add_worker(), all.add_worker());
        let mut other = test_record();
        other.pool = Some(Arc::new(ObjectName::new("default", "embed")));
        // The workers meet the pools in different orders, so they number them differently.
        count(&first, &names, &test_record());
        count(&second, &names, &other);
        count(&second, &names, &test_record());
        let page = page(&all);
        for line in [
            "forebay_requests_total{gateway=\"default/edge\",route=\"default/chat-route\",\
             pool=\"default/chat\",code=\"200\",reason=\"\"} 2",
            "forebay_request_duration_seconds_count{pool=\"default/chat\"} 2",
            "forebay_request_duration_seconds_sum{pool=\"default/chat\"} 1.5",
            "forebay_request_duration_seconds_bucket{le=\"0.5\",pool=\"default/chat\"} 0",
            "forebay_request_duration_seconds_bucket{le=\"1.0\",pool=\"default/chat\"} 2",
            "forebay_request_duration_seconds_bucket{le=\"+Inf\",pool=\"default/embed\"} 1",
            "forebay_cached_tokens_total{pool=\"default/chat\",model=\"llama\"} 128",
            "forebay_retries_total{pool=\"default/embed\",reason=\"connect\"} 1",
        ] {
            assert!(
                page.lines().any(|l| l == line),
                "no line {line:?} in\n{page}"
            );
        }
    }

    #[test]
    fn invented_model_names_end_in_one_series() {
        let (all, names) = (AllCounts::default(), Names::default());
        let worker = all.add_worker();
        for n in 0..LABEL_VALUES_MAX + 3 {
            let mut record = test_record();
            record.model = Some(format!("model-{n}").into());
            count(&worker, &names, &record);
        }
        let line = "forebay_output_tokens_total{pool=\"default/chat\",model=\"other\"} 90";
        let page = page(&all);
        assert!(
            page.lines().any(|l| l == line),
            "no line {line:?} in\n{page}"
        );
        assert_eq!(lock(&worker).models.texts.len(), LABEL_VALUES_MAX + 2);
    }
}
