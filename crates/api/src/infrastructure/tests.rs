//! Plans by tables, and by random histories of Gateways that come, change and go.

use proptest::prelude::*;
use serde_json::json;

use super::super::ports::PORTS;
use super::super::{DataPlane, Labels};
use super::*;

const OWN: &str = "forebay-system";

fn site() -> Site {
    Site {
        namespace: OWN.to_owned(),
        namespaces: Vec::new(),
        selector: labels(&[("app.kubernetes.io/name", "forebay")]),
        service_type: Some("LoadBalancer".to_owned()),
        image: "forebay:1".to_owned(),
        cluster_role: Some("forebay-data-plane".to_owned()),
        service_accounts: false,
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    pairs.collect()
}

fn wanted(name: &str, ports: &[u16]) -> Wanted {
    Wanted {
        gateway: ObjectName::new("apps", name),
        uid: format!("uid-{name}"),
        class: "forebay".to_owned(),
        ports: ports.iter().copied().collect(),
        labels: Labels::new(),
        annotations: Labels::new(),
        address: None,
        service_type: None,
        data_plane: None,
        undecided: false,
    }
}

fn dedicated(name: &str, ports: &[u16]) -> Wanted {
    Wanted {
        data_plane: Some(DataPlane {
            replicas: 2,
            image: None,
            resources: None,
        }),
        ..wanted(name, ports)
    }
}

/// What an API server would have after a plan, and `before` it.
#[derive(Default)]
struct Cluster {
    objects: Vec<(Made, Value)>,
    made: usize,
}

impl Cluster {
    #[track_caller]
    fn apply(&mut self, plan: &Plan) {
        for put in &plan.puts {
            let same = |object: &Value, field: &str| {
                object["metadata"][field] == put.object["metadata"][field]
            };
            let at = |object: &Value| same(object, "name") && same(object, "namespace");
            let found = self
                .objects
                .iter_mut()
                .find(|(made, object)| *made == put.made && at(object));
            assert_eq!(found.is_none(), put.is_new(), "{}", put.path);
            // As the items of a list are.
            let mut object = put.object.clone();
            for field in ["apiVersion", "kind"] {
                object.as_object_mut().unwrap().remove(field);
            }
            self.made += 1;
            match found {
                Some((_, before)) => {
                    assert_eq!(before["metadata"]["uid"], object["metadata"]["uid"]);
                    let created = before["metadata"]["creationTimestamp"].clone();
                    object["metadata"]["creationTimestamp"] = created;
                    *before = object;
                }
                None => {
                    object["metadata"]["uid"] = format!("made-{}", self.made).into();
                    object["metadata"]["creationTimestamp"] = format!("{:09}", self.made).into();
                    self.objects.push((put.made, object));
                }
            }
        }
        for delete in &plan.deletes {
            let count = self.objects.len();
            self.objects
                .retain(|(_, object)| object["metadata"]["uid"] != delete.uid.as_str());
            assert_eq!(self.objects.len(), count - 1, "{}", delete.path);
        }
    }

    /// Plans, applies, and checks that there is nothing left to do then.
    #[track_caller]
    fn settle(&mut self, wanted: &[Wanted]) -> Plan {
        self.settle_at(&site(), wanted)
    }

    #[track_caller]
    fn settle_at(&mut self, site: &Site, wanted: &[Wanted]) -> Plan {
        let done = plan(wanted, &self.objects, site);
        self.apply(&done);
        let again = plan(wanted, &self.objects, site);
        assert_eq!((again.puts, again.deletes), (vec![], vec![]));
        done
    }

    /// Gateway, port and port of the pods of every Service, as `apps/edge 80:20000`.
    fn ports(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (_, object) in self
            .objects
            .iter()
            .filter(|(made, _)| *made == Made::Service)
        {
            let gateway = gateway_of(object, OWN).unwrap();
            for port in object["spec"]["ports"].as_array().unwrap() {
                lines.push(format!("{gateway} {}:{}", port["port"], port["targetPort"]));
            }
        }
        lines.sort();
        lines
    }
}

#[test]
fn gateways_get_services_in_our_namespace_with_the_lowest_free_ports() {
    let mut cluster = Cluster::default();
    cluster.settle(&[wanted("a", &[80, 443]), wanted("b", &[80])]);
    let first = ["apps/a 443:20001", "apps/a 80:20000", "apps/b 80:20002"];
    assert_eq!(cluster.ports(), first);
    // What is there stays; what is given up is free again.
    cluster.settle(&[
        wanted("a", &[443, 8443]),
        wanted("b", &[80]),
        wanted("c", &[80]),
    ]);
    let second = [
        "apps/a 443:20001",
        "apps/a 8443:20000",
        "apps/b 80:20002",
        "apps/c 80:20003",
    ];
    assert_eq!(cluster.ports(), second);
    cluster.settle(&[wanted("c", &[80])]);
    assert_eq!(cluster.ports(), ["apps/c 80:20003"]);
    cluster.settle(&[]);
    assert_eq!(cluster.objects, []);
}

#[test]
fn a_service_is_that_of_its_gateway_with_all_that_was_asked_for() {
    let mut cluster = Cluster::default();
    let one = Wanted {
        labels: labels(&[("team", "a"), ("app.kubernetes.io/managed-by", "me")]),
        annotations: labels(&[("cloud/internal", "true")]),
        address: Some("192.0.2.7".to_owned()),
        ..wanted("edge", &[80])
    };
    cluster.settle(&[one]);
    let (made, mut service) = cluster.objects.remove(0);
    assert_eq!(made, Made::Service);
    let metadata = service["metadata"].as_object_mut().unwrap();
    let name = metadata["name"].as_str().unwrap();
    assert!(name.starts_with("gw-apps-edge-"), "{name}");
    assert_eq!(metadata["namespace"], OWN);
    assert_eq!(
        metadata["labels"],
        json!({
            "team": "a",
            "app.kubernetes.io/managed-by": "forebay",
            "gateway.networking.k8s.io/gateway-name": "edge",
            "forebay.dev/gateway-namespace": "apps",
            "forebay.dev/controller-namespace": OWN,
        })
    );
    assert_eq!(metadata["annotations"]["cloud/internal"], "true");
    assert_eq!(
        service["spec"],
        json!({
            "type": "LoadBalancer",
            "loadBalancerIP": "192.0.2.7",
            "selector": {"app.kubernetes.io/name": "forebay"},
            "ports": [{"name": "port-80", "port": 80, "targetPort": 20000, "protocol": "TCP"}],
        })
    );
}

#[test]
fn a_gateway_with_pods_of_its_own_gets_all_of_them_beside_it_and_its_own_ports() {
    let mut cluster = Cluster::default();
    let plan = cluster.settle(&[wanted("shared", &[80]), dedicated("own", &[80])]);
    let paths: Vec<&str> = plan.puts.iter().map(|put| put.path.as_str()).collect();
    let own = super::super::labels::name_of("own", "forebay");
    let binding = super::super::labels::name_of("apps", "own");
    assert_eq!(
        paths[1..],
        [
            &format!("/api/v1/namespaces/apps/serviceaccounts/{own}"),
            &format!("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{binding}"),
            &format!("/api/v1/namespaces/apps/services/{own}"),
            &format!("/apis/apps/v1/namespaces/apps/deployments/{own}"),
        ]
    );
    assert_eq!(
        cluster.ports(),
        ["apps/own 80:20000", "apps/shared 80:20000"]
    );
    let deployment = &plan.puts[4].object;
    assert_eq!(
        deployment["metadata"]["ownerReferences"][0]["uid"],
        "uid-own"
    );
    let template = &deployment["spec"]["template"];
    let selected = &deployment["spec"]["selector"]["matchLabels"];
    for (label, value) in selected.as_object().unwrap() {
        assert_eq!(template["metadata"]["labels"][label], *value);
        assert_eq!(plan.puts[3].object["spec"]["selector"][label], *value);
    }
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["image"], "forebay:1");
    let arguments = container["args"].as_array().unwrap();
    assert!(
        arguments.contains(&json!("--gateway=apps/own")),
        "{arguments:?}"
    );
    // Back among the others: what was its own goes.
    let plan = cluster.settle(&[wanted("shared", &[80]), wanted("own", &[80])]);
    assert_eq!(plan.deletes.len(), 4);
    assert_eq!(
        cluster.ports(),
        ["apps/own 80:20001", "apps/shared 80:20000"]
    );
}

