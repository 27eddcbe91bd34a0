//! One function per cloud: recorded answers in, [`CloudFacts`] out.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{CloudFacts, Place};
use crate::publish::{Attribute, QualifiedName};

/// Reads one answer; what is wrong with it becomes a problem.
fn read<T: DeserializeOwned>(
    facts: &mut CloudFacts,
    path: &str,
    answer: Option<&str>,
) -> Option<T> {
    match serde_json::from_str(answer?) {
        Ok(value) => Some(value),
        Err(error) => {
            facts.problem(
                path,
                format!("the answer is not what was expected: {error}"),
            );
            None
        }
    }
}

/// The part after the last slash: `projects/1/zones/us-central1-a` to `us-central1-a`.
fn last(path: &str) -> &str {
    path.trim().rsplit('/').next().unwrap_or_default()
}

/// Answers of Google Compute Engine, below `/computeMetadata/v1/instance/`; none for one that was not
/// given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gce<'a> {
    /// `machine-type`.
    pub machine_type: Option<&'a str>,
    /// `network-interfaces/?recursive=true`.
    pub interfaces: Option<&'a str>,
    /// `attributes/physical_host`: `/block/sub-block/host`.
    pub physical_host: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GceInterface {
    mac: String,
    #[serde(default)]
    network: String,
}

/// Google Compute Engine.
pub fn gce(answers: Gce<'_>) -> CloudFacts {
    let mut facts = CloudFacts::default();
    facts.say(
        "gce.dra.net",
        "machineType",
        last(answers.machine_type.unwrap_or_default()),
    );
    let interfaces = read(&mut facts, "network-interfaces", answers.interfaces);
    for interface in interfaces.unwrap_or_else(Vec::<GceInterface>::new) {
        // projects/<number>/networks/<name>
        let parts: Vec<&str> = interface.network.split('/').collect();
        if let ["projects", project, "networks", name] = parts[..] {
            let value = |text| Attribute::text(text);
            facts.say_of(&interface.mac, "gce.dra.net", "networkName", value(name));
            facts.say_of(
                &interface.mac,
                "gce.dra.net",
                "networkProjectNumber",
                value(project),
            );
        }
    }
    let Some(host) = answers
        .physical_host
        .map(str::trim)
        .filter(|h| !h.is_empty())
    else {
        return facts;
    };
    match host.trim_start_matches('/').split('/').collect::<Vec<_>>()[..] {
        [block, sub_block, host] => {
            facts.place = Place {
                block: block.to_owned(),
                sub_block: sub_block.to_owned(),
                host: host.to_owned(),
                nvlink_domain: String::new(),
            };
        }
        _ => facts.problem(
            "attributes/physical_host",
            format!("`{host}` has not the three parts block, sub-block and host"),
        ),
    }
    // A sub-block of A4X and A4X Max is one NVLink domain of up to 18 machines.
    let machine = last(answers.machine_type.unwrap_or_default());
    if machine.starts_with("a4x-") && !facts.place.sub_block.is_empty() {
        facts.place.nvlink_domain = facts.place.sub_block.clone();
    }
    facts
}

/// Answers of EC2 for one interface, below `network/interfaces/macs/<mac>/`.
#[derive(Clone, Copy, Debug, Default)]
pub struct AwsNetwork<'a> {
    /// Its hardware address.
    pub mac: &'a str,
    /// `subnet-id`.
    pub subnet: Option<&'a str>,
    /// `network-card`: index of the network card; machines with one do not answer.
    pub network_card: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AwsIdentity {
    instance_type: String,
    #[serde(default)]
    availability_zone: String,
}

/// Amazon EC2: `identity` is the answer of `/latest/dynamic/instance-identity/document`, `group` that of
/// `/latest/meta-data/placement/group-name`. The service does not tell the place in the network; EKS labels
/// nodes with it ([`Place::from_labels`]).
pub fn aws(
    identity: Option<&str>,
    group: Option<&str>,
    interfaces: &[AwsNetwork<'_>],
) -> CloudFacts {
    const DOMAIN: &str = "aws.forebay.dev";
    let mut facts = CloudFacts::default();
    let path = "dynamic/instance-identity/document";
    if let Some(identity) = read::<AwsIdentity>(&mut facts, path, identity) {
        facts.say(DOMAIN, "instanceType", &identity.instance_type);
        facts.say(DOMAIN, "availabilityZone", &identity.availability_zone);
    }
    facts.say(DOMAIN, "placementGroup", group.unwrap_or_default().trim());
    for interface in interfaces {
        if let Some(subnet) = interface.subnet {
            facts.say_of(
                interface.mac,
                DOMAIN,
                "subnet",
                Attribute::text(subnet.trim()),
            );
        }
        match interface
            .network_card
            .map(|card| card.trim().parse::<i64>())
        {
            Some(Ok(card)) => {
                facts.say_of(interface.mac, DOMAIN, "networkCard", Attribute::Int(card));
            }
            Some(Err(error)) => {
                let path = format!("network/interfaces/macs/{}/network-card", interface.mac);
                facts.problem(&path, format!("is no number: {error}"));
            }
            None => {}
        }
    }
    facts
}

/// Answers of Azure, below `/metadata/instance/`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Azure<'a> {
    /// `compute`.
    pub compute: Option<&'a str>,
    /// `network`.
    pub network: Option<&'a str>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AzureCompute {
    placement_group_id: String,
    vm_size: String,
    interconnect_group_id: String,
    interconnect_subgroup_id: String,
}

