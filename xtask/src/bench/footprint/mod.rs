//! `cargo xtask bench footprint`: what the gateway takes by itself. Memory of pools that nobody asks
//! for, CPU of reading metrics, memory of requests under way.
//!
//! The program is the real one, each measurement has a process of its own, and its endpoints are
//! the proxy benchmark's mock servers in another, whose CPU and memory do not count. How each is
//! measured is in `rig`; nothing is compared with other programs.

mod manifests;
mod rig;

use super::peers::Peer;
use super::promise::{self, Promise, Verdict};
use super::stats::{Spread, short};
use super::{Build, report, until_told};
use anyhow::{Context, Result, bail};
use rig::{BODY_BYTES, Bodies, By, ENDPOINTS, PAGE_BYTES, Pools, REQUESTS, Rig, Scraping};
use std::path::PathBuf;

/// Pools in the smaller and in the larger configuration.
const FEW: usize = 100;
const MANY: usize = 10_000;

/// Pages a second below which endpoints were not read as often as promised: each is read 50 ms after
/// the last time, which itself takes time, and a tenth is allowed for that.
const PAGES_PER_S_LEAST: f64 = 0.9 * (ENDPOINTS * 20) as f64;

static IDLE_POOL: Promise = Promise {
    text: "resident memory of an idle pool, 10,000 in one process",
    limit: 20.0,
    unit: "KiB",
};
static SCRAPING: Promise = Promise {
    text: "CPU of reading the metrics of 100 endpoints every 50 ms",
    limit: 0.15,
    unit: "core",
};
static PICKER_SCRAPING: Promise = Promise {
    text: "the same by `forebay epp`",
    limit: 0.15,
    unit: "core",
};
static UNDER_WAY: Promise = Promise {
    text: "peak growth of memory while 16 requests of 220 KiB are under way, against their bodies",
    limit: 1.5,
    unit: "×",
};

/// What to run and where to put it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask bench footprint --quick\n  \
    cargo xtask bench footprint --out docs/benchmarks.md\n  \
    cargo xtask bench footprint --program target/debug/forebay --rounds 1")]
pub(crate) struct Args {
    /// One round with a quick build: shows that everything works, proves nothing
    #[arg(long, conflicts_with_all = ["seconds", "rounds"])]
    quick: bool,
    /// Seconds during which CPU is counted
    #[arg(long, default_value_t = 10.0, value_name = "N")]
    seconds: f64,
    /// Rounds of all measurements
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
    /// Measure a build without a profile (see `cargo xtask dist`)
    #[arg(long)]
    without_profile: bool,
    /// Measure this program instead of building one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "without_profile"])]
    program: Option<PathBuf>,
    /// Page to write; its part between the `bench footprint` marks is replaced
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Fail when a promise is broken or could not be measured
    #[arg(long)]
    check: bool,
}

/// What one round found.
struct Round {
    bare: Pools,
    with_endpoint: Pools,
    scraping: Scraping,
    picker_scraping: Scraping,
    bodies: Bodies,
}

/// Runs every round and prints the page's part.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (rounds, seconds) = if args.quick {
        (1, 3.0)
    } else {
        (args.rounds, args.seconds)
    };
    if rounds == 0 || !(1.0..=60.0).contains(&seconds) {
        bail!("--rounds must be at least 1 and --seconds between 1 and 60");
    }
    let (program, version) = program(args)?;
    let rig = Rig {
        program,
        xtask: std::env::current_exe().context("this program's own file")?,
        folder: tempfile::Builder::new()
            .prefix("forebay-bench-")
            .tempdir()?,
    };
    let load_at_start = report::load_average();
    let found = until_told(measure(&rig, rounds, seconds))?;
    let verdicts = judge(&found);
    let page = render(&found, &verdicts, &version, &load_at_start);
    println!("{page}");
    if let Some(out) = &args.out {
        report::write(out, "footprint", &page)?;
    }
    if args.check {
        promise::check(&verdicts)?;
    }
    Ok(())
}

