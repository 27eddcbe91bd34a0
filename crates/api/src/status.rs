//! Status of objects as plain values: what `forebay status` prints and what the Kubernetes writer
//! will send. Computed in the same pass as the snapshot (see `lower`), so the two cannot disagree.

use forebay_model::ObjectName;

use crate::object::Kind;
use crate::reason;

/// Status of one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectStatus {
    /// The object's kind.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
    /// `metadata.generation` that the status is about.
    pub generation: i64,
    /// Conditions of the object itself (GatewayClass, Gateway).
    pub conditions: Vec<Condition>,
    /// Listeners, in the order written (Gateway).
    pub listeners: Vec<ListenerStatus>,
    /// Conditions per parent (HTTPRoute, InferencePool).
    pub parents: Vec<ParentStatus>,
}

/// Status of one listener of a Gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenerStatus {
    /// `spec.listeners[].name`.
    pub name: String,
    /// Routes that are attached, each counted once.
    pub attached_routes: usize,
    /// Kinds of route that may attach.
    pub supported_kinds: Vec<&'static str>,
    /// Accepted, Programmed, ResolvedRefs, Conflicted.
    pub conditions: Vec<Condition>,
}

/// What one Gateway says about a route or pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParentStatus {
    /// The Gateway.
    pub gateway: ObjectName,
    /// The listener that the route named, if it did.
    pub section_name: Option<String>,
    /// The port that the route named, if it did.
    pub port: Option<u16>,
    /// Accepted, ResolvedRefs.
    pub conditions: Vec<Condition>,
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
