//! gRPC through the gateway, with tonic on both sides: streams both ways, trailers, refusals.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::tls::*;
use common::*;
use forebay_gateway::settings::Settings;
use forebay_model::AppProtocol;
use forebay_model::route::{BackendTls, Rule, Speaks, Target, Timeouts};
use futures_util::{Stream, StreamExt, stream};
use http::uri::PathAndQuery;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tonic::client::Grpc as GrpcClient;
use tonic::server::{Grpc as GrpcServer, StreamingService};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

// === an endpoint ===

type Replies = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

/// Says each message again as it comes; `fail` ends the stream with a status of its own, `die` the
/// connection.
#[derive(Clone)]
struct Echo;

impl StreamingService<String> for Echo {
    type Response = String;
    type ResponseStream = Replies;
    type Future = std::future::Ready<Result<Response<Replies>, Status>>;

    fn call(&mut self, request: Request<Streaming<String>>) -> Self::Future {
        let replies = stream::unfold(Some(request.into_inner()), |messages| async {
            let mut messages = messages?;
            match messages.next().await? {
                Ok(said) if said == "fail" => {
                    let mut status = Status::not_found("no such thing: ä");
                    status
                        .metadata_mut()
                        .insert("x-why", "because".parse().unwrap());
                    Some((Err(status), None))
                }
                Ok(said) if said == "enough" => Some((Ok("good-bye".to_owned()), None)),
                Ok(said) => Some((Ok(format!("echo {said}")), Some(messages))),
                Err(status) => Some((Err(status), None)),
            }
        });
        std::future::ready(Ok(Response::new(Box::pin(replies))))
    }
}

/// An endpoint of gRPC, whose connections end once `die` was called on it.
struct Endpoints {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<http::HeaderMap>>>,
    die: tokio::sync::watch::Sender<bool>,
}

impl Endpoints {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let heads: Arc<Mutex<Vec<http::HeaderMap>>> = Arc::default();
        let (die, dying) = tokio::sync::watch::channel(false);
        let seen = Arc::clone(&heads);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (seen, mut dying) = (Arc::clone(&seen), dying.clone());
                    tokio::spawn(async move {
                        let serve = hyper::service::service_fn(move |request: http::Request<_>| {
                            seen.lock().unwrap().push(request.headers().clone());
                            answer(request)
                        });
                        let conn = hyper::server::conn::http2::Builder::new(Spawner)
                            .max_concurrent_streams(4)
                            .serve_connection(TokioIo::new(stream), serve);
                        tokio::select! {
                            _ended = conn => {}
                            _died = dying.wait_for(|die| *die) => {}
                        }
                    });
                }
            });
        });
        Self {
            address,
            heads,
            die,
        }
    }
}

async fn answer(
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    let mut grpc = GrpcServer::new(ProstCodec::<String, String>::default());
    Ok(grpc.streaming(Echo, request).await)
}

// === a client ===

async fn channel(port: u16) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    endpoint.connect().await.unwrap()
}

struct Call {
    say: mpsc::Sender<String>,
    replies: Streaming<String>,
}

/// Opens a stream, and waits for the head of the answer before it says anything.
async fn call(channel: &Channel, path: &'static str) -> Result<Call, Status> {
    let (say, said) = mpsc::channel(16);
    let messages = stream::unfold(said, |mut said| async {
        let message = said.recv().await?;
        Some((message, said))
    });
    let mut client = GrpcClient::new(channel.clone());
    client.ready().await.unwrap();
    let codec = ProstCodec::<String, String>::default();
    let path = PathAndQuery::from_static(path);
    let replies = client
        .streaming(Request::new(messages), path, codec)
        .await?;
    Ok(Call {
        say,
        replies: replies.into_inner(),
    })
}

impl Call {
    async fn says(&mut self, message: &str) -> Result<Option<String>, Status> {
        self.say.send(message.to_owned()).await.unwrap();
        self.replies.message().await
    }
}

