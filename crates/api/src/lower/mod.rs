//! Objects to model, in passes that also compute conditions. They cannot fail: what refers to
//! nothing keeps its share of traffic as a broken target, and is named in a problem.
//!
//! There are three parts, which change at different paces (see `index`): `routing` is everything
//! that says where a request goes; `pools` makes one pool; `endpoints` finds the addresses behind a
//! Service. Within routing, `gateways` and `listeners` decide what is listened for, `references` and
//! `backends` follow references, `policies` are those for TLS towards backends, `rules` makes a
//! route's rules, `attach` brings them to listeners, and `conditions` says how Gateways fare.

mod attach;
mod backends;
mod conditions;
pub(crate) mod directives;
pub(crate) mod endpoints;
mod gateways;
mod hosts;
mod listeners;
pub(crate) mod parameters;
mod policies;
pub(crate) mod pools;
pub(crate) mod prepared;
pub(crate) mod reach;
mod references;
mod rules;
mod trust;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use forebay_model::route::ServicePort;
use forebay_model::snapshot::{Port, Problem};
use forebay_model::{ObjectName, Snapshot};

use crate::index::objects::Objects;
use crate::object::Kind;
use crate::status::{Fault, ObjectStatus};

pub(crate) use backends::Plan;
pub(crate) use references::Seen;

/// What routing is made of, and what is said about it.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    pub(crate) ports: BTreeMap<u16, Port>,
    /// The ports of Services that some route leads to, and how their endpoints are reached.
    pub(crate) services: HashMap<ServicePort, Plan>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) statuses: Vec<ObjectStatus>,
    /// The ports that each Gateway of ours would open.
    pub(crate) opened: BTreeMap<ObjectName, BTreeSet<u16>>,
    pub(crate) seen: Seen,
}

/// Lowers all but pools and endpoints. Parts that come out equal to those of `last` are shared with
/// it.
pub(crate) fn routing(objects: &Objects, last: &Snapshot) -> Routing {
    let mut notes = Notes::default();
    let look = references::Look::new(objects);
    let mut statuses = conditions::classes(objects);
    statuses.extend(parameters::statuses(objects));
    let mut gateways = gateways::gather(&look, &mut notes);
    let policies = policies::Policies::new(&look, &mut notes);
    let mut backends = backends::Backends::new(&look, &policies);
    let attached = attach::attach(&look, &mut gateways, &mut backends, &mut notes);
    let services = backends.into_plans();
    statuses.extend(attached.statuses);
    statuses.extend(policies.statuses(&look, &attached.services, &mut notes));
    statuses.extend(pools::statuses(&look, &attached.pools, &mut notes));
    gateways::bind(&mut gateways);
    statuses.extend(gateways.iter().flat_map(conditions::gateway));
    let opened = gateways.iter().map(|g| (g.name.clone(), g.ports()));
    Routing {
        opened: opened.collect(),
        ports: gateways::serve(gateways, last),
        services,
        problems: notes.problems,
        statuses,
        seen: look.into_seen(),
    }
}

/// Collects problems.
#[derive(Default)]
pub(crate) struct Notes {
    problems: Vec<Problem>,
}

impl Notes {
    fn add(&mut self, kind: Kind, name: &ObjectName, field: impl Into<String>, fault: &Fault) {
        let object = match kind {
            Kind::GatewayClass | Kind::Namespace => format!("{kind} {}", name.name),
            _ => format!("{kind} {name}"),
        };
        self.problems.push(Problem {
            object,
            field: field.into(),
            reason: fault.reason,
            message: fault.message.clone(),
        });
    }
}
