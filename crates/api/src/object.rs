//! The door: a JSON value comes in, and leaves as an [`Object`] that is well formed and obeys the
//! rules of its kind, or as the list of everything that is wrong with it.
//!
//! References to other objects are not followed here; what is missing today may come tomorrow (see
//! `lower`). Reading YAML is the business of whoever has a file.

use std::fmt;

use forebay_model::ObjectName;
use forebay_model::snapshot::Problem;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kinds::Meta;
use crate::kinds::core::{EndpointSlice, Namespace, Pod, Secret, Service};
use crate::kinds::gateway::{Gateway, GatewayClass, ReferenceGrant};
use crate::kinds::httproute::HttpRoute;
use crate::kinds::inference::{InferenceModelRewrite, InferenceObjective, InferencePool};
use crate::{reason, validate};

/// A kind that the index reads, with its API group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `gateway.networking.k8s.io/v1`, cluster scope.
    GatewayClass,
    /// `gateway.networking.k8s.io/v1`.
    Gateway,
    /// `gateway.networking.k8s.io/v1`.
    HttpRoute,
    /// `gateway.networking.k8s.io/v1` or `v1beta1`.
    ReferenceGrant,
    /// `inference.networking.k8s.io/v1`.
    InferencePool,
    /// `llm-d.ai/v1alpha2`.
    InferenceObjective,
    /// `inference.networking.x-k8s.io/v1alpha2`; gives way to one of `llm-d.ai`.
    LegacyInferenceObjective,
    /// `llm-d.ai/v1alpha2`.
    InferenceModelRewrite,
    /// `inference.networking.x-k8s.io/v1alpha2`; gives way to one of `llm-d.ai`.
    LegacyInferenceModelRewrite,
    /// `v1`.
    Service,
    /// `discovery.k8s.io/v1`.
    EndpointSlice,
    /// `v1`.
    Secret,
    /// `v1`.
    Pod,
    /// `v1`, cluster scope.
    Namespace,
}

/// Every kind with its `apiVersion` values and its `kind`.
const KINDS: [(Kind, &[&str], &str); 14] = {
    const GATEWAY: &[&str] = &["gateway.networking.k8s.io/v1"];
    const GRANT: &[&str] = &[
        "gateway.networking.k8s.io/v1",
        "gateway.networking.k8s.io/v1beta1",
    ];
    const POOL: &[&str] = &["inference.networking.k8s.io/v1"];
    const LLM_D: &[&str] = &["llm-d.ai/v1alpha2"];
    const LEGACY: &[&str] = &["inference.networking.x-k8s.io/v1alpha2"];
    const CORE: &[&str] = &["v1"];
    const SLICE: &[&str] = &["discovery.k8s.io/v1"];
    [
        (Kind::GatewayClass, GATEWAY, "GatewayClass"),
        (Kind::Gateway, GATEWAY, "Gateway"),
        (Kind::HttpRoute, GATEWAY, "HTTPRoute"),
        (Kind::ReferenceGrant, GRANT, "ReferenceGrant"),
        (Kind::InferencePool, POOL, "InferencePool"),
        (Kind::InferenceObjective, LLM_D, "InferenceObjective"),
        (Kind::LegacyInferenceObjective, LEGACY, "InferenceObjective"),
        (Kind::InferenceModelRewrite, LLM_D, "InferenceModelRewrite"),
        (
            Kind::LegacyInferenceModelRewrite,
            LEGACY,
            "InferenceModelRewrite",
        ),
        (Kind::Service, CORE, "Service"),
        (Kind::EndpointSlice, SLICE, "EndpointSlice"),
        (Kind::Secret, CORE, "Secret"),
        (Kind::Pod, CORE, "Pod"),
        (Kind::Namespace, CORE, "Namespace"),
    ]
};

