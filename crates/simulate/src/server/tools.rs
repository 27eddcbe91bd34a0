//! The endpoints around generation: embeddings, scores, transcription, tokens, adapters, lists.
//!
//! Embeddings and scores are made up from hashes, but each input goes through the engine like a
//! prompt with one output token, so that it costs what a prefill costs.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use forebay_tokenize::Api;
use forebay_tokenize::simulated::{Input, Tokens, detokenize as to_text};
use http::{HeaderValue, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Failures;
use super::ask::{self, read};
use super::body::SimBody;
use super::error::ApiError;
use super::kv_events::Losses;
use super::routes::{find_model, json as json_answer, seed, text};
use super::state::{ADAPTERS_MAX, Shared, Work, unix_time};
use crate::engine::tokens::{Random, output_token};

/// Length of an embedding if the request names none.
const DIMENSIONS: usize = 256;
/// Longest embedding that is given.
const DIMENSIONS_MAX: usize = 8192;
/// Texts in one request for embeddings, scores or ranks; more get a 400.
const INPUTS_MAX: usize = 2048;
/// Audio bytes that make one word: 16 kHz, 16 bits, a bit over two words a second.
const AUDIO_BYTES_PER_TOKEN: usize = 14_000;

/// The models and adapters.
pub(super) fn models(shared: &Shared) -> Response<SimBody> {
    let created = unix_time().as_secs();
    let core = shared.lock();
    let max_model_len = core.engine.settings().max_model_len;
    let base = &shared.config.models[0];
    let card = |id: &str, root: &str, parent: Value| {
        json!({
            "id": id, "object": "model", "created": created, "owned_by": "vllm", "root": root,
            "parent": parent, "max_model_len": max_model_len, "permission": [],
        })
    };
    let models = shared
        .config
        .models
        .iter()
        .map(|model| card(model, base, Value::Null));
    let adapters = core
        .adapters
        .keys()
        .map(|name| card(name, name, base.as_str().into()));
    json_answer(&json!({"object": "list", "data": models.chain(adapters).collect::<Vec<_>>()}))
}

/// Requests in flight.
pub(super) fn server_load(shared: &Shared) -> Response<SimBody> {
    let load = shared.lock().engine.load();
    json_answer(&json!({"server_load": load.running + load.waiting}))
}

/// `/v1/messages/count_tokens`.
pub(super) fn count_tokens(shared: &Shared, body: &Bytes) -> Result<Response<SimBody>, ApiError> {
    let tokens = ask::tokens(&shared.tokenizer, Api::Tokenize, body)?;
    Ok(json_answer(&json!({"input_tokens": tokens.len()})))
}

/// `/tokenize`.
pub(super) fn tokenize(shared: &Shared, body: &Bytes) -> Result<Response<SimBody>, ApiError> {
    let tokens = ask::tokens(&shared.tokenizer, Api::Tokenize, body)?;
    let max_model_len = shared.lock().engine.settings().max_model_len;
    Ok(json_answer(&json!({
        "count": tokens.len(), "max_model_len": max_model_len, "tokens": tokens,
        "token_strs": null,
    })))
}

#[derive(Deserialize)]
struct DetokenizeBody {
    tokens: Vec<u32>,
}

/// `/detokenize`.
pub(super) fn detokenize(body: &Bytes) -> Result<Response<SimBody>, ApiError> {
    let body: DetokenizeBody = read(body)?;
    Ok(json_answer(&json!({"prompt": to_text(&body.tokens)})))
}

/// `/sim/kv-events`.
pub(super) fn lose_kv_events(shared: &Shared, body: &Bytes) -> Result<Response<SimBody>, ApiError> {
    let losses: Losses = read(body)?;
    let Some(publisher) = &shared.publisher else {
        let message = "the simulator was started without --kv-events-port";
        return Err(ApiError::bad_request(None, message));
    };
    publisher.lose(losses);
    Ok(json_answer(&json!(losses)))
}

#[derive(Deserialize)]
struct AdapterBody {
    lora_name: String,
}

/// `/v1/load_lora_adapter`.
pub(super) fn load_adapter(shared: &Shared, body: &Bytes) -> Result<Response<SimBody>, ApiError> {
    let AdapterBody { lora_name } = read(body)?;
    let mut core = shared.lock();
    if core.engine.settings().max_loras == 0 {
        return Err(ApiError::bad_request(
            None,
            "the server has no adapter slots (max_loras is 0)",
        ));
    }
    if !core.load_adapter(&lora_name) {
        let message = format!("{ADAPTERS_MAX} adapters are loaded already; unload one first");
        return Err(ApiError::bad_request(Some("lora_name"), message));
    }
    Ok(text(format!(
        "Success: LoRA adapter '{lora_name}' added successfully."
    )))
}

/// `/v1/unload_lora_adapter`.
pub(super) fn unload_adapter(shared: &Shared, body: &Bytes) -> Result<Response<SimBody>, ApiError> {
    let AdapterBody { lora_name } = read(body)?;
    match shared.lock().adapters.remove(&lora_name) {
        Some(_) => Ok(text(format!(
            "Success: LoRA adapter '{lora_name}' removed successfully."
        ))),
        None => Err(ApiError::unknown_model(&lora_name)),
    }
}

/// `/sim/failures`: replaces the injected failures.
pub(super) fn set_failures(shared: &Shared, body: &Bytes) -> Result<Response<SimBody>, ApiError> {
    let failures: Failures = read(body)?;
    shared.lock().failures = failures;
    let value = serde_json::to_value(failures).expect("numbers only");
    Ok(json_answer(&value))
}

#[derive(Deserialize)]
struct EmbeddingsBody {
    model: Option<String>,
    input: Input,
    dimensions: Option<usize>,
    encoding_format: Option<String>,
}

/// `/v1/embeddings`.
pub(super) async fn embeddings(
    shared: &Arc<Shared>,
    body: &Bytes,
) -> Result<Response<SimBody>, ApiError> {
    let body: EmbeddingsBody = read(body)?;
    let (model, _) = find_model(shared, body.model.as_deref())?;
    let inputs = body.input.into_token_lists();
    let tokens = prefill(shared, &inputs).await?;
    let dimensions = body
        .dimensions
        .unwrap_or(DIMENSIONS)
        .clamp(1, DIMENSIONS_MAX);
    let base64 = body.encoding_format.as_deref() == Some("base64");
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let vector = unit_vector(seed(shared.config.seed, input), dimensions);
            let embedding = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                base64::engine::general_purpose::STANDARD
                    .encode(bytes)
                    .into()
            } else {
                json!(vector)
            };
            json!({"index": index, "object": "embedding", "embedding": embedding})
        })
        .collect();
    Ok(json_answer(&json!({
        "id": "embd-sim", "object": "list", "created": unix_time().as_secs(), "model": model,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0,
                  "prompt_tokens_details": null},
    })))
}

