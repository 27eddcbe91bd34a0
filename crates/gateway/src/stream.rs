//! Connections that are no HTTP: those of a `TLSRoute`, passed on to a Service as they come, or
//! without the TLS that ends here.
//!
//! The endpoint is drawn and the connection refused before anything is agreed on with the client:
//! one whose route leads nowhere sees its connection closed, as if nobody listened. Each connection
//! leaves one record.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use forebay_model::AppProtocol;
use forebay_model::route::{ServiceTarget, Target, TlsRule};
use forebay_model::snapshot::Listener;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::client_io::{ClientIo, Stream};
use crate::clock;
use crate::pump::{self, First, Passed};
use crate::record::{Ending, StreamRecord};
use crate::telemetry::Counted;
use crate::tls::backend::Connector;
use crate::tls::hello::Hello;
use crate::tls::{self, Ends};
use crate::upstream::{self, Io, Peer, SendError};
use crate::view::View;
use crate::worker::Worker;

/// Endpoints that are tried for one connection.
const CONNECT_TRIES_MAX: usize = 3;

/// A client's connection whose first message has been read.
pub(crate) struct Incoming {
    pub(crate) stream: TcpStream,
    pub(crate) hello: Hello,
    pub(crate) client: SocketAddr,
    /// The port that was bound, and which of its listeners the connection is for.
    pub(crate) bound: u16,
    pub(crate) listener: usize,
    /// By when TLS must be agreed on.
    pub(crate) until: Instant,
}

/// Why a connection is closed without having been served, in a word for machines.
type Reason = &'static str;

/// Serves a connection to its end.
pub(crate) async fn serve(worker: &Rc<Worker>, live: Rc<View>, incoming: Incoming) {
    let Some((listener, ends)) = live.tls_listener(incoming.bound, incoming.listener) else {
        return;
    };
    let name = incoming.hello.server_name();
    let mut log = Log {
        record: Some(Box::new(StreamRecord {
            started: clock::now(),
            started_at: SystemTime::now(),
            finished: clock::now(),
            client: incoming.client,
            gateway: live.name(&listener.gateway),
            listener: Arc::clone(&listener.name),
            route: None,
            server_name: name.clone(),
            terminated: matches!(ends, Ends::Here(_)),
            endpoint: None,
            bytes_in: 0,
            bytes_out: 0,
            // What is true of one that the end of the process cuts off: nobody says more of it.
            reason: Some("shutting_down"),
            end: Ending::TimedOut,
        })),
        passed: Rc::default(),
        worker: Rc::clone(worker),
    };
    let rule = rule_for(listener, name.as_deref());
    if let Some(rule) = rule {
        log.note(|record| record.route = Some(live.name(&rule.route)));
    }
    let chosen = rule
        .ok_or("route_not_found")
        .and_then(|rule| destination(worker, &live, rule));
    let to = match chosen {
        Ok(to) => to,
        Err(reason) => return log.refused(reason),
    };
    let peer_tls = match (ends, &to.tls) {
        (Ends::Here(_), Some(_)) => match live.connectors.of(&to.of) {
            Some(Ok(connector)) => Some(Arc::clone(connector)),
            Some(Err(_)) | None => return log.refused("backend_tls"),
        },
        // What passes through is within TLS already.
        (Ends::Here(_), None) | (Ends::Behind | Ends::Broken, _) => None,
    };
    let (client, first) = match client_side(incoming, ends).await {
        Ok(side) => side,
        Err(reason) => return log.refused(reason),
    };
    let connected = connect(worker, &to, peer_tls, &mut log).await;
    // The configuration is not kept for as long as the connection lives.
    drop((live, to));
    let (mut endpoint, _counted) = match connected {
        Ok(connected) => connected,
        Err(reason) => return log.refused(reason),
    };
    let idle_limit = worker.shared.settings.tunnel_idle_timeout;
    let mut client = ClientIo::new(client, idle_limit);
    let passed = Rc::clone(&log.passed);
    let ending = pump::join(&mut client, &mut endpoint, first, &passed, idle_limit).await;
    log.ended(None, ending);
}

