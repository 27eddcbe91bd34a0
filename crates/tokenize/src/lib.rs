//! From a request's body to the tokens that a model server makes of it, so that what it says of its
//! cache can be compared with what is asked of it.
//!
//! [`Tokenizer::tokens`] is all there is to call; it is exact or refuses. Nothing here reads a file
//! or a clock: whoever has the files brings them.

mod engine;
mod request;
pub mod simulated;
mod template;

use std::fmt;

use minijinja::value::Value;

use engine::{Engine, HuggingFace};
use request::{Chat, Prompt};
use template::Template;

/// A body's API, as far as its prompt is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Api {
    /// OpenAI's chat completions.
    Chat,
    /// OpenAI's completions.
    Completions,
    /// OpenAI's responses.
    Responses,
    /// Anthropic's messages.
    Messages,
    /// vLLM's generate: tokens as they are.
    Generate,
    /// vLLM's tokenize, and Anthropic's count of tokens: a prompt or messages.
    Tokenize,
}

/// Makes tokens of requests for one model.
#[derive(Debug)]
pub enum Tokenizer {
    /// As the simulated server does: four bytes are a token.
    Simulated,
    /// By a model's own files.
    Model(Box<Model>),
}

/// What a model's files say.
#[derive(Debug)]
pub struct Model {
    engine: Box<dyn Engine>,
    template: Option<Template>,
    /// The names of special tokens that templates may use.
    special: Vec<(String, Value)>,
}

/// The content of a model's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`, which names special tokens and may hold the chat template.
    pub config: Option<&'a [u8]>,
    /// `chat_template.jinja`, which has the last word on the template.
    pub template: Option<&'a str>,
}

/// Why files give no tokenizer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LoadError {
    /// `tokenizer.json`.
    Tokenizer(String),
    /// `tokenizer_config.json`.
    Config(String),
    /// The chat template.
    Template(String),
}

impl std::error::Error for LoadError {}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokenizer(error) => write!(f, "tokenizer.json: {error}"),
            Self::Config(error) => write!(f, "tokenizer_config.json: {error}"),
            Self::Template(error) => write!(f, "the chat template: {error}"),
        }
    }
}

/// Why a request's tokens are not known. None of these is an error of the request: what it means for
/// it is that it is compared byte by byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Untokenized {
    /// The body is not what the API takes.
    Body(String),
    /// It has images, sound or files, whose tokens are made of their content.
    Media,
    /// It asks for something that changes the prompt in a way that is not known here.
    Unsupported(&'static str),
    /// The model has no chat template, and the request needs one.
    NoTemplate,
    /// The chat template refuses it, or takes too long.
    Template(String),
    /// The tokenizer gives up.
    Engine(String),
}

impl std::error::Error for Untokenized {}

impl fmt::Display for Untokenized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(error) => write!(f, "the body cannot be read: {error}"),
            Self::Media => f.write_str("it has images, sound or files"),
            Self::Unsupported(what) => write!(f, "{what} is not supported"),
            Self::NoTemplate => f.write_str("the tokenizer has no chat template"),
            Self::Template(error) => write!(f, "the chat template: {error}"),
            Self::Engine(error) => write!(f, "the tokenizer: {error}"),
        }
    }
}

impl Untokenized {
    /// A word for metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Body(_) => "body",
            Self::Media => "media",
            Self::Unsupported(_) => "unsupported",
            Self::NoTemplate => "no-template",
            Self::Template(_) => "template",
            Self::Engine(_) => "engine",
        }
    }
}

impl Tokenizer {
    /// A tokenizer of a model's files.
    ///
    /// # Errors
    /// If they are not what they should be.
    pub fn of_files(files: Files<'_>) -> Result<Self, LoadError> {
        let engine = HuggingFace::new(files.tokenizer)?;
        let config: serde_json::Map<String, serde_json::Value> = match files.config {
            None => serde_json::Map::new(),
            Some(config) => serde_json::from_slice(config)
                .map_err(|error| LoadError::Config(error.to_string()))?,
        };
        let template = match files.template {
            Some(template) => Some(template),
            None => template_of(&config),
        };
        Ok(Self::Model(Box::new(Model {
            engine: Box::new(engine),
            template: template.map(Template::new).transpose()?,
            special: special_tokens(&config),
        })))
    }

    /// The tokens of a request's prompt, the generation prompt included. `now_s` is the time in
    /// seconds since 1970, for templates that say which day it is.
    ///
    /// # Errors
    /// If they are not what the server would have, or it is not known whether.
    pub fn tokens(&self, api: Api, body: &[u8], now_s: i64) -> Result<Vec<u32>, Untokenized> {
        let model = match self {
            Self::Simulated => return simulated::tokens(api, body),
            Self::Model(model) => model,
        };
        // A conversation brings its special tokens along by its template; a text does not.
        let (text, special) = match Prompt::of(api, body)? {
            Prompt::Tokens(tokens) => return Ok(tokens),
            Prompt::Text(text) => (text, true),
            Prompt::Chat(chat) => (model.render(chat, now_s)?, false),
        };
        model
            .engine
            .encode(&text, special)
            .map_err(Untokenized::Engine)
    }
}

impl Model {
    fn render(&self, chat: Chat, now_s: i64) -> Result<String, Untokenized> {
        let template = self.template.as_ref().ok_or(Untokenized::NoTemplate)?;
        let messages = chat.messages.into_iter();
        let messages: Value = messages
            .map(|message| message.into_value(template.takes_parts))
            .collect();
        let mut context: Vec<(String, Value)> = self.special.clone();
        let mut set = |name: &str, value: Value| context.push((name.to_owned(), value));
        set("__now_s", Value::from(now_s));
        set("messages", messages);
        set("tools", chat.tools.unwrap_or_else(|| Value::from(())));
        set(
            "documents",
            chat.documents.unwrap_or_else(|| Value::from(())),
        );
        set(
            "add_generation_prompt",
            Value::from(chat.add_generation_prompt),
        );
        if let Some(kwargs) = chat.kwargs {
            let names = kwargs.try_iter().into_iter().flatten();
            for name in names.filter_map(|name| name.as_str().map(str::to_owned)) {
                let value = kwargs.get_attr(&name).unwrap_or_default();
                set(&name, value);
            }
        }
        template
            .render(context.into_iter().collect())
            .map_err(Untokenized::Template)
    }
}

/// The template in a configuration: a text, or several by name of which one is the default.
fn template_of(config: &serde_json::Map<String, serde_json::Value>) -> Option<&str> {
    use serde_json::Value as Json;
    match config.get("chat_template")? {
        Json::String(template) => Some(template),
        Json::Array(named) => {
            let default = named.iter().find(|one| one["name"] == "default")?;
            default["template"].as_str()
        }
        _ => None,
    }
}

/// Fields such as `bos_token`: a text, or an object with the text as its `content`.
fn special_tokens(config: &serde_json::Map<String, serde_json::Value>) -> Vec<(String, Value)> {
    let tokens = config.iter().filter(|(name, _)| name.ends_with("_token"));
    tokens
        .filter_map(|(name, value)| {
            let text = value.as_str().or_else(|| value["content"].as_str())?;
            Some((name.clone(), Value::from(text)))
        })
        .collect()
}
