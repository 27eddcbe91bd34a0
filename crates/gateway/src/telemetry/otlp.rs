//! One OpenTelemetry span per exchange, sent over OTLP/gRPC.
//!
//! Whether an exchange is traced is settled before anything is built: [`Tracing::begin`] follows the
//! client's sampled flag and otherwise draws against the ratio, so an exchange that is not sampled
//! costs a comparison. The span itself is built from the finished record, in the exporter's thread.
//! Metrics and logs go other ways (`/metrics`, stdout); TLS to the collector is left to a sidecar.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

use forebay_dialect::Api;
use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc;

use super::access_log::ending;
use super::metrics::{Metrics, SpanFate};
use super::{Measured, millis};
use crate::record::{Ending, Record};

/// Sampled exchanges that wait for the collector; later ones are dropped and counted.
pub const SPANS_QUEUED_MAX: usize = 2_048;

/// Spans in one export.
const BATCH_MAX: usize = 512;

/// How long the collector may take for a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a batch gathers; a trace shows up in the collector about this much later.
const GATHER: Duration = Duration::from_secs(1);

/// Where spans go, and how many.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The collector, such as `http://otel-collector:4317`.
    pub endpoint: String,
    /// Share of exchanges that are sampled when the client says nothing, 0 to 1.
    pub ratio: f64,
    /// `service.name` of the resource.
    pub service_name: String,
}

/// The place of one sampled exchange in its trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    /// Zero for a trace that starts here.
    parent_id: u64,
}

impl TraceContext {
    /// The `traceparent` to send on, so that the server's spans hang below ours.
    #[must_use]
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-01", self.trace_id, self.span_id)
    }

    /// The trace's id as logs and `/debug/decisions` show it.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

/// Trace id, parent id and sampled flag of a W3C `traceparent`; `None` if it is not a valid one.
fn parse_traceparent(value: &str) -> Option<(u128, u64, bool)> {
    let mut parts = value.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // Version 00 has four parts, later versions may have more, and ff is forbidden.
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    hex(version, 2)?;
    let (trace, parent, flags) = (hex(trace, 32)?, hex(parent, 16)?, hex(flags, 2)?);
    let parent = u64::try_from(parent).ok()?;
    (trace != 0 && parent != 0).then_some((trace, parent, flags & 1 == 1))
}

fn hex(text: &str, len: usize) -> Option<u128> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (text.len() == len && text.bytes().all(lower_hex))
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

/// The sampler, and the queue to the exporting thread.
#[derive(Debug)]
pub(super) struct Tracing {
    queue: mpsc::Sender<Message>,
    /// A random number below this is sampled; `u64::MAX` samples everything.
    threshold: u64,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
enum Message {
    Exchange(Arc<Record>, TraceContext),
    Flush(SyncSender<()>),
}

impl Tracing {
    /// Starts the exporting thread; it ends when the value is dropped.
    ///
    /// # Errors
    /// When the endpoint is not a URL or the thread cannot be started.
    pub(super) fn start(settings: &Settings, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let (queue, exchanges) = mpsc::channel(SPANS_QUEUED_MAX);
        let (ready, started) = sync_channel(1);
        let (wanted, counted) = (settings.clone(), Arc::clone(metrics));
        thread::Builder::new()
            .name("otlp".to_owned())
            .spawn(move || {
                let runtime = match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                runtime.block_on(async move {
                    // The channel to the collector belongs to the runtime that it is built in.
                    match exporter(&wanted.endpoint, &wanted.service_name, []) {
                        Ok(exporter) => {
                            drop(ready.send(Ok(())));
                            export(exchanges, exporter, &counted).await;
                        }
                        Err(error) => drop(ready.send(Err(error))),
                    }
                });
            })?;
        started.recv().map_err(io::Error::other)??;
        Ok(Self {
            queue,
            threshold: threshold(settings.ratio),
            metrics: Arc::clone(metrics),
        })
    }

    /// The context of a sampled exchange; `None` means that nothing more is to be done for it.
    pub(super) fn begin(&self, traceparent: Option<&str>) -> Option<TraceContext> {
        let (trace_id, parent_id) = match traceparent.and_then(parse_traceparent) {
            Some((_, _, false)) => return None,
            Some((trace_id, parent_id, true)) => (trace_id, parent_id),
            None if self.threshold == 0 || random() > self.threshold => return None,
            None => (u128::from(random()) << 64 | u128::from(random()), 0),
        };
        Some(TraceContext {
            trace_id,
            span_id: random().max(1),
            parent_id,
        })
    }

    /// Queues the span of an exchange.
    pub(super) fn settle(&self, record: &Arc<Record>, context: TraceContext) {
        if self
            .queue
            .try_send(Message::Exchange(Arc::clone(record), context))
            .is_err()
        {
            self.metrics.span(SpanFate::Dropped, 1);
        }
    }

