//! `status.devices` of claims: what became of each device, written by server-side apply and tried again until
//! it is written. What is to be said comes as a whole list, so nothing that is pending is lost with the
//! process: who comes back says it again, and what stands there already is not written twice.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_fabric::claim::{ClaimRef, ClaimStatus, DeviceStatus};
use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::kubernetes::backoff::{Backoff, random};
use crate::kubernetes::server::{Failure, Server, Write, json as parse};

use super::{API, DeviceMetrics, RETRY_FIRST, RETRY_LONGEST, claims};

/// Shortest time between two rounds: pods come in bursts.
const PACE: Duration = Duration::from_millis(200);

/// Writes statuses of claims.
#[derive(Debug)]
pub struct Statuses {
    server: Server,
    driver: String,
    metrics: DeviceMetrics,
    /// What was written last, by UID.
    written: BTreeMap<String, ClaimStatus>,
}

/// What became of one.
enum Outcome {
    Done,
    /// The claim is not there any more, or has not these devices: there is nobody to tell.
    Moot(String),
    /// It is tried again.
    Failed(String),
}

impl Statuses {
    /// Statuses of devices of `driver`.
    #[must_use]
    pub fn new(server: Server, driver: &str, metrics: DeviceMetrics) -> Statuses {
        Statuses {
            server,
            driver: driver.to_owned(),
            metrics,
            written: BTreeMap::new(),
        }
    }

    /// Keeps the claims' statuses as `said` has them, for ever.
    pub async fn run(mut self, mut said: watch::Receiver<Vec<ClaimStatus>>) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        loop {
            let wanted = said.borrow_and_update().clone();
            self.written
                .retain(|uid, _| wanted.iter().any(|status| status.claim.uid == *uid));
            let mut failed = false;
            for status in wanted {
                if self.written.get(&status.claim.uid) == Some(&status) {
                    continue;
                }
                let outcome = self.one(&status).await;
                self.metrics.status(matches!(outcome, Outcome::Done));
                match outcome {
                    Outcome::Done => {}
                    Outcome::Moot(why) => {
                        tracing::info!("claim {}: its status is not written: {why}", status.claim);
                    }
                    Outcome::Failed(why) => {
                        tracing::warn!("claim {}: its status waits: {why}", status.claim);
                        failed = true;
                        continue;
                    }
                }
                self.written.insert(status.claim.uid.clone(), status);
            }
            if failed {
                sleep(backoff.wait(random())).await;
                continue;
            }
            backoff.reset();
            sleep(PACE).await;
            if said.changed().await.is_err() {
                return;
            }
        }
    }

    async fn one(&self, status: &ClaimStatus) -> Outcome {
        let path = claims::path(&status.claim);
        let read = async {
            let bytes = self.server.get(&path).await?;
            parse::<Value>(&bytes)
        };
        let object = match read.await {
            Ok(object) => object,
            Err(error) => return outcome(error),
        };
        if object["metadata"]["uid"] != status.claim.uid {
            return Outcome::Moot("the claim of this name is another one".to_owned());
        }
        let devices = entries(status, &self.driver, &object["status"]["devices"], &time());
        if stands(&object["status"]["devices"], &devices) {
            return Outcome::Done;
        }
        let document = document(&status.claim, devices);
        let path = format!("{path}/status");
        match self.server.write(Write::Apply, &path, &document).await {
            Ok(_) => Outcome::Done,
            Err(error) => outcome(error),
        }
    }
}

fn outcome(error: Failure) -> Outcome {
    match error {
        // Gone; another one (the UID is sent along); deallocated meanwhile.
        Failure::Refused {
            status: StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY,
            why,
        } => Outcome::Moot(why),
        other => Outcome::Failed(other.to_string()),
    }
}

fn document(claim: &ClaimRef, devices: Vec<Value>) -> Value {
    json!({
        "apiVersion": API.trim_start_matches("/apis/"),
        "kind": "ResourceClaim",
        "metadata": { "name": claim.name, "namespace": claim.namespace, "uid": claim.uid },
        "status": { "devices": devices },
    })
}

