//! The driver: a claim's plan is written in `prepare`; its devices go into the pod together in `attach`,
//! or all stay on the host; and they come back in `detach` as they were.
//!
//! The order that makes a crash harmless: a state is on disk before what it names begins, and what is
//! found later is settled by `fabric::plan::recover` from that state and where the device is seen.
//! One call works at a time, of all processes that share a ledger. Whether a container may start is not decided here but by `guard`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forebay_fabric::claim::{AllocatedClaim, AllocatedDevice, ClaimRef, DeviceConfig};
use forebay_fabric::config::NetworkConfig;
use forebay_fabric::plan::{self, AttachPlan, Recovery, Seen, State};

use crate::cdi::Cdi;
use crate::driver::{DeviceHealth, Driver, DriverError, PreparedDevice, Sandbox};
use crate::ledger::{ClaimRecord, DeviceRecord, Ledger};
use crate::netlink::Links;
use crate::netns;

/// How long an attach may take before the runtime is told that it failed. Runtimes wait for 2 s and
/// start the pod without us then; what goes on after this is taken back by its own thread.
pub const ATTACH_MAX: Duration = Duration::from_millis(1500);

/// Where claims come from.
pub trait ClaimSource: Send + Sync + 'static {
    /// A claim with its allocation.
    fn fetch(
        &self,
        claim: &ClaimRef,
    ) -> impl Future<Output = Result<AllocatedClaim, NoClaim>> + Send;

    /// The name that the interface of a published device has on the host; none if there is no such
    /// device, or it has no interface.
    fn interface(&self, device: &str) -> Option<String>;
}

/// Why there is no claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoClaim {
    /// It must not be had.
    Refused(DriverError),
    /// Who knows of it is away: what was promised before still holds.
    Away(DriverError),
}

/// Where a fault can be put by tests, in the order in which an attach and a detach come by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultPoint {
    /// Before a plan is written.
    Plan,
    /// The plan is written, the CDI file is not.
    Planned,
    /// Before `Attaching` is written.
    Begin,
    /// `Attaching` is written.
    Attaching,
    /// A device was moved.
    Moved,
    /// It was configured.
    Configured,
    /// All were verified, which is not written yet.
    Checked,
    /// `Verified` is written.
    Verified,
    /// `Detaching` is written.
    Detaching,
    /// A device was moved back.
    MovedBack,
    /// It was restored.
    Restored,
    /// `Released` is written.
    Released,
}

/// All of them.
pub const FAULT_POINTS: [FaultPoint; 12] = [
    FaultPoint::Plan,
    FaultPoint::Planned,
    FaultPoint::Begin,
    FaultPoint::Attaching,
    FaultPoint::Moved,
    FaultPoint::Configured,
    FaultPoint::Checked,
    FaultPoint::Verified,
    FaultPoint::Detaching,
    FaultPoint::MovedBack,
    FaultPoint::Restored,
    FaultPoint::Released,
];

/// What happens at a fault point. `()` lets everything pass.
pub trait Faults: Send + Sync + 'static {
    /// Called at `point`; may fail, wait, or end the process.
    ///
    /// # Errors
    /// The fault.
    fn at(&self, point: FaultPoint) -> io::Result<()>;
}

impl Faults for () {
    fn at(&self, _: FaultPoint) -> io::Result<()> {
        Ok(())
    }
}

/// The driver of a host.
#[derive(Debug)]
pub struct HostDriver<C, L, F = ()> {
    claims: C,
    core: Arc<Core<L, F>>,
    health: tokio::sync::watch::Receiver<Vec<DeviceHealth>>,
}

/// What works without a runtime: each call blocks.
#[derive(Debug)]
pub struct Core<L, F = ()> {
    links: L,
    faults: F,
    ledger: Ledger,
    cdi: Cdi,
    /// Held by whoever works on devices.
    turn: Mutex<()>,
}

impl<C: ClaimSource, L: Links, F: Faults> HostDriver<C, L, F> {
    /// A driver over a ledger; `health` is what the kubelet is told of devices.
    pub fn new(
        claims: C,
        core: Core<L, F>,
        health: tokio::sync::watch::Receiver<Vec<DeviceHealth>>,
    ) -> HostDriver<C, L, F> {
        HostDriver {
            claims,
            core: Arc::new(core),
            health,
        }
    }

    /// Runs blocking work on a thread for it, and no longer than `limit`. The work goes on after that,
    /// and is told so by its deadline.
    async fn blocking<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&Core<L, F>) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let core = self.core.clone();
        let task = tokio::task::spawn_blocking(move || work(&core));
        match tokio::time::timeout(limit, task).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(DriverError("the driver panicked; see its log".to_owned())),
            Err(_) => Err(DriverError(format!(
                "not done within {} ms; the host does not answer, what was begun is taken back",
                limit.as_millis()
            ))),
        }
    }
}