#[derive(Deserialize)]
struct RerankBody {
    model: Option<String>,
    query: String,
    documents: Vec<String>,
    top_n: Option<usize>,
}

/// `/rerank`.
pub(super) async fn rerank(
    shared: &Arc<Shared>,
    body: &Bytes,
) -> Result<Response<SimBody>, ApiError> {
    let body: RerankBody = read(body)?;
    let (model, _) = find_model(shared, body.model.as_deref())?;
    let pairs: Vec<Vec<u32>> = body
        .documents
        .iter()
        .map(|text| pair(&body.query, text))
        .collect();
    let tokens = prefill(shared, &pairs).await?;
    let mut ranked: Vec<(usize, f64)> = pairs
        .iter()
        .map(|pair| Random::new(seed(shared.config.seed, pair)).unit())
        .enumerate()
        .collect();
    ranked.sort_by(|one, other| other.1.total_cmp(&one.1));
    ranked.truncate(body.top_n.filter(|top| *top > 0).unwrap_or(usize::MAX));
    let result = |(index, score): &(usize, f64)| {
        let document = json!({"text": body.documents[*index], "multi_modal": null});
        json!({"index": index, "document": document, "relevance_score": score})
    };
    Ok(json_answer(&json!({
        "id": "rerank-sim", "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": ranked.iter().map(result).collect::<Vec<_>>(),
    })))
}

#[derive(Deserialize)]
struct ScoreBody {
    model: Option<String>,
    #[serde(alias = "queries", alias = "data_1")]
    text_1: OneOrMore,
    #[serde(alias = "documents", alias = "data_2")]
    text_2: OneOrMore,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::More(texts) => texts,
        }
    }
}

