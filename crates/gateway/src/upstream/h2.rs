//! HTTP/2 towards endpoints that ask for it: with prior knowledge (`kubernetes.io/h2c`), or within
//! TLS, where both agree on it.

use std::cell::Cell;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;

use super::io::{Io, TlsFault};
use super::streamed::BadBody;
use super::{Answer, AnswerBody, Head, Idle, Outgoing, Peer, SendError, settle_fields};
use crate::tls::backend::Inside;
use crate::worker::LocalExecutor;

/// One HTTP/2 connection, shared by the requests of a worker.
#[derive(Clone, Debug)]
pub(super) struct Multiplexed {
    sender: http2::SendRequest<Upload>,
    scheme: &'static str,
    load: Rc<Load>,
}

/// How busy a connection is.
#[derive(Debug)]
struct Load {
    requests: Cell<usize>,
    /// As many as the endpoint takes at once.
    requests_max: Cell<usize>,
    tls_fault: TlsFault,
}

/// A request on a connection, until its response has ended.
#[derive(Debug)]
struct Counting(Rc<Load>);

impl Multiplexed {
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Requests under way.
    pub(super) fn requests(&self) -> usize {
        self.load.requests.get()
    }

    pub(super) fn has_room(&self) -> bool {
        self.requests() < self.load.requests_max.get()
    }
}

impl Counting {
    fn begin(load: &Rc<Load>) -> Self {
        load.requests.set(load.requests.get() + 1);
        Self(Rc::clone(load))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
    }
}

/// The body of a response.
#[derive(Debug)]
pub struct H2Body {
    incoming: Incoming,
    /// Whether trailers were announced.
    trailed: bool,
    counting: Counting,
    client: ClientsPart,
}

/// What has broken the client's body, if it still streams: hyper resets the stream then and says no
/// more, and the endpoint must not be blamed for it.
type ClientsPart = Option<Rc<Cell<Option<&'static str>>>>;

impl H2Body {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        let frame = Pin::new(&mut self.incoming).poll_frame(cx);
        frame.map_err(|e| broke(e, &self.counting.0, &self.client))
    }

    pub(super) fn length(&self) -> Option<u64> {
        match self.incoming.is_end_stream() {
            true => Some(0),
            // Who passes it on with a length has no place for the trailers.
            false if self.trailed => None,
            false => self.incoming.size_hint().exact(),
        }
    }

    /// Whether it is known that nothing more comes.
    pub(crate) fn is_finished(&self) -> bool {
        self.incoming.is_end_stream()
    }
}

pub(super) async fn send(
    mut conn: Multiplexed,
    head: &Head<'_>,
    body: Outgoing,
) -> Result<Answer, SendError> {
    let counting = Counting::begin(&conn.load);
    let client = match &body {
        Outgoing::Stream(streamed) => Some(streamed.broken()),
        Outgoing::Empty | Outgoing::Whole { .. } => None,
    };
    let request = request(conn.scheme, head, body)?;
    let broke = |e| broke(e, &counting.0, &client);
    conn.sender.ready().await.map_err(broke)?;
    let sent = conn.sender.send_request(request).await;
    let (mut parts, incoming) = sent.map_err(broke)?.into_parts();
    settle_fields(parts.status, &mut parts.headers);
    let trailed = parts.headers.contains_key(http::header::TRAILER);
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body: AnswerBody::H2(Box::new(H2Body {
            incoming,
            trailed,
            counting,
            client,
        })),
    })
}

/// What broke a connection or a stream of it: the client, TLS, or the endpoint.
fn broke(error: hyper::Error, conn: &Load, client: &ClientsPart) -> SendError {
    if let Some(what) = client.as_ref().and_then(|broken| broken.get()) {
        return SendError::ClientBody(what);
    }
    match conn.tls_fault.get() {
        Some(what) => SendError::Tls(io::Error::other(what.clone())),
        None => SendError::Reset(io::Error::other(error)),
    }
}

/// A new connection to `peer`, which the worker's further requests share.
pub(super) async fn connect(
    idle: &Idle,
    peer: &Peer,
    limit: Duration,
) -> Result<Multiplexed, SendError> {
    let stream = Io::connect(idle, peer, Inside::Http2, limit).await?;
    if !stream.speaks_h2() {
        let what = "the endpoint does not agree on HTTP/2 (ALPN h2)";
        return Err(SendError::Tls(io::Error::other(what)));
    }
    let tls_fault = stream.tls_fault();
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| SendError::Connect(io::Error::other(e)))?;
    let load = Rc::new(Load {
        requests: Cell::new(0),
        requests_max: Cell::new(connection.current_max_send_streams()),
        tls_fault,
    });
    // The connection lives as long as its requests; its errors reach them.
    let (counted, limits) = (idle.opened(), Rc::clone(&load));
    let mut connection = Box::pin(connection);
    tokio::task::spawn_local(async move {
        let _counted = counted;
        let _closed = std::future::poll_fn(|cx| {
            let closed = connection.as_mut().poll(cx);
            let most = connection.current_max_send_streams();
            limits.requests_max.set(most.max(1));
            closed
        })
        .await;
    });
    let conn = Multiplexed {
        sender,
        scheme: if peer.tls.is_some() { "https" } else { "http" },
        load,
    };
    idle.put_multiplexed(peer.key(), conn.clone());
    Ok(conn)
}

fn request(scheme: &str, head: &Head<'_>, body: Outgoing) -> Result<Request<Upload>, SendError> {
    let uri = http::Uri::builder()
        .scheme(scheme)
        // A client of HTTP/1.0 need not name a host, a request of HTTP/2 must.
        .authority(if head.host.is_empty() {
            "localhost"
        } else {
            head.host
        })
        .path_and_query(head.target)
        .build()
        .map_err(|_| SendError::Protocol("the request's target is not a valid URI"))?;
    let mut request = Request::new(Upload::from(body));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = head.headers.clone();
    // Trailers are passed on; gRPC servers look for this.
    request
        .headers_mut()
        .insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    Ok(request)
}

/// An [`Outgoing`] as hyper wants it.
#[derive(Debug)]
struct Upload {
    body: Outgoing,
}

impl From<Outgoing> for Upload {
    fn from(body: Outgoing) -> Self {
        Self { body }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BadBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BadBody>>> {
        match &mut self.body {
            Outgoing::Empty => Poll::Ready(None),
            Outgoing::Whole { pieces, trailers } => Poll::Ready(if pieces.is_empty() {
                let trailers = trailers.take().map(Arc::unwrap_or_clone);
                trailers.map(|trailers| Ok(Frame::trailers(trailers)))
            } else {
                Some(Ok(Frame::data(pieces.remove(0))))
            }),
            Outgoing::Stream(streamed) => streamed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Outgoing::Empty => true,
            Outgoing::Whole { pieces, trailers } => pieces.is_empty() && trailers.is_none(),
            Outgoing::Stream(streamed) => streamed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .length()
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
