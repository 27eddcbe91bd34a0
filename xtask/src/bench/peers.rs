//! The proxies under comparison: finding or installing each, starting it, ending it.
//!
//! A peer that cannot be had is not an error: it becomes a `Missing` with its reason, stands in
//! the report as such, and the run goes on. Every child that is started here ends with its guard
//! (`Running`), on success, on error and on Ctrl-C alike.

use super::http1::{Framing, HEADERS_MAX};
use super::mock::Counts;
use super::{Build, configs, procfs};
use crate::{dist, python, shell};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Versions of the peers that come from PyPI.
const SGLANG_ROUTER: &str = "sglang-router==0.3.2";

/// Programs of the two that only go together.
static PAIR: Mutex<BTreeMap<&'static str, PathBuf>> = Mutex::new(BTreeMap::new());

/// How long a peer may take until it answers its first request; Python ones import for seconds.
const START_LIMIT: Duration = Duration::from_secs(90);

/// How long a peer may take to end when asked, before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The comparison's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Peer {
    /// No proxy: the load goes to the mocks
    Direct,
    /// nginx as a plain reverse proxy
    Nginx,
    /// Envoy as a plain reverse proxy
    Envoy,
    /// SGLang's router with its cache-aware policy
    SglangRouter,
    /// Forebay with the full inference pick
    Forebay,
    /// Envoy that asks Forebay's picker, everything shown to it: what Envoy takes
    EnvoyEpp,
    /// The same pair: what the picker takes
    ForebayEpp,
}

/// What is needed to start a peer.
#[derive(Debug, Clone)]
pub(super) struct Installed {
    pub(super) program: PathBuf,
    pub(super) version: String,
}

/// A child that ends with this value, with all its descendants.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
}

/// A peer that answers requests.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) peer: Peer,
    pub(super) targets: Vec<SocketAddr>,
    /// Absent for the direct path.
    pub(super) running: Option<Running>,
    /// What it needs beside it, and is not measured.
    pub(super) _beside: Option<Running>,
    pub(super) version: String,
}

