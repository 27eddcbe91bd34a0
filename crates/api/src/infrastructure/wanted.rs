//! What the Gateways of an index want.

use crate::index::objects::Objects;
use crate::infrastructure::Wanted;
use crate::kinds::gateway::Gateway;
use crate::object::Kind;

/// Protocols of listeners that a Service can lead to.
const PROTOCOLS: [&str; 3] = ["HTTP", "HTTPS", "TLS"];

/// Whether a change of an object of this kind may change what Gateways want.
#[must_use]
pub fn concerns(kind: Kind) -> bool {
    matches!(kind, Kind::GatewayClass | Kind::Gateway)
}

/// What each Gateway of ours wants, by name. One that is being deleted wants nothing.
pub(crate) fn wanted(objects: &Objects) -> Vec<Wanted> {
    let ours = objects.gateways.iter().filter(|(_, gateway)| {
        gateway.metadata.deletion_timestamp.is_none() && is_ours(objects, gateway)
    });
    ours.map(|(name, gateway)| {
        let spec = &gateway.spec;
        let listeners = spec.listeners.iter();
        let listeners = listeners.filter(|l| PROTOCOLS.contains(&l.protocol.as_str()));
        Wanted {
            gateway: name.clone(),
            uid: String::new(),
            class: spec.gateway_class_name.clone(),
            ports: listeners.map(|listener| listener.port).collect(),
            labels: spec.infrastructure.labels.clone(),
            annotations: spec.infrastructure.annotations.clone(),
            address: address(gateway),
            service_type: None,
            data_plane: None,
        }
    })
    .collect()
}

fn is_ours(objects: &Objects, gateway: &Gateway) -> bool {
    let (settings, class) = (&objects.settings, &gateway.spec.gateway_class_name);
    let object = objects.classes.get(class.as_str());
    settings.classes.contains(class)
        || object.is_some_and(|class| class.spec.controller_name == settings.controller)
}

/// The IP address that a Gateway asks for, if it is one.
fn address(gateway: &Gateway) -> Option<String> {
    match gateway.spec.addresses.as_slice() {
        [one] if one.kind == "IPAddress" && !one.value.is_empty() => Some(one.value.clone()),
        _ => None,
    }
}
