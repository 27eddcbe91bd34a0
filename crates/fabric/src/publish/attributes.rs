//! Which attributes a device has, and their values. docs/device-network.md has the table for users.
//!
//! 32 entries is what the API takes: 3 standard attributes, 12 of dranet's, 12 of ours and a capacity are
//! always there, 4 are left for what the cloud says, and what it leaves over for [`Optional`] ones. All
//! devices of a node have the same.

use std::collections::BTreeMap;

use super::{Attribute, ENTRIES_MAX, QualifiedName};
use crate::cloud::CloudFacts;
use crate::machine::{Machine, Nic, PciFunction, Problem, Sriov};
use crate::topology::{self, Rails};

/// Domain of the attributes that Kubernetes defines.
const STANDARD: &str = "resource.kubernetes.io";
/// Domain of dranet's.
const DRANET: &str = "dra.net";
/// Domain of ours.
const OURS: &str = "forebay.dev";

/// The names in dranet's domain that come from the machine.
const DRANET_IDS: [&str; 19] = [
    "ifName",
    "type",
    "state",
    "mac",
    "mtu",
    "ipv4",
    "ipv6",
    "virtual",
    "rdma",
    "rdmaDevice",
    "sriov",
    "isSriovVf",
    "numaNode",
    "pciAddress",
    "pciVendor",
    "pciDevice",
    "pciSubsystem",
    "sriovVfs",
    "alias",
];

/// Attributes that are always there.
const FIXED: usize = 27;
/// Entries left for the cloud's and for optional ones: all but those and the capacity.
pub const SPARE: usize = ENTRIES_MAX - FIXED - 1;

/// Peers in `gpuPeers` at most: as many as fit into a string.
const PEERS_MAX: usize = 4;

/// The name of the attribute with the link's speed.
pub(super) fn speed() -> QualifiedName {
    QualifiedName::of(OURS, "speed")
}

/// Attributes of dranet's that are published where there is room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Optional {
    /// `dra.net/numaNode`, as `resource.kubernetes.io/numaNode`.
    NumaNode,
    /// `dra.net/pciAddress`, as `resource.kubernetes.io/pciBusID`.
    PciAddress,
    /// `dra.net/pciVendor`: the vendor's name, its id if it has none here.
    PciVendor,
    /// `dra.net/pciDevice`: the model's name, its id if it has none here.
    PciDevice,
    /// `dra.net/pciSubsystem`: the card's id.
    PciSubsystem,
    /// `dra.net/sriovVfs`: into how many virtual functions it can be split.
    SriovVfs,
    /// `dra.net/alias`: the operator's name of the interface.
    Alias,
}

/// The optional attributes that are published if the operator names none.
pub const OPTIONAL: [Optional; 4] = [
    Optional::NumaNode,
    Optional::PciAddress,
    Optional::PciVendor,
    Optional::PciDevice,
];

impl Optional {
    fn entry(self, nic: &Nic) -> (QualifiedName, Attribute) {
        let pci = nic.pci.as_ref();
        let named =
            |name: fn(&PciFunction) -> String| Attribute::text(&pci.map(name).unwrap_or_default());
        let (id, value) = match self {
            Optional::NumaNode => ("numaNode", numa(nic)),
            Optional::PciAddress => ("pciAddress", named(|pci| pci.address.to_string())),
            Optional::PciVendor => ("pciVendor", named(vendor_name)),
            Optional::PciDevice => ("pciDevice", named(device_name)),
            Optional::PciSubsystem => (
                "pciSubsystem",
                named(|pci| format!("{:04x}:{:04x}", pci.subsystem_vendor, pci.subsystem_device)),
            ),
            Optional::SriovVfs => {
                let vfs = match &nic.sriov {
                    Sriov::Physical { vfs_max, .. } => i64::from(*vfs_max),
                    Sriov::None | Sriov::Virtual { .. } => 0,
                };
                ("sriovVfs", Attribute::Int(vfs))
            }
            Optional::Alias => {
                let alias = nic.netdev.as_ref().map_or("", |n| n.alias.as_str());
                ("alias", Attribute::text(alias))
            }
        };
        (QualifiedName::of(DRANET, id), value)
    }
}

/// Makes the attributes of the devices of one node.
pub(super) struct Table<'a> {
    machine: &'a Machine,
    cloud: &'a CloudFacts,
    /// The cloud's attributes that there is room for, with what stands where a device has none.
    cloud_names: BTreeMap<QualifiedName, Attribute>,
    left_out: Vec<QualifiedName>,
    optional: &'a [Optional],
}

