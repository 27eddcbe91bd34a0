//! A snapshot and its statuses as compact text, for people (`forebay check`) and for tests, which
//! compare it whole. Keys and certificates are named, never shown.

use std::collections::HashMap;
use std::fmt::{self, Display, Write};
use std::sync::Arc;

use forebay_model::picker::PickerKind;
use forebay_model::pool::{ExternalPicker, PickerTransport};
use forebay_model::route::{
    BackendTls, Entry, Filter, HeaderEdits, HostPattern, Matcher, PathEdit, PathMatch, RouteTable,
    ServicePort, ServiceTarget, Speaks, SubjectName, Target, TextMatch, Trust, WeightedTarget,
};
use forebay_model::snapshot::{Listener, Port};
use forebay_model::{AppProtocol, PickerConfig, Pool, Role, Snapshot};

use crate::status::{Condition, ObjectStatus};

type Services = HashMap<ServicePort, Arc<ServiceTarget>>;

/// The whole snapshot: ports, listeners, rules in order of precedence, pools, problems.
#[must_use]
pub fn snapshot(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    write_snapshot(&mut out, snapshot).expect("writing to a String cannot fail");
    out
}

/// One line per object, listener and parent, with every condition.
#[must_use]
pub fn statuses(statuses: &[ObjectStatus]) -> String {
    let mut out = String::new();
    for status in statuses {
        let conditions = conditions(&status.conditions);
        out += &format!("{} {}{conditions}", status.kind, status.name);
        for address in &status.addresses {
            out += &format!(" {}", address.value);
        }
        if let Some(sets @ 1..) = status.attached_listener_sets {
            out += &format!(" with {sets} sets");
        }
        out.push('\n');
        for listener in &status.listeners {
            let conditions = self::conditions(&listener.conditions);
            let (name, routes) = (&listener.name, listener.attached_routes);
            let kinds = match listener.supported_kinds.as_slice() {
                [] => "no kind".to_owned(),
                kinds => kinds.join(","),
            };
            out += &format!("  listener {name}: {routes} routes of {kinds}{conditions}\n");
        }
        for parent in &status.parents {
            let conditions = self::conditions(&parent.conditions);
            let section = parent.section_name.as_deref();
            let section = section.map(|name| format!("#{name}")).unwrap_or_default();
            out += &format!(
                "  at {} {}{section}{conditions}\n",
                parent.kind, parent.name
            );
        }
    }
    out
}

fn conditions(conditions: &[Condition]) -> String {
    let one = |c: &Condition| match (c.holds, c.kind == c.reason) {
        (true, true) => format!(" {}", c.kind),
        (true, false) => format!(" {}({})", c.kind, c.reason),
        (false, _) => format!(" !{}({})", c.kind, c.reason),
    };
    conditions.iter().map(one).collect()
}

fn write_snapshot(out: &mut String, snapshot: &Snapshot) -> fmt::Result {
    for (number, port) in &snapshot.ports {
        write!(out, "port {number}")?;
        if *number != port.number {
            write!(out, " of {}", port.number)?;
        }
        writeln!(out, " {}", protocol_of(port))?;
        for listener in &port.listeners {
            write_listener(out, listener, &snapshot.services)?;
        }
    }
    let mut pools: Vec<_> = snapshot.pools.values().collect();
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    for pool in pools {
        write_pool(out, pool)?;
    }
    for problem in &snapshot.problems {
        writeln!(out, "problem {problem}")?;
    }
    Ok(())
}

fn protocol_of(port: &Port) -> &'static str {
    let raw = port.listeners.iter().any(|l| l.tls_routes.is_some());
    match (port.tls, raw) {
        (false, _) => "http",
        (true, false) => "https",
        (true, true) => "tls",
    }
}

fn write_listener(out: &mut String, listener: &Listener, services: &Services) -> fmt::Result {
    let host = self::host(listener.hostname.as_ref());
    let (gateway, name) = (&listener.gateway, &listener.name);
    write!(out, "  listener {gateway} {name} for {host}")?;
    if listener.refused {
        write!(out, " refused")?;
    }
    for certificate in &listener.certificates {
        write!(out, " certificate {}", certificate.secret)?;
    }
    if let Some(clients) = &listener.clients {
        let optional = if clients.optional { ", optional" } else { "" };
        write!(out, " clients({}{optional})", trust(&clients.trust))?;
    }
    if listener.tls_routes.is_some() && listener.certificates.is_empty() {
        write!(out, " passed on")?;
    }
    let reads = listener.routes.reads_model;
    writeln!(out, "{}", if reads { " reads model" } else { "" })?;
    write_table(out, &listener.routes, services)?;
    let tls_routes = listener.tls_routes.iter().flat_map(|tls| &tls.routes);
    for (host, rule) in tls_routes {
        write!(out, "    {} -> {}", self::host(host.as_ref()), rule.route)?;
        write_targets(out, &rule.targets, services)?;
        writeln!(out)?;
    }
    Ok(())
}

