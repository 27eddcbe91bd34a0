//! A request on its way to an HTTP/1.1 endpoint: its head, its body in either framing, its trailers.

use std::fmt::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method};
use smallvec::SmallVec;
use tokio::io::AsyncWrite as _;

use crate::upstream::io::Io;
use crate::upstream::{Head, Outgoing, SendError, Streamed, trailers};

/// Bodies up to this size travel in the same buffer as their head.
const INLINE_BODY_BYTES_MAX: usize = 8 << 10;

/// What is still to be written of a request.
#[derive(Debug)]
pub(super) struct Upload {
    queue: SmallVec<[Bytes; 4]>,
    source: Option<Streamed>,
    chunked: bool,
    /// Something was written that the connection may still hold.
    unflushed: bool,
    pub(super) failed: bool,
}

impl Upload {
    pub(super) fn new(head: &Head<'_>, body: Outgoing) -> Self {
        let mut text = BytesMut::with_capacity(1024 + INLINE_BODY_BYTES_MAX);
        write_head(&mut text, head, &body);
        let chunked = is_chunked(&body);
        let mut queue = SmallVec::new();
        let mut source = None;
        match body {
            Outgoing::Empty => queue.push(text.freeze()),
            Outgoing::Stream(streamed) => {
                queue.push(text.freeze());
                source = Some(streamed);
            }
            Outgoing::Whole {
                pieces,
                trailers: Some(trailers),
            } => {
                queue.push(text.freeze());
                for piece in pieces {
                    push_chunk(piece, &mut queue);
                }
                queue.push(end_of_chunks(Some(&trailers)));
            }
            Outgoing::Whole {
                pieces,
                trailers: None,
            } => {
                let length: usize = pieces.iter().map(Bytes::len).sum();
                if length <= INLINE_BODY_BYTES_MAX {
                    pieces
                        .iter()
                        .for_each(|piece| text.extend_from_slice(piece));
                    queue.push(text.freeze());
                } else {
                    queue.push(text.freeze());
                    queue.extend(pieces);
                }
            }
        }
        Self {
            queue,
            source,
            chunked,
            unflushed: false,
            failed: false,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.failed || (self.queue.is_empty() && self.source.is_none() && !self.unflushed)
    }

    /// Writes as much as the connection takes.
    pub(super) fn poll(
        &mut self,
        io: &mut Io,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        loop {
            while !self.queue.is_empty() && !self.failed {
                match ready!(io.poll_write_queue(cx, &self.queue)) {
                    Ok(sent) => {
                        self.unflushed = io.keeps_back();
                        self.sent(sent);
                    }
                    Err(_) => self.failed = true,
                }
            }
            if self.failed {
                return Poll::Ready(Ok(()));
            }
            let Some(source) = &mut self.source else {
                return self.poll_flush(io, cx).map(Ok);
            };
            match source.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.push(data),
                    Err(frame) => {
                        self.source = None;
                        // Behind a body of a length that its head told there is no place for them.
                        if self.chunked {
                            self.queue.push(end_of_chunks(frame.trailers_ref()));
                        }
                    }
                },
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(SendError::ClientBody)),
                Poll::Ready(None) => {
                    self.source = None;
                    if self.chunked {
                        self.queue.push(end_of_chunks(None));
                    }
                }
                Poll::Pending => {
                    let _flushed = self.poll_flush(io, cx);
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_flush(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<()> {
        if self.unflushed {
            match ready!(Pin::new(io).poll_flush(cx)) {
                Ok(()) => self.unflushed = false,
                Err(_) => self.failed = true,
            }
        }
        Poll::Ready(())
    }

    fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if self.chunked {
            push_chunk(data, &mut self.queue);
        } else {
            self.queue.push(data);
        }
    }

    /// Takes what was sent off the queue.
    fn sent(&mut self, mut sent: usize) {
        while let Some(first) = self.queue.first_mut() {
            let n = sent.min(first.len());
            first.advance(n);
            sent -= n;
            if !first.is_empty() {
                break;
            }
            self.queue.remove(0);
        }
    }
}

/// Whether the body goes in chunks: its length is not known, or trailers follow it.
fn is_chunked(body: &Outgoing) -> bool {
    body.length().is_none() || body.trailers().is_some()
}

/// Queues a piece of a chunked body; an empty one would end it.
fn push_chunk(data: Bytes, queue: &mut SmallVec<[Bytes; 4]>) {
    queue.push(Bytes::from(format!("{:x}\r\n", data.len())));
    queue.push(data);
    queue.push(Bytes::from_static(b"\r\n"));
}

fn end_of_chunks(trailers: Option<&HeaderMap>) -> Bytes {
    if trailers.is_none() {
        return Bytes::from_static(b"0\r\n\r\n");
    }
    let mut end = BytesMut::new();
    trailers::write_end(trailers, &mut end);
    end.freeze()
}

fn write_head(out: &mut BytesMut, head: &Head<'_>, body: &Outgoing) {
    for part in [
        head.method.as_str(),
        " ",
        head.target,
        " HTTP/1.1\r\nhost: ",
        head.host,
        "\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in head.headers {
        out.extend_from_slice(name.as_ref());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if let Some(protocol) = head.upgrade {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
        out.extend_from_slice(protocol.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    match body.length().filter(|_| !is_chunked(body)) {
        // POST and its kind say that there is no body; GET and its kind leave it out.
        Some(0) if matches!(*head.method, Method::GET | Method::HEAD | Method::OPTIONS) => {}
        Some(0) if head.upgrade.is_some() => {}
        Some(length) => {
            let _infallible = write!(out, "content-length: {length}\r\n");
        }
        None => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}
