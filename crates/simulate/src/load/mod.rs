//! Load: sends a [`Workload`] of chat requests to a base URL and measures what users would feel.
//!
//! In a closed loop a number of users ask one after the other; in an open loop conversations start as
//! a Poisson process, however slow the server is. Within a conversation a turn is sent once the
//! answer before it has come and its user has thought about it. The client's own lag is part of the
//! summary: a run in which it is not small measured the client.

mod client;
mod distribution;
mod summary;
mod workload;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::engine::tokens::{Random, mix};
use client::{Answer, Client};
pub use distribution::Distribution;
pub use summary::{Failure, Summary, Times};
pub use workload::{Conversation, Mixed, SharedPrefix, Turn, Workload};

/// When conversations start.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Arrivals {
    /// So many users, each starting the next conversation when one has ended.
    Closed {
        /// Users.
        concurrency: u32,
    },
    /// At random moments, so many a second on average.
    Poisson {
        /// Conversations per second.
        per_s: f64,
        /// Conversations at a time; an arrival beyond it is dropped and counted as a timeout.
        in_flight_max: u32,
    },
}

/// One run.
#[derive(Clone, PartialEq, Debug)]
pub struct LoadConfig {
    /// Such as `http://127.0.0.1:8080`.
    pub base_url: String,
    /// Model to ask for.
    pub model: String,
    /// What is asked.
    pub workload: Workload,
    /// When.
    pub arrivals: Arrivals,
    /// Conversations in all.
    pub conversations: u64,
    /// No request is sent after this time; conversations under way end there.
    pub duration_max: Duration,
    /// A request without an end by then has failed.
    pub request_timeout: Duration,
    /// Seed of texts and arrivals.
    pub seed: u64,
    /// Headers to add, such as the objective.
    pub headers: Vec<(String, String)>,
    /// How often progress is reported.
    pub progress_every: Duration,
}

/// Why a run cannot start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LoadError {
    /// The base URL, and what is wrong with it.
    BaseUrl(String, String),
    /// A header's name or value.
    Header,
    /// Arrivals that never come.
    Arrivals,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BaseUrl(url, problem) => write!(f, "base URL {url}: {problem}"),
            Self::Header => f.write_str("a header to add is not valid HTTP"),
            Self::Arrivals => f.write_str("arrivals need a rate or concurrency above 0"),
        }
    }
}

impl std::error::Error for LoadError {}

/// What the tasks of a run share.
#[derive(Debug)]
struct Run {
    config: LoadConfig,
    client: Client,
    started: Instant,
    summary: Mutex<Summary>,
}

/// Runs the load to its end. `on_progress` sees the summary so far, every `progress_every`.
///
/// # Errors
/// If the configuration makes no sense. Requests that fail are counted, not errors.
pub async fn run(
    config: LoadConfig,
    mut on_progress: impl FnMut(&Summary),
) -> Result<Summary, LoadError> {
    let client = Client::new(&config.base_url, &config.headers)?;
    let sane = match config.arrivals {
        Arrivals::Closed { concurrency } => concurrency > 0,
        Arrivals::Poisson {
            per_s,
            in_flight_max,
        } => per_s > 0.0 && in_flight_max > 0,
    };
    if !sane {
        return Err(LoadError::Arrivals);
    }
    let every = config.progress_every.max(Duration::from_millis(1));
    let summary = Mutex::default();
    let run = Arc::new(Run {
        config,
        client,
        started: Instant::now(),
        summary,
    });
    let mut load = Box::pin(drive(&run));
    let mut ticks = tokio::time::interval(every);
    loop {
        tokio::select! {
            () = &mut load => break,
            _ = ticks.tick() => on_progress(&run.so_far()),
        }
    }
    let summary = run.so_far();
    on_progress(&summary);
    Ok(summary)
}

async fn drive(run: &Arc<Run>) {
    match run.config.arrivals {
        Arrivals::Closed { concurrency } => closed_loop(run, concurrency).await,
        Arrivals::Poisson {
            per_s,
            in_flight_max,
        } => {
            open_loop(run, per_s, in_flight_max as usize).await;
        }
    }
}

