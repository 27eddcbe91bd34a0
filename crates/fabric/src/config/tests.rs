use super::*;

/// Compares what is wrong with `json`, a line for each.
fn check(json: &str, wrong: &str) {
    let found = match NetworkConfig::parse(json) {
        Ok(_) => String::new(),
        Err(errors) => errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n"),
    };
    assert_eq!(found, wrong, "{json}");
}

#[test]
fn the_json_of_dranet_and_our_own_say_the_same() {
    let body = r#""interface": {"name": "rail0", "mtu": 8896, "addresses": ["10.0.0.5/24"]},
        "routes": [{"destination": "10.1.0.0/16", "gateway": "10.0.0.1", "table": 101}],
        "rules": [{"priority": 1000, "source": "10.0.0.5/32", "table": 101}],
        "neighbors": [{"destination": "10.0.0.1", "hardwareAddr": "02:00:00:00:00:01"}]"#;
    let theirs = NetworkConfig::parse(&format!("{{{body}}}")).unwrap();
    let head = r#""apiVersion": "forebay.dev/v1alpha1", "kind": "NetworkConfig""#;
    let ours = NetworkConfig::parse(&format!("{{{head}, {body}}}")).unwrap();
    assert_eq!(theirs, ours);
    assert_eq!(ours.interface.mtu, Some(8896));
    assert_eq!(ours.routes[0].table, 101);
}

#[test]
fn a_typo_is_told_with_its_path_and_the_nearest_name() {
    check(
        r#"{"interface": {"adresses": ["10.0.0.5/24"]}}"#,
        "interface.adresses: no such field; `addresses` is the nearest",
    );
    check(
        r#"{"routes": [{"destination": "10.1.0.0/16", "gatway": "10.0.0.1", "scope": 253}]}"#,
        "routes[0].gatway: no such field; `gateway` is the nearest",
    );
}

#[test]
fn everything_wrong_is_told_at_once() {
    check(
        r#"{"interface": {"name": "a name/too long for it", "mtu": 12, "hardwareAddr": "x"},
            "routes": [{"destination": "10.1.0.0/16", "gateway": "fd00::1"}],
            "rules": [{"priority": 40000, "source": "10.0.0.0/8"}]}"#,
        "interface.name: is longer than 15 bytes\n\
         interface.mtu: must be a whole number from 68 to 65536, not 12\n\
         interface.hardwareAddr: `x` is no Ethernet address such as 02:00:00:00:00:01\n\
         routes[0].gateway: is of another family than the destination\n\
         rules[0].priority: must be a whole number from 0 to 32767, not 40000\n\
         rules[0].table: is required",
    );
}

#[test]
fn what_excludes_each_other_is_refused() {
    check(
        r#"{"interface": {"dhcp": true, "addresses": ["10.0.0.5/24"]}}"#,
        "interface.dhcp: excludes addresses; keep one of both",
    );
    check(
        r#"{"interface": {"hardwareAddr": "02:00:00:00:00:01"}, "subInterface": {"type": "ipvlan"}}"#,
        "interface.hardwareAddr: an ipvlan shares the device's; leave it out or use macvlan",
    );
    check(
        r#"{"routes": [{"destination": "10.1.0.0/16"}]}"#,
        "routes[0].gateway: is required unless scope is 253 (link)",
    );
    check(
        r#"{"routes": [{"destination": "10.1.0.1/16", "scope": 253}]}"#,
        "routes[0].destination: `10.1.0.1/16` has bits beyond its prefix",
    );
}

