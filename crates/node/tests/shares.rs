//! Shares of a NIC, on real links between namespaces made for the test: several pods with a link of their own on
//! top of one NIC, which stays on the host as it was; their bandwidth; their addresses. And the invariant
//! of faults at every step: such a link is in its pod as a whole and verified, or there is none.
//! Skipped by name where namespaces cannot be made, or the kernel lacks a kind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
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
use forebay_node::sysfs::Parts;

/// A host with one NIC, `rail0`, whose other end is `wire` in a namespace of its own; and two pods.
struct World {
    id: String,
    folder: tempfile::TempDir,
}

fn run(program: &str, args: &str) -> Result<String, String> {
    let out = Command::new(program).args(args.split_whitespace()).output();
    let out = out.map_err(|e| e.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match out.status.success() {
        true => Ok(text(&out.stdout)),
        false => Err(text(&out.stderr)),
    }
}

fn ip(args: &str) -> Result<String, String> {
    run("ip", args)
}

fn world(name: &str) -> Option<World> {
    let world = World {
        id: format!("fs{}{name}", std::process::id()),
        folder: tempfile::tempdir().unwrap(),
    };
    for part in ["h", "w", "0", "1"] {
        if ip(&format!("netns add {}{part}", world.id)).is_err() {
            eprintln!("skipped {name}: network namespaces cannot be made (needs root and `ip`)");
            return None;
        }
    }
    let (h, w) = (world.ns("h"), world.ns("w"));
    for args in [
        format!("-n {h} link add rail0 type veth peer name wire netns {w}"),
        format!("-n {h} addr add 10.0.0.5/24 dev rail0"),
        format!("-n {h} link set rail0 up"),
        format!("-n {w} addr add 10.0.0.1/24 dev wire"),
        format!("-n {w} link set wire up"),
    ] {
        ip(&args).unwrap();
    }
    Some(world)
}

impl Drop for World {
    fn drop(&mut self) {
        for part in ["h", "w", "0", "1"] {
            let _ = ip(&format!("netns del {}{part}", self.id));
        }
    }
}

/// An interface of the host.
fn only(links: &KernelLinks, name: &str) -> Option<Interface> {
    let found = links.snapshot(&[name.to_owned()]);
    found.unwrap().pop().flatten()
}

impl World {
    fn ns(&self, part: &str) -> String {
        format!("{}{part}", self.id)
    }

    fn path(&self, part: &str) -> PathBuf {
        Path::new("/run/netns").join(self.ns(part))
    }

    fn links(&self) -> KernelLinks {
        KernelLinks::open(&self.path("h")).unwrap()
    }

    fn core<F: Faults>(&self, faults: F) -> Core<KernelLinks, F> {
        let state = self.folder.path().join("state");
        let cdi = Cdi {
            folder: self.folder.path().join("cdi"),
            program: "/forebay".into(),
            state: state.clone(),
        };
        let parts = Parts::new(&self.folder.path().join("sys"));
        let ledger = Ledger::open(&state).unwrap();
        Core::new(self.links(), faults, ledger, cdi).with_parts(parts, false)
    }

    fn prepare<F: Faults>(
        &self,
        core: &Core<KernelLinks, F>,
        claim: &AllocatedClaim,
    ) -> Result<(), String> {
        let names = BTreeMap::from([("rail0".to_owned(), "rail0".to_owned())]);
        core.prepare(claim, &names).map(drop).map_err(|e| e.0)
    }

    /// The sandbox of pod 0 or 1.
    fn sandbox(&self, pod: usize) -> Sandbox {
        Sandbox {
            id: format!("sandbox-{pod}"),
            namespace: "team".into(),
            name: format!("pod-{pod}"),
            uid: format!("pod-{pod}"),
            netns: Some(self.path(&pod.to_string())),
        }
    }

    fn guard(&self, pod: usize) -> Result<(), String> {
        let state = self.folder.path().join("state");
        let claim = format!("claim-{pod}");
        guard::check(&self.links(), &state, &claim, &self.path(&pod.to_string()))
    }

    fn on_host(&self) -> Option<Interface> {
        only(&self.links(), "rail0")
    }

    /// The names of links in a pod, loopback left out.
    fn in_pod(&self, pod: usize) -> Vec<String> {
        let told = ip(&format!("-n {} -o link show", self.ns(&pod.to_string()))).unwrap();
        let names = told.lines().filter_map(|line| line.split(": ").nth(1));
        let names = names.map(|name| name.split('@').next().unwrap_or(name).to_owned());
        names.filter(|name| name != "lo").collect()
    }

    /// Whether pod `pod` gets an answer from `to`.
    /// Whether a host answers a pod: one where nobody listens refuses the connection.
    fn reaches(&self, pod: usize, to: &str) -> bool {
        let netns = forebay_node::netns::open(&self.path(&pod.to_string()));
        let to = SocketAddr::new(to.parse().unwrap(), 9);
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5)).map(drop);
        let answer = forebay_node::netns::within(&netns.unwrap().unwrap(), connect);
        answer.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// How often the token bucket in front of a link made a packet wait, or dropped it: who sends by himself
    /// waits for room in his socket before anything is dropped.
    fn held_back(&self, pod: usize, link: &str) -> u64 {
        let ns = self.ns(&pod.to_string());
        let told = ip(&format!("netns exec {ns} tc -s qdisc show dev {link}")).unwrap();
        let after = told
            .split("overlimits ")
            .nth(1)
            .unwrap_or_else(|| panic!("{told}"));
        after.split(' ').next().unwrap().parse().unwrap()
    }

    /// Sends `count` datagrams of 1 KB from a namespace to an address, at once.
    fn flood(&self, from: &str, to: &str, count: usize) {
        let netns = forebay_node::netns::open(&self.path(from))
            .unwrap()
            .unwrap();
        let send = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..count {
                // What the kernel holds back is counted.
                let _ = socket.send_to(&[0; 1000], (to, 9));
            }
            Ok(())
        };
        forebay_node::netns::within(&netns, send).unwrap();
    }
}

