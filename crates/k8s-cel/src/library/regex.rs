//! Regular expressions: `matches`, `find`, `findAll`. Their syntax is Go's; `regex_syntax` writes it as
//! the regex crate understands it, which matches in time linear in the text too.

use super::{Implementation, int, regex_syntax, text};
use crate::value::{Effort, Failure, Outcome, Value, fail, no_overload};
use regex::{Regex, RegexBuilder};

/// Bytes that a compiled expression may take; above it is too large.
const SIZE_MAX: usize = 16 << 20;

/// How deep the regex crate may find the written expression nested. The depth that was given is bounded
/// by `regex_syntax`; each level is written as at most two.
const NESTING_MAX: u32 = 2_000;

/// A compiled expression.
#[derive(Debug)]
pub(crate) struct Pattern {
    regex: Regex,
}

/// `matches`, which looks at the types of its arguments itself.
pub(crate) fn shared(function: &str) -> Option<Implementation> {
    match function {
        "matches" => Some(|args, effort| dynamic(args, effort, "matches")),
        _ => None,
    }
}

/// The function that an overload is.
pub(crate) fn implementation(overload: &str) -> Option<Implementation> {
    Some(match overload {
        "string_find_string" => |args, effort| dynamic(args, effort, "find"),
        "string_find_all_string" | "string_find_all_string_int" => {
            |args, effort| dynamic(args, effort, "findAll")
        }
        _ => return None,
    })
}

fn dynamic(args: &mut [Value], effort: &mut Effort, function: &str) -> Outcome {
    let pattern = args.get(1).map_or_else(no_overload, text)?;
    match Pattern::compile(pattern, effort) {
        Ok(pattern) => pattern.apply(function, args, effort),
        Err(Failure::Error(message)) if function != "matches" => {
            fail(format!("Illegal regex: {message}"))
        }
        Err(failure) => Err(failure),
    }
}

/// Whether the pattern could be compiled.
pub(crate) fn check(pattern: &str) -> Result<(), String> {
    compile(pattern).map(|_| ())
}

fn compile(pattern: &str) -> Result<Regex, String> {
    let wrong = |code: &str, at: &str| format!("error parsing regexp: {code}: `{at}`");
    let written = regex_syntax::translate(pattern).map_err(|error| wrong(error.code, &error.at))?;
    RegexBuilder::new(&written)
        .size_limit(SIZE_MAX)
        .nest_limit(NESTING_MAX)
        .build()
        .map_err(|_| wrong("expression too large", pattern))
}

impl Pattern {
    pub(crate) fn compile(pattern: &str, effort: &mut Effort) -> Result<Pattern, Failure> {
        // A repetition of a thousand is the most that a few bytes can ask for.
        effort.spend(pattern.len().saturating_mul(100))?;
        match compile(pattern) {
            Ok(regex) => Ok(Pattern { regex }),
            Err(message) => fail(message),
        }
    }

    /// Calls `matches`, `find` or `findAll` with this pattern for the second argument.
    pub(crate) fn apply(&self, function: &str, args: &[Value], effort: &mut Effort) -> Outcome {
        let text = text(&args[0])?;
        effort.spend(text.len())?;
        if function == "matches" {
            return Ok(Value::Bool(self.regex.is_match(text)));
        }
        let found = self.regex.find_iter(text).map(|found| found.as_str());
        if function == "find" {
            let first = self.regex.find(text).map_or("", |found| found.as_str());
            return Ok(Value::str(first));
        }
        let limit = args.get(2).map(int).transpose()?.unwrap_or(-1);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let found: Vec<&str> = found.take(limit).collect();
        effort.spend(found.len())?;
        Ok(Value::strings(found))
    }
}