#[test]
fn a_routing_domain_has_the_table_that_dranet_takes_and_goes_without_rules() {
    let parsed = |json: &str| NetworkConfig::parse(json).unwrap().interface.vrf.unwrap();
    let own = parsed(r#"{"interface": {"vrf": {"name": "blue", "table": 7}}}"#);
    assert_eq!((own.name.as_str(), own.table), ("blue", 7));
    // FNV-1a of 32 bits of "a" is 0xe40c292c.
    let derived = parsed(r#"{"interface": {"vrf": {"name": "a"}}}"#);
    assert_eq!(derived.table, 0xe40c_292c % 1000 + 1000);
    check(
        r#"{"interface": {"vrf": {"table": 254}}}"#,
        "interface.vrf.table: 253 to 255 are the kernel's own\n\
         interface.vrf.name: is required",
    );
    check(
        r#"{"interface": {"name": "net0", "vrf": {"name": "net0"}}}"#,
        "interface.vrf.name: is the name of the interface; the domain is a link of its own",
    );
    check(
        r#"{"interface": {"vrf": {"name": "blue"}},
            "rules": [{"source": "10.0.0.5/32", "table": 101}]}"#,
        "rules: exclude interface.vrf, whose table is chosen by the NIC; keep one of both",
    );
}

#[test]
fn what_ethtool_sets_is_on_or_off_by_name() {
    let config = NetworkConfig::parse(
        r#"{"ethtool": {"features": {"tso": false}, "privateFlags": {"rx_striding_rq": true}}}"#,
    );
    let ethtool = config.unwrap().ethtool;
    assert_eq!(ethtool.features, [("tso".to_owned(), false)].into());
    assert_eq!(
        ethtool.private_flags,
        [("rx_striding_rq".to_owned(), true)].into()
    );
    check(
        r#"{"ethtool": {"features": {"tso": "off", "": true}, "privateflags": {}}}"#,
        "ethtool.features.: names have 1 to 31 bytes\n\
         ethtool.features.tso: must be true or false\n\
         ethtool.privateflags: no such field; `privateFlags` is the nearest",
    );
    check(
        r#"{"ethtool": {"features": ["tso"]}}"#,
        "ethtool.features: must be an object of true and false by name",
    );
}

#[test]
fn another_version_is_refused() {
    check(
        r#"{"apiVersion": "forebay.dev/v9", "kind": "NetworkConfig"}"#,
        "apiVersion: must be forebay.dev/v1alpha1",
    );
    check("[]", "must be an object, not a list");
}

#[test]
fn the_claim_overrides_the_class() {
    let class = NetworkConfig::parse(
        r#"{"interface": {"mtu": 8896, "name": "net0"},
            "routes": [{"destination": "10.1.0.0/16", "scope": 253},
                       {"destination": "10.2.0.0/16", "scope": 253}]}"#,
    )
    .unwrap();
    let claim = NetworkConfig::parse(
        r#"{"interface": {"mtu": 1500},
            "routes": [{"destination": "10.1.0.0/16", "gateway": "10.0.0.1"}]}"#,
    )
    .unwrap();
    let merged = NetworkConfig::merged(class, claim);
    assert_eq!(merged.interface.mtu, Some(1500));
    assert_eq!(merged.interface.name.as_deref(), Some("net0"));
    let to: Vec<_> = merged
        .routes
        .iter()
        .map(|r| (r.destination.to_string(), r.gateway))
        .collect();
    let gateway = Some("10.0.0.1".parse().unwrap());
    assert_eq!(
        to,
        [
            ("10.1.0.0/16".to_owned(), gateway),
            ("10.2.0.0/16".to_owned(), None)
        ]
    );
}

#[test]
fn shares_and_where_addresses_come_from_are_read_or_refused_with_their_path() {
    let read = |json: &str| NetworkConfig::parse(json).unwrap();
    let theirs = read(r#"{"subInterface": {"type": "IPVLAN", "mode": "L3"}, "profile": "hpc"}"#);
    let l3 = SubInterface::Ipvlan(IpvlanMode::L3);
    assert_eq!(theirs.sub_interface, Some(l3));
    assert_eq!(theirs.profile.as_deref(), Some("hpc"));
    let dhcp = read(r#"{"interface": {"dhcp": true}}"#);
    assert_eq!(dhcp.ipam, Some(Ipam::Dhcp));
    assert_eq!(dhcp, read(r#"{"ipam": {"type": "dhcp"}}"#));
    let range = r#"{"type": "range", "subnet": "10.60.0.0/24", "end": "10.60.0.9"}"#;
    let Some(Ipam::Range(range)) = read(&format!(r#"{{"ipam": {range}}}"#)).ipam else {
        panic!("a range");
    };
    assert_eq!(range.start.to_string(), "10.60.0.1");
    check(
        r#"{"ipam": {"type": "range", "subnt": "10.0.0.0/24"}}"#,
        "ipam.subnet: is required, such as 10.60.0.0/24\n\
         ipam.subnt: no such field; `subnet` is the nearest",
    );
    check(
        r#"{"interface": {"addresses": ["10.0.0.5/24"]}, "ipam": {"type": "dhcp"},
            "subInterface": {"type": "vf", "mode": "l2"}}"#,
        "ipam.type: excludes interface.addresses; keep one of both\n\
         subInterface.mode: a virtual function has none; leave it out",
    );
    check(
        r#"{"ipam": {"type": "pool"}, "subInterface": {"type": "vlan"}}"#,
        "ipam.type: must be static, range, dhcp or webhook\n\
         subInterface.type: must be macvlan, ipvlan or vf",
    );
}

#[test]
fn addresses_of_the_claim_take_the_place_of_where_the_classs_come_from() {
    let class = NetworkConfig::parse(r#"{"ipam": {"type": "dhcp"}}"#).unwrap();
    let claim = r#"{"interface": {"addresses": ["10.0.0.5/24"]}}"#;
    let claim = NetworkConfig::parse(claim).unwrap();
    assert_eq!(NetworkConfig::merged(class.clone(), claim).ipam, None);
    let silent = NetworkConfig::default();
    assert_eq!(NetworkConfig::merged(class, silent).ipam, Some(Ipam::Dhcp));
}
