//! Waits between tries: doubled from one to the next, each drawn at random so that many who lost the
//! same server do not come back to it at once.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// The next wait of somebody who tries again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// From `first` on, up to `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// Something worked: the next failure is a first one again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }

    /// How long to wait after a failure; `random` is a number from 0 to 1. Between half of the wait
    /// that is due and all of it.
    pub(crate) fn wait(&mut self, random: f64) -> Duration {
        let due = self.next;
        self.next = (due * 2).min(self.longest);
        due.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }
}

/// A number from 0 to 1, from the keys that the standard library draws for its hash maps.
pub(crate) fn random() -> f64 {
    let drawn = RandomState::new().build_hasher().finish();
    (drawn >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_over_after_success() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1), seconds(5));
        let waits: Vec<_> = (0..4).map(|_| backoff.wait(1.0)).collect();
        assert_eq!(waits, [1, 2, 4, 5].map(seconds));
        assert_eq!(backoff.wait(0.0), seconds(5) / 2);
        backoff.reset();
        assert_eq!(backoff.wait(1.0), seconds(1));
    }

    #[test]
    fn random_numbers_differ_and_keep_within_one() {
        let drawn: Vec<f64> = (0..100).map(|_| random()).collect();
        assert!(drawn.iter().all(|n| (0.0..1.0).contains(n)));
        assert!(drawn.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
