//! Rules of HTTPRoute.

use std::time::Duration;

use super::routes::{
    Backend, check_backend, check_counts, check_hosts, check_parents, check_rule_names,
};
use super::{Report, syntax};
use crate::duration;
use crate::kinds::httproute::{
    FilterKind, HeaderModifier, HttpFilter, HttpMatch, HttpRoute, HttpRule, NamedValue, PathKind,
    PathModifier, PathModifierKind, RequestMirror, RequestRedirect,
};

pub(super) fn route(route: &HttpRoute, report: &mut Report<'_>) {
    let spec = &route.spec;
    let scope = spec.use_default_gateways.as_ref();
    report.unsupported(scope, "spec.useDefaultGateways");
    check_parents(&spec.parent_refs, report);
    check_hosts(&spec.hostnames, 0..=16, report);
    let matches = spec.rules.iter().map(|rule| rule.matches.len());
    check_counts(spec.rules.len(), matches, report);
    check_rule_names(spec.rules.iter().map(|rule| rule.name.as_ref()), report);
    for (i, rule) in spec.rules.iter().enumerate() {
        check_rule(rule, &format!("spec.rules[{i}]"), report);
    }
}

fn check_rule(rule: &HttpRule, at: &str, report: &mut Report<'_>) {
    report.len(rule.matches.len(), 0..=64, format!("{at}.matches"));
    for (i, wanted) in rule.matches.iter().enumerate() {
        check_match(wanted, &format!("{at}.matches[{i}]"), report);
    }
    check_filters(
        &rule.filters,
        &rule.matches,
        &format!("{at}.filters"),
        report,
    );
    report.len(rule.backend_refs.len(), 0..=16, format!("{at}.backendRefs"));
    for (i, backend) in rule.backend_refs.iter().enumerate() {
        let at = format!("{at}.backendRefs[{i}]");
        check_backend(&Backend::of(backend), &at, report);
        let filters = format!("{at}.filters");
        check_filters(&backend.filters, &rule.matches, &filters, report);
    }
    let redirects = |filters: &[HttpFilter]| has(filters, FilterKind::RequestRedirect);
    report.check(
        !redirects(&rule.filters) || rule.backend_refs.is_empty(),
        format!("{at}.backendRefs"),
        "a rule that redirects has no backends",
    );
    check_times(rule, at, report);
    let at = format!("{at}.sessionPersistence");
    report.unsupported(rule.session_persistence.as_ref(), at);
}

pub(super) fn has(filters: &[HttpFilter], kind: FilterKind) -> bool {
    filters.iter().any(|filter| filter.kind == kind)
}

fn check_match(wanted: &HttpMatch, at: &str, report: &mut Report<'_>) {
    let path = &wanted.path;
    let fault = match path.kind {
        PathKind::RegularExpression => None,
        PathKind::Exact | PathKind::PathPrefix => syntax::path_fault(&path.value),
    };
    let field = format!("{at}.path.value");
    report.check(fault.is_none(), field, fault.unwrap_or_default());
    check_named(&wanted.headers, &format!("{at}.headers"), report);
    check_named(&wanted.query_params, &format!("{at}.queryParams"), report);
}

pub(super) fn check_named(values: &[NamedValue], at: &str, report: &mut Report<'_>) {
    report.len(values.len(), 0..=16, at);
    report.unique(values.iter().map(|v| &v.name), |i| {
        format!("{at}[{i}].name")
    });
    for (i, value) in values.iter().enumerate() {
        let named = syntax::is_token(&value.name);
        let help = "a name is letters, digits and - . _ and the like";
        report.check(named, format!("{at}[{i}].name"), help);
        report.check(
            (1..=4096).contains(&value.value.len()),
            format!("{at}[{i}].value"),
            "a value has 1 to 4096 characters",
        );
    }
}

