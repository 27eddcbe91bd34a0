//! A status to the JSON that goes to the API server: what has to change in the status that an
//! object has, or nothing.
//!
//! Pure, so the rules are tables in tests: entries of other controllers stay as they are and where
//! they are, our own that have lost their reason go, `lastTransitionTime` moves with the condition's
//! status alone, and what would change nothing is not written. Who writes, and when, is the business
//! of `forebay-cluster`.

use forebay_model::ObjectName;
use serde_json::{Map, Value, json};

use super::{Condition, ListenerStatus, ObjectStatus, ParentStatus};
use crate::kinds::GATEWAY_GROUP;
use crate::object::Kind;

/// Characters of a message; the API allows 32,768, of which a person reads the first few.
const MESSAGE_CHARS_MAX: usize = 1_024;
/// `maxItems` of `status.addresses`.
const ADDRESSES_MAX: usize = 16;
/// `maxItems` of `status.supportedFeatures`.
const FEATURES_MAX: usize = 64;

/// A part of a kind's status that is ours to write.
#[derive(Clone, Copy)]
enum Part {
    /// `conditions`. Where they are the controller's alone, all others go that have no prefix of
    /// another's domain.
    Conditions { alone: bool },
    /// `listeners`.
    Listeners,
    /// `addresses`.
    Addresses,
    /// `attachedListenerSets`.
    ListenerSets,
    /// `supportedFeatures`.
    Features,
    /// A list with entries of several controllers.
    Entries {
        list: &'static str,
        reference: &'static str,
        /// `maxItems`. When others have taken the places, ours are left out.
        max: usize,
    },
}

const CONDITIONS: Part = Part::Conditions { alone: true };
const SHARED_CONDITIONS: Part = Part::Conditions { alone: false };
const PARENTS: Part = Part::Entries {
    list: "parents",
    reference: "parentRef",
    max: 32,
};

const ANCESTORS: Part = Part::Entries {
    list: "ancestors",
    reference: "ancestorRef",
    max: 16,
};

/// What is written of each kind; kinds that are not named have no status of ours.
const WRITTEN: &[(Kind, &[Part])] = &[
    (Kind::GatewayClass, &[CONDITIONS, Part::Features]),
    (
        Kind::Gateway,
        &[
            CONDITIONS,
            Part::Listeners,
            Part::Addresses,
            Part::ListenerSets,
        ],
    ),
    (Kind::ListenerSet, &[CONDITIONS, Part::Listeners]),
    (Kind::HttpRoute, &[PARENTS]),
    (Kind::GrpcRoute, &[PARENTS]),
    (Kind::TlsRoute, &[PARENTS]),
    (Kind::BackendTlsPolicy, &[ANCESTORS]),
    (Kind::GatewayConfig, &[CONDITIONS]),
    (Kind::InferencePool, &[PARENTS]),
    (Kind::InferenceObjective, &[SHARED_CONDITIONS]),
    (Kind::LegacyInferenceObjective, &[SHARED_CONDITIONS]),
    (Kind::InferenceModelRewrite, &[SHARED_CONDITIONS]),
    (Kind::LegacyInferenceModelRewrite, &[SHARED_CONDITIONS]),
];

fn parts(kind: Kind) -> &'static [Part] {
    let row = WRITTEN.iter().find(|(own, _)| *own == kind);
    row.map_or(&[], |(_, parts)| *parts)
}

/// Whether objects of a kind have a status that we write.
#[must_use]
pub fn is_written(kind: Kind) -> bool {
    !parts(kind).is_empty()
}

/// Whether the present `status` of an object has entries of `controller`.
#[must_use]
pub fn has_entries(kind: Kind, present: &Value, controller: &str) -> bool {
    parts(kind).iter().any(|part| match part {
        Part::Entries { list, .. } => {
            let entries = items(present, list).iter();
            entries.into_iter().any(|e| is_entry_of(e, controller))
        }
        Part::Conditions { .. }
        | Part::Listeners
        | Part::Addresses
        | Part::ListenerSets
        | Part::Features => false,
    })
}

