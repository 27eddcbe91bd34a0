//! What `HTTPRoute` asks for: filters, weights, time limits, retries, mirrors, broken backends.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use forebay_model::AppProtocol;
use forebay_model::route::{
    Cors, Filter, HeaderEdits, Mirror, PathEdit, Redirect, Retry, Rule, Target, Timeouts,
    UrlRewrite,
};

/// A world in which `/app` has these filters.
fn with_filters(filters: Vec<Filter>, upstream: &Upstream) -> World {
    let rule = filtered(filters, service(&[upstream.address]));
    World::with(settings(), vec![entry("/app", rule)])
}

fn pairs(list: &[(&str, &str)]) -> Vec<(std::sync::Arc<str>, std::sync::Arc<str>)> {
    list.iter()
        .map(|(n, v)| ((*n).into(), (*v).into()))
        .collect()
}

#[test]
fn header_modifiers_set_add_and_remove() {
    let edits = HeaderEdits {
        set: pairs(&[("x-set", "new"), ("host", "set.test")]),
        add: pairs(&[("x-add", "two")]),
        remove: vec!["x-remove".into()],
    };
    let upstream = Upstream::answering(
        "HTTP/1.1 200 OK\r\nx-set: old\r\nx-add: one\r\nx-remove: 1\r\ncontent-length: 0\r\n\r\n",
    );
    let filters = vec![
        Filter::RequestHeaders(edits.clone()),
        Filter::ResponseHeaders(edits),
    ];
    let world = with_filters(filters, &upstream);
    let got = world.ask(&get_with(
        "/app",
        "x-set: old\r\nx-add: one\r\nx-remove: 1\r\n",
    ));
    for side in [&got, &upstream.last()] {
        assert_eq!(side.field("x-set").as_deref(), Some("new"));
        assert_eq!(side.field("x-add").as_deref(), Some("one|two"));
        assert_eq!(side.field("x-remove"), None);
    }
    assert_eq!(upstream.last().field("host").as_deref(), Some("set.test"));
}

#[test]
fn rewrites_change_path_and_host() {
    let check = |rewrite: UrlRewrite, path: &str, start: &str, host: &str| {
        let upstream = Upstream::saying("x");
        with_filters(vec![Filter::Rewrite(rewrite)], &upstream).ask(&get(path));
        let seen = upstream.last();
        assert_eq!(seen.start, format!("GET {start} HTTP/1.1"));
        assert_eq!(seen.field("host").as_deref(), Some(host));
        let original = (host != "h.test").then_some("h.test");
        assert_eq!(seen.field("x-forwarded-host").as_deref(), original);
    };
    let to = |hostname: Option<&str>, path| UrlRewrite {
        hostname: hostname.map(Into::into),
        path,
    };
    let prefix = |p: &str| Some(PathEdit::Prefix(p.into()));
    let full = |p: &str| Some(PathEdit::Full(p.into()));
    check(
        to(Some("in.test"), prefix("/v1")),
        "/app/a?q=1",
        "/v1/a?q=1",
        "in.test",
    );
    check(to(None, prefix("/")), "/app/a", "/a", "h.test");
    check(to(None, prefix("/")), "/app", "/", "h.test");
    check(to(None, full("/one")), "/app/a/b?q=1", "/one?q=1", "h.test");
    // What cannot stand in a request line must not end it.
    let smuggled = "/x HTTP/1.1\r\nhost: y\r\n\r\nGET /z";
    let escaped = "/x%20HTTP/1.1%0D%0Ahost:%20y%0D%0A%0D%0AGET%20/z";
    check(to(None, full(smuggled)), "/app", escaped, "h.test");
    check(to(None, full("")), "/app", "/", "h.test");
}

#[test]
fn redirects_are_answered_here() {
    let to = Redirect {
        scheme: Some("https".into()),
        hostname: None,
        path: Some(PathEdit::Prefix("/new".into())),
        port: None,
        status: 308,
    };
    let upstream = Upstream::saying("x");
    let world = with_filters(vec![Filter::Redirect(to)], &upstream);
    let got = world.ask(&get("/app/a?q=1"));
    assert_eq!(got.status(), 308);
    assert_eq!(
        got.field("location").as_deref(),
        Some("https://h.test/new/a?q=1")
    );
    let got = world.ask("GET /app HTTP/1.1\r\nhost: [2001:db8::1]:8080\r\n\r\n");
    assert_eq!(
        got.field("location").as_deref(),
        Some("https://[2001:db8::1]/new")
    );
    assert_eq!(upstream.seen(), []);
}

