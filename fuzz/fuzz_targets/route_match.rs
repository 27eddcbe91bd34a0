//! Whatever the rules and the request, the search finds what trying every rule would find.
//!
//! The input is lines. `host path [METHOD] [name:value] [?name:value]` is a rule, where the host may
//! be `*` and the path is `=/exact`, `/prefix` or `~regex`; `> METHOD host path query [name:value]`
//! is a request.
#![no_main]

use std::cmp::Reverse;
use std::sync::Arc;

use forebay_model::ObjectName;
use forebay_model::route::{
    Entry, HostPattern, Matcher, PathMatch, Pattern, RequestHead, RouteTable, Rule, TextMatch,
    Timeouts,
};
use libfuzzer_sys::fuzz_target;

/// Rules of one input; patterns are slow to compile.
const RULES_MAX: usize = 64;

struct Head<'a> {
    method: &'a str,
    host: &'a str,
    path: &'a str,
    query: &'a str,
    headers: Vec<(&'a str, &'a str)>,
}

impl RequestHead for Head<'_> {
    fn host(&self) -> &str {
        self.host
    }
    fn path(&self) -> &str {
        self.path
    }
    fn query(&self) -> &str {
        self.query
    }
    fn method(&self) -> &str {
        self.method
    }
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(own, _)| *own == name);
        found.map(|(_, value)| *value)
    }
}

fn request(line: &str) -> Option<Head<'_>> {
    let mut words = line.split(' ');
    Some(Head {
        method: words.next()?,
        host: words.next()?,
        path: words.next()?,
        query: words.next().unwrap_or_default(),
        headers: words.filter_map(|word| word.split_once(':')).collect(),
    })
}

fn rule(index: usize, line: &str) -> Option<(Option<HostPattern>, Entry)> {
    let mut words = line.split(' ');
    let host = words.next()?;
    // A star stands alone or for whole labels; validation sees to that.
    if host != "*" && host.strip_prefix("*.").unwrap_or(host).contains('*') {
        return None;
    }
    let path = words.next()?;
    let mut matcher = Matcher {
        path: match (path.strip_prefix('='), path.strip_prefix('~')) {
            (Some(exact), _) => PathMatch::Exact(exact.into()),
            (_, Some(regex)) => PathMatch::Regex(Pattern::new(regex).ok()?),
            _ => PathMatch::Prefix(path.strip_suffix('/').unwrap_or(path).into()),
        },
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
    };
    for word in words {
        let Some((name, value)) = word.split_once(':') else {
            matcher.method = Some(word.into());
            continue;
        };
        let value = match value.strip_prefix('~') {
            Some(regex) => TextMatch::Regex(Pattern::new(regex).ok()?),
            None => TextMatch::Exact(value.into()),
        };
        match name.strip_prefix('?') {
            Some(name) => matcher.query.push((name.into(), value)),
            None => matcher.headers.push((name.into(), value)),
        }
    }
    let rule = Rule {
        route: ObjectName::new("default", "r"),
        index,
        filters: Vec::new(),
        targets: Vec::new(),
        timeouts: Timeouts::default(),
        retry: None,
    };
    let host = (host != "*").then(|| HostPattern::parse(host));
    let rule = Arc::new(rule);
    Some((host, Entry { matcher, rule }))
}

/// Every rule that matches, and the best of them by the words of the specification.
fn reference<'a>(rules: &'a [(Option<HostPattern>, Entry)], head: &Head<'_>) -> Option<&'a Entry> {
    let covers = |host: &Option<HostPattern>| host.as_ref().is_none_or(|h| h.covers(head.host));
    let host_rank = |host: &Option<HostPattern>| match host {
        Some(HostPattern::Exact(_)) => usize::MAX,
        Some(HostPattern::Suffix(suffix)) => 1 + suffix.len(),
        None => 0,
    };
    let path_rank = |path: &PathMatch| match path {
        PathMatch::Exact(_) => (3, 0),
        PathMatch::Prefix(prefix) if !prefix.is_empty() => (2, prefix.len()),
        PathMatch::Regex(_) => (1, 0),
        PathMatch::Prefix(_) => (0, 0),
    };
    let matching = rules
        .iter()
        .filter(|(host, e)| covers(host) && e.matcher.matches(head));
    let best = matching.max_by_key(|(host, Entry { matcher, rule })| {
        let counts = (
            matcher.method.is_some(),
            matcher.headers.len(),
            matcher.query.len(),
        );
        (
            host_rank(host),
            path_rank(&matcher.path),
            counts,
            Reverse(rule.index),
        )
    });
    best.map(|(_, entry)| entry)
}

fuzz_target!(|text: &str| {
    let (mut rules, mut requests) = (Vec::new(), Vec::new());
    for line in text.lines() {
        match line.strip_prefix("> ") {
            Some(line) => requests.extend(request(line)),
            None if rules.len() < RULES_MAX => rules.extend(rule(rules.len(), line)),
            None => {}
        }
    }
    // Paths of requests start with a slash; whoever reads requests sees to that.
    requests.retain(|head| head.path.starts_with('/'));
    let table = RouteTable::build(rules.clone());
    for head in &requests {
        let found = table.find(head).map(|entry| entry.rule.index);
        assert_eq!(found, reference(&rules, head).map(|entry| entry.rule.index));
    }
});
