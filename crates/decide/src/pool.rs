//! The state of one pool: what is known of its endpoints, and the books of requests under way.
//!
//! What changes it from outside is here: `sync` with the configuration, and scrapes. The steps of
//! an exchange are in `exchange.rs`; choosing, which only reads, is in `choose.rs`. Bounds: 65,534 endpoints (more are not used), the prefix index's bytes, the session
//! table, [`ADAPTERS_MAX`] adapter names, the queue's limits; everything else is proportional to
//! endpoints and to requests in flight, which the caller bounds.

use std::net::SocketAddr;
use std::time::Duration;

use forebay_model::picker::PickerConfig;
use forebay_model::policy::Saturation;
use forebay_model::{Endpoint, Load, Moment, Pool};
use rustc_hash::{FxHashMap, FxHashSet};
use xxhash_rust::xxh3::xxh3_64;

use crate::admit::gate_limits;
use crate::cached;
use crate::cached::{KvView, TokenCounts};
use crate::gate::Gate;
use crate::health::{Ejection, Health, Standing};
use crate::plan::Plan;
use crate::predict::{Predictor, PredictorAccuracy};
use crate::prefix::{PreciseIndex, PrefixIndex};
use crate::session::Sessions;
use crate::site::Site;
use crate::slot::{Slot, prefix_blocks};

/// Adapter names that a pool remembers having seen; names beyond count as base models.
pub const ADAPTERS_MAX: usize = 1024;
/// An endpoint counts as at most this full, so that one that is far behind does not make a pool
/// look full whose others are idle.
pub const ENDPOINT_SATURATION_MAX: f32 = 1.25;
/// Slots that endpoints can have.
const SLOTS_MAX: usize = u16::MAX as usize - 1;
/// The slot of a flight to an endpoint that is not in the pool.
pub(crate) const NOWHERE: u16 = u16::MAX;
/// Output length assumed before any answer was seen.
const OUTPUT_TOKENS: f32 = 256.0;
/// An endpoint's prefix capacity is never learned to be below this share of what it is said to be.
const CAPACITY_SHARE_MIN: usize = 16;

/// The state of one pool.
#[derive(Clone, Debug)]
pub struct PoolState {
    pub(crate) config: PickerConfig,
    /// The profiles of the configuration; at least one.
    pub(crate) plans: Vec<Plan>,
    pub(crate) slots: Vec<Slot>,
    /// What is configured of each slot's endpoint.
    pub(crate) sites: Vec<Site>,
    free: Vec<u16>,
    pub(crate) by_address: FxHashMap<SocketAddr, u16>,
    pub(crate) index: PrefixIndex,
    /// What endpoints say themselves, if anybody listens.
    pub(crate) precise: Option<PreciseIndex>,
    /// Whether servers count the tokens of prompts as they were counted here.
    pub(crate) token_counts: TokenCounts,
    pub(crate) sessions: Sessions,
    pub(crate) adapters: FxHashSet<u64>,
    pub(crate) last_begun: u16,
    /// Prompts that nobody held anything of, so far.
    pub(crate) cold_prompts: u64,
    pub(crate) output_tokens: f32,
    pub(crate) predictor: Predictor,
    /// Prompt tokens that were found in a cache.
    pub(crate) found: Found,
    pub(crate) gate: Gate,
    /// Requests that were let go by the gate and are not booked yet.
    pub(crate) coming: u32,
}

/// One endpoint's state, for people and metrics.
#[derive(Clone, PartialEq, Debug)]
pub struct EndpointView {
    /// Which endpoint.
    pub address: SocketAddr,
    /// Whether its pod is ready.
    pub ready: bool,
    /// What it may get.
    pub standing: Standing,
    /// Why it is out of rotation, if it is.
    pub ejection: Option<Ejection>,
    /// Its last scrape, if there was one...
    pub load: Option<Load>,
    /// ...and how long ago.
    pub load_age: Option<Duration>,
    /// Requests in flight from here.
    pub inflight_requests: u32,
    /// Their prompt and expected output tokens.
    pub inflight_tokens: u64,
    /// Requests waiting there by the last scrape and what was sent since; `None` if unknown.
    pub waiting: Option<f32>,
    /// Time until the prompts sent there are prefilled, in milliseconds.
    pub backlog_ms: f32,
    /// Prompt believed to be in its cache, in blocks of the configured size...
    pub prefix_blocks: usize,
    /// ...of so many that it is believed to have room for.
    pub prefix_blocks_max: usize,
    /// Its prefill speed, measured or assumed.
    pub prefill_tokens_per_s: f32,
    /// What it says of its cache itself; `None` if nobody listens.
    pub kv: Option<KvView>,
}

