//! The network profile of a node: which NICs a pod gets that asks for "those of this node", and in which
//! claim. Derived from a [`NetworkProfile`] object that is meant for the node, else from what its driver
//! publishes, else from its machine type.
//!
//! [`derive`] decides for a node, [`labels`] what the node is labelled with, [`inject`] what is added to a
//! pod. Nothing here talks to anybody.

pub mod inject;
mod object;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use crate::publish::{Attribute, PublishedDevice};

pub use object::NetworkProfile;

/// Name of a node's profile.
pub const LABEL: &str = "forebay.dev/network-profile";
/// GKE's label of nodes whose accelerators have NICs of their own; pods select it.
pub const GKE_LABEL: &str = "gke.networks.io/accelerator-network-profile";
/// Its value.
pub const GKE_AUTO: &str = "auto";
/// Nodes with this label, or with GKE's, get the driver.
pub const DRIVER_LABEL: &str = "forebay.dev/device-network";
/// GKE's label for that.
pub const GKE_DRIVER_LABEL: &str = "cloud.google.com/gke-networking-dra-driver";
/// The machine's type, as clouds label their nodes.
pub const MACHINE_LABEL: &str = "node.kubernetes.io/instance-type";
/// The class of NICs with RDMA.
pub const RDMA_CLASS: &str = "mrdma.google.com";
/// The class of the others.
pub const NETDEV_CLASS: &str = "netdev.google.com";
/// Name of the request that is made where no object says otherwise.
const REQUEST: &str = "nics";

/// What of a published device counts for the profile.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Whether it has RDMA.
    pub rdma: bool,
    /// Whether it is of no hardware.
    pub is_virtual: bool,
    /// Whether it has a rail, as NICs beside accelerators have.
    pub has_rail: bool,
    /// Whether its machine has accelerators.
    pub has_accelerators: bool,
    /// PCI addresses of the accelerators next to it.
    pub peers: Vec<String>,
}

impl Seen {
    /// From a device that is to be published.
    pub fn of(device: &PublishedDevice) -> Seen {
        let find = |name: &str| {
            let all = device.attributes.iter();
            all.filter(|(known, _)| known.to_string() == name)
                .map(|(_, value)| value.clone())
                .next()
        };
        Seen::from(find)
    }

    /// From a device in a ResourceSlice.
    pub fn read(device: &Value) -> Seen {
        let find = |name: &str| {
            let value = &device["attributes"][name];
            let text = value["string"].as_str().map(Attribute::text);
            let number = || value["int"].as_i64().map(Attribute::Int);
            let truth = || value["bool"].as_bool().map(Attribute::Bool);
            text.or_else(number).or_else(truth)
        };
        Seen::from(find)
    }

    fn from(find: impl Fn(&str) -> Option<Attribute>) -> Seen {
        let text = |name: &str| match find(name) {
            Some(Attribute::String(text)) => text,
            Some(Attribute::Int(_) | Attribute::Bool(_)) | None => String::new(),
        };
        let truth = |name: &str| find(name) == Some(Attribute::Bool(true));
        let peers = text("forebay.dev/gpuPeers");
        let peers = peers.split(',').filter(|peer| !peer.is_empty());
        Seen {
            rdma: truth("dra.net/rdma"),
            is_virtual: truth("dra.net/virtual"),
            has_rail: matches!(find("forebay.dev/rail"), Some(Attribute::Int(rail)) if rail >= 0),
            has_accelerators: !text("forebay.dev/gpuDistance").is_empty(),
            peers: peers.map(str::to_owned).collect(),
        }
    }
}

/// What is known of a node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its accelerators as pods ask for them: the resource's name and how many there are; none where nobody
    /// has told of them yet, or they are claimed.
    pub accelerators: Option<(String, u64)>,
    /// What the driver publishes of it.
    pub devices: Vec<Seen>,
}

