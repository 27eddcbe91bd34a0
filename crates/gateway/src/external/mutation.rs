//! What a picker changes about the fields of a message.
//!
//! Allowed is what Envoy allows by default: everything but what frames a message, who it is for, and
//! fields that belong to the proxy. What is not allowed is passed over, since pickers tend to set
//! again every field that they were shown; what cannot be a field at all is a violation.

use bytes::Bytes;
use forebay_wire::ext_proc::header_value_option::HeaderAppendAction;
use forebay_wire::ext_proc::{HeaderMutation, HeaderValue as WireValue, HeaderValueOption};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::destination::DESTINATION;
use super::protocol::Violation;
use crate::upstream::is_hop_by_hop;

/// Fields of a head after a change; more is a violation. Clients may send 100.
const FIELDS_MAX: usize = 256;
/// Bytes of their names and values; more is a violation. Clients may send half of this.
const FIELDS_BYTES_MAX: usize = 128 << 10;

/// What is changed beside the fields.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Line {
    /// Path and query of a request.
    pub path: Option<String>,
    /// Status of a response.
    pub status: Option<u16>,
}

/// Changes `fields`: removes, then sets, in the order of the lists.
///
/// # Errors
/// If a name or a value is none, or the head grows beyond its bounds.
pub fn apply(mutation: &HeaderMutation, fields: &mut HeaderMap) -> Result<Line, Violation> {
    for name in &mutation.remove_headers {
        if let Some(name) = changeable(name)? {
            fields.remove(name);
        }
    }
    let mut line = Line::default();
    for option in &mutation.set_headers {
        let Some(header) = &option.header else {
            continue;
        };
        if let Some(name) = changeable(&header.key)? {
            set(fields, name, value_of(header)?, action(option));
        } else if let Ok(text) = str::from_utf8(&bytes_of(header)) {
            line.note(&header.key, text);
        }
    }
    let bytes = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    if fields.len() > FIELDS_MAX || fields.iter().map(bytes).sum::<usize>() > FIELDS_BYTES_MAX {
        let message =
            format!("a head of more than {FIELDS_MAX} fields or {FIELDS_BYTES_MAX} bytes");
        return Err(Violation::Field(message));
    }
    Ok(line)
}

impl Line {
    fn note(&mut self, name: &str, value: &str) {
        match name {
            // It becomes part of a request line.
            ":path" if value.starts_with('/') && value.bytes().all(|b| b.is_ascii_graphic()) => {
                self.path = Some(value.to_owned());
            }
            ":status" => {
                let status = value.parse().ok();
                self.status = status.filter(|status| (200..600).contains(status));
            }
            _ => {}
        }
    }
}

/// The value that `name` is set to, the last one if there are several.
pub(super) fn value_set<'a>(mutation: &'a HeaderMutation, name: &str) -> Option<&'a WireValue> {
    let headers = mutation.set_headers.iter().rev();
    headers
        .filter_map(|option| option.header.as_ref())
        .find(|header| header.key.eq_ignore_ascii_case(name))
}

/// A value's bytes, from whichever place it stands in.
pub(super) fn bytes_of(header: &WireValue) -> Bytes {
    if header.raw_value.is_empty() {
        Bytes::copy_from_slice(header.value.as_bytes())
    } else {
        header.raw_value.clone()
    }
}

fn value_of(header: &WireValue) -> Result<HeaderValue, Violation> {
    HeaderValue::from_maybe_shared(bytes_of(header))
        .map_err(|_| Violation::Field(format!("the value of {}", short(&header.key))))
}

/// The name, if fields of it may be changed.
fn changeable(name: &str) -> Result<Option<HeaderName>, Violation> {
    if name.starts_with(':') {
        return Ok(None);
    }
    let name = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| Violation::Field(format!("the name {}", short(name))))?;
    let fixed = is_hop_by_hop(&name)
        || matches!(
            name,
            header::CONTENT_LENGTH | header::HOST | header::TRAILER | header::EXPECT
        )
        || name.as_str() == DESTINATION
        || name.as_str().starts_with("x-envoy-");
    Ok((!fixed).then_some(name))
}

/// The beginning of a text that somebody else made up, for a message.
fn short(text: &str) -> String {
    text.chars()
        .take(64)
        .collect::<String>()
        .escape_debug()
        .to_string()
}

/// A field that says neither how nor what overwrites: so external processing has it, unlike the rest
/// of Envoy.
fn action(option: &HeaderValueOption) -> HeaderAppendAction {
    match (option.append, option.append_action()) {
        (Some(true), _) => HeaderAppendAction::AppendIfExistsOrAdd,
        (Some(false) | None, HeaderAppendAction::AppendIfExistsOrAdd) => {
            HeaderAppendAction::OverwriteIfExistsOrAdd
        }
        (Some(false) | None, action) => action,
    }
}

