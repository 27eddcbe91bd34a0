//! Between the kernel's messages and what is said of links here, in both directions; nothing is sent.

use std::net::IpAddr;

use forebay_fabric::config::{Cidr, Mac, Neighbor, Route, Rule, Vrf};
use forebay_fabric::plan::{GSO_LEGACY_MAX, Interface};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVrf, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    LinkXdp,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::{child, settings};

/// The table of local addresses, which the kernel keeps by itself.
const TABLE_LOCAL: u32 = 255;
/// How an XDP program is attached: by the kernel's flag for it, and in words.
const XDP_MODES: [(u32, &str); 3] = [(2, "generic"), (4, "driver's"), (8, "hardware's")];

/// A link as it was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// What is said of it elsewhere; what it has beyond itself is read apart.
    pub interface: Interface,
    /// The link that it belongs to.
    pub master: Option<u32>,
    /// The table of a routing domain, for a link that is one.
    pub table: Option<u32>,
    /// XDP programs on it, by the flag of how they are attached, with the program's id.
    pub xdp: Vec<(u32, u32)>,
}

impl Link {
    /// The XDP programs on it, a phrase for each.
    pub fn programs(&self) -> Vec<String> {
        let word = |flag: u32| {
            XDP_MODES
                .iter()
                .find(|(f, _)| *f == flag)
                .map_or("", |m| m.1)
        };
        let told = |(flag, id): &(u32, u32)| format!("XDP program {id} ({} mode)", word(*flag));
        self.xdp.iter().map(told).collect()
    }
}

/// A question about all links, or about the one that `by` names.
pub(super) fn link_question(by: Option<LinkAttribute>, index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.extend(by);
    // Counters are most of an answer, and nobody here reads them.
    let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    message.attributes.push(mask);
    message
}

/// A request that gives link `index`, which is as `now`, the name and sizes of `wanted`. What is as wanted
/// is left out, as drivers refuse to be told some of it; none if nothing is left.
pub(super) fn shaped(index: u32, wanted: &Interface, now: &Interface) -> Option<LinkMessage> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let attributes = &mut message.attributes;
    if wanted.name != now.name {
        attributes.push(LinkAttribute::IfName(wanted.name.clone()));
    }
    if wanted.mtu != now.mtu {
        attributes.push(LinkAttribute::Mtu(wanted.mtu));
    }
    if let Some(mac) = wanted.mac.filter(|_| wanted.mac != now.mac) {
        attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    let gso = wanted
        .gso_max_size
        .filter(|_| wanted.gso_max_size != now.gso_max_size);
    let gro = wanted
        .gro_max_size
        .filter(|_| wanted.gro_max_size != now.gro_max_size);
    attributes.extend(gso.map(LinkAttribute::GsoMaxSize));
    attributes.extend(gro.map(LinkAttribute::GroMaxSize));
    let of_ipv4 = [
        (
            gso,
            wanted.gso_ipv4_max_size,
            now.gso_ipv4_max_size,
            LinkAttribute::GsoIpv4MaxSize as Size,
        ),
        (
            gro,
            wanted.gro_ipv4_max_size,
            now.gro_ipv4_max_size,
            LinkAttribute::GroIpv4MaxSize,
        ),
    ];
    for (set, wanted, now, attribute) in of_ipv4 {
        // The kernel sets it with the other one.
        let then = set.filter(|n| *n <= GSO_LEGACY_MAX).or(now);
        attributes.extend(wanted.filter(|_| wanted != then).map(attribute));
    }
    (!message.attributes.is_empty()).then_some(message)
}

/// An attribute of a size.
type Size = fn(u32) -> LinkAttribute;

/// A request that moves link `index` to another namespace, by a file that is open on it, with name and sizes
/// of `wanted` there. The kernel moves first, which sets the link down, and changes the rest after that.
pub(super) fn moved(index: u32, wanted: &Interface, now: &Interface, netns: i32) -> LinkMessage {
    let mut message = shaped(index, wanted, now).unwrap_or_else(|| {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message
    });
    message.attributes.push(LinkAttribute::NetNsFd(netns));
    message
}

