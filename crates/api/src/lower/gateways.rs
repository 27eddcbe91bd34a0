//! Gateways with the ListenerSets that are attached to them: which are ours, what their listeners
//! come to together, and what of them is served on which port.
//!
//! Without infrastructure all Gateways share the ports of this process. Listeners of one port are
//! told apart by host name; of two that claim the same, that of the older Gateway serves and the
//! other is in conflict. With a Service for each Gateway (see `reach`) each has ports of its own.
//! Within a Gateway its own listeners come first, then those of its sets, the oldest first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use forebay_model::route::{HostPattern, RouteTable, TlsRoutes, TlsRule};
use forebay_model::snapshot::{Certificate, Listener as Served, Port};
use forebay_model::{ObjectName, Snapshot};

use super::hosts::{HostSet, specificity};
use super::listeners::{Claims, ListenerState, Owner, Protocol, Source, judge, mark_indistinct};
use super::reach::{Place, Reach, Services};
use super::references::Look;
use super::{Notes, parameters};
use crate::index::objects::Objects;
use crate::kinds::gateway::{Gateway, ListenerSet};
use crate::object::Kind;
use crate::reason;
use crate::settings::{DEFAULT_CLASS, Origin};
use crate::status::Fault;

/// Listeners of one Gateway and its sets together; of more, those of the later sets are refused.
pub(super) const LISTENERS_MAX: usize = 1024;

/// A Gateway of ours and what it has come to.
pub(super) struct GatewayState<'a> {
    pub(super) name: ObjectName,
    pub(super) object: &'a Gateway,
    /// Its own, then those of its sets.
    pub(super) listeners: Vec<ListenerState<'a>>,
    pub(super) sets: Vec<SetState<'a>>,
    pub(super) reach: Reach,
    /// `spec.tls.backend.clientCertificateRef`, or why it does not hold.
    pub(super) client: Option<Result<Arc<Certificate>, Fault>>,
    /// Why the Gateway as a whole cannot be accepted.
    pub(super) refused: Option<Fault>,
}

/// A ListenerSet that names a Gateway of ours.
pub(super) struct SetState<'a> {
    pub(super) name: &'a ObjectName,
    pub(super) object: &'a ListenerSet,
    /// Why it is not attached.
    pub(super) refused: Option<Fault>,
}

impl GatewayState<'_> {
    /// Why no listener of the Gateway is bound, if none is.
    pub(super) fn unbound(&self) -> Option<&Fault> {
        self.refused.as_ref().or(self.reach.unprogrammed.as_ref())
    }

    pub(super) fn own(&self) -> impl Iterator<Item = &ListenerState<'_>> {
        self.of(Owner::Gateway)
    }

    pub(super) fn of(&self, owner: Owner) -> impl Iterator<Item = &ListenerState<'_>> {
        self.listeners.iter().filter(move |l| l.owner == owner)
    }

    /// The ports that its listeners open. Sets are attached to a Gateway that is accepted only.
    pub(super) fn ports(&self) -> BTreeSet<u16> {
        let with_sets = self.is_accepted();
        let listeners = self.listeners.iter().filter(|l| l.opens());
        let ours = listeners.filter(|l| with_sets || l.owner == Owner::Gateway);
        ours.map(|l| l.spec.port).collect()
    }

    /// Whether the Gateway is accepted: nothing speaks against it, and a listener of its own serves.
    pub(super) fn is_accepted(&self) -> bool {
        self.refused.is_none() && self.own().any(ListenerState::serves)
    }
}

/// Every Gateway of a class of ours, oldest first, with its listeners judged.
pub(super) fn gather<'a>(look: &Look<'a>, notes: &mut Notes) -> Vec<GatewayState<'a>> {
    let objects = look.objects;
    let mut all: Vec<_> = objects.gateways.iter().collect();
    all.sort_by(|(_, a), (_, b)| a.metadata.precedence(&b.metadata));
    let mut sets = sets_by_gateway(objects, notes);
    let mut gateways = Vec::new();
    let mut claims = Claims::default();
    let services = Services::new(objects);
    for (name, object) in all {
        if !is_ours(objects, name, object, notes) {
            continue;
        }
        let sets = sets.remove(name).unwrap_or_default();
        let mut gateway = start(look, name, object, services.reach(objects, name, object));
        let mut own = Claims::default();
        let claims = match gateway.reach.place {
            Place::Host => &mut claims,
            Place::Service | Place::Elsewhere => &mut own,
        };
        add_listeners(look, &mut gateway, sets, claims);
        note(&gateway, notes);
        gateways.push(gateway);
    }
    mark_overlaps(&mut gateways);
    gateways
}

