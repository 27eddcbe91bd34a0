//! Where the addresses of a NIC in a pod come from, beside those that a claim says itself: a range of
//! the node's own, DHCP ([`crate::dhcp`]), or a service of the operator's.
//!
//! What is taken of a range is what the plans of claims have: an address is allocated when its plan is
//! written, and free when its claim is forgotten. There are no books beside the ledger that could
//! disagree with it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::config::Cidr;

/// Addresses of a range at most; a larger one is refused, since all of it may have to be looked through.
pub const RANGE_ADDRESSES_MAX: u128 = 65_536;

/// Where addresses come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ipam {
    /// From a range that this node alone hands out.
    Range(AddressRange),
    /// From a DHCP server on the device's network.
    Dhcp,
    /// From the operator's service.
    Webhook,
}

/// Addresses of a network, from one to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddressRange {
    /// The network; its prefix becomes that of the addresses.
    pub subnet: Cidr,
    /// The first one.
    pub start: IpAddr,
    /// The last one.
    pub end: IpAddr,
    /// Those in between that are never handed out, such as a gateway's.
    pub exclude: Vec<IpAddr>,
}

impl AddressRange {
    /// A range of `subnet`, which without `start` and `end` is all of it that hosts can have.
    ///
    /// # Errors
    /// The field that is wrong and why.
    pub fn new(
        subnet: Cidr,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        exclude: Vec<IpAddr>,
    ) -> Result<AddressRange, (&'static str, String)> {
        if !subnet.is_network() {
            return Err(("subnet", format!("`{subnet}` has bits beyond its prefix")));
        }
        let (first, last) = usable(subnet);
        let same = |ip: &IpAddr| ip.is_ipv4() == subnet.ip.is_ipv4();
        let within = |ip: IpAddr| same(&ip) && (first..=last).contains(&number(ip));
        for (field, ip) in [("start", start), ("end", end)] {
            if let Some(ip) = ip.filter(|ip| !within(*ip)) {
                return Err((field, format!("{ip} is no address for a host of {subnet}")));
            }
        }
        let (low, high) = (start.map_or(first, number), end.map_or(last, number));
        if low > high {
            return Err(("end", "is before start".to_owned()));
        }
        if high - low >= RANGE_ADDRESSES_MAX {
            let why =
                format!("a range has {RANGE_ADDRESSES_MAX} addresses at most; say start and end");
            return Err(("subnet", why));
        }
        if let Some(ip) = exclude.iter().find(|ip| !same(ip)) {
            return Err((
                "exclude",
                format!("{ip} is of another family than {subnet}"),
            ));
        }
        let address = |number| address(number, subnet.ip.is_ipv4());
        Ok(AddressRange {
            subnet,
            start: address(low),
            end: address(high),
            exclude,
        })
    }

    /// The first address that nobody has. `taken` are all that claims of this node have, and whose.
    ///
    /// # Errors
    /// There is none.
    pub fn allocate(&self, taken: &Taken) -> Result<Cidr, String> {
        let v4 = self.subnet.ip.is_ipv4();
        let mut all = (number(self.start)..=number(self.end)).map(|n| address(n, v4));
        let free = all.find(|ip| !taken.0.contains_key(ip) && !self.exclude.contains(ip));
        let none = || {
            format!(
                "no address of {} to {} is free; one is when a claim ends, or the range is made larger",
                self.start, self.end
            )
        };
        Ok(Cidr {
            ip: free.ok_or_else(none)?,
            prefix_len: self.subnet.prefix_len,
        })
    }
}

/// The addresses that claims of a node have, and which claim has each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Taken(pub BTreeMap<IpAddr, String>);

impl Taken {
    /// Whether somebody has one of these addresses on the network that they are of.
    ///
    /// # Errors
    /// Who has which.
    pub fn conflict(&self, addresses: &[Cidr]) -> Result<(), String> {
        for address in addresses {
            if let Some(who) = self.0.get(&address.ip) {
                return Err(format!(
                    "address {address} is claim {who}'s on this node; say another, or wait until that claim ends"
                ));
            }
        }
        Ok(())
    }
}

