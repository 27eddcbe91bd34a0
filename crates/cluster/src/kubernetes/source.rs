//! An API server as a source: everything that is followed goes into one index, whose snapshots are
//! published as soon as they are whole.
//!
//! A lone change is published at once, a stream of changes every [`PACE`]. While the server cannot be
//! reached, what was published last stays in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_api::{Index, Kind, Publication as Published, Settings, infrastructure, status};
use forebay_model::ObjectName;
use forebay_model::snapshot::Problem;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::discovery::Resource;
use super::infrastructure::Needs;
use super::kinds::{Namespaces, follow_all};
use super::metrics::Metrics;
use super::mirror::Mirror;
use super::server::Server;
use super::statuses::{Desk, Present};
use super::watch::Change;

/// Shortest time between two publications.
const PACE: Duration = Duration::from_millis(10);
/// Changes that wait to be taken in; watches pause when there are more.
const CHANGES_WAITING_MAX: usize = 1_024;
/// How often it is looked whether contact has been lost for long.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long something may be missing before it is said.
const LOST_FOR: Duration = Duration::from_secs(5);
/// How often it is said what a first publication waits for, and that contact is lost.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// Objects of an API server that are followed.
#[derive(Debug)]
pub struct KubernetesSource {
    server: Server,
    namespaces: Namespaces,
    metrics: Metrics,
    publish: watch::Sender<Published>,
    state: State,
}

#[derive(Debug)]
struct State {
    mirror: Mirror,
    resources: BTreeMap<Kind, Resource>,
    desk: Option<Desk>,
    needs: Option<Needs>,
    /// Whether something has changed that infrastructure depends on.
    wants_changed: bool,
    synced: bool,
    /// When it is next to be said what is missing, and whether it has been.
    remind_at: Option<Instant>,
    said: bool,
    published: Option<Instant>,
}

impl KubernetesSource {
    /// A source that is to be run, and the channel that it publishes on. The channel holds an empty
    /// state, and changes for the first time when everything has been listed once. Of kinds that are
    /// namespaced only `namespaces` are followed, or all if there are none.
    #[must_use]
    pub fn open(
        server: Server,
        settings: Settings,
        namespaces: Vec<String>,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<Published>) {
        let namespaces = Namespaces {
            all: namespaces.into_iter().map(Arc::from).collect(),
            services: settings.infrastructure_namespace.as_deref().map(Arc::from),
            kinds: BTreeSet::new(),
            optional: BTreeSet::new(),
        };
        let empty = Index::new(settings.clone()).publish();
        let (publish, receiver) = watch::channel(empty);
        let source = Self {
            server,
            namespaces,
            metrics,
            publish,
            state: State {
                mirror: Mirror::new(settings),
                resources: BTreeMap::new(),
                desk: None,
                needs: None,
                wants_changed: true,
                synced: false,
                remind_at: None,
                said: false,
                published: None,
            },
        };
        (source, receiver)
    }

    /// Follows no other kinds than these, for those who serve a part and have the rights to no more.
    #[must_use]
    pub fn only(mut self, kinds: impl IntoIterator<Item = Kind>) -> Self {
        self.namespaces.kinds = kinds.into_iter().collect();
        self
    }

    /// Serves without these kinds where they may not be read. It asks again every minute.
    #[must_use]
    pub fn if_allowed(mut self, kinds: impl IntoIterator<Item = Kind>) -> Self {
        self.namespaces.optional = kinds.into_iter().collect();
        self
    }

    /// Has noted what is to be written.
    pub(crate) fn set_writers(&mut self, desk: Desk, needs: Needs) {
        self.state.desk = Some(desk);
        self.state.needs = Some(needs);
    }

    /// Publishes every change until nobody listens any more.
    pub async fn run(self) {
        let Self {
            server,
            namespaces,
            metrics,
            publish,
            mut state,
        } = self;
        let (out, mut changes) = mpsc::channel(CHANGES_WAITING_MAX);
        let followers = follow_all(server, namespaces, out, metrics.clone());
        let publishing = async {
            let mut look = interval(LOOK_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut undone = state.needs.as_ref().map(|needs| needs.problems.subscribe());
            loop {
                tokio::select! {
                    () = publish.closed() => return,
                    _ = look.tick() => {}
                    problems = changed(&mut undone) => state.mirror.set_undone(problems),
                    change = changes.recv() => match change {
                        Some(change) => state.take_all(change, &mut changes).await,
                        None => return,
                    },
                }
                let now = Instant::now();
                metrics.set_synced(state.mirror.is_synced() && state.mirror.is_followed());
                state.remind(now);
                if state.is_synced() {
                    let published = state.publish(now);
                    publish.send_if_modified(|last| replace(last, published));
                }
            }
        };
        tokio::select! {
            () = publishing => {}
            () = followers => {}
        }
    }
}

impl State {
    /// Takes in a change and those that come with it, until there are none or it is time to publish.
    async fn take_all(&mut self, first: Change, changes: &mut mpsc::Receiver<Change>) {
        self.take(first);
        let due = self.published.map(|at| at + PACE);
        loop {
            match changes.try_recv() {
                Ok(change) => self.take(change),
                Err(_) => {
                    let Some(due) = due.filter(|due| Instant::now() < *due) else {
                        return;
                    };
                    match timeout_at(due, changes.recv()).await {
                        Ok(Some(change)) => self.take(change),
                        Ok(None) | Err(_) => return,
                    }
                }
            }
        }
    }

