//! One call: a request that a proxy asks about, and its response as far as it is shown.
//!
//! The order of things is [`super::protocol`]'s, the decision is that of the data plane's own requests:
//! read, rewrite, admit, pick ([`crate::reading`], [`crate::phases`]), and settle. A call that ends
//! before its response is over counts as a client that left, unless the response is not shown at all.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use forebay_decide::{Ask, End, EndKind, FailureKind, Waiter};
use forebay_dialect::observe::ResponseObserver;
use forebay_dialect::splice::ModelRestorer;
use forebay_dialect::{Api, BodyKind};
use forebay_model::Pool;
use forebay_wire::ext_proc::HeaderMutation;
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::answer;
use super::head::{self, Noted};
use super::pools::{CallNames, Pools};
use super::protocol::{Body, Decision, Head, Machine, Replies, Step, Wanted};
use super::wire::{Broken, Incoming, Outgoing};
use crate::budget::Buffered;
use crate::grpc::Code;
use crate::head::request_id;
use crate::phases::{self, Order};
use crate::pools::{InFlight, PoolRuntime};
use crate::reading::{Controls, Reading, renamed};
use crate::record::{Draft, Ending, Record, Try};
use crate::relay::Settle;
use crate::respond::Refusal;
use crate::view::View;
use crate::worker::Worker;
use crate::{clock, exact, peek};

/// How long a proxy that did not tell how it sends bodies may send none, before the request is taken
/// to be shown by its head alone.
const SILENCE_MAX: Duration = Duration::from_millis(300);

/// How calls are answered.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) pools: Pools,
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
    began: Option<(forebay_model::Moment, SystemTime)>,
    budget: Buffered,
    exchange: Option<Exchange>,
}

/// A request that has been decided on.
struct Exchange {
    settle: Settle,
    order: Order,
    runtime: Arc<PoolRuntime>,
    prompt_tokens: u32,
    stream: bool,
    /// Names of the model: what the server saw, what the client asked for.
    renamed: Option<(Arc<str>, Box<str>)>,
    response: Shown,
    observer: Option<ResponseObserver>,
    restorer: Option<ModelRestorer>,
}

