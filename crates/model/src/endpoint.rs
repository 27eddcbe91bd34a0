//! Endpoints: one serving address of one pod.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Labels of a pod, ordered so that two equal sets compare and print alike.
pub type Labels = BTreeMap<String, String>;

/// One serving address. A pod with several target ports (data-parallel ranks) is several of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Where requests go; unique within a pool.
    pub address: SocketAddr,
    /// The pod's name, for people.
    pub pod: Arc<str>,
    /// The pod's labels.
    pub labels: Arc<Labels>,
    /// The engine if the label `llm-d.ai/engine-type` names it; otherwise it is detected from the
    /// first scrape.
    pub engine: Option<Engine>,
    /// What the endpoint is for.
    pub role: Role,
    /// Where the endpoint sits.
    pub topology: Topology,
    /// False while the pod is terminating or not ready: no new requests, running streams go on.
    pub ready: bool,
}

/// A family of model servers, which decides how metrics are read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Engine {
    /// vLLM and those that speak its metric names, our simulator included.
    Vllm,
    /// SGLang.
    Sglang,
    /// `trtllm-serve`.
    TensorRtLlm,
    /// Triton with the TensorRT-LLM backend.
    TritonTensorRtLlm,
    /// Triton with any other backend.
    Triton,
}

impl Engine {
    /// The engine that a value of the label `llm-d.ai/engine-type` names.
    #[must_use]
    pub fn from_label(value: &str) -> Option<Self> {
        Some(match value {
            "vllm" => Self::Vllm,
            "sglang" => Self::Sglang,
            "trtllm-serve" | "trtllm" | "tensorrt-llm" => Self::TensorRtLlm,
            "triton-tensorrt-llm" => Self::TritonTensorRtLlm,
            "triton" => Self::Triton,
            _ => return None,
        })
    }
}

/// The part of an inference that an endpoint does, from the label `llm-d.ai/role`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Role {
    /// Prefill and decode.
    #[default]
    Both,
    /// Prefill only.
    Prefill,
    /// Decode only.
    Decode,
}

/// Where an endpoint sits, as far as labels tell. Absent parts are unknown, not equal.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Topology {
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// The node's name.
    pub host: Option<Arc<str>>,
    /// NIC rail, when a device driver reported it.
    pub rail: Option<Arc<str>>,
    /// Placement block.
    pub block: Option<Arc<str>>,
    /// NVLink domain.
    pub nvlink_domain: Option<Arc<str>>,
}
