//! References from routes to what serves them: pools and the ports of Services.
//!
//! What is found out here is everything but the endpoints: those come and go by themselves (see
//! `endpoints`), and no route changes with them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use forebay_model::route::{BackendTls, Broken, Carries, ServicePort, Target};
use forebay_model::snapshot::Certificate;
use forebay_model::{AppProtocol, ObjectName};

use super::policies::Policies;
use super::references::{Look, kind_of};
use crate::kinds::POOL_GROUP;
use crate::kinds::core::{self, Service};
use crate::kinds::route::ObjectRef;
use crate::object::Kind;
use crate::reason;
use crate::status::Fault;

/// Answered for references that do not hold, as Gateway API asks.
const BROKEN_STATUS: u16 = 500;
/// The same for gRPC, whose clients are to see `UNAVAILABLE`.
const BROKEN_GRPC_STATUS: u16 = 503;

/// Who refers to a backend.
#[derive(Clone, Copy)]
pub(super) struct User<'a> {
    /// Kind of the route.
    pub(super) kind: Kind,
    pub(super) namespace: &'a str,
    pub(super) carries: Carries,
    /// The Gateway that the route is lowered for and its client certificate, if it has one.
    pub(super) client: Option<(&'a ObjectName, &'a Arc<Certificate>)>,
}

/// What a route refers to, whether it can be served or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Uses {
    pub(super) pools: BTreeSet<ObjectName>,
    pub(super) services: BTreeSet<(ObjectName, u16)>,
}

/// How the endpoints of a Service's port are reached.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Plan {
    pub(crate) protocol: AppProtocol,
    pub(crate) tls: Option<Arc<BackendTls>>,
}

/// Follows references and remembers what it found.
pub(super) struct Backends<'a> {
    look: &'a Look<'a>,
    policies: &'a Policies<'a>,
    found: HashMap<(ObjectName, u16, Carries), Result<Plan, Fault>>,
    plans: HashMap<ServicePort, Plan>,
}

impl<'a> Backends<'a> {
    pub(super) fn new(look: &'a Look<'a>, policies: &'a Policies<'a>) -> Self {
        Self {
            look,
            policies,
            found: HashMap::new(),
            plans: HashMap::new(),
        }
    }

    /// The ports of Services that some route leads to.
    pub(super) fn into_plans(self) -> HashMap<ServicePort, Plan> {
        self.plans
    }

    /// What `user` refers to.
    pub(super) fn resolve(
        &mut self,
        user: &User<'_>,
        to: &ObjectRef,
        uses: &mut Uses,
    ) -> Result<Target, Fault> {
        let name = ObjectName::new(to.namespace.as_deref().unwrap_or(user.namespace), &to.name);
        let kind = (to.group.as_str(), to.kind.as_str());
        let pools = matches!(user.carries, Carries::Http | Carries::Grpc);
        let is_pool = match kind {
            ("", "Service") => false,
            (POOL_GROUP, "InferencePool") if pools => true,
            _ => return Err(no_backend(to, pools)),
        };
        let from = (user.kind.as_str(), user.namespace);
        self.look.permit(from, kind, &name)?;
        if is_pool {
            let known = self.look.objects.pools.contains_key(&name);
            uses.pools.insert(name.clone());
            return match known {
                true => Ok(Target::Pool(name)),
                false => Err(not_found(&format!("InferencePool {name}"))),
            };
        }
        let port = to.port.unwrap_or_default();
        uses.services.insert((name.clone(), port));
        self.service(user, name, port).map(Target::Service)
    }

    fn service(
        &mut self,
        user: &User<'_>,
        name: ObjectName,
        port: u16,
    ) -> Result<ServicePort, Fault> {
        let key = (name, port, user.carries);
        let found = match self.found.get(&key) {
            Some(known) => known.clone(),
            None => {
                let found = self.plan(&key.0, port, user.carries);
                self.found.insert(key.clone(), found.clone());
                found
            }
        };
        let mut plan = found?;
        let mut of = ServicePort {
            carries: user.carries,
            ..ServicePort::new(key.0, port)
        };
        if let (Some(tls), Some((gateway, certificate))) = (&plan.tls, user.client) {
            of.gateway = Some(gateway.clone());
            plan.tls = Some(Arc::new(BackendTls {
                client: Some(Arc::clone(certificate)),
                ..BackendTls::clone(tls)
            }));
        }
        if !self.plans.contains_key(&of) {
            self.plans.insert(of.clone(), plan);
        }
        Ok(of)
    }

