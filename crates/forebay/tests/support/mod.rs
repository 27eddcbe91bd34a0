//! What the system tests share: the program and its simulated servers as child processes, a plain
//! client, and waiting for conditions. Children end with the test, whatever its outcome.

// Each test program uses a part of this file.
#![allow(dead_code, reason = "every test file includes the whole module")]

#[path = "../../src/manifest_text.rs"]
mod manifest_text;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

/// How long a condition may take to come true on a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// The model that the simulated servers go by.
pub(crate) const MODEL: &str = "sim";

/// The program under test.
pub(crate) fn forebay() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    // Settings of whoever runs the tests must not change them.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FOREBAY_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub(crate) fn output(arguments: &[&str]) -> Output {
    forebay()
        .args(arguments)
        .output()
        .expect("the program starts")
}

/// What a finished command printed on stdout.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a finished command printed on stderr.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until `look` finds something.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain: {what}"
        );
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A child process that does not outlive the test.
pub(crate) struct Program(Child);

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("the program starts"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).expect("a process id");
        let pid = Pid::from_raw(pid).expect("not zero");
        kill_process(pid, signal).expect("our own child");
    }

    /// Ends it at once and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("our own child");
        self.0.wait().expect("our own child");
    }

    /// The exit status once it has ended.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let status = self.0.try_wait().expect("our own child");
        status.map(|status| status.code().unwrap_or(-1))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// A port that is free on the first `hosts` addresses of 127.0.0.0/8.
pub(crate) fn free_port(hosts: u8) -> u16 {
    wait_for("a free port", || {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        let port = first.local_addr().ok()?.port();
        let others = (2..=hosts).map(|n| TcpListener::bind((Ipv4Addr::new(127, 0, 0, n), port)));
        others.collect::<io::Result<Vec<_>>>().ok().map(|_| port)
    })
}

/// A simulated model server, faster than any real one so that tests are short.
pub(crate) fn sim(address: SocketAddr, more: &[&str]) -> Program {
    let program = Program::start(
        forebay()
            .args(["sim", "--listen", &address.to_string(), "--model", MODEL])
            .args(["--time-scale", "0.1"])
            .args(more)
            .stderr(Stdio::null()),
    );
    wait_for("the simulated server listens", || {
        get(address, "/health").ok()
    });
    program
}

/// A gateway in front of simulated servers on 127.0.0.1 and following addresses.
pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
    pub(crate) admin: SocketAddr,
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) sims: Vec<Option<Program>>,
    pub(crate) gateway: Program,
    log: Option<NamedTempFile>,
}

impl World {
    pub(crate) fn start(count: u8) -> Self {
        Self::start_with(count, &[])
    }

    pub(crate) fn start_with(count: u8, sim_arguments: &[&str]) -> Self {
        Self::start_whole(count, sim_arguments, &[], None)
    }

    /// A world whose gateway tells what happens to it; see [`Self::log`].
    pub(crate) fn start_logging(count: u8) -> Self {
        let log = NamedTempFile::new().expect("a temporary file");
        Self::start_whole(count, &[], &[], Some(log))
    }

    /// A world whose gateway has arguments of the test's own.
    pub(crate) fn start_with_arguments(count: u8, gateway_arguments: &[&str]) -> Self {
        Self::start_whole(count, &[], gateway_arguments, None)
    }

    /// A world with arguments of the test's own for all its programs.
    pub(crate) fn start_with_all(count: u8, sims: &[&str], gateway: &[&str]) -> Self {
        Self::start_whole(count, sims, gateway, None)
    }

