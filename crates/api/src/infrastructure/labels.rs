//! Names and labels of what is made for a Gateway, and whose a thing is by its labels.

use forebay_model::ObjectName;
use serde_json::Value;

use crate::settings::{GATEWAY_NAME_LABEL, GATEWAY_NAMESPACE_LABEL, MANAGED_BY_LABEL};

/// Name of the Gateway.
pub(super) const GATEWAY_NAME: &str = GATEWAY_NAME_LABEL;
/// Namespace of the Gateway.
pub(super) const GATEWAY_NAMESPACE: &str = GATEWAY_NAMESPACE_LABEL;
/// Namespace of the controller that made a thing: it leaves those of others alone.
pub(super) const CONTROLLER: &str = "forebay.dev/controller-namespace";
/// Who makes things.
pub(super) const MANAGED_BY: (&str, &str) = (MANAGED_BY_LABEL, "forebay");
/// How the names of what is made begin.
const PREFIX: &str = "gw-";
/// Characters of a label's value and of a Service's name.
const NAME_CHARS_MAX: usize = 63;

/// Query of everything that the controller in `namespace` has made, as a label selector.
#[must_use]
pub fn selector(namespace: &str) -> String {
    let (key, value) = MANAGED_BY;
    format!("{key}={value},{CONTROLLER}={namespace},{GATEWAY_NAME}")
}

/// A Gateway's name as the value of a label, which is shorter than names may be.
#[must_use]
pub fn label_value(name: &str) -> String {
    if name.len() <= NAME_CHARS_MAX {
        return name.to_owned();
    }
    let hash = hash(name);
    let kept = &name[..NAME_CHARS_MAX - hash.len() - 1];
    format!("{}-{hash}", kept.trim_end_matches(['-', '.']))
}

/// Whether an object has the labels of something that a controller of ours has made.
#[must_use]
pub fn is_made(object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    labels[MANAGED_BY.0] == MANAGED_BY.1 && !labels[CONTROLLER].is_null()
}

/// Whether a name is of the form that we give to what we make.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The Gateway that a thing was made for, as its labels have it.
pub(super) fn gateway_of(object: &Value, controller: &str) -> Option<ObjectName> {
    let labels = object.pointer("/metadata/labels")?;
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let ours = label(MANAGED_BY.0) == Some(MANAGED_BY.1) && label(CONTROLLER) == Some(controller);
    let name = ObjectName::new(label(GATEWAY_NAMESPACE)?, label(GATEWAY_NAME)?);
    ours.then_some(name)
}

/// A name that is that of these two alone, and fit for a Service: letters, digits and dashes, begun
/// by a letter. People see what it is of; the hash tells apart what looks alike.
pub(super) fn name_of(first: &str, second: &str) -> String {
    // Neither may hold a slash, so no two pairs are joined to the same text.
    let hash = hash(&format!("{first}/{second}"));
    let readable = format!("{first}-{second}").replace('.', "-");
    let room = NAME_CHARS_MAX - PREFIX.len() - 1 - hash.len();
    let readable = &readable[..readable.len().min(room)];
    format!("{PREFIX}{}-{hash}", readable.trim_end_matches('-'))
}

/// Ten characters of the FNV-1a hash of 64 bits, which is the same in every version and on every
/// machine. Names that collide on purpose gain nothing: what another Gateway has is not touched.
fn hash(text: &str) -> String {
    format!("{:010x}", fnv(text.as_bytes()) & 0xff_ffff_ffff)
}

pub(super) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fit_for_services_and_tell_gateways_apart() {
        let pairs = [
            ("a", "b-c"),
            ("a-b", "c"),
            ("9", "web.example.com"),
            ("long", &"x".repeat(253)),
            ("long", &"x".repeat(252)),
            ("trailing", "dash-"),
        ];
        let mut names: Vec<String> = pairs.iter().map(|(a, b)| name_of(a, b)).collect();
        for name in &names {
            assert!(name.len() <= 63 && name.starts_with("gw-"), "{name}");
            let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(name.chars().all(fit) && !name.contains("--"), "{name}");
        }
        assert_eq!(names[0], "gw-a-b-c-bc4331d2a5");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), pairs.len());
    }

    #[test]
    fn a_label_takes_every_name() {
        assert_eq!(label_value("edge"), "edge");
        let exactly = "x".repeat(63);
        assert_eq!(label_value(&exactly), exactly);
        let [a, b] = [253, 252].map(|n| label_value(&"x".repeat(n)));
        assert!(a.len() == 63 && b.len() == 63 && a != b, "{a} {b}");
    }
}
