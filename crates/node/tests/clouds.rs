//! What clouds say, from recorded answers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Mutex;

use forebay_fabric::cloud::CloudFacts;
use forebay_fabric::machine::{Netdev, Nic, Sriov};
use forebay_node::cloud::{Answer, Metadata, NoAnswer, Provider, Question, discover};

/// Answers by `METHOD path`; 404 for all else.
#[derive(Default)]
struct Recorded {
    answers: BTreeMap<&'static str, &'static str>,
    asked: Mutex<Vec<Question>>,
    mute: bool,
}

impl Metadata for Recorded {
    async fn ask(&self, question: Question) -> Result<Answer, NoAnswer> {
        if self.mute {
            return Err(NoAnswer("connection refused".to_owned()));
        }
        let answer = self
            .answers
            .get(&*format!("{} {}", question.method, question.path));
        self.asked.lock().unwrap().push(question);
        let (status, body) = match answer {
            Some(&"forbidden") => (403, ""),
            Some(&body) => (200, body),
            None => (404, "not found"),
        };
        Ok(Answer {
            status,
            body: body.to_owned(),
        })
    }
}

fn nics() -> Vec<Nic> {
    let netdev = Netdev {
        name: "eth1".to_owned(),
        kind: "device".to_owned(),
        mac: "02:94:bf:87:a6:53".to_owned(),
        mtu: 1500,
        addresses: Vec::new(),
        admin_up: true,
        state: "up".to_owned(),
        speed_mbps: None,
        alias: String::new(),
    };
    vec![Nic {
        pci: None,
        sriov: Sriov::None,
        netdev: Some(netdev),
        rdma: None,
    }]
}

fn ask(provider: Provider, service: &Recorded) -> Result<CloudFacts, NoAnswer> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(discover(provider, service, &nics()))
}

/// The facts as lines: place, what is said of the node, of the NIC, problems.
fn render(facts: &CloudFacts) -> String {
    let place = &facts.place;
    let mut lines = Vec::new();
    for (name, value) in [
        ("nvlink", &place.nvlink_domain),
        ("block", &place.block),
        ("sub-block", &place.sub_block),
        ("host", &place.host),
    ] {
        if !value.is_empty() {
            lines.push(format!("{name} {value}"));
        }
    }
    lines.extend(
        facts
            .node
            .iter()
            .map(|(name, value)| format!("{name}={value}")),
    );
    let of_nic = facts.of_mac("02-94-BF-87-A6-53").into_iter().flatten();
    lines.extend(of_nic.map(|(name, value)| format!("nic {name}={value}")));
    lines.extend(
        facts
            .problems
            .iter()
            .map(|problem| format!("problem {}", problem.path)),
    );
    lines.join("\n")
}

fn check(
    provider: Provider,
    answers: &[(&'static str, &'static str)],
    expected: &[&str],
) -> Recorded {
    let service = Recorded {
        answers: answers.iter().copied().collect(),
        ..Recorded::default()
    };
    let facts = ask(provider, &service).unwrap();
    assert_eq!(render(&facts), expected.join("\n"));
    service
}

const GCE_MACHINE: &str = "GET /computeMetadata/v1/instance/machine-type";
const GCE_NETS: &str = "GET /computeMetadata/v1/instance/network-interfaces/?recursive=true";
const GCE_HOST: &str = "GET /computeMetadata/v1/instance/attributes/physical_host";

#[test]
fn google_tells_of_networks_and_of_the_place() {
    let nets = r#"[{"mac": "02:94:bf:87:a6:53", "mtu": 8896, "accessConfigs": [],
                    "network": "projects/628944397724/networks/rdma-0"}]"#;
    let service = check(
        Provider::Gce,
        &[
            (
                GCE_MACHINE,
                "projects/628944397724/machineTypes/a4x-highgpu-4g",
            ),
            (GCE_NETS, nets),
            (GCE_HOST, "/5be1270f/9a44c0d7/e01b6f35\n"),
        ],
        &[
            "nvlink 9a44c0d7",
            "block 5be1270f",
            "sub-block 9a44c0d7",
            "host e01b6f35",
            "gce.dra.net/machineType=\"a4x-highgpu-4g\"",
            "nic gce.dra.net/networkName=\"rdma-0\"",
            "nic gce.dra.net/networkProjectNumber=\"628944397724\"",
        ],
    );
    let flavor = Some(("Metadata-Flavor", "Google".to_owned()));
    assert!(
        service
            .asked
            .lock()
            .unwrap()
            .iter()
            .all(|asked| asked.header == flavor)
    );
}

#[test]
fn what_google_does_not_tell_or_garbles_costs_only_that() {
    check(
        Provider::Gce,
        &[
            (GCE_MACHINE, "x/machineTypes/n2-standard-8"),
            (GCE_NETS, "[{]"),
            (GCE_HOST, "/a/b"),
        ],
        &[
            "gce.dra.net/machineType=\"n2-standard-8\"",
            "problem network-interfaces",
            "problem attributes/physical_host",
        ],
    );
}

#[test]
fn amazon_is_asked_with_a_token() {
    let service = check(
        Provider::Aws,
        &[
            ("PUT /latest/api/token", "AQAEsecret"),
            (
                "GET /latest/dynamic/instance-identity/document",
                r#"{"instanceType": "p5.48xlarge", "availabilityZone": "us-east-1d", "region": "us-east-1"}"#,
            ),
            ("GET /latest/meta-data/placement/group-name", "training"),
            (
                "GET /latest/meta-data/network/interfaces/macs/02:94:bf:87:a6:53/subnet-id",
                "subnet-0a1b2c3d",
            ),
            (
                "GET /latest/meta-data/network/interfaces/macs/02:94:bf:87:a6:53/network-card",
                "1",
            ),
        ],
        &[
            "aws.forebay.dev/availabilityZone=\"us-east-1d\"",
            "aws.forebay.dev/instanceType=\"p5.48xlarge\"",
            "aws.forebay.dev/placementGroup=\"training\"",
            "nic aws.forebay.dev/networkCard=1",
            "nic aws.forebay.dev/subnet=\"subnet-0a1b2c3d\"",
        ],
    );
    let asked = service.asked.lock().unwrap();
    let token = Some(("X-aws-ec2-metadata-token", "AQAEsecret".to_owned()));
    assert!(asked[1..].iter().all(|question| question.header == token));
}

