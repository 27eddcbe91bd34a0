//! Values, how they compare, and what they are called.

use crate::library::format::Format;
use crate::library::net::Cidr;
use crate::library::quantity::Quantity;
use crate::library::semver::Version;
use crate::library::url::Url;
use crate::types::Type;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A value at run time.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Str(Arc<str>),
    Bytes(Arc<[u8]>),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(Arc<Vec<Value>>),
    Map(Arc<Map>),
    Optional(Option<Arc<Value>>),
    Type(&'static str),
    Quantity(Arc<Quantity>),
    /// A quantity that was computed. Kubernetes hands these on as pointers, which equal nothing when
    /// they stand on the right of `==`: that is an error there, and so here.
    ComputedQuantity(Arc<Quantity>),
    Semver(Arc<Version>),
    Ip(IpAddr),
    Cidr(Cidr),
    Url(Arc<Url>),
    Format(&'static Format),
}

/// A point in time, with the zone that it was written in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timestamp {
    /// Since 1970-01-01T00:00:00Z.
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
    /// Of the zone, in seconds east of Greenwich.
    pub(crate) offset: i32,
}

/// A map; one with a default has a value for every key that is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    pub(crate) entries: BTreeMap<Key, Value>,
    pub(crate) default: Option<Value>,
    /// Whether its keys are known to be strings, so that to look for another key is an error.
    pub(crate) text_keys: bool,
}

/// A key of a map, in the order in which maps are walked through.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    /// The bits of a double.
    Double(u64),
    Str(Arc<str>),
}

/// Why there is no value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// An error of the expression, which `||` and `&&` may absorb.
    Error(String),
    /// A limit was met: evaluation ends.
    Limit(&'static str),
}

/// What functions give.
pub(crate) type Outcome = Result<Value, Failure>;

/// An error of the expression.
pub(crate) fn fail<T>(message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Error(message.into()))
}

/// The error for operands that do not go together.
pub(crate) fn no_overload<T>() -> Result<T, Failure> {
    fail("no such overload")
}

/// What evaluation may do beside its cost: elements copied, compared or printed. CEL's costs do not
/// see it when lists share parts, and such lists can be exponentially large.
#[derive(Debug)]
pub(crate) struct Effort {
    left: u64,
}

impl Effort {
    pub(crate) fn new(elements: u64) -> Effort {
        Effort { left: elements }
    }

    /// Takes `amount` of what is left.
    pub(crate) fn spend(&mut self, amount: usize) -> Result<(), Failure> {
        let amount = u64::try_from(amount).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(amount).ok_or(Failure::Limit(
            "operation cancelled: too many elements were copied or compared",
        ))?;
        Ok(())
    }
}

impl Value {
    pub(crate) fn str(text: impl Into<Arc<str>>) -> Value {
        Value::Str(text.into())
    }

    pub(crate) fn list(items: Vec<Value>) -> Value {
        Value::List(Arc::new(items))
    }

    pub(crate) fn strings<T: Into<Arc<str>>>(items: impl IntoIterator<Item = T>) -> Value {
        Value::list(items.into_iter().map(Value::str).collect())
    }

    pub(crate) fn some(value: Value) -> Value {
        Value::Optional(Some(Arc::new(value)))
    }

    pub(crate) fn map(entries: BTreeMap<Key, Value>) -> Value {
        Value::Map(Arc::new(Map {
            entries,
            ..Map::default()
        }))
    }

    pub(crate) fn quantity(&self) -> Option<&Quantity> {
        match self {
            Value::Quantity(quantity) | Value::ComputedQuantity(quantity) => Some(quantity),
            _ => None,
        }
    }

