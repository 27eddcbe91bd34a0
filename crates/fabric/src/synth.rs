//! Machines described in YAML (`machines/*.yaml`), as the files that their kernel would show below `/sys`.
//!
//! For tests and simulations of machines that are not at hand: what reads a real host reads these files too
//! and cannot tell. Only what is read there is made. Writes nothing: a tree is a list of paths with contents.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::machine::PciAddress;

/// Bytes of a description at most.
pub const DESCRIPTION_BYTES_MAX: usize = 256 * 1024;
/// How deep bridges may be below bridges; the bus has 256 numbers anyway.
const DEPTH_MAX: usize = 32;

/// A machine as it is described.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Its name, as the one who rents it out has it.
    pub name: String,
    /// What it is, and which of it is known and which is assumed.
    pub about: String,
    /// SLIT: a row of distances for each NUMA node. Empty for a machine whose firmware tells of none.
    #[serde(default)]
    pub numa: Vec<Vec<u16>>,
    /// Kinds of PCI functions, by a name of their own.
    pub models: BTreeMap<String, Model>,
    /// Root complexes.
    pub roots: Vec<Root>,
    /// Net devices without hardware.
    #[serde(default, rename = "virtual")]
    pub virtual_devices: Vec<Virtual>,
    /// Names of net devices that belong to the host: its default route goes over them.
    #[serde(default)]
    pub uplinks: Vec<String>,
    /// The node's labels that say where it is.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A kind of PCI function.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Class, six hexadecimal digits.
    class: String,
    /// Vendor and device: `15b3:101e`.
    id: String,
    /// Vendor and device of the card; the same if not given.
    subsystem: Option<String>,
    /// The kernel's driver.
    driver: Option<String>,
    /// Version of the firmware, for an RDMA device.
    #[serde(default)]
    firmware: String,
    /// Speed of the link.
    #[serde(default)]
    speed_mbps: u64,
    /// Link layer of the RDMA ports.
    #[serde(default = "ethernet")]
    link_layer: String,
    /// MTU of the net device.
    #[serde(default = "mtu")]
    mtu: u32,
    /// Into how many virtual functions it can be split.
    #[serde(default)]
    vfs_max: u32,
}

fn ethernet() -> String {
    "Ethernet".to_owned()
}

fn mtu() -> u32 {
    1500
}

/// A root complex.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Domain and bus: `0000:8c`.
    root: String,
    /// NUMA node; -1 if firmware does not say.
    #[serde(default = "no_numa")]
    numa: i32,
    /// What is on its bus.
    below: Vec<Function>,
}

fn no_numa() -> i32 {
    -1
}

/// A function: a bridge with more below it, or one of the models.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Bus, device and function, in the domain of the root: `8f:00.0`.
    at: String,
    /// What is below this bridge.
    #[serde(default)]
    bridge: Vec<Function>,
    /// Which model it is; none for a bridge.
    model: Option<String>,
    /// Name of the net device.
    netdev: Option<String>,
    /// Name of the RDMA device.
    rdma: Option<String>,
    /// IPv4 address that the second GID is made of.
    ip: Option<std::net::Ipv4Addr>,
    /// Whether the link is up.
    #[serde(default = "yes")]
    up: bool,
    /// Of which function it is a virtual one.
    physical: Option<String>,
    /// The virtual net device that its net device is enslaved to.
    master: Option<String>,
}

fn yes() -> bool {
    true
}

/// A net device without hardware.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Virtual {
    /// Its name.
    netdev: String,
    /// `DEVTYPE` in its `uevent`, for those kinds that have one.
    #[serde(default)]
    devtype: String,
    /// Hardware type: 1 is Ethernet, 772 loopback.
    #[serde(default = "ethernet_type")]
    arp_type: u16,
    /// The device above it (`master`).
    master: Option<String>,
}

fn ethernet_type() -> u16 {
    1
}

/// What is at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A file with this content.
    File(String),
    /// A symbolic link to this, relative to the folder that it is in.
    Link(String),
    /// A folder.
    Folder,
}

/// Files by path, relative to the root of the tree (`/sys`), parents not listed.
pub type Tree = BTreeMap<String, Entry>;