/// What of the response has been shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shown {
    Nothing,
    Head(u16),
    All,
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
            let held = self.machine.held_bytes();
            match step {
                Step::Wait if held > 0 && !self.budget.resize(held) => {
                    self.refuse(&peek::out_of_memory(), &mut replies);
                }
                Step::Wait => {}
                Step::Head(head) => self.note(head),
                Step::Decide(head, body) => {
                    if let Some(head) = head {
                        self.note(head);
                    }
                    tokio::select! {
                        biased;
                        () = self.decide(body, &mut replies) => {}
                        () = poll_fn(|cx| outgoing.poll_gone(cx)) => return Err(Broken::Gone),
                    }
                }
                Step::ResponseHead(head) => {
                    let mutation = match &mut self.exchange {
                        Some(exchange) => exchange.head(self.worker, self.manner, &head),
                        None => HeaderMutation::default(),
                    };
                    self.machine.response_head(mutation, &mut replies);
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
        message: Option<forebay_wire::ext_proc::ProcessingRequest>,
        replies: &mut Replies,
    ) -> Result<Option<Step>, Broken> {
        let Some(message) = message else {
            return Ok(None);
        };
        let step = self.machine.take(message, replies);
        step.map(Some)
            .map_err(|violation| Broken::Wrong(violation.to_string()))
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
        let mut record = self.record(&noted, &body);
        let bodies = self.machine.shows_response_bodies();
        let asking = Asking {
            worker: self.worker,
            manner: self.manner,
            live: &live,
            names: &self.names,
            head: &head,
            noted: &noted,
            bodies,
        };
        // Boxed, so that calls that wait for their turn are the only ones to carry it along.
        match asking.decide(&mut record, body).await {
            Ok((decision, exchange)) => {
                self.machine.decided(decision, replies);
                let settle = Settle::new(Rc::clone(self.worker), record, Some(exchange.flight));
                self.exchange = Some(Exchange {
                    settle,
                    order: exchange.order,
                    runtime: exchange.runtime,
                    prompt_tokens: exchange.prompt_tokens,
                    stream: exchange.stream,
                    renamed: exchange.renamed,
                    response: Shown::Nothing,
                    observer: None,
                    restorer: None,
                });
            }
            Err(refusal) => self.answer(record, &refusal, replies),
        }
    }

    /// Refuses what has not been decided on.
    fn refuse(&mut self, refusal: &Refusal, replies: &mut Replies) {
        let Some(head) = self.head.take() else {
            return;
        };
        let record = self.record(&Noted::of(&head), &Body::Unread);
        self.answer(record, refusal, replies);
    }

    fn answer(&mut self, mut record: Draft, refusal: &Refusal, replies: &mut Replies) {
        let answer = answer::immediate(refusal, record.api.dialect(), &record.id, record.grpc);
        record.status = refusal.status.as_u16();
        record.reason = Some(refusal.reason);
        record.bytes_out = answer.body.len() as u64;
        record.finished = clock::now();
        if let Some(record) = record.into_inner() {
            self.worker.desk.settle(record);
        }
        self.machine.refused(answer, replies);
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

/// A request while it is decided on.
struct Asking<'a> {
    worker: &'a Rc<Worker>,
    manner: &'a Manner,
    live: &'a View,
    names: &'a CallNames,
    head: &'a Head,
    noted: &'a Noted<'a>,
    /// The response's body will be shown.
    bodies: bool,
}

/// What an exchange begins with.
struct Begun {
    flight: InFlight,
    order: Order,
    runtime: Arc<PoolRuntime>,
    prompt_tokens: u32,
    stream: bool,
    renamed: Option<(Arc<str>, Box<str>)>,
}

impl Asking<'_> {
    async fn decide(&self, record: &mut Record, body: Body) -> Result<(Decision, Begun), Refusal> {
        let Self { worker, live, .. } = *self;
        let name = self.manner.pools.of(live, self.names, self.head)?;
        record.pool = Some(live.name(name));
        let (Some(pool), Some(runtime)) = (live.snapshot.pools.get(name), live.pools.get(name))
        else {
            return Err(super::pools::gone(name));
        };
        let body = match body {
            Body::Whole(bytes) => Some(bytes),
            Body::Empty | Body::Unread => None,
            Body::TooLong => {
                return Err(peek::too_large(worker.shared.settings.body_bytes_max));
            }
        };
        let (controls, gone) = self.controls(pool);
        record.priority = controls.priority;
        let reading = Reading::of(record.api, self.noted.content_type, body.as_ref())?;
        record.model.clone_from(&reading.model);
        record.stream = reading.stream;
        let session = controls.session.or_else(|| reading.session(body.as_ref()));
        let served_name = phases::rewrite(worker, record, pool, &reading);
        let model = served_name.as_deref().or(reading.model.as_deref());
        let waiter = Waiter {
            priority: controls.priority,
            fairness: controls.fairness,
            bytes: body.as_ref().map_or(0, Bytes::len),
        };
        let no_deadline: Option<Instant> = None;
        let admitting = phases::admit(worker, record, runtime, model, waiter, no_deadline);
        let place = admitting.await?;
        let (order, flight) = self.pick(
            record,
            pool,
            runtime,
            &reading,
            body.as_ref(),
            model,
            session,
        )?;
        // It is booked: the room that was kept for it is no longer needed.
        drop(place);
        record.tries.push(Try {
            endpoint: flight.address(),
            failure: None,
        });
        let body = match (&body, reading.model_at, served_name.as_deref()) {
            (Some(body), Some(at), Some(name)) => Some(renamed(body, at, name)),
            _ => None,
        };
        let asked = reading.model;
        let decision = self.decision(record, &order, gone, body, served_name.is_some());
        let begun = Begun {
            flight,
            order,
            runtime: Arc::clone(runtime),
            prompt_tokens: reading.prompt_tokens,
            stream: record.stream,
            renamed: served_name.zip(asked),
        };
        Ok((decision, begun))
    }

    /// What the client's fields ask for, and which of them go no further.
    fn controls(&self, pool: &Pool) -> (Controls, Vec<String>) {
        let mut controls = Controls::default();
        let mut gone = Vec::new();
        for field in head::fields(self.head) {
            if controls.note(pool, &field.key, head::value(field)) {
                gone.push(field.key.clone());
            }
        }
        (controls, gone)
    }

    fn pick(
        &self,
        record: &mut Record,
        pool: &Pool,
        runtime: &Arc<PoolRuntime>,
        reading: &Reading,
        body: Option<&Bytes>,
        model: Option<&str>,
        session: Option<u64>,
    ) -> Result<(Order, InFlight), Refusal> {
        let worker = self.worker;
        let mut hashes = worker.hashes.take();
        hashes.clear();
        let mut chains = worker.token_chains.take();
        let mut exact = None;
        if forebay_decide::reads_prefix(&pool.picker) {
            reading.hash_prompt(pool, body, model, &mut hashes);
            let api = record.api;
            exact = exact::hash_tokens(worker, api, runtime, reading, body, model, &mut chains);
        }
        let subset = match self.manner.test_selection {
            true => super::test_selection::of(pool, self.noted).or_else(|| head::subset(self.head)),
            false => head::subset(self.head),
        };
        let fields = head::told(self.head, &pool.picker);
        let estimated = phases::ask(record, reading, model, &hashes, session);
        let ask = Ask {
            subset: subset.as_deref(),
            slo: head::slo(self.head),
            fields: &fields,
            tokens: if exact.is_some() { &chains } else { &[] },
            prompt_tokens: exact.unwrap_or(estimated.prompt_tokens),
            ..estimated
        };
        let picked = phases::pick(worker, record, runtime, &ask);
        let picked = match (picked, subset.as_deref()) {
            (Ok((_, flight)), Some(subset)) if self.manner.test_selection => Ok(
                super::test_selection::ordered(worker, runtime, &ask, flight, subset),
            ),
            (picked, _) => picked,
        };
        hashes.clear();
        worker.hashes.replace(hashes);
        worker.token_chains.replace(chains);
        picked.map_err(|refusal| Refusal::not_picked(&refusal))
    }

    fn decision(
        &self,
        record: &Record,
        order: &[SocketAddr],
        gone: Vec<String>,
        body: Option<Bytes>,
        restores: bool,
    ) -> Decision {
        let (destination, metadata) = answer::destination(order);
        let mut remove_headers = gone;
        remove_headers.retain(|name| name != crate::external::destination::DESTINATION);
        let mut set_headers = vec![destination];
        if self.noted.id != Some(&*record.id) {
            set_headers.push(answer::set("x-request-id", record.id.to_string()));
        }
        if let Some(trace) = &record.trace {
            set_headers.push(answer::set("traceparent", trace.traceparent()));
        }
        if let Some(body) = &body {
            set_headers.push(answer::set("content-length", body.len().to_string()));
        }
        let generates = record.api.body() != BodyKind::Opaque;
        let wanted = match generates && (restores || self.manner.response_bodies) {
            true => Wanted::Bodies,
            false => Wanted::Head,
        };
        // Usage is read in passing, which needs the answer as it is.
        if generates && self.noted.accepts_encodings && (self.bodies || wanted == Wanted::Bodies) {
            remove_headers.push("accept-encoding".to_owned());
        }
        Decision {
            mutation: HeaderMutation {
                set_headers,
                remove_headers,
            },
            metadata: Some(metadata),
            body,
            response: Some(wanted),
        }
    }
}

