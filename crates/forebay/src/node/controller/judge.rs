//! What the webhooks answer: parameters of our driver are held against what a node would accept, and pods that
//! ask for the NICs of their node get a claim, or have those that they bring named in their containers.

use forebay_cluster::kubernetes::admission::{Answer, Cause, Judge, Operation, Request, Why};
use forebay_cluster::kubernetes::device::Asked;
use forebay_cluster::kubernetes::profiles::Profiles;
use forebay_fabric::config::{FieldError, objects};
use forebay_fabric::profile::NetworkProfile;
use forebay_fabric::profile::inject;
use forebay_fabric::unnamed;
use forebay_k8s_cel::Program;
use serde_json::Value;

/// Where objects are held against what a node would accept.
pub(super) const VALIDATE: &str = "/validate";
/// Where pods get claims.
pub(super) const INJECT: &str = "/inject";
/// Where the claims of pods are named in their containers.
pub(super) const NAME: &str = "/name";
/// Errors that a sentence names; the causes beside it have all.
const TOLD_MAX: usize = 8;

/// Answers for one driver.
pub(super) struct Desk {
    pub(super) driver: String,
    pub(super) profiles: Profiles,
    pub(super) claims: Asked,
}

impl Judge for Desk {
    async fn judge(&self, path: &str, request: Request) -> Option<Answer> {
        match path {
            VALIDATE => Some(validated(&request, &self.driver)),
            INJECT => Some(self.injected(&request).await),
            NAME => Some(self.named(&request).await),
            _ => None,
        }
    }
}

/// What is wrong with an expression of CEL for devices, with its place.
pub(crate) fn selector(text: &str) -> Result<(), String> {
    Program::compile(text)
        .map(drop)
        .map_err(|error| error.to_string())
}

fn wrong_with(object: &Value, driver: &str) -> Vec<FieldError> {
    if object["kind"] == "NetworkProfile" {
        return NetworkProfile::parse(object, &selector)
            .err()
            .unwrap_or_default();
    }
    let parameters = objects::parameters(object, driver);
    parameters
        .iter()
        .flat_map(objects::Parameters::errors)
        .collect()
}

fn validated(request: &Request, driver: &str) -> Answer {
    if matches!(request.operation, Operation::Delete | Operation::Connect) {
        return Answer::allow();
    }
    let errors = wrong_with(&request.object, driver);
    if errors.is_empty() {
        return Answer::allow();
    }
    let mut message: Vec<String> = errors
        .iter()
        .take(TOLD_MAX)
        .map(ToString::to_string)
        .collect();
    if errors.len() > TOLD_MAX {
        message.push(format!("and {} more", errors.len() - TOLD_MAX));
    }
    let message = message.join("; ");
    // An object from before this webhook can still be labelled, or freed of a finalizer.
    if request.operation == Operation::Update && wrong_with(&request.old_object, driver) == errors {
        let warnings = vec![format!("parameters of {driver}: {message}")];
        return Answer::Allow { warnings };
    }
    let cause = |error: FieldError| Cause {
        field: error.path,
        message: error.message,
    };
    Answer::Deny {
        why: Why::Invalid,
        message: format!("parameters of {driver}: {message}"),
        causes: errors.into_iter().map(cause).collect(),
    }
}

impl Desk {
    async fn injected(&self, request: &Request) -> Answer {
        let Some(asked) = inject::asked(&request.object) else {
            return Answer::allow();
        };
        let known = self.profiles.known();
        if !known.is_complete() {
            return unavailable("the nodes of the cluster are not known yet".to_owned());
        }
        let injection = match known.inject(&request.object, (asked, &self.driver)) {
            Ok(Some(injection)) => injection,
            Ok(None) => return Answer::allow(),
            Err(why) => {
                let annotation = inject::ANNOTATION;
                return Answer::invalid(format!("annotation {annotation}: {asked}: {why}"));
            }
        };
        if !request.dry_run
            && let Err(why) = self.profiles.template(&request.namespace, &injection).await
        {
            return unavailable(why);
        }
        let operations = injection.operations;
        Answer::Patch { operations }
    }
}

