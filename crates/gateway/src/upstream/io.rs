//! A connection to an endpoint: TCP, with TLS around it or without.

use std::cell::OnceCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Idle, Peer, SendError};
use crate::tls::backend::Inside;

/// How long a connection may be silent before its host is probed.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// Between probes.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// Probes without an answer after which the host is gone.
const KEEPALIVE_PROBES: u32 = 3;
/// How long an endpoint may take to agree on TLS, once it has taken the connection.
const TLS_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes from and to an endpoint.
#[derive(Debug)]
pub enum Io {
    /// In the clear.
    Plain(TcpStream),
    /// Within TLS.
    Tls(Box<Tls>),
}

/// A connection within TLS.
#[derive(Debug)]
pub struct Tls {
    stream: TlsStream<TcpStream>,
    fault: TlsFault,
}

/// What went wrong with TLS after it had been agreed on, such as a client certificate that the
/// endpoint does not like. Kept, since HTTP/2 loses the errors of what is below it.
pub(super) type TlsFault = Rc<OnceCell<String>>;

impl Tls {
    /// Reads, and notes a failure of TLS.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read
            && is_of_tls(error)
        {
            self.fault.get_or_init(|| error.to_string());
        }
        read
    }
}

impl Io {
    /// Connects to `peer`, within `limit` for TCP.
    pub(super) async fn connect(
        idle: &Idle,
        peer: &Peer,
        inside: Inside,
        limit: Duration,
    ) -> Result<Self, SendError> {
        let stream = tcp(peer.address, limit).await?;
        let (Some(connector), Some(config)) = (&peer.tls, idle.tls_config(peer, inside)) else {
            return Ok(Self::Plain(stream));
        };
        let shake = TlsConnector::from(config).connect(connector.name.clone(), stream);
        match tokio::time::timeout(TLS_TIMEOUT, shake).await {
            Ok(Ok(stream)) => Ok(Self::Tls(Box::new(Tls {
                stream,
                fault: TlsFault::default(),
            }))),
            Ok(Err(error)) => Err(SendError::Tls(error)),
            Err(_) => Err(SendError::Tls(io::Error::new(
                io::ErrorKind::TimedOut,
                "the endpoint does not agree on TLS in time",
            ))),
        }
    }

    /// Whether the peer has neither closed nor sent anything out of turn.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut byte = [0];
        match self {
            Self::Plain(stream) => match stream.poll_read_ready(&mut cx) {
                Poll::Pending => true,
                Poll::Ready(Err(_)) => false,
                Poll::Ready(Ok(())) => {
                    matches!(stream.try_read(&mut byte), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
                }
            },
            // Messages of TLS itself, such as tickets for sessions, are taken in by the way.
            Self::Tls(tls) => {
                let mut byte = ReadBuf::new(&mut byte);
                Pin::new(&mut tls.stream)
                    .poll_read(&mut cx, &mut byte)
                    .is_pending()
            }
        }
    }

    /// Writes as much of `queue` as the connection takes, which is not empty.
    pub(super) fn poll_write_queue(
        &mut self,
        cx: &mut Context<'_>,
        queue: &[Bytes],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => loop {
                match write_now(stream, queue) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        ready!(stream.poll_write_ready(cx))?;
                    }
                    done => return Poll::Ready(done),
                }
            },
            // Records are made of what comes at once, and the layer below copies it anyway.
            Self::Tls(tls) => {
                let slices: SmallVec<[io::IoSlice<'_>; 4]> =
                    queue.iter().map(|b| io::IoSlice::new(b)).collect();
                Pin::new(&mut tls.stream).poll_write_vectored(cx, &slices)
            }
        }
    }

    /// Whether HTTP/2 may be spoken: prior knowledge does without an agreement, TLS does not.
    pub(super) fn speaks_h2(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(tls) => tls.stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// Where a later failure of TLS will be noted.
    pub(super) fn tls_fault(&self) -> TlsFault {
        match self {
            Self::Plain(_) => TlsFault::default(),
            Self::Tls(tls) => Rc::clone(&tls.fault),
        }
    }

    /// Whether what was written may wait here for a flush.
    pub(super) fn keeps_back(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

fn write_now(stream: &TcpStream, queue: &[Bytes]) -> io::Result<usize> {
    if let [only] = queue {
        return stream.try_write(only);
    }
    let slices: SmallVec<[io::IoSlice<'_>; 4]> =
        queue.iter().map(|b| io::IoSlice::new(b)).collect();
    stream.try_write_vectored(&slices)
}

/// Opens a TCP connection without Nagle's delay. A host that vanishes without a word is found out
/// by keepalive probes: nobody else would, once its endpoint is out of the pool.
pub(crate) async fn tcp(address: SocketAddr, limit: Duration) -> Result<TcpStream, SendError> {
    let stream = tokio::time::timeout(limit, TcpStream::connect(address))
        .await
        .map_err(|_| SendError::Timeout("connect"))?
        .map_err(SendError::Connect)?;
    stream.set_nodelay(true).map_err(SendError::Connect)?;
    let probes = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(&stream)
        .set_tcp_keepalive(&probes)
        .map_err(SendError::Connect)?;
    Ok(stream)
}

/// What broke a connection: TLS, or whatever is below it.
pub(super) fn broke(error: io::Error) -> SendError {
    if is_of_tls(&error) {
        SendError::Tls(error)
    } else {
        SendError::Reset(error)
    }
}

fn is_of_tls(error: &io::Error) -> bool {
    let inner = error.get_ref();
    inner.is_some_and(|inner| inner.is::<rustls::Error>())
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(tls) => tls.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(tls) => tls.stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_shutdown(cx),
        }
    }
}
