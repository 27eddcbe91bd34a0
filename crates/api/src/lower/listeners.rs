//! One listener of a Gateway or ListenerSet: its protocol, certificates and kinds of route, and
//! which of several listeners that want the same gets it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use forebay_model::ObjectName;
use forebay_model::route::{Entry, HostPattern, TlsRule};
use forebay_model::snapshot::Certificate;

use super::hosts::HostSet;
use super::references::Look;
use super::trust::{self, Clients};
use crate::kinds::GATEWAY_GROUP;
use crate::kinds::gateway::{FrontendTls, Listener, TlsMode};
use crate::object::Kind;
use crate::reason;
use crate::status::Fault;

/// What a listener speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    Http,
    Https,
    /// TLS that is ended here and carries anything.
    TlsTerminate,
    /// TLS that is passed on.
    TlsPassthrough,
}

impl Protocol {
    fn of(listener: &Listener) -> Option<Self> {
        let mode = listener.tls.as_ref().map(|tls| tls.mode);
        Some(match (listener.protocol.as_str(), mode) {
            ("HTTP", _) => Self::Http,
            ("HTTPS", _) => Self::Https,
            ("TLS", None | Some(TlsMode::Terminate)) => Self::TlsTerminate,
            ("TLS", Some(TlsMode::Passthrough)) => Self::TlsPassthrough,
            _ => return None,
        })
    }

    /// Whether connections start with TLS.
    pub(super) fn is_tls(self) -> bool {
        self != Self::Http
    }

    fn needs_certificate(self) -> bool {
        matches!(self, Self::Https | Self::TlsTerminate)
    }

    /// The kinds of route that can be served.
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Http | Self::Https => &[Kind::HttpRoute, Kind::GrpcRoute],
            Self::TlsTerminate | Self::TlsPassthrough => &[Kind::TlsRoute],
        }
    }
}

/// Whose listener it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    Gateway,
    /// The set of this position among those of the Gateway.
    Set(usize),
}

/// A listener and what it has come to.
pub(super) struct ListenerState<'a> {
    pub(super) spec: &'a Listener,
    pub(super) owner: Owner,
    /// The name in the model, unique within the Gateway.
    pub(super) name: Arc<str>,
    /// The namespace of its object, against which its routes are judged.
    pub(super) namespace: Arc<str>,
    /// `None` if it is not supported.
    pub(super) protocol: Option<Protocol>,
    pub(super) hostname: Option<HostPattern>,
    /// The kinds of route that may attach.
    pub(super) kinds: Vec<Kind>,
    pub(super) certificates: Vec<Arc<Certificate>>,
    pub(super) clients: Clients,
    /// Routes that attached, each counted once.
    pub(super) attached_routes: usize,
    /// What they have added.
    pub(super) entries: Vec<(Option<HostPattern>, Entry)>,
    pub(super) tls_routes: Vec<(Option<HostPattern>, Arc<TlsRule>)>,
    /// Hosts of the HTTPRoutes and of the GRPCRoutes that attached.
    pub(super) hosts: [HostSet; 2],
    /// The port to bind, once it is known.
    pub(super) bound: Option<u16>,
    /// Whether another listener of the port has TLS for some of its hosts.
    pub(super) overlaps: bool,
    pub(super) unsupported: Option<Fault>,
    pub(super) unresolved: Option<Fault>,
    pub(super) conflict: Option<Fault>,
}

impl ListenerState<'_> {
    /// Whether requests can come in here.
    pub(super) fn serves(&self) -> bool {
        self.opens() && !self.lacks_certificate() && self.clients.refused.is_none()
    }

    /// Whether its port is opened. A listener whose certificates are missing keeps it open, so that
    /// its clients see a refused handshake and a mended Secret needs no new socket.
    pub(super) fn opens(&self) -> bool {
        self.unsupported.is_none() && self.conflict.is_none()
    }

    fn lacks_certificate(&self) -> bool {
        let needed = self.protocol.is_some_and(Protocol::needs_certificate);
        needed && self.certificates.is_empty()
    }

    /// Why it is not accepted.
    pub(super) fn refused(&self) -> Option<&Fault> {
        let faults = [&self.conflict, &self.unsupported, &self.clients.refused];
        faults.into_iter().find_map(Option::as_ref)
    }

    /// A reference of it that does not hold.
    pub(super) fn unresolved(&self) -> Option<&Fault> {
        self.unresolved
            .as_ref()
            .or(self.clients.unresolved.as_ref())
    }

    pub(super) fn fault(&self) -> Option<&Fault> {
        self.refused().or_else(|| self.unresolved())
    }
}

