//! Where a Gateway is reached: the ports that its listeners bind and the addresses that clients
//! use. Both are as written in files; in a cluster a Service leads to the process, and tells them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use forebay_model::ObjectName;

use crate::index::objects::Objects;
use crate::kinds::core::{PortOrName, Service};
use crate::kinds::gateway::{Gateway, WantedAddress};
use crate::reason;
use crate::settings::{GATEWAY_NAME_LABEL, GATEWAY_NAMESPACE_LABEL, MANAGED_BY_LABEL, Settings};
use crate::status::{Address, Fault};

/// How a Gateway is reached, or why it is not.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// The port to bind for each port of the Service; `None`: ports are bound as written.
    ports: Option<BTreeMap<u16, u16>>,
    pub(super) addresses: Vec<Address>,
    /// Why the Gateway cannot be accepted.
    pub(super) refused: Option<Fault>,
    /// Why it cannot be programmed, now or ever.
    pub(super) unprogrammed: Option<Fault>,
}

impl Reach {
    /// The port to bind for a listener of `port`, if it is known.
    pub(super) fn bound(&self, port: u16) -> Option<u16> {
        match &self.ports {
            None => Some(port),
            Some(ports) => ports.get(&port).copied(),
        }
    }
}

/// The Services that lead to Gateways.
pub(super) struct Services<'a> {
    by_gateway: BTreeMap<ObjectName, &'a Service>,
}

impl<'a> Services<'a> {
    /// Finds them by their labels. Of several for one Gateway, the first by name counts.
    pub(super) fn new(objects: &'a Objects) -> Self {
        let mut by_gateway = BTreeMap::new();
        if !objects.settings.shares_ports() {
            for (name, service) in &objects.services {
                if let Some(gateway) = gateway_of(&objects.settings, name, service) {
                    by_gateway.entry(gateway).or_insert(service);
                }
            }
        }
        Self { by_gateway }
    }

    /// How `gateway` is reached.
    pub(super) fn reach(&self, settings: &Settings, name: &ObjectName, gateway: &Gateway) -> Reach {
        let wanted = &gateway.spec.addresses;
        let mut reach = match settings.service_namespace(&name.namespace) {
            None => Reach {
                addresses: settings.addresses.iter().map(|a| Address::of(a)).collect(),
                ..Reach::default()
            },
            Some(namespace) => match self.by_gateway.get(name) {
                Some(service) => of_service(service),
                None => Reach {
                    ports: Some(BTreeMap::new()),
                    unprogrammed: Some(Fault::new(
                        reason::PENDING,
                        format!("there is no Service for it in namespace {namespace} yet"),
                    )),
                    ..Reach::default()
                },
            },
        };
        reach.refused = unsupported(wanted);
        let known = !reach.addresses.is_empty();
        if reach.unprogrammed.is_none() && known {
            reach.unprogrammed = unusable(wanted, &reach.addresses);
        }
        reach
    }
}

/// The Gateway that `service` was made for, if it was for one and lies where it should.
pub(crate) fn gateway_of(
    settings: &Settings,
    name: &ObjectName,
    service: &Service,
) -> Option<ObjectName> {
    let labels = &service.metadata.labels;
    let gateway = ObjectName::new(
        labels.get(GATEWAY_NAMESPACE_LABEL)?,
        labels.get(GATEWAY_NAME_LABEL)?,
    );
    let ours = labels.get(MANAGED_BY_LABEL).map(String::as_str) == Some("forebay")
        && settings.service_namespace(&gateway.namespace) == Some(&*name.namespace);
    ours.then_some(gateway)
}

fn of_service(service: &Service) -> Reach {
    let ports = service.spec.ports.iter().filter_map(|port| {
        let target = match &port.target_port {
            None => port.port,
            Some(PortOrName::Port(number)) => *number,
            // A name would be that of a port of the process, which has none of its own.
            Some(PortOrName::Name(_)) => return None,
        };
        Some((port.port, target))
    });
    let addresses = addresses(service);
    let unassigned = addresses.is_empty().then(|| {
        let message = format!("Service {} has no address yet", service.metadata.key());
        Fault::new(reason::ADDRESS_NOT_ASSIGNED, message)
    });
    Reach {
        ports: Some(ports.collect()),
        addresses,
        refused: None,
        unprogrammed: unassigned,
    }
}

/// What a load balancer gave the Service, or else the address within the cluster.
fn addresses(service: &Service) -> Vec<Address> {
    let ingress = &service.status.load_balancer.ingress;
    let given = ingress
        .iter()
        .filter_map(|i| i.ip.as_ref().or(i.hostname.as_ref()));
    let given: Vec<_> = given.map(|address| Address::of(address)).collect();
    let balanced = service.spec.kind.as_deref() == Some("LoadBalancer");
    if balanced || !given.is_empty() {
        return given;
    }
    let own = service.spec.cluster_ip.as_deref();
    let own = own.filter(|ip| ip.parse::<IpAddr>().is_ok());
    own.map(Address::of).into_iter().collect()
}

/// Why addresses of these types cannot be had at all.
fn unsupported(wanted: &[WantedAddress]) -> Option<Fault> {
    let known = |a: &&WantedAddress| matches!(a.kind.as_str(), "IPAddress" | "Hostname");
    let odd = wanted.iter().find(|address| !known(address))?;
    let message = format!(
        "addresses of type {} are not supported; use IPAddress or Hostname",
        odd.kind
    );
    Some(Fault::new(reason::UNSUPPORTED_ADDRESS, message))
}

/// Why the addresses that were asked for are not those that there are. One without a value is any.
fn unusable(wanted: &[WantedAddress], given: &[Address]) -> Option<Fault> {
    let named: Vec<_> = wanted.iter().filter(|a| !a.value.is_empty()).collect();
    let fault = |message| Some(Fault::new(reason::ADDRESS_NOT_USABLE, message));
    if let [first, .., last] = named.as_slice() {
        return fault(format!(
            "one address can be asked for, not several ({} to {})",
            first.value, last.value
        ));
    }
    let same = |a: &str, b: &str| match (a.parse::<IpAddr>(), b.parse::<IpAddr>()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    };
    let missing = named
        .iter()
        .find(|wanted| !given.iter().any(|own| same(&own.value, &wanted.value)))?;
    let given: Vec<_> = given.iter().map(|address| address.value.as_str()).collect();
    fault(format!(
        "address {} cannot be had; the Gateway has {}",
        missing.value,
        given.join(", ")
    ))
}
