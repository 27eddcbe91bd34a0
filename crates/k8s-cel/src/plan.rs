//! A checked tree made ready for evaluation: variables are slots, constants are folded, patterns that do
//! not change are compiled.
//!
//! What is folded, and which nodes exist at all, follows cel-go, because costs are counted by node:
//! a chain of fields and indices is one attribute with qualifiers, a list of constants costs nothing.

use crate::ast::{ACCUMULATOR, Call, Comprehension, Entry, Expr, Id, Item, Kind};
use crate::checker::Checked;
use crate::decls::{Function, Overload, function};
use crate::eval;
use crate::library::regex;
use crate::value::{Effort, Failure, Key, Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A step of the evaluation.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: Id,
    pub(crate) kind: NodeKind,
}

/// What a step does.
#[derive(Debug)]
pub(crate) enum NodeKind {
    Constant(Value),
    Attribute(Attribute),
    /// `has(...)`.
    Presence(Attribute),
    And(Vec<Node>),
    Or(Vec<Node>),
    Equal {
        sides: Box<[Node; 2]>,
        negated: bool,
    },
    NotStrictlyFalse(Box<Node>),
    Call(CallNode),
    List(Vec<(Node, bool)>),
    Map(Vec<(Node, Node, bool)>),
    Fold(Box<Fold>),
    /// `x in [...]` with constants.
    Member {
        of: Box<Node>,
        set: Map,
    },
    /// `or`, and with `unwrap` `orValue`.
    Or2 {
        sides: Box<[Node; 2]>,
        unwrap: bool,
    },
}

/// A value and the fields and indices that are taken of it.
#[derive(Clone, Debug)]
pub(crate) struct Attribute {
    pub(crate) base: Base,
    pub(crate) qualifiers: Vec<Arc<Qualifier>>,
}

/// Where an attribute begins.
#[derive(Clone, Debug)]
pub(crate) enum Base {
    Device {
        id: Id,
    },
    /// A variable; `take` says that nobody asks for its value again.
    Slot {
        id: Id,
        slot: usize,
        take: bool,
    },
    Value {
        id: Id,
        node: Arc<Node>,
    },
    Choice(Arc<Choice>),
}

/// `condition ? yes : no`.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) id: Id,
    pub(crate) condition: Node,
    pub(crate) yes: Attribute,
    pub(crate) no: Attribute,
}

/// A field or an index.
#[derive(Debug)]
pub(crate) struct Qualifier {
    pub(crate) id: Id,
    pub(crate) optional: bool,
    /// Whether it is only asked if it is there.
    pub(crate) test: bool,
    pub(crate) key: QualifierKey,
}

/// The key of a qualifier.
#[derive(Debug)]
pub(crate) enum QualifierKey {
    Constant(Value),
    Attribute(Attribute),
}

/// A call.
#[derive(Debug)]
pub(crate) struct CallNode {
    pub(crate) function: &'static Function,
    /// The one overload that it must be, if there is but one.
    pub(crate) overload: Option<&'static Overload>,
    pub(crate) args: Vec<Node>,
    /// The second argument, if that is a constant pattern.
    pub(crate) pattern: Option<regex::Pattern>,
}

/// A comprehension.
#[derive(Debug)]
pub(crate) struct Fold {
    pub(crate) var: usize,
    pub(crate) var2: Option<usize>,
    pub(crate) accu: usize,
    pub(crate) range: Node,
    pub(crate) init: Arc<Node>,
    pub(crate) condition: Node,
    pub(crate) step: Node,
    pub(crate) result: Node,
}

/// All that is evaluated, and how many variables it has.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) root: Node,
    pub(crate) slots: usize,
    pub(crate) nodes: usize,
}

/// Elements that folding constants may touch.
const EFFORT: u64 = 100_000;