#[test]
fn azure_tells_of_groups_and_subnets() {
    check(
        Provider::Azure,
        &[
            (
                "GET /metadata/instance/compute?api-version=2025-11-11&format=json",
                r#"{"vmSize": "Standard_ND128isr_GB300_v6", "placementGroupId": "",
                    "interconnectGroupId": "ig-7", "interconnectSubgroupId": "ig-7-2"}"#,
            ),
            (
                "GET /metadata/instance/network?api-version=2025-11-11&format=json",
                r#"{"interface": [{"macAddress": "0294BF87A653", "ipv4": {
                    "ipAddress": [{"privateIpAddress": "10.9.0.4", "publicIpAddress": ""}],
                    "subnet": [{"address": "10.9.0.0", "prefix": "24"}]}, "ipv6": {"ipAddress": []}}]}"#,
            ),
        ],
        &[
            "block ig-7",
            "sub-block ig-7-2",
            "azure.dra.net/interconnectGroupId=\"ig-7\"",
            "azure.dra.net/interconnectSubgroupId=\"ig-7-2\"",
            "azure.dra.net/vmSize=\"Standard_ND128isr_GB300_v6\"",
            "nic azure.dra.net/subnet=\"10.9.0.0/24\"",
        ],
    );
}

#[test]
fn oracle_tells_of_blocks_and_of_the_memory_fabric() {
    check(
        Provider::Oci,
        &[(
            "GET /opc/v2/host/",
            r#"{"networkBlockId": "x", "rackId": "rack-9", "rdmaTopologyData": {
                "customerGpuMemoryFabric": "ocid1.computegpumemoryfabric.oc1.iad.fabric",
                "customerHPCIslandId": "ocid1.hpcisland.oc1.iad.island",
                "customerHostId": "ocid1.computebaremetalhost.oc1.iad.host",
                "customerLocalBlock": "ocid1.computelocalblock.oc1.iad.local",
                "customerNetworkBlock": "ocid1.computenetworkblock.oc1.iad.network"}}"#,
        )],
        &[
            "nvlink fabric",
            "block network",
            "sub-block local",
            "host host",
            "oke.dra.net/gpuMemoryFabricId=\"fabric\"",
            "oke.dra.net/hpcIslandId=\"island\"",
            "oke.dra.net/localBlockId=\"local\"",
            "oke.dra.net/networkBlockId=\"network\"",
            "oke.dra.net/rackId=\"rack-9\"",
        ],
    );
    // A shape without RDMA, or a tenancy without topology data.
    check(
        Provider::Oci,
        &[("GET /opc/v2/host/", r#"{"rackId": "rack-9"}"#)],
        &["oke.dra.net/rackId=\"rack-9\""],
    );
}

const HEALTH: &str = "GET /health";
const ATTRIBUTES: &str = "POST /GetDeviceAttributes";

#[test]
fn a_webhook_may_say_anything_that_is_an_attribute() {
    let said = r#"{"dra.net/webhook_attr": {"string": "python"}, "acme.com/vlan": {"int": 7},
                   "acme.com/fast": {"bool": true}, "forebay.dev/nvlinkDomain": {"string": "d1"},
                   "no domain": {"string": "x"}}"#;
    let service = check(
        Provider::Webhook,
        &[(HEALTH, r#"{"cloudProvider": true}"#), (ATTRIBUTES, said)],
        &[
            "nvlink d1",
            "nic acme.com/fast=true",
            "nic acme.com/vlan=7",
            "nic dra.net/webhook_attr=\"python\"",
            "problem GetDeviceAttributes of 02:94:bf:87:a6:53",
        ],
    );
    let asked = service.asked.lock().unwrap();
    assert!(
        asked[1].body.contains(r#""mac":"02:94:bf:87:a6:53""#),
        "{}",
        asked[1].body
    );
}

#[test]
fn a_service_that_does_not_answer_or_is_not_one_is_an_error() {
    let mute = Recorded {
        mute: true,
        ..Recorded::default()
    };
    for provider in [Provider::Gce, Provider::Aws, Provider::Azure, Provider::Oci] {
        assert!(ask(provider, &mute).is_err(), "{provider:?}");
    }
    let other = |answers: &[(&'static str, &'static str)]| Recorded {
        answers: answers.iter().copied().collect(),
        ..Recorded::default()
    };
    let profiles = other(&[(HEALTH, r#"{"profileProvider": true}"#)]);
    assert!(ask(Provider::Webhook, &profiles).is_err());
    assert!(ask(Provider::Webhook, &other(&[])).is_err());
    assert!(
        ask(
            Provider::Aws,
            &other(&[("PUT /latest/api/token", "forbidden")])
        )
        .is_err()
    );
}

#[test]
fn a_refusal_is_told_and_costs_only_what_was_asked() {
    check(
        Provider::Gce,
        &[(GCE_MACHINE, "a/a4-highgpu-8g"), (GCE_HOST, "forbidden")],
        &[
            "gce.dra.net/machineType=\"a4-highgpu-8g\"",
            "problem /computeMetadata/v1/instance/attributes/physical_host",
        ],
    );
}
