//! `BackendTLSPolicy`, `gateway.networking.k8s.io/v1`.

use serde::Deserialize;

use super::{Meta, Opaque};

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct BackendTlsPolicy {
    pub(crate) metadata: Meta,
    pub(crate) spec: BackendTlsPolicySpec,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendTlsPolicySpec {
    pub(crate) target_refs: Vec<TargetRef>,
    pub(crate) validation: Validation,
    pub(crate) options: Option<Opaque>,
}

/// `LocalPolicyTargetReferenceWithSectionName`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TargetRef {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) section_name: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Validation {
    #[serde(default)]
    pub(crate) ca_certificate_refs: Vec<LocalRef>,
    #[serde(rename = "wellKnownCACertificates", default)]
    pub(crate) well_known: String,
    pub(crate) hostname: String,
    #[serde(default)]
    pub(crate) subject_alt_names: Vec<SubjectAltName>,
}

/// `LocalObjectReference`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct LocalRef {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct SubjectAltName {
    #[serde(rename = "type")]
    pub(crate) kind: SubjectKind,
    #[serde(default)]
    pub(crate) hostname: String,
    #[serde(default)]
    pub(crate) uri: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub(crate) enum SubjectKind {
    Hostname,
    #[serde(rename = "URI")]
    Uri,
}
