//! Documents as text, what becomes of them as text. The documents of `tests/picker_config` have the
//! shapes that the public guides of llm-d and the Inference Extension have.

use forebay_model::policy::{Fairness, Saturation};

use super::parts::KNOWN;
use super::refused::REFUSED;
use super::*;

/// A document with these lines after its first two.
fn document(body: &str) -> String {
    format!("apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n{body}")
}

fn errors(text: &str) -> String {
    let problems = read(text).expect_err("it is wrong");
    let lines = problems
        .iter()
        .map(|p| format!("{}: {}: {}\n", p.field, p.reason, p.message));
    lines.collect()
}

#[track_caller]
fn loaded(text: &str) -> Loaded {
    match read(text) {
        Ok(loaded) => loaded,
        Err(problems) => panic!("{text}\n{problems:#?}"),
    }
}

/// One profile as text: filters, scorers, picker.
fn policy(picker: &PickerConfig) -> String {
    let profile = |profile: &forebay_model::policy::Profile| {
        let filters = profile.filters.iter().map(words::plainly);
        let scorers = profile.scorers.iter();
        let scorers = scorers.map(|s| format!("{}*{}", words::plainly(&s.scorer), s.weight));
        let parts: Vec<String> = filters.chain(scorers).collect();
        let kind = words::plainly(&profile.picker);
        let (name, parts) = (&profile.name, parts.join(" | "));
        format!("{name}: {parts} -> {kind} {}", profile.endpoints_max)
    };
    let profiles: Vec<String> = picker.profiles.iter().map(profile).collect();
    profiles.join("\n")
}

/// The public guides: each loads as said here, or is refused for the reasons named here.
#[test]
fn the_configurations_of_public_guides_load_or_are_refused_by_name() {
    let load = |name: &str, text: &str, expected: &str| {
        assert_eq!(policy(&loaded(text).picker), expected, "{name}");
    };
    let refuse = |name: &str, text: &str, named: &[&str]| {
        let said = errors(text);
        for part in named {
            assert!(
                said.contains(part),
                "{name} does not name {part:?}:\n{said}"
            );
        }
        // Together, not one after the other.
        let refusals = said.matches("no equivalent here").count();
        assert!(refusals <= 1, "{name}: {said}");
    };
    macro_rules! guide {
        ($name:literal) => {
            (
                $name,
                include_str!(concat!("../../tests/picker_config/", $name, ".yaml")),
            )
        };
    }
    let three = "default: queue-span*2 | kv-cache*2 | prefix*3 -> max-score 3";
    let four = "default: queue-span*2 | kv-cache*2 | prefix*3 | cold-spread*2 -> max-score 3";
    let affinity = |settings: &str| {
        format!(
            "default: prefix-affinity {{{settings}}} | prefill-share {{tokensMax: 4194304}}*1 -> \
             max-score 3"
        )
    };
    let loads: &[((&str, &str), &str)] = &[
        (guide!("inference-scheduling"), three),
        (guide!("optimized-baseline-first"), four),
        (guide!("spec-decoding"), four),
        (
            guide!("optimized-baseline"),
            &affinity(
                "backlogMaxTokens: 286720, exploration: 0, predicted: false, prefillTokensPerS: 15928, share: 0.8",
            ),
        ),
        (
            guide!("multimodal-aggregation"),
            &affinity(
                "backlogMaxMs: 36000, exploration: 0, predicted: false, prefillTokensPerS: 15751, share: 0.6",
            ),
        ),
        (
            guide!("precise-prefix"),
            "default: stage decode | prefix*3 | kv-cache*2 | queue-span*2 -> max-score 3",
        ),
        (
            guide!("precise-prefix-first"),
            "default: stage decode | kv-cache*2 | queue-span*2 | prefix*3 | cold-spread*2 -> max-score 3",
        ),
        (
            guide!("tiered-prefix-cache"),
            "default: queue-span*2 | kv-cache*2 | prefix*1 | prefix*1 -> max-score 3",
        ),
        (
            guide!("mooncake-offloading"),
            "default: queue-span*1 | kv-cache*1 | prefix*1 | cold-spread*1 -> max-score 3",
        ),
        (guide!("flow-control"), three),
        (
            guide!("coordinated-disaggregation"),
            "encode: stage encode | active-requests {busyScoreMax: 1, idleMax: 0}*1 -> max-score 3\n\
             prefill: stage prefill | prefix-affinity {backlogMaxMs: 18000, exploration: 0, \
             predicted: false, prefillTokensPerS: 15928, share: 0.8} | prefill-share {tokensMax: 4194304}*1 -> \
             max-score 3\n\
             decode: stage decode | active-requests {busyScoreMax: 1, idleMax: 0}*1 -> max-score 3",
        ),
        (
            guide!("predicted-latency-slo"),
            "default: prefix-affinity {backlogMaxMs: 5000, exploration: 0, predicted: true, \
             prefillTokensPerS: 15928, share: 0.99} | slo-headroom {exploration: 0.01} | \
             prefix-affinity {backlogMaxMs: 5000, exploration: 0, predicted: true, \
             prefillTokensPerS: 15928, share: 0.8} | \
             latency {headroom: least, tpotWeight: 0.2, ttftWeight: 0.8}*1 -> weighted-random 3",
        ),
        (guide!("gradual-shedding"), "default:  -> random 3"),
        (guide!("passthrough"), "default:  -> random 3"),
        (
            guide!("session-affinity"),
            "default: session | session*10 | queue-span*1 -> max-score 3",
        ),
        (
            guide!("inference-extension-1.1"),
            "default: label-or-none {label: role, values: [decode]} | prefix*50 | \
             queue-share {queueMax: 10}*1 -> max-score 1",
        ),
    ];
    for ((name, text), expected) in loads {
        load(name, text, expected);
    }
    let refused: &[((&str, &str), &[&str])] = &[
        (
            guide!("prefill-decode"),
            &["disagg-profile-handler (plugins[1])", "EPP-Profile"],
        ),
        (
            guide!("context-length-prefill-decode"),
            &["disagg-headers-handler (plugins[0])", "3 plugins"],
        ),
        (
            guide!("turn-priority"),
            &["program-aware-fairness", "round-robin", "enableEviction"],
        ),
        (guide!("multi-cluster-hub"), &["5 plugins", "not clusters"]),
        (guide!("peer-caches"), &["p2p-source-producer (plugins[3])"]),
        (
            guide!("inference-extension-0.4"),
            &["decision-tree-filter (plugins[4])", "utilization-filter"],
        ),
    ];
    for ((name, text), named) in refused {
        refuse(name, text, named);
    }
}