impl<'a> Table<'a> {
    pub(super) fn new(
        machine: &'a Machine,
        cloud: &'a CloudFacts,
        optional: &'a [Optional],
    ) -> Table<'a> {
        let optional = if optional.is_empty() {
            &OPTIONAL
        } else {
            optional
        };
        let mut cloud_names = BTreeMap::new();
        let mut left_out = Vec::new();
        let per_nic = cloud.by_mac.values().flatten();
        for (name, value) in cloud.node.iter().chain(per_nic) {
            if cloud_names.contains_key(name) || left_out.contains(name) {
                continue;
            }
            match cloud_names.len() < SPARE && !reserved(name) {
                true => _ = cloud_names.insert(name.clone(), value.empty_like()),
                false => left_out.push(name.clone()),
            }
        }
        let optional = &optional[..optional.len().min(SPARE - cloud_names.len())];
        Table {
            machine,
            cloud,
            cloud_names,
            left_out,
            optional,
        }
    }

    /// The cloud's attributes that there is no room for.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let reason = format!(
            "is not published: of what a cloud says, {SPARE} attributes are, in the order of their \
             names, and none that Kubernetes, dranet or Forebay give a meaning of their own"
        );
        let problem = |name: &QualifiedName| Problem {
            path: name.to_string(),
            reason: reason.clone(),
        };
        self.left_out.iter().map(problem).collect()
    }

    /// All attributes of a NIC.
    pub(super) fn of(&self, nic: &Nic, rails: &Rails) -> BTreeMap<QualifiedName, Attribute> {
        let mut all = BTreeMap::new();
        let put = |domain: &'static str| {
            move |(id, value): (&'static str, Attribute)| (QualifiedName::of(domain, id), value)
        };
        all.extend(standard(nic).map(put(STANDARD)));
        all.extend(dranet(nic).map(put(DRANET)));
        all.extend(self.ours(nic, rails).map(put(OURS)));
        let said = self
            .cloud
            .of_mac(nic.netdev.as_ref().map_or("", |n| &n.mac));
        for (name, empty) in &self.cloud_names {
            let value = said.and_then(|said| said.get(name));
            let value = value.or_else(|| self.cloud.node.get(name));
            // A webhook may give one name two types; one would break the other's selectors.
            let value = value
                .filter(|value| value.empty_like() == *empty)
                .unwrap_or(empty);
            all.insert(name.clone(), value.clone());
        }
        all.extend(self.optional.iter().map(|optional| optional.entry(nic)));
        all
    }

    fn ours(&self, nic: &Nic, rails: &Rails) -> [(&'static str, Attribute); 12] {
        let port = nic.rdma.as_ref().and_then(|rdma| rdma.ports.first());
        let firmware = nic.rdma.as_ref().map_or("", |rdma| &rdma.firmware);
        let driver = nic.pci.as_ref().and_then(|pci| pci.driver.as_deref());
        let rail = nic.pci.as_ref().and_then(|pci| rails.get(&pci.address));
        let nearest = topology::nearest(self.machine, nic);
        let distance = nearest.as_ref().map_or("", |near| near.distance.as_str());
        let peers = nearest.iter().flat_map(|near| &near.peers).take(PEERS_MAX);
        let peers: Vec<String> = peers.map(ToString::to_string).collect();
        let speed = nic.speed_mbps().unwrap_or(0);
        let place = &self.cloud.place;
        [
            (
                "speed",
                Attribute::Int(i64::try_from(speed).unwrap_or(i64::MAX)),
            ),
            (
                "portState",
                Attribute::text(port.map_or("", |port| &port.state)),
            ),
            ("driver", Attribute::text(driver.unwrap_or(""))),
            ("firmware", Attribute::text(firmware)),
            (
                "rail",
                Attribute::Int(rail.map_or(-1, |rail| i64::from(rail.index))),
            ),
            (
                "railGroup",
                Attribute::text(rail.map_or("", |rail| &rail.group)),
            ),
            ("gpuPeers", Attribute::text(&peers.join(","))),
            ("gpuDistance", Attribute::text(distance)),
            ("nvlinkDomain", Attribute::text(&place.nvlink_domain)),
            ("block", Attribute::text(&place.block)),
            ("subBlock", Attribute::text(&place.sub_block)),
            ("host", Attribute::text(&place.host)),
        ]
    }
}

