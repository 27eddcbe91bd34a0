//! The parts that a picker's policy can be put together from beyond the plain defaults of
//! [`PickerConfig`](crate::picker::PickerConfig): named profiles with filters, saturation by what is
//! in flight, priorities with limits of their own.
//!
//! What `EndpointPickerConfig` can say has its words here; its reader is in `forebay-api`.

use serde::{Deserialize, Serialize};

use crate::endpoint::{Labels, Stage};
use crate::picker::{PickerKind, WeightedScorer};

/// One way to choose among the endpoints: filters, then scorers, then a picker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Profile {
    /// Its name; unique within a policy.
    pub name: String,
    /// Filters, in order; each works on what the one before left.
    pub filters: Vec<Filter>,
    /// Scorers with their weights.
    pub scorers: Vec<WeightedScorer>,
    /// How the winner is drawn from the scores.
    pub picker: PickerKind,
    /// Endpoints in the ordered answer.
    pub endpoints_max: usize,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            name: String::new(),
            filters: Vec::new(),
            scorers: Vec::new(),
            picker: PickerKind::MaxScore,
            endpoints_max: 3,
        }
    }
}

/// Which profile a request gets, where there are several.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum ProfileBy {
    /// The first.
    #[default]
    First,
    /// The one that a request's field names; a request without the field gets the default, and one
    /// that names none of them is refused.
    Header {
        /// The field, in lower case.
        name: String,
        /// The profile of requests without the field.
        default: String,
    },
}

/// Leaves endpoints out before any is scored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Filter {
    /// Pods with these labels.
    Labels(LabelSelector),
    /// Pods whose label has one of the values, or that do not have it.
    LabelOrNone {
        /// The label.
        label: String,
        /// The values.
        values: Vec<String>,
    },
    /// Pods that do this part of an inference.
    Stage(Stage),
    /// Those that hold most of the prompt, as long as they are not far behind.
    PrefixAffinity(PrefixAffinity),
    /// The endpoint where the session was before, if it is among them; otherwise all.
    Session,
    /// Those below every one of these limits.
    Load(LoadLimits),
    /// Those whose value of one signal passes.
    Signal(SignalFilter),
    /// Those whose range of prompt lengths, in the label of this name, has the prompt's; pods
    /// without the label take every length.
    ContextLength(String),
    /// Those that are not saturated, or all if every one is.
    Unsaturated {
        /// How far beyond the limits is still let pass, as a share of them.
        headroom: f32,
    },
    /// Those that are predicted to keep the request's SLO, if any is.
    SloHeadroom {
        /// Share of requests that go to those which are not, so that predictions of them stay true.
        exploration: f32,
    },
    /// Those at least this close to the endpoint that does the request's other part; all if none
    /// is, or if there is no such endpoint.
    Near(Proximity),
}

/// How close two endpoints are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proximity {
    /// In the same region.
    Region,
    /// In the same zone.
    Zone,
    /// In the same rack, or placement block.
    Rack,
    /// On the same host, or in the same NVLink domain.
    Host,
}

/// A selector of Kubernetes over the labels of pods; everything in it must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels with their values.
    pub match_labels: Labels,
    /// Conditions on labels.
    pub match_expressions: Vec<LabelCondition>,
}

/// One condition on one label.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LabelCondition {
    /// The label.
    pub key: String,
    /// What must hold of it.
    pub operator: LabelOperator,
    /// For [`LabelOperator::In`] and [`LabelOperator::NotIn`].
    #[serde(default)]
    pub values: Vec<String>,
}

/// What a [`LabelCondition`] asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LabelOperator {
    /// It is there, with one of the values.
    In,
    /// It is not there, or with another value.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether a pod with these labels is selected.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let equal = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.match_labels.iter().all(equal)
            && self.match_expressions.iter().all(|condition| {
                let value = labels.get(&condition.key);
                let listed = value.is_some_and(|value| condition.values.contains(value));
                match condition.operator {
                    LabelOperator::In => listed,
                    LabelOperator::NotIn => !listed,
                    LabelOperator::Exists => value.is_some(),
                    LabelOperator::DoesNotExist => value.is_none(),
                }
            })
    }
}

