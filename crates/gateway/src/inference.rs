//! What happens to a request for an inference pool: peek, rewrite, admit, pick, send, relay.
//!
//! Up to the first byte of an answer nothing has reached the client, so any endpoint may still be
//! tried: the ordered list of the pick is walked, then the pick is made anew without those that
//! failed. After the first byte a request stays where it is.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use forebay_decide::{Ask, End, EndKind, FailureKind, Waiter};
use forebay_dialect::observe::ResponseObserver;
use forebay_dialect::splice::ModelRestorer;
use forebay_dialect::{Api, BodyKind};
use forebay_model::pool::ExternalPicker;
use forebay_model::route::Rule;
use forebay_model::{AppProtocol, ObjectName, Pool};
use http::{HeaderMap, Response, StatusCode, header};
use http_body::Frame;
use smallvec::SmallVec;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::exact;
use crate::exchange::Exchange;
use crate::external::{self, Asked, Question};
use crate::onward::{ClientBody, Onward, OnwardHead, Upgrade};
use crate::peek::Peeked;
use crate::phases::{self, Order};
use crate::pools::{InFlight, PoolRuntime};
use crate::queue::Place;
use crate::reading::{self, Controls, ModelAt, Reading, renamed};
use crate::record::Try;
use crate::relay::{Body, Passing, Relay, Settle};
use crate::respond::Refusal;
use crate::told::ToldFields;
use crate::upstream::{self, Answer, AnswerBody, Head, Outgoing, Peer, SendError};
use crate::{catalogue, clock, slo, tunnel};

/// Endpoints tried for one request, the first included. More would let a broken request wear out
/// a whole pool.
const TRIES_MAX: usize = 5;
/// Opaque bodies up to this size are read first, so that another endpoint can be tried; longer
/// ones are passed on as they come, once.
const OPAQUE_BODY_BYTES_MAX: u64 = 1 << 20;

/// The request as it goes to endpoints, the same for every try.
struct Sending<'a> {
    ex: &'a Exchange,
    pool: &'a Pool,
    runtime: &'a Arc<PoolRuntime>,
    head: Head<'a>,
    deadline: Option<Instant>,
}

/// An endpoint's answer with its first frame, nothing of which has gone to the client yet.
pub(crate) struct Served {
    pub(crate) answer: Answer,
    pub(crate) first: Option<Frame<Bytes>>,
    pub(crate) flight: InFlight,
}

/// Who chooses the endpoint of a request.
enum Chooser {
    /// The built-in picker, which may have kept room for it.
    BuiltIn(Option<Place>),
    /// A picker outside, which has.
    Outside(Box<Asked>),
}

