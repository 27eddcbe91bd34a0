//! What claims can ask of a NIC, on real links: it is set, it is read back, whatever is missing is told in words, and
//! the host gets its NIC back as it was. Skipped by name where namespaces cannot be made.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use world::{UID, World, ip, soon, world};

#[path = "support/program.rs"]
mod program;
#[path = "support/world.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod world;

/// Runs words of a shell in the pod.
fn in_pod(world: &World, words: &str) {
    run(&world.pod, words);
}

fn on_host(world: &World, words: &str) {
    run(&world.host, words);
}

fn run(netns: &str, words: &str) {
    let mut command = Command::new("ip");
    let out = command
        .args(["netns", "exec", netns, "sh", "-c", words])
        .output()
        .unwrap();
    assert!(out.status.success(), "{words}: {out:?}");
}

/// Prepares with these parameters of one NIC; what is wrong, or nothing.
fn prepared(world: &World, parameters: &str) -> Result<(), String> {
    let (claim, names) = world.claim_of(|_| parameters.to_owned());
    let done = world.core(()).prepare(&claim, &names);
    done.map(drop).map_err(|e| e.0)
}

const EVERYTHING: &str = r#"{
    "interface": {"name": "net0", "mtu": 1400, "gsoMaxSize": 40000, "groMaxSize": 41000,
                  "addresses": ["10.0.0.7/24", "fd07::7/64"],
                  "forwarding": true, "arpIgnore": 2, "arpAnnounce": 1},
    "routes": [{"destination": "10.9.0.0/24", "gateway": "10.0.0.1", "table": 100, "metric": 7},
               {"destination": "fd09::/64", "gateway": "fd07::1"}],
    "rules": [{"priority": 1000, "source": "10.0.0.7/32", "table": 100},
              {"priority": 1001, "destination": "fd09::/64", "table": 100}],
    "neighbors": [{"destination": "10.0.0.2", "hardwareAddr": "02:00:00:00:00:02"}],
    "ethtool": {"features": {"tso": false, "rx-gro": true}}
}"#;

#[test]
fn what_is_broken_in_the_pod_is_told_in_words() {
    let Some(world) = world("v", 1) else { return };
    let before = world.on_host();
    prepared(&world, EVERYTHING).unwrap();
    let core = world.core(());
    for (broken, told) in [
        ("ip link set net0 mtu 1300", "its MTU is 1300, not 1400"),
        ("ip link set net0 down", "it is down"),
        (
            "ip link set net0 gso_max_size 30000",
            "its largest segment for GSO is 30000, not 40000, its largest segment for IPv4's GSO is 30000, not 40000",
        ),
        (
            "ip link set net0 gro_max_size 30000",
            "its largest segment for GRO is 30000, not 41000",
        ),
        (
            "ip addr del fd07::7/64 dev net0",
            "address fd07::7/64 is missing",
        ),
        (
            "ip route del 10.9.0.0/24 table 100",
            "the route to 10.9.0.0/24 is missing",
        ),
        (
            "ip route del 10.9.0.0/24 table 100; \
             ip route add 10.9.0.0/24 via 10.0.0.1 table 100 metric 8",
            "the route to 10.9.0.0/24 is missing",
        ),
        (
            "ip rule del priority 1000",
            "rule 1000 from 10.0.0.7/32 for table 100 is missing",
        ),
        (
            "ip -6 rule del priority 1001",
            "rule 1001 to fd09::/64 for table 100 is missing",
        ),
        (
            "ip neigh del 10.0.0.2 dev net0",
            "neighbour 10.0.0.2 is missing",
        ),
        (
            "echo 1 > /proc/sys/net/ipv4/conf/net0/arp_ignore",
            "ipv4/arp_ignore is 1, not 2",
        ),
        (
            "echo 0 > /proc/sys/net/ipv6/conf/net0/forwarding",
            "ipv6/forwarding is 0, not 1",
        ),
    ] {
        core.attach(&world.sandbox(), soon()).unwrap();
        assert_eq!(world.guard(), Ok(()));
        in_pod(&world, broken);
        let why = world.guard().unwrap_err();
        assert!(
            why.contains(&format!("NIC dev-0: {told}")) || why.contains(told),
            "{broken}: {why}"
        );
        core.detach(&world.sandbox()).unwrap();
        assert!(!world.check(&before, broken));
    }
}

