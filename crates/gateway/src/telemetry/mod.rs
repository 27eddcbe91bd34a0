//! What the outside learns about exchanges: metrics, the access log, spans, `/debug/decisions`.
//!
//! [`Desk::settle`] is the single place where an exchange is reported. It counts at once and hands
//! the record to threads that format and send, each behind a bounded queue. Values that exist
//! anyway (endpoints, process) are read when a scraper asks: see `current.rs`.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_model::Moment;

use self::counts::Counts;
use crate::explain::{Decisions, Ring};
use crate::per_worker::lock;
use crate::pools::Live;
use crate::record::{Record, StreamRecord};

mod access_log;
mod bounded;
mod connections;
mod counts;
mod current;
mod llm_d;
pub mod metrics;
mod otlp;

pub use access_log::{Format, LINES_QUEUED_MAX};
pub(crate) use access_log::{ending, rfc3339};
pub use bounded::{LABEL_VALUES_MAX, OTHER};
pub use connections::{Counted, WorkerConnections};
pub use metrics::{Metrics, to_prometheus_text};
pub use otlp::{SPANS_QUEUED_MAX, Settings as OtlpSettings, TraceContext, exporter};

/// Bytes that are kept of a text that the client chose (path, host, model, id). A path may be as
/// long as a head; thousands of records wait in queues.
const TEXT_BYTES_MAX: usize = 1_024;

/// What to report, and where to.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The access log on stdout.
    pub access_log: Format,
    /// Traces; `None` for none.
    pub otlp: Option<OtlpSettings>,
    /// Whether the names of llm-d's endpoint picker are exported beside ours.
    pub llm_d_names: bool,
}

/// Takes in records. Made once, shared by all threads.
#[derive(Debug)]
pub struct Telemetry {
    /// Counters and histograms, for those who count something other than exchanges.
    pub metrics: Arc<Metrics>,
    /// The last decisions.
    pub decisions: Decisions,
    access_log: Option<access_log::AccessLog>,
    tracing: Option<otlp::Tracing>,
}

impl Telemetry {
    /// Starts the threads that `settings` need.
    ///
    /// # Errors
    /// When a thread cannot be started or the collector's address is not one.
    pub fn new(settings: &Settings) -> io::Result<Self> {
        Self::with_log_sink(settings, Box::new(io::stdout()))
    }

    /// The same with the access log going to `sink`.
    ///
    /// # Errors
    /// See [`Telemetry::new`].
    pub fn with_log_sink(settings: &Settings, sink: Box<dyn Write + Send>) -> io::Result<Self> {
        let metrics = Arc::new(Metrics::with_names(settings.llm_d_names));
        let dropped = metrics.log_lines_dropped.clone();
        let tracing = match &settings.otlp {
            Some(otlp) => Some(otlp::Tracing::start(otlp, &metrics)?),
            None => None,
        };
        Ok(Self {
            access_log: access_log::AccessLog::start(settings.access_log, sink, dropped)?,
            decisions: Decisions::default(),
            tracing,
            metrics,
        })
    }

    /// The trace that an exchange is part of, if it is to be recorded. `traceparent` is what the
    /// client sent. Put the result into the record, and send its
    /// [`TraceContext::traceparent`] on in place of the client's; on `None` pass the client's on.
    #[must_use]
    pub fn begin_trace(&self, traceparent: Option<&str>) -> Option<TraceContext> {
        self.tracing.as_ref()?.begin(traceparent)
    }

    /// A place to report at, for one worker.
    #[must_use]
    pub fn desk(self: &Arc<Self>) -> Desk {
        Desk {
            counts: self.metrics.exchanges.add_worker(),
            llm_d: self
                .metrics
                .llm_d
                .as_ref()
                .map(llm_d::AllCounts::add_worker),
            ring: self.decisions.add_worker(),
            telemetry: Arc::clone(self),
        }
    }

    /// The metrics page in OpenMetrics text; the state of pools is read from `live`.
    #[must_use]
    pub fn render_metrics(&self, live: &Live, now: Moment) -> String {
        let mut page = String::with_capacity(64 << 10);
        let written = self
            .metrics
            .encode(&mut page)
            .and_then(|()| current::encode(&mut page, live, now, self.metrics.llm_d.is_some()))
            .and_then(|()| prometheus_client::encoding::text::encode_eof(&mut page));
        written.expect("a string takes all that is written to it");
        page
    }