#[test]
fn flow_control_keeps_its_bands_and_limits() {
    let text = include_str!("../../tests/picker_config/flow-control.yaml");
    let picker = loaded(text).picker;
    assert_eq!(
        picker.saturation,
        Saturation::Inflight {
            requests_max: Some(132),
            tokens_max: None
        }
    );
    assert_eq!(picker.queue_at_saturation, Some(1.0));
    assert_eq!(
        (picker.queue_requests_max, picker.queue_bytes_max),
        (1_000, 10 << 30)
    );
    assert!(!picker.shed_negative, "with flow control everybody waits");
    let bands = picker.bands.expect("bands");
    assert_eq!(
        [100, 0, -10, 7].map(|p| bands.of(p).requests_max),
        [500, 200, 50, 5_000]
    );
    assert_eq!(bands.of(100).fairness, Fairness::Turns);
    assert_eq!(bands.of(7).fairness, Fairness::Arrival);
    assert_eq!(bands.of(-10).timeout_ms, Some(60_000));
}

#[test]
fn without_the_gate_nobody_waits_and_negative_priorities_are_shed() {
    let picker = loaded(&document("plugins: [{type: queue-scorer}]\n")).picker;
    assert_eq!(picker.queue_at_saturation, None);
    assert!(picker.shed_negative && picker.bands.is_none());
    assert_eq!(picker.shed_at_saturation, 1.0);
}

#[test]
fn ceilings_are_spread_over_the_bands_that_there_are() {
    let text = |parameters: &str| {
        document(&format!(
            "featureGates: [flowControl]\n\
             plugins:\n- {{type: queue-scorer}}\n\
             - {{type: priority-holdback-policy, parameters: {parameters}}}\n\
             flowControl:\n  usageLimitPolicyPluginRef: priority-holdback-policy\n\
             \x20 priorityBands: [{{priority: 10}}, {{priority: 0}}, {{priority: 2}}]\n"
        ))
    };
    let ceilings = |parameters: &str| {
        let bands = loaded(&text(parameters)).picker.bands.expect("bands");
        [10, 2, 0, 5].map(|p| (bands.of(p).ceiling * 100.0).round() as u32)
    };
    assert_eq!(
        ceilings("{minCeiling: 0.4, maxCeiling: 0.9}"),
        [90, 65, 40, 40]
    );
    assert_eq!(
        ceilings("{domain: value, minCeiling: 0.5}"),
        [100, 60, 50, 50]
    );
    assert_eq!(
        ceilings("{domain: explicit, ceilings: {10: 0.9, 5: 0.6, 0: 0.3}}"),
        [90, 0, 30, 60]
    );
    assert!(errors(&text("{}")).contains("minCeiling: Malformed: is needed"));
}

