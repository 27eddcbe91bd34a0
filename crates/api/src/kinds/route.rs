//! What the kinds of route have in common: references to parents and to backends.

use serde::Deserialize;

use super::gateway::{gateway_group, gateway_kind};

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ParentRef {
    #[serde(default = "gateway_group")]
    pub(crate) group: String,
    #[serde(default = "gateway_kind")]
    pub(crate) kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) section_name: Option<String>,
    pub(crate) port: Option<u16>,
}

/// `BackendObjectReference`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct ObjectRef {
    #[serde(default)]
    pub(crate) group: String,
    #[serde(default = "service")]
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) port: Option<u16>,
}

pub(crate) fn service() -> String {
    "Service".to_owned()
}

/// What a backend without a weight weighs.
pub(crate) fn one_share() -> u32 {
    1
}
