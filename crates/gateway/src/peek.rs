//! Reading a request body whole, within bounds, before anything is decided on it.

use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming};

use crate::budget::Buffered;
use crate::respond::Refusal;
use crate::upstream::{BadBody, Outgoing, trailers};
use crate::worker::Worker;

/// A body that has been read, with its share of the memory budget.
#[derive(Debug)]
pub(crate) struct Peeked {
    pub(crate) bytes: Bytes,
    trailers: Option<Arc<HeaderMap>>,
    _budget: Buffered,
}

impl Peeked {
    /// A body of nothing.
    pub(crate) fn empty(worker: &Rc<Worker>) -> Self {
        Self {
            bytes: Bytes::new(),
            trailers: None,
            _budget: Buffered::none(worker),
        }
    }

    /// It, as it goes to an endpoint.
    pub(crate) fn outgoing(&self) -> Outgoing {
        self.outgoing_as(self.bytes.clone())
    }

    /// The same with other bytes in front of its trailers.
    pub(crate) fn outgoing_as(&self, bytes: Bytes) -> Outgoing {
        Outgoing::of([bytes], self.trailers.clone())
    }
}

/// Reads the body whole, and what trails behind it.
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
    let mut gathered = Gathered {
        announced,
        ..Gathered::default()
    };
    let mut trailers = None;
    while !body.is_end_stream()
        && let Some(frame) = next(worker, &mut body).await?
    {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = settled(frame, &mut budget)?;
                break;
            }
        };
        if gathered.len() + data.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        if !budget.grow(data.len()) {
            return Err(out_of_memory());
        }
        gathered.push(data);
    }
    Ok(Peeked {
        bytes: gathered.into_bytes(),
        trailers,
        _budget: budget,
    })
}

/// What has come of a body: one piece as it came, or several put together.
#[derive(Default)]
struct Gathered {
    announced: Option<usize>,
    first: Bytes,
    whole: BytesMut,
}

impl Gathered {
    fn len(&self) -> usize {
        self.first.len() + self.whole.len()
    }

    fn push(&mut self, data: Bytes) {
        // A piece of a body of unknown length may be a small part of a large buffer, which it would
        // keep.
        let is_whole = self.announced == Some(data.len());
        if self.len() == 0 && is_whole {
            self.first = data;
            return;
        }
        if self.whole.capacity() == 0 {
            let capacity = self.announced.unwrap_or(data.len() * 2);
            self.whole.reserve(capacity);
        }
        self.whole.extend_from_slice(&data);
    }

    fn into_bytes(self) -> Bytes {
        if self.first.is_empty() {
            self.whole.freeze()
        } else {
            self.first
        }
    }
}

/// The next frame.
async fn next(worker: &Worker, body: &mut Incoming) -> Result<Option<Frame<Bytes>>, Refusal> {
    let limit = worker.shared.settings.body_stall_timeout;
    match tokio::time::timeout(limit, body.frame()).await {
        Err(_) => Err(Refusal::body_stalled(limit)),
        Ok(None) => Ok(None),
        Ok(Some(Err(error))) => Err(Refusal::bad_request(
            "body_broken",
            format!("reading the body: {error}"),
        )),
        Ok(Some(Ok(frame))) => Ok(Some(frame)),
    }
}

/// The trailers that are passed on, if there are any.
fn settled(frame: Frame<Bytes>, budget: &mut Buffered) -> Result<Option<Arc<HeaderMap>>, Refusal> {
    let mut fields = frame.into_trailers().unwrap_or_default();
    if !trailers::fit(&fields) {
        return Err(Refusal::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "trailers_too_large",
            BadBody::Trailers.to_string(),
        ));
    }
    trailers::settle(&mut fields);
    if !budget.grow(trailers::bytes_of(&fields)) {
        return Err(out_of_memory());
    }
    Ok((!fields.is_empty()).then(|| Arc::new(fields)))
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
