//! `cargo xtask conformance`: the Gateway API's public conformance suite, unmodified, against
//! Forebay on a test bed of real Kubernetes. docs/conformance has what came out of it.
//!
//! `bed` brings up the cluster and installs Forebay from `deploy`, `features` knows what is claimed,
//! `suite` runs the program that Go makes of the suite's own package, `report` writes it down.

mod features;
mod report;
mod suite;

use crate::bed::Bed;
use crate::{cluster, shell};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use suite::Outcome;

/// What to run, and where.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo build --release && cargo xtask conformance\n  \
    cargo xtask conformance --run HTTPRouteWeight --keep    one test, and the bed stays up\n  \
    cargo xtask conformance --profile GATEWAY-GRPC --out /tmp/report.yaml\n\n\
    A whole run writes docs/conformance/gateway-api-<version>.yaml and .md; one of --run, --skip or\n\
    --profile writes only where --out says. A bed that is up under the name is used and left up.")]
pub(crate) struct Args {
    /// A test of the suite, by its short name
    #[arg(long, value_name = "TEST")]
    run: Option<String>,
    /// Tests to leave out
    #[arg(long, value_name = "TEST", value_delimiter = ',')]
    skip: Vec<String>,
    /// Conformance profiles
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "GATEWAY-HTTP,GATEWAY-GRPC,GATEWAY-TLS"
    )]
    profile: Vec<String>,
    /// The built Forebay that is tested
    #[arg(long, value_name = "PROGRAM", default_value = "target/release/forebay")]
    forebay: PathBuf,
    /// Name of the bed
    #[arg(long, value_name = "NAME", default_value = "conformance")]
    bed: String,
    /// Leave the bed up, with Forebay and the suite's base resources
    #[arg(long)]
    keep: bool,
    /// Where the report goes
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The module with the definitions and the list of features; the suite has the same version.
const API: &str = "sigs.k8s.io/gateway-api";

impl Args {
    /// Whether the run says something about all that is claimed.
    fn is_whole(&self) -> bool {
        let all = ["GATEWAY-HTTP", "GATEWAY-GRPC", "GATEWAY-TLS"];
        self.run.is_none() && self.skip.is_empty() && self.profile == all
    }

    /// The report's file, if one is written.
    fn report(&self, version: &str) -> Option<PathBuf> {
        let whole = || {
            let name = format!("docs/conformance/gateway-api-{version}.yaml");
            shell::root().join(name)
        };
        self.out.clone().or_else(|| self.is_whole().then(whole))
    }
}

/// Runs the suite; fails when a test fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let api = Module::find(API)?;
    let program = Program::examine(&args.forebay)?;
    let claimed = features::claimed(&program.path)?;
    let channel = features::channel(&api.dir, &claimed)?;
    let suite = cluster::conformance_suite()?;
    let log = shell::target_dir()?.join("conformance/gateway-api.log");

    let bed = Bed::ensure(&args.bed, &[], args.keep)?;
    bed.load(&["--conformance"], &program.path)?;
    bed.install_definitions(&api.dir.join("config/crd").join(channel.as_str()))?;
    bed.install_forebay()?;

    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let report = scratch.path().join("report.yaml");
    let mut command = Command::new(&suite);
    command
        .current_dir(scratch.path())
        .env("KUBECONFIG", bed.kubeconfig())
        .args(["-test.v", "-test.run", "^TestConformance$"])
        // Above any run seen; the suite bounds each of its waits by itself.
        .args(["-test.timeout", "120m"])
        .args(flags(args, &bed, &program, &claimed, &report));
    let outcome = suite::run(&mut command, &log)?;
    println!("\n{}", outcome.closing_line());
    println!("log: {}", log.display());
    if let Some(out) = args.report(&api.version) {
        let run = report::Run {
            suite: suite::provenance(&suite)?,
            program: program.version,
            kubernetes: bed.kubernetes()?,
            claimed,
            outcome: &outcome,
        };
        report::write(&report, &out, &run)?;
        println!("report: {}", out.display());
    }
    verdict(&outcome)
}

