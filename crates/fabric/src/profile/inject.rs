//! What is added to a pod that asks for the NICs of its node by annotation: a claim made from a template,
//! and its name in the containers that have accelerators.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::unnamed;

use super::{
    Amount, GKE_LABEL, LABEL, MACHINE_LABEL, NETDEV_CLASS, NetworkProfile, NodeFacts, Profile,
    RDMA_CLASS, Source, machine_type, plain,
};

/// The annotation by which a pod asks: `auto`, or the name of a NetworkProfile.
pub const ANNOTATION: &str = "forebay.dev/network-profile";
/// What was added, for people.
pub const INJECTED: &str = "forebay.dev/network-profile-injected";
/// The pod's name of the claim.
pub const CLAIM: &str = "forebay-nics";
/// Resources of accelerators, as device plugins name them, and whether their NICs have RDMA where nothing
/// else is known.
const ACCELERATORS: [(&str, bool); 4] = [
    ("nvidia.com/gpu", true),
    ("amd.com/gpu", true),
    ("gpu.intel.com/i915", true),
    ("google.com/tpu", false),
];

/// Which profile a pod asks for; none if it asks for none.
pub fn asked(pod: &Value) -> Option<&str> {
    let asked = pod["metadata"]["annotations"][ANNOTATION].as_str()?;
    Some(asked.trim()).filter(|name| !name.is_empty())
}

/// The accelerators of a node, by the resources that its kubelet tells of.
pub fn accelerators(capacity: &Value) -> Option<(String, u64)> {
    let count = |name: &str| {
        let value = &capacity[name];
        let text = value.as_str().and_then(|text| text.parse().ok());
        text.or_else(|| value.as_u64()).filter(|count| *count > 0)
    };
    let mut known = ACCELERATORS.iter();
    known.find_map(|(name, _)| Some(((*name).to_owned(), count(name)?)))
}

/// What is to be added to a pod.
#[derive(Clone, PartialEq, Debug)]
pub struct Injection {
    /// The profile's name.
    pub profile: String,
    /// Name of the ResourceClaimTemplate, the same for the same content.
    pub template: String,
    /// Its `spec`.
    pub template_spec: Value,
    /// Operations of RFC 6902 on the pod.
    pub operations: Vec<Value>,
}

/// What is to be added to `pod`, which asks for `profile`; none if it has it already. `nodes` are those of
/// the cluster with their profiles, `objects` the NetworkProfiles; parameters are for `driver`.
///
/// # Errors
/// Why that cannot be told, and what would help.
pub fn inject<'a>(
    pod: &Value,
    (profile, driver): (&str, &str),
    nodes: impl Iterator<Item = (&'a NodeFacts, &'a Option<Profile>)>,
    objects: &BTreeMap<String, NetworkProfile>,
) -> Result<Option<Injection>, String> {
    let claims = pod["spec"]["resourceClaims"].as_array();
    let has = |claim: &Value| claim["name"] == CLAIM;
    if claims.is_some_and(|claims| claims.iter().any(has)) {
        return Ok(None);
    }
    if pod["spec"]["hostNetwork"] == true {
        return Err(
            "a pod on the host's network has no namespace that NICs could be moved to: \
                    leave out hostNetwork, or the annotation"
                .to_owned(),
        );
    }
    let ask = Ask::of(pod);
    let (profile, named) = match profile {
        "auto" => (choose(pod, &ask, nodes)?, false),
        name => (named(name, objects)?, true),
    };
    let requests = ask.scaled(&profile);
    let template_spec = template(&profile, &requests, driver);
    let template = template_name(&profile.name, &template_spec);
    let mut operations = operations(pod, &ask, &template, &profile.name);
    if named {
        select(pod, &profile.name, &mut operations)?;
    }
    Ok(Some(Injection {
        profile: profile.name,
        template,
        template_spec,
        operations,
    }))
}

