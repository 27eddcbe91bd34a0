//! Attaching and detaching real links (veth) between namespaces made for the test: faults at every
//! step, the process killed at every step, and random schedules, always with one invariant: NICs are
//! all in their pod, or all on the host as they were, and the guard lets a container start only in the
//! first case. Skipped by name where namespaces cannot be made.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use forebay_fabric::claim::{AllocatedClaim, AllocatedDevice, ClaimRef, DeviceConfig, PodRef};
use forebay_fabric::plan::Interface;
use forebay_node::attach::{Core, FAULT_POINTS, FaultPoint, Faults};
use forebay_node::cdi::Cdi;
use forebay_node::driver::Sandbox;
use forebay_node::guard;
use forebay_node::ledger::Ledger;
use forebay_node::netlink::{KernelLinks, Links};

const UID: &str = "0000-claim";
const POD: &str = "0000-pod";
type Host = Vec<Option<Interface>>;

/// A host with NICs and a pod, each a namespace, and the driver's folders.
struct World {
    host: String,
    pod: String,
    nics: usize,
    folder: PathBuf,
    /// None in a child process, which made nothing.
    own: Option<tempfile::TempDir>,
}

fn ip(args: &str) -> bool {
    let out = Command::new("ip").args(args.split_whitespace()).output();
    out.is_ok_and(|o| o.status.success())
}

/// A world, or none, said on standard error, where the kernel or the user does not allow one.
fn world(name: &str, nics: usize) -> Option<World> {
    let id = format!("fb{}{name}", std::process::id());
    let (host, pod) = (format!("{id}h"), format!("{id}p"));
    if !ip(&format!("netns add {host}")) || !ip(&format!("netns add {pod}")) {
        eprintln!("skipped {name}: network namespaces cannot be made (needs root and `ip`)");
        return None;
    }
    let own = tempfile::tempdir().unwrap();
    let world = World {
        host,
        pod,
        nics,
        folder: own.path().to_owned(),
        own: Some(own),
    };
    let h = &world.host;
    for n in 0..nics {
        for args in [
            format!("link add rail{n} type veth peer name peer{n}"),
            format!("addr add 10.{n}.0.5/24 dev rail{n}"),
            format!("link set peer{n} up"),
            format!("link set rail{n} up"),
            format!("route add 172.16.{n}.0/24 via 10.{n}.0.1"),
            format!("neigh add 10.{n}.0.1 lladdr 02:00:00:00:00:01 dev rail{n} nud permanent"),
        ] {
            assert!(ip(&format!("-n {h} {args}")), "{args}");
        }
    }
    Some(world)
}

impl Drop for World {
    fn drop(&mut self) {
        if self.own.is_some() {
            ip(&format!("netns del {}", self.host));
            ip(&format!("netns del {}", self.pod));
        }
    }
}