/// The claim of pod 0 or 1, for a share of `rail0` with these parameters.
fn claim(pod: usize, bandwidth_bps: Option<u64>, parameters: &str) -> AllocatedClaim {
    AllocatedClaim {
        pod_name: None,
        claim: ClaimRef {
            namespace: "team".into(),
            name: format!("nics-{pod}"),
            uid: format!("claim-{pod}"),
        },
        reserved_for: vec![PodRef {
            name: format!("pod-{pod}"),
            uid: format!("pod-{pod}"),
        }],
        devices: vec![AllocatedDevice {
            request: "nic".into(),
            pool: "node".into(),
            device: "rail0".into(),
            share_id: Some(format!("share-{pod}")),
            bandwidth_bps,
            admin_access: false,
        }],
        configs: vec![DeviceConfig {
            requests: vec![],
            from_class: false,
            parameters: parameters.to_owned(),
        }],
    }
}

const RANGE: &str = r#"{"interface": {"name": "net0"},
    "ipam": {"type": "range", "subnet": "10.0.0.0/24", "start": "10.0.0.10", "end": "10.0.0.11"}}"#;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[test]
fn pods_share_a_nic_that_stays_on_the_host_as_it_was() {
    let Some(world) = world("s") else { return };
    let before = world.on_host();
    let core = world.core(());
    for pod in [0, 1] {
        world.prepare(&core, &claim(pod, None, RANGE)).unwrap();
        assert!(world.guard(pod).is_err(), "not attached yet");
        core.attach(&world.sandbox(pod), soon()).unwrap();
        assert_eq!(world.in_pod(pod), ["net0"]);
        assert_eq!(world.guard(pod), Ok(()));
    }
    assert_eq!(world.on_host(), before, "the NIC itself");
    assert!(world.reaches(0, "10.0.0.1"), "what is beyond the NIC");
    assert!(world.reaches(0, "10.0.0.11"), "the other pod");
    assert!(world.reaches(1, "10.0.0.1"));
    core.synchronize(&[world.sandbox(0), world.sandbox(1)])
        .unwrap();
    assert_eq!(world.guard(1), Ok(()), "a driver that came back leaves it");
    core.detach(&world.sandbox(0)).unwrap();
    assert_eq!(world.in_pod(0), [] as [&str; 0]);
    assert!(
        world.reaches(1, "10.0.0.1"),
        "who has another share keeps it"
    );
    core.unprepare("claim-0").unwrap();
    // The pod's end takes its link, and nothing is left to do.
    ip(&format!("netns del {}", world.ns("1"))).unwrap();
    core.synchronize(&[]).unwrap();
    core.unprepare("claim-1").unwrap();
    assert_eq!(world.on_host(), before);
}

