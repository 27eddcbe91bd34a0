//! What happens to a request for a plain Service: its endpoints in turn, the body as it comes.
//!
//! Bodies are read first only where the route asks for retries; otherwise they stream, and another
//! endpoint is tried only while no connection has been made.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use forebay_model::AppProtocol;
use forebay_model::route::{Rule, ServicePort, ServiceTarget, Speaks};
use http::{Response, StatusCode};
use tokio::time::Instant;

use crate::exchange::Exchange;
use crate::onward::{Onward, Upgrade};
use crate::record::Try;
use crate::relay::{Body, Passing, Relay, Settle};
use crate::respond::Refusal;
use crate::tls::backend::{Connector, Unusable};
use crate::upstream::{self, Answer, AnswerBody, Head, Outgoing, Peer, SendError};
use crate::{clock, tunnel};

/// Bodies up to this size are kept for the retries that a route asks for; a longer one is sent
/// once.
const RETRY_BODY_BYTES_MAX: u64 = 1 << 20;
/// Tries at connecting, over different endpoints.
const CONNECT_TRIES_MAX: usize = 3;

/// What connections to a Service's endpoints are like.
pub(crate) struct Way {
    protocol: AppProtocol,
    tls: Option<Arc<Connector>>,
}

impl Way {
    pub(crate) fn to(ex: &Exchange, service: &ServiceTarget) -> Result<Self, Refusal> {
        let tls = match &service.tls {
            None => None,
            Some(_) => match ex.live.connectors.of(&service.of) {
                Some(Ok(connector)) => Some(Arc::clone(connector)),
                unusable => {
                    let why = unusable.and_then(|met| met.as_ref().err());
                    let why = why.map_or("its policy is not known", |Unusable(why)| why);
                    return Err(Refusal::backend_tls(&service.of, why));
                }
            },
        };
        // gRPC is a matter of HTTP/2, whatever the port says of itself.
        let protocol = match ex.speaks {
            Speaks::Grpc => AppProtocol::H2c,
            Speaks::Http => service.protocol,
        };
        Ok(Self { protocol, tls })
    }

    pub(crate) fn peer(&self, address: SocketAddr) -> Peer {
        Peer {
            address,
            protocol: self.protocol,
            tls: self.tls.clone(),
        }
    }
}

/// Serves one request from `to`.
pub(crate) async fn serve(
    ex: &mut Exchange,
    rule: &Rule,
    to: &ServicePort,
    mut onward: Onward,
) -> Result<Response<Body>, Refusal> {
    let live = Rc::clone(&ex.live);
    let Some(to) = live.snapshot.services.get(to) else {
        let message = format!("Service {to} is not in the configuration in force");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return Err(Refusal::new(status, "service_not_found", message));
    };
    if to.endpoints.is_empty() {
        let message = format!("Service {} has no ready endpoint", to.of);
        return Err(Refusal {
            retry_after_s: Some(1),
            ..Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no_ready_endpoint",
                message,
            )
        });
    }
    if rule.retry.is_some() && onward.body.is_held_or_within(RETRY_BODY_BYTES_MAX) {
        ex.read_body(&mut onward).await?;
    }
    let upgrade = onward.upgrade.take();
    let (body, _held) = onward.body.outgoing(&ex.worker);
    let head = onward.head.to_endpoint(upgrade.as_ref());
    let answer = deliver(ex, rule, to, &head, body).await?;
    Ok(respond(ex, answer, upgrade))
}

async fn deliver(
    ex: &mut Exchange,
    rule: &Rule,
    to: &ServiceTarget,
    head: &Head<'_>,
    body: Outgoing,
) -> Result<Answer, Refusal> {
    let attempts = rule.retry.as_ref().map_or(0, |retry| retry.attempts);
    let mut next = Some(body);
    let mut tries = 0;
    loop {
        let Some(body) = next.take() else {
            return Err(Refusal::bad_request(
                "client_body",
                "the body can be sent only once",
            ));
        };
        next = body.again();
        tries += 1;
        let more = tries <= attempts && next.is_some();
        let failed = match attempt(ex, rule, to, head, body).await {
            Ok((answer, deadline)) => {
                let codes = rule.retry.as_ref().map_or(&[][..], |retry| &retry.codes);
                if !more || !codes.contains(&answer.status.as_u16()) {
                    ex.deadline = deadline;
                    return Ok(answer);
                }
                Refusal::new(
                    answer.status,
                    "upstream_status",
                    "the endpoint's answer asks for a retry",
                )
            }
            Err(refusal) => refusal,
        };
        if let Some(last) = ex.record.tries.last_mut() {
            last.failure = Some(failed.reason);
        }
        if !more || ex.time_left().is_some_and(|left| left.is_zero()) {
            return Err(failed);
        }
        if let Some(retry) = &rule.retry {
            tokio::time::sleep(retry.backoff).await;
        }
    }
}

/// One try: connects to one endpoint after the other until one takes the connection. With the
/// answer comes the time by which it must be complete.
async fn attempt(
    ex: &mut Exchange,
    rule: &Rule,
    to: &ServiceTarget,
    head: &Head<'_>,
    body: Outgoing,
) -> Result<(Answer, Option<Instant>), Refusal> {
    let deadline = ex.try_deadline(rule);
    let mut way = Way::to(ex, to)?;
    if head.upgrade.is_some() {
        // Only HTTP/1.1 has upgrades.
        way.protocol = AppProtocol::Http;
    }
    let worker = Rc::clone(&ex.worker);
    let connect_timeout = worker.shared.settings.connect_timeout;
    let sent = async {
        let mut failed = None;
        for _ in 0..CONNECT_TRIES_MAX.min(to.endpoints.len()) {
            let peer = way.peer(worker.turn(to));
            ex.record.tries.push(Try {
                endpoint: peer.address,
                failure: None,
            });
            match upstream::open(&worker.idle, &peer, connect_timeout).await {
                // A request that must not be made twice is not repeated because of a stale
                // connection, unless the route asks for retries.
                Ok(ready) if head.method.is_idempotent() || rule.retry.is_some() => {
                    return ready
                        .send_again(&worker.idle, head, body, connect_timeout)
                        .await;
                }
                Ok(ready) => return ready.send(&worker.idle, head, body).await,
                Err(error) => {
                    if let Some(last) = ex.record.tries.last_mut() {
                        last.failure = Some(error.reason());
                    }
                    failed = Some(error);
                }
            }
        }
        Err(failed.unwrap_or(SendError::Timeout("connect")))
    };
    let sent = match deadline {
        None => sent.await,
        Some(deadline) => tokio::time::timeout_at(deadline, sent)
            .await
            .unwrap_or(Err(SendError::Timeout("the route's time limit"))),
    };
    let answer =
        sent.map_err(|error| Refusal::not_sent(&error, &format!("Service {}", to.of.name)));
    answer.map(|answer| (answer, deadline))
}

fn respond(ex: &mut Exchange, answer: Answer, upgrade: Option<Upgrade>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    ex.note_answer(answer.status, response.headers());
    ex.sign(response.headers_mut());
    let mut settle = Settle::new(Rc::clone(&ex.worker), ex.take_record(), None);
    match (answer.body, upgrade) {
        (AnswerBody::Upgraded(upstream), Some(upgrade)) => {
            settle.first_byte(clock::now());
            tunnel::join(upgrade.client, upstream, settle);
        }
        (body, _) => {
            *response.body_mut() = Body::relay(Relay::new(Passing {
                body,
                first: None,
                observer: None,
                restorer: None,
                sse: false,
                deadline: ex.deadline,
                settle,
            }));
        }
    }
    response
}
