//! Passing a response on: bytes go through untouched, tokens and times are observed on the side.
//!
//! A [`Relay`] owns everything that must be settled when the response ends, however it ends: to
//! its end, by the endpoint's death, by a time limit, or because the client left (a drop).

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use forebay_decide::{End, EndKind, FailureKind};
use forebay_dialect::error::ErrorBody;
use forebay_dialect::{Api, ModelRestorer, ResponseObserver, WholeEvents};
use http::{HeaderMap, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::connection::Held;
use crate::pools::InFlight;
use crate::record::{Draft, Ending, Record};
use crate::upstream::{self, AnswerBody, SendError};
use crate::worker::Worker;
use crate::{clock, grpc};

/// The body of a response to a client.
#[derive(Debug)]
pub(crate) struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Empty,
    Full(Option<Bytes>),
    Relay(Box<Relay>),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self(Kind::Empty)
    }

    pub(crate) fn full(bytes: Bytes) -> Self {
        Self(Kind::Full(Some(bytes)))
    }

    pub(crate) fn relay(relay: Relay) -> Self {
        Self(Kind::Relay(Box::new(relay)))
    }

    /// Bytes of a body made here.
    pub(crate) fn full_len(&self) -> u64 {
        match &self.0 {
            Kind::Full(Some(bytes)) => bytes.len() as u64,
            Kind::Full(None) | Kind::Empty | Kind::Relay(_) => 0,
        }
    }
}

/// A response in passing.
#[derive(Debug)]
pub(crate) struct Relay {
    body: AnswerBody,
    ready: VecDeque<Bytes>,
    trailers: Option<Frame<Bytes>>,
    observer: Option<ResponseObserver>,
    restorer: Option<ModelRestorer>,
    /// Of a stream to which an error event can be added.
    events: Option<WholeEvents>,
    over: bool,
    watchdog: Watchdog,
    settle: Settle,
}

/// What a relay is made of.
pub(crate) struct Passing {
    pub(crate) body: AnswerBody,
    /// The first frame, where it was awaited before the head went out.
    pub(crate) first: Option<Frame<Bytes>>,
    pub(crate) observer: Option<ResponseObserver>,
    pub(crate) restorer: Option<ModelRestorer>,
    pub(crate) sse: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) settle: Settle,
}

impl Relay {
    pub(crate) fn new(passing: Passing) -> Self {
        let limit = passing.settle.worker.shared.settings.stream_idle_timeout;
        // Within an announced length an added event would pass for content.
        let may_add = passing.sse && passing.body.length().is_none();
        let mut relay = Self {
            body: passing.body,
            ready: VecDeque::new(),
            trailers: None,
            observer: passing.observer,
            restorer: passing.restorer,
            events: may_add.then(WholeEvents::default),
            over: false,
            watchdog: Watchdog::new(limit, passing.deadline),
            settle: passing.settle,
        };
        if let Some(first) = passing.first {
            relay.take(first);
        }
        relay
    }

