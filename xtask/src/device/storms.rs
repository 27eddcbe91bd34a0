//! What is promised while parts end or hang at any moment of a pod's life: on both nodes pods with NICs come
//! and go, and at each something goes wrong. The moment is drawn from a seed; it is counted from an event of
//! the container runtime, so that most of them fall into an attach or a detach.
//!
//! The invariant: no container runs that lacks a NIC which its claim promises, each NIC is on its node as it
//! was when its pod is gone, and no claim is left.

use super::objects::{apply, named, ready, request, template};
use super::process::Driver;
use super::witness::{Place, Seen, Witness};
use super::world::{Node, World, kill, signal};
use super::{DAEMON_SET, DRIVERS, NAMESPACE, Table, get, gone, install, rolled_out, wait};
use anyhow::{Context, Result, anyhow, ensure};
use forebay_nri::api::Event;
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// NICs of each pod: some are in place while others are not yet.
const NICS: [&str; 3] = ["rail0", "rail1", "rail2"];
/// A container that finds one of them missing ends with this.
const MISSING: i64 = 64;
/// A moment is up to so long after an event: an attach of three NICs takes tens of milliseconds.
const MOMENT_MAX_MS: u64 = 120;
/// A runtime waits 2 s for a plugin.
const HANG: Duration = Duration::from_millis(3_500);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// SIGKILL of the driver; another one is started at once.
    DriverEnds,
    /// SIGSTOP of the driver for longer than the runtime waits.
    DriverHangs,
    /// SIGKILL of containerd, which its node starts again.
    RuntimeEnds,
    /// SIGKILL of the kubelet, which its node starts again.
    KubeletEnds,
}

/// From when the moment is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// The pod was made: the claim is prepared after that.
    Made,
    /// The driver is about to be asked to attach.
    Attach,
    /// The driver is about to be asked to detach.
    Detach,
}

const FROM: [From; 3] = [From::Made, From::Attach, From::Detach];

/// A kind of storm, and pods of it on each node.
const STORMS: [(&str, Fault, usize); 4] = [
    (
        "the driver is killed at any moment, again and again",
        Fault::DriverEnds,
        16,
    ),
    (
        "the driver hangs for longer than the runtime waits",
        Fault::DriverHangs,
        6,
    ),
    ("containerd is killed at any moment", Fault::RuntimeEnds, 6),
    ("the kubelet is killed at any moment", Fault::KubeletEnds, 6),
];

/// Runs them, if one is asked for, with drivers that are processes of the nodes; then the chart's come back.
pub(super) fn run(world: &World<'_>, table: &mut Table, seed: u64) {
    if !STORMS.iter().any(|(name, ..)| table.wants(name)) {
        return;
    }
    let grounds = match Grounds::make(world) {
        Ok(grounds) => grounds,
        Err(error) => return table.check("the storms can be made", || Err(error)),
    };
    for (name, fault, pods) in STORMS {
        table.check(name, || grounds.storm(world, fault, pods, seed));
    }
    drop(grounds);
    table.check("the driver comes back from its chart", || {
        install(world.bed, &[])?;
        rolled_out(world.bed)?;
        Ok("ready on both nodes".to_owned())
    });
}

/// Where the storms are: a driver and a witness on each node.
struct Grounds {
    spots: Vec<Spot>,
}

struct Spot {
    node: Node,
    witness: Witness,
    driver: Arc<Driver>,
    armed: Arc<Mutex<Option<Armed>>>,
    /// What was seen that must not be.
    wrong: Arc<Mutex<Vec<String>>>,
}

/// A fault that waits for its event.
#[derive(Debug, Clone)]
struct Armed {
    pod: String,
    from: From,
    after: Duration,
    fault: Fault,
}

impl Grounds {
    fn make(world: &World<'_>) -> Result<Grounds> {
        let bed = world.bed;
        bed.kubectl(&["delete", "-n", NAMESPACE, DAEMON_SET, "--ignore-not-found"])?;
        gone(bed, "the chart's drivers to be gone", &["-l", DRIVERS])?;
        let requests = NICS.map(|nic| request(nic, "dra.net", &named(nic)));
        apply(bed, &[template("storm", &requests, &[])])?;
        let spots = world.nodes.iter().map(|node| Spot::make(world, node));
        Ok(Grounds {
            spots: spots.collect::<Result<_>>()?,
        })
    }