    fn start_whole(
        count: u8,
        sim_arguments: &[&str],
        gateway_arguments: &[&str],
        log: Option<NamedTempFile>,
    ) -> Self {
        let target = free_port(count);
        let servers: Vec<SocketAddr> = (1..=count)
            .map(|n| (Ipv4Addr::new(127, 0, 0, n), target).into())
            .collect();
        let sims = servers
            .iter()
            .map(|at| Some(sim(*at, sim_arguments)))
            .collect();
        let (port, admin) = (
            free_port(1),
            SocketAddr::from(([127, 0, 0, 1], free_port(1))),
        );
        let folder = tempfile::tempdir().expect("a temporary folder");
        write(folder.path(), &manifests(port, &servers, ""));
        let (level, stderr) = match &log {
            Some(log) => ("info", log.reopen().expect("a readable file").into()),
            None => ("error", Stdio::inherit()),
        };
        let gateway = Program::start(
            forebay()
                .args(["gateway", "--bind", "127.0.0.1", "--access-log", "off"])
                .args(["--log", level])
                .args(gateway_arguments)
                .args(["--admin", &admin.to_string(), "--seed", "1", "--config"])
                .arg(folder.path())
                .stderr(stderr),
        );
        let world = Self {
            folder,
            port,
            admin,
            servers,
            sims,
            gateway,
            log,
        };
        wait_for("the gateway is ready", || get(world.admin, "/readyz").ok());
        wait_for("every server is scraped", || {
            let scraped = |e: &Value| !e["running"].is_null() && e["standing"] == "good";
            world.endpoints().iter().all(scraped).then_some(())
        });
        world
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// What the gateway has logged, where it was started to.
    pub(crate) fn log(&self) -> String {
        let log = self.log.as_ref().expect("started with a log");
        fs::read_to_string(log.path()).expect("text")
    }

    /// The pool's endpoints as the admin server shows them.
    pub(crate) fn endpoints(&self) -> Vec<Value> {
        let pools = self.admin_json("/debug/pools");
        pools[0]["endpoints"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// One endpoint of the pool.
    pub(crate) fn endpoint(&self, address: SocketAddr) -> Value {
        let all = self.endpoints();
        let found = all
            .into_iter()
            .find(|e| e["address"] == address.to_string());
        found.expect("an endpoint of the pool")
    }

    pub(crate) fn admin_json(&self, path: &str) -> Value {
        let body = get(self.admin, path).expect("the admin server answers");
        serde_json::from_str(&body).expect("JSON")
    }

    /// What `forebay status` prints.
    pub(crate) fn status(&self) -> String {
        let output = output(&["status", "--admin", &self.admin.to_string()]);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    }

    /// A second gateway on the same configuration, on ports of its own.
    pub(crate) fn second_gateway(&self, port: u16, arguments: &[&str]) -> (Program, SocketAddr) {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port(1)));
        let text = fs::read_to_string(self.folder.path().join("world.yaml")).expect("manifests");
        let folder = self.folder.path().join(format!("second-{port}"));
        fs::create_dir(&folder).expect("a writable folder");
        let (own, other) = (format!("port: {}", self.port), format!("port: {port}"));
        write(&folder, &text.replace(&own, &other));
        let program = Program::start(
            forebay()
                .args(["gateway", "--bind", "127.0.0.1", "--access-log", "off"])
                .args([
                    "--log",
                    "error",
                    "--admin",
                    &admin.to_string(),
                    "--seed",
                    "2",
                ])
                .args(arguments)
                .arg("--config")
                .arg(folder.join("world.yaml")),
        );
        wait_for("the second gateway is ready", || get(admin, "/readyz").ok());
        (program, admin)
    }

    pub(crate) fn write(&self, text: &str) {
        write(self.folder.path(), text);
    }
}

/// Replaces the manifests, whole at once.
fn write(folder: &Path, text: &str) {
    let (next, file) = (folder.join(".next"), folder.join("world.yaml"));
    fs::write(&next, text).expect("a writable folder");
    fs::rename(&next, &file).expect("a writable folder");
}

/// A Gateway, an HTTPRoute with `filters` (YAML flow style, or nothing), a pool and its pods.
pub(crate) fn manifests(port: u16, servers: &[SocketAddr], filters: &str) -> String {
    manifests_with(port, servers, filters, "default")
}

/// The same with a picker for the pool, in YAML.
pub(crate) fn manifests_with(
    port: u16,
    servers: &[SocketAddr],
    filters: &str,
    picker: &str,
) -> String {
    let pods: Vec<_> = servers.iter().map(SocketAddr::ip).collect();
    let world = manifest_text::World {
        gateway: "test",
        gateway_port: port,
        route: "all",
        filters,
        pool: "sims",
        picker,
        target_port: servers[0].port(),
        app: "sim",
        pods: &pods,
    };
    world.text()
}

/// The body of a 200 answer to `GET path`.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let answer = exchange(address, &format!("GET {path} HTTP/1.1\r\n"), "");
    match answer.status {
        200 => Ok(answer.body),
        status => Err(format!("status {status}: {}", answer.body)),
    }
}

