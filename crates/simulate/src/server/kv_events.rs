//! What the cache holds, told to whoever subscribes: KV cache events over ZMQ, as vLLM publishes
//! them, with replay of what was missed.
//!
//! A thread of the driver hands changes in while it has the engine's lock; everything that touches
//! a socket is in tasks of its own. A subscriber that does not read loses batches, as ZeroMQ has it:
//! at [`QUEUED_MAX`]. `POST /sim/kv-events` makes gaps on purpose.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use forebay_zmtp::codec::Incoming;
use forebay_zmtp::{Connection, ConnectionError, Limits, Role};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::state::unix_time;
use crate::engine::tokens::output_token;
use crate::engine::{BLOCK_TOKENS, CacheChange, RequestId, StoredBlock};

/// Batches kept for replay, as vLLM's `buffer_steps`.
const KEPT_MAX: usize = 10_000;
/// Batches that wait for one subscriber; further ones are lost on it.
const QUEUED_MAX: usize = 100_000;
/// What a peer may send here: subscriptions and numbers.
const LIMITS: Limits = Limits {
    message_bytes: 4096,
    frames: 8,
};
/// The number that ends a replay.
const END: [u8; 8] = u64::MAX.to_be_bytes();

/// How events are published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvEvents {
    /// Port of the publisher, on the server's address.
    pub port: u16,
    /// Port of the replay.
    pub replay_port: u16,
    /// The topic that batches have.
    pub topic: String,
    /// How they are encoded.
    pub format: KvFormat,
}

/// How batches are encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KvFormat {
    /// Batch and events as maps: vLLM since 0.32.
    #[default]
    Map,
    /// As arrays: older vLLM, and SGLang.
    Array,
}

/// Gaps on purpose.
#[derive(Clone, Copy, Default, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Losses {
    /// So many batches to come are kept for replay and not sent.
    drop: u32,
    /// Forget all that is kept for replay.
    forget: bool,
}

/// What a request in the engine is made of.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) tokens: Arc<[u32]>,
    pub(super) output_seed: u64,
    pub(super) adapter: Option<Arc<str>>,
}

/// The publisher.
#[derive(Debug)]
pub(super) struct Publisher {
    settings: KvEvents,
    shared: Mutex<Outgoing>,
}

#[derive(Debug, Default)]
struct Outgoing {
    next: u64,
    kept: VecDeque<(u64, Bytes)>,
    subscribers: Vec<mpsc::Sender<(u64, Bytes)>>,
    losses: Losses,
}

