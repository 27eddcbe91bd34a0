//! Structural schemas of custom resources, built from values that read like the manifest they
//! describe. Only what our definitions need is here; everything ends as plain JSON.

use serde_json::{Map, Value, json};
use std::ops::RangeInclusive;

/// The schema of one value.
#[derive(Debug, Clone)]
pub(super) struct Schema(Map<String, Value>);

impl Schema {
    fn of(kind: &str, description: &str) -> Self {
        let schema = Self(Map::new()).with("type", json!(kind));
        if description.is_empty() {
            schema
        } else {
            schema.with("description", json!(description))
        }
    }

    pub(super) fn string(description: &str) -> Self {
        Self::of("string", description)
    }

    /// A string that is one of these.
    pub(super) fn choice(description: &str, values: &[&str]) -> Self {
        Self::string(description).with("enum", json!(values))
    }

    /// A whole number of 32 bits, unless `with` says otherwise.
    pub(super) fn integer(description: &str) -> Self {
        Self::of("integer", description).with("format", json!("int32"))
    }

    pub(super) fn object(description: &str) -> Self {
        Self::of("object", description)
    }

    pub(super) fn list(description: &str, of: Self) -> Self {
        Self::of("array", description).with("items", of.into_value())
    }

    /// A list that is replaced as a whole when it is applied.
    pub(super) fn atomic_list(description: &str, of: Self) -> Self {
        Self::list(description, of).with("x-kubernetes-list-type", json!("atomic"))
    }

    /// A list whose elements are told apart, and merged, by one of their fields.
    pub(super) fn keyed_list(description: &str, key: &str, of: Self) -> Self {
        Self::list(description, of)
            .with("x-kubernetes-list-type", json!("map"))
            .with("x-kubernetes-list-map-keys", json!([key]))
    }

    /// An object with keys of the user's choice.
    pub(super) fn map(description: &str, of: Self) -> Self {
        Self::object(description).with("additionalProperties", of.into_value())
    }

    /// A number or a string that Kubernetes reads as an amount, such as `2` or `500Mi`.
    pub(super) fn quantity() -> Self {
        Self(Map::new())
            .with(
                "anyOf",
                json!([{ "type": "integer" }, { "type": "string" }]),
            )
            .with("x-kubernetes-int-or-string", json!(true))
            .length(1..=32)
            .pattern(QUANTITY)
    }

    /// Any other keyword.
    pub(super) fn with(mut self, keyword: &str, value: Value) -> Self {
        self.0.insert(keyword.to_owned(), value);
        self
    }

    pub(super) fn default(self, value: impl Into<Value>) -> Self {
        self.with("default", value.into())
    }

    pub(super) fn pattern(self, pattern: &str) -> Self {
        self.with("pattern", json!(pattern))
    }

    /// Of a string.
    pub(super) fn length(self, bounds: RangeInclusive<u32>) -> Self {
        self.with("minLength", json!(bounds.start()))
            .with("maxLength", json!(bounds.end()))
    }

    /// Of a list.
    pub(super) fn items(self, bounds: RangeInclusive<u32>) -> Self {
        self.with("minItems", json!(bounds.start()))
            .with("maxItems", json!(bounds.end()))
    }

    /// Of a map.
    pub(super) fn entries(self, bounds: RangeInclusive<u32>) -> Self {
        self.with("minProperties", json!(bounds.start()))
            .with("maxProperties", json!(bounds.end()))
    }

    /// Of a number.
    pub(super) fn range(self, bounds: RangeInclusive<i64>) -> Self {
        self.with("minimum", json!(bounds.start()))
            .with("maximum", json!(bounds.end()))
    }

    /// A field that may be left out.
    pub(super) fn field(mut self, name: &str, schema: Self) -> Self {
        let fields = self.0.entry("properties").or_insert_with(|| json!({}));
        fields[name] = schema.into_value();
        self
    }

    /// A field that must be there.
    pub(super) fn required(self, name: &str, schema: Self) -> Self {
        let mut schema = self.field(name, schema);
        schema.push("required", json!(name));
        schema
    }

    /// A rule in CEL, and what is said when it does not hold.
    pub(super) fn rule(mut self, rule: &str, message: &str) -> Self {
        self.push(
            "x-kubernetes-validations",
            json!({ "rule": rule, "message": message }),
        );
        self
    }

    fn push(&mut self, keyword: &str, element: Value) {
        let list = self.0.entry(keyword).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(element);
        }
    }

    pub(super) fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

const QUANTITY: &str =
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?[0-9]+))?$";
const DNS_SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

/// The value of a label.
pub(super) fn label_value() -> Schema {
    Schema::string("Value of the label: up to 63 letters, digits, `-`, `_` and `.`, or nothing.")
        .length(0..=63)
        .pattern("^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
}

/// The API group of something referred to.
pub(super) fn group(default: &str) -> Schema {
    Schema::string("API group of the object; empty is the core group.")
        .length(0..=253)
        .pattern(&format!("^$|^{DNS_SUBDOMAIN}$"))
        .default(default)
}

/// The kind of something referred to.
pub(super) fn kind(default: &str) -> Schema {
    Schema::string("Kind of the object.")
        .length(1..=63)
        .pattern("^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$")
        .default(default)
}

/// The name of something referred to.
pub(super) fn name(of: &str) -> Schema {
    Schema::string(&format!("Name of the {of}.")).length(1..=253)
}

/// The namespace of something referred to.
pub(super) fn namespace() -> Schema {
    Schema::string("Namespace of the object; that of the referring object if left out.")
        .length(1..=63)
        .pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
}

/// The name of a controller: a domain and a path.
pub(super) fn controller_name() -> Schema {
    Schema::string("Controller that wrote this entry, as a domain and a path.")
        .length(1..=253)
        .pattern(&format!(
            r"^{DNS_SUBDOMAIN}\/[A-Za-z0-9\/\-._~%!$&'()*+,;=:]+$"
        ))
}

/// A TCP port.
pub(super) fn port(description: &str) -> Schema {
    Schema::integer(description).range(1..=65_535)
}

/// `status.conditions` as every kind has them.
pub(super) fn conditions(description: &str) -> Schema {
    let condition = Schema::object("One aspect of the object's state.")
        .required(
            "lastTransitionTime",
            Schema::string("When `status` last changed.").with("format", json!("date-time")),
        )
        .required(
            "message",
            Schema::string("Why, for people.").with("maxLength", json!(32_768)),
        )
        .field(
            "observedGeneration",
            Schema::integer("The `metadata.generation` that this is about.")
                .with("format", json!("int64"))
                .with("minimum", json!(0)),
        )
        .required(
            "reason",
            Schema::string("Why, for programs.")
                .length(1..=1024)
                .pattern("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
        )
        .required(
            "status",
            Schema::choice("Whether it holds.", &["True", "False", "Unknown"]),
        )
        .required(
            "type",
            Schema::string("What it is about.")
                .with("maxLength", json!(316))
                .pattern(&format!(
                    "^({DNS_SUBDOMAIN}/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
                )),
        );
    Schema::keyed_list(description, "type", condition).with("maxItems", json!(8))
}
