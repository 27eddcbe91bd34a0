//! From a NIC as it is on the host and what a claim asks of it to a plan: what the pod shall have, and
//! what the host had and gets back. And the states between, with what to do when a process comes
//! back and finds a device in one of them.
//!
//! Plans are written down before they are acted on; whoever reads one needs nothing else.

use serde::{Deserialize, Serialize};

use crate::config::{Cidr, Mac, Neighbor, NetworkConfig, Route, Rule, SubInterface};
use crate::share::{Limits, RdmaPart, Share};

/// An interface as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address; none for links that have none.
    pub mac: Option<Mac>,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Largest segment for GSO, bytes; none where the kernel does not say.
    pub gso_max_size: Option<u32>,
    /// Largest segment for GRO, bytes.
    pub gro_max_size: Option<u32>,
    /// As `gso_max_size`, of IPv4.
    pub gso_ipv4_max_size: Option<u32>,
    /// As `gro_max_size`, of IPv4.
    pub gro_ipv4_max_size: Option<u32>,
    /// Whether it is up.
    pub up: bool,
    /// Its global addresses, in order.
    pub addresses: Vec<Cidr>,
    /// Routes through it that the kernel did not make by itself.
    pub routes: Vec<Route>,
    /// Its permanent neighbours.
    pub neighbors: Vec<Neighbor>,
    /// What kind of link on top of another it is; none for others.
    #[serde(default)]
    pub sub: Option<SubInterface>,
    /// What it may send and receive.
    #[serde(default)]
    pub limits: Limits,
}

/// What is to be done with one device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AttachPlan {
    /// The requests of the claim that it answers.
    pub requests: Vec<String>,
    /// The pool that it is published in.
    pub pool: String,
    /// Its name there.
    pub device: String,
    /// What the host had.
    pub host: Interface,
    /// What the pod shall have. `up` is always true.
    pub pod: Interface,
    /// The pod's rules of policy routing.
    pub rules: Vec<Rule>,
    /// Settings below `/proc/sys/net` of the pod, name and value, in order.
    pub sysctls: Vec<(String, String)>,
    /// Whether it is had whole, and moved, or shared, and stays on the host.
    #[serde(default)]
    pub share: Share,
    /// Its RDMA device, if it has one and is had whole.
    #[serde(default)]
    pub rdma: Option<RdmaPart>,
}

/// Where a device is on its way. Each is written down before what it names begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum State {
    /// The plan is written; the device is on the host, untouched.
    Planned,
    /// It may be anywhere between host and pod.
    Attaching,
    /// It is in the pod, was read back there, and is as planned.
    Verified,
    /// It may be anywhere between pod and host.
    Detaching,
    /// It is on the host again, as it was.
    Released,
    /// It was gone from host and pod when it was looked for.
    Lost,
}

/// Where a device is seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// On the host.
    Host,
    /// In the pod's namespace.
    Pod,
    /// In neither.
    Nowhere,
}

/// What to do with a device whose record is in some state, while nothing else works on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// Nothing: it is where it belongs.
    Keep,
    /// Make it on the host what it was, then it is planned (or, if that was the aim, released).
    RestoreHost,
    /// Move it from the pod to the host and make it there what it was.
    TakeBack,
    /// Read it back in the pod; it stays if it is as planned.
    Verify,
    /// Write down that it is lost; whoever waits for it is told.
    GiveUp,
}

/// What to do with a device that is found in `state` and seen at `seen`.
pub fn recover(state: State, seen: Seen) -> Recovery {
    match (state, seen) {
        (State::Planned | State::Released, Seen::Host) => Recovery::Keep,
        // It came back from where it was lost, or the pod's namespace ended and the kernel gave it back,
        // without what it had.
        (State::Attaching | State::Verified | State::Detaching | State::Lost, Seen::Host) => {
            Recovery::RestoreHost
        }
        (State::Verified, Seen::Pod) => Recovery::Verify,
        (
            State::Planned | State::Attaching | State::Detaching | State::Released | State::Lost,
            Seen::Pod,
        ) => Recovery::TakeBack,
        (State::Released, Seen::Nowhere) => Recovery::Keep,
        (
            State::Planned | State::Attaching | State::Verified | State::Detaching | State::Lost,
            Seen::Nowhere,
        ) => Recovery::GiveUp,
    }
}

