//! Which rule a request belongs to: the precedence of Gateway API v1.6, and a search that keeps to
//! it without looking at every rule.
//!
//! Order: most specific host; then the path (exact, longest prefix, regular expression, every
//! path); then a method match; more header matches; more query matches; and last the order in
//! which the rules were given, which the builder of a table makes oldest route first. The place of
//! regular expressions is ours to choose: they rank below prefixes that name something and above
//! the prefix `/`, so that a catch-all rule does not hide them. When no rule of the most specific
//! host matches, rules of less specific hosts are tried: the specification ranks rules that match.
//!
//! Entries of one host are sorted so that each kind of path is one run ordered by its text. A
//! lookup is then a binary search for the exact path and one per `/` of the request's path; only
//! regular expressions are tried one after the other.

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use crate::route::{
    Entry, HostPattern, MODEL_HEADER, Matcher, PathMatch, RequestHead, RouteTable, TextMatch,
};

impl RouteTable {
    /// A table of `entries`, each with the host that it is for (`None`: every host). Among entries
    /// that are equally specific the earlier one wins.
    #[must_use]
    pub fn build(entries: Vec<(Option<HostPattern>, Entry)>) -> Self {
        let mut table = Self::default();
        let mut suffix: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        for (host, entry) in entries {
            table.reads_model |= entry.matcher.reads_model();
            let list = match host {
                None => &mut table.any,
                Some(HostPattern::Exact(host)) => table.exact.entry(host).or_default(),
                Some(HostPattern::Suffix(host)) => suffix.entry(host).or_default(),
            };
            list.push(entry);
        }
        table.suffix = suffix.into_iter().collect();
        table.suffix.sort_by(|(a, _), (b, _)| longest_first(a, b));
        let suffix = table.suffix.iter_mut().map(|(_, list)| list);
        let lists = table.exact.values_mut().chain(suffix);
        for list in lists.chain([&mut table.any]) {
            list.sort_by(|a, b| precedence(&a.matcher, &b.matcher));
        }
        table
    }

    /// The entry with the highest precedence that matches `head`.
    #[must_use]
    pub fn find(&self, head: &impl RequestHead) -> Option<&Entry> {
        let host = head.host();
        self.exact
            .get(host)
            .and_then(|list| find_in(list, head))
            .or_else(|| self.suffixes_of(host).find_map(|list| find_in(list, head)))
            .or_else(|| find_in(&self.any, head))
    }

    /// The lists of the wildcards that cover `host`, longest first.
    fn suffixes_of<'a, 'h>(
        &'a self,
        host: &'h str,
    ) -> impl Iterator<Item = &'a [Entry]> + use<'a, 'h> {
        let dots = host.char_indices().filter(|(at, c)| *c == '.' && *at > 0);
        let tails = dots
            .map(|(at, _)| &host[at..])
            .chain((!host.is_empty()).then_some(""));
        tails.filter_map(|tail| {
            let at = self
                .suffix
                .binary_search_by(|(own, _)| longest_first(own, tail))
                .ok()?;
            Some(self.suffix[at].1.as_slice())
        })
    }
}

/// The first entry of a sorted list that matches.
fn find_in<'a>(entries: &'a [Entry], head: &impl RequestHead) -> Option<&'a Entry> {
    let path = head.path();
    let (exact, rest) = split(entries, PathRank::Exact);
    let (prefix, rest) = split(rest, PathRank::Prefix);
    let (regex, every) = split(rest, PathRank::Regex);
    first_match(run_of(exact, |own| own.cmp(path)), head)
        .or_else(|| {
            prefixes_of(path)
                .find_map(|part| first_match(run_of(prefix, |own| longest_first(own, part)), head))
        })
        .or_else(|| {
            let fits = |entry: &&Entry| {
                matches!(&entry.matcher.path, PathMatch::Regex(own) if own.is_match(path))
                    && entry.matcher.rest_holds(head)
            };
            regex.iter().find(fits)
        })
        .or_else(|| first_match(every, head))
}

fn first_match<'a>(run: &'a [Entry], head: &impl RequestHead) -> Option<&'a Entry> {
    run.iter().find(|entry| entry.matcher.rest_holds(head))
}

