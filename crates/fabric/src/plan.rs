//! From a NIC as it is on the host and what a claim asks of it to a plan: what the pod shall have, and
//! what the host had and gets back. And the states between, with what to do when a process comes
//! back and finds a device in one of them.
//!
//! Plans are written down before they are acted on; whoever reads one needs nothing else.

mod differences;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::{
    Cidr, Ethtool, InterfaceConfig, Mac, Neighbor, NetworkConfig, Route, Rule, SubInterface, Vrf,
};
use crate::share::{Limits, RdmaPart, Share};

pub use differences::{Found, differences, unlike};

/// Largest segment that is not Big TCP, bytes: sizes up to it hold for IPv4 too.
pub const GSO_LEGACY_MAX: u32 = 65_536;

/// Tables that each namespace has rules for by itself: default, main, local.
const COMMON_TABLES: [u32; 3] = [253, 254, 255];

/// An interface as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
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
    /// The link that it belongs to, such as a VRF or a bridge, by name.
    pub master: Option<String>,
    /// Settings that the kernel has for each interface, by family and name: `ipv4/arp_ignore`. Those that
    /// are known, or those that are wanted.
    pub settings: BTreeMap<String, i32>,
    /// Of what `ethtool` sets, those that a claim names.
    pub ethtool: Ethtool,
    /// What kind of link on top of another it is; none for others.
    pub sub: Option<SubInterface>,
    /// What it may send and receive.
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
    /// The routing domain that it belongs to in the pod.
    #[serde(default)]
    pub vrf: Option<Vrf>,
    /// Whether eBPF programs are taken off it. The host does not get them back: who attached them does it
    /// again when the link comes back, as after a driver's restart.
    #[serde(default)]
    pub without_programs: bool,
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
    if let Some(vrf) = &asked.vrf {
        if others.contains(&vrf.name) || vrf.name == name {
            let vrf = &vrf.name;
            return Err(format!(
                "{device}: `{vrf}` would be a NIC and a routing domain; give interface.vrf another name"
            ));
        }
        if !config.rules.is_empty() {
            return Err(format!(
                "{device}: rules exclude interface.vrf, whose table is chosen by the NIC; keep one of both"
            ));
        }
    }
    let addresses = if asked.addresses.is_empty() {
        host.addresses.clone()
    } else {
        asked.addresses.clone()
    };
    let pod = Interface {
        mac: asked.hardware_addr.or(host.mac),
        mtu: asked.mtu.unwrap_or(host.mtu),
        gso_max_size: asked.gso_max_size.or(host.gso_max_size),
        gro_max_size: asked.gro_max_size.or(host.gro_max_size),
        gso_ipv4_max_size: of_ipv4(
            asked.gso_ipv4_max_size,
            asked.gso_max_size,
            host.gso_ipv4_max_size,
        ),
        gro_ipv4_max_size: of_ipv4(
            asked.gro_ipv4_max_size,
            asked.gro_max_size,
            host.gro_ipv4_max_size,
        ),
        up: true,
        addresses,
        routes: routes(config, &host),
        neighbors: neighbors(config, &host),
        master: asked.vrf.as_ref().map(|vrf| vrf.name.clone()),
        settings: settings(asked, &host),
        ethtool: config.ethtool.clone(),
        sub: None,
        limits: Limits::default(),
        name,
    };
    Ok(AttachPlan {
        requests,
        pool,
        device,
        host,
        pod,
        rules: config.rules.clone(),
        vrf: asked.vrf.clone(),
        without_programs: asked.disable_ebpf_programs == Some(true),
        share: Share::default(),
        rdma: None,
    })
}

impl AttachPlan {
    /// With those of the `host`'s rules that lead to a table of its own that it has routes in: nobody would look there
    /// without. A routing domain leads to its table itself.
    #[must_use]
    pub fn with_rules_of(mut self, host: &[Rule]) -> AttachPlan {
        if self.vrf.is_some() {
            return self;
        }
        let tables = self.pod.routes.iter().map(|route| route.table);
        let tables: BTreeSet<u32> = tables
            .filter(|table| !COMMON_TABLES.contains(table))
            .collect();
        for rule in host.iter().filter(|rule| tables.contains(&rule.table)) {
            if !self.rules.contains(rule) {
                self.rules.push(rule.clone());
            }
        }
        self
    }
}

