//! One conversation with the kernel over netlink, in the namespace of the thread that opened it: requests in
//! batches, a send for each, every request with its own answer. No batch waits longer than [`ANSWER_MAX`].

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    Emitable as _, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader,
};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use forebay_netlink_frames::{Refusal, Says, parts};

/// The kernel answers in microseconds, or waits for a lock that a driver holds; after this the request
/// fails, and what it did is found out by looking.
const ANSWER_MAX: Duration = Duration::from_millis(1000);
/// Requests in one send: the kernel does them all before the first answer is read, and the answers wait in
/// the socket's buffer, which holds some hundreds.
const BATCH_MAX: usize = 64;
/// Bytes that are received at once; the kernel's parts of a dump have half of that at most.
const DATAGRAM_MAX: usize = 64 << 10;
/// How often a dump is asked for that something came into.
const DUMP_TRIES: usize = 5;

/// What is asked of the kernel.
pub(super) struct Request {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) body: Vec<u8>,
    pub(super) ends: Ends,
}

/// What the answer to a request ends with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// That it is done.
    Done,
    /// The one thing that was asked for.
    Answer,
}

/// An answer's messages: kind and bytes.
pub(super) type Answers = Vec<(u16, Vec<u8>)>;

/// A change, with words for what it is about.
pub(super) struct Change {
    pub(super) what: String,
    pub(super) message: Message,
    /// Whether it makes something, which may be there already.
    pub(super) makes: bool,
}

pub(super) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Socket {
    /// To routing netlink.
    pub(super) fn open() -> io::Result<Socket> {
        Socket::to(NETLINK_ROUTE)
    }

    /// To another protocol of netlink.
    pub(super) fn to(protocol: isize) -> io::Result<Socket> {
        let mut inner = netlink_sys::Socket::new(protocol)?;
        inner.bind_auto()?;
        inner.connect(&SocketAddr::new(0, 0))?;
        // Errors with words, and without the request that they are about.
        inner.set_ext_ack(true)?;
        inner.set_cap_ack(true)?;
        set_socket_timeout(&inner, Timeout::Recv, Some(ANSWER_MAX))?;
        Ok(Socket {
            inner,
            sequence: 0,
            datagram: Vec::with_capacity(DATAGRAM_MAX),
        })
    }

    /// Carries changes out one after the other, also behind one that is refused; what became of each.
    pub(super) fn change(&mut self, changes: &[Change]) -> io::Result<Vec<io::Result<()>>> {
        let request = |change: &Change| {
            let made = if change.makes {
                NLM_F_CREATE | NLM_F_EXCL
            } else {
                0
            };
            of_route(&change.message, NLM_F_ACK | made, Ends::Done)
        };
        let requests: Vec<_> = changes.iter().map(request).collect();
        let answers = self.exchange(&requests)?;
        let outcome = |(change, answer): (&Change, Result<Answers, Refusal>)| match answer {
            Ok(_) => Ok(()),
            Err(refusal) if change.makes && refusal.is(Errno::EXIST) => Ok(()),
            Err(refusal) => Err(Refusal {
                about: change.what.clone(),
                ..refusal
            }
            .into()),
        };
        Ok(changes.iter().zip(answers).map(outcome).collect())
    }

    /// Asks for one change.
    pub(super) fn request(&mut self, message: &Message, flags: u16) -> io::Result<()> {
        let request = of_route(message, NLM_F_ACK | flags, Ends::Done);
        let outcome = self.exchange(&[request])?.pop();
        outcome.unwrap_or_else(|| Ok(Answers::new()))?;
        Ok(())
    }

    /// Makes something that may be there already.
    pub(super) fn create(&mut self, message: &Message) -> io::Result<()> {
        match self.request(message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Asks for one thing with each message; none where there is none.
    pub(super) fn get(&mut self, messages: &[Message]) -> io::Result<Vec<Option<Message>>> {
        let request = |message| of_route(message, 0, Ends::Answer);
        let requests: Vec<_> = messages.iter().map(request).collect();
        let one = |answer: Result<Answers, Refusal>| match answer {
            Ok(answers) => answers
                .first()
                .map(|(kind, body)| parsed(*kind, body))
                .transpose(),
            Err(refusal) if refusal.is(Errno::NODEV) => Ok(None),
            Err(refusal) => Err(refusal.into()),
        };
        self.exchange(&requests)?.into_iter().map(one).collect()
    }

    /// Asks for all things of a kind, again while something comes into it.
    pub(super) fn dump(&mut self, message: Message) -> io::Result<Vec<Message>> {
        let request = of_route(&message, NLM_F_DUMP, Ends::Done);
        for _ in 0..DUMP_TRIES {
            match self.exchange(std::slice::from_ref(&request)) {
                Ok(mut answers) => {
                    let answers = answers.pop().unwrap_or_else(|| Ok(Answers::new()))?;
                    return answers
                        .iter()
                        .map(|(kind, body)| parsed(*kind, body))
                        .collect();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let why = "the kernel's list changed each time that it was read";
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    }

    /// Sends requests in batches; what became of each.
    pub(super) fn exchange(
        &mut self,
        requests: &[Request],
    ) -> io::Result<Vec<Result<Answers, Refusal>>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        for batch in requests.chunks(BATCH_MAX) {
            outcomes.extend(self.batch(batch)?);
        }
        Ok(outcomes)
    }

    fn batch(&mut self, requests: &[Request]) -> io::Result<Vec<Result<Answers, Refusal>>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            write(request, self.sequence, &mut bytes);
        }
        self.inner.send(&bytes, 0)?;
        let mut outcomes = Vec::from_iter(requests.iter().map(|_| Ok(Answers::new())));
        let mut open = vec![true; requests.len()];
        let mut interrupted = false;
        while open.contains(&true) {
            self.receive()?;
            for part in parts(&self.datagram) {
                let part = part?;
                let at = usize::try_from(part.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                // Of a batch that was given up.
                if open.get(at) != Some(&true) {
                    continue;
                }
                interrupted |= part.interrupted;
                match part.says {
                    Says::Answer(kind, body) => {
                        if let Ok(answers) = &mut outcomes[at] {
                            answers.push((kind, body.to_vec()));
                        }
                        open[at] = requests[at].ends != Ends::Answer;
                    }
                    Says::Done => open[at] = false,
                    Says::Refused(refusal) => {
                        outcomes[at] = Err(refusal);
                        open[at] = false;
                    }
                    Says::Nothing => {}
                }
            }
        }
        // Told only now: a socket has one dump at a time, and that one had to come to its end.
        if interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(outcomes)
    }

    fn receive(&mut self) -> io::Result<()> {
        self.datagram.clear();
        let received = self.inner.recv(&mut self.datagram, 0);
        received.map(drop).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer")
            }
            _ => error,
        })
    }
}

fn of_route(message: &Message, flags: u16, ends: Ends) -> Request {
    let mut body = vec![0; message.buffer_len()];
    message.emit(&mut body);
    Request {
        kind: message.message_type(),
        flags,
        body,
        ends,
    }
}

fn write(request: &Request, sequence: u32, bytes: &mut Vec<u8>) {
    let length = u32::try_from(16 + request.body.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(request.kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | request.flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(&request.body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A message of routing netlink, from its kind and the bytes behind its header.
pub(super) fn parsed(kind: u16, body: &[u8]) -> io::Result<Message> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    Message::deserialize(&header, body)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}