impl Peer {
    /// The name in tables and on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::SglangRouter => "sglang-router",
            Self::Forebay => "forebay",
            Self::EnvoyEpp => "envoy + forebay epp",
            Self::ForebayEpp => "forebay epp (of it)",
        }
    }

    /// Finds the program, installing it when that is possible. The error is the reason that the
    /// report prints.
    pub(super) fn install(self, release_dir: &Path, ours: &Build) -> Result<Installed> {
        match self {
            Self::Direct => Ok(Installed {
                program: PathBuf::new(),
                version: "-".to_owned(),
            }),
            Self::Nginx => install_nginx(),
            Self::Envoy | Self::EnvoyEpp => {
                let program = python::envoy()?;
                let version = shell::capture(Command::new(&program).arg("--version"))?;
                let version = version.rsplit("version:").next().unwrap_or_default();
                // `<commit>/<version>/<state>/<profile>/<tls library>`
                let version = version.split('/').nth(1).unwrap_or("unknown").to_owned();
                Ok(Installed { program, version })
            }
            Self::SglangRouter => {
                let program = python::venv("sglang-router", SGLANG_ROUTER)?;
                shell::capture(
                    Command::new(&program).args(["-c", "import sglang_router.launch_router"]),
                )
                .context("the installed package does not load")?;
                let version = SGLANG_ROUTER
                    .rsplit('=')
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                Ok(Installed { program, version })
            }
            Self::Forebay | Self::ForebayEpp => install_forebay(release_dir, ours),
        }
    }

    /// Starts the peer before the mocks and waits until a chat request through it succeeds.
    pub(super) fn start(
        self,
        installed: &Installed,
        mocks: &[SocketAddr],
        folder: &Path,
    ) -> Result<Ready> {
        let ready = |targets, running| Ready {
            peer: self,
            targets,
            running,
            _beside: None,
            version: installed.version.clone(),
        };
        if self == Self::Direct {
            return Ok(ready(mocks.to_vec(), None));
        }
        if let Self::EnvoyEpp | Self::ForebayEpp = self {
            return self.start_pair(installed, mocks, folder);
        }
        let listen = free_address()?;
        let mut command = self.command(installed, listen, mocks, folder)?;
        let log = folder.join(format!("{}.log", self.name()));
        command.current_dir(folder);
        let running = Running::start(&mut command, &log, || probe(listen))?;
        Ok(ready(vec![listen], Some(running)))
    }

    /// Starts a picker and an Envoy that asks it. Of the two the one is measured that this stands for.
    fn start_pair(
        self,
        installed: &Installed,
        mocks: &[SocketAddr],
        folder: &Path,
    ) -> Result<Ready> {
        let folder = folder.join(match self {
            Self::EnvoyEpp => "envoy-epp",
            _ => "epp",
        });
        fs::create_dir_all(folder.join("conf"))?;
        let other = |peer: Self| -> Result<PathBuf> {
            // What was installed for the other one; finding it again costs nothing.
            Ok(match peer == self {
                true => installed.program.clone(),
                false => PAIR
                    .lock()
                    .ok()
                    .and_then(|pair| pair.get(peer.name()).cloned())
                    .context("the pair needs both envoy-epp and forebay-epp in --peers")?,
            })
        };
        let (listen, picker) = (free_address()?, free_address()?);
        let (health, metrics) = (free_address()?, free_address()?);
        fs::write(folder.join("conf/pool.yaml"), configs::pool(mocks))?;
        let mut command = ending_with_us(&other(Self::ForebayEpp)?);
        command.args(["epp", "--bind", "127.0.0.1", "--pool-name", "mock"]);
        command.args(["--workers", configs::WORKERS]);
        command.args(["--secure-serving=false", "--grpc-port"]);
        command.arg(picker.port().to_string());
        command.args(["--grpc-health-port", &health.port().to_string()]);
        command.args(["--metrics-port", &metrics.port().to_string()]);
        command.arg("--config").arg(folder.join("conf"));
        let log = folder.join("epp.log");
        let listens = || TcpStream::connect(picker).map(drop).map_err(Into::into);
        let epp = Running::start(command.current_dir(&folder), &log, listens)?;
        let file = folder.join("envoy.yaml");
        fs::write(&file, configs::envoy_with_picker(listen, mocks, picker))?;
        let mut command = ending_with_us(&other(Self::EnvoyEpp)?);
        command.arg("-c").arg(file);
        command.args([
            "--concurrency",
            configs::WORKERS,
            "-l",
            "warning",
            "--disable-hot-restart",
        ]);
        let log = folder.join("envoy.log");
        let envoy = Running::start(command.current_dir(&folder), &log, || probe(listen))?;
        let (measured, beside) = match self {
            Self::ForebayEpp => (epp, envoy),
            _ => (envoy, epp),
        };
        Ok(Ready {
            peer: self,
            targets: vec![listen],
            running: Some(measured),
            _beside: Some(beside),
            version: installed.version.clone(),
        })
    }

    fn command(
        self,
        installed: &Installed,
        listen: SocketAddr,
        mocks: &[SocketAddr],
        folder: &Path,
    ) -> Result<Command> {
        let mut command = ending_with_us(&installed.program);
        match self {
            Self::Direct | Self::EnvoyEpp | Self::ForebayEpp => {
                bail!("it is not one program")
            }
            Self::Nginx => {
                let file = folder.join("nginx.conf");
                fs::write(&file, configs::nginx(listen, mocks, folder))?;
                command
                    .arg("-c")
                    .arg(file)
                    .arg("-e")
                    .arg(folder.join("nginx-error.log"));
            }
            Self::Envoy => {
                let file = folder.join("envoy.yaml");
                fs::write(&file, configs::envoy(listen, mocks))?;
                command.arg("-c").arg(file);
                command.args([
                    "--concurrency",
                    configs::WORKERS,
                    "-l",
                    "warning",
                    "--disable-hot-restart",
                ]);
            }
            Self::SglangRouter => {
                command.args([
                    "-m",
                    "sglang_router.launch_router",
                    "--host",
                    "127.0.0.1",
                    "--port",
                ]);
                command.arg(listen.port().to_string()).arg("--worker-urls");
                command.args(mocks.iter().map(|mock| format!("http://{mock}")));
                command.args(["--policy", "cache_aware", "--log-level", "warn"]);
                command.args(["--prometheus-host", "127.0.0.1", "--prometheus-port"]);
                command.arg(free_address()?.port().to_string());
            }
            Self::Forebay => {
                let config = folder.join("forebay");
                fs::create_dir_all(&config)?;
                fs::write(config.join("gateway.yaml"), configs::forebay(listen, mocks))?;
                command.arg("gateway").arg("--config").arg(config);
                command.arg("--admin").arg(free_address()?.to_string());
                // As for every other peer.
                command.args(["--access-log", "off", "--workers", configs::WORKERS]);
            }
        }
        Ok(command)
    }
}

