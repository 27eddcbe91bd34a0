//! Scorers with their parameters.

use forebay_model::picker::Scorer;
use forebay_model::policy::{Headroom, LatencyScoring, Signal};

use super::fields::{Fields, nearest};
use super::parts::{Notes, Part};
use super::producers;

/// Fields that carry a session's name, by which requests are told apart anyway.
pub(super) const SESSION_FIELDS: [&str; 6] = [
    "x-session-token",
    "x-session-id",
    "x-claude-code-session-id",
    "x-session-affinity",
    "session-id",
    "session_id",
];

/// Attributes of endpoints that are known, with the names that configurations give them.
const SIGNALS: &[(&str, Signal)] = &[
    ("waiting_queue", Signal::Waiting),
    ("waiting_queue_size", Signal::Waiting),
    ("WaitingQueueSize", Signal::Waiting),
    ("queue_depth", Signal::Waiting),
    ("num_requests_waiting", Signal::Waiting),
    ("waiting-queue", Signal::Waiting),
    ("running_requests", Signal::Running),
    ("running_requests_size", Signal::Running),
    ("RunningRequestsSize", Signal::Running),
    ("num_requests_running", Signal::Running),
    ("running-requests", Signal::Running),
    ("kv_cache_utilization", Signal::KvUsed),
    ("kv_cache_usage_perc", Signal::KvUsed),
    ("KVCacheUsagePercent", Signal::KvUsed),
    ("kv-cache-utilization", Signal::KvUsed),
    ("inflight_requests", Signal::InflightRequests),
    ("active-requests", Signal::InflightRequests),
    ("inflight_tokens", Signal::InflightTokens),
];

/// The attribute that the field `name` names.
pub(super) fn signal(f: &mut Fields<'_>, name: &'static str) -> Option<Signal> {
    let Some(written) = f.text(name) else {
        f.fault(name, "name an attribute of endpoints");
        return None;
    };
    let bare = written.strip_prefix("custom.").unwrap_or(&written);
    let found = SIGNALS.iter().find(|(known, _)| *known == bare);
    if let Some((_, signal)) = found {
        return Some(*signal);
    }
    let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| *name).collect();
    let help = match nearest(bare, &names) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("there are: {}", names.join(", ")),
    };
    f.fault(
        name,
        format!("{written:?} is not known of endpoints; {help}"),
    );
    None
}

/// A name of a producer, of which there is one of each kind here.
pub(super) fn producer(f: &mut Fields<'_>, names: &[&'static str]) {
    for name in names {
        let _the_only_one = f.text(name);
    }
}

pub(super) fn load_aware(f: &mut Fields<'_>) -> Option<Scorer> {
    let queue_max = f.number("threshold", -1e9..=1e9).unwrap_or(128.0);
    let queue_max = if queue_max > 0.0 { queue_max } else { 128.0 };
    Some(Scorer::QueueShare {
        queue_max: queue_max as f32,
    })
}

