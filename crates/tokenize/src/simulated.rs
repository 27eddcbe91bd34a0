//! The tokenizer of simulated servers: four bytes are one token.
//!
//! Not a real vocabulary; what it keeps is what caching depends on: texts with equal beginnings have
//! tokens with equal beginnings, message by message, and an answer that comes back as history has the
//! tokens it was generated with. Token and text turn into each other without loss.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::{Api, Untokenized};

/// Bytes per token, close to the mean of English text with common vocabularies.
const BYTES_PER_TOKEN: usize = 4;
/// Tokens above this stand for no text: `0xFF` as last byte occurs in no UTF-8 text.
const SPECIAL: u32 = 0xff00_0000;
/// End of a message.
const END_OF_TURN: u32 = SPECIAL;
/// Beginning of a text.
const BEGIN: u32 = SPECIAL + 1;
/// Tokens that stand for one image, sound or file of a multi-modal message.
const MEDIA_TOKENS: u32 = 256;

/// Tokens of a prompt under construction.
#[derive(Clone, Debug)]
pub struct Tokens(pub Vec<u32>);

impl Default for Tokens {
    fn default() -> Self {
        Self::begin()
    }
}

impl Tokens {
    /// An empty prompt: nothing but its beginning.
    #[must_use]
    pub fn begin() -> Self {
        Self(vec![BEGIN])
    }

    /// Starts a message; the role becomes one token.
    pub fn role(&mut self, role: &str) {
        let hash = role
            .bytes()
            .fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
        self.0.push(SPECIAL + 16 + (hash % 1000) as u32);
    }

    /// Ends a message.
    pub fn end(&mut self) {
        self.0.push(END_OF_TURN);
    }

    /// Adds text.
    pub fn text(&mut self, text: &str) {
        let chunks = text.as_bytes().chunks(BYTES_PER_TOKEN);
        self.0.extend(chunks.map(|chunk| {
            let mut bytes = [0; BYTES_PER_TOKEN];
            bytes[..chunk.len()].copy_from_slice(chunk);
            u32::from_le_bytes(bytes)
        }));
    }

    /// Adds something that is not text, by its address or content.
    pub fn media(&mut self, content: &str) {
        let hash = content
            .bytes()
            .fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
        let token = |index: u32| SPECIAL + (mix(hash ^ u64::from(index)) % 0x00ff_ffff) as u32;
        self.0.extend((0..MEDIA_TOKENS).map(token));
    }
}

