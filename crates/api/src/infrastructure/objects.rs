//! The objects that are made for a Gateway, as JSON for server-side apply.

use forebay_model::ObjectName;
use serde_json::{Map, Value, json};

use super::labels::{
    CONTROLLER, GATEWAY_NAME, GATEWAY_NAMESPACE, MANAGED_BY, fnv, label_value, name_of,
};
use super::plan::Made;
use super::ports::Mapping;
use super::{DataPlane, Labels, Site, Wanted};
use crate::kinds::GATEWAY_GROUP;

/// Annotation with a hash of what was applied last, so that what has not changed is not sent again.
pub(super) const APPLIED: &str = "forebay.dev/applied";
/// `app.kubernetes.io/name` of pods of a Gateway's own. Not that of Forebay's own pods, whose Services
/// must not lead to these.
const DATA_PLANE: &str = "forebay-data-plane";
/// Port of health checks and metrics in pods of a Gateway's own.
const ADMIN_PORT: u16 = 9_901;
/// Lame duck, then streams, then the last lines of the log: the defaults of `forebay gateway`.
const GRACE_SECONDS: u32 = 5 + 300 + 15;

/// Where the objects of one Gateway are.
pub(super) struct Place {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Place {
    pub(super) fn of(wanted: &Wanted, site: &Site) -> Self {
        let ObjectName { namespace, name } = &wanted.gateway;
        match wanted.data_plane {
            // Its own namespace tells a Gateway from others.
            Some(_) => Self {
                namespace: namespace.to_string(),
                name: name_of(name, &wanted.class),
            },
            None => Self {
                namespace: site.namespace.clone(),
                name: name_of(namespace, name),
            },
        }
    }
}

/// Everything that is made for one Gateway, in the order in which it is applied.
pub(super) fn objects(wanted: &Wanted, site: &Site, ports: &Mapping) -> Vec<(Made, Place, Value)> {
    let maker = Maker { wanted, site };
    let mut all = Vec::new();
    let mut add = |made, object| all.push((made, Place::of(wanted, site), object));
    let Some(data_plane) = &wanted.data_plane else {
        add(Made::Service, maker.service(ports, &site.selector));
        return all;
    };
    add(Made::ServiceAccount, maker.service_account());
    if let Some(role) = &site.cluster_role {
        let place = Place {
            namespace: String::new(),
            name: name_of(&wanted.gateway.namespace, &wanted.gateway.name),
        };
        let binding = maker.binding(&place.name, role);
        all.push((Made::ClusterRoleBinding, place, binding));
    }
    let mut add = |made, object| all.push((made, Place::of(wanted, site), object));
    add(Made::Service, maker.service(ports, &maker.pods()));
    add(Made::Deployment, maker.deployment(data_plane));
    all
}

struct Maker<'a> {
    wanted: &'a Wanted,
    site: &'a Site,
}

