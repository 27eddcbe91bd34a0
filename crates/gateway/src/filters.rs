//! `HTTPRoute` filters: pure changes to heads, and the two that answer in place.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use forebay_model::route::{Cors, Entry, HeaderEdits, PathEdit, PathMatch, Redirect, UrlRewrite};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};

use crate::relay::Body;
use crate::upstream::is_hop_by_hop;

/// Applies header edits: set, add, remove, in this order. Fields that frame a message are left
/// alone: a route that could set them could make two messages out of one.
pub(crate) fn edit(headers: &mut HeaderMap, edits: &HeaderEdits) {
    let frames = |name: &HeaderName| {
        is_hop_by_hop(name) || matches!(*name, header::CONTENT_LENGTH | header::TRAILER)
    };
    let parse = |name: &str, value: &str| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        (!frames(&name)).then_some((name, HeaderValue::from_str(value).ok()?))
    };
    for (name, value) in edits.set.iter().filter_map(|(n, v)| parse(n, v)) {
        headers.insert(name, value);
    }
    for (name, value) in edits.add.iter().filter_map(|(n, v)| parse(n, v)) {
        headers.append(name, value);
    }
    for name in &edits.remove {
        if HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| !frames(&name)) {
            headers.remove(&**name);
        }
    }
}

/// The path and query after `rewrite`, and the new host if there is one.
pub(crate) fn rewrite_target(target: &str, entry: &Entry, rewrite: &UrlRewrite) -> String {
    let (path, query) = split_query(target);
    match &rewrite.path {
        None => target.to_owned(),
        Some(edit) => escaped(with_query(&edit_path(path, entry, edit), query)),
    }
}

