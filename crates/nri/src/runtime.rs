//! A container runtime as plugins see it, for tests of plugins: takes them in, tells them what there is
//! and what happens, and drops those that are late, as containerd does. Runs no container.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{self, Container, Event, PodSandbox};
use crate::connection::{self, CallError, Client, Code, Handler, Refusal};
use crate::frame::{PLUGIN_SERVICE, RUNTIME_SERVICE};
use crate::plugin::{EVENT_METHODS, PLUGIN, RUNTIME};

/// How events without an answer are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// By `StateChange`, as runtimes with NRI up to 0.11 do.
    Old,
    /// By a call of their own, and by `StateChange` to plugins that do not know it: since NRI 0.12.
    New,
}

/// How the runtime behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// How it tells of events.
    pub style: Style,
    /// After how long a plugin that does not answer is dropped. Runtimes: 2 s.
    pub request_timeout: Duration,
    /// Pods, and containers, in one message of a synchronization.
    pub chunk: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            style: Style::New,
            request_timeout: Duration::from_secs(2),
            chunk: 100,
        }
    }
}

/// A socket at which plugins arrive. The file goes when it is dropped.
#[derive(Debug)]
pub struct FakeRuntime {
    listener: UnixListener,
    path: PathBuf,
    settings: Settings,
}

impl FakeRuntime {
    /// Listens at this path, which must not exist.
    pub fn bind(path: &Path, settings: Settings) -> io::Result<Self> {
        Ok(Self {
            listener: UnixListener::bind(path)?,
            path: path.to_owned(),
            settings,
        })
    }

    /// Waits for a connection and does nothing with it.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }

    /// Waits for a plugin, takes it in, configures it and tells it what there is.
    pub async fn plugin(
        &self,
        pods: &[PodSandbox],
        containers: &[Container],
    ) -> Result<Attached, CallError> {
        let stream = self.accept().await.map_err(|_| CallError::Closed)?;
        Attached::new(stream, self.settings, pods, containers).await
    }
}

