//! Messages off an HTTP/2 stream and onto it: gRPC's framing, and protobuf where it matters by hand.
//!
//! Bodies make up nearly all bytes of a call. They are read without a copy where a message came in one
//! piece, and written without one: the few bytes that belong around a body go out before it, and the
//! body itself is handed on as it is.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::protocol::{Part, Reply};
use crate::external::protocol::Side;
use crate::grpc::{self, Code};

/// Bytes of one message; a longer one ends the call. Bodies that are sent whole come in one.
const MESSAGE_OVERHEAD_MAX: usize = 1 << 20;
/// Bodies up to this size are copied behind their frame: cheaper than a frame of HTTP/2 of their own.
const COPIED_MAX: usize = 8 << 10;

/// Why a call ends from here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Broken {
    /// The other side is gone.
    Gone,
    /// What it sent is not what it should be.
    Wrong(String),
}

/// The messages of a call as they come.
#[derive(Debug)]
pub(super) struct Incoming {
    stream: RecvStream,
    message_bytes_max: usize,
    /// What came and has not been read: a piece as it came, or several put together.
    rest: Bytes,
    gathered: BytesMut,
}

impl Incoming {
    pub(super) fn new(stream: RecvStream, body_bytes_max: usize) -> Self {
        Self {
            stream,
            message_bytes_max: body_bytes_max.saturating_add(MESSAGE_OVERHEAD_MAX),
            rest: Bytes::new(),
            gathered: BytesMut::new(),
        }
    }

    /// The next message; `None` once the other side has ended the call.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Broken> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same, as often as it is asked.
    pub(super) fn poll_next<M: Message + Default>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<M>, Broken>> {
        loop {
            if let Some(message) = self.message()? {
                return Poll::Ready(Ok(Some(message)));
            }
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // An error here is that of a stream which is over, and shows next.
                    let _over = self.stream.flow_control().release_capacity(data.len());
                    self.take(data);
                }
                Some(Err(_)) => return Poll::Ready(Err(Broken::Gone)),
                None => return Poll::Ready(Ok(None)),
            }
        }
    }

    fn take(&mut self, data: Bytes) {
        if self.gathered.is_empty() {
            if self.rest.is_empty() {
                self.rest = data;
                return;
            }
            let rest = std::mem::take(&mut self.rest);
            // What the rest announces, so that a long message is put together without growing.
            let whole = match rest.first_chunk() {
                Some(&[_, a, b, c, d]) => 5 + u32::from_be_bytes([a, b, c, d]) as usize,
                None => 0,
            };
            let least = rest.len() + data.len();
            let room = whole.min(self.message_bytes_max).max(least);
            self.gathered = BytesMut::with_capacity(room);
            self.gathered.extend_from_slice(&rest);
        }
        self.gathered.extend_from_slice(&data);
    }

    /// The next message of what has come, without a copy of its bytes where it came in one piece.
    fn message<M: Message + Default>(&mut self) -> Result<Option<M>, Broken> {
        let came = match self.gathered.is_empty() {
            true => &self.rest[..],
            false => &self.gathered[..],
        };
        let Some((&[flag, a, b, c, d], _)) = came.split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if flag != 0 {
            let message = "a message is compressed, which was not offered";
            return Err(Broken::Wrong(message.to_owned()));
        }
        if length > self.message_bytes_max {
            let limit = self.message_bytes_max;
            let message = format!("a message of {length} bytes; {limit} are the limit");
            return Err(Broken::Wrong(message));
        }
        if came.len() < 5 + length {
            return Ok(None);
        }
        let mut whole = match self.gathered.is_empty() {
            true => self.rest.split_to(5 + length),
            false => {
                let whole = self.gathered.split_to(5 + length).freeze();
                if self.gathered.is_empty() {
                    // Its memory goes with the message.
                    self.gathered = BytesMut::new();
                }
                whole
            }
        };
        whole.advance(5);
        M::decode(whole)
            .map(Some)
            .map_err(|error| Broken::Wrong(format!("a message cannot be read: {error}")))
    }
}

/// A message in gRPC's framing.
pub(super) fn frame<M: Message>(message: &M, out: &mut BytesMut) {
    let length = message.encoded_len();
    out.reserve(5 + length);
    prefix(length, out);
    message.encode_raw(out);
}

fn prefix(length: usize, out: &mut BytesMut) {
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("bodies and heads are bounded far below 4 GiB"));
}

