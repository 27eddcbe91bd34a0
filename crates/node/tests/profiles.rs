//! The network profile of every described machine, derived from what a driver would publish of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use forebay_fabric::profile::{self, MACHINE_LABEL, NodeFacts, Seen};
use forebay_fabric::publish::{self, Input};
use forebay_fabric::synth;
use forebay_node::sysfs;

/// The machine's profile as `name: accelerators`, from its devices alone or from its type alone.
fn profiles(machine: &str) -> (String, String) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../machines/{machine}.yaml"));
    let description = synth::parse(&fs::read_to_string(file).unwrap()).unwrap();
    let root = tempfile::tempdir().unwrap();
    sysfs::plant(&synth::tree(&description).unwrap(), root.path()).unwrap();
    let uplinks: BTreeSet<String> = description.uplinks.iter().cloned().collect();
    let input = Input {
        machine: sysfs::read(root.path(), &uplinks).machine,
        ..Input::default()
    };
    let (devices, _) = publish::devices(&input);
    let told = |node: &NodeFacts| {
        let profile = profile::derive(node, &BTreeMap::new());
        profile.map_or_else(
            || "none".to_owned(),
            |p| format!("{}: {}", p.name, p.accelerators),
        )
    };
    let published = NodeFacts {
        devices: devices.iter().map(Seen::of).collect(),
        ..NodeFacts::default()
    };
    let typed = NodeFacts {
        labels: [(MACHINE_LABEL.to_owned(), machine.to_owned())].into(),
        ..NodeFacts::default()
    };
    // A slice says the same as the devices that it was made of.
    let spec = publish::slices("n", 1, &devices);
    let spec = publish::resource_slice::spec(&spec[0], "dra.net", "n");
    let read = NodeFacts {
        devices: spec["devices"]
            .as_array()
            .unwrap()
            .iter()
            .map(Seen::read)
            .collect(),
        ..NodeFacts::default()
    };
    assert_eq!(read, published, "{machine}");
    (told(&published), told(&typed))
}

#[test]
fn every_described_machine_has_the_profile_that_its_nics_make() {
    let expected = [
        ("a3-megagpu-8g", "netdev-8: 8", "none"),
        ("a3-ultragpu-8g", "rdma-8: 8", "rdma-8: 8"),
        ("a4-highgpu-8g", "rdma-8: 8", "rdma-8: 8"),
        ("a4x-highgpu-4g", "rdma-4: 4", "rdma-4: 4"),
        ("a4x-maxgpu-4g-metal", "rdma-8: 4", "rdma-8: 4"),
        ("ct6e-standard-4t", "netdev-2: 4", "netdev-2: 4"),
        ("mi300x", "rdma-8: 8", "none"),
        ("plain-server", "none", "none"),
        ("tpu7x-standard-4t", "netdev-2: 4", "netdev-2: 4"),
    ];
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../machines"));
    // What is split into virtual functions has as many NICs as were made of it.
    assert_eq!(files.unwrap().count(), expected.len() + 1);
    let wrong: Vec<String> = expected
        .iter()
        .map(|(machine, published, typed)| {
            let (by_devices, by_type) = profiles(machine);
            let same = by_devices == *published && by_type == *typed;
            match same {
                true => String::new(),
                false => format!("{machine}: {by_devices}, by its type {by_type}"),
            }
        })
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
    println!("xe8640: {:?}", profiles("xe8640"));
}
