//! Brings routes to listeners, and tells routes and pools how that went.
//!
//! Routes of every kind come in one order, oldest first, since an HTTPRoute and a GRPCRoute that
//! want the same hosts of a listener exclude each other and the older one stays.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
use std::sync::Arc;

use forebay_model::ObjectName;
use forebay_model::route::{Carries, Entry, HostPattern};

use super::Notes;
use super::backends::{Backends, User};
use super::gateways::GatewayState;
use super::hosts;
use super::listeners::{ListenerState, Owner, Protocol};
use super::policies::ServiceUses;
use super::prepared::Prepared;
use super::references::Look;
use super::rules::{self, Body, Rules};
use crate::kinds::gateway::RouteNamespaces;
use crate::kinds::grpcroute::GrpcRoute;
use crate::kinds::httproute::HttpRoute;
use crate::kinds::route::ParentRef;
use crate::kinds::tlsroute::TlsRoute;
use crate::kinds::{GATEWAY_GROUP, Meta};
use crate::object::Kind;
use crate::reason;
use crate::status::{Condition, Fault, ObjectStatus, ParentStatus};

/// For each pool, the Gateways that routes bring it to, and whether one of the routes is accepted.
pub(super) type PoolParents = BTreeMap<ObjectName, BTreeMap<ObjectName, bool>>;

/// What is known once every route has been looked at.
#[derive(Default)]
pub(super) struct Attached {
    pub(super) statuses: Vec<ObjectStatus>,
    pub(super) pools: PoolParents,
    pub(super) services: ServiceUses,
}

/// A route of any kind.
#[derive(Clone, Copy)]
enum Route<'a> {
    Http(&'a Prepared<HttpRoute>),
    Grpc(&'a Prepared<GrpcRoute>),
    Tls(&'a TlsRoute),
}

impl<'a> Route<'a> {
    fn kind(self) -> Kind {
        match self {
            Self::Http(_) => Kind::HttpRoute,
            Self::Grpc(_) => Kind::GrpcRoute,
            Self::Tls(_) => Kind::TlsRoute,
        }
    }

    fn meta(self) -> &'a Meta {
        match self {
            Self::Http(route) => &route.object.metadata,
            Self::Grpc(route) => &route.object.metadata,
            Self::Tls(route) => &route.metadata,
        }
    }

    fn parents(self) -> &'a [ParentRef] {
        match self {
            Self::Http(route) => &route.object.spec.parent_refs,
            Self::Grpc(route) => &route.object.spec.parent_refs,
            Self::Tls(route) => &route.spec.parent_refs,
        }
    }

    fn hostnames(self) -> &'a [String] {
        match self {
            Self::Http(route) => &route.object.spec.hostnames,
            Self::Grpc(route) => &route.object.spec.hostnames,
            Self::Tls(route) => &route.spec.hostnames,
        }
    }

    /// What its connections carry where a listener of `protocol` takes them.
    fn carries(self, protocol: Option<Protocol>) -> Carries {
        match (self, protocol) {
            (Self::Http(_), _) => Carries::Http,
            (Self::Grpc(_), _) => Carries::Grpc,
            (Self::Tls(_), Some(Protocol::TlsTerminate)) => Carries::Stream,
            (Self::Tls(_), _) => Carries::Tls,
        }
    }

    fn lower(self, name: &ObjectName, user: &User<'_>, backends: &mut Backends<'_>) -> Rules<'a> {
        match self {
            Self::Http(route) => rules::http(name, route, user, backends),
            Self::Grpc(route) => rules::grpc(name, route, user, backends),
            Self::Tls(route) => rules::tls(name, route, user, backends),
        }
    }
}

/// Attaches every route.
pub(super) fn attach<'o>(
    look: &'o Look<'o>,
    gateways: &mut [GatewayState<'o>],
    backends: &mut Backends<'o>,
    notes: &mut Notes,
) -> Attached {
    let objects = look.objects;
    let http = objects.http_routes.iter();
    let grpc = objects.grpc_routes.iter();
    let tls = objects.tls_routes.iter();
    let mut routes: Vec<_> = http
        .map(|(name, route)| (name, Route::Http(route)))
        .chain(grpc.map(|(name, route)| (name, Route::Grpc(route))))
        .chain(tls.map(|(name, route)| (name, Route::Tls(route))))
        .collect();
    routes.sort_by(|(_, a), (_, b)| a.meta().precedence(b.meta()));
    let mut attaching = Attaching {
        look,
        parents: Parents::new(gateways),
        gateways,
        backends,
        notes,
        attached: Attached::default(),
    };
    for (name, route) in routes {
        let status = attaching.attach(name, route);
        attaching.attached.statuses.extend(status);
    }
    attaching.attached
}

