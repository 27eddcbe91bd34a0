//! `cargo xtask bench scale`: the gateway in front of a large cluster's API server. How long until
//! it serves, what it holds, and what one pod's change costs.
//!
//! The API server, etcd and the controllers are real; nodes and pods are objects only, so nothing is
//! asked of model servers here: scraping is as good as off. CPU is that of the gateway's process.

use super::procfs::{self, Usage};
use crate::bed::Bed;
use crate::shell;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The bed's name.
const BED: &str = "scale";
/// Nodes in name that the pods lie on; a node takes 110 pods at most only where a kubelet says so.
const NODES: usize = 6;
/// Namespaces that everything is spread over.
const NAMESPACES: usize = 10;
/// kubectl processes that create objects at a time: each keeps itself to 50 requests a second.
const WRITERS: usize = 6;
/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(300);

/// How large, and how often.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask bench scale                       5,000 pods in 500 pools, 2,000 routes\n  \
    cargo xtask bench scale --pods 500 --pools 50 --routes 200 --keep\n\n\
    Needs root and a built Kubernetes (`cargo xtask cluster build --control-plane-only`).")]
pub(crate) struct Args {
    /// Pods in all
    #[arg(long, default_value_t = 5_000, value_name = "N")]
    pods: usize,
    /// Pools that they are spread over
    #[arg(long, default_value_t = 500, value_name = "N")]
    pools: usize,
    /// HTTPRoutes, each to one pool
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    routes: usize,
    /// Changes of one pod that are measured
    #[arg(long, default_value_t = 200, value_name = "N")]
    changes: usize,
    /// Leave the bed up, to look around or to run again without making the objects anew
    #[arg(long)]
    keep: bool,
}

/// Brings everything up, measures, prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.pools == 0 || args.pods < args.pools {
        bail!("--pools must be at least 1 and at most --pods");
    }
    shell::run(shell::cargo().args(["build", "--release", "--package", "forebay"]))?;
    let program = shell::target_dir()?.join("release/forebay");
    let nodes = NODES.to_string();
    let up = ["--control-plane-only", "--nodes", &nodes];
    let bed = Bed::ensure(BED, &up, args.keep)?;
    populate(&bed, args)?;
    let mut gateway = Gateway::start(&program, &bed)?;
    measure(&bed, args, &mut gateway)
}

/// Makes the objects that are not there yet.
fn populate(bed: &Bed, args: &Args) -> Result<()> {
    bed.install_definitions(&crate::conformance::gateway_api()?.join("config/crd/standard"))?;
    let started = Instant::now();
    let spaces = (0..NAMESPACES).map(
        |n| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(n)}}),
    );
    create(bed, spaces.chain(fixed()).collect())?;
    wait_for_accounts(bed)?;
    create(bed, (0..args.pools).map(pool).collect())?;
    create(
        bed,
        (0..args.routes).map(|n| route(n, args.pools)).collect(),
    )?;
    create(bed, (0..args.pods).map(|n| pod(n, args.pools)).collect())?;
    println!(
        "objects made in {:.0} s; waiting for pods to be Ready",
        started.elapsed().as_secs_f64()
    );
    eventually("every pod is Running", || {
        let field = "--field-selector=status.phase=Running";
        let running = bed.kubectl(&["get", "pods", "-A", field, "-o", "name", "--chunk-size=0"])?;
        Ok(running.lines().count() >= args.pods)
    })
}

fn namespace(n: usize) -> String {
    format!("scale-{}", n % NAMESPACES)
}

/// The class and the Gateway.
fn fixed() -> impl Iterator<Item = Value> {
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": "forebay"},
        "spec": {"controllerName": "forebay.dev/gateway"},
    });
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "edge", "namespace": namespace(0)},
        "spec": {
            "gatewayClassName": "forebay",
            "listeners": [{
                "name": "http",
                "port": PORT,
                "protocol": "HTTP",
                "allowedRoutes": {"namespaces": {"from": "All"}},
            }],
        },
    });
    [class, gateway].into_iter()
}

/// The port that the Gateway listens on.
const PORT: u16 = 18_080;

fn pool(n: usize) -> Value {
    json!({
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": format!("pool-{n}"), "namespace": namespace(n)},
        "spec": {
            "selector": {"matchLabels": {"pool": format!("pool-{n}")}},
            "targetPorts": [{"number": 8000}],
        },
    })
}

