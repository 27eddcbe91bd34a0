//! What is done to links, behind a seam: [`Links`], which the kernel carries out ([`KernelLinks`]) and
//! tests can make fail. Each call does one thing to all devices of a pod; what to do is decided in `attach`
//! and `fabric::plan`.
//!
//! Every call can be repeated: what is already as wanted is no error. Devices move one after the other: the
//! kernel holds one lock for all links while one moves, and waits under it until nobody can still see the
//! link where it was, so that threads for each gain nothing. All else goes in batches.

mod child;
mod ethtool;
mod facts;
mod messages;
mod settings;
mod shape;
mod socket;
mod view;
mod work;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use forebay_fabric::config::{Ethtool, Rule, Vrf};
use forebay_fabric::plan::{AttachPlan, Found, Interface, Seen};
use netlink_packet_route::RouteNetlinkMessage as Message;

use crate::netns;
use ethtool::Talk;
pub use facts::{facts, follow};
pub use messages::Link;
use messages::{enslaved, moved, rule_message, updown, without_xdp};
use socket::Socket;
use work::Work;

/// Settings of a pod with routing domains: who listens without naming one is reached through all.
const DOMAIN_SETTINGS: [&str; 2] = ["ipv4/tcp_l3mdev_accept", "ipv4/udp_l3mdev_accept"];

/// What became of each device, in the order in which they were named.
pub type Each = Vec<io::Result<()>>;

/// What is called after a device was moved; its error is the device's.
pub type Step<'a> = &'a (dyn Fn() -> io::Result<()> + Sync);

/// What can be done to links.
pub trait Links: Send + Sync + 'static {
    /// Interfaces of the host as they are, by name; none where there is none of a name. What `ethtool` sets is
    /// not among it.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn snapshot(&self, names: &[String]) -> io::Result<Vec<Option<Interface>>>;

    /// The host's rules of policy routing that are of addresses and name a table.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn rules(&self) -> io::Result<Vec<Rule>>;

    /// What is asked of `ethtool` for an interface of the host, by the kernel's names, and how that is now.
    ///
    /// # Errors
    /// The interface has no such feature or flag, or the kernel no ethtool over netlink.
    fn ethtool(&self, name: &str, asked: &Ethtool) -> io::Result<(Ethtool, Ethtool)>;

    /// Where devices are. `netns` is none when the pod's namespace is gone.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn seen(&self, plans: &[&AttachPlan], netns: Option<&File>) -> io::Result<Vec<Seen>>;

    /// Moves devices from the host to the pod, with their names, MTUs, addresses and segment sizes there, or makes
    /// the pod's links on top of those that stay. Ends
    /// with the first that cannot be moved: there are no entries for those behind it, which were not touched.
    ///
    /// # Errors
    /// A device is in neither place, or the kernel does not answer: none was moved.
    fn move_to_pod(&self, plans: &[&AttachPlan], netns: &File, moved: Step<'_>)
    -> io::Result<Each>;

    /// Gives devices in the pod what they shall have there. What is refused of one may be half done.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn configure(&self, plans: &[&AttachPlan], netns: &File) -> io::Result<Each>;

    /// Devices as they are in the pod; none for one that is not there.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn look(&self, plans: &[&AttachPlan], netns: &File) -> io::Result<Vec<Option<Found>>>;

    /// Moves devices from the pod to the host, or takes the pod's links on top of them away, and takes their
    /// rules and routing domains out of the pod. One
    /// that is refused is in either place.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn move_to_host(
        &self,
        plans: &[&AttachPlan],
        netns: &File,
        moved: Step<'_>,
    ) -> io::Result<Each>;

    /// Gives devices on the host what they had there. What is refused of one may be half done.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn restore(&self, plans: &[&AttachPlan]) -> io::Result<Each>;
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

    /// What is set by a link's name, in the namespace that this thread is in.
    fn set_by_name(
        &self,
        wanted: &Interface,
        now: &Interface,
        talk: Option<&mut Talk>,
    ) -> io::Result<()> {
        settings::write(&self.sysctls, &wanted.name, &wanted.settings, &now.settings)?;
        match talk {
            Some(talk) if !wanted.ethtool.is_empty() => talk.set(&wanted.name, &wanted.ethtool),
            Some(_) | None => Ok(()),
        }
    }
}

impl Links for KernelLinks {
    fn snapshot(&self, names: &[String]) -> io::Result<Vec<Option<Interface>>> {
        netns::within(&self.host, || {
            let mut socket = Socket::open()?;
            let mut links = socket.named(names)?;
            socket.complete(links.iter_mut().flatten())?;
            socket.name_masters(links.iter_mut().flatten())?;
            Ok(links
                .into_iter()
                .map(|link| Some(link?.interface))
                .collect())
        })
    }

    fn rules(&self) -> io::Result<Vec<Rule>> {
        netns::within(&self.host, || Socket::open()?.rules())
    }