/// Makes the plan, or says which constant cannot be.
pub(crate) fn plan(expr: &Expr, checked: &Checked) -> Result<Plan, String> {
    let mut planner = Planner {
        checked,
        slots: 0,
        scope: Vec::new(),
        effort: Effort::new(EFFORT),
    };
    let root = planner.node(expr).map_err(|failure| match failure {
        Failure::Error(message) => message,
        Failure::Limit(message) => message.to_owned(),
    })?;
    Ok(Plan {
        root,
        slots: planner.slots,
        nodes: checked.types.len(),
    })
}

impl Attribute {
    fn of(base: Base) -> Attribute {
        Attribute {
            base,
            qualifiers: Vec::new(),
        }
    }

    /// The id of the last of its parts.
    pub(crate) fn id(&self) -> Id {
        match (self.qualifiers.last(), &self.base) {
            (Some(qualifier), _) => qualifier.id,
            (None, Base::Device { id } | Base::Slot { id, .. } | Base::Value { id, .. }) => *id,
            (None, Base::Choice(choice)) => choice.id,
        }
    }
}

struct Planner<'a> {
    checked: &'a Checked,
    slots: usize,
    /// Variables with their slots, and whether naming them takes their value.
    scope: Vec<(String, usize, bool)>,
    effort: Effort,
}

type Planned = Result<Node, Failure>;

