//! `forebay node` as a program: what people and container runtimes call by hand and by hook.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

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