impl Maker<'_> {
    /// Labels by which pods of the Gateway's own are found; they never change.
    fn pods(&self) -> Labels {
        let name = label_value(&self.wanted.gateway.name);
        let pairs = [
            ("app.kubernetes.io/name", DATA_PLANE.to_owned()),
            (GATEWAY_NAME, name),
        ];
        pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
    }

    /// Those of the Gateway, and ours, which count more.
    fn labels(&self) -> Labels {
        let gateway = &self.wanted.gateway;
        let mut labels = self.wanted.labels.clone();
        let own = [
            (GATEWAY_NAME, label_value(&gateway.name)),
            (GATEWAY_NAMESPACE, gateway.namespace.to_string()),
            (CONTROLLER, self.site.namespace.clone()),
            (MANAGED_BY.0, MANAGED_BY.1.to_owned()),
        ];
        labels.extend(own.map(|(key, value)| (key.to_owned(), value)));
        labels
    }

    fn metadata(&self) -> Value {
        let Place { namespace, name } = Place::of(self.wanted, self.site);
        let mut metadata = json!({
            "name": name,
            "namespace": namespace,
            "labels": self.labels(),
            "annotations": self.wanted.annotations,
        });
        // An owner must be of the same namespace.
        if self.wanted.data_plane.is_some() {
            metadata["ownerReferences"] = json!([{
                "apiVersion": format!("{GATEWAY_GROUP}/v1"),
                "kind": "Gateway",
                "name": &*self.wanted.gateway.name,
                "uid": self.wanted.uid,
                "controller": true,
            }]);
        }
        metadata
    }

    fn service(&self, ports: &Mapping, selector: &Labels) -> Value {
        let kind = self.wanted.service_type.as_ref();
        let kind = kind.or(self.site.service_type.as_ref());
        let kind = kind.map_or("ClusterIP", String::as_str);
        let one = |(port, bound): (&u16, &u16)| {
            json!({
                "name": format!("port-{port}"),
                "port": port,
                "targetPort": bound,
                "protocol": "TCP",
            })
        };
        let mut spec = json!({
            "type": kind,
            "selector": selector,
            "ports": ports.iter().map(one).collect::<Vec<_>>(),
        });
        if let (Some(address), "LoadBalancer") = (&self.wanted.address, kind) {
            spec["loadBalancerIP"] = address.as_str().into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self.metadata(),
            "spec": spec,
        })
    }

    fn service_account(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": self.metadata(),
        })
    }

    fn binding(&self, name: &str, role: &str) -> Value {
        let account = Place::of(self.wanted, self.site);
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {
                "name": name,
                "labels": self.labels(),
                "annotations": self.wanted.annotations,
            },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": role,
            },
            "subjects": [{
                "kind": "ServiceAccount",
                "name": account.name,
                "namespace": account.namespace,
            }],
        })
    }

    fn deployment(&self, data_plane: &DataPlane) -> Value {
        let mut labels = self.labels();
        labels.extend(self.pods());
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": self.metadata(),
            "spec": {
                "replicas": data_plane.replicas,
                "revisionHistoryLimit": 3,
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 },
                },
                "selector": { "matchLabels": self.pods() },
                "template": {
                    "metadata": { "labels": labels, "annotations": self.wanted.annotations },
                    "spec": self.pod(data_plane),
                },
            },
        })
    }

    fn pod(&self, data_plane: &DataPlane) -> Value {
        let image = data_plane.image.as_ref().unwrap_or(&self.site.image);
        let mut arguments = vec![
            "gateway".to_owned(),
            "--kubernetes".to_owned(),
            "--data-plane-only".to_owned(),
            format!("--gateway={}", self.wanted.gateway),
            format!("--admin=0.0.0.0:{ADMIN_PORT}"),
        ];
        if !self.site.namespaces.is_empty() {
            let namespaces = self.site.namespaces.join(",");
            arguments.push(format!("--watch-namespace={namespaces}"));
        }
        let mut container = json!({
            "name": "forebay",
            "image": image,
            "args": arguments,
            "ports": [{ "name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP" }],
            "startupProbe": probe("/livez", 1, 60),
            "livenessProbe": probe("/livez", 10, 6),
            "readinessProbe": probe("/readyz", 1, 3),
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
        });
        if let Some(resources) = &data_plane.resources {
            container["resources"] = resources.clone();
        }
        json!({
            "serviceAccountName": Place::of(self.wanted, self.site).name,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65_532,
                "runAsGroup": 65_532,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [container],
        })
    }
}

fn probe(path: &str, seconds: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": "admin" },
        "periodSeconds": seconds,
        "timeoutSeconds": seconds.min(5),
        "failureThreshold": failures,
    })
}

/// Notes on an object what it is.
pub(super) fn seal(object: &mut Value) {
    let hash = format!("{:016x}", fnv(object.to_string().as_bytes()));
    object["metadata"]["annotations"][APPLIED] = hash.into();
}

/// Whether `present` still is what `wanted` says: applied as such, and changed by nobody since.
pub(super) fn is_current(wanted: &Value, present: &Value) -> bool {
    let applied = |object: &Value| object["metadata"]["annotations"][APPLIED].clone();
    // Items of a list do not say what they are.
    let told = |field: &str| !matches!(field, "apiVersion" | "kind");
    let mut fields = wanted.as_object().into_iter().flatten();
    applied(wanted) == applied(present)
        && fields.all(|(field, part)| !told(field) || contains(&present[field], part))
}

/// Whether everything in `part` is in `whole`. Lists must be as long, since all of ours are written
/// whole.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => has_fields(whole, part),
        (Value::Array(whole), Value::Array(part)) => {
            let mut pairs = whole.iter().zip(part);
            whole.len() == part.len() && pairs.all(|(whole, part)| contains(whole, part))
        }
        (whole, part) => whole == part,
    }
}

fn has_fields(whole: &Map<String, Value>, part: &Map<String, Value>) -> bool {
    part.iter().all(|(field, part)| {
        let is_empty = part.as_object().is_some_and(Map::is_empty);
        match whole.get(field) {
            Some(whole) => contains(whole, part),
            // The server drops what is empty.
            None => is_empty,
        }
    })
}