/// The size of IPv4: the kernel sets it with the other one, as long as that is no Big TCP.
fn of_ipv4(asked: Option<u32>, other: Option<u32>, host: Option<u32>) -> Option<u32> {
    let with_it = other.filter(|n| *n <= GSO_LEGACY_MAX);
    asked.or(with_it).or(host)
}

/// The routes that the pod shall have: those that are asked for, and the host's; of these, with other addresses than the
/// host's, only those that hold with them.
fn routes(config: &NetworkConfig, host: &Interface) -> Vec<Route> {
    let asked = &config.interface;
    let mut routes = config.routes.clone();
    let same = |a: &Route, b: &Route| a.destination == b.destination && a.table == b.table;
    let own = &asked.addresses;
    let holds = |route: &&Route| own.is_empty() || holds_with(route, own, &host.routes);
    for route in host.routes.iter().filter(holds) {
        if !routes.iter().any(|r| same(r, route)) {
            routes.push(route.clone());
        }
    }
    if let Some(vrf) = &asked.vrf {
        // Others would not be looked at: the table is the domain's.
        let all = std::mem::take(&mut routes);
        for mut route in all {
            route.table = vrf.table;
            if !routes.iter().any(|r| same(r, &route)) {
                routes.push(route);
            }
        }
    }
    // A gateway must be reachable when its route comes.
    routes.sort_by_key(|r| r.gateway.is_some());
    routes
}

/// Whether one of the host's `routes` makes sense where these addresses are: it says of no other that packets are to
/// come from it, and its gateway is a neighbour. A default route is the host's alone.
fn holds_with(route: &Route, addresses: &[Cidr], routes: &[Route]) -> bool {
    let of_own = |source: IpAddr| addresses.iter().any(|own| own.ip == source);
    let to_link = |route: &&Route| {
        let sent_as_is = route.gateway.is_none() && route.destination.prefix_len > 0;
        sent_as_is && route.source.is_none_or(of_own)
    };
    let on_link = |ip: IpAddr| {
        let mut links = routes.iter().filter(to_link);
        addresses.iter().any(|own| own.contains(ip)) || links.any(|to| to.destination.contains(ip))
    };
    match route.gateway {
        None => to_link(&route),
        Some(gateway) => {
            let named = route.source.is_none_or(of_own);
            named && route.destination.prefix_len > 0 && on_link(gateway)
        }
    }
}

fn neighbors(config: &NetworkConfig, host: &Interface) -> Vec<Neighbor> {
    let mut neighbors = config.neighbors.clone();
    for neighbor in &host.neighbors {
        if !neighbors
            .iter()
            .any(|n| n.destination == neighbor.destination)
        {
            neighbors.push(neighbor.clone());
        }
    }
    neighbors
}

