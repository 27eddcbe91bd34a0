//! A real API server for tests: `kubectl` in the place of a user, and a relay that can be cut in the
//! place of the network.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde_json::Value;

use crate::support::{free_port, root, wait_for};

/// The API server that the tests of one program share.
pub(crate) struct Cluster {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
}

impl Cluster {
    /// The server, with the kinds of Gateway API and its Inference Extension installed; or why there
    /// is none.
    pub(crate) fn find() -> Result<&'static Self, String> {
        static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
        CLUSTER
            .get_or_init(Self::prepare)
            .as_ref()
            .map_err(String::clone)
    }

    fn prepare() -> Result<Self, String> {
        let path = |name: &str| {
            std::env::var_os(name).map(PathBuf::from).ok_or_else(|| {
                let why = std::env::var("FOREBAY_CLUSTER_SKIP");
                why.unwrap_or_else(|_| format!("{name} is not set; `cargo xtask test` prepares it"))
            })
        };
        let cluster = Self {
            kubeconfig: path("FOREBAY_TEST_KUBECONFIG")?,
            kubectl: path("FOREBAY_TEST_KUBECTL")?,
        };
        let gateway_api = path("FOREBAY_TEST_GATEWAY_API")?.join("config/crd/standard");
        let own = root().join("deploy/crds");
        for folder in [gateway_api, own] {
            let folder = folder.display().to_string();
            cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &folder]);
        }
        cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]);
        Ok(cluster)
    }

    pub(crate) fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        command
    }

    /// What `kubectl` prints.
    #[track_caller]
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("kubectl starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {stderr}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Applies manifests.
    #[track_caller]
    pub(crate) fn apply(&self, namespace: &str, manifests: &str) {
        let mut child = self
            // By the server, since tests side by side apply the class that they share.
            .command(&[
                "apply",
                "--server-side",
                "--force-conflicts",
                "-n",
                namespace,
                "-f",
                "-",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("piped above");
        io::Write::write_all(&mut stdin, manifests.as_bytes()).expect("kubectl reads");
        drop(stdin);
        assert!(
            child.wait().expect("our own child").success(),
            "{manifests}"
        );
    }

    /// An object, if it is there.
    pub(crate) fn try_get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let arguments = ["get", kind, "-n", namespace, name, "-o", "json"];
        let output = self.command(&arguments).output().expect("kubectl starts");
        serde_json::from_slice(&output.stdout).ok()
    }

    /// An object that is there.
    #[track_caller]
    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let found = self.try_get(kind, namespace, name);
        found.unwrap_or_else(|| panic!("no {kind} {namespace}/{name}"))
    }

    /// Changes a status as another controller would.
    #[track_caller]
    pub(crate) fn patch_status(&self, kind: &str, namespace: &str, name: &str, status: &Value) {
        let patch = serde_json::json!({ "status": status }).to_string();
        self.kubectl(&[
            "patch",
            kind,
            "-n",
            namespace,
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ]);
    }

    /// A new namespace with a name that no other test has.
    pub(crate) fn namespace(&'static self, name: &str) -> Namespace {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}-{}-{number}", std::process::id());
        self.kubectl(&["create", "namespace", &name]);
        // Pods are taken only where there is one.
        wait_for("the default ServiceAccount", || {
            self.try_get("serviceaccount", &name, "default")
        });
        Namespace {
            cluster: self,
            name,
        }
    }
}

/// A namespace that goes with the test.
pub(crate) struct Namespace {
    cluster: &'static Cluster,
    pub(crate) name: String,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", "--wait=false", &self.name];
        let _gone = self.cluster.command(&delete).stdout(Stdio::null()).status();
    }
}

/// Conditions of a list as `Accepted=True`, in the order of their types.
pub(crate) fn conditions(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let mut all: Vec<String> = list
        .map(|c| format!("{}={}", text(&c["type"]), text(&c["status"])))
        .collect();
    all.sort();
    all
}

/// A port of this machine that leads to the API server as long as it is not cut.
pub(crate) struct Relay {
    pub(crate) kubeconfig: PathBuf,
    cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    /// A relay to the server of `cluster`, and a kubeconfig in `folder` that goes through it.
    pub(crate) fn start(cluster: &Cluster, folder: &std::path::Path) -> Self {
        let text = fs::read_to_string(&cluster.kubeconfig).expect("a kubeconfig");
        let mut config: Value = serde_json::from_str(&text).expect("the bed's kubeconfig is JSON");
        let server = &mut config["clusters"][0]["cluster"]["server"];
        let address = server.as_str().expect("an address").to_owned();
        let address = address.trim_start_matches("https://");
        let target: SocketAddr = address.trim_end_matches('/').parse().expect("IP and port");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port(1))).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        *server = format!("https://127.0.0.1:{port}").into();
        let kubeconfig = folder.join("relayed.json");
        fs::write(&kubeconfig, config.to_string()).expect("a writable folder");
        let relay = Self {
            kubeconfig,
            cut: Arc::default(),
            open: Arc::default(),
        };
        let (cut, open) = (Arc::clone(&relay.cut), Arc::clone(&relay.open));
        // Ends with the test program.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if cut.load(Ordering::Relaxed) {
                    continue;
                }
                if let Ok(server) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) {
                    let mut open = open.lock().expect("no test panics in here");
                    for (from, to) in [(&client, &server), (&server, &client)] {
                        let clone = |stream: &TcpStream| stream.try_clone().expect("descriptors");
                        let (mut from, mut to) = (clone(from), clone(to));
                        open.push(clone(&from));
                        std::thread::spawn(move || {
                            let _ended = io::copy(&mut from, &mut to);
                            let _ended = to.shutdown(Shutdown::Write);
                        });
                    }
                }
            }
        });
        relay
    }

    /// Cuts every connection and all new ones, or lets new ones through again.
    pub(crate) fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
        if cut {
            let mut open = self.open.lock().expect("no test panics in here");
            for stream in open.drain(..) {
                let _gone = stream.shutdown(Shutdown::Both);
            }
        }
    }
}
