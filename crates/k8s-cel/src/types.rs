//! Static types: what the checker knows of an expression, and how types unify.
//!
//! Unification works on a list of bindings of type variables, with a trail instead of copies: a try
//! that fails is undone. Every step counts against a budget, because types that share parts can be
//! exponentially larger than the expression that they belong to.

use std::fmt;
use std::sync::Arc;

/// Steps that unification and substitution may take in one expression. Long honest expressions take
/// some ten thousand; beyond this the expression is refused.
const STEPS_MAX: u32 = 4_000_000;

/// The first number of a type variable that the checker made; those below belong to declarations.
const FRESH: u32 = 32;

/// A type as the checker sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Type {
    /// Of an expression that is in error; goes with everything, so that one fault gives one message.
    Error,
    /// Known only when it is evaluated.
    Dyn,
    /// As `Dyn`, but an attribute's: it is printed as `any`.
    Any,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Str,
    Bytes,
    Duration,
    Timestamp,
    /// The type of a type.
    #[allow(clippy::enum_variant_names, reason = "CEL's own name of it")]
    Type(Option<Arc<Type>>),
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    Optional(Arc<Type>),
    /// `net.IP`, `net.CIDR`.
    Opaque(&'static str),
    /// `kubernetes.Quantity` and its like.
    Struct(&'static str),
    /// A type variable.
    Param(u32),
}

impl Type {
    pub(crate) fn list(item: Type) -> Type {
        Type::List(Arc::new(item))
    }

    pub(crate) fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new((key, value)))
    }

    pub(crate) fn optional(of: Type) -> Type {
        Type::Optional(Arc::new(of))
    }

    pub(crate) fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Any)
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        self.is_dyn() || matches!(self, Type::Error)
    }

    /// The type inside an optional, and whether it was one.
    pub(crate) fn unwrap_optional(&self) -> (Type, bool) {
        match self {
            Type::Optional(of) => ((**of).clone(), true),
            other => (other.clone(), false),
        }
    }

    /// The name without parameters, as `type()` gives it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Type::Error => "!error!",
            Type::Dyn | Type::Param(_) => "dyn",
            Type::Any => "google.protobuf.Any",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::Str => "string",
            Type::Bytes => "bytes",
            Type::Duration => "google.protobuf.Duration",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::Type(_) => "type",
            Type::List(_) => "list",
            Type::Map(_) => "map",
            Type::Optional(_) => "optional_type",
            Type::Opaque(name) | Type::Struct(name) => name,
        }
    }

    /// Whether both are of one kind and name, parameters included.
    pub(crate) fn is_equivalent(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Param(_), Type::Param(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
                a.is_equivalent(b)
            }
            (Type::Map(a), Type::Map(b)) => a.0.is_equivalent(&b.0) && a.1.is_equivalent(&b.1),
            (Type::Type(Some(a)), Type::Type(Some(b))) => a.is_equivalent(b),
            _ => self == other,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Null => f.write_str("null"),
            Type::Any => f.write_str("any"),
            Type::Duration => f.write_str("duration"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Type(Some(of)) => write!(f, "type({of})"),
            Type::List(item) => write!(f, "list({item})"),
            Type::Map(of) => write!(f, "map({}, {})", of.0, of.1),
            Type::Optional(of) => write!(f, "optional_type({of})"),
            Type::Param(number) => write!(f, "_var{number}"),
            other => f.write_str(other.name()),
        }
    }
}

/// What type variables stand for.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    bound: Vec<Option<Type>>,
    /// What was overwritten since the try began, to undo it.
    trail: Vec<(u32, Option<Type>)>,
    steps: u32,
}

impl Bindings {
    /// A variable that stands for nothing yet.
    pub(crate) fn fresh(&mut self) -> Type {
        let number = FRESH + u32::try_from(self.bound.len()).unwrap_or(u32::MAX - FRESH);
        self.bound.push(None);
        Type::Param(number)
    }

    /// Whether the budget is used up: nothing that was decided since counts.
    pub(crate) fn exhausted(&self) -> bool {
        self.steps > STEPS_MAX
    }

    fn step(&mut self) -> bool {
        self.steps = self.steps.saturating_add(1);
        !self.exhausted()
    }

    fn find(&self, number: u32) -> Option<&Type> {
        let at = usize::try_from(number.checked_sub(FRESH)?).ok()?;
        self.bound.get(at)?.as_ref()
    }

    fn bind(&mut self, number: u32, to: Type) {
        let at = number.checked_sub(FRESH).map(|at| at as usize);
        if let Some(slot) = at.and_then(|at| self.bound.get_mut(at)) {
            let before = slot.replace(to);
            self.trail.push((number, before));
        }
    }

    /// Whether all of `given` can stand where `wanted` is asked for. What had to be assumed of type
    /// variables is kept if so, and forgotten if not.
    pub(crate) fn assignable_all(&mut self, given: &[Type], wanted: &[Type]) -> bool {
        self.trail.clear();
        let fits = given.len() == wanted.len()
            && given
                .iter()
                .zip(wanted)
                .all(|(given, wanted)| self.unify(given, wanted));
        if !fits {
            for (number, before) in std::mem::take(&mut self.trail).into_iter().rev() {
                self.bound[(number - FRESH) as usize] = before;
            }
        }
        fits
    }