pub(super) fn check_filters(
    filters: &[HttpFilter],
    matches: &[HttpMatch],
    at: &str,
    report: &mut Report<'_>,
) {
    report.len(filters.len(), 0..=16, at);
    report.check(
        !(has(filters, FilterKind::RequestRedirect) && has(filters, FilterKind::UrlRewrite)),
        at,
        "RequestRedirect and URLRewrite exclude each other",
    );
    let repeatable = |kind| matches!(kind, FilterKind::RequestMirror | FilterKind::ExtensionRef);
    for (i, filter) in filters.iter().enumerate() {
        let repeated = filters[..i].iter().any(|other| other.kind == filter.kind);
        let field = format!("{at}[{i}].type");
        report.check(
            !repeated || repeatable(filter.kind),
            field,
            format!("{} is there twice", filter.kind.names().0),
        );
        check_filter(filter, matches, &format!("{at}[{i}]"), report);
    }
}

fn check_filter(filter: &HttpFilter, matches: &[HttpMatch], at: &str, report: &mut Report<'_>) {
    let (kind, field) = filter.kind.names();
    for (present, other) in filter.fields() {
        report.check(
            present == (other == field),
            format!("{at}.{other}"),
            format!("a filter of type {kind} has the field {field} and no other"),
        );
    }
    let at = format!("{at}.{field}");
    let modifiers = [
        &filter.request_header_modifier,
        &filter.response_header_modifier,
    ];
    for modifier in modifiers.into_iter().flatten() {
        check_modifier(modifier, &at, report);
    }
    if let Some(mirror) = &filter.request_mirror {
        check_mirror(mirror, &at, report);
    }
    if let Some(redirect) = &filter.request_redirect {
        check_redirect(redirect, matches, &at, report);
    }
    if let Some(rewrite) = &filter.url_rewrite {
        check_new_host(rewrite.hostname.as_deref(), &at, report);
        check_new_path(rewrite.path.as_ref(), matches, &at, report);
    }
    if let Some(cors) = &filter.cors {
        let lists = [
            (&cors.allow_origins, "allowOrigins"),
            (&cors.allow_methods, "allowMethods"),
            (&cors.allow_headers, "allowHeaders"),
            (&cors.expose_headers, "exposeHeaders"),
        ];
        for (list, name) in lists {
            report.len(list.len(), 0..=64, format!("{at}.{name}"));
        }
        let age = cors.max_age.is_none_or(|s| s > 0);
        report.check(age, format!("{at}.maxAge"), "maxAge is 1 second or more");
    }
}

