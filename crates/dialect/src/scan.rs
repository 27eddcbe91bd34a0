//! One pass over a request body: checks that it is JSON and finds what routing needs.
//!
//! Nothing is copied: what is found is a range of the body. Members that nobody asks for are
//! checked and skipped. Where a key comes twice the last one counts, as in every JSON library.
//! Changing the model's name in the body is [`crate::splice`]; which members make a prompt is
//! [`Api::prompt_keys`].

use crate::json::Cursor;
pub use crate::json::{DEPTH_MAX, ScanError, Span, Text};
use crate::path::{Api, PROMPT_PARTS_MAX};

/// What a request body says about how to route it. Ranges refer to the scanned body.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scan {
    /// `model`.
    pub model: Option<Text>,
    /// `stream`.
    pub stream: Option<bool>,
    /// The most tokens that the answer may have, whatever the API calls it.
    pub limits: OutputLimits,
    /// `n`, at the top or in `sampling_params`: answers per prompt.
    pub choices: Option<u64>,
    /// `user`, or Anthropic's `metadata.user_id`.
    pub user: Option<Text>,
    /// `cache_salt`: prompts share cache blocks only under the same salt.
    pub cache_salt: Option<Text>,
    /// `prompt_cache_key`: the client's hint as to which requests share a prefix.
    pub prompt_cache_key: Option<Text>,
    /// `previous_response_id`.
    pub previous_response: Option<Text>,
    /// `conversation`, or its `id`.
    pub conversation: Option<Text>,
    /// Whether `tools` names at least one.
    pub has_tools: bool,
    /// `stream_options.include_usage`.
    pub include_usage: Option<bool>,
    /// The parts of the prompt in the order of [`Api::prompt_keys`].
    prompt: [Option<Span>; PROMPT_PARTS_MAX],
}

/// The members that limit the answer; see [`OutputLimits::tokens`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OutputLimits {
    /// `max_completion_tokens`.
    pub max_completion_tokens: Option<u64>,
    /// `max_output_tokens`.
    pub max_output_tokens: Option<u64>,
    /// `max_tokens`.
    pub max_tokens: Option<u64>,
    /// `sampling_params.max_tokens`, or SGLang's `sampling_params.max_new_tokens`.
    pub sampling_max_tokens: Option<u64>,
}

impl OutputLimits {
    /// The limit that counts: newer names win over those that they replaced.
    #[must_use]
    pub fn tokens(self) -> Option<u64> {
        self.max_completion_tokens
            .or(self.max_output_tokens)
            .or(self.max_tokens)
            .or(self.sampling_max_tokens)
    }
}

/// Scans the body of a request to `api`.
///
/// # Errors
/// Where and why `body` is not one JSON object that `serde_json` would accept.
pub fn scan(api: Api, body: &[u8]) -> Result<Scan, ScanError> {
    let mut found = Scan::default();
    let mut cursor = Cursor::new(body);
    cursor.enter(b'{')?;
    let mut first = true;
    while let Some(key) = cursor.next_key(first)? {
        first = false;
        found.member(api, &key.value(body), &mut cursor, body)?;
    }
    cursor.end()?;
    Ok(found)
}