/// What of a pod's accelerators counts.
struct Ask {
    /// The resource and how many of it, over all containers.
    accelerators: Option<(&'static str, bool, u64)>,
    /// Which containers get the NICs.
    containers: Vec<usize>,
}

impl Ask {
    fn of(pod: &Value) -> Ask {
        let containers = pod["spec"]["containers"].as_array();
        let containers = containers.map_or(&[][..], Vec::as_slice);
        let count = |container: &Value, name: &str| {
            accelerators(&container["resources"]["limits"])
                .filter(|(found, _)| found == name)
                .map_or(0, |(_, count)| count)
        };
        for (name, rdma) in ACCELERATORS {
            let with: Vec<usize> = (0..containers.len())
                .filter(|index| count(&containers[*index], name) > 0)
                .collect();
            if !with.is_empty() {
                let sum = with.iter().map(|index| count(&containers[*index], name));
                return Ask {
                    accelerators: Some((name, rdma, sum.sum())),
                    containers: with,
                };
            }
        }
        // Accelerators that are claimed, too: their containers name claims.
        let claims = |index: &usize| {
            let claims = containers[*index]["resources"]["claims"].as_array();
            claims.is_some_and(|claims| !claims.is_empty())
        };
        let mut with: Vec<usize> = (0..containers.len()).filter(claims).collect();
        if with.is_empty() {
            with = (0..containers.len()).collect();
        }
        Ask {
            accelerators: None,
            containers: with,
        }
    }

    /// The profile's requests for this pod: a pod with a part of a node's accelerators gets as large a part
    /// of its NICs, rounded up, so that others have theirs.
    fn scaled(&self, profile: &Profile) -> Vec<super::Request> {
        let mut requests = profile.requests.clone();
        let Some((_, _, asked)) = self.accelerators else {
            return requests;
        };
        let (all, nics) = (profile.accelerators, profile.nics);
        if profile.source != Source::Object && nics > 0 && asked < all {
            for request in &mut requests {
                request.amount = Amount::Exactly((nics * asked).div_ceil(all).max(1));
            }
        }
        requests
    }
}

fn named(name: &str, objects: &BTreeMap<String, NetworkProfile>) -> Result<Profile, String> {
    let found = objects.get(name);
    let profile = found.map(|object| object.profile(&NodeFacts::default()));
    profile.ok_or_else(|| {
        let known: Vec<&str> = objects.keys().map(String::as_str).collect();
        let known = match known.is_empty() {
            true => "there are none".to_owned(),
            false => format!("there are {}", known.join(", ")),
        };
        format!("there is no valid NetworkProfile {name} ({known}); `auto` takes that of the node")
    })
}

/// The one profile of the nodes that the pod may go to, or what its own words tell while there are none.
fn choose<'a>(
    pod: &Value,
    ask: &Ask,
    nodes: impl Iterator<Item = (&'a NodeFacts, &'a Option<Profile>)>,
) -> Result<Profile, String> {
    let selector = pod["spec"]["nodeSelector"].as_object();
    let wants = |name: &str| selector.and_then(|labels| labels.get(name)?.as_str());
    let fits = |node: &NodeFacts| {
        let labels = selector.into_iter().flatten();
        let mut labels = labels.filter_map(|(name, value)| Some((name, value.as_str()?)));
        labels.all(|(name, value)| node.labels.get(name).is_some_and(|own| own == value))
            && match (&ask.accelerators, &node.accelerators) {
                (Some((wanted, _, _)), Some((own, count))) => wanted == own && *count > 0,
                (_, None) | (None, Some(_)) => true,
            }
    };
    // What comes of them for this pod is what counts, not their names.
    let mut found: Vec<(Profile, u64)> = Vec::new();
    for (_, profile) in nodes.filter(|(node, _)| fits(node)) {
        let Some(profile) = profile else {
            continue;
        };
        let scaled = ask.scaled(profile);
        let same = found.iter_mut().find(|(known, _)| {
            ask.scaled(known) == scaled && known.parameters == profile.parameters
        });
        match same {
            Some((_, count)) => *count += 1,
            None => found.push((profile.clone(), 1)),
        }
    }
    match found.len() {
        1 => return Ok(found.swap_remove(0).0),
        0 => {}
        _ => {
            let names: Vec<String> = found
                .iter()
                .map(|(profile, count)| format!("{} on {count}", profile.name))
                .collect();
            return Err(format!(
                "the nodes that it may go to have different network profiles ({}): select one with \
                 nodeSelector {LABEL}",
                names.join(", ")
            ));
        }
    }
    let machine = wants(MACHINE_LABEL).and_then(machine_type);
    let resource = || {
        let (_, rdma, _) = ask.accelerators?;
        let (kind, class) = match rdma {
            true => ("rdma", RDMA_CLASS),
            false => ("netdev", NETDEV_CLASS),
        };
        let source = Source::MachineType(String::new());
        let mut profile = plain(kind, class, 0, source);
        profile.name = kind.to_owned();
        Some(profile)
    };
    machine.or_else(resource).ok_or_else(|| {
        format!(
            "no node that it may go to has a network profile, and it asks for no accelerator by \
             which one could be told: select {GKE_LABEL}, or name a NetworkProfile in the \
             annotation {ANNOTATION}"
        )
    })
}

