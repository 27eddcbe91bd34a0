//! References to parameters of a GatewayClass or Gateway. Ours are of the kind `GatewayConfig`.

use forebay_model::ObjectName;

use super::references::kind_of;
use crate::index::objects::Objects;
use crate::kinds::OWN_GROUP;
use crate::kinds::gateway::{Gateway, GatewayClass, ParametersRef};
use crate::reason;
use crate::status::Fault;

/// Why the parameters of a class do not hold.
pub(super) fn fault_of_class(class: &GatewayClass) -> Option<Fault> {
    class.spec.parameters_ref.as_ref().and_then(fault)
}

/// Why the parameters of a Gateway, or those of its class, do not hold.
pub(super) fn fault_of_gateway(
    objects: &Objects,
    _name: &ObjectName,
    gateway: &Gateway,
) -> Option<Fault> {
    let own = gateway.spec.infrastructure.parameters_ref.as_ref();
    let class = objects
        .classes
        .get(gateway.spec.gateway_class_name.as_str());
    let ours = class.filter(|class| class.spec.controller_name == objects.settings.controller);
    own.and_then(fault).or_else(|| {
        let fault = fault_of_class(ours?)?;
        let message = format!("the parameters of its class: {}", fault.message);
        Some(Fault::new(fault.reason, message))
    })
}

fn fault(to: &ParametersRef) -> Option<Fault> {
    if (to.group.as_str(), to.kind.as_str()) == (OWN_GROUP, "GatewayConfig") {
        return None;
    }
    let kind = kind_of(&to.group, &to.kind);
    let message = format!("{kind} holds no parameters of ours; use a GatewayConfig of {OWN_GROUP}");
    Some(Fault::new(reason::INVALID_PARAMETERS, message))
}
