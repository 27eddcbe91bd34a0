//! One exchange with a picker as a state machine: what has been sent, what each answer may do.
//!
//! Pure: neither clock nor connection. [`Protocol`] is told what goes out and fed what comes in, and
//! says what is to be done; whoever breaks the rules is told which one. Bodies travel as in the mode
//! `FULL_DUPLEX_STREAMED`: what comes back is the body from there on. A picker that confirms pieces
//! without sending them back, as in `STREAMED`, is understood as well.
//!
//! ```text
//! request:  head sent ─ body sent ─ [trailers sent] ─ answered: head, body, trailers, in this order
//! response: the same, once an endpoint has answered
//! at any time: an immediate answer, or the end of the stream
//! ```

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use forebay_wire::Struct;
use forebay_wire::ext_proc::body_mutation::Mutation;
use forebay_wire::ext_proc::common_response::ResponseStatus;
use forebay_wire::ext_proc::processing_mode::BodySendMode;
use forebay_wire::ext_proc::processing_response::Response;
use forebay_wire::ext_proc::{
    BodyMutation, BodyResponse, HeaderMutation, HeadersResponse, ImmediateResponse, ProcessingMode,
    ProcessingResponse, StreamedBodyResponse, TrailersResponse,
};

/// Which half of an exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// What the client sent.
    Request,
    /// What the endpoint answered.
    Response,
}

/// What a message of the picker asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Nothing: a kind of message that is newer than this program, or one that came too late to
    /// matter.
    Nothing,
    /// The head goes on, changed like this.
    Head(Box<HeadAnswer>),
    /// This piece of the body goes on; it may be empty.
    Body(Bytes),
    /// The trailers go on, changed like this.
    Trailers(HeaderMutation),
    /// The client gets this, and the exchange is over.
    Immediate(Box<ImmediateResponse>),
}

/// The answer to a head.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct HeadAnswer {
    /// Fields to set and to remove.
    pub mutation: HeaderMutation,
    /// The body in place of the one that was sent (`CONTINUE_AND_REPLACE`).
    pub replaced: Option<Bytes>,
    /// What the picker leaves for those who come after it.
    pub metadata: Option<Struct>,
    /// Which parts of the exchange it wants to see from here on.
    pub mode: Option<ProcessingMode>,
}

/// What the picker did against the rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// It answered what it was not asked, or had answered before.
    Unasked(&'static str),
    /// It sent a body back before it had answered the head.
    BodyBeforeHead,
    /// It sent some pieces of a body back and merely confirmed others.
    MixedBody,
    /// It ended a body before the end had been sent.
    EndTooEarly,
    /// It went on with a body that it had ended.
    AfterEnd,
    /// It made a body longer than this many bytes, which is the limit.
    TooLong(usize),
    /// It ended the stream with something unanswered.
    Unanswered(&'static str),
    /// It set a field that cannot be one, or more fields than a head may have.
    Field(String),
    /// It named two different destinations.
    Contradiction(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unasked(what) => write!(f, "it sent {what}, which it was not asked for"),
            Self::BodyBeforeHead => f.write_str("it sent a body back before it answered the head"),
            Self::MixedBody => {
                f.write_str("it sent pieces of a body back and merely confirmed others")
            }
            Self::EndTooEarly => f.write_str("it ended a body before it had seen the end"),
            Self::AfterEnd => f.write_str("it went on with a body that it had ended"),
            Self::TooLong(limit) => write!(f, "it made a body longer than {limit} bytes"),
            Self::Unanswered(what) => write!(f, "it ended the stream before it answered {what}"),
            Self::Field(what) => write!(f, "it set a field that cannot be set: {what}"),
            Self::Contradiction(what) => write!(f, "it named two destinations: {what}"),
        }
    }
}

impl std::error::Error for Violation {}

/// One exchange.
#[derive(Debug)]
pub struct Protocol {
    request: Half,
    response: Half,
    answered: bool,
    ended: bool,
}

impl Protocol {
    /// Nothing sent yet. A request's body may come back as at most `request_bytes_max` bytes.
    #[must_use]
    pub fn new(request_bytes_max: usize) -> Self {
        Self {
            request: Half::new(Side::Request, request_bytes_max),
            // It is passed on as it comes and takes no memory by its length.
            response: Half::new(Side::Response, usize::MAX),
            answered: false,
            ended: false,
        }
    }

