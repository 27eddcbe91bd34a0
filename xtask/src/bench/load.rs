//! The load generator of the proxy benchmark: raw sockets, one thread, little else.
//!
//! It measures one peer for one window: whole-answer and first-byte latency at the client, and
//! what the proxy's processes used meanwhile. CPU is read by this same process at both ends of
//! the window, so that numerator and denominator cover the same time. In a closed loop each
//! connection sends its next request when the last answer is complete; with `--rate` requests are
//! due on a fixed grid and latency counts from when a request was due.

use super::bodies::{self, Body};
use super::http1::{Framing, HEAD_BYTES_MAX, HEADERS_MAX};
use super::procfs::{self, Usage};
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Load before the window opens: connections, caches and branch predictors settle.
const WARM_UP: Duration = Duration::from_millis(500);

/// An answer later than this is an error; the histogram's upper bound.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// What to load, how, and whose CPU to count.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Address to load; connections take turns when there are several
    #[arg(long, required = true)]
    pub(super) target: Vec<SocketAddr>,
    /// Process whose tree is the proxy
    #[arg(long)]
    pub(super) proxy_pid: Vec<u32>,
    /// Process whose tree is an upstream
    #[arg(long)]
    pub(super) mock_pid: Vec<u32>,
    /// Bytes of a request body
    #[arg(long, default_value_t = 2_048)]
    pub(super) body_bytes: usize,
    /// Ask for server-sent events
    #[arg(long)]
    pub(super) stream: bool,
    /// Connections
    #[arg(long, default_value_t = 16)]
    pub(super) connections: usize,
    /// Requests per second over all connections; closed loop without it
    #[arg(long)]
    pub(super) rate: Option<u32>,
    /// Seconds to measure
    #[arg(long, default_value_t = 2.0)]
    pub(super) seconds: f64,
    /// Starting number of the requests, so that no two runs send the same request
    #[arg(long, default_value_t = 0)]
    pub(super) first_number: u64,
}

/// What one window showed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Sample {
    /// Length of the window.
    pub(super) seconds: f64,
    /// Answers completed in the window.
    pub(super) requests: u64,
    /// Server-sent events that arrived in the window.
    pub(super) events: u64,
    /// Requests that failed, warm-up included, and what the first failure said.
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    /// Whole-answer latency.
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// Latency of the first body byte.
    pub(super) first_byte_p50_us: f64,
    pub(super) first_byte_p99_us: f64,
    /// CPU time in the window.
    pub(super) proxy_cpu_us: f64,
    /// Which part of it was spent in the kernel, between 0 and 1; nothing when none was spent.
    pub(super) proxy_kernel_share: Option<f64>,
    pub(super) mock_cpu_us: f64,
    /// Cores that were busy with something that is neither proxy, mock nor load: noise.
    pub(super) foreign_cores: f64,
    pub(super) rss_kib: u64,
    pub(super) rss_peak_kib: u64,
    /// Context switches of the proxy in the window.
    pub(super) switches: u64,
}

/// What the connections write to while the window is open.
struct Tally {
    recording: Cell<bool>,
    next_number: Cell<u64>,
    requests: Cell<u64>,
    newlines: Cell<u64>,
    errors: Cell<u64>,
    first_error: RefCell<Option<String>>,
    whole: RefCell<Histogram<u64>>,
    first_byte: RefCell<Histogram<u64>>,
}

/// Measures once and prints the sample as one line of JSON.
pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let sample = runtime.block_on(tokio::task::LocalSet::new().run_until(measure(args)))?;
    println!("{}", serde_json::to_string(&sample)?);
    Ok(())
}

async fn measure(args: &Args) -> Result<Sample> {
    let bodies: Rc<[Ready]> = bodies::set(args.body_bytes, args.stream)
        .into_iter()
        .map(Ready::new)
        .collect();
    let tally = Rc::new(Tally::new(args.first_number)?);
    let grid_start = Instant::now();
    let tasks: Vec<_> = (0..args.connections)
        .map(|i| {
            let line = Line {
                target: args.target[i % args.target.len()],
                schedule: args
                    .rate
                    .map(|rate| Schedule::new(grid_start, rate, i, args.connections)),
                bodies: Rc::clone(&bodies),
                tally: Rc::clone(&tally),
            };
            tokio::task::spawn_local(line.keep_asking())
        })
        .collect();

    tokio::time::sleep(WARM_UP).await;
    let trees = Trees::find(args);
    let before = trees.read();
    let opened = Instant::now();
    tally.recording.set(true);
    tokio::time::sleep(Duration::from_secs_f64(args.seconds)).await;
    tally.recording.set(false);
    let window = opened.elapsed();
    let after = trees.read();
    for task in tasks {
        task.abort();
    }
    Ok(tally.sample(window, &before, &after))
}

/// The processes whose use is counted.
struct Trees {
    proxy: Vec<u32>,
    mock: Vec<u32>,
}