/// The fields of `status` to be replaced, whole each, so that the object says what `wanted` does;
/// `None` if it does already. Without `wanted` the object is none of ours, and only entries of ours
/// are taken out of it. `present` is the object's `status`, `now` the time in RFC 3339.
#[must_use]
pub fn render(
    kind: Kind,
    name: &ObjectName,
    wanted: Option<&ObjectStatus>,
    present: &Value,
    controller: &str,
    now: &str,
) -> Option<Value> {
    let writer = Writer {
        controller,
        generation: wanted.map_or(0, |status| status.generation),
        now,
    };
    let mut changed = Map::new();
    for part in parts(kind) {
        let (field, value) = match (*part, wanted) {
            (
                Part::Entries {
                    list,
                    reference,
                    max,
                },
                wanted,
            ) => {
                let parents = wanted.map_or(&[][..], |status| &status.parents);
                let entries = writer.entries(name, parents, items(present, list), reference, max);
                (list, Value::Array(entries))
            }
            (_, None) => continue,
            (Part::Conditions { alone }, Some(wanted)) => {
                let present = items(present, "conditions");
                let conditions = writer.conditions(&wanted.conditions, present, alone);
                ("conditions", Value::Array(conditions))
            }
            (Part::Listeners, Some(wanted)) => {
                let present = items(present, "listeners");
                let listeners = writer.listeners(&wanted.listeners, present);
                ("listeners", Value::Array(listeners))
            }
            (Part::Addresses, Some(wanted)) => {
                let addresses = wanted.addresses.iter().take(ADDRESSES_MAX);
                let addresses = addresses.map(|a| json!({"type": a.kind, "value": a.value}));
                ("addresses", addresses.collect())
            }
            (Part::ListenerSets, Some(wanted)) => match wanted.attached_listener_sets {
                Some(count) => ("attachedListenerSets", count.into()),
                None => continue,
            },
            (Part::Features, Some(wanted)) => ("supportedFeatures", Value::Array(features(wanted))),
        };
        let same = match (&value, present.get(field)) {
            (Value::Array(list), None) => list.is_empty(),
            (value, present) => present == Some(value),
        };
        if !same {
            changed.insert(field.to_owned(), value);
        }
    }
    (!changed.is_empty()).then_some(Value::Object(changed))
}

/// The list at `field`; one that is absent is empty.
fn items<'a>(status: &'a Value, field: &str) -> &'a [Value] {
    let list = status.get(field).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

fn text<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object.get(field).and_then(Value::as_str)
}

fn is_entry_of(entry: &Value, controller: &str) -> bool {
    text(entry, "controllerName") == Some(controller)
}

fn features(wanted: &ObjectStatus) -> Vec<Value> {
    let mut names: Vec<&str> = wanted.supported_features.clone();
    names.sort_unstable();
    names.dedup();
    let names = names.into_iter().take(FEATURES_MAX);
    names.map(|name| json!({ "name": name })).collect()
}

/// Who writes about which state of an object, and when.
struct Writer<'a> {
    controller: &'a str,
    generation: i64,
    now: &'a str,
}

