//! What is promised while parts die.

use super::objects::{apply, delete, exec, named, pod, ready, request, template};
use super::world::{Node, World, kill, sandbox_of};
use super::{DAEMON_SET, DRIVERS, NAMESPACE, Table, get, gone, install, rolled_out, wait};
use anyhow::{Context, Result, anyhow, ensure};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;

/// Rollouts of the driver, one after the other.
const ROLLOUTS: usize = 3;

/// A label that no node has: the driver is nowhere.
const NOWHERE: &str =
    r#"{"spec":{"template":{"spec":{"nodeSelector":{"forebay.dev/nowhere":"true"}}}}}"#;
const EVERYWHERE: &str =
    r#"{"spec":{"template":{"spec":{"nodeSelector":{"forebay.dev/nowhere":null}}}}}"#;

/// Runs them.
pub(super) fn run(world: &World<'_>, table: &mut Table) {
    let [one, two] = &world.nodes[..] else { return };
    table.check("SIGKILL of the driver loses nothing", || killed(world, one));
    table.check("without a driver no container runs without its NIC", || {
        down(world, one)
    });
    table.check("a sandbox without its NIC is stopped by the guard", || {
        unheard(world, one)
    });
    table.check("pods start all the time while the driver is rolled", || {
        rolled(world)
    });
    table.check(
        "a node that dies and boots again brings its pods their NICs",
        || rebooted(world, two),
    );
}

fn killed(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let before = node.link("rail2").context("no rail2")?;
    apply(
        bed,
        &[
            template("third", &[request("nic", "dra.net", &named("rail2"))], &[]),
            pod("outlives", &node.name, "third"),
        ],
    )?;
    ready(bed, "outlives")?;
    let devices = world.devices(node)?;
    let old = node.driver()?;
    kill(old)?;
    wait("another driver", || {
        let new = node.driver()?;
        Ok((new != old).then_some(()))
    })?;
    rolled_out(bed)?;
    ready(bed, "outlives")?;
    let inside = exec(bed, "outlives", &["ls", "/sys/class/net"])?;
    ensure!(inside.contains("rail2"), "in the pod: {inside}");
    let now = world.devices(node)?;
    ensure!(now == devices, "devices changed with the driver's restart");
    delete(bed, &["outlives"])?;
    node.wait_back("rail2", &before)?;
    apply(bed, &[pod("after", &node.name, "third")])?;
    ready(bed, "after")?;
    // The kill comes while the NIC is on its way back.
    let old = node.driver()?;
    bed.kubectl(&["delete", "pod", "after", "--wait=false"])?;
    kill(old)?;
    delete(bed, &["after"])?;
    node.wait_back("rail2", &before)?;
    rolled_out(bed)?;
    Ok("pod kept its NIC, slices unchanged, NIC back as it was, also when killed during the detach".to_owned())
}

/// The pod's sandbox dies while there is no driver: the kubelet wants to make another one.
fn down(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let before = node.link("rail3").context("no rail3")?;
    apply(
        bed,
        &[
            template("fourth", &[request("nic", "dra.net", &named("rail3"))], &[]),
            pod("alone", &node.name, "fourth"),
        ],
    )?;
    ready(bed, "alone")?;
    let patch = |patch| {
        bed.kubectl(&[
            "patch",
            "-n",
            NAMESPACE,
            DAEMON_SET,
            "--type=merge",
            "-p",
            patch,
        ])
    };
    patch(NOWHERE)?;
    let seen = (|| {
        gone(bed, "no driver", &["-l", DRIVERS])?;
        let uid = get(bed, &["pod", "alone"])?["metadata"]["uid"].clone();
        kill(sandbox_of(uid.as_str().context("no UID")?)?)?;
        wait(
            "the container to end, and the kubelet to say why it does not start",
            || {
                let pod = get(bed, &["pod", "alone"])?;
                let running = &pod["status"]["containerStatuses"][0]["state"]["running"];
                let events = bed.kubectl(&[
                    "get",
                    "events",
                    "--field-selector=involvedObject.name=alone",
                ])?;
                Ok((running.is_null() && events.contains("not registered")).then_some(()))
            },
        )
    })();
    patch(EVERYWHERE)?;
    seen?;
    rolled_out(bed)?;
    runs_with(world, "alone", "rail3")?;
    delete(bed, &["alone"])?;
    node.wait_back("rail3", &before)?;
    Ok("not started until the driver was back, and then with its NIC".to_owned())
}

