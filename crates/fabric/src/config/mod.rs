//! How a NIC is to look inside a pod: `NetworkConfig`, the opaque parameters of a claim or class.
//!
//! [`NetworkConfig::parse`] is the one door: JSON of `forebay.dev/v1alpha1`, or that of dranet, which
//! has neither `apiVersion` nor `kind`. Whatever is wrong is told at once, each with the path of its
//! field. Past the door a configuration can be carried out; whether the device can do it is not known here.

mod cidr;
mod fields;
pub mod objects;
mod read;
mod share;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ipam::Ipam;

pub use cidr::Cidr;
pub use read::TABLE_MAIN;

/// The API version that Forebay's own parameters have.
pub const API_VERSION: &str = "forebay.dev/v1alpha1";
/// Their kind.
pub const KIND: &str = "NetworkConfig";
/// What opaque parameters may be at most, in bytes, as Kubernetes has it; more is refused.
pub const PARAMETERS_BYTES_MAX: usize = 10 * 1024;

/// What is wrong with one field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FieldError {
    /// The field, such as `interface.addresses[1]`; empty for the whole.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// How a NIC is to look inside a pod. What is not said stays as it is on the host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// The link itself.
    pub interface: InterfaceConfig,
    /// Routes through it.
    pub routes: Vec<Route>,
    /// Rules of policy routing.
    pub rules: Vec<Rule>,
    /// Permanent neighbours.
    pub neighbors: Vec<Neighbor>,
    /// What `ethtool` sets.
    #[serde(default)]
    pub ethtool: Ethtool,
    /// A link of the pod's own on top of the device, which stays on the host; none to move the device.
    pub sub_interface: Option<SubInterface>,
    /// Where its addresses come from, beside those that are said.
    pub ipam: Option<Ipam>,
    /// A name under which the operator keeps the rest of it.
    pub profile: Option<String>,
}

/// The link.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct InterfaceConfig {
    /// Its name in the pod.
    pub name: Option<String>,
    /// Its addresses; empty for those that it has on the host.
    pub addresses: Vec<Cidr>,
    /// Its MTU, bytes.
    pub mtu: Option<u32>,
    /// Its Ethernet address.
    pub hardware_addr: Option<Mac>,
    /// Largest segment for GSO, bytes.
    pub gso_max_size: Option<u32>,
    /// Largest segment for GRO, bytes.
    pub gro_max_size: Option<u32>,
    /// As `gso_max_size`, of IPv4.
    pub gso_ipv4_max_size: Option<u32>,
    /// As `gro_max_size`, of IPv4.
    pub gro_ipv4_max_size: Option<u32>,
    /// Whether it forwards.
    pub forwarding: Option<bool>,
    /// The kernel's `arp_ignore`.
    pub arp_ignore: Option<u8>,
    /// The kernel's `arp_announce`.
    pub arp_announce: Option<u8>,
    /// Whether eBPF programs of XDP and tc are taken off it.
    #[serde(default)]
    pub disable_ebpf_programs: Option<bool>,
    /// The routing domain that it belongs to in the pod.
    #[serde(default)]
    pub vrf: Option<Vrf>,
}

/// A routing domain (VRF) of the pod: a link with a table of its own, which NICs belong to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vrf {
    /// Name of its link.
    pub name: String,
    /// Its table.
    pub table: u32,
}

/// What `ethtool` sets, by name, on or off. A feature has the kernel's name for it, or the one of
/// `ethtool -K`, which may stand for several; private flags are the driver's own.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Ethtool {
    /// Features, such as `tx-tcp-segmentation` or `tso`.
    pub features: BTreeMap<String, bool>,
    /// Private flags.
    pub private_flags: BTreeMap<String, bool>,
}

impl Ethtool {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.features.is_empty() && self.private_flags.is_empty()
    }
}

/// An Ethernet address, written `02:00:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// A route through the NIC.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub destination: Cidr,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Whether the destination is on the link itself (scope `link`).
    pub on_link: bool,
    /// Table, 254 being the main one.
    pub table: u32,
    /// Metric; none for the kernel's default.
    pub metric: Option<u32>,
}

/// A rule of policy routing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rule {
    /// Lower comes first.
    pub priority: u32,
    /// Source of the packet.
    pub source: Option<Cidr>,
    /// Destination of the packet.
    pub destination: Option<Cidr>,
    /// The table that is looked at.
    pub table: u32,
}

/// A permanent neighbour.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Neighbor {
    /// Its address.
    pub destination: IpAddr,
    /// Its Ethernet address.
    pub hardware_addr: Mac,
}

/// A link of the pod's own on top of a device that pods share.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SubInterface {
    /// Has an Ethernet address of its own.
    Macvlan(MacvlanMode),
    /// Shares the device's.
    Ipvlan(IpvlanMode),
    /// A virtual function of the device that nobody has: it is moved, the device stays.
    Vf,
}

