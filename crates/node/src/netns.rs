//! Work in another network namespace: on a thread of its own that enters it and ends with the work, so
//! that no other thread of the process ever is in a namespace that it does not expect.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` in the network namespace that `netns` is open on, and waits for it.
///
/// # Errors
/// Those of `work`, and that the namespace cannot be entered.
pub fn within<T: Send>(netns: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread in a namespace panicked")))
    })
}

/// Opens a namespace; none where its path is gone or is no namespace any more, as after its pod ended.
///
/// # Errors
/// Other failures to open it.
pub fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => {
            // What remains of a bind mount that was taken away is an empty file.
            let fs = rustix::fs::fstatfs(&file)?;
            Ok((fs.f_type == NSFS_MAGIC).then_some(file))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Holds a namespace at another path, so that it and the NICs in it outlive its pod until somebody took them
/// out: with its namespace, a NIC without hardware is gone. One that is held there already is no error.
///
/// # Errors
/// Those of the file system; a mount needs the rights for it.
pub fn hold(netns: &Path, at: &Path) -> io::Result<()> {
    let inode = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    if inode(at).is_ok_and(|held| inode(netns).is_ok_and(|netns| held == netns)) {
        return Ok(());
    }
    let_go(at)?;
    if let Some(folder) = at.parent() {
        fs::create_dir_all(folder)?;
    }
    File::create(at)?;
    Ok(mount_bind(netns, at)?)
}

/// Ends what [`hold`] did, also when another mount namespace did it; a path that holds nothing is no error.
///
/// # Errors
/// Those of the file system.
pub fn let_go(at: &Path) -> io::Result<()> {
    match unmount(at, UnmountFlags::DETACH) {
        // Nothing is there, or no mount.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    // The kernel takes the mount away wherever else it is when its place is deleted.
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The type of the file system that namespaces are files of.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
