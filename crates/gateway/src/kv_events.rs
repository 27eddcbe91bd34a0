//! Follows what model servers say of their KV caches, and tells the pools.
//!
//! One thread with one runtime; a task for each endpoint of each pool that asks for it
//! (`precisePrefix`). What one endpoint's connection goes through is in `follower.rs`; how batches are
//! read is in `forebay_dialect::kv_events`, what they mean in `forebay_decide::prefix`.

mod follower;
pub mod peers;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use forebay_model::endpoint::Labels;
use forebay_model::{ObjectName, Pool};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle as TaskHandle, LocalSet};

use crate::pools::{Live, PoolRuntime};
use crate::shared::Shared;
use crate::tokenizers::Tokenizers;
use follower::Follower;

/// How often the tokenizers' files are looked at.
const TOKENIZERS_EVERY: Duration = Duration::from_secs(1);
/// How long what peers told is kept, if nobody takes it.
const COPIES_KEPT: Duration = Duration::from_secs(60);
/// Endpoints that are followed; further ones go by what is sent to them.
const FOLLOWED_MAX: usize = 4_096;
/// The label of a pod that names the port of its events.
const PORT_LABEL: &str = "forebay.dev/kv-events-port";
/// The label of a pod that names the port of its replay.
const REPLAY_LABEL: &str = "forebay.dev/kv-replay-port";

/// The running thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Following {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed already.
            drop(thread.join());
        }
    }
}

/// Starts to follow the endpoints of whatever pools ask for it.
///
/// # Errors
/// When the thread or its runtime cannot be started.
pub fn spawn(shared: Arc<Shared>) -> io::Result<Following> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("kv-events".to_owned())
        .spawn(move || {
            LocalSet::new().block_on(&runtime, async move {
                tokio::select! {
                    () = follow(&shared) => {}
                    _dropped = stopped => {}
                }
            });
        })?;
    Ok(Following {
        stop: Some(stop),
        thread: Some(thread),
    })
}

/// Where the events of an endpoint come from. Another source is another task.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Source {
    events: SocketAddr,
    replay: Option<SocketAddr>,
    topic: Rc<str>,
}

#[derive(Debug)]
struct Task {
    source: Source,
    runtime: Arc<PoolRuntime>,
    handle: TaskHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

type Key = (ObjectName, SocketAddr);

async fn follow(shared: &Arc<Shared>) {
    let _serving = peers::serve(shared);
    peers::ask(shared).await;
    let mut tasks: HashMap<Key, Task> = HashMap::new();
    // What is published from here on wakes this; what was before is what it begins with.
    let mut published = shared.published.subscribe();
    published.mark_changed();
    let mut ticks = tokio::time::interval(TOKENIZERS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut copies = pin!(tokio::time::sleep(COPIES_KEPT));
    loop {
        tokio::select! {
            // Whoever publishes is in `shared`, so this goes on for as long as that is there.
            Ok(()) = published.changed() => {
                let live = shared.live.load_full();
                adjust(&mut tasks, &live, shared);
                look_at_tokenizers(&live, &shared.tokenizers);
            }
            _ = ticks.tick() => look_at_tokenizers(&shared.live.load(), &shared.tokenizers),
            () = &mut copies, if !copies.is_elapsed() => shared.peers.forget(),
        }
    }
}

/// Follows what the pools ask for and nothing else.
fn adjust(tasks: &mut HashMap<Key, Task>, live: &Live, shared: &Arc<Shared>) {
    let mut before = std::mem::take(tasks);
    for (name, runtime) in live.pools.iter() {
        let pool = runtime.pool();
        for (address, source) in sources(&pool) {
            let key = (name.clone(), address);
            let same = |task: &Task| task.source == source && Arc::ptr_eq(&task.runtime, runtime);
            if let Some(task) = before.remove(&key).filter(same) {
                tasks.insert(key, task);
            } else if tasks.len() < FOLLOWED_MAX {
                let follower = Follower::new(address, source.clone(), runtime, shared);
                let task = Task {
                    source,
                    runtime: Arc::clone(runtime),
                    handle: tokio::task::spawn_local(follower.run()),
                };
                tasks.insert(key, task);
            }
        }
    }
}

/// Where the events of each endpoint come from. Ranks of one pod, which are endpoints with one IP
/// and several ports, have the ports that follow the first, in the same order.
fn sources(pool: &Pool) -> Vec<(SocketAddr, Source)> {
    let Some(precise) = &pool.picker.precise_prefix else {
        return Vec::new();
    };
    let topic: Rc<str> = precise.topic.as_str().into();
    let mut ranks: HashMap<_, u16> = HashMap::new();
    let source = |endpoint: &forebay_model::Endpoint| {
        let ip = endpoint.address.ip();
        let rank = ranks.entry(ip).or_default();
        let own = *rank;
        *rank = rank.saturating_add(1);
        let at = |port: u16| match port {
            0 => None,
            first => Some(SocketAddr::new(ip, first.checked_add(own)?)),
        };
        let events = at(labelled(&endpoint.labels, PORT_LABEL).unwrap_or(precise.port))?;
        let replay = labelled(&endpoint.labels, REPLAY_LABEL).unwrap_or(precise.replay_port);
        let source = Source {
            events,
            replay: at(replay),
            topic: Rc::clone(&topic),
        };
        Some((endpoint.address, source))
    };
    pool.endpoints.iter().filter_map(source).collect()
}

fn labelled(labels: &Labels, name: &str) -> Option<u16> {
    labels.get(name)?.parse().ok()
}

fn look_at_tokenizers(live: &Live, tokenizers: &Arc<Tokenizers>) {
    let precise = live.snapshot.pools.values();
    let precise = precise.filter_map(|pool| pool.picker.precise_prefix.as_ref());
    let wanted = precise.filter_map(|precise| precise.tokenizer.as_deref());
    tokenizers.look(wanted);
}
