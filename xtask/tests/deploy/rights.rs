//! What the ServiceAccounts of `deploy/install.yaml` and of the chart's options may do, and what not.

use crate::cluster::{Cluster, NAMESPACE, cluster, helm, skip};
use serde_json::{Value, json};

/// `verb,verb group/resource[/subresource][=name] namespace`; `-` for no namespace, `core` for the
/// group without a name.
const ALLOWED: &[&str] = &[
    "get,list,watch gateway.networking.k8s.io/gatewayclasses -",
    "patch gateway.networking.k8s.io/gatewayclasses/status -",
    "get,list,watch core/namespaces -",
    "list,watch gateway.networking.k8s.io/gateways -",
    "get,list,watch gateway.networking.k8s.io/gateways apps",
    "get,list,watch gateway.networking.k8s.io/listenersets apps",
    "get,list,watch gateway.networking.k8s.io/httproutes apps",
    "get,list,watch gateway.networking.k8s.io/grpcroutes apps",
    "get,list,watch gateway.networking.k8s.io/tlsroutes apps",
    "get,list,watch gateway.networking.k8s.io/referencegrants apps",
    "get,list,watch gateway.networking.k8s.io/backendtlspolicies apps",
    "patch gateway.networking.k8s.io/gateways/status apps",
    "patch gateway.networking.k8s.io/listenersets/status apps",
    "patch gateway.networking.k8s.io/httproutes/status apps",
    "patch gateway.networking.k8s.io/grpcroutes/status apps",
    "patch gateway.networking.k8s.io/tlsroutes/status apps",
    "patch gateway.networking.k8s.io/backendtlspolicies/status apps",
    "get,list,watch inference.networking.k8s.io/inferencepools apps",
    "patch inference.networking.k8s.io/inferencepools/status apps",
    "get,list,watch llm-d.ai/inferenceobjectives apps",
    "get,list,watch llm-d.ai/inferencemodelrewrites apps",
    "get,list,watch inference.networking.x-k8s.io/inferenceobjectives apps",
    "get,list,watch inference.networking.x-k8s.io/inferencemodelrewrites apps",
    "patch llm-d.ai/inferenceobjectives/status apps",
    "patch llm-d.ai/inferencemodelrewrites/status apps",
    "patch inference.networking.x-k8s.io/inferenceobjectives/status apps",
    "patch inference.networking.x-k8s.io/inferencemodelrewrites/status apps",
    "get,list,watch forebay.dev/gatewayconfigs apps",
    "patch forebay.dev/gatewayconfigs/status apps",
    "get,list,watch core/services apps",
    "get,list,watch core/pods apps",
    "get,list,watch core/secrets apps",
    "get,list,watch core/configmaps apps",
    "get,list,watch discovery.k8s.io/endpointslices apps",
    "create coordination.k8s.io/leases forebay-system",
    "get,update coordination.k8s.io/leases=forebay-gateway forebay-system",
    "get,list,watch,create,patch,delete core/services forebay-system",
    // Held to those of our making by the fence.
    "get,list,create,patch,delete core/serviceaccounts apps",
];

