//! The kinds of object that are read, with the API groups and versions that they are read from.

use std::fmt;

/// A kind that the index reads, with its API group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `gateway.networking.k8s.io/v1`, cluster scope.
    GatewayClass,
    /// `gateway.networking.k8s.io/v1`.
    Gateway,
    /// `gateway.networking.k8s.io/v1`.
    ListenerSet,
    /// `gateway.networking.k8s.io/v1`.
    HttpRoute,
    /// `gateway.networking.k8s.io/v1`.
    GrpcRoute,
    /// `gateway.networking.k8s.io/v1`.
    TlsRoute,
    /// `gateway.networking.k8s.io/v1`.
    BackendTlsPolicy,
    /// `gateway.networking.k8s.io/v1` or `v1beta1`.
    ReferenceGrant,
    /// `forebay.dev/v1alpha1`.
    GatewayConfig,
    /// `inference.networking.k8s.io/v1`.
    InferencePool,
    /// `llm-d.ai/v1alpha2`.
    InferenceObjective,
    /// `inference.networking.x-k8s.io/v1alpha2`; gives way to one of `llm-d.ai`.
    LegacyInferenceObjective,
    /// `llm-d.ai/v1alpha2`.
    InferenceModelRewrite,
    /// `inference.networking.x-k8s.io/v1alpha2`; gives way to one of `llm-d.ai`.
    LegacyInferenceModelRewrite,
    /// `v1`.
    Service,
    /// `discovery.k8s.io/v1`.
    EndpointSlice,
    /// `v1`; of type `kubernetes.io/tls`.
    Secret,
    /// `v1`; for the key `ca.crt`.
    ConfigMap,
    /// `v1`.
    Pod,
    /// `v1`, cluster scope.
    Namespace,
}

/// Every kind with its `apiVersion` values and its `kind`.
const KINDS: [(Kind, &[&str], &str); 20] = {
    const GATEWAY: &[&str] = &["gateway.networking.k8s.io/v1"];
    const GRANT: &[&str] = &[
        "gateway.networking.k8s.io/v1",
        "gateway.networking.k8s.io/v1beta1",
    ];
    const OWN: &[&str] = &["forebay.dev/v1alpha1"];
    const POOL: &[&str] = &["inference.networking.k8s.io/v1"];
    const LLM_D: &[&str] = &["llm-d.ai/v1alpha2"];
    const LEGACY: &[&str] = &["inference.networking.x-k8s.io/v1alpha2"];
    const CORE: &[&str] = &["v1"];
    const SLICE: &[&str] = &["discovery.k8s.io/v1"];
    [
        (Kind::GatewayClass, GATEWAY, "GatewayClass"),
        (Kind::Gateway, GATEWAY, "Gateway"),
        (Kind::ListenerSet, GATEWAY, "ListenerSet"),
        (Kind::HttpRoute, GATEWAY, "HTTPRoute"),
        (Kind::GrpcRoute, GATEWAY, "GRPCRoute"),
        (Kind::TlsRoute, GATEWAY, "TLSRoute"),
        (Kind::BackendTlsPolicy, GATEWAY, "BackendTLSPolicy"),
        (Kind::ReferenceGrant, GRANT, "ReferenceGrant"),
        (Kind::GatewayConfig, OWN, "GatewayConfig"),
        (Kind::InferencePool, POOL, "InferencePool"),
        (Kind::InferenceObjective, LLM_D, "InferenceObjective"),
        (Kind::LegacyInferenceObjective, LEGACY, "InferenceObjective"),
        (Kind::InferenceModelRewrite, LLM_D, "InferenceModelRewrite"),
        (
            Kind::LegacyInferenceModelRewrite,
            LEGACY,
            "InferenceModelRewrite",
        ),
        (Kind::Service, CORE, "Service"),
        (Kind::EndpointSlice, SLICE, "EndpointSlice"),
        (Kind::Secret, CORE, "Secret"),
        (Kind::ConfigMap, CORE, "ConfigMap"),
        (Kind::Pod, CORE, "Pod"),
        (Kind::Namespace, CORE, "Namespace"),
    ]
};

impl Kind {
    /// The kind that `apiVersion` and `kind` of an object name.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        KINDS
            .iter()
            .find(|(_, versions, name)| *name == kind && versions.contains(&api_version))
            .map(|(kind, ..)| *kind)
    }

    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.iter().map(|(kind, ..)| *kind)
    }

    /// The `apiVersion` values that the kind is read from, the preferred one first.
    #[must_use]
    pub fn api_versions(self) -> &'static [&'static str] {
        let row = KINDS.iter().find(|(kind, ..)| *kind == self);
        row.map(|(_, versions, _)| *versions)
            .expect("every kind is listed")
    }

    /// The `kind` of the manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let row = KINDS.iter().find(|(kind, ..)| *kind == self);
        row.map(|(.., name)| *name).expect("every kind is listed")
    }

    /// Whether unknown fields are worth a remark. Core kinds have many fields that routing does not
    /// read, and the API server prunes what they do not have.
    pub(crate) fn is_read_whole(self) -> bool {
        !matches!(
            self,
            Self::Service
                | Self::EndpointSlice
                | Self::Secret
                | Self::ConfigMap
                | Self::Pod
                | Self::Namespace
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
