//! Names of the sockets below the kubelet's folder, and who owns and removes them.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::Settings;

/// Bytes of a socket's path that the kernel takes, without the zero at its end.
const PATH_LEN_MAX: usize = 107;
const REGISTRY_SUFFIX: &str = "-reg.sock";

/// Where everything is.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Paths {
    driver: String,
    pub(super) registry: PathBuf,
    pub(super) claims: PathBuf,
    pub(super) lock: PathBuf,
}

impl Paths {
    pub(super) fn new(settings: &Settings) -> io::Result<Self> {
        let driver = &settings.driver;
        if driver.is_empty() || driver.contains('/') {
            let text = format!("{driver:?} is no name of a driver: use a DNS name");
            return Err(io::Error::new(ErrorKind::InvalidInput, text));
        }
        let registry = settings.root.join("plugins_registry");
        let folder = settings.root.join("plugins").join(driver);
        let (registry, claims) = match settings.pod_uid.as_deref() {
            None => (
                registry.join(format!("{driver}{REGISTRY_SUFFIX}")),
                folder.join("dra.sock"),
            ),
            Some(uid) => (
                shortest(
                    |id| registry.join(format!("{driver}-{id}{REGISTRY_SUFFIX}")),
                    uid,
                ),
                shortest(|id| folder.join(format!("dra-{id}.sock")), uid),
            ),
        };
        for path in [&registry, &claims] {
            let len = path.as_os_str().len();
            if len > PATH_LEN_MAX {
                return Err(io::Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "{}: {len} bytes are too many for a socket, at most {PATH_LEN_MAX} are \
                         possible: give the kubelet's folder or the driver a shorter name",
                        path.display()
                    ),
                ));
            }
        }
        Ok(Self {
            driver: driver.clone(),
            registry,
            claims,
            lock: folder.join("claims.lock"),
        })
    }

    /// Makes the folders and removes sockets at which nobody listens any more: the kubelet would ask
    /// there again and again.
    pub(super) async fn prepare(&self) -> io::Result<()> {
        let registry_prefix = format!("{}-", self.driver);
        for (socket, prefix, suffix) in [
            (&self.registry, registry_prefix.as_str(), REGISTRY_SUFFIX),
            (&self.claims, "dra", ".sock"),
        ] {
            let folder = socket.parent().unwrap_or_else(|| Path::new("/"));
            fs::create_dir_all(folder).map_err(|error| named(folder, &error))?;
            for entry in fs::read_dir(folder).map_err(|error| named(folder, &error))? {
                let entry = entry?;
                let name = entry.file_name();
                let ours = name
                    .to_str()
                    .is_some_and(|name| name.starts_with(prefix) && name.ends_with(suffix));
                if ours && is_dead(&entry.path()).await {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

/// The path with the UID, or with a hash of it if that is too long.
fn shortest(path: impl Fn(&str) -> PathBuf, uid: &str) -> PathBuf {
    let long = path(uid);
    if long.as_os_str().len() <= PATH_LEN_MAX {
        return long;
    }
    path(&format!("{:016x}", fnv(uid.as_bytes())))
}

/// FNV-1a: the same for every build, which the standard library's does not promise.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

async fn is_dead(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    is_socket
        && matches!(UnixStream::connect(path).await, Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(named(path, &error)),
        _ => Ok(()),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A socket's file, removed at the end unless another took its name.
#[derive(Debug)]
pub(super) struct OwnSocket {
    path: PathBuf,
    inode: u64,
}

impl OwnSocket {
    /// Listens. A socket of this very name is replaced: it belongs to an earlier instance.
    pub(super) fn bind(path: &Path) -> io::Result<(UnixListener, Self)> {
        if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            remove(path)?;
        }
        let listener = UnixListener::bind(path).map_err(|error| named(path, &error))?;
        let own = Self {
            path: path.to_owned(),
            inode: fs::symlink_metadata(path)
                .map_err(|error| named(path, &error))?
                .ino(),
        };
        Ok((listener, own))
    }

    pub(super) fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            // It serves no longer, whether this succeeds or not; the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(root: &str, uid: Option<&str>) -> Settings {
        let mut settings = Settings::new("forebay.dev");
        settings.root = PathBuf::from(root);
        settings.pod_uid = uid.map(str::to_owned);
        settings
    }

    #[test]
    fn names_are_those_that_the_kubelet_looks_for() {
        let uid = "5b3a1a60-2d5c-4a43-8a53-0123456789ab";
        let paths = Paths::new(&settings("/var/lib/kubelet", None)).expect("short");
        let registry = "/var/lib/kubelet/plugins_registry/forebay.dev-reg.sock";
        assert_eq!(paths.registry, Path::new(registry));
        assert_eq!(
            paths.claims,
            Path::new("/var/lib/kubelet/plugins/forebay.dev/dra.sock")
        );
        let paths = Paths::new(&settings("/var/lib/kubelet", Some(uid))).expect("short");
        assert!(
            paths
                .registry
                .ends_with(format!("forebay.dev-{uid}-reg.sock"))
        );
        assert!(paths.claims.ends_with(format!("dra-{uid}.sock")));
    }

    #[test]
    fn a_path_that_is_too_long_gets_a_hash_and_one_that_stays_too_long_an_error() {
        let uid = "5b3a1a60-2d5c-4a43-8a53-0123456789ab";
        let root = format!("/{}", "r".repeat(50));
        let paths = Paths::new(&settings(&root, Some(uid))).expect("short enough with a hash");
        let hashed = format!("forebay.dev-{:016x}-reg.sock", fnv(uid.as_bytes()));
        assert!(paths.registry.ends_with(hashed), "{paths:?}");
        let root = format!("/{}", "r".repeat(100));
        let error = Paths::new(&settings(&root, Some(uid))).expect_err("too long");
        assert!(error.to_string().contains("shorter name"), "{error}");
    }
}
