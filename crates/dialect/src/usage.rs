//! Token counts as model servers report them, and how to find them in a document of any size.
//!
//! The member may come before or after the answer's text; [`UsageFinder`] keeps only its own bytes.
//! Which events of a stream are looked at is decided in [`crate::observe`].

use memchr::memmem;

use crate::json::{Cursor, ScanError};
use crate::track::{Found, Tracker};

/// The name of the member, with its quotes.
const USAGE: &[u8] = b"\"usage\"";

/// A `usage` object longer than this is ignored: real ones have a few hundred bytes.
pub(crate) const USAGE_BYTES_MAX: usize = 16 << 10;

/// Token counts of one request, each absent unless the server gave it.
///
/// They are as reported. Anthropic's own service counts cached tokens apart from `input_tokens`,
/// OpenAI's within `prompt_tokens`; model servers follow OpenAI on both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TokenCounts {
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer.
    pub completion_tokens: Option<u64>,
    /// Both.
    pub total_tokens: Option<u64>,
    /// Tokens of the prompt whose KV blocks were in the server's cache.
    pub cached_tokens: Option<u64>,
}

impl TokenCounts {
    /// Takes over what the object `raw` reports; what it leaves out stays as it is, since a
    /// Messages stream reports its counts in two parts.
    pub(crate) fn merge(&mut self, raw: &[u8]) {
        // A fault ends the reading: the counts before it are as good as any.
        let _ = self.read(&mut Cursor::new(raw), raw, true);
    }

    /// Takes over the `usage` object of a whole document, if it names `usage` just once; false
    /// if it does so more often, and somebody has to tell the top from what is nested.
    ///
    /// Within a JSON string every quote is escaped, so `"usage"` with both of its quotes is a name
    /// or a string of its own; a colon and a brace tell the name.
    pub(crate) fn find_in(&mut self, document: &[u8]) -> bool {
        let mut values = memmem::find_iter(document, USAGE).filter_map(|at| {
            let behind = document[at + USAGE.len()..].trim_ascii_start();
            let value = behind.strip_prefix(b":")?.trim_ascii_start();
            value.starts_with(b"{").then_some(value)
        });
        let first = values.next();
        if values.next().is_some() {
            return false;
        }
        if let Some(value) = first {
            self.merge(value);
        }
        true
    }

    fn read(&mut self, cursor: &mut Cursor<'_>, raw: &[u8], top: bool) -> Result<(), ScanError> {
        cursor.enter(b'{')?;
        let mut first = true;
        while let Some(key) = cursor.next_key(first)? {
            first = false;
            let slot = match (key.span.of(raw), top) {
                (b"prompt_tokens" | b"input_tokens", true) => &mut self.prompt_tokens,
                (b"completion_tokens" | b"output_tokens", true) => &mut self.completion_tokens,
                (b"total_tokens", true) => &mut self.total_tokens,
                (b"cache_read_input_tokens", true) | (b"cached_tokens", _) => {
                    &mut self.cached_tokens
                }
                (b"prompt_tokens_details" | b"input_tokens_details", true)
                    if cursor.peek() == Some(b'{') =>
                {
                    self.read(cursor, raw, false)?;
                    continue;
                }
                _ => {
                    cursor.value()?;
                    continue;
                }
            };
            *slot = cursor.count_value()?.or(*slot);
        }
        Ok(())
    }
}

/// Finds token counts in a document that comes in chunks.
#[derive(Debug)]
pub(crate) struct UsageFinder {
    tracker: Tracker,
    /// The object that is open, unless it grew too long.
    open: Option<Vec<u8>>,
}

impl UsageFinder {
    /// For a JSON document, or for lines of events.
    pub(crate) const fn new(events: bool) -> Self {
        Self {
            tracker: Tracker::new(events),
            open: None,
        }
    }

    /// Takes the next chunk; `counts` get what it completes.
    pub(crate) fn push(&mut self, chunk: &[u8], counts: &mut TokenCounts) {
        let mut at = 0;
        while at < chunk.len() {
            let from = at;
            let found = self.tracker.next(chunk, &mut at);
            self.keep(&chunk[from..at]);
            match found {
                Some(Found::UsageStart) => self.open = Some(b"{".to_vec()),
                Some(Found::UsageEnd) => {
                    if let Some(raw) = self.open.take() {
                        counts.merge(&raw);
                    }
                }
                Some(Found::Model) | None => {}
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let Some(open) = &mut self.open else { return };
        if open.len() + bytes.len() > USAGE_BYTES_MAX {
            self.open = None;
        } else {
            open.extend_from_slice(bytes);
        }
    }
}
