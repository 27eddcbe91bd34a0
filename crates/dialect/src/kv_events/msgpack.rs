//! msgpack as a row of values, read where they are.

use super::BatchError;

/// Values within values that are skipped; events have four levels.
const DEPTH_MAX: u32 = 32;

/// Where reading has got to.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// The head of a value; what an array or a map holds follows.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Value<'a> {
    Nil,
    Bool,
    /// The number's 64 bits: unsigned ones above `i64::MAX` come out negative.
    Integer(i64),
    Float(f64),
    /// A text or bytes: both are used for hashes.
    Bytes(&'a [u8]),
    Text(&'a [u8]),
    Array(usize),
    /// As many keys with their values.
    Map(usize),
    Extension,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], BatchError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(BatchError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn unsigned(&mut self, len: usize) -> Result<u64, BatchError> {
        let bytes = self.take(len)?;
        Ok(bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn length(&mut self, len: usize) -> Result<usize, BatchError> {
        let length = self.unsigned(len)?;
        usize::try_from(length).map_err(|_| BatchError::Truncated)
    }

    /// The next value's head.
    pub(super) fn value(&mut self) -> Result<Value<'a>, BatchError> {
        let first = self.take(1)?[0];
        Ok(match first {
            0x00..=0x7f => Value::Integer(i64::from(first)),
            0x80..=0x8f => Value::Map(usize::from(first & 0x0f)),
            0x90..=0x9f => Value::Array(usize::from(first & 0x0f)),
            0xa0..=0xbf => Value::Text(self.take(usize::from(first & 0x1f))?),
            0xc0 => Value::Nil,
            0xc1 => return Err(BatchError::Shape("a byte that msgpack does not have")),
            0xc2 | 0xc3 => Value::Bool,
            0xc4..=0xc6 => {
                let len = self.length(1 << (first - 0xc4))?;
                Value::Bytes(self.take(len)?)
            }
            0xc7..=0xc9 => {
                let len = self.length(1 << (first - 0xc7))?;
                self.take(len.checked_add(1).ok_or(BatchError::Truncated)?)?;
                Value::Extension
            }
            0xca => Value::Float(f64::from(f32::from_bits(self.unsigned(4)? as u32))),
            0xcb => Value::Float(f64::from_bits(self.unsigned(8)?)),
            0xcc..=0xcf => Value::Integer(self.unsigned(1 << (first - 0xcc))?.cast_signed()),
            0xd0..=0xd3 => {
                let len = 1 << (first - 0xd0);
                let unused = 64 - 8 * len as u32;
                // Up and down again, which carries the sign along.
                Value::Integer((self.unsigned(len)? << unused).cast_signed() >> unused)
            }
            0xd4..=0xd8 => {
                self.take((1 << (first - 0xd4)) + 1)?;
                Value::Extension
            }
            0xd9..=0xdb => {
                let len = self.length(1 << (first - 0xd9))?;
                Value::Text(self.take(len)?)
            }
            0xdc | 0xdd => Value::Array(self.length(2 << (first - 0xdc))?),
            0xde | 0xdf => Value::Map(self.length(2 << (first - 0xde))?),
            0xe0..=0xff => Value::Integer(i64::from(first.cast_signed())),
        })
    }

    /// The next value's head, which stays the next.
    pub(super) fn peek(&self) -> Result<Value<'a>, BatchError> {
        self.clone().value()
    }

    /// Passes over the next value, whatever it holds.
    pub(super) fn skip(&mut self) -> Result<(), BatchError> {
        // Values still to pass on each level; deeper ones are not followed.
        let mut open = [0_usize; DEPTH_MAX as usize];
        let mut depth = 0;
        open[0] = 1;
        loop {
            while open[depth] == 0 {
                if depth == 0 {
                    return Ok(());
                }
                depth -= 1;
            }
            open[depth] -= 1;
            let more = match self.value()? {
                Value::Array(len) => len,
                Value::Map(len) => len.checked_mul(2).ok_or(BatchError::Truncated)?,
                _ => 0,
            };
            if more > self.left() {
                return Err(BatchError::Truncated);
            }
            if more > 0 {
                depth += 1;
                *open.get_mut(depth).ok_or(BatchError::TooDeep)? = more;
            }
        }
    }

    /// The bytes of the next value.
    pub(super) fn raw(&mut self) -> Result<&'a [u8], BatchError> {
        let before = self.rest;
        self.skip()?;
        Ok(&before[..before.len() - self.rest.len()])
    }

    /// A text's bytes; `None` for anything else, which is passed over.
    pub(super) fn text(&mut self) -> Result<Option<&'a [u8]>, BatchError> {
        match self.peek()? {
            Value::Text(text) => {
                self.value()?;
                Ok(Some(text))
            }
            _ => self.skip().map(|()| None),
        }
    }

    /// A text that is UTF-8; `None` for anything else.
    pub(super) fn string(&mut self) -> Result<Option<&'a str>, BatchError> {
        let text = self.text()?;
        Ok(text.and_then(|text| std::str::from_utf8(text).ok()))
    }

    /// A whole number; `None` for anything else.
    pub(super) fn integer(&mut self) -> Result<Option<i64>, BatchError> {
        match self.peek()? {
            Value::Integer(number) => {
                self.value()?;
                Ok(Some(number))
            }
            _ => self.skip().map(|()| None),
        }
    }

    /// Any number; `None` for anything else.
    pub(super) fn number(&mut self) -> Result<Option<f64>, BatchError> {
        match self.peek()? {
            Value::Float(number) => {
                self.value()?;
                Ok(Some(number))
            }
            Value::Integer(number) => {
                self.value()?;
                Ok(Some(number as f64))
            }
            _ => self.skip().map(|()| None),
        }
    }
}