    /// The name of the value's type.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::Str(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::List(_) => "list",
            Value::Map(_) => "map",
            Value::Optional(_) => "optional_type",
            Value::Type(_) => "type",
            Value::Quantity(_) | Value::ComputedQuantity(_) => "kubernetes.Quantity",
            Value::Semver(_) => "kubernetes.Semver",
            Value::Ip(_) => "net.IP",
            Value::Cidr(_) => "net.CIDR",
            Value::Url(_) => "kubernetes.URL",
            Value::Format(_) => "kubernetes.NamedFormat",
        }
    }

    /// Whether a declared parameter takes this value. Of a list or a map the first entry is looked at.
    pub(crate) fn is_a(&self, declared: &Type) -> bool {
        match (declared, self) {
            (Type::Dyn | Type::Any | Type::Param(_) | Type::Error, _) => true,
            (Type::List(item), Value::List(items)) => {
                items.first().is_none_or(|first| first.is_a(item))
            }
            (Type::Map(of), Value::Map(map)) => map
                .entries
                .iter()
                .next()
                .is_none_or(|(key, value)| key.value().is_a(&of.0) && value.is_a(&of.1)),
            (declared, value) => declared.name() == value.type_name(),
        }
    }

    /// What costs are reckoned with: characters, bytes, elements; 1 for what has no size.
    pub(crate) fn size(&self) -> u64 {
        let size = match self {
            Value::Str(text) => text.chars().count(),
            Value::Bytes(bytes) => bytes.len(),
            Value::List(items) => items.len(),
            Value::Map(map) => map.entries.len(),
            Value::Ip(IpAddr::V4(_)) => 4,
            Value::Ip(IpAddr::V6(_)) => 16,
            Value::Cidr(cidr) => usize::from(cidr.bits.div_ceil(8)),
            _ => 1,
        };
        u64::try_from(size).unwrap_or(u64::MAX)
    }

    /// Whether it is its type's empty value.
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(value) => !value,
            Value::Int(value) => *value == 0,
            Value::Uint(value) => *value == 0,
            Value::Double(value) => *value == 0.0,
            Value::Str(text) => text.is_empty(),
            Value::Bytes(bytes) => bytes.is_empty(),
            Value::Duration(nanos) => *nanos == 0,
            Value::Timestamp(t) => t.seconds == crate::library::time::SECONDS_MIN && t.nanos == 0,
            Value::List(items) => items.is_empty(),
            Value::Map(map) => map.entries.is_empty(),
            _ => false,
        }
    }
}

/// Whether `a == b`.
pub(crate) fn equal(a: &Value, b: &Value, effort: &mut Effort) -> Result<bool, Failure> {
    effort.spend(1)?;
    match (a, b) {
        (Value::Null, b) => Ok(matches!(b, Value::Null)),
        (_, Value::Null) => Ok(false),
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::Str(a), Value::Str(b)) => Ok(a == b),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(a == b),
        (Value::Duration(a), Value::Duration(b)) => Ok(a == b),
        (Value::Timestamp(a), Value::Timestamp(b)) => Ok(a.order(b) == Ordering::Equal),
        (Value::Type(a), Value::Type(b)) => Ok(a == b),
        (Value::List(a), Value::List(b)) => equal_lists(a, b, effort),
        (Value::Map(a), Value::Map(b)) => equal_maps(a, b, effort),
        (Value::Optional(Some(a)), Value::Optional(Some(b))) => equal(a, b, effort),
        (Value::Optional(a), Value::Optional(b)) => Ok(a.is_none() && b.is_none()),
        (Value::Quantity(a) | Value::ComputedQuantity(a), Value::Quantity(b)) => {
            Ok(a.order(b) == Ordering::Equal)
        }
        (Value::Semver(a), Value::Semver(b)) => Ok(a.order(b) == Ordering::Equal),
        (Value::Ip(a), Value::Ip(b)) => Ok(a == b),
        (Value::Cidr(a), Value::Cidr(b)) => Ok(a == b),
        (Value::Url(a), Value::Url(b)) => Ok(a.to_string() == b.to_string()),
        (Value::Format(a), Value::Format(b)) => Ok(a.name == b.name),
        (
            Value::Quantity(_)
            | Value::ComputedQuantity(_)
            | Value::Semver(_)
            | Value::Ip(_)
            | Value::Cidr(_)
            | Value::Url(_)
            | Value::Format(_),
            _,
        ) => no_overload(),
        (a, b) => Ok(numbers(a, b) == Some(Ordering::Equal)),
    }
}

