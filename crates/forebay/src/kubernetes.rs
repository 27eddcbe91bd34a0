//! The flags of `forebay gateway --kubernetes` to a source and a controller, and their end.

use std::path::PathBuf;
use std::time::Duration;

use forebay_api::infrastructure::Site;
use forebay_api::{Kind, Settings};
use forebay_cluster::Published;
use forebay_cluster::kubernetes::{
    Controller, ControllerOptions, Election, KubernetesSource, Metrics, Server,
};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::Failure;
use crate::cli::kubernetes::{KubernetesArgs, ServiceType};
use crate::gateway::random_seed;

/// The Lease that the processes of one namespace stand for.
const LEASE: &str = "forebay-gateway";
/// GKE's classes that a Gateway may have and be served here; its load balancers do not see it.
const GKE_CLASSES: [&str; 2] = ["gke-l7-rilb", "gke-l7-regional-external-managed"];
/// What a picker reads.
const PICKER_KINDS: [Kind; 4] = [
    Kind::InferencePool,
    Kind::InferenceObjective,
    Kind::InferenceModelRewrite,
    Kind::Pod,
];
/// What it serves without: accounts that were made for other pickers may read pools and pods alone.
const PICKER_KINDS_IF_ALLOWED: [Kind; 2] = [Kind::InferenceObjective, Kind::InferenceModelRewrite];
/// How long giving back the Lease may take at the end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// An API server that is to be followed.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// What it is, for people.
    pub(crate) name: String,
    /// Publishes when everything is known.
    pub(crate) published: watch::Receiver<Published>,
    /// Whether requests are served.
    pub(crate) serves: bool,
    pub(crate) metrics: Metrics,
    source: KubernetesSource,
    controller: Option<Controller>,
}

impl Cluster {
    /// Finds the server that `args` mean; asks it nothing yet.
    pub(crate) async fn find(args: &KubernetesArgs) -> Result<Self, Failure> {
        // An empty variable is none.
        let named = args.kubeconfig.iter().filter(|p| !p.as_os_str().is_empty());
        let kubeconfigs: Vec<_> = named.cloned().collect();
        let server = Server::find(&kubeconfigs).await.map_err(|error| {
            Failure::world(format!("no way to a Kubernetes API server: {error}"))
        })?;
        let own = args.namespace.clone();
        let own = own.unwrap_or_else(|| server.namespace().to_owned());
        let metrics = Metrics::default();
        let settings = settings(args, &own);
        let controller = settings.controller.clone();
        let namespaces = args.watch_namespace.clone();
        let (mut source, published) =
            KubernetesSource::open(server.clone(), settings, namespaces, metrics.clone());
        let name = format!("the Kubernetes API at {}", server.url());
        let controller = (!args.data_plane_only).then(|| {
            let options = ControllerOptions {
                controller,
                site: site(args, &own),
                election: args.leader_elect.then(|| Election {
                    namespace: own,
                    lease: LEASE.to_owned(),
                    identity: identity(),
                }),
            };
            Controller::of(&mut source, server, metrics.clone(), options)
        });
        Ok(Self {
            name,
            published,
            serves: !args.controller_only,
            metrics,
            source,
            controller,
        })
    }

    /// The same for a picker: reads what pools are made of, in these namespaces or in all, and writes
    /// nothing.
    pub(crate) async fn for_picker(
        kubeconfigs: &[PathBuf],
        namespaces: Vec<String>,
    ) -> Result<Self, Failure> {
        let server = Server::find(kubeconfigs).await.map_err(|error| {
            Failure::world(format!("no way to a Kubernetes API server: {error}"))
        })?;
        let metrics = Metrics::default();
        let settings = Settings::cluster();
        let name = format!("the Kubernetes API at {}", server.url());
        let (source, published) =
            KubernetesSource::open(server, settings, namespaces, metrics.clone());
        Ok(Self {
            name,
            published,
            serves: true,
            metrics,
            source: source
                .only(PICKER_KINDS)
                .if_allowed(PICKER_KINDS_IF_ALLOWED),
            controller: None,
        })
    }

    /// Follows it and writes to it; must be called within a runtime.
    pub(crate) fn start(self) -> Following {
        tokio::spawn(self.source.run());
        let (stop, stopped) = oneshot::channel::<()>();
        let controller = self.controller.map(|controller| {
            tokio::spawn(controller.run(async {
                // Dropping the other side is a reason to stop, too.
                let _stop = stopped.await;
            }))
        });
        Following {
            stop: Some(stop),
            controller,
        }
    }
}

fn settings(args: &KubernetesArgs, own: &str) -> Settings {
    let has_services = args.gateway_service_type != ServiceType::None;
    // A data plane of one Gateway's own has its Service beside it.
    let infrastructure = args.gateway.as_ref();
    let infrastructure = infrastructure.map_or(own, |gateway| &gateway.namespace);
    let gke = GKE_CLASSES.iter().filter(|_| args.gke_classes);
    Settings {
        classes: gke.map(|name| (*name).to_owned()).collect(),
        only_gateway: args.gateway.clone(),
        infrastructure_namespace: has_services.then(|| infrastructure.to_owned()),
        addresses: args.gateway_address.clone(),
        service_accounts: args.gateway_service_accounts,
        ..Settings::cluster()
    }
}

fn site(args: &KubernetesArgs, own: &str) -> Site {
    Site {
        namespace: own.to_owned(),
        namespaces: args.watch_namespace.clone(),
        selector: args.gateway_selector.clone().unwrap_or_default(),
        service_type: args.gateway_service_type.name().map(str::to_owned),
        image: args.image.clone().unwrap_or_default(),
        cluster_role: args.data_plane_cluster_role.clone(),
        service_accounts: args.gateway_service_accounts,
    }
}

/// The pod's name, or the machine's, and something that no other process has.
pub(crate) fn identity() -> String {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().into_owned();
    format!("{host}_{:08x}", random_seed() & 0xffff_ffff)
}

/// An API server that is followed.
#[derive(Debug)]
pub(crate) struct Following {
    stop: Option<oneshot::Sender<()>>,
    controller: Option<JoinHandle<()>>,
}

impl Following {
    /// Writes no more from now on, so that another process can begin to.
    pub(crate) fn stop_writing(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until others may write.
    pub(crate) async fn ended(mut self) {
        self.stop_writing();
        if let Some(controller) = self.controller {
            // A server that cannot be reached must not keep us from ending.
            let _ended = timeout(END_TIMEOUT, controller).await;
        }
    }
}
