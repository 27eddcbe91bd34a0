//! A claim with its allocation, from the API server: by name, and only if it still is the one that was
//! asked for.

use std::fmt;
use std::time::Duration;

use forebay_fabric::claim::{AllocatedClaim, AllocatedDevice, ClaimRef, DeviceConfig, PodRef};
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout};

use crate::kubernetes::server::{Failure, Server, json};

use super::{API, DeviceMetrics};

/// How long the server may take. The kubelet asks again; who waits longer only keeps other claims waiting.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// How often a connection is used at least.
const TOUCH: Duration = Duration::from_secs(60);
/// The capacity that shares of a NIC are of.
const BANDWIDTH: &str = "forebay.dev/bandwidth";

/// Why there is no claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoClaim {
    /// It is not there, is another one, or is not allocated to us.
    Refused(String),
    /// The server is away: nothing is known.
    Away(String),
}

impl fmt::Display for NoClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoClaim::Refused(why) | NoClaim::Away(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for NoClaim {}

/// Claims of one driver.
#[derive(Clone, Debug)]
pub struct Claims {
    server: Server,
    driver: String,
    metrics: DeviceMetrics,
}

impl Claims {
    /// Those that have devices of `driver`.
    #[must_use]
    pub fn new(server: Server, driver: &str, metrics: DeviceMetrics) -> Claims {
        let driver = driver.to_owned();
        Claims {
            server,
            driver,
            metrics,
        }
    }

    /// Keeps a connection at hand for ever: pods start minutes apart, servers close what has been idle for 90 s,
    /// and another handshake takes longer than a claim does.
    pub async fn keep_connection(self) {
        loop {
            sleep(TOUCH).await;
            // Static, and open to every account. Whether the server is there, fetching tells.
            let _touched = self.server.get("/version").await;
        }
    }

    /// A claim with its allocation.
    ///
    /// # Errors
    /// There is none with this UID, it is not allocated, or the server does not tell.
    pub async fn fetch(&self, claim: &ClaimRef) -> Result<AllocatedClaim, NoClaim> {
        let path = path(claim);
        let away = |why: String| NoClaim::Away(format!("the API server does not tell: {why}"));
        let began = Instant::now();
        let answer = timeout(FETCH_MAX, self.server.get(&path)).await;
        self.metrics.fetched(began.elapsed());
        let bytes = match answer {
            Err(_) => return Err(away(format!("no answer within {} s", FETCH_MAX.as_secs()))),
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) if error.is(StatusCode::NOT_FOUND) => {
                let why = "it is gone; the pod is to go with it".to_owned();
                return Err(NoClaim::Refused(why));
            }
            Ok(Err(Failure::Refused { status, why })) if status.is_client_error() => {
                return Err(NoClaim::Refused(format!(
                    "the API server refuses to tell ({status}): {why}; look at the rights of the \
                     driver's account"
                )));
            }
            Ok(Err(error)) => return Err(away(error.to_string())),
        };
        let read = json(&bytes).map_err(|error| NoClaim::Refused(error.to_string()))?;
        translate(read, claim, &self.driver).map_err(NoClaim::Refused)
    }
}

pub(super) fn path(claim: &ClaimRef) -> String {
    let ClaimRef {
        namespace, name, ..
    } = claim;
    format!("{API}/namespaces/{namespace}/resourceclaims/{name}")
}

#[derive(Deserialize)]
struct Claim<'a> {
    metadata: Metadata,
    #[serde(borrow, default)]
    status: Status<'a>,
}

#[derive(Deserialize)]
struct Metadata {
    uid: String,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Deserialize, Default)]
struct Annotations {
    #[serde(rename = "resource.kubernetes.io/pod-claim-name")]
    pod_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    #[serde(borrow)]
    allocation: Option<Allocation<'a>>,
    #[serde(default)]
    reserved_for: Vec<Consumer>,
}

#[derive(Deserialize)]
struct Consumer {
    #[serde(default, rename = "apiGroup")]
    group: String,
    resource: String,
    name: String,
    uid: String,
}

#[derive(Deserialize)]
struct Allocation<'a> {
    #[serde(borrow, default)]
    devices: Devices<'a>,
}

#[derive(Deserialize, Default)]
struct Devices<'a> {
    #[serde(default)]
    results: Vec<Outcome>,
    #[serde(borrow, default)]
    config: Vec<Config<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    request: String,
    driver: String,
    pool: String,
    device: String,
    #[serde(default)]
    admin_access: Option<bool>,
    #[serde(rename = "shareID")]
    share_id: Option<String>,
    #[serde(default)]
    consumed_capacity: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
struct Config<'a> {
    source: String,
    #[serde(default)]
    requests: Vec<String>,
    #[serde(borrow)]
    opaque: Option<Opaque<'a>>,
}

#[derive(Deserialize)]
struct Opaque<'a> {
    driver: String,
    #[serde(borrow)]
    parameters: &'a RawValue,
}

