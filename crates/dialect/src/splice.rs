//! Changing a model's name in bytes that are otherwise passed on untouched.
//!
//! [`replace_model`] puts the served name into a request; [`ModelRestorer`] puts the requested
//! name back into the answer while it streams through. Only the value's bytes change: nothing is
//! parsed into a tree, reordered or re-serialised. Forms: [`crate::multipart`].

use bytes::Bytes;

use crate::json::Text;
use crate::track::{Found, Tracker};

/// A copy of `body` in which the value at `model` is `name`.
///
/// `model` comes from the scan of `body`; of another body the result is not defined, but safe.
#[must_use]
pub fn replace_model(body: &[u8], model: Text, name: &str) -> Vec<u8> {
    let (before, after) = (
        body.get(..model.span.start).unwrap_or(body),
        body.get(model.span.end..).unwrap_or_default(),
    );
    let name = escaped(name);
    let mut spliced = Vec::with_capacity(before.len() + name.len() + after.len());
    spliced.extend_from_slice(before);
    spliced.extend_from_slice(name.as_bytes());
    spliced.extend_from_slice(after);
    spliced
}

/// `name` as it stands between the quotes of a JSON string.
fn escaped(name: &str) -> String {
    let quoted = serde_json::Value::from(name).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// Replaces the served model's name by the requested one in an answer, JSON or SSE.
///
/// What counts is the member `model` at the top of the document or of an event's data, and of the
/// objects `response` and `message` there (the Responses and Messages streams). The same text
/// elsewhere, in contents or tool arguments, is left alone.
///
/// Bytes are held back only while they may be the beginning of the served name, so never more than
/// six bytes per byte of that name (its longest JSON spelling).
#[derive(Debug)]
pub struct ModelRestorer {
    served: String,
    /// The requested name, escaped.
    requested: Bytes,
    tracker: Tracker,
    /// The beginning of a value that may turn out to be the served name.
    held: Option<Vec<u8>>,
}

impl ModelRestorer {
    /// A restorer for one answer. `events` says that it is a stream of server-sent events.
    #[must_use]
    pub fn new(served: &str, requested: &str, events: bool) -> Self {
        Self {
            served: served.to_owned(),
            requested: escaped(requested).into(),
            tracker: Tracker::new(events),
            held: None,
        }
    }

    /// Takes the next chunk and appends what may go out to `out`, uncopied where nothing changed.
    pub fn push(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) {
        let mut at = self.resume(&chunk, out);
        let mut passed = at;
        while let Some(start) = self.next_model(&chunk, &mut at) {
            let (spelling, len) = spells(&chunk[start..], &self.served);
            match spelling {
                Spelling::No => self.tracker.pass_event(&chunk, &mut at),
                Spelling::Yes => {
                    emit(chunk.slice(passed..start), out);
                    emit(self.requested.clone(), out);
                    passed = start + len;
                    at = passed;
                    self.tracker.pass_event(&chunk, &mut at);
                }
                Spelling::Perhaps => {
                    emit(chunk.slice(passed..start), out);
                    self.held = Some(chunk[start..].to_vec());
                    return;
                }
            }
        }
        emit(chunk.slice(passed..), out);
    }

    /// The rest, when the answer has ended.
    pub fn finish(&mut self, out: &mut Vec<Bytes>) {
        emit(self.held.take().unwrap_or_default().into(), out);
    }

    /// The start of the next string under `model`, from `at` on.
    fn next_model(&mut self, chunk: &[u8], at: &mut usize) -> Option<usize> {
        while let Some(found) = self.tracker.next(chunk, at) {
            if found == Found::Model {
                return Some(*at);
            }
        }
        None
    }

    /// Goes on with a value that the last chunk left open; returns how much of `chunk` it took.
    fn resume(&mut self, chunk: &Bytes, out: &mut Vec<Bytes>) -> usize {
        let Some(mut held) = self.held.take() else {
            return 0;
        };
        let before = held.len();
        // One byte at a time: the value is as short as a name, and this happens once per stream.
        for (taken, byte) in chunk.iter().enumerate() {
            held.push(*byte);
            match spells(&held, &self.served) {
                (Spelling::Perhaps, _) => {}
                (Spelling::Yes, _) => {
                    // The quote just pushed is left to the tracker, which expects it.
                    emit(self.requested.clone(), out);
                    return taken;
                }
                (Spelling::No, _) => {
                    held.truncate(before);
                    // Within a string there is nothing to find.
                    self.tracker.next(&held, &mut 0);
                    emit(held.into(), out);
                    return 0;
                }
            }
        }
        self.held = Some(held);
        chunk.len()
    }
}

fn emit(bytes: Bytes, out: &mut Vec<Bytes>) {
    if !bytes.is_empty() {
        out.push(bytes);
    }
}

/// Whether bytes after an opening quote spell a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Spelling {
    /// They do, and the closing quote follows.
    Yes,
    /// They cannot.
    No,
    /// They are too few to tell.
    Perhaps,
}