async fn closed_loop(run: &Arc<Run>, concurrency: u32) {
    let mut users = JoinSet::new();
    for user in 0..u64::from(concurrency) {
        let run = Arc::clone(run);
        users.spawn(async move {
            let mine = (user..run.config.conversations).step_by(concurrency as usize);
            for index in mine {
                if run.started.elapsed() >= run.config.duration_max {
                    break;
                }
                run.converse(index).await;
            }
        });
    }
    while users.join_next().await.is_some() {}
}

async fn open_loop(run: &Arc<Run>, per_s: f64, in_flight_max: usize) {
    let mut random = Random::new(mix(run.config.seed) ^ 1);
    let mut users = JoinSet::new();
    let mut planned = run.started;
    for index in 0..run.config.conversations {
        planned += Duration::from_secs_f64(random.exponential() / per_s);
        if planned - run.started >= run.config.duration_max {
            break;
        }
        tokio::time::sleep_until(planned.into()).await;
        while users.try_join_next().is_some() {}
        run.lock().lag.record(planned.elapsed());
        if users.len() >= in_flight_max {
            run.lock().started += 1;
            run.fail(Failure::Timeout);
            continue;
        }
        let run = Arc::clone(run);
        users.spawn(async move { run.converse(index).await });
    }
    while users.join_next().await.is_some() {}
}

impl Run {
    /// One conversation; it ends early if a request fails or the run's time is over.
    async fn converse(&self, index: u64) {
        let conversation = self.config.workload.conversation(self.config.seed, index);
        let mut messages = Vec::new();
        if !conversation.system.is_empty() {
            messages.push(json!({"role": "system", "content": conversation.system}));
        }
        for turn in &conversation.turns {
            if !self.think(turn.think).await {
                return;
            }
            messages.push(json!({"role": "user", "content": turn.question}));
            let body = self.body(&messages, turn.output_tokens);
            self.lock().started += 1;
            let asked = tokio::time::timeout(self.config.request_timeout, self.client.chat(body));
            match asked.await.unwrap_or(Err(Failure::Timeout)) {
                Ok(answer) => {
                    self.record(&answer);
                    messages.push(json!({"role": "assistant", "content": answer.text}));
                }
                Err(failure) => {
                    self.fail(failure);
                    return;
                }
            }
        }
    }

    /// Waits for the next turn of a conversation; false if none may be sent any more by then.
    async fn think(&self, pause: Duration) -> bool {
        let due = Instant::now() + pause;
        let in_time = due - self.started < self.config.duration_max;
        if in_time && !pause.is_zero() {
            tokio::time::sleep_until(due.into()).await;
            self.lock().lag.record(due.elapsed());
        }
        in_time
    }

    fn body(&self, messages: &[Value], output_tokens: u32) -> Bytes {
        let body = json!({
            "model": self.config.model,
            "messages": messages,
            "max_tokens": output_tokens,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        Bytes::from(body.to_string())
    }

    fn record(&self, answer: &Answer) {
        let mut summary = self.lock();
        summary.completed += 1;
        if let Some(ttft) = answer.ttft {
            summary.ttft.record(ttft);
        }
        for gap in &answer.gaps {
            summary.itl.record(*gap);
        }
        summary.e2e.record(answer.e2e);
        summary.output_tokens += answer.output_tokens;
        summary.prompt_tokens += answer.prompt_tokens;
        summary.cached_tokens += answer.cached_tokens;
        summary.count_endpoint(&answer.endpoint);
    }

    fn fail(&self, failure: Failure) {
        *self.lock().failures.entry(failure).or_default() += 1;
    }

    fn so_far(&self) -> Summary {
        let mut summary = self.lock();
        summary.elapsed = self.started.elapsed();
        summary.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Summary> {
        // Numbers only: a panic elsewhere leaves them as they were.
        self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
