//! Objects to model, in one pass that also computes conditions. It cannot fail: what refers to
//! nothing keeps its share of traffic as a broken target, and is named in a problem.
//!
//! `pools` makes pools, `backends` follows references, `rules` makes a route's rules, `listeners`
//! decides which listeners serve, and `attach` brings routes to them.

mod attach;
mod backends;
mod listeners;
pub(crate) mod pools;
pub(crate) mod reach;
pub(crate) mod rules;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use forebay_model::route::{ServicePort, ServiceTarget};
use forebay_model::snapshot::{Port, Problem};
use forebay_model::{ObjectName, Pool, Snapshot};

use crate::index::Objects;
use crate::object::Kind;
use crate::reason;
use crate::status::{Condition, Fault, ObjectStatus};

/// What routing is made of, and what is said about it.
pub(crate) struct Lowered {
    pub(crate) ports: BTreeMap<u16, Port>,
    pub(crate) services: HashMap<ServicePort, Arc<ServiceTarget>>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) statuses: Vec<ObjectStatus>,
}

/// Lowers all but the pools. Parts that come out equal to those of `last` are shared with it.
pub(crate) fn lower(
    objects: &Objects,
    pools: &HashMap<ObjectName, Arc<Pool>>,
    last: &Snapshot,
) -> Lowered {
    let mut notes = Notes::default();
    let mut statuses = classes(objects);
    let mut gateways = listeners::gather(objects, &mut notes);
    let mut backends = backends::Backends::new(objects, pools);
    statuses.extend(attach::attach(
        objects,
        &mut gateways,
        &mut backends,
        &mut notes,
    ));
    let (ports, of_gateways) = listeners::finish(objects, gateways, last);
    statuses.extend(of_gateways);
    statuses.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    Lowered {
        ports,
        services: backends.into_services(),
        problems: notes.problems,
        statuses,
    }
}

fn classes(objects: &Objects) -> Vec<ObjectStatus> {
    let ours = objects
        .classes
        .values()
        .filter(|class| class.spec.controller_name == objects.settings.controller);
    ours.map(|class| {
        let name = class.metadata.key();
        ObjectStatus {
            conditions: vec![Condition::of(reason::ACCEPTED, None)],
            ..ObjectStatus::new(Kind::GatewayClass, &name, class.metadata.generation)
        }
    })
    .collect()
}

/// Collects problems.
#[derive(Default)]
pub(crate) struct Notes {
    problems: Vec<Problem>,
}

impl Notes {
    fn add(&mut self, kind: Kind, name: &ObjectName, field: impl Into<String>, fault: &Fault) {
        self.problems.push(Problem {
            object: format!("{kind} {name}"),
            field: field.into(),
            reason: fault.reason,
            message: fault.message.clone(),
        });
    }
}
