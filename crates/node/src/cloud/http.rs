//! A metadata service over HTTP/1.1, plain or on a Unix socket: link-local addresses and sockets of the host
//! need no TLS. A connection per question, since questions are few and far between.

use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::{Answer, Metadata, NoAnswer, Question};
use forebay_fabric::cloud::ANSWER_BYTES_MAX;

/// How long a question may take, connecting included: services answer within milliseconds, and the node
/// publishes without them meanwhile.
pub const ANSWER_TIME: Duration = Duration::from_secs(5);

/// A service at an address.
#[derive(Clone, PartialEq, Eq)]
pub struct Http {
    base: Base,
    limit: Duration,
}

#[derive(Clone, PartialEq, Eq)]
enum Base {
    /// Host and port, and what goes before a path.
    Tcp { authority: String, prefix: String },
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Http({})", self.place())
    }
}

impl Http {
    /// A service at `http://host[:port][/prefix]` or `unix:///path`, which has so long for an answer
    /// ([`ANSWER_TIME`]).
    ///
    /// # Errors
    ///
    /// A sentence on what is wrong with the address.
    pub fn new(url: &str, limit: Duration) -> Result<Http, String> {
        let wrong = || format!("`{url}` is neither like http://host:port nor like unix:///path");
        let base = if let Some(path) = url.strip_prefix("unix://") {
            if !path.starts_with('/') {
                return Err(wrong());
            }
            Base::Unix(PathBuf::from(path))
        } else {
            let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
            let rest = rest.trim_end_matches('/');
            let (host, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            // A name and password in it would end up in logs.
            if host.is_empty() || host.contains('@') {
                return Err(wrong());
            }
            let port = host
                .rsplit(']')
                .next()
                .is_some_and(|tail| tail.contains(':'));
            let authority = match port {
                true => host.to_owned(),
                false => format!("{host}:80"),
            };
            let prefix = prefix.to_owned();
            Base::Tcp { authority, prefix }
        };
        Ok(Http { base, limit })
    }

    fn place(&self) -> String {
        match &self.base {
            Base::Tcp { authority, prefix } => format!("http://{authority}{prefix}"),
            Base::Unix(path) => format!("unix://{}", path.display()),
        }
    }

    async fn connect_and_ask(&self, question: Question) -> Result<Answer, String> {
        match &self.base {
            Base::Tcp { authority, prefix } => {
                let stream = TcpStream::connect(authority).await;
                let stream = stream.map_err(|error| error.to_string())?;
                exchange(stream, authority, prefix, question).await
            }
            Base::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                let stream = stream.map_err(|error| error.to_string())?;
                exchange(stream, "localhost", "", question).await
            }
        }
    }
}

impl Metadata for Http {
    async fn ask(&self, question: Question) -> Result<Answer, NoAnswer> {
        let path = question.path.clone();
        let asked = tokio::time::timeout(self.limit, self.connect_and_ask(question)).await;
        let late = || format!("no answer within {} ms", self.limit.as_millis());
        let answer = asked.unwrap_or_else(|_| Err(late()));
        answer.map_err(|reason| NoAnswer(format!("{}{path}: {reason}", self.place())))
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    host: &str,
    prefix: &str,
    question: Question,
) -> Result<Answer, String> {
    let mut request = Request::builder()
        .method(question.method)
        .uri(format!("{prefix}{}", question.path))
        .header("host", host);
    if let Some((name, value)) = question.header {
        request = request.header(name, value);
    }
    if !question.body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    let request = request
        .body(Full::new(Bytes::from(question.body)))
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let mut answer = pin!(async move {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok(Answer { status, body })
    });
    // The connection moves the bytes; it may end before the last of them is taken.
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        _ = connection => {}
    }
    answer.await
}
