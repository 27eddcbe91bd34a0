//! Rules that the kinds of route share, and those of GRPCRoute and TLSRoute.

use super::httproute::{check_filters, check_named, has};
use super::{Report, syntax};
use crate::kinds::grpcroute::{GrpcMethod, GrpcRoute, GrpcRule};
use crate::kinds::httproute::{BackendRef, FilterKind, HttpFilter, TextKind};
use crate::kinds::route::ParentRef;
use crate::kinds::tlsroute::TlsRoute;

/// Most matches in all rules of a route together, by the CRD.
const MATCHES_MAX: usize = 128;
/// Largest weight of a backend, by the CRD.
const WEIGHT_MAX: u32 = 1_000_000;

pub(super) fn check_parents(parents: &[ParentRef], report: &mut Report<'_>) {
    report.len(parents.len(), 0..=32, "spec.parentRefs");
    let parents = parents.iter().map(|parent| {
        let section = parent.section_name.as_deref().unwrap_or("every listener");
        let port = parent
            .port
            .map_or_else(|| "any port".to_owned(), |p| p.to_string());
        let namespace = parent.namespace.as_deref().unwrap_or_default();
        format!(
            "{} {namespace}/{} ({section}, {port})",
            parent.kind, parent.name
        )
    });
    report.unique(parents, |i| format!("spec.parentRefs[{i}]"));
}

pub(super) fn check_hosts(
    hosts: &[String],
    allowed: std::ops::RangeInclusive<usize>,
    report: &mut Report<'_>,
) {
    report.len(hosts.len(), allowed, "spec.hostnames");
    for (i, host) in hosts.iter().enumerate() {
        let at = format!("spec.hostnames[{i}]");
        report.check(syntax::is_host(host), at, syntax::HOST_HELP);
    }
}

/// `matches` gives the number of matches of each rule.
pub(super) fn check_counts(
    rules: usize,
    matches: impl Iterator<Item = usize>,
    report: &mut Report<'_>,
) {
    report.len(rules, 0..=16, "spec.rules");
    let matches: usize = matches.sum();
    report.check(
        matches <= MATCHES_MAX,
        "spec.rules",
        format!("has {matches} matches, {MATCHES_MAX} are allowed"),
    );
}

pub(super) fn check_rule_names<'a>(
    names: impl Iterator<Item = Option<&'a String>>,
    report: &mut Report<'_>,
) {
    let named = names.enumerate();
    let named: Vec<_> = named.filter_map(|(i, name)| Some((i, name?))).collect();
    report.unique(named.iter().map(|(_, name)| name), |at| {
        format!("spec.rules[{}].name", named[at].0)
    });
}

/// The parts of a reference to a backend.
pub(super) struct Backend<'a> {
    pub(super) group: &'a str,
    pub(super) kind: &'a str,
    pub(super) port: Option<u16>,
    pub(super) weight: u32,
}

impl<'a> Backend<'a> {
    pub(super) fn of(backend: &'a BackendRef) -> Self {
        Self {
            group: &backend.group,
            kind: &backend.kind,
            port: backend.port,
            weight: backend.weight,
        }
    }
}

pub(super) fn check_backend(backend: &Backend<'_>, at: &str, report: &mut Report<'_>) {
    report.check(
        backend.kind != "Service" || !backend.group.is_empty() || backend.port.is_some(),
        format!("{at}.port"),
        "a Service needs a port",
    );
    report.check(
        backend.port.is_none_or(|port| port > 0),
        format!("{at}.port"),
        "a port is 1 to 65535",
    );
    report.check(
        backend.weight <= WEIGHT_MAX,
        format!("{at}.weight"),
        format!("a weight is 0 to {WEIGHT_MAX}"),
    );
}

pub(super) fn grpc(route: &GrpcRoute, report: &mut Report<'_>) {
    let spec = &route.spec;
    let scope = spec.use_default_gateways.as_ref();
    report.unsupported(scope, "spec.useDefaultGateways");
    check_parents(&spec.parent_refs, report);
    check_hosts(&spec.hostnames, 0..=16, report);
    let matches = spec.rules.iter().map(|rule| rule.matches.len());
    check_counts(spec.rules.len(), matches, report);
    check_rule_names(spec.rules.iter().map(|rule| rule.name.as_ref()), report);
    for (i, rule) in spec.rules.iter().enumerate() {
        grpc_rule(rule, &format!("spec.rules[{i}]"), report);
    }
}

fn grpc_rule(rule: &GrpcRule, at: &str, report: &mut Report<'_>) {
    report.len(rule.matches.len(), 0..=64, format!("{at}.matches"));
    for (i, wanted) in rule.matches.iter().enumerate() {
        let at = format!("{at}.matches[{i}]");
        check_named(&wanted.headers, &format!("{at}.headers"), report);
        if let Some(method) = &wanted.method {
            grpc_method(method, &format!("{at}.method"), report);
        }
    }
    grpc_filters(&rule.filters, &format!("{at}.filters"), report);
    report.len(rule.backend_refs.len(), 0..=16, format!("{at}.backendRefs"));
    for (i, backend) in rule.backend_refs.iter().enumerate() {
        let at = format!("{at}.backendRefs[{i}]");
        check_backend(&Backend::of(backend), &at, report);
        grpc_filters(&backend.filters, &format!("{at}.filters"), report);
    }
    let at = format!("{at}.sessionPersistence");
    report.unsupported(rule.session_persistence.as_ref(), at);
}

fn grpc_method(method: &GrpcMethod, at: &str, report: &mut Report<'_>) {
    let (service, name) = (method.service.as_str(), method.method.as_str());
    report.check(
        !service.is_empty() || !name.is_empty(),
        at,
        "write service, method or both",
    );
    if method.kind == TextKind::RegularExpression {
        return;
    }
    report.check(
        service.is_empty() || syntax::is_grpc_service(service),
        format!("{at}.service"),
        "a service is names of letters, digits and _ joined by dots",
    );
    report.check(
        name.is_empty() || syntax::is_identifier(name),
        format!("{at}.method"),
        "a method is letters, digits and _",
    );
}

fn grpc_filters(filters: &[HttpFilter], at: &str, report: &mut Report<'_>) {
    let foreign = [
        FilterKind::RequestRedirect,
        FilterKind::UrlRewrite,
        FilterKind::Cors,
        FilterKind::ExternalAuth,
    ];
    for kind in foreign {
        let message = format!("a GRPCRoute has no filters of type {}", kind.names().0);
        report.check(!has(filters, kind), at, message);
    }
    check_filters(filters, &[], at, report);
}

pub(super) fn tls(route: &TlsRoute, report: &mut Report<'_>) {
    let spec = &route.spec;
    let scope = spec.use_default_gateways.as_ref();
    report.unsupported(scope, "spec.useDefaultGateways");
    check_parents(&spec.parent_refs, report);
    check_hosts(&spec.hostnames, 1..=1024, report);
    report.len(spec.rules.len(), 1..=1, "spec.rules");
    for (i, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{i}].backendRefs");
        report.len(rule.backend_refs.len(), 1..=16, &at);
        for (j, backend) in rule.backend_refs.iter().enumerate() {
            let backend = Backend {
                group: &backend.group,
                kind: &backend.kind,
                port: backend.port,
                weight: backend.weight,
            };
            check_backend(&backend, &format!("{at}[{j}]"), report);
        }
    }
}
