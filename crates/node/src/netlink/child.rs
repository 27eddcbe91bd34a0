//! Links of a pod's own on top of a NIC that stays on the host. Such a link is made in the pod's namespace by
//! one request, and goes by one: there is no time at which it is somewhere else, or half there.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use forebay_fabric::config::{IpvlanMode, MacvlanMode, SubInterface};
use forebay_fabric::plan::{AttachPlan, Interface};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, InfoMacVlan, IpVlanMode, LinkAttribute, LinkInfo, LinkMessage,
    MacVlanMode,
};

use super::messages::{Link, shaped, updown};
use super::socket::Socket;
use forebay_netlink_frames::errno;

/// Makes the child of a plan. `host` is a conversation in the host's namespace.
pub(super) fn make(
    host: &mut Socket,
    plan: &AttachPlan,
    child: SubInterface,
    parent: &Link,
    netns: &File,
) -> io::Result<()> {
    if !parent.interface.up {
        // On top of a link that is down none can be up. That it is up stays: others may share it by now.
        host.request(&Message::SetLink(updown(parent.index, true)), 0)?;
    }
    let mut link = shaped(0, &plan.pod, &Interface::default()).unwrap_or_default();
    if matches!(child, SubInterface::Ipvlan(_)) {
        // It is the device's, and cannot be said.
        let own = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Address(_));
        link.attributes.retain(|attribute| !own(attribute));
    }
    let attributes = &mut link.attributes;
    attributes.push(LinkAttribute::Link(parent.index));
    attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    attributes.push(LinkAttribute::LinkInfo(info(child)));
    let made = host.request(&Message::NewLink(link), NLM_F_CREATE | NLM_F_EXCL);
    made.map_err(|error| explained(error, plan, child))
}

/// Takes a child out of its pod; one that is not there is no error. `pod` is a conversation there.
pub(super) fn remove(pod: &mut Socket, index: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    match pod.request(&Message::DelLink(link), 0) {
        // ENODEV: it went with its parent meanwhile.
        Err(error) if errno(&error) == Some(19) => Ok(()),
        other => other,
    }
}

fn info(child: SubInterface) -> Vec<LinkInfo> {
    let (kind, data) = match child {
        SubInterface::Macvlan(mode) => {
            let mode = match mode {
                MacvlanMode::Bridge => MacVlanMode::Bridge,
                MacvlanMode::Private => MacVlanMode::Private,
                MacvlanMode::Vepa => MacVlanMode::Vepa,
            };
            let data = InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]);
            (InfoKind::MacVlan, Some(data))
        }
        SubInterface::Ipvlan(mode) => {
            let mode = match mode {
                IpvlanMode::L2 => IpVlanMode::L2,
                IpvlanMode::L3 => IpVlanMode::L3,
                IpvlanMode::L3s => IpVlanMode::L3S,
            };
            let data = InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)]);
            (InfoKind::IpVlan, Some(data))
        }
        // Made by its device's driver, and moved.
        SubInterface::Vf => (InfoKind::Other(String::new()), None),
    };
    let data = data.map(LinkInfo::Data);
    [LinkInfo::Kind(kind)].into_iter().chain(data).collect()
}

/// What a link is, by what netlink tells of its kind.
pub(super) fn kind_of(infos: &[LinkInfo]) -> Option<SubInterface> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::MacVlan(data)) => data
            .iter()
            .find_map(|data| match data {
                InfoMacVlan::Mode(MacVlanMode::Bridge) => Some(MacvlanMode::Bridge),
                InfoMacVlan::Mode(MacVlanMode::Private) => Some(MacvlanMode::Private),
                InfoMacVlan::Mode(MacVlanMode::Vepa) => Some(MacvlanMode::Vepa),
                _ => None,
            })
            .map(SubInterface::Macvlan),
        LinkInfo::Data(InfoData::IpVlan(data)) => data
            .iter()
            .find_map(|data| match data {
                InfoIpVlan::Mode(IpVlanMode::L2) => Some(IpvlanMode::L2),
                InfoIpVlan::Mode(IpVlanMode::L3) => Some(IpvlanMode::L3),
                InfoIpVlan::Mode(IpVlanMode::L3S) => Some(IpvlanMode::L3s),
                _ => None,
            })
            .map(SubInterface::Ipvlan),
        _ => None,
    })
}

/// The kernel's error with what it means here.
fn explained(error: io::Error, plan: &AttachPlan, child: SubInterface) -> io::Error {
    let why = match errno(&error) {
        // EOPNOTSUPP: no such kind.
        Some(95) => {
            format!("this node's kernel has no {child}; ask for another type of subInterface")
        }
        // EEXIST
        Some(17) => format!(
            "the pod has an interface `{}` already; give the NIC another interface.name",
            plan.pod.name
        ),
        // EBUSY, EINVAL: what the device refuses, such as a macvlan beside ipvlans.
        Some(16 | 22) => format!(
            "`{}` takes no {child}: {error}; it may be part of a bond or bridge, or have links of another \
             type on top of it",
            plan.host.name
        ),
        _ => return error,
    };
    io::Error::new(error.kind(), why)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, Parseable};

    use super::*;

    /// Kinds that the kernel of a test may lack: that they are said and read as netlink has them.
    #[test]
    fn every_kind_of_child_is_read_back_as_it_was_asked_for() {
        let kinds = [
            SubInterface::Macvlan(MacvlanMode::Bridge),
            SubInterface::Macvlan(MacvlanMode::Private),
            SubInterface::Macvlan(MacvlanMode::Vepa),
            SubInterface::Ipvlan(IpvlanMode::L2),
            SubInterface::Ipvlan(IpvlanMode::L3),
            SubInterface::Ipvlan(IpvlanMode::L3s),
        ];
        for child in kinds {
            let mut link = LinkMessage::default();
            link.attributes.push(LinkAttribute::LinkInfo(info(child)));
            let mut bytes = vec![0; link.buffer_len()];
            link.emit(&mut bytes);
            let read = LinkMessage::parse(&bytes[..]).unwrap();
            let [LinkAttribute::LinkInfo(infos)] = &read.attributes[..] else {
                panic!("{read:?}");
            };
            assert_eq!(kind_of(infos), Some(child), "{child}");
        }
        // IFLA_LINKINFO with the kind `ipvlan` and the mode l3s, as `ip` sends it, but for the mark at the end of
        // the kind, which the kernel takes either way.
        let mut link = LinkMessage::default();
        let l3s = SubInterface::Ipvlan(IpvlanMode::L3s);
        link.attributes.push(LinkAttribute::LinkInfo(info(l3s)));
        let mut bytes = vec![0; link.buffer_len()];
        link.emit(&mut bytes);
        let sent = [
            0x1c, 0, 0x12, 0, 0x0b, 0, 1, 0, b'i', b'p', b'v', b'l', b'a', b'n', 0, 0, 0x0c, 0, 2,
            0, 6, 0, 1, 0, 2, 0, 0, 0,
        ];
        // The flag of a nested attribute is told by some, and looked at by none of these.
        bytes.truncate(16 + sent.len());
        let tail: Vec<u8> = bytes[16..].iter().map(|byte| byte & 0x7f).collect();
        assert_eq!(tail, sent);
    }
}
