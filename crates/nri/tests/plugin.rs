//! A plugin at a runtime, on a Unix socket.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_nri::api::{self, Container, ContainerUpdate, Event, PodSandbox};
use forebay_nri::plugin::{self, Events, Plugin, State};
use forebay_nri::runtime::{Attached, FakeRuntime, Settings, Style};
use forebay_nri::{CallError, Code, Refusal};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Writes down what it hears; refuses the pod `refused`, never answers for the pod `slow`.
struct Recorder {
    heard: Mutex<Vec<String>>,
    states: mpsc::UnboundedSender<State>,
}

impl Recorder {
    fn write(&self, line: String) {
        self.heard.lock().expect("no panic").push(line);
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut *self.heard.lock().expect("no panic"))
    }
}

impl Plugin for Recorder {
    fn events(&self) -> Events {
        Events::of(&[
            Event::RunPodSandbox,
            Event::StopPodSandbox,
            Event::StartContainer,
            Event::CreateContainer,
        ])
    }

    async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        self.write(format!(
            "{} pods, {} containers",
            pods.len(),
            containers.len()
        ));
        Ok(Vec::new())
    }

    async fn notify(
        &self,
        event: Event,
        pod: PodSandbox,
        container: Option<Container>,
    ) -> Result<(), Refusal> {
        match pod.name.as_str() {
            "refused" => return Err(Refusal::new("no NIC is free")),
            "slow" => std::future::pending().await,
            _ => {}
        }
        let container = container.map_or(String::new(), |container| format!("/{}", container.name));
        self.write(format!("{} {}{container}", event.as_str_name(), pod.name));
        Ok(())
    }

    async fn create_container(
        &self,
        request: api::CreateContainerRequest,
    ) -> Result<api::CreateContainerResponse, Refusal> {
        let big = request
            .container
            .map_or(0, |container| container.args.len());
        let key_value = |_| api::KeyValue {
            key: "KEY".to_owned(),
            value: "v".repeat(1000),
        };
        let adjust = api::ContainerAdjustment {
            env: (0..big).map(key_value).collect(),
            ..Default::default()
        };
        Ok(api::CreateContainerResponse {
            adjust: Some(adjust),
            ..Default::default()
        })
    }

    fn connection_changed(&self, state: &State) {
        let _ = self.states.send(state.clone());
    }
}

struct World {
    folder: tempfile::TempDir,
    plugin: Arc<Recorder>,
    states: mpsc::UnboundedReceiver<State>,
    link: plugin::Runtime,
    running: JoinHandle<()>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (sender, states) = mpsc::unbounded_channel();
        let plugin = Arc::new(Recorder {
            heard: Mutex::default(),
            states: sender,
        });
        let mut settings = plugin::Settings::new("recorder", "07");
        settings.socket = folder.path().join("nri.sock");
        settings.backoff_min = Duration::from_millis(1);
        settings.backoff_max = Duration::from_millis(20);
        let link = plugin::Runtime::new();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn({
            let (plugin, link) = (Arc::clone(&plugin), link.clone());
            async move {
                let stopped = async {
                    let _ = stopped.await;
                };
                plugin::run(plugin, &settings, &link, stopped).await;
            }
        });
        Self {
            folder,
            plugin,
            states,
            link,
            running,
            stop,
        }
    }

    fn runtime(&self, settings: Settings) -> FakeRuntime {
        let path: &Path = &self.folder.path().join("nri.sock");
        FakeRuntime::bind(path, settings).expect("a socket")
    }

    /// Waits until the connection is lost for a reason with these words.
    async fn lost(&mut self, words: &str) {
        loop {
            match self.states.recv().await.expect("the plugin runs") {
                State::Lost { reason, .. } if reason.contains(words) => return,
                State::Lost { .. } | State::Registered => {}
            }
        }
    }
}

fn pod(name: &str) -> PodSandbox {
    PodSandbox {
        id: format!("id-{name}"),
        name: name.to_owned(),
        ..Default::default()
    }
}

fn container(name: &str) -> Container {
    Container {
        name: name.to_owned(),
        ..Default::default()
    }
}

async fn attach(runtime: &FakeRuntime) -> Attached {
    runtime.plugin(&[], &[]).await.expect("a plugin")
}

async fn hears_events(style: Style) {
    let world = World::new();
    let runtime = world.runtime(Settings {
        style,
        ..Settings::default()
    });
    let attached = attach(&runtime).await;
    assert_eq!(attached.name, "07-recorder");
    for (event, container) in [
        (Event::RunPodSandbox, None),
        (Event::StartContainer, Some(&container("c"))),
        // Not asked for.
        (Event::PostStartContainer, Some(&container("c"))),
        (Event::StopPodSandbox, None),
    ] {
        attached
            .tell(event, &pod("p"), container)
            .await
            .expect("yes");
    }
    assert_eq!(
        world.plugin.heard(),
        [
            "0 pods, 0 containers",
            "RUN_POD_SANDBOX p",
            "START_CONTAINER p/c",
            "STOP_POD_SANDBOX p"
        ]
    );
    let refused = attached
        .tell(Event::RunPodSandbox, &pod("refused"), None)
        .await;
    assert_eq!(
        refused,
        Err(CallError::Refused(Refusal::new("no NIC is free")))
    );
    assert!(attached.is_connected(), "a refusal ends nothing");
}

