//! One control plane: its certificates and files, then its programs in the order in which they
//! need each other.

use super::binaries::Binaries;
use super::plan::{API_PORT, Cluster, Node, log_file};
use super::process::{Process, Program, wait_for};
use super::report::Report;
use super::{cgroup, config, pki};
use crate::shell;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Until the API server is ready. On an idle machine it takes 5 s; the rest is for a machine that
/// compiles something else at the same time.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// The control group of the control plane, below that of its cluster.
pub(super) const GROUP: &str = "control-plane";

/// The programs as `status` lists them.
pub(super) const PROGRAMS: [&str; 6] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "caretaker",
    "kube-proxy",
];

/// Starts a control plane and waits until it serves and pods can be created.
pub(super) fn start(
    cluster: &Cluster,
    binaries: &Binaries,
    roots: &[PathBuf],
    report: &Report,
) -> Result<Vec<Process>> {
    fs::create_dir_all(cluster.log_dir())
        .with_context(|| format!("cannot create {}", cluster.log_dir().display()))?;
    pki::issue(cluster)?;
    write_kubeconfigs(cluster)?;
    let program = |name, arguments| start_program(cluster, binaries, roots, name, arguments);

    let mut processes = vec![program("etcd", config::etcd(cluster))?];
    processes.push(program("kube-apiserver", config::api_server(cluster))?);
    let api = SocketAddr::from((cluster.api, API_PORT));
    wait_for(
        "the API server listens",
        READY_LIMIT,
        &mut processes,
        || Ok(TcpStream::connect_timeout(&api, Duration::from_secs(1)).is_ok()),
    )?;
    let kubectl = Kubectl::new(cluster, binaries);
    wait_for(
        "the API server is ready",
        READY_LIMIT,
        &mut processes,
        || Ok(kubectl.run(&["get", "--raw=/readyz"])? == "ok"),
    )?;
    report.say(&cluster.name, "API server ready");

    processes.push(program(
        "kube-controller-manager",
        config::controller_manager(cluster),
    )?);
    processes.push(program("kube-scheduler", config::scheduler(cluster))?);
    processes.push(program("caretaker", config::caretaker(cluster))?);
    // Pods are refused until their namespace has it.
    wait_for(
        "the default ServiceAccount exists",
        READY_LIMIT,
        &mut processes,
        || {
            Ok(!kubectl
                .run(&[
                    "get",
                    "serviceaccount",
                    "default",
                    "--ignore-not-found",
                    "-o=name",
                ])?
                .is_empty())
        },
    )?;
    report.say(&cluster.name, "control plane ready");
    Ok(processes)
}

/// Starts the kube-proxy beside the API server, by which the cluster's addresses are reached from
/// outside and by the API server itself. It needs a node that it is the proxy of, or it waits 30 s
/// for one: it takes the first, whose object exists.
pub(super) fn start_proxy(
    cluster: &Cluster,
    binaries: &Binaries,
    roots: &[PathBuf],
    first: &Node,
) -> Result<Process> {
    let file = cluster.dir.join("kube-proxy.json");
    write_json(&file, &config::proxy(cluster, &first.name))?;
    let flag = format!("--config={}", file.display());
    start_program(cluster, binaries, roots, "kube-proxy", vec![flag])
}

/// Waits until the API server answers under its cluster address, seen from the host.
pub(super) fn wait_for_proxy(cluster: &Cluster, processes: &mut [Process]) -> Result<()> {
    let service = SocketAddr::from((cluster.api_service(), 443));
    wait_for(
        "cluster addresses are reached from the host",
        READY_LIMIT,
        processes,
        || Ok(TcpStream::connect_timeout(&service, Duration::from_secs(1)).is_ok()),
    )
}

fn start_program(
    cluster: &Cluster,
    binaries: &Binaries,
    roots: &[PathBuf],
    name: &str,
    arguments: Vec<String>,
) -> Result<Process> {
    Program {
        name: format!("{name} of {}", cluster.name),
        executable: binaries.program(name),
        arguments,
        netns: cluster.netns.clone(),
        groups: cgroup::create(roots, &format!("{}/{GROUP}", cluster.name))?,
        log: log_file(&cluster.log_dir(), name),
    }
    .start()
}

fn write_kubeconfigs(cluster: &Cluster) -> Result<()> {
    write_json(
        &cluster.kubeconfig(),
        &config::kubeconfig(cluster, pki::ADMIN)?,
    )?;
    for who in [pki::CONTROLLER_MANAGER, pki::SCHEDULER, pki::PROXY] {
        write_json(
            &config::kubeconfig_file(cluster, who),
            &config::kubeconfig(cluster, who)?,
        )?;
    }
    for node in &cluster.nodes {
        let file = config::kubeconfig_file(cluster, &node.name);
        write_json(&file, &config::kubeconfig(cluster, &node.name)?)?;
    }
    Ok(())
}

/// Writes a file that may hold a secret.
pub(super) fn write_json(path: &std::path::Path, value: &Value) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// kubectl as the administrator of a cluster.
#[derive(Debug)]
pub(super) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    pub(super) fn new(cluster: &Cluster, binaries: &Binaries) -> Self {
        Self {
            program: binaries.program("kubectl"),
            kubeconfig: cluster.kubeconfig(),
            cache: cluster.dir.join("kubectl-cache"),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--cache-dir")
            .arg(&self.cache)
            .arg("--request-timeout=10s")
            .args(arguments);
        command
    }

    /// What kubectl printed.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot start kubectl")?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            anyhow::bail!("kubectl {}: {}", arguments.join(" "), complaint.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Applies objects.
    pub(super) fn apply(&self, objects: Vec<Value>) -> Result<()> {
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let mut file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
        file.write_all(&serde_json::to_vec(&list)?)?;
        let path = file.path().display().to_string();
        shell::capture(&mut self.command(&["apply", "--server-side", "-f", &path]))?;
        Ok(())
    }
}
