//! What a cloud says of a machine and its NICs: answers of metadata services to attributes.
//!
//! Pure: the answers are arguments; who asks for them is `forebay-node`. An answer that cannot be read, or
//! a part of it, is a [`Problem`]: a node without its place is a worse one to schedule on, not a broken one.

mod providers;

use std::collections::BTreeMap;

use crate::machine::Problem;
use crate::publish::{Attribute, QualifiedName};

pub use providers::{
    AwsNetwork, Azure, Gce, Oci, aws, azure, gce, oci, webhook, webhook_is_provider,
};

/// Bytes of one answer that are looked at; a longer one is refused by who asks.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Where a machine is among others. Strings of who runs the network, comparable for equality only; empty
/// where it is not known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The machines that one NVLink switch domain connects.
    pub nvlink_domain: String,
    /// The largest part of a network that is told of.
    pub block: String,
    /// A part of that: a rack, or what hangs at one switch.
    pub sub_block: String,
    /// The physical host.
    pub host: String,
}

impl Place {
    /// The place with what is empty here taken from the other one.
    #[must_use]
    pub fn or(self, other: Place) -> Place {
        let first = |one: String, two: String| if one.is_empty() { two } else { one };
        Place {
            nvlink_domain: first(self.nvlink_domain, other.nvlink_domain),
            block: first(self.block, other.block),
            sub_block: first(self.sub_block, other.sub_block),
            host: first(self.host, other.host),
        }
    }

    /// What a node's labels say: those of GKE, of EKS, of NVIDIA's and Topograph's tools.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Place {
        let first = |keys: &[&str]| {
            let found = keys.iter().find_map(|key| labels.get(*key));
            found.cloned().unwrap_or_default()
        };
        Place {
            nvlink_domain: first(&["nvidia.com/gpu.clique", "accelerator.topograph.run/domain"]),
            block: first(&[
                "cloud.google.com/gce-topology-block",
                "topology.k8s.aws/network-node-layer-2",
                "fabric.topograph.run/tier-2",
            ]),
            sub_block: first(&[
                "cloud.google.com/gce-topology-subblock",
                "topology.k8s.aws/network-node-layer-3",
                "fabric.topograph.run/tier-1",
            ]),
            host: first(&["cloud.google.com/gce-topology-host"]),
        }
    }
}

/// What is known of a machine from outside of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CloudFacts {
    /// Where it is.
    pub place: Place,
    /// Attributes of all its NICs.
    pub node: BTreeMap<QualifiedName, Attribute>,
    /// Attributes of a NIC by its hardware address ([`mac_key`]).
    pub by_mac: BTreeMap<String, BTreeMap<QualifiedName, Attribute>>,
    /// What could not be read.
    pub problems: Vec<Problem>,
}

impl CloudFacts {
    /// What is said of the NIC with a hardware address.
    pub fn of_mac(&self, mac: &str) -> Option<&BTreeMap<QualifiedName, Attribute>> {
        self.by_mac.get(&mac_key(mac)?)
    }

    fn problem(&mut self, path: &str, reason: String) {
        let path = path.to_owned();
        self.problems.push(Problem { path, reason });
    }

    fn say(&mut self, domain: &str, id: &str, value: &str) {
        if !value.is_empty() {
            self.node
                .insert(QualifiedName::of(domain, id), Attribute::text(value));
        }
    }

    fn say_of(&mut self, mac: &str, domain: &str, id: &str, value: Attribute) {
        if let Some(key) = mac_key(mac) {
            let of_nic = self.by_mac.entry(key).or_default();
            of_nic.insert(QualifiedName::of(domain, id), value);
        }
    }
}

/// A hardware address for comparison: Azure writes `0011AAFFBB22`, Linux `00:11:aa:ff:bb:22`. None for what
/// has no digit.
pub fn mac_key(mac: &str) -> Option<String> {
    let digits = mac.chars().filter(char::is_ascii_hexdigit);
    let key: String = digits.map(|c| c.to_ascii_lowercase()).collect();
    (!key.is_empty()).then_some(key)
}
