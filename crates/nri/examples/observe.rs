//! Prints what a container runtime tells a plugin: `observe [SOCKET]`, until Ctrl-C.

use std::sync::Arc;

use forebay_nri::Refusal;
use forebay_nri::api::{ConfigureRequest, Container, ContainerUpdate, Event, PodSandbox};
use forebay_nri::plugin::{self, Events, Plugin, Settings, State};

struct Observer;

impl Plugin for Observer {
    fn events(&self) -> Events {
        Events::of(&[
            Event::RunPodSandbox,
            Event::StopPodSandbox,
            Event::RemovePodSandbox,
            Event::PostCreateContainer,
            Event::StartContainer,
            Event::PostStartContainer,
            Event::RemoveContainer,
        ])
    }

    async fn configure(&self, request: ConfigureRequest) -> Result<(), Refusal> {
        println!(
            "runtime {} {}, NRI {:?}, {} ms for a request",
            request.runtime_name,
            request.runtime_version,
            request.nri_version,
            request.request_timeout
        );
        Ok(())
    }

    async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        println!(
            "there are {} pods, {} containers",
            pods.len(),
            containers.len()
        );
        Ok(Vec::new())
    }

    async fn notify(
        &self,
        event: Event,
        pod: PodSandbox,
        container: Option<Container>,
    ) -> Result<(), Refusal> {
        let container = container.map(|container| container.name);
        let namespaces = pod.linux.map(|linux| linux.namespaces).unwrap_or_default();
        let network = namespaces
            .iter()
            .find(|namespace| namespace.r#type == "network");
        println!(
            "{} {}/{} {} in {}",
            event.as_str_name(),
            pod.namespace,
            pod.name,
            container.unwrap_or_default(),
            network.map_or("the host's network", |namespace| &namespace.path),
        );
        Ok(())
    }

    fn connection_changed(&self, state: &State) {
        println!("{state}");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut settings = Settings::new("observe", "99");
    if let Some(socket) = std::env::args_os().nth(1) {
        settings.socket = socket.into();
    }
    let stop = async {
        // An error means that there is no such signal here; then it ends at once.
        let _ = tokio::signal::ctrl_c().await;
    };
    plugin::run(Arc::new(Observer), &settings, &plugin::Runtime::new(), stop).await;
}