    /// The head goes out; `end` if nothing follows it.
    pub fn send_head(&mut self, side: Side, end: bool) {
        let half = self.half(side);
        half.head = Part::Sent;
        if end {
            half.body.end_unsent();
        }
    }

    /// A piece of the body goes out; `end` if it is the last thing of its side.
    pub fn send_body(&mut self, side: Side, piece: Bytes, end: bool) {
        self.half(side).body.sent(piece, end);
    }

    /// Trailers go out, after the last piece of the body.
    pub fn send_trailers(&mut self, side: Side) {
        let half = self.half(side);
        half.trailers = Part::Sent;
        half.body.ended_by_trailers();
    }

    /// Takes a message of the picker.
    ///
    /// # Errors
    /// If the rules do not allow it. The exchange is over then.
    pub fn answer(&mut self, message: ProcessingResponse) -> Result<Step, Violation> {
        let Some(response) = message.response else {
            return Ok(Step::Nothing);
        };
        if self.ended {
            return Err(Violation::AfterEnd);
        }
        self.answered = true;
        let extras = (message.dynamic_metadata, message.mode_override);
        let step = match response {
            Response::RequestHeaders(head) => self.request.head(head, extras),
            Response::ResponseHeaders(head) => self.response.head(head, extras),
            Response::RequestBody(body) => self.request.body(body),
            Response::ResponseBody(body) => self.response.body(body),
            Response::RequestTrailers(trailers) => self.request.trailers(trailers),
            Response::ResponseTrailers(trailers) => self.response.trailers(trailers),
            Response::ImmediateResponse(immediate) => {
                self.ended = true;
                Ok(Step::Immediate(Box::new(immediate)))
            }
        };
        self.ended |= step.is_err();
        step
    }

    /// The picker ended the stream without an error: it is not interested in what is left.
    ///
    /// # Errors
    /// If what was sent of `side` cannot go on without an answer.
    pub fn close(&mut self, side: Side) -> Result<(), Violation> {
        self.ended = true;
        let half = self.half(side);
        if half.head == Part::Sent {
            return Err(Violation::Unanswered("the head"));
        }
        if !half.body.can_go_on() {
            return Err(Violation::Unanswered("the body"));
        }
        Ok(())
    }

    /// Whether the picker has said anything at all.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// Whether the head of `side` has been answered.
    #[must_use]
    pub fn has_head(&self, side: Side) -> bool {
        self.of(side).head == Part::Answered
    }

    /// Whether everything of `side` has been sent and answered.
    #[must_use]
    pub fn is_over(&self, side: Side) -> bool {
        let half = self.of(side);
        half.head == Part::Answered && half.body.is_over() && half.trailers != Part::Sent
    }

    /// Whether nothing but trailers is unanswered of `side`, which some pickers never answer.
    #[must_use]
    pub fn awaits_trailers(&self, side: Side) -> bool {
        let half = self.of(side);
        half.head == Part::Answered
            && half.trailers == Part::Sent
            && half.body.unanswered.iter().all(Bytes::is_empty)
    }

    /// The body of `side` on its way.
    #[must_use]
    pub fn body(&self, side: Side) -> &Echo {
        &self.of(side).body
    }

    /// Lets the body of `side` go on as it was sent: what is not answered will not be. Gives the
    /// pieces that are still to go on; `None` if they cannot be told, because the picker has sent
    /// something else back.
    pub fn give_up_body(&mut self, side: Side) -> Option<VecDeque<Bytes>> {
        self.half(side).body.give_up()
    }

    fn of(&self, side: Side) -> &Half {
        match side {
            Side::Request => &self.request,
            Side::Response => &self.response,
        }
    }

    fn half(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }
}

/// Whether `mode` leaves bodies of responses out.
#[must_use]
pub fn wants_no_body(mode: &ProcessingMode) -> bool {
    mode.response_body_mode() == BodySendMode::None
}

/// A head, or trailers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Unsent,
    Sent,
    Answered,
}

#[derive(Debug)]
struct Half {
    side: Side,
    head: Part,
    body: Echo,
    trailers: Part,
}

impl Half {
    fn new(side: Side, bytes_max: usize) -> Self {
        Self {
            side,
            head: Part::Unsent,
            body: Echo::new(bytes_max),
            trailers: Part::Unsent,
        }
    }

