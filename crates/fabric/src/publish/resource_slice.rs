//! A slice as the JSON of a ResourceSlice's `spec`, `resource.k8s.io/v1`.

use serde_json::{Map, Value, json};

use super::{Attribute, Bandwidth, PublishedDevice, Slice};
use crate::health::Effect;

/// The `spec` of a slice of a node's own devices.
pub fn spec(slice: &Slice, driver: &str, node: &str) -> Value {
    json!({
        "driver": driver,
        "nodeName": node,
        "pool": {
            "name": slice.pool,
            "generation": slice.generation,
            "resourceSliceCount": slice.count,
        },
        "devices": slice.devices.iter().map(device).collect::<Vec<_>>(),
    })
}

/// The `attributes` of a device.
pub fn attributes(device: &PublishedDevice) -> Map<String, Value> {
    let attribute = |value: &Attribute| match value {
        Attribute::String(text) => json!({ "string": text }),
        Attribute::Int(number) => json!({ "int": number }),
        Attribute::Bool(value) => json!({ "bool": value }),
    };
    let all = device.attributes.iter();
    all.map(|(name, value)| (name.to_string(), attribute(value)))
        .collect()
}

fn device(device: &PublishedDevice) -> Value {
    let mut json = json!({
        "name": device.name,
        "attributes": attributes(device),
        "capacity": { "forebay.dev/bandwidth": capacity(device.bandwidth) },
    });
    if device.allow_multiple {
        json["allowMultipleAllocations"] = Value::Bool(true);
    }
    let effect = |effect| match effect {
        Effect::NoSchedule => "NoSchedule",
        Effect::NoExecute => "NoExecute",
    };
    let taints = device.taints.iter().map(
        |taint| json!({ "key": taint.key, "value": taint.value, "effect": effect(taint.effect) }),
    );
    if !device.taints.is_empty() {
        json["taints"] = taints.collect();
    }
    json
}

fn capacity(bandwidth: Bandwidth) -> Value {
    let mut json = json!({ "value": quantity(bandwidth.bps) });
    if let Some(share) = bandwidth.share {
        json["requestPolicy"] = json!({
            "default": quantity(share.default_bps),
            "validRange": { "min": quantity(share.min_bps), "step": quantity(share.step_bps) },
        });
    }
    json
}

/// A number as a quantity in the form that Kubernetes itself would write: `400G`.
fn quantity(number: u64) -> String {
    let units = [
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
        (1000, "k"),
    ];
    let unit = units
        .into_iter()
        .find(|(unit, _)| number > 0 && number.is_multiple_of(*unit));
    unit.map_or_else(
        || number.to_string(),
        |(unit, suffix)| format!("{}{suffix}", number / unit),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::health::{LINK_DOWN, Taint};
    use crate::publish::{QualifiedName, SharePolicy};

    #[test]
    fn quantities_are_in_the_form_that_kubernetes_writes() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1k"),
            (2_500_000_000, "2500M"),
            (400_000_000_000, "400G"),
            (1_000_000_000_000, "1T"),
        ] {
            assert_eq!(quantity(number), text);
        }
    }

    #[test]
    fn a_slice_has_the_fields_of_the_api() {
        let name = |text: &str| QualifiedName::parse(text).unwrap();
        let whole = PublishedDevice {
            name: "pci-0000-8f-00-0".to_owned(),
            attributes: BTreeMap::from([
                (name("dra.net/rdma"), Attribute::Bool(true)),
                (name("forebay.dev/driver"), Attribute::text("ice")),
                (name("forebay.dev/rail"), Attribute::Int(-1)),
            ]),
            bandwidth: Bandwidth {
                bps: 100_000_000_000,
                share: None,
            },
            taints: Vec::new(),
            allow_multiple: false,
        };
        let mut shared = whole.clone();
        shared.attributes.clear();
        shared.allow_multiple = true;
        shared.bandwidth.share = Some(SharePolicy {
            default_bps: 100_000_000_000,
            min_bps: 1_000_000,
            step_bps: 1_000_000,
        });
        shared.taints.push(Taint {
            key: LINK_DOWN,
            value: "down",
            effect: Effect::NoSchedule,
        });
        let slice = Slice {
            pool: "node-1".to_owned(),
            generation: 7,
            index: 1,
            count: 2,
            devices: vec![whole, shared],
        };
        let expected = json!({
            "driver": "forebay.dev",
            "nodeName": "node-1",
            "pool": { "name": "node-1", "generation": 7, "resourceSliceCount": 2 },
            "devices": [
                {
                    "name": "pci-0000-8f-00-0",
                    "attributes": {
                        "dra.net/rdma": { "bool": true },
                        "forebay.dev/driver": { "string": "ice" },
                        "forebay.dev/rail": { "int": -1 },
                    },
                    "capacity": { "forebay.dev/bandwidth": { "value": "100G" } },
                },
                {
                    "name": "pci-0000-8f-00-0",
                    "attributes": {},
                    "capacity": { "forebay.dev/bandwidth": {
                        "value": "100G",
                        "requestPolicy": {
                            "default": "100G",
                            "validRange": { "min": "1M", "step": "1M" },
                        },
                    } },
                    "allowMultipleAllocations": true,
                    "taints": [
                        { "key": "forebay.dev/link-down", "value": "down", "effect": "NoSchedule" },
                    ],
                },
            ],
        });
        assert_eq!(spec(&slice, "forebay.dev", "node-1"), expected);
    }
}
