//! A kernel that was recorded: it expects requests in their order and gives the answers that belong to them.

use std::collections::VecDeque;
use std::io;

use crate::{Transport, bad};

/// Exchanges, each a request and the datagrams of its answer. The numbers of messages are those of who asks.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    exchanges: VecDeque<(Vec<u8>, Vec<Vec<u8>>)>,
    answers: VecDeque<Vec<u8>>,
}

impl Recorded {
    /// Nothing was recorded yet.
    #[must_use]
    pub fn new() -> Recorded {
        Recorded::default()
    }

    /// Adds an exchange.
    #[must_use]
    pub fn then(mut self, request: &[u8], answers: &[&[u8]]) -> Recorded {
        let answers = answers.iter().map(|bytes| bytes.to_vec()).collect();
        self.exchanges.push_back((request.to_vec(), answers));
        self
    }

    /// How many requests have not come yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.exchanges.len()
    }
}

impl Transport for Recorded {
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        let next = self.exchanges.pop_front();
        let (expected, answers) = next.ok_or_else(|| bad("no request was expected"))?;
        let (expected, sequence) = (numbered(expected, request), request.get(8..12));
        if expected != request || sequence.is_none() {
            let why = format!("expected {expected:02x?}, not {request:02x?}");
            return Err(bad(why));
        }
        let answers = answers.into_iter().map(|bytes| numbered(bytes, request));
        self.answers = answers.collect();
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let none = || io::Error::new(io::ErrorKind::TimedOut, "nothing more was recorded");
        self.answers.pop_front().ok_or_else(none)
    }
}

/// `bytes` with the number of `request` in each of its messages.
fn numbered(mut bytes: Vec<u8>, request: &[u8]) -> Vec<u8> {
    let mut at = 0;
    while let (Some(number), Some(length)) = (request.get(8..12), bytes.get(at..at + 4)) {
        let length = u32::from_ne_bytes([length[0], length[1], length[2], length[3]]);
        match bytes.get_mut(at + 8..at + 12) {
            Some(place) => place.copy_from_slice(number),
            None => break,
        }
        // A length of nothing would never end.
        at += usize::try_from(length)
            .unwrap_or(usize::MAX)
            .max(16)
            .next_multiple_of(4);
    }
    bytes
}
