//! Reads a machine from sysfs, below any root: of this host (`/sys`), or a synthesised one.
//!
//! A file that is missing or garbled costs what it would have told, and is told of; nothing here fails.
//! Addresses and the kinds of most virtual net devices are netlink's to add.

mod parts;
mod plant;
mod rooted;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::path::Path;

use forebay_fabric::machine::{
    Accelerator, Gid, Machine, Netdev, Nic, NumaNode, PciAddress, PciFunction, Problem, RdmaDevice,
    RdmaPort, Sriov,
};

pub use parts::Parts;
pub use plant::plant;
use rooted::Rooted;

/// Net devices that are never given to pods, beside loopback: of the container engine and of Cilium.
const HOSTS_OWN: [&str; 3] = ["docker0", "cilium_net", "cilium_host"];
/// Drivers that hand a function to user space: there is nothing to move into a pod.
const USER_SPACE_DRIVERS: [&str; 4] = ["vfio-pci", "uio_pci_generic", "igb_uio", "pci-stub"];
/// ARP hardware type of loopback.
const LOOPBACK: &str = "772";
/// `IFF_UP` of a net device's flags.
const FLAG_UP: u32 = 1;
/// GIDs of a port that are looked at; ports have 256 at most.
const GIDS_MAX: usize = 256;
/// How many masters a net device may have above it.
const MASTERS_MAX: usize = 8;

/// What was found on a host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// The machine.
    pub machine: Machine,
    /// NICs that are not offered, by name or PCI address, and why.
    pub left_out: Vec<(String, String)>,
    /// What could not be read.
    pub problems: Vec<Problem>,
}

/// Reads the tree below `root`, which is what `/sys` is to a host. Net devices named in `keep` belong to the
/// host, with all that is enslaved to them: those of its default route are to be among them.
pub fn read(root: &Path, keep: &BTreeSet<String>) -> Found {
    let mut reader = Reader {
        files: Rooted::new(root),
        left_out: Vec::new(),
    };
    let functions = reader.functions();
    let netdevs = reader.netdevs(keep);
    let rdmas = reader.rdmas();
    let accelerators = functions.values().filter_map(Accelerator::of).collect();
    let mut machine = Machine {
        numa: reader.numa(),
        nics: reader.nics(functions, netdevs, rdmas),
        accelerators,
    };
    machine.sort();
    Found {
        machine,
        left_out: reader.left_out,
        problems: reader.files.into_problems(),
    }
}

struct Reader {
    files: Rooted,
    left_out: Vec<(String, String)>,
}

/// A device of a class, and the function that it is on.
struct Of<T> {
    function: Option<PciAddress>,
    device: T,
    /// Whether the host keeps it for itself.
    kept: bool,
}

/// The PCI addresses in a path, from the root down.
fn addresses(path: &str) -> Vec<PciAddress> {
    path.split('/')
        .filter_map(|part| part.parse().ok())
        .collect()
}

impl Reader {
    fn leave_out(&mut self, what: impl ToString, why: &str) {
        self.left_out.push((what.to_string(), why.to_owned()));
    }

    fn numa(&self) -> Vec<NumaNode> {
        let folder = "devices/system/node";
        let node = |name: String| {
            let id = name.strip_prefix("node")?.parse().ok()?;
            let path = format!("{folder}/{name}/distance");
            let text = self.files.text(&path)?;
            let distances: Result<Vec<u16>, _> = text.split_whitespace().map(str::parse).collect();
            if distances.is_err() {
                self.files
                    .problem(&path, format!("{text:?} is no row of distances"));
            }
            let distances = distances.ok()?;
            Some(NumaNode { id, distances })
        };
        self.files
            .list(folder)
            .into_iter()
            .filter_map(node)
            .collect()
    }

    /// Functions that are network controllers or accelerators, or carry a device of ours.
    fn functions(&self) -> BTreeMap<PciAddress, PciFunction> {
        let folder = "bus/pci/devices";
        let all = self.files.list(folder).into_iter();
        let function = |name: String| match name.parse() {
            Ok(address) => self.function(&format!("{folder}/{name}"), address),
            Err(error) => {
                self.files.problem(folder, error);
                None
            }
        };
        all.filter_map(function).map(|f| (f.address, f)).collect()
    }

    fn function(&self, path: &str, address: PciAddress) -> Option<PciFunction> {
        let files = &self.files;
        let real = files.real(path)?;
        let mut parents = addresses(&real);
        if parents.pop() != Some(address) {
            files.problem(path, format!("leads to {real}, which is another function"));
            return None;
        }
        let is_root = |part: &&str| {
            let bus = part.strip_prefix("pci").and_then(|bus| bus.split_once(':'));
            bus.is_some_and(|(domain, bus)| {
                let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
                domain.len() >= 4 && hex(domain) && bus.len() == 2 && hex(bus)
            })
        };
        let root = real.split('/').find(is_root).unwrap_or_default();
        let id = |name: &str| files.hex(&format!("{real}/{name}"));
        let short = |name: &str| id(name).and_then(|id| u16::try_from(id).ok());
        let numa = files.value::<i32>(&format!("{real}/numa_node"));
        Some(PciFunction {
            address,
            root: root.to_owned(),
            parents,
            class: id("class")?,
            vendor: short("vendor")?,
            device: short("device")?,
            subsystem_vendor: short("subsystem_vendor").unwrap_or(0),
            subsystem_device: short("subsystem_device").unwrap_or(0),
            numa: numa.and_then(|node| u16::try_from(node).ok()),
            driver: files.target_name(&format!("{real}/driver")),
        })
    }

