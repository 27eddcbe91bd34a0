//! A model server's engine as a step function: continuous batching as vLLM v1 does it.
//!
//! [`Engine::step`] runs one forward pass: which sequences it takes, which tokens come out, how long
//! it lasts. Nothing here waits, reads a clock or knows HTTP; the server ([`crate::server`]) sleeps
//! for the duration, a discrete-event simulation adds it to its clock.
//! The rules are in `schedule.rs`, the blocks in `blocks.rs`, durations in [`crate::profile`].

mod blocks;
mod schedule;
pub mod tokens;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use forebay_model::Moment;

use crate::profile::Profile;
use blocks::{BlockId, BlockPool};
pub use blocks::{CacheChange, StoredBlock};
use schedule::Plan;
use tokens::Random;
pub use tokens::{BLOCK_TOKENS, Prompt};

/// Names a request; chosen by the caller, unique among those in the engine.
pub type RequestId = u64;

/// A number that the caller gave to a LoRA adapter.
pub type AdapterId = u32;

/// What a server is started with.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// Sequences in one batch (`--max-num-seqs`).
    pub max_num_seqs: u32,
    /// New tokens in one step (`--max-num-batched-tokens`).
    pub max_num_batched_tokens: u32,
    /// KV blocks of [`BLOCK_TOKENS`] tokens.
    pub kv_blocks: u32,
    /// Prompt and output of one request, in tokens; at most what all blocks hold.
    pub max_model_len: u32,
    /// Adapters in one batch (`--max-loras`); 0 refuses requests for adapters.
    pub max_loras: u32,
    /// Requests in the engine, waiting or running; one more is refused (vLLM counts
    /// `--max-num-queued-reqs` so, despite its name).
    pub requests_max: u32,
    /// Keep blocks of finished requests for equal prefixes.
    pub prefix_caching: bool,
    /// Plan a step while the one before it runs, as vLLM does by default: a request waits for one
    /// step more, the GPU never waits for the host.
    pub async_scheduling: bool,
    /// Admit only if the whole prompt fits, not just its first chunk
    /// (`scheduler_reserve_full_isl`).
    pub reserve_full_prompt: bool,
    /// Relative deviation of step times, drawn per step; 0 is none.
    pub step_jitter: f64,
}

impl Settings {
    /// What vLLM would choose for `profile`.
    #[must_use]
    pub fn of(profile: &Profile) -> Self {
        Self {
            max_num_seqs: 128,
            max_num_batched_tokens: 2048,
            kv_blocks: profile.kv_blocks,
            max_model_len: profile.max_model_len,
            max_loras: 0,
            requests_max: u32::MAX,
            prefix_caching: true,
            async_scheduling: true,
            reserve_full_prompt: true,
            step_jitter: 0.0,
        }
    }
}

/// One request.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// What goes in.
    pub prompt: Prompt,
    /// Tokens that come out; at least one.
    pub output_tokens: u32,
    /// Seed of the output's tokens ([`tokens::output_token`]).
    pub output_seed: u64,
    /// The adapter that it wants.
    pub adapter: Option<AdapterId>,
}

/// Why a request is not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SubmitError {
    /// Prompt and output together exceed the context.
    TooLong {
        /// Tokens of prompt and output.
        tokens: u64,
        /// What the server takes.
        max_model_len: u32,
    },
    /// As many requests are here as may be.
    Full {
        /// The bound.
        requests_max: u32,
    },
    /// No prompt or no output.
    Empty,
    /// The engine was started without adapters.
    NoAdapters,
    /// The id is in use.
    Duplicate(RequestId),
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong {
                tokens,
                max_model_len,
            } => write!(
                f,
                "prompt and output are {tokens} tokens, the context takes {max_model_len}"
            ),
            Self::Full { requests_max } => write!(f, "{requests_max} requests are here already"),
            Self::Empty => f.write_str("a request needs a prompt and at least one output token"),
            Self::NoAdapters => f.write_str("the server has no adapter slots (max_loras is 0)"),
            Self::Duplicate(id) => write!(f, "request {id} is in the engine already"),
        }
    }
}

impl std::error::Error for SubmitError {}

/// A request that entered the batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admitted {
    /// The request.
    pub id: RequestId,
    /// Prompt tokens found in the cache.
    pub cached_tokens: u32,
}

/// What one step did. Tokens come out when it ends; admission happens when it starts.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StepReport {
    /// How long it takes.
    pub duration: Duration,
    /// When its tokens come out.
    pub ends_at: Moment,
    /// New tokens worked on, prompt and output.
    pub tokens: u32,
    /// Requests that get one output token each at the end.
    pub emitted: Vec<RequestId>,
    /// Those of them whose last token it is.
    pub finished: Vec<RequestId>,
    /// Requests that lost their blocks and start again.
    pub preempted: Vec<RequestId>,
    /// Requests that entered the batch.
    pub admitted: Vec<Admitted>,
}