/// The share of prompt tokens found in a cache, of late.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    hit_tokens: f32,
    prompt_tokens: f32,
}

impl Found {
    /// What is left of a request's weight after each further one: about 500 count.
    const KEEP: f32 = 0.998;

    pub(crate) fn add(&mut self, hit_tokens: u32, prompt_tokens: u32) {
        self.hit_tokens = self.hit_tokens * Self::KEEP + hit_tokens as f32;
        self.prompt_tokens = self.prompt_tokens * Self::KEEP + prompt_tokens as f32;
    }

    pub(crate) fn share(self) -> f32 {
        self.hit_tokens / self.prompt_tokens.max(1.0)
    }
}

/// How full the endpoints are whose metrics are known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fullness {
    sum: f32,
    /// The same by another measure, where the larger of the two counts.
    other: f32,
    known: f32,
}

impl Fullness {
    /// The mean, were the endpoints together `more` full; 0 if nothing is known of any.
    pub(crate) fn with(self, more: f32) -> f32 {
        if self.known > 0.0 {
            ((self.sum + more) / self.known).max(self.other / self.known)
        } else {
            0.0
        }
    }
}

impl PoolState {
    /// The state of a pool of which nothing is known yet.
    #[must_use]
    pub fn new(pool: &Pool, now: Moment) -> Self {
        let mut state = Self {
            config: pool.picker.clone(),
            plans: Plan::all(&pool.picker),
            slots: Vec::new(),
            sites: Vec::new(),
            free: Vec::new(),
            by_address: FxHashMap::default(),
            index: PrefixIndex::new(pool.picker.prefix_index_bytes_max),
            precise: cached::index(&pool.picker),
            token_counts: TokenCounts::default(),
            sessions: Sessions::default(),
            adapters: FxHashSet::default(),
            last_begun: NOWHERE,
            cold_prompts: 0,
            output_tokens: OUTPUT_TOKENS,
            predictor: Predictor::default(),
            found: Found::default(),
            gate: Gate::new(gate_limits(&pool.picker)),
            coming: 0,
        };
        state.gate.set_bands(pool.picker.bands.clone());
        state.sync(pool, now);
        state
    }

    /// Follows a changed pool. Endpoints that stay keep what is known of them, new ones start
    /// with nothing (and gently, if others are serving), those that went are forgotten.
    pub fn sync(&mut self, pool: &Pool, now: Moment) {
        let mut resettle = self.configure(&pool.picker);
        let listed: FxHashMap<SocketAddr, bool> = pool
            .endpoints
            .iter()
            .map(|e| (e.address, e.ready))
            .collect();
        for at in 0..self.slots.len() {
            let slot = &self.slots[at];
            if slot.present && !listed.contains_key(&slot.address) {
                self.remove(at as u16);
            }
        }
        let joins_others = self.slots.iter().any(|slot| slot.present && slot.ready);
        for endpoint in &pool.endpoints {
            let fresh = || match joins_others {
                true => Health::joining(now),
                false => Health::good(),
            };
            match self.by_address.get(&endpoint.address) {
                Some(&at) => {
                    let slot = &mut self.slots[usize::from(at)];
                    if endpoint.ready && !slot.ready {
                        slot.health = fresh();
                    }
                    slot.ready = endpoint.ready;
                }
                None => self.add(endpoint.address, endpoint.ready, fresh()),
            }
            resettle |= self.site(endpoint);
        }
        if resettle {
            for plan in &mut self.plans {
                plan.settle(&self.sites);
            }
        }
    }

    /// Takes in what is configured of an endpoint; whether that is new.
    fn site(&mut self, endpoint: &Endpoint) -> bool {
        let Some(&at) = self.by_address.get(&endpoint.address) else {
            return false;
        };
        let at = usize::from(at);
        let known = self.sites.len() > at;
        self.sites
            .resize(self.slots.len().max(self.sites.len()), Site::default());
        let site = &mut self.sites[at];
        if known && site.is_of(endpoint) {
            return false;
        }
        *site = Site::of(endpoint);
        true
    }

