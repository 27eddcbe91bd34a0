//! The text fields of a `multipart/form-data` body that routing needs: `model` and `stream`.
//!
//! The body is searched, not copied; files in it are passed over. Nothing else of the format is
//! interpreted (no transfer encodings, no nesting), as HTTP uses none of it (RFC 7578).

use std::fmt;

use memchr::memmem;

use crate::json::Span;

/// Parts that are looked at; a body with more is refused.
pub const PARTS_MAX: usize = 256;
/// Bytes of one part's headers; more is refused.
pub const PART_HEAD_BYTES_MAX: usize = 8 << 10;
/// Bytes of a `boundary` (RFC 2046).
const BOUNDARY_BYTES_MAX: usize = 70;

/// What a form says about how to route it. Ranges refer to the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Form {
    /// The bytes of the field `model`.
    pub model: Option<Span>,
    /// The field `stream`.
    pub stream: Option<bool>,
}

/// Why a form cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FormError {
    /// The content type names no usable `boundary`.
    NoBoundary,
    /// The body is not made of parts, from this byte on.
    BadPart(usize),
    /// More than [`PARTS_MAX`] parts.
    TooManyParts,
}

impl fmt::Display for FormError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBoundary => f.write_str(
                "the request's content-type must be multipart/form-data with a boundary of at most 70 bytes",
            ),
            Self::BadPart(offset) => {
                write!(f, "the request's form is malformed or cut off at byte {offset}")
            }
            Self::TooManyParts => write!(f, "the request's form has more than {PARTS_MAX} parts"),
        }
    }
}

impl std::error::Error for FormError {}

impl Form {
    /// The model's name, if it is text; `body` is what was searched.
    #[must_use]
    pub fn model_name(self, body: &[u8]) -> Option<&str> {
        std::str::from_utf8(self.model?.of(body)).ok()
    }
}

/// Finds the fields of a form; of equal names the last one counts.
///
/// # Errors
/// If `content_type` or `body` is not a form as RFC 7578 has it.
pub fn fields(content_type: &str, body: &[u8]) -> Result<Form, FormError> {
    let boundary = boundary(content_type).ok_or(FormError::NoBoundary)?;
    let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
    let finder = memmem::Finder::new(&delimiter);
    let mut form = Form::default();
    // The first delimiter may stand at the very beginning, without its line break.
    let mut at = if body.starts_with(&delimiter[2..]) {
        delimiter.len() - 2
    } else {
        finder.find(body).ok_or(FormError::BadPart(0))? + delimiter.len()
    };
    for _ in 0..PARTS_MAX {
        if body[at..].starts_with(b"--") {
            return Ok(form);
        }
        let head = part_head(body, at)?;
        let end = head.end
            + finder
                .find(&body[head.end..])
                .ok_or(FormError::BadPart(at))?;
        form.field(
            head.of(body),
            Span {
                start: head.end,
                end,
            },
            body,
        );
        at = end + delimiter.len();
    }
    Err(FormError::TooManyParts)
}

/// A copy of `body` in which the bytes at `model` are `name`.
#[must_use]
pub fn replace_model(body: &[u8], model: Span, name: &str) -> Vec<u8> {
    let (before, after) = (
        body.get(..model.start).unwrap_or(body),
        body.get(model.end..).unwrap_or_default(),
    );
    [before, name.as_bytes(), after].concat()
}

impl Form {
    fn field(&mut self, head: &[u8], value: Span, body: &[u8]) {
        match name_of(head) {
            Some(b"model") => self.model = Some(value),
            Some(b"stream") => {
                // Form libraries write booleans in several ways.
                self.stream = match value.of(body) {
                    b"true" | b"True" | b"1" => Some(true),
                    b"false" | b"False" | b"0" => Some(false),
                    _ => None,
                }
            }
            _ => {}
        }
    }
}

/// The parameter `boundary` of a content type.
fn boundary(content_type: &str) -> Option<&str> {
    let mut parts = content_type.split(';');
    if !parts
        .next()?
        .trim()
        .eq_ignore_ascii_case("multipart/form-data")
    {
        return None;
    }
    let value = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("boundary")
            .then(|| value.trim().trim_matches('"'))
    })?;
    (1..=BOUNDARY_BYTES_MAX)
        .contains(&value.len())
        .then_some(value)
}

/// The headers of the part whose delimiter ends at `at`, up to where the value begins.
fn part_head(body: &[u8], at: usize) -> Result<Span, FormError> {
    let limit = body.len().min(at + PART_HEAD_BYTES_MAX);
    let window = &body[at..limit];
    // White space may follow the delimiter on its line.
    let padding = window
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count();
    if !window[padding..].starts_with(b"\r\n") {
        return Err(FormError::BadPart(at));
    }
    let blank = memmem::find(window, b"\r\n\r\n").ok_or(FormError::BadPart(at))?;
    Ok(Span {
        start: at + padding,
        end: at + blank + 4,
    })
}

