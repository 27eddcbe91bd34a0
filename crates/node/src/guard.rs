//! Whether a container may start: the logic of the hook that `cdi` puts into containers that name a
//! claim. It reads the ledger and looks into the container's own network namespace, so it needs no
//! driver that runs, and none that was in time. Anything that it cannot be sure of is a no.

use std::io;
use std::path::{Path, PathBuf};

use forebay_fabric::plan::State;
use serde::Deserialize;

use crate::attach::verify;
use crate::ledger::Ledger;
use crate::netlink::{KernelLinks, Links};
use crate::netns;
use crate::rdma::{KernelNamespaces, WithRdma};

/// What runtimes write to a hook's standard input may have at most, bytes.
pub const STATE_BYTES_MAX: usize = 1 << 20;

/// The part of the OCI runtime's state that is looked at.
#[derive(Deserialize)]
struct OciState {
    pid: i32,
}

/// Whether the container of `state` (the OCI runtime's JSON) may start, as far as `claim`'s NICs go.
///
/// # Errors
/// Why not: a sentence for the container's event.
pub fn guard(folder: &Path, claim: &str, state: &str) -> Result<(), String> {
    let state: OciState = serde_json::from_str(state)
        .map_err(|e| format!("claim {claim}: the runtime's state cannot be read: {e}"))?;
    if state.pid <= 0 {
        return Err(format!(
            "claim {claim}: the runtime names no process of the container"
        ));
    }
    let netns = PathBuf::from(format!("/proc/{}/ns/net", state.pid));
    let host = Path::new("/proc/self/ns/net");
    let links = KernelLinks::open(host).map_err(|e| format!("claim {claim}: {e}"))?;
    let namespaces = KernelNamespaces::open(host).map_err(|e| format!("claim {claim}: {e}"))?;
    let links = WithRdma::new(links, namespaces);
    check(&links, folder, claim, &netns)?;
    // The NICs are in place: that they cannot be kept over a pod's end without a driver stops no container.
    if let Err(error) = hold(folder, claim, &netns) {
        eprintln!("claim {claim}: its namespace cannot be held: {error}");
    }
    Ok(())
}

/// Holds the namespace of a container while there is something of the host's in it.
fn hold(folder: &Path, claim: &str, netns: &Path) -> io::Result<()> {
    let ledger = Ledger::open(folder)?;
    let record = ledger.read(claim)?;
    match record.is_some_and(|record| record.takes_from_host()) {
        true => netns::hold(netns, &ledger.held_netns(claim)?),
        false => Ok(()),
    }
}

/// As [`guard`], for a container whose network namespace is at `netns`.
///
/// # Errors
/// Why it may not start.
pub fn check(links: &impl Links, folder: &Path, claim: &str, netns: &Path) -> Result<(), String> {
    let fail = |why: String| format!("claim {claim}: {why}");
    // Not opened through `Ledger::open`, which would make the folder.
    if !folder.is_dir() {
        return Err(fail(format!("there is no ledger at {}", folder.display())));
    }
    let ledger = Ledger::open(folder).map_err(|e| fail(e.to_string()))?;
    let record = ledger
        .read(claim)
        .map_err(|e| fail(format!("its record {e}")))?;
    let record = record.ok_or_else(|| fail("it was not prepared on this node".into()))?;
    if record.devices.is_empty() {
        // Who only looks is in no namespace of its own, and is promised nothing.
        return match record.looked_at.is_empty() {
            true => Err(fail("its record names no NIC".into())),
            false => Ok(()),
        };
    }
    let netns = netns::open(netns).map_err(|e| fail(e.to_string()))?;
    let netns = netns.ok_or_else(|| fail("the container has no network namespace".into()))?;
    for device in &record.devices {
        if device.state != State::Verified {
            return Err(fail(format!(
                "NIC {} was not attached and verified; see the driver's log on this node",
                device.plan.device
            )));
        }
    }
    let plans: Vec<_> = record.devices.iter().map(|d| &d.plan).collect();
    let wrong = verify(links, &plans, &netns).map_err(|e| fail(e.to_string()))?;
    if wrong.is_empty() {
        Ok(())
    } else {
        let wrong = wrong.join("; ");
        Err(fail(format!("not in the pod as promised: {wrong}")))
    }
}
