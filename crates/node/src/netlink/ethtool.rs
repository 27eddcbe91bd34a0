//! What `ethtool` sets, by the kernel's generic netlink family of that name: features and private flags of a
//! link of the namespace that the calling thread is in.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use forebay_fabric::config::Ethtool;
use netlink_packet_core::NLM_F_ACK;
use netlink_sys::protocols::NETLINK_GENERIC;
use rustix::io::Errno;

use super::socket::{Ends, Request, Socket};
use forebay_netlink_frames::{Refusal, attributes, text};

/// The family that tells of families, its one question here, and attributes of that.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// Commands of `ethtool`.
const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
const FLAGS_GET: u8 = 13;
const FLAGS_SET: u8 = 14;

/// Attributes: of every command, of features, of private flags, of sets of bits, of names.
const HEADER: u16 = 1;
const HEADER_NAME: u16 = 2;
const HEADER_FLAGS: u16 = 3;
const OMIT_REPLY: u32 = 2;
const FEATURES_CHANGEABLE: u16 = 2;
const FEATURES_WANTED: u16 = 3;
const FEATURES_ACTIVE: u16 = 4;
const FLAGS: u16 = 2;
const BITS_LISTED: u16 = 1;
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// What `ethtool -K` calls features, shortly and long, with what the kernel's names begin and end with.
const ALIASES: [(&str, &str, &str, &str); 12] = [
    ("rx", "rx-checksumming", "rx-checksum", ""),
    ("tx", "tx-checksumming", "tx-checksum-", ""),
    ("sg", "scatter-gather", "tx-scatter-gather", ""),
    ("tso", "tcp-segmentation-offload", "tx-tcp", "-segmentation"),
    (
        "ufo",
        "udp-fragmentation-offload",
        "tx-udp-fragmentation",
        "",
    ),
    (
        "gso",
        "generic-segmentation-offload",
        "tx-generic-segmentation",
        "",
    ),
    ("gro", "generic-receive-offload", "rx-gro", ""),
    ("lro", "large-receive-offload", "rx-lro", ""),
    ("rxvlan", "rx-vlan-offload", "rx-vlan-hw-parse", ""),
    ("txvlan", "tx-vlan-offload", "tx-vlan-hw-insert", ""),
    ("ntuple", "ntuple-filters", "rx-ntuple-filter", ""),
    ("rxhash", "receive-hashing", "rx-hashing", ""),
];

/// Aliases that stand for exactly one name, though others begin with it.
const EXACT: [&str; 4] = ["rx", "gro", "rxhash", "lro"];

/// A conversation with the family.
pub(super) struct Talk {
    socket: Socket,
    family: u16,
}

/// The features of a link.
struct Features {
    /// All that the kernel knows.
    known: BTreeSet<String>,
    changeable: BTreeSet<String>,
    active: BTreeSet<String>,
}

impl Talk {
    pub(super) fn open() -> io::Result<Talk> {
        let mut socket = Socket::to(NETLINK_GENERIC)?;
        let mut body = command(GET_FAMILY);
        put(&mut body, FAMILY_NAME, b"ethtool\0");
        let request = Request {
            kind: CONTROL,
            flags: 0,
            body,
            ends: Ends::Answer,
        };
        let answer = one(&mut socket, request)?.map_err(|refusal| {
            let why =
                format!("this kernel has no netlink for ethtool (ETHTOOL_NETLINK): {refusal}");
            io::Error::new(io::ErrorKind::Unsupported, why)
        })?;
        let id = attributes(&answer).find(|(kind, _)| *kind == FAMILY_ID);
        let id = id.and_then(|(_, value)| Some(u16::from_ne_bytes(value.try_into().ok()?)));
        let family = id.ok_or_else(|| io::Error::other("the kernel does not number ethtool"))?;
        Ok(Talk { socket, family })
    }

    /// What is asked for by the kernel's names for it, and how that is now.
    ///
    /// # Errors
    /// The link has no such feature or flag, or it cannot be changed.
    pub(super) fn resolve(
        &mut self,
        link: &str,
        asked: &Ethtool,
    ) -> io::Result<(Ethtool, Ethtool)> {
        let (mut wanted, mut now) = (Ethtool::default(), Ethtool::default());
        if !asked.features.is_empty() {
            let features = self.features(link)?;
            for (name, on) in &asked.features {
                for name in features.meant(name, *on)? {
                    let is = features.active.contains(&name);
                    now.features.insert(name.clone(), is);
                    wanted.features.insert(name, *on);
                }
            }
        }
        if !asked.private_flags.is_empty() {
            let flags = self.private_flags(link)?;
            for (name, on) in &asked.private_flags {
                let is = flags.get(name).ok_or_else(|| {
                    let all: Vec<_> = flags.keys().map(String::as_str).collect();
                    let why = format!(
                        "it has no private flag `{name}`; there are: {}",
                        all.join(", ")
                    );
                    io::Error::new(io::ErrorKind::InvalidInput, why)
                })?;
                now.private_flags.insert(name.clone(), *is);
                wanted.private_flags.insert(name.clone(), *on);
            }
        }
        Ok((wanted, now))
    }

