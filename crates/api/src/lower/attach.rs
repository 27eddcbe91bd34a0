//! Brings routes to listeners, and tells routes and pools how that went.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use forebay_model::ObjectName;
use forebay_model::route::{Entry, HostPattern, Target};

use super::Notes;
use super::backends::Backends;
use super::listeners::{GatewayState, ListenerState};
use super::rules::{self, Route, Rules};
use crate::index::Objects;
use crate::kinds::GATEWAY_GROUP;
use crate::kinds::gateway::{From, RouteNamespaces};
use crate::kinds::httproute::ParentRef;
use crate::kinds::inference::InferencePool;
use crate::object::Kind;
use crate::reason;
use crate::status::{Condition, Fault, ObjectStatus, ParentStatus};

/// Attaches every route, oldest first; gives the statuses of routes and pools.
pub(super) fn attach(
    objects: &Objects,
    gateways: &mut [GatewayState<'_>],
    backends: &mut Backends<'_>,
    notes: &mut Notes,
) -> Vec<ObjectStatus> {
    let mut routes: Vec<_> = objects.routes.iter().collect();
    routes.sort_by_key(|(name, route)| (route.object.metadata.age(), *name));
    let mut statuses = Vec::new();
    let mut parents = PoolParents::new();
    for (name, route) in routes {
        let rules = rules::lower(name, route, backends);
        let of_route = attach_route(
            objects,
            gateways,
            (name, route),
            &rules,
            &mut parents,
            notes,
        );
        statuses.extend(of_route);
    }
    let pools = objects.pools.iter();
    statuses.extend(pools.map(|(name, pool)| pool_status(objects, name, pool, &parents)));
    statuses
}

/// For each pool, the Gateways that routes bring it to, and whether one of the routes is accepted.
type PoolParents = BTreeMap<ObjectName, BTreeMap<ObjectName, bool>>;

fn attach_route(
    objects: &Objects,
    gateways: &mut [GatewayState<'_>],
    (name, route): (&ObjectName, &Route),
    rules: &Rules<'_>,
    parents: &mut PoolParents,
    notes: &mut Notes,
) -> Option<ObjectStatus> {
    for (field, fault) in &rules.faults {
        notes.add(Kind::HttpRoute, name, field.as_str(), fault);
    }
    if route.object.spec.parent_refs.is_empty() {
        let fault = Fault::new(
            reason::NO_MATCHING_PARENT,
            "names no Gateway, so it has no effect",
        );
        notes.add(Kind::HttpRoute, name, "spec.parentRefs", &fault);
    }
    let mut attached = BTreeSet::new();
    let mut statuses = Vec::new();
    for (i, parent) in route.object.spec.parent_refs.iter().enumerate() {
        if (parent.group.as_str(), parent.kind.as_str()) != (GATEWAY_GROUP, "Gateway") {
            continue;
        }
        let namespace = parent.namespace.as_deref().unwrap_or(&name.namespace);
        let wanted = ObjectName::new(namespace, &parent.name);
        let outcome = match gateways.iter_mut().find(|g| g.name == wanted) {
            Some(gateway) => attach_to(objects, gateway, parent, name, route, rules, &mut attached),
            None if objects.gateways.contains_key(&wanted) => continue,
            None => {
                let message = format!("Gateway {wanted} does not exist");
                let fault = Fault::new(reason::NO_MATCHING_PARENT, message);
                notes.add(
                    Kind::HttpRoute,
                    name,
                    format!("spec.parentRefs[{i}]"),
                    &fault,
                );
                continue;
            }
        };
        if let Err(fault) = &outcome {
            notes.add(
                Kind::HttpRoute,
                name,
                format!("spec.parentRefs[{i}]"),
                fault,
            );
        }
        note_pools(rules, &wanted, outcome.is_ok(), parents);
        let unresolved = rules.faults.first().map(|(_, fault)| fault);
        statuses.push(ParentStatus {
            group: GATEWAY_GROUP,
            kind: "Gateway",
            name: wanted,
            section_name: parent.section_name.clone(),
            port: parent.port,
            conditions: vec![
                Condition::of(reason::ACCEPTED, outcome.as_ref().err()),
                Condition::of(reason::RESOLVED_REFS, unresolved),
            ],
        });
    }
    (!statuses.is_empty()).then(|| ObjectStatus {
        parents: statuses,
        ..ObjectStatus::new(Kind::HttpRoute, name, route.object.metadata.generation)
    })
}

/// Adds the route's rules to every listener that `parent` means and that lets it in. `attached`
/// holds the listeners that the route has reached through an earlier reference.
fn attach_to(
    objects: &Objects,
    gateway: &mut GatewayState<'_>,
    parent: &ParentRef,
    name: &ObjectName,
    route: &Route,
    rules: &Rules<'_>,
    attached: &mut BTreeSet<(ObjectName, String)>,
) -> Result<(), Fault> {
    let meant = |l: &ListenerState<'_>| {
        parent
            .section_name
            .as_ref()
            .is_none_or(|section| *section == l.spec.name)
            && parent.port.is_none_or(|port| port == l.spec.port)
    };
    let gateway_name = gateway.name.clone();
    let mut outcome = Err(Fault::new(
        reason::NO_MATCHING_PARENT,
        format!("Gateway {gateway_name} has no listener of this name or port"),
    ));
    for listener in gateway.listeners.iter_mut().filter(|l| meant(l)) {
        match admit(objects, &gateway_name, listener, name, route) {
            Ok(hosts) => {
                outcome = Ok(());
                if attached.insert((gateway_name.clone(), listener.spec.name.clone())) {
                    listener.attached_routes += 1;
                    listener.entries.extend(entries(rules, &hosts));
                }
            }
            // The furthest that the route came is the most helpful thing to say.
            Err(fault) => match &outcome {
                Err(other) if progress(other) <= progress(&fault) => outcome = Err(fault),
                _ => {}
            },
        }
    }
    outcome
}

fn progress(fault: &Fault) -> u8 {
    match fault.reason {
        reason::NO_MATCHING_PARENT => 0,
        reason::NOT_ALLOWED => 1,
        _ => 2,
    }
}

/// The hosts for which the listener takes the route.
fn admit(
    objects: &Objects,
    gateway: &ObjectName,
    listener: &ListenerState<'_>,
    name: &ObjectName,
    route: &Route,
) -> Result<Vec<Option<HostPattern>>, Fault> {
    let at = &listener.spec.name;
    let allowed = &listener.spec.allowed_routes.namespaces;
    if !listener.allows_http || !allows(objects, allowed, &gateway.namespace, &name.namespace) {
        let message = format!(
            "listener {at} of Gateway {gateway} does not allow HTTPRoutes of namespace {}; see its allowedRoutes",
            name.namespace
        );
        return Err(Fault::new(reason::NOT_ALLOWED, message));
    }
    let hosts = common_hosts(listener.hostname.as_ref(), &route.object.spec.hostnames);
    if hosts.is_empty() {
        let message =
            format!("no hostname of the route is one of listener {at} of Gateway {gateway}");
        return Err(Fault::new(reason::NO_MATCHING_HOSTNAME, message));
    }
    Ok(hosts)
}

fn allows(objects: &Objects, allowed: &RouteNamespaces, own: &str, from: &str) -> bool {
    match allowed.from {
        From::All => true,
        From::Same => own == from,
        From::None => false,
        From::Selector => {
            let object = objects.namespaces.get(from);
            let mut labels = object
                .map(|n| n.metadata.labels.clone())
                .unwrap_or_default();
            // The API server sets this label on every namespace; a file need not.
            labels.insert("kubernetes.io/metadata.name".to_owned(), from.to_owned());
            allowed
                .selector
                .as_ref()
                .is_some_and(|s| s.matches(&labels))
        }
    }
}

/// The hosts that both a listener and a route are for; empty if there is none.
fn common_hosts(listener: Option<&HostPattern>, route: &[String]) -> Vec<Option<HostPattern>> {
    if route.is_empty() {
        return vec![listener.cloned()];
    }
    let route = route.iter().map(|host| HostPattern::parse(host));
    let mut hosts: Vec<_> = match listener {
        None => route.map(Some).collect(),
        Some(listener) => route
            .filter_map(|host| common_host(listener, host))
            .map(Some)
            .collect(),
    };
    hosts.sort();
    hosts.dedup();
    hosts
}

/// The narrower of two patterns, if one contains the other.
fn common_host(a: &HostPattern, b: HostPattern) -> Option<HostPattern> {
    let contains = |wide: &HostPattern, narrow: &HostPattern| match (wide, narrow) {
        (wide, HostPattern::Exact(host)) => wide.covers(host),
        (HostPattern::Suffix(wide), HostPattern::Suffix(narrow)) => narrow.ends_with(wide.as_str()),
        (HostPattern::Exact(_), HostPattern::Suffix(_)) => false,
    };
    if contains(a, &b) {
        Some(b)
    } else {
        contains(&b, a).then(|| a.clone())
    }
}

fn entries<'a>(
    rules: &'a Rules<'_>,
    hosts: &'a [Option<HostPattern>],
) -> impl Iterator<Item = (Option<HostPattern>, Entry)> + 'a {
    hosts.iter().flat_map(|host| {
        rules.rules.iter().flat_map(move |(rule, matchers)| {
            matchers.iter().map(move |matcher| {
                let entry = Entry {
                    matcher: matcher.clone(),
                    rule: Arc::clone(rule),
                };
                (host.clone(), entry)
            })
        })
    })
}