/// The program to measure, and what it is.
fn program(args: &Args) -> Result<(PathBuf, String)> {
    if let Some(program) = &args.program {
        let program = program
            .canonicalize()
            .with_context(|| format!("no program {}", program.display()))?;
        let version = program.display().to_string();
        return Ok((program, version));
    }
    let ours = Build::chosen(None, args.quick, args.without_profile);
    let release_dir = crate::shell::target_dir()?.join("release");
    let installed = Peer::Forebay.install(&release_dir, &ours)?;
    Ok((installed.program, installed.version))
}

async fn measure(rig: &Rig, rounds: usize, seconds: f64) -> Result<Vec<Round>> {
    let mut found = Vec::new();
    for number in 1..=rounds {
        let step = |what: &str| eprintln!("round {number}: {what}");
        step("idle pools");
        let bare = rig.pools(FEW, MANY, false).await?;
        step("idle pools with an endpoint each");
        let with_endpoint = rig.pools(FEW, MANY, true).await?;
        step("reading metrics");
        let scraping = rig.scraping(By::Gateway, seconds).await?;
        step("reading metrics, by the picker alone");
        let picker_scraping = rig.scraping(By::Picker, seconds).await?;
        step("requests under way");
        let bodies = rig.bodies().await?;
        found.push(Round {
            bare,
            with_endpoint,
            scraping,
            picker_scraping,
            bodies,
        });
    }
    Ok(found)
}

impl Pools {
    /// What each of the pools takes that only the larger configuration has.
    fn kib_each(&self) -> f64 {
        let bytes = self.many_bytes.saturating_sub(self.few_bytes) as f64;
        bytes / 1_024.0 / (MANY - FEW) as f64
    }
}

impl Bodies {
    fn growth(&self) -> f64 {
        self.peak_bytes.saturating_sub(self.before_bytes) as f64 / self.body_bytes.max(1) as f64
    }
}

fn judge(found: &[Round]) -> Vec<Verdict> {
    let spread = |value: fn(&Round) -> Option<f64>| {
        let values: Option<Vec<f64>> = found.iter().map(value).collect();
        values.and_then(Spread::of)
    };
    /// Endpoints that were read too rarely prove nothing.
    fn often_enough(scraping: &Scraping) -> Option<f64> {
        (scraping.pages_per_s >= PAGES_PER_S_LEAST).then_some(scraping.cores)
    }
    vec![
        Verdict {
            promise: &IDLE_POOL,
            measured: spread(|r| Some(r.bare.kib_each())),
        },
        Verdict {
            promise: &SCRAPING,
            measured: spread(|r| often_enough(&r.scraping)),
        },
        Verdict {
            promise: &PICKER_SCRAPING,
            measured: spread(|r| often_enough(&r.picker_scraping)),
        },
        Verdict {
            promise: &UNDER_WAY,
            measured: spread(|r| Some(r.bodies.growth())),
        },
    ]
}

/// The whole part: the machine, the promises, and what the figures are made of.
fn render(found: &[Round], verdicts: &[Verdict], version: &str, load_at_start: &str) -> String {
    let mut page = String::new();
    let mut machine = report::surroundings();
    let foreign = Spread::of(found.iter().map(|round| round.scraping.foreign_cores));
    let load = format!("{load_at_start}; {}", report::load_average());
    machine.extend([
        ("rounds", found.len().to_string()),
        ("load average, start and end", load),
        (
            "other processes while CPU was counted",
            report::noise(foreign),
        ),
        ("transparent huge pages", report::huge_pages()),
        ("forebay", version.to_owned()),
    ]);
    report::rows(&mut page, &machine);
    report::promises(&mut page, verdicts);
    page.push_str("### What they are made of\n\n");
    report::rows(&mut page, &details(found));
    page
}