    /// Waits until everything queued so far is exported, or `timeout` has passed. A full queue is
    /// not waited for: the collector does not keep up.
    pub(super) fn flush(&self, timeout: Duration) {
        let (done, exported) = sync_channel(1);
        if self.queue.try_send(Message::Flush(done)).is_ok()
            && exported.recv_timeout(timeout).is_err()
        {
            tracing::warn!("the trace collector is too slow, the last spans are lost");
        }
    }
}

fn threshold(ratio: f64) -> u64 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a float cast saturates, which is what the ends of the range need"
    )]
    let threshold = (ratio.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
    threshold
}

/// A number nobody has to guess at: ids must be unique, not secret.
fn random() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
    }
    // SplitMix64: every state is good, also zero.
    STATE.with(|state| {
        state.set(state.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut z = state.get();
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// A way to the collector at `endpoint` for the spans of a service; must be made within the runtime that exports.
///
/// # Errors
/// `endpoint` is no URL.
pub fn exporter(
    endpoint: &str,
    service_name: &str,
    attributes: impl IntoIterator<Item = KeyValue>,
) -> io::Result<SpanExporter> {
    let mut exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(io::Error::other)?;
    let resource = Resource::builder()
        .with_service_name(service_name.to_owned())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(attributes)
        .build();
    exporter.set_resource(&resource);
    Ok(exporter)
}

async fn export(mut queue: mpsc::Receiver<Message>, exporter: SpanExporter, metrics: &Metrics) {
    let scope = InstrumentationScope::builder("forebay").build();
    let mut messages = Vec::with_capacity(BATCH_MAX);
    while queue.recv_many(&mut messages, BATCH_MAX).await > 0 {
        let asked = |m: &Message| matches!(m, Message::Flush(_));
        if messages.len() < BATCH_MAX && !messages.iter().any(asked) {
            gather(&mut queue, &mut messages).await;
        }
        let (mut spans, mut waiting) = (Vec::new(), Vec::new());
        for message in messages.drain(..) {
            match message {
                Message::Exchange(record, context) => spans.push(span(&record, context, &scope)),
                Message::Flush(done) => waiting.push(done),
            }
        }
        let count = spans.len();
        if count > 0 {
            let fate = match exporter.export(spans).await {
                Ok(()) => SpanFate::Exported,
                Err(error) => {
                    tracing::debug!(%error, count, "spans were not taken by the collector");
                    SpanFate::Failed
                }
            };
            metrics.span(fate, count);
        }
        for done in waiting {
            let _given_up = done.try_send(());
        }
    }
}

/// Fills the batch until it is full, somebody wants a flush, or [`GATHER`] has passed.
async fn gather(queue: &mut mpsc::Receiver<Message>, messages: &mut Vec<Message>) {
    let full = async {
        while messages.len() < BATCH_MAX {
            match queue.recv().await {
                Some(message) => {
                    let flush = matches!(message, Message::Flush(_));
                    messages.push(message);
                    if flush {
                        return;
                    }
                }
                None => return,
            }
        }
    };
    // Running out of time is the usual end; what was received is in `messages`.
    drop(tokio::time::timeout(GATHER, full).await);
}

/// The span of an exchange, named and attributed by the GenAI and HTTP semantic conventions.
fn span(record: &Record, context: TraceContext, scope: &InstrumentationScope) -> SpanData {
    let measured = Measured::of(record);
    let id = |id: u64| SpanId::from_bytes(id.to_be_bytes());
    SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes(context.trace_id.to_be_bytes()),
            id(context.span_id),
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        ),
        parent_span_id: id(context.parent_id),
        parent_span_is_remote: context.parent_id != 0,
        span_kind: SpanKind::Server,
        name: span_name(record).into(),
        start_time: record.started_at,
        end_time: record.started_at + measured.duration,
        attributes: attributes(record, &measured),
        dropped_attributes_count: 0,
        events: events(record, &measured),
        links: SpanLinks::default(),
        status: match error_type(record) {
            // By the conventions a client's own mistake is no error of a server span.
            Some(error) if record.status >= 500 || record.end != Ending::Complete => {
                Status::error(error)
            }
            _ => Status::Unset,
        },
        instrumentation_scope: scope.clone(),
    }
}

fn span_name(record: &Record) -> String {
    match (operation(record.api), record.model.as_deref()) {
        (Some(operation), Some(model)) => format!("{operation} {model}"),
        (Some(operation), None) => operation.to_owned(),
        (None, _) => record.method.to_string(),
    }
}

fn error_type(record: &Record) -> Option<String> {
    if let Some(reason) = record.reason {
        return Some(reason.to_owned());
    }
    match record.end {
        Ending::Complete if record.status >= 400 => Some(record.status.to_string()),
        Ending::Complete => None,
        end => Some(ending(end).to_owned()),
    }
}

fn attributes(record: &Record, measured: &Measured) -> Vec<KeyValue> {
    let mut all = Vec::with_capacity(32);
    all.extend([
        KeyValue::new("http.request.method", record.method.to_string()),
        KeyValue::new("url.path", record.path.to_string()),
        KeyValue::new("http.response.status_code", i64::from(record.status)),
        KeyValue::new("http.request.body.size", int(record.bytes_in)),
        KeyValue::new("http.response.body.size", int(record.bytes_out)),
        KeyValue::new("client.address", record.client.ip().to_string()),
        KeyValue::new("client.port", i64::from(record.client.port())),
        KeyValue::new("forebay.request.id", record.id.to_string()),
        KeyValue::new("forebay.priority", i64::from(record.priority)),
        KeyValue::new("forebay.tries", int(record.tries.len() as u64)),
        KeyValue::new("forebay.end", ending(record.end)),
    ]);
    if let Some(last) = record.tries.last() {
        all.push(KeyValue::new(
            "server.address",
            last.endpoint.ip().to_string(),
        ));
        all.push(KeyValue::new(
            "server.port",
            i64::from(last.endpoint.port()),
        ));
    }
    let mut text = |key: &'static str, value: Option<String>| {
        all.extend(value.map(|value| KeyValue::new(key, value)));
    };
    text(
        "gen_ai.operation.name",
        operation(record.api).map(str::to_owned),
    );
    text(
        "gen_ai.request.model",
        record.model.as_deref().map(str::to_owned),
    );
    text(
        "gen_ai.response.model",
        served_model(record).map(str::to_owned),
    );
    text("error.type", error_type(record));
    text(
        "forebay.gateway",
        record.gateway.as_ref().map(ToString::to_string),
    );
    text(
        "forebay.route",
        record.route.as_ref().map(ToString::to_string),
    );
    text(
        "forebay.pool",
        record.pool.as_ref().map(ToString::to_string),
    );
    let mut number = |key: &'static str, value: Option<u64>| {
        all.extend(value.map(|value| KeyValue::new(key, int(value))));
    };
    number("gen_ai.usage.input_tokens", measured.input_tokens);
    number(
        "gen_ai.usage.cache_read.input_tokens",
        measured.cached_tokens,
    );
    number("gen_ai.usage.output_tokens", measured.output_tokens);
    number("forebay.pick.us", record.pick_us.map(u64::from));
    let mut time = |key: &'static str, value: Option<Duration>| {
        all.extend(value.map(|value| KeyValue::new(key, millis(value))));
    };
    time("forebay.queue_ms", measured.queued);
    time("forebay.ttft_ms", measured.ttft);
    time("forebay.inter_token_ms", measured.inter_token);
    all
}