/// A path that a route spelled with characters that cannot stand in a request line, which must not
/// end it early.
fn escaped(target: String) -> String {
    if target.starts_with('/') && target.bytes().all(|b| b.is_ascii_graphic()) {
        return target;
    }
    let mut out = String::with_capacity(target.len() + 16);
    if !target.starts_with('/') {
        out.push('/');
    }
    for byte in target.bytes() {
        if byte.is_ascii_graphic() {
            out.push(char::from(byte));
        } else {
            let _infallible = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The answer of a redirect filter.
pub(crate) fn redirect(
    to: &Redirect,
    entry: &Entry,
    uri: &Uri,
    host: &str,
    tls: bool,
    port: u16,
) -> Response<Body> {
    let own_scheme = if tls { "https" } else { "http" };
    let scheme = to.scheme.as_deref().unwrap_or(own_scheme);
    let well_known = well_known_port(scheme);
    // A scheme of the route's stands for its own port, the listener's for the listener's.
    let implied = match (&to.scheme, well_known) {
        (Some(_), Some(well_known)) => well_known,
        (Some(_), None) | (None, _) => port,
    };
    let port = to.port.unwrap_or(implied);
    let (path, query) = split_query(uri.path_and_query().map_or("/", |pq| pq.as_str()));
    let path = to
        .path
        .as_ref()
        .map_or_else(|| path.to_owned(), |e| edit_path(path, entry, e));
    let host = to.hostname.as_deref().unwrap_or(host);
    let host = if host.contains(':') {
        Cow::Owned(format!("[{host}]"))
    } else {
        Cow::Borrowed(host)
    };
    let authority = if Some(port) == well_known {
        host.into_owned()
    } else {
        format!("{host}:{port}")
    };
    let location = format!(
        "{scheme}://{authority}{}",
        escaped(with_query(&path, query))
    );
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(to.status).unwrap_or(StatusCode::FOUND);
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn edit_path(path: &str, entry: &Entry, edit: &PathEdit) -> String {
    match edit {
        PathEdit::Full(full) => full.to_string(),
        PathEdit::Prefix(replacement) => {
            let matched = match &entry.matcher.path {
                PathMatch::Prefix(prefix) => prefix.len(),
                // Validation ties prefix replacement to prefix matches.
                PathMatch::Exact(_) | PathMatch::Regex(_) => 0,
            };
            let rest = path
                .get(matched..)
                .unwrap_or_default()
                .trim_start_matches('/');
            let base = replacement.trim_end_matches('/');
            if rest.is_empty() && !base.is_empty() {
                // `/foo/` keeps its slash, `/foo` does not grow one.
                let slash = if path.len() > matched && path.ends_with('/') {
                    "/"
                } else {
                    ""
                };
                return format!("{base}{slash}");
            }
            format!("{base}/{rest}")
        }
    }
}

fn split_query(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}

fn with_query(path: &str, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

// === CORS ===

/// The answer to a CORS preflight, if the request is one.
pub(crate) fn preflight(
    cors: &Cors,
    method: &Method,
    headers: &HeaderMap,
) -> Option<Response<Body>> {
    if *method != Method::OPTIONS || !headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let origin = headers.get(header::ORIGIN)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if !allows(cors, origin) {
        return Some(response);
    }
    let out = response.headers_mut();
    allow_origin(cors, origin, out);
    let asked_method = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
    let asked_headers = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    for (name, own, asked) in [
        (
            header::ACCESS_CONTROL_ALLOW_METHODS,
            &cors.allow_methods,
            asked_method,
        ),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            &cors.allow_headers,
            asked_headers,
        ),
        // Asked for by none, told all the same.
        (
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            &cors.expose_headers,
            None,
        ),
    ] {
        if let Some(list) = cors_list(cors, own, asked) {
            out.insert(name, list);
        }
    }
    out.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from(cors.max_age_s),
    );
    Some(response)
}

/// The value of a field that lists `own`. A star does not cover requests with credentials: what was
/// `asked` for is named in its place, and nothing where nothing was.
fn cors_list(cors: &Cors, own: &[Arc<str>], asked: Option<&HeaderValue>) -> Option<HeaderValue> {
    let any = own.iter().any(|v| &**v == "*");
    match (any, cors.allow_credentials) {
        (true, true) => asked.cloned(),
        (true, false) => Some(HeaderValue::from_static("*")),
        (false, _) if own.is_empty() => None,
        (false, _) => HeaderValue::from_str(&own.join(", ")).ok(),
    }
}

/// Adds CORS fields to the response of an actual request.
pub(crate) fn cors_response(cors: &Cors, origin: Option<&HeaderValue>, out: &mut HeaderMap) {
    let Some(origin) = origin.filter(|origin| allows(cors, origin)) else {
        return;
    };
    allow_origin(cors, origin, out);
    if let Some(expose) = cors_list(cors, &cors.expose_headers, None) {
        out.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose);
    }
}

fn allow_origin(cors: &Cors, origin: &HeaderValue, out: &mut HeaderMap) {
    let any = cors.allow_origins.iter().any(|o| &**o == "*");
    if any && !cors.allow_credentials {
        out.insert(
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            HeaderValue::from_static("*"),
        );
    } else {
        out.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        out.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    if cors.allow_credentials {
        out.insert(
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
}

fn allows(cors: &Cors, origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    cors.allow_origins
        .iter()
        .any(|allowed| &**allowed == "*" || allows_origin(allowed, origin))
}

/// Whether an origin is the allowed one, whose host may begin with a wildcard for any number of
/// labels. A port that is left out is the scheme's own.
fn allows_origin(allowed: &str, origin: &str) -> bool {
    let (Some(allowed), Some(origin)) = (Origin::of(allowed), Origin::of(origin)) else {
        return allowed.eq_ignore_ascii_case(origin);
    };
    let host = match allowed.host.strip_prefix('*') {
        None => origin.host == allowed.host,
        Some(suffix) => origin.host.len() > suffix.len() && origin.host.ends_with(suffix),
    };
    host && allowed.scheme == origin.scheme && allowed.port == origin.port
}

struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// Reads `scheme://host[:port]` of one of the schemes that have a port of their own.
    fn of(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (scheme, authority) = text.split_once("://")?;
        let (host, port) = match authority.rsplit_once(':') {
            // Not the last part of an IPv6 address.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (authority, well_known_port(scheme)?),
        };
        Some(Self {
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            port,
        })
    }
}

fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use forebay_model::ObjectName;
    use forebay_model::route::{Matcher, Rule, Timeouts};

    use super::*;

    fn entry(prefix: &str) -> Entry {
        Entry {
            matcher: Matcher {
                path: PathMatch::Prefix(prefix.into()),
                method: None,
                headers: Vec::new(),
                query: Vec::new(),
            },
            rule: Arc::new(Rule {
                route: ObjectName::new("default", "r"),
                speaks: forebay_model::route::Speaks::Http,
                index: 0,
                filters: Vec::new(),
                targets: Vec::new(),
                timeouts: Timeouts::default(),
                retry: None,
            }),
        }
    }

    #[test]
    fn prefix_replacement_follows_the_table_of_the_specification() {
        let check = |path: &str, prefix: &str, replacement: &str, expected: &str| {
            let prefix = prefix.trim_end_matches('/');
            let edit = PathEdit::Prefix(replacement.into());
            assert_eq!(
                edit_path(path, &entry(prefix), &edit),
                expected,
                "{path} {prefix}"
            );
        };
        check("/foo/bar", "/foo", "/xyz", "/xyz/bar");
        check("/foo/bar", "/foo", "/xyz/", "/xyz/bar");
        check("/foo/bar", "/foo/", "/xyz", "/xyz/bar");
        check("/foo/bar", "/foo/", "/xyz/", "/xyz/bar");
        check("/foo", "/foo", "/xyz", "/xyz");
        check("/foo/", "/foo", "/xyz", "/xyz/");
        check("/foo/bar", "/foo", "", "/bar");
        check("/foo/", "/foo", "", "/");
        check("/foo", "/foo", "", "/");
        check("/foo/", "/foo", "/", "/");
        check("/foo", "/foo", "/", "/");
    }

    #[test]
    fn redirect_keeps_what_it_does_not_change() {
        let check = |to: Redirect, tls: bool, port: u16, expected: &str| {
            let uri = Uri::from_static("/a/b?q=1");
            let response = redirect(&to, &entry("/a"), &uri, "h.test", tls, port);
            assert_eq!(response.headers()[header::LOCATION], expected);
        };
        let none = Redirect {
            scheme: None,
            hostname: None,
            path: None,
            port: None,
            status: 302,
        };
        check(none.clone(), false, 80, "http://h.test/a/b?q=1");
        check(none.clone(), false, 8080, "http://h.test:8080/a/b?q=1");
        check(
            Redirect {
                scheme: Some("https".into()),
                ..none.clone()
            },
            false,
            8080,
            "https://h.test/a/b?q=1",
        );
        check(
            Redirect {
                hostname: Some("x.test".into()),
                port: Some(8443),
                path: Some(PathEdit::Prefix("/z".into())),
                ..none
            },
            true,
            443,
            "https://x.test:8443/z/b?q=1",
        );
    }

    #[test]
    fn cors_origins_match_exactly_or_by_wildcard() {
        let check = |allowed: &str, origin: &str, expected: bool| {
            let cors = Cors {
                allow_origins: vec![allowed.into()],
                ..Cors::default()
            };
            let origin = HeaderValue::from_str(origin).unwrap();
            assert_eq!(allows(&cors, &origin), expected, "{allowed} {origin:?}");
        };
        check("https://a.test", "https://a.test", true);
        check("https://a.test", "https://a.test.evil", false);
        check("https://*.a.test", "https://x.a.test", true);
        check("https://*.a.test", "https://a.test", false);
        check("https://*.a.test", "https://x.y.a.test", true);
        check("https://*.a.test", "https://x.a.test:8443", false);
        check("https://*.a.test:8443", "https://x.a.test:8443", true);
        check("https://a.test:443", "https://a.test", true);
        check("http://a.test", "http://A.test:80", true);
        check("http://a.test", "https://a.test", false);
        check("https://*", "https://anything.test", true);
        check("https://*", "http://anything.test", false);
        check("https://[2001:db8::1]", "https://[2001:db8::1]:443", true);
        check("https://a.test", "null", false);
        check("*", "null", true);
    }
}
