//! A machine as values: NUMA nodes and their distances, PCI functions with the way up to their root
//! complex, NICs and accelerators.
//!
//! Says what is there. How the parts lie to each other is [`crate::topology`]'s, what of them is told to
//! the scheduler is [`crate::publish`]'s.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A machine. Lists are in the order of [`Machine::sort`], so equal machines compare equal.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// NUMA nodes by id; empty where the kernel tells of none.
    pub numa: Vec<NumaNode>,
    /// NICs with a PCI function by address, then the others by name.
    pub nics: Vec<Nic>,
    /// Accelerators by PCI address.
    pub accelerators: Vec<Accelerator>,
}

impl Machine {
    /// Brings the lists in their order: what was found first depends on the file system.
    pub fn sort(&mut self) {
        self.numa.sort_by_key(|node| node.id);
        self.nics.sort_by_key(Nic::order);
        self.accelerators
            .sort_by_key(|accelerator| accelerator.pci.address);
    }

    /// The machine with NICs that are away, in a pod, as they were when they left: a NIC without its
    /// net device or RDMA device would else look like another one, or be gone.
    #[must_use]
    pub fn with_held(mut self, held: &[Nic]) -> Machine {
        for nic in held {
            self.nics.retain(|found| !found.is(nic));
            self.nics.push(nic.clone());
        }
        self.sort();
        self
    }

    /// Adds what only netlink tells of net devices. Of those that are not among the NICs nothing is kept.
    pub fn tell(&mut self, links: &[LinkFacts]) {
        for netdev in self.nics.iter_mut().filter_map(|nic| nic.netdev.as_mut()) {
            if let Some(link) = links.iter().find(|link| link.name == netdev.name) {
                netdev.addresses.clone_from(&link.addresses);
                if !link.kind.is_empty() {
                    netdev.kind.clone_from(&link.kind);
                }
            }
        }
    }

    /// Whether there is a GPU of NVIDIA's.
    pub fn has_nvidia(&self) -> bool {
        self.accelerators.iter().any(|a| a.pci.vendor == NVIDIA)
    }

    /// The distance of two NUMA nodes as firmware gives it (SLIT: 10 is the node itself); none where it
    /// does not say.
    pub fn numa_distance(&self, from: u16, to: u16) -> Option<u16> {
        let column = self.numa.iter().position(|node| node.id == to)?;
        let row = self.numa.iter().find(|node| node.id == from)?;
        row.distances.get(column).copied()
    }
}

/// A NUMA node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NumaNode {
    /// The kernel's number of it.
    pub id: u16,
    /// SLIT distances to all nodes, in the order of ids.
    pub distances: Vec<u16>,
}

/// Where a PCI function is: `0000:8f:00.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// Domain (segment); wider than 16 bits behind some hypervisors.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PciAddress {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl FromStr for PciAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<PciAddress, String> {
        let parsed = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let shaped = (4..=8).contains(&domain.len())
                && (bus.len(), device.len(), function.len()) == (2, 2, 1)
                && text
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() || b":.".contains(&b));
            let address = PciAddress {
                domain: u32::from_str_radix(domain, 16).ok()?,
                bus: u8::from_str_radix(bus, 16).ok()?,
                device: u8::from_str_radix(device, 16).ok()?,
                function: u8::from_str_radix(function, 16).ok()?,
            };
            (shaped && address.device < 32 && address.function < 8).then_some(address)
        };
        parsed().ok_or_else(|| format!("`{text}` is no PCI address such as 0000:8f:00.0"))
    }
}

impl TryFrom<String> for PciAddress {
    type Error = String;

    fn try_from(text: String) -> Result<PciAddress, String> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> String {
        address.to_string()
    }
}

/// A PCI function.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Its root complex, as the kernel names it: `pci0000:8c`.
    pub root: String,
    /// The bridges above it, the root port first.
    pub parents: Vec<PciAddress>,
    /// Class, subclass and programming interface: `0x020000` is an Ethernet controller.
    pub class: u32,
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Vendor of the card.
    pub subsystem_vendor: u16,
    /// The card.
    pub subsystem_device: u16,
    /// NUMA node; none where firmware does not say (the kernel's -1).
    pub numa: Option<u16>,
    /// The kernel's driver for it.
    pub driver: Option<String>,
}

