//! A namespace with a Gateway and a pool of one simulated server, and Forebays that follow it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use crate::cluster::{Cluster, Namespace, conditions};
use crate::support::{self, Ending, Program, chat, forebay, free_port, get, sim, skip, wait_for};

/// The rule of a route to the pool.
pub(crate) const ROUTE: &str =
    "{backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: sims}]}";

/// A namespace with a Gateway, a pool of one simulated server, and what it takes to run a Forebay
/// for it.
pub(crate) struct World {
    pub(crate) cluster: &'static Cluster,
    pub(crate) namespace: Namespace,
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
    pub(crate) server: SocketAddr,
    _sim: Program,
}

impl World {
    /// `None` where there is no API server; the test is skipped then.
    pub(crate) fn start(name: &str) -> Option<Self> {
        let cluster = match Cluster::find() {
            Ok(cluster) => cluster,
            Err(reason) => {
                skip(&format!("kubernetes {name}"), &reason);
                return None;
            }
        };
        let namespace = cluster.namespace(name);
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(1)));
        let world = Self {
            cluster,
            namespace,
            folder: tempfile::tempdir().expect("a temporary folder"),
            port: free_port(1),
            server,
            _sim: sim(server, &[]),
        };
        let target = server.port();
        world.apply(&format!(
            "
{{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {{name: forebay}}, spec: {{controllerName: forebay.dev/gateway}}}}
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {{name: sims}}
spec: {{selector: {{matchLabels: {{app: sim}}}}, targetPorts: [{{number: {target}}}]}}
"
        ));
        world.apply_pod("sim-1", "127.0.0.1");
        world.apply_gateway(world.port);
        world.apply_route(ROUTE);
        Some(world)
    }

    pub(crate) fn apply(&self, manifests: &str) {
        self.cluster.apply(&self.namespace.name, manifests);
    }

    pub(crate) fn apply_gateway(&self, port: u16) {
        self.apply(&format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: edge}}, \
             spec: {{gatewayClassName: forebay, listeners: [{{name: http, protocol: HTTP, port: {port}}}]}}}}"
        ));
    }

    pub(crate) fn apply_route(&self, rule: &str) {
        self.apply(&format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: all}}, \
             spec: {{parentRefs: [{{name: edge}}], rules: [{rule}]}}}}"
        ));
    }

    /// A pod that is Running and Ready at `ip` as soon as it is scheduled.
    pub(crate) fn apply_pod(&self, name: &str, ip: &str) {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: sim}}, \
             annotations: {{bed.forebay.dev/pod-ip: {ip}}}}}, spec: {{containers: [{{name: c, image: in-name-only}}]}}}}"
        ));
    }

    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        self.cluster.get(kind, &self.namespace.name, name)
    }

    pub(crate) fn delete(&self, kind: &str, name: &str) {
        let namespace = &self.namespace.name;
        self.cluster
            .kubectl(&["delete", kind, "-n", namespace, name, "--grace-period=0"]);
    }

    /// A Forebay for this namespace that binds the ports of its Gateways.
    pub(crate) fn forebay(&self) -> Forebay {
        let kubeconfig = self.cluster.kubeconfig();
        let host = [
            "--gateway-service-type",
            "None",
            "--gateway-address",
            "127.0.0.1",
        ];
        self.forebay_with(kubeconfig, &host)
    }

    pub(crate) fn forebay_with(&self, kubeconfig: &Path, more: &[&str]) -> Forebay {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(1)));
        let log = NamedTempFile::new().expect("a temporary file");
        // Mapped ports are the same in every namespace, and tests run side by side.
        let (bind, more) = match more {
            ["--bind", address, more @ ..] => (*address, more),
            more => ("127.0.0.1", more),
        };
        let program = Program::start(
            forebay()
                .args(["gateway", "--kubernetes", "--bind", bind])
                .args(["--access-log", "off", "--admin", &admin.to_string()])
                .args(["--namespace", &self.namespace.name])
                .args(["--watch-namespace", &self.namespace.name])
                .args(["--lame-duck", "0s", "--kubeconfig"])
                .arg(kubeconfig)
                .args(more)
                .stderr(log.reopen().expect("a readable file")),
        );
        Forebay {
            program,
            admin,
            log,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    pub(crate) fn is_served(&self) -> bool {
        chat(self.address(), "is it there?", 1).ending == Ending::Complete
    }

    #[track_caller]
    pub(crate) fn wait_until_served(&self) {
        wait_for("the route is served", || self.is_served().then_some(()));
    }

    /// The conditions of our entry among the parents of an object.
    pub(crate) fn parent(&self, kind: &str, name: &str) -> Option<Vec<String>> {
        let object = self.get(kind, name);
        let parents = object["status"]["parents"].as_array()?;
        let ours = |entry: &&Value| entry["controllerName"] == "forebay.dev/gateway";
        let entry = parents.iter().find(ours)?;
        assert_eq!(
            entry["conditions"][0]["observedGeneration"],
            object["metadata"]["generation"]
        );
        Some(conditions(&entry["conditions"]))
    }
}

/// A running `forebay gateway --kubernetes`.
pub(crate) struct Forebay {
    pub(crate) program: Program,
    pub(crate) admin: SocketAddr,
    pub(crate) log: NamedTempFile,
}

impl Forebay {
    #[track_caller]
    pub(crate) fn wait_until_ready(&self) {
        wait_for("it is ready", || self.is_ready().then_some(()));
    }

    pub(crate) fn is_ready(&self) -> bool {
        get(self.admin, "/readyz").is_ok()
    }

    /// The value of a metric's sample.
    pub(crate) fn metric(&self, sample: &str) -> Option<f64> {
        let page = get(self.admin, "/metrics").ok()?;
        let line = page
            .lines()
            .find_map(|l| l.strip_prefix(sample)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok())
    }

    pub(crate) fn leads(&self) -> bool {
        self.metric("forebay_leader") == Some(1.0)
    }

    /// What `forebay status` prints.
    pub(crate) fn status(&self) -> String {
        let output = support::output(&["status", "--admin", &self.admin.to_string()]);
        support::stdout(&output)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("text")
    }

    #[track_caller]
    pub(crate) fn wait_for_status(&self, text: &str) {
        wait_for(&format!("status says {text:?}"), || {
            self.status().contains(text).then_some(())
        });
    }
}
