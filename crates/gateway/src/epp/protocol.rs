//! One call of external processing as a state machine: what has come, what is owed for it.
//!
//! Pure: neither clock nor connection nor choice. [`Machine::take`] is fed what the proxy sends and says
//! what is to be done; [`Machine::decided`] and its like are told what came of it; both leave the answers
//! that are due in a list, in the order in which they go out. Every mode in which a body may come is
//! understood, mixed as the proxy likes:
//!
//! ```text
//! FULL_DUPLEX_STREAMED   head and body are held, then: answer to the head, the body in pieces
//! STREAMED, eager        head and body are held, up to a bound, then: an answer to each part
//! STREAMED               decided on the head alone; each piece is confirmed as it comes
//! BUFFERED(_PARTIAL)     the head is confirmed, the answer to the body says where it goes
//! NONE, or no body       decided on the head alone
//! ```

use bytes::Bytes;
use forebay_wire::ext_proc::body_mutation::Mutation;
use forebay_wire::ext_proc::processing_mode::{BodySendMode, HeaderSendMode};
use forebay_wire::ext_proc::processing_request::Request;
use forebay_wire::ext_proc::processing_response::Response;
use forebay_wire::ext_proc::{
    BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpBody, ImmediateResponse,
    ProcessingMode, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
};

pub use super::parts::{Body, Decision, Head, Part, Replies, Reply, Step, Violation, Wanted};
use super::parts::{Held, changed, expected, of_head, pieces, replacement};
use crate::external::protocol::Side;

/// Bytes of a body that are held in the mode STREAMED, where the proxy sends without waiting for the
/// answer to the head. A proxy stops sending once its own buffer (1 MiB unless it is told otherwise) is
/// full of what is not answered, so that waiting for the end of a longer body would wait for ever; it is
/// picked for by its head.
pub const STREAMED_HELD_MAX: usize = 512 << 10;

/// How a body travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    None,
    Streamed,
    Buffered,
    Partial,
    Duplex,
}

impl Mode {
    fn of(mode: i32) -> Self {
        match BodySendMode::try_from(mode) {
            Ok(BodySendMode::Streamed) => Self::Streamed,
            Ok(BodySendMode::Buffered) => Self::Buffered,
            Ok(BodySendMode::BufferedPartial) => Self::Partial,
            Ok(BodySendMode::FullDuplexStreamed) => Self::Duplex,
            // What is newer than this program is picked for by its head.
            Ok(BodySendMode::None) | Err(_) => Self::None,
        }
    }

    fn on_the_wire(self) -> BodySendMode {
        match self {
            Self::None => BodySendMode::None,
            Self::Streamed => BodySendMode::Streamed,
            Self::Buffered => BodySendMode::Buffered,
            Self::Partial => BodySendMode::BufferedPartial,
            Self::Duplex => BodySendMode::FullDuplexStreamed,
        }
    }
}

/// Where the request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// Nothing has come.
    Start,
    /// Its body is held.
    Held,
    /// Its head has been confirmed; where it goes is answered to the body.
    Body,
    /// Somebody decides.
    Deciding,
    /// What comes is passed on.
    Flow,
    /// Nothing more may come but trailers.
    Over,
    /// The client has been answered.
    Refused,
}

/// One call.
#[derive(Debug)]
pub struct Machine {
    body_bytes_max: usize,
    at: At,
    request: Mode,
    /// As the proxy told.
    offered: Mode,
    /// As far as is known by now.
    response: Mode,
    /// The proxy told how it sends bodies.
    told: bool,
    held: Held,
    /// The body has ended.
    ended: bool,
    /// Trailers of the request have come and are not answered.
    trailers: bool,
    response_head: bool,
    /// Some of its body has come.
    response_body: bool,
    response_over: bool,
}

impl Machine {
    /// A call of which nothing has come. At most `body_bytes_max` bytes of a request are held.
    #[must_use]
    pub fn new(body_bytes_max: usize) -> Self {
        Self {
            body_bytes_max,
            at: At::Start,
            // As pickers are asked where nobody tells: the only mode that fits the protocol.
            request: Mode::Duplex,
            offered: Mode::Duplex,
            response: Mode::Duplex,
            told: false,
            held: Held::default(),
            ended: false,
            trailers: false,
            response_head: false,
            response_body: false,
            response_over: false,
        }
    }

