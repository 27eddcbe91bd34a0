//! Objects in, whole snapshots out.
//!
//! `apply` and `delete` take events in any order and never fail: what an object refers to may come
//! later. [`Index::publish`] lowers everything to a [`Snapshot`] with the statuses that belong to
//! it. Pools are lowered again only in namespaces where something changed, and a pool that came out
//! equal keeps its `Arc`, so that the runtime sees at a glance which pools changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use forebay_model::snapshot::Problem;
use forebay_model::{ObjectName, Pool, Snapshot};

use crate::infrastructure::{self, Wanted};
use crate::kinds::core::{EndpointSlice, Namespace, Pod, Secret, Service};
use crate::kinds::gateway::{Gateway, GatewayClass, ReferenceGrant};
use crate::kinds::inference::{InferenceModelRewrite, InferenceObjective, InferencePool};
use crate::lower::pools::{self, NamespacePools};
use crate::lower::rules::Route;
use crate::lower::{self, Lowered};
use crate::object::{Inner, Kind, Object};
use crate::reason;
use crate::settings::Settings;
use crate::status::ObjectStatus;

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
    source_problems: Vec<Problem>,
    pools: BTreeMap<Arc<str>, NamespacePools>,
    /// Namespaces whose pools must be lowered again.
    stale: BTreeSet<Arc<str>>,
    changed: bool,
    last: Publication,
}

/// The objects by kind and name.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) settings: Settings,
    pub(crate) classes: BTreeMap<Arc<str>, GatewayClass>,
    pub(crate) gateways: BTreeMap<ObjectName, Gateway>,
    pub(crate) routes: BTreeMap<ObjectName, Route>,
    pub(crate) grants: BTreeMap<ObjectName, ReferenceGrant>,
    pub(crate) pools: BTreeMap<ObjectName, InferencePool>,
    pub(crate) objectives: TwoGroups<InferenceObjective>,
    pub(crate) rewrites: TwoGroups<InferenceModelRewrite>,
    pub(crate) services: BTreeMap<ObjectName, Service>,
    pub(crate) slices: BTreeMap<ObjectName, EndpointSlice>,
    pub(crate) secrets: BTreeMap<ObjectName, Secret>,
    pub(crate) pods: BTreeMap<ObjectName, Pod>,
    pub(crate) namespaces: BTreeMap<Arc<str>, Namespace>,
}

/// A kind that two API groups define. The newer group's object hides the older's of that name.
#[derive(Debug)]
pub(crate) struct TwoGroups<T> {
    pub(crate) current: BTreeMap<ObjectName, T>,
    pub(crate) legacy: BTreeMap<ObjectName, T>,
}

impl<T> TwoGroups<T> {
    fn new() -> Self {
        Self {
            current: BTreeMap::new(),
            legacy: BTreeMap::new(),
        }
    }

    /// Those of a namespace that count, by name.
    pub(crate) fn effective(&self, namespace: &str) -> BTreeMap<&ObjectName, &T> {
        let mut all: BTreeMap<_, _> = in_namespace(&self.legacy, namespace).collect();
        all.extend(in_namespace(&self.current, namespace));
        all
    }
}

/// The part of a map that belongs to one namespace.
pub(crate) fn in_namespace<'a, T>(
    map: &'a BTreeMap<ObjectName, T>,
    namespace: &str,
) -> impl Iterator<Item = (&'a ObjectName, &'a T)> + use<'a, T> {
    let first = ObjectName::new(namespace, "");
    let namespace = Arc::clone(&first.namespace);
    map.range(first..)
        .take_while(move |(name, _)| name.namespace == namespace)
}

