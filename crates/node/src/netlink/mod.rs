//! What is done to links, behind a seam: [`Links`], which the kernel carries out ([`KernelLinks`]) and
//! tests can make fail. Each call does one thing; what to do is decided in `attach` and `fabric::plan`.
//!
//! Every call can be repeated: what is already as wanted is no error.

mod child;
mod facts;
mod shape;
mod socket;

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use forebay_fabric::config::{Cidr, Mac, Neighbor, Route, Rule};
use forebay_fabric::plan::{AttachPlan, Interface, Seen};
use forebay_fabric::share::Limits;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::netns;
pub use facts::{facts, follow};
use socket::Socket;

/// The table of local addresses, which the kernel keeps by itself.
const TABLE_LOCAL: u32 = 255;

/// What can be done to links.
pub trait Links: Send + Sync + 'static {
    /// An interface of the host as it is; none if there is none of that name.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn snapshot(&self, name: &str) -> io::Result<Option<Interface>>;

    /// Where a device is. `netns` is none when the pod's namespace is gone.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn seen(&self, plan: &AttachPlan, netns: Option<&File>) -> io::Result<Seen>;

    /// Moves a device from the host to the pod, with its name, MTU, address and segment sizes there; or makes
    /// the pod's link on top of it, if it stays on the host.
    ///
    /// # Errors
    /// The kernel refuses; the device is in either place.
    fn move_to_pod(&self, plan: &AttachPlan, netns: &File) -> io::Result<()>;

    /// Gives a device in the pod what it shall have there.
    ///
    /// # Errors
    /// The kernel refuses; some of it may be done.
    fn configure(&self, plan: &AttachPlan, netns: &File) -> io::Result<()>;

    /// The device as it is in the pod; none if it is not there.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn look(&self, plan: &AttachPlan, netns: &File) -> io::Result<Option<Interface>>;

    /// Moves a device from the pod to the host, or takes the pod's link on top of it away, and takes its rules
    /// out of the pod.
    ///
    /// # Errors
    /// The kernel refuses; the device is in either place.
    fn move_to_host(&self, plan: &AttachPlan, netns: &File) -> io::Result<()>;

    /// Gives a device on the host what it had there.
    ///
    /// # Errors
    /// The kernel refuses; some of it may be done.
    fn restore(&self, plan: &AttachPlan) -> io::Result<()>;
}

/// Links as the kernel has them.
#[derive(Debug)]
pub struct KernelLinks {
    host: File,
    sysctls: PathBuf,
}

impl KernelLinks {
    /// With `host` as the host's network namespace, `/proc/self/ns/net` for a process that is in it.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn open(host: &Path) -> io::Result<KernelLinks> {
        let host = netns::open(host)?;
        let host = host.ok_or_else(|| io::Error::other("the host's network namespace is gone"))?;
        Ok(KernelLinks {
            host,
            sysctls: PathBuf::from("/proc/sys/net"),
        })
    }

    /// With settings of the network at another path than `/proc/sys/net`, which containers may only read.
    #[must_use]
    pub fn with_sysctls(self, sysctls: PathBuf) -> KernelLinks {
        KernelLinks { sysctls, ..self }
    }
}

impl Links for KernelLinks {
    fn snapshot(&self, name: &str) -> io::Result<Option<Interface>> {
        netns::within(&self.host, || {
            let mut socket = Socket::open()?;
            let found = socket
                .links()?
                .into_iter()
                .find(|(_, link)| link.name == name);
            found
                .map(|(index, link)| socket.complete(index, link))
                .transpose()
        })
    }

    fn seen(&self, plan: &AttachPlan, netns: Option<&File>) -> io::Result<Seen> {
        if let Some(netns) = netns
            && netns::within(netns, || in_pod(&mut Socket::open()?, plan))?.is_some()
        {
            return Ok(Seen::Pod);
        }
        let host = netns::within(&self.host, || {
            let mut socket = Socket::open()?;
            match plan.share.child {
                Some(_) => child::parent(&mut socket, plan),
                None => on_host(&mut socket, plan),
            }
        })?;
        Ok(if host.is_some() {
            Seen::Host
        } else {
            Seen::Nowhere
        })
    }

