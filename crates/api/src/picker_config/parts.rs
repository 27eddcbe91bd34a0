//! What each plugin type becomes, with its parameters and their defaults.
//!
//! A plugin is read without regard to where it is used; `lower.rs` puts the parts together.

use forebay_model::endpoint::Stage;
use forebay_model::picker::{PickerKind, Scorer};
use forebay_model::policy::{Fairness, Filter, GradualShedding};

use super::fields::Fields;
use super::flow::{Ceilings, Detector};
use super::producers::{Approximate, Precise};
use super::{filters, flow, producers, scorers};

/// What a plugin is here.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// A filter of a profile.
    Filter(Filter),
    /// A scorer of a profile.
    Scorer(Scorer),
    /// A scorer that may filter first.
    Both(Option<Filter>, Scorer),
    /// A picker of a profile, with the length of its answer if it is written.
    Picker(PickerKind, Option<usize>),
    /// One profile for all requests.
    SingleProfile,
    /// The profile that a field of the request names.
    HeaderProfile {
        /// The field, in lower case.
        header: String,
        /// The profile without it.
        default: String,
    },
    /// What says how full the pool is, and a filter where it is used as one.
    Detector(Detector),
    /// Who of one priority goes next.
    Fairness(Fairness),
    /// In which order a tenant's requests go: that of arrival.
    Arrival,
    /// From which saturation on priorities wait.
    Ceilings(Ceilings),
    /// Highest priorities first.
    Strict,
    /// Sheds at random.
    Admitter(GradualShedding),
    /// Refuses sheddable requests whose SLO is out of reach.
    SloAdmitter,
    /// What is remembered of prompts.
    Approximate(Approximate),
    /// What is known of caches; with a scorer in the older form.
    Precise(Precise, Option<Scorer>),
    /// Whose tokenizer prompts are read with, if it is named.
    Tokens(Option<String>),
    /// Something that is done anyway, in words.
    BuiltIn(&'static str),
}

/// What is said of a plugin besides what it becomes.
pub(super) type Notes = Vec<String>;

/// Types that have another name now, with the new one.
pub(super) const RENAMED: &[(&str, &str)] = &[
    ("by-label", "label-selector-filter"),
    ("by-label-selector", "label-selector-filter"),
    ("tokenizer", "token-producer"),
    (
        "precise-prefix-cache-scorer",
        "precise-prefix-cache-producer with prefix-cache-scorer",
    ),
];

/// Every type that has an equivalent.
pub(super) const KNOWN: &[&str] = &[
    "label-selector-filter",
    "by-label",
    "by-label-selector",
    "encode-filter",
    "prefill-filter",
    "decode-filter",
    "prefix-cache-affinity-filter",
    "session-affinity-filter",
    "endpoint-attribute-filter",
    "topology-affinity-filter",
    "utilization-filter",
    "active-request-filter",
    "slo-headroom-tier-filter",
    "context-length-aware",
    "queue-scorer",
    "kv-cache-utilization-scorer",
    "running-requests-size-scorer",
    "load-aware-scorer",
    "lora-affinity-scorer",
    "prefix-cache-scorer",
    "no-hit-lru-scorer",
    "token-load-scorer",
    "active-request-scorer",
    "latency-scorer",
    "session-affinity-scorer",
    "header-label-affinity-scorer",
    "topology-affinity-scorer",
    "endpoint-attribute-scorer",
    "precise-prefix-cache-scorer",
    "max-score-picker",
    "random-picker",
    "weighted-random-picker",
    "single-profile-handler",
    "header-profile-handler",
    "token-producer",
    "tokenizer",
    "approx-prefix-cache-producer",
    "precise-prefix-cache-producer",
    "inflight-load-producer",
    "predicted-latency-producer",
    "session-id-producer",
    "utilization-detector",
    "concurrency-detector",
    "global-strict-fairness-policy",
    "round-robin-fairness-policy",
    "fcfs-ordering-policy",
    "edf-ordering-policy",
    "static-usage-limit-policy",
    "priority-holdback-policy",
    "strict-band-selection-policy",
    "probabilistic-admitter",
    "latency-slo-admitter",
    "openai-parser",
    "anthropic-parser",
    "vllmhttp-parser",
    "sglanghttp-parser",
    "passthrough-parser",
    "metrics-data-source",
    "core-metrics-extractor",
    "models-data-source",
    "models-data-extractor",
    "model-server-extractor",
    "k8s-notification-source",
    "endpoint-notification-source",
    "topology-extractor",
    "agent-identity",
    "local-syncer",
    "k8s-peer-discovery",
];

