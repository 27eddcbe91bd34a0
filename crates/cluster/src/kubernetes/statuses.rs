//! Statuses on their way to the API server.
//!
//! [`Desk`] is what the source, the writer and the election share: what each object should say, what
//! it says, and whose turn it is to be written. [`write`] sends. The source only notes and never
//! waits; of several states of one object the newest is sent.
//!
//! Every write is a merge patch with the `resourceVersion` that it was made for, for all kinds: lists
//! that controllers share are atomic, so they must be read, changed and written as one, and a
//! process that believes wrongly to lead cannot overwrite what a newer leader has written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_api::{Kind, ObjectStatus, status};
use forebay_model::ObjectName;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::backoff::{Backoff, random};
use super::metrics::{Metrics, Written};
use super::server::{Failure, Server, Write};

/// Writes under way at the same time.
const WRITES_MAX: usize = 8;
/// Time between the starts of two writes: 100 a second, which a small API server takes well. The
/// statuses of 2,000 routes are written in 20 s.
const PACE: Duration = Duration::from_millis(10);
/// Waits after a write that failed; the newest status is sent when they are over.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

type Key = (Kind, ObjectName);

/// What the server has of an object.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Present {
    /// `/api/...` of the object.
    pub(crate) path: Arc<str>,
    pub(crate) resource_version: String,
    pub(crate) status: Value,
}

/// A status to be sent.
#[derive(PartialEq, Debug)]
pub(crate) struct Letter {
    pub(crate) key: Key,
    pub(crate) path: Arc<str>,
    pub(crate) patch: Value,
}

/// The books: what is, what should be, and what is due.
#[derive(Debug)]
pub(crate) struct Books {
    controller: String,
    wanted: BTreeMap<Key, ObjectStatus>,
    last: Arc<[ObjectStatus]>,
    present: BTreeMap<Key, Present>,
    /// Whether `wanted` says anything yet: before, every object would look like none of ours.
    complete: bool,
    /// Whether this process is the one that writes.
    leads: bool,
    /// Objects to look at, and when.
    due: BTreeMap<Key, Instant>,
    /// Those whose write is under way, and whether they must be looked at again after it.
    sent: BTreeMap<Key, bool>,
    /// How often writes of an object have failed since the last that did not.
    retries: BTreeMap<Key, Backoff>,
}

impl Books {
    pub(crate) fn new(controller: String) -> Self {
        Self {
            controller,
            wanted: BTreeMap::new(),
            last: Arc::default(),
            present: BTreeMap::new(),
            complete: false,
            leads: false,
            due: BTreeMap::new(),
            sent: BTreeMap::new(),
            retries: BTreeMap::new(),
        }
    }

    /// The server has this object now.
    pub(crate) fn seen(&mut self, key: Key, present: Present, now: Instant) {
        let concerns_us = self.wanted.contains_key(&key) || self.has_entries(key.0, &present);
        self.present.insert(key.clone(), present);
        if concerns_us {
            self.look_at(key, now);
        }
    }

    /// The server has it no longer.
    pub(crate) fn gone(&mut self, key: &Key) {
        self.present.remove(key);
        self.due.remove(key);
        self.retries.remove(key);
    }

    /// These are the statuses from now on.
    pub(crate) fn publish(&mut self, statuses: &Arc<[ObjectStatus]>, now: Instant) {
        let first = !std::mem::replace(&mut self.complete, true);
        if first {
            self.look_at_all(now);
        } else if Arc::ptr_eq(statuses, &self.last) {
            return;
        }
        self.last = Arc::clone(statuses);
        let mut left: BTreeSet<Key> = self.wanted.keys().cloned().collect();
        for status in statuses.iter() {
            let key = (status.kind, status.name.clone());
            left.remove(&key);
            if self.wanted.get(&key) != Some(status) {
                self.wanted.insert(key.clone(), status.clone());
                self.look_at(key, now);
            }
        }
        for key in left {
            self.wanted.remove(&key);
            self.look_at(key, now);
        }
    }

    /// From now on this process writes, or another one does.
    pub(crate) fn lead(&mut self, leads: bool, now: Instant) {
        self.leads = leads;
        if leads {
            self.look_at_all(now);
        } else {
            self.due.clear();
            self.retries.clear();
        }
    }

    /// Every object that has, or should have, a status of ours.
    fn look_at_all(&mut self, now: Instant) {
        let entries = self.present.iter();
        let entries = entries.filter(|(key, present)| self.has_entries(key.0, present));
        let keys: Vec<Key> = entries
            .map(|(key, _)| key.clone())
            .chain(self.wanted.keys().cloned())
            .collect();
        for key in keys {
            self.look_at(key, now);
        }
    }

    fn has_entries(&self, kind: Kind, present: &Present) -> bool {
        status::has_entries(kind, &present.status, &self.controller)
    }

    fn look_at(&mut self, key: Key, now: Instant) {
        if !(self.leads && self.complete) {
            return;
        }
        match self.sent.get_mut(&key) {
            Some(again) => *again = true,
            // One that waits after a failure goes on waiting.
            None => {
                self.due.entry(key).or_insert(now);
            }
        }
    }

