//! A response on its way through a picker: its head is shown before it goes to the client, and its
//! body, piece by piece, comes back from there.
//!
//! A [`Passage`] is a body like that of an endpoint and stands in its place, so that nothing behind it
//! knows of pickers. What was sent and has not come back is kept: while what comes back is what was
//! sent, the response can go on without a picker that fails.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use forebay_model::ObjectName;
use forebay_model::pool::FailureMode;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::Frame;
use tokio::time::{Instant, Sleep};

use super::call::Call;
use super::protocol::{self, HeadAnswer, Protocol, Side, Step};
use super::upload::pieces_of;
use super::{Asked, Failure, SILENCE_MAX, immediate, message, mutation, unavailable, within};
use crate::budget::Buffered;
use crate::exchange::Exchange;
use crate::inference::{Served, is_event_stream};
use crate::respond::Refusal;
use crate::upstream::{AnswerBody, SendError};
use crate::worker::Worker;

impl Asked {
    /// Shows the response to the picker that chose its endpoint, and gives what goes to the client.
    ///
    /// # Errors
    /// If the picker answers the client itself, or failed where the pool says that requests are refused
    /// then.
    pub(crate) async fn answered(
        mut self: Box<Self>,
        ex: &Exchange,
        served: Served,
    ) -> Result<Served, Refusal> {
        let Some(mut call) = self.call.take() else {
            return match self.failed.take() {
                Some(failure) => self.failed_at_head(ex, served, &failure),
                None => Ok(served),
            };
        };
        if matches!(served.answer.body, AnswerBody::Upgraded(_)) {
            call.farewell();
            return Ok(served);
        }
        let mut shown = Shown::of(&served, self.bodies);
        shown.send(&served, &mut call, &mut self.protocol);
        match self.head(ex, &mut call).await {
            Ok(Heard::Head(head, early)) => self.go_on(ex, served, call, shown, *head, early),
            // It is not interested in the rest.
            Ok(Heard::End) => Ok(served),
            Ok(Heard::Refused(refusal)) => {
                call.farewell();
                Err(refusal)
            }
            Err(failure) => self.failed_at_head(ex, served, &failure),
        }
    }

    /// Waits for the answer to the head.
    async fn head(&mut self, ex: &Exchange, call: &mut Call) -> Result<Heard, Failure> {
        let until = Instant::now() + ex.worker.shared.settings.picker.answer_timeout;
        let mut early = VecDeque::new();
        loop {
            let message = poll_fn(|cx| {
                let _goes_on = call.poll_flush(cx);
                call.poll_next(cx)
            });
            let message = within(until, message).await.ok_or(Failure::Timeout)??;
            let Some(message) = message else {
                // Nothing has come back, so that all of it goes on as it is.
                return Ok(Heard::End);
            };
            match self.protocol.answer(message)? {
                Step::Nothing | Step::Trailers(_) => {}
                Step::Body(piece) => early.push_back(piece),
                Step::Head(head) => return Ok(Heard::Head(head, early)),
                Step::Immediate(answer) => {
                    let refusal = immediate::refusal(*answer, &self.name, &mut None);
                    return Ok(Heard::Refused(refusal));
                }
            }
        }
    }

    fn go_on(
        self: Box<Self>,
        ex: &Exchange,
        mut served: Served,
        call: Call,
        shown: Shown,
        head: HeadAnswer,
        early: VecDeque<Bytes>,
    ) -> Result<Served, Refusal> {
        let mut headers = served.answer.headers.clone();
        match mutation::apply(&head.mutation, &mut headers) {
            Err(violation) => return self.failed_at_head(ex, served, &violation.into()),
            Ok(line) => {
                let status = line.status.and_then(|code| StatusCode::from_u16(code).ok());
                served.answer.status = status.unwrap_or(served.answer.status);
            }
        }
        served.answer.headers = headers;
        if let Some(bytes) = head.replaced {
            let length = HeaderValue::from(bytes.len());
            served.answer.headers.insert(header::CONTENT_LENGTH, length);
            served.answer.body = AnswerBody::Done;
            served.first = (!bytes.is_empty()).then(|| Frame::data(bytes));
            call.farewell();
            return Ok(served);
        }
        let unwanted = head.mode.as_ref().is_some_and(protocol::wants_no_body);
        if !shown.bodies || unwanted {
            call.farewell();
            return Ok(served);
        }
        // It may come back longer or shorter.
        served.answer.headers.remove(header::CONTENT_LENGTH);
        let source = std::mem::replace(&mut served.answer.body, AnswerBody::Done);
        let passage = Passage {
            source,
            first: served.first.take().filter(|_| !shown.first_sent),
            call: Some(call),
            protocol: self.protocol,
            ready: early,
            trailers: None,
            sent: shown.whole_sent,
            over: false,
            error: None,
            events: is_event_stream(&served.answer.headers),
            overdue: Overdue::default(),
            failure_mode: self.failure_mode,
            pool: ex.record.pool.clone(),
            held: Buffered::none(&ex.worker),
            worker: Rc::clone(&ex.worker),
        };
        served.answer.body = AnswerBody::Outside(Box::new(passage));
        Ok(served)
    }

