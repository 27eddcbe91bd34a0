//! JSON to [`NetworkConfig`], with every check that needs no device.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::fields::{Errors, Fields, note};
use super::{
    API_VERSION, Cidr, Ethtool, FieldError, InterfaceConfig, KIND, Neighbor, NetworkConfig,
    PARAMETERS_BYTES_MAX, Route, Rule, SubInterface, Vrf, share,
};
use crate::ipam::Ipam;

/// The kernel's bound of an interface's name, bytes.
const NAME_BYTES_MAX: usize = 15;
/// The kernel's bound of the name of a feature or private flag, bytes.
const SWITCH_BYTES_MAX: usize = 31;
/// Features, and private flags, of one NIC; there are about 60. More are refused.
const SWITCHES_MAX: usize = 64;
/// The main table of routes.
pub const TABLE_MAIN: u32 = 254;

pub(super) fn parse(json: &str) -> Result<NetworkConfig, Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut config = NetworkConfig::default();
    if json.len() > PARAMETERS_BYTES_MAX {
        note(
            &mut errors,
            String::new(),
            format!("longer than {PARAMETERS_BYTES_MAX} bytes"),
        );
        return Err(errors);
    }
    match serde_json::from_str::<Value>(json) {
        Err(e) => note(&mut errors, String::new(), format!("no JSON: {e}")),
        Ok(value) => {
            if let Some(fields) = Fields::new(String::new(), value, &mut errors) {
                config = document(fields, &mut errors);
            }
        }
    }
    if errors.is_empty() {
        Ok(config)
    } else {
        Err(errors)
    }
}

fn document(mut f: Fields, errors: &mut Errors) -> NetworkConfig {
    let version = f.text("apiVersion", errors);
    let kind = f.text("kind", errors);
    match (version.as_deref(), kind.as_deref()) {
        (None, None) | (Some(API_VERSION), Some(KIND)) => {}
        (Some(API_VERSION), _) => note(errors, "kind".to_owned(), format!("must be {KIND}")),
        _ => note(
            errors,
            "apiVersion".to_owned(),
            format!("must be {API_VERSION}"),
        ),
    }
    let (interface, dhcp) = match f.value("interface") {
        None => (InterfaceConfig::default(), false),
        Some(value) => Fields::new(f.path("interface"), value, errors)
            .map(|f| interface(f, errors))
            .unwrap_or_default(),
    };
    let mut config = NetworkConfig {
        interface,
        ipam: dhcp.then_some(Ipam::Dhcp),
        profile: share::profile(&mut f, errors),
        ..NetworkConfig::default()
    };
    if let Some(value) = f.value("ipam") {
        let said = (!config.interface.addresses.is_empty(), dhcp);
        let read = Fields::new(f.path("ipam"), value, errors);
        config.ipam = read.and_then(|f| share::ipam(f, said, errors));
    }
    for (path, value) in f.list("routes", errors) {
        config
            .routes
            .extend(Fields::new(path, value, errors).and_then(|f| route(f, errors)));
    }
    for (path, value) in f.list("rules", errors) {
        config
            .rules
            .extend(Fields::new(path, value, errors).and_then(|f| rule(f, errors)));
    }
    for (path, value) in f.list("neighbors", errors) {
        config
            .neighbors
            .extend(Fields::new(path, value, errors).and_then(|f| neighbor(f, errors)));
    }
    if let Some(value) = f.value("subInterface") {
        config.sub_interface = Fields::new(f.path("subInterface"), value, errors)
            .and_then(|f| share::sub_interface(f, errors));
        if matches!(config.sub_interface, Some(SubInterface::Ipvlan(_)))
            && config.interface.hardware_addr.is_some()
        {
            let why = "an ipvlan shares the device's; leave it out or use macvlan";
            note(errors, "interface.hardwareAddr".to_owned(), why);
        }
    }
    if let Some(value) = f.value("ethtool") {
        config.ethtool = Fields::new(f.path("ethtool"), value, errors)
            .map(|f| ethtool(f, errors))
            .unwrap_or_default();
    }
    if config.interface.vrf.is_some() && !config.rules.is_empty() {
        let why = "exclude interface.vrf, whose table is chosen by the NIC; keep one of both";
        note(errors, "rules".to_owned(), why);
    }
    f.end(errors);
    config
}

fn ethtool(mut f: Fields, errors: &mut Errors) -> Ethtool {
    let features = switches(&mut f, "features", errors);
    let private_flags = switches(&mut f, "privateFlags", errors);
    f.end(errors);
    Ethtool {
        features,
        private_flags,
    }
}

