//! CPU of our HTTP/1.1 upstream against hyper's client, per response, in one run and alternating.
//!
//! The measured thread runs only the client; a server thread writes 50 small chunks per response,
//! as a server does that generates tokens in bursts. Run: `cargo bench -p forebay-gateway --bench
//! upstream`. The figures are in `docs/decisions/002-upstream-http1.md`.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot run may as well stop"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use forebay_gateway::upstream::{self, Head, Idle, Outgoing, Peer};
use forebay_model::AppProtocol;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;

const CHUNKS: usize = 50;
const RESPONSES: usize = 2_000;
const ROUNDS: usize = 7;

fn main() {
    let burst = serve(CHUNKS);
    let small = serve(1);
    println!(
        "{:>10} {:>16} {:>16} {:>8}",
        "response", "hyper us", "ours us", "ratio"
    );
    for (name, address) in [("1 chunk", small), ("50 chunks", burst)] {
        let mut figures = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            figures[0].push(cpu_us(hyper_client(address)));
            figures[1].push(cpu_us(our_client(address)));
        }
        let [hyper, ours] = figures.map(median);
        println!(
            "{name:>10} {hyper:>16.1} {ours:>16.1} {:>8.2}",
            ours / hyper
        );
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// CPU microseconds per response of this thread while it runs `client`.
fn cpu_us(client: impl Future<Output = usize>) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    let before = thread_cpu();
    let bytes = local.block_on(&runtime, client);
    let took = thread_cpu() - before;
    assert!(bytes > 0);
    took.as_secs_f64() * 1e6 / RESPONSES as f64
}

/// Time on the CPU of this thread, as the scheduler counts it.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

async fn our_client(address: SocketAddr) -> usize {
    let idle = Idle::new(std::sync::Arc::default());
    let headers = HeaderMap::new();
    let mut bytes = 0;
    for _ in 0..RESPONSES {
        let head = Head {
            method: &Method::GET,
            target: "/",
            host: "bench",
            headers: &headers,
            upgrade: None,
        };
        let limit = Duration::from_secs(1);
        let peer = Peer::plain(address, AppProtocol::Http);
        let sent = upstream::send(&idle, &peer, &head, Outgoing::Empty, limit);
        let mut answer = sent.await.unwrap();
        while let Some(frame) = std::future::poll_fn(|cx| answer.body.poll_frame(cx)).await {
            bytes += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
    }
    bytes
}

async fn hyper_client(address: SocketAddr) -> usize {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::task::spawn_local(connection);
    let mut bytes = 0;
    for _ in 0..RESPONSES {
        let request = Request::get("/")
            .header("host", "bench")
            .body(Full::new(bytes::Bytes::new()))
            .unwrap();
        let mut response = sender.send_request(request).await.unwrap();
        while let Some(frame) = response.body_mut().frame().await {
            bytes += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        sender.ready().await.unwrap();
    }
    bytes
}

/// A server that answers every request with `chunks` chunks, each written on its own.
fn serve(chunks: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                stream.set_nodelay(true).unwrap();
                let event = format!("data: {{\"choices\":[{{\"delta\":{:>60}}}]}}\n\n", "\"x\"");
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                let mut request = [0; 4096];
                while stream.read(&mut request).is_ok_and(|n| n > 0) {
                    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                    stream.write_all(head.as_bytes()).unwrap();
                    for _ in 0..chunks {
                        stream.write_all(chunk.as_bytes()).unwrap();
                    }
                    stream.write_all(b"0\r\n\r\n").unwrap();
                }
            });
        }
    });
    address
}
