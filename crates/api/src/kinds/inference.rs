//! `InferencePool` (`inference.networking.k8s.io/v1`), `InferenceObjective` and
//! `InferenceModelRewrite` (`llm-d.ai/v1alpha2`, and the older
//! `inference.networking.x-k8s.io/v1alpha2`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::route::service;
use super::{Meta, POOL_GROUP};

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct InferencePool {
    pub(crate) metadata: Meta,
    pub(crate) spec: InferencePoolSpec,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InferencePoolSpec {
    pub(crate) selector: PoolSelector,
    pub(crate) target_ports: Vec<TargetPort>,
    #[serde(default)]
    pub(crate) app_protocol: PoolProtocol,
    pub(crate) endpoint_picker_ref: Option<EndpointPickerRef>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolSelector {
    pub(crate) match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct TargetPort {
    pub(crate) number: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub(crate) enum PoolProtocol {
    #[default]
    #[serde(rename = "http")]
    Http,
    #[serde(rename = "kubernetes.io/h2c")]
    H2c,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointPickerRef {
    #[serde(default)]
    pub(crate) group: String,
    #[serde(default = "service")]
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) port: Option<TargetPort>,
    #[serde(default)]
    pub(crate) failure_mode: FailureMode,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub(crate) enum FailureMode {
    #[default]
    FailClose,
    FailOpen,
}

/// Reference from an objective or rewrite to its pool.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct PoolRef {
    #[serde(default = "pool_group")]
    pub(crate) group: String,
    #[serde(default = "pool_kind")]
    pub(crate) kind: String,
    pub(crate) name: String,
}

fn pool_group() -> String {
    POOL_GROUP.to_owned()
}

fn pool_kind() -> String {
    "InferencePool".to_owned()
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct InferenceObjective {
    pub(crate) metadata: Meta,
    pub(crate) spec: InferenceObjectiveSpec,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InferenceObjectiveSpec {
    #[serde(default)]
    pub(crate) priority: i32,
    pub(crate) pool_ref: PoolRef,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct InferenceModelRewrite {
    pub(crate) metadata: Meta,
    pub(crate) spec: InferenceModelRewriteSpec,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InferenceModelRewriteSpec {
    pub(crate) pool_ref: PoolRef,
    pub(crate) rules: Vec<ModelRule>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct ModelRule {
    #[serde(default)]
    pub(crate) matches: Vec<ModelMatch>,
    pub(crate) targets: Vec<ModelTarget>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct ModelMatch {
    pub(crate) model: ModelValue,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct ModelValue {
    #[serde(rename = "type", default)]
    kind: ModelMatchKind,
    pub(crate) value: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
enum ModelMatchKind {
    #[default]
    Exact,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModelTarget {
    pub(crate) weight: Option<u32>,
    pub(crate) model_rewrite: String,
}