#[test]
fn addresses_of_a_range_are_handed_out_once_and_free_when_their_claim_ends() {
    let Some(world) = world("i") else { return };
    let core = world.core(());
    let address = |pod: usize| {
        let record = Ledger::open(&world.folder.path().join("state")).unwrap();
        let record = record.read(&format!("claim-{pod}")).unwrap().unwrap();
        record.devices[0].plan.pod.addresses[0].to_string()
    };
    for pod in [0, 1] {
        world.prepare(&core, &claim(pod, None, RANGE)).unwrap();
    }
    assert_eq!([address(0), address(1)], ["10.0.0.10/24", "10.0.0.11/24"]);
    let why = world.prepare(&core, &claim(2, None, RANGE)).unwrap_err();
    assert!(
        why.contains("no address of 10.0.0.10 to 10.0.0.11 is free"),
        "{why}"
    );
    let said = r#"{"interface": {"addresses": ["10.0.0.10/24"]}}"#;
    let why = world.prepare(&core, &claim(2, None, said)).unwrap_err();
    assert!(
        why.contains("address 10.0.0.10/24 is claim team/nics-0"),
        "{why}"
    );
    core.unprepare("claim-0").unwrap();
    world.prepare(&core, &claim(1, None, RANGE)).unwrap();
    assert_eq!(address(1), "10.0.0.11/24", "planned for again it keeps it");
    world.prepare(&core, &claim(2, None, RANGE)).unwrap();
    assert_eq!(address(2), "10.0.0.10/24");
    for pod in [1, 2] {
        core.unprepare(&format!("claim-{pod}")).unwrap();
    }
}

#[test]
fn a_share_sends_and_receives_no_more_than_it_was_given() {
    let Some(world) = world("b") else { return };
    let core = world.core(());
    // 1 Mb/s: of 400 KB at once some 128 KB may go or wait, and 125 KB more each second.
    let claim = claim(0, Some(1_000_000), RANGE);
    world.prepare(&core, &claim).unwrap();
    if let Err(why) = core.attach(&world.sandbox(0), soon())
        && why.0.contains("this node's kernel lacks")
    {
        eprintln!("skipped: {why}");
        return;
    }
    let links = world.in_pod(0);
    let between = links.iter().find(|name| name.starts_with("fbin-")).unwrap();
    world.flood("0", "10.0.0.1", 400);
    assert!(world.held_back(0, "net0") > 0, "of what it sent");
    world.flood("w", "10.0.0.10", 400);
    assert!(world.held_back(0, between) > 0, "of what it received");
    assert!(world.reaches(0, "10.0.0.1"), "the rest goes through");
    // The guard looks itself: what someone took away since is seen.
    let ns = world.ns("0");
    ip(&format!("netns exec {ns} tc qdisc del dev net0 root")).unwrap();
    let why = world.guard(0).unwrap_err();
    assert!(
        why.contains("it sends as much as it can, not 1000000 bit/s at most"),
        "{why}"
    );
    core.detach(&world.sandbox(0)).unwrap();
    assert_eq!(
        world.in_pod(0),
        [] as [&str; 0],
        "nothing is left in between"
    );
    core.unprepare("claim-0").unwrap();
}

