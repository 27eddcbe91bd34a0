//! The ready addresses behind a port of a Service: those of its EndpointSlices, or, without one,
//! those of the pods that it selects.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use forebay_model::ObjectName;
use forebay_model::endpoint::Labels;

use crate::index::objects::{Objects, in_namespace};
use crate::kinds::core::{EndpointSlice, PortOrName, Service, ServicePort};

/// Ready addresses of port `number` of a Service, in order; empty if there is no such port.
pub(crate) fn of_service(objects: &Objects, name: &ObjectName, number: u16) -> Vec<SocketAddr> {
    let Some(service) = objects.services.get(name) else {
        return Vec::new();
    };
    let external = service.spec.kind.as_deref() == Some("ExternalName");
    let port = service.spec.ports.iter().find(|p| p.port == number);
    let Some(port) = port.filter(|_| !external) else {
        return Vec::new();
    };
    let found = match objects.slices_of(name) {
        Some(slices) => of_slices(slices, port),
        None => of_pods(objects, name, service, port),
    };
    found.into_iter().collect()
}

/// Whether a change of a pod with these labels may change the addresses of a Service.
pub(crate) fn follows(objects: &Objects, service: &ObjectName, labels: &Labels) -> bool {
    let object = objects.services.get(service);
    object.is_some_and(|object| selects(object, labels)) && objects.slices_of(service).is_none()
}

fn selects(service: &Service, labels: &Labels) -> bool {
    let selector = &service.spec.selector;
    !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// Without an EndpointSlice, which in files nobody writes for us, the selector is followed here.
fn of_pods(
    objects: &Objects,
    name: &ObjectName,
    service: &Service,
    port: &ServicePort,
) -> BTreeSet<SocketAddr> {
    let pods = in_namespace(&objects.pods, &name.namespace).map(|(_, pod)| pod);
    pods.filter(|pod| pod.endpoint.ready && selects(service, &pod.endpoint.labels))
        .filter_map(|pod| {
            let number = match &port.target_port {
                None => port.port,
                Some(PortOrName::Port(number)) => *number,
                Some(PortOrName::Name(name)) => pod.named_port(name)?,
            };
            Some(pod.at(number).address)
        })
        .collect()
}

fn of_slices<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
) -> BTreeSet<SocketAddr> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let mut found = BTreeSet::new();
    for slice in slices {
        let port = slice
            .ports
            .iter()
            .find(|p| p.name.as_deref().unwrap_or_default() == wanted);
        let Some(number) = port.and_then(|p| p.port) else {
            continue;
        };
        let ready = slice
            .endpoints
            .iter()
            .filter(|e| e.conditions.ready != Some(false));
        let addresses = ready.flat_map(|endpoint| &endpoint.addresses);
        let addresses = addresses.filter_map(|ip| ip.parse::<IpAddr>().ok());
        found.extend(addresses.map(|ip| SocketAddr::new(ip, number)));
    }
    found
}