/// A driver that the runtime never hears of: pods are prepared, and their sandboxes made without NICs.
fn unheard(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let before = node.link("rail5").context("no rail5")?;
    install(bed, &["host.nriDir=/var/run/nowhere"])?;
    let seen = (|| {
        // The old ones stay while the new ones are not ready.
        wait("none but drivers that the runtime does not know", || {
            let pods = get(bed, &["pods", "-n", NAMESPACE, "-l", DRIVERS])?;
            let pods = pods["items"].as_array().context("no pods")?;
            let old = pods
                .iter()
                .filter(|pod| !pod["spec"].to_string().contains("/var/run/nowhere"));
            let old: Vec<&str> = old
                .filter_map(|pod| pod["metadata"]["name"].as_str())
                .collect();
            for name in &old {
                bed.kubectl(&["delete", "pod", "-n", NAMESPACE, name, "--wait=false"])?;
            }
            Ok((old.is_empty() && !pods.is_empty()).then_some(()))
        })?;
        apply(
            bed,
            &[
                template("sixth", &[request("nic", "dra.net", &named("rail5"))], &[]),
                pod("guarded", &node.name, "sixth"),
            ],
        )?;
        wait("the guard to refuse the container", || {
            let pod = get(bed, &["pod", "guarded"])?;
            let text = pod["status"]["containerStatuses"].to_string();
            ensure!(!text.contains("\"running\""), "it runs: {text}");
            Ok(text.contains("was not attached and verified").then_some(()))
        })
    })();
    install(bed, &[])?;
    seen?;
    rolled_out(bed)?;
    runs_with(world, "guarded", "rail5")?;
    delete(bed, &["guarded"])?;
    node.wait_back("rail5", &before)?;
    Ok(
        "the guard refused the container until the runtime had the driver, which caught up then"
            .to_owned(),
    )
}

fn runs_with(world: &World<'_>, pod: &str, nic: &str) -> Result<()> {
    wait(&format!("{pod} runs with its NIC"), || {
        ready(world.bed, pod)?;
        let inside = exec(world.bed, pod, &["ls", "/sys/class/net"])?;
        Ok(inside.contains(nic).then_some(()))
    })
}

fn rolled(world: &World<'_>) -> Result<String> {
    let bed = world.bed;
    let before: Vec<Option<String>> = world.nodes.iter().map(|node| node.link("rail4")).collect();
    let requests = [request("nic", "dra.net", &named("rail4"))];
    apply(bed, &[template("fifth", &requests, &[])])?;
    let done = AtomicBool::new(false);
    let (rolled, started) = std::thread::scope(|scope| {
        let start = |node| {
            let done = &done;
            scope.spawn(move || starting(world, node, done))
        };
        let threads: Vec<_> = world.nodes.iter().map(start).collect();
        let roll = || {
            bed.kubectl(&["rollout", "restart", "-n", NAMESPACE, DAEMON_SET])?;
            rolled_out(bed)
        };
        let rolled = (0..ROLLOUTS).try_for_each(|_| roll());
        done.store(true, Ordering::Relaxed);
        let panicked = || Err(anyhow!("a thread that starts pods panicked"));
        let join = |thread: ScopedJoinHandle<'_, Result<usize>>| {
            thread.join().unwrap_or_else(|_| panicked())
        };
        let started: Vec<Result<usize>> = threads.into_iter().map(join).collect();
        (rolled, started)
    });
    rolled?;
    let mut pods = 0;
    for count in started {
        pods += count?;
    }
    for (node, before) in world.nodes.iter().zip(before) {
        node.wait_back("rail4", &before.context("no rail4")?)?;
    }
    Ok(format!(
        "{pods} pods during {ROLLOUTS} rollouts, each with its NIC and without a restart"
    ))
}

/// Starts and ends pods on a node until it is done, and one more after that.
fn starting(world: &World<'_>, node: &Node, done: &AtomicBool) -> Result<usize> {
    let bed = world.bed;
    for count in 1.. {
        let last = done.load(Ordering::Relaxed);
        let name = format!("rolling-{}-{count}", node.name);
        apply(bed, &[pod(&name, &node.name, "fifth")])?;
        ready(bed, &name)?;
        let inside = exec(bed, &name, &["ls", "/sys/class/net"])?;
        ensure!(
            inside.contains("rail4"),
            "{name} runs without its NIC: {inside}"
        );
        let status = get(bed, &["pod", &name])?["status"]["containerStatuses"][0].clone();
        let restarts = &status["restartCount"];
        ensure!(*restarts == 0, "{name} was restarted {restarts} times");
        delete(bed, &[&name])?;
        if last {
            return Ok(count);
        }
    }
    unreachable!("numbers do not end")
}

/// A node without power: what was in its pods' namespaces is gone, and its NICs are there again when it boots.
fn rebooted(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let requests = [request("nic", "dra.net", &named("rail7"))];
    apply(
        bed,
        &[
            template("eighth", &requests, &[]),
            pod("rebooted", &node.name, "eighth"),
        ],
    )?;
    ready(bed, "rebooted")?;
    bed.cluster(&["stop-node", &node.name])?;
    World::make(bed, &world.program)?;
    let before = node.link("rail7").context("no rail7")?;
    bed.cluster(&["start-node", &node.name])?;
    wait("the pod to run again", || {
        let status = get(bed, &["pod", "rebooted"])?["status"]["containerStatuses"][0].clone();
        Ok((status["restartCount"] == 1).then_some(()))
    })?;
    runs_with(world, "rebooted", "rail7")?;
    rolled_out(bed)?;
    delete(bed, &["rebooted"])?;
    node.wait_back("rail7", &before)?;
    Ok("the pod came back with the NIC of its claim, and the NIC from it".to_owned())
}