    /// Observes a frame and queues what goes out for it.
    fn take(&mut self, frame: Frame<Bytes>) {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => {
                if let Some(fields) = trailers.trailers_ref() {
                    self.settle.note_trailers(fields);
                }
                // Nothing follows trailers, and the client's side does not ask for more.
                self.finish(Ending::Complete, EndKind::Served);
                self.trailers = Some(trailers);
                return;
            }
        };
        let now = clock::now();
        let whole = self.settle.first_byte(now) && self.is_complete();
        if let Some(observer) = &mut self.observer {
            if whole {
                observer.push_whole(&data, now);
            } else {
                observer.push(&data, now);
            }
        }
        match &mut self.restorer {
            Some(restorer) => {
                let mut pieces = Vec::new();
                restorer.push(data, &mut pieces);
                pieces.into_iter().for_each(|piece| self.queue(piece));
            }
            None => self.queue(data),
        }
        if self.is_complete() {
            self.finish(Ending::Complete, EndKind::Served);
        }
    }

    /// Whether everything that the endpoint announced has been read.
    fn is_complete(&self) -> bool {
        match &self.body {
            AnswerBody::H1(body) => body.is_finished(),
            AnswerBody::H2(_)
            | AnswerBody::Outside(_)
            | AnswerBody::Upgraded(_)
            | AnswerBody::Done => false,
        }
    }

    /// Queues bytes, once the event that they are of is whole.
    fn queue(&mut self, data: Bytes) {
        let before = self.ready_bytes();
        match &mut self.events {
            Some(events) => events.push(data, &mut self.ready),
            None => self.ready.push_back(data),
        }
        // Counted before they leave: the exchange may be settled with the last of them.
        self.settle.bytes_out(self.ready_bytes() - before);
    }

    /// Queues what was held back.
    fn flush(&mut self) {
        if let Some(mut restorer) = self.restorer.take() {
            let mut pieces = Vec::new();
            restorer.finish(&mut pieces);
            pieces.into_iter().for_each(|piece| self.queue(piece));
        }
        if let Some(mut events) = self.events.take() {
            let before = self.ready_bytes();
            events.finish(&mut self.ready);
            self.settle.bytes_out(self.ready_bytes() - before);
        }
    }

    fn ready_bytes(&self) -> usize {
        self.ready.iter().map(Bytes::len).sum()
    }

    /// Settles the exchange, once.
    fn finish(&mut self, ending: Ending, kind: EndKind) {
        if !self.over {
            self.over = true;
            self.flush();
            let observer = self.observer.take();
            self.settle.now(ending, kind, observer);
        }
    }

    /// The response broke in the middle. A stream says so in its own language and ends, without the
    /// event that was under way; any other body is cut off, which its framing makes visible.
    fn broke(&mut self, error: SendError) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        let (ending, kind) = match error {
            SendError::Timeout(_) => (Ending::TimedOut, EndKind::Failed(FailureKind::Timeout)),
            SendError::ClientBody(_) => (Ending::ClientGone, EndKind::Cancelled),
            SendError::ClientStalled(_) => (Ending::TimedOut, EndKind::Cancelled),
            SendError::Picker(_) => (Ending::PickerFailed, EndKind::Cancelled),
            SendError::Connect(_)
            | SendError::Tls(_)
            | SendError::Reset(_)
            | SendError::Protocol(_) => (Ending::UpstreamDied, EndKind::Failed(FailureKind::Reset)),
        };
        let may_add = self.events.take().is_some_and(WholeEvents::break_off);
        if may_add {
            // What it holds back is of the event that will not be whole.
            self.restorer = None;
        }
        // Within an announced length nothing can follow.
        let grpc = self.body.length().is_none()
            && self.settle.ends_in_trailers()
            && ending != Ending::ClientGone;
        if grpc {
            let code = match ending {
                Ending::TimedOut => grpc::Code::DeadlineExceeded,
                Ending::Complete
                | Ending::ClientGone
                | Ending::UpstreamDied
                | Ending::PickerFailed => grpc::Code::Unavailable,
            };
            let trailers = grpc::trailers(code, &format!("the stream broke: {error}"));
            self.settle.note_trailers(&trailers);
            self.trailers = Some(Frame::trailers(trailers));
        }
        self.finish(ending, kind);
        if grpc {
            self.body = AnswerBody::Done;
            return Poll::Ready(self.pop().or_else(|| self.trailers.take().map(Ok)));
        }
        if !may_add {
            return Poll::Ready(Some(Err(error)));
        }
        let message = format!("the model server's stream broke: {error}");
        let event = ErrorBody {
            status: 502,
            code: Some("stream_interrupted"),
            message: &message,
            param: None,
            request_id: None,
        };
        self.ready
            .push_back(Bytes::from(event.render_event(self.settle.api)));
        self.body = AnswerBody::Done;
        Poll::Ready(self.pop())
    }

    fn pop(&mut self) -> Option<Result<Frame<Bytes>, SendError>> {
        let data = self.ready.pop_front()?;
        Some(Ok(Frame::data(data)))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        loop {
            if let Some(frame) = self.pop() {
                return Poll::Ready(Some(frame));
            }
            if let Some(trailers) = self.trailers.take() {
                return Poll::Ready(Some(Ok(trailers)));
            }
            match self.body.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.watchdog.progress();
                    self.take(frame);
                }
                Poll::Ready(Some(Err(error))) => return self.broke(error),
                Poll::Ready(None) => {
                    self.finish(Ending::Complete, EndKind::Served);
                    return Poll::Ready(self.pop());
                }
                Poll::Pending => match self.watchdog.poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(what) => {
                        let left = self.broke(SendError::Timeout(what));
                        self.body = AnswerBody::Done;
                        return left;
                    }
                },
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.finish(Ending::ClientGone, EndKind::Cancelled);
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = SendError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Kind::Relay(relay) => relay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Relay(relay) => {
                relay.over
                    && relay.ready.is_empty()
                    && relay.trailers.is_none()
                    && (relay.is_complete() || matches!(relay.body, AnswerBody::Done))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Relay(relay) if relay.restorer.is_some() => SizeHint::default(),
            Kind::Relay(relay) => {
                let ready = relay.ready_bytes() as u64;
                let left = relay.body.length().map(|left| left + ready);
                left.map_or_else(SizeHint::default, SizeHint::with_exact)
            }
        }
    }
}

