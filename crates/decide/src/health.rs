//! Who is out of rotation, and how an endpoint comes back.
//!
//! Two independent causes. *Failures*: consecutive failed requests take an endpoint out for 1 s,
//! then 2, 4 ... 30 s, but never more than half of a pool (`may_eject_another`). When the time
//! is over one request at a time probes it. *Silence*: consecutive failed scrapes take it out
//! until a scrape works; that has no share limit, since a server that is gone does not come
//! back by being sent requests. Whoever comes back ramps up, see [`Standing::Ramping`].
//! What is done with a standing is in `choose.rs`.

use std::time::Duration;

use forebay_model::Moment;
use serde::Serialize;

use crate::ask::FailureKind;

/// Failed requests in a row that take an endpoint out.
pub const FAILURES_MAX: u32 = 3;
/// Failed scrapes in a row that take an endpoint out.
pub const SCRAPE_FAILURES_MAX: u32 = 3;
/// First time out of rotation; doubles with every further one.
pub const EJECTION_BASE: Duration = Duration::from_secs(1);
/// Longest time out of rotation.
pub const EJECTION_MAX: Duration = Duration::from_secs(30);
/// How long an endpoint that comes back gets less than its share. Long enough for several
/// scrapes to show how it bears the load, short against the life of a server.
pub const RAMP: Duration = Duration::from_secs(5);
/// After this long without an ejection the next one is short again.
pub const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// Why and until when an endpoint is out of rotation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ejection {
    /// What it is out for.
    pub cause: EjectionCause,
    /// Since when.
    pub since: Moment,
    /// Until when; `None` until a scrape works again.
    pub until: Option<Moment>,
}

/// What an endpoint is out of rotation for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EjectionCause {
    /// Requests in a row failed, the last one like this.
    Failures(FailureKind),
    /// Scrapes in a row failed.
    Silence,
}

/// What an endpoint may get.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Whatever the scores say.
    Good,
    /// Up to this share (0 to 1) of the mean number of requests in flight, but at least one.
    Ramping(f32),
    /// One request at a time, to see whether it works.
    Probing,
    /// Nothing.
    Ejected,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Good,
    Ramping {
        since: Moment,
    },
    Out {
        since: Moment,
        until: Moment,
        cause: FailureKind,
    },
}

/// The health of one endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    state: State,
    failures: u32,
    scrape_failures: u32,
    silent_since: Option<Moment>,
    /// Ejections so far, for the length of the next one.
    rounds: u32,
}

impl Health {
    /// In full standing: for endpoints that are there when the pool is first seen.
    pub(crate) fn good() -> Self {
        Self {
            state: State::Good,
            failures: 0,
            scrape_failures: 0,
            silent_since: None,
            rounds: 0,
        }
    }

    /// For endpoints that join later: their caches are cold and they look idle.
    pub(crate) fn joining(now: Moment) -> Self {
        Self {
            state: State::Ramping { since: now },
            ..Self::good()
        }
    }

    pub(crate) fn standing(&self, now: Moment) -> Standing {
        if self.silent_since.is_some() {
            return Standing::Ejected;
        }
        match self.state {
            State::Good => Standing::Good,
            State::Ramping { since } => {
                let progress = now.since(since).as_secs_f32() / RAMP.as_secs_f32();
                if progress < 1.0 {
                    Standing::Ramping(progress)
                } else {
                    Standing::Good
                }
            }
            State::Out { until, .. } if now >= until => Standing::Probing,
            State::Out { .. } => Standing::Ejected,
        }
    }

    pub(crate) fn ejection(&self, now: Moment) -> Option<Ejection> {
        if let Some(since) = self.silent_since {
            return Some(Ejection {
                cause: EjectionCause::Silence,
                since,
                until: None,
            });
        }
        match self.state {
            State::Out {
                since,
                until,
                cause,
            } if now < until => Some(Ejection {
                cause: EjectionCause::Failures(cause),
                since,
                until: Some(until),
            }),
            _ => None,
        }
    }

    /// Whether the next failure would take the endpoint out, if the pool can spare it.
    pub(crate) fn is_last_chance(&self) -> bool {
        self.failures + 1 >= FAILURES_MAX && !matches!(self.state, State::Out { .. })
    }

    /// A request failed. True if that took the endpoint out. A failure of a request that was
    /// under way when the endpoint was taken out changes nothing.
    pub(crate) fn failed(&mut self, kind: FailureKind, may_eject: bool, now: Moment) -> bool {
        self.failures = self.failures.saturating_add(1);
        match self.state {
            State::Out { until, .. } if now < until => false,
            State::Out { .. } => self.eject(kind, now),
            State::Good | State::Ramping { .. } => {
                self.failures >= FAILURES_MAX && may_eject && self.eject(kind, now)
            }
        }
    }

    fn eject(&mut self, cause: FailureKind, now: Moment) -> bool {
        if let State::Ramping { since } = self.state
            && now.since(since) > FORGIVEN_AFTER
        {
            self.rounds = 0;
        }
        let out = EJECTION_BASE
            .saturating_mul(1 << self.rounds.min(16))
            .min(EJECTION_MAX);
        self.rounds += 1;
        self.state = State::Out {
            since: now,
            until: now.plus(out),
            cause,
        };
        true
    }

    /// A request was served. Ends a probe; a late answer while still out does not.
    pub(crate) fn served(&mut self, now: Moment) {
        match self.state {
            State::Out { until, .. } if now < until => {}
            State::Out { .. } => {
                self.failures = 0;
                self.state = State::Ramping { since: now };
            }
            State::Good | State::Ramping { .. } => self.failures = 0,
        }
    }

    pub(crate) fn scraped(&mut self, now: Moment) {
        self.scrape_failures = 0;
        if self.silent_since.take().is_some() && !matches!(self.state, State::Out { .. }) {
            self.state = State::Ramping { since: now };
        }
    }

    /// True if that made the endpoint silent.
    pub(crate) fn scrape_failed(&mut self, now: Moment) -> bool {
        self.scrape_failures = self.scrape_failures.saturating_add(1);
        if self.scrape_failures < SCRAPE_FAILURES_MAX || self.silent_since.is_some() {
            return false;
        }
        self.silent_since = Some(now);
        true
    }
}

/// Whether one more of `endpoints` may be taken out for failures when `out` are already: never
/// more than half, so that a fault on this side (a full network) does not empty the pool.
pub(crate) fn may_eject_another(endpoints: usize, out: usize) -> bool {
    (out + 1) * 2 <= endpoints
}
