//! The plugin: what it does, and what keeps it at the runtime.
//!
//! Runtimes tell of events that need no answer in two ways, by `StateChange` (NRI up to 0.11) and by a call
//! of their own for each (since 0.12). Both arrive at [`Plugin::notify`].

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::api::{self, Container, ContainerUpdate, Event, PodSandbox};
use crate::connection::{self, CallError, Client, Code, Handler, Refusal};
use crate::frame::{PLUGIN_SERVICE, RUNTIME_SERVICE};

pub(crate) const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
pub(crate) const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";
/// The version of NRI that is spoken, as the runtime is told.
const NRI_VERSION: &str = "v0.12.0";
/// Pods and containers that are kept while a runtime sends them in pieces. The kubelet's own bound is a
/// few hundred; what has more is refused, and with it the connection.
const SYNCHRONIZE_MAX: usize = 100_000;

/// The bit mask of events, bit n-1 for event n.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Events(i32);

impl Events {
    /// These events.
    #[must_use]
    pub fn of(events: &[Event]) -> Self {
        let bit = |event: &Event| match *event as i32 {
            number @ 1.. => 1 << (number - 1),
            _ => 0,
        };
        Self(events.iter().map(bit).fold(0, |mask, bit| mask | bit))
    }
}

/// What a plugin does. Everything not written does nothing and agrees.
///
/// The future of a handler is dropped when the runtime no longer waits for it (after 2 s by default) and
/// when the connection ends; work that must not stop halfway belongs into a task of its own.
pub trait Plugin: Send + Sync + 'static {
    /// The events that it wants to hear of. At least one: no event means all of them in the protocol.
    fn events(&self) -> Events;

    /// What the runtime is, and the plugin's configuration there.
    fn configure(
        &self,
        _request: api::ConfigureRequest,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        async { Ok(()) }
    }

    /// All that the runtime has, once after each connection, whole. Answers with updates of containers.
    fn synchronize(
        &self,
        _pods: Vec<PodSandbox>,
        _containers: Vec<Container>,
    ) -> impl Future<Output = Result<Vec<ContainerUpdate>, Refusal>> + Send {
        async { Ok(Vec::new()) }
    }

    /// The runtime takes leave.
    fn shutdown(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// An event that is answered by yes or no only: `RunPodSandbox`, `StopPodSandbox`, `RemovePodSandbox`,
    /// `StartContainer`, `RemoveContainer` and all that begin with `Post`. No fails what is going on, as
    /// far as the runtime lets it fail. There is a container in events of containers.
    fn notify(
        &self,
        _event: Event,
        _pod: PodSandbox,
        _container: Option<Container>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        async { Ok(()) }
    }

    /// The resources of a pod are to change.
    fn update_pod_sandbox(
        &self,
        _request: api::UpdatePodSandboxRequest,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        async { Ok(()) }
    }

    /// A container is to be created; answers with what to change about it.
    fn create_container(
        &self,
        _request: api::CreateContainerRequest,
    ) -> impl Future<Output = Result<api::CreateContainerResponse, Refusal>> + Send {
        async { Ok(api::CreateContainerResponse::default()) }
    }

    /// The resources of a container are to change.
    fn update_container(
        &self,
        _request: api::UpdateContainerRequest,
    ) -> impl Future<Output = Result<api::UpdateContainerResponse, Refusal>> + Send {
        async { Ok(api::UpdateContainerResponse::default()) }
    }

    /// A container stopped; answers with updates of others.
    fn stop_container(
        &self,
        _request: api::StopContainerRequest,
    ) -> impl Future<Output = Result<Vec<ContainerUpdate>, Refusal>> + Send {
        async { Ok(Vec::new()) }
    }

    /// Whether what all plugins together change about a container may be.
    fn validate_container_adjustment(
        &self,
        _request: api::ValidateContainerAdjustmentRequest,
    ) -> impl Future<Output = Result<api::ValidateContainerAdjustmentResponse, Refusal>> + Send
    {
        async { Ok(api::ValidateContainerAdjustmentResponse::default()) }
    }

    /// How the connection is, for logs and metrics.
    fn connection_changed(&self, _state: &State) {}
}

/// How the connection to the runtime is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// The runtime took the plugin in.
    Registered,
    /// There is no connection.
    Lost {
        /// Why.
        reason: String,
        /// When it is tried again.
        retry_in: Duration,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registered => f.write_str("registered with the runtime"),
            Self::Lost { reason, retry_in } => {
                let ms = retry_in.as_millis();
                write!(
                    f,
                    "no connection to the runtime, next try in {ms} ms: {reason}"
                )
            }
        }
    }
}

