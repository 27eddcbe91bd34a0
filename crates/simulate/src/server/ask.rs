//! What requests of the generating APIs mean: prompt tokens, model, length, streaming.
//!
//! Fields that do not change the simulation (temperature, stop, penalties and so on) are accepted and
//! not looked at. How answers look is in [`super::dialect`].

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::dialect::Dialect;
use super::error::ApiError;
use super::text::Tokens;

/// Output tokens of the completions API when the client says nothing.
const COMPLETION_TOKENS: u32 = 16;

/// A request for text, whatever its API.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) dialect: Dialect,
    /// The model or adapter; `None` is the model that the server has.
    pub(super) model: Option<String>,
    pub(super) tokens: Vec<u32>,
    /// Output tokens if the client named a limit; the answer then has just as many.
    pub(super) max_tokens: Option<u32>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

#[derive(Deserialize)]
struct ChatBody {
    model: Option<String>,
    messages: Vec<Message>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    tools: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct CompletionBody {
    model: Option<String>,
    prompt: Input,
    max_tokens: Option<u32>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
}

#[derive(Deserialize)]
struct ResponsesBody {
    model: Option<String>,
    input: ResponsesInput,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    stream: Option<bool>,
    tools: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct MessagesBody {
    model: Option<String>,
    messages: Vec<Message>,
    system: Option<Content>,
    max_tokens: Option<u32>,
    stream: Option<bool>,
    tools: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct GenerateBody {
    model: Option<String>,
    token_ids: Vec<u32>,
    #[serde(default)]
    sampling_params: SamplingParams,
    stream: Option<bool>,
}

#[derive(Default, Deserialize)]
struct SamplingParams {
    max_tokens: Option<u32>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
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
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Input {
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
    pub(super) fn into_token_lists(self) -> Vec<Vec<u32>> {
        let tokens = |text: &String| {
            let mut tokens = Tokens::begin();
            tokens.text(text);
            tokens.0
        };
        match self {
            Self::Text(text) => vec![tokens(&text)],
            Self::Texts(texts) => texts.iter().map(tokens).collect(),
            Self::Tokens(list) => vec![list],
            Self::TokenLists(lists) => lists,
        }
    }
}

/// Reads the body of a request.
pub(super) fn parse(dialect: Dialect, body: &[u8]) -> Result<Ask, ApiError> {
    match dialect {
        Dialect::Chat => chat(read(body)?),
        Dialect::Completions => completion(read(body)?),
        Dialect::Responses => Ok(responses(read(body)?)),
        Dialect::Messages => Ok(messages(read(body)?)),
        Dialect::Generate => Ok(generate(read(body)?)),
    }
}

/// Reads JSON of a known shape.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad_json(&error))
}

fn chat(body: ChatBody) -> Result<Ask, ApiError> {
    one_answer(body.n)?;
    Ok(Ask {
        dialect: Dialect::Chat,
        model: body.model,
        tokens: conversation(None, body.tools.as_deref(), &body.messages),
        max_tokens: body.max_completion_tokens.or(body.max_tokens),
        stream: body.stream.unwrap_or(false),
        include_usage: includes_usage(body.stream_options),
    })
}

fn completion(body: CompletionBody) -> Result<Ask, ApiError> {
    one_answer(body.n)?;
    let mut lists = body.prompt.into_token_lists();
    let (Some(tokens), true) = (lists.pop(), lists.is_empty()) else {
        let message = "the simulator takes one prompt per request";
        return Err(ApiError::bad_request(Some("prompt"), message));
    };
    Ok(Ask {
        dialect: Dialect::Completions,
        model: body.model,
        tokens,
        max_tokens: Some(body.max_tokens.unwrap_or(COMPLETION_TOKENS)),
        stream: body.stream.unwrap_or(false),
        include_usage: includes_usage(body.stream_options),
    })
}

fn responses(body: ResponsesBody) -> Ask {
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
    Ask {
        dialect: Dialect::Responses,
        model: body.model,
        tokens: tokens.0,
        max_tokens: body.max_output_tokens,
        stream: body.stream.unwrap_or(false),
        include_usage: true,
    }
}

fn messages(body: MessagesBody) -> Ask {
    Ask {
        dialect: Dialect::Messages,
        model: body.model,
        tokens: conversation(body.system.as_ref(), body.tools.as_deref(), &body.messages),
        max_tokens: body.max_tokens,
        stream: body.stream.unwrap_or(false),
        include_usage: true,
    }
}

fn generate(body: GenerateBody) -> Ask {
    Ask {
        dialect: Dialect::Generate,
        model: body.model,
        tokens: body.token_ids,
        max_tokens: body.sampling_params.max_tokens,
        stream: body.stream.unwrap_or(false),
        include_usage: false,
    }
}

fn one_answer(n: Option<u32>) -> Result<(), ApiError> {
    match n {
        None | Some(1) => Ok(()),
        Some(_) => Err(ApiError::bad_request(
            Some("n"),
            "the simulator gives one answer per request",
        )),
    }
}

fn includes_usage(options: Option<StreamOptions>) -> bool {
    options
        .and_then(|options| options.include_usage)
        .unwrap_or(false)
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

/// Tokens of a request to count or show them: messages or a prompt.
#[derive(Deserialize)]
pub(super) struct TokenizeBody {
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    system: Option<Content>,
    tools: Option<Box<RawValue>>,
}

impl TokenizeBody {
    /// The tokens that a request with this prompt would have.
    pub(super) fn tokens(&self) -> Result<Vec<u32>, ApiError> {
        match (&self.prompt, &self.messages) {
            (Some(prompt), None) => {
                let mut tokens = Tokens::begin();
                tokens.text(prompt);
                Ok(tokens.0)
            }
            (None, Some(messages)) => Ok(conversation(
                self.system.as_ref(),
                self.tools.as_deref(),
                messages,
            )),
            _ => Err(ApiError::bad_request(
                None,
                "either prompt or messages is needed",
            )),
        }
    }
}