/// Reads a plugin of a type of [`KNOWN`]; `None` if what is written of it is at fault, which has
/// been noted, or if there is no such type.
pub(super) fn read(kind: &str, mut fields: Fields<'_>, notes: &mut Notes) -> Option<Part> {
    let f = &mut fields;
    let part = match kind {
        "label-selector-filter" | "by-label-selector" => filters::labels(f).map(Part::Filter),
        "by-label" => filters::by_label(f).map(Part::Filter),
        "encode-filter" => Some(Part::Filter(Filter::Stage(Stage::Encode))),
        "prefill-filter" => Some(Part::Filter(Filter::Stage(Stage::Prefill))),
        "decode-filter" => Some(Part::Filter(Filter::Stage(Stage::Decode))),
        "prefix-cache-affinity-filter" => filters::affinity(f, notes).map(Part::Filter),
        "session-affinity-filter" => filters::session(f, notes).map(Part::Filter),
        "endpoint-attribute-filter" => filters::attribute(f).map(Part::Filter),
        "topology-affinity-filter" => filters::near(f, notes).map(Part::Filter),
        "utilization-filter" => filters::utilization(f).map(Part::Filter),
        "active-request-filter" => filters::active_requests(f).map(Part::Filter),
        "slo-headroom-tier-filter" => filters::slo_headroom(f).map(Part::Filter),
        "context-length-aware" => filters::context_length(f),
        "queue-scorer" => Some(Part::Scorer(Scorer::QueueSpan)),
        "kv-cache-utilization-scorer" => Some(Part::Scorer(Scorer::KvCache)),
        "running-requests-size-scorer" => Some(Part::Scorer(Scorer::RunningSpan)),
        "load-aware-scorer" => scorers::load_aware(f).map(Part::Scorer),
        "lora-affinity-scorer" => Some(Part::Scorer(Scorer::Lora)),
        "prefix-cache-scorer" => scorers::prefix(f, notes),
        "no-hit-lru-scorer" => scorers::no_hit(f, notes).map(Part::Scorer),
        "token-load-scorer" => scorers::token_load(f, notes).map(Part::Scorer),
        "active-request-scorer" => scorers::active_requests(f, notes).map(Part::Scorer),
        "latency-scorer" => scorers::latency(f, notes).map(Part::Scorer),
        "session-affinity-scorer" => scorers::session(f, notes).map(Part::Scorer),
        "header-label-affinity-scorer" => scorers::header_label(f).map(Part::Scorer),
        "topology-affinity-scorer" => scorers::near(f, notes).map(Part::Scorer),
        "endpoint-attribute-scorer" => scorers::attribute(f).map(Part::Scorer),
        "max-score-picker" => picker(f, PickerKind::MaxScore),
        "random-picker" => picker(f, PickerKind::Random),
        "weighted-random-picker" => picker(f, PickerKind::WeightedRandom),
        "single-profile-handler" => Some(Part::SingleProfile),
        "header-profile-handler" => Some(header_profile(f)),
        "token-producer" | "tokenizer" => producers::tokens(f, notes),
        "approx-prefix-cache-producer" => Some(Part::Approximate(producers::approximate(f, notes))),
        "precise-prefix-cache-producer" => {
            producers::precise(f, notes).map(|precise| Part::Precise(precise, None))
        }
        "precise-prefix-cache-scorer" => {
            producers::precise(f, notes).map(|precise| Part::Precise(precise, Some(Scorer::Prefix)))
        }
        "predicted-latency-producer" => producers::predictor(f, notes),
        "inflight-load-producer" => producers::inflight(f),
        "session-id-producer" => producers::session_id(f),
        "utilization-detector" => flow::utilization(f, notes).map(Part::Detector),
        "concurrency-detector" => flow::concurrency(f).map(Part::Detector),
        "global-strict-fairness-policy" => Some(Part::Fairness(Fairness::Arrival)),
        "round-robin-fairness-policy" => Some(Part::Fairness(Fairness::Turns)),
        "fcfs-ordering-policy" => Some(Part::Arrival),
        "edf-ordering-policy" => {
            let why = "requests of one priority may all wait as long, so the earliest deadline is \
                       that of the first";
            notes.push(why.to_owned());
            Some(Part::Arrival)
        }
        "static-usage-limit-policy" => flow::fixed_ceiling(f),
        "priority-holdback-policy" => flow::holdback(f),
        "strict-band-selection-policy" => Some(Part::Strict),
        "latency-slo-admitter" => {
            scorers::producer(f, &["latencyPredictionInfoProducerName"]);
            Some(Part::SloAdmitter)
        }
        "probabilistic-admitter" => Some(Part::Admitter(flow::admitter(f))),
        "openai-parser" | "anthropic-parser" | "vllmhttp-parser" | "sglanghttp-parser"
        | "passthrough-parser" => Some(Part::BuiltIn(
            "every API that is known is read by its path; bodies of others are passed on",
        )),
        "metrics-data-source" => producers::metrics_source(f, notes),
        "core-metrics-extractor" => producers::metrics_extractor(f),
        "models-data-source" | "models-data-extractor" | "model-server-extractor" => {
            let _anything = f.value("parameters");
            Some(Part::BuiltIn("model servers are asked for their models"))
        }
        "k8s-notification-source" | "endpoint-notification-source" => {
            let _kind = (f.value("group"), f.value("version"), f.value("kind"));
            Some(Part::BuiltIn("changes of pods are followed"))
        }
        "topology-extractor" => producers::topology(f),
        "agent-identity" => Some(Part::BuiltIn(
            "sessions and tenants are told apart by the fields that agents send",
        )),
        "local-syncer" | "k8s-peer-discovery" => {
            notes.push("replicas do not share what they know; each decides by itself".to_owned());
            for name in ["namespace", "labelSelector", "port", "interval"] {
                let _ignored = f.value(name);
            }
            Some(Part::BuiltIn("nothing"))
        }
        _ => None,
    };
    fields.end();
    part
}

fn picker(f: &mut Fields<'_>, kind: PickerKind) -> Option<Part> {
    let endpoints = f.whole("maxNumOfEndpoints", 1..=64);
    let endpoints = endpoints.and_then(|n| usize::try_from(n).ok());
    Some(Part::Picker(kind, endpoints))
}

fn header_profile(f: &mut Fields<'_>) -> Part {
    let header = f.text("headerName").filter(|name| !name.is_empty());
    let default = f.text("defaultProfile").filter(|name| !name.is_empty());
    Part::HeaderProfile {
        header: header.map_or_else(|| "epp-profile".to_owned(), |h| h.to_ascii_lowercase()),
        default: default.unwrap_or_else(|| "decode".to_owned()),
    }
}
