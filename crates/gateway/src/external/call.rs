//! One gRPC call: messages onto an HTTP/2 stream and off it, within the task of whoever asks.
//!
//! No second task and no channel: the stream is written and read where its answers are waited for.
//! What the messages mean is in [`super::protocol`].

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use forebay_wire::ext_proc::ProcessingResponse;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use prost::Message;

/// Bytes of one message; a longer one breaks the call. What gRPC implementations take by default.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes that wait to be written; no more are queued beyond it.
const QUEUED_BYTES_MAX: usize = 128 << 10;
/// How long the other side may take to end a call that this side has ended.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of a status's message that are kept.
const STATUS_BYTES_MAX: usize = 256;

/// A call under way. Dropped, it is cancelled.
#[derive(Debug)]
pub(super) struct Call {
    send: SendStream<Bytes>,
    queued: BytesMut,
    end: End,
    incoming: Incoming,
    /// What came and has not been read: a piece as it came, or several put together.
    rest: Bytes,
    gathered: BytesMut,
}

/// This side's end of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Open,
    /// To be sent once what is queued is.
    Due,
    Sent,
    /// Nothing can be sent any more. Why, the other side's end tells.
    Broken,
}

#[derive(Debug)]
enum Incoming {
    Head(ResponseFuture),
    Messages(RecvStream),
    Over,
}

/// Why a call brings nothing more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum CallError {
    /// The stream or its connection broke.
    Broken(String),
    /// The other side ended the call with an error.
    Status(String),
    /// What came is not gRPC.
    NotGrpc(String),
}

impl Call {
    /// Opens a call.
    pub(super) async fn start(
        sender: SendRequest<Bytes>,
        scheme: &str,
        authority: &str,
    ) -> Result<Self, CallError> {
        let mut sender = sender.ready().await.map_err(broken)?;
        let (response, send) = sender
            .send_request(head(scheme, authority)?, false)
            .map_err(broken)?;
        Ok(Self {
            send,
            queued: BytesMut::new(),
            end: End::Open,
            incoming: Incoming::Head(response),
            rest: Bytes::new(),
            gathered: BytesMut::new(),
        })
    }

    /// Where messages are written; they go out with the next [`poll`](Self::poll_flush).
    pub(super) fn queue(&mut self) -> &mut BytesMut {
        &mut self.queued
    }

    /// Whether more may be queued.
    pub(super) fn has_room(&self) -> bool {
        self.queued.len() < QUEUED_BYTES_MAX && self.end != End::Broken
    }

