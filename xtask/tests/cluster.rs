//! The test bed as a program: up, an object there and back, down with nothing left.
//!
//! Needs root and a built Kubernetes; without them the test names itself as skipped in the file
//! FOREBAY_SKIPS, as every test does that cannot run.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

/// Its own bed, beside whatever else is up on the machine.
const BED: &str = "selftest";

fn xtask(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("cluster")
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn succeed(arguments: &[&str]) -> String {
    let output = xtask(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Takes the bed down when a test fails half-way.
struct Down;

impl Drop for Down {
    fn drop(&mut self) {
        xtask(&["down", "--bed", BED]);
    }
}

fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
    if let Some(file) = std::env::var_os("FOREBAY_SKIPS") {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)
            .expect("the list of skips");
        writeln!(file, "cluster bed: {reason}").expect("a line in it");
    }
}

/// Everything on the machine that has the bed's name.
fn traces() -> Vec<String> {
    let named = |dir: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.path().display().to_string());
        names.filter(|path| path.contains(BED)).collect::<Vec<_>>()
    };
    let mut found = named("/run/netns");
    let own = fs::read_to_string("/proc/self/cgroup").expect("control groups");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    for mount in mounts.lines().filter(|line| line.starts_with("cgroup")) {
        let place = mount.split(' ').nth(1).expect("a place");
        for line in own.lines() {
            let group = line.rsplit(':').next().unwrap_or_default();
            found.extend(named(&format!("{place}{group}/forebay-bed")));
        }
    }
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(BED))
            .map(str::to_owned),
    );
    found.sort();
    found.dedup();
    found
}

#[test]
fn a_control_plane_comes_up_keeps_objects_runs_pods_in_name_and_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        return skip("a Kubernetes API server is started by root only");
    }
    if !xtask(&["build", "--control-plane-only", "--check"])
        .status
        .success()
    {
        return skip("Kubernetes is not built: `cargo xtask cluster build --control-plane-only`");
    }
    succeed(&["down", "--bed", BED]);
    let _down = Down;
    succeed(&["up", "--bed", BED, "--control-plane-only", "--nodes", "2"]);
    assert!(
        !traces().is_empty(),
        "the bed has no trace to look for later"
    );

    let described: serde_json::Value =
        serde_json::from_str(&succeed(&["env", "--bed", BED, "--json"])).expect("JSON");
    let kubectl = Path::new(described["programs"].as_str().expect("programs")).join("kubectl");
    let kubectl = |arguments: &[&str]| {
        let output = Command::new(&kubectl)
            .env(
                "KUBECONFIG",
                described["kubeconfig"].as_str().expect("kubeconfig"),
            )
            .args(arguments)
            .output()
            .expect("kubectl starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {stderr}");
        String::from_utf8(output.stdout)
            .expect("UTF-8")
            .trim()
            .to_owned()
    };
    kubectl(&["create", "configmap", "kept", "--from-literal=word=forebay"]);
    assert_eq!(
        kubectl(&["get", "configmap", "kept", "-o=jsonpath={.data.word}"]),
        "forebay"
    );
    kubectl(&[
        "wait",
        "--for=condition=Ready",
        "node/c1-n1",
        "node/c1-n2",
        "--timeout=60s",
    ]);
    kubectl(&[
        "create",
        "deployment",
        "model",
        "--image=in-name-only",
        "--replicas=3",
    ]);
    kubectl(&["rollout", "status", "deployment/model", "--timeout=60s"]);
    kubectl(&[
        "expose",
        "deployment",
        "model",
        "--port=80",
        "--type=LoadBalancer",
    ]);
    kubectl(&[
        "wait",
        "service/model",
        "--for=jsonpath={.status.loadBalancer.ingress[0].ip}",
        "--timeout=60s",
    ]);

    // A second `up` of the same shape finds it; another shape is refused.
    succeed(&["up", "--bed", BED, "--control-plane-only", "--nodes", "2"]);
    let other = xtask(&["up", "--bed", BED, "--control-plane-only", "--nodes", "3"]);
    assert!(!other.status.success());

    succeed(&["down", "--bed", BED]);
    assert_eq!(traces(), Vec::<String>::new());
}