impl Scan {
    /// The ranges of `body` that make the prompt, canonical whatever the order of keys.
    pub fn prompt_spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.prompt.iter().flatten().copied()
    }

    /// The model's name; `body` is what was scanned.
    #[must_use]
    pub fn model_name<'a>(&self, body: &'a [u8]) -> Option<std::borrow::Cow<'a, str>> {
        self.model.map(|model| model.value(body))
    }

    /// About how many tokens the prompt has: four bytes a token, or exactly where it is given as
    /// token ids.
    #[must_use]
    pub fn prompt_tokens_estimate(&self, body: &[u8]) -> usize {
        self.prompt_spans()
            .map(|span| tokens_estimate(span.of(body)))
            .sum()
    }

    /// Takes one value, that of `key`.
    fn member(
        &mut self,
        api: Api,
        key: &str,
        cursor: &mut Cursor<'_>,
        body: &[u8],
    ) -> Result<(), ScanError> {
        match key {
            "model" => self.model = cursor.text_value()?,
            "stream" => self.stream = cursor.bool_value()?,
            "max_tokens" => self.limits.max_tokens = cursor.count_value()?,
            "max_completion_tokens" => self.limits.max_completion_tokens = cursor.count_value()?,
            "max_output_tokens" => self.limits.max_output_tokens = cursor.count_value()?,
            "n" => self.choices = cursor.count_value()?,
            "user" => self.user = cursor.text_value()?,
            "cache_salt" => self.cache_salt = cursor.text_value()?,
            "prompt_cache_key" => self.prompt_cache_key = cursor.text_value()?,
            "previous_response_id" => self.previous_response = cursor.text_value()?,
            "conversation" => self.conversation = text_or_id(cursor, body)?,
            "metadata" if api == Api::Messages => {
                self.user = text_in(cursor, body, "user_id")?;
            }
            "stream_options" => self.stream_options(cursor, body)?,
            "sampling_params" => self.sampling_params(cursor, body)?,
            _ => {
                let span = cursor.value()?;
                if key == "tools" {
                    self.has_tools = holds_something(span.of(body));
                }
                if let Some(part) = api.prompt_keys().iter().position(|known| *known == key) {
                    self.prompt[part] = Some(span);
                }
            }
        }
        Ok(())
    }

    fn stream_options(&mut self, cursor: &mut Cursor<'_>, body: &[u8]) -> Result<(), ScanError> {
        self.include_usage = None;
        each_member(cursor, body, |key, cursor| match key {
            "include_usage" => cursor.bool_value().map(|usage| self.include_usage = usage),
            _ => cursor.value().map(|_| ()),
        })
    }

    fn sampling_params(&mut self, cursor: &mut Cursor<'_>, body: &[u8]) -> Result<(), ScanError> {
        self.limits.sampling_max_tokens = None;
        each_member(cursor, body, |key, cursor| match key {
            "max_tokens" | "max_new_tokens" => cursor
                .count_value()
                .map(|tokens| self.limits.sampling_max_tokens = tokens),
            "n" => cursor.count_value().map(|n| self.choices = n),
            _ => cursor.value().map(|_| ()),
        })
    }
}

/// Takes any value; of an object, `member` takes the value of each key.
fn each_member<'a>(
    cursor: &mut Cursor<'a>,
    body: &[u8],
    mut member: impl FnMut(&str, &mut Cursor<'a>) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    if cursor.peek() != Some(b'{') {
        return cursor.value().map(|_| ());
    }
    cursor.enter(b'{')?;
    let mut first = true;
    while let Some(key) = cursor.next_key(first)? {
        first = false;
        member(&key.value(body), cursor)?;
    }
    Ok(())
}

/// Takes any value; of an object, the string under `wanted` is returned.
fn text_in(cursor: &mut Cursor<'_>, body: &[u8], wanted: &str) -> Result<Option<Text>, ScanError> {
    let mut text = None;
    each_member(cursor, body, |key, cursor| {
        if key == wanted {
            cursor.text_value().map(|value| text = value)
        } else {
            cursor.value().map(|_| ())
        }
    })?;
    Ok(text)
}

/// Takes any value; a string is returned, or the `id` of an object.
fn text_or_id(cursor: &mut Cursor<'_>, body: &[u8]) -> Result<Option<Text>, ScanError> {
    if cursor.peek() == Some(b'{') {
        text_in(cursor, body, "id")
    } else {
        cursor.text_value()
    }
}

/// Whether a valid value is an array with at least one element.
fn holds_something(value: &[u8]) -> bool {
    value
        .strip_prefix(b"[")
        .is_some_and(|rest| rest.trim_ascii_start() != b"]")
}

fn tokens_estimate(part: &[u8]) -> usize {
    // A batch of prompts as token ids is an array of arrays; its commas still separate ids.
    let ids = part
        .iter()
        .position(|byte| !matches!(byte, b'[' | b' ' | b'\n' | b'\r' | b'\t'))
        .is_some_and(|at| at > 0 && part[at].is_ascii_digit());
    if ids {
        memchr::memchr_iter(b',', part).count() + 1
    } else {
        part.len().div_ceil(4)
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