/// Whether `raw` spells `name` in any of the ways that JSON allows, and in how many bytes.
fn spells(raw: &[u8], name: &str) -> (Spelling, usize) {
    // The usual spelling, in one comparison. It has no escapes, or the quote would not follow it.
    if raw.starts_with(name.as_bytes())
        && raw.get(name.len()) == Some(&b'"')
        && !name.contains(|c| matches!(c, '"' | '\\' | '\0'..='\x1f'))
    {
        return (Spelling::Yes, name.len());
    }
    let mut at = 0;
    for wanted in name.chars() {
        match spelled_len(&raw[at..], wanted) {
            Ok(len) => at += len,
            Err(spelling) => return (spelling, 0),
        }
    }
    match raw.get(at) {
        Some(b'"') => (Spelling::Yes, at),
        Some(_) => (Spelling::No, 0),
        None => (Spelling::Perhaps, 0),
    }
}

/// The bytes at the front of `raw` that spell `wanted`.
fn spelled_len(raw: &[u8], wanted: char) -> Result<usize, Spelling> {
    let Some(first) = raw.first() else {
        return Err(Spelling::Perhaps);
    };
    if *first != b'\\' {
        return match wanted {
            '"' | '\\' | '\0'..='\x1f' => Err(Spelling::No),
            _ => starts_with(raw, wanted.encode_utf8(&mut [0; 4]).as_bytes()),
        };
    }
    let short = match wanted {
        '"' => "\\\"",
        '\\' => r"\\",
        '/' => r"\/",
        '\x08' => r"\b",
        '\x0c' => r"\f",
        '\n' => r"\n",
        '\r' => r"\r",
        '\t' => r"\t",
        _ => "",
    };
    match raw.get(1) {
        None => Err(Spelling::Perhaps),
        Some(b'u') => {
            let units = wanted
                .encode_utf16(&mut [0; 2])
                .iter()
                .fold(String::new(), |units, unit| {
                    units + &format!("\\u{unit:04x}")
                });
            starts_with(raw, units.as_bytes())
        }
        Some(_) if short.is_empty() => Err(Spelling::No),
        Some(_) => starts_with(raw, short.as_bytes()),
    }
}

