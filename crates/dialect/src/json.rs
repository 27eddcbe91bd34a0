//! A validating cursor over JSON text that builds nothing.
//!
//! Accepts exactly what `serde_json` accepts into a `Value` (depth, surrogates, number range, UTF-8
//! included): a body that passes here never surprises a parser behind us. It skips text in blocks,
//! which is what makes long prompts cheap. What to look for is the caller's business
//! ([`crate::scan`], [`crate::usage`]).

use std::borrow::Cow;
use std::fmt;

/// Containers that may be open at once. Deeper documents are refused, as `serde_json` does, since
/// servers behind us recurse.
pub const DEPTH_MAX: u32 = 127;

/// Why a text is not the JSON that was expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScanError {
    /// Bytes before the first fault.
    pub offset: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the request body is not valid: {} at byte {}",
            self.what, self.offset
        )
    }
}

impl std::error::Error for ScanError {}

/// A range of bytes of the document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// The bytes of `body` that it names; empty if `body` is not the document it came from.
    #[must_use]
    pub fn of(self, body: &[u8]) -> &[u8] {
        body.get(self.start..self.end).unwrap_or_default()
    }

    /// Bytes in it.
    #[must_use]
    pub const fn len(self) -> usize {
        self.end - self.start
    }

    /// Whether it holds nothing.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// A string value: what stands between its quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Text {
    /// Bytes between the quotes.
    pub span: Span,
    /// Whether they hold escapes.
    pub escaped: bool,
}

impl Text {
    /// The string's value, borrowed unless it holds escapes.
    #[must_use]
    pub fn value(self, body: &[u8]) -> Cow<'_, str> {
        if !self.escaped {
            return String::from_utf8_lossy(self.span.of(body));
        }
        let quoted = body.get(self.span.start.saturating_sub(1)..self.span.end + 1);
        // The scan that made this text has checked it; another body gives the raw bytes.
        quoted
            .and_then(|text| serde_json::from_slice::<String>(text).ok())
            .map_or_else(|| String::from_utf8_lossy(self.span.of(body)), Cow::Owned)
    }
}

