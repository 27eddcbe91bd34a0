//! The rules of one route to rules of the model.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use forebay_model::ObjectName;
use forebay_model::route::{
    Carries, Cors, Filter, HeaderEdits, Matcher, Mirror, PathEdit, Redirect, Retry, Rule, Speaks,
    Timeouts, TlsRule, UrlRewrite, WeightedTarget,
};

use super::backends::{Backends, User, Uses, broken};
use super::prepared::{Prepared, PreparedRule, lower_name};
use crate::duration;
use crate::kinds::grpcroute::GrpcRoute;
use crate::kinds::httproute::{
    BackendRef, FilterKind, HeaderModifier, HeaderValue, HttpFilter, HttpRetry, HttpRoute,
    HttpRule, PathModifier, PathModifierKind, RequestMirror,
};
use crate::kinds::tlsroute::TlsRoute;
use crate::reason;
use crate::status::Fault;

/// Statuses that are retried when a rule asks for retries and names none.
const RETRY_CODES: [u16; 3] = [502, 503, 504];
/// Least wait between tries when a rule names none.
const RETRY_BACKOFF: Duration = Duration::from_millis(25);
/// Most tries after the first; more are cut to it. The specification has no limit; ours keeps one
/// request from becoming a flood.
const RETRY_ATTEMPTS_MAX: u32 = 100;
/// `HTTPCORSFilter.maxAge` when left out, by the CRD.
const CORS_MAX_AGE_S: u32 = 5;

/// The rules of one route, and what is wrong with them.
pub(super) struct Rules<'a> {
    carries: Carries,
    pub(super) body: Body<'a>,
    /// References that do not hold, with their fields.
    pub(super) unresolved: Vec<(String, Fault)>,
    /// Values that cannot be served, with their fields; and the rules that have them.
    pub(super) unsupported: Vec<(String, Fault)>,
    pub(super) dropped: BTreeSet<usize>,
    pub(super) uses: Uses,
}

pub(super) enum Body<'a> {
    /// Each rule with its matches, in the order written.
    Requests(Vec<(Arc<Rule>, &'a [Matcher])>),
    Connections(Arc<TlsRule>),
}

impl Rules<'_> {
    /// Whether these are connections that are passed on with the client's own TLS.
    pub(super) fn passes_on(&self) -> bool {
        self.carries == Carries::Tls
    }

    /// Why the route cannot be accepted, if none of its rules can be served.
    pub(super) fn refused(&self) -> Option<Fault> {
        let all = match &self.body {
            Body::Requests(rules) => rules.len(),
            Body::Connections(_) => 1,
        };
        let (_, first) = self.unsupported.first()?;
        (self.dropped.len() == all).then(|| first.clone())
    }

    /// What to say of the rules that are not served, if others are.
    pub(super) fn partially(&self) -> Option<Fault> {
        let (field, first) = self.unsupported.first()?;
        let rules: Vec<_> = self.dropped.iter().map(ToString::to_string).collect();
        let message = format!(
            "Dropped Rule {}: {field}: {}; requests that match are answered with an error",
            rules.join(", "),
            first.message
        );
        Some(Fault::new(first.reason, message))
    }
}

/// Lowers an HTTPRoute.
pub(super) fn http<'a>(
    name: &ObjectName,
    route: &'a Prepared<HttpRoute>,
    user: &User<'_>,
    backends: &mut Backends<'_>,
) -> Rules<'a> {
    let rules = route.object.spec.rules.iter();
    let parts = rules.map(|rule| Parts {
        filters: &rule.filters,
        backends: &rule.backend_refs,
        timeouts: timeouts(rule),
        retry: rule.retry.as_ref().map(retry),
    });
    requests(name, parts, &route.rules, user, backends)
}

