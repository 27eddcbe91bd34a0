//! InferencePool, Pods, objectives and rewrites of one namespace to pools.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use forebay_model::endpoint::Labels;
use forebay_model::picker::PickerKind;
use forebay_model::pool::{RewriteRule, RewriteTarget};
use forebay_model::snapshot::Problem;
use forebay_model::{
    AppProtocol, Endpoint, Engine, ObjectName, PickerConfig, Pool, Role, Topology,
};

use super::Notes;
use crate::index::{Objects, in_namespace};
use crate::kinds::core::Pod;
use crate::kinds::inference::{InferencePool, ModelRule, PoolProtocol};
use crate::object::Kind;
use crate::reason;
use crate::settings::Origin;
use crate::status::Fault;

/// The annotation of an InferencePool that configures its picker: a whole `PickerConfig` as YAML or
/// JSON, or one of the words `default`, `round-robin` and `least-request`.
pub const PICKER_ANNOTATION: &str = "forebay.dev/picker";

const ENGINE_LABEL: &str = "llm-d.ai/engine-type";
const ROLE_LABEL: &str = "llm-d.ai/role";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const RAIL_LABEL: &str = "forebay.dev/rail";
const BLOCK_LABEL: &str = "forebay.dev/block";
/// Set by NVIDIA's DRA driver and device plugin on what shares an NVLink domain.
const NVLINK_LABEL: &str = "nvidia.com/gpu.clique";

/// The pools of one namespace and what is wrong with them.
#[derive(Debug)]
pub(crate) struct NamespacePools {
    pub(crate) pools: BTreeMap<ObjectName, Arc<Pool>>,
    pub(crate) problems: Vec<Problem>,
}

impl NamespacePools {
    pub(crate) fn is_empty(&self) -> bool {
        self.pools.is_empty() && self.problems.is_empty()
    }
}

/// Lowers every pool of `namespace`; pools equal to those of `last` are shared with it.
pub(crate) fn lower(
    objects: &Objects,
    namespace: &str,
    last: Option<&NamespacePools>,
) -> NamespacePools {
    let mut notes = Notes::default();
    let pods = PodsByLabel::new(objects, namespace);
    let mut policies = policies(objects, namespace, &mut notes);
    let mut pools = BTreeMap::new();
    for (name, object) in in_namespace(&objects.pools, namespace) {
        let policy = policies.remove(&*name.name).unwrap_or_default();
        let pool = Pool {
            name: name.clone(),
            endpoints: endpoints(name, object, &pods, objects.settings.origin, &mut notes),
            protocol: match object.spec.app_protocol {
                PoolProtocol::Http => AppProtocol::Http,
                PoolProtocol::H2c => AppProtocol::H2c,
            },
            picker: picker(name, object, &mut notes),
            objectives: policy.objectives,
            external: None,
            rewrites: by_precedence(policy.rules),
        };
        let kept = last.and_then(|last| last.pools.get(name));
        let pool = match kept {
            Some(kept) if **kept == pool => Arc::clone(kept),
            _ => Arc::new(pool),
        };
        pools.insert(name.clone(), pool);
    }
    NamespacePools {
        pools,
        problems: notes.problems,
    }
}

/// Pods of one namespace by each of their labels, so that a selector looks at few of them.
struct PodsByLabel<'a> {
    by_label: HashMap<(&'a str, &'a str), Vec<&'a Pod>>,
}

impl<'a> PodsByLabel<'a> {
    fn new(objects: &'a Objects, namespace: &str) -> Self {
        let mut by_label: HashMap<_, Vec<_>> = HashMap::new();
        for (_, pod) in in_namespace(&objects.pods, namespace) {
            for (key, value) in &pod.metadata.labels {
                by_label
                    .entry((key.as_str(), value.as_str()))
                    .or_default()
                    .push(pod);
            }
        }
        Self { by_label }
    }

    fn with_label<'s>(&'s self, label: (&'s str, &'s str)) -> &'s [&'a Pod] {
        self.by_label.get(&label).map_or(&[], Vec::as_slice)
    }

    /// The pods that have every label of `selector`, which is not empty, by name.
    fn selected(&self, selector: &BTreeMap<String, String>) -> Vec<&'a Pod> {
        let of_labels = selector.iter().map(|(key, value)| {
            let label = (key.as_str(), value.as_str());
            self.with_label(label)
        });
        let rarest = of_labels.min_by_key(|pods| pods.len()).unwrap_or_default();
        let has_all = |pod: &&Pod| {
            let labels = &pod.metadata.labels;
            selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        };
        rarest.iter().copied().filter(has_all).collect()
    }
}

