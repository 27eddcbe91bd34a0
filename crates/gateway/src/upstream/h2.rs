//! HTTP/2 with prior knowledge towards endpoints that ask for it (`kubernetes.io/h2c`).

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;

use super::{Answer, AnswerBody, Head, Idle, Outgoing, SendError, h1, strip_hop_by_hop};
use crate::worker::LocalExecutor;

/// One HTTP/2 connection, shared by the requests of a worker.
#[derive(Clone, Debug)]
pub(super) struct Multiplexed(http2::SendRequest<Upload>);

impl Multiplexed {
    pub(super) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// The worker's connection to `address`, made if it is not there.
pub(super) async fn open(
    idle: &Idle,
    address: SocketAddr,
    connect_timeout: Duration,
) -> Result<Multiplexed, SendError> {
    if let Some(conn) = idle.multiplexed(address) {
        return Ok(conn);
    }
    let conn = connect(address, connect_timeout).await?;
    idle.put_multiplexed(address, conn.clone());
    Ok(conn)
}

pub(super) async fn send(
    mut conn: Multiplexed,
    head: &Head<'_>,
    body: Outgoing,
) -> Result<Answer, SendError> {
    let broken = |e: hyper::Error| SendError::Reset(std::io::Error::other(e));
    conn.0.ready().await.map_err(broken)?;
    let response = conn
        .0
        .send_request(request(head, body)?)
        .await
        .map_err(broken)?;
    let (mut parts, body) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body: AnswerBody::H2(body),
    })
}

async fn connect(address: SocketAddr, limit: Duration) -> Result<Multiplexed, SendError> {
    let stream = h1::tcp(address, limit).await?;
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| SendError::Connect(std::io::Error::other(e)))?;
    // The connection lives as long as its requests; its errors reach them.
    tokio::task::spawn_local(async move {
        let _closed = connection.await;
    });
    Ok(Multiplexed(sender))
}

fn request(head: &Head<'_>, body: Outgoing) -> Result<Request<Upload>, SendError> {
    let uri = http::Uri::builder()
        .scheme("http")
        .authority(head.host)
        .path_and_query(head.target)
        .build()
        .map_err(|_| SendError::Protocol("the request's target is not a valid URI"))?;
    let mut request = Request::new(Upload::from(body));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = head.headers.clone();
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
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Outgoing::Empty => Poll::Ready(None),
            Outgoing::Pieces(pieces) if pieces.is_empty() => Poll::Ready(None),
            Outgoing::Pieces(pieces) => Poll::Ready(Some(Ok(Frame::data(pieces.remove(0))))),
            Outgoing::Stream(incoming, _) => Pin::new(incoming).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Outgoing::Empty => true,
            Outgoing::Pieces(pieces) => pieces.is_empty(),
            Outgoing::Stream(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .length()
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
