//! IP addresses and networks, read as Go's `net/netip` reads them.

use super::{Implementation, or_fail, quoted, text};
use crate::value::{Failure, Outcome, Value, no_overload};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address and how many bits of it name the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cidr {
    pub(crate) address: IpAddr,
    pub(crate) bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// The function that an overload is.
pub(crate) fn implementation(overload: &str) -> Option<Implementation> {
    Some(match overload {
        "string_to_ip" => |args, _| or_fail(ip(text(&args[0])?)).map(Value::Ip),
        "is_ip" => |args, _| Ok(Value::Bool(ip(text(&args[0])?).is_ok())),
        "ip_is_canonical" => |args, _| {
            let text = text(&args[0])?;
            let address = or_fail(ip(text))?;
            Ok(Value::Bool(address.to_string() == **text))
        },
        "ip_to_string" => |args, _| Ok(Value::str(address(&args[0])?.to_string())),
        "ip_family" => |args, _| Ok(Value::Int(if address(&args[0])?.is_ipv4() { 4 } else { 6 })),
        "ip_is_unspecified" => |args, _| test(args, |ip| ip.is_unspecified()),
        "ip_is_loopback" => |args, _| test(args, |ip| ip.is_loopback()),
        "ip_is_link_local_multicast" => |args, _| test(args, is_link_local_multicast),
        "ip_is_link_local_unicast" => |args, _| test(args, is_link_local_unicast),
        "ip_is_global_unicast" => |args, _| test(args, is_global_unicast),
        "string_to_cidr" => |args, _| or_fail(cidr(text(&args[0])?)).map(Value::Cidr),
        "is_cidr" => |args, _| Ok(Value::Bool(parse_cidr(text(&args[0])?).is_ok())),
        "cidr_to_string" => |args, _| Ok(Value::str(network(&args[0])?.to_string())),
        "cidr_contains_ip_ip" => |args, _| contains_ip(args, address(&args[1])?),
        // What cannot be read is no address, rather than an error of its own.
        "cidr_contains_ip_string" => |args, _| match ip(text(&args[1])?) {
            Ok(ip) => contains_ip(args, ip),
            Err(_) => no_overload(),
        },
        "cidr_contains_cidr" => |args, _| contains_cidr(args, network(&args[1])?),
        "cidr_contains_cidr_string" => |args, _| {
            let other = or_fail(cidr(text(&args[1])?))?;
            contains_cidr(args, other)
        },
        "cidr_ip" => |args, _| Ok(Value::Ip(network(&args[0])?.address)),
        "cidr_prefix_length" => |args, _| Ok(Value::Int(i64::from(network(&args[0])?.bits))),
        "cidr_masked" => |args, _| Ok(Value::Cidr(network(&args[0])?.masked())),
        _ => return None,
    })
}

fn address(value: &Value) -> Result<IpAddr, Failure> {
    match value {
        Value::Ip(address) => Ok(*address),
        _ => no_overload(),
    }
}

fn network(value: &Value) -> Result<Cidr, Failure> {
    match value {
        Value::Cidr(cidr) => Ok(*cidr),
        _ => no_overload(),
    }
}

fn test(args: &[Value], holds: fn(IpAddr) -> bool) -> Outcome {
    Ok(Value::Bool(holds(address(&args[0])?)))
}

fn contains_ip(args: &[Value], ip: IpAddr) -> Outcome {
    Ok(Value::Bool(network(&args[0])?.contains(ip)))
}

fn contains_cidr(args: &[Value], other: Cidr) -> Outcome {
    let outer = network(&args[0])?;
    Ok(Value::Bool(
        outer.bits <= other.bits && outer.contains(other.address),
    ))
}

fn is_link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_link_local_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// All that is neither special nor for many; private addresses count.
fn is_global_unicast(ip: IpAddr) -> bool {
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(broadcast
        || ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_multicast()
        || is_link_local_unicast(ip))
}

impl Cidr {
    fn masked(self) -> Cidr {
        let bits = u32::from(self.bits);
        let address = match self.address {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                IpAddr::V4((ip.to_bits() & mask).into())
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                IpAddr::V6((ip.to_bits() & mask).into())
            }
        };
        Cidr { address, ..self }
    }

    fn contains(self, address: IpAddr) -> bool {
        let same_kind = self.address.is_ipv4() == address.is_ipv4();
        let other = Cidr { address, ..self };
        same_kind && self.masked() == other.masked()
    }
}

