//! Forebay's own kind: how the data plane of a Gateway runs.

use super::crd::{Column, Definition, Scope};
use super::schema::{self, Schema};

pub(super) fn definition() -> Definition {
    Definition {
        group: "forebay.dev",
        version: "v1alpha1",
        kind: "GatewayConfig",
        plural: "gatewayconfigs",
        short: Some("gwcfg"),
        approved: None,
        remark: "Parameters of a GatewayClass (spec.parametersRef) or of one Gateway \
                 (spec.infrastructure.parametersRef).",
        description: "How the data plane of Gateways runs. A GatewayClass or a Gateway refers to it.",
        scope: Scope::Namespaced,
        chart: "forebay",
        columns: vec![
            Column {
                title: "Placement",
                kind: "string",
                path: ".spec.placement",
            },
            Column {
                title: "Replicas",
                kind: "integer",
                path: ".spec.replicas",
            },
            Column {
                title: "Service",
                kind: "string",
                path: ".spec.serviceType",
            },
            Column {
                title: "Accepted",
                kind: "string",
                path: ".status.conditions[?(@.type==\"Accepted\")].status",
            },
            Column::age(),
        ],
        spec: spec(),
        status: Schema::object("How the configuration is.")
            .field("conditions", schema::conditions("`Accepted`.")),
    }
}

fn spec() -> Schema {
    Schema::object("The configuration.")
        .field(
            "placement",
            Schema::choice(
                "Shared: the pods of Forebay's own Deployment serve the Gateway. Dedicated: it gets \
                 pods of its own, in its namespace.",
                &["Shared", "Dedicated"],
            )
            .default("Shared"),
        )
        .field(
            "replicas",
            Schema::integer("Pods of a Gateway with placement Dedicated.")
                .range(1..=100)
                .default(2),
        )
        .field(
            "image",
            Schema::string(
                "Image of these pods. Left out, it is that of the controller, so that both change \
                 together.",
            )
            .length(1..=1024)
            .pattern("^[A-Za-z0-9][A-Za-z0-9._:/@-]*$"),
        )
        .field("resources", resources())
        .field(
            "serviceType",
            Schema::choice(
                "Type of the Service through which the Gateway is reached. Left out, it is that of \
                 the controller's flag --gateway-service-type.",
                &["LoadBalancer", "NodePort", "ClusterIP"],
            ),
        )
        .rule(
            "self.placement == 'Dedicated' || !has(self.image)",
            "image is for placement Dedicated: shared pods have that of their Deployment",
        )
        .rule(
            "self.placement == 'Dedicated' || !has(self.resources)",
            "resources are for placement Dedicated: shared pods have those of their Deployment",
        )
}

fn resources() -> Schema {
    let amounts = |description: &str| Schema::map(description, Schema::quantity()).entries(1..=8);
    Schema::object("What each of these pods asks for.")
        .field("requests", amounts("What the scheduler sets aside."))
        .field("limits", amounts("What a pod cannot exceed."))
        .rule(
            "!has(self.requests) || self.requests.all(k, isQuantity(string(self.requests[k])) && \
             !quantity(string(self.requests[k])).isLessThan(quantity('0')))",
            "requests must be amounts such as 500m or 1Gi, and not negative",
        )
        .rule(
            "!has(self.limits) || self.limits.all(k, isQuantity(string(self.limits[k])) && \
             quantity(string(self.limits[k])).isGreaterThan(quantity('0')))",
            "limits must be amounts such as 2 or 1Gi, and greater than zero",
        )
        .rule(
            "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) \
             || !quantity(string(self.requests[k])).isGreaterThan(quantity(string(self.limits[k]))))",
            "a request must not exceed the limit of the same name",
        )
}
