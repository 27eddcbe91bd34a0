//! Who has which part of a prompt in cache, as far as our own routing lets us know.
//!
//! A prompt is cut into blocks of equal bytes; each block's hash covers everything before it
//! (`chain.rs`), so equal hashes mean equal prompts up to there. The index (`index.rs`) remembers
//! which endpoint was sent which block, forgets in the order in which a model server does, and is
//! corrected by the cached-token counts that servers report. It does not listen to KV events.

mod chain;
mod holders;
mod index;
mod table;
#[cfg(test)]
mod tests;

pub use chain::{BlockHash, ChainSeed, chain};
pub use index::{Held, PrefixIndex};