/// One reading of all of them.
struct Reading {
    proxy: Usage,
    mock: Usage,
    own: Usage,
    machine_busy_ns: u64,
}

impl Trees {
    fn find(args: &Args) -> Self {
        let all = |roots: &[u32]| roots.iter().flat_map(|pid| procfs::tree(*pid)).collect();
        Self {
            proxy: all(&args.proxy_pid),
            mock: all(&args.mock_pid),
        }
    }

    fn read(&self) -> Reading {
        Reading {
            proxy: procfs::usage(&self.proxy),
            mock: procfs::usage(&self.mock),
            own: procfs::usage(&[std::process::id()]),
            machine_busy_ns: procfs::machine_busy_ns(),
        }
    }
}

impl Tally {
    fn new(first_number: u64) -> Result<Self> {
        let limit = u64::try_from(ANSWER_LIMIT.as_nanos()).context("the limit fits in 64 bits")?;
        let histogram = || Histogram::new_with_bounds(1_000, limit, 3).context("bad bounds");
        Ok(Self {
            recording: Cell::new(false),
            next_number: Cell::new(first_number),
            requests: Cell::new(0),
            newlines: Cell::new(0),
            errors: Cell::new(0),
            first_error: RefCell::new(None),
            whole: RefCell::new(histogram()?),
            first_byte: RefCell::new(histogram()?),
        })
    }

    fn take_number(&self) -> u64 {
        self.next_number.replace(self.next_number.get() + 1)
    }

    fn record(&self, first_byte: Duration, whole: Duration) {
        if self.recording.get() {
            let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            self.requests.set(self.requests.get() + 1);
            self.whole.borrow_mut().saturating_record(ns(whole));
            self.first_byte
                .borrow_mut()
                .saturating_record(ns(first_byte));
        }
    }

    fn record_error(&self, error: &anyhow::Error) {
        self.errors.set(self.errors.get() + 1);
        self.first_error
            .borrow_mut()
            .get_or_insert_with(|| format!("{error:#}"));
    }

    fn sample(&self, window: Duration, before: &Reading, after: &Reading) -> Sample {
        let us = |histogram: &RefCell<Histogram<u64>>, q: f64| {
            histogram.borrow().value_at_quantile(q) as f64 / 1e3
        };
        let cpu_ns =
            |of: fn(&Reading) -> &Usage| of(after).cpu_ns.saturating_sub(of(before).cpu_ns);
        let (proxy, mock, own) = (
            cpu_ns(|r| &r.proxy),
            cpu_ns(|r| &r.mock),
            cpu_ns(|r| &r.own),
        );
        let busy = after.machine_busy_ns.saturating_sub(before.machine_busy_ns);
        let foreign = busy.saturating_sub(proxy + mock + own);
        Sample {
            seconds: window.as_secs_f64(),
            requests: self.requests.get(),
            // An event of the mock is one line and one empty line; its JSON has no line break.
            events: self.newlines.get() / 2,
            errors: self.errors.get(),
            first_error: self.first_error.borrow().clone(),
            p50_us: us(&self.whole, 0.5),
            p99_us: us(&self.whole, 0.99),
            first_byte_p50_us: us(&self.first_byte, 0.5),
            first_byte_p99_us: us(&self.first_byte, 0.99),
            proxy_cpu_us: proxy as f64 / 1e3,
            proxy_kernel_share: kernel_share(&before.proxy, &after.proxy),
            mock_cpu_us: mock as f64 / 1e3,
            foreign_cores: foreign as f64 / 1e9 / window.as_secs_f64(),
            rss_kib: after.proxy.rss_kib,
            rss_peak_kib: after.proxy.rss_peak_kib,
            switches: after.proxy.switches.saturating_sub(before.proxy.switches),
        }
    }
}

fn kernel_share(before: &Usage, after: &Usage) -> Option<f64> {
    let kernel = after.kernel_ticks.saturating_sub(before.kernel_ticks);
    let all = kernel + after.user_ticks.saturating_sub(before.user_ticks);
    (all > 0).then(|| kernel as f64 / all as f64)
}

/// A request ready to be sent: head and body around the request's number.
pub(super) struct Ready {
    front: Vec<u8>,
    back: Vec<u8>,
}

impl Ready {
    pub(super) fn new(body: Body) -> Self {
        let (front, back) = body.parts();
        let mut head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench.local\r\nuser-agent: forebay-bench\r\n\
             accept: application/json\r\nauthorization: Bearer sk-bench\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        head.extend_from_slice(front);
        Self {
            front: head,
            back: back.to_vec(),
        }
    }

