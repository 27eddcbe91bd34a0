//! The slices of every described machine in a real control plane: it takes them as they are, and its scheduler
//! allocates from them what users ask of such machines.
//!
//! Each case has devices of its own, by the names of its drivers, so that all are scheduled at once on one fake
//! node. GPUs are published as NVIDIA's driver does, by the standard attributes.

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "these tests need no relay")]
mod cluster;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use cluster::Cluster;
use forebay_fabric::cloud::{CloudFacts, Place};
use forebay_fabric::machine::{Accelerator, Attachment, Machine};
use forebay_fabric::publish::{self, Input, resource_slice};
use forebay_fabric::synth;
use forebay_node::sysfs;
use serde_json::{Value, json};
use support::{skip, wait_for};

/// A fake node that every bed of tests has.
const NODE: &str = "c1-n1";
/// Pairs that are asked for at most: the scheduler's search grows fast with them.
const PAIRS_MAX: usize = 4;

/// A described machine, read back from its files, and what is published of it.
struct Described {
    name: String,
    machine: Machine,
    input: Input,
}

fn described() -> Vec<Described> {
    let files = fs::read_dir(support::root().join("machines")).expect("machines");
    let mut paths: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let description = synth::parse(&fs::read_to_string(path).expect("a file")).expect("valid");
        let root = tempfile::tempdir().expect("a folder");
        sysfs::plant(&synth::tree(&description).expect("a tree"), root.path()).expect("planted");
        let uplinks: BTreeSet<String> = description.uplinks.iter().cloned().collect();
        let machine = sysfs::read(root.path(), &uplinks).machine;
        let cloud = CloudFacts {
            place: Place::from_labels(&description.labels),
            ..CloudFacts::default()
        };
        let input = Input {
            machine: machine.clone(),
            cloud,
            ..Input::default()
        };
        Described {
            name: description.name,
            machine,
            input,
        }
    };
    paths.iter().map(read).collect()
}

/// One pod with a claim, and what has to come of it.
struct Case {
    /// Part of every name: `a4-highgpu-8g-one`.
    name: String,
    nics: Vec<Value>,
    gpus: Vec<Value>,
    requests: Vec<Value>,
    constraints: Vec<Value>,
    expected: Expected,
}

enum Expected {
    /// So many devices.
    Devices(usize),
    /// So many pairs of a NIC and a GPU whose attributes of this name are equal.
    Pairs(usize, &'static str),
    /// The scheduler finds none.
    None,
}

impl Case {
    fn new(machine: &Described, what: &str, expected: Expected) -> Case {
        let (devices, problems) = publish::devices(&machine.input);
        assert_eq!(problems, [], "{}", machine.name);
        let name = format!("{}-{what}", machine.name);
        let slices = publish::slices(&name, 1, &devices);
        let nics = slices
            .iter()
            .map(|slice| resource_slice::spec(slice, &format!("nic.{name}"), NODE));
        Case {
            nics: nics.collect(),
            gpus: machine.machine.accelerators.iter().map(gpu).collect(),
            requests: Vec::new(),
            constraints: Vec::new(),
            expected,
            name,
        }
    }

    /// Asks for `count` devices of a kind, or for all.
    fn ask(&mut self, kind: &str, name: &str, count: Option<usize>, selector: &str) {
        let driver = format!("device.driver == \"{kind}.{}\"", self.name);
        let selectors = [driver.as_str(), selector];
        let selectors = selectors.iter().filter(|text| !text.is_empty());
        let selectors: Vec<Value> = selectors
            .map(|text| json!({ "cel": { "expression": text } }))
            .collect();
        let mut exactly =
            json!({ "deviceClassName": "allocation.forebay.test", "selectors": selectors });
        match count {
            Some(count) => exactly["count"] = json!(count),
            None => exactly["allocationMode"] = json!("All"),
        }
        self.requests
            .push(json!({ "name": name, "exactly": exactly }));
    }

    /// Asks for `count` pairs with one attribute in common.
    fn pairs(mut self, count: usize, attribute: &str, selector: &str) -> Case {
        for number in 0..count {
            let names = [format!("gpu{number}"), format!("nic{number}")];
            self.ask("gpu", &names[0], Some(1), "");
            self.ask("nic", &names[1], Some(1), selector);
            self.constraints
                .push(json!({ "requests": names, "matchAttribute": attribute }));
        }
        self
    }