fn flags(
    args: &Args,
    bed: &Bed,
    program: &Program,
    claimed: &[String],
    report: &Path,
) -> Vec<String> {
    let mut flags = vec![
        "-gateway-class=forebay".to_owned(),
        format!("-conformance-profiles={}", args.profile.join(",")),
        format!("-supported-features={}", claimed.join(",")),
        format!("-cleanup-base-resources={}", !args.keep),
        format!("-usable-address={}", bed.free_address()),
        // Of a range that is for documentation, so no load balancer has it.
        "-unusable-address=192.0.2.1".to_owned(),
        format!("-report-output={}", report.display()),
        "-organization=forebay".to_owned(),
        "-project=forebay".to_owned(),
        "-url=https://github.com/forebay/forebay".to_owned(),
        "-contact=https://github.com/forebay/forebay/issues".to_owned(),
        format!("-version={}", program.version),
    ];
    if let Some(test) = &args.run {
        flags.push(format!("-run-test={test}"));
    }
    if !args.skip.is_empty() {
        flags.push(format!("-skip-tests={}", args.skip.join(",")));
    }
    flags
}

fn verdict(outcome: &Outcome) -> Result<()> {
    if !outcome.failed.is_empty() {
        bail!("{} test(s) failed", outcome.failed.len());
    }
    if !outcome.success {
        bail!("the suite failed outside of a test: its last words are in the log");
    }
    if outcome.passed.is_empty() {
        bail!("no test ran");
    }
    Ok(())
}

/// The program under test.
#[derive(Debug)]
struct Program {
    path: PathBuf,
    /// `0.1.0`
    version: String,
}

impl Program {
    fn examine(path: &Path) -> Result<Self> {
        if !path.is_file() {
            bail!(
                "{} is not there: cargo build --release, or name another with --forebay",
                path.display()
            );
        }
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))?;
        let said = shell::capture(Command::new(&path).arg("--version"))?;
        let version = said.split_whitespace().last().map(str::to_owned);
        Ok(Self {
            version: version.with_context(|| format!("{} has no version", path.display()))?,
            path,
        })
    }
}

/// Where the module of Gateway API is, which has the definitions of its kinds.
pub(crate) fn gateway_api() -> Result<PathBuf> {
    Ok(Module::find(API)?.dir)
}

/// A Go module that tools/conformance pins.
#[derive(Debug)]
struct Module {
    dir: PathBuf,
    version: String,
}

impl Module {
    /// Finds it in Go's cache, where it is downloaded to if need be.
    fn find(path: &str) -> Result<Self> {
        let text = shell::capture(
            Command::new("go")
                .args(["mod", "download", "-json", path])
                .current_dir(shell::root().join("tools/conformance")),
        )
        .with_context(|| format!("Go cannot find {path}"))?;
        let described: serde_json::Value =
            serde_json::from_str(&text).context("go mod download did not print JSON")?;
        let field = |name: &str| {
            let value = described[name].as_str().map(str::to_owned);
            value.with_context(|| format!("go mod download has no {name} for {path}"))
        };
        Ok(Self {
            dir: field("Dir")?.into(),
            version: field("Version")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn report_of(line: &str) -> Option<String> {
        let args = Cli::parse_from(line.split_whitespace()).args;
        let path = args.report("v1.6.1")?;
        let path = path.strip_prefix(shell::root()).unwrap_or(&path);
        Some(path.display().to_string())
    }

    #[test]
    fn only_a_whole_run_replaces_the_report_of_the_repository() {
        assert_eq!(
            report_of("x").as_deref(),
            Some("docs/conformance/gateway-api-v1.6.1.yaml")
        );
        assert_eq!(report_of("x --run HTTPRouteWeight"), None);
        assert_eq!(report_of("x --profile GATEWAY-TLS"), None);
        assert_eq!(
            report_of("x --skip A,B --out r.yaml").as_deref(),
            Some("r.yaml")
        );
    }
}
