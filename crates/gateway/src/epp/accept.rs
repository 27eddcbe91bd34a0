//! Taking connections, and giving each to the worker that has the fewest.
//!
//! A proxy opens few connections and keeps them: one for each of its own threads. Were each worker to
//! listen by itself, chance could bring them all to one. So one thread takes them and hands them out; a
//! call never changes threads after that.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;

use super::pools::Pools;
use super::stream::Manner;
use super::{Epp, Settings, connection, tls};
use crate::admin::Readiness;
use crate::connection::Held;
use crate::shared::Shared;
use crate::worker::Worker;

/// Connections on their way to one worker; more wait in the kernel's backlog.
const ARRIVALS_MAX: usize = 64;
/// Pause after the operating system refused a connection (file descriptors used up).
const PAUSE: Duration = Duration::from_millis(50);
/// Silence after which the kernel looks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The workers' places for connections.
#[derive(Debug, Default)]
pub(crate) struct Seats(OnceLock<Vec<Place>>);

#[derive(Debug)]
struct Place {
    taken: Arc<AtomicUsize>,
    arrivals: mpsc::Sender<Arrival>,
}

/// A worker's side of its place.
#[derive(Debug)]
pub(crate) struct Seat {
    taken: Arc<AtomicUsize>,
    arrivals: mpsc::Receiver<Arrival>,
}

/// A connection that has come.
#[derive(Debug)]
struct Arrival {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    entry: Arc<Entry>,
    _counted: Taken,
}

/// What a port is for.
#[derive(Debug)]
struct Entry {
    settings: Settings,
    tls: Option<tls::Current>,
    readiness: Arc<Readiness>,
    /// Nothing but health is served.
    health_only: bool,
}

/// A place that is taken.
#[derive(Debug)]
struct Taken(Arc<AtomicUsize>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Seats {
    /// Places for so many workers; once.
    pub(crate) fn arrange(&self, workers: usize) -> Vec<Seat> {
        let mut seats = Vec::new();
        self.0.get_or_init(|| {
            let place = |_| {
                let taken = Arc::<AtomicUsize>::default();
                let (sender, arrivals) = mpsc::channel(ARRIVALS_MAX);
                seats.push(Seat {
                    taken: Arc::clone(&taken),
                    arrivals,
                });
                Place {
                    taken,
                    arrivals: sender,
                }
            };
            (0..workers).map(place).collect()
        });
        seats
    }

    /// The place with the fewest connections.
    fn least(&self) -> Option<&Place> {
        let places = self.0.get()?.iter();
        places.min_by_key(|place| place.taken.load(Ordering::Relaxed))
    }
}

/// Opens the ports and begins to take connections.
pub(super) fn start(
    shared: &Arc<Shared>,
    settings: &Settings,
    readiness: Arc<Readiness>,
) -> io::Result<Epp> {
    let tls = tls::Current::of(&settings.security)?;
    let entry = |health_only, tls| {
        Arc::new(Entry {
            settings: settings.clone(),
            tls,
            readiness: Arc::clone(&readiness),
            health_only,
        })
    };
    let listen = |address: SocketAddr| {
        let listener = std::net::TcpListener::bind(address)
            .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok::<_, io::Error>((listener, bound))
    };
    let (calls, address) = listen(settings.listen)?;
    let health = settings.health.map(listen).transpose()?;
    let health_address = health.as_ref().map(|(_, address)| *address);
    let mut ports = vec![(calls, entry(false, tls.clone()))];
    ports.extend(health.map(|(listener, _)| (listener, entry(true, None))));
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name("epp-accept".to_owned())
        .spawn(move || run(&shared, ports, tls))?;
    Ok(Epp {
        address,
        health: health_address,
    })
}

fn run(
    shared: &Arc<Shared>,
    ports: Vec<(std::net::TcpListener, Arc<Entry>)>,
    tls: Option<tls::Current>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a current-thread runtime needs only an epoll descriptor");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        for (listener, entry) in ports {
            spawn_local(take(Arc::clone(shared), listener, entry));
        }
        if let Some(tls) = tls {
            spawn_local(tls.follow());
        }
        let mut drain = shared.drain.subscribe();
        let _sender_gone = drain.wait_for(|draining| *draining).await;
    });
}

async fn take(shared: Arc<Shared>, listener: std::net::TcpListener, entry: Arc<Entry>) {
    let listener = TcpListener::from_std(listener).expect("it is of the kind that tokio takes");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => hand_out(&shared, stream, peer, &entry).await,
            // Out of descriptors, or a client that left in the backlog: neither ends the port.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn hand_out(shared: &Shared, stream: TcpStream, peer: SocketAddr, entry: &Arc<Entry>) {
    // Without it, Nagle's algorithm and delayed acknowledgements would cost each answer tens of
    // milliseconds.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
    // A system without it finds dead proxies by other means.
    let _unsupported = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let (Ok(stream), Some(place)) = (stream.into_std(), shared.seats.least()) else {
        return;
    };
    place.taken.fetch_add(1, Ordering::Relaxed);
    let arrival = Arrival {
        stream,
        peer,
        entry: Arc::clone(entry),
        _counted: Taken(Arc::clone(&place.taken)),
    };
    // A worker that has ended takes none.
    let _ended = place.arrivals.send(arrival).await;
}

/// Serves the connections that come to a worker, until nobody sends any more.
pub(crate) async fn take_seat(worker: Rc<Worker>, mut seat: Seat) {
    let mut manner: Option<Rc<Manner>> = None;
    debug_assert_eq!(seat.taken.load(Ordering::Relaxed), 0);
    while let Some(arrival) = seat.arrivals.recv().await {
        let settings = &arrival.entry.settings;
        let manner = manner.get_or_insert_with(|| {
            Rc::new(Manner {
                pools: Pools::new(settings.pool.clone(), settings.namespace.clone()),
                response_bodies: settings.response_bodies,
                test_selection: settings.test_selection,
            })
        });
        let limit = worker.shared.settings.connections_per_worker_max;
        if seat.taken.load(Ordering::Relaxed) > limit {
            continue;
        }
        let held = Held::new(Rc::clone(&worker));
        spawn_local(serve(Rc::clone(&worker), Rc::clone(manner), arrival, held));
    }
}

async fn serve(worker: Rc<Worker>, manner: Rc<Manner>, arrival: Arrival, _held: Held) {
    let Arrival {
        stream,
        peer,
        entry,
        _counted,
    } = arrival;
    let Ok(stream) = TcpStream::from_std(stream) else {
        return;
    };
    let terms = connection::Terms {
        manner,
        readiness: Arc::clone(&entry.readiness),
        only_pool: entry.settings.pool.clone(),
        health_only: entry.health_only,
        peer,
    };
    match &entry.tls {
        None => connection::serve(worker, terms, stream).await,
        Some(tls) => {
            let acceptor = TlsAcceptor::from(tls.config());
            let limit = connection::HANDSHAKE_TIMEOUT;
            let shaken = tokio::time::timeout(limit, acceptor.accept(stream)).await;
            if let Ok(Ok(stream)) = shaken {
                connection::serve(worker, terms, stream).await;
            } else {
                worker.shared.telemetry.metrics.tls_failed("handshake");
            }
        }
    }
}
