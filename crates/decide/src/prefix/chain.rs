//! From prompt bytes to a chain of block hashes: h(i) = H(block i, h(i-1)).

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::size::{base_blocks, block_weight};

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
/// `spans` are the prompt's bytes in order; they are hashed as if joined, and none is copied.
/// Blocks are `block_bytes` long at first and grow as `size.rs` says. What is hashed is at most
/// `blocks_max` times `block_bytes` long: a longer prompt is known by its beginning. A
/// `block_bytes` of 0 gives no blocks.
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
    let next_len = |position: usize| {
        let fits = base_blocks(position + 1) <= blocks_max;
        fits.then(|| block_bytes * usize::from(block_weight(position)))
    };
    let Some(mut wanted) = next_len(0) else {
        return;
    };
    let mut last = seed.hash();
    let mut straddling = Xxh3Default::new();
    let mut straddled = 0;
    for mut span in spans {
        while straddled + span.len() >= wanted {
            let (block, rest) = span.split_at(wanted - straddled);
            span = rest;
            let hash = if straddled == 0 {
                xxh3_64(block)
            } else {
                straddling.update(block);
                let hash = straddling.digest();
                straddling.reset();
                straddled = 0;
                hash
            };
            last = link(hash, last);
            out.push(BlockHash(last));
            match next_len(out.len()) {
                Some(len) => wanted = len,
                None => return,
            }
        }
        if !span.is_empty() {
            straddling.update(span);
            straddled += span.len();
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

    #[test]
    fn blocks_grow_with_their_position() {
        let text: Vec<u8> = (0..220_000_u32).map(|i| (i / 7) as u8).collect();
        let whole = hashes(SEED, &[&text], 256, 2_048);
        assert_eq!(whole.len(), 128 + (220_000 / 256 - 480) / 16);
        for depth in [1, 32, 33, 64, 100, whole.len()] {
            let bytes = base_blocks(depth) * 256;
            assert_eq!(hashes(SEED, &[&text[..bytes]], 256, 2_048), whole[..depth]);
            let less = hashes(SEED, &[&text[..bytes - 1]], 256, 2_048);
            assert_eq!(less, whole[..depth - 1]);
            let bounded = hashes(SEED, &[&text], 256, base_blocks(depth));
            assert_eq!(bounded, whole[..depth]);
        }
    }

    proptest! {
        #[test]
        fn how_the_prompt_is_cut_into_spans_does_not_matter(
            spans in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..12),
            block in 1_usize..32, max in 0_usize..300,
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
