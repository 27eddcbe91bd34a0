//! The lock that lets one instance of the driver work on claims while another serves beside it.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

/// How often a lock that another has is tried again: waiting for it otherwise would hold a thread.
const RETRY: Duration = Duration::from_millis(20);

/// A lock on a file, which goes with the process that has it.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    timeout: Duration,
}

impl Lock {
    pub(super) fn new(path: PathBuf, timeout: Duration) -> Self {
        Self { path, timeout }
    }

    /// Waits for the lock; it is held until the answer is dropped.
    pub(super) async fn hold(&self) -> Result<File, String> {
        let path = self.path.display();
        let cannot = |error| format!("cannot lock {path}: {error}");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.path)
            .map_err(cannot)?;
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if since.elapsed() < self.timeout => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(format!(
                        "another instance of the driver has held {path} for {} s; it is tried again, and \
                         if this stays, look whether that instance hangs",
                        self.timeout.as_secs()
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(cannot(error)),
            }
        }
    }
}
