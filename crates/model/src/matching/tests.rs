//! Matching against written cases, and against a reference that tries every rule and sorts.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::ObjectName;
use crate::route::{Pattern, Rule, Speaks, Timeouts};

/// `METHOD host/path?query name=value...`, the way a test writes a request.
struct Head {
    method: String,
    host: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &str) -> Self {
        let mut words = text.split_whitespace();
        let method = words.next().unwrap().to_owned();
        let target = words.next().unwrap();
        let (host, path) = target.split_at(target.find('/').unwrap());
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let headers = words
            .map(|word| word.split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Self {
            method,
            host: host.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers,
        }
    }
}

impl RequestHead for Head {
    fn host(&self) -> &str {
        &self.host
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn query(&self) -> &str {
        &self.query
    }
    fn method(&self) -> &str {
        &self.method
    }
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// `host path [METHOD] [name:value] [?name:value]`: `*` is every host; a path is `=/exact`,
/// `/prefix` or `~regex`; a value that starts with `~` is a regular expression.
fn entry(index: usize, text: &str) -> (Option<HostPattern>, Entry) {
    let mut words = text.split_whitespace();
    let host = words.next().unwrap();
    let path = words.next().unwrap();
    let mut matcher = Matcher {
        path: match (path.strip_prefix('='), path.strip_prefix('~')) {
            (Some(exact), _) => PathMatch::Exact(exact.into()),
            (_, Some(regex)) => PathMatch::Regex(Pattern::new(regex).unwrap()),
            _ => PathMatch::Prefix(path.strip_suffix('/').unwrap_or(path).into()),
        },
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
    };
    for word in words {
        match word.split_once(':') {
            None => matcher.method = Some(word.into()),
            Some((name, value)) => {
                let value = match value.strip_prefix('~') {
                    Some(regex) => TextMatch::Regex(Pattern::new(regex).unwrap()),
                    None => TextMatch::Exact(value.into()),
                };
                match name.strip_prefix('?') {
                    Some(name) => matcher.query.push((name.into(), value)),
                    None => matcher.headers.push((name.into(), value)),
                }
            }
        }
    }
    let rule = Arc::new(Rule {
        route: ObjectName::new("default", "r"),
        speaks: Speaks::Http,
        index,
        filters: Vec::new(),
        targets: Vec::new(),
        timeouts: Timeouts::default(),
        retry: None,
    });
    let host = (host != "*").then(|| HostPattern::parse(host));
    (host, Entry { matcher, rule })
}

fn table(rules: &[&str]) -> RouteTable {
    RouteTable::build(rules.iter().enumerate().map(|(i, r)| entry(i, r)).collect())
}

/// Sends `request` to the rules and expects the one that is written as `want`.
fn check(rules: &[&str], request: &str, want: &str) {
    let table = table(rules);
    let found = table.find(&Head::parse(request));
    let found = found.map_or("none", |entry| rules[entry.rule.index]);
    assert_eq!(found, want, "{request}");
}

#[test]
fn the_most_specific_host_wins_and_less_specific_ones_are_the_fallback() {
    let rules = ["* /", "*.b.com /", "*.a.b.com /a", "x.a.b.com =/x"];
    check(&rules, "GET x.a.b.com/x", "x.a.b.com =/x");
    check(&rules, "GET x.a.b.com/a/1", "*.a.b.com /a");
    check(&rules, "GET x.a.b.com/other", "*.b.com /");
    check(&rules, "GET a.b.com/other", "*.b.com /");
    check(&rules, "GET b.com/", "* /");
    check(&rules, "GET .b.com/", "* /");
    check(&rules, "GET /", "* /");
}

#[test]
fn exact_beats_the_longest_prefix_which_beats_a_regex_which_beats_every_path() {
    let rules = ["* /", "* ~/v1/.*", "* /v1", "* /v1/chat", "* =/v1/chat"];
    check(&rules, "GET h/v1/chat", "* =/v1/chat");
    check(&rules, "GET h/v1/chat/x", "* /v1/chat");
    check(&rules, "GET h/v1/chatter", "* /v1");
    check(&rules, "GET h/v1", "* /v1");
    check(&rules, "GET h/v10", "* /");
    check(&["* /", "* ~/v1/.*"], "GET h/v1/a", "* ~/v1/.*");
    check(&["* ~/v1"], "GET h/v1/a", "none");
}

#[test]
fn prefixes_match_whole_elements_and_ignore_their_trailing_slash() {
    let rules = ["* /foo/"];
    check(&rules, "GET h/foo", "* /foo/");
    check(&rules, "GET h/foo/", "* /foo/");
    check(&rules, "GET h/foo/bar", "* /foo/");
    check(&rules, "GET h/foobar", "none");
    check(&rules, "GET h/Foo", "none");
}

#[test]
fn method_then_headers_then_query_then_order_break_ties() {
    let rules = [
        "* / ?q:1",
        "* / a:1 b:2",
        "* / a:1",
        "* / GET",
        "* / ?q:1 ?r:1",
        "* / a:~[0-9]+",
    ];
    check(&rules, "GET h/ a=1 b=2", "* / GET");
    check(&rules, "PUT h/ a=1 b=2", "* / a:1 b:2");
    check(&rules, "PUT h/?q=1 a=1", "* / a:1");
    check(&rules, "PUT h/?q=1 a=7", "* / a:~[0-9]+");
    check(&rules, "PUT h/?q=1&r=1", "* / ?q:1 ?r:1");
    check(&rules, "PUT h/?q=1", "* / ?q:1");
    check(&rules, "get h/", "none");
}

#[test]
fn query_values_are_decoded_and_the_first_of_a_name_counts() {
    let rules = ["* / ?a:x~y"];
    check(&rules, "GET h/?a=x%7ey", rules[0]);
    check(&rules, "GET h/?b=1&%61=x~y", rules[0]);
    check(&rules, "GET h/?a=no&a=x~y", "none");
    check(&rules, "GET h/?A=x~y", "none");
    check(&["* / ?a:%zz"], "GET h/?a=%zz", "* / ?a:%zz");
}

#[test]
fn a_table_knows_whether_it_needs_the_model_name() {
    assert!(table(&["* /", "a.com / x-gateway-model-name:m"]).reads_model);
    assert!(!table(&["* / model:m"]).reads_model);
}

/// The rule that a list search finds: every rule that matches, sorted by the specification's words.
fn reference<'a>(rules: &'a [(Option<HostPattern>, Entry)], head: &Head) -> Option<&'a Entry> {
    let covers = |host: &Option<HostPattern>| host.as_ref().is_none_or(|h| h.covers(&head.host));
    let host_rank = |host: &Option<HostPattern>| match host {
        Some(HostPattern::Exact(_)) => usize::MAX,
        Some(HostPattern::Suffix(suffix)) => 1 + suffix.len(),
        None => 0,
    };
    let path_rank = |path: &PathMatch| match path {
        PathMatch::Exact(_) => (3, 0),
        PathMatch::Prefix(p) if !p.is_empty() => (2, p.len()),
        PathMatch::Regex(_) => (1, 0),
        PathMatch::Prefix(_) => (0, 0),
    };
    rules
        .iter()
        .filter(|(host, entry)| covers(host) && entry.matcher.matches(head))
        .max_by_key(|(host, Entry { matcher: m, rule })| {
            let counts = (m.method.is_some(), m.headers.len(), m.query.len());
            (
                host_rank(host),
                path_rank(&m.path),
                counts,
                Reverse(rule.index),
            )
        })
        .map(|(_, entry)| entry)
}

