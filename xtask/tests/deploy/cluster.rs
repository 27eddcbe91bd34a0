//! The API server of these tests, with every definition established.

use serde_json::{Deserializer, Value};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where `deploy/install.yaml` puts Forebay.
pub(crate) const NAMESPACE: &str = "forebay-system";

/// How to ask the API server.
#[derive(Debug)]
pub(crate) struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

/// The cluster; `None` where there is none, which is said then.
pub(crate) fn cluster(test: &str) -> Option<&'static Cluster> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    match CLUSTER.get_or_init(prepare) {
        Ok(cluster) => Some(cluster),
        Err(reason) => {
            skip(test, reason);
            None
        }
    }
}

fn prepare() -> Result<Cluster, String> {
    let kubeconfig = std::env::var_os("FOREBAY_TEST_KUBECONFIG").ok_or_else(|| {
        let reason = std::env::var("FOREBAY_CLUSTER_SKIP");
        reason.unwrap_or_else(|_| "no FOREBAY_TEST_KUBECONFIG: run `cargo xtask test`".to_owned())
    })?;
    let kubectl = std::env::var_os("FOREBAY_TEST_KUBECTL");
    let cluster = Cluster {
        kubectl: kubectl.map_or_else(|| "kubectl".into(), PathBuf::from),
        kubeconfig: kubeconfig.into(),
    };
    let gateway_api = gateway_api()?;
    for folder in [gateway_api, root().join("deploy/crds")] {
        for file in yaml_files(&folder) {
            cluster.must(
                &["apply", "--server-side", "--force-conflicts", "-f"],
                &file,
            );
        }
    }
    let wait = ["wait", "--for=condition=Established", "crd", "--all"];
    cluster
        .kubectl(&wait, "")
        .map_err(|error| format!("definitions: {error}"))?;
    let install = root().join("deploy/install.yaml");
    cluster.must(
        &["apply", "--server-side", "--force-conflicts", "-f"],
        &install,
    );
    Ok(cluster)
}

/// The standard channel of the Gateway API, in Go's cache.
fn gateway_api() -> Result<PathBuf, String> {
    if let Some(module) = std::env::var_os("FOREBAY_TEST_GATEWAY_API") {
        return Ok(Path::new(&module).join("config/crd/standard"));
    }
    let output = Command::new("go")
        .args(["mod", "download", "-json", "sigs.k8s.io/gateway-api"])
        .current_dir(root().join("tools/conformance"))
        .output()
        .map_err(|error| format!("go: {error}"))?;
    let described: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match described["Dir"].as_str() {
        Some(dir) => Ok(Path::new(dir).join("config/crd/standard")),
        None => Err(format!(
            "the Gateway API's module cannot be got: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

impl Cluster {
    /// Runs kubectl with this on its standard input: what it printed, or its complaint.
    pub(crate) fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut child = Command::new(&self.kubectl)
            .env("KUBECONFIG", &self.kubeconfig)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", self.kubectl.display()))?;
        let mut stdin = child.stdin.take().expect("standard input is piped");
        // A kubectl that has ended already says why.
        let _written = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child
            .wait_with_output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    /// Runs kubectl on a file, which must succeed.
    fn must(&self, arguments: &[&str], file: &Path) {
        let path = file.to_str().expect("a path in UTF-8");
        let done = self.kubectl(&[arguments, &[path]].concat(), "");
        done.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// What an object would become, or why it is refused.
    pub(crate) fn try_apply(&self, manifest: &str) -> Result<Value, String> {
        let arguments = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        let printed = self.kubectl(&arguments, manifest)?;
        serde_json::from_str(&printed).map_err(|error| error.to_string())
    }

    /// Creates each object and returns them as the server answers.
    pub(crate) fn create(&self, manifests: &[Value]) -> Vec<Value> {
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": manifests });
        let printed = self.kubectl(&["create", "-o", "json", "-f", "-"], &list.to_string());
        let printed = printed.expect("objects that can be created");
        let objects = Deserializer::from_str(&printed).into_iter::<Value>();
        let objects = objects.map(|object| object.expect("JSON"));
        objects
            .flat_map(|object| match object["items"].as_array() {
                Some(items) => items.clone(),
                None => vec![object],
            })
            .collect()
    }
}

/// The manifests of a folder, in order.
pub(crate) fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    files.sort();
    files
}

pub(crate) fn root() -> &'static Path {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("xtask lies one folder below the root")
}

/// Names a test that cannot run here.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("skipped {test}: {reason}");
    if let Some(file) = std::env::var_os("FOREBAY_SKIPS") {
        let file = OpenOptions::new().create(true).append(true).open(file);
        let mut file = file.expect("the list of skips");
        writeln!(file, "{test}: {reason}").expect("a line in it");
    }
}

/// The pinned Helm, if it is built.
pub(crate) fn helm() -> Result<impl Fn(&[&str]) -> Result<String, String>, &'static str> {
    let xtask = env!("CARGO_BIN_EXE_xtask");
    let check = Command::new(xtask).args(["helm", "--check"]).output();
    if !check.expect("xtask starts").status.success() {
        return Err("Helm is not built: `cargo xtask codegen --check` does");
    }
    Ok(move |arguments: &[&str]| {
        let mut helm = Command::new(xtask);
        helm.args(["helm", "--"]).args(arguments);
        if let Some(kubeconfig) = std::env::var_os("FOREBAY_TEST_KUBECONFIG") {
            helm.env("KUBECONFIG", kubeconfig);
        }
        let output = helm.output().expect("xtask starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    })
}
