//! The addresses of a device's plan: those that others give, asked for before there is a plan; from a range of
//! this node's, or those that are said, if no other claim has them. The latter is decided while the ledger is ours, so
//! two claims never get the same.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use forebay_fabric::claim::{AllocatedClaim, AllocatedDevice, ClaimRef};
use forebay_fabric::config::{Cidr, NetworkConfig};
use forebay_fabric::dhcp::Due;
use forebay_fabric::ipam::{Ipam, Taken};
use forebay_fabric::share::{self, Wanted};

use super::prepare::{Around, begun};
use super::{Core, Faults, now_s, said};
use crate::driver::DriverError;
use crate::ipam::{Ask, Source};
use crate::ledger::{ClaimRecord, DeviceRecord};
use crate::netlink::Links;

/// What others gave, for each device that a claim gets; none for those whose addresses are the node's matter.
pub(super) type Given = Vec<Option<Source>>;

impl<L: Links, F: Faults> Core<L, F> {
    /// Asks those whom parameters name, all at once, and puts what they give in the parameters. Nobody is asked
    /// about a claim whose devices are on their way, or whose lease is not due.
    pub(super) fn ask(
        &self,
        claim: &AllocatedClaim,
        names: &BTreeMap<String, String>,
        configs: &mut [NetworkConfig],
    ) -> Result<Given, DriverError> {
        let none = vec![None; configs.len()];
        if !configs.iter().any(asks) {
            return Ok(none);
        }
        let known = self.ledger.read(&claim.claim.uid);
        let known = known.map_err(|e| said(&claim.claim, &e))?;
        if known.as_ref().is_some_and(begun) {
            return Ok(none);
        }
        // What an earlier life of the claim owed is had again.
        let gone = {
            let _turn = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            self.releases.forget(&claim.claim.uid)
        };
        gone.map_err(|e| said(&claim.claim, &e))?;
        let devices: Vec<_> = claim.devices.iter().filter(|d| !d.admin_access).collect();
        let interfaces: Vec<String> = (devices.iter())
            .map(|d| names.get(&d.device).cloned().unwrap_or_default())
            .collect();
        let hosts = self.links.snapshot(&interfaces);
        let hosts = hosts.map_err(|e| said(&claim.claim, &e))?;
        let each = std::thread::scope(|scope| {
            let all = devices.iter().zip(&interfaces).zip(hosts).zip(configs);
            let asked: Vec<_> = all
                .map(|(((device, interface), host), config)| {
                    let known = known.as_ref();
                    let mac = host.and_then(|host| host.mac);
                    scope.spawn(move || {
                        let one = Asking {
                            claim,
                            device,
                            interface,
                            known,
                        };
                        let given = self.ask_for(one, mac, config);
                        given.map_err(|why| format!("{}: {why}", device.device))
                    })
                })
                .collect();
            let joined = asked.into_iter().map(|thread| {
                let panicked = || Err("the driver panicked; see its log".to_owned());
                thread.join().unwrap_or_else(|_| panicked())
            });
            joined.collect::<Vec<_>>()
        });
        let wrong: Vec<&str> = (each.iter().filter_map(|one| one.as_ref().err()))
            .map(String::as_str)
            .collect();
        if wrong.is_empty() {
            return Ok(each.into_iter().map(|one| one.ok().flatten()).collect());
        }
        let why = wrong.join("; ");
        let why = DriverError(format!("claim {}: {why}", claim.claim));
        // All or none.
        let given: Given = each.into_iter().map(|one| one.ok().flatten()).collect();
        self.hand_back(&claim.claim, &interfaces, &given);
        Err(why)
    }