impl Desk {
    /// A claim that cannot be looked up is left as it is: the driver's guard does not depend on it.
    async fn named(&self, request: &Request) -> Answer {
        let claims = unnamed::unnamed(&request.object);
        let (mut names, mut warnings) = (Vec::new(), Vec::new());
        for claim in &claims {
            let namespace = &request.namespace;
            match self.claims.is_of(namespace, claim, &self.driver).await {
                Ok(true) => names.push(claim.name.as_str()),
                Ok(false) => {}
                Err(why) => warnings.push(format!(
                    "claim {} is named in no container, and whether it is for NICs cannot be told: {why}; name it in \
                     resources.claims of those that need it",
                    claim.name
                )),
            }
        }
        match names.is_empty() {
            true => Answer::Allow { warnings },
            false => Answer::Patch {
                operations: unnamed::operations(&request.object, &names),
            },
        }
    }
}

fn unavailable(message: String) -> Answer {
    Answer::Deny {
        why: Why::Unavailable,
        message,
        causes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(parameters: &Value) -> Value {
        json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": { "name": "nics" },
            "spec": { "devices": { "config": [
                { "opaque": { "driver": "other", "parameters": { "x": 1 } } },
                { "opaque": { "driver": "dra.net", "parameters": parameters } },
            ] } },
        })
    }

    fn ask(operation: Operation, object: Value, old_object: Value) -> Answer {
        let request = Request {
            uid: "1".to_owned(),
            operation,
            namespace: "ai".to_owned(),
            object,
            old_object,
            dry_run: false,
        };
        validated(&request, "dra.net")
    }

    #[test]
    fn a_typo_is_refused_with_the_path_of_its_field() {
        let object = claim(&json!({ "interface": { "nme": "x" } }));
        let Answer::Deny {
            why: Why::Invalid,
            message,
            causes,
        } = ask(Operation::Create, object, Value::Null)
        else {
            panic!("it is taken");
        };
        let field = "spec.devices.config[1].opaque.parameters.interface.nme";
        assert_eq!(causes[0].field, field);
        assert!(
            message.contains(field) && message.contains("`name` is the nearest"),
            "{message}"
        );
    }

    #[test]
    fn what_was_wrong_before_may_be_changed_elsewhere_but_not_made_worse() {
        let old = claim(&json!({ "interface": { "nme": "x" } }));
        let mut same = old.clone();
        same["metadata"]["finalizers"] = json!([]);
        let answer = ask(Operation::Update, same, old.clone());
        assert!(matches!(answer, Answer::Allow { warnings } if warnings.len() == 1));
        let worse = claim(&json!({ "interface": { "nme": "x", "mtu": 1 } }));
        assert!(matches!(
            ask(Operation::Update, worse, old.clone()),
            Answer::Deny { .. }
        ));
        let good = claim(&json!({ "interface": { "name": "x" } }));
        assert_eq!(ask(Operation::Update, good, old.clone()), Answer::allow());
        assert_eq!(ask(Operation::Delete, Value::Null, old), Answer::allow());
    }

    #[test]
    fn a_profile_with_a_selector_that_is_none_is_refused_with_its_place() {
        let object = json!({
            "kind": "NetworkProfile", "metadata": { "name": "fast" },
            "spec": { "nodeSelector": { "a": "b" }, "requests": [
                { "name": "nic", "deviceClassName": "c", "selectors": ["device.atributes == 1"] },
            ] },
        });
        let Answer::Deny { message, .. } = ask(Operation::Create, object, Value::Null) else {
            panic!("it is taken");
        };
        assert!(
            message.contains("spec.requests[0].selectors[0]"),
            "{message}"
        );
        assert!(message.contains("<input>:1:7"), "{message}");
    }
}