#[test]
fn a_port_goes_by_the_number_that_clients_know() {
    let upstream = Upstream::saying("x");
    let world = World::empty(settings());
    let elsewhere = Redirect {
        scheme: None,
        hostname: Some("new.test".into()),
        path: None,
        port: None,
        status: 302,
    };
    let check = |number: u16, location: &str| {
        let moved = filtered(vec![Filter::Redirect(elsewhere.clone())], service(&[]));
        let rest = rule(vec![service(&[upstream.address])]);
        world.publish_as(number, vec![entry("/old", moved), entry("/", rest)]);
        let got = world.ask(&get("/old"));
        assert_eq!(got.field("location").as_deref(), Some(location));
        world.ask(&get_with("/", "x-forwarded-port: 1\r\n"));
        let port = upstream.last().field("x-forwarded-port");
        assert_eq!(port, Some(number.to_string()));
    };
    check(80, "http://new.test/old");
    check(8080, "http://new.test:8080/old");
}

#[test]
fn cors_answers_preflights_and_marks_answers() {
    let cors = Cors {
        allow_origins: vec!["https://a.test".into()],
        allow_methods: vec!["GET".into(), "POST".into()],
        allow_headers: vec!["x-token".into()],
        expose_headers: vec!["x-open".into()],
        max_age_s: 60,
        allow_credentials: true,
    };
    let upstream = Upstream::answering(
        "HTTP/1.1 200 OK\r\naccess-control-allow-origin: https://evil.test\r\ncontent-length: 0\r\n\r\n",
    );
    let world = with_filters(vec![Filter::Cors(cors)], &upstream);
    let preflight = |origin: &str| {
        world.ask(&format!(
            "OPTIONS /app HTTP/1.1\r\nhost: h\r\norigin: {origin}\r\n\
             access-control-request-method: POST\r\naccess-control-request-headers: x-token\r\n\r\n"
        ))
    };
    let got = preflight("https://a.test");
    assert_eq!(got.status(), 204);
    for (name, value) in [
        ("access-control-allow-origin", "https://a.test"),
        ("access-control-allow-methods", "GET, POST"),
        ("access-control-allow-headers", "x-token"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "60"),
        ("access-control-expose-headers", "x-open"),
    ] {
        assert_eq!(got.field(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(
        preflight("https://b.test").field("access-control-allow-origin"),
        None
    );
    assert_eq!(upstream.seen(), [], "preflights are answered here");
    let got = world.ask(&get_with("/app", "origin: https://a.test\r\n"));
    assert_eq!(
        got.field("access-control-allow-origin").as_deref(),
        Some("https://a.test")
    );
    assert_eq!(
        got.field("access-control-expose-headers").as_deref(),
        Some("x-open")
    );
}

#[test]
fn a_star_of_cors_does_not_stand_for_requests_with_credentials() {
    let check = |allow_credentials: bool, asks: &str, expected: [Option<&str>; 5]| {
        let star = || vec!["*".into()];
        let cors = Cors {
            allow_origins: star(),
            allow_methods: star(),
            allow_headers: star(),
            expose_headers: star(),
            max_age_s: 5,
            allow_credentials,
        };
        let upstream = Upstream::saying("x");
        // A filter of the backend alone answers preflights, too.
        let mut rule = rule(vec![service(&[upstream.address])]);
        rule.targets[0].filters = vec![Filter::Cors(cors)];
        let world = World::with(settings(), vec![entry("/", rule)]);
        let got = world.ask(&format!(
            "OPTIONS / HTTP/1.1\r\nhost: h\r\norigin: https://a.test:8443\r\n\
             access-control-request-method: PUT\r\n{asks}\r\n"
        ));
        let names = ["origin", "methods", "headers", "credentials"];
        let names = names.map(|name| format!("access-control-allow-{name}"));
        let exposed = "access-control-expose-headers".to_owned();
        let told: Vec<_> = names
            .iter()
            .chain([&exposed])
            .map(|n| got.field(n))
            .collect();
        assert_eq!(
            told,
            expected.map(|v| v.map(str::to_owned)),
            "{allow_credentials} {asks:?}"
        );
        assert_eq!(upstream.seen(), []);
    };
    let star = Some("*");
    let origin = Some("https://a.test:8443");
    let asks = "access-control-request-headers: x-a, x-b\r\n";
    check(false, asks, [star, star, star, None, star]);
    check(
        true,
        asks,
        [origin, Some("PUT"), Some("x-a, x-b"), Some("true"), None],
    );
    check(true, "", [origin, Some("PUT"), None, Some("true"), None]);
}

#[test]
fn a_mirror_gets_a_copy_and_nobody_waits_for_it() {
    let upstream = Upstream::saying("real");
    // Never answers.
    let shadow = Upstream::start(|side| {
        side.request();
        side.peer.rest();
    });
    let mirror = Mirror {
        target: service(&[shadow.address]),
        numerator: 1,
        denominator: 1,
    };
    let world = with_filters(vec![Filter::Mirror(mirror)], &upstream);
    let got = world.ask(&post("/app/x", "the body"));
    assert_eq!(got.text(), "real");
    for seen in [upstream.last(), shadow.last()] {
        assert_eq!(seen.start, "POST /app/x HTTP/1.1");
        assert_eq!(seen.text(), "the body");
    }
}

#[test]
fn connections_to_mirrors_are_kept_for_the_next_copy() {
    let (upstream, copy, gone) = (
        Upstream::saying("x"),
        Upstream::saying("ignored"),
        Upstream::saying("x"),
    );
    let to = |endpoints: &[&Upstream]| {
        let mirror = Mirror {
            target: service(&[copy.address]),
            numerator: 1,
            denominator: 1,
        };
        let endpoints: Vec<_> = endpoints.iter().map(|upstream| upstream.address).collect();
        let rule = filtered(vec![Filter::Mirror(mirror)], service(&endpoints));
        vec![entry("/", rule)]
    };
    let settings = forebay_gateway::settings::Settings {
        idle_timeout: std::time::Duration::from_secs(600),
        ..settings()
    };
    let world = World::with(settings, to(&[&upstream, &gone]));
    let idle = |connections| {
        let what = format!("{connections} connections wait");
        eventually(&what, || world.counts("upstream_idle", connections));
    };
    for connections in [2, 3] {
        assert_eq!(world.ask(&get("/")).status(), 200);
        idle(connections);
    }
    // What goes with an endpoint's connection is all that the next sweep finds without a use.
    forget();
    world.publish(to(&[&upstream]));
    idle(2);
    assert_eq!(world.ask(&get("/")).status(), 200);
    eventually("the copy came", || copy.seen().len() == 3);
    assert_eq!(copy.connections(), 1);
}

#[test]
fn a_request_that_is_not_copied_streams_as_without_a_mirror() {
    // Answers as soon as it has the head and the first piece.
    let upstream = Upstream::start(|side| {
        side.peer.until("first").unwrap();
        side.send(ok("real"));
        side.peer.rest();
    });
    let mirror = Mirror {
        target: service(&[dead_address()]),
        numerator: 0,
        denominator: 100,
    };
    let world = with_filters(vec![Filter::Mirror(mirror)], &upstream);
    let mut client = world.client();
    client.send("POST /app HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\nfirst");
    assert_eq!(client.response("POST").text(), "real");
}

#[test]
fn a_mirror_that_is_down_harms_nobody() {
    let upstream = Upstream::saying("real");
    let mirror = Mirror {
        target: service(&[dead_address()]),
        numerator: 1,
        denominator: 1,
    };
    let world = with_filters(vec![Filter::Mirror(mirror)], &upstream);
    assert_eq!(world.ask(&get("/app")).text(), "real");
}

#[test]
fn targets_get_their_share() {
    let (one, two, none) = (
        Upstream::saying("1"),
        Upstream::saying("2"),
        Upstream::saying("0"),
    );
    let targets = vec![
        weighted(3, service(&[one.address])),
        weighted(0, service(&[none.address])),
        weighted(1, service(&[two.address])),
    ];
    let world = World::with(
        settings(),
        vec![entry(
            "/",
            Rule {
                targets,
                ..rule(vec![])
            },
        )],
    );
    let mut client = world.client();
    for _ in 0..400 {
        client.send(get("/"));
        client.response("GET");
    }
    let share = one.seen().len();
    assert!(
        (260..=340).contains(&share),
        "{share} of 400 instead of about 300"
    );
    assert_eq!(one.seen().len() + two.seen().len(), 400);
}

#[test]
fn a_target_that_does_not_hold_answers_its_share_and_no_more() {
    let upstream = Upstream::saying("x");
    let world = World::with(
        settings(),
        vec![
            entry("/broken", rule(vec![broken(500)])),
            entry("/none", rule(vec![])),
            entry("/empty", rule(vec![service(&[])])),
            entry("/fine", rule(vec![service(&[upstream.address])])),
        ],
    );
    let check = |path: &str, status: u16, code: &str, says: &str| {
        let got = world.ask(&get(path));
        let error = &got.json()["error"];
        assert_eq!(
            (got.status(), error["code"].as_str()),
            (status, Some(code)),
            "{path}"
        );
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
        assert_eq!(
            got.field("content-type").as_deref(),
            Some("application/json")
        );
    };
    check("/broken", 500, "backend_invalid", "default/gone");
    check("/none", 500, "no_backend", "weight");
    check("/empty", 503, "no_ready_endpoint", "default/svc");
    check("/elsewhere", 404, "route_not_found", "h.test/elsewhere");
    let mut client = world.client();
    client.send("HEAD /elsewhere HTTP/1.1\r\nhost: h.test\r\n\r\n");
    let got = client.response("HEAD");
    assert_eq!((got.status(), got.field("content-type")), (404, None));
    assert_eq!(world.ask(&get("/fine")).status(), 200);
}

/// Says nothing, or the head and a piece of the body.
fn stuck(after: &'static str) -> Upstream {
    Upstream::start(move |side| {
        side.request();
        side.send(after);
        side.peer.rest();
    })
}

const HALF: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";

#[test]
fn time_limits_of_a_route_hold() {
    let limit = Some(Duration::from_millis(100));
    let check = |timeouts: Timeouts, target: fn(&[std::net::SocketAddr]) -> Target| {
        let silent = stuck("");
        let limited = |to: Target| Rule {
            timeouts,
            ..rule(vec![to])
        };
        let world = World::with(
            settings(),
            vec![entry("/", limited(target(&[silent.address])))],
        );
        let began = Instant::now();
        let got = world.ask(&get("/"));
        assert_eq!(got.status(), 504, "{timeouts:?}");
        assert!(began.elapsed() < PATIENCE / 2);
        // In the middle of an answer all that is left is to cut it off.
        let half = stuck(HALF);
        let world = World::with(
            settings(),
            vec![entry("/", limited(target(&[half.address])))],
        );
        let got = world.ask(&get_with("/", "x-request-id: half\r\n"));
        assert_eq!(
            (got.complete, &*got.text()),
            (false, "half"),
            "{timeouts:?}"
        );
        assert_eq!(world.record("half").end, "timed-out");
    };
    for target in [service, pool] {
        let request = Timeouts {
            request: limit,
            backend: None,
        };
        let backend = Timeouts {
            request: None,
            backend: limit,
        };
        check(request, target);
        check(backend, target);
    }
}

fn retrying(codes: &[u16], attempts: u32, endpoints: &[std::net::SocketAddr]) -> World {
    let retry = Retry {
        codes: codes.to_vec(),
        attempts,
        backoff: Duration::from_millis(1),
    };
    let rule = Rule {
        retry: Some(retry),
        ..rule(vec![service(endpoints)])
    };
    World::with(settings(), vec![entry("/", rule)])
}

#[test]
fn a_service_is_retried_as_often_as_the_route_says() {
    let busy = || Upstream::answering("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy");
    let check = |codes: &[u16], attempts: u32, asked: usize| {
        let upstream = busy();
        let world = retrying(codes, attempts, &[upstream.address]);
        let got = world.ask(&post("/", "body"));
        assert_eq!((got.status(), &*got.text()), (503, "busy"));
        assert_eq!(upstream.seen().len(), asked, "{codes:?} {attempts}");
        assert!(upstream.seen().iter().all(|r| r.text() == "body"));
    };
    check(&[503], 2, 3);
    check(&[500], 2, 1);
    check(&[503], 0, 1);
}

#[test]
fn a_retry_that_succeeds_is_all_that_the_client_sees() {
    let upstream = Upstream::start(|side| {
        while side.request().is_some() {
            if side.connection == 0 {
                return side
                    .send("HTTP/1.1 502 Bad\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
            side.send(ok("fine"));
        }
    });
    let world = retrying(&[502], 1, &[upstream.address]);
    assert_eq!(world.ask(&post("/", "body")).text(), "fine");
}

#[test]
fn each_try_has_its_own_time_limit() {
    let upstream = Upstream::start(|side| {
        side.request();
        if side.connection > 0 {
            side.send(ok("fine"));
        }
        side.peer.rest();
    });
    let rule = Rule {
        retry: Some(Retry {
            codes: vec![],
            attempts: 3,
            backoff: Duration::ZERO,
        }),
        timeouts: Timeouts {
            request: None,
            backend: Some(Duration::from_millis(300)),
        },
        ..rule(vec![service(&[upstream.address])])
    };
    let world = World::with(settings(), vec![entry("/", rule)]);
    assert_eq!(world.ask(&post("/", "body")).text(), "fine");
}

#[test]
fn endpoints_that_refuse_connections_are_passed_over() {
    let upstream = Upstream::saying("x");
    let world = World::to(service(&[dead_address(), upstream.address, dead_address()]));
    for _ in 0..6 {
        assert_eq!(world.ask(&post("/", "body")).status(), 200);
    }
    let world = World::to(service(&[dead_address()]));
    let got = world.ask(&get("/"));
    assert_eq!(got.status(), 503);
    assert_eq!(got.json()["error"]["code"], "upstream_connect");
}

#[test]
fn endpoints_of_a_service_take_turns() {
    let three = [
        Upstream::saying(""),
        Upstream::saying(""),
        Upstream::saying(""),
    ];
    let addresses: Vec<_> = three.iter().map(|u| u.address).collect();
    let world = World::to(service_over(AppProtocol::Http, &addresses));
    for _ in 0..9 {
        world.ask(&get("/"));
    }
    assert!(three.iter().all(|u| u.seen().len() == 3));
}
