//! The container runtime's side: its NRI events become calls of the [`Driver`].
//!
//! The runtime gives a plugin 2 s for each event and goes on without it after that. What was begun is
//! finished all the same, in a task of its own: a NIC must not stop halfway. That the pod then runs
//! without being attached is noticed elsewhere (the guard), and caught up on by `synchronize`.

use std::path::PathBuf;
use std::sync::Arc;

use forebay_nri::Refusal;
use forebay_nri::api::{self, Container, ContainerUpdate, Event, PodSandbox};
use forebay_nri::plugin::{self, Events, Plugin};
pub use forebay_nri::plugin::{Settings, State};

use crate::driver::{Driver, DriverError, Hook, Sandbox};

/// The plugin's name at the runtime.
pub const NAME: &str = "forebay.dev";
/// First among the plugins: what others do may want the NICs.
pub const INDEX: &str = "00";

/// The usual settings, with the runtime's default socket.
#[must_use]
pub fn settings() -> Settings {
    Settings::new(NAME, INDEX)
}

/// Serves the runtime until `stop` is done, and comes back to it whenever it is lost. `changed` is told how
/// the connection is.
pub async fn serve<D: Driver>(
    driver: Arc<D>,
    settings: &Settings,
    changed: impl Fn(&State) + Send + Sync + 'static,
    stop: impl Future<Output = ()>,
) {
    let handlers = Arc::new(Handlers { driver, changed });
    plugin::run(handlers, settings, &plugin::Runtime::new(), stop).await;
}

/// Why there is no connection; none if there is one.
pub fn lost(state: &State) -> Option<String> {
    match state {
        State::Registered => None,
        State::Lost { .. } => Some(state.to_string()),
    }
}

struct Handlers<D, F> {
    driver: Arc<D>,
    changed: F,
}

impl<D: Driver, F: Fn(&State) + Send + Sync + 'static> Plugin for Handlers<D, F> {
    fn events(&self) -> Events {
        Events::of(&[
            Event::RunPodSandbox,
            Event::StopPodSandbox,
            Event::RemovePodSandbox,
            Event::CreateContainer,
        ])
    }

    async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        _containers: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        let sandboxes: Vec<Sandbox> = pods.into_iter().map(sandbox).collect();
        let driver = Arc::clone(&self.driver);
        to_its_end(async move { driver.synchronize(&sandboxes).await }).await?;
        Ok(Vec::new())
    }

    async fn notify(
        &self,
        event: Event,
        pod: PodSandbox,
        _container: Option<Container>,
    ) -> Result<(), Refusal> {
        let sandbox = sandbox(pod);
        let driver = Arc::clone(&self.driver);
        match event {
            Event::RunPodSandbox => to_its_end(async move { driver.attach(&sandbox).await }).await,
            Event::StopPodSandbox | Event::RemovePodSandbox => {
                to_its_end(async move { driver.detach(&sandbox).await }).await
            }
            Event::Unknown
            | Event::CreateContainer
            | Event::PostCreateContainer
            | Event::StartContainer
            | Event::PostStartContainer
            | Event::UpdateContainer
            | Event::PostUpdateContainer
            | Event::StopContainer
            | Event::RemoveContainer
            | Event::UpdatePodSandbox
            | Event::PostUpdatePodSandbox
            | Event::ValidateContainerAdjustment
            | Event::Last => Ok(()),
        }
    }

    /// Containers that name a claim have its guard from the runtime; the others of its pod get it here.
    async fn create_container(
        &self,
        request: api::CreateContainerRequest,
    ) -> Result<api::CreateContainerResponse, Refusal> {
        let sandbox = sandbox(request.pod.unwrap_or_default());
        let guards = self.driver.guards(&sandbox).await;
        let guards = guards.map_err(|error| Refusal::new(format!("{NAME}: {error}")))?;
        let container = request.container.unwrap_or_default();
        let has = container.hooks.unwrap_or_default().create_runtime;
        let missing = guards
            .into_iter()
            .filter(|guard| !has.iter().any(|own| own.args == guard.arguments))
            .map(hook);
        let create_runtime: Vec<api::Hook> = missing.collect();
        if create_runtime.is_empty() {
            return Ok(api::CreateContainerResponse::default());
        }
        let adjust = api::ContainerAdjustment {
            hooks: Some(api::Hooks {
                create_runtime,
                ..api::Hooks::default()
            }),
            ..api::ContainerAdjustment::default()
        };
        Ok(api::CreateContainerResponse {
            adjust: Some(adjust),
            ..api::CreateContainerResponse::default()
        })
    }

    fn connection_changed(&self, state: &State) {
        (self.changed)(state);
    }
}

/// Does the work even if the runtime no longer waits for it.
async fn to_its_end(
    work: impl Future<Output = Result<(), DriverError>> + Send + 'static,
) -> Result<(), Refusal> {
    match tokio::spawn(work).await {
        Ok(done) => done.map_err(|error| Refusal::new(format!("{NAME}: {error}"))),
        Err(panic) => Err(Refusal::new(format!(
            "{NAME}: a fault in the driver, see its log: {panic}"
        ))),
    }
}

fn hook(guard: Hook) -> api::Hook {
    api::Hook {
        path: guard.program.display().to_string(),
        args: guard.arguments,
        env: Vec::new(),
        timeout: Some(api::OptionalInt {
            value: guard.timeout_s.into(),
        }),
    }
}

fn sandbox(pod: PodSandbox) -> Sandbox {
    let namespaces = pod.linux.map(|linux| linux.namespaces).unwrap_or_default();
    let netns = namespaces
        .into_iter()
        .find(|namespace| namespace.r#type == "network" && !namespace.path.is_empty())
        .map(|namespace| PathBuf::from(namespace.path));
    Sandbox {
        id: pod.id,
        namespace: pod.namespace,
        name: pod.name,
        uid: pod.uid,
        netns,
    }
}
