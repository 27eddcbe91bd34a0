//! URLs, read as Go's `net/url` reads them.

use super::net::parse_address;
use super::{Implementation, or_fail, quoted, text};
use crate::value::{Failure, Key, Outcome, Value, no_overload};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// An absolute URL or an absolute path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Url {
    scheme: String,
    /// What follows the scheme, if that is not a path.
    opaque: String,
    user: Option<User>,
    host: String,
    omit_host: bool,
    path: Vec<u8>,
    /// How the path was written, if not in the usual way.
    raw_path: String,
    force_query: bool,
    query: String,
    fragment: Vec<u8>,
    raw_fragment: String,
}

#[derive(Clone, Debug)]
struct User {
    name: Vec<u8>,
    password: Option<Vec<u8>>,
}

/// The function that an overload is.
pub(crate) fn implementation(overload: &str) -> Option<Implementation> {
    Some(match overload {
        "string_to_url" => |args, _| {
            let url = Url::parse(text(&args[0])?)
                .map_err(|error| format!("URL parse error during conversion from string: {error}"));
            Ok(Value::Url(Arc::new(or_fail(url)?)))
        },
        "is_url_string" => |args, _| Ok(Value::Bool(check_request(text(&args[0])?).is_ok())),
        "url_get_scheme" => |args, _| Ok(Value::str(of(&args[0])?.scheme.as_str())),
        "url_get_host" => |args, _| Ok(Value::str(of(&args[0])?.host.as_str())),
        "url_get_hostname" => |args, _| Ok(Value::str(of(&args[0])?.host_and_port().0)),
        "url_get_port" => |args, _| Ok(Value::str(of(&args[0])?.host_and_port().1)),
        "url_get_escaped_path" => |args, _| Ok(Value::str(of(&args[0])?.escaped_path())),
        "url_get_query" => |args, _| query(of(&args[0])?),
        _ => return None,
    })
}

fn of(value: &Value) -> Result<&Url, Failure> {
    match value {
        Value::Url(url) => Ok(url),
        _ => no_overload(),
    }
}

/// The parameters of the query; those that cannot be read are left out.
fn query(url: &Url) -> Outcome {
    let mut parameters: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
    for part in url.query.split('&') {
        if part.is_empty() || part.contains(';') {
            continue;
        }
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let unescaped = |text: &str| unescape(text, Mode::Query).map(lossy);
        let (Ok(key), Ok(value)) = (unescaped(key), unescaped(value)) else {
            continue;
        };
        let values = parameters.entry(Key::Str(key.into())).or_default();
        values.push(Value::str(value));
    }
    let lists = parameters
        .into_iter()
        .map(|(key, values)| (key, Value::list(values)));
    Ok(Value::map(lists.collect()))
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The part of a URL that is escaped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Path,
    Host,
    Zone,
    User,
    Query,
    Fragment,
}

impl Mode {
    /// Whether the byte stands for itself in this part.
    fn is_plain(self, b: u8) -> bool {
        if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) {
            return true;
        }
        match self {
            Mode::Path => b"$&+,/:;=@".contains(&b),
            Mode::Host | Mode::Zone => b"!\"$&'()*+,:;<=>[]".contains(&b),
            Mode::User => b"$&+,;=".contains(&b),
            Mode::Query => false,
            Mode::Fragment => b"!$&()*+,/:;=?@".contains(&b),
        }
    }
}

