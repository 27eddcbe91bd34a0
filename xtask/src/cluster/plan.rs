//! What a bed consists of: names, folders and addresses, worked out from its shape alone.
//!
//! Nothing here looks at the machine. Two beds never share an address, because each holds a slot
//! (`state` gives them out) and every range below is cut by slot, then by cluster, then by node.
//!
//! | range           | cut into                | used for                                   |
//! |-----------------|-------------------------|--------------------------------------------|
//! | 10.200.0.0/21   | a /24 per slot          | links: host - fabric, fabric - clusters    |
//! | 10.201.0.0/19   | a /24 per cluster       | nodes; `.1` is the API server              |
//! | 10.208.0.0/13   | a /18 per cluster       | pods; a /24 of it per node                 |
//! | 10.216.0.0/15   | a /20 per cluster       | cluster addresses of Services              |
//! | 10.218.0.0/19   | a /24 per cluster       | addresses of Services of type LoadBalancer |

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Beds that can exist at once on one machine: the address ranges are cut for that many.
pub(super) const SLOTS: u8 = 8;

/// Clusters in one bed: as above.
pub(super) const CLUSTERS_MAX: u8 = 4;

/// Nodes with a kubelet in one cluster. A node takes about 0.2 GiB; this is far above what the
/// machines that this is for can hold, and within the /18 of pod addresses.
pub(super) const NODES_MAX: u16 = 32;

/// Fake nodes in one cluster. They cost a lease renewal each 10 s.
pub(super) const FAKE_NODES_MAX: u16 = 500;

/// The port of the API server.
pub(super) const API_PORT: u16 = 6443;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) clusters: u8,
    /// Of each cluster.
    pub(super) nodes: u16,
    pub(super) kind: Nodes,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Nodes {
    /// An object in the API that is kept Ready, and nothing that runs.
    Fake,
    /// containerd, kubelet and kube-proxy in namespaces of their own.
    Real,
}

/// A bed with its place on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bed {
    pub(super) name: String,
    pub(super) slot: u8,
    pub(super) shape: Shape,
    /// Everything that the bed writes is below it.
    pub(super) dir: PathBuf,
}

/// One cluster of a bed.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    /// `c1`
    pub(super) name: String,
    pub(super) netns: String,
    pub(super) dir: PathBuf,
    /// Its end of the link to the fabric, and the fabric's end.
    pub(super) uplink: Ipv4Addr,
    pub(super) fabric: Ipv4Addr,
    /// Where the API server listens; the gateway of the nodes.
    pub(super) api: Ipv4Addr,
    pub(super) node_net: Net,
    pub(super) pod_net: Net,
    pub(super) service_net: Net,
    pub(super) balancer_net: Net,
    pub(super) nodes: Vec<Node>,
    pub(super) fake_nodes: u16,
}

/// One node with a kubelet.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// `c1-n1`, also the name of the object in the API.
    pub(super) name: String,
    pub(super) netns: String,
    pub(super) dir: PathBuf,
    pub(super) address: Ipv4Addr,
    pub(super) pod_net: Net,
    /// The cluster's end of its link, as an interface name.
    pub(super) port: String,
}

/// An address range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Net {
    base: Ipv4Addr,
    prefix: u8,
}

impl Net {
    const fn new(base: Ipv4Addr, prefix: u8) -> Self {
        Self { base, prefix }
    }

    /// The `index`-th part of that size.
    fn part(self, prefix: u8, index: u32) -> Self {
        let base = u32::from(self.base) + (index << (32 - prefix));
        Self::new(Ipv4Addr::from(base), prefix)
    }

    /// The `index`-th address, counted from the base.
    pub(super) fn address(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + index)
    }

    /// Whether the ranges have an address in common.
    pub(super) fn overlaps(self, other: Self) -> bool {
        let shift = 32 - u32::from(self.prefix.min(other.prefix));
        let network = |net: Self| u64::from(u32::from(net.base)) >> shift;
        network(self) == network(other)
    }

    /// `10.0.0.0/8`, or one address, as in a routing table.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (base, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
        Some(Self::new(base.parse().ok()?, prefix))
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

const LINKS: Net = Net::new(Ipv4Addr::new(10, 200, 0, 0), 21);
const NODES: Net = Net::new(Ipv4Addr::new(10, 201, 0, 0), 19);
const PODS: Net = Net::new(Ipv4Addr::new(10, 208, 0, 0), 13);
const SERVICES: Net = Net::new(Ipv4Addr::new(10, 216, 0, 0), 15);
const BALANCERS: Net = Net::new(Ipv4Addr::new(10, 218, 0, 0), 19);

