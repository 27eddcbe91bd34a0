//! The first message of a TLS client, read before anything is agreed on.
//!
//! Whoever passes a connection on needs its bytes as they came; whoever ends it goes on from the
//! parsed message. Both are kept.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::server::{StartHandshake, TlsStream};

/// Bytes until the message must be complete; a handshake message cannot be longer. More ends the
/// connection.
const HELLO_BYTES_MAX: usize = 64 << 10;
/// Bytes asked for at once. The message of a browser with a post-quantum key share has less.
const PIECE_BYTES: usize = 4 << 10;
/// A fatal alert `unrecognized_name`, as a record.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// A client's first message.
pub(crate) struct Hello {
    accepted: Accepted,
    /// Everything that was read, the message first.
    bytes: Vec<u8>,
}

impl Hello {
    /// Reads the message, and no more than comes along with it.
    ///
    /// # Errors
    /// If the client leaves or sends something else; in the latter case it has been told.
    pub(crate) async fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut acceptor = Acceptor::default();
        let mut bytes = Vec::with_capacity(PIECE_BYTES);
        loop {
            let seen = bytes.len();
            if seen >= HELLO_BYTES_MAX {
                return Err(io::Error::other("the first message of TLS is too long"));
            }
            bytes.reserve(PIECE_BYTES);
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut piece = &bytes[seen..];
            while !piece.is_empty() {
                if acceptor.read_tls(&mut piece)? == 0 {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => return Ok(Self { accepted, bytes }),
                Err((error, mut alert)) => {
                    let mut says = Vec::new();
                    alert.write_all(&mut says)?;
                    stream.write_all(&says).await?;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
        }
    }

    /// The server that the client names, lower case.
    pub(crate) fn server_name(&self) -> Option<Box<str>> {
        let name = self
            .accepted
            .client_hello()
            .server_name()?
            .to_ascii_lowercase();
        Some(name.into())
    }

    /// Ends TLS here.
    ///
    /// # Errors
    /// If the client and `config` do not agree.
    pub(crate) async fn end_here(
        self,
        stream: TcpStream,
        config: Arc<ServerConfig>,
    ) -> io::Result<TlsStream<TcpStream>> {
        StartHandshake::from_parts(self.accepted, stream)
            .into_stream(config)
            .await
    }

    /// The bytes, for whoever ends TLS elsewhere.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Tells a client that nobody here has the name that it asked for.
pub(crate) async fn refuse(stream: &mut TcpStream) {
    // A client that is gone already need not know.
    let _gone = stream.write_all(&UNRECOGNIZED_NAME).await;
}
