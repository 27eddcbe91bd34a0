//! Macros: calls that are written out as other expressions when they are read.

use crate::ast::{ACCUMULATOR, Comprehension, Expr, Item, Kind};
use crate::parser::Nodes;
use crate::source::Fault;
use crate::value::Value;

/// The variable of loops that do not loop.
const UNUSED: &str = "#unused";

/// What `sortBy` sorts.
const SORT_INPUT: &str = "@__sortBy_input__";

/// `function(args)`: `has`, or a plain call.
pub(crate) fn global(
    nodes: &mut Nodes,
    at: usize,
    function: &str,
    mut args: Vec<Expr>,
) -> Result<Expr, Fault> {
    if function != "has" || args.len() != 1 {
        return Ok(nodes.call(at, function, None, args));
    }
    let arg = args.remove(0);
    match arg.kind {
        Kind::Select(select) => Ok(nodes.select(at, select.operand, select.field, true)),
        _ => Err(Fault::new(arg.at, "invalid argument to has() macro")),
    }
}

/// `target.function(args)`: a macro, or a plain call.
pub(crate) fn receiver(
    nodes: &mut Nodes,
    at: usize,
    function: &str,
    target: Expr,
    args: Vec<Expr>,
) -> Result<Expr, Fault> {
    let mut expansion = Expansion { nodes, at };
    match (function, args.len()) {
        ("all" | "exists" | "exists_one" | "existsOne", 2 | 3) => {
            expansion.quantifier(function, target, args)
        }
        ("map", 2 | 3) => {
            let (vars, args) = expansion.vars(args, 1, "argument is not an identifier")?;
            expansion.transform(target, vars, args)
        }
        ("filter", 2) => expansion.filter(target, args),
        ("transformList", 3 | 4) => {
            let (vars, args) = expansion.vars(args, 2, "argument must be a simple name")?;
            expansion.transform(target, vars, args)
        }
        ("transformMap" | "transformMapEntry", 3 | 4) => {
            expansion.transform_map(function, target, args)
        }
        ("optMap" | "optFlatMap", 2) => expansion.optional(function, target, args),
        ("bind", 3) if matches!(&target.kind, Kind::Ident(name) if name == "cel") => {
            expansion.cel_bind(args)
        }
        ("sortBy", 2) => expansion.sort_by(target, args),
        _ => Ok(expansion.nodes.call(at, function, Some(target), args)),
    }
}

/// The variables of a loop.
struct Vars {
    first: String,
    second: Option<String>,
}

struct Expansion<'a> {
    nodes: &'a mut Nodes,
    at: usize,
}