    fn failed_at_head(
        &self,
        ex: &Exchange,
        served: Served,
        failure: &Failure,
    ) -> Result<Served, Refusal> {
        note(&ex.worker, ex.record.pool.as_deref(), failure.code());
        match self.failure_mode {
            FailureMode::FailOpen => Ok(served),
            FailureMode::FailClose => Err(unavailable(&self.name, failure)),
        }
    }
}

enum Heard {
    /// The answer, and what came before it.
    Head(Box<HeadAnswer>, VecDeque<Bytes>),
    End,
    Refused(Refusal),
}

/// What of a response is sent along with its head.
struct Shown {
    /// Its body will be shown as well.
    bodies: bool,
    /// There is no body.
    empty: bool,
    /// What has come of it goes at once: waiting for the answer to the head would cost a round trip.
    first_sent: bool,
    whole_sent: bool,
}

impl Shown {
    fn of(served: &Served, bodies: bool) -> Self {
        let empty = served.first.is_none() && is_over(&served.answer.body);
        let bodies = bodies && !empty;
        let has_data = served.first.as_ref().is_some_and(Frame::is_data);
        Self {
            bodies,
            empty,
            first_sent: bodies && has_data,
            whole_sent: bodies && has_data && is_over(&served.answer.body),
        }
    }

    fn send(&mut self, served: &Served, call: &mut Call, protocol: &mut Protocol) {
        let answer = &served.answer;
        let address = served.flight.address();
        message::response_head(
            answer.status,
            &answer.headers,
            address,
            self.empty,
            call.queue(),
        );
        protocol.send_head(Side::Response, self.empty);
        if self.first_sent
            && let Some(data) = served.first.as_ref().and_then(Frame::data_ref)
        {
            send(data.clone(), self.whole_sent, call.queue(), protocol);
        }
    }
}

/// Sends data in messages; an empty piece only where it says that this is the end.
fn send(data: Bytes, end: bool, queue: &mut BytesMut, protocol: &mut Protocol) {
    if data.is_empty() && end {
        message::body(Side::Response, Bytes::new(), true, queue);
        protocol.send_body(Side::Response, Bytes::new(), true);
    }
    let mut left = data.len();
    pieces_of(data, |piece| {
        left -= piece.len();
        let end = end && left == 0;
        message::body(Side::Response, piece.clone(), end, queue);
        protocol.send_body(Side::Response, piece, end);
    });
}

/// Whether it is known that nothing more comes.
fn is_over(body: &AnswerBody) -> bool {
    match body {
        AnswerBody::H1(body) => body.is_finished(),
        AnswerBody::H2(body) => body.is_finished(),
        AnswerBody::Upgraded(_) | AnswerBody::Done => true,
        AnswerBody::Outside(_) => false,
    }
}

/// Counts a failure of a picker behind the answer of an endpoint.
fn note(worker: &Worker, pool: Option<&ObjectName>, code: &'static str) {
    worker
        .shared
        .telemetry
        .metrics
        .picker_response_failed(pool, code);
    if worker.pickers.may_warn() {
        let pool = pool.map(ToString::to_string);
        tracing::warn!(
            pool,
            code,
            "an endpoint picker did not see a response to its end"
        );
    }
}

/// A body that comes by way of a picker.
#[derive(Debug)]
pub struct Passage {
    source: AnswerBody,
    /// A frame that was read and has not been sent.
    first: Option<Frame<Bytes>>,
    /// `None` once the rest comes straight from the source.
    call: Option<Call>,
    protocol: Protocol,
    /// What goes to the client next.
    ready: VecDeque<Bytes>,
    /// Behind the body.
    trailers: Option<HeaderMap>,
    /// The source is at its end, and the picker knows.
    sent: bool,
    /// Nothing more comes back.
    over: bool,
    /// What broke the source, told once everything before it has gone on.
    error: Option<SendError>,
    events: bool,
    overdue: Overdue,
    failure_mode: FailureMode,
    pool: Option<Arc<ObjectName>>,
    held: Buffered,
    worker: Rc<Worker>,
}

