//! What is promised while parts die.

use super::objects::{apply, delete, exec, named, pod, ready, request, template};
use super::world::{Node, World, kill, sandbox_of};
use super::{DAEMON_SET, NAMESPACE, Table, get, rolled_out, wait};
use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicBool, Ordering};

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
    table.check("pods start all the time while the driver is rolled", || {
        rolled(world, two)
    });
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

/// The pod's sandbox dies while there is no driver: the kubelet makes another one without asking to prepare
/// again, and the runtime starts it without a plugin.
fn down(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let before = node.link("rail3").context("no rail3")?;
    apply(
        bed,
        &[
            template("fourth", &[request("nic", "dra.net", &named("rail3"))], &[]),
            pod("guarded", &node.name, "fourth"),
        ],
    )?;
    ready(bed, "guarded")?;
    let uid = get(bed, &["pod", "guarded"])?["metadata"]["uid"].clone();
    let uid = uid.as_str().context("no UID")?;
    bed.kubectl(&[
        "patch",
        "-n",
        NAMESPACE,
        DAEMON_SET,
        "--type=merge",
        "-p",
        NOWHERE,
    ])?;
    let undo = || {
        bed.kubectl(&[
            "patch",
            "-n",
            NAMESPACE,
            DAEMON_SET,
            "--type=merge",
            "-p",
            EVERYWHERE,
        ])
    };
    let seen = (|| {
        wait("no driver", || {
            let pods = get(bed, &["pods", "-n", NAMESPACE])?;
            Ok(pods["items"]
                .as_array()
                .is_some_and(Vec::is_empty)
                .then_some(()))
        })?;
        kill(sandbox_of(uid)?)?;
        wait("a container that is refused by the guard", || {
            let pod = get(bed, &["pod", "guarded"])?;
            let status = &pod["status"]["containerStatuses"][0];
            let text = status.to_string();
            ensure!(
                status["state"].get("running").is_none()
                    || !status["ready"].as_bool().unwrap_or(false),
                "it still runs"
            );
            let refused = text.contains("was not attached and verified")
                || text.contains("is not in the pod");
            Ok(refused.then_some(status["restartCount"].clone()))
        })
    })();
    undo()?;
    seen?;
    rolled_out(bed)?;
    wait("the container runs with its NIC", || {
        ready(bed, "guarded")?;
        let inside = exec(bed, "guarded", &["ls", "/sys/class/net"])?;
        Ok(inside.contains("rail3").then_some(()))
    })?;
    delete(bed, &["guarded"])?;
    node.wait_back("rail3", &before)?;
    Ok(
        "the container was refused until the driver was back, and started then with its NIC"
            .to_owned(),
    )
}

fn rolled(world: &World<'_>, node: &Node) -> Result<String> {
    let bed = world.bed;
    let before = node.link("rail4").context("no rail4")?;
    apply(
        bed,
        &[template(
            "fifth",
            &[request("nic", "dra.net", &named("rail4"))],
            &[],
        )],
    )?;
    bed.kubectl(&["rollout", "restart", "-n", NAMESPACE, DAEMON_SET])?;
    let done = AtomicBool::new(false);
    let (pods, rolled) = std::thread::scope(|scope| {
        let rolling = scope.spawn(|| {
            let rolled = rolled_out(bed);
            done.store(true, Ordering::Relaxed);
            rolled
        });
        let starting = || -> Result<usize> {
            let mut count = 0;
            // One more after it is done, so that the new driver has at least one.
            loop {
                let last = done.load(Ordering::Relaxed);
                let name = format!("rolling{count}");
                apply(bed, &[pod(&name, &node.name, "fifth")])?;
                ready(bed, &name)?;
                let inside = exec(bed, &name, &["ls", "/sys/class/net"])?;
                ensure!(
                    inside.contains("rail4"),
                    "{name} runs without its NIC: {inside}"
                );
                let restarts =
                    get(bed, &["pod", &name])?["status"]["containerStatuses"][0]["restartCount"]
                        .clone();
                ensure!(restarts == 0, "{name} was restarted {restarts} times");
                delete(bed, &[&name])?;
                count += 1;
                if last {
                    return Ok(count);
                }
            }
        };
        let pods = starting();
        (pods, rolling.join())
    });
    rolled.map_err(|_| anyhow::anyhow!("the thread that follows the rollout panicked"))??;
    let pods = pods?;
    node.wait_back("rail4", &before)?;
    Ok(format!(
        "{pods} pods one after the other, each with its NIC and without a restart"
    ))
}
