//! `AdmissionReview` of `admission.k8s.io/v1`: what is asked, and what is answered.

use serde::Deserialize;
use serde_json::{Value, json};

const API_VERSION: &str = "admission.k8s.io/v1";

/// What is to be done to the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// It is new.
    Create,
    /// It is changed.
    Update,
    /// It goes.
    Delete,
    /// Somebody speaks to it (`exec`, …).
    Connect,
}

/// What the API server asks.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Which question.
    pub uid: String,
    /// What is to be done.
    pub operation: Operation,
    /// The object's namespace; empty for what has none. An object that is new may not have it itself.
    #[serde(default)]
    pub namespace: String,
    /// The object as it would be; null where it goes.
    #[serde(default)]
    pub object: Value,
    /// The object as it was; null where it is new.
    #[serde(default)]
    pub old_object: Value,
    /// Whether nothing may be changed by this question.
    #[serde(default)]
    pub dry_run: bool,
}

/// Something that is wrong with one field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cause {
    /// The field, from the object's root.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// Whose fault a refusal is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// That of who wrote the object.
    Invalid,
    /// Nobody's: another try may help.
    Unavailable,
}

/// What is answered.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// The object is taken as it is, perhaps with something to be told to who wrote it.
    Allow {
        /// Sentences.
        warnings: Vec<String>,
    },
    /// It is taken with changes.
    Patch {
        /// Operations of RFC 6902.
        operations: Vec<Value>,
    },
    /// It is not taken.
    Deny {
        /// Whose fault it is.
        why: Why,
        /// The sentence that people see.
        message: String,
        /// Each field that is wrong.
        causes: Vec<Cause>,
    },
}

impl Answer {
    /// Nothing is wrong.
    #[must_use]
    pub fn allow() -> Answer {
        Answer::Allow {
            warnings: Vec::new(),
        }
    }

    /// The object is wrong, and no field of it in particular.
    #[must_use]
    pub fn invalid(message: String) -> Answer {
        let causes = Vec::new();
        Answer::Deny {
            why: Why::Invalid,
            message,
            causes,
        }
    }

    /// Its label in metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Answer::Allow { .. } => "allowed",
            Answer::Patch { .. } => "patched",
            Answer::Deny {
                why: Why::Invalid, ..
            } => "denied",
            Answer::Deny {
                why: Why::Unavailable,
                ..
            } => "failed",
        }
    }
}

/// Reads a question.
pub(super) fn read(body: &[u8]) -> Result<Request, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Review {
        api_version: String,
        request: Request,
    }
    let review: Review = serde_json::from_slice(body)
        .map_err(|error| format!("it is no AdmissionReview with a request: {error}"))?;
    match review.api_version == API_VERSION {
        true => Ok(review.request),
        false => Err(format!(
            "its version is {}, and {API_VERSION} is spoken here",
            review.api_version
        )),
    }
}

/// Writes an answer to the question `uid`.
pub(super) fn write(uid: &str, answer: &Answer) -> Vec<u8> {
    let mut response = json!({ "uid": uid, "allowed": !matches!(answer, Answer::Deny { .. }) });
    match answer {
        Answer::Allow { warnings } if warnings.is_empty() => {}
        Answer::Allow { warnings } => response["warnings"] = json!(warnings),
        Answer::Patch { operations } => {
            let text = Value::from(operations.clone()).to_string();
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(super::certificate::base64(text.as_bytes()));
        }
        Answer::Deny {
            why,
            message,
            causes,
        } => {
            let (code, reason) = match why {
                Why::Invalid => (422, "Invalid"),
                Why::Unavailable => (503, "ServiceUnavailable"),
            };
            let causes: Vec<Value> = causes
                .iter()
                .map(|Cause { field, message }| {
                    json!({ "reason": "FieldValueInvalid", "field": field, "message": message })
                })
                .collect();
            response["status"] = json!({
                "status": "Failure", "code": code, "reason": reason, "message": message,
                "details": { "causes": causes },
            });
        }
    }
    let review =
        json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response });
    review.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_and_a_refusal_names_its_fields() {
        let body = json!({
            "apiVersion": API_VERSION, "kind": "AdmissionReview",
            "request": {
                "uid": "q-1", "operation": "CREATE", "namespace": "ai", "dryRun": true,
                "object": { "kind": "ResourceClaim" }, "oldObject": null, "options": {},
            },
        });
        let request = read(body.to_string().as_bytes()).unwrap();
        assert_eq!(request.operation, Operation::Create);
        assert_eq!(request.object["kind"], "ResourceClaim");
        assert!(request.dry_run && request.old_object.is_null());
        let deny = Answer::Deny {
            why: Why::Invalid,
            message: "wrong".to_owned(),
            causes: vec![Cause {
                field: "spec.x".to_owned(),
                message: "no such field".to_owned(),
            }],
        };
        let written: Value = serde_json::from_slice(&write("q-1", &deny)).unwrap();
        let response = &written["response"];
        assert_eq!(
            (&response["uid"], &response["allowed"]),
            (&json!("q-1"), &json!(false))
        );
        assert_eq!(response["status"]["code"], 422);
        assert_eq!(
            response["status"]["details"]["causes"][0]["field"],
            "spec.x"
        );
    }

    #[test]
    fn what_is_no_question_is_refused_with_a_sentence() {
        for (body, why) in [
            ("", "no AdmissionReview"),
            ("{}", "no AdmissionReview"),
            (
                r#"{"apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"1","operation":"CREATE"}}"#,
                "v1beta1",
            ),
            (
                r#"{"apiVersion":"admission.k8s.io/v1","request":{"uid":"1","operation":"SING"}}"#,
                "SING",
            ),
        ] {
            let error = read(body.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{body}: {error}");
        }
    }
}
