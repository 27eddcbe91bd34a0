//! Paths to answers.
//!
//! Generating requests become a ticket in the engine and an answer in their dialect; the rest
//! (embeddings, scores, tokens, adapters, pages) is in `tools.rs`.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::ask::{self, Ask};
use super::body::{SimBody, TokenStream};
use super::dialect::{Dialect, Subject, Writer};
use super::error::ApiError;
use super::state::{Fate, Shared, Work, unix_time};
use super::tools;
use crate::engine::AdapterId;
use crate::engine::tokens::mix;

/// Bytes of a request body; a longer one gets a 413.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Output tokens of an answer without a limit: 64 to 192, by prompt and seed.
const NATURAL_TOKENS: std::ops::Range<u32> = 64..192;

const X_SIM: HeaderName = HeaderName::from_static("x-sim");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers one request; every answer is labelled as simulated.
pub(super) async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<SimBody> {
    let request_id = request.headers().get(X_REQUEST_ID).cloned();
    let mut response = match route(shared, request).await {
        Ok(response) => response,
        Err(error) => error.response(),
    };
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("forebay-sim"));
    headers.insert(X_SIM, HeaderValue::from_static("forebay"));
    if let Some(id) = request_id {
        headers.insert(X_REQUEST_ID, id);
    }
    response
}

async fn route(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<SimBody>, ApiError> {
    let path = request.uri().path().to_owned();
    let path = path.as_str();
    if request.method() == Method::GET {
        return page(shared, path);
    }
    if request.method() != Method::POST {
        return Err(ApiError::status(StatusCode::METHOD_NOT_ALLOWED));
    }
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    let body = read_body(request.into_body()).await?;
    let dialect = match path {
        "/v1/chat/completions" => Dialect::Chat,
        "/v1/completions" => Dialect::Completions,
        "/v1/responses" => Dialect::Responses,
        "/v1/messages" => Dialect::Messages,
        "/inference/v1/generate" => Dialect::Generate,
        "/v1/messages/count_tokens" => return tools::count_tokens(shared, &body),
        "/v1/embeddings" => return tools::embeddings(shared, &body).await,
        "/rerank" | "/v1/rerank" | "/v2/rerank" => return tools::rerank(shared, &body).await,
        "/score" | "/v1/score" => return tools::score(shared, &body).await,
        "/v1/audio/transcriptions" => {
            return tools::transcription(shared, content_type.as_ref(), &body).await;
        }
        "/tokenize" => return tools::tokenize(shared, &body),
        "/detokenize" => return tools::detokenize(&body),
        "/v1/load_lora_adapter" => return tools::load_adapter(shared, &body),
        "/v1/unload_lora_adapter" => return tools::unload_adapter(shared, &body),
        "/sim/failures" => return tools::set_failures(shared, &body),
        "/sim/kv-events" => return tools::lose_kv_events(shared, &body),
        "/ping" => return Ok(text(String::new())),
        _ => return Err(ApiError::status(StatusCode::NOT_FOUND)),
    };
    generate(shared, ask::parse(dialect, &shared.tokenizer, &body)?).await
}

fn page(shared: &Shared, path: &str) -> Result<Response<SimBody>, ApiError> {
    match path {
        "/metrics" => {
            let mut page = text(shared.metrics_page());
            let kind = HeaderValue::from_static("text/plain; version=1.0.0; charset=utf-8");
            page.headers_mut().insert(CONTENT_TYPE, kind);
            Ok(page)
        }
        "/health" | "/ping" if shared.lock().failures.unhealthy => {
            Err(ApiError::status(StatusCode::SERVICE_UNAVAILABLE))
        }
        "/health" | "/ping" => Ok(text(String::new())),
        "/v1/models" => Ok(tools::models(shared)),
        "/version" => Ok(json(&serde_json::json!({"version": "0.32.0+forebay-sim"}))),
        "/load" => Ok(tools::server_load(shared)),
        _ => Err(ApiError::status(StatusCode::NOT_FOUND)),
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, ApiError> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::status(StatusCode::PAYLOAD_TOO_LARGE))
        }
        Err(_) => Err(ApiError::bad_request(None, "the body broke off")),
    }
}

/// Puts the request into the engine and answers at its pace.
async fn generate(shared: &Arc<Shared>, ask: Ask) -> Result<Response<SimBody>, ApiError> {
    let (fate, failures) = {
        let mut core = shared.lock();
        (core.draw_fate(), core.failures)
    };
    match fate {
        Fate::Error => {
            let status = StatusCode::from_u16(failures.error_status);
            return Err(ApiError::injected(
                status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            ));
        }
        Fate::Stall => std::future::pending().await,
        Fate::Serve | Fate::Break => {}
    }
    let (model, adapter) = find_model(shared, ask.model.as_deref())?;
    let output_seed = seed(shared.config.seed, &ask.tokens);
    let output_tokens = ask
        .max_tokens
        .unwrap_or_else(|| natural_tokens(shared, &ask, output_seed));
    let stops = ask.max_tokens.is_none();
    let work = Work {
        tokens: &ask.tokens,
        output_tokens,
        output_seed,
        adapter,
        stops,
    };
    let mut ticket = shared
        .submit(&work)
        .map_err(|error| ApiError::submit(&error, ask.tokens.len(), output_tokens))?;
    let writer = Writer::new(Subject {
        dialect: ask.dialect,
        number: mix(shared.config.seed ^ ticket.id),
        model,
        created_s: unix_time().as_secs(),
        prompt_tokens: u32::try_from(ask.tokens.len()).unwrap_or(u32::MAX),
        output_tokens,
        output_seed,
        stops,
        include_usage: ask.include_usage,
    });
    if !ask.stream {
        let progress = ticket.complete().await;
        return Ok(json(&writer.plain(progress)));
    }
    let break_after = (fate == Fate::Break).then_some(failures.break_after_tokens);
    let stream = TokenStream {
        ticket,
        writer,
        sent: 0,
        break_after,
    };
    let mut response = Response::new(SimBody::Stream(Box::new(stream)));
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// The name to answer with, and the adapter if it is one.
pub(super) fn find_model(
    shared: &Shared,
    asked: Option<&str>,
) -> Result<(String, Option<AdapterId>), ApiError> {
    let models = &shared.config.models;
    match asked {
        None => Ok((models[0].clone(), None)),
        Some(name) if models.iter().any(|model| model == name) => Ok((name.to_owned(), None)),
        Some(name) => match shared.lock().adapters.get(name) {
            Some(adapter) => Ok((name.to_owned(), Some(*adapter))),
            None => Err(ApiError::unknown_model(name)),
        },
    }
}

/// Equal prompts get equal answers, as at temperature 0.
pub(super) fn seed(server: u64, tokens: &[u32]) -> u64 {
    tokens
        .iter()
        .fold(mix(server), |seed, token| mix(seed ^ u64::from(*token)))
}

fn natural_tokens(shared: &Shared, ask: &Ask, seed: u64) -> u32 {
    let span = NATURAL_TOKENS.end - NATURAL_TOKENS.start;
    let natural = NATURAL_TOKENS.start + (seed % u64::from(span)) as u32;
    let context = shared.lock().engine.settings().max_model_len;
    let used = u32::try_from(ask.tokens.len()).unwrap_or(u32::MAX);
    natural.min(context.saturating_sub(used)).max(1)
}

/// An answer of JSON.
pub(super) fn json(value: &Value) -> Response<SimBody> {
    let mut response = text(value.to_string());
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// An answer of text.
pub(super) fn text(text: String) -> Response<SimBody> {
    Response::new(SimBody::full(text))
}
