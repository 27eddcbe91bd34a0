//! What is refused of expressions whose types are right: literals that cannot be read as what they are
//! for, lists and maps of mixed types, formats that do not fit their arguments.

use crate::ast::{Call, Entry, Expr, Item, Kind};
use crate::checker::Checked;
use crate::library::format_string::{Clause, Piece, Pieces};
use crate::library::{self, regex};
use crate::source::Fault;
use crate::types::Type;
use crate::value::{Effort, Value};

/// All faults of a tree.
pub(crate) fn validate(expr: &Expr, checked: &Checked) -> Vec<Fault> {
    let mut validator = Validator {
        checked,
        faults: Vec::new(),
    };
    validator.walk(expr, false);
    validator.faults
}

struct Validator<'a> {
    checked: &'a Checked,
    faults: Vec<Fault>,
}

impl Validator<'_> {
    fn type_of(&self, expr: &Expr) -> &Type {
        &self.checked.types[expr.id]
    }

    fn fault(&mut self, at: usize, message: impl Into<String>) {
        self.faults.push(Fault::new(at, message));
    }

    /// Checks a node and all below; `mixed` if a call of `format` is around it.
    fn walk(&mut self, expr: &Expr, mixed: bool) {
        let mut inside = mixed;
        match &expr.kind {
            Kind::Call(call) => {
                self.call(expr, call);
                inside |= call.function == "format";
            }
            Kind::List(items) if !mixed => self.list(items),
            Kind::Map(entries) if !mixed => self.map(entries),
            Kind::Literal(_)
            | Kind::Ident(_)
            | Kind::Select(_)
            | Kind::List(_)
            | Kind::Map(_)
            | Kind::Comprehension(_) => {}
        }
        for child in expr.children() {
            self.walk(child, inside);
        }
    }

    fn list(&mut self, items: &[Item]) {
        let mut first: Option<Type> = None;
        for item in items {
            let t = element_type(self.type_of(&item.value), item.optional);
            match &first {
                None => first = Some(t),
                Some(first) if first.is_equivalent(&t) => {}
                Some(first) => {
                    let message = mismatch(first, &t);
                    return self.fault(item.value.at, message);
                }
            }
        }
    }

    fn map(&mut self, entries: &[Entry]) {
        let mut first: Option<(Type, Type)> = None;
        for entry in entries {
            let key = self.type_of(&entry.key).clone();
            let value = element_type(self.type_of(&entry.value), entry.optional);
            let Some((first_key, first_value)) = &first else {
                first = Some((key, value));
                continue;
            };
            if !first_key.is_equivalent(&key) {
                let message = mismatch(first_key, &key);
                self.fault(entry.key.at, message);
            }
            if !first_value.is_equivalent(&value) {
                let message = mismatch(first_value, &value);
                self.fault(entry.value.at, message);
            }
        }
    }

    fn call(&mut self, expr: &Expr, call: &Call) {
        let function = call.function.as_str();
        let literal = call.args.first().and_then(|arg| match &arg.kind {
            Kind::Literal(value) => Some((arg.at, value)),
            _ => None,
        });
        if let Some((at, value)) = literal
            && !can_be(function, value)
        {
            self.fault(at, format!("invalid {function} argument"));
        }
        if let ("format", Some(target), [arg]) = (function, &call.target, call.args.as_slice())
            && let (Some(format), Kind::List(items)) = (target.literal_string(), &arg.kind)
        {
            self.format(expr.at, format, items);
        }
    }

    /// The format against the types of its arguments: the first fault.
    fn format(&mut self, at: usize, format: &str, items: &[Item]) {
        let mut pieces = Pieces::new(format, items.len());
        while let Some(piece) = pieces.next() {
            let clause = match piece {
                Ok(Piece::Text(_)) => continue,
                Ok(Piece::Clause(clause)) => clause,
                Err(message) => return self.fault(at, message),
            };
            let arg = &items[pieces.asked - 1].value;
            if let Some(wrong) = self.unprintable(clause, arg) {
                let refusal = clause.refusal(self.type_of(wrong).name());
                return self.fault(wrong.at, format!("error during formatting: {refusal}"));
            }
        }
        if items.len() > pieces.asked {
            let (expected, given) = (pieces.asked, items.len());
            self.fault(
                at,
                format!("too many arguments supplied to string.format (expected {expected}, got {given})"),
            );
        }
    }

    /// The argument, or the part of it, that a clause cannot print.
    fn unprintable<'e>(&self, clause: Clause, arg: &'e Expr) -> Option<&'e Expr> {
        let t = self.type_of(arg);
        let fits = *t == Type::Dyn
            || match clause {
                Clause::Str => is_printable(t),
                Clause::Decimal | Clause::Octal => matches!(t, Type::Int | Type::Uint),
                Clause::Fixed(_) | Clause::Scientific(_) => matches!(t, Type::Double | Type::Str),
                Clause::Binary => matches!(t, Type::Int | Type::Uint | Type::Bool),
                Clause::Hex { .. } => {
                    matches!(t, Type::Int | Type::Uint | Type::Str | Type::Bytes)
                }
            };
        if !fits {
            return Some(arg);
        }
        match &arg.kind {
            Kind::List(items) if clause == Clause::Str => items
                .iter()
                .find_map(|item| self.unprintable(clause, &item.value)),
            Kind::Map(entries) if clause == Clause::Str => entries.iter().find_map(|entry| {
                self.unprintable(clause, &entry.key)
                    .or_else(|| self.unprintable(clause, &entry.value))
            }),
            _ => None,
        }
    }
}

fn mismatch(expected: &Type, found: &Type) -> String {
    format!("expected type '{expected}' but found '{found}'")
}

fn element_type(t: &Type, optional: bool) -> Type {
    if optional {
        t.unwrap_optional().0
    } else {
        t.clone()
    }
}

fn is_printable(t: &Type) -> bool {
    matches!(
        t,
        Type::List(_)
            | Type::Map(_)
            | Type::Int
            | Type::Uint
            | Type::Double
            | Type::Bool
            | Type::Str
            | Type::Timestamp
            | Type::Bytes
            | Type::Duration
            | Type::Type(_)
            | Type::Null
    )
}

/// Elements that reading a literal may take.
const EFFORT: u64 = 100_000;

/// Whether a literal can be what the function makes of it. Of functions that take no literals as what
/// they are for this says yes.
fn can_be(function: &str, literal: &Value) -> bool {
    let overload = match (function, literal) {
        ("matches", Value::Str(pattern)) => return regex::check(pattern).is_ok(),
        ("duration", Value::Str(_)) => "string_to_duration",
        ("duration", Value::Int(_)) => "int_to_duration",
        ("timestamp", Value::Str(_)) => "string_to_timestamp",
        ("timestamp", Value::Int(_)) => "int_to_timestamp",
        _ => return true,
    };
    let mut args = [literal.clone()];
    library::implementation(overload)
        .is_none_or(|convert| convert(&mut args, &mut Effort::new(EFFORT)).is_ok())
}