    fn move_to_pod(&self, plan: &AttachPlan, netns: &File) -> io::Result<()> {
        netns::within(&self.host, || {
            let mut socket = Socket::open()?;
            if let Some(child) = plan.share.child {
                return child::make(&mut socket, plan, child, netns);
            }
            let (index, _) = on_host(&mut socket, plan)?.ok_or_else(|| gone(&plan.host.name))?;
            let mut link = shaped(index, &plan.pod, &plan.host);
            link.attributes
                .push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
            socket.change(Message::SetLink(link), 0)
        })
    }

    fn configure(&self, plan: &AttachPlan, netns: &File) -> io::Result<()> {
        netns::within(netns, || {
            let mut socket = Socket::open()?;
            let (index, _) = in_pod(&mut socket, plan)?.ok_or_else(|| gone(&plan.pod.name))?;
            for (key, value) in &plan.sysctls {
                std::fs::write(self.sysctls.join(key), value)
                    .map_err(|e| io::Error::new(e.kind(), format!("{key} = {value}: {e}")))?;
            }
            shape::limit(&mut socket, index, &plan.pod.name, plan.pod.limits)?;
            socket.dress(index, &plan.pod)?;
            for rule in &plan.rules {
                socket.create(Message::NewRule(rule_message(rule)))?;
            }
            Ok(())
        })
    }

    fn look(&self, plan: &AttachPlan, netns: &File) -> io::Result<Option<Interface>> {
        netns::within(netns, || {
            let mut socket = Socket::open()?;
            let Some((index, mut link)) = in_pod(&mut socket, plan)? else {
                return Ok(None);
            };
            if plan.pod.limits != Limits::default() {
                link.limits = shape::limits(&mut socket, index, &link.name)?;
            }
            socket.complete(index, link).map(Some)
        })
    }

    fn move_to_host(&self, plan: &AttachPlan, netns: &File) -> io::Result<()> {
        let host = self.host.as_raw_fd();
        netns::within(netns, || {
            let mut socket = Socket::open()?;
            for rule in &plan.rules {
                // One that did not come to be, or that someone took out already.
                let _ = socket.change(Message::DelRule(rule_message(rule)), 0);
            }
            if plan.pod.limits.ingress_bps.is_some() {
                shape::clear(&mut socket, &plan.pod.name)?;
            }
            let (index, now) = in_pod(&mut socket, plan)?.ok_or_else(|| gone(&plan.pod.name))?;
            if plan.share.child.is_some() {
                return child::remove(&mut socket, index);
            }
            let mut link = shaped(index, &plan.host, &now);
            link.attributes.push(LinkAttribute::NetNsFd(host));
            socket.change(Message::SetLink(link), 0)
        })
    }

    fn restore(&self, plan: &AttachPlan) -> io::Result<()> {
        if plan.share.child.is_some() {
            // What it is on top of was left as it was.
            return Ok(());
        }
        netns::within(&self.host, || {
            let mut socket = Socket::open()?;
            let (index, now) = on_host(&mut socket, plan)?.ok_or_else(|| gone(&plan.host.name))?;
            if now.name != plan.host.name || now.mac != plan.host.mac {
                // Names and addresses of many links change only while they are down.
                socket.change(Message::SetLink(updown(index, false)), 0)?;
            }
            socket.change(Message::SetLink(shaped(index, &plan.host, &now)), 0)?;
            if plan.host.up {
                socket.dress(index, &plan.host)
            } else {
                socket.change(Message::SetLink(updown(index, false)), 0)?;
                socket.address(index, &plan.host)
            }
        })
    }
}

fn gone(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("there is no link `{name}`"),
    )
}

/// The device in the pod whose namespace `socket` is in.
fn in_pod(socket: &mut Socket, plan: &AttachPlan) -> io::Result<Option<(u32, Interface)>> {
    Ok(socket
        .links()?
        .into_iter()
        .find(|(_, l)| l.name == plan.pod.name && is_it(plan, l) && is_child(plan, l)))
}

