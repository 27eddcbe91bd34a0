//! What each function costs: as an estimate from the sizes of its arguments, and exactly, from the
//! arguments themselves. Functions that are not here cost 1.

use crate::ast::Kind;
use crate::estimate::{Arg, CallEstimate, LIST_COST, REGEX, Range, TRAVERSAL, scale};
use crate::library::format;
use crate::types::Type;
use crate::value::Value;

fn only(cost: Range) -> Option<CallEstimate> {
    Some(CallEstimate { cost, result: None })
}

fn sized(cost: Range, result: Range) -> Option<CallEstimate> {
    let result = Some(result);
    Some(CallEstimate { cost, result })
}

/// The estimate of a call without its arguments' own costs; none for what costs 1 or is special.
pub(crate) fn estimate(
    function: &str,
    overload: &str,
    target: Option<&Arg<'_>>,
    args: &[Arg<'_>],
) -> Option<CallEstimate> {
    if let Some(found) = estimate_lists(overload, target, args) {
        return Some(found);
    }
    if let Some(found) = estimate_strings(function, target, args) {
        return Some(found);
    }
    if let Some(found) = estimate_addresses(function, overload, args) {
        return Some(found);
    }
    let first = args.first();
    match function {
        "quantity" | "isQuantity" | "semver" | "isSemver" => only(first?.size().scaled(TRAVERSAL)),
        "url" => {
            let size = first?.size();
            sized(size.scaled(TRAVERSAL), size)
        }
        "validate" => {
            let text = first?.size().scaled(TRAVERSAL);
            only(text.scaled(format::REGEX_SIZE_MAX * REGEX))
        }
        "check" => only(Range::exact(350_000)),
        "fieldSelector" | "labelSelector" => {
            let size = first?.size();
            let requirements = size.scaled(0.5).scaled(50.0);
            let parse = size.scaled(TRAVERSAL);
            only(Range::exact(LIST_COST).plus(parse).plus(requirements))
        }
        "_==_" => estimate_equality(args),
        _ => estimate_overload(overload, target, args),
    }
}

/// Equality of Kubernetes' own types.
fn estimate_equality(args: &[Arg<'_>]) -> Option<CallEstimate> {
    let [a, b] = args else { return None };
    let own = a.kind == b.kind;
    match &a.kind {
        Type::Opaque("net.IP" | "net.CIDR") if own => only(Range::ONE),
        Type::Struct("kubernetes.Quantity" | "kubernetes.Semver") if own => only(Range::ONE),
        Type::Struct("kubernetes.NamedFormat") if own => {
            only(Range { min: 1, max: 64 }.scaled(TRAVERSAL))
        }
        Type::Struct("kubernetes.URL") if own => {
            let max = b.computed.map_or(1, |size| size.max);
            only(Range { min: 1, max }.scaled(TRAVERSAL))
        }
        _ => estimate_overload("equals", None, args),
    }
}

/// Functions of CEL itself, by overload.
fn estimate_overload(
    overload: &str,
    target: Option<&Arg<'_>>,
    args: &[Arg<'_>],
) -> Option<CallEstimate> {
    let known = |at: usize| {
        args.get(at)
            .map(|arg| arg.computed.unwrap_or(Range::UNKNOWN))
    };
    let receiver = target.map(|arg| arg.computed.unwrap_or(Range::UNKNOWN));
    match overload {
        "string_format" => only(receiver?.scaled(TRAVERSAL)),
        "string_to_bytes" => {
            let size = known(0)?;
            let max = size.max.saturating_mul(4);
            sized(size.scaled(TRAVERSAL), Range { max, ..size })
        }
        "bytes_to_string" => {
            let size = known(0)?;
            let min = size.min / 4;
            sized(size.scaled(TRAVERSAL), Range { min, ..size })
        }
        "strings_quote" => {
            let size = known(0)?;
            let result = Range {
                min: size.min.saturating_add(2),
                max: size.max.saturating_mul(2).saturating_add(2),
            };
            sized(size.scaled(TRAVERSAL), result)
        }
        "starts_with_string" | "ends_with_string" => only(known(0)?.scaled(TRAVERSAL)),
        "in_list" => only(known(1)?.scaled(1.0)),
        "matches_string" => only(regex_estimate(receiver?, known(0)?)),
        "contains_string" => {
            let text = receiver?.scaled(TRAVERSAL);
            only(text.times(known(0)?.scaled(TRAVERSAL)))
        }
        "equals" | "not_equals" => {
            let max = known(0)?.max.min(known(1)?.max);
            let min = u64::from(max > 0);
            only(Range { min, max }.scaled(TRAVERSAL))
        }
        _ if is_order_of_text(overload) => estimate_overload("equals", None, args),
        _ => None,
    }
}

fn is_order_of_text(overload: &str) -> bool {
    ["less_", "less_equals_", "greater_", "greater_equals_"]
        .iter()
        .any(|order| matches!(overload.strip_prefix(order), Some("string" | "bytes")))
}

/// One is added to the size of the text: an empty one may be expensive to match too.
fn regex_estimate(text: Range, pattern: Range) -> Range {
    let text = text.plus(Range::ONE).scaled(TRAVERSAL);
    text.times(pattern.scaled(REGEX))
}

/// The size of a list's elements and whether these are text; none if it is not known to be a list.
fn elements(list: &Arg<'_>) -> Option<(Range, bool)> {
    let item = match &list.kind {
        Type::List(item) | Type::Optional(item) => (**item).clone(),
        Type::Map(of) => of.0.clone(),
        _ => return None,
    };
    let mut path = list.path.clone();
    if !path.is_empty() {
        path.push(crate::estimate::Step::Items);
    }
    let size = crate::estimate::device_size(&path).unwrap_or(Range::UNKNOWN);
    Some((size, matches!(item, Type::Str | Type::Bytes)))
}

fn estimate_strings(
    function: &str,
    target: Option<&Arg<'_>>,
    args: &[Arg<'_>],
) -> Option<CallEstimate> {
    let target = target?;
    match function {
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            let size = target.size();
            let Some((element, text)) = elements(target) else {
                return only(size.scaled(TRAVERSAL));
            };
            if !text {
                return only(size.times(Range::ONE));
            }
            only(size.times(Range::ONE.plus(element.scaled(TRAVERSAL))))
        }
        "lowerAscii" | "upperAscii" | "substring" | "trim" => {
            let size = target.size();
            sized(size.scaled(TRAVERSAL), size)
        }
        "replace" => {
            let [from, to, ..] = args else { return None };
            let size = target.size();
            let result = replaced(size, from.size(), to.size());
            sized(size.scaled(2.0 * TRAVERSAL), result)
        }
        "split" => {
            let size = target.size();
            let limit = args.get(1).and_then(|arg| match &arg.expr.kind {
                Kind::Literal(Value::Int(limit)) => Some(*limit as u64),
                _ => None,
            });
            let max = limit.unwrap_or(size.max);
            sized(size.scaled(2.0 * TRAVERSAL), Range { min: 0, max })
        }
        "join" => {
            let count = target.size();
            let mut size = Range::ZERO;
            if let Some((element, _)) = elements(target) {
                size = count.times(element);
            }
            if let Some(separator) = args.first() {
                let gaps = Range {
                    min: count.min.saturating_sub(1),
                    max: count.max.saturating_sub(1),
                };
                size = size.plus(separator.size().times(gaps));
            }
            sized(size.scaled(TRAVERSAL), size)
        }
        "find" | "findAll" => {
            let size = target.size();
            let result = Range {
                min: 0,
                max: size.max,
            };
            sized(regex_estimate(size, args.first()?.size()), result)
        }
        _ => None,
    }
}

/// How long a text is after `from` was replaced by `to` all over it.
fn replaced(size: Range, from: Range, to: Range) -> Range {
    let times = |n: u64, per: u64| (n as f64 / per as f64).ceil() as u64;
    let (max_count, max_kept) = if from.min == 0 {
        (size.max.saturating_add(1), size.max)
    } else if to.max <= from.min {
        (0, size.max)
    } else {
        (times(size.max, from.min), 0)
    };
    let (min_count, min_kept) = if from.max == 0 {
        (size.min.saturating_add(1), size.min)
    } else if from.max <= to.min {
        (0, size.min)
    } else {
        (times(size.min, from.max), 0)
    };
    let count = Range {
        min: min_count,
        max: max_count,
    };
    let kept = Range {
        min: min_kept,
        max: max_kept,
    };
    count.times(to).plus(kept)
}

fn estimate_addresses(function: &str, overload: &str, args: &[Arg<'_>]) -> Option<CallEstimate> {
    let first = args.first().map(Arg::size);
    let parse = |size: Range| size.scaled(TRAVERSAL);
    // An address is 4 or 16 bytes long.
    let address = Range { min: 4, max: 16 };
    match function {
        "ip" if overload == "cidr_ip" => only(Range::ONE),
        "cidr" | "isIP" | "isCIDR" | "ip" => only(parse(first?)),
        "ip.isCanonical" => only(first?.scaled(2.0 * TRAVERSAL)),
        "containsIP" => {
            let mut cost = address.plus(address).scaled(TRAVERSAL);
            if overload == "cidr_contains_ip_string" {
                cost = cost.plus(parse(first?));
            }
            only(cost)
        }
        "containsCIDR" => {
            let mut cost = address.plus(address).scaled(TRAVERSAL);
            cost = cost.plus(address.scaled(TRAVERSAL)).plus(Range::ONE);
            if overload == "cidr_contains_cidr_string" {
                cost = cost.plus(parse(first?));
            }
            only(cost)
        }
        _ => None,
    }
}

/// CEL's own functions of lists and sets, which make lists or compare all with all.
fn estimate_lists(
    overload: &str,
    target: Option<&Arg<'_>>,
    args: &[Arg<'_>],
) -> Option<CallEstimate> {
    let made = |factor: f64, size: Range| {
        sized(size.scaled(factor).plus(Range::exact(1 + LIST_COST)), size)
    };
    let literal = |at: usize, default: u64| match args.get(at).map(|arg| &arg.expr.kind) {
        Some(Kind::Literal(Value::Int(n))) => u64::try_from(*n).unwrap_or(0),
        _ => default,
    };
    let pairs = |factor: f64| {
        let [a, b] = args else { return None };
        only(a.size().times(b.size()).scaled(factor).plus(Range::ONE))
    };
    match overload {
        "list_slice" => {
            let end = literal(1, target?.size().max);
            made(1.0, Range::exact(end.wrapping_sub(literal(0, 0))))
        }
        "list_flatten" => made(1.0, target?.size()),
        "list_flatten_int" => made(literal(0, u64::MAX) as f64, target?.size()),
        "lists_range" => made(1.0, Range::exact(literal(0, u64::MAX))),
        "list_reverse" => made(1.0, target?.size()),
        "list_distinct" => {
            let size = target?.size();
            made(2.0, size.times(size))
        }
        "list_sets_contains_list" | "list_sets_intersects_list" => pairs(1.0),
        "list_sets_equivalent_list" => pairs(2.0),
        _ => {
            let (sorted, kind) = sorting(overload)?;
            let size = if sorted {
                target?.size()
            } else {
                args.first()?.size()
            };
            let text = matches!(kind, "string" | "bytes");
            made(if text { 2.0 + TRAVERSAL } else { 2.0 }, size.times(size))
        }
    }
}

/// Of the overloads that sort: whether it is `sort` itself, and the type that it sorts by.
fn sorting(overload: &str) -> Option<(bool, &str)> {
    let rest = overload.strip_prefix("list_")?;
    match rest.strip_suffix("_sort") {
        Some(kind) => Some((true, kind)),
        None => Some((false, rest.strip_suffix("_sortByAssociatedKeys")?)),
    }
}

/// What a call did cost. `overload` is empty where several were possible: cel-go then knows no better.
pub(crate) fn actual(
    function: &str,
    overload: &str,
    args: &[Value],
    result: Option<&Value>,
) -> u64 {
    let size = |at: usize| args.get(at).map_or(1, Value::size);
    let made = |factor: f64, size: u64| (size as f64 * factor) as u64 + 1 + LIST_COST;
    match overload {
        "list_slice" | "lists_range" | "list_reverse" => {
            return made(1.0, result.map_or(1, Value::size));
        }
        "list_flatten" => return made(1.0, size(0)),
        "list_flatten_int" => {
            let depth = match args.get(1) {
                Some(Value::Int(depth)) => *depth as f64,
                _ => 1.0,
            };
            return made(depth, size(0));
        }
        "list_distinct" => return made_by_comparing(args.first()),
        "list_sets_contains_list" | "list_sets_intersects_list" => {
            return 1 + size(0).saturating_mul(size(1));
        }
        "list_sets_equivalent_list" => {
            return 1 + size(0).saturating_mul(size(1)).saturating_mul(2);
        }
        _ => {}
    }
    if let Some((sorted, _)) = sorting(overload) {
        return made_by_comparing(args.get(usize::from(!sorted)));
    }
    actual_by_name(function, overload, args, result)
        .unwrap_or_else(|| actual_by_overload(overload, args))
}

/// Sorting and `distinct`: every element is compared with every other.
fn made_by_comparing(list: Option<&Value>) -> u64 {
    let Some(Value::List(items)) = list else {
        return 1 + LIST_COST;
    };
    let text = matches!(items.first(), Some(Value::Str(_) | Value::Bytes(_)));
    let factor = if text { 2.0 + TRAVERSAL } else { 2.0 };
    let count = items.len() as f64;
    (count * count * factor) as u64 + 1 + LIST_COST
}

fn actual_by_name(
    function: &str,
    overload: &str,
    args: &[Value],
    result: Option<&Value>,
) -> Option<u64> {
    let size = |at: usize| args.get(at).map_or(1, Value::size);
    let parse = |at: usize| scale(size(at), TRAVERSAL);
    let compared = || scale(size(0) + size(0), TRAVERSAL);
    Some(match function {
        "check" => 350_000,
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => traversal(args.first()?),
        "ip" if overload == "cidr_ip" => 1,
        "url" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "cidr" | "isIP" | "isCIDR"
        | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver" => parse(0),
        "replace" | "split" | "ip.isCanonical" => scale(size(0), 2.0 * TRAVERSAL),
        "join" => scale(result.map_or(1, Value::size), 2.0 * TRAVERSAL),
        "find" | "findAll" => regex_cost(size(0), size(1)),
        "containsIP" => {
            let string = overload == "cidr_contains_ip_string";
            compared() + if string { parse(1) } else { 0 }
        }
        "containsCIDR" => {
            let string = overload == "cidr_contains_cidr_string";
            compared() + parse(0) + 1 + if string { parse(1) } else { 0 }
        }
        "validate" => match args.first()? {
            Value::Format(format) => regex_cost(size(1), format.regex_size),
            _ => return None,
        },
        "_==_" => match args.first()? {
            Value::Quantity(_)
            | Value::ComputedQuantity(_)
            | Value::Ip(_)
            | Value::Cidr(_)
            | Value::Format(_)
            | Value::Url(_)
            | Value::Semver(_) => 1,
            _ => return None,
        },
        _ => return None,
    })
}

fn regex_cost(text: u64, pattern: u64) -> u64 {
    let text = ((1.0 + text as f64) * TRAVERSAL).ceil() as u64;
    text.saturating_mul(scale(pattern, REGEX))
}

fn actual_by_overload(overload: &str, args: &[Value]) -> u64 {
    let size = |at: usize| args.get(at).map_or(1, plain_size);
    match overload {
        "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string"
        | "strings_quote" | "string_format" => scale(size(0), TRAVERSAL),
        "in_list" => size(1),
        "equals" | "not_equals" => scale(size(0).min(size(1)), TRAVERSAL),
        "add_string" | "add_bytes" => scale(size(0).saturating_add(size(1)), TRAVERSAL),
        "matches_string" => regex_cost(size(0), size(1)),
        "contains_string" => scale(size(0), TRAVERSAL).saturating_mul(scale(size(1), TRAVERSAL)),
        _ if is_order_of_text(overload) => scale(size(0).min(size(1)), TRAVERSAL),
        _ => 1,
    }
}

/// The size, of an optional that of its value.
fn plain_size(value: &Value) -> u64 {
    match value {
        Value::Optional(Some(value)) => plain_size(value),
        other => other.size(),
    }
}

/// A walk through all that is in a value. Text counts a tenth of its bytes, rounded down. The walk ends
/// where the cost is above any limit, as lists that share parts may have no end for practical purposes.
fn traversal(value: &Value) -> u64 {
    let mut walk = Walk { cost: 0, steps: 0 };
    walk.add(value);
    walk.cost
}

struct Walk {
    cost: u64,
    steps: u64,
}

impl Walk {
    const STEPS_MAX: u64 = 2_000_000;

    fn add(&mut self, value: &Value) {
        self.steps += 1;
        if self.steps > Walk::STEPS_MAX {
            self.cost = u64::MAX;
            return;
        }
        match value {
            Value::Str(text) => self.count((text.len() as f64 * TRAVERSAL) as u64),
            Value::Bytes(bytes) => self.count((bytes.len() as f64 * TRAVERSAL) as u64),
            Value::List(items) => items.iter().for_each(|item| self.add(item)),
            Value::Map(map) => {
                for (key, value) in &map.entries {
                    self.add(&key.value());
                    self.add(value);
                }
            }
            _ => self.count(1),
        }
    }

    fn count(&mut self, cost: u64) {
        self.cost = self.cost.saturating_add(cost);
    }
}
