//! The ResourceSlices of one node's pool: brought to what there shall be, whatever stands there, of this
//! process or of another one of the same driver.
//!
//! What to change is planned from what the server has ([`plan`]); after that the slices are followed, so that
//! what somebody else changes or deletes comes back. The generation is one more than the highest that
//! stands there, so two processes that overlap do not go back behind each other.

use std::time::Duration;

use forebay_fabric::publish::{Slice, resource_slice};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::kubernetes::backoff::{Backoff, random};
use crate::kubernetes::server::{Failure, Server, Write, json as parse};

use super::{API, DeviceMetrics, RETRY_FIRST, RETRY_LONGEST, node};

/// Shortest time between two rounds of writes.
const PACE: Duration = Duration::from_secs(1);
/// How long the slices are followed before they are listed anew.
const FOLLOW: Duration = Duration::from_secs(300);
/// Bytes of an object's name at most.
const NAME_BYTES_MAX: usize = 253;

/// The slices of one driver's pool on one node.
#[derive(Debug)]
pub struct Slices {
    server: Server,
    driver: String,
    node: String,
    metrics: DeviceMetrics,
}

/// What is to be done about slices, in this order: new content first, so that no device is missing in between.
#[derive(PartialEq, Debug, Default)]
struct Plan {
    /// Slices to make.
    create: Vec<Value>,
    /// Slices to write over.
    replace: Vec<Value>,
    /// Name and UID of slices to delete.
    delete: Vec<(String, String)>,
}

impl Slices {
    /// Those of `driver` on `node`.
    #[must_use]
    pub fn new(server: Server, driver: &str, node: &str, metrics: DeviceMetrics) -> Slices {
        Slices {
            server,
            driver: driver.to_owned(),
            node: node.to_owned(),
            metrics,
        }
    }

