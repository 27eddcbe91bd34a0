//! Go's syntax of regular expressions, written as the regex crate's. What Go refuses is refused with its
//! message; every part is written so that it needs no flags from outside. Groups do not capture, as
//! nobody asks for what they capture.

use super::regex_class;
use std::fmt::Write;

/// How deep groups may be nested. Go allows 1,000; compiling recurses here.
const GROUPS_MAX: usize = 250;

/// Go's bound of how often something is repeated, repetitions inside included.
const REPEAT_MAX: u32 = 1_000;

/// What is wrong, and the part of the expression that it is about.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) code: &'static str,
    pub(crate) at: String,
}

pub(crate) fn error<T>(code: &'static str, at: &str) -> Result<T, SyntaxError> {
    let at = at.to_owned();
    Err(SyntaxError { code, at })
}

/// The flags `(?imsU)`.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Flags {
    pub(crate) fold_case: bool,
    multi_line: bool,
    dot_newline: bool,
    lazy: bool,
}

/// A part of a concatenation, and how often its repetitions repeat something at most.
struct Atom {
    written: String,
    repeats: u32,
}

/// A group that is open.
#[derive(Default)]
struct Group {
    /// The flags to go back to.
    outside: Flags,
    alternatives: Vec<String>,
    atoms: Vec<Atom>,
    repeats: u32,
}

struct Translation<'a> {
    whole: &'a str,
    flags: Flags,
    groups: Vec<Group>,
}

/// Writes the expression anew.
pub(crate) fn translate(expression: &str) -> Result<String, SyntaxError> {
    let mut translation = Translation {
        whole: expression,
        flags: Flags::default(),
        groups: vec![Group::default()],
    };
    let mut rest = expression;
    // The repetition that was read last, if nothing came after it.
    let mut last_repeat = None;
    while let Some(first) = rest.chars().next() {
        let before = rest;
        let mut repeated = false;
        rest = match first {
            '(' => translation.open(rest)?,
            ')' => translation.close(rest)?,
            '|' => {
                translation.alternative();
                &rest[1..]
            }
            '*' | '+' | '?' | '{' => match repetition(rest)? {
                Some((repeat, after)) => {
                    repeated = true;
                    translation.repeat(repeat, before, after, last_repeat)?
                }
                None => translation.literal('{', &rest[1..]),
            },
            _ => translation.single(first, rest)?,
        };
        last_repeat = repeated.then_some(before);
    }
    let root = translation.groups.pop();
    match root {
        Some(root) if translation.groups.is_empty() => Ok(root.written().0),
        _ => error("missing closing )", expression),
    }
}

impl Group {
    /// The alternatives, and how often they repeat something.
    fn written(mut self) -> (String, u32) {
        self.end_alternative();
        (self.alternatives.join("|"), self.repeats)
    }

    fn end_alternative(&mut self) {
        let mut written = String::new();
        for atom in self.atoms.drain(..) {
            written.push_str(&atom.written);
            self.repeats = self.repeats.max(atom.repeats);
        }
        self.alternatives.push(written);
    }
}

/// How often something is repeated.
struct Repeat {
    min: u32,
    max: Option<u32>,
}

/// Reads `*`, `+`, `?` or `{2,3}`; none if a brace begins no repetition.
fn repetition(text: &str) -> Result<Option<(Repeat, &str)>, SyntaxError> {
    let simple = |min, max| Ok(Some((Repeat { min, max }, &text[1..])));
    match text.as_bytes()[0] {
        b'*' => return simple(0, None),
        b'+' => return simple(1, None),
        b'?' => return simple(0, Some(1)),
        _ => {}
    }
    let Some((min, rest)) = number(&text[1..]) else {
        return Ok(None);
    };
    let (max, rest) = match rest.strip_prefix(',') {
        None => (Some(min), rest),
        Some(rest) if rest.starts_with('}') => (None, rest),
        Some(rest) => match number(rest) {
            Some((max, rest)) => (Some(max), rest),
            None => return Ok(None),
        },
    };
    let Some(rest) = rest.strip_prefix('}') else {
        return Ok(None);
    };
    let too_many = |n: u32| n > REPEAT_MAX;
    if too_many(min) || max.is_some_and(|max| too_many(max) || min > max) {
        return error("invalid repeat count", &text[..text.len() - rest.len()]);
    }
    Ok(Some((Repeat { min, max }, rest)))
}

/// A number without zeros before it; one that is too large is above every bound.
fn number(text: &str) -> Option<(u32, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    if digits == 0 || (digits > 1 && number.starts_with('0')) {
        return None;
    }
    Some((number.parse().unwrap_or(u32::MAX), rest))
}