/// The model that answered, which is known only once a server did.
fn served_model(record: &Record) -> Option<&str> {
    (200..300)
        .contains(&record.status)
        .then(|| record.model_served.as_deref().or(record.model.as_deref()))?
}

/// A try's own time is not recorded: those given up stand at the start, the one that served where
/// its first byte arrived.
fn events(record: &Record, measured: &Measured) -> SpanEvents {
    let at =
        |after: Option<Duration>| -> SystemTime { record.started_at + after.unwrap_or_default() };
    let mut events = SpanEvents::default();
    events.events = record
        .tries
        .iter()
        .map(|t| {
            let mut attributes = vec![KeyValue::new("forebay.endpoint", t.endpoint.to_string())];
            attributes.extend(t.failure.map(|f| KeyValue::new("forebay.failure", f)));
            let after = if t.failure.is_none() {
                measured.first_byte
            } else {
                None
            };
            Event::new("forebay.try", at(after), attributes, 0)
        })
        .collect();
    events
}

fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// `gen_ai.operation.name`, where the conventions have one for the API.
fn operation(api: Api) -> Option<&'static str> {
    match api {
        Api::ChatCompletions | Api::Responses | Api::Conversations | Api::Messages => Some("chat"),
        Api::Completions | Api::VllmGenerate | Api::SglangGenerate => Some("text_completion"),
        Api::Embeddings => Some("embeddings"),
        Api::Transcriptions | Api::Speech | Api::Images => Some("generate_content"),
        Api::Rerank
        | Api::Score
        | Api::Tokenize
        | Api::Detokenize
        | Api::CountTokens
        | Api::Models
        | Api::Other => None,
    }
}

#[cfg(test)]
#[path = "otlp_tests.rs"]
mod tests;
