//! One line of the Prometheus text format behind its metric name: labels, value, timestamp.
//!
//! Also takes OpenMetrics' exemplars, unread. Which families are read is [`crate::metrics`].

use std::borrow::Cow;

/// One sample, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample<'a> {
    pub(crate) labels: Labels<'a>,
    pub(crate) value: f64,
}

/// The labels of one sample, as an iterator over name and value.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Labels<'a>(&'a [u8]);

/// A label's value as it stands between its quotes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LabelValue<'a>(&'a [u8]);

/// Reads what follows a metric's name; `None` if it is malformed.
pub(crate) fn sample(rest: &[u8]) -> Option<Sample<'_>> {
    let (labels, rest) = match rest.strip_prefix(b"{") {
        Some(inner) => labels(inner)?,
        None => (Labels::default(), rest),
    };
    let mut words = rest
        .split(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
        .filter(|word| !word.is_empty());
    let value = number(words.next()?)?;
    // A timestamp and an exemplar may follow, in this order.
    match words.next() {
        None | Some(b"#") => {}
        Some(timestamp) => {
            number(timestamp)?;
            if !matches!(words.next(), None | Some(b"#")) {
                return None;
            }
        }
    }
    Some(Sample { labels, value })
}

fn number(word: &[u8]) -> Option<f64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// Splits labels, opening brace taken, from what follows the closing one.
fn labels(inner: &[u8]) -> Option<(Labels<'_>, &[u8])> {
    let mut rest = inner;
    loop {
        rest = rest.trim_ascii_start();
        if let Some(after) = rest.strip_prefix(b"}") {
            let len = inner.len() - after.len() - 1;
            return Some((Labels(&inner[..len]), after));
        }
        let (_, _, after) = one_label(rest)?;
        rest = after.trim_ascii_start();
        rest = match rest.first()? {
            b',' => &rest[1..],
            b'}' => rest,
            _ => return None,
        };
    }
}

/// Name, value between the quotes, and what follows.
fn one_label(text: &[u8]) -> Option<(&[u8], LabelValue<'_>, &[u8])> {
    let equals = memchr::memchr(b'=', text)?;
    let name = text[..equals].trim_ascii();
    let is_name = !name.is_empty()
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'.'));
    let value = text[equals + 1..].trim_ascii_start().strip_prefix(b"\"")?;
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', value.get(at..)?)?;
        if value[at] == b'"' {
            return is_name.then_some((name, LabelValue(&value[..at]), &value[at + 1..]));
        }
        at += 2;
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = (&'a [u8], LabelValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value, rest) = one_label(self.0)?;
        let rest = rest.trim_ascii_start();
        self.0 = rest.strip_prefix(b",").unwrap_or(rest);
        Some((name, value))
    }
}

impl<'a> LabelValue<'a> {
    /// The value, escapes resolved.
    pub(crate) fn text(self) -> Cow<'a, str> {
        let text = String::from_utf8_lossy(self.0);
        if !text.contains('\\') {
            return text;
        }
        let mut plain = String::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            if char != '\\' {
                plain.push(char);
                continue;
            }
            match chars.next() {
                Some('n') => plain.push('\n'),
                Some(escaped) => plain.push(escaped),
                None => {}
            }
        }
        Cow::Owned(plain)
    }
}