/// An address for `ip()`: no zone, and no version 4 inside version 6.
fn ip(text: &str) -> Result<IpAddr, String> {
    let (address, zone) = parse_address(text).map_err(|error| {
        let text = quoted(text);
        format!("IP Address {text} parse error during conversion from string: {error}")
    })?;
    if !zone.is_empty() {
        let text = quoted(text);
        return Err(format!("IP address {text} with zone value is not allowed"));
    }
    refuse_mapped(address, text)?;
    Ok(address)
}

fn refuse_mapped(address: IpAddr, text: &str) -> Result<(), String> {
    match address {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => Err(format!(
            "IPv4-mapped IPv6 address {} is not allowed",
            quoted(text)
        )),
        _ => Ok(()),
    }
}

/// The prefix of errors of networks; twice in one message, as two functions add it.
const NETWORK: &str = "network address parse error during conversion from string";

fn cidr(text: &str) -> Result<Cidr, String> {
    parse_cidr(text).map_err(|error| format!("{NETWORK}: {error}"))
}

fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let refuse =
        |message: String| format!("{NETWORK}: netip.ParsePrefix({}): {message}", quoted(text));
    let Some((address_text, bits_text)) = text.rsplit_once('/') else {
        return Err(refuse("no '/'".to_owned()));
    };
    let (address, zone) = parse_address(address_text).map_err(refuse)?;
    if !zone.is_empty() {
        return Err(refuse(
            "IPv6 zones cannot be present in a prefix".to_owned(),
        ));
    }
    let bad_bits = || refuse(format!("bad bits after slash: {}", quoted(bits_text)));
    let plain = bits_text.len() <= 1 || bits_text.starts_with(|c: char| matches!(c, '1'..='9'));
    let digits = !bits_text.is_empty() && bits_text.bytes().all(|b| b.is_ascii_digit());
    if !plain || !digits || bits_text.parse::<i64>().is_err() {
        return Err(bad_bits());
    }
    let most = if address.is_ipv4() { 32 } else { 128 };
    match bits_text.parse::<u8>() {
        Ok(bits) if bits <= most => {
            refuse_mapped(address, text)?;
            Ok(Cidr { address, bits })
        }
        _ => Err(refuse("prefix length out of range".to_owned())),
    }
}

/// What is wrong with an address, and where if that is known.
struct Wrong<'a> {
    message: &'static str,
    at: &'a str,
}

type Read<'a, T> = Result<T, Wrong<'a>>;

fn wrong<T>(message: &'static str) -> Read<'static, T> {
    Err(Wrong { message, at: "" })
}

/// An address and its zone, which is empty where there is none.
pub(crate) fn parse_address(text: &str) -> Result<(IpAddr, &str), String> {
    let read = match text.bytes().find(|b| b".:%".contains(b)) {
        Some(b'.') => v4_fields(text).map(|ip| (IpAddr::V4(ip), "")),
        Some(b':') => v6(text),
        Some(_) => wrong("missing IPv6 address"),
        None => wrong("unable to parse IP"),
    };
    read.map_err(|Wrong { message, at }| {
        let text = quoted(text);
        if at.is_empty() {
            return format!("ParseAddr({text}): {message}");
        }
        format!("ParseAddr({text}): {message} (at {})", quoted(at))
    })
}

fn v4_fields(text: &str) -> Read<'_, Ipv4Addr> {
    let mut fields = [0_u8; 4];
    let (mut field, mut value, mut digits) = (0, 0_u32, 0);
    for (at, b) in text.bytes().enumerate() {
        if b.is_ascii_digit() {
            if digits == 1 && value == 0 {
                return wrong("IPv4 field has octet with leading zero");
            }
            value = value * 10 + u32::from(b - b'0');
            digits += 1;
            if value > 255 {
                return wrong("IPv4 field has value >255");
            }
        } else if b == b'.' {
            if at == 0 || at == text.len() - 1 || digits == 0 {
                let message = "IPv4 field must have at least one digit";
                return Err(Wrong {
                    message,
                    at: &text[at..],
                });
            }
            if field == 3 {
                return wrong("IPv4 address too long");
            }
            fields[field] = value as u8;
            field += 1;
            (value, digits) = (0, 0);
        } else {
            let message = "unexpected character";
            return Err(Wrong {
                message,
                at: &text[at..],
            });
        }
    }
    if field < 3 {
        return wrong("IPv4 address too short");
    }
    fields[3] = value as u8;
    Ok(fields.into())
}