    fn netdevs(&mut self, keep: &BTreeSet<String>) -> Vec<Of<Netdev>> {
        let mut found = Vec::new();
        for name in self.files.list("class/net") {
            let path = format!("class/net/{name}");
            // `bonding_masters` is a file among them.
            if !self.files.is_folder(&path) {
                continue;
            }
            let Some(real) = self.files.real(&path) else {
                continue;
            };
            let text = |file: &str| self.files.text(&format!("{real}/{file}"));
            if text("type").as_deref() == Some(LOOPBACK) {
                self.leave_out(&name, "loopback is every namespace's own");
                continue;
            }
            let function = addresses(&real).pop();
            let kept = self.kept(&name, &real, keep);
            let device = self.netdev(name, &real, function.is_some());
            found.push(Of {
                function,
                device,
                kept,
            });
        }
        found
    }

    /// Whether a net device, or one that it is enslaved to, is the host's.
    fn kept(&self, name: &str, real: &str, keep: &BTreeSet<String>) -> bool {
        let mut name = name.to_owned();
        let mut at = real.to_owned();
        for _ in 0..MASTERS_MAX {
            if keep.contains(&name) || HOSTS_OWN.contains(&name.as_str()) {
                return true;
            }
            match self.files.real(&format!("{at}/master")) {
                Some(master) => at = master,
                None => return false,
            }
            name = at.rsplit('/').next().unwrap_or_default().to_owned();
        }
        false
    }

    fn netdev(&self, name: String, real: &str, hardware: bool) -> Netdev {
        let files = &self.files;
        let at = |file: &str| format!("{real}/{file}");
        let uevent = files.text(&at("uevent")).unwrap_or_default();
        let devtype = uevent
            .lines()
            .find_map(|line| line.strip_prefix("DEVTYPE="));
        let kind = match hardware {
            true => "device",
            false => devtype.unwrap_or_default(),
        };
        let speed = files.text_if_readable(&at("speed"));
        Netdev {
            kind: kind.to_owned(),
            mac: files.text(&at("address")).unwrap_or_default(),
            mtu: files.value(&at("mtu")).unwrap_or(0),
            addresses: Vec::new(),
            admin_up: files
                .hex(&at("flags"))
                .is_some_and(|flags| flags & FLAG_UP != 0),
            state: files.text(&at("operstate")).unwrap_or_default(),
            // -1 without a link.
            speed_mbps: speed
                .and_then(|s| s.parse().ok())
                .filter(|speed| *speed > 0),
            alias: files.text(&at("ifalias")).unwrap_or_default(),
            name,
        }
    }

    fn rdmas(&self) -> Vec<Of<RdmaDevice>> {
        let device = |name: String| {
            let real = self.files.real(&format!("class/infiniband/{name}"))?;
            let text = |file: &str| {
                self.files
                    .text(&format!("{real}/{file}"))
                    .unwrap_or_default()
            };
            let ports = self.files.list(&format!("{real}/ports"));
            let port = |port: String| self.port(&format!("{real}/ports/{port}"), &port);
            let device = RdmaDevice {
                node_guid: text("node_guid"),
                firmware: text("fw_ver"),
                ports: ports.into_iter().filter_map(port).collect(),
                name,
            };
            Some(Of {
                function: addresses(&real).pop(),
                device,
                kept: false,
            })
        };
        let names = self.files.list("class/infiniband");
        names.into_iter().filter_map(device).collect()
    }

    fn port(&self, path: &str, number: &str) -> Option<RdmaPort> {
        let text = |file: &str| {
            self.files
                .text(&format!("{path}/{file}"))
                .unwrap_or_default()
        };
        // `4: ACTIVE`
        let word = |file: &str| {
            let text = text(file);
            text.rsplit(": ")
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase()
        };
        // `400 Gb/sec (4X NDR)`; 2.5 for the slowest.
        let rate = text("rate");
        let gigabits = rate.split(' ').next().and_then(|n| n.parse::<f64>().ok());
        let gids = self.files.list(&format!("{path}/gids"));
        let gid = |index: String| self.gid(path, &index);
        let mut gids: Vec<Gid> = gids.into_iter().take(GIDS_MAX).filter_map(gid).collect();
        gids.sort_by_key(|gid| gid.index);
        Some(RdmaPort {
            number: number.parse().ok()?,
            state: word("state"),
            phys_state: word("phys_state"),
            link_layer: text("link_layer").to_ascii_lowercase(),
            rate_mbps: gigabits
                .filter(|rate| (0.0..1e6).contains(rate))
                .map(|rate| (rate * 1000.0) as u64),
            gids,
        })
    }

