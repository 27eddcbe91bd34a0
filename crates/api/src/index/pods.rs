//! What the index keeps of a pod: an endpoint without its port, and the ports that have names. Of a
//! pod without an address nothing is kept, and of the rest of a pod's object, which is large,
//! nothing either.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use forebay_model::endpoint::Labels;
use forebay_model::{Endpoint, Engine, Role, Topology};

use crate::kinds::core::Pod;

pub(crate) const ENGINE_LABEL: &str = "llm-d.ai/engine-type";
pub(crate) const ROLE_LABEL: &str = "llm-d.ai/role";
const REGION_LABEL: &str = "topology.kubernetes.io/region";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The first that a pod has counts; clouds have names of their own.
const RACK_LABELS: [&str; 2] = [
    "topology.kubernetes.io/rack",
    "cloud.google.com/gce-topology-subblock",
];
const RAIL_LABEL: &str = "forebay.dev/rail";
const BLOCK_LABELS: [&str; 2] = ["forebay.dev/block", "cloud.google.com/gce-topology-block"];
/// Set by NVIDIA's DRA driver and device plugin on what shares an NVLink domain.
const NVLINK_LABEL: &str = "nvidia.com/gpu.clique";

/// A pod that has an address and has not ended.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct PodFacts {
    /// The endpoint that it is, at port 0.
    pub(crate) endpoint: Endpoint,
    /// The container ports that have a name.
    ports: Box<[(Box<str>, u16)]>,
}

impl PodFacts {
    /// What is kept of `pod`, if anything. `assume_ready`: without a `Ready` condition it is ready.
    pub(crate) fn of(pod: Pod, assume_ready: bool) -> Option<Self> {
        // The address of a pod that has ended may already belong to another.
        let ip = pod.status.pod_ip.as_deref().filter(|_| !pod.is_over())?;
        let ip: IpAddr = ip.parse().ok()?;
        let ready = pod.is_ready(assume_ready);
        let ports = pod.spec.containers.iter().flat_map(|c| &c.ports);
        let ports = ports.filter_map(|p| Some((p.name.as_deref()?.into(), p.container_port)));
        let ports = ports.collect();
        let labels = pod.metadata.labels;
        let text = |key: &str| labels.get(key).map(|value| Arc::from(value.as_str()));
        Some(Self {
            endpoint: Endpoint {
                address: SocketAddr::new(ip, 0),
                pod: pod.metadata.name.as_str().into(),
                engine: labels.get(ENGINE_LABEL).and_then(|v| Engine::from_label(v)),
                role: role(&labels).unwrap_or_default(),
                topology: Topology {
                    region: text(REGION_LABEL),
                    zone: text(ZONE_LABEL),
                    rack: RACK_LABELS.into_iter().find_map(text),
                    host: pod.spec.node_name.as_deref().map(Arc::from),
                    rail: text(RAIL_LABEL),
                    block: BLOCK_LABELS.into_iter().find_map(text),
                    nvlink_domain: text(NVLINK_LABEL),
                },
                ready,
                labels: Arc::new(labels),
            },
            ports,
        })
    }

    /// The endpoint at one of the pod's ports.
    pub(crate) fn at(&self, port: u16) -> Endpoint {
        let mut endpoint = self.endpoint.clone();
        endpoint.address.set_port(port);
        endpoint
    }

    /// The port of this name.
    pub(crate) fn named_port(&self, name: &str) -> Option<u16> {
        let mut ports = self.ports.iter();
        ports.find(|(own, _)| **own == *name).map(|(_, port)| *port)
    }
}

/// The role that the labels name; none if it is none that we know.
pub(crate) fn role(labels: &Labels) -> Option<Role> {
    match labels.get(ROLE_LABEL) {
        None => Some(Role::default()),
        Some(value) => Role::from_label(value),
    }
}