fn speaking(speaks: Speaks, target: Target) -> Rule {
    Rule {
        speaks,
        ..rule(vec![target])
    }
}

fn grpc_pool(endpoints: &[SocketAddr]) -> Target {
    to_pool(forebay_model::Pool {
        protocol: AppProtocol::H2c,
        ..pool_of("grpc", endpoints)
    })
}

/// Waits until `holds`, while the client's side goes on.
async fn comes(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

// === streams ===

#[test]
fn streams_go_both_ways_with_their_trailers() {
    let ca = Authority::new();
    let server = Endpoints::start();
    let front = Front::new(&ca.issue(&["a.test"]), server.address);
    let tls = BackendTls {
        hostname: "a.test".into(),
        trust: ca.trust(),
        names: Vec::new(),
        client: None,
    };
    let plain = [server.address];
    let check = |what: &str, rule: Rule| {
        let world = World::with(settings(), vec![entry("/", rule)]);
        run(async {
            let channel = channel(world.port).await;
            let mut talk = call(&channel, "/t.Echo/Chat").await.unwrap();
            for said in ["one", "two", &"long".repeat(100_000)] {
                let heard = talk.says(said).await.unwrap().unwrap();
                assert_eq!(heard, format!("echo {said}"), "{what}");
            }
            // The endpoint may end before the client does.
            let heard = talk.says("enough").await.unwrap();
            assert_eq!(heard.as_deref(), Some("good-bye"), "{what}");
            assert_eq!(talk.replies.message().await.unwrap(), None, "{what}");
            // And the client before the endpoint.
            let mut talk = call(&channel, "/t.Echo/Chat").await.unwrap();
            talk.says("last").await.unwrap();
            drop(talk.say);
            assert_eq!(talk.replies.message().await.unwrap(), None, "{what}");
            let mut talk = call(&channel, "/t.Echo/Chat").await.unwrap();
            talk.says("one").await.unwrap();
            let status = talk.says("fail").await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{what}");
            assert_eq!(status.message(), "no such thing: ä", "{what}");
            assert_eq!(status.metadata().get("x-why").unwrap(), "because", "{what}");
        });
        let heads = server.heads.lock().unwrap();
        let head = heads.last().unwrap();
        assert_eq!(head["te"], "trailers", "{what}");
        assert_eq!(head["content-type"], "application/grpc", "{what}");
    };
    use Speaks::{Grpc, Http};
    check(
        "h2c Service",
        speaking(Http, service_over(AppProtocol::H2c, &plain)),
    );
    // A GRPCRoute's Service need not say what it speaks.
    check("Service", speaking(Grpc, service(&plain)));
    check("pool", speaking(Http, grpc_pool(&plain)));
    let over_tls = service_with(AppProtocol::Http, Some(tls), &[front.address]);
    check("TLS Service", speaking(Grpc, over_tls));
    assert_eq!(front.seen()[0].protocol.as_deref(), Some("h2"));
}

#[test]
fn streams_beyond_what_a_connection_allows_open_another() {
    // It takes four at once.
    let server = Endpoints::start();
    let world = World::to(service_over(AppProtocol::H2c, &[server.address]));
    run(async {
        let channel = channel(world.port).await;
        let mut talks = Vec::new();
        for _ in 0..12 {
            let mut talk = call(&channel, "/t.Echo/Chat").await.unwrap();
            talk.says("hello").await.unwrap();
            talks.push(talk);
        }
        for talk in &mut talks {
            assert_eq!(talk.says("again").await.unwrap().unwrap(), "echo again");
        }
        comes(|| world.counts("upstream_busy", 3)).await;
        drop(talks);
        comes(|| world.counts("upstream_busy", 1)).await;
    });
}

#[test]
fn a_client_that_leaves_ends_its_stream_at_the_endpoint() {
    let server = Endpoints::start();
    let world = World::to(service_over(AppProtocol::H2c, &[server.address]));
    run(async {
        let channel = channel(world.port).await;
        let mut talk = call(&channel, "/t.Echo/Chat").await.unwrap();
        talk.says("hello").await.unwrap();
        drop(talk);
        let gone = |record: &forebay_gateway::explain::Entry| record.end == "client-gone";
        comes(|| world.records().iter().any(gone)).await;
    });
}

// === endpoints that fail ===

/// An h2c endpoint that ends each call with this status: in the head, or behind one without.
fn ending_with(code: &'static str, in_head: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let calls = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&calls);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let count = Arc::clone(&count);
                let serve = hyper::service::service_fn(
                    move |request: http::Request<hyper::body::Incoming>| {
                        count.fetch_add(1, Ordering::SeqCst);
                        async move {
                            let _read = request.into_body().collect().await;
                            Ok::<_, Infallible>(ended(code, in_head))
                        }
                    },
                );
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(Spawner)
                        .serve_connection(TokioIo::new(stream), serve),
                );
            }
        });
    });
    (address, calls)
}

