//! The objects as they are written: plain serde structs of the fields that Forebay reads.
//!
//! Field names and defaults are those of the published CRDs. Nothing here judges values (see
//! `validate`) or follows references (see `lower`). Fields that we know of but do not support are
//! kept as opaque values, so that their use can be reported instead of ignored.

pub(crate) mod config;
pub(crate) mod core;
pub(crate) mod gateway;
pub(crate) mod grpcroute;
pub(crate) mod httproute;
pub(crate) mod inference;
pub(crate) mod policy;
pub(crate) mod route;
pub(crate) mod tlsroute;

use std::collections::BTreeMap;

use forebay_model::ObjectName;
use forebay_model::endpoint::Labels;
use serde::{Deserialize, Deserializer};

pub(crate) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// The group of our own kinds.
pub(crate) const OWN_GROUP: &str = "forebay.dev";
pub(crate) const POOL_GROUP: &str = "inference.networking.k8s.io";

/// A foreign or unsupported part that is only ever noticed.
pub(crate) type Opaque = serde_json::Value;

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Meta {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    /// Empty in files.
    pub(crate) uid: String,
    pub(crate) labels: Labels,
    #[serde(deserialize_with = "annotations")]
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) creation_timestamp: Option<String>,
    pub(crate) deletion_timestamp: Option<String>,
    pub(crate) generation: i64,
}

/// All but the copy of the object that `kubectl apply` leaves, which nothing here reads and which is
/// as large as the rest.
fn annotations<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let mut all: BTreeMap<String, String> = BTreeMap::deserialize(from)?;
    all.remove("kubectl.kubernetes.io/last-applied-configuration");
    Ok(all)
}

impl Meta {
    /// The key of a namespaced object; `default` where a file left the namespace out.
    pub(crate) fn key(&self) -> ObjectName {
        ObjectName::new(self.namespace(), &self.name)
    }

    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// Sorts older objects first; unknown age counts as newest. Kubernetes writes every timestamp
    /// in one width and in UTC, so text order is time order.
    pub(crate) fn age(&self) -> (bool, &str) {
        let created = self.creation_timestamp.as_deref();
        (created.is_none(), created.unwrap_or_default())
    }

    /// The order of precedence among objects that want the same: oldest first, then by
    /// `namespace/name` in the order of the alphabet.
    pub(crate) fn precedence(&self, other: &Self) -> std::cmp::Ordering {
        self.age()
            .cmp(&other.age())
            .then_with(|| match self.namespace() == other.namespace() {
                true => self.name.cmp(&other.name),
                false => self.path().cmp(other.path()),
            })
    }

    /// `namespace/name`.
    fn path(&self) -> impl Iterator<Item = u8> {
        let namespace = self.namespace().bytes();
        namespace.chain([b'/']).chain(self.name.bytes())
    }
}