    /// How what `named` names is now. What the link does not have is left out.
    pub(super) fn read(&mut self, link: &str, named: &Ethtool) -> io::Result<Ethtool> {
        let mut found = Ethtool::default();
        if !named.features.is_empty() {
            let features = self.features(link)?;
            let is = |name: &String| (name.clone(), features.active.contains(name));
            found.features = named.features.keys().map(is).collect();
        }
        if !named.private_flags.is_empty() {
            found.private_flags = self.private_flags(link)?;
            found
                .private_flags
                .retain(|name, _| named.private_flags.contains_key(name));
        }
        Ok(found)
    }

    /// Sets features and private flags.
    pub(super) fn set(&mut self, link: &str, wanted: &Ethtool) -> io::Result<()> {
        for (what, command, bits, values) in [
            ("features", FEATURES_SET, FEATURES_WANTED, &wanted.features),
            ("private flags", FLAGS_SET, FLAGS, &wanted.private_flags),
        ] {
            if values.is_empty() {
                continue;
            }
            let mut body = about(command, link);
            put(&mut body, bits | NESTED, &written(values));
            let request = Request {
                kind: self.family,
                flags: NLM_F_ACK,
                body,
                ends: Ends::Done,
            };
            let mut outcome = self.socket.exchange(&[request])?;
            if let Some(Err(refusal)) = outcome.pop() {
                let about = format!("{what} of ethtool");
                return Err(Refusal { about, ..refusal }.into());
            }
        }
        Ok(())
    }

    fn ask(&mut self, command: u8, link: &str) -> io::Result<Result<Vec<u8>, Refusal>> {
        let request = Request {
            kind: self.family,
            flags: 0,
            body: about(command, link),
            ends: Ends::Answer,
        };
        one(&mut self.socket, request)
    }

    fn features(&mut self, link: &str) -> io::Result<Features> {
        let answer = self.ask(FEATURES_GET, link)??;
        let set = |of: u16| {
            let bytes = attributes(&answer).find(|(kind, _)| *kind == of);
            bits(bytes.map_or(&[][..], |(_, value)| value))
        };
        let on = |set: BTreeMap<String, bool>| {
            let on = set.into_iter().filter(|(_, on)| *on);
            on.map(|(name, _)| name).collect::<BTreeSet<_>>()
        };
        let changeable = set(FEATURES_CHANGEABLE);
        Ok(Features {
            known: changeable.keys().cloned().collect(),
            changeable: on(changeable),
            active: on(set(FEATURES_ACTIVE)),
        })
    }

