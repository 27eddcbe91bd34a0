//! The document as it is written, in either version, taken apart into structs of ours: names and
//! numbers with their places, references not yet followed, parameters of plugins not yet read.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::fields::{Faults, Fields};

/// Plugins and profiles of one document; more is a mistake or an attack.
const ITEMS_MAX: usize = 256;

/// Which API the document is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// `llm-d.ai/v1`.
    V1,
    /// `llm-d.ai/v1alpha1`.
    V1Alpha1,
    /// `inference.networking.x-k8s.io/v1alpha1`, that of the Inference Extension's picker.
    Legacy,
}

impl Version {
    const ALL: [Self; 3] = [Self::V1, Self::V1Alpha1, Self::Legacy];

    /// As `apiVersion` has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "llm-d.ai/v1",
            Self::V1Alpha1 => "llm-d.ai/v1alpha1",
            Self::Legacy => "inference.networking.x-k8s.io/v1alpha1",
        }
    }
}

/// The name of a plugin or of a kind of policy, and where it is written.
#[derive(Clone, Debug)]
pub(super) struct Ref {
    pub(super) at: String,
    pub(super) name: String,
}

/// One entry of `plugins`.
#[derive(Debug)]
pub(super) struct Plugin {
    pub(super) at: String,
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) parameters: Value,
}

/// One entry of `schedulingProfiles`.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) at: String,
    pub(super) name: String,
    pub(super) plugins: Vec<(Ref, Option<f64>)>,
}

/// `dataLayer`.
#[derive(Debug, Default)]
pub(super) struct DataLayer {
    pub(super) inject_defaults: Option<bool>,
    /// Sources and extractors.
    pub(super) sources: Vec<Ref>,
    pub(super) discovery: Option<Ref>,
    pub(super) peers: Option<Ref>,
    pub(super) syncer: Option<Ref>,
    /// Where an interval of synchronisation is written, which nobody without a syncer needs.
    pub(super) sync_interval: Option<String>,
}

/// `flowControl`.
#[derive(Debug, Default)]
pub(super) struct FlowControl {
    pub(super) at: String,
    pub(super) bytes_max: Option<u64>,
    pub(super) requests_max: Option<u64>,
    pub(super) ttl: Option<Duration>,
    pub(super) ttl_without_endpoints: Option<Duration>,
    pub(super) default_band: Option<Band>,
    pub(super) default_negative_band: Option<Band>,
    pub(super) bands: Vec<Band>,
    pub(super) usage_limit: Option<Ref>,
    pub(super) band_selection: Option<Ref>,
    pub(super) detector: Option<Ref>,
    pub(super) eviction: bool,
}

/// One priority.
#[derive(Debug)]
pub(super) struct Band {
    pub(super) at: String,
    pub(super) priority: i32,
    pub(super) bytes_max: Option<u64>,
    pub(super) requests_max: Option<u64>,
    pub(super) ttl: Option<Duration>,
    pub(super) fairness: Option<Ref>,
    pub(super) ordering: Option<Ref>,
}

/// A whole document.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) version: Version,
    /// Gates that are written, with their place and whether they are on.
    pub(super) gates: BTreeMap<String, (String, bool)>,
    pub(super) plugins: Vec<Plugin>,
    pub(super) profiles: Vec<Profile>,
    pub(super) data: DataLayer,
    pub(super) flow: Option<FlowControl>,
    pub(super) parsers: Vec<Ref>,
    pub(super) propagate_priority: Option<(String, bool)>,
    /// Top-level fields that moved elsewhere.
    pub(super) old_detector: Option<Ref>,
    pub(super) old_parser: Option<Ref>,
}

impl Document {
    /// Reads `value`. What is wrong goes to `faults`, and the rest is read on; `None` if it is no
    /// such document at all.
    pub(super) fn read(value: Value, faults: &Faults) -> Option<Self> {
        let mut top = Fields::of(value, "", faults);
        let version = version(&mut top, faults)?;
        // Of an object in a cluster; here it names nobody.
        let _metadata = top.value("metadata");
        let gates = gates(&mut top, faults);
        let plugins = bounded("plugins", top.list("plugins"), faults)
            .into_iter()
            .filter_map(|(at, item)| plugin(at, item, faults))
            .collect();
        let profiles = bounded("schedulingProfiles", top.list("schedulingProfiles"), faults)
            .into_iter()
            .filter_map(|(at, item)| profile(at, item, faults))
            .collect();
        let data = top
            .object("dataLayer")
            .map(|fields| data_layer(fields, version, faults))
            .unwrap_or_default();
        let flow = top
            .object("flowControl")
            .map(|fields| flow_control(fields, version, faults));
        let (parsers, propagate_priority) = match top.object("requestHandler") {
            Some(fields) => request_handler(fields, version, faults),
            None => (Vec::new(), None),
        };
        let (mut old_detector, mut old_parser) = (None, None);
        if version != Version::V1 {
            old_detector = top.object("saturationDetector").and_then(plugin_ref);
            old_parser = top.object("parser").and_then(plugin_ref);
        }
        top.end();
        Some(Self {
            version,
            gates,
            plugins,
            profiles,
            data,
            flow,
            parsers,
            propagate_priority,
            old_detector,
            old_parser,
        })
    }
}

