//! A claim's plan: made from what the host has and what the claim says, written, and told to the kubelet.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use forebay_fabric::claim::{AllocatedClaim, AllocatedDevice, DeviceConfig};
use forebay_fabric::config::{NetworkConfig, SubInterface, TABLE_MAIN};
use forebay_fabric::plan::{AttachPlan, Interface, State};
use forebay_fabric::publish;
use forebay_fabric::share::{self, RdmaPart, Vf, Wanted};

use super::addresses::Given;
use super::{CALL_MAX, Core, FaultPoint, Faults, addresses, said};
use crate::cdi;
use crate::driver::{DriverError, PreparedDevice};
use crate::ipam::Source;
use crate::ledger::{ClaimRecord, DeviceRecord, LookedAt};
use crate::netlink::Links;

impl<L: Links, F: Faults> Core<L, F> {
    /// What was answered for a claim that is known; none if it is not.
    ///
    /// # Errors
    /// The ledger or the CDI folder cannot be used.
    pub fn known(&self, uid: &str) -> Result<Option<Vec<PreparedDevice>>, DriverError> {
        let _turn = self.turn(Instant::now() + CALL_MAX)?;
        let io = |e: io::Error| DriverError(format!("claim {uid}: {e}"));
        let Some(record) = self.ledger.read(uid).map_err(io)? else {
            return Ok(None);
        };
        self.cdi.write(&record).map_err(io)?;
        Ok(Some(told(&record)))
    }

    /// See [`Driver::prepare`]; `names` are the host's interfaces by device.
    ///
    /// # Errors
    /// What cannot be had, or be written.
    pub fn prepare(
        &self,
        claim: &AllocatedClaim,
        names: &BTreeMap<String, String>,
    ) -> Result<Vec<PreparedDevice>, DriverError> {
        let mut configs = configs(claim);
        let given = match &mut configs {
            Ok(configs) => self.ask(claim, names, configs)?,
            Err(_) => Given::new(),
        };
        let wanted = configs.map(|configs| configs.into_iter().zip(given.clone()).collect());
        let prepared = self.prepare_with(claim, names, wanted);
        if prepared.is_err() {
            self.hand_back(claim, names, given);
        }
        prepared
    }

    /// `wanted` is what each device shall be, or why that cannot be told.
    fn prepare_with(
        &self,
        claim: &AllocatedClaim,
        names: &BTreeMap<String, String>,
        wanted: Result<Vec<(NetworkConfig, Option<Source>)>, String>,
    ) -> Result<Vec<PreparedDevice>, DriverError> {
        let _turn = self.turn(Instant::now() + CALL_MAX)?;
        let of = |e: io::Error| said(&claim.claim, &e);
        let uid = &claim.claim.uid;
        let [pod] = claim.reserved_for.as_slice() else {
            return Err(DriverError(format!(
                "claim {}: {} pods share it, and a NIC is had by one; give each pod its own claim",
                claim.claim,
                claim.reserved_for.len()
            )));
        };
        let known = self.ledger.read(uid).map_err(of)?;
        let record = match known.clone().filter(begun) {
            // The kubelet asks again after its restart, while the pod runs.
            Some(record) if record.pod_uid == pod.uid => record,
            Some(record) => {
                let who = format!("claim {}: still with pod {}", claim.claim, record.pod_name);
                return Err(DriverError(format!(
                    "{who}; it is free when that pod has ended"
                )));
            }
            None => {
                self.faults.at(FaultPoint::Plan).map_err(of)?;
                let fail = |why| DriverError(format!("claim {}: {why}", claim.claim));
                let wanted = wanted.map_err(fail)?;
                let devices = self.plans(claim, names, (wanted, known.as_ref()))?;
                let record = ClaimRecord {
                    namespace: claim.claim.namespace.clone(),
                    name: claim.claim.name.clone(),
                    uid: uid.clone(),
                    pod_uid: pod.uid.clone(),
                    pod_name: pod.name.clone(),
                    claim_name_in_pod: claim.pod_name.clone(),
                    netns: None,
                    devices,
                    looked_at: looked_at(claim),
                };
                // First: what a plan gives away stays published.
                self.keep(&record).map_err(of)?;
                self.ledger.write(&record).map_err(of)?;
                record
            }
        };
        self.faults.at(FaultPoint::Planned).map_err(of)?;
        self.cdi.write(&record).map_err(of)?;
        Ok(told(&record))
    }