impl NodeFacts {
    fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// Where a profile comes from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// From a NetworkProfile of the profile's name.
    Object,
    /// From what the driver publishes.
    Inventory,
    /// From the type of the machine.
    MachineType(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Object => f.write_str("its NetworkProfile"),
            Source::Inventory => f.write_str("what its driver publishes"),
            Source::MachineType(machine) => write!(f, "its machine type {machine}"),
        }
    }
}

/// How many devices are asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Amount {
    /// All that a node has, none of which anybody else may have.
    All,
    /// So many of them.
    Exactly(u64),
}

/// A request of the claim that a pod gets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Request {
    /// Its name in the claim.
    pub name: String,
    /// The DeviceClass.
    pub class: String,
    /// How many.
    pub amount: Amount,
    /// CEL of `resource.k8s.io`.
    pub selectors: Vec<String>,
}

/// A node's profile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Its name: that of its object, or such as `rdma-8`.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
    /// What a pod is given that has the whole node.
    pub requests: Vec<Request>,
    /// Parameters for all of these.
    pub parameters: Option<Value>,
    /// Accelerators of the node, of which a pod may ask for a part; 0 where they are not known.
    pub accelerators: u64,
    /// NICs beside them; 0 where they are not known.
    pub nics: u64,
}

/// The profile of a node; none for one that has nothing to give to pods with accelerators, and that no
/// object is meant for. Of several objects that are, the first by name counts.
pub fn derive(node: &NodeFacts, objects: &BTreeMap<String, NetworkProfile>) -> Option<Profile> {
    let object = objects.values().find(|object| object.is_for(node));
    if let Some(object) = object {
        return Some(object.profile(node));
    }
    inventory(node).or_else(|| machine_type(node.label(MACHINE_LABEL)))
}

/// What the driver publishes: the NICs with RDMA beside accelerators, or where there are none the others of
/// hardware.
fn inventory(node: &NodeFacts) -> Option<Profile> {
    let beside = node.devices.iter().filter(|d| d.has_accelerators);
    let (rdma, others): (Vec<&Seen>, Vec<&Seen>) = beside
        .filter(|device| !device.is_virtual)
        .partition(|device| device.rdma);
    let railed = rdma.iter().filter(|device| device.has_rail).count();
    let (kind, class, nics) = match (railed, others.len()) {
        (0, 0) => return None,
        (0, others) => ("netdev", NETDEV_CLASS, others),
        (rdma, _) => ("rdma", RDMA_CLASS, rdma),
    };
    let peers: BTreeSet<&String> = node.devices.iter().flat_map(|d| &d.peers).collect();
    let told = node.accelerators.as_ref().map(|(_, count)| *count);
    Some(Profile {
        accelerators: told.unwrap_or(peers.len() as u64),
        ..plain(kind, class, nics as u64, Source::Inventory)
    })
}

/// What is known of a machine's type, before its driver has come.
fn machine_type(machine: &str) -> Option<Profile> {
    let known = table::find(machine)?;
    let (kind, class) = match known.rdma {
        true => ("rdma", RDMA_CLASS),
        false => ("netdev", NETDEV_CLASS),
    };
    let source = Source::MachineType(machine.to_owned());
    Some(Profile {
        accelerators: known.accelerators,
        ..plain(kind, class, known.nics, source)
    })
}

fn plain(kind: &str, class: &str, nics: u64, source: Source) -> Profile {
    Profile {
        name: format!("{kind}-{nics}"),
        source,
        requests: vec![Request {
            name: REQUEST.to_owned(),
            class: class.to_owned(),
            amount: Amount::All,
            selectors: Vec::new(),
        }],
        parameters: None,
        accelerators: 0,
        nics,
    }
}