    /// Waits until queued lines and spans are written, each for `timeout` at most. For the end of
    /// the process.
    pub fn flush(&self, timeout: Duration) {
        if let Some(log) = &self.access_log {
            log.flush(timeout);
        }
        if let Some(tracing) = &self.tracing {
            tracing.flush(timeout);
        }
    }
}

/// Where one worker reports. What it counts and the exchanges that it keeps lie apart from those of
/// other workers, so that a report writes to no memory that another core writes to.
#[derive(Debug)]
pub struct Desk {
    telemetry: Arc<Telemetry>,
    counts: Arc<Mutex<Counts>>,
    llm_d: Option<Arc<Mutex<llm_d::Counts>>>,
    ring: Arc<Ring>,
}

impl Desk {
    /// Reports a connection that was no HTTP. Never waits.
    pub fn stream_closed(&self, record: Box<StreamRecord>) {
        self.telemetry.metrics.stream_closed(&record);
        if let Some(log) = &self.telemetry.access_log {
            log.log_stream(record);
        }
    }

    /// Reports an exchange. Never waits.
    pub fn settle(&self, mut record: Box<Record>) {
        trim(&mut record);
        let Telemetry {
            metrics,
            access_log,
            tracing,
            ..
        } = &*self.telemetry;
        let measured = Measured::of(&record);
        lock(&self.counts).observe(&metrics.names, &record, &measured);
        if let Some(llm_d) = &self.llm_d {
            lock(llm_d).observe(&metrics.names, &record, &measured);
        }
        let record: Arc<Record> = record.into();
        if let Some(log) = access_log {
            log.log(&record);
        }
        if let (Some(tracing), Some(context)) = (tracing, record.trace) {
            tracing.settle(&record, context);
        }
        self.ring.push(record);
    }
}

fn trim(record: &mut Record) {
    let too_long = |text: &str| text.len() > TEXT_BYTES_MAX;
    let cut = |text: &str| Box::<str>::from(&text[..text.floor_char_boundary(TEXT_BYTES_MAX)]);
    for text in [&mut record.path, &mut record.host]
        .into_iter()
        .chain(record.model.as_mut())
    {
        if too_long(text) {
            *text = cut(text);
        }
    }
    if too_long(&record.id) {
        record.id = cut(&record.id).into();
    }
}

/// What follows from a record's times and usage.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Measured {
    /// Head to last byte.
    pub(crate) duration: Duration,
    /// Wait for a place in the pool, of an exchange that had to wait.
    pub(crate) queued: Option<Duration>,
    /// Head to the first byte of the answer.
    pub(crate) first_byte: Option<Duration>,
    /// Head to the first token; streams only, since a whole answer comes with its last token.
    pub(crate) ttft: Option<Duration>,
    /// Mean time between tokens of a stream.
    pub(crate) inter_token: Option<Duration>,
    /// Prompt tokens.
    pub(crate) input_tokens: Option<u64>,
    /// Prompt tokens that were in the server's cache.
    pub(crate) cached_tokens: Option<u64>,
    /// Generated tokens.
    pub(crate) output_tokens: Option<u64>,
}

impl Measured {
    pub(crate) fn of(record: &Record) -> Self {
        let since = |at: Moment| at.since(record.started);
        let usage = &record.usage;
        // A server may send several tokens in one event, so its own count comes first.
        let tokens = usage
            .tokens
            .completion_tokens
            .unwrap_or(usage.content_events);
        let gaps = u32::try_from(tokens.saturating_sub(1)).unwrap_or(u32::MAX);
        let spoken = usage.first_token_at.zip(usage.last_token_at);
        Self {
            duration: since(record.finished),
            queued: record
                .stay
                .filter(|stay| stay.until != Some(stay.since))
                .map(|stay| stay.waited(record.finished)),
            first_byte: record.first_byte.map(since),
            ttft: usage.first_token_at.map(since),
            inter_token: spoken
                .filter(|_| gaps > 0)
                .map(|(first, last)| last.since(first) / gaps),
            input_tokens: usage.tokens.prompt_tokens,
            cached_tokens: usage.tokens.cached_tokens,
            output_tokens: usage.tokens.completion_tokens,
        }
    }
}

