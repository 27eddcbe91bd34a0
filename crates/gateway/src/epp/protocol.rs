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

use std::fmt;

use bytes::{Bytes, BytesMut};
use forebay_wire::ext_proc::body_mutation::Mutation;
use forebay_wire::ext_proc::processing_mode::{BodySendMode, HeaderSendMode};
use forebay_wire::ext_proc::processing_request::Request;
use forebay_wire::ext_proc::processing_response::Response;
use forebay_wire::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpBody,
    HttpHeaders, ImmediateResponse, Metadata, ProcessingMode, ProcessingRequest,
    ProcessingResponse, ProtocolConfiguration,
};
use forebay_wire::{Struct, Value};
use smallvec::SmallVec;

use crate::external::protocol::Side;

/// Bytes of a body that are held in the mode STREAMED, where the proxy sends without waiting for the
/// answer to the head. A proxy stops sending once its own buffer (1 MiB unless it is told otherwise) is
/// full of what is not answered, so that waiting for the end of a longer body would wait for ever; it is
/// picked for by its head.
pub const STREAMED_HELD_MAX: usize = 512 << 10;

/// Bytes of a body in one message: what the protocol recommends at most.
const PIECE_BYTES_MAX: usize = 62 << 10;

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

/// What there is to do about a message.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Nothing yet.
    Wait,
    /// The head of the request has come; more of it follows before it can be decided on.
    Head(Box<Head>),
    /// Where does it go? With the head, if that has not been told before. Answer with
    /// [`Machine::decided`] or [`Machine::refused`].
    Decide(Option<Box<Head>>, Body),
    /// The head of the response. Answer with [`Machine::response_head`].
    ResponseHead(Box<Head>),
    /// A piece of its body; true if it is the last. Answer with [`Machine::response_piece`].
    ResponseBody(Bytes, bool),
    /// The response is over with its trailers. Answer with [`Machine::response_over`].
    ResponseOver,
}

/// A head with what came beside it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Head {
    /// The fields, and whether nothing follows.
    pub headers: HttpHeaders,
    /// What other filters of the proxy left.
    pub metadata: Option<Metadata>,
    /// What the proxy knows of the exchange, by the name of the filter that asks.
    pub attributes: std::collections::HashMap<String, Struct>,
}

/// What of a request's body can be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// All of it.
    Whole(Bytes),
    /// There is none.
    Empty,
    /// It does not come, or not in time.
    Unread,
    /// It is longer than may be held.
    TooLong,
}

/// What is answered to a request that goes somewhere.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Decision {
    /// Changes of the head.
    pub mutation: HeaderMutation,
    /// What comes with it for other filters.
    pub metadata: Option<Struct>,
    /// The body in place of the one that came.
    pub body: Option<Bytes>,
    /// Which parts of the response to show; `None` leaves it as it is.
    pub response: Option<Wanted>,
}

/// What of a response has to be seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Status and fields.
    Head,
    /// Everything.
    Bodies,
}

/// An answer that is due.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// A whole message.
    Message(Box<ProcessingResponse>),
    /// Go on without a change.
    Pass(Part),
    /// A piece of a body that goes on, in the mode FULL_DUPLEX_STREAMED.
    Piece {
        /// Which way it goes.
        side: Side,
        /// The bytes.
        bytes: Bytes,
        /// Whether nothing follows.
        end: bool,
    },
}

/// A part of an exchange that has been seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Part {
    RequestHead,
    RequestBody,
    RequestTrailers,
    ResponseHead,
    ResponseBody,
    ResponseTrailers,
}

/// Answers in the order in which they go out.
pub type Replies = SmallVec<[Reply; 4]>;

/// What the proxy did against the rules. The call ends with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// A part came that cannot come here.
    OutOfTurn(Part),
    /// It went on after the end of a body.
    AfterEnd(Part),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfTurn(part) => write!(f, "{part:?} came out of turn"),
            Self::AfterEnd(part) => write!(f, "{part:?} came after the end"),
        }
    }
}

impl std::error::Error for Violation {}

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
    response: Mode,
    /// The proxy told how it sends bodies.
    told: bool,
    held: Held,
    /// The body has ended.
    ended: bool,
    /// Trailers of the request have come and are not answered.
    trailers: bool,
    response_head: bool,
    response_over: bool,
}

/// A body that is held.
#[derive(Debug, Default)]
struct Held {
    first: Bytes,
    joined: BytesMut,
    pieces: usize,
    expected: usize,
}

impl Held {
    fn len(&self) -> usize {
        self.first.len() + self.joined.len()
    }

    fn push(&mut self, piece: Bytes) {
        self.pieces += 1;
        if self.len() == 0 {
            self.first = piece;
        } else if !piece.is_empty() {
            if self.joined.is_empty() {
                let first = std::mem::take(&mut self.first);
                let least = first.len() + piece.len();
                self.joined = BytesMut::with_capacity(self.expected.max(least));
                self.joined.extend_from_slice(&first);
            }
            self.joined.extend_from_slice(&piece);
        }
    }

