//! A part of a NIC for a pod: a link of the pod's own on top of the NIC, and what of its bandwidth that
//! may use. The NIC itself stays on the host, untouched: it is never moved.
//!
//! A child is made in its pod's namespace by one request to the kernel, so it is there as a whole or not
//! at all, and it ends with that namespace. [`crate::plan::recover`] holds for it too: on the host means for a
//! child that it is not there, and can be made again.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Mac, NetworkConfig, SubInterface};
use crate::machine::PciAddress;
use crate::plan::{self, AttachPlan, Interface};

/// How a device is had.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Share {
    /// Which share of it, as the scheduler named it; none for a device that is had whole.
    pub id: Option<String>,
    /// The link of the pod's own on top of it; none for a device that is moved.
    pub child: Option<SubInterface>,
    /// The virtual function of it that is moved in its place.
    pub vf: Option<Vf>,
}

impl Share {
    /// Whether the device itself stays on the host, so that others can have shares of it.
    pub fn leaves_the_device(&self) -> bool {
        self.child.is_some() || self.vf.is_some()
    }
}

/// A virtual function of a device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vf {
    /// Which of the device's.
    pub index: u32,
    /// Where it is.
    pub address: PciAddress,
    /// Its interface on the host.
    pub interface: String,
}

/// The first virtual function of `found` that nobody has: `taken` are those of claims.
///
/// # Errors
/// There is none.
pub fn free_vf(device: &str, found: &[Vf], taken: &[PciAddress]) -> Result<Vf, String> {
    let free = found.iter().find(|vf| !taken.contains(&vf.address));
    free.cloned().ok_or_else(|| match found.len() {
        0 => format!(
            "{device} has no virtual functions with an interface; make some (sriov_numvfs), or ask for a macvlan"
        ),
        all => format!(
            "{device}: its {all} virtual functions are all in use; one is free when a claim ends, or more are made"
        ),
    })
}

/// The RDMA device of a NIC.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RdmaPart {
    /// Its name: `mlx5_0`.
    pub name: String,
    /// The character devices by which programs use it, for containers that name the claim.
    pub devices: Vec<PathBuf>,
    /// Whether it is of one namespace at a time, so that it goes into the pod with its NIC.
    pub own_namespace: bool,
}

/// What a link may send, and receive, at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    /// What it may send, bits per second; none for as much as it can.
    pub egress_bps: Option<u64>,
    /// What it may receive, bits per second; none for as much as there comes.
    pub ingress_bps: Option<u64>,
}

/// A rate as the kernel's token bucket has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that may go at once.
    pub burst: u32,
    /// Bytes that may wait; what comes beyond is dropped.
    pub queue: u32,
}

/// Smallest burst, bytes: one segment of the size that the kernel makes by itself.
const BURST_BYTES_MIN: u64 = 64 * 1024;
/// Largest burst, bytes: at 400 Gb/s what goes between two ticks of a kernel of 250 Hz.
const BURST_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Tokens are handed out at the kernel's ticks; below so much time of burst a rate is not reached where
/// there is no finer timer.
const BURST_MS: u64 = 4;
/// How long what waits may wait at the rate, before it is dropped.
const QUEUE_MS: u64 = 25;
/// Bytes that wait at most, of one link.
const QUEUE_BYTES_MAX: u64 = 64 * 1024 * 1024;

impl Bucket {
    /// The bucket for a rate in bits per second.
    pub fn of(bps: u64) -> Bucket {
        let rate = (bps / 8).max(1);
        let worth = |ms: u64| rate.saturating_mul(ms) / 1000;
        let burst = worth(BURST_MS).clamp(BURST_BYTES_MIN, BURST_BYTES_MAX);
        let queue = worth(QUEUE_MS).clamp(BURST_BYTES_MIN, QUEUE_BYTES_MAX) + burst;
        let bounded = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        Bucket {
            rate,
            burst: bounded(burst),
            queue: bounded(queue),
        }
    }
}

/// Who gets a device, and how much of it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The claim's UID.
    pub claim: &'a str,
    /// Which share, if it is one.
    pub share_id: Option<&'a str>,
    /// What of the bandwidth, bits per second; none for all of it.
    pub bandwidth_bps: Option<u64>,
    /// The virtual function that `host` is, where one was asked for.
    pub vf: Option<&'a Vf>,
}