    pub(super) async fn send(&self, number: u64, stream: &mut TcpStream) -> Result<()> {
        let number = bodies::number(number);
        let mut slices = [
            IoSlice::new(&self.front),
            IoSlice::new(&number),
            IoSlice::new(&self.back),
        ];
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let sent = stream.write_vectored(left).await.context("cannot send")?;
            if sent == 0 {
                bail!("connection closed while sending");
            }
            IoSlice::advance_slices(&mut left, sent);
        }
        Ok(())
    }
}

/// When one connection's requests are due at a fixed rate.
struct Schedule {
    due: Instant,
    every: Duration,
}

impl Schedule {
    /// Connections share the rate and are spread evenly over one interval.
    fn new(start: Instant, rate_per_s: u32, index: usize, connections: usize) -> Self {
        let every = Duration::from_secs_f64(connections as f64 / f64::from(rate_per_s.max(1)));
        Self {
            due: start + every.mul_f64(index as f64 / connections as f64),
            every,
        }
    }

    async fn wait(&mut self) -> Instant {
        let due = self.due;
        self.due += self.every;
        tokio::time::sleep_until(due.into()).await;
        // The timer's own lateness (up to 1 ms) is not the peer's; a backlog is, and stays in.
        if due.elapsed() < Duration::from_millis(2) {
            Instant::now()
        } else {
            due
        }
    }
}

/// One connection and what it sends.
struct Line {
    target: SocketAddr,
    schedule: Option<Schedule>,
    bodies: Rc<[Ready]>,
    tally: Rc<Tally>,
}

impl Line {
    async fn keep_asking(mut self) {
        loop {
            if let Err(error) = self.use_one_connection().await {
                self.tally.record_error(&error);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Connects and asks until something breaks, or until the server closes between answers.
    async fn use_one_connection(&mut self) -> Result<()> {
        let mut stream = TcpStream::connect(self.target)
            .await
            .with_context(|| format!("cannot connect to {}", self.target))?;
        stream.set_nodelay(true)?;
        let mut buffer = Vec::with_capacity(64 * 1024);
        loop {
            let began = match &mut self.schedule {
                Some(schedule) => schedule.wait().await,
                None => Instant::now(),
            };
            let number = self.tally.take_number();
            let slot = usize::try_from(number % self.bodies.len() as u64).expect("below a length");
            let exchange = async {
                self.bodies[slot].send(number, &mut stream).await?;
                read_answer(&mut stream, &mut buffer, &self.tally).await
            };
            let answer = tokio::time::timeout(ANSWER_LIMIT, exchange)
                .await
                .with_context(|| format!("no whole answer within {ANSWER_LIMIT:?}"))??;
            self.tally
                .record(answer.first_byte - began, answer.ended - began);
            if answer.closes {
                return Ok(());
            }
        }
    }
}

/// When an answer's parts arrived.
struct Answer {
    first_byte: Instant,
    ended: Instant,
    closes: bool,
}

/// Reads one answer; anything but status 200 is an error.
async fn read_answer(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    tally: &Tally,
) -> Result<Answer> {
    buffer.clear();
    let (mut framing, body_start, closes) = read_head(stream, buffer).await?;
    let mut first_byte = None;
    let mut at = body_start;
    loop {
        let arrived = Instant::now();
        let mut newlines = 0;
        at += framing.take(&buffer[at..], |payload| {
            first_byte.get_or_insert(arrived);
            newlines += memchr::memchr_iter(b'\n', payload).count() as u64;
        })?;
        if tally.recording.get() {
            tally.newlines.set(tally.newlines.get() + newlines);
        }
        if at < buffer.len() {
            bail!("{} bytes behind the end of the answer", buffer.len() - at);
        }
        if framing.is_done() {
            let ended = Instant::now();
            return Ok(Answer {
                first_byte: first_byte.unwrap_or(ended),
                ended,
                closes,
            });
        }
        buffer.clear();
        at = 0;
        if stream
            .read_buf(buffer)
            .await
            .context("cannot read the answer")?
            == 0
        {
            bail!("connection closed inside an answer");
        }
    }
}

/// Reads the head: the body's framing, where the body starts, and whether the connection ends.
pub(super) async fn read_head(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> Result<(Framing, usize, bool)> {
    loop {
        if stream
            .read_buf(buffer)
            .await
            .context("cannot read the answer")?
            == 0
        {
            bail!("connection closed before an answer");
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(end) = response.parse(buffer).context("bad head")? {
            let status = response.code.unwrap_or(0);
            if status != 200 {
                let text = String::from_utf8_lossy(&buffer[end..]);
                bail!(
                    "status {status}: {}",
                    text.chars().take(200).collect::<String>()
                );
            }
            let closes = response.headers.iter().any(|header| {
                header.name.eq_ignore_ascii_case("connection")
                    && header.value.eq_ignore_ascii_case(b"close")
            });
            return Ok((Framing::of(response.headers)?, end, closes));
        }
        if buffer.len() > HEAD_BYTES_MAX {
            bail!("a head longer than {HEAD_BYTES_MAX} bytes");
        }
    }
}