impl Publisher {
    pub(super) fn new(settings: KvEvents) -> Self {
        Self {
            settings,
            shared: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes changes as one batch.
    pub(super) fn publish(
        &self,
        changes: &[CacheChange],
        content: impl Fn(RequestId) -> Option<Content>,
    ) {
        if changes.is_empty() {
            return;
        }
        let events = events(changes, content);
        let payload = encode(&events, self.settings.format);
        let mut out = self.lock();
        let number = out.next;
        out.next += 1;
        let payload = Bytes::from(payload);
        if out.kept.len() == KEPT_MAX {
            out.kept.pop_front();
        }
        out.kept.push_back((number, payload.clone()));
        if out.losses.drop > 0 {
            out.losses.drop -= 1;
            return;
        }
        out.subscribers.retain(|subscriber| {
            // Full: the batch is lost on it; closed: it is gone.
            let sent = subscriber.try_send((number, payload.clone()));
            !matches!(sent, Err(mpsc::error::TrySendError::Closed(_)))
        });
    }

    /// Loses batches on purpose.
    pub(super) fn lose(&self, losses: Losses) {
        let mut out = self.lock();
        if losses.forget {
            out.kept.clear();
        }
        out.losses.drop = losses.drop;
    }

    /// Serves subscribers and those who ask for a replay, until dropped.
    pub(super) async fn serve(self: Arc<Self>, events: TcpListener, replay: TcpListener) {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let own = Arc::clone(&self);
            // A connection that fails concerns its peer alone.
            tokio::select! {
                Ok((stream, _)) = events.accept() => {
                    connections.spawn(async move { drop(own.subscriber(stream).await) });
                }
                Ok((stream, _)) = replay.accept() => {
                    connections.spawn(async move { drop(own.replayer(stream).await) });
                }
                Some(_ended) = connections.join_next() => {}
            }
        }
    }

    async fn subscriber(&self, stream: TcpStream) -> Result<(), ConnectionError> {
        stream.set_nodelay(true)?;
        let mut connection = Connection::handshake(stream, Role::Publisher, LIMITS).await?;
        let topic = self.settings.topic.as_bytes();
        let mut wanted = false;
        while !wanted {
            if let Incoming::Subscribe { topic: begins, .. } = connection.incoming().await? {
                wanted = topic.starts_with(&begins);
            }
        }
        let (sender, mut batches) = mpsc::channel(QUEUED_MAX);
        self.lock().subscribers.push(sender);
        loop {
            tokio::select! {
                batch = batches.recv() => {
                    let Some((number, payload)) = batch else {
                        return Ok(());
                    };
                    connection.send(&[topic, &number.to_be_bytes(), &payload]).await?;
                }
                ended = connection.incoming() => drop(ended?),
            }
        }
    }

    async fn replayer(&self, stream: TcpStream) -> Result<(), ConnectionError> {
        stream.set_nodelay(true)?;
        let mut connection = Connection::handshake(stream, Role::Router, LIMITS).await?;
        loop {
            let message = connection.message().await?;
            let [empty, from] = message.as_slice() else {
                continue;
            };
            if !empty.is_empty() {
                continue;
            }
            let from = from.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
            let kept: Vec<(u64, Bytes)> = {
                let out = self.lock();
                let asked = out.kept.iter().filter(|(number, _)| *number >= from);
                asked.cloned().collect()
            };
            for (number, payload) in kept {
                connection
                    .send(&[b"", &number.to_be_bytes(), &payload])
                    .await?;
            }
            connection.send(&[b"", &END, b""]).await?;
        }
    }
}

/// An event before it is encoded.
#[derive(Clone, Debug)]
enum Event {
    Stored {
        hashes: Vec<u64>,
        parent: Option<u64>,
        tokens: Vec<u32>,
        adapter: Option<Arc<str>>,
        last: StoredBlock,
    },
    Removed {
        hashes: Vec<u64>,
    },
}

/// Blocks of one request that follow each other make one event, and so do removals.
fn events(changes: &[CacheChange], content: impl Fn(RequestId) -> Option<Content>) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let mut contents: HashMap<RequestId, Option<Content>> = HashMap::new();
    for change in changes {
        match (*change, events.last_mut()) {
            (CacheChange::Removed { hash }, Some(Event::Removed { hashes })) => hashes.push(hash),
            (CacheChange::Removed { hash }, _) => {
                let hashes = vec![hash];
                events.push(Event::Removed { hashes });
            }
            (CacheChange::Stored(stored), before) => {
                let own = contents.entry(stored.request);
                let Some(own) = own.or_insert_with(|| content(stored.request)) else {
                    continue; // gone within the step: its block tells nothing that can be read
                };
                let new = block_tokens(stored.position, own);
                match before {
                    Some(Event::Stored {
                        hashes,
                        tokens,
                        last,
                        ..
                    }) if last.request == stored.request
                        && last.position + 1 == stored.position =>
                    {
                        hashes.push(stored.hash);
                        tokens.extend(new);
                        *last = stored;
                    }
                    _ => events.push(Event::Stored {
                        hashes: vec![stored.hash],
                        parent: stored.parent,
                        tokens: new.collect(),
                        adapter: own.adapter.clone(),
                        last: stored,
                    }),
                }
            }
        }
    }
    events
}

fn block_tokens(position: u32, content: &Content) -> impl Iterator<Item = u32> {
    let first = position * BLOCK_TOKENS;
    (first..first + BLOCK_TOKENS).map(|at| match content.tokens.get(at as usize) {
        Some(token) => *token,
        None => output_token(content.output_seed, at - content.tokens.len() as u32),
    })
}

