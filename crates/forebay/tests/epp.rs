//! `forebay epp` behind a real Envoy, in front of simulated servers. How messages are answered is tested
//! in `crates/gateway/tests/epp.rs`; here is what Envoy makes of it.

#[path = "support/envoy.rs"]
mod envoy;
mod support;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{
    Answer, Ending, Load, MODEL, Program, exchange, failed, forebay, free_port, get, manifests,
    sim, skip, wait_for,
};

use envoy::{Cluster, Envoy, Setup};

const CHAT: &str = "POST /v1/chat/completions HTTP/1.1\r\n";

/// Where a picker listens.
#[derive(Clone, Copy)]
struct Ports {
    calls: u16,
    health: u16,
    admin: u16,
}

impl Ports {
    fn free() -> Self {
        Self {
            calls: free_port(1),
            health: free_port(1),
            admin: free_port(1),
        }
    }

    fn calls(self) -> SocketAddr {
        ([127, 0, 0, 1], self.calls).into()
    }

    fn admin(self) -> SocketAddr {
        ([127, 0, 0, 1], self.admin).into()
    }
}

/// Simulated servers with a picker.
struct Bed {
    folder: tempfile::TempDir,
    servers: Vec<SocketAddr>,
    sims: Vec<Option<Program>>,
    picker: Option<Program>,
    ports: Ports,
    tls: bool,
    /// Arguments of the test's own.
    more: &'static [&'static str],
}

impl Bed {
    fn start(count: u8, tls: bool) -> Self {
        Self::start_with(count, tls, &["--test-selection"])
    }

    fn start_with(count: u8, tls: bool, more: &'static [&'static str]) -> Self {
        let target = free_port(count);
        let address = |n| SocketAddr::from((Ipv4Addr::new(127, 0, 0, n), target));
        let servers: Vec<_> = (1..=count).map(address).collect();
        let sims = servers.iter().map(|at| Some(sim(*at, &[]))).collect();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text = manifests(1, &servers, "");
        std::fs::write(folder.path().join("pool.yaml"), text).expect("a writable folder");
        let mut bed = Self {
            folder,
            servers,
            sims,
            picker: None,
            ports: Ports::free(),
            tls,
            more,
        };
        bed.picker = Some(bed.start_picker(bed.ports));
        bed
    }

    fn start_picker(&self, ports: Ports) -> Program {
        let (calls, health) = (ports.calls.to_string(), ports.health.to_string());
        let picker = Program::start(
            forebay()
                .args(["epp", "--bind", "127.0.0.1", "--pool-name", "sims"])
                .args(["--grpc-port", &calls, "--grpc-health-port", &health])
                .args(["--metrics-port", &ports.admin.to_string()])
                .args(["--log", "error", "--seed", "1", "--lame-duck", "1500ms"])
                .arg(format!("--secure-serving={}", self.tls))
                .args(self.more)
                .arg("--config")
                .arg(self.folder.path())
                .stderr(Stdio::inherit()),
        );
        wait_for("the picker is ready", || get(ports.admin(), "/readyz").ok());
        wait_for("every server is scraped", || {
            let pools: Value =
                serde_json::from_str(&get(ports.admin(), "/debug/pools").ok()?).ok()?;
            let all = pools[0]["endpoints"].as_array()?;
            all.iter().all(|e| !e["running"].is_null()).then_some(())
        });
        picker
    }

    fn envoy(&self, program: &PathBuf, setup: &Setup) -> Envoy {
        self.envoy_of(program, setup, &[self.ports.calls()])
    }

    fn envoy_of(&self, program: &PathBuf, setup: &Setup, pickers: &[SocketAddr]) -> Envoy {
        let setup = Setup {
            tls: self.tls,
            ..setup.clone()
        };
        Envoy::start(program, &setup, &self.servers, pickers)
    }

    /// The last decision of the picker on a request with this id.
    fn decision(&self, id: &str) -> Value {
        wait_for("the decision is settled", || {
            let all = get(self.ports.admin(), &format!("/debug/decisions?id={id}")).ok()?;
            let all: Value = serde_json::from_str(&all).ok()?;
            let first = all.as_array().and_then(|all| all.first()).cloned();
            first.filter(|decision| decision["end"] == "complete")
        })
    }
}