/// `/score`: one text against each of many, or as many pairs.
pub(super) async fn score(
    shared: &Arc<Shared>,
    body: &Bytes,
) -> Result<Response<SimBody>, ApiError> {
    let body: ScoreBody = read(body)?;
    let (model, _) = find_model(shared, body.model.as_deref())?;
    let (ones, others) = (body.text_1.as_slice(), body.text_2.as_slice());
    if ones.len() != 1 && ones.len() != others.len() {
        return Err(ApiError::bad_request(
            None,
            "Input lengths must be either 1:1, 1:N or N:N",
        ));
    }
    let pairs: Vec<Vec<u32>> = others
        .iter()
        .zip(ones.iter().cycle())
        .map(|(other, one)| pair(one, other))
        .collect();
    let tokens = prefill(shared, &pairs).await?;
    let score = |(index, pair): (usize, &Vec<u32>)| {
        let score = Random::new(seed(shared.config.seed, pair)).unit();
        json!({"index": index, "object": "score", "score": score})
    };
    Ok(json_answer(&json!({
        "id": "score-sim", "object": "list", "created": unix_time().as_secs(), "model": model,
        "data": pairs.iter().enumerate().map(score).collect::<Vec<_>>(),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0,
                  "prompt_tokens_details": null},
    })))
}

/// `/v1/audio/transcriptions`: words in proportion to the bytes of sound.
pub(super) async fn transcription(
    shared: &Arc<Shared>,
    content_type: Option<&HeaderValue>,
    body: &Bytes,
) -> Result<Response<SimBody>, ApiError> {
    let multipart = content_type
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.starts_with("multipart/form-data"));
    if !multipart {
        return Err(ApiError::bad_request(
            Some("file"),
            "expected multipart/form-data",
        ));
    }
    let model = form_field(body, "model");
    let (_, adapter) = find_model(shared, model.as_deref())?;
    let mut prompt = Tokens::begin();
    prompt.media(&format!("{} bytes of sound", body.len()));
    let output_seed = seed(shared.config.seed, &prompt.0);
    let words = (body.len() / AUDIO_BYTES_PER_TOKEN).clamp(8, 448) as u32;
    let work = Work {
        tokens: &prompt.0,
        output_tokens: words,
        output_seed,
        adapter,
        stops: true,
    };
    let mut ticket = shared
        .submit(&work)
        .map_err(|error| ApiError::submit(&error, prompt.0.len(), words))?;
    ticket.complete().await;
    let tokens: Vec<u32> = (0..words)
        .map(|index| output_token(output_seed, index))
        .collect();
    let transcript = to_text(&tokens).trim_end().to_owned();
    if form_field(body, "response_format").as_deref() == Some("text") {
        return Ok(text(transcript));
    }
    let seconds = (body.len() / 32_000).max(1);
    let usage = json!({"type": "duration", "seconds": seconds});
    Ok(json_answer(&json!({"text": transcript, "usage": usage})))
}

/// A short field of a multipart form. Parts with file content are passed over.
fn form_field(body: &[u8], name: &str) -> Option<String> {
    let marker = format!("name=\"{name}\"\r\n");
    let start = body
        .windows(marker.len())
        .position(|window| window == marker.as_bytes())?;
    // The part's headers end with an empty line; the first may end here.
    let rest = &body[start + marker.len() - 2..];
    let value = &rest[rest.windows(4).position(|window| window == b"\r\n\r\n")? + 4..];
    let end = value.windows(2).position(|window| window == b"\r\n")?;
    String::from_utf8(value[..end].to_vec()).ok()
}

fn pair(one: &str, other: &str) -> Vec<u32> {
    let mut tokens = Tokens::begin();
    tokens.text(one);
    tokens.end();
    tokens.text(other);
    tokens.0
}

/// Runs inputs through the engine for their prefill alone; tokens of all.
async fn prefill(shared: &Arc<Shared>, inputs: &[Vec<u32>]) -> Result<usize, ApiError> {
    if inputs.len() > INPUTS_MAX {
        let message = format!("{} inputs, at most {INPUTS_MAX} are taken", inputs.len());
        return Err(ApiError::bad_request(Some("input"), message));
    }
    let mut tickets = Vec::with_capacity(inputs.len());
    for tokens in inputs {
        let work = Work {
            tokens,
            output_tokens: 1,
            output_seed: 0,
            adapter: None,
            stops: true,
        };
        let ticket = shared.submit(&work);
        tickets.push(ticket.map_err(|error| ApiError::submit(&error, tokens.len(), 1))?);
    }
    for ticket in &mut tickets {
        ticket.complete().await;
    }
    Ok(inputs.iter().map(Vec::len).sum())
}

/// A vector of length 1 that depends on the seed alone.
fn unit_vector(seed: u64, dimensions: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    let vector: Vec<f64> = (0..dimensions).map(|_| random.normal()).collect();
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    vector.iter().map(|x| (x / length) as f32).collect()
}
