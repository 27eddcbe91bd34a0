//! Label values with a bound.
//!
//! Model names come from clients and object names from configuration that changes for months; a
//! label set that follows them without limit ends in an out-of-memory kill of whoever scrapes it.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

use rustc_hash::FxHashMap;

/// Distinct values that one label keeps; the field's usual limit. Later ones are counted together
/// under [`OTHER`], so sums stay right.
pub const LABEL_VALUES_MAX: usize = 1_000;

/// Bytes of one label value; a longer one counts under [`OTHER`].
const LABEL_BYTES_MAX: usize = 253;

/// The value that stands for all those beyond the bound.
pub const OTHER: &str = "other";

/// Turns keys into label values and knows at most [`LABEL_VALUES_MAX`] of them.
#[derive(Debug)]
pub(super) struct Bounded<K> {
    known: RwLock<FxHashMap<K, Arc<str>>>,
    none: Arc<str>,
    other: Arc<str>,
}

impl<K> Default for Bounded<K> {
    fn default() -> Self {
        Self {
            known: RwLock::default(),
            none: Arc::from(""),
            other: Arc::from(OTHER),
        }
    }
}

impl<K: Eq + Hash> Bounded<K> {
    /// The label value for `key`: empty for none, [`OTHER`] for a new key beyond the bound.
    pub(super) fn value<Q>(&self, key: Option<&Q>) -> Arc<str>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ToString + ?Sized,
    {
        let Some(key) = key else {
            return Arc::clone(&self.none);
        };
        let seen = self
            .known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned();
        seen.unwrap_or_else(|| self.admit(key))
    }

    /// At the bound this stays a read: a client that invents names must not serialise the workers.
    fn admit<Q>(&self, key: &Q) -> Arc<str>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ToString + ?Sized,
    {
        let full = |known: &FxHashMap<K, Arc<str>>| known.len() >= LABEL_VALUES_MAX;
        if full(&self.known.read().unwrap_or_else(PoisonError::into_inner)) {
            return Arc::clone(&self.other);
        }
        let text = key.to_string();
        if text.len() > LABEL_BYTES_MAX {
            return Arc::clone(&self.other);
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if full(&known) && !known.contains_key(key) {
            return Arc::clone(&self.other);
        }
        Arc::clone(known.entry(key.to_owned()).or_insert_with(|| text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_stops_growing_at_its_bound_and_keeps_what_it_has() {
        let models = Bounded::<String>::default();
        for n in 0..LABEL_VALUES_MAX {
            assert_eq!(
                &*models.value(Some(format!("model-{n}").as_str())),
                format!("model-{n}")
            );
        }
        assert_eq!(&*models.value(Some("one-too-many")), OTHER);
        assert_eq!(&*models.value(Some("model-7")), "model-7");
        assert_eq!(&*models.value(None::<&str>), "");
    }

    #[test]
    fn a_value_that_is_too_long_counts_as_other_and_takes_no_room() {
        let models = Bounded::<String>::default();
        assert_eq!(
            &*models.value(Some("x".repeat(LABEL_BYTES_MAX + 1).as_str())),
            OTHER
        );
        assert_eq!(models.known.read().expect("no panic above").len(), 0);
    }
}
