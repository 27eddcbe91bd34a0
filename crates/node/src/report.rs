//! From the ledger's records to what is said of claims in their statuses.

use forebay_fabric::claim::{ClaimStatus, Condition, DeviceStatus, NetworkData};
use forebay_fabric::plan::State;

use crate::ledger::{ClaimRecord, DeviceRecord};

/// What is to be said of all claims; nothing of a device that is only planned or on its way. `place` tells
/// where a device lies.
pub fn statuses(
    records: &[ClaimRecord],
    place: impl Fn(&str) -> Vec<(String, String)>,
) -> Vec<ClaimStatus> {
    let of = |record: &ClaimRecord| {
        let devices = record.devices.iter();
        let devices: Vec<DeviceStatus> = devices.filter_map(|d| device(d, &place)).collect();
        let claim = record.claim();
        (!devices.is_empty()).then_some(ClaimStatus { claim, devices })
    };
    records.iter().filter_map(of).collect()
}

fn device(
    device: &DeviceRecord,
    place: &impl Fn(&str) -> Vec<(String, String)>,
) -> Option<DeviceStatus> {
    let plan = &device.plan;
    let lost = device.lease().and_then(|lease| lease.lost.clone());
    let (holds, reason, message) = match device.state {
        State::Verified if let Some(why) = lost => (false, "LeaseLost", why),
        State::Verified => (
            true,
            "Attached",
            format!("in the pod as `{}`", plan.pod.name),
        ),
        State::Lost => {
            let gone = "is neither on the node nor in the pod; look at the node's kernel log";
            (false, "Lost", format!("`{}` {gone}", plan.host.name))
        }
        State::Planned | State::Attaching | State::Detaching | State::Released => return None,
    };
    let condition = |kind| Condition {
        kind,
        holds,
        reason,
        message: message.clone(),
    };
    let network = (device.state == State::Verified).then(|| NetworkData {
        interface: plan.pod.name.clone(),
        mac: plan.pod.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        ips: plan.pod.addresses.iter().map(ToString::to_string).collect(),
    });
    Some(DeviceStatus {
        pool: plan.pool.clone(),
        device: plan.device.clone(),
        share_id: plan.share.id.clone(),
        conditions: vec![condition("Ready"), condition("NetworkReady")],
        network,
        place: place(&plan.device),
    })
}

#[cfg(test)]
mod tests {
    use forebay_fabric::config::{Mac, NetworkConfig};
    use forebay_fabric::dhcp::Lease;
    use forebay_fabric::plan::{Interface, plan};

    use super::*;
    use crate::ipam::Source;

    fn check(state: State, source: Option<Source>, expected: &str) {
        let host = Interface {
            name: "rail0".into(),
            mtu: 1500,
            addresses: vec!["10.0.0.5/24".parse().unwrap()],
            ..Interface::default()
        };
        let config = NetworkConfig::parse(r#"{"interface": {"name": "net0"}}"#).unwrap();
        let place = ("n1".to_owned(), "rail0".to_owned());
        let plan = plan(vec!["nic".into()], place, host, &config, &[]).unwrap();
        let record = ClaimRecord {
            namespace: "ai".into(),
            name: "nics".into(),
            uid: "u".into(),
            pod_uid: "p".into(),
            pod_name: "pod".into(),
            claim_name_in_pod: None,
            netns: None,
            devices: vec![DeviceRecord {
                state,
                plan,
                source,
            }],
            looked_at: vec![],
        };
        let told = statuses(&[record], |_| Vec::new());
        let told = told
            .iter()
            .flat_map(|status| &status.devices)
            .map(|device| {
                let ready = &device.conditions[0];
                let network = device.network.clone().unwrap_or_default();
                format!(
                    "{}={} {} {:?}",
                    ready.kind, ready.holds, network.interface, network.ips
                )
            });
        assert_eq!(told.collect::<Vec<_>>().join("; "), expected, "{state:?}");
    }

    #[test]
    fn only_what_is_certain_is_said() {
        check(State::Planned, None, "");
        check(State::Attaching, None, "");
        check(State::Verified, None, r#"Ready=true net0 ["10.0.0.5/24"]"#);
        check(State::Lost, None, "Ready=false  []");
        check(State::Released, None, "");
    }

    #[test]
    fn a_nic_whose_lease_is_lost_is_in_the_pod_and_not_ready() {
        let lease = |lost: Option<&str>| {
            let lease = Lease {
                address: "10.0.0.5/24".parse().unwrap(),
                server: [10, 0, 0, 1].into(),
                mac: Mac([2, 0, 0, 0, 0, 1]),
                routes: vec![],
                since_s: 0,
                lasts_s: 60,
                renew_s: 30,
                rebind_s: 50,
                lost: lost.map(str::to_owned),
            };
            let (lease, profile) = (Some(lease), None);
            Some(Source { lease, profile })
        };
        let there = r#"net0 ["10.0.0.5/24"]"#;
        check(State::Verified, lease(None), &format!("Ready=true {there}"));
        let lost = lease(Some("taken back"));
        check(State::Verified, lost, &format!("Ready=false {there}"));
    }
}
