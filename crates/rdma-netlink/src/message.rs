//! The wire form: requests to bytes, and bytes to what the kernel tells. Pure.
//!
//! Numbers are those of `rdma/rdma_netlink.h`, in the machine's own byte order.

use std::fmt;
use std::io;

use forebay_netlink_frames::{Says, attributes, parts, text};

/// `RDMA_NL_NLDEV` in the upper bits of a message's type.
const NLDEV: u16 = 5 << 10;
const CMD_GET: u16 = 1;
const CMD_SET: u16 = 2;
const CMD_PORT_GET: u16 = 5;
const CMD_SYS_GET: u16 = 6;
const CMD_SYS_SET: u16 = 7;

const ATTR_DEV_INDEX: u16 = 1;
const ATTR_DEV_NAME: u16 = 2;
const ATTR_PORT_INDEX: u16 = 3;
const ATTR_FW_VERSION: u16 = 5;
const ATTR_NODE_GUID: u16 = 6;
const ATTR_PORT_STATE: u16 = 12;
const ATTR_PORT_PHYS_STATE: u16 = 13;
const ATTR_NDEV_INDEX: u16 = 50;
const ATTR_NDEV_NAME: u16 = 51;
const ATTR_NETNS_MODE: u16 = 66;
const ATTR_PROTOCOL: u16 = 67;
const ATTR_NET_NS_FD: u16 = 68;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

/// Whether namespaces share devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetnsMode {
    /// Each device is of one namespace.
    Exclusive,
    /// All see all.
    Shared,
}

impl fmt::Display for NetnsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NetnsMode::Exclusive => "exclusive",
            NetnsMode::Shared => "shared",
        })
    }
}

/// An RDMA device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// The kernel's number of it, which it keeps when it is moved.
    pub index: u32,
    /// Its name: `mlx5_0`.
    pub name: String,
    /// How many ports it has, counted from 1.
    pub ports: u32,
    /// Version of its firmware; may be empty.
    pub firmware: String,
    /// GUID of the node; 0 if it has none.
    pub node_guid: u64,
    /// `ib`, `roce`, `iw`, …; empty if the kernel does not tell.
    pub protocol: String,
}

/// A port of a device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Port {
    /// The device's number.
    pub device: u32,
    /// The port's.
    pub number: u32,
    /// Its state, `IB_PORT_*`: 1 down, 2 init, 3 armed, 4 active.
    pub state: u8,
    /// Its physical state: 5 is link up.
    pub phys_state: u8,
    /// Its net device in the namespace that asked: index and name; none if it has none, or one elsewhere.
    pub netdev: Option<(u32, String)>,
}

/// What can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// All devices.
    Devices,
    /// A port, by the numbers of device and port.
    Port(u32, u32),
    /// The mode of namespaces.
    NetnsMode,
    /// Another mode.
    SetNetnsMode(NetnsMode),
    /// Moves a device, by its number, to the namespace that a file of this process is open on.
    Move(u32, u32),
}

