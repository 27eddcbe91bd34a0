//! Asks DHCP servers: on the host for a NIC that is not in its pod yet, with frames, since it has no address;
//! in the pod for a lease to go on, with datagrams. Each call blocks, and no longer than it says.

use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use forebay_fabric::config::Mac;
use forebay_fabric::dhcp::{Due, Lease};
use smoltcp::phy::{self, Device as _, Medium, RawSocket, RxToken as _, TxToken as _};
use socket2::{Domain, Protocol, Socket, Type};

use super::message::{self, Answer, CLIENT_PORT, Question, SERVER_PORT, Say};
use crate::netlink;
use crate::netns;

/// How long servers have to give an address; the kubelet waits meanwhile.
pub const ASK_MAX: Duration = Duration::from_secs(5);
/// How long they have to let a lease go on.
pub const RENEW_MAX: Duration = Duration::from_secs(3);
/// A question is sent again after this: on a link that came up just now the first ones are lost.
const AGAIN: Duration = Duration::from_millis(700);

/// Asks for an address for a station on an interface of the host. One that is down is up meanwhile.
///
/// # Errors
/// Nobody gave one; or the interface cannot be used.
pub fn ask(host: &File, interface: &str, mac: Mac) -> io::Result<Lease> {
    netns::within(host, || {
        let _up = netlink::Raised::raise(interface)?;
        let mut wire = Wire::open(interface)?;
        take(&mut wire, mac)
    })
}

fn take(wire: &mut Wire, mac: Mac) -> io::Result<Lease> {
    let began = Instant::now();
    let until = began + ASK_MAX;
    let id = random();
    let mut say = Say::Discover;
    let mut refused = None;
    while Instant::now() < until {
        let for_s = u16::try_from(began.elapsed().as_secs()).unwrap_or(u16::MAX);
        let question = Question { mac, id, for_s };
        let everybody = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        wire.send(&message::frame(mac, everybody, &question.say(say)));
        let answer = wire.receive(until.min(Instant::now() + AGAIN), |payload| {
            let answer = question.read(payload)?;
            let offered = matches!(answer, Answer::Offer { .. });
            (offered == (say == Say::Discover)).then_some(answer)
        });
        match answer? {
            Some(Answer::Offer { address, server }) => say = Say::Request { address, server },
            Some(Answer::Given(lease)) => return Ok(lease),
            Some(Answer::Refused(words)) => {
                refused = Some(words);
                say = Say::Discover;
                // One that offers and refuses is not asked as fast as it answers.
                std::thread::sleep(AGAIN);
            }
            None => {}
        }
    }
    let why = match (refused, say) {
        (Some(words), _) => format!("the DHCP server refuses: {words}"),
        (None, Say::Request { server, .. }) => {
            format!("the DHCP server {server} offered an address and did not give it")
        }
        (None, Say::Discover | Say::Renew(_) | Say::Release { .. }) => {
            let within = ASK_MAX.as_secs();
            format!("no DHCP server answered within {within} s; look whether one is on its network")
        }
    };
    Err(io::Error::new(io::ErrorKind::TimedOut, why))
}

/// Asks for the lease of an interface in a pod to go on; none if nobody answered.
///
/// # Errors
/// The pod's interface cannot be used.
pub fn renew(
    netns: &File,
    interface: &str,
    lease: &Lease,
    whom: Due,
) -> io::Result<Option<Answer>> {
    let IpAddr::V4(address) = lease.address.ip else {
        return Ok(None);
    };
    let server = match whom {
        Due::Server => lease.server,
        Due::Nobody | Due::Anybody => Ipv4Addr::BROADCAST,
    };
    netns::within(netns, || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        // The device too: the pod may have other ways to the server's network.
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_reuse_address(true)?;
        socket.set_broadcast(true)?;
        socket.bind(&SocketAddr::from((address, CLIENT_PORT)).into())?;
        let socket = UdpSocket::from(socket);
        let began = Instant::now();
        let until = began + RENEW_MAX;
        let (mac, id, for_s) = (lease.mac, random(), 0);
        let question = Question { mac, id, for_s };
        let mut buffer = [0; 2048];
        loop {
            socket.send_to(&question.say(Say::Renew(address)), (server, SERVER_PORT))?;
            let again = until.min(Instant::now() + AGAIN);
            loop {
                let left = again.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                socket.set_read_timeout(Some(left))?;
                match socket.recv(&mut buffer) {
                    Ok(length) => match question.read(&buffer[..length]) {
                        Some(Answer::Offer { .. }) | None => {}
                        answer => return Ok(answer),
                    },
                    // Refused by the host of the server: it may be another one's in the next try.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(error) if is_time(&error) => break,
                    Err(error) => return Err(error),
                }
            }
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    })
}

fn is_time(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Tells the server that an address is free, from the host's interface. It does not answer; one behind a relay
/// does not hear it, and has its lease end by itself.
///
/// # Errors
/// The interface cannot be used.
pub fn release(host: &File, interface: &str, lease: &Lease) -> io::Result<()> {
    let IpAddr::V4(address) = lease.address.ip else {
        return Ok(());
    };
    let question = Question {
        mac: lease.mac,
        id: random(),
        for_s: 0,
    };
    let server = lease.server;
    let said = question.say(Say::Release { address, server });
    netns::within(host, || {
        let _up = netlink::Raised::raise(interface)?;
        let mut wire = Wire::open(interface)?;
        wire.send(&message::frame(lease.mac, (address, server), &said));
        Ok(())
    })
}

/// Frames of one interface, in the namespace of the thread. If the interface goes while it is read the library
/// panics, which ends the thread and is an error for who waits for it ([`netns::within`]).
struct Wire(RawSocket);

impl Wire {
    fn open(interface: &str) -> io::Result<Wire> {
        RawSocket::new(interface, Medium::Ethernet).map(Wire)
    }

    fn send(&mut self, frame: &[u8]) {
        if let Some(token) = self.0.transmit(smoltcp::time::Instant::ZERO) {
            token.consume(frame.len(), |place| place.copy_from_slice(frame));
        }
    }

    /// The first message before `until` in which something is found.
    fn receive<T>(
        &mut self,
        until: Instant,
        find: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if let Some((token, _)) = self.0.receive(smoltcp::time::Instant::ZERO) {
                let found = token.consume(|frame| find(message::message(frame)?));
                if found.is_some() {
                    return Ok(found);
                }
                continue;
            }
            match phy::wait(self.0.as_raw_fd(), Some(left.into())) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// A number that two questions hardly share.
fn random() -> u32 {
    // The keys of a new state are random.
    let number = RandomState::new().build_hasher().finish();
    #[allow(clippy::cast_possible_truncation, reason = "its lower half")]
    let number = number as u32;
    number
}
