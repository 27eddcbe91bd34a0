//! The client's body on its way to an endpoint, as it comes, and the watch on a client that stops in
//! the middle of it.
//!
//! Time counts only while the endpoint waits for the client: not while the endpoint does not read,
//! and not once it has answered, since from then on the limit on its own silence holds. Bodies that
//! are read whole first are in `peek.rs`.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::trailers::{self, TRAILERS_BYTES_MAX, TRAILERS_MAX};

/// Why the rest of a client's body does not go on.
#[derive(Debug)]
pub enum BadBody {
    /// It broke off, or broke its coding.
    Broken(hyper::Error),
    /// More trailers came than a message may have.
    Trailers,
}

impl std::fmt::Display for BadBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken(_) => f.write_str("the client's body broke"),
            Self::Trailers => write!(
                f,
                "a request has at most {TRAILERS_MAX} trailers of {TRAILERS_BYTES_MAX} bytes"
            ),
        }
    }
}

impl std::error::Error for BadBody {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Broken(error) => Some(error),
            Self::Trailers => None,
        }
    }
}

/// A body that goes on while it arrives.
#[derive(Debug)]
pub struct Streamed {
    body: Incoming,
    length: Option<u64>,
    stall_limit: Duration,
    // Shared with the watch, which another task may hold: hyper's, towards an HTTP/2 endpoint.
    waits_since: Rc<Cell<Option<Instant>>>,
}

impl Streamed {
    /// `body`, of whose sender no more than `stall_limit` is to pass without a byte.
    #[must_use]
    pub fn new(body: Incoming, stall_limit: Duration) -> Self {
        Self {
            length: body.size_hint().exact(),
            body,
            stall_limit,
            waits_since: Rc::default(),
        }
    }

    /// Its whole length in bytes, if the client said it.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BadBody>>> {
        let poll = Pin::new(&mut self.body).poll_frame(cx);
        if poll.is_ready() {
            self.waits_since.set(None);
        } else if self.waits_since.get().is_none() {
            self.waits_since.set(Some(Instant::now()));
        }
        poll.map(|frame| {
            frame.map(|frame| {
                let mut frame = frame.map_err(BadBody::Broken)?;
                if let Some(fields) = frame.trailers_mut() {
                    if !trailers::fit(fields) {
                        return Err(BadBody::Trailers);
                    }
                    trailers::settle(fields);
                }
                Ok(frame)
            })
        })
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Ends, with the limit, once its sender has been waited for that long.
    pub(super) fn stalled(&self) -> impl Future<Output = Duration> + use<> {
        let (waits_since, limit) = (Rc::clone(&self.waits_since), self.stall_limit);
        async move {
            let mut look_at = Instant::now() + limit;
            loop {
                tokio::time::sleep_until(look_at).await;
                let now = Instant::now();
                // Whatever begins to wait after this look has not waited for long at the next.
                look_at = waits_since.get().unwrap_or(now) + limit;
                if look_at <= now {
                    return limit;
                }
            }
        }
    }
}