#[test]
fn a_nic_is_shared_or_whole_and_the_other_claim_is_named() {
    let Some(world) = world("w") else { return };
    let core = world.core(());
    world.prepare(&core, &claim(0, None, RANGE)).unwrap();
    let mut whole = claim(1, None, "{}");
    whole.devices[0].share_id = None;
    let why = world.prepare(&core, &whole).unwrap_err();
    assert!(why.contains("rail0 is still claim team/nics-0"), "{why}");
    core.unprepare("claim-0").unwrap();
    world.prepare(&core, &whole).unwrap();
    let why = world.prepare(&core, &claim(0, None, RANGE)).unwrap_err();
    assert!(
        why.contains("rail0 is whole in the pod of claim team/nics-1"),
        "{why}"
    );
    core.unprepare("claim-1").unwrap();
}

#[test]
fn every_kind_of_link_that_this_kernel_has_is_made_and_verified() {
    let Some(world) = world("k") else { return };
    let core = world.core(());
    for (kind, mode) in [
        ("macvlan", "bridge"),
        ("macvlan", "private"),
        ("macvlan", "vepa"),
        ("ipvlan", "l2"),
        ("ipvlan", "l3"),
        ("ipvlan", "l3s"),
    ] {
        let parameters = format!(
            r#"{{"interface": {{"name": "net0", "addresses": ["10.0.0.9/24"]}},
                "subInterface": {{"type": "{kind}", "mode": "{mode}"}}}}"#
        );
        world.prepare(&core, &claim(0, None, &parameters)).unwrap();
        match core.attach(&world.sandbox(0), soon()) {
            Ok(()) => assert_eq!(world.guard(0), Ok(()), "{kind} {mode}"),
            Err(why) if why.0.contains(&format!("this node's kernel has no {kind}")) => {
                eprintln!("skipped {kind} {mode}: {why}");
            }
            Err(why) => panic!("{kind} {mode}: {why}"),
        }
        core.unprepare("claim-0").unwrap();
        assert_eq!(world.in_pod(0), [] as [&str; 0], "{kind} {mode}");
    }
}

#[test]
fn a_virtual_function_is_moved_in_the_place_of_its_device() {
    let Some(world) = world("v") else { return };
    let h = world.ns("h");
    for args in [
        format!("-n {h} link add rail0v0 type veth peer name vfwire"),
        format!("-n {h} link set rail0v0 up"),
    ] {
        ip(&args).unwrap();
    }
    // What the kernel would show of a NIC with one virtual function, whose interface is a veth here.
    let device = world.folder.path().join("sys/class/net/rail0/device");
    std::fs::create_dir_all(&device).unwrap();
    let function = world.folder.path().join("sys/0000:8f:00.1");
    std::fs::create_dir_all(function.join("net/rail0v0")).unwrap();
    std::os::unix::fs::symlink("../../../../0000:8f:00.1", device.join("virtfn0")).unwrap();
    let core = world.core(());
    let vf = r#"{"interface": {"name": "net0"}, "subInterface": {"type": "vf"}}"#;
    let before = (world.on_host(), only(&world.links(), "rail0v0"));
    world.prepare(&core, &claim(0, None, vf)).unwrap();
    core.attach(&world.sandbox(0), soon()).unwrap();
    assert_eq!(world.in_pod(0), ["net0"]);
    assert_eq!(only(&world.links(), "rail0v0"), None, "moved");
    assert_eq!(world.on_host(), before.0, "its device stays");
    let why = world.prepare(&core, &claim(1, None, vf)).unwrap_err();
    assert!(
        why.contains("its 1 virtual functions are all in use"),
        "{why}"
    );
    core.unprepare("claim-0").unwrap();
    assert_eq!(only(&world.links(), "rail0v0"), before.1);
}

