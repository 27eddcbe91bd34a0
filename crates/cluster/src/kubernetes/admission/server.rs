//! HTTPS for webhooks: HTTP/1.1 with kept connections, bounds on connections, bodies and time. Beyond a
//! bound the API server gets an error and does as the webhook's `failurePolicy` says.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::certificate::ServerTls;
use super::review::{self, Answer, Request, Why};

/// Bytes of a question: an object as it was and as it would be, of which etcd takes 1.5 MiB each. Longer
/// ones are refused with status 413.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// Connections at once: an API server keeps up to 25 for each webhook. More wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 256;
/// Questions that are read or answered at once; more wait, so that bodies take 64 MiB at most.
const REVIEWS_MAX: usize = 16;
/// How long a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How long a head may take, idle time before it included.
const HEAD_MAX: Duration = Duration::from_secs(120);
/// How long a question may take, from its head to the answer. The webhooks' `timeoutSeconds` is longer, so
/// that the sentence arrives.
const ANSWER_MAX: Duration = Duration::from_secs(4);
/// How long no further connection is taken after taking one failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Decides what is answered.
pub trait Judge: Send + Sync + 'static {
    /// The answer to what was asked at `path`; none if nothing is served there.
    fn judge(&self, path: &str, request: Request) -> impl Future<Output = Option<Answer>> + Send;
}

/// What is counted of webhooks; clones count as one.
#[derive(Clone, Debug, Default)]
pub struct Reviews(Family<Labels, Counter>);

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Labels {
    result: &'static str,
}

impl Reviews {
    /// Adds it to a page of metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "forebay_webhook_reviews",
            "Questions of API servers by what was answered; refused are those that were none",
            self.0.clone(),
        );
    }

    fn count(&self, result: &'static str) {
        self.0.get_or_create(&Labels { result }).inc();
    }
}

/// Serves for ever. While there is no certificate yet, connections are closed.
pub async fn serve<J: Judge>(
    listener: TcpListener,
    tls: watch::Receiver<Option<ServerTls>>,
    judge: Arc<J>,
    reviews: Reviews,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let desk = Desk {
        judge,
        reviews,
        room: Arc::new(Semaphore::new(REVIEWS_MAX)),
    };
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let tls = tls.borrow().clone();
                tokio::spawn(connection(stream, tls, desk.clone(), permit));
            }
            Err(error) => {
                tracing::warn!("a connection of an API server was not taken: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Desk<J> {
    judge: Arc<J>,
    reviews: Reviews,
    room: Arc<Semaphore>,
}

impl<J> Clone for Desk<J> {
    fn clone(&self) -> Self {
        Desk {
            judge: Arc::clone(&self.judge),
            reviews: self.reviews.clone(),
            room: Arc::clone(&self.room),
        }
    }
}

async fn connection<J: Judge>(
    stream: TcpStream,
    tls: Option<ServerTls>,
    desk: Desk<J>,
    _permit: OwnedSemaphorePermit,
) {
    let Some(tls) = tls else {
        tracing::debug!("a question came before there was a certificate");
        return;
    };
    let _slower = stream.set_nodelay(true);
    let accepted = timeout(
        HANDSHAKE_MAX,
        TlsAcceptor::from(tls.config()).accept(stream),
    )
    .await;
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!("a handshake failed: {error}"),
        Err(_) => return tracing::debug!("a handshake took too long"),
    };
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(desk.answer(request).await) }
    });
    // A client that misbehaves ends its own connection.
    let _ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl<J: Judge> Desk<J> {
    async fn answer(&self, request: http::Request<Incoming>) -> Response<Full<Bytes>> {
        let answered = timeout(ANSWER_MAX, self.reviewed(request)).await;
        let (result, status, body) = match answered {
            Ok(Ok((result, body))) => (result, StatusCode::OK, body),
            Ok(Err((status, why))) => ("refused", status, why.into_bytes()),
            Err(_) => {
                let why = format!("not answered within {} s", ANSWER_MAX.as_secs());
                ("failed", StatusCode::GATEWAY_TIMEOUT, why.into_bytes())
            }
        };
        self.reviews.count(result);
        let kind = match status {
            StatusCode::OK => HeaderValue::from_static("application/json"),
            _ => HeaderValue::from_static("text/plain; charset=utf-8"),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    async fn reviewed(
        &self,
        request: http::Request<Incoming>,
    ) -> Result<(&'static str, Vec<u8>), (StatusCode, String)> {
        if request.method() != Method::POST {
            let why = "webhooks are asked with POST".to_owned();
            return Err((StatusCode::METHOD_NOT_ALLOWED, why));
        }
        let path = request.uri().path().to_owned();
        let room = self.room.acquire().await;
        let _room = room.map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(
            |error| match error.is::<http_body_util::LengthLimitError>() {
                true => (
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("longer than {BODY_BYTES_MAX} bytes"),
                ),
                false => (StatusCode::BAD_REQUEST, error.to_string()),
            },
        )?;
        let read = review::read(&body.to_bytes());
        let question = read.map_err(|why| (StatusCode::BAD_REQUEST, why))?;
        let (uid, what) = (question.uid.clone(), told(&question));
        let answer = self.judge.judge(&path, question).await;
        let answer = answer.ok_or_else(|| {
            (
                StatusCode::NOT_FOUND,
                format!("no webhook is served at {path}"),
            )
        })?;
        if let Answer::Deny { message, why, .. } = &answer {
            match why {
                Why::Invalid => tracing::info!("{what} is refused: {message}"),
                Why::Unavailable => tracing::warn!("{what} cannot be judged: {message}"),
            }
        }
        Ok((answer.label(), review::write(&uid, &answer)))
    }
}

/// The object, for the log.
fn told(request: &Request) -> String {
    let text = |pointer: &str| {
        let value = request.object.pointer(pointer);
        value.and_then(serde_json::Value::as_str).unwrap_or("?")
    };
    let (kind, namespace) = (text("/kind"), &request.namespace);
    let name = match text("/metadata/name") {
        "?" => text("/metadata/generateName"),
        name => name,
    };
    match namespace.is_empty() {
        true => format!("{kind} {name}"),
        false => format!("{kind} {namespace}/{name}"),
    }
}
