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
            Some(_) => Self::beside(wanted),
            None => Self {
                namespace: site.namespace.clone(),
                name: name_of(namespace, name),
            },
        }
    }

    /// In the Gateway's namespace, which tells it from others.
    fn beside(wanted: &Wanted) -> Self {
        let ObjectName { namespace, name } = &wanted.gateway;
        Self {
            namespace: namespace.to_string(),
            name: name_of(name, &wanted.class),
        }
    }

    /// Of a binding in `namespace`, or of one in none.
    fn of_binding(wanted: &Wanted, namespace: &str) -> Self {
        let ObjectName {
            namespace: of,
            name,
        } = &wanted.gateway;
        Self {
            namespace: namespace.to_owned(),
            name: name_of(of, name),
        }
    }
}

/// Everything that is made for one Gateway, in the order in which it is applied.
/// There is no Service without `ports`.
pub(super) fn objects(
    wanted: &Wanted,
    site: &Site,
    ports: Option<&Mapping>,
) -> Vec<(Made, Place, Value)> {
    let maker = Maker { wanted, site };
    let mut all = Vec::new();
    let service = |selector: &Labels| {
        let place = Place::of(wanted, site);
        ports.map(|ports| {
            let service = maker.service(&place, ports, selector);
            (Made::Service, place, service)
        })
    };
    let account = || {
        let place = Place::beside(wanted);
        let account = maker.service_account(&place);
        (Made::ServiceAccount, place, account)
    };
    let Some(data_plane) = &wanted.data_plane else {
        all.extend(service(&site.selector));
        all.extend(site.service_accounts.then(account));
        return all;
    };
    all.push(account());
    all.extend(maker.bindings());
    all.extend(service(&maker.pods()));
    let place = Place::beside(wanted);
    let deployment = maker.deployment(&place, data_plane);
    all.push((Made::Deployment, place, deployment));
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

    fn metadata(&self, Place { namespace, name }: &Place) -> Value {
        let mut metadata = json!({
            "name": name,
            "namespace": namespace,
            "labels": self.labels(),
            "annotations": self.wanted.annotations,
        });
        // An owner must be of the same namespace.
        if *self.wanted.gateway.namespace == **namespace {
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

    fn service(&self, place: &Place, ports: &Mapping, selector: &Labels) -> Value {
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
            "metadata": self.metadata(place),
            "spec": spec,
        })
    }

    fn service_account(&self, place: &Place) -> Value {
        let mut account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": self.metadata(place),
        });
        if self.wanted.data_plane.is_none() {
            // Nobody is meant to be this one.
            account["automountServiceAccountToken"] = false.into();
        }
        account
    }

    /// What gives pods of the Gateway's own their rights, if we do.
    fn bindings(&self) -> Vec<(Made, Place, Value)> {
        let Some(role) = &self.site.cluster_role else {
            return Vec::new();
        };
        if self.site.namespaces.is_empty() {
            let place = Place::of_binding(self.wanted, "");
            return vec![self.binding(Made::ClusterRoleBinding, place, role)];
        }
        let mut place = Place::of_binding(self.wanted, "");
        // A binding's role cannot be changed, so this one has a name of its own.
        place.name.push_str(".cluster");
        let of_cluster = format!("{role}.cluster");
        let mut all = vec![self.binding(Made::ClusterRoleBinding, place, &of_cluster)];
        all.extend(self.site.namespaces.iter().map(|namespace| {
            let place = Place::of_binding(self.wanted, namespace);
            self.binding(Made::RoleBinding, place, role)
        }));
        all
    }

    fn binding(&self, made: Made, place: Place, role: &str) -> (Made, Place, Value) {
        let account = Place::beside(self.wanted);
        let mut binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": made.as_str(),
            "metadata": {
                "name": place.name,
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
        });
        if !place.namespace.is_empty() {
            binding["metadata"]["namespace"] = place.namespace.as_str().into();
        }
        (made, place, binding)
    }

    fn deployment(&self, place: &Place, data_plane: &DataPlane) -> Value {
        let mut labels = self.labels();
        labels.extend(self.pods());
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": self.metadata(place),
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
            "serviceAccountName": Place::beside(self.wanted).name,
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
