//! The demo's manifests, as a user would write them: a Gateway, an HTTPRoute, an InferencePool and
//! four Pods, in one file that is replaced when the servers or the picker change.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::servers::hosts;
use crate::Failure;
use crate::manifest_text::World;

/// The pool.
pub(super) const POOL: &str = "default/llama";

/// A folder with the manifests, gone when this is dropped. What ends the process without that is
/// told in `interrupt.rs`.
pub(super) struct Folder {
    folder: TempDir,
    file: PathBuf,
    gateway_port: u16,
}

impl Folder {
    pub(super) fn create(gateway_port: u16) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("forebay-demo-").tempdir();
        let folder = folder
            .map_err(|error| Failure::world(format!("no folder for the manifests: {error}")))?;
        let file = folder.path().join("demo.yaml");
        Ok(Self {
            folder,
            file,
            gateway_port,
        })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.file
    }

    /// Replaces the file, whole at once.
    pub(super) fn write(&self, target_port: u16, picker: &str) -> Result<(), Failure> {
        let next = self.folder.path().join(".next");
        let text = manifests(self.gateway_port, target_port, picker);
        fs::write(&next, text)
            .and_then(|()| fs::rename(&next, &self.file))
            .map_err(|error| Failure::world(format!("{}: {error}", self.file.display())))
    }
}

fn manifests(gateway_port: u16, target_port: u16, picker: &str) -> String {
    let pods = hosts().map(IpAddr::V4);
    World {
        gateway: "demo",
        gateway_port,
        route: "llama",
        filters: "",
        pool: "llama",
        picker,
        target_port,
        app: "llama",
        pods: &pods.collect::<Vec<_>>(),
    }
    .text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_are_without_a_flaw() {
        let folder = Folder::create(8080).expect("a temporary folder");
        for picker in ["round-robin", "least-request", "default"] {
            folder.write(8000, picker).expect("writable");
            let published = forebay_cluster::check(vec![folder.path().to_owned()]);
            let snapshot = &published.snapshot;
            assert_eq!(snapshot.problems, []);
            assert!(snapshot.ports.contains_key(&8080));
            assert_eq!(
                snapshot.pools.values().next().expect("one").endpoints.len(),
                4
            );
        }
    }
}
