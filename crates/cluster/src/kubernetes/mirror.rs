//! What is known of the cluster: the index of its objects, how far each kind has been read, and what
//! is wrong with the reading. Takes changes and makes publications; asks nobody anything.
//!
//! An object that is refused keeps its last good state, and so does everything of a kind that
//! cannot be followed for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_api::{Index, Kind, Object, ObjectStatus, Publication, Settings, reason};
use forebay_model::ObjectName;
use forebay_model::snapshot::Problem;
use serde_json::Value;
use tokio::time::Instant;

use super::watch::{Change, Place};

/// How long contact may be lost before it is called a problem: servers restart, and connections
/// move between their replicas.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// How long what is said of lost contact stays as it was first said: kinds come back one by one, and
/// each would be news.
const SAID_FOR: Duration = Duration::from_secs(30);

/// The cluster as far as it is known.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) index: Index,
    /// What the server has of each kind, as soon as that is known.
    kinds: BTreeMap<Kind, Standing>,
    discovery: Option<Lost>,
    /// What is said of lost contact, and since when.
    said: Option<(Problem, Instant)>,
    faults: BTreeMap<(Kind, ObjectName), Fault>,
    /// Objects that have a status of ours, as of the last publication.
    ours: BTreeSet<(Kind, ObjectName)>,
    statuses: Arc<[ObjectStatus]>,
    /// What could not be done for Gateways.
    undone: Arc<[Problem]>,
    problems: Vec<Problem>,
}

/// How a kind stands.
#[derive(Debug)]
enum Standing {
    /// The server does not have it, or does not let us read it.
    Absent(Option<String>),
    /// It is followed in these places.
    Followed(BTreeMap<Place, Contact>),
}

#[derive(Debug, Default)]
struct Contact {
    listed: bool,
    lost: Option<Lost>,
}

#[derive(Debug)]
struct Lost {
    since: Instant,
    why: String,
}

/// What is wrong with one object.
#[derive(Debug)]
struct Fault {
    /// Whether the object was refused, rather than read with remarks.
    refused: bool,
    problems: Vec<Problem>,
}

