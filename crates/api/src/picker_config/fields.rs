//! A strict reader of one JSON object: every field is asked for by name and type, and what nobody
//! asked for is a fault with the nearest name that exists. All faults are collected, so that a
//! configuration is put right in one go. Knows nothing of what the fields mean.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Duration;

use forebay_model::snapshot::Problem;
use serde_json::{Map, Value};

use super::units;

/// What is wrong, with its place.
#[derive(Debug, Default)]
pub(super) struct Faults(RefCell<Vec<Problem>>);

impl Faults {
    /// Notes that `field` does not hold: `reason` for programs, `message` for people.
    pub(super) fn add(&self, field: &str, reason: &'static str, message: impl Into<String>) {
        self.0.borrow_mut().push(Problem {
            object: super::OBJECT.to_owned(),
            field: field.to_owned(),
            reason,
            message: message.into(),
        });
    }

    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// One object, of which fields are taken out.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    at: String,
    left: Map<String, Value>,
    asked: Vec<&'static str>,
    faults: &'a Faults,
}

impl<'a> Fields<'a> {
    /// The fields of `value`, which stands at `at`; those of null are none.
    pub(super) fn of(value: Value, at: &str, faults: &'a Faults) -> Self {
        let left = match value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            other => {
                let message = format!("an object is needed here, not {}", kind_of(&other));
                faults.add(at, super::MALFORMED, message);
                Map::new()
            }
        };
        Self {
            at: at.to_owned(),
            left,
            asked: Vec::new(),
            faults,
        }
    }

    /// Where the field `name` stands.
    pub(super) fn path(&self, name: &str) -> String {
        match self.at.as_str() {
            "" => name.to_owned(),
            at => format!("{at}.{name}"),
        }
    }

    /// Takes a field out as it is; an explicit null is absence.
    pub(super) fn value(&mut self, name: &'static str) -> Option<Value> {
        self.asked.push(name);
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// Whether the field is written, null or not.
    pub(super) fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// Notes a fault of the field `name`.
    pub(super) fn fault(&self, name: &str, message: impl Into<String>) {
        self.faults.add(&self.path(name), super::MALFORMED, message);
    }

    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        match self.value(name)? {
            Value::String(text) => Some(text),
            other => self.wrong(name, "a text", &other),
        }
    }

    pub(super) fn truth(&mut self, name: &'static str) -> Option<bool> {
        match self.value(name)? {
            Value::Bool(truth) => Some(truth),
            other => self.wrong(name, "true or false", &other),
        }
    }

    /// A number within `range`.
    pub(super) fn number(&mut self, name: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let value = self.value(name)?;
        match value.as_f64() {
            Some(number) if range.contains(&number) => Some(number),
            Some(number) => {
                let (from, to) = (range.start(), range.end());
                self.fault(name, format!("{number} is not within {from} to {to}"));
                None
            }
            None => self.wrong(name, "a number", &value),
        }
    }

    /// A whole number within `range`.
    pub(super) fn whole(&mut self, name: &'static str, range: RangeInclusive<i64>) -> Option<i64> {
        let value = self.value(name)?;
        match value.as_i64() {
            Some(number) if range.contains(&number) => Some(number),
            Some(number) => {
                let (from, to) = (range.start(), range.end());
                self.fault(name, format!("{number} is not within {from} to {to}"));
                None
            }
            None => self.wrong(name, "a whole number", &value),
        }
    }

    /// A whole number of things, of which there may be none.
    pub(super) fn count(&mut self, name: &'static str) -> Option<usize> {
        let count = self.whole(name, 0..=i64::from(u32::MAX))?;
        usize::try_from(count).ok()
    }

    /// A duration as Go writes it, such as `1m30s` or `200ms`.
    pub(super) fn duration(&mut self, name: &'static str) -> Option<Duration> {
        let text = self.text(name)?;
        let duration = units::duration(&text);
        if duration.is_none() {
            let help = "is no duration; write one such as 200ms, 60s or 1m30s";
            self.fault(name, format!("{text:?} {help}"));
        }
        duration
    }

    /// A quantity as Kubernetes writes it, such as `5000`, `1k`, `1G` or `512Mi`.
    pub(super) fn quantity(&mut self, name: &'static str) -> Option<u64> {
        let value = self.value(name)?;
        let text = match &value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => return self.wrong(name, "a quantity", other),
        };
        let quantity = units::quantity(&text);
        if quantity.is_none() {
            let help = "is no quantity; write one such as 5000, 1k, 1G or 512Mi";
            self.fault(name, format!("{text:?} {help}"));
        }
        quantity
    }

    /// The fields of the object `name`, if it is there.
    pub(super) fn object(&mut self, name: &'static str) -> Option<Fields<'a>> {
        let value = self.value(name)?;
        Some(Fields::of(value, &self.path(name), self.faults))
    }

    /// The fields of `item`, which stands at `at` within this object.
    pub(super) fn within(&self, item: Value, at: &str) -> Fields<'a> {
        Fields::of(item, at, self.faults)
    }

    /// The items of the list `name`, each with its place; none if it is not there.
    pub(super) fn list(&mut self, name: &'static str) -> Vec<(String, Value)> {
        let at = self.path(name);
        match self.value(name) {
            None => Vec::new(),
            Some(Value::Array(items)) => {
                let place = |(n, item)| (format!("{at}[{n}]"), item);
                items.into_iter().enumerate().map(place).collect()
            }
            Some(other) => self.wrong(name, "a list", &other).unwrap_or_default(),
        }
    }

    /// The texts of the list `name`.
    pub(super) fn texts(&mut self, name: &'static str) -> Vec<String> {
        let mut texts = Vec::new();
        for (at, item) in self.list(name) {
            match item {
                Value::String(text) => texts.push(text),
                other => {
                    let message = format!("a text is needed here, not {}", kind_of(&other));
                    self.faults.add(&at, super::MALFORMED, message);
                }
            }
        }
        texts
    }

    /// Takes everything that is left out of the way; whether there was anything.
    pub(super) fn skip(&mut self) -> bool {
        !std::mem::take(&mut self.left).is_empty()
    }

    /// Everything that is left, for objects whose keys are the user's own.
    pub(super) fn rest(mut self) -> Map<String, Value> {
        std::mem::take(&mut self.left)
    }

    /// Nothing else may be there.
    pub(super) fn end(self) {
        for name in self.left.keys() {
            let help = match nearest(name, &self.asked) {
                Some(near) => format!("did you mean {near}?"),
                None if self.asked.is_empty() => "there are none here".to_owned(),
                None => format!("there are: {}", self.asked.join(", ")),
            };
            let message = format!("no such field; {help}");
            self.faults
                .add(&self.path(name), super::UNKNOWN_FIELD, message);
        }
    }

    fn wrong<T>(&self, name: &str, wanted: &str, found: &Value) -> Option<T> {
        let message = format!("{wanted} is needed here, not {}", kind_of(found));
        self.fault(name, message);
        None
    }
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(truth) => format!("{truth}"),
        Value::Number(number) => format!("{number}"),
        Value::String(text) => format!("{text:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// The name among `names` that `written` was meant to be, if one is close.
pub(super) fn nearest<'n>(written: &str, names: &[&'n str]) -> Option<&'n str> {
    let far = (written.chars().count() / 3).clamp(1, 4);
    let distance = |name: &&&str| distance(written, name);
    let nearest = names.iter().min_by_key(distance)?;
    (distance(&nearest) <= far).then_some(*nearest)
}

/// Letters to change, add or leave out to get from one to the other, whatever their case.
fn distance(a: &str, b: &str) -> usize {
    let lower = |text: &str| -> Vec<char> {
        // Beyond this no name of ours is near anyway.
        text.chars().take(64).flat_map(char::to_lowercase).collect()
    };
    let (a, b) = (lower(a), lower(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
