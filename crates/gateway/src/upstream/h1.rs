//! HTTP/1.1 towards an endpoint.
//!
//! One request at a time per connection, no second task: upload and download are polled together
//! by whoever awaits the response. The framing of a response is decided once, strictly; anything
//! ambiguous is an error rather than a guess, since a wrong guess is a smuggled response.

mod upload;

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Frame;
use smallvec::SmallVec;

use self::upload::Upload;
use super::chunked::Chunked;
use super::io::{Io, broke};
use super::{Answer, AnswerBody, Head, Idle, Key, Outgoing, Peer, SendError, settle_fields};
use crate::telemetry::Counted;
use crate::tls::backend::Inside;

/// Bytes of a response head. A longer head is an error of the endpoint.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Fields of a response head. More is an error of the endpoint.
const HEADERS_MAX: usize = 128;
/// Bytes asked from the socket at once.
const READ_BYTES: usize = 16 << 10;
/// Bytes asked at once after the first full reads of a long body.
const READ_BYTES_LONG: usize = 64 << 10;

/// An open connection with no request on it.
#[derive(Debug)]
pub(super) struct Conn {
    io: Io,
    key: Key,
    buf: BytesMut,
    counted: Counted,
}

impl Conn {
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Whether the peer has neither closed nor sent anything out of turn.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.io.is_quiet()
    }
}

pub(super) async fn connect(idle: &Idle, peer: &Peer, limit: Duration) -> Result<Conn, SendError> {
    Ok(Conn {
        io: Io::connect(idle, peer, Inside::Http1, limit).await?,
        key: peer.key(),
        buf: BytesMut::new(),
        counted: idle.opened(),
    })
}

/// Sends one request and waits for the head of its final response.
pub(super) async fn send(
    conn: Conn,
    idle: &Idle,
    head: &Head<'_>,
    body: Outgoing,
) -> Result<Answer, SendError> {
    let mut upload = Upload::new(head, body);
    let Conn {
        mut io,
        key,
        mut buf,
        counted,
    } = conn;
    buf.clear();
    let parsed = std::future::poll_fn(|cx| {
        // A failed upload is not yet a failed exchange: the endpoint may have answered before it
        // stopped reading (413, for one). Only the client's own failure ends it at once.
        if let Poll::Ready(Err(SendError::ClientBody)) = upload.poll(&mut io, cx) {
            return Poll::Ready(Err(SendError::ClientBody));
        }
        poll_head(&mut io, &mut buf, cx)
    })
    .await?;
    let ParsedHead {
        status,
        mut headers,
        version_minor,
    } = parsed;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        if head.upgrade.is_none() {
            return Err(SendError::Protocol("101 without a request to upgrade"));
        }
        let body = AnswerBody::Upgraded(Upgraded {
            io,
            early: buf.freeze(),
            counted,
        });
        return Ok(Answer {
            status,
            headers,
            body,
        });
    }
    let framing = framing(head.method, status, &headers)?;
    let keep = keeps_alive(version_minor, &headers)
        && !matches!(framing, Framing::UntilClose)
        && !upload.failed;
    settle_fields(status, &mut headers);
    let finished = matches!(framing, Framing::Length(0));
    let mut body = H1Body {
        conn: Some((
            Conn {
                io,
                key,
                buf,
                counted,
            },
            idle.clone(),
        )),
        upload: (!upload.is_done()).then_some(upload),
        framing,
        keep,
        finished,
        read_bytes: READ_BYTES,
    };
    if finished {
        body.release();
    }
    Ok(Answer {
        status,
        headers,
        body: AnswerBody::H1(Box::new(body)),
    })
}

// === the response's head ===

struct ParsedHead {
    status: StatusCode,
    headers: HeaderMap,
    version_minor: u8,
}

