//! The programs of Kubernetes, of the conformance suites, Helm and upstream's dranet, built once from the Go modules
//! below `tools` and kept in the cache folder under a key made of everything that goes into them.
//!
//! The parts are built when first needed: a control plane needs only the first. What Go itself
//! caches (modules, compiled packages) is where Go keeps it.

use super::state;
use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Free disk that a build from nothing needs: 3.1 GB of compiled packages, 1.5 GB of modules, and
/// the programs.
const DISK_BYTES_MIN: u64 = 6 << 30;

/// Between two lines about a build that is under way.
const NEWS: Duration = Duration::from_secs(15);

/// The names under which the one Kubernetes program is started.
const KUBE_NAMES: [&str; 8] = [
    "caretaker",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];

/// A part that is built in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything of Kubernetes, and etcd.
    Kube,
    /// containerd with its shim and command line.
    Containerd,
    /// The CNI plugins.
    Cni,
    /// The program of the pause image.
    Pause,
    /// The servers that the Gateway API's conformance suite sends requests to.
    Backends,
    /// The Gateway API's conformance suite itself.
    Suite,
    /// The picker and the model servers that our own inference suite runs.
    InferenceBackends,
    /// Our own inference suite.
    InferenceSuite,
    /// The picker that the Inference Extension's conformance suite runs.
    ReferencePicker,
    /// The Inference Extension's conformance suite itself.
    ExtensionSuite,
    /// What renders and installs the chart.
    Helm,
    /// Upstream's driver of devices that are NICs, to measure beside ours.
    Dranet,
}

/// A Go module that pins versions. Those of the conformance suites are their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Module {
    Cluster,
    Conformance,
    Deploy,
    Dranet,
}

impl Module {
    pub(super) fn dir(self) -> PathBuf {
        shell::root().join(match self {
            Self::Cluster => "tools/cluster",
            Self::Conformance => "tools/conformance",
            Self::Deploy => "tools/deploy",
            Self::Dranet => "tools/dranet",
        })
    }
}

/// What a control plane runs.
pub(super) const CONTROL_PLANE: [Part; 1] = [Part::Kube];
/// What a cluster with nodes runs.
pub(super) const NODES: [Part; 4] = [Part::Kube, Part::Containerd, Part::Cni, Part::Pause];

impl Part {
    fn module(self) -> Module {
        match self {
            Self::Kube | Self::Containerd | Self::Cni | Self::Pause => Module::Cluster,
            Self::Backends
            | Self::Suite
            | Self::InferenceBackends
            | Self::InferenceSuite
            | Self::ReferencePicker
            | Self::ExtensionSuite => Module::Conformance,
            Self::Helm => Module::Deploy,
            Self::Dranet => Module::Dranet,
        }
    }

    /// A file that is there when the part is.
    fn proof(self) -> &'static str {
        match self {
            Self::Kube => "kube",
            Self::Containerd => "containerd",
            Self::Cni => "ptp",
            Self::Pause => "pause",
            Self::Backends => "echo-basic",
            Self::Suite => "conformance.test",
            Self::InferenceBackends => "picker",
            Self::InferenceSuite => "inference.test",
            Self::ReferencePicker => "lwepp",
            Self::ExtensionSuite => "extension.test",
            Self::Helm => "helm",
            Self::Dranet => "dranet",
        }
    }

    /// What a person is told while it is built.
    fn describe(self) -> &'static str {
        match self {
            Self::Kube => "Kubernetes and etcd (about 20 CPU minutes from nothing)",
            Self::Containerd => "containerd (about 3 CPU minutes from nothing)",
            Self::Cni => "the CNI plugins",
            Self::Pause => "the pause program",
            Self::Backends => "the backends of the conformance suite",
            Self::Suite => "the conformance suite of the Gateway API",
            Self::InferenceBackends => "the picker and the model servers of the inference suite",
            Self::InferenceSuite => "our inference suite",
            Self::ReferencePicker => "the reference picker of the Inference Extension",
            Self::ExtensionSuite => "the conformance suite of the Inference Extension",
            Self::Helm => "Helm (about 3 CPU minutes from nothing)",
            Self::Dranet => "upstream's dranet (about 5 CPU minutes from nothing)",
        }
    }

    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Kube => &["./kube"],
            Self::Containerd => &[
                "github.com/containerd/containerd/v2/cmd/containerd",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/ctr",
            ],
            Self::Cni => &[
                "github.com/containernetworking/plugins/plugins/ipam/host-local",
                "github.com/containernetworking/plugins/plugins/main/loopback",
                "github.com/containernetworking/plugins/plugins/main/ptp",
                "github.com/containernetworking/plugins/plugins/meta/portmap",
            ],
            Self::Pause => &["./pause"],
            Self::Backends => &[
                "sigs.k8s.io/gateway-api/conformance/echo-basic",
                "./coredns",
            ],
            Self::Suite => &["sigs.k8s.io/gateway-api/conformance"],
            Self::InferenceBackends => &["./picker", "./model"],
            Self::InferenceSuite => &["./inference"],
            Self::ReferencePicker => &["sigs.k8s.io/gateway-api-inference-extension/cmd/lwepp"],
            Self::ExtensionSuite => &["sigs.k8s.io/gateway-api-inference-extension/conformance"],
            Self::Helm => &["helm.sh/helm/v4/cmd/helm"],
            Self::Dranet => &["sigs.k8s.io/dranet/cmd/dranet"],
        }
    }

    fn tags(self) -> &'static str {
        match self {
            Self::Kube => "grpcnotrace,notest",
            Self::Containerd => "grpcnotrace,no_btrfs,no_devmapper,no_zfs",
            Self::Cni
            | Self::Pause
            | Self::Backends
            | Self::Suite
            | Self::InferenceBackends
            | Self::InferenceSuite
            | Self::ReferencePicker
            | Self::ExtensionSuite
            | Self::Helm
            | Self::Dranet => "",
        }
    }

    /// Whether it is one package of tests, which becomes one program `<package>.test`.
    fn is_tests(self) -> bool {
        self.proof().ends_with(".test")
    }
}

