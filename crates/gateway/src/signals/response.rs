//! Just enough HTTP/1.1 to read a metrics page: one answer out of one growing buffer.
//!
//! No compression is asked for, so none is expected. Where the head ends and how long the body is
//! is decided here; sockets and time are the business of the caller.

use std::ops::Range;

/// Bytes of one answer, head included. A page this large costs more than its news is worth; the
/// endpoint then counts as failing to answer, which is logged and counted.
pub(super) const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Headers of one answer.
const HEADERS_MAX: usize = 64;

/// An answer, or how far it has come.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// Read more. Carries nothing over: the head is short and parsed again.
    More,
    /// Complete.
    Done(Answer),
}

/// A complete answer; its body lies in the buffer.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Answer {
    /// Status.
    pub(super) status: u16,
    /// Where the body lies; a chunked body has been moved together.
    pub(super) body: Range<usize>,
    /// Whether the connection can be used again.
    pub(super) keep_alive: bool,
    /// Whether a redirect points to the same path with a slash, as ASGI mounts do.
    pub(super) wants_slash: bool,
}

/// Why an answer cannot be read; also the `reason` of `forebay_scrape_errors_total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unreadable {
    /// Not HTTP/1.
    Malformed,
    /// Larger than [`ANSWER_BYTES_MAX`].
    TooLarge,
    /// The connection ended in the middle.
    Cut,
}

struct Head {
    status: u16,
    body_at: usize,
    length: Length,
    keep_alive: bool,
    wants_slash: bool,
}

enum Length {
    Known(usize),
    Chunked,
    UntilClose,
}

/// Looks at what has arrived; `closed` says that nothing more will.
pub(super) fn read(buffer: &mut [u8], closed: bool) -> Result<Progress, Unreadable> {
    let more = if closed {
        Err(Unreadable::Cut)
    } else {
        Ok(Progress::More)
    };
    let Some(head) = parse_head(buffer)? else {
        return more;
    };
    let body = match head.length {
        Length::Known(bytes) if bytes > ANSWER_BYTES_MAX => return Err(Unreadable::TooLarge),
        Length::Known(bytes) if buffer.len() - head.body_at >= bytes => {
            head.body_at..head.body_at + bytes
        }
        Length::UntilClose if closed => head.body_at..buffer.len(),
        Length::Chunked => match chunks(&buffer[head.body_at..])? {
            Some(chunks) => head.body_at..join(buffer, head.body_at, &chunks),
            None => return more,
        },
        Length::Known(_) | Length::UntilClose => return more,
    };
    // Bytes behind the answer would be taken for the next one.
    let surplus = matches!(head.length, Length::Known(_)) && body.end < buffer.len();
    Ok(Progress::Done(Answer {
        status: head.status,
        body,
        keep_alive: head.keep_alive && !closed && !surplus,
        wants_slash: head.wants_slash,
    }))
}

fn parse_head(buffer: &[u8]) -> Result<Option<Head>, Unreadable> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let body_at = match response.parse(buffer) {
        Ok(httparse::Status::Complete(at)) => at,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Unreadable::Malformed),
    };
    let status = response.code.ok_or(Unreadable::Malformed)?;
    let mut head = Head {
        status,
        body_at,
        length: Length::UntilClose,
        keep_alive: response.version == Some(1),
        wants_slash: false,
    };
    for header in response.headers.iter() {
        let value = str::from_utf8(header.value).unwrap_or("").trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            if !matches!(head.length, Length::Chunked) {
                head.length = Length::Known(value.parse().map_err(|_| Unreadable::Malformed)?);
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(Unreadable::Malformed);
            }
            head.length = Length::Chunked;
        } else if header.name.eq_ignore_ascii_case("connection") {
            head.keep_alive &= !value.eq_ignore_ascii_case("close");
        } else if header.name.eq_ignore_ascii_case("location") {
            head.wants_slash =
                matches!(status, 301 | 302 | 307 | 308) && value.ends_with("/metrics/");
        }
    }
    if matches!(status, 204 | 304) {
        head.length = Length::Known(0);
    }
    // Until the connection ends means that it cannot be kept.
    head.keep_alive &= !matches!(head.length, Length::UntilClose);
    Ok(Some(head))
}

