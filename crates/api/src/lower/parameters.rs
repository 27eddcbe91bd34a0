//! Parameters of a GatewayClass or Gateway: objects of the kind `GatewayConfig`.

use forebay_model::ObjectName;

use super::references::kind_of;
use crate::index::objects::Objects;
use crate::kinds::OWN_GROUP;
use crate::kinds::config::{GatewayConfig, Placement};
use crate::kinds::gateway::{Gateway, GatewayClass, ParametersRef};
use crate::object::Kind;
use crate::reason;
use crate::settings::Origin;
use crate::status::{Condition, Fault, ObjectStatus};

/// Why the parameters of a class do not hold.
pub(super) fn fault_of_class(objects: &Objects, class: &GatewayClass) -> Option<Fault> {
    of_class(objects, class).err()
}

/// The parameters of a Gateway: its own, or else those of its class. Why, if they do not hold.
pub(crate) fn of_gateway<'a>(
    objects: &'a Objects,
    name: &ObjectName,
    gateway: &Gateway,
) -> Result<Option<&'a GatewayConfig>, Fault> {
    if let Some(own) = &gateway.spec.infrastructure.parameters_ref {
        return find(objects, Some(&name.namespace), own);
    }
    let class = objects
        .classes
        .get(gateway.spec.gateway_class_name.as_str());
    let ours = class.filter(|class| class.spec.controller_name == objects.settings.controller);
    let Some(class) = ours else { return Ok(None) };
    of_class(objects, class).map_err(|fault| {
        let message = format!("the parameters of its class: {}", fault.message);
        Fault::new(fault.reason, message)
    })
}

/// Whether a Gateway is to have pods of its own. Of files this process serves all.
pub(crate) fn is_dedicated(objects: &Objects, name: &ObjectName, gateway: &Gateway) -> bool {
    let config = of_gateway(objects, name, gateway).unwrap_or_default();
    objects.settings.origin == Origin::Cluster
        && config.is_some_and(|config| config.spec.placement == Placement::Dedicated)
}

fn of_class<'a>(
    objects: &'a Objects,
    class: &GatewayClass,
) -> Result<Option<&'a GatewayConfig>, Fault> {
    match &class.spec.parameters_ref {
        Some(to) => find(objects, to.namespace.as_deref(), to),
        None => Ok(None),
    }
}

fn find<'a>(
    objects: &'a Objects,
    namespace: Option<&str>,
    to: &ParametersRef,
) -> Result<Option<&'a GatewayConfig>, Fault> {
    let fault = |message| Err(Fault::new(reason::INVALID_PARAMETERS, message));
    if (to.group.as_str(), to.kind.as_str()) != (OWN_GROUP, "GatewayConfig") {
        let kind = kind_of(&to.group, &to.kind);
        return fault(format!(
            "{kind} holds no parameters of ours; use a GatewayConfig of {OWN_GROUP}"
        ));
    }
    let Some(namespace) = namespace else {
        return fault("a GatewayConfig has a namespace: write parametersRef.namespace".to_owned());
    };
    let name = ObjectName::new(namespace, &to.name);
    match objects.configs.get(&name) {
        Some(config) => Ok(Some(config)),
        // What it would say is of no use without a cluster.
        None if objects.settings.origin == Origin::Files => Ok(None),
        None => fault(format!("GatewayConfig {name} does not exist")),
    }
}

/// Every GatewayConfig that was read is as it should be.
pub(super) fn statuses(objects: &Objects) -> impl Iterator<Item = ObjectStatus> {
    objects.configs.iter().map(|(name, config)| ObjectStatus {
        conditions: vec![Condition::of(reason::ACCEPTED, None)],
        ..ObjectStatus::new(Kind::GatewayConfig, name, config.metadata.generation)
    })
}