/// Reads a description.
///
/// # Errors
///
/// A sentence with the place of what is wrong.
pub fn parse(yaml: &str) -> Result<Description, String> {
    if yaml.len() > DESCRIPTION_BYTES_MAX {
        return Err(format!("longer than {DESCRIPTION_BYTES_MAX} bytes"));
    }
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    serde_saphyr::from_str_with_options(yaml, options).map_err(|error| error.to_string())
}

/// The tree of a description.
///
/// # Errors
///
/// A sentence with the function that is described wrongly.
pub fn tree(description: &Description) -> Result<Tree, String> {
    let mut synth = Synth {
        description,
        tree: Tree::new(),
        places: BTreeMap::new(),
        index: 1,
    };
    synth.numa()?;
    for root in &description.roots {
        let (domain, bus) = root
            .root
            .split_once(':')
            .ok_or_else(|| format!("root `{}` is not like 0000:8c", root.root))?;
        let path = format!("devices/pci{domain}:{bus}");
        for function in &root.below {
            synth.function(root, domain, &path, function, 0)?;
        }
    }
    for root in &description.roots {
        let domain = root.root.split(':').next().unwrap_or_default();
        synth.split(domain, &root.below)?;
    }
    for device in &description.virtual_devices {
        synth.virtual_device(device);
    }
    Ok(synth.tree)
}

struct Synth<'a> {
    description: &'a Description,
    tree: Tree,
    /// Folder of each function.
    places: BTreeMap<PciAddress, String>,
    /// Index of the next net device.
    index: u32,
}