fn netns(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

impl World {
    fn links(&self) -> KernelLinks {
        KernelLinks::open(&netns(&self.host)).unwrap()
    }

    fn core<F: Faults>(&self, faults: F) -> Core<KernelLinks, F> {
        let state = self.folder.join("state");
        let ledger = Ledger::open(&state).unwrap();
        let cdi = Cdi {
            folder: self.folder.join("cdi"),
            program: "/forebay".into(),
            state,
        };
        Core::new(self.links(), faults, ledger, cdi)
    }

    fn claim(&self) -> (AllocatedClaim, BTreeMap<String, String>) {
        let device = |n| AllocatedDevice {
            request: format!("nic{n}"),
            pool: "node".into(),
            device: format!("dev-{n}"),
            share_id: None,
            bandwidth_bps: None,
            admin_access: false,
        };
        let config = |n| DeviceConfig {
            requests: vec![format!("nic{n}")],
            from_class: false,
            parameters: format!(
                r#"{{"interface": {{"name": "net{n}", "mtu": 8896,
                                    "hardwareAddr": "02:00:00:00:01:0{n}"}},
                    "routes": [{{"destination": "10.9.{n}.0/24", "gateway": "10.{n}.0.1",
                                 "table": 10{n}}}],
                    "rules": [{{"priority": 1000, "source": "10.{n}.0.5/32", "table": 10{n}}}]}}"#
            ),
        };
        let claim = AllocatedClaim {
            claim: ClaimRef {
                namespace: "team".into(),
                name: "nics".into(),
                uid: UID.into(),
            },
            pod_name: None,
            reserved_for: vec![PodRef {
                name: "pod".into(),
                uid: POD.into(),
            }],
            devices: (0..self.nics).map(device).collect(),
            configs: (0..self.nics).map(config).collect(),
        };
        (
            claim,
            (0..self.nics)
                .map(|n| (format!("dev-{n}"), format!("rail{n}")))
                .collect(),
        )
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox {
            id: "sandbox".into(),
            namespace: "team".into(),
            name: "pod".into(),
            uid: POD.into(),
            netns: Some(netns(&self.pod)),
        }
    }

    fn guard(&self) -> Result<(), String> {
        guard::check(
            &self.links(),
            &self.folder.join("state"),
            UID,
            &netns(&self.pod),
        )
    }

    fn on_host(&self) -> Host {
        let links = self.links();
        (0..self.nics)
            .map(|n| links.snapshot(&format!("rail{n}")).unwrap())
            .collect()
    }

    fn all_in_pod(&self) -> bool {
        self.in_pod().iter().all(|yes| *yes)
    }

    fn in_pod(&self) -> Vec<bool> {
        let pod = KernelLinks::open(&netns(&self.pod)).unwrap();
        (0..self.nics)
            .map(|n| pod.snapshot(&format!("net{n}")).unwrap().is_some())
            .collect()
    }

    /// The invariant, after things were settled; whether the NICs are in the pod.
    fn check(&self, before: &Host, what: &str) -> bool {
        if self.all_in_pod() {
            assert_eq!(
                self.guard(),
                Ok(()),
                "{what}: in the pod, so its container may start"
            );
            assert!(
                self.on_host().iter().all(Option::is_none),
                "{what}: in two places"
            );
            return true;
        }
        assert!(
            self.in_pod().iter().all(|yes| !yes),
            "{what}: only some are in the pod"
        );
        assert!(
            self.guard().is_err(),
            "{what}: a container may start without its NICs"
        );
        assert_eq!(&self.on_host(), before, "{what}: not on the host as it was");
        false
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[test]
fn nics_go_into_the_pod_as_asked_and_come_back_as_they_were() {
    let Some(world) = world("a", 2) else { return };
    let before = world.on_host();
    let first = before[0].as_ref().unwrap();
    assert_eq!(
        (
            first.addresses.len(),
            first.routes.len(),
            first.neighbors.len()
        ),
        (1, 1, 1)
    );
    let core = world.core(());
    let (claim, names) = world.claim();
    let prepared = core.prepare(&claim, &names).unwrap();
    assert_eq!(prepared[1].cdi_ids, [format!("forebay.dev/nic={UID}")]);
    assert!(!world.check(&before, "prepared"));
    for again in ["attached", "attached again"] {
        core.attach(&world.sandbox(), soon()).unwrap();
        assert!(world.check(&before, again));
        assert_eq!(core.prepare(&claim, &names).unwrap(), prepared, "{again}");
    }
    for again in ["detached", "detached again"] {
        core.detach(&world.sandbox()).unwrap();
        assert!(!world.check(&before, again));
    }
    core.attach(&world.sandbox(), soon()).unwrap();
    // The guard looks itself: what someone broke since is seen.
    assert!(ip(&format!(
        "-n {} addr del 10.1.0.5/24 dev net1",
        world.pod
    )));
    let why = world.guard().unwrap_err();
    assert!(
        why.contains("NIC dev-1") && why.contains("10.1.0.5/24 is missing"),
        "{why}"
    );
    core.unprepare(UID).unwrap();
    assert!(!world.check(&before, "unprepared"));
    assert!(
        world
            .guard()
            .unwrap_err()
            .contains("was not prepared on this node")
    );
}

#[test]
fn a_sandbox_made_while_nobody_was_there_gets_its_nics_when_somebody_is() {
    let Some(world) = world("w", 2) else { return };
    let before = world.on_host();
    let (claim, names) = world.claim();
    world.core(()).prepare(&claim, &names).unwrap();
    assert!(!world.check(&before, "the runtime went on without the driver"));
    let mut ended = world.sandbox();
    ended.netns = Some(netns("gone-with-its-pod"));
    let core = world.core(());
    core.synchronize(&[ended]).unwrap();
    assert!(!world.check(&before, "the sandbox has ended"));
    core.synchronize(&[world.sandbox()]).unwrap();
    assert!(world.check(&before, "the driver came back"));
}

#[test]
fn nics_of_a_pod_that_ended_while_nobody_was_there_come_back_from_its_namespace() {
    let Some(world) = world("e", 2) else { return };
    let before = world.on_host();
    let (claim, names) = world.claim();
    let core = world.core(());
    core.prepare(&claim, &names).unwrap();
    core.attach(&world.sandbox(), soon()).unwrap();
    let ledger = Ledger::open(&world.folder.join("state")).unwrap();
    let held = ledger.held_netns(UID).unwrap();
    for _again in ["a container", "another one"] {
        forebay_node::netns::hold(&netns(&world.pod), &held).unwrap();
    }
    assert!(ip(&format!("netns del {}", world.pod)));
    let core = world.core(());
    core.synchronize(&[]).unwrap();
    assert_eq!(world.on_host(), before);
    assert!(!held.exists(), "the namespace is let go");
    core.unprepare(UID).unwrap();
    assert!(
        ip(&format!("netns add {}", world.pod)),
        "for the world's end"
    );
}

#[test]
fn a_nic_that_was_lost_with_its_pod_is_planned_for_anew_where_there_is_another_of_its_name() {
    let Some(world) = world("l", 1) else { return };
    let core = world.core(());
    let (claim, names) = world.claim();
    core.prepare(&claim, &names).unwrap();
    core.attach(&world.sandbox(), soon()).unwrap();
    // As when the machine boots: namespaces are gone, and nobody held them.
    assert!(ip(&format!("-n {} link del net0", world.pod)));
    let core = world.core(());
    core.synchronize(&[]).unwrap();
    let why = core.prepare(&claim, &names).unwrap_err().0;
    assert!(
        why.contains("interface `rail0` is not on the host"),
        "{why}"
    );
    for args in [
        "link add rail0 type veth peer name peer0",
        "addr add 10.0.0.5/24 dev rail0",
        "link set rail0 up",
    ] {
        assert!(ip(&format!("-n {} {args}", world.host)), "{args}");
    }
    let before = world.on_host();
    core.prepare(&claim, &names).unwrap();
    core.attach(&world.sandbox(), soon()).unwrap();
    assert!(world.check(&before, "attached again"));
    core.unprepare(UID).unwrap();
    assert!(!world.check(&before, "unprepared"));
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Error,
    Kill,
    Late,
}

/// A fault at one point, as often as is left.
struct Script {
    point: FaultPoint,
    kind: Kind,
    left: Mutex<usize>,
}

impl Script {
    fn new(point: FaultPoint, kind: Kind, times: usize) -> Script {
        Script {
            point,
            kind,
            left: Mutex::new(times),
        }
    }
}

impl Faults for Script {
    fn at(&self, point: FaultPoint) -> io::Result<()> {
        let mut left = self.left.lock().unwrap();
        if point != self.point || *left == 0 {
            return Ok(());
        }
        *left -= 1;
        match self.kind {
            Kind::Error => Err(io::Error::other("injected")),
            Kind::Kill => {
                let me = rustix::process::getpid();
                rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
                Ok(())
            }
            // Longer than the time that the attach is given.
            Kind::Late => {
                std::thread::sleep(LATE_BY);
                Ok(())
            }
        }
    }
}

const LATE_BY: Duration = Duration::from_millis(120);

/// All that is asked of a driver in the life of a claim; what it answered.
fn life(world: &World, faults: Script, until: Duration) -> Vec<String> {
    let core = world.core(faults);
    let (claim, names) = world.claim();
    let prepared = core.prepare(&claim, &names).map(drop);
    let attached = core.attach(&world.sandbox(), Instant::now() + until);
    let detached = core.detach(&world.sandbox());
    [prepared, attached, detached]
        .into_iter()
        .filter_map(|r| Some(r.err()?.0))
        .collect()
}

/// After whatever happened, a new driver settles it, and the life of the claim goes on.
fn recovers(world: &World, before: &Host, what: &str) {
    let core = world.core(());
    core.synchronize(&[world.sandbox()]).unwrap();
    world.check(before, what);
    let (claim, names) = world.claim();
    core.prepare(&claim, &names).unwrap();
    core.attach(&world.sandbox(), soon()).unwrap();
    assert!(world.check(before, what), "{what}: attached after all");
    core.unprepare(UID).unwrap();
    assert!(!world.check(before, what), "{what}: and given back");
}

#[test]
fn an_error_or_a_hang_at_any_step_loses_no_nic() {
    let Some(world) = world("e", 2) else { return };
    let before = world.on_host();
    for point in FAULT_POINTS {
        let told = life(
            &world,
            Script::new(point, Kind::Error, 1),
            Duration::from_secs(30),
        );
        assert!(
            told.iter().any(|t| t.contains("injected")),
            "{point:?}: {told:?}"
        );
        recovers(&world, &before, &format!("error at {point:?}"));
        life(&world, Script::new(point, Kind::Late, 1), LATE_BY);
        recovers(&world, &before, &format!("late at {point:?}"));
    }
}

#[test]
fn a_driver_killed_at_any_step_loses_no_nic() {
    let Some(world) = world("k", 2) else { return };
    let before = world.on_host();
    for (at, point) in FAULT_POINTS.iter().enumerate() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env("FOREBAY_TEST_HOST", &world.host)
            .env("FOREBAY_TEST_POD", &world.pod)
            .env("FOREBAY_TEST_FOLDER", &world.folder)
            .env("FOREBAY_TEST_AT", at.to_string())
            .output()
            .unwrap();
        assert!(
            child.status.code().is_none(),
            "{point:?}: the child was not killed: {child:?}"
        );
        // No driver runs now: the guard alone keeps a container from starting without its NICs.
        assert!(world.guard().is_err() || world.all_in_pod(), "{point:?}");
        recovers(&world, &before, &format!("killed at {point:?}"));
    }
}

