//! Looks at the host when something changed, when it is due and every now and then, and hands on what came of
//! it: slices, health, statuses of claims.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_fabric::claim::ClaimStatus;
use forebay_fabric::cloud::CloudFacts;
use forebay_fabric::gpu::GpuFacts;
use forebay_fabric::health::Damping;
use forebay_fabric::publish::Slice;
use forebay_node::driver::DeviceHealth;
use forebay_node::inventory::{Inventory, Known, Look, Settings};
use forebay_node::observed::Metrics;
use forebay_node::{netlink, report};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::cli::node::RunArgs;

/// Shortest time between two looks: links change in bursts.
const PACE: Duration = Duration::from_millis(200);
/// Longest: what netlink does not tell of (RDMA ports, firmware) is seen by then.
const EVERY: Duration = Duration::from_secs(30);
/// Until a look that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What the operator says of the host.
pub(super) fn settings(args: &RunArgs) -> Settings {
    Settings {
        node: args.node.clone(),
        driver: args.driver.clone(),
        sysfs: args.sysfs_root.clone(),
        proc: args.proc_root.clone(),
        virtuals: args.virtuals.clone(),
        filter: args.filter.clone(),
        rails: args.rails.iter().cloned().collect(),
        shareable: std::collections::BTreeSet::new(),
        optional: args.optional_attributes.clone(),
        damping: Damping {
            evict_ms: args
                .evict_after
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            ..Damping::default()
        },
    }
}

/// Where it is handed on. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Told {
    slices: watch::Sender<Option<Vec<Slice>>>,
    health: watch::Sender<Vec<DeviceHealth>>,
    statuses: watch::Sender<Vec<ClaimStatus>>,
    metrics: Metrics,
}

impl Told {
    pub(super) fn new(metrics: Metrics) -> Told {
        Told {
            slices: watch::Sender::new(None),
            health: watch::Sender::default(),
            statuses: watch::Sender::default(),
            metrics,
        }
    }

    pub(super) fn slices(&self) -> watch::Receiver<Option<Vec<Slice>>> {
        self.slices.subscribe()
    }

    pub(super) fn health(&self) -> watch::Receiver<Vec<DeviceHealth>> {
        self.health.subscribe()
    }

    pub(super) fn statuses(&self) -> watch::Receiver<Vec<ClaimStatus>> {
        self.statuses.subscribe()
    }
}

/// What is told of the machine by others than the kernel, once they did: slices wait for it.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) cloud: watch::Receiver<Option<CloudFacts>>,
    pub(super) gpus: watch::Receiver<Option<Vec<GpuFacts>>>,
}

impl Facts {
    /// Waits until more is known; for ever, once nobody will know more.
    async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.cloud.changed() => {}
            Ok(()) = self.gpus.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// Looks at the host.
pub(super) struct Looker {
    inventory: Inventory,
    known: Known,
    told: Told,
    facts: Facts,
    changed: Arc<Notify>,
    since: Instant,
    /// Found, and not handed on before the facts are known.
    slices: Option<Vec<Slice>>,
    problems: Vec<String>,
}

impl Looker {
    /// Nothing has been looked at yet.
    pub(super) fn new(
        inventory: Inventory,
        told: Told,
        facts: Facts,
        changed: Arc<Notify>,
    ) -> Looker {
        Looker {
            known: inventory.known(),
            inventory,
            told,
            facts,
            changed,
            since: Instant::now(),
            slices: None,
            problems: Vec::new(),
        }
    }

    /// Waits until a look succeeded, and the kernel tells of changes.
    pub(super) async fn first(mut self) -> Looker {
        loop {
            let changed = Arc::clone(&self.changed);
            // Followed before it is looked at, so that nothing falls in between.
            let followed = netlink::follow(move || changed.notify_one());
            match followed {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!("the kernel does not tell of links, it is tried again: {error}");
                    sleep(RETRY).await;
                }
            }
        }
        while self.look().await.is_none() {
            sleep(RETRY).await;
        }
        self
    }

    /// Looks for ever.
    pub(super) async fn run(mut self) {
        loop {
            let wait = match self.look().await {
                Some(wait) => wait,
                None => RETRY,
            };
            sleep(PACE).await;
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.facts.changed() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// How long it is until the next one; none if this one failed.
    async fn look(&mut self) -> Option<Duration> {
        let cloud = self.facts.cloud.borrow_and_update().clone();
        let gpus = self.facts.gpus.borrow_and_update().clone();
        let all_told = cloud.is_some() && gpus.is_some();
        let now_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let today = SystemTime::now().duration_since(UNIX_EPOCH);
        let today_s = today.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
        let (cloud, gpus) = (cloud.unwrap_or_default(), gpus.unwrap_or_default());
        // A few hundred small files of sysfs: milliseconds.
        let look = match self.inventory.look(cloud, &gpus, (now_ms, today_s)) {
            Ok(look) => look,
            Err(error) => {
                tracing::warn!("the host cannot be read, all stays as it was: {error}");
                return None;
            }
        };
        let due = look
            .due_ms
            .map(|at| Duration::from_millis(at.saturating_sub(now_ms)));
        self.hand_on(look, all_told);
        Some(due.map_or(EVERY, |due| due.clamp(PACE, EVERY)))
    }

    fn hand_on(&mut self, look: Look, all_told: bool) {
        for problem in &look.problems {
            if !self.problems.contains(problem) {
                tracing::warn!("{problem}");
            }
        }
        self.problems = look.problems;
        self.told.metrics.set_devices(look.devices, look.tainted);
        self.slices = look.slices.or_else(|| self.slices.take());
        if all_told && let Some(slices) = self.slices.take() {
            self.told.slices.send_replace(Some(slices));
        }
        let statuses = report::statuses(&look.records, |device| self.known.place(device));
        self.told.statuses.send_if_modified(|said| {
            let differs = *said != statuses;
            *said = statuses;
            differs
        });
        self.told.health.send_if_modified(|said| {
            let same = |a: &DeviceHealth, b: &DeviceHealth| {
                (&a.device, a.health, &a.message) == (&b.device, b.health, &b.message)
            };
            let differs = said.len() != look.health.len()
                || said.iter().zip(&look.health).any(|(a, b)| !same(a, b));
            *said = look.health;
            differs
        });
    }
}
