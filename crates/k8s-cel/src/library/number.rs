//! Arithmetic of numbers: overflow and division by zero are errors.

use super::operators::unknown_to;
use crate::value::{Outcome, Value, fail, no_overload};

/// What is done with two numbers of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

impl Operator {
    fn name(self) -> &'static str {
        match self {
            Operator::Add => "_+_",
            Operator::Subtract => "_-_",
            Operator::Multiply => "_*_",
            Operator::Divide => "_/_",
            Operator::Modulo => "_%_",
        }
    }
}

/// `a operator b`.
pub(crate) fn arithmetic(operator: Operator, a: &Value, b: &Value) -> Outcome {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => ints(operator, *a, *b),
        (Value::Uint(a), Value::Uint(b)) => uints(operator, *a, *b),
        (Value::Double(a), Value::Double(b)) => doubles(operator, *a, *b),
        (Value::Double(_), _) if operator == Operator::Modulo => unknown_to(operator.name(), a),
        (Value::Int(_) | Value::Uint(_) | Value::Double(_), _) => no_overload(),
        (other, _) => unknown_to(operator.name(), other),
    }
}

/// The value, or the error of integers that are too large.
pub(crate) fn checked(value: Option<Value>) -> Outcome {
    value.map_or_else(|| fail("integer overflow"), Ok)
}

fn ints(operator: Operator, a: i64, b: i64) -> Outcome {
    let result = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide if b == 0 => return fail("division by zero"),
        Operator::Divide => a.checked_div(b),
        Operator::Modulo if b == 0 => return fail("modulus by zero"),
        Operator::Modulo => a.checked_rem(b),
    };
    checked(result.map(Value::Int))
}

fn uints(operator: Operator, a: u64, b: u64) -> Outcome {
    let result = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide if b == 0 => return fail("division by zero"),
        Operator::Divide => a.checked_div(b),
        Operator::Modulo if b == 0 => return fail("modulus by zero"),
        Operator::Modulo => a.checked_rem(b),
    };
    match result {
        Some(value) => Ok(Value::Uint(value)),
        None => fail("unsigned integer overflow"),
    }
}

fn doubles(operator: Operator, a: f64, b: f64) -> Outcome {
    Ok(Value::Double(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => a / b,
        Operator::Modulo => return fail("no such overload: _%_"),
    }))
}
