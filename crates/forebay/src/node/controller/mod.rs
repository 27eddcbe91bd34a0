//! `forebay node controller`: what is done for all nodes of the device network at once. Webhooks refuse wrong
//! parameters and give claims to pods that ask for the NICs of their node ([`judge`]); nodes are labelled with
//! their network profile.
//!
//! Every process answers; one that is elected writes. The driver of a node needs none of this.

mod judge;

use std::path::PathBuf;
use std::sync::Arc;

use forebay_cluster::kubernetes::admission::{self, Keeper, Reviews};
use forebay_cluster::kubernetes::device::{Asked, DeviceMetrics, Events};
use forebay_cluster::kubernetes::profiles::{self, Profiles};
use forebay_cluster::kubernetes::{Election, Metrics, Server};
use forebay_node::page::{self, Listener, Pages};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::run::Signals;
use crate::cli::node::ControllerArgs;
use crate::{Failure, kubernetes, logging};
use judge::Desk;
pub(crate) use judge::selector;

/// The Lease that the processes of one namespace stand for.
const LEASE: &str = "forebay-node-controller";
/// How long giving back the Lease may take at the end.
const END_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Serves until a signal ends it.
pub(super) fn run(args: &ControllerArgs) -> Result<(), Failure> {
    logging::start(&args.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::world(format!("no runtime: {error}")))?;
    runtime.block_on(serve(args))
}

async fn serve(args: &ControllerArgs) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let named = args.kubeconfig.iter().filter(|p| !p.as_os_str().is_empty());
    let kubeconfigs: Vec<PathBuf> = named.cloned().collect();
    let server = Server::find(&kubeconfigs)
        .await
        .map_err(|error| Failure::world(format!("no way to a Kubernetes API server: {error}")))?;
    let own = args.namespace.clone();
    let namespace = own.unwrap_or_else(|| server.namespace().to_owned());
    let (metrics, device_metrics) = (Metrics::default(), DeviceMetrics::default());
    let reviews = Reviews::default();
    let webhooks = bound(args.listen).await?;
    let pages = bound(args.pages).await?;

    let (leads, led) = watch::channel(false);
    let (tls, shown) = watch::channel(None);
    match &args.tls_dir {
        Some(folder) => {
            tokio::spawn(admission::folder(folder.clone(), tls));
        }
        None => {
            let names = names(&args.service, &namespace);
            let place = (namespace.as_str(), args.secret.as_str());
            let keeper = Keeper::new(server.clone(), place, names, &args.webhook_configuration);
            tokio::spawn(keeper.run(led.clone(), tls));
        }
    }
    let profiles = Profiles::follow(server.clone(), &args.driver, selector);
    tokio::spawn(page::serve(
        Listener::Tcp(pages),
        Arc::new(Pages {
            registry: registry(&metrics, &device_metrics, &reviews),
            unready: unready(shown.clone(), profiles.clone()),
        }),
    ));
    let identity = kubernetes::identity();
    let events = Events::start(
        server.clone(),
        "forebay-node-controller",
        &identity,
        device_metrics.clone(),
    );
    tokio::spawn(profiles.clone().keep(led, events, device_metrics));
    let desk = Desk {
        driver: args.driver.clone(),
        profiles,
        claims: Asked::new(server.clone()),
    };
    tokio::spawn(admission::serve(webhooks, shown, Arc::new(desk), reviews));
    let election = Election {
        namespace,
        lease: LEASE.to_owned(),
        identity,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let electing = tokio::spawn(profiles::elect(server, election, leads, metrics, async {
        // Dropping the other side is a reason to stop, too.
        let _stop = stopped.await;
    }));
    let name = signals.come().await;
    tracing::info!("{name}: gives back what it leads, and ends");
    drop(stop);
    // A server that cannot be reached must not keep us from ending.
    let _ended = timeout(END_TIMEOUT, electing).await;
    Ok(())
}

async fn bound(address: std::net::SocketAddr) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| Failure::world(format!("{address}: {error}")))
}

/// The names by which an API server knows a Service.
fn names(service: &str, namespace: &str) -> Vec<String> {
    let whole = format!("{service}.{namespace}.svc");
    vec![
        whole.clone(),
        format!("{service}.{namespace}"),
        format!("{whole}.cluster.local"),
        // For what runs beside an API server, and for tests.
        "localhost".to_owned(),
    ]
}

fn registry(metrics: &Metrics, device_metrics: &DeviceMetrics, reviews: &Reviews) -> Registry {
    let mut registry = metrics.registry();
    device_metrics.register_controller(&mut registry);
    reviews.register(&mut registry);
    registry
}

fn unready(
    tls: watch::Receiver<Option<admission::ServerTls>>,
    profiles: Profiles,
) -> Box<dyn Fn() -> Option<String> + Send + Sync> {
    Box::new(move || {
        if tls.borrow().is_none() {
            return Some("there is no certificate yet".to_owned());
        }
        let known = profiles.known();
        (!known.is_complete()).then(|| "the nodes of the cluster are not known yet".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_is_the_one_that_api_servers_use() {
        assert_eq!(names("hook", "ns")[0], "hook.ns.svc");
    }
}