    /// Takes in a configuration; whether it is new.
    fn configure(&mut self, config: &PickerConfig) -> bool {
        if *config == self.config {
            return false;
        }
        self.index.set_bytes_max(config.prefix_index_bytes_max);
        if config.prefix_block_bytes != self.config.prefix_block_bytes {
            self.index.clear();
        }
        self.configure_precise(config);
        self.config = config.clone();
        self.gate.set_limits(gate_limits(config));
        self.gate.set_bands(config.bands.clone());
        self.plans = Plan::all(config);
        for at in 0..self.slots.len() {
            self.reset_capacity(at);
        }
        true
    }

    fn add(&mut self, address: SocketAddr, ready: bool, health: Health) {
        let at = match self.free.pop() {
            Some(at) => {
                let generation = self.slots[usize::from(at)].generation;
                self.slots[usize::from(at)] = Slot::new(address, generation, ready, health);
                at
            }
            None if self.slots.len() < SLOTS_MAX => {
                self.slots.push(Slot::new(address, 0, ready, health));
                (self.slots.len() - 1) as u16
            }
            None => return,
        };
        self.by_address.insert(address, at);
        self.reset_capacity(usize::from(at));
    }

    fn remove(&mut self, at: u16) {
        let slot = &mut self.slots[usize::from(at)];
        slot.present = false;
        slot.generation = slot.generation.wrapping_add(1);
        slot.awaiting = Vec::new();
        self.by_address.remove(&slot.address);
        self.index.forget(at);
        self.unfollow(at);
        self.predictor.forget(usize::from(at));
        self.free.push(at);
    }

    /// Takes in one scrape. Scrapes of unknown endpoints are ignored.
    pub fn scraped(&mut self, address: SocketAddr, load: Load, now: Moment) {
        let Some(&at) = self.by_address.get(&address) else {
            return;
        };
        for adapter in load
            .lora
            .iter()
            .flat_map(|l| l.running.iter().chain(&l.waiting))
        {
            if self.adapters.len() < ADAPTERS_MAX {
                self.adapters.insert(xxh3_64(adapter.as_bytes()));
            }
        }
        let stale_after = self.stale_after();
        let slot = &mut self.slots[usize::from(at)];
        let before = slot
            .scrape
            .as_ref()
            .map(|s| (s.load.blocks, s.load.block_tokens));
        let resized = before != Some((load.blocks, load.block_tokens));
        if let Some(precise) = &mut self.precise {
            precise.expire(now);
        }
        slot.health.scraped(now);
        slot.scraped(load, now, stale_after);
        if resized {
            self.reset_capacity(usize::from(at));
        }
    }

    /// Notes a scrape that failed: see `health.rs` for what several in a row mean.
    pub fn scrape_failed(&mut self, address: SocketAddr, now: Moment) {
        if let Some(&at) = self.by_address.get(&address)
            && self.slots[usize::from(at)].health.scrape_failed(now)
        {
            // A server that is gone comes back with an empty cache.
            self.index.forget(at);
            self.lose(at);
        }
    }

    /// Blocks that the endpoint should have room for, by its own metrics or by configuration.
    pub(crate) fn nominal_capacity(&self, at: usize) -> usize {
        let scraped = self.slots[at].scrape.as_ref();
        scraped
            .filter(|_| self.config.prefix_capacity_from_metrics)
            .and_then(|s| prefix_blocks(&s.load, self.config.prefix_block_bytes))
            .unwrap_or(self.config.prefix_blocks_per_endpoint)
    }

    fn reset_capacity(&mut self, at: usize) {
        self.set_capacity(at, self.nominal_capacity(at));
    }

    /// Replaces what the endpoint is believed to have room for.
    pub(crate) fn set_capacity(&mut self, at: usize, blocks: usize) {
        let least = self.nominal_capacity(at) / CAPACITY_SHARE_MIN;
        self.slots[at].prefix_capacity = blocks.max(least);
        self.index
            .set_capacity(at as u16, self.slots[at].prefix_capacity);
    }

    /// The model's name and hash if it is an adapter that some server has had.
    pub(crate) fn adapter<'a>(&self, model: Option<&'a str>) -> Option<(&'a str, u64)> {
        let model = model.filter(|_| !self.adapters.is_empty())?;
        let hash = xxh3_64(model.as_bytes());
        self.adapters.contains(&hash).then_some((model, hash))
    }

    pub(crate) fn stale_after(&self) -> Duration {
        Duration::from_millis(self.config.load_stale_after_ms)
    }
}

