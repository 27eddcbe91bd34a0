//! Errors as vLLM words them: one JSON object, status by kind.

use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde_json::json;

use super::body::SimBody;
use crate::engine::SubmitError;

/// Why a request is refused.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    param: Option<&'static str>,
    message: String,
}

impl ApiError {
    /// The request is at fault.
    pub(super) fn bad_request(param: Option<&'static str>, message: impl Into<String>) -> Self {
        let (status, kind) = (StatusCode::BAD_REQUEST, "BadRequestError");
        Self {
            status,
            kind,
            param,
            message: message.into(),
        }
    }

    /// The body is not JSON, or not of the expected shape.
    pub(super) fn bad_json(error: &serde_json::Error) -> Self {
        let message = format!("[{{'type': 'json_invalid', 'loc': ('body',), 'msg': '{error}'}}]");
        Self {
            kind: "Bad Request",
            ..Self::bad_request(None, message)
        }
    }

    /// No such model or adapter.
    pub(super) fn unknown_model(name: &str) -> Self {
        let message = format!("The model `{name}` does not exist.");
        let (status, kind) = (StatusCode::NOT_FOUND, "NotFoundError");
        Self {
            status,
            kind,
            param: Some("model"),
            message,
        }
    }

    /// No such path, or not with this method.
    pub(super) fn status(status: StatusCode) -> Self {
        let message = status.canonical_reason().unwrap_or("Error");
        Self {
            status,
            kind: message,
            param: None,
            message: message.to_owned(),
        }
    }

    /// A failure that was asked for.
    pub(super) fn injected(status: StatusCode) -> Self {
        let message = "injected failure".to_owned();
        Self {
            status,
            kind: "InternalServerError",
            param: None,
            message,
        }
    }

    /// What the engine says of a request with `input` prompt and `output` output tokens.
    pub(super) fn submit(error: &SubmitError, input: usize, output: u32) -> Self {
        match error {
            SubmitError::TooLong {
                tokens,
                max_model_len,
            } => Self::bad_request(
                Some("input_tokens"),
                format!(
                    "This model's maximum context length is {max_model_len} tokens. However, you \
                     requested {output} output tokens and your prompt contains {input} input \
                     tokens, for a total of {tokens} tokens. Please reduce the length of the \
                     input prompt or the number of requested output tokens. \
                     (parameter=input_tokens, value={input})"
                ),
            ),
            SubmitError::Full { requests_max } => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                kind: "ServiceUnavailableError",
                param: None,
                message: format!(
                    "the server has {requests_max} requests in flight (max_num_queued_reqs); try \
                     again later"
                ),
            },
            SubmitError::Empty => {
                Self::bad_request(Some("max_tokens"), "max_tokens must be at least 1")
            }
            SubmitError::NoAdapters | SubmitError::Duplicate(_) => {
                Self::bad_request(None, error.to_string())
            }
        }
    }

    /// The answer that goes out.
    pub(super) fn response(&self) -> Response<SimBody> {
        let body = json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.status.as_u16(),
        }});
        let mut response = Response::new(SimBody::full(Bytes::from(body.to_string())));
        *response.status_mut() = self.status;
        let json = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }
}
