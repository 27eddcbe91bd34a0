//! Between the host's side and the cluster's: claims that the host asks for, events of what it did, and what is
//! known of the machine from outside of it.

use std::sync::Arc;
use std::time::Duration;

use forebay_cluster::kubernetes::Server;
use forebay_cluster::kubernetes::device::{self, Claims, Event, Events, Subject};
use forebay_fabric::claim::{AllocatedClaim, ClaimRef};
use forebay_fabric::cloud::{CloudFacts, Place};
use forebay_node::attach::{ClaimSource, NoClaim};
use forebay_node::cloud::http::{ANSWER_TIME, Http};
use forebay_node::cloud::{self, Provider};
use forebay_node::driver::{DriverError, Sandbox};
use forebay_node::inventory::Known;
use forebay_node::observed::{Call, Observer, Took};
use tokio::sync::{Notify, watch};

use super::traces::Traces;

/// Tries to ask the cloud before the NICs are published without it, and the time between two tries.
const CLOUD_TRIES: u32 = 3;
const CLOUD_RETRY: Duration = Duration::from_secs(5);
/// Between two tries after that.
const CLOUD_RETRY_LATER: Duration = Duration::from_secs(60);

/// Claims from the cluster, with what is known of the host's NICs.
#[derive(Debug)]
pub(super) struct Source {
    claims: Claims,
    known: Known,
}

impl Source {
    pub(super) fn new(claims: Claims, known: Known) -> Source {
        Source { claims, known }
    }
}

impl ClaimSource for Source {
    async fn fetch(&self, claim: &ClaimRef) -> Result<AllocatedClaim, NoClaim> {
        let said = |why: String| DriverError(format!("claim {claim}: {why}"));
        self.claims.fetch(claim).await.map_err(|none| match none {
            device::NoClaim::Refused(why) => NoClaim::Refused(said(why)),
            device::NoClaim::Away(why) => NoClaim::Away(said(why)),
        })
    }

    fn interface(&self, device: &str) -> Option<String> {
        self.known.interface(device)
    }
}

/// Tells people of what was done, and whoever looks at the host that there is something to see.
#[derive(Debug)]
pub(super) struct Teller {
    events: Events,
    changed: Arc<Notify>,
    freed: Arc<Notify>,
    traces: Option<Traces>,
}

impl Teller {
    /// Whoever looks waits for `changed`, and who gives back what claims had for `freed`.
    pub(super) fn new(
        events: Events,
        (changed, freed): (Arc<Notify>, Arc<Notify>),
        traces: Option<Traces>,
    ) -> Teller {
        Teller {
            events,
            changed,
            freed,
            traces,
        }
    }
}

impl Observer for Teller {
    fn after(&self, call: Call<'_>, done: Result<(), &DriverError>, took: Took) {
        self.changed.notify_one();
        if matches!(call, Call::Unprepare(_)) {
            self.freed.notify_one();
        }
        if let Some(traces) = &self.traces {
            traces.tell(call, done, took);
        }
        let told = match (call, done) {
            (Call::Attach(sandbox), Ok(())) => {
                let message = "the NICs of its claims are in the pod, and were verified".to_owned();
                (pod(sandbox), false, "NetworkDevicesAttached", message)
            }
            (Call::Attach(sandbox), Err(why)) => {
                let message = format!("{why}; its containers do not start without them");
                (pod(sandbox), true, "NetworkDeviceAttachFailed", message)
            }
            (Call::Detach(sandbox), Err(why)) => (
                pod(sandbox),
                true,
                "NetworkDeviceDetachFailed",
                why.0.clone(),
            ),
            (Call::Unprepare(claim), Err(why)) => {
                let subject = subject("resource.k8s.io/v1", "ResourceClaim", claim);
                (subject, true, "NetworkDeviceReleaseFailed", why.0.clone())
            }
            // The kubelet makes an event of it.
            (Call::Prepare(_), Err(_)) => return,
            (Call::Synchronize(_), _)
            | (Call::Prepare(_) | Call::Unprepare(_) | Call::Detach(_), Ok(())) => return,
        };
        let (subject, warning, reason, message) = told;
        self.events.tell(Event {
            subject,
            warning,
            reason,
            message,
        });
    }
}

fn pod(sandbox: &Sandbox) -> Subject {
    let claim = ClaimRef {
        namespace: sandbox.namespace.clone(),
        name: sandbox.name.clone(),
        uid: sandbox.uid.clone(),
    };
    subject("v1", "Pod", &claim)
}

fn subject(api_version: &'static str, kind: &'static str, named: &ClaimRef) -> Subject {
    Subject {
        api_version,
        kind,
        namespace: named.namespace.clone(),
        name: named.name.clone(),
        uid: named.uid.clone(),
    }
}

/// Finds out what is known of the machine from outside of it: the node's labels, and what the cloud says.
pub(super) async fn facts(
    server: Server,
    node: String,
    (provider, url): (Option<Provider>, Option<String>),
    known: Known,
    facts: watch::Sender<Option<CloudFacts>>,
) {
    let place = Place::from_labels(&device::node(&server, &node).await.labels);
    let of_labels = CloudFacts {
        place: place.clone(),
        ..CloudFacts::default()
    };
    let Some(provider) = provider else {
        facts.send_replace(Some(of_labels));
        return;
    };
    let Some(service) = service(provider, url) else {
        facts.send_replace(Some(of_labels));
        return;
    };
    for tried in 1_u32.. {
        match cloud::discover(provider, &service, &known.nics()).await {
            Ok(mut found) => {
                for problem in &found.problems {
                    tracing::warn!("cloud: {problem}");
                }
                found.place = found.place.or(place);
                facts.send_replace(Some(found));
                return;
            }
            Err(error) => tracing::warn!("the cloud does not tell of the machine: {error}"),
        }
        if tried == CLOUD_TRIES {
            facts.send_replace(Some(of_labels.clone()));
        }
        let later = tried >= CLOUD_TRIES;
        let wait = if later {
            CLOUD_RETRY_LATER
        } else {
            CLOUD_RETRY
        };
        tokio::time::sleep(wait).await;
    }
}

fn service(provider: Provider, url: Option<String>) -> Option<Http> {
    let url = url.or_else(|| provider.base().map(str::to_owned));
    let Some(url) = url else {
        tracing::error!("--cloud webhook needs --cloud-url; NICs are published without it");
        return None;
    };
    Http::new(&url, ANSWER_TIME)
        .inspect_err(|why| tracing::error!("--cloud-url: {why}; NICs are published without it"))
        .ok()
}
