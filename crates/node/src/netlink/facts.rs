//! What only netlink tells of the host's links, and that something about them changed.

use std::io;

use forebay_fabric::machine::LinkFacts;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::messages::address_of;
use super::socket::Socket;

/// Groups of the kernel's messages: links, addresses of either family.
const GROUPS: [u32; 3] = [1, 5, 9];

/// The links of the namespace that this thread is in.
///
/// # Errors
/// The kernel does not answer.
pub fn facts() -> io::Result<Vec<LinkFacts>> {
    let mut socket = Socket::open()?;
    let mut found: Vec<(u32, LinkFacts)> = Vec::new();
    for message in socket.dump(Message::GetLink(LinkMessage::default()))? {
        if let Message::NewLink(link) = message {
            found.push((link.header.index, of(&link)));
        }
    }
    for message in socket.dump(Message::GetAddress(AddressMessage::default()))? {
        if let Message::NewAddress(address) = message
            && let Some((index, cidr)) = address_of(&address)
            && let Some((_, link)) = found.iter_mut().find(|(at, _)| *at == index)
        {
            link.addresses.push(cidr.ip);
        }
    }
    Ok(found.into_iter().map(|(_, link)| link).collect())
}

fn of(link: &LinkMessage) -> LinkFacts {
    let (mut name, mut kind) = (String::new(), String::new());
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(found) = info {
                        kind = found.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    LinkFacts {
        name,
        kind,
        addresses: Vec::new(),
    }
}

/// Calls `changed` from a thread of its own whenever links or addresses of this thread's namespace change,
/// for as long as the process lives. May call more often than that, never less.
///
/// # Errors
/// The kernel does not let us listen.
pub fn follow(changed: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    let listen = move || {
        loop {
            // An error is that messages were lost; that too is a change. Others do not come, and would not
            // be worth a busy loop.
            if socket.recv_from_full().is_err() {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            changed();
        }
    };
    let thread = std::thread::Builder::new().name("links".to_owned());
    thread.stack_size(128 << 10).spawn(listen).map(drop)
}
