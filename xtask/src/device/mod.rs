//! `cargo xtask device-network`: the driver of the device network on a test bed with two real nodes, from the
//! chart, against the kubelet, containerd and the scheduler. Prints what was checked and what came of it, and
//! fails when something did not hold.
//!
//! `world` makes NICs and knows what the kernel lacks, `objects` writes manifests, `checks` holds what is
//! promised against what is seen and `managed` what is promised of the controller, `cases` does so with upstream's
//! own manifests, `faults` and `storms` do so while parts die, `measure` reads what was measured.
//! `compare` measures ours and upstream's (`upstream`) by what `witness` sees of the container runtime.

mod cases;
mod checks;
mod compare;
mod faults;
mod managed;
mod measure;
mod objects;
mod process;
mod stage;
mod storms;
mod traces;
mod upstream;
mod witness;
mod world;

use crate::bed::Bed;
use crate::{helm, shell};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use world::World;

/// What to run, and where.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo build && cargo xtask device-network\n  \
    cargo xtask device-network --forebay target/release/forebay --keep\n  \
    cargo xtask device-network --only roll             checks whose name has this in it\n  \
    cargo xtask device-network --compare --starts 20   beside upstream's dranet, into docs/benchmarks.md\n\n\
    A bed that is up under the name is used and left up. Exit status: 0 if all that was checked holds.")]
pub(crate) struct Args {
    /// The built Forebay that is tested
    #[arg(long, value_name = "PROGRAM", default_value = "target/debug/forebay")]
    forebay: PathBuf,
    /// Name of the bed
    #[arg(long, value_name = "NAME", default_value = "nodes")]
    bed: String,
    /// Leave the bed up, with the driver and the NICs
    #[arg(long)]
    keep: bool,
    /// Only checks with this in their names
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// What random moments are drawn from
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// In place of checks, measure this driver and upstream's dranet one after the other
    #[arg(long)]
    compare: bool,
    /// Pods of each kind that are measured
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 40,
        requires = "compare"
    )]
    starts: usize,
    /// Page that has the comparison between its marks
    #[arg(
        long,
        value_name = "FILE",
        default_value = "docs/benchmarks.md",
        requires = "compare"
    )]
    out: PathBuf,
}

/// The namespace and the name of the DaemonSet.
const NAMESPACE: &str = "forebay-node";
const DAEMON_SET: &str = "daemonset/forebay-node";
/// Label of its pods.
const DRIVERS: &str = "app.kubernetes.io/name=forebay-node";
/// How long the driver may take to be ready on both nodes.
const ROLLOUT: &str = "180s";
/// How long anything else is waited for: pods start in seconds, but the machine may be busy.
const WAIT_MAX: Duration = Duration::from_secs(90);

/// Runs the checks.
pub(crate) fn run(args: &Args) -> Result<()> {
    let program = args
        .forebay
        .canonicalize()
        .with_context(|| format!("{} is not there: cargo build", args.forebay.display()))?;
    let bed = Bed::ensure(&args.bed, &["--nodes", "2"], args.keep)?;
    bed.load(&[], &program)?;
    let world = World::make(&bed, &program)?;
    world.nodes.iter().try_for_each(process::end_left)?;
    if args.compare {
        namespace(&bed)?;
        return compare::run(&world, args.starts, &args.out);
    }
    install(&bed, &[])?;
    // What a run before this one left.
    bed.kubectl(&[
        "delete",
        "pods",
        "-l",
        "app=device-network",
        "--timeout=90s",
    ])?;
    bed.kubectl(&["delete", "resourceclaimtemplates", "--all"])?;
    bed.kubectl(&["rollout", "restart", "-n", NAMESPACE, DAEMON_SET])?;
    rolled_out(&bed)?;
    let mut table = Table {
        only: args.only.clone(),
        rows: Vec::new(),
    };
    checks::run(&world, &mut table);
    managed::run(&world, &mut table);
    traces::run(&world, &mut table);
    faults::run(&world, &mut table);
    cases::run(&world, &mut table);
    storms::run(&world, &mut table, args.seed);
    measure::run(&world, &mut table);
    for feature in world.missing() {
        table.skip(
            &format!("links of type {feature}"),
            "this kernel has no such link",
        );
    }
    table.end()
}

/// The namespace of the driver.
fn namespace(bed: &Bed) -> Result<()> {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": { "pod-security.kubernetes.io/enforce": "privileged" },
        },
    });
    bed.apply(&namespace.to_string())
}

