//! What a model server says about itself in one scrape.

use std::sync::Arc;

/// The signals of one scrape. `None` means that the server did not report the signal, which is
/// neither idle nor full: the picker replaces it by what the other endpoints report.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Load {
    /// Requests waiting in the server's queue.
    pub waiting: Option<u32>,
    /// Requests in the running batch.
    pub running: Option<u32>,
    /// Share of KV-cache blocks in use, 0 to 1.
    pub kv_used: Option<f32>,
    /// Tokens per KV block.
    pub block_tokens: Option<u32>,
    /// KV blocks that the server has.
    pub blocks: Option<u64>,
    /// LoRA adapters, when the server reports them.
    pub lora: Option<LoraLoad>,
}

/// LoRA slots of one server.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LoraLoad {
    /// Adapters that fit into one batch.
    pub max: u32,
    /// Adapters in the running batch.
    pub running: Vec<Arc<str>>,
    /// Adapters that requests wait for.
    pub waiting: Vec<Arc<str>>,
}