fn details(found: &[Round]) -> Vec<(&'static str, String)> {
    let text = |unit: &str, value: fn(&Round) -> f64| {
        let spread = Spread::of(found.iter().map(value));
        spread.map_or_else(String::new, |spread| format!("{} {unit}", spread.text()))
    };
    const MIB: f64 = 1_024.0 * 1_024.0;
    let page = format!(
        "pages of {} bytes a second, {ENDPOINTS} endpoints",
        short(PAGE_BYTES as f64)
    );
    let bodies = format!("{REQUESTS} bodies of {} bytes", short(BODY_BYTES as f64));
    vec![
        (
            "100 pools without endpoints",
            text("MiB", |r| r.bare.few_bytes as f64 / MIB),
        ),
        (
            "10,000 pools without endpoints",
            text("MiB", |r| r.bare.many_bytes as f64 / MIB),
        ),
        (
            "until ready with them",
            text("s", |r| r.bare.ready.as_secs_f64()),
        ),
        (
            "100 pools with one endpoint each",
            text("MiB", |r| r.with_endpoint.few_bytes as f64 / MIB),
        ),
        (
            "10,000 pools with one endpoint each",
            text("MiB", |r| r.with_endpoint.many_bytes as f64 / MIB),
        ),
        (
            "until ready with them",
            text("s", |r| r.with_endpoint.ready.as_secs_f64()),
        ),
        (
            "of an idle pool, its endpoint, read every 5 s",
            text("KiB", |r| r.with_endpoint.kib_each() - r.bare.kib_each()),
        ),
        (
            "metrics read",
            format!("{} {page}", text("", |r| r.scraping.pages_per_s).trim_end()),
        ),
        (
            "metrics read by the picker",
            format!(
                "{} {page}",
                text("", |r| r.picker_scraping.pages_per_s).trim_end()
            ),
        ),
        (
            "before the requests",
            text("MiB", |r| r.bodies.before_bytes as f64 / MIB),
        ),
        (
            "at the peak",
            format!(
                "{}, {bodies}",
                text("MiB", |r| r.bodies.peak_bytes as f64 / MIB)
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A round with these figures in the units of the promises.
    fn round(kib: u64, pages_per_s: f64, cores: f64, growth: f64) -> Round {
        let pools = |kib: u64| Pools {
            few_bytes: 1 << 20,
            many_bytes: (1 << 20) + (MANY - FEW) as u64 * kib * 1_024,
            ready: Duration::from_secs(1),
        };
        let scraping = || Scraping {
            cores,
            pages_per_s,
            foreign_cores: 0.0,
        };
        Round {
            bare: pools(kib),
            with_endpoint: pools(2 * kib),
            scraping: scraping(),
            picker_scraping: scraping(),
            bodies: Bodies {
                before_bytes: 1 << 20,
                peak_bytes: (1 << 20) + (growth * 1_000_000.0) as u64,
                body_bytes: 1_000_000,
            },
        }
    }

    fn check(round: Round, expected: [&str; 4]) {
        let verdicts = judge(&[round]);
        let words: Vec<&str> = verdicts.iter().map(Verdict::word).collect();
        assert_eq!(words, expected);
    }

    #[test]
    fn each_promise_has_its_limit() {
        check(round(20, 1_900.0, 0.15, 1.5), ["pass"; 4]);
        check(round(21, 1_900.0, 0.16, 1.51), ["**FAIL**"; 4]);
    }

    #[test]
    fn endpoints_that_were_read_too_rarely_prove_nothing() {
        check(
            round(20, 1_700.0, 0.01, 1.0),
            ["pass", "not measured", "not measured", "pass"],
        );
    }

    #[test]
    fn every_promise_stands_beside_its_figure() {
        let found = [round(16, 1_900.0, 0.12, 1.25)];
        let page = render(&found, &judge(&found), "x", "0 0 0");
        for row in [
            "| ≤ 20 KiB | 16.0 [16.0–16.0] KiB | pass |",
            "| ≤ 0.15 core | 0.12 [0.12–0.12] core | pass |",
            "| ≤ 1.5 × | 1.25 [1.25–1.25] × | pass |",
        ] {
            assert!(page.contains(row), "{row} is missing in {page}");
        }
    }
}