/// Keeps to endpoints that hold the prompt, until all of them are too far behind.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct PrefixAffinity {
    /// Share of the prompt that an endpoint has to hold.
    pub share: f32,
    /// All stay candidates once the best of those that hold it would begin so much later than the
    /// best other, in milliseconds of prefill; `None` is never.
    pub backlog_max_ms: Option<f32>,
    /// The same in tokens of prefill.
    pub backlog_max_tokens: Option<u64>,
    /// Prefill speed that backlogs are reckoned with, in tokens per second; `None` takes each
    /// endpoint's own, as measured.
    pub prefill_tokens_per_s: Option<f32>,
    /// Whether the predicted times to the first token are compared in place of backlogs; as long as
    /// nothing is predicted, all stay candidates.
    pub predicted: bool,
    /// Share of requests that the filter leaves alone, so that others get to know the prompt.
    pub exploration: f32,
}

impl Default for PrefixAffinity {
    fn default() -> Self {
        Self {
            share: 0.8,
            backlog_max_ms: Some(18_000.0),
            backlog_max_tokens: None,
            prefill_tokens_per_s: Some(15_928.0),
            predicted: false,
            exploration: 0.0,
        }
    }
}

/// Limits on what an endpoint may have to stay a candidate; a signal that it does not report passes.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LoadLimits {
    /// Signals with the most that each may be.
    pub limits: Vec<(Signal, f32)>,
    /// Whether all stay if none passes.
    pub all_if_none: bool,
}

/// One number that is known of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// Requests that wait there.
    Waiting,
    /// Requests that run there.
    Running,
    /// Share of its KV cache in use, 0 to 1.
    KvUsed,
    /// Requests in flight from here.
    InflightRequests,
    /// Their prompt tokens that are still to be computed.
    InflightTokens,
}

/// Keeps endpoints by one signal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SignalFilter {
    /// Which signal.
    pub signal: Signal,
    /// Which values pass.
    pub passes: SignalTest,
    /// Whether an endpoint that does not report it passes.
    pub unknown_passes: bool,
    /// Whether all stay if none passes.
    pub all_if_none: bool,
}

/// Which values of a signal pass.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum SignalTest {
    /// Those below.
    LessThan(f32),
    /// Those not above.
    AtMost(f32),
    /// Those above.
    GreaterThan(f32),
    /// Those not below.
    AtLeast(f32),
    /// This one.
    Equal(f32),
    /// All but this one.
    NotEqual(f32),
    /// Those between, ends included.
    Within(f32, f32),
    /// So many with the highest or the lowest.
    Top {
        /// How many.
        count: usize,
        /// Whether those with the highest.
        highest: bool,
    },
    /// Those at or beyond a percentile of the candidates' values.
    Percentile {
        /// 0 to 100.
        percentile: f32,
        /// Whether those at or above it.
        highest: bool,
    },
}

/// How predicted latency becomes a score.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LatencyScoring {
    /// Which endpoints are best of those that keep the request's SLO.
    pub headroom: Headroom,
    /// What the time to the first token counts...
    pub ttft_weight: f32,
    /// ...against the time between further ones.
    pub tpot_weight: f32,
}

impl Default for LatencyScoring {
    fn default() -> Self {
        Self {
            headroom: Headroom::Least,
            ttft_weight: 0.8,
            tpot_weight: 0.2,
        }
    }
}

/// Which endpoints are best of those that keep an SLO. Of those that do not, the nearest to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Headroom {
    /// The ones that barely do: faster ones are kept for whoever needs them.
    #[default]
    Least,
    /// The fastest.
    Most,
}

/// Which requests are refused if no endpoint is predicted to keep their SLO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SloAdmission {
    /// None.
    Off,
    /// Those of negative priority.
    #[default]
    Sheddable,
    /// All.
    All,
}

/// How full a pool is.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Saturation {
    /// By what the endpoints report: the mean of the larger of queue length and KV use, each
    /// against its limit.
    #[default]
    Reported,
    /// By what is in flight from here against what the endpoints may have together: the larger of
    /// the two shares, as far as there are limits.
    Inflight {
        /// Requests for each endpoint.
        requests_max: Option<u32>,
        /// Tokens of prompts to be computed, for each endpoint.
        tokens_max: Option<u64>,
    },
}

