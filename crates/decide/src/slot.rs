//! What is known about one endpoint between two scrapes: the scraped numbers, corrected by what
//! was sent there and came back since, and how fast it works off prompts.
//!
//! Without the correction every request between two scrapes would see the same shortest queue.

use std::net::SocketAddr;
use std::time::Duration;

use forebay_model::{Load, Moment};
use smallvec::SmallVec;

use crate::ask::Flight;
use crate::health::Health;
use crate::predict::Situation;

/// Prefill speed assumed until measured, in tokens per second: Qwen3-32B on two H100, the value
/// of llm-d's recipes.
pub(crate) const PREFILL_TOKENS_PER_S: f32 = 15_928.0;
/// Prompts with less work ahead of their first token than this say more about fixed costs than
/// about speed.
const CALIBRATION_TOKENS_MIN: u64 = 1024;
/// Speeds outside of this are measuring errors (a whole answer in the first byte, a cache hit
/// that was not expected).
const SPEED_RANGE: std::ops::RangeInclusive<f32> = 200.0..=5_000_000.0;
/// How fast the rate of prompts sent to an endpoint forgets, in seconds: some answers' length.
const RATE_MEMORY_S: f32 = 5.0;
/// What an adapter's state is worth at least where it need not wait for a slot: see `lora_worth`.
const LORA_ROOM: f32 = 0.7;
/// Adapters sent to an endpoint since its last scrape that are remembered; more are not, and
/// then count as not loaded until the scrape.
const ADAPTERS_SINCE_MAX: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) address: SocketAddr,
    /// Changes when the slot gets another endpoint, so that old flights do not count for it.
    pub(crate) generation: u32,
    pub(crate) present: bool,
    pub(crate) ready: bool,
    pub(crate) health: Health,
    pub(crate) scrape: Option<Scrape>,
    pub(crate) since: SinceScrape,
    /// Requests that the server took out of its queue between the last two scrapes, of those sent
    /// from here.
    taken: i32,
    pub(crate) inflight_requests: u32,
    pub(crate) inflight_tokens: u64,
    /// Uncached prompt tokens of streamed requests whose first byte is still to come.
    pub(crate) streamed_backlog: u64,
    /// The same for whole answers, whose prefill end cannot be seen: it drains at the measured
    /// speed instead.
    pub(crate) whole_backlog: Draining,
    /// Index stamps of the requests whose first byte is still to come; as many as are in flight.
    pub(crate) awaiting: Vec<u64>,
    pub(crate) speed: PrefillSpeed,
    /// Uncached prompt tokens that were sent there lately.
    sent_rate: SentRate,
    /// When it last got a prompt of which nobody held anything, on the pool's own count; 0 is never.
    pub(crate) cold_stamp: u64,
    /// Base blocks that the endpoint is believed to have room for.
    pub(crate) prefix_capacity: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Scrape {
    pub(crate) load: Load,
    pub(crate) at: Moment,
}

/// What happened after the last scrape, to be added to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SinceScrape {
    sent: u32,
    waiting: i32,
    running: i32,
    tokens: u64,
    adapters: SmallVec<[u64; 2]>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Draining {
    tokens: f32,
    at: Moment,
}

impl Draining {
    fn at(self, now: Moment, speed: f32) -> f32 {
        (self.tokens - now.since(self.at).as_secs_f32() * speed).max(0.0)
    }

    pub(crate) fn change(&mut self, by: f32, now: Moment, speed: f32) {
        self.tokens = (self.at(now, speed) + by).max(0.0);
        self.at = now;
    }
}

/// Tokens per second, as a moving mean with exponential weights.
#[derive(Clone, Copy, Debug, Default)]
struct SentRate {
    tokens: f32,
    at: Moment,
}

impl SentRate {
    fn tokens_at(self, now: Moment) -> f32 {
        self.tokens * (-now.since(self.at).as_secs_f32() / RATE_MEMORY_S).exp()
    }

    fn add(&mut self, tokens: f32, now: Moment) {
        self.tokens = self.tokens_at(now) + tokens;
        self.at = now;
    }
}

/// Prefill speed of one endpoint: a moving high quantile of what its requests showed. A sample is
/// slow for many reasons and fast only because the endpoint is, so it follows upward faster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrefillSpeed {
    tokens_per_s: f32,
    samples: u32,
}

impl PrefillSpeed {
    const UP: f32 = 0.3;
    const DOWN: f32 = 0.05;

    pub(crate) fn tokens_per_s(self) -> f32 {
        self.tokens_per_s
    }