const DENIED: &[&str] = &[
    // Specs are the users'.
    "create,update,patch,delete gateway.networking.k8s.io/gateways apps",
    "create,update,patch,delete gateway.networking.k8s.io/httproutes apps",
    "create,update,patch,delete gateway.networking.k8s.io/gatewayclasses -",
    "create,update,patch,delete gateway.networking.k8s.io/referencegrants apps",
    "create,update,patch,delete inference.networking.k8s.io/inferencepools apps",
    "create,update,patch,delete forebay.dev/gatewayconfigs apps",
    "update gateway.networking.k8s.io/gateways/status apps",
    "update inference.networking.k8s.io/inferencepools/status apps",
    "patch gateway.networking.k8s.io/gateways/finalizers apps",
    // Kinds that are not served.
    "get,list,watch gateway.networking.k8s.io/tcproutes apps",
    "get,list,watch gateway.networking.k8s.io/udproutes apps",
    // Others' Services, and everything that runs.
    "create,update,patch,delete core/services apps",
    "update,deletecollection core/services forebay-system",
    "patch core/services/status forebay-system",
    "create,update,patch,delete core/pods apps",
    "create,update,patch,delete core/pods forebay-system",
    "create,get core/pods/exec apps",
    "create,get core/pods/portforward apps",
    "get core/pods/log apps",
    "get,list,create,patch,delete apps/deployments apps",
    "get,create,patch apps/deployments forebay-system",
    "get,list core/nodes -",
    // Secrets and identities.
    "create,update,patch,delete core/secrets apps",
    "create,update,patch,delete core/secrets forebay-system",
    "create,update,patch,delete core/configmaps forebay-system",
    "update,deletecollection core/serviceaccounts apps",
    "create core/serviceaccounts/token apps",
    "create core/serviceaccounts/token forebay-system",
    "impersonate core/users -",
    "create authentication.k8s.io/tokenreviews -",
    "create certificates.k8s.io/certificatesigningrequests -",
    // Rights themselves, definitions and admission.
    "get,create,patch,bind,escalate rbac.authorization.k8s.io/clusterroles -",
    "get,create,patch rbac.authorization.k8s.io/clusterrolebindings -",
    "create,bind rbac.authorization.k8s.io/roles forebay-system",
    "create rbac.authorization.k8s.io/rolebindings forebay-system",
    "get,create,patch apiextensions.k8s.io/customresourcedefinitions -",
    "get,create admissionregistration.k8s.io/validatingwebhookconfigurations -",
    "create,patch,delete core/namespaces -",
    "create core/events forebay-system",
    // Other leases.
    "get,update coordination.k8s.io/leases=another forebay-system",
    "list,watch,patch,delete coordination.k8s.io/leases forebay-system",
    "create,get coordination.k8s.io/leases apps",
    "get,update coordination.k8s.io/leases kube-system",
];

/// The questions of one line.
fn reviews(line: &str, account: &str) -> Vec<Value> {
    let words: Vec<&str> = line.split(' ').collect();
    let [verbs, what, namespace] = words[..] else {
        panic!("{line}: three words are needed");
    };
    let (what, name) = what.split_once('=').unwrap_or((what, ""));
    let mut parts = what.split('/');
    let group = parts.next().filter(|group| *group != "core").unwrap_or("");
    let resource = parts.next().expect("a resource");
    let subresource = parts.next().unwrap_or("");
    let namespace = if namespace == "-" { "" } else { namespace };
    let review = |verb: &str| {
        json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": {
                "user": account,
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource, "subresource": subresource,
                    "namespace": namespace, "name": name,
                },
            },
        })
    };
    verbs.split(',').map(review).collect()
}

