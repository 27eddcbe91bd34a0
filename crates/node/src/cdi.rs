//! CDI files: what the container runtime adds to containers that name a claim. It is one thing, the
//! hook that runs the guard; so a container of the claim cannot be made without it, whether this
//! program runs or not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

/// The kind of our CDI devices; a claim's UID is the name of one.
pub const KIND: &str = "forebay.dev/nic";
/// What the runtime lets the guard take at most, seconds; it fails the container after that.
const GUARD_TIMEOUT_S: u32 = 10;

/// The folder of CDI files, and how to call the guard from where the runtime is.
#[derive(Clone, Debug)]
pub struct Cdi {
    /// Where the runtime reads CDI files, such as `/var/run/cdi`.
    pub folder: PathBuf,
    /// The program on the host's file system.
    pub program: PathBuf,
    /// The ledger's folder, as the host sees it.
    pub state: PathBuf,
}

impl Cdi {
    /// Writes the file of a claim, and gives the name that the kubelet passes to the runtime.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, uid: &str) -> io::Result<String> {
        fs::create_dir_all(&self.folder)?;
        let hook = json!({
            "hookName": "createRuntime",
            "path": self.program,
            "args": [
                "forebay", "node", "guard",
                "--state-dir", self.state, "--claim", uid,
            ],
            "timeout": GUARD_TIMEOUT_S,
        });
        let spec = json!({
            "cdiVersion": "0.5.0",
            "kind": KIND,
            "devices": [{ "name": uid, "containerEdits": { "hooks": [hook] } }],
        });
        let place = self.place(uid);
        // Runtimes read `.json` and `.yaml` only.
        let beside = place.with_extension("tmp");
        // Not synced: after the host's end the kubelet has every claim prepared again before it is used.
        fs::write(&beside, format!("{spec:#}\n"))?;
        fs::rename(&beside, &place)?;
        Ok(format!("{KIND}={uid}"))
    }

    /// Takes the file of a claim away; one that is not there is no error.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        match fs::remove_file(self.place(uid)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Where the file of a claim is.
    pub fn place(&self, uid: &str) -> PathBuf {
        self.folder
            .join(Path::new(&format!("forebay.dev-nic_{uid}.json")))
    }
}
