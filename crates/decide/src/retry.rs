//! How many second tries a pool may cost: a share of its requests, and a few more so that quiet
//! pools can retry at all. Keeps an outage from being multiplied by its own retries.

use forebay_model::Moment;

/// Retries that each request pays for.
pub const RETRIES_PER_REQUEST: f64 = 0.2;
/// Retries per second on top.
pub const RETRIES_PER_S: f64 = 10.0;
/// Retries that can be saved up: ten seconds of a quiet pool's.
pub const RETRIES_SAVED_MAX: f64 = 100.0;

/// A token bucket of retries. At the bound, a retry is refused and the failure goes to the client.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    saved: f64,
    at: Moment,
}

impl RetryBudget {
    /// A full bucket.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self {
            saved: RETRIES_SAVED_MAX,
            at: now,
        }
    }

    /// Counts a request (its first try).
    pub fn requested(&mut self, now: Moment) {
        self.earn(RETRIES_PER_REQUEST, now);
    }

    /// Takes one retry out of the bucket, if there is one.
    #[must_use]
    pub fn take(&mut self, now: Moment) -> bool {
        self.earn(0.0, now);
        let enough = self.saved >= 1.0;
        if enough {
            self.saved -= 1.0;
        }
        enough
    }

    fn earn(&mut self, more: f64, now: Moment) {
        let passed = now.since(self.at).as_secs_f64() * RETRIES_PER_S;
        self.saved = (self.saved + passed + more).min(RETRIES_SAVED_MAX);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Retries granted out of `tried`, when each of them comes with a request, `per_s` a second.
    fn granted(per_s: u64, tried: u64) -> u64 {
        let mut budget = RetryBudget::new(Moment::ORIGIN);
        let mut granted = 0;
        for i in 0..tried {
            let now = Moment::from_micros(i * 1_000_000 / per_s);
            budget.requested(now);
            granted += u64::from(budget.take(now));
        }
        granted
    }

    #[test]
    fn a_quiet_pool_may_retry_everything() {
        assert_eq!(granted(10, 1_000), 1_000);
    }

    #[test]
    fn an_outage_is_retried_for_a_fifth_of_the_requests_and_ten_a_second() {
        // 20 s at 1,000/s: 100 saved, 200 for the seconds, 4,000 for the requests.
        let retries = granted(1_000, 20_000);
        assert!((4_290..=4_310).contains(&retries), "{retries}");
    }

    #[test]
    fn a_clock_that_steps_back_earns_nothing() {
        let mut budget = RetryBudget::new(Moment::from_millis(10_000));
        while budget.take(Moment::from_millis(10_000)) {}
        assert!(!budget.take(Moment::from_millis(1_000)));
        assert!(!budget.take(Moment::from_millis(10_050)));
        assert!(budget.take(Moment::from_millis(10_101)));
    }
}
