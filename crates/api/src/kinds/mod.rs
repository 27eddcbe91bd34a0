//! The objects as they are written: plain serde structs of the fields that Forebay reads.
//!
//! Field names and defaults are those of the published CRDs. Nothing here judges values (see
//! `validate`) or follows references (see `lower`). Fields that we know of but do not support are
//! kept as opaque values, so that their use can be reported instead of ignored.

pub(crate) mod core;
pub(crate) mod gateway;
pub(crate) mod httproute;
pub(crate) mod inference;

use std::collections::BTreeMap;

use forebay_model::ObjectName;
use forebay_model::endpoint::Labels;
use serde::Deserialize;

pub(crate) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
pub(crate) const POOL_GROUP: &str = "inference.networking.k8s.io";

/// A foreign or unsupported part that is only ever noticed.
pub(crate) type Opaque = serde_json::Value;

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Meta {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) labels: Labels,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) creation_timestamp: Option<String>,
    pub(crate) deletion_timestamp: Option<String>,
    pub(crate) generation: i64,
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
}
