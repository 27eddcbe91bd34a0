//! Follows JSON or server-sent events as they stream by, in any chunks, and says where `model` and
//! `usage` are.
//!
//! It keeps a handful of bytes of state, checks nothing and never fails: an answer that is not what
//! it should be is the client's to judge. Lines end with LF or CRLF; a lone CR, which no model
//! server sends, is not taken as an end. Used by [`crate::splice`] and [`crate::usage`].

use std::sync::LazyLock;

use memchr::memmem::Finder;
use memchr::{memchr, memchr2, memchr3};

/// Something that the tracker was asked to find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// The next byte is the first of the string under `model`.
    Model,
    /// The byte just passed opens the object under `usage`...
    UsageStart,
    /// ...and this one closes it.
    UsageEnd,
}

/// Keys that matter, at the top or in an envelope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    Model,
    /// `usage`, or SGLang's `meta_info`, which holds the same counts.
    Usage,
    /// `response` or `message`: the Responses and Messages streams wrap the answer's head so.
    Envelope,
    Other,
}

impl Key {
    const fn of(name: &[u8]) -> Self {
        match name {
            b"model" => Self::Model,
            b"usage" | b"meta_info" => Self::Usage,
            b"response" | b"message" => Self::Envelope,
            _ => Self::Other,
        }
    }
}

/// Where in its line an event stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Line {
    /// So many bytes of `data:` have matched.
    Start(usize),
    /// After `data:`.
    Data,
    /// A comment or another field.
    Other,
}

const DATA: &[u8] = b"data:";

static MODEL: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"model\""));

/// Inside a string.
#[derive(Clone, Copy, Debug, Default)]
struct Inside {
    /// The last byte was a backslash.
    escape: bool,
    /// The string's beginning, if it is a key.
    key: Option<KeyStart>,
}

/// The first bytes of a key, as many as the longest key that matters and one.
#[derive(Clone, Copy, Debug, Default)]
struct KeyStart {
    bytes: [u8; 10],
    len: usize,
}

impl KeyStart {
    fn extend(&mut self, more: &[u8]) {
        let taken = more.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + taken].copy_from_slice(&more[..taken]);
        self.len += taken;
    }
}

/// The state of one stream.
#[derive(Debug)]
pub(crate) struct Tracker {
    /// The framing of events; `None` for a JSON document.
    line: Option<Line>,
    depth: u32,
    top_is_object: bool,
    in_envelope: bool,
    expects_key: bool,
    /// The latest key at a watched level.
    key: Key,
    string: Option<Inside>,
    /// The depth inside the `usage` object that is open.
    usage_depth: Option<u32>,
}

impl Tracker {
    pub(crate) const fn new(events: bool) -> Self {
        Self {
            line: if events { Some(Line::Start(0)) } else { None },
            depth: 0,
            top_is_object: false,
            in_envelope: false,
            expects_key: false,
            key: Key::Other,
            string: None,
            usage_depth: None,
        }
    }

    /// Goes on from `at` to the next find or to the end of `chunk`; `at` is left behind it.
    pub(crate) fn next(&mut self, chunk: &[u8], at: &mut usize) -> Option<Found> {
        while *at < chunk.len() {
            match self.line {
                Some(line @ (Line::Start(_) | Line::Other)) => self.frame(line, chunk, at),
                Some(Line::Data) | None => match self.string {
                    Some(inside) => self.text(inside, chunk, at),
                    None => {
                        if !self.is_watched() {
                            *at = skip_plain(chunk, *at);
                        }
                        let byte = *chunk.get(*at)?;
                        *at += 1;
                        if let Some(found) = self.structure(byte) {
                            return Some(found);
                        }
                    }
                },
            }
        }
        None
    }

    /// Passes the rest of an event after its `model`, if `chunk` holds all of it and nothing in it
    /// could be a further one: what [`Self::next`] would find out byte by byte.
    pub(crate) fn pass_event(&mut self, chunk: &[u8], at: &mut usize) {
        if self.line != Some(Line::Data) {
            return;
        }
        let rest = &chunk[*at..];
        let Some(end) = memchr(b'\n', rest) else {
            return;
        };
        let empty_line = match &rest[end + 1..] {
            [b'\n', ..] => 1,
            [b'\r', b'\n', ..] => 2,
            _ => return,
        };
        if MODEL.find(&rest[..end]).is_none() {
            *self = Self::new(true);
            *at += end + 1 + empty_line;
        }
    }

    /// Whether members of the innermost container matter.
    const fn is_watched(&self) -> bool {
        (self.depth == 1 && self.top_is_object) || (self.depth == 2 && self.in_envelope)
    }

