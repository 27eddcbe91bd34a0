//! What watching costs: the scraper's share of a core, and the microseconds of one settled exchange.
//!
//! `cargo bench -p forebay-gateway --bench observe`. Only the scraper's own thread is counted, from
//! the kernel's accounting; the stand-in endpoints run in another. Promises: 100 endpoints every
//! 50 ms with a page of 50 KB take at most 0.15 core; a settled exchange at most 2 µs.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use forebay_dialect::{Api, TokenCounts, Usage};
use forebay_gateway::pools::Live;
use forebay_gateway::record::{Ending, Record, Try};
use forebay_gateway::telemetry::{Format, Settings, Telemetry};
use forebay_gateway::{clock, signals};
use forebay_model::route::{Entry, Matcher, PathMatch, RouteTable, Rule, Speaks, Target};
use forebay_model::route::{Timeouts, WeightedTarget};
use forebay_model::snapshot::{Listener, Port};
use forebay_model::{
    AppProtocol, Endpoint, ObjectName, PickerConfig, Pool, Role, Snapshot, Topology,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ENDPOINTS: usize = 100;
const SECONDS: u64 = 10;
const SETTLED: u32 = 200_000;

fn main() {
    scraping();
    settling("no access log", Format::Off);
    settling("JSON access log", Format::Json);
}

fn scraping() {
    let live = Arc::new(ArcSwap::from_pointee(configured(&endpoints())));
    let settings = Settings {
        llm_d_names: false,
        access_log: Format::Off,
        otlp: None,
    };
    let telemetry = Arc::new(Telemetry::new(&settings).expect("no threads needed"));
    let scraper = signals::spawn(
        live.clone(),
        telemetry.clone(),
        signals::Settings::default(),
    );
    let scraper = scraper.expect("a thread");
    thread::sleep(Duration::from_secs(1));
    let scrapes = || counter(&telemetry.render_metrics(&live.load(), clock::now()));
    let (cpu, before, started) = (cpu_ns("scraper"), scrapes(), Instant::now());
    thread::sleep(Duration::from_secs(SECONDS));
    let (cpu, count) = (cpu_ns("scraper") - cpu, scrapes() - before);
    let (wall_ns, page) = (started.elapsed().as_nanos() as f64, page().len());
    println!(
        "scrape: {ENDPOINTS} endpoints, {page} bytes, {:.0} scrapes/s: {:.3} core, {:.1} µs each",
        count * 1e9 / wall_ns,
        cpu as f64 / wall_ns,
        cpu as f64 / 1e3 / count,
    );
    drop(scraper);
}

fn counter(page: &str) -> f64 {
    let line = page
        .lines()
        .find_map(|l| l.strip_prefix("forebay_scrapes_total "));
    line.and_then(|n| n.parse().ok()).expect("the page has it")
}

/// Nanoseconds on a CPU of the thread with this name.
fn cpu_ns(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux");
    let paths = tasks.map(|task| task.expect("readable").path());
    let mut of_name =
        paths.filter(|p| fs::read_to_string(p.join("comm")).is_ok_and(|c| c.trim() == name));
    let task = of_name.next().expect("the thread runs");
    let stat = fs::read_to_string(task.join("schedstat")).expect("scheduler statistics");
    stat.split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .expect("nanoseconds")
}

/// A page like a busy vLLM's: what matters within much that does not.
fn page() -> String {
    let mut page = String::from("# TYPE python_gc_objects_collected_total counter\n");
    for bucket in 0..500 {
        page += &format!(
            "vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"{bucket}\",\
             model_name=\"llama\"}} {bucket}.0\n"
        );
    }
    page += "vllm:num_requests_running{engine=\"0\",model_name=\"llama\"} 5.0\n\
             vllm:num_requests_waiting{engine=\"0\",model_name=\"llama\"} 1.0\n\
             vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"llama\"} 0.41\n";
    while page.len() < 50_000 {
        page += "http_request_duration_seconds_bucket{handler=\"/v1/completions\",le=\"1\"} 7.0\n";
    }
    page
}

fn endpoints() -> Vec<SocketAddr> {
    let sockets: Vec<_> = (0..ENDPOINTS)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("loopback"))
        .collect();
    let addresses = sockets
        .iter()
        .map(|s| s.local_addr().expect("bound"))
        .collect();
    let answer = page();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
        answer.len()
    );
    let answer: Arc<str> = (head + &answer).into();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            for socket in sockets {
                tokio::spawn(endpoint(socket, Arc::clone(&answer)));
            }
            std::future::pending::<()>().await;
        });
    });
    addresses
}

