//! What gRPC adds to HTTP: refusals and broken streams in its own words.
//!
//! gRPC's clients look for a status in the trailers, or in the head of an answer that is nothing
//! else; an HTTP status other than 200 tells them little.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::relay::Body;
use crate::respond::Refusal;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// When a client with a policy for retries should try again, in milliseconds.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The statuses of gRPC that are given here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Code {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl Code {
    /// What a refusal with this status is in gRPC.
    pub(crate) fn of(status: StatusCode, reason: &str) -> Self {
        match status.as_u16() {
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 if reason == "route_not_found" => Self::Unimplemented,
            404 => Self::NotFound,
            405 | 501 => Self::Unimplemented,
            408 | 504 => Self::DeadlineExceeded,
            413 | 429 | 431 => Self::ResourceExhausted,
            // Another connection, or a later try, may bring it there.
            421 => Self::Unavailable,
            400..=499 => Self::InvalidArgument,
            // A backend that does not hold, is not there or does not answer. Whatever else a broken
            // reference may be told to answer is no word of its method either.
            _ => Self::Unavailable,
        }
    }
}

/// Whether a request's content type is one of gRPC's.
pub(crate) fn is_content_type(value: &HeaderValue) -> bool {
    let value = value.as_bytes();
    let named = value.strip_prefix(b"application/grpc");
    named.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b'-' | b';' | b' ')))
}

/// A refusal as an answer that is nothing but a head.
pub(crate) fn refusal(refusal: &Refusal) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    if let Some(verbatim) = &refusal.verbatim {
        // Before what follows: its type is of a body that is not sent here.
        verbatim.apply(headers);
    }
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    let code = Code::of(refusal.status, refusal.reason);
    headers.extend(trailers(code, &refusal.message));
    refusal.sign(headers);
    if let Some(seconds) = refusal.retry_after_s {
        headers.insert(PUSHBACK, HeaderValue::from(u64::from(seconds) * 1000));
    }
    response
}

/// The end of a stream that did not go well.
pub(crate) fn trailers(code: Code, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(STATUS, HeaderValue::from(code as u16));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(message)) {
        trailers.insert(MESSAGE, message);
    }
    trailers
}

/// The status in a head or in trailers, if it is there.
pub(crate) fn status(fields: &HeaderMap) -> Option<u16> {
    fields.get(STATUS)?.to_str().ok()?.parse().ok()
}

/// The status of HTTP that means the same as a status of gRPC by which an endpoint says that it did not
/// do its part: UNKNOWN, of what it did not catch, INTERNAL and DATA_LOSS are 500, UNAVAILABLE is 503.
/// The others are about the request, the client's rights or the client's time.
pub(crate) fn fault(code: u16) -> Option<u16> {
    match code {
        2 | 13 | 15 => Some(500),
        14 => Some(503),
        _ => None,
    }
}

/// As the protocol has it: printable ASCII without `%` as it is, every other byte as `%XX`.
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let _infallible = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_happened_in_the_words_of_grpc() {
        let check = |status: u16, reason: &'static str, expected: Code| {
            let status = StatusCode::from_u16(status).expect("a status");
            let answer = refusal(&Refusal::new(status, reason, "why\n100 %: ä"));
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["content-type"], "application/grpc");
            assert_eq!(
                answer.headers()["grpc-status"],
                (expected as u16).to_string().as_str(),
                "{status} {reason}"
            );
            let message = &answer.headers()["grpc-message"];
            assert_eq!(message, "why%0A100 %25: %C3%A4");
        };
        check(404, "route_not_found", Code::Unimplemented);
        check(404, "model_not_found", Code::NotFound);
        check(400, "invalid_json", Code::InvalidArgument);
        check(405, "connect_refused", Code::Unimplemented);
        check(408, "body_stalled", Code::DeadlineExceeded);
        check(413, "body_too_large", Code::ResourceExhausted);
        check(421, "misdirected_request", Code::Unavailable);
        check(429, "queue_full", Code::ResourceExhausted);
        check(500, "backend_invalid", Code::Unavailable);
        check(502, "backend_tls", Code::Unavailable);
        check(503, "no_ready_endpoint", Code::Unavailable);
        check(504, "upstream_timeout", Code::DeadlineExceeded);
    }

    #[test]
    fn of_the_statuses_of_an_endpoint_those_that_blame_itself_are_faults() {
        let faults = (0..=17).filter_map(|code| Some((code, fault(code)?)));
        let faults: Vec<_> = faults.collect();
        assert_eq!(faults, [(2, 500), (13, 500), (14, 503), (15, 500)]);
    }

    #[test]
    fn content_types_of_grpc_are_known() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", true),
            ("application/grpc; x=y", true),
            ("application/grpcx", false),
            ("application/json", false),
        ] {
            let value = HeaderValue::from_static(value);
            assert_eq!(is_content_type(&value), expected, "{value:?}");
        }
    }
}
