//! What the Gateways of an index want.

use std::collections::{BTreeMap, BTreeSet};

use forebay_model::ObjectName;

use crate::index::objects::Objects;
use crate::infrastructure::Wanted;
use crate::kinds::gateway::Gateway;
use crate::object::Kind;

/// Whether a change of an object of this kind may change what Gateways want.
#[must_use]
pub fn concerns(kind: Kind) -> bool {
    // A namespace by its labels, which say whose ListenerSets a Gateway lets in.
    matches!(
        kind,
        Kind::GatewayClass | Kind::Gateway | Kind::ListenerSet | Kind::Namespace
    )
}

/// What each Gateway of ours wants, by name. One that is being deleted wants nothing.
pub(crate) fn wanted(
    objects: &Objects,
    ports: &BTreeMap<ObjectName, BTreeSet<u16>>,
) -> Vec<Wanted> {
    let ours = objects.gateways.iter().filter(|(_, gateway)| {
        gateway.metadata.deletion_timestamp.is_none() && is_ours(objects, gateway)
    });
    ours.map(|(name, gateway)| {
        let spec = &gateway.spec;
        Wanted {
            gateway: name.clone(),
            uid: String::new(),
            class: spec.gateway_class_name.clone(),
            ports: ports.get(name).cloned().unwrap_or_default(),
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
