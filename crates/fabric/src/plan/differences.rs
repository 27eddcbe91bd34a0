//! How what was read back differs from what was planned, in words for the event that a person reads.

use std::collections::BTreeMap;

use super::{AttachPlan, Interface};
use crate::config::{Cidr, Route, Rule, Vrf};

/// A device as it was found in its pod, and what of the pod belongs to it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// The device. Of its settings and of what `ethtool` sets at least those that were planned, if it has them.
    pub interface: Interface,
    /// The pod's rules.
    pub rules: Vec<Rule>,
    /// The routing domain that it belongs to.
    pub vrf: Option<Vrf>,
    /// The eBPF programs on it; not looked for where the plan does not mind.
    pub programs: Vec<String>,
}

/// How a device in its pod differs from its plan, a phrase for each; what is there beyond is no difference,
/// save programs.
pub fn unlike(plan: &AttachPlan, found: &Found) -> Vec<String> {
    let mut out = differences(&plan.pod, &found.interface);
    for rule in &plan.rules {
        if !found.rules.contains(rule) {
            out.push(format!("{} is missing", told(rule)));
        }
    }
    match (&plan.vrf, &found.vrf) {
        (Some(wanted), Some(found)) if wanted == found => {}
        (Some(wanted), Some(found)) if wanted.name == found.name => out.push(format!(
            "the table of `{}` is {}, not {}",
            found.name, found.table, wanted.table
        )),
        (Some(wanted), _) => out.push(format!(
            "it does not belong to the routing domain `{}`",
            wanted.name
        )),
        (None, _) => {}
    }
    if plan.without_programs {
        let on_it = |program: &String| format!("{program} is still on it");
        out.extend(found.programs.iter().map(on_it));
    }
    out
}

/// How `found` differs from `wanted`, a phrase for each; what `found` has beyond is no difference. The link
/// that it belongs to is left out: on a host that one may be gone.
pub fn differences(wanted: &Interface, found: &Interface) -> Vec<String> {
    let mut out = link(wanted, found);
    let missing = |address: &&Cidr| !found.addresses.contains(*address);
    for address in wanted.addresses.iter().filter(missing) {
        out.push(format!("address {address} is missing"));
    }
    for route in &wanted.routes {
        if !found.routes.iter().any(|r| serves(r, route)) {
            out.push(format!("the route to {} is missing", route.destination));
        }
    }
    for wanted in &wanted.neighbors {
        if !found.neighbors.contains(wanted) {
            out.push(format!("neighbour {} is missing", wanted.destination));
        }
    }
    for (name, wanted) in &wanted.settings {
        match found.settings.get(name) {
            Some(found) if found == wanted => {}
            Some(found) => out.push(format!("{name} is {found}, not {wanted}")),
            None => out.push(format!("it has no {name}")),
        }
    }
    let (asked, is) = (&wanted.ethtool, &found.ethtool);
    switches("feature", &asked.features, &is.features, &mut out);
    switches(
        "private flag",
        &asked.private_flags,
        &is.private_flags,
        &mut out,
    );
    out
}

fn link(wanted: &Interface, found: &Interface) -> Vec<String> {
    let mut out = Vec::new();
    if wanted.mac.is_some() && wanted.mac != found.mac {
        out.push("its Ethernet address is another".to_owned());
    }
    if wanted.mtu != found.mtu {
        out.push(format!("its MTU is {}, not {}", found.mtu, wanted.mtu));
    }
    for (what, wanted, found) in [
        ("GSO", wanted.gso_max_size, found.gso_max_size),
        ("GRO", wanted.gro_max_size, found.gro_max_size),
        (
            "IPv4's GSO",
            wanted.gso_ipv4_max_size,
            found.gso_ipv4_max_size,
        ),
        (
            "IPv4's GRO",
            wanted.gro_ipv4_max_size,
            found.gro_ipv4_max_size,
        ),
    ] {
        if let (Some(wanted), Some(found)) = (wanted, found)
            && wanted != found
        {
            out.push(format!(
                "its largest segment for {what} is {found}, not {wanted}"
            ));
        } else if let (Some(_), None) = (wanted, found) {
            out.push(format!(
                "the kernel does not say its largest segment for {what}"
            ));
        }
    }
    if wanted.up && !found.up {
        out.push("it is down".to_owned());
    }
    if let Some(sub) = wanted.sub.filter(|_| wanted.sub != found.sub) {
        out.push(format!("it is no {sub}"));
    }
    let (asked, is) = (wanted.limits, found.limits);
    for (does, wanted, found) in [
        ("sends", asked.egress_bps, is.egress_bps),
        ("receives", asked.ingress_bps, is.ingress_bps),
    ] {
        // The kernel counts whole bytes.
        let same = |wanted: u64| found.is_some_and(|found| found / 8 == wanted / 8);
        if let Some(wanted) = wanted.filter(|wanted| !same(*wanted)) {
            let now = found.map_or_else(
                || "as much as it can".to_owned(),
                |bps| format!("{bps} bit/s"),
            );
            out.push(format!("it {does} {now}, not {wanted} bit/s at most"));
        }
    }
    out
}

