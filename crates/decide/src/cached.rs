//! What each endpoint has of a prompt in its cache, by the best that is known of it: its own events
//! where they are followed and the prompt's tokens are known, else what was sent there.
//!
//! Which of the two it was stands beside every hit, so that no fallback is silent. Events come in
//! through [`PoolState::kv_apply`]; whether they are all there is for the caller to know.

use std::net::SocketAddr;
use std::time::Duration;

use forebay_model::Moment;
use forebay_model::kv::{CacheEvent, Lora};
use forebay_model::picker::PickerConfig;
use serde::Serialize;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use crate::ask::Ask;
use crate::exchange::hit_tokens;
use crate::pool::{ADAPTERS_MAX, PoolState};
use crate::prefix::{
    Applied, Following, GRIDS_MAX, PreciseIndex, Reach, SourceCopy, TokenPlan, base_blocks,
};
use crate::report::Knowledge;

/// Hits of all slots, in their order.
pub(crate) type Hits = SmallVec<[Hit; 128]>;

/// What an endpoint has of a prompt.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hit {
    /// Tokens, those in slow tiers counting as less...
    pub(crate) tokens: u32,
    /// ...the share of the prompt that they are...
    pub(crate) share: f32,
    /// ...and that share in blocks of the configured size.
    pub(crate) blocks: u32,
    pub(crate) knowledge: Knowledge,
}

/// What an endpoint says of its cache, for people and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct KvView {
    /// How its events are followed.
    pub following: Following,
    /// Blocks that it has told of.
    pub blocks: usize,
    /// Tokens of one; 0 until it tells.
    pub block_tokens: u32,
}

/// The last prompts that were tokenized here and counted by a server, a bit for each that was counted
/// alike. A tokenizer or a template that is not the server's shows itself so, and its hits would be
/// no hits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TokenCounts {
    alike: u16,
    known: u8,
}

impl TokenCounts {
    const KEPT: u8 = 16;

    pub(crate) fn compared(&mut self, alike: bool) {
        self.alike = self.alike << 1 | u16::from(alike);
        self.known = (self.known + 1).min(Self::KEPT);
    }

    /// Whether half of them were counted otherwise, of a few at least.
    fn differ(self) -> bool {
        let mask = (1_u32 << self.known) - 1;
        let alike = (u32::from(self.alike) & mask).count_ones();
        self.known >= 4 && alike * 2 <= u32::from(self.known)
    }
}

/// The index of a pool that listens to events.
pub(crate) fn index(config: &PickerConfig) -> Option<PreciseIndex> {
    let precise = config.precise_prefix.as_ref()?;
    Some(PreciseIndex::new(precise.index_bytes_max))
}

impl PoolState {
    /// Takes over a changed configuration, before it is in force. Where the events come from may
    /// have changed with it: then all is forgotten.
    pub(crate) fn configure_precise(&mut self, config: &PickerConfig) {
        let source = |config: &PickerConfig| {
            let precise = config.precise_prefix.as_ref()?;
            let topic = precise.topic.clone();
            Some((
                precise.port,
                precise.replay_port,
                topic,
                precise.index_bytes_max,
            ))
        };
        if source(config) != source(&self.config) {
            self.precise = index(config);
        }
    }

    /// Says how well the events of an endpoint are known from now on. Whoever follows them says
    /// [`Following::Wholly`] or [`Following::Partly`] before the first event, and
    /// [`Following::Lost`] when some are missing for good.
    pub fn kv_follow(&mut self, address: SocketAddr, following: Following) {
        if let (Some(precise), Some(&at)) = (&mut self.precise, self.by_address.get(&address)) {
            precise.follow(at, following);
        }
    }

    /// Takes in events of an endpoint, in their order.
    pub fn kv_apply(&mut self, address: SocketAddr, events: &[CacheEvent]) -> Applied {
        let (Some(precise), Some(&at)) = (&mut self.precise, self.by_address.get(&address)) else {
            return Applied::default();
        };
        let mut applied = Applied::default();
        for event in events {
            // A request for an adapter must not pass for one for the base model.
            if let CacheEvent::Stored(stored) = event
                && let Lora::Named(name) = &stored.lora
                && self.adapters.len() < ADAPTERS_MAX
            {
                self.adapters.insert(xxh3_64(name.as_bytes()));
            }
            applied = applied.and(precise.apply(at, event));
        }
        applied
    }

    /// Notes which batch of an endpoint's events has been taken in whole: its number and a digest;
    /// `None` while one is being taken in.
    pub fn kv_mark(&mut self, address: SocketAddr, mark: Option<(u64, u64)>) {
        if let (Some(precise), Some(&at)) = (&mut self.precise, self.by_address.get(&address)) {
            precise.mark(at, mark);
        }
    }

    /// What is known of an endpoint by its events, for another process.
    #[must_use]
    pub fn kv_copy(&self, address: SocketAddr) -> Option<SourceCopy> {
        let at = self.by_address.get(&address)?;
        self.precise.as_ref()?.copy_of(*at)
    }

    /// Takes over what another process knows of an endpoint.
    pub fn kv_restore(&mut self, address: SocketAddr, copy: &SourceCopy) {
        if let (Some(precise), Some(&at)) = (&mut self.precise, self.by_address.get(&address)) {
            precise.restore(at, copy);
        }
    }

    /// How the events of an endpoint are followed.
    #[must_use]
    pub fn kv_following(&self, address: SocketAddr) -> Following {
        match (&self.precise, self.by_address.get(&address)) {
            (Some(precise), Some(&at)) => precise.following(at),
            _ => Following::No,
        }
    }

