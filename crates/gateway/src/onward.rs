//! What remains of a request for its target: a head without what belongs to this hop, the body as
//! it comes or already read, and an upgrade if one was asked for.
//!
//! Filters change it (`exchange.rs`), targets send it (`inference.rs`, `service.rs`, `mirror.rs`).

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::peek::Peeked;
use crate::upstream::{Head, Outgoing, Streamed};
use crate::worker::Worker;

/// A request on its way to a target.
#[derive(Debug)]
pub(crate) struct Onward {
    pub(crate) head: OnwardHead,
    pub(crate) body: ClientBody,
    pub(crate) upgrade: Option<Upgrade>,
}

/// Its head.
#[derive(Clone, Debug)]
pub(crate) struct OnwardHead {
    pub(crate) method: Method,
    /// Path and query, rewritten where a filter said so.
    pub(crate) target: String,
    /// Host, rewritten where a filter said so.
    pub(crate) host: String,
    /// Fields for the endpoint: hop-by-hop ones and our own control fields are gone.
    pub(crate) headers: HeaderMap,
}

impl OnwardHead {
    /// The head as an endpoint gets it.
    pub(crate) fn to_endpoint<'a>(&'a self, upgrade: Option<&'a Upgrade>) -> Head<'a> {
        Head {
            method: &self.method,
            target: &self.target,
            host: &self.host,
            headers: &self.headers,
            upgrade: upgrade.map(|upgrade| upgrade.protocol.as_str()),
        }
    }
}

/// The client's body: as it comes, or already read.
#[derive(Debug)]
pub(crate) enum ClientBody {
    Stream(Incoming),
    Read(Peeked),
}

impl ClientBody {
    /// Its length in bytes, if the client said it or all of it has come.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Stream(incoming) => incoming.size_hint().exact(),
            Self::Read(peeked) => Some(peeked.bytes.len() as u64),
        }
    }

    /// Whether it has been read, or is known to be no longer than this.
    pub(crate) fn is_held_or_within(&self, bytes_max: u64) -> bool {
        matches!(self, Self::Read(_)) || self.length().is_some_and(|length| length <= bytes_max)
    }

    /// Bytes of it in memory.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held().map_or(0, Bytes::len)
    }

    /// All of it, if it has been read.
    pub(crate) fn held(&self) -> Option<&Bytes> {
        match self {
            Self::Read(peeked) => Some(&peeked.bytes),
            Self::Stream(_) => None,
        }
    }

    /// The body towards an endpoint, and what keeps its memory accounted for.
    pub(crate) fn outgoing(self, worker: &Worker) -> (Outgoing, Option<Peeked>) {
        match self {
            Self::Stream(_) if self.length() == Some(0) => (Outgoing::Empty, None),
            Self::Stream(incoming) => {
                let limit = worker.shared.settings.body_stall_timeout;
                (Outgoing::Stream(Streamed::new(incoming, limit)), None)
            }
            Self::Read(peeked) => (peeked.outgoing(), Some(peeked)),
        }
    }

    /// A copy of all of it, if it has been read.
    pub(crate) fn copy(&self) -> Option<Outgoing> {
        match self {
            Self::Read(peeked) => Some(peeked.outgoing()),
            Self::Stream(_) => None,
        }
    }
}

/// A client's wish to speak another protocol on its connection.
#[derive(Debug)]
pub(crate) struct Upgrade {
    protocol: String,
    /// The client's side, once the endpoint has agreed.
    pub(crate) client: OnUpgrade,
}

impl Upgrade {
    /// That of `request`, if it has one. HTTP/1.0 has no upgrades, and that to cleartext HTTP/2 has
    /// been withdrawn: such a request is served as it is.
    pub(crate) fn of(request: &mut Request<Incoming>) -> Option<Self> {
        let protocol = request.headers().get(header::UPGRADE)?.to_str().ok()?;
        let protocol = protocol.to_owned();
        let asked = request
            .headers()
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
        (asked
            && request.version() == http::Version::HTTP_11
            && !protocol.eq_ignore_ascii_case("h2c"))
        .then(|| Self {
            protocol,
            client: hyper::upgrade::on(request),
        })
    }
}
