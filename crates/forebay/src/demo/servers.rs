//! Four simulated model servers, each in a thread of its own, on 127.0.0.1 to 127.0.0.4 with one
//! port, as four pods would have it.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_simulate::server::{self, SimConfig};
use tokio::sync::oneshot;

use super::workload::Scenario;
use crate::Failure;
use crate::cli::PROFILE;

/// Name of the model in the API.
pub(super) const MODEL: &str = "llama-3.1-8b";
/// What stands behind the gateway.
pub(super) const DESCRIPTION: &str = "Llama-3.1-8B, each on one RTX PRO 6000";
/// Model servers.
pub(super) const COUNT: u8 = 4;
/// Ports that are tried until one is free on all addresses.
const PORT_TRIES: usize = 100;

/// Servers that run until they are dropped.
pub(super) struct Servers {
    addresses: Vec<SocketAddr>,
    running: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Servers {
    /// Starts servers with empty caches.
    pub(super) fn start(scenario: &Scenario) -> Result<Self, Failure> {
        let listeners = listeners()
            .map_err(|error| Failure::world(format!("no port for the model servers: {error}")))?;
        let mut servers = Self {
            addresses: Vec::new(),
            running: Vec::new(),
        };
        for (number, listener) in listeners.into_iter().enumerate() {
            let config = SimConfig {
                profile: PROFILE.to_owned(),
                models: vec![MODEL.to_owned()],
                seed: number as u64,
                time_scale: scenario.time_scale,
                ..SimConfig::default()
            };
            let start = || {
                servers.addresses.push(listener.local_addr()?);
                servers.running.push(spawn(config, listener)?);
                Ok(())
            };
            start().map_err(|error: io::Error| {
                Failure::world(format!("model server {number} cannot start: {error}"))
            })?;
        }
        Ok(servers)
    }

    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The port that all of them have.
    pub(super) fn port(&self) -> u16 {
        self.addresses[0].port()
    }

    /// Simulated time that the servers gave up because this machine was too slow, summed up.
    pub(super) fn skipped(&self) -> Result<Duration, Failure> {
        let mut sum = 0.0;
        for address in &self.addresses {
            let page = metrics_page(*address)
                .map_err(|error| Failure::world(format!("{address}/metrics: {error}")))?;
            let line = page
                .lines()
                .find_map(|l| l.strip_prefix("forebay_sim_skipped_seconds_total "));
            sum += line
                .and_then(|value| value.parse::<f64>().ok())
                .unwrap_or(0.0);
        }
        Ok(Duration::from_secs_f64(sum))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for (stop, thread) in self.running.drain(..) {
            drop(stop);
            // A panic in there has been printed already.
            drop(thread.join());
        }
    }
}

/// Where the servers are.
pub(super) fn hosts() -> impl Iterator<Item = Ipv4Addr> {
    (1..=COUNT).map(|n| Ipv4Addr::new(127, 0, 0, n))
}

fn listeners() -> io::Result<Vec<TcpListener>> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES {
        let mut port = 0;
        let bound = hosts().map(|host| {
            let listener = TcpListener::bind((host, port))?;
            port = listener.local_addr()?.port();
            Ok(listener)
        });
        match bound.collect() {
            Ok(listeners) => return Ok(listeners),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn spawn(
    config: SimConfig,
    listener: TcpListener,
) -> io::Result<(oneshot::Sender<()>, JoinHandle<()>)> {
    listener.set_nonblocking(true)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let thread = std::thread::Builder::new()
        .name("model-server".to_owned())
        .spawn(move || {
            let ended = runtime.block_on(async {
                let listener =
                    tokio::net::TcpListener::from_std(listener).map_err(server::SimError::Io)?;
                let shutdown = async {
                    let _sender_gone = stopped.await;
                };
                server::serve(config, listener, shutdown).await
            });
            if let Err(error) = ended {
                eprintln!("forebay: a simulated model server ended: {error}");
            }
        })?;
    Ok((stop, thread))
}

fn metrics_page(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let head = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}
