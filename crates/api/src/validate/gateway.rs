//! Rules of GatewayClass, Gateway and ReferenceGrant.

use super::{Report, syntax};
use crate::kinds::gateway::{
    AllowedRoutes, From, Gateway, GatewayClass, LabelOperator, Listener, ReferenceGrant, TlsMode,
};

pub(super) fn class(class: &GatewayClass, report: &mut Report<'_>) {
    let name = &class.spec.controller_name;
    report.check(
        name.split_once('/')
            .is_some_and(|(domain, path)| syntax::is_dns_subdomain(domain) && !path.is_empty()),
        "spec.controllerName",
        "write a domain and a path, such as forebay.dev/gateway",
    );
    report.unsupported(class.spec.parameters_ref.as_ref(), "spec.parametersRef");
}

pub(super) fn gateway(gateway: &Gateway, report: &mut Report<'_>) {
    let spec = &gateway.spec;
    report.len(spec.addresses.len(), 0..=16, "spec.addresses");
    report.unsupported(spec.allowed_listeners.as_ref(), "spec.allowedListeners");
    report.unsupported(spec.tls.as_ref(), "spec.tls");
    report.unsupported(spec.default_scope.as_ref(), "spec.defaultScope");
    report.len(spec.listeners.len(), 1..=64, "spec.listeners");
    let at = |at: usize| format!("spec.listeners[{at}]");
    report.unique(spec.listeners.iter().map(|l| &l.name), |i| at(i) + ".name");
    let address = |l: &Listener| {
        let host = l.hostname.as_deref().unwrap_or("every host");
        format!("{} port {} for {host}", l.protocol, l.port)
    };
    report.unique(spec.listeners.iter().map(address), at);
    for (i, l) in spec.listeners.iter().enumerate() {
        listener(l, &at(i), report);
    }
}

fn listener(listener: &Listener, at: &str, report: &mut Report<'_>) {
    report.check(
        syntax::is_dns_subdomain(&listener.name),
        format!("{at}.name"),
        "a listener's name is lower-case letters, digits, - and .",
    );
    report.check(
        listener.port > 0,
        format!("{at}.port"),
        "a port is 1 to 65535",
    );
    report.check(
        listener.hostname.as_deref().is_none_or(syntax::is_host),
        format!("{at}.hostname"),
        syntax::HOST_HELP,
    );
    tls(listener, at, report);
    allowed_routes(
        &listener.allowed_routes,
        &format!("{at}.allowedRoutes"),
        report,
    );
}

fn tls(listener: &Listener, at: &str, report: &mut Report<'_>) {
    let at = format!("{at}.tls");
    match (listener.protocol.as_str(), &listener.tls) {
        ("HTTP" | "TCP" | "UDP", Some(_)) => {
            report.check(false, at, "only HTTPS and TLS listeners have tls");
        }
        ("HTTPS", None) => report.check(false, at, "an HTTPS listener needs tls.certificateRefs"),
        ("HTTPS", Some(tls)) => {
            report.check(
                tls.mode == TlsMode::Terminate,
                format!("{at}.mode"),
                "an HTTPS listener has mode Terminate",
            );
            let refs = tls.certificate_refs.len();
            report.len(refs, 1..=64, format!("{at}.certificateRefs"));
            report.unsupported(tls.options.as_ref(), format!("{at}.options"));
        }
        _ => {}
    }
}

fn allowed_routes(allowed: &AllowedRoutes, at: &str, report: &mut Report<'_>) {
    report.len(allowed.kinds.len(), 0..=8, format!("{at}.kinds"));
    let from = &allowed.namespaces;
    let at = format!("{at}.namespaces.selector");
    report.check(
        (from.from == From::Selector) == from.selector.is_some(),
        &at,
        "write a selector if, and only if, from is Selector",
    );
    for (i, wanted) in from
        .selector
        .iter()
        .flat_map(|s| &s.match_expressions)
        .enumerate()
    {
        let set = matches!(wanted.operator, LabelOperator::In | LabelOperator::NotIn);
        report.check(
            set != wanted.values.is_empty(),
            format!("{at}.matchExpressions[{i}].values"),
            "In and NotIn need values; Exists and DoesNotExist have none",
        );
    }
}

pub(super) fn grant(grant: &ReferenceGrant, report: &mut Report<'_>) {
    report.len(grant.spec.from.len(), 1..=16, "spec.from");
    report.len(grant.spec.to.len(), 1..=16, "spec.to");
    for (i, from) in grant.spec.from.iter().enumerate() {
        report.check(
            syntax::is_dns_label(&from.namespace),
            format!("spec.from[{i}].namespace"),
            "a namespace is lower-case letters, digits and -",
        );
    }
}