/// Serves one request from `pool`.
pub(crate) async fn serve(
    ex: &mut Exchange,
    rule: &Rule,
    name: &ObjectName,
    mut onward: Onward,
) -> Result<Response<Body>, Refusal> {
    ex.record.pool = Some(ex.live.name(name));
    let live = Rc::clone(&ex.live);
    let (Some(pool), Some(runtime)) = (live.snapshot.pools.get(name), live.pools.get(name)) else {
        return Err(unknown_pool(name));
    };
    let api = ex.record.api;
    if api == Api::Models {
        return Box::pin(catalogue::list(ex, runtime)).await;
    }
    let bytes_max = match &pool.external {
        // It is shown the body.
        Some(_) => ex.worker.shared.settings.body_bytes_max as u64,
        None => OPAQUE_BODY_BYTES_MAX,
    };
    let worth_reading = || {
        // Short enough to be kept, for another try or to be shown.
        onward.upgrade.is_none() && onward.body.is_held_or_within(bytes_max)
    };
    if api.body() != BodyKind::Opaque || worth_reading() {
        ex.read_body(&mut onward).await?;
    }
    let content_type = reading::content_type(&onward.head.headers);
    let reading = Reading::of(api, content_type, onward.body.held())?;
    ex.record.model.clone_from(&reading.model);
    ex.record.stream = reading.stream;
    let shown = pool
        .external
        .is_some()
        .then(|| reading::shown(&onward.head.headers));
    let controls = Controls::take(pool, &mut onward.head.headers);
    ex.record.priority = controls.priority;
    let session = controls
        .session
        .or_else(|| reading.session(onward.body.held()));
    take_encodings(api, &mut onward.head.headers);
    let served_name = phases::rewrite(&ex.worker, &mut ex.record, pool, &reading);
    let target_model = served_name.as_deref().or(reading.model.as_deref());
    let asked = match (&pool.external, shown) {
        (Some(picker), Some(shown)) => {
            let body = preview(&onward.body, reading.model_at, served_name.as_deref());
            let asking = consult(ex, pool, runtime, picker, &shown, &body, &mut onward.head);
            Box::pin(asking).await?
        }
        (Some(_) | None, _) => None,
    };
    let mut chooser = match asked {
        // Which models there are, and who has to wait, is its business then.
        Some(asked) => Chooser::Outside(asked),
        None => {
            let waiter = Waiter {
                priority: controls.priority,
                fairness: controls.fairness,
                bytes: onward.body.held_bytes(),
            };
            let record = &mut ex.record;
            let admitting = phases::admit(
                &ex.worker,
                record,
                runtime,
                target_model,
                waiter,
                ex.deadline,
            );
            Chooser::BuiltIn(admitting.await?)
        }
    };

    let told = ToldFields::of(&pool.picker, &onward.head.headers);
    let mut hashes = ex.worker.hashes.take();
    hashes.clear();
    let mut chains = ex.worker.token_chains.take();
    let mut exact = None;
    if forebay_decide::reads_prefix(&pool.picker) {
        reading.hash_prompt(pool, onward.body.held(), target_model, &mut hashes);
        let held = onward.body.held();
        let (worker, api) = (&ex.worker, ex.record.api);
        exact = exact::hash_tokens(
            worker,
            api,
            runtime,
            &reading,
            held,
            target_model,
            &mut chains,
        );
    }
    let estimated = phases::ask(&ex.record, &reading, target_model, &hashes, session);
    let ask = Ask {
        slo: slo::of(&onward.head.headers),
        tokens: if exact.is_some() { &chains } else { &[] },
        prompt_tokens: exact.unwrap_or(estimated.prompt_tokens),
        fields: &told.as_texts(),
        ..estimated
    };
    let upgrade = onward.upgrade.take();
    let (mut body, _held) = outgoing(ex, onward.body, reading.model_at, served_name.as_deref());
    if let Chooser::Outside(asked) = &mut chooser
        && let Some(changed) = asked.body.take()
    {
        body = changed;
    }
    let head = onward.head.to_endpoint(upgrade.as_ref());
    let found = deliver(ex, pool, runtime, rule, &head, body, &ask, &mut chooser).await;
    hashes.clear();
    ex.worker.hashes.replace(hashes);
    ex.worker.token_chains.replace(chains);
    let served = match chooser {
        Chooser::BuiltIn(_) => found?,
        Chooser::Outside(asked) => Box::pin(asked.answered(ex, found?)).await?,
    };
    respond(ex, served, &reading, served_name, upgrade)
}

/// Asks the pool's own picker. What it changed about the fields is cleared of what steers pickers, as
/// what the client sent was.
async fn consult(
    ex: &mut Exchange,
    pool: &Pool,
    runtime: &Arc<PoolRuntime>,
    picker: &ExternalPicker,
    shown: &HeaderMap,
    body: &Outgoing,
    head: &mut OnwardHead,
) -> Result<Option<Box<Asked>>, Refusal> {
    let question = Question {
        method: &head.method,
        host: &head.host,
        shown,
        body,
        headers: &mut head.headers,
        target: &mut head.target,
    };
    let asked = external::consult(ex, runtime, picker, question).await?;
    if asked.is_some() {
        Controls::take(pool, &mut head.headers);
        take_encodings(ex.record.api, &mut head.headers);
    }
    Ok(asked)
}

/// Usage is read in passing, which needs the answer as it is.
fn take_encodings(api: Api, headers: &mut HeaderMap) {
    if api != Api::Other {
        headers.remove(header::ACCEPT_ENCODING);
    }
}

// === bodies ===

/// The body towards endpoints, and what keeps its memory accounted for.
fn outgoing(
    ex: &Exchange,
    body: ClientBody,
    model: Option<ModelAt>,
    served: Option<&str>,
) -> (Outgoing, Option<Peeked>) {
    let (peeked, model, name) = match (body, model, served) {
        (ClientBody::Read(peeked), Some(model), Some(name)) => (peeked, model, name),
        (body, _, _) => return body.outgoing(&ex.worker),
    };
    let bytes = renamed(&peeked.bytes, model, name);
    (peeked.outgoing_as(bytes), Some(peeked))
}

/// The same for those who only look at it.
fn preview(body: &ClientBody, model: Option<ModelAt>, served: Option<&str>) -> Outgoing {
    let ClientBody::Read(peeked) = body else {
        return Outgoing::Empty;
    };
    peeked.outgoing_as(match (model, served) {
        (Some(model), Some(name)) => renamed(&peeked.bytes, model, name),
        (_, None) | (None, _) => peeked.bytes.clone(),
    })
}