/// The device on the host. When a pod's namespace ends, the kernel gives physical devices back with the
/// name that they had there, or as `dev` with a number if that is taken.
fn on_host(socket: &mut Socket, plan: &AttachPlan) -> io::Result<Option<(u32, Interface)>> {
    let mut links = socket.links()?;
    links.retain(|(_, link)| is_it(plan, link));
    let by = |want: &dyn Fn(&str) -> bool| links.iter().position(|(_, l)| want(&l.name));
    let at = by(&|name| name == plan.host.name)
        .or_else(|| by(&|name| name == plan.pod.name))
        .or_else(|| {
            plan.host
                .mac
                .and_then(|_| by(&|name| name.starts_with("dev")))
        });
    Ok(at.map(|at| links.swap_remove(at)))
}

/// Whether a link is on top of another, where the plan wants one that is.
fn is_child(plan: &AttachPlan, link: &Interface) -> bool {
    plan.share.child.is_none() || link.sub.is_some()
}

fn is_it(plan: &AttachPlan, link: &Interface) -> bool {
    plan.host.mac.is_none() || link.mac == plan.host.mac || link.mac == plan.pod.mac
}

/// A request that gives link `index`, which is as `now`, the name and sizes of `wanted`. Sizes that are
/// as wanted are left out, as drivers refuse to be told some of them.
fn shaped(index: u32, wanted: &Interface, now: &Interface) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let attributes = &mut message.attributes;
    attributes.push(LinkAttribute::IfName(wanted.name.clone()));
    if wanted.mtu != now.mtu {
        attributes.push(LinkAttribute::Mtu(wanted.mtu));
    }
    if let Some(mac) = wanted.mac.filter(|_| wanted.mac != now.mac) {
        attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    let sizes: [(Option<u32>, Option<u32>, Size); 4] = [
        (
            wanted.gso_max_size,
            now.gso_max_size,
            LinkAttribute::GsoMaxSize,
        ),
        (
            wanted.gro_max_size,
            now.gro_max_size,
            LinkAttribute::GroMaxSize,
        ),
        (
            wanted.gso_ipv4_max_size,
            now.gso_ipv4_max_size,
            LinkAttribute::GsoIpv4MaxSize,
        ),
        (
            wanted.gro_ipv4_max_size,
            now.gro_ipv4_max_size,
            LinkAttribute::GroIpv4MaxSize,
        ),
    ];
    for (wanted, now, attribute) in sizes {
        attributes.extend(wanted.filter(|_| wanted != now).map(attribute));
    }
    message
}

/// An attribute of a size.
type Size = fn(u32) -> LinkAttribute;

fn updown(index: u32, up: bool) -> LinkMessage {
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

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn address_message(index: u32, address: Cidr) -> AddressMessage {
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

fn route_message(index: u32, route: &Route) -> RouteMessage {
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

/// A route that goes out through `index` and that someone made, not the kernel.
fn route_of(message: &RouteMessage, index: u32) -> Option<Route> {
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
    (out == Some(index) && ours).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn rule_message(rule: &Rule) -> RuleMessage {
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

fn neighbor_message(index: u32, neighbor: &Neighbor) -> NeighbourMessage {
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

fn neighbor_of(message: &NeighbourMessage, index: u32) -> Option<Neighbor> {
    if message.header.ifindex != index || message.header.state != NeighbourState::Permanent {
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
    Some(Neighbor {
        destination: destination?,
        hardware_addr: mac?,
    })
}

fn interface_of(message: &LinkMessage) -> Interface {
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Interface {
        up,
        ..Interface::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
            }
            LinkAttribute::GsoMaxSize(n) => link.gso_max_size = Some(*n),
            LinkAttribute::GroMaxSize(n) => link.gro_max_size = Some(*n),
            LinkAttribute::GsoIpv4MaxSize(n) => link.gso_ipv4_max_size = Some(*n),
            LinkAttribute::GroIpv4MaxSize(n) => link.gro_ipv4_max_size = Some(*n),
            LinkAttribute::LinkInfo(infos) => link.sub = child::kind_of(infos),
            _ => {}
        }
    }
    link
}

fn address_of(message: &AddressMessage, index: u32) -> Option<Cidr> {
    if message.header.index != index || message.header.scope != AddressScope::Universe {
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
    Some(Cidr {
        ip: local.or(peer)?,
        prefix_len: message.header.prefix_len,
    })
}
