//! Which of the kinds that we read a server has, and under what path. A kind whose definition is
//! not installed is no error: it is looked for again.

use std::collections::{BTreeMap, BTreeSet};

use forebay_api::Kind;
use http::StatusCode;
use serde::Deserialize;

use super::read::Form;
use super::server::{Failure, Server, json};

/// Where the objects of one kind are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Scope {
    /// In namespaces.
    Namespaced,
    /// In the cluster as such.
    Cluster,
}

/// A kind as a server has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Resource {
    pub(crate) kind: Kind,
    pub(crate) api_version: &'static str,
    /// The name in paths, such as `httproutes`.
    pub(crate) plural: String,
    pub(crate) scope: Scope,
}

impl Resource {
    pub(crate) fn form(&self) -> Form {
        Form {
            kind: self.kind,
            api_version: self.api_version,
        }
    }

    /// The path of all objects, or of those in one namespace.
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        let version = version_path(self.api_version);
        match namespace.filter(|_| self.scope == Scope::Namespaced) {
            Some(namespace) => format!("{version}/namespaces/{namespace}/{}", self.plural),
            None => format!("{version}/{}", self.plural),
        }
    }
}

/// `/api/v1` or `/apis/GROUP/VERSION`.
fn version_path(api_version: &str) -> String {
    match api_version.contains('/') {
        true => format!("/apis/{api_version}"),
        false => format!("/api/{api_version}"),
    }
}

/// What a server answers about one version of one group.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Resources {
    resources: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

/// Those of `kinds` that the server has, each under the first of its versions that is served.
pub(crate) async fn discover(
    server: &Server,
    kinds: &BTreeSet<Kind>,
) -> Result<Vec<Resource>, Failure> {
    let versions = kinds.iter().flat_map(|kind| kind.api_versions());
    let versions: BTreeSet<&'static str> = versions.copied().collect();
    let mut served = BTreeMap::new();
    for version in versions {
        let resources = match server.get(&version_path(version)).await {
            Ok(bytes) => json(&bytes)?,
            Err(failure) if failure.is(StatusCode::NOT_FOUND) => Resources::default(),
            Err(failure) => return Err(failure),
        };
        served.insert(version, resources);
    }
    let found = kinds.iter().filter_map(|kind| find(*kind, &served));
    Ok(found.collect())
}

fn find(kind: Kind, served: &BTreeMap<&'static str, Resources>) -> Option<Resource> {
    kind.api_versions().iter().find_map(|version| {
        // Subresources have the kind too, and names like `pods/status`.
        let is_it = |listed: &&Listed| {
            listed.kind == kind.as_str()
                && !listed.name.contains('/')
                && ["list", "watch"]
                    .iter()
                    .all(|verb| listed.verbs.iter().any(|own| own == verb))
        };
        let listed = served.get(version)?.resources.iter().find(is_it)?;
        Some(Resource {
            kind,
            api_version: version,
            plural: listed.name.clone(),
            scope: match listed.namespaced {
                true => Scope::Namespaced,
                false => Scope::Cluster,
            },
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn served(versions: &[(&'static str, Value)]) -> BTreeMap<&'static str, Resources> {
        let read = |value: &Value| serde_json::from_value(value.clone()).unwrap();
        versions.iter().map(|(v, list)| (*v, read(list))).collect()
    }

    #[test]
    fn a_kind_is_read_under_its_preferred_version_that_is_served() {
        let grants = json!({"resources": [
            {"name": "referencegrants", "kind": "ReferenceGrant", "namespaced": true, "verbs": ["list", "watch"]},
        ]});
        let [new, old] = [
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1beta1",
        ];
        let both = served(&[(new, grants.clone()), (old, grants.clone())]);
        let found = find(Kind::ReferenceGrant, &both).unwrap();
        assert_eq!(found.api_version, new);
        let one = served(&[(new, json!({})), (old, grants)]);
        let found = find(Kind::ReferenceGrant, &one).unwrap();
        assert_eq!(
            found.path(None),
            "/apis/gateway.networking.k8s.io/v1beta1/referencegrants"
        );
        assert_eq!(find(Kind::Gateway, &one), None);
    }

    #[test]
    fn subresources_are_not_taken_for_the_kind_and_scope_shapes_the_path() {
        let core = served(&[(
            "v1",
            json!({"resources": [
                {"name": "pods/status", "kind": "Pod", "namespaced": true, "verbs": ["get"]},
                {"name": "pods", "kind": "Pod", "namespaced": true, "verbs": ["list", "watch"]},
                {"name": "namespaces", "kind": "Namespace", "namespaced": false, "verbs": ["list", "watch"]},
            ]}),
        )]);
        let path = |kind, namespace| find(kind, &core).unwrap().path(namespace);
        assert_eq!(path(Kind::Pod, None), "/api/v1/pods");
        assert_eq!(path(Kind::Pod, Some("a")), "/api/v1/namespaces/a/pods");
        assert_eq!(path(Kind::Namespace, Some("a")), "/api/v1/namespaces");
    }
}
