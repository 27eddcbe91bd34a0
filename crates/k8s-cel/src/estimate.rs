//! What an expression may cost at most, known before it is evaluated: Kubernetes refuses expressions
//! above a limit by this number, so it is reckoned exactly as cel-go does.
//!
//! The cost of a call depends on the sizes of what it is given. Sizes are known of literals, and, by
//! the path that leads to them, of what is in `device`. The costs of functions are in `call_costs`.

use crate::ast::{Call, Comprehension, Entry, Expr, Id, Item, Kind, Select};
use crate::call_costs;
use crate::checker::Checked;
use crate::types::Type;

pub(crate) const LIST_COST: u64 = 10;
pub(crate) const MAP_COST: u64 = 30;
pub(crate) const TRAVERSAL: f64 = 0.1;
pub(crate) const REGEX: f64 = 0.25;

/// From the least to the most; of a cost, or of a size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Range {
    pub(crate) min: u64,
    pub(crate) max: u64,
}

impl Range {
    pub(crate) const ZERO: Range = Range::exact(0);
    pub(crate) const ONE: Range = Range::exact(1);
    pub(crate) const UNKNOWN: Range = Range {
        min: 0,
        max: u64::MAX,
    };

    pub(crate) const fn exact(n: u64) -> Range {
        Range { min: n, max: n }
    }

    pub(crate) fn plus(self, other: Range) -> Range {
        Range {
            min: self.min.saturating_add(other.min),
            max: self.max.saturating_add(other.max),
        }
    }

    pub(crate) fn times(self, other: Range) -> Range {
        Range {
            min: self.min.saturating_mul(other.min),
            max: self.max.saturating_mul(other.max),
        }
    }

    pub(crate) fn scaled(self, factor: f64) -> Range {
        Range {
            min: scale(self.min, factor),
            max: scale(self.max, factor),
        }
    }

    pub(crate) fn union(self, other: Range) -> Range {
        Range {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }
}

/// `n * factor`, rounded up. Above 2^64 it is 2^64 - 1.
pub(crate) fn scale(n: u64, factor: f64) -> u64 {
    // Conversion to an integer saturates.
    (n as f64 * factor).ceil() as u64
}

/// How one comes to a value from a variable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Name(String),
    Items,
    Indices,
    Keys,
    Values,
}

/// What the cost of a call looks at in an argument.
#[derive(Clone, Debug)]
pub(crate) struct Arg<'a> {
    pub(crate) path: Vec<Step>,
    pub(crate) kind: Type,
    pub(crate) expr: &'a Expr,
    /// What is known from the expression itself.
    pub(crate) computed: Option<Range>,
}

impl Arg<'_> {
    pub(crate) fn size(&self) -> Range {
        self.computed
            .or_else(|| device_size(&self.path))
            .unwrap_or(Range::UNKNOWN)
    }
}

/// The cost of a call alone, and the size of its result where that is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallEstimate {
    pub(crate) cost: Range,
    pub(crate) result: Option<Range>,
}

/// The sizes of the keys and the values of a list or a map.
#[derive(Clone, Copy, Debug)]
struct EntrySize {
    list: bool,
    key: Range,
    value: Range,
}

/// A variable of a comprehension.
struct Local {
    name: String,
    path: Vec<Step>,
    size: Option<Range>,
    entry: Option<EntrySize>,
}

/// What the expression costs at least and at most.
pub(crate) fn estimate(expr: &Expr, checked: &Checked) -> Range {
    let nodes = checked.types.len();
    let mut estimator = Estimator {
        checked,
        sizes: vec![None; nodes],
        entries: vec![None; nodes],
        paths: vec![Vec::new(); nodes],
        locals: Vec::new(),
    };
    estimator.cost(expr)
}

struct Estimator<'a> {
    checked: &'a Checked,
    sizes: Vec<Option<Range>>,
    entries: Vec<Option<EntrySize>>,
    paths: Vec<Vec<Step>>,
    locals: Vec<Local>,
}