fn escape(bytes: &[u8], mode: Mode) -> String {
    let mut out = String::with_capacity(bytes.len());
    for b in bytes {
        match *b {
            b' ' if mode == Mode::Query => out.push('+'),
            b if mode.is_plain(b) => out.push(char::from(b)),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

fn unescape(text: &str, mode: Mode) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(b) = bytes.get(at) {
        match *b {
            b'%' => {
                let code = bytes.get(at..at + 3);
                let digits = code.and_then(|code| Some((hex(code[1])?, hex(code[2])?)));
                let bad = || {
                    let code = &bytes[at..(at + 3).min(bytes.len())];
                    format!(
                        "invalid URL escape {}",
                        quoted(&String::from_utf8_lossy(code))
                    )
                };
                let (high, low) = digits.ok_or_else(bad)?;
                let value = high << 4 | low;
                let percent = (high, low) == (2, 5);
                let refused = match mode {
                    Mode::Host => high < 8 && !percent,
                    Mode::Zone => !percent && value != b' ' && !Mode::Host.is_plain(value),
                    _ => false,
                };
                if refused {
                    return Err(bad());
                }
                out.push(value);
                at += 3;
                continue;
            }
            b'+' if mode == Mode::Query => out.push(b' '),
            b if matches!(mode, Mode::Host | Mode::Zone) && b < 0x80 && !mode.is_plain(b) => {
                let c = quoted(&char::from(b).to_string());
                return Err(format!("invalid character {c} in host name"));
            }
            b => out.push(b),
        }
        at += 1;
    }
    Ok(out)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// Whether the text could be the target of a request; the error is Go's.
pub(crate) fn check_request(text: &str) -> Result<(), String> {
    match parse(text, true) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("parse {}: {error}", quoted(text))),
    }
}

impl Url {
    /// Reads an absolute URL, or an absolute path.
    fn parse(text: &str) -> Result<Url, String> {
        check_request(text)?;
        // Again with the fragment apart, which a request has not.
        let (before, fragment) = text.split_once('#').unwrap_or((text, ""));
        let in_url = |text: &str, error| format!("parse {}: {error}", quoted(text));
        let mut url = parse(before, false).map_err(|error| in_url(before, error))?;
        url.fragment = unescape(fragment, Mode::Fragment).map_err(|error| in_url(text, error))?;
        if escape(&url.fragment, Mode::Fragment) != fragment {
            url.raw_fragment = fragment.to_owned();
        }
        Ok(url)
    }

    fn host_and_port(&self) -> (&str, &str) {
        let (host, port) = match self.host.rfind(':') {
            Some(colon) if is_optional_port(&self.host[colon..]) => {
                (&self.host[..colon], &self.host[colon + 1..])
            }
            _ => (self.host.as_str(), ""),
        };
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        (bare.unwrap_or(host), port)
    }

    fn escaped_path(&self) -> String {
        written(&self.raw_path, &self.path, Mode::Path)
    }
}

/// The text as it was written if it still says the same, or else escaped anew.
fn written(raw: &str, content: &[u8], mode: Mode) -> String {
    let allowed = |b: u8| b"!$&'()*+,;=:@[]%".contains(&b) || mode.is_plain(b);
    let same = !raw.is_empty()
        && raw.bytes().all(allowed)
        && unescape(raw, mode).is_ok_and(|raw| raw == content);
    if same {
        return raw.to_owned();
    }
    if content == b"*" && mode == Mode::Path {
        return "*".to_owned();
    }
    escape(content, mode)
}

fn parse(text: &str, request: bool) -> Result<Url, String> {
    if text.bytes().any(|b| b.is_ascii_control()) {
        return Err("net/url: invalid control character in URL".to_owned());
    }
    if text.is_empty() && request {
        return Err("empty url".to_owned());
    }
    let mut url = Url::default();
    if text == "*" {
        url.path = b"*".to_vec();
        return Ok(url);
    }
    let (scheme, mut rest) = scheme(text)?;
    url.scheme = scheme.to_ascii_lowercase();
    if rest.ends_with('?') && rest.matches('?').count() == 1 {
        url.force_query = true;
        rest = &rest[..rest.len() - 1];
    } else if let Some((before, query)) = rest.split_once('?') {
        url.query = query.to_owned();
        rest = before;
    }
    let schemed = !url.scheme.is_empty();
    if !rest.starts_with('/') {
        if schemed {
            url.opaque = rest.to_owned();
            return Ok(url);
        }
        if request {
            return Err("invalid URI for request".to_owned());
        }
        let segment = rest.split('/').next().unwrap_or_default();
        if segment.contains(':') {
            return Err("first path segment in URL cannot contain colon".to_owned());
        }
    }
    let has_authority = schemed || (!request && !rest.starts_with("///"));
    match rest.strip_prefix("//") {
        Some(after) if has_authority => {
            let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
            url.read_authority(authority)?;
            rest = path;
        }
        _ => url.omit_host = schemed && rest.starts_with('/'),
    }
    url.path = unescape(rest, Mode::Path)?;
    if escape(&url.path, Mode::Path) != rest {
        url.raw_path = rest.to_owned();
    }
    Ok(url)
}

/// The scheme, empty if there is none, and what follows.
fn scheme(text: &str) -> Result<(&str, &str), String> {
    for (at, b) in text.bytes().enumerate() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return Err("missing protocol scheme".to_owned()),
            b':' => return Ok((&text[..at], &text[at + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

impl Url {
    fn read_authority(&mut self, authority: &str) -> Result<(), String> {
        let Some((user, host)) = authority.rsplit_once('@') else {
            self.host = host(&self.scheme, authority)?;
            return Ok(());
        };
        self.host = self::host(&self.scheme, host)?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b);
        if !user.bytes().all(allowed) {
            return Err("net/url: invalid userinfo".to_owned());
        }
        let (name, password) = match user.split_once(':') {
            Some((name, password)) => (name, Some(password)),
            None => (user, None),
        };
        self.user = Some(User {
            name: unescape(name, Mode::User)?,
            password: password
                .map(|text| unescape(text, Mode::User))
                .transpose()?,
        });
        Ok(())
    }
}

fn is_optional_port(text: &str) -> bool {
    match text.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()),
        None => text.is_empty(),
    }
}

fn check_port(text: &str) -> Result<(), String> {
    if is_optional_port(text) {
        return Ok(());
    }
    Err(format!("invalid port {} after host", quoted(text)))
}

fn host(scheme: &str, text: &str) -> Result<String, String> {
    match text.rfind('[') {
        Some(0) => return literal_host(text),
        Some(_) => return Err("invalid IP-literal".to_owned()),
        None => {}
    }
    if let (Some(first), Some(last)) = (text.find(':'), text.rfind(':')) {
        // Schemes of databases may list several hosts.
        let strict = matches!(scheme, "http" | "https");
        check_port(&text[if strict { first } else { last }..])?;
    }
    unescape(text, Mode::Host).map(lossy)
}

/// `[fe80::1%25en0]:80`.
fn literal_host(text: &str) -> Result<String, String> {
    let close = text.rfind(']').ok_or("missing ']' in host")?;
    let (name, port) = (&text[1..close], &text[close + 1..]);
    check_port(port)?;
    let (address, zone) = name.split_at(name.find("%25").unwrap_or(name.len()));
    let mut unescaped = unescape(address, Mode::Host)?;
    unescaped.extend(unescape(zone, Mode::Zone)?);
    let unescaped = lossy(unescaped);
    let (address, _) =
        parse_address(&unescaped).map_err(|error| format!("invalid host: {error}"))?;
    if address.is_ipv4() {
        return Err("invalid IP-literal".to_owned());
    }
    Ok(format!("[{unescaped}]{port}"))
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        if !self.scheme.is_empty() {
            out.push_str(&self.scheme);
            out.push(':');
        }
        if self.opaque.is_empty() {
            self.push_hierarchy(&mut out);
        } else {
            out.push_str(&self.opaque);
        }
        if self.force_query || !self.query.is_empty() {
            out.push('?');
            out.push_str(&self.query);
        }
        if !self.fragment.is_empty() {
            out.push('#');
            out.push_str(&written(&self.raw_fragment, &self.fragment, Mode::Fragment));
        }
        f.write_str(&out)
    }
}

impl Url {
    /// Host and path.
    fn push_hierarchy(&self, out: &mut String) {
        let (host, user) = (!self.host.is_empty(), self.user.is_some());
        let named = !self.scheme.is_empty() || host || user;
        let omitted = self.omit_host && !host && !user;
        if named && !omitted {
            if host || user || !self.path.is_empty() {
                out.push_str("//");
            }
            if let Some(user) = &self.user {
                out.push_str(&escape(&user.name, Mode::User));
                if let Some(password) = &user.password {
                    out.push(':');
                    out.push_str(&escape(password, Mode::User));
                }
                out.push('@');
            }
            out.push_str(&escape(self.host.as_bytes(), Mode::Host));
        }
        let path = self.escaped_path();
        if host && !path.is_empty() && !path.starts_with('/') {
            out.push('/');
        }
        if out.is_empty() && path.split('/').next().unwrap_or_default().contains(':') {
            out.push_str("./");
        }
        out.push_str(&path);
    }
}
