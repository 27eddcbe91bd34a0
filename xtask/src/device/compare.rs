//! Our driver and upstream's dranet, one after the other on the same nodes with the same pods.
//!
//! Both are measured from outside, in the same way: attach and detach by what passes between two plugins of
//! the container runtime around the driver (`witness`), prepare and unprepare by the kubelet's log of its
//! calls, memory and CPU by the kernel's counters. What a driver says of itself does not count.

use super::objects::{apply, exec, named, ready, request, template};
use super::witness::{Place, Witness, between, started};
use super::world::{Node, RAILS, World};
use super::{DAEMON_SET, NAMESPACE, gone, install, rolled_out, upstream, wait};
use crate::bench::{procfs, report, stats};
use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use forebay_nri::api::Event;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

/// How many NICs a pod has.
const SHAPES: [usize; 2] = [1, RAILS];
/// Pods before the measured ones: files and pages are cold at first.
const WARM_UPS: usize = 2;
/// At this verbosity the kubelet logs its calls of drivers.
const CALLS_ARE_LOGGED: &str = "4";
const VERBOSITY: &str = "2";
/// What goes with our driver, so that the other is alone.
const CONTROLLER: &str = "deployment/forebay-node-controller";
const WEBHOOKS: &str = "validatingwebhookconfigurations,mutatingwebhookconfigurations";
const CONFIGURATION: &str = "forebay-node.forebay-node";

/// A driver that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Forebay,
    Dranet,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Forebay => "forebay",
            Self::Dranet => "dranet",
        }
    }

    fn process(self, node: &Node) -> Result<u32> {
        match self {
            Self::Forebay => node.driver(),
            Self::Dranet => node.process("dranet", |words| words[0].ends_with(b"/dranet")),
        }
    }
}

/// What was measured of one side with one number of NICs. Times are in milliseconds, one per pod.
#[derive(Debug, Default)]
struct Measured {
    attach: Vec<f64>,
    detach: Vec<f64>,
    prepare: Vec<f64>,
    unprepare: Vec<f64>,
    /// From the kubelet's first sight of a pod until its container runs.
    on_node: Vec<f64>,
    /// From the call that makes a pod until its container runs.
    whole: Vec<f64>,
    failures: Vec<String>,
    /// Per pod, in milliseconds.
    driver_cpu: f64,
    node_cpu: f64,
    rss_mib: f64,
    peak_mib: f64,
}

/// Runs both and writes the table into a page.
pub(super) fn run(world: &World<'_>, starts: usize, out: &Path) -> Result<()> {
    let dranet = upstream::ready(world.bed)?;
    let load = report::load_average();
    let mut found = Vec::new();
    for side in [Side::Forebay, Side::Dranet] {
        let measured = measure(world, side, &dranet, starts)
            .with_context(|| format!("{} could not be measured", side.name()))?;
        found.push((side, measured));
    }
    upstream::remove(world.bed, &dranet)?;
    world.renew()?;
    let page = render(&found, starts, &load, &dranet);
    println!("{page}");
    report::write(out, "device-network", &page)
}

fn measure(
    world: &World<'_>,
    side: Side,
    dranet: &upstream::Dranet,
    starts: usize,
) -> Result<Vec<Measured>> {
    let bed = world.bed;
    let node = world.nodes.first().context("no node")?;
    remove_ours(world)?;
    upstream::remove(bed, dranet)?;
    world.renew()?;
    // It has to be there before the driver.
    let witness = Witness::start(node, |_| {})?;
    match side {
        Side::Forebay => {
            install(bed, &[])?;
            rolled_out(bed)?;
        }
        Side::Dranet => upstream::install(bed, dranet)?,
    }
    wait("the NICs to be published", || {
        Ok((world.devices(node)?.len() >= RAILS).then_some(()))
    })?;
    verbosity(world, node, CALLS_ARE_LOGGED)?;
    let measured = SHAPES
        .iter()
        .map(|nics| shape(world, node, side, &witness, *nics, starts))
        .collect();
    verbosity(world, node, VERBOSITY)?;
    measured
}