fn ended(code: &'static str, in_head: bool) -> http::Response<Body> {
    let mut status = http::HeaderMap::new();
    status.insert("grpc-status", http::HeaderValue::from_static(code));
    let mut response = if in_head {
        let mut response = http::Response::new(full(""));
        response.headers_mut().extend(status);
        response
    } else {
        let frames = [Ok(hyper::body::Frame::trailers(status))];
        let body = http_body_util::StreamBody::new(stream::iter(frames));
        http::Response::new(body.boxed_unsync())
    };
    let content_type = http::HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", content_type);
    response
}

/// The status of a call whose message the gateway can read first, or of one that it cannot.
async fn ended_for(client: &mut Client, length_known: bool) -> u16 {
    let message = b"\0\0\0\0\0".as_slice();
    let body = if length_known {
        full(message)
    } else {
        let frames = [Ok(hyper::body::Frame::data(message.into()))];
        http_body_util::StreamBody::new(stream::iter(frames)).boxed_unsync()
    };
    let request = http::Request::post("http://h.test/t.Echo/Call")
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap();
    client.ready().await.unwrap();
    let (head, body) = client.send_request(request).await.unwrap().into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned();
    let trailers = trailers.unwrap_or(head.headers);
    trailers["grpc-status"].to_str().unwrap().parse().unwrap()
}

async fn http2_client(world: &World) -> Client {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", world.port)).await;
    http2(stream.unwrap()).await
}

#[test]
fn a_call_that_an_endpoint_fails_is_made_at_another_as_long_as_its_message_is_at_hand() {
    for in_head in [true, false] {
        for (code, moves) in [
            ("13", true),
            ("14", true),
            ("2", true),
            ("5", false),
            ("4", false),
        ] {
            let (bad, calls) = ending_with(code, in_head);
            let (good, _) = ending_with("0", in_head);
            let world = World::to(grpc_pool(&[bad, good]));
            let mut statuses = run(async {
                let mut client = http2_client(&world).await;
                [
                    ended_for(&mut client, true).await,
                    ended_for(&mut client, true).await,
                ]
            });
            statuses.sort_unstable();
            let expected = if moves { 0 } else { code.parse().unwrap() };
            assert_eq!(statuses, [0, expected], "{code} {in_head}");
            assert!(calls.load(Ordering::SeqCst) > 0, "{code} {in_head}");
        }
    }
}