fn settings(asked: &InterfaceConfig, host: &Interface) -> BTreeMap<String, i32> {
    let mut settings = BTreeMap::new();
    let mut set = |key: &str, value: Option<i32>| {
        settings.extend(value.map(|value| (key.to_owned(), value)));
    };
    let forwarding = asked.forwarding.map(i32::from);
    set("ipv4/forwarding", forwarding);
    // Where IPv6 is off, there is nothing that could forward.
    let has_ipv6 = host.settings.contains_key("ipv6/forwarding");
    set("ipv6/forwarding", forwarding.filter(|_| has_ipv6));
    set("ipv4/arp_ignore", asked.arp_ignore.map(i32::from));
    set("ipv4/arp_announce", asked.arp_announce.map(i32::from));
    settings
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
    fn a_size_that_is_no_big_tcp_holds_for_ipv4_too_as_the_kernel_has_it() {
        let sizes = |json: &str| {
            let pod = planned(json, &[]).unwrap().pod;
            (pod.gso_max_size, pod.gso_ipv4_max_size)
        };
        let small = r#"{"interface": {"gsoMaxSize": 40000}}"#;
        assert_eq!(sizes(small), (Some(40_000), Some(40_000)));
        let big = r#"{"interface": {"gsoMaxSize": 150000}}"#;
        assert_eq!(sizes(big), (Some(150_000), None));
        let both = r#"{"interface": {"gsoMaxSize": 40000, "gsoIPv4MaxSize": 30000}}"#;
        assert_eq!(sizes(both), (Some(40_000), Some(30_000)));
    }

    #[test]
    fn with_other_addresses_the_hosts_routes_come_along_as_far_as_they_hold() {
        let route = |to: &str, gateway: Option<&str>, source: Option<&str>| Route {
            destination: to.parse().unwrap(),
            gateway: gateway.map(|ip| ip.parse().unwrap()),
            source: source.map(|ip| ip.parse().unwrap()),
            on_link: gateway.is_none(),
            table: 100,
            metric: None,
        };
        let mut host = host();
        host.routes = vec![
            route("0.0.0.0/0", Some("10.0.0.1"), None),
            route("10.9.0.0/16", Some("10.0.0.1"), None),
            route("10.8.0.0/16", Some("192.0.2.1"), None),
            route("10.7.0.0/16", None, Some("10.0.0.5")),
            route("10.6.0.0/16", None, None),
            route("10.5.0.0/16", Some("10.6.0.1"), None),
        ];
        let rule = |source: &str, table: u32| Rule {
            priority: 500,
            source: Some(source.parse().unwrap()),
            destination: None,
            table,
        };
        let host_rules = [rule("10.20.30.0/24", 100), rule("10.20.31.0/24", 101)];
        let planned = |json: &str| {
            let config = NetworkConfig::parse(json).unwrap();
            let place = ("node".into(), "pci-1".into());
            let plan = plan(vec!["nic".into()], place, host.clone(), &config, &[]).unwrap();
            let plan = plan.with_rules_of(&host_rules);
            let to = |route: &Route| route.destination.to_string();
            (
                plan.pod.routes.iter().map(to).collect::<Vec<_>>(),
                plan.rules,
            )
        };
        let own = r#"{"interface": {"addresses": ["10.0.0.99/24"]}}"#;
        let (routes, rules) = planned(own);
        assert_eq!(routes, ["10.6.0.0/16", "10.9.0.0/16", "10.5.0.0/16"]);
        assert_eq!(
            rules,
            host_rules[..1],
            "of the tables that it has routes in"
        );
        assert_eq!(
            planned("{}").0.len(),
            6,
            "with the host's addresses all hold"
        );
        let domain = r#"{"interface": {"vrf": {"name": "blue", "table": 100}}}"#;
        assert_eq!(planned(domain).1, [], "it leads to its table itself");
    }

    #[test]
    fn in_a_routing_domain_all_routes_are_in_its_table() {
        let config = r#"{"interface": {"vrf": {"name": "blue", "table": 7}},
            "routes": [{"destination": "10.9.0.0/16", "gateway": "10.0.0.1", "table": 100},
                       {"destination": "10.9.0.0/16", "gateway": "10.0.0.2"}]}"#;
        let plan = planned(config, &[]).unwrap();
        let routes: Vec<_> = plan
            .pod
            .routes
            .iter()
            .map(|r| (r.gateway, r.table))
            .collect();
        assert_eq!(routes, [(Some("10.0.0.1".parse().unwrap()), 7)]);
        assert_eq!(plan.pod.master.as_deref(), Some("blue"));
        let why = planned(config, &["blue".into()]).unwrap_err();
        assert!(why.contains("would be a NIC and a routing domain"), "{why}");
        // The class may have what the claim's domain excludes.
        let class = NetworkConfig::parse(r#"{"rules": [{"source": "10.0.0.5/32", "table": 1}]}"#);
        let merged = NetworkConfig::merged(class.unwrap(), NetworkConfig::parse(config).unwrap());
        let place = ("node".to_owned(), "pci-1".to_owned());
        let why = super::plan(vec![], place, host(), &merged, &[]).unwrap_err();
        assert!(why.contains("rules exclude interface.vrf"), "{why}");
    }
}
