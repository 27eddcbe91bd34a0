//! Response bodies: bytes at once, or tokens as the engine emits them.
//!
//! A streamed answer has no channel of its own: the engine counts the tokens it delivered and wakes
//! the connection, which renders what is new. A slow reader gets several tokens in one frame; nothing
//! queues up. How an event looks is in [`super::dialect`].

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

use super::dialect::Writer;
use super::state::Shared;
use crate::engine::RequestId;

/// Any body that the server sends.
#[derive(Debug)]
pub(super) enum SimBody {
    /// All of it.
    Full(Bytes),
    /// Events, as tokens come out.
    Stream(Box<TokenStream>),
}

/// How far a request has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Progress {
    /// Tokens that came out.
    pub(super) delivered: u32,
    /// Prompt tokens found in the cache.
    pub(super) cached_tokens: u32,
    /// Whether that was the last.
    pub(super) finished: bool,
}

/// Where the engine leaves word for a connection.
#[derive(Debug, Default)]
pub(super) struct Mailbox(Mutex<(Progress, Option<Waker>)>);

impl Mailbox {
    /// Notes what the cache held. Nobody waits for this alone, so whoever waits goes on waiting.
    pub(super) fn note_cached(&self, cached_tokens: u32) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0.cached_tokens = cached_tokens;
    }

    /// Changes the progress; whoever waits for news must be woken.
    #[must_use]
    pub(super) fn update(&self, change: impl FnOnce(&mut Progress)) -> Option<Waker> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut inner.0);
        inner.1.take()
    }

    /// The progress as soon as it satisfies `enough`.
    fn poll(&self, cx: &Context<'_>, enough: impl Fn(&Progress) -> bool) -> Poll<Progress> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if enough(&inner.0) {
            return Poll::Ready(inner.0);
        }
        inner.1 = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A request in the engine. Dropped before its end, it aborts the request: so a client that goes
/// away frees its place.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) shared: Arc<Shared>,
    pub(super) id: RequestId,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) finished: bool,
}

impl Ticket {
    /// Waits for the last token.
    pub(super) async fn complete(&mut self) -> Progress {
        let mailbox = Arc::clone(&self.mailbox);
        let progress =
            std::future::poll_fn(|cx| mailbox.poll(cx, |progress| progress.finished)).await;
        self.finished = true;
        progress
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.abort(self.id);
        }
    }
}

/// A streamed answer.
#[derive(Debug)]
pub(super) struct TokenStream {
    pub(super) ticket: Ticket,
    pub(super) writer: Writer,
    /// Tokens rendered so far.
    pub(super) sent: u32,
    /// Break the connection once this many tokens went out.
    pub(super) break_after: Option<u32>,
}

impl SimBody {
    pub(super) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(bytes.into())
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(stream) => stream.ticket.finished,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

impl TokenStream {
    fn poll_frame(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.ticket.finished {
            return Poll::Ready(None);
        }
        let sent = self.sent;
        let news = self
            .ticket
            .mailbox
            .poll(cx, |now| now.finished || now.delivered > sent);
        let Poll::Ready(progress) = news else {
            return Poll::Pending;
        };
        if self.break_after.is_some_and(|limit| sent >= limit) {
            return Poll::Ready(Some(Err(io::Error::other("injected break of the stream"))));
        }
        let mut out = BytesMut::with_capacity(512);
        if sent == 0 {
            self.writer.open(&mut out, progress);
        }
        for index in sent..progress.delivered {
            self.writer.token(&mut out, index);
        }
        self.sent = progress.delivered;
        if progress.finished {
            self.writer.close(&mut out, progress);
            self.ticket.finished = true;
        }
        Poll::Ready(Some(Ok(Frame::data(out.freeze()))))
    }
}
