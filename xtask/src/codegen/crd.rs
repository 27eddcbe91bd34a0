//! A CustomResourceDefinition with one version and a status subresource, which is all that our
//! definitions have.

use super::schema::Schema;
use serde_json::{Value, json};

/// One definition.
#[derive(Debug)]
pub(super) struct Definition {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
    pub(super) short: Option<&'static str>,
    /// Where the API was approved: groups of Kubernetes itself are refused without it.
    pub(super) approved: Option<&'static str>,
    /// What the file says above the definition.
    pub(super) remark: &'static str,
    pub(super) description: &'static str,
    pub(super) scope: Scope,
    /// The chart that brings it.
    pub(super) chart: &'static str,
    pub(super) columns: Vec<Column>,
    pub(super) spec: Schema,
    pub(super) status: Schema,
}

/// Where objects of a kind are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scope {
    /// Each in a namespace.
    Namespaced,
    /// In none.
    Cluster,
}

/// A column of `kubectl get`.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) kind: &'static str,
    pub(super) path: &'static str,
}

impl Column {
    /// When the object was made, which every table ends with.
    pub(super) fn age() -> Self {
        Self {
            title: "Age",
            kind: "date",
            path: ".metadata.creationTimestamp",
        }
    }
}

impl Definition {
    /// The object's name, which is also that of its file.
    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    /// `forebay.dev_gatewayconfigs.yaml`, as files of definitions are commonly called.
    pub(super) fn file_name(&self) -> String {
        format!("{}_{}.yaml", self.group, self.plural)
    }

    /// The object.
    pub(super) fn to_value(&self) -> Value {
        let columns: Vec<Value> = self
            .columns
            .iter()
            .map(|column| json!({ "name": column.title, "type": column.kind, "jsonPath": column.path }))
            .collect();
        let schema = Schema::object(self.description)
            .field("apiVersion", Schema::string("Version of this schema."))
            .field("kind", Schema::string("Kind of the object."))
            .field("metadata", Schema::object(""))
            .required("spec", self.spec.clone())
            .field("status", self.status.clone());
        let mut names = json!({
            "kind": self.kind,
            "listKind": format!("{}List", self.kind),
            "plural": self.plural,
            "singular": self.kind.to_lowercase(),
        });
        if let Some(short) = self.short {
            names["shortNames"] = json!([short]);
        }
        let mut metadata = json!({ "name": self.name() });
        if let Some(place) = self.approved {
            metadata["annotations"] = json!({ "api-approved.kubernetes.io": place });
        }
        let scope = match self.scope {
            Scope::Namespaced => "Namespaced",
            Scope::Cluster => "Cluster",
        };
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": metadata,
            "spec": {
                "group": self.group,
                "names": names,
                "scope": scope,
                "versions": [{
                    "name": self.version,
                    "served": true,
                    "storage": true,
                    "subresources": { "status": {} },
                    "additionalPrinterColumns": columns,
                    "schema": { "openAPIV3Schema": schema.into_value() },
                }],
            },
        })
    }
}
