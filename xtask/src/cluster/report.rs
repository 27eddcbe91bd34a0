//! What a person sees of a bed coming up: one line per step, with the time since the start.

use std::time::Instant;

/// The clock of one command.
#[derive(Debug)]
pub(super) struct Report {
    started: Instant,
}

impl Report {
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    /// One step is done.
    pub(super) fn say(&self, who: &str, what: &str) {
        eprintln!(
            "[{:5.1} s] {who}: {what}",
            self.started.elapsed().as_secs_f64()
        );
    }
}