/// Lowers a GRPCRoute.
pub(super) fn grpc<'a>(
    name: &ObjectName,
    route: &'a Prepared<GrpcRoute>,
    user: &User<'_>,
    backends: &mut Backends<'_>,
) -> Rules<'a> {
    let rules = route.object.spec.rules.iter();
    let parts = rules.map(|rule| Parts {
        filters: &rule.filters,
        backends: &rule.backend_refs,
        timeouts: Timeouts::default(),
        retry: None,
    });
    requests(name, parts, &route.rules, user, backends)
}

/// Lowers a TLSRoute.
pub(super) fn tls<'a>(
    name: &ObjectName,
    route: &TlsRoute,
    user: &User<'_>,
    backends: &mut Backends<'_>,
) -> Rules<'a> {
    let mut lowering = Lowering::new(user, backends);
    let mut targets = Vec::new();
    for (rule, own) in route.spec.rules.iter().enumerate() {
        for (backend, to) in own.backend_refs.iter().enumerate() {
            let found = lowering
                .backends
                .resolve(user, &to.object(), &mut lowering.uses);
            let at = At::backend(rule, backend);
            let target = found
                .unwrap_or_else(|fault| broken(&lowering.unresolved(&at, "", fault), user.carries));
            targets.push(WeightedTarget {
                weight: to.weight,
                target,
                filters: Vec::new(),
            });
        }
    }
    let rule = TlsRule {
        route: name.clone(),
        targets,
    };
    lowering.into_rules(Body::Connections(Arc::new(rule)))
}

fn requests<'a, 'p>(
    name: &ObjectName,
    parts: impl Iterator<Item = Parts<'p>>,
    prepared: &'a [PreparedRule],
    user: &User<'_>,
    backends: &mut Backends<'_>,
) -> Rules<'a> {
    let mut lowering = Lowering::new(user, backends);
    let rules = parts.zip(prepared).enumerate();
    let rules = rules.map(|(index, (parts, prepared))| {
        let rule = lowering.rule(name, index, &parts, prepared);
        (Arc::new(rule), prepared.matchers.as_slice())
    });
    let rules = rules.collect();
    lowering.into_rules(Body::Requests(rules))
}

/// What an HTTP rule and a gRPC rule have in common.
struct Parts<'a> {
    filters: &'a [HttpFilter],
    backends: &'a [BackendRef],
    timeouts: Timeouts,
    retry: Option<Retry>,
}

/// A place in a route; its text is made only where there is a fault to report.
#[derive(Clone, Copy)]
struct At {
    rule: usize,
    backend: Option<usize>,
    filter: Option<usize>,
}

impl At {
    fn rule(rule: usize) -> Self {
        Self {
            rule,
            backend: None,
            filter: None,
        }
    }

    fn backend(rule: usize, backend: usize) -> Self {
        Self {
            backend: Some(backend),
            ..Self::rule(rule)
        }
    }

    fn filter(self, filter: usize) -> Self {
        Self {
            filter: Some(filter),
            ..self
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spec.rules[{}]", self.rule)?;
        if let Some(backend) = self.backend {
            write!(f, ".backendRefs[{backend}]")?;
        }
        if let Some(filter) = self.filter {
            write!(f, ".filters[{filter}]")?;
        }
        Ok(())
    }
}

struct Lowering<'u, 'b, 'c> {
    user: &'u User<'u>,
    backends: &'b mut Backends<'c>,
    unresolved: Vec<(String, Fault)>,
    unsupported: Vec<(String, Fault)>,
    dropped: BTreeSet<usize>,
    uses: Uses,
}

impl<'u, 'b, 'c> Lowering<'u, 'b, 'c> {
    fn new(user: &'u User<'u>, backends: &'b mut Backends<'c>) -> Self {
        Self {
            user,
            backends,
            unresolved: Vec::new(),
            unsupported: Vec::new(),
            dropped: BTreeSet::new(),
            uses: Uses::default(),
        }
    }

