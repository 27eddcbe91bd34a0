//! Flags of `forebay node`, the host's side of the device network.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use forebay_fabric::machine::PciAddress;
use forebay_fabric::publish::attributes::Optional;
use forebay_fabric::topology::Rail;
use forebay_node::cloud::Provider;
use forebay_node::filter::Filter;

use super::{LogArgs, duration};

/// Name of the driver whose claims are ours, which is upstream dranet's too.
const DRIVER: &str = "dra.net";
/// The program that comes with NVIDIA's driver.
const NVIDIA_SMI: &str = "nvidia-smi";

#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: NodeCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum NodeCommand {
    /// Be the driver of this node: publish its NICs, and bring them into pods and back
    Run(Box<RunArgs>),
    /// Look after all nodes: refuse wrong parameters, label nodes with their network profile, give claims to pods
    Controller(Box<ControllerArgs>),
    /// Tell whether a running driver is ready: a probe
    Ready(ReadyArgs),
    /// Tell what a host has, and what would be published of it
    Inventory(InventoryArgs),
    /// Read claims, templates, classes and NetworkConfigs and tell what is wrong with them
    Lint(LintArgs),
    /// Let a container start only if its claim's NICs are in place: the hook of OCI runtimes
    Guard(GuardArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay node run --node worker-1 --kubeconfig /etc/kubernetes/driver.kubeconfig
  forebay node run --node worker-1 --virtual 'rail*'      veths of this name are NICs, too
  forebay node run --node worker-1 --filter 'device.attributes[\"dra.net\"].rdma'     only NICs with RDMA

Every path is as this process sees it. The kubelet and the container runtime see --kubelet-dir, --state-dir
and the guard's program at the same paths, so in a pod they are to be mounted where they are on the host.

Signals: TERM and INT finish what was begun and leave the NICs where they are.

Exit status: 0 after a drain, 1 if the driver cannot run, 2 if the command line is wrong.")]
pub(crate) struct RunArgs {
    /// Name of this node, and of its pool of devices
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub(crate) node: String,
    /// Name of the driver
    #[arg(long, value_name = "NAME", default_value = DRIVER)]
    pub(crate) driver: String,
    /// How to reach the API server [default: as the pod that this is]
    #[arg(long, value_name = "PATH", env = "KUBECONFIG", value_delimiter = ':')]
    pub(crate) kubeconfig: Vec<PathBuf>,
    /// UID of the pod that this is, so that two may overlap while one is replaced
    #[arg(long, value_name = "UID", env = "POD_UID")]
    pub(crate) pod_uid: Option<String>,
    /// What /sys is to the host
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    pub(crate) sysfs_root: PathBuf,
    /// What /proc is to the host: its default routes tell which interfaces are its own
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub(crate) proc_root: PathBuf,
    /// The host's network namespace, which this process has to be in
    #[arg(long, value_name = "PATH", default_value = "/proc/self/ns/net")]
    pub(crate) host_netns: PathBuf,
    /// Settings of the network, to be written to; in a pod the container's own can only be read
    #[arg(long, value_name = "DIR", default_value = "/proc/sys/net")]
    pub(crate) sysctl_net: PathBuf,
    /// The kubelet's folder, with its folders for plugins
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub(crate) kubelet_dir: PathBuf,
    /// The container runtime's socket for NRI plugins
    #[arg(long, value_name = "PATH", default_value = "/var/run/nri/nri.sock")]
    pub(crate) nri_socket: PathBuf,
    /// Where the container runtime reads CDI files
    #[arg(long, value_name = "DIR", default_value = "/var/run/cdi")]
    pub(crate) cdi_dir: PathBuf,
    /// The ledger: what was promised to pods, and how their NICs were; to be kept over reboots
    #[arg(long, value_name = "DIR", default_value = "/var/lib/forebay")]
    pub(crate) state_dir: PathBuf,
    /// The program on the host that runtimes call before a container starts
    /// [default: a copy of this one in the folder of the ledger]
    #[arg(long, value_name = "PATH")]
    pub(crate) guard_program: Option<PathBuf>,
    /// Publish interfaces without hardware that have this name; * at its end stands for any rest; may be
    /// repeated [default: all but veths, which are the ends of pods]
    #[arg(long = "virtual", value_name = "NAME", value_delimiter = ',')]
    pub(crate) virtuals: Vec<String>,
    /// Publish devices that match this only, in the CEL of a DeviceClass; one that a claim has stays published
    #[arg(long, value_name = "CEL", value_parser = Filter::parse)]
    pub(crate) filter: Option<Filter>,
    /// Rail of a NIC where it does not follow from the order of addresses; may be repeated
    #[arg(long = "rail", value_name = "PCI=GROUP/N", value_parser = rail)]
    pub(crate) rails: Vec<(PciAddress, Rail)>,
    /// Attributes for the room that the cloud leaves, in this order
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = optional)]
    pub(crate) optional_attributes: Vec<Optional>,
    /// Who knows of the machine: gce, aws, azure, oci, webhook, none
    #[arg(
        long,
        value_name = "PROVIDER",
        env = "FOREBAY_CLOUD",
        default_value = "none"
    )]
    #[arg(value_parser = provider)]
    pub(crate) cloud: Cloud,
    /// Where it is asked: http://host:port or unix:///path [default: the cloud's own address]
    #[arg(long, value_name = "URL")]
    pub(crate) cloud_url: Option<String>,
    /// The program that tells of NVIDIA's GPUs: their NVLink domain, and who is behind NVLink-C2C; `none` asks
    /// nobody
    #[arg(long, value_name = "PROGRAM", default_value = NVIDIA_SMI, value_parser = nvidia_smi)]
    pub(crate) nvidia_smi: NvidiaSmi,
    /// Server that profiles and ipam `webhook` of claims are asked of, in dranet's protocol: http://host:port or
    /// unix:///path
    #[arg(long, value_name = "URL")]
    pub(crate) profile_url: Option<String>,
    /// Evict pods whose NIC has been unhealthy for so long [default: never]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) evict_after: Option<Duration>,
    /// Collector that spans of claims are sent to (OTLP over gRPC), such as http://otel-collector:4317
    #[arg(long, value_name = "URL", env = "FOREBAY_OTLP_ENDPOINT")]
    pub(crate) otlp_endpoint: Option<String>,
    /// Address of metrics and health; it has no authentication
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9177")]
    pub(crate) listen: SocketAddr,
    /// Socket that has the same pages: for `forebay node ready`
    #[arg(long, value_name = "PATH")]
    pub(crate) listen_socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay node controller --service forebay-node-controller --secret forebay-node-controller \\
    --webhook-configuration forebay-node.forebay-node
  forebay node controller --tls-dir /run/certificate       one that somebody else makes; the bundle of the
                                                           webhook configurations is theirs, too

