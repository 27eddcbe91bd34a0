//! Bytes both ways between a client and an endpoint, until both have said their last.
//!
//! Each direction ends by itself: whoever has no more to say may still listen. Between pieces a
//! connection holds no memory; what one side does not take is kept, and no more is read for it.

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::record::Ending;

/// Bytes taken from one side at once, and held for the other at most.
const PIECE_BYTES: usize = 64 << 10;

thread_local! {
    /// Where the pieces of all connections of a thread pass through.
    static PIECE: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE_BYTES].into());
}

/// Bytes that have passed, for whoever reports it, whenever that is.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// From the client.
    pub(crate) bytes_in: Cell<u64>,
    /// To the client.
    pub(crate) bytes_out: Cell<u64>,
}

/// What each side is to get first.
#[derive(Debug, Default)]
pub(crate) struct First {
    pub(crate) for_endpoint: Bytes,
    pub(crate) for_client: Bytes,
}

/// Joins the two until both are done, one breaks, or both are silent for `idle_limit`.
pub(crate) async fn join<C, E>(
    client: &mut C,
    endpoint: &mut E,
    first: First,
    passed: &Rc<Passed>,
    idle_limit: Duration,
) -> Ending
where
    C: AsyncRead + AsyncWrite + Unpin,
    E: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Way::new(first.for_endpoint), Way::new(first.for_client));
    let mut silence = Silence::new(idle_limit);
    std::future::poll_fn(|cx| {
        let before = passed.bytes_in.get() + passed.bytes_out.get();
        let up = up.poll(cx, client, endpoint, &passed.bytes_in);
        let down = down.poll(cx, endpoint, client, &passed.bytes_out);
        match (up, down) {
            (Poll::Ready(Err(Side::From)), _) | (_, Poll::Ready(Err(Side::To))) => {
                return Poll::Ready(Ending::ClientGone);
            }
            (Poll::Ready(Err(Side::To)), _) | (_, Poll::Ready(Err(Side::From))) => {
                return Poll::Ready(Ending::UpstreamDied);
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ending::Complete),
            (Poll::Pending, _) | (_, Poll::Pending) => {}
        }
        if passed.bytes_in.get() + passed.bytes_out.get() != before {
            silence.broken();
        }
        silence.poll(cx).map(|()| Ending::TimedOut)
    })
    .await
}

/// The side at which a direction broke.
#[derive(Clone, Copy, Debug)]
enum Side {
    From,
    To,
}

/// One direction.
#[derive(Debug)]
struct Way {
    waiting: Bytes,
    /// Something was written that may wait for a flush.
    unflushed: bool,
    read_over: bool,
    over: bool,
}

impl Way {
    fn new(first: Bytes) -> Self {
        Self {
            waiting: first,
            unflushed: false,
            read_over: false,
            over: false,
        }
    }

    /// Passes on what there is; ready once the last byte and the end are through.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        passed: &Cell<u64>,
    ) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.over {
            while !self.waiting.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.waiting));
                let n = n.map_err(|_| Side::To)?;
                if n == 0 {
                    return Poll::Ready(Err(Side::To));
                }
                self.waiting.advance(n);
                self.unflushed = true;
                passed.set(passed.get() + n as u64);
            }
            if self.read_over {
                // One who is gone altogether is found out on the other way.
                let _gone = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                self.over = true;
                break;
            }
            let read = PIECE.with_borrow_mut(|piece| self.read(cx, from, to, piece, passed));
            match read {
                Poll::Ready(done) => done?,
                Poll::Pending => {
                    if self.unflushed {
                        let flushed = ready!(Pin::new(&mut *to).poll_flush(cx));
                        flushed.map_err(|_| Side::To)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads one piece and writes what can be written of it.
    fn read<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        piece: &mut [u8],
        passed: &Cell<u64>,
    ) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut piece = ReadBuf::new(piece);
        let read = ready!(Pin::new(from).poll_read(cx, &mut piece));
        read.map_err(|_| Side::From)?;
        let data = piece.filled();
        if data.is_empty() {
            self.read_over = true;
            return Poll::Ready(Ok(()));
        }
        let written = match Pin::new(to).poll_write(cx, data) {
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::To)),
            Poll::Pending => 0,
        };
        self.unflushed |= written > 0;
        passed.set(passed.get() + written as u64);
        self.waiting = Bytes::copy_from_slice(&data[written..]);
        Poll::Ready(Ok(()))
    }
}

/// Ends a connection on which nothing moves. Its timer is set anew only when it fires.
#[derive(Debug)]
struct Silence {
    limit: Duration,
    since: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Silence {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: Instant::now(),
            sleep: Box::pin(tokio::time::sleep(limit)),
        }
    }

    fn broken(&mut self) {
        self.since = Instant::now();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let end = self.since + self.limit;
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(end);
        }
    }
}