fn check(cluster: &Cluster, account: &str, allowed: &[&str], denied: &[&str]) {
    let mut wrong = Vec::new();
    for (lines, expected) in [(allowed, true), (denied, false)] {
        let questions = lines.iter().flat_map(|line| reviews(line, account));
        let questions: Vec<Value> = questions.collect();
        let answers = cluster.create(&questions);
        assert_eq!(answers.len(), questions.len());
        for answer in answers {
            if answer["status"]["allowed"] != expected {
                wrong.push(format!(
                    "{} {}",
                    if expected { "denied" } else { "allowed" },
                    answer["spec"]["resourceAttributes"]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{account}:\n{}", wrong.join("\n"));
}

#[test]
fn the_rights_of_the_account_are_enough_and_no_more() {
    let Some(cluster) = cluster("rights of the ServiceAccount") else {
        return;
    };
    let account = format!("system:serviceaccount:{NAMESPACE}:forebay");
    check(cluster, &account, ALLOWED, DENIED);
}

/// With `watchNamespaces={apps}`, as release `limited` in the namespace `limited`.
const LIMITED_ALLOWED: &[&str] = &[
    "get,list,watch gateway.networking.k8s.io/gatewayclasses -",
    "patch gateway.networking.k8s.io/gatewayclasses/status -",
    "get,list,watch core/namespaces -",
    "get,list,watch gateway.networking.k8s.io/gateways apps",
    "patch gateway.networking.k8s.io/gateways/status apps",
    "get,list,watch inference.networking.k8s.io/inferencepools apps",
    "patch inference.networking.k8s.io/inferencepools/status apps",
    "get,list,watch core/secrets apps",
    "get,list,watch core/services apps",
    "get,list,watch discovery.k8s.io/endpointslices apps",
    "get,list,watch,create,patch,delete core/services limited",
    "get,list,create,patch,delete core/serviceaccounts apps",
    "create coordination.k8s.io/leases limited",
    "get,update coordination.k8s.io/leases=forebay-gateway limited",
];

const LIMITED_DENIED: &[&str] = &[
    "list,watch core/secrets -",
    "get,list,watch core/secrets others",
    "get,list,watch core/secrets limited",
    "list,watch gateway.networking.k8s.io/gateways -",
    "get,list,watch gateway.networking.k8s.io/gateways others",
    "patch gateway.networking.k8s.io/gateways/status others",
    "get,list,watch core/pods others",
    "get,list,watch core/configmaps others",
    "create,patch,delete core/services apps",
    "get,list,create,patch,delete core/serviceaccounts others",
    "create,patch,delete core/serviceaccounts limited",
];

/// With `placement=Dedicated` and `watchNamespaces={apps,apart}`, as release `apart` in the namespace `apart`.
const APART_ALLOWED: &[&str] = &[
    "get,list,create,patch,delete apps/deployments apps",
    "get,list,create,patch,delete core/services apps",
    "get,list,create,patch,delete core/serviceaccounts apps",
    "get,list,create,patch,delete rbac.authorization.k8s.io/rolebindings apps",
    "bind rbac.authorization.k8s.io/clusterroles=apart-forebay.apart.data-plane apps",
    "get,list,create,patch,delete rbac.authorization.k8s.io/clusterrolebindings -",
    "bind rbac.authorization.k8s.io/clusterroles=apart-forebay.apart.data-plane.cluster -",
];

const APART_DENIED: &[&str] = &[
    // What reads Secrets can be bound in the namespaces that are followed alone.
    "bind rbac.authorization.k8s.io/clusterroles=apart-forebay.apart.data-plane -",
    "bind rbac.authorization.k8s.io/clusterroles=apart-forebay.apart.data-plane others",
    "bind rbac.authorization.k8s.io/clusterroles=cluster-admin apps",
    "create,patch rbac.authorization.k8s.io/rolebindings others",
    "create,patch,delete apps/deployments others",
    "create,patch,delete core/serviceaccounts others",
    "create,patch rbac.authorization.k8s.io/roles apps",
    "get,list,watch core/secrets others",
];

/// A data plane of that release.
const APART_DATA_PLANE_ALLOWED: &[&str] = &[
    "get,list,watch gateway.networking.k8s.io/gatewayclasses -",
    "get,list,watch core/namespaces -",
    "get,list,watch gateway.networking.k8s.io/gateways apps",
    "get,list,watch core/secrets apps",
];

const APART_DATA_PLANE_DENIED: &[&str] = &[
    "list,watch core/secrets -",
    "get,list,watch core/secrets others",
    "get,list,watch core/pods others",
    "get,list,watch gateway.networking.k8s.io/gateways others",
    "patch gateway.networking.k8s.io/gateways/status apps",
];

/// With `placement=Dedicated`, as release `dedicated` in the namespace `dedicated`.
const DEDICATED_ALLOWED: &[&str] = &[
    "get,list,create,patch,delete apps/deployments apps",
    "get,list,create,patch,delete core/services apps",
    "get,list,create,patch,delete core/serviceaccounts apps",
    "get,list,create,patch,delete rbac.authorization.k8s.io/clusterrolebindings -",
    "bind rbac.authorization.k8s.io/clusterroles=dedicated-forebay.dedicated.data-plane -",
];

const DEDICATED_DENIED: &[&str] = &[
    "create,patch,delete core/pods apps",
    "create core/pods/exec apps",
    "create core/serviceaccounts/token apps",
    "create,patch,delete core/secrets apps",
    "bind rbac.authorization.k8s.io/clusterroles=cluster-admin -",
    "create,patch,escalate rbac.authorization.k8s.io/clusterroles -",
    "create,patch rbac.authorization.k8s.io/roles apps",
    "create,patch rbac.authorization.k8s.io/rolebindings apps",
    "create,patch,delete apps/daemonsets apps",
    "create,patch,delete batch/jobs apps",
];

/// A data plane of a Gateway's own, bound to the role that is for it.
const DATA_PLANE_ALLOWED: &[&str] = &[
    "get,list,watch gateway.networking.k8s.io/gateways apps",
    "get,list,watch inference.networking.k8s.io/inferencepools apps",
    "get,list,watch core/secrets apps",
    "get,list,watch core/pods apps",
    "get,list,watch core/namespaces -",
];

const DATA_PLANE_DENIED: &[&str] = &[
    "patch gateway.networking.k8s.io/gateways/status apps",
    "patch gateway.networking.k8s.io/gatewayclasses/status -",
    "create,patch,delete core/services apps",
    "create,get,update coordination.k8s.io/leases apps",
    "create apps/deployments apps",
];

#[test]
fn options_of_the_chart_give_what_they_say() {
    let Some(cluster) = cluster("rights by options of the chart") else {
        return;
    };
    let helm = match helm() {
        Ok(helm) => helm,
        Err(reason) => return skip("rights by options of the chart", reason),
    };
    let namespace = |name: &str| {
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }).to_string()
    };
    let apply = |manifest: &str| {
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        let applied = cluster.kubectl(&arguments, manifest);
        applied.unwrap_or_else(|error| panic!("{error}"))
    };
    for name in ["apps", "limited", "dedicated", "apart"] {
        apply(&namespace(name));
    }
    for (release, options) in [
        ("limited", &["watchNamespaces={apps}"][..]),
        ("dedicated", &["placement=Dedicated"]),
        (
            "apart",
            &["placement=Dedicated", "watchNamespaces={apps,apart}"],
        ),
    ] {
        let mut template = vec!["template", release, "deploy/chart/forebay", "-n", release];
        for option in [&["gatewayClass.create=false"], options].concat() {
            template.extend(["--set", option]);
        }
        let rendered = helm(&template);
        apply(&rendered.unwrap_or_else(|error| panic!("{options:?}: {error}")));
    }
    let account = |namespace: &str, name: &str| format!("system:serviceaccount:{namespace}:{name}");
    check(
        cluster,
        &account("limited", "limited-forebay"),
        LIMITED_ALLOWED,
        LIMITED_DENIED,
    );
    check(
        cluster,
        &account("dedicated", "dedicated-forebay"),
        DEDICATED_ALLOWED,
        DEDICATED_DENIED,
    );
    check(
        cluster,
        &account("apart", "apart-forebay"),
        APART_ALLOWED,
        APART_DENIED,
    );
    let bind = |kind: &str, name: &str, role: &str, subject: &str| {
        let mut binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": kind,
            "metadata": { "name": name },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": role,
            },
            "subjects": [{ "kind": "ServiceAccount", "name": subject, "namespace": "apps" }],
        });
        if kind == "RoleBinding" {
            binding["metadata"]["namespace"] = "apps".into();
        }
        apply(&binding.to_string())
    };
    let everywhere = "dedicated-forebay.dedicated.data-plane";
    bind("ClusterRoleBinding", "test-data-plane", everywhere, "edge");
    check(
        cluster,
        &account("apps", "edge"),
        DATA_PLANE_ALLOWED,
        DATA_PLANE_DENIED,
    );
    // As the controller binds them.
    let role = "apart-forebay.apart.data-plane";
    let of_cluster = format!("{role}.cluster");
    bind("ClusterRoleBinding", "test-apart", &of_cluster, "apart");
    bind("RoleBinding", "test-apart", role, "apart");
    check(
        cluster,
        &account("apps", "apart"),
        APART_DATA_PLANE_ALLOWED,
        APART_DATA_PLANE_DENIED,
    );
    let gone = [
        "clusterrolebinding/test-data-plane",
        "clusterrolebinding/test-apart",
        "namespace/limited",
        "namespace/dedicated",
        "namespace/apart",
    ];
    let delete = [&["delete", "--wait=false"][..], &gone].concat();
    cluster
        .kubectl(&delete, "")
        .expect("what the test made goes");
}