    fn gid(&self, port: &str, index: &str) -> Option<Gid> {
        let gid: Ipv6Addr = self.files.value(&format!("{port}/gids/{index}"))?;
        let attribute = |what: &str| {
            // The kernel refuses to tell of an entry that is not used.
            let text = self
                .files
                .text_if_readable(&format!("{port}/gid_attrs/{what}/{index}"));
            text.unwrap_or_default()
        };
        (!gid.is_unspecified()).then_some(Gid {
            index: index.parse().ok()?,
            gid,
            kind: attribute("types"),
            netdev: attribute("ndevs"),
        })
    }

    /// Puts functions, net devices and RDMA devices together.
    fn nics(
        &mut self,
        mut functions: BTreeMap<PciAddress, PciFunction>,
        netdevs: Vec<Of<Netdev>>,
        rdmas: Vec<Of<RdmaDevice>>,
    ) -> Vec<Nic> {
        let carries: BTreeSet<PciAddress> = (netdevs.iter().filter_map(|of| of.function))
            .chain(rdmas.iter().filter_map(|of| of.function))
            .collect();
        functions.retain(|address, f| f.class >> 16 == 0x02 || carries.contains(address));
        let mut nics: Vec<Nic> = Vec::new();
        let mut kept = BTreeSet::new();
        for pci in functions.into_values() {
            self.explain(&pci);
            let sriov = self.sriov(pci.address);
            nics.push(Nic {
                pci: Some(pci),
                sriov,
                netdev: None,
                rdma: None,
            });
        }
        for Of {
            function,
            device,
            kept: of_host,
        } in netdevs
        {
            let place = function.and_then(|at| nics.iter_mut().find(|nic| on(nic, at)));
            if of_host {
                self.leave_out(&device.name, "it is the host's own");
                kept.extend(function);
                continue;
            }
            match place {
                Some(nic) if nic.netdev.is_none() => nic.netdev = Some(device),
                Some(_) => self.leave_out(&device.name, "its function has another net device"),
                // As a virtual one it would be another device.
                None if function.is_some() => {
                    self.leave_out(&device.name, "its function could not be read");
                }
                None => nics.push(Nic {
                    pci: None,
                    sriov: Sriov::None,
                    netdev: Some(device),
                    rdma: None,
                }),
            }
        }
        for Of {
            function, device, ..
        } in rdmas
        {
            self.add_rdma(&mut nics, function, device);
        }
        nics.retain(|nic| {
            !nic.pci
                .as_ref()
                .is_some_and(|pci| kept.contains(&pci.address))
        });
        nics
    }

    /// Tells of functions that have nothing to give to a pod. They stay in the machine: without them their
    /// neighbours would be on other rails.
    fn explain(&mut self, pci: &PciFunction) {
        match pci.driver.as_deref() {
            None => self.leave_out(pci.address, "no driver has it"),
            Some(driver) if USER_SPACE_DRIVERS.contains(&driver) => {
                self.leave_out(pci.address, "a driver for user space has it");
            }
            Some(_) => {}
        }
    }

    fn add_rdma(&mut self, nics: &mut Vec<Nic>, function: Option<PciAddress>, device: RdmaDevice) {
        // A software device (`rxe`, `siw`) says on which net device it is.
        let parent = format!("class/infiniband/{}/parent", device.name);
        let parent = function
            .is_none()
            .then(|| self.files.text(&parent))
            .flatten();
        let place = nics.iter_mut().find(|nic| match (function, &parent) {
            (Some(at), _) => on(nic, at),
            (None, Some(parent)) => nic.label() == parent,
            (None, None) => false,
        });
        match place {
            Some(nic) if nic.rdma.is_none() => nic.rdma = Some(device),
            Some(_) => self.leave_out(&device.name, "its function has another RDMA device"),
            None if function.is_some() || parent.is_some() => {
                self.leave_out(&device.name, "what it is on is not offered");
            }
            None => nics.push(Nic {
                pci: None,
                sriov: Sriov::None,
                netdev: None,
                rdma: Some(device),
            }),
        }
    }

    fn sriov(&self, address: PciAddress) -> Sriov {
        let at = format!("bus/pci/devices/{address}");
        let function = |link: &str| self.files.target_name(&format!("{at}/{link}"));
        if let Some(physical) = function("physfn") {
            return Sriov::Virtual {
                of: physical.parse().ok(),
            };
        }
        let Some(vfs_max @ 1..) = self.files.value::<u32>(&format!("{at}/sriov_totalvfs")) else {
            return Sriov::None;
        };
        let names = self.files.list(&at);
        let parts = names.iter().filter(|name| name.starts_with("virtfn"));
        let mut vfs: Vec<PciAddress> = parts
            .filter_map(|name| function(name)?.parse().ok())
            .collect();
        vfs.sort();
        Sriov::Physical { vfs_max, vfs }
    }
}

fn on(nic: &Nic, at: PciAddress) -> bool {
    nic.pci.as_ref().is_some_and(|pci| pci.address == at)
}
