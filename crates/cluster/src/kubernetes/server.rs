//! The API server as a place to send requests to: JSON documents there and back, and lines of a
//! watch. Who asks for what is decided by the callers.
//!
//! kube's credentials, TLS and kubeconfig are used; its request helpers are not, since they log what
//! cannot be parsed, Secrets included, and try again at a pace of their own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the head of an answer may take. Longer than the server's own limit would be of no use.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the rest of an answer may take that is not a watch.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// A peer that vanished without a word is noticed after about half a minute, on idle connections
/// of watches too.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// Bytes of one answer. Pages of a list have 500 objects, of mostly less than 100 KiB; objects are
/// bounded by etcd to 1.5 MiB each.
const ANSWER_BYTES_MAX: usize = 512 << 20;
/// Bytes of one event of a watch.
const LINE_BYTES_MAX: usize = 16 << 20;
/// Of an error's body, as much is read and shown.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Who we are in the server's audit log and in `managedFields`.
pub(crate) const FIELD_MANAGER: &str = "forebay";

/// An API server that can be asked.
#[derive(Clone)]
pub struct Server {
    client: Client,
    url: String,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Why a request brought nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// The server refused, with a status code and its words.
    Refused { status: StatusCode, why: String },
    /// No answer, or half of one: another try may help.
    Unreached(String),
}

impl Failure {
    /// Whether the server answered with `status`.
    pub(crate) fn is(&self, status: StatusCode) -> bool {
        matches!(self, Self::Refused { status: own, .. } if *own == status)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { status, why } => write!(f, "{}: {why}", status.as_u16()),
            Self::Unreached(why) => f.write_str(why),
        }
    }
}

/// Why there is no way to an API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoServer(String);

impl fmt::Display for NoServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoServer {}

/// A document to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Write {
    /// `POST` of a new object.
    Create,
    /// `PUT` of a whole object.
    Replace,
    /// `PATCH` as of RFC 7386.
    Merge,
    /// Server-side apply, taking over fields of others.
    Apply,
}

impl Server {
    /// The server of `kubeconfigs` (merged in this order) or, without any, of the pod that this
    /// process runs in. Asks the server nothing yet.
    ///
    /// # Errors
    /// When a file cannot be used, or there is none and this is no pod.
    pub async fn find(kubeconfigs: &[PathBuf]) -> Result<Self, NoServer> {
        let config = match kubeconfigs {
            [] => Config::incluster().map_err(|error| {
                NoServer(format!(
                    "not in a pod ({}); name a kubeconfig with --kubeconfig or KUBECONFIG",
                    chain(&error)
                ))
            })?,
            files => read(files).await?,
        };
        if config.proxy_url.is_some() {
            let why = "the kubeconfig asks for a proxy-url, which is not supported: make the API \
                       server reachable directly";
            return Err(NoServer(why.to_owned()));
        }
        let url = config.cluster_url.to_string();
        let client =
            client(&config).map_err(|error| NoServer(format!("{url}: {}", chain(&error))))?;
        Ok(Self { client, url })
    }

