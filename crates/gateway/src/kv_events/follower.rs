//! One endpoint's events: subscribe, catch up, follow, and catch up again when something is missing.
//!
//! A publisher numbers its batches and keeps the last of them; what it published before anybody
//! listened, or while nobody could, is asked for. What cannot be had any more is gone for good: then
//! everything that is known of the endpoint's cache is dropped, and said to be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_decide::{Applied, Following};
use forebay_dialect::kv_events::{self, Sequence, Verdict};
use forebay_zmtp::{Connection, ConnectionError, Limits, Message, Role};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::Source;
use crate::pools::PoolRuntime;
use crate::shared::Shared;

/// What a publisher may send in one message: a batch of a hundred thousand tokens takes half a
/// megabyte.
const LIMITS: Limits = Limits {
    message_bytes: 8 << 20,
    frames: 4,
};
/// How long connecting and shaking hands may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a replay may be silent.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(5);
/// Batches that one replay may have; publishers keep 10,000 unless told otherwise.
const REPLAY_MAX: usize = 1 << 20;
/// How long an endpoint may be unheard before what it said is dropped.
const DEAF_MAX: Duration = Duration::from_secs(5);
/// After this long without a batch it is asked whether there was one: the last message before a
/// silence may be lost without a gap to show for it.
const ASK_AFTER: Duration = Duration::from_secs(10);
/// Pause before the first try to connect again; it doubles up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Blocks taken in under one hold of the pool's lock, so that picks are not kept waiting: some tens of
/// microseconds.
const BLOCKS_AT_ONCE: usize = 256;
/// The number that ends a replay.
const END: u64 = u64::MAX;

/// Follows one endpoint.
#[derive(Debug)]
pub(super) struct Follower {
    address: SocketAddr,
    source: Source,
    runtime: Arc<PoolRuntime>,
    shared: Arc<Shared>,
    sequence: Sequence,
    /// When the connection was last in order.
    heard: Instant,
    /// A failure has been logged, and nothing better since.
    complained: bool,
}

/// Why the publisher is asked for what was missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Occasion {
    /// A connection was made: the publisher may be another one than before, which would number its
    /// batches alike.
    Connected,
    /// Something is missing.
    Gap,
    /// Nothing has come for a while; perhaps there was nothing.
    Silence,
}

/// Why a session ended.
#[derive(Debug)]
enum Fault {
    Connection(ConnectionError),
    /// The peer took too long.
    Timeout(&'static str),
    /// A message that is not what publishers send.
    Message(&'static str),
}

impl From<ConnectionError> for Fault {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connection(error) => error.fmt(f),
            Self::Timeout(what) => write!(f, "{what} took too long"),
            Self::Message(what) => f.write_str(what),
        }
    }
}

impl Follower {
    pub(super) fn new(
        address: SocketAddr,
        source: Source,
        runtime: &Arc<PoolRuntime>,
        shared: &Arc<Shared>,
    ) -> Self {
        Self {
            address,
            source,
            runtime: Arc::clone(runtime),
            shared: Arc::clone(shared),
            sequence: Sequence::default(),
            heard: Instant::now(),
            complained: false,
        }
    }

