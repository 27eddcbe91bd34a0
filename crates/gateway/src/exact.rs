//! A prompt's tokens, where its pool can make use of them: what endpoints say of their caches is told
//! in tokens.
//!
//! Whatever keeps them from being known costs a request nothing: it is compared byte by byte, which
//! the decision's report and a metric say.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use forebay_decide::TokenChain;
use forebay_dialect::Api;
use forebay_model::picker::PrecisePrefix;
use forebay_tokenize::Api as PromptApi;

use crate::exchange::Exchange;
use crate::inference::Reading;
use crate::onward::ClientBody;
use crate::pools::PoolRuntime;

/// Hashes the prompt's tokens into `chains`; how many there are, or `None` if nobody asks or they
/// are not known.
pub(crate) fn hash_tokens(
    ex: &Exchange,
    runtime: &Arc<PoolRuntime>,
    reading: &Reading,
    body: &ClientBody,
    model: Option<&str>,
    chains: &mut Vec<TokenChain>,
) -> Option<u32> {
    let pool = runtime.pool();
    let precise = pool.picker.precise_prefix.as_ref()?;
    // One short hold of the lock: which blocks its endpoints have, and whether the model is an
    // adapter.
    let plan = runtime.state().token_plan(model)?;
    let metrics = &ex.worker.shared.telemetry.metrics;
    match tokens(ex, precise, body) {
        Ok(tokens) => {
            metrics.tokenized(&runtime.name, "exact");
            let salt = body.held().and_then(|held| {
                let salt = reading.scan.cache_salt?;
                Some(salt.value(held))
            });
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
    ex: &Exchange,
    precise: &PrecisePrefix,
    body: &ClientBody,
) -> Result<Vec<u32>, &'static str> {
    let name = precise.tokenizer.as_deref().ok_or("no-tokenizer")?;
    let api = api(ex.record.api).ok_or("api")?;
    let body = body.held().ok_or("not-held")?;
    if body.len() > precise.tokenized_bytes_max {
        return Err("too-long");
    }
    let tokenizer = ex.worker.shared.tokenizers.get(name);
    let tokenizer = tokenizer.ok_or("tokenizer-not-ready")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_s = now.map_or(0, |now| now.as_secs().cast_signed());
    tokenizer.tokens(api, body, now_s).map_err(|why| why.code())
}

/// The API by which the body's prompt is found; `None` for those that have none of this kind.
fn api(api: Api) -> Option<PromptApi> {
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
