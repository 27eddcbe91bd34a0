//! Who has which part of a prompt in cache, as far as our own routing lets us know.
//!
//! A prompt is cut into blocks that grow with their position (`size.rs`); each block's hash covers
//! everything before it (`chain.rs`), so equal hashes mean equal prompts up to there. The index (`index.rs`) remembers
//! which endpoint was sent which block, forgets in the order in which a model server does, and is
//! corrected by the cached-token counts that servers report. It does not listen to KV events.

mod chain;
mod holders;
mod index;
mod size;
mod table;
#[cfg(test)]
mod tests;

pub use chain::{BlockHash, ChainSeed, chain};
pub use index::{Held, PrefixIndex};
pub use size::{BLOCKS_PER_SIZE, WEIGHT_MAX, base_blocks, block_weight};
