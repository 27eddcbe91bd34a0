//! Semantic versions, as the library `blang/semver` of Go reads and orders them.

use super::{Implementation, or_fail, quoted, text};
use crate::value::{Effort, Failure, Outcome, Value, no_overload};
use std::cmp::Ordering;
use std::sync::Arc;

/// A version. What it was built from has no part in the order and is not kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Version {
    major: u64,
    minor: u64,
    patch: u64,
    pre: Vec<Pre>,
}

/// A part of what a version precedes; numbers come first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Pre {
    Number(u64),
    Text(String),
}

/// The function that an overload is.
pub(crate) fn implementation(overload: &str) -> Option<Implementation> {
    Some(match overload {
        "string_to_semver" | "string_bool_to_semver" => {
            |args, _| Ok(Value::Semver(Arc::new(or_fail(read(args)?)?)))
        }
        "is_semver_string" | "is_semver_string_bool" => is_semver,
        "semver_is_greater_than" => |args, _| compare(args, |order| Value::Bool(order.is_gt())),
        "semver_is_less_than" => |args, _| compare(args, |order| Value::Bool(order.is_lt())),
        "semver_compare_to" => |args, _| compare(args, |order| Value::Int(order as i64)),
        "semver_major" => |args, _| Ok(Value::Int(of(&args[0])?.major.cast_signed())),
        "semver_minor" => |args, _| Ok(Value::Int(of(&args[0])?.minor.cast_signed())),
        "semver_patch" => |args, _| Ok(Value::Int(of(&args[0])?.patch.cast_signed())),
        _ => return None,
    })
}

fn read(args: &[Value]) -> Result<Result<Version, String>, Failure> {
    let text = text(&args[0])?;
    Ok(match args.get(1) {
        Some(Value::Bool(true)) => Version::normalized(text),
        _ => Version::parse(text),
    })
}

fn is_semver(args: &mut [Value], _: &mut Effort) -> Outcome {
    Ok(Value::Bool(read(args)?.is_ok()))
}

fn of(value: &Value) -> Result<&Version, Failure> {
    match value {
        Value::Semver(version) => Ok(version),
        _ => no_overload(),
    }
}

fn compare(args: &[Value], result: fn(Ordering) -> Value) -> Outcome {
    Ok(result(of(&args[0])?.order(of(&args[1])?)))
}

impl Version {
    /// Reads `1.2.3-rc.1+build`.
    pub(crate) fn parse(text: &str) -> Result<Version, String> {
        if text.is_empty() {
            return Err("Version string empty".to_owned());
        }
        let mut parts = text.splitn(3, '.');
        let (Some(major), Some(minor), Some(rest)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err("No Major.Minor.Patch elements found".to_owned());
        };
        let (major, minor) = (number("Major", major)?, number("Minor", minor)?);
        let (rest, build) = match rest.split_once('+') {
            Some((rest, build)) => (rest, Some(build)),
            None => (rest, None),
        };
        let (patch, pre) = match rest.split_once('-') {
            Some((patch, pre)) => (patch, Some(pre)),
            None => (rest, None),
        };
        let patch = number("Patch", patch)?;
        let pre = pre.map(|pre| pre.split('.').map(Pre::parse).collect());
        let pre = pre.unwrap_or_else(|| Ok(Vec::new()))?;
        build
            .map(|build| build.split('.').try_for_each(check_build))
            .transpose()?;
        Ok(Version {
            major,
            minor,
            patch,
            pre,
        })
    }

    /// As `parse`, for what is nearly a version: `v01.2`.
    fn normalized(text: &str) -> Result<Version, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text.splitn(3, '.').map(without_zeros).collect();
        if parts.len() < 3 {
            if parts.last().is_some_and(|last| last.contains(['+', '-'])) {
                let message = "short version cannot contain PreRelease/Build meta data";
                return Err(message.to_owned());
            }
            parts.resize(3, "0".to_owned());
        }
        Version::parse(&parts.join("."))
    }

    pub(crate) fn order(&self, other: &Version) -> Ordering {
        let numbers = |v: &Version| (v.major, v.minor, v.patch);
        numbers(self).cmp(&numbers(other)).then_with(|| {
            // A version comes after what precedes it.
            let released = |v: &Version| v.pre.is_empty();
            released(self)
                .cmp(&released(other))
                .then_with(|| self.pre.cmp(&other.pre))
        })
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

fn is_identifier(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn has_leading_zero(text: &str) -> bool {
    text.len() > 1 && text.starts_with('0')
}

fn parse_number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        let why = if text.is_empty() {
            "invalid syntax"
        } else {
            "value out of range"
        };
        format!("strconv.ParseUint: parsing {}: {why}", quoted(text))
    })
}

fn number(what: &str, text: &str) -> Result<u64, String> {
    if !is_number(text) {
        let what = what.to_ascii_lowercase();
        return Err(format!(
            "Invalid character(s) found in {what} number {}",
            quoted(text)
        ));
    }
    if has_leading_zero(text) {
        return Err(format!(
            "{what} number must not contain leading zeroes {}",
            quoted(text)
        ));
    }
    parse_number(text)
}

impl Pre {
    fn parse(text: &str) -> Result<Pre, String> {
        if text.is_empty() {
            return Err("Prerelease is empty".to_owned());
        }
        if is_number(text) {
            if has_leading_zero(text) {
                let text = quoted(text);
                return Err(format!(
                    "Numeric PreRelease version must not contain leading zeroes {text}"
                ));
            }
            return parse_number(text).map(Pre::Number);
        }
        if !is_identifier(text) {
            return Err(format!(
                "Invalid character(s) found in prerelease {}",
                quoted(text)
            ));
        }
        Ok(Pre::Text(text.to_owned()))
    }
}

fn check_build(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("Build meta data is empty".to_owned());
    }
    if !is_identifier(text) {
        return Err(format!(
            "Invalid character(s) found in build meta data {}",
            quoted(text)
        ));
    }
    Ok(())
}

/// A part without zeros before its number.
fn without_zeros(part: &str) -> String {
    if part.len() < 2 {
        return part.to_owned();
    }
    let kept = part.trim_start_matches('0');
    if kept.starts_with(|c: char| c.is_ascii_digit()) {
        kept.to_owned()
    } else {
        format!("0{kept}")
    }
}
