//! The driver: a claim's plan is written in `prepare`; its devices go into the pod together in `attach`,
//! or all stay on the host; and they come back in `detach` as they were.
//!
//! The order that makes a crash harmless: a state is on disk before what it names begins, and what is
//! found later is settled by `fabric::plan::recover` from that state and where the device is seen.
//! One call works at a time, of all processes that share a ledger. Whether a container may start is not decided here but by `guard`.

mod addresses;
mod enter;
mod faults;
mod prepare;
mod release;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forebay_fabric::claim::{AllocatedClaim, AllocatedDevice, ClaimRef};
use forebay_fabric::plan::{self, AttachPlan};

use crate::cdi::Cdi;
use crate::driver::{DeviceHealth, Driver, DriverError, Hook, PreparedDevice, Sandbox};
use crate::held::Held;
use crate::inventory::Known;
use crate::ipam::{Keeper, Nobody, Releases, Sources};
use crate::ledger::{ClaimRecord, Ledger};
use crate::netlink::Links;
use crate::sysfs::Parts;
pub use faults::{FAULT_POINTS, FaultPoint, Faults};

/// How long an attach may take before the runtime is told that it failed. Runtimes wait for 2 s and
/// start the pod without us then; what goes on after this is taken back by its own thread.
pub const ATTACH_MAX: Duration = Duration::from_millis(1500);

/// Where claims come from.
pub trait ClaimSource: Send + Sync + 'static {
    /// A claim with its allocation. The kubelet waits for it, so a source that follows claims answers from
    /// what it has.
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

/// The driver of a host.
#[derive(Debug)]
pub struct HostDriver<C, L, F = ()> {
    claims: Arc<C>,
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
    parts: Option<Parts>,
    /// Where NICs are written down as they are published, and how that is.
    held: Option<(Held, Known)>,
    /// Whether RDMA devices are of one namespace each.
    own_rdma: bool,
    /// Who gives addresses that are not the node's.
    sources: Box<dyn Sources>,
    releases: Releases,
    /// Namespaces of pods that have NICs of the host, by the UIDs of their claims. A runtime may take the path of one
    /// away at any time, and before a guard has held it (`guard`) the NICs would go with it.
    entered: Mutex<BTreeMap<String, File>>,
    /// Held by whoever works on devices.
    turn: Mutex<()>,
    /// Held while somebody is told that what they gave is free, and by whoever has it again.
    asking: Mutex<()>,
}

impl<C: ClaimSource, L: Links, F: Faults> HostDriver<C, L, F> {
    /// A driver over a ledger; `health` is what the kubelet is told of devices.
    pub fn new(
        claims: C,
        core: Core<L, F>,
        health: tokio::sync::watch::Receiver<Vec<DeviceHealth>>,
    ) -> HostDriver<C, L, F> {
        HostDriver {
            claims: Arc::new(claims),
            core: Arc::new(core),
            health,
        }
    }

    /// Who keeps the leases of its claims, and gives back what they no longer have.
    pub fn keeper(&self) -> Keeper<L, F> {
        Keeper::new(self.core.clone())
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
        let claims = self.claims.clone();
        self.blocking(CALL_MAX, move |core| {
            let devices = allocated.devices.iter();
            let named =
                |d: &AllocatedDevice| Some((d.device.clone(), claims.interface(&d.device)?));
            let names: BTreeMap<String, String> = devices.filter_map(named).collect();
            core.prepare(&allocated, &names)
        })
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

    async fn guards(&self, sandbox: &Sandbox) -> Result<Vec<Hook>, DriverError> {
        let uid = sandbox.uid.clone();
        let guards = move |core: &Core<L, F>| {
            let (records, _) = core.of_pod(&uid)?;
            let guards = records.iter().map(|record| core.cdi.guard(&record.uid));
            Ok(guards.collect())
        };
        self.blocking(ATTACH_MAX, guards).await
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
            releases: Releases::beside(ledger.folder()),
            ledger,
            cdi,
            parts: None,
            held: None,
            own_rdma: false,
            sources: Box::new(Nobody),
            entered: Mutex::default(),
            turn: Mutex::new(()),
            asking: Mutex::new(()),
        }
    }

    /// With those who give addresses. Without, claims that name them are refused.
    #[must_use]
    pub fn with_sources(self, sources: impl Sources) -> Core<L, F> {
        let sources = Box::new(sources);
        Core { sources, ..self }
    }

    /// With what belongs to NICs beside their interfaces: virtual functions and RDMA devices, which go into the
    /// pod with their NIC if `own_rdma`. Without, they are as if there were none.
    #[must_use]
    pub fn with_parts(self, parts: Parts, own_rdma: bool) -> Core<L, F> {
        let parts = Some(parts);
        Core {
            parts,
            own_rdma,
            ..self
        }
    }

    /// With where NICs that claims have are written down as they are `known` to be published, so that they stay so.
    /// Without, they are not.
    #[must_use]
    pub fn with_held(self, held: Held, known: Known) -> Core<L, F> {
        let held = Some((held, known));
        Core { held, ..self }
    }

    /// The turn to work on devices, among threads and then among processes, no later than `until`.
    fn turn(&self, until: Instant) -> Result<(MutexGuard<'_, ()>, File), DriverError> {
        // What it guards is on disk; a thread that panicked left nothing half done in memory.
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.ledger.lock(until);
        Ok((turn, file.map_err(|e| DriverError(e.to_string()))?))
    }

    fn entered(&self) -> MutexGuard<'_, BTreeMap<String, File>> {
        self.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The records of a pod, and a sentence about each file of the ledger that was none.
    fn of_pod(&self, uid: &str) -> Result<(Vec<ClaimRecord>, Vec<String>), DriverError> {
        let all = self
            .ledger
            .all()
            .map_err(|e| DriverError(format!("the ledger: {e}")))?;
        let (mut records, problems) = all;
        // Who only looks has nothing in its pod.
        records.retain(|r| r.pod_uid == uid && !r.devices.is_empty());
        Ok((records, problems))
    }
}

/// How devices in a pod differ from their plans, a sentence for each NIC that does.
///
/// # Errors
/// They cannot be seen.
pub fn verify(links: &impl Links, plans: &[&AttachPlan], netns: &File) -> io::Result<Vec<String>> {
    let mut told = Vec::new();
    for (plan, found) in plans.iter().zip(links.look(plans, netns)?) {
        let wrong = match found {
            Some(found) => plan::unlike(plan, &found),
            None => vec![format!("`{}` is not in the pod", plan.pod.name)],
        };
        if !wrong.is_empty() {
            told.push(format!("NIC {}: {}", plan.device, wrong.join(", ")));
        }
    }
    Ok(told)
}

fn said(claim: &ClaimRef, error: &io::Error) -> DriverError {
    DriverError(format!("claim {claim}: {error}"))
}