    fn private_flags(&mut self, link: &str) -> io::Result<BTreeMap<String, bool>> {
        let answer = match self.ask(FLAGS_GET, link)? {
            Ok(answer) => answer,
            // Its driver knows of none.
            Err(refusal) if refusal.is(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
            Err(refusal) => return Err(refusal.into()),
        };
        let flags = attributes(&answer).find(|(kind, _)| *kind == FLAGS);
        Ok(bits(flags.map_or(&[][..], |(_, value)| value)))
    }
}

impl Features {
    /// The kernel's names of what someone calls `name` and wants to be `on`.
    fn meant(&self, name: &str, on: bool) -> io::Result<Vec<String>> {
        let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        if self.changeable.contains(name)
            || (self.known.contains(name) && self.active.contains(name) == on)
        {
            return Ok(vec![name.to_owned()]);
        }
        if self.known.contains(name) {
            let is = if on { "off" } else { "on" };
            return Err(wrong(format!("its feature `{name}` is {is} for good")));
        }
        let alias = ALIASES
            .iter()
            .find(|(short, long, ..)| name == *short || name == *long);
        let Some((short, _, begin, end)) = alias else {
            return Err(wrong(format!(
                "there is no feature `{name}`; `ethtool -k` lists what there is"
            )));
        };
        let exact = EXACT.contains(short);
        let is_it = |feature: &&String| {
            if exact {
                feature.as_str() == *begin
            } else {
                feature.starts_with(begin) && feature.ends_with(end)
            }
        };
        let meant: Vec<_> = self.changeable.iter().filter(is_it).cloned().collect();
        if !meant.is_empty() {
            return Ok(meant);
        }
        // Who wants it as it is needs no change.
        let fixed: Vec<_> = self.known.iter().filter(is_it).cloned().collect();
        let as_wanted = |feature: &String| self.active.contains(feature) == on;
        if fixed.is_empty() || !fixed.iter().all(as_wanted) {
            return Err(wrong(format!("its feature `{name}` cannot be changed")));
        }
        Ok(fixed)
    }
}

/// The answer to one request, without the header of the family.
fn one(socket: &mut Socket, request: Request) -> io::Result<Result<Vec<u8>, Refusal>> {
    let answer = socket.exchange(&[request])?.pop();
    let answer = answer.ok_or_else(|| io::Error::other("the kernel does not answer"))?;
    Ok(answer.map(|mut answers| {
        let body = answers.pop().map(|(_, body)| body).unwrap_or_default();
        body.get(4..).unwrap_or_default().to_vec()
    }))
}

/// The mark of an attribute that has others in it.
const NESTED: u16 = 0x8000;

/// The family's header.
fn command(command: u8) -> Vec<u8> {
    vec![command, 1, 0, 0]
}

/// A command about a link, whose changes are not told to us apart.
fn about(of: u8, link: &str) -> Vec<u8> {
    let mut header = Vec::new();
    put(&mut header, HEADER_NAME, format!("{link}\0").as_bytes());
    if matches!(of, FEATURES_SET | FLAGS_SET) {
        put(&mut header, HEADER_FLAGS, &OMIT_REPLY.to_ne_bytes());
    }
    let mut body = command(of);
    put(&mut body, HEADER | NESTED, &header);
    body
}

fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A set of bits by their names: those that are to be changed, and to what.
fn written(values: &BTreeMap<String, bool>) -> Vec<u8> {
    let mut bits = Vec::new();
    for (name, on) in values {
        let mut bit = Vec::new();
        put(&mut bit, BIT_NAME, format!("{name}\0").as_bytes());
        if *on {
            put(&mut bit, BIT_VALUE, &[]);
        }
        put(&mut bits, BIT | NESTED, &bit);
    }
    let mut set = Vec::new();
    put(&mut set, BITS | NESTED, &bits);
    set
}

/// A set of bits that was read, by name. Of a set that is a list only what is on is in it.
fn bits(set: &[u8]) -> BTreeMap<String, bool> {
    let listed = attributes(set).any(|(kind, _)| kind == BITS_LISTED);
    let bits = attributes(set).find(|(kind, _)| *kind == BITS);
    let bits = bits.map_or(&[][..], |(_, value)| value);
    let named = |(_, bit): (u16, &[u8])| {
        let name = attributes(bit).find(|(kind, _)| *kind == BIT_NAME)?.1;
        let on = listed || attributes(bit).any(|(kind, _)| kind == BIT_VALUE);
        Some((text(name), on))
    };
    attributes(bits)
        .filter(|(kind, _)| *kind == BIT)
        .filter_map(named)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_bits_reads_as_it_was_written() {
        let values = BTreeMap::from([("tx-lro".to_owned(), true), ("rx-gro".to_owned(), false)]);
        assert_eq!(bits(&written(&values)), values);
    }

    #[test]
    fn a_feature_is_found_by_either_name_and_a_typo_is_told() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|n| (*n).to_owned())
                .collect::<BTreeSet<_>>()
        };
        let features = Features {
            known: names(&[
                "tx-tcp-segmentation",
                "rx-gro",
                "rx-gro-list",
                "highdma",
                "rx-lro",
            ]),
            changeable: names(&[
                "tx-tcp-segmentation",
                "tx-tcp6-segmentation",
                "rx-gro",
                "rx-gro-list",
            ]),
            active: names(&["rx-gro", "highdma"]),
        };
        let check = |name: &str, on: bool| {
            let found = features.meant(name, on);
            found.map_or_else(|e| e.to_string(), |names| names.join(" "))
        };
        assert_eq!(check("rx-gro-list", true), "rx-gro-list");
        assert_eq!(check("gro", false), "rx-gro");
        assert_eq!(
            check("tso", true),
            "tx-tcp-segmentation tx-tcp6-segmentation"
        );
        assert_eq!(check("highdma", true), "highdma");
        assert_eq!(
            check("highdma", false),
            "its feature `highdma` is on for good"
        );
        assert_eq!(check("lro", true), "its feature `lro` cannot be changed");
        assert_eq!(check("lro", false), "rx-lro");
        assert_eq!(
            check("tos", true),
            "there is no feature `tos`; `ethtool -k` lists what there is"
        );
    }
}