/// An object of names that are on or off.
fn switches(f: &mut Fields, name: &'static str, errors: &mut Errors) -> BTreeMap<String, bool> {
    let path = f.path(name);
    let Some(value) = f.value(name) else {
        return BTreeMap::new();
    };
    let Value::Object(entries) = value else {
        note(errors, path, "must be an object of true and false by name");
        return BTreeMap::new();
    };
    if entries.len() > SWITCHES_MAX {
        note(
            errors,
            path.clone(),
            format!("has more than {SWITCHES_MAX}"),
        );
    }
    let mut switches = BTreeMap::new();
    for (key, value) in entries {
        let path = format!("{path}.{key}");
        match value {
            _ if key.is_empty() || key.len() > SWITCH_BYTES_MAX => {
                note(errors, path, "names have 1 to 31 bytes");
            }
            Value::Bool(on) => drop(switches.insert(key, on)),
            _ => note(errors, path, "must be true or false"),
        }
    }
    switches
}

/// The link, and whether its addresses come by DHCP.
fn interface(mut f: Fields, errors: &mut Errors) -> (InterfaceConfig, bool) {
    let name = f.text("name", errors).filter(|n| !n.is_empty());
    if let Some(name) = &name
        && let Err(why) = link_name(name)
    {
        note(errors, f.path("name"), why);
    }
    let mut addresses: Vec<Cidr> = Vec::new();
    for (path, value) in f.list("addresses", errors) {
        match value.as_str().map(str::parse::<Cidr>) {
            Some(Ok(cidr)) if addresses.contains(&cidr) => note(errors, path, "is there twice"),
            Some(Ok(cidr)) => addresses.push(cidr),
            Some(Err(why)) => note(errors, path, why),
            None => note(errors, path, "must be text such as 10.0.0.5/24"),
        }
    }
    let dhcp = f.bool("dhcp", errors) == Some(true);
    if dhcp && !addresses.is_empty() {
        let why = "excludes addresses; keep one of both";
        note(errors, f.path("dhcp"), why);
    }
    let disable_ebpf_programs = f.bool("disableEbpfPrograms", errors);
    let vrf_path = f.path("vrf");
    let vrf = f
        .value("vrf")
        .and_then(|value| Fields::new(vrf_path.clone(), value, errors))
        .and_then(|f| vrf(f, errors));
    if let Some(vrf) = &vrf
        && name.as_ref() == Some(&vrf.name)
    {
        let why = "is the name of the interface; the domain is a link of its own";
        note(errors, format!("{vrf_path}.name"), why);
    }
    let arp_ignore = f.number("arpIgnore", 0, 8, errors);
    if let Some(4..=7) = arp_ignore {
        note(errors, f.path("arpIgnore"), "must be 0, 1, 2, 3 or 8");
    }
    let config = InterfaceConfig {
        name,
        addresses,
        mtu: f.number("mtu", 68, 65_536, errors),
        hardware_addr: f.parsed("hardwareAddr", errors),
        gso_max_size: f.number("gsoMaxSize", 1, u32::MAX, errors),
        gro_max_size: f.number("groMaxSize", 1, u32::MAX, errors),
        gso_ipv4_max_size: f.number("gsoIPv4MaxSize", 1, u32::MAX, errors),
        gro_ipv4_max_size: f.number("groIPv4MaxSize", 1, u32::MAX, errors),
        forwarding: f.bool("forwarding", errors),
        arp_ignore: arp_ignore.and_then(|n| u8::try_from(n).ok()),
        arp_announce: f
            .number("arpAnnounce", 0, 2, errors)
            .and_then(|n| u8::try_from(n).ok()),
        disable_ebpf_programs,
        vrf,
    };
    if config.hardware_addr.is_some_and(|m| m.0[0] & 1 == 1) {
        note(
            errors,
            f.path("hardwareAddr"),
            "is a group's address; the first byte must be even",
        );
    }
    f.end(errors);
    (config, dhcp)
}

fn vrf(mut f: Fields, errors: &mut Errors) -> Option<Vrf> {
    let name = f.text("name", errors).filter(|n| !n.is_empty());
    let table = f.number("table", 1, u32::MAX, errors);
    let (name_path, table_path) = (f.path("name"), f.path("table"));
    f.end(errors);
    if let Some(253..=255) = table {
        let why = "253 to 255 are the kernel's own";
        note(errors, table_path, why);
    }
    let Some(name) = name else {
        if !errors.iter().any(|e| e.path == name_path) {
            note(errors, name_path, "is required");
        }
        return None;
    };
    if let Err(why) = link_name(&name) {
        note(errors, name_path, why);
    }
    let table = table.unwrap_or_else(|| table_of(&name));
    Some(Vrf { name, table })
}

