//! Routes as the index keeps them: with the matches of each rule compiled once, when the route is
//! applied, and with what the API server let through although it cannot be served.

use std::collections::BTreeSet;
use std::sync::Arc;

use forebay_model::route::{Matcher, PathMatch, Pattern, TextMatch};

use crate::kinds::grpcroute::{GrpcMatch, GrpcMethod, GrpcRoute};
use crate::kinds::httproute::{
    HeaderModifier, HttpFilter, HttpMatch, HttpRoute, HttpRule, NamedValue, PathKind, TextKind,
};
use crate::validate::syntax;

/// A route and what is made of it.
#[derive(Clone, Debug)]
pub(crate) struct Prepared<T> {
    pub(crate) object: T,
    /// One for each rule, in order.
    pub(super) rules: Vec<PreparedRule>,
}

/// Everything else is made from the object.
impl<T: PartialEq> PartialEq for Prepared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.object == other.object
    }
}

#[derive(Clone, Debug)]
pub(super) struct PreparedRule {
    /// What a request must look like. Empty if a pattern cannot be read: it is not known then which
    /// requests are meant.
    pub(super) matchers: Vec<Matcher>,
    /// The field within the rule that cannot be served, and why.
    pub(super) invalid: Option<(String, String)>,
}

type Invalid = (String, String);

impl Prepared<HttpRoute> {
    pub(crate) fn http(mut object: HttpRoute) -> Self {
        // The CRD's default for rules: one that matches every path (and has no backend).
        if object.spec.rules.is_empty() {
            object.spec.rules.push(HttpRule::default());
        }
        let rules = object.spec.rules.iter().map(|rule| {
            let backends = rule.backend_refs.iter().map(|backend| &backend.filters);
            PreparedRule::new(
                compile(&rule.matches, http_matcher),
                unservable(&rule.filters, backends),
            )
        });
        Self {
            rules: rules.collect(),
            object,
        }
    }
}

impl Prepared<GrpcRoute> {
    pub(crate) fn grpc(object: GrpcRoute) -> Self {
        let rules = object.spec.rules.iter().map(|rule| {
            let backends = rule.backend_refs.iter().map(|backend| &backend.filters);
            PreparedRule::new(
                compile(&rule.matches, grpc_matcher),
                unservable(&rule.filters, backends),
            )
        });
        Self {
            rules: rules.collect(),
            object,
        }
    }
}

impl PreparedRule {
    fn new(matchers: Result<Vec<Matcher>, Invalid>, unservable: Option<Invalid>) -> Self {
        match matchers {
            Ok(matchers) => Self {
                matchers,
                invalid: unservable,
            },
            Err(invalid) => Self {
                matchers: Vec::new(),
                invalid: Some(invalid),
            },
        }
    }
}

/// The matchers of a rule; one that matches everything if no match is written.
fn compile<M: Default>(
    matches: &[M],
    matcher: fn(&M) -> Result<Matcher, Invalid>,
) -> Result<Vec<Matcher>, Invalid> {
    if matches.is_empty() {
        return Ok(vec![matcher(&M::default())?]);
    }
    let compiled = matches.iter().enumerate().map(|(i, wanted)| {
        matcher(wanted).map_err(|(field, why)| (format!("matches[{i}].{field}"), why))
    });
    compiled.collect()
}

fn http_matcher(wanted: &HttpMatch) -> Result<Matcher, Invalid> {
    let value = wanted.path.value.as_str();
    Ok(Matcher {
        path: match wanted.path.kind {
            PathKind::Exact => PathMatch::Exact(value.into()),
            PathKind::PathPrefix => {
                PathMatch::Prefix(value.strip_suffix('/').unwrap_or(value).into())
            }
            PathKind::RegularExpression => PathMatch::Regex(pattern(value, "path.value")?),
        },
        method: wanted.method.map(|method| method.as_str().into()),
        headers: headers(&wanted.headers)?,
        query: named(&wanted.query_params, "queryParams", |name| name.into())?,
    })
}

/// A gRPC call is a POST to `/service/method`: both are an exact path, a service alone is a prefix,
/// a method alone is a pattern. Tables rank them in this order, as the specification does.
fn grpc_matcher(wanted: &GrpcMatch) -> Result<Matcher, Invalid> {
    let path = match &wanted.method {
        None => PathMatch::Prefix("".into()),
        Some(method) => grpc_path(method)?,
    };
    Ok(Matcher {
        path,
        method: None,
        headers: headers(&wanted.headers)?,
        query: Vec::new(),
    })
}

fn grpc_path(method: &GrpcMethod) -> Result<PathMatch, Invalid> {
    const ANY: &str = "[^/]+";
    let (service, name) = (method.service.as_str(), method.method.as_str());
    let or_any = |text: &str| match text {
        "" => ANY.to_owned(),
        text => format!("(?:{text})"),
    };
    match (method.kind, service.is_empty(), name.is_empty()) {
        (_, true, true) => Ok(PathMatch::Prefix("".into())),
        (TextKind::Exact, false, false) => {
            Ok(PathMatch::Exact(format!("/{service}/{name}").into()))
        }
        (TextKind::Exact, false, true) => Ok(PathMatch::Prefix(format!("/{service}").into())),
        // Validation has seen that the name is letters, digits and `_`.
        (TextKind::Exact, true, false) => {
            pattern(&format!("/{ANY}/{name}"), "method").map(PathMatch::Regex)
        }
        (TextKind::RegularExpression, ..) => {
            // Each on its own first, so that a fault is that of the text that was written.
            pattern(service, "method.service")?;
            pattern(name, "method.method")?;
            let both = format!("/{}/{}", or_any(service), or_any(name));
            pattern(&both, "method").map(PathMatch::Regex)
        }
    }
}