// === pick, send ===

/// Tries endpoints until one answers.
async fn deliver(
    ex: &mut Exchange,
    pool: &Pool,
    runtime: &Arc<PoolRuntime>,
    rule: &Rule,
    head: &Head<'_>,
    body: Outgoing,
    ask: &Ask<'_>,
    chooser: &mut Chooser,
) -> Result<Served, Refusal> {
    ex.worker.retries.borrow_mut().requested(clock::now());
    let mut tried: SmallVec<[SocketAddr; 4]> = SmallVec::new();
    let mut order = Order::new();
    let mut begun = None;
    let mut next_body = Some(body);
    let mut last: Option<Refusal> = None;
    if let Chooser::Outside(asked) = chooser {
        order.extend_from_slice(&asked.order);
    }
    loop {
        if order.is_empty() {
            if matches!(chooser, Chooser::Outside(_)) {
                return Err(last.unwrap_or_else(|| Refusal::timed_out("only try")));
            }
            let ask = Ask {
                avoid: &tried,
                ..*ask
            };
            match phases::pick(&ex.worker, &mut ex.record, runtime, &ask) {
                Ok((list, flight)) => (order, begun) = (list, Some(flight)),
                Err(refusal) => return Err(last.unwrap_or_else(|| Refusal::not_picked(&refusal))),
            }
        }
        let address = order.remove(0);
        let flight = begun
            .take()
            .unwrap_or_else(|| InFlight::begin(&ex.worker, runtime, ask, address));
        // It is booked: the room that was kept for it is no longer needed.
        if let Chooser::BuiltIn(place) = chooser {
            drop(place.take());
        }
        let Some(body) = next_body.take() else {
            return Err(last.unwrap_or_else(|| Refusal::timed_out("only try")));
        };
        next_body = body.again();
        tried.push(address);
        ex.record.tries.push(Try {
            endpoint: address,
            failure: None,
        });
        let deadline = ex.try_deadline(rule);
        let sending = Sending {
            ex,
            pool,
            runtime,
            head: *head,
            deadline,
        };
        let mut more = next_body.is_some() && tried.len() < TRIES_MAX;
        let outcome = match chooser {
            Chooser::BuiltIn(_) => sending.attempt(flight, body, more).await,
            Chooser::Outside(asked) => {
                // There is nobody else to try than whom it named.
                more &= !order.is_empty();
                let attempt = sending.attempt(flight, body, more);
                match Box::pin(asked.unless_ended(attempt)).await {
                    Ok(outcome) => outcome,
                    Err(refusal) => {
                        if let Some(last_try) = ex.record.tries.last_mut() {
                            last_try.failure = Some(refusal.reason);
                        }
                        return Err(refusal);
                    }
                }
            }
        };
        match outcome {
            Ok(served) => {
                ex.deadline = deadline;
                return Ok(served);
            }
            Err(refusal) => {
                if let Some(last_try) = ex.record.tries.last_mut() {
                    last_try.failure = Some(refusal.reason);
                }
                let out_of_time = ex.time_left().is_some_and(|left| left.is_zero());
                if !more || out_of_time || refusal.status == StatusCode::BAD_REQUEST {
                    return Err(refusal);
                }
                last = Some(refusal);
            }
        }
    }
}

