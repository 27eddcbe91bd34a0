//! The models of a pool: what `GET /v1/models` lists, and what a request may ask for.
//!
//! Lists are asked from the endpoints themselves, LoRA adapters included, and kept for a while. An
//! unknown name is looked up anew before it is refused, at most once a second per pool. Where no
//! endpoint has a list (Triton, for one) every name passes.

use rustc_hash::FxHashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use forebay_dialect::models::ModelList;
use forebay_model::{Moment, Pool};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use tokio::sync::Notify;

use crate::clock;
use crate::exchange::Exchange;
use crate::pools::PoolRuntime;
use crate::relay::Body;
use crate::respond::Refusal;
use crate::upstream::{self, Head, Outgoing, Peer};
use crate::worker::Worker;

/// After this long a list is fetched anew in passing.
const FRESH_FOR: Duration = Duration::from_secs(30);
/// An unknown name is worth a new fetch if the list is older than this.
const DOUBTED_AFTER: Duration = Duration::from_secs(1);
/// How long one endpoint may take for its list.
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);
/// Endpoints asked for one list; pools are expected to serve the same models everywhere, and
/// adapters that only others hold are found when they are asked for.
const ENDPOINTS_ASKED_MAX: usize = 64;
/// Bytes of one endpoint's list; a longer one is not read.
const LIST_BYTES_MAX: usize = 4 << 20;
/// Names listed in an error.
const NAMES_TOLD_MAX: usize = 20;

/// The models of one pool, as last heard.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    known: ArcSwapOption<Known>,
    fetching: AtomicBool,
    fetched: Notify,
}

#[derive(Debug)]
struct Known {
    at: Moment,
    /// `None` if no endpoint had a list.
    names: Option<FxHashSet<String>>,
    body: Bytes,
}

/// Answers `GET /v1/models` for one pool.
pub(crate) async fn list(
    ex: &mut Exchange,
    runtime: &Arc<PoolRuntime>,
) -> Result<Response<Body>, Refusal> {
    let known = refresh(&ex.worker, runtime, DOUBTED_AFTER).await;
    let Some(known) = known.filter(|known| known.names.is_some()) else {
        let message = format!(
            "no endpoint of InferencePool {} lists its models",
            runtime.name
        );
        return Err(Refusal {
            retry_after_s: Some(1),
            ..Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no_ready_endpoint",
                message,
            )
        });
    };
    let mut response = Response::new(Body::full(known.body.clone()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(ex.finish_here(response))
}

/// Whether the pool is known to have a model; an old list is fetched anew in passing.
pub(crate) fn has(worker: &Rc<Worker>, runtime: &Arc<PoolRuntime>, model: &str) -> bool {
    let known = runtime.catalogue.known.load();
    let Some(known) = &*known else {
        return false;
    };
    let names = known.names.as_ref();
    let has = names.is_none_or(|names| names.contains(model));
    if has && clock::now().since(known.at) > FRESH_FOR {
        let (worker, runtime) = (Rc::clone(worker), Arc::clone(runtime));
        tokio::task::spawn_local(async move {
            refresh(&worker, &runtime, FRESH_FOR).await;
        });
    }
    has
}

/// Asks the endpoints, and refuses a model that the pool does not have.
pub(crate) async fn check(
    worker: &Worker,
    runtime: &Arc<PoolRuntime>,
    model: &str,
) -> Result<(), Refusal> {
    let known = refresh(worker, runtime, DOUBTED_AFTER).await;
    match known.as_ref().and_then(|known| known.names.as_ref()) {
        Some(names) if !names.contains(model) => Err(unknown(runtime, model, names)),
        // Nobody knows better than the endpoint itself.
        Some(_) | None => Ok(()),
    }
}

fn unknown(runtime: &PoolRuntime, model: &str, names: &FxHashSet<String>) -> Refusal {
    let mut list: Vec<&str> = names.iter().map(String::as_str).collect();
    list.sort_unstable();
    let more = list.len().saturating_sub(NAMES_TOLD_MAX);
    list.truncate(NAMES_TOLD_MAX);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let shown: String = model.chars().take(128).collect();
    let message = format!(
        "the model `{shown}` does not exist in pool {}; it has: {}{more}",
        runtime.name,
        list.join(", ")
    );
    Refusal {
        param: Some("model"),
        ..Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message)
    }
}

/// The list, fetched anew if it is older than `age`. While somebody else fetches, what is known
/// has to do; where nothing is, the fetch is waited for.
async fn refresh(worker: &Worker, runtime: &PoolRuntime, age: Duration) -> Option<Arc<Known>> {
    let catalogue = &runtime.catalogue;
    let known = catalogue.known.load_full();
    let fresh = known
        .as_ref()
        .is_some_and(|known| clock::now().since(known.at) < age);
    if fresh {
        return known;
    }
    let fetched = catalogue.fetched.notified();
    if catalogue.fetching.swap(true, Ordering::AcqRel) {
        if known.is_some() {
            return known;
        }
        // We listen since before the look at `fetching`, so its end is not missed.
        let _gave_up = tokio::time::timeout(FETCH_TIMEOUT, fetched).await;
        return catalogue.known.load_full();
    }
    let _fetching = Fetching(catalogue);
    let pool = runtime.pool();
    let addresses = pool.ready().take(ENDPOINTS_ASKED_MAX).map(|e| e.address);
    let lists = futures_util::future::join_all(addresses.map(|at| fetch(worker, &pool, at))).await;
    let lists: Vec<Bytes> = lists.into_iter().flatten().collect();
    let mut merged = ModelList::default();
    let heard = lists
        .iter()
        .filter(|list| merged.merge(list).is_ok())
        .count();
    for alias in pool.rewrites.iter().flat_map(|rule| &rule.models) {
        merged.add(alias, 0, "forebay");
    }
    let known = Arc::new(Known {
        at: clock::now(),
        names: (heard > 0).then(|| merged.ids().map(str::to_owned).collect()),
        body: Bytes::from(merged.render()),
    });
    catalogue.known.store(Some(Arc::clone(&known)));
    Some(known)
}

/// Lets the next one fetch, also if this fetch is dropped half-way.
struct Fetching<'a>(&'a Catalogue);

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.fetching.store(false, Ordering::Release);
        self.0.fetched.notify_waiters();
    }
}

async fn fetch(worker: &Worker, pool: &Pool, address: SocketAddr) -> Option<Bytes> {
    let headers = HeaderMap::new();
    let host = address.to_string();
    let head = Head {
        method: &Method::GET,
        target: "/v1/models",
        host: &host,
        headers: &headers,
        upgrade: None,
    };
    let get = async {
        let limit = worker.shared.settings.connect_timeout;
        let peer = Peer::plain(address, pool.protocol);
        let sent = upstream::send(&worker.idle, &peer, &head, Outgoing::Empty, limit);
        let mut answer = sent
            .await
            .ok()
            .filter(|answer| answer.status == StatusCode::OK)?;
        let mut whole = BytesMut::new();
        while let Some(frame) = std::future::poll_fn(|cx| answer.body.poll_frame(cx)).await {
            let data = frame.ok()?.into_data().unwrap_or_default();
            if whole.len() + data.len() > LIST_BYTES_MAX {
                return None;
            }
            whole.extend_from_slice(&data);
        }
        Some(whole.freeze())
    };
    tokio::time::timeout(FETCH_TIMEOUT, get)
        .await
        .ok()
        .flatten()
}
