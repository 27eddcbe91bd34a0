//! The gateway as a process of its own under each of the three measurements, with mock endpoints in
//! another.
//!
//! Every measurement starts both anew, so that nothing that one left in memory counts for another.

use super::manifests;
use crate::bench::load::{Ready, read_head};
use crate::bench::peers::{self, Running};
use crate::bench::{bodies, configs, procfs};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Endpoints that are scraped.
pub(super) const ENDPOINTS: usize = 100;
/// What a metrics page takes: that of vLLM 0.32.0 with one model has 53,214 bytes.
pub(super) const PAGE_BYTES: usize = 53_214;
/// Requests under way at a time, and bytes of their bodies.
pub(super) const REQUESTS: usize = 16;
pub(super) const BODY_BYTES: usize = 220 * 1_024;

/// How often the endpoints of ten thousand pools are read: all together as often as a hundred busy
/// ones are.
const RARELY: &str = "5s";
/// Memory is settled once it has changed by no more than this...
const SETTLED_BYTES: u64 = 64 * 1_024;
/// ...between so many readings...
const SETTLED_READINGS: usize = 6;
/// ...this far apart.
const READING_EVERY: Duration = Duration::from_millis(500);
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// What every measurement needs.
pub(super) struct Rig {
    pub(super) program: PathBuf,
    /// This program, for its mock server.
    pub(super) xtask: PathBuf,
    pub(super) folder: TempDir,
}

/// A gateway that serves.
struct Gateway {
    running: Running,
    address: SocketAddr,
}

/// Mock endpoints: one process that answers on every address of the loopback network.
struct Endpoints {
    running: Running,
    control: SocketAddr,
}

/// Who reads metrics.
#[derive(Clone, Copy)]
pub(super) enum By {
    Gateway,
    /// `forebay epp`
    Picker,
}

/// Memory with few pools and with many.
pub(super) struct Pools {
    pub(super) few_bytes: u64,
    pub(super) many_bytes: u64,
    /// Until the gateway was ready with the many.
    pub(super) ready: Duration,
}

/// What reading metrics took.
pub(super) struct Scraping {
    pub(super) cores: f64,
    pub(super) pages_per_s: f64,
    /// Cores that were busy with something else.
    pub(super) foreign_cores: f64,
}

/// Memory before and while requests were under way.
pub(super) struct Bodies {
    pub(super) before_bytes: u64,
    pub(super) peak_bytes: u64,
    pub(super) body_bytes: u64,
}

impl Rig {
    /// Memory with `few` and with `many` idle pools, each with one endpoint or with none.
    pub(super) async fn pools(&self, few: usize, many: usize, endpoints: bool) -> Result<Pools> {
        let (few_bytes, _) = self.resident(few, endpoints).await?;
        let (many_bytes, ready) = self.resident(many, endpoints).await?;
        Ok(Pools {
            few_bytes,
            many_bytes,
            ready,
        })
    }

    async fn resident(&self, pools: usize, endpoints: bool) -> Result<(u64, Duration)> {
        let endpoints = endpoints.then(|| self.endpoints(0)).transpose()?;
        let port = endpoints.as_ref().map(|mock| mock.control.port());
        let began = Instant::now();
        let gateway = self.gateway(&["--scrape-interval", RARELY], |folder, listen| {
            Ok(manifests::write(folder, pools, listen, port)?)
        })?;
        let ready = began.elapsed();
        // The last one is served, as far as it can be.
        let last = manifests::host(pools - 1);
        match &endpoints {
            Some(mock) => {
                peers::chat(gateway.address, &last)?;
                let all = u64::try_from(pools).context("a count")?;
                until("every endpoint is read", || {
                    Ok(peers::counts(mock.control)?.scrapes >= all)
                })
                .await?;
            }
            None => {
                let (status, _) = peers::exchange(gateway.address, &last, "GET", "/", "")?;
                ensure!(status == 503, "a pool without endpoints answered {status}");
            }
        }
        Ok((gateway.settled_bytes().await?, ready))
    }

