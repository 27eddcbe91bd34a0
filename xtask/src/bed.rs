//! A test bed as other chores use it: up, with the definitions, and Forebay as
//! `deploy/install.yaml` has it.
//!
//! Beds are made by `cargo xtask cluster`; this calls that command rather than its parts.

use crate::{codegen, shell};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The image in the committed manifest, and the one that `cluster load --forebay` makes.
const RELEASED_IMAGE: &str = "ghcr.io/forebay/forebay:";
pub(crate) const BED_IMAGE: &str = "bed.forebay.dev/forebay:dev";

/// How long Forebay may take to be ready.
const ROLLOUT: &str = "120s";

/// How long pods may take to end: the gateway's drain, and some.
const GOING_MAX: Duration = Duration::from_secs(400);

/// A bed that is up.
#[derive(Debug)]
pub(crate) struct Bed {
    name: String,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    /// First address of the range of load balancers, a /24.
    balancers: Ipv4Addr,
    /// Take it down at the end.
    ends: bool,
}

/// A node of a bed that is up.
#[derive(Debug)]
pub(crate) struct BedNode {
    pub(crate) name: String,
    /// Name of its network namespace.
    pub(crate) netns: String,
    pub(crate) address: String,
    /// Folder of the logs of its programs.
    pub(crate) logs: PathBuf,
}

impl Bed {
    /// The bed of this name, brought up with these further arguments if it is not. One that was up
    /// before stays.
    pub(crate) fn ensure(name: &str, up: &[&str], keep: bool) -> Result<Self> {
        let mut described = describe(name).ok();
        if described.as_ref().is_some_and(|bed| !answers(bed)) {
            eprintln!("bed {name} was left behind, and nothing of it runs: made anew");
            own(&["down", "--bed", name])?;
            described = None;
        }
        let was_up = described.is_some();
        let described = match described {
            Some(described) => described,
            None => {
                own(&[&["up", "--bed", name], up].concat())?;
                describe(name)?
            }
        };
        let cluster = &described["clusters"][0];
        let text = |value: &Value| value.as_str().map(str::to_owned).context("cluster env");
        let range = text(&cluster["loadBalancers"])?;
        let base = range.split('/').next().unwrap_or_default();
        let bed = Self {
            name: name.to_owned(),
            kubeconfig: text(&cluster["kubeconfig"])?.into(),
            kubectl: Path::new(&text(&described["programs"])?).join("kubectl"),
            balancers: base.parse().with_context(|| format!("range {range}"))?,
            ends: !keep && !was_up,
        };
        let in_name_only = cluster["nodes"].as_array().is_none_or(Vec::is_empty);
        if in_name_only && !up.contains(&"--control-plane-only") {
            bail!("bed {name} has no real nodes: `cargo xtask cluster down --bed {name}` it first");
        }
        Ok(bed)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A command of `cargo xtask cluster` on this bed.
    pub(crate) fn cluster(&self, arguments: &[&str]) -> Result<()> {
        own(&[arguments, &["--bed", &self.name]].concat())
    }

    /// The network namespace of the first cluster, and its nodes.
    pub(crate) fn namespaces(&self) -> Result<(String, Vec<BedNode>)> {
        let described = describe(&self.name)?;
        let cluster = &described["clusters"][0];
        let text = |value: &Value| value.as_str().map(str::to_owned).context("cluster env");
        let nodes = cluster["nodes"].as_array().context("cluster env")?;
        let node = |node: &Value| {
            let part = |name: &str| text(&node[name]);
            anyhow::Ok(BedNode {
                name: part("name")?,
                netns: part("networkNamespace")?,
                address: part("address")?,
                logs: part("logs")?.into(),
            })
        };
        let nodes = nodes.iter().map(node).collect::<Result<_>>()?;
        Ok((text(&cluster["networkNamespace"])?, nodes))
    }

    /// An address that load balancers may have, far from those that are given out first.
    pub(crate) fn free_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.balancers) + 200)
    }

    /// Imports images and the program that is tested into every node.
    pub(crate) fn load(&self, images: &[&str], forebay: &Path) -> Result<()> {
        let forebay = forebay
            .to_str()
            .context("the program's path is not UTF-8")?;
        let mut arguments = vec!["load", "--bed", &self.name, "--forebay", forebay];
        arguments.extend(images);
        own(&arguments)
    }

    /// Imports archives of images into every node.
    pub(crate) fn import(&self, archives: &[PathBuf]) -> Result<()> {
        let paths = archives.iter().map(|archive| archive.to_str());
        let paths: Option<Vec<&str>> = paths.collect();
        let paths = paths.context("an archive whose path is not UTF-8")?;
        own(&[&["load", "--bed", &self.name], &paths[..]].concat())
    }

    /// The Gateway API's definitions from a folder of its module, and ours.
    pub(crate) fn install_definitions(&self, gateway_api: &Path) -> Result<()> {
        for folder in [gateway_api, &shell::root().join("deploy/crds")] {
            self.apply_folder(folder)?;
        }
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all"])?;
        eprintln!("definitions are established");
        Ok(())
    }

    /// Forebay from `deploy/install.yaml` with the image of the bed, freshly started; from the chart where it
    /// takes other values than the chart's own.
    pub(crate) fn install_forebay(&self, values: &[&str]) -> Result<()> {
        let file = shell::root().join("deploy/install.yaml");
        let text = if values.is_empty() {
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?
        } else {
            codegen::gateway(values)?
        };
        let manifest = with_image(&text, BED_IMAGE)
            .with_context(|| format!("{}: no image {RELEASED_IMAGE}...", file.display()))?;
        self.apply(&manifest)?;
        let of = ["-n", "forebay-system", "deployment/forebay"];
        // The name of the image is the same after another program was loaded.
        let restart = [&["rollout", "restart"][..], &of].concat();
        self.kubectl(&restart)?;
        let wait = [&["rollout", "status", "--timeout", ROLLOUT][..], &of].concat();
        self.kubectl(&wait).with_context(|| {
            let logs = self.kubectl(&["logs", "-n", "forebay-system", "deployment/forebay"]);
            format!(
                "Forebay is not ready after {ROLLOUT}; its log:\n{}",
                logs.unwrap_or_default()
            )
        })?;
        eprintln!("Forebay is ready");
        Ok(())
    }

    /// Waits until no pod of `namespace` is on its way out any more: a rollout counts as done before
    /// that.
    pub(crate) fn wait_gone(&self, namespace: &str) -> Result<()> {
        let started = Instant::now();
        let path = "jsonpath={.items[*].metadata.deletionTimestamp}";
        while !self
            .kubectl(&["get", "pods", "-n", namespace, "-o", path])?
            .is_empty()
        {
            if started.elapsed() > GOING_MAX {
                bail!("pods of {namespace} do not end");
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }

    /// Applies a manifest.
    pub(crate) fn apply(&self, manifest: &str) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new().context("no temporary file")?;
        file.write_all(manifest.as_bytes())?;
        self.apply_file(file.path())
    }

    /// Applies every manifest of a folder.
    pub(crate) fn apply_folder(&self, folder: &Path) -> Result<()> {
        manifests(folder)?
            .iter()
            .try_for_each(|file| self.apply_file(file))
    }

    fn apply_file(&self, file: &Path) -> Result<()> {
        let path = file.to_str().context("a path that is not UTF-8")?;
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", path])
            .map(drop)
    }

    /// Hands `objects` to kubectl, with arguments such as `create -f -`.
    pub(crate) fn feed(&self, arguments: &[&str], objects: &[u8]) -> Result<()> {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("kubectl does not start")?;
        let mut stdin = child.stdin.take().expect("stdin was set to piped above");
        // A kubectl that gives up early says why on stderr, which is better than a broken pipe.
        let written = stdin.write_all(objects);
        drop(stdin);
        let output = child.wait_with_output().context("kubectl is lost")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}", shell::describe(&command), words.trim());
        }
        written.context("kubectl did not read the objects")
    }

    /// What `kubectl` printed.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.kubectl);
        shell::capture(command.env("KUBECONFIG", &self.kubeconfig).args(arguments))
    }

    /// `v1.36.3`
    pub(crate) fn kubernetes(&self) -> Result<String> {
        let text = self.kubectl(&["version", "-o", "json"])?;
        let version: Value = serde_json::from_str(&text).context("kubectl version")?;
        let version = version["serverVersion"]["gitVersion"].as_str();
        version.map(str::to_owned).context("kubectl version")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.ends
            && let Err(error) = own(&["down", "--bed", &self.name])
        {
            eprintln!("bed {} is not down: {error:#}", self.name);
        }
    }
}