    pub(crate) fn measured(&mut self, tokens: u64, took: Duration) {
        let sample = tokens as f32 / took.as_secs_f32().max(1e-6);
        if tokens < CALIBRATION_TOKENS_MIN || !SPEED_RANGE.contains(&sample) {
            return;
        }
        let gain = if sample > self.tokens_per_s {
            Self::UP
        } else {
            Self::DOWN
        };
        // The first samples count more, since the default may be far off.
        let gain = gain.max(1.0 / (self.samples + 1) as f32);
        self.tokens_per_s += gain * (sample - self.tokens_per_s);
        self.samples = self.samples.saturating_add(1);
    }
}

impl Slot {
    pub(crate) fn new(address: SocketAddr, generation: u32, ready: bool, health: Health) -> Self {
        Self {
            address,
            generation,
            present: true,
            ready,
            health,
            scrape: None,
            since: SinceScrape::default(),
            taken: 0,
            inflight_requests: 0,
            inflight_tokens: 0,
            streamed_backlog: 0,
            whole_backlog: Draining::default(),
            awaiting: Vec::new(),
            speed: PrefillSpeed {
                tokens_per_s: PREFILL_TOKENS_PER_S,
                samples: 0,
            },
            cold_stamp: 0,
            sent_rate: SentRate::default(),
            prefix_capacity: 0,
        }
    }

    /// The last scrape, unless it is too old to mean anything.
    pub(crate) fn fresh(&self, now: Moment, stale_after: Duration) -> Option<&Load> {
        self.scrape
            .as_ref()
            .filter(|scrape| now.since(scrape.at) <= stale_after)
            .map(|scrape| &scrape.load)
    }

    /// Requests waiting there now: scraped, and what changed since.
    pub(crate) fn waiting(&self, load: &Load) -> Option<f32> {
        load.waiting.map(|n| corrected(n, self.since.waiting))
    }

    /// Requests waiting there now if it goes on as between the last two scrapes. What was sent since
    /// counts beyond what it took then: a fast server, or one that is scraped rarely, has taken it
    /// by the next scrape, and must not pass for full because nobody has looked yet.
    pub(crate) fn queued(&self, load: &Load) -> Option<f32> {
        let since = self.since.waiting;
        let expected = if since > 0 {
            (since - self.taken).max(0)
        } else {
            since
        };
        load.waiting.map(|n| corrected(n, expected))
    }

    /// Requests running there now.
    pub(crate) fn running(&self, load: &Load) -> Option<f32> {
        load.running.map(|n| corrected(n, self.since.running))
    }

    /// Share of KV cache in use, with the prompts that were sent since where its size is known.
    pub(crate) fn kv_used(&self, load: &Load) -> Option<f32> {
        let capacity = kv_capacity_tokens(load);
        let since = capacity.map_or(0.0, |c| self.since.tokens as f32 / c as f32);
        load.kv_used.map(|used| (used + since).clamp(0.0, 1.0))
    }

    /// Prompt tokens that have to be computed there before a new request's.
    pub(crate) fn backlog_tokens(&self, now: Moment) -> f32 {
        let speed = self.speed.tokens_per_s();
        self.streamed_backlog as f32 + self.whole_backlog.at(now, speed)
    }

    /// What the latency of a prompt depends on that has so many tokens, and so many not in cache.
    /// What the server does not report is replaced by what was sent from here.
    pub(crate) fn situation(
        &self,
        load: Option<&Load>,
        prompt_tokens: u32,
        uncached_tokens: u32,
        lora: Option<f32>,
        now: Moment,
    ) -> Situation {
        let own_waiting = self.awaiting.len() as f32;
        let own_running = self.inflight_requests as f32 - own_waiting;
        Situation {
            waiting: load.and_then(|l| self.waiting(l)).unwrap_or(own_waiting),
            running: load.and_then(|l| self.running(l)).unwrap_or(own_running),
            kv_used: load.and_then(|l| self.kv_used(l)).unwrap_or(0.0),
            ahead_tokens: self.backlog_tokens(now),
            uncached_tokens: uncached_tokens as f32,
            prompt_tokens: prompt_tokens as f32,
            context_tokens: self.inflight_tokens as f32,
            displaced: 0.0,
            adapter_blocked: lora.is_some_and(|worth| worth < LORA_ROOM),
            prefill_tokens_per_s: self.sent_rate.tokens_at(now) / RATE_MEMORY_S,
        }
    }

    /// Whether the adapter was sent there since the last scrape.
    pub(crate) fn was_sent_adapter(&self, adapter: u64) -> bool {
        self.since.adapters.contains(&adapter)
    }