    /// Keeps them as `wanted` has them, once that is known, for ever. `published` is told whenever what is
    /// wanted stands there.
    pub async fn run(
        self,
        mut wanted: watch::Receiver<Option<Vec<Slice>>>,
        published: impl Fn(&[Slice]) + Send,
    ) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        loop {
            let slices = wanted.borrow_and_update().clone();
            let Some(slices) = slices else {
                if wanted.changed().await.is_err() {
                    return;
                }
                continue;
            };
            match self.round(&slices).await {
                Ok(None) => sleep(PACE).await,
                Ok(Some(version)) => {
                    backoff.reset();
                    published(&slices);
                    tokio::select! {
                        changed = wanted.changed() => if changed.is_err() { return },
                        () = self.disturbed(&version) => {}
                    }
                }
                Err(error) => {
                    self.metrics.slice(false);
                    tracing::warn!("the slices of {} wait: {error}", self.node);
                    let wait = backoff.wait(random());
                    tokio::select! {
                        changed = wanted.changed() => if changed.is_err() { return },
                        () = sleep(wait) => {}
                    }
                }
            }
        }
    }

    fn selector(&self) -> String {
        let (driver, node) = (&self.driver, &self.node);
        format!("fieldSelector=spec.driver%3D{driver}%2Cspec.nodeName%3D{node}")
    }

    /// Lists, plans, writes. The version of the list if nothing was to be done.
    async fn round(&self, slices: &[Slice]) -> Result<Option<String>, Failure> {
        let base = format!("{API}/resourceslices");
        let bytes = self
            .server
            .get(&format!("{base}?{}", self.selector()))
            .await?;
        let mut list: Value = parse(&bytes)?;
        let there = list["items"]
            .as_array_mut()
            .map(std::mem::take)
            .unwrap_or_default();
        let specs = slices
            .iter()
            .map(|slice| resource_slice::spec(slice, &self.driver, &self.node));
        let mut plan = plan(there, specs.collect(), |index| self.name(index));
        if plan == Plan::default() {
            let version = list["metadata"]["resourceVersion"].as_str();
            return Ok(Some(version.unwrap_or_default().to_owned()));
        }
        if !plan.create.is_empty() {
            let owner = node::read(&self.server, &self.node).await?;
            for slice in &mut plan.create {
                slice["metadata"]["ownerReferences"] = json!([{
                    "apiVersion": "v1", "kind": "Node", "name": self.node, "uid": owner.uid,
                    "controller": true,
                }]);
            }
        }
        for slice in &plan.replace {
            let name = slice["metadata"]["name"].as_str().unwrap_or_default();
            let path = format!("{base}/{name}");
            self.counted(self.server.write(Write::Replace, &path, slice).await)?;
        }
        for slice in &plan.create {
            self.counted(self.server.write(Write::Create, &base, slice).await)?;
        }
        for (name, uid) in &plan.delete {
            let deleted = self.server.delete(&format!("{base}/{name}"), uid).await;
            self.counted(deleted.map(|()| Value::Null))?;
        }
        Ok(None)
    }

    /// Another process was there first: the next list tells.
    fn counted(&self, result: Result<Value, Failure>) -> Result<(), Failure> {
        match result {
            Ok(_) => {
                self.metrics.slice(true);
                Ok(())
            }
            Err(error) if error.is(StatusCode::CONFLICT) || error.is(StatusCode::NOT_FOUND) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Comes back when one of the slices was touched, or after a while.
    async fn disturbed(&self, version: &str) {
        let seconds = FOLLOW.as_secs();
        let selector = self.selector();
        let path = format!(
            "{API}/resourceslices?{selector}&watch=true&resourceVersion={version}&timeoutSeconds={seconds}"
        );
        let follow = async {
            let mut lines = self.server.lines(&path).await?;
            lines.next().await
        };
        match timeout(FOLLOW, follow).await {
            Ok(Ok(Some(_)) | Ok(None)) | Err(_) => sleep(PACE).await,
            Ok(Err(error)) => {
                tracing::debug!("the slices cannot be followed: {error}");
                sleep(PACE * 5).await;
            }
        }
    }

    fn name(&self, index: usize) -> String {
        let tail = format!("-{}-{index}", self.driver);
        let room = NAME_BYTES_MAX.saturating_sub(tail.len());
        let node = &self.node[..self.node.floor_char_boundary(room)];
        node.trim_end_matches(['-', '.']).to_owned() + &tail
    }
}

/// From what stands there and the specs that there shall be to what is to be done.
fn plan(mut there: Vec<Value>, specs: Vec<Value>, name: impl Fn(usize) -> String) -> Plan {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    there.sort_by_cached_key(|slice| text(&slice["metadata"]["name"]));
    let same = there.len() == specs.len()
        && there
            .iter()
            .zip(&specs)
            .all(|(old, new)| content(&old["spec"]) == content(new))
        && there
            .windows(2)
            .all(|two| two[0]["spec"]["pool"] == two[1]["spec"]["pool"]);
    if same {
        return Plan::default();
    }
    let generation = |slice: &Value| slice["spec"]["pool"]["generation"].as_u64().unwrap_or(0);
    let next = there.iter().map(generation).max().unwrap_or(0) + 1;
    let mut plan = Plan::default();
    let mut there = there.into_iter();
    for (index, mut spec) in specs.into_iter().enumerate() {
        spec["pool"]["generation"] = json!(next);
        match there.next() {
            // The pool's name, the driver and the node of a slice are for ever.
            Some(mut old) if old["spec"]["pool"]["name"] == spec["pool"]["name"] => {
                keep_times(&old["spec"], &mut spec);
                old["spec"] = spec;
                if let Some(metadata) = old["metadata"].as_object_mut() {
                    metadata.remove("managedFields");
                }
                old["apiVersion"] = json!(API.trim_start_matches("/apis/"));
                old["kind"] = json!("ResourceSlice");
                plan.replace.push(old);
            }
            other => {
                plan.delete.extend(other.map(|old| id(&old)));
                plan.create.push(json!({
                    "apiVersion": API.trim_start_matches("/apis/"),
                    "kind": "ResourceSlice",
                    "metadata": { "name": name(index) },
                    "spec": spec,
                }));
            }
        }
    }
    plan.delete.extend(there.map(|old| id(&old)));
    plan
}

fn id(slice: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &slice["metadata"];
    (text(&metadata["name"]), text(&metadata["uid"]))
}

/// A spec without what the server adds to it, and without its generation.
fn content(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(pool) = spec["pool"].as_object_mut() {
        pool.remove("generation");
    }
    for device in spec["devices"].as_array_mut().into_iter().flatten() {
        for taint in device["taints"].as_array_mut().into_iter().flatten() {
            if let Some(taint) = taint.as_object_mut() {
                taint.remove("timeAdded");
            }
        }
        // An indexing above made these where they were not.
        if let Some(device) = device.as_object_mut() {
            device.retain(|_, value| !value.is_null());
        }
    }
    if let Some(spec) = spec.as_object_mut() {
        spec.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|a| !a.is_empty()));
    }
    spec
}

