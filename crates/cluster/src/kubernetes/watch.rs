//! One place of one kind, followed: list it page by page, watch it from there, list it again when
//! the server has forgotten where we were. What is seen goes out as [`Change`]s, in order.
//!
//! A watch that breaks off is taken up where it ended; only a list may find that objects went in
//! the meantime, and says so. Nothing here ends but when the kind itself is gone or may not be read.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use forebay_api::{Kind, Object};
use forebay_model::ObjectName;
use http::StatusCode;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::backoff::{Backoff, random};
use super::discovery::Resource;
use super::metrics::Metrics;
use super::read::{self, Event};
use super::server::{Failure, Server};

/// Objects of one page: large enough that cold starts are short, small enough that a page of pods
/// is a few MiB.
const PAGE_OBJECTS: usize = 500;
/// Waits after failures. With the first, one connection of several that is cut delays nobody; with
/// the longest, a server is found within seconds of its return, and is not flooded.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// The shortest time from one watch to the next.
const TURN_LEAST: Duration = Duration::from_millis(500);
/// The server sends a bookmark about every minute, so longer silence is not that of a quiet kind.
const SILENCE_MAX: Duration = Duration::from_secs(150);
/// After how long the server ends a watch, which spreads watches over its replicas again.
const WATCH_SECONDS: f64 = 240.0;
/// Secrets of other types are no business of a gateway, so it does not ask for them.
const TLS_SECRETS: &str = "type=kubernetes.io/tls";

/// The objects of one kind, in one namespace or in all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) namespace: Option<Arc<str>>,
}

/// What is news.
#[derive(Debug)]
pub(crate) enum Change {
    /// The server has a kind, and its objects are followed in these places.
    Found(Resource, Vec<Place>),
    /// The server has no such kind, or none that we may read; why, in the latter case.
    Absent(Kind, Option<String>),
    /// An object is there, new or changed.
    Seen(Kind, ObjectName, Value),
    /// An object is gone.
    Gone(Kind, ObjectName),
    /// Every object of a place has been seen.
    Listed(Place),
    /// A place cannot be followed for the moment.
    Lost(Place, String),
    /// A place is followed again.
    Regained(Place),
    /// The release of Gateway API whose definitions the server has, if it says so.
    Release(Option<String>),
    /// Which kinds the server has cannot be found out for the moment, or can again.
    Discovery(Result<(), String>),
}

/// Why following a place has ended.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The kind is not served any more.
    Absent,
    /// It may not be read.
    Forbidden(String),
    /// Nobody listens.
    Unheard,
}

/// Follows `place` of `resource`. Where it is optional, being forbidden is an end and no failure.
pub(crate) async fn follow(
    server: Server,
    resource: Resource,
    place: Place,
    optional: bool,
    out: mpsc::Sender<Change>,
    metrics: Metrics,
) -> End {
    let follower = Follower {
        path: resource.path(place.namespace.as_deref()),
        server,
        resource,
        place,
        optional,
        out,
        metrics,
        known: BTreeSet::new(),
        version: String::new(),
        backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
        lost: false,
    };
    follower.run().await
}

struct Follower {
    server: Server,
    resource: Resource,
    place: Place,
    path: String,
    optional: bool,
    out: mpsc::Sender<Change>,
    metrics: Metrics,
    /// Objects that have been told of and are not gone.
    known: BTreeSet<ObjectName>,
    /// Where the watch goes on; empty where a list is needed.
    version: String,
    backoff: Backoff,
    lost: bool,
}