/// Our driver away, and its slices: what comes next begins with nothing.
fn remove_ours(world: &World<'_>) -> Result<()> {
    let bed = world.bed;
    bed.kubectl(&[
        "delete",
        "pods",
        "-l",
        "app=device-network",
        "--timeout=90s",
    ])?;
    let delete = [
        "delete",
        "-n",
        NAMESPACE,
        DAEMON_SET,
        CONTROLLER,
        "--ignore-not-found",
    ];
    bed.kubectl(&delete)?;
    // Nobody would answer them.
    let delete = ["delete", WEBHOOKS, CONFIGURATION, "--ignore-not-found"];
    bed.kubectl(&delete)?;
    gone(bed, "our driver and controllers to be gone", &[])?;
    bed.kubectl(&["delete", "resourceslices", "--all"])
        .map(drop)
}

fn verbosity(world: &World<'_>, node: &Node, level: &str) -> Result<()> {
    let path = format!("/api/v1/nodes/{}/proxy/debug/flags/v", node.name);
    let put = ["replace", "--raw", &path, "-f", "-"];
    world.bed.feed(&put, level.as_bytes())
}

fn shape(
    world: &World<'_>,
    node: &Node,
    side: Side,
    witness: &Witness,
    nics: usize,
    starts: usize,
) -> Result<Measured> {
    let bed = world.bed;
    let name = format!("{}-{nics}", side.name());
    apply(bed, &[claims(&name, node, nics)])?;
    let mut measured = Measured::default();
    for number in 0..WARM_UPS {
        cycle(world, node, &format!("{name}-w{number}"), &name, nics)?;
    }
    witness.take()?;
    let log = node.logs.join("kubelet.log");
    let logged = fs::metadata(&log).context("no log of the kubelet")?.len();
    let driver = side.process(node)?;
    let before = (procfs::usage(&[driver]).cpu_ns, node_cpu_ns(node)?);
    let mut made = BTreeMap::new();
    for number in 0..starts {
        let pod = format!("{name}-p{number}");
        let began = Instant::now();
        match cycle(world, node, &pod, &name, nics) {
            Ok(()) => drop(made.insert(pod, began)),
            Err(error) => measured.failures.push(format!("{pod}: {error:#}")),
        }
    }
    let usage = procfs::usage(&[driver]);
    let per_pod =
        |after: u64, before: u64| after.saturating_sub(before) as f64 / 1e6 / starts as f64;
    measured.driver_cpu = per_pod(usage.cpu_ns, before.0);
    measured.node_cpu = per_pod(node_cpu_ns(node)?, before.1);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    measured.rss_mib = mib(procfs::resident_bytes(driver)?);
    measured.peak_mib = mib(usage.rss_peak_kib * 1024);
    let seen = witness.take()?;
    let (attach, detach) = (
        between(&seen, Event::RunPodSandbox),
        between(&seen, Event::StopPodSandbox),
    );
    let text = fs::read(&log).context("no log of the kubelet")?;
    let text = String::from_utf8_lossy(&text[usize::try_from(logged)?..]).into_owned();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    for (pod, began) in &made {
        let running = started(&seen, pod)?;
        measured
            .whole
            .push(ms(running.at.saturating_duration_since(*began)));
        measured.attach.extend(attach.get(pod).copied().map(ms));
        measured.detach.extend(detach.get(pod).copied().map(ms));
        measured
            .prepare
            .extend(call_ms(&text, "NodePrepareResources", pod));
        measured
            .unprepare
            .extend(call_ms(&text, "NodeUnprepareResource", pod));
        measured
            .on_node
            .extend(on_node_ms(&text, pod, running.clock));
    }
    ensure!(
        seen.iter().any(|one| one.place == Place::After),
        "nothing was seen of the container runtime"
    );
    Ok(measured)
}

/// The claims of a pod: each rail by its name, with the address that it has on the node. dranet brings NICs
/// back without their addresses, so it has to be given them; and it copies the node's routes, so others will
/// not do.
fn claims(name: &str, node: &Node, nics: usize) -> Value {
    let nic = |rail: usize| format!("nic{rail}");
    let requests: Vec<Value> = (0..nics)
        .map(|rail| request(&nic(rail), "dra.net", &named(&format!("rail{rail}"))))
        .collect();
    let names: Vec<String> = (0..nics).map(nic).collect();
    let parameters: Vec<(&str, Value)> = names
        .iter()
        .enumerate()
        .map(|(rail, name)| {
            let address = format!("{}/24", node.rail_address(rail));
            (
                name.as_str(),
                json!({ "interface": { "addresses": [address] } }),
            )
        })
        .collect();
    template(name, &requests, &parameters)
}

