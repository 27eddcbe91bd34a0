//! Rules of InferencePool, InferenceObjective and InferenceModelRewrite.

use super::{Report, syntax};
use crate::kinds::POOL_GROUP;
use crate::kinds::inference::{InferenceModelRewrite, InferencePool, PoolRef};

/// API groups by which references name a pool: its own, and those that objectives and rewrites have had
/// it in. llm-d's definitions fill in theirs.
const POOL_GROUPS: [&str; 3] = [POOL_GROUP, "inference.networking.x-k8s.io", "llm-d.ai"];
/// Largest weight of a rewrite target.
const WEIGHT_MAX: u32 = 1_000_000;

pub(super) fn pool(pool: &InferencePool, report: &mut Report<'_>) {
    let spec = &pool.spec;
    let labels = &spec.selector.match_labels;
    report.len(labels.len(), 1..=64, "spec.selector.matchLabels");
    for (key, value) in labels {
        report.check(
            syntax::is_label_key(key) && syntax::is_label_value(value),
            format!("spec.selector.matchLabels[{key}]"),
            "not a label: letters, digits, -, _ and ., at most 63 characters",
        );
    }
    let at = |i: usize| format!("spec.targetPorts[{i}].number");
    report.len(spec.target_ports.len(), 1..=8, "spec.targetPorts");
    report.unique(spec.target_ports.iter().map(|p| p.number), at);
    for (i, port) in spec.target_ports.iter().enumerate() {
        report.check(port.number > 0, at(i), "a port is 1 to 65535");
    }
    if let Some(picker) = &spec.endpoint_picker_ref {
        let at = "spec.endpointPickerRef";
        report.check(
            !picker.name.is_empty(),
            format!("{at}.name"),
            "name the picker's Service",
        );
        report.check(
            picker.kind != "Service" || picker.port.is_some_and(|p| p.number > 0),
            format!("{at}.port"),
            "a picker that is a Service needs port.number",
        );
    }
}

pub(super) fn pool_ref(pool: &PoolRef, report: &mut Report<'_>) {
    report.check(
        POOL_GROUPS.contains(&pool.group.as_str()) && pool.kind == "InferencePool",
        "spec.poolRef",
        format!(
            "must name an InferencePool; its group is {}",
            POOL_GROUPS.join(", ")
        ),
    );
    report.check(
        syntax::is_dns_subdomain(&pool.name),
        "spec.poolRef.name",
        "name an InferencePool of the same namespace",
    );
}

pub(super) fn rewrite(rewrite: &InferenceModelRewrite, report: &mut Report<'_>) {
    pool_ref(&rewrite.spec.pool_ref, report);
    report.check(
        !rewrite.spec.rules.is_empty(),
        "spec.rules",
        "write one rule at least",
    );
    for (i, rule) in rewrite.spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        for (j, wanted) in rule.matches.iter().enumerate() {
            report.check(
                !wanted.model.value.is_empty(),
                format!("{at}.matches[{j}].model.value"),
                "name a model; leave matches out to match every model",
            );
        }
        let at = format!("{at}.targets");
        report.check(!rule.targets.is_empty(), &at, "write one target at least");
        let weighted = rule.targets.iter().filter(|t| t.weight.is_some()).count();
        report.check(
            weighted == 0 || weighted == rule.targets.len(),
            &at,
            "give a weight to all targets or to none",
        );
        for (j, target) in rule.targets.iter().enumerate() {
            report.check(
                target.weight.is_none_or(|w| (1..=WEIGHT_MAX).contains(&w)),
                format!("{at}[{j}].weight"),
                format!("a weight is 1 to {WEIGHT_MAX}"),
            );
            report.check(
                !target.model_rewrite.is_empty(),
                format!("{at}[{j}].modelRewrite"),
                "name the model that the server sees",
            );
        }
    }
}
