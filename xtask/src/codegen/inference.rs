//! The inference kinds that a cluster may lack: InferencePool as the Inference Extension v1.6
//! defines it, and InferenceObjective and InferenceModelRewrite as llm-d does, in their present
//! group and in the one that they came from.
//!
//! What is valid here is valid with the definitions of their owners, so that a cluster can change
//! to those.

use super::crd::{Column, Definition, Scope};
use super::schema::{self, Schema};
use serde_json::json;

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
const POOL_GROUP: &str = "inference.networking.k8s.io";

/// Groups of the objectives and rewrites: llm-d's, and the one that objects may still be in.
const OBJECTIVE_GROUPS: [&str; 2] = ["llm-d.ai", "inference.networking.x-k8s.io"];

pub(super) fn definitions() -> Vec<Definition> {
    let mut all = vec![pool()];
    for group in OBJECTIVE_GROUPS {
        all.push(objective(group));
        all.push(rewrite(group));
    }
    all
}

fn pool() -> Definition {
    Definition {
        group: POOL_GROUP,
        version: "v1",
        kind: "InferencePool",
        plural: "inferencepools",
        short: Some("infpool"),
        approved: Some(
            "https://github.com/kubernetes-sigs/gateway-api-inference-extension/pull/1173",
        ),
        remark: "The fields and rules of gateway-api-inference-extension v1.6.",
        description: "Pods that serve the same models, as one backend of routes.",
        scope: Scope::Namespaced,
        chart: "forebay",
        columns: vec![
            Column {
                title: "Picker",
                kind: "string",
                path: ".spec.endpointPickerRef.name",
            },
            Column {
                title: "Protocol",
                kind: "string",
                path: ".spec.appProtocol",
            },
            Column::age(),
        ],
        spec: pool_spec(),
        status: pool_status(),
    }
}

fn pool_spec() -> Schema {
    let labels = Schema::map(
        "Labels that a pod must have, all of them.",
        schema::label_value(),
    )
    .entries(1..=64);
    let port = Schema::object("A port of each pod.").required("number", schema::port("The port."));
    Schema::object("What the pool consists of.")
        .required(
            "selector",
            Schema::object("Which pods of the pool's own namespace belong to it.")
                .required("matchLabels", labels),
        )
        .required(
            "targetPorts",
            Schema::atomic_list(
                "Ports on which model servers listen. Each port of a pod is an endpoint of its own, \
                 as ranks of data parallelism are.",
                port,
            )
            .items(1..=8)
            .rule(
                "self.all(p1, self.exists_one(p2, p1.number == p2.number))",
                "port number must be unique",
            ),
        )
        .field(
            "appProtocol",
            Schema::choice(
                "What the model servers speak: HTTP/1.1, or HTTP/2 without TLS.",
                &["http", "kubernetes.io/h2c"],
            )
            .default("http"),
        )
        .field("endpointPickerRef", picker())
}

fn picker() -> Schema {
    Schema::object(
        "The endpoint picker that chooses for this pool. Left out, the gateway must do without: \
         Forebay then uses the picker that it has built in.",
    )
    .field("group", schema::group(""))
    .field("kind", schema::kind("Service"))
    .required("name", schema::name("picker's Service"))
    .field(
        "port",
        Schema::object("Where the picker listens; needed for a Service.")
            .required("number", schema::port("The port.")),
    )
    .field(
        "failureMode",
        Schema::choice(
            "What happens to requests when the picker does not answer: FailClose refuses them, \
             FailOpen lets the gateway choose.",
            &["FailOpen", "FailClose"],
        )
        .default("FailClose"),
    )
    .rule(
        "self.kind != 'Service' || has(self.port)",
        "port is required when kind is 'Service' or unspecified (defaults to 'Service')",
    )
}

