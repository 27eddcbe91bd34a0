//! The bed that `cargo xtask test` brings up for tests that need an API server, and takes down
//! after them.

use super::binaries::{self, Module};
use super::plan::{Nodes, Shape};
use super::{down, env, state, up};
use crate::shell;
use anyhow::{Result, bail};
use std::fs::File;
use std::path::PathBuf;

/// Its name.
const NAME: &str = "tests";

/// Its lock for the whole run; the bed's own is held only while it goes up or down.
const RUN: &str = "tests-run";

/// Enough to see pods of one pool on several nodes.
const SHAPE: Shape = Shape {
    clusters: 1,
    nodes: 3,
    kind: Nodes::Fake,
};

/// A bed that goes down with this value.
#[derive(Debug)]
pub(crate) struct TestBed {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    _run: File,
}

impl TestBed {
    /// Brings the bed up; the error is the reason why tests are skipped. Kubernetes is not built
    /// here: that takes longer than a test run should by itself.
    pub(crate) fn start() -> Result<Self> {
        if !shell::is_root() {
            bail!("a Kubernetes API server is started by root only");
        }
        let built = binaries::locate(Module::Cluster)?;
        if !binaries::missing(&built, &binaries::CONTROL_PLANE).is_empty() {
            bail!("Kubernetes is not built: `cargo xtask cluster build --control-plane-only`");
        }
        let run = state::lock(RUN)?;
        // An earlier run may have been killed: its objects must not be found.
        down::by_name(NAME)?;
        up::ensure(NAME, SHAPE, None)?;
        let kubeconfig = state::Record::read(NAME)?.map(|record| env::kubeconfig(&record.bed));
        match kubeconfig {
            Some(kubeconfig) => Ok(Self {
                kubeconfig,
                kubectl: built.program("kubectl"),
                _run: run,
            }),
            None => bail!("the bed {NAME} vanished"),
        }
    }

    /// How an administrator reaches it.
    pub(crate) fn kubeconfig(&self) -> &std::path::Path {
        &self.kubeconfig
    }

    /// A kubectl of its version.
    pub(crate) fn kubectl(&self) -> &std::path::Path {
        &self.kubectl
    }
}

impl Drop for TestBed {
    fn drop(&mut self) {
        if let Err(error) = down::by_name(NAME) {
            eprintln!("bed {NAME} is not down: {error:#}");
        }
    }
}
