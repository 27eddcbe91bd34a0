//! `gateway.networking.k8s.io`: GatewayClass, Gateway, ListenerSet, ReferenceGrant.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{GATEWAY_GROUP, Meta, Opaque};

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct GatewayClass {
    pub(crate) metadata: Meta,
    pub(crate) spec: GatewayClassSpec,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayClassSpec {
    pub(crate) controller_name: String,
    pub(crate) parameters_ref: Option<ParametersRef>,
    // For people; read so that it is not reported as unknown.
    pub(crate) description: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct Gateway {
    pub(crate) metadata: Meta,
    pub(crate) spec: GatewaySpec,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewaySpec {
    pub(crate) gateway_class_name: String,
    pub(crate) listeners: Vec<Listener>,
    #[serde(default)]
    pub(crate) addresses: Vec<WantedAddress>,
    #[serde(default)]
    pub(crate) infrastructure: Infrastructure,
    #[serde(default)]
    pub(crate) allowed_listeners: AllowedListeners,
    #[serde(default)]
    pub(crate) tls: GatewayTls,
    pub(crate) default_scope: Option<Opaque>,
}

/// `GatewaySpecAddress`; without a value, any address of the type.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct WantedAddress {
    #[serde(rename = "type", default = "ip_address")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) value: String,
}

fn ip_address() -> String {
    "IPAddress".to_owned()
}

/// `spec.infrastructure`: what is to be on the objects that are made for the Gateway.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Infrastructure {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) parameters_ref: Option<ParametersRef>,
}

/// `LocalParametersReference`, and `ParametersReference` of a class, which may have a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct ParametersRef {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AllowedListeners {
    pub(crate) namespaces: ListenerNamespaces,
}

/// As [`RouteNamespaces`], but for the default.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct ListenerNamespaces {
    pub(crate) from: From,
    pub(crate) selector: Option<LabelSelector>,
}

impl Default for ListenerNamespaces {
    fn default() -> Self {
        Self {
            from: From::None,
            selector: None,
        }
    }
}

/// `spec.tls` of a Gateway.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct GatewayTls {
    pub(crate) backend: GatewayBackendTls,
    pub(crate) frontend: Option<FrontendTls>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct GatewayBackendTls {
    pub(crate) client_certificate_ref: Option<SecretRef>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct FrontendTls {
    #[serde(rename = "default")]
    pub(crate) every_port: TlsConfig,
    pub(crate) per_port: Vec<TlsPortConfig>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct TlsPortConfig {
    pub(crate) port: u16,
    pub(crate) tls: TlsConfig,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TlsConfig {
    pub(crate) validation: Option<ClientValidation>,
}

/// `FrontendTLSValidation`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClientValidation {
    pub(crate) ca_certificate_refs: Vec<CaRef>,
    #[serde(default)]
    pub(crate) mode: ClientMode,
}

/// `ObjectReference`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct CaRef {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub(crate) enum ClientMode {
    #[default]
    AllowValidOnly,
    AllowInsecureFallback,
}

/// Listeners that are added to a Gateway by others than its owner.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct ListenerSet {
    pub(crate) metadata: Meta,
    pub(crate) spec: ListenerSetSpec,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListenerSetSpec {
    pub(crate) parent_ref: ParentGateway,
    pub(crate) listeners: Vec<Listener>,
}

/// `ParentGatewayReference`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct ParentGateway {
    #[serde(default = "gateway_group")]
    pub(crate) group: String,
    #[serde(default = "gateway_kind")]
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listener {
    pub(crate) name: String,
    pub(crate) hostname: Option<String>,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    pub(crate) tls: Option<ListenerTls>,
    #[serde(default)]
    pub(crate) allowed_routes: AllowedRoutes,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ListenerTls {
    pub(crate) mode: TlsMode,
    pub(crate) certificate_refs: Vec<SecretRef>,
    pub(crate) options: Option<Opaque>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub(crate) enum TlsMode {
    #[default]
    Terminate,
    Passthrough,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct SecretRef {
    #[serde(default)]
    pub(crate) group: String,
    #[serde(default = "secret")]
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
}

fn secret() -> String {
    "Secret".to_owned()
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AllowedRoutes {
    pub(crate) namespaces: RouteNamespaces,
    pub(crate) kinds: Vec<RouteKind>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RouteNamespaces {
    pub(crate) from: From,
    pub(crate) selector: Option<LabelSelector>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub(crate) enum From {
    All,
    #[default]
    Same,
    Selector,
    None,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct RouteKind {
    #[serde(default = "gateway_group")]
    pub(crate) group: String,
    pub(crate) kind: String,
}

pub(crate) fn gateway_group() -> String {
    GATEWAY_GROUP.to_owned()
}

pub(crate) fn gateway_kind() -> String {
    "Gateway".to_owned()
}

/// `metav1.LabelSelector`; empty selects everything.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LabelSelector {
    pub(crate) match_labels: BTreeMap<String, String>,
    pub(crate) match_expressions: Vec<LabelRequirement>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct LabelRequirement {
    pub(crate) key: String,
    pub(crate) operator: LabelOperator,
    #[serde(default)]
    pub(crate) values: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub(crate) enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    /// Whether every requirement makes sense. A selector of which one does not selects nothing.
    pub(crate) fn is_sound(&self) -> bool {
        self.match_expressions.iter().all(|wanted| {
            let set = matches!(wanted.operator, LabelOperator::In | LabelOperator::NotIn);
            set != wanted.values.is_empty()
        })
    }

    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.is_sound()
            && self.match_labels.iter().all(has)
            && self.match_expressions.iter().all(|wanted| {
                let value = labels.get(&wanted.key);
                let listed = value.is_some_and(|value| wanted.values.contains(value));
                match wanted.operator {
                    LabelOperator::In => listed,
                    LabelOperator::NotIn => !listed,
                    LabelOperator::Exists => value.is_some(),
                    LabelOperator::DoesNotExist => value.is_none(),
                }
            })
    }
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct ReferenceGrant {
    pub(crate) metadata: Meta,
    pub(crate) spec: ReferenceGrantSpec,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct ReferenceGrantSpec {
    pub(crate) from: Vec<GrantFrom>,
    pub(crate) to: Vec<GrantTo>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct GrantFrom {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub(crate) struct GrantTo {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
}
