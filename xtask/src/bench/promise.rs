//! The promises that the proxy benchmark can judge, and how each is judged.
//!
//! A ratio is taken inside each round, between neighbours in time; the verdict goes by the
//! median over the rounds. An error on either side in any round leaves the promise unmeasured: a
//! proxy that answers wrongly is not fast.

use super::Findings;
use super::load::Sample;
use super::peers::Peer;
use super::scenario::{Kind, SATURATING, Scenario};
use super::stats::Spread;
use anyhow::{Result, bail};

/// A promise with its limit, and what the run says about it.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) promise: &'static Promise,
    /// Absent when something that the promise needs was not in the run, or had an error.
    pub(super) measured: Option<Spread>,
}

/// One promised number: a value of each round whose median must stay at or below a limit.
#[derive(Debug)]
pub(super) struct Promise {
    pub(super) text: &'static str,
    pub(super) limit: f64,
    pub(super) unit: &'static str,
}

/// Where in a comparison of proxies a promise shows.
struct Rule {
    promise: Promise,
    applies_to: fn(&Scenario) -> bool,
    value: fn(&Round<'_>) -> Option<f64>,
}

/// One scenario in one round.
struct Round<'a> {
    findings: &'a Findings,
    scenario: usize,
    round: usize,
}

static RULES: [Rule; 8] = [
    Rule {
        promise: Promise {
            text: "CPU per 2 KiB request with the full inference pick, against Envoy plain",
            limit: 0.5,
            unit: "×",
        },
        applies_to: |s| is_saturating(s, 2_048),
        value: |r| r.cost_ratio(Peer::Envoy),
    },
    Rule {
        promise: Promise {
            text: "CPU per 2 KiB request with the full inference pick, against nginx plain",
            limit: 1.5,
            unit: "×",
        },
        applies_to: |s| is_saturating(s, 2_048),
        value: |r| r.cost_ratio(Peer::Nginx),
    },
    Rule {
        promise: Promise {
            text: "added p50 at 1 connection, against Envoy plain",
            limit: 1.0,
            unit: "×",
        },
        applies_to: |s| s.kind == Kind::Plain && s.connections == 1,
        value: |r| {
            let ours = r.added_p50_us(Peer::Forebay)?;
            let theirs = r.added_p50_us(Peer::Envoy)?;
            (theirs > 0.0).then(|| ours / theirs)
        },
    },
    Rule {
        promise: Promise {
            text: "CPU per 220 KiB request",
            limit: 500.0,
            unit: "µs",
        },
        applies_to: |s| is_saturating(s, 220 * 1_024),
        value: |r| r.cost_us(Peer::Forebay),
    },
    Rule {
        promise: Promise {
            text: "CPU of the picker beside Envoy per 2 KiB request",
            limit: 80.0,
            unit: "µs",
        },
        applies_to: |s| is_saturating(s, 2_048),
        value: |r| r.cost_us(Peer::ForebayEpp),
    },
    Rule {
        promise: Promise {
            text: "CPU of the picker beside Envoy per 220 KiB request",
            limit: 700.0,
            unit: "µs",
        },
        applies_to: |s| is_saturating(s, 220 * 1_024),
        value: |r| r.cost_us(Peer::ForebayEpp),
    },
    Rule {
        promise: Promise {
            text: "CPU per paced server-sent event, against nginx",
            limit: 1.2,
            unit: "×",
        },
        applies_to: |s| matches!(s.kind, Kind::Stream { gap_ms, .. } if gap_ms > 0),
        value: |r| r.cost_ratio(Peer::Nginx),
    },
    Rule {
        promise: Promise {
            text: "CPU per stream of 50 events in a burst, against nginx",
            limit: 2.0,
            unit: "×",
        },
        applies_to: |s| matches!(s.kind, Kind::Stream { gap_ms: 0, .. }),
        value: |r| r.cost_ratio(Peer::Nginx),
    },
];

fn is_saturating(scenario: &Scenario, body_bytes: usize) -> bool {
    scenario.kind == Kind::Plain
        && scenario.connections == SATURATING
        && scenario.body_bytes == body_bytes
}

/// Judges every promise.
pub(super) fn judge(findings: &Findings) -> Vec<Verdict> {
    RULES
        .iter()
        .map(|rule| {
            let scenario = findings.scenarios.iter().position(rule.applies_to);
            let measured = scenario.and_then(|scenario| {
                let rounds = (0..findings.rounds).map(|round| Round {
                    findings,
                    scenario,
                    round,
                });
                let values: Option<Vec<f64>> = rounds.map(|round| (rule.value)(&round)).collect();
                Spread::of(values?)
            });
            Verdict {
                promise: &rule.promise,
                measured,
            }
        })
        .collect()
}

