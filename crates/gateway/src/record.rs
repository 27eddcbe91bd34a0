//! One record per exchange: what was asked, what was decided, how it ended.
//!
//! The phases fill it in; [`crate::telemetry::Desk::settle`] turns it into metrics, an access
//! log line, a span and an entry of `/debug/decisions`. Nothing else about a request is logged.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use forebay_decide::{GateRefusal, Report};
use forebay_dialect::{Api, Usage};
use forebay_model::{Moment, ObjectName};
use smallvec::SmallVec;

/// What one exchange was.
#[derive(Debug)]
pub struct Record {
    /// Request id: the client's `x-request-id`, or made here.
    pub id: Arc<str>,
    /// When the head had arrived.
    pub started: Moment,
    /// The same on the wall clock, for logs and spans.
    pub started_at: SystemTime,
    /// When the last byte left or the exchange broke.
    pub finished: Moment,
    /// The client.
    pub client: SocketAddr,
    /// Method.
    pub method: http::Method,
    /// Path without query.
    pub path: Box<str>,
    /// Host.
    pub host: Box<str>,
    /// W3C trace context of the client, if it sent one.
    pub traceparent: Option<Box<str>>,
    /// Our place in the trace, if the exchange is sampled: from `Telemetry::begin_trace`.
    pub trace: Option<crate::telemetry::TraceContext>,
    /// The Gateway.
    pub gateway: Option<Arc<ObjectName>>,
    /// The HTTPRoute.
    pub route: Option<Arc<ObjectName>>,
    /// The API that the path names.
    pub api: Api,
    /// The model that the client asked for.
    pub model: Option<Box<str>>,
    /// The model that the server saw, where a rewrite changed it.
    pub model_served: Option<Arc<str>>,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// Whether the client spoke HTTP/2.
    pub http2: bool,
    /// Whether it spoke gRPC, so that a refusal is told in gRPC's way.
    pub grpc: bool,
    /// The `grpc-status` that it got.
    pub grpc_status: Option<u16>,
    /// The InferencePool.
    pub pool: Option<Arc<ObjectName>>,
    /// Priority of the objective.
    pub priority: i32,
    /// Its stay in the queue, if it could not go to the pool at once.
    pub stay: Option<Stay>,
    /// What the pool's own picker said, if it has one.
    pub consultation: Option<Box<Consultation>>,
    /// Every try, in order.
    pub tries: SmallVec<[Try; 2]>,
    /// The report of the (last) pick.
    pub report: Option<Box<Report>>,
    /// Microseconds that the pick took, hashing of the prompt included.
    pub pick_us: Option<u32>,
    /// Status that the client got; 0 when it left before.
    pub status: u16,
    /// Machine-readable reason of an answer made here.
    pub reason: Option<&'static str>,
    /// Request body bytes.
    pub bytes_in: u64,
    /// Response body bytes.
    pub bytes_out: u64,
    /// When the first response byte arrived from the endpoint.
    pub first_byte: Option<Moment>,
    /// Tokens and token times that the observer saw.
    pub usage: Usage,
    /// How it ended.
    pub end: Ending,
}

impl Default for Record {
    /// A record of nothing, to be filled in.
    fn default() -> Self {
        Self {
            id: Arc::from(""),
            started: Moment::ORIGIN,
            started_at: SystemTime::UNIX_EPOCH,
            finished: Moment::ORIGIN,
            client: SocketAddr::from(([0, 0, 0, 0], 0)),
            method: http::Method::GET,
            path: Box::default(),
            host: Box::default(),
            traceparent: None,
            trace: None,
            gateway: None,
            route: None,
            api: Api::Other,
            model: None,
            model_served: None,
            stream: false,
            http2: false,
            grpc: false,
            grpc_status: None,
            pool: None,
            priority: 0,
            stay: None,
            consultation: None,
            tries: SmallVec::new(),
            report: None,
            pick_us: None,
            status: 0,
            reason: None,
            bytes_in: 0,
            bytes_out: 0,
            first_byte: None,
            usage: Usage::default(),
            end: Ending::Complete,
        }
    }
}

/// A record that is being filled in, until it is taken.
#[derive(Debug)]
pub(crate) struct Draft(Option<Box<Record>>);

impl Draft {
    pub(crate) fn new(record: Record) -> Self {
        Self(Some(Box::new(record)))
    }

    /// Leaves a draft behind that must not be used any more.
    pub(crate) fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    pub(crate) fn is_open(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn into_inner(self) -> Option<Box<Record>> {
        self.0
    }
}

impl Deref for Draft {
    type Target = Record;

