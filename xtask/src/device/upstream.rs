//! Upstream's dranet on a bed: its module, its driver as its own `install.yaml` has it, and its removal.
//!
//! Nothing of it is kept here: `tools/dranet` pins the module, Go fetches it.

use super::world::RAILS;
use super::{Bed, get, wait};
use crate::cluster;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// Where its manifest puts it.
const PLACE: [&str; 2] = ["-n", "kube-system"];
/// A folder that its pod mounts and that the runtime makes on the machine if it is not there.
const INFINIBAND: &str = "/dev/infiniband";

/// The module and an image of its driver.
#[derive(Debug)]
pub(super) struct Dranet {
    folder: PathBuf,
    pub(super) version: String,
    /// Whether the machine has the folder of `INFINIBAND` by itself.
    has_infiniband: bool,
}

/// The module, fetched if need be.
pub(super) fn folder() -> Result<PathBuf> {
    cluster::dranet_folder().context("upstream's dranet cannot be fetched")
}

/// Fetches and builds it, and brings its image to the nodes.
pub(super) fn ready(bed: &Bed) -> Result<Dranet> {
    let folder = folder()?;
    let version = folder
        .file_name()
        .and_then(|name| name.to_str()?.rsplit_once('@'))
        .map(|(_, version)| version.to_owned())
        .context("the folder of dranet's module has no version")?;
    bed.import(&[cluster::dranet_image()?])?;
    Ok(Dranet {
        folder,
        version,
        has_infiniband: Path::new(INFINIBAND).exists(),
    })
}

/// Its driver on every node, as `install.yaml` has it; like upstream's own tests it is given a filter, since it
/// leaves veths out without one.
pub(super) fn install(bed: &Bed, dranet: &Dranet) -> Result<()> {
    let file = dranet.folder.join("install.yaml");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    bed.apply(&with_arguments(&text)?)?;
    let wait = [
        "rollout",
        "status",
        "--timeout=120s",
        PLACE[0],
        PLACE[1],
        "daemonset/dranet",
    ];
    bed.kubectl(&wait).map(drop).with_context(|| {
        let logs = ["logs", PLACE[0], PLACE[1], "daemonset/dranet", "--tail=20"];
        bed.kubectl(&logs).unwrap_or_default()
    })
}

fn with_arguments(manifest: &str) -> Result<String> {
    let rails: Vec<String> = (0..RAILS).map(|rail| format!("\"rail{rail}\"")).collect();
    let filter = format!(
        "\"dra.net/ifName\" in attributes && attributes[\"dra.net/ifName\"].StringValue in [{}]",
        rails.join(", ")
    );
    let verbosity = "        - --v=4\n";
    ensure!(
        manifest.contains(verbosity),
        "the arguments in dranet's install.yaml are not as expected"
    );
    let arguments =
        format!("{verbosity}        - '--filter={filter}'\n        - --cloud-provider-hint=NONE\n");
    Ok(manifest.replacen(verbosity, &arguments, 1))
}

/// Takes it away if it is there.
pub(super) fn remove(bed: &Bed, dranet: &Dranet) -> Result<()> {
    let delete = [
        "delete",
        PLACE[0],
        PLACE[1],
        "daemonset/dranet",
        "--ignore-not-found",
    ];
    bed.kubectl(&delete)?;
    wait("dranet to be gone", || {
        let pods = get(bed, &["pods", PLACE[0], PLACE[1], "-l", "app=dranet"])?;
        Ok(pods["items"]
            .as_array()
            .is_some_and(Vec::is_empty)
            .then_some(()))
    })?;
    bed.kubectl(&["delete", "resourceslices", "--all"])?;
    if !dranet.has_infiniband {
        // It may not have been made; and one with something in it stays.
        let _ = fs::remove_dir(INFINIBAND);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_put_beside_the_arguments_of_the_manifest() {
        let text =
            "        - /dranet\n        - --v=4\n        - --hostname-override=$(NODE_NAME)\n";
        let changed = with_arguments(text).expect("the arguments");
        assert!(changed.contains("        - '--filter=\"dra.net/ifName\" in attributes"));
        assert!(changed.ends_with("        - --hostname-override=$(NODE_NAME)\n"));
        assert!(with_arguments("args: []").is_err());
    }
}