/// The position in a document, with the containers that the caller has entered.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            depth: 0,
        }
    }

    /// The next byte that is not white space, not taken.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.bytes.get(self.at) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    /// Takes `byte` if it is next.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let next = self.peek() == Some(byte);
        self.at += usize::from(next);
        next
    }

    pub(crate) const fn fault(&self, what: &'static str) -> ScanError {
        ScanError {
            offset: self.at,
            what,
        }
    }

    /// Steps into an object or array whose opening `byte` is next.
    pub(crate) fn enter(&mut self, byte: u8) -> Result<(), ScanError> {
        if !self.take(byte) {
            return Err(self.fault("expected an object"));
        }
        self.depth += 1;
        Ok(())
    }

    /// The next key of the object that was entered, its colon taken; `None` leaves the object.
    /// `first` says that no member came before.
    pub(crate) fn next_key(&mut self, first: bool) -> Result<Option<Text>, ScanError> {
        if self.take(b'}') {
            self.depth -= 1;
            return Ok(None);
        }
        if !first && !self.take(b',') {
            return Err(self.fault("expected `,` or `}`"));
        }
        self.key().map(Some)
    }

    fn key(&mut self) -> Result<Text, ScanError> {
        if self.peek() != Some(b'"') {
            return Err(self.fault("expected a key in quotes"));
        }
        let key = self.string()?;
        if self.take(b':') {
            Ok(key)
        } else {
            Err(self.fault("expected `:`"))
        }
    }

    /// Fails unless only white space is left.
    pub(crate) fn end(&mut self) -> Result<(), ScanError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.fault("expected the end")),
        }
    }

    /// Takes any value and says where it was.
    pub(crate) fn value(&mut self) -> Result<Span, ScanError> {
        self.peek();
        let start = self.at;
        self.skip_value()?;
        Ok(Span {
            start,
            end: self.at,
        })
    }

    /// Takes any value; a string is returned.
    pub(crate) fn text_value(&mut self) -> Result<Option<Text>, ScanError> {
        if self.peek() == Some(b'"') {
            return self.string().map(Some);
        }
        self.skip_value().map(|()| None)
    }

    /// Takes any value; `true` and `false` are returned.
    pub(crate) fn bool_value(&mut self) -> Result<Option<bool>, ScanError> {
        let span = self.value()?;
        Ok(match span.of(self.bytes) {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        })
    }

    /// Takes any value; a whole number that is not negative is returned.
    pub(crate) fn count_value(&mut self) -> Result<Option<u64>, ScanError> {
        let span = self.value()?;
        Ok(span.of(self.bytes).iter().try_fold(0u64, |sum, &byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
            sum.checked_mul(10)?.checked_add(digit)
        }))
    }

    fn skip_value(&mut self) -> Result<(), ScanError> {
        let mut open = Open::default();
        loop {
            match self.peek() {
                Some(b'"') => self.string().map(|_| ())?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b'{') => {
                    open.push(true, self)?;
                    self.at += 1;
                    if self.peek() != Some(b'}') {
                        self.key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    open.push(false, self)?;
                    self.at += 1;
                    if self.peek() != Some(b']') {
                        self.skip_ids();
                        continue;
                    }
                }
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                _ => return Err(self.fault("expected a value")),
            }
            if self.close(&mut open)? {
                return Ok(());
            }
        }
    }

    /// Takes as many `digits,` as follow: token ids come by the thousand. Whatever is not as plain
    /// as that, the last one of an array included, is left to be read as any value.
    fn skip_ids(&mut self) {
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let plain = digits > 0 && digits < FINITE_DIGITS && (rest[0] != b'0' || digits == 1);
            if !plain || rest.get(digits) != Some(&b',') {
                return;
            }
            self.at += digits + 1;
            self.at += usize::from(self.bytes.get(self.at) == Some(&b' '));
        }
    }

    /// After a value: leaves the containers that end here. False if another value must follow.
    fn close(&mut self, open: &mut Open) -> Result<bool, ScanError> {
        while open.levels > 0 {
            // An empty container arrives here still open, its closing byte next.
            match (self.peek(), open.in_object()) {
                (Some(b'}'), true) | (Some(b']'), false) => {
                    self.at += 1;
                    open.pop();
                }
                (Some(b','), true) => {
                    self.at += 1;
                    self.key()?;
                    return Ok(false);
                }
                (Some(b','), false) => {
                    self.at += 1;
                    return Ok(false);
                }
                (_, true) => return Err(self.fault("expected `,` or `}`")),
                (_, false) => return Err(self.fault("expected `,` or `]`")),
            }
        }
        Ok(true)
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), ScanError> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err(self.fault("expected a value"));
        }
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Result<(), ScanError> {
        let start = self.at;
        self.at += usize::from(self.bytes[start] == b'-');
        if self.bytes.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        let mut huge = self.at - start > FINITE_DIGITS;
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            huge = true;
            self.at += 1;
            self.at += usize::from(matches!(self.bytes.get(self.at), Some(b'+' | b'-')));
            self.digits()?;
        }
        if huge && !is_finite(&self.bytes[start..self.at]) {
            self.at = start;
            return Err(self.fault("number out of range"));
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), ScanError> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.bytes.get(self.at) {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.fault("expected a digit"));
        }
        Ok(())
    }

    /// Takes the string whose opening quote is next.
    pub(crate) fn string(&mut self) -> Result<Text, ScanError> {
        let start = self.at + 1;
        let mut escaped = false;
        let mut high_bits = 0;
        self.at = start;
        let fault = loop {
            self.at = plain_end(self.bytes, self.at, &mut high_bits);
            match self.bytes.get(self.at) {
                Some(b'"') => break None,
                Some(b'\\') => {
                    escaped = true;
                    if let Err(fault) = self.escape() {
                        break Some(fault);
                    }
                }
                Some(_) => break Some(self.fault("control character in a string")),
                None => break Some(self.fault("string without an end")),
            }
        };
        let span = Span {
            start,
            end: self.at.min(self.bytes.len()),
        };
        if high_bits & HIGH_BITS != 0
            && let Err(error) = simdutf8::compat::from_utf8(span.of(self.bytes))
        {
            return Err(ScanError {
                offset: start + error.valid_up_to(),
                what: "invalid UTF-8",
            });
        }
        match fault {
            Some(fault) => Err(fault),
            None => {
                self.at += 1;
                Ok(Text { span, escaped })
            }
        }
    }

    /// Takes one escape, or the pair of escapes that makes one character.
    fn escape(&mut self) -> Result<(), ScanError> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u') => {
                let lone = self.fault("lone surrogate");
                match self.unit()? {
                    0xD800..=0xDBFF => match self.unit() {
                        Ok(0xDC00..=0xDFFF) => Ok(()),
                        Ok(_) | Err(_) => Err(lone),
                    },
                    0xDC00..=0xDFFF => Err(lone),
                    _ => Ok(()),
                }
            }
            _ => Err(self.fault("unknown escape")),
        }
    }

    /// Takes `\uXXXX`.
    fn unit(&mut self) -> Result<u16, ScanError> {
        let fault = self.fault("expected `\\u` and four hex digits");
        let Some([b'\\', b'u', hex @ ..]) = self.bytes.get(self.at..self.at + 6) else {
            return Err(fault);
        };
        self.at += 6;
        hex.iter().try_fold(0u16, |unit, &digit| {
            let digit = char::from(digit).to_digit(16).ok_or(fault)?;
            Ok(unit << 4 | u16::try_from(digit).expect("a hex digit is below 16"))
        })
    }
}

