//! RDMA devices of NICs, where namespaces do not share them: they go into the pod with their NIC, and come
//! back with it. Where namespaces share them there is nothing to move; a container then has of a device
//! what it has character devices of (`cdi`).
//!
//! [`WithRdma`] is [`Links`] with that added; what the kernel does is behind [`Namespaces`], since few
//! machines of tests have RDMA.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use forebay_fabric::config::{Ethtool, Rule};
use forebay_fabric::plan::{AttachPlan, Found, Interface, Seen};
use forebay_fabric::share::RdmaPart;
use forebay_rdma_netlink::{Kernel, NetnsMode, Rdma};

use crate::netlink::{Each, Links, Step};
use crate::netns;

/// RDMA devices in namespaces.
pub trait Namespaces: Send + Sync + 'static {
    /// Whether each namespace has its own devices; also where there is no RDMA, they are not moved.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn own_devices(&self) -> io::Result<bool>;

    /// Whether a namespace, the host's for none, has the device of a name.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn has(&self, netns: Option<&File>, name: &str) -> io::Result<bool>;

    /// Moves a device from one namespace to another; none is the host's.
    ///
    /// # Errors
    /// It is not there, or the kernel refuses.
    fn move_device(&self, name: &str, from: Option<&File>, to: Option<&File>) -> io::Result<()>;
}

/// Namespaces as the kernel has them.
#[derive(Debug)]
pub struct KernelNamespaces {
    host: File,
}

impl KernelNamespaces {
    /// With the host's network namespace at `host`.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn open(host: &std::path::Path) -> io::Result<KernelNamespaces> {
        let host = netns::open(host)?;
        let host = host.ok_or_else(|| io::Error::other("the host's network namespace is gone"))?;
        Ok(KernelNamespaces { host })
    }

    fn within<T: Send>(
        &self,
        netns: Option<&File>,
        work: impl FnOnce(&mut Rdma<Kernel>) -> io::Result<T> + Send,
    ) -> io::Result<Option<T>> {
        netns::within(netns.unwrap_or(&self.host), || match Kernel::open()? {
            Some(kernel) => work(&mut Rdma::new(kernel)).map(Some),
            None => Ok(None),
        })
    }
}

impl Namespaces for KernelNamespaces {
    fn own_devices(&self) -> io::Result<bool> {
        let mode = self.within(None, Rdma::netns_mode)?;
        Ok(mode == Some(NetnsMode::Exclusive))
    }

    fn has(&self, netns: Option<&File>, name: &str) -> io::Result<bool> {
        let found = self.within(netns, |rdma| rdma.device(name))?;
        Ok(found.flatten().is_some())
    }

    fn move_device(&self, name: &str, from: Option<&File>, to: Option<&File>) -> io::Result<()> {
        let to = to.unwrap_or(&self.host);
        let moved = self.within(from, |rdma| {
            let device = rdma.device(name)?.ok_or_else(|| gone(name))?;
            rdma.move_to(device.index, to.as_fd())
        })?;
        moved.ok_or_else(|| gone(name))
    }
}

fn gone(name: &str) -> io::Error {
    let why = format!("there is no RDMA device `{name}`");
    io::Error::new(io::ErrorKind::NotFound, why)
}

/// Links whose RDMA devices go with them, where their plans say so.
#[derive(Debug)]
pub struct WithRdma<L, N> {
    links: L,
    namespaces: N,
}

impl<L: Links, N: Namespaces> WithRdma<L, N> {
    /// `links` and the RDMA devices of `namespaces`.
    pub fn new(links: L, namespaces: N) -> WithRdma<L, N> {
        WithRdma { links, namespaces }
    }

    /// Takes a device out of the pod, if it is there.
    fn bring_back(&self, part: &RdmaPart, netns: &File) -> io::Result<()> {
        if self.namespaces.has(Some(netns), &part.name)? {
            let came = self.namespaces.move_device(&part.name, Some(netns), None);
            came.map_err(|e| of(part, &e))?;
        }
        Ok(())
    }
}

/// The RDMA device that a plan moves.
fn moved(plan: &AttachPlan) -> Option<&RdmaPart> {
    plan.rdma.as_ref().filter(|part| part.own_namespace)
}

impl<L: Links, N: Namespaces> Links for WithRdma<L, N> {
    fn snapshot(&self, names: &[String]) -> io::Result<Vec<Option<Interface>>> {
        self.links.snapshot(names)
    }

    fn rules(&self) -> io::Result<Vec<Rule>> {
        self.links.rules()
    }

    fn ethtool(&self, name: &str, asked: &Ethtool) -> io::Result<(Ethtool, Ethtool)> {
        self.links.ethtool(name, asked)
    }

