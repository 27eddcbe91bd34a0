//! `NetworkProfile` of `forebay.dev/v1alpha1`: which nodes an operator means, and what their pods get.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Amount, MACHINE_LABEL, NodeFacts, Profile, Request, Source};
use crate::config::objects::joined;
use crate::config::{FieldError, NetworkConfig};

/// Requests of a claim at most, as Kubernetes has it.
const REQUESTS_MAX: usize = 32;
/// Selectors of a request at most, as Kubernetes has it.
const SELECTORS_MAX: usize = 32;
/// Bytes of its name: it is a label's value.
const NAME_BYTES_MAX: usize = 63;

/// A profile that an operator wrote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkProfile {
    /// Its name.
    pub name: String,
    /// Labels that a node has to have, all of them.
    pub node_labels: BTreeMap<String, String>,
    /// Types of machines, one of which a node has to have; empty for any.
    pub machine_types: BTreeSet<String>,
    /// What a pod gets.
    pub requests: Vec<Request>,
    /// Parameters for all requests.
    pub parameters: Option<Value>,
}

impl NetworkProfile {
    /// Reads the object; `selector` says what is wrong with an expression of CEL.
    ///
    /// # Errors
    /// Everything that is wrong with it, with paths from the object's root.
    pub fn parse(
        object: &Value,
        selector: &dyn Fn(&str) -> Result<(), String>,
    ) -> Result<NetworkProfile, Vec<FieldError>> {
        let mut errors = Vec::new();
        let mut note = |path: String, message: String| errors.push(FieldError { path, message });
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if name.len() > NAME_BYTES_MAX {
            let message = format!("is a label's value, too: {NAME_BYTES_MAX} bytes at most");
            note("metadata.name".to_owned(), message);
        }
        let spec = &object["spec"];
        let labels = spec["nodeSelector"].as_object().into_iter().flatten();
        let labels = labels.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())));
        let node_labels: BTreeMap<String, String> = labels.collect();
        let machines = spec["machineTypes"].as_array().into_iter().flatten();
        let machine_types: BTreeSet<String> = machines
            .filter_map(|m| Some(m.as_str()?.to_owned()))
            .collect();
        if node_labels.is_empty() && machine_types.is_empty() {
            let message = "says of no node: give nodeSelector, machineTypes, or both";
            note("spec".to_owned(), message.to_owned());
        }
        let requests = requests(&spec["requests"], selector, &mut note);
        let parameters = Some(&spec["parameters"]).filter(|value| !value.is_null());
        if let Some(parameters) = parameters {
            let wrong = NetworkConfig::parse(&parameters.to_string()).err();
            for error in wrong.unwrap_or_default() {
                note(joined("spec.parameters", &error.path), error.message);
            }
        }
        if errors.is_empty() {
            Ok(NetworkProfile {
                name: name.to_owned(),
                node_labels,
                machine_types,
                requests,
                parameters: parameters.cloned(),
            })
        } else {
            Err(errors)
        }
    }

    /// Whether it is meant for a node.
    pub(super) fn is_for(&self, node: &NodeFacts) -> bool {
        let has = |(name, value): (&String, &String)| node.labels.get(name) == Some(value);
        let machine = node.labels.get(MACHINE_LABEL);
        self.node_labels.iter().all(has)
            && (self.machine_types.is_empty()
                || machine.is_some_and(|machine| self.machine_types.contains(machine)))
    }

    /// It as a profile of one of its nodes, or of any where nothing is known of one.
    pub fn profile(&self, node: &NodeFacts) -> Profile {
        Profile {
            name: self.name.clone(),
            source: Source::Object,
            requests: self.requests.clone(),
            parameters: self.parameters.clone(),
            // What it asks for is what a pod gets, however many accelerators that has.
            accelerators: 0,
            nics: node.devices.len() as u64,
        }
    }
}