#[tokio::test]
async fn events_are_heard_from_runtimes_up_to_nri_0_11() {
    hears_events(Style::Old).await;
}

#[tokio::test]
async fn events_are_heard_from_runtimes_since_nri_0_12() {
    hears_events(Style::New).await;
}

#[tokio::test]
async fn what_there_is_comes_in_pieces_and_is_handed_over_whole() {
    let world = World::new();
    let runtime = world.runtime(Settings {
        chunk: 3,
        ..Settings::default()
    });
    let pods: Vec<_> = (0..8).map(|n| pod(&n.to_string())).collect();
    let containers: Vec<_> = (0..20).map(|n| container(&n.to_string())).collect();
    let _attached = runtime.plugin(&pods, &containers).await.expect("a plugin");
    assert_eq!(world.plugin.heard(), ["8 pods, 20 containers"]);
}

#[tokio::test]
async fn a_plugin_that_is_late_is_dropped_and_comes_back() {
    let mut world = World::new();
    let runtime = world.runtime(Settings {
        request_timeout: Duration::from_millis(300),
        ..Settings::default()
    });
    let mut attached = attach(&runtime).await;
    let skipped = attached
        .tell(Event::RunPodSandbox, &pod("slow"), None)
        .await;
    assert_eq!(skipped, Ok(()), "the pod goes on without the plugin");
    attached.ended().await;
    world.lost("").await;
    let again = attach(&runtime).await;
    again
        .tell(Event::StopPodSandbox, &pod("p"), None)
        .await
        .expect("yes");
    assert_eq!(
        world.plugin.heard().last().map(String::as_str),
        Some("STOP_POD_SANDBOX p")
    );
}

#[tokio::test]
async fn a_plugin_waits_for_a_runtime_and_finds_the_next_one() {
    let mut world = World::new();
    world.lost("nri.sock").await;
    for _ in 0..3 {
        let runtime = world.runtime(Settings::default());
        let attached = attach(&runtime).await;
        drop((attached, runtime));
        world.lost("hung up").await;
    }
    assert_eq!(world.plugin.heard(), ["0 pods, 0 containers"; 3]);
    let (running, stop) = (world.running, world.stop);
    stop.send(()).expect("it runs");
    running.await.expect("it ends when it is told to");
}

#[tokio::test]
async fn a_runtime_that_breaks_the_protocol_is_left_and_tried_again() {
    let mut world = World::new();
    let runtime = world.runtime(Settings::default());
    for (bytes, words) in [
        (
            &[0, 0, 0, 1, 0xff, 0, 0, 0][..],
            "a frame of 4278190080 bytes",
        ),
        (
            &[0, 0, 0, 2, 0, 0, 0, 10, 0xff, 0, 0, 0, 0, 0, 0, 1, 2, 0],
            "a message of 4278190080 bytes",
        ),
        (
            &[0, 0, 0, 1, 0, 0, 0, 11, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0xff],
            "connection 1 is not valid protobuf",
        ),
    ] {
        let mut stream = runtime.accept().await.expect("a connection");
        stream.write_all(bytes).await.expect("written");
        world.lost(words).await;
    }
    attach(&runtime).await;
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented_and_a_broken_request_invalid() {
    let world = World::new();
    let runtime = world.runtime(Settings::default());
    let attached = attach(&runtime).await;
    for (method, code) in [
        ("FromTheFuture", Code::Unimplemented),
        ("RunPodSandbox", Code::InvalidArgument),
    ] {
        let answer: Result<api::Empty, CallError> = attached.call(method, &api::Empty {}).await;
        match answer {
            Err(CallError::Refused(refusal)) => assert_eq!(refusal.code, code, "{method}"),
            other => panic!("{method}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn long_answers_arrive_and_too_long_ones_are_refused() {
    let world = World::new();
    let runtime = world.runtime(Settings {
        request_timeout: Duration::from_secs(60),
        ..Settings::default()
    });
    let attached = attach(&runtime).await;
    for (args, fits) in [(4, true), (3000, true), (5000, false)] {
        let mut long = container("long");
        long.args = vec![String::new(); args];
        let request = api::CreateContainerRequest {
            pod: Some(pod("p")),
            container: Some(long),
        };
        let answer: Result<api::CreateContainerResponse, CallError> =
            attached.call("CreateContainer", &request).await;
        match answer {
            Ok(answer) => {
                assert!(fits, "{args}");
                assert_eq!(answer.adjust.expect("an adjustment").env.len(), args);
            }
            Err(error) => {
                assert!(!fits, "{args}: {error}");
                assert!(error.to_string().contains("at most 4194304"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn containers_are_updated_outside_of_events_while_there_is_a_runtime() {
    let mut world = World::new();
    let request = api::UpdateContainersRequest {
        update: vec![ContainerUpdate {
            container_id: "c".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let limit = Duration::from_secs(60);
    let link = world.link.clone();
    let none = link.update_containers(&request, limit).await;
    assert_eq!(none, Err(CallError::Closed));
    let runtime = world.runtime(Settings::default());
    let attached = attach(&runtime).await;
    while world.states.recv().await.expect("the plugin runs") != State::Registered {}
    assert_eq!(
        link.update_containers(&request, limit).await,
        Ok(Vec::new())
    );
    assert_eq!(attached.updates(), [request]);
}