    /// Writes the NICs of a claim down as they are published now. Those that a claim had already are as they were then.
    fn keep(&self, record: &ClaimRecord) -> io::Result<()> {
        let Some((held, known)) = &self.held else {
            return Ok(());
        };
        let nics = record.devices.iter();
        let mut nics = nics.filter_map(|device| known.nic(&device.plan.device));
        nics.try_for_each(|nic| held.keep(&nic))
    }

    /// Plans for the devices that the claim gets as they are `wanted`; `before` is what was planned for it earlier.
    fn plans(
        &self,
        claim: &AllocatedClaim,
        names: &BTreeMap<String, String>,
        (wanted, before): (Vec<(NetworkConfig, Option<Source>)>, Option<&ClaimRecord>),
    ) -> Result<Vec<DeviceRecord>, DriverError> {
        let fail = |why: String| DriverError(format!("claim {}: {why}", claim.claim));
        let (mut others, _) = self.ledger.all().map_err(|e| said(&claim.claim, &e))?;
        others.retain(|other| other.uid != claim.claim.uid);
        let mut asked: Vec<Asked<'_>> = Vec::new();
        let (configs, sources): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        for (device, config) in claim.had().zip(configs) {
            let one = self.asked(device, config, names, &others, &asked);
            asked.push(one.map_err(fail)?);
        }
        let interfaces: Vec<String> = asked.iter().map(|one| one.interface.clone()).collect();
        let hosts = self.links.snapshot(&interfaces);
        let hosts = hosts.map_err(|e| said(&claim.claim, &e))?;
        // Read once, and only where a NIC has routes in a table that needs one.
        let own_table = |host: &Interface| host.routes.iter().any(|r| r.table != TABLE_MAIN);
        let rules = match hosts.iter().flatten().any(own_table) {
            true => self.links.rules().map_err(|e| said(&claim.claim, &e))?,
            false => Vec::new(),
        };
        let mut devices: Vec<DeviceRecord> = Vec::new();
        for ((one, host), source) in asked.into_iter().zip(hosts).zip(sources) {
            let around = Around {
                others: &others,
                before,
                so_far: &devices,
            };
            let plan = self.plan_one(claim, one, host, &around).map_err(fail)?;
            let plan = plan.with_rules_of(&rules);
            devices.push(DeviceRecord {
                state: State::Planned,
                plan,
                source,
            });
        }
        Ok(devices)
    }

    /// What is asked for a device, and which interface of the host that is about.
    fn asked<'a>(
        &self,
        device: &'a AllocatedDevice,
        config: NetworkConfig,
        names: &BTreeMap<String, String>,
        others: &[ClaimRecord],
        so_far: &[Asked<'_>],
    ) -> Result<Asked<'a>, String> {
        let id = &device.device;
        let name = names.get(id);
        let name = name.ok_or_else(|| format!("{id} has no interface on this node"))?;
        let vf = match config.sub_interface {
            Some(SubInterface::Vf) => Some(self.vf(id, name, others, so_far)?),
            Some(SubInterface::Macvlan(_) | SubInterface::Ipvlan(_)) | None => None,
        };
        Ok(Asked {
            device,
            interface: vf.as_ref().map_or(name, |vf| &vf.interface).clone(),
            config,
            vf,
        })
    }

    fn plan_one(
        &self,
        claim: &AllocatedClaim,
        asked: Asked<'_>,
        host: Option<Interface>,
        around: &Around<'_>,
    ) -> Result<AttachPlan, String> {
        let Asked {
            device,
            interface: name,
            mut config,
            vf,
        } = asked;
        let id = &device.device;
        let mut host =
            host.ok_or_else(|| format!("{id}: interface `{name}` is not on the host"))?;
        if !config.ethtool.is_empty() {
            let resolved = self.links.ethtool(&name, &config.ethtool);
            (config.ethtool, host.ethtool) = resolved.map_err(|e| format!("{id}: ethtool: {e}"))?;
        }
        addresses::settle(&mut config, device, around).map_err(|why| format!("{id}: {why}"))?;
        let wanted = Wanted {
            claim: &claim.claim.uid,
            share_id: device.share_id.as_deref(),
            bandwidth_bps: device.bandwidth_bps,
            vf: vf.as_ref(),
        };
        let taken = around.so_far.iter().map(|d| d.plan.pod.name.clone());
        let taken: Vec<String> = taken.collect();
        let requests = vec![device.request.clone()];
        let place = (device.pool.clone(), id.clone());
        let mut plan = share::plan(requests, place, host, &config, &taken, wanted)?;
        for other in around.others {
            let who = other.claim().to_string();
            let has = other.devices.iter().filter(|d| d.state != State::Released);
            for has in has.filter(|d| d.plan.device == *id) {
                share::beside(id, &plan.share, &has.plan.share, &who)?;
            }
        }
        if plan.share.child.is_none() {
            let part = self.parts.as_ref().and_then(|parts| parts.rdma(&name));
            plan.rdma = part.map(|part| RdmaPart {
                own_namespace: self.own_rdma,
                ..part
            });
        }
        Ok(plan)
    }

    /// A virtual function of a device that no claim has: neither as a share of the device nor as one of its own.
    fn vf(
        &self,
        device: &str,
        interface: &str,
        others: &[ClaimRecord],
        so_far: &[Asked<'_>],
    ) -> Result<Vf, String> {
        let found = self.parts.as_ref().map(|parts| parts.vfs(interface));
        let found = found.unwrap_or_default();
        let has = |vf: &Vf| {
            let own = publish::pci_device_name(vf.address);
            let elsewhere = others.iter().flat_map(|other| &other.devices).any(|d| {
                let share = d.plan.share.vf.as_ref();
                d.plan.device == own || share.is_some_and(|has| has.address == vf.address)
            });
            let here = |one: &Asked<'_>| {
                let picked = one.vf.as_ref();
                one.device.device == own || picked.is_some_and(|has| has.address == vf.address)
            };
            elsewhere || so_far.iter().any(here)
        };
        let taken = found.iter().filter(|vf| has(vf)).map(|vf| vf.address);
        share::free_vf(device, &found, &taken.collect::<Vec<_>>())
    }
}

