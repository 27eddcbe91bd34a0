//! Classes of characters in regular expressions: `[a-z]`, `\d`, `\pL`, `[[:alpha:]]`.

use super::regex_syntax::{Flags, SyntaxError, error, escaped_char, push_char};
use regex::Regex;

/// The class as an atom, in both cases if flags say so.
pub(crate) fn folded(class: &str, flags: Flags) -> String {
    if flags.fold_case {
        format!("(?i:{class})")
    } else {
        class.to_owned()
    }
}

/// Reads `[...]`.
pub(crate) fn bracketed(text: &str, flags: Flags) -> Result<(String, &str), SyntaxError> {
    let mut rest = &text[1..];
    let mut class = String::from("[");
    if let Some(after) = rest.strip_prefix('^') {
        class.push('^');
        rest = after;
    }
    let mut first = true;
    while first || !rest.starts_with(']') {
        first = false;
        if let Some((named, after)) = posix(rest)? {
            class.push_str(named);
            rest = after;
        } else if let Some((escaped, after)) = escaped(rest)? {
            class.push_str(&escaped);
            rest = after;
        } else {
            rest = range(&mut class, rest, text)?;
        }
    }
    // A class of nothing is one that nothing matches.
    if class == "[" {
        class = "[^\\s\\S".to_owned();
    } else if class == "[^" {
        class = "[\\s\\S".to_owned();
    }
    class.push(']');
    Ok((folded(&class, flags), &rest[1..]))
}

/// Reads a character or a range.
fn range<'a>(class: &mut String, text: &'a str, whole: &str) -> Result<&'a str, SyntaxError> {
    let (low, mut rest) = class_char(text, whole)?;
    let mut high = low;
    if rest.starts_with('-') && rest.len() > 1 && !rest.starts_with("-]") {
        (high, rest) = class_char(&rest[1..], whole)?;
        if high < low {
            return error(
                "invalid character class range",
                &text[..text.len() - rest.len()],
            );
        }
    }
    // Halves of pairs are in no text.
    let low = char::from_u32(low).unwrap_or('\u{e000}');
    let high = char::from_u32(high).unwrap_or('\u{d7ff}');
    if low <= high {
        push_char(class, low);
        class.push('-');
        push_char(class, high);
    }
    Ok(rest)
}

fn class_char<'a>(text: &'a str, whole: &str) -> Result<(u32, &'a str), SyntaxError> {
    match text.chars().next() {
        None => error("missing closing ]", whole),
        Some('\\') => escaped_char(text),
        Some(c) => Ok((u32::from(c), &text[c.len_utf8()..])),
    }
}

/// Reads `[:alpha:]` inside of brackets.
fn posix(text: &str) -> Result<Option<(&'static str, &str)>, SyntaxError> {
    let Some(end) = text.strip_prefix("[:").and_then(|after| after.find(":]")) else {
        return Ok(None);
    };
    let (name, rest) = text.split_at(end + 4);
    let (negated, word) = match name[2..end + 2].strip_prefix('^') {
        Some(word) => (true, word),
        None => (false, &name[2..end + 2]),
    };
    let found = POSIX.iter().find(|(known, ..)| *known == word);
    match found {
        Some((_, plain, inverse)) => Ok(Some((if negated { inverse } else { plain }, rest))),
        None => error("invalid character class range", name),
    }
}

const POSIX: [(&str, &str, &str); 14] = [
    ("alnum", "[0-9A-Za-z]", "[^0-9A-Za-z]"),
    ("alpha", "[A-Za-z]", "[^A-Za-z]"),
    ("ascii", "[\\x00-\\x7F]", "[^\\x00-\\x7F]"),
    ("blank", "[\\t ]", "[^\\t ]"),
    ("cntrl", "[\\x00-\\x1F\\x7F]", "[^\\x00-\\x1F\\x7F]"),
    ("digit", "[0-9]", "[^0-9]"),
    ("graph", "[!-~]", "[^!-~]"),
    ("lower", "[a-z]", "[^a-z]"),
    ("print", "[ -~]", "[^ -~]"),
    ("punct", "[!-/:-@\\[-`{-~]", "[^!-/:-@\\[-`{-~]"),
    ("space", "[\\t-\\r ]", "[^\\t-\\r ]"),
    ("upper", "[A-Z]", "[^A-Z]"),
    ("word", "[0-9A-Za-z_]", "[^0-9A-Za-z_]"),
    ("xdigit", "[0-9A-Fa-f]", "[^0-9A-Fa-f]"),
];

/// Reads `\d`, `\W`, `\pL`, `\p{Greek}`; none if it is no class.
pub(crate) fn escaped(text: &str) -> Result<Option<(String, &str)>, SyntaxError> {
    let class = match text.get(..2) {
        Some("\\d") => "[0-9]",
        Some("\\D") => "[^0-9]",
        Some("\\s") => "[\\t\\n\\x0C\\r ]",
        Some("\\S") => "[^\\t\\n\\x0C\\r ]",
        Some("\\w") => "[0-9A-Za-z_]",
        Some("\\W") => "[^0-9A-Za-z_]",
        Some("\\p" | "\\P") if text.len() > 2 => return unicode(text).map(Some),
        _ => return Ok(None),
    };
    Ok(Some((class.to_owned(), &text[2..])))
}

fn unicode(text: &str) -> Result<(String, &str), SyntaxError> {
    let unknown = |at: &str| error("invalid character class range", at);
    let after = &text[2..];
    let (name, rest) = if let Some(braced) = after.strip_prefix('{') {
        let Some(parts) = braced.split_once('}') else {
            return unknown(text);
        };
        parts
    } else {
        after.split_at(after.chars().next().map_or(0, char::len_utf8))
    };
    let (inverse, name) = match name.strip_prefix('^') {
        Some(name) => (true, name),
        None => (false, name),
    };
    let negated = text.starts_with("\\P") != inverse;
    let Some(class) = named(name) else {
        return unknown(&text[..text.len() - rest.len()]);
    };
    let class = if negated {
        format!("[^{class}]")
    } else {
        format!("[{class}]")
    };
    Ok((class, rest))
}

/// A general category or a script, whichever has this name.
fn named(name: &str) -> Option<String> {
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ' ' | '-');
    if name.is_empty() || !name.chars().all(letters) {
        return None;
    }
    ["gc", "sc"].into_iter().find_map(|property| {
        let class = format!("\\p{{{property}={name}}}");
        Regex::new(&class).is_ok().then_some(class)
    })
}
