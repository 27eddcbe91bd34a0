//! What GatewayClasses, Gateways and ListenerSets say of themselves.

use super::gateways::{GatewayState, SetState};
use super::listeners::{ListenerState, Owner};
use super::{parameters, trust};
use crate::features;
use crate::index::objects::Objects;
use crate::object::Kind;
use crate::reason;
use crate::status::{Condition, Fault, ListenerStatus, ObjectStatus};

/// Classes whose controller we are. Those that the settings only name are spoken for by their own.
pub(super) fn classes(objects: &Objects) -> Vec<ObjectStatus> {
    let ours = objects
        .classes
        .values()
        .filter(|class| class.spec.controller_name == objects.settings.controller);
    let version = version_fault(objects);
    ours.map(|class| {
        let name = class.metadata.key();
        let parameters = parameters::fault_of_class(objects, class);
        ObjectStatus {
            conditions: vec![
                Condition::of(reason::ACCEPTED, parameters.as_ref()),
                Condition::of(reason::SUPPORTED_VERSION, version.as_ref()),
            ],
            supported_features: supported(objects),
            ..ObjectStatus::new(Kind::GatewayClass, &name, class.metadata.generation)
        }
    })
    .collect()
}

/// Every feature that is claimed, as far as this process has been given what it takes.
fn supported(objects: &Objects) -> Vec<&'static str> {
    let has = |feature: &&&str| match **feature {
        features::INFRASTRUCTURE_PROPAGATION => objects.settings.service_accounts,
        _ => true,
    };
    features::SUPPORTED.iter().filter(has).copied().collect()
}

/// Why the release of the installed CRDs is not one that we know.
fn version_fault(objects: &Objects) -> Option<Fault> {
    let installed = objects.bundle_version.as_ref()?;
    let minor = |version: &str| {
        let mut parts = version.split('.');
        Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
    };
    if minor(installed) == minor(features::VERSION) {
        return None;
    }
    let message = format!(
        "the CRDs of Gateway API are of release {installed}, those of {} are supported; \
         what the two have in common is served",
        features::VERSION
    );
    Some(Fault::new(reason::UNSUPPORTED_VERSION, message))
}

/// The Gateway and its ListenerSets.
pub(super) fn gateway(gateway: &GatewayState<'_>) -> Vec<ObjectStatus> {
    let accepted = accepted(gateway);
    let unprogrammed = unprogrammed(gateway, &accepted);
    let sets = gateway.sets.iter().enumerate();
    let sets = sets.map(|(at, state)| set(gateway, at, state, unprogrammed.as_ref()));
    let sets: Vec<_> = sets.collect();
    let is_accepted = |set: &&ObjectStatus| set.conditions[0].holds;
    let attached = sets.iter().filter(is_accepted).count();
    let mut conditions = vec![
        accepted,
        Condition::of(reason::PROGRAMMED, unprogrammed.as_ref()),
        Condition::of(reason::RESOLVED_REFS, unresolved(gateway).as_ref()),
    ];
    let frontend = gateway.object.spec.tls.frontend.as_ref();
    if frontend.is_some_and(trust::is_insecure) {
        conditions.push(Condition {
            kind: reason::INSECURE_FRONTEND,
            holds: true,
            reason: reason::CONFIGURATION_CHANGED,
            message: "clients without a valid certificate are let in (AllowInsecureFallback)"
                .to_owned(),
        });
    }
    let own = ObjectStatus {
        conditions,
        listeners: gateway.own().map(|l| listener(gateway, l)).collect(),
        addresses: match unprogrammed {
            None => gateway.reach.addresses.clone(),
            Some(_) => Vec::new(),
        },
        attached_listener_sets: Some(attached),
        ..ObjectStatus::new(
            Kind::Gateway,
            &gateway.name,
            gateway.object.metadata.generation,
        )
    };
    std::iter::once(own).chain(sets).collect()
}

/// `Accepted`, as it is while only some listeners are good: true with a remark while one of them
/// serves, false when none does.
fn judged<'a>(listeners: impl Iterator<Item = &'a ListenerState<'a>>) -> Condition {
    let (mut all, mut serving, mut bad) = (0, 0, Vec::new());
    for listener in listeners {
        all += 1;
        serving += usize::from(listener.serves());
        if listener.fault().is_some() {
            bad.push(listener.spec.name.as_str());
        }
    }
    if bad.is_empty() {
        return Condition::of(reason::ACCEPTED, None);
    }
    let message = format!(
        "{} of {all} listeners are not valid: {}",
        bad.len(),
        bad.join(", ")
    );
    Condition {
        kind: reason::ACCEPTED,
        holds: serving > 0,
        reason: reason::LISTENERS_NOT_VALID,
        message,
    }
}

fn accepted(gateway: &GatewayState<'_>) -> Condition {
    match &gateway.refused {
        Some(fault) => Condition::of(reason::ACCEPTED, Some(fault)),
        None => judged(gateway.own()),
    }
}