/// The object that listeners are of.
pub(super) struct Source<'a> {
    pub(super) kind: Kind,
    pub(super) name: &'a ObjectName,
    pub(super) owner: Owner,
    /// The namespace and `spec.tls.frontend` of the Gateway.
    pub(super) gateway_namespace: &'a str,
    pub(super) frontend: Option<&'a FrontendTls>,
}

/// Judges a listener by itself.
pub(super) fn judge<'a>(
    look: &Look<'_>,
    source: &Source<'_>,
    spec: &'a Listener,
) -> ListenerState<'a> {
    let protocol = Protocol::of(spec);
    let mut state = ListenerState {
        spec,
        owner: source.owner,
        name: match source.owner {
            Owner::Gateway => spec.name.as_str().into(),
            Owner::Set(_) => format!("{}/{}", source.name, spec.name).into(),
        },
        namespace: Arc::clone(&source.name.namespace),
        protocol,
        hostname: spec.hostname.as_deref().map(HostPattern::parse),
        kinds: Vec::new(),
        certificates: Vec::new(),
        clients: Clients::default(),
        attached_routes: 0,
        entries: Vec::new(),
        tls_routes: Vec::new(),
        hosts: Default::default(),
        bound: None,
        overlaps: false,
        unsupported: None,
        unresolved: None,
        conflict: None,
    };
    let Some(protocol) = protocol else {
        let message = format!(
            "protocol {} is not supported; use HTTP, HTTPS or TLS",
            spec.protocol
        );
        state.unsupported = Some(Fault::new(reason::UNSUPPORTED_PROTOCOL, message));
        return state;
    };
    if protocol.needs_certificate() {
        certificates(look, source, &mut state);
    }
    if protocol == Protocol::Https {
        let port = spec.port;
        state.clients = trust::clients(look, source.gateway_namespace, source.frontend, port);
    }
    kinds(protocol, &mut state);
    state
}

fn certificates(look: &Look<'_>, source: &Source<'_>, state: &mut ListenerState<'_>) {
    let from = (source.kind.as_str(), &*source.name.namespace);
    let refs = state.spec.tls.iter().flat_map(|tls| &tls.certificate_refs);
    for to in refs {
        match look.certificate(from, to, reason::INVALID_CERTIFICATE_REF) {
            Ok(certificate) => state.certificates.push(certificate),
            Err(fault) => state.unresolved = state.unresolved.take().or(Some(fault)),
        }
    }
    if state.certificates.is_empty() && state.unresolved.is_none() {
        let message = "names no certificate; write tls.certificateRefs";
        state.unresolved = Some(Fault::new(reason::INVALID_CERTIFICATE_REF, message));
    }
}

/// Keeps of the allowed kinds those that can be served, each once.
fn kinds(protocol: Protocol, state: &mut ListenerState<'_>) {
    let own = protocol.kinds();
    let allowed = &state.spec.allowed_routes.kinds;
    if allowed.is_empty() {
        state.kinds = own.to_vec();
        return;
    }
    for wanted in allowed {
        let known = own
            .iter()
            .find(|kind| wanted.group == GATEWAY_GROUP && wanted.kind == kind.as_str());
        match known {
            Some(kind) if state.kinds.contains(kind) => {}
            Some(kind) => state.kinds.push(*kind),
            None if state.unresolved.is_none() => {
                let own: Vec<_> = own.iter().map(|kind| kind.as_str()).collect();
                let message = format!(
                    "routes of kind {} cannot be served here; allow {}",
                    wanted.kind,
                    own.join(" or ")
                );
                state.unresolved = Some(Fault::new(reason::INVALID_ROUTE_KINDS, message));
            }
            None => {}
        }
    }
}

