//! Keeps leases while their pods run, and gives back what claims no longer have: now and then, on a thread that
//! may block.

use std::collections::BTreeMap;
use std::sync::Arc;

use forebay_fabric::dhcp::{Due, Lease};
use forebay_fabric::plan::State;

use super::message::Answer;
use crate::attach::{Core, Faults};
use crate::ledger::{ClaimRecord, DeviceRecord};
use crate::netlink::Links;

/// Does it, and remembers whom it asked when.
#[derive(Debug)]
pub struct Keeper<L, F> {
    core: Arc<Core<L, F>>,
    /// When a lease that nobody let go on is asked for again, by claim and device, seconds since 1970.
    again_s: BTreeMap<(String, String), u64>,
}

impl<L: Links, F: Faults> Keeper<L, F> {
    /// Of this driver's claims.
    pub fn new(core: Arc<Core<L, F>>) -> Keeper<L, F> {
        Keeper {
            core,
            again_s: BTreeMap::new(),
        }
    }

    /// Does what is due at a time; sentences for people about what went wrong.
    pub fn work(&mut self, now_s: u64) -> Vec<String> {
        let mut told = self.core.give_back();
        match self.core.records() {
            Ok((records, problems)) => {
                told.extend(problems);
                self.again_s
                    .retain(|(uid, _), _| records.iter().any(|record| record.uid == *uid));
                for record in &records {
                    for device in &record.devices {
                        told.extend(self.keep(record, device, now_s));
                    }
                }
            }
            Err(error) => told.push(format!("leases are not kept: {error}")),
        }
        told
    }

    fn keep(&mut self, record: &ClaimRecord, device: &DeviceRecord, now_s: u64) -> Option<String> {
        let lease = device.lease()?;
        let key = (record.uid.clone(), device.plan.device.clone());
        let whom = lease.due(now_s);
        let waits = self.again_s.get(&key).is_some_and(|at| now_s < *at);
        if device.state != State::Verified || whom == Due::Nobody || waits {
            return None;
        }
        let of = |why: String| format!("claim {}, NIC {}: {why}", record.claim(), key.1);
        let answer = match (self.core).renew(record, &device.plan.pod.name, lease, whom) {
            Ok(answer) => answer,
            // Its pod ends just now, or the interface is not as the driver left it.
            Err(error) => {
                self.again_s
                    .insert(key.clone(), now_s + lease.retry_s(now_s));
                return Some(of(format!("its lease is not renewed: {error}")));
            }
        };
        let next = renewed(lease, answer, now_s);
        if next.as_ref().is_none_or(|next| next.lost.is_some()) {
            self.again_s
                .insert(key.clone(), now_s + lease.retry_s(now_s));
        } else {
            self.again_s.remove(&key);
        }
        let next = next.filter(|next| next != lease)?;
        let lost = next.lost.clone().filter(|_| lease.lost.is_none());
        if let Err(error) = self.core.note_lease(&record.uid, &key.1, &next) {
            return Some(of(format!("its lease is not noted: {error}")));
        }
        lost.map(of)
    }
}

/// A lease after it was asked for; none if it is as before. The address stays in the pod in any case: whoever
/// uses it loses more by its going than by what may come of its staying, and people are told.
fn renewed(lease: &Lease, answer: Option<Answer>, now_s: u64) -> Option<Lease> {
    let lost = |why: String| {
        Some(Lease {
            lost: Some(why),
            ..lease.clone()
        })
    };
    let address = lease.address;
    match answer {
        Some(Answer::Given(given)) if given.address == address => Some(Lease {
            since_s: now_s,
            // What the pod has was planned once.
            routes: lease.routes.clone(),
            ..given
        }),
        Some(Answer::Given(given)) => lost(format!(
            "the DHCP server gives {} instead of {address}; make the pod anew",
            given.address
        )),
        Some(Answer::Refused(words)) => lost(format!(
            "the DHCP server takes {address} back: {words}; make the pod anew"
        )),
        Some(Answer::Offer { .. }) | None if lease.is_over(now_s) && lease.lost.is_none() => {
            lost(format!(
                "the lease of {address} is over, no DHCP server let it go on; others may get the address"
            ))
        }
        Some(Answer::Offer { .. }) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use forebay_fabric::config::Mac;

    use super::*;

    fn lease() -> Lease {
        Lease {
            address: "10.0.0.5/24".parse().unwrap(),
            server: [10, 0, 0, 1].into(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            routes: Vec::new(),
            since_s: 1_000,
            lasts_s: 800,
            renew_s: 400,
            rebind_s: 700,
            lost: None,
        }
    }

    #[test]
    fn a_lease_goes_on_or_is_lost_and_can_come_back() {
        let given = |address: &str| {
            Some(Answer::Given(Lease {
                address: address.parse().unwrap(),
                since_s: 0,
                ..lease()
            }))
        };
        let next = renewed(&lease(), given("10.0.0.5/24"), 1_400).unwrap();
        assert_eq!((next.since_s, next.lost), (1_400, None));
        let why = |answer, at| renewed(&lease(), answer, at).and_then(|next| next.lost);
        assert!(
            why(given("10.0.0.6/24"), 1_400)
                .unwrap()
                .contains("10.0.0.6/24 instead")
        );
        let refused = Some(Answer::Refused("not yours".into()));
        assert!(why(refused.clone(), 1_400).unwrap().contains("not yours"));
        assert_eq!(renewed(&lease(), None, 1_799), None, "not over yet");
        assert!(why(None, 1_800).unwrap().contains("is over"));
        let lost = renewed(&lease(), refused, 1_400).unwrap();
        assert_eq!(renewed(&lost, None, 9_000), None, "it was told once");
        let back = renewed(&lost, given("10.0.0.5/24"), 9_000).unwrap();
        assert_eq!((back.since_s, back.lost), (9_000, None));
    }
}
