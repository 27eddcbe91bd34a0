//! Flags of `forebay gateway --kubernetes`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use forebay_model::ObjectName;

#[derive(Args, Debug)]
#[command(next_help_heading = "Kubernetes")]
pub(crate) struct KubernetesArgs {
    /// Take the configuration from the Kubernetes API, and write statuses and infrastructure to it
    #[arg(long, env = "FOREBAY_KUBERNETES", conflicts_with = "config")]
    pub(crate) kubernetes: bool,
    /// How to reach the API server [default: as the pod that this is]
    #[arg(long, value_name = "PATH", env = "KUBECONFIG", value_delimiter = ':')]
    pub(crate) kubeconfig: Vec<PathBuf>,
    /// Namespace of this Forebay, for its Lease and for Services of Gateways [default: the pod's]
    #[arg(long, value_name = "NAME", env = "FOREBAY_NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Follow only these namespaces, for rights that are limited to them; may be repeated
    #[arg(long, value_name = "NAME", env = "FOREBAY_WATCH_NAMESPACE")]
    #[arg(value_delimiter = ',', requires = "kubernetes")]
    pub(crate) watch_namespace: Vec<String>,
    /// Write statuses and infrastructure, and serve no requests
    #[arg(long, env = "FOREBAY_CONTROLLER_ONLY")]
    #[arg(requires = "kubernetes", conflicts_with = "data_plane_only")]
    pub(crate) controller_only: bool,
    /// Serve requests, and write nothing to the API server
    #[arg(long, env = "FOREBAY_DATA_PLANE_ONLY", requires = "kubernetes")]
    pub(crate) data_plane_only: bool,
    /// Serve this Gateway only
    #[arg(long, value_name = "NAMESPACE/NAME", env = "FOREBAY_GATEWAY")]
    #[arg(value_parser = object_name, requires = "data_plane_only")]
    pub(crate) gateway: Option<ObjectName>,
    /// Serve Gateways of GKE's classes too (gke-l7-rilb, gke-l7-regional-external-managed)
    #[arg(long, env = "FOREBAY_GKE_CLASSES", requires = "kubernetes")]
    pub(crate) gke_classes: bool,
    /// How Gateways are reached: the type of the Service that each gets, or None to bind the ports
    /// of listeners here and make no Services
    #[arg(long, value_name = "TYPE", env = "FOREBAY_GATEWAY_SERVICE_TYPE")]
    #[arg(default_value = "LoadBalancer", ignore_case = true)]
    pub(crate) gateway_service_type: ServiceType,
    /// Labels of the Forebay pods, which the Services of Gateways select
    #[arg(long, value_name = "K=V,...", env = "FOREBAY_GATEWAY_SELECTOR")]
    #[arg(value_parser = labels)]
    pub(crate) gateway_selector: Option<Labels>,
    /// Address of Gateways that have no Service; may be repeated
    #[arg(long, value_name = "ADDR", env = "FOREBAY_GATEWAY_ADDRESS")]
    #[arg(value_delimiter = ',', requires = "kubernetes")]
    pub(crate) gateway_address: Vec<String>,
    /// Let one of several processes write, by way of a Lease; without it this one writes
    #[arg(long, value_name = "BOOL", env = "FOREBAY_LEADER_ELECT")]
    #[arg(default_value = "true", default_missing_value = "true")]
    #[arg(num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub(crate) leader_elect: bool,
    /// Image of data planes of their own (placement Dedicated of a GatewayConfig)
    #[arg(long, value_name = "IMAGE", env = "FOREBAY_IMAGE")]
    pub(crate) image: Option<String>,
    /// Make a ServiceAccount beside each Gateway that shows the labels and annotations of its
    /// spec.infrastructure there; nobody needs to be it
    #[arg(
        long,
        env = "FOREBAY_GATEWAY_SERVICE_ACCOUNTS",
        requires = "kubernetes"
    )]
    pub(crate) gateway_service_accounts: bool,
    /// ClusterRole that the controller binds to data planes of their own: everywhere, or with
    /// --watch-namespace in these namespaces, and NAME.cluster for kinds without a namespace
    #[arg(long, value_name = "NAME", env = "FOREBAY_DATA_PLANE_CLUSTER_ROLE")]
    pub(crate) data_plane_cluster_role: Option<String>,
}

/// Labels that pods are selected by.
pub(crate) type Labels = BTreeMap<String, String>;

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[value(rename_all = "PascalCase")]
pub(crate) enum ServiceType {
    /// An address of the cloud's or of the cluster's load balancer
    LoadBalancer,
    /// A port of every node
    NodePort,
    /// An address within the cluster
    #[value(name = "ClusterIP")]
    ClusterIp,
    /// No Service: listeners bind their own ports, as on the host's network
    None,
}

impl ServiceType {
    /// `spec.type` of the Services; `None` for no Services.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::LoadBalancer => Some("LoadBalancer"),
            Self::NodePort => Some("NodePort"),
            Self::ClusterIp => Some("ClusterIP"),
            Self::None => None,
        }
    }
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err("write NAMESPACE/NAME".to_owned()),
    }
}

fn labels(text: &str) -> Result<Labels, String> {
    let one = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{pair:?} is no label; write key=value,key=value")),
    };
    text.split(',').map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_pairs() {
        assert_eq!(object_name("a/b"), Ok(ObjectName::new("a", "b")));
        for bad in ["a", "/b", "a/", ""] {
            assert!(object_name(bad).is_err(), "{bad}");
        }
        let read = labels("app.kubernetes.io/name=forebay,tier=").unwrap();
        assert_eq!(read["app.kubernetes.io/name"], "forebay");
        assert_eq!(read["tier"], "");
        assert!(labels("a").is_err() && labels("").is_err() && labels("=x").is_err());
    }
}
