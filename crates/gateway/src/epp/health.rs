//! gRPC's health service: `liveness`, `readiness` and external processing itself.
//!
//! Liveness holds while there is a process that answers. The other two hold while requests can be
//! picked for: a configuration is in force, it has the pool that calls are for, and the process is not
//! told to stop.

use std::rc::Rc;
use std::time::Duration;

use forebay_wire::health::health_check_response::ServingStatus;
use forebay_wire::health::{HealthCheckRequest, HealthCheckResponse};

use super::connection::{Terms, drained};
use super::wire::{Incoming, Outgoing};
use crate::grpc::Code;
use crate::worker::Worker;

/// How often those who watch are looked after.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A method of the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Check,
    Watch,
}

impl Kind {
    pub(super) fn of(path: &str) -> Option<Self> {
        match path {
            "/grpc.health.v1.Health/Check" => Some(Self::Check),
            "/grpc.health.v1.Health/Watch" => Some(Self::Watch),
            _ => None,
        }
    }
}

/// How a service is; `None` for one that there is not.
fn status(worker: &Worker, terms: &Terms, service: &str) -> Option<ServingStatus> {
    let serves = |is: bool| match is {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    match service {
        "liveness" => Some(ServingStatus::Serving),
        "" | "readiness" | "envoy.service.ext_proc.v3.ExternalProcessor" => {
            let live = worker.live();
            let pools = &live.snapshot.pools;
            let has_pool = match &terms.only_pool {
                Some(pool) => pools.contains_key(pool),
                None => true,
            };
            Some(serves(terms.readiness.check().is_ok() && has_pool))
        }
        _ => None,
    }
}

/// Answers a call of the service.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    terms: &Terms,
    kind: Kind,
    mut incoming: Incoming,
    mut outgoing: Outgoing,
) {
    let asked = match incoming.next::<HealthCheckRequest>().await {
        Ok(asked) => asked.unwrap_or_default(),
        Err(_) => return outgoing.end(Some((Code::InvalidArgument, "no question"))),
    };
    let service = asked.service;
    match kind {
        Kind::Check => {
            let Some(status) = status(worker, terms, &service) else {
                return outgoing.end(Some((Code::NotFound, "there is no such service")));
            };
            outgoing.message(&response(status));
            if outgoing.flush().await.is_ok() {
                outgoing.end(None);
            }
        }
        Kind::Watch => watch(worker, terms, &service, outgoing).await,
    }
}

async fn watch(worker: &Rc<Worker>, terms: &Terms, service: &str, mut outgoing: Outgoing) {
    let mut last = None;
    loop {
        let now = status(worker, terms, service).unwrap_or(ServingStatus::ServiceUnknown);
        if last != Some(now) {
            last = Some(now);
            outgoing.message(&response(now));
            if outgoing.flush().await.is_err() {
                return;
            }
        }
        tokio::select! {
            biased;
            () = std::future::poll_fn(|cx| outgoing.poll_gone(cx)) => return,
            () = drained(worker) => return outgoing.end(Some((Code::Unavailable, "shutting down"))),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}