impl HttpFilter {
    /// Which of the fields that belong to a type are written.
    fn fields(&self) -> [(bool, &'static str); 8] {
        [
            (
                self.request_header_modifier.is_some(),
                "requestHeaderModifier",
            ),
            (
                self.response_header_modifier.is_some(),
                "responseHeaderModifier",
            ),
            (self.request_mirror.is_some(), "requestMirror"),
            (self.request_redirect.is_some(), "requestRedirect"),
            (self.url_rewrite.is_some(), "urlRewrite"),
            (self.cors.is_some(), "cors"),
            (self.external_auth.is_some(), "externalAuth"),
            (self.extension_ref.is_some(), "extensionRef"),
        ]
    }
}

fn check_modifier(modifier: &HeaderModifier, at: &str, report: &mut Report<'_>) {
    for (list, name) in [(&modifier.set, "set"), (&modifier.add, "add")] {
        report.len(list.len(), 0..=16, format!("{at}.{name}"));
        let names = list.iter().map(|h| &h.name);
        report.unique(names, |i| format!("{at}.{name}[{i}].name"));
        for (i, header) in list.iter().enumerate() {
            let field = format!("{at}.{name}[{i}]");
            let named = syntax::is_token(&header.name);
            report.check(named, format!("{field}.name"), "not a header name");
            let help = "a header value has at most 4096 bytes";
            report.check(header.value.len() <= 4096, format!("{field}.value"), help);
        }
    }
    report.len(modifier.remove.len(), 0..=16, format!("{at}.remove"));
    for (i, name) in modifier.remove.iter().enumerate() {
        let field = format!("{at}.remove[{i}]");
        report.check(syntax::is_token(name), field, "not a header name");
    }
}

fn check_mirror(mirror: &RequestMirror, at: &str, report: &mut Report<'_>) {
    report.check(
        mirror.percent.is_none() || mirror.fraction.is_none(),
        at,
        "write percent or fraction, not both",
    );
    let percent = mirror.percent.is_none_or(|percent| percent <= 100);
    report.check(percent, format!("{at}.percent"), "percent is 0 to 100");
    let fraction = mirror
        .fraction
        .is_none_or(|f| f.denominator > 0 && f.numerator <= f.denominator);
    let help = "numerator is at most denominator, which is 1 or more";
    report.check(fraction, format!("{at}.fraction"), help);
}

fn check_redirect(
    redirect: &RequestRedirect,
    matches: &[HttpMatch],
    at: &str,
    report: &mut Report<'_>,
) {
    let scheme = redirect.scheme.as_deref();
    report.check(
        scheme.is_none_or(|scheme| matches!(scheme, "http" | "https")),
        format!("{at}.scheme"),
        "scheme is http or https",
    );
    let code = redirect.status_code;
    report.check(
        code.is_none_or(|code| matches!(code, 301 | 302 | 303 | 307 | 308)),
        format!("{at}.statusCode"),
        "statusCode is 301, 302, 303, 307 or 308",
    );
    let port = redirect.port.is_none_or(|port| port > 0);
    report.check(port, format!("{at}.port"), "a port is 1 to 65535");
    check_new_host(redirect.hostname.as_deref(), at, report);
    check_new_path(redirect.path.as_ref(), matches, at, report);
}

fn check_new_host(host: Option<&str>, at: &str, report: &mut Report<'_>) {
    let good = host.is_none_or(syntax::is_precise_host);
    let help = "write a host name in lower case without wildcard";
    report.check(good, format!("{at}.hostname"), help);
}

fn check_new_path(
    path: Option<&PathModifier>,
    matches: &[HttpMatch],
    at: &str,
    report: &mut Report<'_>,
) {
    let Some(path) = path else { return };
    let at = format!("{at}.path");
    let (full, prefix) = (&path.replace_full_path, &path.replace_prefix_match);
    let (field, value, other) = match path.kind {
        PathModifierKind::ReplaceFullPath => ("replaceFullPath", full, prefix),
        PathModifierKind::ReplacePrefixMatch => ("replacePrefixMatch", prefix, full),
    };
    report.check(
        value.is_some() && other.is_none(),
        &at,
        format!("this type has the field {field} and no other"),
    );
    if path.kind == PathModifierKind::ReplacePrefixMatch {
        report.check(
            matches.iter().all(|m| m.path.kind == PathKind::PathPrefix),
            &at,
            "a prefix can be replaced only if every match of the rule has a PathPrefix",
        );
    }
    let short = |text: &String| text.len() <= 1024;
    report.check(
        value.as_ref().is_none_or(short),
        format!("{at}.{field}"),
        "a path has at most 1024 characters",
    );
}

fn check_times(rule: &HttpRule, at: &str, report: &mut Report<'_>) {
    let timeouts = rule.timeouts.as_ref();
    let request = timeouts.and_then(|t| t.request.as_deref());
    let backend = timeouts.and_then(|t| t.backend_request.as_deref());
    let backoff = rule.retry.as_ref().and_then(|r| r.backoff.as_deref());
    let mut read = |text: Option<&str>, field: &str| -> Option<Duration> {
        let duration = duration::parse(text?);
        let help = "write a duration such as 500ms, 10s or 1m30s";
        report.check(duration.is_some(), format!("{at}.{field}"), help);
        duration
    };
    let request = read(request, "timeouts.request");
    let backend = read(backend, "timeouts.backendRequest");
    read(backoff, "retry.backoff");
    if let (Some(request), Some(backend)) = (request, backend) {
        report.check(
            request.is_zero() || backend <= request,
            format!("{at}.timeouts.backendRequest"),
            "cannot be longer than timeouts.request",
        );
    }
    for (i, code) in rule.retry.iter().flat_map(|r| &r.codes).enumerate() {
        let field = format!("{at}.retry.codes[{i}]");
        report.check((400..=599).contains(code), field, "a code is 400 to 599");
    }
}
