//! Network profiles of a cluster's nodes: followed from nodes, ResourceSlices and NetworkProfiles
//! ([`Profiles`]), written to labels of nodes and statuses of NetworkProfiles by the one that is elected
//! ([`Profiles::keep`]), and looked at by the webhook that adds claims to pods ([`Known`]).
//!
//! Which profile a node has, and what that means for its labels and for a pod, is decided in
//! `forebay_fabric::profile`.

mod followed;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_fabric::config::FieldError;
use forebay_fabric::profile::inject::{self, Injection};
use forebay_fabric::profile::{self, NetworkProfile, NodeFacts, Profile, Seen};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use followed::{Followed, Follower};

use super::lease::{self, Lease};
use super::metrics::Metrics;
use super::server::{Server, Write};
use super::{Election, device};

/// Changes come in bursts; they are looked at together.
const SETTLE: Duration = Duration::from_millis(100);
/// Bytes of a name that Kubernetes takes.
const NAME_BYTES_MAX: usize = 253;

/// Says what is wrong with a CEL expression for devices.
pub type Selector = fn(&str) -> Result<(), String>;

/// A node, as much as is needed of it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Node {
    uid: String,
    labels: BTreeMap<String, String>,
    accelerators: Option<(String, u64)>,
}

/// A slice, as much as is needed of it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Slice {
    node: String,
    generation: u64,
    devices: Vec<Seen>,
}

/// How a NetworkProfile stands.
#[derive(Clone, PartialEq, Debug, Default)]
struct Standing {
    uid: String,
    generation: i64,
    /// What is said of it now.
    status: Value,
    wrong: Vec<FieldError>,
}

/// What is known of the nodes' profiles.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Known {
    nodes: BTreeMap<String, (NodeFacts, Option<Profile>)>,
    uids: BTreeMap<String, String>,
    objects: BTreeMap<String, NetworkProfile>,
    statuses: BTreeMap<String, Standing>,
    is_complete: bool,
}

impl Known {
    /// Whether everything was seen once.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// What is to be added to a pod that asks for `profile`, for the driver `driver`; none if it has it.
    ///
    /// # Errors
    /// Why that cannot be told, and what would help.
    pub fn inject(
        &self,
        pod: &Value,
        (profile, driver): (&str, &str),
    ) -> Result<Option<Injection>, String> {
        let nodes = self.nodes.values().map(|(facts, profile)| (facts, profile));
        inject::inject(pod, (profile, driver), nodes, &self.objects)
    }
}

/// Follows a cluster. Clones are the same.
#[derive(Clone, Debug)]
pub struct Profiles {
    server: Server,
    known: watch::Receiver<Arc<Known>>,
}

impl Profiles {
    /// Follows nodes, the slices of `driver` and NetworkProfiles; must be called within a runtime.
    #[must_use]
    pub fn follow(server: Server, driver: &str, selector: Selector) -> Profiles {
        let (nodes_out, nodes) = watch::channel(Followed::default());
        let (slices_out, slices) = watch::channel(Followed::default());
        let (objects_out, objects) = watch::channel(Followed::default());
        let follower = Follower {
            server: server.clone(),
            path: "/api/v1/nodes",
            query: String::new(),
            keep: node,
            out: nodes_out,
        };
        tokio::spawn(follower.run());
        let follower = Follower {
            server: server.clone(),
            path: "/apis/resource.k8s.io/v1/resourceslices",
            query: format!("fieldSelector=spec.driver%3D{driver}"),
            keep: slice,
            out: slices_out,
        };
        tokio::spawn(follower.run());
        let follower = Follower {
            server: server.clone(),
            path: "/apis/forebay.dev/v1alpha1/networkprofiles",
            query: String::new(),
            keep: Value::clone,
            out: objects_out,
        };
        tokio::spawn(follower.run());
        let (out, known) = watch::channel(Arc::default());
        tokio::spawn(gather(nodes, slices, objects, selector, out));
        Profiles { server, known }
    }

    /// What is known just now.
    #[must_use]
    pub fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.borrow())
    }

    /// Waits until everything was seen once.
    pub async fn complete(&self) {
        let mut known = self.known.clone();
        // Who follows lives as long as the program.
        let _seen = known.wait_for(|known| known.is_complete).await;
    }

    /// Labels nodes and writes statuses for ever, while `leads` says so; people are told by `events`.
    pub async fn keep(
        self,
        leads: watch::Receiver<bool>,
        events: device::Events,
        metrics: device::DeviceMetrics,
    ) {
        write::keep(self.server, self.known, leads, (events, metrics)).await;
    }

    /// Sees to it that a template is in `namespace`.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn template(&self, namespace: &str, injection: &Injection) -> Result<(), String> {
        let path = format!(
            "{}/namespaces/{namespace}/resourceclaimtemplates",
            device::API
        );
        let name = &injection.template[..injection.template.len().min(NAME_BYTES_MAX)];
        let object = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
            "metadata": {
                "name": name,
                "labels": {
                    "app.kubernetes.io/managed-by": "forebay",
                    profile::LABEL: injection.profile,
                },
            },
            "spec": injection.template_spec,
        });
        match self.server.write(Write::Create, &path, &object).await {
            Ok(_) => {
                tracing::info!("the template {namespace}/{name} is made");
                Ok(())
            }
            // The same name is the same content.
            Err(failure) if failure.is(StatusCode::CONFLICT) => Ok(()),
            Err(failure) => Err(format!(
                "the ResourceClaimTemplate {namespace}/{name} cannot be made: {failure}"
            )),
        }
    }
}

