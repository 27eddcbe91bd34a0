//! Flow control: who waits, and who goes next, while a pool is saturated.
//!
//! Priorities are strict. Within one priority the tenants (fairness ids) take turns, and a
//! tenant's requests go in the order in which they came. The queue is bounded in requests and in
//! bytes; when it is full, a request displaces younger ones of lower priority, or is refused.
//! Nobody waits longer than the limit. The gate does not wait or wake anybody: the shell holds a
//! task per [`Ticket`] and acts on what [`Gate::tick`] says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use forebay_model::Moment;
use forebay_model::policy::{self, Bands, Fairness};
use rustc_hash::FxHashMap;
use serde::Serialize;

/// Limits of one gate.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct GateLimits {
    /// Requests that may wait; with 0, all are refused while the pool is saturated.
    pub requests_max: usize,
    /// Bytes of request bodies that may wait.
    pub bytes_max: usize,
    /// How long one may wait.
    pub wait_max: Duration,
    /// Requests go while the pool's saturation is below this; infinity is no limit.
    pub saturation_ceiling: f32,
}

impl Default for GateLimits {
    fn default() -> Self {
        Self {
            requests_max: 5_000,
            bytes_max: 256 << 20,
            wait_max: Duration::from_secs(60),
            saturation_ceiling: 1.0,
        }
    }
}

/// A request at the gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiter {
    /// Higher goes first, always.
    pub priority: i32,
    /// Hash of the tenant's id: tenants of one priority take turns.
    pub fairness: u64,
    /// Bytes that the request holds while it waits.
    pub bytes: usize,
}

/// A place in the queue; tickets are ordered by arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(u64);

/// What becomes of a request at the gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Offer {
    /// It goes now.
    Go,
    /// It waits.
    Wait {
        /// Its place.
        ticket: Ticket,
        /// Requests of lower priority that lost their places to it; they are refused with
        /// [`GateRefusal::Displaced`].
        displaced: Vec<Ticket>,
    },
    /// It may not even wait.
    Refuse(GateRefusal),
}

/// Why a request may not wait, or not any longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateRefusal {
    /// As many requests or bytes wait as may, all of the same or higher priority.
    QueueFull,
    /// It alone is larger than everything that may wait.
    TooLarge,
    /// It waited as long as it may.
    Expired,
    /// Requests of higher priority took its place.
    Displaced,
}

impl GateRefusal {
    /// A short stable word for metrics and response headers.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::TooLarge => "queue-too-large",
            Self::Expired => "queue-expired",
            Self::Displaced => "queue-displaced",
        }
    }
}

impl std::error::Error for GateRefusal {}

impl fmt::Display for GateRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QueueFull => "the pool is saturated and its queue is full: retry later",
            Self::TooLarge => {
                "the pool is saturated and the request is larger than its queue: retry later"
            }
            Self::Expired => "the pool stayed saturated for as long as a request may wait",
            Self::Displaced => {
                "the pool is saturated and requests of higher priority took the place in its queue"
            }
        })
    }
}

/// What a tick decided.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tick {
    /// The request that goes now.
    pub released: Option<Ticket>,
    /// Requests that waited too long.
    pub expired: Vec<Ticket>,
}

/// The queue of one pool.
#[derive(Clone, Debug)]
pub struct Gate {
    limits: GateLimits,
    /// Limits of single priorities within those; `None` if all are alike.
    by_priority: Option<Arc<Bands>>,
    next_ticket: u64,
    waiting: BTreeMap<Ticket, Place>,
    /// When each wait is over at the latest.
    expiries: BTreeSet<(Moment, Ticket)>,
    bands: BTreeMap<i32, Band>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    waiter: Waiter,
    since: Moment,
    expires: Option<Moment>,
}