fn encode(events: &[Event], format: KvFormat) -> Vec<u8> {
    let mut out = Packer(Vec::new());
    let seconds = unix_time().as_secs_f64();
    match format {
        KvFormat::Map => {
            out.map(3);
            out.text("ts");
            out.float(seconds);
            out.text("events");
            out.array(events.len());
            events.iter().for_each(|event| event.pack_map(&mut out));
            out.text("data_parallel_rank");
            out.unsigned(0);
        }
        KvFormat::Array => {
            out.array(3);
            out.float(seconds);
            out.array(events.len());
            events.iter().for_each(|event| event.pack_array(&mut out));
            out.unsigned(0);
        }
    }
    out.0
}

impl Event {
    fn pack_map(&self, out: &mut Packer) {
        match self {
            Self::Removed { hashes } => {
                out.map(3);
                out.text("type");
                out.text("BlockRemoved");
                out.text("block_hashes");
                out.hashes(hashes);
                out.text("medium");
                out.text("GPU");
            }
            Self::Stored {
                hashes,
                parent,
                tokens,
                adapter,
                ..
            } => {
                out.map(9);
                out.text("type");
                out.text("BlockStored");
                out.text("block_hashes");
                out.hashes(hashes);
                out.text("parent_block_hash");
                out.optional(*parent);
                out.text("token_ids");
                out.tokens(tokens);
                out.text("block_size");
                out.unsigned(u64::from(BLOCK_TOKENS));
                out.text("lora_id");
                out.nil();
                out.text("medium");
                out.text("GPU");
                out.text("lora_name");
                out.optional_text(adapter.as_deref());
                out.text("extra_keys");
                out.extra_keys(hashes.len(), adapter.as_deref());
            }
        }
    }

    fn pack_array(&self, out: &mut Packer) {
        match self {
            Self::Removed { hashes } => {
                out.array(3);
                out.text("BlockRemoved");
                out.hashes(hashes);
                out.text("GPU");
            }
            Self::Stored {
                hashes,
                parent,
                tokens,
                adapter,
                ..
            } => {
                out.array(8);
                out.text("BlockStored");
                out.hashes(hashes);
                out.optional(*parent);
                out.tokens(tokens);
                out.unsigned(u64::from(BLOCK_TOKENS));
                out.nil();
                out.text("GPU");
                out.optional_text(adapter.as_deref());
            }
        }
    }
}

/// msgpack, as much as events need of it.
struct Packer(Vec<u8>);

impl Packer {
    fn head(&mut self, short: u8, long: u8, len: usize) {
        match u8::try_from(len) {
            Ok(len @ 0..16) => self.0.push(short | len),
            _ => {
                self.0.push(long);
                self.0.extend((len as u32).to_be_bytes());
            }
        }
    }

    fn array(&mut self, len: usize) {
        self.head(0x90, 0xdd, len);
    }

    fn map(&mut self, len: usize) {
        self.head(0x80, 0xdf, len);
    }

    fn text(&mut self, text: &str) {
        self.0.push(0xdb);
        self.0.extend((text.len() as u32).to_be_bytes());
        self.0.extend(text.as_bytes());
    }

    fn unsigned(&mut self, number: u64) {
        match u8::try_from(number) {
            Ok(small @ 0..0x80) => self.0.push(small),
            _ => {
                self.0.push(0xcf);
                self.0.extend(number.to_be_bytes());
            }
        }
    }

    fn float(&mut self, number: f64) {
        self.0.push(0xcb);
        self.0.extend(number.to_be_bytes());
    }

    fn nil(&mut self) {
        self.0.push(0xc0);
    }

    fn optional(&mut self, number: Option<u64>) {
        match number {
            Some(number) => self.unsigned(number),
            None => self.nil(),
        }
    }

    fn optional_text(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.text(text),
            None => self.nil(),
        }
    }

    fn hashes(&mut self, hashes: &[u64]) {
        self.array(hashes.len());
        hashes.iter().for_each(|hash| self.unsigned(*hash));
    }

    fn tokens(&mut self, tokens: &[u32]) {
        self.array(tokens.len());
        tokens
            .iter()
            .for_each(|token| self.unsigned(u64::from(*token)));
    }

    /// The adapter's name with each block, as vLLM has it; nil without one.
    fn extra_keys(&mut self, blocks: usize, adapter: Option<&str>) {
        let Some(adapter) = adapter else {
            self.nil();
            return;
        };
        self.array(blocks);
        for _ in 0..blocks {
            self.array(1);
            self.text(adapter);
        }
    }
}
