//! The way to an endpoint: connections, pools of idle ones, requests out, responses in.
//!
//! HTTP/1.1 is our own ([`h1`]): its body is polled in the client connection's task, without a
//! channel or a second task in between, and hands on everything readable at once. That is what
//! makes bursts of small chunks cheap (`docs/decisions/002-upstream-http1.md`). HTTP/2 is hyper's
//! ([`h2`]). TLS is below both ([`io`]). Everything here belongs to one worker and never leaves its
//! thread.

pub mod chunked;
mod h1;
mod h2;
mod idle;
mod io;
mod streamed;
pub mod trailers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use forebay_model::AppProtocol;
use http::{HeaderMap, Method, StatusCode};
use http_body::Frame;
use smallvec::SmallVec;

use crate::external::Passage;
use crate::grpc;
use crate::telemetry::Counted;
use crate::tls::backend::{Connector, Inside};

pub use h1::{H1Body, Upgraded};
pub use h2::H2Body;
pub use idle::Idle;
pub use io::Io;
pub(crate) use io::tcp;
pub use streamed::{BadBody, Streamed};

/// Whom to send to, and how.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where.
    pub address: SocketAddr,
    /// What is spoken there.
    pub protocol: AppProtocol,
    /// TLS around it.
    pub tls: Option<Arc<Connector>>,
}

/// What connections must have in common to be taken for each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    pub(crate) address: SocketAddr,
    /// The number of the connector; none has 0, which is cleartext.
    pub(crate) connector: u64,
}

impl Peer {
    /// An endpoint in the clear.
    #[must_use]
    pub fn plain(address: SocketAddr, protocol: AppProtocol) -> Self {
        Self {
            address,
            protocol,
            tls: None,
        }
    }

    fn key(&self) -> Key {
        Key {
            address: self.address,
            connector: self.tls.as_ref().map_or(0, |connector| connector.number),
        }
    }
}

/// The request body towards an endpoint.
#[derive(Debug)]
pub enum Outgoing {
    /// Nothing.
    Empty,
    /// Known bytes, and what trails behind them, all of which a retry can send again.
    Whole {
        /// The body; together they may be empty where there are trailers.
        pieces: SmallVec<[Bytes; 3]>,
        /// Those that are passed on, within their bounds.
        trailers: Option<Arc<HeaderMap>>,
    },
    /// The client's body as it comes.
    Stream(Streamed),
}

impl Outgoing {
    /// A body that has been read whole.
    #[must_use]
    pub fn whole(bytes: Bytes) -> Self {
        Self::of([bytes], None)
    }

    /// A body of these pieces with these trailers behind it.
    #[must_use]
    pub fn of(pieces: impl IntoIterator<Item = Bytes>, trailers: Option<Arc<HeaderMap>>) -> Self {
        let pieces = pieces.into_iter().filter(|piece| !piece.is_empty());
        let pieces: SmallVec<[Bytes; 3]> = pieces.collect();
        if pieces.is_empty() && trailers.is_none() {
            Self::Empty
        } else {
            Self::Whole { pieces, trailers }
        }
    }

    /// What trails behind a body that has been read whole.
    #[must_use]
    pub fn trailers(&self) -> Option<&Arc<HeaderMap>> {
        match self {
            Self::Whole { trailers, .. } => trailers.as_ref(),
            Self::Empty | Self::Stream(_) => None,
        }
    }

    /// Another copy, if the body can be sent twice.
    #[must_use]
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Whole { pieces, trailers } => Some(Self::Whole {
                pieces: pieces.clone(),
                trailers: trailers.clone(),
            }),
            Self::Stream(_) => None,
        }
    }

    /// The length in bytes without trailers, if it is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Whole { pieces, .. } => Some(pieces.iter().map(|p| p.len() as u64).sum()),
            Self::Stream(streamed) => streamed.length(),
        }
    }
}

/// The head of a request towards an endpoint: hop-by-hop fields already removed.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a str,
    /// Host.
    pub host: &'a str,
    /// Fields, without Host, Content-Length and Transfer-Encoding.
    pub headers: &'a HeaderMap,
    /// The protocol to switch to, if the client asked for an upgrade.
    pub upgrade: Option<&'a str>,
}

/// A response whose body is still to come.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Fields, hop-by-hop ones removed.
    pub headers: HeaderMap,
    /// The body.
    pub body: AnswerBody,
}