impl Default for SubInterface {
    /// What a share is whose parameters do not say: every kernel has it, and so has every switch.
    fn default() -> SubInterface {
        SubInterface::Macvlan(MacvlanMode::Bridge)
    }
}

impl fmt::Display for SubInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SubInterface::Macvlan(MacvlanMode::Bridge) => "macvlan in mode bridge",
            SubInterface::Macvlan(MacvlanMode::Private) => "macvlan in mode private",
            SubInterface::Macvlan(MacvlanMode::Vepa) => "macvlan in mode vepa",
            SubInterface::Ipvlan(IpvlanMode::L2) => "ipvlan in mode l2",
            SubInterface::Ipvlan(IpvlanMode::L3) => "ipvlan in mode l3",
            SubInterface::Ipvlan(IpvlanMode::L3s) => "ipvlan in mode l3s",
            SubInterface::Vf => "virtual function",
        })
    }
}

/// What the links on top of one device may say to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MacvlanMode {
    /// Everything, without the switch.
    Bridge,
    /// Nothing.
    Private,
    /// Through the switch, which has to send frames back.
    Vepa,
}

/// At which layer frames are shared out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum IpvlanMode {
    /// As a switch.
    L2,
    /// As a router.
    L3,
    /// As a router that the host's packet filter sees.
    L3s,
}

impl NetworkConfig {
    /// Reads parameters.
    ///
    /// # Errors
    /// Everything that is wrong with them, in the order of the fields.
    pub fn parse(json: &str) -> Result<NetworkConfig, Vec<FieldError>> {
        read::parse(json)
    }

    /// What is asked of a device by `class` (its defaults) and by `claim`: a value of the claim replaces
    /// the class's; routes, rules and neighbours of both are carried out, those of the claim first, the
    /// class's left out where the claim says the same thing of the same destination. Addresses are the
    /// claim's if it has any, because two pods must not share the class's.
    pub fn merged(class: NetworkConfig, claim: NetworkConfig) -> NetworkConfig {
        let (low, high) = (class.interface, claim.interface);
        // Who says addresses has said where they come from.
        let said = !high.addresses.is_empty();
        let interface = InterfaceConfig {
            name: high.name.or(low.name),
            addresses: if high.addresses.is_empty() {
                low.addresses
            } else {
                high.addresses
            },
            mtu: high.mtu.or(low.mtu),
            hardware_addr: high.hardware_addr.or(low.hardware_addr),
            gso_max_size: high.gso_max_size.or(low.gso_max_size),
            gro_max_size: high.gro_max_size.or(low.gro_max_size),
            gso_ipv4_max_size: high.gso_ipv4_max_size.or(low.gso_ipv4_max_size),
            gro_ipv4_max_size: high.gro_ipv4_max_size.or(low.gro_ipv4_max_size),
            forwarding: high.forwarding.or(low.forwarding),
            arp_ignore: high.arp_ignore.or(low.arp_ignore),
            arp_announce: high.arp_announce.or(low.arp_announce),
            disable_ebpf_programs: high.disable_ebpf_programs.or(low.disable_ebpf_programs),
            vrf: high.vrf.or(low.vrf),
        };
        let mut ethtool = class.ethtool;
        ethtool.features.extend(claim.ethtool.features);
        ethtool.private_flags.extend(claim.ethtool.private_flags);
        let routes = joined(claim.routes, class.routes, |a, b| {
            a.destination == b.destination && a.table == b.table
        });
        let rules = joined(claim.rules, class.rules, |a, b| {
            a.priority == b.priority && a.source == b.source && a.destination == b.destination
        });
        let neighbors = joined(claim.neighbors, class.neighbors, |a, b| {
            a.destination == b.destination
        });
        let sub_interface = claim.sub_interface.or(class.sub_interface);
        let inherited = class.ipam.filter(|_| !said);
        let ipam = claim.ipam.or(inherited);
        let profile = claim.profile.or(class.profile);
        NetworkConfig {
            interface,
            routes,
            rules,
            neighbors,
            ethtool,
            sub_interface,
            ipam,
            profile,
        }
    }
}

fn joined<T>(mut high: Vec<T>, low: Vec<T>, same: impl Fn(&T, &T) -> bool) -> Vec<T> {
    for item in low {
        if !high.iter().any(|h| same(h, &item)) {
            high.push(item);
        }
    }
    high
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2);
            let part = part.and_then(|p| u8::from_str_radix(p, 16).ok());
            *byte = part.ok_or_else(|| not_a_mac(text))?;
        }
        if parts.next().is_some() {
            Err(not_a_mac(text))
        } else {
            Ok(Mac(bytes))
        }
    }
}

fn not_a_mac(text: &str) -> String {
    format!("`{text}` is no Ethernet address such as 02:00:00:00:00:01")
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Mac, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}
