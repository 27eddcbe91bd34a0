//! What to apply and what to delete.

use std::collections::{BTreeMap, BTreeSet};

use forebay_model::ObjectName;
use forebay_model::snapshot::Problem;
use serde_json::Value;

use super::labels::{gateway_of, label_value};
use super::objects::{self, Place, is_current, seal};
use super::ports::{Allocator, Mapping};
use super::{Site, Wanted};
use crate::reason;

/// A kind of object that is made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Made {
    /// How a Gateway is reached.
    Service,
    /// Who pods of a Gateway's own are; of others, what carries the Gateway's metadata beside it.
    ServiceAccount,
    /// What they may read.
    ClusterRoleBinding,
    /// The same in one namespace.
    RoleBinding,
    /// Pods of a Gateway's own.
    Deployment,
}

impl Made {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Service,
        Self::ServiceAccount,
        Self::ClusterRoleBinding,
        Self::RoleBinding,
        Self::Deployment,
    ];

    /// The `kind` of its objects.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::ServiceAccount => "ServiceAccount",
            Self::ClusterRoleBinding => "ClusterRoleBinding",
            Self::RoleBinding => "RoleBinding",
            Self::Deployment => "Deployment",
        }
    }

    /// The path of all its objects on an API server, or of those in `namespace`.
    #[must_use]
    pub fn path(self, namespace: Option<&str>) -> String {
        let (version, plural) = match self {
            Self::Service => ("/api/v1", "services"),
            Self::ServiceAccount => ("/api/v1", "serviceaccounts"),
            Self::Deployment => ("/apis/apps/v1", "deployments"),
            Self::RoleBinding => ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
            Self::ClusterRoleBinding => {
                return "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".to_owned();
            }
        };
        match namespace {
            Some(namespace) => format!("{version}/namespaces/{namespace}/{plural}"),
            None => format!("{version}/{plural}"),
        }
    }
}

/// An object to be applied.
#[derive(Clone, PartialEq, Debug)]
pub struct Put {
    /// Its kind.
    pub made: Made,
    /// Its path on an API server.
    pub path: String,
    /// The object. It has the `uid` of the one that is there, if one is: without, there must be none.
    pub object: Value,
}

impl Put {
    /// Whether an object of this name must not be there yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.object.pointer("/metadata/uid").is_none()
    }
}

/// An object to be deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delete {
    /// Its kind.
    pub made: Made,
    /// Its path on an API server.
    pub path: String,
    /// Its `metadata.uid`.
    pub uid: String,
}

/// What to do, in this order.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// To be applied.
    pub puts: Vec<Put>,
    /// To be deleted after that.
    pub deletes: Vec<Delete>,
    /// Why some Gateway does not get what it wants.
    pub problems: Vec<Problem>,
}

/// What Gateways that want `wanted` need beside `present`: the objects with our labels, as the API
/// server has them. Others are never looked at, and nothing of theirs is in the plan.
#[must_use]
pub fn plan(wanted: &[Wanted], present: &[(Made, Value)], site: &Site) -> Plan {
    let mut planner = Planner {
        site,
        present: present
            .iter()
            .filter_map(|(made, object)| Present::of(*made, object, site))
            .collect(),
        needed: BTreeSet::new(),
        plan: Plan::default(),
    };
    // Older objects first: of two that claim one port, the one that had it first keeps it.
    planner
        .present
        .sort_by(|a, b| (a.created, &a.path).cmp(&(b.created, &b.path)));
    let mappings = planner.mappings(wanted);
    for (one, mapping) in wanted.iter().zip(mappings) {
        planner.put_all(one, mapping.as_ref());
    }
    planner.delete_others();
    planner.plan
}

/// An object of ours that is there.
struct Present<'a> {
    made: Made,
    gateway: ObjectName,
    path: String,
    uid: &'a str,
    created: &'a str,
    object: &'a Value,
}

impl<'a> Present<'a> {
    fn of(made: Made, object: &'a Value, site: &Site) -> Option<Self> {
        let text = |field: &str| object["metadata"][field].as_str();
        let name = text("name")?;
        Some(Self {
            made,
            gateway: gateway_of(object, &site.namespace)?,
            path: format!("{}/{name}", made.path(text("namespace"))),
            uid: text("uid")?,
            created: text("creationTimestamp").unwrap_or_default(),
            object,
        })
    }

    /// Ports of a Service and where they lead.
    fn mapping(&self) -> Mapping {
        let ports = self.object["spec"]["ports"].as_array();
        let number = |port: &Value, field: &str| {
            let number = port[field].as_u64();
            number.and_then(|number| u16::try_from(number).ok())
        };
        let ports = ports.into_iter().flatten();
        ports
            .filter_map(|port| Some((number(port, "port")?, number(port, "targetPort")?)))
            .collect()
    }
}

struct Planner<'a> {
    site: &'a Site,
    present: Vec<Present<'a>>,
    /// Paths of objects that are to be there.
    needed: BTreeSet<String>,
    plan: Plan,
}