    fn deref(&self) -> &Record {
        self.0
            .as_deref()
            .expect("nobody reads a record that was taken")
    }
}

impl DerefMut for Draft {
    fn deref_mut(&mut self) -> &mut Record {
        let record = self.0.as_deref_mut();
        record.expect("nobody writes to a record that was taken")
    }
}

/// What happened to a request that came to a saturated pool.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Stay {
    /// When it came.
    pub since: Moment,
    /// When it went, or was refused; `None` if its client left first.
    pub until: Option<Moment>,
    /// What became of it.
    pub end: StayEnd,
    /// Requests that waited when it came, of its own priority or higher ones.
    pub ahead: u32,
    /// How full the pool was.
    pub saturation: f32,
}

impl Stay {
    /// How long it waited, in an exchange that ended at `finished`.
    #[must_use]
    pub fn waited(&self, finished: Moment) -> Duration {
        self.until.unwrap_or(finished).since(self.since)
    }
}

/// How a stay in the queue ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StayEnd {
    /// Its turn came.
    Sent,
    /// Its client left.
    ClientGone,
    /// The queue had no room for it, or not for long enough.
    Refused(GateRefusal),
    /// It was refused at once for its negative priority.
    Shed,
    /// The route's request timeout passed.
    TimedOut,
    /// The gateway was told to stop.
    Draining,
}

impl StayEnd {
    /// A short stable word for metrics and logs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::ClientGone => "client-gone",
            Self::Refused(why) => why.code(),
            Self::Shed => "shed",
            Self::TimedOut => "timed-out",
            Self::Draining => "draining",
        }
    }
}

/// What became of asking a picker outside.
#[derive(Clone, PartialEq, Debug)]
pub struct Consultation {
    /// Its Service...
    pub picker: Arc<ObjectName>,
    /// ...and port.
    pub port: u16,
    /// The replica that was asked last, if one could be reached.
    pub replica: Option<SocketAddr>,
    /// How it went.
    pub outcome: Consulted,
    /// How long it took, connecting included.
    pub took: Duration,
    /// The endpoints that it named and that could be used, best first.
    pub order: SmallVec<[SocketAddr; 3]>,
    /// What it named and could not be used, and why.
    pub dropped: Vec<(String, &'static str)>,
    /// What went wrong, or what it said beside.
    pub remark: Option<Box<str>>,
}

/// How asking a picker went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consulted {
    /// It chose.
    Picked,
    /// It answered the client itself, with this status.
    Answered(u16),
    /// It was of no use, for this reason.
    Failed(&'static str),
    /// The client left before it answered.
    ClientGone,
}

impl Consulted {
    /// A short stable word for metrics and logs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Picked => "picked",
            Self::Answered(_) => "answered",
            Self::Failed(why) => why,
            Self::ClientGone => "client-gone",
        }
    }
}

/// One try at one endpoint.
#[derive(Clone, Debug)]
pub struct Try {
    /// Where.
    pub endpoint: SocketAddr,
    /// Why it was given up; `None` for the one that served.
    pub failure: Option<&'static str>,
}

/// How an exchange ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// To its end.
    Complete,
    /// The client left first.
    ClientGone,
    /// The endpoint died after its first byte had been passed on.
    UpstreamDied,
    /// A time limit of the route or of the gateway.
    TimedOut,
    /// The pool's picker, which the response went through, failed or ended it.
    PickerFailed,
}

/// What one connection was that is no HTTP.
#[derive(Clone, Debug)]
pub struct StreamRecord {
    /// When its first message had arrived.
    pub started: Moment,
    /// The same on the wall clock.
    pub started_at: SystemTime,
    /// When it was closed.
    pub finished: Moment,
    /// The client.
    pub client: SocketAddr,
    /// The Gateway.
    pub gateway: Arc<ObjectName>,
    /// Its listener.
    pub listener: Arc<str>,
    /// The `TLSRoute`.
    pub route: Option<Arc<ObjectName>>,
    /// The server that the client named.
    pub server_name: Option<Box<str>>,
    /// Whether TLS ended here.
    pub terminated: bool,
    /// The endpoint that took it, or the last one that did not.
    pub endpoint: Option<SocketAddr>,
    /// Bytes from the client that went to the endpoint.
    pub bytes_in: u64,
    /// Bytes from the endpoint that went to the client.
    pub bytes_out: u64,
    /// Why it was closed from here.
    pub reason: Option<&'static str>,
    /// How it ended.
    pub end: Ending,
}
