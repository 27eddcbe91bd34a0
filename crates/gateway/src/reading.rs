//! What a request says, as far as a pool's choice cares: the model, prompt and limits in its body, the
//! fields that steer it.
//!
//! The same for every shell: requests that are served here (`inference.rs`) and those that another
//! proxy asks about (`epp`). Pure but for the hasher; nothing is decided here.

use std::borrow::Cow;
use std::hash::Hasher;

use bytes::Bytes;
use forebay_decide::{BlockHash, ChainSeed};
use forebay_dialect::splice::replace_model;
use forebay_dialect::{Api, BodyKind, Scan, Span, Text, multipart, scan};
use forebay_model::Pool;
use http::{HeaderMap, header};
use smallvec::SmallVec;

use crate::respond::Refusal;

/// Tokens assumed for a prompt that cannot be read.
const OPAQUE_PROMPT_TOKENS: u32 = 64;

/// What the body says.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub(crate) scan: Scan,
    pub(crate) stream: bool,
    pub(crate) model: Option<Box<str>>,
    pub(crate) model_at: Option<ModelAt>,
    pub(crate) prompt_tokens: u32,
}

/// Where the body names its model.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ModelAt {
    Json(Text),
    Form(Span),
}

impl Reading {
    /// Of a body that is not read.
    pub(crate) fn opaque() -> Self {
        Self {
            prompt_tokens: OPAQUE_PROMPT_TOKENS,
            ..Self::default()
        }
    }

    /// Reads a body that is held whole; `content_type` is what forms need.
    pub(crate) fn of(
        api: Api,
        content_type: Option<&str>,
        body: Option<&Bytes>,
    ) -> Result<Self, Refusal> {
        let opaque = Self::opaque();
        let Some(body) = body else {
            return Ok(opaque);
        };
        match api.body() {
            BodyKind::Opaque => Ok(opaque),
            BodyKind::Multipart => {
                let form = scan_form(content_type, body)?;
                Ok(Self {
                    stream: form.stream.unwrap_or(false),
                    model: form.model_name(body).map(Into::into),
                    model_at: form.model.map(ModelAt::Form),
                    ..opaque
                })
            }
            BodyKind::Json => {
                let scan = scan_json(api, body)?;
                let tokens = scan.prompt_tokens_estimate(body);
                Ok(Self {
                    stream: scan.stream.unwrap_or(false),
                    model: scan.model_name(body).map(|name| name.as_ref().into()),
                    model_at: scan.model.map(ModelAt::Json),
                    prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
                    scan,
                })
            }
        }
    }

    /// The session that the body names.
    pub(crate) fn session(&self, body: Option<&Bytes>) -> Option<u64> {
        let text = self.scan.conversation.or(self.scan.previous_response)?;
        Some(key_of(text.value(body?).as_bytes()))
    }

    /// The request's own limit on its answer.
    pub(crate) fn output_tokens_max(&self) -> Option<u32> {
        self.scan
            .limits
            .tokens()
            .and_then(|n| u32::try_from(n).ok())
    }

    /// Hashes of the prompt's blocks; none of a body that was not read.
    pub(crate) fn hash_prompt(
        &self,
        pool: &Pool,
        body: Option<&Bytes>,
        model: Option<&str>,
        out: &mut Vec<BlockHash>,
    ) {
        out.clear();
        let Some(body) = body else {
            return;
        };
        let salt = self.scan.cache_salt.map(|salt| salt.value(body));
        let seed = ChainSeed {
            model: model.unwrap_or_default(),
            cache_salt: salt.as_deref(),
        };
        let spans = self.scan.prompt_spans().map(|span| span.of(body));
        let picker = &pool.picker;
        forebay_decide::chain(
            seed,
            spans,
            picker.prefix_block_bytes,
            picker.prefix_blocks_max,
            out,
        );
    }
}

/// The body with another model's name, and no other byte changed.
pub(crate) fn renamed(body: &Bytes, model: ModelAt, name: &str) -> Bytes {
    match model {
        ModelAt::Json(text) => replace_model(body, text, name).into(),
        ModelAt::Form(span) => multipart::replace_model(body, span, name).into(),
    }
}