/// Stands for election until `stop` ends, and gives the Lease back then.
pub async fn elect(
    server: Server,
    election: Election,
    leads: watch::Sender<bool>,
    metrics: Metrics,
    stop: impl Future<Output = ()>,
) {
    let Election {
        namespace,
        lease: name,
        identity,
    } = election;
    let lease = Lease {
        server,
        namespace,
        name,
    };
    let clock = super::controller::micro_time;
    lease::run(lease, identity, leads, metrics, clock, stop).await;
}

fn node(object: &Value) -> Node {
    let labels = object["metadata"]["labels"].as_object();
    let labels = labels.into_iter().flatten();
    let labels = labels.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())));
    Node {
        uid: uid(object),
        labels: labels.collect(),
        accelerators: inject::accelerators(&object["status"]["capacity"]),
    }
}

fn uid(object: &Value) -> String {
    let uid = object["metadata"]["uid"].as_str();
    uid.unwrap_or_default().to_owned()
}

fn slice(object: &Value) -> Slice {
    let spec = &object["spec"];
    let devices = spec["devices"].as_array().into_iter().flatten();
    Slice {
        node: spec["nodeName"].as_str().unwrap_or_default().to_owned(),
        generation: spec["pool"]["generation"].as_u64().unwrap_or_default(),
        devices: devices.map(Seen::read).collect(),
    }
}

/// Puts together what is followed whenever some of it changed.
async fn gather(
    mut nodes: watch::Receiver<Followed<Node>>,
    mut slices: watch::Receiver<Followed<Slice>>,
    mut objects: watch::Receiver<Followed<Value>>,
    selector: Selector,
    out: watch::Sender<Arc<Known>>,
) {
    loop {
        let known = known(
            &nodes.borrow_and_update(),
            &slices.borrow_and_update(),
            &objects.borrow_and_update(),
            selector,
        );
        out.send_if_modified(|before| {
            let changed = **before != known;
            if changed {
                *before = Arc::new(known);
            }
            changed
        });
        let changed = tokio::select! {
            changed = nodes.changed() => changed,
            changed = slices.changed() => changed,
            changed = objects.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
        sleep(SETTLE).await;
    }
}

fn known(
    nodes: &Followed<Node>,
    slices: &Followed<Slice>,
    objects: &Followed<Value>,
    selector: Selector,
) -> Known {
    let mut devices: BTreeMap<&str, (u64, Vec<Seen>)> = BTreeMap::new();
    for slice in slices.objects.values() {
        let (generation, seen) = devices.entry(&slice.node).or_default();
        // What is left of an older generation is about to go.
        if slice.generation > *generation {
            (*generation, *seen) = (slice.generation, Vec::new());
        }
        if slice.generation == *generation {
            seen.extend(slice.devices.iter().cloned());
        }
    }
    let mut known = Known {
        is_complete: nodes.is_complete && slices.is_complete && objects.is_complete,
        ..Known::default()
    };
    for (name, object) in &objects.objects {
        let read = NetworkProfile::parse(object, &selector);
        let generation = object["metadata"]["generation"]
            .as_i64()
            .unwrap_or_default();
        let wrong = match read {
            Ok(profile) => {
                known.objects.insert(name.clone(), profile);
                Vec::new()
            }
            Err(errors) => errors,
        };
        let standing = Standing {
            uid: uid(object),
            generation,
            status: object["status"].clone(),
            wrong,
        };
        known.statuses.insert(name.clone(), standing);
    }
    for (name, node) in &nodes.objects {
        let facts = NodeFacts {
            labels: node.labels.clone(),
            accelerators: node.accelerators.clone(),
            devices: devices
                .remove(name.as_str())
                .map(|(_, d)| d)
                .unwrap_or_default(),
        };
        let profile = profile::derive(&facts, &known.objects);
        known.nodes.insert(name.clone(), (facts, profile));
        known.uids.insert(name.clone(), node.uid.clone());
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed<T>(objects: &[(&str, T)]) -> Followed<T>
    where
        T: Clone,
    {
        let objects = objects
            .iter()
            .map(|(name, object)| ((*name).to_owned(), object.clone()));
        Followed {
            objects: objects.collect(),
            is_complete: true,
        }
    }

    fn nic(rail: i64) -> Value {
        json!({ "attributes": {
            "dra.net/rdma": { "bool": true }, "dra.net/virtual": { "bool": false },
            "forebay.dev/rail": { "int": rail }, "forebay.dev/gpuDistance": { "string": "switch" },
            "forebay.dev/gpuPeers": { "string": format!("gpu-{rail}") },
        } })
    }

    #[test]
    fn a_node_has_the_profile_of_the_newest_generation_of_its_slices() {
        let of = |generation: u64, rails: std::ops::Range<i64>| {
            slice(&json!({ "spec": {
                "nodeName": "n1", "pool": { "generation": generation },
                "devices": rails.map(nic).collect::<Vec<_>>(),
            } }))
        };
        let n1 = node(&json!({
            "metadata": { "uid": "u-1", "labels": { "forebay.dev/device-network": "true" } },
            "status": { "capacity": { "nvidia.com/gpu": "8", "cpu": "4" } },
        }));
        assert_eq!(n1.accelerators, Some(("nvidia.com/gpu".to_owned(), 8)));
        let slices = [
            ("s0", of(2, 0..3)),
            ("s1", of(1, 0..8)),
            ("s2", of(2, 3..8)),
        ];
        let known = known(
            &followed(&[("n1", n1)]),
            &followed(&slices),
            &followed(&[]),
            |_| Ok(()),
        );
        let (_, profile) = &known.nodes["n1"];
        assert_eq!(profile.as_ref().map(|p| p.name.as_str()), Some("rdma-8"));
        assert!(known.is_complete());
    }
}
