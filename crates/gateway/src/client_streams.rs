//! HTTP/2 streams towards clients, and the limit on clients that do not open their window.
//!
//! Over HTTP/1 a client that does not read is noticed by the write that waits (`client_io.rs`). A
//! stream of HTTP/2 waits by itself, while its connection goes on, and hyper asks its body for
//! nothing then. So the task of each stream notes when it last handed on something that waits; once
//! a second the worker looks through those and ends the tasks that have waited for too long, which
//! resets their streams. A stream that never waits costs a few writes to memory of its own.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::task::spawn_local;

use crate::relay::Body;
use crate::upstream::SendError;
use crate::worker::Worker;

/// Bytes that a stream hands to its connection at once. They are all that a client which opens its
/// window by a single byte can leave there: they stay until it opens further or the connection
/// ends. The size of a frame unless a
/// client asks for larger ones, so that long bodies are cut no finer than they go out.
const PIECE_BYTES_MAX: usize = 16 << 10;

/// The streams of one worker.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// What the body of the stream that is being polled did last.
    step: Cell<Step>,
    /// Those that waited for their client when they were last polled, and some that did before.
    waiting: RefCell<Vec<Rc<Wait>>>,
}

/// What a body did when its stream was polled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Step {
    /// It was not asked.
    #[default]
    Unasked,
    /// It gave something, which is handed on or waits for the client's window.
    Gave,
    /// It waits for its endpoint.
    Waits,
}

/// A stream's wait for its client.
#[derive(Debug)]
struct Wait {
    since: Cell<Option<Instant>>,
    /// Whether it stands in [`Streams::waiting`].
    listed: Cell<bool>,
    cut: Cell<bool>,
    /// Wakes the stream's task.
    waker: Waker,
}

impl Streams {
    /// Ends the streams whose clients have opened no window for `limit`.
    pub(crate) fn cut_stalled(&self, limit: Duration) {
        let now = Instant::now();
        self.waiting.borrow_mut().retain(|wait| {
            let ended = Rc::strong_count(wait) == 1;
            let Some(since) = wait.since.get().filter(|_| !ended) else {
                wait.listed.set(false);
                return false;
            };
            if now.saturating_duration_since(since) < limit {
                return true;
            }
            wait.cut.set(true);
            wait.waker.wake_by_ref();
            false
        });
    }

    /// Notes what a stream's body did in a poll after which the stream waits for something.
    fn note(&self, own: &mut Option<Rc<Wait>>, cx: &Context<'_>) {
        match self.step.get() {
            Step::Unasked => {}
            Step::Waits => {
                if let Some(wait) = own {
                    wait.since.set(None);
                }
            }
            Step::Gave => {
                let wait = own.get_or_insert_with(|| Rc::new(Wait::new(cx.waker().clone())));
                wait.since.set(Some(Instant::now()));
                if !wait.listed.replace(true) {
                    self.waiting.borrow_mut().push(Rc::clone(wait));
                }
            }
        }
    }
}

impl Wait {
    /// The waker of a task stays the same as long as it lives.
    fn new(waker: Waker) -> Self {
        Self {
            since: Cell::new(None),
            listed: Cell::new(false),
            cut: Cell::new(false),
            waker,
        }
    }
}

/// Runs what hyper spawns for an HTTP/2 connection, which is a task for each of its streams.
#[derive(Clone, Debug)]
pub(crate) struct StreamExecutor(pub(crate) Rc<Worker>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let worker = Rc::clone(&self.0);
        spawn_local(async move {
            let mut stream = pin!(stream);
            let mut wait: Option<Rc<Wait>> = None;
            poll_fn(|cx| {
                if wait.as_ref().is_some_and(|wait| wait.cut.get()) {
                    // What is dropped now resets the stream and settles its exchange.
                    return Poll::Ready(());
                }
                worker.streams.step.set(Step::Unasked);
                let polled = stream.as_mut().poll(cx);
                if polled.is_pending() {
                    worker.streams.note(&mut wait, cx);
                }
                polled
            })
            .await;
        });
    }
}

/// The body of a response on an HTTP/2 stream.
#[derive(Debug)]
pub(crate) struct StreamBody {
    body: Body,
    /// What is left of a long frame.
    rest: Bytes,
    worker: Rc<Worker>,
}

impl StreamBody {
    pub(crate) fn new(body: Body, worker: Rc<Worker>) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            worker,
        }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let length = self.rest.len().min(PIECE_BYTES_MAX);
        Frame::data(self.rest.split_to(length))
    }
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = SendError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        let polled = if self.rest.is_empty() {
            Pin::new(&mut self.body).poll_frame(cx)
        } else {
            Poll::Ready(Some(Ok(self.piece())))
        };
        self.worker.streams.step.set(match polled {
            Poll::Ready(_) => Step::Gave,
            Poll::Pending => Step::Waits,
        });
        match polled {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(match frame.into_data() {
                Ok(data) if data.len() > PIECE_BYTES_MAX => {
                    self.rest = data;
                    self.piece()
                }
                Ok(data) => Frame::data(data),
                Err(frame) => frame,
            }))),
            others => others,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.body.size_hint().exact();
        left.map_or_else(SizeHint::default, |left| {
            SizeHint::with_exact(left + self.rest.len() as u64)
        })
    }
}