/// A request that makes link `index` belong to link `master`.
pub(super) fn enslaved(index: u32, master: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::Controller(master));
    message
}

/// A request that makes a routing domain, and sets it up.
pub(super) fn domain(vrf: &Vrf) -> LinkMessage {
    let mut message = updown(0, true);
    let data = InfoData::Vrf(vec![InfoVrf::TableId(vrf.table)]);
    let info = vec![LinkInfo::Kind(InfoKind::Vrf), LinkInfo::Data(data)];
    message
        .attributes
        .push(LinkAttribute::IfName(vrf.name.clone()));
    message.attributes.push(LinkAttribute::LinkInfo(info));
    message
}

/// A request that takes the XDP program off link `index` that is attached as `flag` says.
pub(super) fn without_xdp(index: u32, flag: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let off = vec![LinkXdp::Fd(-1), LinkXdp::Flags(flag)];
    message.attributes.push(LinkAttribute::Xdp(off));
    message
}

pub(super) fn updown(index: u32, up: bool) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = if up {
        LinkFlags::Up
    } else {
        LinkFlags::empty()
    };
    message
}

pub(super) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

pub(super) fn address_message(index: u32, address: Cidr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = family(address.ip);
    message.header.prefix_len = address.prefix_len;
    message.header.scope = AddressScope::Universe;
    if address.ip.is_ipv6() {
        // Usable at once: whether it is a duplicate cannot be waited for in the time that there is.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes.push(AddressAttribute::Local(address.ip));
    message
        .attributes
        .push(AddressAttribute::Address(address.ip));
    message
}

pub(super) fn route_message(index: u32, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination.ip);
    message.header.destination_prefix_length = route.destination.prefix_len;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if route.on_link {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    message.header.table = u8::try_from(route.table).unwrap_or(0);
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Destination(route.destination.ip.into()));
    attributes.push(RouteAttribute::Oif(index));
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    message
}

/// A route that someone made, not the kernel, with the index of the link that it goes out through.
pub(super) fn route_of(message: &RouteMessage) -> Option<(u32, Route)> {
    let header = &message.header;
    let mut out = None;
    let mut table = u32::from(header.table);
    let unset: IpAddr = match header.address_family {
        AddressFamily::Inet => [0; 4].into(),
        _ => [0; 16].into(),
    };
    let on_link = header.scope == RouteScope::Link;
    let destination = Cidr {
        ip: unset,
        prefix_len: header.destination_prefix_length,
    };
    let mut route = Route {
        destination,
        gateway: None,
        source: None,
        on_link,
        table,
        metric: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => out = Some(*oif),
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Destination(to) => route.destination.ip = ip(to)?,
            RouteAttribute::Gateway(by) => route.gateway = ip(by),
            RouteAttribute::PrefSource(from) => route.source = ip(from),
            _ => {}
        }
    }
    route.table = table;
    let made = header.protocol != RouteProtocol::Kernel && header.protocol != RouteProtocol::Ra;
    let ours = made && header.kind == RouteType::Unicast && table != TABLE_LOCAL;
    ours.then_some((out?, route))
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

pub(super) fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let any = rule.source.or(rule.destination);
    message.header.family = any.map_or(AddressFamily::Inet, |cidr| family(cidr.ip));
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    message.attributes.push(RuleAttribute::Table(rule.table));
    message
        .attributes
        .push(RuleAttribute::Priority(rule.priority));
    if let Some(from) = rule.source {
        message.header.src_len = from.prefix_len;
        message.attributes.push(RuleAttribute::Source(from.ip));
    }
    if let Some(to) = rule.destination {
        message.header.dst_len = to.prefix_len;
        message.attributes.push(RuleAttribute::Destination(to.ip));
    }
    message
}

