//! The server's JSON to values: pages of a list, lines of a watch. What nothing here reads is left
//! out while it is parsed, since it is most of a pod's text.
//!
//! Objects stay plain values: whether one is well formed is for `forebay_api::Object::parse` to say,
//! object by object.

use std::fmt;

use forebay_api::Kind;
use http::StatusCode;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use super::server::{Failure, json};

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Page {
    /// The version of the list as a whole, to watch from.
    pub(crate) version: String,
    /// Where the next page begins.
    pub(crate) next: Option<String>,
    pub(crate) items: Vec<Value>,
}

/// One line of a watch.
#[derive(PartialEq, Debug)]
pub(crate) enum Event {
    /// An object that is there, new or changed.
    Seen(Value),
    /// An object that is gone, as it was last.
    Gone(Value),
    /// Nothing has happened up to this version.
    Bookmark(String),
    /// The watch cannot go on.
    Error(Failure),
}

/// What every object of a list is, which a list says only once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) kind: Kind,
    pub(crate) api_version: &'static str,
}

/// Reads a page of objects of one form.
pub(crate) fn page(bytes: &[u8], form: Form) -> Result<Page, Failure> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(default)]
        metadata: ListMeta,
        #[serde(borrow, default)]
        items: Option<Vec<&'a RawValue>>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct ListMeta {
        resource_version: String,
        #[serde(rename = "continue")]
        next: Option<String>,
    }
    let raw: Raw<'_> = json(bytes)?;
    let items = raw.items.unwrap_or_default().into_iter();
    let items = items.map(|item| object(item, form));
    Ok(Page {
        items: items.collect::<Result<_, _>>()?,
        version: raw.metadata.resource_version,
        next: raw.metadata.next.filter(|next| !next.is_empty()),
    })
}

/// Reads a line of a watch over objects of one form.
pub(crate) fn event(line: &[u8], form: Form) -> Result<Event, Failure> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let raw: Raw<'_> = json(line)?;
    Ok(match raw.kind {
        "ADDED" | "MODIFIED" => Event::Seen(object(raw.object, form)?),
        "DELETED" => Event::Gone(object(raw.object, form)?),
        "BOOKMARK" => Event::Bookmark(version(&object(raw.object, form)?).to_owned()),
        "ERROR" => Event::Error(refusal(raw.object)),
        other => {
            let why = format!("a watch has no events of type {other}");
            Event::Error(Failure::Unreached(why))
        }
    })
}

/// `metadata.resourceVersion` of an object.
pub(crate) fn version(object: &Value) -> &str {
    let version = object.pointer("/metadata/resourceVersion");
    version.and_then(Value::as_str).unwrap_or_default()
}

fn refusal(status: &RawValue) -> Failure {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Status {
        code: u16,
        message: String,
    }
    let status: Status = serde_json::from_str(status.get()).unwrap_or_default();
    Failure::Refused {
        status: StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        why: status.message,
    }
}

fn object(raw: &RawValue, form: Form) -> Result<Value, Failure> {
    let mut reader = serde_json::Deserializer::from_str(raw.get());
    let unread = Unread(unread(form.kind));
    let mut value = unread.deserialize(&mut reader).map_err(|error| {
        let kind = form.kind;
        Failure::Unreached(format!("a {kind} that is not JSON: {error}"))
    })?;
    if let Value::Object(fields) = &mut value {
        let mut name = |field: &str, value: &str| {
            fields.entry(field).or_insert_with(|| value.into());
        };
        name("apiVersion", form.api_version);
        name("kind", form.kind.as_str());
    }
    Ok(value)
}

/// A field whose children are left out, or which is left out itself if it names none. Lists have the
/// children of their items.
struct Field {
    name: &'static str,
    children: &'static [Field],
}

const fn without(name: &'static str) -> Field {
    Field {
        name,
        children: &[],
    }
}

const METADATA: Field = Field {
    name: "metadata",
    children: &[without("managedFields")],
};