impl<'a> Estimator<'a> {
    fn cost(&mut self, expr: &'a Expr) -> Range {
        match &expr.kind {
            Kind::Literal(_) => Range::ZERO,
            Kind::Ident(name) => {
                let local = self.local(name).map(|local| local.path.clone());
                self.paths[expr.id] = local.unwrap_or_else(|| vec![Step::Name(name.clone())]);
                Range::ONE
            }
            Kind::Select(select) => self.select(expr.id, select),
            Kind::Call(call) => self.call(expr, call),
            Kind::List(items) => self.list(expr.id, items),
            Kind::Map(entries) => self.map(expr.id, entries),
            Kind::Comprehension(fold) if fold.is_bind() => self.bind(expr.id, fold),
            Kind::Comprehension(fold) => self.fold(expr.id, fold),
        }
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|local| local.name == name)
    }

    fn path(&self, expr: &Expr) -> Vec<Step> {
        if let Kind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths[expr.id].clone()
    }

    fn size(&mut self, expr: &Expr) -> Option<Range> {
        if let Some(size) = self.sizes[expr.id] {
            return Some(size);
        }
        let literal = match &expr.kind {
            Kind::Literal(value) => Some(value.size()),
            Kind::List(items) => Some(items.len() as u64),
            Kind::Map(entries) => Some(entries.len() as u64),
            _ => None,
        };
        if let Some(size) = literal {
            return Some(Range::exact(size));
        }
        if let Some(size) = device_size(&self.path(expr)) {
            self.sizes[expr.id] = Some(size);
            return Some(size);
        }
        if is_scalar(&self.checked.types[expr.id]) {
            return Some(Range::ONE);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name)?.size,
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, expr: &Expr) -> Range {
        self.size(expr).unwrap_or(Range::UNKNOWN)
    }

    fn entry(&self, expr: &Expr) -> Option<EntrySize> {
        self.entries[expr.id].or_else(|| match &expr.kind {
            Kind::Ident(name) => self.local(name)?.entry,
            _ => None,
        })
    }

    fn copy_sizes(&mut self, to: Id, from: &Expr) {
        if let Some(size) = self.size(from) {
            self.sizes[to] = Some(size);
        }
        if let Some(entry) = self.entry(from) {
            self.entries[to] = Some(entry);
        }
    }

    fn select(&mut self, id: Id, select: &'a Select) -> Range {
        let operand = self.cost(&select.operand);
        if select.test {
            return operand;
        }
        let mut path = self.path(&select.operand);
        path.push(Step::Name(select.field.clone()));
        self.paths[id] = path;
        match self.checked.types[select.operand.id] {
            Type::Map(_) | Type::Struct(_) => operand.plus(Range::ONE),
            _ => operand,
        }
    }

    fn list(&mut self, id: Id, items: &'a [Item]) -> Range {
        let mut sum = Range::exact(LIST_COST);
        let mut value = empty_union(items.is_empty());
        for item in items {
            sum = sum.plus(self.cost(&item.value));
            value = value.union(self.size_or_unknown(&item.value));
        }
        self.entries[id] = Some(EntrySize {
            list: true,
            key: Range::ONE,
            value,
        });
        sum
    }

    fn map(&mut self, id: Id, entries: &'a [Entry]) -> Range {
        let mut sum = Range::exact(MAP_COST);
        let mut key = empty_union(entries.is_empty());
        let mut value = key;
        for entry in entries {
            sum = sum.plus(self.cost(&entry.key));
            sum = sum.plus(self.cost(&entry.value));
            key = key.union(self.size_or_unknown(&entry.key));
            value = value.union(self.size_or_unknown(&entry.value));
        }
        self.entries[id] = Some(EntrySize {
            list: false,
            key,
            value,
        });
        sum
    }

    fn bind(&mut self, id: Id, fold: &'a Comprehension) -> Range {
        let mut sum = self.cost(&fold.range);
        sum = sum.plus(self.cost(&fold.init));
        self.push_value(&fold.accu, &fold.init);
        sum = sum.plus(self.cost(&fold.result));
        self.copy_sizes(id, &fold.result);
        self.locals.pop();
        sum
    }

    fn push_value(&mut self, name: &str, value: &Expr) {
        let local = Local {
            name: name.to_owned(),
            path: self.path(value),
            size: self.size(value),
            entry: self.entry(value),
        };
        self.locals.push(local);
    }

    /// A variable of a loop: the keys of what is looped over, or the values.
    fn push_loop(&mut self, name: &str, range: &Expr, keys: bool, single: bool) {
        let entry = self.entry(range);
        let list = match entry {
            Some(entry) => entry.list,
            None => matches!(self.checked.types[range.id], Type::List(_)),
        };
        let keys = keys && !(single && list);
        let step = match (keys, list) {
            (true, true) => Step::Indices,
            (true, false) => Step::Keys,
            (false, true) => Step::Items,
            (false, false) => Step::Values,
        };
        let mut path = self.path(range);
        path.push(step);
        self.locals.push(Local {
            name: name.to_owned(),
            path,
            size: entry.map(|entry| if keys { entry.key } else { entry.value }),
            entry: None,
        });
    }

    fn fold(&mut self, id: Id, fold: &'a Comprehension) -> Range {
        let mut sum = self.cost(&fold.range);
        sum = sum.plus(self.cost(&fold.init));
        self.push_value(&fold.accu, &fold.init);
        let outer = self.locals.len();
        self.push_loop(&fold.var, &fold.range, true, fold.var2.is_none());
        if let Some(var2) = &fold.var2 {
            self.push_loop(var2, &fold.range, false, false);
        }
        let condition = self.cost(&fold.condition);
        let step = self.cost(&fold.step);
        self.locals.truncate(outer);
        sum = sum.plus(self.cost(&fold.result));
        self.locals.pop();
        let count = self.size_or_unknown(&fold.range);
        sum = sum.plus(count.times(step.plus(condition)));
        match &fold.init.kind {
            Kind::Literal(_) => self.sizes[id] = self.size(&fold.init),
            Kind::List(_) | Kind::Map(_) => {
                self.sizes[id] = Some(count);
                if let Some(entry) = self.entry(&fold.step) {
                    self.entries[id] = Some(entry);
                }
            }
            _ => {}
        }
        sum
    }

    fn arg(&mut self, expr: &'a Expr) -> Arg<'a> {
        Arg {
            path: self.path(expr),
            kind: self.checked.types[expr.id].clone(),
            expr,
            computed: self.size(expr),
        }
    }

    fn call(&mut self, expr: &'a Expr, call: &'a Call) -> Range {
        if call.function == "dyn"
            && let [arg] = call.args.as_slice()
        {
            let cost = self.cost(arg);
            self.copy_sizes(expr.id, arg);
            return cost.plus(Range::ONE);
        }
        let mut args = Vec::with_capacity(call.args.len());
        let mut costs = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            costs.push(self.cost(arg));
            args.push(self.arg(arg));
        }
        let overloads = &self.checked.overloads[expr.id];
        if overloads.is_empty() {
            return Range::ZERO;
        }
        let mut sum = Range::ZERO;
        let mut target = None;
        if let Some(expr) = &call.target {
            sum = self.cost(expr);
            target = Some(self.arg(expr));
        }
        let mut cost = Range {
            min: u64::MAX,
            max: 0,
        };
        let mut result: Option<Range> = None;
        for overload in overloads {
            let of = self.overload(expr, call, overload.id, target.as_ref(), &args, &costs);
            cost = cost.union(of.cost);
            result = match (result, of.result) {
                (Some(a), Some(b)) => Some(a.union(b)),
                (a, b) => a.or(b),
            };
            if matches!(overload.id, "index_list" | "index_map") {
                result = self.entry(&call.args[0]).map(|entry| entry.value);
                let mut path = self.path(&call.args[0]);
                let list = overload.id == "index_list";
                path.push(if list { Step::Items } else { Step::Values });
                self.paths[expr.id] = path;
            }
            result = result.or_else(|| self.size(expr));
        }
        if let Some(result) = result {
            self.sizes[expr.id] = Some(result);
        }
        sum.plus(cost)
    }

    /// What one overload costs, arguments included.
    fn overload(
        &mut self,
        expr: &Expr,
        call: &'a Call,
        overload: &str,
        target: Option<&Arg<'_>>,
        args: &[Arg<'_>],
        costs: &[Range],
    ) -> CallEstimate {
        let all = costs.iter().fold(Range::ZERO, |sum, cost| sum.plus(*cost));
        if let Some(own) = call_costs::estimate(&call.function, overload, target, args) {
            let cost = own.cost.plus(all);
            return CallEstimate { cost, ..own };
        }
        match overload {
            "logical_or" | "logical_and" => CallEstimate {
                cost: Range {
                    min: costs[0].min,
                    max: all.max,
                },
                result: None,
            },
            "conditional" => {
                let size = |estimator: &mut Self, at: usize| {
                    args[at]
                        .computed
                        .unwrap_or_else(|| estimator.size_or_unknown(args[at].expr))
                };
                let result = size(self, 1).union(size(self, 2));
                self.unite_entries(expr.id, &call.args[1], &call.args[2]);
                let cost = costs[0].plus(costs[1].union(costs[2]));
                CallEstimate {
                    cost,
                    result: Some(result),
                }
            }
            "add_string" | "add_bytes" | "add_list" => {
                let sizes = args
                    .iter()
                    .map(|arg| arg.computed.unwrap_or(Range::UNKNOWN));
                let size = sizes.fold(Range::ZERO, Range::plus);
                self.unite_entries(expr.id, &call.args[0], &call.args[1]);
                let own = if overload == "add_list" {
                    Range::ONE
                } else {
                    size.scaled(TRAVERSAL)
                };
                CallEstimate {
                    cost: own.plus(all),
                    result: Some(size),
                }
            }
            _ => CallEstimate {
                cost: Range::ONE.plus(all),
                result: None,
            },
        }
    }

    fn unite_entries(&mut self, id: Id, a: &Expr, b: &Expr) {
        if let (Some(a), Some(b)) = (self.entry(a), self.entry(b)) {
            self.entries[id] = Some(EntrySize {
                list: a.list,
                key: a.key.union(b.key),
                value: a.value.union(b.value),
            });
        }
    }
}

