//! An answer of the picker itself, as the client gets it.

use bytes::Bytes;
use forebay_wire::ext_proc::{HeaderMutation, ImmediateResponse};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::mutation;
use crate::relay::Body;
use crate::respond::Refusal;

/// Characters of the picker's text that go into a message.
const TEXT_MAX: usize = 1024;

/// What of a refusal is not made here: fields, and the body if it is more than a sentence.
#[derive(Debug)]
pub(crate) struct Verbatim {
    fields: HeaderMutation,
    body: Option<Bytes>,
}

/// Turns an immediate response into a refusal. A text with a status of failure becomes the message of
/// an error in the client's own dialect; what has a content type of its own stays as it is. Its details
/// are for the record alone.
pub(super) fn refusal(
    immediate: ImmediateResponse,
    picker: &str,
    remark: &mut Option<Box<str>>,
) -> Refusal {
    let code = immediate.status.map_or(200, |status| status.code);
    let status = u16::try_from(code)
        .ok()
        .filter(|code| (200..600).contains(code));
    let status = status
        .and_then(|code| StatusCode::from_u16(code).ok())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if !immediate.details.is_empty() {
        *remark = Some(short(&immediate.details).into());
    }
    let fields = immediate.headers.unwrap_or_default();
    let failure = status.is_client_error() || status.is_server_error();
    let typed = mutation::value_set(&fields, "content-type").is_some();
    let text = short(&String::from_utf8_lossy(&immediate.body));
    let message = if text.is_empty() {
        format!("the endpoint picker {picker} answered {}", status.as_u16())
    } else {
        text
    };
    let again = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    let reason = if failure {
        "picker_refused"
    } else {
        "picker_answered"
    };
    Refusal {
        retry_after_s: again.then_some(1),
        verbatim: Some(Box::new(Verbatim {
            fields,
            body: (typed || !failure).then_some(immediate.body),
        })),
        ..Refusal::new(status, reason, message)
    }
}

fn short(text: &str) -> String {
    text.trim().chars().take(TEXT_MAX).collect()
}

impl Verbatim {
    /// Puts it into the response that was made of the rest.
    pub(crate) fn finish(&self, response: &mut Response<Body>) {
        if let Some(body) = &self.body {
            *response.body_mut() = if body.is_empty() {
                Body::empty()
            } else {
                Body::full(body.clone())
            };
            let text = HeaderValue::from_static("text/plain");
            response.headers_mut().insert(header::CONTENT_TYPE, text);
        }
        self.apply(response.headers_mut());
    }

    /// Puts its fields among those of a response.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        // What cannot be a field is left out: the answer is worth more than the field.
        let mut changed = headers.clone();
        if mutation::apply(&self.fields, &mut changed).is_ok() {
            *headers = changed;
        }
    }
}
