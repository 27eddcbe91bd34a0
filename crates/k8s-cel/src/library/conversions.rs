//! Conversions between CEL's own types: `int("7")`, `string(1.5)`.

use super::{Implementation, text, time};
use crate::value::{Effort, Outcome, Value, fail, no_overload, shortest};

/// The conversion that an overload is.
pub(crate) fn implementation(overload: &str) -> Option<Implementation> {
    Some(match overload {
        "bool_to_bool"
        | "bytes_to_bytes"
        | "double_to_double"
        | "duration_to_duration"
        | "int_to_int"
        | "string_to_string"
        | "timestamp_to_timestamp"
        | "uint_to_uint" => |args, _| Ok(args[0].clone()),
        "string_to_bool" => string_to_bool,
        "string_to_bytes" => |args, _| Ok(Value::Bytes(text(&args[0])?.as_bytes().into())),
        "int_to_double" | "uint_to_double" | "string_to_double" => to_double,
        "int_to_duration" | "string_to_duration" => to_duration,
        "double_to_int" | "duration_to_int" | "string_to_int" | "timestamp_to_int"
        | "uint_to_int" => to_int,
        "bool_to_string"
        | "bytes_to_string"
        | "double_to_string"
        | "duration_to_string"
        | "int_to_string"
        | "timestamp_to_string"
        | "uint_to_string" => to_string,
        "int_to_timestamp" | "string_to_timestamp" => to_timestamp,
        "double_to_uint" | "int_to_uint" | "string_to_uint" => to_uint,
        _ => return None,
    })
}

fn unconvertible(from: &Value, to: &str) -> Outcome {
    let from = from.type_name();
    fail(format!("type conversion error from '{from}' to '{to}'"))
}

fn string_to_bool(args: &mut [Value], _: &mut Effort) -> Outcome {
    match &**text(&args[0])? {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
        _ => unconvertible(&args[0], "bool"),
    }
}

fn to_double(args: &mut [Value], _: &mut Effort) -> Outcome {
    match &args[0] {
        Value::Int(value) => Ok(Value::Double(*value as f64)),
        Value::Uint(value) => Ok(Value::Double(*value as f64)),
        Value::Str(text) => match parse_double(text) {
            Some(value) => Ok(Value::Double(value)),
            None => unconvertible(&args[0], "double"),
        },
        _ => no_overload(),
    }
}

/// Reads a double as Go does: decimal or hexadecimal, with infinities and NaN. Out of range is none.
fn parse_double(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let lower = unsigned.to_ascii_lowercase();
    if let Some(digits) = lower.strip_prefix("0x") {
        let value = parse_hexadecimal(digits)?;
        return Some(if text.starts_with('-') { -value } else { value });
    }
    let special = matches!(lower.as_str(), "inf" | "infinity" | "nan");
    if lower == "nan" && unsigned.len() != text.len() {
        return None;
    }
    let value: f64 = without_underscores(text)?.parse().ok()?;
    (special || value.is_finite()).then_some(value)
}

/// The number without the underscores between its digits; none if one is elsewhere.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at))
            .is_some_and(u8::is_ascii_digit)
    };
    let separates = |at: usize| digit(at.checked_sub(1)) && digit(Some(at + 1));
    let mut underscores = text.match_indices('_');
    underscores
        .all(|(at, _)| separates(at))
        .then(|| text.replace('_', ""))
}

/// `1.8p3`: a mantissa of hexadecimal digits and a binary exponent.
fn parse_hexadecimal(text: &str) -> Option<f64> {
    let (mantissa, exponent) = text.split_once('p')?;
    let exponent_digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if exponent_digits.is_empty() || !exponent_digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let exponent: i32 = exponent.parse().ok()?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut value = 0.0_f64;
    for digit in whole.chars().chain(fraction.chars()) {
        value = value * 16.0 + f64::from(digit.to_digit(16)?);
    }
    let places = i32::try_from(fraction.len()).ok()?;
    let value = value * 2.0_f64.powi(exponent.checked_sub(places.checked_mul(4)?)?);
    value.is_finite().then_some(value)
}

fn to_duration(args: &mut [Value], _: &mut Effort) -> Outcome {
    match &args[0] {
        // Declared, but integers do not convert.
        Value::Int(_) => unconvertible(&args[0], "google.protobuf.Duration"),
        Value::Str(text) => match time::parse_duration(text) {
            Some(nanos) => Ok(Value::Duration(nanos)),
            None => unconvertible(&args[0], "google.protobuf.Duration"),
        },
        _ => no_overload(),
    }
}

fn to_timestamp(args: &mut [Value], _: &mut Effort) -> Outcome {
    match &args[0] {
        Value::Int(seconds) => time::at(*seconds, 0, 0),
        Value::Str(text) => match time::parse_timestamp(text) {
            Some((seconds, nanos, offset)) => time::at(seconds, nanos, offset),
            None => unconvertible(&args[0], "google.protobuf.Timestamp"),
        },
        _ => no_overload(),
    }
}

fn to_int(args: &mut [Value], _: &mut Effort) -> Outcome {
    match &args[0] {
        // As cel-go: both ends are out.
        Value::Double(value)
            if *value > -9_223_372_036_854_775_808.0 && *value < 9_223_372_036_854_775_808.0 =>
        {
            Ok(Value::Int(*value as i64))
        }
        Value::Double(_) => fail("integer overflow"),
        Value::Uint(value) => match i64::try_from(*value) {
            Ok(value) => Ok(Value::Int(value)),
            Err(_) => fail("integer overflow"),
        },
        Value::Duration(nanos) => Ok(Value::Int(*nanos)),
        Value::Timestamp(at) => Ok(Value::Int(at.seconds)),
        Value::Str(text) => match text.parse() {
            Ok(value) => Ok(Value::Int(value)),
            Err(_) => unconvertible(&args[0], "int"),
        },
        _ => no_overload(),
    }
}

fn to_uint(args: &mut [Value], _: &mut Effort) -> Outcome {
    match &args[0] {
        Value::Double(value) if *value >= 0.0 && *value < 18_446_744_073_709_551_616.0 => {
            Ok(Value::Uint(*value as u64))
        }
        Value::Int(value) if *value >= 0 => Ok(Value::Uint(value.unsigned_abs())),
        Value::Double(_) | Value::Int(_) => fail("unsigned integer overflow"),
        // A sign is no part of an unsigned number.
        Value::Str(text) if !text.starts_with('+') && text.parse::<u64>().is_ok() => {
            Ok(text.parse().map_or(Value::Null, Value::Uint))
        }
        Value::Str(_) => unconvertible(&args[0], "uint"),
        _ => no_overload(),
    }
}

fn to_string(args: &mut [Value], _: &mut Effort) -> Outcome {
    string_of(&args[0]).map(Value::str)
}

/// The value as a string, for `string(value)` and the `%s` of `format`.
pub(crate) fn string_of(value: &Value) -> Result<String, crate::value::Failure> {
    Ok(match value {
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Double(value) => shortest(*value),
        Value::Str(text) => text.to_string(),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => return fail("invalid UTF-8 in bytes, cannot convert to string"),
        },
        Value::Duration(nanos) => time::duration_text(*nanos),
        Value::Timestamp(at) => time::timestamp_text(at),
        Value::Type(name) => (*name).to_owned(),
        _ => return no_overload(),
    })
}