fn pool_status() -> Schema {
    let parent = Schema::object("The pool as one parent sees it.")
        .required(
            "parentRef",
            Schema::object("The parent.")
                .field("group", schema::group(GATEWAY_GROUP))
                .field("kind", schema::kind("Gateway"))
                .required("name", schema::name("parent"))
                .field("namespace", schema::namespace()),
        )
        .field("controllerName", schema::controller_name())
        .field(
            "conditions",
            schema::conditions("`Accepted`, `ResolvedRefs` and, for imports, `Exported`."),
        );
    Schema::object("How the pool is.").field(
        "parents",
        Schema::atomic_list(
            "An entry for each parent, mostly a Gateway, that a route leads from to this pool.",
            parent,
        )
        .with("maxItems", json!(32)),
    )
}

/// The pool that an objective or a rewrite is about.
fn pool_ref() -> Schema {
    Schema::object("The InferencePool, in the same namespace.")
        .field("group", schema::group(POOL_GROUP))
        .field("kind", schema::kind("InferencePool"))
        .required("name", schema::name("pool"))
}

/// What a status says before a controller has looked at the object.
fn pending(kind: &str) -> serde_json::Value {
    json!([{
        "type": kind,
        "status": "Unknown",
        "reason": "Pending",
        "message": "Waiting for controller",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }])
}

fn pool_column() -> Column {
    Column {
        title: "Inference Pool",
        kind: "string",
        path: ".spec.poolRef.name",
    }
}

const LLM_D: &str = "The fields and rules of llm-d's v1alpha2.";

fn objective(group: &'static str) -> Definition {
    Definition {
        group,
        version: "v1alpha2",
        kind: "InferenceObjective",
        plural: "inferenceobjectives",
        short: None,
        approved: None,
        remark: LLM_D,
        description: "How important requests are that name this objective.",
        scope: Scope::Namespaced,
        chart: "forebay",
        columns: vec![
            pool_column(),
            Column {
                title: "Priority",
                kind: "string",
                path: ".spec.priority",
            },
            Column::age(),
        ],
        spec: Schema::object("The objective.")
            .field(
                "priority",
                Schema::integer(
                    "Higher goes first, and 0 is meant when left out. Requests of negative priority \
                     are shed when the pool is full.",
                ),
            )
            .required("poolRef", pool_ref()),
        status: Schema::object("How the objective is.").field(
            "conditions",
            schema::conditions("`Accepted`.").default(pending("Ready")),
        ),
    }
}

fn rewrite(group: &'static str) -> Definition {
    Definition {
        group,
        version: "v1alpha2",
        kind: "InferenceModelRewrite",
        plural: "inferencemodelrewrites",
        short: None,
        approved: None,
        remark: LLM_D,
        description: "Which model a request gets in place of the one that it names.",
        scope: Scope::Namespaced,
        chart: "forebay",
        columns: vec![pool_column(), Column::age()],
        spec: Schema::object("The rewrite.")
            .required("poolRef", pool_ref())
            .required(
                "rules",
                Schema::list(
                    "Rules. Exact matches go before those that match everything, older objects \
                     before newer ones, and earlier rules before later ones.",
                    rewrite_rule(),
                ),
            ),
        status: Schema::object("How the rewrite is.").field(
            "conditions",
            schema::conditions("`Accepted`.").default(pending("Accepted")),
        ),
    }
}

fn rewrite_rule() -> Schema {
    let model = Schema::object("The model that a request names.")
        .field(
            "type",
            Schema::choice("How it is compared.", &["Exact"]).default("Exact"),
        )
        .required(
            "value",
            Schema::string("The model's name.").with("minLength", json!(1)),
        );
    let target = Schema::object("A model, and its share of the requests.")
        .required("modelRewrite", Schema::string("Name of the model."))
        .field(
            "weight",
            Schema::integer("Share relative to the other targets. Set it for all of them or none.")
                .range(1..=1_000_000),
        );
    Schema::object("What is matched, and what it becomes.")
        .field(
            "matches",
            Schema::list(
                "One of these must match; none at all match every request.",
                Schema::object("A match.").required("model", model),
            ),
        )
        .field(
            "targets",
            Schema::list("What the model's name becomes.", target).with("minItems", json!(1)),
        )
}
