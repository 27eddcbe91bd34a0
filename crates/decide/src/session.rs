//! Where each session was last.
//!
//! Bounded at [`SESSIONS_MAX`]: two generations of a map, of which the older is dropped when the
//! younger is full; a session in use moves to the younger. So at least half of the bound, the most
//! recently used, is always remembered.

use rustc_hash::FxHashMap;

/// Sessions remembered per pool: about 3 MiB at the most.
const SESSIONS_MAX: usize = 65_536;

#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    young: FxHashMap<u64, Place>,
    old: FxHashMap<u64, Place>,
}

/// A slot in one of its lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) slot: u16,
    pub(crate) generation: u32,
}

impl Sessions {
    pub(crate) fn get(&self, session: u64) -> Option<Place> {
        self.young
            .get(&session)
            .or_else(|| self.old.get(&session))
            .copied()
    }

    pub(crate) fn set(&mut self, session: u64, place: Place) {
        if self.young.len() >= SESSIONS_MAX / 2 && !self.young.contains_key(&session) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(session, place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_sessions_are_remembered_and_memory_is_bounded() {
        let mut sessions = Sessions::default();
        let place = Place {
            slot: 1,
            generation: 1,
        };
        for session in 0..1_000_000 {
            sessions.set(session, place);
            sessions.set(7, place);
        }
        assert!(sessions.young.len() + sessions.old.len() <= SESSIONS_MAX);
        assert_eq!(sessions.get(7), Some(place));
        assert_eq!(sessions.get(999_000), Some(place));
        assert_eq!(sessions.get(8), None);
    }
}