/// The objects that routes may name as parents.
struct Parents {
    gateways: HashMap<ObjectName, usize>,
    /// Position of the Gateway and of the set within it.
    sets: HashMap<ObjectName, (usize, usize)>,
}

impl Parents {
    fn new(gateways: &[GatewayState<'_>]) -> Self {
        let all = || gateways.iter().enumerate();
        let sets = all().flat_map(|(at, gateway)| {
            let sets = gateway.sets.iter().enumerate();
            sets.map(move |(i, set)| (set.name.clone(), (at, i)))
        });
        Self {
            gateways: all().map(|(at, g)| (g.name.clone(), at)).collect(),
            sets: sets.collect(),
        }
    }
}

/// A parent of a kind that is ours: its kind, name, and the Gateway in the end.
struct Parent {
    kind: &'static str,
    name: ObjectName,
    gateway: usize,
    owner: Owner,
}

/// How far a route came with one parent.
#[derive(Default)]
struct Reached {
    /// Listeners that let it in, and the hosts.
    listeners: Vec<(usize, Vec<Option<HostPattern>>)>,
    /// The most helpful reason why others did not.
    fault: Option<Fault>,
}

struct Attaching<'o, 'b> {
    look: &'o Look<'o>,
    parents: Parents,
    gateways: &'b mut [GatewayState<'o>],
    backends: &'b mut Backends<'o>,
    notes: &'b mut Notes,
    attached: Attached,
}

/// A route lowered for a Gateway with a client certificate (else `None`) and for what it carries
/// there.
type Variants<'a> = BTreeMap<(Option<usize>, Carries), Rules<'a>>;

impl Attaching<'_, '_> {
    fn attach(&mut self, name: &ObjectName, route: Route<'_>) -> Option<ObjectStatus> {
        let kind = route.kind();
        if route.parents().is_empty() {
            let message = "names no Gateway, so it has no effect";
            let fault = Fault::new(reason::NO_MATCHING_PARENT, message);
            self.notes.add(kind, name, "spec.parentRefs", &fault);
        }
        let mut variants = Variants::new();
        let mut seen = BTreeSet::new();
        let mut statuses = Vec::new();
        for (i, written) in route.parents().iter().enumerate() {
            let parent = match self.find(name, written) {
                Ok(Some(parent)) => parent,
                Ok(None) => continue,
                Err(fault) => {
                    let field = format!("spec.parentRefs[{i}]");
                    self.notes.add(kind, name, field, &fault);
                    continue;
                }
            };
            let reached = self.reach(name, route, written, &parent);
            let conditions = self.settle(name, route, &parent, reached, &mut variants, &mut seen);
            if let Some(refused) = conditions.first().filter(|accepted| !accepted.holds) {
                let fault = Fault::new(refused.reason, refused.message.as_str());
                let field = format!("spec.parentRefs[{i}]");
                self.notes.add(kind, name, field, &fault);
            }
            statuses.push(ParentStatus {
                group: GATEWAY_GROUP,
                kind: parent.kind,
                name: parent.name,
                section_name: written.section_name.clone(),
                port: written.port,
                conditions,
            });
        }
        if variants.is_empty() {
            // Its own faults are worth knowing although it is attached nowhere.
            self.variant(name, route, None, &mut variants);
        }
        self.note(kind, name, &variants);
        (!statuses.is_empty()).then(|| ObjectStatus {
            parents: statuses,
            ..ObjectStatus::new(kind, name, route.meta().generation)
        })
    }

    /// The parent that a reference means; none if it is not ours to speak for.
    fn find(&self, route: &ObjectName, to: &ParentRef) -> Result<Option<Parent>, Fault> {
        let namespace = to.namespace.as_deref().unwrap_or(&route.namespace);
        let name = ObjectName::new(namespace, &to.name);
        let objects = self.look.objects;
        let parent = match (to.group.as_str(), to.kind.as_str()) {
            (GATEWAY_GROUP, "Gateway") => {
                let found = self.parents.gateways.get(&name);
                let known = objects.gateways.contains_key(&name);
                let found = found.map(|gateway| (*gateway, Owner::Gateway));
                found.ok_or(known).map(|found| ("Gateway", found))
            }
            (GATEWAY_GROUP, "ListenerSet") => {
                let found = self.parents.sets.get(&name);
                let set = objects.listener_sets.get(&name);
                // One whose Gateway is missing says so itself.
                let known = set.is_some();
                let found = found.map(|(gateway, at)| (*gateway, Owner::Set(*at)));
                found.ok_or(known).map(|found| ("ListenerSet", found))
            }
            _ => return Ok(None),
        };
        match parent {
            Ok((kind, (gateway, owner))) => Ok(Some(Parent {
                kind,
                name,
                gateway,
                owner,
            })),
            Err(true) => Ok(None),
            Err(false) => {
                let message = format!("{} {name} does not exist", to.kind);
                Err(Fault::new(reason::NO_MATCHING_PARENT, message))
            }
        }
    }