/// The text of tokens; special ones have none.
#[must_use]
pub fn detokenize(tokens: &[u32]) -> String {
    let mut bytes = Vec::with_capacity(tokens.len() * BYTES_PER_TOKEN);
    for token in tokens.iter().filter(|token| **token < SPECIAL) {
        bytes.extend(token.to_le_bytes().into_iter().filter(|byte| *byte != 0));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[derive(Deserialize)]
struct ChatBody {
    messages: Vec<Message>,
    tools: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct CompletionBody {
    prompt: Input,
}

#[derive(Deserialize)]
struct ResponsesBody {
    input: ResponsesInput,
    instructions: Option<String>,
    tools: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct MessagesBody {
    messages: Vec<Message>,
    system: Option<Content>,
    tools: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct GenerateBody {
    token_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct TokenizeBody {
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    system: Option<Content>,
    tools: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Map<String, Value>>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ResponsesInput {
    Text(String),
    Items(Vec<Map<String, Value>>),
}

/// One or more texts, or the same as tokens.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Input {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// A tokenised text.
    Tokens(Vec<u32>),
    /// Tokenised texts.
    TokenLists(Vec<Vec<u32>>),
}

impl Input {
    /// Tokens of each text.
    #[must_use]
    pub fn into_token_lists(self) -> Vec<Vec<u32>> {
        let tokens = |text: &String| of_text(text);
        match self {
            Self::Text(text) => vec![tokens(&text)],
            Self::Texts(texts) => texts.iter().map(tokens).collect(),
            Self::Tokens(list) => vec![list],
            Self::TokenLists(lists) => lists,
        }
    }
}

/// The tokens of a request's prompt.
pub(crate) fn tokens(api: Api, body: &[u8]) -> Result<Vec<u32>, Untokenized> {
    Ok(match api {
        Api::Chat => {
            let body: ChatBody = read(body)?;
            conversation(None, body.tools.as_deref(), &body.messages)
        }
        Api::Completions => {
            let body: CompletionBody = read(body)?;
            let mut lists = body.prompt.into_token_lists();
            match (lists.pop(), lists.is_empty()) {
                (Some(tokens), true) => tokens,
                _ => return Err(Untokenized::Unsupported("more or less than one prompt")),
            }
        }
        Api::Responses => responses(&read(body)?),
        Api::Messages => {
            let body: MessagesBody = read(body)?;
            conversation(body.system.as_ref(), body.tools.as_deref(), &body.messages)
        }
        Api::Generate => read::<GenerateBody>(body)?.token_ids,
        Api::Tokenize => {
            let body: TokenizeBody = read(body)?;
            match (&body.prompt, &body.messages) {
                (Some(prompt), None) => of_text(prompt),
                (None, Some(messages)) => {
                    conversation(body.system.as_ref(), body.tools.as_deref(), messages)
                }
                _ => {
                    return Err(Untokenized::Body(
                        "either prompt or messages is needed".into(),
                    ));
                }
            }
        }
    })
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Untokenized> {
    serde_json::from_slice(body).map_err(|error| Untokenized::Body(error.to_string()))
}

fn of_text(text: &str) -> Vec<u32> {
    let mut tokens = Tokens::begin();
    tokens.text(text);
    tokens.0
}

fn responses(body: &ResponsesBody) -> Vec<u32> {
    let mut tokens = Tokens::begin();
    add_tools(&mut tokens, body.tools.as_deref());
    if let Some(instructions) = &body.instructions {
        tokens.role("system");
        tokens.text(instructions);
        tokens.end();
    }
    match &body.input {
        ResponsesInput::Text(text) => {
            tokens.role("user");
            tokens.text(text);
            tokens.end();
        }
        ResponsesInput::Items(items) => {
            for item in items {
                add_item(&mut tokens, item);
            }
        }
    }
    tokens.role("assistant");
    tokens.0
}

/// What a chat template makes of the messages, up to where the answer begins.
fn conversation(
    system: Option<&Content>,
    tools: Option<&RawValue>,
    messages: &[Message],
) -> Vec<u32> {
    let mut tokens = Tokens::begin();
    add_tools(&mut tokens, tools);
    if let Some(system) = system {
        tokens.role("system");
        add_content(&mut tokens, system);
        tokens.end();
    }
    for message in messages {
        tokens.role(&message.role);
        if let Some(content) = &message.content {
            add_content(&mut tokens, content);
        }
        if let Some(calls) = &message.tool_calls {
            tokens.text(calls.get());
        }
        tokens.end();
    }
    tokens.role("assistant");
    tokens.0
}

fn add_tools(tokens: &mut Tokens, tools: Option<&RawValue>) {
    if let Some(tools) = tools {
        tokens.role("tools");
        tokens.text(tools.get());
        tokens.end();
    }
}

fn add_content(tokens: &mut Tokens, content: &Content) {
    match content {
        Content::Text(text) => tokens.text(text),
        Content::Parts(parts) => parts.iter().for_each(|part| add_part(tokens, part)),
    }
}

fn add_part(tokens: &mut Tokens, part: &Map<String, Value>) {
    match part.get("text") {
        Some(Value::String(text)) => tokens.text(text),
        _ => tokens.media(&Value::Object(part.clone()).to_string()),
    }
}

fn add_item(tokens: &mut Tokens, item: &Map<String, Value>) {
    let role = item
        .get("role")
        .or_else(|| item.get("type"))
        .and_then(Value::as_str);
    tokens.role(role.unwrap_or("user"));
    match item.get("content") {
        Some(Value::String(text)) => tokens.text(text),
        Some(Value::Array(parts)) => {
            parts
                .iter()
                .filter_map(Value::as_object)
                .for_each(|part| add_part(tokens, part));
        }
        _ => tokens.text(&Value::Object(item.clone()).to_string()),
    }
    tokens.end();
}

/// A number in which each bit of the argument counts (the finaliser of `SplitMix64`).
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_and_equal_beginnings_stay_equal() {
        for text in [
            "",
            "a",
            "hello world",
            "häßlich und schön",
            "日本語テキスト",
        ] {
            let mut tokens = Tokens::begin();
            tokens.text(text);
            assert_eq!(detokenize(&tokens.0), text);
            assert_eq!(tokens.0.len(), 1 + text.len().div_ceil(4));
        }
        let (mut one, mut other) = (Tokens::begin(), Tokens::begin());
        one.text("you are a helpful robot");
        other.text("you are a helpful human");
        assert_eq!(one.0[..5], other.0[..5]);
        assert_ne!(one.0, other.0);
    }
}
