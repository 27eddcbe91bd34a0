//! From the pod back to the host, as it was there; and what is settled when a process comes back.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use forebay_fabric::plan::{self, AttachPlan, Interface, Recovery, Seen, State};

use super::{ATTACH_MAX, CALL_MAX, Core, FaultPoint, Faults, said, verify};
use crate::driver::{DriverError, Sandbox};
use crate::ledger::ClaimRecord;
use crate::netlink::{Each, Links};
use crate::netns;

impl<L: Links, F: Faults> Core<L, F> {
    /// See [`Driver::unprepare`].
    ///
    /// # Errors
    /// A device did not come back; the claim stays known.
    pub fn unprepare(&self, uid: &str) -> Result<(), DriverError> {
        let _turn = self.turn(Instant::now() + CALL_MAX)?;
        let io = |e: io::Error| DriverError(format!("claim {uid}: {e}"));
        let record = self.ledger.read(uid).map_err(io)?;
        if let Some(mut record) = record.clone() {
            self.release(&mut record)?;
            let owed = record.devices.iter();
            let owed = owed.filter_map(|d| Some((d.plan.host.name.clone(), d.source.clone()?)));
            let owed: Vec<_> = owed.collect();
            if !owed.is_empty() {
                self.releases.note(uid, &owed).map_err(io)?;
            }
        }
        self.cdi.remove(uid).map_err(io)?;
        self.ledger.remove(uid).map_err(io)?;
        record.map_or(Ok(()), |record| self.no_longer_keep(&record).map_err(io))
    }

    /// The NICs of a claim that is forgotten are published as they are found from now on, or not at all; but those that
    /// another claim has a share of.
    fn no_longer_keep(&self, record: &ClaimRecord) -> io::Result<()> {
        let Some((held, _)) = &self.held else {
            return Ok(());
        };
        let (others, _) = self.ledger.all()?;
        let others = others.iter().flat_map(|other| &other.devices);
        let others: BTreeSet<&str> = others.map(|d| d.plan.device.as_str()).collect();
        let own = record.devices.iter().map(|d| d.plan.device.as_str());
        held.forget(own.filter(|device| !others.contains(device)))
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
        let plans: Vec<_> = record.devices.iter().map(|d| &d.plan).collect();
        record.devices.iter().all(|d| d.state == State::Verified)
            && verify(&self.links, &plans, &netns).is_ok_and(|wrong| wrong.is_empty())
    }

    /// Brings all devices of a claim back to the host as they were, from wherever they are.
    pub(super) fn release(&self, record: &mut ClaimRecord) -> Result<(), DriverError> {
        let claim = record.claim();
        let of = |e: io::Error| said(&claim, &e);
        let settled = |s: State| matches!(s, State::Planned | State::Released);
        let held = self.ledger.held_netns(&record.uid).map_err(of)?;
        if record.devices.iter().all(|d| settled(d.state)) {
            return self.let_go(record);
        }
        record
            .devices
            .iter_mut()
            .filter(|d| !settled(d.state))
            .for_each(|d| {
                d.state = State::Detaching;
            });
        self.ledger.note(record).map_err(of)?;
        self.faults.at(FaultPoint::Detaching).map_err(of)?;
        let netns = record
            .netns
            .as_deref()
            .map(netns::open)
            .transpose()
            .map_err(of)?
            .flatten();
        // Its pod ended while nobody was there, or before one of its containers began.
        let netns = match netns {
            Some(netns) => Some(netns),
            None => netns::open(&held).map_err(of)?,
        };
        let entered = || self.entered().get(&record.uid).map(File::try_clone);
        let netns = match netns {
            Some(netns) => Some(netns),
            None => entered().transpose().map_err(of)?,
        };
        let moving: Vec<_> = record
            .devices
            .iter_mut()
            .filter(|d| !settled(d.state))
            .collect();
        let plans: Vec<_> = moving.iter().map(|d| d.plan.clone()).collect();
        let plans: Vec<_> = plans.iter().collect();
        let states = self.bring_back(&plans, netns.as_ref()).map_err(of)?;
        let mut failed = Vec::new();
        for (device, state) in moving.into_iter().zip(states) {
            match state {
                Ok(state) => device.state = state,
                Err(e) => failed.push(format!("NIC {}: {e}", device.plan.device)),
            }
        }
        self.ledger.note(record).map_err(of)?;
        self.faults.at(FaultPoint::Released).map_err(of)?;
        if failed.is_empty() {
            self.let_go(record)
        } else {
            Err(DriverError(format!("claim {claim}: {}", failed.join("; "))))
        }
    }