fn route(n: usize, pools: usize) -> Value {
    let pool = n % pools;
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": format!("route-{n}"), "namespace": namespace(pool)},
        "spec": {
            "parentRefs": [{"name": "edge", "namespace": namespace(0)}],
            "hostnames": [format!("r{n}.example.com")],
            "rules": [{
                "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                "backendRefs": [{
                    "group": "inference.networking.k8s.io",
                    "kind": "InferencePool",
                    "name": format!("pool-{pool}"),
                }],
            }],
        },
    })
}

fn pod(n: usize, pools: usize) -> Value {
    let pool = n % pools;
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("server-{n}"),
            "namespace": namespace(pool),
            "labels": {"pool": format!("pool-{pool}"), "app": "vllm"},
        },
        "spec": {
            "nodeName": format!("c1-n{}", n % NODES + 1),
            "containers": [{"name": "vllm", "image": "in-name-only"}],
        },
    })
}

/// Creates what is not there, by several kubectl processes.
fn create(bed: &Bed, objects: Vec<Value>) -> Result<()> {
    let parts: Vec<Vec<Value>> = (0..WRITERS)
        .map(|w| objects.iter().skip(w).step_by(WRITERS).cloned().collect())
        .collect();
    std::thread::scope(|scope| {
        let writers: Vec<_> = parts
            .into_iter()
            .filter(|part: &Vec<Value>| !part.is_empty())
            .map(|part| {
                scope.spawn(move || {
                    let list = json!({"apiVersion": "v1", "kind": "List", "items": part});
                    match bed.feed(&["create", "-f", "-"], list.to_string().as_bytes()) {
                        // Those of an earlier run that was kept.
                        Err(error) if only_exist_already(&error) => Ok(()),
                        done => done,
                    }
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| {
            let done = writer.join();
            done.unwrap_or_else(|_| bail!("a writer panicked"))
        })
    })
}

fn only_exist_already(error: &anyhow::Error) -> bool {
    let text = error.to_string();
    let mut faults = text
        .lines()
        .filter(|line| line.contains("Error from server"));
    text.contains("AlreadyExists") && faults.all(|line| line.contains("AlreadyExists"))
}

/// Pods are refused until their namespace has its default account.
fn wait_for_accounts(bed: &Bed) -> Result<()> {
    eventually("namespaces have their accounts", || {
        let names = bed.kubectl(&["get", "serviceaccounts", "-A", "-o", "name"])?;
        Ok(names.lines().count() >= NAMESPACES)
    })
}

fn measure(bed: &Bed, args: &Args, gateway: &mut Gateway) -> Result<()> {
    let ready = gateway.wait_ready()?;
    let settled = gateway.usage();
    let served = gateway.get("/debug/pools")?;
    let endpoints = served.matches("\"address\"").count();
    println!(
        "\n{} pods, {} pools, {} HTTPRoutes; {} endpoints served",
        args.pods, args.pools, args.routes, endpoints
    );
    if endpoints < args.pods {
        bail!("only {endpoints} of {} pods are endpoints", args.pods);
    }
    println!(
        "start to ready: {:.2} s (promise: 10 s after the lists have arrived), {:.2} CPU s",
        ready.as_secs_f64(),
        settled.cpu_ns as f64 / 1e9
    );
    println!(
        "memory: {:.0} MiB resident, {:.0} MiB at most",
        settled.rss_kib as f64 / 1024.0,
        settled.rss_peak_kib as f64 / 1024.0
    );
    let idle = gateway.cpu_while(|| {
        std::thread::sleep(IDLE_WINDOW);
        Ok(())
    })?;
    let idle_per_s = idle.cpu_ns as f64 / idle.seconds;
    let mut ready = true;
    let busy = gateway.cpu_while(|| {
        for n in 0..args.changes {
            ready = n % 2 == 1;
            set_ready(bed, 0, ready)?;
        }
        Ok(())
    })?;
    let own = busy.cpu_ns as f64 - idle_per_s * busy.seconds;
    println!(
        "one pod's change: {:.2} ms CPU, events received and statuses considered (promise: 1 ms); idle {:.2} ms CPU a second",
        own / args.changes as f64 / 1e6,
        idle_per_s / 1e6
    );
    let delays = gateway.delays(bed, !ready)?;
    println!("{delays}");
    Ok(())
}

/// How long the idle process is watched.
const IDLE_WINDOW: Duration = Duration::from_secs(10);
/// Changes whose way into effect is watched.
const WATCHED: usize = 20;

/// Writes the readiness of a pod as its kubelet would.
fn set_ready(bed: &Bed, pod: usize, ready: bool) -> Result<()> {
    let status = if ready { "True" } else { "False" };
    let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
    let (space, name) = (namespace(pod), format!("server-{pod}"));
    let arguments = ["patch", "pod", &name, "-n", &space, "--subresource=status"];
    let patch = ["--type=strategic", "-p", &patch.to_string()];
    bed.kubectl(&[&arguments[..], &patch].concat()).map(drop)
}

/// CPU time over a while.
struct Window {
    cpu_ns: u64,
    seconds: f64,
}

/// The gateway under test. Ended when dropped.
struct Gateway {
    process: Child,
    admin: SocketAddr,
    started: Instant,
}

impl Gateway {
    fn start(program: &Path, bed: &Bed) -> Result<Self> {
        let admin = free_address()?;
        let process = Command::new(program)
            .args(["gateway", "--kubernetes", "--gateway-service-type", "None"])
            .args(["--gateway-address", "127.0.0.1", "--bind", "127.0.0.1"])
            .args(["--namespace", "default", "--scrape-interval", "1h"])
            .args(["--access-log", "off", "--log", "warn"])
            .arg("--kubeconfig")
            .arg(bed.kubeconfig())
            .args(["--admin", &admin.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .context("the gateway does not start")?;
        Ok(Self {
            process,
            admin,
            started: Instant::now(),
        })
    }

    /// Time from its start until it was ready.
    fn wait_ready(&mut self) -> Result<Duration> {
        let started = self.started;
        eventually("the gateway is ready", || {
            if let Some(status) = self.process.try_wait()? {
                bail!("the gateway ended with {status}");
            }
            Ok(self
                .get("/readyz")
                .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")))
        })?;
        Ok(started.elapsed())
    }

    fn usage(&self) -> Usage {
        procfs::usage(&[self.process.id()])
    }

    fn cpu_while(&self, work: impl FnOnce() -> Result<()>) -> Result<Window> {
        let (started, before) = (Instant::now(), self.usage());
        work()?;
        Ok(Window {
            cpu_ns: self.usage().cpu_ns - before.cpu_ns,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Changes a pod to and fro, and sees how long after kubectl's end each change was in effect.
    fn delays(&self, bed: &Bed, first: bool) -> Result<String> {
        let mut late = Vec::new();
        for n in 0..WATCHED {
            let ready = (n % 2 == 0) == first;
            set_ready(bed, 0, ready)?;
            let written = Instant::now();
            let mut looks = 0;
            eventually("the change is in effect", || {
                looks += 1;
                self.first_pod_is(ready)
            })?;
            if looks > 1 {
                late.push(written.elapsed());
            }
        }
        let longest = late.iter().max().copied().unwrap_or_default();
        Ok(format!(
            "in effect when kubectl returned: {} of {WATCHED}; the latest {:.0} ms after it (promise: 100 ms)",
            WATCHED - late.len(),
            longest.as_secs_f64() * 1e3
        ))
    }

    fn first_pod_is(&self, ready: bool) -> Result<bool> {
        let answer = self.get("/debug/pools?pool=pool-0")?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let pools: Value = serde_json::from_str(body)?;
        let pools = pools.as_array().context("/debug/pools is no list")?;
        let endpoints = pools.iter().flat_map(|pool| pool["endpoints"].as_array());
        let found = endpoints.flatten().find(|e| e["pod"] == json!("server-0"));
        Ok(found.is_some_and(|endpoint| endpoint["ready"] == json!(ready)))
    }

    /// One answer of the admin server, head and all.
    fn get(&self, path: &str) -> Result<String> {
        let mut connection = TcpStream::connect_timeout(&self.admin, Duration::from_secs(5))?;
        connection.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            connection,
            "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It has ended already if this fails.
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// Waits until `holds`, looking often.
fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !holds()? {
        if started.elapsed() > PATIENCE {
            bail!("gave up after {PATIENCE:?} waiting until {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