/// A pod that starts, is looked into, and ends.
fn cycle(world: &World<'_>, node: &Node, pod: &str, template: &str, nics: usize) -> Result<()> {
    let bed = world.bed;
    let mut object = super::objects::pod(pod, &node.name, template);
    // A shell that is the first process ends at once when it is told to.
    object["spec"]["containers"][0]["command"] =
        json!(["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 36000 & wait"]);
    bed.feed(&["create", "-f", "-"], object.to_string().as_bytes())?;
    let looked = ready(bed, pod).and_then(|()| {
        let inside = exec(bed, pod, &["ls", "/sys/class/net"])?;
        let count = inside
            .split_ascii_whitespace()
            .filter(|name| name.starts_with("rail"))
            .count();
        ensure!(
            count == nics,
            "{count} NICs of {nics} are in the pod: {inside}"
        );
        Ok(())
    });
    super::objects::delete(bed, &[pod])?;
    looked
}

/// CPU of all that runs on a node.
fn node_cpu_ns(node: &Node) -> Result<u64> {
    let pid = node.program("containerd")?;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).context("no control group")?;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        if controllers.split(',').any(|one| one == "cpuacct") {
            let file = format!("/sys/fs/cgroup/cpuacct{path}/cpuacct.usage");
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
            return text.trim().parse().with_context(|| file);
        }
        let file = format!("/sys/fs/cgroup{path}/cpu.stat");
        if let Ok(text) = fs::read_to_string(&file)
            && let Some(usec) = text
                .lines()
                .find_map(|line| line.strip_prefix("usage_usec "))
        {
            return Ok(usec.trim().parse::<u64>().with_context(|| file)? * 1000);
        }
    }
    bail!("no control group counts the CPU of {}", node.name)
}

/// How long the kubelet's first call of this kind for a pod's claim took. Pods come one at a time, so the next
/// end of a call is that of this call.
fn call_ms(log: &str, call: &str, pod: &str) -> Option<f64> {
    let (begin, end) = (
        format!("\"Calling {call} rpc\""),
        format!("\"Done calling {call}"),
    );
    let claim = format!("{pod}-nics-");
    let mut lines = log.lines();
    let began = lines.find(|line| line.contains(&begin) && line.contains(&claim))?;
    let ended = lines.find(|line| line.contains(&end))?;
    let passed = klog_s(ended)? - klog_s(began)?;
    Some(passed.rem_euclid(86_400.0) * 1e3)
}

/// From the kubelet's first sight of a pod to this moment.
fn on_node_ms(log: &str, pod: &str, until: SystemTime) -> Option<f64> {
    let name = format!("\"default/{pod}\"");
    let first = log
        .lines()
        .find(|line| line.contains("\"SyncLoop ADD\"") && line.contains(&name))?;
    let until = until
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?
        .as_secs_f64();
    // Zones differ from each other by quarters of an hour, and no pod took that long.
    Some((until - klog_s(first)?).rem_euclid(900.0) * 1e3)
}

/// The time of day of a line of the log: `I1126 11:32:30.123456 ...`.
fn klog_s(line: &str) -> Option<f64> {
    let time = line.split_ascii_whitespace().nth(1)?;
    let mut parts = time.split(':');
    let mut part = || parts.next()?.parse::<f64>().ok();
    Some(part()? * 3600.0 + part()? * 60.0 + part()?)
}

fn quantile(values: &[f64], share: f64) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return "-".to_owned();
    };
    // The smallest that this share of the values does not exceed.
    let rank = (share * sorted.len() as f64).ceil() as usize;
    stats::short(sorted[rank.saturating_sub(1).min(last)])
}

