//! From a document to a policy: references are followed, plugins put where they belong, defaults
//! added as llm-d adds them, and everything that has no equivalent gathered into one error.

use std::collections::{BTreeMap, BTreeSet};

use forebay_model::PickerConfig;
use forebay_model::picker::{PickerKind, Scorer, WeightedScorer};
use forebay_model::policy::{Filter, Profile, ProfileBy, SloAdmission};

use super::document::{Document, Plugin, Ref};
use super::fields::{Faults, Fields, nearest};
use super::parts::{self, KNOWN, Part, RENAMED};
use super::refused::REFUSED;
use super::{Became, Loaded, NO_EQUIVALENT, NOTE, UNRESOLVED, admission, words};

/// Endpoints in an answer whose length is not written: llm-d's default is the winner alone, but a
/// proxy that may try another needs to know which.
const ENDPOINTS: usize = 3;

/// The document while it is put together.
pub(super) struct Lowering<'a> {
    pub(super) document: &'a Document,
    pub(super) faults: &'a Faults,
    pub(super) notes: Faults,
    /// The parts by the names of their plugins.
    pub(super) parts: BTreeMap<String, Part>,
    /// Plugins that could not be read, which has been noted.
    broken: BTreeSet<String>,
    /// Plugins that something refers to.
    used: BTreeSet<String>,
    /// Defaults that were added.
    pub(super) added: Vec<Became>,
}

/// Puts `document` together.
pub(super) fn lower(document: &Document, faults: &Faults) -> Loaded {
    let mut lowering = Lowering {
        document,
        faults,
        notes: Faults::default(),
        parts: BTreeMap::new(),
        broken: BTreeSet::new(),
        used: BTreeSet::new(),
        added: Vec::new(),
    };
    lowering.read_plugins();
    let mut picker = PickerConfig {
        queue_at_saturation: None,
        slo_admission: SloAdmission::Off,
        ..PickerConfig::default()
    };
    lowering.profiles(&mut picker);
    lowering.index(&mut picker);
    admission::lower(&mut lowering, &mut picker);
    lowering.data_layer();
    lowering.finish(picker)
}