/// A NIC: a net device, an RDMA device, or both; of hardware or not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Nic {
    /// Its function; none for a virtual one.
    pub pci: Option<PciFunction>,
    /// Its part in SR-IOV.
    pub sriov: Sriov,
    /// Its net device; none for InfiniBand without IP.
    pub netdev: Option<Netdev>,
    /// Its RDMA device.
    pub rdma: Option<RdmaDevice>,
}

impl Nic {
    fn order(&self) -> (bool, Option<PciAddress>, String) {
        let address = self.pci.as_ref().map(|pci| pci.address);
        (address.is_none(), address, self.label().to_owned())
    }

    /// Its name on the host, for people: of the net device, else of the RDMA device; may be empty.
    pub fn label(&self) -> &str {
        let rdma = || self.rdma.as_ref().map_or("", |rdma| &rdma.name);
        self.netdev.as_ref().map_or_else(rdma, |n| &n.name)
    }

    /// Whether both are one NIC: the same function, or without one the same name.
    pub fn is(&self, other: &Nic) -> bool {
        match (&self.pci, &other.pci) {
            (Some(one), Some(two)) => one.address == two.address,
            (None, None) => self.label() == other.label(),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Speed of its link in Mb/s: the net device's, else the RDMA port's; none while neither says.
    pub fn speed_mbps(&self) -> Option<u64> {
        let netdev = self.netdev.as_ref().and_then(|n| n.speed_mbps);
        let ports = self.rdma.iter().flat_map(|rdma| &rdma.ports);
        netdev.or_else(|| ports.filter_map(|port| port.rate_mbps).max())
    }
}

/// What a function is in single root I/O virtualisation.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Sriov {
    /// It has no part in it.
    #[default]
    None,
    /// It can be split.
    Physical {
        /// Into how many at most.
        vfs_max: u32,
        /// Those that there are.
        vfs: Vec<PciAddress>,
    },
    /// It is a part.
    Virtual {
        /// Of this one; none where the machine sees only the part, as in a VM.
        of: Option<PciAddress>,
    },
}

/// A net device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Netdev {
    /// Name of the interface.
    pub name: String,
    /// The kind as netlink has it (`veth`, `macvlan`, `bridge`); `device` for hardware, empty if not
    /// known: sysfs tells of some kinds only.
    pub kind: String,
    /// Hardware address as the kernel prints it; empty if it has none.
    pub mac: String,
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
    /// Addresses; sysfs has none, netlink does.
    pub addresses: Vec<IpAddr>,
    /// Whether it was set up by somebody (`IFF_UP`): only then the state tells of the link.
    pub admin_up: bool,
    /// `operstate` of RFC 2863 in the kernel's words: `up`, `down`, `unknown`, …
    pub state: String,
    /// Speed in Mb/s; none while the link is down, and for most virtual ones.
    pub speed_mbps: Option<u64>,
    /// The operator's name for it; may be empty.
    pub alias: String,
}

/// What netlink tells of a net device and sysfs does not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LinkFacts {
    /// Name of the interface.
    pub name: String,
    /// Its kind: `veth`, `macvlan`, …; empty for hardware.
    pub kind: String,
    /// Its global addresses.
    pub addresses: Vec<IpAddr>,
}

/// An RDMA device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RdmaDevice {
    /// Its name: `mlx5_0`.
    pub name: String,
    /// GUID of the node as the kernel prints it; may be empty.
    pub node_guid: String,
    /// Version of the firmware; may be empty.
    pub firmware: String,
    /// Ports by number.
    pub ports: Vec<RdmaPort>,
}

