//! Every described machine, from its description to files, to a machine, to what is published of it.
//! `FOREBAY_UPDATE_GOLDEN=1` writes what comes out as what is expected.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use forebay_fabric::cloud::{CloudFacts, Place};
use forebay_fabric::machine::Machine;
use forebay_fabric::publish::{self, Attribute, Input, Publisher, QualifiedName, Slice};
use forebay_fabric::synth::{self, Description};
use forebay_node::sysfs::{self, Found};

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn descriptions() -> Vec<Description> {
    let files = fs::read_dir(folder("../../machines")).unwrap();
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    let read = |path: &PathBuf| {
        let description = synth::parse(&fs::read_to_string(path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(Some(&*description.name), path.file_stem().unwrap().to_str());
        description
    };
    paths.iter().map(read).collect()
}

fn discover(description: &Description) -> Found {
    let root = tempfile::tempdir().unwrap();
    let tree = synth::tree(description).unwrap_or_else(|error| panic!("{error}"));
    sysfs::plant(&tree, root.path()).unwrap();
    let uplinks: BTreeSet<String> = description.uplinks.iter().cloned().collect();
    sysfs::read(root.path(), &uplinks)
}

fn input(description: &Description, machine: Machine) -> Input {
    let cloud = CloudFacts {
        place: Place::from_labels(&description.labels),
        ..CloudFacts::default()
    };
    Input {
        machine,
        cloud,
        ..Input::default()
    }
}

fn publish(input: &Input) -> Vec<Slice> {
    let (devices, problems) = publish::devices(input);
    assert_eq!(problems, []);
    Publisher::new("node-1", 0).publish(devices).unwrap()
}

type Attributes = BTreeMap<QualifiedName, Attribute>;

fn lines(text: &mut String, attributes: &Attributes, common: &Attributes) {
    for (name, value) in attributes {
        if common.get(name) != Some(value) {
            writeln!(text, "  {name}: {value}").unwrap();
        }
    }
}

fn render(found: &Found, slices: &[Slice]) -> String {
    let mut text = String::new();
    let all: Vec<_> = slices.iter().flat_map(|slice| &slice.devices).collect();
    let mut common = all
        .first()
        .map(|device| device.attributes.clone())
        .unwrap_or_default();
    common.retain(|name, value| all.iter().all(|d| d.attributes.get(name) == Some(value)));
    writeln!(text, "every device").unwrap();
    lines(&mut text, &common, &Attributes::new());
    for Slice {
        pool,
        generation,
        index,
        count,
        devices,
    } in slices
    {
        let of = format!("{index} of {count} in pool {pool}, generation {generation}");
        writeln!(text, "\nslice {of}: {} devices", devices.len()).unwrap();
        for device in devices {
            let bps = device.bandwidth.bps;
            writeln!(
                text,
                "{}\n  capacity forebay.dev/bandwidth: {bps}",
                device.name
            )
            .unwrap();
            lines(&mut text, &device.attributes, &common);
        }
    }
    writeln!(text, "\nleft out").unwrap();
    for (what, why) in &found.left_out {
        writeln!(text, "  {what}: {why}").unwrap();
    }
    text
}

#[test]
fn described_machines_are_read_back_and_published_as_expected() {
    let update = std::env::var_os("FOREBAY_UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for description in descriptions() {
        let found = discover(&description);
        assert_eq!(found.problems, [], "{}", description.name);
        let slices = publish(&input(&description, found.machine.clone()));
        let text = render(&found, &slices);
        let path = folder("tests/golden").join(format!("{}.txt", description.name));
        if update {
            fs::write(&path, &text).unwrap();
        }
        if fs::read_to_string(&path).unwrap_or_default() != text {
            wrong.push(format!("{}:\n{text}", path.display()));
        }
    }
    let files = fs::read_dir(folder("tests/golden")).unwrap().count();
    assert_eq!(files, 10, "one expectation for each machine");
    assert!(
        wrong.is_empty(),
        "differs from what is expected; if it is right, FOREBAY_UPDATE_GOLDEN=1 writes it down:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_machine_is_published_within_the_limits_of_the_api_and_with_one_set_of_names() {
    for description in descriptions() {
        let mut input = input(&description, discover(&description).machine);
        // As much as a cloud can say, so that nothing is left over.
        for id in ["a", "b", "c", "d"] {
            let name = QualifiedName::parse(&format!("example.com/{id}")).unwrap();
            input
                .cloud
                .node
                .insert(name, Attribute::text(&"ü".repeat(40)));
        }
        let mut names = BTreeSet::new();
        for device in publish(&input).iter().flat_map(|slice| &slice.devices) {
            assert_eq!(
                device.attributes.len() + 1,
                publish::ENTRIES_MAX,
                "{}",
                device.name
            );
            names.insert(device.attributes.keys().cloned().collect::<Vec<_>>());
            for (name, value) in &device.attributes {
                assert!(QualifiedName::parse(&name.to_string()).is_ok(), "{name}");
                if let Attribute::String(text) = value {
                    assert!(text.len() <= publish::STRING_BYTES_MAX, "{name}: {text}");
                }
            }
            let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            assert!(
                device.name.len() <= 63 && device.name.bytes().all(label),
                "{}",
                device.name
            );
        }
        assert_eq!(names.len(), 1, "{}", description.name);
    }
}

#[test]
fn a_nic_in_a_pod_stays_published_as_it_was_and_moves_no_rail() {
    for description in descriptions() {
        let whole = discover(&description).machine;
        let before = publish::devices(&input(&description, whole.clone()));
        for nic in &whole.nics {
            let mut without = input(&description, whole.clone());
            // What is left of it on the host: a virtual one is gone, a function stays.
            without
                .machine
                .nics
                .retain(|other| other.pci.is_some() || !other.is(nic));
            for left in without
                .machine
                .nics
                .iter_mut()
                .filter(|other| other.is(nic))
            {
                left.netdev = None;
                left.rdma = None;
            }
            without.held = vec![nic.clone()];
            assert_eq!(publish::devices(&without), before, "{}", description.name);
        }
    }
}

/// Where everything is, so that a line of a test can break it.
fn broken(damage: impl Fn(&Path)) -> Found {
    let all = descriptions();
    let description = all.iter().find(|d| d.name == "a4-highgpu-8g").unwrap();
    let root = tempfile::tempdir().unwrap();
    let sys = root.path().join("sys");
    sysfs::plant(&synth::tree(description).unwrap(), &sys).unwrap();
    damage(&sys);
    sysfs::read(&sys, &BTreeSet::from(["eth0".to_owned()]))
}

/// The net device of mlx5_0.
const NETDEV: &str = "class/net/gpu0rdma0";

#[test]
fn a_garbled_file_costs_what_it_says_and_nothing_else() {
    let whole = broken(|_| ());
    for (file, content) in [
        (format!("{NETDEV}/mtu"), &b"nine thousand"[..]),
        (format!("{NETDEV}/address"), &[0xff, 0xfe][..]),
        (
            "class/infiniband/mlx5_0/ports/1/gids/0".to_owned(),
            &b"fe80::zz"[..],
        ),
        (
            "bus/pci/devices/0000:91:00.0/numa_node".to_owned(),
            &b"one"[..],
        ),
        (
            "devices/system/node/node0/distance".to_owned(),
            &b"10 x"[..],
        ),
        (format!("{NETDEV}/operstate"), &[b'a'; 5000][..]),
    ] {
        let found = broken(|sys| fs::write(sys.join(&file), content).unwrap());
        assert_eq!(found.machine.nics.len(), whole.machine.nics.len(), "{file}");
        assert_eq!(found.problems.len(), 1, "{file}: {:?}", found.problems);
    }
    let found = broken(|sys| {
        fs::write(sys.join("bus/pci/devices/0000:91:00.0/class"), "network").unwrap();
    });
    // Its net device is still there, and without a function nothing is known of how it lies.
    assert_eq!(found.machine.nics.len(), whole.machine.nics.len() - 1);
    assert!(
        found.left_out.iter().any(|(what, _)| what == "gpu0rdma0"),
        "{:?}",
        found.left_out
    );
}

#[test]
fn a_tree_that_is_missing_or_empty_is_a_machine_without_anything() {
    let empty = tempfile::tempdir().unwrap();
    for root in [empty.path().to_owned(), empty.path().join("none")] {
        assert_eq!(sysfs::read(&root, &BTreeSet::new()), Found::default());
    }
}

#[test]
fn links_that_lead_out_of_the_tree_or_nowhere_are_not_followed() {
    use std::os::unix::fs::symlink;
    let secret = |sys: &Path| {
        let file = sys.parent().unwrap().join("secret");
        fs::write(&file, "secret").unwrap();
        file
    };
    let replace = |sys: &Path, target: &Path| {
        let file = sys.join(NETDEV).join("ifalias");
        fs::remove_file(&file).unwrap();
        symlink(target, &file).unwrap();
    };
    let up = "../".repeat(30);
    let outside = [
        broken(|sys| replace(sys, &secret(sys))),
        broken(|sys| {
            secret(sys);
            replace(sys, Path::new(&format!("{up}secret")));
        }),
        broken(|sys| replace(sys, Path::new("ifalias"))),
    ];
    for found in outside {
        assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
        assert!(!format!("{:?}", found.machine).contains("secret"));
    }
    // A folder of devices that is somebody else's.
    let found = broken(|sys| {
        fs::remove_dir_all(sys.join("class/net")).unwrap();
        symlink("/sys/class/net", sys.join("class/net")).unwrap();
    });
    assert!(found.machine.nics.iter().all(|nic| nic.netdev.is_none()));
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
    let found = broken(|sys| {
        let file = sys.join(NETDEV).join("mtu");
        fs::remove_file(&file).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(&file)
            .status()
            .unwrap();
        assert!(made.success());
    });
    assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
}

/// Net devices of this host, which others may make and remove at any time.
fn netdevs_here() -> BTreeSet<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten();
    let folders = entries.filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir()));
    folders
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[test]
fn every_net_device_of_this_host_is_a_nic_or_left_out_for_a_reason() {
    let before = netdevs_here();
    let found = sysfs::read(Path::new("/sys"), &BTreeSet::new());
    let after = netdevs_here();
    for name in before.intersection(&after) {
        let nic = found.machine.nics.iter().any(|nic| nic.label() == name);
        let left_out = found.left_out.iter().any(|(what, _)| what == name);
        assert!(nic != left_out, "{name}: {:?}", found.left_out);
    }
}
