//! Evaluation of a plan, and what it costs.
//!
//! Costs are counted step by step as cel-go's tracker does, oddities included: it finds the arguments of
//! a call on a stack by their ids, and where that goes wrong the call costs nothing.

use crate::ast::Id;
use crate::call_costs;
use crate::estimate::{LIST_COST, MAP_COST};
use crate::plan::{Attribute, Base, CallNode, Fold, Node, NodeKind, Plan, Qualifier, QualifierKey};
use crate::value::{Effort, Failure, Key, Outcome, Value, equal, fail, no_overload};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Elements that an evaluation may copy, compare or print beside what its cost allows.
const EFFORT_MAX: u64 = 5_000_000;

/// Why an evaluation ends that costs too much.
pub(crate) const COST_EXCEEDED: &str = "operation cancelled: actual cost limit exceeded";

/// Evaluates the plan for a device; with the cost.
pub(crate) fn evaluate(plan: &Plan, device: &Value, cost_max: u64) -> (Outcome, u64) {
    let mut evaluation = Evaluation {
        device,
        slots: vec![Slot::Empty; plan.slots],
        tracker: Tracker {
            cost: 0,
            cost_max,
            stack: Vec::new(),
            counts: vec![0; plan.nodes],
        },
        effort: Effort::new(EFFORT_MAX),
    };
    let outcome = evaluation.eval(&plan.root);
    (outcome, evaluation.tracker.cost)
}

/// A variable.
#[derive(Clone)]
enum Slot {
    Empty,
    /// To be evaluated when it is asked for.
    Lazy(Arc<Node>),
    Ready(Value),
    Failed(String),
}

struct Tracker {
    cost: u64,
    cost_max: u64,
    /// Ids of nodes that have a value.
    stack: Vec<Id>,
    /// How often each id is on the stack.
    counts: Vec<u32>,
}

impl Tracker {
    fn push(&mut self, id: Id) {
        self.stack.push(id);
        self.counts[id] += 1;
    }

    /// Drops the last of this id and all above it, if there is one.
    fn drop(&mut self, id: Id) -> bool {
        if self.counts[id] == 0 {
            return false;
        }
        while let Some(top) = self.stack.pop() {
            self.counts[top] -= 1;
            if top == id {
                break;
            }
        }
        true
    }

    /// Drops all of these, the last first; whether all were there.
    fn drop_all(&mut self, ids: impl DoubleEndedIterator<Item = Id>) -> bool {
        ids.rev().all(|id| self.drop(id))
    }

    /// Counts a step that has a value now.
    fn done(&mut self, id: Id, cost: u64) -> Result<(), Failure> {
        self.cost = self.cost.saturating_add(cost);
        self.push(id);
        if self.cost > self.cost_max {
            return Err(Failure::Limit(COST_EXCEEDED));
        }
        Ok(())
    }
}

struct Evaluation<'a> {
    device: &'a Value,
    slots: Vec<Slot>,
    tracker: Tracker,
    effort: Effort,
}

/// What stands for a value that is an error when costs are counted.
const NO_VALUE: Value = Value::Null;

