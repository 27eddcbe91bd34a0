//! Which of several processes writes: the protocol of client-go's leader election over a Lease.
//!
//! [`Candidate`] decides: from what it has seen and a monotonic clock to what to write. Whether
//! another's lease has run out is judged by how long it has not changed before our eyes, never by the
//! times in it, which come from other clocks. [`run`] asks and writes.
//!
//! A leader that cannot renew stops at [`RENEW_DEADLINE`], before anybody else may begin at
//! [`LEASE_DURATION`]; clocks may run at rates that differ by a third.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::backoff::random;
use super::metrics::Metrics;
use super::read;
use super::server::{Failure, Server, Write, json};

/// How long a lease counts after it was seen to change.
pub(crate) const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a leader leads after the last renewal that worked.
pub(crate) const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two tries to get or renew it.
pub(crate) const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// How long one request may take; a renewal is tried twice before the deadline.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// A Lease's content.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Record {
    /// Who has it; empty if nobody does.
    pub(crate) holder: String,
    pub(crate) duration_s: u64,
    /// Times of day, for people.
    pub(crate) acquired: String,
    pub(crate) renewed: String,
    /// How often it has changed hands.
    pub(crate) transitions: u64,
}

/// A Lease as the server has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) version: String,
    pub(crate) record: Record,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Make the Lease.
    Create(Record),
    /// Replace the Lease of this version.
    Replace(String, Record),
    /// Somebody else has it.
    Wait,
}

/// One who would lead.
#[derive(Debug)]
pub(crate) struct Candidate {
    identity: String,
    /// The Lease as last seen, and when it was first seen so.
    observed: Option<(Record, Instant)>,
    /// When our last successful write was begun.
    renewed: Option<Instant>,
}

impl Candidate {
    pub(crate) fn new(identity: String) -> Self {
        Self {
            identity,
            observed: None,
            renewed: None,
        }
    }

    /// What follows from the Lease that was read; `time` is the time of day.
    pub(crate) fn step(&mut self, seen: Option<&Seen>, now: Instant, time: &str) -> Step {
        let Some(Seen { version, record }) = seen else {
            self.observed = None;
            return Step::Create(self.record(None, time));
        };
        let unchanged = self.observed.as_ref().filter(|(last, _)| last == record);
        let since = unchanged.map_or(now, |(_, since)| *since);
        self.observed = Some((record.clone(), since));
        let is_ours = record.holder == self.identity;
        let is_free = record.holder.is_empty() || now >= since + LEASE_DURATION;
        if is_ours || is_free {
            Step::Replace(version.clone(), self.record(Some(record), time))
        } else {
            Step::Wait
        }
    }

    /// The Lease with us as its holder.
    fn record(&self, last: Option<&Record>, time: &str) -> Record {
        let kept = last.filter(|last| last.holder == self.identity);
        Record {
            holder: self.identity.clone(),
            duration_s: LEASE_DURATION.as_secs(),
            acquired: kept.map_or_else(|| time.to_owned(), |last| last.acquired.clone()),
            renewed: time.to_owned(),
            transitions: match (last, kept) {
                (None, _) => 0,
                (Some(_), Some(kept)) => kept.transitions,
                (Some(last), None) => last.transitions + 1,
            },
        }
    }

    /// A write that was begun at `began` has worked.
    pub(crate) fn written(&mut self, record: Record, began: Instant) {
        self.observed = Some((record, began));
        self.renewed = Some(began);
    }

    /// The Lease turned out to be somebody else's.
    pub(crate) fn lost(&mut self) {
        self.renewed = None;
    }

    /// Whether we lead.
    pub(crate) fn leads(&self, now: Instant) -> bool {
        self.left(now) > Duration::ZERO
    }

    /// For how long we lead if no renewal works.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        let end = self.renewed.map(|at| at + RENEW_DEADLINE);
        end.map_or(Duration::ZERO, |end| end.saturating_duration_since(now))
    }

    /// What gives a Lease of ours back, so that the next need not wait.
    pub(crate) fn release(&self, seen: &Seen, time: &str) -> Option<Step> {
        let Seen { version, record } = seen;
        (record.holder == self.identity).then(|| {
            let free = Record {
                holder: String::new(),
                duration_s: 1,
                renewed: time.to_owned(),
                ..record.clone()
            };
            Step::Replace(version.clone(), free)
        })
    }
}

