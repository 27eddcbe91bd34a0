//! One call to a picker, up to the choice: what is shown of the request, and what comes of the answer.
//!
//! Which replica is called, and what a failure leads to, is in [`super`].

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use forebay_model::pool::ExternalPicker;
use forebay_wire::ext_proc::ImmediateResponse;
use forebay_wire::ext_proc::processing_mode::HeaderSendMode;
use http::HeaderMap;
use tokio::time::Instant;

use super::call::Call;
use super::destination::{self, Destinations};
use super::message::{self, RequestHead};
use super::mutation;
use super::protocol::{self, HeadAnswer, Protocol, Side, Step, Violation};
use super::upload::Upload;
use super::{Asked, Failure, Question, SILENCE_MAX, is_ready, name, within};
use crate::budget::Buffered;
use crate::exchange::Exchange;
use crate::pools::PoolRuntime;
use crate::record::Consultation;
use crate::upstream::Outgoing;

/// A call with what has been said on it.
pub(super) struct Talk {
    pub(super) call: Call,
    pub(super) protocol: Protocol,
    /// What came back of the body.
    pieces: Vec<Bytes>,
    /// The picker has ended the call: it does not want to see the response.
    over: bool,
    silent: bool,
}

/// What the picker has said of the request.
pub(super) enum Heard {
    Chosen(Box<HeadAnswer>),
    Immediate(Box<ImmediateResponse>),
}

impl Talk {
    pub(super) fn new(ex: &Exchange, call: Call) -> Self {
        Self {
            call,
            protocol: Protocol::new(ex.worker.shared.settings.body_bytes_max),
            pieces: Vec::new(),
            over: false,
            silent: false,
        }
    }

    /// Shows the request, and waits until the picker has said what becomes of all of it.
    pub(super) async fn request(
        &mut self,
        ex: &Exchange,
        question: &Question<'_>,
        subset: Option<&[SocketAddr]>,
        until: Instant,
    ) -> Result<Heard, Failure> {
        let mut upload = Upload::of(question.body);
        let head = RequestHead {
            method: question.method.as_str(),
            path: question.target,
            authority: question.host,
            scheme: if ex.client.tls.is_some() {
                "https"
            } else {
                "http"
            },
            fields: question.shown,
            length: upload.length(),
            subset,
        };
        let bodies = ex.worker.shared.settings.picker.response_bodies;
        // A request of which the body is not read looks as if it had none.
        let end = upload.is_empty();
        message::request_head(&head, bodies, end, self.call.queue());
        self.protocol.send_head(Side::Request, end);
        let mut answer = None;
        let mut silent_since = None;
        while !self.protocol.is_over(Side::Request) {
            let silent = self.protocol.has_head(Side::Request)
                && self.protocol.body(Side::Request).is_sent()
                && self.protocol.body(Side::Request).is_untouched();
            let patience = silent
                .then(|| *silent_since.get_or_insert_with(Instant::now) + SILENCE_MAX)
                .filter(|patience| *patience < until);
            let next = upload.next(&mut self.call, &mut self.protocol);
            let message = match within(patience.unwrap_or(until), next).await {
                Some(message) => message?,
                None if patience.is_some() => {
                    self.silent = true;
                    self.protocol.give_up_body(Side::Request);
                    break;
                }
                None => return Err(Failure::Timeout),
            };
            let Some(message) = message else {
                self.protocol.close(Side::Request)?;
                self.over = true;
                break;
            };
            match self.protocol.answer(message)? {
                Step::Nothing | Step::Trailers(_) => {}
                Step::Head(head) => answer = Some(head),
                Step::Body(piece) => self.pieces.push(piece),
                Step::Immediate(immediate) => return Ok(Heard::Immediate(immediate)),
            }
        }
        answer
            .map(Heard::Chosen)
            .ok_or_else(|| Violation::Unanswered("the head").into())
    }

    /// Acts on the answer: what is sent on, and where to.
    pub(super) fn chosen(
        mut self,
        ex: &Exchange,
        runtime: &Arc<PoolRuntime>,
        picker: &ExternalPicker,
        question: &mut Question<'_>,
        head: Box<HeadAnswer>,
        notes: &mut Consultation,
    ) -> Result<Box<Asked>, Failure> {
        // As it is by now: the picker may have waited for an endpoint that has just come.
        let pool = runtime.pool();
        let usable = |address: &SocketAddr| is_ready(&pool, address);
        let Destinations { order, dropped } = destination::read(&head, usable)?;
        notes.dropped = dropped;
        if order.is_empty() {
            let why = match notes.dropped.first() {
                Some((name, why)) => format!("{} is {why}", name.escape_debug()),
                None => "its answer names none".to_owned(),
            };
            return Err(Failure::NoEndpoint(why));
        }
        let mut headers = question.headers.clone();
        let line = mutation::apply(&head.mutation, &mut headers)?;
        let mut budget = Buffered::none(&ex.worker);
        let trailers = question.body.trailers().cloned();
        let body = self.body(head.replaced.clone(), trailers);
        if let Some(body) = &body
            && !budget.grow(usize::try_from(body.length().unwrap_or(0)).unwrap_or(usize::MAX))
        {
            return Err(Failure::Full);
        }
        *question.headers = headers;
        if let Some(path) = line.path {
            *question.target = path;
        }
        if self.silent {
            notes.remark = Some("it said nothing of the body, which goes as it is".into());
        } else if body.is_some() {
            notes.remark = Some("it changed the body".into());
        }
        let settings = &ex.worker.shared.settings.picker;
        let mode = head.mode.as_ref();
        let skips_response = self.over
            || mode.is_some_and(|mode| mode.response_header_mode() == HeaderSendMode::Skip);
        let bodies =
            settings.response_bodies && !self.silent && !mode.is_some_and(protocol::wants_no_body);
        let call = if skips_response {
            self.call.farewell();
            None
        } else {
            Some(self.call)
        };
        Ok(Box::new(Asked {
            order,
            body,
            call,
            protocol: self.protocol,
            name: name(picker),
            failure_mode: picker.failure_mode,
            bodies,
            failed: None,
            _budget: budget,
        }))
    }

    /// The body that goes on, if it is not the one that was shown, with the trailers of that one.
    fn body(
        &mut self,
        replaced: Option<Bytes>,
        trailers: Option<Arc<HeaderMap>>,
    ) -> Option<Outgoing> {
        if let Some(bytes) = replaced {
            return Some(Outgoing::of([bytes], trailers));
        }
        if !self.protocol.body(Side::Request).is_changed() {
            return None;
        }
        let rest = self
            .protocol
            .give_up_body(Side::Request)
            .unwrap_or_default();
        let pieces = std::mem::take(&mut self.pieces);
        Some(Outgoing::of(pieces.into_iter().chain(rest), trailers))
    }
}
