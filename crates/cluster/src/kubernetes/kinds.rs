//! Every kind that the index reads, followed wherever it is to be found: kinds that the server does
//! not have are looked for again, and so is one whose definition was removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_api::Kind;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::backoff::{Backoff, random};
use super::discovery::{Resource, Scope, discover};
use super::metrics::Metrics;
use super::server::{Failure, Server};
use super::watch::{self, Change, End, Place};

/// Time between two looks for a kind that the server does not have.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The same for one that may not be read: rights change seldom.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Time between two looks at the release of the definitions, which are upgraded in place.
const RELEASE_AGAIN: Duration = Duration::from_secs(300);
/// Where that is written.
const RELEASE_PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/\
                            gatewayclasses.gateway.networking.k8s.io";
const RELEASE_ANNOTATION: &str = "gateway.networking.k8s.io/bundle-version";
/// Waits after failed looks.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// Where kinds that are namespaced are followed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Namespaces {
    /// These; empty stands for all.
    pub(crate) all: Vec<Arc<str>>,
    /// Services in this one, too: those through which Gateways are reached.
    pub(crate) services: Option<Arc<str>>,
    /// Kinds that are followed; empty stands for all. The others count as absent.
    pub(crate) kinds: BTreeSet<Kind>,
    /// Kinds that one serves without: where they may not be read they count as absent, and this is told.
    pub(crate) optional: BTreeSet<Kind>,
}

impl Namespaces {
    fn of(&self, kind: Kind) -> BTreeSet<Arc<str>> {
        let mut own: BTreeSet<_> = self.all.iter().cloned().collect();
        if kind == Kind::Service && !own.is_empty() {
            own.extend(self.services.clone());
        }
        own
    }
}

/// Follows every kind until nobody listens.
pub(crate) async fn follow_all(
    server: Server,
    namespaces: Namespaces,
    out: mpsc::Sender<Change>,
    metrics: Metrics,
) {
    let now = Instant::now();
    let wanted = |kind: &Kind| namespaces.kinds.is_empty() || namespaces.kinds.contains(kind);
    for kind in Kind::all().filter(|kind| !wanted(kind)) {
        if out.send(Change::Absent(kind, None)).await.is_err() {
            return;
        }
    }
    let mut kinds = Kinds {
        missing: Kind::all().filter(wanted).map(|kind| (kind, now)).collect(),
        absent: BTreeSet::new(),
        followed: JoinSet::new(),
        release_at: now,
        server,
        namespaces,
        out,
        metrics,
    };
    kinds.run().await;
}

struct Kinds {
    /// Kinds that are not followed, and when to look for them.
    missing: BTreeMap<Kind, Instant>,
    /// Those that are known to be absent.
    absent: BTreeSet<Kind>,
    followed: JoinSet<(Kind, End)>,
    /// When to look at the release of the definitions.
    release_at: Instant,
    server: Server,
    namespaces: Namespaces,
    out: mpsc::Sender<Change>,
    metrics: Metrics,
}

/// Nobody listens any more.
struct Unheard;