    fn objects(&self) -> Vec<Value> {
        let name = &self.name;
        let labels = json!({ "forebay.dev/test": "allocation" });
        let mut objects: Vec<Value> = Vec::new();
        for (number, spec) in self.nics.iter().enumerate() {
            objects.push(json!({
                "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
                "metadata": { "name": format!("nic-{name}-{number}"), "labels": labels },
                "spec": spec,
            }));
        }
        if !self.gpus.is_empty() {
            objects.push(json!({
                "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
                "metadata": { "name": format!("gpu-{name}"), "labels": labels },
                "spec": {
                    "driver": format!("gpu.{name}"), "nodeName": NODE, "devices": self.gpus,
                    "pool": { "name": format!("gpu-{name}"), "generation": 1, "resourceSliceCount": 1 },
                },
            }));
        }
        objects.push(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": { "name": name },
            "spec": { "devices": { "requests": self.requests, "constraints": self.constraints } },
        }));
        objects.push(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": {
                "nodeSelector": { "kubernetes.io/hostname": NODE },
                "containers": [{ "name": "main", "image": "none", "resources": { "claims": [{ "name": "c" }] } }],
                "resourceClaims": [{ "name": "c", "resourceClaimName": name }],
            },
        }));
        objects
    }

    /// The devices that were allocated, by request.
    fn results<'a>(&'a self, claim: &'a Value) -> BTreeMap<&'a str, Vec<&'a Value>> {
        let published = self
            .nics
            .iter()
            .filter_map(|spec| spec["devices"].as_array());
        let published: Vec<&Value> = published.flatten().chain(&self.gpus).collect();
        let results = claim["status"]["allocation"]["devices"]["results"].as_array();
        let mut found: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for result in results.into_iter().flatten() {
            let device = published
                .iter()
                .find(|device| device["name"] == result["device"]);
            let device = device.unwrap_or_else(|| panic!("{}: {result}", self.name));
            let request = result["request"].as_str().expect("a name");
            found.entry(request).or_default().push(device);
        }
        found
    }

    fn check(&self, claim: &Value) {
        let results = self.results(claim);
        let count: usize = results.values().map(Vec::len).sum();
        match self.expected {
            Expected::Devices(expected) => assert_eq!(count, expected, "{}", self.name),
            Expected::None => assert_eq!(count, 0, "{}", self.name),
            Expected::Pairs(pairs, attribute) => {
                assert_eq!(count, 2 * pairs, "{}", self.name);
                for number in 0..pairs {
                    let one = |kind: &str| results[format!("{kind}{number}").as_str()][0];
                    let (gpu, nic) = (one("gpu"), one("nic"));
                    let of = |device: &Value| device["attributes"][attribute].clone();
                    assert_eq!(of(gpu), of(nic), "{}: pair {number}", self.name);
                    assert!(!of(nic).is_null(), "{}: pair {number}", self.name);
                    let peers = nic["attributes"]["forebay.dev/gpuPeers"]["string"].as_str();
                    let gpu =
                        gpu["attributes"]["resource.kubernetes.io/pciBusID"]["string"].as_str();
                    let near = peers
                        .zip(gpu)
                        .is_some_and(|(peers, gpu)| peers.split(',').any(|p| p == gpu));
                    assert!(
                        near,
                        "{}: pair {number}: {peers:?} has no {gpu:?}",
                        self.name
                    );
                }
            }
        }
    }
}

fn gpu(accelerator: &Accelerator) -> Value {
    let pci = &accelerator.pci;
    let at = pci.address.to_string();
    json!({
        "name": format!("gpu-{}", at.replace([':', '.'], "-")),
        "attributes": {
            "resource.kubernetes.io/pcieRoot": { "string": pci.root },
            "resource.kubernetes.io/pciBusID": { "string": at },
            "resource.kubernetes.io/numaNode": { "int": pci.numa.map_or(-1, i64::from) },
        },
    })
}