/// What came back on one connection; status 0 if nothing did.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    /// As on the wire: chunks are not taken apart.
    pub(crate) body: String,
}

/// Sends one request on a connection of its own and reads until its end.
pub(crate) fn exchange(address: SocketAddr, line: &str, body: &str) -> Answer {
    try_exchange(address, line, body).unwrap_or_default()
}

fn try_exchange(address: SocketAddr, line: &str, body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let length = body.len();
    let head = format!(
        "{line}host: test\r\nconnection: close\r\nx-forebay-explain: 1\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes())?;
    let mut bytes = Vec::new();
    // What came before an error counts: a stream that broke off had begun.
    let _broken_off = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.unwrap_or(0),
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// How one streamed chat ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// With its last event.
    Complete,
    /// After the first event, before the last.
    BrokeOff,
    /// Before anything came that a client could use.
    Failed(u16),
}

/// One chat of the load.
#[derive(Clone, Debug)]
pub(crate) struct Chat {
    pub(crate) ending: Ending,
    /// Where it was served, if it was.
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) head: String,
}

/// Asks for a stream of `tokens` tokens.
pub(crate) fn chat(address: SocketAddr, question: &str, tokens: u32) -> Chat {
    let body = serde_json::json!({
        "model": MODEL,
        "stream": true,
        "max_tokens": tokens,
        "ignore_eos": true,
        "messages": [{ "role": "user", "content": question }],
    });
    let answer = exchange(
        address,
        "POST /v1/chat/completions HTTP/1.1\r\n",
        &body.to_string(),
    );
    let ending = match answer.status {
        200 if answer.body.contains("data: [DONE]") => Ending::Complete,
        200 if answer.body.contains("data: ") => Ending::BrokeOff,
        status => Ending::Failed(status),
    };
    let endpoint = answer
        .head
        .lines()
        .find_map(|line| line.strip_prefix("x-forebay-endpoint: "));
    let endpoint = endpoint.and_then(|text| text.trim().parse().ok());
    Chat {
        ending,
        endpoint,
        head: answer.head,
    }
}

/// Clients that chat one after the other until they are told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<Chat>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(address: SocketAddr, clients: u32, tokens: u32) -> Self {
        let (stop, done) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<Chat>>>::default(),
        );
        let client = |n: u32| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            std::thread::spawn(move || {
                for round in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let chat = chat(
                        address,
                        &format!("client {n} asks for the {round}th time"),
                        tokens,
                    );
                    done.lock().expect("no client panics").push(chat);
                }
            })
        };
        let clients = (0..clients).map(client).collect();
        Self {
            stop,
            done,
            clients,
        }
    }

    /// How many chats have ended so far.
    pub(crate) fn count(&self) -> usize {
        self.done.lock().expect("no client panics").len()
    }

    /// How many chats `address` has served so far.
    pub(crate) fn served_by(&self, address: SocketAddr) -> usize {
        let done = self.done.lock().expect("no client panics");
        done.iter()
            .filter(|chat| chat.endpoint == Some(address))
            .count()
    }

    /// Waits until so many more chats have ended.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, chats: usize) {
        let before = self.count();
        wait_for("the load goes on", || {
            (self.count() >= before + chats).then_some(())
        });
    }

    /// Stops and gives every chat.
    pub(crate) fn end(self) -> Vec<Chat> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("no client panics");
        }
        std::mem::take(&mut self.done.lock().expect("no client panics"))
    }
}

/// The chats that failed although nothing had been streamed.
pub(crate) fn failed(chats: &[Chat]) -> Vec<&Chat> {
    chats
        .iter()
        .filter(|chat| matches!(chat.ending, Ending::Failed(_)))
        .collect()
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Names a test that cannot run here, for people and for `cargo xtask test`.
pub(crate) fn skip(name: &str, reason: &str) {
    println!("skipped: {name}: {reason}");
    if let Some(file) = std::env::var_os("FOREBAY_SKIPS") {
        let file = fs::OpenOptions::new().create(true).append(true).open(file);
        let mut file = file.expect("a file that can be written to");
        writeln!(file, "{name}: {reason}").expect("a file that can be written to");
    }
}