    fn frame(&mut self, line: Line, chunk: &[u8], at: &mut usize) {
        let Line::Start(matched) = line else {
            *at = memchr(b'\n', &chunk[*at..]).map_or(chunk.len(), |found| {
                self.line = Some(Line::Start(0));
                *at + found + 1
            });
            return;
        };
        let byte = chunk[*at];
        match byte {
            // An empty line ends the event, whatever state its data is in.
            b'\n' if matched == 0 => *self = Self::new(true),
            b'\n' => self.line = Some(Line::Start(0)),
            b'\r' if matched == 0 => {}
            _ if byte == DATA[matched] => {
                let matched = matched + 1;
                self.line = Some(if matched == DATA.len() {
                    Line::Data
                } else {
                    Line::Start(matched)
                });
            }
            _ => self.line = Some(Line::Other),
        }
        *at += 1;
    }

    fn text(&mut self, mut inside: Inside, chunk: &[u8], at: &mut usize) {
        let rest = &chunk[*at..];
        let escaped = usize::from(inside.escape && rest[0] != b'\n');
        let stop = match self.line {
            Some(_) => memchr3(b'"', b'\\', b'\n', &rest[escaped..]),
            None => memchr2(b'"', b'\\', &rest[escaped..]),
        };
        let plain = escaped + stop.unwrap_or(rest.len() - escaped);
        if let Some(key) = &mut inside.key {
            key.extend(&rest[..plain]);
        }
        inside.escape = rest.get(plain) == Some(&b'\\');
        self.string = Some(inside);
        *at = (*at + plain + 1).min(chunk.len());
        match rest.get(plain) {
            Some(b'"') => self.end_string(inside),
            Some(b'\n') => self.line = Some(Line::Start(0)),
            Some(_) => {
                // A key with an escape is none of ours: the backslash keeps it from matching.
                if let Some(Inside { key: Some(key), .. }) = &mut self.string {
                    key.extend(b"\\");
                }
            }
            None => {}
        }
    }

    fn end_string(&mut self, inside: Inside) {
        if let Some(key) = inside.key {
            self.key = Key::of(&key.bytes[..key.len]);
        }
        self.string = None;
    }

    /// Takes one byte outside strings.
    fn structure(&mut self, byte: u8) -> Option<Found> {
        match byte {
            b'\n' if self.line.is_some() => self.line = Some(Line::Start(0)),
            b'"' => return self.start_string(),
            b'{' => return self.open_object(),
            b'[' => {
                self.depth = self.depth.saturating_add(1);
                if self.depth == 1 {
                    self.top_is_object = false;
                }
            }
            b'}' | b']' => return self.close(),
            b',' if self.is_watched() => {
                self.expects_key = true;
                self.key = Key::Other;
            }
            _ => {}
        }
        None
    }

    fn start_string(&mut self) -> Option<Found> {
        let is_key = self.is_watched() && self.expects_key;
        let is_model = self.is_watched() && !is_key && self.key == Key::Model;
        if is_key {
            self.expects_key = false;
        }
        if is_model {
            // One value to a key, also in what is not quite JSON.
            self.key = Key::Other;
        }
        self.string = Some(Inside {
            escape: false,
            key: is_key.then(KeyStart::default),
        });
        is_model.then_some(Found::Model)
    }

    fn open_object(&mut self) -> Option<Found> {
        let watched = self.is_watched();
        self.depth = self.depth.saturating_add(1);
        if self.depth == 1 {
            self.top_is_object = true;
            self.expects_key = true;
            self.key = Key::Other;
        } else if watched && self.depth == 2 && self.key == Key::Envelope {
            self.in_envelope = true;
            self.expects_key = true;
            self.key = Key::Other;
        } else if watched && self.key == Key::Usage {
            self.usage_depth = Some(self.depth);
            return Some(Found::UsageStart);
        }
        None
    }

    fn close(&mut self) -> Option<Found> {
        let ends_usage = self.usage_depth == Some(self.depth);
        if ends_usage {
            self.usage_depth = None;
        }
        if self.depth == 2 && self.in_envelope {
            self.in_envelope = false;
            self.key = Key::Other;
        }
        self.depth = self.depth.saturating_sub(1);
        ends_usage.then_some(Found::UsageEnd)
    }
}

/// The first byte from `at` on that may matter at a level whose members do not: long arrays of
/// numbers are passed in blocks.
fn skip_plain(chunk: &[u8], mut at: usize) -> usize {
    let matters = |byte: u8| {
        // With bit 5 set, both pairs of brackets are braces.
        matches!(byte | 0x20, b'{' | b'}') | (byte == b'"') | (byte == b'\n')
    };
    while let Some(block) = chunk.get(at..).and_then(<[u8]>::first_chunk::<32>) {
        if block.iter().fold(false, |any, &byte| any | matters(byte)) {
            break;
        }
        at += 32;
    }
    while chunk.get(at).is_some_and(|&byte| !matters(byte)) {
        at += 1;
    }
    at
}
