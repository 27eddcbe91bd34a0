//! Chunked transfer coding as a state machine over a read buffer.
//!
//! All payload that is readable comes out as one piece, compacted in place: a burst of fifty
//! tokens costs one write towards the client instead of fifty. Bytes of a broken message are
//! never passed on as if they were whole.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::trailers::{TRAILERS_BYTES_MAX, TRAILERS_MAX, passes};

/// Bytes of one chunk-size line, extensions included. Longer lines are an error.
const SIZE_LINE_BYTES_MAX: usize = 256;

/// Where in the coding the next byte belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

/// Decodes one chunked message.
#[derive(Debug)]
pub struct Chunked {
    state: State,
}

/// What one call found.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Payload, possibly of several chunks.
    pub data: Bytes,
    /// Trailers, with the end of the message.
    pub trailers: Option<HeaderMap>,
}

/// The peer broke the coding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadChunk(pub &'static str);

impl Default for Chunked {
    fn default() -> Self {
        Self { state: State::Size }
    }
}

impl Chunked {
    /// Whether the message is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes everything decodable from the front of `buf`.
    ///
    /// # Errors
    /// If the bytes are not chunked coding, or a bound is exceeded.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, BadChunk> {
        let mut out = Decoded::default();
        // Payload found so far lies at [start, end); the reader is at `at`.
        let (mut start, mut end, mut at) = (0, 0, 0);
        loop {
            let rest = &buf[at..];
            match self.state {
                State::Size => {
                    let Some(line) =
                        line(rest, SIZE_LINE_BYTES_MAX, "chunk size line is too long")?
                    else {
                        break;
                    };
                    let size = chunk_size(line)?;
                    at += line.len() + 2;
                    self.state = if size == 0 {
                        State::Trailers
                    } else {
                        State::Data(size)
                    };
                }
                State::Data(left) => {
                    let n = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if n == 0 {
                        break;
                    }
                    if start == end {
                        start = at;
                        end = at + n;
                    } else {
                        buf.copy_within(at..at + n, end);
                        end += n;
                    }
                    at += n;
                    let left = left - n as u64;
                    self.state = if left == 0 {
                        State::DataEnd
                    } else {
                        State::Data(left)
                    };
                }
                State::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => break,
                    _ => return Err(BadChunk("chunk does not end with CRLF")),
                },
                State::Trailers => {
                    let Some((length, trailers)) = trailers(rest)? else {
                        break;
                    };
                    at += length;
                    out.trailers = trailers;
                    self.state = State::Done;
                }
                State::Done => break,
            }
        }
        if start < end {
            buf.advance(start);
            out.data = buf.split_to(end - start).freeze();
            buf.advance(at - end);
        } else {
            buf.advance(at);
        }
        Ok(out)
    }
}

/// The line at the front without its CRLF; `None` while it is incomplete.
fn line<'a>(
    rest: &'a [u8],
    bytes_max: usize,
    too_long: &'static str,
) -> Result<Option<&'a [u8]>, BadChunk> {
    match rest.iter().take(bytes_max).position(|&b| b == b'\n') {
        Some(0) => Err(BadChunk("bare LF in chunked coding")),
        Some(n) if rest[n - 1] == b'\r' => Ok(Some(&rest[..n - 1])),
        Some(_) => Err(BadChunk("bare LF in chunked coding")),
        None if rest.len() >= bytes_max => Err(BadChunk(too_long)),
        None => Ok(None),
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, BadChunk> {
    let bad = BadChunk("chunk size is not hexadecimal");
    let end = line.iter().position(|&b| b == b';').unwrap_or(line.len());
    let digits = line[..end].trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 {
        return Err(bad);
    }
    digits.iter().try_fold(0_u64, |size, &b| {
        let digit = char::from(b).to_digit(16).ok_or(bad)?;
        Ok(size << 4 | u64::from(digit))
    })
}

/// Length and content of the trailer section; `None` while it is incomplete.
fn trailers(rest: &[u8]) -> Result<Option<(usize, Option<HeaderMap>)>, BadChunk> {
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    match httparse::parse_headers(rest, &mut fields) {
        Ok(httparse::Status::Complete((length, []))) => Ok(Some((length, None))),
        Ok(httparse::Status::Complete((length, fields))) => {
            let mut map = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let (Ok(name), Ok(value)) = (
                    http::HeaderName::from_bytes(field.name.as_bytes()),
                    http::HeaderValue::from_bytes(field.value),
                ) else {
                    return Err(BadChunk("malformed trailer"));
                };
                if passes(&name) {
                    map.append(name, value);
                }
            }
            Ok(Some((length, Some(map))))
        }
        Ok(httparse::Status::Partial) if rest.len() < TRAILERS_BYTES_MAX => Ok(None),
        Ok(httparse::Status::Partial) => Err(BadChunk("trailers are too long")),
        Err(_) => Err(BadChunk("malformed trailer")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(input: &[u8], pieces: &[usize]) -> Result<(Vec<u8>, bool, usize), BadChunk> {
        let (mut chunked, mut buf, mut data) = (Chunked::default(), BytesMut::new(), Vec::new());
        let mut at = 0;
        let ends = pieces.iter().copied().chain([input.len()]);
        for end in ends {
            let end = end.clamp(at, input.len());
            buf.extend_from_slice(&input[at..end]);
            at = end;
            data.extend_from_slice(&chunked.decode(&mut buf)?.data);
        }
        Ok((data, chunked.is_done(), buf.len()))
    }

    #[test]
    fn ready_chunks_come_out_as_one_piece() {
        let mut buf = BytesMut::from(&b"3\r\nabc\r\n2;x=y\r\nde\r\n1\r\nf\r\n"[..]);
        let mut chunked = Chunked::default();
        assert_eq!(chunked.decode(&mut buf).unwrap().data, "abcdef");
        assert!(buf.is_empty() && !chunked.is_done());
    }

    #[test]
    fn bytes_after_the_end_stay_in_the_buffer() {
        assert_eq!(
            check(b"1\r\na\r\n0\r\n\r\nHTTP", &[]),
            Ok((b"a".to_vec(), true, 4))
        );
    }

    #[test]
    fn trailers_are_returned() {
        let mut buf = BytesMut::from(&b"0\r\nx-sum: 1\r\n\r\n"[..]);
        let trailers = Chunked::default()
            .decode(&mut buf)
            .unwrap()
            .trailers
            .unwrap();
        assert_eq!(trailers["x-sum"], "1");
    }

    #[test]
    fn broken_coding_is_refused() {
        for bad in [
            &b"x\r\n"[..],
            b"\r\n",
            b"1\r\nab\r\n",
            b"1\na\r\n",
            b"-1\r\n",
            b"1 1\r\n",
        ] {
            assert!(
                check(bad, &[]).is_err(),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
        assert!(check(&[b'0'; 300], &[]).is_err(), "an endless size line");
        assert!(
            check(b"10000000000000000\r\n", &[]).is_err(),
            "a size that overflows"
        );
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_payload(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            mut cuts in prop::collection::vec(0_usize..400, 0..12),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            cuts.sort_unstable();
            prop_assert_eq!(check(&wire, &cuts), Ok((chunks.concat(), true, 0)));
        }
    }
}