pub(super) fn neighbor_message(index: u32, neighbor: &Neighbor) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbor.destination);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    let to = match neighbor.destination {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    message.attributes.push(NeighbourAttribute::Destination(to));
    let mac = neighbor.hardware_addr.0.to_vec();
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac));
    message
}

/// A permanent neighbour, with the index of its link.
pub(super) fn neighbor_of(message: &NeighbourMessage) -> Option<(u32, Neighbor)> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut destination, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                destination = Some(IpAddr::from(*ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                destination = Some(IpAddr::from(*ip));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
            }
            _ => {}
        }
    }
    let neighbor = Neighbor {
        destination: destination?,
        hardware_addr: mac?,
    };
    Some((message.header.ifindex, neighbor))
}

/// A link, without addresses, routes and neighbours, which other messages tell of.
pub(super) fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        ..Link::default()
    };
    let it = &mut link.interface;
    it.up = message.header.flags.contains(LinkFlags::Up);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => it.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => it.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                it.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
            }
            LinkAttribute::GsoMaxSize(n) => it.gso_max_size = Some(*n),
            LinkAttribute::GroMaxSize(n) => it.gro_max_size = Some(*n),
            LinkAttribute::GsoIpv4MaxSize(n) => it.gso_ipv4_max_size = Some(*n),
            LinkAttribute::GroIpv4MaxSize(n) => it.gro_ipv4_max_size = Some(*n),
            LinkAttribute::AfSpecUnspec(families) => it.settings = settings::read(families),
            LinkAttribute::Controller(index) => link.master = Some(*index).filter(|i| *i != 0),
            LinkAttribute::LinkInfo(infos) => {
                link.table = infos.iter().find_map(table_of);
                it.sub = child::kind_of(infos);
            }
            LinkAttribute::Xdp(xdp) => link.xdp = xdp.iter().filter_map(program_of).collect(),
            _ => {}
        }
    }
    link
}

fn table_of(info: &LinkInfo) -> Option<u32> {
    let LinkInfo::Data(InfoData::Vrf(vrf)) = info else {
        return None;
    };
    vrf.iter().find_map(|info| match info {
        InfoVrf::TableId(table) => Some(*table),
        _ => None,
    })
}

fn program_of(xdp: &LinkXdp) -> Option<(u32, u32)> {
    let [generic, driver, hardware] = XDP_MODES.map(|(flag, _)| flag);
    match xdp {
        LinkXdp::SkbProgId(id) => Some((generic, *id)),
        LinkXdp::DrvProgId(id) => Some((driver, *id)),
        LinkXdp::HwProgId(id) => Some((hardware, *id)),
        _ => None,
    }
}

/// A rule of addresses that names a table, as claims have them; one that says more is none of ours.
pub(super) fn rule_of(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    if header.tos != 0 || header.flags.contains(RuleFlags::Invert) {
        return None;
    }
    let mut rule = Rule {
        priority: 0,
        source: None,
        destination: None,
        table: u32::from(header.table),
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Source(ip) => {
                rule.source = Some(Cidr {
                    ip: *ip,
                    prefix_len: header.src_len,
                });
            }
            RuleAttribute::Destination(ip) => {
                rule.destination = Some(Cidr {
                    ip: *ip,
                    prefix_len: header.dst_len,
                });
            }
            // Who made it; that no prefix is suppressed; and what newer kernels say.
            RuleAttribute::Protocol(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::Other(_) => {}
            _ => return None,
        }
    }
    (header.action == RuleAction::ToTable).then_some(rule)
}

/// A global address, with the index of its link.
pub(super) fn address_of(message: &AddressMessage) -> Option<(u32, Cidr)> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let (mut local, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            _ => {}
        }
    }
    let cidr = Cidr {
        ip: local.or(peer)?,
        prefix_len: message.header.prefix_len,
    };
    Some((message.header.index, cidr))
}
