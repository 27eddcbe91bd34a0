//! Functions of lists, sets, optionals and maps that are made.

use super::operators::{contains, is_equal, unknown_to};
use super::{Implementation, int, list, number};
use crate::value::{Effort, Failure, Key, Outcome, Value, compare, fail, is_ordered, no_overload};
use std::cmp::Ordering;
use std::sync::Arc;

/// What looks at the types of its arguments itself.
pub(crate) fn shared(function: &str) -> Option<Implementation> {
    Some(match function {
        "flatten" => flatten,
        "sort" => |args, effort| match &args[0] {
            Value::List(items) => sort(items, items, effort),
            other => unknown_to("sort", other),
        },
        "@sortByAssociatedKeys" => |args, effort| match &*args {
            [Value::List(items), Value::List(keys)] => sort(items, keys, effort),
            [Value::List(_), _] => no_overload(),
            [other, ..] => unknown_to("@sortByAssociatedKeys", other),
            [] => no_overload(),
        },
        _ => return None,
    })
}

/// The function that an overload is.
pub(crate) fn implementation(overload: &str) -> Option<Implementation> {
    if let Some(found) = of_comparable(overload) {
        return Some(found);
    }
    Some(match overload {
        "list_a_index_of_int" => |args, effort| index_of(args, effort, false),
        "list_a_last_index_of_int" => |args, effort| index_of(args, effort, true),
        "list_slice" => slice,
        "list_flatten" | "list_flatten_int" => flatten,
        "lists_range" => range,
        "list_reverse" => |args, effort| {
            let items = list(&args[0])?;
            effort.spend(items.len())?;
            Ok(Value::list(items.iter().rev().cloned().collect()))
        },
        "list_distinct" => distinct,
        "list_sets_contains_list" => {
            |args, effort| contains_all(list(&args[0])?, list(&args[1])?, effort).map(Value::Bool)
        }
        "list_sets_equivalent_list" => |args, effort| {
            let (a, b) = (list(&args[0])?, list(&args[1])?);
            let same = contains_all(a, b, effort)? && contains_all(b, a, effort)?;
            Ok(Value::Bool(same))
        },
        "list_sets_intersects_list" => intersects,
        "optional_of" => |args, _| Ok(Value::some(args[0].clone())),
        "optional_ofNonZeroValue" => |args, _| {
            let zero = args[0].is_zero();
            Ok(if zero {
                Value::Optional(None)
            } else {
                Value::some(args[0].clone())
            })
        },
        "optional_none" => |_, _| Ok(Value::Optional(None)),
        "optional_unwrap" | "optional_unwrapOpt" => unwrap,
        "optional_value" => |args, _| match &args[0] {
            Value::Optional(Some(value)) => Ok((**value).clone()),
            Value::Optional(None) => fail("optional.none() dereference"),
            _ => no_overload(),
        },
        "optional_hasValue" => {
            |args, _| Ok(Value::Bool(matches!(args[0], Value::Optional(Some(_)))))
        }
        "list_first" => |args, _| Ok(optional(list(&args[0])?.first())),
        "list_last" => |args, _| Ok(optional(list(&args[0])?.last())),
        "@mapInsert_map_key_value" => insert,
        "@mapInsert_map_map" => insert_all,
        _ => return None,
    })
}

/// `list_int_max_int` and its like: one function for all types of elements.
fn of_comparable(overload: &str) -> Option<Implementation> {
    let (_, function) = overload.strip_prefix("list_")?.split_once('_')?;
    if function == "is_sorted_bool" {
        return Some(is_sorted);
    }
    match function.split_once('_')?.0 {
        "sum" => Some(match overload {
            "list_int_sum_int" => |args, _| sum(args, Value::Int(0)),
            "list_uint_sum_uint" => |args, _| sum(args, Value::Uint(0)),
            "list_double_sum_double" => |args, _| sum(args, Value::Double(0.0)),
            _ => |args, _| sum(args, Value::Duration(0)),
        }),
        "max" => Some(|args, _| extreme(args, "max", Ordering::Less)),
        "min" => Some(|args, _| extreme(args, "min", Ordering::Greater)),
        _ => None,
    }
}