/// The bulk of a pod that says nothing of where it is, what it is or whether it is ready.
const POD: &[Field] = &[
    METADATA,
    Field {
        name: "spec",
        children: &[
            without("volumes"),
            without("affinity"),
            without("tolerations"),
            without("topologySpreadConstraints"),
            without("ephemeralContainers"),
            without("imagePullSecrets"),
            without("securityContext"),
            Field {
                name: "containers",
                children: &[
                    without("env"),
                    without("envFrom"),
                    without("volumeMounts"),
                    without("volumeDevices"),
                    without("livenessProbe"),
                    without("readinessProbe"),
                    without("startupProbe"),
                    without("lifecycle"),
                    without("securityContext"),
                ],
            },
        ],
    },
    Field {
        name: "status",
        children: &[
            without("containerStatuses"),
            without("initContainerStatuses"),
            without("ephemeralContainerStatuses"),
        ],
    },
];

/// Bundles of certificates are text.
const CONFIG_MAP: &[Field] = &[METADATA, without("binaryData")];

fn unread(kind: Kind) -> &'static [Field] {
    match kind {
        Kind::Pod => POD,
        Kind::ConfigMap => CONFIG_MAP,
        // Most other kinds are read whole.
        _ => &[METADATA],
    }
}

/// Makes a value of everything but some fields.
#[derive(Clone, Copy)]
struct Unread(&'static [Field]);

impl<'de> DeserializeSeed<'de> for Unread {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.0.is_empty() {
            return Value::deserialize(deserializer);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unread {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let field = self.0.iter().find(|field| field.name == name);
            match field.map(|field| field.children) {
                Some([]) => {
                    map.next_value::<IgnoredAny>()?;
                }
                Some(children) => {
                    fields.insert(name, map.next_value_seed(Self(children))?);
                }
                None => {
                    fields.insert(name, map.next_value()?);
                }
            }
        }
        Ok(Value::Object(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(flag.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PODS: Form = Form {
        kind: Kind::Pod,
        api_version: "v1",
    };

    #[test]
    fn a_page_has_its_version_its_successor_and_objects_that_know_their_kind() {
        let text = json!({
            "kind": "PodList",
            "metadata": {"resourceVersion": "7", "continue": "more"},
            "items": [{"metadata": {"name": "a", "managedFields": [{"manager": "kubelet"}]}}],
        });
        let page = page(text.to_string().as_bytes(), PODS).unwrap();
        assert_eq!(
            (page.version.as_str(), page.next.as_deref()),
            ("7", Some("more"))
        );
        assert_eq!(
            page.items,
            [json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}})]
        );
        let empty = super::page(br#"{"metadata": {"continue": ""}, "items": null}"#, PODS).unwrap();
        assert!(empty.next.is_none() && empty.items.is_empty());
    }

    #[test]
    fn events_are_objects_that_came_or_went_bookmarks_and_errors() {
        let check = |text: Value, want: Event| {
            assert_eq!(event(text.to_string().as_bytes(), PODS).unwrap(), want);
        };
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
        for kind in ["ADDED", "MODIFIED"] {
            check(
                json!({"type": kind, "object": pod}),
                Event::Seen(pod.clone()),
            );
        }
        check(json!({"type": "DELETED", "object": pod}), Event::Gone(pod));
        check(
            json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}),
            Event::Bookmark("9".to_owned()),
        );
        let gone = Failure::Refused {
            status: StatusCode::GONE,
            why: "too old".to_owned(),
        };
        check(
            json!({"type": "ERROR", "object": {"code": 410, "message": "too old"}}),
            Event::Error(gone),
        );
        assert!(event(b"{\"type\": \"ADDED\", \"obj", PODS).is_err());
    }

    #[test]
    fn of_a_pod_the_bulk_is_left_out_and_what_routing_reads_is_kept() {
        let pod = json!({
            "metadata": {"name": "a", "labels": {"app": "x"}, "managedFields": []},
            "spec": {
                "nodeName": "n",
                "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "env": [], "ports": [{"containerPort": 1}]}],
            },
            "status": {"podIP": "10.0.0.1", "containerStatuses": [{}], "qosClass": null},
        });
        let line = json!({"type": "ADDED", "object": pod});
        let Event::Seen(kept) = event(line.to_string().as_bytes(), PODS).unwrap() else {
            panic!("not seen");
        };
        assert_eq!(
            kept,
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "a", "labels": {"app": "x"}},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"containerPort": 1}]}]},
                "status": {"podIP": "10.0.0.1", "qosClass": null},
            })
        );
    }
}