#[test]
fn who_only_looks_gets_a_device_that_somebody_has_and_moves_nothing() {
    let Some(world) = world("a") else { return };
    let before = world.on_host();
    let core = world.core(());
    let mut whole = claim(0, None, r#"{"interface": {"name": "net0"}}"#);
    whole.devices[0].share_id = None;
    world.prepare(&core, &whole).unwrap();
    core.attach(&world.sandbox(0), soon()).unwrap();
    let mut looks = claim(1, None, "{}");
    looks.devices[0].admin_access = true;
    let names = BTreeMap::new();
    let told = core.prepare(&looks, &names).unwrap();
    assert_eq!(
        (&told[0].device[..], &told[0].cdi_ids[..]),
        ("rail0", &["forebay.dev/nic=claim-1".to_owned()][..])
    );
    // Such pods often have the host's network.
    let mut sandbox = world.sandbox(1);
    sandbox.netns = None;
    core.attach(&sandbox, soon()).unwrap();
    core.synchronize(&[world.sandbox(0), sandbox.clone()])
        .unwrap();
    assert_eq!((world.guard(0), world.guard(1)), (Ok(()), Ok(())));
    assert_eq!(world.in_pod(1), [] as [&str; 0]);
    core.detach(&sandbox).unwrap();
    core.unprepare("claim-1").unwrap();
    assert_eq!(world.in_pod(0), ["net0"], "who has it keeps it");
    core.unprepare("claim-0").unwrap();
    assert_eq!(world.on_host(), before);
}

/// An error at one point, so often.
struct Script(FaultPoint, Mutex<usize>);

impl Faults for Script {
    fn at(&self, point: FaultPoint) -> io::Result<()> {
        let mut left = self.1.lock().unwrap();
        if point != self.0 || *left == 0 {
            return Ok(());
        }
        *left -= 1;
        Err(io::Error::other("injected"))
    }
}

impl World {
    /// The invariant, after things were settled: the link is whole in its pod, or there is none; the NIC is on
    /// the host as it was. Whether it is there.
    fn check(&self, before: &Option<Interface>, what: &str) -> bool {
        assert_eq!(&self.on_host(), before, "{what}: the NIC");
        let there = self.in_pod(0).iter().any(|name| name == "net0");
        let guard = self.guard(0);
        assert_eq!(guard.is_ok(), there, "{what}: {guard:?}");
        if !there {
            assert_eq!(
                self.in_pod(0),
                [] as [&str; 0],
                "{what}: a part of it is left"
            );
        }
        there
    }
}

#[test]
fn random_schedules_with_errors_at_every_step_leave_a_share_whole_or_none() {
    let Some(world) = world("r") else { return };
    let before = world.on_host();
    let schedules = std::env::var("FOREBAY_SCHEDULES").ok();
    let schedules = schedules.and_then(|n| n.parse().ok()).unwrap_or(20_u64);
    let claim = claim(0, Some(50_000_000), RANGE);
    for seed in 1..=schedules {
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
            let core = world.core(Script(point, Mutex::new(next(3))));
            let op = next(5);
            said.push((op, point));
            // What goes wrong here is settled below, and must not have broken anything.
            let _ = match op {
                0 => world.prepare(&core, &claim),
                1 | 2 => core.attach(&world.sandbox(0), soon()).map_err(|e| e.0),
                3 => core.detach(&world.sandbox(0)).map_err(|e| e.0),
                _ => core.unprepare("claim-0").map_err(|e| e.0),
            };
            let there = world.in_pod(0).iter().any(|name| name == "net0");
            assert!(world.guard(0).is_err() || there, "seed {seed}: {said:?}");
        }
        world.core(()).synchronize(&[world.sandbox(0)]).unwrap();
        world.check(&before, &format!("seed {seed}: {said:?}"));
        world.core(()).unprepare("claim-0").unwrap();
        let gone = !world.check(&before, &format!("seed {seed}: {said:?}, unprepared"));
        assert!(gone, "seed {seed}: {said:?}");
    }
}
