//! Gateways and their listeners: which are ours, which serve, on which port, and their status.
//!
//! Without infrastructure all Gateways share the ports of this process. Listeners of one port are
//! told apart by host name; of two that claim the same, the older Gateway's serves and the other is
//! in conflict. With a Service for each Gateway (see `reach`) each has ports of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use forebay_model::route::{Entry, HostPattern, RouteTable};
use forebay_model::snapshot::{Certificate, Listener as Served, Port};
use forebay_model::{ObjectName, Snapshot};

use super::reach::{Reach, Services};
use super::{Notes, backends};
use crate::index::Objects;
use crate::kinds::GATEWAY_GROUP;
use crate::kinds::gateway::{Gateway, Listener, RouteKind};
use crate::object::Kind;
use crate::reason;
use crate::settings::{DEFAULT_CLASS, Origin};
use crate::status::{Condition, Fault, ListenerStatus, ObjectStatus};

/// A Gateway of ours and what its listeners have come to.
pub(super) struct GatewayState<'a> {
    pub(super) name: ObjectName,
    pub(super) object: &'a Gateway,
    pub(super) listeners: Vec<ListenerState<'a>>,
    reach: Reach,
}

impl GatewayState<'_> {
    /// Why no listener of the Gateway is bound, if none is.
    fn unbound(&self) -> Option<&Fault> {
        self.reach
            .refused
            .as_ref()
            .or(self.reach.unprogrammed.as_ref())
    }
}

pub(super) struct ListenerState<'a> {
    pub(super) spec: &'a Listener,
    pub(super) hostname: Option<HostPattern>,
    /// What attached routes have added.
    pub(super) entries: Vec<(Option<HostPattern>, Entry)>,
    pub(super) attached_routes: usize,
    /// Whether HTTPRoutes are among the allowed kinds.
    pub(super) allows_http: bool,
    /// The port to bind, once it is known.
    bound: Option<u16>,
    tls: bool,
    certificates: Vec<Arc<Certificate>>,
    unsupported: Option<Fault>,
    unresolved: Option<Fault>,
    conflict: Option<Fault>,
}

impl ListenerState<'_> {
    /// Whether requests can come in here.
    fn serves(&self) -> bool {
        self.unsupported.is_none() && self.conflict.is_none() && !self.lacks_certificate()
    }

    fn lacks_certificate(&self) -> bool {
        self.tls && self.certificates.is_empty()
    }

    fn fault(&self) -> Option<&Fault> {
        let faults = [&self.unsupported, &self.conflict, &self.unresolved];
        faults.into_iter().find_map(Option::as_ref)
    }
}

/// Every Gateway of a class of ours, oldest first, with its listeners judged.
pub(super) fn gather<'a>(objects: &'a Objects, notes: &mut Notes) -> Vec<GatewayState<'a>> {
    let mut all: Vec<_> = objects.gateways.iter().collect();
    all.sort_by_key(|(name, gateway)| (gateway.metadata.age(), *name));
    let mut gateways = Vec::new();
    let mut claims = Claims::default();
    let services = Services::new(objects);
    for (name, gateway) in all {
        if !is_ours(objects, name, gateway, notes) {
            continue;
        }
        let reach = services.reach(&objects.settings, name, gateway);
        if !objects.settings.shares_ports() {
            claims = Claims::default();
        }
        let mut listeners: Vec<_> = gateway
            .spec
            .listeners
            .iter()
            .map(|l| judge(objects, name, l))
            .collect();
        mark_protocol_conflicts(&mut listeners);
        for listener in &mut listeners {
            claims.claim(name, listener);
        }
        for (i, listener) in listeners.iter().enumerate() {
            if let Some(fault) = listener.fault() {
                notes.add(Kind::Gateway, name, format!("spec.listeners[{i}]"), fault);
            }
        }
        let state = GatewayState {
            name: name.clone(),
            object: gateway,
            listeners,
            reach,
        };
        if let Some(fault) = state.unbound() {
            notes.add(Kind::Gateway, name, "", fault);
        }
        gateways.push(state);
    }
    gateways
}

