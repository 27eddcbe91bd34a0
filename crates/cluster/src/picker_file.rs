//! The policy of pools that name none of their own: an `EndpointPickerConfig` in a file, watched as
//! folders are, or as a text.
//!
//! A file that does not hold any more, or is gone, leaves the last good policy in force, and says so
//! until it holds again. It is best replaced by renaming, as a ConfigMap is.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_api::picker_config::{self, Loaded};
use forebay_model::PickerConfig;
use forebay_model::snapshot::Problem;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::files::{POLL, quiet, watcher};

/// What pools are picked by, and what is wrong with what they should be picked by.
#[derive(Clone, PartialEq, Debug)]
pub struct PickerInForce {
    /// The last good policy.
    pub picker: Arc<PickerConfig>,
    /// Why the file does not hold; empty if it does.
    pub problems: Vec<Problem>,
}

/// A policy that is followed.
#[derive(Debug)]
pub struct PickerFile {
    /// None if it is a text, which does not change.
    path: Option<PathBuf>,
    publish: watch::Sender<PickerInForce>,
}

impl PickerFile {
    /// Reads the file at `path`; gives what to run and the channel that it publishes on, which holds
    /// the first policy already. Blocks while it reads.
    ///
    /// # Errors
    /// Everything that is wrong with the file: at the start there is no last good one.
    pub fn open(path: PathBuf) -> Result<(Self, watch::Receiver<PickerInForce>), Vec<Problem>> {
        let loaded = read(&path)?;
        Ok(Self::of(Some(path), loaded))
    }

    /// The same of a text.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn text(text: &str) -> Result<(Self, watch::Receiver<PickerInForce>), Vec<Problem>> {
        Ok(Self::of(None, picker_config::read(text)?))
    }

    fn of(path: Option<PathBuf>, loaded: Loaded) -> (Self, watch::Receiver<PickerInForce>) {
        for note in &loaded.notes {
            tracing::info!("{note}");
        }
        let (publish, receiver) = watch::channel(PickerInForce {
            picker: Arc::new(loaded.picker),
            problems: Vec::new(),
        });
        (Self { path, publish }, receiver)
    }

    /// Publishes every change until nobody listens any more.
    pub async fn run(self) {
        let Self { path, publish } = self;
        let Some(path) = path else {
            return publish.closed().await;
        };
        // One place is enough: a waiting "look again" stands for any number of changes.
        let (wake, mut woken) = mpsc::channel(1);
        let _watcher = watcher(std::slice::from_ref(&path), wake.clone());
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = publish.closed() => return,
                _ = poll.tick() => {}
                // `wake` is held above, so the channel stays open.
                _ = woken.recv() => quiet(&mut woken).await,
            }
            let looking = path.clone();
            let looked = tokio::task::spawn_blocking(move || read(&looking)).await;
            match looked {
                Ok(read) => {
                    publish.send_if_modified(|last| replace(last, read));
                }
                Err(error) => {
                    tracing::error!(%error, "reading the picker's configuration broke off; it is watched no more");
                    return;
                }
            }
        }
    }
}

fn replace(last: &mut PickerInForce, read: Result<Loaded, Vec<Problem>>) -> bool {
    match read {
        Ok(loaded) => {
            if last.problems.is_empty() && *last.picker == loaded.picker {
                return false;
            }
            for note in &loaded.notes {
                tracing::info!("{note}");
            }
            tracing::info!("the picker's configuration changed");
            *last = PickerInForce {
                picker: Arc::new(loaded.picker),
                problems: Vec::new(),
            };
        }
        Err(problems) => {
            if last.problems == problems {
                return false;
            }
            for problem in &problems {
                tracing::error!("{problem}");
            }
            tracing::error!("the picker's configuration does not hold; the last good one stays");
            last.problems = problems;
        }
    }
    true
}

fn read(path: &Path) -> Result<Loaded, Vec<Problem>> {
    let unreadable = |error: std::io::Error| {
        vec![Problem {
            object: format!("EndpointPickerConfig {}", path.display()),
            field: String::new(),
            reason: "Unreadable",
            message: format!("{error}; name a file that may be read"),
        }]
    };
    let mut text = String::new();
    // One byte more than is read, so that a longer one is refused and not cut.
    let limit = picker_config::TEXT_BYTES_MAX as u64 + 1;
    let file = File::open(path).map_err(unreadable)?;
    file.take(limit)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    picker_config::read(&text).map_err(|mut problems| {
        for problem in &mut problems {
            problem.object = format!("{} {}", problem.object, path.display());
        }
        problems
    })
}
