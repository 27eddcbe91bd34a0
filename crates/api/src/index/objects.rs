//! Every object by kind and name, and what is looked up in them otherwise.
//!
//! An object that comes again unchanged, as far as it is read, is no change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use forebay_model::ObjectName;
use forebay_model::endpoint::Labels;

use super::pods::PodFacts;
use crate::kinds::config::GatewayConfig;
use crate::kinds::core::{ConfigMap, EndpointSlice, Namespace, Secret, Service};
use crate::kinds::gateway::{Gateway, GatewayClass, ListenerSet, ReferenceGrant};
use crate::kinds::grpcroute::GrpcRoute;
use crate::kinds::httproute::HttpRoute;
use crate::kinds::inference::{InferenceModelRewrite, InferenceObjective, InferencePool};
use crate::kinds::policy::BackendTlsPolicy;
use crate::kinds::tlsroute::TlsRoute;
use crate::lower::prepared::Prepared;
use crate::object::{Inner, Kind};
use crate::settings::{Origin, Settings};

/// The label by which an EndpointSlice names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The objects.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) settings: Settings,
    /// The release of the CRDs of Gateway API that the API server has, if it said so.
    pub(crate) bundle_version: Option<String>,
    pub(crate) classes: BTreeMap<Arc<str>, GatewayClass>,
    pub(crate) gateways: BTreeMap<ObjectName, Gateway>,
    pub(crate) listener_sets: BTreeMap<ObjectName, ListenerSet>,
    pub(crate) http_routes: BTreeMap<ObjectName, Prepared<HttpRoute>>,
    pub(crate) grpc_routes: BTreeMap<ObjectName, Prepared<GrpcRoute>>,
    pub(crate) tls_routes: BTreeMap<ObjectName, TlsRoute>,
    pub(crate) policies: BTreeMap<ObjectName, BackendTlsPolicy>,
    pub(crate) grants: BTreeMap<ObjectName, ReferenceGrant>,
    pub(crate) configs: BTreeMap<ObjectName, GatewayConfig>,
    pub(crate) pools: BTreeMap<ObjectName, InferencePool>,
    pub(crate) objectives: TwoGroups<InferenceObjective>,
    pub(crate) rewrites: TwoGroups<InferenceModelRewrite>,
    pub(crate) services: BTreeMap<ObjectName, Service>,
    pub(crate) slices: BTreeMap<ObjectName, EndpointSlice>,
    pub(crate) secrets: BTreeMap<ObjectName, Secret>,
    pub(crate) config_maps: BTreeMap<ObjectName, ConfigMap>,
    /// Those that have an address.
    pub(crate) pods: BTreeMap<ObjectName, PodFacts>,
    pub(crate) namespaces: BTreeMap<Arc<str>, Namespace>,
    /// Slices by their Service.
    slices_of: HashMap<ObjectName, BTreeSet<ObjectName>>,
    /// Pools by the Service that is their picker.
    pools_of_picker: HashMap<ObjectName, BTreeSet<ObjectName>>,
}

/// A kind that two API groups define. The newer group's object hides the older's of that name.
#[derive(Debug)]
pub(crate) struct TwoGroups<T> {
    pub(crate) current: BTreeMap<ObjectName, T>,
    pub(crate) legacy: BTreeMap<ObjectName, T>,
}

impl<T> Default for TwoGroups<T> {
    fn default() -> Self {
        Self {
            current: BTreeMap::new(),
            legacy: BTreeMap::new(),
        }
    }
}

/// What a change of an object may touch.
#[derive(Debug)]
pub(crate) enum Change {
    /// How requests are routed, as a whole.
    Routing,
    /// One pool; whether its selector changed too.
    Pool { selector: bool },
    /// What objectives and rewrites say.
    Directives,
    /// A Service; whether it leads, or led, to a Gateway.
    Service { of_gateway: bool },
    /// The endpoints of these Services.
    Slices(Vec<ObjectName>),
    /// Whoever refers to the object.
    Secret,
    /// The same.
    ConfigMap,
    /// Whoever selects by its labels.
    Namespace,
    /// Whoever selects these labels: those before and those now.
    Pod {
        before: Option<Arc<Labels>>,
        after: Option<Arc<Labels>>,
    },
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

impl Objects {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            bundle_version: None,
            classes: BTreeMap::new(),
            gateways: BTreeMap::new(),
            listener_sets: BTreeMap::new(),
            http_routes: BTreeMap::new(),
            grpc_routes: BTreeMap::new(),
            tls_routes: BTreeMap::new(),
            policies: BTreeMap::new(),
            grants: BTreeMap::new(),
            configs: BTreeMap::new(),
            pools: BTreeMap::new(),
            objectives: TwoGroups::default(),
            rewrites: TwoGroups::default(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            secrets: BTreeMap::new(),
            config_maps: BTreeMap::new(),
            pods: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            slices_of: HashMap::new(),
            pools_of_picker: HashMap::new(),
        }
    }

