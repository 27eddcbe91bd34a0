//! Answers made here: one type for every refusal, one place that turns it into a response.

use std::time::Duration;

use bytes::Bytes;
use forebay_decide::{GateRefusal, Refusal as PickRefusal};
use forebay_dialect::Dialect;
use forebay_dialect::error::ErrorBody;
use forebay_model::route::{Broken, ServicePort};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::external::Verbatim;
use crate::relay::Body;
use crate::upstream::SendError;

/// Why a request is not served, as the client will see it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// One word for machines: `code` of the body, `x-forebay-reason`, metrics.
    pub(crate) reason: &'static str,
    /// For people: whose fault, where, what to do.
    pub(crate) message: String,
    /// The field of the request that is at fault.
    pub(crate) param: Option<&'static str>,
    /// Seconds after which trying again may help.
    pub(crate) retry_after_s: Option<u32>,
    /// The matching value of `x-llm-d-request-dropped-reason`, which llm-d's clients read.
    pub(crate) dropped: Option<&'static str>,
    /// What somebody else put it like.
    pub(crate) verbatim: Option<Box<Verbatim>>,
}

impl Refusal {
    pub(crate) fn new(
        status: StatusCode,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            reason,
            message: message.into(),
            param: None,
            retry_after_s: None,
            dropped: None,
            verbatim: None,
        }
    }

    pub(crate) fn bad_request(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason, message)
    }

    /// For a client that stopped within its body.
    pub(crate) fn body_stalled(limit: Duration) -> Self {
        let error = SendError::ClientStalled(limit);
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            error.reason(),
            error.to_string(),
        )
    }

    pub(crate) fn no_route(host: &str, path: &str) -> Self {
        let message = format!("no route matches {host}{path}; see the HTTPRoutes of this gateway");
        Self::new(StatusCode::NOT_FOUND, "route_not_found", message)
    }

    pub(crate) fn broken(broken: &Broken) -> Self {
        let status =
            StatusCode::from_u16(broken.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(
            status,
            "backend_invalid",
            format!("{}: {}", broken.reason, broken.message),
        )
    }

    pub(crate) fn not_picked(refusal: &PickRefusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            PickRefusal::Saturated { .. } | PickRefusal::SloOutOfReach { .. } => Self {
                retry_after_s: Some(1),
                dropped: Some("rejected-saturated"),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "saturated", message)
            },
            PickRefusal::UnknownProfile => Self::bad_request("unknown_profile", message),
            PickRefusal::NoReadyEndpoint { .. }
            | PickRefusal::SubsetEmpty
            | PickRefusal::Filtered { .. } => Self {
                retry_after_s: Some(1),
                dropped: Some("rejected-no-endpoints"),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "no_ready_endpoint",
                    message,
                )
            },
        }
    }

    /// For a request that may not wait for its pool, or not any longer. llm-d's words for it are
    /// those of requests that reached no server and may safely be sent again.
    pub(crate) fn not_queued(refusal: GateRefusal) -> Self {
        let (reason, dropped) = match refusal {
            GateRefusal::QueueFull => ("queue_full", "rejected-saturated"),
            GateRefusal::TooLarge => ("queue_too_large", "rejected-saturated"),
            GateRefusal::Expired => ("queue_expired", "rejected-ttl-expired"),
            GateRefusal::Displaced => ("queue_displaced", "rejected-saturated"),
        };
        Self {
            retry_after_s: Some(1),
            dropped: Some(dropped),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, reason, refusal.to_string())
        }
    }

    /// For a request that waited for its pool when the process was told to stop.
    pub(crate) fn draining() -> Self {
        let message = "the pool is saturated and this gateway is shutting down: try again, which \
                       leads to another";
        Self {
            retry_after_s: Some(1),
            dropped: Some("rejected-shutting-down"),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
        }
    }

    pub(crate) fn not_sent(error: &SendError, whom: &str) -> Self {
        let message = format!("{whom}: {error}");
        match error {
            SendError::Timeout(_) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", message)
            }
            SendError::ClientBody => Self::bad_request("client_body", message),
            SendError::ClientStalled(limit) => Self::body_stalled(*limit),
            SendError::Connect(_) => Self {
                retry_after_s: Some(1),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "upstream_connect", message)
            },
            SendError::Tls(_) => Self::new(StatusCode::BAD_GATEWAY, "backend_tls", message),
            SendError::Reset(_) => Self::new(StatusCode::BAD_GATEWAY, "upstream_reset", message),
            SendError::Picker(_) => Self {
                retry_after_s: Some(1),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "picker_unavailable",
                    message,
                )
            },
            SendError::Protocol(_) => {
                Self::new(StatusCode::BAD_GATEWAY, "upstream_protocol", message)
            }
        }
    }

    /// For a Service whose policy for TLS cannot be followed.
    pub(crate) fn backend_tls(service: &ServicePort, why: &str) -> Self {
        let message = format!("TLS towards Service {service} is not possible: {why}");
        Self::new(StatusCode::BAD_GATEWAY, "backend_tls", message)
    }

    /// For a request on a connection that was made for another listener, or under other terms than
    /// are in force. Its client may send it again on a new connection, whatever its method.
    pub(crate) fn misdirected(host: &str) -> Self {
        let message = format!(
            "this connection was made for another server name than {host}: send the request again \
             on a connection that names it"
        );
        Self::new(
            StatusCode::MISDIRECTED_REQUEST,
            "misdirected_request",
            message,
        )
    }

    pub(crate) fn timed_out(what: &str) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "request_timeout",
            format!("the {what} of this route passed before the endpoint answered"),
        )
    }

    /// The response, in the shape that clients of `dialect` parse.
    pub(crate) fn response(&self, dialect: Dialect, request_id: &str) -> Response<Body> {
        let (headers, body) = self.parts(dialect, request_id);
        let mut response = Response::new(Body::full(body));
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        if let Some(verbatim) = &self.verbatim {
            verbatim.finish(&mut response);
        }
        response
    }

    /// Its fields and its body.
    pub(crate) fn parts(&self, dialect: Dialect, request_id: &str) -> (HeaderMap, Bytes) {
        let body = ErrorBody {
            status: self.status.as_u16(),
            code: Some(self.reason),
            message: &self.message,
            param: self.param,
            request_id: Some(request_id),
        };
        let body = Bytes::from(body.render(dialect));
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        self.sign(&mut headers);
        (headers, body)
    }

    /// The fields for machines, which every form of a refusal has.
    pub(crate) fn sign(&self, headers: &mut HeaderMap) {
        headers.insert(
            HeaderName::from_static("x-forebay-reason"),
            HeaderValue::from_static(self.reason),
        );
        if let Some(dropped) = self.dropped {
            headers.insert(
                HeaderName::from_static("x-llm-d-request-dropped-reason"),
                HeaderValue::from_static(dropped),
            );
        }
    }
}
