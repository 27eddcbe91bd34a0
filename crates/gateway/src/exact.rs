//! A prompt's tokens, where its pool can make use of them: what endpoints say of their caches is told
//! in tokens.
//!
//! Whatever keeps them from being known costs a request nothing: it is compared byte by byte, which
//! the decision's report and a metric say.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use forebay_decide::TokenChain;
use forebay_dialect::Api;
use forebay_model::picker::PrecisePrefix;
use forebay_tokenize::Api as PromptApi;

use crate::pools::PoolRuntime;
use crate::reading::Reading;
use crate::worker::Worker;

/// Hashes the prompt's tokens into `chains`; how many there are, or `None` if nobody asks or they
/// are not known.
pub(crate) fn hash_tokens(
    worker: &Worker,
    api: Api,
    runtime: &PoolRuntime,
    reading: &Reading,
    body: Option<&Bytes>,
    model: Option<&str>,
    chains: &mut Vec<TokenChain>,
) -> Option<u32> {
    let pool = runtime.pool();
    let precise = pool.picker.precise_prefix.as_ref()?;
    // One short hold of the lock: which blocks its endpoints have, and whether the model is an
    // adapter.
    let plan = runtime.state().token_plan(model)?;
    let metrics = &worker.shared.telemetry.metrics;
    match tokens(worker, api, precise, body) {
        Ok(tokens) => {
            metrics.tokenized(&runtime.name, "exact");
            let salt = reading.scan.cache_salt.zip(body);
            let salt = salt.map(|(salt, body)| salt.value(body));
            plan.hash(&tokens, salt.as_deref(), chains);
            u32::try_from(tokens.len()).ok()
        }
        Err(why) => {
            metrics.tokenized(&runtime.name, why);
            None
        }
    }
}

/// The prompt's tokens, or a word for why they are not known.
fn tokens(
    worker: &Worker,
    api: Api,
    precise: &PrecisePrefix,
    body: Option<&Bytes>,
) -> Result<Vec<u32>, &'static str> {
    let name = precise.tokenizer.as_deref().ok_or("no-tokenizer")?;
    let api = prompt_api(api).ok_or("api")?;
    let body = body.ok_or("not-held")?;
    if body.len() > precise.tokenized_bytes_max {
        return Err("too-long");
    }
    let tokenizer = worker.shared.tokenizers.get(name);
    let tokenizer = tokenizer.ok_or("tokenizer-not-ready")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_s = now.map_or(0, |now| now.as_secs().cast_signed());
    tokenizer.tokens(api, body, now_s).map_err(|why| why.code())
}

/// The API by which the body's prompt is found; `None` for those that have none of this kind.
fn prompt_api(api: Api) -> Option<PromptApi> {
    Some(match api {
        Api::ChatCompletions => PromptApi::Chat,
        Api::Completions => PromptApi::Completions,
        Api::Responses => PromptApi::Responses,
        Api::Messages => PromptApi::Messages,
        Api::VllmGenerate => PromptApi::Generate,
        Api::Conversations
        | Api::Embeddings
        | Api::Rerank
        | Api::Score
        | Api::Tokenize
        | Api::Detokenize
        | Api::Transcriptions
        | Api::Speech
        | Api::Images
        | Api::CountTokens
        | Api::SglangGenerate
        | Api::Models
        | Api::Other => return None,
    })
}