/// Kind and place of everything that is put, in order.
fn puts(plan: &Plan) -> Vec<String> {
    let place = |put: &Put| {
        let metadata = &put.object["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or("-");
        let name = metadata["name"].as_str().unwrap();
        // The hash in a name tells nothing here.
        let (readable, rest) = name.rsplit_once('-').unwrap();
        let suffix = rest.split_once('.').map_or("", |(_, suffix)| suffix);
        format!("{} {namespace}/{readable} {suffix}", put.made.as_str())
            .trim_end()
            .to_owned()
    };
    plan.puts.iter().map(place).collect()
}

#[test]
fn a_gateway_that_shares_pods_has_an_account_beside_it_that_shows_its_metadata() {
    let mut cluster = Cluster::default();
    let marked = Site {
        service_accounts: true,
        ..site()
    };
    let one = Wanted {
        labels: labels(&[("team", "a")]),
        annotations: labels(&[("note", "kept")]),
        ..wanted("edge", &[80])
    };
    let all = std::slice::from_ref(&one);
    let plan = cluster.settle_at(&marked, all);
    assert_eq!(
        puts(&plan),
        [
            "Service forebay-system/gw-apps-edge",
            "ServiceAccount apps/gw-edge-forebay",
        ]
    );
    let metadata = &plan.puts[1].object["metadata"];
    assert_eq!(metadata["labels"]["team"], "a");
    assert_eq!(
        metadata["labels"]["gateway.networking.k8s.io/gateway-name"],
        "edge"
    );
    assert_eq!(metadata["annotations"]["note"], "kept");
    assert_eq!(metadata["ownerReferences"][0]["uid"], "uid-edge");
    // An owner of another namespace would have the Service collected as an orphan.
    assert!(plan.puts[0].object["metadata"]["ownerReferences"].is_null());
    assert_eq!(plan.puts[1].object["automountServiceAccountToken"], false);
    // It is there without a Service, too, stays as its Gateway gets pods of its own, and goes with it.
    let none = Site {
        service_type: None,
        selector: Labels::new(),
        ..marked.clone()
    };
    let plan = cluster.settle_at(&none, all);
    assert_eq!((plan.puts.len(), plan.deletes.len()), (0, 1));
    let apart = Wanted {
        data_plane: dedicated("edge", &[80]).data_plane,
        ..one.clone()
    };
    cluster.settle_at(&marked, &[apart]);
    assert_eq!(cluster.objects[0].0, Made::ServiceAccount);
    cluster.settle_at(&marked, &[]);
    assert_eq!(cluster.objects, []);
    // Where it is not asked for, there is none.
    assert_eq!(cluster.settle(all).puts.len(), 1);
}

#[test]
fn pods_of_a_gateways_own_get_rights_in_the_namespaces_that_are_followed_and_no_more() {
    let mut cluster = Cluster::default();
    let limited = Site {
        namespaces: vec!["apps".to_owned(), "models".to_owned()],
        ..site()
    };
    let all = [dedicated("own", &[80])];
    let plan = cluster.settle_at(&limited, &all);
    assert_eq!(
        puts(&plan),
        [
            "ServiceAccount apps/gw-own-forebay",
            "ClusterRoleBinding -/gw-apps-own cluster",
            "RoleBinding apps/gw-apps-own",
            "RoleBinding models/gw-apps-own",
            "Service apps/gw-own-forebay",
            "Deployment apps/gw-own-forebay",
        ]
    );
    let role = |n: usize| plan.puts[n].object["roleRef"]["name"].clone();
    assert_eq!(
        [role(1), role(2), role(3)],
        [
            "forebay-data-plane.cluster",
            "forebay-data-plane",
            "forebay-data-plane"
        ]
    );
    for binding in &plan.puts[1..4] {
        let subject = &binding.object["subjects"][0];
        assert_eq!(subject["name"], plan.puts[0].object["metadata"]["name"]);
        assert_eq!(subject["namespace"], "apps");
    }
    let pod = &plan.puts[5].object["spec"]["template"]["spec"];
    let arguments = pod["containers"][0]["args"].as_array().unwrap();
    let followed = json!("--watch-namespace=apps,models");
    assert!(arguments.contains(&followed), "{arguments:?}");
    // One namespace less: its binding goes, the others stay as they are.
    let fewer = Site {
        namespaces: vec!["apps".to_owned()],
        ..limited.clone()
    };
    let plan = cluster.settle_at(&fewer, &all);
    assert_eq!(puts(&plan), ["Deployment apps/gw-own-forebay"]);
    let gone: Vec<_> = plan.deletes.iter().map(|gone| gone.made).collect();
    assert_eq!(gone, [Made::RoleBinding]);
    // All namespaces: one binding for all, under a name of its own.
    let plan = cluster.settle(&all);
    assert_eq!(puts(&plan)[0], "ClusterRoleBinding -/gw-apps-own");
    assert_eq!(plan.deletes.len(), 2);
    cluster.settle_at(&limited, &[]);
    assert_eq!(cluster.objects, []);
}

#[test]
fn things_of_others_are_neither_changed_nor_deleted() {
    let mut cluster = Cluster::default();
    cluster.settle(&[wanted("a", &[80])]);
    let foreign = [
        ("app.kubernetes.io/managed-by", "helm"),
        ("forebay.dev/controller-namespace", "another"),
    ];
    for (label, value) in foreign {
        let mut object = cluster.objects[0].1.clone();
        object["metadata"]["labels"][label] = value.into();
        let before = vec![(Made::Service, object)];
        let plan = plan(&[], &before, &site());
        assert_eq!((plan.puts, plan.deletes), (vec![], vec![]), "{label}");
    }
    // A Service of our name that is labelled as another Gateway's is a problem, not a prey.
    cluster.objects[0].1["metadata"]["labels"]["forebay.dev/gateway-namespace"] = "b".into();
    let plan = plan(&[wanted("a", &[80])], &cluster.objects, &site());
    assert_eq!(plan.puts, []);
    assert!(plan.problems[0].message.contains("is that of Gateway b/a"));
}

#[test]
fn what_somebody_has_changed_is_applied_again_and_what_is_unknown_is_left_alone() {
    let mut cluster = Cluster::default();
    let all = [wanted("a", &[80]), dedicated("b", &[80])];
    cluster.settle(&all);
    cluster.objects[0].1["spec"]["selector"]["tier"] = "x".into();
    cluster.objects[0].1["spec"]["ports"][0]["nodePort"] = 30_000.into();
    let kept = plan(&all, &cluster.objects, &site());
    assert_eq!(kept.puts, [], "additions of the server or of others stay");
    cluster.objects[0].1["spec"]["type"] = "ClusterIP".into();
    let mended = cluster.settle(&all);
    assert_eq!(mended.puts.len(), 1);
    // A controller that has lost its flags deletes nothing.
    let unclear = |one: &Wanted| Wanted {
        undecided: true,
        ports: BTreeSet::from([81]),
        ..one.clone()
    };
    let held = plan(
        &all.clone().map(|one| unclear(&one)),
        &cluster.objects,
        &site(),
    );
    assert_eq!(held, Plan::default());
    let blank = Site {
        selector: Labels::new(),
        image: String::new(),
        ..site()
    };
    let plan = plan(&all, &cluster.objects, &blank);
    assert_eq!((plan.puts, plan.deletes), (vec![], vec![]));
    let said: Vec<&str> = plan.problems.iter().map(|p| p.object.as_str()).collect();
    assert_eq!(said, ["Gateway apps/a", "Gateway apps/b"]);
}

#[test]
fn of_two_services_that_lead_to_one_port_the_older_keeps_it() {
    let mut cluster = Cluster::default();
    let both = [wanted("a", &[80]), wanted("b", &[80])];
    cluster.settle(&both);
    cluster.objects[0].1["spec"]["ports"][0]["targetPort"] = 20_001.into();
    cluster.objects[0].1["metadata"]["creationTimestamp"] = "000000009".into();
    cluster.settle(&both);
    assert_eq!(cluster.ports(), ["apps/a 80:20000", "apps/b 80:20001"]);
}

#[test]
fn when_no_port_is_left_the_gateway_is_told_and_the_others_keep_theirs() {
    let mut cluster = Cluster::default();
    let count = PORTS.len();
    let many: Vec<u16> = (1..=u16::try_from(count).unwrap()).collect();
    let all = [wanted("a", &many[1..]), wanted("b", &[80, 443])];
    let plan = cluster.settle(&all);
    assert_eq!(cluster.ports().len(), count);
    let told: Vec<_> = plan
        .problems
        .iter()
        .map(|p| (&*p.object, &*p.message))
        .collect();
    let message = "no port is left in the pods that could serve its port 443";
    assert_eq!(told, [("Gateway apps/b", message)]);
}

/// One state of the Gateways: which of them there are, with which ports, and which of them have pods
/// of their own.
fn states() -> impl Strategy<Value = Vec<Vec<(u8, Vec<u16>, bool)>>> {
    let ports = proptest::sample::subsequence(vec![80, 443, 8080, 8443, 9000], 1..=4);
    let gateways = proptest::collection::vec((0..8_u8, ports, any::<bool>()), 0..8);
    proptest::collection::vec(gateways, 1..8)
}

proptest! {
    #[test]
    fn no_two_gateways_share_a_port_and_no_mapping_that_is_wanted_ever_changes(states in states()) {
        let mut cluster = Cluster::default();
        let mut last = std::collections::BTreeMap::new();
        for state in states {
            let mut all: Vec<Wanted> = Vec::new();
            for (n, ports, own) in state {
                let name = format!("g{n}");
                let one = if own { dedicated(&name, &ports) } else { wanted(&name, &ports) };
                if all.iter().all(|other| other.gateway != one.gateway) {
                    all.push(one);
                }
            }
            cluster.settle(&all);
            let mut taken = BTreeSet::new();
            let mut now = std::collections::BTreeMap::new();
            for one in &all {
                let service = path(Made::Service, one, &site());
                let objects = cluster.objects.iter();
                let found = objects.filter_map(|(made, o)| Present::of(*made, o, &site()));
                let found = found.into_iter().find(|present| present.path == service);
                let mapping = found.expect("every Gateway has a Service").mapping();
                let ports: BTreeSet<u16> = mapping.keys().copied().collect();
                prop_assert_eq!(&ports, &one.ports);
                for (port, bound) in mapping {
                    let pods = one.data_plane.as_ref().map(|_| one.gateway.clone());
                    prop_assert!(PORTS.contains(&bound));
                    prop_assert!(taken.insert((pods, bound)), "{} twice", bound);
                    now.insert((service.clone(), port), bound);
                }
            }
            for (place, bound) in &now {
                let before = last.get(place).unwrap_or(bound);
                prop_assert_eq!(before, bound, "{:?}", place);
            }
            let services = cluster.objects.iter().filter(|(made, _)| *made == Made::Service);
            prop_assert_eq!(services.count(), all.len());
            last = now;
        }
    }
}
