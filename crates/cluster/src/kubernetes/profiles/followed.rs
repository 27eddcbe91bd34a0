//! All objects at one path, cut down to what is needed of each and kept up to date: listed page by page,
//! watched from there, listed again when the server has forgotten where we were. Who waits for news hears
//! only of what matters to him: a node's heartbeat does not wake anybody.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::kubernetes::backoff::{Backoff, random};
use crate::kubernetes::server::{Failure, Server, json};

/// Objects of one page: nodes are of 10 to 50 KiB each.
const PAGE_OBJECTS: usize = 250;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(10);
/// The server sends a bookmark about every minute, so longer silence is not that of a quiet kind.
const SILENCE_MAX: Duration = Duration::from_secs(150);
/// After how long the server ends a watch.
const WATCH_SECONDS: f64 = 240.0;
/// The shortest time from one watch to the next.
const TURN_LEAST: Duration = Duration::from_millis(200);

/// Objects by name, and whether all of them were seen once.
#[derive(Clone, Debug)]
pub(super) struct Followed<T> {
    pub(super) objects: BTreeMap<String, T>,
    pub(super) is_complete: bool,
}

impl<T> Default for Followed<T> {
    fn default() -> Self {
        Followed {
            objects: BTreeMap::new(),
            is_complete: false,
        }
    }
}

/// What is followed, and what is kept of an object.
pub(super) struct Follower<T> {
    pub(super) server: Server,
    /// `/api/v1/nodes`.
    pub(super) path: &'static str,
    /// Further words of the query, such as `fieldSelector=…`; may be empty.
    pub(super) query: String,
    pub(super) keep: fn(&Value) -> T,
    pub(super) out: watch::Sender<Followed<T>>,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Option<Vec<Value>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

impl<T: PartialEq> Follower<T> {
    /// Follows for ever. A kind that the server does not have is one without objects.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let mut version = String::new();
        let mut lost = false;
        loop {
            let done = match version.is_empty() {
                true => self.list().await,
                false => self.watch(&version).await,
            };
            match done {
                Ok(next) => {
                    version = next;
                    backoff.reset();
                    if std::mem::take(&mut lost) {
                        tracing::info!("{} is followed again", self.path);
                    }
                    sleep(TURN_LEAST).await;
                    continue;
                }
                Err(failure) if failure.is(StatusCode::GONE) => {
                    version.clear();
                    continue;
                }
                Err(failure) if failure.is(StatusCode::NOT_FOUND) => {
                    self.replace(BTreeMap::new());
                    version.clear();
                    sleep(RETRY_LONGEST).await;
                    continue;
                }
                Err(failure) => {
                    if !std::mem::replace(&mut lost, true) {
                        tracing::warn!("{} cannot be followed: {failure}", self.path);
                    }
                }
            }
            sleep(backoff.wait(random())).await;
        }
    }

    fn path(&self, more: &[(&str, &str)]) -> String {
        let more = more.iter().filter(|(_, value)| !value.is_empty());
        let mut words: Vec<String> = more.map(|(key, value)| format!("{key}={value}")).collect();
        if !self.query.is_empty() {
            words.push(self.query.clone());
        }
        format!("{}?{}", self.path, words.join("&"))
    }

    fn replace(&self, objects: BTreeMap<String, T>) {
        self.out.send_if_modified(|known| {
            let changed = !known.is_complete || known.objects != objects;
            known.objects = objects;
            known.is_complete = true;
            changed
        });
    }

    async fn list(&self) -> Result<String, Failure> {
        let (mut objects, mut next) = (BTreeMap::new(), String::new());
        loop {
            let limit = PAGE_OBJECTS.to_string();
            let path = self.path(&[("limit", &limit), ("continue", &next)]);
            let page: Page = json(&self.server.get(&path).await?)?;
            for object in page.items.unwrap_or_default() {
                objects.insert(name(&object), (self.keep)(&object));
            }
            next = page.metadata.next.unwrap_or_default();
            if next.is_empty() {
                self.replace(objects);
                return Ok(page.metadata.resource_version);
            }
        }
    }

    /// Until the server has had enough of it; the version to go on from.
    async fn watch(&self, version: &str) -> Result<String, Failure> {
        let seconds = format!("{:.0}", WATCH_SECONDS * (1.0 + random() / 4.0));
        let path = self.path(&[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &seconds),
            ("resourceVersion", version),
        ]);
        let mut version = version.to_owned();
        let mut lines = self.server.lines(&path).await?;
        loop {
            let line = match timeout(SILENCE_MAX, lines.next()).await {
                // Silence: another connection may be livelier.
                Err(_) => return Ok(version),
                Ok(line) => line?,
            };
            let Some(line) = line else {
                return Ok(version);
            };
            let Event { kind, object } = json(&line)?;
            if kind == "ERROR" {
                let code = object["code"].as_u64().and_then(|c| u16::try_from(c).ok());
                let status = code.and_then(|code| StatusCode::from_u16(code).ok());
                return Err(Failure::Refused {
                    status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                    why: object["message"].as_str().unwrap_or_default().to_owned(),
                });
            }
            let seen = object["metadata"]["resourceVersion"].as_str();
            version = seen.unwrap_or_default().to_owned();
            match kind.as_str() {
                "ADDED" | "MODIFIED" => self.change(name(&object), Some((self.keep)(&object))),
                "DELETED" => self.change(name(&object), None),
                _ => {}
            }
        }
    }

    fn change(&self, name: String, object: Option<T>) {
        self.out.send_if_modified(|known| match object {
            Some(object) if known.objects.get(&name) == Some(&object) => false,
            Some(object) => {
                known.objects.insert(name, object);
                true
            }
            None => known.objects.remove(&name).is_some(),
        });
    }
}

fn name(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str();
    name.unwrap_or_default().to_owned()
}
