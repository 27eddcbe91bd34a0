//! What each worker writes apart from the others, and readers put together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One `T` for each worker. Workers keep theirs; the list is locked only to add one and to read.
#[derive(Debug)]
pub(crate) struct PerWorker<T>(Mutex<Vec<Arc<T>>>);

impl<T> Default for PerWorker<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> PerWorker<T> {
    /// One for a further worker.
    pub(crate) fn add(&self) -> Arc<T> {
        let own = Arc::<T>::default();
        lock(&self.0).push(Arc::clone(&own));
        own
    }

    /// Those of all workers.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        lock(&self.0).clone()
    }
}

/// Locks what is usable whatever happened to whoever held the lock: counters, lists, caches. A panic
/// while it is held is a bug that took its own request with it and no other.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