impl Evaluation<'_> {
    /// The value of a node. Costs are counted whether it has one or is an error.
    fn eval(&mut self, node: &Node) -> Outcome {
        match &node.kind {
            NodeKind::Constant(value) => {
                self.tracker.done(node.id, 0)?;
                Ok(value.clone())
            }
            NodeKind::Attribute(attribute) => self.attribute(attribute),
            NodeKind::Presence(attribute) => self.presence(attribute),
            NodeKind::And(terms) => self.logic(node.id, terms, false),
            NodeKind::Or(terms) => self.logic(node.id, terms, true),
            NodeKind::Equal { sides, negated } => self.equal(node.id, sides, *negated),
            NodeKind::NotStrictlyFalse(of) => self.not_strictly_false(node.id, of),
            NodeKind::Call(call) => self.call(node.id, call),
            NodeKind::List(items) => self.list(node.id, items),
            NodeKind::Map(entries) => self.map(node.id, entries),
            NodeKind::Fold(fold) => self.fold(node.id, fold),
            NodeKind::Member { of, set } => {
                let found = self.eval(of);
                self.settle(
                    node.id,
                    0,
                    found.map(|v| Value::Bool(set.find(&v).is_some())),
                )
            }
            NodeKind::Or2 { sides, unwrap } => self.or(node.id, sides, *unwrap),
        }
    }

    /// Counts a step, unless evaluation has ended.
    fn settle(&mut self, id: Id, cost: u64, outcome: Outcome) -> Outcome {
        if let Err(Failure::Limit(_)) = outcome {
            return outcome;
        }
        self.tracker.done(id, cost)?;
        outcome
    }

    fn attribute(&mut self, attribute: &Attribute) -> Outcome {
        let outcome = self.resolve(attribute);
        let cost = self.drop_attribute(attribute);
        self.settle(attribute.id(), cost, outcome)
    }

    /// Takes an attribute's parts off the stack; a choice has no cost of its own.
    fn drop_attribute(&mut self, attribute: &Attribute) -> u64 {
        if let Base::Choice(choice) = &attribute.base {
            self.tracker.drop(choice.no.id());
            self.tracker.drop(choice.yes.id());
            self.tracker.drop(choice.condition.id());
            return 0;
        }
        self.tracker.drop(attribute.id());
        1
    }

    fn presence(&mut self, attribute: &Attribute) -> Outcome {
        let outcome = self.resolve(attribute).map(|found| match found {
            Value::Optional(of) => Value::Bool(of.is_some()),
            other => other,
        });
        if self.drop_attribute(attribute) == 0 {
            self.tracker.cost = self.tracker.cost.saturating_sub(1);
        }
        self.settle(attribute.id(), 0, outcome)
    }

    /// The value of an attribute, its own step not counted.
    fn resolve(&mut self, attribute: &Attribute) -> Outcome {
        let base = match &attribute.base {
            Base::Device { .. } => self.device.clone(),
            Base::Slot { slot, take, .. } => self.slot(*slot, *take)?,
            Base::Value { node, .. } => self.eval(node)?,
            Base::Choice(choice) => match self.eval(&choice.condition)? {
                Value::Bool(true) => return self.resolve(&choice.yes),
                Value::Bool(false) => return self.resolve(&choice.no),
                _ => return no_overload(),
            },
        };
        if attribute.qualifiers.is_empty() {
            return Ok(base);
        }
        let (mut value, mut optional) = match base {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(value)) => ((*value).clone(), true),
            value => (value, false),
        };
        for qualifier in &attribute.qualifiers {
            optional |= qualifier.optional;
            match self.qualify(&value, qualifier, optional)? {
                Some(found) => value = found,
                None => return Ok(Value::Optional(None)),
            }
        }
        Ok(if optional { Value::some(value) } else { value })
    }

    fn slot(&mut self, slot: usize, take: bool) -> Outcome {
        if let Slot::Lazy(init) = &self.slots[slot] {
            let init = init.clone();
            self.slots[slot] = match self.eval(&init) {
                Ok(value) => Slot::Ready(value),
                Err(Failure::Error(message)) => Slot::Failed(message),
                Err(limit @ Failure::Limit(_)) => return Err(limit),
            };
        }
        let found = if take {
            std::mem::replace(&mut self.slots[slot], Slot::Empty)
        } else {
            self.slots[slot].clone()
        };
        match found {
            Slot::Ready(value) => Ok(value),
            Slot::Failed(message) => fail(message),
            Slot::Empty | Slot::Lazy(_) => fail("no such attribute"),
        }
    }

    /// Takes a field or an index of a value; none if it is optional and not there.
    fn qualify(
        &mut self,
        value: &Value,
        qualifier: &Qualifier,
        optional: bool,
    ) -> Result<Option<Value>, Failure> {
        let presence = optional || qualifier.test;
        let found = self.look_up(value, &qualifier.key, presence);
        if let Err(limit @ Failure::Limit(_)) = found {
            return Err(limit);
        }
        // What is asked for and is not there has cost nothing, unless that was the question.
        if !presence || qualifier.test || matches!(found, Ok(Some(_))) {
            self.tracker.done(qualifier.id, 1)?;
        }
        let found = found?;
        if !qualifier.test {
            return Ok(found);
        }
        let there = found.is_some();
        Ok((there || !optional).then_some(Value::Bool(there)))
    }

    fn look_up(
        &mut self,
        value: &Value,
        key: &QualifierKey,
        presence: bool,
    ) -> Result<Option<Value>, Failure> {
        match key {
            QualifierKey::Constant(key) => look_up(value, key, presence),
            QualifierKey::Attribute(attribute) => {
                let resolved = self.resolve(attribute)?;
                key_of(&resolved)?;
                look_up(value, &resolved, presence)
            }
        }
    }

    /// `||` if `decisive` is true, `&&` if not: a decisive term decides, also over errors before it.
    fn logic(&mut self, id: Id, terms: &[Node], decisive: bool) -> Outcome {
        let mut failure = None;
        let mut decided = false;
        for term in terms {
            match self.eval(term) {
                Ok(Value::Bool(value)) => {
                    if value == decisive {
                        decided = true;
                        break;
                    }
                }
                Ok(_) => {
                    failure.get_or_insert_with(|| "no such overload".to_owned());
                }
                Err(Failure::Error(message)) => {
                    failure.get_or_insert(message);
                }
                Err(limit @ Failure::Limit(_)) => return Err(limit),
            }
        }
        for term in terms {
            self.tracker.drop(term.id());
        }
        let outcome = match failure {
            Some(message) if !decided => fail(message),
            _ => Ok(Value::Bool(decided == decisive)),
        };
        self.settle(id, 0, outcome)
    }

    /// The values of arguments. Errors do not keep the others from being evaluated if there are at most
    /// two, as in cel-go.
    fn args(&mut self, args: &[Node]) -> Result<(Vec<Value>, Option<String>), Failure> {
        let mut values = Vec::with_capacity(args.len());
        let mut failure = None;
        for arg in args {
            match self.eval(arg) {
                Ok(value) => values.push(value),
                Err(Failure::Error(message)) => {
                    values.push(NO_VALUE);
                    failure.get_or_insert(message);
                    if args.len() > 2 {
                        break;
                    }
                }
                Err(limit @ Failure::Limit(_)) => return Err(limit),
            }
        }
        Ok((values, failure))
    }

    fn equal(&mut self, id: Id, sides: &[Node; 2], negated: bool) -> Outcome {
        let (values, failure) = self.args(sides)?;
        let (function, overload) = if negated {
            ("_!=_", "not_equals")
        } else {
            ("_==_", "equals")
        };
        let outcome = match failure {
            Some(message) => fail(message),
            None => match equal(&values[0], &values[1], &mut self.effort) {
                Ok(same) => Ok(Value::Bool(same != negated)),
                // What cannot be compared is different.
                Err(Failure::Error(_)) if negated => Ok(Value::Bool(true)),
                Err(failure) => Err(failure),
            },
        };
        let cost = if self.tracker.drop_all(sides.iter().map(Node::id)) {
            call_costs::actual(function, overload, &values, None)
        } else {
            0
        };
        self.settle(id, cost, outcome)
    }

    fn not_strictly_false(&mut self, id: Id, of: &Node) -> Outcome {
        let strictly = match self.eval(of) {
            Ok(Value::Bool(value)) => value,
            Err(limit @ Failure::Limit(_)) => return Err(limit),
            Ok(_) | Err(Failure::Error(_)) => true,
        };
        let cost = u64::from(self.tracker.drop(of.id()));
        self.settle(id, cost, Ok(Value::Bool(strictly)))
    }

    fn call(&mut self, id: Id, call: &CallNode) -> Outcome {
        let (mut values, failure) = self.args(&call.args)?;
        let outcome = match failure {
            Some(message) => fail(message),
            None => apply(call, &mut values, &mut self.effort),
        };
        let cost = if self.tracker.drop_all(call.args.iter().map(Node::id)) {
            let overload = call.overload.map_or("", |overload| overload.id);
            call_costs::actual(call.function.name, overload, &values, outcome.as_ref().ok())
        } else {
            0
        };
        self.settle(id, cost, outcome)
    }

    fn list(&mut self, id: Id, items: &[(Node, bool)]) -> Outcome {
        let outcome = self.list_value(items);
        self.tracker
            .drop_all(items.iter().map(|(node, _)| node.id()));
        self.settle(id, LIST_COST, outcome)
    }

    fn list_value(&mut self, items: &[(Node, bool)]) -> Outcome {
        let mut values = Vec::with_capacity(items.len());
        for (node, optional) in items {
            let value = self.eval(node)?;
            match value {
                Value::Optional(None) if *optional => {}
                Value::Optional(Some(value)) if *optional => values.push((*value).clone()),
                value if *optional => {
                    return fail(format!(
                        "cannot initialize optional list element from non-optional value {value}"
                    ));
                }
                value => values.push(value),
            }
        }
        Ok(Value::list(values))
    }

    fn map(&mut self, id: Id, entries: &[(Node, Node, bool)]) -> Outcome {
        let outcome = self.map_value(entries);
        let parts = entries
            .iter()
            .flat_map(|(key, value, _)| [key.id(), value.id()]);
        self.tracker.drop_all(parts);
        self.settle(id, MAP_COST, outcome)
    }

    fn map_value(&mut self, entries: &[(Node, Node, bool)]) -> Outcome {
        let mut map = BTreeMap::new();
        for (key_node, value_node, optional) in entries {
            let key_value = self.eval(key_node)?;
            let value = self.eval(value_node)?;
            match value {
                Value::Optional(None) if *optional => {
                    map.remove(&key(&key_value)?);
                }
                Value::Optional(Some(value)) if *optional => {
                    map.insert(key(&key_value)?, (*value).clone());
                }
                value if *optional => {
                    return fail(format!(
                        "cannot initialize optional entry '{key_value}' from non-optional value {value}"
                    ));
                }
                value => {
                    map.insert(key(&key_value)?, value);
                }
            }
        }
        Ok(Value::map(map))
    }

    fn or(&mut self, id: Id, sides: &[Node; 2], unwrap: bool) -> Outcome {
        let outcome = match self.eval(&sides[0]) {
            Ok(Value::Optional(None)) => self.eval(&sides[1]),
            Ok(Value::Optional(Some(value))) if unwrap => Ok((*value).clone()),
            other => other,
        };
        self.settle(id, 0, outcome)
    }

    fn fold(&mut self, id: Id, fold: &Fold) -> Outcome {
        let outcome = self.fold_value(fold);
        if let Err(Failure::Limit(_)) = outcome {
            return outcome;
        }
        self.tracker.drop(fold.range.id());
        self.settle(id, 0, outcome)
    }

    fn fold_value(&mut self, fold: &Fold) -> Outcome {
        let range = self.eval(&fold.range)?;
        self.slots[fold.accu] = Slot::Lazy(fold.init.clone());
        match range {
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let index = i64::try_from(index).unwrap_or(i64::MAX);
                    let (first, second) = match fold.var2 {
                        Some(_) => (Value::Int(index), item.clone()),
                        None => (item.clone(), NO_VALUE),
                    };
                    if !self.turn(fold, first, second)? {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for (key, value) in &map.entries {
                    if !self.turn(fold, key.value(), value.clone())? {
                        break;
                    }
                }
            }
            other => {
                let name = other.type_name();
                return fail(format!("got '{name}', expected iterable type"));
            }
        }
        self.slots[fold.var] = Slot::Empty;
        let result = self.eval(&fold.result);
        self.slots[fold.accu] = Slot::Empty;
        result
    }

    /// One turn of a loop; whether there may be another.
    fn turn(&mut self, fold: &Fold, first: Value, second: Value) -> Result<bool, Failure> {
        self.slots[fold.var] = Slot::Ready(first);
        if let Some(var2) = fold.var2 {
            self.slots[var2] = Slot::Ready(second);
        }
        match self.eval(&fold.condition) {
            Ok(Value::Bool(false)) => return Ok(false),
            Err(limit @ Failure::Limit(_)) => return Err(limit),
            // An error does not end the loop; it stays the result.
            Ok(_) | Err(Failure::Error(_)) => {}
        }
        self.slots[fold.accu] = match self.eval(&fold.step) {
            Ok(value) => Slot::Ready(value),
            Err(Failure::Error(message)) => Slot::Failed(message),
            Err(limit @ Failure::Limit(_)) => return Err(limit),
        };
        Ok(true)
    }
}

