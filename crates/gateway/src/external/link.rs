//! Connections to pickers: one of HTTP/2 per worker and address, shared by all calls.
//!
//! A connection counts as made once the other side has answered a ping on it, so that a program that
//! accepts and says nothing is found out within the connect timeout. TCP keep-alive finds machines that
//! vanish; a call that is not answered in time has the connection pinged, and dropped if that brings
//! nothing either. There are no pings in regular intervals: gRPC servers end connections for them.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use forebay_model::ObjectName;
use forebay_model::pool::{ExternalPicker, PickerTransport};
use h2::client::{Connection, SendRequest};
use h2::{Ping, PingPong};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::tls;
use crate::upstream;

/// Bytes of one call that may lie here unread: an answer whose client is slow takes no more.
const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes of all calls of a connection that may: a thousand slow clients before others wait.
const CONNECTION_WINDOW: u32 = 256 << 20;
/// Wait after a failed attempt to connect; it doubles with each further one...
const BACK_OFF_LEAST: Duration = Duration::from_millis(50);
/// ...up to this. Requests that come in between count the address as down at once.
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// Time between two warnings of a worker about what pickers do; metrics and `forebay explain` have all.
const WARN_EVERY: Duration = Duration::from_secs(1);

type Io = Either<TcpStream, TlsStream<TcpStream>>;

/// The connections of one worker.
#[derive(Debug, Default)]
pub(crate) struct Links {
    links: RefCell<FxHashMap<(SocketAddr, PickerTransport), Rc<Link>>>,
    /// Which replica of a picker answered last. Its memory is its own, so it is worth to stay.
    preferred: RefCell<FxHashMap<(ObjectName, u16), SocketAddr>>,
    warned: Cell<Option<Instant>>,
}

impl Links {
    /// The replicas of `picker`, in the order in which to try them.
    pub(super) fn order(&self, picker: &ExternalPicker) -> SmallVec<[SocketAddr; 4]> {
        let mut order = SmallVec::from_slice(&picker.endpoints);
        if order.len() > 1
            && let Some(last) = self.preferred.borrow().get(&key(picker))
            && let Some(at) = order.iter().position(|address| address == last)
        {
            order.rotate_left(at);
        }
        order
    }

    /// Notes that `address` answered for `picker`.
    pub(super) fn prefer(&self, picker: &ExternalPicker, address: SocketAddr) {
        if picker.endpoints.len() > 1 {
            self.preferred.borrow_mut().insert(key(picker), address);
        }
    }

    /// The connection to `address`, made or not.
    pub(super) fn to(&self, address: SocketAddr, transport: &PickerTransport) -> Rc<Link> {
        let mut links = self.links.borrow_mut();
        let link = links.entry((address, transport.clone()));
        Rc::clone(link.or_insert_with(|| Rc::new(Link::new(address, transport))))
    }

    /// Whether it is time for another warning: requests that fare alike would fill the log.
    pub(crate) fn may_warn(&self) -> bool {
        let now = Instant::now();
        let may = self
            .warned
            .get()
            .is_none_or(|last| now.duration_since(last) >= WARN_EVERY);
        if may {
            self.warned.set(Some(now));
        }
        may
    }

    /// Lets go of connections to addresses that `still_used` denies; their calls are served to the end.
    pub(crate) fn sweep(&self, still_used: impl Fn(&SocketAddr) -> bool) {
        let gone = |address: &SocketAddr| !still_used(address);
        self.links
            .borrow_mut()
            .retain(|(address, _), _| !gone(address));
        self.preferred
            .borrow_mut()
            .retain(|_, address| !gone(address));
    }
}

fn key(picker: &ExternalPicker) -> (ObjectName, u16) {
    (picker.service.clone(), picker.port)
}

/// The connection to one address.
#[derive(Debug)]
pub(super) struct Link {
    address: SocketAddr,
    transport: PickerTransport,
    state: RefCell<State>,
    changed: Notify,
    suspected: Rc<Notify>,
    back_off: Cell<Duration>,
}

#[derive(Debug)]
enum State {
    /// There is none, and nothing speaks against making one.
    Idle,
    Connecting,
    Up(SendRequest<Bytes>),
    Down {
        until: Instant,
        why: Rc<str>,
    },
}

impl Link {
    fn new(address: SocketAddr, transport: &PickerTransport) -> Self {
        Self {
            address,
            transport: transport.clone(),
            state: RefCell::new(State::Idle),
            changed: Notify::new(),
            suspected: Rc::default(),
            back_off: Cell::new(BACK_OFF_LEAST),
        }
    }

