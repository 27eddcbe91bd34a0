//! Finding one of 1,000 rules: what a request pays before anything else is decided.
//!
//! 400 exact paths, 500 prefixes of up to four elements, 50 matches of one prefix told apart by the
//! model's name, 50 regular expressions, spread over every host, a wildcard and one exact host.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use forebay_model::ObjectName;
use forebay_model::route::{
    Entry, HostPattern, MODEL_HEADER, Matcher, PathMatch, Pattern, RequestHead, RouteTable, Rule,
    Speaks, TextMatch, Timeouts,
};

struct Head {
    host: &'static str,
    path: &'static str,
    model: &'static str,
}

impl RequestHead for Head {
    fn host(&self) -> &str {
        self.host
    }
    fn path(&self) -> &str {
        self.path
    }
    fn query(&self) -> &str {
        ""
    }
    fn method(&self) -> &str {
        "POST"
    }
    fn header(&self, name: &str) -> Option<&str> {
        (name == MODEL_HEADER).then_some(self.model)
    }
}

fn entry(index: usize) -> (Option<HostPattern>, Entry) {
    let mut headers = Vec::new();
    let path = match index {
        0..400 => PathMatch::Exact(format!("/team{}/v1/chat/completions", index).into()),
        400..900 => {
            let deep = ["", "/v1", "/v1/chat", "/v1/chat/completions"][index % 4];
            PathMatch::Prefix(format!("/team{index}{deep}").into())
        }
        900..950 => {
            let model = TextMatch::Exact(format!("model-{index}").into());
            headers.push((MODEL_HEADER.into(), model));
            PathMatch::Prefix("/v1/chat".into())
        }
        _ => {
            let pattern = Pattern::new(&format!("/re{index}/[a-z]+"));
            PathMatch::Regex(pattern.expect("a plain pattern"))
        }
    };
    let host = match index % 3 {
        0 => None,
        1 => Some(HostPattern::parse("*.example.com")),
        _ => Some(HostPattern::parse("chat.example.com")),
    };
    let rule = Rule {
        route: ObjectName::new("default", &format!("r{index}")),
        speaks: Speaks::Http,
        index: 0,
        filters: Vec::new(),
        targets: Vec::new(),
        timeouts: Timeouts::default(),
        retry: None,
    };
    let matcher = Matcher {
        path,
        method: None,
        headers,
        query: Vec::new(),
    };
    let entry = Entry {
        matcher,
        rule: Arc::new(rule),
    };
    (host, entry)
}

fn find(c: &mut Criterion) {
    let entries: Vec<_> = (0..1_000).map(entry).collect();
    let table = RouteTable::build(entries.clone());
    let mut group = c.benchmark_group("route_of_1000");
    let cases = [
        (
            "exact",
            "chat.example.com",
            "/team2/v1/chat/completions",
            true,
        ),
        (
            "prefix",
            "chat.example.com",
            "/team401/v1/chat/completions/x",
            true,
        ),
        (
            "model_header",
            "chat.example.com",
            "/v1/chat/completions",
            true,
        ),
        ("regex_fallback", "other.org", "/re999/abc", true),
        (
            "no_match",
            "chat.example.com",
            "/nothing/of/the/kind/at/all",
            false,
        ),
    ];
    for (name, host, path, found) in cases {
        let head = Head {
            host,
            path,
            model: "model-947",
        };
        assert_eq!(table.find(&head).is_some(), found, "{name}");
        group.bench_function(name, |b| b.iter(|| table.find(black_box(&head)).is_some()));
    }
    group.bench_function("build", |b| b.iter(|| RouteTable::build(entries.clone())));
    group.finish();
}

criterion_group!(benches, find);
criterion_main!(benches);
