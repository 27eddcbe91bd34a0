//! What a Gateway needs in the cluster to be reached: a Service, and pods of its own where its
//! [`GatewayConfig`](crate::Kind::GatewayConfig) asks for them. Beside a Gateway whose pods are shared
//! lies a ServiceAccount with its labels and annotations, for those who look for them there.
//!
//! [`plan`] compares what the Gateways want with what there is and says what to apply and to delete;
//! it asks and changes nothing. The Services are the record of which port of Forebay's pods serves
//! which port of which Gateway, so every process and every restart reads the same from them: a
//! mapping that is there is never changed, and a new one takes the lowest port that is free.

mod labels;
mod objects;
mod plan;
mod ports;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};

use forebay_model::ObjectName;
use serde_json::Value;

pub use labels::{is_made, is_name, label_value, selector};
pub use plan::{Delete, Made, Plan, Put, plan};
pub use wanted::concerns;
pub(crate) use wanted::wanted;

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// A Gateway of ours, and what it wants.
#[derive(Clone, PartialEq, Debug)]
pub struct Wanted {
    /// The Gateway.
    pub gateway: ObjectName,
    /// Its `metadata.uid`, for the objects that are to go with it.
    pub uid: String,
    /// Its class.
    pub class: String,
    /// Ports of its listeners.
    pub ports: BTreeSet<u16>,
    /// `spec.infrastructure.labels`.
    pub labels: Labels,
    /// `spec.infrastructure.annotations`.
    pub annotations: Labels,
    /// The IP address that it asks for.
    pub address: Option<String>,
    /// Type of its Service; `None` for the usual one.
    pub service_type: Option<String>,
    /// Its parameters do not hold, so that what there is for it stays as it is.
    pub undecided: bool,
    /// Its pods; `None` if those of Forebay's own Deployment serve it.
    pub data_plane: Option<DataPlane>,
}

/// Pods of a Gateway's own.
#[derive(Clone, PartialEq, Debug)]
pub struct DataPlane {
    /// How many.
    pub replicas: u32,
    /// Their image; `None` for the controller's.
    pub image: Option<String>,
    /// `resources` of the container.
    pub resources: Option<Value>,
}

/// Where and how infrastructure is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// Forebay's own namespace.
    pub namespace: String,
    /// Namespaces that are followed; empty stands for all. So do pods of a Gateway's own.
    pub namespaces: Vec<String>,
    /// Labels of Forebay's own pods. Empty: it is not known which they are, and nothing is changed
    /// for Gateways that they serve.
    pub selector: Labels,
    /// Type of Services that a Gateway says nothing of; `None` for no Services where pods are shared.
    pub service_type: Option<String>,
    /// Image of pods of a Gateway's own. Empty: not known, as above.
    pub image: String,
    /// ClusterRole that these pods are bound to: everywhere, or in each of `namespaces` by itself, and
    /// then to the one of this name with `.cluster` behind it as well, for kinds without a namespace.
    /// `None` if somebody else sees to their rights.
    pub cluster_role: Option<String>,
    /// Whether Gateways that share pods get a ServiceAccount in their own namespaces
    /// (`docs/decisions/009-a-service-account-beside-each-gateway.md`).
    pub service_accounts: bool,
}
