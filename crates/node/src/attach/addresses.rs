//! The addresses of a device's plan: from a range of this node's, or those that are said, if no other claim has
//! them. Decided while the ledger is ours, so two claims never get the same.

use forebay_fabric::claim::AllocatedDevice;
use forebay_fabric::config::NetworkConfig;
use forebay_fabric::ipam::{Ipam, Taken};

use super::prepare::Around;
use crate::ledger::ClaimRecord;

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
            let had = before(around.before, device);
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
        Some(Ipam::Dhcp | Ipam::Webhook) => Err(
            "addresses by DHCP or webhook are not carried out yet; give `addresses` or a range"
                .to_owned(),
        ),
        // On different networks two claims may say the same.
        None => taken(around, Some(&device.device)).conflict(&config.interface.addresses),
    }
}

fn before(
    record: Option<&ClaimRecord>,
    device: &AllocatedDevice,
) -> Option<forebay_fabric::config::Cidr> {
    let plans = record?.devices.iter().map(|d| &d.plan);
    let mut same =
        plans.filter(|plan| plan.device == device.device && plan.share.id == device.share_id);
    same.next()?.pod.addresses.first().copied()
}

/// The addresses that claims have, of one device or of all.
fn taken(around: &Around<'_>, device: Option<&str>) -> Taken {
    let mut taken = Taken::default();
    for other in around.others {
        let who = other.claim().to_string();
        let of = |d: &&crate::ledger::DeviceRecord| device.is_none_or(|id| d.plan.device == id);
        for has in other.devices.iter().filter(of) {
            let addresses = has.plan.pod.addresses.iter();
            taken.0.extend(addresses.map(|cidr| (cidr.ip, who.clone())));
        }
    }
    for own in around.so_far {
        let of_it = device.is_none_or(|id| own.plan.device == id);
        for cidr in own.plan.pod.addresses.iter().filter(|_| of_it) {
            taken.0.insert(cidr.ip, "its own".to_owned());
        }
    }
    taken
}
