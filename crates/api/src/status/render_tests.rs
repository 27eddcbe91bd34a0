//! Statuses to patches, by tables: what an object says, what it should, what is sent.

use serde_json::{Value, json};

use super::*;

const OURS: &str = "forebay.dev/gateway";
const THEN: &str = "2026-11-01T00:00:00Z";
const NOW: &str = "2026-11-02T00:00:00Z";

fn condition(kind: &'static str, holds: bool, reason: &'static str) -> Condition {
    Condition {
        kind,
        holds,
        reason,
        message: String::new(),
    }
}

fn written(kind: &str, status: &str, reason: &str, generation: i64, since: &str) -> Value {
    json!({
        "type": kind, "status": status, "reason": reason, "message": "",
        "observedGeneration": generation, "lastTransitionTime": since,
    })
}

fn status(kind: Kind) -> ObjectStatus {
    ObjectStatus::new(kind, &ObjectName::new("ns", "a"), 3)
}

fn parent(gateway: &str, conditions: Vec<Condition>) -> ParentStatus {
    ParentStatus::of_gateway(&ObjectName::new("ns", gateway), conditions)
}

fn route(parents: Vec<ParentStatus>) -> ObjectStatus {
    ObjectStatus {
        parents,
        ..status(Kind::HttpRoute)
    }
}

/// Renders and applies the patch as a server would; `None` if there is none.
#[track_caller]
fn patched(wanted: &ObjectStatus, present: &Value) -> Option<Value> {
    let patch = |present: &Value| {
        let (kind, name) = (wanted.kind, &wanted.name);
        render(kind, name, Some(wanted), present, OURS, NOW)
    };
    let mut after = present.clone();
    for (field, value) in patch(present)?.as_object().unwrap() {
        after[field] = value.clone();
    }
    assert_eq!(patch(&after), None, "a second write of the same: {after:#}");
    Some(after)
}

#[track_caller]
fn check(wanted: &ObjectStatus, present: Value, want: Value) {
    assert_eq!(patched(wanted, &present), Some(want));
}

#[test]
fn the_time_moves_with_the_status_and_with_nothing_else() {
    let accepted = |holds, reason| ObjectStatus {
        conditions: vec![condition("Accepted", holds, reason)],
        ..status(Kind::InferenceObjective)
    };
    let with = |c: Value| json!({ "conditions": [c] });
    let before = || with(written("Accepted", "True", "Accepted", 2, THEN));
    check(
        &accepted(true, "Accepted"),
        before(),
        with(written("Accepted", "True", "Accepted", 3, THEN)),
    );
    check(
        &accepted(true, "Other"),
        before(),
        with(written("Accepted", "True", "Other", 3, THEN)),
    );
    check(
        &accepted(false, "Invalid"),
        before(),
        with(written("Accepted", "False", "Invalid", 3, NOW)),
    );
    check(
        &accepted(true, "Accepted"),
        Value::Null,
        with(written("Accepted", "True", "Accepted", 3, NOW)),
    );
}

#[test]
fn what_an_object_says_already_is_not_written_again() {
    let wanted = ObjectStatus {
        conditions: vec![
            condition("Accepted", true, "Accepted"),
            condition("Programmed", true, "Programmed"),
        ],
        listeners: vec![ListenerStatus {
            name: "http".to_owned(),
            attached_routes: 2,
            supported_kinds: vec!["HTTPRoute"],
            conditions: vec![condition("Accepted", true, "Accepted")],
        }],
        addresses: vec![super::super::Address {
            kind: "IPAddress",
            value: "192.0.2.1".to_owned(),
        }],
        ..status(Kind::Gateway)
    };
    // In an order of the server's choosing.
    let present = json!({
        "conditions": [
            written("Programmed", "True", "Programmed", 3, THEN),
            written("Accepted", "True", "Accepted", 3, THEN),
        ],
        "listeners": [{
            "name": "http",
            "attachedRoutes": 2,
            "supportedKinds": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"}],
            "conditions": [written("Accepted", "True", "Accepted", 3, THEN)],
        }],
        "addresses": [{"type": "IPAddress", "value": "192.0.2.1"}],
        "attachedListenerSets": 1,
    });
    assert_eq!(patched(&wanted, &present), None);
    // One field of one listener differs: only the listeners are sent.
    let mut older = present.clone();
    older["listeners"][0]["attachedRoutes"] = 1.into();
    let patch = render(
        Kind::Gateway,
        &wanted.name,
        Some(&wanted),
        &older,
        OURS,
        NOW,
    )
    .unwrap();
    assert_eq!(patch, json!({ "listeners": present["listeners"] }));
}

#[test]
fn a_default_of_the_server_gives_way_and_a_condition_of_somebody_else_stays() {
    let wanted = ObjectStatus {
        conditions: vec![condition("Accepted", true, "Accepted")],
        supported_features: vec!["HTTPRouteQueryParamMatching", "Gateway", "Gateway"],
        ..status(Kind::GatewayClass)
    };
    let foreign = written("example.com/Audited", "True", "Yes", 1, THEN);
    let pending = written("Accepted", "Unknown", "Pending", 0, "1970-01-01T00:00:00Z");
    let stale = written(
        "Programmed",
        "Unknown",
        "Pending",
        0,
        "1970-01-01T00:00:00Z",
    );
    check(
        &wanted,
        json!({ "conditions": [pending, stale, foreign] }),
        json!({
            "conditions": [written("Accepted", "True", "Accepted", 3, NOW), foreign],
            "supportedFeatures": [{"name": "Gateway"}, {"name": "HTTPRouteQueryParamMatching"}],
        }),
    );
    // Of an object that several controllers judge, no condition is taken away.
    let ready = written("Ready", "True", "Ready", 1, THEN);
    let objective = ObjectStatus {
        conditions: vec![condition("Accepted", true, "Accepted")],
        ..status(Kind::InferenceObjective)
    };
    check(
        &objective,
        json!({ "conditions": [ready] }),
        json!({ "conditions": [ready, written("Accepted", "True", "Accepted", 3, NOW)] }),
    );
}