#[test]
fn what_is_misspelt_is_named_with_its_place_and_what_it_should_be() {
    let check = |body: &str, said: &[&str]| {
        let errors = errors(&document(body));
        for part in said {
            assert!(errors.contains(part), "{body}: no {part:?} in\n{errors}");
        }
    };
    check(
        "plugin: []\n",
        &["plugin: NoSuchField: no such field; did you mean plugins?"],
    );
    check(
        "plugins: [{type: queue-scorrer}]\n",
        &["queue-scorrer (plugins[0]): there is no such type; did you mean queue-scorer?"],
    );
    check(
        "plugins: [{type: active-request-scorer, parameters: {idleTreshold: 1, maxBusyScore: 2}}]\n",
        &[
            "plugins[0].parameters.idleTreshold: NoSuchField: no such field; did you mean idleThreshold?",
            "plugins[0].parameters.maxBusyScore: Malformed: 2 is not within 0 to 1",
        ],
    );
    check(
        "plugins: [{type: queue-scorer}]\nschedulingProfiles: [{name: a, plugins: [{pluginRef: queue}]}]\n",
        &["schedulingProfiles[0].plugins[0].pluginRef: Unresolved: there is no plugin \"queue\""],
    );
    check(
        "plugins: [{type: queue-scorer}, {type: queue-scorer}]\n",
        &["plugins[1]: Unresolved: two plugins are called queue-scorer"],
    );
    check(
        "plugins: [{type: queue-scorer}]\nfeatureGates: [flowcontrol]\n",
        &["there is no gate \"flowcontrol\"; did you mean flowControl?"],
    );
    check(
        "plugins: [{type: queue-scorer}, {type: single-profile-handler}]\n\
         schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer}]}, \
         {name: b, plugins: [{pluginRef: queue-scorer}]}]\n",
        &["plugins[1]: Unresolved: several profiles, of which a request gets one"],
    );
    check(
        "saturationDetector: {pluginRef: x}\n",
        &["saturationDetector: NoSuchField"],
    );
    check(
        "plugins: [{type: queue-scorer, parameters: 3}]\n",
        &["an object is needed here, not 3"],
    );
    for (text, said) in [
        ("a: [", "no YAML"),
        (
            "kind: EndpointPickerConfig\napiVersion: llm-d.ai/v2\n",
            "\"llm-d.ai/v2\" is not read",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\n",
            "ConfigMap where EndpointPickerConfig is needed",
        ),
        ("3", "an object is needed here"),
    ] {
        assert!(errors(text).contains(said), "{text}: {}", errors(text));
    }
    let long = "#".repeat(TEXT_BYTES_MAX + 1);
    assert!(errors(&long).contains("longer than"));
}

#[test]
fn old_names_and_places_are_taken_with_a_note() {
    let text = include_str!("../../tests/picker_config/inference-extension-1.1.yaml");
    let loaded = loaded(text);
    let notes: String = loaded
        .notes
        .iter()
        .map(|n| format!("{}: {}\n", n.field, n.message))
        .collect();
    for part in [
        "by-label is called label-selector-filter now",
        "hashBlockSize counts bytes",
        "belong to approx-prefix-cache-producer now",
        "saturationDetector.pluginRef: belongs into flowControl.saturationDetector now",
        "parser.pluginRef: belongs into requestHandler.parsers now",
        "prepareDataPlugins: it is on anyway",
    ] {
        assert!(notes.contains(part), "no {part:?} in\n{notes}");
    }
    assert_eq!(loaded.version, Version::Legacy);
    let picker = loaded.picker;
    // 64 bytes are 16 tokens, and blocks are 64 at least.
    assert_eq!(
        (picker.prefix_block_bytes, picker.prefix_blocks_max),
        (256, 256)
    );
}

#[test]
fn every_known_type_says_what_it_becomes_and_is_in_the_documentation() {
    let documented = include_str!("../../../../docs/picker-config.md");
    for kind in KNOWN.iter().copied().chain(REFUSED.iter().map(|r| r.kind)) {
        assert!(
            documented.contains(&format!("`{kind}`")),
            "{kind} is not documented"
        );
    }
    for refused in REFUSED {
        assert!(
            !KNOWN.contains(&refused.kind),
            "{} is in both lists",
            refused.kind
        );
    }
    let needed = [
        ("by-label", "{label: a, validValues: [b]}"),
        (
            "endpoint-attribute-filter",
            "{attribute: num_requests_running, algorithm: {type: topK, topK: {k: 2}}}",
        ),
        (
            "endpoint-attribute-scorer",
            "{attributeKey: queue_depth, algorithm: {type: linear_lower_is_better}}",
        ),
        (
            "utilization-filter",
            "{conditions: [{metric: waiting-queue, maxValue: 3}]}",
        ),
        ("active-request-filter", "{maxActiveRequests: 3}"),
        (
            "header-label-affinity-scorer",
            "{headerName: X-Zone, labelKey: zone, stampResponseHeader: false}",
        ),
        ("priority-holdback-policy", "{minCeiling: 0.5}"),
    ];
    for kind in KNOWN {
        let parameters = needed.iter().find(|(known, _)| known == kind);
        let parameters = parameters.map_or("{}", |(_, parameters)| parameters);
        let body = format!("plugins: [{{type: {kind}, name: it, parameters: {parameters}}}]\n");
        let loaded = loaded(&document(&body));
        let became = loaded
            .plugins
            .iter()
            .find(|p| p.name == "it")
            .expect("it is told");
        assert!(!became.became.is_empty(), "{kind}");
    }
}
