//! An `EndpointPickerConfig` as the policy of a running gateway, and as it is checked.

mod support;

use std::fs;
use std::path::Path;

use support::{World, get, output, root, stdout, wait_for};

/// Two profiles, of which the one named `works` finds endpoints.
fn configuration(works: &str, fails: &str) -> String {
    format!(
        "apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- {{type: header-profile-handler, parameters: {{defaultProfile: {works}}}}}
- {{type: queue-scorer}}
- {{name: ours, type: label-selector-filter, parameters: {{matchLabels: {{app: sim}}}}}}
- {{name: nobodys, type: label-selector-filter, parameters: {{matchLabels: {{app: nobody}}}}}}
schedulingProfiles:
- {{name: {works}, plugins: [{{pluginRef: ours}}, {{pluginRef: queue-scorer}}]}}
- {{name: {fails}, plugins: [{{pluginRef: nobodys}}]}}
"
    )
}

/// Replaces the file, whole at once.
fn write(file: &Path, text: &str) {
    let next = file.with_extension("next");
    fs::write(&next, text).expect("a writable folder");
    fs::rename(&next, file).expect("a writable folder");
}

/// Status and reason of a request for `profile`.
fn asked(world: &World, profile: &str) -> (u16, String) {
    let line = format!("POST /v1/completions HTTP/1.1\r\nEPP-Profile: {profile}\r\n");
    let model = "sim";
    let body = format!("{{\"model\":\"{model}\",\"prompt\":\"x\",\"max_tokens\":1}}");
    let answer = support::exchange(world.address(), &line, &body);
    (answer.status, answer.body)
}

fn metric(world: &World, line: &str) -> bool {
    let page = get(world.admin, "/metrics").expect("metrics");
    let found = page.lines().any(|l| l == line);
    if !found {
        let name = line.split(' ').next().unwrap_or(line);
        page.lines()
            .filter(|l| l.starts_with(name))
            .for_each(|l| println!("{l}"));
    }
    found
}

#[test]
fn a_field_chooses_the_profile_and_the_file_is_followed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("epp.yaml");
    write(&file, &configuration("left", "right"));
    let path = file.to_str().expect("UTF-8");
    let world = World::start_with_arguments(2, &["--picker-config", path, "--llm-d-metrics"]);
    let (status, body) = asked(&world, "left");
    assert_eq!(status, 200, "{body}");
    let (status, body) = asked(&world, "right");
    assert_eq!(status, 503, "{body}");
    assert!(
        body.contains("filters of the pool's policy leave none of 2 endpoints"),
        "{body}"
    );
    let (status, body) = asked(&world, "middle");
    assert_eq!(status, 400, "{body}");
    assert!(body.contains("unknown_profile"), "{body}");
    write(&file, &configuration("right", "left"));
    wait_for("the changed file is in force", || {
        (asked(&world, "left").0 == 503).then_some(())
    });
    assert_eq!(asked(&world, "right").0, 200);
    // What does not hold changes nothing, and is told.
    write(
        &file,
        "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins: [{type: queue-scorrer}]\n",
    );
    let status = wait_for("the broken file is noticed", || {
        Some(world.status()).filter(|status| status.contains("queue-scorrer"))
    });
    assert!(status.contains("did you mean queue-scorer?"), "{status}");
    assert!(metric(
        &world,
        "forebay_picker_config_last_reload_successful 0"
    ));
    assert_eq!(asked(&world, "left").0, 503);
    assert_eq!(asked(&world, "right").0, 200);
    write(&file, &configuration("left", "right"));
    wait_for("the file holds again", || {
        (metric(&world, "forebay_picker_config_last_reload_successful 1")
            && asked(&world, "right").0 == 503)
            .then_some(())
    });
    // The names of llm-d are there because they were asked for.
    let page = get(world.admin, "/metrics").expect("metrics");
    for part in [
        "llm_d_epp_ready_endpoints{name=\"sims\",namespace=\"default\"} 2",
        "llm_d_epp_request_error_total{",
        "llm_d_epp_scheduler_attempts_total{",
    ] {
        assert!(page.contains(part), "no {part:?} in\n{page}");
    }
}

#[test]
fn a_gateway_does_not_start_by_a_configuration_that_does_not_hold() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("epp.yaml");
    fs::write(&file, "kind: nothing\n").expect("a writable folder");
    let path = file.to_str().expect("UTF-8");
    let conf = folder.path().to_str().expect("UTF-8");
    let output = output(&[
        "gateway",
        "--config",
        conf,
        "--picker-config",
        path,
        "--admin",
        "127.0.0.1:0",
    ]);
    let said = support::stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("EndpointPickerConfig is needed"), "{said}");
}

#[test]
fn check_tells_what_plugins_become_or_what_is_wrong() {
    let fixtures = root().join("crates/api/tests/picker_config");
    let check = |name: &str, more: &[&str]| {
        let file = fixtures.join(name);
        let mut arguments = vec!["epp", "check", file.to_str().expect("UTF-8")];
        arguments.extend(more);
        let output = output(&arguments);
        (output.status.code(), stdout(&output))
    };
    let (status, text) = check("flow-control.yaml", &[]);
    assert_eq!(status, Some(0), "{text}");
    for part in [
        "queue-scorer",
        "scorer queue-span",
        "tenants take turns",
        "llm-d.ai/v1: it holds",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let (status, text) = check("prefill-decode.yaml", &[]);
    assert_eq!(status, Some(1), "{text}");
    assert!(
        text.contains("disagg-profile-handler (plugins[1])"),
        "{text}"
    );
    let (status, text) = check("flow-control.yaml", &["--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (status, &json["plugins"][0]["became"]),
        (Some(0), &"scorer queue-span".into())
    );
    let (status, text) = check("prefill-decode.yaml", &["--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (status, &json["errors"][0]["reason"]),
        (Some(1), &"NoEquivalent".into())
    );
    assert_eq!(check("nowhere.yaml", &[]).0, Some(2));
}
