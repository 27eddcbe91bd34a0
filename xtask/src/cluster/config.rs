//! What each program of a cluster is told: command lines and configuration files, as functions of
//! the plan.
//!
//! Only what differs from the programs' defaults is set. Ports are the defaults of Kubernetes, since
//! every cluster and every node has a network of its own. Files are JSON where the program
//! takes YAML: one is a subset of the other.

use super::pki;
use super::plan::{API_PORT, Cluster, Node};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The image that holds a pod's namespaces, as containerd is told.
pub(super) const PAUSE_IMAGE: &str = "bed.forebay.dev/pause:1";

/// The domain of the cluster. Nothing resolves it; kubelets write it into pods' search lists.
const DOMAIN: &str = "cluster.local";

/// What the controller manager and the scheduler may each ask of the API server. Their defaults of
/// 20 and 50 would make a rollout of some thousand fake pods take minutes.
const REQUESTS_PER_SECOND: u32 = 1000;

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn path_flag(name: &str, path: &Path) -> String {
    flag(name, path.display())
}

/// One member, on loopback, that never waits for the disk: a bed does not outlive its machine.
pub(super) fn etcd(cluster: &Cluster) -> Vec<String> {
    vec![
        path_flag("data-dir", &cluster.dir.join("etcd")),
        "--unsafe-no-fsync".to_owned(),
        "--logger=zap".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

pub(super) fn api_server(cluster: &Cluster) -> Vec<String> {
    let certificate = |file| pki::certificate(cluster, file);
    let key = |file| pki::key(cluster, file);
    vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        "--bind-address=0.0.0.0".to_owned(),
        flag("advertise-address", cluster.api),
        flag("secure-port", API_PORT),
        flag("service-cluster-ip-range", cluster.service_net),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        path_flag("client-ca-file", &certificate(pki::CA)),
        path_flag("tls-cert-file", &certificate(pki::API_SERVER)),
        path_flag("tls-private-key-file", &key(pki::API_SERVER)),
        path_flag("kubelet-certificate-authority", &certificate(pki::CA)),
        path_flag(
            "kubelet-client-certificate",
            &certificate(pki::KUBELET_CLIENT),
        ),
        path_flag("kubelet-client-key", &key(pki::KUBELET_CLIENT)),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        flag("service-account-issuer", "https://kubernetes.default.svc"),
        path_flag(
            "service-account-signing-key-file",
            &key(pki::SERVICE_ACCOUNTS),
        ),
        path_flag(
            "service-account-key-file",
            &pki::public_key(cluster, pki::SERVICE_ACCOUNTS),
        ),
        path_flag("cert-dir", &pki::dir(cluster)),
    ]
}

pub(super) fn controller_manager(cluster: &Cluster) -> Vec<String> {
    let mut flags = own_identity(cluster, pki::CONTROLLER_MANAGER);
    flags.extend([
        "--use-service-account-credentials=true".to_owned(),
        "--allocate-node-cidrs=false".to_owned(),
        flag("service-cluster-ip-range", cluster.service_net),
        path_flag("root-ca-file", &pki::certificate(cluster, pki::CA)),
        path_flag(
            "service-account-private-key-file",
            &pki::key(cluster, pki::SERVICE_ACCOUNTS),
        ),
        path_flag(
            "cluster-signing-cert-file",
            &pki::certificate(cluster, pki::CA),
        ),
        path_flag("cluster-signing-key-file", &pki::key(cluster, pki::CA)),
    ]);
    flags
}

pub(super) fn scheduler(cluster: &Cluster) -> Vec<String> {
    own_identity(cluster, pki::SCHEDULER)
}

/// What the controller manager and the scheduler have in common.
fn own_identity(cluster: &Cluster, who: &str) -> Vec<String> {
    let kubeconfig = kubeconfig_file(cluster, who);
    vec![
        path_flag("kubeconfig", &kubeconfig),
        path_flag("authentication-kubeconfig", &kubeconfig),
        path_flag("authorization-kubeconfig", &kubeconfig),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
        flag("kube-api-qps", REQUESTS_PER_SECOND),
        flag("kube-api-burst", REQUESTS_PER_SECOND),
        path_flag("cert-dir", &pki::dir(cluster)),
    ]
}

/// The program that plays the cloud, and the kubelets of fake nodes.
pub(super) fn caretaker(cluster: &Cluster) -> Vec<String> {
    let mut flags = vec![
        path_flag("kubeconfig", &cluster.kubeconfig()),
        flag("load-balancer-cidr", cluster.balancer_net),
    ];
    if cluster.fake_nodes > 0 {
        flags.extend([
            flag("fake-nodes", cluster.fake_nodes),
            flag("fake-node-prefix", format!("{}-n", cluster.name)),
            flag("fake-pod-cidr", cluster.pod_net),
        ]);
    }
    flags
}

/// The proxy of a node, and the one beside the API server by which a cluster's addresses are
/// reached from outside of it.
pub(super) fn proxy(cluster: &Cluster, hostname: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": { "kubeconfig": kubeconfig_file(cluster, pki::PROXY) },
        "clusterCIDR": cluster.pod_net.to_string(),
        "hostnameOverride": hostname,
        // The connection table is the machine's: its limits are not a bed's to set.
        "conntrack": {
            "maxPerCore": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    })
}

