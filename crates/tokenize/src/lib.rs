//! From a request's body to the tokens that a model server makes of it, so that what it says of its
//! cache can be compared with what is asked of it.
//!
//! [`Tokenizer::tokens`] is all there is to call; it is exact or refuses. Nothing here reads a file
//! or a clock: whoever has the files brings them.

pub mod simulated;

use std::fmt;

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
}

impl std::error::Error for Untokenized {}

impl fmt::Display for Untokenized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(error) => write!(f, "the body cannot be read: {error}"),
            Self::Media => f.write_str("it has images, sound or files"),
            Self::Unsupported(what) => write!(f, "{what} is not supported"),
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
        }
    }
}

impl Tokenizer {
    /// The tokens of a request's prompt, the generation prompt included.
    ///
    /// # Errors
    /// If they are not what the server would have, or it is not known whether.
    pub fn tokens(&self, api: Api, body: &[u8]) -> Result<Vec<u32>, Untokenized> {
        match self {
            Self::Simulated => simulated::tokens(api, body),
        }
    }
}
