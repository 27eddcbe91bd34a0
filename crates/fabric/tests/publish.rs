//! Pools of many devices, over time; distances and rails of machines drawn up here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use forebay_fabric::health::{Effect, LINK_DOWN, Taint};
use forebay_fabric::machine::{
    Accelerator, LinkFacts, Machine, Netdev, Nic, PciAddress, PciFunction, RdmaDevice, Sriov,
};
use forebay_fabric::publish::{
    self, Attribute, Input, PublishedDevice, Publisher, QualifiedName, STRING_BYTES_MAX, Slice,
};
use forebay_fabric::topology::{self, Rail, Rails};

fn netdev(name: &str, speed_mbps: Option<u64>) -> Netdev {
    Netdev {
        name: name.to_owned(),
        kind: "veth".to_owned(),
        mac: String::new(),
        mtu: 1500,
        addresses: Vec::new(),
        admin_up: true,
        state: "up".to_owned(),
        speed_mbps,
        alias: String::new(),
    }
}

fn virtual_nic(name: &str) -> Nic {
    Nic {
        pci: None,
        sriov: Sriov::None,
        netdev: Some(netdev(name, Some(10_000))),
        rdma: None,
    }
}

fn many(count: usize) -> Input {
    let nics = (0..count).map(|n| virtual_nic(&format!("veth{n:04}")));
    let machine = Machine {
        nics: nics.collect(),
        ..Machine::default()
    };
    Input {
        machine,
        ..Input::default()
    }
}

fn taint() -> Taint {
    Taint {
        key: LINK_DOWN,
        value: "down",
        effect: Effect::NoSchedule,
    }
}

/// Sizes of the slices that a pool is published in, checked for what they say of each other.
fn sizes(slices: &[Slice]) -> Vec<usize> {
    for (index, slice) in slices.iter().enumerate() {
        assert_eq!((slice.index, slice.count), (index, slices.len()));
        assert_eq!(slice.generation, slices[0].generation);
    }
    slices.iter().map(|slice| slice.devices.len()).collect()
}

#[test]
fn a_pool_is_split_into_as_many_slices_as_it_needs() {
    let slices = |input: &Input| sizes(&publish::slices("n", 1, &publish::devices(input).0));
    assert_eq!(slices(&many(0)), [0]);
    assert_eq!(slices(&many(128)), [128]);
    assert_eq!(slices(&many(300)), [128, 128, 44]);
    let mut tainted = many(130);
    tainted
        .taints
        .insert("veth0129".to_owned(), vec![taint(); 20]);
    assert_eq!(slices(&tainted), [64, 64, 2]);
    let (devices, problems) = publish::devices(&tainted);
    assert_eq!(devices[129].taints.len(), publish::TAINTS_MAX);
    assert_eq!(problems, []);
}

#[test]
fn devices_beyond_the_bound_of_a_pool_are_left_out_and_told_of() {
    let (devices, problems) = publish::devices(&many(publish::POOL_DEVICES_MAX + 2));
    assert_eq!(
        (devices.len(), problems.len()),
        (publish::POOL_DEVICES_MAX, 2)
    );
}

#[test]
fn the_generation_grows_with_the_content_and_only_then() {
    let devices = |input: &Input| publish::devices(input).0;
    let generation = |slices: Option<Vec<Slice>>| slices.map(|slices| slices[0].generation);
    let mut publisher = Publisher::new("n", 41);
    let mut input = many(3);
    assert_eq!(generation(publisher.publish(devices(&input))), Some(42));
    assert_eq!(generation(publisher.publish(devices(&input))), None);
    input.taints.insert("veth0001".to_owned(), vec![taint()]);
    assert_eq!(generation(publisher.publish(devices(&input))), Some(43));
    input.taints.clear();
    assert_eq!(generation(publisher.publish(devices(&input))), Some(44));
}