/// The entries up to and including those of `rank`, and those after.
fn split(entries: &[Entry], rank: PathRank) -> (&[Entry], &[Entry]) {
    entries.split_at(entries.partition_point(|e| PathRank::of(&e.matcher.path) <= rank))
}

/// The run of entries whose path text compares equal.
fn run_of(entries: &[Entry], order: impl Fn(&str) -> Ordering) -> &[Entry] {
    let text = |entry: &Entry| order(path_text(&entry.matcher.path));
    let start = entries.partition_point(|entry| text(entry) == Ordering::Less);
    let run = &entries[start..];
    &run[..run.partition_point(|entry| text(entry) == Ordering::Equal)]
}

/// What a stored prefix may be to cover `path`, longest first: the whole of it, then up to each
/// `/`. The empty prefix is not among them; it has a rank of its own.
fn prefixes_of(path: &str) -> impl Iterator<Item = &str> {
    let slashes = path.rmatch_indices('/').map(|(at, _)| &path[..at]);
    std::iter::once(path)
        .chain(slashes)
        .filter(|part| !part.is_empty())
}

/// The kinds of path match, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    Prefix,
    Regex,
    Every,
}

impl PathRank {
    fn of(path: &PathMatch) -> Self {
        match path {
            PathMatch::Exact(_) => Self::Exact,
            PathMatch::Prefix(text) if text.is_empty() => Self::Every,
            PathMatch::Prefix(_) => Self::Prefix,
            PathMatch::Regex(_) => Self::Regex,
        }
    }
}

fn path_text(path: &PathMatch) -> &str {
    match path {
        PathMatch::Exact(text) | PathMatch::Prefix(text) => text,
        PathMatch::Regex(_) => "",
    }
}

/// Longer text first; texts of one length, of which a request can match one only, by their letters.
fn longest_first(a: &str, b: &str) -> Ordering {
    b.len().cmp(&a.len()).then_with(|| a.cmp(b))
}

fn precedence(a: &Matcher, b: &Matcher) -> Ordering {
    let rank = |m: &Matcher| PathRank::of(&m.path);
    let details = |m: &Matcher| {
        let counts = (m.method.is_some(), m.headers.len(), m.query.len());
        Reverse(counts)
    };
    rank(a)
        .cmp(&rank(b))
        .then_with(|| match &a.path {
            PathMatch::Exact(_) => path_text(&a.path).cmp(path_text(&b.path)),
            _ => longest_first(path_text(&a.path), path_text(&b.path)),
        })
        .then_with(|| details(a).cmp(&details(b)))
}

impl Matcher {
    /// Whether every part of the matcher holds for `head`.
    #[must_use]
    pub fn matches(&self, head: &impl RequestHead) -> bool {
        self.path.matches(head.path()) && self.rest_holds(head)
    }

    /// Whether the matcher looks at the model name, which is in the body.
    #[must_use]
    pub fn reads_model(&self) -> bool {
        self.headers.iter().any(|(name, _)| &**name == MODEL_HEADER)
    }

    /// Everything but the path.
    fn rest_holds(&self, head: &impl RequestHead) -> bool {
        let method = self.method.as_deref();
        method.is_none_or(|method| method == head.method())
            && self
                .headers
                .iter()
                .all(|(name, want)| head.header(name).is_some_and(|value| want.is_match(value)))
            && self.query.iter().all(|(name, want)| {
                first_value(head.query(), name).is_some_and(|v| want.is_match(&v))
            })
    }
}

impl PathMatch {
    /// Whether `path` (without query) is covered. Prefixes match whole path elements.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(own) => **own == *path,
            Self::Prefix(own) => path
                .strip_prefix(&**own)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Regex(pattern) => pattern.is_match(path),
        }
    }
}

impl TextMatch {
    /// Whether `value` is covered.
    #[must_use]
    pub fn is_match(&self, value: &str) -> bool {
        match self {
            Self::Exact(own) => **own == *value,
            Self::Regex(pattern) => pattern.is_match(value),
        }
    }
}

/// The first value of the parameter `name` (case kept), decoded. Later values of the same name are
/// not looked at, as the specification asks.
fn first_value<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name).then(|| decoded(value))
    })
}

/// Form decoding: `+` is a space, `%xx` a byte. A `%` that nothing valid follows stays as it is.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match (first, hex_pair(tail)) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(first),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

fn hex_pair(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

#[cfg(test)]
mod tests;