/// The table of a routing domain that names none, the same for all NICs of that domain, and the one that
/// dranet takes: FNV-1a of 32 bits, modulo 1000, from 1000 on.
fn table_of(vrf: &str) -> u32 {
    let step = |sum: u32, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    vrf.bytes().fold(0x811c_9dc5, step) % 1000 + 1000
}

/// Whether the kernel takes `name` for an interface.
fn link_name(name: &str) -> Result<(), &'static str> {
    if name.len() > NAME_BYTES_MAX {
        return Err("is longer than 15 bytes");
    }
    if name == "." || name == ".." || name == "lo" || name == "all" || name == "default" {
        return Err("is a name that the kernel keeps for itself");
    }
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if name.contains(bad) {
        Err("must have no blank, `/`, `:` or `%`")
    } else {
        Ok(())
    }
}

fn route(mut f: Fields, errors: &mut Errors) -> Option<Route> {
    let before = errors.len();
    let destination: Option<Cidr> = f.parsed("destination", errors);
    let gateway: Option<IpAddr> = f.parsed("gateway", errors);
    let source: Option<IpAddr> = f.parsed("source", errors);
    let scope = f.number("scope", 0, 253, errors).unwrap_or(0);
    let table = f.number("table", 0, u32::MAX, errors).unwrap_or(0);
    let metric = f.number("metric", 0, u32::MAX, errors);
    if scope != 0 && scope != 253 {
        note(
            errors,
            f.path("scope"),
            "must be 0 (universe) or 253 (link)",
        );
    }
    if destination.is_none() && errors.len() == before {
        note(
            errors,
            f.path("destination"),
            "is required, such as 10.1.0.0/16",
        );
    }
    if let Some(to) = destination {
        if !to.is_network() {
            note(
                errors,
                f.path("destination"),
                format!("`{to}` has bits beyond its prefix"),
            );
        }
        for (name, ip) in [("gateway", gateway), ("source", source)] {
            if ip.is_some_and(|ip| ip.is_ipv4() != to.ip.is_ipv4()) {
                note(
                    errors,
                    f.path(name),
                    "is of another family than the destination",
                );
            }
        }
    }
    if scope == 0 && gateway.is_none() {
        note(
            errors,
            f.path("gateway"),
            "is required unless scope is 253 (link)",
        );
    }
    f.end(errors);
    let table = if table == 0 { TABLE_MAIN } else { table };
    let on_link = scope == 253;
    Some(Route {
        destination: destination?,
        gateway,
        source,
        on_link,
        table,
        metric,
    })
}

fn rule(mut f: Fields, errors: &mut Errors) -> Option<Rule> {
    let priority = f.number("priority", 0, 32_767, errors);
    let source: Option<Cidr> = f.parsed("source", errors);
    let destination: Option<Cidr> = f.parsed("destination", errors);
    let table = f.number("table", 1, u32::MAX, errors);
    if table.is_none() {
        note(errors, f.path("table"), "is required");
    }
    if let (Some(a), Some(b)) = (source, destination)
        && a.ip.is_ipv4() != b.ip.is_ipv4()
    {
        note(
            errors,
            f.path("source"),
            "is of another family than the destination",
        );
    }
    if source.is_none() && destination.is_none() {
        note(
            errors,
            f.path("source"),
            "a rule needs a source or a destination",
        );
    }
    f.end(errors);
    // What comes without a priority shares one that is before the main table's.
    Some(Rule {
        priority: priority.unwrap_or(32_000),
        source,
        destination,
        table: table?,
    })
}

fn neighbor(mut f: Fields, errors: &mut Errors) -> Option<Neighbor> {
    let destination = f.parsed("destination", errors);
    let hardware_addr = f.parsed("hardwareAddr", errors);
    for (name, absent) in [
        ("destination", destination.is_none()),
        ("hardwareAddr", hardware_addr.is_none()),
    ] {
        let path = f.path(name);
        if absent && !errors.iter().any(|e| e.path == path) {
            note(errors, path, "is required");
        }
    }
    f.end(errors);
    Some(Neighbor {
        destination: destination?,
        hardware_addr: hardware_addr?,
    })
}