/// What calls of the kubelet may take; it waits longer than that and asks again.
const CALL_MAX: Duration = Duration::from_secs(10);

impl<C: ClaimSource, L: Links, F: Faults> Driver for HostDriver<C, L, F> {
    async fn prepare(&self, claim: &ClaimRef) -> Result<Vec<PreparedDevice>, DriverError> {
        let allocated = match self.claims.fetch(claim).await {
            Ok(allocated) => allocated,
            Err(NoClaim::Refused(why)) => return Err(why),
            Err(NoClaim::Away(why)) => {
                let uid = claim.uid.clone();
                let known = self
                    .blocking(CALL_MAX, move |core| core.known(&uid))
                    .await?;
                return known.ok_or(why);
            }
        };
        let names: BTreeMap<String, String> = allocated
            .devices
            .iter()
            .filter_map(|d| Some((d.device.clone(), self.claims.interface(&d.device)?)))
            .collect();
        self.blocking(CALL_MAX, move |core| core.prepare(&allocated, &names))
            .await
    }

    async fn unprepare(&self, claim: &ClaimRef) -> Result<(), DriverError> {
        let uid = claim.uid.clone();
        self.blocking(CALL_MAX, move |core| core.unprepare(&uid))
            .await
    }

    async fn attach(&self, sandbox: &Sandbox) -> Result<(), DriverError> {
        let (sandbox, until) = (sandbox.clone(), Instant::now() + ATTACH_MAX);
        self.blocking(ATTACH_MAX, move |core| core.attach(&sandbox, until))
            .await
    }

    async fn detach(&self, sandbox: &Sandbox) -> Result<(), DriverError> {
        let sandbox = sandbox.clone();
        self.blocking(ATTACH_MAX, move |core| core.detach(&sandbox))
            .await
    }

    async fn synchronize(&self, sandboxes: &[Sandbox]) -> Result<(), DriverError> {
        let sandboxes = sandboxes.to_vec();
        self.blocking(CALL_MAX, move |core| core.synchronize(&sandboxes))
            .await
    }

    fn concerns(&self, sandbox: &Sandbox) -> bool {
        self.core
            .of_pod(&sandbox.uid)
            .map_or(true, |(records, _)| !records.is_empty())
    }

    fn health(&self) -> tokio::sync::watch::Receiver<Vec<DeviceHealth>> {
        self.health.clone()
    }
}

impl<L: Links, F: Faults> Core<L, F> {
    /// Over a ledger and a folder of CDI files.
    pub fn new(links: L, faults: F, ledger: Ledger, cdi: Cdi) -> Core<L, F> {
        Core {
            links,
            faults,
            ledger,
            cdi,
            turn: Mutex::new(()),
        }
    }

