//! `featureGates` and `flowControl`: who waits and who is turned away.
//!
//! Without the gate `flowControl` nobody waits, and requests of negative priority are refused while
//! the pool is full. With it everybody waits, each priority within its own limits.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_model::PickerConfig;
use forebay_model::policy::{self, Bands, Fairness, SloAdmission};

use super::document::{Band, FlowControl, Ref};
use super::fields::nearest;
use super::flow::{Ceilings, Detector};
use super::lower::Lowering;
use super::parts::Part;
use super::{MALFORMED, UNRESOLVED};

/// Requests and bytes that may wait where the document sets no limit; memory has one.
const REQUESTS_MAX: usize = 100_000;
const BYTES_MAX: usize = 16 << 30;
/// A wait that is not limited, in milliseconds: a day.
const WAIT_MAX_MS: u64 = 86_400_000;

/// Gates with what is said of them where they are written.
const GATES: &[(&str, &str)] = &[
    ("flowControl", ""),
    (
        "haPopulateNonLeaderDatastore",
        "every replica serves, and knows as much",
    ),
    ("prepareDataPlugins", "it is on anyway"),
    ("dataLayer", "it is on anyway"),
    ("enableDataLayer", "it is on anyway"),
];

/// Settles `picker`'s queue.
pub(super) fn lower(lowering: &mut Lowering<'_>, picker: &mut PickerConfig) {
    let queues = gates(lowering);
    let document = lowering.document;
    let old = document.old_detector.as_ref();
    if let Some(old) = old {
        lowering.note(&old.at, "belongs into flowControl.saturationDetector now");
    }
    let flow = document.flow.as_ref();
    let written = flow.and_then(|flow| flow.detector.as_ref()).or(old);
    detector(lowering, written, picker);
    let mut parts = lowering.parts.values();
    if parts.any(|part| matches!(part, Part::SloAdmitter)) {
        picker.slo_admission = SloAdmission::Sheddable;
    }
    for (name, part) in &lowering.parts {
        if let Part::Admitter(shedding) = part {
            if picker.shed_gradually.is_some() {
                let message = format!("{name} is a second one; there is one");
                lowering.faults.add("plugins", UNRESOLVED, message);
            }
            picker.shed_gradually = Some(*shedding);
        }
    }
    match (queues, flow) {
        (false, None) => {}
        (false, Some(flow)) => {
            let message = "has no effect without flowControl in featureGates, but for the \
                           saturation detector";
            lowering.note(&flow.at, message);
        }
        (true, flow) => {
            let default = FlowControl::default();
            queue(lowering, flow.unwrap_or(&default), picker);
        }
    }
}

fn gates(lowering: &Lowering<'_>) -> bool {
    let names: Vec<&str> = GATES.iter().map(|(name, _)| *name).collect();
    for (name, (at, _)) in &lowering.document.gates {
        match GATES.iter().find(|(known, _)| known == name) {
            Some((_, "")) => {}
            Some((_, advice)) => lowering.note(at, format!("{name}: {advice}")),
            None => {
                let help = match nearest(name, &names) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("there are {}", names.join(", ")),
                };
                let message = format!("there is no gate {name:?}; {help}");
                lowering.faults.add(at, MALFORMED, message);
            }
        }
    }
    let gate = lowering.document.gates.get("flowControl");
    gate.is_some_and(|(_, on)| *on)
}

fn detector(lowering: &mut Lowering<'_>, written: Option<&Ref>, picker: &mut PickerConfig) {
    let Some(reference) = written else {
        let kind = "utilization-detector";
        lowering.add(
            kind,
            kind,
            "saturation reported, full at queue 5 or KV use 0.8",
        );
        return;
    };
    // The default need not be listed to be referred to.
    if reference.name == "utilization-detector" && !lowering.parts.contains_key(&reference.name) {
        return;
    }
    match lowering.part(reference, "a saturation detector") {
        Some(Part::Detector(Detector {
            saturation, limits, ..
        })) => {
            picker.saturation = saturation;
            if let Some((queue, kv)) = limits {
                (picker.saturation_queue, picker.saturation_kv) = (queue, kv);
            }
        }
        Some(_) => lowering.wrong_part(reference, "saturation detector"),
        None => {}
    }
}