    /// Asks every listener that the reference means whether it lets the route in.
    fn reach(
        &self,
        name: &ObjectName,
        route: Route<'_>,
        to: &ParentRef,
        parent: &Parent,
    ) -> Reached {
        let gateway = &self.gateways[parent.gateway];
        if let Owner::Set(at) = parent.owner
            && let Some(fault) = &gateway.sets[at].refused
        {
            let message = format!(
                "ListenerSet {} is not attached: {}",
                parent.name, fault.message
            );
            return Reached {
                fault: Some(Fault::new(reason::NO_MATCHING_PARENT, message)),
                ..Reached::default()
            };
        }
        let meant = |l: &ListenerState<'_>| {
            let section = to.section_name.as_ref();
            l.owner == parent.owner
                && section.is_none_or(|section| *section == l.spec.name)
                && to.port.is_none_or(|port| port == l.spec.port)
        };
        let mut reached = Reached::default();
        let listeners = gateway.listeners.iter().enumerate();
        for (at, listener) in listeners.filter(|(_, l)| meant(l)) {
            match self.admit(listener, parent, name, route) {
                Ok(hosts) => reached.listeners.push((at, hosts)),
                // The furthest that the route came is the most helpful thing to say.
                Err(fault) => match &reached.fault {
                    Some(other) if progress(other) > progress(&fault) => {}
                    _ => reached.fault = Some(fault),
                },
            }
        }
        if reached.listeners.is_empty() && reached.fault.is_none() {
            let message = format!(
                "{} {} has no listener of this name or port",
                parent.kind, parent.name
            );
            reached.fault = Some(Fault::new(reason::NO_MATCHING_PARENT, message));
        }
        reached
    }

    /// The hosts for which the listener takes the route.
    fn admit(
        &self,
        listener: &ListenerState<'_>,
        parent: &Parent,
        name: &ObjectName,
        route: Route<'_>,
    ) -> Result<Vec<Option<HostPattern>>, Fault> {
        let at = format_args!(
            "listener {} of {} {}",
            listener.spec.name, parent.kind, parent.name
        );
        let kind = route.kind();
        let RouteNamespaces { from, selector } = &listener.spec.allowed_routes.namespaces;
        let rule = (*from, selector.as_ref());
        if !listener.kinds.contains(&kind)
            || !self
                .look
                .lets_in(rule, &listener.namespace, &name.namespace)
        {
            let message = format!(
                "{at} does not allow {kind}s of namespace {}; see its allowedRoutes",
                name.namespace
            );
            return Err(Fault::new(reason::NOT_ALLOWED_BY_LISTENERS, message));
        }
        let hosts = hosts::common(listener.hostname.as_ref(), route.hostnames());
        if hosts.is_empty() {
            let message = format!("no hostname of the route is one of {at}");
            return Err(Fault::new(reason::NO_MATCHING_HOSTNAME, message));
        }
        if let Some((_, other)) = rivals(kind) {
            let taken = &listener.hosts[other];
            if hosts.iter().any(|host| taken.overlaps(host.as_ref())) {
                let message = format!(
                    "an older route of the other kind (HTTPRoute, GRPCRoute) has a host name of it at {at}"
                );
                return Err(Fault::new(reason::HOSTNAME_CONFLICT, message));
            }
        }
        Ok(hosts)
    }

    /// Puts the route's rules where they belong; gives the conditions towards the parent.
    fn settle<'r>(
        &mut self,
        name: &ObjectName,
        route: Route<'r>,
        parent: &Parent,
        reached: Reached,
        variants: &mut Variants<'r>,
        seen: &mut BTreeSet<(usize, usize)>,
    ) -> Vec<Condition> {
        let mut keys = BTreeSet::new();
        let own = |listener| Some((parent.gateway, listener));
        for (at, _) in &reached.listeners {
            keys.insert(self.variant(name, route, own(*at), variants));
        }
        if keys.is_empty() {
            keys.insert(self.variant(name, route, None, variants));
        }
        let used: Vec<_> = keys.iter().map(|key| &variants[key]).collect();
        let refused = used.iter().find_map(|rules| rules.refused());
        let outcome = match reached.listeners.is_empty() {
            true => reached.fault,
            false => refused,
        };
        let gateway = self.gateways[parent.gateway].name.clone();
        for rules in &used {
            note_uses(&mut self.attached, rules, &gateway, outcome.is_none());
        }
        let unresolved = used.iter().find_map(|rules| rules.unresolved.first());
        let mut conditions = vec![
            Condition::of(reason::ACCEPTED, outcome.as_ref()),
            Condition::of(reason::RESOLVED_REFS, unresolved.map(|(_, fault)| fault)),
        ];
        if outcome.is_some() {
            return conditions;
        }
        if let Some(fault) = used.iter().find_map(|rules| rules.partially()) {
            conditions.push(Condition {
                kind: reason::PARTIALLY_INVALID,
                holds: true,
                reason: fault.reason,
                message: fault.message,
            });
        }
        for (at, hosts) in reached.listeners {
            if seen.insert((parent.gateway, at)) {
                let key = self.variant(name, route, own(at), variants);
                let listener = &mut self.gateways[parent.gateway].listeners[at];
                add(listener, route.kind(), &variants[&key], hosts);
            }
        }
        conditions
    }

    /// Lowers the route as a listener (its Gateway's position and its own) needs it, once. Without
    /// one, as for a Gateway that has no client certificate.
    fn variant<'r>(
        &mut self,
        name: &ObjectName,
        route: Route<'r>,
        at: Option<(usize, usize)>,
        variants: &mut Variants<'r>,
    ) -> (Option<usize>, Carries) {
        let gateway = at.map(|(gateway, _)| gateway);
        let protocol = at.and_then(|(gateway, own)| self.gateways[gateway].listeners[own].protocol);
        let client = gateway.and_then(|at| match &self.gateways[at].client {
            Some(Ok(certificate)) => Some((at, Arc::clone(certificate))),
            Some(Err(_)) | None => None,
        });
        let carries = route.carries(protocol);
        let key = (client.as_ref().map(|(at, _)| *at), carries);
        if let btree_map::Entry::Vacant(entry) = variants.entry(key) {
            let user = User {
                kind: route.kind(),
                namespace: &name.namespace,
                carries,
                client: client
                    .as_ref()
                    .map(|(at, certificate)| (&self.gateways[*at].name, certificate)),
            };
            let rules = route.lower(name, &user, self.backends);
            entry.insert(rules);
        }
        key
    }

    /// Reports what is wrong with the route itself, each fault once.
    fn note(&mut self, kind: Kind, name: &ObjectName, variants: &Variants<'_>) {
        let mut seen = BTreeSet::new();
        for rules in variants.values() {
            for (field, fault) in rules.unresolved.iter().chain(&rules.unsupported) {
                if seen.insert((field, fault.reason)) {
                    self.notes.add(kind, name, field.as_str(), fault);
                }
            }
        }
    }
}

