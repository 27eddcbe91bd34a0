//! Tokens as numbers, and the chained hashes by which equal prefixes are found.
//!
//! A block's hash covers its tokens and everything before them, so equal hashes mean equal prefixes.
//! The hash is our own and stable across runs and platforms. How text becomes tokens is the
//! server's business ([`crate::server`]).

/// Tokens per KV block, as vLLM has it on GPUs.
pub const BLOCK_TOKENS: u32 = 16;

/// A prompt as the cache sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Prompt {
    /// Length in tokens.
    pub tokens: u32,
    /// Chained hash of each full block.
    pub block_hashes: Vec<u64>,
    /// Tokens after the last full block; they start the block that the output continues.
    pub tail: Vec<u32>,
    /// Where the chain of hashes starts; differs between adapters.
    pub salt: u64,
}

impl Prompt {
    /// The prompt that consists of `tokens`. `salt` separates caches that must not share (adapters).
    #[must_use]
    pub fn from_tokens(tokens: &[u32], salt: u64) -> Self {
        let blocks = tokens.chunks_exact(BLOCK_TOKENS as usize);
        let tail = blocks.remainder().to_vec();
        let mut hash = salt;
        let block_hashes = blocks
            .map(|block| {
                hash = block_hash(hash, block);
                hash
            })
            .collect();
        let tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        Self {
            tokens,
            block_hashes,
            tail,
            salt,
        }
    }
}

/// The hash of a block after the blocks that `parent` stands for.
#[must_use]
pub fn block_hash(parent: u64, tokens: &[u32]) -> u64 {
    tokens.iter().fold(mix(parent ^ SEED), |hash, token| {
        mix(hash ^ u64::from(*token))
    })
}

/// The output token at `index` of a request with `seed`: three letters and a space, so that the text
/// of an answer becomes the same tokens when it comes back in the next turn's prompt.
#[must_use]
pub fn output_token(seed: u64, index: u32) -> u32 {
    let bits = mix(seed ^ mix(u64::from(index) ^ SEED));
    let letter = |shift: u32| b'a' + u8::try_from((bits >> shift) % 26).unwrap_or(0);
    u32::from_le_bytes([letter(8), letter(24), letter(40), b' '])
}

/// A number in which each bit of the argument counts (the finaliser of `SplitMix64`).
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(SEED);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// A small seeded generator (`SplitMix64`): the only source of chance in this crate.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that always gives the same row for the same seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(SEED);
        mix(self.0)
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `0..below`; 0 if `below` is 0.
    pub const fn below(&mut self, below: u64) -> u64 {
        if below == 0 { 0 } else { self.bits() % below }
    }

    /// Exponential with mean 1: gaps of a Poisson process.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// Normal with mean 0 and deviation 1 (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prefixes_have_equal_hashes_and_others_do_not() {
        let tokens: Vec<u32> = (0..64).collect();
        let whole = Prompt::from_tokens(&tokens, 0);
        let shorter = Prompt::from_tokens(&tokens[..40], 0);
        assert_eq!(whole.block_hashes[..2], shorter.block_hashes[..]);
        assert_eq!(shorter.tail, tokens[32..40]);
        let salted = Prompt::from_tokens(&tokens, 7);
        assert!(
            whole
                .block_hashes
                .iter()
                .all(|hash| !salted.block_hashes.contains(hash))
        );
        assert_eq!(
            whole.block_hashes[0], 8_455_899_338_971_926_782,
            "the hash is stable across releases"
        );
    }

    #[test]
    fn output_tokens_are_four_bytes_of_text() {
        for index in 0..100 {
            let bytes = output_token(3, index).to_le_bytes();
            assert!(bytes[..3].iter().all(u8::is_ascii_lowercase));
            assert_eq!(bytes[3], b' ');
        }
        assert_ne!(output_token(3, 0), output_token(4, 0));
    }
}