    /// The turn to work on devices, among threads and then among processes, no later than `until`.
    fn turn(&self, until: Instant) -> Result<(MutexGuard<'_, ()>, File), DriverError> {
        // What it guards is on disk; a thread that panicked left nothing half done in memory.
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.ledger.lock(until);
        Ok((turn, file.map_err(|e| DriverError(e.to_string()))?))
    }

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
        let mut taken: Vec<String> = Vec::new();
        let mut devices = Vec::new();
        for device in &claim.devices {
            let id = &device.device;
            refuse_unsupported(device).map_err(fail)?;
            let same = |d: &DeviceRecord| d.plan.device == *id && d.state != State::Released;
            if let Some(other) = others
                .iter()
                .find(|o| o.uid != claim.claim.uid && o.devices.iter().any(same))
            {
                let who = other.claim();
                return Err(fail(format!(
                    "{id} is still claim {who}'s; it is free when that ends"
                )));
            }
            let name = names.get(id);
            let name = name.ok_or_else(|| fail(format!("{id} has no interface on this node")))?;
            let host = self
                .links
                .snapshot(name)
                .map_err(|e| said(&claim.claim, &e))?;
            let gone = || fail(format!("{id}: interface `{name}` is not on the host"));
            let config = config_of(&device.request, &claim.configs).map_err(fail)?;
            let place = (device.pool.clone(), id.clone());
            let requests = vec![device.request.clone()];
            let plan = plan::plan(requests, place, host.ok_or_else(gone)?, &config, &taken);
            let plan = plan.map_err(fail)?;
            taken.push(plan.pod.name.clone());
            devices.push(DeviceRecord {
                state: State::Planned,
                plan,
            });
        }
        Ok(devices)
    }

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

    /// See [`Driver::attach`]; what is not done by `until` is taken back.
    ///
    /// # Errors
    /// What could not be attached and verified.
    pub fn attach(&self, sandbox: &Sandbox, until: Instant) -> Result<(), DriverError> {
        let _turn = self.turn(until)?;
        self.attach_pod(sandbox, until)
    }

    fn attach_pod(&self, sandbox: &Sandbox, until: Instant) -> Result<(), DriverError> {
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
            record.netns = Some(path.clone());
            record.set(State::Attaching);
            self.ledger.write(record).map_err(|e| fail(e.to_string()))?;
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
            self.ledger.write(record).map_err(|e| fail(e.to_string()))?;
        }
        self.faults
            .at(FaultPoint::Verified)
            .map_err(|e| fail(e.to_string()))
    }

    /// Attaches all devices, each on a thread of its own.
    fn together(&self, plans: &[&AttachPlan], netns: &File, until: Instant) -> Result<(), String> {
        let results = std::thread::scope(|scope| {
            let one = |plan| scope.spawn(move || self.attach_one(plan, netns, until));
            let threads: Vec<_> = plans.iter().copied().map(one).collect();
            let panicked = || Err(io::Error::other("panicked"));
            threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|_| panicked()))
                .collect::<Vec<_>>()
        });
        let failed = plans
            .iter()
            .zip(results)
            .filter_map(|(plan, r)| Some((plan, r.err()?)));
        let told: Vec<_> = failed
            .map(|(plan, e)| format!("NIC {}: {e}", plan.device))
            .collect();
        if told.is_empty() {
            Ok(())
        } else {
            Err(told.join("; "))
        }
    }

    fn attach_one(&self, plan: &AttachPlan, netns: &File, until: Instant) -> io::Result<()> {
        if Instant::now() >= until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no time is left"));
        }
        if self.links.seen(plan, Some(netns))? != Seen::Pod {
            self.links.move_to_pod(plan, netns)?;
        }
        self.faults.at(FaultPoint::Moved)?;
        self.links.configure(plan, netns)?;
        self.faults.at(FaultPoint::Configured)?;
        verify(&self.links, plan, netns)
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
    fn stands(&self, record: &ClaimRecord, path: &std::path::Path) -> bool {
        let Ok(Some(netns)) = netns::open(path) else {
            return false;
        };
        record
            .devices
            .iter()
            .all(|d| d.state == State::Verified && verify(&self.links, &d.plan, &netns).is_ok())
    }

    /// Brings all devices of a claim back to the host as they were, from wherever they are.
    fn release(&self, record: &mut ClaimRecord) -> Result<(), DriverError> {
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
    fn replan(&self, record: &mut ClaimRecord) -> Result<(), DriverError> {
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

    /// The records of a pod, and a sentence about each file of the ledger that was none.
    fn of_pod(&self, uid: &str) -> Result<(Vec<ClaimRecord>, Vec<String>), DriverError> {
        let all = self
            .ledger
            .all()
            .map_err(|e| DriverError(format!("the ledger: {e}")))?;
        let (mut records, problems) = all;
        records.retain(|r| r.pod_uid == uid);
        Ok((records, problems))
    }
}

/// What the kubelet is told of a claim.
fn told(record: &ClaimRecord, cdi_id: &str) -> Vec<PreparedDevice> {
    let device = |device: &DeviceRecord| PreparedDevice {
        requests: device.plan.requests.clone(),
        pool: device.plan.pool.clone(),
        device: device.plan.device.clone(),
        share_id: None,
        cdi_ids: vec![cdi_id.to_owned()],
    };
    record.devices.iter().map(device).collect()
}

/// Whether a device in a pod is as planned.
///
/// # Errors
/// How it differs, or that it cannot be seen.
pub fn verify(links: &impl Links, plan: &AttachPlan, netns: &File) -> io::Result<()> {
    let found = links.look(plan, netns)?;
    let found = found.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("`{}` is not in the pod", plan.pod.name),
        )
    })?;
    let wrong = plan::differences(&plan.pod, &found);
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(io::Error::other(wrong.join(", ")))
    }
}

fn refuse_unsupported(device: &AllocatedDevice) -> Result<(), String> {
    let id = &device.device;
    if device.admin_access {
        return Err(format!(
            "{id}: adminAccess looks only, and a NIC is moved; ask without it"
        ));
    }
    if device.share_id.is_some() || device.bandwidth_bps.is_some() {
        return Err(format!(
            "{id}: shares of a NIC are not supported; ask for a whole one"
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

fn said(claim: &ClaimRef, error: &io::Error) -> DriverError {
    DriverError(format!("claim {claim}: {error}"))
}
