//! Plugin types that have no equivalent here, with the reason and what to do instead. Everything
//! else of llm-d's picker is in `parts.rs`.

/// Why a plugin type is refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    /// The type.
    pub(super) kind: &'static str,
    /// What is missing.
    pub(super) why: &'static str,
    /// What to do.
    pub(super) cure: &'static str,
}

const PAIRING: &str = "prefill and decode of one request are not paired here";
const PAIRING_CURE: &str = "let a coordinator ask for each with EPP-Profile (header-profile-handler), or serve both in one pod";
const CLUSTERS: &str = "endpoints are pods here, not clusters";
const CLUSTERS_CURE: &str = "run one picker in each cluster";
const MEDIA: &str = "it is not known which images, sounds and videos an endpoint has encoded";
const MEDIA_CURE: &str = "leave it out; what prompts have in common is followed by their bytes";
const PEERS: &str = "pods are not told of each other's caches";
const PEERS_CURE: &str = "leave it out; requests go to the pods that hold their prompts";
const EVICTION: &str = "requests under way are not ended for others";
const EVICTION_CURE: &str = "leave it out; give such requests a negative priority and a small band";
const OLD_FILTER: &str = "it is of the first releases of the Inference Extension";
const OLD_FILTER_CURE: &str =
    "use queue-scorer, kv-cache-utilization-scorer and lora-affinity-scorer, or utilization-filter";
const OUTSIDE: &str = "what the request means is not judged";
const LEAVE_OUT: &str = "leave it out";

const fn no(kind: &'static str, why: &'static str, cure: &'static str) -> Refused {
    Refused { kind, why, cure }
}

/// Those that are known by name.
pub(super) const REFUSED: &[Refused] = &[
    no("disagg-profile-handler", PAIRING, PAIRING_CURE),
    no("pd-profile-handler", PAIRING, PAIRING_CURE),
    no("disagg-headers-handler", PAIRING, PAIRING_CURE),
    no("prefill-header-handler", PAIRING, PAIRING_CURE),
    no("header-phase-profile-handler", PAIRING, PAIRING_CURE),
    no("always-disagg-pd-decider", PAIRING, PAIRING_CURE),
    no("prefix-based-pd-decider", PAIRING, PAIRING_CURE),
    no("always-disagg-multimodal-decider", PAIRING, PAIRING_CURE),
    no("topology-stamp-handler", PAIRING, PAIRING_CURE),
    no(
        "data-parallel-profile-handler",
        "ranks are not addressed by a field of the request",
        "list the port of every rank in the pool's targetPorts; each is an endpoint",
    ),
    no("disaggregatedset-rollout-screener", PAIRING, PAIRING_CURE),
    no(
        "latency-observation-scorer",
        "it is not known",
        "use latency-scorer, which learns from what was observed",
    ),
    no("mm-embeddings-cache-scorer", MEDIA, MEDIA_CURE),
    no("mm-embeddings-cache-producer", MEDIA, MEDIA_CURE),
    no("p2p-source-producer", PEERS, PEERS_CURE),
    no("multicluster-queue-scorer", CLUSTERS, CLUSTERS_CURE),
    no(
        "multicluster-kv-cache-utilization-scorer",
        CLUSTERS,
        CLUSTERS_CURE,
    ),
    no("multicluster-prefix-cache-scorer", CLUSTERS, CLUSTERS_CURE),
    no("multicluster-topology-scorer", CLUSTERS, CLUSTERS_CURE),
    no(
        "multicluster-session-affinity-filter",
        CLUSTERS,
        CLUSTERS_CURE,
    ),
    no("multicluster-metrics-data-source", CLUSTERS, CLUSTERS_CURE),
    no("multicluster-metrics-extractor", CLUSTERS, CLUSTERS_CURE),
    no("multicluster-file-discovery", CLUSTERS, CLUSTERS_CURE),
    no(
        "multicluster-prefix-cache-producer",
        CLUSTERS,
        CLUSTERS_CURE,
    ),
    no(
        "burst-prefix-cache-producer",
        "requests are not held back to be matched with each other",
        "leave it out; a prompt counts as cached where it was sent from that moment on",
    ),
    no(
        "session-state-producer",
        "nothing is kept of sessions but where they were",
        LEAVE_OUT,
    ),
    no(
        "program-aware-fairness",
        "tenants take turns; what they used before is not weighed",
        "use round-robin-fairness-policy",
    ),
    no(
        "slo-deadline-ordering-policy",
        "requests of one tenant are not ordered by deadlines",
        "use fcfs-ordering-policy, with a band for each urgency",
    ),
    no(
        "soft-reflective-ceiling-policy",
        "ceilings do not follow the saturation",
        "use priority-holdback-policy",
    ),
    no("sheddable-eviction-filter", EVICTION, EVICTION_CURE),
    no("priority-then-time-eviction-order", EVICTION, EVICTION_CURE),
    no(
        "request-attribute-reporter",
        "no CEL expression is evaluated over usage",
        "read usage from the access log or from metrics",
    ),
    no("low-queue-filter", OLD_FILTER, OLD_FILTER_CURE),
    no("least-queue-filter", OLD_FILTER, OLD_FILTER_CURE),
    no("least-kv-cache-filter", OLD_FILTER, OLD_FILTER_CURE),
    no("lora-affinity-filter", OLD_FILTER, OLD_FILTER_CURE),
    no("decision-tree-filter", OLD_FILTER, OLD_FILTER_CURE),
    no("outlen-bucket", OUTSIDE, LEAVE_OUT),
    no(
        "dcgm-data-source",
        "the metrics of GPUs are not read",
        "score by what model servers report: queue-scorer, kv-cache-utilization-scorer",
    ),
    no(
        "dcgm-extractor",
        "the metrics of GPUs are not read",
        "score by what model servers report: queue-scorer, kv-cache-utilization-scorer",
    ),
    no(
        "file-discovery",
        "endpoints are not read from a list of its form",
        "describe the pool and its pods in manifests and give them with --config",
    ),
    no(
        "vllmgrpc-parser",
        "bodies of gRPC are not read",
        "use passthrough-parser, which picks by load alone",
    ),
    no(
        "vertexai-parser",
        "bodies of gRPC are not read",
        "use passthrough-parser, which picks by load alone",
    ),
    no(
        "header-based-testing-filter",
        "it serves tests of gateways and trusts every client",
        LEAVE_OUT,
    ),
    no(
        "destination-endpoint-served-verifier",
        "it serves tests of gateways",
        LEAVE_OUT,
    ),
    no(
        "lmetric-scorer",
        "it is not known",
        "use token-load-scorer, or prefix-cache-scorer and queue-scorer",
    ),
];
