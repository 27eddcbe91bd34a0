//! Pickers outside of this process: endpoint pickers that speak Envoy's external processing.
//!
//! A pool with `endpointPickerRef` asks that picker where each request goes; see the section "A picker
//! outside" of `docs/picking.md`. [`consult`] shows it a request and brings back an ordered list of
//! endpoints with what it changed; [`Asked::answered`] shows it the response. What is allowed is in
//! [`protocol`], how messages travel in `call` and `link`
//! (`docs/decisions/008-pickers-over-h2.md`). Nothing here chooses an endpoint.

mod call;
pub mod destination;
mod immediate;
mod link;
pub mod message;
pub mod mutation;
mod passage;
pub mod protocol;
mod talk;
mod tls;
mod upload;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_model::Pool;
use forebay_model::pool::{ExternalPicker, FailureMode};
use forebay_wire::ext_proc::ImmediateResponse;
use http::{HeaderMap, Method, StatusCode};
use smallvec::SmallVec;
use tokio::time::Instant;

use self::call::{Call, CallError};
pub(crate) use self::immediate::Verbatim;
pub(crate) use self::link::Links;
pub use self::passage::Passage;
use self::protocol::{Protocol, Step, Violation};
use self::talk::{Heard, Talk};
use crate::budget::Buffered;
use crate::clock;
use crate::exchange::Exchange;
use crate::pools::PoolRuntime;
use crate::record::{Consultation, Consulted};
use crate::respond::Refusal;
use crate::upstream::Outgoing;

/// Bytes of a body in one message: what the protocol recommends at most.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// A picker that has answered a head, and says nothing at all of the body for this long after its
/// end, is taken to leave it as it is: some pickers look at heads alone. Those that send bodies back
/// begin right behind the head.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// Calls for one request: the first, and one to another replica if nothing was answered.
const CALLS_MAX: usize = 2;

/// How pickers outside are asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a picker may take for an answer; then it has failed.
    pub answer_timeout: Duration,
    /// How long connecting to one may take, TLS included.
    pub connect_timeout: Duration,
    /// Whether pickers are shown the bodies of responses, as the protocol has it, or their heads only.
    pub response_bodies: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            answer_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            response_bodies: true,
        }
    }
}

/// Why a picker was of no use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// No replica of it could be reached.
    Connect(String),
    /// It did not answer in time.
    Timeout,
    /// The call broke.
    Reset(String),
    /// It ended the call with an error.
    Status(String),
    /// It broke the protocol.
    Protocol(String),
    /// It named no endpoint that can be used.
    NoEndpoint(String),
    /// The gateway has no memory for what it sent, or keeps back.
    Full,
}

impl Failure {
    /// One word for metrics and logs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Timeout => "timeout",
            Self::Reset(_) => "reset",
            Self::Status(_) => "error",
            Self::Protocol(_) => "protocol",
            Self::NoEndpoint(_) => "no-endpoint",
            Self::Full => "gateway-busy",
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(why) => write!(f, "it cannot be reached: {why}"),
            Self::Timeout => f.write_str("it did not answer in time"),
            Self::Reset(why) => write!(f, "the call broke: {why}"),
            Self::Status(why) => write!(f, "it failed: {why}"),
            Self::Protocol(why) => write!(f, "it broke the protocol: {why}"),
            Self::NoEndpoint(why) => write!(f, "it named no endpoint that can be used: {why}"),
            Self::Full => f.write_str("the gateway's memory for bodies is in use"),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Broken(why) => Self::Reset(why),
            CallError::Status(why) => Self::Status(why),
            CallError::NotGrpc(why) => Self::Protocol(why),
        }
    }
}

impl From<Violation> for Failure {
    fn from(violation: Violation) -> Self {
        Self::Protocol(violation.to_string())
    }
}

/// A request that a picker is asked about.
pub(crate) struct Question<'a> {
    pub(crate) method: &'a Method,
    pub(crate) host: &'a str,
    /// Its fields as the client sent them, but for those that would choose in the picker's place.
    pub(crate) shown: &'a HeaderMap,
    /// The body as it would go to an endpoint.
    pub(crate) body: &'a Outgoing,
    /// What goes to an endpoint, and is changed as the picker says.
    pub(crate) headers: &'a mut HeaderMap,
    pub(crate) target: &'a mut String,
}

/// A picker that has chosen, with its call still open for the response.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Where the request goes, best first.
    pub(crate) order: Vec<SocketAddr>,
    /// The body in place of the client's, if the picker changed it.
    pub(crate) body: Option<Outgoing>,
    call: Option<Call>,
    protocol: Protocol,
    name: String,
    failure_mode: FailureMode,
    bodies: bool,
    /// What went wrong while an endpoint worked on the request.
    failed: Option<Failure>,
    _budget: Buffered,
}

