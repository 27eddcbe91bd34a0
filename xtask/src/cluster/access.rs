//! A bed from the point of view of another chore: its kubectl, its addresses.

use super::binaries::{self, Module};
use super::plan::{Nodes, Shape};
use super::state::Record;
use super::{down, env, up};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What runs on the nodes of a bed that a chore wants.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Kubelets and containers.
    Real,
    /// Nothing: nodes and pods in name.
    Fake,
}

/// A bed that is up, of one cluster. It stays up when this value goes.
#[derive(Debug)]
pub(crate) struct Access {
    name: String,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl Access {
    /// Brings up a bed of one cluster with `nodes` nodes, or finds the one of this name.
    pub(crate) fn ensure(name: &str, nodes: u16, kind: Kind) -> Result<Self> {
        if !shell::is_root() {
            bail!("a Kubernetes cluster is started by root only");
        }
        let shape = Shape {
            clusters: 1,
            nodes,
            kind: match kind {
                Kind::Real => Nodes::Real,
                Kind::Fake => Nodes::Fake,
            },
        };
        shape.check()?;
        up::ensure(name, shape, None)?;
        let record = Record::read(name)?.with_context(|| format!("the bed {name} vanished"))?;
        Ok(Self {
            name: name.to_owned(),
            kubectl: binaries::locate(Module::Cluster)?.dir().join("kubectl"),
            kubeconfig: env::kubeconfig(&record.bed),
        })
    }

    /// Takes it down.
    pub(crate) fn down(self) -> Result<()> {
        down::by_name(&self.name).map(drop)
    }

    /// How an administrator reaches it.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// kubectl with these arguments.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        command
    }

    /// What kubectl prints.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<String> {
        shell::capture(&mut self.kubectl(arguments))
    }

    /// Hands `manifests` to kubectl, with arguments such as `apply --server-side -f -`.
    pub(crate) fn feed(&self, arguments: &[&str], manifests: &[u8]) -> Result<()> {
        let mut command = self.kubectl(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("kubectl does not start")?;
        let mut stdin = child.stdin.take().expect("stdin was set to piped above");
        // A kubectl that gives up early says why on stderr, which is better than a broken pipe.
        let written = stdin.write_all(manifests);
        drop(stdin);
        let output = child.wait_with_output().context("kubectl is lost")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}", shell::describe(&command), words.trim());
        }
        written.context("kubectl did not read the manifests")
    }
}
