//! Server-sent events, passed on whole.
//!
//! A client can do nothing with an event before its empty line, and what has gone out cannot be taken
//! back: half a line that any line end follows would be read as a whole one, half a JSON document as
//! a broken one. So the beginning of an event waits here for its end. If the stream breaks off
//! instead, the client has only whole events, and one that tells of the error can follow them.
//! Bytes are neither changed nor copied; usually whole events come in one read, and nothing waits.

use bytes::Bytes;
use memchr::memrchr2;

/// Bytes of one event that are kept until it is whole. A longer one goes on as it comes; should the
/// stream break off within it, nothing can follow.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// The way of one stream.
#[derive(Debug)]
pub struct WholeEvents {
    /// The beginning of an event whose end has not come.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// The last two bytes that came.
    last: [u8; 2],
    /// Whether the event that has begun is too long to keep, and its beginning has gone out.
    passing: bool,
}

impl Default for WholeEvents {
    fn default() -> Self {
        Self {
            held: Vec::new(),
            held_bytes: 0,
            // As if an event had ended: nothing has begun.
            last: *b"\n\n",
            passing: false,
        }
    }
}

impl WholeEvents {
    /// Takes the next bytes and appends what may go out to `out`.
    pub fn push(&mut self, mut data: Bytes, out: &mut impl Extend<Bytes>) {
        let Some(end) = last_end(self.last, &data) else {
            return self.keep(data, out);
        };
        self.finish(out);
        self.passing = false;
        // Nothing of what came before can end an event together with what comes now.
        self.last = *b"\n\n";
        let begun = data.split_off(end);
        out.extend([data]);
        self.keep(begun, out);
    }

    fn keep(&mut self, part: Bytes, out: &mut impl Extend<Bytes>) {
        match *part {
            [] => return,
            [only] => self.last = [self.last[1], only],
            [.., before, last] => self.last = [before, last],
        }
        self.held_bytes += part.len();
        self.held.push(part);
        if self.passing || self.held_bytes > EVENT_BYTES_MAX {
            self.passing = true;
            self.finish(out);
        }
    }

    /// What is left, when the stream has ended as it should.
    pub fn finish(&mut self, out: &mut impl Extend<Bytes>) {
        out.extend(self.held.drain(..));
        self.held_bytes = 0;
    }

    /// Ends a stream that has broken off. What was kept is dropped; true if only whole events have
    /// gone out, so that another one may follow.
    #[must_use]
    pub fn break_off(self) -> bool {
        !self.passing
    }
}

/// Where the last event that is complete with `data` ends in it; `before` came right before.
///
/// Lines end in LF, CR or CRLF, and an event in an empty line. LF and a CR of its own behind it,
/// which nobody sends, are not told apart from the beginning of a CRLF.
fn last_end(before: [u8; 2], data: &[u8]) -> Option<usize> {
    let mut upto = data.len();
    while let Some(at) = memrchr2(b'\n', b'\r', &data[..upto]) {
        let back = |bytes: usize| match at.checked_sub(bytes) {
            Some(at) => data[at],
            None => before[2 + at - bytes],
        };
        let ends = match (back(1), data[at]) {
            (b'\n', b'\n') | (b'\r', b'\r') => true,
            (b'\r', b'\n') => matches!(back(2), b'\n' | b'\r'),
            _ => false,
        };
        if ends {
            return Some(at + 1);
        }
        upto = at;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What has gone out after each of these pieces, and then at the end of the stream.
    fn passed(pieces: &[&str]) -> Vec<String> {
        let (mut events, mut out) = (WholeEvents::default(), Vec::new());
        let text = |out: &[Bytes]| String::from_utf8(out.concat()).unwrap();
        let mut after = Vec::new();
        for piece in pieces {
            events.push(Bytes::copy_from_slice(piece.as_bytes()), &mut out);
            after.push(text(&out));
        }
        events.finish(&mut out);
        after.push(text(&out));
        after
    }

    #[test]
    fn the_beginning_of_an_event_waits_for_its_end() {
        for end in ["\n\n", "\r\n\r\n", "\r\r", "\n\r\n"] {
            let whole = format!("event: a{end}data: 1{end}");
            let got = passed(&[&whole, "data: {\"b", "c\"}", end, "data: 2", end]);
            let second = format!("{whole}data: {{\"bc\"}}{end}");
            let third = format!("{second}data: 2{end}");
            let expected = [&whole, &whole, &whole, &second, &second, &third, &third];
            assert_eq!(got.iter().collect::<Vec<_>>(), expected, "{end:?}");
        }
    }

    #[test]
    fn an_end_in_pieces_is_an_end() {
        assert_eq!(
            passed(&["a\r", "\n", "\r", "\n", "b\n", "\nc"]),
            [
                "",
                "",
                "",
                "a\r\n\r\n",
                "a\r\n\r\n",
                "a\r\n\r\nb\n\n",
                "a\r\n\r\nb\n\nc"
            ]
        );
    }

    #[test]
    fn whole_events_are_passed_on_uncopied_in_one_piece() {
        let (mut events, mut out) = (WholeEvents::default(), Vec::new());
        let data = Bytes::from_static(b"data: 1\n\ndata: 2\n\n");
        events.push(data.clone(), &mut out);
        assert_eq!(out, std::slice::from_ref(&data));
        assert_eq!(out[0].as_ptr(), data.as_ptr());
        assert!(events.break_off());
    }

    #[test]
    fn an_event_that_is_too_long_to_keep_is_passed_on_as_it_comes() {
        let (mut events, mut out) = (WholeEvents::default(), Vec::new());
        let half = Bytes::from(vec![b'x'; EVENT_BYTES_MAX / 2]);
        events.push(half.clone(), &mut out);
        events.push(half, &mut out);
        assert_eq!(out.len(), 0);
        events.push(Bytes::from_static(b"y"), &mut out);
        assert_eq!(out.concat().len(), EVENT_BYTES_MAX + 1);
        events.push(Bytes::from_static(b"z\n"), &mut out);
        assert_eq!(out.last().unwrap(), "z\n");
        events.push(Bytes::from_static(b"\ndata"), &mut out);
        assert_eq!(out.last().unwrap(), "\n");
        assert!(events.break_off(), "the next one is kept again");
        let mut events = WholeEvents::default();
        events.push(vec![b'x'; EVENT_BYTES_MAX + 1].into(), &mut out);
        assert!(!events.break_off());
    }

    /// The lines of a stream by the book, the last one without its end.
    fn lines(text: &str) -> Vec<String> {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        text.split('\n').map(str::to_owned).collect()
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_only_whole_events_go_out(
            words in prop::collection::vec(
                prop::sample::select(vec!["data: x", ":", "\n", "\n\n", "\r\n", "\r\n\r\n", "\r\r"]),
                0..30,
            ),
            size in 1usize..12,
        ) {
            let text = words.concat();
            let pieces: Vec<String> = text
                .as_bytes()
                .chunks(size)
                .map(|piece| String::from_utf8(piece.to_vec()).unwrap())
                .collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let mut after = passed(&pieces);
            prop_assert_eq!(after.pop().unwrap(), text);
            for out in after {
                // What has gone out ends with an empty line, or has no other lines at all.
                let lines = lines(&out);
                let ended = lines.len() >= 2 && lines[lines.len() - 2..].iter().all(String::is_empty);
                prop_assert!(out.is_empty() || ended, "{:?}", out);
            }
        }
    }
}