/// The program, told by the kernel to end when this process dies without a chance to end it.
/// `setpriv` becomes the program, so the process id stays; without it only a killed run leaves
/// peers behind.
pub(super) fn ending_with_us(program: &Path) -> Command {
    let Some(setpriv) = shell::which("setpriv") else {
        return Command::new(program);
    };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "TERM"]).arg(program);
    command
}

fn install_nginx() -> Result<Installed> {
    if shell::which("nginx").is_none() {
        if !shell::is_root() {
            bail!("nginx is not installed, and installing it needs root");
        }
        if shell::which("apt-get").is_none() {
            bail!("nginx is not installed, and there is no apt-get to install it");
        }
        let mut apt = Command::new("apt-get");
        apt.args(["install", "-y", "--no-install-recommends", "nginx-light"]);
        shell::run(apt.env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    let program = shell::which("nginx").context("nginx is not in PATH after its installation")?;
    let version = shell::capture(Command::new(&program).arg("-v"))?;
    let version = version.rsplit('/').next().unwrap_or_default();
    let version = version
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned();
    Ok(Installed { program, version })
}

fn install_forebay(release_dir: &Path, ours: &Build) -> Result<Installed> {
    let program = match ours {
        Build::Given(program) => program.clone(),
        Build::Release => {
            shell::run(shell::cargo().args(["build", "--release", "-p", "forebay"]))?;
            release_dir.join("forebay")
        }
        Build::Dist => dist::build(false)?,
        Build::DistWithProfile => dist::build(true)?,
    };
    let version = shell::capture(Command::new(&program).arg("--version"))?;
    let version = version
        .split_whitespace()
        .last()
        .unwrap_or_default()
        .to_owned();
    let commit = shell::capture(
        Command::new("git")
            .args(["describe", "--always", "--dirty"])
            .current_dir(shell::root()),
    );
    let build = match ours {
        Build::Given(_) => "as given",
        Build::Release => "release build",
        Build::Dist => "dist build without profile",
        Build::DistWithProfile => "dist build",
    };
    let version = commit.map_or_else(
        |_| format!("{version} ({build})"),
        |commit| format!("{version} ({commit}, {build})"),
    );
    Ok(Installed { program, version })
}

/// Notes where the program of a peer is, for one that goes together with it.
pub(super) fn note(peer: Peer, found: &Installed) {
    if let Ok(mut pair) = PAIR.lock() {
        pair.insert(peer.name(), found.program.clone());
    }
}

impl Running {
    /// Starts a program, its output in a log, and waits until it is ready.
    pub(super) fn start(
        command: &mut Command,
        log: &Path,
        ready: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        let file = File::create(log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", shell::describe(command)))?;
        let mut running = Self { child };
        running
            .wait_until(ready)
            .with_context(|| format!("its log ends: {}", tail(log)))?;
        Ok(running)
    }

    /// Starts a mock on this address; it ends by itself when our end of its input closes.
    pub(super) fn mock(xtask: &Path, listen: SocketAddr, more: &[&str]) -> Result<Self> {
        let child = Command::new(xtask)
            .args(["mock-server", "--listen", &listen.to_string()])
            .args(more)
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start the mock server")?;
        let mut running = Self { child };
        running
            .wait_until(|| probe(listen))
            .context("mock server")?;
        Ok(running)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until(&mut self, mut ready: impl FnMut() -> Result<()>) -> Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended while starting ({status})");
            }
            match ready() {
                Ok(()) => return Ok(()),
                Err(error) if started.elapsed() > START_LIMIT => {
                    return Err(error.context(format!("not ready after {START_LIMIT:?}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Asked first, because a killed master (nginx) leaves its workers behind.
        let family = procfs::tree(self.child.id());
        signal(self.child.id(), Signal::TERM);
        drop(self.child.stdin.take());
        let asked = Instant::now();
        while asked.elapsed() < STOP_LIMIT && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            family.iter().for_each(|pid| signal(*pid, Signal::KILL));
        }
        let _ = self.child.wait();
    }
}

/// Sends a signal; a process that is already gone is what we wanted.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Two addresses with one port, as two pods of a pool have: 127.0.0.1 and 127.0.0.2.
pub(super) fn pod_addresses() -> Result<Vec<SocketAddr>> {
    const TRIES: usize = 20;
    for _ in 0..TRIES {
        let first = free_address()?;
        let second = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), first.port());
        if TcpListener::bind(second).is_ok() {
            return Ok(vec![first, second]);
        }
    }
    bail!("no port is free on both 127.0.0.1 and 127.0.0.2")
}

/// A loopback address that is free now. Another program may take it before the peer does; the
/// peer then reports that it cannot listen.
pub(super) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// One chat request on a connection of its own; an error unless the status is 200.
fn probe(address: SocketAddr) -> Result<()> {
    chat(address, "bench.local")
}

/// The same for this host.
pub(super) fn chat(address: SocketAddr, host: &str) -> Result<()> {
    let body = r#"{"messages":[{"role":"user","content":"ready?"}],"model":"mock"}"#;
    expect_ok(address, host, "POST", "/v1/chat/completions", body).map(drop)
}

/// Sets the shape of a mock's streams from now on.
pub(super) fn set_stream_shape(mock: SocketAddr, events: u32, gap_ms: u32) -> Result<()> {
    let target = format!("/mock/stream?events={events}&gap_ms={gap_ms}");
    expect_ok(mock, "bench.local", "PUT", &target, "").map(drop)
}

/// Has a mock keep its JSON answers back, or give those that wait.
pub(super) fn hold(mock: SocketAddr, hold: bool) -> Result<()> {
    let target = format!("/mock/hold?on={}", u8::from(hold));
    expect_ok(mock, "bench.local", "PUT", &target, "").map(drop)
}

/// What a mock has done so far.
pub(super) fn counts(mock: SocketAddr) -> Result<Counts> {
    let body = expect_ok(mock, "bench.local", "GET", "/mock/counts", "")?;
    serde_json::from_slice(&body).context("the mock's counts are not JSON")
}

/// One request on a connection of its own; the body of the answer, an error unless its status is
/// 200.
pub(super) fn expect_ok(
    address: SocketAddr,
    host: &str,
    method: &str,
    target: &str,
    body: &str,
) -> Result<Vec<u8>> {
    match exchange(address, host, method, target, body)? {
        (200, body) => Ok(body),
        (status, _) => bail!("{target} answered status {status}"),
    }
}

/// The same, with whatever status.
pub(super) fn exchange(
    address: SocketAddr,
    host: &str,
    method: &str,
    target: &str,
    body: &str,
) -> Result<(u16, Vec<u8>)> {
    const WAIT: Duration = Duration::from_secs(3);
    let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
    stream.set_read_timeout(Some(WAIT))?;
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    read_answer(&mut stream)
}

/// The status and the body of an answer; the connection may stay open behind it.
fn read_answer(stream: &mut TcpStream) -> Result<(u16, Vec<u8>)> {
    let mut piece = vec![0; 16 * 1_024];
    let mut more = |buffer: &mut Vec<u8>| match stream.read(&mut piece)? {
        0 => bail!("connection closed inside an answer"),
        read => {
            buffer.extend_from_slice(&piece[..read]);
            Ok(())
        }
    };
    let mut buffer = Vec::new();
    let (status, mut framing, mut at) = loop {
        more(&mut buffer)?;
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(end) = response.parse(&buffer).context("bad head")? {
            let status = response.code.unwrap_or(0);
            break (status, Framing::of(response.headers)?, end);
        }
    };
    let mut body = Vec::new();
    loop {
        at += framing.take(&buffer[at..], |payload| body.extend_from_slice(payload))?;
        if framing.is_done() {
            return Ok((status, body));
        }
        more(&mut buffer)?;
    }
}

/// The last lines of a peer's log, for an error message.
fn tail(log: &Path) -> String {
    const LINES: usize = 4;
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(LINES)..].join(" / ");
    if end.is_empty() {
        "(empty)".to_owned()
    } else {
        end.chars().take(600).collect()
    }
}
