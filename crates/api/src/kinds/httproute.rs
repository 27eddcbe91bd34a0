//! `HTTPRoute`, `gateway.networking.k8s.io/v1`.

use serde::Deserialize;

use super::route::{ObjectRef, ParentRef, one_share, service};
use super::{Meta, Opaque};

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct HttpRoute {
    pub(crate) metadata: Meta,
    pub(crate) spec: HttpRouteSpec,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct HttpRouteSpec {
    pub(crate) parent_refs: Vec<ParentRef>,
    pub(crate) hostnames: Vec<String>,
    pub(crate) rules: Vec<HttpRule>,
    pub(crate) use_default_gateways: Option<Opaque>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct HttpRule {
    pub(crate) name: Option<String>,
    pub(crate) matches: Vec<HttpMatch>,
    pub(crate) filters: Vec<HttpFilter>,
    pub(crate) backend_refs: Vec<BackendRef>,
    pub(crate) timeouts: Option<HttpTimeouts>,
    pub(crate) retry: Option<HttpRetry>,
    pub(crate) session_persistence: Option<Opaque>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct HttpMatch {
    pub(crate) path: PathValue,
    pub(crate) method: Option<Method>,
    pub(crate) headers: Vec<NamedValue>,
    pub(crate) query_params: Vec<NamedValue>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct PathValue {
    #[serde(rename = "type")]
    pub(crate) kind: PathKind,
    pub(crate) value: String,
}

impl Default for PathValue {
    fn default() -> Self {
        Self {
            kind: PathKind::PathPrefix,
            value: "/".to_owned(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub(crate) enum PathKind {
    Exact,
    PathPrefix,
    RegularExpression,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

impl Method {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
        }
    }
}

/// A header or query parameter to match.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct NamedValue {
    #[serde(rename = "type", default)]
    pub(crate) kind: TextKind,
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub(crate) enum TextKind {
    #[default]
    Exact,
    RegularExpression,
}

/// A filter: its type, and the field of the same name.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HttpFilter {
    #[serde(rename = "type")]
    pub(crate) kind: FilterKind,
    pub(crate) request_header_modifier: Option<HeaderModifier>,
    pub(crate) response_header_modifier: Option<HeaderModifier>,
    pub(crate) request_mirror: Option<RequestMirror>,
    pub(crate) request_redirect: Option<RequestRedirect>,
    pub(crate) url_rewrite: Option<UrlRewrite>,
    pub(crate) cors: Option<Cors>,
    pub(crate) external_auth: Option<Opaque>,
    pub(crate) extension_ref: Option<Opaque>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub(crate) enum FilterKind {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestMirror,
    RequestRedirect,
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    #[serde(rename = "CORS")]
    Cors,
    ExternalAuth,
    ExtensionRef,
}

impl FilterKind {
    /// The value of `type` and the field that goes with it.
    pub(crate) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::RequestHeaderModifier => ("RequestHeaderModifier", "requestHeaderModifier"),
            Self::ResponseHeaderModifier => ("ResponseHeaderModifier", "responseHeaderModifier"),
            Self::RequestMirror => ("RequestMirror", "requestMirror"),
            Self::RequestRedirect => ("RequestRedirect", "requestRedirect"),
            Self::UrlRewrite => ("URLRewrite", "urlRewrite"),
            Self::Cors => ("CORS", "cors"),
            Self::ExternalAuth => ("ExternalAuth", "externalAuth"),
            Self::ExtensionRef => ("ExtensionRef", "extensionRef"),
        }
    }
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct HeaderModifier {
    pub(crate) set: Vec<HeaderValue>,
    pub(crate) add: Vec<HeaderValue>,
    pub(crate) remove: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct HeaderValue {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestMirror {
    pub(crate) backend_ref: ObjectRef,
    pub(crate) percent: Option<u32>,
    pub(crate) fraction: Option<Fraction>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct Fraction {
    pub(crate) numerator: u32,
    #[serde(default = "hundred")]
    pub(crate) denominator: u32,
}

fn hundred() -> u32 {
    100
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RequestRedirect {
    pub(crate) scheme: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) path: Option<PathModifier>,
    pub(crate) port: Option<u16>,
    pub(crate) status_code: Option<u16>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct UrlRewrite {
    pub(crate) hostname: Option<String>,
    pub(crate) path: Option<PathModifier>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PathModifier {
    #[serde(rename = "type")]
    pub(crate) kind: PathModifierKind,
    pub(crate) replace_full_path: Option<String>,
    pub(crate) replace_prefix_match: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub(crate) enum PathModifierKind {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Cors {
    pub(crate) allow_origins: Vec<String>,
    pub(crate) allow_credentials: bool,
    pub(crate) allow_methods: Vec<String>,
    pub(crate) allow_headers: Vec<String>,
    pub(crate) expose_headers: Vec<String>,
    pub(crate) max_age: Option<u32>,
}

/// `HTTPBackendRef` and `GRPCBackendRef`: an object reference with a share and filters. (Spelled out
/// rather than flattened: serde cannot report unknown fields through `flatten`.)
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct BackendRef {
    #[serde(default)]
    pub(crate) group: String,
    #[serde(default = "service")]
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) port: Option<u16>,
    #[serde(default = "one_share")]
    pub(crate) weight: u32,
    #[serde(default)]
    pub(crate) filters: Vec<HttpFilter>,
}

impl BackendRef {
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

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct HttpTimeouts {
    pub(crate) request: Option<String>,
    pub(crate) backend_request: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct HttpRetry {
    pub(crate) codes: Vec<u16>,
    pub(crate) attempts: Option<u32>,
    pub(crate) backoff: Option<String>,
}
