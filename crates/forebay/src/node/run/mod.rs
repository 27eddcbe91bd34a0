//! `forebay node run`: the driver of a node, wired: host and ledger ([`look`]), the cluster ([`cluster`]), the
//! kubelet, the container runtime, and the pages on which it tells how it is.
//!
//! Kubelet and runtime are served without the API server, since what was promised holds without it; what is
//! to be written there waits.

mod cluster;
mod gpus;
mod guard_program;
mod leases;
mod look;
mod ready;
mod traces;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_cluster::kubernetes::Server;
use forebay_cluster::kubernetes::device::{Claims, DeviceMetrics, Events, Slices, Statuses};
use forebay_node::attach::{Core, HostDriver};
use forebay_node::cdi::Cdi;
use forebay_node::cloud::http::{ANSWER_TIME, Http};
use forebay_node::held::Held;
use forebay_node::inventory::{Inventory, Known};
use forebay_node::ipam::webhook::Profiles;
use forebay_node::ipam::{Elsewhere, Keeper};
use forebay_node::kubelet::{self, Kubelet, Registration};
use forebay_node::ledger::Ledger;
use forebay_node::metadata::{self, Described};
use forebay_node::netlink::KernelLinks;
use forebay_node::observed::{Metrics, Observed};
use forebay_node::page::{self, Listener, Pages};
use forebay_node::rdma::{KernelNamespaces, Namespaces as _, WithRdma};
use forebay_node::runtime;
use forebay_node::sysfs::Parts;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::cli::node::RunArgs;
use crate::{Failure, logging};
use cluster::{Source, Teller};
use look::{Facts, Looker, Told};
pub(crate) use ready::run as ready;
use ready::{Part, Readiness};
use traces::{Steps, Traces};

/// Threads for work that blocks. Attaching is done by one at a time; the others wait or read.
const BLOCKING_THREADS_MAX: usize = 16;
/// How long such a thread is kept without work: pods come in bursts.
const BLOCKING_KEEP: Duration = Duration::from_secs(10);
/// How long an address that another process has is waited for, again and again: while a pod is replaced by
/// a newer one, both are there, on the network of the host.
const BIND_RETRY: Duration = Duration::from_secs(1);
/// The driver's name in events.
const COMPONENT: &str = "forebay-node";

/// Serves until a signal ends it.
pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    logging::start(&args.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_KEEP)
        .build()
        .map_err(|error| Failure::world(format!("no runtime: {error}")))?;
    // At its end the runtime waits for what is done to NICs just then.
    runtime.block_on(serve(args))
}

async fn serve(args: &RunArgs) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let named = args.kubeconfig.iter().filter(|p| !p.as_os_str().is_empty());
    let kubeconfigs: Vec<_> = named.cloned().collect();
    let server = Server::find(&kubeconfigs)
        .await
        .map_err(|error| Failure::world(format!("no way to a Kubernetes API server: {error}")))?;
    let host = Host::open(args)?;
    let (metrics, device_metrics) = (Metrics::default(), DeviceMetrics::default());
    let readiness = Arc::new(Readiness::default());
    serve_pages(args, &metrics, &device_metrics, &readiness)?;

    let changed = Arc::new(Notify::new());
    let inventory = Inventory::new(look::settings(args), host.ledger.clone(), host.held.clone());
    let known = inventory.known();
    let told = Told::new(metrics.clone());
    let events = Events::start(
        server.clone(),
        COMPONENT,
        &args.node,
        device_metrics.clone(),
    );
    let claims = Claims::new(server.clone(), &args.driver, device_metrics.clone());
    tokio::spawn(claims.clone().keep_connection());
    let about = (claims, known.clone(), events);
    let freed = Arc::new(Notify::new());
    let (driver, keeper) = host.driver(args, about, (&told, (&changed, &freed), &metrics))?;
    let driver = Arc::new(driver);
    tokio::spawn(leases::keep(keeper, freed, Arc::clone(&changed)));

    let (of_cloud, cloud) = watch::channel(None);
    let (of_gpus, gpus) = watch::channel(None);
    let facts = Facts { cloud, gpus };
    let looker = Looker::new(inventory, told.clone(), facts, Arc::clone(&changed));
    // Nothing is promised before it is known which NICs there are.
    let looking = tokio::select! {
        looking = looker.first() => looking,
        name = signals.come() => {
            tracing::info!("{name}: ends before it began");
            return Ok(());
        }
    };
    tokio::spawn(looking.run());
    tokio::spawn(cluster::facts(
        server.clone(),
        args.node.clone(),
        (args.cloud.0, args.cloud_url.clone()),
        known,
        of_cloud,
    ));
    tokio::spawn(gpus::follow(
        args.nvidia_smi.0.clone(),
        args.sysfs_root.clone(),
        of_gpus,
    ));
    let slices = Slices::new(
        server.clone(),
        &args.driver,
        &args.node,
        device_metrics.clone(),
    );
    let published = Arc::clone(&readiness);
    tokio::spawn(slices.run(told.slices(), move |slices| {
        let devices: usize = slices.iter().map(|slice| slice.devices.len()).sum();
        tracing::info!("{devices} devices are published in {} slices", slices.len());
        published.set(Part::Slices, None);
    }));
    let statuses = Statuses::new(server, &args.driver, device_metrics);
    tokio::spawn(statuses.run(told.statuses()));

    let (stop, stopping) = watch::channel(false);
    let at_runtime = tokio::spawn(serve_runtime(
        Arc::clone(&driver),
        args.nri_socket.clone(),
        (metrics.clone(), Arc::clone(&readiness)),
        stopping,
    ));
    let kubelet = Kubelet::serve(driver, kubelet_settings(args))
        .await
        .map_err(|error| Failure::world(format!("the kubelet cannot be served: {error}")))?;
    tokio::spawn(follow_registration(
        kubelet.registration(),
        metrics,
        readiness,
    ));

    let name = signals.come().await;
    tracing::info!("{name}: finishes what was begun");
    // First the kubelet: what it still asks for goes to a newer instance, or waits for one.
    kubelet.stop().await;
    stop.send_replace(true);
    let _ended = at_runtime.await;
    Ok(())
}

