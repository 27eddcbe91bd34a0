//! What trails behind the body of a request: where it goes on, and what of it does not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod picker;

use std::convert::Infallible;
use std::net::SocketAddr;

use common::*;
use forebay_gateway::settings::Settings;
use forebay_model::pool::{FailureMode, RewriteRule, RewriteTarget};
use forebay_model::route::{Filter, Mirror, Target};
use forebay_model::{AppProtocol, Pool};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use picker::bed::{BODY, Bed, CHAT, external, picked_pool};

/// A body in two chunks with trailers behind it, of which `x-sum` alone is fit to be passed on.
fn trailed(path: &str, body: &str, fields: &str) -> String {
    let (one, two) = body.split_at(body.len() / 2);
    format!(
        "POST {path} HTTP/1.1\r\nhost: h.test\r\ntransfer-encoding: chunked\r\n\
         content-type: application/json\r\n{fields}\r\n{}{}0\r\nx-sum: 1\r\nconnection: close\r\n\
         content-length: 3\r\ntransfer-encoding: gzip\r\nhost: elsewhere\r\ntrailer: x\r\nx-sum: 2\r\n\r\n",
        chunk(one),
        chunk(two)
    )
}

/// The trailers, and that the body in front of them is framed so that there is a place for them.
fn arrived(seen: &Message, body: &str) -> String {
    assert!(seen.complete && seen.text() == body, "{seen:?}");
    assert_eq!(seen.field("transfer-encoding").as_deref(), Some("chunked"));
    assert_eq!(seen.field("content-length"), None);
    let trailers = seen.trailers.iter();
    let fields: Vec<String> = trailers.map(|(n, v)| format!("{n}={v}")).collect();
    fields.join(" ")
}

#[test]
fn trailers_follow_bodies_that_are_read_and_those_that_stream() {
    for target in [service, pool] {
        for path in [CHAT, "/other"] {
            for body in [BODY.to_owned(), long_body()] {
                let upstream = &fleet(1, TINY, |side, _, _| {
                    side.send(ok("{}"));
                    true
                })[0];
                let world = World::to(target(&[upstream.address]));
                assert_eq!(world.ask(&trailed(path, &body, "")).status(), 200);
                assert_eq!(arrived(&upstream.last(), &body), "x-sum=1 x-sum=2");
            }
        }
    }
}

/// More than goes out in one piece with its head.
fn long_body() -> String {
    let text = "y".repeat(100_000);
    format!(r#"{{"model":"tiny","prompt":"{text}"}}"#)
}

#[test]
fn trailers_without_a_body_in_front_arrive() {
    let upstream = Upstream::saying("{}");
    let world = World::to(pool(&[upstream.address]));
    let request = "POST /v1/files HTTP/1.1\r\nhost: h.test\r\ncontent-type: text/plain\r\n\
                   transfer-encoding: chunked\r\n\r\n0\r\nx-sum: 0\r\n\r\n";
    assert_eq!(world.ask(request).status(), 200);
    assert_eq!(arrived(&upstream.last(), ""), "x-sum=0");
}

#[test]
fn another_endpoint_gets_the_trailers_too() {
    let servers = fleet(2, TINY, |side, _, nth| {
        if nth == 0 {
            side.send("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
        } else {
            side.send(ok("{}"));
        }
        true
    });
    let world = World::to(pool(&addresses(&servers)));
    assert_eq!(world.ask(&trailed(CHAT, BODY, "")).status(), 200);
    for server in &servers {
        assert_eq!(arrived(&server.last(), BODY), "x-sum=1 x-sum=2");
    }
}

#[test]
fn a_rewritten_body_keeps_its_trailers() {
    let servers = fleet(1, TINY, |side, _, _| {
        side.send(ok("{}"));
        true
    });
    let rewrite = RewriteRule {
        models: vec!["alias".into()],
        targets: vec![RewriteTarget {
            weight: 1,
            model: "tiny".into(),
        }],
    };
    let world = World::to(to_pool(Pool {
        rewrites: vec![rewrite],
        ..pool_of("pool", &addresses(&servers))
    }));
    let asked = BODY.replace("tiny", "alias");
    assert_eq!(world.ask(&trailed(CHAT, &asked, "")).status(), 200);
    assert_eq!(arrived(&servers[0].last(), BODY), "x-sum=1 x-sum=2");
}

#[test]
fn a_mirrored_copy_has_the_trailers() {
    let (upstream, copy) = (Upstream::saying("{}"), Upstream::saying("{}"));
    let mirror = Mirror {
        target: service(&[copy.address]),
        numerator: 1,
        denominator: 1,
    };
    let rule = filtered(vec![Filter::Mirror(mirror)], service(&[upstream.address]));
    let world = World::with(settings(), vec![entry("/", rule)]);
    assert_eq!(world.ask(&trailed("/x", "text", "")).status(), 200);
    for server in [&upstream, &copy] {
        assert_eq!(arrived(&server.last(), "text"), "x-sum=1 x-sum=2");
    }
}

#[test]
fn a_picker_outside_sees_the_whole_body_and_the_trailers_pass_it_by() {
    for (todo, body) in [
        ("", BODY.to_owned()),
        ("confirm", BODY.to_owned()),
        ("change the body", BODY.replace("tiny", "changed-model")),
        ("replace", "{}".to_owned()),
    ] {
        let bed = Bed::close();
        let pick = bed.servers[0].address;
        let fields = format!("x-pick: {pick}\r\nx-do: {todo}\r\n");
        assert_eq!(bed.world.ask(&trailed(CHAT, BODY, &fields)).status(), 200);
        assert_eq!(arrived(&bed.servers[0].last(), &body), "x-sum=1 x-sum=2");
        assert_eq!(bed.picker.last().body, BODY.as_bytes(), "{todo}");
    }
}

#[test]
fn an_endpoint_of_another_pickers_list_gets_the_trailers_too() {
    let servers = fleet(2, TINY, |side, _, nth| {
        if nth > 0 {
            side.send(ok("{}"));
        }
        nth > 0
    });
    let picker = picker::Picker::plain();
    let list = external(&[picker.address], FailureMode::FailClose);
    let world = World::to(picked_pool(&addresses(&servers), list));
    let pick = format!("{},{}", servers[0].address, servers[1].address);
    let request = trailed(CHAT, BODY, &format!("x-pick: {pick}\r\n"));
    assert_eq!(world.ask(&request).status(), 200);
    assert_eq!(arrived(&servers[1].last(), BODY), "x-sum=1 x-sum=2");
}

#[test]
fn more_trailers_than_a_request_may_have_are_refused() {
    let upstream = Upstream::saying("{}");
    let many: String = (0..65).map(|n| format!("x-{n}: 1\r\n")).collect();
    let long = format!("x-long: {}\r\n", "y".repeat(20_000));
    for trailers in [many, long] {
        let h2c = h2c_endpoint();
        for (target, status, code) in [
            (pool(&[upstream.address]), 431, "trailers_too_large"),
            (service(&[upstream.address]), 400, "client_body"),
            (service_over(AppProtocol::H2c, &[h2c]), 400, "client_body"),
        ] {
            let settings = Settings {
                headers_max: 200,
                ..settings()
            };
            let world = World::with(settings, vec![entry("/", rule(vec![target]))]);
            let body = chunk(BODY);
            let got = world.ask(&format!(
                "POST {CHAT} HTTP/1.1\r\nhost: h.test\r\ntransfer-encoding: chunked\r\n\r\n\
                 {body}0\r\n{trailers}\r\n"
            ));
            assert_eq!(got.status(), status, "{got:?}");
            let error = &got.json()["error"];
            assert_eq!(error["code"], code);
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("at most 64 trailers"), "{message}");
        }
    }
    assert!(upstream.seen().iter().all(|request| !request.complete));
}

// === HTTP/2 ===

/// An h2c endpoint that answers with the trailer `x-sum` of each request, or "none".
fn h2c_endpoint() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let io = hyper_util::rt::TokioIo::new(stream);
                let service = hyper::service::service_fn(sum_of);
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(Spawner).serve_connection(io, service),
                );
            }
        });
    });
    address
}