/// The process that is killed; does nothing unless it is asked to.
#[test]
fn child() {
    let Ok(at) = std::env::var("FOREBAY_TEST_AT") else {
        return;
    };
    let var = |name| std::env::var(name).unwrap();
    let folder = var("FOREBAY_TEST_FOLDER").into();
    let (host, pod) = (var("FOREBAY_TEST_HOST"), var("FOREBAY_TEST_POD"));
    let world = World {
        host,
        pod,
        nics: 2,
        folder,
        own: None,
    };
    let point = FAULT_POINTS[at.parse::<usize>().unwrap()];
    let told = life(
        &world,
        Script::new(point, Kind::Kill, 1),
        Duration::from_secs(30),
    );
    panic!("came through: {told:?}");
}

/// Random lives, by a seed; `FOREBAY_SCHEDULES` says how many.
#[test]
fn random_schedules_keep_each_nic_in_one_place() {
    let Some(world) = world("r", 2) else { return };
    let before = world.on_host();
    let schedules = std::env::var("FOREBAY_SCHEDULES")
        .ok()
        .and_then(|n| n.parse().ok());
    let (claim, names) = world.claim();
    for seed in 1..=schedules.unwrap_or(25_u64) {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from(random >> 33).unwrap() % below
        };
        let mut said = Vec::new();
        for _ in 0..5 {
            let point = FAULT_POINTS[next(FAULT_POINTS.len())];
            let core = world.core(Script::new(point, Kind::Error, next(3)));
            let op = next(5);
            said.push((op, point));
            // What goes wrong here is settled below, and must not have broken anything.
            let _ = match op {
                0 => core.prepare(&claim, &names).map(drop),
                1 | 2 => core.attach(&world.sandbox(), soon()),
                3 => core.detach(&world.sandbox()),
                _ => core.unprepare(UID),
            };
            assert!(
                world.guard().is_err() || world.all_in_pod(),
                "seed {seed}: {said:?}"
            );
        }
        world.core(()).synchronize(&[world.sandbox()]).unwrap();
        world.check(&before, &format!("seed {seed}: {said:?}"));
        world.core(()).unprepare(UID).unwrap();
        assert!(!world.check(&before, &format!("seed {seed}: {said:?}, unprepared")));
    }
}

/// How long it takes is printed, not judged; `FOREBAY_ROUNDS` says how often.
#[test]
fn eight_nics_are_attached_together() {
    let Some(world) = world("m", 8) else { return };
    let before = world.on_host();
    let core = world.core(());
    let (claim, names) = world.claim();
    let rounds = std::env::var("FOREBAY_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(3);
    let mut took = Vec::new();
    core.prepare(&claim, &names).unwrap();
    for round in 0..rounds {
        let began = Instant::now();
        core.attach(&world.sandbox(), soon()).unwrap();
        took.push(began.elapsed());
        assert!(world.check(&before, &format!("round {round}")));
        core.detach(&world.sandbox()).unwrap();
    }
    took.sort();
    let (median, longest) = (took[rounds / 2], took[rounds - 1]);
    println!("attach of 8 NICs, {rounds} times: median {median:?}, longest {longest:?}");
    assert!(!world.check(&before, "at the end"));
}