    /// In the pod as soon as one of both is: what is there is taken back, and what is missing is found by
    /// who verifies.
    fn seen(&self, plans: &[&AttachPlan], netns: Option<&File>) -> io::Result<Vec<Seen>> {
        let mut seen = self.links.seen(plans, netns)?;
        if let Some(netns) = netns {
            for (plan, seen) in plans.iter().zip(&mut seen) {
                if let Some(part) = moved(plan)
                    && self.namespaces.has(Some(netns), &part.name)?
                {
                    *seen = Seen::Pod;
                }
            }
        }
        Ok(seen)
    }

    fn move_to_pod(&self, plans: &[&AttachPlan], netns: &File, step: Step<'_>) -> io::Result<Each> {
        let mut each = self.links.move_to_pod(plans, netns, step)?;
        for (plan, done) in plans.iter().zip(&mut each) {
            if let (Some(part), Ok(())) = (moved(plan), &done) {
                let went = self.namespaces.move_device(&part.name, None, Some(netns));
                *done = went.map_err(|e| of(part, &e));
            }
        }
        Ok(each)
    }

    fn configure(&self, plans: &[&AttachPlan], netns: &File) -> io::Result<Each> {
        self.links.configure(plans, netns)
    }

    /// A NIC without the RDMA device that is to be with it is not in the pod.
    fn look(&self, plans: &[&AttachPlan], netns: &File) -> io::Result<Vec<Option<Found>>> {
        for plan in plans {
            if let Some(part) = moved(plan)
                && !self.namespaces.has(Some(netns), &part.name)?
            {
                let why = format!(
                    "RDMA device {} of {} is not in the pod",
                    part.name, plan.device
                );
                return Err(io::Error::new(io::ErrorKind::NotFound, why));
            }
        }
        self.links.look(plans, netns)
    }

    fn move_to_host(
        &self,
        plans: &[&AttachPlan],
        netns: &File,
        step: Step<'_>,
    ) -> io::Result<Each> {
        let mut each: Each = Vec::new();
        for plan in plans {
            each.push(moved(plan).map_or(Ok(()), |part| self.bring_back(part, netns)));
        }
        // One whose RDMA device stays is left with it; one may have been on its way alone.
        let seen = self.links.seen(plans, Some(netns))?;
        let there: Vec<usize> = (0..plans.len())
            .filter(|at| each[*at].is_ok())
            .filter(|at| moved(plans[*at]).is_none() || seen[*at] == Seen::Pod)
            .collect();
        let chosen: Vec<&AttachPlan> = there.iter().map(|at| plans[*at]).collect();
        let done = self.links.move_to_host(&chosen, netns, step)?;
        for (at, done) in there.into_iter().zip(done) {
            each[at] = done;
        }
        Ok(each)
    }

    fn restore(&self, plans: &[&AttachPlan]) -> io::Result<Each> {
        self.links.restore(plans)
    }
}

