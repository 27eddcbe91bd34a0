//! Watches an answer on its way to the client: when tokens came, what they cost, how it ended.
//!
//! The bytes are only looked at. A stream's events are not parsed: a few searches tell those that
//! carry text from those that do not, and only `usage` is read as JSON. Memory is bounded by
//! [`LINE_BYTES_MAX`] and a `usage` object of 16 KiB. The clock is the caller's.

use std::sync::LazyLock;

use forebay_model::Moment;
use memchr::memchr;
use memchr::memmem::Finder;

use crate::json::Cursor;
use crate::path::Api;
pub use crate::usage::TokenCounts;
use crate::usage::UsageFinder;

/// Bytes kept of one line of a stream. Of a longer line (a final `response` object with all of its
/// text) only the beginning is looked at, except that its `usage` is found all the same; such
/// lines are counted in [`Usage::lines_cut`].
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// What an answer cost and how it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Token counts as reported by the server.
    pub tokens: TokenCounts,
    /// When the first text came; streams only. The first chunk of a chat carries a role and no
    /// text, and is not it.
    pub first_token_at: Option<Moment>,
    /// When the last text came; streams only.
    pub last_token_at: Option<Moment>,
    /// Events with text, reasoning or tool calls in them.
    pub content_events: u64,
    /// Whether the stream said that it is complete.
    pub saw_done: bool,
    /// Whether the stream carried an error.
    pub saw_error: bool,
    /// Lines longer than [`LINE_BYTES_MAX`].
    pub lines_cut: u64,
}

/// Watches one answer.
#[derive(Debug)]
pub struct ResponseObserver {
    api: Api,
    usage: Usage,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Document(UsageFinder),
    Events(Lines),
}

/// What is kept between chunks of a stream.
#[derive(Debug, Default)]
struct Lines {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// Reads on behind a line that is too long to keep.
    long: Option<UsageFinder>,
    /// Whether the current event has a name.
    named: bool,
}

impl ResponseObserver {
    /// For an answer of `api`; `stream` if its content type is `text/event-stream`.
    #[must_use]
    pub fn new(api: Api, stream: bool) -> Self {
        Self {
            api,
            usage: Usage::default(),
            form: if stream {
                Form::Events(Lines::default())
            } else {
                Form::Document(UsageFinder::new(false))
            },
        }
    }

    /// Looks at the next chunk, which came at `now`.
    pub fn push(&mut self, chunk: &[u8], now: Moment) {
        let lines = match &mut self.form {
            Form::Document(finder) => return finder.push(chunk, &mut self.usage.tokens),
            Form::Events(lines) => lines,
        };
        let mut rest = chunk;
        while let Some(end) = memchr(b'\n', rest) {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            if lines.line.is_empty() && end <= LINE_BYTES_MAX {
                look_at_line(self.api, line, &mut lines.named, &mut self.usage, now);
            } else {
                lines.keep(line, &mut self.usage);
                lines.end_line(self.api, &mut self.usage, now);
            }
        }
        lines.keep(rest, &mut self.usage);
    }

    /// Looks at a whole answer, which came at `now`. Of a document it is cheaper than
    /// [`Self::push`]: with nothing before or after it to keep in mind, the counts are searched.
    pub fn push_whole(&mut self, answer: &[u8], now: Moment) {
        let found = match &self.form {
            Form::Document(_) => self.usage.tokens.find_in(answer),
            Form::Events(_) => false,
        };
        if !found {
            self.push(answer, now);
        }
    }

    /// What was seen, when the answer has ended.
    #[must_use]
    pub fn finish(mut self, now: Moment) -> Usage {
        if let Form::Events(lines) = &mut self.form {
            lines.end_line(self.api, &mut self.usage, now);
        }
        self.usage
    }

    /// What was seen so far.
    #[must_use]
    pub const fn so_far(&self) -> &Usage {
        &self.usage
    }
}

impl Lines {
    fn keep(&mut self, part: &[u8], usage: &mut Usage) {
        let room = LINE_BYTES_MAX - self.line.len();
        let (kept, beyond) = part.split_at(part.len().min(room));
        self.line.extend_from_slice(kept);
        if beyond.is_empty() {
            return;
        }
        let long = self.long.get_or_insert_with(|| {
            let mut finder = UsageFinder::new(true);
            finder.push(&self.line, &mut usage.tokens);
            usage.lines_cut += 1;
            finder
        });
        long.push(beyond, &mut usage.tokens);
    }

    fn end_line(&mut self, api: Api, usage: &mut Usage, now: Moment) {
        self.long = None;
        look_at_line(api, &self.line, &mut self.named, usage, now);
        self.line.clear();
    }
}