/// Milliseconds with three decimals, as logs and traces show them.
pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// An exchange with everything in it: retried once, streamed, picked among three.
#[cfg(test)]
pub(crate) fn test_record() -> Record {
    use std::time::SystemTime;

    use forebay_decide::report::{Counts, Reason, Sticky};
    use forebay_decide::{Considered, Exclusion, Knowledge, Report};
    use forebay_dialect::observe::TokenCounts;
    use forebay_dialect::{Api, Usage};
    use forebay_model::ObjectName;
    use forebay_model::picker::{Scorer, WeightedScorer};
    use smallvec::smallvec;

    use crate::record::{Ending, Stay, StayEnd, Try};

    let endpoint = |n: u8| ([10, 0, 0, n], 8000).into();
    let considered =
        |n, excluded: Option<Exclusion>, scores: &[f32], total, hit_blocks, prefill_ms| {
            let scores = scores.iter().copied().collect();
            Considered {
                address: endpoint(n),
                excluded,
                scores,
                total,
                hit_blocks,
                hit_tokens: hit_blocks * 64,
                knowledge: Knowledge::Sent,
                prefill_ms,
                predicted: None,
            }
        };
    let at = |ms: u64| Moment::from_millis(1_000 + ms);
    Record {
        id: "req-1".into(),
        started: at(0),
        // 2026-11-01T12:00:00.250Z
        started_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_793_534_400_250),
        finished: at(750),
        client: ([192, 0, 2, 9], 40_000).into(),
        method: http::Method::POST,
        path: "/v1/chat/completions".into(),
        host: "llm.example.com".into(),
        traceparent: None,
        trace: None,
        gateway: Some(ObjectName::new("default", "edge").into()),
        route: Some(ObjectName::new("default", "chat-route").into()),
        api: Api::ChatCompletions,
        model: Some("llama".into()),
        model_served: None,
        stream: true,
        http2: false,
        grpc: false,
        grpc_status: None,
        pool: Some(ObjectName::new("default", "chat").into()),
        priority: 0,
        stay: Some(Stay {
            since: at(1),
            until: Some(at(26)),
            end: StayEnd::Sent,
            ahead: 3,
            saturation: 1.125,
        }),
        consultation: None,
        tries: smallvec![
            Try {
                endpoint: endpoint(1),
                failure: Some("connect")
            },
            Try {
                endpoint: endpoint(2),
                failure: None
            },
        ],
        report: Some(Box::new(Report {
            profile: None,
            scorers: [
                WeightedScorer {
                    scorer: Scorer::Queue,
                    weight: 2.0,
                },
                WeightedScorer {
                    scorer: Scorer::Prefix,
                    weight: 3.0,
                },
            ]
            .into(),
            reason: Reason::BestTotal,
            sticky: Sticky::Idle,
            panic: false,
            counts: Counts {
                candidates: 2,
                tried: 1,
                ..Counts::default()
            },
            prompt_blocks: 4,
            prompt_tokens: 256,
            considered: vec![
                considered(1, Some(Exclusion::Tried), &[], 0.0, 0, 0.0),
                considered(2, None, &[1.0, 0.5], 3.5, 2, 40.0),
                considered(3, None, &[0.5, 0.0], 1.0, 0, 90.0),
            ],
        })),
        pick_us: Some(14),
        status: 200,
        reason: None,
        bytes_in: 2_048,
        bytes_out: 6_000,
        first_byte: Some(at(45)),
        usage: Usage {
            tokens: TokenCounts {
                prompt_tokens: Some(120),
                completion_tokens: Some(30),
                total_tokens: Some(150),
                cached_tokens: Some(64),
            },
            first_token_at: Some(at(50)),
            last_token_at: Some(at(630)),
            content_events: 30,
            saw_done: true,
            saw_error: false,
            lines_cut: 0,
        },
        end: Ending::Complete,
    }
}
