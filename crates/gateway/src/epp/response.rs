//! A request on its way, and its response as far as it is shown: who served it, its usage, the model's
//! name; then it is settled.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use forebay_decide::{Ask, End, EndKind, FailureKind};
use forebay_dialect::Api;
use forebay_dialect::observe::ResponseObserver;
use forebay_dialect::splice::ModelRestorer;
use forebay_wire::ext_proc::HeaderMutation;
use http::StatusCode;

use super::decision::Begun;
use super::head;
use super::protocol::{Head, Wanted};
use super::stream::Manner;
use super::test_selection;
use crate::clock;
use crate::phases::Order;
use crate::pools::{InFlight, PoolRuntime};
use crate::record::{Ending, Try};
use crate::relay::Settle;
use crate::worker::Worker;

/// A request that has been decided on.
pub(super) struct Exchange {
    settle: Settle,
    order: Order,
    runtime: Arc<PoolRuntime>,
    prompt_tokens: u32,
    stream: bool,
    /// Names of the model: what the server saw, what the client asked for.
    renamed: Option<(Arc<str>, Box<str>)>,
    response: Shown,
    body_began: bool,
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

impl Exchange {
    pub(super) fn new(mut settle: Settle, begun: Begun) -> Self {
        settle.rebook(begun.flight);
        Self {
            settle,
            order: begun.order,
            runtime: begun.runtime,
            prompt_tokens: begun.prompt_tokens,
            stream: begun.stream,
            renamed: begun.renamed,
            response: Shown::Nothing,
            body_began: false,
            observer: None,
            restorer: None,
        }
    }

    /// Takes note of the head of the response.
    pub(super) fn head(
        &mut self,
        worker: &Rc<Worker>,
        manner: &Manner,
        head: &Head,
    ) -> (HeaderMutation, Option<Wanted>) {
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
            test_selection::report(served, &mut mutation);
        }
        let wanted =
            match self.restorer.is_some() || (self.observer.is_some() && manner.response_bodies) {
                true => Wanted::Bodies,
                false => Wanted::Head,
            };
        if wanted == Wanted::Head && self.stream {
            // As close to the first token as can be told.
            self.settle.first_byte(clock::now());
        }
        if head.headers.end_of_stream {
            self.finish(Ending::Complete);
        }
        (mutation, Some(wanted))
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
    pub(super) fn piece(&mut self, piece: &Bytes, end: bool) -> Option<Bytes> {
        let now = clock::now();
        self.body_began = true;
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
    pub(super) fn over(&mut self) -> Bytes {
        let rest = self.restorer.take().map(|mut restorer| {
            let mut pieces = Vec::new();
            restorer.finish(&mut pieces);
            joined(pieces)
        });
        self.finish(Ending::Complete);
        rest.unwrap_or_default()
    }

    /// The call is over.
    pub(super) fn closed(&mut self) {
        match (self.response, self.body_began) {
            // Of what is not shown, the end of the call is all that there is to learn.
            (Shown::Nothing, _) | (Shown::Head(_), false) => self.finish(Ending::Complete),
            (Shown::Head(_), true) => self.finish(Ending::ClientGone),
            (Shown::All, _) => {}
        }
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
