//! A host with NICs (veths) and a pod, each a namespace made for the test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use forebay_fabric::claim::{AllocatedClaim, AllocatedDevice, ClaimRef, DeviceConfig, PodRef};
use forebay_fabric::plan::Interface;
use forebay_node::attach::{Core, Faults};
use forebay_node::cdi::Cdi;
use forebay_node::driver::Sandbox;
use forebay_node::guard;
use forebay_node::ledger::Ledger;
use forebay_node::netlink::{KernelLinks, Links};

pub(crate) const UID: &str = "0000-claim";
pub(crate) const POD: &str = "0000-pod";
pub(crate) type Host = Vec<Option<Interface>>;

/// A host with NICs and a pod, each a namespace, and the driver's folders.
pub(crate) struct World {
    pub(crate) host: String,
    pub(crate) pod: String,
    pub(crate) nics: usize,
    pub(crate) folder: PathBuf,
    /// None in a child process, which made nothing.
    pub(crate) own: Option<tempfile::TempDir>,
}

pub(crate) fn ip(args: &str) -> bool {
    let out = Command::new("ip").args(args.split_whitespace()).output();
    out.is_ok_and(|o| o.status.success())
}

/// A world, or none, said on standard error, where the kernel or the user does not allow one.
pub(crate) fn world(name: &str, nics: usize) -> Option<World> {
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

pub(crate) fn netns(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

impl World {
    pub(crate) fn links(&self) -> KernelLinks {
        KernelLinks::open(&netns(&self.host)).unwrap()
    }

    pub(crate) fn core<F: Faults>(&self, faults: F) -> Core<KernelLinks, F> {
        let state = self.folder.join("state");
        let ledger = Ledger::open(&state).unwrap();
        let cdi = Cdi {
            folder: self.folder.join("cdi"),
            program: "/forebay".into(),
            state,
        };
        Core::new(self.links(), faults, ledger, cdi)
    }

    /// A claim for all NICs, each with a name, an MTU, an address of its own, a route and a rule.
    pub(crate) fn claim(&self) -> (AllocatedClaim, BTreeMap<String, String>) {
        self.claim_of(|n| {
            format!(
                r#"{{"interface": {{"name": "net{n}", "mtu": 8896,
                                    "hardwareAddr": "02:00:00:00:01:0{n}"}},
                    "routes": [{{"destination": "10.9.{n}.0/24", "gateway": "10.{n}.0.1",
                                 "table": 10{n}}}],
                    "rules": [{{"priority": 1000, "source": "10.{n}.0.5/32", "table": 10{n}}}]}}"#
            )
        })
    }

    /// A claim for all NICs with these parameters.
    pub(crate) fn claim_of(
        &self,
        parameters: impl Fn(usize) -> String,
    ) -> (AllocatedClaim, BTreeMap<String, String>) {
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
            parameters: parameters(n),
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

    pub(crate) fn sandbox(&self) -> Sandbox {
        Sandbox {
            id: "sandbox".into(),
            namespace: "team".into(),
            name: "pod".into(),
            uid: POD.into(),
            netns: Some(netns(&self.pod)),
        }
    }

    pub(crate) fn guard(&self) -> Result<(), String> {
        guard::check(
            &self.links(),
            &self.folder.join("state"),
            UID,
            &netns(&self.pod),
        )
    }

    pub(crate) fn on_host(&self) -> Host {
        let links = self.links();
        let names: Vec<_> = (0..self.nics).map(|n| format!("rail{n}")).collect();
        links.snapshot(&names).unwrap()
    }

    pub(crate) fn all_in_pod(&self) -> bool {
        self.in_pod().iter().all(|yes| *yes)
    }

    pub(crate) fn in_pod(&self) -> Vec<bool> {
        let pod = KernelLinks::open(&netns(&self.pod)).unwrap();
        let names: Vec<_> = (0..self.nics).map(|n| format!("net{n}")).collect();
        let found = pod.snapshot(&names).unwrap();
        found.iter().map(Option::is_some).collect()
    }

    /// The invariant, after things were settled; whether the NICs are in the pod.
    pub(crate) fn check(&self, before: &Host, what: &str) -> bool {
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

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}