fn rule_for<'l>(listener: &'l Listener, name: Option<&str>) -> Option<&'l TlsRule> {
    let routes = &listener.tls_routes.as_ref()?.routes;
    let mut fitting = routes
        .iter()
        .filter(|(host, _)| tls::covers(host.as_ref(), name));
    fitting.next().map(|(_, rule)| &**rule)
}

/// The Service that this connection is for, which has endpoints.
fn destination(worker: &Worker, live: &View, rule: &TlsRule) -> Result<Arc<ServiceTarget>, Reason> {
    let chosen = worker.draw(&rule.targets).ok_or("no_backend")?;
    let service = match &chosen.target {
        Target::Service(service) => live.snapshot.services.get(service),
        // Pools are picked from by request, and here is none.
        Target::Broken(_) | Target::Pool(_) => return Err("backend_invalid"),
    };
    let service = service.ok_or("service_not_found")?;
    if service.endpoints.is_empty() {
        return Err("no_ready_endpoint");
    }
    Ok(Arc::clone(service))
}

/// The client's side as it goes on, and what the endpoint is to get first.
async fn client_side(incoming: Incoming, ends: &Ends) -> Result<(Stream, First), Reason> {
    let Incoming {
        stream,
        hello,
        until,
        ..
    } = incoming;
    match ends {
        Ends::Behind => {
            let first = First {
                for_endpoint: hello.into_bytes().into(),
                ..First::default()
            };
            Ok((Stream::Plain(stream), first))
        }
        Ends::Here(config) => {
            let shake = Box::pin(hello.end_here(stream, Arc::clone(config)));
            match tokio::time::timeout_at(until, shake).await {
                Ok(Ok(stream)) => Ok((Stream::Tls(Box::new(stream)), First::default())),
                Ok(Err(_)) | Err(_) => Err("tls_handshake"),
            }
        }
        Ends::Broken => Err("certificate_invalid"),
    }
}

/// Connects to one endpoint after the other until one takes the connection.
async fn connect(
    worker: &Worker,
    to: &ServiceTarget,
    tls: Option<Arc<Connector>>,
    log: &mut Log,
) -> Result<(Io, Counted), Reason> {
    let limit = worker.shared.settings.connect_timeout;
    let mut reason = "upstream_connect";
    for _ in 0..CONNECT_TRIES_MAX.min(to.endpoints.len()) {
        let peer = Peer {
            address: worker.turn(to),
            protocol: AppProtocol::Http,
            tls: tls.clone(),
        };
        log.note(|record| record.endpoint = Some(peer.address));
        match upstream::open_stream(&worker.idle, &peer, limit).await {
            Ok(connected) => return Ok(connected),
            Err(SendError::Tls(_)) => reason = "backend_tls",
            Err(
                SendError::Connect(_)
                | SendError::Timeout(_)
                | SendError::Reset(_)
                | SendError::Protocol(_)
                | SendError::ClientBody(_)
                | SendError::ClientStalled(_)
                | SendError::Picker(_),
            ) => reason = "upstream_connect",
        }
    }
    Err(reason)
}

/// The record of a connection, which goes out when the connection ends, however that is.
struct Log {
    record: Option<Box<StreamRecord>>,
    passed: Rc<Passed>,
    worker: Rc<Worker>,
}

impl Log {
    fn note(&mut self, what: impl FnOnce(&mut StreamRecord)) {
        if let Some(record) = &mut self.record {
            what(record);
        }
    }

    fn refused(self, reason: Reason) {
        self.ended(Some(reason), Ending::Complete);
    }

    fn ended(mut self, reason: Option<Reason>, end: Ending) {
        self.note(|record| {
            record.reason = reason;
            record.end = end;
        });
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.bytes_in = self.passed.bytes_in.get();
            record.bytes_out = self.passed.bytes_out.get();
            record.finished = clock::now();
            self.worker.desk.stream_closed(record);
        }
    }
}