fn trust(trust: &Trust) -> String {
    match trust {
        Trust::System => "system".to_owned(),
        Trust::Bundle(pem) => {
            let text = String::from_utf8_lossy(pem);
            let count = text.matches("-----BEGIN CERTIFICATE-----").count();
            format!("bundle of {count}")
        }
    }
}

fn backend_tls(tls: &BackendTls) -> String {
    let name = |name: &SubjectName| match name {
        SubjectName::Hostname(host) => host.to_string(),
        SubjectName::Uri(uri) => uri.to_string(),
    };
    let names: Vec<_> = tls.names.iter().map(name).collect();
    let names = match names.is_empty() {
        true => String::new(),
        false => format!(" names {}", names.join(",")),
    };
    let client = tls.client.as_ref();
    let client = client.map(|client| format!(" client {}", client.secret));
    let client = client.unwrap_or_default();
    format!(
        " tls({} {}{names}{client})",
        tls.hostname,
        trust(&tls.trust)
    )
}

fn host(host: Option<&HostPattern>) -> String {
    match host {
        None => "*".to_owned(),
        Some(HostPattern::Exact(host)) => host.clone(),
        Some(HostPattern::Suffix(suffix)) => format!("*{suffix}"),
    }
}

fn write_table(out: &mut String, table: &RouteTable, services: &Services) -> fmt::Result {
    let exact = table.exact.iter().map(|(host, list)| (host.clone(), list));
    let suffix = table
        .suffix
        .iter()
        .map(|(host, list)| (format!("*{host}"), list));
    let any = std::iter::once(("*".to_owned(), &table.any));
    for (host, entries) in exact.chain(suffix).chain(any) {
        for entry in entries {
            write_entry(out, &host, entry, services)?;
        }
    }
    Ok(())
}

fn write_entry(out: &mut String, host: &str, entry: &Entry, services: &Services) -> fmt::Result {
    let rule = &entry.rule;
    let matcher = matcher(&entry.matcher);
    let speaks = match rule.speaks {
        Speaks::Http => "",
        Speaks::Grpc => " grpc",
    };
    write!(
        out,
        "    {host} {matcher}{speaks} -> {}[{}]",
        rule.route, rule.index
    )?;
    for filter in &rule.filters {
        write!(out, " {}", self::filter(filter, services))?;
    }
    write_targets(out, &rule.targets, services)?;
    let limits = [
        ("request", rule.timeouts.request),
        ("backend", rule.timeouts.backend),
    ];
    for (name, limit) in limits {
        if let Some(limit) = limit {
            write!(out, " {name}<{limit:?}")?;
        }
    }
    if let Some(retry) = &rule.retry {
        let codes = join(&retry.codes);
        write!(
            out,
            " retry {} on {codes} after {:?}",
            retry.attempts, retry.backoff
        )?;
    }
    writeln!(out)
}

fn write_targets(out: &mut String, targets: &[WeightedTarget], services: &Services) -> fmt::Result {
    for backend in targets {
        let target = target(&backend.target, services);
        write!(out, " | {} x {target}", backend.weight)?;
        for filter in &backend.filters {
            write!(out, " {}", self::filter(filter, services))?;
        }
    }
    Ok(())
}

fn matcher(matcher: &Matcher) -> String {
    let mut out = match &matcher.path {
        PathMatch::Exact(path) => format!("={path}"),
        PathMatch::Prefix(path) => format!("{path}/*"),
        PathMatch::Regex(pattern) => format!("~{}", pattern.as_str()),
    };
    let text = |text: &TextMatch| match text {
        TextMatch::Exact(value) => format!("={value}"),
        TextMatch::Regex(pattern) => format!("~{}", pattern.as_str()),
    };
    if let Some(method) = &matcher.method {
        out += &format!(" {method}");
    }
    for (name, value) in &matcher.headers {
        out += &format!(" {name}{}", text(value));
    }
    for (name, value) in &matcher.query {
        out += &format!(" ?{name}{}", text(value));
    }
    out
}

fn target(target: &Target, services: &Services) -> String {
    match target {
        Target::Pool(name) => format!("pool {name}"),
        Target::Service(of) => {
            let found = services.get(of);
            let protocol = found.map(|service| protocol(service.protocol));
            let protocol = protocol.unwrap_or_default();
            let tls = found.and_then(|service| service.tls.as_deref());
            let tls = tls.map(backend_tls).unwrap_or_default();
            let endpoints = found.map(|service| join(&service.endpoints));
            let endpoints = endpoints.unwrap_or_default();
            let (name, port) = (&of.name, of.port);
            format!("service {name}:{port}{protocol}{tls} [{endpoints}]")
        }
        Target::Broken(broken) => format!("{} {}", broken.status, broken.reason),
    }
}

