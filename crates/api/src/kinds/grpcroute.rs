//! `GRPCRoute`, `gateway.networking.k8s.io/v1`. Filters and backends are those of an HTTPRoute, of
//! which validation allows those that a GRPCRoute has.

use serde::Deserialize;

use super::httproute::{BackendRef, HttpFilter, NamedValue, TextKind};
use super::route::ParentRef;
use super::{Meta, Opaque};

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct GrpcRoute {
    pub(crate) metadata: Meta,
    #[serde(default)]
    pub(crate) spec: GrpcRouteSpec,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct GrpcRouteSpec {
    pub(crate) parent_refs: Vec<ParentRef>,
    pub(crate) hostnames: Vec<String>,
    pub(crate) rules: Vec<GrpcRule>,
    pub(crate) use_default_gateways: Option<Opaque>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct GrpcRule {
    pub(crate) name: Option<String>,
    pub(crate) matches: Vec<GrpcMatch>,
    pub(crate) filters: Vec<HttpFilter>,
    pub(crate) backend_refs: Vec<BackendRef>,
    pub(crate) session_persistence: Option<Opaque>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct GrpcMatch {
    pub(crate) method: Option<GrpcMethod>,
    pub(crate) headers: Vec<NamedValue>,
}

/// `GRPCMethodMatch`; an empty part matches everything.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct GrpcMethod {
    #[serde(rename = "type")]
    pub(crate) kind: TextKind,
    pub(crate) service: String,
    pub(crate) method: String,
}
