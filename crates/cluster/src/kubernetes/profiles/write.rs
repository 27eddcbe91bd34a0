//! What is written of profiles: labels of nodes, by server-side apply, so that a label that is no longer
//! ours to set goes unless somebody else set it too; and what became of NetworkProfiles.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_fabric::config::FieldError;
use forebay_fabric::profile::{self, Source};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use super::Known;
use crate::kubernetes::backoff::{Backoff, random};
use crate::kubernetes::device::{DeviceMetrics, Event, Events, Subject};
use crate::kubernetes::server::{Failure, Server, Write};

const API_VERSION: &str = "forebay.dev/v1alpha1";
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// Writes for ever, while `leads` says so.
pub(super) async fn keep(
    server: Server,
    mut known: watch::Receiver<Arc<Known>>,
    mut leads: watch::Receiver<bool>,
    (events, metrics): (Events, DeviceMetrics),
) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    let mut desk = Desk {
        server,
        events,
        metrics,
        labelled: BTreeMap::new(),
    };
    loop {
        let leading = *leads.borrow_and_update();
        let now = Arc::clone(&known.borrow_and_update());
        let mut failed = false;
        if leading && now.is_complete {
            match desk.round(&now).await {
                Ok(()) => backoff.reset(),
                Err(why) => {
                    tracing::warn!("network profiles wait: {why}");
                    failed = true;
                }
            }
        }
        if !leading {
            // Somebody else may change what is remembered here.
            desk.labelled.clear();
        }
        let again = async {
            match failed {
                true => sleep(backoff.wait(random())).await,
                false => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            () = again => Ok(()),
            changed = known.changed() => changed,
            changed = leads.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

struct Desk {
    server: Server,
    events: Events,
    metrics: DeviceMetrics,
    /// What was applied to a node, by its UID: our part of its labels cannot be told from others'.
    labelled: BTreeMap<String, BTreeMap<&'static str, String>>,
}

impl Desk {
    async fn round(&mut self, known: &Known) -> Result<(), String> {
        let mut wrong = Ok(());
        self.labelled
            .retain(|uid, _| known.uids.values().any(|own| own == uid));
        for (name, (facts, found)) in &known.nodes {
            let labels = profile::labels(facts, found.as_ref());
            let uid = known.uids.get(name).map_or("", String::as_str);
            let stands = labels.iter().all(|(k, v)| facts.labels.get(*k) == Some(v));
            let none_to_lose = match self.labelled.get(uid) {
                Some(before) => *before == labels,
                // From an earlier process: the label that nobody else sets tells of it.
                None => !labels.is_empty() || !facts.labels.contains_key(profile::LABEL),
            };
            if stands && none_to_lose {
                self.labelled.insert(uid.to_owned(), labels);
                continue;
            }
            match self.label(name, uid, &labels).await {
                Ok(()) => {
                    self.metrics.label(true);
                    if facts.labels.get(profile::LABEL) != labels.get(profile::LABEL) {
                        let what = match found.as_ref().filter(|_| !labels.is_empty()) {
                            Some(found) => {
                                format!("the network profile {}, from {}", found.name, found.source)
                            }
                            None => "no network profile any more".to_owned(),
                        };
                        tracing::info!("node {name} has {what}");
                        self.tell(("v1", "Node", name, uid), false, format!("it has {what}"));
                    }
                    self.labelled.insert(uid.to_owned(), labels);
                }
                // It is gone, or another one by now: the next look tells.
                Err(failure)
                    if failure.is(StatusCode::NOT_FOUND) || failure.is(StatusCode::CONFLICT) => {}
                Err(failure) => {
                    self.metrics.label(false);
                    let why = format!("its network profile cannot be written: {failure}");
                    self.tell(("v1", "Node", name, uid), true, why);
                    wrong = Err(format!("node {name} is not labelled: {failure}"));
                }
            }
        }
        for (name, standing) in &known.statuses {
            let profiles = known
                .nodes
                .values()
                .filter_map(|(_, profile)| profile.as_ref());
            let nodes = profiles.filter(|p| p.source == Source::Object && p.name == *name);
            let errors = &standing.wrong;
            let count = nodes.count();
            let status = status_of(standing.generation, &standing.status, errors, count);
            if let Some(status) = status {
                let path = format!("/apis/forebay.dev/v1alpha1/networkprofiles/{name}/status");
                let patch = json!({ "status": status });
                match self.server.write(Write::Merge, &path, &patch).await {
                    Ok(_) if errors.is_empty() => {}
                    Ok(_) => {
                        let own = (API_VERSION, "NetworkProfile", name.as_str(), &*standing.uid);
                        self.tell(own, true, all(errors));
                    }
                    Err(failure) if failure.is(StatusCode::NOT_FOUND) => {}
                    Err(failure) => {
                        wrong = Err(format!("NetworkProfile {name} has no status: {failure}"));
                    }
                }
            }
        }
        wrong
    }

    /// Tells people about an object of the cluster: version, kind, name, UID.
    fn tell(
        &self,
        (api_version, kind, name, uid): (&'static str, &'static str, &str, &str),
        warning: bool,
        message: String,
    ) {
        self.events.tell(Event {
            subject: Subject {
                api_version,
                kind,
                namespace: String::new(),
                name: name.to_owned(),
                uid: uid.to_owned(),
            },
            warning,
            reason: if warning {
                "NetworkProfileFailed"
            } else {
                "NetworkProfile"
            },
            message,
        });
    }

    async fn label(
        &self,
        name: &str,
        uid: &str,
        labels: &BTreeMap<&'static str, String>,
    ) -> Result<(), Failure> {
        let object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "uid": uid, "labels": labels },
        });
        let path = format!("/api/v1/nodes/{name}");
        self.server
            .write(Write::Apply, &path, &object)
            .await
            .map(drop)
    }
}