    fn unasked(&self, request: &'static str, response: &'static str) -> Violation {
        Violation::Unasked(match self.side {
            Side::Request => request,
            Side::Response => response,
        })
    }

    fn head(
        &mut self,
        answer: HeadersResponse,
        (metadata, mode): (Option<Struct>, Option<ProcessingMode>),
    ) -> Result<Step, Violation> {
        if self.head != Part::Sent {
            return Err(self.unasked("an answer to the request", "an answer to the response"));
        }
        self.head = Part::Answered;
        let common = answer.response.unwrap_or_default();
        let replaces = common.status() == ResponseStatus::ContinueAndReplace;
        let whole = common.body_mutation.and_then(|m| m.mutation);
        let replaced = match whole.filter(|_| replaces) {
            Some(Mutation::Body(bytes)) => Some(bytes),
            Some(Mutation::ClearBody(true)) => Some(Bytes::new()),
            Some(Mutation::ClearBody(false) | Mutation::StreamedResponse(_)) | None => None,
        };
        // Of a request the whole body is on its way by now, and a picker that overrides another mode
        // and leaves this one out means to send it back all the same.
        let unwanted = self.side == Side::Response && mode.as_ref().is_some_and(wants_no_body);
        if let Some(bytes) = &replaced
            && bytes.len() > self.body.bytes_max
        {
            return Err(Violation::TooLong(self.body.bytes_max));
        }
        if replaces || (unwanted && self.body.is_untouched()) {
            self.body.unwanted = true;
        }
        Ok(Step::Head(Box::new(HeadAnswer {
            mutation: common.header_mutation.unwrap_or_default(),
            replaced,
            metadata,
            mode,
        })))
    }

    fn body(&mut self, answer: BodyResponse) -> Result<Step, Violation> {
        let mutation = answer.response.and_then(|common| common.body_mutation);
        let mutation = mutation.and_then(|BodyMutation { mutation }| mutation);
        match self.head {
            Part::Unsent => {
                return Err(self.unasked("a request's body", "a response's body"));
            }
            // A confirmation changes nothing and may come first.
            Part::Sent if mutation.is_some() => return Err(Violation::BodyBeforeHead),
            Part::Sent | Part::Answered => {}
        }
        self.body.answer(mutation)
    }

    fn trailers(&mut self, answer: TrailersResponse) -> Result<Step, Violation> {
        if self.trailers != Part::Sent {
            return Err(self.unasked("a request's trailers", "a response's trailers"));
        }
        if self.head != Part::Answered {
            return Err(Violation::BodyBeforeHead);
        }
        self.trailers = Part::Answered;
        self.body.over = true;
        Ok(Step::Trailers(answer.header_mutation.unwrap_or_default()))
    }
}

/// One body on its way through the picker.
#[derive(Debug)]
pub struct Echo {
    /// Pieces that were sent and for which no answer stands yet.
    unanswered: VecDeque<Bytes>,
    outstanding_bytes: usize,
    /// Bytes that came back.
    passed_bytes: usize,
    bytes_max: usize,
    style: Option<Style>,
    /// What came back is not what was sent.
    changed: bool,
    end: End,
    /// Nothing more comes back.
    over: bool,
    /// The picker does not want it; answers to pieces that were on their way do not matter.
    unwanted: bool,
}

/// How the picker answers pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Style {
    /// It sends them back.
    Streamed,
    /// It says of each what becomes of it.
    Confirmed,
}

/// What of the end of a body has been sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Unsent,
    Sent,
    /// By way of trailers.
    Trailers,
}

impl Echo {
    fn new(bytes_max: usize) -> Self {
        Self {
            unanswered: VecDeque::new(),
            outstanding_bytes: 0,
            passed_bytes: 0,
            bytes_max,
            style: None,
            changed: false,
            end: End::Unsent,
            over: false,
            unwanted: false,
        }
    }

    fn sent(&mut self, piece: Bytes, end: bool) {
        self.outstanding_bytes += piece.len();
        // Empty pieces are confirmed like others.
        self.unanswered.push_back(piece);
        if end {
            self.end = End::Sent;
        }
    }

    /// There is no body.
    fn end_unsent(&mut self) {
        self.end = End::Sent;
        self.over = true;
    }