/// Listeners of one object of which no connection could be told to belong to one and not the other
/// are all refused: the specification forbids picking a winner among them. Where an object that
/// comes before has the port, its protocol has won already.
pub(super) fn mark_indistinct(listeners: &mut [ListenerState<'_>], claims: &Claims) {
    let mut ports: [BTreeSet<u16>; 2] = Default::default();
    let mut protocols: BTreeMap<(u16, Option<HostPattern>), BTreeSet<bool>> = BTreeMap::new();
    for listener in listeners.iter() {
        if let Some(protocol) = listener.protocol {
            let port = listener.spec.port;
            if listener.owner != Owner::Gateway && claims.ports.contains_key(&port) {
                continue;
            }
            ports[usize::from(protocol.is_tls())].insert(port);
            let here = protocols.entry((port, listener.hostname.clone()));
            here.or_default().insert(protocol == Protocol::Https);
        }
    }
    for listener in listeners.iter_mut() {
        if listener.protocol.is_none() {
            continue;
        }
        let port = listener.spec.port;
        let here = (port, listener.hostname.clone());
        let message = if ports.iter().all(|ports| ports.contains(&port)) {
            format!("HTTP and TLS cannot share port {port}")
        } else if protocols.get(&here).is_some_and(|all| all.len() > 1) {
            format!("HTTPS and TLS cannot share a host name of port {port}")
        } else {
            continue;
        };
        listener.conflict = Some(Fault::new(reason::PROTOCOL_CONFLICT, message));
    }
}

/// Who has which port and host already. Whoever claims first has it.
#[derive(Default)]
pub(super) struct Claims {
    ports: BTreeMap<u16, (bool, ObjectName)>,
    hosts: BTreeMap<(u16, Option<HostPattern>), (bool, ObjectName)>,
}

impl Claims {
    /// Claims port and host for a listener of a Gateway, or puts it in conflict with whoever has
    /// them. What belongs to the same Gateway's own listeners or other sets is not named, since the
    /// owner of a set may not be let in on it.
    pub(super) fn claim(&mut self, gateway: &ObjectName, listener: &mut ListenerState<'_>) {
        let port = listener.spec.port;
        let Some(protocol) = listener.protocol else {
            return self.note_unsupported(listener);
        };
        if !listener.opens() {
            return;
        }
        let holder = |owner: &ObjectName| match owner == gateway {
            true => "another listener of the Gateway".to_owned(),
            false => format!("Gateway {owner}"),
        };
        let tls = protocol.is_tls();
        let first = || (tls, gateway.clone());
        let (there, owner) = self.ports.entry(port).or_insert_with(first);
        if *there != tls {
            let message = format!("{} speaks another protocol on port {port}", holder(owner));
            listener.conflict = Some(Fault::new(reason::PROTOCOL_CONFLICT, message));
            return;
        }
        let https = protocol == Protocol::Https;
        let key = (port, listener.hostname.clone());
        match self.hosts.get(&key) {
            None => {
                self.hosts.insert(key, (https, gateway.clone()));
            }
            Some((there, owner)) => {
                let reason = match *there == https {
                    true => reason::HOSTNAME_CONFLICT,
                    false => reason::PROTOCOL_CONFLICT,
                };
                let message = format!(
                    "{} already has this host name on port {port}",
                    holder(owner)
                );
                listener.conflict = Some(Fault::new(reason, message));
            }
        }
    }

    /// A set's listener of a protocol over TCP that is not supported is in conflict besides if its
    /// port is taken.
    fn note_unsupported(&self, listener: &mut ListenerState<'_>) {
        let port = listener.spec.port;
        let over_tcp = listener.spec.protocol != "UDP";
        if listener.owner != Owner::Gateway && over_tcp && self.ports.contains_key(&port) {
            let message = format!("port {port} is taken by a listener of another protocol");
            listener.conflict = Some(Fault::new(reason::PROTOCOL_CONFLICT, message));
        }
    }
}
