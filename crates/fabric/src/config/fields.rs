//! A JSON object whose fields are taken one by one: what is of the wrong kind, out of range or not
//! known at all is noted with its path, and reading goes on.

use std::str::FromStr;

use serde_json::{Map, Value};

use super::FieldError;

/// What was found wrong so far.
pub(super) type Errors = Vec<FieldError>;

/// An object that is being read.
pub(super) struct Fields {
    path: String,
    left: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    pub(super) fn new(path: String, value: Value, errors: &mut Errors) -> Option<Fields> {
        match value {
            Value::Object(left) => Some(Fields {
                path,
                left,
                known: Vec::new(),
            }),
            other => {
                note(
                    errors,
                    path,
                    format!("must be an object, not {}", kind(&other)),
                );
                None
            }
        }
    }

    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The field as it is; `null` counts as absent.
    pub(super) fn value(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.left.remove(name).filter(|v| !v.is_null())
    }

    pub(super) fn text(&mut self, name: &'static str, errors: &mut Errors) -> Option<String> {
        match self.value(name)? {
            Value::String(text) => Some(text),
            other => {
                note(
                    errors,
                    self.path(name),
                    format!("must be text, not {}", kind(&other)),
                );
                None
            }
        }
    }

    pub(super) fn parsed<T: FromStr<Err: ToString>>(
        &mut self,
        name: &'static str,
        errors: &mut Errors,
    ) -> Option<T> {
        let text = self.text(name, errors)?;
        text.parse()
            .map_err(|e: T::Err| note(errors, self.path(name), e.to_string()))
            .ok()
    }

    pub(super) fn bool(&mut self, name: &'static str, errors: &mut Errors) -> Option<bool> {
        match self.value(name)? {
            Value::Bool(yes) => Some(yes),
            other => {
                note(
                    errors,
                    self.path(name),
                    format!("must be true or false, not {}", kind(&other)),
                );
                None
            }
        }
    }

    pub(super) fn number(
        &mut self,
        name: &'static str,
        min: u32,
        max: u32,
        errors: &mut Errors,
    ) -> Option<u32> {
        let value = self.value(name)?;
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        let number = number.filter(|n| (min..=max).contains(n));
        if number.is_none() {
            note(
                errors,
                self.path(name),
                format!("must be a whole number from {min} to {max}, not {value}"),
            );
        }
        number
    }

    pub(super) fn list(&mut self, name: &'static str, errors: &mut Errors) -> Vec<(String, Value)> {
        let path = self.path(name);
        match self.value(name) {
            None => Vec::new(),
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(at, item)| (format!("{path}[{at}]"), item))
                .collect(),
            Some(other) => {
                note(
                    errors,
                    path,
                    format!("must be a list, not {}", kind(&other)),
                );
                Vec::new()
            }
        }
    }

    /// Notes every field that nobody asked for.
    pub(super) fn end(self, errors: &mut Errors) {
        for name in self.left.keys() {
            let nearest = self.known.iter().min_by_key(|k| distance(name, k));
            let near = nearest.filter(|k| distance(name, k) <= 1 + name.len() / 3);
            let message = match near {
                Some(near) => format!("no such field; `{near}` is the nearest"),
                None => format!("no such field; there are {}", self.known.join(", ")),
            };
            note(errors, self.path(name), message);
        }
    }
}

pub(super) fn note(errors: &mut Errors, path: String, message: impl Into<String>) {
    errors.push(FieldError {
        path,
        message: message.into(),
    });
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Levenshtein's distance, without regard to case. Names longer than 64 are far from everything.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 {
        return usize::MAX;
    }
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let swap = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = swap.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