/// The places of a kind's own hosts and of those of the kind that it excludes, if there is one.
fn rivals(kind: Kind) -> Option<(usize, usize)> {
    match kind {
        Kind::HttpRoute => Some((0, 1)),
        Kind::GrpcRoute => Some((1, 0)),
        _ => None,
    }
}

fn progress(fault: &Fault) -> u8 {
    match fault.reason {
        reason::NO_MATCHING_PARENT => 0,
        reason::NOT_ALLOWED_BY_LISTENERS => 1,
        reason::NO_MATCHING_HOSTNAME => 2,
        _ => 3,
    }
}

/// Adds the route's rules to a listener.
fn add(
    listener: &mut ListenerState<'_>,
    kind: Kind,
    rules: &Rules<'_>,
    hosts: Vec<Option<HostPattern>>,
) {
    listener.attached_routes += 1;
    if let Some((own, _)) = rivals(kind) {
        for host in &hosts {
            listener.hosts[own].insert(host.as_ref());
        }
    }
    match &rules.body {
        Body::Requests(all) => {
            for host in hosts {
                for (rule, matchers) in all {
                    let entries = matchers.iter().map(|matcher| Entry {
                        matcher: matcher.clone(),
                        rule: Arc::clone(rule),
                    });
                    listener
                        .entries
                        .extend(entries.map(|entry| (host.clone(), entry)));
                }
            }
        }
        Body::Connections(rule) => {
            let routes = hosts.into_iter().map(|host| (host, Arc::clone(rule)));
            listener.tls_routes.extend(routes);
        }
    }
}

/// Remembers which Gateway leads to which pools and Services.
fn note_uses(attached: &mut Attached, rules: &Rules<'_>, gateway: &ObjectName, accepted: bool) {
    for pool in &rules.uses.pools {
        let of_pool = attached.pools.entry(pool.clone()).or_default();
        *of_pool.entry(gateway.clone()).or_default() |= accepted;
    }
    // A policy does not concern connections that are passed on as they are.
    if !accepted || rules.passes_on() {
        return;
    }
    for (service, port) in &rules.uses.services {
        let of_service = attached.services.entry(service.clone()).or_default();
        of_service.entry(gateway.clone()).or_default().insert(*port);
    }
}