/// The containers open inside one value, one bit each: 1 for an object.
#[derive(Default)]
struct Open {
    objects: u128,
    levels: u32,
}

impl Open {
    fn push(&mut self, object: bool, cursor: &Cursor<'_>) -> Result<(), ScanError> {
        if cursor.depth + self.levels >= DEPTH_MAX {
            return Err(cursor.fault("nested too deeply"));
        }
        self.objects = self.objects << 1 | u128::from(object);
        self.levels += 1;
        Ok(())
    }

    const fn pop(&mut self) {
        self.objects >>= 1;
        self.levels -= 1;
    }

    const fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }
}

/// A number of up to so many digits and no exponent is below the largest `f64`.
const FINITE_DIGITS: usize = 300;

fn is_finite(number: &[u8]) -> bool {
    std::str::from_utf8(number)
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .is_some_and(f64::is_finite)
}

const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
const LOW_BITS: u64 = 0x0101_0101_0101_0101;

/// The first byte from `at` on that ends a run of plain text: a quote, a backslash, a control
/// character or the end. `high_bits` collects the high bits of what was seen, and possibly of some
/// bytes after it, so that only strings that may be non-ASCII are checked as UTF-8.
fn plain_end(bytes: &[u8], mut at: usize, high_bits: &mut u64) -> usize {
    // Two words are all that most keys need...
    if let Some(end) = plain_end_in_words(bytes, &mut at, 2, high_bits) {
        return end;
    }
    // ...longer text goes in blocks, which the compiler turns into vector code: without a branch
    // per byte, and without searching first and checking afterwards.
    while let Some(block) = bytes.get(at..).and_then(<[u8]>::first_chunk::<BLOCK>) {
        let (mut stop, mut seen) = (0, 0);
        for &byte in block {
            stop |= u8::from(is_stop(byte));
            seen |= byte;
        }
        *high_bits |= u64::from(seen);
        if stop != 0 {
            break;
        }
        at += BLOCK;
    }
    // Words find the end within the block that has it.
    if let Some(end) = plain_end_in_words(bytes, &mut at, BLOCK / 8, high_bits) {
        return end;
    }
    let tail = bytes.get(at..).unwrap_or_default();
    let plain = tail.iter().take_while(|byte| !is_stop(**byte));
    at + plain
        .inspect(|byte| *high_bits |= u64::from(**byte))
        .count()
}

const BLOCK: usize = 32;

fn plain_end_in_words(
    bytes: &[u8],
    at: &mut usize,
    words: usize,
    high_bits: &mut u64,
) -> Option<usize> {
    for _ in 0..words {
        let word = bytes.get(*at..).and_then(<[u8]>::first_chunk::<8>)?;
        let word = u64::from_le_bytes(*word);
        *high_bits |= word;
        let stops = stops_in(word);
        if stops != 0 {
            return Some(*at + (stops.trailing_zeros() / 8) as usize);
        }
        *at += 8;
    }
    None
}

const fn is_stop(byte: u8) -> bool {
    // Without short circuits, so that a block of them is one run of vector instructions.
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

/// The high bit of each byte that [`is_stop`]. Bits above the lowest may be wrong (borrows run
/// upwards); the lowest is right.
const fn stops_in(word: u64) -> u64 {
    let quote = word ^ (LOW_BITS * b'"' as u64);
    let backslash = word ^ (LOW_BITS * b'\\' as u64);
    let control = word.wrapping_sub(LOW_BITS * 0x20) & !word;
    let quote = quote.wrapping_sub(LOW_BITS) & !quote;
    let backslash = backslash.wrapping_sub(LOW_BITS) & !backslash;
    (control | quote | backslash) & HIGH_BITS
}
