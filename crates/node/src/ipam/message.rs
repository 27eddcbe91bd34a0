//! Messages of DHCP (RFC 2131) as a station on Ethernet sends and reads them: bytes, no sockets. What comes is
//! from the network: anything that is no answer to the station's own question reads as none.

use std::net::Ipv4Addr;

use forebay_fabric::config::{Cidr, Mac, Route};
use forebay_fabric::dhcp::{Lease, classless_routes};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame,
    EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

/// The port of servers.
pub const SERVER_PORT: u16 = 67;
/// The port of who asks them.
pub const CLIENT_PORT: u16 = 68;

/// What is asked for: the mask, classless routes, and times.
const PARAMETERS: [u8; 5] = [1, 51, 58, 59, CLASSLESS_ROUTES];
const CLASSLESS_ROUTES: u8 = 121;
const MESSAGE: u8 = 56;
/// Relays drop shorter messages than BOOTP had.
const LENGTH_MIN: usize = 300;
/// What an answer may have, bytes.
const LENGTH_MAX: u16 = 1500;
/// Bytes of a server's words that are repeated.
const WORDS_MAX: usize = 128;

/// Who asks, and which of its questions this is about.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Its Ethernet address.
    pub mac: Mac,
    /// The number of the exchange.
    pub id: u32,
    /// How long it has been asking, seconds.
    pub for_s: u16,
}

/// What is said to servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Say {
    /// Who has an address?
    Discover,
    /// That of the offer is taken.
    Request {
        /// The address.
        address: Ipv4Addr,
        /// Who offered it.
        server: Ipv4Addr,
    },
    /// The lease of this address shall go on.
    Renew(Ipv4Addr),
    /// The address is not used any longer.
    Release {
        /// The address.
        address: Ipv4Addr,
        /// Who gave it.
        server: Ipv4Addr,
    },
}

/// What a server says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// An address can be had.
    Offer {
        /// The address.
        address: Ipv4Addr,
        /// Who offers it.
        server: Ipv4Addr,
    },
    /// It is the station's, as of `since_s`, which the reader sets.
    Given(Lease),
    /// It is not the station's; with the server's words.
    Refused(String),
}

