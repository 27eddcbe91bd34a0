//! Reading a request body whole, within bounds, before anything is decided on it.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use crate::budget::Buffered;
use crate::respond::Refusal;
use crate::worker::Worker;

/// A body that has been read, with its share of the memory budget.
#[derive(Debug)]
pub(crate) struct Peeked {
    pub(crate) bytes: Bytes,
    _budget: Buffered,
}

impl Peeked {
    /// A body of nothing.
    pub(crate) fn empty(worker: &Rc<Worker>) -> Self {
        Self {
            bytes: Bytes::new(),
            _budget: Buffered::none(worker),
        }
    }
}

/// Reads the body whole.
///
/// A body that arrived in one piece is not copied; a longer one is collected once into a buffer of
/// the announced length. Only bytes that have come count against the budget: a client that
/// announces much and sends nothing takes nothing from others.
pub(crate) async fn read(
    worker: &Rc<Worker>,
    mut body: Incoming,
    bytes_max: usize,
) -> Result<Peeked, Refusal> {
    let announced = body
        .size_hint()
        .exact()
        .map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    if announced.is_some_and(|n| n > bytes_max) {
        return Err(too_large(bytes_max));
    }
    if !worker.shared.may_buffer(announced.unwrap_or(0)) {
        return Err(out_of_memory());
    }
    let mut budget = Buffered::none(worker);
    let Some(first) = next(worker, &mut body).await? else {
        return Ok(Peeked {
            bytes: Bytes::new(),
            _budget: budget,
        });
    };
    if announced == Some(first.len()) {
        if !budget.grow(first.len()) {
            return Err(out_of_memory());
        }
        return Ok(Peeked {
            bytes: first,
            _budget: budget,
        });
    }
    let mut whole = BytesMut::with_capacity(announced.unwrap_or(first.len() * 2));
    let mut piece = Some(first);
    while let Some(data) = piece {
        if whole.len() + data.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        if !budget.grow(data.len()) {
            return Err(out_of_memory());
        }
        whole.extend_from_slice(&data);
        drop(data);
        piece = next(worker, &mut body).await?;
    }
    Ok(Peeked {
        bytes: whole.freeze(),
        _budget: budget,
    })
}

/// The next piece of data; trailers of a request are dropped.
async fn next(worker: &Worker, body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    loop {
        let limit = worker.shared.settings.body_stall_timeout;
        let frame = match tokio::time::timeout(limit, body.frame()).await {
            Err(_) => return Err(Refusal::body_stalled(limit)),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                return Err(Refusal::bad_request(
                    "body_broken",
                    format!("reading the body: {error}"),
                ));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
}

pub(crate) fn too_large(bytes_max: usize) -> Refusal {
    let message = format!("the body is longer than {bytes_max} bytes, the limit of this gateway");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

pub(crate) fn out_of_memory() -> Refusal {
    let message = "the gateway's memory for request bodies is in use; try again";
    Refusal {
        retry_after_s: Some(1),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "gateway_busy", message)
    }
}