/// The entries of `status`; what stands there with the same word keeps the time of its last change.
fn entries(status: &ClaimStatus, driver: &str, there: &Value, now: &str) -> Vec<Value> {
    let there = there.as_array().map_or(&[][..], Vec::as_slice);
    let entry = |device: &DeviceStatus| {
        let same = |old: &&Value| {
            old["driver"] == driver
                && old["pool"] == device.pool
                && old["device"] == device.device
                && old["shareID"].as_str() == device.share_id.as_deref()
        };
        let old = there.iter().find(same);
        let since = |kind: &str, holds: &str| {
            let conditions = old?["conditions"].as_array()?;
            let same = |c: &&Value| c["type"] == kind && c["status"] == holds;
            conditions.iter().find(same)?["lastTransitionTime"].as_str()
        };
        let conditions = device.conditions.iter().map(|condition| {
            let holds = if condition.holds { "True" } else { "False" };
            json!({
                "type": condition.kind,
                "status": holds,
                "reason": condition.reason,
                "message": condition.message,
                "lastTransitionTime": since(condition.kind, holds).unwrap_or(now),
            })
        });
        let mut entry = json!({
            "driver": driver,
            "pool": device.pool,
            "device": device.device,
            "conditions": conditions.collect::<Vec<_>>(),
        });
        if let Some(share) = &device.share_id {
            entry["shareID"] = json!(share);
        }
        if let Some(network) = &device.network {
            entry["networkData"] = network.json();
        }
        if !device.place.is_empty() {
            let place = device.place.iter();
            let place: Map<String, Value> = place
                .map(|(k, v)| (k.clone(), Value::from(v.as_str())))
                .collect();
            entry["data"] = Value::Object(place);
        }
        entry
    };
    status.devices.iter().map(entry).collect()
}

/// Whether all of `entries` is there already.
fn stands(there: &Value, entries: &[Value]) -> bool {
    let there = there.as_array().map_or(&[][..], Vec::as_slice);
    entries.iter().all(|entry| there.contains(entry))
}

/// The time of day as conditions and events have it.
pub(in crate::kubernetes) fn time() -> String {
    let now = jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use forebay_fabric::claim::{Condition, NetworkData};

    use super::*;

    #[test]
    fn what_holds_as_before_keeps_its_time_and_is_not_written_again() {
        let status = |holds| ClaimStatus {
            claim: ClaimRef {
                namespace: "ai".into(),
                name: "nics".into(),
                uid: "u-1".into(),
            },
            devices: vec![DeviceStatus {
                pool: "n1".into(),
                device: "rail0".into(),
                share_id: None,
                conditions: vec![Condition {
                    kind: "Ready",
                    holds,
                    reason: "Attached",
                    message: String::new(),
                }],
                network: Some(NetworkData {
                    interface: "net0".into(),
                    mac: "02:00:00:00:00:01".into(),
                    ips: vec!["10.0.0.5/24".into()],
                }),
                place: vec![("rail".into(), "0".into())],
            }],
        };
        let first = entries(&status(true), "dra.net", &Value::Null, "then");
        assert_eq!(
            first,
            [json!({
                "driver": "dra.net", "pool": "n1", "device": "rail0",
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "Attached", "message": "",
                    "lastTransitionTime": "then",
                }],
                "networkData": {
                    "interfaceName": "net0",
                    "hardwareAddress": "02:00:00:00:00:01",
                    "ips": ["10.0.0.5/24"],
                },
                "data": { "rail": "0" },
            })]
        );
        let there = Value::from(first);
        let again = entries(&status(true), "dra.net", &there, "now");
        assert!(stands(&there, &again));
        let changed = entries(&status(false), "dra.net", &there, "now");
        assert_eq!(changed[0]["conditions"][0]["lastTransitionTime"], "now");
        assert!(!stands(&there, &changed));
    }
}
