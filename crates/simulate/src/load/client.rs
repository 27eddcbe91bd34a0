//! A streaming HTTP/1.1 client, just as much as the load needs: kept connections, events, timing.
//!
//! Without TLS. The first token is the first event with text in it; the one with the role that comes
//! before does not count.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use super::LoadError;
use super::summary::Failure;

/// Says which endpoint served, if the request asks for it.
const ENDPOINT: HeaderName = HeaderName::from_static("x-forebay-endpoint");
/// Asks for it.
const EXPLAIN: HeaderName = HeaderName::from_static("x-forebay-explain");
/// Bytes of one event; a longer one breaks the answer off.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Where requests go, with the connections that are free.
#[derive(Debug)]
pub(super) struct Client {
    authority: String,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Never more than there were requests at a time.
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// One answer and its times.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) ttft: Option<Duration>,
    pub(super) gaps: Vec<Duration>,
    pub(super) e2e: Duration,
    pub(super) output_tokens: u64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) endpoint: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Delta<'a>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

impl Client {
    /// A client for `POST {base_url}/v1/chat/completions`.
    pub(super) fn new(base_url: &str, headers: &[(String, String)]) -> Result<Self, LoadError> {
        let broken = |problem: &str| LoadError::BaseUrl(base_url.to_owned(), problem.to_owned());
        let uri: Uri = base_url.parse().map_err(|_| broken("not a URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(broken("only http:// is spoken"));
        }
        let host = uri.host().ok_or_else(|| broken("no host"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let path = format!("{}/v1/chat/completions", uri.path().trim_end_matches('/'));
        let headers = headers
            .iter()
            .map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)))
            .collect::<Option<Vec<_>>>()
            .ok_or(LoadError::Header)?;
        Ok(Self {
            authority,
            path,
            headers,
            idle: Mutex::default(),
        })
    }

    /// Sends one chat request and reads its stream to the end.
    pub(super) async fn chat(&self, body: Bytes) -> Result<Answer, Failure> {
        let started = Instant::now();
        let (mut sender, response) = self.send(body).await?;
        if !response.status().is_success() {
            return Err(Failure::Status(response.status().as_u16()));
        }
        let endpoint = response
            .headers()
            .get(ENDPOINT)
            .and_then(|value| value.to_str().ok());
        let mut answer = Answer {
            endpoint: endpoint.unwrap_or("direct").to_owned(),
            ..Answer::default()
        };
        read_events(response.into_body(), started, &mut answer).await?;
        answer.e2e = started.elapsed();
        if sender.ready().await.is_ok() {
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(sender);
        }
        Ok(answer)
    }

    /// On a kept connection if there is one. The server may have closed it meanwhile: then on a new.
    async fn send(
        &self,
        body: Bytes,
    ) -> Result<(SendRequest<Full<Bytes>>, Response<Incoming>), Failure> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        if let Some(mut sender) = idle
            && let Ok(response) = sender.send_request(self.request(body.clone())).await
        {
            return Ok((sender, response));
        }
        let stream = TcpStream::connect(&self.authority)
            .await
            .map_err(|_| Failure::Connect)?;
        stream.set_nodelay(true).map_err(|_| Failure::Connect)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Failure::Connect)?;
        // Ends when the sender is dropped; its errors come out at the request.
        tokio::spawn(async move {
            let _closed = connection.await;
        });
        match sender.send_request(self.request(body)).await {
            Ok(response) => Ok((sender, response)),
            Err(_) => Err(Failure::BrokenOff),
        }
    }

    fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.parse().expect("a path of a parsed URL");
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.authority).expect("a host of a parsed URL");
        headers.insert(HOST, host);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(EXPLAIN, HeaderValue::from_static("1"));
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        request
    }
}

async fn read_events(
    mut body: Incoming,
    started: Instant,
    answer: &mut Answer,
) -> Result<(), Failure> {
    let mut buffer = BytesMut::new();
    let mut last = started;
    let mut done = false;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Failure::BrokenOff)?.into_data() else {
            continue; // trailers
        };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            let Some(data) = line.strip_prefix(b"data:") else {
                continue;
            };
            let data = data.trim_ascii();
            if data == b"[DONE]" {
                done = true;
            } else if has_text(data, answer)? {
                let now = Instant::now();
                match answer.ttft {
                    None => answer.ttft = Some(now - started),
                    Some(_) => answer.gaps.push(now - last),
                }
                last = now;
            }
        }
        if buffer.len() > EVENT_BYTES_MAX {
            return Err(Failure::BrokenOff);
        }
    }
    if done {
        Ok(())
    } else {
        Err(Failure::BrokenOff)
    }
}

/// Takes in one event; whether there was text in it.
fn has_text(data: &[u8], answer: &mut Answer) -> Result<bool, Failure> {
    let event: Event<'_> = serde_json::from_slice(data).map_err(|_| Failure::BrokenOff)?;
    if let Some(usage) = event.usage {
        answer.output_tokens = usage.completion_tokens;
        answer.prompt_tokens = usage.prompt_tokens;
        let details = usage.prompt_tokens_details;
        answer.cached_tokens = details
            .and_then(|details| details.cached_tokens)
            .unwrap_or(0);
    }
    let text = event
        .choices
        .first()
        .and_then(|choice| choice.delta.content.as_deref());
    answer.text.push_str(text.unwrap_or_default());
    Ok(text.is_some_and(|text| !text.is_empty()))
}
