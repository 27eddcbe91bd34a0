//! An address with the length of its prefix, as it is written: `10.0.0.5/24` keeps its `.5`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address and the length of its prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address.
    pub ip: IpAddr,
    /// Length of the prefix in bits.
    pub prefix_len: u8,
}

impl Cidr {
    /// Whether an address is of this network.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let beyond = |bits: u8| u32::from(bits - self.prefix_len.min(bits));
        match (self.ip, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let differ = u32::from(own) ^ u32::from(ip);
                differ.checked_shr(beyond(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                let differ = u128::from(own) ^ u128::from(ip);
                differ.checked_shr(beyond(128)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Whether nothing is set beyond the prefix, so that this names a network.
    pub fn is_network(&self) -> bool {
        match self.ip {
            IpAddr::V4(ip) => {
                u32::from(ip)
                    .checked_shl(u32::from(self.prefix_len))
                    .unwrap_or(0)
                    == 0
            }
            IpAddr::V6(ip) => {
                u128::from(ip)
                    .checked_shl(u32::from(self.prefix_len))
                    .unwrap_or(0)
                    == 0
            }
        }
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        let wrong = || format!("`{text}` is no address with a prefix such as 10.0.0.5/24");
        let (ip, len) = text.split_once('/').ok_or_else(wrong)?;
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let prefix_len: u8 = len.parse().map_err(|_| wrong())?;
        let max = if ip.is_ipv4() { 32 } else { 128 };
        if prefix_len > max {
            return Err(format!("the prefix of `{text}` is longer than {max} bits"));
        }
        Ok(Cidr { ip, prefix_len })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix_len)
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Cidr, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}
