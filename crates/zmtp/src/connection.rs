//! The protocol on a byte stream.

use std::fmt;
use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::Role;
use crate::codec::{self, Decoder, GREETING_BYTES, Incoming, Limits, Message, ProtocolError};

/// Room offered to one read.
const READ_BYTES: usize = 64 << 10;

/// A connection to one peer, past the handshake.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    decoder: Decoder,
    out: Vec<u8>,
}

/// Why a connection came to nothing, or to its end.
#[derive(Debug)]
pub enum ConnectionError {
    /// The stream.
    Io(io::Error),
    /// The peer closed it.
    Closed,
    /// What the peer sent.
    Protocol(ProtocolError),
}

impl std::error::Error for ConnectionError {}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Closed => f.write_str("the peer closed the connection"),
            Self::Protocol(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ProtocolError> for ConnectionError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Shakes hands as a `role`. Who waits for how long is the caller's business.
    ///
    /// # Errors
    /// If the stream ends or the peer is not one that fits.
    pub async fn handshake(
        mut stream: S,
        role: Role,
        limits: Limits,
    ) -> Result<Self, ConnectionError> {
        let mut out = codec::greeting().to_vec();
        codec::put_ready(role, &mut out);
        stream.write_all(&out).await?;
        let mut greeting = [0; GREETING_BYTES];
        match stream.read_exact(&mut greeting).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(ConnectionError::Closed);
            }
            Err(error) => return Err(error.into()),
        }
        codec::check_greeting(&greeting)?;
        out.clear();
        let mut connection = Self {
            stream,
            decoder: Decoder::new(role, limits),
            out,
        };
        match connection.incoming().await? {
            Incoming::Ready(peer) if role.fits(&peer) => Ok(connection),
            Incoming::Ready(peer) => {
                let name = String::from_utf8_lossy(&peer).into_owned();
                Err(ProtocolError::Peer(name).into())
            }
            _ => Err(ProtocolError::Malformed("the peer does not say what it is").into()),
        }
    }

    /// The next thing that arrives; pings are answered on the way. May be dropped and called again
    /// without a loss.
    ///
    /// # Errors
    /// At the end of the stream, or if the peer breaks the protocol.
    pub async fn incoming(&mut self) -> Result<Incoming, ConnectionError> {
        loop {
            match self.decoder.take()? {
                Some(Incoming::Ping(context)) => self.pong(&context).await?,
                Some(incoming) => return Ok(incoming),
                None => {
                    let buffer = self.decoder.buffer();
                    buffer.reserve(READ_BYTES);
                    if self.stream.read_buf(buffer).await? == 0 {
                        return Err(ConnectionError::Closed);
                    }
                }
            }
        }
    }

    /// The next message; subscriptions are passed over.
    ///
    /// # Errors
    /// As [`Self::incoming`].
    pub async fn message(&mut self) -> Result<Message, ConnectionError> {
        loop {
            if let Incoming::Message(message) = self.incoming().await? {
                return Ok(message);
            }
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If the stream fails.
    pub async fn send(&mut self, frames: &[&[u8]]) -> Result<(), ConnectionError> {
        self.out.clear();
        codec::put_message(frames, &mut self.out);
        Ok(self.stream.write_all(&self.out).await?)
    }

    /// Asks the publisher for messages whose first frame begins so.
    ///
    /// # Errors
    /// If the stream fails.
    pub async fn subscribe(&mut self, topic: &[u8]) -> Result<(), ConnectionError> {
        self.out.clear();
        codec::put_subscription(topic, &mut self.out);
        Ok(self.stream.write_all(&self.out).await?)
    }

    async fn pong(&mut self, context: &Bytes) -> Result<(), ConnectionError> {
        self.out.clear();
        codec::put_pong(context, &mut self.out);
        Ok(self.stream.write_all(&self.out).await?)
    }
}
