//! What functions do, a file for each subject. They are declared in `decls.txt`; what they cost is in
//! `call_costs`. Messages of errors are those of the scheduler's library.

pub(crate) mod conversions;
pub(crate) mod decimal;
pub(crate) mod format;
pub(crate) mod format_string;
pub(crate) mod lists;
pub(crate) mod net;
pub(crate) mod number;
pub(crate) mod operators;
pub(crate) mod quantity;
pub(crate) mod regex;
mod regex_class;
mod regex_syntax;
pub(crate) mod semver;
pub(crate) mod strings;
pub(crate) mod time;
pub(crate) mod url;

use crate::value::{Effort, Failure, Outcome, Value, fail, no_overload};
use std::fmt::Write;
use std::sync::Arc;

/// What a function does with the values of its arguments, the receiver first. It may take them.
pub(crate) type Implementation = fn(&mut [Value], &mut Effort) -> Outcome;

/// The implementation of one overload; its arguments are of the declared types.
pub(crate) fn implementation(overload: &str) -> Option<Implementation> {
    conversions::implementation(overload)
        .or_else(|| strings::implementation(overload))
        .or_else(|| time::implementation(overload))
        .or_else(|| lists::implementation(overload))
        .or_else(|| quantity::implementation(overload))
        .or_else(|| semver::implementation(overload))
        .or_else(|| net::implementation(overload))
        .or_else(|| url::implementation(overload))
        .or_else(|| format::implementation(overload))
        .or_else(|| regex::implementation(overload))
}

/// The implementation of a function that tells its arguments apart by itself.
pub(crate) fn shared(function: &str) -> Option<Implementation> {
    operators::shared(function)
        .or_else(|| lists::shared(function))
        .or_else(|| regex::shared(function))
}

/// The text of an argument.
pub(crate) fn text(value: &Value) -> Result<&Arc<str>, Failure> {
    match value {
        Value::Str(text) => Ok(text),
        _ => no_overload(),
    }
}

/// The integer of an argument.
pub(crate) fn int(value: &Value) -> Result<i64, Failure> {
    match value {
        Value::Int(number) => Ok(*number),
        _ => no_overload(),
    }
}

/// The elements of an argument.
pub(crate) fn list(value: &Value) -> Result<&Arc<Vec<Value>>, Failure> {
    match value {
        Value::List(items) => Ok(items),
        _ => no_overload(),
    }
}

/// Makes an error of what a library could not read.
pub(crate) fn or_fail<T>(result: Result<T, String>) -> Result<T, Failure> {
    result.or_else(fail)
}

/// Text in double quotes with escapes, as `%q` of Go prints it.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        push_quoted(&mut out, c);
    }
    out.push('"');
    out
}

fn push_quoted(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        c if (c as u32) < 0x20 || c == '\x7f' => push_escape(out, 'x', 2, c),
        c if is_printable(c) => out.push(c),
        c if (c as u32) < 0x1_0000 => push_escape(out, 'u', 4, c),
        c => push_escape(out, 'U', 8, c),
    }
}

fn push_escape(out: &mut String, letter: char, width: usize, c: char) {
    // Writing to a string cannot fail.
    let _ = write!(out, "\\{letter}{:0width$x}", c as u32);
}

/// Whether Go would print the character as it is: no controls, separators, or what has no meaning.
fn is_printable(c: char) -> bool {
    !(c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}'
            | '\u{fff0}'..='\u{fffb}' | '\u{f0000}'..))
}