/// Why a list or a watch has ended.
enum Stop {
    End(End),
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Follower {
    async fn run(mut self) -> End {
        loop {
            let began = Instant::now();
            let watches = !self.version.is_empty();
            let done = match watches {
                true => self.watch().await,
                false => self.list().await,
            };
            let failure = match done {
                Ok(()) if !watches => continue,
                Ok(()) => {
                    // A server that ends watches as soon as they begin is not asked in a circle.
                    sleep_until(began + TURN_LEAST).await;
                    continue;
                }
                Err(Stop::End(end)) => return end,
                Err(Stop::Failed(failure)) => failure,
            };
            if let Some(end) = self.judge(&failure) {
                return self.leave(end).await;
            }
            self.metrics.watch_error(self.place.kind);
            tracing::debug!(path = self.path, %failure, "not followed");
            if failure.is(StatusCode::GONE) && watches {
                // Too old a version: list again, at once.
                self.version.clear();
                continue;
            }
            if !std::mem::replace(&mut self.lost, true) {
                let lost = Change::Lost(self.place.clone(), failure.to_string());
                if self.out.send(lost).await.is_err() {
                    return End::Unheard;
                }
            }
            sleep(self.backoff.wait(random())).await;
        }
    }

    /// Whether a failure is the end.
    fn judge(&self, failure: &Failure) -> Option<End> {
        if failure.is(StatusCode::NOT_FOUND) {
            return Some(End::Absent);
        }
        (self.optional && failure.is(StatusCode::FORBIDDEN))
            .then(|| End::Forbidden(failure.to_string()))
    }

    async fn leave(mut self, end: End) -> End {
        for name in std::mem::take(&mut self.known) {
            let gone = Change::Gone(self.place.kind, name);
            if self.out.send(gone).await.is_err() {
                return End::Unheard;
            }
        }
        end
    }

    async fn tell(&self, change: Change) -> Result<(), Stop> {
        let told = self.out.send(change).await;
        told.map_err(|_| Stop::End(End::Unheard))
    }

    /// Tells of every object, page by page, and of those that went unseen.
    async fn list(&mut self) -> Result<(), Stop> {
        let mut unseen = self.known.clone();
        let mut next = None;
        loop {
            let path = self.query(&[
                ("limit", Some(&PAGE_OBJECTS.to_string())),
                ("continue", next.as_deref()),
            ]);
            let bytes = self.server.get(&path).await?;
            let page = read::page(&bytes, self.resource.form())?;
            for object in page.items {
                if let Some(name) = self.seen(object).await? {
                    unseen.remove(&name);
                }
            }
            next = page.next;
            if next.is_none() {
                self.version = page.version;
                break;
            }
        }
        for name in unseen {
            self.gone(name).await?;
        }
        self.tell(Change::Listed(self.place.clone())).await?;
        self.found_again().await
    }

    async fn found_again(&mut self) -> Result<(), Stop> {
        self.backoff.reset();
        if std::mem::take(&mut self.lost) {
            self.tell(Change::Regained(self.place.clone())).await?;
        }
        Ok(())
    }

    /// Tells of what happens from the last version on, until the server has had enough.
    async fn watch(&mut self) -> Result<(), Stop> {
        let seconds = WATCH_SECONDS * (1.0 + random() / 4.0);
        let path = self.query(&[
            ("watch", Some("true")),
            ("allowWatchBookmarks", Some("true")),
            ("timeoutSeconds", Some(&format!("{seconds:.0}"))),
            ("resourceVersion", Some(&self.version)),
        ]);
        let mut lines = self.server.lines(&path).await?;
        self.found_again().await?;
        loop {
            let line = match timeout(SILENCE_MAX, lines.next()).await {
                // Silence: another connection may be livelier.
                Err(_) => return Ok(()),
                Ok(line) => line?,
            };
            let Some(line) = line else { return Ok(()) };
            match read::event(&line, self.resource.form())? {
                Event::Seen(object) => {
                    self.version = read::version(&object).to_owned();
                    self.seen(object).await?;
                }
                Event::Gone(object) => {
                    self.version = read::version(&object).to_owned();
                    if let Some((_, name)) = Object::key_of(&object) {
                        self.gone(name).await?;
                    }
                }
                Event::Bookmark(version) => self.version = version,
                Event::Error(failure) => return Err(failure.into()),
            }
        }
    }

    async fn seen(&mut self, object: Value) -> Result<Option<ObjectName>, Stop> {
        // Every object of a server has a name.
        let Some((kind, name)) = Object::key_of(&object) else {
            return Ok(None);
        };
        self.known.insert(name.clone());
        self.tell(Change::Seen(kind, name.clone(), object)).await?;
        Ok(Some(name))
    }

    async fn gone(&mut self, name: ObjectName) -> Result<(), Stop> {
        self.known.remove(&name);
        self.tell(Change::Gone(self.place.kind, name)).await
    }

    fn query(&self, parameters: &[(&str, Option<&str>)]) -> String {
        let selector = (self.place.kind == Kind::Secret).then_some(TLS_SECRETS);
        let all = parameters.iter().copied();
        let all = all.chain([("fieldSelector", selector)]);
        let mut path = self.path.clone();
        let mut mark = '?';
        for (name, value) in all {
            if let Some(value) = value {
                path += &format!("{mark}{name}={}", encoded(value));
                mark = '&';
            }
        }
        path
    }
}

/// A value as it may stand in a query.
pub(crate) fn encoded(value: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let one = |b: u8| match plain(b) {
        true => char::from(b).to_string(),
        false => format!("%{b:02X}"),
    };
    value.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(
            encoded("type=kubernetes.io/tls"),
            "type%3Dkubernetes.io%2Ftls"
        );
        assert_eq!(encoded("eyJ2IjoibWV0YSJ9~x"), "eyJ2IjoibWV0YSJ9~x");
    }
}