/// What is on the host: the ledger, the NICs that claims have, links, CDI files.
struct Host {
    ledger: Ledger,
    held: Held,
    links: OwnLinks,
    /// Whether RDMA devices are of one network namespace each.
    own_rdma: bool,
    cdi: Cdi,
}

impl Host {
    fn open(args: &RunArgs) -> Result<Host, Failure> {
        let ledger = opened(&args.state_dir, Ledger::open(&args.state_dir))?;
        let held = opened(&args.state_dir, Held::open(&args.state_dir))?;
        let program = match &args.guard_program {
            Some(program) => program.clone(),
            None => guard_program::install(&args.state_dir).map_err(|error| {
                Failure::world(format!(
                    "the guard cannot be put beside the ledger: {error}"
                ))
            })?,
        };
        let links = opened(&args.host_netns, KernelLinks::open(&args.host_netns))?
            .with_sysctls(args.sysctl_net.clone());
        let namespaces = opened(&args.host_netns, KernelNamespaces::open(&args.host_netns))?;
        let own_rdma = namespaces.own_devices().unwrap_or_else(|error| {
            tracing::warn!("RDMA devices stay on the host, shared by all namespaces: {error}");
            false
        });
        let cdi = Cdi {
            folder: args.cdi_dir.clone(),
            program,
            state: args.state_dir.clone(),
        };
        Ok(Host {
            ledger,
            held,
            links: WithRdma::new(links, namespaces),
            own_rdma,
            cdi,
        })
    }

    /// The driver of it, whose containers and people are told what it does.
    fn driver(
        self,
        args: &RunArgs,
        (claims, known, events): (Claims, Known, Events),
        (told, (changed, freed), metrics): (&Told, (&Arc<Notify>, &Arc<Notify>), &Metrics),
    ) -> Result<(OwnDriver, OwnKeeper), Failure> {
        let source = Source::new(claims, known.clone());
        let files = metadata::Files {
            folder: args.state_dir.join("metadata"),
            cdi: args.cdi_dir.clone(),
            driver: args.driver.clone(),
        };
        let steps = Steps::default();
        let traces = args.otlp_endpoint.as_deref().map(|endpoint| {
            let traces = Traces::start(endpoint, &args.node, (steps.clone(), self.ledger.clone()));
            traces.map_err(|why| Failure::usage(format!("--otlp-endpoint: {why}")))
        });
        let core = Core::new(self.links, steps, self.ledger.clone(), self.cdi)
            .with_parts(Parts::new(&args.sysfs_root), self.own_rdma)
            .with_held(self.held, known.clone())
            .with_sources(elsewhere(args, known.clone())?);
        let driver = HostDriver::new(source, core, told.health());
        let keeper = driver.keeper();
        let driver = Described::new(driver, files, (known, self.ledger));
        let notify = (Arc::clone(changed), Arc::clone(freed));
        let teller = Teller::new(events, notify, traces.transpose()?);
        Ok((Observed::new(driver, teller, metrics.clone()), keeper))
    }
}

