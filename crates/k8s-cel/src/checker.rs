//! Types of every node, which overloads its calls may mean, and what is wrong.

use crate::ast::{Call, Comprehension, Entry, Expr, Id, Item, Kind, Select};
use crate::decls::{self, DEVICE, Function, Overload};
use crate::source::Fault;
use crate::types::{Bindings, Type};
use crate::value::Value;

/// What checking found out of each node, by id.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) types: Vec<Type>,
    pub(crate) overloads: Vec<Vec<&'static Overload>>,
    /// Nodes that name a type.
    pub(crate) type_names: Vec<Option<&'static str>>,
}

/// Checks the tree. Calls of qualified functions, `optional.of(x)`, lose their target on the way.
pub(crate) fn check(expr: &mut Expr, nodes: usize) -> Result<Checked, Vec<Fault>> {
    let mut checker = Checker {
        types: vec![Type::Dyn; nodes],
        overloads: vec![Vec::new(); nodes],
        type_names: vec![None; nodes],
        bindings: Bindings::default(),
        scopes: Vec::new(),
        faults: Vec::new(),
    };
    checker.check(expr);
    let mut types = std::mem::take(&mut checker.types);
    for t in &mut types {
        *t = checker.bindings.substitute(t, true);
    }
    if checker.bindings.exhausted() {
        return Err(vec![Fault::new(0, "its types are too large")]);
    }
    if !checker.faults.is_empty() {
        return Err(checker.faults);
    }
    Ok(Checked {
        types,
        overloads: checker.overloads,
        type_names: checker.type_names,
    })
}

struct Checker {
    types: Vec<Type>,
    overloads: Vec<Vec<&'static Overload>>,
    type_names: Vec<Option<&'static str>>,
    bindings: Bindings,
    /// Variables of comprehensions, the innermost last.
    scopes: Vec<(String, Type)>,
    faults: Vec<Fault>,
}

impl Checker {
    fn fault(&mut self, at: usize, message: impl Into<String>) {
        self.faults.push(Fault::new(at, message));
    }

    fn undeclared(&mut self, at: usize, name: &str) {
        self.fault(
            at,
            format!("undeclared reference to '{name}' (in container '')"),
        );
    }

    fn mismatch(&mut self, at: usize, expected: &Type, found: &Type) {
        self.fault(
            at,
            format!("expected type '{expected}' but found '{found}'"),
        );
    }

    fn type_of(&self, expr: &Expr) -> Type {
        self.types[expr.id].clone()
    }

    /// The type with what is known by now of its variables.
    fn known(&mut self, t: &Type) -> Type {
        self.bindings.substitute(t, false)
    }

    fn check(&mut self, expr: &mut Expr) {
        if self.bindings.exhausted() {
            return;
        }
        let (id, at) = (expr.id, expr.at);
        let found = match &mut expr.kind {
            Kind::Literal(value) => literal_type(value),
            Kind::Ident(name) => {
                let name = name.clone();
                self.ident(id, &name).unwrap_or_else(|| {
                    self.undeclared(at, &name);
                    Type::Error
                })
            }
            Kind::Select(_) => self.select(expr),
            Kind::Call(call) => self.call(id, at, call),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Comprehension(fold) => self.comprehension(fold),
        };
        self.types[id] = found;
    }

    /// The type of a variable or of the name of a type.
    fn ident(&mut self, id: Id, name: &str) -> Option<Type> {
        let name = name.strip_prefix('.').unwrap_or(name);
        let local = self.scopes.iter().rev().find(|(local, _)| local == name);
        if let Some((_, t)) = local {
            return Some(t.clone());
        }
        if name == "device" {
            return Some(DEVICE);
        }
        let named = decls::type_named(name)?;
        self.type_names[id] = Some(named.name());
        Some(Type::Type(Some(named.into())))
    }

    fn select(&mut self, expr: &mut Expr) -> Type {
        if let Some(t) = expr
            .qualified_name()
            .and_then(|name| self.ident(expr.id, &name))
        {
            return t;
        }
        let at = expr.at;
        let Kind::Select(select) = &mut expr.kind else {
            return Type::Error;
        };
        let Select {
            operand,
            field,
            test,
        } = &mut **select;
        let found = self.field(at, operand, field, false);
        if *test {
            return Type::Bool;
        }
        self.known(&found)
    }

