//! The program that container runtimes call before a container starts: a copy of this one on the host, where
//! it stays whether a pod of the driver is there or not.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Copies this program beside the ledger; a runtime that calls it meanwhile gets the old one or the new one.
pub(super) fn install(state: &Path) -> io::Result<PathBuf> {
    place(&std::env::current_exe()?, state)
}

fn place(own: &Path, state: &Path) -> io::Result<PathBuf> {
    let folder = state.join("bin");
    fs::create_dir_all(&folder)?;
    let place = folder.join("forebay");
    // Two instances may do this at once, each beside its own.
    let beside = folder.join(format!("forebay.{}", std::process::id()));
    let copied = fs::copy(own, &beside)
        .and_then(|_| fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)))
        .and_then(|()| File::open(&beside)?.sync_all())
        .and_then(|()| fs::rename(&beside, &place));
    if let Err(error) = copied {
        // What is left of it is of no use, and the error says more than one of its removal.
        let _gone = fs::remove_file(&beside);
        return Err(error);
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_replaced_as_a_whole_and_can_be_run() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own");
        fs::write(&own, "new").unwrap();
        fs::create_dir_all(folder.path().join("bin")).unwrap();
        fs::write(folder.path().join("bin/forebay"), "old").unwrap();
        let placed = place(&own, folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&placed).unwrap(), "new");
        assert_eq!(
            fs::metadata(&placed).unwrap().permissions().mode() & 0o777,
            0o755
        );
        assert_eq!(fs::read_dir(folder.path().join("bin")).unwrap().count(), 1);
        assert!(place(&folder.path().join("none"), folder.path()).is_err());
    }
}