/// The engine's state in numbers, as `/metrics` shows it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct EngineLoad {
    /// Sequences in the batch.
    pub running: u32,
    /// Requests in the queue.
    pub waiting: u32,
    /// Those of them that wait for an adapter slot.
    pub waiting_deferred: u32,
    /// Share of blocks that requests hold, 0 to 1.
    pub kv_used: f64,
    /// Adapters in the batch.
    pub running_adapters: BTreeSet<AdapterId>,
    /// Adapters that requests wait for.
    pub waiting_adapters: BTreeSet<AdapterId>,
}

/// Totals since start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Prompt tokens looked up in the cache.
    pub prefix_queries: u64,
    /// Those of them that were found.
    pub prefix_hits: u64,
    /// Prompt tokens of admitted requests, found or computed.
    pub prompt_tokens: u64,
    /// Output tokens.
    pub generation_tokens: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Steps.
    pub steps: u64,
}

/// One model server.
#[derive(Clone, Debug)]
pub struct Engine {
    profile: Profile,
    settings: Settings,
    random: Random,
    pool: BlockPool,
    sequences: Vec<Option<Sequence>>,
    free_slots: Vec<usize>,
    by_id: HashMap<RequestId, usize>,
    /// In order of admission; the last is preempted first.
    running: Vec<usize>,
    waiting: VecDeque<usize>,
    /// Planned while the step before it ran.
    in_flight: Option<Plan>,
    totals: Totals,
}

/// A request inside the engine.
#[derive(Clone, Debug)]
struct Sequence {
    request: Request,
    /// Chained hashes of the blocks whose content is known, the output's included.
    hashes: Vec<u64>,
    blocks: Vec<BlockId>,
    /// Blocks whose hash is registered.
    filled: usize,
    /// Tokens whose keys and values are in the blocks.
    computed: u32,
    /// Output tokens planned, those of the step in flight included.
    planned: u32,
    /// Output tokens delivered.
    delivered: u32,
    /// Whether it was in the batch before: a preempted sequence is not admitted twice.
    admitted: bool,
}

impl Sequence {
    /// Tokens known or about to be: the prompt and the planned output.
    fn total(&self) -> u32 {
        self.request.prompt.tokens + self.planned
    }
}

impl Engine {
    /// An idle engine. `seed` matters only if `settings.step_jitter` is not zero.
    #[must_use]
    pub fn new(profile: Profile, settings: Settings, seed: u64) -> Self {
        let kv_blocks = settings.kv_blocks.max(1);
        let settings = Settings {
            kv_blocks,
            max_num_seqs: settings.max_num_seqs.max(1),
            max_num_batched_tokens: settings.max_num_batched_tokens.max(1),
            max_model_len: settings
                .max_model_len
                .min(kv_blocks.saturating_mul(BLOCK_TOKENS)),
            ..settings
        };
        Self {
            profile,
            settings,
            random: Random::new(seed),
            pool: BlockPool::new(kv_blocks),
            sequences: Vec::new(),
            free_slots: Vec::new(),
            by_id: HashMap::new(),
            running: Vec::new(),
            waiting: VecDeque::new(),
            in_flight: None,
            totals: Totals::default(),
        }
    }

    /// The settings in force: those given, within what the blocks allow.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Notes changes of the cache from now on; whoever asks for that must take them.
    pub fn note_cache_changes(&mut self) {
        self.pool.note_changes();
    }

    /// What changed in the cache since the last call, in order. A request that is named is still
    /// here, unless a step has ended since.
    pub fn take_cache_changes(&mut self) -> Vec<CacheChange> {
        self.pool.take_changes()
    }