impl Exchange {
    /// Takes note of the head of the response.
    fn head(&mut self, worker: &Rc<Worker>, manner: &Manner, head: &Head) -> HeaderMutation {
        let status = head::status(head);
        self.response = Shown::Head(status);
        let served = head::served(head);
        if let Some(served) = served {
            self.served_by(worker, served);
        }
        if let Some(record) = self.settle.record() {
            record.status = status;
        }
        let success = StatusCode::from_u16(status).is_ok_and(|status| status.is_success());
        let sse = head::content_type(head)
            .is_some_and(|value| value.trim_start().starts_with("text/event-stream"));
        let mut mutation = HeaderMutation::default();
        if success && self.settle.api() != Api::Other {
            self.observer = Some(ResponseObserver::new(self.settle.api(), sse));
        }
        if success && let Some((seen, asked)) = &self.renamed {
            self.restorer = Some(ModelRestorer::new(seen, asked, sse));
            // The length changes with the name.
            mutation.remove_headers.push("content-length".to_owned());
        }
        if manner.test_selection {
            super::test_selection::report(served, &mut mutation);
        }
        if head.headers.end_of_stream {
            self.finish(Ending::Complete);
        }
        mutation
    }

    /// Another endpoint than the first one answered: those before it did not.
    fn served_by(&mut self, worker: &Rc<Worker>, served: SocketAddr) {
        let Some(&first) = self.order.first() else {
            return;
        };
        if served == first {
            return;
        }
        let ask = Ask {
            prompt_tokens: self.prompt_tokens,
            stream: self.stream,
            ..Ask::default()
        };
        let flight = InFlight::begin(worker, &self.runtime, &ask, served);
        if let Some(mut before) = self.settle.rebook(flight) {
            // Why the proxy passed it over it does not say.
            before.finish(
                End::plain(EndKind::Failed(FailureKind::Reset)),
                clock::now(),
            );
        }
        let Some(record) = self.settle.record() else {
            return;
        };
        record.tries.clear();
        let passed = self.order.iter().take_while(|address| **address != served);
        // Of the list or not: a proxy may have a way of its own.
        let passed = passed.take(super::PASSED_OVER_MAX);
        record.tries.extend(passed.map(|address| Try {
            endpoint: *address,
            failure: Some("passed_over"),
        }));
        record.tries.push(Try {
            endpoint: served,
            failure: None,
        });
    }