fn start<'a>(
    look: &Look<'a>,
    name: &ObjectName,
    object: &'a Gateway,
    reach: Reach,
) -> GatewayState<'a> {
    let backend = &object.spec.tls.backend;
    let client = backend.client_certificate_ref.as_ref().map(|to| {
        let from = ("Gateway", &*name.namespace);
        look.certificate(from, to, reason::INVALID_CLIENT_CERTIFICATE_REF)
    });
    let parameters = parameters::of_gateway(look.objects, name, object).err();
    GatewayState {
        name: name.clone(),
        object,
        listeners: Vec::new(),
        sets: Vec::new(),
        refused: reach.refused.clone().or(parameters),
        reach,
        client,
    }
}

/// Judges the Gateway's own listeners, then those of its sets, in order of precedence.
fn add_listeners<'a>(
    look: &Look<'a>,
    gateway: &mut GatewayState<'a>,
    sets: Vec<(&'a ObjectName, &'a ListenerSet)>,
    claims: &mut Claims,
) {
    let (name, object) = (gateway.name.clone(), gateway.object);
    let source = |kind, of, owner| Source {
        kind,
        name: of,
        owner,
        gateway_namespace: &name.namespace,
        frontend: object.spec.tls.frontend.as_ref(),
    };
    let own = source(Kind::Gateway, &name, Owner::Gateway);
    let own = object.spec.listeners.iter().map(|l| judge(look, &own, l));
    let own = own.collect();
    claim(gateway, own, claims);
    let allowed = &object.spec.allowed_listeners.namespaces;
    for (set_name, set) in sets {
        let at = gateway.sets.len();
        let rule = (allowed.from, allowed.selector.as_ref());
        let let_in = look.lets_in(rule, &name.namespace, &set_name.namespace);
        let refused = (!let_in).then(|| {
            let message = format!(
                "Gateway {name} does not allow ListenerSets of namespace {}; see its allowedListeners",
                set_name.namespace
            );
            Fault::new(reason::NOT_ALLOWED, message)
        });
        if refused.is_none() {
            let of = source(Kind::ListenerSet, set_name, Owner::Set(at));
            let added = set.spec.listeners.iter().map(|l| judge(look, &of, l));
            let added = added.collect();
            claim(gateway, added, claims);
        }
        gateway.sets.push(SetState {
            name: set_name,
            object: set,
            refused,
        });
    }
}

fn claim<'a>(
    gateway: &mut GatewayState<'a>,
    mut listeners: Vec<ListenerState<'a>>,
    claims: &mut Claims,
) {
    mark_indistinct(&mut listeners, claims);
    for mut listener in listeners {
        if gateway.listeners.len() >= LISTENERS_MAX {
            let message = format!("a Gateway has {LISTENERS_MAX} listeners at most");
            listener.unsupported = Some(Fault::new(reason::TOO_MANY_LISTENERS, message));
        } else {
            claims.claim(&gateway.name, &mut listener);
        }
        gateway.listeners.push(listener);
    }
}

/// The sets that name each Gateway, the first to be served first.
fn sets_by_gateway<'a>(
    objects: &'a Objects,
    notes: &mut Notes,
) -> HashMap<ObjectName, Vec<(&'a ObjectName, &'a ListenerSet)>> {
    let mut all: Vec<_> = objects.listener_sets.iter().collect();
    all.sort_by(|(_, a), (_, b)| a.metadata.precedence(&b.metadata));
    let mut by_gateway: HashMap<ObjectName, Vec<_>> = HashMap::new();
    for (name, set) in all {
        let gateway = parent_of(name, set);
        if !objects.gateways.contains_key(&gateway) {
            let message = format!("Gateway {gateway} does not exist, so it has no effect");
            let fault = Fault::new(reason::NOT_FOUND, message);
            notes.add(Kind::ListenerSet, name, "spec.parentRef", &fault);
        }
        by_gateway.entry(gateway).or_default().push((name, set));
    }
    by_gateway
}

