//! Errors that the gateway itself answers with, in the shape that a client's library expects.
//!
//! Official clients choose the exception by status and show `message`; `type` follows the two
//! vendors' lists. What went wrong and which status that is, is decided where it is found; errors
//! of model servers are passed on as they are.

use serde_json::{Value, json};

use crate::path::{Api, Dialect};

/// An error to answer with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorBody<'a> {
    /// The HTTP status; of an error in mid-stream, the one that it would have been.
    pub status: u16,
    /// The reason in one word, such as `model_not_found`. Anthropic's shape has no place for it.
    pub code: Option<&'a str>,
    /// For people: whose fault, where, and what to do.
    pub message: &'a str,
    /// The request's member at fault, such as `model`. Anthropic's shape has no place for it.
    pub param: Option<&'a str>,
    /// The request's id. OpenAI's shape has no place for it.
    pub request_id: Option<&'a str>,
}

/// The `type` of an error with this status.
#[must_use]
pub const fn kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

impl ErrorBody<'_> {
    /// The body of an answer, `application/json`.
    #[must_use]
    pub fn render(&self, dialect: Dialect) -> Vec<u8> {
        let body = match dialect {
            Dialect::OpenAi => json!({ "error": self.openai() }),
            Dialect::Anthropic => self.anthropic(),
        };
        body.to_string().into_bytes()
    }

    /// The event that ends a stream of `api` which cannot go on. It is one only behind whole events
    /// ([`crate::events`]): nothing that follows half an event could keep clients from choking on it.
    #[must_use]
    pub fn render_event(&self, api: Api) -> Vec<u8> {
        let event = match (api, api.dialect()) {
            (_, Dialect::Anthropic) => format!("event: error\ndata: {}\n\n", self.anthropic()),
            (Api::Responses, Dialect::OpenAi) => {
                let mut data = self.openai();
                data["type"] = "error".into();
                format!("event: error\ndata: {data}\n\n")
            }
            (_, Dialect::OpenAi) => format!("data: {}\n\n", json!({ "error": self.openai() })),
        };
        event.into_bytes()
    }

    fn openai(&self) -> Value {
        json!({
            "message": self.message,
            "type": kind(self.status),
            "param": self.param,
            "code": self.code,
        })
    }

    fn anthropic(&self) -> Value {
        let mut body = json!({
            "type": "error",
            "error": { "type": kind(self.status), "message": self.message },
        });
        if let Some(id) = self.request_id {
            body["request_id"] = id.into();
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::ResponseObserver;
    use forebay_model::Moment;

    const LOST: ErrorBody<'_> = ErrorBody {
        status: 404,
        code: Some("model_not_found"),
        message: "no pool serves \"x\"",
        param: Some("model"),
        request_id: Some("r1"),
    };

    #[test]
    fn each_dialect_has_its_shape() {
        let parsed = |dialect| serde_json::from_slice::<Value>(&LOST.render(dialect)).unwrap();
        assert_eq!(
            parsed(Dialect::OpenAi),
            json!({"error": {"message": "no pool serves \"x\"", "type": "not_found_error",
                "param": "model", "code": "model_not_found"}})
        );
        assert_eq!(
            parsed(Dialect::Anthropic),
            json!({"type": "error", "request_id": "r1",
                "error": {"type": "not_found_error", "message": "no pool serves \"x\""}})
        );
    }

    #[test]
    fn types_follow_the_status() {
        let kinds = [400, 401, 404, 413, 418, 429, 500, 502, 503, 504].map(kind);
        assert_eq!(
            kinds.join(" "),
            "invalid_request_error authentication_error not_found_error request_too_large \
             invalid_request_error rate_limit_error api_error api_error overloaded_error timeout_error"
        );
    }

    /// The event, after a whole one.
    fn check_event(api: Api, expected_start: &str, member: &str) {
        let event = String::from_utf8(LOST.render_event(api)).unwrap();
        assert!(event.starts_with(expected_start), "{event}");
        let (_, data) = event.trim_end().split_once("data: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data.pointer(member), Some(&Value::from(LOST.message)));
        let mut observer = ResponseObserver::new(api, true);
        observer.push(b"data: {\"choices\":[]}\n\n", Moment::ORIGIN);
        observer.push(event.as_bytes(), Moment::ORIGIN);
        assert!(observer.finish(Moment::ORIGIN).saw_error, "{event}");
    }

    #[test]
    fn a_broken_stream_ends_with_an_event_of_its_dialect() {
        check_event(Api::ChatCompletions, "data: {\"error\":", "/error/message");
        check_event(Api::Responses, "event: error\ndata: {", "/message");
        check_event(Api::Messages, "event: error\ndata: {", "/error/message");
    }
}
