//! Operators, `size` and `type`: functions that look at the types of their operands themselves.

use super::{Implementation, number, time};
use crate::value::{
    Effort, Failure, Outcome, Value, compare, equal, fail, is_ordered, no_overload,
};
use std::cmp::Ordering;
use std::sync::Arc;

/// The operator of this name.
pub(crate) fn shared(function: &str) -> Option<Implementation> {
    Some(match function {
        "_+_" => add,
        "_-_" => subtract,
        "_*_" => multiply,
        "_/_" => divide,
        "_%_" => modulo,
        "-_" => negate,
        "!_" => not,
        "_<_" => |args, _| order(args, "_<_", Ordering::is_lt),
        "_<=_" => |args, _| order(args, "_<=_", Ordering::is_le),
        "_>_" => |args, _| order(args, "_>_", Ordering::is_gt),
        "_>=_" => |args, _| order(args, "_>=_", Ordering::is_ge),
        "@in" => is_in,
        "size" => size,
        "type" => |args, _| Ok(Value::Type(args[0].type_name())),
        "dyn" => |args, _| Ok(args[0].clone()),
        _ => return None,
    })
}

/// The error for an operand that knows nothing of an operator. What has methods says it in short.
pub(crate) fn unknown_to<T>(function: &str, operand: &Value) -> Result<T, Failure> {
    match operand {
        Value::Str(_) | Value::Duration(_) | Value::Timestamp(_) => no_overload(),
        _ => fail(format!("no such overload: {function}")),
    }
}

fn pair(args: &mut [Value]) -> Result<(Value, Value), Failure> {
    match args {
        [a, b] => Ok((
            std::mem::replace(a, Value::Null),
            std::mem::replace(b, Value::Null),
        )),
        _ => no_overload(),
    }
}

fn add(args: &mut [Value], effort: &mut Effort) -> Outcome {
    // Lists are taken, so that a list that nobody else has grows in place: they have no size in costs.
    if let [Value::List(_), Value::List(_)] = args {
        let (a, b) = pair(args)?;
        return add_lists(a, b, effort);
    }
    let [a, b] = args else { return no_overload() };
    match (&*a, &*b) {
        (Value::Str(a), Value::Str(b)) => {
            effort.spend(a.len() + b.len())?;
            Ok(Value::str([&**a, &**b].concat()))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            effort.spend(a.len() + b.len())?;
            Ok(Value::Bytes([&**a, &**b].concat().into()))
        }
        (Value::Duration(a), Value::Duration(b)) => time::add_durations(*a, *b),
        (Value::Duration(by), Value::Timestamp(to))
        | (Value::Timestamp(to), Value::Duration(by)) => time::later(to, *by),
        (Value::List(_), _)
        | (Value::Str(_) | Value::Bytes(_) | Value::Duration(_) | Value::Timestamp(_), _) => {
            no_overload()
        }
        (a, b) => number::arithmetic(number::Operator::Add, a, b),
    }
}

fn add_lists(a: Value, b: Value, effort: &mut Effort) -> Outcome {
    let (Value::List(mut a), Value::List(b)) = (a, b) else {
        return no_overload();
    };
    if a.is_empty() {
        return Ok(Value::List(b));
    }
    if !b.is_empty() {
        let copied = if Arc::strong_count(&a) == 1 {
            0
        } else {
            a.len()
        };
        effort.spend(copied + b.len())?;
        Arc::make_mut(&mut a).extend(b.iter().cloned());
    }
    Ok(Value::List(a))
}

fn subtract(args: &mut [Value], _: &mut Effort) -> Outcome {
    match args {
        [Value::Duration(a), Value::Duration(b)] => time::subtract_durations(*a, *b),
        [Value::Timestamp(from), Value::Duration(by)] => time::earlier(from, *by),
        [Value::Timestamp(a), Value::Timestamp(b)] => time::between(a, b),
        [Value::Duration(_) | Value::Timestamp(_), _] => no_overload(),
        [a, b] => number::arithmetic(number::Operator::Subtract, a, b),
        _ => no_overload(),
    }
}

fn multiply(args: &mut [Value], _: &mut Effort) -> Outcome {
    number::arithmetic(number::Operator::Multiply, &args[0], &args[1])
}

fn divide(args: &mut [Value], _: &mut Effort) -> Outcome {
    number::arithmetic(number::Operator::Divide, &args[0], &args[1])
}

fn modulo(args: &mut [Value], _: &mut Effort) -> Outcome {
    number::arithmetic(number::Operator::Modulo, &args[0], &args[1])
}

fn negate(args: &mut [Value], _: &mut Effort) -> Outcome {
    match &args[0] {
        Value::Bool(_) => no_overload(),
        Value::Int(value) => number::checked(value.checked_neg().map(Value::Int)),
        Value::Double(value) => Ok(Value::Double(-value)),
        Value::Duration(nanos) => match nanos.checked_neg() {
            Some(nanos) => Ok(Value::Duration(nanos)),
            None => fail("duration overflow"),
        },
        other => unknown_to("-_", other),
    }
}

fn not(args: &mut [Value], _: &mut Effort) -> Outcome {
    match &args[0] {
        Value::Bool(value) => Ok(Value::Bool(!value)),
        Value::Int(_) | Value::Double(_) => no_overload(),
        other => unknown_to("!_", other),
    }
}

fn order(args: &mut [Value], function: &str, holds: fn(Ordering) -> bool) -> Outcome {
    let [a, b] = args else { return no_overload() };
    if !is_ordered(a) {
        return unknown_to(function, a);
    }
    compare(a, b).map(|ordering| Value::Bool(holds(ordering)))
}

fn is_in(args: &mut [Value], effort: &mut Effort) -> Outcome {
    match args {
        [value, Value::List(items)] => contains(items, value, effort).map(Value::Bool),
        [key, Value::Map(map)] => Ok(Value::Bool(map.find(key).is_some())),
        _ => no_overload(),
    }
}

/// Whether an element of the list equals the value; what cannot be compared does not.
pub(crate) fn contains(
    items: &[Value],
    value: &Value,
    effort: &mut Effort,
) -> Result<bool, Failure> {
    for item in items {
        if is_equal(value, item, effort)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether two values are equal; what cannot be compared is not.
pub(crate) fn is_equal(a: &Value, b: &Value, effort: &mut Effort) -> Result<bool, Failure> {
    match equal(a, b, effort) {
        Err(Failure::Error(_)) => Ok(false),
        other => other,
    }
}

fn size(args: &mut [Value], _: &mut Effort) -> Outcome {
    match &args[0] {
        value @ (Value::Str(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_)) => {
            Ok(Value::Int(i64::try_from(value.size()).unwrap_or(i64::MAX)))
        }
        other => unknown_to("size", other),
    }
}
