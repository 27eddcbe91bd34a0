//! References from routes and Gateways to what serves or proves: pools, Services, Secrets.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forebay_model::route::{Broken, ServicePort as PortName, ServiceTarget, Target};
use forebay_model::snapshot::Certificate;
use forebay_model::{AppProtocol, ObjectName, Pool};

use super::pools::address;
use crate::index::{Objects, in_namespace};
use crate::kinds::core::{EndpointSlice, PortOrName, Service, ServicePort};
use crate::kinds::gateway::SecretRef;
use crate::kinds::httproute::ObjectRef;
use crate::kinds::{GATEWAY_GROUP, POOL_GROUP};
use crate::reason;
use crate::settings::Origin;
use crate::status::Fault;

/// Answered for references that do not hold, as Gateway API asks.
pub(super) const BROKEN_STATUS: u16 = 500;

/// Follows backend references and remembers what it found.
pub(super) struct Backends<'a> {
    objects: &'a Objects,
    pools: &'a HashMap<ObjectName, Arc<Pool>>,
    slices: HashMap<ObjectName, Vec<&'a EndpointSlice>>,
    services: HashMap<PortName, Result<Arc<ServiceTarget>, Fault>>,
}

impl<'a> Backends<'a> {
    pub(super) fn new(objects: &'a Objects, pools: &'a HashMap<ObjectName, Arc<Pool>>) -> Self {
        let mut slices: HashMap<ObjectName, Vec<_>> = HashMap::new();
        for (name, slice) in &objects.slices {
            if let Some(service) = slice.metadata.labels.get("kubernetes.io/service-name") {
                let service = ObjectName::new(&name.namespace, service);
                slices.entry(service).or_default().push(slice);
            }
        }
        Self {
            objects,
            pools,
            slices,
            services: HashMap::new(),
        }
    }

    /// What an HTTPRoute of `namespace` refers to.
    pub(super) fn resolve(&mut self, namespace: &str, to: &ObjectRef) -> Result<Target, Fault> {
        let name = ObjectName::new(to.namespace.as_deref().unwrap_or(namespace), &to.name);
        let kind = (to.group.as_str(), to.kind.as_str());
        let known = [("", "Service"), (POOL_GROUP, "InferencePool")];
        if !known.contains(&kind) {
            let message = format!(
                "{}/{} is no backend; use a Service or an InferencePool of {POOL_GROUP}",
                to.group, to.kind
            );
            return Err(Fault::new(reason::INVALID_KIND, message));
        }
        permit(self.objects, ("HTTPRoute", namespace), kind, &name)?;
        match kind {
            ("", _) => {
                let port = to.port.unwrap_or_default();
                self.service(PortName { name, port }).map(Target::Service)
            }
            _ => match self.pools.get(&name) {
                Some(_) => Ok(Target::Pool(name)),
                None => Err(not_found(&format!("InferencePool {name}"))),
            },
        }
    }

    /// The Services that were found.
    pub(super) fn into_services(self) -> HashMap<PortName, Arc<ServiceTarget>> {
        let found = self.services.into_iter();
        found.filter_map(|(of, to)| Some((of, to.ok()?))).collect()
    }

    fn service(&mut self, of: PortName) -> Result<PortName, Fault> {
        if let Some(known) = self.services.get(&of) {
            return known.as_ref().map(|_| of).map_err(Fault::clone);
        }
        let found = self.find_service(&of).map(Arc::new);
        let answer = found.as_ref().map(|_| of.clone()).map_err(Fault::clone);
        self.services.insert(of, found);
        answer
    }

    fn find_service(&self, of: &PortName) -> Result<ServiceTarget, Fault> {
        let (name, number) = (&of.name, of.port);
        let objects = self.objects;
        let missing = || not_found(&format!("Service {name}"));
        let service = objects.services.get(name).ok_or_else(missing)?;
        if service.spec.kind.as_deref() == Some("ExternalName") {
            let message = format!(
                "Service {name} is an ExternalName, which could reach anything; \
                 write an EndpointSlice with the addresses instead"
            );
            return Err(Fault::new(reason::UNSUPPORTED_VALUE, message));
        }
        let port = service.spec.ports.iter().find(|p| p.port == number);
        let port = port.ok_or_else(|| {
            let has: Vec<_> = service
                .spec
                .ports
                .iter()
                .map(|p| p.port.to_string())
                .collect();
            let message = format!(
                "Service {name} has no port {number}, only {}",
                has.join(", ")
            );
            Fault::new(reason::BACKEND_NOT_FOUND, message)
        })?;
        let endpoints = match self.slices.get(name) {
            Some(slices) => addresses_of_slices(slices, port),
            None => self.addresses_of_pods(name, service, port),
        };
        Ok(ServiceTarget {
            of: of.clone(),
            protocol: protocol(name, port)?,
            tls: None,
            endpoints: endpoints.into_iter().collect(),
        })
    }

