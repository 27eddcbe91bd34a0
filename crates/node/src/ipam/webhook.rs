//! A server of the operator's that gives addresses and whatever else a profile has, in the protocol that dranet has
//! for its profile providers: `POST /GetProfileConfig` for each device when a claim is prepared, and `POST
//! /ReleaseProfileConfig` when it is given back. Both may come again, and name the claim's UID.

use forebay_fabric::claim::{AllocatedClaim, DeviceConfig};
use forebay_fabric::config::NetworkConfig;
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

use super::{Ask, Profile};
use crate::cloud::http::Http;
use crate::cloud::{Metadata as _, Question};

/// Bytes of a server's words that are repeated.
const WORDS_MAX: usize = 512;

/// The server.
#[derive(Debug)]
pub struct Profiles {
    service: Http,
    runtime: Handle,
}

impl Profiles {
    /// One at an address, asked from threads that may block, on `runtime`.
    pub fn new(service: Http, runtime: Handle) -> Profiles {
        Profiles { service, runtime }
    }

    /// What a profile has for a device; `identifiers` is how the server is told which one.
    ///
    /// # Errors
    /// The server does not answer, refuses, or answers what cannot be carried out.
    pub fn get(
        &self,
        ask: &Ask<'_>,
        identifiers: Value,
    ) -> Result<(NetworkConfig, Profile), String> {
        let config = parameters(&ask.device.request, &ask.claim.configs);
        let body = json!({ "device": identifiers, "claim": claim(ask.claim), "config": config });
        let answer = self.post("/GetProfileConfig", &body)?;
        let config = NetworkConfig::parse(&answer).map_err(|errors| {
            let told: Vec<_> = errors.iter().map(ToString::to_string).collect();
            format!("the profile's server answers {}", told.join("; "))
        })?;
        let release = json!({
            "device": identifiers, "claim_uid": ask.claim.claim.uid, "config": body["config"],
        });
        Ok((config, Profile(release.to_string())))
    }

    /// Tells it that what it gave is free.
    ///
    /// # Errors
    /// It does not answer, or refuses; asking again may help.
    pub fn release(&self, profile: &Profile) -> Result<(), String> {
        let body: Value = serde_json::from_str(&profile.0).map_err(|error| error.to_string())?;
        self.post("/ReleaseProfileConfig", &body).map(drop)
    }

    fn post(&self, path: &str, body: &Value) -> Result<String, String> {
        let question = Question {
            method: "POST",
            path: path.to_owned(),
            header: None,
            body: body.to_string(),
        };
        let answer = self.runtime.block_on(self.service.ask(question));
        let answer = answer.map_err(|error| format!("the profile's server: {error}"))?;
        if answer.status == 200 {
            return Ok(answer.body);
        }
        let words: String = answer.body.trim().chars().take(WORDS_MAX).collect();
        let status = answer.status;
        Err(format!("the profile's server refuses ({status}): {words}"))
    }
}

/// The claim as a ResourceClaim: what servers go by is who it is, and for whom.
fn claim(claim: &AllocatedClaim) -> Value {
    let pods = claim.reserved_for.iter();
    let pods = pods.map(|pod| json!({ "resource": "pods", "name": pod.name, "uid": pod.uid }));
    let devices = claim.devices.iter().map(|device| {
        let mut one = json!({
            "request": device.request, "pool": device.pool, "device": device.device,
        });
        if let Some(share) = &device.share_id {
            one["shareID"] = json!(share);
        }
        one
    });
    json!({
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {
            "name": claim.claim.name, "namespace": claim.claim.namespace, "uid": claim.claim.uid,
        },
        "spec": {},
        "status": {
            "allocation": { "devices": { "results": devices.collect::<Vec<_>>() } },
            "reservedFor": pods.collect::<Vec<_>>(),
        },
    })
}

/// The parameters for a request as they were written, those of the claim over those of the class.
fn parameters(request: &str, configs: &[DeviceConfig]) -> Value {
    let mut all = Value::Object(Map::new());
    for config in configs.iter().filter(|config| config.is_for(request)) {
        // What is none was refused before anybody was asked.
        if let Ok(value) = serde_json::from_str(&config.parameters) {
            put_over(&mut all, value);
        }
    }
    all
}

fn put_over(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                put_over(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claims_parameters_lie_over_the_classs() {
        let config = |from_class, requests: &[&str], parameters: &str| DeviceConfig {
            requests: requests.iter().map(ToString::to_string).collect(),
            from_class,
            parameters: parameters.into(),
        };
        let configs = [
            config(
                true,
                &[],
                r#"{"profile": "slow", "interface": {"mtu": 1500, "name": "a"}}"#,
            ),
            config(
                false,
                &["nic"],
                r#"{"profile": "fast", "interface": {"mtu": 9000}}"#,
            ),
            config(false, &["other"], r#"{"profile": "none"}"#),
        ];
        assert_eq!(
            parameters("nic/first", &configs),
            json!({ "profile": "fast", "interface": { "mtu": 9000, "name": "a" } })
        );
    }
}