impl Drop for FakeRuntime {
    fn drop(&mut self) {
        // Gone already if a test took it away.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A plugin that was taken in. It is dropped with this.
#[derive(Debug)]
pub struct Attached {
    /// Its index and name, as in `00-name`.
    pub name: String,
    /// The mask of events that it asked for.
    pub events: i32,
    client: Client,
    settings: Settings,
    serving: JoinHandle<()>,
    updates: Arc<Mutex<Vec<api::UpdateContainersRequest>>>,
}

impl Attached {
    async fn new(
        stream: UnixStream,
        settings: Settings,
        pods: &[PodSandbox],
        containers: &[Container],
    ) -> Result<Self, CallError> {
        let (server, client) = connection::new(RUNTIME_SERVICE, PLUGIN_SERVICE);
        let (registered, mut registration) = watch::channel(None);
        let updates = Arc::default();
        let service = Arc::new(Service {
            registered,
            updates: Arc::clone(&updates),
        });
        let serving = tokio::spawn(async move {
            // However it ends, the client is told.
            let _ = server.serve(stream, service).await;
        });
        let name = match registration.wait_for(Option::is_some).await {
            Ok(name) => name.clone().unwrap_or_default(),
            Err(_) => return Err(CallError::Closed),
        };
        let mut attached = Self {
            name,
            events: 0,
            client,
            settings,
            serving,
            updates,
        };
        attached.configure().await?;
        attached.synchronize(pods, containers).await?;
        Ok(attached)
    }

    async fn configure(&mut self) -> Result<(), CallError> {
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let request = api::ConfigureRequest {
            runtime_name: "fake".to_owned(),
            runtime_version: "v0".to_owned(),
            registration_timeout: 5_000,
            request_timeout: ms(self.settings.request_timeout),
            nri_version: "v0.12.0".to_owned(),
            ..Default::default()
        };
        let answer: api::ConfigureResponse = self.call("Configure", &request).await?;
        self.events = answer.events;
        Ok(())
    }

    async fn synchronize(
        &self,
        mut pods: &[PodSandbox],
        mut containers: &[Container],
    ) -> Result<(), CallError> {
        loop {
            let chunk = self.settings.chunk.max(1);
            let (some_pods, other_pods) = pods.split_at(chunk.min(pods.len()));
            let (some, others) = containers.split_at(chunk.min(containers.len()));
            let more = !other_pods.is_empty() || !others.is_empty();
            let request = api::SynchronizeRequest {
                pods: some_pods.to_vec(),
                containers: some.to_vec(),
                more,
            };
            let answer: api::SynchronizeResponse = self.call("Synchronize", &request).await?;
            if answer.more != more {
                self.disconnect();
                let text = "the plugin does not understand a synchronization in pieces";
                return Err(CallError::Refused(Refusal::new(text)));
            }
            if !more {
                return Ok(());
            }
            (pods, containers) = (other_pods, others);
        }
    }

    /// Calls a method of the plugin. One that does not answer in time is disconnected.
    pub async fn call<A: Message, B: Message + Default>(
        &self,
        method: &str,
        request: &A,
    ) -> Result<B, CallError> {
        let timeout = self.settings.request_timeout;
        let answer = self.client.call(PLUGIN, method, request, timeout).await;
        let late = match &answer {
            Err(CallError::TimedOut(_)) => true,
            Err(CallError::Refused(refusal)) => refusal.code == Code::DeadlineExceeded,
            _ => false,
        };
        if late {
            self.disconnect();
        }
        answer
    }

    /// Tells of an event that is answered by yes or no, in the style of this runtime. An event that the
    /// plugin did not ask for is not told. As containerd does, what a late plugin would have said is
    /// taken for a yes: it is disconnected and skipped.
    pub async fn tell(
        &self,
        event: Event,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), CallError> {
        if self.events & (1 << (event as i32 - 1)) == 0 {
            return Ok(());
        }
        let own = EVENT_METHODS.iter().find(|(_, of)| *of == event);
        let mut answer: Result<api::Empty, CallError> =
            Err(CallError::Refused(Refusal::with(Code::Unimplemented, "")));
        if let (Style::New, Some((method, _))) = (self.settings.style, own) {
            let request = api::StartContainerRequest {
                pod: Some(pod.clone()),
                container: container.cloned(),
            };
            answer = self.call(method, &request).await;
        }
        if matches!(&answer, Err(CallError::Refused(refusal)) if refusal.code == Code::Unimplemented)
        {
            let request = api::StateChangeEvent {
                event: event.into(),
                pod: Some(pod.clone()),
                container: container.cloned(),
            };
            answer = self.call("StateChange", &request).await;
        }
        match answer {
            Err(CallError::Refused(refusal)) if refusal.code != Code::DeadlineExceeded => {
                Err(CallError::Refused(refusal))
            }
            Err(CallError::Protocol(error)) => Err(CallError::Protocol(error)),
            Ok(_) | Err(CallError::Refused(_) | CallError::TimedOut(_) | CallError::Closed) => {
                Ok(())
            }
        }
    }

    /// Whether the connection is still there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        !self.client.is_closed() && !self.serving.is_finished()
    }

    /// Hangs up.
    pub fn disconnect(&self) {
        self.serving.abort();
    }

    /// Waits until the connection has ended.
    pub async fn ended(&mut self) {
        // Aborted is ended too.
        let _ = (&mut self.serving).await;
    }

    /// The updates of containers that the plugin asked for outside of events.
    #[must_use]
    pub fn updates(&self) -> Vec<api::UpdateContainersRequest> {
        let updates = self.updates.lock();
        updates.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.disconnect();
    }
}

struct Service {
    registered: watch::Sender<Option<String>>,
    updates: Arc<Mutex<Vec<api::UpdateContainersRequest>>>,
}

impl Handler for Service {
    async fn handle(&self, service: &str, method: &str, body: Bytes) -> Result<Vec<u8>, Refusal> {
        let broken = |error: prost::DecodeError| Refusal::new(error.to_string());
        match (service, method) {
            (RUNTIME, "RegisterPlugin") => {
                let request = api::RegisterPluginRequest::decode(body).map_err(broken)?;
                let index = request.plugin_idx;
                if index.len() != 2 || !index.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(Refusal::new(format!("{index:?} is not an index")));
                }
                let name = format!("{index}-{}", request.plugin_name);
                self.registered.send_replace(Some(name));
                Ok(api::Empty {}.encode_to_vec())
            }
            (RUNTIME, "UpdateContainers") => {
                let request = api::UpdateContainersRequest::decode(body).map_err(broken)?;
                let updates = self.updates.lock();
                updates
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(request);
                Ok(api::UpdateContainersResponse::default().encode_to_vec())
            }
            _ => Err(Refusal::with(Code::Unimplemented, "no such method")),
        }
    }
}