    /// A handle for one call, once there is a connection; or why there is none.
    pub(super) async fn sender(
        self: &Rc<Self>,
        limit: Duration,
    ) -> Result<SendRequest<Bytes>, Rc<str>> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.borrow_mut();
                match &*state {
                    State::Up(sender) => return Ok(sender.clone()),
                    State::Down { until, why } if Instant::now() < *until => {
                        return Err(Rc::clone(why));
                    }
                    State::Idle | State::Down { .. } => {
                        *state = State::Connecting;
                        tokio::task::spawn_local(drive(Rc::downgrade(self), limit));
                    }
                    State::Connecting => {}
                }
            }
            // Nothing on this thread runs between the look at the state and this.
            changed.await;
        }
    }

    /// A call was not answered in time: the connection may be dead.
    pub(super) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// The connection takes no more calls: the next one makes another.
    pub(super) fn spent(&self) {
        let mut state = self.state.borrow_mut();
        if matches!(*state, State::Up(_)) {
            *state = State::Idle;
        }
    }

    fn up(&self, sender: SendRequest<Bytes>) {
        if self.back_off.replace(BACK_OFF_LEAST) != BACK_OFF_LEAST {
            tracing::info!(address = %self.address, "the endpoint picker can be reached again");
        }
        self.state.replace(State::Up(sender));
        self.changed.notify_waiters();
    }

    fn down(&self, why: String) {
        let delay = self.back_off.get();
        if delay == BACK_OFF_LEAST {
            tracing::warn!(address = %self.address, %why, "an endpoint picker cannot be reached");
        }
        self.back_off.set((delay * 2).min(BACK_OFF_MAX));
        self.state.replace(State::Down {
            until: Instant::now() + delay,
            why: why.into(),
        });
        self.changed.notify_waiters();
    }
}

/// An open connection.
struct Opened {
    sender: SendRequest<Bytes>,
    connection: Connection<Io, Bytes>,
    ping: PingPong,
}

/// Makes the connection of `link` and keeps it going until it ends. Holds the link only to tell it,
/// so that one which nobody uses any more can go.
async fn drive(link: Weak<Link>, limit: Duration) {
    let Some((address, transport, suspected)) = link.upgrade().map(|link| {
        let suspected = Rc::clone(&link.suspected);
        (link.address, link.transport.clone(), suspected)
    }) else {
        return;
    };
    let opened = tokio::time::timeout(limit, open(address, &transport, limit)).await;
    let opened = opened.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
    match (opened, link.upgrade()) {
        (Ok(opened), Some(own)) => {
            own.up(opened.sender);
            drop(own);
            run(opened.connection, opened.ping, &suspected, limit).await;
            if let Some(own) = link.upgrade() {
                own.spent();
            }
        }
        (Err(why), Some(own)) => own.down(why),
        (_, None) => {}
    }
}

async fn open(
    address: SocketAddr,
    transport: &PickerTransport,
    limit: Duration,
) -> Result<Opened, String> {
    let tcp = upstream::tcp(address, limit)
        .await
        .map_err(|error| error.to_string())?;
    let io = match tls::of(transport, address)? {
        None => Either::Left(tcp),
        Some((config, name)) => {
            let connecting = TlsConnector::from(config).connect(name, tcp);
            Either::Right(connecting.await.map_err(|error| format!("TLS: {error}"))?)
        }
    };
    let (sender, mut connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .enable_push(false)
        .handshake(io)
        .await
        .map_err(|error| format!("HTTP/2: {error}"))?;
    let mut ping = connection.ping_pong().expect("taken nowhere else");
    tokio::select! {
        biased;
        ended = &mut connection => {
            let why = ended.err().map_or_else(|| "it closed".to_owned(), |e| e.to_string());
            return Err(format!("HTTP/2: {why}"));
        }
        pong = ping.ping(Ping::opaque()) => { pong.map_err(|error| format!("HTTP/2: {error}"))?; }
    }
    Ok(Opened {
        sender,
        connection,
        ping,
    })
}

/// Keeps a connection going until it ends, or answers no ping.
async fn run(
    mut connection: Connection<Io, Bytes>,
    mut ping: PingPong,
    suspected: &Notify,
    limit: Duration,
) {
    loop {
        tokio::select! {
            biased;
            // Its calls are told what ended it.
            _ended = &mut connection => return,
            () = suspected.notified() => {}
        }
        tokio::select! {
            biased;
            _ended = &mut connection => return,
            pong = tokio::time::timeout(limit, ping.ping(Ping::opaque())) => {
                if !matches!(pong, Ok(Ok(_))) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without it, Nagle's algorithm and delayed acknowledgements would cost each exchange tens of
    /// milliseconds.
    #[tokio::test]
    async fn messages_go_out_at_once() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("bound");
        let stream = upstream::tcp(address, Duration::from_secs(10)).await;
        assert!(stream.expect("connected").nodelay().expect("an option"));
    }

    #[test]
    fn the_replica_that_answered_last_comes_first() {
        let address = |n: u16| SocketAddr::from(([10, 0, 0, 1], n));
        let picker = |endpoints: &[u16]| ExternalPicker {
            service: ObjectName::new("default", "epp"),
            port: 9002,
            endpoints: endpoints.iter().map(|n| address(*n)).collect(),
            failure_mode: forebay_model::pool::FailureMode::FailOpen,
            transport: PickerTransport::Plaintext,
        };
        let links = Links::default();
        let check = |endpoints: &[u16], expected: &[u16]| {
            let order = links.order(&picker(endpoints));
            let ports: Vec<u16> = order.iter().map(SocketAddr::port).collect();
            assert_eq!(ports, expected);
        };
        check(&[1, 2, 3], &[1, 2, 3]);
        links.prefer(&picker(&[1, 2, 3]), address(2));
        check(&[1, 2, 3], &[2, 3, 1]);
        // It is gone.
        check(&[1, 3], &[1, 3]);
        links.sweep(|own| own.port() != 2);
        check(&[1, 2, 3], &[1, 2, 3]);
    }
}