    fn ethtool(&self, name: &str, asked: &Ethtool) -> io::Result<(Ethtool, Ethtool)> {
        netns::within(&self.host, || Talk::open()?.resolve(name, asked))
    }

    fn seen(&self, plans: &[&AttachPlan], netns: Option<&File>) -> io::Result<Vec<Seen>> {
        let in_pod = match netns {
            Some(netns) => netns::within(netns, || Socket::open()?.in_pod(plans))?,
            None => vec![None; plans.len()],
        };
        if in_pod.iter().all(Option::is_some) {
            return Ok(vec![Seen::Pod; plans.len()]);
        }
        let on_host = netns::within(&self.host, || Socket::open()?.on_host(plans))?;
        let place = |(pod, host): (Option<Link>, Option<Link>)| match (pod, host) {
            (Some(_), _) => Seen::Pod,
            (None, Some(_)) => Seen::Host,
            (None, None) => Seen::Nowhere,
        };
        Ok(in_pod.into_iter().zip(on_host).map(place).collect())
    }

    fn move_to_pod(&self, plans: &[&AttachPlan], netns: &File, step: Step<'_>) -> io::Result<Each> {
        let on_host = netns::within(&self.host, || Socket::open()?.on_host(plans))?;
        let mut in_pod = vec![None; plans.len()];
        if on_host.iter().any(Option::is_none) || plans.iter().any(|p| p.share.child.is_some()) {
            // From an attempt that ended in between.
            in_pod = netns::within(netns, || Socket::open()?.in_pod(plans))?;
        }
        let places = plans.iter().zip(on_host.iter().zip(&in_pod));
        for (plan, place) in places.clone() {
            if matches!(place, (None, None)) {
                return Err(gone(plan, &plan.host.name));
            }
        }
        netns::within(&self.host, || {
            let mut socket = Socket::open()?;
            let mut each = Each::new();
            for (plan, place) in places {
                let done = match (place, plan.share.child) {
                    ((_, Some(_)) | (None, None), _) => Ok(()),
                    ((Some(parent), None), Some(child)) => {
                        child::make(&mut socket, plan, child, parent, netns)
                    }
                    ((Some(link), None), None) => {
                        let now = &link.interface;
                        let message = moved(link.index, &plan.pod, now, netns.as_raw_fd());
                        socket.set(plan, "its move to the pod", Message::SetLink(message))
                    }
                };
                each.push(done.and_then(|()| step()));
                if each.last().is_some_and(Result::is_err) {
                    break;
                }
            }
            Ok(each)
        })
    }

    fn configure(&self, plans: &[&AttachPlan], netns: &File) -> io::Result<Each> {
        netns::within(netns, || {
            let mut socket = Socket::open()?;
            let domains = socket.make_domains(plans)?;
            for key in DOMAIN_SETTINGS.iter().filter(|_| !domains.is_empty()) {
                let told = |e: io::Error| io::Error::new(e.kind(), format!("{key}: {e}"));
                std::fs::write(self.sysctls.join(key), "1").map_err(told)?;
            }
            let mut talk = talk_if(plans.iter().any(|plan| !plan.pod.ethtool.is_empty()))?;
            let links = socket.in_pod(plans)?;
            let mut work = Work::default();
            for (at, (plan, link)) in plans.iter().zip(&links).enumerate() {
                let ready = link.as_ref().ok_or_else(|| gone(plan, &plan.pod.name));
                let ready = ready.and_then(|link| {
                    self.set_by_name(&plan.pod, &link.interface, talk.as_mut())?;
                    let (name, limits) = (&plan.pod.name, plan.pod.limits);
                    shape::limit(&mut socket, link.index, name, limits)?;
                    Ok(link)
                });
                match ready {
                    Ok(link) => {
                        if let Some(vrf) = &plan.vrf {
                            let master = domains.iter().find(|(d, _)| d == vrf).map_or(0, |d| d.1);
                            let what = format!("belonging to the routing domain `{}`", vrf.name);
                            work.add(at, what, Message::SetLink(enslaved(link.index, master)));
                        }
                        for (flag, id) in link.xdp.iter().filter(|_| plan.without_programs) {
                            let off = without_xdp(link.index, *flag);
                            work.add(at, format!("XDP program {id}"), Message::SetLink(off));
                        }
                        work.dress(at, link.index, &plan.pod);
                        for rule in &plan.rules {
                            let what = format!("the rule for table {}", rule.table);
                            work.make(at, what, Message::NewRule(rule_message(rule)));
                        }
                    }
                    Err(error) => work.fail(at, error),
                }
            }
            work.carry_out(&mut socket, plans.len())
        })
    }

    fn look(&self, plans: &[&AttachPlan], netns: &File) -> io::Result<Vec<Option<Found>>> {
        netns::within(netns, || Socket::open()?.look(plans))
    }