/// The driver from its chart with these further values, on nodes that have its label.
fn install(bed: &Bed, values: &[&str]) -> Result<()> {
    namespace(bed)?;
    let (repository, tag) = crate::bed::BED_IMAGE
        .rsplit_once(':')
        .context("the image of the bed has no tag")?;
    let mut helm = helm::command()?;
    helm.args([
        "template",
        "forebay-node",
        "deploy/chart/forebay-node",
        "--include-crds",
    ])
    .args(["--namespace", NAMESPACE, "--kube-version", "1.36.0"])
    .args(["--set", &format!("image.repository={repository}")])
    .args(["--set", &format!("image.tag={tag}")])
    .args([
        "--set",
        "image.pullPolicy=Never",
        "--set",
        "log.format=text",
    ])
    // A program built for debugging takes more memory than one that is shipped.
    .args(["--set", "resources.limits.memory=512Mi"])
    .args([
        "--set",
        &format!("virtual={{{}}}", world::PUBLISHED.join(",")),
    ]);
    for value in values {
        helm.args(["--set", value]);
    }
    bed.apply(&shell::capture(&mut helm)?)?;
    let label = "forebay.dev/device-network=true";
    bed.kubectl(&["label", "nodes", "--all", "--overwrite", label])
        .map(drop)
}

/// Waits until the driver is ready everywhere.
fn rolled_out(bed: &Bed) -> Result<()> {
    let wait = [
        "rollout",
        "status",
        "--timeout",
        ROLLOUT,
        "-n",
        NAMESPACE,
        DAEMON_SET,
    ];
    bed.kubectl(&wait).map(drop).with_context(|| {
        let logs = bed.kubectl(&["logs", "-n", NAMESPACE, DAEMON_SET, "--tail=40"]);
        let pods = bed.kubectl(&["describe", "pods", "-n", NAMESPACE]);
        format!(
            "the driver is not ready; its log:\n{}\n{}",
            logs.unwrap_or_default(),
            pods.unwrap_or_default()
        )
    })
}

/// Waits until `found` finds something; the error says what was waited for, and what was seen last.
fn wait<T>(what: &str, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + WAIT_MAX;
    let mut last = String::new();
    loop {
        match found() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = format!("{error:#}"),
        }
        if Instant::now() > until {
            bail!("{what}: not within {} s; {last}", WAIT_MAX.as_secs());
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// Waits until the driver's namespace has no pods, or none of these.
fn gone(bed: &Bed, what: &str, which: &[&str]) -> Result<()> {
    wait(what, || {
        let pods = get(bed, &[&["pods", "-n", NAMESPACE], which].concat())?;
        let none = pods["items"].as_array().is_some_and(Vec::is_empty);
        Ok(none.then_some(()))
    })
}

/// An object or a list of them.
fn get(bed: &Bed, arguments: &[&str]) -> Result<Value> {
    let text = bed.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
    serde_json::from_str(&text).context("kubectl did not print JSON")
}

enum Outcome {
    Holds,
    Failed,
    /// The driver says that it cannot do this, before any node is touched.
    Refused,
    Skipped,
}

/// What was checked.
struct Table {
    only: Option<String>,
    rows: Vec<(String, Outcome, String)>,
}

impl Table {
    /// Whether a check of this name is to be done.
    fn wants(&self, name: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|word| name.contains(word.as_str()))
    }

    /// Something that is not checked here, and why.
    fn skip(&mut self, name: &str, why: &str) {
        self.put(name, Outcome::Skipped, why);
    }

    /// Something that the driver refuses to do, and in which words.
    fn refuse(&mut self, name: &str, why: &str) {
        self.put(name, Outcome::Refused, why);
    }

    fn put(&mut self, name: &str, outcome: Outcome, why: &str) {
        if self.wants(name) {
            self.rows.push((name.to_owned(), outcome, why.to_owned()));
        }
    }

    /// Does a check; what it answers is shown beside its name.
    fn check(&mut self, name: &str, check: impl FnOnce() -> Result<String>) {
        if !self.wants(name) {
            return;
        }
        let began = Instant::now();
        let (outcome, detail) = match check() {
            Ok(detail) => (Outcome::Holds, detail),
            Err(error) => (Outcome::Failed, format!("{error:#}")),
        };
        let word = if matches!(outcome, Outcome::Holds) {
            "ok"
        } else {
            "FAILED"
        };
        eprintln!("{word}: {name} ({} s): {detail}", began.elapsed().as_secs());
        self.rows.push((name.to_owned(), outcome, detail));
    }

    fn end(self) -> Result<()> {
        let count = |of: fn(&Outcome) -> bool| self.rows.iter().filter(|row| of(&row.1)).count();
        println!("\n| check | | seen |\n|---|---|---|");
        for (name, outcome, detail) in &self.rows {
            let word = match outcome {
                Outcome::Holds => "holds",
                Outcome::Failed => "**failed**",
                Outcome::Refused => "refused",
                Outcome::Skipped => "skipped",
            };
            let detail = detail.replace('\n', " ").replace('|', "/");
            println!("| {name} | {word} | {detail} |");
        }
        let failed = count(|outcome| matches!(outcome, Outcome::Failed));
        println!(
            "\n{} hold, {failed} failed, {} refused, {} skipped",
            count(|outcome| matches!(outcome, Outcome::Holds)),
            count(|outcome| matches!(outcome, Outcome::Refused)),
            count(|outcome| matches!(outcome, Outcome::Skipped)),
        );
        if failed > 0 {
            bail!("{failed} checks failed");
        }
        Ok(())
    }
}
