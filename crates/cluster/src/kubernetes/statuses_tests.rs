//! The books of writing, with literals: what is due when, and what becomes of it.

use forebay_api::status::{Condition, ParentStatus};

use super::*;

const TIME: &str = "2026-11-02T00:00:00Z";

fn key(name: &str) -> Key {
    (Kind::HttpRoute, ObjectName::new("ns", name))
}

fn status(name: &str, holds: bool) -> ObjectStatus {
    ObjectStatus {
        kind: Kind::HttpRoute,
        name: ObjectName::new("ns", name),
        generation: 1,
        conditions: Vec::new(),
        listeners: Vec::new(),
        parents: vec![ParentStatus {
            group: "gateway.networking.k8s.io",
            kind: "Gateway",
            name: ObjectName::new("ns", "edge"),
            section_name: None,
            port: None,
            conditions: vec![Condition {
                kind: "Accepted",
                holds,
                reason: "Accepted",
                message: String::new(),
            }],
        }],
        addresses: Vec::new(),
        supported_features: Vec::new(),
        attached_listener_sets: None,
    }
}

fn present(version: &str, status: Value) -> Present {
    Present {
        path: "/route".into(),
        resource_version: version.to_owned(),
        status,
    }
}

/// Books of a leader that know these routes, none of which has a status yet.
fn books(names: &[&str], now: Instant) -> Books {
    let mut books = Books::new("forebay.dev/gateway".to_owned());
    books.lead(true, now);
    for name in names {
        books.seen(key(name), present("1", Value::Null), now);
    }
    books
}

fn publish(books: &mut Books, statuses: Vec<ObjectStatus>, now: Instant) {
    books.publish(&statuses.into(), now);
}

/// Who is written now, with the version that the write is for.
fn letters(books: &mut Books, now: Instant) -> Vec<(String, String)> {
    let all = std::iter::from_fn(|| books.next(now, TIME));
    let told = all.map(|letter| {
        let version = letter.patch["metadata"]["resourceVersion"].as_str();
        (letter.key.1.name.to_string(), version.unwrap().to_owned())
    });
    told.collect()
}

fn named(name: &str, version: &str) -> (String, String) {
    (name.to_owned(), version.to_owned())
}

#[test]
fn only_a_leader_writes_and_a_new_one_writes_all_that_differs() {
    let now = Instant::now();
    let mut books = books(&["a", "b"], now);
    books.lead(false, now);
    publish(&mut books, vec![status("a", true), status("b", true)], now);
    assert_eq!(letters(&mut books, now), []);
    books.lead(true, now);
    let both = [named("a", "1"), named("b", "1")];
    assert_eq!(letters(&mut books, now), both);
}

#[test]
fn a_status_that_changes_while_it_is_written_is_written_again_after_that() {
    let now = Instant::now();
    let mut books = books(&["a"], now);
    publish(&mut books, vec![status("a", true)], now);
    let letter = books.next(now, TIME).unwrap();
    publish(&mut books, vec![status("a", false)], now);
    assert_eq!(letters(&mut books, now), [], "one at a time");
    let after = present("2", letter.patch["status"].clone());
    books.sent(key("a"), Written::Done, Some(after), now);
    assert_eq!(letters(&mut books, now), [named("a", "2")]);
}

#[test]
fn an_event_that_brings_back_what_was_written_causes_no_other_write() {
    let now = Instant::now();
    let mut books = books(&["a"], now);
    publish(&mut books, vec![status("a", true)], now);
    let letter = books.next(now, TIME).unwrap();
    let after = present("2", letter.patch["status"].clone());
    books.sent(key("a"), Written::Done, Some(after.clone()), now);
    books.seen(key("a"), after.clone(), now);
    assert_eq!(letters(&mut books, now), []);
    // Somebody takes it out again: so it is put back.
    books.seen(key("a"), present("3", json!({"parents": []})), now);
    assert_eq!(letters(&mut books, now), [named("a", "3")]);
}

#[test]
fn a_conflict_waits_and_is_settled_with_the_newer_version() {
    let now = Instant::now();
    let mut books = books(&["a"], now);
    publish(&mut books, vec![status("a", true)], now);
    assert!(books.next(now, TIME).is_some());
    books.sent(key("a"), Written::Conflict, None, now);
    assert_eq!(letters(&mut books, now), []);
    // News of the object does not cut the wait short.
    books.seen(key("a"), present("2", Value::Null), now);
    assert_eq!(letters(&mut books, now), []);
    let due = books.next_at().unwrap();
    assert!(due > now && due <= now + RETRY_FIRST);
    assert_eq!(letters(&mut books, due), [named("a", "2")]);
    // Failures in a row wait longer and longer.
    books.sent(key("a"), Written::Failed, None, due);
    assert!(books.next_at().unwrap() >= due + RETRY_FIRST);
}

#[test]
fn an_object_that_is_gone_is_not_written() {
    let now = Instant::now();
    let mut books = books(&["a", "b"], now);
    publish(&mut books, vec![status("a", true), status("b", true)], now);
    books.gone(&key("a"));
    assert_eq!(letters(&mut books, now), [named("b", "1")]);
    books.sent(key("b"), Written::Missing, None, now);
    assert_eq!(books.next_at(), None);
}

#[test]
fn entries_of_ours_go_from_an_object_that_has_turned_to_another_controller() {
    let now = Instant::now();
    let mut books = books(&["a"], now);
    publish(&mut books, vec![status("a", true)], now);
    let letter = books.next(now, TIME).unwrap();
    let after = present("2", letter.patch["status"].clone());
    books.sent(key("a"), Written::Done, Some(after), now);
    publish(&mut books, Vec::new(), now);
    let letter = books.next(now, TIME).unwrap();
    assert_eq!(letter.patch["status"], json!({"parents": []}));
    // Also when they are older than this process.
    let mut newborn = Books::new("forebay.dev/gateway".to_owned());
    newborn.lead(true, now);
    let stale = json!({"parents": [{"controllerName": "forebay.dev/gateway"}]});
    newborn.seen(key("a"), present("3", stale), now);
    assert_eq!(
        letters(&mut newborn, now),
        [],
        "not before it knows what is its own"
    );
    publish(&mut newborn, Vec::new(), now);
    assert_eq!(letters(&mut newborn, now), [named("a", "3")]);
}
