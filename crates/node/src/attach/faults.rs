//! Where tests make a driver fail, wait or end: each step of an attach and a detach has a point here.

use std::io;

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
