//! A new replica asks another what it knows of caches, so that it does not start blind.
//!
//! One HTTP request, `GET /peer/kv-events`, with a token that both sides have; the answer is a line of
//! JSON for each endpoint. What comes with it is only a beginning: the last batch that it is made of
//! is compared with what the model server itself still has, and without that proof it is dropped.
//! Bounds: [`COPY_BYTES_MAX`] for all of it, [`ASK_MAX`] for the asking; what does not fit, or does
//! not come in time, is done without.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use forebay_decide::SourceCopy;
use forebay_model::ObjectName;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::per_worker::lock;
use crate::shared::Shared;

/// Characters that a token has at least.
pub const TOKEN_BYTES_MIN: usize = 16;
/// Bytes of an answer; some forty for each block.
const COPY_BYTES_MAX: usize = 128 << 20;
/// How long the start may wait for what peers know.
const ASK_MAX: Duration = Duration::from_secs(5);
/// How long a peer may take to connect, or to ask.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections of peers at a time.
const CONNECTIONS_MAX: usize = 8;
const PATH: &str = "/peer/kv-events";

/// How replicas tell each other what they know.
#[derive(Clone)]
pub struct Settings {
    /// Where others may ask.
    pub listen: Option<SocketAddr>,
    /// Whom to ask: `HOST:PORT`.
    pub peers: Vec<String>,
    /// What they show each other.
    pub token: Arc<str>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is nobody's business.
        f.debug_struct("Settings")
            .field("listen", &self.listen)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

/// What peers knew, until whoever follows the endpoint takes it.
#[derive(Debug, Default)]
pub(crate) struct Copies(Mutex<HashMap<(ObjectName, SocketAddr), SourceCopy>>);

impl Copies {
    /// What was known of an endpoint; once.
    pub(crate) fn take(&self, pool: &ObjectName, address: SocketAddr) -> Option<SourceCopy> {
        lock(&self.0).remove(&(pool.clone(), address))
    }

    /// Drops what nobody has taken.
    pub(super) fn forget(&self) {
        *lock(&self.0) = HashMap::new();
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    namespace: String,
    pool: String,
    endpoint: SocketAddr,
    copy: SourceCopy,
}

/// Serves peers while the handle is kept, if the settings say so.
pub(super) fn serve(shared: &Arc<Shared>) -> Option<Serving> {
    let settings = shared.settings.peers.clone()?;
    let address = settings.listen?;
    let shared = Arc::clone(shared);
    let serving = tokio::task::spawn_local(async move {
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => {
                    tracing::error!(%address, %error, "cannot listen for peers; trying again");
                    tokio::time::sleep(PEER_TIMEOUT).await;
                }
            }
        };
        let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await;
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (shared, token) = (Arc::clone(&shared), Arc::clone(&settings.token));
            tokio::task::spawn_local(async move {
                let service = service_fn(|request| {
                    let answer = answer(&shared, &token, &request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PEER_TIMEOUT)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                // A peer that leaves or stalls is no news.
                drop(tokio::time::timeout(ASK_MAX * 4, connection).await);
                drop(slot);
            });
        }
    });
    Some(Serving(serving.abort_handle()))
}

/// Ends the serving when dropped.
#[derive(Debug)]
pub(super) struct Serving(AbortHandle);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn answer(shared: &Shared, token: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let status = |status| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    };
    let shown = request.headers().get(AUTHORIZATION);
    let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if !shown.is_some_and(|shown| same(shown, token.as_bytes())) {
        return status(StatusCode::UNAUTHORIZED);
    }
    if request.method() != Method::GET || request.uri().path() != PATH {
        return status(StatusCode::NOT_FOUND);
    }
    Response::new(Full::new(Bytes::from(all_known(shared))))
}

/// Whether both are the same, without telling by its time where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == other.len() && differences == 0
}

/// A line for each endpoint of which anything is known, as many as fit.
fn all_known(shared: &Shared) -> Vec<u8> {
    let live = shared.live.load();
    let mut lines = Vec::new();
    for (name, runtime) in live.pools.iter() {
        for endpoint in &runtime.pool().endpoints {
            // Copied under the lock, written outside of it.
            let copy = runtime.state().kv_copy(endpoint.address);
            let Some(copy) = copy else {
                continue;
            };
            let line = Line {
                namespace: name.namespace.to_string(),
                pool: name.name.to_string(),
                endpoint: endpoint.address,
                copy,
            };
            let Ok(line) = serde_json::to_vec(&line) else {
                continue;
            };
            if lines.len() + line.len() < COPY_BYTES_MAX {
                lines.extend(line);
                lines.push(b'\n');
            }
        }
    }
    lines
}

/// Asks peers, one after the other, until one has answered.
pub(super) async fn ask(shared: &Arc<Shared>) {
    let Some(settings) = &shared.settings.peers else {
        return;
    };
    let asking = async {
        for peer in &settings.peers {
            let Ok(addresses) = tokio::net::lookup_host(peer).await else {
                tracing::info!(%peer, "no such peer (yet); what it knows of caches is not had");
                continue;
            };
            for address in addresses.filter(|address| Some(*address) != settings.listen) {
                match ask_one(address, &settings.token).await {
                    Ok(copies) => {
                        let known = copies.len();
                        tracing::info!(%address, endpoints = known, "a peer told of caches");
                        *lock(&shared.peers.0) = copies;
                        return;
                    }
                    Err(why) => tracing::info!(%address, "the peer tells nothing: {why}"),
                }
            }
        }
    };
    if tokio::time::timeout(ASK_MAX, asking).await.is_err() {
        tracing::warn!("no peer has told of caches within {ASK_MAX:?}: starting without");
    }
}

async fn ask_one(
    address: SocketAddr,
    token: &str,
) -> Result<HashMap<(ObjectName, SocketAddr), SourceCopy>, String> {
    let stream = tokio::time::timeout(PEER_TIMEOUT, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| "connecting took too long".to_owned())?;
    let stream = stream.map_err(|error| error.to_string())?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let driver = tokio::task::spawn_local(async move { drop(connection.await) });
    let request = Request::get(PATH)
        .header("host", address.to_string())
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await;
    let mut response = response.map_err(|error| error.to_string())?;
    if response.status() != StatusCode::OK {
        return Err(format!("status {}", response.status()));
    }
    let mut body = BytesMut::new();
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        if let Ok(data) = frame.into_data() {
            if body.len() + data.len() > COPY_BYTES_MAX {
                return Err(format!("more than {COPY_BYTES_MAX} bytes"));
            }
            body.extend_from_slice(&data);
        }
    }
    driver.abort();
    let lines = body[..]
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
            let pool = ObjectName::new(&line.namespace, &line.pool);
            Ok(((pool, line.endpoint), line.copy))
        })
        .collect()
}
