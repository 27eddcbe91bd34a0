//! What is read of links: one dump of each kind for all devices of a pod, and questions by name on the host,
//! which may have thousands of links.

use std::io;

use forebay_fabric::config::Vrf;
use forebay_fabric::plan::{AttachPlan, Found, Interface};
use forebay_fabric::share::Limits;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::tc::{TcAttribute, TcMessage};

use super::ethtool::Talk;
use super::messages::{
    Link, address_of, domain, link_of, link_question, neighbor_of, route_of, rule_of,
};
use super::socket::{Change, Socket};
use super::{Domains, shape};

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

impl Socket {
    /// All links, without addresses, routes and neighbours.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let links = self.dump(Message::GetLink(link_question(None, 0)))?;
        Ok(links.iter().filter_map(link_in).collect())
    }

    /// The links of these names; an empty name is none's.
    pub(super) fn named(&mut self, names: &[String]) -> io::Result<Vec<Option<Link>>> {
        let asked = names.iter().filter(|name| !name.is_empty());
        let question = |name: &String| {
            Message::GetLink(link_question(Some(LinkAttribute::IfName(name.clone())), 0))
        };
        let questions: Vec<_> = asked.map(question).collect();
        let mut found = self.get(&questions)?.into_iter();
        let answer = |name: &String| {
            let answered = if name.is_empty() {
                None
            } else {
                found.next().flatten()
            };
            answered.as_ref().and_then(link_in)
        };
        Ok(names.iter().map(answer).collect())
    }

    /// Adds what links have beyond themselves.
    pub(super) fn complete<'a>(
        &mut self,
        links: impl Iterator<Item = &'a mut Link>,
    ) -> io::Result<()> {
        let mut links: Vec<_> = links.collect();
        if links.is_empty() {
            return Ok(());
        }
        let mut of = |index: u32, add: &mut dyn FnMut(&mut Interface)| {
            if let Some(link) = links.iter_mut().find(|link| link.index == index) {
                add(&mut link.interface);
            }
        };
        // By family: together they would wait for the lock that a link which moves holds.
        for family in FAMILIES {
            let mut ask = AddressMessage::default();
            ask.header.family = family;
            for message in self.dump(Message::GetAddress(ask))? {
                if let Message::NewAddress(address) = message
                    && let Some((index, cidr)) = address_of(&address)
                {
                    of(index, &mut |link| link.addresses.push(cidr));
                }
            }
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            for message in self.dump(Message::GetRoute(ask))? {
                if let Message::NewRoute(route) = message
                    && let Some((index, route)) = route_of(&route)
                {
                    of(index, &mut |link| link.routes.push(route.clone()));
                }
            }
            let mut ask = NeighbourMessage::default();
            ask.header.family = family;
            for message in self.dump(Message::GetNeighbour(ask))? {
                if let Message::NewNeighbour(neighbor) = message
                    && let Some((index, neighbor)) = neighbor_of(&neighbor)
                {
                    of(index, &mut |link| link.neighbors.push(neighbor.clone()));
                }
            }
        }
        for link in links {
            link.interface.routes.sort_by_key(|r| r.gateway.is_some());
        }
        Ok(())
    }

    /// Names the links that these belong to.
    pub(super) fn name_masters<'a>(
        &mut self,
        links: impl Iterator<Item = &'a mut Link>,
    ) -> io::Result<()> {
        let mut links: Vec<_> = links.filter(|link| link.master.is_some()).collect();
        let question = |link: &&mut Link| {
            Message::GetLink(link_question(None, link.master.unwrap_or_default()))
        };
        let questions: Vec<_> = links.iter().map(question).collect();
        let masters = self.get(&questions)?;
        for (link, master) in links.iter_mut().zip(&masters) {
            link.interface.master = master.as_ref().and_then(link_in).map(|m| m.interface.name);
        }
        Ok(())
    }

    /// Devices in the pod whose namespace this is of.
    pub(super) fn in_pod(&mut self, plans: &[&AttachPlan]) -> io::Result<Vec<Option<Link>>> {
        let links = self.links()?;
        Ok(plans.iter().map(|plan| of_pod(&links, plan)).collect())
    }

    /// Devices on the host. When a pod's namespace ends, the kernel gives physical devices back with the name
    /// that they had there, or as `dev` with a number if that is taken.
    pub(super) fn on_host(&mut self, plans: &[&AttachPlan]) -> io::Result<Vec<Option<Link>>> {
        let names: Vec<_> = plans.iter().map(|plan| plan.host.name.clone()).collect();
        let mut found = self.named(&names)?;
        for (link, plan) in found.iter_mut().zip(plans) {
            *link = link.take().filter(|link| is_on_host(plan, &link.interface));
        }
        let away = |(link, plan): (&Option<Link>, &&AttachPlan)| {
            link.is_none() && plan.share.child.is_none()
        };
        if !found.iter().zip(plans).any(away) {
            return Ok(found);
        }
        let links = self.links()?;
        for (link, plan) in found
            .iter_mut()
            .zip(plans)
            .filter(|(link, plan)| link.is_none() && plan.share.child.is_none())
        {
            let mut those = links.iter().filter(|link| is_it(plan, &link.interface));
            let given_back = |name: &str| plan.host.mac.is_some() && name.starts_with("dev");
            let by_pod = those.clone().find(|l| l.interface.name == plan.pod.name);
            *link = by_pod
                .or_else(|| those.find(|l| given_back(&l.interface.name)))
                .cloned();
        }
        Ok(found)
    }

    /// Devices as they are in the pod whose namespace this is of.
    pub(super) fn look(&mut self, plans: &[&AttachPlan]) -> io::Result<Vec<Option<Found>>> {
        let all = self.links()?;
        let mut links: Vec<_> = plans.iter().map(|plan| of_pod(&all, plan)).collect();
        self.complete(links.iter_mut().flatten())?;
        let rules = if plans.iter().any(|plan| !plan.rules.is_empty()) {
            self.rules()?
        } else {
            Vec::new()
        };
        let hooks = if plans.iter().any(|plan| plan.without_programs) {
            self.hooks()?
        } else {
            Vec::new()
        };
        let asked = plans.iter().any(|plan| !plan.pod.ethtool.is_empty());
        let mut talk = asked.then(Talk::open).transpose()?;
        let mut found = Vec::new();
        for (plan, link) in plans.iter().zip(links) {
            let Some(mut link) = link else {
                found.push(None);
                continue;
            };
            let vrf = link.master.and_then(|index| vrf_of(&all, index));
            link.interface.master = vrf.as_ref().map(|vrf| vrf.name.clone());
            if let Some(talk) = talk.as_mut() {
                link.interface.ethtool = talk.read(&plan.pod.name, &plan.pod.ethtool)?;
            }
            if plan.pod.limits != Limits::default() {
                let name = &link.interface.name;
                link.interface.limits = shape::limits(self, link.index, name)?;
            }
            let mut programs = link.programs();
            // By that one of these its bandwidth is enforced.
            let ours = plan.pod.limits.ingress_bps.is_some();
            let of_it = |(index, kind): &&(u32, String)| {
                *index == link.index && !(ours && kind == "ingress")
            };
            programs.extend(
                hooks
                    .iter()
                    .filter(of_it)
                    .map(|(_, kind)| format!("tc's `{kind}`")),
            );
            found.push(Some(Found {
                interface: link.interface,
                rules: rules.clone(),
                vrf,
                programs,
            }));
        }
        Ok(found)
    }

    /// The rules of the namespace that are of addresses and name a table.
    pub(super) fn rules(&mut self) -> io::Result<Vec<forebay_fabric::config::Rule>> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            let mut ask = RuleMessage::default();
            ask.header.family = family;
            for message in self.dump(Message::GetRule(ask))? {
                if let Message::NewRule(rule) = message {
                    rules.extend(rule_of(&rule));
                }
            }
        }
        Ok(rules)
    }

    /// Where tc's programs hang: queueing disciplines that take filters of what comes in and goes out, by the
    /// index of their link. A link that moves loses them.
    fn hooks(&mut self) -> io::Result<Vec<(u32, String)>> {
        let mut hooks = Vec::new();
        for message in self.dump(Message::GetQueueDiscipline(TcMessage::default()))? {
            let Message::NewQueueDiscipline(qdisc) = message else {
                continue;
            };
            let kind = qdisc
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    TcAttribute::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            let kind = kind.filter(|kind| kind == "clsact" || kind == "ingress");
            let index = u32::try_from(qdisc.header.index).unwrap_or_default();
            hooks.extend(kind.map(|kind| (index, kind)));
        }
        Ok(hooks)
    }

    /// Makes the routing domains of plans, those that are not there, and gives their links' indexes.
    pub(super) fn make_domains(&mut self, plans: &[&AttachPlan]) -> io::Result<Domains> {
        let wanted = domains(plans);
        let make = |vrf: &Vrf| Change {
            what: format!(
                "the routing domain `{}` (a VRF, which a kernel has with CONFIG_NET_VRF)",
                vrf.name
            ),
            message: Message::NewLink(domain(vrf)),
            makes: true,
        };
        let changes: Vec<_> = wanted.iter().map(make).collect();
        for outcome in self.change(&changes)? {
            outcome?;
        }
        let names: Vec<_> = wanted.iter().map(|vrf| vrf.name.clone()).collect();
        let links = self.named(&names)?;
        let index = |(vrf, link): (Vrf, Option<Link>)| match link {
            Some(link) if link.table == Some(vrf.table) => Ok((vrf, link.index)),
            Some(_) | None => Err(io::Error::other(format!(
                "the pod has a link `{}` that is no routing domain of table {}",
                vrf.name, vrf.table
            ))),
        };
        wanted.into_iter().zip(links).map(index).collect()
    }

    /// Takes the routing domains of plans out of the pod; one that is not there is no error.
    pub(super) fn drop_domains(&mut self, plans: &[&AttachPlan]) -> io::Result<()> {
        let names: Vec<_> = domains(plans).into_iter().map(|vrf| vrf.name).collect();
        let gone = |link: &Link| Change {
            what: String::new(),
            message: Message::DelLink(link_question(None, link.index)),
            makes: false,
        };
        let links = self.named(&names)?;
        let ours = links.iter().flatten().filter(|link| link.table.is_some());
        let changes: Vec<_> = ours.map(gone).collect();
        self.change(&changes).map(drop)
    }

    /// One change to a device.
    pub(super) fn set(
        &mut self,
        plan: &AttachPlan,
        what: &str,
        message: Message,
    ) -> io::Result<()> {
        let change = Change {
            what: format!("{what} as `{}`", plan.pod.name),
            message,
            makes: false,
        };
        self.change(&[change])?.pop().unwrap_or(Ok(()))
    }
}

