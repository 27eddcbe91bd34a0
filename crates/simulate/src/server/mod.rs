//! `forebay sim`: a model server without a model. It speaks vLLM's API and metrics and answers as
//! fast as the engine of its profile would, with made-up text.
//!
//! Everything it answers is labelled as simulated (`server: forebay-sim`, `x-sim: forebay`,
//! `system_fingerprint: simulated`). Routes are in `routes.rs`, the engine's driver in `state.rs`,
//! request and answer formats in `ask.rs` and `dialect.rs`.

mod ask;
mod body;
mod dialect;
mod error;
mod kv_events;
mod metrics;
mod routes;
mod state;
mod tools;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_tokenize::{Files, Tokenizer};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::engine::{Engine, Settings};
use crate::profile::{self, ProfileError};
pub use kv_events::{KvEvents, KvFormat};
use state::Shared;

/// Connections at a time; further ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 8192;
/// How long running answers may take to end after the shutdown began.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How often to look whether they have.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// A pause after an error of accept(2): being out of descriptors does not mend by trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How the server is started. Fields that are `None` take the profile's or vLLM's value.
#[derive(Clone, PartialEq, Debug)]
pub struct SimConfig {
    /// Name of the profile ([`profile::names`]).
    pub profile: String,
    /// Names that the model goes by, the first one in metrics; empty takes the profile's model.
    pub models: Vec<String>,
    /// Seed of output texts, jitter and injected failures.
    pub seed: u64,
    /// Real seconds per simulated second: 0.1 is ten times as fast.
    pub time_scale: f64,
    /// Sequences in one batch.
    pub max_num_seqs: u32,
    /// New tokens in one step.
    pub max_num_batched_tokens: u32,
    /// KV blocks, instead of what the profile's memory holds.
    pub kv_blocks: Option<u32>,
    /// Longest context, in tokens.
    pub max_model_len: Option<u32>,
    /// Requests in flight; one more gets a 503 (`--max-num-queued-reqs`).
    pub max_num_queued_reqs: u32,
    /// LoRA adapters known from the start.
    pub adapters: Vec<String>,
    /// Adapters in one batch; 0 turns adapters off.
    pub max_loras: u32,
    /// Relative deviation of step times; 0 is none.
    pub step_jitter: f64,
    /// Failures from the start; `POST /sim/failures` changes them.
    pub failures: Failures,
    /// Publish what the cache holds.
    pub kv_events: Option<KvEvents>,
    /// Folder with a model's `tokenizer.json`; `None` takes four bytes for a token.
    pub tokenizer: Option<PathBuf>,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            profile: "rtxpro6000-llama-3.1-8b-tp1".to_owned(),
            models: Vec::new(),
            seed: 0,
            time_scale: 1.0,
            max_num_seqs: 128,
            max_num_batched_tokens: 2048,
            kv_blocks: None,
            max_model_len: None,
            max_num_queued_reqs: 8192,
            adapters: Vec::new(),
            max_loras: 0,
            step_jitter: 0.0,
            failures: Failures::default(),
            kv_events: None,
            tokenizer: None,
        }
    }
}

/// Failures on purpose: shares of generating requests, 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Failures {
    /// Answered with `error_status` at once.
    pub error_rate: f64,
    /// The status.
    pub error_status: u16,
    /// Never answered.
    pub stall_rate: f64,
    /// Streams that break off after `break_after_tokens`.
    pub break_rate: f64,
    /// See `break_rate`.
    pub break_after_tokens: u32,
    /// Whether `/health` says that the engine is dead.
    pub unhealthy: bool,
}

impl Default for Failures {
    fn default() -> Self {
        Self {
            error_rate: 0.0,
            error_status: 500,
            stall_rate: 0.0,
            break_rate: 0.0,
            break_after_tokens: 1,
            unhealthy: false,
        }
    }
}

/// Why the server does not start.
#[derive(Debug)]
pub enum SimError {
    /// The profile.
    Profile(ProfileError),
    /// A setting that makes no sense.
    Setting(&'static str),
    /// The tokenizer's files.
    Tokenizer(String),
    /// The socket.
    Io(std::io::Error),
}

impl fmt::Display for SimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Profile(error) => error.fmt(f),
            Self::Tokenizer(problem) => f.write_str(problem),
            Self::Setting(problem) => f.write_str(problem),
            Self::Io(error) => write!(f, "the server's sockets: {error}"),
        }
    }
}

impl std::error::Error for SimError {}