fn requests(
    list: &Value,
    selector: &dyn Fn(&str) -> Result<(), String>,
    note: &mut dyn FnMut(String, String),
) -> Vec<Request> {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    if list.is_empty() || list.len() > REQUESTS_MAX {
        let message = format!("has to have 1 to {REQUESTS_MAX} requests");
        note("spec.requests".to_owned(), message);
    }
    let mut names = BTreeSet::new();
    let mut requests = Vec::new();
    for (index, request) in list.iter().take(REQUESTS_MAX).enumerate() {
        let at = |field: &str| format!("spec.requests[{index}].{field}");
        let text = |field: &str| request[field].as_str().unwrap_or_default().to_owned();
        let (name, class) = (text("name"), text("deviceClassName"));
        if name.is_empty() || !names.insert(name.clone()) {
            note(at("name"), "has to be there, and once only".to_owned());
        }
        if class.is_empty() {
            let message = "has to name a DeviceClass, such as mrdma.google.com";
            note(at("deviceClassName"), message.to_owned());
        }
        let count = request["count"].as_u64();
        let amount = match (request["allocationMode"].as_str(), count) {
            (None | Some("All"), None) => Amount::All,
            (Some("ExactCount"), count) => Amount::Exactly(count.unwrap_or(1).max(1)),
            (None, Some(count)) => Amount::Exactly(count.max(1)),
            (Some("All"), Some(_)) => {
                note(
                    at("count"),
                    "is of allocationMode ExactCount only".to_owned(),
                );
                Amount::All
            }
            (Some(other), _) => {
                let message = format!("there are All and ExactCount, not {other}");
                note(at("allocationMode"), message);
                Amount::All
            }
        };
        let expressions = request["selectors"].as_array().into_iter().flatten();
        let mut selectors = Vec::new();
        for (number, expression) in expressions.take(SELECTORS_MAX).enumerate() {
            let text = expression.as_str().unwrap_or_default();
            match selector(text) {
                Ok(()) => selectors.push(text.to_owned()),
                Err(why) => note(at(&format!("selectors[{number}]")), why),
            }
        }
        requests.push(Request {
            name,
            class,
            amount,
            selectors,
        });
    }
    requests
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(spec: &Value) -> Result<NetworkProfile, Vec<String>> {
        let object = json!({ "metadata": { "name": "fast" }, "spec": spec });
        let selector = |text: &str| match text {
            "true" => Ok(()),
            _ => Err("no expression".to_owned()),
        };
        let told = |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect();
        NetworkProfile::parse(&object, &selector).map_err(told)
    }

    #[test]
    fn an_object_is_for_the_nodes_that_have_its_labels_and_types() {
        let profile = parse(&json!({
            "nodeSelector": { "pool": "b200" }, "machineTypes": ["x", "y"],
            "requests": [
                { "name": "fast", "deviceClassName": "mrdma.google.com", "selectors": ["true"] },
                { "name": "slow", "deviceClassName": "netdev.google.com", "count": 2 },
            ],
            "parameters": { "interface": { "mtu": 8896 } },
        }))
        .unwrap();
        let amounts: Vec<Amount> = profile.requests.iter().map(|r| r.amount).collect();
        assert_eq!(amounts, [Amount::All, Amount::Exactly(2)]);
        let node = |pool: &str, machine: &str| NodeFacts {
            labels: [("pool", pool), (MACHINE_LABEL, machine)]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            ..NodeFacts::default()
        };
        assert!(profile.is_for(&node("b200", "y")));
        assert!(!profile.is_for(&node("b200", "z")));
        assert!(!profile.is_for(&node("other", "x")));
    }

    #[test]
    fn everything_that_is_wrong_is_told_with_its_path() {
        let errors = parse(&json!({
            "requests": [
                { "name": "a", "deviceClassName": "c", "selectors": ["true", "("] },
                { "name": "a", "allocationMode": "All", "count": 1 },
            ],
            "parameters": { "interface": { "nme": "x" } },
        }))
        .unwrap_err();
        let expected = [
            "spec: says of no node",
            "spec.requests[0].selectors[1]: no expression",
            "spec.requests[1].name: has to be there",
            "spec.requests[1].deviceClassName: has to name",
            "spec.requests[1].count: is of",
            "spec.parameters.interface.nme: no such field",
        ];
        assert_eq!(errors.len(), expected.len(), "{errors:?}");
        for (error, expected) in errors.iter().zip(expected) {
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
