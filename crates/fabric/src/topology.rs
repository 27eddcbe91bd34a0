//! How the parts of a machine lie to each other: how far a NIC is from its nearest accelerators, and
//! which rail it is on.
//!
//! Rails by the machine alone: NICs of one model (PCI vendor and device) are a rail group, and a NIC's rail
//! is its place in the group by PCI address, from 0. Cables are laid in that order by all builders of the
//! described machines; where they are not, [`Rails`] of the operator win. A group counts only on a machine
//! with accelerators, and only if it has RDMA, or if no NIC of the machine has and it is the largest:
//! front-end NICs have no rail. Virtual functions have the rail of their physical one. The state of a link
//! has no say, so that no flap moves a rail.

use std::collections::BTreeMap;

use crate::machine::{Accelerator, Attachment, Machine, Nic, PciAddress, PciFunction, Sriov};

/// How far a NIC is from an accelerator, nearest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Distance {
    /// A PCIe switch, or at least a root port, is above both.
    SameSwitch,
    /// They share the root complex only.
    SameRoot,
    /// The accelerator is behind a coherent link to the CPU (C2C) of the NIC's NUMA node.
    C2cLocal,
    /// They share the NUMA node only.
    SameNuma,
    /// None of these, or not known.
    Other,
}

impl Distance {
    /// As it is published.
    pub fn as_str(self) -> &'static str {
        match self {
            Distance::SameSwitch => "switch",
            Distance::SameRoot => "root",
            Distance::C2cLocal => "c2c",
            Distance::SameNuma => "numa",
            Distance::Other => "other",
        }
    }
}

/// The accelerators nearest to a NIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nearest {
    /// How far they are.
    pub distance: Distance,
    /// All that are equally near, by address; none are peers at [`Distance::Other`].
    pub peers: Vec<PciAddress>,
}

/// Where a NIC is among those that are cabled alike.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rail {
    /// Rails of one group are comparable, those of two are not: `15b3:101e`.
    pub group: String,
    /// The rail, from 0.
    pub index: u16,
}

/// Rails that the operator gives, by PCI address.
pub type Rails = BTreeMap<PciAddress, Rail>;

/// How far a NIC's function is from an accelerator, and how many bridges they share.
fn distance(nic: &PciFunction, accelerator: &Accelerator) -> (Distance, usize) {
    let other = &accelerator.pci;
    let same_numa = nic.numa.is_some() && nic.numa == other.numa;
    if accelerator.attachment == Attachment::C2c {
        return match same_numa {
            true => (Distance::C2cLocal, 0),
            false => (Distance::Other, 0),
        };
    }
    let pairs = nic.parents.iter().zip(&other.parents);
    let shared = pairs.take_while(|(one, two)| one == two).count();
    let class = match (shared, nic.root == other.root) {
        (1.., _) => Distance::SameSwitch,
        (0, true) => Distance::SameRoot,
        (0, false) if same_numa => Distance::SameNuma,
        (0, false) => Distance::Other,
    };
    (class, shared)
}

/// The accelerators nearest to a NIC; none on a machine without any.
pub fn nearest(machine: &Machine, nic: &Nic) -> Option<Nearest> {
    if machine.accelerators.is_empty() {
        return None;
    }
    let far = Nearest {
        distance: Distance::Other,
        peers: Vec::new(),
    };
    let Some(pci) = &nic.pci else {
        return Some(far);
    };
    let measured: Vec<_> = (machine.accelerators.iter())
        .map(|accelerator| (distance(pci, accelerator), accelerator.pci.address))
        .collect();
    // More bridges in common is nearer, within a class.
    let rank = |(class, shared): (Distance, usize)| (class, usize::MAX - shared);
    let best = measured.iter().map(|(far, _)| rank(*far)).min()?;
    if best.0 == Distance::Other {
        return Some(far);
    }
    let peers = measured.iter().filter(|(far, _)| rank(*far) == best);
    Some(Nearest {
        distance: best.0,
        peers: peers.map(|(_, address)| *address).collect(),
    })
}

/// The rail of every NIC that is on one, by PCI address, see the head of this file.
pub fn rails(machine: &Machine, given: &Rails) -> Rails {
    let mut found = Rails::new();
    for (group, members) in groups(machine) {
        for (index, address) in (0..).zip(members) {
            let group = group.clone();
            found.insert(address, Rail { group, index });
        }
    }
    found.extend(given.iter().map(|(at, rail)| (*at, rail.clone())));
    for nic in &machine.nics {
        let (Some(pci), Sriov::Virtual { of: Some(physical) }) = (&nic.pci, &nic.sriov) else {
            continue;
        };
        if let Some(rail) = found
            .get(physical)
            .filter(|_| !given.contains_key(&pci.address))
        {
            let rail = rail.clone();
            found.insert(pci.address, rail);
        }
    }
    found
}

/// The groups that count, with their members by address.
fn groups(machine: &Machine) -> BTreeMap<String, Vec<PciAddress>> {
    let mut all: BTreeMap<String, (bool, Vec<PciAddress>)> = BTreeMap::new();
    for nic in &machine.nics {
        let Some(pci) = &nic.pci else { continue };
        if matches!(nic.sriov, Sriov::Virtual { of: Some(_) }) {
            continue;
        }
        let name = format!("{:04x}:{:04x}", pci.vendor, pci.device);
        let (rdma, members) = all.entry(name).or_default();
        *rdma |= nic.rdma.is_some();
        members.push(pci.address);
    }
    if machine.accelerators.is_empty() {
        return BTreeMap::new();
    }
    let any_rdma = all.values().any(|(rdma, _)| *rdma);
    let largest = all.values().map(|(_, members)| members.len()).max();
    let counts = |rdma: bool, members: &[PciAddress]| match any_rdma {
        true => rdma,
        false => Some(members.len()) == largest,
    };
    all.into_iter()
        .filter(|(_, (rdma, members))| counts(*rdma, members))
        .map(|(name, (_, mut members))| {
            members.sort();
            (name, members)
        })
        .collect()
}
