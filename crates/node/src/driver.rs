//! The seam between those who ask (kubelet, container runtime) and what is done on the host.
//!
//! Every call may come again, after a crash of either side too, and has to answer the same then.

use std::fmt;
use std::path::PathBuf;

use forebay_fabric::claim::ClaimRef;

/// A device that is ready for its pod, as the kubelet is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PreparedDevice {
    /// The requests of the claim that it answers.
    pub requests: Vec<String>,
    /// The pool of the slice that it was published in.
    pub pool: String,
    /// Its name in that slice.
    pub device: String,
    /// Which share of it.
    pub share_id: Option<String>,
    /// What the runtime shall add to containers that name the claim: qualified CDI names.
    pub cdi_ids: Vec<String>,
}

/// A pod's sandbox, as the runtime tells of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sandbox {
    /// The runtime's id of it.
    pub id: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// Path of its network namespace; none where it has the host's.
    pub netns: Option<PathBuf>,
}

/// A program that the runtime calls before a container starts, in the runtime's own namespaces
/// (`createRuntime` of OCI).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hook {
    /// The program, on the host's file system.
    pub program: PathBuf,
    /// Its arguments, of which the first is its name.
    pub arguments: Vec<String>,
    /// How long it may take, seconds.
    pub timeout_s: u32,
}

/// How a published device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Usable.
    Healthy,
    /// Not usable.
    Unhealthy,
    /// Nothing is known of it.
    Unknown,
}

/// The health of one device, as the kubelet is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceHealth {
    /// The pool of the slice that it is published in.
    pub pool: String,
    /// Its name in that slice.
    pub device: String,
    /// How it is.
    pub health: Health,
    /// Why, for people; may be empty.
    pub message: String,
    /// When that was seen, seconds since 1970.
    pub seen_at_s: i64,
}

/// Why something could not be done: a sentence with object, reason and cure, for an event on the pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DriverError(pub String);

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DriverError {}

/// What is done on the host.
pub trait Driver: Send + Sync + 'static {
    /// Plans for a claim's devices and writes the plan down. Does not touch a device yet.
    fn prepare(
        &self,
        claim: &ClaimRef,
    ) -> impl Future<Output = Result<Vec<PreparedDevice>, DriverError>> + Send;

    /// Forgets a claim, after it gave back what is still with its pod.
    fn unprepare(&self, claim: &ClaimRef) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Moves the devices of the pod's claims into its sandbox, all or none, and verifies them. Nothing is
    /// to be done, and that is no error, for a pod without claims of ours.
    fn attach(&self, sandbox: &Sandbox) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Takes the devices back; the sandbox's namespace may be gone already.
    fn detach(&self, sandbox: &Sandbox) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// All sandboxes that the runtime has, after a (re)connection: what happened unseen is caught up on.
    fn synchronize(
        &self,
        sandboxes: &[Sandbox],
    ) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// The guards of a pod's claims, which each of its containers is to have: its NICs are in the network that all of
    /// them share, whether they name the claim or not.
    fn guards(
        &self,
        _sandbox: &Sandbox,
    ) -> impl Future<Output = Result<Vec<Hook>, DriverError>> + Send {
        async { Ok(Vec::new()) }
    }

    /// Whether anything is to be done for a sandbox, as far as can be told: for those who count.
    fn concerns(&self, _sandbox: &Sandbox) -> bool {
        true
    }

    /// The health of all published devices, now and whenever it changes.
    fn health(&self) -> tokio::sync::watch::Receiver<Vec<DeviceHealth>>;
}