impl Passage {
    /// The next frame.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                if piece.is_empty() {
                    continue;
                }
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.over || (self.call.is_none() && self.sent) {
                if let Some(error) = self.error.take() {
                    return Poll::Ready(Some(Err(error)));
                }
                let trailers = self.trailers.take().map(|t| Ok(Frame::trailers(t)));
                self.over = true;
                return Poll::Ready(trailers);
            }
            if self.call.is_none() {
                if let Some(first) = self.first.take() {
                    return Poll::Ready(Some(Ok(first)));
                }
                return self.source.poll_frame(cx);
            }
            match self.exchange(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(failure)) => {
                    if let Err(error) = self.go_straight(failure.code(), self.failure_mode) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Poll::Pending => {
                    std::task::ready!(self.wait(cx));
                    let silent = self.is_silent();
                    let (code, mode) = if silent {
                        ("silent", FailureMode::FailOpen)
                    } else {
                        ("timeout", self.failure_mode)
                    };
                    if let Err(error) = self.go_straight(code, mode) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
    }

    /// Sends what there is, and takes one message; ready once something has changed.
    fn exchange(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.pump(cx)?;
        let Some(call) = &mut self.call else {
            return Poll::Ready(Ok(()));
        };
        let _goes_on = call.poll_flush(cx);
        let Some(message) = std::task::ready!(call.poll_next(cx))? else {
            self.protocol.close(Side::Response)?;
            let rest = self.protocol.give_up_body(Side::Response);
            self.ready.extend(rest.into_iter().flatten());
            self.call = None;
            return Poll::Ready(Ok(()));
        };
        self.overdue.progress();
        match self.protocol.answer(message)? {
            Step::Nothing | Step::Head(_) => {}
            Step::Body(piece) => self.ready.push_back(piece),
            Step::Trailers(changes) => {
                if let Some(trailers) = &mut self.trailers {
                    mutation::apply(&changes, trailers)?;
                }
            }
            Step::Immediate(_) => {
                // The head is with the client: all that is left is to break off.
                self.failure_mode = FailureMode::FailClose;
                return Poll::Ready(Err(Failure::Status("it ended the exchange".to_owned())));
            }
        }
        // Less than before: it is there.
        self.hold()?;
        if self.protocol.is_over(Side::Response)
            && let Some(call) = self.call.take()
        {
            self.over = true;
            call.farewell();
        }
        Poll::Ready(Ok(()))
    }

    /// Shows what the source has.
    fn pump(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let limit = self.worker.shared.settings.body_bytes_max;
        while !self.sent
            && let Some(call) = &mut self.call
            && call.has_room()
        {
            if self.protocol.body(Side::Response).outstanding_bytes() > limit {
                let why = format!("it keeps more than {limit} bytes of a response back");
                return Err(Failure::Protocol(why));
            }
            let frame = match self.first.take() {
                Some(first) => Some(Ok(first)),
                None => match self.source.poll_frame(cx) {
                    Poll::Ready(frame) => frame,
                    Poll::Pending => return Ok(()),
                },
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    self.sent = is_over(&self.source);
                    send(data, self.sent, call.queue(), &mut self.protocol);
                    self.hold()?;
                }
                Some(Ok(Err(frame))) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    self.sent = true;
                    message::response_trailers(&trailers, call.queue());
                    self.protocol.send_trailers(Side::Response);
                    self.trailers = Some(trailers);
                }
                Some(Err(error)) => {
                    // What there is goes on, and the error behind it.
                    let rest = self.protocol.give_up_body(Side::Response);
                    self.ready.extend(rest.into_iter().flatten());
                    self.error = Some(error);
                    self.sent = true;
                    self.call = None;
                }
                None => {
                    self.sent = true;
                    send(Bytes::new(), true, call.queue(), &mut self.protocol);
                }
            }
        }
        Ok(())
    }

    /// Accounts for what is kept until it comes back.
    fn hold(&mut self) -> Result<(), Failure> {
        let bytes = self.protocol.body(Side::Response).outstanding_bytes();
        if self.held.resize(bytes) {
            Ok(())
        } else {
            Err(Failure::Full)
        }
    }

    /// Lets the rest come straight from the source, if it can and may.
    fn go_straight(&mut self, code: &'static str, mode: FailureMode) -> Result<(), SendError> {
        note(&self.worker, self.pool.as_deref(), code);
        self.call = None;
        let rest = self.protocol.give_up_body(Side::Response);
        match (mode, rest) {
            (FailureMode::FailOpen, Some(rest)) => {
                self.ready.extend(rest);
                Ok(())
            }
            (FailureMode::FailOpen, None) | (FailureMode::FailClose, _) => {
                self.over = true;
                self.trailers = None;
                self.source = AnswerBody::Done;
                Err(SendError::Picker(code))
            }
        }
    }

    /// Whether the picker has said nothing at all of the body, or of what comes behind it.
    fn is_silent(&self) -> bool {
        self.protocol.body(Side::Response).is_untouched()
            || self.protocol.awaits_trailers(Side::Response)
    }

    /// Ready once the picker has had its time. Only where it cannot be waiting for more: a picker may
    /// gather a response to its end, but not a stream of events.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let outstanding = self.protocol.body(Side::Response).outstanding_bytes() > 0;
        if !(self.sent || (self.events && outstanding)) {
            self.overdue.progress();
            return Poll::Pending;
        }
        let limit = if self.is_silent() {
            SILENCE_MAX
        } else {
            self.worker.shared.settings.picker.answer_timeout
        };
        self.overdue.poll(cx, limit)
    }
}

/// A limit on silence. The timer is set once and looks at the time of the last progress when it fires.
#[derive(Debug, Default)]
struct Overdue {
    since: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Overdue {
    fn progress(&mut self) {
        self.since = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        loop {
            let due = since + limit;
            if let Some(sleep) = &mut self.sleep
                && sleep.deadline() <= due
            {
                std::task::ready!(sleep.as_mut().poll(cx));
                if Instant::now() >= due {
                    return Poll::Ready(());
                }
            }
            self.sleep = Some(Box::pin(tokio::time::sleep_until(due)));
        }
    }
}