/// A port of an RDMA device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RdmaPort {
    /// Its number, from 1.
    pub number: u8,
    /// Logical state in lower case: `active`, `init`, `down`, …
    pub state: String,
    /// Physical state in lower case: `linkup`, `polling`, `disabled`, …
    pub phys_state: String,
    /// `ethernet` or `infiniband`.
    pub link_layer: String,
    /// Rate in Mb/s.
    pub rate_mbps: Option<u64>,
    /// The GIDs that are set.
    pub gids: Vec<Gid>,
}

/// An entry of a port's table of GIDs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gid {
    /// Its index.
    pub index: u16,
    /// The GID.
    pub gid: Ipv6Addr,
    /// Its type as the kernel prints it (`RoCE v2`, `IB/RoCE v1`); empty if not told.
    pub kind: String,
    /// The net device that it belongs to; empty if not told.
    pub netdev: String,
}

/// A GPU or TPU.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Accelerator {
    /// Its function. A GPU behind C2C has one too, for control.
    pub pci: PciFunction,
    /// What it is.
    pub kind: AcceleratorKind,
    /// Its name; sysfs has none, see [`crate::gpu`].
    pub model: String,
    /// How its memory is reached from the host.
    pub attachment: Attachment,
}

/// What an accelerator is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AcceleratorKind {
    /// A GPU.
    Gpu,
    /// A TPU.
    Tpu,
}

/// How an accelerator's memory is reached from the host and its NICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Attachment {
    /// Over PCIe: who shares its switch is near.
    Pcie,
    /// Over a coherent link to the CPU (NVLink-C2C): who shares its NUMA node is near, and a shared PCIe
    /// root says nothing.
    C2c,
}

const NVIDIA: u16 = 0x10de;
const AMD: u16 = 0x1002;
const INTEL: u16 = 0x8086;
const GOOGLE: u16 = 0x1ae0;

/// Device ids of NVIDIA GPUs behind NVLink-C2C: GH200 (three memory sizes), GB200, GB300. Sysfs does not
/// tell of the link; where [`crate::gpu`] does not either, a GPU that is missing here counts as one on PCIe,
/// and its NICs as `numa`, not `c2c`.
const C2C_DEVICES: [u16; 5] = [0x2342, 0x2345, 0x2348, 0x2941, 0x31c2];

/// Device ids of TPUs: v3, v4 (two), v5p, v5e, v6e, 7x.
const TPU_DEVICES: [u16; 7] = [0x0027, 0x0056, 0x005e, 0x0062, 0x0063, 0x006f, 0x0076];

impl Accelerator {
    /// The accelerator that a function is; none if it is none. A display controller of a vendor of
    /// GPUs counts only with a class of its compute parts (3D controller, accelerator) or NVIDIA's and
    /// AMD's VGA ones: a server's own console is no GPU.
    pub fn of(pci: &PciFunction) -> Option<Accelerator> {
        let base = pci.class >> 8;
        let kind = match (pci.vendor, base) {
            (GOOGLE, _) if TPU_DEVICES.contains(&pci.device) => AcceleratorKind::Tpu,
            (NVIDIA, 0x0302 | 0x0300) | (AMD, 0x0380 | 0x0302 | 0x0300 | 0x1200) => {
                AcceleratorKind::Gpu
            }
            (INTEL, 0x0380 | 0x0302) => AcceleratorKind::Gpu,
            _ => return None,
        };
        let attachment = match pci.vendor == NVIDIA && C2C_DEVICES.contains(&pci.device) {
            true => Attachment::C2c,
            false => Attachment::Pcie,
        };
        Some(Accelerator {
            pci: pci.clone(),
            kind,
            model: String::new(),
            attachment,
        })
    }
}

/// What of a host could not be read, and what that means; the rest is used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The file or object, relative to where it was read from.
    pub path: String,
    /// What is wrong, what that means, what may cure it.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_are_read_as_the_kernel_prints_them() {
        for text in ["0000:8f:00.0", "10008:01:1f.7", "0012:03:00.1"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        for text in [
            "8f:00.0",
            "0000:8f:20.0",
            "0000:8f:00.8",
            "0000:8f:0.0",
            "+000:8f:00.0",
            "",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