impl Planner<'_> {
    fn slot(&mut self) -> usize {
        self.slots += 1;
        self.slots - 1
    }

    fn node(&mut self, expr: &Expr) -> Planned {
        let id = expr.id;
        let kind = match &expr.kind {
            Kind::Literal(value) => NodeKind::Constant(value.clone()),
            Kind::Ident(name) => self.ident(id, name),
            Kind::Select(_) if self.checked.type_names[id].is_some() => self.ident(id, ""),
            Kind::Select(select) => {
                let operand = self.node(&select.operand)?;
                let mut attribute = into_attribute(operand);
                let key = QualifierKey::Constant(Value::str(select.field.as_str()));
                attribute.qualify(Qualifier {
                    id,
                    optional: false,
                    test: select.test,
                    key,
                });
                if select.test {
                    NodeKind::Presence(attribute)
                } else {
                    NodeKind::Attribute(attribute)
                }
            }
            Kind::Call(call) => self.call(id, call)?,
            Kind::List(items) => self.list(items)?,
            Kind::Map(entries) => self.map(entries)?,
            Kind::Comprehension(fold) => self.fold(fold)?,
        };
        Ok(Node { id, kind })
    }

    fn ident(&self, id: Id, name: &str) -> NodeKind {
        if let Some(type_name) = self.checked.type_names[id] {
            return NodeKind::Constant(Value::Type(type_name));
        }
        let name = name.strip_prefix('.').unwrap_or(name);
        let local = self.scope.iter().rev().find(|(local, ..)| local == name);
        NodeKind::Attribute(Attribute::of(match local {
            Some((_, slot, take)) => Base::Slot {
                id,
                slot: *slot,
                take: *take,
            },
            None => Base::Device { id },
        }))
    }

    fn call(&mut self, id: Id, call: &Call) -> Result<NodeKind, Failure> {
        let mut args = Vec::with_capacity(call.args.len() + 1);
        for arg in call.target.iter().chain(&call.args) {
            args.push(self.node(arg)?);
        }
        let overloads = &self.checked.overloads[id];
        match (call.function.as_str(), args.len()) {
            ("_&&_", _) => return Ok(NodeKind::And(args)),
            ("_||_", _) => return Ok(NodeKind::Or(args)),
            ("_?_:_", 3) => return Ok(choice(id, args)),
            ("_==_", 2) => {
                return Ok(two(args, |sides| NodeKind::Equal {
                    sides,
                    negated: false,
                }));
            }
            ("_!=_", 2) => {
                return Ok(two(args, |sides| NodeKind::Equal {
                    sides,
                    negated: true,
                }));
            }
            ("or", 2) => {
                return Ok(two(args, |sides| NodeKind::Or2 {
                    sides,
                    unwrap: false,
                }));
            }
            ("orValue", 2) => {
                return Ok(two(args, |sides| NodeKind::Or2 {
                    sides,
                    unwrap: true,
                }));
            }
            ("_[_]", 2) => return index(id, args, false),
            ("_[?_]" | "_?._", 2) => return index(id, args, true),
            ("@not_strictly_false", 1) => {
                return Ok(NodeKind::NotStrictlyFalse(Box::new(args.remove(0))));
            }
            _ => {}
        }
        let Some(function) = function(&call.function) else {
            return crate::value::fail(format!("no such function: {}", call.function));
        };
        let overload = match overloads.as_slice() {
            [only] => Some(*only),
            _ => None,
        };
        if function.name == "@in" && overload.is_some_and(|overload| overload.id == "in_list") {
            match membership(args) {
                Ok(folded) => return Ok(folded),
                Err(unfolded) => args = unfolded,
            }
        }
        let pattern = match (function.name, args.get(1).map(|arg| &arg.kind)) {
            ("matches" | "find" | "findAll", Some(NodeKind::Constant(Value::Str(pattern)))) => {
                Some(regex::Pattern::compile(pattern, &mut self.effort)?)
            }
            _ => None,
        };
        let call = CallNode {
            function,
            overload,
            args,
            pattern,
        };
        let converts = matches!(
            function.name,
            "bool"
                | "bytes"
                | "double"
                | "dyn"
                | "duration"
                | "int"
                | "string"
                | "timestamp"
                | "type"
                | "uint"
        );
        if converts
            && let [
                Node {
                    kind: NodeKind::Constant(value),
                    ..
                },
            ] = call.args.as_slice()
        {
            let mut args = [value.clone()];
            return eval::apply(&call, &mut args, &mut self.effort).map(NodeKind::Constant);
        }
        Ok(NodeKind::Call(call))
    }

    fn list(&mut self, items: &[Item]) -> Result<NodeKind, Failure> {
        let mut nodes = Vec::with_capacity(items.len());
        for item in items {
            nodes.push((self.node(&item.value)?, item.optional));
        }
        let constants: Option<Vec<Value>> = nodes
            .iter()
            .map(|(node, optional)| if *optional { None } else { node.constant() })
            .collect();
        Ok(match constants {
            Some(values) => NodeKind::Constant(Value::list(values)),
            None => NodeKind::List(nodes),
        })
    }

    fn map(&mut self, entries: &[Entry]) -> Result<NodeKind, Failure> {
        let mut nodes = Vec::with_capacity(entries.len());
        for entry in entries {
            let key = self.node(&entry.key)?;
            nodes.push((key, self.node(&entry.value)?, entry.optional));
        }
        let constants: Option<Vec<(Value, Value)>> = nodes
            .iter()
            .map(|(key, value, optional)| {
                if *optional {
                    None
                } else {
                    Some((key.constant()?, value.constant()?))
                }
            })
            .collect();
        let Some(constants) = constants else {
            return Ok(NodeKind::Map(nodes));
        };
        let mut map = BTreeMap::new();
        for (key, value) in constants {
            map.insert(eval::key(&key)?, value);
        }
        Ok(NodeKind::Constant(Value::map(map)))
    }

    fn fold(&mut self, fold: &Comprehension) -> Result<NodeKind, Failure> {
        let init = Arc::new(self.node(&fold.init)?);
        let range = self.node(&fold.range)?;
        let outer = self.scope.len();
        let accu = self.slot();
        self.scope.push((fold.accu.clone(), accu, false));
        let inner = self.scope.len();
        let var = self.slot();
        self.scope.push((fold.var.clone(), var, false));
        let var2 = fold.var2.as_ref().map(|name| {
            let slot = self.slot();
            self.scope.push((name.clone(), slot, false));
            slot
        });
        let condition = self.node(&fold.condition)?;
        // Only what macros wrote names the accumulator, once on each way through the step.
        self.scope[outer].2 = fold.accu == ACCUMULATOR;
        let step = self.node(&fold.step)?;
        self.scope.truncate(inner);
        let result = self.node(&fold.result)?;
        self.scope.truncate(outer);
        Ok(NodeKind::Fold(Box::new(Fold {
            var,
            var2,
            accu,
            range,
            init,
            condition,
            step,
            result,
        })))
    }
}

