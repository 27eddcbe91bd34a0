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

use super::{Answer, AnswerBody, Head, Idle, Outgoing, SendError, h1, settle_fields};
use crate::worker::LocalExecutor;

/// One HTTP/2 connection, shared by the requests of a worker.
#[derive(Clone, Debug)]
pub(super) struct Multiplexed(http2::SendRequest<Upload>);

impl Multiplexed {
    pub(super) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
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
    settle_fields(parts.status, &mut parts.headers);
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body: AnswerBody::H2(body),
    })
}

/// A new connection to `address`, which the worker's further requests share.
pub(super) async fn connect(
    idle: &Idle,
    address: SocketAddr,
    limit: Duration,
) -> Result<Multiplexed, SendError> {
    let stream = h1::tcp(address, limit).await?;
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| SendError::Connect(std::io::Error::other(e)))?;
    // The connection lives as long as its requests; its errors reach them.
    let counted = idle.opened();
    tokio::task::spawn_local(async move {
        let _counted = counted;
        let _closed = connection.await;
    });
    let conn = Multiplexed(sender);
    idle.put_multiplexed(address, conn.clone());
    Ok(conn)
}

fn request(head: &Head<'_>, body: Outgoing) -> Result<Request<Upload>, SendError> {
    let uri = http::Uri::builder()
        .scheme("http")
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
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Outgoing::Empty => Poll::Ready(None),
            Outgoing::Pieces(pieces) if pieces.is_empty() => Poll::Ready(None),
            Outgoing::Pieces(pieces) => Poll::Ready(Some(Ok(Frame::data(pieces.remove(0))))),
            Outgoing::Stream(streamed) => streamed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Outgoing::Empty => true,
            Outgoing::Pieces(pieces) => pieces.is_empty(),
            Outgoing::Stream(streamed) => streamed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .length()
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