impl Kind {
    /// The kind that `apiVersion` and `kind` of an object name.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        KINDS
            .iter()
            .find(|(_, versions, name)| *name == kind && versions.contains(&api_version))
            .map(|(kind, ..)| *kind)
    }

    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.iter().map(|(kind, ..)| *kind)
    }

    /// The `apiVersion` values that the kind is read from, the preferred one first.
    #[must_use]
    pub fn api_versions(self) -> &'static [&'static str] {
        let row = KINDS.iter().find(|(kind, ..)| *kind == self);
        row.map(|(_, versions, _)| *versions)
            .expect("every kind is listed")
    }

    /// The `kind` of the manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let row = KINDS.iter().find(|(kind, ..)| *kind == self);
        row.map(|(.., name)| *name).expect("every kind is listed")
    }

    /// Whether unknown fields are worth a remark. Core kinds have many fields that routing does not
    /// read, and the API server prunes what they do not have.
    fn is_read_whole(self) -> bool {
        !matches!(
            self,
            Self::Service | Self::EndpointSlice | Self::Secret | Self::Pod | Self::Namespace
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A well-formed object of a known kind.
#[derive(Clone, PartialEq, Debug)]
pub struct Object(pub(crate) Inner);

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Inner {
    GatewayClass(GatewayClass),
    Gateway(Gateway),
    HttpRoute(HttpRoute),
    ReferenceGrant(ReferenceGrant),
    InferencePool(InferencePool),
    InferenceObjective(InferenceObjective),
    LegacyInferenceObjective(InferenceObjective),
    InferenceModelRewrite(InferenceModelRewrite),
    LegacyInferenceModelRewrite(InferenceModelRewrite),
    Service(Service),
    EndpointSlice(EndpointSlice),
    Secret(Secret),
    Pod(Pod),
    Namespace(Namespace),
}

/// What a value was read as.
#[derive(Clone, PartialEq, Debug)]
pub struct Parsed {
    /// The object.
    pub object: Object,
    /// What was written in it without effect, such as misspelt fields.
    pub warnings: Vec<Problem>,
}

impl Object {
    /// Reads and validates one object.
    ///
    /// # Errors
    /// Everything that is wrong with the value; `reason` is `UnknownKind` if it is no kind of ours.
    pub fn parse(value: Value) -> Result<Parsed, Vec<Problem>> {
        let label = label(&value);
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let Some(kind) = Kind::of(text("apiVersion"), text("kind")) else {
            return Err(vec![unknown_kind(&value, label)]);
        };
        let mut reader = Reader {
            label: &label,
            warns: kind.is_read_whole(),
            quotes: kind != Kind::Secret,
            warnings: Vec::new(),
        };
        let inner = reader.read(kind, without_nulls(value))?;
        let object = Self(inner);
        let mut problems = validate::object(&object, &label);
        let Reader { mut warnings, .. } = reader;
        problems.retain(|problem| {
            let fatal = reason::severity(problem) == reason::Severity::Error;
            if !fatal {
                warnings.push(problem.clone());
            }
            fatal
        });
        if problems.is_empty() {
            Ok(Parsed { object, warnings })
        } else {
            Err(problems)
        }
    }

    /// Kind and name of what `value` means to be, even if [`Object::parse`] refuses it: so a source
    /// knows whose last good state to keep.
    #[must_use]
    pub fn key_of(value: &Value) -> Option<(Kind, ObjectName)> {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        let kind = Kind::of(text("/apiVersion")?, text("/kind")?)?;
        let namespace = text("/metadata/namespace").unwrap_or("default");
        Some((kind, ObjectName::new(namespace, text("/metadata/name")?)))
    }

    /// The object's kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match &self.0 {
            Inner::GatewayClass(_) => Kind::GatewayClass,
            Inner::Gateway(_) => Kind::Gateway,
            Inner::HttpRoute(_) => Kind::HttpRoute,
            Inner::ReferenceGrant(_) => Kind::ReferenceGrant,
            Inner::InferencePool(_) => Kind::InferencePool,
            Inner::InferenceObjective(_) => Kind::InferenceObjective,
            Inner::LegacyInferenceObjective(_) => Kind::LegacyInferenceObjective,
            Inner::InferenceModelRewrite(_) => Kind::InferenceModelRewrite,
            Inner::LegacyInferenceModelRewrite(_) => Kind::LegacyInferenceModelRewrite,
            Inner::Service(_) => Kind::Service,
            Inner::EndpointSlice(_) => Kind::EndpointSlice,
            Inner::Secret(_) => Kind::Secret,
            Inner::Pod(_) => Kind::Pod,
            Inner::Namespace(_) => Kind::Namespace,
        }
    }

    /// The object's name. Objects of cluster scope have the namespace `default`, which is ignored.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.meta().key()
    }

    pub(crate) fn meta(&self) -> &Meta {
        match &self.0 {
            Inner::GatewayClass(o) => &o.metadata,
            Inner::Gateway(o) => &o.metadata,
            Inner::HttpRoute(o) => &o.metadata,
            Inner::ReferenceGrant(o) => &o.metadata,
            Inner::InferencePool(o) => &o.metadata,
            Inner::InferenceObjective(o) | Inner::LegacyInferenceObjective(o) => &o.metadata,
            Inner::InferenceModelRewrite(o) | Inner::LegacyInferenceModelRewrite(o) => &o.metadata,
            Inner::Service(o) => &o.metadata,
            Inner::EndpointSlice(o) => &o.metadata,
            Inner::Secret(o) => &o.metadata,
            Inner::Pod(o) => &o.metadata,
            Inner::Namespace(o) => &o.metadata,
        }
    }
}

