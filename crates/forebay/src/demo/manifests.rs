//! The demo's manifests, as a user would write them: a Gateway, an HTTPRoute, an InferencePool and
//! four Pods, in one file that is replaced when the servers or the picker change.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::servers::COUNT;
use crate::Failure;

/// The pool.
pub(super) const POOL: &str = "default/llama";

/// A folder with the manifests, gone when this is dropped.
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
    let mut text = format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: forebay}}
spec: {{controllerName: forebay.dev/gateway}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: demo}}
spec:
  gatewayClassName: forebay
  listeners:
  - {{name: http, protocol: HTTP, port: {gateway_port}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: llama}}
spec:
  parentRefs: [{{name: demo}}]
  rules:
  - backendRefs:
    - {{group: inference.networking.k8s.io, kind: InferencePool, name: llama}}
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: llama
  annotations:
    # default, round-robin, least-request, or a whole picker configuration (docs/picking.md)
    forebay.dev/picker: {picker}
spec:
  selector: {{matchLabels: {{app: llama}}}}
  targetPorts: [{{number: {target_port}}}]
"
    );
    for n in 1..=COUNT {
        let _infallible = write!(
            text,
            "\
---
apiVersion: v1
kind: Pod
metadata: {{name: llama-{n}, labels: {{app: llama}}}}
status: {{podIP: 127.0.0.{n}}}
"
        );
    }
    text
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