/// The built programs.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn has(&self, part: Part) -> bool {
        self.dir.join(part.proof()).is_file()
    }
}

/// Where the programs of a module are or will be.
pub(super) fn locate(module: Module) -> Result<Binaries> {
    let key = key(&module.dir())?;
    Ok(Binaries {
        dir: state::home()?.join("bin").join(key),
    })
}

/// The parts of these that are still to be built.
pub(super) fn missing(binaries: &Binaries, parts: &[Part]) -> Vec<Part> {
    parts
        .iter()
        .copied()
        .filter(|part| !binaries.has(*part))
        .collect()
}

/// Builds what is missing. The parts are of one module.
pub(super) fn ensure(module: Module, parts: &[Part]) -> Result<Binaries> {
    let binaries = locate(module)?;
    if missing(&binaries, parts).is_empty() {
        return Ok(binaries);
    }
    fs::create_dir_all(&binaries.dir)
        .with_context(|| format!("cannot create {}", binaries.dir.display()))?;
    let lock = File::create(binaries.dir.join(".lock")).context("cannot lock the cache folder")?;
    if lock.try_lock().is_err() {
        eprintln!("waiting for another command that is building the same");
        lock.lock().context("cannot lock the cache folder")?;
    }
    let go = shell::which("go")
        .context("go is not in PATH: this is built from Go modules, install Go 1.26 or newer")?;
    check_disk(&binaries.dir)?;
    for part in missing(&binaries, parts) {
        build(&go, part, &binaries)?;
    }
    Ok(binaries)
}

