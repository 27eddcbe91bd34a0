//! One call: a request that a proxy asks about, and its response as far as it is shown.
//!
//! The order of things is [`super::protocol`]'s, the decision is that of the data plane's own requests:
//! read, rewrite, admit, pick ([`crate::reading`], [`crate::phases`]), and settle. A call that ends
//! before its response is over counts as a client that left, unless the response is not shown at all.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use forebay_decide::EndKind;
use forebay_dialect::Api;
use forebay_model::Moment;
use forebay_wire::ext_proc::{HeaderMutation, ProcessingRequest};
use http::Method;

use super::answer;
use super::decision::Asking;
use super::head::Noted;
use super::pools::{CallNames, Pools};
use super::protocol::{Body, Head, Machine, Replies, Step, Wanted};
use super::response::Exchange;
use super::wire::{Broken, Incoming, Outgoing};
use crate::budget::Buffered;
use crate::grpc::Code;
use crate::head::request_id;
use crate::record::{Draft, Ending, Record};
use crate::relay::Settle;
use crate::respond::Refusal;
use crate::worker::Worker;
use crate::{clock, peek};

/// How long a proxy that did not tell how it sends bodies may send none, before the request is taken
/// to be shown by its head alone.
const SILENCE_MAX: Duration = Duration::from_millis(300);

/// How calls are answered.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) pools: Pools,
    /// Endpoints named in an answer.
    pub(super) endpoints_max: usize,
    /// Responses are read for their usage wherever the proxy lets us.
    pub(super) response_bodies: bool,
    /// The fields of the conformance suite say what is picked.
    pub(super) test_selection: bool,
}

