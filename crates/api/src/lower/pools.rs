//! One InferencePool with its pods, its picker and what objectives and rewrites say of it, to a pool
//! of the model; and what the pool says of itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use forebay_model::picker::PickerKind;
use forebay_model::pool::{ExternalPicker, FailureMode, PickerTransport};
use forebay_model::snapshot::Problem;
use forebay_model::{AppProtocol, Endpoint, ObjectName, PickerConfig, Pool};

use super::Notes;
use super::attach::PoolParents;
use super::backends::port_of;
use super::directives::Directive;
use super::endpoints;
use super::references::{Look, kind_of};
use crate::index::objects::Objects;
use crate::index::pods::{self, ENGINE_LABEL, PodFacts, ROLE_LABEL};
use crate::kinds::inference::{self, InferencePool, PoolProtocol};
use crate::object::Kind;
use crate::reason;
use crate::status::{Condition, Fault, ObjectStatus, ParentStatus};

/// The annotation of an InferencePool that configures its picker: a whole `PickerConfig` as YAML or
/// JSON, or one of the words `default`, `round-robin` and `least-request`.
pub const PICKER_ANNOTATION: &str = "forebay.dev/picker";

/// The annotation of an InferencePool that says how its external picker is spoken to:
/// `insecure-skip-verify` (the default), `verify` or `plaintext`.
pub const PICKER_TLS_ANNOTATION: &str = "forebay.dev/picker-tls";

/// Gateways in the status of one pool, by the CRD. Of more, those first by name are written.
const PARENTS_MAX: usize = 32;

/// Lowers a pool whose pods are `members`, by name.
pub(crate) fn lower<'a>(
    objects: &Objects,
    name: &ObjectName,
    object: &InferencePool,
    members: impl Iterator<Item = &'a Arc<str>>,
    directive: Option<&Directive>,
) -> (Pool, Vec<Problem>) {
    let mut notes = Notes::default();
    let pods = members.filter_map(|pod| {
        let pod = ObjectName {
            namespace: Arc::clone(&name.namespace),
            name: Arc::clone(pod),
        };
        objects.pods.get(&pod)
    });
    let directive = directive.cloned().unwrap_or_default();
    let pool = Pool {
        name: name.clone(),
        endpoints: endpoints(name, object, pods, &mut notes),
        protocol: match object.spec.app_protocol {
            PoolProtocol::Http => AppProtocol::Http,
            PoolProtocol::H2c => AppProtocol::H2c,
        },
        picker: picker(name, object, &mut notes),
        objectives: directive.objectives,
        external: external(objects, name, object),
        rewrites: directive.rewrites,
    };
    (pool, notes.problems)
}

fn endpoints<'a>(
    name: &ObjectName,
    pool: &InferencePool,
    pods: impl Iterator<Item = &'a PodFacts>,
    notes: &mut Notes,
) -> Vec<Endpoint> {
    let mut found: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    for pod in pods {
        note_labels(name, pod, notes);
        for port in &pool.spec.target_ports {
            let endpoint = pod.at(port.number);
            let address = endpoint.address;
            if let Some(other) = found.get(&address) {
                let message = format!(
                    "pods {} and {} both have {address}; the first is used",
                    other.pod, endpoint.pod
                );
                let fault = Fault::new(reason::DUPLICATE_ENDPOINT, message);
                notes.add(Kind::InferencePool, name, "spec.selector", &fault);
                continue;
            }
            found.insert(address, endpoint);
        }
    }
    found.into_values().collect()
}

/// Labels of ours whose values mean nothing.
fn note_labels(pool: &ObjectName, pod: &PodFacts, notes: &mut Notes) {
    let labels = &pod.endpoint.labels;
    let mut unknown = |key: &str, help: &str| {
        let value = labels.get(key).map_or("", String::as_str);
        let fault = Fault::new(reason::UNKNOWN_LABEL, format!("{value:?} {help}"));
        let field = format!("metadata.labels[{key}]");
        let pod = ObjectName {
            namespace: Arc::clone(&pool.namespace),
            name: Arc::clone(&pod.endpoint.pod),
        };
        notes.add(Kind::Pod, &pod, field, &fault);
    };
    if pod.endpoint.engine.is_none() && labels.contains_key(ENGINE_LABEL) {
        let help = "is no engine that we know; the engine is detected from its metrics";
        unknown(ENGINE_LABEL, help);
    }
    if pods::role(labels).is_none() {
        let help = "is no role that we know; the pod gets whole requests";
        unknown(ROLE_LABEL, help);
    }
}

/// Who picks in place of the built-in picker. A reference that does not hold leaves a picker without
/// an endpoint: what becomes of requests is for the pool's failure mode to say.
fn external(objects: &Objects, name: &ObjectName, pool: &InferencePool) -> Option<ExternalPicker> {
    let picker = pool.spec.endpoint_picker_ref.as_ref()?;
    let service = ObjectName::new(&name.namespace, &picker.name);
    let port = picker.port.map_or(0, |port| port.number);
    let is_service = (picker.group.as_str(), picker.kind.as_str()) == ("", "Service");
    let transport = transport(objects, pool, &service, port);
    Some(ExternalPicker {
        endpoints: match is_service && transport.is_ok() {
            true => endpoints::of_service(objects, &service, port),
            false => Vec::new(),
        },
        transport: transport.unwrap_or_default(),
        service,
        port,
        failure_mode: match picker.failure_mode {
            inference::FailureMode::FailClose => FailureMode::FailClose,
            inference::FailureMode::FailOpen => FailureMode::FailOpen,
        },
    })
}

