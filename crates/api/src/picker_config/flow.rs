//! Flow control: how full the pool is, who waits, and who goes next.

use std::collections::BTreeMap;

use forebay_model::policy::{GradualShedding, Saturation};

use super::fields::Fields;
use super::parts::{Notes, Part};

/// What says how full the pool is.
#[derive(Clone, Debug)]
pub(super) struct Detector {
    pub(super) saturation: Saturation,
    /// Queue length and KV use at which an endpoint is full, for [`Saturation::Reported`].
    pub(super) limits: Option<(u32, f32)>,
    /// As a filter: how far beyond is let pass.
    pub(super) headroom: f32,
}

/// From which saturation on priorities wait.
#[derive(Clone, Debug)]
pub(super) enum Ceilings {
    /// All from the same.
    Same(f32),
    /// Evenly spread over the priorities that there are, by their order.
    ByRank { min: f32, max: f32 },
    /// Spread by their numbers.
    ByValue { min: f32, max: f32 },
    /// As written; others not at all.
    Written(BTreeMap<i32, f32>),
}

impl Ceilings {
    /// The ceilings of `priorities` (in rising order), and that of others.
    pub(super) fn of(&self, priorities: &[i32]) -> (BTreeMap<i32, f32>, f32) {
        let spread = |min: f32, max: f32, share: &dyn Fn(usize) -> f32| {
            let ceiling = |at| min + (max - min) * share(at);
            let all = priorities.iter().enumerate();
            (all.map(|(at, p)| (*p, ceiling(at))).collect(), min)
        };
        let last = priorities.len().saturating_sub(1).max(1) as f32;
        match self {
            Self::Same(ceiling) => {
                let all = priorities.iter().map(|p| (*p, *ceiling));
                (all.collect(), *ceiling)
            }
            Self::ByRank { min, max } if priorities.len() > 1 => {
                spread(*min, *max, &|at| at as f32 / last)
            }
            Self::ByValue { min, max } if priorities.len() > 1 => {
                let lowest = priorities[0] as f32;
                let span = (priorities[priorities.len() - 1] as f32 - lowest).max(1.0);
                spread(*min, *max, &|at| (priorities[at] as f32 - lowest) / span)
            }
            Self::ByRank { min, max } | Self::ByValue { min, max } => spread(*min, *max, &|_| 1.0),
            Self::Written(ceilings) => (ceilings.clone(), 0.0),
        }
    }
}

pub(super) fn utilization(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Detector> {
    let queue = f
        .whole("queueDepthThreshold", 1..=i64::from(u32::MAX))
        .unwrap_or(5);
    let kv = f.number("kvCacheUtilThreshold", 1e-6..=1.0).unwrap_or(0.8);
    if f.duration("metricsStalenessThreshold").is_some() {
        let advice = "metricsStalenessThreshold: an endpoint whose metrics are too old is left out of \
                      the mean rather than taken for full";
        notes.push(advice.to_owned());
    }
    let headroom = f.number("headroom", 0.0..=1e6).unwrap_or(0.0);
    Some(Detector {
        saturation: Saturation::Reported,
        limits: Some((u32::try_from(queue).unwrap_or(5), kv as f32)),
        headroom: headroom as f32,
    })
}

pub(super) fn concurrency(f: &mut Fields<'_>) -> Option<Detector> {
    let _the_only_one = f.text("inFlightLoadProducerName");
    let requests = f
        .whole("maxConcurrency", 1..=i64::from(u32::MAX))
        .unwrap_or(100);
    let tokens = f
        .whole("maxTokenConcurrency", 1..=i64::MAX)
        .unwrap_or(1_000_000);
    let headroom = f.number("headroom", 0.0..=1e6).unwrap_or(0.0);
    let requests_max = u32::try_from(requests).ok();
    let tokens_max = u64::try_from(tokens).ok();
    let saturation = match f.text("concurrencyMode").as_deref() {
        None | Some("requests") => Saturation::Inflight {
            requests_max,
            tokens_max: None,
        },
        Some("tokens") => Saturation::Inflight {
            requests_max: None,
            tokens_max,
        },
        Some("hybrid") => Saturation::Inflight {
            requests_max,
            tokens_max,
        },
        Some(other) => {
            let known = "there are requests, tokens and hybrid";
            f.fault("concurrencyMode", format!("{other:?}; {known}"));
            return None;
        }
    };
    Some(Detector {
        saturation,
        limits: None,
        headroom: headroom as f32,
    })
}

pub(super) fn fixed_ceiling(f: &mut Fields<'_>) -> Option<Part> {
    let threshold = f.number("threshold", 0.0..=1e6).unwrap_or(1.0);
    Some(Part::Ceilings(Ceilings::Same(threshold as f32)))
}

pub(super) fn holdback(f: &mut Fields<'_>) -> Option<Part> {
    if f.text("shape").is_some_and(|shape| shape != "linear") {
        f.fault("shape", "there is linear");
    }
    let domain = f.text("domain");
    let min = f.number("minCeiling", 0.0..=1.0);
    let max = f.number("maxCeiling", 0.0..=1.0).unwrap_or(1.0) as f32;
    let written = f.object("ceilings").map(Fields::rest);
    let ceilings: fn(f32, f32) -> Ceilings = match domain.as_deref() {
        Some("explicit") => {
            let mut ceilings = BTreeMap::new();
            for (priority, ceiling) in written.unwrap_or_default() {
                match (priority.parse(), ceiling.as_f64()) {
                    (Ok(priority), Some(at)) if (0.0..=1.0).contains(&at) => {
                        ceilings.insert(priority, at as f32);
                    }
                    _ => f.fault(
                        "ceilings",
                        format!("{priority}: {ceiling} is not a ceiling"),
                    ),
                }
            }
            let rising = ceilings.values().is_sorted_by(|a, b| a <= b);
            if ceilings.is_empty() || !rising {
                let help = "priorities with ceilings, higher ones no lower than lower ones";
                f.fault("ceilings", help);
                return None;
            }
            return Some(Part::Ceilings(Ceilings::Written(ceilings)));
        }
        None | Some("rank") => |min, max| Ceilings::ByRank { min, max },
        Some("value") => |min, max| Ceilings::ByValue { min, max },
        Some(other) => {
            f.fault(
                "domain",
                format!("{other:?}; there are rank, value and explicit"),
            );
            return None;
        }
    };
    let Some(min) = min else {
        f.fault("minCeiling", "is needed");
        return None;
    };
    Some(Part::Ceilings(ceilings(min as f32, max)))
}

pub(super) fn admitter(f: &mut Fields<'_>) -> GradualShedding {
    let default = GradualShedding::default();
    let queue = f.whole("queueDepthThreshold", 1..=i64::from(u32::MAX));
    let kv = f.number("kvCacheUtilThreshold", 1e-6..=1.0);
    GradualShedding {
        power: f
            .number("power", 1e-3..=1e3)
            .map_or(default.power, |n| n as f32),
        scale: f
            .number("k", 1e-6..=1e12)
            .map_or(default.scale, |n| n as f32),
        saturation_queue: queue
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(default.saturation_queue),
        saturation_kv: kv.map_or(default.saturation_kv, |n| n as f32),
    }
}