#[test]
fn an_endpoint_whose_calls_fail_is_taken_out_of_rotation() {
    for in_head in [true, false] {
        let (bad, calls) = ending_with("14", in_head);
        let (good, _) = ending_with("0", in_head);
        let world = World::to(grpc_pool(&[bad, good]));
        run(async {
            let mut client = http2_client(&world).await;
            // A stream of messages is sent once, so that each failure reaches the client.
            while calls.load(Ordering::SeqCst) < 3 {
                ended_for(&mut client, false).await;
            }
        });
        world.comes_to_show("forebay_ejections_total{pool=\"default/grpc\",reason=\"failures\"} 1");
    }
    // One that says what is wrong with calls stays.
    let (picky, calls) = ending_with("3", true);
    let (good, _) = ending_with("0", true);
    let world = World::to(grpc_pool(&[picky, good]));
    run(async {
        let mut client = http2_client(&world).await;
        while calls.load(Ordering::SeqCst) < 6 {
            ended_for(&mut client, false).await;
        }
    });
    let failures = "forebay_ejections_total{pool=\"default/grpc\",reason=\"failures\"} 1";
    assert!(!world.shows(failures));
}

// === refusals ===

#[test]
fn refusals_have_a_status_that_grpc_clients_understand() {
    let silent = Upstream::start(|side| {
        side.peer.rest();
    });
    let limited = Rule {
        timeouts: Timeouts {
            request: Some(Duration::from_millis(100)),
            backend: None,
        },
        ..speaking(Speaks::Grpc, service(&[silent.address]))
    };
    let speaks = |target| speaking(Speaks::Grpc, target);
    let world = World::with(
        Settings {
            body_bytes_max: 8,
            ..settings()
        },
        vec![
            entry("/t.Broken/Call", speaks(broken(500))),
            entry("/t.Empty/Call", speaks(service(&[]))),
            entry("/t.None/Call", rule(vec![])),
            entry("/t.Dead/Call", speaks(service(&[dead_address()]))),
            entry("/t.Slow/Call", limited),
            entry("/t.Pool/Call", speaks(grpc_pool(&[]))),
        ],
    );
    let check = |path: &'static str, code: Code, says: &str| {
        let status = run(async {
            let channel = channel(world.port).await;
            call(&channel, path).await.err().unwrap()
        });
        assert_eq!(status.code(), code, "{path}: {status}");
        assert!(status.message().contains(says), "{path}: {status}");
        assert!(status.metadata().contains_key("x-forebay-reason"), "{path}");
    };
    check("/t.Nothing/Call", Code::Unimplemented, "no route matches");
    check("/t.Broken/Call", Code::Unavailable, "default/gone");
    check("/t.Empty/Call", Code::Unavailable, "no ready endpoint");
    check("/t.None/Call", Code::Unavailable, "no backend");
    check("/t.Dead/Call", Code::Unavailable, "connect");
    check("/t.Slow/Call", Code::DeadlineExceeded, "time limit");
    check("/t.Pool/Call", Code::Unavailable, "");
    // The rule speaks gRPC whatever the request says of itself, others go by what it says.
    let got = world.ask(&get("/t.Empty/Call"));
    assert_eq!(got.status(), 200);
    assert_eq!(got.field("grpc-status").as_deref(), Some("14"));
    assert_eq!(got.text(), "");
    assert_eq!(world.ask(&get("/t.None/Call")).status(), 500);
}

#[test]
fn a_stream_that_breaks_ends_with_a_status() {
    let server = Endpoints::start();
    let limited = Rule {
        timeouts: Timeouts {
            request: Some(Duration::from_millis(300)),
            backend: None,
        },
        ..speaking(Speaks::Grpc, service(&[server.address]))
    };
    let world = World::with(
        settings(),
        vec![
            entry("/t.Limited/Chat", limited),
            entry("/", speaking(Speaks::Grpc, service(&[server.address]))),
        ],
    );
    run(async {
        let channel = channel(world.port).await;
        let mut talk = call(&channel, "/t.Limited/Chat").await.unwrap();
        talk.says("hello").await.unwrap();
        let status = talk.replies.message().await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        let mut talk = call(&channel, "/t.Echo/Chat").await.unwrap();
        talk.says("hello").await.unwrap();
        server.die.send_replace(true);
        let status = talk.replies.message().await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("the stream broke"), "{status}");
    });
}