fn equal_lists(a: &[Value], b: &[Value], effort: &mut Effort) -> Result<bool, Failure> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (a, b) in a.iter().zip(b.iter()) {
        if differ(equal(a, b, effort))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn equal_maps(a: &Map, b: &Map, effort: &mut Effort) -> Result<bool, Failure> {
    if a.entries.len() != b.entries.len() {
        return Ok(false);
    }
    for (key, value) in &a.entries {
        match b.get(&key.value()) {
            Some(other) if !differ(equal(value, other, effort))? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Elements whose comparison is an error count as equal, as they do in cel-go.
fn differ(equal: Result<bool, Failure>) -> Result<bool, Failure> {
    match equal {
        Ok(equal) => Ok(!equal),
        Err(Failure::Error(_)) => Ok(false),
        Err(limit @ Failure::Limit(_)) => Err(limit),
    }
}

/// The order of two values that have one.
pub(crate) fn compare(a: &Value, b: &Value) -> Result<Ordering, Failure> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a.cmp(b)),
        (Value::Str(a), Value::Str(b)) => Ok(a.cmp(b)),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Ok(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Ok(a.order(b)),
        (Value::Double(x), _) | (_, Value::Double(x)) if x.is_nan() => {
            fail("NaN values cannot be ordered")
        }
        (a, b) => numbers(a, b).map_or_else(no_overload, Ok),
    }
}

/// Whether values of this kind have an order at all.
pub(crate) fn is_ordered(value: &Value) -> bool {
    matches!(
        value,
        Value::Bool(_)
            | Value::Int(_)
            | Value::Uint(_)
            | Value::Double(_)
            | Value::Str(_)
            | Value::Bytes(_)
            | Value::Duration(_)
            | Value::Timestamp(_)
    )
}

/// The order of two numbers of whatever kinds; none for other values, and for NaN.
fn numbers(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        // As cel-go does: a double and an integer are compared as doubles.
        (Value::Double(a), Value::Int(b)) => a.partial_cmp(&(*b as f64)),
        (Value::Int(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
        (Value::Double(a), Value::Uint(b)) => a.partial_cmp(&(*b as f64)),
        (Value::Uint(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
        _ => None,
    }
}

impl Timestamp {
    pub(crate) fn order(&self, other: &Timestamp) -> Ordering {
        (self.seconds, self.nanos).cmp(&(other.seconds, other.nanos))
    }
}

impl Map {
    /// The value for a key, where numbers of different kinds are the same key if they are equal.
    pub(crate) fn get(&self, key: &Value) -> Option<&Value> {
        self.find(key).or(self.default.as_ref())
    }

    /// As [`Map::get`] without the default.
    pub(crate) fn find(&self, key: &Value) -> Option<&Value> {
        if let Some(value) = self.entries.get(&Key::of(key)?) {
            return Some(value);
        }
        let as_int = |n: i64| self.entries.get(&Key::Int(n));
        let as_uint = |n: u64| self.entries.get(&Key::Uint(n));
        match *key {
            Value::Int(n) => u64::try_from(n).ok().and_then(as_uint),
            Value::Uint(n) => i64::try_from(n).ok().and_then(as_int),
            Value::Double(n) if n.fract() == 0.0 => {
                let int = (n.abs() < 9.2e18).then_some(n as i64).and_then(as_int);
                let uint = (0.0..1.8e19).contains(&n).then_some(n as u64);
                int.or_else(|| uint.and_then(as_uint))
            }
            _ => None,
        }
    }
}

impl Key {
    /// The value as a key; none for those that cannot be one.
    pub(crate) fn of(value: &Value) -> Option<Key> {
        match value {
            Value::Bool(value) => Some(Key::Bool(*value)),
            Value::Int(value) => Some(Key::Int(*value)),
            Value::Uint(value) => Some(Key::Uint(*value)),
            Value::Double(value) => Some(Key::Double(value.to_bits())),
            Value::Str(value) => Some(Key::Str(value.clone())),
            _ => None,
        }
    }

    pub(crate) fn value(&self) -> Value {
        match self {
            Key::Bool(value) => Value::Bool(*value),
            Key::Int(value) => Value::Int(*value),
            Key::Uint(value) => Value::Uint(*value),
            Key::Double(bits) => Value::Double(f64::from_bits(*bits)),
            Key::Str(value) => Value::Str(value.clone()),
        }
    }
}

/// As errors show values.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("NULL_VALUE"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Int(value) => write!(f, "{value}"),
            Value::Uint(value) => write!(f, "{value}"),
            Value::Double(value) => f.write_str(&shortest(*value)),
            Value::Str(value) => f.write_str(value),
            Value::Type(name) => f.write_str(name),
            other => f.write_str(other.type_name()),
        }
    }
}

/// A double in the fewest digits, with an exponent where `%g` of C and Go has one.
pub(crate) fn shortest(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}