impl Node {
    /// What the node is known by on the stack: an attribute by the last of its parts.
    pub(crate) fn id(&self) -> Id {
        match &self.kind {
            NodeKind::Attribute(attribute) | NodeKind::Presence(attribute) => attribute.id(),
            _ => self.id,
        }
    }
}

/// The value as a key of a map that is made.
pub(crate) fn key(value: &Value) -> Result<Key, Failure> {
    match Key::of(value) {
        Some(key) => Ok(key),
        None => fail(format!("unsupported key type: {}", value.type_name())),
    }
}

/// Whether the value can be looked up at all.
fn key_of(value: &Value) -> Result<(), Failure> {
    match Key::of(value) {
        Some(_) => Ok(()),
        None => fail(format!("invalid qualifier type: {}", value.type_name())),
    }
}

/// The value of a key or an index. If it is not there that is an error, or nothing for a question of
/// presence.
fn look_up(value: &Value, key: &Value, presence: bool) -> Result<Option<Value>, Failure> {
    match value {
        Value::Map(map) => {
            if let Some(found) = map.get(key) {
                return Ok(Some(found.clone()));
            }
            if map.text_keys && !matches!(key, Value::Str(_)) {
                return no_overload();
            }
        }
        Value::List(items) => {
            if let Some(found) = usize::try_from(list_index(key)?)
                .ok()
                .and_then(|at| items.get(at))
            {
                return Ok(Some(found.clone()));
            }
            if !presence {
                return fail(format!("index out of bounds: {key}"));
            }
        }
        _ => {}
    }
    if presence {
        return Ok(None);
    }
    fail(format!("no such key: {key}"))
}