    /// The slices of a Service; none if there is not one object that says that it has none.
    pub(crate) fn slices_of(
        &self,
        service: &ObjectName,
    ) -> Option<impl Iterator<Item = &EndpointSlice>> {
        let names = self.slices_of.get(service)?;
        Some(names.iter().filter_map(|name| self.slices.get(name)))
    }

    /// The pools that a Service picks for.
    pub(crate) fn pools_of_picker(
        &self,
        service: &ObjectName,
    ) -> impl Iterator<Item = &ObjectName> {
        self.pools_of_picker.get(service).into_iter().flatten()
    }

    /// The Services that pick for pools.
    pub(crate) fn pickers(&self) -> impl Iterator<Item = &ObjectName> {
        self.pools_of_picker.keys()
    }

    /// Adds or replaces an object.
    pub(crate) fn apply(&mut self, name: &ObjectName, object: Inner) -> Option<Change> {
        let key = || name.clone();
        match object {
            Inner::GatewayClass(o) => put(&mut self.classes, Arc::clone(&name.name), o),
            Inner::Gateway(o) => put(&mut self.gateways, key(), *o),
            Inner::ListenerSet(o) => put(&mut self.listener_sets, key(), o),
            Inner::HttpRoute(o) => put(&mut self.http_routes, key(), Prepared::http(o)),
            Inner::GrpcRoute(o) => put(&mut self.grpc_routes, key(), Prepared::grpc(o)),
            Inner::TlsRoute(o) => put(&mut self.tls_routes, key(), o),
            Inner::BackendTlsPolicy(o) => put(&mut self.policies, key(), o),
            Inner::ReferenceGrant(o) => put(&mut self.grants, key(), o),
            Inner::GatewayConfig(o) => put(&mut self.configs, key(), o),
            Inner::InferencePool(o) => return self.set_pool(name, Some(o)),
            Inner::InferenceObjective(o) => {
                return directive(put(&mut self.objectives.current, key(), o));
            }
            Inner::LegacyInferenceObjective(o) => {
                return directive(put(&mut self.objectives.legacy, key(), o));
            }
            Inner::InferenceModelRewrite(o) => {
                return directive(put(&mut self.rewrites.current, key(), o));
            }
            Inner::LegacyInferenceModelRewrite(o) => {
                return directive(put(&mut self.rewrites.legacy, key(), o));
            }
            Inner::Service(o) => return self.set_service(name, Some(o)),
            Inner::EndpointSlice(o) => return self.set_slice(name, Some(o)),
            Inner::Secret(o) => {
                return put(&mut self.secrets, key(), o).map(|_| Change::Secret);
            }
            Inner::ConfigMap(o) => {
                return put(&mut self.config_maps, key(), o).map(|_| Change::ConfigMap);
            }
            Inner::Pod(o) => {
                let facts = PodFacts::of(o, self.settings.origin == Origin::Files);
                return self.set_pod(name, facts);
            }
            Inner::Namespace(o) => {
                let changed = put(&mut self.namespaces, Arc::clone(&name.name), o);
                return changed.map(|_| Change::Namespace);
            }
        }
        .map(|_| Change::Routing)
    }