    /// What to send now: a letter for an object that is due and does not say what it should.
    pub(crate) fn next(&mut self, now: Instant, time: &str) -> Option<Letter> {
        loop {
            let due = self.due.iter().find(|(_, at)| **at <= now)?;
            let key = due.0.clone();
            self.due.remove(&key);
            if let Some(letter) = self.letter(&key, time) {
                self.sent.insert(key, false);
                return Some(letter);
            }
            self.retries.remove(&key);
        }
    }

    fn letter(&self, key: &Key, time: &str) -> Option<Letter> {
        let present = self.present.get(key)?;
        let wanted = self.wanted.get(key);
        let (kind, name) = key;
        let controller = &self.controller;
        let status = status::render(*kind, name, wanted, &present.status, controller, time)?;
        Some(Letter {
            key: key.clone(),
            path: Arc::clone(&present.path),
            patch: json!({
                "metadata": { "resourceVersion": present.resource_version },
                "status": status,
            }),
        })
    }

    /// When the next object is due.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// How a letter fared; `present` is what the server made of it.
    pub(crate) fn sent(&mut self, key: Key, what: Written, present: Option<Present>, now: Instant) {
        let again = self.sent.remove(&key).unwrap_or(false);
        match what {
            Written::Done => {
                self.retries.remove(&key);
                if let (Some(newer), Some(own)) = (present, self.present.get_mut(&key)) {
                    *own = newer;
                }
                if again {
                    self.look_at(key, now);
                }
            }
            Written::Missing => {
                self.retries.remove(&key);
            }
            Written::Conflict | Written::Failed if self.leads => {
                let first = || Backoff::new(RETRY_FIRST, RETRY_LONGEST);
                let backoff = self.retries.entry(key.clone()).or_insert_with(first);
                self.due.insert(key, now + backoff.wait(random()));
            }
            Written::Conflict | Written::Failed => {}
        }
    }
}

/// The books, to be shared. Clones are one desk.
#[derive(Clone, Debug)]
pub(crate) struct Desk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    books: Mutex<Books>,
    news: Notify,
}

impl Desk {
    pub(crate) fn new(controller: String) -> Self {
        Self(Arc::new(Inner {
            books: Mutex::new(Books::new(controller)),
            news: Notify::new(),
        }))
    }

    /// Notes something, and tells the writer.
    pub(crate) fn note(&self, what: impl FnOnce(&mut Books, Instant)) {
        what(&mut self.books(), Instant::now());
        self.0.news.notify_one();
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Every change of the books is complete before anything in it could panic.
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what is due, for ever. `clock` tells the time of day as statuses have it.
pub(crate) async fn write(desk: Desk, server: Server, metrics: Metrics, clock: fn() -> String) {
    let mut writes: JoinSet<(Key, Result<Present, Failure>)> = JoinSet::new();
    let mut free_at = Instant::now();
    let mut complaints = Complaints::default();
    loop {
        let now = Instant::now();
        let may_start = writes.len() < WRITES_MAX;
        if may_start && now >= free_at {
            let letter = desk.books().next(now, &clock());
            if let Some(letter) = letter {
                free_at = now + PACE;
                writes.spawn(send(server.clone(), letter));
            }
        }
        let due = desk.books().next_at().filter(|_| may_start);
        let wake = due.map(|at| at.max(free_at));
        tokio::select! {
            Some(done) = writes.join_next() => match done {
                Ok((key, result)) => settle(&desk, &metrics, &mut complaints, key, result),
                Err(error) => tracing::error!(%error, "a write of a status broke off"),
            },
            () = desk.0.news.notified() => {}
            () = until(wake) => {}
        }
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn send(server: Server, letter: Letter) -> (Key, Result<Present, Failure>) {
    let path = format!("{}/status", letter.path);
    let written = server.write(Write::Merge, &path, &letter.patch).await;
    let present = written.map(|object| Present::of(letter.path, &object));
    (letter.key, present)
}

impl Present {
    /// What `object`, as the server sent it, has at `path`.
    pub(crate) fn of(path: Arc<str>, object: &Value) -> Self {
        Self {
            path,
            resource_version: super::read::version(object).to_owned(),
            status: object.get("status").cloned().unwrap_or_default(),
        }
    }
}

/// Failures in the log: one at a time, since what keeps one status from being written keeps others.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: usize,
}

impl Complaints {
    const EVERY: Duration = Duration::from_secs(30);

    fn complain(&mut self, key: &Key, failure: &Failure, now: Instant) {
        if self.last.is_some_and(|last| now < last + Self::EVERY) {
            self.unsaid += 1;
            return;
        }
        let (kind, name) = key;
        let unsaid = std::mem::take(&mut self.unsaid);
        tracing::warn!(
            unsaid,
            "the status of {kind} {name} is not written, and tried again: {failure}"
        );
        self.last = Some(now);
    }
}

fn settle(
    desk: &Desk,
    metrics: &Metrics,
    complaints: &mut Complaints,
    key: Key,
    result: Result<Present, Failure>,
) {
    let now = Instant::now();
    let (what, present) = match result {
        Ok(present) => (Written::Done, Some(present)),
        Err(failure) if failure.is(StatusCode::CONFLICT) => (Written::Conflict, None),
        Err(failure) if failure.is(StatusCode::NOT_FOUND) => (Written::Missing, None),
        Err(failure) => {
            complaints.complain(&key, &failure, now);
            (Written::Failed, None)
        }
    };
    metrics.status_written(what);
    desk.books().sent(key, what, present, now);
}

#[cfg(test)]
#[path = "statuses_tests.rs"]
mod tests;
