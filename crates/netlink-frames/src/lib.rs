//! The frame of what a kernel answers over netlink: a datagram to its parts, whatever its bytes are. Nothing is
//! copied, and what is cut off or makes no sense is an error, never a panic.

use std::fmt;
use std::io;

/// Bytes of a message's header.
const HEADER: usize = 16;
/// Kinds of messages that are about others.
const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;
/// A dump during which something changed, so that it may not be whole.
const FLAG_INTERRUPTED: u16 = 0x10;
/// An error that does not have the request in it, and one that has attributes behind.
const FLAG_CAPPED: u16 = 0x100;
const FLAG_TOLD: u16 = 0x200;
/// The kernel's own words, among those attributes.
const TOLD_MESSAGE: u16 = 1;

/// A refusal of the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Its error number, whatever that may be.
    pub errno: i32,
    /// What it says beside that.
    pub told: Option<String>,
    /// What it is about; empty where that is said elsewhere.
    pub about: String,
}

impl Refusal {
    /// Whether it is this one.
    #[must_use]
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        self.errno == errno.raw_os_error()
    }

    fn error(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.about.is_empty() {
            write!(f, "{}: ", self.about)?;
        }
        let error = self.error();
        match &self.told {
            Some(told) => write!(f, "{error}: {told}"),
            None => error.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        let error = refusal.error();
        match refusal.told.is_none() && refusal.about.is_empty() {
            true => error,
            false => io::Error::new(error.kind(), refusal),
        }
    }
}

/// The kernel's number of an error, also where it is a refusal with words.
#[must_use]
pub fn errno(error: &io::Error) -> Option<i32> {
    let refusal = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Refusal>());
    refusal
        .map(|refusal| refusal.errno)
        .or_else(|| error.raw_os_error())
}

/// One message of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part<'a> {
    /// The request that it answers.
    pub sequence: u32,
    /// Whether a dump may not be whole.
    pub interrupted: bool,
    /// What it says.
    pub says: Says<'a>,
}

/// What a message says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Says<'a> {
    /// Something of what was asked for: the kind, and the bytes behind the header.
    Answer(u16, &'a [u8]),
    /// It is done, or that was all.
    Done,
    /// It is not done.
    Refused(Refusal),
    /// Nothing.
    Nothing,
}

/// The parts of a datagram, until its end or the first that makes no sense.
pub fn parts(datagram: &[u8]) -> impl Iterator<Item = io::Result<Part<'_>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (part, length) = match part(rest) {
            Ok(read) => read,
            Err(error) => {
                rest = &[];
                return Some(Err(error));
            }
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(part))
    })
}

/// The first message of `bytes`, and its length.
fn part(bytes: &[u8]) -> io::Result<(Part<'_>, usize)> {
    let length = usize::try_from(word(bytes, 0)?).map_err(|_| wrong())?;
    let message = bytes.get(..length).filter(|m| m.len() >= HEADER);
    let message = message.ok_or_else(wrong)?;
    let (kind, flags) = (half(message, 4)?, half(message, 6)?);
    let body = &message[HEADER..];
    let says = match kind {
        NOOP => Says::Nothing,
        OVERRUN => return Err(wrong()),
        // Some kernels end a dump without a number.
        DONE if body.len() < 4 => Says::Done,
        DONE | ERROR => match word(body, 0)?.cast_signed() {
            0 => Says::Done,
            code => Says::Refused(Refusal {
                errno: code.wrapping_neg(),
                told: told(kind, flags, body),
                about: String::new(),
            }),
        },
        kind => Says::Answer(kind, body),
    };
    let part = Part {
        sequence: word(message, 8)?,
        interrupted: flags & FLAG_INTERRUPTED != 0,
        says,
    };
    Ok((part, length))
}

fn told(kind: u16, flags: u16, body: &[u8]) -> Option<String> {
    if flags & FLAG_TOLD == 0 {
        return None;
    }
    // Behind the number, and behind the request or its header.
    let skipped = match kind {
        ERROR if flags & FLAG_CAPPED != 0 => 4 + HEADER,
        ERROR => {
            4 + usize::try_from(word(body, 4).ok()?)
                .ok()?
                .next_multiple_of(4)
        }
        _ => 4,
    };
    let words = attributes(body.get(skipped..)?)
        .find(|(kind, _)| *kind == TOLD_MESSAGE)?
        .1;
    Some(text(words))
}

/// Attributes by kind, as far as they make sense; nested ones are read from the bytes of the outer.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// Flags of an attribute's kind.
    const KIND: u16 = 0x3fff;
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(half(rest, 0).ok()?);
        let kind = half(rest, 2).ok()? & KIND;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A text up to its end mark.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A number of four bytes, as this machine has them.
///
/// # Errors
/// There are no four bytes.
pub fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    let bytes = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    bytes.map(u32::from_ne_bytes).ok_or_else(wrong)
}

fn half(bytes: &[u8], at: usize) -> io::Result<u16> {
    let bytes = bytes.get(at..at + 2).and_then(|b| b.try_into().ok());
    bytes.map(u16::from_ne_bytes).ok_or_else(wrong)
}

fn wrong() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer is cut off or makes no sense",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn answers_of_several_requests_are_told_apart_and_a_refusal_has_the_kernels_words() {
        let mut datagram = message(16, 0, 1, b"link");
        datagram.extend(message(ERROR, 0, 2, &0_i32.to_ne_bytes()));
        let mut refused = (-22_i32).to_ne_bytes().to_vec();
        refused.extend([0; HEADER]);
        refused.extend([10, 0, 1, 0]);
        refused.extend(b"no MTU");
        datagram.extend(message(ERROR, FLAG_CAPPED | FLAG_TOLD, 3, &refused));
        datagram.extend(message(DONE, FLAG_INTERRUPTED, 4, &0_i32.to_ne_bytes()));
        let read: Vec<_> = parts(&datagram).map(Result::unwrap).collect();
        let sequences: Vec<_> = read.iter().map(|p| (p.sequence, p.interrupted)).collect();
        assert_eq!(sequences, [(1, false), (2, false), (3, false), (4, true)]);
        assert_eq!(read[0].says, Says::Answer(16, b"link"));
        assert_eq!(read[1].says, Says::Done);
        let Says::Refused(refusal) = &read[2].says else {
            panic!("{:?}", read[2]);
        };
        assert!(refusal.is(rustix::io::Errno::INVAL), "{refusal}");
        assert!(refusal.to_string().ends_with(": no MTU"), "{refusal}");
    }

    #[test]
    fn what_is_cut_off_is_an_error_and_the_last_thing_that_is_read() {
        let whole = message(16, 0, 1, b"link");
        for length in 1..whole.len() {
            let read: Vec<_> = parts(&whole[..length]).collect();
            assert_eq!(read.len(), 1);
            assert!(read[0].is_err(), "{length} bytes");
        }
        assert_eq!(attributes(&[5, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0, 9, 9]).count(), 0);
    }
}
