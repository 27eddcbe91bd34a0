//! Files as a source: read once, or watched and published whenever what they mean changes.
//!
//! The kernel's notifications make a change live within a tenth of a second; a look at every file's
//! times every two seconds finds what notifications miss (network file systems, swapped links). Both
//! only say "look again": the folder decides what changed. A file is best replaced by renaming,
//! since one that is written in place may be read half written, once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use forebay_api::Publication as Published;
use forebay_api::{Index, Settings};
use forebay_model::Snapshot;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::folder::Folder;

/// Quiet time after a notification before files are looked at, so that one change of many files is
/// one publication.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Longest wait for that quiet.
const DEBOUNCE_MAX: Duration = Duration::from_millis(250);
/// Time between looks without a notification.
pub(crate) const POLL: Duration = Duration::from_secs(2);

/// Reads `paths` once, for checking a configuration.
#[must_use]
pub fn check(paths: Vec<PathBuf>) -> Published {
    Reader::new(paths).read()
}

/// Files and folders that are watched.
#[derive(Debug)]
pub struct FileSource {
    reader: Reader,
    publish: watch::Sender<Published>,
    reread: Reread,
}

/// Makes a [`FileSource`] read every file again, whether its times show a change or not.
#[derive(Clone, Debug, Default)]
pub struct Reread(Arc<Notify>);

impl Reread {
    /// Asks for it; while it is not done, asking again adds nothing.
    pub fn ask(&self) {
        self.0.notify_one();
    }
}

/// What is needed to look at the files; moves to a thread that may block and back.
#[derive(Debug)]
struct Reader {
    folder: Folder,
    index: Index,
}

impl Reader {
    fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            folder: Folder::new(paths),
            index: Index::new(Settings::default()),
        }
    }

    fn read(&mut self) -> Published {
        self.folder.sync(&mut self.index);
        self.index.publish()
    }
}

impl FileSource {
    /// Reads `paths` (files, and folders with what is in them) and gives the source to run and the
    /// channel that it publishes on, which holds the first state already. A path that does not
    /// exist is a problem in the snapshot and is watched for. Blocks while it reads.
    #[must_use]
    pub fn open(paths: Vec<PathBuf>) -> (Self, watch::Receiver<Published>) {
        let mut reader = Reader::new(paths);
        let (publish, receiver) = watch::channel(reader.read());
        let source = Self {
            reader,
            publish,
            reread: Reread::default(),
        };
        (source, receiver)
    }

    /// For whoever may ask for another reading while the source runs.
    #[must_use]
    pub fn reread(&self) -> Reread {
        self.reread.clone()
    }

    /// Publishes every change until nobody listens any more.
    pub async fn run(self) {
        let Self {
            mut reader,
            publish,
            reread,
        } = self;
        // One place is enough: a waiting "look again" stands for any number of changes.
        let (wake, mut woken) = mpsc::channel(1);
        let _watcher = watcher(reader.folder.roots(), wake.clone());
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut asked = false;
            tokio::select! {
                () = publish.closed() => return,
                _ = poll.tick() => {}
                // `wake` is held above, so the channel stays open.
                _ = woken.recv() => quiet(&mut woken).await,
                () = reread.0.notified() => {
                    reader.folder.forget_times();
                    asked = true;
                }
            }
            let looked = tokio::task::spawn_blocking(move || {
                let published = reader.read();
                (reader, published)
            });
            let published;
            (reader, published) = match looked.await {
                Ok(back) => back,
                Err(error) => {
                    tracing::error!(%error, "reading the configuration broke off; it is watched no more");
                    return;
                }
            };
            let changed = publish.send_if_modified(|last| replace(last, published));
            if asked && !changed {
                tracing::info!("every file was read again; nothing has changed");
            }
        }
    }
}

/// Waits until notifications pause.
pub(crate) async fn quiet(woken: &mut mpsc::Receiver<()>) {
    let pause = async { while timeout(DEBOUNCE, woken.recv()).await.is_ok() {} };
    tokio::select! {
        () = pause => {}
        () = sleep(DEBOUNCE_MAX) => {}
    }
}

fn replace(last: &mut Published, new: Published) -> bool {
    let same_snapshot = Arc::ptr_eq(&last.snapshot, &new.snapshot);
    let same_statuses = Arc::ptr_eq(&last.statuses, &new.statuses);
    if !same_snapshot {
        log(&last.snapshot, &new.snapshot);
    }
    *last = new;
    !(same_snapshot && same_statuses)
}

fn log(last: &Snapshot, new: &Snapshot) {
    tracing::info!(
        generation = new.generation,
        ports = new.ports.len(),
        pools = new.pools.len(),
        problems = new.problems.len(),
        "configuration changed"
    );
    for problem in &new.problems {
        if !last.problems.contains(problem) {
            tracing::warn!("{problem}");
        }
    }
}

/// Watches every root; where that fails, polling stands in.
pub(crate) fn watcher(roots: &[PathBuf], wake: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let notified = move |event: notify::Result<notify::Event>| {
        // Our own reading is an event too, and must not wake us.
        let is_read = matches!(&event, Ok(event) if event.kind.is_access());
        if !is_read {
            // A full channel has the message already.
            let _ = wake.try_send(());
        }
    };
    let mut watcher = match notify::recommended_watcher(notified) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "no file notifications; changes are looked for every {POLL:?}");
            return None;
        }
    };
    for root in roots {
        // A file is watched through its folder: replacing it by renaming would end a watch on it.
        let (place, mode) = match root.is_dir() {
            true => (root.as_path(), RecursiveMode::Recursive),
            false => (parent(root), RecursiveMode::NonRecursive),
        };
        if let Err(error) = watcher.watch(place, mode) {
            tracing::warn!(%error, path = %place.display(), "not notified of changes here; they are looked for every {POLL:?}");
        }
    }
    Some(watcher)
}

fn parent(path: &std::path::Path) -> &std::path::Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => std::path::Path::new("."),
    }
}
