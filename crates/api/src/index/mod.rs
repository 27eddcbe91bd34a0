//! Objects in, whole snapshots out.
//!
//! `apply` and `delete` take events in any order and never fail: what an object refers to may come
//! later. [`Index::publish`] lowers what changed to a [`Snapshot`] with the statuses that belong to
//! it, and what did not change keeps its `Arc`, so that the runtime sees at a glance what did.
//!
//! What an event can touch decides what is lowered again: a pod, the pools that select it; a slice,
//! the ports of its Service; an objective, its pool. Everything else is routing, which is lowered as
//! a whole, but only for objects that it has looked at. A test compares the outcome with that of a
//! fresh index after events at random.

pub(crate) mod objects;
pub(crate) mod pods;
mod selections;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use forebay_model::endpoint::Labels;
use forebay_model::route::{ServicePort, ServiceTarget};
use forebay_model::snapshot::Problem;
use forebay_model::{ObjectName, Snapshot};

use crate::infrastructure::{self, Wanted};
use crate::lower::directives::{self, Directives};
use crate::lower::{self, Plan, Routing, endpoints, pools};
use crate::object::{Kind, Object};
use crate::reason;
use crate::settings::Settings;
use crate::status::ObjectStatus;
use objects::{Change, Objects};
use selections::Selections;

/// Problems that a snapshot keeps; of more, the rest is counted in one last problem.
pub const PROBLEMS_MAX: usize = 1_000;

/// A snapshot and the statuses of the objects that it was made from.
#[derive(Clone, Debug)]
pub struct Publication {
    /// What to serve.
    pub snapshot: Arc<Snapshot>,
    /// What to say about it.
    pub statuses: Arc<[ObjectStatus]>,
}

/// Every object, and what was last made of them.
#[derive(Debug)]
pub struct Index {
    objects: Objects,
    selections: Selections,
    source_problems: Vec<Problem>,
    directives: Directives,
    pool_problems: BTreeMap<ObjectName, Vec<Problem>>,
    routing: Routing,
    /// The ports that routes lead to, by Service.
    ports_of: BTreeMap<ObjectName, Vec<ServicePort>>,
    stale: Stale,
    last: Publication,
}

/// What must be lowered again.
#[derive(Debug, Default)]
struct Stale {
    routing: bool,
    directives: bool,
    pools: BTreeSet<ObjectName>,
    services: BTreeSet<ObjectName>,
    problems: bool,
}

impl Stale {
    fn is_empty(&self) -> bool {
        let flags = self.routing || self.directives || self.problems;
        !flags && self.pools.is_empty() && self.services.is_empty()
    }
}

