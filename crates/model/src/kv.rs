//! What a model server says of its KV cache: which blocks it stored, removed, or dropped all of.
//!
//! Plain values between the decoder of event batches (`forebay_dialect::kv_events`) and the index
//! that follows them (`forebay_decide::prefix`). The server's own block hashes are names here and
//! nothing more: what a block holds is known by its tokens.

/// One event, with what the index needs of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CacheEvent {
    /// Blocks came into a cache, or into another tier of it.
    Stored(Stored),
    /// Blocks left a tier.
    Removed(Removed),
    /// Every block of every tier is gone.
    Cleared,
}

impl CacheEvent {
    /// The same as events of at most so many blocks each, in order.
    pub fn split(self, blocks_max: usize) -> impl Iterator<Item = Self> {
        let blocks_max = blocks_max.max(1);
        let whole = |blocks: &[BlockName]| blocks.len() <= blocks_max;
        let parts: Vec<Self> = match self {
            Self::Stored(stored) if !whole(&stored.blocks) => stored.split(blocks_max),
            Self::Removed(removed) if !whole(&removed.blocks) => {
                let parts = removed.blocks.chunks(blocks_max);
                let part = |blocks: &[BlockName]| Removed {
                    blocks: blocks.to_vec(),
                    ..removed
                };
                parts.map(|blocks| Self::Removed(part(blocks))).collect()
            }
            event @ (Self::Stored(_) | Self::Removed(_) | Self::Cleared) => vec![event],
        };
        parts.into_iter()
    }
}

impl Stored {
    fn split(self, blocks_max: usize) -> Vec<CacheEvent> {
        let tokens_max = blocks_max.saturating_mul(self.block_tokens as usize).max(1);
        let mut tokens = self.tokens.chunks(tokens_max);
        let mut extra = self.extra.chunks(blocks_max);
        let mut parent = self.parent;
        let part = |blocks: &[BlockName]| {
            let after = std::mem::replace(&mut parent, blocks.last().copied());
            CacheEvent::Stored(Self {
                blocks: blocks.to_vec(),
                parent: after,
                tokens: tokens.next().unwrap_or_default().to_vec(),
                lora: self.lora.clone(),
                extra: extra.next().unwrap_or_default().to_vec(),
                ..self
            })
        };
        self.blocks.chunks(blocks_max).map(part).collect()
    }
}

/// The server's name of a block: its hash, or the last eight bytes of a longer one.
pub type BlockName = u64;

/// Blocks that came into a tier, in the order of the prompt.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stored {
    /// Their names.
    pub blocks: Vec<BlockName>,
    /// The block before the first of them; `None` if they begin a prompt.
    pub parent: Option<BlockName>,
    /// Their tokens, `block_tokens` for each; empty where a block that the server told of before is
    /// copied into another tier.
    pub tokens: Vec<u32>,
    /// Tokens of one block; above zero.
    pub block_tokens: u32,
    /// For which adapter they were computed.
    pub lora: Lora,
    /// Where they are.
    pub tier: Tier,
    /// What else sets each block apart; one for each block, or none at all if nothing does.
    pub extra: Vec<ExtraKeys>,
    /// Whether they belong to full attention; others (sliding windows, states) are dropped long
    /// before the prompt's end is and say nothing of what can be reused.
    pub full_attention: bool,
    /// Number of the group of layers that they belong to.
    pub group: u32,
}

/// Blocks that left a tier.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// Their names.
    pub blocks: Vec<BlockName>,
    /// Where they were.
    pub tier: Tier,
    /// Number of the group of layers that they belong to.
    pub group: u32,
}

/// The adapter that blocks were computed for.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Lora {
    /// None: the base model.
    #[default]
    Base,
    /// The one with this name.
    Named(Box<str>),
    /// One of which only the server's number is known, as older servers say it. No request can be
    /// told to match it.
    Numbered(u64),
}

/// Where a block is, fastest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Tier {
    /// The accelerator's memory.
    #[default]
    Device,
    /// The host's memory.
    Host,
    /// Anything slower.
    Disk,
}

impl Tier {
    /// All of them, fastest first.
    pub const ALL: [Self; 3] = [Self::Device, Self::Host, Self::Disk];

    /// The tier that an event's `medium` names; without one it is the device.
    #[must_use]
    pub fn of_medium(medium: Option<&str>) -> Self {
        let Some(medium) = medium else {
            return Self::Device;
        };
        let begins = |with: &str| {
            let start = medium.as_bytes().get(..with.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()))
        };
        if begins("GPU") || begins("DEVICE") || begins("HBM") {
            Self::Device
        } else if begins("CPU") || begins("HOST") || begins("DRAM") {
            Self::Host
        } else {
            Self::Disk
        }
    }
}

/// A digest of what sets a block apart besides its tokens and its adapter: a salt, images.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ExtraKeys(pub u64);

impl ExtraKeys {
    /// These keys and one more; order counts. What is hashed is the text of a key that is one, and
    /// the encoded bytes of any other.
    #[must_use]
    pub fn and(self, key: &[u8]) -> Self {
        // FNV-1a over the key, and the key's length, so that "ab", "c" is not "a", "bc".
        let start = 0xcbf2_9ce4_8422_2325 ^ self.0.rotate_left(31);
        let bytes = key.iter().chain(&[0xff]);
        let hash = bytes.fold(start, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        // Zero stands for no keys at all.
        Self(hash.max(1))
    }

    /// Whether nothing sets the block apart.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_event_is_the_same_in_parts() {
        let stored = Stored {
            blocks: vec![1, 2, 3],
            parent: Some(9),
            tokens: (0..6).collect(),
            block_tokens: 2,
            extra: [1, 2, 3].map(ExtraKeys).to_vec(),
            ..Stored::default()
        };
        let parts: Vec<_> = CacheEvent::Stored(stored.clone()).split(2).collect();
        let [CacheEvent::Stored(one), CacheEvent::Stored(other)] = &parts[..] else {
            panic!("{parts:?}");
        };
        assert_eq!((one.parent, other.parent), (Some(9), Some(2)));
        assert_eq!([&one.blocks[..], &other.blocks[..]].concat(), stored.blocks);
        assert_eq!((one.tokens.len(), other.tokens[0]), (4, 4));
        assert_eq!(other.extra, [ExtraKeys(3)]);
        let removed = Removed {
            blocks: vec![1, 2, 3],
            ..Removed::default()
        };
        assert_eq!(CacheEvent::Removed(removed).split(1).count(), 3);
        assert_eq!(CacheEvent::Cleared.split(1).count(), 1);
    }

    #[test]
    fn media_have_tiers_and_keys_have_an_order() {
        let check = |medium, tier| assert_eq!(Tier::of_medium(medium), tier);
        check(None, Tier::Device);
        check(Some("GPU"), Tier::Device);
        check(Some("CPU"), Tier::Host);
        check(Some("cpu_pinned"), Tier::Host);
        check(Some("DISK"), Tier::Disk);
        check(Some(""), Tier::Disk);
        let of = |keys: &[&str]| {
            let keys = keys.iter();
            keys.fold(ExtraKeys::default(), |all, key| all.and(key.as_bytes()))
        };
        assert!(of(&[]).is_none());
        assert_ne!(of(&["a", "b"]), of(&["b", "a"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_eq!(of(&["salt"]), of(&["salt"]));
    }
}