impl Kinds {
    async fn run(&mut self) {
        // Ends with the first thing that nobody wants to hear.
        while let Ok(()) = self.look().await {
            let next = self.missing.values().min().copied();
            let next = next.map_or(self.release_at, |next| next.min(self.release_at));
            tokio::select! {
                () = self.out.closed() => return,
                () = sleep_until(next) => {}
                Some(ended) = self.followed.join_next() => {
                    let told = match ended {
                        Ok((kind, end)) => self.ended(kind, end).await,
                        Err(error) => {
                            tracing::error!(%error, "following a kind broke off");
                            Err(Unheard)
                        }
                    };
                    if told.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn tell(&self, change: Change) -> Result<(), Unheard> {
        self.out.send(change).await.map_err(|_| Unheard)
    }

    /// Looks for the kinds whose time has come, until the server answers.
    async fn look(&mut self) -> Result<(), Unheard> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let mut lost = false;
        self.look_at_release().await?;
        let due: BTreeSet<Kind> = {
            let now = Instant::now();
            let due = self.missing.iter().filter(|(_, at)| **at <= now);
            due.map(|(kind, _)| *kind).collect()
        };
        if due.is_empty() {
            return Ok(());
        }
        let found = loop {
            match discover(&self.server, &due).await {
                Ok(found) => break found,
                Err(failure) => {
                    if !std::mem::replace(&mut lost, true) {
                        let why = Err(failure.to_string());
                        self.tell(Change::Discovery(why)).await?;
                    }
                    if self.out.is_closed() {
                        return Err(Unheard);
                    }
                    sleep(backoff.wait(random())).await;
                }
            }
        };
        if lost {
            self.tell(Change::Discovery(Ok(()))).await?;
        }
        let mut absent = due;
        for resource in found {
            absent.remove(&resource.kind);
            self.follow(resource).await?;
        }
        for kind in absent {
            self.missing.insert(kind, Instant::now() + LOOK_AGAIN);
            if self.absent.insert(kind) {
                self.tell(Change::Absent(kind, None)).await?;
            }
        }
        Ok(())
    }

    /// Finds out which release of Gateway API is installed. One who may not know does without.
    async fn look_at_release(&mut self) -> Result<(), Unheard> {
        if Instant::now() < self.release_at {
            return Ok(());
        }
        let mut annotations = match self.server.annotations(RELEASE_PATH).await {
            Ok(annotations) => annotations,
            Err(Failure::Refused { .. }) => Value::Null,
            Err(Failure::Unreached(_)) => {
                self.release_at = Instant::now() + LOOK_AGAIN;
                return Ok(());
            }
        };
        self.release_at = Instant::now() + RELEASE_AGAIN;
        let release = annotations[RELEASE_ANNOTATION].take();
        let release = release.as_str().map(str::to_owned);
        self.tell(Change::Release(release)).await
    }

    async fn follow(&mut self, resource: Resource) -> Result<(), Unheard> {
        let kind = resource.kind;
        self.missing.remove(&kind);
        self.absent.remove(&kind);
        if kind == Kind::GatewayClass {
            self.release_at = Instant::now();
        }
        let place = |namespace| Place { kind, namespace };
        let places: Vec<Place> = match resource.scope {
            Scope::Namespaced if !self.namespaces.all.is_empty() => {
                let own = self.namespaces.of(kind).into_iter();
                own.map(|name| place(Some(name))).collect()
            }
            Scope::Namespaced | Scope::Cluster => vec![place(None)],
        };
        // Rights to namespaces say nothing of the cluster's own objects, and one can serve without.
        let beyond = resource.scope == Scope::Cluster && !self.namespaces.all.is_empty();
        let optional = beyond || self.namespaces.optional.contains(&kind);
        self.tell(Change::Found(resource.clone(), places.clone()))
            .await?;
        let mut all = JoinSet::new();
        for place in places {
            let (server, out) = (self.server.clone(), self.out.clone());
            let (resource, metrics) = (resource.clone(), self.metrics.clone());
            all.spawn(watch::follow(
                server, resource, place, optional, out, metrics,
            ));
        }
        self.followed.spawn(async move {
            let mut end = End::Unheard;
            while let Some(ended) = all.join_next().await {
                end = ended.unwrap_or(End::Unheard);
            }
            (kind, end)
        });
        Ok(())
    }

    async fn ended(&mut self, kind: Kind, end: End) -> Result<(), Unheard> {
        let (again, why) = match end {
            End::Unheard => return Err(Unheard),
            End::Absent => (LOOK_AGAIN, None),
            End::Forbidden(why) => (ASK_AGAIN, Some(why)),
        };
        self.missing.insert(kind, Instant::now() + again);
        self.absent.insert(kind);
        self.tell(Change::Absent(kind, why)).await
    }
}