#[test]
fn what_the_host_set_for_an_interface_is_there_when_it_comes_back() {
    let Some(world) = world("h", 1) else { return };
    on_host(
        &world,
        "cd /proc/sys/net; echo 2 > ipv4/conf/rail0/rp_filter; echo 1 > ipv4/conf/rail0/arp_ignore; \
         echo 0 > ipv6/conf/rail0/accept_ra; echo 1 > ipv6/conf/rail0/disable_ipv6; \
         ip link set rail0 gso_max_size 50000; ip link add br0 type bridge; \
         ip link set rail0 master br0",
    );
    let before = world.on_host();
    let host = before[0].as_ref().unwrap();
    assert_eq!(host.master.as_deref(), Some("br0"));
    assert_eq!(host.settings["ipv4/rp_filter"], 2);
    assert_eq!(host.settings["ipv6/disable_ipv6"], 1);
    let links = world.links();
    let asked = forebay_fabric::config::NetworkConfig::parse(
        r#"{"ethtool": {"features": {"tso": false, "gso": true, "tx-checksum-ip-generic": true}}}"#,
    );
    let asked = asked.unwrap().ethtool;
    let features = || forebay_node::netlink::Links::ethtool(&links, "rail0", &asked).unwrap();
    let (wanted, first) = features();
    assert!(
        wanted.features.len() > 2,
        "tso stands for several: {wanted:?}"
    );
    assert_ne!(wanted, first, "all of them are on before");
    prepared(
        &world,
        r#"{"interface": {"name": "net0", "mtu": 1400, "gsoMaxSize": 40000},
            "ethtool": {"features": {"tso": false}}}"#,
    )
    .unwrap();
    let core = world.core(());
    core.attach(&world.sandbox(), soon()).unwrap();
    assert!(world.check(&before, "attached"));
    core.unprepare(UID).unwrap();
    assert!(!world.check(&before, "unprepared"));
    assert_eq!(features().1, first);
}

#[test]
fn an_unknown_feature_or_flag_is_refused_before_anything_is_done() {
    let Some(world) = world("t", 1) else { return };
    for (parameters, told) in [
        (
            r#"{"ethtool": {"features": {"tso-gso": true}}}"#,
            "ethtool: there is no feature `tso-gso`",
        ),
        (
            r#"{"ethtool": {"features": {"rx-fcs": true}}}"#,
            "its feature `rx-fcs` is off for good",
        ),
        (
            r#"{"ethtool": {"privateFlags": {"rx_striding_rq": true}}}"#,
            "it has no private flag `rx_striding_rq`",
        ),
    ] {
        let why = prepared(&world, parameters).expect_err(parameters);
        assert!(why.contains(told), "{why}");
    }
}

#[test]
fn programs_are_taken_off_where_that_is_asked_for() {
    let Some(world) = world("x", 1) else { return };
    let object = world.folder.join("pass.o");
    std::fs::write(&object, program::pass()).unwrap();
    let attach = format!(
        "ip link set dev DEV xdpgeneric obj {} sec {}",
        object.display(),
        program::SECTION
    );
    let filter = "tc qdisc add dev DEV clsact && \
                  tc filter add dev DEV ingress bpf bytecode '1,6 0 0 4294967295,'";
    let on = |words: &str, dev: &str| words.replace("DEV", dev);
    let mut try_it = Command::new("ip");
    let tried = try_it.args([
        "netns",
        "exec",
        &world.host,
        "sh",
        "-c",
        &on(&attach, "rail0"),
    ]);
    if !tried.output().unwrap().status.success() {
        eprintln!("skipped: this kernel, or this `ip`, attaches no XDP program");
        return;
    }
    on_host(&world, &on(filter, "rail0"));
    let core = world.core(());
    prepared(&world, r#"{"interface": {"name": "net0"}}"#).unwrap();
    core.attach(&world.sandbox(), soon()).unwrap();
    in_pod(&world, "ip link show net0 | grep -q xdpgeneric");
    core.unprepare(UID).unwrap();
    prepared(
        &world,
        r#"{"interface": {"name": "net0", "disableEbpfPrograms": true}}"#,
    )
    .unwrap();
    core.attach(&world.sandbox(), soon()).unwrap();
    in_pod(&world, "! ip link show net0 | grep -q xdp");
    assert_eq!(world.guard(), Ok(()));
    for (words, told) in [
        (&*attach, "XDP program"),
        (filter, "tc's `clsact` is still on it"),
    ] {
        in_pod(&world, &on(words, "net0"));
        let why = world.guard().unwrap_err();
        assert!(why.contains(told), "{why}");
    }
    core.unprepare(UID).unwrap();
}

#[test]
fn a_routing_domain_is_made_and_taken_away_or_the_kernel_that_has_none_is_named() {
    let Some(world) = world("d", 2) else { return };
    let before = world.on_host();
    let (claim, names) = world.claim_of(|n| {
        format!(
            r#"{{"interface": {{"name": "net{n}", "vrf": {{"name": "blue", "table": 1100}}}}}}"#
        )
    });
    let core = world.core(());
    core.prepare(&claim, &names).unwrap();
    let attached = core.attach(&world.sandbox(), soon());
    let domains = ip(&format!("-n {} link add probe type vrf table 9", world.pod));
    if domains {
        attached.unwrap();
        assert!(world.check(&before, "attached"));
        in_pod(&world, "ip route show vrf blue | grep -q 172.16.1.0/24");
        in_pod(&world, "ip link set net1 nomaster");
        let why = world.guard().unwrap_err();
        assert!(
            why.contains("it does not belong to the routing domain `blue`"),
            "{why}"
        );
        core.unprepare(UID).unwrap();
        in_pod(&world, "! ip link show blue");
    } else {
        eprintln!("skipped in part: this kernel has no VRF");
        let why = attached.unwrap_err().0;
        assert!(why.contains("CONFIG_NET_VRF"), "{why}");
    }
    assert!(!world.check(&before, "at the end"));
}
