//! Endpoints: one serving address of one pod.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::policy::Proximity;

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

impl Endpoint {
    /// Whether it does this part of an inference: by its label, and without one as whole requests
    /// go, which are decoded wherever they were sent.
    #[must_use]
    pub fn does(&self, stage: Stage) -> bool {
        Role::does_by_labels(&self.labels, stage)
    }
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

/// The parts of an inference that an endpoint does, from the label `llm-d.ai/role`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Role {
    /// Prefill and decode.
    #[default]
    Both,
    /// Prefill only.
    Prefill,
    /// Decode only.
    Decode,
    /// Encoding of images and the like only.
    Encode,
    /// Encoding and prefill.
    EncodePrefill,
    /// All of it.
    All,
}

/// One part of an inference.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Encoding of images and the like.
    Encode,
    /// Computing the prompt.
    Prefill,
    /// Generating tokens.
    Decode,
}

impl Role {
    /// The label of a pod that names its role.
    pub const LABEL: &str = "llm-d.ai/role";

    /// The role that a value of the label names.
    #[must_use]
    pub fn from_label(value: &str) -> Option<Self> {
        Some(match value {
            "both" | "prefill-decode" => Self::Both,
            "prefill" => Self::Prefill,
            "decode" => Self::Decode,
            "encode" => Self::Encode,
            "encode-prefill" => Self::EncodePrefill,
            "encode-prefill-decode" => Self::All,
            _ => return None,
        })
    }

    /// As the label has it.
    #[must_use]
    pub fn as_label(self) -> &'static str {
        match self {
            Self::Both => "prefill-decode",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Encode => "encode",
            Self::EncodePrefill => "encode-prefill",
            Self::All => "encode-prefill-decode",
        }
    }

    /// Whether a pod with these labels does this part; see [`Endpoint::does`].
    #[must_use]
    pub fn does_by_labels(labels: &Labels, stage: Stage) -> bool {
        match labels.get(Self::LABEL) {
            None => stage == Stage::Decode,
            Some(value) => Self::from_label(value).is_some_and(|role| role.does(stage)),
        }
    }

    /// Whether it does this part.
    #[must_use]
    pub fn does(self, stage: Stage) -> bool {
        match stage {
            Stage::Encode => matches!(self, Self::Encode | Self::EncodePrefill | Self::All),
            Stage::Prefill => !matches!(self, Self::Encode | Self::Decode),
            Stage::Decode => matches!(self, Self::Both | Self::Decode | Self::All),
        }
    }
}

/// Where an endpoint sits, as far as labels tell. Absent parts are unknown, not equal.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Topology {
    /// `topology.kubernetes.io/region`.
    pub region: Option<Arc<str>>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// The rack: `topology.kubernetes.io/rack`, or `cloud.google.com/gce-topology-subblock`.
    pub rack: Option<Arc<str>>,
    /// The node's name.
    pub host: Option<Arc<str>>,
    /// NIC rail, when a device driver reported it.
    pub rail: Option<Arc<str>>,
    /// Placement block.
    pub block: Option<Arc<str>>,
    /// NVLink domain.
    pub nvlink_domain: Option<Arc<str>>,
}

impl Topology {
    /// How close the two are, if anything that is known of both says so. The same host is in the
    /// same rack, zone and region, and so on.
    #[must_use]
    pub fn proximity(&self, other: &Self) -> Option<Proximity> {
        let same = |part: fn(&Self) -> &Option<Arc<str>>| {
            let (own, theirs) = (part(self), part(other));
            own.as_deref().is_some_and(|own| !own.is_empty()) && own == theirs
        };
        if same(|t| &t.host) || same(|t| &t.nvlink_domain) {
            Some(Proximity::Host)
        } else if same(|t| &t.rack) || same(|t| &t.block) {
            Some(Proximity::Rack)
        } else if same(|t| &t.zone) {
            Some(Proximity::Zone)
        } else if same(|t| &t.region) {
            Some(Proximity::Region)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_do_the_parts_that_they_name() {
        use Stage::{Decode, Encode, Prefill};
        let check = |label: &str, parts: &[Stage]| {
            let role = Role::from_label(label).expect("a role");
            for stage in [Encode, Prefill, Decode] {
                assert_eq!(
                    role.does(stage),
                    parts.contains(&stage),
                    "{label} {stage:?}"
                );
            }
            assert_eq!(Role::from_label(role.as_label()), Some(role));
        };
        check("encode", &[Encode]);
        check("prefill", &[Prefill]);
        check("decode", &[Decode]);
        check("encode-prefill", &[Encode, Prefill]);
        check("prefill-decode", &[Prefill, Decode]);
        check("both", &[Prefill, Decode]);
        check("encode-prefill-decode", &[Encode, Prefill, Decode]);
        assert_eq!(Role::from_label("train"), None);
    }

    #[test]
    fn what_is_unknown_of_two_places_is_not_equal() {
        let at = |host: &str, rack: &str, zone: &str| {
            let part = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
            Topology {
                host: part(host),
                rack: part(rack),
                zone: part(zone),
                ..Topology::default()
            }
        };
        let here = at("h1", "r1", "z1");
        assert_eq!(here.proximity(&at("h1", "", "")), Some(Proximity::Host));
        assert_eq!(here.proximity(&at("h2", "r1", "z1")), Some(Proximity::Rack));
        assert_eq!(here.proximity(&at("h2", "", "z1")), Some(Proximity::Zone));
        assert_eq!(here.proximity(&at("h2", "r2", "z2")), None);
        assert_eq!(at("", "", "").proximity(&at("", "", "")), None);
    }
}