    /// Takes a message.
    ///
    /// # Errors
    /// If it cannot come here.
    pub fn take(
        &mut self,
        message: ProcessingRequest,
        out: &mut Replies,
    ) -> Result<Step, Violation> {
        let ProcessingRequest {
            metadata_context: metadata,
            attributes,
            protocol_config,
            request,
            ..
        } = message;
        if self.at == At::Refused {
            return Ok(Step::Wait);
        }
        let head = |headers| {
            Box::new(Head {
                headers,
                metadata,
                attributes,
            })
        };
        match request {
            // A kind of message that is newer than this program.
            None => Ok(Step::Wait),
            Some(Request::RequestHeaders(headers)) => {
                self.head(head(headers), protocol_config, out)
            }
            Some(Request::RequestBody(body)) => self.body(body, out),
            Some(Request::RequestTrailers(_)) => self.trailers(out),
            Some(Request::ResponseHeaders(headers)) => self.answer_head(head(headers)),
            Some(Request::ResponseBody(body)) => self.answer_body(body),
            Some(Request::ResponseTrailers(_)) => {
                if std::mem::replace(&mut self.response_over, true) {
                    return Err(Violation::AfterEnd(Part::ResponseTrailers));
                }
                Ok(Step::ResponseOver)
            }
        }
    }

    /// Whether the proxy may have nothing to send before it is answered: it did not tell how it sends
    /// bodies, and none has come.
    #[must_use]
    pub fn may_wait_in_vain(&self) -> bool {
        self.at == At::Held && !self.told && self.held.pieces == 0
    }

    /// Nothing came for a while: decides on the head, where [`Self::may_wait_in_vain`].
    pub fn silent(&mut self) -> Step {
        if !self.may_wait_in_vain() {
            return Step::Wait;
        }
        self.at = At::Deciding;
        Step::Decide(None, Body::Unread)
    }

    /// Bytes of a request's body that are held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// Whether the response's body will be shown if nobody asks for something else.
    #[must_use]
    pub fn shows_response_bodies(&self) -> bool {
        self.response != Mode::None
    }

    fn head(
        &mut self,
        head: Box<Head>,
        config: Option<ProtocolConfiguration>,
        out: &mut Replies,
    ) -> Result<Step, Violation> {
        if self.at != At::Start {
            return Err(Violation::OutOfTurn(Part::RequestHead));
        }
        let mut eager = true;
        if let Some(config) = config {
            self.told = true;
            self.request = Mode::of(config.request_body_mode);
            self.offered = Mode::of(config.response_body_mode);
            self.response = self.offered;
            eager = config.send_body_without_waiting_for_header_response;
        }
        self.at = At::Deciding;
        if head.headers.end_of_stream {
            self.ended = true;
            self.request = Mode::None;
            return Ok(Step::Decide(Some(head), Body::Empty));
        }
        match self.request {
            Mode::None => Ok(Step::Decide(Some(head), Body::Unread)),
            Mode::Streamed if !eager => Ok(Step::Decide(Some(head), Body::Unread)),
            Mode::Duplex | Mode::Streamed => {
                self.at = At::Held;
                self.held.expected = expected(&head.headers).min(self.body_bytes_max);
                Ok(Step::Head(head))
            }
            Mode::Buffered | Mode::Partial => {
                self.at = At::Body;
                out.push(Reply::Pass(Part::RequestHead));
                Ok(Step::Head(head))
            }
        }
    }

    fn body(&mut self, body: HttpBody, out: &mut Replies) -> Result<Step, Violation> {
        match self.at {
            At::Start | At::Deciding => Err(Violation::OutOfTurn(Part::RequestBody)),
            At::Over => Err(Violation::AfterEnd(Part::RequestBody)),
            At::Refused => Ok(Step::Wait),
            At::Flow => {
                self.ended = body.end_of_stream;
                out.push(match self.request {
                    Mode::Duplex => Reply::Piece {
                        side: Side::Request,
                        bytes: body.body,
                        end: body.end_of_stream,
                    },
                    Mode::None | Mode::Streamed | Mode::Buffered | Mode::Partial => {
                        Reply::Pass(Part::RequestBody)
                    }
                });
                if self.ended {
                    self.at = At::Over;
                }
                Ok(Step::Wait)
            }
            At::Body => {
                self.at = At::Deciding;
                self.ended = body.end_of_stream;
                let whole = self.request == Mode::Buffered || body.end_of_stream;
                let fits = body.body.len() <= self.body_bytes_max;
                self.held.push(body.body);
                let body = match (whole, fits) {
                    (_, false) => Body::TooLong,
                    (true, true) => Body::Whole(self.held.whole()),
                    (false, true) => Body::Unread,
                };
                Ok(Step::Decide(None, body))
            }
            At::Held => Ok(self.hold(body)),
        }
    }

