//! Where a Gateway is reached: the ports that its listeners bind and the addresses that clients
//! use. Both are as written in files; in a cluster a Service leads to the process, and tells them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use forebay_model::ObjectName;

use super::parameters::is_dedicated;
use crate::index::objects::Objects;
use crate::infrastructure::label_value;
use crate::kinds::core::{PortOrName, Service};
use crate::kinds::gateway::{Gateway, WantedAddress};
use crate::reason;
use crate::settings::{GATEWAY_NAME_LABEL, GATEWAY_NAMESPACE_LABEL, MANAGED_BY_LABEL};
use crate::status::{Address, Fault};

/// Where the ports of a Gateway are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Place {
    /// They are this process's own, as written, which all such Gateways share.
    #[default]
    Host,
    /// A Service leads to ports of this process.
    Service,
    /// A Service leads to other processes, which serve this Gateway alone.
    Elsewhere,
}

impl Place {
    fn of(objects: &Objects, name: &ObjectName, gateway: &Gateway) -> Self {
        let settings = &objects.settings;
        if settings.only_gateway.is_none() && is_dedicated(objects, name, gateway) {
            Self::Elsewhere
        } else if settings.infrastructure_namespace.is_some() {
            Self::Service
        } else {
            Self::Host
        }
    }
}

/// How a Gateway is reached, or why it is not.
#[derive(Debug, Default)]
pub(super) struct Reach {
    pub(super) place: Place,
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

/// The Services that lead to Gateways, by their namespace and the Gateway as labels name it.
pub(super) struct Services<'a> {
    by_gateway: BTreeMap<(Arc<str>, ObjectName), &'a Service>,
}

impl<'a> Services<'a> {
    /// Finds them by their labels. Of several for one Gateway, the first by name counts.
    pub(super) fn new(objects: &'a Objects) -> Self {
        let mut by_gateway = BTreeMap::new();
        for (name, service) in &objects.services {
            if let Some(gateway) = gateway_of(service) {
                let place = (Arc::clone(&name.namespace), gateway);
                by_gateway.entry(place).or_insert(service);
            }
        }
        Self { by_gateway }
    }

    /// How `gateway` is reached.
    pub(super) fn reach(&self, objects: &Objects, name: &ObjectName, gateway: &Gateway) -> Reach {
        let settings = &objects.settings;
        let wanted = &gateway.spec.addresses;
        let place = Place::of(objects, name, gateway);
        let namespace = match place {
            Place::Host => None,
            Place::Service => settings.infrastructure_namespace.as_deref(),
            Place::Elsewhere => Some(&*name.namespace),
        };
        let mut reach = match namespace {
            None => Reach {
                addresses: settings.addresses.iter().map(|a| Address::of(a)).collect(),
                ..Reach::default()
            },
            Some(namespace) => match self.service(namespace, name) {
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
        reach.place = place;
        reach.refused = unsupported(wanted);
        let known = !reach.addresses.is_empty();
        if reach.unprogrammed.is_none() && known {
            reach.unprogrammed = unusable(wanted, &reach.addresses);
        }
        reach
    }

    fn service(&self, namespace: &str, gateway: &ObjectName) -> Option<&'a Service> {
        let labelled = ObjectName::new(&gateway.namespace, &label_value(&gateway.name));
        let place = (Arc::from(namespace), labelled);
        self.by_gateway.get(&place).copied()
    }
}

/// The Gateway that `service` was made for, if it was for one, as its labels name it.
pub(crate) fn gateway_of(service: &Service) -> Option<ObjectName> {
    let labels = &service.metadata.labels;
    let gateway = ObjectName::new(
        labels.get(GATEWAY_NAMESPACE_LABEL)?,
        labels.get(GATEWAY_NAME_LABEL)?,
    );
    let ours = labels.get(MANAGED_BY_LABEL).map(String::as_str) == Some("forebay");
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
        unprogrammed: unassigned,
        ..Reach::default()
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
