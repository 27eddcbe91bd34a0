//! `"%d of %s".format([...])`: what clauses there are, and how values are printed by them. Numbers are
//! printed as in American English.

use super::conversions::string_of;
use super::{quoted, time};
use crate::value::{Effort, Failure, Key, Map, Value, fail};

/// What stands for an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Clause {
    Str,
    Decimal,
    Fixed(usize),
    Scientific(usize),
    Binary,
    Hex { upper: bool },
    Octal,
}

/// Digits after the point where nothing else is said.
const PRECISION: usize = 6;

impl Clause {
    /// What is wrong with a value of this type.
    pub(crate) fn refusal(self, type_name: &str) -> String {
        let what = match self {
            Clause::Str => {
                "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps"
            }
            Clause::Decimal => "decimal clause can only be used on integers",
            Clause::Fixed(_) => "fixed-point clause can only be used on doubles",
            Clause::Scientific(_) => "scientific clause can only be used on doubles",
            Clause::Binary => "only integers and bools can be formatted as binary",
            Clause::Hex { .. } => {
                "only integers, byte buffers, and strings can be formatted as hex"
            }
            Clause::Octal => "octal clause can only be used on integers",
        };
        format!("{what}, was given {type_name}")
    }
}

/// A place in a format: text, or a clause for the next argument.
pub(crate) enum Piece<'a> {
    Text(&'a str),
    Clause(Clause),
}

/// The pieces of a format, until the first that is wrong.
pub(crate) struct Pieces<'a> {
    rest: &'a str,
    /// How many arguments there are, and how many were asked for.
    given: usize,
    pub(crate) asked: usize,
}

impl<'a> Pieces<'a> {
    pub(crate) fn new(format: &'a str, given: usize) -> Pieces<'a> {
        Pieces {
            rest: format,
            given,
            asked: 0,
        }
    }

    fn clause(&mut self, text: &'a str) -> Result<Clause, String> {
        let unparsed = |message: String| format!("could not parse formatting clause: {message}");
        if self.asked >= self.given {
            return Err(format!("index {} out of range", self.asked));
        }
        self.asked += 1;
        if text.is_empty() {
            return Err("unexpected end of string".to_owned());
        }
        let (precision, text) = precision(text)
            .map_err(|message| unparsed(format!("error while parsing precision: {message}")))?;
        // As cel-go: the clause is a byte, read as a character.
        let letter = text.bytes().next().map_or('\0', char::from);
        self.rest = text.get(1..).unwrap_or_default();
        let digits = precision.unwrap_or(PRECISION);
        Ok(match letter {
            's' => Clause::Str,
            'd' => Clause::Decimal,
            'f' => Clause::Fixed(digits),
            'e' => Clause::Scientific(digits),
            'b' => Clause::Binary,
            'x' => Clause::Hex { upper: false },
            'X' => Clause::Hex { upper: true },
            'o' => Clause::Octal,
            other => {
                let message = format!("unrecognized formatting clause \"{other}\"");
                return Err(unparsed(message));
            }
        })
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        if let Some(rest) = self.rest.strip_prefix("%%") {
            self.rest = rest;
            return Some(Ok(Piece::Text("%")));
        }
        if let Some(rest) = self.rest.strip_prefix('%') {
            let clause = self.clause(rest);
            return Some(clause.map(Piece::Clause));
        }
        let end = self.rest.find('%').unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(Ok(Piece::Text(text)))
    }
}

/// `.3` before a clause, and what follows.
fn precision(text: &str) -> Result<(Option<usize>, &str), String> {
    let Some(text) = text.strip_prefix('.') else {
        return Ok((None, text));
    };
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, rest) = text.split_at(end);
    if rest.is_empty() {
        return Err("could not find end of precision specifier".to_owned());
    }
    // Go's int has 63 bits.
    match digits.parse::<i64>() {
        Ok(precision) => Ok((usize::try_from(precision).ok(), rest)),
        Err(_) => {
            let why = if digits.is_empty() {
                "invalid syntax"
            } else {
                "value out of range"
            };
            let digits = quoted(digits);
            Err(format!(
                "error while converting precision to integer: strconv.Atoi: parsing {digits}: {why}"
            ))
        }
    }
}