/// Whether `found` is the route that is wanted; what is not asked for, the kernel chooses.
fn serves(found: &Route, wanted: &Route) -> bool {
    let chosen = |wanted: bool, same: bool| !wanted || same;
    found.destination == wanted.destination
        && found.table == wanted.table
        && found.gateway == wanted.gateway
        && chosen(wanted.source.is_some(), found.source == wanted.source)
        && chosen(wanted.metric.is_some(), found.metric == wanted.metric)
}

fn told(rule: &Rule) -> String {
    let mut text = format!("rule {}", rule.priority);
    for (word, cidr) in [("from", rule.source), ("to", rule.destination)] {
        if let Some(cidr) = cidr {
            text = format!("{text} {word} {cidr}");
        }
    }
    format!("{text} for table {}", rule.table)
}

fn switches(
    what: &str,
    wanted: &BTreeMap<String, bool>,
    found: &BTreeMap<String, bool>,
    out: &mut Vec<String>,
) {
    let word = |on: bool| if on { "on" } else { "off" };
    for (name, wanted) in wanted {
        match found.get(name) {
            Some(found) if found == wanted => {}
            Some(found) => out.push(format!(
                "{what} {name} is {}, not {}",
                word(*found),
                word(*wanted)
            )),
            None => out.push(format!("it has no {what} {name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NetworkConfig;
    use crate::plan::plan;

    fn host() -> Interface {
        Interface {
            name: "rail0".into(),
            mtu: 1500,
            up: true,
            addresses: vec!["10.0.0.5/24".parse().unwrap()],
            gso_max_size: Some(65_536),
            ..Interface::default()
        }
    }

    /// What is told of a device that was planned with `json`, and then found as `change` has it.
    fn check(json: &str, change: impl FnOnce(&mut Found), told: &[&str]) {
        let config = NetworkConfig::parse(json).unwrap();
        let place = ("node".to_owned(), "pci-1".to_owned());
        let plan = plan(vec![], place, host(), &config, &[]).unwrap();
        let mut found = Found {
            interface: plan.pod.clone(),
            rules: plan.rules.clone(),
            vrf: plan.vrf.clone(),
            programs: vec![],
        };
        assert_eq!(unlike(&plan, &found), Vec::<String>::new());
        change(&mut found);
        assert_eq!(unlike(&plan, &found), told);
    }

    #[test]
    fn each_difference_is_told_in_words() {
        check(
            "{}",
            |found| {
                found.interface.mtu = 9000;
                found.interface.up = false;
                found.interface.addresses.clear();
                found.interface.gso_max_size = Some(1);
                found.programs.push("XDP program 7".into());
            },
            &[
                "its MTU is 9000, not 1500",
                "its largest segment for GSO is 1, not 65536",
                "it is down",
                "address 10.0.0.5/24 is missing",
            ],
        );
        check(
            r#"{"interface": {"arpIgnore": 1, "disableEbpfPrograms": true},
                "rules": [{"priority": 9, "source": "10.0.0.5/32", "table": 101}],
                "ethtool": {"features": {"tx-lro": true}, "privateFlags": {"skip": false}}}"#,
            |found| {
                found.interface.settings.insert("ipv4/arp_ignore".into(), 0);
                found
                    .interface
                    .ethtool
                    .features
                    .insert("tx-lro".into(), false);
                found.interface.ethtool.private_flags.clear();
                found.rules.clear();
                found.programs.push("XDP program 7".into());
            },
            &[
                "ipv4/arp_ignore is 0, not 1",
                "feature tx-lro is off, not on",
                "it has no private flag skip",
                "rule 9 from 10.0.0.5/32 for table 101 is missing",
                "XDP program 7 is still on it",
            ],
        );
        let vrf = r#"{"interface": {"vrf": {"name": "blue", "table": 7}}}"#;
        let gone = "it does not belong to the routing domain `blue`";
        check(vrf, |found| found.vrf = None, &[gone]);
        let other = |found: &mut Found| {
            found.vrf = Some(Vrf {
                name: "blue".into(),
                table: 8,
            });
        };
        check(vrf, other, &["the table of `blue` is 8, not 7"]);
    }

    #[test]
    fn of_a_route_only_what_was_asked_for_counts() {
        let json = r#"{"routes": [{"destination": "10.9.0.0/16", "gateway": "10.0.0.1"},
                                  {"destination": "10.8.0.0/16", "gateway": "10.0.0.1", "metric": 5,
                                   "source": "10.0.0.5"}]}"#;
        check(
            json,
            |found| found.interface.routes[0].metric = Some(1024),
            &[],
        );
        for change in [
            (|route| route.metric = Some(6)) as fn(&mut Route),
            |route| route.source = None,
            |route| route.table = 100,
        ] {
            let missing = ["the route to 10.8.0.0/16 is missing"];
            check(
                json,
                |found| change(&mut found.interface.routes[1]),
                &missing,
            );
        }
    }
}