/// How the picker behind a Service's port is spoken to: as the pool's annotation says, or else as
/// the port's `appProtocol` does. A word that means nothing is not taken for the default, which
/// trusts anybody: the picker is not asked.
fn transport(
    objects: &Objects,
    pool: &InferencePool,
    service: &ObjectName,
    port: u16,
) -> Result<PickerTransport, Fault> {
    if let Some(word) = pool.metadata.annotations.get(PICKER_TLS_ANNOTATION) {
        return PickerTransport::named(word, service).ok_or_else(|| {
            let message = format!(
                "{PICKER_TLS_ANNOTATION} is {word:?}; write insecure-skip-verify, verify or plaintext"
            );
            Fault::new(reason::INVALID_EXTENSION_REF, message)
        });
    }
    let ports = objects.services.get(service).map(|found| &found.spec.ports);
    let found = ports.into_iter().flatten().find(|own| own.port == port);
    Ok(match found.and_then(|port| port.app_protocol.as_deref()) {
        Some("kubernetes.io/h2c") => PickerTransport::Plaintext,
        _ => PickerTransport::default(),
    })
}

/// What is wrong with the pool's reference to a picker.
fn picker_fault(look: &Look<'_>, name: &ObjectName, pool: &InferencePool) -> Option<Fault> {
    let picker = pool.spec.endpoint_picker_ref.as_ref()?;
    let invalid = |message| Some(Fault::new(reason::INVALID_EXTENSION_REF, message));
    let service = ObjectName::new(&name.namespace, &picker.name);
    if (picker.group.as_str(), picker.kind.as_str()) != ("", "Service") {
        let kind = kind_of(&picker.group, &picker.kind);
        return invalid(format!("{kind} is no kind of picker; use a Service"));
    }
    let Some(found) = look.service(&service) else {
        return invalid(format!("Service {service} does not exist"));
    };
    let port = picker.port.map_or(0, |port| port.number);
    match port_of(&service, found, port) {
        Err(fault) => invalid(fault.message),
        Ok(_) => transport(look.objects, pool, &service, port).err(),
    }
}

/// The status of every pool, towards each Gateway that a route brings it to.
pub(super) fn statuses(
    look: &Look<'_>,
    parents: &PoolParents,
    notes: &mut Notes,
) -> Vec<ObjectStatus> {
    let pools = look.objects.pools.iter();
    pools
        .map(|(name, pool)| status(look, name, pool, parents, notes))
        .collect()
}

fn status(
    look: &Look<'_>,
    name: &ObjectName,
    pool: &InferencePool,
    parents: &PoolParents,
    notes: &mut Notes,
) -> ObjectStatus {
    let unresolved = picker_fault(look, name, pool);
    if let Some(fault) = &unresolved {
        notes.add(Kind::InferencePool, name, "spec.endpointPickerRef", fault);
    }
    let parents = parents.get(name);
    if parents.is_some_and(|parents| parents.len() > PARENTS_MAX) {
        let message = format!("only {PARENTS_MAX} Gateways have room in its status");
        let fault = Fault::new(reason::TOO_MANY_PARENTS, message);
        notes.add(Kind::InferencePool, name, "", &fault);
    }
    let one = |(gateway, accepted): (&ObjectName, &bool)| {
        let fault = (!accepted).then(|| {
            let message = "no route to this pool is accepted by the Gateway";
            Fault::new(reason::ROUTE_NOT_ACCEPTED, message)
        });
        let conditions = vec![
            Condition::of(reason::ACCEPTED, fault.as_ref()),
            Condition::of(reason::RESOLVED_REFS, unresolved.as_ref()),
        ];
        ParentStatus::of_gateway(gateway, conditions)
    };
    let parents = parents.into_iter().flatten().take(PARENTS_MAX);
    ObjectStatus {
        parents: parents.map(one).collect(),
        ..ObjectStatus::new(Kind::InferencePool, name, pool.metadata.generation)
    }
}

fn picker(name: &ObjectName, pool: &InferencePool, notes: &mut Notes) -> PickerConfig {
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
        (
            picker
                .precise_prefix
                .as_ref()
                .is_none_or(|precise| share(precise.host_weight) && share(precise.disk_weight)),
            "precisePrefix: hostWeight and diskWeight are 0 to 1",
        ),
        (
            picker.precise_prefix.as_ref().is_none_or(|p| p.port > 0),
            "precisePrefix.port is 1 or more",
        ),
        (
            picker
                .precise_prefix
                .iter()
                .flat_map(|p| &p.tokenizer)
                .all(|t| !t.is_empty() && !t.contains(['/', '\\', '\0']) && !t.starts_with('.')),
            "precisePrefix.tokenizer is the name of a folder within the folder of tokenizers",
        ),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, rule)) => Err((*rule).to_owned()),
        None => Ok(picker),
    }
}