fn entry(controller: &str, reference: Value, conditions: Vec<Value>) -> Value {
    json!({ "controllerName": controller, "parentRef": reference, "conditions": conditions })
}

#[test]
fn entries_of_others_stay_where_they_are_and_stale_ones_of_ours_go() {
    let accepted = || vec![condition("Accepted", true, "Accepted")];
    let yes = |since| vec![written("Accepted", "True", "Accepted", 3, since)];
    let reference = |name: &str| json!({"group": GATEWAY_GROUP, "kind": "Gateway", "namespace": "ns", "name": name});
    let other = || entry("example.com/other", json!({"name": "kept"}), vec![]);
    let another = || entry("example.net/another", json!({"name": "edge"}), vec![]);
    check(
        &route(vec![parent("new", accepted()), parent("kept", accepted())]),
        json!({ "parents": [
            other(),
            entry(OURS, json!({"name": "stale"}), yes(THEN)),
            // What it leaves out is the default, so this is `kept` of the route's namespace.
            entry(OURS, json!({"name": "kept"}), yes(THEN)),
            entry(OURS, json!({"name": "kept", "namespace": "ns"}), yes(THEN)),
            another(),
        ]}),
        json!({ "parents": [
            other(),
            entry(OURS, json!({"name": "kept"}), yes(THEN)),
            another(),
            entry(OURS, reference("new"), yes(NOW)),
        ]}),
    );
}

#[test]
fn a_parent_is_named_by_section_and_port_too() {
    let at = |section: Option<&str>, port| ParentStatus {
        section_name: section.map(str::to_owned),
        port,
        ..parent("edge", Vec::new())
    };
    let reference = |more: Value| {
        let mut reference =
            json!({"group": GATEWAY_GROUP, "kind": "Gateway", "namespace": "ns", "name": "edge"});
        for (field, value) in more.as_object().unwrap() {
            reference[field] = value.clone();
        }
        entry(OURS, reference, vec![])
    };
    check(
        &route(vec![
            at(None, None),
            at(Some("web"), None),
            at(None, Some(80)),
        ]),
        json!({ "parents": [reference(json!({"sectionName": "web"}))] }),
        json!({ "parents": [
            reference(json!({"sectionName": "web"})),
            reference(json!({})),
            reference(json!({"port": 80})),
        ]}),
    );
}

#[test]
fn an_object_that_is_no_longer_ours_loses_our_entries_and_nothing_else() {
    let name = ObjectName::new("ns", "a");
    let render = |kind, present: &Value| render(kind, &name, None, present, OURS, NOW);
    let other = entry("example.com/other", json!({"name": "x"}), vec![]);
    let ours = entry(OURS, json!({"name": "x"}), vec![]);
    let present = json!({ "parents": [ours, other] });
    assert!(has_entries(Kind::HttpRoute, &present, OURS));
    assert_eq!(
        render(Kind::HttpRoute, &present),
        Some(json!({ "parents": [other] }))
    );
    let present = json!({ "parents": [other] });
    assert!(!has_entries(Kind::HttpRoute, &present, OURS));
    assert_eq!(render(Kind::HttpRoute, &present), None);
    assert_eq!(render(Kind::HttpRoute, &Value::Null), None);
    // A Gateway's status belongs to whoever has the Gateway now.
    let present = json!({ "conditions": [written("Accepted", "True", "Accepted", 1, THEN)] });
    assert_eq!(render(Kind::Gateway, &present), None);
}

#[test]
fn lists_keep_to_what_the_api_takes() {
    let others: Vec<_> = (0..31)
        .map(|i| entry("example.com/other", json!({"name": i.to_string()}), vec![]))
        .collect();
    let wanted = route(vec![parent("a", Vec::new()), parent("b", Vec::new())]);
    let after = patched(&wanted, &json!({ "parents": others })).unwrap();
    let entries = after["parents"].as_array().unwrap();
    assert_eq!(entries.len(), 32);
    assert_eq!(entries[..31], others);
    let long = ObjectStatus {
        conditions: vec![Condition {
            message: "ü".repeat(5_000),
            ..condition("Accepted", false, "Invalid")
        }],
        ..status(Kind::Gateway)
    };
    let after = patched(&long, &Value::Null).unwrap();
    let message = after["conditions"][0]["message"].as_str().unwrap();
    assert_eq!(message.chars().count(), MESSAGE_CHARS_MAX);
}

#[test]
fn every_kind_of_gateway_api_and_its_extension_has_a_status_or_is_known_to_have_none() {
    const NONE: [Kind; 7] = [
        Kind::ReferenceGrant,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Secret,
        Kind::ConfigMap,
        Kind::Pod,
        Kind::Namespace,
    ];
    for kind in Kind::all() {
        assert_ne!(is_written(kind), NONE.contains(&kind), "{kind}");
    }
}