fn version(top: &mut Fields<'_>, faults: &Faults) -> Option<Version> {
    let (written, kind) = (top.text("apiVersion"), top.text("kind"));
    let versions = Version::ALL.map(Version::as_str).join(", ");
    if kind.as_deref() != Some("EndpointPickerConfig") {
        let kind = kind.unwrap_or_else(|| "nothing".to_owned());
        let message = format!("{kind} where EndpointPickerConfig is needed ({versions})");
        faults.add("kind", super::MALFORMED, message);
        return None;
    }
    let written = written.unwrap_or_default();
    let found = Version::ALL.into_iter().find(|v| v.as_str() == written);
    if found.is_none() {
        let message = format!("{written:?} is not read; there are {versions}");
        faults.add("apiVersion", super::MALFORMED, message);
    }
    found
}

fn bounded(what: &str, mut items: Vec<(String, Value)>, faults: &Faults) -> Vec<(String, Value)> {
    if items.len() > ITEMS_MAX {
        let message = format!("{} entries; there may be {ITEMS_MAX}", items.len());
        faults.add(what, super::MALFORMED, message);
        items.truncate(ITEMS_MAX);
    }
    items
}

/// Gates are a list of `name`, `name=true` and `name=false`.
fn gates(top: &mut Fields<'_>, faults: &Faults) -> BTreeMap<String, (String, bool)> {
    let mut gates = BTreeMap::new();
    for (at, item) in top.list("featureGates") {
        let text = item.as_str().unwrap_or_default().trim().to_owned();
        let (name, on) = match text.split_once('=') {
            None => (text.as_str(), Some(true)),
            Some((name, truth)) => (name, truth.parse::<bool>().ok()),
        };
        match on {
            Some(on) if !name.is_empty() => {
                gates.insert(name.to_owned(), (at, on));
            }
            _ => {
                let message = "write the name of a gate, with =true or =false if need be";
                faults.add(&at, super::MALFORMED, message);
            }
        }
    }
    gates
}

fn plugin(at: String, item: Value, faults: &Faults) -> Option<Plugin> {
    let mut fields = Fields::of(item, &at, faults);
    let (name, kind) = (fields.text("name"), fields.text("type"));
    let parameters = fields.value("parameters").unwrap_or_default();
    fields.end();
    let Some(kind) = kind.filter(|kind| !kind.is_empty()) else {
        faults.add(&at, super::MALFORMED, "a plugin needs a type");
        return None;
    };
    Some(Plugin {
        at,
        name: name
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| kind.clone()),
        kind,
        parameters,
    })
}

fn profile(at: String, item: Value, faults: &Faults) -> Option<Profile> {
    let mut fields = Fields::of(item, &at, faults);
    let name = fields.text("name").filter(|name| !name.is_empty());
    let plugins = fields.list("plugins");
    fields.end();
    let plugins = bounded(&format!("{at}.plugins"), plugins, faults)
        .into_iter()
        .filter_map(|(at, item)| {
            let mut fields = Fields::of(item, &at, faults);
            let weight = fields.number("weight", -1e6..=1e6);
            Some((plugin_ref(fields)?, weight))
        })
        .collect();
    let Some(name) = name else {
        faults.add(&at, super::MALFORMED, "a profile needs a name");
        return None;
    };
    Some(Profile { at, name, plugins })
}

/// An object whose last field is `pluginRef`.
fn plugin_ref(mut fields: Fields<'_>) -> Option<Ref> {
    let at = fields.path("pluginRef");
    let name = fields.text("pluginRef").filter(|name| !name.is_empty());
    if name.is_none() {
        fields.fault("pluginRef", "name an entry of plugins");
    }
    fields.end();
    name.map(|name| Ref { at, name })
}

