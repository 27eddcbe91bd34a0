//! YAML to objects and back to text, for every test of this crate.
#![allow(dead_code, reason = "each test binary uses its part")]

use forebay_api::{Index, Object, Publication, Settings, describe};
use forebay_model::snapshot::Problem;
use serde_json::Value;

/// The documents of `text`.
pub(crate) fn values(text: &str) -> Vec<Value> {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_multiple_with_options(text, options)
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The objects of `text`, all of which are good.
pub(crate) fn parse(text: &str) -> Vec<Object> {
    let values = values(text).into_iter();
    let parsed = values.map(|value| Object::parse(value).unwrap_or_else(|p| panic!("{p:#?}")));
    parsed.map(|parsed| parsed.object).collect()
}

/// An index as of files with the objects of `text`.
pub(crate) fn index(text: &str) -> Index {
    let mut index = Index::new(Settings::default());
    parse(text)
        .into_iter()
        .for_each(|object| index.apply(object));
    index
}

/// Lowers the objects of `text` and expects the snapshot to read `want`.
#[track_caller]
pub(crate) fn check(text: &str, want: &str) {
    compare(&describe::snapshot(&index(text).publish().snapshot), want);
}

/// Lowers the objects of `text` and expects their statuses to read `want`.
#[track_caller]
pub(crate) fn check_statuses(text: &str, want: &str) {
    compare(&describe::statuses(&index(text).publish().statuses), want);
}

/// Parses one object and expects its problems, warnings included, to read `want`.
#[track_caller]
pub(crate) fn check_problems(text: &str, want: &str) {
    let value = values(text).remove(0);
    let problems: Vec<Problem> = match Object::parse(value) {
        Ok(parsed) => parsed.warnings,
        Err(problems) => problems,
    };
    let lines: String = problems
        .iter()
        .map(|problem| format!("{problem}\n"))
        .collect();
    compare(&lines, want);
}

/// The snapshot and the statuses.
pub(crate) fn describe_all(published: &Publication) -> String {
    describe::snapshot(&published.snapshot) + &describe::statuses(&published.statuses)
}

#[track_caller]
pub(crate) fn compare(got: &str, want: &str) {
    let want = want.trim_start_matches('\n');
    assert!(got == want, "wanted:\n{want}\ngot:\n{got}");
}

/// A Gateway of the namespace `default` with `listeners`; `spec` goes before them.
pub(crate) fn gateway(name: &str, spec: &str, listeners: &str) -> String {
    format!(
        "\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: {name}}}, spec: {{gatewayClassName: forebay, {spec} listeners: [{listeners}]}}}}"
    )
}

/// An object of Gateway API; `name` may be `namespace/name`, `@` and its age in days, 1 to 9, after
/// that.
pub(crate) fn object(kind: &str, name: &str, spec: &str) -> String {
    let (name, age) = name.split_once('@').unwrap_or((name, ""));
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let created = match age.parse::<u8>() {
        Ok(days) => format!(", creationTimestamp: '2026-01-{:02}T00:00:00Z'", 31 - days),
        Err(_) => String::new(),
    };
    format!(
        "\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{name: {name}, namespace: {namespace}{created}}}, spec: {{{spec}}}}}"
    )
}

/// A Service `name` or `namespace/name`.
pub(crate) fn service(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    format!(
        "\n---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{spec}}}}}"
    )
}

/// A TLS Secret `name` or `namespace/name`.
pub(crate) fn secret(name: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    format!(
        "\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n    -----BEGIN CERTIFICATE-----\n    AAAA\n    -----END CERTIFICATE-----\n  tls.key: |\n    -----BEGIN EC PRIVATE KEY-----\n    AAAA\n    -----END EC PRIVATE KEY-----\n"
    )
}

/// A ConfigMap `name` or `namespace/name` with a bundle of authorities.
pub(crate) fn bundle(name: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    format!(
        "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\ndata:\n  other: x\n  ca.crt: |\n    -----BEGIN CERTIFICATE-----\n    AAAA\n    -----END CERTIFICATE-----\n"
    )
}

/// Lowers the objects and expects snapshot and statuses to read `want`.
#[track_caller]
pub(crate) fn check_all(objects: &[String], want: &str) {
    let mut index = index(&objects.concat());
    compare(&describe_all(&index.publish()), want);
}