/// Whether a name means something already. A webhook may say more in dranet's domain than dranet does.
fn reserved(name: &QualifiedName) -> bool {
    match name.domain.as_str() {
        STANDARD | OURS => true,
        DRANET => DRANET_IDS.contains(&name.id.as_str()),
        _ => false,
    }
}

fn numa(nic: &Nic) -> Attribute {
    let numa = nic.pci.as_ref().and_then(|pci| pci.numa);
    Attribute::Int(numa.map_or(-1, i64::from))
}

fn standard(nic: &Nic) -> [(&'static str, Attribute); 3] {
    let pci = nic.pci.as_ref();
    let address = pci.map(|pci| pci.address.to_string()).unwrap_or_default();
    [
        ("pcieRoot", Attribute::text(pci.map_or("", |pci| &pci.root))),
        ("pciBusID", Attribute::text(&address)),
        ("numaNode", numa(nic)),
    ]
}

fn dranet(nic: &Nic) -> [(&'static str, Attribute); 12] {
    let netdev = nic.netdev.as_ref();
    let rdma = nic.rdma.as_ref();
    let addresses = |v4: bool| {
        let all = netdev.iter().flat_map(|n| &n.addresses);
        let family = all.filter(|address| address.is_ipv4() == v4);
        let mut list = String::new();
        for address in family.map(ToString::to_string) {
            // Whole addresses only: half of one would be another one.
            if list.len() + 1 + address.len() > super::STRING_BYTES_MAX {
                break;
            }
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(&address);
        }
        Attribute::String(list)
    };
    [
        ("ifName", Attribute::text(netdev.map_or("", |n| &n.name))),
        ("type", Attribute::text(netdev.map_or("", |n| &n.kind))),
        ("state", Attribute::text(netdev.map_or("", |n| &n.state))),
        ("mac", Attribute::text(netdev.map_or("", |n| &n.mac))),
        (
            "mtu",
            Attribute::Int(netdev.map_or(0, |n| i64::from(n.mtu))),
        ),
        ("ipv4", addresses(true)),
        ("ipv6", addresses(false)),
        ("virtual", Attribute::Bool(nic.pci.is_none())),
        ("rdma", Attribute::Bool(rdma.is_some())),
        (
            "rdmaDevice",
            Attribute::text(rdma.map_or("", |rdma| &rdma.name)),
        ),
        (
            "sriov",
            Attribute::Bool(matches!(nic.sriov, Sriov::Physical { .. })),
        ),
        (
            "isSriovVf",
            Attribute::Bool(matches!(nic.sriov, Sriov::Virtual { .. })),
        ),
    ]
}

/// Names of the vendors of NICs, as the PCI ID database has them.
fn vendor_name(pci: &PciFunction) -> String {
    let name = match pci.vendor {
        0x15b3 => "Mellanox Technologies",
        0x8086 => "Intel Corporation",
        0x14e4 => "Broadcom Inc. and subsidiaries",
        0x1ae0 => "Google, Inc.",
        0x1af4 => "Red Hat, Inc.",
        0x1d0f => "Amazon.com, Inc.",
        0x1414 => "Microsoft Corporation",
        0x1dd8 => "AMD Pensando Systems",
        other => return format!("{other:04x}"),
    };
    name.to_owned()
}

/// Names of the models that the described machines have.
fn device_name(pci: &PciFunction) -> String {
    let name = match (pci.vendor, pci.device) {
        (0x15b3, 0x101e) => "ConnectX Family mlx5Gen Virtual Function",
        (0x15b3, 0x101d) => "MT2892 Family [ConnectX-6 Dx]",
        (0x15b3, 0x1021) => "MT2910 Family [ConnectX-7]",
        (0x15b3, 0x1023) => "CX8 Family [ConnectX-8]",
        (0x15b3, 0xa2dc) => "MT43244 BlueField-3 integrated ConnectX-7 network controller",
        (0x1ae0, 0x0042) => "Compute Engine Virtual Ethernet [gVNIC]",
        (0x1af4, 0x1000) => "Virtio network device",
        (0x1af4, 0x1041) => "Virtio 1.0 network device",
        (0x8086, 0x1452) => "Infrastructure Data Path Function",
        (_, other) => return format!("{other:04x}"),
    };
    name.to_owned()
}