fn endpoints(
    name: &ObjectName,
    pool: &InferencePool,
    pods: &PodsByLabel<'_>,
    origin: Origin,
    notes: &mut Notes,
) -> Vec<Endpoint> {
    let mut found: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    for pod in pods.selected(&pool.spec.selector.match_labels) {
        let Some(ip) = address(pod) else { continue };
        let described = endpoint(pod, SocketAddr::new(ip, 0), origin, notes);
        for port in &pool.spec.target_ports {
            let address = SocketAddr::new(ip, port.number);
            if let Some(other) = found.get(&address) {
                let message = format!(
                    "pods {} and {} both have {address}; the first is used",
                    other.pod, pod.metadata.name
                );
                let fault = Fault::new(reason::DUPLICATE_ENDPOINT, message);
                notes.add(Kind::InferencePool, name, "spec.selector", &fault);
                continue;
            }
            let described = described.clone();
            found.insert(
                address,
                Endpoint {
                    address,
                    ..described
                },
            );
        }
    }
    found.into_values().collect()
}

/// The pod's address, once it has one and until it has ended.
pub(super) fn address(pod: &Pod) -> Option<IpAddr> {
    let ip = pod.status.pod_ip.as_deref().filter(|_| !pod.is_over())?;
    ip.parse().ok()
}

fn endpoint(pod: &Pod, address: SocketAddr, origin: Origin, notes: &mut Notes) -> Endpoint {
    let labels = &pod.metadata.labels;
    let text = |key: &str| labels.get(key).map(|value| Arc::from(value.as_str()));
    Endpoint {
        address,
        pod: pod.metadata.name.as_str().into(),
        labels: Arc::new(labels.clone()),
        engine: engine(pod, labels, notes),
        role: role(pod, labels, notes),
        topology: Topology {
            zone: text(ZONE_LABEL),
            host: pod.spec.node_name.as_deref().map(Arc::from),
            rail: text(RAIL_LABEL),
            block: text(BLOCK_LABEL),
            nvlink_domain: text(NVLINK_LABEL),
        },
        ready: pod.is_ready(origin == Origin::Files),
    }
}

fn engine(pod: &Pod, labels: &Labels, notes: &mut Notes) -> Option<Engine> {
    let value = labels.get(ENGINE_LABEL)?;
    let engine = Engine::from_label(value);
    if engine.is_none() {
        let help = "is no engine that we know; the engine is detected from its metrics";
        unknown_label(pod, ENGINE_LABEL, value, help, notes);
    }
    engine
}

fn role(pod: &Pod, labels: &Labels, notes: &mut Notes) -> Role {
    match labels.get(ROLE_LABEL).map(String::as_str) {
        None | Some("both" | "prefill-decode") => Role::Both,
        Some("prefill") => Role::Prefill,
        Some("decode") => Role::Decode,
        Some(value) => {
            let help = "is no role that we know; the pod gets whole requests";
            unknown_label(pod, ROLE_LABEL, value, help, notes);
            Role::Both
        }
    }
}

fn unknown_label(pod: &Pod, key: &str, value: &str, help: &str, notes: &mut Notes) {
    let fault = Fault::new(reason::UNKNOWN_LABEL, format!("{value:?} {help}"));
    let field = format!("metadata.labels[{key}]");
    notes.add(Kind::Pod, &pod.metadata.key(), field, &fault);
}

fn picker(name: &ObjectName, pool: &InferencePool, notes: &mut Notes) -> PickerConfig {
    if let Some(external) = &pool.spec.endpoint_picker_ref {
        let message = format!(
            "the built-in picker serves instead of {} {}; leave endpointPickerRef out to silence this",
            external.kind, external.name
        );
        let fault = Fault::new(reason::EXTERNAL_PICKER, message);
        notes.add(Kind::InferencePool, name, "spec.endpointPickerRef", &fault);
    }
    let Some(text) = pool.metadata.annotations.get(PICKER_ANNOTATION) else {
        return PickerConfig::default();
    };
    read_picker(text).unwrap_or_else(|fault| {
        let message = format!("{fault}; the default picker serves");
        let fault = Fault::new(reason::INVALID_PICKER, message);
        let field = format!("metadata.annotations[{PICKER_ANNOTATION}]");
        notes.add(Kind::InferencePool, name, field, &fault);
        PickerConfig::default()
    })
}

