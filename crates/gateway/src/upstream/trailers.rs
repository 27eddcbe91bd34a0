//! Trailers: the fields behind a body, of requests and of responses alike.
//!
//! They pass through, but for those that a head alone may have. HTTP/1.1 has a place for them behind
//! chunks only; how the rest of a body is framed is none of this.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, header};
use smallvec::SmallVec;

use super::is_hop_by_hop;

/// Bytes of names and values of all trailers of a message. More is an error of whoever sent them.
pub const TRAILERS_BYTES_MAX: usize = 16 << 10;
/// Number of trailers of a message. More is an error of whoever sent them.
pub const TRAILERS_MAX: usize = 64;

/// Whether a trailer of this name is passed on. Framing and routing are settled by the head: a late
/// word on them is dropped.
pub(super) fn passes(name: &HeaderName) -> bool {
    !is_hop_by_hop(name)
        && !matches!(
            *name,
            header::CONTENT_LENGTH | header::HOST | header::TRAILER
        )
}

/// Leaves of `trailers` what is passed on.
pub(crate) fn settle(trailers: &mut HeaderMap) {
    let gone: SmallVec<[HeaderName; 4]> = (trailers.keys())
        .filter(|name| !passes(name))
        .cloned()
        .collect();
    for name in gone {
        trailers.remove(name);
    }
}

/// Whether `trailers` keep within their bounds.
pub(crate) fn fit(trailers: &HeaderMap) -> bool {
    trailers.len() <= TRAILERS_MAX && bytes_of(trailers) <= TRAILERS_BYTES_MAX
}

/// Bytes of their names and values.
pub(crate) fn bytes_of(trailers: &HeaderMap) -> usize {
    let fields = trailers.iter();
    fields.map(|(n, v)| n.as_str().len() + v.len()).sum()
}

/// Writes the end of a chunked body: the last chunk, the trailers, an empty line.
pub(super) fn write_end(trailers: Option<&HeaderMap>, out: &mut BytesMut) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        out.put_slice(name.as_ref());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
}
