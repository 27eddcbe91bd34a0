//! One look at the host: which devices there are, how they are, and what is to be published of them.
//!
//! Reads sysfs, netlink and the ledger; decides nothing that `forebay-fabric` does not. Who looks when, and
//! where it goes, is the caller's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use forebay_fabric::cloud::CloudFacts;
use forebay_fabric::gpu::{self, GpuFacts};
use forebay_fabric::health::{self, Damping, Monitor, Seen};
use forebay_fabric::machine::{Machine, Nic};
use forebay_fabric::plan::State;
use forebay_fabric::publish::attributes::Optional;
use forebay_fabric::publish::{
    self, Attribute, Input, PublishedDevice, Publisher, Slice, resource_slice,
};
use forebay_fabric::topology::Rails;

use crate::driver::{DeviceHealth, Health};
use crate::filter::Filter;
use crate::held::Held;
use crate::ledger::{ClaimRecord, Ledger};
use crate::{netlink, sysfs, uplinks};

/// What is looked at, and what the operator says of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's name, which is the pool's.
    pub node: String,
    /// The driver's name.
    pub driver: String,
    /// What `/sys` is to the host.
    pub sysfs: PathBuf,
    /// What `/proc` is to the host.
    pub proc: PathBuf,
    /// Which interfaces without hardware are published: names, or beginnings with a `*` after them. With
    /// none, all but veths, which are the other ends of pods.
    pub virtuals: Vec<String>,
    /// Which devices are published of these; none for all. One that a claim has stays.
    pub filter: Option<Filter>,
    /// Rails that the operator gives.
    pub rails: Rails,
    /// Devices that several claims may share.
    pub shareable: BTreeSet<String>,
    /// Attributes for the entries that the cloud leaves over.
    pub optional: Vec<Optional>,
    /// How patient to be with links.
    pub damping: Damping,
}

/// The devices that were found last, for those who plan for them. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Known(Arc<RwLock<BTreeMap<String, (Nic, PublishedDevice)>>>);

impl Known {
    /// These, as if a look had found them.
    pub fn of(devices: impl IntoIterator<Item = (Nic, PublishedDevice)>) -> Known {
        let known = Known::default();
        let named = devices.into_iter().map(|one| (one.1.name.clone(), one));
        known.set(named.collect());
        known
    }

    /// The NIC behind a device.
    pub fn nic(&self, device: &str) -> Option<Nic> {
        self.with(device, |(nic, _)| nic.clone())
    }

    /// All of them.
    pub fn nics(&self) -> Vec<Nic> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.values().map(|(nic, _)| nic.clone()).collect()
    }

    /// Its interface on the host; none for what has none.
    pub fn interface(&self, device: &str) -> Option<String> {
        let name = |(nic, _): &(Nic, _)| nic.netdev.as_ref().map(|netdev| netdev.name.clone());
        self.with(device, name).flatten()
    }

    /// What is published of it, as in a ResourceSlice; none for what is not.
    pub fn attributes(&self, device: &str) -> Option<serde_json::Map<String, serde_json::Value>> {
        self.with(device, |(_, published)| {
            resource_slice::attributes(published)
        })
    }

    /// What is published of it that says where it lies.
    pub fn place(&self, device: &str) -> Vec<(String, String)> {
        self.with(device, |(_, published)| place(published))
            .unwrap_or_default()
    }

    fn with<T>(&self, device: &str, read: impl Fn(&(Nic, PublishedDevice)) -> T) -> Option<T> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(device).map(read)
    }

    fn set(&self, devices: BTreeMap<String, (Nic, PublishedDevice)>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = devices;
    }
}

/// Attributes that are passed on to who places work, under the last part of their names.
const PLACE: [&str; 9] = [
    "forebay.dev/rail",
    "forebay.dev/railGroup",
    "forebay.dev/gpuPeers",
    "forebay.dev/nvlinkDomain",
    "forebay.dev/block",
    "forebay.dev/subBlock",
    "forebay.dev/host",
    "resource.kubernetes.io/numaNode",
    "resource.kubernetes.io/pciBusID",
];

fn place(device: &PublishedDevice) -> Vec<(String, String)> {
    let told = |(name, value): (_, &Attribute)| {
        let name: String = ToString::to_string(name);
        let last = name.rsplit('/').next()?.to_owned();
        let value = match value {
            Attribute::String(text) if !text.is_empty() => text.clone(),
            Attribute::Int(number) if *number >= 0 => number.to_string(),
            Attribute::Bool(_) | Attribute::Int(_) | Attribute::String(_) => return None,
        };
        PLACE.contains(&name.as_str()).then_some((last, value))
    };
    device.attributes.iter().filter_map(told).collect()
}

