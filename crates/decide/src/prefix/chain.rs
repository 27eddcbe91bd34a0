//! From prompt bytes to a chain of block hashes: h(i) = H(block i, h(i-1)).

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

/// Identifies one block of a prompt together with everything before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BlockHash(pub u64);

/// What a chain starts from: prompts share cache only under the same seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChainSeed<'a> {
    /// The model as the server will see it (adapters have caches of their own).
    pub model: &'a str,
    /// The request's `cache_salt`, which keeps tenants apart.
    pub cache_salt: Option<&'a str>,
}

impl ChainSeed<'_> {
    fn hash(self) -> u64 {
        let salt = self.cache_salt.map_or(0, |salt| xxh3_64(salt.as_bytes()));
        link(xxh3_64(self.model.as_bytes()), salt)
    }
}

/// Fills `out` with the hashes of the prompt's whole blocks, the last partial block left out.
///
/// `spans` are the prompt's bytes in order; they are hashed as if joined, and only blocks that
/// straddle two spans are copied. At most `blocks_max` blocks are hashed: a longer prompt is known
/// by its beginning. A `block_bytes` of 0 gives no blocks.
pub fn chain<'a>(
    seed: ChainSeed<'_>,
    spans: impl Iterator<Item = &'a [u8]>,
    block_bytes: usize,
    blocks_max: usize,
    out: &mut Vec<BlockHash>,
) {
    out.clear();
    if block_bytes == 0 {
        return;
    }
    let mut last = seed.hash();
    let mut push = |block: &[u8], out: &mut Vec<BlockHash>| {
        last = link(xxh3_64(block), last);
        out.push(BlockHash(last));
    };
    let mut carry: SmallVec<[u8; 512]> = SmallVec::new();
    for mut span in spans {
        if !carry.is_empty() {
            let taken = span.len().min(block_bytes - carry.len());
            carry.extend_from_slice(&span[..taken]);
            span = &span[taken..];
            if carry.len() < block_bytes {
                continue;
            }
            if out.len() == blocks_max {
                return;
            }
            push(&carry, out);
            carry.clear();
        }
        let blocks = span.chunks_exact(block_bytes);
        carry.extend_from_slice(blocks.remainder());
        for block in blocks {
            if out.len() == blocks_max {
                return;
            }
            push(block, out);
        }
    }
}

/// Mixes a block's own hash into the chain. Not symmetric, so order counts; the final mix is
/// murmur3's, so that every bit of the result may serve as a table position.
fn link(block: u64, before: u64) -> u64 {
    let mut z = block ^ before.rotate_left(23).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    z = (z ^ (z >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    z ^ (z >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEED: ChainSeed<'static> = ChainSeed {
        model: "m",
        cache_salt: None,
    };

    fn hashes(seed: ChainSeed<'_>, spans: &[&[u8]], block: usize, max: usize) -> Vec<BlockHash> {
        let mut out = vec![BlockHash(1)];
        chain(seed, spans.iter().copied(), block, max, &mut out);
        out
    }

    #[test]
    fn equal_beginnings_have_equal_hashes_until_they_differ() {
        let a = hashes(SEED, &[b"aaaabbbbccccd"], 4, 100);
        let b = hashes(SEED, &[b"aaaabbbbXcccd"], 4, 100);
        assert_eq!((a.len(), &a[..2]), (3, &b[..2]));
        assert_ne!(a[2], b[2]);
    }

    #[test]
    fn a_block_is_known_only_together_with_what_came_before() {
        let a = hashes(SEED, &[b"aaaabbbb"], 4, 100);
        let b = hashes(SEED, &[b"bbbbaaaa"], 4, 100);
        assert!(a.iter().all(|h| !b.contains(h)));
        let c = hashes(SEED, &[b"aaaaaaaa"], 4, 100);
        assert_ne!(c[0], c[1]);
    }

    #[test]
    fn models_and_salts_have_caches_of_their_own() {
        let salted = |model, cache_salt| hashes(ChainSeed { model, cache_salt }, &[b"aaaa"], 4, 9);
        let all = [
            salted("m", None),
            salted("n", None),
            salted("m", Some("s")),
            salted("m", Some("t")),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), 4);
    }

    #[test]
    fn the_number_of_blocks_is_bounded() {
        assert_eq!(hashes(SEED, &[&[7; 100]], 4, 3).len(), 3);
        assert_eq!(hashes(SEED, &[&[7; 3], &[7; 3], &[7; 3]], 4, 1).len(), 1);
        assert_eq!(hashes(SEED, &[&[7; 100]], 4, 0), vec![]);
        assert_eq!(hashes(SEED, &[&[7; 100]], 0, 9), vec![]);
    }

    proptest! {
        #[test]
        fn how_the_prompt_is_cut_into_spans_does_not_matter(
            spans in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12),
            block in 1_usize..32, max in 0_usize..12,
        ) {
            let joined = spans.concat();
            let spans: Vec<&[u8]> = spans.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(
                hashes(SEED, &spans, block, max),
                hashes(SEED, &[&joined], block, max)
            );
        }
    }
}
