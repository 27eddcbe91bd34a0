//! A published configuration for people and for the admin server: problems in order of weight, the
//! conditions of objects, and what the sources are.

use std::path::PathBuf;

use forebay_api::ObjectStatus;
use forebay_api::reason::{Severity, severity};
use forebay_api::status::Condition;
use forebay_cluster::Published;
use forebay_model::snapshot::Problem;
use serde_json::{Value, json};

use crate::Failure;

/// Refuses paths that do not exist: a typing error, found best before anything runs.
pub(crate) fn check_paths(paths: &[PathBuf]) -> Result<(), Failure> {
    match paths.iter().find(|path| !path.exists()) {
        None => Ok(()),
        Some(path) => Err(Failure::usage(format!(
            "{}: no such file or folder; give manifests (.yaml, .yml, .json) or folders of them",
            path.display()
        ))),
    }
}

/// Problems of one configuration by weight.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) errors: usize,
    pub(crate) warnings: usize,
}

/// Counts problems; those that are mere information do not count.
pub(crate) fn counts(problems: &[Problem]) -> Counts {
    let of = |wanted| problems.iter().filter(|p| severity(p) == wanted).count();
    Counts {
        errors: of(Severity::Error),
        warnings: of(Severity::Warning),
    }
}

/// The word for how bad a problem is.
pub(crate) fn weight(problem: &Problem) -> &'static str {
    match severity(problem) {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// Problems as text, the worst first: what, where, why and what to do.
pub(crate) fn render_problems(problems: &[Problem]) -> String {
    let mut sorted: Vec<&Problem> = problems.iter().collect();
    sorted.sort_by_key(|problem| std::cmp::Reverse(severity(problem)));
    let one = |problem: &&Problem| {
        let Problem {
            object,
            field,
            reason,
            message,
        } = problem;
        let field = if field.is_empty() {
            String::new()
        } else {
            format!(" {field}")
        };
        format!(
            "{}: {object}{field}\n  {reason}: {message}\n",
            weight(problem)
        )
    };
    sorted.iter().map(one).collect()
}

/// What `/debug/config` shows of the sources and what `forebay status` prints.
pub(crate) fn to_json(sources: &[String], published: &Published) -> Value {
    let problems = published.snapshot.problems.iter().map(|p| {
        json!({
            "severity": weight(p),
            "object": p.object,
            "field": p.field,
            "reason": p.reason,
            "message": p.message,
        })
    });
    json!({
        "sources": sources,
        "problems": problems.collect::<Vec<_>>(),
        "objects": published.statuses.iter().map(object).collect::<Vec<_>>(),
        "ports": ports(published),
    })
}

fn ports(published: &Published) -> Value {
    let one = |(number, port): (&u16, &forebay_model::snapshot::Port)| {
        let listeners = port.listeners.iter().map(
            |listener| json!({ "gateway": listener.gateway.to_string(), "name": &*listener.name }),
        );
        json!({ "port": number, "tls": port.tls, "listeners": listeners.collect::<Vec<_>>() })
    };
    published.snapshot.ports.iter().map(one).collect()
}

fn object(status: &ObjectStatus) -> Value {
    let listeners = status.listeners.iter().map(|listener| {
        json!({
            "name": listener.name,
            "attachedRoutes": listener.attached_routes,
            "conditions": conditions(&listener.conditions),
        })
    });
    let parents = status.parents.iter().map(|parent| {
        json!({
            "kind": parent.kind,
            "name": parent.name.to_string(),
            "section": parent.section_name,
            "conditions": conditions(&parent.conditions),
        })
    });
    json!({
        "kind": status.kind.to_string(),
        "name": status.name.to_string(),
        "addresses": status.addresses.iter().map(|a| a.value.as_str()).collect::<Vec<_>>(),
        "conditions": conditions(&status.conditions),
        "listeners": listeners.collect::<Vec<_>>(),
        "parents": parents.collect::<Vec<_>>(),
    })
}

fn conditions(conditions: &[Condition]) -> Value {
    let one = |c: &Condition| json!({ "type": c.kind, "status": c.holds, "reason": c.reason, "message": c.message });
    conditions.iter().map(one).collect()
}