    fn ended_by_trailers(&mut self) {
        self.end = End::Trailers;
    }

    fn answer(&mut self, mutation: Option<Mutation>) -> Result<Step, Violation> {
        if self.unwanted {
            return Ok(Step::Nothing);
        }
        if self.over {
            return Err(Violation::AfterEnd);
        }
        let style = match mutation {
            Some(Mutation::StreamedResponse(_)) => Style::Streamed,
            Some(Mutation::Body(_) | Mutation::ClearBody(_)) | None => Style::Confirmed,
        };
        if *self.style.get_or_insert(style) != style {
            return Err(Violation::MixedBody);
        }
        // Checked first: an answer that breaks the rules must not take anything off what was sent,
        // which goes on without the picker then.
        self.check(mutation.as_ref())?;
        let bytes = match mutation {
            Some(Mutation::StreamedResponse(piece)) => self.streamed(piece),
            Some(Mutation::Body(bytes)) => self.confirmed(Some(bytes))?,
            Some(Mutation::ClearBody(true)) => self.confirmed(Some(Bytes::new()))?,
            Some(Mutation::ClearBody(false)) | None => self.confirmed(None)?,
        };
        self.outstanding_bytes = self.unanswered.iter().map(Bytes::len).sum();
        self.passed_bytes = self.passed_bytes.saturating_add(bytes.len());
        Ok(Step::Body(bytes))
    }

    fn check(&self, mutation: Option<&Mutation>) -> Result<(), Violation> {
        let length = match mutation {
            Some(Mutation::StreamedResponse(piece)) => {
                if piece.end_of_stream && self.end == End::Unsent {
                    return Err(Violation::EndTooEarly);
                }
                piece.body.len()
            }
            Some(Mutation::Body(bytes)) => bytes.len(),
            Some(Mutation::ClearBody(true)) => 0,
            Some(Mutation::ClearBody(false)) | None => {
                self.unanswered.front().map_or(0, Bytes::len)
            }
        };
        if self.passed_bytes.saturating_add(length) > self.bytes_max {
            return Err(Violation::TooLong(self.bytes_max));
        }
        Ok(())
    }

    fn streamed(&mut self, piece: StreamedBodyResponse) -> Bytes {
        self.compare(&piece.body);
        if piece.end_of_stream {
            self.changed |= self.unanswered.iter().any(|piece| !piece.is_empty());
            self.unanswered.clear();
            self.over = true;
        }
        piece.body
    }

    /// Takes what comes back off what was sent, as long as they are the same.
    fn compare(&mut self, back: &[u8]) {
        let mut back = back;
        while !back.is_empty() && !self.changed {
            let Some(front) = self.unanswered.front_mut() else {
                self.changed = true;
                break;
            };
            let n = front.len().min(back.len());
            self.changed = front[..n] != back[..n];
            bytes::Buf::advance(front, n);
            back = &back[n..];
            if front.is_empty() {
                self.unanswered.pop_front();
            }
        }
        if self.changed {
            // Nobody can tell any more what of it is still to come.
            self.unanswered.clear();
        }
    }

    fn confirmed(&mut self, instead: Option<Bytes>) -> Result<Bytes, Violation> {
        let piece = self.unanswered.pop_front();
        let piece = piece.ok_or(Violation::Unasked("the answer to a piece of a body"))?;
        self.changed |= instead.is_some();
        self.over = self.end == End::Sent && self.unanswered.is_empty();
        Ok(instead.unwrap_or(piece))
    }

    fn give_up(&mut self) -> Option<VecDeque<Bytes>> {
        let known = self.can_go_on();
        self.unwanted = true;
        known.then(|| std::mem::take(&mut self.unanswered))
    }

    /// Whether it is known what is still to go on.
    fn can_go_on(&self) -> bool {
        !self.changed || self.style == Some(Style::Confirmed)
    }

    /// Whether everything has come back, or will not.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over || self.unwanted
    }

    /// Whether the end has been sent.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.end != End::Unsent
    }

    /// Whether no piece has been answered in any way.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.style.is_none()
    }

    /// Whether what came back so far is what was sent.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Bytes that were sent and have not come back. Once something else comes back, those that were
    /// sent since the last piece of that.
    #[must_use]
    pub fn outstanding_bytes(&self) -> usize {
        self.outstanding_bytes
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