/// What was said of a part, with its name.
fn of(part: &RdmaPart, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("RDMA device {}: {error}", part.name))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A NIC and its RDMA device that are on the host or in the pod, and steps that fail.
    #[derive(Default)]
    struct World {
        nic_in_pod: Mutex<bool>,
        rdma_in_pod: Mutex<bool>,
        refuses: bool,
    }

    impl Namespaces for &'static World {
        fn own_devices(&self) -> io::Result<bool> {
            Ok(true)
        }

        fn has(&self, netns: Option<&File>, _name: &str) -> io::Result<bool> {
            Ok(*self.rdma_in_pod.lock().unwrap() == netns.is_some())
        }

        fn move_device(&self, _: &str, _: Option<&File>, to: Option<&File>) -> io::Result<()> {
            if self.refuses {
                return Err(io::Error::other("device or resource busy"));
            }
            *self.rdma_in_pod.lock().unwrap() = to.is_some();
            Ok(())
        }
    }

    impl Links for &'static World {
        fn snapshot(&self, names: &[String]) -> io::Result<Vec<Option<Interface>>> {
            Ok(vec![Some(Interface::default()); names.len()])
        }

        fn rules(&self) -> io::Result<Vec<Rule>> {
            Ok(Vec::new())
        }

        fn ethtool(&self, _: &str, _: &Ethtool) -> io::Result<(Ethtool, Ethtool)> {
            Err(io::Error::other("not asked for"))
        }

        fn seen(&self, plans: &[&AttachPlan], _: Option<&File>) -> io::Result<Vec<Seen>> {
            let seen = match *self.nic_in_pod.lock().unwrap() {
                true => Seen::Pod,
                false => Seen::Host,
            };
            Ok(vec![seen; plans.len()])
        }

        fn move_to_pod(&self, plans: &[&AttachPlan], _: &File, _: Step<'_>) -> io::Result<Each> {
            *self.nic_in_pod.lock().unwrap() = true;
            Ok(plans.iter().map(|_| Ok(())).collect())
        }

        fn configure(&self, plans: &[&AttachPlan], _: &File) -> io::Result<Each> {
            Ok(plans.iter().map(|_| Ok(())).collect())
        }

        fn look(&self, plans: &[&AttachPlan], _: &File) -> io::Result<Vec<Option<Found>>> {
            let found = Found {
                interface: Interface::default(),
                rules: vec![],
                vrf: None,
                programs: vec![],
            };
            let found = self.nic_in_pod.lock().unwrap().then_some(found);
            Ok(vec![found; plans.len()])
        }

        fn move_to_host(&self, plans: &[&AttachPlan], _: &File, _: Step<'_>) -> io::Result<Each> {
            if !plans.is_empty() {
                *self.nic_in_pod.lock().unwrap() = false;
            }
            Ok(plans.iter().map(|_| Ok(())).collect())
        }

        fn restore(&self, plans: &[&AttachPlan]) -> io::Result<Each> {
            Ok(plans.iter().map(|_| Ok(())).collect())
        }
    }

    const STEP: Step<'static> = &|| Ok(());

    /// What came of the one device.
    fn only(each: io::Result<Each>) -> io::Result<()> {
        each.and_then(|mut each| each.pop().unwrap())
    }

    fn plan(own_namespace: bool) -> AttachPlan {
        let place = ("node".into(), "nic".into());
        let config = forebay_fabric::config::NetworkConfig::default();
        let host = Interface::default();
        let plan = forebay_fabric::plan::plan(vec![], place, host, &config, &[]);
        AttachPlan {
            rdma: Some(RdmaPart {
                name: "mlx5_0".into(),
                devices: vec![],
                own_namespace,
            }),
            ..plan.unwrap()
        }
    }

    fn world(refuses: bool) -> (&'static World, WithRdma<&'static World, &'static World>) {
        let world = World {
            refuses,
            ..World::default()
        };
        let world: &'static World = Box::leak(Box::new(world));
        (world, WithRdma::new(world, world))
    }

    fn places(world: &World) -> (bool, bool) {
        (
            *world.nic_in_pod.lock().unwrap(),
            *world.rdma_in_pod.lock().unwrap(),
        )
    }

    #[test]
    fn where_namespaces_have_their_own_devices_both_go_and_both_come_back() {
        let pod = File::open("/proc/self/ns/net").unwrap();
        let (world, links) = world(false);
        only(links.move_to_pod(&[&plan(true)], &pod, STEP)).unwrap();
        assert_eq!(places(world), (true, true));
        assert!(links.look(&[&plan(true)], &pod).unwrap()[0].is_some());
        only(links.move_to_host(&[&plan(true)], &pod, STEP)).unwrap();
        assert_eq!(places(world), (false, false));
        only(links.move_to_pod(&[&plan(false)], &pod, STEP)).unwrap();
        assert_eq!(places(world), (true, false), "shared: it stays");
        assert!(links.look(&[&plan(false)], &pod).unwrap()[0].is_some());
    }

    #[test]
    fn a_nic_without_its_rdma_device_is_not_verified_and_is_taken_back() {
        let pod = File::open("/proc/self/ns/net").unwrap();
        let (world, links) = world(true);
        let why = only(links.move_to_pod(&[&plan(true)], &pod, STEP))
            .unwrap_err()
            .to_string();
        assert!(
            why.contains("RDMA device mlx5_0: device or resource busy"),
            "{why}"
        );
        let why = links.look(&[&plan(true)], &pod).unwrap_err().to_string();
        assert!(
            why.contains("RDMA device mlx5_0 of nic is not in the pod"),
            "{why}"
        );
        assert_eq!(links.seen(&[&plan(true)], Some(&pod)).unwrap(), [Seen::Pod]);
        only(links.move_to_host(&[&plan(true)], &pod, STEP)).unwrap();
        assert_eq!(places(world), (false, false));
    }

    #[test]
    fn an_rdma_device_that_is_in_the_pod_alone_is_taken_back_alone() {
        let pod = File::open("/proc/self/ns/net").unwrap();
        let (world, links) = world(false);
        *world.rdma_in_pod.lock().unwrap() = true;
        assert_eq!(links.seen(&[&plan(true)], Some(&pod)).unwrap(), [Seen::Pod]);
        only(links.move_to_host(&[&plan(true)], &pod, STEP)).unwrap();
        assert_eq!(places(world), (false, false));
    }

    #[test]
    fn this_kernel_tells_of_its_rdma_devices_or_has_none() {
        let host = std::path::Path::new("/proc/self/ns/net");
        let namespaces = KernelNamespaces::open(host).unwrap();
        if Kernel::open().unwrap().is_none() {
            assert!(!namespaces.own_devices().unwrap(), "nothing to move");
            eprintln!("skipped: this kernel has no RDMA (CONFIG_INFINIBAND) to look at");
            return;
        }
        namespaces.own_devices().unwrap();
        assert!(!namespaces.has(None, "no-such-device").unwrap());
    }
}
