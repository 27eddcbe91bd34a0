//! Metadata services over real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::Future;
use std::time::Duration;

use forebay_node::cloud::http::{ANSWER_TIME, Http};
use forebay_node::cloud::{Answer, Metadata, NoAnswer, Question};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}

fn question() -> Question {
    Question {
        method: "GET",
        path: "/latest/meta-data".to_owned(),
        header: Some(("x-token", "secret".to_owned())),
        body: String::new(),
    }
}

/// Reads the head of a request, and answers.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answer: &str) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    // Who asks may hang up before the last byte.
    _ = stream.write_all(answer.as_bytes()).await;
    String::from_utf8(head).unwrap()
}

/// What comes of an answer, and the head of the request.
fn check(prefix: &str, answer: &str) -> (Result<Answer, NoAnswer>, String) {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{prefix}", listener.local_addr().unwrap());
        let service = Http::new(&url, ANSWER_TIME).unwrap();
        let server = async { serve(listener.accept().await.unwrap().0, answer).await };
        tokio::join!(service.ask(question()), server)
    })
}

#[test]
fn a_question_is_asked_and_its_answer_read_whole() {
    let (answer, head) = check("/base/", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfour");
    let expected = Answer {
        status: 200,
        body: "four".to_owned(),
    };
    assert_eq!(answer, Ok(expected));
    assert!(
        head.starts_with("GET /base/latest/meta-data HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("x-token: secret\r\n"), "{head}");
    let (answer, _) = check(
        "",
        "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\nnone",
    );
    let expected = Answer {
        status: 404,
        body: "none".to_owned(),
    };
    assert_eq!(answer, Ok(expected));
}

#[test]
fn an_answer_that_is_none_or_too_long_is_an_error_without_the_secret() {
    let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(2_000_000));
    for answer in [
        "",
        "SSH-2.0-x\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfour",
        &long,
    ] {
        let (answer, _) = check("", answer);
        let error = answer.unwrap_err().to_string();
        assert!(error.contains("/latest/meta-data: "), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn a_webhook_may_be_on_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("webhook.sock");
    let answer = run(async {
        let listener = UnixListener::bind(&path).unwrap();
        let service = Http::new(&format!("unix://{}", path.display()), ANSWER_TIME).unwrap();
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let server = async { serve(listener.accept().await.unwrap().0, ok).await };
        tokio::join!(service.ask(question()), server).0
    });
    assert_eq!(answer.unwrap().body, "{}");
    let service = Http::new("unix:///nowhere/at/all.sock", ANSWER_TIME).unwrap();
    assert!(run(service.ask(question())).is_err());
}

#[test]
fn a_service_that_does_not_answer_is_not_waited_for_beyond_the_limit() {
    let error = run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = Http::new(&url, Duration::from_millis(20)).unwrap();
        service.ask(question()).await.unwrap_err()
    });
    assert!(
        error.to_string().contains("no answer within 20 ms"),
        "{error}"
    );
}

#[test]
fn addresses_are_checked_and_have_no_credentials() {
    for good in [
        "http://169.254.169.254",
        "http://[::1]:8080/x",
        "http://[fd00::1]",
        "unix:///a",
    ] {
        assert!(Http::new(good, ANSWER_TIME).is_ok(), "{good}");
    }
    for bad in [
        "https://a",
        "http://",
        "http:///x",
        "unix://a",
        "http://u:p@h",
        "a",
    ] {
        assert!(Http::new(bad, ANSWER_TIME).is_err(), "{bad}");
    }
    let shown = format!("{:?}", Http::new("http://[fd00::1]/", ANSWER_TIME).unwrap());
    assert_eq!(shown, "Http(http://[fd00::1]:80)");
}