impl Index {
    /// An index without objects.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            objects: Objects::new(settings),
            selections: Selections::default(),
            source_problems: Vec::new(),
            directives: Directives::default(),
            pool_problems: BTreeMap::new(),
            routing: Routing::default(),
            ports_of: BTreeMap::new(),
            stale: Stale::default(),
            last: Publication {
                snapshot: Arc::default(),
                statuses: Arc::default(),
            },
        }
    }

    /// Adds an object, or replaces the one of its kind and name.
    pub fn apply(&mut self, object: Object) {
        let name = object.name();
        if let Some(change) = self.objects.apply(&name, object.0) {
            self.note(&name, change);
        }
    }

    /// Removes an object; nothing happens if it is not there.
    pub fn delete(&mut self, kind: Kind, name: &ObjectName) {
        if let Some(change) = self.objects.delete(kind, name) {
            self.note(name, change);
        }
    }

    /// Replaces the problems that the source itself has: unreadable files, refused objects.
    pub fn set_source_problems(&mut self, problems: Vec<Problem>) {
        self.stale.problems |= problems != self.source_problems;
        self.source_problems = problems;
    }

    /// Says of which release the API server's CRDs of Gateway API are (the annotation
    /// `gateway.networking.k8s.io/bundle-version`, such as `v1.6.1`): classes report whether it is
    /// one that we know. Without a word on it, as for files, it is.
    pub fn set_bundle_version(&mut self, version: Option<String>) {
        self.stale.routing |= version != self.objects.bundle_version;
        self.objects.bundle_version = version;
    }

    /// The snapshot of the objects as they are now. Its generation grows if it differs from the one
    /// before; otherwise the same `Arc` is given back.
    pub fn publish(&mut self) -> Publication {
        if self.stale.is_empty() {
            return self.last.clone();
        }
        let mut stale = std::mem::take(&mut self.stale);
        let mut next = Snapshot::clone(&self.last.snapshot);
        let mut changed = false;
        let mut of_routing = None;
        if stale.directives {
            let directives = directives::lower(&self.objects);
            stale.pools.extend(differing(&self.directives, &directives));
            self.directives = directives;
        }
        if stale.routing {
            let mut routing = lower::routing(&self.objects, &self.last.snapshot);
            of_routing = Some(std::mem::take(&mut routing.statuses));
            let before = std::mem::replace(&mut self.routing, routing);
            changed |= self.replan(&before.services, &mut next, &mut stale);
            if self.routing.ports != next.ports {
                next.ports = self.routing.ports.clone();
                changed = true;
            }
        }
        changed |= self.lower_pools(&stale.pools, &mut next);
        changed |= self.find_endpoints(&stale.services, &mut next);
        let problems = self.problems();
        if problems != next.problems {
            next.problems = problems;
            changed = true;
        }
        if changed {
            next.generation += 1;
            self.last.snapshot = Arc::new(next);
        }
        if of_routing.is_some() || stale.directives {
            self.update_statuses(of_routing);
        }
        self.last.clone()
    }

    /// What Gateways need to be reached, as of the last [`publish`](Self::publish).
    #[must_use]
    pub fn infrastructure(&self) -> Vec<Wanted> {
        infrastructure::wanted(&self.objects, &self.routing.opened)
    }

    /// Marks what a change may touch.
    fn note(&mut self, name: &ObjectName, change: Change) {
        let seen = &self.routing.seen;
        match change {
            Change::Routing => self.stale.routing = true,
            Change::Pool { selector } => {
                if selector {
                    self.selections.pool_changed(name, &self.objects.pools);
                }
                self.stale.pools.insert(name.clone());
                self.stale.routing = true;
                // Whether there is a pool of this name is for objectives to say.
                self.stale.directives = true;
            }
            Change::Directives => self.stale.directives = true,
            Change::Service { of_gateway } => {
                self.stale.routing |= of_gateway || seen.services.contains(name);
                self.service_changed(name.clone());
            }
            Change::Slices(services) => {
                services.into_iter().for_each(|s| self.service_changed(s));
            }
            Change::Secret => self.stale.routing |= seen.secrets.contains(name),
            Change::ConfigMap => self.stale.routing |= seen.config_maps.contains(name),
            Change::Namespace => self.stale.routing |= seen.namespaces.contains(&name.name),
            Change::Pod { before, after } => {
                self.pod_changed(name, before.as_deref(), after.as_deref());
            }
        }
    }

    /// The endpoints of a Service may have changed: those of its ports, and of pools that it picks
    /// for.
    fn service_changed(&mut self, service: ObjectName) {
        let pools = self.objects.pools_of_picker(&service);
        self.stale.pools.extend(pools.cloned());
        if self.ports_of.contains_key(&service) {
            self.stale.services.insert(service);
        }
    }

    fn pod_changed(&mut self, pod: &ObjectName, before: Option<&Labels>, after: Option<&Labels>) {
        let pools = &self.objects.pools;
        let touched = self.selections.pod_changed(pod, before, after, pools);
        self.stale.pools.extend(touched);
        let first = ObjectName::new(&pod.namespace, "");
        let routed = self.ports_of.range(first..).map(|(name, _)| name);
        let routed = routed.take_while(|name| name.namespace == pod.namespace);
        let pickers = self.objects.pickers();
        let pickers = pickers.filter(|name| name.namespace == pod.namespace);
        let follows = |service: &&ObjectName| {
            let mut labels = before.into_iter().chain(after);
            labels.any(|labels| endpoints::follows(&self.objects, service, labels))
        };
        let following: Vec<_> = routed.chain(pickers).filter(follows).cloned().collect();
        for service in following {
            self.service_changed(service);
        }
    }

    /// Takes up the ports of Services that routes lead to now: those that are new or reached in
    /// another way are to be found, others are dropped. Whether the snapshot changed.
    fn replan(
        &mut self,
        before: &HashMap<ServicePort, Plan>,
        next: &mut Snapshot,
        stale: &mut Stale,
    ) -> bool {
        let plans = &self.routing.services;
        let count = next.services.len();
        next.services.retain(|of, _| plans.contains_key(of));
        self.ports_of.clear();
        for (of, plan) in plans {
            let ports = self.ports_of.entry(of.name.clone()).or_default();
            ports.push(of.clone());
            if before.get(of) != Some(plan) {
                stale.services.insert(of.name.clone());
            }
        }
        next.services.len() != count
    }

    /// Lowers pools again. Whether the snapshot changed.
    fn lower_pools(&mut self, names: &BTreeSet<ObjectName>, next: &mut Snapshot) -> bool {
        self.selections
            .settle(&self.objects.pools, &self.objects.pods);
        let mut changed = false;
        for name in names {
            let Some(object) = self.objects.pools.get(name) else {
                self.pool_problems.remove(name);
                changed |= next.pools.remove(name).is_some();
                continue;
            };
            let members = self.selections.members(name);
            let directive = self.directives.pools.get(name);
            let (pool, problems) = pools::lower(&self.objects, name, object, members, directive);
            match problems.is_empty() {
                true => self.pool_problems.remove(name),
                false => self.pool_problems.insert(name.clone(), problems),
            };
            if next.pools.get(name).is_none_or(|before| **before != pool) {
                next.pools.insert(name.clone(), Arc::new(pool));
                changed = true;
            }
        }
        changed
    }

    /// Finds the endpoints of Services again. Whether the snapshot changed.
    fn find_endpoints(&self, services: &BTreeSet<ObjectName>, next: &mut Snapshot) -> bool {
        let mut changed = false;
        let ports = services.iter().filter_map(|name| self.ports_of.get(name));
        for of in ports.flatten() {
            let Some(plan) = self.routing.services.get(of) else {
                continue;
            };
            let target = ServiceTarget {
                of: of.clone(),
                protocol: plan.protocol,
                tls: plan.tls.clone(),
                endpoints: endpoints::of_service(&self.objects, &of.name, of.port),
            };
            let before = next.services.get(of);
            if before.is_none_or(|before| **before != target) {
                next.services.insert(of.clone(), Arc::new(target));
                changed = true;
            }
        }
        changed
    }

    fn problems(&self) -> Vec<Problem> {
        let own = self.source_problems.iter();
        let all = own
            .chain(&self.directives.problems)
            .chain(self.pool_problems.values().flatten())
            .chain(&self.routing.problems);
        let mut kept: Vec<_> = all.clone().take(PROBLEMS_MAX).cloned().collect();
        let rest = all.count().saturating_sub(PROBLEMS_MAX);
        if rest > 0 {
            kept.push(Problem {
                object: "configuration".to_owned(),
                field: String::new(),
                reason: reason::TOO_MANY_PROBLEMS,
                message: format!("{rest} more problems are not listed; mend those above first"),
            });
        }
        kept
    }

    /// Puts the statuses together: those of routing, as they were if it was not lowered again, and
    /// those of objectives and rewrites.
    fn update_statuses(&mut self, of_routing: Option<Vec<ObjectStatus>>) {
        let last = &self.last.statuses;
        let mut all = of_routing.unwrap_or_else(|| {
            let kept = last.iter().filter(|s| !directives::KINDS.contains(&s.kind));
            kept.cloned().collect()
        });
        all.extend_from_slice(&self.directives.statuses);
        all.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        if *all != **last {
            self.last.statuses = all.into();
        }
    }
}

/// The pools of which two sets of directives say something different.
fn differing<'a>(
    before: &'a Directives,
    after: &'a Directives,
) -> impl Iterator<Item = ObjectName> + use<'a> {
    let names = before.pools.keys().chain(after.pools.keys());
    names
        .filter(|name| before.pools.get(*name) != after.pools.get(*name))
        .cloned()
}
