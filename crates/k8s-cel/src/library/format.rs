//! Named formats, `format.dns1123Label()`, and what is wrong with texts that are not of one.

use super::{Implementation, text, time, url};
use crate::value::{Effort, Outcome, Value, no_overload};

/// What costs of formats are reckoned with at most.
pub(crate) const REGEX_SIZE_MAX: f64 = 128.0;

/// A format.
#[derive(Debug)]
pub(crate) struct Format {
    /// The name by which it is compared.
    pub(crate) name: &'static str,
    /// The name by which it is asked for.
    function: &'static str,
    /// The length of a regular expression for it, for costs.
    pub(crate) regex_size: u64,
    check: fn(&str) -> Vec<String>,
}

const fn format(
    function: &'static str,
    name: &'static str,
    regex_size: u64,
    check: fn(&str) -> Vec<String>,
) -> Format {
    Format {
        name,
        function,
        regex_size,
        check,
    }
}

static FORMATS: [Format; 13] = [
    format("dns1123Label", "DNS1123Label", 30, dns1123_label),
    format(
        "dns1123Subdomain",
        "DNS1123Subdomain",
        60,
        dns1123_subdomain,
    ),
    format("dns1035Label", "DNS1035Label", 30, dns1035_label),
    format("qualifiedName", "QualifiedName", 60, qualified_name),
    format("dns1123LabelPrefix", "DNS1123LabelPrefix", 30, |text| {
        dns1123_label(&without_trailing_dash(text))
    }),
    format(
        "dns1123SubdomainPrefix",
        "DNS1123SubdomainPrefix",
        60,
        |text| dns1123_subdomain(&without_trailing_dash(text)),
    ),
    format("dns1035LabelPrefix", "DNS1035LabelPrefix", 30, |text| {
        dns1035_label(&without_trailing_dash(text))
    }),
    format("labelValue", "LabelValue", 40, label_value),
    format("uri", "URI", 1103, |text| {
        url::check_request(text).err().into_iter().collect()
    }),
    format("uuid", "uuid", 70, |text| {
        unless(is_uuid(text), "does not match the UUID format")
    }),
    format("byte", "byte", 84, |text| {
        unless(is_base64(text), "invalid base64")
    }),
    format("date", "date", 71, |text| {
        unless(time::is_date(text), "invalid date")
    }),
    format("datetime", "datetime", 71, |text| {
        unless(is_datetime(text), "invalid datetime")
    }),
];

/// The function that an overload is.
pub(crate) fn implementation(overload: &str) -> Option<Implementation> {
    Some(match overload {
        "format-validate" => validate,
        "format-named" => |args, _| {
            let format = named(text(&args[0])?).map(|format| Value::Format(format).into());
            Ok(Value::Optional(format))
        },
        "format.dns1123Label" => |_, _| constant("dns1123Label"),
        "format.dns1123Subdomain" => |_, _| constant("dns1123Subdomain"),
        "format.dns1035Label" => |_, _| constant("dns1035Label"),
        "format.qualifiedName" => |_, _| constant("qualifiedName"),
        "format.dns1123LabelPrefix" => |_, _| constant("dns1123LabelPrefix"),
        "format.dns1123SubdomainPrefix" => |_, _| constant("dns1123SubdomainPrefix"),
        "format.dns1035LabelPrefix" => |_, _| constant("dns1035LabelPrefix"),
        "format.labelValue" => |_, _| constant("labelValue"),
        "format.uri" => |_, _| constant("uri"),
        "format.uuid" => |_, _| constant("uuid"),
        "format.byte" => |_, _| constant("byte"),
        "format.date" => |_, _| constant("date"),
        "format.datetime" => |_, _| constant("datetime"),
        _ => return None,
    })
}

fn named(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.function == name)
}

fn constant(name: &str) -> Outcome {
    named(name).map_or_else(no_overload, |format| Ok(Value::Format(format)))
}

fn validate(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let (Value::Format(format), text) = (&args[0], text(&args[1])?) else {
        return no_overload();
    };
    effort.spend(text.len())?;
    let wrong = (format.check)(text);
    if wrong.is_empty() {
        return Ok(Value::Optional(None));
    }
    Ok(Value::some(Value::strings(wrong)))
}

fn unless(holds: bool, message: &str) -> Vec<String> {
    if holds {
        Vec::new()
    } else {
        vec![message.to_owned()]
    }
}

fn must_match(what: &str, examples: &[&str], pattern: &str) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    let examples = examples.join(" or ");
    // The comma after each example is Kubernetes' own.
    let examples = examples.replace(",  or", ", or");
    format!("{what} (e.g. {examples}regex used for validation is '{pattern}')")
}

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn too_many_characters(limit: usize) -> String {
    format!("must be no more than {limit} characters")
}