/// The labels that are ours on a node: its profile, what GKE's manifests select, and what brings the driver.
/// A label that somebody else set to another value is left to them; where they took the driver's away from a
/// node that has a profile, it does not come back.
pub fn labels(node: &NodeFacts, profile: Option<&Profile>) -> BTreeMap<&'static str, String> {
    let mut labels = BTreeMap::new();
    let driver = node.label(DRIVER_LABEL);
    if !["", "true"].contains(&driver) {
        return labels;
    }
    let of_object = profile.is_some_and(|profile| profile.source == Source::Object);
    let asks = node.label(GKE_LABEL) == GKE_AUTO || of_object;
    let of_google = node.label(GKE_DRIVER_LABEL) == "true";
    let brings = asks && !of_google && node.label(LABEL).is_empty();
    // What is there already may be ours, and would go if it were not said again.
    if brings || driver == "true" && (asks || profile.is_some()) {
        labels.insert(DRIVER_LABEL, "true".to_owned());
    }
    let runs = driver == "true" || of_google || brings || !node.devices.is_empty();
    if let Some(profile) = profile.filter(|_| runs) {
        labels.insert(LABEL, profile.name.clone());
        if ["", GKE_AUTO].contains(&node.label(GKE_LABEL)) {
            labels.insert(GKE_LABEL, GKE_AUTO.to_owned());
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(labels: &[(&str, &str)], devices: Vec<Seen>) -> NodeFacts {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        NodeFacts {
            labels: labels.collect(),
            accelerators: None,
            devices,
        }
    }

    fn nic(rdma: bool, peer: &str) -> Seen {
        Seen {
            rdma,
            is_virtual: false,
            has_rail: true,
            has_accelerators: true,
            peers: vec![peer.to_owned()],
        }
    }

    fn check(node: &NodeFacts, name: &str, expected: &[(&str, &str)]) {
        let profile = derive(node, &BTreeMap::new());
        assert_eq!(profile.as_ref().map_or("", |p| &p.name), name);
        let labels = labels(node, profile.as_ref());
        let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
        assert_eq!(labels, expected);
    }

    const DRIVER: (&str, &str) = (DRIVER_LABEL, "true");
    const AUTO: (&str, &str) = (GKE_LABEL, GKE_AUTO);
    const A4: (&str, &str) = (MACHINE_LABEL, "a4-highgpu-8g");

    #[test]
    fn what_is_published_counts_more_than_the_machine_type() {
        let devices = vec![nic(true, "a"), nic(true, "b"), nic(false, "a")];
        let both = node(&[A4, DRIVER], devices);
        check(&both, "rdma-2", &[DRIVER, (LABEL, "rdma-2"), AUTO]);
        let profile = derive(&both, &BTreeMap::new()).unwrap();
        assert_eq!((profile.accelerators, profile.nics), (2, 2));
    }

    #[test]
    fn a_node_pool_of_gke_gets_the_driver_by_its_profile_and_others_by_their_label_only() {
        let profile = (LABEL, "rdma-8");
        check(
            &node(&[A4, AUTO], vec![]),
            "rdma-8",
            &[DRIVER, profile, AUTO],
        );
        check(&node(&[AUTO], vec![]), "", &[DRIVER]);
        check(&node(&[A4], vec![]), "rdma-8", &[]);
        let google = [A4, AUTO, (GKE_DRIVER_LABEL, "true")];
        check(&node(&google, vec![]), "rdma-8", &[profile, AUTO]);
    }

    #[test]
    fn a_label_that_somebody_else_set_or_took_away_is_left_so() {
        let profile = (LABEL, "netdev-1");
        let other = [(GKE_LABEL, "none"), DRIVER];
        check(
            &node(&other, vec![nic(false, "a")]),
            "netdev-1",
            &[DRIVER, profile],
        );
        let refused = [A4, (DRIVER_LABEL, "false"), AUTO];
        check(&node(&refused, vec![]), "rdma-8", &[]);
        let taken = [A4, AUTO, (LABEL, "rdma-8")];
        check(&node(&taken, vec![]), "rdma-8", &[]);
    }

    #[test]
    fn a_machine_without_accelerators_has_no_profile() {
        let plain = Seen {
            rdma: true,
            ..Seen::default()
        };
        check(&node(&[DRIVER], vec![plain]), "", &[]);
    }
}