/// Fails unless every promise was measured and holds.
pub(super) fn check(verdicts: &[Verdict]) -> Result<()> {
    let kept = verdicts.iter().filter(|verdict| verdict.is_kept()).count();
    let all = verdicts.len();
    if kept < all {
        bail!(
            "{} of {all} promises are broken or not measured",
            all - kept
        );
    }
    Ok(())
}

/// What one request, paced event or burst stream cost the proxy, in microseconds of CPU.
pub(super) fn cost_us(kind: Kind, sample: &Sample) -> Option<f64> {
    let units = match kind {
        Kind::Plain => sample.requests as f64,
        Kind::Stream { gap_ms, .. } if gap_ms > 0 => sample.events as f64,
        // Streams by their events, which include those cut off by the window's ends; the closing
        // `[DONE]` is one event more.
        Kind::Stream { events, .. } => sample.events as f64 / f64::from(events + 1),
    };
    (sample.errors == 0 && units >= 1.0).then(|| sample.proxy_cpu_us / units)
}

impl Verdict {
    /// True when it was measured and the limit holds.
    pub(super) fn is_kept(&self) -> bool {
        self.measured
            .is_some_and(|measured| measured.median <= self.promise.limit)
    }

    /// The word in the report.
    pub(super) fn word(&self) -> &'static str {
        match self.measured {
            None => "not measured",
            Some(_) if self.is_kept() => "pass",
            Some(_) => "**FAIL**",
        }
    }
}

impl Round<'_> {
    fn sample(&self, peer: Peer) -> Option<&Sample> {
        let sample = self
            .findings
            .samples
            .get(&(self.scenario, peer.name(), self.round))?;
        (sample.errors == 0 && sample.requests > 0).then_some(sample)
    }

    fn cost_us(&self, peer: Peer) -> Option<f64> {
        cost_us(
            self.findings.scenarios[self.scenario].kind,
            self.sample(peer)?,
        )
    }

    fn cost_ratio(&self, to: Peer) -> Option<f64> {
        Some(self.cost_us(Peer::Forebay)? / self.cost_us(to)?)
    }

    fn added_p50_us(&self, peer: Peer) -> Option<f64> {
        Some(self.sample(peer)?.p50_us - self.sample(Peer::Direct)?.p50_us)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario;
    use super::{Findings, Peer, Sample, judge};
    use std::collections::HashMap;

    /// Judges one round in which every peer had these samples in every scenario.
    fn check(samples: &[(Peer, Sample)], expected: [&str; 8]) {
        let scenarios = scenario::list(&[2_048, 220 * 1_024]);
        let mut findings = Findings {
            peers: Vec::new(),
            missing: Vec::new(),
            rounds: 1,
            seconds: 1.0,
            samples: HashMap::new(),
            scenarios,
        };
        for index in 0..findings.scenarios.len() {
            for (peer, sample) in samples {
                findings
                    .samples
                    .insert((index, peer.name(), 0), sample.clone());
            }
        }
        let words: Vec<&str> = judge(&findings)
            .iter()
            .map(|verdict| verdict.word())
            .collect();
        assert_eq!(words, expected);
    }

    fn sample(proxy_cpu_us: f64, p50_us: f64) -> Sample {
        Sample {
            requests: 100,
            events: 100,
            proxy_cpu_us,
            p50_us,
            ..Sample::default()
        }
    }

    #[test]
    fn half_of_envoy_and_level_with_nginx_keeps_every_promise() {
        check(
            &[
                (Peer::Direct, sample(1_000.0, 50.0)),
                (Peer::Nginx, sample(5_000.0, 150.0)),
                (Peer::Envoy, sample(10_000.0, 250.0)),
                (Peer::Forebay, sample(5_000.0, 250.0)),
                (Peer::ForebayEpp, sample(8_000.0, 250.0)),
            ],
            ["pass"; 8],
        );
    }

    #[test]
    fn limits_are_per_promise() {
        check(
            &[
                (Peer::Direct, sample(1_000.0, 50.0)),
                (Peer::Nginx, sample(5_000.0, 150.0)),
                (Peer::Envoy, sample(10_000.0, 250.0)),
                (Peer::Forebay, sample(7_000.0, 251.0)),
                (Peer::ForebayEpp, sample(8_100.0, 251.0)),
            ],
            [
                "**FAIL**", "pass", "**FAIL**", "pass", "**FAIL**", "pass", "**FAIL**", "pass",
            ],
        );
    }

    #[test]
    fn errors_and_missing_peers_leave_a_promise_unmeasured() {
        let broken = Sample {
            errors: 1,
            ..sample(1.0, 1.0)
        };
        check(
            &[
                (Peer::Direct, sample(1_000.0, 50.0)),
                (Peer::Envoy, broken),
                (Peer::Forebay, sample(5_000.0, 60.0)),
            ],
            [
                "not measured",
                "not measured",
                "not measured",
                "pass",
                "not measured",
                "not measured",
                "not measured",
                "not measured",
            ],
        );
    }
}