fn translate(read: Claim<'_>, claim: &ClaimRef, driver: &str) -> Result<AllocatedClaim, String> {
    if read.metadata.uid != claim.uid {
        return Err(format!(
            "the claim of this name is another one by now ({}); the pod is to go with the old one",
            read.metadata.uid
        ));
    }
    let allocation = (read.status.allocation)
        .ok_or_else(|| "it is not allocated; the scheduler has to see the pod again".to_owned())?;
    let mut reserved_for = Vec::new();
    for consumer in read.status.reserved_for {
        if !consumer.group.is_empty() || consumer.resource != "pods" {
            return Err(format!(
                "it is reserved for {} {}, and NICs are given to pods only",
                consumer.resource, consumer.name
            ));
        }
        let Consumer { name, uid, .. } = consumer;
        reserved_for.push(PodRef { name, uid });
    }
    let results = allocation.devices.results.into_iter();
    let ours = results.filter(|outcome| outcome.driver == driver);
    let devices = ours.map(device).collect::<Result<_, _>>()?;
    let config = |config: Config<'_>| {
        let opaque = config.opaque.filter(|opaque| opaque.driver == driver)?;
        Some(DeviceConfig {
            requests: config.requests,
            from_class: config.source == "FromClass",
            parameters: opaque.parameters.get().to_owned(),
        })
    };
    let all = allocation.devices.config.into_iter();
    let mut configs: Vec<DeviceConfig> = all.filter_map(config).collect();
    configs.sort_by_key(|config| !config.from_class);
    Ok(AllocatedClaim {
        claim: claim.clone(),
        pod_name: read.metadata.annotations.pod_name,
        reserved_for,
        devices,
        configs,
    })
}

fn device(outcome: Outcome) -> Result<AllocatedDevice, String> {
    let share = outcome.consumed_capacity.get(BANDWIDTH);
    let bandwidth_bps = share
        .map(|value| {
            let read = value.as_str().and_then(quantity);
            read.ok_or_else(|| format!("its share {value} of {BANDWIDTH} is no whole number"))
        })
        .transpose()?;
    Ok(AllocatedDevice {
        request: outcome.request,
        pool: outcome.pool,
        device: outcome.device,
        share_id: outcome.share_id,
        bandwidth_bps,
        admin_access: outcome.admin_access.unwrap_or(false),
    })
}

/// A quantity in whole units; none for what is none, or is too large.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(status: Value, expected: Result<AllocatedClaim, &str>) {
        let annotations = json!({ "resource.kubernetes.io/pod-claim-name": "fast", "x": "y" });
        let metadata = json!({ "uid": "u-1", "annotations": annotations });
        let object = json!({ "metadata": metadata, "status": status }).to_string();
        let read = serde_json::from_str(&object).unwrap();
        let got = translate(read, &claim(), "dra.net");
        assert_eq!(got, expected.map_err(str::to_owned));
    }

    fn claim() -> ClaimRef {
        ClaimRef {
            namespace: "ai".into(),
            name: "nics".into(),
            uid: "u-1".into(),
        }
    }

    #[test]
    fn an_allocation_becomes_our_devices_and_their_parameters_class_first() {
        let status = json!({
            "reservedFor": [{ "resource": "pods", "name": "train-0", "uid": "p-1" }],
            "allocation": { "devices": {
                "results": [
                    { "request": "gpu", "driver": "gpu.example.com", "pool": "n1", "device": "g0" },
                    { "request": "nic/fast", "driver": "dra.net", "pool": "n1", "device": "rail0",
                      "shareID": "s-1", "consumedCapacity": { "forebay.dev/bandwidth": "50G" } },
                ],
                "config": [
                    { "source": "FromClaim", "requests": ["nic"],
                      "opaque": { "driver": "dra.net", "parameters": { "interface": { "mtu": 9000 } } } },
                    { "source": "FromClass",
                      "opaque": { "driver": "dra.net", "parameters": {} } },
                    { "source": "FromClaim",
                      "opaque": { "driver": "gpu.example.com", "parameters": { "x": 1 } } },
                ],
            } },
        });
        let config = |requests: &[&str], from_class, parameters: &str| DeviceConfig {
            requests: requests.iter().map(ToString::to_string).collect(),
            from_class,
            parameters: parameters.to_owned(),
        };
        check(
            status,
            Ok(AllocatedClaim {
                claim: claim(),
                pod_name: Some("fast".into()),
                reserved_for: vec![PodRef {
                    name: "train-0".into(),
                    uid: "p-1".into(),
                }],
                devices: vec![AllocatedDevice {
                    request: "nic/fast".into(),
                    pool: "n1".into(),
                    device: "rail0".into(),
                    share_id: Some("s-1".into()),
                    bandwidth_bps: Some(50_000_000_000),
                    admin_access: false,
                }],
                configs: vec![
                    config(&[], true, "{}"),
                    config(&["nic"], false, r#"{"interface":{"mtu":9000}}"#),
                ],
            }),
        );
    }

    #[test]
    fn a_claim_without_an_allocation_for_a_pod_is_refused_with_a_sentence() {
        check(
            json!({}),
            Err("it is not allocated; the scheduler has to see the pod again"),
        );
        check(
            json!({
                "allocation": {},
                "reservedFor": [{ "apiGroup": "x.io", "resource": "groups", "name": "g", "uid": "1" }],
            }),
            Err("it is reserved for groups g, and NICs are given to pods only"),
        );
        let mut other = claim();
        other.uid = "u-0".into();
        let object = r#"{"metadata":{"uid":"u-1"}}"#;
        let got = translate(serde_json::from_str(object).unwrap(), &other, "dra.net");
        assert!(got.unwrap_err().contains("another one by now (u-1)"));
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("2500M", Some(2_500_000_000)),
            ("1Ki", Some(1024)),
            ("1500m", None),
            ("x", None),
            ("99999999999P", None),
        ] {
            assert_eq!(quantity(text), expected, "{text}");
        }
    }
}