/// What can be asked of a pool besides an endpoint.
impl PoolState {
    /// How full the pool is: the mean over its ready endpoints of the larger of queue length and
    /// KV use against their limits, each capped at [`ENDPOINT_SATURATION_MAX`]. Endpoints whose
    /// metrics are unknown are left out; 0 if all are, since a pool must not refuse work because
    /// its scrapes are late.
    #[must_use]
    pub fn saturation(&self, now: Moment) -> f32 {
        self.fullness(now).with(0.0)
    }

    pub(crate) fn fullness(&self, now: Moment) -> Fullness {
        match self.config.saturation {
            Saturation::Reported => {
                let (queue, kv) = (self.config.saturation_queue, self.config.saturation_kv);
                self.reported_fullness(queue, kv, now)
            }
            Saturation::Inflight {
                requests_max,
                tokens_max,
            } => {
                let slots = || self.slots.iter().filter(|s| s.present && s.ready);
                let requests: f32 = slots().map(|s| s.inflight_requests as f32).sum();
                let tokens: f32 = slots().map(|s| s.backlog_tokens(now)).sum();
                Fullness {
                    sum: requests_max.map_or(0.0, |max| requests / max.max(1) as f32),
                    other: tokens_max.map_or(0.0, |max| tokens / max.max(1) as f32),
                    known: slots().count() as f32,
                }
            }
        }
    }

    /// By what endpoints report, against these limits.
    pub(crate) fn reported_fullness(&self, queue_max: u32, kv_max: f32, now: Moment) -> Fullness {
        let stale_after = self.stale_after();
        let mut full = Fullness::default();
        for slot in self.slots.iter().filter(|s| s.present && s.ready) {
            let Some(load) = slot.fresh(now, stale_after) else {
                continue;
            };
            let queue = slot.queued(load).map(|n| n / queue_max.max(1) as f32);
            let kv = slot.kv_used(load).map(|n| n / kv_max.max(0.01));
            if let Some(most) = queue.into_iter().chain(kv).reduce(f32::max) {
                full.sum += most.min(ENDPOINT_SATURATION_MAX);
                full.known += 1.0;
            }
        }
        full
    }

    /// The policy in force.
    #[must_use]
    pub fn config(&self) -> &PickerConfig {
        &self.config
    }

    /// Why the endpoint is out of rotation, if it is.
    #[must_use]
    pub fn ejected(&self, address: SocketAddr, now: Moment) -> Option<Ejection> {
        let at = self.by_address.get(&address)?;
        self.slots[usize::from(*at)].health.ejection(now)
    }

    /// Every endpoint with its standing and why it is out of rotation, if it is.
    pub fn health(
        &self,
        now: Moment,
    ) -> impl Iterator<Item = (SocketAddr, Standing, Option<Ejection>)> {
        self.slots.iter().filter(|s| s.present).map(move |slot| {
            let health = &slot.health;
            (slot.address, health.standing(now), health.ejection(now))
        })
    }

    /// Everything known of every endpoint.
    pub fn view(&self, now: Moment) -> impl Iterator<Item = EndpointView> {
        let slots = self.slots.iter().enumerate().filter(|(_, s)| s.present);
        slots.map(move |(at, slot)| EndpointView {
            address: slot.address,
            ready: slot.ready,
            standing: slot.health.standing(now),
            ejection: slot.health.ejection(now),
            load: slot.scrape.as_ref().map(|s| s.load.clone()),
            load_age: slot.scrape.as_ref().map(|s| now.since(s.at)),
            inflight_requests: slot.inflight_requests,
            inflight_tokens: slot.inflight_tokens,
            waiting: slot
                .fresh(now, self.stale_after())
                .and_then(|load| slot.waiting(load)),
            backlog_ms: slot.backlog_tokens(now) * 1_000.0 / slot.speed.tokens_per_s(),
            prefix_blocks: self.index.held_by(at as u16),
            prefix_blocks_max: slot.prefix_capacity,
            prefill_tokens_per_s: slot.speed.tokens_per_s(),
            kv: self.kv_view(at as u16),
        })
    }

    /// How well latencies are predicted.
    #[must_use]
    pub fn prediction_accuracy(&self) -> PredictorAccuracy {
        self.predictor.accuracy()
    }

    /// Bytes that the prefix indices take, approximate and precise.
    #[must_use]
    pub fn prefix_bytes(&self) -> usize {
        self.index.bytes() + self.precise.as_ref().map_or(0, PreciseIndex::bytes)
    }
}