/// A Lease's place.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) server: Server,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Lease {
    fn folder(&self) -> String {
        let namespace = &self.namespace;
        format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
    }

    async fn read(&self) -> Result<Option<Seen>, Failure> {
        let path = format!("{}/{}", self.folder(), self.name);
        match self.server.get(&path).await {
            Ok(bytes) => Ok(Some(seen(&json(&bytes)?))),
            Err(failure) if failure.is(StatusCode::NOT_FOUND) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn write(&self, step: &Step) -> Result<(), Failure> {
        let (how, path, version, record) = match step {
            Step::Wait => return Ok(()),
            Step::Create(record) => (Write::Create, self.folder(), None, record),
            Step::Replace(version, record) => {
                let path = format!("{}/{}", self.folder(), self.name);
                (Write::Replace, path, Some(version), record)
            }
        };
        let document = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "resourceVersion": version,
            },
            "spec": {
                "holderIdentity": record.holder,
                "leaseDurationSeconds": record.duration_s,
                "acquireTime": record.acquired,
                "renewTime": record.renewed,
                "leaseTransitions": record.transitions,
            },
        });
        self.server.write(how, &path, &document).await.map(drop)
    }
}

fn seen(lease: &Value) -> Seen {
    let text = |field: &str| {
        let value = lease["spec"][field].as_str();
        value.unwrap_or_default().to_owned()
    };
    let number = |field: &str| lease["spec"][field].as_u64().unwrap_or_default();
    Seen {
        version: read::version(lease).to_owned(),
        record: Record {
            holder: text("holderIdentity"),
            duration_s: number("leaseDurationSeconds"),
            acquired: text("acquireTime"),
            renewed: text("renewTime"),
            transitions: number("leaseTransitions"),
        },
    }
}

/// Stands for election until `stop` ends, and gives the Lease back then. `leads` tells whether we do;
/// `clock` the time of day as Leases have it.
pub(crate) async fn run(
    lease: Lease,
    identity: String,
    leads: watch::Sender<bool>,
    metrics: Metrics,
    clock: fn() -> String,
    stop: impl Future<Output = ()>,
) {
    let mut candidate = Candidate::new(identity);
    let mut complained = false;
    let stand = async {
        loop {
            let now = Instant::now();
            // A request that hangs must not make us lead for too long.
            let limit = match candidate.left(now) {
                Duration::ZERO => REQUEST_TIMEOUT,
                left => left.min(REQUEST_TIMEOUT),
            };
            let tried = timeout(limit, stand_once(&lease, &mut candidate, clock)).await;
            match tried {
                Ok(Ok(())) => complained = false,
                Ok(Err(failure)) => complain(&mut complained, &lease, &failure.to_string()),
                Err(_) => complain(&mut complained, &lease, "no answer in time"),
            }
            let now = Instant::now();
            announce(&leads, &metrics, candidate.leads(now));
            let pause = RETRY_PERIOD.mul_f64(1.0 + random() / 5.0);
            match candidate.left(now) {
                left if left < pause && left > Duration::ZERO => sleep(left).await,
                _ => sleep(pause).await,
            }
            announce(&leads, &metrics, candidate.leads(Instant::now()));
        }
    };
    tokio::select! {
        () = stand => {}
        () = stop => {}
    }
    announce(&leads, &metrics, false);
    if candidate.leads(Instant::now()) {
        let released = timeout(REQUEST_TIMEOUT, release(&lease, &candidate, clock)).await;
        match released {
            Ok(Ok(())) => tracing::info!("the lease {} is given back", lease.name),
            Ok(Err(failure)) => tracing::warn!("the lease is not given back: {failure}"),
            Err(_) => tracing::warn!("the lease is not given back: no answer in time"),
        }
    }
}

async fn stand_once(
    lease: &Lease,
    candidate: &mut Candidate,
    clock: fn() -> String,
) -> Result<(), Failure> {
    let seen = lease.read().await?;
    let began = Instant::now();
    let step = candidate.step(seen.as_ref(), began, &clock());
    let (Step::Create(record) | Step::Replace(_, record)) = &step else {
        candidate.lost();
        return Ok(());
    };
    match lease.write(&step).await {
        Ok(()) => {
            candidate.written(record.clone(), began);
            Ok(())
        }
        // Somebody was quicker; who, the next look tells.
        Err(failure) if failure.is(StatusCode::CONFLICT) => Ok(()),
        Err(failure) => Err(failure),
    }
}

async fn release(
    lease: &Lease,
    candidate: &Candidate,
    clock: fn() -> String,
) -> Result<(), Failure> {
    let seen = lease.read().await?;
    match seen.and_then(|seen| candidate.release(&seen, &clock())) {
        Some(step) => lease.write(&step).await,
        None => Ok(()),
    }
}

/// Once until it works again.
fn complain(complained: &mut bool, lease: &Lease, why: &str) {
    if !std::mem::replace(complained, true) {
        let Lease {
            namespace, name, ..
        } = lease;
        tracing::warn!("the lease {namespace}/{name} cannot be got or renewed: {why}");
    }
}

fn announce(leads: &watch::Sender<bool>, metrics: &Metrics, now: bool) {
    metrics.set_leader(now);
    let changed = leads.send_if_modified(|before| std::mem::replace(before, now) != now);
    if changed {
        let what = if now { "leading" } else { "no longer leading" };
        tracing::info!("{what}: statuses and infrastructure are written by the leader");
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
