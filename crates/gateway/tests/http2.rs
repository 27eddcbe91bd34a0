//! HTTP/2 on either side: clients with prior knowledge, endpoints that ask for it (h2c).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::*;
use forebay_model::route::Target;
use forebay_model::{AppProtocol, Pool};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

async fn connect(world: &World) -> Client {
    connect_with_window(world, None).await
}

async fn connect_with_window(world: &World, window: Option<u32>) -> Client {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", world.port)).await;
    http2_with_window(stream.unwrap(), window).await
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Body> {
    let uri = format!("http://h.test:81{path}");
    Request::builder()
        .method(method)
        .uri(uri)
        .body(full(body))
        .unwrap()
}

async fn read(response: Response<Incoming>) -> (u16, String, Option<HeaderMap>) {
    let status = response.status().as_u16();
    let whole = response.into_body().collect().await.unwrap();
    let trailers = whole.trailers().cloned();
    (
        status,
        String::from_utf8(whole.to_bytes().to_vec()).unwrap(),
        trailers,
    )
}

async fn ask(client: &mut Client, request: Request<Body>) -> (u16, String, Option<HeaderMap>) {
    client.ready().await.unwrap();
    read(client.send_request(request).await.unwrap()).await
}

/// An h2c endpoint that echoes bodies, with trailers; it notes heads and counts connections.
struct Echo {
    address: std::net::SocketAddr,
    heads: Arc<Mutex<Vec<http::request::Parts>>>,
    connections: Arc<AtomicUsize>,
    /// Requests whose body broke off.
    broken: Arc<AtomicUsize>,
    close: Arc<tokio::sync::Notify>,
}

fn echo() -> Echo {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let echo = Echo {
        address: listener.local_addr().unwrap(),
        heads: Arc::default(),
        connections: Arc::default(),
        broken: Arc::default(),
        close: Arc::default(),
    };
    let (heads, connections, broken, close) = (
        Arc::clone(&echo.heads),
        Arc::clone(&echo.connections),
        Arc::clone(&echo.broken),
        Arc::clone(&echo.close),
    );
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (heads, close) = (Arc::clone(&heads), Arc::clone(&close));
                let broken = Arc::clone(&broken);
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(|r| {
                        echoed(r, Arc::clone(&heads), Arc::clone(&broken))
                    });
                    let io = hyper_util::rt::TokioIo::new(stream);
                    let builder = hyper::server::conn::http2::Builder::new(Spawner);
                    tokio::select! {
                        _ = builder.serve_connection(io, service) => {}
                        () = close.notified() => {}
                    }
                });
            }
        });
    });
    echo
}

async fn echoed(
    request: Request<Incoming>,
    heads: Arc<Mutex<Vec<http::request::Parts>>>,
    broken: Arc<AtomicUsize>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    heads.lock().unwrap().push(parts);
    let Ok(whole) = body.collect().await else {
        broken.fetch_add(1, Ordering::SeqCst);
        return Ok(Response::new(full("")));
    };
    let bytes = whole.to_bytes();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", 0.into());
    let frames = [Frame::data(bytes), Frame::trailers(trailers)].map(Ok::<_, std::io::Error>);
    let body = StreamBody::new(futures_util::stream::iter(frames));
    Ok(Response::new(body.boxed_unsync()))
}

fn h2c_pool(address: std::net::SocketAddr) -> Target {
    to_pool(Pool {
        protocol: AppProtocol::H2c,
        ..pool_of("pool", &[address])
    })
}

fn h2c_service(address: std::net::SocketAddr) -> Target {
    service_over(AppProtocol::H2c, &[address])
}

