//! Rules of GatewayClass, Gateway, ListenerSet and ReferenceGrant.

use super::{Report, syntax};
use crate::kinds::GATEWAY_GROUP;
use crate::kinds::gateway::{
    AllowedRoutes, ClientValidation, From, Gateway, GatewayClass, LabelSelector, Listener,
    ListenerSet, ReferenceGrant, TlsMode,
};

pub(super) fn class(class: &GatewayClass, report: &mut Report<'_>) {
    let name = &class.spec.controller_name;
    report.check(
        name.split_once('/')
            .is_some_and(|(domain, path)| syntax::is_dns_subdomain(domain) && !path.is_empty()),
        "spec.controllerName",
        "write a domain and a path, such as forebay.dev/gateway",
    );
}

pub(super) fn gateway(gateway: &Gateway, report: &mut Report<'_>) {
    let spec = &gateway.spec;
    report.len(spec.addresses.len(), 0..=16, "spec.addresses");
    let infrastructure = &spec.infrastructure;
    let (labels, annotations) = (&infrastructure.labels, &infrastructure.annotations);
    report.len(labels.len(), 0..=8, "spec.infrastructure.labels");
    report.len(annotations.len(), 0..=16, "spec.infrastructure.annotations");
    let allowed = &spec.allowed_listeners.namespaces;
    let at = "spec.allowedListeners.namespaces";
    selector(allowed.from, allowed.selector.as_ref(), at, report);
    frontend(gateway, report);
    report.unsupported(spec.default_scope.as_ref(), "spec.defaultScope");
    listeners(&spec.listeners, report);
}

pub(super) fn listener_set(set: &ListenerSet, report: &mut Report<'_>) {
    let parent = &set.spec.parent_ref;
    report.check(
        (parent.group.as_str(), parent.kind.as_str()) == (GATEWAY_GROUP, "Gateway"),
        "spec.parentRef",
        "must name a Gateway",
    );
    listeners(&set.spec.listeners, report);
}

fn frontend(gateway: &Gateway, report: &mut Report<'_>) {
    let Some(frontend) = &gateway.spec.tls.frontend else {
        return;
    };
    let at = "spec.tls.frontend";
    let mut check = |validation: Option<&ClientValidation>, at: String| {
        if let Some(validation) = validation {
            let refs = validation.ca_certificate_refs.len();
            let at = format!("{at}.validation.caCertificateRefs");
            report.len(refs, 1..=16, at);
        }
    };
    let every_port = frontend.every_port.validation.as_ref();
    check(every_port, format!("{at}.default"));
    for (i, port) in frontend.per_port.iter().enumerate() {
        let validation = port.tls.validation.as_ref();
        check(validation, format!("{at}.perPort[{i}].tls"));
    }
    report.len(frontend.per_port.len(), 0..=64, format!("{at}.perPort"));
    report.unique(frontend.per_port.iter().map(|p| p.port), |i| {
        format!("{at}.perPort[{i}].port")
    });
}

fn listeners(listeners: &[Listener], report: &mut Report<'_>) {
    report.len(listeners.len(), 1..=64, "spec.listeners");
    let at = |at: usize| format!("spec.listeners[{at}]");
    report.unique(listeners.iter().map(|l| &l.name), |i| at(i) + ".name");
    let address = |l: &Listener| {
        let host = l.hostname.as_deref().unwrap_or("every host");
        format!("{} port {} for {host}", l.protocol, l.port)
    };
    report.unique(listeners.iter().map(address), at);
    for (i, l) in listeners.iter().enumerate() {
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
    let at = format!("{at}.allowedRoutes");
    allowed_routes(&listener.allowed_routes, &at, report);
}

/// A TLS listener without any certificate passes: what it lacks is said on its status.
fn tls(listener: &Listener, at: &str, report: &mut Report<'_>) {
    let at = format!("{at}.tls");
    let protocol = listener.protocol.as_str();
    let Some(tls) = &listener.tls else {
        let help = "a TLS listener needs tls.mode";
        return report.check(protocol != "TLS", at, help);
    };
    if matches!(protocol, "HTTP" | "TCP" | "UDP") {
        return report.check(false, at, "only HTTPS and TLS listeners have tls");
    }
    report.check(
        protocol != "HTTPS" || tls.mode == TlsMode::Terminate,
        format!("{at}.mode"),
        "an HTTPS listener has mode Terminate",
    );
    let refs = tls.certificate_refs.len();
    report.len(refs, 0..=64, format!("{at}.certificateRefs"));
    report.check(
        tls.mode == TlsMode::Passthrough || refs > 0 || tls.options.is_some(),
        format!("{at}.certificateRefs"),
        "mode Terminate needs a certificate",
    );
    report.unsupported(tls.options.as_ref(), format!("{at}.options"));
}

fn allowed_routes(allowed: &AllowedRoutes, at: &str, report: &mut Report<'_>) {
    report.len(allowed.kinds.len(), 0..=8, format!("{at}.kinds"));
    let from = &allowed.namespaces;
    let at = format!("{at}.namespaces");
    selector(from.from, from.selector.as_ref(), &at, report);
}

/// The API server lets these through, so they only draw a remark; see [`LabelSelector::is_sound`].
fn selector(from: From, selector: Option<&LabelSelector>, at: &str, report: &mut Report<'_>) {
    let message = match (from, selector) {
        (From::Selector, None) => "from is Selector and none is written: nothing is selected",
        (From::Selector, Some(selector)) if !selector.is_sound() => {
            "In and NotIn need values, Exists and DoesNotExist have none: nothing is selected"
        }
        (From::All | From::Same | From::None, Some(_)) => "has no effect unless from is Selector",
        _ => return,
    };
    let field = format!("{at}.selector");
    report.add(crate::reason::INVALID_SELECTOR, field, message);
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