    /// Takes in a scrape. A gap of more than `stale_after` before it says nothing of the server's
    /// pace.
    pub(crate) fn scraped(&mut self, mut load: Load, now: Moment, stale_after: Duration) {
        // A server may say NaN; a score must not.
        load.kv_used = load.kv_used.filter(|used| used.is_finite());
        let before = self.fresh(now, stale_after).and_then(|load| load.waiting);
        self.taken = before.zip(load.waiting).map_or(0, |(before, waiting)| {
            let taken = before
                .saturating_add(self.since.sent)
                .saturating_sub(waiting);
            i32::try_from(taken).unwrap_or(i32::MAX)
        });
        self.scrape = Some(Scrape { load, at: now });
        self.since = SinceScrape::default();
    }

    /// A request was sent: it waits.
    pub(crate) fn sent(&mut self, uncached_tokens: u32, adapter: Option<u64>) {
        self.since.sent += 1;
        self.since.waiting += 1;
        self.since.tokens += u64::from(uncached_tokens);
        if let Some(adapter) = adapter
            && !self.was_sent_adapter(adapter)
            && self.since.adapters.len() < ADAPTERS_SINCE_MAX
        {
            self.since.adapters.push(adapter);
        }
    }

    /// A request's first byte came: it runs. One that was sent before the last scrape may have
    /// been counted as running already, namely if nothing waits.
    pub(crate) fn started(&mut self, begun: Moment) {
        if self.sent_since_scrape(begun) || self.any_waiting() {
            self.since.waiting -= 1;
            self.since.running += 1;
        }
    }

    /// A request ended. Without a first byte, one sent since the scrape counted as waiting, and an
    /// older one as running unless something waits and it was not served. What KV cache it took
    /// since the scrape is free again: it may stay cached, and is nobody's.
    pub(crate) fn ended(&mut self, flight: &Flight, served: bool) {
        let (begun, answered) = (flight.begun, flight.answered);
        if self.sent_since_scrape(begun) {
            let took = u64::from(flight.uncached_tokens);
            self.since.tokens = self.since.tokens.saturating_sub(took);
        }
        let waited = self.sent_since_scrape(begun) || (!served && self.any_waiting());
        if !answered && !served && self.sent_since_scrape(begun) {
            // It may never have got there, and shows nothing of the server's pace.
            self.since.sent = self.since.sent.saturating_sub(1);
        }
        if !answered && waited {
            self.since.waiting -= 1;
        } else {
            self.since.running -= 1;
        }
    }

    fn sent_since_scrape(&self, begun: Moment) -> bool {
        self.scrape.as_ref().is_none_or(|scrape| begun >= scrape.at)
    }

    pub(crate) fn any_waiting(&self) -> bool {
        let scraped = self.scrape.as_ref().and_then(|s| s.load.waiting);
        corrected(scraped.unwrap_or(0), self.since.waiting) > 0.0
    }
}

impl Slot {
    pub(crate) fn book(&mut self, flight: &Flight, adapter: Option<u64>, now: Moment) {
        self.sent(flight.uncached_tokens, adapter);
        self.sent_rate.add(flight.uncached_tokens as f32, now);
        self.inflight_requests += 1;
        self.inflight_tokens += u64::from(flight.total_tokens);
        self.awaiting.push(flight.stamp);
        if flight.stream {
            self.streamed_backlog += u64::from(flight.uncached_tokens);
        } else {
            let speed = self.speed.tokens_per_s();
            self.whole_backlog
                .change(flight.uncached_tokens as f32, now, speed);
        }
    }

    /// Takes a request's prompt off the backlog. A whole answer's has drained by itself, except
    /// that one which ends sooner takes the rest of its prompt along.
    pub(crate) fn leave_backlog(&mut self, flight: &Flight, now: Moment) {
        if let Some(at) = self.awaiting.iter().position(|&s| s == flight.stamp) {
            self.awaiting.swap_remove(at);
        }
        if flight.stream {
            self.streamed_backlog -= u64::from(flight.uncached_tokens);
            return;
        }
        let speed = self.speed.tokens_per_s();
        let drained = now.since(flight.begun).as_secs_f32() * speed;
        let rest = (flight.uncached_tokens as f32 - drained).max(0.0);
        self.whole_backlog.change(-rest, now, speed);
    }
}

fn corrected(scraped: u32, delta: i32) -> f32 {
    scraped.saturating_add_signed(delta) as f32
}

/// Tokens that fit into the server's KV cache.
fn kv_capacity_tokens(load: &Load) -> Option<u64> {
    let tokens = load.blocks?.saturating_mul(u64::from(load.block_tokens?));
    (tokens > 0).then_some(tokens)
}

/// Base blocks of prompt that a server with this load has room for, at about four bytes a token.
pub(crate) fn prefix_blocks(load: &Load, block_bytes: usize) -> Option<usize> {
    let bytes = kv_capacity_tokens(load)?.saturating_mul(4);
    usize::try_from(bytes).ok()?.checked_div(block_bytes)
}
