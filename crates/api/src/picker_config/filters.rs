//! Filters with their parameters.

use forebay_model::picker::Scorer;
use forebay_model::policy::{
    Filter, LabelCondition, LabelOperator, LabelSelector, LoadLimits, PrefixAffinity, Proximity,
    Signal, SignalFilter, SignalTest,
};
use serde_json::Value;

use super::fields::Fields;
use super::parts::{Notes, Part};
use super::scorers::{NO_OTHER, producer, session_fields, signal};

pub(super) fn labels(f: &mut Fields<'_>) -> Option<Filter> {
    let mut selector = LabelSelector::default();
    if let Some(wanted) = f.object("matchLabels") {
        for (key, value) in wanted.rest() {
            match value {
                Value::String(value) => {
                    selector.match_labels.insert(key, value);
                }
                other => f.fault(
                    "matchLabels",
                    format!("{key} is {other}; write it in quotes"),
                ),
            }
        }
    }
    for (at, item) in f.list("matchExpressions") {
        let mut one = f.within(item, &at);
        let (key, operator) = (one.text("key"), one.text("operator"));
        let values = one.texts("values");
        let operator = match operator.as_deref() {
            Some("In") => Some(LabelOperator::In),
            Some("NotIn") => Some(LabelOperator::NotIn),
            Some("Exists") => Some(LabelOperator::Exists),
            Some("DoesNotExist") => Some(LabelOperator::DoesNotExist),
            _ => None,
        };
        let listed = matches!(operator, Some(LabelOperator::In | LabelOperator::NotIn));
        if operator.is_none() {
            one.fault("operator", "In, NotIn, Exists or DoesNotExist");
        } else if listed == values.is_empty() {
            one.fault("values", "needed with In and NotIn, and only with these");
        }
        match (key, operator) {
            (Some(key), Some(operator)) => selector.match_expressions.push(LabelCondition {
                key,
                operator,
                values,
            }),
            (None, _) => one.fault("key", "is needed"),
            (Some(_), None) => {}
        }
        one.end();
    }
    Some(Filter::Labels(selector))
}

/// The older filter by the values of one label.
pub(super) fn by_label(f: &mut Fields<'_>) -> Option<Filter> {
    let label = f.text("label").filter(|label| !label.is_empty());
    let values = f.texts("validValues");
    let unlabelled = f.truth("allowsNoLabel").unwrap_or(false);
    if label.is_none() {
        f.fault("label", "is needed");
    }
    if values.is_empty() && !unlabelled {
        f.fault("validValues", "is needed");
    }
    let key = label?;
    Some(match unlabelled {
        false => Filter::Labels(LabelSelector {
            match_labels: Default::default(),
            match_expressions: vec![LabelCondition {
                key,
                operator: LabelOperator::In,
                values,
            }],
        }),
        true => Filter::LabelOrNone { label: key, values },
    })
}