fn v6(text: &str) -> Read<'_, (IpAddr, &str)> {
    let (mut rest, zone) = match text.split_once('%') {
        Some((_, "")) => return wrong("zone must be a non-empty string"),
        Some((address, zone)) => (address, zone),
        None => (text, ""),
    };
    let mut bytes = Vec::with_capacity(16);
    let mut gap = None;
    if let Some(after) = rest.strip_prefix("::") {
        gap = Some(0);
        rest = after;
        if rest.is_empty() {
            return Ok((IpAddr::V6(Ipv6Addr::UNSPECIFIED), zone));
        }
    }
    while bytes.len() < 16 {
        let digits = hex_digits(rest)?;
        if rest.as_bytes().get(digits) == Some(&b'.') {
            bytes.extend(embedded_v4(rest, bytes.len(), gap.is_some())?);
            rest = "";
            break;
        }
        let group = u16::from_str_radix(&rest[..digits], 16).unwrap_or(0);
        bytes.extend(group.to_be_bytes());
        rest = &rest[digits..];
        if rest.is_empty() {
            break;
        }
        rest = after_colon(rest)?;
        if let Some(after) = rest.strip_prefix(':') {
            if gap.is_some() {
                let message = "multiple :: in address";
                return Err(Wrong { message, at: rest });
            }
            gap = Some(bytes.len());
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
    }
    if !rest.is_empty() {
        let message = "trailing garbage after address";
        return Err(Wrong { message, at: rest });
    }
    match (bytes.len(), gap) {
        (16, Some(_)) => return wrong("the :: must expand to at least one field of zeros"),
        (16, None) => {}
        (_, None) => return wrong("address string too short"),
        (length, Some(gap)) => {
            bytes.splice(gap..gap, std::iter::repeat_n(0, 16 - length));
        }
    }
    let bytes: [u8; 16] = bytes.try_into().unwrap_or_default();
    Ok((IpAddr::V6(bytes.into()), zone))
}

/// How many hexadecimal digits the next group has.
fn hex_digits(rest: &str) -> Read<'_, usize> {
    let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
    match digits {
        0 => Err(Wrong {
            message: "each colon-separated field must have at least one digit",
            at: rest,
        }),
        1..=4 => Ok(digits),
        _ => Err(Wrong {
            message: "each group must have 4 or less digits",
            at: rest,
        }),
    }
}

fn embedded_v4(rest: &str, read: usize, gap: bool) -> Read<'_, [u8; 4]> {
    if !gap && read != 12 {
        return Err(Wrong {
            message: "embedded IPv4 address must replace the final 2 fields of the address",
            at: rest,
        });
    }
    if read + 4 > 16 {
        return Err(Wrong {
            message: "too many hex fields to fit an embedded IPv4 at the end of the address",
            at: rest,
        });
    }
    v4_fields(rest).map(|ip| ip.octets())
}

fn after_colon(rest: &str) -> Read<'_, &str> {
    match rest.strip_prefix(':') {
        None => Err(Wrong {
            message: "unexpected character, want colon",
            at: rest,
        }),
        Some("") => Err(Wrong {
            message: "colon must be followed by more characters",
            at: rest,
        }),
        Some(after) => Ok(after),
    }
}
