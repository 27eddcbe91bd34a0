//! What is told to the scheduler of a machine's NICs: devices with attributes, capacity and taints, in
//! slices of a pool, within the limits of `resource.k8s.io/v1`.
//!
//! Every device of a node has the same attributes ([`attributes`] says which, and what stands there when
//! there is nothing to say): in a selector, to name an attribute that a device lacks is an error that ends
//! the scheduling of the pod. A device that is allocated is published as it was when it was given away.
//! Does not talk to an API server: slices are plain values.

pub mod attributes;
pub mod resource_slice;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::cloud::CloudFacts;
use crate::health::Taint;
use crate::machine::{Machine, Nic, PciAddress, Problem};
use crate::topology::{self, Rails};

/// Devices of a slice at most.
pub const DEVICES_MAX: usize = 128;
/// Devices of a slice at most, if one of the pool has a taint.
pub const TAINTED_DEVICES_MAX: usize = 64;
/// Attributes and capacities of a device at most.
pub const ENTRIES_MAX: usize = 32;
/// Bytes of a string value at most; longer ones are cut.
pub const STRING_BYTES_MAX: usize = 64;
/// Taints of a device at most; the first ones are kept.
pub const TAINTS_MAX: usize = 16;
/// PCI class and subclass of InfiniBand controllers: only these are whole without a net device.
const INFINIBAND_CLASS: u32 = 0x0207;
/// Devices of a pool at most; those that come later in the order are left out and told of.
pub const POOL_DEVICES_MAX: usize = 4096;

/// The name of an attribute or capacity: `forebay.dev/rail`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QualifiedName {
    pub(crate) domain: String,
    pub(crate) id: String,
}

impl QualifiedName {
    /// A name of two parts. The domain is a DNS subdomain of at most 63 bytes, the id an identifier of
    /// at most 32.
    ///
    /// # Errors
    ///
    /// A sentence on what is wrong with it.
    pub fn parse(text: &str) -> Result<QualifiedName, String> {
        let (domain, id) = text
            .split_once('/')
            .ok_or_else(|| format!("`{text}` has no domain: it is to be like example.com/name"))?;
        let label = |label: &str| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            !label.is_empty()
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if domain.len() > 63 || !domain.split('.').all(label) {
            return Err(format!(
                "`{domain}` is no DNS subdomain of at most 63 bytes"
            ));
        }
        let identifier = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && id.bytes().next().is_some_and(|b| !b.is_ascii_digit());
        if id.len() > 32 || !identifier {
            return Err(format!("`{id}` is no identifier of at most 32 bytes"));
        }
        Ok(QualifiedName::of(domain, id))
    }

    /// A name known to be right.
    pub(crate) fn of(domain: &str, id: &str) -> QualifiedName {
        QualifiedName {
            domain: domain.to_owned(),
            id: id.to_owned(),
        }
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.id)
    }
}

/// The value of an attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attribute {
    /// A string of at most [`STRING_BYTES_MAX`].
    String(String),
    /// An integer.
    Int(i64),
    /// True or false.
    Bool(bool),
}

impl Attribute {
    /// A string, cut at [`STRING_BYTES_MAX`] between two characters.
    pub fn text(text: &str) -> Attribute {
        Attribute::String(text[..text.floor_char_boundary(STRING_BYTES_MAX)].to_owned())
    }

    /// What stands for "nothing to say" on the devices that lack one that others have.
    pub(crate) fn empty_like(&self) -> Attribute {
        match self {
            Attribute::String(_) => Attribute::String(String::new()),
            Attribute::Int(_) => Attribute::Int(-1),
            Attribute::Bool(_) => Attribute::Bool(false),
        }
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attribute::String(text) => write!(f, "{text:?}"),
            Attribute::Int(number) => write!(f, "{number}"),
            Attribute::Bool(value) => write!(f, "{value}"),
        }
    }
}