fn link_in(message: &Message) -> Option<Link> {
    match message {
        Message::NewLink(link) => Some(link_of(link)),
        _ => None,
    }
}

fn of_pod(links: &[Link], plan: &AttachPlan) -> Option<Link> {
    // Where the plan wants a link on top of another, it is one.
    let fits = |link: &Interface| plan.share.child.is_none() || link.sub.is_some();
    let is = |link: &&Link| {
        let link = &link.interface;
        link.name == plan.pod.name && is_it(plan, link) && fits(link)
    };
    links.iter().find(is).cloned()
}

/// Whether a link of the host, which has its name, is the device: one that stays has its address there too.
fn is_on_host(plan: &AttachPlan, link: &Interface) -> bool {
    if plan.share.child.is_some() {
        return plan.host.mac.is_none() || link.mac == plan.host.mac;
    }
    is_it(plan, link)
}

fn is_it(plan: &AttachPlan, link: &Interface) -> bool {
    plan.host.mac.is_none() || link.mac == plan.host.mac || link.mac == plan.pod.mac
}

fn vrf_of(links: &[Link], index: u32) -> Option<Vrf> {
    let link = links.iter().find(|link| link.index == index)?;
    let name = link.interface.name.clone();
    Some(Vrf {
        name,
        table: link.table?,
    })
}

/// The routing domains of plans, each once.
fn domains(plans: &[&AttachPlan]) -> Vec<Vrf> {
    let mut domains: Vec<Vrf> = Vec::new();
    for vrf in plans.iter().filter_map(|plan| plan.vrf.as_ref()) {
        if !domains.contains(vrf) {
            domains.push(vrf.clone());
        }
    }
    domains
}
