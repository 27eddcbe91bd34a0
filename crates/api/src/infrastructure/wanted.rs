//! What the Gateways of an index want.

use std::collections::{BTreeMap, BTreeSet};

use forebay_model::ObjectName;

use super::{DataPlane, Wanted};
use crate::index::objects::Objects;
use crate::kinds::config::{GatewayConfigSpec, Placement};
use crate::kinds::gateway::Gateway;
use crate::lower::parameters;
use crate::object::Kind;

/// Pods of a Gateway's own, if nothing is said of their number.
const REPLICAS: u32 = 2;

/// Whether a change of an object of this kind may change what Gateways want.
#[must_use]
pub fn concerns(kind: Kind) -> bool {
    // Sets add listeners, and namespaces decide which of them are let in.
    matches!(
        kind,
        Kind::GatewayClass
            | Kind::Gateway
            | Kind::ListenerSet
            | Kind::GatewayConfig
            | Kind::Namespace
    )
}

/// What each Gateway of ours wants, by name; `opened` are those Gateways and the ports that they open.
/// One that is being deleted wants nothing.
pub(crate) fn wanted(
    objects: &Objects,
    opened: &BTreeMap<ObjectName, BTreeSet<u16>>,
) -> Vec<Wanted> {
    let gateways = opened.iter().filter_map(|(name, ports)| {
        let gateway = objects.gateways.get(name)?;
        let stays = gateway.metadata.deletion_timestamp.is_none();
        stays.then_some((name, gateway, ports))
    });
    gateways
        .map(|(name, gateway, ports)| {
            let parameters = parameters::of_gateway(objects, name, gateway);
            let undecided = parameters.is_err();
            let config = parameters.ok().flatten().map(|config| &config.spec);
            let infrastructure = &gateway.spec.infrastructure;
            Wanted {
                gateway: name.clone(),
                uid: gateway.metadata.uid.clone(),
                class: gateway.spec.gateway_class_name.clone(),
                ports: ports.clone(),
                labels: infrastructure.labels.clone(),
                annotations: infrastructure.annotations.clone(),
                address: address(gateway),
                service_type: config.and_then(|c| Some(c.service_type?.as_str().to_owned())),
                data_plane: config.and_then(data_plane),
                undecided,
            }
        })
        .collect()
}

fn data_plane(config: &GatewayConfigSpec) -> Option<DataPlane> {
    (config.placement == Placement::Dedicated).then(|| DataPlane {
        replicas: config.replicas.unwrap_or(REPLICAS),
        image: config.image.clone(),
        resources: config.resources.clone(),
    })
}

/// The IP address that a Gateway asks for, if it is one.
fn address(gateway: &Gateway) -> Option<String> {
    match gateway.spec.addresses.as_slice() {
        [one] if one.kind == "IPAddress" && !one.value.is_empty() => Some(one.value.clone()),
        _ => None,
    }
}