fn filter(filter: &Filter, services: &Services) -> String {
    let path = |path: &Option<PathEdit>| match path {
        None => String::new(),
        Some(PathEdit::Full(path)) => format!(" path={path}"),
        Some(PathEdit::Prefix(path)) => format!(" prefix={path}"),
    };
    let some = |name: &str, value: Option<&dyn Display>| {
        value
            .map(|value| format!(" {name}={value}"))
            .unwrap_or_default()
    };
    match filter {
        Filter::RequestHeaders(edits) => format!("request({})", header_edits(edits)),
        Filter::ResponseHeaders(edits) => format!("response({})", header_edits(edits)),
        Filter::Redirect(to) => format!(
            "redirect({}{}{}{}{})",
            to.status,
            some("scheme", to.scheme.as_ref().map(|v| v as &dyn Display)),
            some("host", to.hostname.as_ref().map(|v| v as &dyn Display)),
            some("port", to.port.as_ref().map(|v| v as &dyn Display)),
            path(&to.path),
        ),
        Filter::Rewrite(to) => {
            let host = some("host", to.hostname.as_ref().map(|v| v as &dyn Display));
            format!(
                "rewrite({})",
                format!("{host}{}", path(&to.path)).trim_start()
            )
        }
        Filter::Mirror(mirror) => format!(
            "mirror({}/{} {})",
            mirror.numerator,
            mirror.denominator,
            target(&mirror.target, services)
        ),
        Filter::Cors(cors) => format!(
            "cors({}{} methods {} headers {} expose {} {}s)",
            join(&cors.allow_origins),
            if cors.allow_credentials {
                " credentials"
            } else {
                ""
            },
            join(&cors.allow_methods),
            join(&cors.allow_headers),
            join(&cors.expose_headers),
            cors.max_age_s
        ),
    }
}

fn header_edits(edits: &HeaderEdits) -> String {
    let set = edits
        .set
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let add = edits
        .add
        .iter()
        .map(|(name, value)| format!("{name}+={value}"));
    let remove = edits.remove.iter().map(|name| format!("-{name}"));
    set.chain(add).chain(remove).collect::<Vec<_>>().join(" ")
}

fn write_pool(out: &mut String, pool: &Pool) -> fmt::Result {
    let protocol = protocol(pool.protocol);
    writeln!(
        out,
        "pool {}{protocol} picker {}",
        pool.name,
        picker(&pool.picker)
    )?;
    for endpoint in &pool.endpoints {
        write!(out, "  {} {}", endpoint.address, endpoint.pod)?;
        if !endpoint.ready {
            write!(out, " unready")?;
        }
        if let Some(engine) = endpoint.engine {
            write!(out, " {engine:?}")?;
        }
        if endpoint.role != Role::Both {
            write!(out, " {:?}", endpoint.role)?;
        }
        let topology = &endpoint.topology;
        let places = [
            ("zone", &topology.zone),
            ("host", &topology.host),
            ("rail", &topology.rail),
            ("block", &topology.block),
            ("nvlink", &topology.nvlink_domain),
        ];
        for (name, place) in places {
            if let Some(place) = place {
                write!(out, " {name}={place}")?;
            }
        }
        writeln!(out)?;
    }
    if let Some(external) = &pool.external {
        let ExternalPicker {
            service,
            port,
            failure_mode,
            endpoints,
            transport,
        } = external;
        let transport = match transport {
            PickerTransport::TlsUnverified => String::new(),
            PickerTransport::Tls(tls) => backend_tls(tls),
            PickerTransport::Plaintext => " plaintext".to_owned(),
        };
        let endpoints = join(endpoints);
        writeln!(
            out,
            "  picked by {service}:{port}{transport} {failure_mode:?} [{endpoints}]"
        )?;
    }
    for (name, priority) in &pool.objectives {
        writeln!(out, "  objective {name} {priority}")?;
    }
    for rule in &pool.rewrites {
        let models = if rule.models.is_empty() {
            "*".to_owned()
        } else {
            join(&rule.models)
        };
        let target = |t: &forebay_model::pool::RewriteTarget| format!("{} x {}", t.weight, t.model);
        let targets: Vec<_> = rule.targets.iter().map(target).collect();
        writeln!(out, "  rewrite {models} -> {}", targets.join(" | "))?;
    }
    Ok(())
}

fn picker(config: &PickerConfig) -> String {
    if *config == PickerConfig::default() {
        return "default".to_owned();
    }
    let scorer = |s: &forebay_model::picker::WeightedScorer| format!("{:?}*{}", s.scorer, s.weight);
    let scorers: Vec<_> = config.scorers.iter().map(scorer).collect();
    let picker = match config.picker {
        PickerKind::PowerOf(n) => format!("PowerOf{n}"),
        other => format!("{other:?}"),
    };
    format!("{picker}({})", scorers.join(" "))
}

fn protocol(protocol: AppProtocol) -> &'static str {
    match protocol {
        AppProtocol::Http => "",
        AppProtocol::H2c => " h2c",
    }
}

fn join<T: Display>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(",")
}