#[derive(Deserialize)]
struct AzureNetwork {
    #[serde(default)]
    interface: Vec<AzureInterface>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AzureInterface {
    mac_address: String,
    #[serde(default)]
    ipv4: AzureIpv4,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AzureIpv4 {
    subnet: Vec<AzureSubnet>,
}

#[derive(Deserialize)]
struct AzureSubnet {
    address: String,
    prefix: String,
}

/// Microsoft Azure.
pub fn azure(answers: Azure<'_>) -> CloudFacts {
    const DOMAIN: &str = "azure.dra.net";
    let mut facts = CloudFacts::default();
    if let Some(compute) = read::<AzureCompute>(&mut facts, "compute", answers.compute) {
        facts.say(DOMAIN, "vmSize", &compute.vm_size);
        facts.say(DOMAIN, "placementGroupId", &compute.placement_group_id);
        facts.say(
            DOMAIN,
            "interconnectGroupId",
            &compute.interconnect_group_id,
        );
        facts.say(
            DOMAIN,
            "interconnectSubgroupId",
            &compute.interconnect_subgroup_id,
        );
        facts.place.block = compute.interconnect_group_id;
        facts.place.sub_block = compute.interconnect_subgroup_id;
    }
    let network = read::<AzureNetwork>(&mut facts, "network", answers.network);
    for interface in network.map(|n| n.interface).unwrap_or_default() {
        if let Some(AzureSubnet { address, prefix }) = interface.ipv4.subnet.first() {
            let value = Attribute::text(&format!("{address}/{prefix}"));
            facts.say_of(&interface.mac_address, DOMAIN, "subnet", value);
        }
    }
    facts
}

/// Answers of Oracle Cloud, below `/opc/v2/`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Oci<'a> {
    /// `host/`.
    pub host: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciHost {
    #[serde(default)]
    rack_id: String,
    /// Only where the tenancy has topology data enabled.
    rdma_topology_data: Option<OciTopology>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct OciTopology {
    #[serde(rename = "customerHPCIslandId")]
    island: String,
    #[serde(rename = "customerNetworkBlock")]
    network_block: String,
    #[serde(rename = "customerLocalBlock")]
    local_block: String,
    #[serde(rename = "customerHostId")]
    host: String,
    #[serde(rename = "customerGpuMemoryFabric")]
    memory_fabric: String,
}

/// Oracle Cloud.
pub fn oci(answers: Oci<'_>) -> CloudFacts {
    const DOMAIN: &str = "oke.dra.net";
    let mut facts = CloudFacts::default();
    let Some(host) = read::<OciHost>(&mut facts, "host", answers.host) else {
        return facts;
    };
    facts.say(DOMAIN, "rackId", &host.rack_id);
    let Some(topology) = host.rdma_topology_data else {
        return facts;
    };
    // An OCID is longer than a value may be; what follows the last dot is unique.
    let unique = |ocid: &str| {
        let tail = ocid.rsplit('.').next().unwrap_or_default();
        tail[tail.ceil_char_boundary(tail.len().saturating_sub(60))..].to_owned()
    };
    let said = [
        ("hpcIslandId", unique(&topology.island)),
        ("networkBlockId", unique(&topology.network_block)),
        ("localBlockId", unique(&topology.local_block)),
        ("gpuMemoryFabricId", unique(&topology.memory_fabric)),
    ];
    for (id, value) in &said {
        facts.say(DOMAIN, id, value);
    }
    let [_, (_, block), (_, sub_block), (_, nvlink_domain)] = said;
    facts.place = Place {
        nvlink_domain,
        block,
        sub_block,
        host: unique(&topology.host),
    };
    facts
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WebhookHealth {
    #[serde(default)]
    cloud_provider: bool,
}

/// Whether a webhook's answer to `GET /health` says that it knows of devices.
///
/// # Errors
///
/// A sentence on what is wrong with the answer.
pub fn webhook_is_provider(answer: &str) -> Result<bool, String> {
    let health: WebhookHealth = serde_json::from_str(answer)
        .map_err(|error| format!("GET /health: the answer is not what was expected: {error}"))?;
    Ok(health.cloud_provider)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum WebhookValue {
    String(String),
    Int(i64),
    Bool(bool),
    Version(String),
}

/// A webhook's answers to `POST /GetDeviceAttributes`, by the hardware address of the NIC that was asked
/// about: a map of qualified names to the attributes of a Kubernetes device (`{"string": "…"}`). Place
/// is taken from names in our domain: `forebay.dev/block` and its like.
pub fn webhook(answers: &[(&str, &str)]) -> CloudFacts {
    let mut facts = CloudFacts::default();
    for (mac, answer) in answers {
        let path = format!("GetDeviceAttributes of {mac}");
        type Said = BTreeMap<String, WebhookValue>;
        for (name, value) in read::<Said>(&mut facts, &path, Some(answer)).unwrap_or_default() {
            let value = match value {
                WebhookValue::String(text) | WebhookValue::Version(text) => Attribute::text(&text),
                WebhookValue::Int(number) => Attribute::Int(number),
                WebhookValue::Bool(value) => Attribute::Bool(value),
            };
            match (name.as_str(), &value) {
                ("forebay.dev/nvlinkDomain", Attribute::String(text)) => {
                    facts.place.nvlink_domain.clone_from(text);
                }
                ("forebay.dev/block", Attribute::String(text)) => {
                    facts.place.block.clone_from(text);
                }
                ("forebay.dev/subBlock", Attribute::String(text)) => {
                    facts.place.sub_block.clone_from(text);
                }
                ("forebay.dev/host", Attribute::String(text)) => facts.place.host.clone_from(text),
                _ => match QualifiedName::parse(&name) {
                    Ok(QualifiedName { domain, id }) => facts.say_of(mac, &domain, &id, value),
                    Err(error) => facts.problem(&path, error),
                },
            }
        }
    }
    facts
}