fn is_ours(objects: &Objects, name: &ObjectName, gateway: &Gateway, notes: &mut Notes) -> bool {
    let settings = &objects.settings;
    if settings
        .only_gateway
        .as_ref()
        .is_some_and(|only| only != name)
    {
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

fn judge<'a>(objects: &Objects, gateway: &ObjectName, spec: &'a Listener) -> ListenerState<'a> {
    let mut state = ListenerState {
        spec,
        hostname: spec.hostname.as_deref().map(HostPattern::parse),
        entries: Vec::new(),
        attached_routes: 0,
        allows_http: allows_http(&spec.allowed_routes.kinds),
        bound: None,
        tls: spec.protocol == "HTTPS",
        certificates: Vec::new(),
        unsupported: None,
        unresolved: None,
        conflict: None,
    };
    if !matches!(spec.protocol.as_str(), "HTTP" | "HTTPS") {
        let message = format!(
            "protocol {} is not supported; use HTTP or HTTPS",
            spec.protocol
        );
        state.unsupported = Some(Fault::new(reason::UNSUPPORTED_PROTOCOL, message));
        return state;
    }
    for to in spec
        .tls
        .iter()
        .flat_map(|tls| &tls.certificate_refs)
        .filter(|_| state.tls)
    {
        match backends::certificate(objects, &gateway.namespace, to) {
            Ok(certificate) => state.certificates.push(certificate),
            Err(fault) => state.unresolved = state.unresolved.or(Some(fault)),
        }
    }
    let foreign = spec
        .allowed_routes
        .kinds
        .iter()
        .find(|kind| !is_http_route(kind));
    if let (Some(foreign), None) = (foreign, &state.unresolved) {
        let message = format!(
            "routes of kind {} are not supported; allow HTTPRoute",
            foreign.kind
        );
        state.unresolved = Some(Fault::new(reason::INVALID_ROUTE_KINDS, message));
    }
    state
}

fn is_http_route(kind: &RouteKind) -> bool {
    kind.group == GATEWAY_GROUP && kind.kind == "HTTPRoute"
}

fn allows_http(kinds: &[RouteKind]) -> bool {
    kinds.is_empty() || kinds.iter().any(is_http_route)
}

