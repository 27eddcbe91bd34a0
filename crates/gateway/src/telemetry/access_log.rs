//! One line per exchange, and per connection that is no HTTP, written by a thread of its own.
//!
//! A line holds what is known about an exchange and never a header or a byte of a body: both carry
//! secrets. Workers hand the record over and go on; formatting and writing happen in the thread.
//! When whoever reads the log is slower than the traffic, lines are dropped and counted in
//! `forebay_access_log_lines_dropped_total`: a full pipe must not stop requests.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use super::{Measured, millis};
use crate::record::{Ending, Record, StreamRecord};

/// Records that wait for the writer (2 to 5 KiB each, so up to 40 MiB if nobody reads); later ones
/// are dropped.
pub const LINES_QUEUED_MAX: usize = 8_192;

/// Pause between two visits to the queue. A thread that waits in the queue would be woken, at a
/// system call each, by every single record.
const GATHER: Duration = Duration::from_millis(5);

/// Bytes gathered into one write.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// How lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// No log.
    Off,
    /// One JSON object per line.
    #[default]
    Json,
    /// For eyes.
    Text,
}

/// The queue to the writing thread.
#[derive(Debug)]
pub(super) struct AccessLog {
    queue: SyncSender<Message>,
    dropped: Counter,
}

#[derive(Debug)]
enum Message {
    Line(Arc<Record>),
    Stream(Box<StreamRecord>),
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Starts the writer; it ends when the log is dropped.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(
        format: Format,
        sink: Box<dyn Write + Send>,
        dropped: Counter,
    ) -> io::Result<Option<Self>> {
        if format == Format::Off {
            return Ok(None);
        }
        let (queue, lines) = mpsc::sync_channel(LINES_QUEUED_MAX);
        let lost = dropped.clone();
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&lines, format, sink, &lost))?;
        Ok(Some(Self { queue, dropped }))
    }

    /// Queues a line.
    pub(super) fn log(&self, record: &Arc<Record>) {
        self.queue(Message::Line(Arc::clone(record)));
    }

    /// Queues the line of a connection.
    pub(super) fn log_stream(&self, record: Box<StreamRecord>) {
        self.queue(Message::Stream(record));
    }

    fn queue(&self, line: Message) {
        if self.queue.try_send(line).is_err() {
            self.dropped.inc();
        }
    }

    /// Waits until everything queued so far is written, or `timeout` has passed.
    pub(super) fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let (done, written) = mpsc::sync_channel(1);
        let mut message = Message::Flush(done);
        loop {
            message = match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => back,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => return,
            };
            thread::sleep(GATHER);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if let Err(RecvTimeoutError::Timeout) = written.recv_timeout(left) {
            tracing::warn!("the access log's reader is too slow, its last lines are lost");
        }
    }
}

fn write_lines(
    queue: &Receiver<Message>,
    format: Format,
    mut sink: Box<dyn Write + Send>,
    lost: &Counter,
) {
    let mut lines = Vec::with_capacity(WRITE_BYTES_MAX + 4096);
    let mut count = 0;
    while let Ok(first) = queue.recv() {
        let mut waiting = None;
        for message in std::iter::once(first).chain(std::iter::from_fn(|| queue.try_recv().ok())) {
            match message {
                Message::Line(record) => {
                    let line = Line::of(&record);
                    append(&mut lines, format, &line, Line::text);
                    count += 1;
                }
                Message::Stream(record) => {
                    let line = StreamLine::of(&record);
                    append(&mut lines, format, &line, StreamLine::text);
                    count += 1;
                }
                Message::Flush(done) => {
                    waiting = Some(done);
                    break;
                }
            }
            if lines.len() >= WRITE_BYTES_MAX {
                write_out(&mut sink, &mut lines, &mut count, lost);
            }
        }
        write_out(&mut sink, &mut lines, &mut count, lost);
        match waiting {
            Some(done) => {
                let _given_up = done.try_send(());
            }
            None => thread::sleep(GATHER),
        }
    }
}

fn write_out(sink: &mut impl Write, lines: &mut Vec<u8>, count: &mut u64, lost: &Counter) {
    // A reader that went away (EPIPE) loses its lines; the gateway serves on.
    if !lines.is_empty() && sink.write_all(lines).and_then(|()| sink.flush()).is_err() {
        lost.inc_by(*count);
    }
    lines.clear();
    *count = 0;
}

fn append<L: Serialize>(
    lines: &mut Vec<u8>,
    format: Format,
    line: &L,
    text: impl Fn(&L) -> String,
) {
    match format {
        Format::Off => return,
        Format::Json => {
            serde_json::to_writer(&mut *lines, line).expect("plain values into memory");
        }
        Format::Text => lines.extend_from_slice(text(line).as_bytes()),
    }
    lines.push(b'\n');
}