/// The spec of a template whose claims have `requests`.
fn template(profile: &Profile, requests: &[super::Request], driver: &str) -> Value {
    let request = |request: &super::Request| {
        let mut exactly = json!({ "deviceClassName": request.class });
        match request.amount {
            Amount::All => exactly["allocationMode"] = json!("All"),
            Amount::Exactly(count) => {
                exactly["allocationMode"] = json!("ExactCount");
                exactly["count"] = json!(count);
            }
        }
        if !request.selectors.is_empty() {
            let cel = |text: &String| json!({ "cel": { "expression": text } });
            exactly["selectors"] = request.selectors.iter().map(cel).collect();
        }
        json!({ "name": request.name, "exactly": exactly })
    };
    let requests: Vec<Value> = requests.iter().map(request).collect();
    let mut devices = json!({ "requests": requests });
    if let Some(parameters) = &profile.parameters {
        devices["config"] = json!([{ "opaque": { "driver": driver, "parameters": parameters } }]);
    }
    json!({ "spec": { "devices": devices } })
}

/// The same content has the same name, so that a template is made once in a namespace and never changes.
fn template_name(profile: &str, spec: &Value) -> String {
    let text = spec.to_string();
    let sum = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("forebay-{profile}-{sum:016x}")
}

fn operations(pod: &Value, ask: &Ask, template: &str, profile: &str) -> Vec<Value> {
    let mut operations = Vec::new();
    let mut add = |path: String, value: Value| {
        operations.push(json!({ "op": "add", "path": path, "value": value }));
    };
    // The annotation by which it asked is there, so the map is, too.
    let injected = INJECTED.replace('/', "~1");
    add(format!("/metadata/annotations/{injected}"), json!(profile));
    let claim = json!({ "name": CLAIM, "resourceClaimTemplateName": template });
    match pod["spec"]["resourceClaims"].is_array() {
        true => add("/spec/resourceClaims/-".to_owned(), claim),
        false => add("/spec/resourceClaims".to_owned(), json!([claim])),
    }
    for index in &ask.containers {
        let path = format!("/spec/containers/{index}/resources");
        let container = &pod["spec"]["containers"][*index];
        unnamed::name(container, &path, &[CLAIM], &mut operations);
    }
    operations
}

/// Brings the pod to nodes of the profile that it names.
fn select(pod: &Value, profile: &str, operations: &mut Vec<Value>) -> Result<(), String> {
    let label = LABEL.replace('/', "~1");
    let selector = &pod["spec"]["nodeSelector"];
    let (path, value) = match (selector.is_object(), selector[LABEL].as_str()) {
        (true, Some(other)) if other != profile => {
            return Err(format!(
                "it asks for the network profile {profile} and selects nodes of {other}"
            ));
        }
        (true, Some(_)) => return Ok(()),
        (true, None) => (format!("/spec/nodeSelector/{label}"), json!(profile)),
        (false, _) => ("/spec/nodeSelector".to_owned(), json!({ LABEL: profile })),
    };
    operations.push(json!({ "op": "add", "path": path, "value": value }));
    Ok(())
}

#[cfg(test)]
#[path = "inject_tests.rs"]
mod tests;
