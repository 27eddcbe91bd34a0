//! What has to be given back to who gave it, on disk until they were told: a claim is forgotten without waiting
//! for them, and they may be away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Source;
use crate::files;

/// So long it is tried. Who gave something away has to look for what was left over by then anyway: a node can
/// be gone for good.
const TRIED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Bytes of a file at most; a claim with 32 devices takes less than half.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is to be given back of a claim: for each device the host's interface, and from whom it is.
pub(crate) type Owed = Vec<(String, Source)>;

/// What a claim owes.
#[derive(Debug)]
pub(crate) struct Noted {
    /// The claim's UID.
    pub(crate) uid: String,
    /// What, and to whom.
    pub(crate) owed: Owed,
}

/// The folder of them.
#[derive(Clone, Debug)]
pub struct Releases {
    folder: PathBuf,
}

impl Releases {
    /// Below the folder of the ledger; it is made with the first of them.
    pub fn beside(ledger: &Path) -> Releases {
        Releases {
            folder: ledger.join("releases"),
        }
    }

    /// Notes what is owed of a claim; on disk when this is back.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn note(&self, uid: &str, owed: &Owed) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        files::replace_synced(&self.place(uid), "tmp", &serde_json::to_vec(owed)?)
    }

    /// Notes what is still owed of a claim for which something was; it is tried no longer for that.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn note_left(&self, uid: &str, owed: &Owed) -> io::Result<()> {
        let place = self.place(uid);
        let json = serde_json::to_vec(owed)?;
        if fs::read(&place)? == json {
            return Ok(());
        }
        let since = fs::metadata(&place)?.modified()?;
        files::replace_synced(&place, "tmp", &json)?;
        fs::File::open(&place)?.set_modified(since)
    }

    /// Whether something is.
    pub(crate) fn is_noted(&self, uid: &str) -> bool {
        self.place(uid).exists()
    }

    /// They were told, or the claim is there again.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn forget(&self, uid: &str) -> io::Result<()> {
        files::forget(&self.place(uid))
    }

    /// All that are noted, by claim. One that cannot be read, or that was tried for too long, is taken away and
    /// told of.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn all(&self) -> io::Result<(Vec<Noted>, Vec<String>)> {
        let (mut all, mut problems) = (Vec::new(), Vec::new());
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((all, problems)),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let place = entry?.path();
            if place.extension().is_none_or(|ending| ending != "owed") {
                continue;
            }
            match read(&place) {
                Ok(owed) => {
                    let uid = place.file_stem().unwrap_or_default();
                    let uid = uid.to_string_lossy().into_owned();
                    all.push(Noted { uid, owed });
                }
                Err(error) => {
                    files::forget(&place)?;
                    problems.push(format!("{}: {error}; not told again", place.display()));
                }
            }
        }
        Ok((all, problems))
    }

    /// UIDs come from the ledger, which looks what is in them.
    fn place(&self, uid: &str) -> PathBuf {
        self.folder.join(format!("{uid}.owed"))
    }
}

fn read(place: &Path) -> io::Result<Owed> {
    let meta = fs::metadata(place)?;
    let age = SystemTime::now().duration_since(meta.modified()?);
    if age.is_ok_and(|age| age > TRIED_FOR) {
        let hours = TRIED_FOR.as_secs() / 3600;
        return Err(io::Error::other(format!("not taken for {hours} hours")));
    }
    if meta.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("is too long"));
    }
    Ok(serde_json::from_slice(&fs::read(place)?)?)
}