/// A device of a claim with what is asked for it.
struct Asked<'a> {
    device: &'a AllocatedDevice,
    /// Of the host: its own, or that of its virtual function.
    interface: String,
    config: NetworkConfig,
    vf: Option<Vf>,
}

/// What a device is planned for beside.
pub(super) struct Around<'a> {
    /// Other claims of this node.
    pub(super) others: &'a [ClaimRecord],
    /// What was planned for this claim earlier.
    pub(super) before: Option<&'a ClaimRecord>,
    /// This claim's devices up to here.
    pub(super) so_far: &'a [DeviceRecord],
}

/// What the kubelet is told of a claim.
fn told(record: &ClaimRecord) -> Vec<PreparedDevice> {
    let device = |(at, device): (usize, &DeviceRecord)| PreparedDevice {
        requests: device.plan.requests.clone(),
        pool: device.plan.pool.clone(),
        device: device.plan.device.clone(),
        share_id: device.plan.share.id.clone(),
        cdi_ids: cdi::names(record, at),
    };
    // It is the guard's to say that it needs nothing.
    let looked_at = |looked_at: &LookedAt| PreparedDevice {
        requests: vec![looked_at.request.clone()],
        pool: looked_at.pool.clone(),
        device: looked_at.device.clone(),
        share_id: looked_at.share_id.clone(),
        cdi_ids: cdi::names(record, usize::MAX),
    };
    let devices = record.devices.iter().enumerate().map(device);
    devices
        .chain(record.looked_at.iter().map(looked_at))
        .collect()
}

/// The devices that a claim looks at and does not get.
fn looked_at(claim: &AllocatedClaim) -> Vec<LookedAt> {
    let looks = claim.devices.iter().filter(|d| d.admin_access);
    let one = |device: &AllocatedDevice| LookedAt {
        request: device.request.clone(),
        pool: device.pool.clone(),
        device: device.device.clone(),
        share_id: device.share_id.clone(),
    };
    looks.map(one).collect()
}

/// Whether devices of a claim were touched. One that was lost is planned for anew: after a reboot there may be
/// another of its name.
pub(super) fn begun(record: &ClaimRecord) -> bool {
    let untouched = |d: &DeviceRecord| matches!(d.state, State::Planned | State::Lost);
    !record.devices.iter().all(untouched)
}

/// The parameters of each device that a claim gets.
fn configs(claim: &AllocatedClaim) -> Result<Vec<NetworkConfig>, String> {
    (claim.had())
        .map(|d| config_of(&d.request, &claim.configs))
        .collect()
}

/// The class's parameters for a request, with the claim's over them.
fn config_of(request: &str, configs: &[DeviceConfig]) -> Result<NetworkConfig, String> {
    let mut merged = NetworkConfig::default();
    for (at, config) in configs.iter().enumerate() {
        if !config.is_for(request) {
            continue;
        }
        let parsed = NetworkConfig::parse(&config.parameters).map_err(|errors| {
            let from = if config.from_class { "class" } else { "claim" };
            let told: Vec<_> = errors.iter().map(ToString::to_string).collect();
            format!("parameters {at} (of the {from}): {}", told.join("; "))
        })?;
        merged = NetworkConfig::merged(merged, parsed);
    }
    Ok(merged)
}
