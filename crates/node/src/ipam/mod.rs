//! Addresses that are not the node's own to give: leases of a DHCP server on the NIC's network ([`dhcp`]), and
//! profiles of a server of the operator's ([`webhook`]). Behind a seam, [`Sources`], which [`Elsewhere`] is and
//! tests can be.
//!
//! They are asked for before a claim is planned, without the turn to work on devices: a server that is slow
//! keeps no other pod waiting. What was given is in the claim's record, and goes back when the claim is forgotten.

pub mod dhcp;
mod keep;
pub mod message;
mod releases;
pub mod webhook;

use std::fmt;
use std::fs::File;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use forebay_fabric::claim::{AllocatedClaim, AllocatedDevice};
use forebay_fabric::config::{Mac, NetworkConfig};
use forebay_fabric::dhcp::{Due, Lease};
use serde::{Deserialize, Serialize};

pub use keep::Keeper;
pub use releases::Releases;
pub(crate) use releases::{Noted, Owed};

use crate::cloud::identifiers;
use crate::inventory::Known;
use message::Answer;
use webhook::Profiles;

/// What is asked for one device.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// For which claim.
    pub claim: &'a AllocatedClaim,
    /// Which of its devices.
    pub device: &'a AllocatedDevice,
    /// The host's interface.
    pub interface: &'a str,
    /// The Ethernet address that it has in the pod.
    pub mac: Option<Mac>,
}

/// From whom something of a device is, who are told when it is free: one of them at least, or both.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Source {
    /// A DHCP server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The operator's server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

/// What the operator's server is told at the end: the body of its release.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Profile(pub String);

/// Who can be asked. Each call blocks, for some seconds at most.
pub trait Sources: fmt::Debug + Send + Sync + 'static {
    /// A lease for a device.
    ///
    /// # Errors
    /// A sentence on why there is none.
    fn lease(&self, ask: &Ask<'_>) -> Result<Lease, String>;

    /// What a profile has for a device.
    ///
    /// # Errors
    /// A sentence on why there is nothing.
    fn profile(&self, ask: &Ask<'_>) -> Result<(NetworkConfig, Profile), String>;

    /// Asks for the lease of a pod's interface to go on; none if nobody answered.
    ///
    /// # Errors
    /// The pod's interface cannot be used.
    fn renew(
        &self,
        netns: &File,
        interface: &str,
        lease: &Lease,
        whom: Due,
    ) -> io::Result<Option<Answer>>;

    /// Tells the DHCP server, if it listens, that a lease is free. `interface` is the host's.
    fn release_lease(&self, interface: &str, lease: &Lease);

    /// Tells the operator's server that what it gave is free.
    ///
    /// # Errors
    /// A sentence on why it could not be told.
    fn release_profile(&self, profile: &Profile) -> Result<(), String>;
}

/// The real ones.
#[derive(Debug)]
pub struct Elsewhere {
    host: File,
    known: Known,
    profiles: Option<Profiles>,
}

impl Elsewhere {
    /// With the host's network namespace, and the operator's server if there is one.
    pub fn new(host: File, known: Known, profiles: Option<Profiles>) -> Elsewhere {
        Elsewhere {
            host,
            known,
            profiles,
        }
    }

    fn profiles(&self) -> Result<&Profiles, String> {
        let none = "this node's driver knows no server for profiles; give it --profile-url, or leave \
                    out `profile` and ipam `webhook`";
        self.profiles.as_ref().ok_or_else(|| none.to_owned())
    }
}

impl Sources for Elsewhere {
    fn lease(&self, ask: &Ask<'_>) -> Result<Lease, String> {
        let interface = ask.interface;
        let none = || format!("`{interface}` has no Ethernet address, and DHCP needs one");
        let mac = ask.mac.ok_or_else(none)?;
        let lease = dhcp::ask(&self.host, interface, mac);
        lease.map_err(|error| format!("on `{interface}`: {error}"))
    }

    fn profile(&self, ask: &Ask<'_>) -> Result<(NetworkConfig, Profile), String> {
        let nic = self.known.nic(&ask.device.device);
        let nic = nic.ok_or_else(|| format!("`{}` is not on this node", ask.interface))?;
        self.profiles()?.get(ask, identifiers(&nic))
    }

    fn renew(
        &self,
        netns: &File,
        interface: &str,
        lease: &Lease,
        whom: Due,
    ) -> io::Result<Option<Answer>> {
        dhcp::renew(netns, interface, lease, whom)
    }

    fn release_lease(&self, interface: &str, lease: &Lease) {
        if let Err(error) = dhcp::release(&self.host, interface, lease) {
            // It ends by itself.
            tracing::debug!("a DHCP server on `{interface}` is not told of a free lease: {error}");
        }
    }

    fn release_profile(&self, profile: &Profile) -> Result<(), String> {
        self.profiles()?.release(profile)
    }
}

/// The time, seconds since 1970.
pub fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Nobody can be asked.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Sources for Nobody {
    fn lease(&self, _: &Ask<'_>) -> Result<Lease, String> {
        Err("this driver asks no DHCP servers".to_owned())
    }

    fn profile(&self, _: &Ask<'_>) -> Result<(NetworkConfig, Profile), String> {
        Err("this driver asks no server for profiles".to_owned())
    }

    fn renew(&self, _: &File, _: &str, _: &Lease, _: Due) -> io::Result<Option<Answer>> {
        Ok(None)
    }

    fn release_lease(&self, _: &str, _: &Lease) {}

    fn release_profile(&self, _: &Profile) -> Result<(), String> {
        Ok(())
    }
}
