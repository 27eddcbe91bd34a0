//! Where a request goes that a proxy asks about: which pool it is for, then read, rewrite, admit and pick
//! as for the requests of the data plane, and what the proxy is told.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use forebay_decide::{Ask, Waiter};
use forebay_dialect::BodyKind;
use forebay_model::Pool;
use forebay_model::route::MODEL_HEADER;
use forebay_wire::ext_proc::HeaderMutation;
use tokio::time::Instant;

use super::head::{self, Noted};
use super::pools::CallNames;
use super::protocol::{Body, Decision, Head};
use super::stream::Manner;
use super::{answer, test_selection};
use crate::external::destination::DESTINATION;
use crate::phases::{self, Order};
use crate::pools::{InFlight, PoolRuntime};
use crate::reading::{Controls, Reading, renamed};
use crate::record::{Record, Try};
use crate::respond::Refusal;
use crate::view::View;
use crate::worker::Worker;
use crate::{exact, peek};

/// A request while it is decided on.
pub(super) struct Asking<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) manner: &'a Manner,
    pub(super) live: &'a View,
    pub(super) names: &'a CallNames,
    pub(super) head: &'a Head,
    pub(super) noted: &'a Noted<'a>,
    /// The response's body will be shown.
    pub(super) bodies: bool,
}

/// What an exchange begins with.
pub(super) struct Begun {
    pub(super) flight: InFlight,
    pub(super) order: Order,
    pub(super) runtime: Arc<PoolRuntime>,
    pub(super) prompt_tokens: u32,
    pub(super) stream: bool,
    pub(super) renamed: Option<(Arc<str>, Box<str>)>,
}

impl Asking<'_> {
    /// Decides, and notes how in the record.
    pub(super) async fn decide(
        &self,
        record: &mut Record,
        body: Body,
    ) -> Result<(Decision, Begun), Refusal> {
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
        let (mut order, flight) = self.pick(
            record,
            pool,
            runtime,
            &reading,
            body.as_ref(),
            model,
            session,
        )?;
        order.truncate(self.manner.endpoints_max);
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
            let goes_no_further = controls.note(pool, &field.key, head::value(field));
            // Routes match on it, and they are looked for again with what we answer.
            if goes_no_further && field.key != MODEL_HEADER {
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
            true => test_selection::of(pool, self.noted).or_else(|| head::subset(self.head)),
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
                test_selection::ordered(worker, runtime, &ask, flight, subset),
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
        remove_headers.retain(|name| name != DESTINATION);
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
        let shows_response = generates && (restores || self.manner.response_bodies);
        // Usage is read in passing, which needs the answer as it is.
        if generates && self.noted.accepts_encodings && (self.bodies || shows_response) {
            remove_headers.push("accept-encoding".to_owned());
        }
        Decision {
            mutation: HeaderMutation {
                set_headers,
                remove_headers,
            },
            metadata: Some(metadata),
            body,
            shows_response,
        }
    }
}
