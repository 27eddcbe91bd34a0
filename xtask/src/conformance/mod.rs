//! `cargo xtask conformance`: the public conformance suites of the Gateway API and of its Inference Extension,
//! unmodified, or our own suite for inference, against Forebay on a test bed of real Kubernetes.
//! docs/conformance has what came out.
//!
//! `bed` brings up the cluster and installs Forebay from `deploy`, `features` knows what is claimed,
//! `suite` runs a program of Go tests, `public_suite` and `own_suite` say with what,
//! `report` writes it down.

mod features;
mod own_suite;
mod public_suite;
mod report;
mod suite;

use crate::bed::Bed;
use crate::cluster::Suite;
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
    cargo xtask conformance --profile GATEWAY-GRPC --out /tmp/report.yaml\n  \
    cargo xtask conformance --inference-extension           the Inference Extension's public suite\n  \
    cargo xtask conformance --inference-extension --epp     the same with `forebay epp` for its picker\n  \
    cargo xtask conformance --inference                     our own suite for inference\n\n\
    A whole run in which every test passed writes a page, and the suite's own report where it makes one, to\n\
    docs/conformance; one with failures writes below target/conformance, and one with --run, --skip or\n\
    --profile only where --out says. A bed that is up under the name is used and left up.")]
pub(crate) struct Args {
    /// Run Forebay's own suite for InferencePools in place of the Gateway API's public one
    #[arg(long, conflicts_with = "profile")]
    inference: bool,
    /// Run the Inference Extension's public suite
    #[arg(long, conflicts_with_all = ["profile", "inference"])]
    inference_extension: bool,
    /// Put Forebay's own picker (`forebay epp`) in the place of the suite's
    #[arg(long)]
    epp: bool,
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
/// The same of the Inference Extension.
const EXTENSION: &str = "sigs.k8s.io/gateway-api-inference-extension";

impl Args {
    fn suite(&self) -> Suite {
        match (self.inference, self.inference_extension) {
            (true, _) => Suite::Inference,
            (false, true) => Suite::InferenceExtension,
            (false, false) => Suite::GatewayApi,
        }
    }

    /// Whether the run says something about all that is claimed.
    fn is_whole(&self) -> bool {
        let all = ["GATEWAY-HTTP", "GATEWAY-GRPC", "GATEWAY-TLS"];
        self.run.is_none() && self.skip.is_empty() && self.profile == all
    }

    /// The report's file, if one is written. What the repository keeps is of a run in which
    /// every test passed.
    fn report(&self, version: &str, outcome: &Outcome) -> Result<Option<PathBuf>> {
        if self.out.is_some() || !self.is_whole() {
            return Ok(self.out.clone());
        }
        let epp = if self.epp { "-epp" } else { "" };
        let name = match self.suite() {
            Suite::GatewayApi => format!("gateway-api-{version}.yaml"),
            Suite::Inference => format!("inference{epp}.md"),
            Suite::InferenceExtension => format!("inference-extension-{version}{epp}.yaml"),
        };
        let folder = if outcome.is_flawless() {
            shell::root().join("docs/conformance")
        } else {
            shell::target_dir()?.join("conformance")
        };
        Ok(Some(folder.join(name)))
    }
}

/// Runs the suite; fails when a test fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let which = args.suite();
    if args.epp && which == Suite::GatewayApi {
        bail!(
            "--epp goes with --inference-extension or --inference: the other suite has no picker"
        );
    }
    let api = Module::find(API)?;
    let program = Program::examine(&args.forebay)?;
    let claimed = features::claimed(&program.path)?;
    let channel = features::channel(&api.dir, &claimed)?;
    let suite = cluster::suite(which)?;

    let bed = Bed::ensure(&args.bed, &[], args.keep)?;
    let images: &[&str] = match which {
        Suite::GatewayApi => &["--conformance"],
        Suite::Inference => &["--inference"],
        Suite::InferenceExtension if args.epp => &["--conformance", "--as-reference-picker"],
        Suite::InferenceExtension => &["--conformance", "--reference-picker"],
    };
    bed.load(images, &program.path)?;
    bed.install_definitions(&api.dir.join("config/crd").join(channel.as_str()))?;
    let version = if which == Suite::InferenceExtension {
        // In the place of ours: the suite wants to see of which release they are.
        let extension = Module::find(EXTENSION)?;
        bed.apply_folder(&extension.dir.join("config/crd/bases"))?;
        extension.version
    } else {
        api.version
    };
    let values: &[&str] = match which {
        // The suite waits for pods in the namespace of its Gateways.
        Suite::InferenceExtension => &["placement=Dedicated"],
        Suite::GatewayApi | Suite::Inference => &[],
    };
    bed.install_forebay(values)?;
    let scene = Scene {
        args,
        bed: &bed,
        program: &program,
        which,
        suite: &suite,
        version: &version,
        claimed,
    };
    let outcome = match which {
        Suite::GatewayApi => public_suite::gateway_api(&scene)?,
        Suite::Inference => own_suite::run(&scene)?,
        Suite::InferenceExtension => public_suite::inference_extension(&scene)?,
    };
    verdict(&outcome)
}

