//! A policy made ready: its profiles as lists of what counts, and what can be known of filters
//! before there is a request.

use std::sync::Arc;

use forebay_model::endpoint::Role;
use forebay_model::picker::{PickerConfig, PickerKind, Scorer, WeightedScorer};
use forebay_model::policy::{Filter, Profile, ProfileBy};
use smallvec::SmallVec;

use crate::ask::Ask;
use crate::pool::PoolState;
use crate::report::Refusal;
use crate::site::Site;

/// One profile, ready.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Its name, where there are several.
    pub(crate) name: Option<Arc<str>>,
    /// Filters, each with what it says of every slot where that does not depend on requests.
    pub(crate) filters: Vec<(Filter, Vec<bool>)>,
    /// Whether the plain configuration's filter for cached prompts applies.
    pub(crate) sticky: bool,
    /// Scorers that count.
    pub(crate) scorers: Arc<[WeightedScorer]>,
    pub(crate) picker: PickerKind,
    pub(crate) endpoints_max: usize,
    /// Whether it wants latencies predicted, whatever the request.
    pub(crate) predicts: bool,
}

fn predicts(filters: &[Filter], scorers: &[WeightedScorer]) -> bool {
    let filter = |f: &Filter| matches!(f, Filter::PrefixAffinity(affinity) if affinity.predicted);
    let scorer = |s: &WeightedScorer| matches!(s.scorer, Scorer::Latency(_) | Scorer::AddedDelay);
    filters.iter().any(filter) || scorers.iter().any(scorer)
}

impl Plan {
    /// The profiles of a policy; at least one.
    pub(crate) fn all(config: &PickerConfig) -> Vec<Self> {
        if config.profiles.is_empty() {
            return vec![Self {
                name: None,
                filters: Vec::new(),
                sticky: true,
                scorers: counting(&config.scorers),
                picker: config.picker,
                endpoints_max: config.endpoints_max,
                predicts: predicts(&[], &config.scorers),
            }];
        }
        let named = config.profiles.len() > 1;
        let plan = |profile: &Profile| Self {
            name: named.then(|| profile.name.as_str().into()),
            filters: profile
                .filters
                .iter()
                .map(|f| (f.clone(), Vec::new()))
                .collect(),
            sticky: false,
            scorers: counting(&profile.scorers),
            picker: profile.picker,
            endpoints_max: profile.endpoints_max,
            predicts: predicts(&profile.filters, &profile.scorers),
        };
        config.profiles.iter().map(plan).collect()
    }

    /// Works out what does not depend on requests.
    pub(crate) fn settle(&mut self, sites: &[Site]) {
        for (filter, passes) in &mut self.filters {
            passes.clear();
            match filter {
                Filter::Labels(selector) => {
                    passes.extend(sites.iter().map(|site| selector.matches(&site.labels)));
                }
                Filter::LabelOrNone { label, values } => passes.extend(sites.iter().map(|site| {
                    let value = site.labels.get(label);
                    value.is_none_or(|value| values.contains(value))
                })),
                Filter::Stage(stage) => passes.extend(
                    sites
                        .iter()
                        .map(|site| Role::does_by_labels(&site.labels, *stage)),
                ),
                Filter::PrefixAffinity(_)
                | Filter::Session
                | Filter::Load(_)
                | Filter::Signal(_)
                | Filter::ContextLength(_)
                | Filter::Unsaturated { .. }
                | Filter::SloHeadroom { .. }
                | Filter::Near(_) => {}
            }
        }
    }
}

impl PoolState {
    /// The profile that a request gets.
    pub(crate) fn plan(&self, ask: &Ask<'_>) -> Result<&Plan, Refusal> {
        let [first, others @ ..] = self.plans.as_slice() else {
            // A policy has one at least.
            return Err(Refusal::UnknownProfile);
        };
        let ProfileBy::Header { name, default } = &self.config.profile_by else {
            return Ok(first);
        };
        if others.is_empty() {
            return Ok(first);
        }
        let wanted = ask.field(name).unwrap_or(default);
        let found = self
            .plans
            .iter()
            .find(|p| p.name.as_deref() == Some(wanted));
        found.ok_or(Refusal::UnknownProfile)
    }
}

/// Scorers that count: a weight of zero, or none at all, is the same as absence.
fn counting(scorers: &[WeightedScorer]) -> Arc<[WeightedScorer]> {
    let counts = |weight: f32| weight.is_finite() && weight > 0.0;
    let scorers = scorers.iter().filter(|s| counts(s.weight));
    scorers.cloned().collect()
}

/// Whether a pool with this configuration looks at prompts at all, so that hashing them is of use.
#[must_use]
pub fn reads_prefix(config: &PickerConfig) -> bool {
    let filters = config.profiles.iter().flat_map(|profile| &profile.filters);
    (config.profiles.is_empty() && config.sticky_share < 1.0)
        || config
            .all_scorers()
            .any(|s| s.weight > 0.0 && scores_prefix(&s.scorer))
        || filters
            .into_iter()
            .any(|f| matches!(f, Filter::PrefixAffinity(_)))
}

fn scores_prefix(scorer: &Scorer) -> bool {
    match scorer {
        Scorer::Prefix
        | Scorer::TokenLoad
        | Scorer::PrefixLength { .. }
        | Scorer::ColdSpread
        | Scorer::Latency(_)
        | Scorer::AddedDelay
        | Scorer::PrefillShare { .. } => true,
        Scorer::Queue
        | Scorer::KvCache
        | Scorer::Running
        | Scorer::InflightTokens
        | Scorer::InflightRequests
        | Scorer::Lora
        | Scorer::Session
        | Scorer::QueueSpan
        | Scorer::RunningSpan
        | Scorer::QueueShare { .. }
        | Scorer::ActiveRequests { .. }
        | Scorer::ContextLength { .. }
        | Scorer::Near
        | Scorer::HeaderLabel { .. }
        | Scorer::Signal { .. } => false,
    }
}

/// The fields of requests, in lower case, that a pool with this configuration wants to be told
/// ([`Ask::fields`]). Most want none.
#[must_use]
pub fn reads_fields(config: &PickerConfig) -> SmallVec<[&str; 2]> {
    let mut fields: SmallVec<[&str; 2]> = SmallVec::new();
    if let ProfileBy::Header { name, .. } = &config.profile_by
        && config.profiles.len() > 1
    {
        fields.push(name.as_str());
    }
    for scorer in config.all_scorers() {
        if let Scorer::HeaderLabel { header, .. } = &scorer.scorer
            && !fields.contains(&header.as_str())
        {
            fields.push(header.as_str());
        }
    }
    fields
}