    /// Follows until dropped.
    pub(super) async fn run(mut self) {
        if let Some(copy) = self.shared.peers.take(&self.runtime.name, self.address) {
            // Whether the publisher is still the one that it was made of shows when it is asked for
            // the last batch.
            self.runtime.state().kv_restore(self.address, &copy);
            self.sequence = Sequence::from_mark(copy.mark);
        }
        let mut pause = PAUSE_MIN;
        loop {
            let began = Instant::now();
            let fault = match self.session().await {
                Ok(never) => match never {},
                Err(fault) => fault,
            };
            if self.heard > began {
                pause = PAUSE_MIN;
            }
            if !self.complained {
                self.complained = true;
                let (pool, endpoint) = (&self.runtime.name, self.address);
                let port = self.source.events;
                tracing::warn!(%pool, %endpoint, %port, "KV events are not heard: {fault}");
                self.interrupted("unheard");
            }
            if self.heard.elapsed() > DEAF_MAX {
                self.lose("unheard for too long");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// From connecting until something breaks.
    async fn session(&mut self) -> Result<std::convert::Infallible, Fault> {
        let mut events = connect(self.source.events, Role::Subscriber).await?;
        events.subscribe(self.source.topic.as_bytes()).await?;
        // What was published before the subscription arrived is asked for on the other port; what
        // comes here meanwhile waits in the socket.
        self.catch_up(Occasion::Connected).await?;
        loop {
            self.heard = Instant::now();
            let Ok(message) = timeout(ASK_AFTER, events.message()).await else {
                self.catch_up(Occasion::Silence).await?;
                continue;
            };
            if self.complained {
                self.complained = false;
                tracing::info!(pool = %self.runtime.name, endpoint = %self.address,
                    "KV events are heard");
            }
            let (number, payload) = numbered(&message?, 1)?;
            self.batch(number, &payload).await?;
        }
    }

    /// Takes in a batch that was published just now.
    async fn batch(&mut self, number: u64, payload: &Bytes) -> Result<(), Fault> {
        if !self.followed() {
            // Somebody else dropped what is known: the endpoint went away, or the pool changed.
            self.sequence.reset();
            self.catch_up(Occasion::Gap).await?;
        }
        match self.sequence.judge(number, payload) {
            Verdict::Seen => return Ok(()),
            Verdict::Next => return self.next(number, payload),
            Verdict::Gap { .. } => {
                self.interrupted("gap");
                self.catch_up(Occasion::Gap).await?;
            }
            Verdict::Restarted => {
                self.begin_anew("restarted");
                self.catch_up(Occasion::Gap).await?;
            }
        }
        match self.sequence.judge(number, payload) {
            Verdict::Seen => Ok(()),
            Verdict::Next => self.next(number, payload),
            Verdict::Gap { .. } | Verdict::Restarted => {
                self.begin_anew("batches are missing for good");
                self.resume(number, payload)
            }
        }
    }

    /// Asks for what was missed since the last batch that is known, or for all there is.
    async fn catch_up(&mut self, occasion: Occasion) -> Result<(), Fault> {
        if !self.followed() {
            self.sequence.reset();
        }
        let Some(replay) = self.source.replay else {
            if occasion == Occasion::Connected {
                // Whether the last connection lost something cannot be known.
                self.begin_anew("there is no replay port");
            }
            if !self.followed() {
                self.follow(Following::Partly);
            }
            return Ok(());
        };
        for _ in 0..2 {
            // A connection for each: what is left of a replay that was broken off goes with it.
            let mut replayed = match connect(replay, Role::Dealer).await {
                Ok(replayed) => replayed,
                Err(fault) => return self.without_replay(occasion, &fault),
            };
            match self.replay(&mut replayed, occasion).await {
                Ok(true) => return Ok(()),
                // The publisher is another one: once more, from its beginning.
                Ok(false) => {}
                Err(fault) => return self.without_replay(occasion, &fault),
            }
        }
        Ok(())
    }

    /// A replay that cannot be had: events are followed from here on, as far as they go.
    fn without_replay(&mut self, occasion: Occasion, fault: &Fault) -> Result<(), Fault> {
        if occasion == Occasion::Silence && self.followed() {
            return Ok(());
        }
        tracing::warn!(pool = %self.runtime.name, endpoint = %self.address,
            "missed KV events cannot be had again: {fault}");
        self.begin_anew("no replay");
        self.follow(Following::Partly);
        Ok(())
    }

    /// One request for a replay; false if it shows that the publisher is another one than before.
    async fn replay(
        &mut self,
        from: &mut Connection<TcpStream>,
        occasion: Occasion,
    ) -> Result<bool, Fault> {
        let known = self.sequence.last();
        let ask = self.sequence.ask_from();
        from.send(&[b"", &ask.to_be_bytes()]).await?;
        let mut first = true;
        for _ in 0..REPLAY_MAX {
            let message = timeout(REPLAY_TIMEOUT, from.message()).await;
            let message = message.map_err(|_| Fault::Timeout("the replay"))??;
            let (number, payload) = numbered(&message, 1)?;
            if number == END {
                return Ok(self.replayed_all(known, first));
            }
            let first = std::mem::take(&mut first);
            if first && occasion == Occasion::Connected && known.is_some_and(|n| n != number) {
                self.begin_anew("the publisher does not keep what would prove it the same");
                return Ok(false);
            }
            match (first, self.sequence.judge(number, &payload)) {
                (_, Verdict::Seen) => {}
                (_, Verdict::Next) => self.next(number, &payload)?,
                (true, Verdict::Gap { .. }) => {
                    // It does not keep as much as was missed.
                    if known.is_some() {
                        self.begin_anew("more was missed than is kept");
                    }
                    self.resume(number, &payload)?;
                }
                (_, Verdict::Restarted) => {
                    self.begin_anew("restarted");
                    return Ok(false);
                }
                (false, Verdict::Gap { .. }) => {
                    return Err(Fault::Message("the replay has gaps itself"));
                }
            }
        }
        Err(Fault::Message("the replay does not end"))
    }

    /// What the end of a replay means; `nothing`: it came first.
    fn replayed_all(&mut self, known: Option<u64>, nothing: bool) -> bool {
        match (known, nothing) {
            // Nothing has been published yet: whatever comes, is all.
            (None, true) => self.follow(Following::Wholly),
            // The last batch that is known is not there.
            (Some(_), true) => {
                self.begin_anew("restarted");
                return false;
            }
            (_, false) => {}
        }
        true
    }

    /// Takes in the batch that comes next.
    fn next(&mut self, number: u64, payload: &Bytes) -> Result<(), Fault> {
        if number == 0 {
            self.follow(Following::Wholly);
        }
        self.apply(payload)
    }

    /// Takes in a batch before which others are missing.
    fn resume(&mut self, number: u64, payload: &Bytes) -> Result<(), Fault> {
        self.sequence.resume_at(number, payload);
        self.follow(Following::Partly);
        self.apply(payload)
    }

    fn apply(&mut self, payload: &Bytes) -> Result<(), Fault> {
        let metrics = &self.shared.telemetry.metrics;
        let Ok(batch) = kv_events::decode(payload) else {
            // What it said is lost, which is as good as a gap that nothing fills.
            self.begin_anew("a batch that cannot be read");
            self.follow(Following::Partly);
            return Ok(());
        };
        self.runtime.state().kv_mark(self.address, None);
        let mut applied = Applied::default();
        let pieces = batch.events.into_iter();
        for event in pieces.flat_map(|event| event.split(BLOCKS_AT_ONCE)) {
            let more = self.runtime.state().kv_apply(self.address, &[event]);
            applied = applied.and(more);
        }
        self.runtime
            .state()
            .kv_mark(self.address, self.sequence.mark());
        metrics.kv_batch(&self.runtime.name, applied, batch.unreadable);
        Ok(())
    }

    fn followed(&self) -> bool {
        let following = self.runtime.state().kv_following(self.address);
        matches!(following, Following::Partly | Following::Wholly)
    }

    fn follow(&self, following: Following) {
        self.runtime.state().kv_follow(self.address, following);
    }

    /// Drops what is known, and waits for a first batch.
    fn begin_anew(&mut self, why: &'static str) {
        self.lose(why);
        self.sequence.reset();
    }

    fn lose(&mut self, why: &'static str) {
        if self.followed() && self.sequence.last().is_some() {
            self.follow(Following::Lost);
            self.interrupted("lost");
            tracing::warn!(pool = %self.runtime.name, endpoint = %self.address,
                "what is known of the endpoint's cache is dropped: {why}");
        }
    }

    fn interrupted(&self, reason: &'static str) {
        let metrics = &self.shared.telemetry.metrics;
        metrics.kv_interrupted(&self.runtime.name, reason);
    }
}

async fn connect(to: SocketAddr, role: Role) -> Result<Connection<TcpStream>, Fault> {
    let connecting = async {
        let stream = TcpStream::connect(to).await.map_err(ConnectionError::Io)?;
        stream.set_nodelay(true).map_err(ConnectionError::Io)?;
        Connection::handshake(stream, role, LIMITS).await
    };
    let connected = timeout(CONNECT_TIMEOUT, connecting).await;
    let connected = connected.map_err(|_| Fault::Timeout("connecting"))?;
    Ok(connected?)
}

/// The number and the payload after so many frames.
fn numbered(message: &Message, skip: usize) -> Result<(u64, Bytes), Fault> {
    let [number, payload] = message.get(skip..).unwrap_or_default() else {
        return Err(Fault::Message("a message that has not three parts"));
    };
    let number: [u8; 8] = number[..]
        .try_into()
        .map_err(|_| Fault::Message("a number that has not eight bytes"))?;
    Ok((u64::from_be_bytes(number), payload.clone()))
}
