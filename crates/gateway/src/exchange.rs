//! The life of a request, phase by phase. This file is the drawing; each phase is a call.
//!
//! ```text
//! accept → route → [answer in place: redirect, preflight] → peek → rewrite → admit, pick → send → relay → settle
//!            ↑ peek comes first where a route matches on the model           ╰── next endpoint ──╯
//! ```
//!
//! Routing, filters and targets are here; what only pools have (peek, rewrite, pick, fallback) is in
//! [`crate::inference`], plain Services are in [`crate::service`].

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use forebay_dialect::{Api, BodyKind};
use forebay_model::route::{Entry, Filter, MODEL_HEADER, Rule, Speaks, Target};
use forebay_model::snapshot::Listener;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::connection::Client;
use crate::head::{HeadView, Noted, authority_of, check_framing, forward_for, host_of, request_id};
use crate::onward::{ClientBody, Onward, OnwardHead, Upgrade};
use crate::peek::{self, Peeked};
use crate::record::{Draft, Ending, Record};
use crate::relay::Body;
use crate::respond::Refusal;
use crate::upstream::strip;
use crate::view::View;
use crate::worker::Worker;
use crate::{clock, filters, grpc, inference, mirror, reading, service};

/// Where the request went.
const ENDPOINT_HEADER: HeaderName = HeaderName::from_static("x-forebay-endpoint");
/// The host that the client asked for, where a route changed it.
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The request's id, by which `forebay explain` finds the decision.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of a model's name that header matches may see; no model has a longer one, and the header
/// goes on to Services.
const MODEL_BYTES_MAX: usize = 1024;

/// One request on its way.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) worker: Rc<Worker>,
    pub(crate) client: Rc<Client>,
    pub(crate) live: Rc<View>,
    pub(crate) record: Draft,
    /// When the route's request timeout passes; once an endpoint answers, that of its try too.
    pub(crate) deadline: Option<Instant>,
    /// What the clients of its rule speak.
    pub(crate) speaks: Speaks,
    explain: bool,
    /// Edits of the response, gathered on the way in.
    response_filters: Vec<Filter>,
    origin: Option<HeaderValue>,
}

/// Serves one request. Never fails: what goes wrong is a response with a reason.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    client: Rc<Client>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let upgrade = Upgrade::of(&mut request);
    let (parts, body) = request.into_parts();
    let body = ClientBody::Stream(body);
    let mut ex = Exchange::accept(worker, client, &parts, &body);
    match ex.run(parts, body, upgrade).await {
        Ok(response) => response,
        Err(refusal) => ex.refuse(&refusal),
    }
}

impl Exchange {
    fn accept(worker: Rc<Worker>, client: Rc<Client>, parts: &Parts, body: &ClientBody) -> Self {
        let live = worker.live();
        let path = parts.uri.path();
        let noted = Noted::of(&parts.headers);
        let traceparent = noted.traceparent;
        let record = Record {
            id: request_id(&worker, noted.id),
            started: clock::now(),
            started_at: SystemTime::now(),
            client: client.address,
            method: parts.method.clone(),
            path: path.into(),
            host: host_of(parts, noted.host).into(),
            trace: worker.shared.telemetry.begin_trace(traceparent),
            traceparent: traceparent.map(Into::into),
            api: Api::of(parts.method.as_str(), path),
            bytes_in: body.length().unwrap_or(0),
            http2: parts.version == http::Version::HTTP_2,
            grpc: noted.grpc,
            ..Record::default()
        };
        Self {
            worker,
            client,
            live,
            record: Draft::new(record),
            deadline: None,
            speaks: Speaks::Http,
            explain: noted.explain,
            response_filters: Vec::new(),
            origin: noted.origin.cloned(),
        }
    }

    async fn run(
        &mut self,
        mut parts: Parts,
        mut body: ClientBody,
        upgrade: Option<Upgrade>,
    ) -> Result<Response<Body>, Refusal> {
        check_framing(&parts)?;
        let live = Rc::clone(&self.live);
        let listener = self.listener(&live)?;
        // A model named by the client itself must not pass for one found in the body.
        parts.headers.remove(MODEL_HEADER);
        if listener.routes.reads_model && self.record.api.body() != BodyKind::Opaque {
            body = ClientBody::Read(self.peek(body).await?);
            self.name_model(&mut parts, &body)?;
        }
        let entry = self.route(listener, &parts)?;
        let rule = &*entry.rule;
        self.deadline = rule.timeouts.request.map(|limit| Instant::now() + limit);
        if let Some(answer) = self.answer_in_place(&parts, entry, &rule.filters) {
            return Ok(self.finish_here(answer));
        }
        let chosen = self.target(rule)?;
        if let Some(answer) = self.answer_in_place(&parts, entry, &chosen.filters) {
            return Ok(self.finish_here(answer));
        }
        let mut onward = self.onward(parts, body, upgrade);
        for filters in [&rule.filters, &chosen.filters] {
            if !filters.is_empty() {
                Box::pin(self.filter(&mut onward, entry, filters)).await?;
            }
        }
        let response = match &chosen.target {
            Target::Broken(broken) => return Err(Refusal::broken(broken)),
            Target::Service(to) => Box::pin(service::serve(self, rule, to, onward)).await?,
            Target::Pool(name) => inference::serve(self, rule, name, onward).await?,
        };
        Ok(self.decorate(response))
    }