fn look_at_line(api: Api, line: &[u8], named: &mut bool, usage: &mut Usage, now: Moment) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let field = |name: &[u8]| {
        let value = line.strip_prefix(name)?;
        Some(value.strip_prefix(b" ").unwrap_or(value))
    };
    if let Some(data) = field(b"data:") {
        look_at_data(api, data, *named, usage, now);
    } else if let Some(name) = field(b"event:") {
        *named = true;
        look_at_name(name, usage);
    } else if line.is_empty() {
        *named = false;
    }
}

/// Takes the name of an event, from its own line or from the member `type`.
fn look_at_name(name: &[u8], usage: &mut Usage) {
    match name {
        b"message_stop" | b"response.completed" | b"response.incomplete" => usage.saw_done = true,
        b"error" | b"response.failed" => usage.saw_error = true,
        _ => {}
    }
}

fn look_at_data(api: Api, data: &[u8], named: bool, usage: &mut Usage, now: Moment) {
    if data == b"[DONE]" {
        usage.saw_done = true;
        return;
    }
    if let Some(name) = leading_type(data)
        && !named
    {
        look_at_name(name, usage);
    }
    usage.saw_error |= is_error(data);
    if FINDERS.usage.find(data).is_some()
        || (api == Api::SglangGenerate && FINDERS.meta_info.find(data).is_some())
    {
        UsageFinder::new(false).push(data, &mut usage.tokens);
    }
    if has_content(api, data) {
        usage.content_events += 1;
        usage.first_token_at.get_or_insert(now);
        usage.last_token_at = Some(now);
    }
}

/// The value of `type` if it is the first member: all that an unnamed event can be known by cheaply.
fn leading_type(data: &[u8]) -> Option<&[u8]> {
    let value = after_colon(data.strip_prefix(b"{\"type\"")?)?.strip_prefix(b"\"")?;
    Some(&value[..memchr(b'"', value)?])
}

/// Whether the data is an error, as OpenAI's dialect has it: without a name, in place of a chunk.
fn is_error(data: &[u8]) -> bool {
    let error = data.strip_prefix(b"{\"error\"").and_then(after_colon);
    error.is_some_and(|value| matches!(value.first(), Some(b'{' | b'"')))
        || data.starts_with(b"{\"object\":\"error\"")
}

/// What follows the colon of a member, white space skipped.
fn after_colon(data: &[u8]) -> Option<&[u8]> {
    Some(
        data.trim_ascii_start()
            .strip_prefix(b":")?
            .trim_ascii_start(),
    )
}

/// The searches. Within a string the quotes would be escaped, so a hit is a key or a whole value,
/// and the colon after it tells which.
struct Finders {
    usage: Finder<'static>,
    meta_info: Finder<'static>,
    delta: Finder<'static>,
    text: Finder<'static>,
    token_ids: Finder<'static>,
}

static FINDERS: LazyLock<Finders> = LazyLock::new(|| Finders {
    usage: Finder::new("\"usage\""),
    meta_info: Finder::new("\"meta_info\""),
    delta: Finder::new("\"delta\""),
    text: Finder::new("\"text\""),
    token_ids: Finder::new("\"token_ids\""),
});

/// Whether the data brings text, reasoning or a tool call.
fn has_content(api: Api, data: &[u8]) -> bool {
    let finder = match api {
        Api::Completions | Api::SglangGenerate => &FINDERS.text,
        Api::VllmGenerate => &FINDERS.token_ids,
        _ => &FINDERS.delta,
    };
    finder.find_iter(data).any(|at| {
        after_colon(&data[at + finder.needle().len()..]).is_some_and(|value| match value {
            [b'"', next, ..] => *next != b'"',
            [b'[', ids @ ..] => ids.trim_ascii_start().first() != Some(&b']'),
            [b'{', ..] => delta_has_content(value).unwrap_or(false),
            _ => false,
        })
    })
}

/// Whether an object under `delta` holds something that the model has said.
fn delta_has_content(delta: &[u8]) -> Option<bool> {
    let mut cursor = Cursor::new(delta);
    cursor.enter(b'{').ok()?;
    let mut first = true;
    while let Some(key) = cursor.next_key(first).ok()? {
        first = false;
        let value = cursor.value().ok()?.of(delta);
        let says = matches!(
            key.span.of(delta),
            b"content"
                | b"reasoning_content"
                | b"reasoning"
                | b"refusal"
                | b"tool_calls"
                | b"function_call"
                | b"text"
                | b"thinking"
                | b"partial_json"
        );
        if says && !matches!(value, b"null" | b"\"\"" | b"[]" | b"{}") {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