/// What the sizes of elements are united with: for no elements, zero.
fn empty_union(empty: bool) -> Range {
    Range {
        min: if empty { 0 } else { u64::MAX },
        max: 0,
    }
}

fn is_scalar(t: &Type) -> bool {
    match t {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => {
            true
        }
        Type::Optional(of) => is_scalar(of),
        _ => false,
    }
}

/// The size of what a path in `device` leads to, by the limits of ResourceSlices: 32 attributes and
/// capacities, domains of 63 and ids of 32 characters, values of 64. Numbers have none.
pub(crate) fn device_size(path: &[Step]) -> Option<Range> {
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        Device,
        Domains { capacity: bool },
        Ids { capacity: bool },
        Leaf(u64),
    }
    let (first, rest) = path.split_first()?;
    if *first != Step::Name("device".to_owned()) {
        return None;
    }
    let mut at = At::Device;
    for step in rest {
        at = match (at, step) {
            (At::Device, Step::Name(name)) => match name.as_str() {
                "driver" => At::Leaf(63),
                "attributes" => At::Domains { capacity: false },
                "capacity" => At::Domains { capacity: true },
                "allowMultipleAllocations" => At::Leaf(1),
                _ => return None,
            },
            (At::Domains { capacity }, Step::Items | Step::Values) => At::Ids { capacity },
            (At::Domains { .. }, Step::Keys) => At::Leaf(63),
            (At::Ids { capacity: true }, Step::Items | Step::Values) => At::Leaf(0),
            (At::Ids { capacity: false }, Step::Items | Step::Values) => At::Leaf(64),
            (At::Ids { .. }, Step::Keys) => At::Leaf(32),
            (At::Ids { capacity: false }, Step::Name(_) | Step::Indices) => At::Leaf(64),
            _ => return None,
        };
    }
    let max = match at {
        At::Device => 0,
        At::Domains { .. } | At::Ids { .. } => 32,
        At::Leaf(max) => max,
    };
    Some(Range { min: 0, max })
}