#[test]
fn a_link_that_is_down_keeps_the_speed_that_was_known() {
    let mut input = many(1);
    let mut publisher = Publisher::new("n", 0);
    let before = publisher.publish(publish::devices(&input).0).unwrap();
    input.machine.nics[0].netdev = Some(netdev("veth0000", None));
    assert_eq!(publisher.publish(publish::devices(&input).0), None);
    assert_eq!(before[0].devices[0].bandwidth.bps, 10_000_000_000);
}

#[test]
fn a_shareable_nic_has_its_bandwidth_as_capacity_to_share() {
    let mut input = many(2);
    input.shareable.insert("veth0000".to_owned());
    let (devices, _) = publish::devices(&input);
    let share = devices[0].bandwidth.share.unwrap();
    assert_eq!(
        (share.default_bps, devices[0].allow_multiple),
        (10_000_000_000, true)
    );
    assert_eq!(
        (devices[1].bandwidth.share, devices[1].allow_multiple),
        (None, false)
    );
}

#[test]
fn every_name_of_an_interface_makes_another_name_of_a_device() {
    let names = [
        "eth0",
        "ETH0",
        "eth.0",
        "eth_0",
        "eth-0-",
        "-",
        "é",
        "pci-0000-8f-00-0",
        "a.b",
        "a-b",
        "",
    ];
    let mut made: Vec<String> = names
        .map(|n| publish::device_name(&virtual_nic(n)))
        .to_vec();
    for name in &made {
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        assert!(name.len() <= 63 && name.bytes().all(label), "{name}");
        assert!(!name.starts_with('-') && !name.ends_with('-'), "{name}");
        assert!(!name.starts_with("pci-"), "{name}");
    }
    assert_eq!(made[0], "eth0");
    made.sort();
    made.dedup();
    assert_eq!(made.len(), names.len());
}

#[test]
fn strings_are_cut_between_two_characters() {
    let cut = |text: &str| match Attribute::text(text) {
        Attribute::String(text) => text,
        other => panic!("{other}"),
    };
    assert_eq!(cut(&"a".repeat(64)).len(), STRING_BYTES_MAX);
    assert_eq!(cut(&"ü".repeat(33)).len(), 64);
    assert_eq!(cut(&format!("a{}", "ü".repeat(33))).len(), 63);
}

fn attribute<'a>(device: &'a PublishedDevice, name: &str) -> &'a Attribute {
    &device.attributes[&QualifiedName::parse(name).unwrap()]
}

#[test]
fn addresses_are_published_whole_or_not_at_all() {
    let mut input = many(1);
    let mut addresses: Vec<_> = (0..9)
        .map(|n| format!("fd00:1111:2222::{n}").parse().unwrap())
        .collect();
    addresses.push("192.0.2.7".parse().unwrap());
    let link = |name: &str| LinkFacts {
        name: name.to_owned(),
        kind: "macvlan".to_owned(),
        addresses: addresses.clone(),
    };
    input.machine.tell(&[link("other"), link("veth0000")]);
    let (devices, _) = publish::devices(&input);
    assert_eq!(
        attribute(&devices[0], "dra.net/type"),
        &Attribute::text("macvlan")
    );
    let v6 = "fd00:1111:2222::,fd00:1111:2222::1,fd00:1111:2222::2";
    assert_eq!(attribute(&devices[0], "dra.net/ipv6"), &Attribute::text(v6));
    assert_eq!(
        attribute(&devices[0], "dra.net/ipv4"),
        &Attribute::text("192.0.2.7")
    );
}