/// The format with its arguments in place.
pub(crate) fn format(
    format: &str,
    values: &[Value],
    effort: &mut Effort,
) -> Result<String, Failure> {
    let mut out = String::new();
    let pieces = Pieces::new(format, values.len());
    let mut next = values.iter();
    for piece in pieces {
        match piece {
            Err(message) => return fail(message),
            Ok(Piece::Text(text)) => out.push_str(text),
            Ok(Piece::Clause(clause)) => {
                let value = next.next().unwrap_or(&Value::Null);
                match print(clause, value, effort) {
                    Ok(text) => out.push_str(&text),
                    Err(Failure::Error(message)) => {
                        return fail(format!("error during formatting: {message}"));
                    }
                    Err(limit @ Failure::Limit(_)) => return Err(limit),
                }
            }
        }
    }
    effort.spend(out.len())?;
    Ok(out)
}

fn print(clause: Clause, value: &Value, effort: &mut Effort) -> Result<String, Failure> {
    effort.spend(1)?;
    let printed = match (clause, value) {
        (Clause::Str, value) => return print_string(value, effort),
        (Clause::Decimal, Value::Int(n)) => n.to_string(),
        (Clause::Decimal, Value::Uint(n)) => n.to_string(),
        (Clause::Fixed(digits), value) if double(value).is_some() => {
            effort.spend(digits)?;
            fixed(double(value).unwrap_or(f64::NAN), digits)
        }
        (Clause::Scientific(width), value) if double(value).is_some() => {
            effort.spend(width)?;
            let text = scientific(double(value).unwrap_or(f64::NAN));
            // As cel-go: what is given as a precision becomes the least width.
            let missing = width.saturating_sub(text.chars().count());
            " ".repeat(missing) + &text
        }
        (Clause::Binary, Value::Bool(value)) => u8::from(*value).to_string(),
        (Clause::Binary, Value::Int(n)) => signed(*n, format!("{:b}", n.unsigned_abs())),
        (Clause::Binary, Value::Uint(n)) => format!("{n:b}"),
        (Clause::Octal, Value::Int(n)) => signed(*n, format!("{:o}", n.unsigned_abs())),
        (Clause::Octal, Value::Uint(n)) => format!("{n:o}"),
        (Clause::Hex { upper }, value) => match hexadecimal(value) {
            Some(text) if upper => text.to_ascii_uppercase(),
            Some(text) => text,
            None => return fail(clause.refusal(value.type_name())),
        },
        (clause, value) => return fail(clause.refusal(value.type_name())),
    };
    Ok(printed)
}

fn signed(n: i64, digits: String) -> String {
    if n < 0 { format!("-{digits}") } else { digits }
}

fn hexadecimal(value: &Value) -> Option<String> {
    let bytes = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
    Some(match value {
        Value::Int(n) => signed(*n, format!("{:x}", n.unsigned_abs())),
        Value::Uint(n) => format!("{n:x}"),
        Value::Str(text) => bytes(text.as_bytes()),
        Value::Bytes(content) => bytes(content),
        _ => return None,
    })
}

/// A double, or one of the words for what is none.
fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Double(value) => Some(*value),
        Value::Str(text) => match &**text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

fn special(value: f64) -> Option<&'static str> {
    if value.is_nan() {
        Some("NaN")
    } else if value.is_infinite() {
        Some(if value > 0.0 { "∞" } else { "-∞" })
    } else {
        None
    }
}