impl std::error::Error for SendError {}

/// What happens at the end of an exchange: load is released, the record goes out.
#[derive(Debug)]
pub(crate) struct Settle {
    worker: Rc<Worker>,
    record: Draft,
    api: Api,
    flight: Option<InFlight>,
    /// The status that what came behind the body is alike to, if the endpoint blames itself there.
    fault: Option<u16>,
}

impl Settle {
    pub(crate) fn new(worker: Rc<Worker>, record: Draft, flight: Option<InFlight>) -> Self {
        let api = record.api;
        Self {
            worker,
            record,
            api,
            flight,
            fault: None,
        }
    }

    /// The API that was asked.
    pub(crate) fn api(&self) -> Api {
        self.api
    }

    /// Counts the client's connection for a tunnel, which its HTTP server gives up.
    pub(crate) fn hold_connection(&self) -> Held {
        Held::new(Rc::clone(&self.worker))
    }

    /// The record as it stands; `None` once the exchange is settled.
    pub(crate) fn record(&mut self) -> Option<&mut Record> {
        self.record.is_open().then(|| &mut *self.record)
    }

    /// Puts another flight in the place of the one that is booked, and gives that back.
    pub(crate) fn rebook(&mut self, flight: InFlight) -> Option<InFlight> {
        self.flight.replace(flight)
    }

    /// Whether the client looks for the outcome in trailers, and would see them.
    fn ends_in_trailers(&self) -> bool {
        self.record.is_open() && self.record.grpc && self.record.http2
    }

    fn note_trailers(&mut self, trailers: &HeaderMap) {
        if self.record.is_open() && self.record.grpc {
            self.fault = grpc::status(trailers).and_then(grpc::fault);
        }
        if self.ends_in_trailers() {
            self.record.grpc_status = grpc::status(trailers);
        }
    }

    /// How long a tunnel may be silent.
    pub(crate) fn tunnel_idle_timeout(&self) -> Duration {
        self.worker.shared.settings.tunnel_idle_timeout
    }

    /// Settles an exchange that became a tunnel.
    pub(crate) fn tunnel_closed(&mut self, ending: Ending, bytes_in: u64, bytes_out: u64) {
        if self.record.is_open() {
            self.record.bytes_in += bytes_in;
            self.record.bytes_out += bytes_out;
        }
        // What went wrong within a tunnel is not the endpoint's failure to answer.
        self.now(ending, EndKind::Served, None);
    }