#[test]
fn what_a_cloud_says_beyond_the_room_for_it_is_told_of_and_a_name_has_one_type() {
    let mut input = many(2);
    let name = |text: &str| QualifiedName::parse(text).unwrap();
    for id in ["a", "b", "c", "d", "e"] {
        input
            .cloud
            .node
            .insert(name(&format!("x.example/{id}")), Attribute::Int(1));
    }
    input
        .cloud
        .node
        .insert(name("dra.net/ifName"), Attribute::Int(1));
    input.machine.nics[0].netdev.as_mut().unwrap().mac = "02:00:00:00:00:0A".to_owned();
    let own = BTreeMap::from([(name("x.example/a"), Attribute::Bool(true))]);
    input.cloud.by_mac.insert("02000000000a".to_owned(), own);
    let (devices, problems) = publish::devices(&input);
    let paths: Vec<&str> = problems.iter().map(|problem| &*problem.path).collect();
    assert_eq!(paths, ["dra.net/ifName", "x.example/e"]);
    assert_eq!(
        attribute(&devices[0], "dra.net/ifName"),
        &Attribute::text("veth0000")
    );
    assert_eq!(attribute(&devices[0], "x.example/a"), &Attribute::Int(-1));
    assert_eq!(attribute(&devices[1], "x.example/a"), &Attribute::Int(1));
}

#[test]
fn qualified_names_are_within_the_limits_of_the_api() {
    for good in ["a/b", "resource.kubernetes.io/pcieRoot", "a-1.b/_x9"] {
        assert_eq!(QualifiedName::parse(good).unwrap().to_string(), good);
    }
    let long = [
        format!("{}/a", "d".repeat(64)),
        format!("a/{}", "i".repeat(33)),
    ];
    for bad in [
        "a", "/a", "a/", "A.b/c", "a..b/c", "-a/b", "a/b-c", "a/1b", "a/b/c",
    ]
    .into_iter()
    .chain(long.iter().map(String::as_str))
    {
        assert!(QualifiedName::parse(bad).is_err(), "{bad}");
    }
}

/// `root numa parents`, and what is at the end: `8c 0 8c:01.0,8d:00.0 91:00.0`.
fn function(text: &str, id: (u16, u16), class: u32) -> PciFunction {
    let parts: Vec<&str> = text.split(' ').collect();
    let at = |text: &str| -> PciAddress { format!("0000:{text}").parse().unwrap() };
    let parents = parts[2].split(',').filter(|bridge| *bridge != "-");
    PciFunction {
        address: at(parts[3]),
        root: format!("pci0000:{}", parts[0]),
        parents: parents.map(at).collect(),
        class,
        vendor: id.0,
        device: id.1,
        subsystem_vendor: 0,
        subsystem_device: 0,
        numa: parts[1].parse().ok(),
        driver: None,
    }
}

fn nic(text: &str, id: (u16, u16), rdma: bool) -> Nic {
    let rdma = rdma.then(|| RdmaDevice {
        name: "mlx5_0".to_owned(),
        node_guid: String::new(),
        firmware: String::new(),
        ports: Vec::new(),
    });
    Nic {
        pci: Some(function(text, id, 0x02_0000)),
        sriov: Sriov::None,
        netdev: Some(netdev("eth0", None)),
        rdma,
    }
}

const B200: (u16, u16) = (0x10de, 0x2901);
const GB200: (u16, u16) = (0x10de, 0x2941);
const CX7: (u16, u16) = (0x15b3, 0x1021);
const GVNIC: (u16, u16) = (0x1ae0, 0x0042);

/// What a NIC is from GPUs: `class peers`.
fn check(gpu: (u16, u16), gpus: &[&str], at: &str, expected: &str) {
    let gpus = gpus.iter().map(|text| function(text, gpu, 0x03_0200));
    let machine = Machine {
        accelerators: gpus.map(|pci| Accelerator::of(&pci).unwrap()).collect(),
        ..Machine::default()
    };
    let nearest = topology::nearest(&machine, &nic(at, CX7, true)).unwrap();
    let peers: Vec<String> = nearest.peers.iter().map(ToString::to_string).collect();
    let peers = peers.join(" ").replace("0000:", "");
    assert_eq!(
        format!("{} {peers}", nearest.distance.as_str()),
        expected,
        "{at}"
    );
}

