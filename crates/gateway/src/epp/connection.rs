//! One connection of a proxy: HTTP/2, a stream for each call.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use forebay_model::ObjectName;
use h2::server::SendResponse;
use h2::{RecvStream, server};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_local;

use super::health;
use super::pools::CallNames;
use super::stream::{Call, Manner};
use super::wire::{Incoming, Outgoing, ending};
use crate::admin::Readiness;
use crate::grpc::Code;
use crate::worker::Worker;

/// How long a handshake may take, that of TLS and that of HTTP/2 each.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls of one connection at a time. A proxy with more opens further connections, which then come to
/// other workers.
const CALLS_PER_CONNECTION_MAX: u32 = 512;
/// Bytes of one call that may lie here unread: a body of usual length comes in one go.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes of all calls of a connection that may. What has been read of them is in the memory for bodies,
/// which has a bound of its own.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Bytes of a frame that the proxy may send.
const FRAME_BYTES_MAX: u32 = 64 << 10;
/// Bytes of the head of a call.
const HEAD_BYTES_MAX: u32 = 16 << 10;
/// Calls that were given up before they were looked at. Clients leave by the hundred when something
/// goes wrong, and a proxy must not lose its connection for it.
const GIVEN_UP_MAX: usize = 4096;

/// What a connection is for.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) manner: Rc<Manner>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) only_pool: Option<ObjectName>,
    pub(super) health_only: bool,
    pub(super) peer: SocketAddr,
}

/// Serves a connection to its end.
pub(super) async fn serve(
    worker: Rc<Worker>,
    terms: Terms,
    io: impl AsyncRead + AsyncWrite + Unpin,
) {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .max_pending_accept_reset_streams(GIVEN_UP_MAX)
        .max_concurrent_reset_streams(GIVEN_UP_MAX);
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(io)).await;
    let Ok(Ok(mut connection)) = shaken else {
        return;
    };
    let terms = Rc::new(terms);
    let mut drain = worker.drain_notice();
    let mut draining = false;
    loop {
        let next = std::future::poll_fn(|cx| {
            if !draining && drain.poll(cx).is_ready() {
                draining = true;
                // Calls under way end, new ones go elsewhere.
                connection.graceful_shutdown();
            }
            connection.poll_accept(cx)
        });
        match next.await {
            Some(Ok((request, respond))) => {
                spawn_local(call(
                    Rc::clone(&worker),
                    Rc::clone(&terms),
                    request,
                    respond,
                ));
            }
            // Its calls learn of it by themselves.
            Some(Err(_)) | None => return,
        }
    }
}

async fn call(
    worker: Rc<Worker>,
    terms: Rc<Terms>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    let grpc = head
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(crate::grpc::is_content_type);
    if head.method != Method::POST || !grpc {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let _gone = respond.send_response(response, true);
        return;
    }
    let path = head.uri.path();
    let process = path == forebay_wire::PROCESS_PATH && !terms.health_only;
    let kind = health::Kind::of(path);
    if !process && kind.is_none() {
        let mut response = answer();
        let message = format!("{path} is not served here");
        *response.headers_mut() = {
            let mut headers = std::mem::take(response.headers_mut());
            headers.extend(ending(Some((Code::Unimplemented, &message))));
            headers
        };
        let _gone = respond.send_response(response, true);
        return;
    }
    let Ok(stream) = respond.send_response(answer(), false) else {
        return;
    };
    let outgoing = Outgoing::new(stream);
    match kind {
        None => {
            let incoming = Incoming::new(body, worker.shared.settings.body_bytes_max);
            let names = CallNames::of(&head.uri, &head.headers);
            let call = Call::new(&worker, &terms.manner, names, terms.peer);
            call.serve(incoming, outgoing).await;
        }
        Some(kind) => {
            let incoming = Incoming::new(body, 0);
            health::serve(&worker, &terms, kind, incoming, outgoing).await;
        }
    }
}

fn answer() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

/// Ready once the worker drains.
pub(super) async fn drained(worker: &Worker) {
    let mut drain = worker.drain_notice();
    std::future::poll_fn(|cx| match drain.poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => Poll::Pending,
    })
    .await;
}