/// What one look brought.
#[derive(Clone, Debug)]
pub struct Look {
    /// The slices, if they differ from those of before.
    pub slices: Option<Vec<Slice>>,
    /// The health of all devices.
    pub health: Vec<DeviceHealth>,
    /// How many devices there are.
    pub devices: usize,
    /// How many of these have a taint.
    pub tainted: usize,
    /// What claims have, as the ledger says.
    pub records: Vec<ClaimRecord>,
    /// What could not be read or published, for people.
    pub problems: Vec<String>,
    /// When to look again though nothing changes, on the clock of the call.
    pub due_ms: Option<u64>,
}

/// Looks at a host again and again.
#[derive(Debug)]
pub struct Inventory {
    settings: Settings,
    ledger: Ledger,
    held: Held,
    monitor: Monitor,
    publisher: Publisher,
    known: Known,
}

impl Inventory {
    /// Nothing has been looked at yet.
    pub fn new(settings: Settings, ledger: Ledger, held: Held) -> Inventory {
        Inventory {
            monitor: Monitor::new(settings.damping),
            // Whoever writes the slices goes on from the generation that stands there.
            publisher: Publisher::new(&settings.node, 0),
            known: Known::default(),
            settings,
            ledger,
            held,
        }
    }

    /// The devices found last.
    pub fn known(&self) -> Known {
        self.known.clone()
    }

    /// Looks, with what is told of the machine elsewhere. `now_ms` is on any clock that does not go back,
    /// `today_s` seconds since 1970.
    ///
    /// # Errors
    /// What keeps it from being known which NICs are the host's own, or which ones claims have: all
    /// stays as it was then.
    pub fn look(
        &mut self,
        mut cloud: CloudFacts,
        gpus: &[GpuFacts],
        (now_ms, today_s): (u64, i64),
    ) -> io::Result<Look> {
        let keep = uplinks::read(&self.settings.proc)?;
        self.prune()?;
        let held_before = self.held.all()?;
        let found = sysfs::read(&self.settings.sysfs, &keep);
        let mut machine = found.machine;
        machine.tell(&netlink::facts()?);
        let no_domain = gpu::tell(&mut machine, &mut cloud.place, gpus);
        self.settings.leave_out(&mut machine);
        let (records, broken) = self.ledger.all()?;
        let claimed = records.iter().flat_map(|record| &record.devices);
        let claimed: BTreeMap<String, State> =
            claimed.map(|d| (d.plan.device.clone(), d.state)).collect();
        let held = either(self.held.all()?, held_before);
        let seen = see(&machine, &held, &claimed);
        let input = |taints| Input {
            machine: machine.clone(),
            held: held.clone(),
            cloud: cloud.clone(),
            rails: self.settings.rails.clone(),
            taints,
            shareable: self.settings.shareable.clone(),
            optional: self.settings.optional.clone(),
        };
        self.monitor.see(&seen, now_ms);
        let (mut devices, mut problems) = publish::devices(&input(self.monitor.taints(now_ms)));
        if let Some(filter) = &self.settings.filter {
            let held: BTreeSet<String> = held.iter().map(publish::device_name).collect();
            let stays = |name: &String| held.contains(name) || claimed.contains_key(name);
            let driver = &self.settings.driver;
            problems.extend(filter.leave_out(&mut devices, driver, |d| stays(&d.name)));
        }
        let mut told = broken;
        told.extend(found.problems.iter().map(ToString::to_string));
        told.extend(problems.iter().chain(&no_domain).map(ToString::to_string));
        self.remember(&machine, &held, &devices);
        Ok(Look {
            health: self.health(&devices, today_s),
            devices: devices.len(),
            tainted: devices.iter().filter(|d| !d.taints.is_empty()).count(),
            slices: self.publisher.publish(devices),
            records,
            problems: told,
            due_ms: self.monitor.due_ms(),
        })
    }

    /// What a process left that ended between writing a NIC down and its plan.
    fn prune(&self) -> io::Result<()> {
        let (records, _) = self.ledger.all()?;
        let claimed = records.iter().flat_map(|record| &record.devices);
        self.held
            .prune(&claimed.map(|d| d.plan.device.clone()).collect())
    }

    fn remember(&self, machine: &Machine, held: &[Nic], devices: &[PublishedDevice]) {
        let whole = machine.clone().with_held(held);
        let mut nics: BTreeMap<String, Nic> = BTreeMap::new();
        for nic in whole.nics {
            nics.entry(publish::device_name(&nic)).or_insert(nic);
        }
        let known = devices.iter().filter_map(|device| {
            let nic = nics.remove(&device.name)?;
            Some((device.name.clone(), (nic, device.clone())))
        });
        self.known.set(known.collect());
    }

