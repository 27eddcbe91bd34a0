//! Reading the head of a request, and the fields that go on from it.

use std::sync::Arc;

use forebay_model::route::RequestHead;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use crate::connection::Client;
use crate::grpc;
use crate::respond::Refusal;
use crate::worker::Worker;

/// Bytes of a client's request id that are kept; a longer one is replaced.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The head as the route table looks at it.
pub(crate) struct HeadView<'a> {
    pub(crate) parts: &'a Parts,
    pub(crate) host: &'a str,
}

impl RequestHead for HeadView<'_> {
    fn host(&self) -> &str {
        self.host
    }
    fn path(&self) -> &str {
        self.parts.uri.path()
    }
    fn query(&self) -> &str {
        self.parts.uri.query().unwrap_or_default()
    }
    fn method(&self) -> &str {
        self.parts.method.as_str()
    }
    fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// What an exchange wants to know of the fields from the start. Found in one pass, since each look
/// for one name hashes it, and most requests have none of these.
#[derive(Default)]
pub(crate) struct Noted<'a> {
    pub(crate) host: Option<&'a str>,
    pub(crate) id: Option<&'a str>,
    pub(crate) traceparent: Option<&'a str>,
    pub(crate) origin: Option<&'a HeaderValue>,
    pub(crate) explain: bool,
    pub(crate) grpc: bool,
}

impl<'a> Noted<'a> {
    pub(crate) fn of(headers: &'a HeaderMap) -> Self {
        let mut noted = Self::default();
        for (name, value) in headers {
            let place = match name.as_str() {
                "host" => &mut noted.host,
                "x-request-id" => &mut noted.id,
                "traceparent" => &mut noted.traceparent,
                "origin" => {
                    noted.origin.get_or_insert(value);
                    continue;
                }
                "content-type" => {
                    noted.grpc = grpc::is_content_type(value);
                    continue;
                }
                "x-forebay-explain" => {
                    noted.explain = true;
                    continue;
                }
                _ => continue,
            };
            // The first of several counts.
            if place.is_none() {
                *place = value.to_str().ok();
            }
        }
        noted
    }
}

/// Refuses what could be read in two ways by two parties.
pub(crate) fn check_framing(parts: &Parts) -> Result<(), Refusal> {
    let headers = &parts.headers;
    // hyper drops Content-Length beside Transfer-Encoding and closes after the response. A coding
    // under the chunks it would pass on undecoded, and we take the field that tells of it away.
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let chunked = |v: &HeaderValue| v.as_bytes().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_some_and(|v| !chunked(v)) || codings.next().is_some() {
        let message = "a request's only transfer coding may be chunked";
        return Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "transfer_coding",
            message,
        ));
    }
    if parts.method == Method::CONNECT {
        // Its 200 would make a tunnel of the client's connection.
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "connect_refused",
            "this gateway is no forward proxy",
        ));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::bad_request(
            "ambiguous_host",
            "a request has one Host header",
        ));
    }
    if first.is_some_and(|host| http::uri::Authority::try_from(host.as_bytes()).is_err()) {
        return Err(Refusal::bad_request(
            "invalid_host",
            "the Host header is not a host with an optional port",
        ));
    }
    if first.is_none() && parts.uri.authority().is_none() && parts.version == http::Version::HTTP_11
    {
        return Err(Refusal::bad_request(
            "no_host",
            "an HTTP/1.1 request has a Host header",
        ));
    }
    Ok(())
}

/// The host, lower case, without port.
pub(crate) fn host_of(parts: &Parts, host: Option<&str>) -> String {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let host = authority.or(host).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.to_ascii_lowercase()
}

/// Host and port as the client named them.
pub(crate) fn authority_of(uri: &http::Uri, headers: &HeaderMap) -> String {
    let from_uri = uri.authority().map(http::uri::Authority::as_str);
    let from_header = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    from_uri.or(from_header).unwrap_or_default().to_owned()
}

pub(crate) fn forward_for(headers: &mut HeaderMap, client: &Client) {
    let name = HeaderName::from_static("x-forwarded-for");
    let mut whole = String::new();
    for before in headers
        .get_all(&name)
        .iter()
        .filter_map(|v| v.to_str().ok())
    {
        whole.push_str(before);
        whole.push_str(", ");
    }
    if whole.is_empty() {
        headers.insert(name, client.ip.clone());
    } else {
        whole.push_str(client.ip.to_str().unwrap_or_default());
        if let Ok(value) = HeaderValue::from_str(&whole) {
            headers.insert(name, value);
        }
    }
    let scheme = HeaderValue::from_static(if client.tls.is_some() {
        "https"
    } else {
        "http"
    });
    headers.insert(HeaderName::from_static("x-forwarded-proto"), scheme);
    headers.insert(
        HeaderName::from_static("x-forwarded-port"),
        client.port_text.clone(),
    );
}

pub(crate) fn request_id(worker: &Worker, given: Option<&str>) -> Arc<str> {
    match given.filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX) {
        Some(id) => id.into(),
        None => {
            let mut rng = worker.rng.borrow_mut();
            let drawn = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
            let mut text = [0; 32];
            for (n, digit) in text.iter_mut().enumerate() {
                *digit = b"0123456789abcdef"[(drawn >> (4 * (31 - n)) & 15) as usize];
            }
            str::from_utf8(&text).unwrap_or_default().into()
        }
    }
}
