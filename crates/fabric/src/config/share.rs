//! The fields that say how a device is shared and where its addresses come from.

use std::net::IpAddr;

use super::fields::{Errors, Fields, note};
use super::{Cidr, IpvlanMode, MacvlanMode, SubInterface};
use crate::ipam::{AddressRange, Ipam};

/// Bytes of a profile's name at most.
const PROFILE_BYTES_MAX: usize = 63;

/// `subInterface`. Types and modes are read without regard to case, as dranet writes some in capitals.
pub(super) fn sub_interface(mut f: Fields, errors: &mut Errors) -> Option<SubInterface> {
    let mut lower = |name| Some(f.text(name, errors)?.to_ascii_lowercase());
    let (kind, mode) = (lower("type"), lower("mode"));
    let (type_path, mode_path) = (f.path("type"), f.path("mode"));
    f.end(errors);
    match (kind.as_deref(), mode.as_deref()) {
        (Some("macvlan"), None | Some("bridge")) => {
            Some(SubInterface::Macvlan(MacvlanMode::Bridge))
        }
        (Some("macvlan"), Some("private")) => Some(SubInterface::Macvlan(MacvlanMode::Private)),
        (Some("macvlan"), Some("vepa")) => Some(SubInterface::Macvlan(MacvlanMode::Vepa)),
        (Some("macvlan"), Some(_)) => {
            note(errors, mode_path, "must be bridge, private or vepa");
            None
        }
        (Some("ipvlan"), None | Some("l2")) => Some(SubInterface::Ipvlan(IpvlanMode::L2)),
        (Some("ipvlan"), Some("l3")) => Some(SubInterface::Ipvlan(IpvlanMode::L3)),
        (Some("ipvlan"), Some("l3s")) => Some(SubInterface::Ipvlan(IpvlanMode::L3s)),
        (Some("ipvlan"), Some(_)) => {
            note(errors, mode_path, "must be l2, l3 or l3s");
            None
        }
        (Some("vf"), None) => Some(SubInterface::Vf),
        (Some("vf"), Some(_)) => {
            note(
                errors,
                mode_path,
                "a virtual function has none; leave it out",
            );
            None
        }
        (_, _) => {
            note(errors, type_path, "must be macvlan, ipvlan or vf");
            None
        }
    }
}

/// `ipam`, beside `interface.addresses` and `interface.dhcp`, of which `said` says whether they are there.
pub(super) fn ipam(mut f: Fields, said: (bool, bool), errors: &mut Errors) -> Option<Ipam> {
    let kind = f.text("type", errors);
    let type_path = f.path("type");
    let (addresses, dhcp) = said;
    let excluded = match (addresses, dhcp) {
        (true, _) => Some("interface.addresses"),
        (false, true) => Some("interface.dhcp"),
        (false, false) => None,
    };
    let read = match kind.as_deref() {
        Some("range") => range(&mut f, errors).map(Ipam::Range),
        Some("dhcp") => Some(Ipam::Dhcp),
        Some("webhook") => Some(Ipam::Webhook),
        // Addresses are said, or are those of the host.
        Some("static") => None,
        Some(_) | None => {
            let why = "must be static, range, dhcp or webhook";
            note(errors, type_path.clone(), why);
            None
        }
    };
    f.end(errors);
    if let (Some(_), Some(other)) = (&read, excluded) {
        note(
            errors,
            type_path,
            format!("excludes {other}; keep one of both"),
        );
    }
    read
}

fn range(f: &mut Fields, errors: &mut Errors) -> Option<AddressRange> {
    let before = errors.len();
    let subnet: Option<Cidr> = f.parsed("subnet", errors);
    let start: Option<IpAddr> = f.parsed("start", errors);
    let end: Option<IpAddr> = f.parsed("end", errors);
    let mut exclude = Vec::new();
    for (path, value) in f.list("exclude", errors) {
        match value.as_str().map(str::parse::<IpAddr>) {
            Some(Ok(ip)) => exclude.push(ip),
            Some(Err(_)) | None => note(errors, path, "must be an address such as 10.0.0.1"),
        }
    }
    if errors.len() > before {
        return None;
    }
    let Some(subnet) = subnet else {
        note(
            errors,
            f.path("subnet"),
            "is required, such as 10.60.0.0/24",
        );
        return None;
    };
    match AddressRange::new(subnet, start, end, exclude) {
        Ok(range) => Some(range),
        Err((field, why)) => {
            note(errors, f.path(field), why);
            None
        }
    }
}

/// `profile`; empty counts as absent, as it does for dranet.
pub(super) fn profile(f: &mut Fields, errors: &mut Errors) -> Option<String> {
    let name = f.text("profile", errors).filter(|name| !name.is_empty())?;
    if name.len() > PROFILE_BYTES_MAX || name.contains(char::is_control) {
        let why = format!("must be a name of at most {PROFILE_BYTES_MAX} bytes");
        note(errors, f.path("profile"), why);
        return None;
    }
    Some(name)
}