/// Plans for one device, had whole or shared. `requests`, `place`, `host` and `others` are as in
/// [`plan::plan`]. A share whose parameters say nothing of a sub-interface is a macvlan.
///
/// # Errors
/// A sentence about what cannot be had of this device.
pub fn plan(
    requests: Vec<String>,
    place: (String, String),
    host: Interface,
    config: &NetworkConfig,
    others: &[String],
    wanted: Wanted<'_>,
) -> Result<AttachPlan, String> {
    let child = match (config.sub_interface, wanted.share_id) {
        (Some(SubInterface::Vf), _) | (None, None) => None,
        (Some(asked), _) => Some(asked),
        (None, Some(_)) => Some(SubInterface::default()),
    };
    let mut plan = match child {
        None => plan::plan(requests, place, host, config, others)?,
        Some(child) => child_plan(requests, place, host, config, others, (child, wanted))?,
    };
    plan.share = Share {
        id: wanted.share_id.map(str::to_owned),
        child,
        vf: wanted.vf.cloned(),
    };
    plan.pod.limits = Limits {
        egress_bps: wanted.bandwidth_bps,
        ingress_bps: wanted.bandwidth_bps,
    };
    Ok(plan)
}

/// The Ethernet address that a device of the host's address `host` has in the pod, before it is planned for: for
/// who has to name the station beforehand.
///
/// # Errors
/// It has none of its own, or which one is not known yet.
pub fn mac_in_pod(
    device: &str,
    config: &NetworkConfig,
    host: Option<Mac>,
    wanted: Wanted<'_>,
) -> Result<Option<Mac>, String> {
    let asked = config.interface.hardware_addr;
    match (config.sub_interface, wanted.share_id) {
        (Some(SubInterface::Ipvlan(_)), _) => Err(format!(
            "{device}: an ipvlan has no Ethernet address of its own; ask for a macvlan"
        )),
        (Some(SubInterface::Vf), _) if asked.is_none() => Err(format!(
            "{device}: which virtual function it will be is not known yet; give interface.hardwareAddr"
        )),
        (Some(SubInterface::Vf), _) | (None, None) => Ok(asked.or(host)),
        (Some(SubInterface::Macvlan(_)), _) | (None, Some(_)) => {
            Ok(asked.or_else(|| Some(own_mac(device, wanted))))
        }
    }
}