    /// What to hash of the tokens of a request for `model`; `None` if no endpoint could be judged
    /// by them.
    #[must_use]
    pub fn token_plan(&self, model: Option<&str>) -> Option<TokenPlan> {
        let (precise, config) = (self.precise.as_ref()?, self.config.precise_prefix.as_ref()?);
        let mut grids: SmallVec<[u32; GRIDS_MAX]> = SmallVec::new();
        for grid in precise.grids() {
            if !grids.contains(&grid) && grids.len() < GRIDS_MAX {
                grids.push(grid);
            }
        }
        if grids.is_empty() {
            return None;
        }
        let lora = match self.adapter(model) {
            Some((name, _)) => Lora::Named(name.into()),
            None => Lora::Base,
        };
        Some(TokenPlan {
            grids,
            lora,
            blocks_max: config.blocks_max.min(usize::from(u16::MAX)),
        })
    }

    /// The server went away: what its events said is void.
    pub(crate) fn lose(&mut self, at: u16) {
        if let Some(precise) = &mut self.precise
            && precise.following(at) != Following::No
        {
            precise.follow(at, Following::Lost);
        }
    }

    pub(crate) fn unfollow(&mut self, at: u16) {
        if let Some(precise) = &mut self.precise {
            precise.follow(at, Following::No);
        }
    }

    pub(crate) fn kv_view(&self, at: u16) -> Option<KvView> {
        let precise = self.precise.as_ref()?;
        let (blocks, block_tokens) = precise.held_by(at);
        Some(KvView {
            following: precise.following(at),
            blocks,
            block_tokens,
        })
    }

    /// A prompt was sent to `at`: until the endpoint tells, it counts as held.
    pub(crate) fn guess(&mut self, at: u16, ask: &Ask<'_>, now: Moment) {
        let (Some(precise), Some(config)) = (&mut self.precise, &self.config.precise_prefix) else {
            return;
        };
        precise.expire(now);
        if !ask.tokens.is_empty() && precise.following(at) != Following::No {
            let end = now.plus(Duration::from_millis(config.speculative_ms));
            precise.guess(at, ask.tokens, end);
        }
    }

    /// Prompt tokens in the cache of one endpoint, of which `sent` are by what was sent there.
    pub(crate) fn hit_at(&self, at: u16, ask: &Ask<'_>, sent: u32) -> u32 {
        let Some(precise) = &self.precise else {
            return sent;
        };
        let reach = precise.reach_of(at, ask.tokens);
        match self.knowledge(precise, at, ask) {
            Knowledge::Events => self.worth(reach, ask),
            Knowledge::EventsInPart => self.worth(reach, ask).max(sent),
            Knowledge::Sent
            | Knowledge::Unheard
            | Knowledge::EventsLost
            | Knowledge::Untokenized
            | Knowledge::TokensDiffer => sent,
        }
    }

    /// What every endpoint has of the prompt.
    pub(crate) fn hits(&self, ask: &Ask<'_>, hits: &mut Hits) {
        hits.resize(self.slots.len(), Hit::default());
        let mut depths = SmallVec::<[u16; 256]>::new();
        depths.resize(self.slots.len(), 0);
        self.index.matches(ask.prefix, &mut depths);
        let prompt_blocks = base_blocks(ask.prefix.len()).max(1) as f32;
        for (hit, depth) in hits
            .iter_mut()
            .zip(&depths)
            .filter(|(_, depth)| **depth > 0)
        {
            let blocks = base_blocks(usize::from(*depth));
            hit.blocks = blocks as u32;
            hit.share = blocks as f32 / prompt_blocks;
            hit.tokens = hit_tokens(ask, usize::from(*depth), &self.config);
        }
        let Some(precise) = &self.precise else {
            return;
        };
        let mut reaches = SmallVec::<[Reach; 128]>::new();
        reaches.resize(self.slots.len(), Reach::default());
        precise.reaches(ask.tokens, &mut reaches);
        for (at, (hit, reach)) in hits.iter_mut().zip(reaches).enumerate() {
            hit.knowledge = self.knowledge(precise, at as u16, ask);
            let tokens = self.worth(reach, ask);
            let better = match hit.knowledge {
                Knowledge::Events => true,
                Knowledge::EventsInPart => tokens > hit.tokens,
                Knowledge::Sent
                | Knowledge::Unheard
                | Knowledge::EventsLost
                | Knowledge::Untokenized
                | Knowledge::TokensDiffer => false,
            };
            if better {
                hit.tokens = tokens;
                hit.share = tokens as f32 / ask.prompt_tokens.max(1) as f32;
                hit.blocks = (hit.share * base_blocks(ask.prefix.len()) as f32).round() as u32;
            }
        }
    }

    fn worth(&self, reach: Reach, ask: &Ask<'_>) -> u32 {
        let weights = self.config.precise_prefix.as_ref();
        let (host, disk) = weights.map_or((0.0, 0.0), |c| (c.host_weight, c.disk_weight));
        (reach.worth(host, disk) as u32).min(ask.prompt_tokens)
    }

    fn knowledge(&self, precise: &PreciseIndex, at: u16, ask: &Ask<'_>) -> Knowledge {
        match precise.following(at) {
            Following::No => Knowledge::Unheard,
            Following::Lost => Knowledge::EventsLost,
            Following::Partly | Following::Wholly if ask.tokens.is_empty() => {
                Knowledge::Untokenized
            }
            Following::Partly | Following::Wholly if self.token_counts.differ() => {
                Knowledge::TokensDiffer
            }
            Following::Partly => Knowledge::EventsInPart,
            Following::Wholly => Knowledge::Events,
        }
    }
}