impl Mirror {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            index: Index::new(settings),
            kinds: BTreeMap::new(),
            discovery: None,
            said: None,
            faults: BTreeMap::new(),
            ours: BTreeSet::new(),
            statuses: Arc::default(),
            undone: Arc::default(),
            problems: Vec::new(),
        }
    }

    /// Takes in what is news.
    pub(crate) fn take(&mut self, change: Change, now: Instant) {
        match change {
            Change::Found(resource, places) => {
                let places = places.into_iter().map(|place| (place, Contact::default()));
                let standing = Standing::Followed(places.collect());
                self.kinds.insert(resource.kind, standing);
            }
            Change::Absent(kind, why) => {
                self.kinds.insert(kind, Standing::Absent(why));
            }
            Change::Seen(kind, name, object) => self.seen(kind, name, object),
            Change::Gone(kind, name) => {
                self.index.delete(kind, &name);
                self.faults.remove(&(kind, name));
            }
            Change::Listed(place) => {
                if let Some(contact) = self.contact(&place) {
                    contact.listed = true;
                }
            }
            Change::Lost(place, why) => {
                if let Some(contact) = self.contact(&place) {
                    contact.lost = Some(Lost { since: now, why });
                }
            }
            Change::Regained(place) => {
                if let Some(contact) = self.contact(&place) {
                    contact.lost = None;
                }
            }
            Change::Release(version) => self.index.set_bundle_version(version),
            Change::Discovery(found) => {
                self.discovery = found.err().map(|why| Lost { since: now, why });
            }
        }
    }

    fn contact(&mut self, place: &Place) -> Option<&mut Contact> {
        match self.kinds.get_mut(&place.kind) {
            Some(Standing::Followed(places)) => places.get_mut(place),
            Some(Standing::Absent(_)) | None => None,
        }
    }

    fn seen(&mut self, kind: Kind, name: ObjectName, object: Value) {
        let (refused, problems) = match Object::parse(object) {
            Ok(parsed) => {
                self.index.apply(parsed.object);
                (false, parsed.warnings)
            }
            Err(problems) => (true, problems),
        };
        let key = (kind, name);
        if problems.is_empty() {
            self.faults.remove(&key);
        } else {
            self.faults.insert(key, Fault { refused, problems });
        }
    }

    /// Takes in what could not be done for Gateways.
    pub(crate) fn set_undone(&mut self, problems: Arc<[Problem]>) {
        self.undone = problems;
    }

    /// Whether every kind has been listed once, as far as the server has it.
    pub(crate) fn is_synced(&self) -> bool {
        self.unlisted().next().is_none()
    }

    /// Whether there is nothing that cannot be followed at the moment.
    pub(crate) fn is_followed(&self) -> bool {
        self.discovery.is_none() && self.lost().next().is_none()
    }

    fn unlisted(&self) -> impl Iterator<Item = Kind> {
        Kind::all().filter(|kind| match self.kinds.get(kind) {
            None => true,
            Some(Standing::Absent(_)) => false,
            Some(Standing::Followed(places)) => !places.values().all(|contact| contact.listed),
        })
    }

    fn lost(&self) -> impl Iterator<Item = (Kind, &Lost)> {
        let contacts = self.kinds.iter().flat_map(|(kind, standing)| {
            let places = match standing {
                Standing::Absent(_) => None,
                Standing::Followed(places) => Some(places.values()),
            };
            places.into_iter().flatten().map(|contact| (*kind, contact))
        });
        contacts.filter_map(|(kind, contact)| Some((kind, contact.lost.as_ref()?)))
    }

    /// What keeps the first publication waiting, for people.
    pub(crate) fn waits_for(&self) -> String {
        let kinds = names(self.unlisted());
        let lost = self.lost().map(|(_, lost)| lost);
        match self.discovery.as_ref().or_else(|| lost.into_iter().next()) {
            Some(lost) => format!("{kinds}: {}", lost.why),
            None => kinds,
        }
    }

    /// The snapshot and the statuses of what is known now. Must not be called before everything
    /// is listed once: what is not known yet would look as if it did not exist.
    pub(crate) fn publish(&mut self, now: Instant) -> Publication {
        self.set_problems(now);
        let mut published = self.index.publish();
        if !Arc::ptr_eq(&published.statuses, &self.statuses) {
            self.statuses = Arc::clone(&published.statuses);
            let ours = self.statuses.iter();
            self.ours = ours.map(|s| (s.kind, s.name.clone())).collect();
            // Remarks on objects count once it is known that these are ours.
            if self.set_problems(now) {
                published = self.index.publish();
            }
        }
        published
    }

    /// Tells the index what is wrong with the reading; whether that has changed.
    fn set_problems(&mut self, now: Instant) -> bool {
        let mut problems = self.contact_problems(now);
        problems.extend(self.undone.iter().cloned());
        let shown = self.faults.iter().filter(|(key, fault)| {
            // Of other controllers' objects only those are named that cannot be read at all.
            fault.refused || !has_owner(key.0) || self.ours.contains(key)
        });
        problems.extend(shown.flat_map(|(_, fault)| fault.problems.iter().cloned()));
        if problems == self.problems {
            return false;
        }
        self.problems.clone_from(&problems);
        self.index.set_source_problems(problems);
        true
    }

    fn contact_problems(&mut self, now: Instant) -> Vec<Problem> {
        let new = self.lost_contact(now);
        self.said = match (self.said.take(), new) {
            (_, None) => None,
            (Some((said, at)), Some(_)) if now.duration_since(at) < SAID_FOR => Some((said, at)),
            (_, Some(new)) => Some((new, now)),
        };
        let said = self.said.iter().map(|(problem, _)| problem.clone());
        let hidden = self
            .kinds
            .iter()
            .filter_map(|(kind, standing)| match standing {
                Standing::Absent(Some(why)) => Some(problem(
                    reason::KIND_NOT_READ,
                    format!("{kind} objects are not read ({why})"),
                )),
                Standing::Absent(None) | Standing::Followed(_) => None,
            });
        said.chain(hidden).collect()
    }

    /// What cannot be followed, if it has been so for long.
    fn lost_contact(&self, now: Instant) -> Option<Problem> {
        let is_old = |lost: &Lost| now.duration_since(lost.since) >= LOST_AFTER;
        let lost: Vec<_> = self.lost().filter(|(_, lost)| is_old(lost)).collect();
        let message = match (lost.first(), &self.discovery) {
            (Some((_, first)), _) => {
                let kinds = names(lost.iter().map(|(kind, _)| *kind));
                let why = &first.why;
                format!("not followed: {kinds}; what was known of them stays in force ({why})")
            }
            (None, Some(lost)) if is_old(lost) => {
                let why = &lost.why;
                format!("kinds that were not there are not looked for at the moment ({why})")
            }
            (None, _) => return None,
        };
        Some(problem(reason::SOURCE_UNREACHABLE, message))
    }
}

fn problem(reason: &'static str, message: String) -> Problem {
    Problem {
        object: "Kubernetes API".to_owned(),
        field: String::new(),
        reason,
        message,
    }
}

/// Whether objects of a kind belong to one controller or another.
fn has_owner(kind: Kind) -> bool {
    forebay_api::status::is_written(kind)
}

fn names(kinds: impl Iterator<Item = Kind>) -> String {
    let names: BTreeSet<&str> = kinds.map(Kind::as_str).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}