impl Request {
    /// The request as a datagram.
    #[must_use]
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let (command, flags) = match self {
            Request::Devices => (CMD_GET, NLM_F_DUMP | NLM_F_ACK),
            Request::Port(..) => (CMD_PORT_GET, NLM_F_ACK),
            Request::NetnsMode => (CMD_SYS_GET, NLM_F_ACK),
            Request::SetNetnsMode(_) => (CMD_SYS_SET, NLM_F_ACK),
            Request::Move(..) => (CMD_SET, NLM_F_ACK),
        };
        let mut bytes = vec![0; 4];
        bytes.extend((NLDEV | command).to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        match *self {
            Request::Devices | Request::NetnsMode => {}
            Request::Port(device, port) => {
                put(&mut bytes, ATTR_DEV_INDEX, &device.to_ne_bytes());
                put(&mut bytes, ATTR_PORT_INDEX, &port.to_ne_bytes());
            }
            Request::SetNetnsMode(mode) => {
                let shared = mode == NetnsMode::Shared;
                put(&mut bytes, ATTR_NETNS_MODE, &[u8::from(shared)]);
            }
            Request::Move(device, fd) => {
                put(&mut bytes, ATTR_DEV_INDEX, &device.to_ne_bytes());
                put(&mut bytes, ATTR_NET_NS_FD, &fd.to_ne_bytes());
            }
        }
        let length = u32::try_from(bytes.len()).expect("a request has a few dozen bytes");
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).expect("values are numbers");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// One message of an answer: its attributes by type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    command: u16,
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Answer {
    fn value(&self, kind: u16) -> Option<&[u8]> {
        let found = self.attributes.iter().find(|(k, _)| *k == kind);
        found.map(|(_, value)| &value[..])
    }

    fn u8(&self, kind: u16) -> Option<u8> {
        self.value(kind)?.first().copied()
    }

    fn u32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.value(kind)?.try_into().ok()?))
    }

    fn u64(&self, kind: u16) -> Option<u64> {
        Some(u64::from_ne_bytes(self.value(kind)?.try_into().ok()?))
    }

    fn text(&self, kind: u16) -> Option<String> {
        self.value(kind).map(text)
    }

    /// The device that it tells of; none if it tells of none.
    #[must_use]
    pub fn into_device(self) -> Option<Device> {
        let is_one = self.command == CMD_GET;
        is_one.then_some(())?;
        Some(Device {
            index: self.u32(ATTR_DEV_INDEX)?,
            name: self.text(ATTR_DEV_NAME)?,
            ports: self.u32(ATTR_PORT_INDEX).unwrap_or(0),
            firmware: self.text(ATTR_FW_VERSION).unwrap_or_default(),
            node_guid: self.u64(ATTR_NODE_GUID).unwrap_or(0),
            protocol: self.text(ATTR_PROTOCOL).unwrap_or_default(),
        })
    }

    /// The port that it tells of.
    #[must_use]
    pub fn into_port(self) -> Option<Port> {
        let is_one = self.command == CMD_PORT_GET;
        is_one.then_some(())?;
        let netdev = self.u32(ATTR_NDEV_INDEX).zip(self.text(ATTR_NDEV_NAME));
        Some(Port {
            device: self.u32(ATTR_DEV_INDEX)?,
            number: self.u32(ATTR_PORT_INDEX)?,
            state: self.u8(ATTR_PORT_STATE).unwrap_or(0),
            phys_state: self.u8(ATTR_PORT_PHYS_STATE).unwrap_or(0),
            netdev,
        })
    }

    /// The mode of namespaces that it tells of.
    #[must_use]
    pub fn netns_mode(&self) -> Option<NetnsMode> {
        match self.u8(ATTR_NETNS_MODE)? {
            0 => Some(NetnsMode::Exclusive),
            1 => Some(NetnsMode::Shared),
            _ => None,
        }
    }
}

/// Takes one datagram of the answer to the request of number `sequence`; whether it was the last. Messages of
/// other numbers are left out: they answer a request that was given up.
///
/// # Errors
/// The kernel refused, or what came is cut off.
pub fn take(bytes: &[u8], sequence: u32, answers: &mut Vec<Answer>) -> io::Result<bool> {
    for part in parts(bytes) {
        let part = part?;
        if part.sequence != sequence {
            continue;
        }
        match part.says {
            Says::Done => return Ok(true),
            Says::Refused(refusal) => return Err(refusal.into()),
            Says::Answer(kind, body) if kind & !0x3ff == NLDEV => answers.push(Answer {
                command: kind & 0x3ff,
                attributes: attributes(body)
                    .map(|(kind, value)| (kind, value.to_vec()))
                    .collect(),
            }),
            Says::Answer(..) | Says::Nothing => {}
        }
    }
    Ok(false)
}