#[test]
fn a_client_with_prior_knowledge_is_served_over_http1() {
    let upstream = Upstream::start(|side| {
        while let Some(request) = side.request() {
            side.send(ok(&request.text()));
        }
    });
    let world = World::to(service(&[upstream.address]));
    run(async {
        let mut client = connect(&world).await;
        for body in ["", "one", "two"] {
            let (status, text, _) = ask(&mut client, request("POST", "/a?b", body)).await;
            assert_eq!((status, &*text), (200, body));
        }
    });
    let seen = upstream.last();
    assert_eq!(seen.start, "POST /a?b HTTP/1.1");
    assert_eq!(seen.field("host").as_deref(), Some("h.test:81"));
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn streams_of_one_connection_do_not_wait_for_each_other() {
    let (upstream, go) = Upstream::holding_slow();
    let world = World::to(service(&[upstream.address]));
    run(async {
        let mut client = connect(&world).await;
        client.ready().await.unwrap();
        let slow = client.send_request(request("GET", "/slow", ""));
        for _ in 0..3 {
            assert_eq!(
                ask(&mut client.clone(), request("GET", "/fast", ""))
                    .await
                    .0,
                200
            );
        }
        go.send(()).unwrap();
        assert_eq!(read(slow.await.unwrap()).await.0, 200);
    });
}

#[test]
fn trailers_of_http1_reach_a_client_of_http2() {
    let upstream = Upstream::answering(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n",
    );
    let world = World::to(service(&[upstream.address]));
    run(async {
        let mut client = connect(&world).await;
        let (_, text, trailers) = ask(&mut client, request("GET", "/", "")).await;
        assert_eq!(
            (&*text, &trailers.unwrap()["x-sum"]),
            ("hi", &http::HeaderValue::from(7))
        );
    });
}

#[test]
fn a_body_cut_off_resets_the_stream_and_spares_the_others() {
    let upstream = Upstream::start(|side| {
        while let Some(request) = side.request() {
            if request.start.contains("/cut") {
                return side.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
            }
            side.send(ok("x"));
        }
    });
    let world = World::to(service(&[upstream.address]));
    run(async {
        let mut client = connect(&world).await;
        client.ready().await.unwrap();
        let cut = client.send_request(request("GET", "/cut", "")).await;
        let whole = match cut {
            Ok(response) => response.into_body().collect().await.is_ok(),
            Err(_) => false,
        };
        assert!(!whole);
        assert_eq!(ask(&mut client, request("GET", "/", "")).await.0, 200);
    });
}

#[test]
fn resetting_a_stream_cancels_the_request_at_the_endpoint() {
    let (tell, told) = std::sync::mpsc::channel();
    let upstream = Upstream::start(move |side| {
        side.request();
        tell.send("waiting").unwrap();
        assert!(side.peer.closes());
        tell.send("closed").unwrap();
    });
    let world = World::to(pool(&[upstream.address]));
    run(async {
        let mut client = connect(&world).await;
        client.ready().await.unwrap();
        let pending = tokio::spawn(client.send_request(request("GET", "/", "")));
        let told = tokio::task::spawn_blocking(move || {
            assert_eq!(told.recv_timeout(PATIENCE), Ok("waiting"));
            told
        });
        let told = told.await.unwrap();
        pending.abort();
        let closed = tokio::task::spawn_blocking(move || told.recv_timeout(PATIENCE));
        assert_eq!(closed.await.unwrap(), Ok("closed"));
    });
}

/// A gateway that gives up clients soon, in front of: an endpoint of endless answers, one of answers
/// without a body, one of short ones, one whose stream goes on when the test says so, and nothing.
/// The endless one tells when it is let go.
fn world_of_impatience() -> (World, [Upstream; 4], Receiver<()>, Sender<()>) {
    let (tell, told) = channel();
    let endless = Upstream::start(move |side| {
        side.request();
        side.send("HTTP/1.1 200 OK\r\n\r\n");
        while std::io::Write::write_all(&mut side.peer.stream, &[b'x'; 65_536]).is_ok() {}
        tell.send(()).unwrap();
    });
    let none = Upstream::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let short = Upstream::saying("short");
    let (go, gone) = channel();
    let gone = Mutex::new(gone);
    let patient = Upstream::start(move |side| {
        side.request();
        side.send(format!("{SSE_HEAD}{}", chunk("data: 1\n\n")));
        gone.lock().unwrap().recv().unwrap();
        side.send(format!("{}0\r\n\r\n", chunk("data: 2\n\n")));
    });
    let settings = forebay_gateway::settings::Settings {
        write_stall_timeout: std::time::Duration::from_millis(100),
        ..settings()
    };
    let to = |path, upstream: &Upstream| entry(path, rule(vec![service(&[upstream.address])]));
    let world = World::with(
        settings,
        vec![
            to("/endless", &endless),
            to("/none", &none),
            to("/short", &short),
            to("/patient", &patient),
        ],
    );
    (world, [endless, none, short, patient], told, go)
}

/// Asks and does not read.
async fn unread(client: &mut Client, path: &str, id: &str) -> Response<Incoming> {
    let mut request = request("GET", path, "");
    request
        .headers_mut()
        .insert("x-request-id", id.parse().unwrap());
    client.ready().await.unwrap();
    client.send_request(request).await.unwrap()
}

#[test]
fn a_stream_whose_client_does_not_open_its_window_is_reset_and_spares_the_others() {
    // Shut from the start, shut within the first piece, shut behind it.
    for window in [0, 1000, 20_000] {
        let (world, _upstreams, told, _go) = world_of_impatience();
        run(async {
            let mut client = connect_with_window(&world, Some(window)).await;
            let endless = unread(&mut client, "/endless", "endless").await;
            let told = tokio::task::spawn_blocking(move || told.recv_timeout(PATIENCE));
            assert_eq!(told.await.unwrap(), Ok(()), "the endpoint is let go");
            assert!(endless.into_body().collect().await.is_err());
            let (status, ..) = ask(&mut client, request("GET", "/none", "")).await;
            assert_eq!(status, 204);
        });
        assert_eq!(world.record("endless").end, "client-gone");
    }
}

#[test]
fn an_answer_that_is_complete_does_not_wait_for_its_client_for_ever() {
    let (world, ..) = world_of_impatience();
    run(async {
        let mut client = connect_with_window(&world, Some(0)).await;
        for path in ["/short", "/nowhere"] {
            let response = unread(&mut client, path, path).await;
            assert!(response.into_body().collect().await.is_err(), "{path}");
        }
        let (status, ..) = ask(&mut client, request("GET", "/none", "")).await;
        assert_eq!(status, 204);
    });
}

#[test]
fn a_stream_that_waits_for_its_endpoint_is_left_alone() {
    let (world, _upstreams, _told, go) = world_of_impatience();
    run(async {
        let mut client = connect(&world).await;
        let mut patient = unread(&mut client, "/patient", "patient").await;
        let first = patient.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "data: 1\n\n");
        // When one that began to wait later has been given up, the limit has passed for this one.
        let mut lazy = connect_with_window(&world, Some(0)).await;
        let later = unread(&mut lazy, "/short", "later").await;
        assert!(later.into_body().collect().await.is_err());
        go.send(()).unwrap();
        assert_eq!(read(patient).await.1, "data: 2\n\n");
    });
}