    fn field(&mut self, at: usize, operand: &mut Expr, field: &str, optional: bool) -> Type {
        self.check(operand);
        let operand_type = self.type_of(operand);
        let operand_type = self.known(&operand_type);
        let (target, was_optional) = operand_type.unwrap_optional();
        let found = match &target {
            Type::Map(of) => of.1.clone(),
            Type::Struct(_) => {
                let field_type = (target == DEVICE).then(|| decls::device_field(field));
                field_type.flatten().unwrap_or_else(|| {
                    self.fault(at, format!("undefined field '{field}'"));
                    Type::Error
                })
            }
            Type::Param(_) => {
                self.bindings.assignable(&Type::Dyn, &target);
                Type::Dyn
            }
            target => {
                if !target.is_dyn_or_error() {
                    self.fault(
                        at,
                        format!("type '{target}' does not support field selection"),
                    );
                }
                Type::Dyn
            }
        };
        if was_optional || optional {
            Type::optional(found)
        } else {
            found
        }
    }

    fn call(&mut self, id: Id, at: usize, call: &mut Call) -> Type {
        if call.function == "_?._" {
            return self.optional_select(id, at, call);
        }
        for arg in &mut call.args {
            self.check(arg);
        }
        if let Some(target) = &call.target
            && let Some(prefix) = target.qualified_name()
        {
            let qualified = format!("{prefix}.{}", call.function);
            if let Some(function) = decls::function(&qualified) {
                call.target = None;
                call.function = function.name.to_owned();
                return self.resolve(id, at, function, call);
            }
        }
        if let Some(target) = &mut call.target {
            self.check(target);
        }
        let Some(function) = decls::function(&call.function) else {
            self.undeclared(at, &call.function);
            return Type::Error;
        };
        call.function = function.name.to_owned();
        if matches!(function.name, "_&&_" | "_||_") {
            return self.logic(id, function, call);
        }
        self.resolve(id, at, function, call)
    }

    fn optional_select(&mut self, id: Id, at: usize, call: &mut Call) -> Type {
        let [operand, field] = call.args.as_mut_slice() else {
            return Type::Error;
        };
        let field = field.literal_string().unwrap_or_default().to_owned();
        let found = self.field(at, operand, &field, true);
        self.overloads[id] = vec![&OPTIONAL_SELECT];
        self.known(&found)
    }

    /// `&&` and `||`, whatever the number of terms.
    fn logic(&mut self, id: Id, function: &'static Function, call: &Call) -> Type {
        self.overloads[id] = function.overloads.iter().collect();
        let mut result = Type::Bool;
        for arg in &call.args {
            let t = self.type_of(arg);
            if !self.bindings.assignable(&t, &Type::Bool) {
                let t = self.bindings.substitute(&t, true);
                self.mismatch(arg.at, &Type::Bool, &t);
                result = Type::Error;
            }
        }
        result
    }

    /// Finds the overloads that the arguments allow, and the type that these have in common.
    fn resolve(&mut self, id: Id, at: usize, function: &'static Function, call: &Call) -> Type {
        let member = call.target.is_some();
        let args = call.target.iter().chain(&call.args);
        let args: Vec<Type> = args.map(|arg| self.type_of(arg)).collect();
        let mut result: Option<Type> = None;
        for overload in &function.overloads {
            if overload.member != member || overload.params.len() != args.len() {
                continue;
            }
            let mut names = [const { None }; 26];
            let mut instance = |t: &Type| self.bindings.instantiate(t, &mut names);
            let given: Vec<Type> = overload.params.iter().map(&mut instance).collect();
            let returns = instance(&overload.result);
            if !self.bindings.assignable_all(&args, &given) {
                continue;
            }
            self.overloads[id].push(overload);
            let returns = self.known(&returns);
            result = Some(match result {
                None => returns,
                Some(before) if before.is_dyn() || before == returns => before,
                Some(_) => Type::Dyn,
            });
        }
        result.unwrap_or_else(|| {
            let mut shown = args
                .iter()
                .map(|t| self.bindings.substitute(t, true).to_string());
            let receiver = if member { shown.next() } else { None };
            let receiver = receiver.map(|t| t + ".").unwrap_or_default();
            let args: Vec<String> = shown.collect();
            let message = format!(
                "found no matching overload for '{}' applied to '{receiver}({})'",
                function.name,
                args.join(", ")
            );
            self.fault(at, message);
            Type::Error
        })
    }