impl Node {
    fn constant(&self) -> Option<Value> {
        match &self.kind {
            NodeKind::Constant(value) => Some(value.clone()),
            _ => None,
        }
    }
}

fn two(mut args: Vec<Node>, make: impl FnOnce(Box<[Node; 2]>) -> NodeKind) -> NodeKind {
    let right = args.remove(1);
    make(Box::new([args.remove(0), right]))
}

/// A node as the beginning of an attribute. An attribute, also one that is tested, stays the same one.
fn into_attribute(node: Node) -> Attribute {
    match node.kind {
        NodeKind::Attribute(attribute) => attribute,
        kind => {
            let id = node.id;
            let node = Arc::new(Node { id, kind });
            Attribute::of(Base::Value { id, node })
        }
    }
}

fn choice(id: Id, mut args: Vec<Node>) -> NodeKind {
    let no = into_attribute(args.remove(2));
    let yes = into_attribute(args.remove(1));
    NodeKind::Attribute(Attribute::of(Base::Choice(Arc::new(Choice {
        id,
        condition: args.remove(0),
        yes,
        no,
    }))))
}

fn index(id: Id, mut args: Vec<Node>, optional: bool) -> Result<NodeKind, Failure> {
    let key = match args.remove(1) {
        Node {
            kind: NodeKind::Constant(value),
            ..
        } => {
            eval::key(&value)?;
            QualifierKey::Constant(value)
        }
        node => QualifierKey::Attribute(into_attribute(node)),
    };
    let mut attribute = into_attribute(args.remove(0));
    attribute.qualify(Qualifier {
        id,
        optional,
        test: false,
        key,
    });
    Ok(NodeKind::Attribute(attribute))
}

/// `x in [...]` as a look-up, if the list is made of constants that can be keys.
fn membership(mut args: Vec<Node>) -> Result<NodeKind, Vec<Node>> {
    let [_, list] = args.as_slice() else {
        return Err(args);
    };
    let NodeKind::Constant(Value::List(items)) = &list.kind else {
        return Err(args);
    };
    let keys: Option<BTreeMap<Key, Value>> = items
        .iter()
        .map(|item| Some((Key::of(item)?, Value::Null)))
        .collect();
    match keys {
        Some(entries) if entries.is_empty() => Ok(NodeKind::Constant(Value::Bool(false))),
        Some(entries) => Ok(NodeKind::Member {
            of: Box::new(args.remove(0)),
            set: Map {
                entries,
                ..Map::default()
            },
        }),
        None => Err(args),
    }
}

impl Attribute {
    fn qualify(&mut self, qualifier: Qualifier) {
        self.push(&Arc::new(qualifier));
    }

    /// Adds a qualifier; of a choice to both sides.
    fn push(&mut self, qualifier: &Arc<Qualifier>) {
        let Base::Choice(choice) = &mut self.base else {
            self.qualifiers.push(qualifier.clone());
            return;
        };
        match Arc::get_mut(choice) {
            Some(choice) => {
                choice.yes.push(qualifier);
                choice.no.push(qualifier);
                // As in cel-go, the choice is then known by what was taken of it.
                if choice.yes.id() == choice.no.id() {
                    choice.id = choice.yes.id();
                }
            }
            // Nobody else has it while a plan is made.
            None => self.qualifiers.push(qualifier.clone()),
        }
    }
}