    /// Lets go of the namespace of a claim whose devices are all where they belong.
    fn let_go(&self, record: &ClaimRecord) -> Result<(), DriverError> {
        self.entered().remove(&record.uid);
        let held = self.ledger.held_netns(&record.uid);
        let done = held.and_then(|held| netns::let_go(&held));
        done.map_err(|e| said(&record.claim(), &e))
    }

    /// Brings devices that are being detached back from wherever they are; the state of each then.
    fn bring_back(
        &self,
        plans: &[&AttachPlan],
        netns: Option<&File>,
    ) -> io::Result<Vec<io::Result<State>>> {
        let seen = self.links.seen(plans, netns)?;
        let steps = seen
            .iter()
            .map(|seen| plan::recover(State::Detaching, *seen));
        let steps: Vec<_> = steps.collect();
        let mut states: Vec<io::Result<State>> = steps.iter().map(|_| Ok(State::Lost)).collect();
        let mut back: Vec<usize> = Vec::new();
        let mut in_pod: Vec<usize> = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            match (step, netns) {
                (Recovery::Keep, _) => states[at] = Ok(State::Detaching),
                (Recovery::GiveUp, _) => {}
                (Recovery::TakeBack | Recovery::Verify, Some(_)) => in_pod.push(at),
                (Recovery::TakeBack | Recovery::Verify, None) | (Recovery::RestoreHost, _) => {
                    back.push(at);
                }
            }
        }
        let those = |which: &[usize]| which.iter().map(|at| plans[*at]).collect::<Vec<_>>();
        if let Some(netns) = netns.filter(|_| !in_pod.is_empty()) {
            let moved = || self.faults.at(FaultPoint::MovedBack);
            let each = self.links.move_to_host(&those(&in_pod), netns, &moved)?;
            sort_out(&in_pod, each, &mut back, &mut states);
        }
        let each = self.links.restore(&those(&back))?;
        let mut restored = Vec::new();
        sort_out(&back, each, &mut restored, &mut states);
        for at in &restored {
            states[*at] = self
                .faults
                .at(FaultPoint::Restored)
                .map(|()| State::Detaching);
        }
        restored.retain(|at| states[*at].is_ok());
        for (at, checked) in restored
            .iter()
            .zip(self.as_before(&those(&restored), netns)?)
        {
            states[*at] = checked.map(|()| State::Released);
        }
        Ok(states)
    }

    /// Whether devices are on the host as their plans have it.
    fn as_before(
        &self,
        plans: &[&AttachPlan],
        netns: Option<&File>,
    ) -> io::Result<Vec<io::Result<()>>> {
        let names: Vec<_> = plans.iter().map(|plan| plan.host.name.clone()).collect();
        let now = self.links.snapshot(&names)?;
        let seen = if plans.iter().any(|plan| plan.share.child.is_some()) {
            self.links.seen(plans, netns)?
        } else {
            vec![Seen::Host; plans.len()]
        };
        let check = |((plan, now), seen): ((&&AttachPlan, Option<Interface>), Seen)| {
            if plan.share.child.is_some() {
                // What is on top of it is gone; the device itself was never away, and others use it.
                return match seen {
                    Seen::Host | Seen::Nowhere => Ok(()),
                    Seen::Pod => Err(io::Error::other("it is still in the pod")),
                };
            }
            let mut now =
                now.ok_or_else(|| io::Error::other("it is not on the host after its return"))?;
            if !plan.host.ethtool.is_empty() {
                now.ethtool = self.links.ethtool(&plan.host.name, &plan.host.ethtool)?.1;
            }
            let wrong = plan::differences(&plan.host, &now);
            if wrong.is_empty() {
                return Ok(());
            }
            let wrong = wrong.join(", ");
            Err(io::Error::other(format!("on the host again, but {wrong}")))
        };
        Ok(plans.iter().zip(now).zip(seen).map(check).collect())
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
            .note(record)
            .map_err(|e| said(&record.claim(), &e))
    }
}

/// Adds those of `which` that went well to `good`, and the errors of the others to `states`.
fn sort_out(which: &[usize], each: Each, good: &mut Vec<usize>, states: &mut [io::Result<State>]) {
    for (at, done) in which.iter().zip(each) {
        match done {
            Ok(()) => good.push(*at),
            Err(error) => states[*at] = Err(error),
        }
    }
}