impl Expansion<'_> {
    fn literal(&mut self, value: Value) -> Expr {
        self.nodes.make(self.at, Kind::Literal(value))
    }

    fn ident(&mut self, name: &str) -> Expr {
        self.nodes.make(self.at, Kind::Ident(name.to_owned()))
    }

    fn accu(&mut self) -> Expr {
        self.ident(ACCUMULATOR)
    }

    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        self.nodes.call(self.at, function, None, args)
    }

    fn list(&mut self, items: Vec<Expr>) -> Expr {
        let plain = |value| Item {
            value,
            optional: false,
        };
        let items = items.into_iter().map(plain).collect();
        self.nodes.make(self.at, Kind::List(items))
    }

    /// Takes the first arguments off as names of variables.
    fn vars(
        &self,
        mut args: Vec<Expr>,
        count: usize,
        message: &str,
    ) -> Result<(Vars, Vec<Expr>), Fault> {
        let rest = args.split_off(count);
        let mut names = Vec::new();
        for arg in args {
            match arg.kind {
                Kind::Ident(name) if names.contains(&name) => {
                    let message = format!("duplicate variable name: {name}");
                    return Err(Fault::new(arg.at, message));
                }
                Kind::Ident(name) if name == "__result__" => {
                    let message = "iteration variable overwrites accumulator variable";
                    return Err(Fault::new(arg.at, message));
                }
                Kind::Ident(name) => names.push(name),
                _ => return Err(Fault::new(arg.at, message)),
            }
        }
        let second = names.split_off(1).pop();
        let first = names.pop().unwrap_or_default();
        Ok((Vars { first, second }, rest))
    }

    fn fold(
        &mut self,
        range: Expr,
        vars: Vars,
        [init, condition, step, result]: [Expr; 4],
    ) -> Expr {
        let fold = Comprehension {
            var: vars.first,
            var2: vars.second,
            range,
            accu: ACCUMULATOR.to_owned(),
            init,
            condition,
            step,
            result,
        };
        self.nodes
            .make(self.at, Kind::Comprehension(Box::new(fold)))
    }

    fn quantifier(&mut self, function: &str, target: Expr, args: Vec<Expr>) -> Result<Expr, Fault> {
        let count = args.len() - 1;
        let (vars, mut args) = self.vars(args, count, "argument must be a simple name")?;
        let predicate = args.remove(0);
        let accu = self.accu();
        let parts = match function {
            "all" => {
                let condition = self.call("@not_strictly_false", vec![accu]);
                let accu = self.accu();
                let step = self.call("_&&_", vec![accu, predicate]);
                [
                    self.literal(Value::Bool(true)),
                    condition,
                    step,
                    self.accu(),
                ]
            }
            "exists" => {
                let not = self.call("!_", vec![accu]);
                let condition = self.call("@not_strictly_false", vec![not]);
                let accu = self.accu();
                let step = self.call("_||_", vec![accu, predicate]);
                [
                    self.literal(Value::Bool(false)),
                    condition,
                    step,
                    self.accu(),
                ]
            }
            _ => {
                let one = self.literal(Value::Int(1));
                let more = self.call("_+_", vec![accu, one]);
                let same = self.accu();
                let step = self.call("_?_:_", vec![predicate, more, same]);
                let (accu, one) = (self.accu(), self.literal(Value::Int(1)));
                let result = self.call("_==_", vec![accu, one]);
                let init = self.literal(Value::Int(0));
                [init, self.literal(Value::Bool(true)), step, result]
            }
        };
        Ok(self.fold(target, vars, parts))
    }

    /// `filter ? step : accumulator`, or the step alone.
    fn only_if(&mut self, filter: Option<Expr>, step: Expr) -> Expr {
        match filter {
            Some(filter) => {
                let same = self.accu();
                self.call("_?_:_", vec![filter, step, same])
            }
            None => step,
        }
    }

    /// A loop over all that builds a list with `step`.
    fn gather(&mut self, target: Expr, vars: Vars, filter: Option<Expr>, element: Expr) -> Expr {
        let (accu, list) = (self.accu(), self.list(vec![element]));
        let step = self.call("_+_", vec![accu, list]);
        let step = self.only_if(filter, step);
        let (init, always) = (self.list(Vec::new()), self.literal(Value::Bool(true)));
        let result = self.accu();
        self.fold(target, vars, [init, always, step, result])
    }

    /// `map` and `transformList`, with or without a filter before the transformation.
    fn transform(&mut self, target: Expr, vars: Vars, args: Vec<Expr>) -> Result<Expr, Fault> {
        let (filter, transform) = filter_and_transform(args);
        Ok(self.gather(target, vars, filter, transform))
    }

    fn filter(&mut self, target: Expr, args: Vec<Expr>) -> Result<Expr, Fault> {
        let element = args[0].clone();
        let (vars, mut args) = self.vars(args, 1, "argument is not an identifier")?;
        let predicate = args.remove(0);
        Ok(self.gather(target, vars, Some(predicate), element))
    }

    fn transform_map(
        &mut self,
        function: &str,
        target: Expr,
        args: Vec<Expr>,
    ) -> Result<Expr, Fault> {
        let (vars, args) = self.vars(args, 2, "argument must be a simple name")?;
        let (filter, transform) = filter_and_transform(args);
        let accu = self.accu();
        let inserted = if function == "transformMap" {
            let key = self.ident(&vars.first);
            vec![accu, key, transform]
        } else {
            vec![accu, transform]
        };
        let step = self.call("cel.@mapInsert", inserted);
        let step = self.only_if(filter, step);
        let init = self.nodes.make(self.at, Kind::Map(Vec::new()));
        let (always, result) = (self.literal(Value::Bool(true)), self.accu());
        Ok(self.fold(target, vars, [init, always, step, result]))
    }

    /// A loop over nothing, whose result may name `value`.
    fn binding(&mut self, name: String, value: Expr, result: Expr) -> Expr {
        let range = self.list(Vec::new());
        let (never, step) = (self.literal(Value::Bool(false)), self.ident(&name));
        let fold = Comprehension {
            var: UNUSED.to_owned(),
            var2: None,
            range,
            accu: name,
            init: value,
            condition: never,
            step,
            result,
        };
        self.nodes
            .make(self.at, Kind::Comprehension(Box::new(fold)))
    }

    fn cel_bind(&mut self, args: Vec<Expr>) -> Result<Expr, Fault> {
        let message = "cel.bind() variable names must be simple identifiers";
        let (vars, mut args) = self.vars(args, 1, message)?;
        let value = args.remove(0);
        let result = args.remove(0);
        Ok(self.binding(vars.first, value, result))
    }

    fn optional(&mut self, function: &str, target: Expr, args: Vec<Expr>) -> Result<Expr, Fault> {
        let message = format!("{function}() variable name must be a simple identifier");
        let (vars, mut args) = self.vars(args, 1, &message)?;
        let again = self.nodes.copy(&target)?;
        let has_value = self
            .nodes
            .call(self.at, "hasValue", Some(target), Vec::new());
        let value = self.nodes.call(self.at, "value", Some(again), Vec::new());
        let mut bound = self.binding(vars.first, value, args.remove(0));
        if function == "optMap" {
            bound = self.call("optional.of", vec![bound]);
        }
        let none = self.call("optional.none", Vec::new());
        Ok(self.call("_?_:_", vec![has_value, bound, none]))
    }

    fn sort_by(&mut self, target: Expr, args: Vec<Expr>) -> Result<Expr, Fault> {
        if matches!(target.kind, Kind::Literal(_) | Kind::Map(_)) {
            let message = "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
            return Err(Fault::new(target.at, message));
        }
        let (vars, args) = self.vars(args, 1, "argument is not an identifier")?;
        let input = self.ident(SORT_INPUT);
        let keys = self.transform(input, vars, args)?;
        let input = self.ident(SORT_INPUT);
        let sorted = self
            .nodes
            .call(self.at, "@sortByAssociatedKeys", Some(input), vec![keys]);
        Ok(self.binding(SORT_INPUT.to_owned(), target, sorted))
    }
}

/// The last argument, and the one before if there are two.
fn filter_and_transform(mut args: Vec<Expr>) -> (Option<Expr>, Expr) {
    let transform = args.remove(args.len() - 1);
    (args.pop(), transform)
}
