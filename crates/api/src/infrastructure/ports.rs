//! Which port of the pods serves which port of which Gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Ports that are bound for listeners. Above those that need rights, below those that the kernel
/// takes for connections of its own.
pub(super) const PORTS: RangeInclusive<u16> = 20_000..=29_999;

/// Ports of one set of pods.
#[derive(Debug, Default)]
pub(super) struct Allocator {
    taken: BTreeSet<u16>,
}

/// Ports of listeners to ports of pods.
pub(super) type Mapping = BTreeMap<u16, u16>;

impl Allocator {
    /// Takes for one Gateway what it has of what it wants; what somebody has already that was asked
    /// before is not taken twice. To be asked for every Gateway before [`complete`](Self::complete).
    pub(super) fn keep(&mut self, wanted: &BTreeSet<u16>, present: &Mapping) -> Mapping {
        let kept = present.iter().filter(|(port, _)| wanted.contains(port));
        let kept = kept.filter(|(_, bound)| self.taken.insert(**bound));
        kept.map(|(port, bound)| (*port, *bound)).collect()
    }

    /// Adds the lowest free ports for what is wanted and not there; those for which there is none are
    /// returned.
    pub(super) fn complete(&mut self, wanted: &BTreeSet<u16>, mapping: &mut Mapping) -> Vec<u16> {
        let missing = wanted.iter().filter(|port| !mapping.contains_key(port));
        let missing: Vec<u16> = missing.copied().collect();
        let free = PORTS.filter(|bound| !self.taken.contains(bound));
        let free: Vec<u16> = free.take(missing.len()).collect();
        self.taken.extend(&free);
        let without = missing[free.len()..].to_vec();
        mapping.extend(missing.into_iter().zip(free));
        without
    }
}
