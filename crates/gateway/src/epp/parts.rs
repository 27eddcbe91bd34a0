//! The words of [`super::protocol`]: what comes, what is to be done about it, what is answered.

use std::fmt;

use bytes::{Bytes, BytesMut};
use forebay_wire::Struct;
use forebay_wire::ext_proc::body_mutation::Mutation;
use forebay_wire::ext_proc::processing_response::Response;
use forebay_wire::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpHeaders,
    Metadata, ProcessingResponse,
};
use smallvec::SmallVec;

use crate::external::protocol::Side;

/// Bytes of a body in one message: what the protocol recommends at most.
const PIECE_BYTES_MAX: usize = 62 << 10;

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
    /// Whether the body of the response has to be seen. Proxies that show heads of responses are told
    /// again with that.
    pub shows_response: bool,
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

/// A body that is held.
#[derive(Debug, Default)]
pub(super) struct Held {
    first: Bytes,
    joined: BytesMut,
    pub(super) pieces: usize,
    pub(super) expected: usize,
}

impl Held {
    pub(super) fn len(&self) -> usize {
        self.first.len() + self.joined.len()
    }

    pub(super) fn push(&mut self, piece: Bytes) {
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

    pub(super) fn whole(&mut self) -> Bytes {
        if !self.joined.is_empty() {
            self.first = std::mem::take(&mut self.joined).freeze();
        }
        self.first.clone()
    }
}

/// The length that a head announces, if it does.
pub(super) fn expected(headers: &HttpHeaders) -> usize {
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

pub(super) fn of_head(common: CommonResponse) -> Response {
    Response::RequestHeaders(HeadersResponse {
        response: Some(common),
    })
}

pub(super) fn replacement(body: Bytes) -> BodyMutation {
    BodyMutation {
        mutation: Some(Mutation::Body(body)),
    }
}

pub(super) fn changed(side: Side, mutation: Mutation) -> Reply {
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
pub(super) fn pieces(side: Side, mut bytes: Bytes, end: bool, out: &mut Replies) {
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