/// What it answers with trailers of its own, announced behind a body of known length, as Go's server does.
const ANNOUNCED: &str = "/v1/files/announced";

async fn sum_of(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    if request.uri().path() == ANNOUNCED {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-back", HeaderValue::from_static("3"));
        let frames = [
            Frame::data(bytes::Bytes::from_static(b"body")),
            Frame::trailers(trailers),
        ];
        let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok)));
        let mut response = Response::new(body.boxed_unsync());
        let headers = response.headers_mut();
        headers.insert("content-length", HeaderValue::from_static("4"));
        headers.insert("trailer", HeaderValue::from_static("x-back"));
        return Ok(response);
    }
    let Ok(whole) = request.into_body().collect().await else {
        // Broken off by its client.
        return Ok(Response::new(full("")));
    };
    let sum = whole.trailers().and_then(|t| t.get("x-sum")).cloned();
    let sum = sum.unwrap_or(HeaderValue::from_static("none"));
    let text = format!("{{\"sum\":{:?}}}", sum.to_str().unwrap());
    Ok(Response::new(full(text)))
}

/// What a client of HTTP/2 gets for a body of known length with a trailer behind it.
fn asked_over_h2(world: &World, path: &str) -> String {
    run(async {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", world.port)).await;
        let mut client = http2(stream.unwrap()).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        let frames = [
            Frame::data(bytes::Bytes::from_static(BODY.as_bytes())),
            Frame::trailers(trailers),
        ];
        let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok)));
        let request = Request::builder()
            .method("POST")
            .uri(format!("http://h.test{path}"))
            .header("content-length", BODY.len())
            .body(body.boxed_unsync())
            .unwrap();
        client.ready().await.unwrap();
        let response = client.send_request(request).await.unwrap();
        let whole = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(whole.to_vec()).unwrap()
    })
}

#[test]
fn trailers_pass_between_the_versions_of_http() {
    let h2c = |protocol| -> [Target; 2] {
        let address = h2c_endpoint();
        let pool = Pool {
            protocol,
            ..pool_of("pool", &[address])
        };
        [to_pool(pool), service_over(protocol, &[address])]
    };
    for target in h2c(AppProtocol::H2c) {
        let world = World::to(target);
        assert_eq!(asked_over_h2(&world, "/v1/files"), r#"{"sum":"7"}"#);
        let got = world.ask(&trailed("/v1/files", BODY, ""));
        assert_eq!(got.text(), r#"{"sum":"1"}"#);

        let got = world.ask(&format!(
            "GET {ANNOUNCED} HTTP/1.1\r\nhost: h.test\r\nte: trailers\r\n\r\n"
        ));
        assert_eq!(arrived(&got, "body"), "x-back=3");
    }
    let upstream = Upstream::saying("{}");
    let world = World::to(pool(&[upstream.address]));
    assert_eq!(asked_over_h2(&world, "/v1/files"), "{}");
    assert_eq!(arrived(&upstream.last(), BODY), "x-sum=7");
}
