//! How long the blocks of a prompt are.
//!
//! Blocks double in length every [`BLOCKS_PER_SIZE`] blocks, up to [`WEIGHT_MAX`] times the base
//! length, so that a long prompt has few of them and a match is still known to about 3 % of its
//! length. The length depends on the position alone: equal beginnings have equal blocks.

/// Blocks before the length doubles.
pub const BLOCKS_PER_SIZE: usize = 32;
/// The longest blocks, in base blocks: 16 KiB with the default base of 256 bytes.
pub const WEIGHT_MAX: usize = 1 << DOUBLINGS_MAX;

const DOUBLINGS_MAX: usize = 6;

/// Base blocks in the block at `position`.
#[must_use]
pub fn block_weight(position: usize) -> u8 {
    1 << (position / BLOCKS_PER_SIZE).min(DOUBLINGS_MAX)
}

/// Base blocks in the first `depth` blocks of any prompt.
#[must_use]
pub fn base_blocks(depth: usize) -> usize {
    let doublings = (depth / BLOCKS_PER_SIZE).min(DOUBLINGS_MAX);
    let shorter = ((1 << doublings) - 1) * BLOCKS_PER_SIZE;
    shorter + ((depth - doublings * BLOCKS_PER_SIZE) << doublings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_double_every_32_blocks_up_to_64_times_the_base() {
        let check = |depth, weight, total| {
            assert_eq!((block_weight(depth), base_blocks(depth)), (weight, total));
        };
        check(0, 1, 0);
        check(31, 1, 31);
        check(32, 2, 32);
        check(33, 2, 34);
        check(64, 4, 96);
        check(191, 32, 1_984);
        check(192, 64, 2_016);
        check(193, 64, 2_080);
        check(400, 64, 2_016 + 208 * 64);
        assert_eq!(usize::from(block_weight(10_000)), WEIGHT_MAX);
    }

    #[test]
    fn the_whole_is_the_sum_of_its_blocks_and_known_to_three_percent() {
        let mut sum = 0;
        for position in 0..300 {
            assert_eq!(base_blocks(position), sum);
            let weight = usize::from(block_weight(position));
            assert!(weight <= 1 + sum / BLOCKS_PER_SIZE);
            sum += weight;
        }
    }
}