/// Requests of one priority. No flow in it is empty, and no band is.
#[derive(Clone, Debug, Default)]
struct Band {
    bytes: usize,
    flows: BTreeMap<u64, BTreeSet<Ticket>>,
    /// The flow that went last; the next one by number is next.
    served: Option<u64>,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new(limits: GateLimits) -> Self {
        Self {
            limits,
            by_priority: None,
            next_ticket: 0,
            waiting: BTreeMap::new(),
            expiries: BTreeSet::new(),
            bands: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Replaces the limits; those who wait keep their places even if there are too many of them.
    pub fn set_limits(&mut self, limits: GateLimits) {
        self.limits = limits;
        self.time_waits();
    }

    /// Replaces the limits of single priorities, in the same way.
    pub fn set_bands(&mut self, bands: Option<Bands>) {
        self.by_priority = bands.map(Arc::new);
        self.time_waits();
    }

    /// Reckons anew when the waits are over.
    fn time_waits(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        for place in waiting.values_mut() {
            let max = self.wait_max(place.waiter.priority);
            place.expires = max.map(|max| place.since.plus(max));
        }
        let expiries = waiting.iter();
        let expiries = expiries.filter_map(|(ticket, place)| Some((place.expires?, *ticket)));
        self.expiries = expiries.collect();
        self.waiting = waiting;
    }

    fn band(&self, priority: i32) -> Option<&policy::Band> {
        self.by_priority.as_deref().map(|bands| bands.of(priority))
    }

    /// From which saturation on requests of this priority wait.
    fn ceiling(&self, priority: i32) -> f32 {
        let own = self.band(priority).map_or(1.0, |band| band.ceiling);
        self.limits.saturation_ceiling * own
    }

    /// How long one of this priority may wait.
    fn wait_max(&self, priority: i32) -> Option<Duration> {
        match self.band(priority) {
            None => Some(self.limits.wait_max),
            Some(band) => band.timeout_ms.map(Duration::from_millis),
        }
    }

    /// Whom a request takes turns as.
    fn flow(&self, waiter: Waiter) -> u64 {
        match self.band(waiter.priority).map(|band| band.fairness) {
            Some(Fairness::Arrival) => 0,
            Some(Fairness::Turns) | None => waiter.fairness,
        }
    }

    /// A request arrives. It goes if there is room in the pool and nobody of its priority or a
    /// higher one waits.
    pub fn offer(&mut self, mut waiter: Waiter, now: Moment, saturation: f32) -> Offer {
        let first = self
            .bands
            .last_key_value()
            .is_none_or(|(highest, _)| *highest < waiter.priority);
        if first && saturation < self.ceiling(waiter.priority) {
            return Offer::Go;
        }
        waiter.fairness = self.flow(waiter);
        if !self.band_has_room(waiter) {
            return Offer::Refuse(GateRefusal::QueueFull);
        }
        if waiter.bytes > self.limits.bytes_max {
            return Offer::Refuse(GateRefusal::TooLarge);
        }
        let Some(displaced) = self.room_for(waiter) else {
            return Offer::Refuse(GateRefusal::QueueFull);
        };
        for ticket in &displaced {
            self.withdraw(*ticket);
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let expires = self.wait_max(waiter.priority).map(|max| now.plus(max));
        let place = Place {
            waiter,
            since: now,
            expires,
        };
        self.waiting.insert(ticket, place);
        self.expiries.extend(expires.map(|at| (at, ticket)));
        self.bytes += waiter.bytes;
        let band = self.bands.entry(waiter.priority).or_default();
        band.bytes += waiter.bytes;
        band.flows
            .entry(waiter.fairness)
            .or_default()
            .insert(ticket);
        Offer::Wait { ticket, displaced }
    }

    /// Time passed or the saturation changed. At most one request goes per tick: it changes the
    /// pool's saturation, so the caller sends it and ticks again with the new value, until none
    /// goes.
    pub fn tick(&mut self, now: Moment, saturation: f32) -> Tick {
        let mut tick = Tick::default();
        while let Some(&(at, ticket)) = self.expiries.first()
            && at <= now
        {
            self.withdraw(ticket);
            tick.expired.push(ticket);
        }
        let highest = self.bands.last_key_value().map(|(priority, _)| *priority);
        if highest.is_some_and(|priority| saturation < self.ceiling(priority)) {
            tick.released = self.release();
        }
        tick
    }

    /// Takes a request out of the queue, because its client went away. False if it is not there.
    pub fn withdraw(&mut self, ticket: Ticket) -> bool {
        let Some(Place {
            waiter, expires, ..
        }) = self.waiting.remove(&ticket)
        else {
            return false;
        };
        if let Some(at) = expires {
            self.expiries.remove(&(at, ticket));
        }
        self.bytes -= waiter.bytes;
        if let Some(band) = self.bands.get_mut(&waiter.priority) {
            band.bytes -= waiter.bytes;
            if let Some(flow) = band.flows.get_mut(&waiter.fairness) {
                flow.remove(&ticket);
                if flow.is_empty() {
                    band.flows.remove(&waiter.fairness);
                }
            }
            if band.flows.is_empty() {
                self.bands.remove(&waiter.priority);
            }
        }
        true
    }

    /// Requests that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Priorities with the number of requests that wait, highest first.
    pub fn depths(&self) -> impl Iterator<Item = (i32, usize)> {
        let depth = |band: &Band| band.flows.values().map(BTreeSet::len).sum();
        self.bands
            .iter()
            .rev()
            .map(move |(p, band)| (*p, depth(band)))
    }

    /// Requests that wait with this priority or a higher one.
    #[must_use]
    pub fn ahead_of(&self, priority: i32) -> usize {
        let flows = self.bands.range(priority..).flat_map(|(_, b)| &b.flows);
        flows.map(|(_, tickets)| tickets.len()).sum()
    }

    /// How long the oldest of those who wait has done so.
    #[must_use]
    pub fn longest_wait(&self, now: Moment) -> Option<Duration> {
        let (_, oldest) = self.waiting.first_key_value()?;
        Some(now.since(oldest.since))
    }

    /// When the longest waiting request's time is over, to wake up then.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Moment> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Whether the limits of its own priority let one more wait.
    fn band_has_room(&self, waiter: Waiter) -> bool {
        let Some(limits) = self.band(waiter.priority) else {
            return true;
        };
        let (requests, bytes) = self.bands.get(&waiter.priority).map_or((0, 0), |band| {
            (band.flows.values().map(BTreeSet::len).sum(), band.bytes)
        });
        requests < limits.requests_max && bytes.saturating_add(waiter.bytes) <= limits.bytes_max
    }

    fn release(&mut self) -> Option<Ticket> {
        let band = self.bands.last_entry()?.into_mut();
        let after = band.served.map_or(0, |served| served.saturating_add(1));
        let next = band.flows.range(after..).next();
        let (&flow, tickets) = next
            .filter(|(flow, _)| Some(**flow) != band.served)
            .or_else(|| band.flows.first_key_value())?;
        let ticket = *tickets.first()?;
        band.served = Some(flow);
        self.withdraw(ticket);
        Some(ticket)
    }

    /// Whose places the request takes, if that makes enough room: the youngest requests of the
    /// tenants with most of them, from the lowest priority upwards.
    fn room_for(&self, waiter: Waiter) -> Option<Vec<Ticket>> {
        let (mut requests, mut bytes) = (self.waiting.len() + 1, self.bytes + waiter.bytes);
        let mut displaced = Vec::new();
        let mut taken: FxHashMap<(i32, u64), usize> = FxHashMap::default();
        while requests > self.limits.requests_max || bytes > self.limits.bytes_max {
            let left = |priority: i32, flow: u64, len: usize| {
                len - taken.get(&(priority, flow)).copied().unwrap_or(0)
            };
            let lower = self.bands.range(..waiter.priority);
            let (priority, flow, tickets) = lower
                .filter_map(|(&priority, band)| {
                    let flows = band
                        .flows
                        .iter()
                        .filter(|(f, t)| left(priority, **f, t.len()) > 0);
                    let most = flows.max_by_key(|(f, t)| left(priority, **f, t.len()));
                    most.map(|(&flow, tickets)| (priority, flow, tickets))
                })
                .next()?;
            let skip = taken.entry((priority, flow)).or_default();
            let ticket = *tickets.iter().rev().nth(*skip)?;
            *skip += 1;
            requests -= 1;
            bytes -= self.waiting[&ticket].waiter.bytes;
            displaced.push(ticket);
        }
        Some(displaced)
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