impl Writer<'_> {
    /// Those of `present` that stay, in their order, then those of `wanted` that are new.
    fn conditions(&self, wanted: &[Condition], present: &[Value], alone: bool) -> Vec<Value> {
        let own = |kind: &str| wanted.iter().find(|condition| condition.kind == kind);
        let stays = |kind: &str| !alone || kind.contains('/');
        let kept = present.iter().filter_map(|condition| {
            let kind = text(condition, "type").unwrap_or_default();
            match own(kind) {
                Some(wanted) => Some(self.condition(wanted, Some(condition))),
                None => stays(kind).then(|| condition.clone()),
            }
        });
        let is_new = |wanted: &&Condition| {
            let mut kinds = present.iter().map(|condition| text(condition, "type"));
            !kinds.any(|kind| kind == Some(wanted.kind))
        };
        let new = wanted.iter().filter(is_new);
        kept.chain(new.map(|wanted| self.condition(wanted, None)))
            .collect()
    }

    fn condition(&self, wanted: &Condition, present: Option<&Value>) -> Value {
        let status = match wanted.holds {
            true => "True",
            false => "False",
        };
        let before = present.filter(|before| text(before, "status") == Some(status));
        let since = before.and_then(|before| text(before, "lastTransitionTime"));
        let message: String = wanted.message.chars().take(MESSAGE_CHARS_MAX).collect();
        json!({
            "type": wanted.kind,
            "status": status,
            "reason": wanted.reason,
            "message": message,
            "observedGeneration": self.generation,
            "lastTransitionTime": since.unwrap_or(self.now),
        })
    }

    fn listeners(&self, wanted: &[ListenerStatus], present: &[Value]) -> Vec<Value> {
        let one = |listener: &ListenerStatus| {
            let named = |own: &&Value| text(own, "name") == Some(&listener.name);
            let before = present.iter().find(named);
            let before = before.map_or(&[][..], |before| items(before, "conditions"));
            let kinds = listener.supported_kinds.iter();
            let kinds = kinds.map(|kind| json!({"group": GATEWAY_GROUP, "kind": kind}));
            json!({
                "name": listener.name,
                "attachedRoutes": listener.attached_routes,
                "supportedKinds": kinds.collect::<Vec<_>>(),
                "conditions": self.conditions(&listener.conditions, before, true),
            })
        };
        wanted.iter().map(one).collect()
    }

    /// Those of others and those of ours that stay, in their order, then those of ours that are new.
    fn entries(
        &self,
        object: &ObjectName,
        wanted: &[ParentStatus],
        present: &[Value],
        reference: &str,
        max: usize,
    ) -> Vec<Value> {
        let mut left: Vec<&ParentStatus> = wanted.iter().collect();
        let mut entries = Vec::with_capacity(present.len());
        for entry in present {
            if !is_entry_of(entry, self.controller) {
                entries.push(entry.clone());
                continue;
            }
            let refers = |parent: &&ParentStatus| refers(&entry[reference], parent, object);
            if let Some(i) = left.iter().position(refers) {
                let parent = left.remove(i);
                let conditions = items(entry, "conditions");
                entries.push(json!({
                    reference: entry[reference],
                    "controllerName": self.controller,
                    "conditions": self.conditions(&parent.conditions, conditions, true),
                }));
            }
        }
        for parent in left {
            if entries.len() == max {
                break;
            }
            entries.push(json!({
                reference: reference_to(parent),
                "controllerName": self.controller,
                "conditions": self.conditions(&parent.conditions, &[], true),
            }));
        }
        entries
    }
}

/// Whether `reference` of an entry means `parent`, what is left out in it being the default.
fn refers(reference: &Value, parent: &ParentStatus, object: &ObjectName) -> bool {
    let or = |field, default| text(reference, field).unwrap_or(default);
    or("group", GATEWAY_GROUP) == parent.group
        && or("kind", "Gateway") == parent.kind
        && or("namespace", &object.namespace) == &*parent.name.namespace
        && or("name", "") == &*parent.name.name
        && text(reference, "sectionName") == parent.section_name.as_deref()
        && reference.get("port").and_then(Value::as_u64) == parent.port.map(u64::from)
}

fn reference_to(parent: &ParentStatus) -> Value {
    let mut reference = json!({
        "group": parent.group,
        "kind": parent.kind,
        "namespace": &*parent.name.namespace,
        "name": &*parent.name.name,
    });
    if let Some(section) = &parent.section_name {
        reference["sectionName"] = section.as_str().into();
    }
    if let Some(port) = parent.port {
        reference["port"] = port.into();
    }
    reference
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