impl Planner<'_> {
    /// The ports of each of `wanted`; `None` for those that get no Service.
    fn mappings(&mut self, wanted: &[Wanted]) -> Vec<Option<Mapping>> {
        // Pods that serve several Gateways have each port once; others share theirs with nobody.
        let mut shared = Allocator::default();
        let mut own: Vec<Allocator> = wanted.iter().map(|_| Allocator::default()).collect();
        let services: BTreeMap<&str, usize> = self
            .present
            .iter()
            .enumerate()
            .filter(|(_, present)| present.made == Made::Service)
            .map(|(i, present)| (present.path.as_str(), i))
            .collect();
        let at = |one: &Wanted| services.get(path(Made::Service, one, self.site).as_str());
        // In the order of age, those that have no Service last and by name.
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        order.sort_by_key(|i| {
            let one = &wanted[*i];
            (at(one).copied().unwrap_or(usize::MAX), &one.gateway)
        });
        let mut mappings: Vec<Mapping> = vec![Mapping::new(); wanted.len()];
        for i in &order {
            let one = &wanted[*i];
            let Some(service) = at(one).map(|i| &self.present[*i]) else {
                continue;
            };
            if service.gateway == labelled(&one.gateway) {
                let ports = match one.data_plane {
                    Some(_) => &mut own[*i],
                    None => &mut shared,
                };
                mappings[*i] = ports.keep(&one.ports, &service.mapping());
            }
        }
        let mut without = Vec::new();
        for i in order {
            let one = &wanted[i];
            if self.gets_service(one) && !one.undecided {
                let ports = match one.data_plane {
                    Some(_) => &mut own[i],
                    None => &mut shared,
                };
                let none = ports.complete(&one.ports, &mut mappings[i]);
                without.extend(none.into_iter().map(|port| (i, port)));
            }
        }
        for (i, port) in without {
            let message = format!("no port is left in the pods that could serve its port {port}");
            self.refuse(&wanted[i], message);
        }
        let all = wanted.iter().zip(mappings);
        all.map(|(one, mapping)| self.gets_service(one).then_some(mapping))
            .collect()
    }

    fn gets_service(&self, one: &Wanted) -> bool {
        one.data_plane.is_some() || self.site.service_type.is_some()
    }

    /// Leaves what there is for a Gateway as it is.
    fn keep_all(&mut self, one: &Wanted) {
        let gateway = labelled(&one.gateway);
        let own = self.present.iter().filter(|p| p.gateway == gateway);
        self.needed.extend(own.map(|present| present.path.clone()));
    }

    /// The same, and says why.
    fn refuse(&mut self, one: &Wanted, message: String) {
        self.keep_all(one);
        self.plan.problems.push(Problem {
            object: format!("Gateway {}", one.gateway),
            field: String::new(),
            reason: reason::NO_INFRASTRUCTURE,
            message,
        });
    }

    /// Puts what one Gateway needs, with a Service of these ports if it gets one.
    fn put_all(&mut self, one: &Wanted, mapping: Option<&Mapping>) {
        if one.undecided {
            return self.keep_all(one);
        }
        if mapping.is_some_and(Mapping::is_empty) {
            // A Service without ports is none.
            return;
        }
        let missing = match &one.data_plane {
            None if mapping.is_some() && self.site.selector.is_empty() => {
                Some("it is not known which pods serve it: give the controller --gateway-selector")
            }
            Some(own) if own.image.is_none() && self.site.image.is_empty() => Some(
                "it wants pods of its own, and their image is not known: give the controller \
                 --image, or the GatewayConfig spec.image",
            ),
            Some(_) | None => None,
        };
        if let Some(message) = missing {
            return self.refuse(one, message.to_owned());
        }
        for object in objects::objects(one, self.site, mapping) {
            let (made, Place { namespace, name }, mut object) = object;
            seal(&mut object);
            let namespace = (!namespace.is_empty()).then_some(namespace);
            let path = format!("{}/{name}", made.path(namespace.as_deref()));
            let present = self.present.iter().find(|present| present.path == path);
            match present {
                Some(present) if present.gateway != labelled(&one.gateway) => {
                    let other = &present.gateway;
                    let message = format!("{path} is that of Gateway {other}; choose another name");
                    return self.refuse(one, message);
                }
                Some(present) if is_current(&object, present.object) => {
                    self.needed.insert(path);
                    continue;
                }
                Some(present) => object["metadata"]["uid"] = present.uid.into(),
                None => {}
            }
            self.needed.insert(path.clone());
            self.plan.puts.push(Put { made, path, object });
        }
    }

    fn delete_others(&mut self) {
        let surplus = |present: &&Present<'_>| !self.needed.contains(&present.path);
        let others = self.present.iter().filter(surplus);
        let deletes = others.map(|present| Delete {
            made: present.made,
            path: present.path.clone(),
            uid: present.uid.to_owned(),
        });
        self.plan.deletes.extend(deletes);
    }
}

/// A Gateway as labels name it.
fn labelled(gateway: &ObjectName) -> ObjectName {
    ObjectName::new(&gateway.namespace, &label_value(&gateway.name))
}

fn path(made: Made, one: &Wanted, site: &Site) -> String {
    let Place { namespace, name } = Place::of(one, site);
    format!("{}/{name}", made.path(Some(&namespace)))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
