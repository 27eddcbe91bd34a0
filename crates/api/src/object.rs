//! The door: a JSON value comes in, and leaves as an [`Object`] that is well formed and obeys the
//! rules of its kind, or as the list of everything that is wrong with it.
//!
//! References to other objects are not followed here; what is missing today may come tomorrow (see
//! `lower`). Reading YAML is the business of whoever has a file.

use forebay_model::ObjectName;
use forebay_model::snapshot::Problem;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kinds::Meta;
use crate::kinds::config::GatewayConfig;
use crate::kinds::core::{ConfigMap, EndpointSlice, Namespace, Pod, Secret, Service};
use crate::kinds::gateway::{Gateway, GatewayClass, ListenerSet, ReferenceGrant};
use crate::kinds::grpcroute::GrpcRoute;
use crate::kinds::httproute::HttpRoute;
use crate::kinds::inference::{InferenceModelRewrite, InferenceObjective, InferencePool};
use crate::kinds::policy::BackendTlsPolicy;
use crate::kinds::tlsroute::TlsRoute;
use crate::{reason, validate};

pub use crate::kind::Kind;

/// A well-formed object of a known kind.
#[derive(Clone, PartialEq, Debug)]
pub struct Object(pub(crate) Inner);

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Inner {
    GatewayClass(GatewayClass),
    // Several times as large as any other.
    Gateway(Box<Gateway>),
    ListenerSet(ListenerSet),
    HttpRoute(HttpRoute),
    GrpcRoute(GrpcRoute),
    TlsRoute(TlsRoute),
    BackendTlsPolicy(BackendTlsPolicy),
    ReferenceGrant(ReferenceGrant),
    GatewayConfig(GatewayConfig),
    InferencePool(InferencePool),
    InferenceObjective(InferenceObjective),
    LegacyInferenceObjective(InferenceObjective),
    InferenceModelRewrite(InferenceModelRewrite),
    LegacyInferenceModelRewrite(InferenceModelRewrite),
    Service(Service),
    EndpointSlice(EndpointSlice),
    Secret(Secret),
    ConfigMap(ConfigMap),
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
            Inner::ListenerSet(_) => Kind::ListenerSet,
            Inner::HttpRoute(_) => Kind::HttpRoute,
            Inner::GrpcRoute(_) => Kind::GrpcRoute,
            Inner::TlsRoute(_) => Kind::TlsRoute,
            Inner::BackendTlsPolicy(_) => Kind::BackendTlsPolicy,
            Inner::ReferenceGrant(_) => Kind::ReferenceGrant,
            Inner::GatewayConfig(_) => Kind::GatewayConfig,
            Inner::InferencePool(_) => Kind::InferencePool,
            Inner::InferenceObjective(_) => Kind::InferenceObjective,
            Inner::LegacyInferenceObjective(_) => Kind::LegacyInferenceObjective,
            Inner::InferenceModelRewrite(_) => Kind::InferenceModelRewrite,
            Inner::LegacyInferenceModelRewrite(_) => Kind::LegacyInferenceModelRewrite,
            Inner::Service(_) => Kind::Service,
            Inner::EndpointSlice(_) => Kind::EndpointSlice,
            Inner::Secret(_) => Kind::Secret,
            Inner::ConfigMap(_) => Kind::ConfigMap,
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
        self.0.meta()
    }
}

impl Inner {
    fn meta(&self) -> &Meta {
        match self {
            Self::GatewayClass(o) => &o.metadata,
            Self::Gateway(o) => &o.metadata,
            Self::ListenerSet(o) => &o.metadata,
            Self::HttpRoute(o) => &o.metadata,
            Self::GrpcRoute(o) => &o.metadata,
            Self::TlsRoute(o) => &o.metadata,
            Self::BackendTlsPolicy(o) => &o.metadata,
            Self::ReferenceGrant(o) => &o.metadata,
            Self::GatewayConfig(o) => &o.metadata,
            Self::InferencePool(o) => &o.metadata,
            Self::InferenceObjective(o) | Self::LegacyInferenceObjective(o) => &o.metadata,
            Self::InferenceModelRewrite(o) | Self::LegacyInferenceModelRewrite(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::EndpointSlice(o) => &o.metadata,
            Self::Secret(o) => &o.metadata,
            Self::ConfigMap(o) => &o.metadata,
            Self::Pod(o) => &o.metadata,
            Self::Namespace(o) => &o.metadata,
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
        (Some(version), Some(kind)) => match Kind::all().find(|known| known.as_str() == kind) {
            Some(known) => {
                let versions = known.api_versions().join(" or ");
                format!("{kind} is read as {versions}, not {version}")
            }
            None => format!("{version} {kind} is not read; the object has no effect"),
        },
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
            Kind::ListenerSet => Inner::ListenerSet(self.value(value)?),
            Kind::HttpRoute => Inner::HttpRoute(self.value(value)?),
            Kind::GrpcRoute => Inner::GrpcRoute(self.value(value)?),
            Kind::TlsRoute => Inner::TlsRoute(self.value(value)?),
            Kind::BackendTlsPolicy => Inner::BackendTlsPolicy(self.value(value)?),
            Kind::ReferenceGrant => Inner::ReferenceGrant(self.value(value)?),
            Kind::GatewayConfig => Inner::GatewayConfig(self.value(value)?),
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
            Kind::ConfigMap => Inner::ConfigMap(self.value(value)?),
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
const FOREIGN_METADATA: [&str; 8] = [
    "deletionGracePeriodSeconds",
    "finalizers",
    "generateName",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
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
