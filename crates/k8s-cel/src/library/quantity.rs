//! Quantities: `80Gi`, `1.5`, `100m`. As in Kubernetes' library a quantity is 64 bits and a power of
//! ten as long as that does, and a decimal number of any length otherwise; which it is can be seen
//! from outside (`isInteger`), so that it is decided by the same rules.

use super::decimal::{Decimal, times_power_of_ten};
use super::{Implementation, or_fail, text};
use crate::value::{Effort, Failure, Outcome, Value, fail, no_overload};
use std::cmp::Ordering;
use std::sync::Arc;

const WRONG_FORMAT: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const WRONG_NUMBER: &str = "unable to parse numeric part of quantity";
const WRONG_SUFFIX: &str = "unable to parse quantity's suffix";

/// Nothing is kept below a billionth.
const NANO: i64 = 9;
/// Digits that 64 bits hold in any case.
const DIGITS: i64 = 18;

/// An amount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Quantity {
    /// `value * 10^scale`.
    Small {
        value: i64,
        scale: i32,
    },
    Large(Decimal),
}

/// The function that an overload is.
pub(crate) fn implementation(overload: &str) -> Option<Implementation> {
    Some(match overload {
        "string_to_quantity" => |args, _| {
            let quantity = or_fail(Quantity::parse(text(&args[0])?))?;
            Ok(Value::Quantity(Arc::new(quantity)))
        },
        "is_quantity_string" => |args, _| Ok(Value::Bool(Quantity::parse(text(&args[0])?).is_ok())),
        "quantity_sign" => |args, _| Ok(Value::Int(of(&args[0])?.sign())),
        "quantity_is_greater_than" => |args, _| compare(args, |order| Value::Bool(order.is_gt())),
        "quantity_is_less_than" => |args, _| compare(args, |order| Value::Bool(order.is_lt())),
        "quantity_compare_to" => |args, _| compare(args, |order| Value::Int(order as i64)),
        "quantity_get_float" => |args, _| Ok(Value::Double(of(&args[0])?.float())),
        "quantity_get_int" => |args, _| match of(&args[0])?.int() {
            Some(value) => Ok(Value::Int(value)),
            None => fail("cannot convert value to integer"),
        },
        "quantity_is_integer" => |args, _| Ok(Value::Bool(of(&args[0])?.int().is_some())),
        "quantity_add" | "quantity_add_int" => |args, effort| combine(args, effort, false),
        "quantity_sub" | "quantity_sub_int" => |args, effort| combine(args, effort, true),
        _ => return None,
    })
}

fn of(value: &Value) -> Result<&Quantity, Failure> {
    match value.quantity() {
        Some(quantity) => Ok(quantity),
        None => no_overload(),
    }
}

fn compare(args: &[Value], result: fn(Ordering) -> Value) -> Outcome {
    Ok(result(of(&args[0])?.order(of(&args[1])?)))
}

fn combine(args: &[Value], effort: &mut Effort, negated: bool) -> Outcome {
    let other = match &args[1] {
        Value::Int(value) => Quantity::Small {
            value: *value,
            scale: 0,
        },
        other => of(other)?.clone(),
    };
    let other = if negated { other.negated() } else { other };
    let sum = of(&args[0])?.plus(&other, effort)?;
    Ok(Value::ComputedQuantity(Arc::new(sum)))
}

/// A quantity taken apart.
struct Parts<'a> {
    negative: bool,
    /// The number with its sign and point, as it was written.
    number: &'a str,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

impl Quantity {
    /// Reads a quantity; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Quantity, String> {
        if text.is_empty() {
            return Err(WRONG_FORMAT.to_owned());
        }
        let parts = split(text).ok_or(WRONG_FORMAT)?;
        let (binary, exponent) = suffix(parts.suffix).ok_or(WRONG_SUFFIX)?;
        match parts.small(binary, exponent)? {
            Some(small) => Ok(small),
            None => parts.large(binary, exponent).map(Quantity::Large),
        }
    }

    fn decimal(&self) -> Decimal {
        match self {
            Quantity::Small { value, scale } => Decimal::from_int(*value, -i64::from(*scale)),
            Quantity::Large(decimal) => decimal.clone(),
        }
    }

    pub(crate) fn order(&self, other: &Quantity) -> Ordering {
        match (self, other) {
            (Quantity::Small { value: a, scale: x }, Quantity::Small { value: b, scale: y })
                if x == y =>
            {
                a.cmp(b)
            }
            _ => self.decimal().compare(&other.decimal()),
        }
    }

    fn sign(&self) -> i64 {
        match self {
            Quantity::Small { value, .. } => value.signum(),
            Quantity::Large(decimal) => decimal.sign(),
        }
    }

    /// The integer, of those that are kept as one.
    fn int(&self) -> Option<i64> {
        match self {
            Quantity::Small { value, scale } => raised(*value, i64::from(*scale)),
            Quantity::Large(_) => None,
        }
    }

    fn float(&self) -> f64 {
        match self {
            Quantity::Small { value, scale } => {
                times_power_of_ten(*value as f64, i64::from(*scale))
            }
            Quantity::Large(decimal) => decimal.float(),
        }
    }

    fn negated(self) -> Quantity {
        match self {
            Quantity::Small { value, scale } => match value.checked_neg() {
                Some(value) => Quantity::Small { value, scale },
                None => Quantity::Large(Decimal::from_int(value, -i64::from(scale)).negated()),
            },
            Quantity::Large(decimal) => Quantity::Large(decimal.negated()),
        }
    }

    fn plus(&self, other: &Quantity, effort: &mut Effort) -> Result<Quantity, Failure> {
        if let (Quantity::Small { .. }, Quantity::Small { .. }) = (self, other)
            && let Some(sum) = self.small_sum(other)
        {
            return Ok(sum);
        }
        let sum = self.decimal().plus(&other.decimal(), effort)?;
        Ok(Quantity::Large(sum))
    }

    /// The sum, if it fits into 64 bits at the finer of both scales.
    fn small_sum(&self, other: &Quantity) -> Option<Quantity> {
        let (Quantity::Small { value: a, scale: x }, Quantity::Small { value: b, scale: y }) =
            (self, other)
        else {
            return None;
        };
        if *b == 0 {
            return Some(self.clone());
        }
        if *a == 0 {
            return Some(other.clone());
        }
        let scale = *x.min(y);
        let finer = |value: i64, from: i32| raised(value, i64::from(from) - i64::from(scale));
        let value = finer(*a, *x)?.checked_add(finer(*b, *y)?)?;
        Some(Quantity::Small { value, scale })
    }
}

