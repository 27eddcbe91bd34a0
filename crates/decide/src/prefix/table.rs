//! An open-addressing table of small values that live elsewhere or carry their own key.
//!
//! Why not hashbrown: under steady insertion and removal its tombstones make it double although
//! it holds no more than before, which turns a byte bound into a guess. Linear probing with
//! backward-shift removal has no tombstones, and any size will do, so what it takes is
//! exactly `len_max * LOAD`. Hashes must be well mixed in their upper bits.

/// Places per entry: 3 for 2. Fuller tables have long runs of entries to look through.
pub(super) const LOAD: (usize, usize) = (3, 2);
/// Entries from which on a table grows by an eighth rather than by half: what it has too much room
/// for counts against a bound of bytes then.
const LARGE: usize = 4_096;
/// The most places per entry of a large table that may still grow, in 64ths.
pub(super) const LARGE_LOAD_64: usize = 64 * LOAD.0 / LOAD.1 * 9 / 8;

/// A value that can say "nobody here".
pub(super) trait Entry: Copy {
    const VACANT: Self;
    fn is_vacant(&self) -> bool;
}

#[cfg(test)]
impl Entry for u32 {
    const VACANT: Self = Self::MAX;
    fn is_vacant(&self) -> bool {
        *self == Self::MAX
    }
}

/// The table. The caller brings the hash of every entry.
#[derive(Clone, Debug)]
pub(super) struct Table<T> {
    places: Vec<T>,
    len: usize,
}

impl<T: Entry> Table<T> {
    pub(super) const fn new() -> Self {
        Self {
            places: Vec::new(),
            len: 0,
        }
    }

    /// Places that a table of `len_max` entries takes, to budget with.
    pub(super) const fn places_for(len_max: usize) -> usize {
        len_max * LOAD.0 / LOAD.1 + 1
    }

    pub(super) fn bytes(&self) -> usize {
        self.places.capacity() * size_of::<T>()
    }

    /// The position of the entry with this hash that `is_it` recognises.
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(&T) -> bool) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mut at = self.home(hash);
        loop {
            let entry = &self.places[at];
            if entry.is_vacant() {
                return None;
            }
            if is_it(entry) {
                return Some(at);
            }
            at = self.after(at);
        }
    }

    /// Brings the places of many hashes into the processor's cache at once, since one at a time
    /// each waits for memory.
    pub(super) fn warm(&self, hashes: impl Iterator<Item = u64>) {
        if self.places.is_empty() {
            return;
        }
        let vacant = hashes.filter(|&hash| self.places[self.home(hash)].is_vacant());
        std::hint::black_box(vacant.count());
    }

    /// Entries in it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All entries, in no order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter(|entry| !entry.is_vacant())
    }

    pub(super) fn get(&self, at: usize) -> &T {
        &self.places[at]
    }

    pub(super) fn get_mut(&mut self, at: usize) -> &mut T {
        &mut self.places[at]
    }

    /// Adds an entry that is not there yet; the table never grows past what `len_max` needs.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        entry: T,
        len_max: usize,
        hash_of: impl Fn(&T) -> u64,
    ) {
        if Self::places_for(self.len + 1) > self.places.len() {
            self.grow(len_max.max(self.len + 1), hash_of);
        }
        let at = self.vacancy(hash);
        self.places[at] = entry;
        self.len += 1;
    }

    /// Removes the entry at `at` and moves later ones up, so that no gap breaks a search.
    pub(super) fn remove(&mut self, at: usize, hash_of: impl Fn(&T) -> u64) {
        let (mut gap, mut next) = (at, self.after(at));
        while !self.places[next].is_vacant() {
            let home = self.home(hash_of(&self.places[next]));
            if self.distance(home, next) >= self.distance(gap, next) {
                self.places[gap] = self.places[next];
                gap = next;
            }
            next = self.after(next);
        }
        self.places[gap] = T::VACANT;
        self.len -= 1;
    }

    fn grow(&mut self, len_max: usize, hash_of: impl Fn(&T) -> u64) {
        let more = if self.len < LARGE { 2 } else { 8 };
        let len = (self.len + 1)
            .max(self.len + self.len / more)
            .max(32)
            .min(len_max);
        let places = vec![T::VACANT; Self::places_for(len)];
        let old = std::mem::replace(&mut self.places, places);
        for entry in old.into_iter().filter(|e| !e.is_vacant()) {
            let at = self.vacancy(hash_of(&entry));
            self.places[at] = entry;
        }
    }

    fn vacancy(&self, hash: u64) -> usize {
        let mut at = self.home(hash);
        while !self.places[at].is_vacant() {
            at = self.after(at);
        }
        at
    }

    /// Multiplication maps the hash onto any number of places (Lemire), without a division.
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.places.len() as u128) >> 64) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.places.len() {
            0
        } else {
            at + 1
        }
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from {
            to - from
        } else {
            to + self.places.len() - from
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Few distinct hashes, so that probes collide and wrap around.
    fn hash_of(entry: &u32) -> u64 {
        u64::from(*entry % 7).wrapping_mul(0x2492_4924_9249_2492)
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(ops in prop::collection::vec((any::<bool>(), 0_u32..60), 0..300)) {
            let mut table = Table::new();
            let mut model = BTreeSet::new();
            for (add, value) in ops {
                let found = table.find(hash_of(&value), |e| *e == value);
                prop_assert_eq!(found.is_some(), model.contains(&value));
                match (add, found) {
                    (true, None) => {
                        table.insert(hash_of(&value), value, 60, hash_of);
                        model.insert(value);
                    }
                    (false, Some(at)) => {
                        table.remove(at, hash_of);
                        model.remove(&value);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len, model.len());
                prop_assert!(table.bytes() <= 4 * Table::<u32>::places_for(60));
            }
            for value in 0..60 {
                let found = table.find(hash_of(&value), |e| *e == value).is_some();
                prop_assert_eq!(found, model.contains(&value));
            }
        }
    }
}
