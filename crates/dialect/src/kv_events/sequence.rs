//! Whether batches are missing: what a batch's number says of those before it.
//!
//! A publisher numbers its batches from 0 and keeps the last of them for replay. It does not say
//! when it was started anew, and a new process's numbers may be anywhere by the time they are seen
//! again; so a batch is known by its number *and* a digest of its payload, and whoever has lost
//! touch asks for the last batch that it knows and looks whether it is still the same.

/// What has been seen of one publisher.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    last: Option<(u64, u64)>,
}

/// What a batch is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The one that comes next; it counts as seen.
    Next,
    /// One that has been seen.
    Seen,
    /// Those from this number on are missing before it.
    Gap {
        /// The number to ask for.
        from: u64,
    },
    /// The publisher is another one than before: what is known of its blocks is void.
    Restarted,
}

impl Sequence {
    /// Judges the batch with this number. After a [`Verdict::Gap`] or [`Verdict::Restarted`]
    /// nothing has changed: it is for the caller to find the others, or to begin anew.
    pub fn judge(&mut self, number: u64, payload: &[u8]) -> Verdict {
        let digest = digest(payload);
        match self.last {
            None if number == 0 => {}
            None => return Verdict::Gap { from: 0 },
            Some((last, seen)) if number == last => {
                return if seen == digest {
                    Verdict::Seen
                } else {
                    Verdict::Restarted
                };
            }
            // Numbers only grow: an older one is an echo of a replay.
            Some((last, _)) if number < last && number != 0 => return Verdict::Seen,
            Some((last, _)) if number < last => return Verdict::Restarted,
            Some((last, _)) if number == last + 1 => {}
            Some((last, _)) => return Verdict::Gap { from: last },
        }
        self.last = Some((number, digest));
        Verdict::Next
    }

    /// Takes the batch with this number as the last one seen, whatever is missing before it.
    pub fn resume_at(&mut self, number: u64, payload: &[u8]) {
        self.last = Some((number, digest(payload)));
    }

    /// Forgets what was seen: the next publisher begins at 0.
    pub fn reset(&mut self) {
        self.last = None;
    }

    /// What has been seen, to go on from it elsewhere.
    #[must_use]
    pub fn mark(&self) -> Option<(u64, u64)> {
        self.last
    }

    /// Goes on from what somebody else has seen.
    #[must_use]
    pub fn from_mark(mark: (u64, u64)) -> Self {
        Self { last: Some(mark) }
    }

    /// The number of the last batch seen.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.last.map(|(number, _)| number)
    }

    /// From where on to ask for a replay: the last batch seen, to recognise it.
    #[must_use]
    pub fn ask_from(&self) -> u64 {
        self.last().unwrap_or(0)
    }
}

/// FNV-1a in steps of eight bytes, over the length too.
fn digest(payload: &[u8]) -> u64 {
    let (words, rest) = payload.as_chunks::<8>();
    let step = |hash: u64, word: u64| {
        let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^ (hash >> 29)
    };
    let hash = words
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .fold(payload.len() as u64 ^ 0xcbf2_9ce4_8422_2325, step);
    rest.iter()
        .fold(hash, |hash, byte| step(hash, u64::from(*byte)))
}