/// Of headers whose names differ in case only, the first counts.
fn headers(list: &[NamedValue]) -> Result<Vec<(Arc<str>, TextMatch)>, Invalid> {
    let mut matches = named(list, "headers", lower_name)?;
    let mut seen = BTreeSet::new();
    matches.retain(|(name, _)| seen.insert(Arc::clone(name)));
    Ok(matches)
}

fn named(
    list: &[NamedValue],
    field: &str,
    name: fn(&str) -> Arc<str>,
) -> Result<Vec<(Arc<str>, TextMatch)>, Invalid> {
    let pairs = list.iter().enumerate().map(|(i, own)| {
        let value = match own.kind {
            TextKind::Exact => TextMatch::Exact(own.value.as_str().into()),
            TextKind::RegularExpression => {
                let field = format!("{field}[{i}].value");
                TextMatch::Regex(pattern(&own.value, &field)?)
            }
        };
        Ok((name(&own.name), value))
    });
    pairs.collect()
}

pub(super) fn lower_name(name: &str) -> Arc<str> {
    name.to_ascii_lowercase().into()
}

fn pattern(text: &str, field: &str) -> Result<Pattern, Invalid> {
    Pattern::new(text).map_err(|error| {
        // The crate draws the place of the fault over several lines; its last one says it.
        let error = error.to_string();
        let fault = error.lines().last().unwrap_or_default();
        let fault = fault.trim_start_matches("error: ");
        let why = format!("not a regular expression (RE2): {fault}");
        (field.to_owned(), why)
    })
}

/// What in the filters of a rule and of its backends cannot be put into a request or an answer.
fn unservable<'a>(
    filters: &[HttpFilter],
    backends: impl Iterator<Item = &'a Vec<HttpFilter>>,
) -> Option<Invalid> {
    let own = filters.iter().enumerate();
    let mut own = own.map(|(i, filter)| (format!("filters[{i}]"), filter));
    let of_backends = backends.enumerate().flat_map(|(b, filters)| {
        let filters = filters.iter().enumerate();
        filters.map(move |(i, filter)| (format!("backendRefs[{b}].filters[{i}]"), filter))
    });
    own.find_map(|(at, filter)| filter_fault(&at, filter))
        .or_else(|| {
            let mut of_backends = of_backends;
            of_backends.find_map(|(at, filter)| filter_fault(&at, filter))
        })
}

fn filter_fault(at: &str, filter: &HttpFilter) -> Option<Invalid> {
    let field = filter.kind.names().1;
    let modifiers = [
        &filter.request_header_modifier,
        &filter.response_header_modifier,
    ];
    let mut values = modifiers.into_iter().flatten().flat_map(header_values);
    if values.any(|value| !syntax::is_header_value(value)) {
        let why = "a header value has no control characters".to_owned();
        return Some((format!("{at}.{field}"), why));
    }
    let redirect = filter.request_redirect.as_ref();
    let rewrite = filter.url_rewrite.as_ref();
    let paths = [
        redirect.and_then(|r| r.path.as_ref()),
        rewrite.and_then(|r| r.path.as_ref()),
    ];
    let mut paths = paths
        .into_iter()
        .flatten()
        .flat_map(|path| [&path.replace_full_path, &path.replace_prefix_match])
        .flatten();
    let plain = |path: &String| path.bytes().all(|b| b.is_ascii_graphic());
    if !paths.all(plain) {
        let why = "write spaces and the like in a path as %xx".to_owned();
        return Some((format!("{at}.{field}.path"), why));
    }
    None
}

fn header_values(modifier: &HeaderModifier) -> impl Iterator<Item = &str> {
    let headers = modifier.set.iter().chain(&modifier.add);
    headers.map(|header| header.value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_methods_become_paths() {
        let check = |kind, service: &str, method: &str, want: &str| {
            let wanted = GrpcMethod {
                kind,
                service: service.to_owned(),
                method: method.to_owned(),
            };
            let got = match grpc_path(&wanted) {
                Ok(PathMatch::Exact(path)) => format!("={path}"),
                Ok(PathMatch::Prefix(path)) => format!("{path}/*"),
                Ok(PathMatch::Regex(pattern)) => format!("~{}", pattern.as_str()),
                Err((field, _)) => format!("!{field}"),
            };
            assert_eq!(got, want);
        };
        let (exact, regex) = (TextKind::Exact, TextKind::RegularExpression);
        check(exact, "a.B", "C", "=/a.B/C");
        check(exact, "a.B", "", "/a.B/*");
        check(exact, "", "C", "~^(?:/[^/]+/C)$");
        check(exact, "", "", "/*");
        check(regex, "a|b", "", "~^(?:/(?:a|b)/[^/]+)$");
        check(regex, "", "C.*", "~^(?:/[^/]+/(?:C.*))$");
        check(regex, "a)(b", "C", "!method.service");
    }
}