/// The `name` in the part's `Content-Disposition`.
fn name_of(head: &[u8]) -> Option<&[u8]> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        if !line[..colon].eq_ignore_ascii_case(b"content-disposition") {
            return None;
        }
        parameters(&line[colon + 1..]).find_map(|parameter| {
            let equals = memchr::memchr(b'=', parameter)?;
            let value = parameter[equals + 1..].trim_ascii();
            let unquoted = value
                .strip_prefix(b"\"")
                .and_then(|value| value.strip_suffix(b"\""));
            parameter[..equals]
                .trim_ascii()
                .eq_ignore_ascii_case(b"name")
                .then(|| unquoted.unwrap_or(value))
        })
    })
}

/// Splits at semicolons outside quotes: a file's name may hold anything, ` name=model;` included.
fn parameters(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escape) = (false, false);
    value.split(move |&byte| {
        let ends = byte == b';' && !quoted;
        quoted ^= byte == b'"' && !escape;
        escape = byte == b'\\' && !escape;
        ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TYPE: &str = "multipart/form-data; boundary=\"XX\"";

    fn check(body: &str, model: Option<&str>, stream: Option<bool>) {
        let form = fields(TYPE, body.as_bytes()).expect("the test's form is valid");
        assert_eq!(form.model_name(body.as_bytes()), model, "{body}");
        assert_eq!(form.stream, stream, "{body}");
    }

    fn part(head: &str, value: &str) -> String {
        format!("--XX\r\nContent-Disposition: form-data; {head}\r\n\r\n{value}\r\n")
    }

    #[test]
    fn model_and_stream_are_found_behind_a_file() {
        let body = part(
            "name=\"file\"; filename=\"model\"\r\nContent-Type: audio/wav",
            "RI\r\n-XX\0FF",
        ) + &part("name=\"stream\"", "true")
            + &part("name=model", "whisper")
            + "--XX--\r\n";
        check(&body, Some("whisper"), Some(true));
    }

    #[test]
    fn a_file_cannot_pose_as_a_field_by_its_name() {
        let body = part(
            r#"filename="; name=model;\"; name=model"; NAME="file""#,
            "evil",
        ) + &part("name=\"model\"", "good");
        check(&(body + "--XX--"), Some("good"), None);
        check(
            &(part(r#"filename="; name=model;"; name="file""#, "evil") + "--XX--"),
            None,
            None,
        );
    }

    #[test]
    fn a_form_may_be_empty_or_have_a_preamble() {
        check("--XX--", None, None);
        check(
            &format!("hello\r\n{}--XX--", part("name=\"model\"", "")),
            Some(""),
            None,
        );
    }

    #[test]
    fn malformed_forms_are_refused() {
        let refuse = |content_type: &str, body: &str, error| {
            assert_eq!(fields(content_type, body.as_bytes()), Err(error), "{body}");
        };
        refuse("application/json", "--XX--", FormError::NoBoundary);
        refuse("multipart/form-data", "--XX--", FormError::NoBoundary);
        refuse(
            "multipart/form-data; boundary=",
            "--XX--",
            FormError::NoBoundary,
        );
        refuse(TYPE, "", FormError::BadPart(0));
        refuse(TYPE, &part("name=\"model\"", "x"), FormError::BadPart(4));
        refuse(TYPE, "--XXmodel", FormError::BadPart(4));
        refuse(
            TYPE,
            &part("name=\"a\"", "1").repeat(PARTS_MAX + 1),
            FormError::TooManyParts,
        );
    }

    #[test]
    fn only_the_value_changes() {
        let body = part("name=\"model\"", "base") + "--XX--";
        let form = fields(TYPE, body.as_bytes()).unwrap();
        let spliced = replace_model(body.as_bytes(), form.model.unwrap(), "other");
        assert_eq!(
            spliced,
            (part("name=\"model\"", "other") + "--XX--").as_bytes()
        );
    }

    proptest! {
        #[test]
        fn no_body_breaks_the_search(pieces in prop::collection::vec(prop::sample::select(vec![
            "--XX", "\r\n", "--", "Content-Disposition: form-data; name=\"model\"", "\r\n\r\n", "a", " ",
        ]), 0..20)) {
            let body = pieces.concat();
            if let Ok(Form { model: Some(model), .. }) = fields(TYPE, body.as_bytes()) {
                prop_assert!(!body[model.start..model.end].contains("\r\n--XX"));
            }
        }
    }
}
