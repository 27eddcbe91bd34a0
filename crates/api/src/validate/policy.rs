//! Rules of BackendTLSPolicy.

use super::{Report, syntax};
use crate::kinds::policy::{BackendTlsPolicy, SubjectAltName, SubjectKind};

pub(super) fn policy(policy: &BackendTlsPolicy, report: &mut Report<'_>) {
    let spec = &policy.spec;
    report.len(spec.target_refs.len(), 1..=16, "spec.targetRefs");
    let targets = spec.target_refs.iter().map(|target| {
        let section = target.section_name.as_deref().unwrap_or("every port");
        format!("{} {} ({section})", target.kind, target.name)
    });
    report.unique(targets, |i| format!("spec.targetRefs[{i}]"));
    let validation = &spec.validation;
    let refs = validation.ca_certificate_refs.len();
    report.len(refs, 0..=8, "spec.validation.caCertificateRefs");
    report.check(
        (refs > 0) == validation.well_known.is_empty(),
        "spec.validation",
        "write either caCertificateRefs or wellKnownCACertificates",
    );
    report.check(
        syntax::is_precise_host(&validation.hostname),
        "spec.validation.hostname",
        "write a host name in lower case without wildcard",
    );
    let names = &validation.subject_alt_names;
    report.len(names.len(), 0..=5, "spec.validation.subjectAltNames");
    for (i, name) in names.iter().enumerate() {
        let at = format!("spec.validation.subjectAltNames[{i}]");
        subject(name, &at, report);
    }
    report.unsupported(spec.options.as_ref(), "spec.options");
}

fn subject(name: &SubjectAltName, at: &str, report: &mut Report<'_>) {
    let (value, other, field) = match name.kind {
        SubjectKind::Hostname => (&name.hostname, &name.uri, "hostname"),
        SubjectKind::Uri => (&name.uri, &name.hostname, "uri"),
    };
    report.check(
        !value.is_empty() && other.is_empty(),
        at,
        format!("this type has the field {field} and no other"),
    );
    let good = match name.kind {
        SubjectKind::Hostname => syntax::is_host(value),
        SubjectKind::Uri => value
            .split_once(':')
            .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty()),
    };
    report.check(
        value.is_empty() || good,
        format!("{at}.{field}"),
        "write a host name in lower case, or a URI with its scheme",
    );
}