    fn ask_for(
        &self,
        one: Asking<'_>,
        host: Option<forebay_fabric::config::Mac>,
        config: &mut NetworkConfig,
    ) -> Result<Option<Source>, String> {
        if !asks(config) {
            return Ok(None);
        }
        let Asking {
            claim,
            device,
            interface,
            known,
        } = one;
        if interface.is_empty() {
            return Err("has no interface on this node".to_owned());
        }
        let ask = |mac| Ask {
            claim,
            device,
            interface,
            mac,
        };
        if config.ipam == Some(Ipam::Dhcp) {
            let wanted = Wanted {
                claim: &claim.claim.uid,
                share_id: device.share_id.as_deref(),
                bandwidth_bps: None,
                vf: None,
            };
            let mac = share::mac_in_pod(&device.device, config, host, wanted)?;
            let now = now_s();
            let had = known.and_then(|known| same(known, device)?.lease().cloned());
            let had = had.filter(|had| Some(had.mac) == mac && had.due(now) == Due::Nobody);
            let lease = match had {
                Some(had) => had,
                None => {
                    let mut lease = self.sources.lease(&ask(mac))?;
                    lease.since_s = now;
                    lease
                }
            };
            config.ipam = None;
            config.interface.addresses = vec![lease.address];
            config.routes.extend(lease.routes.iter().cloned());
            return Ok(Some(Source::Lease(lease)));
        }
        let (profile, source) = self.sources.profile(&ask(None))?;
        let addresses = config.ipam == Some(Ipam::Webhook);
        config.ipam = config.ipam.take().filter(|ipam| *ipam != Ipam::Webhook);
        let merged = NetworkConfig::merged(profile, std::mem::take(config));
        if addresses && merged.interface.addresses.is_empty() {
            return Err("the profile's server gave it no address".to_owned());
        }
        if matches!(merged.ipam, Some(Ipam::Dhcp | Ipam::Webhook)) {
            return Err("a profile has addresses, and does not send for them elsewhere".to_owned());
        }
        *config = merged;
        Ok(Some(Source::Profile(source)))
    }

    /// Gives back what was given for nothing: those who gave it are told now or later.
    pub(super) fn hand_back(&self, claim: &ClaimRef, interfaces: &[String], given: &Given) {
        let owed = interfaces.iter().cloned().zip(given.iter().cloned());
        let owed: Vec<_> = owed.filter_map(|(i, source)| Some((i, source?))).collect();
        if owed.is_empty() {
            return;
        }
        if let Err(error) = self.releases.note(&claim.uid, &owed) {
            tracing::warn!("claim {claim}: what it was given is not noted as free: {error}");
        }
    }
}

/// A device that is asked for.
#[derive(Clone, Copy)]
struct Asking<'a> {
    claim: &'a AllocatedClaim,
    device: &'a AllocatedDevice,
    interface: &'a str,
    known: Option<&'a ClaimRecord>,
}

/// Whether somebody else has to be asked.
fn asks(config: &NetworkConfig) -> bool {
    config.profile.is_some() || matches!(config.ipam, Some(Ipam::Dhcp | Ipam::Webhook))
}

/// Puts the addresses of a device into its parameters.
///
/// # Errors
/// There is none left, or another claim has one that is said.
pub(super) fn settle(
    config: &mut NetworkConfig,
    device: &AllocatedDevice,
    around: &Around<'_>,
) -> Result<(), String> {
    match config.ipam.take() {
        Some(Ipam::Range(range)) => {
            // Planned for again, it keeps what it had.
            let had = around.before.and_then(|before| same(before, device));
            let had = had.and_then(|had| had.plan.pod.addresses.first().copied());
            let mine = had.filter(|cidr| {
                range.subnet.prefix_len == cidr.prefix_len
                    && (range.start..=range.end).contains(&cidr.ip)
            });
            let taken = taken(around, None);
            let free = mine.filter(|cidr| !taken.0.contains_key(&cidr.ip));
            let address = match free {
                Some(address) => address,
                None => range.allocate(&taken)?,
            };
            config.interface.addresses = vec![address];
            Ok(())
        }
        // The claim's devices came back between its being asked for and now.
        Some(Ipam::Dhcp | Ipam::Webhook) => {
            Err("nobody was asked for its addresses yet; it is tried again".to_owned())
        }
        // On different networks two claims may say the same.
        None => taken(around, Some(&device.device)).conflict(&config.interface.addresses),
    }
}

/// A device as it was planned for earlier.
fn same<'a>(record: &'a ClaimRecord, device: &AllocatedDevice) -> Option<&'a DeviceRecord> {
    record
        .devices
        .iter()
        .find(|had| had.plan.device == device.device && had.plan.share.id == device.share_id)
}

/// The addresses that claims have, of one device or of all.
fn taken(around: &Around<'_>, device: Option<&str>) -> Taken {
    let mut taken = Taken::default();
    let of = |d: &&DeviceRecord| device.is_none_or(|id| d.plan.device == id);
    let addresses = |d: &DeviceRecord| -> Vec<Cidr> { d.plan.pod.addresses.clone() };
    for other in around.others {
        let who = other.claim().to_string();
        for has in other.devices.iter().filter(of) {
            let all = addresses(has).into_iter();
            taken.0.extend(all.map(|cidr| (cidr.ip, who.clone())));
        }
    }
    for own in around.so_far.iter().filter(of) {
        let all = addresses(own).into_iter();
        taken
            .0
            .extend(all.map(|cidr| (cidr.ip, "its own".to_owned())));
    }
    taken
}
