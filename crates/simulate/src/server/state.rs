//! The engine behind its lock, and the task that drives it in (scaled) real time.
//!
//! Time inside is virtual: a step ends exactly when the profile says, and the next one starts there.
//! The driver sleeps until the real clock has caught up, so timer granularity delays single tokens by
//! up to a millisecond but never adds up. HTTP is not known here.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use forebay_model::Moment;
use forebay_tokenize::Tokenizer;
use tokio::sync::Notify;

use super::body::{Mailbox, Ticket};
use super::kv_events::{Content, Publisher};
use super::metrics::{Metrics, Page};
use super::{Failures, SimConfig};
use crate::engine::tokens::{Prompt, Random, mix};
use crate::engine::{AdapterId, Engine, Request, RequestId, StepReport, SubmitError};

/// How far virtual time may fall behind the real clock before the rest is given up: longer stalls of
/// the host would otherwise come out as a burst of tokens at impossible speed.
const LAG_MAX: Duration = Duration::from_millis(250);
/// Adapters that can be known at a time; loading one more is refused.
pub(super) const ADAPTERS_MAX: usize = 1024;

/// What all connections and the driver share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: SimConfig,
    pub(super) tokenizer: Tokenizer,
    /// Who tells what the cache holds, if somebody does.
    pub(super) publisher: Option<Arc<Publisher>>,
    core: Mutex<Core>,
    /// There is work for an idle driver.
    work: Notify,
    clock: Clock,
}

/// Behind the lock; never held across an await.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) engine: Engine,
    pub(super) metrics: Metrics,
    /// Adapters by name, those of the configuration and those loaded since.
    pub(super) adapters: BTreeMap<String, AdapterId>,
    next_adapter: AdapterId,
    pub(super) failures: Failures,
    random: Random,
    /// End of the last step.
    now: Moment,
    tracked: HashMap<RequestId, Tracked>,
    next_request: RequestId,
}

/// What the server remembers of a request in the engine.
#[derive(Debug)]
struct Tracked {
    mailbox: Arc<Mailbox>,
    arrived: Moment,
    admitted: Moment,
    first: Option<Moment>,
    last: Moment,
    prompt_tokens: u32,
    output_tokens: u32,
    stops: bool,
    /// Only if somebody wants to know.
    content: Option<Content>,
}

/// What is asked of the engine.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) tokens: &'a [u32],
    pub(super) output_tokens: u32,
    pub(super) output_seed: u64,
    pub(super) adapter: Option<AdapterId>,
    /// Whether the end counts as a natural one rather than the limit.
    pub(super) stops: bool,
}

/// A failure drawn for one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// Served.
    Serve,
    /// Answered with an error at once.
    Error,
    /// Never answered.
    Stall,
    /// Broken off after the first tokens.
    Break,
}

#[derive(Debug)]
struct Clock {
    origin: Instant,
    scale: f64,
}

impl Clock {
    fn now(&self) -> Moment {
        let us = self.origin.elapsed().as_secs_f64() * 1e6 / self.scale;
        Moment::from_micros(us as u64)
    }

    fn real(&self, moment: Moment) -> Instant {
        self.origin + Duration::from_secs_f64(moment.as_micros() as f64 / 1e6 * self.scale)
    }
}

