//! What is asked of a pool for one request, and what became of it.
//!
//! Plain values between the data plane and the policy; no protocol type gets past here.

use std::net::SocketAddr;

use forebay_model::{Moment, Topology};

use crate::predict::{Begun, Prediction};
use crate::prefix::{BlockHash, TokenChain};

/// One request, as far as choosing an endpoint is concerned.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// The model name as the server will see it, after rewriting.
    pub model: Option<&'a str>,
    /// Hashes of the prompt's blocks, from [`crate::prefix::chain`]; empty if unknown.
    pub prefix: &'a [BlockHash],
    /// Hashes of the prompt's tokens, from [`crate::prefix::TokenPlan::hash`]; empty if the tokens
    /// are not known, or nobody wants to know.
    pub tokens: &'a [TokenChain],
    /// Prompt length: counted if its tokens are known, else estimated.
    pub prompt_tokens: u32,
    /// The request's own limit on its answer.
    pub output_tokens_max: Option<u32>,
    /// Hash of a session key, if the request carries one.
    pub session: Option<u64>,
    /// Priority of its objective; a negative one may be shed.
    pub priority: i32,
    /// Whether the answer is streamed, so that its first byte tells when prefill was over. A
    /// whole answer's first byte comes with its last token and says nothing about prefill.
    pub stream: bool,
    /// What the request's latency should be.
    pub slo: Slo,
    /// Only these endpoints may be chosen.
    pub subset: Option<&'a [SocketAddr]>,
    /// The fields of the request that [`crate::reads_fields`] names, in lower case, with their values.
    pub fields: &'a [(&'a str, &'a str)],
    /// Where the request's other part is done, as far as that is known.
    pub near: Option<&'a Topology>,
    /// Endpoints that already failed in this exchange.
    pub avoid: &'a [SocketAddr],
}

/// What a request's latency should be, as far as it says, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Slo {
    /// Time to the first token, from now on.
    pub ttft_ms: Option<f32>,
    /// Time between further tokens, on average.
    pub tpot_ms: Option<f32>,
}

impl Slo {
    /// A number of milliseconds as a client writes it; `None` for what is none, or not above zero.
    #[must_use]
    pub fn parse_ms(text: &str) -> Option<f32> {
        let ms = text.trim().parse::<f32>().ok()?;
        (ms.is_finite() && ms > 0.0).then_some(ms)
    }

    /// Whether the request says anything.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.ttft_ms.is_some() || self.tpot_ms.is_some()
    }
}

impl<'a> Ask<'a> {
    /// The value of one of [`fields`](Self::fields); blank is absent.
    pub(crate) fn field(&self, name: &str) -> Option<&'a str> {
        let found = self.fields.iter().find(|(own, _)| *own == name);
        let value = found.map(|(_, value)| value.trim());
        value.filter(|value| !value.is_empty())
    }
}

/// One request under way at one endpoint. Made by [`crate::PoolState::begin`], handed back to
/// [`crate::PoolState::finish`] exactly once: it is not `Clone`, so it cannot be settled twice.
///
/// Holds the hashes of blocks new to the endpoint until the first byte (8 bytes per block of
/// prompt, of which there are a few hundred at most), to take them back if the request never arrives.
#[derive(Debug)]
#[must_use = "a flight that is not finished counts as in flight for ever"]
pub struct Flight {
    pub(crate) slot: u16,
    pub(crate) generation: u32,
    pub(crate) begun: Moment,
    pub(crate) stamp: u64,
    pub(crate) stream: bool,
    /// The first byte was seen: prefill is over.
    pub(crate) answered: bool,
    /// When that was.
    pub(crate) first_byte: Moment,
    /// What was known and predicted when it began.
    pub(crate) latency: Begun,
    /// No queue was known when it began, so that its prefill time tells the endpoint's speed.
    pub(crate) unqueued: bool,
    pub(crate) prompt_tokens: u32,
    /// They are counted, not estimated: the prompt was tokenized.
    pub(crate) counted: bool,
    pub(crate) uncached_tokens: u32,
    pub(crate) ahead_tokens: u64,
    pub(crate) total_tokens: u32,
    /// Prompt tokens believed to be in the endpoint's cache, by whatever is known of it.
    pub(crate) hit_tokens: u32,
    pub(crate) claim: Claim,
    pub(crate) fresh_blocks: Box<[BlockHash]>,
}

/// What the approximate index promised when the flight began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Claim {
    /// Prompt tokens said to be in the endpoint's cache.
    pub(crate) hit_tokens: u32,
    /// Prompt tokens in the block after them, of which some may be in the cache as well.
    pub(crate) blurred_tokens: u32,
    /// When the deepest of them was last used, on the index's clock; `None` if a miss would
    /// prove nothing, because a request that computes the block is itself still unanswered.
    pub(crate) tail_stamp: Option<u64>,
}

impl Flight {
    /// The latency that the request was predicted to have where it went, if enough was known.
    #[must_use]
    pub fn predicted(&self) -> Option<Prediction> {
        self.latency.predicted
    }

    /// Prompt tokens that were believed to be in the endpoint's cache.
    #[must_use]
    pub fn hit_tokens(&self) -> u32 {
        self.hit_tokens
    }
}

/// How a flight ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Served, failed or cancelled.
    pub kind: EndKind,
    /// Prompt tokens by the server's count.
    pub prompt_tokens: Option<u32>,
    /// Prompt tokens that the server found in its cache.
    pub cached_tokens: Option<u32>,
    /// Tokens generated.
    pub output_tokens: Option<u32>,
}

impl End {
    /// An end without any token counts.
    #[must_use]
    pub fn plain(kind: EndKind) -> Self {
        Self {
            kind,
            prompt_tokens: None,
            cached_tokens: None,
            output_tokens: None,
        }
    }
}

/// What an end says about the endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndKind {
    /// The endpoint answered; an answer that blames the request (4xx) is one too.
    Served,
    /// The endpoint did not do its part.
    Failed(FailureKind),
    /// The client went away; that says nothing about the endpoint.
    Cancelled,
}

/// What an endpoint did wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// No connection.
    Connect,
    /// The connection broke before the answer was complete.
    Reset,
    /// It answered with this status, 500 to 599, or with one of gRPC that means the same.
    Status5xx(u16),
    /// No answer in time.
    Timeout,
}
