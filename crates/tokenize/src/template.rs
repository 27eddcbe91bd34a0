//! Chat templates, rendered as `transformers` renders them.
//!
//! Templates are Jinja written for Python: its string methods, its words for nothing and truth, its
//! JSON with spaces after the separators. What a template may use up is bounded; one that runs out,
//! or raises, costs its request the comparison of tokens and nothing else.

use std::fmt::Write as _;
use std::io;

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use serde::Serialize;
use serde_json::ser::Formatter;

use crate::LoadError;

/// Steps of one rendering; a conversation of a thousand messages takes some ten thousand.
const FUEL: u64 = 1_000_000;

/// A template, compiled.
#[derive(Debug)]
pub(crate) struct Template {
    env: Environment<'static>,
    /// Whether it goes through the parts of a message itself; else texts come joined.
    pub(crate) takes_parts: bool,
}

impl Template {
    pub(crate) fn new(source: &str) -> Result<Self, LoadError> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_formatter(format);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.add_filter("tojson", tojson);
        env.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        env.add_function("strftime_now", strftime_now);
        env.add_template_owned("chat", source.to_owned())
            .map_err(|error| LoadError::Template(error.to_string()))?;
        Ok(Self {
            env,
            takes_parts: takes_parts(source),
        })
    }

    pub(crate) fn render(&self, context: Value) -> Result<String, String> {
        let template = self.env.get_template("chat").expect("added when made");
        template.render(context).map_err(|error| error.to_string())
    }
}

/// Whether the template has a loop over a message's content, as those do that take parts.
fn takes_parts(source: &str) -> bool {
    let loops = source.split("{%").filter_map(|block| {
        let block = block.split("%}").next()?;
        let block = block.trim_start_matches(['-', '+']).trim_start();
        block.strip_prefix("for ")?.split(" in ").nth(1)
    });
    let over_content = |of: &str| {
        let of = of.trim_start();
        let end = of
            .find(|c: char| c.is_whitespace() || c == '|')
            .unwrap_or(of.len());
        let of = of[..end].trim_end_matches(['-', '+']);
        of == "content"
            || of.ends_with(".content")
            || of.ends_with("['content']")
            || of.ends_with("[\"content\"]")
    };
    loops.into_iter().any(over_content)
}

/// As Python writes values.
fn format(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let word = if value.is_none() {
        "None"
    } else if let Ok(truth) = bool::try_from(value.clone())
        && value.kind() == minijinja::value::ValueKind::Bool
    {
        if truth { "True" } else { "False" }
    } else {
        return minijinja::escape_formatter(out, state, value);
    };
    out.write_str(word).map_err(Error::from)
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Other ways to write it are rare, and would be wrong if they were passed over.
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        None => {
            let mut json = serde_json::Serializer::with_formatter(&mut out, Spaced);
            value.serialize(&mut json)
        }
        Some(indent) => {
            let spaces = " ".repeat(indent.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut json = serde_json::Serializer::with_formatter(&mut out, pretty);
            value.serialize(&mut json)
        }
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    String::from_utf8(out)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// A space after each separator, as Python has it.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// Today's date in the template's words; the day comes with the request, as seconds since 1970.
fn strftime_now(state: &State<'_, '_>, format: &str) -> Result<String, Error> {
    let now = state
        .lookup("__now_s")
        .and_then(|now| i64::try_from(now).ok());
    let now = now.and_then(|now| jiff::Timestamp::from_second(now).ok());
    let now = now.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "no date is known"))?;
    let mut text = String::new();
    let date = now.to_zoned(jiff::tz::TimeZone::UTC);
    write!(text, "{}", date.strftime(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "a date that cannot be written"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    fn check(source: &str, wanted: &str) {
        let messages: Value = serde_json::from_str(
            r#"[{"role": "user", "content": " Hi <b>&", "n": null, "b": true, "z": {"k": [1, 2]}}]"#,
        )
        .expect("JSON");
        let template = Template::new(source).expect("a template");
        let context = context! { messages, bos_token => "<s>", __now_s => 1_793_534_400 };
        assert_eq!(template.render(context).as_deref(), Ok(wanted), "{source}");
    }

    #[test]
    fn values_look_as_they_do_in_python() {
        check(
            "{{ bos_token }}{{ messages[0].content | trim }}",
            "<s>Hi <b>&",
        );
        check(
            "{{ messages[0]['content'].strip().startswith('Hi') }}",
            "True",
        );
        check("{{ messages[0].n }}|{{ missing }}", "None|");
        check("{{ messages[0].z | tojson }}", r#"{"k": [1, 2]}"#);
        check("{{ messages[0].content | tojson }}", r#"" Hi <b>&""#);
        check(
            "{{ messages[0].z | tojson(indent=2) }}",
            "{\n  \"k\": [\n    1,\n    2\n  ]\n}",
        );
        check("{{ strftime_now('%d %b %Y') }}", "01 Nov 2026");
        check("  {% for m in messages %}\nx\n  {% endfor %}\ny\n", "x\ny");
        check(
            "{% for m in messages %}{{ loop.last }}{% break %}{% endfor %}",
            "True",
        );
        check(
            "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}",
            "2",
        );
    }

    #[test]
    fn a_template_that_raises_or_runs_on_and_on_is_stopped() {
        let fails = |source: &str| {
            let template = Template::new(source).expect("a template");
            template.render(context! {}).is_err()
        };
        assert!(fails("{{ raise_exception('no') }}"));
        assert!(fails(
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}"
        ));
        assert!(fails("{{ strftime_now('%d') }}"));
        assert!(Template::new("{% if %}").is_err());
    }

    #[test]
    fn templates_that_go_through_parts_are_told_apart() {
        let check = |source, wanted| assert_eq!(takes_parts(source), wanted, "{source}");
        check("{% for m in messages %}{{ m.content }}{% endfor %}", false);
        check("{%- for part in message.content -%}", true);
        check(
            "{%- for part in message['content'] | selectattr('type') %}",
            true,
        );
        check("{% for part in content %}", true);
    }
}