impl Shape {
    /// Refuses what does not fit the address plan.
    pub(super) fn check(self) -> Result<()> {
        let nodes_max = match self.kind {
            Nodes::Fake => FAKE_NODES_MAX,
            Nodes::Real => NODES_MAX,
        };
        if self.clusters == 0 || self.clusters > CLUSTERS_MAX {
            bail!(
                "--clusters {}: 1 to {CLUSTERS_MAX} are possible",
                self.clusters
            );
        }
        if self.nodes > nodes_max {
            bail!("--nodes {}: at most {nodes_max} are possible", self.nodes);
        }
        Ok(())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Nodes::Fake => "fake ",
            Nodes::Real => "",
        };
        write!(
            f,
            "{} cluster(s) with {} {kind}node(s) each",
            self.clusters, self.nodes
        )
    }
}

/// Whether a word can be the name of a bed: it becomes part of interface and folder names.
pub(super) fn check_bed_name(name: &str) -> Result<()> {
    const LENGTH_MAX: usize = 16;
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.is_empty() || name.len() > LENGTH_MAX || !name.chars().all(fits) {
        bail!("bed name {name:?}: 1 to {LENGTH_MAX} lower-case letters and digits are possible");
    }
    Ok(())
}

impl Bed {
    /// The network namespace that joins the clusters and the host.
    pub(super) fn netns(&self) -> String {
        format!("forebay-{}", self.name)
    }

    /// The one interface that the host gets.
    pub(super) fn host_link(&self) -> String {
        format!("forebay{}", self.slot)
    }

    fn links(&self) -> Net {
        LINKS.part(24, self.slot.into())
    }

    /// The host's end of its link.
    pub(super) fn host_address(&self) -> Ipv4Addr {
        self.links().address(2)
    }

    /// The fabric's end of it: the host's way to everything in the bed.
    pub(super) fn fabric_address(&self) -> Ipv4Addr {
        self.links().address(1)
    }

    /// Every range of this bed's slot, whether a cluster uses it or not.
    pub(super) fn ranges(&self) -> Vec<Net> {
        let mut ranges = vec![self.links()];
        for number in 0..CLUSTERS_MAX {
            ranges.extend(self.cluster(number).routed());
        }
        ranges
    }

    pub(super) fn clusters(&self) -> Vec<Cluster> {
        (0..self.shape.clusters)
            .map(|number| self.cluster(number))
            .collect()
    }

    fn cluster(&self, number: u8) -> Cluster {
        let index = u32::from(self.slot) * u32::from(CLUSTERS_MAX) + u32::from(number);
        let name = format!("c{}", number + 1);
        let dir = self.dir.join(&name);
        let node_net = NODES.part(24, index);
        let pod_net = PODS.part(18, index);
        let link = self.links().part(30, 4 + u32::from(number));
        let real_nodes = match self.shape.kind {
            Nodes::Real => self.shape.nodes,
            Nodes::Fake => 0,
        };
        Cluster {
            netns: format!("{}-{name}", self.netns()),
            uplink: link.address(2),
            fabric: link.address(1),
            api: node_net.address(1),
            node_net,
            pod_net,
            service_net: SERVICES.part(20, index),
            balancer_net: BALANCERS.part(24, index),
            nodes: (1..=real_nodes)
                .map(|number| Node {
                    name: format!("{name}-n{number}"),
                    netns: format!("{}-{name}-n{number}", self.netns()),
                    dir: dir.join(format!("n{number}")),
                    address: node_net.address(10 + u32::from(number)),
                    pod_net: pod_net.part(24, number.into()),
                    port: format!("n{number}"),
                })
                .collect(),
            fake_nodes: self.shape.nodes - real_nodes,
            name,
            dir,
        }
    }
}

impl Cluster {
    /// The ranges that others reach through this cluster's uplink.
    pub(super) fn routed(&self) -> [Net; 4] {
        [
            self.node_net,
            self.pod_net,
            self.service_net,
            self.balancer_net,
        ]
    }

    /// The cluster address of the API server: the first of the range, by Kubernetes' own rule.
    pub(super) fn api_service(&self) -> Ipv4Addr {
        self.service_net.address(1)
    }