fn child_plan(
    requests: Vec<String>,
    place: (String, String),
    parent: Interface,
    config: &NetworkConfig,
    others: &[String],
    (child, wanted): (SubInterface, Wanted<'_>),
) -> Result<AttachPlan, String> {
    let device = &place.1;
    if let Some(mtu) = config.interface.mtu.filter(|mtu| *mtu > parent.mtu) {
        return Err(format!(
            "{device}: interface.mtu {mtu} is more than the {} of `{}`, which stays on the host; ask for less, \
             or give the host's more",
            parent.mtu, parent.name
        ));
    }
    let mac = match (child, parent.mac) {
        (_, None) => {
            return Err(format!(
                "{device}: `{}` has no Ethernet address, and a link on top of it needs one; ask for the \
                 whole device",
                parent.name
            ));
        }
        (SubInterface::Macvlan(_) | SubInterface::Vf, Some(_)) => own_mac(device, wanted),
        (SubInterface::Ipvlan(_), Some(mac)) => mac,
    };
    // What the device has on the host is the host's: addresses and routes are not the child's.
    let blank = Interface {
        name: parent.name.clone(),
        mac: Some(mac),
        mtu: parent.mtu,
        up: true,
        ..Interface::default()
    };
    let whole = NetworkConfig {
        sub_interface: None,
        ..config.clone()
    };
    let mut plan = plan::plan(requests, place, blank, &whole, others)?;
    plan.pod.sub = Some(child);
    plan.host = parent;
    Ok(plan)
}

/// An Ethernet address for a share, the same whenever it is planned for: administered locally, of one
/// station. Two of the shares of a network are alike once in 2^40.
fn own_mac(device: &str, wanted: Wanted<'_>) -> Mac {
    let parts = [wanted.claim, device, wanted.share_id.unwrap_or_default()];
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let sum = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The upper bits of this sum depend on all that went in.
    let [a, b, c, d, e, ..] = sum.to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}

/// Whether a claim may have a device, or a share of it, beside what claim `who` has of it.
///
/// # Errors
/// Why it may not.
pub fn beside(device: &str, mine: &Share, other: &Share, who: &str) -> Result<(), String> {
    match (mine.leaves_the_device(), other.leaves_the_device()) {
        (true, true) => Ok(()),
        (false, _) => Err(format!(
            "{device} is still claim {who}'s; it is free when that ends"
        )),
        (true, false) => Err(format!(
            "{device} is whole in the pod of claim {who}; shares of it can be had when that ends"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent() -> Interface {
        Interface {
            name: "rail0".into(),
            mac: Some("0a:00:00:00:00:01".parse().unwrap()),
            mtu: 1500,
            up: true,
            addresses: vec!["10.0.0.5/24".parse().unwrap()],
            ..Interface::default()
        }
    }

    fn planned(json: &str, share_id: Option<&str>) -> Result<AttachPlan, String> {
        let config = NetworkConfig::parse(json).unwrap();
        let wanted = Wanted {
            claim: "uid-1",
            share_id,
            bandwidth_bps: share_id.map(|_| 10_000_000),
            vf: None,
        };
        let place = ("node".into(), "rail0".into());
        plan(vec!["nic".into()], place, parent(), &config, &[], wanted)
    }

    #[test]
    fn a_share_is_a_link_of_its_own_and_has_nothing_of_the_hosts_but_the_mtu() {
        let first = planned(r#"{"interface": {"name": "net0"}}"#, Some("s-1")).unwrap();
        assert_eq!(first.host, parent(), "what stays on the host");
        assert_eq!(first.pod.sub, Some(SubInterface::default()));
        assert_eq!((first.pod.mtu, &first.pod.addresses[..]), (1500, &[][..]));
        assert_eq!(first.pod.limits.egress_bps, Some(10_000_000));
        let again = planned(r#"{"interface": {"name": "net0"}}"#, Some("s-1")).unwrap();
        assert_eq!(again, first, "planned again it is the same");
        let other = planned(r#"{"interface": {"name": "net0"}}"#, Some("s-2")).unwrap();
        assert_ne!(other.pod.mac, first.pod.mac, "two shares are two stations");
        assert_eq!(first.pod.mac.unwrap().0[0], 2);
    }

    #[test]
    fn the_station_is_known_before_the_plan_is() {
        for json in [
            "{}",
            r#"{"interface": {"hardwareAddr": "02:00:00:00:00:07"}}"#,
            r#"{"subInterface": {"type": "macvlan", "mode": "bridge"}}"#,
        ] {
            for share_id in [None, Some("s-1")] {
                let config = NetworkConfig::parse(json).unwrap();
                let wanted = Wanted {
                    claim: "uid-1",
                    share_id,
                    bandwidth_bps: None,
                    vf: None,
                };
                let mac = mac_in_pod("rail0", &config, parent().mac, wanted);
                let plan = planned(json, share_id).unwrap();
                assert_eq!(mac, Ok(plan.pod.mac), "{json} {share_id:?}");
            }
        }
    }

    #[test]
    fn a_whole_device_can_be_had_as_a_link_on_top_of_it() {
        let plan = planned(
            r#"{"subInterface": {"type": "ipvlan", "mode": "l3"}}"#,
            None,
        )
        .unwrap();
        assert_eq!(plan.pod.mac, parent().mac, "an ipvlan shares the address");
        assert_eq!(plan.pod.limits, Limits::default());
        let whole = planned("{}", None).unwrap();
        assert_eq!((whole.share, whole.pod.sub), (Share::default(), None));
        assert_eq!(whole.pod.addresses, parent().addresses);
    }

    #[test]
    fn more_than_the_device_has_is_refused() {
        let why = planned(r#"{"interface": {"mtu": 9000}}"#, Some("s")).unwrap_err();
        assert!(
            why.contains("is more than the 1500 of `rail0`, which stays on the host"),
            "{why}"
        );
    }

    #[test]
    fn a_device_is_shared_or_whole_and_not_both() {
        let whole = Share::default();
        let part = Share {
            child: Some(SubInterface::default()),
            ..Share::default()
        };
        let function = Share {
            vf: Some(vf(0)),
            ..Share::default()
        };
        assert_eq!(beside("d", &part, &function, "x"), Ok(()));
        assert_eq!(
            beside("d", &whole, &part, "team/nics"),
            Err("d is still claim team/nics's; it is free when that ends".into())
        );
        let why = beside("d", &part, &whole, "x").unwrap_err();
        assert!(why.contains("whole in the pod"), "{why}");
        assert!(beside("d", &whole, &whole, "x").is_err());
    }

    fn vf(index: u32) -> Vf {
        Vf {
            index,
            address: format!("0000:8f:00.{}", index + 1).parse().unwrap(),
            interface: format!("rail0v{index}"),
        }
    }

    #[test]
    fn the_first_virtual_function_that_nobody_has_is_taken() {
        let all = [vf(0), vf(1)];
        let taken = all.each_ref().map(|vf| vf.address);
        assert_eq!(free_vf("d", &all, &taken[..1]).unwrap(), vf(1));
        let why = free_vf("d", &all, &taken).unwrap_err();
        assert!(
            why.contains("its 2 virtual functions are all in use"),
            "{why}"
        );
        assert!(free_vf("d", &[], &[]).unwrap_err().contains("sriov_numvfs"));
    }

    #[test]
    fn a_bucket_is_as_large_as_its_rate_needs_and_no_larger() {
        for (bps, rate, burst, queue) in [
            (0, 1, 65_536, 131_072),
            (1_000_000, 125_000, 65_536, 131_072),
            (1_000_000_000, 125_000_000, 500_000, 3_625_000),
            (400_000_000_000, 50_000_000_000, 200_000_000, 267_108_864),
        ] {
            assert_eq!(Bucket::of(bps), Bucket { rate, burst, queue }, "{bps}");
        }
    }
}
