//! What requests of the generating APIs mean: model, length, streaming. What their prompts are in
//! tokens is the tokenizer's business.
//!
//! Fields that do not change the simulation (temperature, stop, penalties and so on) are accepted and
//! not looked at. How answers look is in [`super::dialect`].

use forebay_tokenize::{Api, Tokenizer, Untokenized};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::dialect::Dialect;
use super::error::ApiError;
use super::state::unix_time;

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

/// What the APIs have in common, whatever they call it.
#[derive(Deserialize)]
struct Body {
    model: Option<String>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    #[serde(default)]
    sampling_params: SamplingParams,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
}

#[derive(Default, Deserialize)]
struct SamplingParams {
    max_tokens: Option<u32>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// Reads the body of a request.
pub(super) fn parse(dialect: Dialect, tokenizer: &Tokenizer, body: &[u8]) -> Result<Ask, ApiError> {
    let read: Body = read(body)?;
    let max_tokens = match dialect {
        Dialect::Chat => read.max_completion_tokens.or(read.max_tokens),
        Dialect::Completions => Some(read.max_tokens.unwrap_or(COMPLETION_TOKENS)),
        Dialect::Responses => read.max_output_tokens,
        Dialect::Messages => read.max_tokens,
        Dialect::Generate => read.sampling_params.max_tokens,
    };
    let include_usage = match dialect {
        Dialect::Chat | Dialect::Completions => includes_usage(read.stream_options),
        Dialect::Responses | Dialect::Messages => true,
        Dialect::Generate => false,
    };
    if matches!(dialect, Dialect::Chat | Dialect::Completions) {
        one_answer(read.n)?;
    }
    Ok(Ask {
        dialect,
        model: read.model,
        tokens: tokens(tokenizer, api(dialect), body)?,
        max_tokens,
        stream: read.stream.unwrap_or(false),
        include_usage,
    })
}

fn api(dialect: Dialect) -> Api {
    match dialect {
        Dialect::Chat => Api::Chat,
        Dialect::Completions => Api::Completions,
        Dialect::Responses => Api::Responses,
        Dialect::Messages => Api::Messages,
        Dialect::Generate => Api::Generate,
    }
}

/// The tokens of a prompt.
pub(super) fn tokens(tokenizer: &Tokenizer, api: Api, body: &[u8]) -> Result<Vec<u32>, ApiError> {
    tokenizer
        .tokens(api, body, unix_time().as_secs().cast_signed())
        .map_err(|error| match error {
            Untokenized::Unsupported("more or less than one prompt") => {
                let message = "the simulator takes one prompt per request";
                ApiError::bad_request(Some("prompt"), message)
            }
            other => ApiError::bad_request(None, other.to_string()),
        })
}

/// Reads JSON of a known shape.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad_json(&error))
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