    fn hold(&mut self, body: HttpBody) -> Step {
        self.ended = body.end_of_stream;
        if self.held.len() + body.body.len() > self.body_bytes_max {
            self.at = At::Deciding;
            return Step::Decide(None, Body::TooLong);
        }
        self.held.push(body.body);
        let long = self.request == Mode::Streamed && self.held.len() > STREAMED_HELD_MAX;
        match (self.ended, long) {
            (true, _) => {
                self.at = At::Deciding;
                Step::Decide(None, Body::Whole(self.held.whole()))
            }
            (false, true) => {
                self.at = At::Deciding;
                Step::Decide(None, Body::Unread)
            }
            (false, false) => Step::Wait,
        }
    }

    fn trailers(&mut self, out: &mut Replies) -> Result<Step, Violation> {
        if std::mem::replace(&mut self.trailers, true) {
            return Err(Violation::AfterEnd(Part::RequestTrailers));
        }
        match self.at {
            At::Start | At::Deciding => Err(Violation::OutOfTurn(Part::RequestTrailers)),
            At::Refused => Ok(Step::Wait),
            At::Held => {
                self.at = At::Deciding;
                self.ended = true;
                Ok(Step::Decide(None, Body::Whole(self.held.whole())))
            }
            // A body of nothing: it could not be told where it goes.
            At::Body | At::Flow | At::Over => {
                self.at = At::Over;
                self.ended = true;
                out.push(Reply::Pass(Part::RequestTrailers));
                Ok(Step::Wait)
            }
        }
    }

    /// The request goes on like this.
    pub fn decided(&mut self, decision: Decision, out: &mut Replies) {
        if self.at != At::Deciding {
            return;
        }
        let Decision {
            mutation,
            metadata,
            body,
            shows_response,
        } = decision;
        let mode_override = match shows_response {
            true => self.wanting(Wanted::Bodies),
            false => None,
        };
        let common = CommonResponse {
            header_mutation: Some(mutation),
            clear_route_cache: true,
            ..CommonResponse::default()
        };
        let message = |response| {
            Reply::Message(Box::new(ProcessingResponse {
                dynamic_metadata: metadata,
                mode_override,
                response: Some(response),
                ..ProcessingResponse::default()
            }))
        };
        match self.request {
            // What is there is answered at once.
            Mode::Buffered | Mode::Partial if self.held.pieces > 0 => {
                let common = CommonResponse {
                    body_mutation: body.map(replacement),
                    ..common
                };
                out.push(message(Response::RequestBody(BodyResponse {
                    response: Some(common),
                })));
            }
            Mode::None | Mode::Buffered | Mode::Partial => out.push(message(of_head(common))),
            Mode::Streamed => {
                out.push(message(of_head(common)));
                let mut body = body;
                for nth in 0..self.held.pieces {
                    out.push(match (&mut body, nth) {
                        (None, _) => Reply::Pass(Part::RequestBody),
                        (Some(body), 0) => {
                            changed(Side::Request, Mutation::Body(std::mem::take(body)))
                        }
                        (Some(_), _) => changed(Side::Request, Mutation::ClearBody(true)),
                    });
                }
            }
            Mode::Duplex => {
                out.push(message(of_head(common)));
                let came = self.held.pieces > 0;
                let bytes = body.unwrap_or_else(|| self.held.whole());
                // Trailers end it.
                let end = self.ended && !self.trailers;
                if came || end {
                    pieces(Side::Request, bytes, end, out);
                }
            }
        }
        self.held = Held::default();
        if self.trailers {
            out.push(Reply::Pass(Part::RequestTrailers));
        }
        self.at = match self.ended {
            true => At::Over,
            false => At::Flow,
        };
    }

    /// The client gets this, and the exchange is over.
    pub fn refused(&mut self, answer: ImmediateResponse, out: &mut Replies) {
        self.at = At::Refused;
        self.held = Held::default();
        out.push(Reply::Message(Box::new(ProcessingResponse {
            response: Some(Response::ImmediateResponse(answer)),
            ..ProcessingResponse::default()
        })));
    }

