//! One HTTPRoute to rules of the model.

use std::sync::Arc;
use std::time::Duration;

use forebay_model::ObjectName;
use forebay_model::route::{
    Cors, Filter, HeaderEdits, Matcher, Mirror, PathEdit, PathMatch, Pattern, Redirect, Retry,
    Rule, Speaks, TextMatch, Timeouts, UrlRewrite, WeightedTarget,
};

use super::backends::{Backends, broken};
use crate::duration;
use crate::kinds::httproute::{
    FilterKind, HeaderModifier, HeaderValue, HttpFilter, HttpMatch, HttpRetry, HttpRoute, HttpRule,
    NamedValue, PathKind, PathModifier, PathModifierKind, RequestMirror, TextKind,
};
use crate::reason;
use crate::status::Fault;

/// Statuses that are retried when a rule asks for retries and names none.
const RETRY_CODES: [u16; 3] = [502, 503, 504];
/// Least wait between tries when a rule names none.
const RETRY_BACKOFF: Duration = Duration::from_millis(25);
/// `HTTPCORSFilter.maxAge` when left out, by the CRD.
const CORS_MAX_AGE_S: u32 = 5;

/// An HTTPRoute with its matches compiled, once when it is applied.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) object: HttpRoute,
    /// Matches per rule; never empty.
    matchers: Vec<Vec<Matcher>>,
}

/// Everything else is made from the object.
impl PartialEq for Route {
    fn eq(&self, other: &Self) -> bool {
        self.object == other.object
    }
}

impl Route {
    pub(crate) fn new(mut object: HttpRoute) -> Self {
        // The CRD's default for rules: one that matches every path (and has no backend).
        if object.spec.rules.is_empty() {
            object.spec.rules.push(HttpRule::default());
        }
        let matchers = object.spec.rules.iter().map(matchers).collect();
        Self { object, matchers }
    }
}

/// The rules of one route, and the references in it that do not hold.
pub(super) struct Rules<'a> {
    /// Each rule with its matches, in the order written.
    pub(super) rules: Vec<(Arc<Rule>, &'a [Matcher])>,
    /// Field and fault.
    pub(super) faults: Vec<(String, Fault)>,
}

/// Lowers the rules of `route`.
pub(super) fn lower<'a>(
    name: &ObjectName,
    route: &'a Route,
    backends: &mut Backends<'_>,
) -> Rules<'a> {
    let mut lowering = Lowering {
        namespace: &name.namespace,
        backends,
        faults: Vec::new(),
    };
    let rules = route
        .object
        .spec
        .rules
        .iter()
        .zip(&route.matchers)
        .enumerate();
    let rules = rules
        .map(|(index, (rule, matchers))| {
            let rule = lowering.rule(name, index, rule);
            (Arc::new(rule), matchers.as_slice())
        })
        .collect();
    Rules {
        rules,
        faults: lowering.faults,
    }
}

struct Lowering<'a, 'b> {
    namespace: &'a str,
    backends: &'a mut Backends<'b>,
    faults: Vec<(String, Fault)>,
}

impl Lowering<'_, '_> {
    fn rule(&mut self, route: &ObjectName, index: usize, rule: &HttpRule) -> Rule {
        let at = format!("spec.rules[{index}]");
        let filters = self.filters(&rule.filters, &format!("{at}.filters"));
        let mut targets: Vec<_> = rule
            .backend_refs
            .iter()
            .enumerate()
            .map(|(i, backend)| {
                let at = format!("{at}.backendRefs[{i}]");
                let found = self.backends.resolve(self.namespace, &backend.object());
                let found = found.map_err(|fault| self.note(at.clone(), fault));
                let filters = self.filters(&backend.filters, &format!("{at}.filters"));
                let target =
                    found.and_then(|target| filters.as_ref().map(|_| target).map_err(Fault::clone));
                WeightedTarget {
                    weight: backend.weight,
                    target: target.unwrap_or_else(|fault| broken(&fault)),
                    filters: filters.unwrap_or_default(),
                }
            })
            .collect();
        // A filter that cannot be had must not be skipped: the rule answers with an error.
        if let Err(fault) = &filters {
            targets = vec![WeightedTarget {
                weight: 1,
                target: broken(fault),
                filters: Vec::new(),
            }];
        }
        Rule {
            route: route.clone(),
            speaks: Speaks::Http,
            index,
            filters: filters.unwrap_or_default(),
            targets,
            timeouts: timeouts(rule),
            retry: rule.retry.as_ref().map(retry),
        }
    }