/// Listeners of one Gateway that want both HTTP and HTTPS of one port are all refused: the
/// specification forbids picking a winner among them.
fn mark_protocol_conflicts(listeners: &mut [ListenerState<'_>]) {
    let of = |tls: bool| -> BTreeSet<u16> {
        let own = listeners
            .iter()
            .filter(|l| l.unsupported.is_none() && l.tls == tls);
        own.map(|l| l.spec.port).collect()
    };
    let both: BTreeSet<u16> = of(true).intersection(&of(false)).copied().collect();
    for listener in listeners.iter_mut().filter(|l| l.unsupported.is_none()) {
        let port = listener.spec.port;
        if both.contains(&port) {
            let message = format!("HTTP and HTTPS cannot share port {port}");
            listener.conflict = Some(Fault::new(reason::PROTOCOL_CONFLICT, message));
        }
    }
}

/// Who has which port and host already.
#[derive(Default)]
struct Claims {
    ports: BTreeMap<u16, (bool, ObjectName)>,
    hosts: BTreeMap<(u16, Option<HostPattern>), ObjectName>,
}

impl Claims {
    fn claim(&mut self, gateway: &ObjectName, listener: &mut ListenerState<'_>) {
        if listener.unsupported.is_some() || listener.conflict.is_some() {
            return;
        }
        let port = listener.spec.port;
        let (tls, owner) = self
            .ports
            .entry(port)
            .or_insert_with(|| (listener.tls, gateway.clone()));
        if *tls != listener.tls {
            let message = format!("Gateway {owner} speaks another protocol on port {port}");
            listener.conflict = Some(Fault::new(reason::PROTOCOL_CONFLICT, message));
            return;
        }
        let owner = self
            .hosts
            .entry((port, listener.hostname.clone()))
            .or_insert_with(|| gateway.clone());
        if owner != gateway {
            let message = format!(
                "Gateway {owner} already has this host name on port {port}, and the process is one"
            );
            listener.conflict = Some(Fault::new(reason::HOSTNAME_CONFLICT, message));
        }
    }
}

/// Ports to serve, and the Gateways' statuses. Tables equal to those of `last` are shared with it.
pub(super) fn finish(
    objects: &Objects,
    gateways: Vec<GatewayState<'_>>,
    last: &Snapshot,
) -> (BTreeMap<u16, Port>, Vec<ObjectStatus>) {
    let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
    let mut owners: BTreeMap<u16, ObjectName> = BTreeMap::new();
    let mut statuses = Vec::with_capacity(gateways.len());
    for mut gateway in gateways {
        for listener in &mut gateway.listeners {
            listener.bound = bind(
                objects,
                &gateway.name,
                &gateway.reach,
                listener,
                &mut owners,
            );
        }
        statuses.push(gateway_status(&gateway));
        if gateway.unbound().is_some() || objects.settings.only_controls() {
            continue;
        }
        for listener in gateway.listeners {
            let opens = listener.unsupported.is_none() && listener.conflict.is_none();
            let Some(bound) = listener.bound.filter(|_| opens) else {
                continue;
            };
            let serves = listener.serves();
            // A listener whose certificate is missing keeps the port open, so that its clients see
            // a refused handshake and a mended Secret needs no new socket.
            let port = ports.entry(bound).or_insert_with(|| Port {
                number: listener.spec.port,
                tls: listener.tls,
                listeners: Vec::new(),
            });
            if serves {
                port.listeners
                    .push(served(&gateway.name, bound, listener, last));
            }
        }
    }
    for port in ports.values_mut() {
        port.listeners
            .sort_by_key(|l| specificity(l.hostname.as_ref()));
    }
    (ports, statuses)
}

/// The port that the listener binds, unless it is not known yet or, which a Service should not do,
/// leads to the port of another Gateway.
fn bind(
    objects: &Objects,
    gateway: &ObjectName,
    reach: &Reach,
    listener: &ListenerState<'_>,
    owners: &mut BTreeMap<u16, ObjectName>,
) -> Option<u16> {
    let bound = reach.bound(listener.spec.port)?;
    if objects.settings.shares_ports() || objects.settings.only_controls() {
        return Some(bound);
    }
    let owner = owners.entry(bound).or_insert_with(|| gateway.clone());
    (owner == gateway).then_some(bound)
}

/// Sorts exact hosts first, then the longest wildcards, then every host.
fn specificity(host: Option<&HostPattern>) -> (u8, std::cmp::Reverse<usize>) {
    match host {
        Some(HostPattern::Exact(_)) => (0, std::cmp::Reverse(0)),
        Some(HostPattern::Suffix(suffix)) => (1, std::cmp::Reverse(suffix.len())),
        None => (2, std::cmp::Reverse(0)),
    }
}

fn served(
    gateway: &ObjectName,
    bound: u16,
    listener: ListenerState<'_>,
    last: &Snapshot,
) -> Served {
    let table = RouteTable::build(listener.entries);
    let before = last.ports.get(&bound);
    let before = before.and_then(|port| {
        let same = |l: &&Served| l.gateway == *gateway && *l.name == *listener.spec.name;
        port.listeners.iter().find(same)
    });
    Served {
        gateway: gateway.clone(),
        name: listener.spec.name.as_str().into(),
        hostname: listener.hostname,
        certificates: listener.certificates,
        clients: None,
        routes: match before {
            Some(before) if *before.routes == table => Arc::clone(&before.routes),
            _ => Arc::new(table),
        },
        tls_routes: None,
    }
}

fn gateway_status(gateway: &GatewayState<'_>) -> ObjectStatus {
    let good = gateway
        .listeners
        .iter()
        .filter(|l| l.fault().is_none())
        .count();
    let serving = gateway.listeners.iter().filter(|l| l.serves()).count();
    let all = gateway.listeners.len();
    let invalid = |reason| {
        Fault::new(
            reason,
            format!("{} of {all} listeners are not valid", all - good),
        )
    };
    let mut accepted = Condition::of(reason::ACCEPTED, gateway.reach.refused.as_ref());
    if accepted.holds && good < all {
        // Accepted with a remark while one listener serves, refused when none does.
        let Fault { reason, message } = invalid(reason::LISTENERS_NOT_VALID);
        accepted = Condition {
            kind: reason::ACCEPTED,
            holds: serving > 0,
            reason,
            message,
        };
    }
    let unprogrammed = if !accepted.holds {
        Some(Fault::new(reason::INVALID, accepted.message.as_str()))
    } else if serving == 0 {
        Some(invalid(reason::INVALID))
    } else {
        let mut late = gateway.listeners.iter().filter(|l| l.serves());
        let late = late.find_map(|l| unbound(gateway, l));
        gateway.reach.unprogrammed.clone().or(late)
    };
    let addresses = match &unprogrammed {
        None => gateway.reach.addresses.clone(),
        Some(_) => Vec::new(),
    };
    let listeners = gateway.listeners.iter();
    ObjectStatus {
        conditions: vec![
            accepted,
            Condition::of(reason::PROGRAMMED, unprogrammed.as_ref()),
        ],
        listeners: listeners.map(|l| listener_status(gateway, l)).collect(),
        addresses,
        ..ObjectStatus::new(
            Kind::Gateway,
            &gateway.name,
            gateway.object.metadata.generation,
        )
    }
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

fn listener_status(gateway: &GatewayState<'_>, listener: &ListenerState<'_>) -> ListenerStatus {
    let unprogrammed = match gateway.unbound() {
        _ if !listener.serves() => {
            let message = listener.fault().map_or("", |fault| &fault.message);
            Some(Fault::new(reason::INVALID, message))
        }
        Some(fault) => Some(Fault::new(reason::PENDING, fault.message.as_str())),
        None => unbound(gateway, listener),
    };
    ListenerStatus {
        name: listener.spec.name.clone(),
        attached_routes: listener.attached_routes,
        supported_kinds: match listener.allows_http && listener.unsupported.is_none() {
            true => vec!["HTTPRoute"],
            false => Vec::new(),
        },
        conditions: vec![
            Condition::of(
                reason::ACCEPTED,
                listener.unsupported.as_ref().or(listener.conflict.as_ref()),
            ),
            Condition::of(reason::PROGRAMMED, unprogrammed.as_ref()),
            Condition::of(reason::RESOLVED_REFS, listener.unresolved.as_ref()),
            Condition::conflicted(listener.conflict.as_ref()),
        ],
    }
}