/// A key over every file of the module.
fn key(module: &Path) -> Result<String> {
    let mut files = Vec::new();
    list(module, &mut files)?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        (file.strip_prefix(module).unwrap_or(&file), bytes).hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn check_disk(dir: &Path) -> Result<()> {
    let stat =
        rustix::fs::statvfs(dir).with_context(|| format!("cannot examine {}", dir.display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    if free < DISK_BYTES_MIN {
        bail!(
            "{} GB are free at {}, a build needs {} GB",
            free >> 30,
            dir.display(),
            DISK_BYTES_MIN >> 30
        );
    }
    Ok(())
}

fn build(go: &Path, part: Part, binaries: &Binaries) -> Result<()> {
    let started = Instant::now();
    eprintln!("building {}", part.describe());
    // Built beside and moved, so that a file that is there is whole.
    let fresh = binaries.dir.join(".new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh)?;
    let mut command = Command::new(go);
    if part.is_tests() {
        command.args(["test", "-c"]);
    } else {
        command.arg("build");
    }
    command
        .args(["-v", "-trimpath", "-tags", part.tags()])
        .args(["-ldflags", &linker_flags(part)?, "-o"])
        .arg(if part.is_tests() {
            fresh.join(part.proof())
        } else {
            fresh.clone()
        })
        .args(part.packages())
        .current_dir(part.module().dir())
        .env("CGO_ENABLED", "0");
    follow(&mut command, started)?;
    for entry in fs::read_dir(&fresh)? {
        let entry = entry?;
        fs::rename(entry.path(), binaries.dir.join(entry.file_name()))?;
    }
    if part == Part::Kube {
        for name in KUBE_NAMES {
            let link = binaries.dir.join(name);
            if !link.exists() {
                std::os::unix::fs::symlink("kube", link)?;
            }
        }
    }
    fs::remove_dir(&fresh)?;
    eprintln!("built in {} s", started.elapsed().as_secs());
    Ok(())
}

/// Symbols away; and for Kubernetes its version, which it would not know otherwise and which
/// clients compare.
fn linker_flags(part: Part) -> Result<String> {
    let mut flags = "-s -w".to_owned();
    if part == Part::Kube {
        let file = part.module().dir().join("go.mod");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let version = kubernetes_version(&text).with_context(|| {
            format!(
                "{}: no line `k8s.io/kubernetes v1.<minor>.<patch>`",
                file.display()
            )
        })?;
        flags += &version_flags(version);
    }
    Ok(flags)
}

/// `v1.36.3` from the text of a `go.mod`.
fn kubernetes_version(go_mod: &str) -> Option<&str> {
    go_mod.lines().find_map(|line| {
        let mut words = line
            .split_whitespace()
            .skip_while(|word| *word == "require");
        (words.next() == Some("k8s.io/kubernetes"))
            .then(|| words.next())
            .flatten()
    })
}

fn version_flags(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    let mut flags = String::new();
    for package in [
        "k8s.io/component-base/version",
        "k8s.io/client-go/pkg/version",
    ] {
        for (field, value) in [
            ("gitVersion", version),
            ("gitMajor", major),
            ("gitMinor", minor),
        ] {
            flags += &format!(" -X {package}.{field}={value}");
        }
    }
    flags
}

/// Runs a build, telling from time to time how far it is: `go build -v` names each package that
/// it compiles, and what else it says is an error.
fn follow(command: &mut Command, started: Instant) -> Result<()> {
    const COMPLAINTS_MAX: usize = 30;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start go")?;
    let (mut compiled, mut told) = (0_u32, started);
    let mut complaints = Vec::new();
    let stderr = child.stderr.take().context("go has no standard error")?;
    for line in BufReader::new(stderr).lines() {
        let line = line.context("the output of go broke off")?;
        if is_package(&line) {
            compiled += 1;
        } else if !line.starts_with("go: downloading") {
            complaints.push(line.clone());
            complaints.truncate(COMPLAINTS_MAX);
        }
        if told.elapsed() >= NEWS {
            told = Instant::now();
            eprintln!(
                "  {:>4} s  {compiled} packages compiled, now {line}",
                started.elapsed().as_secs()
            );
        }
    }
    let status = child.wait().context("lost sight of go")?;
    if !status.success() {
        bail!("go build ended with {status}:\n{}", complaints.join("\n"));
    }
    Ok(())
}

/// Whether a line is the name of a package and nothing else.
fn is_package(line: &str) -> bool {
    !line.is_empty() && !line.contains([' ', ':', '#'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_either_form_of_a_requirement() {
        assert_eq!(
            kubernetes_version("require k8s.io/kubernetes v1.36.3\n"),
            Some("v1.36.3")
        );
        assert_eq!(
            kubernetes_version("require (\n\tk8s.io/kubernetes v1.36.3\n)"),
            Some("v1.36.3")
        );
        assert_eq!(
            kubernetes_version("replace k8s.io/api => k8s.io/api v0.36.3"),
            None
        );
    }

    #[test]
    fn the_pinned_module_names_a_version_that_can_be_stamped() {
        let text =
            fs::read_to_string(Module::Cluster.dir().join("go.mod")).expect("tools/cluster/go.mod");
        let flags = version_flags(kubernetes_version(&text).expect("a version"));
        assert!(
            flags.contains("component-base/version.gitMajor=1 "),
            "{flags}"
        );
    }

    #[test]
    fn every_part_proves_itself_by_a_package_that_it_builds() {
        let others = [
            Part::Backends,
            Part::Suite,
            Part::InferenceBackends,
            Part::InferenceSuite,
            Part::Helm,
            Part::Dranet,
        ];
        for part in NODES.into_iter().chain(others) {
            let program = part.proof().trim_end_matches(".test");
            let built = part
                .packages()
                .iter()
                .any(|package| package.rsplit('/').next() == Some(program));
            assert!(built, "{part:?}");
        }
    }

    #[test]
    fn package_names_are_told_from_complaints() {
        assert!(is_package("k8s.io/kubernetes/pkg/apis/core"));
        assert!(!is_package("# k8s.io/kubernetes/pkg/apis/core"));
        assert!(!is_package("kube/main.go:3:1: expected declaration"));
    }
}