    /// Hands what is queued to the connection; ready once all of it is, or will never be.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.queued.is_empty() && self.end != End::Broken {
            self.send.reserve_capacity(self.queued.len());
            let room = self.send.capacity();
            if room == 0 {
                match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => self.broke(),
                }
                continue;
            }
            let data = self.queued.split_to(room.min(self.queued.len())).freeze();
            if self.send.send_data(data, false).is_err() {
                self.broke();
            }
        }
        if self.end == End::Due {
            self.end = End::Sent;
            if self.send.send_data(Bytes::new(), true).is_err() {
                self.broke();
            }
        }
        Poll::Ready(())
    }

    fn broke(&mut self) {
        self.end = End::Broken;
        self.queued.clear();
    }

    /// The next message; `None` once the other side has ended the call without an error.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<ProcessingResponse>, CallError>> {
        loop {
            if let Some(message) = self.message()? {
                return Poll::Ready(Ok(Some(message)));
            }
            match &mut self.incoming {
                Incoming::Over => return Poll::Ready(Ok(None)),
                Incoming::Head(response) => {
                    let response = ready!(Pin::new(response).poll(cx)).map_err(broken)?;
                    self.incoming = check(response)?;
                }
                Incoming::Messages(stream) => match ready!(stream.poll_data(cx)) {
                    Some(Ok(data)) => {
                        // An error here is that of a stream which is over, and shows next.
                        let _over = stream.flow_control().release_capacity(data.len());
                        self.take(data);
                    }
                    Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                    None => {
                        let trailers = ready!(stream.poll_trailers(cx)).map_err(broken)?;
                        self.incoming = Incoming::Over;
                        let Some(trailers) = trailers else {
                            let message = "the stream ended without a status";
                            return Poll::Ready(Err(CallError::NotGrpc(message.to_owned())));
                        };
                        status(&trailers).unwrap_or(Ok(()))?;
                    }
                },
            }
        }
    }

    fn take(&mut self, data: Bytes) {
        if self.gathered.is_empty() && self.rest.is_empty() {
            self.rest = data;
            return;
        }
        let rest = std::mem::take(&mut self.rest);
        self.gathered.extend_from_slice(&rest);
        self.gathered.extend_from_slice(&data);
    }

    /// The next message of what has come, without a copy of its bytes where it came in one piece.
    fn message(&mut self) -> Result<Option<ProcessingResponse>, CallError> {
        let came = if self.gathered.is_empty() {
            &self.rest[..]
        } else {
            &self.gathered[..]
        };
        let Some((&[flag, a, b, c, d], _)) = came.split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if flag != 0 {
            let message = "a message is compressed, which was not offered";
            return Err(CallError::NotGrpc(message.to_owned()));
        }
        if length > MESSAGE_BYTES_MAX {
            let message = format!("a message of {length} bytes; {MESSAGE_BYTES_MAX} are the limit");
            return Err(CallError::NotGrpc(message));
        }
        if came.len() < 5 + length {
            return Ok(None);
        }
        let mut whole = if self.gathered.is_empty() {
            self.rest.split_to(5 + length)
        } else {
            self.gathered.split_to(5 + length).freeze()
        };
        whole.advance(5);
        ProcessingResponse::decode(whole)
            .map(Some)
            .map_err(|error| CallError::NotGrpc(format!("a message cannot be read: {error}")))
    }

    /// Ends a call that has no more use, without breaking it off.
    pub(super) fn farewell(mut self) {
        if matches!(self.incoming, Incoming::Over) {
            return;
        }
        if self.end == End::Open {
            self.end = End::Due;
        }
        let ended = poll_fn(move |cx| {
            let flushed = self.poll_flush(cx).is_ready();
            while let Ok(Some(_late)) = ready!(self.poll_next(cx)) {}
            if flushed {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        tokio::task::spawn_local(tokio::time::timeout(FAREWELL_TIMEOUT, ended));
    }
}

fn head(scheme: &str, authority: &str) -> Result<Request<()>, CallError> {
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(forebay_wire::PROCESS_PATH)
        .build()
        .map_err(|error| CallError::NotGrpc(format!("{authority} is no authority: {error}")))?;
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    let headers = request.headers_mut();
    for (name, value) in [
        (header::TE, "trailers"),
        (header::CONTENT_TYPE, "application/grpc"),
        (
            header::USER_AGENT,
            concat!("forebay/", env!("CARGO_PKG_VERSION")),
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(request)
}

fn check(response: Response<RecvStream>) -> Result<Incoming, CallError> {
    let (parts, body) = response.into_parts();
    if parts.status != StatusCode::OK {
        let message = format!("it answered with HTTP status {}", parts.status.as_u16());
        return Err(CallError::NotGrpc(message));
    }
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    if !content_type.is_some_and(|v| v.as_bytes().starts_with(b"application/grpc")) {
        return Err(CallError::NotGrpc("its answer is not gRPC".to_owned()));
    }
    match status(&parts.headers) {
        // An answer of trailers alone.
        Some(status) => status.map(|()| Incoming::Over),
        None => Ok(Incoming::Messages(body)),
    }
}

/// How a call ended, if these fields tell.
fn status(fields: &HeaderMap) -> Option<Result<(), CallError>> {
    let code = fields.get("grpc-status")?;
    if code == "0" {
        return Some(Ok(()));
    }
    let message = fields
        .get("grpc-message")
        .map_or(&b""[..], HeaderValue::as_bytes);
    let message = &message[..message.len().min(STATUS_BYTES_MAX)];
    Some(Err(CallError::Status(format!(
        "gRPC status {}: {}",
        String::from_utf8_lossy(code.as_bytes()).escape_debug(),
        String::from_utf8_lossy(message).escape_debug()
    ))))
}

fn broken(error: h2::Error) -> CallError {
    CallError::Broken(error.to_string())
}