    /// As [`Bindings::assignable_all`], for one pair.
    pub(crate) fn assignable(&mut self, given: &Type, wanted: &Type) -> bool {
        self.assignable_all(std::slice::from_ref(given), std::slice::from_ref(wanted))
    }

    fn unify(&mut self, a: &Type, b: &Type) -> bool {
        if !self.step() {
            return false;
        }
        if let Type::Param(number) = b {
            let (valid, known) = self.substitutes(a, *number);
            if valid || known {
                return valid;
            }
        }
        if let Type::Param(number) = a {
            return self.substitutes(b, *number).0;
        }
        if a.is_dyn_or_error() || b.is_dyn_or_error() {
            return true;
        }
        match (a, b) {
            (Type::Null, other) | (other, Type::Null) => matches!(
                other,
                Type::Null
                    | Type::Optional(_)
                    | Type::Opaque(_)
                    | Type::Struct(_)
                    | Type::Duration
                    | Type::Timestamp
            ),
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
                self.unify(a, b)
            }
            (Type::Map(a), Type::Map(b)) => self.unify(&a.0, &b.0) && self.unify(&a.1, &b.1),
            (Type::Type(_), Type::Type(_)) => true,
            _ => a == b,
        }
    }

    /// Whether `t` may be what the variable stands for, and whether that stood for something before.
    fn substitutes(&mut self, t: &Type, number: u32) -> (bool, bool) {
        if *t == Type::Param(number) {
            return (true, true);
        }
        if let Some(known) = self.find(number).cloned() {
            if *t == known {
                return (true, true);
            }
            if !self.unify(t, &known) {
                return (false, true);
            }
            let general = self.most_general(t, &known);
            if !self.occurs(number, &general) {
                self.bind(number, general);
            }
            return (true, true);
        }
        if self.occurs(number, t) {
            return (false, false);
        }
        self.bind(number, t.clone());
        (true, false)
    }

    /// Whether the variable is `within`, also by way of what others stand for.
    fn occurs(&mut self, number: u32, within: &Type) -> bool {
        if !self.step() {
            return true;
        }
        match within {
            Type::Param(other) => {
                *other == number
                    || self
                        .find(*other)
                        .cloned()
                        .is_some_and(|bound| self.occurs(number, &bound))
            }
            Type::List(of) | Type::Optional(of) | Type::Type(Some(of)) => self.occurs(number, of),
            Type::Map(of) => self.occurs(number, &of.0) || self.occurs(number, &of.1),
            _ => false,
        }
    }

    /// Whether `a` says as much as `b` or less.
    fn less_specific(&mut self, a: &Type, b: &Type) -> bool {
        if !self.step() {
            return false;
        }
        if a.is_dyn() || matches!(a, Type::Param(_)) {
            return true;
        }
        if b.is_dyn() || matches!(b, Type::Param(_)) {
            return false;
        }
        match (a, b) {
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
                self.less_specific(a, b)
            }
            (Type::Map(a), Type::Map(b)) => {
                self.less_specific(&a.0, &b.0) && self.less_specific(&a.1, &b.1)
            }
            (Type::Type(_), Type::Type(_)) => true,
            _ => a == b,
        }
    }

    /// The more general of two types that unify.
    pub(crate) fn most_general(&mut self, a: &Type, b: &Type) -> Type {
        if self.less_specific(a, b) {
            a.clone()
        } else {
            b.clone()
        }
    }

    /// The type with what its variables stand for; those that stand for nothing become `dyn` if
    /// `closed`.
    pub(crate) fn substitute(&mut self, t: &Type, closed: bool) -> Type {
        if !self.step() {
            return Type::Error;
        }
        match t {
            Type::Param(number) => match self.find(*number).cloned() {
                Some(bound) => self.substitute(&bound, closed),
                None if closed => Type::Dyn,
                None => t.clone(),
            },
            Type::List(of) => Type::list(self.substitute(of, closed)),
            Type::Optional(of) => Type::optional(self.substitute(of, closed)),
            Type::Type(Some(of)) => Type::Type(Some(Arc::new(self.substitute(of, closed)))),
            Type::Map(of) => Type::map(
                self.substitute(&of.0, closed),
                self.substitute(&of.1, closed),
            ),
            other => other.clone(),
        }
    }

    /// A declared type with its variables replaced by fresh ones; `names` remembers which.
    pub(crate) fn instantiate(&mut self, t: &Type, names: &mut [Option<Type>; 26]) -> Type {
        match t {
            Type::Param(number) => {
                let slot = *number as usize;
                if let Some(known) = &names[slot] {
                    return known.clone();
                }
                let fresh = self.fresh();
                names[slot] = Some(fresh.clone());
                fresh
            }
            Type::List(of) => Type::list(self.instantiate(of, names)),
            Type::Optional(of) => Type::optional(self.instantiate(of, names)),
            Type::Type(Some(of)) => Type::Type(Some(Arc::new(self.instantiate(of, names)))),
            Type::Map(of) => Type::map(
                self.instantiate(&of.0, names),
                self.instantiate(&of.1, names),
            ),
            other => other.clone(),
        }
    }
}