impl Shared {
    pub(super) fn new(config: SimConfig, mut engine: Engine, tokenizer: Tokenizer) -> Self {
        let publisher = config.kv_events.clone();
        let publisher = publisher.map(|kv| Arc::new(Publisher::new(kv)));
        if publisher.is_some() {
            engine.note_cache_changes();
        }
        let adapters: BTreeMap<String, AdapterId> = config
            .adapters
            .iter()
            .cloned()
            .zip(1..)
            .take(ADAPTERS_MAX)
            .collect();
        let core = Core {
            next_adapter: adapters.len() as AdapterId + 1,
            adapters,
            failures: config.failures,
            random: Random::new(config.seed),
            engine,
            metrics: Metrics::default(),
            now: Moment::ORIGIN,
            tracked: HashMap::new(),
            next_request: 1,
        };
        let clock = Clock {
            origin: Instant::now(),
            scale: config.time_scale.max(1e-6),
        };
        Self {
            config,
            tokenizer,
            publisher,
            core: Mutex::new(core),
            work: Notify::new(),
            clock,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic elsewhere must not take the server down with it; the engine checks its own state.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a request into the engine.
    pub(super) fn submit(self: &Arc<Self>, work: &Work<'_>) -> Result<Ticket, SubmitError> {
        let salt = work.adapter.map_or(0, |adapter| mix(u64::from(adapter)));
        let prompt = Prompt::from_tokens(work.tokens, salt);
        let prompt_tokens = prompt.tokens;
        let arrived = self.clock.now();
        let mailbox = Arc::new(Mailbox::default());
        let mut core = self.lock();
        let id = core.next_request;
        let submitted = core.engine.submit(Request {
            id,
            prompt,
            output_tokens: work.output_tokens,
            output_seed: work.output_seed,
            adapter: work.adapter,
        });
        if matches!(submitted, Err(SubmitError::Full { .. })) {
            core.metrics.rejected += 1;
        }
        submitted?;
        core.next_request += 1;
        let content = self.publisher.as_ref().map(|_| Content {
            tokens: work.tokens.into(),
            output_seed: work.output_seed,
            adapter: work.adapter.and_then(|id| core.adapter_name(id)),
        });
        core.tracked.insert(
            id,
            Tracked {
                mailbox: Arc::clone(&mailbox),
                arrived,
                admitted: arrived,
                first: None,
                last: arrived,
                prompt_tokens,
                output_tokens: work.output_tokens,
                stops: work.stops,
                content,
            },
        );
        drop(core);
        self.work.notify_one();
        Ok(Ticket {
            shared: Arc::clone(self),
            id,
            mailbox,
            finished: false,
        })
    }

    /// Takes a request out of the engine, if it is still there.
    pub(super) fn abort(&self, id: RequestId) {
        let mut core = self.lock();
        core.engine.abort(id);
        if core.tracked.remove(&id).is_some() {
            core.metrics.aborted += 1;
        }
    }

    /// The metrics page.
    pub(super) fn metrics_page(&self) -> String {
        let core = self.lock();
        let load = core.engine.load();
        let names = |ids: &std::collections::BTreeSet<AdapterId>| {
            let known = core.adapters.iter().filter(|(_, id)| ids.contains(id));
            known
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>()
                .join(",")
        };
        let (running, waiting) = (names(&load.running_adapters), names(&load.waiting_adapters));
        core.metrics.render(&Page {
            model: &self.config.models[0],
            settings: core.engine.settings(),
            load: &load,
            totals: core.engine.totals(),
            running_adapters: &running,
            waiting_adapters: &waiting,
            unix_s: unix_time().as_secs_f64(),
        })
    }

    /// Runs steps until `shutdown`.
    pub(super) async fn drive(&self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        loop {
            let step = self.begin_step();
            let waited = match &step {
                Some(report) => self.sleep(report.ends_at, &mut shutdown).await,
                None => tokio::select! {
                    () = self.work.notified() => true,
                    () = &mut shutdown => false,
                },
            };
            if !waited {
                return;
            }
            self.end_step(step);
        }
    }

    fn begin_step(&self) -> Option<StepReport> {
        let mut core = self.lock();
        let step = core.begin_step();
        if let Some(publisher) = &self.publisher {
            let changes = core.engine.take_cache_changes();
            let content = |id| core.tracked.get(&id).and_then(|own| own.content.clone());
            publisher.publish(&changes, content);
        }
        step
    }

    /// Waits until the real clock reaches `until`; false if it is time to stop.
    async fn sleep(
        &self,
        until: Moment,
        shutdown: &mut (impl Future<Output = ()> + Unpin),
    ) -> bool {
        let real = self.clock.real(until);
        if real <= Instant::now() {
            // Behind, or simulated time runs faster than timers can: let connections have a turn.
            tokio::select! {
                biased;
                () = &mut *shutdown => return false,
                () = tokio::task::yield_now() => return true,
            }
        }
        tokio::select! {
            () = tokio::time::sleep_until(real.into()) => true,
            () = shutdown => false,
        }
    }

    /// Hands out what the step gave; after an idle time, virtual time continues at the present.
    fn end_step(&self, step: Option<StepReport>) {
        let real_now = self.clock.now();
        let mut core = self.lock();
        let Some(report) = step else {
            core.now = core.now.max(real_now);
            return;
        };
        let wakers = core.end_step(&report);
        let lag = real_now.since(core.now);
        if lag > LAG_MAX.div_f64(self.clock.scale) {
            core.metrics.skipped_us += u64::try_from(lag.as_micros()).unwrap_or(u64::MAX);
            core.now = real_now;
        }
        drop(core);
        for waker in wakers {
            waker.wake();
        }
    }
}

impl Core {
    /// Draws what happens to the next request.
    pub(super) fn draw_fate(&mut self) -> Fate {
        let Failures {
            error_rate,
            stall_rate,
            break_rate,
            ..
        } = self.failures;
        let mut drawn = self.random.unit();
        for (rate, fate) in [
            (error_rate, Fate::Error),
            (stall_rate, Fate::Stall),
            (break_rate, Fate::Break),
        ] {
            if drawn < rate {
                return fate;
            }
            drawn -= rate;
        }
        Fate::Serve
    }

    fn adapter_name(&self, id: AdapterId) -> Option<Arc<str>> {
        let named = self.adapters.iter().find(|(_, own)| **own == id);
        named.map(|(name, _)| name.as_str().into())
    }

    /// Makes an adapter known; false if there are too many.
    pub(super) fn load_adapter(&mut self, name: &str) -> bool {
        if self.adapters.contains_key(name) {
            return true;
        }
        if self.adapters.len() >= ADAPTERS_MAX {
            return false;
        }
        self.adapters.insert(name.to_owned(), self.next_adapter);
        self.next_adapter += 1;
        true
    }

    fn begin_step(&mut self) -> Option<StepReport> {
        let report = self.engine.step(self.now)?;
        for admitted in &report.admitted {
            if let Some(tracked) = self.tracked.get_mut(&admitted.id) {
                tracked.admitted = self.now.max(tracked.arrived);
                tracked.mailbox.note_cached(admitted.cached_tokens);
            }
        }
        Some(report)
    }

    /// Hands out the tokens of a step; who must be told.
    fn end_step(&mut self, report: &StepReport) -> Vec<Waker> {
        self.now = report.ends_at;
        self.metrics.step_tokens.observe(f64::from(report.tokens));
        let mut wakers = Vec::with_capacity(report.emitted.len());
        for id in &report.emitted {
            let Some(tracked) = self.tracked.get_mut(id) else {
                continue; // aborted while the step ran
            };
            match tracked.first {
                None => {
                    tracked.first = Some(self.now);
                    self.metrics
                        .first_token
                        .observe_time(self.now.since(tracked.arrived));
                }
                Some(_) => {
                    self.metrics
                        .inter_token
                        .observe_time(self.now.since(tracked.last));
                }
            }
            tracked.last = self.now;
            let waker = tracked.mailbox.update(|progress| {
                progress.delivered += 1;
                progress.finished = progress.delivered == tracked.output_tokens;
            });
            wakers.extend(waker);
        }
        for id in &report.finished {
            if let Some(tracked) = self.tracked.remove(id) {
                self.record(&tracked);
            }
        }
        wakers
    }

    fn record(&mut self, done: &Tracked) {
        let first = done.first.unwrap_or(done.last);
        let metrics = &mut self.metrics;
        metrics
            .end_to_end
            .observe_time(done.last.since(done.arrived));
        metrics
            .queue
            .observe_time(done.admitted.since(done.arrived));
        metrics.prefill.observe_time(first.since(done.admitted));
        metrics.decode.observe_time(done.last.since(first));
        metrics
            .inference
            .observe_time(done.last.since(done.admitted));
        if done.output_tokens > 1 {
            let each = done
                .last
                .since(first)
                .div_f64(f64::from(done.output_tokens - 1));
            metrics.per_output_token.observe_time(each);
        }
        metrics.prompt_tokens.observe(f64::from(done.prompt_tokens));
        metrics
            .generation_tokens
            .observe(f64::from(done.output_tokens));
        if done.stops {
            metrics.stopped += 1;
        } else {
            metrics.ran_to_length += 1;
        }
    }
}

/// Time since 1970, for fields that clients expect.
pub(super) fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