fn poll_head(
    io: &mut Io,
    buf: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<Result<ParsedHead, SendError>> {
    loop {
        if !buf.is_empty() {
            match parse_head(buf)? {
                // 100 and 103 are for us; the final response follows.
                Some(head) if head.status.is_informational() && head.status != 101 => continue,
                Some(head) => return Poll::Ready(Ok(head)),
                None if buf.len() >= HEAD_BYTES_MAX => {
                    return Poll::Ready(Err(SendError::Protocol("response head is too long")));
                }
                None => {}
            }
        }
        let n = ready!(poll_read(io, buf, READ_BYTES, cx)).map_err(broke)?;
        if n == 0 {
            return Poll::Ready(Err(SendError::Reset(io::ErrorKind::UnexpectedEof.into())));
        }
    }
}

/// Reads what is there. A short read leaves the socket known as drained, so that the next call
/// waits instead of asking the kernel once more.
fn poll_read(
    io: &mut Io,
    buf: &mut BytesMut,
    read_bytes: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if buf.capacity() - buf.len() < read_bytes / 4 {
        buf.reserve(read_bytes);
    }
    tokio_util::io::poll_read_buf(Pin::new(io), cx, buf)
}

/// Takes a complete head off the buffer.
fn parse_head(buf: &mut BytesMut) -> Result<Option<ParsedHead>, SendError> {
    // Left uninitialised: clearing four kilobytes costs as much as parsing the usual head.
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let length = match parser.parse_response_with_uninit_headers(&mut response, buf, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(SendError::Protocol("malformed response head")),
    };
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or(SendError::Protocol("malformed status"))?;
    let version_minor = response.version.unwrap_or(0);
    // Values become slices of the head instead of copies: first their places, then the split.
    let base = buf.as_ptr() as usize;
    let mut places: SmallVec<[(HeaderName, usize, usize); 24]> = SmallVec::new();
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| SendError::Protocol("malformed header name"))?;
        let at = if field.value.is_empty() {
            0
        } else {
            field.value.as_ptr() as usize - base
        };
        places.push((name, at, field.value.len()));
    }
    let head = buf.split_to(length).freeze();
    let mut headers = HeaderMap::with_capacity(places.len());
    for (name, at, length) in places {
        let value = HeaderValue::from_maybe_shared(head.slice(at..at + length))
            .map_err(|_| SendError::Protocol("malformed header value"))?;
        headers.append(name, value);
    }
    Ok(Some(ParsedHead {
        status,
        headers,
        version_minor,
    }))
}

/// How the end of a response body is found.
#[derive(Debug)]
enum Framing {
    Length(u64),
    Chunked(Chunked),
    /// The chunked body is complete; these trailers are still to be passed on.
    Tail(HeaderMap),
    UntilClose,
}

/// RFC 9112 §6.3, with the ambiguous cases refused.
fn framing(method: &Method, status: StatusCode, headers: &HeaderMap) -> Result<Framing, SendError> {
    let bodiless = *method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    if bodiless {
        return Ok(Framing::Length(0));
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if headers.contains_key(TRANSFER_ENCODING) {
        if length.is_some() {
            return Err(SendError::Protocol(
                "both Content-Length and Transfer-Encoding",
            ));
        }
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let only_chunked = codings
            .next()
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"chunked"))
            && codings.next().is_none();
        return if only_chunked {
            Ok(Framing::Chunked(Chunked::default()))
        } else {
            Err(SendError::Protocol("transfer coding other than chunked"))
        };
    }
    match length {
        None => Ok(Framing::UntilClose),
        Some(value) => {
            if lengths.any(|other| other != value) {
                return Err(SendError::Protocol("Content-Length values differ"));
            }
            let digits = value.as_bytes();
            let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            value
                .to_str()
                .ok()
                .filter(|_| valid)
                .and_then(|v| v.parse().ok())
                .map(Framing::Length)
                .ok_or(SendError::Protocol("malformed Content-Length"))
        }
    }
}

fn keeps_alive(version_minor: u8, headers: &HeaderMap) -> bool {
    let says = |word: &str| {
        headers.get_all(CONNECTION).iter().any(|v| {
            v.to_str()
                .is_ok_and(|v| v.split(',').any(|w| w.trim().eq_ignore_ascii_case(word)))
        })
    };
    if version_minor == 0 {
        says("keep-alive")
    } else {
        !says("close")
    }
}

// === the response's body ===

