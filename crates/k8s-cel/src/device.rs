//! Devices as selectors see them.

use crate::library::quantity::Quantity;
use crate::library::semver::Version;
use crate::value::{Key, Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An attribute's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attribute {
    /// `int`.
    Int(i64),
    /// `bool`.
    Bool(bool),
    /// `string`.
    String(String),
    /// `version`: a semantic version, `1.2.3`.
    Version(String),
}

/// A device: what its driver published of it.
///
/// Names without a domain are in the driver's. What cannot be read, a version that is none, is not an
/// error before an expression is matched against the device: then it is, as for the scheduler.
#[derive(Clone, Debug)]
pub struct Device {
    driver: String,
    shared: bool,
    attributes: BTreeMap<String, BTreeMap<Key, Value>>,
    capacity: BTreeMap<String, BTreeMap<Key, Value>>,
    broken: Option<String>,
}

impl Device {
    /// A device without attributes of this driver.
    pub fn new(driver: impl Into<String>) -> Device {
        Device {
            driver: driver.into(),
            shared: false,
            attributes: BTreeMap::new(),
            capacity: BTreeMap::new(),
            broken: None,
        }
    }

    /// Sets `allowMultipleAllocations`.
    #[must_use]
    pub fn shared(mut self, shared: bool) -> Device {
        self.shared = shared;
        self
    }

    /// Adds an attribute; `name` is `id` or `domain/id`. One of the same name is replaced.
    #[must_use]
    pub fn attribute(mut self, name: &str, value: Attribute) -> Device {
        let value = match value {
            Attribute::Int(value) => Value::Int(value),
            Attribute::Bool(value) => Value::Bool(value),
            Attribute::String(text) => Value::str(text),
            Attribute::Version(text) => match Version::parse(&text) {
                Ok(version) => Value::Semver(Arc::new(version)),
                Err(error) => {
                    let message = format!("attribute {name}: parse semantic version: {error}");
                    return self.break_with(message);
                }
            },
        };
        let (domain, id) = self.qualified(name);
        self.attributes.entry(domain).or_default().insert(id, value);
        self
    }

    /// Adds a capacity: a quantity such as `80Gi`. One of the same name is replaced.
    #[must_use]
    pub fn capacity(mut self, name: &str, quantity: &str) -> Device {
        let quantity = match Quantity::parse(quantity) {
            Ok(quantity) => Value::Quantity(Arc::new(quantity)),
            Err(error) => return self.break_with(format!("capacity {name}: {error}")),
        };
        let (domain, id) = self.qualified(name);
        self.capacity
            .entry(domain)
            .or_default()
            .insert(id, quantity);
        self
    }

    fn break_with(mut self, message: String) -> Device {
        self.broken.get_or_insert(message);
        self
    }

    fn qualified(&self, name: &str) -> (String, Key) {
        let (domain, id) = name.split_once('/').unwrap_or((&self.driver, name));
        (domain.to_owned(), Key::Str(id.into()))
    }

    /// What cannot be read of the device.
    pub(crate) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// The value of the variable `device`.
    pub(crate) fn value(&self) -> Value {
        let fields = [
            ("driver", Value::str(self.driver.as_str())),
            ("allowMultipleAllocations", Value::Bool(self.shared)),
            ("attributes", by_domain(&self.attributes, true)),
            ("capacity", by_domain(&self.capacity, false)),
        ];
        let fields = fields.map(|(name, value)| (Key::Str(name.into()), value));
        Value::Map(Arc::new(Map {
            entries: fields.into(),
            default: None,
            text_keys: true,
        }))
    }
}

/// A map from domains to maps, in which every domain is found: one that is not there is empty.
fn by_domain(domains: &BTreeMap<String, BTreeMap<Key, Value>>, text_keys: bool) -> Value {
    let inner = |entries: BTreeMap<Key, Value>, text_keys| {
        Value::Map(Arc::new(Map {
            entries,
            default: None,
            text_keys,
        }))
    };
    let entries = domains.iter().map(|(domain, ids)| {
        (
            Key::Str(domain.as_str().into()),
            inner(ids.clone(), text_keys),
        )
    });
    Value::Map(Arc::new(Map {
        entries: entries.collect(),
        default: Some(inner(BTreeMap::new(), true)),
        text_keys: true,
    }))
}