fn render(
    found: &[(Side, Vec<Measured>)],
    starts: usize,
    load: &str,
    dranet: &upstream::Dranet,
) -> String {
    let mut page = String::new();
    let mut machine = report::surroundings();
    machine.retain(|(name, _)| *name != "compiler");
    let commit = shell::capture(
        Command::new("git")
            .args(["rev-parse", "--short", "HEAD"])
            .current_dir(shell::root()),
    );
    machine.extend([
        (
            "load average, start and end",
            format!("{load}; {}", report::load_average()),
        ),
        (
            "forebay",
            format!(
                "{} ({})",
                env!("CARGO_PKG_VERSION"),
                commit.unwrap_or_default()
            ),
        ),
        ("dranet", dranet.version.clone()),
        (
            "pods",
            format!(
                "{starts} of each kind, one after the other, after {WARM_UPS} that do not count"
            ),
        ),
    ]);
    report::rows(&mut page, &machine);
    page += "| ms, p50 / p99 / most |";
    for nics in SHAPES {
        for (side, _) in found {
            page += &format!(
                " {}, {nics} NIC{} |",
                side.name(),
                if nics == 1 { "" } else { "s" }
            );
        }
    }
    page += "\n|---|";
    page += &"---|".repeat(SHAPES.len() * found.len());
    page.push('\n');
    let cells = |cell: &dyn Fn(&Measured) -> String| {
        let columns =
            (0..SHAPES.len()).flat_map(|shape| found.iter().map(move |(_, all)| &all[shape]));
        columns
            .map(|one| format!(" {} |", cell(one)))
            .collect::<String>()
    };
    let times = |of: fn(&Measured) -> &Vec<f64>| {
        cells(&|one| {
            let values = of(one);
            [0.5, 0.99, 1.0]
                .map(|share| quantile(values, share))
                .join(" / ")
        })
    };
    let rows = [
        ("attach, verified or not", times(|one| &one.attach)),
        ("detach", times(|one| &one.detach)),
        ("prepare, as the kubelet sees it", times(|one| &one.prepare)),
        (
            "unprepare, as the kubelet sees it",
            times(|one| &one.unprepare),
        ),
        ("pod start on the node", times(|one| &one.on_node)),
        ("pod start from its making", times(|one| &one.whole)),
        (
            "CPU of the driver per pod, ms",
            cells(&|one| stats::short(one.driver_cpu)),
        ),
        (
            "CPU of the whole node per pod, ms",
            cells(&|one| stats::short(one.node_cpu)),
        ),
        (
            "RSS of the driver at the end / most, MiB",
            cells(&|one| {
                format!(
                    "{} / {}",
                    stats::short(one.rss_mib),
                    stats::short(one.peak_mib)
                )
            }),
        ),
        (
            "measured attaches, prepares",
            cells(&|one| format!("{}, {}", one.attach.len(), one.prepare.len())),
        ),
        (
            "pods that failed",
            cells(&|one| one.failures.len().to_string()),
        ),
    ];
    for (name, cells) in rows {
        page += &format!("| {name} |{cells}\n");
    }
    for (side, all) in found {
        for failure in all.iter().flat_map(|one| &one.failures) {
            eprintln!("{}: {failure}", side.name());
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
I1126 11:32:29.500000  12 kubelet.go:1] \"SyncLoop ADD\" source=\"api\" pods=[\"default/a-p1\"]
I1126 11:32:30.100000  12 dra.go:80] \"Calling NodePrepareResources rpc\" request=\"claims:{name:\\\"a-p1-nics-x\\\"}\"
I1126 11:32:30.112500  12 dra.go:99] \"Done calling NodePrepareResources rpc\" response=\"\"
I1126 11:32:31.000000  12 dra.go:80] \"Calling NodePrepareResources rpc\" request=\"claims:{name:\\\"a-p1-nics-x\\\"}\"
I1126 11:32:32.000000  12 dra.go:99] \"Done calling NodePrepareResources rpc\" response=\"\"
";

    #[test]
    fn the_first_call_for_a_pod_is_read_from_the_log() {
        let ms = call_ms(LOG, "NodePrepareResources", "a-p1").expect("a call");
        assert!((ms - 12.5).abs() < 0.01, "{ms}");
        assert_eq!(call_ms(LOG, "NodePrepareResources", "a-p11"), None);
    }

    #[test]
    fn the_zone_of_the_log_does_not_matter() {
        // 12:32:31 of some day, an hour from the log's.
        let until =
            SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * 9 + 12 * 3600 + 32 * 60 + 31);
        let ms = on_node_ms(LOG, "a-p1", until).expect("a sight");
        assert!((ms - 1500.0).abs() < 0.01, "{ms}");
    }

    #[test]
    fn a_share_of_few_values_is_one_of_them() {
        let values: Vec<f64> = (1..=50).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), "25.0");
        assert_eq!(quantile(&values, 0.99), "50.0");
        assert_eq!(quantile(&[], 0.5), "-");
    }
}
