//! Addresses that others give: a real DHCP server (dnsmasq) on the network of a NIC, and a server for profiles.
//! Needs root; what cannot be had is said and skipped.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/world.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_fabric::config::NetworkConfig;
use forebay_fabric::dhcp::{Due, Lease};
use forebay_node::attach::{Core, FaultPoint, Faults, HostDriver};
use forebay_node::cloud::http::Http;
use forebay_node::driver::Driver as _;
use forebay_node::inventory::Known;
use forebay_node::ipam::message::Answer;
use forebay_node::ipam::webhook::Profiles;
use forebay_node::ipam::{Ask, Elsewhere, Keeper, Profile, Sources, now_s};
use forebay_node::ledger::Ledger;
use forebay_node::netlink::{KernelLinks, Links};
use serde_json::{Value, json};
use world::{UID, World, ip, netns, world};

/// Why there is no DHCP server on this machine.
fn missing() -> Option<String> {
    if let Ok(why) = std::env::var("FOREBAY_DHCP_SKIP") {
        return Some(why);
    }
    let there = Command::new("dnsmasq").arg("--version").output();
    there.err().map(|error| format!("dnsmasq: {error}"))
}

/// A DHCP server at the far end of `rail0`, which ends with this.
struct Server(Child);

impl Server {
    fn start(world: &World) -> Option<Server> {
        let leases = world.folder.join("leases");
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &world.host,
            "dnsmasq",
            "--keep-in-foreground",
        ]);
        command.args([
            "--conf-file=/dev/null",
            "--port=0",
            "--pid-file=",
            "--user=root",
            "--no-ping",
        ]);
        command.args([
            "--interface=peer0",
            "--bind-interfaces",
            "--dhcp-authoritative",
        ]);
        command.args([
            "--dhcp-range=10.0.0.50,10.0.0.60,255.255.255.0,2m",
            "--log-facility=-",
        ]);
        command.args([
            "--dhcp-option=121,10.1.0.0/16,10.0.0.1",
            "--dhcp-option=3,10.0.0.1",
        ]);
        command.arg(format!("--dhcp-leasefile={}", leases.display()));
        if let Some(why) = missing() {
            eprintln!("skipped dhcp: {why}");
            return None;
        }
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        Some(Server(child))
    }

    /// The addresses that it has given, as it writes them down.
    fn given(world: &World) -> String {
        fs::read_to_string(world.folder.join("leases")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn elsewhere(world: &World) -> Elsewhere {
    let host = File::open(netns(&world.host)).unwrap();
    Elsewhere::new(host, Known::default(), None)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

const BY_DHCP: &str = r#"{"interface": {"name": "net0", "dhcp": true}}"#;

/// Fails before a plan is made.
struct NoPlan;

impl Faults for NoPlan {
    fn at(&self, point: FaultPoint) -> std::io::Result<()> {
        match point {
            FaultPoint::Plan => Err(std::io::Error::other("no plan")),
            _ => Ok(()),
        }
    }
}

/// Claims of one host, without those who ask for them.
struct NoClaims;

impl forebay_node::attach::ClaimSource for NoClaims {
    async fn fetch(
        &self,
        _: &forebay_fabric::claim::ClaimRef,
    ) -> Result<forebay_fabric::claim::AllocatedClaim, forebay_node::attach::NoClaim> {
        let why = forebay_node::driver::DriverError("there is none".into());
        Err(forebay_node::attach::NoClaim::Refused(why))
    }

    fn interface(&self, _: &str) -> Option<String> {
        None
    }
}

fn driver(core: Core<KernelLinks>) -> HostDriver<NoClaims, KernelLinks> {
    let (_, health) = tokio::sync::watch::channel(Vec::new());
    HostDriver::new(NoClaims, core, health)
}

/// Who keeps the leases of a driver that has the same ledger.
fn keeper(world: &World) -> Keeper<KernelLinks, ()> {
    let driver = driver(world.core(()).with_sources(elsewhere(world)));
    assert!(driver.health().borrow().is_empty());
    driver.keeper()
}

#[test]
fn a_lease_is_had_kept_lost_found_again_and_given_back() {
    let Some(world) = world("d", 1) else { return };
    let far = format!("-n {} addr add 10.0.0.1/24 dev peer0", world.host);
    assert!(ip(&far));
    // As NICs mostly are that nobody set up.
    assert!(ip(&format!("-n {} link set rail0 down", world.host)));
    let before = world.on_host();
    let Some(server) = Server::start(&world) else {
        return;
    };
    let core = world.core(()).with_sources(elsewhere(&world));
    let (claim, names) = world.claim_of(|_| BY_DHCP.into());
    core.prepare(&claim, &names).unwrap();
    assert_eq!(
        world.on_host(),
        before,
        "down again, and nothing else changed"
    );
    core.attach(&world.sandbox(), soon()).unwrap();
    assert_eq!(world.guard(), Ok(()));
    let pod = KernelLinks::open(&netns(&world.pod)).unwrap();
    let net0 = pod.snapshot(&["net0".into()]).unwrap().remove(0).unwrap();
    let address = net0.addresses[0];
    let own: std::net::Ipv4Addr = address.ip.to_string().parse().unwrap();
    assert!((50..=60).contains(&own.octets()[3]), "{address}");
    assert_eq!(address.prefix_len, 24);
    assert_eq!(net0.routes.len(), 1, "no default: {:?}", net0.routes);
    assert_eq!(net0.routes[0].destination.to_string(), "10.1.0.0/16");
    assert!(Server::given(&world).contains(&own.to_string()));

    let mut keeper = keeper(&world);
    let ledger = Ledger::open(&world.folder.join("state")).unwrap();
    let lease = || {
        ledger.read(UID).unwrap().unwrap().devices[0]
            .lease()
            .cloned()
            .unwrap()
    };
    let began = lease().since_s;
    assert_eq!(keeper.work(began + 10), [] as [&str; 0]);
    assert_eq!(lease().since_s, began, "not due yet");
    assert_eq!(keeper.work(began + 70), [] as [&str; 0]);
    assert_eq!(
        (lease().since_s, lease().lost),
        (began + 70, None),
        "let go on"
    );

    drop(server);
    let over = keeper.work(began + 70 + 121);
    assert!(
        over[0].contains(&format!("the lease of {address} is over")),
        "{over:?}"
    );
    assert!(lease().lost.is_some());
    assert_eq!(world.guard(), Ok(()), "the pod keeps its NIC as it is");
    let server = Server::start(&world).unwrap();
    // It binds its socket first.
    let until = soon();
    let mut at = began + 1_000;
    while lease().lost.is_some() {
        assert!(Instant::now() < until, "not had again");
        assert_eq!(keeper.work(at), [] as [&str; 0], "it was told once");
        at += 200;
    }

    core.detach(&world.sandbox()).unwrap();
    core.unprepare(UID).unwrap();
    assert_eq!(world.on_host(), before);
    assert!(
        Server::given(&world).contains(&own.to_string()),
        "not told yet"
    );
    assert_eq!(keeper.work(now_s()), [] as [&str; 0]);
    let until = soon();
    while Server::given(&world).contains(&own.to_string()) {
        assert!(Instant::now() < until, "the server was not told");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(server);
}

#[test]
fn shares_are_stations_of_their_own() {
    let Some(world) = world("ds", 1) else { return };
    let far = format!("-n {} addr add 10.0.0.1/24 dev peer0", world.host);
    assert!(ip(&far));
    let Some(_server) = Server::start(&world) else {
        return;
    };
    let core = world.core(()).with_sources(elsewhere(&world));
    let (mut claim, names) = world.claim_of(|_| BY_DHCP.into());
    claim.devices[0].share_id = Some("s-1".into());
    core.prepare(&claim, &names).unwrap();
    let ledger = Ledger::open(&world.folder.join("state")).unwrap();
    let device = || ledger.read(UID).unwrap().unwrap().devices.remove(0);
    let first = device();
    assert_eq!(first.lease().map(|lease| lease.mac), first.plan.pod.mac);
    core.prepare(&claim, &names).unwrap();
    assert_eq!(
        device(),
        first,
        "asked again it is the same, and nobody is asked"
    );
    let failing = world.core(NoPlan).with_sources(elsewhere(&world));
    failing.prepare(&claim, &names).unwrap_err();
    assert_eq!(device(), first);
    let owed = world
        .folder
        .join("state/releases")
        .join(format!("{UID}.owed"));
    assert!(!owed.exists(), "what is planned for is not given back");
    core.attach(&world.sandbox(), soon()).unwrap();
    assert_eq!(world.guard(), Ok(()));
    core.unprepare(UID).unwrap();
    assert!(owed.exists());
    let ipvlan = r#"{"subInterface": {"type": "ipvlan", "mode": "l2"}, "ipam": {"type": "dhcp"}}"#;
    let (claim, names) = world.claim_of(|_| ipvlan.into());
    let why = core.prepare(&claim, &names).unwrap_err().0;
    assert!(why.contains("no Ethernet address of its own"), "{why}");
}

/// A server for profiles beside the DHCP servers, of devices that are not looked up.
#[derive(Debug)]
struct Both {
    leases: Elsewhere,
    profiles: Profiles,
}

impl Sources for Both {
    fn lease(&self, ask: &Ask<'_>) -> Result<Lease, String> {
        self.leases.lease(ask)
    }

    fn profile(&self, ask: &Ask<'_>) -> Result<(NetworkConfig, Profile), String> {
        (self.profiles).get(ask, json!({ "name": ask.device.device }))
    }

    fn renew(
        &self,
        netns: &File,
        interface: &str,
        lease: &Lease,
        whom: Due,
    ) -> std::io::Result<Option<Answer>> {
        self.leases.renew(netns, interface, lease, whom)
    }

    fn release_lease(&self, interface: &str, lease: &Lease) {
        self.leases.release_lease(interface, lease);
    }

    fn release_profile(&self, profile: &Profile) -> Result<(), String> {
        self.profiles.release(profile)
    }
}

#[test]
fn a_profile_lies_below_a_lease_and_both_are_given_back() {
    let Some(world) = world("dp", 1) else { return };
    let far = format!("-n {} addr add 10.0.0.1/24 dev peer0", world.host);
    assert!(ip(&far));
    let Some(_server) = Server::start(&world) else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let service = Http::new(&url, Duration::from_secs(5)).unwrap();
    let core = world.core(()).with_sources(Both {
        leases: elsewhere(&world),
        profiles: Profiles::new(service, runtime.handle().clone()),
    });
    let ledger = Ledger::open(&world.folder.join("state")).unwrap();
    let asks = r#"{"profile": "fast", "interface": {"name": "net0", "dhcp": true}}"#;
    let (claim, names) = world.claim_of(|_| asks.into());
    let given = r#"{"interface": {"mtu": 1400, "addresses": ["192.0.2.7/24"],
        "hardwareAddr": "02:00:00:00:00:07"}}"#;
    let served = std::thread::scope(|scope| {
        let answers = [(200, given), (503, "later\n"), (200, "")];
        let served = scope.spawn(move || serve(&listener, &answers));
        core.prepare(&claim, &names).unwrap();
        let device = ledger.read(UID).unwrap().unwrap().devices.remove(0);
        let lease = device.lease().cloned().unwrap();
        let pod = &device.plan.pod;
        assert_eq!((pod.mtu, &pod.name), (1400, &"net0".to_owned()));
        assert_eq!(pod.addresses, [lease.address], "the claim asks for a lease");
        assert_eq!(Some(lease.mac), pod.mac);
        assert_eq!(lease.mac.to_string(), "02:00:00:00:00:07");

        core.unprepare(UID).unwrap();
        let driver = driver(core);
        let mut keeper = driver.keeper();
        let owed = || {
            let owed = world.folder.join("state/releases");
            fs::read_to_string(owed.join(format!("{UID}.owed"))).unwrap_or_default()
        };
        assert!(owed().contains("Lease") && owed().contains("Profile"));
        let told = keeper.work(now_s());
        assert!(told[0].contains("refuses (503): later"), "{told:?}");
        assert!(
            !owed().contains("Lease") && owed().contains("Profile"),
            "the lease is not given back twice: {}",
            owed()
        );
        assert_eq!(keeper.work(now_s()), [] as [&str; 0]);
        assert_eq!(owed(), "");
        served.join().unwrap()
    });
    assert_eq!(served[2].0, "POST /ReleaseProfileConfig HTTP/1.1");
}

#[test]
fn without_a_server_a_claim_is_refused_and_nothing_is_left() {
    let Some(world) = world("dn", 1) else { return };
    let before = world.on_host();
    let core = world.core(()).with_sources(elsewhere(&world));
    let (claim, names) = world.claim_of(|_| BY_DHCP.into());
    let why = core.prepare(&claim, &names).unwrap_err().0;
    assert!(
        why.contains("dev-0: on `rail0`: no DHCP server answered within 5 s"),
        "{why}"
    );
    assert_eq!(world.on_host(), before);
    let (claim, names) = world.claim_of(|_| r#"{"profile": "fast"}"#.into());
    let why = core.prepare(&claim, &names).unwrap_err().0;
    assert!(why.contains("`rail0` is not on this node"), "{why}");
    let ledger = Ledger::open(&world.folder.join("state")).unwrap();
    assert_eq!(ledger.all().unwrap(), (vec![], vec![]));
}

/// Answers one connection for each of `answers`; the bodies of what was asked.
fn serve(listener: &TcpListener, answers: &[(u16, &str)]) -> Vec<(String, Value)> {
    let one = |(status, body): &(u16, &str)| {
        let mut stream = listener.accept().unwrap().0;
        let mut asked = Vec::new();
        let mut buffer = [0; 4096];
        let body_of = |asked: &[u8]| {
            let text = String::from_utf8_lossy(asked).into_owned();
            let (head, body) = text.split_once("\r\n\r\n")?;
            let length = head.to_lowercase();
            let length = length
                .split("content-length: ")
                .nth(1)?
                .lines()
                .next()?
                .to_owned();
            (body.len() == length.parse::<usize>().ok()?).then(|| {
                (
                    head.lines().next().unwrap_or_default().to_owned(),
                    body.to_owned(),
                )
            })
        };
        loop {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&asked));
            asked.extend(&buffer[..read]);
            if let Some((line, sent)) = body_of(&asked) {
                let length = body.len();
                write!(
                    stream,
                    "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{body}"
                )
                .unwrap();
                return (line, serde_json::from_str(&sent).unwrap());
            }
        }
    };
    answers.iter().map(one).collect()
}

#[test]
fn a_profiles_server_is_asked_and_told_as_dranets_is() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let service = Http::new(&url, Duration::from_secs(5)).unwrap();
    let profiles = Profiles::new(service, runtime.handle().clone());
    let of_nobody = World {
        host: String::new(),
        pod: String::new(),
        nics: 1,
        folder: "/nowhere".into(),
        own: None,
    };
    let (claim, _) = of_nobody.claim_of(|_| r#"{"profile": "fast"}"#.into());
    let ask = Ask {
        claim: &claim,
        device: &claim.devices[0],
        interface: "rail0",
        mac: None,
    };
    let given = r#"{"interface": {"addresses": ["10.0.0.7/24"]}}"#;
    let answers = [
        (200, given),
        (409, "10.0.0.7 is taken\n"),
        (200, "{\"mtu\": 1}"),
        (200, ""),
    ];
    std::thread::scope(|scope| {
        let served = scope.spawn(|| serve(&listener, &answers));
        let identifiers = json!({ "name": "dev-0" });
        let (config, kept) = profiles.get(&ask, identifiers.clone()).unwrap();
        assert_eq!(config.interface.addresses[0].to_string(), "10.0.0.7/24");
        let why = profiles.get(&ask, identifiers.clone()).unwrap_err();
        assert_eq!(why, "the profile's server refuses (409): 10.0.0.7 is taken");
        let why = profiles.get(&ask, identifiers.clone()).unwrap_err();
        assert!(why.contains("mtu: no such field"), "{why}");
        profiles.release(&kept).unwrap();
        let asked = served.join().unwrap();
        assert_eq!(asked[0].0, "POST /GetProfileConfig HTTP/1.1");
        assert_eq!(asked[0].1["device"], identifiers);
        assert_eq!(asked[0].1["config"], json!({ "profile": "fast" }));
        assert_eq!(asked[0].1["claim"]["metadata"]["uid"], UID);
        assert_eq!(
            asked[0].1["claim"]["status"]["reservedFor"][0]["name"],
            "pod"
        );
        assert_eq!(asked[3].0, "POST /ReleaseProfileConfig HTTP/1.1");
        assert_eq!(
            asked[3].1,
            json!({ "device": identifiers, "claim_uid": UID, "config": { "profile": "fast" } })
        );
    });
}