    fn storm(&self, world: &World<'_>, fault: Fault, pods: usize, seed: u64) -> Result<String> {
        let counts = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (number, spot) in (0_u64..).zip(&self.spots) {
                let mut draws = Draws(seed ^ ((fault as u64) << 8) ^ number);
                threads.push(scope.spawn(move || spot.storm(world, fault, pods, &mut draws)));
            }
            let panicked = |_| Err(anyhow!("a thread of the storm panicked"));
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(panicked))
                .collect::<Result<Vec<Count>>>()
        })?;
        let total = |of: fn(&Count) -> usize| counts.iter().map(of).sum::<usize>();
        let slowest = counts
            .iter()
            .map(|count| count.slowest)
            .max()
            .unwrap_or_default();
        Ok(format!(
            "{} pods on two nodes, {} faults (seed {seed}), {} containers started, each with its {} NICs; {} sandboxes; \
             {} containers were refused or started again; slowest start {:.1} s; every NIC back as it was, no claim left",
            total(|count| count.pods),
            total(|count| count.faults),
            total(|count| count.started),
            NICS.len(),
            total(|count| count.sandboxes),
            total(|count| count.again),
            slowest.as_secs_f64()
        ))
    }
}

/// What happened on a node.
#[derive(Debug, Default)]
struct Count {
    pods: usize,
    faults: usize,
    started: usize,
    sandboxes: usize,
    /// Restarts that the kubelet counted.
    again: usize,
    slowest: Duration,
}

impl Spot {
    fn make(world: &World<'_>, node: &Node) -> Result<Spot> {
        let armed: Arc<Mutex<Option<Armed>>> = Arc::default();
        let wrong: Arc<Mutex<Vec<String>>> = Arc::default();
        let driver: Arc<Mutex<Option<Arc<Driver>>>> = Arc::default();
        let (at_event, seen_wrong, to_hit) =
            (Arc::clone(&armed), Arc::clone(&wrong), Arc::clone(&driver));
        let named = node.clone();
        // It has to be there before the driver.
        let witness = Witness::start(node, move |seen| {
            if let Some(missing) = lacks(seen) {
                lock(&seen_wrong).push(missing);
            }
            let from = match (seen.place, seen.event) {
                (Place::Before, Event::RunPodSandbox) => From::Attach,
                (Place::Before, Event::StopPodSandbox) => From::Detach,
                _ => return,
            };
            let armed =
                lock(&at_event).take_if(|armed| armed.from == from && armed.pod == seen.pod);
            let driver = lock(&to_hit).clone();
            if let (Some(armed), Some(driver)) = (armed, driver) {
                let (node, wrong) = (named.clone(), Arc::clone(&seen_wrong));
                std::thread::spawn(move || strike(&armed, &node, &driver, &wrong));
            }
        })?;
        let started = Arc::new(Driver::start(world, node)?);
        *lock(&driver) = Some(Arc::clone(&started));
        wait(
            &format!("the NICs of {} to be published", node.name),
            || Ok((world.devices(node)?.len() >= NICS.len()).then_some(())),
        )?;
        Ok(Spot {
            node: node.clone(),
            witness,
            driver: started,
            armed,
            wrong,
        })
    }

    fn storm(
        &self,
        world: &World<'_>,
        fault: Fault,
        pods: usize,
        draws: &mut Draws,
    ) -> Result<Count> {
        let before: Vec<String> = NICS.iter().filter_map(|nic| self.node.link(nic)).collect();
        ensure!(
            before.len() == NICS.len(),
            "a NIC of {} is away",
            self.node.name
        );
        let mut count = Count::default();
        let kind = format!("{fault:?}").to_lowercase();
        for number in 0..pods {
            let name = format!("storm-{kind}-{}-{number}", self.node.name);
            let armed = Armed {
                pod: name.clone(),
                from: FROM[draws.below(3) as usize],
                after: Duration::from_millis(draws.below(MOMENT_MAX_MS)),
                fault,
            };
            self.pod(world, &armed, &mut count)
                .with_context(|| format!("{name}, with {armed:?}"))?;
            for (nic, before) in NICS.iter().zip(&before) {
                self.node
                    .wait_back(nic, before)
                    .with_context(|| format!("after {name}, with {armed:?}"))?;
            }
            let wrong = std::mem::take(&mut *lock(&self.wrong));
            ensure!(
                wrong.is_empty(),
                "{name}, with {armed:?}: {}",
                wrong.join("; ")
            );
        }
        Ok(count)
    }