impl<'a> Translation<'a> {
    fn group(&mut self) -> &mut Group {
        self.groups.last_mut().expect("the root is popped last")
    }

    fn push(&mut self, written: String) {
        let repeats = 1;
        self.group().atoms.push(Atom { written, repeats });
    }

    fn literal(&mut self, c: char, rest: &'a str) -> &'a str {
        let mut written = String::new();
        push_char(&mut written, c);
        self.push(if self.flags.fold_case {
            format!("(?i:{written})")
        } else {
            written
        });
        rest
    }

    fn open(&mut self, text: &'a str) -> Result<&'a str, SyntaxError> {
        let (flags, rest, opens) = match text.strip_prefix("(?") {
            Some(_) => self.perl_flags(text)?,
            None => (self.flags, &text[1..], true),
        };
        if opens {
            if self.groups.len() > GROUPS_MAX {
                return error("expression nests too deeply", self.whole);
            }
            self.groups.push(Group {
                outside: self.flags,
                ..Group::default()
            });
        }
        self.flags = flags;
        Ok(rest)
    }

    /// `(?P<name>`, `(?i)` or `(?i-s:`: the flags from here, what follows, and whether it is a group.
    fn perl_flags(&self, text: &'a str) -> Result<(Flags, &'a str, bool), SyntaxError> {
        for start in ["(?P<", "(?<"] {
            let Some(after) = text.strip_prefix(start).filter(|after| !after.is_empty()) else {
                continue;
            };
            let Some((name, rest)) = after.split_once('>') else {
                return error("invalid named capture", text);
            };
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if name.is_empty() || !name.bytes().all(word) {
                let end = text.len() - rest.len();
                return error("invalid named capture", &text[..end]);
            }
            return Ok((self.flags, rest, true));
        }
        let mut flags = self.flags;
        let (mut on, mut seen) = (true, false);
        let mut read = 2;
        for c in text[2..].chars() {
            read += c.len_utf8();
            match c {
                'i' => flags.fold_case = on,
                'm' => flags.multi_line = on,
                's' => flags.dot_newline = on,
                'U' => flags.lazy = on,
                '-' if on => {
                    (on, seen) = (false, false);
                    continue;
                }
                ':' | ')' if on || seen => return Ok((flags, &text[read..], c == ':')),
                _ => break,
            }
            seen = true;
        }
        error("invalid or unsupported Perl syntax", &text[..read])
    }

    fn alternative(&mut self) {
        self.group().end_alternative();
    }

    fn close(&mut self, text: &'a str) -> Result<&'a str, SyntaxError> {
        if self.groups.len() < 2 {
            return error("unexpected )", self.whole);
        }
        if let Some(group) = self.groups.pop() {
            self.flags = group.outside;
            let (written, repeats) = group.written();
            let written = format!("(?:{written})");
            self.group().atoms.push(Atom { written, repeats });
        }
        Ok(&text[1..])
    }

    fn repeat(
        &mut self,
        repeat: Repeat,
        before: &str,
        after: &'a str,
        last: Option<&str>,
    ) -> Result<&'a str, SyntaxError> {
        let mut lazy = self.flags.lazy;
        let mut rest = after;
        if let Some(after) = after.strip_prefix('?') {
            lazy = !lazy;
            rest = after;
        }
        let until = |from: &str| from[..from.len() - rest.len()].to_owned();
        if let Some(last) = last {
            return error("invalid nested repetition operator", &until(last));
        }
        let Some(atom) = self.group().atoms.last_mut() else {
            let text = &before[..before.len() - after.len()];
            return error("missing argument to repetition operator", text);
        };
        let times = repeat.max.unwrap_or(repeat.min);
        let counted = repeat.min > 1 || repeat.max.is_some_and(|max| max > 1);
        let repeats = times.saturating_mul(atom.repeats.max(1));
        if counted && repeats > REPEAT_MAX {
            let text = &before[..before.len() - after.len()];
            return error("invalid repeat count", text);
        }
        if counted {
            atom.repeats = repeats.max(1);
        }
        let max = repeat.max.map_or_else(String::new, |max| max.to_string());
        let lazy = if lazy { "?" } else { "" };
        atom.written = format!("(?:{}){{{},{max}}}{lazy}", atom.written, repeat.min);
        Ok(rest)
    }

    /// What stands for one character, or for a place.
    fn single(&mut self, first: char, text: &'a str) -> Result<&'a str, SyntaxError> {
        let after = &text[first.len_utf8()..];
        let written = match first {
            '^' if self.flags.multi_line => "(?m:^)",
            '^' => "(?:\\A)",
            '$' if self.flags.multi_line => "(?m:$)",
            '$' => "(?:\\z)",
            '.' if self.flags.dot_newline => "(?s:.)",
            '.' => "(?-s:.)",
            '[' => {
                let (class, rest) = regex_class::bracketed(text, self.flags)?;
                self.push(class);
                return Ok(rest);
            }
            '\\' => return self.escape(text),
            c => return Ok(self.literal(c, after)),
        };
        self.push(written.to_owned());
        Ok(after)
    }

    fn escape(&mut self, text: &'a str) -> Result<&'a str, SyntaxError> {
        let after = text.get(2..).unwrap_or_default();
        let place = match text.as_bytes().get(1) {
            Some(b'A') => Some("(?:\\A)"),
            Some(b'z') => Some("(?:\\z)"),
            Some(b'b') => Some("(?-u:\\b)"),
            Some(b'B') => Some("(?-u:\\B)"),
            Some(b'C') => return error("invalid escape sequence", &text[..2]),
            Some(b'Q') => {
                let (quoted, rest) = after.split_once("\\E").unwrap_or((after, ""));
                for c in quoted.chars() {
                    self.literal(c, "");
                }
                return Ok(rest);
            }
            _ => None,
        };
        if let Some(place) = place {
            self.push(place.to_owned());
            return Ok(after);
        }
        if let Some((class, rest)) = regex_class::escaped(text)? {
            self.push(regex_class::folded(&class, self.flags));
            return Ok(rest);
        }
        let (c, rest) = escaped_char(text)?;
        match char::from_u32(c) {
            Some(c) => Ok(self.literal(c, rest)),
            None => {
                // Half of a pair, which no text has.
                self.push("[^\\s\\S]".to_owned());
                Ok(rest)
            }
        }
    }
}

/// The character so that it stands for itself, also in brackets.
pub(crate) fn push_char(out: &mut String, c: char) {
    if c.is_ascii_alphanumeric() {
        out.push(c);
    } else {
        // Writing to a string cannot fail.
        let _ = write!(out, "\\x{{{:x}}}", c as u32);
    }
}

/// Reads `\n`, `\x41`, `\.`: the number of the character, and what follows.
pub(crate) fn escaped_char(text: &str) -> Result<(u32, &str), SyntaxError> {
    let mut chars = text[1..].chars();
    let Some(c) = chars.next() else {
        return error("trailing backslash at end of expression", "");
    };
    let rest = chars.as_str();
    let invalid = |rest: &str| error("invalid escape sequence", &text[..text.len() - rest.len()]);
    let simple = match c {
        'a' => '\x07',
        'f' => '\x0c',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\x0b',
        '0'..='7' => return octal(c, rest).map_or_else(|| invalid(rest), Ok),
        'x' => return hexadecimal(rest).or_else(invalid),
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => c,
        _ => return invalid(rest),
    };
    Ok((u32::from(simple), rest))
}

/// Up to three octal digits. One that is not zero would refer to a group, which cannot be.
fn octal(first: char, rest: &str) -> Option<(u32, &str)> {
    let digits = rest
        .bytes()
        .take(2)
        .take_while(|b| (b'0'..=b'7').contains(b));
    let digits = digits.count();
    if first != '0' && digits == 0 {
        return None;
    }
    let (more, rest) = rest.split_at(digits);
    let value = u32::from_str_radix(&format!("{first}{more}"), 8).ok()?;
    Some((value, rest))
}

/// Two hexadecimal digits, or any number in braces; the error is what is left where it went wrong.
fn hexadecimal(text: &str) -> Result<(u32, &str), &str> {
    let after = |count: usize| {
        let mut chars = text.chars();
        chars.by_ref().take(count).for_each(drop);
        chars.as_str()
    };
    if let Some(braced) = text.strip_prefix('{') {
        let digits = braced.bytes().take_while(u8::is_ascii_hexdigit).count();
        let (number, rest) = braced.split_at(digits);
        let value = u32::from_str_radix(number, 16).unwrap_or(u32::MAX);
        if digits > 0 && value > 0x10_ffff {
            // Go stops at the digit that makes it too large.
            let too_large = |n: &usize| {
                u32::from_str_radix(&number[..*n], 16).map_or(true, |value| value > 0x10_ffff)
            };
            let end = (1..=digits).find(too_large).unwrap_or(digits);
            return Err(after(1 + end));
        }
        return match rest.strip_prefix('}') {
            Some(rest) if digits > 0 => Ok((value, rest)),
            _ => Err(after(1 + digits + 1)),
        };
    }
    let digits = text
        .bytes()
        .take(2)
        .take_while(u8::is_ascii_hexdigit)
        .count();
    if digits < 2 {
        return Err(after(digits + 1));
    }
    let (number, rest) = text.split_at(2);
    Ok((u32::from_str_radix(number, 16).unwrap_or(0), rest))
}
