//! From the pod back to the host, as it was there; and what is settled when a process comes back.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use forebay_fabric::plan::{self, Recovery, Seen, State};

use super::{ATTACH_MAX, CALL_MAX, Core, FaultPoint, Faults, said, verify};
use crate::driver::{DriverError, Sandbox};
use crate::ledger::{ClaimRecord, DeviceRecord};
use crate::netlink::Links;
use crate::netns;

impl<L: Links, F: Faults> Core<L, F> {
    /// See [`Driver::unprepare`].
    ///
    /// # Errors
    /// A device did not come back; the claim stays known.
    pub fn unprepare(&self, uid: &str) -> Result<(), DriverError> {
        let _turn = self.turn(Instant::now() + CALL_MAX)?;
        let io = |e: io::Error| DriverError(format!("claim {uid}: {e}"));
        if let Some(mut record) = self.ledger.read(uid).map_err(io)? {
            self.release(&mut record)?;
        }
        self.cdi.remove(uid).map_err(io)?;
        self.ledger.remove(uid).map_err(io)
    }

    /// See [`Driver::detach`].
    ///
    /// # Errors
    /// A device did not come back; its record says where it is.
    pub fn detach(&self, sandbox: &Sandbox) -> Result<(), DriverError> {
        let _turn = self.turn(Instant::now() + ATTACH_MAX)?;
        for mut record in self.of_pod(&sandbox.uid)?.0 {
            // Of a pod's sandboxes an older one may end last.
            if record.netns.is_none() || sandbox.netns.is_none() || record.netns == sandbox.netns {
                self.release(&mut record)?;
                self.replan(&mut record)?;
            }
        }
        Ok(())
    }

    /// See [`Driver::synchronize`].
    ///
    /// # Errors
    /// What could not be settled; the rest is.
    pub fn synchronize(&self, sandboxes: &[Sandbox]) -> Result<(), DriverError> {
        let _turn = self.turn(Instant::now() + CALL_MAX)?;
        let (records, mut problems) = self
            .ledger
            .all()
            .map_err(|e| DriverError(format!("the ledger: {e}")))?;
        for mut record in records {
            let lives = |s: &&Sandbox| s.uid == record.pod_uid && s.netns == record.netns;
            let settled = match (sandboxes.iter().find(lives), &record.netns) {
                (Some(_), Some(path)) if self.stands(&record, path) => Ok(()),
                (_, None) => Ok(()),
                (_, Some(_)) => self
                    .release(&mut record)
                    .and_then(|()| self.replan(&mut record)),
            };
            problems.extend(settled.err().map(|e| e.0));
        }
        // Made while nobody was there, and its containers wait at the guard.
        for sandbox in sandboxes {
            let lives = |path: &PathBuf| matches!(netns::open(path), Ok(Some(_)));
            if sandbox.netns.as_ref().is_some_and(lives) && self.waits(&sandbox.uid)? {
                let done = self.attach_pod(sandbox, Instant::now() + ATTACH_MAX);
                problems.extend(done.err().map(|e| e.0));
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(DriverError(problems.join("; ")))
        }
    }

    /// Whether a pod has a claim that is planned for, and nothing more.
    fn waits(&self, uid: &str) -> Result<bool, DriverError> {
        let (records, _) = self.of_pod(uid)?;
        Ok(records.iter().any(|record| record.netns.is_none()))
    }

    /// Whether all of a claim is in its pod, verified then and now.
    fn stands(&self, record: &ClaimRecord, path: &Path) -> bool {
        let Ok(Some(netns)) = netns::open(path) else {
            return false;
        };
        record
            .devices
            .iter()
            .all(|d| d.state == State::Verified && verify(&self.links, &d.plan, &netns).is_ok())
    }

    /// Brings all devices of a claim back to the host as they were, from wherever they are.
    pub(super) fn release(&self, record: &mut ClaimRecord) -> Result<(), DriverError> {
        let claim = record.claim();
        let of = |e: io::Error| said(&claim, &e);
        let settled = |s: State| matches!(s, State::Planned | State::Released);
        let held = self.ledger.held_netns(&record.uid).map_err(of)?;
        if record.devices.iter().all(|d| settled(d.state)) {
            return netns::let_go(&held).map_err(of);
        }
        record
            .devices
            .iter_mut()
            .filter(|d| !settled(d.state))
            .for_each(|d| {
                d.state = State::Detaching;
            });
        self.ledger.write(record).map_err(of)?;
        self.faults.at(FaultPoint::Detaching).map_err(of)?;
        let netns = record
            .netns
            .as_deref()
            .map(netns::open)
            .transpose()
            .map_err(of)?
            .flatten();
        // Its pod ended while nobody was there.
        let netns = match netns {
            Some(netns) => Some(netns),
            None => netns::open(&held).map_err(of)?,
        };
        let mut failed = Vec::new();
        for device in &mut record.devices {
            match self.bring_back(device, netns.as_ref()) {
                Ok(state) => device.state = state,
                Err(e) => failed.push(format!("NIC {}: {e}", device.plan.device)),
            }
        }
        self.ledger.write(record).map_err(of)?;
        self.faults.at(FaultPoint::Released).map_err(of)?;
        if failed.is_empty() {
            netns::let_go(&held).map_err(of)
        } else {
            Err(DriverError(format!("claim {claim}: {}", failed.join("; "))))
        }
    }

    fn bring_back(&self, device: &DeviceRecord, netns: Option<&File>) -> io::Result<State> {
        let plan = &device.plan;
        let seen = self.links.seen(plan, netns)?;
        match (plan::recover(device.state, seen), netns) {
            (Recovery::Keep, _) => return Ok(device.state),
            (Recovery::GiveUp, _) => return Ok(State::Lost),
            (Recovery::TakeBack | Recovery::Verify, Some(netns)) => {
                self.links.move_to_host(plan, netns)?;
                self.faults.at(FaultPoint::MovedBack)?;
            }
            (Recovery::TakeBack | Recovery::Verify, None) | (Recovery::RestoreHost, _) => {}
        }
        self.links.restore(plan)?;
        self.faults.at(FaultPoint::Restored)?;
        if plan.share.child.is_some() {
            // What is on top of it is gone; the device itself was never away, and others use it.
            return match self.links.seen(plan, netns)? {
                Seen::Host | Seen::Nowhere => Ok(State::Released),
                Seen::Pod => Err(io::Error::other("it is still in the pod")),
            };
        }
        let now = self.links.snapshot(&plan.host.name)?;
        let now = now.ok_or_else(|| io::Error::other("it is not on the host after its return"))?;
        let wrong = plan::differences(&plan.host, &now);
        if wrong.is_empty() {
            Ok(State::Released)
        } else {
            Err(io::Error::other(format!(
                "on the host again, but {}",
                wrong.join(", ")
            )))
        }
    }

    /// Makes a claim whose devices are back ready for another sandbox of its pod. A lost one stays lost,
    /// and is looked for with the next.
    pub(super) fn replan(&self, record: &mut ClaimRecord) -> Result<(), DriverError> {
        let back = record
            .devices
            .iter_mut()
            .filter(|d| d.state == State::Released);
        back.for_each(|d| d.state = State::Planned);
        if record.devices.iter().all(|d| d.state == State::Planned) {
            record.netns = None;
        }
        self.ledger
            .write(record)
            .map_err(|e| said(&record.claim(), &e))
    }
}