impl Lowering<'_> {
    pub(super) fn note(&self, field: &str, message: impl Into<String>) {
        self.notes.add(field, NOTE, message);
    }

    /// Reads every plugin; what has no equivalent comes into one error.
    fn read_plugins(&mut self) {
        // By reason, so that it is said once.
        let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for plugin in &self.document.plugins {
            if self.parts.contains_key(&plugin.name) || self.broken.contains(&plugin.name) {
                let message = format!("two plugins are called {}; name one otherwise", plugin.name);
                self.faults.add(&plugin.at, UNRESOLVED, message);
                continue;
            }
            match self.read(plugin) {
                Some(part) => {
                    self.parts.insert(plugin.name.clone(), part);
                }
                None => {
                    if let Some((who, why)) = without_equivalent(plugin) {
                        missing.entry(why).or_default().push(who);
                    }
                    self.broken.insert(plugin.name.clone());
                }
            }
        }
        if !missing.is_empty() {
            let count: usize = missing.values().map(Vec::len).sum();
            let one = |(why, who): (&String, &Vec<String>)| format!("{}: {why}", who.join(", "));
            let list: Vec<String> = missing.iter().map(one).collect();
            let plugins = if count == 1 {
                "plugin has"
            } else {
                "plugins have"
            };
            let message = format!(
                "{count} {plugins} no equivalent here\n    {}",
                list.join("\n    ")
            );
            self.faults.add("plugins", NO_EQUIVALENT, message);
        }
    }

    fn read(&self, plugin: &Plugin) -> Option<Part> {
        if !KNOWN.contains(&plugin.kind.as_str()) {
            return None;
        }
        if let Some((old, new)) = RENAMED.iter().find(|(old, _)| *old == plugin.kind) {
            self.note(&plugin.at, format!("{old} is called {new} now"));
        }
        let at = format!("{}.parameters", plugin.at);
        let fields = Fields::of(plugin.parameters.clone(), &at, self.faults);
        let mut notes = Vec::new();
        let part = parts::read(&plugin.kind, fields, &mut notes);
        for note in notes {
            self.note(&at, note);
        }
        part
    }

    /// The part that `reference` means; `what` is needed there.
    pub(super) fn part(&mut self, reference: &Ref, what: &str) -> Option<Part> {
        self.used.insert(reference.name.clone());
        if let Some(part) = self.parts.get(&reference.name) {
            return Some(part.clone());
        }
        if !self.broken.contains(&reference.name) {
            let names: Vec<&str> = self.parts.keys().map(String::as_str).collect();
            let help = match nearest(&reference.name, &names) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("add {what} of that name to plugins"),
            };
            let message = format!("there is no plugin {:?}; {help}", reference.name);
            self.faults.add(&reference.at, UNRESOLVED, message);
        }
        None
    }

    pub(super) fn wrong_part(&self, reference: &Ref, what: &str) {
        let message = format!("{:?} is no {what}", reference.name);
        self.faults.add(&reference.at, UNRESOLVED, message);
    }

    fn profiles(&mut self, picker: &mut PickerConfig) {
        let mut profiles: Vec<Profile> = Vec::new();
        for written in &self.document.profiles {
            if profiles.iter().any(|profile| profile.name == written.name) {
                let message = format!("two profiles are called {}", written.name);
                self.faults.add(&written.at, UNRESOLVED, message);
            }
            let profile = self.profile(&written.name, &written.plugins);
            profiles.push(profile);
        }
        if profiles.is_empty() {
            let all = self.document.plugins.iter().map(|plugin| {
                let (at, name) = (plugin.at.clone(), plugin.name.clone());
                (Ref { at, name }, None)
            });
            let fits = |(reference, _): &(Ref, Option<f64>)| {
                matches!(
                    self.parts.get(&reference.name),
                    Some(
                        Part::Filter(_)
                            | Part::Scorer(_)
                            | Part::Both(..)
                            | Part::Picker(..)
                            | Part::Precise(_, Some(_))
                    )
                ) || matches!(self.parts.get(&reference.name),
                    Some(Part::Approximate(index)) if index.scorer.is_some())
            };
            let all: Vec<_> = all.filter(fits).collect();
            self.add(
                "default",
                "schedulingProfile",
                "the only profile, of everything listed",
            );
            profiles.push(self.profile("default", &all));
        }
        picker.profile_by = self.handler(&profiles);
        picker.profiles = profiles;
    }

    fn profile(&mut self, name: &str, plugins: &[(Ref, Option<f64>)]) -> Profile {
        let mut profile = Profile {
            name: name.to_owned(),
            endpoints_max: ENDPOINTS,
            ..Profile::default()
        };
        let mut pickers = 0;
        for (reference, weight) in plugins {
            let Some(part) = self.part(reference, "a filter, a scorer or a picker") else {
                continue;
            };
            match part {
                Part::Filter(filter) => profile.filters.push(filter),
                Part::Detector(detector) => profile.filters.push(Filter::Unsaturated {
                    headroom: detector.headroom,
                }),
                Part::Scorer(scorer) | Part::Precise(_, Some(scorer)) => {
                    self.score(&mut profile, reference, scorer, *weight);
                }
                Part::Approximate(index) if index.scorer.is_some() => {
                    let scorer = index.scorer.unwrap_or(Scorer::Prefix);
                    self.score(&mut profile, reference, scorer, *weight);
                }
                Part::Both(filter, scorer) => {
                    profile.filters.extend(filter);
                    self.score(&mut profile, reference, scorer, *weight);
                }
                Part::Picker(kind, endpoints) => {
                    pickers += 1;
                    profile.picker = kind;
                    profile.endpoints_max = endpoints.unwrap_or(ENDPOINTS);
                }
                Part::SingleProfile
                | Part::HeaderProfile { .. }
                | Part::Fairness(_)
                | Part::Arrival
                | Part::Ceilings(_)
                | Part::Strict
                | Part::Admitter(_)
                | Part::SloAdmitter
                | Part::Approximate(_)
                | Part::Precise(_, None)
                | Part::Tokens(_)
                | Part::BuiltIn(_) => self.wrong_part(reference, "filter, scorer or picker"),
            }
        }
        match pickers {
            0 => self.default_picker(&mut profile),
            1 => {}
            more => {
                let message = format!("profile {name} has {more} pickers; there is one");
                self.faults.add("schedulingProfiles", UNRESOLVED, message);
            }
        }
        profile
    }

    /// A picker that is listed and in no profile is everybody's; without one it is the best score.
    fn default_picker(&mut self, profile: &mut Profile) {
        let listed = self.parts.iter().find_map(|(name, part)| match part {
            Part::Picker(kind, endpoints) => Some((name.clone(), *kind, *endpoints)),
            _ => None,
        });
        match listed {
            Some((name, kind, endpoints)) => {
                self.used.insert(name);
                profile.picker = kind;
                profile.endpoints_max = endpoints.unwrap_or(ENDPOINTS);
            }
            None => {
                profile.picker = PickerKind::MaxScore;
                self.add(
                    "max-score-picker",
                    "max-score-picker",
                    "max-score, 3 endpoints",
                );
            }
        }
    }

    fn score(&self, profile: &mut Profile, at: &Ref, scorer: Scorer, weight: Option<f64>) {
        let weight = weight.unwrap_or(1.0) as f32;
        if weight < 0.0 {
            let message = "a weight below zero turns a scorer round, which nobody means";
            self.faults.add(&at.at, super::MALFORMED, message);
        } else if weight == 0.0 {
            self.note(&at.at, "a weight of zero: it does not count");
        }
        profile.scorers.push(WeightedScorer { scorer, weight });
    }

    /// What becomes of a default that nobody wrote.
    pub(super) fn add(&mut self, name: &str, kind: &str, became: &str) {
        if self.added.iter().all(|added| added.name != name) {
            self.added.push(Became {
                name: name.to_owned(),
                kind: kind.to_owned(),
                written: false,
                became: became.to_owned(),
            });
        }
    }

    fn handler(&mut self, profiles: &[Profile]) -> ProfileBy {
        let mut handlers = self.document.plugins.iter().filter_map(|plugin| {
            let part = self.parts.get(&plugin.name)?;
            let handler = matches!(part, Part::SingleProfile | Part::HeaderProfile { .. });
            handler.then(|| (plugin, part.clone()))
        });
        let (first, second) = (handlers.next(), handlers.next());
        drop(handlers);
        if let Some((second, _)) = second {
            let message = "a second profile handler; there is one";
            self.faults.add(&second.at, UNRESOLVED, message);
        }
        let several = profiles.len() > 1;
        match first {
            Some((_, Part::HeaderProfile { header, default })) => {
                let names: Vec<&str> = profiles.iter().map(|p| p.name.as_str()).collect();
                if several && !names.contains(&default.as_str()) {
                    let message = format!(
                        "requests without {header} get the profile {default}, which is not there; \
                         there are: {}",
                        names.join(", ")
                    );
                    self.faults.add("schedulingProfiles", UNRESOLVED, message);
                }
                ProfileBy::Header {
                    name: header,
                    default,
                }
            }
            Some((plugin, _)) if several => {
                let message = "several profiles, of which a request gets one: use \
                               header-profile-handler";
                self.faults.add(&plugin.at, UNRESOLVED, message);
                ProfileBy::First
            }
            None if several => {
                // One that was refused has been named already.
                let refused = self.document.plugins.iter();
                if !refused
                    .into_iter()
                    .any(|p| p.kind.ends_with("-profile-handler"))
                {
                    let message = "several profiles and no profile handler: add \
                                   header-profile-handler to plugins";
                    self.faults.add("schedulingProfiles", UNRESOLVED, message);
                }
                ProfileBy::First
            }
            None => {
                let kind = "single-profile-handler";
                self.add(kind, kind, "one profile for all requests");
                ProfileBy::First
            }
            Some(_) => ProfileBy::First,
        }
    }

    /// What is remembered of prompts and known of caches; of several the largest.
    fn index(&mut self, picker: &mut PickerConfig) {
        let mut producers = 0;
        let mut model = None;
        for plugin in &self.document.plugins {
            match self.parts.get(&plugin.name) {
                Some(Part::Approximate(index)) => {
                    producers += 1;
                    if let Some(auto) = index.capacity_from_metrics {
                        picker.prefix_capacity_from_metrics = auto;
                    }
                    if let Some(tokens) = index.block_tokens {
                        picker.prefix_block_bytes = tokens * 4;
                    }
                    let blocks = index.blocks_max;
                    picker.prefix_blocks_max = blocks.unwrap_or(picker.prefix_blocks_max);
                    let each = index.blocks_per_endpoint;
                    picker.prefix_blocks_per_endpoint =
                        each.unwrap_or(picker.prefix_blocks_per_endpoint);
                }
                Some(Part::Precise(precise, _)) => {
                    if picker.precise_prefix.is_some() {
                        let message = "a second index of caches; there is one";
                        self.faults.add(&plugin.at, UNRESOLVED, message);
                    }
                    picker.precise_prefix = Some(precise.settings.clone());
                }
                Some(Part::Tokens(Some(name))) => model = Some(name.clone()),
                _ => {}
            }
        }
        if producers > 1 {
            let message =
                "several producers: one index serves them all, by the parameters of the last";
            self.note("plugins", message);
        }
        if let Some(precise) = &mut picker.precise_prefix
            && precise.tokenizer.is_none()
        {
            precise.tokenizer = model;
        }
        if let Some(precise) = &picker.precise_prefix {
            let message = match &precise.tokenizer {
                Some(name) => format!("the tokenizer is looked for in the folder {name}"),
                None => "no model is named, so that prompts are compared byte by byte".to_owned(),
            };
            self.note("plugins", message);
        }
    }

    fn data_layer(&mut self) {
        let document = self.document;
        let data = &document.data;
        for reference in &data.sources {
            let _noted = self.part(reference, "a source or an extractor");
        }
        let parsers = document.parsers.iter().chain(&document.old_parser);
        for reference in parsers {
            // They are there whether listed or not.
            let listed = self
                .document
                .plugins
                .iter()
                .any(|p| p.name == reference.name);
            if !listed && reference.name.ends_with("-parser") && KNOWN.contains(&&*reference.name) {
                continue;
            }
            match self.part(reference, "a parser") {
                Some(Part::BuiltIn(_)) | None => {}
                Some(_) => self.wrong_part(reference, "parser"),
            }
        }
        for reference in [&data.discovery, &data.peers, &data.syncer]
            .into_iter()
            .flatten()
        {
            let _noted = self.part(reference, "a plugin");
        }
        if let Some(at) = &data.sync_interval {
            self.note(
                at,
                "replicas do not share what they know; each decides by itself",
            );
        }
        if data.inject_defaults == Some(false) {
            let message = "metrics of model servers are read all the same";
            self.note("dataLayer.injectDefaults", message);
        }
        if let Some(old) = &document.old_parser {
            self.note(&old.at, "belongs into requestHandler.parsers now");
        }
        if let Some((at, true)) = &document.propagate_priority {
            self.note(at, "model servers are not told of priorities");
        }
    }

    fn finish(self, picker: PickerConfig) -> Loaded {
        let one = |plugin: &Plugin| {
            let part = self.parts.get(&plugin.name)?;
            let idle = words::needs_reference(part)
                && !self.document.profiles.is_empty()
                && !self.used.contains(&plugin.name);
            let became = match idle {
                true => "nothing: no profile refers to it".to_owned(),
                false => words::of(part),
            };
            Some(Became {
                name: plugin.name.clone(),
                kind: plugin.kind.clone(),
                written: true,
                became,
            })
        };
        let mut plugins: Vec<_> = self.document.plugins.iter().filter_map(one).collect();
        plugins.extend(self.added);
        Loaded {
            picker,
            version: self.document.version,
            plugins,
            notes: self.notes.into_inner(),
        }
    }
}

/// A plugin without an equivalent in words: which and where, and why and what to do. None if it has
/// one, and is merely wrong.
fn without_equivalent(plugin: &Plugin) -> Option<(String, String)> {
    let Plugin { at, kind, .. } = plugin;
    if KNOWN.contains(&kind.as_str()) {
        return None;
    }
    let who = format!("{kind} ({at})");
    if let Some(refused) = REFUSED.iter().find(|refused| refused.kind == *kind) {
        return Some((who, format!("{}; {}", refused.why, refused.cure)));
    }
    let refused = REFUSED.iter().map(|refused| refused.kind);
    let names: Vec<&str> = KNOWN.iter().copied().chain(refused).collect();
    let help = match nearest(kind, &names) {
        Some(near) => format!("there is no such type; did you mean {near}?"),
        None => {
            "there is no such type; docs/picker-config.md lists those that there are".to_owned()
        }
    };
    Some((who, help))
}