/// Where the chunks of a body lie in it; `None` while the last one is missing.
fn chunks(body: &[u8]) -> Result<Option<Vec<Range<usize>>>, Unreadable> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let (head, bytes) = match httparse::parse_chunk_size(&body[at..]) {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Unreadable::Malformed),
        };
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes > ANSWER_BYTES_MAX {
            return Err(Unreadable::TooLarge);
        }
        let start = at + head;
        // A chunk ends with CRLF, and the last one is empty: trailers are not sent unasked.
        let end = start + bytes;
        match body.get(end..end + 2) {
            None => return Ok(None),
            Some(b"\r\n") => {}
            Some(_) => return Err(Unreadable::Malformed),
        }
        if bytes == 0 {
            return Ok(Some(found));
        }
        found.push(start..end);
        at = end + 2;
    }
}

/// Moves the chunks together at the body's beginning; answers where the body now ends.
fn join(buffer: &mut [u8], body_at: usize, chunks: &[Range<usize>]) -> usize {
    let mut end = body_at;
    for chunk in chunks {
        buffer.copy_within(body_at + chunk.start..body_at + chunk.end, end);
        end += chunk.len();
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `wire` gives `body`, whole or byte by byte, and nothing earlier.
    fn check(wire: &str, closed: bool, body: &str, keep_alive: bool) {
        for upto in 0..wire.len() {
            let mut part = wire.as_bytes()[..upto].to_vec();
            assert_eq!(
                read(&mut part, false),
                Ok(Progress::More),
                "after {upto} bytes"
            );
        }
        let mut buffer = wire.as_bytes().to_vec();
        match read(&mut buffer, closed) {
            Ok(Progress::Done(answer)) => {
                assert_eq!(str::from_utf8(&buffer[answer.body]), Ok(body));
                assert_eq!(answer.keep_alive, keep_alive);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_body_of_known_length_is_complete_at_its_length() {
        check(
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na 1\n",
            false,
            "a 1\n",
            true,
        );
    }

    #[test]
    fn chunks_are_joined() {
        let wire = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n";
        check(wire, false, "abcde", true);
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        check("HTTP/1.0 200 OK\r\n\r\nabc", true, "abc", false);
    }

    #[test]
    fn a_server_that_says_close_is_believed() {
        check(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\na",
            false,
            "a",
            false,
        );
    }

    #[test]
    fn a_server_that_sends_more_than_it_said_loses_its_connection() {
        let mut wire = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab".to_vec();
        match read(&mut wire, false) {
            Ok(Progress::Done(answer)) => assert!(!answer.keep_alive),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_cut() {
        let mut wire = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na".to_vec();
        assert_eq!(read(&mut wire, true), Err(Unreadable::Cut));
        assert_eq!(read(&mut [], true), Err(Unreadable::Cut));
    }

    #[test]
    fn an_answer_that_is_too_large_is_refused_by_its_head() {
        for wire in [
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffff\r\n",
        ] {
            assert_eq!(
                read(&mut wire.as_bytes().to_vec(), false),
                Err(Unreadable::TooLarge)
            );
        }
    }

    #[test]
    fn a_redirect_to_the_slash_is_recognised() {
        let mut wire =
            b"HTTP/1.1 307 x\r\nlocation: http://a/metrics/\r\ncontent-length: 0\r\n\r\n".to_vec();
        match read(&mut wire, false) {
            Ok(Progress::Done(answer)) => assert!(answer.wants_slash),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(mut bytes: Vec<u8>, closed: bool) {
            let _any = read(&mut bytes, closed);
            let mut wire = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            wire.extend_from_slice(&bytes);
            let _any = read(&mut wire, closed);
        }

        #[test]
        fn chunked_text_comes_back_as_it_was(parts in prop::collection::vec("[a-z\n]{1,40}", 0..8)) {
            let mut wire = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
            for part in &parts {
                wire += &format!("{:x}\r\n{part}\r\n", part.len());
            }
            wire += "0\r\n\r\n";
            check(&wire, false, &parts.concat(), true);
        }
    }
}
