//! A socket on which one side is called on one connection and calls on the other: both sides of NRI.
//!
//! [`serve`] runs until the socket ends, and ends everything with it: handlers are dropped, calls fail.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::frame::{self, Decoder, Kind, Message, ProtocolError};
use crate::ttrpc;

/// Requests that are worked on at once. A runtime asks one thing after another for each pod; whoever asks
/// for more than this is told `ResourceExhausted`, and hung up on at twice as much.
const HANDLERS_MAX: usize = 256;
/// Messages that wait to be written; whoever has more to say waits.
const QUEUE_LEN: usize = 64;

/// Status codes, those of gRPC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// None of the others fits.
    Unknown,
    /// The request makes no sense.
    InvalidArgument,
    /// It took longer than who asks would wait.
    DeadlineExceeded,
    /// Too much at once.
    ResourceExhausted,
    /// There is no such method.
    Unimplemented,
    /// Another one.
    Other(i32),
}

impl Code {
    fn number(self) -> i32 {
        match self {
            Self::Unknown => 2,
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::ResourceExhausted => 8,
            Self::Unimplemented => 12,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: i32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            8 => Self::ResourceExhausted,
            12 => Self::Unimplemented,
            other => Self::Other(other),
        }
    }
}

/// Why a request is not fulfilled, as who asked is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The kind of reason.
    pub code: Code,
    /// The reason, for people.
    pub message: String,
}

impl Refusal {
    /// A refusal with code [`Code::Unknown`].
    pub fn new(message: impl Into<String>) -> Self {
        Self::with(Code::Unknown, message)
    }

    pub(crate) fn with(code: Code, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// Why a call brought no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CallError {
    /// The other side refused.
    Refused(Refusal),
    /// There was none in time.
    TimedOut(Duration),
    /// There is no connection, or it ended before the answer. Trying again later may help.
    Closed,
    /// What was to be sent, or came back, breaks the protocol.
    Protocol(ProtocolError),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::TimedOut(after) => write!(f, "no answer within {} ms", after.as_millis()),
            Self::Closed => f.write_str("the connection is closed"),
            Self::Protocol(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CallError {}

/// Answers requests.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers one.
    fn handle(
        &self,
        service: &str,
        method: &str,
        payload: Bytes,
    ) -> impl Future<Output = Result<Vec<u8>, Refusal>> + Send;
}

#[derive(Default, Debug)]
struct Pending {
    last_stream: Option<u32>,
    waiting: HashMap<u32, oneshot::Sender<ttrpc::Response>>,
    closed: bool,
}

/// Calls the other side. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    connection: u32,
    out: mpsc::Sender<Bytes>,
    pending: Arc<Mutex<Pending>>,
}

impl Client {
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.pending).closed
    }

    /// Calls, and waits for the answer no longer than `timeout`.
    pub(crate) async fn call<A: prost::Message, B: prost::Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &A,
        timeout: Duration,
    ) -> Result<B, CallError> {
        let request = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec().into(),
            timeout_nano: i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX),
            metadata: Vec::new(),
        };
        let answered = tokio::time::timeout(timeout, self.answer(request)).await;
        let response = answered.map_err(|_| CallError::TimedOut(timeout))??;
        match response.status {
            Some(status) if status.code != 0 => Err(CallError::Refused(Refusal::with(
                Code::from_number(status.code),
                status.message,
            ))),
            _ => B::decode(response.payload).map_err(|_| {
                CallError::Protocol(ProtocolError::MessageNotProtobuf(self.connection))
            }),
        }
    }

    async fn answer(&self, request: ttrpc::Request) -> Result<ttrpc::Response, CallError> {
        let permit = self.out.reserve().await.map_err(|_| CallError::Closed)?;
        let (sender, receiver) = oneshot::channel();
        let stream = {
            // Streams must reach the wire in rising order, so number and place go together.
            let mut pending = lock(&self.pending);
            if pending.closed {
                return Err(CallError::Closed);
            }
            let next = pending
                .last_stream
                .map_or(Some(1), |last| last.checked_add(2));
            // After two thousand million calls on one connection.
            let stream = next.ok_or(CallError::Closed)?;
            let bytes = frame::encode(&Message {
                connection: self.connection,
                stream,
                kind: Kind::Request,
                flags: 0,
                payload: request.encode_to_vec().into(),
            })
            .map_err(CallError::Protocol)?;
            pending.last_stream = Some(stream);
            pending.waiting.insert(stream, sender);
            permit.send(bytes);
            stream
        };
        let _forget = Forget(&self.pending, stream);
        receiver.await.map_err(|_| CallError::Closed)
    }
}

/// Nobody waits any more, whether there was an answer or not.
struct Forget<'a>(&'a Mutex<Pending>, u32);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.0).waiting.remove(&self.1);
    }
}