/// `1,234.50`. A double has no more than 1,074 digits after its point; the rest are zeros.
fn fixed(value: f64, digits: usize) -> String {
    const DIGITS_MAX: usize = 1_074;
    if let Some(special) = special(value) {
        return special.to_owned();
    }
    let text = format!("{value:.*}", digits.min(DIGITS_MAX));
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, whole) = match whole.strip_prefix('-') {
        Some(whole) => ("-", whole),
        None => ("", whole),
    };
    let mut out = sign.to_owned();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if digits > 0 {
        out.push('.');
        out.push_str(fraction);
        out.push_str(&"0".repeat(digits.saturating_sub(DIGITS_MAX)));
    }
    out
}

/// `1.234500×10⁰³`: six digits, and at least two of the exponent.
fn scientific(value: f64) -> String {
    if let Some(special) = special(value) {
        return special.to_owned();
    }
    let text = format!("{value:.6e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ("⁻", exponent),
        None => ("", exponent),
    };
    let raised = format!("{exponent:0>2}");
    let raised = raised.chars().map(|digit| {
        let digit = digit.to_digit(10).unwrap_or(0) as usize;
        ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][digit]
    });
    format!("{digits}×10{sign}{}", raised.collect::<String>())
}

fn print_string(value: &Value, effort: &mut Effort) -> Result<String, Failure> {
    match value {
        Value::List(items) => print_list(items, effort),
        Value::Map(map) => print_map(map, effort),
        Value::Null => Ok("null".to_owned()),
        Value::Str(text) => {
            effort.spend(text.len())?;
            Ok(text.to_string())
        }
        Value::Bytes(_)
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::Duration(_)
        | Value::Timestamp(_)
        | Value::Type(_) => match string_of(value) {
            Err(Failure::Error(message)) => {
                let message = quoted(&message);
                fail(format!("could not convert argument {message} to string"))
            }
            other => other,
        },
        Value::Optional(_)
        | Value::Quantity(_)
        | Value::ComputedQuantity(_)
        | Value::Semver(_)
        | Value::Ip(_)
        | Value::Cidr(_)
        | Value::Url(_)
        | Value::Format(_) => fail(Clause::Str.refusal(value.type_name())),
    }
}

fn print_list(items: &[Value], effort: &mut Effort) -> Result<String, Failure> {
    let mut parts = Vec::new();
    for item in items {
        parts.push(print_member(item, effort)?);
    }
    Ok(format!("[{}]", parts.join(", ")))
}

fn print_map(map: &Map, effort: &mut Effort) -> Result<String, Failure> {
    let mut pairs = Vec::new();
    for (key, value) in &map.entries {
        if matches!(key, Key::Double(_)) {
            return fail("no formatting function for map key of type double");
        }
        let key = print_member(&key.value(), effort)?;
        pairs.push((key, print_member(value, effort)?));
    }
    pairs.sort();
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{key}:{value}"))
        .collect();
    Ok(format!("{{{}}}", pairs.join(", ")))
}

/// A value inside a list or a map, as CEL would write it.
fn print_member(value: &Value, effort: &mut Effort) -> Result<String, Failure> {
    effort.spend(1)?;
    Ok(match value {
        Value::Str(text) => {
            effort.spend(text.len())?;
            quoted(text)
        }
        Value::Bytes(_) => format!("b{}", quoted(&print_string(value, effort)?)),
        Value::Double(n) if n.is_nan() => "\"NaN\"".to_owned(),
        Value::Double(n) if n.is_infinite() => {
            if *n > 0.0 { "\"+Inf\"" } else { "\"-Inf\"" }.to_owned()
        }
        Value::Double(n) => format!("{n:.*}", PRECISION),
        Value::Timestamp(at) => format!("timestamp({})", quoted(&time::timestamp_text(at))),
        Value::Duration(nanos) => format!("duration({})", quoted(&time::duration_text(*nanos))),
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::List(_)
        | Value::Map(_)
        | Value::Type(_) => print_string(value, effort)?,
        Value::Optional(_)
        | Value::Quantity(_)
        | Value::ComputedQuantity(_)
        | Value::Semver(_)
        | Value::Ip(_)
        | Value::Cidr(_)
        | Value::Url(_)
        | Value::Format(_) => {
            return fail(format!("no formatting function for {}", value.type_name()));
        }
    })
}
