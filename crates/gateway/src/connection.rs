//! One client connection, from its first byte to the HTTP server that takes it over.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::client_io::{ClientIo, Stream};
use crate::exchange;
use crate::telemetry::Counted;
use crate::worker::{LocalExecutor, Worker};

/// How long a TLS handshake or the protocol's first bytes may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait between two looks at the first bytes of a connection.
const PREFACE_POLL_MAX: Duration = Duration::from_millis(256);
/// What hyper insists on.
const HEAD_BYTES_LEAST: usize = 8192;

/// Where a connection came from.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    /// Its IP address, as `X-Forwarded-For` says it.
    pub(crate) ip: HeaderValue,
    /// The port that was bound, by which the snapshot knows it.
    pub(crate) bound: u16,
    /// The port that the client asked for: the listener's, when the connection began.
    pub(crate) port: u16,
    /// The same, as `X-Forwarded-Port` says it.
    pub(crate) port_text: HeaderValue,
    pub(crate) tls: bool,
}

/// Counts a connection for as long as it lives.
#[derive(Debug)]
pub(crate) struct Held {
    worker: Rc<Worker>,
    _counted: Counted,
}

impl Held {
    pub(crate) fn new(worker: Rc<Worker>) -> Self {
        Self {
            _counted: worker.connection_opened(),
            worker,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.worker.connection_closed();
    }
}

pub(crate) async fn serve(held: Held, stream: TcpStream, address: SocketAddr, bound: u16) {
    let worker = Rc::clone(&held.worker);
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let (number, tls) = {
        let live = worker.live();
        let Some(port) = live.snapshot.ports.get(&bound) else {
            return;
        };
        (port.number, live.tls.get(&bound).cloned())
    };
    let address = canonical(address);
    let Ok(ip) = HeaderValue::from_str(&address.ip().to_string()) else {
        return;
    };
    let client = Rc::new(Client {
        address,
        ip,
        bound,
        port: number,
        port_text: number.into(),
        tls: tls.is_some(),
    });
    let limit = HANDSHAKE_TIMEOUT.min(worker.shared.settings.head_timeout);
    let Ok(Some((stream, http2))) = tokio::time::timeout(limit, handshake(stream, tls)).await
    else {
        return;
    };
    let io = TokioIo::new(ClientIo::new(
        stream,
        worker.shared.settings.write_stall_timeout,
    ));
    let service = {
        let worker = Rc::clone(&worker);
        service_fn(move |request| {
            let (worker, client) = (Rc::clone(&worker), Rc::clone(&client));
            // In a box of its own: hyper keeps room for the future as long as the connection lives,
            // and this one takes several kilobytes, which an idle connection need not hold.
            Box::pin(
                async move { Ok::<_, Infallible>(exchange::serve(worker, client, request).await) },
            )
        })
    };
    let settings = &worker.shared.settings;
    // Errors of a connection are its client's business: each exchange has its own record.
    if http2 {
        let conn = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .max_concurrent_streams(1024)
            .max_header_list_size(u32::try_from(settings.head_bytes_max).unwrap_or(u32::MAX))
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .serve_connection(io, service);
        let mut conn = std::pin::pin!(conn);
        if until_drain(&worker, conn.as_mut()).await {
            conn.as_mut().graceful_shutdown();
            let _closed = conn.await;
        }
    } else {
        let conn = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.head_timeout)
            .max_buf_size(settings.head_bytes_max.max(HEAD_BYTES_LEAST))
            .max_header_size(settings.head_bytes_max)
            .max_headers(settings.headers_max)
            .half_close(false)
            .serve_connection(io, service)
            .with_upgrades();
        let mut conn = std::pin::pin!(conn);
        if until_drain(&worker, conn.as_mut()).await {
            conn.as_mut().graceful_shutdown();
            let _closed = conn.await;
        }
    }
}

/// Polls `conn` to its end or until the worker drains; true if it is to be drained.
async fn until_drain(worker: &Worker, mut conn: Pin<&mut impl Future>) -> bool {
    let mut drain = worker.drain_notice();
    std::future::poll_fn(|cx| {
        if conn.as_mut().poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        drain.poll(cx).map(|()| true)
    })
    .await
}

/// Finishes TLS if there is any, and tells whether the client speaks HTTP/2.
async fn handshake(
    stream: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Option<(Stream, bool)> {
    match tls {
        Some(config) => {
            let stream = TlsAcceptor::from(config).accept(stream).await.ok()?;
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Some((Stream::Tls(Box::new(stream)), http2))
        }
        None => {
            let http2 = has_h2_preface(&stream).await.ok()?;
            Some((Stream::Plain(stream), http2))
        }
    }
}

/// Whether the first bytes are HTTP/2's preface. No HTTP/1.1 method is called `PRI`.
async fn has_h2_preface(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0_u8; 4];
    let mut wait = Duration::from_millis(1);
    loop {
        let n = stream.peek(&mut first).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[..n] != b"PRI "[..n] {
            return Ok(false);
        }
        if n == first.len() {
            return Ok(true);
        }
        if stream.ready(Interest::READABLE).await?.is_read_closed() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The rest of a split preface: peek would answer at once with what is there.
        tokio::time::sleep(wait).await;
        // Somebody who stops after `P` must not keep this thread busy.
        wait = (wait * 2).min(PREFACE_POLL_MAX);
    }
}

/// IPv4 clients of a dual-stack socket as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