/// Who gives addresses that are not the node's.
fn elsewhere(args: &RunArgs, known: Known) -> Result<Elsewhere, Failure> {
    let host = opened(&args.host_netns, std::fs::File::open(&args.host_netns))?;
    let profiles = args.profile_url.as_deref().map(|url| {
        let service = Http::new(url, ANSWER_TIME);
        let service = service.map_err(|why| Failure::usage(format!("--profile-url: {why}")))?;
        Ok(Profiles::new(service, tokio::runtime::Handle::current()))
    });
    Ok(Elsewhere::new(host, known, profiles.transpose()?))
}

fn opened<T>(path: &Path, result: std::io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure::world(format!("{}: {error}", path.display())))
}

fn kubelet_settings(args: &RunArgs) -> kubelet::Settings {
    kubelet::Settings {
        root: args.kubelet_dir.clone(),
        pod_uid: args.pod_uid.clone().filter(|uid| !uid.is_empty()),
        ..kubelet::Settings::new(&args.driver)
    }
}

type OwnLinks = WithRdma<KernelLinks, KernelNamespaces>;
type OwnKeeper = Keeper<OwnLinks, Steps>;
type OwnDriver = Observed<Described<HostDriver<Source, OwnLinks, Steps>>, Teller>;

/// Serves the container runtime until it is to stop.
async fn serve_runtime(
    driver: Arc<OwnDriver>,
    socket: std::path::PathBuf,
    (metrics, readiness): (Metrics, Arc<Readiness>),
    mut stopping: watch::Receiver<bool>,
) {
    let mut settings = runtime::settings();
    settings.socket = socket;
    let changed = move |state: &forebay_node::runtime::State| {
        let lost = runtime::lost(state);
        match &lost {
            None => tracing::info!("the container runtime took the plugin in"),
            Some(why) => tracing::warn!("{why}"),
        }
        metrics.set_connected("runtime", lost.is_none());
        readiness.set(Part::Runtime, lost);
    };
    let stop = async move {
        // Who is gone does not want it any longer either.
        let _stopped = stopping.wait_for(|stop| *stop).await;
    };
    runtime::serve(driver, &settings, changed, stop).await;
}

async fn follow_registration(
    mut registration: watch::Receiver<Registration>,
    metrics: Metrics,
    readiness: Arc<Readiness>,
) {
    loop {
        let now = registration.borrow_and_update().clone();
        let missing = match now {
            Registration::Waiting => Some("the kubelet has not come yet".to_owned()),
            Registration::Registered => {
                tracing::info!("the kubelet registered the driver");
                None
            }
            Registration::Refused(why) => {
                tracing::warn!("the kubelet refused the driver: {why}");
                Some(format!("the kubelet refused the driver: {why}"))
            }
        };
        metrics.set_connected("kubelet", missing.is_none());
        readiness.set(Part::Kubelet, missing);
        if registration.changed().await.is_err() {
            return;
        }
    }
}

fn serve_pages(
    args: &RunArgs,
    metrics: &Metrics,
    device_metrics: &DeviceMetrics,
    readiness: &Arc<Readiness>,
) -> Result<(), Failure> {
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    device_metrics.register(&mut registry);
    let readiness = Arc::clone(readiness);
    let unready = Box::new(move || readiness.missing());
    let pages = Arc::new(Pages { registry, unready });
    if let Some(path) = &args.listen_socket {
        // One that an instance before this left in the same place.
        let _gone = std::fs::remove_file(path);
        let listener = opened(path, UnixListener::bind(path))?;
        tokio::spawn(page::serve(Listener::Unix(listener), Arc::clone(&pages)));
    }
    let address = args.listen;
    tokio::spawn(async move {
        let mut told = false;
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) if !told => {
                    tracing::warn!("no metrics at {address} yet, it is tried again: {error}");
                    told = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(BIND_RETRY).await;
        };
        page::serve(Listener::Tcp(listener), pages).await;
    });
    Ok(())
}

/// Signals that end the process.
pub(super) struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Signals, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::world(format!("no signals: {error}")));
        Ok(Signals {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
        })
    }

    /// The next one's name.
    pub(super) async fn come(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "TERM",
            _ = self.int.recv() => "INT",
        }
    }
}