    /// Removes an object.
    pub(crate) fn delete(&mut self, kind: Kind, name: &ObjectName) -> Option<Change> {
        let gone = match kind {
            Kind::GatewayClass => self.classes.remove(&name.name).is_some(),
            Kind::Gateway => self.gateways.remove(name).is_some(),
            Kind::ListenerSet => self.listener_sets.remove(name).is_some(),
            Kind::HttpRoute => self.http_routes.remove(name).is_some(),
            Kind::GrpcRoute => self.grpc_routes.remove(name).is_some(),
            Kind::TlsRoute => self.tls_routes.remove(name).is_some(),
            Kind::BackendTlsPolicy => self.policies.remove(name).is_some(),
            Kind::ReferenceGrant => self.grants.remove(name).is_some(),
            Kind::GatewayConfig => self.configs.remove(name).is_some(),
            Kind::InferencePool => return self.set_pool(name, None),
            Kind::InferenceObjective => {
                return directive(self.objectives.current.remove(name).map(drop));
            }
            Kind::LegacyInferenceObjective => {
                return directive(self.objectives.legacy.remove(name).map(drop));
            }
            Kind::InferenceModelRewrite => {
                return directive(self.rewrites.current.remove(name).map(drop));
            }
            Kind::LegacyInferenceModelRewrite => {
                return directive(self.rewrites.legacy.remove(name).map(drop));
            }
            Kind::Service => return self.set_service(name, None),
            Kind::EndpointSlice => return self.set_slice(name, None),
            Kind::Secret => return self.secrets.remove(name).map(|_| Change::Secret),
            Kind::ConfigMap => return self.config_maps.remove(name).map(|_| Change::ConfigMap),
            Kind::Pod => return self.set_pod(name, None),
            Kind::Namespace => {
                let gone = self.namespaces.remove(&name.name);
                return gone.map(|_| Change::Namespace);
            }
        };
        gone.then_some(Change::Routing)
    }

    fn set_pool(&mut self, name: &ObjectName, pool: Option<InferencePool>) -> Option<Change> {
        let (before, after) = replace(&mut self.pools, name, pool)?;
        let picker = |pool: &InferencePool| {
            let picker = pool.spec.endpoint_picker_ref.as_ref()?;
            Some(ObjectName::new(&name.namespace, &picker.name))
        };
        let selector = |pool: &InferencePool| pool.spec.selector.match_labels.clone();
        let changed = before.as_ref().map(selector) != after.map(selector);
        let (old, new) = (before.as_ref().and_then(picker), after.and_then(picker));
        move_between(&mut self.pools_of_picker, name, old, new);
        Some(Change::Pool { selector: changed })
    }

    fn set_service(&mut self, name: &ObjectName, service: Option<Service>) -> Option<Change> {
        let (before, after) = replace(&mut self.services, name, service)?;
        let leads = |service: Option<&Service>| {
            service.is_some_and(|s| crate::lower::reach::gateway_of(s).is_some())
        };
        Some(Change::Service {
            of_gateway: leads(before.as_ref()) || leads(after),
        })
    }

    fn set_slice(&mut self, name: &ObjectName, slice: Option<EndpointSlice>) -> Option<Change> {
        let (before, after) = replace(&mut self.slices, name, slice)?;
        let service = |slice: &EndpointSlice| {
            let service = slice.metadata.labels.get(SERVICE_LABEL)?;
            Some(ObjectName::new(&name.namespace, service))
        };
        let (old, new) = (before.as_ref().and_then(service), after.and_then(service));
        let touched = old.iter().chain(&new).cloned().collect();
        move_between(&mut self.slices_of, name, old, new);
        Some(Change::Slices(touched))
    }

    fn set_pod(&mut self, name: &ObjectName, facts: Option<PodFacts>) -> Option<Change> {
        let (before, after) = replace(&mut self.pods, name, facts)?;
        let labels = |facts: &PodFacts| Arc::clone(&facts.endpoint.labels);
        Some(Change::Pod {
            before: before.as_ref().map(labels),
            after: after.map(labels),
        })
    }
}

fn directive(changed: Option<()>) -> Option<Change> {
    changed.map(|()| Change::Directives)
}

fn put<K: Ord, T: PartialEq>(map: &mut BTreeMap<K, T>, name: K, object: T) -> Option<()> {
    if map.get(&name) == Some(&object) {
        return None;
    }
    map.insert(name, object);
    Some(())
}

/// Sets or removes an entry; gives what was there and what is, if they differ.
fn replace<'m, T: PartialEq>(
    map: &'m mut BTreeMap<ObjectName, T>,
    name: &ObjectName,
    object: Option<T>,
) -> Option<(Option<T>, Option<&'m T>)> {
    if map.get(name) == object.as_ref() {
        return None;
    }
    let before = match object {
        None => map.remove(name),
        Some(object) => map.insert(name.clone(), object),
    };
    Some((before, map.get(name)))
}

/// Moves a name from one set to another.
fn move_between(
    sets: &mut HashMap<ObjectName, BTreeSet<ObjectName>>,
    name: &ObjectName,
    old: Option<ObjectName>,
    new: Option<ObjectName>,
) {
    if old == new {
        return;
    }
    if let Some(old) = old
        && let Some(names) = sets.get_mut(&old)
    {
        names.remove(name);
        if names.is_empty() {
            sets.remove(&old);
        }
    }
    if let Some(new) = new {
        sets.entry(new).or_default().insert(name.clone());
    }
}
