//! Claims that a pod has and that none of its containers names, as most manifests for NICs have it: a NIC is in the
//! network that all containers share. Only containers that name a claim get what its driver prepared for them (the
//! guard of `forebay-node`, character devices, metadata), so the claims of our driver are named in all of them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// What was named, for people.
pub const NAMED: &str = "forebay.dev/claims-named";
/// Where containers are.
const LISTS: [&str; 2] = ["containers", "initContainers"];

/// A claim that no container names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unnamed {
    /// The pod's name of it.
    pub name: String,
    /// What it is.
    pub of: Of,
}

/// What a pod has under a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Of {
    /// The ResourceClaim of this name.
    Claim(String),
    /// A claim of its own, from the ResourceClaimTemplate of this name.
    Template(String),
}

/// The claims of a pod that none of its containers names.
pub fn unnamed(pod: &Value) -> Vec<Unnamed> {
    let containers = LISTS.iter().flat_map(|list| items(&pod["spec"][list]));
    let named = containers.flat_map(|container| items(&container["resources"]["claims"]));
    let named: BTreeSet<&str> = named.filter_map(|claim| claim["name"].as_str()).collect();
    let claims = items(&pod["spec"]["resourceClaims"]).filter_map(|claim| {
        let text = |field: &str| claim[field].as_str().map(str::to_owned);
        let template = || text("resourceClaimTemplateName").map(Of::Template);
        let of = text("resourceClaimName").map(Of::Claim).or_else(template)?;
        let name = text("name")?;
        Some(Unnamed { name, of })
    });
    claims
        .filter(|claim| !named.contains(claim.name.as_str()))
        .collect()
}

/// The DeviceClasses of a claim's `spec`.
pub fn classes(spec: &Value) -> BTreeSet<String> {
    let requests = items(&spec["devices"]["requests"]);
    let ways = requests.flat_map(|request| {
        let several = items(&request["firstAvailable"]);
        several.chain(std::iter::once(&request["exactly"]))
    });
    let class = |way: &Value| way["deviceClassName"].as_str().map(str::to_owned);
    ways.filter_map(class).collect()
}

/// Whether a DeviceClass is for devices of `driver`: one of its selectors has the driver's name in it, as a text.
pub fn is_of(class: &Value, driver: &str) -> bool {
    let quoted = [format!("\"{driver}\""), format!("'{driver}'")];
    let selectors = items(&class["spec"]["selectors"]);
    let mut expressions = selectors.filter_map(|selector| selector["cel"]["expression"].as_str());
    expressions.any(|text| quoted.iter().any(|name| text.contains(name.as_str())))
}

/// Operations of RFC 6902 that name these claims in all containers of a pod.
pub fn operations(pod: &Value, names: &[&str]) -> Vec<Value> {
    let mut operations = Vec::new();
    let annotation = NAMED.replace('/', "~1");
    let told = names.join(",");
    match pod["metadata"]["annotations"].is_object() {
        true => add(
            &mut operations,
            format!("/metadata/annotations/{annotation}"),
            json!(told),
        ),
        false => add(
            &mut operations,
            "/metadata/annotations".to_owned(),
            json!({ NAMED: told }),
        ),
    }
    for list in LISTS {
        for (index, container) in items(&pod["spec"][list]).enumerate() {
            let path = format!("/spec/{list}/{index}/resources");
            name(container, &path, names, &mut operations);
        }
    }
    operations
}

/// Names claims in a container whose `resources` are at `path`.
pub(crate) fn name(container: &Value, path: &str, names: &[&str], operations: &mut Vec<Value>) {
    let resources = &container["resources"];
    let claims: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
    match (resources.is_object(), resources["claims"].is_array()) {
        (false, _) => add(operations, path.to_owned(), json!({ "claims": claims })),
        (true, false) => add(operations, format!("{path}/claims"), json!(claims)),
        (true, true) => {
            for claim in claims {
                add(operations, format!("{path}/claims/-"), claim);
            }
        }
    }
}

fn add(operations: &mut Vec<Value>, path: String, value: Value) {
    operations.push(json!({ "op": "add", "path": path, "value": value }));
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({ "metadata": {}, "spec": {
            "resourceClaims": [
                { "name": "nics", "resourceClaimTemplateName": "one-nic" },
                { "name": "gpus", "resourceClaimName": "all-gpus" },
                { "name": "rail", "resourceClaimName": "rail-3" },
            ],
            "initContainers": [{ "name": "wait" }],
            "containers": [
                { "name": "main", "resources": { "claims": [{ "name": "gpus" }] } },
                { "name": "logs", "resources": { "limits": { "cpu": "1" } } },
            ],
        } })
    }

    #[test]
    fn claims_that_no_container_names_are_found_and_named_in_all() {
        let found = unnamed(&pod());
        let one = |name: &str, of| Unnamed {
            name: name.into(),
            of,
        };
        let expected = [
            one("nics", Of::Template("one-nic".into())),
            one("rail", Of::Claim("rail-3".into())),
        ];
        assert_eq!(found, expected);
        let operations = operations(&pod(), &["nics", "rail"]);
        let both = json!([{ "name": "nics" }, { "name": "rail" }]);
        let expected = [
            ("/metadata/annotations", json!({ NAMED: "nics,rail" })),
            ("/spec/containers/0/resources/claims/-", both[0].clone()),
            ("/spec/containers/0/resources/claims/-", both[1].clone()),
            ("/spec/containers/1/resources/claims", both.clone()),
            (
                "/spec/initContainers/0/resources",
                json!({ "claims": both }),
            ),
        ];
        let expected =
            expected.map(|(path, value)| json!({ "op": "add", "path": path, "value": value }));
        assert_eq!(operations, expected);
    }

    #[test]
    fn a_class_is_of_the_driver_that_its_selectors_name() {
        let class = |expression: &str| json!({ "spec": { "selectors": [{ "cel": { "expression": expression } }] } });
        for (expression, expected) in [
            ("device.driver == \"dra.net\"", true),
            ("device.driver == 'dra.net' && true", true),
            ("device.attributes[\"dra.net\"].rdma", true),
            ("device.driver == \"gpu.nvidia.com\"", false),
            ("device.driver == \"other-dra.net\"", false),
        ] {
            assert_eq!(
                is_of(&class(expression), "dra.net"),
                expected,
                "{expression}"
            );
        }
        assert!(!is_of(&json!({ "spec": {} }), "dra.net"));
    }

    #[test]
    fn classes_are_those_of_every_way_to_fulfil_a_request() {
        let spec = json!({ "devices": { "requests": [
            { "name": "a", "exactly": { "deviceClassName": "one" } },
            { "name": "b", "firstAvailable": [
                { "name": "x", "deviceClassName": "two" }, { "name": "y", "deviceClassName": "three" },
            ] },
        ] } });
        let found: Vec<String> = classes(&spec).into_iter().collect();
        assert_eq!(found, ["one", "three", "two"]);
    }
}
