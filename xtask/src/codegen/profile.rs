//! Forebay's kind for nodes: which NICs the pods of some nodes get.

use super::crd::{Column, Definition, Scope};
use super::schema::{self, Schema};
use serde_json::json;

pub(super) fn definition() -> Definition {
    Definition {
        group: "forebay.dev",
        version: "v1alpha1",
        kind: "NetworkProfile",
        plural: "networkprofiles",
        short: Some("netprofile"),
        approved: None,
        remark: "Read by `forebay node controller`: docs/device-network.md.",
        description: "Which NICs pods get on some nodes, if they ask for those of their node. It is for \
                      nodes that fit nodeSelector and machineTypes, in place of what would be derived \
                      from their inventory; of several, the first by name.",
        scope: Scope::Cluster,
        chart: "forebay-node",
        columns: vec![
            Column {
                title: "Nodes",
                kind: "integer",
                path: ".status.nodes",
            },
            Column {
                title: "Accepted",
                kind: "string",
                path: ".status.conditions[?(@.type==\"Accepted\")].status",
            },
            Column::age(),
        ],
        spec: spec(),
        status: Schema::object("What came of it.")
            .field("nodes", Schema::integer("Nodes that have this profile."))
            .field("conditions", schema::conditions("`Accepted`.")),
    }
}

fn spec() -> Schema {
    let machine =
        Schema::string("Value of the label node.kubernetes.io/instance-type.").length(1..=63);
    Schema::object("The profile.")
        .field(
            "nodeSelector",
            Schema::map(
                "Labels that a node has, all of them.",
                schema::label_value(),
            )
            .entries(1..=16),
        )
        .field(
            "machineTypes",
            Schema::atomic_list("Types of machines, of which a node has one.", machine)
                .items(1..=32),
        )
        .required(
            "requests",
            Schema::keyed_list("What a pod's claim asks for.", "name", request()).items(1..=32),
        )
        .field(
            "parameters",
            Schema::object("A NetworkConfig for all requests.")
                .with("x-kubernetes-preserve-unknown-fields", json!(true)),
        )
        .rule(
            "has(self.nodeSelector) || has(self.machineTypes)",
            "say which nodes are meant: nodeSelector, machineTypes, or both",
        )
}

fn request() -> Schema {
    let expression = Schema::string("CEL for devices, as in a DeviceClass.").length(1..=10_240);
    Schema::object("One request.")
        .required(
            "name",
            Schema::string("Its name in the claim.")
                .length(1..=63)
                .pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
        )
        .required(
            "deviceClassName",
            Schema::string("The DeviceClass, such as mrdma.google.com.").length(1..=253),
        )
        .field(
            "allocationMode",
            Schema::choice(
                "All: every device of the node, none of which anybody else may have. ExactCount: so \
                 many.",
                &["All", "ExactCount"],
            ),
        )
        .field(
            "count",
            Schema::integer("How many, with ExactCount; 1 if left out.").range(1..=32),
        )
        .field(
            "selectors",
            Schema::atomic_list("Further conditions, all of which hold.", expression).items(1..=32),
        )
        .rule(
            "!has(self.count) || !has(self.allocationMode) || self.allocationMode == 'ExactCount'",
            "count is for allocationMode ExactCount",
        )
}