impl Synth<'_> {
    fn file(&mut self, folder: &str, name: &str, content: impl ToString) {
        let content = format!("{}\n", content.to_string());
        self.tree
            .insert(format!("{folder}/{name}"), Entry::File(content));
    }

    /// A link at a path to another path of the tree.
    fn link(&mut self, at: &str, to: &str) {
        let above = at.matches('/').count();
        let target = format!("{}{to}", "../".repeat(above));
        self.tree.insert(at.to_owned(), Entry::Link(target));
    }

    fn numa(&mut self) -> Result<(), String> {
        let rows = &self.description.numa;
        for (id, row) in rows.iter().enumerate() {
            if row.len() != rows.len() {
                return Err(format!("numa: row {id} has not {} distances", rows.len()));
            }
            let distances: Vec<String> = row.iter().map(ToString::to_string).collect();
            let folder = format!("devices/system/node/node{id}");
            self.file(&folder, "distance", distances.join(" "));
        }
        Ok(())
    }

    fn function(
        &mut self,
        root: &Root,
        domain: &str,
        parent: &str,
        function: &Function,
        depth: usize,
    ) -> Result<(), String> {
        let address: PciAddress = format!("{domain}:{}", function.at).parse()?;
        let folder = format!("{parent}/{address}");
        if depth > DEPTH_MAX {
            return Err(format!("{address}: deeper than {DEPTH_MAX} bridges"));
        }
        if self.places.insert(address, folder.clone()).is_some() {
            return Err(format!("{address}: described twice"));
        }
        self.link(&format!("bus/pci/devices/{address}"), &folder);
        self.file(&folder, "numa_node", root.numa);
        let Some(name) = &function.model else {
            self.identity(&folder, "060400", "1000:c030", "1000:c030")?;
            self.driver(&folder, "pcieport");
            for below in &function.bridge {
                self.function(root, domain, &folder, below, depth + 1)?;
            }
            return Ok(());
        };
        let models = &self.description.models;
        let model = models
            .get(name)
            .ok_or_else(|| format!("{address}: no model `{name}`"))?;
        if !function.bridge.is_empty() {
            return Err(format!(
                "{address}: has a model, so nothing can be below it"
            ));
        }
        let subsystem = model.subsystem.as_ref().unwrap_or(&model.id);
        self.identity(&folder, &model.class, &model.id, subsystem)?;
        if let Some(driver) = &model.driver {
            self.driver(&folder, driver);
        }
        if let Some(netdev) = &function.netdev {
            self.netdev(&folder, address, netdev, function, model);
        }
        if let Some(rdma) = &function.rdma {
            self.rdma(&folder, address, rdma, function, model);
        }
        Ok(())
    }

    fn identity(
        &mut self,
        folder: &str,
        class: &str,
        id: &str,
        subsystem: &str,
    ) -> Result<(), String> {
        let pair = |id: &str| {
            let (vendor, device) = id.split_once(':')?;
            Some((format!("0x{vendor}"), format!("0x{device}")))
        };
        let wrong = |id: &str| format!("{folder}: `{id}` is not like 15b3:101e");
        let (vendor, device) = pair(id).ok_or_else(|| wrong(id))?;
        let (card_vendor, card) = pair(subsystem).ok_or_else(|| wrong(subsystem))?;
        self.file(folder, "class", format!("0x{class}"));
        self.file(folder, "vendor", vendor);
        self.file(folder, "device", device);
        self.file(folder, "subsystem_vendor", card_vendor);
        self.file(folder, "subsystem_device", card);
        Ok(())
    }

    fn driver(&mut self, folder: &str, driver: &str) {
        let at = format!("bus/pci/drivers/{driver}");
        self.tree.insert(at.clone(), Entry::Folder);
        self.link(&format!("{folder}/driver"), &at);
    }

    fn netdev(
        &mut self,
        folder: &str,
        address: PciAddress,
        name: &str,
        function: &Function,
        model: &Model,
    ) {
        let at = format!("{folder}/net/{name}");
        self.link(&format!("class/net/{name}"), &at);
        self.link(&format!("{at}/device"), folder);
        self.file(&at, "address", mac(address));
        self.file(&at, "mtu", model.mtu);
        self.file(
            &at,
            "type",
            if model.link_layer == "InfiniBand" {
                32
            } else {
                1
            },
        );
        self.file(&at, "flags", "0x1003");
        self.file(&at, "ifalias", "");
        if let Some(master) = &function.master {
            let to = format!("devices/virtual/net/{master}");
            self.link(&format!("{at}/master"), &to);
        }
        self.file(&at, "operstate", if function.up { "up" } else { "down" });
        self.numbered(&at, name);
        // The kernel answers -1 while there is no link.
        match function.up && model.speed_mbps > 0 {
            true => self.file(&at, "speed", model.speed_mbps),
            false => self.file(&at, "speed", -1),
        }
    }

    fn numbered(&mut self, at: &str, name: &str) {
        self.index += 1;
        self.file(at, "ifindex", self.index);
        let uevent = format!("INTERFACE={name}\nIFINDEX={}", self.index);
        self.file(at, "uevent", uevent);
    }

    fn rdma(
        &mut self,
        folder: &str,
        address: PciAddress,
        name: &str,
        function: &Function,
        model: &Model,
    ) {
        let at = format!("{folder}/infiniband/{name}");
        self.link(&format!("class/infiniband/{name}"), &at);
        self.link(&format!("{at}/device"), folder);
        let id = local_id(address);
        let [a, b, c, d] = [0, 16, 32, 48].map(|shift| (id >> (48 - shift)) & 0xffff);
        self.file(&at, "node_guid", format!("{a:04x}:{b:04x}:{c:04x}:{d:04x}"));
        self.file(&at, "fw_ver", &model.firmware);
        let port = format!("{at}/ports/1");
        let (state, phys) = match function.up {
            true => ("4: ACTIVE", "5: LinkUp"),
            false => ("1: DOWN", "3: Disabled"),
        };
        self.file(&port, "state", state);
        self.file(&port, "phys_state", phys);
        self.file(&port, "link_layer", &model.link_layer);
        let lanes = if model.speed_mbps >= 800_000 {
            "XDR"
        } else {
            "NDR"
        };
        let rate = format!("{} Gb/sec (4X {lanes})", model.speed_mbps / 1000);
        self.file(&port, "rate", rate);
        let link_local = std::net::Ipv6Addr::from((0xfe80_u128 << 112) | u128::from(id));
        let mut gids = vec![(link_local, "IB/RoCE v1"), (link_local, "RoCE v2")];
        if let Some(ip) = function.ip {
            gids.extend([
                (ip.to_ipv6_mapped(), "IB/RoCE v1"),
                (ip.to_ipv6_mapped(), "RoCE v2"),
            ]);
        }
        for (index, (gid, kind)) in gids.into_iter().enumerate() {
            let groups = gid.segments().map(|segment| format!("{segment:04x}"));
            self.file(&port, &format!("gids/{index}"), groups.join(":"));
            self.file(&port, &format!("gid_attrs/types/{index}"), kind);
            if let Some(netdev) = &function.netdev {
                self.file(&port, &format!("gid_attrs/ndevs/{index}"), netdev);
            }
        }
        // The table goes on with empty entries.
        self.file(&port, "gids/4", ["0000"; 8].join(":"));
    }

    /// The two sides of SR-IOV, once every function has its folder.
    fn split(&mut self, domain: &str, functions: &[Function]) -> Result<(), String> {
        let mut of: BTreeMap<PciAddress, BTreeSet<PciAddress>> = BTreeMap::new();
        let mut all: Vec<&Function> = functions.iter().collect();
        while let Some(function) = all.pop() {
            all.extend(&function.bridge);
            let address: PciAddress = format!("{domain}:{}", function.at).parse()?;
            let model = function
                .model
                .as_ref()
                .and_then(|m| self.description.models.get(m));
            if let Some(model) = model.filter(|model| model.vfs_max > 0) {
                let folder = self.places[&address].clone();
                self.file(&folder, "sriov_totalvfs", model.vfs_max);
                of.entry(address).or_default();
            }
            if let Some(physical) = &function.physical {
                let physical: PciAddress = format!("{domain}:{physical}").parse()?;
                let unknown = || format!("{address}: no function {physical} to be a part of");
                let target = self.places.get(&physical).ok_or_else(unknown)?.clone();
                let folder = self.places[&address].clone();
                self.link(&format!("{folder}/physfn"), &target);
                of.entry(physical).or_default().insert(address);
            }
        }
        for (physical, parts) in of {
            let folder = self.places[&physical].clone();
            self.file(&folder, "sriov_numvfs", parts.len());
            for (index, part) in parts.iter().enumerate() {
                let target = self.places[part].clone();
                self.link(&format!("{folder}/virtfn{index}"), &target);
            }
        }
        Ok(())
    }

    fn virtual_device(&mut self, device: &Virtual) {
        let name = &device.netdev;
        let at = format!("devices/virtual/net/{name}");
        self.link(&format!("class/net/{name}"), &at);
        self.numbered(&at, name);
        if !device.devtype.is_empty() {
            let uevent = format!("DEVTYPE={}\nINTERFACE={name}", device.devtype);
            self.file(&at, "uevent", uevent);
        }
        let loopback = device.arp_type == 772;
        let hash = name
            .bytes()
            .fold(7_u32, |sum, b| sum.wrapping_mul(31) ^ u32::from(b));
        let [a, b, c, d] = hash.to_be_bytes();
        let own = format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        self.file(
            &at,
            "address",
            if loopback {
                "00:00:00:00:00:00".to_owned()
            } else {
                own
            },
        );
        self.file(&at, "mtu", if loopback { 65536 } else { 1500 });
        self.file(&at, "type", device.arp_type);
        self.file(&at, "flags", if loopback { "0x9" } else { "0x1003" });
        self.file(&at, "operstate", if loopback { "unknown" } else { "up" });
        self.file(&at, "ifalias", "");
        if let Some(master) = &device.master {
            let to = format!("devices/virtual/net/{master}");
            self.link(&format!("{at}/master"), &to);
        }
    }
}

/// A hardware address that says where the function is.
fn mac(at: PciAddress) -> String {
    let [high, low] = (at.domain as u16).to_be_bytes();
    let function = at.device << 3 | at.function;
    format!("02:00:{high:02x}:{low:02x}:{:02x}:{function:02x}", at.bus)
}

/// The modified EUI-64 of [`mac`], as link-local addresses have it.
fn local_id(at: PciAddress) -> u64 {
    let function = u64::from(at.device << 3 | at.function);
    let domain = u64::from(at.domain & 0xffff);
    // 02:00 with the universal bit turned over is 00:00; ff:fe comes in the middle.
    ((domain >> 8) << 40)
        | (0xfffe << 24)
        | ((domain & 0xff) << 16)
        | (u64::from(at.bus) << 8)
        | function
}