#[test]
fn the_nearest_gpu_is_behind_the_most_bridges_in_common() {
    let gpus = [
        "10 0 10:01.0,11:00.0,12:00.0 13:00.0",
        "10 0 10:01.0,11:00.0,12:01.0 14:00.0",
        "10 0 10:02.0 1a:00.0",
        "20 0 20:01.0 21:00.0",
        "30 1 30:01.0 31:00.0",
        "40 - - 41:00.0",
    ];
    let check = |at, expected| check(B200, &gpus, at, expected);
    check("10 0 10:01.0,11:00.0,12:01.0 14:00.1", "switch 14:00.0");
    check(
        "10 0 10:01.0,11:00.0,12:02.0 15:00.0",
        "switch 13:00.0 14:00.0",
    );
    check("10 0 10:03.0 1c:00.0", "root 13:00.0 14:00.0 1a:00.0");
    check(
        "50 0 50:01.0 51:00.0",
        "numa 13:00.0 14:00.0 1a:00.0 21:00.0",
    );
    check("50 1 50:01.0 51:00.0", "numa 31:00.0");
    check("50 2 50:01.0 51:00.0", "other ");
    check("60 - - 61:00.0", "other ");
}

#[test]
fn behind_c2c_the_numa_node_counts_and_a_shared_root_does_not() {
    let gpus = ["10 0 10:00.0 11:00.0", "20 1 20:00.0 21:00.0"];
    check(GB200, &gpus, "30 1 30:00.0 31:00.0", "c2c 21:00.0");
    check(GB200, &gpus, "10 1 10:00.0 11:00.1", "c2c 21:00.0");
    check(GB200, &gpus, "30 - 30:00.0 31:00.0", "other ");
}

/// The rails of NICs in their order, `-` for none.
fn rails(gpu: bool, nics: Vec<Nic>, given: &Rails) -> String {
    let gpu = gpu.then(|| Accelerator::of(&function("01 0 - 01:00.0", B200, 0x03_0200)).unwrap());
    let machine = Machine {
        nics,
        accelerators: gpu.into_iter().collect(),
        ..Machine::default()
    };
    let rails = topology::rails(&machine, given);
    let rail = |nic: &Nic| {
        let rail = rails.get(&nic.pci.as_ref().unwrap().address);
        rail.map_or_else(
            || "-".to_owned(),
            |rail| format!("{}/{}", rail.group, rail.index),
        )
    };
    machine.nics.iter().map(rail).collect::<Vec<_>>().join(" ")
}

#[test]
fn rails_are_the_order_of_nics_of_one_model() {
    let none = Rails::new();
    let rdma = || {
        vec![
            nic("30 0 - 31:00.0", CX7, true),
            nic("10 0 - 11:00.0", CX7, true),
            nic("05 0 - 05:00.0", GVNIC, false),
        ]
    };
    assert_eq!(rails(true, rdma(), &none), "15b3:1021/1 15b3:1021/0 -");
    assert_eq!(rails(false, rdma(), &none), "- - -");
    // A NIC whose RDMA device is in a pod, and whose link is down, keeps its rail.
    let mut away = rdma();
    away[0].rdma = None;
    assert_eq!(rails(true, away, &none), "15b3:1021/1 15b3:1021/0 -");
    let plain = vec![
        nic("05 0 - 05:00.0", GVNIC, false),
        nic("06 0 - 06:00.0", GVNIC, false),
        nic("07 0 - 07:00.0", CX7, false),
    ];
    assert_eq!(rails(true, plain, &none), "1ae0:0042/0 1ae0:0042/1 -");
}

#[test]
fn the_operators_rails_win_and_a_virtual_function_has_that_of_its_physical_one() {
    let mut part = nic("30 0 - 31:00.2", (0x15b3, 0x101e), true);
    let physical: PciAddress = "0000:31:00.0".parse().unwrap();
    part.sriov = Sriov::Virtual { of: Some(physical) };
    let nics = || vec![nic("30 0 - 31:00.0", CX7, true), part.clone()];
    assert_eq!(
        rails(true, nics(), &Rails::new()),
        "15b3:1021/0 15b3:1021/0"
    );
    let rail = Rail {
        group: "east".to_owned(),
        index: 5,
    };
    let given = Rails::from([(physical, rail)]);
    assert_eq!(rails(true, nics(), &given), "east/5 east/5");
}