    fn note(&mut self, field: String, fault: Fault) -> Fault {
        self.faults.push((field, fault.clone()));
        fault
    }

    /// The filters in order, or why one of them cannot be had.
    fn filters(&mut self, filters: &[HttpFilter], at: &str) -> Result<Vec<Filter>, Fault> {
        let mut lowered = Vec::with_capacity(filters.len());
        for (i, filter) in filters.iter().enumerate() {
            lowered.extend(self.filter(filter, &format!("{at}[{i}]"))?);
        }
        Ok(lowered)
    }

    fn filter(&mut self, filter: &HttpFilter, at: &str) -> Result<Option<Filter>, Fault> {
        let unsupported = |reason| {
            let message = format!(
                "filters of type {} are not supported",
                filter.kind.names().0
            );
            Fault::new(reason, message)
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
                .map(|mirror| Filter::Mirror(self.mirror(mirror, at))),
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
                return Err(self.note(at.to_owned(), unsupported(reason::UNSUPPORTED_VALUE)));
            }
            FilterKind::ExtensionRef => {
                return Err(self.note(at.to_owned(), unsupported(reason::INVALID_KIND)));
            }
        })
    }

    fn mirror(&mut self, mirror: &RequestMirror, at: &str) -> Mirror {
        let found = self.backends.resolve(self.namespace, &mirror.backend_ref);
        let target = found.unwrap_or_else(|fault| {
            let at = format!("{at}.requestMirror.backendRef");
            broken(&self.note(at, fault))
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

fn lower_name(name: &str) -> Arc<str> {
    name.to_ascii_lowercase().into()
}

fn header_edits(edits: &HeaderModifier) -> HeaderEdits {
    let pair = |header: &HeaderValue| (lower_name(&header.name), header.value.as_str().into());
    HeaderEdits {
        set: edits.set.iter().map(pair).collect(),
        add: edits.add.iter().map(pair).collect(),
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
        attempts: retry.attempts.unwrap_or(1),
        backoff: backoff.unwrap_or(RETRY_BACKOFF),
    }
}

/// The matches of a rule; one that matches everything if it has none.
fn matchers(rule: &HttpRule) -> Vec<Matcher> {
    match rule.matches.as_slice() {
        [] => vec![matcher(&HttpMatch::default())],
        matches => matches.iter().map(matcher).collect(),
    }
}

fn matcher(wanted: &HttpMatch) -> Matcher {
    let value = wanted.path.value.as_str();
    let named = |list: &[NamedValue], name: fn(&str) -> Arc<str>| {
        let pair = |own: &NamedValue| (name(&own.name), text_match(own));
        list.iter().map(pair).collect()
    };
    Matcher {
        path: match wanted.path.kind {
            PathKind::Exact => PathMatch::Exact(value.into()),
            PathKind::PathPrefix => {
                PathMatch::Prefix(value.strip_suffix('/').unwrap_or(value).into())
            }
            PathKind::RegularExpression => PathMatch::Regex(pattern(value)),
        },
        method: wanted.method.map(|method| method.as_str().into()),
        headers: named(&wanted.headers, lower_name),
        query: named(&wanted.query_params, |name| name.into()),
    }
}

fn text_match(value: &NamedValue) -> TextMatch {
    match value.kind {
        TextKind::Exact => TextMatch::Exact(value.value.as_str().into()),
        TextKind::RegularExpression => TextMatch::Regex(pattern(&value.value)),
    }
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("validation has compiled every pattern")
}