fn body(stream: bool, prompt: &str) -> String {
    json!({
        "model": MODEL, "stream": stream, "max_tokens": 4, "ignore_eos": true,
        "messages": [{"role": "user", "content": prompt}],
    })
    .to_string()
}

/// Asks for a chat that is to be served by these, in this order.
fn ask_at(envoy: &Envoy, order: &str, id: &str, body: &str) -> Answer {
    let line = format!("{CHAT}test-epp-endpoint-selection: {order}\r\nx-request-id: {id}\r\n");
    exchange(envoy.address, &line, body)
}

fn field<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    let prefix = format!("{name}: ");
    let mut lines = answer.head.lines();
    lines.find_map(|line| line.strip_prefix(&prefix))
}

/// Runs a test with Envoy, or says why it cannot.
fn with_envoy(name: &str, test: impl FnOnce(&PathBuf)) {
    match envoy::program() {
        Ok(program) => test(&program),
        Err(reason) => skip(name, &reason),
    }
}

#[test]
fn chats_are_served_where_the_picker_says_in_every_set_up() {
    with_envoy("epp set-ups", |program| {
        let bed = Bed::start(2, true);
        let full = "FULL_DUPLEX_STREAMED";
        let set_ups = [
            (full, full, Cluster::OverrideHost),
            (full, "NONE", Cluster::OverrideHost),
            (full, full, Cluster::OriginalDestination),
            ("BUFFERED", "NONE", Cluster::OverrideHost),
            ("BUFFERED", "BUFFERED", Cluster::OriginalDestination),
            ("STREAMED", "STREAMED", Cluster::OverrideHost),
            ("NONE", "NONE", Cluster::OriginalDestination),
        ];
        for (request, response, cluster) in set_ups {
            let setup = Setup {
                request,
                response,
                cluster,
                ..Setup::default()
            };
            let envoy = bed.envoy(program, &setup);
            for (n, server) in bed.servers.iter().enumerate() {
                for stream in [false, true] {
                    let id = format!("{request}-{response}-{cluster:?}-{n}-{stream}");
                    let answer = ask_at(&envoy, &server.to_string(), &id, &body(stream, "hi"));
                    assert_eq!(answer.status, 200, "{id}: {answer:?}");
                    assert_eq!(answer.body.contains("data: [DONE]"), stream, "{id}");
                    let served = field(&answer, "x-conformance-test-served-endpoint");
                    assert_eq!(served, Some(&*server.to_string()), "{id}: {}", answer.head);
                    let decision = bed.decision(&id);
                    assert_eq!(decision["status"], 200, "{decision}");
                    assert_eq!(
                        decision["tries"][0]["endpoint"],
                        server.to_string(),
                        "{decision}"
                    );
                }
            }
        }
    });
}