    /// Takes note of a piece of the response; what goes on in its place, if it changes.
    fn piece(&mut self, piece: &Bytes, end: bool) -> Option<Bytes> {
        let now = clock::now();
        if !piece.is_empty() {
            let first = self.settle.first_byte(now);
            self.settle.bytes_out(piece.len());
            if let Some(observer) = &mut self.observer {
                match first && end {
                    true => observer.push_whole(piece, now),
                    false => observer.push(piece, now),
                }
            }
        }
        let other = self.restorer.as_mut().map(|restorer| {
            let mut pieces = Vec::new();
            restorer.push(piece.clone(), &mut pieces);
            if end {
                restorer.finish(&mut pieces);
            }
            joined(pieces)
        });
        if end {
            self.finish(Ending::Complete);
        }
        // What did not change need not be sent back where the proxy has kept it.
        other.filter(|other| other != piece)
    }

    /// The response ended with trailers; what was held back.
    fn over(&mut self) -> Bytes {
        let rest = self.restorer.take().map(|mut restorer| {
            let mut pieces = Vec::new();
            restorer.finish(&mut pieces);
            joined(pieces)
        });
        self.finish(Ending::Complete);
        rest.unwrap_or_default()
    }

    fn closed(&mut self) {
        let body_shown = !self.observed_nothing();
        match (self.response, body_shown) {
            // Of what is not shown, the end of the call is all that there is to learn.
            (Shown::Nothing, _) | (Shown::Head(_), false) => self.finish(Ending::Complete),
            (Shown::Head(_), true) => self.finish(Ending::ClientGone),
            (Shown::All, _) => {}
        }
    }

    fn observed_nothing(&mut self) -> bool {
        let record = self.settle.record();
        record.is_none_or(|record| record.first_byte.is_none())
    }

    fn finish(&mut self, ending: Ending) {
        let kind = match (ending, self.response) {
            (Ending::Complete, Shown::Head(status @ 500..)) => {
                EndKind::Failed(FailureKind::Status5xx(status))
            }
            (Ending::Complete, _) => EndKind::Served,
            (
                Ending::ClientGone | Ending::UpstreamDied | Ending::TimedOut | Ending::PickerFailed,
                _,
            ) => EndKind::Cancelled,
        };
        self.response = Shown::All;
        let observer = self.observer.take();
        self.settle.now(ending, kind, observer);
    }
}

fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    match pieces.len() {
        0 => Bytes::new(),
        1 => pieces.remove(0),
        _ => pieces.concat().into(),
    }
}