impl Question {
    /// The payload of a datagram.
    pub fn say(&self, what: Say) -> Vec<u8> {
        let unspecified = Ipv4Addr::UNSPECIFIED;
        let station = EthernetAddress(self.mac.0);
        let (message_type, client_ip, requested_ip, server_identifier) = match what {
            Say::Discover => (DhcpMessageType::Discover, unspecified, None, None),
            Say::Request { address, server } => {
                let asked = (Some(address), Some(server));
                (DhcpMessageType::Request, unspecified, asked.0, asked.1)
            }
            Say::Renew(address) => (DhcpMessageType::Request, address, None, None),
            Say::Release { address, server } => {
                (DhcpMessageType::Release, address, None, Some(server))
            }
        };
        let without_address = client_ip.is_unspecified();
        let asks = message_type != DhcpMessageType::Release;
        let message = DhcpRepr {
            message_type,
            transaction_id: self.id,
            secs: self.for_s,
            client_hardware_address: station,
            client_ip,
            your_ip: unspecified,
            server_ip: unspecified,
            router: None,
            subnet_mask: None,
            relay_agent_ip: unspecified,
            // The station may be one that nobody answers to yet.
            broadcast: without_address,
            requested_ip,
            client_identifier: Some(station),
            server_identifier,
            parameter_request_list: asks.then_some(&PARAMETERS[..]),
            dns_servers: None,
            max_size: asks.then_some(LENGTH_MAX),
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut bytes = vec![0; message.buffer_len().max(LENGTH_MIN)];
        let written = message.emit(&mut DhcpPacket::new_unchecked(&mut bytes));
        debug_assert!(written.is_ok(), "the buffer is as long as the message said");
        bytes
    }

    /// Reads what came; none if it is no answer to this question.
    pub fn read(&self, payload: &[u8]) -> Option<Answer> {
        let packet = DhcpPacket::new_checked(payload).ok()?;
        let said = DhcpRepr::parse(&packet).ok()?;
        let own = said.client_hardware_address.0 == self.mac.0;
        if !own || said.transaction_id != self.id {
            return None;
        }
        match said.message_type {
            DhcpMessageType::Offer => Some(Answer::Offer {
                address: usable(said.your_ip)?,
                server: usable(said.server_identifier?)?,
            }),
            DhcpMessageType::Ack => Some(Answer::Given(self.lease(&packet, &said)?)),
            DhcpMessageType::Nak => {
                let words = option(&packet, MESSAGE);
                let words = String::from_utf8_lossy(words.get(..WORDS_MAX).unwrap_or(&words));
                let plain = |c: char| if c.is_control() { ' ' } else { c };
                Some(Answer::Refused(words.chars().map(plain).collect()))
            }
            _ => None,
        }
    }

    fn lease(&self, packet: &DhcpPacket<&[u8]>, said: &DhcpRepr<'_>) -> Option<Lease> {
        let address = usable(said.your_ip)?;
        let mask = u32::from(said.subnet_mask?);
        let ones = mask.leading_ones();
        if ones != mask.count_ones() {
            return None;
        }
        let lasts_s = said.lease_duration?;
        let (renew_s, rebind_s) = Lease::times(lasts_s, said.renew_duration, said.rebind_duration);
        Some(Lease {
            address: Cidr {
                ip: address.into(),
                prefix_len: u8::try_from(ones).ok()?,
            },
            server: usable(said.server_identifier?)?,
            mac: self.mac,
            routes: routes(packet)?,
            since_s: 0,
            lasts_s,
            renew_s,
            rebind_s,
            lost: None,
        })
    }
}

/// An address that a host can have.
fn usable(address: Ipv4Addr) -> Option<Ipv4Addr> {
    let other = address.is_unspecified()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_loopback();
    (!other).then_some(address)
}

fn routes(packet: &DhcpPacket<&[u8]>) -> Option<Vec<Route>> {
    classless_routes(&option(packet, CLASSLESS_ROUTES))
}

/// All that is said under an option: a long one is said in parts (RFC 3396).
fn option(packet: &DhcpPacket<&[u8]>, kind: u8) -> Vec<u8> {
    let parts = packet.options().filter(|option| option.kind == kind);
    parts
        .flat_map(|DhcpOption { data, .. }| data)
        .copied()
        .collect()
}

/// A message as a frame from a station without an address to everybody, at the address `to`.
pub fn frame(mac: Mac, (from, to): (Ipv4Addr, Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let udp = UdpRepr {
        src_port: CLIENT_PORT,
        dst_port: SERVER_PORT,
    };
    let ip = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload.len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(mac.0),
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
    let mut outer = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut outer);
    let mut middle = Ipv4Packet::new_unchecked(outer.payload_mut());
    ip.emit(&mut middle, &checksums);
    udp.emit(
        &mut UdpPacket::new_unchecked(middle.payload_mut()),
        &from.into(),
        &to.into(),
        payload.len(),
        |place| place.copy_from_slice(payload),
        &checksums,
    );
    bytes
}

/// The message in a frame from a server; none if there is none. Sums are not compared: between namespaces of
/// one host they are never worked out, and a message is known by its number and station.
pub fn message(frame: &[u8]) -> Option<&[u8]> {
    let outer = EthernetFrame::new_checked(frame).ok()?;
    if outer.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let middle = Ipv4Packet::new_checked(outer.payload()).ok()?;
    let whole = !middle.more_frags() && middle.frag_offset() == 0;
    if !whole || middle.next_header() != IpProtocol::Udp {
        return None;
    }
    let inner = UdpPacket::new_checked(middle.payload()).ok()?;
    let ports = (inner.src_port(), inner.dst_port());
    (ports == (SERVER_PORT, CLIENT_PORT)).then(|| inner.payload())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Question = Question {
        mac: Mac([2, 0, 0, 0, 0, 9]),
        id: 0x0102_0304,
        for_s: 0,
    };

    /// A server's message, written by hand: (type, options behind it).
    fn answer(kind: u8, options: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; 240];
        bytes[0] = 2;
        bytes[1] = 1;
        bytes[2] = 6;
        bytes[4..8].copy_from_slice(&ASKED.id.to_be_bytes());
        bytes[16..20].copy_from_slice(&[10, 0, 0, 50]);
        bytes[28..34].copy_from_slice(&ASKED.mac.0);
        bytes[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        bytes.extend([53, 1, kind]);
        for option in options {
            bytes.extend(*option);
        }
        bytes.push(255);
        bytes
    }

    const SERVER: &[u8] = &[54, 4, 10, 0, 0, 1];
    const MASK: &[u8] = &[1, 4, 255, 255, 255, 0];
    const AN_HOUR: &[u8] = &[51, 4, 0, 0, 14, 16];

    #[test]
    fn an_answer_becomes_a_lease() {
        let routes = [&[121, 5, 8, 10, 10, 0, 0][..], &[121, 1, 1]];
        let bytes = answer(5, &[SERVER, MASK, AN_HOUR, routes[0], routes[1]]);
        let Some(Answer::Given(lease)) = ASKED.read(&bytes) else {
            panic!("{:?}", ASKED.read(&bytes));
        };
        assert_eq!(lease.address.to_string(), "10.0.0.50/24");
        assert_eq!(
            (lease.lasts_s, lease.renew_s, lease.rebind_s),
            (3600, 1800, 3150)
        );
        assert_eq!(
            lease.routes[0].destination.to_string(),
            "10.0.0.0/8",
            "in two parts"
        );
        assert_eq!(
            lease.routes[0].gateway,
            Some(Ipv4Addr::new(10, 0, 0, 1).into())
        );
        let offer = answer(2, &[SERVER]);
        let (address, server) = (Ipv4Addr::new(10, 0, 0, 50), Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(ASKED.read(&offer), Some(Answer::Offer { address, server }));
        let no = answer(6, &[SERVER, &[56, 4, b'n', b'o', 7, b'!']]);
        assert_eq!(ASKED.read(&no), Some(Answer::Refused("no !".into())));
    }

    #[test]
    fn what_is_for_others_or_makes_no_sense_is_no_answer() {
        let good = answer(5, &[SERVER, MASK, AN_HOUR]);
        assert!(ASKED.read(&good).is_some());
        let other = Question { id: 1, ..ASKED };
        assert_eq!(other.read(&good), None);
        let mac = Mac([2, 0, 0, 0, 0, 8]);
        assert_eq!(Question { mac, ..ASKED }.read(&good), None);
        for without in [
            answer(5, &[MASK, AN_HOUR]),
            answer(5, &[SERVER, AN_HOUR]),
            answer(5, &[SERVER, AN_HOUR, &[1, 4, 255, 0, 255, 0]]),
            answer(5, &[SERVER, MASK, &[121, 3, 24, 10, 1]]),
        ] {
            assert_eq!(ASKED.read(&without), None);
        }
        for end in 0..good.len() {
            // Cut off anywhere: none, or the same.
            let cut = ASKED.read(&good[..end]);
            assert!(cut.is_none() || cut == ASKED.read(&good), "at {end}");
        }
    }

    #[test]
    fn frames_go_out_whole_and_only_those_of_servers_are_read() {
        let payload = ASKED.say(Say::Discover);
        assert!(payload.len() >= LENGTH_MIN);
        let everybody = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        let sent = frame(ASKED.mac, everybody, &payload);
        let ip = Ipv4Packet::new_checked(&sent[14..]).unwrap();
        assert!(ip.verify_checksum());
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert!(udp.verify_checksum(&everybody.0.into(), &everybody.1.into()));
        assert_eq!(udp.payload(), payload);
        assert_eq!(message(&sent), None, "it is a station's");
        let mut back = sent;
        back[34..38].copy_from_slice(&[0, 67, 0, 68]);
        assert_eq!(message(&back), Some(&payload[..]));
        assert_eq!(message(&back[..60]), None);
        back[20] = 0x20;
        assert_eq!(message(&back), None, "a fragment");
    }

    #[test]
    fn a_station_with_an_address_is_answered_there() {
        let address = Ipv4Addr::new(10, 0, 0, 50);
        let renewed = ASKED.say(Say::Renew(address));
        let packet = DhcpPacket::new_checked(&renewed[..]).unwrap();
        let said = DhcpRepr::parse(&packet).unwrap();
        assert_eq!((said.client_ip, said.broadcast), (address, false));
        assert_eq!((said.requested_ip, said.server_identifier), (None, None));
        let asked = ASKED.say(Say::Request {
            address,
            server: Ipv4Addr::new(10, 0, 0, 1),
        });
        let packet = DhcpPacket::new_checked(&asked[..]).unwrap();
        let said = DhcpRepr::parse(&packet).unwrap();
        assert_eq!((said.requested_ip, said.broadcast), (Some(address), true));
    }
}
