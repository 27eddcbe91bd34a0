//! The whole configuration as one immutable value.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::name::ObjectName;
use crate::pool::Pool;
use crate::route::{HostPattern, RouteTable, ServicePort, ServiceTarget, TlsRoutes, Trust};

/// Everything that the runtime needs to serve. A request takes one snapshot and keeps it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each published snapshot that differs from the one before.
    pub generation: u64,
    /// What to listen on, by the port that is bound.
    pub ports: BTreeMap<u16, Port>,
    /// Every pool, also those that no route reaches.
    pub pools: HashMap<ObjectName, Arc<Pool>>,
    /// The Services that some route leads to.
    pub services: HashMap<ServicePort, Arc<ServiceTarget>>,
    /// What is wrong with the configuration, for logs, status and metrics.
    pub problems: Vec<Problem>,
}

/// One TCP port and the Gateway listeners that share it.
///
/// A request belongs to the first listener whose hostname covers its host, and to the routes of
/// that one alone. A request over TLS whose host belongs to another listener than the server name
/// of its connection did is misdirected.
#[derive(Clone, PartialEq, Debug)]
pub struct Port {
    /// The port as clients know it: that of the listeners. It differs from the one that is bound
    /// where a Service leads from one to the other.
    pub number: u16,
    /// Whether connections start with TLS.
    pub tls: bool,
    /// Listeners, most specific hostname first; the first that matches the host serves.
    pub listeners: Vec<Listener>,
}

/// One listener of one Gateway.
#[derive(Clone, PartialEq, Debug)]
pub struct Listener {
    /// The Gateway.
    pub gateway: ObjectName,
    /// `spec.listeners[].name`; that of a ListenerSet comes after the namespace and the name of
    /// the set, as in `team-a/extra/https`. Unique within the Gateway.
    pub name: Arc<str>,
    /// Hosts that the listener is for; `None` is every host.
    pub hostname: Option<HostPattern>,
    /// It is configured and does not hold, for want of a certificate for one: its hosts get a refused
    /// handshake or 404, and are not left to a listener that is less specific. It has no routes then.
    pub refused: bool,
    /// Certificates of a TLS listener, first one is the default.
    pub certificates: Vec<Arc<Certificate>>,
    /// Whom clients must be, where the Gateway asks for a certificate of theirs.
    pub clients: Option<Arc<ClientTrust>>,
    /// The HTTP routes attached to it.
    pub routes: Arc<RouteTable>,
    /// Of a listener of protocol TLS: its connections are no HTTP and go where these say; ended
    /// here if the listener has certificates, and passed on as they are if not.
    pub tls_routes: Option<Arc<TlsRoutes>>,
}

/// `spec.tls.frontend`: certificates that clients show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientTrust {
    /// Who may have signed them.
    pub trust: Trust,
    /// Whether a client without a certificate, or with one that does not hold, is served all the
    /// same (`AllowInsecureFallback`).
    pub optional: bool,
}

/// A certificate chain and its key, as PEM, from a `kubernetes.io/tls` Secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Certificate {
    /// The Secret.
    pub secret: ObjectName,
    /// Chain, leaf first.
    pub chain_pem: Arc<[u8]>,
    /// Private key.
    pub key_pem: Arc<[u8]>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is left out: a snapshot may be printed.
        f.debug_struct("Certificate")
            .field("secret", &self.secret)
            .finish_non_exhaustive()
    }
}

/// Something that the user should mend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The object, such as `HTTPRoute default/chat`, or the file.
    pub object: String,
    /// The field's path within it, such as `spec.rules[0].backendRefs[1]`; empty if it is the whole.
    pub field: String,
    /// A reason in one word, such as `BackendNotFound`.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.object)?;
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        write!(f, ": {}: {}", self.reason, self.message)
    }
}