/// Names of the profiles that [`SimConfig::profile`] may name.
#[must_use]
pub fn profiles() -> Vec<&'static str> {
    profile::names()
}

/// Serves on `listener` until `shutdown`, then lets running answers end for a few seconds.
///
/// # Errors
/// If the profile is unknown or a setting makes no sense.
pub async fn serve(
    config: SimConfig,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), SimError> {
    let kv_sockets = match &config.kv_events {
        None => None,
        Some(kv) => {
            let ip = listener.local_addr().map_err(SimError::Io)?.ip();
            let bind = async |port| TcpListener::bind((ip, port)).await.map_err(SimError::Io);
            Some((bind(kv.port).await?, bind(kv.replay_port).await?))
        }
    };
    let shared = Arc::new(start(config)?);
    let publisher = shared.publisher.clone().zip(kv_sockets);
    let publishing = publisher
        .map(|(publisher, (events, replay))| tokio::spawn(publisher.serve(events, replay)));
    let (stop, stopped) = watch::channel(false);
    let driver = {
        let (shared, mut stopped) = (Arc::clone(&shared), stopped.clone());
        tokio::spawn(async move {
            let stop = Box::pin(async move {
                let _sender_gone = stopped.wait_for(|stopped| *stopped).await;
            });
            shared.drive(stop).await;
        })
    };
    let mut connections = JoinSet::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accepted = tokio::select! {
        accepted = accept(&shared, &listener, &mut connections, &slots) => accepted,
        () = shutdown => Ok(()),
    };
    // Running answers end at the engine's pace; whoever is still busy then is cut off.
    let _late = tokio::time::timeout(DRAIN_MAX, drained(&shared)).await;
    stop.send_replace(true);
    connections.shutdown().await;
    let _driver_result = driver.await;
    if let Some(publishing) = publishing {
        publishing.abort();
    }
    accepted
}

/// Checks the configuration and makes the engine.
fn start(mut config: SimConfig) -> Result<Shared, SimError> {
    let profile = profile::named(&config.profile).map_err(SimError::Profile)?;
    if !(config.time_scale.is_finite() && config.time_scale > 0.0) {
        return Err(SimError::Setting("time scale must be a number above 0"));
    }
    if !config.adapters.is_empty() && config.max_loras == 0 {
        return Err(SimError::Setting("adapters need max_loras of at least 1"));
    }
    if config.models.is_empty() {
        config.models.push(profile.model.clone());
    }
    let defaults = Settings::of(&profile);
    let settings = Settings {
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
        kv_blocks: config.kv_blocks.unwrap_or(defaults.kv_blocks),
        max_model_len: config.max_model_len.unwrap_or(defaults.max_model_len),
        max_loras: config.max_loras,
        requests_max: config.max_num_queued_reqs,
        step_jitter: config.step_jitter,
        ..defaults
    };
    let engine = Engine::new(profile, settings, config.seed);
    let tokenizer = match &config.tokenizer {
        None => Tokenizer::Simulated,
        Some(folder) => tokenizer(folder).map_err(SimError::Tokenizer)?,
    };
    Ok(Shared::new(config, engine, tokenizer))
}

/// The tokenizer of a model's files.
fn tokenizer(folder: &Path) -> Result<Tokenizer, String> {
    let read = |name: &str| std::fs::read(folder.join(name));
    let tokenizer = read("tokenizer.json")
        .map_err(|error| format!("{}/tokenizer.json: {error}", folder.display()))?;
    let config = read("tokenizer_config.json").ok();
    let template = std::fs::read_to_string(folder.join("chat_template.jinja")).ok();
    let files = Files {
        tokenizer: &tokenizer,
        config: config.as_deref(),
        template: template.as_deref(),
    };
    Tokenizer::of_files(files).map_err(|error| format!("{}: {error}", folder.display()))
}

async fn accept(
    shared: &Arc<Shared>,
    listener: &TcpListener,
    connections: &mut JoinSet<()>,
    slots: &Arc<Semaphore>,
) -> Result<(), SimError> {
    loop {
        let slot = Arc::clone(slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        // Tokens are small and must not wait for more (Nagle).
        stream.set_nodelay(true).map_err(SimError::Io)?;
        let shared = Arc::clone(shared);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(routes::answer(&shared, request).await) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            // A connection that fails concerns its client alone, who sees it.
            let _client_gone = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(slot);
        });
    }
}

/// Waits until no request is in the engine.
async fn drained(shared: &Shared) {
    while !shared.lock().engine.is_idle() {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}