/// The manifests in a folder, without what is for Kustomize alone.
fn manifests(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_manifest = path.extension().is_some_and(|ending| ending == "yaml");
        if is_manifest && !path.ends_with("kustomization.yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The manifest with another image of Forebay, of containers and in arguments.
pub(crate) fn with_image(manifest: &str, image: &str) -> Option<String> {
    let mut found = false;
    let lines = manifest.lines().map(|line| {
        let Some((before, tag)) = line.split_once(RELEASED_IMAGE) else {
            return line.to_owned();
        };
        found = true;
        // A quote that was opened before it is closed after it.
        let rest =
            tag.trim_start_matches(|of: char| of.is_ascii_alphanumeric() || ".-_".contains(of));
        format!("{before}{image}{rest}")
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    found.then_some(text + "\n")
}

/// This program's own `cluster` command, with its output shown.
fn own(arguments: &[&str]) -> Result<()> {
    let program = std::env::current_exe().context("this program has no path")?;
    shell::run(Command::new(program).arg("cluster").args(arguments))
}

/// Whether the API server of a described bed is there: after the machine started again only its files are.
fn answers(described: &Value) -> bool {
    let kubeconfig = &described["clusters"][0]["kubeconfig"];
    let (Some(programs), Some(kubeconfig)) = (described["programs"].as_str(), kubeconfig.as_str())
    else {
        return false;
    };
    let asked = Command::new(Path::new(programs).join("kubectl"))
        .args(["--kubeconfig", kubeconfig, "--request-timeout=10s"])
        .args(["get", "--raw", "/readyz"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

fn describe(bed: &str) -> Result<Value> {
    let program = std::env::current_exe().context("this program has no path")?;
    let output = Command::new(program)
        .args(["cluster", "env", "--json", "--bed", bed])
        .stderr(Stdio::null())
        .output()
        .context("cannot start cluster env")?;
    if !output.status.success() {
        bail!("bed {bed} is not up");
    }
    serde_json::from_slice(&output.stdout).context("cluster env did not print JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_manifest_has_an_image_to_replace() {
        let file = shell::root().join("deploy/install.yaml");
        let text = fs::read_to_string(file).expect("deploy/install.yaml");
        let changed = with_image(&text, BED_IMAGE).expect("an image of Forebay");
        assert!(changed.contains("image: bed.forebay.dev/forebay:dev\n"));
        assert!(!changed.contains(RELEASED_IMAGE));
        assert_eq!(changed.lines().count(), text.lines().count());
        assert_eq!(with_image("image: other/forebay:1\n", BED_IMAGE), None);
        let argument = format!("- \"--image={RELEASED_IMAGE}0.1.0\"\n");
        assert_eq!(
            with_image(&argument, "b:1").as_deref(),
            Some("- \"--image=b:1\"\n")
        );
    }
}