Several may run; one is elected to write.

Signals: TERM and INT give back the Lease.

Exit status: 0 after a signal, 1 if it cannot run, 2 if the command line is wrong.")]
pub(crate) struct ControllerArgs {
    /// Name of the driver whose parameters are looked at
    #[arg(long, value_name = "NAME", default_value = DRIVER)]
    pub(crate) driver: String,
    /// How to reach the API server [default: as the pod that this is]
    #[arg(long, value_name = "PATH", env = "KUBECONFIG", value_delimiter = ':')]
    pub(crate) kubeconfig: Vec<PathBuf>,
    /// Namespace of the Lease, the Secret and the Service [default: that of the pod or of the kubeconfig]
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Address of the webhooks, /validate and /inject, over TLS
    #[arg(long, value_name = "ADDR", default_value = "[::]:9443")]
    pub(crate) listen: SocketAddr,
    /// The Service by which API servers reach the webhooks: the certificate is made for its names
    #[arg(long, value_name = "NAME", default_value = "forebay-node-controller")]
    pub(crate) service: String,
    /// An empty Secret to keep the certificate in
    #[arg(long, value_name = "NAME", default_value = "forebay-node-controller")]
    pub(crate) secret: String,
    /// Name of the webhook configurations that are to trust the certificate
    #[arg(long, value_name = "NAME", default_value = "forebay-node")]
    pub(crate) webhook_configuration: String,
    /// A folder with tls.crt and tls.key in place of a certificate made here; it is followed
    #[arg(long, value_name = "DIR", conflicts_with_all = ["secret", "webhook_configuration"])]
    pub(crate) tls_dir: Option<PathBuf>,
    /// Address of metrics and health; it has no authentication
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9178")]
    pub(crate) pages: SocketAddr,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// A provider of facts about the machine, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cloud(pub(crate) Option<Provider>);

fn provider(text: &str) -> Result<Cloud, String> {
    Ok(Cloud(match text {
        "gce" => Some(Provider::Gce),
        "aws" => Some(Provider::Aws),
        "azure" => Some(Provider::Azure),
        "oci" => Some(Provider::Oci),
        "webhook" => Some(Provider::Webhook),
        "none" => None,
        _ => return Err("there are gce, aws, azure, oci, webhook and none".to_owned()),
    }))
}

/// The program that is asked of GPUs, if one is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NvidiaSmi(pub(crate) Option<PathBuf>);

fn nvidia_smi(text: &str) -> Result<NvidiaSmi, String> {
    match text {
        "" => Err("no program; `none` asks nobody".to_owned()),
        "none" => Ok(NvidiaSmi(None)),
        program => Ok(NvidiaSmi(Some(program.into()))),
    }
}

fn optional(text: &str) -> Result<Optional, String> {
    Ok(match text.strip_prefix("dra.net/").unwrap_or(text) {
        "numaNode" => Optional::NumaNode,
        "pciAddress" => Optional::PciAddress,
        "pciVendor" => Optional::PciVendor,
        "pciDevice" => Optional::PciDevice,
        "pciSubsystem" => Optional::PciSubsystem,
        "sriovVfs" => Optional::SriovVfs,
        "alias" => Optional::Alias,
        _ => {
            return Err(
                "there are numaNode, pciAddress, pciVendor, pciDevice, pciSubsystem, sriovVfs \
                 and alias"
                    .to_owned(),
            );
        }
    })
}

fn rail(text: &str) -> Result<(PciAddress, Rail), String> {
    let wrong = || format!("{text:?}: write it like 0000:8f:00.0=fabric/3");
    let (address, rail) = text.split_once('=').ok_or_else(wrong)?;
    let (group, index) = rail.rsplit_once('/').ok_or_else(wrong)?;
    let index = index.parse().map_err(|_| wrong())?;
    let group = group.to_owned();
    Ok((address.parse()?, Rail { group, index }))
}

#[derive(Args, Debug)]
#[command(after_help = "\
Exit status: 0 if it is ready, 1 if it is not, or does not answer; the reason is on the standard error.")]
pub(crate) struct ReadyArgs {
    /// What the driver was given as --listen-socket
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// Ask whether it lives, not whether it is ready
    #[arg(long)]
    pub(crate) live: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay node inventory                                     this host
  forebay node inventory --machine machines/a4-highgpu-8g.yaml          a described machine, without its hardware
  forebay node inventory --output json | kubectl apply -f -  its ResourceSlices, for a cluster of tests

Addresses of interfaces are not read here.")]
pub(crate) struct InventoryArgs {
    /// What /sys is to the host
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    pub(crate) sysfs_root: PathBuf,
    /// What /proc is to the host: interfaces of its default routes are left out
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub(crate) proc_root: PathBuf,
    /// As for `forebay node run`
    #[arg(long, value_name = "PROGRAM", default_value = NVIDIA_SMI, value_parser = nvidia_smi)]
    pub(crate) nvidia_smi: NvidiaSmi,
    /// A description to read in place of a host (SIMULATED hardware)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sysfs_root", "proc_root", "nvidia_smi"])]
    pub(crate) machine: Option<PathBuf>,
    /// Name of the node, and of its pool of devices
    #[arg(long, value_name = "NAME", default_value = "node")]
    pub(crate) node: String,
    /// Name of the driver
    #[arg(long, value_name = "NAME", default_value = DRIVER)]
    pub(crate) driver: String,
    /// As for `forebay node run`
    #[arg(long, value_name = "CEL", value_parser = Filter::parse)]
    pub(crate) filter: Option<Filter>,
    /// How to print it
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,
}

/// How something is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Output {
    /// A table for people
    Text,
    /// A List of ResourceSlices
    Json,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  forebay node lint claims.yaml
  helm template . | forebay node lint -

Exit status: 0 if all is well, 1 if something is wrong, 2 if a file cannot be read.")]
pub(crate) struct LintArgs {
    /// Files; - is the standard input
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Parameters of which driver are looked at
    #[arg(long, value_name = "NAME", default_value = DRIVER)]
    pub(crate) driver: String,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Example, as a container runtime calls it, with the OCI state of the container on the standard input:
  forebay node guard --state-dir /var/lib/forebay --claim 0f9c… < state.json

Exit status: 0 lets the container start, 1 stops it; the reason is on the standard error.")]
pub(crate) struct GuardArgs {
    /// The driver's ledger
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// UID of the claim
    #[arg(long, value_name = "UID")]
    pub(crate) claim: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rails_providers_and_attributes_are_read_or_refused_with_what_there_is() {
        let (address, read) = rail("0000:8f:00.0=15b3:101e/3").unwrap();
        assert_eq!(address.to_string(), "0000:8f:00.0");
        assert_eq!((read.group.as_str(), read.index), ("15b3:101e", 3));
        for bad in [
            "",
            "0000:8f:00.0",
            "0000:8f:00.0=a",
            "x=a/3",
            "0000:8f:00.0=a/b",
        ] {
            assert!(rail(bad).is_err(), "{bad}");
        }
        assert_eq!(provider("none"), Ok(Cloud(None)));
        assert!(provider("other").unwrap_err().contains("azure"));
        assert_eq!(optional("dra.net/alias"), Ok(Optional::Alias));
        assert!(optional("mtu").is_err());
    }
}