/// Everything that a suite is run with.
struct Scene<'a> {
    args: &'a Args,
    bed: &'a Bed,
    program: &'a Program,
    which: Suite,
    suite: &'a Path,
    /// Of the suite.
    version: &'a str,
    claimed: Vec<String>,
}

impl Scene<'_> {
    /// Whose pickers run, where the suite has any.
    fn pickers(&self) -> Option<&'static str> {
        match (self.which, self.args.epp) {
            (Suite::GatewayApi, _) => None,
            (_, true) => {
                Some("`forebay epp --test-selection`, with the arguments of the suite's manifests")
            }
            (_, false) => Some("the suite's own"),
        }
    }

    /// Runs one of the suite's tests of Go with further flags.
    fn play(&self, test: &str, folder: &Path, flags: &[String]) -> Result<Outcome> {
        let name = match self.which {
            Suite::GatewayApi | Suite::Inference => test,
            Suite::InferenceExtension => "TestInferenceExtension",
        };
        let log = shell::target_dir()?.join(format!("conformance/{name}.log"));
        let mut command = Command::new(self.suite);
        command
            .current_dir(folder)
            .env("KUBECONFIG", self.bed.kubeconfig())
            .args(["-test.v=test2json", "-test.run", &format!("^{test}$")])
            // Above any run seen; the suites bound each of their waits by themselves.
            .args(["-test.timeout", "120m"])
            .arg("-gateway-class=forebay")
            .arg(format!("-cleanup-base-resources={}", !self.args.keep))
            .args(flags);
        if let Some(test) = &self.args.run {
            command.arg(format!("-run-test={test}"));
        }
        if !self.args.skip.is_empty() {
            command.arg(format!("-skip-tests={}", self.args.skip.join(",")));
        }
        let outcome = suite::run(&mut command, &log)?;
        println!("\n{}", outcome.closing_line());
        println!("log: {}", log.display());
        Ok(outcome)
    }
}

fn verdict(outcome: &Outcome) -> Result<()> {
    if !outcome.failed.is_empty() {
        bail!("{} test(s) failed", outcome.failed.len());
    }
    if outcome.passed.is_empty() {
        bail!("no test ran");
    }
    if !outcome.is_flawless() {
        bail!("the suite failed outside of a test: its last words are in the log");
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

    fn report_of(line: &str, failed: &[&str]) -> Option<String> {
        let args = Cli::parse_from(line.split_whitespace()).args;
        let outcome = Outcome {
            passed: vec!["A".to_owned()],
            failed: failed.iter().map(|name| (*name).to_owned()).collect(),
            success: failed.is_empty(),
            ..Outcome::default()
        };
        let path = args.report("v1.6.1", &outcome).expect("a place")?;
        let path = path.strip_prefix(shell::root()).unwrap_or(&path);
        Some(path.display().to_string())
    }

    #[test]
    fn only_a_whole_run_without_a_failure_replaces_the_report_of_the_repository() {
        let of = |line: &str| report_of(line, &[]);
        assert_eq!(
            of("x").as_deref(),
            Some("docs/conformance/gateway-api-v1.6.1.yaml")
        );
        assert_eq!(
            of("x --inference").as_deref(),
            Some("docs/conformance/inference.md")
        );
        assert_eq!(
            of("x --inference-extension --epp").as_deref(),
            Some("docs/conformance/inference-extension-v1.6.1-epp.yaml")
        );
        for partial in [
            "x --run HTTPRouteWeight",
            "x --inference --run FailOpen",
            "x --profile GATEWAY-TLS",
        ] {
            assert_eq!(of(partial), None, "{partial}");
        }
        assert_eq!(of("x --skip A,B --out r.yaml").as_deref(), Some("r.yaml"));
        let failed = report_of("x", &["B"]).expect("a place");
        assert!(!failed.contains("docs/"), "{failed}");
    }
}