impl Sending<'_> {
    /// Sends to one endpoint and waits for its first byte. `more` tells that another endpoint
    /// could be tried, so that an answer worth a retry is one.
    async fn attempt(
        &self,
        mut flight: InFlight,
        body: Outgoing,
        more: bool,
    ) -> Result<Served, Refusal> {
        let address = flight.address();
        // Heard from before the request goes out: an ejection right behind it counts too.
        let mut ejections = pin!(self.ex.worker.ejections.notified());
        let mut failed = |kind| flight.finish(End::plain(EndKind::Failed(kind)), clock::now());
        let outcome = tokio::select! {
            biased;
            outcome = self.first_byte(address, body) => outcome,
            () = self.ejected(address, ejections.as_mut()), if more => {
                Err(SendError::Timeout("the endpoint fell silent"))
            }
            () = sleep_until(self.deadline) => Err(SendError::Timeout("the route's time limit")),
        };
        match outcome {
            Ok((answer, first)) => {
                let fault = answer.fault(self.ex.record.grpc, first.as_ref());
                if more
                    && let Some(status) = fault
                    && self.ex.worker.retries.borrow_mut().take(clock::now())
                {
                    failed(FailureKind::Status5xx(status));
                    let message = format!("endpoint {address} answered {status}");
                    let status = StatusCode::from_u16(status).unwrap_or(answer.status);
                    return Err(Refusal::new(status, "upstream_status", message));
                }
                Ok(Served {
                    answer,
                    first,
                    flight,
                })
            }
            Err(error) => {
                failed(match &error {
                    SendError::Connect(_) | SendError::Tls(_) => FailureKind::Connect,
                    SendError::Timeout(_) => FailureKind::Timeout,
                    SendError::Reset(_) | SendError::Protocol(_) => FailureKind::Reset,
                    SendError::ClientBody(_) | SendError::ClientStalled(_) => {
                        return Err(Refusal::not_sent(&error, "client"));
                    }
                    SendError::Picker(_) => return Err(Refusal::not_sent(&error, "picker")),
                });
                Err(Refusal::not_sent(&error, &format!("endpoint {address}")))
            }
        }
    }

    async fn first_byte(
        &self,
        address: SocketAddr,
        body: Outgoing,
    ) -> Result<(Answer, Option<Frame<Bytes>>), SendError> {
        let worker = &self.ex.worker;
        let connect_timeout = worker.shared.settings.connect_timeout;
        let protocol = match self.head.upgrade {
            // Only HTTP/1.1 has upgrades.
            Some(_) => AppProtocol::Http,
            None => self.pool.protocol,
        };
        let peer = Peer::plain(address, protocol);
        let streams = matches!(body, Outgoing::Stream(_));
        let mut answer =
            upstream::send(&worker.idle, &peer, &self.head, body, connect_timeout).await?;
        // A head without a byte of the body is no answer yet: servers send it before they work. In
        // gRPC the client may wait for the head before it says more.
        let wait = !matches!(answer.body, AnswerBody::Upgraded(_))
            && answer.status.is_success()
            && !(self.ex.record.grpc && streams);
        let first = if wait {
            std::future::poll_fn(|cx| answer.body.poll_frame(cx))
                .await
                .transpose()?
        } else {
            None
        };
        Ok((answer, first))
    }

    /// Returns once `address` is newly out of rotation, or gone from a pool that has others.
    async fn ejected<'n>(&'n self, address: SocketAddr, mut ejections: Pin<&mut Notified<'n>>) {
        loop {
            ejections.as_mut().await;
            ejections.set(self.ex.worker.ejections.notified());
            let gone = || {
                let pool = self.runtime.pool();
                pool.ready().next().is_some() && pool.endpoints.iter().all(|e| e.address != address)
            };
            if self
                .runtime
                .state()
                .ejected(address, clock::now())
                .is_some()
                || gone()
            {
                return;
            }
        }
    }
}

/// Returns at `deadline`, if there is one.
pub(crate) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

// === relay ===

fn respond(
    ex: &mut Exchange,
    served: Served,
    reading: &Reading,
    served_name: Option<Arc<str>>,
    upgrade: Option<Upgrade>,
) -> Result<Response<Body>, Refusal> {
    let Served {
        answer,
        first,
        flight,
    } = served;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    ex.note_answer(answer.status, response.headers());
    ex.sign(response.headers_mut());
    let sse = is_event_stream(response.headers());
    let restorer = match (&served_name, &reading.model) {
        (Some(served), Some(asked)) if answer.status.is_success() => {
            // The length changes with the name.
            response.headers_mut().remove(header::CONTENT_LENGTH);
            Some(ModelRestorer::new(served, asked, sse))
        }
        _ => None,
    };
    let mut settle = Settle::new(
        std::rc::Rc::clone(&ex.worker),
        ex.take_record(),
        Some(flight),
    );
    let body = match (answer.body, upgrade) {
        (AnswerBody::Upgraded(upstream), Some(upgrade)) => {
            settle.first_byte(clock::now());
            tunnel::join(upgrade.client, upstream, settle);
            return Ok(response);
        }
        (body, _) => body,
    };
    let observe = answer.status.is_success() && settle.api() != Api::Other;
    *response.body_mut() = Body::relay(Relay::new(Passing {
        body,
        first,
        observer: observe.then(|| ResponseObserver::new(settle.api(), sse)),
        restorer,
        sse,
        deadline: ex.deadline,
        settle,
    }));
    Ok(response)
}

pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.trim_start().starts_with("text/event-stream"))
}

fn unknown_pool(name: &ObjectName) -> Refusal {
    let message = format!("InferencePool {name} is not in the configuration in force");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "pool_not_found", message)
}