/// Whether `raw` begins with `wanted`. Hex digits of either case are equal, which for anything else
/// is decided by the exact comparison.
fn starts_with(raw: &[u8], wanted: &[u8]) -> Result<usize, Spelling> {
    let len = raw.len().min(wanted.len());
    let equal = if wanted.starts_with(b"\\u") {
        raw[..len].eq_ignore_ascii_case(&wanted[..len])
    } else {
        raw[..len] == wanted[..len]
    };
    match equal {
        false => Err(Spelling::No),
        true if len < wanted.len() => Err(Spelling::Perhaps),
        true => Ok(len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Api;
    use crate::scan::scan;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn only_the_value_changes_in_a_request() {
        let body = br#"{ "messages":[], "model" : "b\u0061se" , "x":"base"}"#;
        let model = scan(Api::ChatCompletions, body).unwrap().model.unwrap();
        let spliced = replace_model(body, model, "ad\"1\n");
        let expected = br#"{ "messages":[], "model" : "ad\"1\n" , "x":"base"}"#;
        assert_eq!(spliced, expected);
    }

    /// What comes out for a text that is cut into pieces of `size` bytes.
    fn restored(text: &[u8], served: &str, events: bool, size: usize) -> Vec<u8> {
        let mut restorer = ModelRestorer::new(served, "asked", events);
        let mut out = Vec::new();
        for piece in text.chunks(size.max(1)) {
            restorer.push(Bytes::copy_from_slice(piece), &mut out);
        }
        restorer.finish(&mut out);
        out.concat()
    }

    fn check(events: bool, text: &str, expected: &str) {
        for size in 1..=text.len() {
            let out = restored(text.as_bytes(), "org/base", events, size);
            assert_eq!(
                String::from_utf8(out).unwrap(),
                expected,
                "in pieces of {size}"
            );
        }
    }

    #[test]
    fn the_name_is_restored_in_a_document() {
        check(
            false,
            "{\"id\":1,\n \"model\" :\t\"org/base\", \"choices\":[]}",
            "{\"id\":1,\n \"model\" :\t\"asked\", \"choices\":[]}",
        );
    }

    #[test]
    fn every_spelling_of_the_name_is_known() {
        for spelling in [r"org\/base", r"org\u002fbase", r"\u006Frg/bas\u0065"] {
            check(
                false,
                &format!(r#"{{"model":"{spelling}"}}"#),
                r#"{"model":"asked"}"#,
            );
        }
    }

    #[test]
    fn the_name_is_restored_in_every_event() {
        check(
            true,
            ": \"model\":\"org/base\" it's a comment\n\ndata: {\"model\":\"org/base\",\"x\":1}\r\n\r\n\
             event: a\ndata:{\"response\":{\"id\":\"r\",\"model\":\"org/base\"}}\n\ndata: [DONE]\n\n\
             data: {\"message\":{\"model\":\"org/base\"},\"model\":\"org/base\"}\n\n",
            ": \"model\":\"org/base\" it's a comment\n\ndata: {\"model\":\"asked\",\"x\":1}\r\n\r\n\
             event: a\ndata:{\"response\":{\"id\":\"r\",\"model\":\"asked\"}}\n\ndata: [DONE]\n\n\
             data: {\"message\":{\"model\":\"asked\"},\"model\":\"asked\"}\n\n",
        );
    }

    #[test]
    fn an_event_that_breaks_off_does_not_spoil_the_next() {
        check(
            true,
            "data: {\"a\":\"\n\ndata: {\"model\":\"org/base\"}\n\n",
            "data: {\"a\":\"\n\ndata: {\"model\":\"asked\"}\n\n",
        );
    }

    #[test]
    fn a_second_value_without_a_key_is_left_alone_in_any_chunks() {
        check(
            true,
            "data: {\"model\":\"org/base\":\"org/base\"}\n\n",
            "data: {\"model\":\"asked\":\"org/base\"}\n\n",
        );
    }

    #[test]
    fn contents_and_other_members_are_left_alone() {
        for text in [
            r#"{"content":"\"model\":\"org/base\"","x":["model","org/base"]}"#,
            r#"{"choices":[{"model":"org/base","message":{"model":"org/base"}}]}"#,
            r#"{"content":[{"input":{"model":"org/base"}}],"tool":{"model":"org/base"}}"#,
            r#"{"model":"org/base2","models":"org/base","mod\u0065l":"org/base"}"#,
            r#"{"model":"org/bas","x":"model","y":"org/base"}"#,
            r#"[{"model":"org/base"}]"#,
            r#"{"response":[{"model":"org/base"}],"model":["org/base"]}"#,
        ] {
            check(false, text, text);
        }
    }

    #[test]
    fn nothing_is_copied_or_held_where_nothing_matches() {
        let mut restorer = ModelRestorer::new("base", "asked", false);
        let (mut out, chunk) = (Vec::new(), Bytes::from_static(b"{\"model\":\"other\",\"mo"));
        restorer.push(chunk.clone(), &mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].as_ptr(), chunk.as_ptr());
        assert_eq!(out[0], chunk);
        assert_eq!(restorer.held, None);
    }

    #[test]
    fn only_what_may_be_the_name_is_held_back() {
        let mut restorer = ModelRestorer::new("base", "asked", false);
        let mut out = Vec::new();
        restorer.push(Bytes::from_static(b"{\"model\":\"ba"), &mut out);
        assert_eq!(out.concat(), b"{\"model\":\"");
        restorer.push(Bytes::from_static(b"r"), &mut out);
        assert_eq!(out.concat(), b"{\"model\":\"bar");
    }

    fn any_answer() -> impl Strategy<Value = (Value, Value)> {
        let name =
            prop::sample::select(vec!["org/base", "org/bas", "x", "a\"b", "\u{e9}\u{1f600}"]);
        let extra = prop_oneof![
            any::<i32>().prop_map(Value::from),
            "[\\PC\n\"]{0,12}".prop_map(Value::from),
            name.clone()
                .prop_map(|n| json!({"model": n, "y": [{"model": n}]})),
            name.clone()
                .prop_map(|n| json!([{"model": n}, format!("\"model\":\"{n}\"")])),
        ];
        let envelope = prop::sample::select(vec!["response", "message", "other"]);
        (name.clone(), name, extra, envelope).prop_map(|(top, inner, extra, envelope)| {
            let make = |top: &str, inner: &str| {
                json!({"a": extra, "model": top, envelope: {"model": inner, "z": extra}, "zz": extra})
            };
            let asked = |name| if name == "org/base" { "asked" } else { name };
            let kept = if envelope == "other" { inner } else { asked(inner) };
            (make(top, inner), make(asked(top), kept))
        })
    }

    proptest! {
        #[test]
        fn restoring_equals_replacing_in_the_parsed_document(
            (answer, expected) in any_answer(), size in 1usize..40, pretty: bool,
        ) {
            let text = if pretty {
                serde_json::to_string_pretty(&answer).unwrap()
            } else {
                answer.to_string()
            };
            let out = restored(text.as_bytes(), "org/base", false, size);
            let parsed: Value = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(&parsed, &expected);
            if !pretty {
                let stream = format!("data: {text}\n\ndata: {text}\r\n\r\n");
                let out = restored(stream.as_bytes(), "org/base", true, size);
                let expected = format!("data: {expected}\n\ndata: {expected}\r\n\r\n");
                prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
            }
        }

        #[test]
        fn chunks_do_not_matter_for_events(
            parts in prop::collection::vec(prop::sample::select(vec![
                "data: ", "data:", ": ", "\n", "\n\n", "\r\n\r\n", "{\"model\":\"a\",\"x\":1}",
                "{\"message\":{\"model\":\"a\"},", "\"model\":\"a\"}", "{\"model\":\"ab\"}", "\"", "}",
            ]), 0..24),
            size in 1usize..40,
        ) {
            let text = parts.concat();
            let whole = restored(text.as_bytes(), "a", true, text.len());
            prop_assert_eq!(restored(text.as_bytes(), "a", true, size), whole);
        }

        #[test]
        fn chunks_do_not_matter_even_for_nonsense(
            text in "[\\\\{}\\[\\]\",:a\n ]{0,20}(\"model\":\"a)?[\\\\{}\",:a\n]{0,20}",
            size in 1usize..9, events: bool,
        ) {
            let text = if events { text.replace('\n', "\ndata:") } else { text };
            let whole = restored(text.as_bytes(), "a", events, text.len());
            prop_assert_eq!(restored(text.as_bytes(), "a", events, size), whole);
        }
    }
}
