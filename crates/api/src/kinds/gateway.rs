//! `gateway.networking.k8s.io`: GatewayClass, Gateway, ReferenceGrant.

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
    pub(crate) parameters_ref: Option<Opaque>,
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
    pub(crate) allowed_listeners: Option<Opaque>,
    pub(crate) tls: Option<Opaque>,
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

/// `LocalParametersReference`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct ParametersRef {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
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
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.match_labels.iter().all(has)
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
