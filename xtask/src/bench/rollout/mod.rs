//! `cargo xtask bench rollout`: what a request feels when things change on a real Kubernetes.
//!
//! The demo of `deploy/demo` runs on a bed of real nodes: simulated model servers, two replicas of
//! the gateway, a Gateway with an address. Clients stream answers through it without a pause while
//! the servers are rolled over, scaled, the gateway is rolled over and a node is lost. The table
//! says how many requests each step cost, and of which kind.

mod clients;
mod steps;

use crate::bed::Bed;
use crate::shell;
use anyhow::{Context, Result, bail};
use clients::{Clients, End, Outcome};
use serde_json::json;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use steps::Step;

/// The bed's name.
const BED: &str = "rollout";
/// One node for each replica of the gateway, and one to lose.
const NODES: &str = "3";
/// Failures that are printed of each step.
const SHOWN_MAX: usize = 3;

/// How much load.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask bench rollout                     every step, under 24 clients\n  \
    cargo xtask bench rollout --keep --clients 8  and leave the cluster up\n\n\
    Needs root and a built Kubernetes (`cargo xtask cluster build`). The model servers are\n\
    simulated; the rest is real.")]
pub(crate) struct Args {
    /// Clients, each with one connection and one request at a time
    #[arg(long, default_value_t = 24, value_name = "N")]
    clients: usize,
    /// Tokens of each answer
    #[arg(long, default_value_t = 48, value_name = "N")]
    tokens: u32,
    /// Leave the bed up
    #[arg(long)]
    keep: bool,
    /// Fail when a request failed that had not begun to stream
    #[arg(long)]
    check: bool,
}

/// Brings the demo up, disturbs it, prints the table.
pub(crate) fn run(args: &Args) -> Result<()> {
    shell::run(shell::cargo().args(["build", "--release", "--package", "forebay"]))?;
    let program = shell::target_dir()?.join("release/forebay");
    let bed = Bed::ensure(BED, &["--nodes", NODES], args.keep)?;
    let lost = disturb(&bed, &program, args)?;
    if args.check && lost > 0 {
        bail!("{lost} request(s) failed that had not begun to stream");
    }
    Ok(())
}

/// The whole run; how many requests failed before they streamed.
fn disturb(bed: &Bed, program: &Path, args: &Args) -> Result<usize> {
    let target = steps::install(bed, program)?;
    println!("{} clients stream from http://{target}\n", args.clients);
    let clients = Clients::start(target, request(args.tokens), args.clients);
    println!(
        "{:34} {:>7} {:>9} {:>7} {:>7} {:>10} {:>10}",
        "step", "seconds", "requests", "refused", "torn", "ttft p50", "ttft max"
    );
    let mut lost = 0;
    for step in steps::ALL {
        let refused = one(bed, step, &clients)?;
        lost += if step.is_promised() { refused } else { 0 };
    }
    drop(clients.finish());
    println!("\nSIMULATED model servers; refused: no byte of an answer had come; torn: some had.");
    Ok(lost)
}

fn one(bed: &Bed, step: Step, clients: &Clients) -> Result<usize> {
    clients.take();
    let started = Instant::now();
    let done = step.run(bed);
    // What the step did to requests under way shows when they end.
    std::thread::sleep(AFTERMATH);
    let outcomes = clients.take();
    let tally = Tally::of(&outcomes);
    println!(
        "{:34} {:>7.1} {:>9} {:>7} {:>7} {:>7.0} ms {:>7.0} ms",
        step.name(),
        started.elapsed().as_secs_f64(),
        outcomes.len(),
        tally.refused,
        tally.torn,
        tally.first_byte(0.5).as_secs_f64() * 1e3,
        tally.first_byte(1.0).as_secs_f64() * 1e3,
    );
    for (at, why) in failures(&outcomes).take(SHOWN_MAX) {
        let at = at.saturating_duration_since(started).as_secs_f64();
        println!("    at {at:.1} s: {why}");
    }
    done.with_context(|| format!("step {:?} failed", step.name()))?;
    Ok(tally.refused)
}

/// How long clients are listened to after a step.
const AFTERMATH: Duration = Duration::from_secs(5);

fn failures(outcomes: &[Outcome]) -> impl Iterator<Item = (Instant, String)> {
    outcomes.iter().filter_map(|outcome| match &outcome.end {
        End::Whole => None,
        End::Refused(why) => Some((outcome.started, format!("refused: {why}"))),
        End::Torn(why) => Some((outcome.started, format!("torn: {why}"))),
    })
}

struct Tally {
    refused: usize,
    torn: usize,
    /// Times to the first byte, in order.
    first_bytes: Vec<Duration>,
}

impl Tally {
    fn of(outcomes: &[Outcome]) -> Self {
        let count = |is: fn(&End) -> bool| outcomes.iter().filter(|o| is(&o.end)).count();
        let mut first_bytes: Vec<_> = outcomes.iter().filter_map(|o| o.first_byte).collect();
        first_bytes.sort();
        Self {
            refused: count(|end| matches!(end, End::Refused(_))),
            torn: count(|end| matches!(end, End::Torn(_))),
            first_bytes,
        }
    }

    fn first_byte(&self, share: f64) -> Duration {
        let last = self.first_bytes.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.first_bytes.get(at).copied().unwrap_or_default()
    }
}

/// A chat request as a client would send it.
fn request(tokens: u32) -> Vec<u8> {
    let body = json!({
        "model": steps::MODEL,
        "messages": [{"role": "user", "content": "Tell me of water wheels, at length. ".repeat(8)}],
        "max_tokens": tokens,
        "ignore_eos": true,
        "stream": true,
    })
    .to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: demo.example.com\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// Where the gateway listens.
fn address(text: &str) -> Result<SocketAddr> {
    let ip = text
        .trim()
        .parse()
        .with_context(|| format!("{text:?} is no address"))?;
    Ok(SocketAddr::new(ip, 80))
}