/// Plans for one device that is moved. `others` are the names that the pod's other NICs will have. Those that
/// stay on the host are planned for by [`crate::share::plan`].
///
/// # Errors
/// A sentence about what cannot be had of this device.
pub fn plan(
    requests: Vec<String>,
    (pool, device): (String, String),
    host: Interface,
    config: &NetworkConfig,
    others: &[String],
) -> Result<AttachPlan, String> {
    let asked = &config.interface;
    let name = asked.name.clone().unwrap_or_else(|| host.name.clone());
    if others.contains(&name) {
        return Err(format!(
            "{device}: two NICs of the pod would be named `{name}`; give each its own interface.name"
        ));
    }
    let addresses = if asked.addresses.is_empty() {
        host.addresses.clone()
    } else {
        asked.addresses.clone()
    };
    let mut routes = config.routes.clone();
    if asked.addresses.is_empty() {
        let same = |a: &Route, b: &Route| a.destination == b.destination && a.table == b.table;
        for route in &host.routes {
            if !routes.iter().any(|r| same(r, route)) {
                routes.push(route.clone());
            }
        }
    }
    // A gateway must be reachable when its route comes.
    routes.sort_by_key(|r| r.gateway.is_some());
    let mut neighbors = config.neighbors.clone();
    for neighbor in &host.neighbors {
        if !neighbors
            .iter()
            .any(|n| n.destination == neighbor.destination)
        {
            neighbors.push(neighbor.clone());
        }
    }
    let mut sysctls = Vec::new();
    let mut set = |key: String, value: Option<String>| sysctls.extend(value.map(|v| (key, v)));
    let conf = |key: &str| format!("ipv4/conf/{name}/{key}");
    set(
        conf("forwarding"),
        asked.forwarding.map(|on| u8::from(on).to_string()),
    );
    set(conf("arp_ignore"), asked.arp_ignore.map(|n| n.to_string()));
    set(
        conf("arp_announce"),
        asked.arp_announce.map(|n| n.to_string()),
    );
    let pod = Interface {
        mac: asked.hardware_addr.or(host.mac),
        mtu: asked.mtu.unwrap_or(host.mtu),
        gso_max_size: asked.gso_max_size.or(host.gso_max_size),
        gro_max_size: asked.gro_max_size.or(host.gro_max_size),
        gso_ipv4_max_size: asked.gso_ipv4_max_size.or(host.gso_ipv4_max_size),
        gro_ipv4_max_size: asked.gro_ipv4_max_size.or(host.gro_ipv4_max_size),
        up: true,
        name,
        addresses,
        routes,
        neighbors,
        sub: None,
        limits: Limits::default(),
    };
    Ok(AttachPlan {
        requests,
        pool,
        device,
        host,
        pod,
        rules: config.rules.clone(),
        sysctls,
        share: Share::default(),
        rdma: None,
    })
}

/// How `found` differs from `wanted`, a phrase for each; what `found` has beyond is no difference.
pub fn differences(wanted: &Interface, found: &Interface) -> Vec<String> {
    let mut out = Vec::new();
    if wanted.mac.is_some() && wanted.mac != found.mac {
        out.push("its Ethernet address is another".to_owned());
    }
    if wanted.mtu != found.mtu {
        out.push(format!("its MTU is {}, not {}", found.mtu, wanted.mtu));
    }
    if wanted.up && !found.up {
        out.push("it is down".to_owned());
    }
    for address in wanted
        .addresses
        .iter()
        .filter(|a| !found.addresses.contains(a))
    {
        out.push(format!("address {address} is missing"));
    }
    let same = |a: &Route, b: &Route| {
        a.destination == b.destination && a.table == b.table && a.gateway == b.gateway
    };
    for route in &wanted.routes {
        if !found.routes.iter().any(|r| same(r, route)) {
            out.push(format!("the route to {} is missing", route.destination));
        }
    }
    for neighbor in wanted
        .neighbors
        .iter()
        .filter(|n| !found.neighbors.contains(n))
    {
        out.push(format!("neighbour {} is missing", neighbor.destination));
    }
    if let Some(sub) = wanted.sub.filter(|_| wanted.sub != found.sub) {
        out.push(format!("it is no {sub}"));
    }
    let limits = [
        ("sends", wanted.limits.egress_bps, found.limits.egress_bps),
        (
            "receives",
            wanted.limits.ingress_bps,
            found.limits.ingress_bps,
        ),
    ];
    for (does, wanted, found) in limits {
        // The kernel counts whole bytes.
        let same = |wanted: u64| found.is_some_and(|found| found / 8 == wanted / 8);
        if let Some(wanted) = wanted.filter(|wanted| !same(*wanted)) {
            let now = found.map_or("as much as it can".to_owned(), |bps| format!("{bps} bit/s"));
            out.push(format!("it {does} {now}, not {wanted} bit/s at most"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Interface {
        Interface {
            name: "rail0".into(),
            mtu: 1500,
            up: true,
            addresses: vec!["10.0.0.5/24".parse().unwrap()],
            ..Interface::default()
        }
    }

    fn planned(json: &str, others: &[String]) -> Result<AttachPlan, String> {
        let config = NetworkConfig::parse(json).unwrap();
        plan(
            vec!["nic".into()],
            ("node".into(), "pci-1".into()),
            host(),
            &config,
            others,
        )
    }

    #[test]
    fn what_is_not_asked_for_stays_as_on_the_host() {
        let plan = planned(r#"{"interface": {"mtu": 8896}}"#, &[]).unwrap();
        assert_eq!(
            plan.pod,
            Interface {
                mtu: 8896,
                ..host()
            }
        );
        let back: AttachPlan =
            serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        assert_eq!(back, plan);
    }

    #[test]
    fn two_nics_of_one_name_are_refused() {
        let why = planned(r#"{"interface": {"name": "net0"}}"#, &["net0".into()]).unwrap_err();
        assert!(
            why.contains("two NICs of the pod would be named `net0`"),
            "{why}"
        );
    }

    #[test]
    fn no_state_leaves_a_device_between_host_and_pod() {
        use State::*;
        for state in [Planned, Attaching, Verified, Detaching, Released, Lost] {
            let keeps = [Recovery::Keep, Recovery::Verify];
            assert_eq!(
                keeps.contains(&recover(state, Seen::Pod)),
                state == Verified,
                "{state:?} in the pod"
            );
            let undisturbed = matches!(state, Planned | Released);
            assert_eq!(
                recover(state, Seen::Host) == Recovery::Keep,
                undisturbed,
                "{state:?}"
            );
        }
    }

    #[test]
    fn a_difference_is_told_in_words() {
        let found = Interface {
            mtu: 9000,
            up: false,
            addresses: vec![],
            ..host()
        };
        assert_eq!(
            differences(&host(), &found),
            [
                "its MTU is 9000, not 1500",
                "it is down",
                "address 10.0.0.5/24 is missing"
            ]
        );
    }
}