/// Where the runtime is, and who comes to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The runtime's socket, usually `/var/run/nri/nri.sock`.
    pub socket: PathBuf,
    /// The plugin's name.
    pub name: String,
    /// Two digits; plugins are asked in this order.
    pub index: String,
    /// For a call to the runtime, registration too.
    pub call_timeout: Duration,
    /// Between two tries to connect, at first; doubled after each up to `backoff_max`.
    pub backoff_min: Duration,
    /// See `backoff_min`. A connection that lasted this long makes the next wait a short one again.
    pub backoff_max: Duration,
}

impl Settings {
    /// The usual ones, for a plugin of this name and index.
    pub fn new(name: impl Into<String>, index: impl Into<String>) -> Self {
        Self {
            socket: PathBuf::from("/var/run/nri/nri.sock"),
            name: name.into(),
            index: index.into(),
            call_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// Calls the runtime, whichever connection there is at the time. Clones are the same.
#[derive(Clone, Default, Debug)]
pub struct Runtime(Arc<Mutex<Option<Client>>>);

impl Runtime {
    /// One that is not connected yet: see [`run`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes containers outside of any event; gives back those that could not be changed.
    pub async fn update_containers(
        &self,
        request: &api::UpdateContainersRequest,
        timeout: Duration,
    ) -> Result<Vec<ContainerUpdate>, CallError> {
        let client = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let client = client.ok_or(CallError::Closed)?;
        let answer: api::UpdateContainersResponse = client
            .call(RUNTIME, "UpdateContainers", request, timeout)
            .await?;
        Ok(answer.failed)
    }

    fn set(&self, client: Option<Client>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }
}

/// Keeps the plugin at the runtime until `stop` is done: connects, registers, serves, and comes back when
/// the connection is lost, for whatever reason.
pub async fn run<P: Plugin>(
    plugin: Arc<P>,
    settings: &Settings,
    runtime: &Runtime,
    stop: impl Future<Output = ()>,
) {
    let keep = async {
        let mut wait = settings.backoff_min;
        loop {
            let since = Instant::now();
            let reason = match connect(&plugin, settings, runtime).await {
                Ok(()) => "the runtime hung up".to_owned(),
                Err(reason) => reason,
            };
            if since.elapsed() >= settings.backoff_max {
                wait = settings.backoff_min;
            }
            plugin.connection_changed(&State::Lost {
                reason,
                retry_in: wait,
            });
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(settings.backoff_max);
        }
    };
    tokio::select! {
        () = keep => {}
        () = stop => {}
    }
    runtime.set(None);
}

async fn connect<P: Plugin>(
    plugin: &Arc<P>,
    settings: &Settings,
    runtime: &Runtime,
) -> Result<(), String> {
    let socket = settings.socket.display();
    let stream = UnixStream::connect(&settings.socket)
        .await
        .map_err(|error| format!("{socket}: {error}"))?;
    let (server, client) = connection::new(PLUGIN_SERVICE, RUNTIME_SERVICE);
    let service = Arc::new(Service {
        plugin: Arc::clone(plugin),
        pieces: Mutex::default(),
    });
    let register = async {
        let request = api::RegisterPluginRequest {
            plugin_name: settings.name.clone(),
            plugin_idx: settings.index.clone(),
            nri_version: NRI_VERSION.to_owned(),
        };
        let answer: Result<api::Empty, CallError> = client
            .call(RUNTIME, "RegisterPlugin", &request, settings.call_timeout)
            .await;
        answer.map_err(|error| format!("{socket}: not registered: {error}"))?;
        runtime.set(Some(client.clone()));
        plugin.connection_changed(&State::Registered);
        std::future::pending::<Result<(), String>>().await
    };
    let ended = tokio::select! {
        ended = server.serve(stream, service) => ended.map_err(|error| format!("{socket}: {error}")),
        refused = register => refused,
    };
    runtime.set(None);
    ended
}

/// Methods to the plugin's handlers, for one connection.
struct Service<P> {
    plugin: Arc<P>,
    /// What came of a synchronization that is not whole yet.
    pieces: Mutex<(Vec<PodSandbox>, Vec<Container>)>,
}

impl<P: Plugin> Handler for Service<P> {
    async fn handle(&self, service: &str, method: &str, body: Bytes) -> Result<Vec<u8>, Refusal> {
        if service != PLUGIN {
            return Err(unimplemented(service, method));
        }
        let plugin = &self.plugin;
        match method {
            "Configure" => {
                plugin.configure(decode(body)?).await?;
                let events = plugin.events().0;
                encode(&api::ConfigureResponse { events })
            }
            "Synchronize" => self.synchronize(decode(body)?).await,
            "Shutdown" => {
                plugin.shutdown().await;
                encode(&api::Empty {})
            }
            "UpdatePodSandbox" => {
                plugin.update_pod_sandbox(decode(body)?).await?;
                encode(&api::UpdatePodSandboxResponse {})
            }
            "CreateContainer" => encode(&plugin.create_container(decode(body)?).await?),
            "UpdateContainer" => encode(&plugin.update_container(decode(body)?).await?),
            "StopContainer" => {
                let update = plugin.stop_container(decode(body)?).await?;
                encode(&api::StopContainerResponse { update })
            }
            "ValidateContainerAdjustment" => {
                encode(&plugin.validate_container_adjustment(decode(body)?).await?)
            }
            "StateChange" => {
                let change: api::StateChangeEvent = decode(body)?;
                self.notify(change.event(), change.pod, change.container)
                    .await
            }
            _ => {
                let event = event_of(method).ok_or_else(|| unimplemented(service, method))?;
                // All of these requests are a pod, field 1, and perhaps a container, field 2.
                let request: api::StartContainerRequest = decode(body)?;
                self.notify(event, request.pod, request.container).await
            }
        }
    }
}

impl<P: Plugin> Service<P> {
    async fn notify(
        &self,
        event: Event,
        pod: Option<PodSandbox>,
        container: Option<Container>,
    ) -> Result<Vec<u8>, Refusal> {
        let pod = pod.ok_or_else(|| {
            let text = format!("{} without a pod", event.as_str_name());
            Refusal::with(Code::InvalidArgument, text)
        })?;
        self.plugin.notify(event, pod, container).await?;
        // The answers to all of these have no field.
        encode(&api::Empty {})
    }

    async fn synchronize(&self, request: api::SynchronizeRequest) -> Result<Vec<u8>, Refusal> {
        let whole = {
            let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
            pieces.0.extend(request.pods);
            pieces.1.extend(request.containers);
            if pieces.0.len() + pieces.1.len() > SYNCHRONIZE_MAX {
                *pieces = Default::default();
                let text = format!("more than {SYNCHRONIZE_MAX} pods and containers");
                return Err(Refusal::with(Code::ResourceExhausted, text));
            }
            (!request.more).then(|| std::mem::take(&mut *pieces))
        };
        let update = match whole {
            Some((pods, containers)) => self.plugin.synchronize(pods, containers).await?,
            None => Vec::new(),
        };
        let more = request.more;
        encode(&api::SynchronizeResponse { update, more })
    }
}

/// Calls of their own that tell of events, since NRI 0.12.
pub(crate) const EVENT_METHODS: [(&str, Event); 9] = [
    ("RunPodSandbox", Event::RunPodSandbox),
    ("PostUpdatePodSandbox", Event::PostUpdatePodSandbox),
    ("StopPodSandbox", Event::StopPodSandbox),
    ("RemovePodSandbox", Event::RemovePodSandbox),
    ("PostCreateContainer", Event::PostCreateContainer),
    ("StartContainer", Event::StartContainer),
    ("PostStartContainer", Event::PostStartContainer),
    ("PostUpdateContainer", Event::PostUpdateContainer),
    ("RemoveContainer", Event::RemoveContainer),
];

fn event_of(method: &str) -> Option<Event> {
    let found = EVENT_METHODS.iter().find(|(name, _)| *name == method);
    found.map(|(_, event)| *event)
}

fn unimplemented(service: &str, method: &str) -> Refusal {
    Refusal::with(Code::Unimplemented, format!("no method {service}/{method}"))
}

fn decode<M: Message + Default>(body: Bytes) -> Result<M, Refusal> {
    M::decode(body).map_err(|error| Refusal::with(Code::InvalidArgument, error.to_string()))
}

#[allow(clippy::unnecessary_wraps, reason = "every method ends with it")]
fn encode<M: Message>(message: &M) -> Result<Vec<u8>, Refusal> {
    Ok(message.encode_to_vec())
}