/// What requests of one priority get.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Band {
    /// Requests of the priority that may wait; further ones are refused.
    pub requests_max: usize,
    /// Bytes of their bodies that may wait.
    pub bytes_max: usize,
    /// How long one may wait, in milliseconds; `None` is as long as it takes.
    pub timeout_ms: Option<u64>,
    /// Who goes next.
    pub fairness: Fairness,
    /// They wait from this saturation on.
    pub ceiling: f32,
}

impl Default for Band {
    fn default() -> Self {
        Self {
            requests_max: 5_000,
            bytes_max: 1_000_000_000,
            timeout_ms: Some(60_000),
            fairness: Fairness::Arrival,
            ceiling: 1.0,
        }
    }
}

/// Who of one priority goes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fairness {
    /// Tenants take turns.
    #[default]
    Turns,
    /// Whoever came first, of whatever tenant.
    Arrival,
}

/// Limits of priorities, where they differ.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Bands {
    /// Those of priorities with limits of their own.
    pub by_priority: std::collections::BTreeMap<i32, Band>,
    /// Those of every other priority.
    pub default: Band,
    /// Those of every other priority below zero, if they differ.
    pub negative: Option<Band>,
}

impl Bands {
    /// The limits of a priority.
    #[must_use]
    pub fn of(&self, priority: i32) -> &Band {
        let default = match &self.negative {
            Some(negative) if priority < 0 => negative,
            Some(_) | None => &self.default,
        };
        self.by_priority.get(&priority).unwrap_or(default)
    }
}

/// Requests of negative priority are refused at random, the more the fuller the pool is: with
/// probability `scale` · saturation ^ `power`.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct GradualShedding {
    /// The exponent.
    pub power: f32,
    /// The factor.
    pub scale: f32,
    /// Queue length at which an endpoint counts as full, for this.
    pub saturation_queue: u32,
    /// KV use at which an endpoint counts as full, for this.
    pub saturation_kv: f32,
}

impl Default for GradualShedding {
    fn default() -> Self {
        Self {
            power: 5.0,
            scale: 300.0,
            saturation_queue: 5,
            saturation_kv: 0.8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_ask_of_labels_what_kubernetes_asks() {
        let labels: Labels = [("gpu", "h100"), ("tier", "a")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        let check = |key: &str, operator, values: &[&str], expected| {
            let selector = LabelSelector {
                match_labels: [("tier".to_owned(), "a".to_owned())].into(),
                match_expressions: vec![LabelCondition {
                    key: key.to_owned(),
                    operator,
                    values: values.iter().map(|v| (*v).to_owned()).collect(),
                }],
            };
            assert_eq!(selector.matches(&labels), expected, "{selector:?}");
        };
        check("gpu", LabelOperator::In, &["h100", "h200"], true);
        check("gpu", LabelOperator::In, &["h200"], false);
        check("gpu", LabelOperator::NotIn, &["h100"], false);
        check("zone", LabelOperator::In, &["x"], false);
        check("zone", LabelOperator::NotIn, &["x"], true);
        check("gpu", LabelOperator::Exists, &[], true);
        check("zone", LabelOperator::Exists, &[], false);
        check("zone", LabelOperator::DoesNotExist, &[], true);
        assert!(LabelSelector::default().matches(&labels));
    }

    #[test]
    fn priorities_without_a_band_have_the_default_of_their_sign() {
        let band = |requests_max| Band {
            requests_max,
            ..Band::default()
        };
        let mut bands = Bands {
            by_priority: [(7, band(1)), (-7, band(2))].into(),
            default: band(3),
            negative: None,
        };
        let of = |bands: &Bands| [7, -7, 0, -1].map(|p| bands.of(p).requests_max);
        assert_eq!(of(&bands), [1, 2, 3, 3]);
        bands.negative = Some(band(4));
        assert_eq!(of(&bands), [1, 2, 3, 4]);
    }
}
