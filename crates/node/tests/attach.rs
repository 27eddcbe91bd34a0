//! Attaching and detaching real links (veth) between namespaces made for the test: faults at every
//! step, the process killed at every step, and random schedules, always with one invariant: NICs are
//! all in their pod, or all on the host as they were, and the guard lets a container start only in the
//! first case. Skipped by name where namespaces cannot be made.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use forebay_fabric::machine::{Machine, Netdev, Nic, Sriov};
use forebay_fabric::publish;
use forebay_node::attach::{FAULT_POINTS, FaultPoint, Faults};
use forebay_node::held::Held;
use forebay_node::inventory::Known;
use forebay_node::ledger::Ledger;
use world::{Host, UID, World, ip, netns, soon, world};

#[path = "support/world.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod world;

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
fn nics_of_a_pod_that_the_runtime_takes_away_before_its_first_container_come_back() {
    let Some(world) = world("t", 2) else { return };
    let before = world.on_host();
    let (claim, names) = world.claim();
    let core = world.core(());
    core.prepare(&claim, &names).unwrap();
    // The runtime stops the sandbox without us, and lists it all the same when it is back.
    core.synchronize(&[world.sandbox()]).unwrap();
    assert_eq!(world.guard(), Ok(()));
    assert!(ip(&format!("netns del {}", world.pod)));
    core.unprepare(UID).unwrap();
    assert_eq!(world.on_host(), before);
    assert!(
        ip(&format!("netns add {}", world.pod)),
        "for the world's end"
    );
}

#[test]
fn a_nic_is_written_down_as_it_is_published_from_its_plan_until_its_claim_is_forgotten() {
    let Some(world) = world("h", 1) else { return };
    let nic = Nic {
        pci: None,
        sriov: Sriov::None,
        netdev: Some(Netdev {
            name: "rail0".into(),
            kind: "veth".into(),
            mac: String::new(),
            mtu: 1500,
            addresses: Vec::new(),
            admin_up: true,
            state: "up".into(),
            speed_mbps: None,
            alias: String::new(),
        }),
        rdma: None,
    };
    let machine = Machine {
        nics: vec![nic.clone()],
        ..Machine::default()
    };
    let input = publish::Input {
        machine,
        ..publish::Input::default()
    };
    let device = publish::devices(&input).0.remove(0);
    let held = Held::open(&world.folder.join("state")).unwrap();
    let core = world
        .core(())
        .with_held(held.clone(), Known::of([(nic.clone(), device)]));
    let (mut claim, _) = world.claim();
    claim.devices[0].device = "rail0".into();
    let names = BTreeMap::from([("rail0".to_owned(), "rail0".to_owned())]);
    core.prepare(&claim, &names).unwrap();
    assert_eq!(held.all().unwrap(), std::slice::from_ref(&nic));
    core.attach(&world.sandbox(), soon()).unwrap();
    core.detach(&world.sandbox()).unwrap();
    assert_eq!(held.all().unwrap(), [nic], "the claim has it still");
    core.unprepare(UID).unwrap();
    assert_eq!(held.all().unwrap(), [], "as it is found from now on");
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

/// Moves all NICs there and back by `ip`, with nothing else: what the kernel takes for that by itself.
fn moved_bare(world: &World) {
    for (from, to) in [(&world.host, &world.pod), (&world.pod, &world.host)] {
        let batch = world.folder.join("batch");
        let move_one = |n| format!("link set rail{n} netns {to}\n");
        std::fs::write(&batch, (0..world.nics).map(move_one).collect::<String>()).unwrap();
        assert!(ip(&format!("-n {from} -batch {}", batch.display())));
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
    let mut took: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut timed = |step: &'static str, work: &dyn Fn()| {
        let began = Instant::now();
        work();
        took.entry(step).or_default().push(began.elapsed());
    };
    for round in 0..rounds {
        timed("prepare", &|| drop(core.prepare(&claim, &names).unwrap()));
        timed("attach", &|| {
            core.attach(&world.sandbox(), soon()).unwrap();
        });
        assert!(world.check(&before, &format!("round {round}")));
        timed("guard", &|| world.guard().unwrap());
        timed("detach", &|| core.detach(&world.sandbox()).unwrap());
        timed("unprepare", &|| core.unprepare(UID).unwrap());
    }
    assert!(!world.check(&before, "at the end"));
    for _ in 0..rounds {
        timed("bare move, there and back,", &|| moved_bare(&world));
    }
    for (step, mut took) in took {
        took.sort();
        let ms = |at: usize| took[at.min(rounds - 1)].as_secs_f64() * 1e3;
        println!(
            "{step} of 8 NICs, {rounds} times, ms: median {:.1}, p99 {:.1}, longest {:.1}",
            ms(rounds / 2),
            ms(rounds * 99 / 100),
            ms(rounds - 1)
        );
    }
}
