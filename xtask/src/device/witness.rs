//! What a container runtime does, and when: two NRI plugins of our own on a node, one that is asked before the
//! driver and one after it. What passes between them is the driver's time, whoever the driver is; and what is
//! to go wrong at an event can be made to.
//!
//! The runtime asks plugins by index, and those of one index in the order of their registration. Both drivers
//! have the first index, so the plugin before them has to be there when they come.

use super::world::Node;
use anyhow::{Context, Result, anyhow, bail};
use forebay_nri::Refusal;
use forebay_nri::api::{Container, Event, PodSandbox};
use forebay_nri::plugin::{self, Events, Plugin, Settings, State};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// How long the runtime may take to take both in.
const REGISTRATION_MAX: Duration = Duration::from_secs(20);

/// Which of the two plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Before,
    After,
}

/// An event.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) place: Place,
    pub(super) event: Event,
    pub(super) pod: String,
    /// Of the container; 0 in events of sandboxes.
    pub(super) pid: u32,
    pub(super) at: Instant,
    /// The same as the clock shows it, to hold against logs.
    pub(super) clock: SystemTime,
}

/// The two plugins, until it is dropped.
pub(super) struct Witness {
    seen: Arc<Mutex<Vec<Seen>>>,
    lost: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Starts both on a node, and returns when the runtime has taken them in. `act` is called at each event,
    /// and the runtime waits for it.
    pub(super) fn start(
        node: &Node,
        act: impl Fn(&Seen) + Send + Sync + 'static,
    ) -> Result<Witness> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let lost = Arc::new(AtomicUsize::new(0));
        let act: Arc<dyn Fn(&Seen) + Send + Sync> = Arc::new(act);
        let (tell, told) = mpsc::channel();
        let plugin = |place| {
            Arc::new(Watching {
                place,
                seen: Arc::clone(&seen),
                lost: Arc::clone(&lost),
                act: Arc::clone(&act),
                registered: tell.clone(),
            })
        };
        let both = [plugin(Place::Before), plugin(Place::After)];
        let socket = node.inside("/run/nri/nri.sock")?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::spawn(move || serve(both, &socket, &stopped));
        let witness = Witness {
            seen,
            lost,
            stop,
            thread: Some(thread),
        };
        let until = Instant::now() + REGISTRATION_MAX;
        for _ in 0..2 {
            let left = until.saturating_duration_since(Instant::now());
            told.recv_timeout(left).map_err(|_| {
                anyhow!(
                    "the container runtime of {} did not take the witnesses in",
                    node.name
                )
            })?;
        }
        Ok(witness)
    }

    /// What was seen so far, in order; forgotten then. An error if some of it was missed.
    pub(super) fn take(&self) -> Result<Vec<Seen>> {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            bail!("the container runtime was lost sight of {lost} times");
        }
        Ok(std::mem::take(
            &mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // The thread may have ended already.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a witness panicked");
        }
    }
}

fn serve(both: [Arc<Watching>; 2], socket: &std::path::Path, stopped: &watch::Receiver<bool>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread needs nothing that may lack");
    let [before, after] = both;
    let run = |plugin: Arc<Watching>, index: &str| {
        let mut settings = Settings::new(format!("witness-{index}"), index);
        settings.socket = socket.to_owned();
        settings.backoff_min = Duration::from_millis(100);
        let mut stopped = stopped.clone();
        async move {
            let stop = async {
                // An error says that whoever could stop it is gone.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            plugin::run(plugin, &settings, &plugin::Runtime::new(), stop).await;
        }
    };
    runtime.block_on(async { tokio::join!(run(before, "00"), run(after, "99")) });
}

struct Watching {
    place: Place,
    seen: Arc<Mutex<Vec<Seen>>>,
    lost: Arc<AtomicUsize>,
    act: Arc<dyn Fn(&Seen) + Send + Sync>,
    registered: mpsc::Sender<()>,
}

impl Plugin for Watching {
    fn events(&self) -> Events {
        match self.place {
            Place::Before => Events::of(&[Event::RunPodSandbox, Event::StopPodSandbox]),
            Place::After => Events::of(&[
                Event::RunPodSandbox,
                Event::StopPodSandbox,
                Event::PostStartContainer,
            ]),
        }
    }

    async fn notify(
        &self,
        event: Event,
        pod: PodSandbox,
        container: Option<Container>,
    ) -> Result<(), Refusal> {
        let seen = Seen {
            place: self.place,
            event,
            pod: pod.name,
            pid: container.map_or(0, |container| container.pid),
            at: Instant::now(),
            clock: SystemTime::now(),
        };
        (self.act)(&seen);
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(seen);
        Ok(())
    }

    fn connection_changed(&self, state: &State) {
        match state {
            // Nobody may wait for it any more.
            State::Registered => drop(self.registered.send(())),
            State::Lost { .. } => drop(self.lost.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// What passed at a pod between an event before the driver and the same after it; the first of each.
pub(super) fn between(seen: &[Seen], event: Event) -> BTreeMap<String, Duration> {
    let mut before: BTreeMap<&str, Instant> = BTreeMap::new();
    let mut passed = BTreeMap::new();
    for one in seen.iter().filter(|one| one.event == event) {
        match one.place {
            Place::Before => {
                before.entry(&one.pod).or_insert(one.at);
            }
            Place::After => {
                if let Some(began) = before.get(one.pod.as_str()) {
                    let took = one.at.saturating_duration_since(*began);
                    passed.entry(one.pod.clone()).or_insert(took);
                }
            }
        }
    }
    passed
}

/// The first container of a pod that started.
pub(super) fn started<'a>(seen: &'a [Seen], pod: &str) -> Result<&'a Seen> {
    let mut found = seen
        .iter()
        .filter(|one| one.event == Event::PostStartContainer && one.pod == pod);
    found
        .next()
        .with_context(|| format!("no container of {pod} was seen to start"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_the_driver_is_what_passes_between_the_two_plugins() {
        let began = Instant::now();
        let seen = |place, event, pod: &str, ms| Seen {
            place,
            event,
            pod: pod.to_owned(),
            pid: 0,
            at: began + Duration::from_millis(ms),
            clock: SystemTime::UNIX_EPOCH,
        };
        let all = [
            seen(Place::Before, Event::RunPodSandbox, "a", 5),
            seen(Place::Before, Event::RunPodSandbox, "b", 6),
            seen(Place::After, Event::RunPodSandbox, "b", 8),
            seen(Place::After, Event::RunPodSandbox, "a", 25),
            // A second sandbox of the same pod.
            seen(Place::Before, Event::RunPodSandbox, "a", 30),
            seen(Place::After, Event::RunPodSandbox, "a", 31),
            seen(Place::After, Event::StopPodSandbox, "c", 40),
        ];
        let expected =
            [("a", 20), ("b", 2)].map(|(pod, ms)| (pod.to_owned(), Duration::from_millis(ms)));
        assert_eq!(
            between(&all, Event::RunPodSandbox),
            BTreeMap::from(expected)
        );
        assert_eq!(between(&all, Event::StopPodSandbox), BTreeMap::new());
    }
}
