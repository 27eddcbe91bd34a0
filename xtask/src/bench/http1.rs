//! As much HTTP/1.1 as a load generator and a fixed server need: where a message's head ends and
//! where its body ends.
//!
//! Not a client for the open world: no trailers, no upgrades, no obsolete folding. Heads are
//! parsed by `httparse`; only the body framing is ours.

use anyhow::{Result, bail};

/// Bytes of a head that are looked at before the message counts as broken.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Headers of one message; peers add a handful, and more is a broken peer.
pub(super) const HEADERS_MAX: usize = 64;

/// How a body ends, and how much of it is still to come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Framing {
    /// This many bytes are left.
    Length(u64),
    /// Chunked transfer coding.
    Chunked(Chunk),
}

/// Where in the chunked coding the reader stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Chunk {
    /// In a size line; the value read so far, and whether an extension began.
    Size { value: u64, in_extension: bool },
    /// In a chunk's bytes.
    Data(u64),
    /// In the line break after a chunk's bytes; this many bytes of it are left.
    Gap(u8),
    /// In the line break after the last chunk.
    End(u8),
    /// Behind the message.
    Done,
}

impl Framing {
    /// The framing that a message's headers announce. A message without either header is empty.
    pub(super) fn of(headers: &[httparse::Header<'_>]) -> Result<Self> {
        let mut framing = Self::Length(0);
        for header in headers {
            if header.name.eq_ignore_ascii_case("transfer-encoding") {
                if !header.value.eq_ignore_ascii_case(b"chunked") {
                    bail!(
                        "unknown transfer coding {:?}",
                        String::from_utf8_lossy(header.value)
                    );
                }
                return Ok(Self::Chunked(Chunk::Size {
                    value: 0,
                    in_extension: false,
                }));
            }
            if header.name.eq_ignore_ascii_case("content-length") {
                framing = Self::Length(std::str::from_utf8(header.value)?.trim().parse()?);
            }
        }
        Ok(framing)
    }

    /// True when the whole body has been taken.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
    }

    /// Takes body bytes from the front of `input`, hands out their payload, and returns how many
    /// bytes belonged to this message.
    pub(super) fn take(&mut self, input: &[u8], mut payload: impl FnMut(&[u8])) -> Result<usize> {
        let mut at = 0;
        while at < input.len() && !self.is_done() {
            let rest = &input[at..];
            at += match self {
                Self::Length(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    payload(&rest[..taken]);
                    *left -= taken as u64;
                    taken
                }
                Self::Chunked(Chunk::Data(left)) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    payload(&rest[..taken]);
                    *left -= taken as u64;
                    if *left == 0 {
                        *self = Self::Chunked(Chunk::Gap(2));
                    }
                    taken
                }
                Self::Chunked(state) => {
                    *state = state.after(rest[0])?;
                    1
                }
            };
        }
        Ok(at)
    }
}

impl Chunk {
    /// The state behind one byte of the coding itself.
    fn after(self, byte: u8) -> Result<Self> {
        Ok(match self {
            Self::Size {
                value,
                in_extension,
            } => match byte {
                b'\r' => self,
                b'\n' if value == 0 => Self::End(2),
                b'\n' => Self::Data(value),
                _ if in_extension => self,
                b';' | b' ' => Self::Size {
                    value,
                    in_extension: true,
                },
                _ => match char::from(byte).to_digit(16) {
                    Some(digit) if value < 1 << 56 => Self::Size {
                        value: value * 16 + u64::from(digit),
                        in_extension,
                    },
                    _ => bail!("bad chunk size byte {byte:#04x}"),
                },
            },
            Self::Gap(1) => Self::Size {
                value: 0,
                in_extension: false,
            },
            Self::Gap(left) => Self::Gap(left - 1),
            Self::End(1) => Self::Done,
            Self::End(left) => Self::End(left - 1),
            Self::Data(_) | Self::Done => self,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Chunk, Framing};

    /// Feeds `wire` in pieces of every size; the payload and the number of bytes behind the
    /// message must not depend on how it was cut.
    fn check(start: Framing, wire: &str, payload: &str, behind: usize) {
        for piece in 1..=wire.len() {
            let mut framing = start;
            let (mut got, mut taken) = (Vec::new(), 0);
            for part in wire.as_bytes().chunks(piece) {
                taken += framing
                    .take(part, |bytes| got.extend_from_slice(bytes))
                    .unwrap();
            }
            assert!(framing.is_done(), "unfinished in pieces of {piece}");
            assert_eq!(
                String::from_utf8(got).unwrap(),
                payload,
                "pieces of {piece}"
            );
            assert_eq!(wire.len() - taken, behind, "pieces of {piece}");
        }
    }

    const CHUNKED: Framing = Framing::Chunked(Chunk::Size {
        value: 0,
        in_extension: false,
    });

    #[test]
    fn a_length_takes_just_its_bytes() {
        check(Framing::Length(5), "helloHTTP/1.1", "hello", 8);
    }

    #[test]
    fn chunks_join_to_the_payload() {
        check(
            CHUNKED,
            "5\r\nhello\r\n0a\r\n, my world\r\n0\r\n\r\nHTTP",
            "hello, my world",
            4,
        );
        check(CHUNKED, "2;name=value\r\nok\r\n0\r\n\r\n", "ok", 0);
    }

    #[test]
    fn a_size_that_is_no_number_is_refused() {
        let mut framing = CHUNKED;
        assert!(framing.take(b"5x\r\n", |_| ()).is_err());
        let mut framing = CHUNKED;
        assert!(framing.take(b"fffffffffffffffff\r\n", |_| ()).is_err());
    }
}