    fn health(&self, devices: &[PublishedDevice], seen_at_s: i64) -> Vec<DeviceHealth> {
        let one = |device: &PublishedDevice| {
            let watched = self.monitor.devices().get(&device.name);
            let health = match watched.map(health::Watched::is_healthy) {
                Some(true) => Health::Healthy,
                Some(false) => Health::Unhealthy,
                None => Health::Unknown,
            };
            DeviceHealth {
                pool: self.settings.node.clone(),
                device: device.name.clone(),
                health,
                message: watched.map_or("", health::Watched::message).to_owned(),
                seen_at_s,
            }
        };
        devices.iter().map(one).collect()
    }
}

impl Settings {
    fn leave_out(&self, machine: &mut Machine) {
        machine.nics.retain(|nic| {
            let Some(netdev) = nic.netdev.as_ref().filter(|_| nic.pci.is_none()) else {
                return true;
            };
            let named = |pattern: &String| match pattern.strip_suffix('*') {
                Some(begin) => netdev.name.starts_with(begin),
                None => netdev.name == *pattern,
            };
            match self.virtuals.is_empty() {
                true => netdev.kind != "veth",
                false => self.virtuals.iter().any(named),
            }
        });
    }
}

/// NICs that were held before or after the host was looked at: one that came back meanwhile was seen in neither place.
fn either(mut after: Vec<Nic>, before: Vec<Nic>) -> Vec<Nic> {
    let names: BTreeSet<String> = after.iter().map(publish::device_name).collect();
    after.extend((before.into_iter()).filter(|nic| !names.contains(&publish::device_name(nic))));
    after
}

/// What is seen of every device: of one that a claim has and that is not on the host, only whether it is lost.
fn see(
    machine: &Machine,
    held: &[Nic],
    claimed: &BTreeMap<String, State>,
) -> BTreeMap<String, Seen> {
    let name = publish::device_name;
    let mut seen: BTreeMap<String, Seen> = (machine.nics.iter())
        .map(|nic| (name(nic), health::seen(nic)))
        .collect();
    for nic in held {
        let device = name(nic);
        let found = machine.nics.iter().any(|found| found.is(nic));
        let lost = claimed.get(&device) == Some(&State::Lost);
        let state = match (found, lost || nic.pci.is_some()) {
            (true, _) => continue,
            (false, true) => Seen::Gone,
            (false, false) => Seen::Idle,
        };
        seen.insert(device, state);
    }
    seen
}

#[cfg(test)]
mod tests {
    use forebay_fabric::machine::{Netdev, Sriov};

    use super::*;

    fn veth(name: &str, kind: &str) -> Nic {
        Nic {
            pci: None,
            sriov: Sriov::None,
            netdev: Some(Netdev {
                name: name.into(),
                kind: kind.into(),
                mac: String::new(),
                mtu: 1500,
                addresses: Vec::new(),
                admin_up: true,
                state: "up".into(),
                speed_mbps: None,
                alias: String::new(),
            }),
            rdma: None,
        }
    }

    fn check(virtuals: &[&str], expected: &[&str]) {
        let settings = Settings {
            node: "n1".into(),
            driver: "dra.net".into(),
            filter: None,
            sysfs: PathBuf::new(),
            proc: PathBuf::new(),
            virtuals: virtuals.iter().map(ToString::to_string).collect(),
            rails: Rails::new(),
            shareable: BTreeSet::new(),
            optional: Vec::new(),
            damping: Damping::default(),
        };
        let nics = [("rail0", "veth"), ("rail1", "veth"), ("mv0", "macvlan")];
        let mut machine = Machine {
            nics: nics.map(|(name, kind)| veth(name, kind)).to_vec(),
            ..Machine::default()
        };
        settings.leave_out(&mut machine);
        let left: Vec<&str> = machine.nics.iter().map(Nic::label).collect();
        assert_eq!(left, expected, "{virtuals:?}");
    }

    #[test]
    fn veths_are_published_only_when_they_are_named() {
        check(&[], &["mv0"]);
        check(&["rail*"], &["rail0", "rail1"]);
        check(&["rail1", "mv0"], &["rail1", "mv0"]);
    }

    #[test]
    fn a_device_in_a_pod_is_unhealthy_only_when_it_is_lost() {
        let held = [
            veth("rail0", "veth"),
            veth("rail1", "veth"),
            veth("rail2", "veth"),
        ];
        let machine = Machine {
            nics: vec![veth("rail2", "veth")],
            ..Machine::default()
        };
        let claimed = BTreeMap::from([
            ("rail0".to_owned(), State::Verified),
            ("rail1".to_owned(), State::Lost),
        ]);
        let seen = see(&machine, &held, &claimed);
        let seen: Vec<Seen> = seen.into_values().collect();
        assert_eq!(seen, [Seen::Idle, Seen::Gone, Seen::Up]);
    }
}