fn queue(lowering: &mut Lowering<'_>, flow: &FlowControl, picker: &mut PickerConfig) {
    picker.queue_at_saturation = Some(1.0);
    picker.shed_negative = false;
    let limit = |value: Option<u64>, otherwise: usize| match value {
        None | Some(0) => otherwise,
        Some(limit) => usize::try_from(limit).unwrap_or(otherwise),
    };
    picker.queue_requests_max = limit(flow.requests_max, REQUESTS_MAX);
    picker.queue_bytes_max = limit(flow.bytes_max, BYTES_MAX);
    let ttl = flow.ttl.unwrap_or(Duration::from_secs(60));
    picker.queue_timeout_ms = timeout_ms(ttl).unwrap_or(WAIT_MAX_MS);
    if flow.ttl_without_endpoints.is_some_and(|ttl| !ttl.is_zero()) {
        let at = format!("{}.noEndpointRequestTTL", flow.at);
        lowering.note(
            &at,
            "requests to a pool without endpoints are refused at once",
        );
    }
    if flow.eviction {
        let at = format!("{}.enableEviction", flow.at);
        let message = "requests under way are not ended for others: write false";
        lowering.faults.add(&at, super::NO_EQUIVALENT, message);
    }
    if let Some(reference) = &flow.band_selection {
        policy_part(lowering, reference, "band selection policy", |part| {
            matches!(part, Part::Strict).then_some(())
        });
    }
    let ceilings = flow.usage_limit.as_ref().and_then(|reference| {
        policy_part(
            lowering,
            reference,
            "usage limit policy",
            |part| match part {
                Part::Ceilings(ceilings) => Some(ceilings),
                _ => None,
            },
        )
    });
    let mut bands = Bands {
        default: band(lowering, flow.default_band.as_ref(), ttl),
        negative: None,
        by_priority: BTreeMap::new(),
    };
    if let Some(written) = &flow.default_negative_band {
        bands.negative = Some(band(lowering, Some(written), ttl));
    }
    for written in &flow.bands {
        let own = band(lowering, Some(written), ttl);
        if bands.by_priority.insert(written.priority, own).is_some() {
            let message = format!("priority {} has two bands", written.priority);
            lowering.faults.add(&written.at, MALFORMED, message);
        }
    }
    apply_ceilings(&ceilings.unwrap_or(Ceilings::Same(1.0)), &mut bands);
    picker.bands = Some(bands);
}

fn apply_ceilings(ceilings: &Ceilings, bands: &mut Bands) {
    let mut priorities: Vec<i32> = bands.by_priority.keys().copied().collect();
    if let Ceilings::Written(written) = ceilings {
        for priority in written.keys() {
            if !bands.by_priority.contains_key(priority) {
                bands
                    .by_priority
                    .insert(*priority, bands.of(*priority).clone());
            }
        }
        priorities = bands.by_priority.keys().copied().collect();
    }
    let (own, others) = ceilings.of(&priorities);
    for (priority, band) in &mut bands.by_priority {
        band.ceiling = own.get(priority).copied().unwrap_or(others);
    }
    bands.default.ceiling = others;
    if let Some(negative) = &mut bands.negative {
        negative.ceiling = others;
    }
}

/// A band with its defaults: 5,000 requests and 1 GB, first come first served.
fn band(lowering: &mut Lowering<'_>, written: Option<&Band>, ttl: Duration) -> policy::Band {
    let mut band = policy::Band {
        timeout_ms: timeout_ms(ttl),
        ..policy::Band::default()
    };
    let Some(written) = written else {
        return band;
    };
    let limit = |value: Option<u64>| {
        let limit = value.filter(|limit| *limit > 0);
        limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
    };
    band.requests_max = limit(written.requests_max).unwrap_or(band.requests_max);
    band.bytes_max = limit(written.bytes_max).unwrap_or(band.bytes_max);
    if let Some(own) = written.ttl {
        band.timeout_ms = timeout_ms(own);
    }
    if let Some(reference) = &written.fairness {
        let fairness = policy_part(lowering, reference, "fairness policy", |part| match part {
            Part::Fairness(fairness) => Some(fairness),
            _ => None,
        });
        band.fairness = fairness.unwrap_or(Fairness::Arrival);
    }
    if let Some(reference) = &written.ordering {
        policy_part(lowering, reference, "ordering policy", |part| {
            matches!(part, Part::Arrival).then_some(())
        });
    }
    band
}

/// What a reference to a policy means. The defaults of llm-d need not be listed.
fn policy_part<T>(
    lowering: &mut Lowering<'_>,
    reference: &Ref,
    what: &str,
    fits: impl Fn(Part) -> Option<T>,
) -> Option<T> {
    let default = match reference.name.as_str() {
        "global-strict-fairness-policy" => Some(Part::Fairness(Fairness::Arrival)),
        "round-robin-fairness-policy" => Some(Part::Fairness(Fairness::Turns)),
        "fcfs-ordering-policy" => Some(Part::Arrival),
        "static-usage-limit-policy" => Some(Part::Ceilings(Ceilings::Same(1.0))),
        "strict-band-selection-policy" => Some(Part::Strict),
        _ => None,
    };
    let part = match default {
        Some(part) if !lowering.parts.contains_key(&reference.name) => part,
        Some(_) | None => lowering.part(reference, what)?,
    };
    let found = fits(part);
    if found.is_none() {
        lowering.wrong_part(reference, what);
    }
    found
}

/// None is as long as it takes.
fn timeout_ms(ttl: Duration) -> Option<u64> {
    let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    (ms > 0).then_some(ms)
}
