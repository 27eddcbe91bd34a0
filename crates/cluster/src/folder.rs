//! Files on disk to changes of an index: which files there are, which of them changed, and whose
//! object counts when two files define one. Synchronous; `files` decides when it runs.
//!
//! A file that cannot be read keeps the objects that it last held, and so does an object that is
//! refused; a file that is gone takes its objects with it.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Metadata};
use std::hash::Hasher;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use forebay_api::{Index, Kind, Object};
use forebay_model::ObjectName;
use forebay_model::snapshot::Problem;

use crate::manifest::{self, FILE_BYTES_MAX, place, problem};

/// Files that are read; of more, those later by name are left out with a problem.
pub(crate) const FILES_MAX: usize = 10_000;
/// Bytes of all files together; files beyond, by name, are left out with a problem.
const TOTAL_BYTES_MAX: u64 = 256 << 20;
/// Folders within folders that are looked into.
const DEPTH_MAX: usize = 8;
/// A file that was written this shortly before it was read is read again: a further write may not
/// show in its times.
const SETTLE: Duration = Duration::from_secs(1);

type Key = (Kind, ObjectName);

/// The files under some paths, and what of them the index has.
#[derive(Debug)]
pub(crate) struct Folder {
    roots: Vec<PathBuf>,
    files: BTreeMap<PathBuf, File>,
    /// Problems of the last walk: folders that cannot be read, bounds that were reached.
    walk_problems: Vec<Problem>,
    /// Who owns each object that the index has, and which state of the owner it comes from.
    applied: HashMap<Key, (PathBuf, u64)>,
}

/// One file as last read.
#[derive(Debug)]
struct File {
    stamp: Option<Stamp>,
    text_hash: u64,
    /// Grows with each change of the objects.
    version: u64,
    objects: Vec<(u64, Object)>,
    problems: Vec<Problem>,
}

/// What tells that a file has changed without reading it. The inode is in it, because a ConfigMap
/// is swapped by a symbolic link and its files may have equal times and lengths.
#[derive(Clone, PartialEq, Debug)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    #[cfg(unix)]
    inode: (u64, u64, i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Self {
            modified: metadata.modified().ok(),
            len: metadata.len(),
            #[cfg(unix)]
            inode: (
                metadata.dev(),
                metadata.ino(),
                metadata.ctime(),
                metadata.ctime_nsec(),
            ),
        }
    }

    /// Whether a write right now would show in the stamp.
    fn is_settled(&self) -> bool {
        let age = self.modified.map(|at| at.elapsed().unwrap_or_default());
        age.is_some_and(|age| age > SETTLE)
    }
}

impl Folder {
    pub(crate) fn new(roots: Vec<PathBuf>) -> Self {
        Self {
            roots,
            files: BTreeMap::new(),
            walk_problems: Vec::new(),
            applied: HashMap::new(),
        }
    }

    pub(crate) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Makes the next [`sync`](Self::sync) read every file, whatever its times say.
    pub(crate) fn forget_times(&mut self) {
        for file in self.files.values_mut() {
            file.stamp = None;
        }
    }

    /// Looks at every file, reads those that changed, and brings the index up to date.
    pub(crate) fn sync(&mut self, index: &mut Index) {
        let mut walk = Walk::default();
        for root in &self.roots {
            walk.visit(root, 0, true);
        }
        self.files.retain(|path, _| walk.found.contains_key(path));
        for (path, stamp) in walk.found {
            let file = self.files.entry(path.clone()).or_insert_with(File::new);
            let known = file.stamp.as_ref() == Some(&stamp);
            if !known {
                file.reload(&path, stamp);
            }
        }
        self.walk_problems = walk.problems;
        self.apply(index);
    }

    /// Tells the index what changed; the first file by name owns an object.
    fn apply(&mut self, index: &mut Index) {
        let mut problems = self.walk_problems.clone();
        let mut owners: HashMap<Key, (&Path, u64)> = HashMap::new();
        for (path, file) in &self.files {
            problems.extend_from_slice(&file.problems);
            for (line, object) in &file.objects {
                let key = (object.kind(), object.name());
                if let Some((owner, line_of_owner)) = owners.get(&key) {
                    let first = place(&owner.display().to_string(), *line_of_owner);
                    let here = place(&path.display().to_string(), *line);
                    let message =
                        format!("{first} defines this object already and counts; remove one");
                    let object = format!("{} {} ({here})", key.0, key.1);
                    problems.push(problem(&object, "Duplicate", message));
                    continue;
                }
                owners.insert(key.clone(), (path, *line));
                let applied = self.applied.get(&key);
                let same = applied.is_some_and(|(owner, at)| owner == path && *at == file.version);
                if !same {
                    index.apply(object.clone());
                    self.applied.insert(key, (path.clone(), file.version));
                }
            }
        }
        self.applied.retain(|key, _| {
            let stays = owners.contains_key(key);
            if !stays {
                index.delete(key.0, &key.1);
            }
            stays
        });
        index.set_source_problems(problems);
    }
}

impl File {
    fn new() -> Self {
        Self {
            stamp: None,
            text_hash: 0,
            version: 0,
            objects: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn reload(&mut self, path: &Path, stamp: Stamp) {
        let name = path.display().to_string();
        self.stamp = stamp.is_settled().then_some(stamp);
        let text = match read_text(path) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("{error}; the objects of this file stay as they were");
                self.text_hash = 0;
                self.problems = vec![problem(&name, "Unreadable", message)];
                return;
            }
        };
        let hash = hash(&text);
        // Whoever writes in place empties the file first. An empty file counts when it stays so.
        let half_written = text.trim().is_empty() && self.stamp.is_none() && self.version > 0;
        if hash == self.text_hash || half_written {
            return;
        }
        self.text_hash = hash;
        match manifest::read(&name, &text) {
            Ok(manifest) => self.replace(manifest),
            Err(problem) => self.problems = vec![problem],
        }
    }

