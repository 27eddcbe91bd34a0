//! Small files that others read while they are replaced: each is there as a whole, as it was or as it is.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Replaces a file by way of one beside it, whose name ends with `ending`. Not synced: after the host's end the
/// kubelet has every claim prepared anew.
///
/// # Errors
/// Those of the file system; what was there stays.
pub(crate) fn replace(place: &Path, ending: &str, content: &[u8]) -> io::Result<()> {
    let beside = place.with_extension(ending);
    fs::write(&beside, content)?;
    fs::rename(&beside, place)
}

/// As [`replace`], and on disk when this is back. If the machine ends before, what was there stays; where
/// nothing was there, a torn file may be, and its reader has to see that.
///
/// # Errors
/// Those of the file system.
pub(crate) fn replace_synced(place: &Path, ending: &str, content: &[u8]) -> io::Result<()> {
    let beside = place.with_extension(ending);
    let mut file = File::create(&beside)?;
    file.write_all(content)?;
    // Content and name go to the disk together where nothing can be lost by that: one wait, not two.
    let together = !place.try_exists()?;
    if !together {
        file.sync_all()?;
    }
    fs::rename(&beside, place)?;
    if together {
        file.sync_all()?;
    }
    place.parent().map_or(Ok(()), sync)
}

/// Has on disk what a folder holds.
///
/// # Errors
/// Those of the file system.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Takes a file away; one that is not there is no error.
///
/// # Errors
/// Those of the file system.
pub(crate) fn forget(place: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(place))
}

/// As [`forget`], of a folder with all that is in it.
///
/// # Errors
/// Those of the file system.
pub(crate) fn forget_folder(place: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_dir_all(place))
}

fn absent_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
