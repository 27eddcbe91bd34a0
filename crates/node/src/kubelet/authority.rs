//! Lets the kubelet's requests be read: it dials by path, and its gRPC library then sends the socket's path
//! as `:authority`, which is no authority, and which the HTTP/2 server here refuses as malformed.
//!
//! The value is replaced by `localhost` where it comes as a literal. Nothing is decoded for that, and the
//! tables of both sides stay in step: places are counted from the newest entry, and a shorter one never
//! leaves earlier. A header block that is padded or split over frames, which the kubelet sends none of,
//! goes through as it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// What a client says first.
const PREFACE_LEN: usize = 24;
const FRAME_HEADER_LEN: usize = 9;
/// Bytes of a frame that the server takes unless it says otherwise. Longer ones are left to it to refuse.
const FRAME_LEN_MAX: usize = 16_384;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `localhost` as a string of HPACK, without Huffman's code.
const LOCALHOST: &[u8] = b"\x09localhost";

/// Replaces in what it is given piece by piece.
#[derive(Debug)]
struct Rewriter {
    /// Bytes that go through unseen before the next frame.
    passing: usize,
    /// The begin of a frame that is not whole yet.
    held: Vec<u8>,
}

impl Rewriter {
    fn new() -> Self {
        Self {
            passing: PREFACE_LEN,
            held: Vec::new(),
        }
    }

    fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            if self.passing > 0 {
                let (through, rest) = input.split_at(self.passing.min(input.len()));
                out.extend_from_slice(through);
                self.passing -= through.len();
                input = rest;
                continue;
            }
            let wanted = self.wanted();
            let (taken, rest) = input.split_at((wanted - self.held.len()).min(input.len()));
            self.held.extend_from_slice(taken);
            input = rest;
            if self.held.len() == FRAME_HEADER_LEN && !self.is_headers() {
                self.passing = self.frame_len();
                out.append(&mut self.held);
            } else if self.held.len() == self.wanted() {
                let frame = rewritten(&self.held).unwrap_or_else(|| self.held.clone());
                out.extend_from_slice(&frame);
                self.held.clear();
            }
        }
    }

    /// Bytes to hold before it can go on.
    fn wanted(&self) -> usize {
        match self.held.len() >= FRAME_HEADER_LEN {
            true => FRAME_HEADER_LEN + self.frame_len(),
            false => FRAME_HEADER_LEN,
        }
    }

    fn frame_len(&self) -> usize {
        self.held[..3]
            .iter()
            .fold(0, |len, byte| len << 8 | usize::from(*byte))
    }

    fn is_headers(&self) -> bool {
        let flags = self.held[4];
        self.held[3] == HEADERS
            && flags & END_HEADERS != 0
            && flags & PADDED == 0
            && self.frame_len() <= FRAME_LEN_MAX
    }
}

/// The frame with another authority; none if there is nothing to replace, or it cannot be followed.
fn rewritten(frame: &[u8]) -> Option<Vec<u8>> {
    let begin = FRAME_HEADER_LEN + if frame[4] & PRIORITY != 0 { 5 } else { 0 };
    let mut at = begin;
    while at < frame.len() {
        let first = frame[at];
        // An indexed field, or a new size of the table: no strings.
        let (bits, strings) = match first {
            0x80.. => (7, 0),
            0x40.. => (6, 1),
            0x20.. => (5, 0),
            _ => (4, 1),
        };
        let (index, mut next) = integer(frame, at, bits)?;
        if strings == 1 && index == 0 {
            next = string_end(frame, next)?;
        }
        if strings == 1 {
            let end = string_end(frame, next)?;
            // `:authority` is the first entry of the static table.
            if index == 1 {
                let mut out = [&frame[..next], LOCALHOST, &frame[end..]].concat();
                let len = u32::try_from(out.len() - FRAME_HEADER_LEN).ok()?;
                out[..3].copy_from_slice(&len.to_be_bytes()[1..]);
                return Some(out);
            }
            next = end;
        }
        at = next;
    }
    None
}

/// An integer of HPACK with so many bits in its first byte, and where it ends.
fn integer(bytes: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*bytes.get(at)?) & mask;
    if value < mask {
        return Some((value, at + 1));
    }
    // Four bytes more are far above what a frame can hold.
    for more in 0..4 {
        let byte = *bytes.get(at + 1 + more)?;
        value += usize::from(byte & 0x7f) << (7 * more);
        if byte & 0x80 == 0 {
            return Some((value, at + 2 + more));
        }
    }
    None
}

fn string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let (len, begin) = integer(bytes, at, 7)?;
    let end = begin.checked_add(len)?;
    (end <= bytes.len()).then_some(end)
}

/// A connection on which every request is for `localhost`.
#[derive(Debug)]
pub(super) struct Localhost {
    stream: UnixStream,
    rewriter: Rewriter,
    ready: Vec<u8>,
    taken: usize,
}

impl Localhost {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            rewriter: Rewriter::new(),
            ready: Vec::new(),
            taken: 0,
        }
    }
}

impl AsyncRead for Localhost {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.taken == this.ready.len() {
            this.ready.clear();
            this.taken = 0;
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.push(read.filled(), &mut this.ready);
        }
        let ready = &this.ready[this.taken..];
        let len = ready.len().min(out.remaining());
        out.put_slice(&ready[..len]);
        this.taken += len;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Localhost {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_localhost_and_all_else_stays_however_the_bytes_come() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let headers = |authority: &[u8]| {
            // :method POST, :scheme http, :authority, and a new name with a value.
            let block = [&[0x83, 0x86, 0x41], authority, b"\x40\x01a\x01b"].concat();
            let len = u8::try_from(block.len()).expect("short");
            [&[0, 0, len, 1, 4, 0, 0, 0, 1][..], &block].concat()
        };
        let data = [0, 0, 3, 0, 1, 0, 0, 0, 1, 9, 9, 9];
        let wire = |authority| [&preface[..], &settings, &headers(authority), &data].concat();
        let sent = wire(b"\x0d%2Frun%2Fsock");
        for step in [1, 5, sent.len()] {
            let (mut rewriter, mut got) = (Rewriter::new(), Vec::new());
            for piece in sent.chunks(step) {
                rewriter.push(piece, &mut got);
            }
            assert_eq!(got, wire(LOCALHOST), "in pieces of {step}");
        }
    }
}