/// How an object is called in problems: `HTTPRoute default/chat`.
fn label(value: &Value) -> String {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or("object");
    let name = text("/metadata/name").unwrap_or("(unnamed)");
    match kind {
        "GatewayClass" | "Namespace" => format!("{kind} {name}"),
        _ => {
            let namespace = text("/metadata/namespace").unwrap_or("default");
            format!("{kind} {namespace}/{name}")
        }
    }
}

fn unknown_kind(value: &Value, object: String) -> Problem {
    let written = |field| value.get(field).and_then(Value::as_str);
    let message = match (written("apiVersion"), written("kind")) {
        (Some(version), Some(kind)) => {
            let known = KINDS.iter().find(|(_, _, name)| *name == kind);
            match known {
                Some((_, versions, _)) => {
                    format!("{kind} is read as {}, not {version}", versions.join(" or "))
                }
                None => format!("{version} {kind} is not read; the object has no effect"),
            }
        }
        _ => "not an object: write apiVersion and kind".to_owned(),
    };
    Problem {
        object,
        field: String::new(),
        reason: reason::UNKNOWN_KIND,
        message,
    }
}

/// Drops entries that are `null`, which in Kubernetes means that they were left out.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Array(list) => list.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

struct Reader<'a> {
    label: &'a str,
    warns: bool,
    /// Whether an error may quote the value, which in a Secret it must not.
    quotes: bool,
    warnings: Vec<Problem>,
}

impl Reader<'_> {
    fn read(&mut self, kind: Kind, value: Value) -> Result<Inner, Vec<Problem>> {
        Ok(match kind {
            Kind::GatewayClass => Inner::GatewayClass(self.value(value)?),
            Kind::Gateway => Inner::Gateway(self.value(value)?),
            Kind::HttpRoute => Inner::HttpRoute(self.value(value)?),
            Kind::ReferenceGrant => Inner::ReferenceGrant(self.value(value)?),
            Kind::InferencePool => Inner::InferencePool(self.value(value)?),
            Kind::InferenceObjective => Inner::InferenceObjective(self.value(value)?),
            Kind::LegacyInferenceObjective => Inner::LegacyInferenceObjective(self.value(value)?),
            Kind::InferenceModelRewrite => Inner::InferenceModelRewrite(self.value(value)?),
            Kind::LegacyInferenceModelRewrite => {
                Inner::LegacyInferenceModelRewrite(self.value(value)?)
            }
            Kind::Service => Inner::Service(self.value(value)?),
            Kind::EndpointSlice => Inner::EndpointSlice(self.value(value)?),
            Kind::Secret => Inner::Secret(self.value(value)?),
            Kind::Pod => Inner::Pod(self.value(value)?),
            Kind::Namespace => Inner::Namespace(self.value(value)?),
        })
    }

    fn value<T: DeserializeOwned>(&mut self, value: Value) -> Result<T, Vec<Problem>> {
        let mut track = serde_path_to_error::Track::new();
        let mut unknown = Vec::new();
        let mut note = |path: serde_ignored::Path<'_>| unknown.push(field_path(&path.to_string()));
        let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
        let read = T::deserialize(serde_ignored::Deserializer::new(tracked, &mut note));
        let label = self.label;
        let problem = |field: String, reason, message| Problem {
            object: label.to_owned(),
            field,
            reason,
            message,
        };
        if self.warns {
            let warnings = unknown.into_iter().filter(|f| is_ours(f)).map(|field| {
                let message = "no such field; it has no effect: check its spelling and place";
                problem(field, reason::UNKNOWN_FIELD, message.to_owned())
            });
            self.warnings.extend(warnings);
        }
        read.map_err(|error| {
            let field = field_path(&track.path().to_string());
            let message = match self.quotes {
                true => error.to_string(),
                false => "not of the type that this field of a Secret has".to_owned(),
            };
            vec![problem(field, reason::MALFORMED, message)]
        })
    }
}

/// Fields of `metadata` that the API server keeps and nothing here reads.
const FOREIGN_METADATA: [&str; 9] = [
    "deletionGracePeriodSeconds",
    "finalizers",
    "generateName",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
    "clusterName",
];

/// Whether an unknown field is one that the user may have misspelt: those of `status` are not
/// theirs, and some of `metadata` are the server's.
fn is_ours(field: &str) -> bool {
    match field.split_once('.') {
        Some(("spec", _)) => true,
        Some(("metadata", rest)) => !FOREIGN_METADATA.contains(&rest),
        _ => !matches!(field, "apiVersion" | "kind" | "status"),
    }
}

/// `spec.rules.0.matches` and `spec.rules[0].?.matches` as `spec.rules[0].matches`.
fn field_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for part in path.split('.').filter(|part| !matches!(*part, "?" | "")) {
        if part.bytes().all(|b| b.is_ascii_digit()) {
            out.push('[');
            out.push_str(part);
            out.push(']');
        } else {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(part);
        }
    }
    out
}