    fn replace(&mut self, manifest: manifest::Manifest) {
        let before = std::mem::replace(&mut self.objects, manifest.objects);
        let key = |object: &Object| (object.kind(), object.name());
        let kept = before.into_iter().filter(|(_, object)| {
            let key = key(object);
            manifest.refused.contains(&key)
        });
        let mut kept: Vec<_> = kept.collect();
        kept.retain(|(_, old)| !self.objects.iter().any(|(_, new)| key(new) == key(old)));
        self.objects.extend(kept);
        self.problems = manifest.problems;
        self.version += 1;
    }
}

/// Never zero, which stands for a file whose text is not known.
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(text.as_bytes());
    hasher.finish().max(1)
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut file = fs::File::open(path)?.take(FILE_BYTES_MAX + 1);
    file.read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let message = format!("larger than {FILE_BYTES_MAX} bytes; split it");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

/// The manifests under a path: every `.yaml`, `.yml` and `.json` that is not hidden. Hidden names
/// are left out since a mounted ConfigMap keeps its versions in hidden folders.
#[derive(Default)]
struct Walk {
    found: BTreeMap<PathBuf, Stamp>,
    bytes: u64,
    problems: Vec<Problem>,
}

impl Walk {
    /// `named`: the user wrote this path, so it counts whatever its name.
    fn visit(&mut self, path: &Path, depth: usize, named: bool) {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // A file that goes while we look is gone; one that the user named is missed.
            Err(error) if !named && error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.fault(path, "Unreadable", error.to_string()),
        };
        if metadata.is_dir() {
            self.visit_folder(path, depth);
        } else if metadata.is_file() && (named || is_manifest(path)) {
            self.bytes += metadata.len().min(FILE_BYTES_MAX);
            if self.found.len() == FILES_MAX || self.bytes > TOTAL_BYTES_MAX {
                let message = format!(
                    "not read: at most {FILES_MAX} files of {TOTAL_BYTES_MAX} bytes together are"
                );
                return self.fault(path, "TooLarge", message);
            }
            self.found.insert(path.to_owned(), Stamp::of(&metadata));
        }
    }

    fn visit_folder(&mut self, path: &Path, depth: usize) {
        if depth == DEPTH_MAX {
            let message = format!("not read: folders are {DEPTH_MAX} deep at most");
            return self.fault(path, "TooLarge", message);
        }
        let names = fs::read_dir(path).and_then(|entries| {
            let paths = entries.map(|entry| entry.map(|entry| entry.path()));
            paths.collect::<io::Result<Vec<_>>>()
        });
        match names {
            Err(error) => self.fault(path, "Unreadable", error.to_string()),
            Ok(mut paths) => {
                paths.sort();
                let visible = paths.iter().filter(|path| !is_hidden(path));
                visible.for_each(|path| self.visit(path, depth + 1, false));
            }
        }
    }

    fn fault(&mut self, path: &Path, reason: &'static str, message: String) {
        // One of many is enough: the first names the bound or the error.
        if self.problems.len() < 16 {
            let path = path.display().to_string();
            self.problems.push(problem(&path, reason, message));
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    ["yaml", "yml", "json"].iter().any(|own| extension == *own)
}

#[cfg(test)]
mod tests {
    use forebay_api::Settings;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const POOL: &str = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\n\
                        metadata: {name: p}\n\
                        spec: {selector: {matchLabels: {a: b}}, targetPorts: [{number: 1}]}\n";

    #[test]
    fn a_change_that_no_time_shows_is_found_by_reading_everything() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pool.yaml");
        let mut folder = Folder::new(vec![root.path().to_owned()]);
        let mut index = Index::new(Settings::default());
        fs::write(&path, POOL).unwrap();
        folder.sync(&mut index);
        fs::write(&path, POOL.replace("name: p", "name: q")).unwrap();
        // A file system with coarse times: the changed file looks as it did when it was read.
        let now = Stamp::of(&fs::metadata(&path).unwrap());
        folder.files.get_mut(&path).unwrap().stamp = Some(now);
        let pool_after = |folder: &mut Folder, index: &mut Index| {
            folder.sync(index);
            let snapshot = index.publish().snapshot;
            snapshot.pools.keys().next().unwrap().name.to_string()
        };
        assert_eq!(pool_after(&mut folder, &mut index), "p");
        folder.forget_times();
        assert_eq!(pool_after(&mut folder, &mut index), "q");
    }

    #[test]
    fn an_emptied_file_counts_only_when_it_stays_empty() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pool.yaml");
        let mut folder = Folder::new(vec![root.path().to_owned()]);
        let mut index = Index::new(Settings::default());
        let mut pools_after = |text: &str, written: SystemTime| {
            fs::write(&path, text).unwrap();
            let file = fs::File::options().append(true).open(&path).unwrap();
            file.set_modified(written).unwrap();
            folder.sync(&mut index);
            index.publish().snapshot.pools.len()
        };
        let (just_now, long_ago) = (SystemTime::now() + HOUR, SystemTime::now() - HOUR);
        assert_eq!(pools_after(POOL, just_now), 1);
        assert_eq!(pools_after("", just_now), 1);
        assert_eq!(pools_after("", long_ago), 0);
    }
}
