//! Who may go to a pool now, who waits for it, and who is turned away.
//!
//! The [`Gate`] keeps those who wait; what it is told of the pool comes from the books: saturation
//! by the last scrapes, what was sent and answered since, and the requests that were let go and are
//! not booked yet. The last is what keeps a free place from being given to all who wait.

use std::time::Duration;

use forebay_model::Moment;
use forebay_model::picker::PickerConfig;
use forebay_model::policy::Saturation;

use crate::gate::{Gate, GateLimits, Offer, Ticket, Waiter};
use crate::pool::PoolState;
use crate::report::Refusal;
use crate::rng::Rng;

/// Who stops waiting now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Turns {
    /// These go, in this order. Each counts as on its way until [`PoolState::arrived`].
    pub released: Vec<Ticket>,
    /// These waited as long as they may.
    pub expired: Vec<Ticket>,
}

impl PoolState {
    /// A request arrives. It goes if the pool has room and nobody of its priority or a higher one
    /// waits; one of negative priority that cannot go is shed.
    ///
    /// # Errors
    ///
    /// [`Refusal::Saturated`] for a request of negative priority.
    pub fn offer(&mut self, waiter: Waiter, now: Moment) -> Result<Offer, Refusal> {
        if waiter.priority < 0 && self.config.shed_negative {
            // Who waits is worth more, and room that comes up is theirs.
            return match self.gate.is_empty() {
                true => self.shed(waiter.priority, now).map(|()| Offer::Go),
                false => Err(self.too_full(waiter.priority, now)),
            };
        }
        if self.config.queue_at_saturation.is_none() {
            return Ok(Offer::Go);
        }
        let saturation = self.expected_saturation(now);
        Ok(self.gate.offer(waiter, now, saturation))
    }

    /// Lets go whom the pool has room for, and ends the waits that took too long. To be called
    /// whenever the pool may have got emptier, and at [`Gate::next_expiry`].
    pub fn turns(&mut self, now: Moment) -> Turns {
        let mut turns = Turns::default();
        if self.gate.is_empty() {
            return turns;
        }
        let full = self.fullness(now);
        loop {
            let tick = self.gate.tick(now, full.with(self.coming_fullness()));
            turns.expired.extend(tick.expired);
            let Some(ticket) = tick.released else {
                return turns;
            };
            self.coming += 1;
            turns.released.push(ticket);
        }
    }

    /// A request that was released is booked, or will not be.
    pub fn arrived(&mut self) {
        self.coming = self.coming.saturating_sub(1);
    }

    /// Takes a request out of the queue. False if it is not there.
    pub fn withdraw(&mut self, ticket: Ticket) -> bool {
        self.gate.withdraw(ticket)
    }

    /// Lets everybody go, now and from now on: nobody will tell any more how full the pool is.
    pub fn open_gate(&mut self) {
        self.config.queue_at_saturation = None;
        self.gate.set_limits(gate_limits(&self.config));
    }

    /// The queue, for people and metrics.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// [`saturation`](Self::saturation), with the requests that are on their way to an endpoint.
    #[must_use]
    pub fn expected_saturation(&self, now: Moment) -> f32 {
        self.fullness(now).with(self.coming_fullness())
    }

    /// How much fuller the endpoints together will be for the requests on their way.
    fn coming_fullness(&self) -> f32 {
        let each = match self.config.saturation {
            Saturation::Reported => self.config.saturation_queue,
            Saturation::Inflight { requests_max, .. } => match requests_max {
                Some(max) => max,
                // Nobody knows yet how many tokens they bring.
                None => return 0.0,
            },
        };
        self.coming as f32 / each.max(1) as f32
    }

    /// Refuses a request of negative priority while the pool is full.
    pub(crate) fn shed(&self, priority: i32, now: Moment) -> Result<(), Refusal> {
        if priority >= 0
            || !self.config.shed_negative
            || self.expected_saturation(now) < self.config.shed_at_saturation
        {
            return Ok(());
        }
        Err(self.too_full(priority, now))
    }

    /// Refuses some of the requests of negative priority, the more the fuller the pool is.
    pub(crate) fn shed_gradually(
        &self,
        priority: i32,
        now: Moment,
        rng: &mut Rng,
    ) -> Result<(), Refusal> {
        let Some(curve) = self.config.shed_gradually.filter(|_| priority < 0) else {
            return Ok(());
        };
        let full = self.reported_fullness(curve.saturation_queue, curve.saturation_kv, now);
        let saturation = full.with(0.0);
        let share = curve.scale * saturation.powf(curve.power);
        if share <= 0.0 || rng.unit() >= f64::from(share) {
            return Ok(());
        }
        Err(Refusal::Saturated {
            priority,
            saturation,
            limit: 0.0,
        })
    }

    fn too_full(&self, priority: i32, now: Moment) -> Refusal {
        Refusal::Saturated {
            priority,
            saturation: self.expected_saturation(now),
            limit: self.config.shed_at_saturation,
        }
    }
}

pub(crate) fn gate_limits(config: &PickerConfig) -> GateLimits {
    GateLimits {
        requests_max: config.queue_requests_max,
        bytes_max: config.queue_bytes_max,
        wait_max: Duration::from_millis(config.queue_timeout_ms),
        saturation_ceiling: config.queue_at_saturation.unwrap_or(f32::INFINITY),
    }
}
