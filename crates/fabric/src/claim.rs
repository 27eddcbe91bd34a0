//! A claim that the scheduler has answered: which devices of ours it got, for which pod, with which
//! parameters.

use std::fmt;

use serde_json::{Value, json};

/// Addresses of a device in a claim's status at most, as Kubernetes has it.
const IPS_MAX: usize = 16;

/// Which claim. The kubelet names a claim by these three; a name that was used again has another UID.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClaimRef {
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub name: String,
    /// UID of the claim.
    pub uid: String,
}

impl fmt::Display for ClaimRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ({})", self.namespace, self.name, self.uid)
    }
}

/// A pod for which a claim is reserved.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PodRef {
    /// Name of the pod, in the claim's namespace.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
}

/// A device that the scheduler gave to a claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AllocatedDevice {
    /// The request that it answers, `request` or `request/subrequest`.
    pub request: String,
    /// The pool of the slice that it was published in.
    pub pool: String,
    /// Its name in that slice.
    pub device: String,
    /// Which share of a device that several may have; none for one that is had whole.
    pub share_id: Option<String>,
    /// What of the capacity `bandwidth` it got, bits per second; none for a device had whole.
    pub bandwidth_bps: Option<u64>,
    /// Whether it is looked at only (`adminAccess`), so that nothing may be changed.
    pub admin_access: bool,
}

/// Opaque parameters of our driver, as they stand in the allocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// The requests that they are for; empty for all.
    pub requests: Vec<String>,
    /// Whether they stand in the DeviceClass, as its defaults, and not in the claim.
    pub from_class: bool,
    /// The object's JSON as text.
    pub parameters: String,
}

impl DeviceConfig {
    /// Whether they are for a request, or the subrequest of one.
    pub fn is_for(&self, request: &str) -> bool {
        let named = |own: &String| own == request || own == parent(request);
        self.requests.is_empty() || self.requests.iter().any(named)
    }
}

/// The request that a subrequest is of, or the request itself.
pub fn parent(request: &str) -> &str {
    request.split('/').next().unwrap_or(request)
}

/// A claim with its allocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AllocatedClaim {
    /// Which claim.
    pub claim: ClaimRef,
    /// The name that its pod has for it, if it was made from a template.
    pub pod_name: Option<String>,
    /// For which pods it is reserved.
    pub reserved_for: Vec<PodRef>,
    /// The devices of our driver, those of others left out.
    pub devices: Vec<AllocatedDevice>,
    /// The parameters for our driver, class before claim.
    pub configs: Vec<DeviceConfig>,
}

impl AllocatedClaim {
    /// The devices that it gets, in order: those that it only looks at left out.
    pub fn had(&self) -> impl Iterator<Item = &AllocatedDevice> {
        self.devices.iter().filter(|device| !device.admin_access)
    }
}

/// What is said of a claim's devices in its status.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClaimStatus {
    /// Which claim.
    pub claim: ClaimRef,
    /// Its devices.
    pub devices: Vec<DeviceStatus>,
}

/// What is said of one device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceStatus {
    /// The pool that it is published in.
    pub pool: String,
    /// Its name there.
    pub device: String,
    /// Which share of it.
    pub share_id: Option<String>,
    /// What holds of it; eight at most, as Kubernetes has it.
    pub conditions: Vec<Condition>,
    /// How it is seen in the pod; none while it is not there.
    pub network: Option<NetworkData>,
    /// Where it lies, for who places work: names and values.
    pub place: Vec<(String, String)>,
}

/// A condition of a device. When it last changed is found out by who writes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    /// `Ready`, …
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

/// A device as the pod sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NetworkData {
    /// Name of the interface.
    pub interface: String,
    /// Its hardware address; empty if it has none.
    pub mac: String,
    /// Its addresses, `10.0.0.5/24`.
    pub ips: Vec<String>,
}

impl NetworkData {
    /// As Kubernetes has it: `networkData`.
    pub fn json(&self) -> Value {
        let mut json = json!({ "interfaceName": self.interface });
        if !self.mac.is_empty() {
            json["hardwareAddress"] = json!(self.mac);
        }
        if !self.ips.is_empty() {
            json["ips"] = json!(self.ips[..self.ips.len().min(IPS_MAX)]);
        }
        json
    }
}