fn arb_rule() -> impl Strategy<Value = String> {
    let host = prop::sample::select(vec!["*", "*.b.c", "*.a.b.c", "a.b.c", "x.a.b.c", "*.c"]);
    let path = "[=~]?(/[ab]{1,2}){0,3}/?".prop_map(|p| match p.as_str() {
        "" => "/".to_owned(),
        "=" | "~" => format!("{p}/"),
        _ => p,
    });
    let rest = prop::collection::vec(
        prop::sample::select(vec!["GET", "PUT", "h:1", "i:1", "?q:1", "?r:1"]),
        0..3,
    );
    (host, path, rest).prop_map(|(h, p, r)| format!("{h} {p} {}", r.join(" ")))
}

fn arb_request() -> impl Strategy<Value = String> {
    let method = prop::sample::select(vec!["GET", "PUT"]);
    let host = prop::sample::select(vec!["", "c", "b.c", "a.b.c", "x.a.b.c", "y.x.a.b.c", "d"]);
    let rest = prop::sample::select(vec!["", "?q=1", "?q=1&r=1", " h=1", "?r=1 h=1 i=1", " h=2"]);
    (method, host, "(/[ab]{1,2}){0,4}/?", rest).prop_map(|(m, h, p, r)| {
        let path = if p.is_empty() { "/" } else { &p };
        format!("{m} {h}{path}{r}")
    })
}

proptest! {
    #[test]
    fn the_search_agrees_with_trying_every_rule(
        rules in prop::collection::vec(arb_rule(), 0..24),
        requests in prop::collection::vec(arb_request(), 1..8),
    ) {
        let entries: Vec<_> = rules.iter().enumerate().map(|(i, r)| entry(i, r)).collect();
        let table = RouteTable::build(entries.clone());
        for request in &requests {
            let head = Head::parse(request);
            let found = table.find(&head).map(|e| e.rule.index);
            let wanted = reference(&entries, &head).map(|e| e.rule.index);
            prop_assert_eq!(found, wanted, "{} in {:?}", request, rules);
        }
    }
}