fn set(fields: &mut HeaderMap, name: HeaderName, value: HeaderValue, action: HeaderAppendAction) {
    match action {
        HeaderAppendAction::AppendIfExistsOrAdd => {
            fields.append(name, value);
        }
        HeaderAppendAction::AddIfAbsent if fields.contains_key(&name) => {}
        HeaderAppendAction::OverwriteIfExists if !fields.contains_key(&name) => {}
        HeaderAppendAction::AddIfAbsent
        | HeaderAppendAction::OverwriteIfExists
        | HeaderAppendAction::OverwriteIfExistsOrAdd => {
            fields.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(key: &str, value: &str) -> HeaderValueOption {
        HeaderValueOption {
            header: Some(WireValue {
                key: key.to_owned(),
                raw_value: Bytes::copy_from_slice(value.as_bytes()),
                ..WireValue::default()
            }),
            ..HeaderValueOption::default()
        }
    }

    fn acting(key: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
        HeaderValueOption {
            append_action: action.into(),
            ..option(key, value)
        }
    }

    /// `a: 1` and `b: 2` after the change, in the order of names.
    fn changed(set: Vec<HeaderValueOption>, remove: &[&str]) -> Result<(String, Line), Violation> {
        let mut fields = HeaderMap::new();
        fields.insert("a", HeaderValue::from_static("1"));
        fields.insert("b", HeaderValue::from_static("2"));
        let mutation = HeaderMutation {
            set_headers: set,
            remove_headers: remove.iter().map(|name| (*name).to_owned()).collect(),
        };
        let line = apply(&mutation, &mut fields)?;
        let mut shown: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("{name}={}", value.to_str().expect("text")))
            .collect();
        shown.sort();
        Ok((shown.join(" "), line))
    }

    fn check(set: Vec<HeaderValueOption>, remove: &[&str], expected: &str) {
        let (shown, line) = changed(set, remove).expect("allowed");
        assert_eq!((shown.as_str(), line), (expected, Line::default()));
    }

    #[test]
    fn actions_are_those_of_external_processing() {
        use HeaderAppendAction as Action;
        let append = |append| HeaderValueOption {
            append: Some(append),
            ..option("a", "x")
        };
        check(vec![option("a", "x")], &[], "a=x b=2");
        check(vec![append(true)], &[], "a=1 a=x b=2");
        check(vec![append(false)], &[], "a=x b=2");
        let act = |key, action| vec![acting(key, "x", action)];
        check(act("a", Action::AddIfAbsent), &[], "a=1 b=2");
        check(act("c", Action::AddIfAbsent), &[], "a=1 b=2 c=x");
        check(act("a", Action::OverwriteIfExists), &[], "a=x b=2");
        check(act("c", Action::OverwriteIfExists), &[], "a=1 b=2");
        check(act("c", Action::OverwriteIfExistsOrAdd), &[], "a=1 b=2 c=x");
        check(vec![], &["A", "c"], "b=2");
        // Removals come first, and values may stand in either place.
        let texts = WireValue {
            key: "A".to_owned(),
            value: "text".to_owned(),
            ..WireValue::default()
        };
        let text = HeaderValueOption {
            header: Some(texts),
            ..HeaderValueOption::default()
        };
        check(
            vec![text, HeaderValueOption::default()],
            &["a"],
            "a=text b=2",
        );
    }

    #[test]
    fn what_frames_and_addresses_a_message_stays() {
        for name in [
            "host",
            "Content-Length",
            "transfer-encoding",
            "connection",
            "te",
            "upgrade",
            "x-envoy-retry-on",
            "x-gateway-destination-endpoint",
            ":authority",
            ":method",
            ":scheme",
        ] {
            check(vec![option(name, "x")], &[name], "a=1 b=2");
        }
    }

    #[test]
    fn a_path_and_a_status_are_taken_if_they_are_ones() {
        let line = |name: &str, value: &str| changed(vec![option(name, value)], &[]).map(|c| c.1);
        let path = |path: Option<&str>| {
            Ok(Line {
                path: path.map(str::to_owned),
                status: None,
            })
        };
        let status = |status| Ok(Line { path: None, status });
        assert_eq!(line(":path", "/v1?x"), path(Some("/v1?x")));
        assert_eq!(line(":path", "http://elsewhere/"), path(None));
        assert_eq!(line(":path", "/a b\r\nc: d"), path(None));
        assert_eq!(line(":status", "418"), status(Some(418)));
        assert_eq!(line(":status", "101"), status(None));
    }

    #[test]
    fn what_cannot_be_a_field_is_a_violation() {
        let bad = |set, remove: &[&str]| changed(set, remove).expect_err("not a field");
        for violation in [
            bad(vec![option("a b", "x")], &[]),
            bad(vec![option("", "x")], &[]),
            bad(vec![option("a", "x\r\ny: z")], &[]),
            bad(vec![], &["a\n"]),
            bad(
                (0..300).map(|n| option(&format!("n{n}"), "x")).collect(),
                &[],
            ),
            bad(vec![option("a", &"x".repeat(200_000))], &[]),
        ] {
            assert!(matches!(violation, Violation::Field(_)), "{violation}");
        }
    }
}