impl Answer {
    /// The status, or for `grpc` the one that its own is alike to, if the answer says that the endpoint
    /// did not do its part. `first` is the first frame of the body, if it has been awaited: of an answer
    /// without a message it is what trails.
    pub(crate) fn fault(&self, grpc: bool, first: Option<&Frame<Bytes>>) -> Option<u16> {
        if is_fault(self.status) {
            return Some(self.status.as_u16());
        }
        let trailers = first.and_then(Frame::trailers_ref);
        let fields = [Some(&self.headers), trailers].into_iter().flatten();
        let mut statuses = fields.filter_map(grpc::status);
        statuses.next().filter(|_| grpc).and_then(grpc::fault)
    }
}

/// Whether an answer of this status says "not here, not now" rather than "not this request".
pub(crate) fn is_fault(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// The body of an [`Answer`].
#[derive(Debug)]
pub enum AnswerBody {
    /// From our HTTP/1.1 connection.
    H1(Box<H1Body>),
    /// From an HTTP/2 connection.
    H2(Box<H2Body>),
    /// From either, by way of the pool's picker.
    Outside(Box<Passage>),
    /// The connection after `101 Switching Protocols`.
    Upgraded(Upgraded),
    /// Nothing more will come.
    Done,
}

/// Why a try at an endpoint brought no response.
#[derive(Debug)]
pub enum SendError {
    /// No connection.
    Connect(std::io::Error),
    /// TLS was not agreed on, or broke.
    Tls(std::io::Error),
    /// The connection broke, or closed before the response's head was complete.
    Reset(std::io::Error),
    /// The endpoint answered something that is not HTTP.
    Protocol(&'static str),
    /// A time limit.
    Timeout(&'static str),
    /// The client's own body broke, and how; no other endpoint can help.
    ClientBody(&'static str),
    /// No byte of the client's own body came for so long.
    ClientStalled(Duration),
    /// The picker that the response goes through failed, or ended it.
    Picker(&'static str),
}

impl SendError {
    /// One word for metrics and the access log.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::Reset(_) => "reset",
            Self::Protocol(_) => "protocol",
            Self::Timeout(_) => "timeout",
            Self::ClientBody(_) => "client_body",
            Self::ClientStalled(_) => "body_timeout",
            Self::Picker(_) => "picker",
        }
    }
}

impl std::fmt::Display for SendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(e) => write!(f, "cannot connect: {e}"),
            Self::Tls(e) => write!(f, "TLS: {e}"),
            Self::Reset(e) => write!(f, "connection broke before the response: {e}"),
            Self::Protocol(what) => write!(f, "the endpoint broke HTTP: {what}"),
            Self::Timeout(what) => write!(f, "time limit: {what}"),
            Self::ClientBody(what) => f.write_str(what),
            Self::ClientStalled(limit) => {
                write!(f, "no byte of the body came for {} s", limit.as_secs())
            }
            Self::Picker(what) => write!(f, "the endpoint picker failed: {what}"),
        }
    }
}

/// A connection that is ready for one request.
#[derive(Debug)]
pub struct Ready<'p> {
    kind: Kind,
    peer: &'p Peer,
    reused: bool,
}

#[derive(Debug)]
enum Kind {
    H1(h1::Conn),
    H2(h2::Multiplexed),
}

/// A connection to `peer`: an idle one, or a new one.
///
/// # Errors
/// If none can be made.
pub async fn open<'p>(
    idle: &Idle,
    peer: &'p Peer,
    connect_timeout: Duration,
) -> Result<Ready<'p>, SendError> {
    let kept = match peer.protocol {
        AppProtocol::H2c => idle.multiplexed(peer.key()).map(Kind::H2),
        AppProtocol::Http => idle.take(peer.key()).map(Kind::H1),
    };
    let (kind, reused) = match kept {
        Some(kind) => (kind, true),
        None => (connect(idle, peer, connect_timeout).await?, false),
    };
    Ok(Ready { kind, peer, reused })
}

/// Makes a connection. In boxes, like everything here that most requests do without: the futures of
/// an exchange lie within each other, and each request writes and moves all of that.
async fn connect(idle: &Idle, peer: &Peer, limit: Duration) -> Result<Kind, SendError> {
    match peer.protocol {
        AppProtocol::H2c => Box::pin(h2::connect(idle, peer, limit)).await.map(Kind::H2),
        AppProtocol::Http => Box::pin(h1::connect(idle, peer, limit)).await.map(Kind::H1),
    }
}

/// A connection for bytes of which nothing is known. It is counted until what counts it goes.
///
/// # Errors
/// If none can be made.
pub(crate) async fn open_stream(
    idle: &Idle,
    peer: &Peer,
    connect_timeout: Duration,
) -> Result<(Io, Counted), SendError> {
    let stream = Io::connect(idle, peer, Inside::Bytes, connect_timeout).await?;
    Ok((stream, idle.opened()))
}