fn note_pools(rules: &Rules<'_>, gateway: &ObjectName, accepted: bool, parents: &mut PoolParents) {
    let targets = rules.rules.iter().flat_map(|(rule, _)| &rule.targets);
    for target in targets {
        if let Target::Pool(pool) = &target.target {
            let of_pool = parents.entry(pool.clone()).or_default();
            *of_pool.entry(gateway.clone()).or_default() |= accepted;
        }
    }
}

fn pool_status(
    objects: &Objects,
    name: &ObjectName,
    pool: &InferencePool,
    parents: &PoolParents,
) -> ObjectStatus {
    let unresolved = picker_fault(objects, name, pool);
    let status = |(gateway, accepted): (&ObjectName, &bool)| {
        let fault = (!accepted).then(|| {
            let message = "no route to this pool is accepted by the Gateway";
            Fault::new(reason::ROUTE_NOT_ACCEPTED, message)
        });
        let conditions = vec![
            Condition::of(reason::ACCEPTED, fault.as_ref()),
            Condition::of(reason::RESOLVED_REFS, unresolved.as_ref()),
        ];
        ParentStatus::of_gateway(gateway, conditions)
    };
    let parents = parents.get(name).into_iter().flatten();
    ObjectStatus {
        parents: parents.map(status).collect(),
        ..ObjectStatus::new(Kind::InferencePool, name, pool.metadata.generation)
    }
}

/// What is wrong with the pool's reference to a picker, which the built-in one does without.
fn picker_fault(objects: &Objects, name: &ObjectName, pool: &InferencePool) -> Option<Fault> {
    let picker = pool.spec.endpoint_picker_ref.as_ref()?;
    let invalid = |message| Some(Fault::new(reason::INVALID_EXTENSION_REF, message));
    let service = ObjectName::new(&name.namespace, &picker.name);
    if (picker.group.as_str(), picker.kind.as_str()) != ("", "Service") {
        return invalid(format!(
            "{}/{} is no kind of picker; use a Service",
            picker.group, picker.kind
        ));
    }
    match objects.services.get(&service) {
        None => invalid(format!("Service {service} does not exist")),
        Some(found) if found.spec.kind.as_deref() == Some("ExternalName") => {
            invalid(format!("Service {service} is an ExternalName"))
        }
        Some(_) => None,
    }
}