#[test]
fn an_original_destination_gets_one_address_where_it_is_asked_for() {
    with_envoy("epp original destination", |program| {
        let bed = Bed::start_with(2, true, &["--endpoints-max", "1"]);
        let setup = Setup {
            cluster: Cluster::OriginalDestination,
            ..Setup::default()
        };
        let envoy = bed.envoy(program, &setup);
        for n in 0..4 {
            let answer = exchange(envoy.address, CHAT, &body(false, &n.to_string()));
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    });
}

#[test]
fn a_megabyte_of_prompt_arrives_whole() {
    with_envoy("epp long prompts", |program| {
        let bed = Bed::start(2, true);
        let prompt = "0123456789abcdef ".repeat(62_000);
        for request in ["FULL_DUPLEX_STREAMED", "BUFFERED", "STREAMED"] {
            let setup = Setup {
                request,
                response: "NONE",
                ..Setup::default()
            };
            let envoy = bed.envoy(program, &setup);
            let id = format!("long-{request}");
            let answer = ask_at(
                &envoy,
                &bed.servers[1].to_string(),
                &id,
                &body(false, &prompt),
            );
            // Longer than the context of the model: the server has read it all to say so.
            assert_eq!(answer.status, 400, "{request}: {answer:?}");
            assert!(
                answer.body.contains("context"),
                "{request}: {}",
                answer.body
            );
            let read = bed.decision(&id)["status"].clone();
            assert_eq!(read, 400, "{request}");
        }
    });
}

#[test]
fn thousands_of_streams_at_once_are_served() {
    with_envoy("epp streams", |program| {
        const STREAMS: usize = 2_000;
        let bed = Bed::start(2, false);
        let envoy = bed.envoy(program, &Setup::default());
        let text = body(true, "all together now");
        let head = format!(
            "{CHAT}host: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            text.len()
        );
        let mut open: Vec<TcpStream> = Vec::new();
        for _ in 0..STREAMS {
            let mut stream = TcpStream::connect(envoy.address).expect("Envoy listens");
            // All but the last byte, so that all of them are under way at once.
            let (last, most) = text.as_bytes().split_last().expect("not empty");
            stream.write_all(head.as_bytes()).expect("open");
            stream.write_all(most).expect("open");
            assert_eq!(*last, b'}');
            open.push(stream);
        }
        for stream in &mut open {
            stream.write_all(b"}").expect("open");
        }
        for (done, mut stream) in open.into_iter().enumerate() {
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            let whole = text.starts_with("HTTP/1.1 200") && text.contains("data: [DONE]");
            assert!(whole, "after {done}: {text}");
        }
        let metrics = get(bed.ports.admin(), "/metrics").expect("metrics");
        assert!(metrics.contains("forebay_connections"), "{metrics}");
    });
}

#[test]
fn a_retry_of_envoy_walks_the_list() {
    with_envoy("epp fallback", |program| {
        let mut bed = Bed::start(2, true);
        let envoy = bed.envoy(program, &Setup::default());
        bed.sims[0] = None;
        let order = format!("{},{}", bed.servers[0], bed.servers[1]);
        let answer = ask_at(&envoy, &order, "walked", &body(false, "hi"));
        assert_eq!(answer.status, 200, "{answer:?}");
        let served = field(&answer, "x-conformance-test-served-endpoint");
        assert_eq!(served, Some(&*bed.servers[1].to_string()));
        let decision = bed.decision("walked");
        assert_eq!(decision["tries"][0]["failure"], "passed_over", "{decision}");
        assert_eq!(decision["tries"][1]["endpoint"], bed.servers[1].to_string());
    });
}

#[test]
fn the_subset_that_envoy_hints_at_is_kept() {
    with_envoy("epp subset", |program| {
        let bed = Bed::start(2, true);
        let only = bed.servers[1];
        for hint in [format!("[\"{only}\"]"), format!("\"{only}\"")] {
            let setup = Setup {
                subset: Some(hint.clone()),
                ..Setup::default()
            };
            let envoy = bed.envoy(program, &setup);
            for n in 0..4 {
                let answer = exchange(envoy.address, CHAT, &body(false, &n.to_string()));
                let served = field(&answer, "x-conformance-test-served-endpoint");
                assert_eq!(served, Some(&*only.to_string()), "{hint}: {answer:?}");
            }
        }
    });
}

#[test]
fn refusals_reach_the_client_with_their_reason() {
    with_envoy("epp refusals", |program| {
        let bed = Bed::start(1, true);
        let envoy = bed.envoy(program, &Setup::default());
        let other = body(false, "hi").replace(MODEL, "other");
        for (body, status, reason) in [("{", 400, "invalid_json"), (&other, 404, "model_not_found")]
        {
            let answer = exchange(envoy.address, CHAT, body);
            assert_eq!(answer.status, status, "{answer:?}");
            assert_eq!(field(&answer, "x-forebay-reason"), Some(reason));
        }
        let answer = ask_at(&envoy, "127.0.0.9:1", "nowhere", &body(false, "hi"));
        assert_eq!(answer.status, 503, "{answer:?}");
        let dropped = field(&answer, "x-llm-d-request-dropped-reason");
        assert_eq!(dropped, Some("rejected-no-endpoints"));
    });
}

/// Of a body that it has shown Envoy keeps nothing in the mode FULL_DUPLEX_STREAMED, so that it cannot go
/// on without an answer, whatever it is told.
fn failing_open() -> Setup {
    Setup {
        request: "BUFFERED",
        response: "NONE",
        fail_open: true,
        ..Setup::default()
    }
}

#[test]
fn without_a_picker_the_proxy_fails_as_it_is_told_to() {
    with_envoy("epp failure modes", |program| {
        let mut bed = Bed::start(2, false);
        let close = bed.envoy(program, &Setup::default());
        let open = bed.envoy(program, &failing_open());
        let ask = |envoy: &Envoy| exchange(envoy.address, CHAT, &body(false, "hi")).status;
        assert_eq!((ask(&close), ask(&open)), (200, 200));
        bed.picker.take().expect("started").kill();
        let (closed, opened) = (ask(&close), ask(&open));
        assert!(closed >= 500, "{closed}");
        assert_eq!(opened, 200);
        let _again = bed.start_picker(bed.ports);
        wait_for("it is asked again", || (ask(&close) == 200).then_some(()));
    });
}

#[track_caller]
fn assert_whole(load: Load) {
    let chats = load.end();
    let broken = chats.iter().filter(|chat| chat.ending != Ending::Complete);
    assert_eq!(
        broken.count(),
        0,
        "of {}: {:?}",
        chats.len(),
        failed(&chats).first()
    );
}

#[test]
fn a_picker_that_is_alone_is_replaced_under_load_without_a_failed_request() {
    with_envoy("epp restart", |program| {
        let mut bed = Bed::start(2, false);
        let envoy = bed.envoy(program, &failing_open());
        let load = Load::start(envoy.address, 8, 8);
        load.wait_for_more(40);
        for _ in 0..2 {
            let mut old = bed.picker.take().expect("started");
            old.signal(Signal::TERM);
            wait_for("it has ended", || old.ended());
            load.wait_for_more(40);
            bed.picker = Some(bed.start_picker(bed.ports));
            load.wait_for_more(40);
        }
        assert_whole(load);
    });
}

#[test]
fn two_pickers_are_replaced_in_turn_under_load_without_a_failed_request() {
    with_envoy("epp rollout", |program| {
        let mut bed = Bed::start(2, true);
        let other_ports = Ports::free();
        let mut first = bed.picker.take().expect("started");
        let mut second = bed.start_picker(other_ports);
        let pickers = [bed.ports.calls(), other_ports.calls()];
        let envoy = bed.envoy_of(program, &Setup::default(), &pickers);
        let load = Load::start(envoy.address, 8, 8);
        load.wait_for_more(40);
        let replace = |picker: &mut Program, ports: Ports| {
            picker.signal(Signal::TERM);
            wait_for("it has ended", || picker.ended());
            load.wait_for_more(40);
            *picker = bed.start_picker(ports);
            load.wait_for_more(40);
        };
        replace(&mut first, bed.ports);
        replace(&mut second, other_ports);
        assert_whole(load);
    });
}

/// The option is read off the picker's own sockets, on connections that Envoy has made.
#[test]
fn the_picker_sends_to_envoy_at_once() {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    with_envoy("epp nodelay", |program| {
        let bed = Bed::start(1, false);
        let envoy = bed.envoy(program, &Setup::default());
        assert_eq!(
            exchange(envoy.address, CHAT, &body(false, "hi")).status,
            200
        );
        let picker = bed.picker.as_ref().expect("started");
        let pid = i32::try_from(picker.id()).ok().and_then(Pid::from_raw);
        let pid = pid.expect("a process id");
        let process = pidfd_open(pid, PidfdFlags::empty()).expect("our own child");
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", picker.id()));
        let mut found = 0;
        for entry in descriptors.expect("our own child").flatten() {
            let name = entry.file_name();
            let number = name.to_string_lossy().parse().expect("a number");
            let copy = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
                Ok(copy) => copy,
                // Closed meanwhile, or not to be looked at.
                Err(rustix::io::Errno::BADF) => continue,
                Err(error) => {
                    return skip(
                        "epp nodelay",
                        &format!("sockets of a child are closed to us: {error}"),
                    );
                }
            };
            let stream = TcpStream::from(copy);
            let local = stream.local_addr().map(|address| address.port());
            if local.is_ok_and(|port| port == bed.ports.calls) && stream.peer_addr().is_ok() {
                found += 1;
                assert!(stream.nodelay().expect("an option"));
            }
        }
        assert!(found > 0, "Envoy has a connection to the picker");
    });
}