/// The Gateway that a set names.
pub(super) fn parent_of(name: &ObjectName, set: &ListenerSet) -> ObjectName {
    let parent = &set.spec.parent_ref;
    let namespace = parent.namespace.as_deref().unwrap_or(&name.namespace);
    ObjectName::new(namespace, &parent.name)
}

fn is_ours(objects: &Objects, name: &ObjectName, gateway: &Gateway, notes: &mut Notes) -> bool {
    let settings = &objects.settings;
    let only = settings.only_gateway.as_ref();
    if only.is_some_and(|only| only != name) {
        return false;
    }
    let class = &gateway.spec.gateway_class_name;
    if settings.classes.contains(class) {
        return true;
    }
    match (objects.classes.get(class.as_str()), settings.origin) {
        (Some(class), _) => class.spec.controller_name == settings.controller,
        (None, Origin::Files) if class == DEFAULT_CLASS => true,
        (None, _) => {
            let message = format!(
                "GatewayClass {class} does not exist, so the Gateway is nobody's; \
                 the class {DEFAULT_CLASS} needs no object in files"
            );
            let fault = Fault::new(reason::NOT_FOUND, message);
            notes.add(Kind::Gateway, name, "spec.gatewayClassName", &fault);
            false
        }
    }
}

fn note(gateway: &GatewayState<'_>, notes: &mut Notes) {
    let name = &gateway.name;
    if let Some(fault) = gateway.unbound() {
        notes.add(Kind::Gateway, name, "", fault);
    }
    if let Some(Err(fault)) = &gateway.client {
        let field = "spec.tls.backend.clientCertificateRef";
        notes.add(Kind::Gateway, name, field, fault);
    }
    let mut add = |kind, of: &ObjectName, owner| {
        for (i, listener) in gateway.of(owner).enumerate() {
            if let Some(fault) = listener.fault() {
                notes.add(kind, of, format!("spec.listeners[{i}]"), fault);
            }
        }
    };
    add(Kind::Gateway, name, Owner::Gateway);
    for (at, set) in gateway.sets.iter().enumerate() {
        add(Kind::ListenerSet, set.name, Owner::Set(at));
    }
    for set in &gateway.sets {
        if let Some(fault) = &set.refused {
            notes.add(Kind::ListenerSet, set.name, "spec.parentRef", fault);
        }
    }
}

/// Finds the listeners that end TLS for hosts of which others of the same port end it too.
fn mark_overlaps(gateways: &mut [GatewayState<'_>]) {
    let ends_tls = |l: &ListenerState<'_>| {
        let protocol = matches!(l.protocol, Some(Protocol::Https | Protocol::TlsTerminate));
        protocol && l.opens()
    };
    let mut ports: BTreeMap<(usize, u16), HostSet> = BTreeMap::new();
    // Those that share this process's ports are one.
    let scope = |at: usize, gateway: &GatewayState<'_>| match gateway.reach.place {
        Place::Host => usize::MAX,
        Place::Service | Place::Elsewhere => at,
    };
    for (at, gateway) in gateways.iter().enumerate() {
        let scope = scope(at, gateway);
        for listener in gateway.listeners.iter().filter(|l| ends_tls(l)) {
            let port = ports.entry((scope, listener.spec.port));
            port.or_default().insert(listener.hostname.as_ref());
        }
    }
    for (at, gateway) in gateways.iter_mut().enumerate() {
        let scope = scope(at, gateway);
        for listener in gateway.listeners.iter_mut().filter(|l| ends_tls(l)) {
            let port = ports.get(&(scope, listener.spec.port));
            let host = listener.hostname.as_ref();
            listener.overlaps = port.is_some_and(|port| port.overlaps_beside(host));
        }
    }
}