    /// A pod that starts and ends, with a fault on its way.
    fn pod(&self, world: &World<'_>, armed: &Armed, count: &mut Count) -> Result<()> {
        let bed = world.bed;
        let name = &armed.pod;
        *lock(&self.armed) = Some(armed.clone());
        let mut pod = super::objects::pod(name, &self.node.name, "storm");
        let looks = NICS.map(|nic| format!("[ -e /sys/class/net/{nic} ] || exit {MISSING}; "));
        let command = format!("{}trap 'exit 0' TERM; sleep 36000 & wait", looks.concat());
        pod["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c", command]);
        let began = Instant::now();
        apply(bed, &[pod])?;
        self.strike_after(From::Made);
        ready(bed, name)?;
        count.slowest = count.slowest.max(began.elapsed());
        let claim = super::objects::claim_of(bed, name)?;
        let settled = || {
            let claim = super::objects::claim_of(bed, name)?;
            let devices = claim["status"]["devices"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let is_ready = |device: &serde_json::Value| device["conditions"][0]["status"] == "True";
            Ok((devices.len() == NICS.len() && devices.iter().all(is_ready)).then_some(()))
        };
        wait(
            "the claim's status to say that its devices are ready",
            settled,
        )?;
        let status = get(bed, &["pod", name])?["status"]["containerStatuses"][0].clone();
        let ended = &status["lastState"]["terminated"]["exitCode"];
        ensure!(*ended != MISSING, "a container ran without a NIC: {status}");
        count.again += status["restartCount"].as_u64().unwrap_or(0) as usize;
        super::objects::delete(bed, &[name])?;
        let claim = claim["metadata"]["name"]
            .as_str()
            .context("a claim without a name")?
            .to_owned();
        wait("the claim to be gone", || {
            let left = bed.kubectl(&["get", "resourceclaims", "-o", "name"])?;
            Ok((!left.contains(&claim)).then_some(()))
        })?;
        let was_struck = lock(&self.armed).take().is_none();
        count.faults += usize::from(was_struck);
        count.pods += 1;
        // Losing the runtime is what may have been asked for.
        let seen = self.witness.take().unwrap_or_default();
        let of = |event| {
            seen.iter()
                .filter(|one| one.pod == *name && one.event == event && one.place == Place::After)
                .count()
        };
        count.started += of(Event::PostStartContainer);
        count.sandboxes += of(Event::RunPodSandbox);
        Ok(())
    }

    /// Strikes if the moment is counted from here rather than from an event.
    fn strike_after(&self, from: From) {
        // Not held meanwhile: the runtime waits for who asks for it.
        let armed = lock(&self.armed).take_if(|armed| armed.from == from);
        if let Some(armed) = armed {
            strike(&armed, &self.node, &self.driver, &self.wrong);
        }
    }
}

/// Does what is to go wrong when its moment has come.
fn strike(armed: &Armed, node: &Node, driver: &Driver, wrong: &Mutex<Vec<String>>) {
    std::thread::sleep(armed.after);
    let done = match armed.fault {
        Fault::DriverEnds => driver.kill(),
        Fault::DriverHangs => {
            let pid = driver.pid();
            let stopped = signal(pid, Signal::STOP);
            std::thread::sleep(HANG);
            let went_on = signal(pid, Signal::CONT);
            stopped.and(went_on)
        }
        Fault::RuntimeEnds => node.program("containerd").and_then(kill),
        Fault::KubeletEnds => node.program("kubelet").and_then(kill),
    };
    if let Err(error) = done {
        lock(wrong).push(format!("the fault could not be made: {error:#}"));
    }
}

/// Says so if a container of a storm's pod that started lacks a NIC.
fn lacks(seen: &Seen) -> Option<String> {
    if seen.event != Event::PostStartContainer || !seen.pod.starts_with("storm-") {
        return None;
    }
    // One that has ended already says nothing.
    let interfaces = fs::read_to_string(format!("/proc/{}/net/dev", seen.pid)).ok()?;
    let has = |nic: &&str| {
        interfaces
            .lines()
            .any(|line| line.trim_start().starts_with(&format!("{nic}:")))
    };
    let missing: Vec<&str> = NICS.into_iter().filter(|nic| !has(nic)).collect();
    (!missing.is_empty())
        .then(|| format!("a container of {} started without {missing:?}", seen.pod))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers from a seed (splitmix64).
struct Draws(u64);

impl Draws {
    /// Less than `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_again_and_reaches_every_moment() {
        let draw = || {
            let mut draws = Draws(7);
            (0..60).map(|_| draws.below(3)).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
        for kind in 0..3 {
            assert!(draw().contains(&kind));
        }
    }
}
