//! When an endpoint is scraped next. Pure: the last outcome in, a pause out.
//!
//! A busy endpoint is read at the full rate, an idle one less often, and one that answers slowly
//! rests four times as long as it took, up to half a second. After a miss the next scrape follows quickly, so that three misses in a row, which
//! eject an endpoint, take less than a second also where every one of them is a timeout:
//! `idle_interval + 3 × timeout + 2 × RECHECK` is 970 ms with the defaults.

use std::time::Duration;

/// Pause between the misses that decide whether an endpoint is gone.
const RECHECK: Duration = Duration::from_millis(10);
/// The same after an endpoint refused at once: a restart takes longer than three refusals.
const RECHECK_REFUSED: Duration = Duration::from_millis(100);
/// Misses after which an endpoint counts as gone and is only watched for its return.
const MISSES_GONE: u32 = 3;
/// First and longest pause while an endpoint is gone.
const GONE_MIN: Duration = Duration::from_millis(100);
const GONE_MAX: Duration = Duration::from_millis(500);
/// Pause after a server said that it has no metrics page.
const NO_METRICS: Duration = Duration::from_secs(5);
/// A scrape that took `t` is followed by a pause of at least this many `t`...
const SLOW_FACTOR: u32 = 4;
/// ...up to this.
const SLOW_MAX: Duration = Duration::from_millis(500);

/// How often endpoints are scraped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Pause between scrapes of a busy endpoint.
    pub interval: Duration,
    /// Longest pause between scrapes of an idle endpoint.
    pub idle_interval: Duration,
    /// Limit of one scrape, connecting included.
    pub timeout: Duration,
    /// Whether pools that no route leads to are read as well: those of a picker for another proxy.
    pub unrouted: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(50),
            idle_interval: Duration::from_millis(200),
            timeout: Duration::from_millis(250),
            unrouted: false,
        }
    }
}

/// How a scrape ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Read, after this long; `idle` if nothing runs, waits or is in flight.
    Read {
        /// Request to last byte.
        took: Duration,
        /// Nothing to do there.
        idle: bool,
    },
    /// The server is alive and has no metrics.
    NoMetrics,
    /// No answer within the timeout.
    Silent,
    /// Refused, reset, or an answer that cannot be used.
    Refused,
}

/// What is remembered of an endpoint between scrapes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Pace {
    misses: u32,
    idle_in_row: u32,
}

impl Pace {
    /// The pause before the next scrape. `draw` is a random number; it spreads the returns of
    /// endpoints that went away together.
    pub(super) fn next(&mut self, outcome: Outcome, settings: &Settings, draw: u64) -> Duration {
        match outcome {
            Outcome::Read { took, idle } => {
                self.misses = 0;
                self.idle_in_row = if idle {
                    (self.idle_in_row + 1).min(16)
                } else {
                    0
                };
                let idle_pause = settings.interval * (1 << self.idle_in_row.min(8));
                let longest = settings.idle_interval.max(settings.interval);
                idle_pause
                    .min(longest)
                    .max((took * SLOW_FACTOR).min(SLOW_MAX))
            }
            Outcome::NoMetrics => {
                *self = Self::default();
                spread(NO_METRICS, draw)
            }
            Outcome::Silent => self.missed(RECHECK, draw),
            Outcome::Refused => self.missed(RECHECK_REFUSED, draw),
        }
    }

    fn missed(&mut self, recheck: Duration, draw: u64) -> Duration {
        self.idle_in_row = 0;
        self.misses = self.misses.saturating_add(1);
        match self.misses.checked_sub(MISSES_GONE) {
            None => recheck,
            Some(extra) => spread((GONE_MIN * (1 << extra.min(8))).min(GONE_MAX), draw),
        }
    }
}

/// Three quarters to the whole of `pause`.
fn spread(pause: Duration, draw: u64) -> Duration {
    let quarter = u64::try_from(pause.as_micros() / 4)
        .unwrap_or(u64::MAX)
        .max(1);
    pause - Duration::from_micros(draw % quarter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn check(outcomes: &[Outcome], pauses_ms: &[u64]) {
        let mut pace = Pace::default();
        let got: Vec<u64> = outcomes
            .iter()
            .map(|o| pace.next(*o, &Settings::default(), 0).as_millis() as u64)
            .collect();
        assert_eq!(got, pauses_ms);
    }

    const BUSY: Outcome = Outcome::Read {
        took: ms(2),
        idle: false,
    };
    const IDLE: Outcome = Outcome::Read {
        took: ms(2),
        idle: true,
    };

    #[test]
    fn a_busy_endpoint_is_read_at_the_full_rate() {
        check(&[BUSY, BUSY], &[50, 50]);
    }

    #[test]
    fn an_idle_endpoint_is_read_less_often_until_it_has_work() {
        check(&[IDLE, IDLE, IDLE, BUSY], &[100, 200, 200, 50]);
    }

    #[test]
    fn a_slow_server_is_left_alone_four_times_as_long_as_it_took() {
        check(
            &[Outcome::Read {
                took: ms(30),
                idle: false,
            }],
            &[120],
        );
        check(
            &[Outcome::Read {
                took: ms(240),
                idle: false,
            }],
            &[500],
        );
    }

    #[test]
    fn misses_are_rechecked_quickly_then_watched() {
        use Outcome::{Refused, Silent};
        check(&[Silent; 7], &[10, 10, 100, 200, 400, 500, 500]);
        check(
            &[Refused, Refused, Refused, BUSY, Refused],
            &[100, 100, 100, 50, 100],
        );
    }

    #[test]
    fn silence_is_noticed_within_a_second_also_of_an_idle_endpoint() {
        let settings = Settings::default();
        let mut pace = Pace::default();
        let mut passed = settings.idle_interval;
        for miss in 1..=MISSES_GONE {
            passed += settings.timeout;
            if miss < MISSES_GONE {
                passed += pace.next(Outcome::Silent, &settings, u64::MAX);
            }
        }
        assert!(passed < ms(1000), "{passed:?}");
    }

    #[test]
    fn a_return_is_noticed_within_a_second() {
        let mut pace = Pace::default();
        let settings = Settings::default();
        for draw in 0..100_000_u64 {
            let pause = pace.next(Outcome::Silent, &settings, draw.wrapping_mul(7919));
            assert!(pause + settings.timeout < ms(1000), "{pause:?}");
        }
    }
}
