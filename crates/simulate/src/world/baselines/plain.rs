//! What any load balancer can do: turns, and fewest requests in flight.

use forebay_decide::{End, Rng};
use forebay_model::{Load, Moment};
use rustc_hash::FxHashMap;

use crate::world::router::{Id, Router, Seen};

/// Takes turns.
#[derive(Debug)]
pub struct RoundRobin {
    endpoints: usize,
    next: usize,
}

impl RoundRobin {
    /// Over so many endpoints.
    #[must_use]
    pub fn new(endpoints: usize) -> Self {
        Self { endpoints, next: 0 }
    }
}

impl Router for RoundRobin {
    fn scraped(&mut self, _at: usize, _load: Load, _now: Moment) {}

    fn send(&mut self, _id: Id, _seen: &Seen<'_>, _now: Moment) -> Option<usize> {
        let at = self.next;
        self.next = (self.next + 1) % self.endpoints;
        Some(at)
    }

    fn finish(&mut self, _id: Id, _end: End, _now: Moment) {}
}

/// Where each request went, and how many are on their way or served at each endpoint.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    pub(super) counts: Vec<u32>,
    at: FxHashMap<Id, usize>,
}

impl InFlight {
    pub(super) fn new(endpoints: usize) -> Self {
        Self {
            counts: vec![0; endpoints],
            at: FxHashMap::default(),
        }
    }

    pub(super) fn sent(&mut self, id: Id, at: usize) {
        self.counts[at] += 1;
        self.at.insert(id, at);
    }

    pub(super) fn finished(&mut self, id: Id) {
        if let Some(at) = self.at.remove(&id) {
            self.counts[at] -= 1;
        }
    }
}

/// Fewest requests in flight, ties at random: full scan, as good as least-request gets.
#[derive(Debug)]
pub struct LeastRequest {
    in_flight: InFlight,
    rng: Rng,
}

impl LeastRequest {
    /// Over so many endpoints.
    #[must_use]
    pub fn new(endpoints: usize, seed: u64) -> Self {
        Self {
            in_flight: InFlight::new(endpoints),
            rng: Rng::seeded(seed),
        }
    }
}

impl Router for LeastRequest {
    fn scraped(&mut self, _at: usize, _load: Load, _now: Moment) {}

    fn send(&mut self, id: Id, _seen: &Seen<'_>, _now: Moment) -> Option<usize> {
        let counts = &self.in_flight.counts;
        let at = highest(counts.iter().map(|n| -f64::from(*n)), &mut self.rng)?;
        self.in_flight.sent(id, at);
        Some(at)
    }

    fn finish(&mut self, id: Id, _end: End, _now: Moment) {
        self.in_flight.finished(id);
    }
}

/// The position of the highest value, one of the equals at random.
pub(super) fn highest(values: impl Iterator<Item = f64>, rng: &mut Rng) -> Option<usize> {
    let (mut best, mut equals) = (None::<(usize, f64)>, 0);
    for (at, value) in values.enumerate() {
        match best {
            Some((_, most)) if value < most => {}
            Some((_, most)) if value == most => {
                equals += 1;
                if rng.below(equals) == 0 {
                    best = Some((at, value));
                }
            }
            Some(_) | None => (best, equals) = (Some((at, value)), 1),
        }
    }
    best.map(|(at, _)| at)
}
