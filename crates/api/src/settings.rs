//! What an [`Index`](crate::Index) is told once: where its objects come from, which of them are
//! ours, and where Gateways are reached.

use forebay_model::ObjectName;

/// The controller that a GatewayClass names to be ours, unless [`Settings`] say otherwise.
pub const CONTROLLER_NAME: &str = "forebay.dev/gateway";

/// The class that Gateways in files may use without a GatewayClass object.
pub const DEFAULT_CLASS: &str = "forebay";

/// Label of a Gateway's Service: the Gateway's name. The word is Gateway API's.
pub const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// Label of a Gateway's Service: the Gateway's namespace.
pub const GATEWAY_NAMESPACE_LABEL: &str = "forebay.dev/gateway-namespace";

/// Label of what Forebay's controller keeps, with the value `forebay`.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// Where objects come from, which decides what may be left out of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Files written by people: no GatewayClass is needed, and a pod without a `Ready` condition is
    /// ready.
    Files,
    /// An API server.
    Cluster,
}

/// How an index reads objects. `Default` is that of files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Where objects come from.
    pub origin: Origin,
    /// `spec.controllerName` of the GatewayClasses that are ours.
    pub controller: String,
    /// Names of further GatewayClasses that count as ours, whoever their controller is and whether
    /// or not there is an object of that name. Their objects' statuses stay with their controller.
    pub classes: Vec<String>,
    /// Set: only this Gateway is served and spoken for.
    pub only_gateway: Option<ObjectName>,
    /// Set: the ports to bind for a Gateway, and its addresses, are those of the Service in this
    /// namespace that is labelled with its name and namespace (see [`crate::infrastructure`]).
    /// Unset: listeners bind their own ports. Gateways that have pods of their own, which is none of
    /// this process, have their Service in their own namespace.
    pub infrastructure_namespace: Option<String>,
    /// Addresses of every Gateway where no Service tells them. Empty: not known, and
    /// `spec.addresses` cannot be held to.
    pub addresses: Vec<String>,
    /// A ServiceAccount shows a Gateway's labels and annotations beside it, also where its pods are
    /// shared (see [`crate::infrastructure`]).
    pub service_accounts: bool,
}

impl Settings {
    /// Objects of an API server, and no infrastructure for Gateways.
    #[must_use]
    pub fn cluster() -> Self {
        Self {
            origin: Origin::Cluster,
            ..Self::default()
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            origin: Origin::Files,
            controller: CONTROLLER_NAME.to_owned(),
            classes: Vec::new(),
            only_gateway: None,
            infrastructure_namespace: None,
            addresses: Vec::new(),
            service_accounts: false,
        }
    }
}