    /// How to show what is wanted of the response; `None` where it is shown anyway, or where nothing is
    /// known of what it would take the place of.
    fn wanting(&mut self, wanted: Wanted) -> Option<ProcessingMode> {
        let response = match (wanted, self.offered) {
            (Wanted::Head, Mode::None) => return None,
            (Wanted::Head, _) => Mode::None,
            (Wanted::Bodies, Mode::None) if self.request == Mode::Duplex => Mode::Duplex,
            (Wanted::Bodies, Mode::None) => Mode::Streamed,
            (Wanted::Bodies, _) => return None,
        };
        if !self.told {
            return None;
        }
        // Of a proxy that does not let its mode be changed bodies go on coming, or not, as before.
        if wanted == Wanted::Bodies && !self.response_body {
            self.response = response;
        }
        let trailers = |mode| match mode {
            Mode::Duplex => HeaderSendMode::Send.into(),
            Mode::None | Mode::Streamed | Mode::Buffered | Mode::Partial => {
                HeaderSendMode::Skip.into()
            }
        };
        Some(ProcessingMode {
            request_header_mode: HeaderSendMode::Send.into(),
            response_header_mode: HeaderSendMode::Send.into(),
            request_body_mode: self.request.on_the_wire().into(),
            response_body_mode: response.on_the_wire().into(),
            request_trailer_mode: trailers(self.request),
            response_trailer_mode: trailers(response),
        })
    }

    fn answer_head(&mut self, head: Box<Head>) -> Result<Step, Violation> {
        let late = self.response_body || self.response_over;
        if std::mem::replace(&mut self.response_head, true) || late {
            return Err(Violation::OutOfTurn(Part::ResponseHead));
        }
        self.response_over = head.headers.end_of_stream;
        Ok(Step::ResponseHead(head))
    }

    /// The head of the response goes on like this; `wanted` is what is to be shown of the rest.
    pub fn response_head(
        &mut self,
        mutation: HeaderMutation,
        wanted: Option<Wanted>,
        out: &mut Replies,
    ) {
        let mode_override = match self.response_over {
            // Nothing follows.
            true => None,
            false => wanted.and_then(|wanted| self.wanting(wanted)),
        };
        if mutation == HeaderMutation::default() && mode_override.is_none() {
            return out.push(Reply::Pass(Part::ResponseHead));
        }
        let common = CommonResponse {
            header_mutation: Some(mutation),
            ..CommonResponse::default()
        };
        out.push(Reply::Message(Box::new(ProcessingResponse {
            mode_override,
            response: Some(Response::ResponseHeaders(HeadersResponse {
                response: Some(common),
            })),
            ..ProcessingResponse::default()
        })));
    }

    fn answer_body(&mut self, body: HttpBody) -> Result<Step, Violation> {
        if self.response_over {
            return Err(Violation::AfterEnd(Part::ResponseBody));
        }
        self.response_body = true;
        self.response_over = body.end_of_stream;
        Ok(Step::ResponseBody(body.body, body.end_of_stream))
    }

    /// A piece of the response goes on: as it came, or as `changed`.
    pub fn response_piece(
        &mut self,
        came: Bytes,
        other: Option<Bytes>,
        end: bool,
        out: &mut Replies,
    ) {
        match (self.response, other) {
            (Mode::Duplex, other) => {
                pieces(Side::Response, other.unwrap_or(came), end, out);
            }
            (Mode::None | Mode::Streamed | Mode::Buffered | Mode::Partial, None) => {
                out.push(Reply::Pass(Part::ResponseBody));
            }
            (Mode::None | Mode::Streamed | Mode::Buffered | Mode::Partial, Some(other)) => {
                let mutation = match other.is_empty() {
                    true => Mutation::ClearBody(true),
                    false => Mutation::Body(other),
                };
                out.push(changed(Side::Response, mutation));
            }
        }
    }

    /// The response ended with trailers; `rest` is what was held back of its body.
    pub fn response_over(&mut self, rest: Bytes, out: &mut Replies) {
        if self.response == Mode::Duplex && !rest.is_empty() {
            pieces(Side::Response, rest, false, out);
        }
        out.push(Reply::Pass(Part::ResponseTrailers));
    }
}