    /// CPU of reading the metrics of busy endpoints at the usual interval, by the gateway or by the
    /// picker alone.
    pub(super) async fn scraping(&self, by: By, seconds: f64) -> Result<Scraping> {
        let mock = self.endpoints(PAGE_BYTES)?;
        let port = mock.control.port();
        let addresses: Vec<_> = (0..ENDPOINTS)
            .map(|number| manifests::endpoint(number, port))
            .collect();
        let running = match by {
            By::Gateway => self.pool(&addresses)?.running,
            By::Picker => self.picker(&addresses)?,
        };
        let (pid, mocks) = (running.pid(), [mock.running.pid()]);
        until("endpoints are read again and again", || {
            Ok(peers::counts(mock.control)?.scrapes >= 10 * ENDPOINTS as u64)
        })
        .await?;
        let read = || -> Result<_> {
            let cpu = procfs::usage(&[pid]).cpu_ns;
            let all = cpu + procfs::usage(&mocks).cpu_ns;
            let all = all + procfs::usage(&[std::process::id()]).cpu_ns;
            let pages = peers::counts(mock.control)?.scrapes;
            Ok((Instant::now(), cpu, all, procfs::machine_busy_ns(), pages))
        };
        let (began, cpu, all, busy, pages) = read()?;
        sleep(Duration::from_secs_f64(seconds)).await;
        let (ended, cpu_end, all_end, busy_end, pages_end) = read()?;
        let window_ns = (ended - began).as_nanos() as f64;
        let foreign_ns = (busy_end - busy).saturating_sub(all_end - all);
        Ok(Scraping {
            cores: (cpu_end - cpu) as f64 / window_ns,
            pages_per_s: (pages_end - pages) as f64 * 1e9 / window_ns,
            foreign_cores: foreign_ns as f64 / window_ns,
        })
    }

    /// Memory while long requests wait for their answers. Their connections exist already, on both
    /// sides, and each has been asked before: the prefix index, whose bound is its own, knows them.
    pub(super) async fn bodies(&self) -> Result<Bodies> {
        let mock = self.endpoints(0)?;
        let gateway = self.pool(&[manifests::endpoint(0, mock.control.port())])?;
        let pid = gateway.running.pid();
        let mut clients = Vec::new();
        for _ in 0..REQUESTS {
            clients.push(TcpStream::connect(gateway.address).await?);
        }
        let requests = |bytes: usize| bodies::set(bytes, false).into_iter().take(REQUESTS);
        let body_bytes: usize = requests(BODY_BYTES).map(|body| body.len()).sum();
        let short = requests(2_048).map(Ready::new);
        let (mut clients, ()) = mock.hold_answers(clients, short, || Ok(())).await?;
        let mut one = clients.pop().context("there are several")?;
        for (number, long) in requests(BODY_BYTES).map(Ready::new).enumerate() {
            one = ask(one, long, number as u64).await?;
        }
        clients.push(one);
        let before_bytes = gateway.settled_bytes().await?;
        procfs::reset_peak(pid)?;
        let long = requests(BODY_BYTES).map(Ready::new);
        let look = || {
            let peak = procfs::usage(&[pid]).rss_peak_kib * 1_024;
            Ok(peak.max(procfs::resident_bytes(pid)?))
        };
        let (_clients, peak_bytes) = mock.hold_answers(clients, long, look).await?;
        Ok(Bodies {
            before_bytes,
            peak_bytes,
            body_bytes: u64::try_from(body_bytes).context("a length")?,
        })
    }