fn all(errors: &[FieldError]) -> String {
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    all.join("; ")
}

/// The status that a NetworkProfile is to have; none if it has it.
fn status_of(
    generation: i64,
    before: &Value,
    errors: &[FieldError],
    nodes: usize,
) -> Option<Value> {
    let (holds, reason, message) = match errors {
        [] => (
            "True",
            "Valid",
            "nodes of it are labelled with its name".to_owned(),
        ),
        errors => ("False", "Invalid", all(errors)),
    };
    let old = &before["conditions"][0];
    let same = old["status"] == holds
        && old["message"] == message.as_str()
        && old["observedGeneration"] == generation
        && before["nodes"] == nodes;
    if same {
        return None;
    }
    let time = match old["status"] == holds {
        true => old["lastTransitionTime"].clone(),
        false => json!(crate::kubernetes::device::time()),
    };
    Some(json!({
        "nodes": nodes,
        "conditions": [{
            "type": "Accepted", "status": holds, "reason": reason, "message": message,
            "observedGeneration": generation, "lastTransitionTime": time,
        }],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_written_once_and_keeps_the_time_of_its_condition() {
        let error = FieldError {
            path: "spec".to_owned(),
            message: "is wrong".to_owned(),
        };
        let first = status_of(1, &Value::Null, std::slice::from_ref(&error), 0).unwrap();
        assert_eq!(first["conditions"][0]["message"], "spec: is wrong");
        assert_eq!(status_of(1, &first, std::slice::from_ref(&error), 0), None);
        let later = status_of(2, &first, &[error], 0).unwrap();
        let time = |status: &Value| status["conditions"][0]["lastTransitionTime"].clone();
        assert_eq!(time(&later), time(&first));
        let valid = status_of(3, &later, &[], 2).unwrap();
        assert_eq!(
            (&valid["nodes"], &valid["conditions"][0]["status"]),
            (&json!(2), &json!("True"))
        );
    }
}