    fn move_to_host(
        &self,
        plans: &[&AttachPlan],
        netns: &File,
        step: Step<'_>,
    ) -> io::Result<Each> {
        let host = self.host.as_raw_fd();
        netns::within(netns, || {
            let mut socket = Socket::open()?;
            let mut rules = Work::default();
            for rule in plans.iter().flat_map(|plan| &plan.rules) {
                rules.add(0, String::new(), Message::DelRule(rule_message(rule)));
            }
            // Those that did not come to be, or that someone took out already, are no error.
            socket.change(&rules.changes)?;
            let links = socket.in_pod(plans)?;
            let mut each = Each::new();
            for (plan, link) in plans.iter().zip(&links) {
                if plan.pod.limits.ingress_bps.is_some() {
                    shape::clear(&mut socket, &plan.pod.name)?;
                }
                let done = match link {
                    Some(link) if plan.share.child.is_some() => {
                        child::remove(&mut socket, link.index)
                    }
                    Some(link) => {
                        let message = moved(link.index, &plan.host, &link.interface, host);
                        socket.set(plan, "its move to the host", Message::SetLink(message))
                    }
                    None => Err(gone(plan, &plan.pod.name)),
                };
                each.push(done.and_then(|()| step()));
            }
            socket.drop_domains(plans)?;
            Ok(each)
        })
    }

    fn restore(&self, all: &[&AttachPlan]) -> io::Result<Each> {
        // What links of pods are on top of was left as it was.
        let away = |plan: &&AttachPlan| plan.share.child.is_none();
        let moved: Vec<&AttachPlan> = all.iter().copied().filter(away).collect();
        let mut each = self.restore_moved(&moved)?.into_iter();
        let of = |plan: &&AttachPlan| match plan.share.child {
            Some(_) => Ok(()),
            None => each.next().unwrap_or(Ok(())),
        };
        Ok(all.iter().map(of).collect())
    }
}

impl KernelLinks {
    fn restore_moved(&self, plans: &[&AttachPlan]) -> io::Result<Each> {
        netns::within(&self.host, || {
            let mut socket = Socket::open()?;
            let mut talk = talk_if(plans.iter().any(|plan| !plan.host.ethtool.is_empty()))?;
            let links = socket.on_host(plans)?;
            // First its name and sizes: settings are found by name.
            let mut work = Work::default();
            for (at, (plan, link)) in plans.iter().zip(&links).enumerate() {
                match link {
                    Some(link) => work.shape(at, link, &plan.host),
                    None => work.fail(at, gone(plan, &plan.host.name)),
                }
            }
            let shaped = work.carry_out(&mut socket, plans.len())?;
            let masters: Vec<_> = plans
                .iter()
                .map(|p| p.host.master.clone().unwrap_or_default())
                .collect();
            let masters = socket.named(&masters)?;
            let mut work = Work::default();
            for (at, ((plan, link), done)) in plans.iter().zip(&links).zip(shaped).enumerate() {
                let Some(link) = link else {
                    done.unwrap_or_else(|error| work.fail(at, error));
                    continue;
                };
                let ready = done
                    .and_then(|()| self.set_by_name(&plan.host, &link.interface, talk.as_mut()));
                if let Err(error) = ready {
                    work.fail(at, error);
                    continue;
                }
                if let Some(master) = &masters[at]
                    && link.master != Some(master.index)
                {
                    let what = format!("belonging to `{}`", master.interface.name);
                    work.add(
                        at,
                        what,
                        Message::SetLink(enslaved(link.index, master.index)),
                    );
                }
                work.dress(at, link.index, &plan.host);
            }
            work.carry_out(&mut socket, plans.len())
        })
    }
}

/// An interface of this thread's namespace that is up for a while, and down again after that if it was.
#[derive(Debug)]
pub(crate) struct Raised(Option<u32>);

impl Raised {
    /// Has it up. If the process ends meanwhile, it stays up.
    pub(crate) fn raise(name: &str) -> io::Result<Raised> {
        let mut socket = Socket::open()?;
        let link = socket.named(&[name.to_owned()])?.pop().flatten();
        let none = || io::Error::new(io::ErrorKind::NotFound, format!("there is no `{name}`"));
        let link = link.ok_or_else(none)?;
        if link.interface.up {
            return Ok(Raised(None));
        }
        socket.request(&Message::SetLink(updown(link.index, true)), 0)?;
        Ok(Raised(Some(link.index)))
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(index) = self.0 {
            let down = Message::SetLink(updown(index, false));
            let done = Socket::open().and_then(|mut socket| socket.request(&down, 0));
            if let Err(error) = done {
                tracing::warn!("an interface stays up that was down: {error}");
            }
        }
    }
}

fn talk_if(needed: bool) -> io::Result<Option<Talk>> {
    needed.then(Talk::open).transpose()
}

fn gone(plan: &AttachPlan, name: &str) -> io::Error {
    let why = format!("{}: there is no link `{name}`", plan.device);
    io::Error::new(io::ErrorKind::NotFound, why)
}

/// Routing domains by their links' indexes.
type Domains = Vec<(Vrf, u32)>;