/// The first and last number that a host of a network can have: IPv4 keeps two for itself, except of
/// networks that have no more.
fn usable(subnet: Cidr) -> (u128, u128) {
    let bits = if subnet.ip.is_ipv4() { 32 } else { 128 };
    let host_bits = bits - u32::from(subnet.prefix_len);
    let first = number(subnet.ip);
    let last = first
        | 1_u128
            .checked_shl(host_bits)
            .map_or(u128::MAX, |size| size - 1);
    match (subnet.ip, host_bits) {
        (_, 0 | 1) => (first, last),
        (IpAddr::V4(_), _) => (first + 1, last - 1),
        // The first one is the routers' (RFC 4291, 2.6.1).
        (IpAddr::V6(_), _) => (first + 1, last),
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if v4 => Ipv4Addr::from(number).into(),
        Ok(_) | Err(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str, from_to: Option<(&str, &str)>) -> Result<AddressRange, String> {
        let ip = |text: &str| text.parse().unwrap();
        let (start, end) = (from_to.map(|r| ip(r.0)), from_to.map(|r| ip(r.1)));
        AddressRange::new(subnet.parse().unwrap(), start, end, vec![])
            .map_err(|(field, why)| format!("{field}: {why}"))
    }

    #[test]
    fn addresses_are_handed_out_from_the_first_on_until_there_is_none() {
        let range = range("10.60.0.0/30", None).unwrap();
        let mut taken = Taken::default();
        let mut got = Vec::new();
        while let Ok(address) = range.allocate(&taken) {
            got.push(address.to_string());
            taken.0.insert(address.ip, "team/nics".into());
        }
        assert_eq!(got, ["10.60.0.1/30", "10.60.0.2/30"]);
        let why = range.allocate(&taken).unwrap_err();
        assert!(
            why.contains("no address of 10.60.0.1 to 10.60.0.2 is free"),
            "{why}"
        );
        taken.0.remove(&"10.60.0.1".parse().unwrap());
        assert_eq!(range.allocate(&taken).unwrap().to_string(), got[0], "freed");
    }

    #[test]
    fn what_is_excluded_or_somebodys_is_not_handed_out() {
        let subnet: Cidr = "fd00::/64".parse().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (start, end) = (Some(ip("fd00::10")), Some(ip("fd00::12")));
        let range = AddressRange::new(subnet, start, end, vec![ip("fd00::10")]).unwrap();
        let taken = Taken(BTreeMap::from([(ip("fd00::11"), "team/nics".to_owned())]));
        assert_eq!(range.allocate(&taken).unwrap().to_string(), "fd00::12/64");
        let why = taken
            .conflict(&["fd00::11/64".parse().unwrap()])
            .unwrap_err();
        assert!(why.contains("fd00::11/64 is claim team/nics's"), "{why}");
        assert_eq!(taken.conflict(&["fd00::12/64".parse().unwrap()]), Ok(()));
    }

    #[test]
    fn a_range_that_cannot_be_is_refused_with_its_field() {
        for (subnet, from_to, expected) in [
            (
                "10.0.0.1/24",
                None,
                "subnet: `10.0.0.1/24` has bits beyond its prefix",
            ),
            (
                "10.0.0.0/8",
                None,
                "subnet: a range has 65536 addresses at most; say start and end",
            ),
            (
                "10.0.0.0/24",
                Some(("10.0.0.0", "10.0.0.9")),
                "start: 10.0.0.0 is no address for a host of 10.0.0.0/24",
            ),
            (
                "10.0.0.0/24",
                Some(("10.0.0.9", "10.0.0.255")),
                "end: 10.0.0.255 is no address for a host of 10.0.0.0/24",
            ),
            (
                "10.0.0.0/24",
                Some(("10.0.0.9", "10.0.0.8")),
                "end: is before start",
            ),
            (
                "10.0.0.0/24",
                Some(("fd00::1", "10.0.0.8")),
                "start: fd00::1 is no address for a host of 10.0.0.0/24",
            ),
        ] {
            assert_eq!(range(subnet, from_to), Err(expected.into()), "{subnet}");
        }
        assert!(range("10.0.0.0/8", Some(("10.0.0.1", "10.0.255.255"))).is_ok());
        assert!(range("0.0.0.0/0", Some(("10.0.0.1", "10.0.0.2"))).is_ok());
        assert!(range("10.0.0.7/32", None).is_ok());
    }
}
