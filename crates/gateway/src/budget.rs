//! The memory for request bodies: one bound for the process, taken by workers in portions.
//!
//! A worker keeps a small portion for its next bodies, so that most requests come and go without
//! writing to the number that all workers share.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::shared::Shared;
use crate::worker::Worker;

/// What a worker takes at once...
const PORTION_BYTES: usize = 256 << 10;
/// ...but no more than this part of the whole, since what it keeps unused others cannot have.
const PORTIONS_LEAST: usize = 256;

/// One worker's part of the budget.
#[derive(Debug)]
pub(crate) struct Purse {
    shared: Arc<Shared>,
    portion: usize,
    /// Taken from the process's budget.
    granted: Cell<usize>,
    /// Of these, in use.
    used: Cell<usize>,
}

impl Purse {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let portion = PORTION_BYTES.min(shared.settings.buffered_bytes_max / PORTIONS_LEAST);
        Self {
            shared,
            portion,
            granted: Cell::new(0),
            used: Cell::new(0),
        }
    }

    fn take(&self, bytes: usize) -> bool {
        let used = self.used.get().saturating_add(bytes);
        let missing = used.saturating_sub(self.granted.get());
        if missing > 0 {
            let portion = missing.max(self.portion);
            let got = [portion, missing]
                .into_iter()
                .find(|part| self.shared.take_budget(*part));
            let Some(got) = got else {
                return false;
            };
            self.granted.set(self.granted.get() + got);
        }
        self.used.set(used);
        true
    }

    fn give_back(&self, bytes: usize) {
        let used = self.used.get() - bytes;
        self.used.set(used);
        let surplus = self.granted.get() - used;
        if surplus > self.portion {
            let returned = surplus - self.portion;
            self.granted.set(self.granted.get() - returned);
            self.shared.return_budget(returned);
        }
    }
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Buffered {
    worker: Rc<Worker>,
    bytes: usize,
}

impl Buffered {
    /// A share of nothing.
    pub(crate) fn none(worker: &Rc<Worker>) -> Self {
        Self {
            worker: Rc::clone(worker),
            bytes: 0,
        }
    }

    /// Takes more; false, and nothing taken, if the budget is used up.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let taken = self.worker.purse.take(bytes);
        self.bytes += if taken { bytes } else { 0 };
        taken
    }

    /// Takes as much more, or gives as much back, as makes it this many; false, and nothing changed,
    /// if the budget is used up.
    pub(crate) fn resize(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes {
            return self.grow(bytes - self.bytes);
        }
        self.worker.purse.give_back(self.bytes - bytes);
        self.bytes = bytes;
        true
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.worker.purse.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use crate::telemetry::{self, Telemetry};

    fn shared(budget: usize) -> Arc<Shared> {
        let settings = Settings {
            buffered_bytes_max: budget,
            ..Settings::default()
        };
        let off = telemetry::Settings {
            llm_d_names: false,
            access_log: telemetry::Format::Off,
            otlp: None,
        };
        let telemetry = Telemetry::new(&off).expect("no threads needed");
        Arc::new(Shared::new(settings, Arc::new(telemetry)))
    }

    #[test]
    fn workers_share_one_bound_and_hold_back_little() {
        let shared = shared(256 << 10);
        let (one, other) = (
            Purse::new(Arc::clone(&shared)),
            Purse::new(Arc::clone(&shared)),
        );
        assert!(one.take(200 << 10));
        assert!(!other.take(100 << 10), "more than there is");
        // To the last byte, although portions are larger.
        assert!(other.take(56 << 10));
        assert!(!one.take(1) && !other.take(1));
        one.give_back(200 << 10);
        assert!(!shared.may_buffer(201 << 10));
        assert!(other.take(199 << 10), "all but one portion came back");
        other.give_back(255 << 10);
        assert!(shared.may_buffer((256 - 2) << 10));
    }
}