fn read_picker(text: &str) -> Result<PickerConfig, String> {
    let picker: PickerConfig = match text.trim() {
        "default" => PickerConfig::default(),
        "round-robin" => PickerConfig::round_robin(),
        "least-request" => PickerConfig::least_request(),
        yaml => {
            let options = serde_saphyr::options! { with_snippet: false };
            serde_saphyr::from_str_with_options(yaml, options).map_err(|error| error.to_string())?
        }
    };
    let share = |value: f32| (0.0..=1.0).contains(&value);
    let weights = picker.scorers.iter().map(|s| s.weight);
    let rules = [
        (
            weights.clone().all(|w| w.is_finite() && w >= 0.0),
            "scorers: a weight is zero or more",
        ),
        (picker.endpoints_max > 0, "endpointsMax is 1 or more"),
        (
            picker.prefix_block_bytes > 0,
            "prefixBlockBytes is 1 or more",
        ),
        (share(picker.sticky_share), "stickyShare is 0 to 1"),
        (share(picker.saturation_kv), "saturationKv is 0 to 1"),
        (
            picker.shed_at_saturation.is_finite() && picker.shed_at_saturation >= 0.0,
            "shedAtSaturation is zero or more",
        ),
        (
            picker
                .queue_at_saturation
                .is_none_or(|at| at.is_finite() && at > 0.0),
            "queueAtSaturation is above zero, or null for no queue",
        ),
        (
            picker.queue_timeout_ms > 0,
            "queueTimeoutMs is 1 or more; queueRequestsMax: 0 refuses at once",
        ),
        (
            picker.picker != PickerKind::PowerOf(0),
            "picker: power-of needs 1 or more",
        ),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, rule)) => Err((*rule).to_owned()),
        None => Ok(picker),
    }
}

/// Objectives and rewrites of one pool.
#[derive(Default)]
struct Policy {
    objectives: BTreeMap<Arc<str>, i32>,
    rules: Vec<(RewriteRank, RewriteRule)>,
}

/// Exact before generic, then oldest, then by name, then in the order written.
type RewriteRank = (bool, (bool, String), ObjectName, usize);

fn by_precedence(mut rules: Vec<(RewriteRank, RewriteRule)>) -> Vec<RewriteRule> {
    rules.sort_by(|(a, _), (b, _)| a.cmp(b));
    rules.into_iter().map(|(_, rule)| rule).collect()
}

/// The policies of a namespace by the name of their pool.
fn policies<'a>(
    objects: &'a Objects,
    namespace: &str,
    notes: &mut Notes,
) -> HashMap<&'a str, Policy> {
    let mut policies: HashMap<&str, Policy> = HashMap::new();
    for (name, objective) in objects.objectives.effective(namespace) {
        let pool = objective.spec.pool_ref.name.as_str();
        check_pool(objects, Kind::InferenceObjective, name, pool, notes);
        let own = &mut policies.entry(pool).or_default().objectives;
        own.insert(Arc::clone(&name.name), objective.spec.priority);
    }
    for (name, rewrite) in objects.rewrites.effective(namespace) {
        let pool = rewrite.spec.pool_ref.name.as_str();
        check_pool(objects, Kind::InferenceModelRewrite, name, pool, notes);
        let own = &mut policies.entry(pool).or_default().rules;
        let (unknown, created) = rewrite.metadata.age();
        for (at, rule) in rewrite.spec.rules.iter().enumerate() {
            let age = (unknown, created.to_owned());
            let rank = (rule.matches.is_empty(), age, name.clone(), at);
            own.push((rank, rewrite_rule(rule)));
        }
    }
    policies
}

fn check_pool(objects: &Objects, kind: Kind, name: &ObjectName, pool: &str, notes: &mut Notes) {
    let pool = ObjectName::new(&name.namespace, pool);
    if !objects.pools.contains_key(&pool) {
        let message = format!("InferencePool {pool} does not exist; this has no effect");
        let fault = Fault::new(reason::NOT_FOUND, message);
        notes.add(kind, name, "spec.poolRef.name", &fault);
    }
}

fn rewrite_rule(rule: &ModelRule) -> RewriteRule {
    let models = rule.matches.iter().map(|m| m.model.value.as_str().into());
    let targets = rule.targets.iter().map(|target| RewriteTarget {
        weight: target.weight.unwrap_or(1),
        model: target.model_rewrite.as_str().into(),
    });
    RewriteRule {
        models: models.collect(),
        targets: targets.collect(),
    }
}