fn optional(value: Option<&Value>) -> Value {
    Value::Optional(value.map(|value| Arc::new(value.clone())))
}

/// The order of two elements; those that have none are in any order.
fn order(a: &Value, b: &Value) -> Result<Option<Ordering>, Failure> {
    if !is_ordered(a) || !is_ordered(b) {
        return no_overload();
    }
    Ok(compare(a, b).ok())
}

fn is_sorted(args: &mut [Value], _: &mut Effort) -> Outcome {
    let items = list(&args[0])?;
    if let [only] = items.as_slice() {
        return if is_ordered(only) {
            Ok(Value::Bool(true))
        } else {
            no_overload()
        };
    }
    for pair in items.windows(2) {
        if order(&pair[0], &pair[1])? == Some(Ordering::Greater) {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sum(args: &[Value], zero: Value) -> Outcome {
    let mut total = zero;
    for item in list(&args[0])?.iter() {
        total = match (&total, item) {
            (Value::Duration(a), Value::Duration(b)) => super::time::add_durations(*a, *b)?,
            (a, b) => number::arithmetic(number::Operator::Add, a, b)?,
        };
    }
    Ok(total)
}

/// The element that all others are not beyond; `replaced` when what was found so far compares so.
fn extreme(args: &[Value], name: &str, replaced: Ordering) -> Outcome {
    let mut found: Option<&Value> = None;
    for item in list(&args[0])?.iter() {
        let better = match found {
            None if !is_ordered(item) => return no_overload(),
            None => true,
            Some(found) => order(found, item)? == Some(replaced),
        };
        if better {
            found = Some(item);
        }
    }
    match found {
        Some(value) => Ok(value.clone()),
        None => fail(format!("{name} called on empty list")),
    }
}

fn index_of(args: &[Value], effort: &mut Effort, last: bool) -> Outcome {
    let (items, wanted) = (list(&args[0])?, &args[1]);
    for step in 0..items.len() {
        let at = if last { items.len() - 1 - step } else { step };
        if is_equal(&items[at], wanted, effort)? {
            return Ok(Value::Int(i64::try_from(at).unwrap_or(i64::MAX)));
        }
    }
    Ok(Value::Int(-1))
}

fn slice(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let (items, start, end) = (list(&args[0])?, int(&args[1])?, int(&args[2])?);
    let cannot = |why: String| fail(format!("cannot slice({start}, {end}), {why}"));
    let (Ok(from), Ok(to)) = (usize::try_from(start), usize::try_from(end)) else {
        return cannot("negative indexes not supported".to_owned());
    };
    if from > to {
        return cannot("start index must be less than or equal to end index".to_owned());
    }
    match items.get(from..to) {
        Some(part) => {
            effort.spend(part.len())?;
            Ok(Value::list(part.to_vec()))
        }
        None => cannot(format!("list is length {}", items.len())),
    }
}

fn flatten(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let depth = args.get(1).map(int).transpose()?.unwrap_or(1);
    let Value::List(items) = &args[0] else {
        let name = args[0].type_name();
        let shown = args.get(1).map_or("", Value::type_name);
        return fail(format!("no such overload: {name}.flatten({shown})"));
    };
    if depth < 0 {
        return fail("level must be non-negative");
    }
    let mut flat = Vec::new();
    flatten_into(&mut flat, items, depth, effort)?;
    Ok(Value::list(flat))
}

fn flatten_into(
    flat: &mut Vec<Value>,
    items: &[Value],
    depth: i64,
    effort: &mut Effort,
) -> Result<(), Failure> {
    for item in items {
        effort.spend(1)?;
        match item {
            Value::List(inner) if depth > 0 => flatten_into(flat, inner, depth - 1, effort)?,
            item => flat.push(item.clone()),
        }
    }
    Ok(())
}

fn range(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let count = int(&args[0])?.max(0);
    effort.spend(usize::try_from(count).unwrap_or(usize::MAX))?;
    Ok(Value::list((0..count).map(Value::Int).collect()))
}

fn distinct(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let mut seen: Vec<Value> = Vec::new();
    for item in list(&args[0])?.iter() {
        let mut known = false;
        for other in &seen {
            if is_equal(item, other, effort)? {
                known = true;
                break;
            }
        }
        if !known {
            seen.push(item.clone());
        }
    }
    Ok(Value::list(seen))
}

fn contains_all(list: &[Value], part: &[Value], effort: &mut Effort) -> Result<bool, Failure> {
    for item in part {
        if !contains(list, item, effort)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn intersects(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let (a, b) = (list(&args[0])?, list(&args[1])?);
    for item in a.iter() {
        if contains(b, item, effort)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

/// Sorts the items by their keys.
fn sort(items: &Arc<Vec<Value>>, keys: &[Value], effort: &mut Effort) -> Outcome {
    if items.len() != keys.len() {
        return fail(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} elements respectively",
            items.len(),
            keys.len()
        ));
    }
    let Some(first) = keys.first() else {
        return Ok(Value::List(items.clone()));
    };
    if !is_ordered(first) {
        return fail("list elements must be comparable");
    }
    let of_one_type = |key: &Value| key.type_name() == first.type_name();
    if keys.len() > 1 && !keys.iter().all(of_one_type) {
        return fail("list elements must have the same type");
    }
    effort.spend(items.len())?;
    let mut indices: Vec<usize> = (0..keys.len()).collect();
    // NaN has no order; sorting must see a total one.
    indices.sort_by(|a, b| match (&keys[*a], &keys[*b]) {
        (Value::Double(a), Value::Double(b)) if a.is_nan() || b.is_nan() => a.total_cmp(b),
        (a, b) => compare(a, b).unwrap_or(Ordering::Equal),
    });
    Ok(Value::list(
        indices.into_iter().map(|at| items[at].clone()).collect(),
    ))
}

fn unwrap(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let mut values = Vec::new();
    for item in list(&args[0])?.iter() {
        effort.spend(1)?;
        match item {
            Value::Optional(Some(value)) => values.push((**value).clone()),
            Value::Optional(None) => {}
            other => return fail(format!("value {other} is not optional")),
        }
    }
    Ok(Value::list(values))
}

/// Adds an entry to a map that a comprehension makes. The map is taken, so that it grows in place.
fn insert(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let [map, key, value] = args else {
        return no_overload();
    };
    let (Value::Map(mut map), Some(new)) = (std::mem::replace(map, Value::Null), Key::of(key))
    else {
        return fail(format!("unsupported key type: {}", key.type_name()));
    };
    if map.find(key).is_some() {
        return fail(format!("insert failed: key {key} already exists"));
    }
    let copied = if Arc::strong_count(&map) == 1 {
        0
    } else {
        map.entries.len()
    };
    effort.spend(copied + 1)?;
    Arc::make_mut(&mut map).entries.insert(new, value.clone());
    Ok(Value::Map(map))
}

fn insert_all(args: &mut [Value], effort: &mut Effort) -> Outcome {
    let [map, Value::Map(more)] = args else {
        return no_overload();
    };
    let Value::Map(mut map) = std::mem::replace(map, Value::Null) else {
        return no_overload();
    };
    for (key, value) in &more.entries {
        let shown = key.value();
        if map.find(&shown).is_some() {
            return fail(format!("insert failed: key {shown} already exists"));
        }
        let copied = if Arc::strong_count(&map) == 1 {
            0
        } else {
            map.entries.len()
        };
        effort.spend(copied + 1)?;
        Arc::make_mut(&mut map)
            .entries
            .insert(key.clone(), value.clone());
    }
    Ok(Value::Map(map))
}
