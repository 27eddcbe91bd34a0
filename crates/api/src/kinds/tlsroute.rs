//! `TLSRoute`, `gateway.networking.k8s.io/v1`.

use serde::Deserialize;

use super::route::{ObjectRef, ParentRef, one_share, service};
use super::{Meta, Opaque};

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct TlsRoute {
    pub(crate) metadata: Meta,
    pub(crate) spec: TlsRouteSpec,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct TlsRouteSpec {
    pub(crate) parent_refs: Vec<ParentRef>,
    pub(crate) hostnames: Vec<String>,
    pub(crate) rules: Vec<TlsRouteRule>,
    pub(crate) use_default_gateways: Option<Opaque>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct TlsRouteRule {
    // For people; read so that it is not reported as unknown.
    pub(crate) name: Option<String>,
    pub(crate) backend_refs: Vec<TlsBackendRef>,
}

/// `BackendRef`: an object reference with a share.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct TlsBackendRef {
    #[serde(default)]
    pub(crate) group: String,
    #[serde(default = "service")]
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) port: Option<u16>,
    #[serde(default = "one_share")]
    pub(crate) weight: u32,
}

impl TlsBackendRef {
    pub(crate) fn object(&self) -> ObjectRef {
        ObjectRef {
            group: self.group.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            port: self.port,
        }
    }
}