    /// The type of an element; if the element is optional, that of its value.
    fn element(&mut self, value: &Expr, optional: bool) -> Type {
        let t = self.type_of(value);
        if !optional {
            return t;
        }
        let (inner, is_optional) = t.unwrap_optional();
        if !is_optional && !inner.is_dyn() {
            self.mismatch(value.at, &Type::optional(inner.clone()), &inner);
        }
        inner
    }

    /// The type that elements seen so far and the next have in common. What mixes types is refused by
    /// `validate`, as `format` may mix them.
    fn join(&mut self, before: Option<Type>, next: Type) -> Type {
        let Some(before) = before else { return next };
        if self.bindings.assignable(&before, &next) {
            return self.bindings.most_general(&before, &next);
        }
        Type::Dyn
    }

    fn list(&mut self, items: &mut [Item]) -> Type {
        let mut joined = None;
        for item in items {
            self.check(&mut item.value);
            let t = self.element(&item.value, item.optional);
            joined = Some(self.join(joined, t));
        }
        Type::list(joined.unwrap_or_else(|| self.bindings.fresh()))
    }

    fn map(&mut self, entries: &mut [Entry]) -> Type {
        let (mut keys, mut values) = (None, None);
        for entry in entries {
            self.check(&mut entry.key);
            let key = self.type_of(&entry.key);
            keys = Some(self.join(keys, key));
            self.check(&mut entry.value);
            let value = self.element(&entry.value, entry.optional);
            values = Some(self.join(values, value));
        }
        let keys = keys.unwrap_or_else(|| self.bindings.fresh());
        Type::map(keys, values.unwrap_or_else(|| self.bindings.fresh()))
    }

    fn comprehension(&mut self, fold: &mut Comprehension) -> Type {
        self.check(&mut fold.range);
        self.check(&mut fold.init);
        let range = self.type_of(&fold.range);
        let range = self.known(&range);
        let accu = self.type_of(&fold.init);
        let (first, second) = self.loop_types(&fold.range, &range, fold.var2.is_some());
        let outer = self.scopes.len();
        self.scopes.push((fold.accu.clone(), accu.clone()));
        let inner = self.scopes.len();
        self.scopes.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.scopes.push((var2.clone(), second));
        }
        self.check(&mut fold.condition);
        self.assert_type(&fold.condition, &Type::Bool);
        self.check(&mut fold.step);
        self.assert_type(&fold.step, &accu);
        self.scopes.truncate(inner);
        self.check(&mut fold.result);
        self.scopes.truncate(outer);
        let result = self.type_of(&fold.result);
        self.known(&result)
    }

    /// The types of a loop's variables.
    fn loop_types(&mut self, range: &Expr, range_type: &Type, two: bool) -> (Type, Type) {
        match range_type {
            Type::List(item) if two => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Dyn),
            Type::Map(of) => (of.0.clone(), of.1.clone()),
            // cel-go looks for `dyn` itself here, which `any` is not.
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.bindings.assignable(&Type::Dyn, range_type);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fault(range.at, message);
                (Type::Error, Type::Error)
            }
        }
    }

    fn assert_type(&mut self, expr: &Expr, wanted: &Type) {
        let found = self.type_of(expr);
        if !self.bindings.assignable(wanted, &found) {
            self.mismatch(expr.at, wanted, &found);
        }
    }
}

/// `a.?b`, which the checker resolves by itself.
static OPTIONAL_SELECT: Overload = Overload {
    id: "select_optional_field",
    member: false,
    params: Vec::new(),
    result: Type::Dyn,
    implementation: None,
};

fn literal_type(value: &Value) -> Type {
    match value {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Bool,
        Value::Int(_) => Type::Int,
        Value::Uint(_) => Type::Uint,
        Value::Double(_) => Type::Double,
        Value::Str(_) => Type::Str,
        Value::Bytes(_) => Type::Bytes,
        _ => Type::Error,
    }
}