fn text_ref(fields: &mut Fields<'_>, name: &'static str) -> Option<Ref> {
    let at = fields.path(name);
    let written = fields.text(name).filter(|text| !text.is_empty())?;
    Some(Ref { at, name: written })
}

fn data_layer(mut fields: Fields<'_>, version: Version, faults: &Faults) -> DataLayer {
    let mut data = DataLayer {
        inject_defaults: fields.truth("injectDefaults"),
        ..DataLayer::default()
    };
    for (at, item) in bounded("dataLayer.sources", fields.list("sources"), faults) {
        let mut source = Fields::of(item, &at, faults);
        for (at, item) in source.list("extractors") {
            let extractor = Fields::of(item, &at, faults);
            data.sources.extend(plugin_ref(extractor));
        }
        data.sources.extend(plugin_ref(source));
    }
    if version == Version::V1 {
        if let Some(mut discovery) = fields.object("discovery") {
            data.discovery = discovery.object("endpoints").and_then(plugin_ref);
            data.peers = discovery.object("peers").and_then(plugin_ref);
            discovery.end();
        }
        if let Some(mut sync) = fields.object("crossReplica") {
            data.syncer = text_ref(&mut sync, "syncerPluginRef");
            for name in ["syncInterval", "publishTimeout"] {
                if sync.has(name) {
                    data.sync_interval = Some(sync.path(name));
                }
                let _checked = sync.duration(name);
            }
            sync.end();
        }
    } else {
        data.discovery = fields.object("discovery").and_then(plugin_ref);
        data.peers = fields.object("peerDiscovery").and_then(plugin_ref);
        data.syncer = text_ref(&mut fields, "crossReplicaSyncerPluginRef");
        if fields.has("crossReplicaSyncInterval") {
            data.sync_interval = Some(fields.path("crossReplicaSyncInterval"));
        }
        let _checked = fields.duration("crossReplicaSyncInterval");
    }
    fields.end();
    data
}

fn flow_control(mut fields: Fields<'_>, version: Version, faults: &Faults) -> FlowControl {
    let one = |fields: Fields<'_>| band(fields, version);
    let flow = FlowControl {
        at: fields.path("").trim_end_matches('.').to_owned(),
        bytes_max: fields.quantity("maxBytes"),
        requests_max: fields.quantity("maxRequests"),
        ttl: fields.duration("defaultRequestTTL"),
        ttl_without_endpoints: fields.duration("noEndpointRequestTTL"),
        default_band: fields.object("defaultPriorityBand").map(one),
        default_negative_band: fields.object("defaultNegativePriorityBand").map(one),
        bands: bounded(
            "flowControl.priorityBands",
            fields.list("priorityBands"),
            faults,
        )
        .into_iter()
        .map(|(at, item)| one(Fields::of(item, &at, faults)))
        .collect(),
        usage_limit: text_ref(&mut fields, "usageLimitPolicyPluginRef"),
        band_selection: text_ref(&mut fields, "bandSelectionPolicyPluginRef"),
        detector: fields.object("saturationDetector").and_then(plugin_ref),
        eviction: fields.truth("enableEviction").unwrap_or(false),
    };
    fields.end();
    flow
}

fn band(mut fields: Fields<'_>, _version: Version) -> Band {
    let priority = fields.whole("priority", i64::from(i32::MIN)..=i64::from(i32::MAX));
    let band = Band {
        at: fields.path("").trim_end_matches('.').to_owned(),
        priority: priority.and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
        bytes_max: fields.quantity("maxBytes"),
        requests_max: fields.quantity("maxRequests"),
        ttl: fields.duration("defaultRequestTTL"),
        fairness: text_ref(&mut fields, "fairnessPolicyRef"),
        ordering: text_ref(&mut fields, "orderingPolicyRef"),
    };
    fields.end();
    band
}

fn request_handler(
    mut fields: Fields<'_>,
    version: Version,
    faults: &Faults,
) -> (Vec<Ref>, Option<(String, bool)>) {
    let mut parsers = Vec::new();
    for (at, item) in bounded("requestHandler.parsers", fields.list("parsers"), faults) {
        parsers.extend(plugin_ref(Fields::of(item, &at, faults)));
    }
    // Once there was one.
    if version != Version::V1 {
        parsers.extend(fields.object("parser").and_then(plugin_ref));
    }
    let at = fields.path("propagatePriority");
    let propagate = fields.truth("propagatePriority").map(|on| (at, on));
    fields.end();
    (parsers, propagate)
}
