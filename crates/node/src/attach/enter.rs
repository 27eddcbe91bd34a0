//! From the host into the pod: all devices of all of a pod's claims, or none.

use std::fs::File;
use std::io;
use std::time::Instant;

use forebay_fabric::plan::{AttachPlan, State};

use super::{Core, FaultPoint, Faults, verify};
use crate::driver::{DriverError, Sandbox};
use crate::ledger::ClaimRecord;
use crate::netlink::{Each, Links};
use crate::netns;

impl<L: Links, F: Faults> Core<L, F> {
    /// See [`Driver::attach`]; what is not done by `until` is taken back.
    ///
    /// # Errors
    /// What could not be attached and verified.
    pub fn attach(&self, sandbox: &Sandbox, until: Instant) -> Result<(), DriverError> {
        let _turn = self.turn(until)?;
        self.attach_pod(sandbox, until)
    }

    pub(super) fn attach_pod(&self, sandbox: &Sandbox, until: Instant) -> Result<(), DriverError> {
        let (mut records, problems) = self.of_pod(&sandbox.uid)?;
        if records.is_empty() {
            // A record that was set aside may have been this pod's; it is told once.
            let told = DriverError(problems.join("; "));
            return if problems.is_empty() {
                Ok(())
            } else {
                Err(told)
            };
        }
        let done = self.attach_all(&mut records, sandbox, until);
        if let Err(why) = done {
            let mut message = why.0;
            for record in &mut records {
                if let Err(e) = self.release(record).and_then(|()| self.replan(record)) {
                    message = format!("{message}; and to take it back: {e}");
                }
            }
            return Err(DriverError(message));
        }
        Ok(())
    }

    fn attach_all(
        &self,
        records: &mut [ClaimRecord],
        sandbox: &Sandbox,
        until: Instant,
    ) -> Result<(), DriverError> {
        let who = format!("pod {}/{}", sandbox.namespace, sandbox.name);
        let fail = |why: String| DriverError(format!("{who}: {why}"));
        let path = sandbox.netns.as_ref().ok_or_else(|| {
            fail(
                "has the host's network, where NICs are already; drop hostNetwork or the claim"
                    .into(),
            )
        })?;
        let netns = netns::open(path).map_err(|e| fail(e.to_string()))?;
        let netns = netns.ok_or_else(|| fail(format!("{} is no namespace", path.display())))?;
        for record in records.iter_mut() {
            if record.devices.iter().all(|d| d.state == State::Verified)
                && record.netns.as_ref() == Some(path)
            {
                continue;
            }
            // From an attempt that ended in between.
            if record.devices.iter().any(|d| d.state != State::Planned) {
                self.release(record)?;
                self.replan(record)?;
            }
            self.faults
                .at(FaultPoint::Begin)
                .map_err(|e| fail(e.to_string()))?;
            if record.takes_from_host() {
                let kept = netns.try_clone().map_err(|e| fail(e.to_string()))?;
                self.entered().insert(record.uid.clone(), kept);
            }
            record.netns = Some(path.clone());
            record.set(State::Attaching);
            self.ledger.note(record).map_err(|e| fail(e.to_string()))?;
        }
        self.faults
            .at(FaultPoint::Attaching)
            .map_err(|e| fail(e.to_string()))?;
        let plans: Vec<&AttachPlan> = records
            .iter()
            .flat_map(|r| &r.devices)
            .map(|d| &d.plan)
            .collect();
        self.together(&plans, &netns, until).map_err(fail)?;
        self.faults
            .at(FaultPoint::Checked)
            .map_err(|e| fail(e.to_string()))?;
        if Instant::now() >= until {
            return Err(fail(
                "not done in time; it is tried again with the next sandbox".into(),
            ));
        }
        for record in records {
            record.set(State::Verified);
            self.ledger.note(record).map_err(|e| fail(e.to_string()))?;
        }
        self.faults
            .at(FaultPoint::Verified)
            .map_err(|e| fail(e.to_string()))
    }

    /// Moves all devices, configures them and reads them back.
    fn together(&self, plans: &[&AttachPlan], netns: &File, until: Instant) -> Result<(), String> {
        let told = |e: io::Error| e.to_string();
        let moved = || {
            self.faults.at(FaultPoint::Moved)?;
            in_time(until)
        };
        in_time(until).map_err(told)?;
        let each = self.links.move_to_pod(plans, netns, &moved);
        all(plans, each.map_err(told)?)?;
        let each = self.links.configure(plans, netns).map_err(told)?;
        all(plans, each)?;
        for _ in plans {
            self.faults.at(FaultPoint::Configured).map_err(told)?;
        }
        let wrong = verify(&self.links, plans, netns).map_err(told)?;
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join("; "))
        }
    }
}

/// Whether all went well, or what did not.
fn all(plans: &[&AttachPlan], each: Each) -> Result<(), String> {
    let failed = plans.iter().zip(each);
    let failed = failed.filter_map(|(plan, r)| Some((plan, r.err()?)));
    let told: Vec<_> = failed
        .map(|(plan, e)| format!("NIC {}: {e}", plan.device))
        .collect();
    if told.is_empty() {
        Ok(())
    } else {
        Err(told.join("; "))
    }
}

fn in_time(until: Instant) -> io::Result<()> {
    if Instant::now() < until {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "no time is left; it is tried again with the next sandbox",
    ))
}
