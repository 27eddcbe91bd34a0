//! The tree of an expression, after its macros are expanded.

use crate::value::Value;

/// What a node is known by in the tables of types, overloads, sizes and paths.
pub(crate) type Id = usize;

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct Expr {
    pub(crate) id: Id,
    /// Where in the expression errors of it point to, in bytes.
    pub(crate) at: usize,
    pub(crate) kind: Kind,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Literal(Value),
    Ident(String),
    Select(Box<Select>),
    Call(Box<Call>),
    List(Vec<Item>),
    Map(Vec<Entry>),
    Comprehension(Box<Comprehension>),
}

/// `operand.field`, or `has(operand.field)`.
#[derive(Clone, Debug)]
pub(crate) struct Select {
    pub(crate) operand: Expr,
    pub(crate) field: String,
    pub(crate) test: bool,
}

/// A call, of operators too.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) function: String,
    pub(crate) target: Option<Expr>,
    pub(crate) args: Vec<Expr>,
}

/// An element of a list; if optional, one that is left out when it has no value.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) value: Expr,
    pub(crate) optional: bool,
}

/// An entry of a map; if optional, one that is left out when its value has none.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Expr,
    pub(crate) value: Expr,
    pub(crate) optional: bool,
}

/// A loop: for each of `range`, while `condition`, `accu` becomes `step`; then `result`.
#[derive(Clone, Debug)]
pub(crate) struct Comprehension {
    pub(crate) var: String,
    /// The second variable of `all(k, v, ...)` and its like.
    pub(crate) var2: Option<String>,
    pub(crate) range: Expr,
    pub(crate) accu: String,
    pub(crate) init: Expr,
    pub(crate) condition: Expr,
    pub(crate) step: Expr,
    pub(crate) result: Expr,
}

/// The variable in which comprehensions gather their result. No identifier can be spelled like this.
pub(crate) const ACCUMULATOR: &str = "@result";

impl Comprehension {
    /// Whether this only names a value, as `cel.bind` does.
    pub(crate) fn is_bind(&self) -> bool {
        matches!(&self.range.kind, Kind::List(items) if items.is_empty())
            && matches!(self.condition.kind, Kind::Literal(Value::Bool(false)))
            && self.accu != ACCUMULATOR
    }
}

impl Expr {
    /// The nodes directly below.
    pub(crate) fn children(&self) -> Vec<&Expr> {
        match &self.kind {
            Kind::Literal(_) | Kind::Ident(_) => Vec::new(),
            Kind::Select(select) => vec![&select.operand],
            Kind::Call(call) => call.target.iter().chain(&call.args).collect(),
            Kind::List(items) => items.iter().map(|item| &item.value).collect(),
            Kind::Map(entries) => entries
                .iter()
                .flat_map(|entry| [&entry.key, &entry.value])
                .collect(),
            Kind::Comprehension(fold) => vec![
                &fold.range,
                &fold.init,
                &fold.condition,
                &fold.step,
                &fold.result,
            ],
        }
    }

    /// The string, if this is a literal one.
    pub(crate) fn literal_string(&self) -> Option<&str> {
        match &self.kind {
            Kind::Literal(Value::Str(text)) => Some(text),
            _ => None,
        }
    }

    /// The name if this is a chain of names: `a.b.c`.
    pub(crate) fn qualified_name(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.clone()),
            Kind::Select(select) if !select.test => {
                let mut name = select.operand.qualified_name()?;
                name.push('.');
                name.push_str(&select.field);
                Some(name)
            }
            _ => None,
        }
    }
}