pub(super) fn kubelet_flags(cluster: &Cluster, node: &Node) -> Vec<String> {
    vec![
        path_flag("config", &node.dir.join("kubelet.json")),
        path_flag("kubeconfig", &kubeconfig_file(cluster, &node.name)),
        flag("hostname-override", &node.name),
        flag("node-ip", node.address),
    ]
}

pub(super) fn kubelet(cluster: &Cluster, node: &Node) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address.to_string(),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki::certificate(cluster, pki::CA) },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": pki::certificate(cluster, &node.name),
        "tlsPrivateKeyFile": pki::key(cluster, &node.name),
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "cgroupDriver": "cgroupfs",
        // The default refuses to start on a machine with cgroup v1.
        "failCgroupV1": false,
        "clusterDomain": DOMAIN,
        "resolvConf": "",
        "makeIPTablesUtilChains": false,
        // The disk and the memory are the machine's, shared by all nodes: no node may think that
        // throwing out pods or images would help.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
        },
        // The machine's kernel settings stay as they are.
        "protectKernelDefaults": false,
        // Changes of a pod are seen sooner than with the defaults of 1 min and 10 s: tests wait.
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "serializeImagePulls": false,
    })
}

/// Where containerd listens in every node, each of which has a `/run` of its own.
pub(super) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// containerd's file, version 3, with NRI and CDI on.
pub(super) fn containerd(node: &Node, bin: &Path, runc: &Path) -> String {
    let dir = node.dir.display();
    let bin = bin.display();
    let runc = runc.display();
    format!(
        r#"version = 3
root = "{dir}/containerd"
state = "/run/containerd"

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
enable_cdi = true
# Pods are not spared when the machine runs out of memory at the cost of what is not of the bed.
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{bin}"]
conf_dir = "{dir}/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{bin}/containerd-shim-runc-v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false

[plugins."io.containerd.nri.v1.nri"]
disable = false
socket_path = "/run/nri/nri.sock"
"#
    )
}

/// The pod network of a node: one routed link per pod and no masquerading, so that a pod's address
/// is the same seen from everywhere. On a bridge the answers between two pods of one node would
/// pass kube-proxy's translation by, unless the kernel has br_netfilter, which many lack.
pub(super) fn cni(node: &Node) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni",
                    "ranges": [[{ "subnet": node.pod_net.to_string() }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true }, "backend": "nftables" },
        ],
    })
}

/// The object of a node with a kubelet, made before the kubelet registers: it carries what only
/// an administrator may say of a node.
pub(super) fn node_object(node: &Node, number: usize) -> Value {
    const ZONES: usize = 3;
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": { "topology.kubernetes.io/zone": format!("zone-{}", number % ZONES + 1) },
        },
        "spec": { "podCIDR": node.pod_net.to_string(), "podCIDRs": [node.pod_net.to_string()] },
    })
}

/// Where the kubeconfig of a client other than the administrator lies.
pub(super) fn kubeconfig_file(cluster: &Cluster, who: &str) -> std::path::PathBuf {
    cluster.dir.join(format!("{who}.kubeconfig"))
}

/// The kubeconfig of one client, with the files' contents in it so that it can be carried away.
pub(super) fn kubeconfig(cluster: &Cluster, who: &str) -> Result<Value> {
    Ok(merged_kubeconfig(vec![Access::read(cluster, who)?]))
}