/// Asks `picker`, the pool's, where a request goes. `None` if it failed and the pool says that the
/// built-in picker chooses then.
///
/// # Errors
/// If it failed and the pool says that requests are refused then, or if it answered the client itself.
pub(crate) async fn consult(
    ex: &mut Exchange,
    runtime: &Arc<PoolRuntime>,
    picker: &ExternalPicker,
    question: Question<'_>,
) -> Result<Option<Box<Asked>>, Refusal> {
    let began = clock::now();
    let mut notes = Consultation {
        picker: ex.live.name(&picker.service),
        port: picker.port,
        replica: None,
        outcome: Consulted::ClientGone,
        took: Duration::ZERO,
        order: SmallVec::new(),
        dropped: Vec::new(),
        remark: None,
    };
    // In the record before it is known how it ends: a client may leave meanwhile.
    ex.record.consultation = Some(Box::new(notes.clone()));
    let answer = ask(ex, runtime, picker, question, &mut notes).await;
    notes.took = clock::now().since(began);
    let result = match answer {
        Ok(Answer::Picked(asked)) => {
            notes.outcome = Consulted::Picked;
            notes.order = SmallVec::from_slice(&asked.order);
            Ok(Some(asked))
        }
        Ok(Answer::Immediate(immediate)) => {
            let refusal = immediate::refusal(*immediate, &name(picker), &mut notes.remark);
            notes.outcome = Consulted::Answered(refusal.status.as_u16());
            Err(refusal)
        }
        Err(_) if ex.time_left().is_some_and(|left| left.is_zero()) => {
            notes.outcome = Consulted::Failed("timeout");
            Err(Refusal::timed_out("time limit"))
        }
        Err(failure) => {
            notes.outcome = Consulted::Failed(failure.code());
            notes.remark = Some(failure.to_string().into());
            match picker.failure_mode {
                FailureMode::FailOpen => Ok(None),
                FailureMode::FailClose => Err(unavailable(&name(picker), &failure)),
            }
        }
    };
    warn(ex, &notes);
    ex.record.consultation = Some(Box::new(notes));
    result
}

/// Tells the log of a picker that fails, or names what is not there.
fn warn(ex: &Exchange, notes: &Consultation) {
    let failed = matches!(notes.outcome, Consulted::Failed(_));
    if (failed || !notes.dropped.is_empty()) && ex.worker.pickers.may_warn() {
        tracing::warn!(
            picker = %notes.picker,
            request = %ex.record.id,
            outcome = notes.outcome.code(),
            remark = notes.remark.as_deref().unwrap_or_default(),
            not_used = ?notes.dropped,
            "an endpoint picker failed, or named endpoints that cannot be used"
        );
    }
}

/// What a picker said.
enum Answer {
    Picked(Box<Asked>),
    Immediate(Box<ImmediateResponse>),
}

/// Asks one replica after the other, until one answers.
async fn ask(
    ex: &Exchange,
    runtime: &Arc<PoolRuntime>,
    picker: &ExternalPicker,
    mut question: Question<'_>,
    notes: &mut Consultation,
) -> Result<Answer, Failure> {
    let worker = &ex.worker;
    let settings = &worker.shared.settings.picker;
    let subset = restriction(&runtime.pool());
    let order = worker.pickers.order(picker);
    // Over all replicas.
    let connected_until = until(ex, settings.answer_timeout);
    let mut failure = Failure::Connect("its Service has no ready endpoint".to_owned());
    let mut calls = 0;
    // The first one once more at the end: a connection may have been closed while it was idle.
    for &address in order.iter().chain(order.first()) {
        if calls > 0 && notes.replica == Some(address) && failure == Failure::Timeout {
            break;
        }
        let call = match open(ex, picker, address, connected_until).await {
            Ok(call) => call,
            Err(error) => {
                failure = error;
                continue;
            }
        };
        notes.replica = Some(address);
        calls += 1;
        let mut talk = Talk::new(ex, call);
        let limit = until(ex, settings.answer_timeout);
        let heard = talk.request(ex, &question, subset.as_deref(), limit).await;
        if heard.is_ok() {
            worker.pickers.prefer(picker, address);
        }
        match heard {
            Ok(Heard::Immediate(immediate)) => {
                talk.call.farewell();
                return Ok(Answer::Immediate(immediate));
            }
            Ok(Heard::Chosen(head)) => {
                let chosen = talk.chosen(ex, runtime, picker, &mut question, head, notes);
                return chosen.map(Answer::Picked);
            }
            Err(error) => failure = error,
        }
        if failure == Failure::Timeout {
            worker.pickers.to(address, &picker.transport).suspect();
        }
        if talk.protocol.is_answered() || calls == CALLS_MAX {
            break;
        }
    }
    Err(failure)
}