/// What a line says, in the order it is said.
#[derive(Serialize, Debug)]
struct Line<'a> {
    time: String,
    id: &'a str,
    client: String,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    tries: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_served: Option<&'a str>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttft_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    itl_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pick_us: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    picker: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    picker_ms: Option<f64>,
    priority: i32,
    end: &'static str,
}

impl<'a> Line<'a> {
    fn of(record: &'a Record) -> Self {
        let measured = Measured::of(record);
        Self {
            time: rfc3339(record.started_at),
            id: &record.id,
            client: record.client.to_string(),
            method: record.method.as_str(),
            host: &record.host,
            path: &record.path,
            status: record.status,
            reason: record.reason,
            gateway: record.gateway.as_ref().map(ToString::to_string),
            route: record.route.as_ref().map(ToString::to_string),
            pool: record.pool.as_ref().map(ToString::to_string),
            endpoint: record.tries.last().map(|t| t.endpoint.to_string()),
            tries: record.tries.len(),
            model: record.model.as_deref(),
            model_served: record.model_served.as_deref(),
            stream: record.stream,
            grpc_status: record.grpc_status,
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            duration_ms: millis(measured.duration),
            queue_ms: measured.queued.map(millis),
            ttft_ms: measured.ttft.map(millis),
            itl_ms: measured.inter_token.map(millis),
            input_tokens: measured.input_tokens,
            cached_tokens: measured.cached_tokens,
            output_tokens: measured.output_tokens,
            pick_us: record.pick_us,
            picker: record.consultation.as_ref().map(|c| c.outcome.code()),
            picker_ms: record.consultation.as_ref().map(|c| millis(c.took)),
            priority: record.priority,
            end: ending(record.end),
        }
    }

    /// `time status method host/path -> endpoint key=value ...`, client texts escaped so that no
    /// request can forge a line.
    fn text(&self) -> String {
        let mut line = String::with_capacity(320);
        let (host, path) = (self.host.escape_debug(), self.path.escape_debug());
        let _infallible = write!(
            line,
            "{} {} {} {host}{path} -> {}",
            self.time,
            self.status,
            self.method,
            self.endpoint.as_deref().unwrap_or("-")
        );
        let mut pair = |key: &str, value: Option<&dyn std::fmt::Display>| {
            if let Some(value) = value {
                let _infallible = write!(line, " {key}={value}");
            }
        };
        let model = self.model.map(str::escape_debug);
        let served = self.model_served.map(str::escape_debug);
        pair("reason", self.reason.as_ref().map(|v| v as _));
        pair("route", self.route.as_ref().map(|v| v as _));
        pair("pool", self.pool.as_ref().map(|v| v as _));
        pair("tries", (self.tries > 1).then_some(&self.tries as _));
        pair("model", model.as_ref().map(|v| v as _));
        pair("served", served.as_ref().map(|v| v as _));
        pair("grpc", self.grpc_status.as_ref().map(|v| v as _));
        pair("in", Some(&self.bytes_in));
        pair("out", Some(&self.bytes_out));
        pair("ms", Some(&self.duration_ms));
        pair("queue_ms", self.queue_ms.as_ref().map(|v| v as _));
        pair("ttft_ms", self.ttft_ms.as_ref().map(|v| v as _));
        pair("itl_ms", self.itl_ms.as_ref().map(|v| v as _));
        pair("input_tokens", self.input_tokens.as_ref().map(|v| v as _));
        pair("cached_tokens", self.cached_tokens.as_ref().map(|v| v as _));
        pair("output_tokens", self.output_tokens.as_ref().map(|v| v as _));
        pair("pick_us", self.pick_us.as_ref().map(|v| v as _));
        pair("picker", self.picker.as_ref().map(|v| v as _));
        pair("picker_ms", self.picker_ms.as_ref().map(|v| v as _));
        pair(
            "priority",
            (self.priority != 0).then_some(&self.priority as _),
        );
        pair("end", (self.end != "complete").then_some(&self.end as _));
        pair("client", Some(&self.client));
        pair("id", Some(&self.id.escape_debug()));
        line
    }
}

/// What the line of a connection says. It has no method, by which readers tell it from an exchange.
#[derive(Serialize, Debug)]
struct StreamLine<'a> {
    time: String,
    client: String,
    /// `passthrough` or `terminate`, the words of the listener.
    tls: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    gateway: String,
    listener: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    end: &'static str,
}

impl<'a> StreamLine<'a> {
    fn of(record: &'a StreamRecord) -> Self {
        Self {
            time: rfc3339(record.started_at),
            client: record.client.to_string(),
            tls: if record.terminated {
                "terminate"
            } else {
                "passthrough"
            },
            server_name: record.server_name.as_deref(),
            reason: record.reason,
            gateway: record.gateway.to_string(),
            listener: &record.listener,
            route: record.route.as_ref().map(ToString::to_string),
            endpoint: record.endpoint.map(|address| address.to_string()),
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            duration_ms: millis(record.finished.since(record.started)),
            end: ending(record.end),
        }
    }