pub(super) fn affinity(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Filter> {
    producer(
        f,
        &[
            "prefixMatchInfoProducerName",
            "inFlightLoadProducerName",
            "latencyPredictionInfoProducerName",
        ],
    );
    let default = PrefixAffinity::default();
    let share = f.number("affinityThreshold", 0.0..=1.0);
    let exploration = f.number("explorationProbability", 0.0..=1.0);
    let penalty_ms = f.number("maxTTFTPenaltyMs", 0.0..=1e9);
    // The name that it had when it was new.
    let penalty_tokens = f.whole("maxTokensInFlightPenalty", 0..=1_000_000_000_000);
    let speed = f.number("peakPrefillThroughput", 1.0..=1e9);
    for name in ["prefillCalibrationFile", "prefillCalibrationFingerprint"] {
        if f.text(name).is_some() {
            notes.push(format!("{name} is not read: peakPrefillThroughput says it"));
        }
    }
    if f.truth("prefillCalibrationRequired") == Some(true) {
        let message = "records of calibration are not read; write peakPrefillThroughput";
        f.fault("prefillCalibrationRequired", message);
    }
    let predicted = match f.text("ttftSource").as_deref() {
        None | Some("prefillThroughput") => false,
        Some("latencyPredictor") => true,
        Some(other) => {
            let known = "there are prefillThroughput and latencyPredictor";
            f.fault("ttftSource", format!("{other:?}; {known}"));
            false
        }
    };
    let backlog_max_ms = match penalty_ms {
        None => default.backlog_max_ms,
        Some(0.0) => None,
        Some(ms) => Some(ms as f32),
    };
    Some(Filter::PrefixAffinity(PrefixAffinity {
        share: share.map_or(default.share, |n| n as f32),
        backlog_max_ms,
        backlog_max_tokens: penalty_tokens
            .filter(|tokens| *tokens > 0)
            .and_then(|tokens| u64::try_from(tokens).ok()),
        prefill_tokens_per_s: speed.map_or(default.prefill_tokens_per_s, |n| Some(n as f32)),
        predicted,
        exploration: exploration.unwrap_or(0.0) as f32,
    }))
}

pub(super) fn slo_headroom(f: &mut Fields<'_>) -> Option<Filter> {
    producer(f, &["latencyPredictionInfoProducerName"]);
    let exploration = f.number("epsilonExploreNeg", 0.0..=1.0).unwrap_or(0.01);
    Some(Filter::SloHeadroom {
        exploration: exploration as f32,
    })
}

pub(super) fn session(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Filter> {
    let strategy = f.text("strategy");
    session_fields(f, strategy, Vec::new(), notes)?;
    Some(Filter::Session)
}

pub(super) fn near(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Filter> {
    producer(f, &["topologyProducerName"]);
    if f.text("peerTopologyHeader").is_some_and(|h| !h.is_empty()) {
        let message = "where the other part is done is not read from a field: leave it out";
        f.fault("peerTopologyHeader", message);
    }
    let least = match f.text("minAffinity").as_deref() {
        None | Some("host") => Proximity::Host,
        Some("rack") => Proximity::Rack,
        Some("zone") => Proximity::Zone,
        Some("region") => Proximity::Region,
        Some(other) => {
            f.fault(
                "minAffinity",
                format!("{other:?}; there are host, rack, zone, region"),
            );
            return None;
        }
    };
    notes.push(NO_OTHER.to_owned());
    Some(Filter::Near(least))
}

pub(super) fn utilization(f: &mut Fields<'_>) -> Option<Filter> {
    producer(f, &["inFlightLoadProducerName"]);
    let all_if_none = f.truth("fallbackOnEmpty").unwrap_or(false);
    let conditions = f.list("conditions");
    if conditions.is_empty() {
        f.fault("conditions", "one at least is needed");
    }
    let mut limits = Vec::new();
    for (at, item) in conditions {
        let mut one = f.within(item, &at);
        let metric = match one.text("metric").as_deref() {
            Some("active-requests") => Some(Signal::InflightRequests),
            Some("running-requests") => Some(Signal::Running),
            Some("waiting-queue") => Some(Signal::Waiting),
            Some("kv-cache-utilization") => Some(Signal::KvUsed),
            _ => {
                let known =
                    "active-requests, running-requests, waiting-queue, kv-cache-utilization";
                one.fault("metric", format!("one of {known}"));
                None
            }
        };
        let highest = if metric == Some(Signal::KvUsed) {
            1.0
        } else {
            1e9
        };
        let written = one.has("maxValue");
        let max = one.number("maxValue", 0.0..=highest);
        if !written {
            one.fault("maxValue", "a number is needed");
        }
        limits.extend(metric.zip(max.map(|max| max as f32)));
        one.end();
    }
    Some(Filter::Load(LoadLimits {
        limits,
        all_if_none,
    }))
}

pub(super) fn active_requests(f: &mut Fields<'_>) -> Option<Filter> {
    producer(f, &["inFlightLoadProducerName"]);
    let max = f.number("maxActiveRequests", 0.0..=1e9);
    let all_if_none = f.truth("fallbackOnEmpty").unwrap_or(false);
    if max.is_none() {
        f.fault("maxActiveRequests", "a number is needed");
    }
    Some(Filter::Load(LoadLimits {
        limits: vec![(Signal::InflightRequests, max? as f32)],
        all_if_none,
    }))
}

pub(super) fn context_length(f: &mut Fields<'_>) -> Option<Part> {
    let label = f.text("label").filter(|label| !label.is_empty());
    let label = label.unwrap_or_else(|| "llm-d.ai/context-length-range".to_owned());
    if f.text("reusableTokensProducerName")
        .is_some_and(|n| !n.is_empty())
    {
        let message = "pods do not pull caches from each other here: leave it out";
        f.fault("reusableTokensProducerName", message);
    }
    let filters = f.truth("enableFiltering").unwrap_or(false);
    let filter = filters.then(|| Filter::ContextLength(label.clone()));
    Some(Part::Both(filter, Scorer::ContextLength { label }))
}

pub(super) fn attribute(f: &mut Fields<'_>) -> Option<Filter> {
    if f.text("producer")
        .is_some_and(|producer| !producer.is_empty())
    {
        f.fault(
            "producer",
            "only what model servers report is known: leave it out",
        );
    }
    let signal = signal(f, "attribute");
    let unknown_passes = match f.text("onMissing").as_deref() {
        None | Some("Pass") => true,
        Some("Fail") => false,
        Some(other) => {
            f.fault("onMissing", format!("{other:?}; there are Pass and Fail"));
            true
        }
    };
    let all_if_none = f.truth("fallbackOnEmpty").unwrap_or(false);
    let Some(algorithm) = f.object("algorithm") else {
        f.fault("algorithm", "is needed");
        return None;
    };
    Some(Filter::Signal(SignalFilter {
        passes: test(algorithm)?,
        signal: signal?,
        unknown_passes,
        all_if_none,
    }))
}

fn test(mut algorithm: Fields<'_>) -> Option<SignalTest> {
    const ANY: std::ops::RangeInclusive<f64> = -1e12..=1e12;
    let kind = algorithm.text("type");
    let threshold = algorithm.object("threshold").map(|mut own| {
        let (operator, value) = (own.text("operator"), own.number("value", ANY));
        own.end();
        (operator, value)
    });
    let range = algorithm.object("range").map(|mut own| {
        let ends = (own.number("min", ANY), own.number("max", ANY));
        own.end();
        ends
    });
    let top = algorithm.object("topK").map(|mut own| {
        let (count, highest) = (own.whole("k", 1..=1_000_000), own.truth("higherIsBetter"));
        own.end();
        (count, highest.unwrap_or(true))
    });
    let percentile = algorithm.object("percentile").map(|mut own| {
        let (at, highest) = (
            own.number("percentile", 0.0..=100.0),
            own.truth("higherIsBetter"),
        );
        own.end();
        (at, highest.unwrap_or(true))
    });
    let test = match (kind.as_deref(), threshold, range, top, percentile) {
        (Some("threshold"), Some((operator, Some(value))), ..) => {
            let value = value as f32;
            match operator.as_deref() {
                Some("LessThan") => Some(SignalTest::LessThan(value)),
                Some("LessThanOrEqual") => Some(SignalTest::AtMost(value)),
                Some("GreaterThan") => Some(SignalTest::GreaterThan(value)),
                Some("GreaterThanOrEqual") => Some(SignalTest::AtLeast(value)),
                Some("Equal") => Some(SignalTest::Equal(value)),
                Some("NotEqual") => Some(SignalTest::NotEqual(value)),
                _ => None,
            }
        }
        (Some("range"), _, Some((Some(min), Some(max))), ..) if min <= max => {
            Some(SignalTest::Within(min as f32, max as f32))
        }
        (Some("topK"), _, _, Some((Some(count), highest)), _) => Some(SignalTest::Top {
            count: usize::try_from(count).unwrap_or(1),
            highest,
        }),
        (Some("percentile"), _, _, _, Some((Some(at), highest))) => Some(SignalTest::Percentile {
            percentile: at as f32,
            highest,
        }),
        _ => None,
    };
    if test.is_none() {
        let help = "threshold, range, topK or percentile, with the object of that name";
        algorithm.fault("type", help);
    }
    algorithm.end();
    test
}