    // === route ===

    fn listener<'a>(&mut self, live: &'a View) -> Result<&'a Listener, Refusal> {
        let record = &mut *self.record;
        let covers = |listener: &&Listener| {
            let pattern = listener.hostname.as_ref();
            pattern.is_none_or(|pattern| pattern.covers(&record.host))
        };
        let port = live.snapshot.ports.get(&self.client.bound);
        let listeners = port.map_or(&[][..], |port| &port.listeners);
        let listener = (listeners.iter().find(covers))
            .ok_or_else(|| Refusal::no_route(&record.host, &record.path))?;
        if let Some(tls) = &self.client.tls
            && !tls.is_for(listener, listeners, &record.host)
        {
            return Err(Refusal::misdirected(&record.host));
        }
        if listener.refused {
            return Err(Refusal::no_route(&record.host, &record.path));
        }
        record.gateway = Some(live.name(&listener.gateway));
        Ok(listener)
    }

    fn route<'a>(&mut self, listener: &'a Listener, parts: &Parts) -> Result<&'a Entry, Refusal> {
        let entry = listener.routes.find(&HeadView {
            parts,
            host: &self.record.host,
        });
        let entry = entry.ok_or_else(|| Refusal::no_route(&self.record.host, &self.record.path))?;
        self.record.route = Some(self.live.name(&entry.rule.route));
        self.speaks = entry.rule.speaks;
        self.record.grpc |= self.speaks == Speaks::Grpc;
        Ok(entry)
    }

    /// Draws a target by weight.
    fn target<'a>(
        &self,
        rule: &'a Rule,
    ) -> Result<&'a forebay_model::route::WeightedTarget, Refusal> {
        self.worker.draw(&rule.targets).ok_or_else(|| {
            let message = "the route has no backend with a weight above zero";
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "no_backend", message)
        })
    }

    // === filters ===

    fn answer_in_place(
        &mut self,
        parts: &Parts,
        entry: &Entry,
        list: &[Filter],
    ) -> Option<Response<Body>> {
        list.iter().find_map(|filter| match filter {
            Filter::Redirect(to) => Some(filters::redirect(
                to,
                entry,
                &parts.uri,
                &self.record.host,
                self.client.tls.is_some(),
                self.client.port,
            )),
            Filter::Cors(cors) => filters::preflight(cors, &parts.method, &parts.headers),
            Filter::RequestHeaders(_)
            | Filter::ResponseHeaders(_)
            | Filter::Rewrite(_)
            | Filter::Mirror(_) => None,
        })
    }

    /// Applies the filters of a rule or a backend to what goes onward.
    async fn filter(
        &mut self,
        onward: &mut Onward,
        entry: &Entry,
        list: &[Filter],
    ) -> Result<(), Refusal> {
        for filter in list {
            match filter {
                Filter::RequestHeaders(edits) => {
                    filters::edit(&mut onward.head.headers, edits);
                    if let Some(host) = onward.head.headers.remove(header::HOST)
                        && let Ok(host) = host.to_str()
                    {
                        host.clone_into(&mut onward.head.host);
                    }
                }
                Filter::Rewrite(rewrite) => {
                    onward.head.target =
                        filters::rewrite_target(&onward.head.target, entry, rewrite);
                    if let Some(host) = &rewrite.hostname {
                        // Whoever builds links looks for the name that the client used.
                        if let Ok(before) = HeaderValue::from_str(&onward.head.host) {
                            onward.head.headers.insert(FORWARDED_HOST, before);
                        }
                        onward.head.host = host.to_string();
                    }
                }
                Filter::Mirror(to) => {
                    if mirror::is_drawn(self, to) {
                        // A copy needs the whole body; it is read within the usual bound.
                        self.read_body(onward).await?;
                        mirror::send(self, to, onward);
                    }
                }
                Filter::ResponseHeaders(_) | Filter::Cors(_) => {
                    self.response_filters.push(filter.clone());
                }
                Filter::Redirect(_) => {}
            }
        }
        Ok(())
    }

    /// The request as its target will get it, before filters.
    fn onward(&self, parts: Parts, body: ClientBody, upgrade: Option<Upgrade>) -> Onward {
        let mut headers = parts.headers;
        let host = authority_of(&parts.uri, &headers);
        strip(&mut headers, |name| {
            matches!(
                name.as_str(),
                "host" | "content-length" | "expect" | "x-forebay-explain"
            )
        });
        forward_for(&mut headers, &self.client);
        if let Ok(id) = HeaderValue::from_str(&self.record.id) {
            headers.insert(REQUEST_ID, id);
        }
        if let Some(trace) = &self.record.trace
            && let Ok(parent) = HeaderValue::from_str(&trace.traceparent())
        {
            headers.insert(HeaderName::from_static("traceparent"), parent);
        }
        let target = parts.uri.path_and_query().map_or("/", |pq| pq.as_str());
        Onward {
            head: OnwardHead {
                target: target.to_owned(),
                host,
                method: parts.method,
                headers,
            },
            body,
            upgrade,
        }
    }

    // === peek ===

    /// Reads the body whole.
    pub(crate) async fn peek(&mut self, body: ClientBody) -> Result<Peeked, Refusal> {
        let peeked = match body {
            ClientBody::Read(peeked) => peeked,
            ClientBody::Stream(incoming) => {
                let limit = self.worker.shared.settings.body_bytes_max;
                peek::read(&self.worker, incoming, limit).await?
            }
        };
        self.record.bytes_in = peeked.bytes.len() as u64;
        Ok(peeked)
    }

    /// Reads the body of `onward` in place.
    pub(crate) async fn read_body(&mut self, onward: &mut Onward) -> Result<(), Refusal> {
        if let ClientBody::Stream(_) = &onward.body {
            let empty = ClientBody::Read(Peeked::empty(&self.worker));
            let body = std::mem::replace(&mut onward.body, empty);
            onward.body = ClientBody::Read(self.peek(body).await?);
        }
        Ok(())
    }

    /// Makes the body's model visible to header matches.
    fn name_model(&self, parts: &mut Parts, body: &ClientBody) -> Result<(), Refusal> {
        if let Some(bytes) = body.held()
            && let Some(model) = reading::model_of(self.record.api, &parts.headers, bytes)?
            && model.len() <= MODEL_BYTES_MAX
            && let Ok(value) = HeaderValue::from_str(&model)
        {
            parts.headers.insert(MODEL_HEADER, value);
        }
        Ok(())
    }

    // === answers ===

    /// Adds what every response carries.
    fn decorate(&mut self, mut response: Response<Body>) -> Response<Body> {
        let headers = response.headers_mut();
        for filter in &self.response_filters {
            match filter {
                Filter::ResponseHeaders(edits) => filters::edit(headers, edits),
                Filter::Cors(cors) => filters::cors_response(cors, self.origin.as_ref(), headers),
                Filter::RequestHeaders(_)
                | Filter::Redirect(_)
                | Filter::Rewrite(_)
                | Filter::Mirror(_) => {}
            }
        }
        response
    }

    /// Fields that tell which request this was and where it went.
    pub(crate) fn sign(&self, headers: &mut HeaderMap) {
        if let Ok(id) = HeaderValue::from_str(&self.record.id) {
            headers.insert(REQUEST_ID, id);
        }
        if self.explain
            && let Some(last) = self.record.tries.last()
            && let Ok(endpoint) = HeaderValue::from_str(&last.endpoint.to_string())
        {
            headers.insert(ENDPOINT_HEADER, endpoint);
        }
    }

    fn refuse(&mut self, refusal: &Refusal) -> Response<Body> {
        self.record.reason = Some(refusal.reason);
        let response = if self.record.grpc {
            grpc::refusal(refusal)
        } else {
            refusal.response(self.record.api.dialect(), &self.record.id)
        };
        self.record.grpc_status = grpc::status(response.headers());
        let mut response = self.decorate(response);
        if self.record.method == Method::HEAD {
            // There is no content whose type could be told, and some clients would read it.
            response.headers_mut().remove(header::CONTENT_TYPE);
        }
        self.finish_here(response)
    }

    /// Notes the head of an endpoint's answer.
    pub(crate) fn note_answer(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.record.status = status.as_u16();
        if self.record.grpc {
            // In the head where the answer is nothing else.
            self.record.grpc_status = grpc::status(headers);
        }
    }

    /// Settles an exchange whose response was made here.
    pub(crate) fn finish_here(&mut self, mut response: Response<Body>) -> Response<Body> {
        self.sign(response.headers_mut());
        self.record.status = response.status().as_u16();
        self.record.bytes_out = response.body().full_len();
        self.record.finished = clock::now();
        self.settle();
        response
    }

    /// Takes the record out, for whoever settles the exchange.
    pub(crate) fn take_record(&mut self) -> Draft {
        self.record.take()
    }

    fn settle(&mut self) {
        if let Some(record) = self.record.take().into_inner() {
            self.worker.desk.settle(record);
        }
    }

    /// When a try at a backend that begins now must have brought its whole answer.
    pub(crate) fn try_deadline(&self, rule: &Rule) -> Option<Instant> {
        let of_try = rule.timeouts.backend.map(|limit| Instant::now() + limit);
        match (self.deadline, of_try) {
            (Some(whole), Some(of_try)) => Some(whole.min(of_try)),
            (whole, of_try) => whole.or(of_try),
        }
    }

    /// Time left until the route's request timeout.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        self.deadline
            .map(|at| at.saturating_duration_since(Instant::now()))
    }
}

impl Drop for Exchange {
    /// A client that leaves before there is a response leaves a record all the same.
    fn drop(&mut self) {
        if self.record.is_open() {
            self.record.end = Ending::ClientGone;
            self.record.finished = clock::now();
            self.settle();
        }
    }
}