/// How one client reaches one cluster.
#[derive(Debug)]
pub(super) struct Access {
    context: String,
    server: String,
    ca: String,
    certificate: String,
    key: String,
}

impl Access {
    /// Reads what `pki::issue` wrote.
    pub(super) fn read(cluster: &Cluster, who: &str) -> Result<Self> {
        let encoded = |path: std::path::PathBuf| {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            anyhow::Ok(STANDARD.encode(bytes))
        };
        Ok(Self {
            context: cluster.name.clone(),
            server: cluster.api_url(),
            ca: encoded(pki::certificate(cluster, pki::CA))?,
            certificate: encoded(pki::certificate(cluster, who))?,
            key: encoded(pki::key(cluster, who))?,
        })
    }
}

/// One kubeconfig with a context per cluster; the first is the current one.
pub(super) fn merged_kubeconfig(accesses: Vec<Access>) -> Value {
    let current = accesses.first().map(|access| access.context.clone());
    let (mut clusters, mut users, mut contexts) = (vec![], vec![], vec![]);
    for access in accesses {
        let name = access.context;
        clusters.push(json!({ "name": name, "cluster": {
            "server": access.server,
            "certificate-authority-data": access.ca,
        }}));
        users.push(json!({ "name": name, "user": {
            "client-certificate-data": access.certificate,
            "client-key-data": access.key,
        }}));
        contexts.push(json!({ "name": name, "context": { "cluster": name, "user": name } }));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": clusters,
        "users": users,
        "contexts": contexts,
        "current-context": current,
    })
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Bed, Nodes};
    use super::*;
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    fn cluster(kind: Nodes) -> Cluster {
        Bed::small(kind).clusters().remove(0)
    }

    /// Every word in these flags that is a path below this folder.
    fn paths_below(folder: &Path, flags: &[String]) -> BTreeSet<PathBuf> {
        let values = flags.iter().filter_map(|flag| flag.split_once('='));
        let paths = values.map(|(_, value)| PathBuf::from(value));
        paths.filter(|path| path.parent() == Some(folder)).collect()
    }

    #[test]
    fn every_certificate_and_key_that_a_program_is_told_of_is_issued() {
        let cluster = cluster(Nodes::Real);
        let mut issued = BTreeSet::from([
            pki::certificate(&cluster, pki::CA),
            pki::key(&cluster, pki::CA),
            pki::key(&cluster, pki::SERVICE_ACCOUNTS),
            pki::public_key(&cluster, pki::SERVICE_ACCOUNTS),
        ]);
        for subject in pki::subjects(&cluster) {
            issued.insert(pki::certificate(&cluster, &subject.file));
            issued.insert(pki::key(&cluster, &subject.file));
        }
        let flags = [api_server(&cluster), controller_manager(&cluster)].concat();
        let told = paths_below(&pki::dir(&cluster), &flags);
        assert_eq!(told.len(), 8, "{told:?}");
        assert!(told.is_subset(&issued), "{:?}", told.difference(&issued));
    }

    #[test]
    fn only_a_cluster_without_kubelets_has_its_nodes_faked() {
        let fakes = |kind| {
            let flags = caretaker(&cluster(kind));
            flags.iter().any(|flag| flag.starts_with("--fake-nodes"))
        };
        assert!(fakes(Nodes::Fake));
        assert!(!fakes(Nodes::Real));
    }

    #[test]
    fn a_merged_kubeconfig_has_a_context_per_cluster_and_starts_with_the_first() {
        let access = |name: &str| Access {
            context: name.to_owned(),
            server: format!("https://{name}"),
            ca: String::new(),
            certificate: String::new(),
            key: String::new(),
        };
        let merged = merged_kubeconfig(vec![access("c1"), access("c2")]);
        assert_eq!(merged["current-context"], "c1");
        assert_eq!(merged["contexts"][1]["context"]["cluster"], "c2");
        assert_eq!(merged["clusters"][1]["cluster"]["server"], "https://c2");
    }

    #[test]
    fn a_nodes_pods_get_addresses_of_the_nodes_own_range() {
        let cluster = cluster(Nodes::Real);
        let node = &cluster.nodes[0];
        let range = &cni(node)["plugins"][0]["ipam"]["ranges"][0][0]["subnet"];
        assert_eq!(*range, node_object(node, 0)["spec"]["podCIDR"]);
    }
}