impl Ready<'_> {
    /// Sends one request and waits for the head of the response, or until the client keeps the
    /// endpoint waiting for too long.
    ///
    /// # Errors
    /// When there is no response to pass on; nothing of it has reached the client then.
    pub async fn send(
        self,
        idle: &Idle,
        head: &Head<'_>,
        body: Outgoing,
    ) -> Result<Answer, SendError> {
        let Outgoing::Stream(streamed) = &body else {
            return self.hand_over(idle, head, body).await;
        };
        let stalled = streamed.stalled();
        Box::pin(async {
            tokio::select! {
                biased;
                answer = self.hand_over(idle, head, body) => answer,
                limit = stalled => Err(SendError::ClientStalled(limit)),
            }
        })
        .await
    }

    async fn hand_over(
        self,
        idle: &Idle,
        head: &Head<'_>,
        body: Outgoing,
    ) -> Result<Answer, SendError> {
        match self.kind {
            Kind::H1(conn) => h1::send(conn, idle, head, body).await,
            Kind::H2(conn) => Box::pin(h2::send(conn, head, body)).await,
        }
    }

    /// The same for requests that may reach the endpoint twice: a reused connection that turns out
    /// dead before it brought a byte is replaced once by a fresh one, as long as the body can be
    /// sent again.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn send_again(
        self,
        idle: &Idle,
        head: &Head<'_>,
        body: Outgoing,
        connect_timeout: Duration,
    ) -> Result<Answer, SendError> {
        let again = if self.reused { body.again() } else { None };
        let peer = self.peer;
        match (self.send(idle, head, body).await, again) {
            (Err(SendError::Reset(_)), Some(again)) => {
                let anew = async {
                    let kind = connect(idle, peer, connect_timeout).await?;
                    let fresh = Self {
                        kind,
                        peer,
                        reused: false,
                    };
                    fresh.send(idle, head, again).await
                };
                Box::pin(anew).await
            }
            (done, _) => done,
        }
    }
}

/// Sends one request to `peer` and waits for the head of the response: [`open`], then
/// [`Ready::send_again`].
///
/// # Errors
/// When there is no response to pass on; nothing of it has reached the client then.
pub async fn send(
    idle: &Idle,
    peer: &Peer,
    head: &Head<'_>,
    body: Outgoing,
    connect_timeout: Duration,
) -> Result<Answer, SendError> {
    let ready = open(idle, peer, connect_timeout).await?;
    ready.send_again(idle, head, body, connect_timeout).await
}

impl AnswerBody {
    /// The next frame.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        match self {
            Self::H1(body) => body.poll_frame(cx),
            Self::H2(body) => body.poll_frame(cx),
            Self::Outside(body) => body.poll_frame(cx),
            Self::Upgraded(_) | Self::Done => Poll::Ready(None),
        }
    }

    /// Bytes still to come, if the endpoint said so.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::H1(body) => body.length(),
            Self::H2(body) => body.length(),
            Self::Outside(_) => None,
            Self::Upgraded(_) | Self::Done => Some(0),
        }
    }
}

/// Whether a field belongs to one hop only and must not be passed on.
#[must_use]
pub fn is_hop_by_hop(name: &http::HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "transfer-encoding"
            | "upgrade"
            | "te"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
    )
}

/// Makes the fields of a response fit to be passed on: without those of one hop, with one
/// Content-Length at most, and with none where there is no content or where trailers are announced:
/// HTTP/1.1 has a place for these behind chunks only, and HTTP/2 sends both.
fn settle_fields(status: StatusCode, headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    let empty = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if empty || headers.contains_key(http::header::TRAILER) {
        headers.remove(http::header::CONTENT_LENGTH);
        return;
    }
    let mut lengths = headers.get_all(http::header::CONTENT_LENGTH).iter();
    if let (Some(length), Some(_)) = (lengths.next().cloned(), lengths.next()) {
        headers.insert(http::header::CONTENT_LENGTH, length);
    }
}

/// Removes hop-by-hop fields, those that `Connection` names included.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip(headers, is_hop_by_hop);
}

/// Removes hop-by-hop fields and those that `ends_here` tells, in one pass over what is there:
/// asking for each name by itself would hash it.
pub fn strip(headers: &mut HeaderMap, ends_here: impl Fn(&http::HeaderName) -> bool) {
    let mut gone: SmallVec<[http::HeaderName; 8]> = SmallVec::new();
    for (name, value) in &*headers {
        if *name == http::header::CONNECTION {
            let listed = value.to_str().unwrap_or_default().split(',');
            gone.extend(
                listed.filter_map(|n| http::HeaderName::from_bytes(n.trim().as_bytes()).ok()),
            );
        }
        if is_hop_by_hop(name) || ends_here(name) {
            gone.push(name.clone());
        }
    }
    for name in gone {
        headers.remove(name);
    }
}