/// A taint that stays keeps the time since when it is there: tolerations count from it.
fn keep_times(old: &Value, new: &mut Value) {
    let old = old["devices"].as_array().map_or(&[][..], Vec::as_slice);
    for device in new["devices"].as_array_mut().into_iter().flatten() {
        let Some(before) = old.iter().find(|d| d["name"] == device["name"]) else {
            continue;
        };
        let Some(taints) = device.get_mut("taints").and_then(Value::as_array_mut) else {
            continue;
        };
        for taint in taints {
            let same = |t: &&Value| ["key", "value", "effect"].iter().all(|k| t[k] == taint[k]);
            let all = before["taints"].as_array().map_or(&[][..], Vec::as_slice);
            if let Some(time) = all.iter().find(same).map(|t| t["timeAdded"].clone())
                && !time.is_null()
            {
                taint["timeAdded"] = time;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(generation: u64, count: usize, devices: &[&str]) -> Value {
        let device = |name: &&str| json!({ "name": name });
        json!({
            "driver": "dra.net", "nodeName": "n1",
            "pool": { "name": "n1", "generation": generation, "resourceSliceCount": count },
            "devices": devices.iter().map(device).collect::<Vec<_>>(),
        })
    }

    fn object(name: &str, spec: Value) -> Value {
        json!({ "metadata": { "name": name, "uid": format!("uid-{name}") }, "spec": spec })
    }

    /// The plan as `+name`, `=name` and `-name` with generations.
    fn check(there: Vec<Value>, specs: Vec<Value>, expected: &str) {
        let plan = plan(there, specs, |index| format!("s{index}"));
        let told = |sign: char, slice: &Value| {
            let pool = &slice["spec"]["pool"];
            let name = slice["metadata"]["name"].as_str().unwrap();
            format!("{sign}{name}@{}", pool["generation"])
        };
        let replaced = plan.replace.iter().map(|s| told('=', s));
        let created = plan.create.iter().map(|s| told('+', s));
        let deleted = plan.delete.iter().map(|(name, _)| format!("-{name}"));
        let all: Vec<String> = replaced.chain(created).chain(deleted).collect();
        assert_eq!(all.join(" "), expected);
    }

    #[test]
    fn slices_are_made_changed_and_taken_away_until_they_are_as_wanted() {
        check(vec![], vec![spec(1, 1, &["a"])], "+s0@1");
        check(
            vec![object("s0", spec(7, 1, &["a"]))],
            vec![spec(1, 1, &["a"])],
            "",
        );
        check(
            vec![object("s0", spec(7, 1, &["a"]))],
            vec![spec(1, 1, &["b"])],
            "=s0@8",
        );
        check(
            vec![object("s0", spec(7, 1, &["a"]))],
            vec![spec(1, 2, &["a"]), spec(1, 2, &["b"])],
            "=s0@8 +s1@8",
        );
        check(
            vec![
                object("s0", spec(7, 2, &["a"])),
                object("s1", spec(7, 2, &["b"])),
            ],
            vec![spec(1, 1, &["a"])],
            "=s0@8 -s1",
        );
    }

    #[test]
    fn a_pool_of_two_generations_is_written_anew() {
        check(
            vec![
                object("s0", spec(7, 2, &["a"])),
                object("s1", spec(8, 2, &["b"])),
            ],
            vec![spec(1, 2, &["a"]), spec(1, 2, &["b"])],
            "=s0@9 =s1@9",
        );
    }

    #[test]
    fn a_slice_of_another_pool_gives_way() {
        let mut old = object("s0", spec(3, 1, &["a"]));
        old["spec"]["pool"]["name"] = json!("other");
        check(vec![old], vec![spec(1, 1, &["a"])], "+s0@4 -s0");
    }

    #[test]
    fn a_pool_without_devices_and_the_time_of_a_taint_are_no_change() {
        let mut tainted = spec(1, 1, &["a"]);
        let taint = json!({ "key": "k", "value": "v", "effect": "NoSchedule" });
        tainted["devices"][0]["taints"] = json!([taint]);
        let mut there = tainted.clone();
        there["devices"][0]["taints"][0]["timeAdded"] = json!("then");
        check(vec![object("s0", there.clone())], vec![tainted.clone()], "");
        let mut more = tainted;
        more["devices"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "name": "b" }));
        let plan = plan(vec![object("s0", there)], vec![more], |_| String::new());
        assert_eq!(
            plan.replace[0]["spec"]["devices"][0]["taints"][0]["timeAdded"],
            "then"
        );
        let mut empty = spec(4, 1, &[]);
        empty.as_object_mut().unwrap().remove("devices");
        check(vec![object("s0", empty)], vec![spec(1, 1, &[])], "");
    }
}
