//! One conversation with the kernel's routing netlink, in the namespace of the thread that opened it:
//! requests one after the other, each answered before the next. No request waits longer than
//! [`ANSWER_MAX`].

use std::io;
use std::time::Duration;

use forebay_fabric::plan::Interface;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, route::RouteHeader};
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::{
    address_message, address_of, interface_of, neighbor_message, neighbor_of, route_message,
    route_of, updown,
};

/// The kernel answers in microseconds, or waits for a lock that a driver holds; after this the request
/// fails, and what it did is found out by looking.
const ANSWER_MAX: Duration = Duration::from_millis(1000);

pub(super) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
}

impl Socket {
    pub(super) fn open() -> io::Result<Socket> {
        let mut inner = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        inner.bind_auto()?;
        inner.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(&inner, Timeout::Recv, Some(ANSWER_MAX))?;
        Ok(Socket { inner, sequence: 0 })
    }

    /// All links, with their index, without addresses and routes.
    pub(super) fn links(&mut self) -> io::Result<Vec<(u32, Interface)>> {
        let links = self.dump(Message::GetLink(LinkMessage::default()))?;
        let link = |m| match m {
            Message::NewLink(link) => Some((link.header.index, interface_of(&link))),
            _ => None,
        };
        Ok(links.into_iter().filter_map(link).collect())
    }

    /// A link with what it has beyond itself.
    pub(super) fn complete(&mut self, index: u32, mut link: Interface) -> io::Result<Interface> {
        for message in self.dump(Message::GetAddress(AddressMessage::default()))? {
            if let Message::NewAddress(address) = message {
                link.addresses.extend(address_of(&address, index));
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut ask = RouteMessage::default();
            ask.header = RouteHeader {
                address_family: family,
                ..RouteHeader::default()
            };
            for message in self.dump(Message::GetRoute(ask))? {
                if let Message::NewRoute(route) = message {
                    link.routes.extend(route_of(&route, index));
                }
            }
            let mut ask = NeighbourMessage::default();
            ask.header.family = family;
            for message in self.dump(Message::GetNeighbour(ask))? {
                if let Message::NewNeighbour(neighbor) = message {
                    link.neighbors.extend(neighbor_of(&neighbor, index));
                }
            }
        }
        link.routes.sort_by_key(|r| r.gateway.is_some());
        Ok(link)
    }

    /// Gives a link the addresses of `wanted`.
    pub(super) fn address(&mut self, index: u32, wanted: &Interface) -> io::Result<()> {
        for address in &wanted.addresses {
            self.create(Message::NewAddress(address_message(index, *address)))
                .map_err(|e| io::Error::new(e.kind(), format!("address {address}: {e}")))?;
        }
        Ok(())
    }

    /// Sets a link up with addresses, routes and neighbours of `wanted`.
    pub(super) fn dress(&mut self, index: u32, wanted: &Interface) -> io::Result<()> {
        self.address(index, wanted)?;
        self.change(Message::SetLink(updown(index, true)), 0)?;
        for route in &wanted.routes {
            self.create(Message::NewRoute(route_message(index, route)))
                .map_err(|e| {
                    io::Error::new(e.kind(), format!("the route to {}: {e}", route.destination))
                })?;
        }
        for neighbor in &wanted.neighbors {
            let message = Message::NewNeighbour(neighbor_message(index, neighbor));
            self.create(message).map_err(|e| {
                io::Error::new(e.kind(), format!("neighbour {}: {e}", neighbor.destination))
            })?;
        }
        Ok(())
    }

    /// Makes something that may be there already.
    pub(super) fn create(&mut self, message: Message) -> io::Result<()> {
        match self.change(message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Asks for a change and waits until it is made.
    pub(super) fn change(&mut self, message: Message, flags: u16) -> io::Result<()> {
        self.ask(message, NLM_F_REQUEST | NLM_F_ACK | flags)
            .map(drop)
    }

    pub(super) fn dump(&mut self, message: Message) -> io::Result<Vec<Message>> {
        self.ask(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn ask(&mut self, message: Message, flags: u16) -> io::Result<Vec<Message>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.inner.send(&bytes, 0)?;
        let mut found = Vec::new();
        loop {
            let (bytes, _) = self.inner.recv_from_full().map_err(|e| match e.kind() {
                io::ErrorKind::WouldBlock => {
                    io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer")
                }
                _ => e,
            })?;
            if self.answers(&bytes, &mut found)? {
                return Ok(found);
            }
        }
    }

    /// Takes one datagram; whether it was the last of the answer.
    fn answers(&self, bytes: &[u8], found: &mut Vec<Message>) -> io::Result<bool> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let answer = NetlinkMessage::<Message>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            let length = usize::try_from(answer.header.length)
                .unwrap_or(0)
                .next_multiple_of(4);
            if answer.header.sequence_number == self.sequence {
                match answer.payload {
                    NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(true),
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    _ => {}
                }
            }
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
        Ok(false)
    }
}