/// The model that a body names, for routes that match on it.
pub(crate) fn model_of<'a>(
    api: Api,
    headers: &HeaderMap,
    body: &'a [u8],
) -> Result<Option<Cow<'a, str>>, Refusal> {
    Ok(match api.body() {
        BodyKind::Opaque => None,
        BodyKind::Json => scan_json(api, body)?.model_name(body),
        BodyKind::Multipart => scan_form(content_type(headers), body)?
            .model_name(body)
            .map(Cow::Borrowed),
    })
}

/// The type of a body, as text.
pub(crate) fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
}

fn scan_json(api: Api, body: &[u8]) -> Result<Scan, Refusal> {
    scan::scan(api, body).map_err(|error| Refusal {
        param: Some("body"),
        ..Refusal::bad_request(
            "invalid_json",
            format!("the body is not valid JSON: {error}"),
        )
    })
}

fn scan_form(content_type: Option<&str>, body: &[u8]) -> Result<multipart::Form, Refusal> {
    multipart::fields(content_type.unwrap_or_default(), body)
        .map_err(|error| Refusal::bad_request("invalid_form", error.to_string()))
}

/// A field that a client steers its request with.
enum Control {
    /// Names the request's objective; endpoints do not need to see it.
    Objective,
    /// Names whom the request is for; tenants take turns where they have to wait.
    Fairness,
    /// Endpoints do not need to see it.
    Ours,
    /// Names a session; of several the lowest rank wins.
    Session(u8),
}

/// What a field is for. A match on the whole name costs a comparison or two, not one per name.
fn control(name: &str) -> Option<Control> {
    Some(match name {
        "x-llm-d-inference-objective" | "x-gateway-inference-objective" => Control::Objective,
        "x-llm-d-inference-fairness-id" | "x-gateway-inference-fairness-id" => Control::Fairness,
        "x-gateway-destination-endpoint"
        | "x-gateway-destination-endpoint-subset"
        | "x-gateway-model-name"
        | "x-llm-d-model-name-rewrite" => Control::Ours,
        "x-session-token" => Control::Session(0),
        "x-session-id" => Control::Session(1),
        "x-claude-code-session-id" => Control::Session(2),
        "x-session-affinity" => Control::Session(3),
        "session-id" => Control::Session(4),
        "session_id" => Control::Session(5),
        _ => return None,
    })
}

/// What the client's control fields say; they go no further.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    pub(crate) priority: i32,
    /// Hash of the tenant's id; 0 for all who name none.
    pub(crate) fairness: u64,
    pub(crate) session: Option<u64>,
    /// Rank of the field that named the session, from the end, so that none is the lowest.
    session_rank: u8,
}

impl Controls {
    /// Takes note of a field, whose name is in lower case; true if it goes no further.
    pub(crate) fn note(&mut self, pool: &Pool, name: &str, value: &[u8]) -> bool {
        match control(name) {
            None => false,
            Some(Control::Objective) => {
                let objective = str::from_utf8(value).unwrap_or_default();
                self.priority = pool.objectives.get(objective).copied().unwrap_or(0);
                true
            }
            Some(Control::Fairness) => {
                self.fairness = key_of(value);
                true
            }
            Some(Control::Ours) => true,
            Some(Control::Session(rank)) => {
                let rank = u8::MAX - rank;
                if rank > self.session_rank {
                    self.session_rank = rank;
                    self.session = Some(key_of(value));
                }
                false
            }
        }
    }

    /// Reads and removes them. One pass over the fields that are there: most requests have none.
    pub(crate) fn take(pool: &Pool, headers: &mut HeaderMap) -> Self {
        let mut found = Self::default();
        let mut gone: SmallVec<[http::HeaderName; 4]> = SmallVec::new();
        for (name, value) in &*headers {
            if found.note(pool, name.as_str(), value.as_bytes()) {
                gone.push(name.clone());
            }
        }
        for name in gone {
            headers.remove(name);
        }
        found
    }
}

/// The fields as a picker outside is shown them: all but those that say what is for it to say.
pub(crate) fn shown(headers: &HeaderMap) -> HeaderMap {
    let mut shown = headers.clone();
    for name in headers.keys() {
        if matches!(control(name.as_str()), Some(Control::Ours)) {
            shown.remove(name);
        }
    }
    shown
}

/// The name of a session or a tenant as a number. Only this process reads it.
fn key_of(name: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(name);
    hasher.finish()
}