/// Finds out which port each listener binds.
pub(super) fn bind(gateways: &mut [GatewayState<'_>]) {
    let mut owners: BTreeMap<u16, ObjectName> = BTreeMap::new();
    for gateway in gateways {
        for listener in &mut gateway.listeners {
            listener.bound = gateway.reach.bound(listener.spec.port).filter(|bound| {
                if gateway.reach.place != Place::Service {
                    return true;
                }
                // A Service should not lead to the port of another Gateway.
                let owner = owners.entry(*bound).or_insert_with(|| gateway.name.clone());
                *owner == gateway.name
            });
        }
    }
}

/// What is served on which port. Parts equal to those of `last` are shared with it.
pub(super) fn serve(gateways: Vec<GatewayState<'_>>, last: &Snapshot) -> BTreeMap<u16, Port> {
    let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
    let mut closed = Vec::new();
    for gateway in gateways {
        if gateway.unbound().is_some() || gateway.reach.place == Place::Elsewhere {
            continue;
        }
        let with_sets = gateway.is_accepted();
        for listener in gateway.listeners {
            let ours = with_sets || listener.owner == Owner::Gateway;
            let (true, Some(bound), Some(protocol)) = (ours, listener.bound, listener.protocol)
            else {
                continue;
            };
            if !listener.opens() {
                closed.push((bound, protocol.is_tls(), refused(&gateway.name, listener)));
                continue;
            }
            let port = ports.entry(bound).or_insert_with(|| Port {
                number: listener.spec.port,
                tls: protocol.is_tls(),
                listeners: Vec::new(),
            });
            if !listener.serves() {
                port.listeners.push(refused(&gateway.name, listener));
                continue;
            }
            let before = last.ports.get(&bound);
            let same = |l: &&Served| l.gateway == gateway.name && l.name == listener.name;
            let before = before.and_then(|port| port.listeners.iter().find(same));
            port.listeners
                .push(served(&gateway.name, protocol, listener, before));
        }
    }
    refuse_rest(&mut ports, closed);
    for port in ports.values_mut() {
        port.listeners
            .sort_by_key(|l| specificity(l.hostname.as_ref()));
    }
    ports
}

/// Keeps the hosts of listeners that open no port from the others of that port, unless one of these has
/// the same.
fn refuse_rest(ports: &mut BTreeMap<u16, Port>, closed: Vec<(u16, bool, Served)>) {
    for (bound, tls, listener) in closed {
        if let Some(port) = ports.get_mut(&bound).filter(|port| port.tls == tls)
            && !port
                .listeners
                .iter()
                .any(|l| l.hostname == listener.hostname)
        {
            port.listeners.push(listener);
        }
    }
}

/// A listener that does not serve, in its place among those that do.
fn refused(gateway: &ObjectName, listener: ListenerState<'_>) -> Served {
    Served {
        gateway: gateway.clone(),
        name: listener.name,
        hostname: listener.hostname,
        refused: true,
        certificates: Vec::new(),
        clients: None,
        routes: Arc::default(),
        tls_routes: None,
    }
}

fn served(
    gateway: &ObjectName,
    protocol: Protocol,
    listener: ListenerState<'_>,
    before: Option<&Served>,
) -> Served {
    let is_http = matches!(protocol, Protocol::Http | Protocol::Https);
    let served = Served {
        gateway: gateway.clone(),
        name: listener.name,
        hostname: listener.hostname,
        refused: false,
        certificates: listener.certificates,
        clients: listener.clients.trust,
        routes: shared(
            RouteTable::build(listener.entries),
            before.map(|before| &before.routes),
        ),
        tls_routes: (!is_http).then(|| {
            let before = before.and_then(|before| before.tls_routes.as_ref());
            shared(tls_routes(listener.tls_routes), before)
        }),
    };
    match before {
        Some(before) if *before == served => before.clone(),
        _ => served,
    }
}

fn shared<T: PartialEq>(made: T, before: Option<&Arc<T>>) -> Arc<T> {
    match before {
        Some(before) if **before == made => Arc::clone(before),
        _ => Arc::new(made),
    }
}

/// The most specific host first; of routes for one host the first that attached counts.
fn tls_routes(mut routes: Vec<(Option<HostPattern>, Arc<TlsRule>)>) -> TlsRoutes {
    let mut seen = std::collections::HashSet::new();
    routes.retain(|(host, _)| seen.insert(host.clone()));
    routes.sort_by_key(|(host, _)| specificity(host.as_ref()));
    TlsRoutes { routes }
}
