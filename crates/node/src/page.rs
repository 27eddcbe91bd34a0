//! The pages of a driver over HTTP: metrics, whether it lives, whether it is ready. It only answers `GET`,
//! and knows no authentication.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at once; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 16;
/// How long a head may take, idle time before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long no further connection is taken after taking one failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// What the pages show.
pub struct Pages {
    /// Metrics.
    pub registry: Registry,
    /// Why the driver is not ready; none if it is.
    pub unready: Box<dyn Fn() -> Option<String> + Send + Sync>,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// Where they are asked for.
#[derive(Debug)]
pub enum Listener {
    /// At an address.
    Tcp(TcpListener),
    /// At a socket of the host.
    Unix(UnixListener),
}

/// Serves them for ever.
pub async fn serve(listener: Listener, pages: Arc<Pages>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let taken = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(connection(stream, Arc::clone(&pages), permit));
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(connection(stream, Arc::clone(&pages), permit));
            }),
        };
        if let Err(error) = taken {
            tracing::warn!("a connection for metrics was not taken: {error}");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn connection<S>(stream: S, pages: Arc<Pages>, _permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let pages = Arc::clone(&pages);
        async move { Ok::<_, Infallible>(answer(&request, &pages)) }
    });
    // A client that misbehaves ends its own connection.
    let _ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let mut text = String::new();
            match encode(&mut text, &pages.registry) {
                Ok(()) => (StatusCode::OK, OPENMETRICS, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
            }
        }
        (&Method::GET, "/healthz") => (StatusCode::OK, TEXT, "ok\n".to_owned()),
        (&Method::GET, "/readyz") => match (pages.unready)() {
            None => (StatusCode::OK, TEXT, "ok\n".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, why + "\n"),
        },
        (&Method::GET, _) => {
            let known = "there are /metrics, /healthz and /readyz\n";
            (StatusCode::NOT_FOUND, TEXT, known.to_owned())
        }
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "GET only\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