impl Index {
    /// An index without objects.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            objects: Objects {
                settings,
                classes: BTreeMap::new(),
                gateways: BTreeMap::new(),
                routes: BTreeMap::new(),
                grants: BTreeMap::new(),
                pools: BTreeMap::new(),
                objectives: TwoGroups::new(),
                rewrites: TwoGroups::new(),
                services: BTreeMap::new(),
                slices: BTreeMap::new(),
                secrets: BTreeMap::new(),
                pods: BTreeMap::new(),
                namespaces: BTreeMap::new(),
            },
            source_problems: Vec::new(),
            pools: BTreeMap::new(),
            stale: BTreeSet::new(),
            changed: false,
            last: Publication {
                snapshot: Arc::default(),
                statuses: Arc::default(),
            },
        }
    }

    /// Adds an object, or replaces the one of its kind and name.
    pub fn apply(&mut self, object: Object) {
        let (kind, name) = (object.kind(), object.name());
        let all = &mut self.objects;
        let changed = match object.0 {
            Inner::GatewayClass(o) => put(&mut all.classes, Arc::clone(&name.name), o),
            Inner::Gateway(o) => put(&mut all.gateways, name.clone(), o),
            Inner::HttpRoute(o) => put(&mut all.routes, name.clone(), Route::new(o)),
            Inner::ReferenceGrant(o) => put(&mut all.grants, name.clone(), o),
            Inner::InferencePool(o) => put(&mut all.pools, name.clone(), o),
            Inner::InferenceObjective(o) => put(&mut all.objectives.current, name.clone(), o),
            Inner::LegacyInferenceObjective(o) => put(&mut all.objectives.legacy, name.clone(), o),
            Inner::InferenceModelRewrite(o) => put(&mut all.rewrites.current, name.clone(), o),
            Inner::LegacyInferenceModelRewrite(o) => put(&mut all.rewrites.legacy, name.clone(), o),
            Inner::Service(o) => put(&mut all.services, name.clone(), o),
            Inner::EndpointSlice(o) => put(&mut all.slices, name.clone(), o),
            Inner::Secret(o) => put(&mut all.secrets, name.clone(), o),
            Inner::Pod(o) => put(&mut all.pods, name.clone(), o),
            Inner::Namespace(o) => put(&mut all.namespaces, Arc::clone(&name.name), o),
        };
        self.note(kind, &name, changed);
    }

    /// Removes an object; nothing happens if it is not there.
    pub fn delete(&mut self, kind: Kind, name: &ObjectName) {
        let all = &mut self.objects;
        let changed = match kind {
            Kind::GatewayClass => all.classes.remove(&name.name).is_some(),
            Kind::Gateway => all.gateways.remove(name).is_some(),
            Kind::HttpRoute => all.routes.remove(name).is_some(),
            Kind::ReferenceGrant => all.grants.remove(name).is_some(),
            Kind::InferencePool => all.pools.remove(name).is_some(),
            Kind::InferenceObjective => all.objectives.current.remove(name).is_some(),
            Kind::LegacyInferenceObjective => all.objectives.legacy.remove(name).is_some(),
            Kind::InferenceModelRewrite => all.rewrites.current.remove(name).is_some(),
            Kind::LegacyInferenceModelRewrite => all.rewrites.legacy.remove(name).is_some(),
            Kind::Service => all.services.remove(name).is_some(),
            Kind::EndpointSlice => all.slices.remove(name).is_some(),
            Kind::Secret => all.secrets.remove(name).is_some(),
            Kind::Pod => all.pods.remove(name).is_some(),
            Kind::Namespace => all.namespaces.remove(&name.name).is_some(),
        };
        self.note(kind, name, changed);
    }

    fn note(&mut self, kind: Kind, name: &ObjectName, changed: bool) {
        self.changed |= changed;
        let concerns_pools = match kind {
            Kind::InferencePool
            | Kind::InferenceObjective
            | Kind::LegacyInferenceObjective
            | Kind::InferenceModelRewrite
            | Kind::LegacyInferenceModelRewrite
            | Kind::Pod => true,
            Kind::GatewayClass
            | Kind::Gateway
            | Kind::HttpRoute
            | Kind::ReferenceGrant
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::Secret
            | Kind::Namespace => false,
        };
        if changed && concerns_pools {
            self.stale.insert(Arc::clone(&name.namespace));
        }
    }

    /// Replaces the problems that the source itself has: unreadable files, refused objects.
    pub fn set_source_problems(&mut self, problems: Vec<Problem>) {
        self.changed |= problems != self.source_problems;
        self.source_problems = problems;
    }

    /// The snapshot of the objects as they are now. Its generation grows if it differs from the one
    /// before; otherwise the same `Arc` is given back.
    pub fn publish(&mut self) -> Publication {
        if !std::mem::take(&mut self.changed) {
            return self.last.clone();
        }
        for namespace in std::mem::take(&mut self.stale) {
            let lowered = pools::lower(&self.objects, &namespace, self.pools.get(&namespace));
            if lowered.is_empty() {
                self.pools.remove(&namespace);
            } else {
                self.pools.insert(namespace, lowered);
            }
        }
        let pools = self.pools.values().flat_map(|own| own.pools.iter());
        let pools: HashMap<ObjectName, Arc<Pool>> = pools
            .map(|(name, pool)| (name.clone(), Arc::clone(pool)))
            .collect();
        let lowered = lower::lower(&self.objects, &pools, &self.last.snapshot);
        self.replace_last(pools, lowered);
        self.last.clone()
    }

    /// What Gateways need to be reached.
    #[must_use]
    pub fn infrastructure(&self) -> Vec<Wanted> {
        infrastructure::wanted(&self.objects)
    }

    fn replace_last(&mut self, pools: HashMap<ObjectName, Arc<Pool>>, lowered: Lowered) {
        let Lowered {
            ports,
            services,
            problems,
            statuses,
        } = lowered;
        let of_pools = self.pools.values().flat_map(|own| own.problems.iter());
        let mut all = self.source_problems.clone();
        all.extend(of_pools.cloned().chain(problems));
        let problems = bounded(all);
        let last = &self.last.snapshot;
        let same = same_pools(&pools, &last.pools)
            && ports == last.ports
            && services == last.services
            && problems == last.problems;
        if !same {
            self.last.snapshot = Arc::new(Snapshot {
                generation: last.generation + 1,
                ports,
                pools,
                services,
                problems,
            });
        }
        if *statuses != *self.last.statuses {
            self.last.statuses = statuses.into();
        }
    }
}

fn put<K: Ord, T: PartialEq>(map: &mut BTreeMap<K, T>, name: K, object: T) -> bool {
    let changed = map.get(&name) != Some(&object);
    if changed {
        map.insert(name, object);
    }
    changed
}

/// Equal pools have kept their `Arc`, so comparing addresses is enough.
fn same_pools(a: &HashMap<ObjectName, Arc<Pool>>, b: &HashMap<ObjectName, Arc<Pool>>) -> bool {
    a.len() == b.len()
        && a.iter()
            .all(|(name, pool)| b.get(name).is_some_and(|other| Arc::ptr_eq(pool, other)))
}

fn bounded(mut problems: Vec<Problem>) -> Vec<Problem> {
    if problems.len() > PROBLEMS_MAX {
        let rest = problems.len() - PROBLEMS_MAX;
        problems.truncate(PROBLEMS_MAX);
        problems.push(Problem {
            object: "configuration".to_owned(),
            field: String::new(),
            reason: reason::TOO_MANY_PROBLEMS,
            message: format!("{rest} more problems are not listed; mend those above first"),
        });
    }
    problems
}