    fn take(&mut self, change: Change) {
        self.note_for_writers(&change);
        self.mirror.take(change, Instant::now());
    }

    fn note_for_writers(&mut self, change: &Change) {
        match change {
            Change::Seen(kind, ..) | Change::Gone(kind, _) if infrastructure::concerns(*kind) => {
                self.wants_changed = true;
            }
            Change::Seen(Kind::Service, _, object) if infrastructure::is_made(object) => {
                self.disturbed();
            }
            // What labels it had is not known any more; this is about as good.
            Change::Gone(Kind::Service, name) if infrastructure::is_name(&name.name) => {
                self.disturbed();
            }
            _ => {}
        }
        match change {
            Change::Found(resource, _) => {
                self.resources.insert(resource.kind, resource.clone());
            }
            Change::Seen(kind, name, object) if status::is_written(*kind) => {
                if let (Some(desk), Some(resource)) = (&self.desk, self.resources.get(kind)) {
                    let present = Present::of(path(resource, name), object);
                    let key = (*kind, name.clone());
                    desk.note(|books, now| books.seen(key, present, now));
                }
            }
            Change::Gone(kind, name) if status::is_written(*kind) => {
                if let Some(desk) = &self.desk {
                    let key = (*kind, name.clone());
                    desk.note(|books, _| books.gone(&key));
                }
            }
            Change::Seen(..)
            | Change::Gone(..)
            | Change::Absent(..)
            | Change::Listed(_)
            | Change::Lost(..)
            | Change::Regained(_)
            | Change::Release(_)
            | Change::Discovery(_) => {}
        }
    }

    fn disturbed(&self) {
        if let Some(needs) = &self.needs {
            needs.disturbed.notify_one();
        }
    }

    /// Whether everything has been listed once; that cannot be undone.
    fn is_synced(&mut self) -> bool {
        if !self.synced && self.mirror.is_synced() {
            self.synced = true;
            tracing::info!("every kind is listed; the configuration comes from the API server");
        }
        self.synced
    }

    fn publish(&mut self, now: Instant) -> Published {
        let published = self.mirror.publish(now);
        self.published = Some(Instant::now());
        if let Some(desk) = &self.desk {
            desk.note(|books, now| books.publish(&published.statuses, now));
        }
        if let Some(needs) = &self.needs
            && std::mem::take(&mut self.wants_changed)
        {
            needs.want(self.mirror.index.infrastructure());
        }
        published
    }

    /// Says from time to time what is missing.
    fn remind(&mut self, now: Instant) {
        let complete = self.synced && self.mirror.is_followed();
        if complete {
            self.remind_at = None;
            if std::mem::take(&mut self.said) {
                tracing::info!("every kind is followed");
            }
            return;
        }
        let Some(due) = self.remind_at else {
            // Nothing is said of what mends itself within moments.
            self.remind_at = Some(now + LOST_FOR);
            return;
        };
        if now >= due {
            self.said = true;
            self.remind_at = Some(now + REMIND_EVERY);
            let what = self.mirror.waits_for();
            match self.synced {
                true => tracing::warn!("not followed: {what}; the last configuration is served on"),
                false => tracing::warn!("nothing is served yet, waiting for: {what}"),
            }
        }
    }
}

/// What could not be done, when it is another thing than before; never if nobody does anything.
async fn changed(undone: &mut Option<watch::Receiver<Arc<[Problem]>>>) -> Arc<[Problem]> {
    if let Some(undone) = undone
        && undone.changed().await.is_ok()
    {
        return Arc::clone(&undone.borrow_and_update());
    }
    std::future::pending().await
}

/// `/apis/GROUP/VERSION/namespaces/NAMESPACE/PLURAL/NAME`.
fn path(resource: &Resource, name: &ObjectName) -> Arc<str> {
    let folder = resource.path(Some(&name.namespace));
    format!("{folder}/{}", name.name).into()
}

fn replace(last: &mut Published, new: Published) -> bool {
    let same_snapshot = Arc::ptr_eq(&last.snapshot, &new.snapshot);
    let same_statuses = Arc::ptr_eq(&last.statuses, &new.statuses);
    if !same_snapshot {
        log(last, &new);
    }
    *last = new;
    !(same_snapshot && same_statuses)
}

/// Pods come and go all the time; what is news is logged, the rest on request.
fn log(last: &Published, new: &Published) {
    let (last, new) = (&last.snapshot, &new.snapshot);
    tracing::debug!(
        generation = new.generation,
        ports = new.ports.len(),
        pools = new.pools.len(),
        problems = new.problems.len(),
        "configuration changed"
    );
    if last.problems == new.problems {
        return;
    }
    for problem in &new.problems {
        if !last.problems.contains(problem) {
            tracing::warn!("{problem}");
        }
    }
}