    /// Whether a step would find nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Puts a request at the end of the queue.
    ///
    /// # Errors
    /// If it can never run, or the queue is full.
    pub fn submit(&mut self, request: Request) -> Result<(), SubmitError> {
        self.check_request(&request)?;
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.sequences.push(None);
            self.sequences.len() - 1
        });
        self.by_id.insert(request.id, slot);
        self.sequences[slot] = Some(Sequence {
            hashes: request.prompt.block_hashes.clone(),
            request,
            blocks: Vec::new(),
            filled: 0,
            computed: 0,
            planned: 0,
            delivered: 0,
            admitted: false,
        });
        self.waiting.push_back(slot);
        Ok(())
    }

    fn check_request(&self, request: &Request) -> Result<(), SubmitError> {
        let tokens = u64::from(request.prompt.tokens) + u64::from(request.output_tokens);
        let Settings {
            max_model_len,
            requests_max,
            max_loras,
            ..
        } = self.settings;
        if request.prompt.tokens == 0 || request.output_tokens == 0 {
            return Err(SubmitError::Empty);
        }
        if tokens > u64::from(max_model_len) {
            return Err(SubmitError::TooLong {
                tokens,
                max_model_len,
            });
        }
        if request.adapter.is_some() && max_loras == 0 {
            return Err(SubmitError::NoAdapters);
        }
        if self.by_id.len() >= requests_max as usize {
            return Err(SubmitError::Full { requests_max });
        }
        if self.by_id.contains_key(&request.id) {
            return Err(SubmitError::Duplicate(request.id));
        }
        Ok(())
    }

    /// Runs one forward pass that starts at `now`; `None` if there is nothing to do. The next call
    /// belongs at the report's `ends_at`, after the requests that came in between were submitted.
    pub fn step(&mut self, now: Moment) -> Option<StepReport> {
        let mut report = StepReport::default();
        let plan = match self.in_flight.take() {
            Some(plan) => plan,
            None => self.schedule(&mut report)?,
        };
        if self.settings.async_scheduling {
            self.in_flight = self.schedule(&mut report);
        }
        report.duration = self.duration(&plan);
        report.ends_at = now.plus(report.duration);
        report.tokens = plan.batch.tokens();
        self.totals.steps += 1;
        self.deliver(&plan, &mut report);
        Some(report)
    }

    fn duration(&mut self, plan: &Plan) -> Duration {
        let jitter = self.settings.step_jitter;
        let noise = if jitter > 0.0 {
            self.random.normal().clamp(-3.0, 3.0) * jitter
        } else {
            0.0
        };
        let us = self.profile.step_us(&plan.batch) * (1.0 + noise).max(0.0);
        Duration::from_nanos((us * 1e3) as u64)
    }

    fn deliver(&mut self, plan: &Plan, report: &mut StepReport) {
        for (slot, id) in &plan.emitting {
            // Aborted since, and the slot possibly someone else's.
            let Some(sequence) = self.sequences[*slot]
                .as_mut()
                .filter(|s| s.request.id == *id)
            else {
                continue;
            };
            sequence.delivered += 1;
            self.totals.generation_tokens += 1;
            report.emitted.push(*id);
            if sequence.delivered == sequence.request.output_tokens {
                report.finished.push(*id);
                self.remove(*slot);
            }
        }
    }

    /// Forgets a request, wherever it is; false if it is not here.
    pub fn abort(&mut self, id: RequestId) -> bool {
        let slot = self.by_id.get(&id).copied();
        if let Some(slot) = slot {
            self.remove(slot);
        }
        slot.is_some()
    }

    fn remove(&mut self, slot: usize) {
        self.release_blocks(slot);
        if let Some(sequence) = self.sequences[slot].take() {
            self.by_id.remove(&sequence.request.id);
        }
        self.running.retain(|running| *running != slot);
        self.waiting.retain(|waiting| *waiting != slot);
        self.free_slots.push(slot);
    }

    /// Gives blocks back, last first, so that the end of a prefix is evicted before its beginning.
    fn release_blocks(&mut self, slot: usize) {
        let sequence = self.sequences[slot].as_mut().expect("a slot in use");
        for block in sequence.blocks.drain(..).rev() {
            self.pool.release(block);
        }
        sequence.filled = 0;
        sequence.computed = 0;
    }

    /// The state in numbers.
    #[must_use]
    pub fn load(&self) -> EngineLoad {
        let held = self.settings.kv_blocks - self.pool.free();
        let adapters = |slots: &mut dyn Iterator<Item = &usize>| -> BTreeSet<AdapterId> {
            slots
                .filter_map(|slot| self.sequence(*slot).request.adapter)
                .collect()
        };
        let running_adapters = adapters(&mut self.running.iter());
        let deferred = |slot: &&usize| self.is_deferred(**slot, &running_adapters);
        EngineLoad {
            running: count(self.running.len()),
            waiting: count(self.waiting.len()),
            waiting_deferred: count(self.waiting.iter().filter(deferred).count()),
            kv_used: f64::from(held) / f64::from(self.settings.kv_blocks),
            waiting_adapters: adapters(&mut self.waiting.iter()),
            running_adapters,
        }
    }

    /// Totals since start.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    fn sequence(&self, slot: usize) -> &Sequence {
        self.sequences[slot]
            .as_ref()
            .expect("running and waiting slots are in use")
    }

    fn sequence_mut(&mut self, slot: usize) -> &mut Sequence {
        self.sequences[slot]
            .as_mut()
            .expect("running and waiting slots are in use")
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
