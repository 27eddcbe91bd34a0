//! The features of Gateway API that Forebay claims, by the names of the conformance suite, and
//! those that it does not, each with its reason. Together they are every feature that the suite of
//! [`VERSION`] knows.

/// The release of Gateway API whose features these are.
pub const VERSION: &str = "v1.6.1";

/// Metadata of a Gateway at what is made for it, in its own namespace: with
/// [`service_accounts`](crate::Settings::service_accounts) only.
pub(crate) const INFRASTRUCTURE_PROPAGATION: &str = "GatewayInfrastructurePropagation";

/// Features that the lowering and the data plane have, sorted: `status.supportedFeatures` of a
/// GatewayClass.
pub const SUPPORTED: &[&str] = &[
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    INFRASTRUCTURE_PROPAGATION,
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteRetryBackendTimeout",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "ReferenceGrant",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
];

/// Features that Forebay does not have, sorted, and why.
pub const UNSUPPORTED: &[(&str, &str)] = &[
    ("Mesh", NO_MESH),
    ("MeshClusterIPMatching", NO_MESH),
    ("MeshConsumerRoute", NO_MESH),
    ("MeshHTTPRouteBackendRequestHeaderModification", NO_MESH),
    ("MeshHTTPRouteNamedRouteRule", NO_MESH),
    ("MeshHTTPRouteQueryParamMatching", NO_MESH),
    ("MeshHTTPRouteRedirectPath", NO_MESH),
    ("MeshHTTPRouteRedirectPort", NO_MESH),
    ("MeshHTTPRouteRewritePath", NO_MESH),
    ("MeshHTTPRouteSchemeRedirect", NO_MESH),
    (
        "TCPRoute",
        "bytes without a name to route by are left to the load balancer",
    ),
    ("UDPRoute", "model servers are reached over TCP"),
];

const NO_MESH: &str = "Forebay is a gateway: traffic between pods does not pass through it";
