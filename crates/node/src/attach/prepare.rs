//! A claim's plan: made from what the host has and what the claim says, written, and told to the kubelet.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use forebay_fabric::claim::{AllocatedClaim, AllocatedDevice, DeviceConfig};
use forebay_fabric::config::NetworkConfig;
use forebay_fabric::plan::State;
use forebay_fabric::share::{self, Wanted};

use super::{CALL_MAX, Core, FaultPoint, Faults, said};
use crate::driver::{DriverError, PreparedDevice};
use crate::ledger::{ClaimRecord, DeviceRecord};
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
        let cdi_id = self.cdi.write(uid).map_err(io)?;
        Ok(Some(told(&record, &cdi_id)))
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
        // One that was lost is planned for anew: after a reboot there may be another of its name.
        let untouched = |d: &DeviceRecord| matches!(d.state, State::Planned | State::Lost);
        let begun = known.filter(|k| !k.devices.iter().all(untouched));
        let record = match begun {
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
                let devices = self.plans(claim, names)?;
                let record = ClaimRecord {
                    namespace: claim.claim.namespace.clone(),
                    name: claim.claim.name.clone(),
                    uid: uid.clone(),
                    pod_uid: pod.uid.clone(),
                    pod_name: pod.name.clone(),
                    netns: None,
                    devices,
                };
                self.ledger.write(&record).map_err(of)?;
                record
            }
        };
        self.faults.at(FaultPoint::Planned).map_err(of)?;
        let cdi_id = self.cdi.write(uid).map_err(of)?;
        Ok(told(&record, &cdi_id))
    }

    fn plans(
        &self,
        claim: &AllocatedClaim,
        names: &BTreeMap<String, String>,
    ) -> Result<Vec<DeviceRecord>, DriverError> {
        let fail = |why: String| DriverError(format!("claim {}: {why}", claim.claim));
        let (others, _) = self.ledger.all().map_err(|e| said(&claim.claim, &e))?;
        let mut interfaces = Vec::new();
        for device in &claim.devices {
            let id = &device.device;
            refuse_unsupported(device).map_err(fail)?;
            let name = names.get(id);
            let name = name.ok_or_else(|| fail(format!("{id} has no interface on this node")))?;
            interfaces.push(name.clone());
        }
        let hosts = self.links.snapshot(&interfaces);
        let hosts = hosts.map_err(|e| said(&claim.claim, &e))?;
        let mut taken: Vec<String> = Vec::new();
        let mut devices = Vec::new();
        for ((device, name), host) in claim.devices.iter().zip(interfaces).zip(hosts) {
            let id = &device.device;
            let gone = || fail(format!("{id}: interface `{name}` is not on the host"));
            let mut host = host.ok_or_else(gone)?;
            let mut config = config_of(&device.request, &claim.configs).map_err(fail)?;
            if !config.ethtool.is_empty() {
                let resolved = self.links.ethtool(&name, &config.ethtool);
                let resolved = resolved.map_err(|e| fail(format!("{id}: ethtool: {e}")))?;
                (config.ethtool, host.ethtool) = resolved;
            }
            let place = (device.pool.clone(), id.clone());
            let requests = vec![device.request.clone()];
            let wanted = Wanted {
                claim: &claim.claim.uid,
                share_id: device.share_id.as_deref(),
                bandwidth_bps: device.bandwidth_bps,
                vf: None,
            };
            let plan = share::plan(requests, place, host, &config, &taken, wanted);
            let plan = plan.map_err(fail)?;
            for other in others.iter().filter(|o| o.uid != claim.claim.uid) {
                let who = other.claim().to_string();
                let has = other.devices.iter().filter(|d| d.state != State::Released);
                for has in has.filter(|d| d.plan.device == *id) {
                    share::beside(id, &plan.share, &has.plan.share, &who).map_err(fail)?;
                }
            }
            taken.push(plan.pod.name.clone());
            devices.push(DeviceRecord {
                state: State::Planned,
                plan,
            });
        }
        Ok(devices)
    }
}

/// What the kubelet is told of a claim.
fn told(record: &ClaimRecord, cdi_id: &str) -> Vec<PreparedDevice> {
    let device = |device: &DeviceRecord| PreparedDevice {
        requests: device.plan.requests.clone(),
        pool: device.plan.pool.clone(),
        device: device.plan.device.clone(),
        share_id: device.plan.share.id.clone(),
        cdi_ids: vec![cdi_id.to_owned()],
    };
    record.devices.iter().map(device).collect()
}

fn refuse_unsupported(device: &AllocatedDevice) -> Result<(), String> {
    let id = &device.device;
    if device.admin_access {
        return Err(format!(
            "{id}: adminAccess looks only, and a NIC is moved; ask without it"
        ));
    }
    Ok(())
}

/// The class's parameters for a request, with the claim's over them.
fn config_of(request: &str, configs: &[DeviceConfig]) -> Result<NetworkConfig, String> {
    let parent = request.split('/').next().unwrap_or(request);
    let mut merged = NetworkConfig::default();
    for (at, config) in configs.iter().enumerate() {
        if !config.requests.is_empty()
            && !config.requests.iter().any(|r| r == request || r == parent)
        {
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