/// How many pairs share a root: of each root the lesser of its GPUs and its NICs next to them.
fn pairs_by_root(machine: &Machine) -> usize {
    let roots: BTreeSet<&str> = machine
        .accelerators
        .iter()
        .map(|a| a.pci.root.as_str())
        .collect();
    let below = |root: &str| {
        let gpus = machine
            .accelerators
            .iter()
            .filter(|a| a.pci.root == root)
            .count();
        let nics = machine
            .nics
            .iter()
            .filter_map(|nic| nic.pci.as_ref().filter(|_| nic.rdma.is_some()));
        gpus.min(nics.filter(|pci| pci.root == root).count())
    };
    roots.into_iter().map(below).sum()
}

fn cases(machine: &Described) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut one = Case::new(machine, "one", Expected::Devices(1));
    let devices: usize = one
        .nics
        .iter()
        .filter_map(|spec| spec["devices"].as_array())
        .map(Vec::len)
        .sum();
    assert!(devices > 0, "{} has no NIC for pods", machine.name);
    one.ask(
        "nic",
        "nic",
        Some(1),
        "device.attributes['forebay.dev'].speed > 0",
    );
    cases.push(one);
    let mut all = Case::new(machine, "all", Expected::Devices(devices));
    all.ask("nic", "nics", None, "");
    cases.push(all);
    let root = "resource.kubernetes.io/pcieRoot";
    let rdma = "device.attributes['dra.net'].rdma";
    let pairs = pairs_by_root(&machine.machine).min(PAIRS_MAX);
    let is_c2c = |a: &Accelerator| a.attachment == Attachment::C2c;
    if machine.machine.accelerators.iter().any(is_c2c) {
        assert_eq!(
            pairs, 0,
            "{}: nothing shares a root behind C2C",
            machine.name
        );
        let none = Case::new(machine, "root", Expected::None);
        cases.push(none.pairs(1, root, rdma));
        let numa = "resource.kubernetes.io/numaNode";
        let near = "device.attributes['forebay.dev'].gpuDistance == 'c2c' && device.attributes['dra.net'].rdma";
        let gpus = machine.machine.accelerators.len().min(PAIRS_MAX);
        let c2c = Case::new(machine, "c2c", Expected::Pairs(gpus, numa));
        cases.push(c2c.pairs(gpus, numa, near));
    } else if pairs > 0 {
        let case = Case::new(machine, "root", Expected::Pairs(pairs, root));
        cases.push(case.pairs(pairs, root, rdma));
    }
    cases
}

/// Takes what is in no namespace away with the test.
struct Cleanup(&'static Cluster);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let label = "forebay.dev/test=allocation";
        self.0.kubectl(&[
            "delete",
            "resourceslices,deviceclasses",
            "-l",
            label,
            "--wait=false",
        ]);
    }
}

#[test]
fn the_scheduler_allocates_from_the_slices_of_every_described_machine() {
    let cluster = match Cluster::find() {
        Ok(cluster) => cluster,
        Err(reason) => return skip("allocation", &reason),
    };
    let namespace = cluster.namespace("allocation");
    let _cleanup = Cleanup(cluster);
    let machines = described();
    assert!(machines.len() >= 10, "{} machines", machines.len());
    let cases: Vec<Case> = machines.iter().flat_map(cases).collect();
    let kinds = |what: &str| {
        cases
            .iter()
            .filter(|case| case.name.ends_with(what))
            .count()
    };
    assert!(
        kinds("-root") >= 5 && kinds("-c2c") == 2,
        "pairs are asked for"
    );
    let class = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass",
        "metadata": {
            "name": "allocation.forebay.test", "labels": { "forebay.dev/test": "allocation" },
        },
        "spec": {},
    });
    let mut objects = vec![class];
    objects.extend(cases.iter().flat_map(Case::objects));
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    cluster.apply(&namespace.name, &list.to_string());
    for case in &cases {
        let wanted = if matches!(case.expected, Expected::None) {
            "False"
        } else {
            "True"
        };
        wait_for(&format!("{} to be scheduled: {wanted}", case.name), || {
            let pod = cluster.get("pod", &namespace.name, &case.name);
            let conditions = pod["status"]["conditions"].as_array()?;
            let scheduled = conditions.iter().find(|c| c["type"] == "PodScheduled")?;
            (scheduled["status"] == wanted).then_some(())
        });
        case.check(&cluster.get("resourceclaim", &namespace.name, &case.name));
    }
}