/// Letters, digits and dashes; the first and the last are no dash.
fn is_label(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
}

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

fn dns1123_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 63 {
        wrong.push(too_many_characters(63));
    }
    if !is_label(text) {
        wrong.push(if text.split('.').all(is_label) {
            "must not contain dots".to_owned()
        } else {
            must_match(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                &["my-name", "123-abc"],
                LABEL,
            )
        });
    }
    wrong
}

fn subdomain(text: &str, too_long: fn(usize) -> String) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 253 {
        wrong.push(too_long(253));
    }
    if !text.split('.').all(is_label) {
        wrong.push(must_match(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            &["example.com"],
            SUBDOMAIN,
        ));
    }
    wrong
}

fn dns1123_subdomain(text: &str) -> Vec<String> {
    subdomain(text, too_many_characters)
}

fn dns1035_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 63 {
        wrong.push(too_many_characters(63));
    }
    if !(is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase())) {
        wrong.push(must_match(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            &["my-name", "abc-123"],
            "[a-z]([-a-z0-9]*[a-z0-9])?",
        ));
    }
    wrong
}

/// As for names that more is added to: a dash at the end is none of its own.
fn without_trailing_dash(text: &str) -> String {
    match text.strip_suffix('-') {
        // Kubernetes replaces the last two bytes, whatever the one before the dash is.
        Some(before) if !before.is_empty() => {
            let kept = before.len() - 1;
            let kept = String::from_utf8_lossy(&before.as_bytes()[..kept]);
            format!("{kept}a")
        }
        _ => text.to_owned(),
    }
}

const NAME: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn qualified_name(text: &str) -> Vec<String> {
    let must = must_match(
        "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
        &["MyName", "my.name", "123-abc"],
        NAME,
    );
    let parts: Vec<&str> = text.split('/').collect();
    let mut wrong = Vec::new();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                let prefixed = subdomain(prefix, too_long);
                wrong.extend(
                    prefixed
                        .iter()
                        .map(|message| format!("prefix part {message}")),
                );
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {must} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        wrong.push(format!("name part {}", too_long(63)));
    }
    if !is_name(name) {
        wrong.push(format!("name part {must}"));
    }
    wrong
}

fn label_value(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 63 {
        wrong.push(too_long(63));
    }
    if !text.is_empty() && !is_name(text) {
        wrong.push(must_match(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &["MyValue", "my_value", "12345"],
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
        ));
    }
    wrong
}

/// 32 hexadecimal digits; the dashes may be left out, each by itself.
fn is_uuid(text: &str) -> bool {
    let mut rest = text;
    for (index, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if index > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        let digits = rest.bytes().take(length).take_while(u8::is_ascii_hexdigit);
        if digits.count() < length {
            return false;
        }
        rest = &rest[length..];
    }
    rest.is_empty()
}

/// Groups of four characters, of which the last may be padded; no text is none.
fn is_base64(text: &str) -> bool {
    let content = text.trim_end_matches('=');
    let padding = text.len() - content.len();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    !content.is_empty()
        && padding <= 2
        && text.len().is_multiple_of(4)
        && content.bytes().all(allowed)
}

/// A date, `T`, a time of the day with a zone. Hours, minutes and seconds are compared as text.
fn is_datetime(text: &str) -> bool {
    let lower = text.to_lowercase();
    let mut parts = lower.split('t');
    let (Some(date), Some(clock)) = (parts.next(), parts.next()) else {
        return false;
    };
    time::is_date(date) && is_clock(clock)
}

fn is_clock(text: &str) -> bool {
    let two = |text: &str, at: usize| -> Option<String> {
        let digits = text.get(at..at + 2)?;
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.to_owned())
    };
    let (Some(hour), Some(minute), Some(second)) = (two(text, 0), two(text, 3), two(text, 6))
    else {
        return false;
    };
    let colons = text.as_bytes()[2] == b':' && text.as_bytes()[5] == b':';
    let in_range = hour.as_str() <= "23" && minute.as_str() <= "59" && second.as_str() <= "59";
    colons && in_range && is_zone_after_fraction(&text[8..])
}

/// `(.[0-9]+)?(z|[+-]hh:mm)`, where the point is any character.
fn is_zone_after_fraction(rest: &str) -> bool {
    let is_zone = |zone: &str| {
        let bytes = zone.as_bytes();
        zone == "z"
            || (bytes.len() == 6
                && matches!(bytes[0], b'+' | b'-')
                && bytes[3] == b':'
                && [1, 2, 4, 5].iter().all(|at| bytes[*at].is_ascii_digit()))
    };
    if is_zone(rest) {
        return true;
    }
    let mut chars = rest.chars();
    let any = chars.next().is_some_and(|c| c != '\n');
    let after = chars.as_str();
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    any && digits > 0 && is_zone(&after[digits..])
}
