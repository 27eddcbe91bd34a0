//! The parts of core kinds that routing reads: Service, EndpointSlice, Secret, ConfigMap, Pod,
//! Namespace. Their other fields are the API server's business and pass without remark.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Meta;

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct Namespace {
    pub(crate) metadata: Meta,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct Service {
    pub(crate) metadata: Meta,
    #[serde(default)]
    pub(crate) spec: ServiceSpec,
    #[serde(default)]
    pub(crate) status: ServiceStatus,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) ports: Vec<ServicePort>,
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceStatus {
    pub(crate) load_balancer: LoadBalancer,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LoadBalancer {
    pub(crate) ingress: Vec<Ingress>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Ingress {
    pub(crate) ip: Option<String>,
    pub(crate) hostname: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServicePort {
    pub(crate) name: Option<String>,
    pub(crate) port: u16,
    pub(crate) target_port: Option<PortOrName>,
    pub(crate) app_protocol: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum PortOrName {
    Port(u16),
    Name(String),
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointSlice {
    pub(crate) metadata: Meta,
    #[serde(default)]
    pub(crate) address_type: String,
    #[serde(default)]
    pub(crate) endpoints: Vec<SliceEndpoint>,
    #[serde(default)]
    pub(crate) ports: Vec<SlicePort>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SliceEndpoint {
    pub(crate) addresses: Vec<String>,
    pub(crate) conditions: SliceConditions,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SliceConditions {
    /// Unknown counts as ready, as the API says.
    pub(crate) ready: Option<bool>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SlicePort {
    pub(crate) name: Option<String>,
    pub(crate) port: Option<u16>,
}

/// Has no `Debug` of its data: a key must not reach a log.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Secret {
    pub(crate) metadata: Meta,
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) data: SecretData,
    #[serde(default)]
    pub(crate) string_data: SecretData,
}

/// The keys of a `kubernetes.io/tls` Secret. Others are not even kept.
#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SecretData {
    #[serde(rename = "tls.crt")]
    pub(crate) certificate: Option<String>,
    #[serde(rename = "tls.key")]
    pub(crate) key: Option<String>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.metadata.key())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct ConfigMap {
    pub(crate) metadata: Meta,
    #[serde(default)]
    pub(crate) data: ConfigData,
}

/// The key under which a ConfigMap holds a bundle of certificates. Others are not even kept.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigData {
    #[serde(rename = "ca.crt")]
    pub(crate) bundle: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct Pod {
    pub(crate) metadata: Meta,
    #[serde(default)]
    pub(crate) spec: PodSpec,
    #[serde(default)]
    pub(crate) status: PodStatus,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) node_name: Option<String>,
    pub(crate) containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Container {
    pub(crate) ports: Vec<ContainerPort>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerPort {
    pub(crate) name: Option<String>,
    pub(crate) container_port: u16,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    pub(crate) phase: Option<String>,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: Option<String>,
    pub(crate) conditions: Vec<PodCondition>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct PodCondition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
}

impl Pod {
    /// Whether the pod gets requests. A pod without a `Ready` condition is not ready yet in a
    /// cluster; one written by hand in a file (`assume_ready`) is.
    pub(crate) fn is_ready(&self, assume_ready: bool) -> bool {
        let ready = self.status.conditions.iter().find(|c| c.kind == "Ready");
        self.metadata.deletion_timestamp.is_none()
            && ready.map_or(assume_ready, |condition| condition.status == "True")
    }

    /// Whether the pod has ended for good; its address may already belong to another.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }
}