fn unprogrammed(gateway: &GatewayState<'_>, accepted: &Condition) -> Option<Fault> {
    if !accepted.holds {
        return Some(Fault::new(reason::INVALID, accepted.message.as_str()));
    }
    let late = || {
        let mut serving = gateway.own().filter(|l| l.serves());
        serving.find_map(|l| unbound(gateway, l))
    };
    gateway.reach.unprogrammed.clone().or_else(late)
}

/// References of the Gateway itself, and of its listeners in sum.
fn unresolved(gateway: &GatewayState<'_>) -> Option<Fault> {
    if let Some(Err(fault)) = &gateway.client {
        return Some(fault.clone());
    }
    let listeners = gateway.own().filter(|l| l.unresolved().is_some());
    let listeners: Vec<_> = listeners.map(|l| l.spec.name.as_str()).collect();
    (!listeners.is_empty()).then(|| {
        let message = format!("of listeners {}", listeners.join(", "));
        Fault::new(reason::LISTENERS_NOT_RESOLVED, message)
    })
}

/// Why a listener that could serve is bound to no port.
fn unbound(gateway: &GatewayState<'_>, listener: &ListenerState<'_>) -> Option<Fault> {
    let port = listener.spec.port;
    match (gateway.reach.bound(port), listener.bound) {
        (_, Some(_)) => None,
        (None, None) => {
            let message = format!("the Service of the Gateway has no port {port} yet");
            Some(Fault::new(reason::PENDING, message))
        }
        (Some(bound), None) => {
            let message = format!("the Service leads to port {bound}, which another Gateway has");
            Some(Fault::new(reason::PENDING, message))
        }
    }
}

fn set(
    gateway: &GatewayState<'_>,
    at: usize,
    set: &SetState<'_>,
    unprogrammed: Option<&Fault>,
) -> ObjectStatus {
    let parent = &gateway.name;
    let parent_refused = (!gateway.is_accepted()).then(|| {
        let message = format!("Gateway {parent} is not accepted");
        Fault::new(reason::PARENT_NOT_ACCEPTED, message)
    });
    let accepted = match set.refused.as_ref().or(parent_refused.as_ref()) {
        Some(fault) => Condition::of(reason::ACCEPTED, Some(fault)),
        None => judged(gateway.of(Owner::Set(at))),
    };
    let late = || {
        let mut serving = gateway.of(Owner::Set(at)).filter(|l| l.serves());
        serving.find_map(|l| unbound(gateway, l))
    };
    let unprogrammed = match (accepted.holds, unprogrammed) {
        (false, _) => Some(Fault::new(accepted.reason, accepted.message.as_str())),
        (true, Some(fault)) => {
            let message = format!("Gateway {parent}: {}", fault.message);
            Some(Fault::new(reason::PARENT_NOT_PROGRAMMED, message))
        }
        (true, None) => late(),
    };
    let listeners = gateway.of(Owner::Set(at));
    ObjectStatus {
        conditions: vec![
            accepted,
            Condition::of(reason::PROGRAMMED, unprogrammed.as_ref()),
        ],
        listeners: listeners.map(|l| listener(gateway, l)).collect(),
        ..ObjectStatus::new(Kind::ListenerSet, set.name, set.object.metadata.generation)
    }
}

fn listener(gateway: &GatewayState<'_>, listener: &ListenerState<'_>) -> ListenerStatus {
    let parent_refused = || {
        let of_set = listener.owner != Owner::Gateway && !gateway.is_accepted();
        of_set.then(|| Fault::new(reason::PENDING, "the Gateway is not accepted"))
    };
    let unprogrammed = match gateway.unbound() {
        _ if !listener.serves() => {
            let fault = listener.fault();
            let message = fault.map_or("", |fault| &fault.message);
            // The two kinds of listener have different words for it.
            let conflict = listener.conflict.as_ref().map(|fault| fault.reason);
            let reason = match listener.owner {
                Owner::Gateway => None,
                Owner::Set(_) => conflict,
            };
            Some(Fault::new(reason.unwrap_or(reason::INVALID), message))
        }
        Some(fault) => Some(Fault::new(reason::PENDING, fault.message.as_str())),
        None => parent_refused().or_else(|| unbound(gateway, listener)),
    };
    let mut conditions = vec![
        Condition::of(reason::ACCEPTED, listener.refused()),
        Condition::of(reason::PROGRAMMED, unprogrammed.as_ref()),
        Condition::of(reason::RESOLVED_REFS, listener.unresolved()),
        Condition::conflicted(listener.conflict.as_ref()),
    ];
    if listener.overlaps {
        conditions.push(Condition {
            kind: reason::OVERLAPPING_TLS,
            holds: true,
            reason: reason::OVERLAPPING_HOSTNAMES,
            message: format!(
                "other listeners of port {} are for some of its hosts too",
                listener.spec.port
            ),
        });
    }
    ListenerStatus {
        name: listener.spec.name.clone(),
        attached_routes: listener.attached_routes,
        supported_kinds: listener.kinds.iter().map(|kind| kind.as_str()).collect(),
        conditions,
    }
}
