//! What a user sees at the command line: help, exit status, errors that say what to do.

mod support;

use std::fs;

use support::{World, chat, free_port, output, root, stderr, stdout, wait_for};

#[track_caller]
fn check(arguments: &[&str], status: i32, said: &[&str]) {
    let output = output(arguments);
    let text = stdout(&output) + &stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
    for part in said {
        assert!(
            text.contains(part),
            "{arguments:?} does not say {part:?}:\n{text}"
        );
    }
}

#[test]
fn every_command_explains_itself() {
    let commands = [
        "gateway",
        "sim",
        "demo",
        "check",
        "status",
        "explain",
        "completions",
    ];
    for command in commands {
        check(&[command, "--help"], 0, &["Usage: forebay "]);
        check(&["--help"], 0, &[command, "Examples:"]);
    }
    check(&["--version"], 0, &["forebay ", env!("CARGO_PKG_VERSION")]);
    for shell in ["bash", "zsh", "fish"] {
        check(&["completions", shell], 0, &["gateway", "admin"]);
    }
    check(
        &["sim", "--list-profiles"],
        0,
        &["rtxpro6000-llama-3.1-8b-tp1", "source: "],
    );
}

#[test]
fn wrong_command_lines_end_with_2_and_say_what_would_be_right() {
    check(&["gateway"], 2, &["--config"]);
    check(
        &["gateway", "--config", "nowhere.yaml"],
        2,
        &["nowhere.yaml: no such file"],
    );
    check(
        &["gateway", "--config", ".", "--drain-timeout", "5"],
        2,
        &["such as 250ms"],
    );
    check(
        &["gateway", "--config", ".", "--kubernetes"],
        2,
        &["'--config <PATH>...' cannot be used with '--kubernetes'"],
    );
    check(
        &["gateway", "--kubernetes", "--gateway", "a/b"],
        2,
        &["--data-plane-only"],
    );
    check(
        &["gateway", "--kubernetes", "--kubeconfig", "nowhere"],
        1,
        &["no way to a Kubernetes API server: nowhere: "],
    );
    check(
        &["gateway", "--config", ".", "--log", "a=b=c"],
        2,
        &["--log", "try error"],
    );
    check(
        &["check", "nowhere"],
        2,
        &["nowhere: no such file or folder"],
    );
    check(
        &["sim", "--profile", "abacus"],
        2,
        &["unknown profile abacus; there are: "],
    );
    check(&["frobnicate"], 2, &["unrecognized subcommand"]);
}

#[test]
fn an_absent_gateway_is_named_with_the_flag_that_finds_it() {
    let admin = format!("127.0.0.1:{}", free_port(1));
    for command in ["status", "explain"] {
        check(
            &[command, "--admin", &admin],
            1,
            &[&admin, "--admin", "forebay gateway"],
        );
    }
}

#[test]
fn check_names_file_line_field_and_cure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("bad.yaml");
    let route = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: chat}
spec:
  parentRefs: [{name: nobody}]
  rules:
  - matches: [{path: {type: Prefix, value: /}}]
";
    fs::write(&file, route).expect("writable");
    let path = file.to_str().expect("UTF-8");
    check(
        &["check", path],
        1,
        &[
            "error: HTTPRoute default/chat",
            "bad.yaml:1",
            "spec.rules[0]",
        ],
    );
    fs::write(&file, "kind: [").expect("writable");
    check(&["check", path], 1, &["bad.yaml:", "Unreadable"]);
    check(
        &[
            "gateway",
            "--strict",
            "--config",
            path,
            "--admin",
            "127.0.0.1:0",
        ],
        1,
        &["--strict"],
    );
}

#[test]
fn the_examples_are_sound() {
    let folder = root().join("examples");
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the examples") {
        let path = entry.expect("readable").path();
        check(
            &["check", path.to_str().expect("UTF-8")],
            0,
            &["0 errors, 0 warnings"],
        );
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn a_request_can_be_explained_and_the_gateway_described() {
    let world = World::start(2);
    let served = chat(world.address(), "why there?", 2);
    let endpoint = served
        .endpoint
        .expect("the header names the endpoint")
        .to_string();
    let id = served
        .head
        .lines()
        .find_map(|line| line.strip_prefix("x-request-id: "));
    let id = id.expect("every answer has an id").to_owned();
    let admin = world.admin.to_string();
    // The decision is kept when the exchange has ended on the gateway's side.
    wait_for("the decision", || {
        output(&["explain", "--admin", &admin, "--id", &id])
            .status
            .success()
            .then_some(())
    });
    check(
        &["explain", "--admin", &admin],
        0,
        &[&id, &endpoint, "picked by", "prefix"],
    );
    check(
        &["explain", "--admin", &admin, "--pool", "sims", "--json"],
        0,
        &["\"candidates\""],
    );
    check(
        &["explain", "--admin", &admin, "--id", "none"],
        1,
        &["no request none"],
    );
    let port = format!("port {}", world.port);
    check(
        &["status", "--admin", &admin],
        0,
        &[
            "ready",
            &port,
            "HTTPRoute default/all",
            "InferencePool default/sims",
            &endpoint,
            "good",
        ],
    );
    check(
        &["status", "--admin", &admin, "--json"],
        0,
        &["\"generation\""],
    );
}

#[test]
fn a_taken_admin_port_is_named() {
    let world = World::start(1);
    let folder = world.folder.path().to_str().expect("UTF-8").to_owned();
    let admin = world.admin.to_string();
    check(
        &["gateway", "--config", &folder, "--admin", &admin],
        1,
        &[&admin, "--admin"],
    );
}
