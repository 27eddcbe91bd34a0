//! Who has which part of a prompt in cache, as far as our own routing lets us know.
//!
//! A prompt is cut into blocks that grow with their position (`size.rs`); each block's hash covers
//! everything before it (`chain.rs`), so equal hashes mean equal prompts up to there. The index (`index.rs`) remembers
//! which endpoint was sent which block, forgets in the order in which a model server does, and is
//! corrected by the cached-token counts that servers report.
//!
//! Where endpoints publish events of their caches, `precise.rs` follows those instead, by the hashes
//! of tokens (`tokens.rs`); what was sent and not told of yet is a guess of a few seconds
//! (`guesses.rs`).

mod chain;
mod guesses;
mod holders;
mod index;
mod precise;
#[cfg(test)]
mod precise_tests;
mod size;
mod table;
#[cfg(test)]
mod tests;
mod tokens;

pub use chain::{BlockHash, ChainSeed, chain};
pub use index::{Held, PrefixIndex};
pub use precise::{Applied, Following, PreciseIndex, Reach, SourceCopy};
pub use size::{BLOCKS_PER_SIZE, WEIGHT_MAX, base_blocks, block_weight};
pub use tokens::{GRID_TOKENS_MIN, GRIDS_MAX, TokenChain, TokenPlan, TokenState, grid_of};