#[test]
fn long_bodies_reach_a_client_that_reads_whatever_its_window() {
    let body = "0123456789abcdef".repeat(40_000);
    let upstream = Upstream::saying(&body);
    let world = World::to(service(&[upstream.address]));
    run(async {
        for window in [1000, 16 << 10, 1 << 20] {
            let mut client = connect_with_window(&world, Some(window)).await;
            let (status, text, _) = ask(&mut client, request("GET", "/", "")).await;
            assert!((status, &text) == (200, &body), "{window}");
        }
    });
}

#[test]
fn endpoints_may_speak_http2() {
    for target in [h2c_service, h2c_pool] {
        let echo = echo();
        let world = World::to(target(echo.address));
        for body in ["one", "two"] {
            let got = world.ask(&post_with("/a?b", "connection: x\r\nx: 1\r\n", body));
            assert_eq!((got.status(), &*got.text()), (200, body));
        }
        let heads = echo.heads.lock().unwrap();
        let last = heads.last().unwrap();
        assert_eq!(last.uri.to_string(), "http://h.test/a?b");
        assert_eq!(last.headers.get("x"), None);
        assert_eq!(last.headers["te"], "trailers");
        assert_eq!(echo.connections.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_request_without_a_host_reaches_an_http2_endpoint() {
    let echo = echo();
    let world = World::to(h2c_service(echo.address));
    assert_eq!(world.ask("GET / HTTP/1.0\r\n\r\n").status(), 200);
}

#[test]
fn http2_to_http2_keeps_bodies_and_trailers() {
    let echo = echo();
    let world = World::to(h2c_service(echo.address));
    let long = "x".repeat(1 << 20);
    run(async {
        let mut client = connect(&world).await;
        for body in [String::new(), "short".into(), long] {
            let (status, text, trailers) =
                ask(&mut client, request("POST", "/", body.clone())).await;
            assert!((status, &text) == (200, &body));
            assert_eq!(trailers.unwrap()["grpc-status"], "0");
        }
    });
}

#[test]
fn an_upload_that_stops_is_reset_at_its_http2_endpoint() {
    let echo = echo();
    let settings = forebay_gateway::settings::Settings {
        body_stall_timeout: std::time::Duration::from_millis(100),
        ..settings()
    };
    let world = World::with(
        settings,
        vec![entry("/", rule(vec![h2c_service(echo.address)]))],
    );
    let mut client = world.client();
    client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\nbeginning");
    assert_eq!(client.response("POST").status(), 408);
    eventually("the endpoint's stream is reset", || {
        echo.broken.load(Ordering::SeqCst) == 1
    });
    assert_eq!(world.ask(&post("/", "x")).text(), "x");
    assert_eq!(echo.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_closed_http2_connection_is_replaced_unseen() {
    for target in [h2c_service, h2c_pool] {
        let echo = echo();
        let world = World::to(target(echo.address));
        for _ in 0..5 {
            assert_eq!(world.ask(&get("/")).status(), 200);
            echo.close.notify_waiters();
        }
    }
}

#[test]
fn a_preface_in_pieces_is_recognised() {
    let upstream = Upstream::saying("x");
    let world = World::to(service(&[upstream.address]));
    let mut client = world.client();
    for piece in ["P", "RI", " * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        client.send(piece);
        // Lets the gateway see the piece by itself.
        assert_eq!(world.ask(&get("/")).status(), 200);
    }
    client.send([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // The gateway's SETTINGS: a frame of type 4.
    let mut head = [0; 9];
    std::io::Read::read_exact(&mut client.stream, &mut head).unwrap();
    assert_eq!(head[3], 4);
}

#[test]
fn limits_hold_for_http2_too() {
    let upstream = Upstream::saying("x");
    let settings = forebay_gateway::settings::Settings {
        head_bytes_max: 16 << 10,
        body_bytes_max: 1000,
        ..settings()
    };
    let world = World::with(
        settings,
        vec![entry("/", rule(vec![pool(&[upstream.address])]))],
    );
    run(async {
        let mut client = connect(&world).await;
        let long = request("POST", "/v1/chat/completions", "x".repeat(2000));
        assert_eq!(ask(&mut client, long).await.0, 413);
        let mut fat = request("GET", "/", "");
        fat.headers_mut()
            .insert("x", "y".repeat(20_000).parse().unwrap());
        let refused = match client.send_request(fat).await {
            Ok(response) => response.status() == 431,
            Err(_) => true,
        };
        assert!(refused);
        let mut client = connect(&world).await;
        assert_eq!(ask(&mut client, request("GET", "/", "")).await.0, 200);
    });
}
