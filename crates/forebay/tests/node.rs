//! `forebay node` as a program: what people and container runtimes call by hand and by hook.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use forebay_fabric::synth;
use serde_json::Value;

/// Runs `forebay node ARGUMENTS` with `input`; its exit status, standard output and standard error.
fn node(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .arg("node")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("its standard input");
    // One that ended without reading all of it has a reason, which is looked at below.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code().expect("an exit status"),
        text(output.stdout),
        text(output.stderr),
    )
}

fn lint(manifest: &str, status: i32, expected: &str) {
    let (code, out, err) = node(&["lint", "-"], manifest);
    assert_eq!(out, expected, "{err}");
    assert_eq!(code, status, "{err}");
}

#[test]
fn lint_names_each_wrong_field_by_its_path_in_the_object() {
    lint(
        "\
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: nics, namespace: ai}
spec:
  spec:
    devices:
      requests: [{name: nic, exactly: {deviceClassName: dra.net}}]
      config:
      - opaque: {driver: gpu.example.com, parameters: {whatever: 1}}
      - opaque:
          driver: dra.net
          parameters: {interface: {nme: rdma0, mtu: 20}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
",
        1,
        "\
error: ResourceClaimTemplate ai/nics (-:1) spec.spec.devices.config[1].opaque.parameters.interface.mtu
  must be a whole number from 68 to 65536, not 20
error: ResourceClaimTemplate ai/nics (-:1) spec.spec.devices.config[1].opaque.parameters.interface.nme
  no such field; `name` is the nearest
1 configuration of dra.net, 2 errors
",
    );
}

#[test]
fn lint_is_content_with_what_a_node_would_accept() {
    let good = r#"{"interface": {"name": "rdma0", "mtu": 8896, "addresses": ["10.200.1.5/24"]}}"#;
    lint(good, 0, "1 configuration of dra.net, 0 errors\n");
    lint("kind: Pod\n", 0, "0 configurations of dra.net, 0 errors\n");
    let (code, _, err) = node(&["lint", "-"], "a: [");
    assert_eq!(code, 2, "{err}");
}

#[test]
fn a_described_machine_has_an_inventory_and_slices() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../machines/a4-highgpu-8g.yaml");
    let file = file.to_str().expect("UTF-8");
    let (code, out, err) = node(&["inventory", "--machine", file], "");
    assert_eq!((code, &*err), (0, ""));
    let last = out.lines().last().expect("a line");
    assert!(last.contains("8 accelerators"), "{out}");
    let (_, out, _) = node(&["inventory", "--machine", file, "--output", "json"], "");
    let list: Value = serde_json::from_str(&out).expect("JSON");
    let devices = list["items"][0]["spec"]["devices"]
        .as_array()
        .expect("devices");
    let rdma = |device: &&Value| device["attributes"]["dra.net/rdma"]["bool"] == true;
    assert_eq!(devices.iter().filter(rdma).count(), 8);
}

#[test]
fn what_gpus_say_of_their_nvlink_domain_is_published() {
    let folder = tempfile::tempdir().expect("a folder");
    let machine = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../machines/a4x-highgpu-4g.yaml");
    let machine = fs::read_to_string(machine).expect("its description");
    let description = synth::parse(&machine).expect("a description");
    let tree = synth::tree(&description).expect("files");
    let sysfs = folder.path().join("sys");
    forebay_node::sysfs::plant(&tree, &sysfs).expect("planted");
    let program = folder.path().join("nvidia-smi");
    let says = ["0008", "0009", "0018", "0019"].map(|domain| {
        let fabric = "Completed, Success, 1E3A6B52-0C4D-4F7E-8A91-5D2C7B6F8E90, 7";
        format!("echo 0000{domain}:01:00.0, NVIDIA GB200, Enabled, {fabric}\n")
    });
    fs::write(&program, format!("#!/bin/sh\n{}", says.concat())).expect("a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("can be run");
    let sysfs = sysfs.to_str().expect("UTF-8");
    let inventory = |program: &Path, output: &str| {
        let program = program.to_str().expect("UTF-8");
        let asked = [
            "--sysfs-root",
            sysfs,
            "--nvidia-smi",
            program,
            "--output",
            output,
        ];
        node(&[&["inventory"], &asked[..]].concat(), "")
    };
    let domains = |out: &str| {
        let list: Value = serde_json::from_str(out).expect("JSON");
        let devices = list["items"][0]["spec"]["devices"].as_array();
        let devices = devices.expect("devices").iter();
        let domain =
            |device: &Value| device["attributes"]["forebay.dev/nvlinkDomain"]["string"].clone();
        devices.map(domain).collect::<Vec<_>>()
    };
    let (code, out, err) = inventory(&program, "json");
    assert_eq!((code, &*err), (0, ""));
    let said = "1e3a6b52-0c4d-4f7e-8a91-5d2c7b6f8e90.7";
    let all = domains(&out);
    assert!(all.len() >= 4 && all.iter().all(|d| d == said), "{all:?}");
    let (_, out, _) = inventory(&program, "text");
    assert!(out.contains("4 accelerators (4 NVIDIA GB200)"), "{out}");
    let (code, out, err) = inventory(Path::new("/nowhere/nvidia-smi"), "json");
    assert_eq!(code, 0, "{err}");
    assert!(
        err.contains("warning: /nowhere/nvidia-smi: No such file"),
        "{err}"
    );
    assert!(domains(&out).iter().all(|domain| domain == ""), "{out}");
    let (code, out, err) = inventory(Path::new("none"), "json");
    assert_eq!((code, &*err), (0, ""));
    assert!(domains(&out).iter().all(|domain| domain == ""), "{out}");
}

#[test]
fn this_host_has_an_inventory() {
    let (code, out, err) = node(&["inventory"], "");
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("DEVICE"), "{out}");
}

#[test]
fn a_guard_that_cannot_be_sure_stops_the_container() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().to_str().expect("UTF-8");
    let state = format!(
        r#"{{"ociVersion": "1.0.2", "pid": {}}}"#,
        std::process::id()
    );
    let guard = |dir: &str, input: &str, reason: &str| {
        let (code, _, err) = node(&["guard", "--state-dir", dir, "--claim", "c-1"], input);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("claim c-1") && err.contains(reason), "{err}");
    };
    guard("/nonexistent", &state, "there is no ledger");
    guard(ledger, &state, "it was not prepared on this node");
    guard(ledger, "", "the runtime's state cannot be read");
    guard(ledger, r#"{"pid": 0}"#, "names no process");
}
