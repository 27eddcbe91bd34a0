//! `forebay.dev`: GatewayConfig, the parameters of a GatewayClass or of one Gateway.

use serde::Deserialize;

use super::{Meta, Opaque};

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct GatewayConfig {
    pub(crate) metadata: Meta,
    #[serde(default)]
    pub(crate) spec: GatewayConfigSpec,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct GatewayConfigSpec {
    pub(crate) placement: Placement,
    pub(crate) replicas: Option<u32>,
    pub(crate) image: Option<String>,
    /// `ResourceRequirements`, passed on as it is.
    pub(crate) resources: Option<Opaque>,
    pub(crate) service_type: Option<ServiceType>,
}

/// Whose pods serve the Gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub(crate) enum Placement {
    /// Those of Forebay's own Deployment.
    #[default]
    Shared,
    /// Some of its own.
    Dedicated,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub(crate) enum ServiceType {
    LoadBalancer,
    NodePort,
    #[serde(rename = "ClusterIP")]
    ClusterIp,
}

impl ServiceType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
            Self::ClusterIp => "ClusterIP",
        }
    }
}
