//! One client connection, from its first byte to the HTTP server or the stream that takes it over.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use forebay_model::snapshot::{ClientTrust, Listener};
use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::client_io::{ClientIo, Stream};
use crate::client_streams::{StreamBody, StreamExecutor};
use crate::telemetry::Counted;
use crate::tls::hello::{self, Hello};
use crate::tls::{self, Ends};
use crate::worker::Worker;
use crate::{exchange, stream};

/// How long a TLS handshake or the protocol's first bytes may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait between two looks at the first bytes of a connection.
const PREFACE_POLL_MAX: Duration = Duration::from_millis(256);
/// What hyper insists on.
const HEAD_BYTES_LEAST: usize = 8192;
/// Streams of one HTTP/2 connection at a time; its client has to wait with further ones.
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;

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
    /// What TLS was made for, where there is TLS.
    pub(crate) tls: Option<ClientTls>,
}

/// The terms of a connection with TLS.
#[derive(Debug)]
pub(crate) struct ClientTls {
    /// The server that the client named, lower case.
    name: Option<Box<str>>,
    /// Whom the client had to be.
    clients: Option<Arc<ClientTrust>>,
}

impl ClientTls {
    /// Whether a request for `host`, which is `listener`'s, may come this way. The server name must
    /// lead to the same listener, and that must ask of clients what it asked of this one: a
    /// connection that is used for more than it was made for would get by without the certificate
    /// that the other listener wants to see.
    pub(crate) fn is_for(&self, listener: &Listener, listeners: &[Listener], host: &str) -> bool {
        let same = || {
            let named = tls::listener_for(listeners, self.name.as_deref());
            named.is_some_and(|at| std::ptr::eq(&listeners[at], listener))
        };
        listener.tls_routes.is_none()
            && self.clients == listener.clients
            && (self.name.as_deref() == Some(host) || same())
    }
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

/// Serves a connection to its end.
pub(crate) async fn serve(held: Held, stream: TcpStream, address: SocketAddr, bound: u16) {
    let worker = Rc::clone(&held.worker);
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let live = worker.live();
    let Some(port) = live.snapshot.ports.get(&bound) else {
        return;
    };
    let address = canonical(address);
    let Ok(ip) = HeaderValue::from_str(&address.ip().to_string()) else {
        return;
    };
    let client = Client {
        address,
        ip,
        bound,
        port: port.number,
        port_text: port.number.into(),
        tls: None,
    };
    let limit = HANDSHAKE_TIMEOUT.min(worker.shared.settings.head_timeout);
    if port.tls {
        let until = Instant::now() + limit;
        drop(live);
        return Box::pin(serve_tls(&worker, stream, client, until)).await;
    }
    drop(live);
    let Ok(Ok(http2)) = tokio::time::timeout(limit, has_h2_preface(&stream)).await else {
        return;
    };
    serve_http(&worker, Stream::Plain(stream), http2, client).await;
}

/// Finds the listener that the client names, and what its connections become.
async fn serve_tls(worker: &Rc<Worker>, mut stream: TcpStream, client: Client, until: Instant) {
    let failed = |reason| worker.shared.telemetry.metrics.tls_failed(reason);
    let hello = match tokio::time::timeout_at(until, Hello::read(&mut stream)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(error)) => return failed(hello_failure(&error)),
        Err(_) => return failed("timeout"),
    };
    // What is in force by now, and not when the client began.
    let live = worker.live();
    let Some(port) = live.snapshot.ports.get(&client.bound) else {
        return;
    };
    let name = hello.server_name();
    let at = tls::listener_for(&port.listeners, name.as_deref());
    let found = at.and_then(|at| Some((at, live.tls_listener(client.bound, at)?)));
    let Some((at, (listener, ends))) = found else {
        failed("no_listener");
        // Where nothing but bytes is passed on, a name that nobody has is like a closed port.
        let is_http = |l: &Listener| l.tls_routes.is_none() && !l.refused;
        if port.listeners.iter().any(is_http) {
            hello::refuse(&mut stream).await;
        }
        return;
    };
    if listener.tls_routes.is_some() {
        let incoming = stream::Incoming {
            stream,
            hello,
            client: client.address,
            bound: client.bound,
            listener: at,
            until,
        };
        return stream::serve(worker, live, incoming).await;
    }
    let Ends::Here(config) = ends else {
        failed("certificate_invalid");
        return hello::refuse(&mut stream).await;
    };
    let client = Client {
        tls: Some(ClientTls {
            name,
            clients: listener.clients.clone(),
        }),
        ..client
    };
    let config = Arc::clone(config);
    // The configuration is not kept for as long as the connection lives.
    drop(live);
    match tokio::time::timeout_at(until, hello.end_here(stream, config)).await {
        Ok(Ok(stream)) => {
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            serve_http(worker, Stream::Tls(Box::new(stream)), http2, client).await;
        }
        Ok(Err(_)) => failed("handshake"),
        Err(_) => failed("timeout"),
    }
}

fn hello_failure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => "client_gone",
        _ => "not_tls",
    }
}

/// Lets hyper serve the connection. Errors of it are its client's business: each exchange has its
/// own record.
async fn serve_http(worker: &Rc<Worker>, stream: Stream, http2: bool, client: Client) {
    let io = ClientIo::new(stream, worker.shared.settings.write_stall_timeout);
    let (client, io) = (Rc::new(client), TokioIo::new(io));
    if http2 {
        speak_http2(worker, client, io).await;
    } else {
        speak_http1(worker, client, io).await;
    }
}

async fn speak_http1(worker: &Rc<Worker>, client: Rc<Client>, io: TokioIo<ClientIo>) {
    let (own, settings) = (Rc::clone(worker), &worker.shared.settings);
    let service = service_fn(move |request| {
        let (worker, client) = (Rc::clone(&own), Rc::clone(&client));
        // In a box of its own: hyper keeps room for the future as long as the connection lives, and
        // this one takes several kilobytes, which an idle connection need not hold.
        Box::pin(async move { Ok::<_, Infallible>(exchange::serve(worker, client, request).await) })
    });
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
    if until_drain(worker, conn.as_mut()).await {
        conn.as_mut().graceful_shutdown();
        let _closed = conn.await;
    }
}

async fn speak_http2(worker: &Rc<Worker>, client: Rc<Client>, io: TokioIo<ClientIo>) {
    let (own, settings) = (Rc::clone(worker), &worker.shared.settings);
    let service = service_fn(move |request| {
        let (worker, client) = (Rc::clone(&own), Rc::clone(&client));
        Box::pin(async move {
            let response = exchange::serve(Rc::clone(&worker), client, request).await;
            Ok::<_, Infallible>(response.map(|body| StreamBody::new(body, worker)))
        })
    });
    let conn = http2::Builder::new(StreamExecutor(Rc::clone(worker)))
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .max_header_list_size(u32::try_from(settings.head_bytes_max).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .serve_connection(io, service);
    let mut conn = std::pin::pin!(conn);
    if until_drain(worker, conn.as_mut()).await {
        conn.as_mut().graceful_shutdown();
        let _closed = conn.await;
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
