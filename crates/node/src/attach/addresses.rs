//! The addresses of a device's plan: those that others give, asked for before there is a plan; from a range of
//! this node's, or those that are said, if no other claim has them. The latter is decided while the ledger is ours, so
//! two claims never get the same.

use std::collections::BTreeMap;
use std::io;
use std::sync::PoisonError;
use std::time::Instant;

use forebay_fabric::claim::{AllocatedClaim, AllocatedDevice};
use forebay_fabric::config::{Cidr, NetworkConfig};
use forebay_fabric::dhcp::{Due, Lease};
use forebay_fabric::ipam::{Ipam, Taken};
use forebay_fabric::plan::State;
use forebay_fabric::share::{self, Wanted};

use super::prepare::{Around, begun};
use super::{ATTACH_MAX, Core, Faults, said};
use crate::driver::DriverError;
use crate::ipam::message::Answer;
use crate::ipam::{Ask, Noted, Owed, Profile, Source, now_s};
use crate::ledger::{ClaimRecord, DeviceRecord};
use crate::netlink::Links;
use crate::netns;

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
        let devices: Vec<_> = claim.had().collect();
        let interfaces: Vec<String> = devices.iter().map(|d| interface(d, names)).collect();
        let hosts = self.links.snapshot(&interfaces);
        let hosts = hosts.map_err(|e| said(&claim.claim, &e))?;
        let each: Vec<(Source, Result<(), String>)> = std::thread::scope(|scope| {
            let all = devices.iter().zip(&interfaces).zip(hosts).zip(configs);
            let asked: Vec<_> = all
                .map(|(((device, interface), host), config)| {
                    let ask = Ask {
                        claim,
                        device,
                        interface,
                        mac: host.and_then(|host| host.mac),
                    };
                    let known = known.as_ref();
                    scope.spawn(move || {
                        let mut source = Source::default();
                        let done = self.ask_for(ask, known, config, &mut source);
                        (source, done)
                    })
                })
                .collect();
            let joined = asked.into_iter().map(|thread| {
                let panicked = || Err("the driver panicked; see its log".to_owned());
                let joined = thread.join();
                joined.unwrap_or_else(|_| (Source::default(), panicked()))
            });
            joined.collect()
        });
        let (mut given, mut wrong) = (Given::new(), Vec::new());
        for ((source, done), device) in each.into_iter().zip(devices) {
            let why = done.err();
            wrong.extend(why.map(|why| format!("{}: {why}", device.device)));
            given.push(Some(source).filter(|source| *source != Source::default()));
        }
        if wrong.is_empty() {
            return Ok(given);
        }
        // All or none.
        self.hand_back(claim, names, given);
        let why = wrong.join("; ");
        Err(DriverError(format!("claim {}: {why}", claim.claim)))
    }

    /// Puts what is given for one device in its parameters, and from whom it is in `source`, also when it fails
    /// after that.
    fn ask_for(
        &self,
        ask: Ask<'_>,
        known: Option<&ClaimRecord>,
        config: &mut NetworkConfig,
        source: &mut Source,
    ) -> Result<(), String> {
        if !asks(config) {
            return Ok(());
        }
        if ask.interface.is_empty() {
            return Err("has no interface on this node".to_owned());
        }
        // First: it may say which Ethernet address asks for a lease.
        if config.profile.is_some() || config.ipam == Some(Ipam::Webhook) {
            self.profile_for(&ask, config, &mut source.profile)?;
        }
        if config.ipam == Some(Ipam::Dhcp) {
            source.lease = Some(self.lease_for(ask, known, config)?);
        }
        Ok(())
    }

    /// The lease that it had, or one from a server; `ask` has the host's Ethernet address.
    fn lease_for(
        &self,
        ask: Ask<'_>,
        known: Option<&ClaimRecord>,
        config: &mut NetworkConfig,
    ) -> Result<Lease, String> {
        let device = ask.device;
        let wanted = Wanted {
            claim: &ask.claim.claim.uid,
            share_id: device.share_id.as_deref(),
            bandwidth_bps: None,
            vf: None,
        };
        let mac = share::mac_in_pod(&device.device, config, ask.mac, wanted)?;
        let now = now_s();
        let had = known.and_then(|known| same(known, device)?.lease().cloned());
        let had = had.filter(|had| Some(had.mac) == mac && had.due(now) == Due::Nobody);
        let lease = match had {
            Some(had) => had,
            None => Lease {
                since_s: now,
                ..self.sources.lease(&Ask { mac, ..ask })?
            },
        };
        config.ipam = None;
        config.interface.addresses = vec![lease.address];
        config.routes.extend(lease.routes.iter().cloned());
        Ok(lease)
    }

    /// What the operator's server has for it, below what the claim says.
    fn profile_for(
        &self,
        ask: &Ask<'_>,
        config: &mut NetworkConfig,
        source: &mut Option<Profile>,
    ) -> Result<(), String> {
        let (profile, given) = self.sources.profile(ask)?;
        *source = Some(given);
        let elsewhere = matches!(profile.ipam, Some(Ipam::Dhcp | Ipam::Webhook));
        let addresses = config.ipam == Some(Ipam::Webhook);
        if addresses {
            config.ipam = None;
        }
        *config = NetworkConfig::merged(profile, std::mem::take(config));
        if elsewhere {
            return Err("a profile has addresses, and does not send for them elsewhere".to_owned());
        }
        if addresses && config.interface.addresses.is_empty() {
            return Err("the profile's server gave it no address".to_owned());
        }
        Ok(())
    }

    /// Gives back what was given for nothing: those who gave it are told now or later.
    pub(super) fn hand_back(
        &self,
        claim: &AllocatedClaim,
        names: &BTreeMap<String, String>,
        given: Given,
    ) {
        let owed = claim.had().zip(given);
        let owed = owed.filter_map(|(device, source)| Some((interface(device, names), source?)));
        let (claim, owed) = (&claim.claim, owed.collect::<Vec<_>>());
        // A claim that is planned for has it still, and gives it back when it is forgotten.
        if owed.is_empty() || !matches!(self.ledger.read(&claim.uid), Ok(None)) {
            return;
        }
        if let Err(error) = self.releases.note(&claim.uid, &owed) {
            tracing::warn!("claim {claim}: what it was given is not noted as free: {error}");
        }
    }

    /// Tells those who gave something that it is free; what went wrong, and is tried again.
    pub(crate) fn give_back(&self) -> Vec<String> {
        let (all, mut told) = match self.releases.all() {
            Ok(all) => all,
            Err(error) => return vec![format!("what is to be given back: {error}")],
        };
        for Noted { uid, owed } in all {
            let _turn = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            // The claim may have come again since.
            if !self.releases.is_noted(&uid) {
                continue;
            }
            let (mut failed, mut left) = (Vec::new(), Owed::new());
            for (interface, mut source) in owed {
                if let Some(lease) = source.lease.take() {
                    self.sources.release_lease(&interface, &lease);
                }
                let Some(profile) = &source.profile else {
                    continue;
                };
                if let Err(why) = self.sources.release_profile(profile) {
                    failed.push(why);
                    left.push((interface, source));
                }
            }
            // A lease that was given back may be somebody else's when the rest is tried again.
            let noted = match left.is_empty() {
                true => self.releases.forget(&uid),
                false => self.releases.note_left(&uid, &left),
            };
            failed.extend(noted.err().map(|error| error.to_string()));
            if !failed.is_empty() {
                told.push(format!("claim {uid}: {}", failed.join("; ")));
            }
        }
        told
    }

    /// All records, and a sentence about each file of the ledger that was none.
    pub(crate) fn records(&self) -> io::Result<(Vec<ClaimRecord>, Vec<String>)> {
        self.ledger.all()
    }

    /// Asks for the lease of a device in its pod to go on; none if nobody answered, or the pod has ended.
    pub(crate) fn renew(
        &self,
        record: &ClaimRecord,
        name: &str,
        lease: &Lease,
        whom: Due,
    ) -> io::Result<Option<Answer>> {
        let place = record.netns.as_deref();
        let netns = place.map(netns::open).transpose()?.flatten();
        netns.map_or(Ok(None), |netns| {
            self.sources.renew(&netns, name, lease, whom)
        })
    }

    /// Notes a lease of a device as it is now, if the device is still in its pod with that address.
    pub(crate) fn note_lease(
        &self,
        uid: &str,
        device: &str,
        lease: &Lease,
    ) -> Result<(), DriverError> {
        let _turn = self.turn(Instant::now() + ATTACH_MAX)?;
        let io = |e: io::Error| DriverError(e.to_string());
        let Some(mut record) = self.ledger.read(uid).map_err(io)? else {
            return Ok(());
        };
        let own = record.devices.iter_mut().find(|d| {
            let had = d.lease().is_some_and(|had| had.address == lease.address);
            had && d.plan.device == device && d.plan.pod.mac == Some(lease.mac)
        });
        let Some(own) = own.filter(|own| own.state == State::Verified) else {
            return Ok(());
        };
        own.source.get_or_insert_default().lease = Some(lease.clone());
        self.ledger.note(&record).map_err(io)
    }
}

/// The host's interface of a device; empty for one that has none.
fn interface(device: &AllocatedDevice, names: &BTreeMap<String, String>) -> String {
    names.get(&device.device).cloned().unwrap_or_default()
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