    fn plan(&self, name: &ObjectName, number: u16, carries: Carries) -> Result<Plan, Fault> {
        let missing = || not_found(&format!("Service {name}"));
        let service = self.look.service(name).ok_or_else(missing)?;
        let port = port_of(name, service, number)?;
        let tls = match carries {
            Carries::Tls => None,
            Carries::Http | Carries::Grpc | Carries::Stream => {
                self.policies.of(name, port.name.as_deref()).transpose()?
            }
        };
        Ok(Plan {
            protocol: protocol(name, port, carries, tls.is_some())?,
            tls,
        })
    }
}

/// The port `number` of a Service that may serve.
pub(super) fn port_of<'s>(
    name: &ObjectName,
    service: &'s Service,
    number: u16,
) -> Result<&'s core::ServicePort, Fault> {
    if service.spec.kind.as_deref() == Some("ExternalName") {
        let message = format!(
            "Service {name} is an ExternalName, which could reach anything; \
             write an EndpointSlice with the addresses instead"
        );
        return Err(Fault::new(reason::UNSUPPORTED_VALUE, message));
    }
    let port = service.spec.ports.iter().find(|p| p.port == number);
    port.ok_or_else(|| {
        let has = service.spec.ports.iter().map(|p| p.port.to_string());
        let has: Vec<_> = has.collect();
        let message = format!(
            "Service {name} has no port {number}, only {}",
            has.join(", ")
        );
        Fault::new(reason::BACKEND_NOT_FOUND, message)
    })
}

/// How a port is spoken to: by its `appProtocol`, or else as the route asks. Names without a slash
/// are IANA's, in which case does not matter.
fn protocol(
    name: &ObjectName,
    port: &core::ServicePort,
    carries: Carries,
    tls: bool,
) -> Result<AppProtocol, Fault> {
    let grpc = match carries {
        // Bytes are not looked into.
        Carries::Stream | Carries::Tls => return Ok(AppProtocol::Http),
        Carries::Http => false,
        Carries::Grpc => true,
    };
    let as_routed = if grpc {
        AppProtocol::H2c
    } else {
        AppProtocol::Http
    };
    let declared = port.app_protocol.as_deref().unwrap_or_default();
    let unsupported = |what: &str| {
        let message = format!(
            "Service {name} port {} has appProtocol {declared}; {what}",
            port.port
        );
        Err(Fault::new(reason::UNSUPPORTED_PROTOCOL, message))
    };
    let lower = match declared.contains('/') {
        true => declared.to_owned(),
        false => declared.to_ascii_lowercase(),
    };
    match lower.as_str() {
        "" | "http" => Ok(as_routed),
        "kubernetes.io/h2c" | "grpc" => Ok(AppProtocol::H2c),
        "kubernetes.io/ws" | "kubernetes.io/wss" if grpc => {
            unsupported("a GRPCRoute needs http, https or kubernetes.io/h2c")
        }
        "kubernetes.io/ws" => Ok(AppProtocol::Http),
        "https" | "kubernetes.io/wss" if !tls => unsupported(
            "a BackendTLSPolicy must say whom to trust, or its requests would go in cleartext",
        ),
        "https" => Ok(as_routed),
        "kubernetes.io/wss" => Ok(AppProtocol::Http),
        _ => unsupported(
            "http, https, kubernetes.io/h2c, kubernetes.io/ws and kubernetes.io/wss are spoken",
        ),
    }
}

fn no_backend(to: &ObjectRef, pools: bool) -> Fault {
    let or_pool = match pools {
        true => format!(" or an InferencePool of {POOL_GROUP}"),
        false => String::new(),
    };
    let kind = kind_of(&to.group, &to.kind);
    let message = format!("{kind} is no backend; use a Service{or_pool}");
    Fault::new(reason::INVALID_KIND, message)
}

pub(super) fn not_found(what: &str) -> Fault {
    let message = format!("{what} does not exist; check its name and namespace");
    Fault::new(reason::BACKEND_NOT_FOUND, message)
}

/// A target that answers for `fault`.
pub(super) fn broken(fault: &Fault, carries: Carries) -> Target {
    Target::Broken(Arc::new(Broken {
        status: match carries {
            Carries::Grpc => BROKEN_GRPC_STATUS,
            Carries::Http | Carries::Stream | Carries::Tls => BROKEN_STATUS,
        },
        reason: fault.reason,
        message: fault.message.clone(),
    }))
}