    fn endpoints(&self, page_bytes: usize) -> Result<Endpoints> {
        let control = peers::free_address()?;
        let everywhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), control.port());
        let bytes = page_bytes.to_string();
        let running = Running::mock(&self.xtask, everywhere, &["--metrics-bytes", &bytes])?;
        Ok(Endpoints { running, control })
    }

    /// A gateway with one pool of these endpoints.
    fn pool(&self, endpoints: &[SocketAddr]) -> Result<Gateway> {
        self.gateway(&[], |folder, listen| {
            fs::create_dir_all(folder)?;
            let text = configs::forebay(listen, endpoints);
            Ok(fs::write(folder.join("gateway.yaml"), text)?)
        })
    }

    /// A picker for other proxies with one pool of these endpoints.
    fn picker(&self, endpoints: &[SocketAddr]) -> Result<Running> {
        let config = self.fresh_config()?;
        fs::create_dir_all(&config)?;
        fs::write(config.join("pool.yaml"), configs::pool(endpoints))?;
        let ports = [(); 3].map(|()| peers::free_address());
        let [grpc, health, metrics] = ports;
        let (grpc, health, metrics) = (grpc?, health?, metrics?);
        let mut command = peers::ending_with_us(&self.program);
        command.args(["epp", "--bind", "127.0.0.1", "--pool-name", "mock"]);
        command.arg("--config").arg(&config);
        command.args(["--grpc-port", &grpc.port().to_string()]);
        command.args(["--grpc-health-port", &health.port().to_string()]);
        command.args(["--metrics-port", &metrics.port().to_string()]);
        command.current_dir(self.folder.path());
        let log = self.folder.path().join("picker.log");
        Running::start(&mut command, &log, || {
            peers::expect_ok(metrics, "bench.local", "GET", "/readyz", "").map(drop)
        })
    }

    /// Where the next configuration goes; one that was there is gone.
    fn fresh_config(&self) -> Result<PathBuf> {
        let config = self.folder.path().join("config");
        if config.exists() {
            fs::remove_dir_all(&config)?;
        }
        Ok(config)
    }

    fn gateway(
        &self,
        more: &[&str],
        configure: impl FnOnce(&Path, SocketAddr) -> Result<()>,
    ) -> Result<Gateway> {
        let config = self.fresh_config()?;
        let (address, admin) = (peers::free_address()?, peers::free_address()?);
        configure(&config, address)?;
        let mut command = peers::ending_with_us(&self.program);
        command.arg("gateway").arg("--config").arg(&config);
        command.args(["--admin", &admin.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--access-log", "off"]).args(more);
        command.current_dir(self.folder.path());
        let log = self.folder.path().join("gateway.log");
        let running = Running::start(&mut command, &log, || {
            peers::expect_ok(admin, "bench.local", "GET", "/readyz", "").map(drop)
        })?;
        Ok(Gateway { running, address })
    }
}

impl Gateway {
    /// Resident memory once it has come to rest.
    async fn settled_bytes(&self) -> Result<u64> {
        let mut readings: Vec<u64> = Vec::new();
        let began = Instant::now();
        loop {
            let now = procfs::resident_bytes(self.running.pid())?;
            readings.push(now);
            let last = &readings[readings.len().saturating_sub(SETTLED_READINGS)..];
            let settled = last
                .iter()
                .all(|bytes| bytes.abs_diff(now) <= SETTLED_BYTES);
            if settled && last.len() == SETTLED_READINGS {
                return Ok(now);
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "memory did not settle: {last:?} bytes"
            );
            sleep(READING_EVERY).await;
        }
    }
}

impl Endpoints {
    /// Sends one request on each connection, looks while all wait for their answers, and lets them
    /// be answered.
    async fn hold_answers<T>(
        &self,
        clients: Vec<TcpStream>,
        requests: impl Iterator<Item = Ready>,
        look: impl FnOnce() -> Result<T>,
    ) -> Result<(Vec<TcpStream>, T)> {
        peers::hold(self.control, true)?;
        let all = clients.len() as u64;
        let asked: Vec<_> = clients
            .into_iter()
            .zip(requests)
            .enumerate()
            .map(|(n, (client, request))| tokio::spawn(ask(client, request, n as u64)))
            .collect();
        until("all requests wait", || {
            if let Some(done) = asked.iter().find(|task| task.is_finished()) {
                bail!("a request ended before its answer: {done:?}");
            }
            Ok(peers::counts(self.control)?.held == all)
        })
        .await?;
        let seen = look()?;
        peers::hold(self.control, false)?;
        let mut clients = Vec::new();
        for task in asked {
            clients.push(task.await??);
        }
        Ok((clients, seen))
    }
}

/// Sends one request and reads its answer to the end.
async fn ask(mut client: TcpStream, request: Ready, number: u64) -> Result<TcpStream> {
    request.send(number, &mut client).await?;
    let mut buffer = Vec::new();
    let (mut framing, mut at, _) = read_head(&mut client, &mut buffer).await?;
    loop {
        at += framing.take(&buffer[at..], |_| ())?;
        if framing.is_done() {
            return Ok(client);
        }
        ensure!(
            client.read_buf(&mut buffer).await? > 0,
            "connection closed inside an answer"
        );
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds().context(what.to_owned())? {
        ensure!(began.elapsed() < PATIENCE, "waited {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