#[test]
fn what_is_not_of_its_making_is_closed_to_the_account_whatever_its_roles_say() {
    let Some(cluster) = cluster("fence of the ServiceAccount") else {
        return;
    };
    let object = |kind: &str, namespace: &str, name: &str, label: &str, spec: Option<&Value>| {
        let mut object = json!({
            "apiVersion": "v1",
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": { "forebay.dev/controller-namespace": label },
            },
        });
        if let Some(spec) = spec {
            object["spec"] = spec.clone();
        }
        object.to_string()
    };
    let fenced =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "fenced" } });
    let others = object("ServiceAccount", "fenced", "theirs", "", None);
    for object in [fenced.to_string(), others] {
        let apply = ["apply", "--server-side", "-f", "-"];
        cluster.kubectl(&apply, &object).expect("made by somebody");
    }
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:forebay");
    let create = |manifest: &str| {
        let arguments = ["create", "--dry-run=server", "-f", "-"];
        cluster.kubectl(&[&[account.as_str()], &arguments[..]].concat(), manifest)
    };
    let delete = |name: &str| {
        let arguments = [
            "delete",
            "--dry-run=server",
            "-n",
            "fenced",
            "serviceaccount",
            name,
        ];
        cluster.kubectl(&[&[account.as_str()], &arguments[..]].concat(), "")
    };
    let take_over = || {
        let patch = format!(
            r#"{{"metadata":{{"labels":{{"forebay.dev/controller-namespace":"{NAMESPACE}"}}}}}}"#
        );
        let what = [
            "patch",
            "-n",
            "fenced",
            "serviceaccount",
            "theirs",
            "--type=merge",
        ];
        let how = ["--dry-run=server", "-p", &patch];
        cluster.kubectl(&[&[account.as_str()], &what[..], &how].concat(), "")
    };
    let mine = |name: &str, label: &str| object("ServiceAccount", "fenced", name, label, None);
    // A policy is followed a moment after it is there.
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while delete("theirs").is_ok() {
        assert!(std::time::Instant::now() < patience, "nothing is fenced");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let outside = json!({ "ports": [{ "port": 80 }], "externalIPs": ["192.0.2.1"] });
    let inside = json!({ "ports": [{ "port": 80 }] });
    let service =
        |name: &str, spec: &Value| object("Service", NAMESPACE, name, NAMESPACE, Some(spec));
    for (allowed, done) in [
        (true, create(&mine("gw-a", NAMESPACE))),
        (false, create(&mine("a", NAMESPACE))),
        (false, create(&mine("gw-a", "another"))),
        (false, delete("theirs")),
        (false, delete("default")),
        (false, take_over()),
        (true, create(&service("gw-a", &inside))),
        (false, create(&service("gw-a", &outside))),
        (false, create(&service("forebay", &inside))),
    ] {
        match done {
            Ok(_) => assert!(allowed),
            Err(complaint) => {
                assert!(!allowed && complaint.contains("denied"), "{complaint}");
            }
        }
    }
    let gone = ["delete", "namespace", "fenced", "--wait=false"];
    cluster.kubectl(&gone, "").expect("what the test made goes");
}
