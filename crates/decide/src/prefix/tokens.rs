//! From tokens to hashes: how a prompt and what a server stored are found to be the same.
//!
//! A state is carried from token to token, and its value at a position stands for everything before
//! it. So servers with blocks of any length can be compared with one prompt: the states at the ends
//! of *their* blocks. The servers' own hashes are not computed: each has its algorithm, its seed and
//! its encoding of what else counts, some of them random at each start; their events carry the
//! tokens, which say it all (docs/prefix-cache.md).

use forebay_model::kv::{ExtraKeys, Lora};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use super::chain::BlockHash;

/// Blocks shorter than this are counted together: a page of one token would cost sixteen times the
/// memory and say hardly more.
pub const GRID_TOKENS_MIN: u32 = 16;
/// Lengths of blocks that one prompt is hashed for. A pool has one as a rule.
pub const GRIDS_MAX: usize = 4;

/// The state after some tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenState(pub(crate) u64);

impl TokenState {
    /// Before the first token of a prompt for this adapter.
    #[must_use]
    pub fn start(lora: &Lora) -> Self {
        const BASE: u64 = 0x243f_6a88_85a3_08d3;
        Self(match lora {
            Lora::Base => BASE,
            Lora::Named(name) => folded(xxh3_64(name.as_bytes()) ^ BASE),
            Lora::Numbered(number) => folded(folded(*number) ^ !BASE),
        })
    }

    /// With what sets the next block apart besides its tokens.
    #[must_use]
    pub fn extra(self, keys: ExtraKeys) -> Self {
        if keys.is_none() {
            return self;
        }
        Self(folded(self.0.rotate_left(29) ^ folded(keys.0)))
    }

    /// After these tokens too.
    #[must_use]
    pub fn after(self, tokens: &[u32]) -> Self {
        let step = |state: u64, token: &u32| folded(state ^ u64::from(*token));
        Self(tokens.iter().fold(self.0, step))
    }

    /// The name of everything up to here.
    #[must_use]
    pub fn hash(self) -> BlockHash {
        // The upper bits serve as table positions; folding has mixed them already.
        BlockHash(self.0)
    }
}

/// One step: both halves of a product with an odd constant, so that every bit of the argument counts
/// in every bit of the result.
fn folded(value: u64) -> u64 {
    const A: u64 = 0x9e37_79b9_7f4a_7c15;
    const B: u64 = 0xbf58_476d_1ce4_e5b9;
    let product = u128::from(value ^ B) * u128::from(A);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Tokens from one hashed position to the next for blocks of `block_tokens`: the least multiple
/// that is not below [`GRID_TOKENS_MIN`].
#[must_use]
pub fn grid_of(block_tokens: u32) -> u32 {
    let block_tokens = block_tokens.max(1);
    block_tokens.saturating_mul(GRID_TOKENS_MIN.div_ceil(block_tokens))
}

/// A prompt's hashes at every multiple of `grid` tokens.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TokenChain {
    /// Tokens from one to the next.
    pub grid: u32,
    /// The hashes; what is left after the last multiple has none.
    pub hashes: Vec<BlockHash>,
}

/// What is to be hashed of prompts for a pool, as far as its endpoints have told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TokenPlan {
    /// The distances at which their blocks can be compared.
    pub grids: SmallVec<[u32; GRIDS_MAX]>,
    /// The adapter that the request's model is.
    pub lora: Lora,
    /// Hashes of one chain.
    pub blocks_max: usize,
}

impl TokenPlan {
    /// Hashes a prompt's tokens into `chains`, one for each distance. Vectors that are there are
    /// used again.
    pub fn hash(&self, tokens: &[u32], cache_salt: Option<&str>, chains: &mut Vec<TokenChain>) {
        chains.resize_with(self.grids.len(), TokenChain::default);
        let salt = cache_salt.map_or_else(ExtraKeys::default, |salt| {
            ExtraKeys::default().and(salt.as_bytes())
        });
        let start = TokenState::start(&self.lora).extra(salt);
        for (chain, grid) in chains.iter_mut().zip(&self.grids) {
            chain.grid = *grid;
            chain.hashes.clear();
            let mut state = start;
            for block in tokens.chunks_exact(*grid as usize).take(self.blocks_max) {
                state = state.after(block);
                chain.hashes.push(state.hash());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(plan: &TokenPlan, tokens: &[u32], salt: Option<&str>) -> Vec<TokenChain> {
        let mut chains = Vec::new();
        plan.hash(tokens, salt, &mut chains);
        chains
    }

    #[test]
    fn blocks_of_every_length_meet_at_common_positions() {
        let tokens: Vec<u32> = (0..100).collect();
        let plan = TokenPlan {
            grids: [16, 48].into_iter().collect(),
            lora: Lora::Base,
            blocks_max: 5,
        };
        let chains = chain(&plan, &tokens, None);
        assert_eq!(chains[0].hashes.len(), 5);
        assert_eq!(chains[1].hashes.len(), 2);
        assert_eq!(chains[0].hashes[2], chains[1].hashes[0]);
        let state = TokenState::start(&Lora::Base).after(&tokens[..7]);
        let state = state.after(&tokens[7..16]).hash();
        assert_eq!(state, chains[0].hashes[0]);
    }

    #[test]
    fn adapters_salts_and_the_order_of_tokens_make_different_chains() {
        let tokens: Vec<u32> = (0..16).collect();
        let mut swapped = tokens.clone();
        swapped.swap(3, 4);
        let plan = |lora| TokenPlan {
            grids: [16].into_iter().collect(),
            lora,
            blocks_max: 9,
        };
        let base = plan(Lora::Base);
        let all = [
            chain(&base, &tokens, None),
            chain(&base, &tokens, Some("a")),
            chain(&base, &tokens, Some("b")),
            chain(&base, &swapped, None),
            chain(&plan(Lora::Named("sql".into())), &tokens, None),
            chain(&plan(Lora::Numbered(1)), &tokens, None),
        ];
        let distinct: std::collections::HashSet<_> =
            all.iter().map(|chains| chains[0].hashes[0]).collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn short_blocks_are_counted_together() {
        let check = |block, grid| assert_eq!(grid_of(block), grid);
        check(1, 16);
        check(5, 20);
        check(16, 16);
        check(32, 32);
        check(528, 528);
        check(0, 16);
        check(u32::MAX, u32::MAX);
    }
}