/// The capacity `forebay.dev/bandwidth`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bandwidth {
    /// All that there is, bits per second; 0 while it is not known.
    pub bps: u64,
    /// How a share of it may be asked for; none for a NIC that one pod has whole.
    pub share: Option<SharePolicy>,
}

/// How a share of a capacity may be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharePolicy {
    /// What a request gets that does not say how much, bits per second: all.
    pub default_bps: u64,
    /// The smallest share, bits per second.
    pub min_bps: u64,
    /// Shares are rounded up to a multiple of this, bits per second.
    pub step_bps: u64,
}

/// Smallest share of a NIC, and what shares are rounded up to: below, the kernel's limiters are coarse.
pub const SHARE_STEP_BPS: u64 = 1_000_000;

/// A device as it is published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublishedDevice {
    /// `pci-0000-8f-00-0`, or of the interface's name.
    pub name: String,
    /// The same names on every device of the pool.
    pub attributes: BTreeMap<QualifiedName, Attribute>,
    /// The capacity.
    pub bandwidth: Bandwidth,
    /// What is wrong with it.
    pub taints: Vec<Taint>,
    /// Whether several claims may have it, each with a share of the bandwidth.
    pub allow_multiple: bool,
}

/// A ResourceSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// The pool: the node's name.
    pub pool: String,
    /// Generation of the pool.
    pub generation: u64,
    /// Which of the pool's slices, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// Devices, in the order of the machine.
    pub devices: Vec<PublishedDevice>,
}

/// What is published of.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// What was found.
    pub machine: Machine,
    /// The NICs that claims have, as they were when they were given away.
    pub held: Vec<Nic>,
    /// What the cloud, or the node's labels, say.
    pub cloud: CloudFacts,
    /// Rails that the operator gives.
    pub rails: Rails,
    /// Taints by device name.
    pub taints: BTreeMap<String, Vec<Taint>>,
    /// Names of the devices that several claims may share.
    pub shareable: BTreeSet<String>,
    /// Attributes for the entries that the cloud leaves over, in this order; see
    /// [`attributes::Optional`].
    pub optional: Vec<attributes::Optional>,
}

/// Whether a NIC has something to give to a pod: a net device, or RDMA where that is all that it has. A
/// function without its net device, which somebody moved away or no driver made, has nothing.
fn is_offered(nic: &Nic) -> bool {
    let rdma_alone = (nic.pci.as_ref()).is_none_or(|pci| pci.class >> 8 == INFINIBAND_CLASS);
    nic.netdev.is_some() || nic.rdma.is_some() && rdma_alone
}