async fn endpoint(socket: std::net::TcpListener, answer: Arc<str>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = tokio::net::TcpListener::from_std(socket)?;
    loop {
        let (mut stream, _) = socket.accept().await?;
        let mut buffer = [0; 1024];
        while stream.read(&mut buffer).await? > 0 {
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}

fn configured(endpoints: &[SocketAddr]) -> Live {
    let endpoint = |address: &SocketAddr| Endpoint {
        address: *address,
        pod: "pod".into(),
        labels: Arc::default(),
        engine: None,
        role: Role::Both,
        topology: Topology::default(),
        ready: true,
    };
    let pool = Arc::new(Pool {
        name: ObjectName::new("default", "chat"),
        endpoints: endpoints.iter().map(endpoint).collect(),
        protocol: AppProtocol::Http,
        picker: PickerConfig::default(),
        objectives: BTreeMap::new(),
        external: None,
        rewrites: Vec::new(),
    });
    let target = Target::Pool(pool.name.clone());
    let rule = Rule {
        route: ObjectName::new("default", "route"),
        speaks: Speaks::Http,
        index: 0,
        filters: Vec::new(),
        targets: vec![WeightedTarget {
            weight: 1,
            target,
            filters: Vec::new(),
        }],
        timeouts: Timeouts::default(),
        retry: None,
    };
    let path = PathMatch::Prefix("".into());
    let matcher = Matcher {
        path,
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
    };
    let listener = Listener {
        gateway: ObjectName::new("default", "edge"),
        name: "http".into(),
        hostname: None,
        refused: false,
        certificates: Vec::new(),
        clients: None,
        routes: Arc::new(RouteTable::build(vec![(
            None,
            Entry {
                matcher,
                rule: Arc::new(rule),
            },
        )])),
        tls_routes: None,
    };
    let snapshot = Snapshot {
        generation: 1,
        ports: BTreeMap::from([(
            80,
            Port {
                number: 80,
                tls: false,
                listeners: vec![listener],
            },
        )]),
        pools: [(pool.name.clone(), pool)].into(),
        services: HashMap::new(),
        problems: Vec::new(),
    };
    Live::empty().next(Arc::new(snapshot), clock::now())
}

fn settling(what: &str, access_log: Format) {
    let settings = Settings {
        access_log,
        llm_d_names: false,
        otlp: None,
    };
    let telemetry = Telemetry::with_log_sink(&settings, Box::new(io::sink())).expect("a thread");
    let telemetry = Arc::new(telemetry);
    let desk = telemetry.desk();
    let mut settled = Duration::ZERO;
    // In rounds, so that the log's writer keeps up as it does in front of a real load.
    for round in 0..SETTLED / 1_000 {
        let records: Vec<Box<Record>> = (0..1_000)
            .map(|n| Box::new(record(round * 1_000 + n)))
            .collect();
        let started = Instant::now();
        for record in records {
            desk.settle(record);
        }
        settled += started.elapsed();
        telemetry.flush(Duration::from_secs(1));
    }
    println!(
        "settle, {what}: {:.2} µs",
        settled.as_secs_f64() * 1e6 / f64::from(SETTLED)
    );
}

fn record(n: u32) -> Record {
    let started = clock::now();
    let after = |ms| started.plus(Duration::from_millis(ms));
    Record {
        id: "0123456789abcdef".into(),
        started,
        started_at: SystemTime::now(),
        finished: after(900),
        client: ([192, 0, 2, 9], 40_000).into(),
        method: http::Method::POST,
        path: "/v1/chat/completions".into(),
        host: "llm.example.com".into(),
        traceparent: None,
        trace: None,
        gateway: Some(ObjectName::new("default", "edge").into()),
        route: Some(ObjectName::new("default", "chat-route").into()),
        api: Api::ChatCompletions,
        model: Some(format!("model-{}", n % 10).into()),
        model_served: None,
        stream: true,
        http2: false,
        grpc: false,
        grpc_status: None,
        pool: Some(ObjectName::new("default", "chat").into()),
        priority: 0,
        tries: [Try {
            endpoint: ([10, 0, 0, 1], 8000).into(),
            failure: None,
        }]
        .into_iter()
        .collect(),
        report: None,
        stay: None,
        consultation: None,
        pick_us: Some(12),
        status: 200,
        reason: None,
        bytes_in: 2_048,
        bytes_out: 9_000,
        first_byte: Some(after(40)),
        usage: Usage {
            tokens: TokenCounts {
                prompt_tokens: Some(512),
                completion_tokens: Some(128),
                total_tokens: Some(640),
                cached_tokens: Some(256),
            },
            first_token_at: Some(after(50)),
            last_token_at: Some(after(880)),
            content_events: 128,
            saw_done: true,
            saw_error: false,
            lines_cut: 0,
        },
        end: Ending::Complete,
    }
}