/// One call.
pub(super) struct Call<'a> {
    worker: &'a Rc<Worker>,
    manner: &'a Manner,
    names: CallNames,
    peer: SocketAddr,
    machine: Machine,
    /// The head of the request, while it is not decided on.
    head: Option<Box<Head>>,
    began: Option<(Moment, SystemTime)>,
    budget: Buffered,
    exchange: Option<Exchange>,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        worker: &'a Rc<Worker>,
        manner: &'a Manner,
        names: CallNames,
        peer: SocketAddr,
    ) -> Self {
        Self {
            worker,
            manner,
            names,
            peer,
            machine: Machine::new(worker.shared.settings.body_bytes_max),
            head: None,
            began: None,
            budget: Buffered::none(worker),
            exchange: None,
        }
    }

    /// Answers messages until the call is over.
    pub(super) async fn serve(mut self, mut incoming: Incoming, mut outgoing: Outgoing) {
        let ended = self.converse(&mut incoming, &mut outgoing).await;
        match ended {
            Ok(()) => {
                self.closed();
                outgoing.end(None);
            }
            Err(Broken::Gone) => self.closed(),
            Err(Broken::Full) => {
                let why = "the picker's memory for bodies is in use";
                outgoing.end(Some((Code::ResourceExhausted, why)));
            }
            Err(Broken::Wrong(why)) => {
                if self.worker.pickers.may_warn() {
                    tracing::warn!(peer = %self.peer, %why, "a proxy broke the protocol of external processing");
                }
                outgoing.end(Some((Code::InvalidArgument, &why)));
            }
        }
    }

    async fn converse(
        &mut self,
        incoming: &mut Incoming,
        outgoing: &mut Outgoing,
    ) -> Result<(), Broken> {
        let mut replies = Replies::new();
        loop {
            let step = if self.machine.may_wait_in_vain() {
                match tokio::time::timeout(SILENCE_MAX, incoming.next()).await {
                    Ok(message) => self.take(message?, &mut replies)?,
                    Err(_) => Some(self.machine.silent()),
                }
            } else {
                let message = incoming.next().await?;
                self.take(message, &mut replies)?
            };
            let Some(step) = step else {
                return Ok(());
            };
            match step {
                Step::Wait => {
                    if !self.affords_what_is_held() {
                        self.refuse(&peek::out_of_memory(), &mut replies);
                    }
                }
                Step::Head(head) => self.note(head),
                Step::Decide(head, body) => {
                    if let Some(head) = head {
                        self.note(head);
                    }
                    if self.affords_what_is_held() {
                        tokio::select! {
                            biased;
                            () = self.decide(body, &mut replies) => {}
                            () = poll_fn(|cx| outgoing.poll_gone(cx)) => return Err(Broken::Gone),
                        }
                    } else {
                        self.refuse(&peek::out_of_memory(), &mut replies);
                    }
                }
                Step::ResponseHead(head) => {
                    let (mutation, wanted) = match &mut self.exchange {
                        Some(exchange) => exchange.head(self.worker, self.manner, &head),
                        None => (HeaderMutation::default(), Some(Wanted::Head)),
                    };
                    self.machine.response_head(mutation, wanted, &mut replies);
                }
                Step::ResponseBody(piece, end) => {
                    let other = match &mut self.exchange {
                        Some(exchange) => exchange.piece(&piece, end),
                        None => None,
                    };
                    self.machine.response_piece(piece, other, end, &mut replies);
                }
                Step::ResponseOver => {
                    let rest = self.exchange.as_mut().map(Exchange::over);
                    self.machine
                        .response_over(rest.unwrap_or_default(), &mut replies);
                }
            }
            replies.drain(..).for_each(|reply| outgoing.reply(reply));
            outgoing.flush().await?;
            if self.exchange.is_some() {
                self.budget.resize(0);
            }
        }
    }

    fn take(
        &mut self,
        message: Option<ProcessingRequest>,
        replies: &mut Replies,
    ) -> Result<Option<Step>, Broken> {
        let Some(message) = message else {
            return Ok(None);
        };
        let step = self.machine.take(message, replies);
        step.map(Some)
            .map_err(|violation| Broken::Wrong(violation.to_string()))
    }

    /// Counts what is held of the body; false if there is no memory for it.
    fn affords_what_is_held(&mut self) -> bool {
        let held = self.machine.held_bytes();
        held == 0 || self.budget.resize(held)
    }

    fn note(&mut self, head: Box<Head>) {
        self.began = Some((clock::now(), SystemTime::now()));
        self.head = Some(head);
    }

    /// Says where the request goes.
    async fn decide(&mut self, body: Body, replies: &mut Replies) {
        let Some(head) = self.head.take() else {
            return;
        };
        let noted = Noted::of(&head);
        let live = self.worker.live();
        // From here on it is settled however this ends: a client may leave while it waits.
        let record = self.record(&noted, &body);
        let mut settle = Settle::new(Rc::clone(self.worker), record, None);
        let Some(record) = settle.record() else {
            return;
        };
        let asking = Asking {
            worker: self.worker,
            manner: self.manner,
            live: &live,
            names: &self.names,
            head: &head,
            noted: &noted,
            bodies: self.machine.shows_response_bodies(),
        };
        match asking.decide(record, body).await {
            Ok((decision, begun)) => {
                self.machine.decided(decision, replies);
                self.exchange = Some(Exchange::new(settle, begun));
            }
            Err(refusal) => self.answer(settle, &refusal, replies),
        }
    }

    /// Refuses what has not been decided on.
    fn refuse(&mut self, refusal: &Refusal, replies: &mut Replies) {
        let Some(head) = self.head.take() else {
            return;
        };
        let record = self.record(&Noted::of(&head), &Body::Unread);
        let settle = Settle::new(Rc::clone(self.worker), record, None);
        self.answer(settle, refusal, replies);
    }

    /// Answers the client in the place of an endpoint.
    fn answer(&mut self, mut settle: Settle, refusal: &Refusal, replies: &mut Replies) {
        if let Some(record) = settle.record() {
            let dialect = record.api.dialect();
            let answer = answer::immediate(refusal, dialect, &record.id, record.grpc);
            record.status = refusal.status.as_u16();
            record.reason = Some(refusal.reason);
            record.grpc_status = answer
                .grpc_status
                .and_then(|status| u16::try_from(status.status).ok());
            record.bytes_out = answer.body.len() as u64;
            self.machine.refused(answer, replies);
        }
        settle.now(Ending::Complete, EndKind::Cancelled, None);
        self.budget.resize(0);
    }

    fn record(&self, noted: &Noted<'_>, body: &Body) -> Draft {
        let (started, started_at) = self
            .began
            .unwrap_or_else(|| (clock::now(), SystemTime::now()));
        let path = noted.path();
        let host = noted.authority.split(':').next().unwrap_or_default();
        let telemetry = &self.worker.shared.telemetry;
        Draft::new(Record {
            id: request_id(self.worker, noted.id),
            started,
            started_at,
            client: noted.client().unwrap_or(self.peer),
            method: Method::from_bytes(noted.method.as_bytes()).unwrap_or_default(),
            path: path.into(),
            host: host.to_ascii_lowercase().into(),
            trace: telemetry.begin_trace(noted.traceparent),
            traceparent: noted.traceparent.map(Into::into),
            api: Api::of(noted.method, path),
            bytes_in: match body {
                Body::Whole(bytes) => bytes.len() as u64,
                Body::Empty | Body::Unread | Body::TooLong => 0,
            },
            http2: true,
            grpc: noted
                .content_type
                .is_some_and(|value| value.starts_with("application/grpc")),
            ..Record::default()
        })
    }

    /// The call is over: so is its exchange, whatever was shown of it.
    fn closed(&mut self) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.closed();
        }
    }
}
