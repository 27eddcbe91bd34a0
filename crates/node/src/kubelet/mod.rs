//! The kubelet's side: a socket in its registry by which it finds the driver, and a socket for claims and
//! health. What is asked becomes calls of the [`Driver`].
//!
//! Two instances may serve at once while a pod is replaced by a newer one: their sockets are named after
//! their pods, and a file lock lets only one of them work on claims at a time.

mod authority;
mod http2;
mod lock;
mod paths;
mod service;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay_wire::kubelet::dra_v1::dra_plugin_server::DraPluginServer as DraV1;
use forebay_wire::kubelet::dra_v1beta1::dra_plugin_server::DraPluginServer as DraV1beta1;
use forebay_wire::kubelet::health_v1::dra_resource_health_server::DraResourceHealthServer as HealthV1;
use forebay_wire::kubelet::health_v1alpha1::dra_resource_health_server::DraResourceHealthServer as HealthV1alpha1;
use forebay_wire::kubelet::registration::registration_server::RegistrationServer;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::driver::Driver;
use lock::Lock;
use paths::{OwnSocket, Paths};
use service::{Plugin, Registrar};

/// Claims of one call that are worked on at once; the others wait for their turn.
const CLAIMS_AT_ONCE: usize = 16;
/// How long calls that were begun may take once it is to end. The kubelet asks again elsewhere.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the kubelet is and who comes to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The kubelet's folder, usually `/var/lib/kubelet`, at the path at which the kubelet sees it.
    pub root: PathBuf,
    /// The driver's name.
    pub driver: String,
    /// The UID of the pod that this runs in; needed for rolling updates in which two pods overlap.
    pub pod_uid: Option<String>,
    /// How long a call waits for another instance to finish its own. Then each of its claims gets an error,
    /// and the kubelet tries again.
    pub lock_timeout: Duration,
}

impl Settings {
    /// The usual ones for a driver of this name.
    pub fn new(driver: impl Into<String>) -> Self {
        Self {
            root: PathBuf::from("/var/lib/kubelet"),
            driver: driver.into(),
            pod_uid: None,
            lock_timeout: Duration::from_secs(20),
        }
    }
}

/// What the kubelet made of the registration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Registration {
    /// It has not come yet.
    Waiting,
    /// It took the driver.
    Registered,
    /// It did not, for this reason. It tries again.
    Refused(String),
}

/// A driver at its kubelet.
#[derive(Debug)]
pub struct Kubelet {
    registry_socket: OwnSocket,
    claims_socket: OwnSocket,
    registration: watch::Receiver<Registration>,
    stop: watch::Sender<bool>,
    tasks: [JoinHandle<()>; 2],
}

impl Kubelet {
    /// Serves, from the time that this returns. Sockets that dead instances left are removed first.
    ///
    /// Fails if a socket cannot be made; the text names the path and what to do.
    pub async fn serve<D: Driver>(driver: Arc<D>, settings: Settings) -> io::Result<Self> {
        let paths = Paths::new(&settings)?;
        paths.prepare().await?;
        let (stop, stopping) = watch::channel(false);
        let lock = Lock::new(paths.lock.clone(), settings.lock_timeout);
        let plugin = Arc::new(Plugin {
            driver,
            lock,
            stopping: stopping.clone(),
        });
        let (claims_listener, claims_socket) = OwnSocket::bind(&paths.claims)?;
        let claims = tokio::spawn(http2::serve(
            claims_listener,
            http2::Services::new()
                .with(DraV1::from_arc(Arc::clone(&plugin)))
                .with(DraV1beta1::from_arc(Arc::clone(&plugin)))
                .with(HealthV1::from_arc(Arc::clone(&plugin)))
                .with(HealthV1alpha1::from_arc(plugin)),
            stopping.clone(),
        ));
        // The kubelet comes as soon as it sees this one, so it is made last.
        let (registry_listener, registry_socket) = OwnSocket::bind(&paths.registry)?;
        let (status, registration) = watch::channel(Registration::Waiting);
        let registrar = Registrar {
            driver: settings.driver,
            endpoint: paths.claims.display().to_string(),
            status,
        };
        let registry = tokio::spawn(http2::serve(
            registry_listener,
            http2::Services::new().with(RegistrationServer::new(registrar)),
            stopping,
        ));
        Ok(Self {
            registry_socket,
            claims_socket,
            registration,
            stop,
            tasks: [registry, claims],
        })
    }

    /// What the kubelet made of the registration, now and whenever that changes.
    #[must_use]
    pub fn registration(&self) -> watch::Receiver<Registration> {
        self.registration.clone()
    }

    /// Leaves the kubelet's registry, takes no further call, and finishes those that were begun, for at
    /// most ten seconds.
    pub async fn stop(self) {
        self.registry_socket.remove();
        self.claims_socket.remove();
        self.stop.send_replace(true);
        for mut task in self.tasks {
            if tokio::time::timeout(STOP_TIMEOUT, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}