fn lock(pending: &Mutex<Pending>) -> std::sync::MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that is ready to be served.
#[derive(Debug)]
pub(crate) struct Server {
    served: u32,
    client: Client,
    queue: mpsc::Receiver<Bytes>,
}

/// A connection on which `served` is answered and `called` is asked.
pub(crate) fn new(served: u32, called: u32) -> (Server, Client) {
    let (out, queue) = mpsc::channel(QUEUE_LEN);
    let client = Client {
        connection: called,
        out,
        pending: Arc::default(),
    };
    let server = Server {
        served,
        client: client.clone(),
        queue,
    };
    (server, client)
}

impl Server {
    /// Serves until the other side hangs up (no error), or breaks the protocol, or the socket fails.
    pub(crate) async fn serve<S, H>(self, stream: S, handler: Arc<H>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send,
        H: Handler,
    {
        let (mut read, mut write) = tokio::io::split(stream);
        let Self {
            served,
            client,
            mut queue,
        } = self;
        let _closed = CloseOnDrop(Arc::clone(&client.pending));
        let writing = async {
            while let Some(bytes) = queue.recv().await {
                write.write_all(&bytes).await?;
            }
            Ok(())
        };
        let reading = async {
            let mut decoder = Decoder::default();
            let mut handlers = JoinSet::new();
            loop {
                while handlers.try_join_next().is_some() {}
                while let Some(message) = decoder.next_message().map_err(io::Error::other)? {
                    receive(message, served, &client, &handler, &mut handlers)?;
                }
                if read.read_buf(decoder.buffer()).await? == 0 {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            ended = reading => ended,
            failed = writing => failed,
        }
    }
}

/// Calls that wait are told, however serving ends.
struct CloseOnDrop(Arc<Mutex<Pending>>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let mut pending = lock(&self.0);
        pending.closed = true;
        pending.waiting.clear();
    }
}

fn receive<H: Handler>(
    message: Message,
    served: u32,
    client: &Client,
    handler: &Arc<H>,
    handlers: &mut JoinSet<()>,
) -> io::Result<()> {
    let connection = message.connection;
    let broken = |_| io::Error::other(ProtocolError::MessageNotProtobuf(connection));
    match message.kind {
        Kind::Request if connection == served => {
            let request = ttrpc::Request::decode(message.payload).map_err(broken)?;
            let (handler, out) = (Arc::clone(handler), client.out.clone());
            let full = handlers.len() >= HANDLERS_MAX;
            if handlers.len() >= 2 * HANDLERS_MAX {
                return Err(io::Error::other("too many requests at once"));
            }
            handlers.spawn(async move {
                let outcome = if full {
                    let text = format!("{HANDLERS_MAX} requests are being worked on");
                    Err(Refusal::with(Code::ResourceExhausted, text))
                } else {
                    answer(&*handler, request).await
                };
                // Fails if the connection ended; nobody waits for the answer then.
                let _ = out
                    .send(response(connection, message.stream, outcome))
                    .await;
            });
        }
        Kind::Response if connection == client.connection => {
            let response = ttrpc::Response::decode(message.payload).map_err(broken)?;
            // None waits for it if it comes after its time.
            if let Some(sender) = lock(&client.pending).waiting.remove(&message.stream) {
                let _ = sender.send(response);
            }
        }
        // NRI has no streams; what is not known to us is let fall, as the protocol wants it.
        Kind::Request | Kind::Response | Kind::Data | Kind::Other(_) => {}
    }
    Ok(())
}

async fn answer<H: Handler>(handler: &H, request: ttrpc::Request) -> Result<Vec<u8>, Refusal> {
    let work = handler.handle(&request.service, &request.method, request.payload);
    match u64::try_from(request.timeout_nano) {
        Ok(nanos) if nanos > 0 => {
            let limit = Duration::from_nanos(nanos);
            let late = |_| {
                let text = format!(
                    "{} was not done in {} ms",
                    request.method,
                    limit.as_millis()
                );
                Refusal::with(Code::DeadlineExceeded, text)
            };
            tokio::time::timeout(limit, work).await.map_err(late)?
        }
        _ => work.await,
    }
}

fn response(connection: u32, stream: u32, outcome: Result<Vec<u8>, Refusal>) -> Bytes {
    let encode = |outcome: Result<Vec<u8>, Refusal>| {
        let (status, payload) = match outcome {
            Ok(payload) => (None, payload),
            Err(refusal) => (
                Some(ttrpc::Status {
                    code: refusal.code.number(),
                    message: refusal.message,
                }),
                Vec::new(),
            ),
        };
        let payload = payload.into();
        frame::encode(&Message {
            connection,
            stream,
            kind: Kind::Response,
            flags: 0,
            payload: ttrpc::Response { status, payload }.encode_to_vec().into(),
        })
    };
    encode(outcome).unwrap_or_else(|error| {
        let refusal = Refusal::with(Code::ResourceExhausted, error.to_string());
        encode(Err(refusal)).expect("a sentence is shorter than 4 MiB")
    })
}