/// The body of a response. At its end the connection goes back to its pool; dropped before, it
/// closes, which tells the endpoint that nobody listens any more.
#[derive(Debug)]
pub struct H1Body {
    conn: Option<(Conn, Idle)>,
    upload: Option<Upload>,
    framing: Framing,
    keep: bool,
    finished: bool,
    read_bytes: usize,
}

impl H1Body {
    /// Bytes still to come, if the endpoint said so.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::Chunked(_) | Framing::Tail(_) | Framing::UntilClose => None,
        }
    }

    /// Whether the body has been read to its end.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The next frame: everything that is readable now, as one piece.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        if self.finished {
            return Poll::Ready(None);
        }
        let Some((conn, _)) = &mut self.conn else {
            return Poll::Ready(None);
        };
        if let Some(upload) = &mut self.upload {
            match upload.poll(&mut conn.io, cx) {
                Poll::Ready(Ok(())) => self.upload = None,
                Poll::Ready(Err(e)) => return Poll::Ready(Some(Err(e))),
                Poll::Pending => {}
            }
        }
        loop {
            if let Some(frame) = take_frame(&mut self.framing, &mut conn.buf, &mut self.finished)? {
                if self.finished {
                    self.release();
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.finished {
                self.release();
                return Poll::Ready(None);
            }
            let n = ready!(poll_read(&mut conn.io, &mut conn.buf, self.read_bytes, cx))
                .map_err(broke)?;
            if n == 0 {
                self.finished = true;
                return match self.framing {
                    Framing::UntilClose => Poll::Ready(None),
                    Framing::Length(_) | Framing::Chunked(_) | Framing::Tail(_) => Poll::Ready(
                        Some(Err(SendError::Reset(io::ErrorKind::UnexpectedEof.into()))),
                    ),
                };
            }
            if n >= READ_BYTES - 1024 {
                self.read_bytes = READ_BYTES_LONG;
            }
        }
    }

    /// Gives the connection back if it can carry another request.
    fn release(&mut self) {
        if let Some((conn, idle)) = self.conn.take()
            && self.keep
            && self.upload.is_none()
            && conn.buf.is_empty()
        {
            idle.put(conn);
        }
    }
}

/// Takes what is decodable; sets `finished` at the end of the body.
fn take_frame(
    framing: &mut Framing,
    buf: &mut BytesMut,
    finished: &mut bool,
) -> Result<Option<Frame<Bytes>>, SendError> {
    match framing {
        Framing::Length(left) => {
            let n = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= n as u64;
            *finished = *left == 0;
            Ok((n > 0).then(|| Frame::data(buf.split_to(n).freeze())))
        }
        Framing::Tail(trailers) => {
            *finished = true;
            Ok(Some(Frame::trailers(std::mem::take(trailers))))
        }
        Framing::UntilClose => Ok((!buf.is_empty()).then(|| Frame::data(buf.split().freeze()))),
        Framing::Chunked(chunked) => {
            if chunked.is_done() {
                *finished = true;
                return Ok(None);
            }
            let decoded = chunked.decode(buf).map_err(|e| SendError::Protocol(e.0))?;
            match (decoded.data.is_empty(), decoded.trailers) {
                // The data goes first; the trailers wait for the next call.
                (false, Some(trailers)) => {
                    *framing = Framing::Tail(trailers);
                    Ok(Some(Frame::data(decoded.data)))
                }
                (true, Some(trailers)) => {
                    *finished = true;
                    Ok(Some(Frame::trailers(trailers)))
                }
                (false, None) => {
                    *finished = chunked.is_done();
                    Ok(Some(Frame::data(decoded.data)))
                }
                (true, None) => {
                    *finished = chunked.is_done();
                    Ok(None)
                }
            }
        }
    }
}

/// A connection after `101 Switching Protocols`: bytes in both directions from here on.
#[derive(Debug)]
pub struct Upgraded {
    io: Io,
    early: Bytes,
    counted: Counted,
}

impl Upgraded {
    /// The connection, what the endpoint sent right behind its response, and what counts it.
    #[must_use]
    pub fn into_parts(self) -> (Io, Bytes, Counted) {
        (self.io, self.early, self.counted)
    }
}
