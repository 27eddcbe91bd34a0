//! What is declared: functions with their overloads, read from `decls.txt` once, types by name, and the
//! fields of `device`.

use crate::library::{self, Implementation};
use crate::types::Type;
use std::collections::HashMap;
use std::sync::LazyLock;

/// The type of the variable `device`.
pub(crate) const DEVICE: Type = Type::Struct("kubernetes.DRADevice");

/// A way to call a function.
#[derive(Debug)]
pub(crate) struct Overload {
    pub(crate) id: &'static str,
    /// Whether it is called on a receiver, its first parameter.
    pub(crate) member: bool,
    pub(crate) params: Vec<Type>,
    pub(crate) result: Type,
    pub(crate) implementation: Option<Implementation>,
}

/// A function.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) overloads: Vec<Overload>,
    /// What all overloads share, where values are told apart as the function goes.
    pub(crate) shared: Option<Implementation>,
}

static FUNCTIONS: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let mut functions = HashMap::new();
    for line in include_str!("decls.txt").lines() {
        if line.is_empty() || line.starts_with("# ") {
            continue;
        }
        let (line, types) = line.split_once(" | ").unwrap_or((line, "-"));
        for t in types.split(' ') {
            let line: &'static str = match t {
                "-" => line,
                t => line.replace("{t}", t).leak(),
            };
            declare(&mut functions, line);
        }
    }
    functions
});

/// The function of this name.
pub(crate) fn function(name: &str) -> Option<&'static Function> {
    FUNCTIONS.get(name.strip_prefix('.').unwrap_or(name))
}

fn declare(functions: &mut HashMap<&'static str, Function>, line: &'static str) {
    let (name, rest) = line.split_once(' ').expect("decls.txt: a function");
    let (id, rest) = rest.split_once(' ').expect("decls.txt: an overload");
    let (params, result) = rest.rsplit_once(" -> ").expect("decls.txt: a result");
    let mut params = Signature { rest: params };
    let mut types = Vec::new();
    let member = !params.rest.starts_with('(');
    if member {
        types.push(params.read());
        params.rest = &params.rest[1..];
    }
    params.rest = &params.rest[1..];
    while !params.rest.starts_with(')') {
        params.rest = params.rest.trim_start_matches(", ");
        types.push(params.read());
    }
    let function = functions.entry(name).or_insert_with(|| Function {
        name,
        overloads: Vec::new(),
        shared: library::shared(name),
    });
    function.overloads.push(Overload {
        id,
        member,
        params: types,
        result: Signature { rest: result }.read(),
        implementation: library::implementation(id),
    });
}

/// Reads types of `decls.txt`.
struct Signature {
    rest: &'static str,
}

impl Signature {
    fn read(&mut self) -> Type {
        let letters = |c: char| !c.is_ascii_alphanumeric();
        let end = self.rest.find(letters).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        match name {
            "list" => Type::list(self.parameters().remove(0)),
            "optional" => Type::optional(self.parameters().remove(0)),
            "map" => {
                let mut of = self.parameters();
                let value = of.remove(1);
                Type::map(of.remove(0), value)
            }
            "type" => Type::Type(Some(self.parameters().remove(0).into())),
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::Str,
            "bytes" => Type::Bytes,
            "duration" => Type::Duration,
            "timestamp" => Type::Timestamp,
            "dyn" => Type::Dyn,
            "IP" => Type::Opaque("net.IP"),
            "CIDR" => Type::Opaque("net.CIDR"),
            "Quantity" => Type::Struct("kubernetes.Quantity"),
            "Semver" => Type::Struct("kubernetes.Semver"),
            "URL" => Type::Struct("kubernetes.URL"),
            "Format" => Type::Struct("kubernetes.NamedFormat"),
            "Authorizer" => Type::Struct("kubernetes.authorization.Authorizer"),
            "PathCheck" => Type::Struct("kubernetes.authorization.PathCheck"),
            "GroupCheck" => Type::Struct("kubernetes.authorization.GroupCheck"),
            "ResourceCheck" => Type::Struct("kubernetes.authorization.ResourceCheck"),
            "Decision" => Type::Struct("kubernetes.authorization.Decision"),
            letter => {
                assert_eq!(letter.len(), 1, "decls.txt: no type is called {letter}");
                Type::Param(u32::from(letter.as_bytes()[0] - b'A'))
            }
        }
    }

    fn parameters(&mut self) -> Vec<Type> {
        let mut types = Vec::new();
        self.rest = &self.rest[1..];
        while !self.rest.starts_with(')') {
            self.rest = self.rest.trim_start_matches(", ");
            types.push(self.read());
        }
        self.rest = &self.rest[1..];
        types
    }
}

/// The type that a name stands for, for comparisons with `type(...)`.
pub(crate) fn type_named(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "double" => Type::Double,
        "google.protobuf.Duration" => Type::Duration,
        "int" => Type::Int,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "net.CIDR" => Type::Opaque("net.CIDR"),
        "net.IP" => Type::Opaque("net.IP"),
        "null_type" => Type::Null,
        "optional_type" => Type::optional(Type::Dyn),
        "string" => Type::Str,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "type" => Type::Type(None),
        "uint" => Type::Uint,
        _ => return None,
    })
}

/// The type of a field of `device`.
pub(crate) fn device_field(name: &str) -> Option<Type> {
    let by_domain = |value| Type::map(Type::Str, Type::map(Type::Str, value));
    Some(match name {
        "driver" => Type::Str,
        "attributes" => by_domain(Type::Any),
        "capacity" => by_domain(Type::Struct("kubernetes.Quantity")),
        "allowMultipleAllocations" => Type::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_overload_that_a_selector_can_reach_is_implemented() {
        for function in FUNCTIONS.values() {
            for overload in &function.overloads {
                let authorization = overload.params.iter().any(
                    |t| matches!(t, Type::Struct(name) if name.starts_with("kubernetes.authorization")),
                );
                let special = matches!(
                    function.name,
                    "_?_:_"
                        | "_&&_"
                        | "_||_"
                        | "_==_"
                        | "_!=_"
                        | "_[_]"
                        | "_[?_]"
                        | "or"
                        | "orValue"
                        | "@not_strictly_false"
                );
                assert!(
                    function.shared.is_some()
                        || overload.implementation.is_some()
                        || authorization
                        || special,
                    "{} {}",
                    function.name,
                    overload.id
                );
            }
        }
    }
}
