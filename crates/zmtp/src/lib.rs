//! ZMTP 3.0, the wire protocol of ZeroMQ (rfc.zeromq.org/spec/23), as far as publishers, subscribers,
//! dealers and routers need it: one connection at a time, mechanism NULL, over any byte stream.
//!
//! A socket here is one connection, not ZeroMQ's many-connections-in-one with queues and reconnects:
//! whoever follows a publisher has to know when a connection broke, since messages were lost then.
//! [`codec`] turns bytes into frames without I/O, [`Connection`] puts it on a stream. Every length
//! that a peer claims is held against [`Limits`] before anything is kept for it.

pub mod codec;
mod connection;

pub use codec::{Limits, Message, ProtocolError};
pub use connection::{Connection, ConnectionError};

/// What a side of a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Sends what it has to those who subscribed.
    Publisher,
    /// Receives what it subscribed to.
    Subscriber,
    /// Sends and receives as it likes.
    Dealer,
    /// The same, towards many.
    Router,
}

impl Role {
    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Publisher => "PUB",
            Self::Subscriber => "SUB",
            Self::Dealer => "DEALER",
            Self::Router => "ROUTER",
        }
    }

    /// Whether it may talk with a peer of this name.
    #[must_use]
    pub fn fits(self, peer: &[u8]) -> bool {
        match self {
            Self::Publisher => matches!(peer, b"SUB" | b"XSUB"),
            Self::Subscriber => matches!(peer, b"PUB" | b"XPUB"),
            Self::Dealer => matches!(peer, b"ROUTER" | b"DEALER" | b"REP"),
            Self::Router => matches!(peer, b"DEALER" | b"ROUTER" | b"REQ"),
        }
    }
}