    /// Without an EndpointSlice, which in files nobody writes for us, the selector is followed here.
    fn addresses_of_pods(
        &self,
        name: &ObjectName,
        service: &Service,
        port: &ServicePort,
    ) -> BTreeSet<SocketAddr> {
        let selector = &service.spec.selector;
        if selector.is_empty() {
            return BTreeSet::new();
        }
        let assume_ready = self.objects.settings.origin == Origin::Files;
        let pods = in_namespace(&self.objects.pods, &name.namespace).map(|(_, pod)| pod);
        pods.filter(|pod| {
            let labels = &pod.metadata.labels;
            pod.is_ready(assume_ready) && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
        })
        .filter_map(|pod| {
            let number = match &port.target_port {
                None => port.port,
                Some(PortOrName::Port(number)) => *number,
                Some(PortOrName::Name(name)) => pod.named_port(name)?,
            };
            Some(SocketAddr::new(address(pod)?, number))
        })
        .collect()
    }
}

fn addresses_of_slices(slices: &[&EndpointSlice], port: &ServicePort) -> BTreeSet<SocketAddr> {
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

fn protocol(name: &ObjectName, port: &ServicePort) -> Result<AppProtocol, Fault> {
    match port.app_protocol.as_deref() {
        None | Some("http" | "kubernetes.io/ws") => Ok(AppProtocol::Http),
        Some("kubernetes.io/h2c" | "grpc") => Ok(AppProtocol::H2c),
        Some(other) => {
            let message = format!(
                "Service {name} port {} has appProtocol {other}; http and kubernetes.io/h2c are spoken",
                port.port
            );
            Err(Fault::new(reason::UNSUPPORTED_PROTOCOL, message))
        }
    }
}

/// The certificate that a listener of a Gateway in `namespace` refers to.
pub(super) fn certificate(
    objects: &Objects,
    namespace: &str,
    to: &SecretRef,
) -> Result<Arc<Certificate>, Fault> {
    let fault = |message| Fault::new(reason::INVALID_CERTIFICATE_REF, message);
    let kind = (to.group.as_str(), to.kind.as_str());
    if kind != ("", "Secret") {
        let message = format!(
            "{}/{} holds no certificate; use a Secret",
            to.group, to.kind
        );
        return Err(fault(message));
    }
    let name = ObjectName::new(to.namespace.as_deref().unwrap_or(namespace), &to.name);
    permit(objects, ("Gateway", namespace), kind, &name)?;
    let missing = || fault(format!("Secret {name} does not exist"));
    let secret = objects.secrets.get(&name).ok_or_else(missing)?;
    if secret.kind != "kubernetes.io/tls" {
        let message = format!(
            "Secret {name} has type {:?}, not kubernetes.io/tls",
            secret.kind
        );
        return Err(fault(message));
    }
    let pem = |key: &str, what: &str| {
        let written = secret
            .string_data
            .get(key)
            .map(|text| text.clone().into_bytes());
        let decode = |text: &String| STANDARD.decode(text.trim().replace(['\n', ' '], ""));
        let bytes = written.or_else(|| decode(secret.data.get(key)?).ok());
        let bytes = bytes.filter(|bytes| is_pem(bytes, what));
        let help = || {
            fault(format!(
                "Secret {name} has no PEM {} in {key}",
                what.to_lowercase()
            ))
        };
        bytes.map(Arc::from).ok_or_else(help)
    };
    Ok(Arc::new(Certificate {
        chain_pem: pem("tls.crt", "CERTIFICATE")?,
        key_pem: pem("tls.key", "PRIVATE KEY")?,
        secret: name,
    }))
}

/// Whether `bytes` begin a PEM block whose label ends in `what` and whose body is base64. Whether
/// certificate and key belong together is seen by the TLS library that loads them.
fn is_pem(bytes: &[u8], what: &str) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let block = || {
        let (_, block) = text.split_once("-----BEGIN ")?;
        let (label, rest) = block.split_once("-----")?;
        let (body, _) = rest.split_once("-----END ")?;
        let body: String = body.split_whitespace().collect();
        Some(label.ends_with(what) && !body.is_empty() && STANDARD.decode(body).is_ok())
    };
    block().unwrap_or(false)
}

/// Whether a reference from (kind, namespace) to another namespace is granted there.
pub(super) fn permit(
    objects: &Objects,
    (from_kind, from_namespace): (&str, &str),
    (to_group, to_kind): (&str, &str),
    to: &ObjectName,
) -> Result<(), Fault> {
    if *to.namespace == *from_namespace {
        return Ok(());
    }
    let mut grants = in_namespace(&objects.grants, &to.namespace).map(|(_, grant)| &grant.spec);
    let granted = grants.any(|grant| {
        let from = grant.from.iter().any(|from| {
            (
                from.group.as_str(),
                from.kind.as_str(),
                from.namespace.as_str(),
            ) == (GATEWAY_GROUP, from_kind, from_namespace)
        });
        from && grant.to.iter().any(|own| {
            (own.group.as_str(), own.kind.as_str()) == (to_group, to_kind)
                && own.name.as_deref().is_none_or(|name| *name == *to.name)
        })
    });
    if granted {
        return Ok(());
    }
    let message = format!(
        "{to_kind} {to} is in another namespace; a ReferenceGrant there must allow {from_kind} of {from_namespace}"
    );
    Err(Fault::new(reason::REF_NOT_PERMITTED, message))
}

fn not_found(what: &str) -> Fault {
    let message = format!("{what} does not exist; check its name and namespace");
    Fault::new(reason::BACKEND_NOT_FOUND, message)
}

/// A target that answers for `fault`.
pub(super) fn broken(fault: &Fault) -> Target {
    Target::Broken(Arc::new(Broken {
        status: BROKEN_STATUS,
        reason: fault.reason,
        message: fault.message.clone(),
    }))
}