    pub(super) fn api_url(&self) -> String {
        format!("https://{}:{API_PORT}", self.api)
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub(super) fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Node {
    pub(super) fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }
}

/// The control group of a node's programs and pods, below that of the bed.
pub(super) fn node_group(cluster: &Cluster, node: &Node) -> String {
    format!("{}/{}", cluster.name, node.name)
}

/// The log of one program.
pub(super) fn log_file(dir: &Path, program: &str) -> PathBuf {
    dir.join(format!("{program}.log"))
}

#[cfg(test)]
impl Bed {
    /// One cluster of one node, for the tests of what is made of a plan.
    pub(super) fn small(kind: Nodes) -> Self {
        let shape = Shape {
            clusters: 1,
            nodes: 1,
            kind,
        };
        Self {
            name: "t".to_owned(),
            slot: 0,
            shape,
            dir: PathBuf::from("/bed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bed(slot: u8, kind: Nodes) -> Bed {
        let shape = Shape {
            clusters: CLUSTERS_MAX,
            nodes: NODES_MAX,
            kind,
        };
        Bed {
            name: format!("b{slot}"),
            slot,
            shape,
            dir: PathBuf::from("/bed"),
        }
    }

    #[test]
    fn the_first_cluster_has_the_addresses_of_the_documentation() {
        let bed = bed(0, Nodes::Real);
        let cluster = &bed.clusters()[0];
        let node = &cluster.nodes[0];
        let said = [
            bed.host_address().to_string(),
            cluster.uplink.to_string(),
            cluster.api_url(),
            cluster.pod_net.to_string(),
            cluster.service_net.to_string(),
            cluster.api_service().to_string(),
            cluster.balancer_net.to_string(),
            node.address.to_string(),
            node.pod_net.to_string(),
        ];
        assert_eq!(
            said,
            [
                "10.200.0.2",
                "10.200.0.18",
                "https://10.201.0.1:6443",
                "10.208.0.0/18",
                "10.216.0.0/20",
                "10.216.0.1",
                "10.218.0.0/24",
                "10.201.0.11",
                "10.208.1.0/24",
            ]
        );
    }

    #[test]
    fn no_two_ranges_of_any_two_beds_overlap() {
        let ranges: Vec<Net> = (0..SLOTS)
            .flat_map(|slot| bed(slot, Nodes::Fake).ranges())
            .collect();
        for (index, one) in ranges.iter().enumerate() {
            for other in &ranges[index + 1..] {
                assert!(!one.overlaps(*other), "{one} and {other}");
            }
        }
    }

    #[test]
    fn every_node_lies_in_its_clusters_ranges() {
        for slot in 0..SLOTS {
            for cluster in bed(slot, Nodes::Real).clusters() {
                for node in &cluster.nodes {
                    assert!(cluster.pod_net.overlaps(node.pod_net), "{}", node.name);
                    assert!(
                        cluster.node_net.overlaps(Net::new(node.address, 32)),
                        "{}",
                        node.name
                    );
                }
            }
        }
    }

    #[test]
    fn interface_names_fit_the_kernels_fifteen_bytes() {
        let bed = bed(SLOTS - 1, Nodes::Real);
        let mut names = vec![bed.host_link()];
        names.extend(
            bed.clusters()
                .into_iter()
                .flat_map(|c| c.nodes)
                .map(|n| n.port),
        );
        assert!(names.iter().all(|name| name.len() <= 15), "{names:?}");
    }

    #[test]
    fn ranges_overlap_when_one_holds_the_other() {
        let net = |text| Net::parse(text).expect("a range");
        assert!(net("10.200.0.0/24").overlaps(net("10.0.0.0/8")));
        assert!(net("0.0.0.0/0").overlaps(net("10.0.0.0/8")));
        assert!(net("10.200.0.7").overlaps(net("10.200.0.0/24")));
        assert!(!net("10.200.1.0/24").overlaps(net("10.200.0.0/24")));
        assert_eq!(Net::parse("10.0.0.0/33"), None);
    }

    #[test]
    fn shapes_beyond_the_plan_are_refused() {
        let shape = |clusters, nodes| Shape {
            clusters,
            nodes,
            kind: Nodes::Real,
        };
        assert!(shape(1, 0).check().is_ok());
        assert!(shape(0, 1).check().is_err());
        assert!(shape(CLUSTERS_MAX + 1, 1).check().is_err());
        assert!(shape(1, NODES_MAX + 1).check().is_err());
    }
}
