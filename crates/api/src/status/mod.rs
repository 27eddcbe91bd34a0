//! Status of objects as plain values: what `forebay status` prints and what the Kubernetes writer
//! sends. Computed in the same pass as the snapshot (see `lower`), so the two cannot disagree.

mod render;

use forebay_model::ObjectName;

use crate::kinds::GATEWAY_GROUP;
use crate::object::Kind;
use crate::reason;

pub use render::{has_entries, is_written, render};

/// Status of one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectStatus {
    /// The object's kind.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
    /// `metadata.generation` that the status is about.
    pub generation: i64,
    /// Conditions of the object itself (GatewayClass, Gateway, ListenerSet, InferenceObjective,
    /// InferenceModelRewrite).
    pub conditions: Vec<Condition>,
    /// Listeners, in the order written (Gateway, ListenerSet).
    pub listeners: Vec<ListenerStatus>,
    /// Conditions per parent (routes, InferencePool) or ancestor (BackendTLSPolicy).
    pub parents: Vec<ParentStatus>,
    /// Where it can be reached (Gateway).
    pub addresses: Vec<Address>,
    /// Features of Gateway API that are supported, sorted (GatewayClass).
    pub supported_features: Vec<&'static str>,
    /// ListenerSets that are attached (Gateway).
    pub attached_listener_sets: Option<usize>,
}

impl ObjectStatus {
    /// A status that says nothing yet.
    pub(crate) fn new(kind: Kind, name: &ObjectName, generation: i64) -> Self {
        Self {
            kind,
            name: name.clone(),
            generation,
            conditions: Vec::new(),
            listeners: Vec::new(),
            parents: Vec::new(),
            addresses: Vec::new(),
            supported_features: Vec::new(),
            attached_listener_sets: None,
        }
    }
}

/// An address of a Gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// `IPAddress` or `Hostname`.
    pub kind: &'static str,
    /// The address.
    pub value: String,
}

impl Address {
    /// An address of the kind that its text has.
    pub(crate) fn of(value: &str) -> Self {
        let is_ip = value.parse::<std::net::IpAddr>().is_ok();
        Self {
            kind: if is_ip { "IPAddress" } else { "Hostname" },
            value: value.to_owned(),
        }
    }
}

/// Status of one listener of a Gateway or ListenerSet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenerStatus {
    /// `spec.listeners[].name`.
    pub name: String,
    /// Routes that are attached, each counted once.
    pub attached_routes: usize,
    /// Kinds of route that may attach.
    pub supported_kinds: Vec<&'static str>,
    /// Accepted, Programmed, ResolvedRefs, Conflicted, and OverlappingTLSConfig where it is true.
    pub conditions: Vec<Condition>,
}

/// What one parent says about a route, pool or policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParentStatus {
    /// API group of the parent.
    pub group: &'static str,
    /// Kind of the parent: `Gateway` or `ListenerSet`.
    pub kind: &'static str,
    /// The parent.
    pub name: ObjectName,
    /// The listener that the route named, if it did.
    pub section_name: Option<String>,
    /// The port that the route named, if it did.
    pub port: Option<u16>,
    /// Accepted, ResolvedRefs, and PartiallyInvalid where it is true.
    pub conditions: Vec<Condition>,
}

impl ParentStatus {
    /// What a Gateway says, as the parent of a pool or the ancestor of a policy.
    pub(crate) fn of_gateway(name: &ObjectName, conditions: Vec<Condition>) -> Self {
        Self {
            group: GATEWAY_GROUP,
            kind: "Gateway",
            name: name.clone(),
            section_name: None,
            port: None,
            conditions,
        }
    }
}

/// `metav1.Condition` without its time, which whoever writes it knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    /// Type, such as `Accepted`.
    pub kind: &'static str,
    /// Status `True` or `False`.
    pub holds: bool,
    /// Reason in one word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Why something does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

impl Condition {
    /// True with the type as its reason, or false with the fault.
    pub(crate) fn of(kind: &'static str, fault: Option<&Fault>) -> Self {
        match fault {
            None => Self {
                kind,
                holds: true,
                reason: kind,
                message: String::new(),
            },
            Some(fault) => Self {
                kind,
                holds: false,
                reason: fault.reason,
                message: fault.message.clone(),
            },
        }
    }

    /// `Conflicted`, the one condition that is good when false.
    pub(crate) fn conflicted(fault: Option<&Fault>) -> Self {
        let (reason, message) = match fault {
            None => (reason::NO_CONFLICTS, String::new()),
            Some(fault) => (fault.reason, fault.message.clone()),
        };
        Self {
            kind: "Conflicted",
            holds: fault.is_some(),
            reason,
            message,
        }
    }
}
