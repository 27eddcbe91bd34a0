//! What one configuration changes of the one before, so that it costs what it changes.
//!
//! Values that both share are told by their pointers; only others are compared.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::net::SocketAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

/// The differences between two maps.
#[derive(Debug)]
pub(crate) struct Changes<'m, K, V> {
    /// Only in the old one.
    pub(crate) gone: Vec<(&'m K, &'m Arc<V>)>,
    /// Only in the new one.
    pub(crate) come: Vec<(&'m K, &'m Arc<V>)>,
    /// In both and not equal: key, old, new.
    pub(crate) changed: Vec<(&'m K, &'m Arc<V>, &'m Arc<V>)>,
}

impl<'m, K: Eq + Hash, V: PartialEq> Changes<'m, K, V> {
    pub(crate) fn between<S: BuildHasher>(
        old: &'m HashMap<K, Arc<V>, S>,
        new: &'m HashMap<K, Arc<V>, S>,
    ) -> Self {
        let mut changes = Self {
            gone: Vec::new(),
            come: Vec::new(),
            changed: Vec::new(),
        };
        for (key, value) in new {
            match old.get(key) {
                None => changes.come.push((key, value)),
                Some(before) if Arc::ptr_eq(before, value) || before == value => {}
                Some(before) => changes.changed.push((key, before, value)),
            }
        }
        if old.len() + changes.come.len() > new.len() {
            let gone = old.iter().filter(|(key, _)| !new.contains_key(key));
            changes.gone.extend(gone);
        }
        changes
    }

    /// Every value that is no longer in force.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = &'m V> {
        let changed = self.changed.iter().map(|(_, old, _)| &***old);
        self.gone.iter().map(|(_, old)| &***old).chain(changed)
    }

    /// Every value that has come into force.
    pub(crate) fn coming(&self) -> impl Iterator<Item = &'m V> {
        let changed = self.changed.iter().map(|(_, _, new)| &***new);
        self.come.iter().map(|(_, new)| &***new).chain(changed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.come.is_empty() && self.changed.is_empty()
    }
}

/// How many pools and Services have each address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses(Arc<FxHashMap<SocketAddr, u32>>);

impl Addresses {
    pub(crate) fn contains(&self, address: &SocketAddr) -> bool {
        self.0.contains_key(address)
    }

    /// These with the addresses of `come` and without those of `gone`.
    pub(crate) fn changed(
        &self,
        gone: impl Iterator<Item = SocketAddr>,
        come: impl Iterator<Item = SocketAddr>,
    ) -> Self {
        let mut next = self.clone();
        let counts = Arc::make_mut(&mut next.0);
        for address in come {
            *counts.entry(address).or_default() += 1;
        }
        for address in gone {
            if let Some(count) = counts.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&address);
                }
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Map = HashMap<u8, Arc<Vec<u16>>>;

    /// Maps from keys to ports, some of whose values are shared and some equal.
    fn maps() -> impl Strategy<Value = Vec<Map>> {
        let map = prop::collection::hash_map(0_u8..6, prop::collection::vec(0_u16..8, 0..4), 0..6);
        prop::collection::vec(map, 1..8).prop_map(|maps| {
            let mut last = Map::new();
            let step = |map: HashMap<u8, Vec<u16>>| {
                let shared = |(key, ports): (u8, Vec<u16>)| {
                    let before = last.get(&key).filter(|before| ***before == ports);
                    let keep = before.filter(|_| key % 2 == 0).cloned();
                    (key, keep.unwrap_or_else(|| Arc::new(ports)))
                };
                last = map.into_iter().map(shared).collect();
                last.clone()
            };
            maps.into_iter().map(step).collect()
        })
    }

    fn address(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    proptest! {
        #[test]
        fn addresses_follow_changes_as_if_counted_anew(steps in maps()) {
            let (mut last, mut addresses) = (Map::new(), Addresses::default());
            for next in steps {
                let changes = Changes::between(&last, &next);
                let of = |values: Vec<&Vec<u16>>| {
                    let ports = values.into_iter().flatten().copied();
                    ports.map(address).collect::<Vec<_>>().into_iter()
                };
                let (old, new) = (changes.leaving().collect(), changes.coming().collect());
                addresses = addresses.changed(of(old), of(new));
                prop_assert_eq!(changes.is_empty(), last == next);
                for port in 0..8 {
                    let held = next.values().any(|ports| ports.contains(&port));
                    prop_assert_eq!(addresses.contains(&address(port)), held, "{}", port);
                }
                last = next;
            }
        }
    }
}