/// `value * 10^exponent`, if the exponent is not negative and it fits.
fn raised(value: i64, exponent: i64) -> Option<i64> {
    let exponent = u32::try_from(exponent).ok()?;
    if value == 0 {
        return Some(0);
    }
    10_i64.checked_pow(exponent)?.checked_mul(value)
}

/// Takes a quantity apart; none where a character has no place.
fn split(text: &str) -> Option<Parts<'_>> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let significant = unsigned.trim_start_matches('0');
    let (whole, rest) = significant.split_at(digits(significant));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(after) => after.split_at(digits(after)),
        None => ("", rest),
    };
    let letters = rest
        .bytes()
        .take_while(|b| b"eEinumkKMGTP".contains(b))
        .count();
    let after = &rest[letters..];
    let after = after.strip_prefix(['+', '-']).unwrap_or(after);
    if digits(after) < after.len() {
        return None;
    }
    Some(Parts {
        negative: text.starts_with('-'),
        number: &text[..text.len() - rest.len()],
        whole: if whole.is_empty() { "0" } else { whole },
        fraction,
        suffix: rest,
    })
}

/// Whether a suffix counts in powers of two, and its exponent.
fn suffix(suffix: &str) -> Option<(bool, i32)> {
    Some(match suffix {
        "n" => (false, -9),
        "u" => (false, -6),
        "m" => (false, -3),
        "" => (false, 0),
        "k" => (false, 3),
        "M" => (false, 6),
        "G" => (false, 9),
        "T" => (false, 12),
        "P" => (false, 15),
        "E" => (false, 18),
        "Ki" => (true, 10),
        "Mi" => (true, 20),
        "Gi" => (true, 30),
        "Ti" => (true, 40),
        "Pi" => (true, 50),
        "Ei" => (true, 60),
        other => {
            let exponent: i64 = other.strip_prefix(['e', 'E'])?.parse().ok()?;
            // Kubernetes cuts it to 32 bits too.
            (false, exponent as i32)
        }
    })
}

impl Parts<'_> {
    /// The quantity in 64 bits, if by the count of its digits it surely fits.
    fn small(&self, binary: bool, exponent: i32) -> Result<Option<Quantity>, String> {
        let length = |text: &str| i64::try_from(text.len()).unwrap_or(i64::MAX);
        let (precision, scale, factor) = if !binary {
            let digits = length(self.whole) + length(self.fraction);
            (DIGITS - digits, i64::from(exponent), 1)
        } else if self.fraction.is_empty() {
            // 2^10 has three digits, and so on.
            let digits = length(self.whole) + i64::from(exponent) * 3 / 10;
            (15 - digits - 1, 0, 1_i64 << exponent)
        } else {
            return Ok(None);
        };
        let scale = scale - length(self.fraction);
        if precision < 0 || scale < -NANO {
            return Ok(None);
        }
        let digits = format!("{}{}", self.whole, self.fraction);
        let value: i64 = digits.parse().map_err(|_| WRONG_NUMBER)?;
        let Some(value) = value.checked_mul(factor) else {
            return Ok(None);
        };
        let value = if self.negative { -value } else { value };
        // The scale of what is written with an exponent near the end of 32 bits wraps as it does there.
        Ok(Some(Quantity::Small {
            value,
            scale: scale as i32,
        }))
    }

    /// The quantity as a decimal number, in the bounds of quantities.
    fn large(&self, binary: bool, exponent: i32) -> Result<Decimal, String> {
        if !self.number.bytes().any(|b| b.is_ascii_digit()) {
            return Err(WRONG_NUMBER.to_owned());
        }
        let digits = self.whole.bytes().chain(self.fraction.bytes());
        let digits = digits.map(|b| b - b'0').collect();
        let places = i64::try_from(self.fraction.len()).unwrap_or(i64::MAX);
        let mut amount = if binary {
            Decimal::new(false, digits, places).times(1 << exponent)
        } else {
            Decimal::new(false, digits, places - i64::from(exponent))
        };
        if !amount.is_zero() {
            amount = amount.rounded_up(NANO);
        }
        let most = Decimal::from_int(i64::MAX, 0);
        if binary && amount.compare(&most).is_gt() {
            amount = most;
        }
        Ok(if self.negative {
            amount.negated()
        } else {
            amount
        })
    }
}
