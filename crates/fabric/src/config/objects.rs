//! Objects that hold parameters of a driver: where these are in each, and what is wrong with them, with the
//! path from the object's root. `forebay node lint` and the webhook say the same because both ask here.

use serde_json::Value;

use super::{FieldError, KIND, NetworkConfig};

/// Where each kind of `resource.k8s.io` that may hold parameters has the list of them.
const PLACES: [(&str, &str); 3] = [
    ("ResourceClaim", "/spec/devices/config"),
    ("ResourceClaimTemplate", "/spec/spec/devices/config"),
    ("DeviceClass", "/spec/config"),
];

/// Parameters of our driver in an object.
#[derive(Clone, PartialEq, Debug)]
pub struct Parameters<'a> {
    /// The object, for people: `ResourceClaim default/nics`.
    pub object: String,
    /// The field that holds them; empty where the object is the parameters.
    pub path: String,
    /// They themselves; null where there are none.
    pub value: &'a Value,
}

impl Parameters<'_> {
    /// Everything that is wrong with them, each with its path from the object's root.
    pub fn errors(&self) -> Vec<FieldError> {
        let errors = NetworkConfig::parse(&self.value.to_string())
            .err()
            .unwrap_or_default();
        let from_root = |error: FieldError| FieldError {
            path: joined(&self.path, &error.path),
            ..error
        };
        errors.into_iter().map(from_root).collect()
    }
}

/// The parameters of `driver` in an object: those of a claim, of a template or of a class, or the object
/// itself where it is a [`NetworkConfig`] (dranet's has no kind). There are none in other objects.
pub fn parameters<'a>(document: &'a Value, driver: &str) -> Vec<Parameters<'a>> {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or_default();
    let object = match (text("/metadata/namespace"), text("/metadata/name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => KIND.to_owned(),
    };
    // Dranet's form has no kind; that of others is none of our business.
    if kind == KIND || (kind.is_empty() && document.is_object()) {
        let path = String::new();
        return vec![Parameters {
            object,
            path,
            value: document,
        }];
    }
    let resource = text("/apiVersion").is_some_and(|v| v.starts_with("resource.k8s.io/"));
    let place = PLACES.iter().find(|(known, _)| resource && *known == kind);
    let Some((_, pointer)) = place else {
        return Vec::new();
    };
    let list = document.pointer(pointer).and_then(Value::as_array);
    let of_driver = |(index, entry): (usize, &'a Value)| {
        let opaque = entry.get("opaque")?;
        (opaque.get("driver")?.as_str()? == driver).then_some(())?;
        Some(Parameters {
            object: object.clone(),
            path: format!(
                "{}[{index}].opaque.parameters",
                pointer[1..].replace('/', ".")
            ),
            value: opaque.get("parameters").unwrap_or(&Value::Null),
        })
    };
    let entries = list.into_iter().flatten().enumerate();
    entries.filter_map(of_driver).collect()
}

pub(crate) fn joined(outer: &str, inner: &str) -> String {
    match (outer.is_empty(), inner.is_empty()) {
        (false, false) => format!("{outer}.{inner}"),
        _ => format!("{outer}{inner}"),
    }
}