/// The scorer; in the older form with the parameters of the producer.
pub(super) fn prefix(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Part> {
    producer(f, &["prefixMatchInfoProducerName"]);
    let mut weight = f.number("prefixLengthWeight", 0.0..=1.0);
    let mut tokens = f.number("maxModelLen", 1.0..=1e9);
    weight = f.number("matchLengthWeight", 0.0..=1.0).or(weight);
    tokens = f.number("matchLengthScaleTokens", 1.0..=1e9).or(tokens);
    let scorer = match weight {
        Some(weight) if weight > 0.0 => Scorer::PrefixLength {
            weight: weight as f32,
            tokens_max: tokens.unwrap_or(8_192.0) as f32,
        },
        Some(_) | None => Scorer::Prefix,
    };
    if producers::OLD_PREFIX_FIELDS.iter().any(|name| f.has(name)) {
        let advice = "the parameters of the index belong to approx-prefix-cache-producer now";
        notes.push(advice.to_owned());
        let index = producers::approximate(f, notes);
        return Some(Part::Approximate(index.with(scorer)));
    }
    Some(Part::Scorer(scorer))
}

pub(super) fn no_hit(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Scorer> {
    producer(
        f,
        &[
            "prefixMatchInfoProducerName",
            "prefixPluginType",
            "prefixPluginName",
        ],
    );
    if f.count("lruSize").is_some_and(|size| size > 0) {
        notes.push("lruSize: every endpoint of the pool is remembered".to_owned());
    }
    Some(Scorer::ColdSpread)
}

pub(super) fn token_load(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Scorer> {
    producer(
        f,
        &["inFlightLoadProducerName", "prefixMatchInfoProducerName"],
    );
    let tokens = f.number("queueThresholdTokens", 1.0..=1e12);
    let media = f.number("nonTextTokenWeight", -1e6..=1e6);
    if media.is_some_and(|weight| weight > 0.0 && (weight - 1.0).abs() > f64::EPSILON) {
        let advice = "nonTextTokenWeight: tokens of images and the like count as others do";
        notes.push(advice.to_owned());
    }
    Some(Scorer::PrefillShare {
        tokens_max: tokens.unwrap_or(4_194_304.0) as f32,
    })
}

pub(super) fn active_requests(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Scorer> {
    producer(f, &["inFlightLoadProducerName"]);
    if f.value("requestTimeout").is_some() {
        notes.push("requestTimeout has no effect: a request counts until it ends".to_owned());
    }
    let idle_max = f.whole("idleThreshold", 0..=1_000_000).unwrap_or(0);
    let busy = f.number("maxBusyScore", 0.0..=1.0).unwrap_or(1.0);
    Some(Scorer::ActiveRequests {
        idle_max: u32::try_from(idle_max).unwrap_or(0),
        busy_score_max: busy as f32,
    })
}

pub(super) fn latency(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Scorer> {
    producer(
        f,
        &[
            "latencyPredictionInfoProducerName",
            "prefixMatchInfoProducerName",
        ],
    );
    let default = LatencyScoring::default();
    let ttft = f.number("ttftWeight", 0.0..=1e6);
    let tpot = f.number("tpotWeight", 0.0..=1e6);
    let headroom = match f.text("headroomSelectionStrategy").as_deref() {
        None | Some("least") => Headroom::Least,
        Some("most") => Headroom::Most,
        Some(other) => {
            let message = format!("{other:?}; there are least and most");
            f.fault("headroomSelectionStrategy", message);
            return None;
        }
    };
    for name in [
        "compositeKVWeight",
        "compositeQueueWeight",
        "compositePrefixWeight",
    ] {
        if f.number(name, 0.0..=1e6).is_some() {
            notes.push(format!("{name}: while nothing is predicted, all are alike"));
        }
    }
    Some(Scorer::Latency(LatencyScoring {
        headroom,
        ttft_weight: ttft.map_or(default.ttft_weight, |n| n as f32),
        tpot_weight: tpot.map_or(default.tpot_weight, |n| n as f32),
    }))
}

pub(super) fn session(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Scorer> {
    let strategy = f.text("algorithm").or_else(|| f.text("strategy"));
    let header = f.text("headerName");
    for name in [
        "evictionTtlSeconds",
        "evictionSweepSeconds",
        "missThreshold",
    ] {
        let _bounded_otherwise = f.number(name, 0.0..=1e9);
    }
    session_fields(f, strategy, header.into_iter().collect(), notes)?;
    Some(Scorer::Session)
}

/// What sessions are told apart by: their name in one of the fields that are known. The strategy by
/// which the picker writes the name into responses needs clients that start with one of their own.
pub(super) fn session_fields(
    f: &mut Fields<'_>,
    strategy: Option<String>,
    mut headers: Vec<String>,
    notes: &mut Notes,
) -> Option<()> {
    let _one_profile_each = f.text("profileName");
    if let Some(mut own) = f.object("encodedEndpointHeaderConfig") {
        headers.extend(own.text("header"));
        own.end();
    }
    if let Some(mut own) = f.object("sessionIdConfig") {
        for (at, item) in own.list("sources") {
            let mut source = own.within(item, &at);
            headers.extend(source.text("header"));
            if source.text("attribute").is_some() {
                notes.push("sources: attributes are not read, headers are".to_owned());
            }
            source.end();
        }
        let _bounded = (
            own.number("evictionTtlSeconds", 0.0..=1e9),
            own.number("evictionSweepSeconds", 0.0..=1e9),
        );
        own.end();
    }
    for header in &headers {
        if !SESSION_FIELDS.contains(&header.to_ascii_lowercase().as_str()) {
            let known = SESSION_FIELDS.join(", ");
            f.fault(
                "",
                format!("sessions are not read from {header}; use one of {known}"),
            );
            return None;
        }
    }
    match strategy.as_deref() {
        None | Some("encoded_endpoint_header") => notes.push(
            "sessions are told apart by the value that the client sends; no token is written into \
             responses, so a client has to begin with a value of its own"
                .to_owned(),
        ),
        Some("session_id" | "session_id_header") => {}
        Some(other) => {
            let known = "encoded_endpoint_header, session_id";
            f.fault(
                "strategy",
                format!("{other:?} is not known; there are: {known}"),
            );
            return None;
        }
    }
    Some(())
}

pub(super) fn header_label(f: &mut Fields<'_>) -> Option<Scorer> {
    let (header, label) = (f.text("headerName"), f.text("labelKey"));
    if f.truth("stampResponseHeader").unwrap_or(true) {
        let message = "responses are not stamped: write false, and let the one who asks know the \
                       label's value";
        f.fault("stampResponseHeader", message);
    }
    for (name, value) in [("headerName", &header), ("labelKey", &label)] {
        if value.is_none() {
            f.fault(name, "is needed");
        }
    }
    Some(Scorer::HeaderLabel {
        header: header?.to_ascii_lowercase(),
        label: label?,
    })
}

pub(super) fn near(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Scorer> {
    producer(f, &["topologyProducerName"]);
    notes.push(NO_OTHER.to_owned());
    Some(Scorer::Near)
}

/// What is said of whatever compares an endpoint with that of the request's other part.
pub(super) const NO_OTHER: &str =
    "no request has another part yet, so that nothing is near and all are alike";

pub(super) fn attribute(f: &mut Fields<'_>) -> Option<Scorer> {
    if f.text("source").is_some_and(|source| source != "endpoint") {
        f.fault("source", "values are read of endpoints only");
    }
    let signal = signal(f, "attributeKey");
    let mut algorithm = f.object("algorithm")?;
    let lowest = match algorithm.text("type").as_deref() {
        Some("linear_lower_is_better") => true,
        Some("linear_higher_is_better") => false,
        _ => {
            algorithm.fault("type", "linear_lower_is_better or linear_higher_is_better");
            return None;
        }
    };
    let mut range = None;
    if let Some(mut normalization) = algorithm.object("normalization") {
        let _default = normalization.value("adaptiveRange");
        if let Some(mut fixed) = normalization.object("fixedRange") {
            let (min, max) = (
                fixed.number("min", -1e12..=1e12),
                fixed.number("max", -1e12..=1e12),
            );
            match (min, max) {
                (Some(min), Some(max)) if min < max => range = Some((min as f32, max as f32)),
                _ => fixed.fault("min", "min must be less than max"),
            }
            fixed.end();
        }
        normalization.end();
    }
    algorithm.end();
    Some(Scorer::Signal {
        signal: signal?,
        lowest,
        range,
    })
}