    /// Notes the first byte of the response; true if this is it.
    pub(crate) fn first_byte(&mut self, now: forebay_model::Moment) -> bool {
        if !self.record.is_open() || self.record.first_byte.is_some() {
            return false;
        }
        self.record.first_byte = Some(now);
        // Only a stream's first byte tells when the prefill was over.
        if self.record.stream
            && let Some(flight) = &mut self.flight
        {
            flight.first_byte(now);
        }
        true
    }

    pub(crate) fn bytes_out(&mut self, bytes: usize) {
        if self.record.is_open() {
            self.record.bytes_out += bytes as u64;
        }
    }

    /// Settles the exchange, once.
    pub(crate) fn now(
        &mut self,
        ending: Ending,
        kind: EndKind,
        observer: Option<ResponseObserver>,
    ) {
        let Some(mut record) = self.record.take().into_inner() else {
            return;
        };
        let now = clock::now();
        if let Some(observer) = observer {
            record.usage = observer.finish(now);
        }
        if let Some(mut flight) = self.flight.take() {
            let kind = match (kind, self.fault.or_else(|| fault_of(&record))) {
                // An answer that nobody else could make good has failed all the same.
                (EndKind::Served, Some(status)) => EndKind::Failed(FailureKind::Status5xx(status)),
                (EndKind::Served | EndKind::Failed(_) | EndKind::Cancelled, _) => kind,
            };
            let tokens = &record.usage.tokens;
            // Most clients do not ask for the server's count; its events with content are close to it.
            let events = Some(record.usage.content_events).filter(|events| *events > 0);
            let count = |n: Option<u64>| n.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            let end = End {
                kind,
                prompt_tokens: count(tokens.prompt_tokens),
                cached_tokens: count(tokens.cached_tokens),
                output_tokens: count(tokens.completion_tokens.or(events)),
            };
            flight.finish(end, now);
        }
        record.finished = now;
        record.end = ending;
        self.worker.desk.settle(record);
    }
}

/// The status of an answer whose head blames the endpoint.
fn fault_of(record: &Record) -> Option<u16> {
    let status = StatusCode::from_u16(record.status).ok();
    let plain = status.filter(|status| upstream::is_fault(*status));
    plain
        .map(|status| status.as_u16())
        .or_else(|| grpc::fault(record.grpc_status?))
}

impl Drop for Settle {
    fn drop(&mut self) {
        self.now(Ending::ClientGone, EndKind::Cancelled, None);
    }
}

/// The time limits of a response. Costs nothing per frame: the timer is set once and looks at the
/// time of the last progress when it fires.
#[derive(Debug)]
struct Watchdog {
    idle_limit: Duration,
    deadline: Option<Instant>,
    last_progress: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watchdog {
    fn new(idle_limit: Duration, deadline: Option<Instant>) -> Self {
        Self {
            idle_limit,
            deadline,
            last_progress: None,
            sleep: None,
        }
    }

    fn progress(&mut self) {
        self.last_progress = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        loop {
            let fired = match &mut self.sleep {
                None => None,
                Some(sleep) => {
                    std::task::ready!(sleep.as_mut().poll(cx));
                    Some(sleep.deadline())
                }
            };
            if self
                .deadline
                .is_some_and(|at| fired.is_some_and(|fired| fired >= at))
            {
                return Poll::Ready("the route's request timeout");
            }
            let now = Instant::now();
            // The stretch of silence is counted from the first look after the last progress.
            let silent_since = *self.last_progress.get_or_insert(now);
            let idle_at = silent_since + self.idle_limit;
            if fired.is_some() && now >= idle_at {
                return Poll::Ready("the endpoint sent nothing for too long");
            }
            let next = self.deadline.map_or(idle_at, |at| at.min(idle_at));
            self.sleep = Some(Box::pin(tokio::time::sleep_until(next)));
        }
    }
}
