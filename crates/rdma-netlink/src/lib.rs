//! RDMA netlink (`NETLINK_RDMA`): which RDMA devices a namespace has and which net device each port is of,
//! whether namespaces share them or each has its own, and moving one to another namespace. For others too.
//!
//! [`message`] is the wire form and knows no socket; [`Rdma`] asks over a [`Transport`], which is the kernel
//! ([`Kernel`]) or, for tests of who uses this, answers that were recorded ([`Recorded`]). What the kernel
//! tells of queues, memory and counters is not read.

pub mod message;
mod recorded;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_RDMA;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use message::{Answer, Request};
pub use message::{Device, NetnsMode, Port};
pub use recorded::Recorded;

/// How long the kernel may take for an answer: it has it at once, or a driver holds a lock.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Devices of an answer at most; a machine has a few dozen, with virtual functions hundreds. More are an error.
pub const DEVICES_MAX: usize = 4096;
/// Datagrams of an answer at most; more are an error.
const DATAGRAMS_MAX: usize = 4096;
/// Ports of a device at most, as devices count them; others are not asked for.
const PORTS_MAX: u32 = 255;

/// Sends requests and receives answers, a datagram each.
pub trait Transport: Send {
    /// Sends a request.
    ///
    /// # Errors
    /// It cannot be sent.
    fn send(&mut self, request: &[u8]) -> io::Result<()>;

    /// The next datagram of an answer.
    ///
    /// # Errors
    /// None comes.
    fn receive(&mut self) -> io::Result<Vec<u8>>;
}

/// The kernel, in the network namespace of the thread that opens it.
#[derive(Debug)]
pub struct Kernel(netlink_sys::Socket);

impl Kernel {
    /// Opens a conversation; none if this kernel has no RDMA.
    ///
    /// # Errors
    /// Others of the socket.
    pub fn open() -> io::Result<Option<Kernel>> {
        let mut socket = match netlink_sys::Socket::new(NETLINK_RDMA) {
            Ok(socket) => socket,
            // EPROTONOSUPPORT: it was built without, or the module is not loaded.
            Err(error) if error.raw_os_error() == Some(93) => return Ok(None),
            Err(error) => return Err(error),
        };
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_MAX))?;
        Ok(Some(Kernel(socket)))
    }
}

impl Transport for Kernel {
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.0.send(request, 0).map(drop)
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        match self.0.recv_from_full() {
            Ok((bytes, _)) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let why = "the kernel's RDMA subsystem does not answer";
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
            Err(error) => Err(error),
        }
    }
}

/// The RDMA subsystem as one namespace has it.
#[derive(Debug)]
pub struct Rdma<T> {
    transport: T,
    sequence: u32,
}

impl<T: Transport> Rdma<T> {
    /// Asks over `transport`.
    pub fn new(transport: T) -> Rdma<T> {
        let sequence = 0;
        Rdma {
            transport,
            sequence,
        }
    }

    /// The devices of the namespace, in the kernel's order.
    ///
    /// # Errors
    /// The kernel does not tell, or tells of more than [`DEVICES_MAX`].
    pub fn devices(&mut self) -> io::Result<Vec<Device>> {
        let answers = self.ask(&Request::Devices)?;
        let devices = answers.into_iter().filter_map(Answer::into_device);
        let devices: Vec<Device> = devices.take(DEVICES_MAX + 1).collect();
        match devices.len() {
            ..=DEVICES_MAX => Ok(devices),
            _ => Err(bad(format!("more than {DEVICES_MAX} RDMA devices"))),
        }
    }

    /// The device of a name; none if the namespace has none.
    ///
    /// # Errors
    /// As [`Rdma::devices`].
    pub fn device(&mut self, name: &str) -> io::Result<Option<Device>> {
        let devices = self.devices()?;
        Ok(devices.into_iter().find(|device| device.name == name))
    }

    /// The ports of a device, by number.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn ports(&mut self, device: &Device) -> io::Result<Vec<Port>> {
        let mut ports = Vec::new();
        for number in 1..=device.ports.min(PORTS_MAX) {
            let asked = Request::Port(device.index, number);
            let answers = self.ask(&asked)?;
            ports.extend(answers.into_iter().filter_map(Answer::into_port));
        }
        Ok(ports)
    }

    /// Whether namespaces share devices.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn netns_mode(&mut self) -> io::Result<NetnsMode> {
        let answers = self.ask(&Request::NetnsMode)?;
        let mode = answers.into_iter().find_map(|answer| answer.netns_mode());
        mode.ok_or_else(|| bad("the kernel does not tell the mode of namespaces"))
    }

    /// Sets whether namespaces share devices, for the whole machine. The kernel refuses it while a namespace
    /// beside the first one has devices.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_netns_mode(&mut self, mode: NetnsMode) -> io::Result<()> {
        self.ask(&Request::SetNetnsMode(mode)).map(drop)
    }

    /// Moves a device of this namespace to the one that `netns` is open on. Only where namespaces do not share
    /// devices.
    ///
    /// # Errors
    /// The kernel refuses; the device stays.
    pub fn move_to(&mut self, index: u32, netns: BorrowedFd<'_>) -> io::Result<()> {
        let fd = u32::try_from(netns.as_raw_fd()).map_err(|_| bad("no open file"))?;
        self.ask(&Request::Move(index, fd)).map(drop)
    }

    fn ask(&mut self, request: &Request) -> io::Result<Vec<Answer>> {
        self.sequence = self.sequence.wrapping_add(1);
        self.transport.send(&request.encode(self.sequence))?;
        let mut answers = Vec::new();
        for _ in 0..DATAGRAMS_MAX {
            let bytes = self.transport.receive()?;
            if message::take(&bytes, self.sequence, &mut answers)? {
                return Ok(answers);
            }
        }
        Err(bad(format!(
            "an answer of more than {DATAGRAMS_MAX} datagrams"
        )))
    }
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}