    fn whole(&mut self) -> Bytes {
        if !self.joined.is_empty() {
            self.first = std::mem::take(&mut self.joined).freeze();
        }
        self.first.clone()
    }
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
            response: Mode::Duplex,
            told: false,
            held: Held::default(),
            ended: false,
            trailers: false,
            response_head: false,
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
            self.response = Mode::of(config.response_body_mode);
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
            response,
        } = decision;
        let mode_override = response.and_then(|wanted| self.wanting(wanted));
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

    /// How to show what is wanted of the response; `None` where it is shown anyway, or cannot be.
    fn wanting(&mut self, wanted: Wanted) -> Option<ProcessingMode> {
        let shown = self.response != Mode::None;
        let response = match (wanted, shown) {
            (Wanted::Head, true) => Mode::None,
            (Wanted::Bodies, false) if self.request == Mode::Duplex => Mode::Duplex,
            (Wanted::Bodies, false) => Mode::Streamed,
            (Wanted::Head, false) | (Wanted::Bodies, true) => return None,
        };
        if !self.told {
            // What it would answer in place of the rest is not known.
            return None;
        }
        // A proxy that does not let its mode be changed goes on as before. What comes is told from
        // what was asked for by its coming, and only then matters in which mode.
        if wanted == Wanted::Bodies {
            self.response = response;
        }
        let trailers = match (self.request, response) {
            (Mode::Duplex, _) | (_, Mode::Duplex) => HeaderSendMode::Send,
            _ => HeaderSendMode::Skip,
        };
        Some(ProcessingMode {
            request_header_mode: HeaderSendMode::Send.into(),
            response_header_mode: HeaderSendMode::Send.into(),
            request_body_mode: self.request.on_the_wire().into(),
            response_body_mode: response.on_the_wire().into(),
            request_trailer_mode: match self.request {
                Mode::Duplex => HeaderSendMode::Send.into(),
                Mode::None | Mode::Streamed | Mode::Buffered | Mode::Partial => {
                    HeaderSendMode::Skip.into()
                }
            },
            response_trailer_mode: match response {
                Mode::Duplex => trailers.into(),
                Mode::None | Mode::Streamed | Mode::Buffered | Mode::Partial => {
                    HeaderSendMode::Skip.into()
                }
            },
        })
    }

    fn answer_head(&mut self, head: Box<Head>) -> Result<Step, Violation> {
        if std::mem::replace(&mut self.response_head, true) {
            return Err(Violation::OutOfTurn(Part::ResponseHead));
        }
        self.response_over = head.headers.end_of_stream;
        Ok(Step::ResponseHead(head))
    }

    /// The head of the response goes on like this.
    pub fn response_head(&mut self, mutation: HeaderMutation, out: &mut Replies) {
        if mutation == HeaderMutation::default() {
            return out.push(Reply::Pass(Part::ResponseHead));
        }
        let common = CommonResponse {
            header_mutation: Some(mutation),
            ..CommonResponse::default()
        };
        out.push(Reply::Message(Box::new(ProcessingResponse {
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

/// The length that a head announces, if it does.
fn expected(headers: &HttpHeaders) -> usize {
    let fields = headers.headers.iter().flat_map(|map| &map.headers);
    let length = fields
        .filter(|field| field.key == "content-length")
        .find_map(|field| {
            let text = match field.raw_value.is_empty() {
                true => &field.value,
                false => str::from_utf8(&field.raw_value).ok()?,
            };
            text.parse().ok()
        });
    length.unwrap_or(0)
}

fn of_head(common: CommonResponse) -> Response {
    Response::RequestHeaders(HeadersResponse {
        response: Some(common),
    })
}

fn replacement(body: Bytes) -> BodyMutation {
    BodyMutation {
        mutation: Some(Mutation::Body(body)),
    }
}

fn changed(side: Side, mutation: Mutation) -> Reply {
    let body = BodyResponse {
        response: Some(CommonResponse {
            body_mutation: Some(BodyMutation {
                mutation: Some(mutation),
            }),
            ..CommonResponse::default()
        }),
    };
    Reply::Message(Box::new(ProcessingResponse {
        response: Some(match side {
            Side::Request => Response::RequestBody(body),
            Side::Response => Response::ResponseBody(body),
        }),
        ..ProcessingResponse::default()
    }))
}

/// Cuts a body into pieces of the size that is recommended; an empty one where only its end is left.
fn pieces(side: Side, mut bytes: Bytes, end: bool, out: &mut Replies) {
    loop {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
        let last = bytes.is_empty();
        out.push(Reply::Piece {
            side,
            bytes: piece,
            end: end && last,
        });
        if last {
            return;
        }
    }
}

/// A text as a value of metadata.
#[must_use]
pub fn text(text: String) -> Value {
    Value {
        kind: Some(forebay_wire::value::Kind::StringValue(text)),
    }
}
