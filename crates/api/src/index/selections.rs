//! Which pods each pool selects, kept up to date with every pod and pool, so that a change of one
//! pod concerns the pools that select it and no other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use forebay_model::ObjectName;
use forebay_model::endpoint::Labels;

use super::objects::in_namespace;
use super::pods::PodFacts;
use crate::kinds::inference::InferencePool;

/// The pods of every pool.
#[derive(Debug, Default)]
pub(crate) struct Selections {
    namespaces: HashMap<Arc<str>, OfNamespace>,
}

type Pools = BTreeMap<ObjectName, InferencePool>;
type Pods = BTreeMap<ObjectName, PodFacts>;

#[derive(Debug, Default)]
struct OfNamespace {
    /// Pools by one label of their selector, so that a pod's labels lead to few pools.
    by_label: HashMap<String, HashMap<String, BTreeSet<Arc<str>>>>,
    label_of: HashMap<Arc<str>, (String, String)>,
    /// The pods of each pool, by name.
    members: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Pools whose pods are yet to be found.
    unknown: BTreeSet<Arc<str>>,
}

impl Selections {
    /// Takes note of a pool that is new, gone, or has another selector.
    pub(crate) fn pool_changed(&mut self, pool: &ObjectName, pools: &Pools) {
        let of = self.namespaces.entry(Arc::clone(&pool.namespace));
        let of = of.or_default();
        of.forget(&pool.name);
        match pools.get(pool) {
            Some(object) => of.learn(&pool.name, &object.spec.selector.match_labels),
            None if of.label_of.is_empty() => {
                self.namespaces.remove(&pool.namespace);
            }
            None => {}
        }
    }

    /// Takes note of a pod; gives the pools that select it, before or now.
    pub(crate) fn pod_changed(
        &mut self,
        pod: &ObjectName,
        before: Option<&Labels>,
        after: Option<&Labels>,
        pools: &Pools,
    ) -> Vec<ObjectName> {
        let Some(of) = self.namespaces.get_mut(&pod.namespace) else {
            return Vec::new();
        };
        let selecting = |of: &OfNamespace, labels: Option<&Labels>| {
            let labels = labels.into_iter();
            labels
                .flat_map(|l| of.selecting(&pod.namespace, l, pools))
                .collect()
        };
        let old: BTreeSet<Arc<str>> = selecting(of, before);
        let new: BTreeSet<Arc<str>> = selecting(of, after);
        for pool in old.difference(&new) {
            if let Some(members) = of.members.get_mut(pool) {
                members.remove(&pod.name);
            }
        }
        for pool in new.difference(&old) {
            let members = of.members.entry(Arc::clone(pool)).or_default();
            members.insert(Arc::clone(&pod.name));
        }
        let touched = old.union(&new).map(|name| ObjectName {
            namespace: Arc::clone(&pod.namespace),
            name: Arc::clone(name),
        });
        touched.collect()
    }

    /// Finds the pods of pools whose selector is new.
    pub(crate) fn settle(&mut self, pools: &Pools, pods: &Pods) {
        for (namespace, of) in &mut self.namespaces {
            let unknown = std::mem::take(&mut of.unknown);
            if unknown.is_empty() {
                continue;
            }
            for (name, pod) in in_namespace(pods, namespace) {
                let labels = &pod.endpoint.labels;
                for pool in of.selecting(namespace, labels, pools) {
                    if unknown.contains(&pool) {
                        let members = of.members.entry(pool).or_default();
                        members.insert(Arc::clone(&name.name));
                    }
                }
            }
        }
    }

    /// The pods of a pool by name, in order.
    pub(crate) fn members(&self, pool: &ObjectName) -> impl Iterator<Item = &Arc<str>> {
        let of = self.namespaces.get(&pool.namespace);
        let members = of.and_then(|of| of.members.get(&pool.name));
        members.into_iter().flatten()
    }
}

impl OfNamespace {
    fn forget(&mut self, pool: &Arc<str>) {
        self.members.remove(pool);
        self.unknown.remove(pool);
        let Some((key, value)) = self.label_of.remove(pool) else {
            return;
        };
        if let Some(values) = self.by_label.get_mut(&key)
            && let Some(pools) = values.get_mut(&value)
        {
            pools.remove(pool);
            if pools.is_empty() {
                values.remove(&value);
            }
            if values.is_empty() {
                self.by_label.remove(&key);
            }
        }
    }

    /// Files the pool under the label that it shares with the fewest others.
    fn learn(&mut self, pool: &Arc<str>, selector: &BTreeMap<String, String>) {
        let shared = |key: &str, value: &str| {
            let pools = self.by_label.get(key).and_then(|values| values.get(value));
            pools.map_or(0, BTreeSet::len)
        };
        let label = selector
            .iter()
            .min_by_key(|(key, value)| shared(key, value));
        // A selector is never empty, by validation.
        let Some((key, value)) = label else { return };
        let values = self.by_label.entry(key.clone()).or_default();
        let pools = values.entry(value.clone()).or_default();
        pools.insert(Arc::clone(pool));
        let label = (key.clone(), value.clone());
        self.label_of.insert(Arc::clone(pool), label);
        self.unknown.insert(Arc::clone(pool));
    }

    fn selecting(&self, namespace: &Arc<str>, labels: &Labels, pools: &Pools) -> Vec<Arc<str>> {
        let filed = labels.iter().filter_map(|(key, value)| {
            let values = self.by_label.get(key)?;
            values.get(value)
        });
        let selects = |pool: &&Arc<str>| {
            let name = ObjectName {
                namespace: Arc::clone(namespace),
                name: Arc::clone(pool),
            };
            pools.get(&name).is_some_and(|pool| {
                let selector = &pool.spec.selector.match_labels;
                selector
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value))
            })
        };
        filed.flatten().filter(selects).cloned().collect()
    }
}