/// A call to one replica.
async fn open(
    ex: &Exchange,
    picker: &ExternalPicker,
    address: SocketAddr,
    until: Instant,
) -> Result<Call, Failure> {
    let link = ex.worker.pickers.to(address, &picker.transport);
    let limit = ex.worker.shared.settings.picker.connect_timeout;
    let failed = |why: &str| Failure::Connect(format!("{address}: {why}"));
    let sender = within(until, link.sender(limit)).await;
    let sender = sender.ok_or_else(|| failed("no connection in time"))?;
    let sender = sender.map_err(|why| failed(&why))?;
    let authority = authority(picker);
    match within(until, Call::start(sender, scheme(picker), &authority)).await {
        Some(Ok(call)) => Ok(call),
        Some(Err(error)) => {
            // It was closed since it was last used.
            link.spent();
            Err(error.into())
        }
        None => Err(Failure::Timeout),
    }
}

/// The end of a wait of at most `limit`, within the route's own time.
fn until(ex: &Exchange, limit: Duration) -> Instant {
    let until = Instant::now() + limit;
    ex.deadline.map_or(until, |route| route.min(until))
}

/// The endpoints that a picker may choose from, where some of the pool are not ready. With none ready
/// it is not restricted: it may hold the request back until there is one.
fn restriction(pool: &Pool) -> Option<Vec<SocketAddr>> {
    if pool.endpoints.iter().all(|e| e.ready) {
        return None;
    }
    let ready: Vec<SocketAddr> = pool.ready().map(|e| e.address).collect();
    (!ready.is_empty()).then_some(ready)
}

fn is_ready(pool: &Pool, address: &SocketAddr) -> bool {
    let at = pool.endpoints.binary_search_by_key(address, |e| e.address);
    at.is_ok_and(|at| pool.endpoints[at].ready)
}

/// `namespace/name:port`.
fn name(picker: &ExternalPicker) -> String {
    format!("{}:{}", picker.service, picker.port)
}

fn authority(picker: &ExternalPicker) -> String {
    let service = &picker.service;
    format!("{}.{}.svc:{}", service.name, service.namespace, picker.port)
}

fn scheme(picker: &ExternalPicker) -> &'static str {
    use forebay_model::pool::PickerTransport;
    match picker.transport {
        PickerTransport::Plaintext => "http",
        PickerTransport::TlsUnverified | PickerTransport::Tls(_) => "https",
    }
}

/// For a request that goes nowhere because its picker failed.
fn unavailable(name: &str, failure: &Failure) -> Refusal {
    let message = format!(
        "endpoint picker {name}: {failure}; its pool refuses requests then (failureMode: FailClose)"
    );
    Refusal {
        retry_after_s: Some(1),
        ..Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "picker_unavailable",
            message,
        )
    }
}

/// Waits for `future`, but not beyond `until`.
async fn within<T>(until: Instant, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout_at(until, future).await.ok()
}

impl Asked {
    /// Waits for `attempt` at an endpoint, unless the picker ends the exchange meanwhile.
    pub(crate) async fn unless_ended<T>(
        &mut self,
        attempt: impl Future<Output = T>,
    ) -> Result<T, Refusal> {
        tokio::select! {
            biased;
            done = attempt => Ok(done),
            immediate = self.ended() => {
                Err(immediate::refusal(*immediate, &self.name, &mut None))
            }
        }
    }

    /// Returns once the picker answers the client itself, which it may do at any time: llm-d's evicts
    /// requests so.
    async fn ended(&mut self) -> Box<ImmediateResponse> {
        while let Some(call) = &mut self.call {
            let message = std::future::poll_fn(|cx| {
                let _goes_on = call.poll_flush(cx);
                call.poll_next(cx)
            });
            let step = match message.await {
                Ok(Some(message)) => self.protocol.answer(message).map_err(Failure::from),
                Ok(None) => {
                    self.call = None;
                    break;
                }
                Err(error) => Err(error.into()),
            };
            match step {
                Ok(Step::Immediate(immediate)) => return immediate,
                // Of the response nothing has been sent that the others could answer.
                Ok(Step::Nothing | Step::Head(_) | Step::Body(_) | Step::Trailers(_)) => {}
                Err(failure) => {
                    self.failed = Some(failure);
                    self.call = None;
                }
            }
        }
        std::future::pending().await
    }
}