    fn into_rules(self, body: Body<'_>) -> Rules<'_> {
        Rules {
            carries: self.user.carries,
            body,
            unresolved: self.unresolved,
            unsupported: self.unsupported,
            dropped: self.dropped,
            uses: self.uses,
        }
    }

    fn unresolved(&mut self, at: &At, rest: &str, fault: Fault) -> Fault {
        self.unresolved.push((format!("{at}{rest}"), fault.clone()));
        fault
    }

    fn unsupported(&mut self, at: At, field: String, why: String) -> Fault {
        let fault = Fault::new(reason::UNSUPPORTED_VALUE, why);
        self.unsupported.push((field, fault.clone()));
        self.dropped.insert(at.rule);
        fault
    }

    fn rule(
        &mut self,
        route: &ObjectName,
        index: usize,
        parts: &Parts<'_>,
        prepared: &PreparedRule,
    ) -> Rule {
        let at = At::rule(index);
        let invalid = prepared.invalid.as_ref().map(|(field, why)| {
            let field = format!("{at}.{field}");
            self.unsupported(at, field, why.clone())
        });
        let filters = self.filters(parts.filters, at);
        let backends = parts.backends.iter().enumerate();
        let mut targets: Vec<_> = backends
            .map(|(i, backend)| self.target(backend, At::backend(index, i)))
            .collect();
        // A filter that cannot be had must not be skipped: the rule answers with an error.
        if let Some(fault) = invalid.as_ref().or_else(|| filters.as_ref().err()) {
            targets = vec![WeightedTarget {
                weight: 1,
                target: broken(fault, self.user.carries),
                filters: Vec::new(),
            }];
        }
        Rule {
            route: route.clone(),
            speaks: match self.user.carries {
                Carries::Grpc => Speaks::Grpc,
                Carries::Http | Carries::Stream | Carries::Tls => Speaks::Http,
            },
            index,
            filters: filters
                .ok()
                .filter(|_| invalid.is_none())
                .unwrap_or_default(),
            targets,
            timeouts: parts.timeouts,
            retry: parts.retry.clone(),
        }
    }

    fn target(&mut self, backend: &BackendRef, at: At) -> WeightedTarget {
        let found = self
            .backends
            .resolve(self.user, &backend.object(), &mut self.uses);
        let found = found.map_err(|fault| self.unresolved(&at, "", fault));
        let filters = self.filters(&backend.filters, at);
        let target =
            found.and_then(|target| filters.as_ref().map(|_| target).map_err(Fault::clone));
        WeightedTarget {
            weight: backend.weight,
            target: target.unwrap_or_else(|fault| broken(&fault, self.user.carries)),
            filters: filters.unwrap_or_default(),
        }
    }

    /// The filters in order, or why one of them cannot be had.
    fn filters(&mut self, filters: &[HttpFilter], at: At) -> Result<Vec<Filter>, Fault> {
        let mut lowered = Vec::with_capacity(filters.len());
        for (i, filter) in filters.iter().enumerate() {
            lowered.extend(self.filter(filter, at.filter(i))?);
        }
        Ok(lowered)
    }

    fn filter(&mut self, filter: &HttpFilter, at: At) -> Result<Option<Filter>, Fault> {
        let unsupported = || {
            format!(
                "filters of type {} are not supported",
                filter.kind.names().0
            )
        };
        Ok(match filter.kind {
            FilterKind::RequestHeaderModifier => filter
                .request_header_modifier
                .as_ref()
                .map(|edits| Filter::RequestHeaders(header_edits(edits))),
            FilterKind::ResponseHeaderModifier => filter
                .response_header_modifier
                .as_ref()
                .map(|edits| Filter::ResponseHeaders(header_edits(edits))),
            FilterKind::RequestMirror => filter
                .request_mirror
                .as_ref()
                .map(|mirror| Filter::Mirror(self.mirror(mirror, &at))),
            FilterKind::RequestRedirect => filter.request_redirect.as_ref().map(|redirect| {
                Filter::Redirect(Redirect {
                    scheme: redirect.scheme.as_deref().map(Arc::from),
                    hostname: redirect.hostname.as_deref().map(Arc::from),
                    path: redirect.path.as_ref().and_then(path_edit),
                    port: redirect.port,
                    status: redirect.status_code.unwrap_or(302),
                })
            }),
            FilterKind::UrlRewrite => filter.url_rewrite.as_ref().map(|rewrite| {
                Filter::Rewrite(UrlRewrite {
                    hostname: rewrite.hostname.as_deref().map(Arc::from),
                    path: rewrite.path.as_ref().and_then(path_edit),
                })
            }),
            FilterKind::Cors => filter.cors.as_ref().map(|cors| {
                Filter::Cors(Cors {
                    allow_origins: texts(&cors.allow_origins),
                    allow_credentials: cors.allow_credentials,
                    allow_methods: texts(&cors.allow_methods),
                    allow_headers: texts(&cors.allow_headers),
                    expose_headers: texts(&cors.expose_headers),
                    max_age_s: cors.max_age.unwrap_or(CORS_MAX_AGE_S),
                })
            }),
            FilterKind::ExternalAuth => {
                return Err(self.unsupported(at, at.to_string(), unsupported()));
            }
            FilterKind::ExtensionRef => {
                let fault = Fault::new(reason::INVALID_KIND, unsupported());
                return Err(self.unresolved(&at, "", fault));
            }
        })
    }

    fn mirror(&mut self, mirror: &RequestMirror, at: &At) -> Mirror {
        let found = self
            .backends
            .resolve(self.user, &mirror.backend_ref, &mut self.uses);
        let target = found.unwrap_or_else(|fault| {
            let fault = self.unresolved(at, ".requestMirror.backendRef", fault);
            broken(&fault, self.user.carries)
        });
        let (numerator, denominator) = match (mirror.fraction, mirror.percent) {
            (Some(fraction), _) => (fraction.numerator, fraction.denominator),
            (None, percent) => (percent.unwrap_or(100), 100),
        };
        Mirror {
            target,
            numerator,
            denominator,
        }
    }
}

fn texts(list: &[String]) -> Vec<Arc<str>> {
    list.iter().map(|text| text.as_str().into()).collect()
}

fn header_edits(edits: &HeaderModifier) -> HeaderEdits {
    // Of names that differ in case only, the first counts.
    let pairs = |list: &[HeaderValue]| {
        let mut seen = BTreeSet::new();
        let named = list.iter().map(|header| (lower_name(&header.name), header));
        let first = named.filter(|(name, _)| seen.insert(Arc::clone(name)));
        first
            .map(|(name, header)| (name, header.value.as_str().into()))
            .collect()
    };
    HeaderEdits {
        set: pairs(&edits.set),
        add: pairs(&edits.add),
        remove: edits.remove.iter().map(|name| lower_name(name)).collect(),
    }
}

fn path_edit(path: &PathModifier) -> Option<PathEdit> {
    let text = |text: &Option<String>| text.as_deref().map(Arc::from);
    match path.kind {
        PathModifierKind::ReplaceFullPath => text(&path.replace_full_path).map(PathEdit::Full),
        PathModifierKind::ReplacePrefixMatch => {
            text(&path.replace_prefix_match).map(PathEdit::Prefix)
        }
    }
}

fn timeouts(rule: &HttpRule) -> Timeouts {
    // Zero switches a limit off.
    let read = |text: Option<&String>| duration::parse(text?).filter(|limit| !limit.is_zero());
    let written = rule.timeouts.as_ref();
    Timeouts {
        request: read(written.and_then(|t| t.request.as_ref())),
        backend: read(written.and_then(|t| t.backend_request.as_ref())),
    }
}

fn retry(retry: &HttpRetry) -> Retry {
    let codes = match retry.codes.is_empty() {
        true => RETRY_CODES.to_vec(),
        false => retry.codes.clone(),
    };
    let backoff = retry.backoff.as_deref().and_then(duration::parse);
    Retry {
        codes,
        attempts: retry.attempts.unwrap_or(1).min(RETRY_ATTEMPTS_MAX),
        backoff: backoff.unwrap_or(RETRY_BACKOFF),
    }
}