/// The answers of a call as they go out.
#[derive(Debug)]
pub(super) struct Outgoing {
    stream: SendStream<Bytes>,
    queued: std::collections::VecDeque<Bytes>,
    tail: BytesMut,
}

impl Outgoing {
    pub(super) fn new(stream: SendStream<Bytes>) -> Self {
        Self {
            stream,
            queued: std::collections::VecDeque::new(),
            tail: BytesMut::new(),
        }
    }

    /// Queues an answer.
    pub(super) fn reply(&mut self, reply: Reply) {
        match reply {
            Reply::Message(message) => frame(&*message, &mut self.tail),
            Reply::Pass(part) => self.tail.extend_from_slice(pass(part)),
            Reply::Piece { side, bytes, end } => self.piece(side, bytes, end),
        }
    }

    /// Queues a message.
    pub(super) fn message<M: Message>(&mut self, message: &M) {
        frame(message, &mut self.tail);
    }

    /// `ProcessingResponse.{request,response}_body.response.body_mutation.streamed_response`, four
    /// messages within each other, and the body last in the innermost: fields may come in any order.
    fn piece(&mut self, side: Side, bytes: Bytes, end: bool) {
        const BODY: u32 = 1;
        const END: u32 = 2;
        const STREAMED: u32 = 3;
        const BODY_MUTATION: u32 = 3;
        const COMMON: u32 = 1;
        let outer = match side {
            Side::Request => 3,
            Side::Response => 4,
        };
        let field = |length: usize| 1 + encoded_len_varint(length as u64) + length;
        let innermost = (if end { 2 } else { 0 })
            + match bytes.is_empty() {
                true => 0,
                false => field(bytes.len()),
            };
        let mutation = field(innermost);
        let common = field(mutation);
        let body = field(common);
        let whole = field(body);
        self.tail.reserve(64);
        prefix(whole, &mut self.tail);
        let tail = &mut self.tail;
        for (number, length) in [
            (outer, body),
            (COMMON, common),
            (BODY_MUTATION, mutation),
            (STREAMED, innermost),
        ] {
            encode_key(number, WireType::LengthDelimited, tail);
            encode_varint(length as u64, tail);
        }
        if end {
            encode_key(END, WireType::Varint, tail);
            tail.put_u8(1);
        }
        if !bytes.is_empty() {
            encode_key(BODY, WireType::LengthDelimited, tail);
            encode_varint(bytes.len() as u64, tail);
            if bytes.len() <= COPIED_MAX {
                tail.extend_from_slice(&bytes);
            } else {
                self.queued.push_back(self.tail.split().freeze());
                self.queued.push_back(bytes);
            }
        }
    }

    /// Hands what is queued to the connection.
    pub(super) async fn flush(&mut self) -> Result<(), Broken> {
        if !self.tail.is_empty() {
            self.queued.push_back(self.tail.split().freeze());
        }
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while let Some(front) = self.queued.front_mut() {
            if front.is_empty() {
                self.queued.pop_front();
                continue;
            }
            self.stream.reserve_capacity(front.len());
            let room = self.stream.capacity();
            if room == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return Poll::Ready(Err(Broken::Gone)),
                }
            }
            let data = front.split_to(room.min(front.len()));
            if self.stream.send_data(data, false).is_err() {
                return Poll::Ready(Err(Broken::Gone));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready once the other side has given the call up.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx).map(drop)
    }

    /// Ends the call, well or with a status of gRPC.
    pub(super) fn end(mut self, failure: Option<(Code, &str)>) {
        let _gone = self.stream.send_trailers(ending(failure));
    }
}

/// Fields that end a call.
pub(super) fn ending(failure: Option<(Code, &str)>) -> HeaderMap {
    match failure {
        Some((code, message)) => grpc::trailers(code, message),
        None => {
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            trailers
        }
    }
}

/// An answer that changes nothing, framed: `ProcessingResponse` with an empty part.
const fn pass(part: Part) -> &'static [u8] {
    match part {
        Part::RequestHead => &[0, 0, 0, 0, 2, 1 << 3 | 2, 0],
        Part::ResponseHead => &[0, 0, 0, 0, 2, 2 << 3 | 2, 0],
        Part::RequestBody => &[0, 0, 0, 0, 2, 3 << 3 | 2, 0],
        Part::ResponseBody => &[0, 0, 0, 0, 2, 4 << 3 | 2, 0],
        Part::RequestTrailers => &[0, 0, 0, 0, 2, 5 << 3 | 2, 0],
        Part::ResponseTrailers => &[0, 0, 0, 0, 2, 6 << 3 | 2, 0],
    }
}