fn list_index(key: &Value) -> Result<i64, Failure> {
    match key {
        Value::Int(at) => Ok(*at),
        Value::Uint(at) if i64::try_from(*at).is_ok() => Ok(i64::try_from(*at).unwrap_or(-1)),
        Value::Double(at) if at.fract() == 0.0 && at.abs() < 9.2e18 => Ok(*at as i64),
        Value::Uint(_) | Value::Double(_) => fail(format!("unsupported index value {key} in list")),
        other => fail(format!(
            "unsupported index type '{}' in list",
            other.type_name()
        )),
    }
}

/// Functions that look at the types of their arguments themselves.
const UNGUARDED: [&str; 3] = ["contains", "startsWith", "endsWith"];

/// Calls a function with the values of its arguments.
pub(crate) fn apply(call: &CallNode, args: &mut [Value], effort: &mut Effort) -> Outcome {
    if let Some(pattern) = &call.pattern {
        return pattern.apply(call.function.name, args, effort);
    }
    if let Some(shared) = call.function.shared {
        return shared(args, effort);
    }
    let fits = |overload: &&crate::decls::Overload| {
        overload.implementation.is_some()
            && overload.params.len() == args.len()
            && overload.params.iter().zip(&*args).all(|(t, v)| v.is_a(t))
    };
    let found = match call.overload {
        Some(only) => Some(only).filter(fits),
        None => call.function.overloads.iter().find(fits),
    };
    if let Some(implementation) = found.and_then(|overload| overload.implementation) {
        return implementation(args, effort);
    }
    if UNGUARDED.contains(&call.function.name) {
        return no_overload();
    }
    let types: Vec<&str> = args.iter().map(Value::type_name).collect();
    fail(format!(
        "no such overload: {}({})",
        call.function.name,
        types.join(", ")
    ))
}
