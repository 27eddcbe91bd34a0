//! Functions of strings. Positions count characters.

use super::{Implementation, format_string, int, list, or_fail, text};
use crate::value::{Effort, Failure, Outcome, Value, fail};

/// The function that an overload is.
pub(crate) fn implementation(overload: &str) -> Option<Implementation> {
    Some(match overload {
        "contains_string" => |args, _| test(args, |text, part| text.contains(part)),
        "starts_with_string" => |args, _| test(args, |text, part| text.starts_with(part)),
        "ends_with_string" => |args, _| test(args, |text, part| text.ends_with(part)),
        "string_char_at_int" => char_at,
        "string_index_of_string" | "string_index_of_string_int" => index_of,
        "string_last_index_of_string" | "string_last_index_of_string_int" => last_index_of,
        "string_lower_ascii" => |args, _| Ok(Value::str(text(&args[0])?.to_ascii_lowercase())),
        "string_upper_ascii" => |args, _| Ok(Value::str(text(&args[0])?.to_ascii_uppercase())),
        "string_replace_string_string" | "string_replace_string_string_int" => replace,
        "string_split_string" | "string_split_string_int" => split,
        "string_substring_int" | "string_substring_int_int" => substring,
        "string_trim" => |args, _| Ok(Value::str(text(&args[0])?.trim_matches(is_space))),
        "string_format" => format,
        "strings_quote" => |args, _| Ok(Value::str(quote(text(&args[0])?))),
        "list_join" | "list_join_string" => join,
        _ => return None,
    })
}

fn test(args: &[Value], holds: fn(&str, &str) -> bool) -> Outcome {
    Ok(Value::Bool(holds(text(&args[0])?, text(&args[1])?)))
}

fn out_of_range<T>(index: i64) -> Result<T, Failure> {
    fail(format!("index out of range: {index}"))
}

/// Where in the text its `index`th character begins; none beyond its end.
fn byte_at(text: &str, index: i64) -> Option<usize> {
    let index = usize::try_from(index).ok()?;
    let ends = std::iter::once(text.len());
    text.char_indices().map(|(at, _)| at).chain(ends).nth(index)
}

fn count(text: &str) -> i64 {
    i64::try_from(text.chars().count()).unwrap_or(i64::MAX)
}

fn char_at(args: &mut [Value], _: &mut Effort) -> Outcome {
    let (text, index) = (text(&args[0])?, int(&args[1])?);
    let Some(at) = byte_at(text, index) else {
        return out_of_range(index);
    };
    Ok(Value::str(text[at..].chars().take(1).collect::<String>()))
}

fn index_of(args: &mut [Value], _: &mut Effort) -> Outcome {
    let (whole, part) = (text(&args[0])?, text(&args[1])?);
    let from = args.get(2).map(int).transpose()?.unwrap_or(0);
    if part.is_empty() {
        return Ok(Value::Int(from));
    }
    if from < 0 {
        return out_of_range(from);
    }
    let found = byte_at(whole, from).and_then(|start| {
        let at = start + whole[start..].find(&**part)?;
        Some(count(&whole[..at]))
    });
    Ok(Value::Int(found.unwrap_or(-1)))
}

fn last_index_of(args: &mut [Value], _: &mut Effort) -> Outcome {
    let (whole, part) = (text(&args[0])?, text(&args[1])?);
    let length = count(whole);
    let until = args.get(2).map(int).transpose()?;
    if part.is_empty() {
        return Ok(Value::Int(until.unwrap_or(length)));
    }
    let until = match until {
        // A part that is longer was looked for by its bytes before anything else.
        None if whole.len() < part.len() => return Ok(Value::Int(-1)),
        None => length - 1,
        Some(until) => until,
    };
    if until < 0 {
        return out_of_range(until);
    }
    if until >= length {
        return Ok(Value::Int(-1));
    }
    // The last that begins at or before `until`.
    let begin = byte_at(whole, until).unwrap_or(whole.len());
    let end = whole.ceil_char_boundary((begin + part.len()).min(whole.len()));
    let found = whole[..end].rfind(&**part).map(|at| count(&whole[..at]));
    Ok(Value::Int(found.filter(|at| *at <= until).unwrap_or(-1)))
}

fn replace(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let (whole, from, to) = (text(&args[0])?, text(&args[1])?, text(&args[2])?);
    let limit = args.get(3).map(int).transpose()?.unwrap_or(-1);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let most = if from.is_empty() {
        whole.chars().count() + 1
    } else {
        whole.len() / from.len()
    };
    let grown = most.min(limit).saturating_mul(to.len());
    effort.spend(whole.len().saturating_add(grown))?;
    Ok(Value::str(whole.replacen(&**from, to, limit)))
}

fn split(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let (whole, by) = (text(&args[0])?, text(&args[1])?);
    let limit = args.get(2).map(int).transpose()?.unwrap_or(-1);
    effort.spend(whole.len())?;
    if limit == 0 {
        return Ok(Value::list(Vec::new()));
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if !by.is_empty() {
        return Ok(Value::strings(whole.splitn(limit, &**by)));
    }
    let mut parts = Vec::new();
    let mut rest = &**whole;
    while let Some(first) = rest.chars().next() {
        if parts.len() + 1 == limit {
            break;
        }
        let (part, after) = rest.split_at(first.len_utf8());
        parts.push(part);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    Ok(Value::strings(parts))
}

fn substring(args: &mut [Value], _: &mut Effort) -> Outcome {
    let (text, start) = (text(&args[0])?, int(&args[1])?);
    let end = args.get(2).map(int).transpose()?;
    if let Some(end) = end.filter(|end| start > *end) {
        return fail(format!(
            "invalid substring range. start: {start}, end: {end}"
        ));
    }
    let Some(from) = byte_at(text, start) else {
        return out_of_range(start);
    };
    let to = match end {
        None => text.len(),
        Some(end) => match byte_at(text, end) {
            Some(to) => to,
            None => return out_of_range(end),
        },
    };
    Ok(Value::str(&text[from..to]))
}

/// White space as Go has it.
fn is_space(c: char) -> bool {
    c.is_whitespace()
}

fn format(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let (format, values) = (text(&args[0])?, list(&args[1])?);
    format_string::format(format, values, effort).map(Value::str)
}

/// The text in quotes, with CEL's escapes.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn join(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let items = list(&args[0])?;
    let separator = match args.get(1) {
        Some(separator) => &**text(separator)?,
        None => "",
    };
    let mut joined = String::new();
    for (index, item) in items.iter().enumerate() {
        let Value::Str(part) = item else {
            return or_fail(Err(format!("join: invalid input: {item}")));
        };
        effort.spend(part.len() + separator.len() + 1)?;
        if index > 0 {
            joined.push_str(separator);
        }
        joined.push_str(part);
    }
    Ok(Value::str(joined))
}