    /// `time tls name -> endpoint key=value ...`
    fn text(&self) -> String {
        let name = self.server_name.unwrap_or("-").escape_debug();
        let mut line = format!(
            "{} tls-{} {name} -> {}",
            self.time,
            self.tls,
            self.endpoint.as_deref().unwrap_or("-")
        );
        let mut pair = |key: &str, value: Option<&dyn std::fmt::Display>| {
            if let Some(value) = value {
                let _infallible = write!(line, " {key}={value}");
            }
        };
        pair("reason", self.reason.as_ref().map(|v| v as _));
        pair("route", self.route.as_ref().map(|v| v as _));
        pair("listener", Some(&self.listener));
        pair("in", Some(&self.bytes_in));
        pair("out", Some(&self.bytes_out));
        pair("ms", Some(&self.duration_ms));
        pair("end", (self.end != "complete").then_some(&self.end as _));
        pair("client", Some(&self.client));
        line
    }
}

/// The word for how an exchange ended, in logs, spans and `/debug/decisions`.
pub(crate) fn ending(end: Ending) -> &'static str {
    match end {
        Ending::Complete => "complete",
        Ending::ClientGone => "client-gone",
        Ending::UpstreamDied => "upstream-died",
        Ending::TimedOut => "timed-out",
        Ending::PickerFailed => "picker-failed",
    }
}

/// UTC with milliseconds.
pub(crate) fn rfc3339(time: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "-".to_owned(), |t| format!("{t:.3}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::telemetry::test_record;

    /// A pipe whose reader may refuse to read.
    #[derive(Clone, Default)]
    struct Pipe {
        written: Arc<Mutex<Vec<u8>>>,
        gate: Arc<Mutex<()>>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock().expect("no panic holds it");
            self.written
                .lock()
                .expect("no panic holds it")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, record: Record) -> String {
        let pipe = Pipe::default();
        let log = AccessLog::start(format, Box::new(pipe.clone()), Counter::default())
            .expect("thread")
            .expect("not off");
        log.log(&Arc::new(record));
        log.flush(Duration::from_secs(10));
        let bytes = pipe.written.lock().expect("no panic holds it").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_json_line_says_what_was_asked_and_how_it_went() {
        let line = logged(Format::Json, test_record());
        let value: serde_json::Value = serde_json::from_str(&line).expect("one JSON line");
        for (key, expected) in [
            ("time", serde_json::json!("2026-11-01T12:00:00.250Z")),
            ("path", "/v1/chat/completions".into()),
            ("status", 200.into()),
            ("pool", "default/chat".into()),
            ("endpoint", "10.0.0.2:8000".into()),
            ("tries", 2.into()),
            ("model", "llama".into()),
            ("duration_ms", serde_json::json!(750.0)),
            ("queue_ms", serde_json::json!(25.0)),
            ("ttft_ms", serde_json::json!(50.0)),
            ("input_tokens", 120.into()),
            ("cached_tokens", 64.into()),
            ("output_tokens", 30.into()),
            ("end", "complete".into()),
        ] {
            assert_eq!(value[key], expected, "{key} in {line}");
        }
    }

    #[test]
    fn a_text_line_cannot_be_forged_by_a_client() {
        let mut record = test_record();
        record.model = Some("x\n2026-01-01T00:00:00.000Z 200 GET".into());
        record.path = "/a\"\u{1b}[31m".into();
        let line = logged(Format::Text, record);
        assert_eq!(line.lines().count(), 1);
        assert!(!line.contains('\u{1b}'), "{line:?}");
        assert!(line.contains("model=x\\n2026"), "{line}");
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_waiting() {
        let (pipe, dropped) = (Pipe::default(), Counter::default());
        let log = AccessLog::start(Format::Json, Box::new(pipe.clone()), dropped.clone())
            .expect("thread")
            .expect("not off");
        let record = Arc::new(test_record());
        let shut = pipe.gate.lock().expect("fresh");
        // More than the queue and what the writer may have taken out of it before it got stuck.
        let sent = u64::try_from(LINES_QUEUED_MAX * 2 + WRITE_BYTES_MAX).expect("small");
        for _ in 0..sent {
            log.log(&record);
        }
        assert!(dropped.get() > 0);
        drop(shut);
        log.flush(Duration::from_secs(30));
        let lines = pipe
            .written
            .lock()
            .expect("no panic holds it")
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        assert_eq!(lines as u64 + dropped.get(), sent);
    }
}