/// The name of a NIC's device: stays the same for as long as the hardware is in its slot, or a virtual one
/// keeps its name.
pub fn device_name(nic: &Nic) -> String {
    if let Some(pci) = &nic.pci {
        return pci_device_name(pci.address);
    }
    let name = nic.label();
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let edges = name.starts_with('-') || name.ends_with('-') || name.starts_with("pci-");
    if plain && !edges && !name.is_empty() {
        return name.to_owned();
    }
    // Another name may come out the same; its sum tells them apart.
    let keep = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let kept: String = name.chars().take(32).map(keep).collect();
    let sum = name.bytes().fold(0x811c_9dc5_u32, |sum, byte| {
        (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("if-{}-{sum:08x}", kept.trim_matches('-'))
}

/// The name of the device of a PCI function.
pub fn pci_device_name(at: PciAddress) -> String {
    format!(
        "pci-{:04x}-{:02x}-{:02x}-{:x}",
        at.domain, at.bus, at.device, at.function
    )
}

/// The devices of a machine, and what could not be published of it.
pub fn devices(input: &Input) -> (Vec<PublishedDevice>, Vec<Problem>) {
    let machine = input.machine.clone().with_held(&input.held);
    let rails = topology::rails(&machine, &input.rails);
    let table = attributes::Table::new(&machine, &input.cloud, &input.optional);
    let mut problems = table.problems();
    let mut names = BTreeSet::new();
    let mut devices = Vec::new();
    for nic in machine.nics.iter().filter(|nic| is_offered(nic)) {
        let name = device_name(nic);
        let refused = match names.len() {
            POOL_DEVICES_MAX => Some(format!("a pool has at most {POOL_DEVICES_MAX} devices")),
            _ if !names.insert(name.clone()) => Some("another NIC has the same name".to_owned()),
            _ => None,
        };
        if let Some(why) = refused {
            let reason = format!("is not published: {why}; leave NICs out by name");
            problems.push(Problem { path: name, reason });
            continue;
        }
        let allow_multiple = input.shareable.contains(&name);
        let taints = input.taints.get(&name).map_or(&[][..], Vec::as_slice);
        devices.push(PublishedDevice {
            attributes: table.of(nic, &rails),
            bandwidth: bandwidth(nic, allow_multiple),
            taints: taints[..taints.len().min(TAINTS_MAX)].to_vec(),
            allow_multiple,
            name,
        });
    }
    (devices, problems)
}

fn bandwidth(nic: &Nic, shared: bool) -> Bandwidth {
    let bps = nic.speed_mbps().unwrap_or(0).saturating_mul(1_000_000);
    // A default outside of what there is would make the slice invalid.
    let share = (shared && bps >= SHARE_STEP_BPS).then_some(SharePolicy {
        default_bps: bps,
        min_bps: SHARE_STEP_BPS,
        step_bps: SHARE_STEP_BPS,
    });
    Bandwidth { bps, share }
}

/// Publishes a pool over time: the generation grows when the content changes, and only then.
#[derive(Clone, Debug)]
pub struct Publisher {
    pool: String,
    generation: u64,
    devices: Option<Vec<PublishedDevice>>,
}

impl Publisher {
    /// A publisher of a pool whose last generation, of another process, is known: 0 for none. What comes
    /// first is published under the next.
    pub fn new(pool: &str, generation: u64) -> Publisher {
        Publisher {
            pool: pool.to_owned(),
            generation,
            devices: None,
        }
    }

    /// Takes in how the devices are now. Answers the slices that there shall be if they differ from the
    /// last ones. A link's speed is known only while it is up: that of before stays.
    pub fn publish(&mut self, mut devices: Vec<PublishedDevice>) -> Option<Vec<Slice>> {
        let before = self.devices.as_deref().unwrap_or_default();
        for device in devices
            .iter_mut()
            .filter(|device| device.bandwidth.bps == 0)
        {
            let known = before.iter().find(|known| known.name == device.name);
            if let Some(known) = known.filter(|k| k.allow_multiple == device.allow_multiple) {
                device.bandwidth = known.bandwidth;
                let speed = attributes::speed();
                if let Some(value) = known.attributes.get(&speed) {
                    device.attributes.insert(speed, value.clone());
                }
            }
        }
        if self.devices.as_ref() == Some(&devices) {
            return None;
        }
        self.generation += 1;
        let slices = slices(&self.pool, self.generation, &devices);
        self.devices = Some(devices);
        Some(slices)
    }
}

/// Devices in as many slices as they need; one without devices for none, so that a pool that became empty
/// is told as such.
pub fn slices(pool: &str, generation: u64, devices: &[PublishedDevice]) -> Vec<Slice> {
    let size = match devices.iter().any(|device| !device.taints.is_empty()) {
        true => TAINTED_DEVICES_MAX,
        false => DEVICES_MAX,
    };
    let mut parts: Vec<&[PublishedDevice]> = devices.chunks(size).collect();
    if parts.is_empty() {
        parts.push(&[]);
    }
    let count = parts.len();
    let slice = |(index, part): (usize, &[PublishedDevice])| Slice {
        pool: pool.to_owned(),
        generation,
        index,
        count,
        devices: part.to_vec(),
    };
    parts.into_iter().enumerate().map(slice).collect()
}