    /// Where it is, for people.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.trim_end_matches('/')
    }

    /// The namespace of the pod, or that of the kubeconfig's context.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// The document at `path`.
    pub(crate) async fn get(&self, path: &str) -> Result<Bytes, Failure> {
        let request = Request::get(path).header(header::ACCEPT, "application/json");
        let answer = self.answer(request.body(Body::empty())).await?;
        whole(answer).await
    }

    /// `metadata.annotations` of the object at `path`.
    pub(crate) async fn annotations(&self, path: &str) -> Result<Value, Failure> {
        let only_metadata = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
        let request = Request::get(path).header(header::ACCEPT, only_metadata);
        let answer = self.answer(request.body(Body::empty())).await?;
        let mut object: Value = json(&whole(answer).await?)?;
        Ok(object["metadata"]["annotations"].take())
    }

    /// Writes `document` and gives back what the server made of it.
    pub(crate) async fn write(
        &self,
        how: Write,
        path: &str,
        document: &Value,
    ) -> Result<Value, Failure> {
        let (method, content, force) = match how {
            Write::Create => (Method::POST, "application/json", ""),
            Write::Replace => (Method::PUT, "application/json", ""),
            Write::Merge => (Method::PATCH, "application/merge-patch+json", ""),
            // JSON is YAML, which is what apply takes.
            Write::Apply => (Method::PATCH, "application/apply-patch+yaml", "&force=true"),
        };
        let path = format!("{path}?fieldManager={FIELD_MANAGER}{force}");
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, content)
            .body(Body::from(document.to_string().into_bytes()));
        let answer = self.answer(request).await?;
        json(&whole(answer).await?)
    }

    /// Deletes the object at `path`, provided that it still is the one with this UID.
    pub(crate) async fn delete(&self, path: &str, uid: &str) -> Result<(), Failure> {
        let options = serde_json::json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": { "uid": uid },
            "propagationPolicy": "Background",
        });
        let request = Request::delete(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(options.to_string().into_bytes()));
        let answer = self.answer(request).await?;
        whole(answer).await.map(drop)
    }

    /// The lines of a watch, as they come.
    pub(crate) async fn lines(&self, path: &str) -> Result<Lines, Failure> {
        let request = Request::get(path).header(header::ACCEPT, "application/json");
        let answer = self.answer(request.body(Body::empty())).await?;
        Ok(Lines {
            body: answer.into_body(),
            rest: BytesMut::new(),
            searched: 0,
        })
    }

    /// The head of a successful answer, and its body to be read.
    async fn answer(
        &self,
        request: Result<Request<Body>, http::Error>,
    ) -> Result<Response<Body>, Failure> {
        let request = request.map_err(|error| Failure::Unreached(chain(&error)))?;
        let sent = timeout(HEAD_TIMEOUT, self.client.send(request)).await;
        let answer = match sent {
            Err(_) => return Err(slow(HEAD_TIMEOUT)),
            Ok(Err(error)) => return Err(Failure::Unreached(chain(&error))),
            Ok(Ok(answer)) => answer,
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = http_body_util::Limited::new(answer.into_body(), ERROR_BYTES_MAX);
        let bytes = match timeout(BODY_TIMEOUT, body.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) | Err(_) => Bytes::new(),
        };
        Err(Failure::Refused {
            status,
            why: message(&bytes),
        })
    }
}

/// What `metav1.Status` says, or the text as it is.
fn message(bytes: &[u8]) -> String {
    let status: Option<Value> = serde_json::from_slice(bytes).ok();
    let told = status
        .as_ref()
        .and_then(|status| status["message"].as_str());
    match told {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(bytes).trim().to_owned(),
    }
}

async fn whole(answer: Response<Body>) -> Result<Bytes, Failure> {
    let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
    match timeout(BODY_TIMEOUT, body.collect()).await {
        Err(_) => Err(slow(BODY_TIMEOUT)),
        Ok(Err(error)) => Err(Failure::Unreached(chain(&*error))),
        Ok(Ok(body)) => Ok(body.to_bytes()),
    }
}

/// The document in an answer. Its text is not repeated in the error: it may be a Secret.
pub(crate) fn json<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        Failure::Unreached(format!("the answer is not what was asked for: {error}"))
    })
}

fn slow(limit: Duration) -> Failure {
    Failure::Unreached(format!("no answer within {} s", limit.as_secs()))
}

/// An error with its causes, each told once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let told = cause.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        source = cause.source();
    }
    text
}

/// A watch's body, cut into lines.
pub(crate) struct Lines {
    body: Body,
    rest: BytesMut,
    /// Bytes of `rest` that hold no line's end.
    searched: usize,
}

impl Lines {
    /// The next line; `None` when the server has ended the watch. May be dropped and called again
    /// without losing anything.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let end = self.rest[self.searched..].iter().position(|b| *b == b'\n');
            if let Some(end) = end {
                let line = self.rest.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(line.freeze()));
            }
            self.searched = self.rest.len();
            if self.rest.len() > LINE_BYTES_MAX {
                let why = format!("an event of more than {LINE_BYTES_MAX} bytes");
                return Err(Failure::Unreached(why));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::Unreached(chain(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

async fn read(files: &[PathBuf]) -> Result<Config, NoServer> {
    let mut merged = Kubeconfig::default();
    for file in files {
        let unusable = |error: &dyn std::error::Error| {
            NoServer(format!("{}: {}", Path::display(file), chain(error)))
        };
        let one = Kubeconfig::read_from(file).map_err(|error| unusable(&error))?;
        merged = merged.merge(one).map_err(|error| unusable(&error))?;
    }
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(merged, &options).await;
    config.map_err(|error| {
        let names: Vec<_> = files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        NoServer(format!("{}: {}", names.join(", "), chain(&error)))
    })
}

fn client(config: &Config) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE / 2));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let client = legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}
