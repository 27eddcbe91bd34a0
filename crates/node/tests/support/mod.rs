//! A kubelet and a driver for tests: the kubelet finds sockets in its registry and asks, as the real one
//! does; the driver writes down what is done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use forebay_fabric::claim::ClaimRef;
use forebay_node::driver::{DeviceHealth, Driver, DriverError, Hook, PreparedDevice, Sandbox};
use forebay_wire::kubelet::dra_v1::dra_plugin_client::DraPluginClient;
use forebay_wire::kubelet::dra_v1::{
    Claim, NodePrepareResourceResponse, NodePrepareResourcesRequest, NodeUnprepareResourcesRequest,
};
use forebay_wire::kubelet::registration::registration_client::RegistrationClient;
use forebay_wire::kubelet::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

/// A driver that knows every claim but those named `unknown`, and refuses pods named `refused`.
#[derive(Default)]
pub(crate) struct Recorder {
    done: Mutex<Vec<String>>,
    /// What is told of devices.
    pub(crate) health: watch::Sender<Vec<DeviceHealth>>,
    /// Claims named `held` wait until this is true.
    pub(crate) release: watch::Sender<bool>,
}

impl Recorder {
    fn write(&self, line: String) {
        self.done.lock().expect("no panic").push(line);
    }

    /// What was done so far, in order.
    pub(crate) fn done(&self) -> Vec<String> {
        self.done.lock().expect("no panic").clone()
    }
}

impl Driver for Recorder {
    async fn prepare(&self, claim: &ClaimRef) -> Result<Vec<PreparedDevice>, DriverError> {
        self.write(format!("prepare {}", claim.name));
        match claim.name.as_str() {
            "unknown" => return Err(DriverError("it does not exist".to_owned())),
            "held" => {
                let mut release = self.release.subscribe();
                release
                    .wait_for(|released| *released)
                    .await
                    .expect("a sender");
            }
            _ => {}
        }
        Ok(vec![PreparedDevice {
            requests: vec!["nic".to_owned()],
            pool: "node-1".to_owned(),
            device: format!("nic-of-{}", claim.name),
            share_id: Some("share".to_owned()),
            cdi_ids: vec![format!("forebay.dev/claim={}", claim.uid)],
        }])
    }

    async fn unprepare(&self, claim: &ClaimRef) -> Result<(), DriverError> {
        self.write(format!("unprepare {}", claim.name));
        Ok(())
    }

    async fn attach(&self, sandbox: &Sandbox) -> Result<(), DriverError> {
        let netns = sandbox
            .netns
            .as_deref()
            .unwrap_or_else(|| Path::new("host"));
        self.write(format!("attach {} {}", sandbox.name, netns.display()));
        match sandbox.name.as_str() {
            "refused" => Err(DriverError("rdma0: link is down".to_owned())),
            "fault" => panic!("a fault, as the test wants it"),
            _ => Ok(()),
        }
    }

    async fn detach(&self, sandbox: &Sandbox) -> Result<(), DriverError> {
        self.write(format!("detach {}", sandbox.name));
        Ok(())
    }

    async fn guards(&self, sandbox: &Sandbox) -> Result<Vec<Hook>, DriverError> {
        match sandbox.name.as_str() {
            "refused" => Err(DriverError("no ledger".to_owned())),
            "p" => Ok(vec![Hook {
                program: "/state/bin/forebay".into(),
                arguments: vec!["forebay".to_owned(), "uid-p".to_owned()],
                timeout_s: 10,
            }]),
            _ => Ok(Vec::new()),
        }
    }

    async fn synchronize(&self, sandboxes: &[Sandbox]) -> Result<(), DriverError> {
        self.write(format!("synchronize {}", sandboxes.len()));
        Ok(())
    }

    fn health(&self) -> watch::Receiver<Vec<DeviceHealth>> {
        self.health.subscribe()
    }
}

/// Sockets in the registry.
pub(crate) fn registry(root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(root.join("plugins_registry"))
        .expect("a registry")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    found.sort();
    found
}

/// A connection to a socket.
pub(crate) async fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .expect("a connection")
}

/// The kubelet, after it took a plugin.
pub(crate) struct FakeKubelet {
    /// What the plugin said of itself.
    pub(crate) info: PluginInfo,
    /// Its endpoint.
    pub(crate) endpoint: Channel,
}

impl FakeKubelet {
    /// Asks who is at a socket of the registry, and tells it what comes of that: `refusal`, or none.
    pub(crate) async fn register(socket: &Path, refusal: Option<&str>) -> Self {
        let mut client = RegistrationClient::new(channel(socket).await);
        let info = client
            .get_info(InfoRequest {})
            .await
            .expect("an answer")
            .into_inner();
        let status = RegistrationStatus {
            plugin_registered: refusal.is_none(),
            error: refusal.unwrap_or_default().to_owned(),
        };
        client
            .notify_registration_status(status)
            .await
            .expect("an answer");
        let endpoint = channel(Path::new(&info.endpoint)).await;
        Self { info, endpoint }
    }

    /// Prepares claims of these names; the UID of each is `uid-` and its name.
    pub(crate) async fn prepare(
        &self,
        names: &[&str],
    ) -> BTreeMap<String, NodePrepareResourceResponse> {
        let claims = names.iter().copied().map(claim).collect();
        let answer = DraPluginClient::new(self.endpoint.clone())
            .node_prepare_resources(NodePrepareResourcesRequest { claims })
            .await
            .expect("a call never fails for a claim");
        answer.into_inner().claims.into_iter().collect()
    }

    /// Takes claims back; answers with the errors by UID.
    pub(crate) async fn unprepare(&self, names: &[&str]) -> BTreeMap<String, String> {
        let claims = names.iter().copied().map(claim).collect();
        let answer = DraPluginClient::new(self.endpoint.clone())
            .node_unprepare_resources(NodeUnprepareResourcesRequest { claims })
            .await
            .expect("a call never fails for a claim");
        let claims = answer.into_inner().claims.into_iter();
        claims.map(|(uid, answer)| (uid, answer.error)).collect()
    }
}

fn claim(name: &str) -> Claim {
    Claim {
        namespace: "team".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
    }
}
