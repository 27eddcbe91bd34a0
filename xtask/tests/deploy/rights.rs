//! What the ServiceAccount of `deploy/install.yaml` may do, and what it may not.

use crate::cluster::{NAMESPACE, cluster};
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
    "get,list,create,patch,delete core/services forebay-system",
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
    "get,create,patch core/serviceaccounts apps",
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

#[test]
fn the_rights_of_the_account_are_enough_and_no_more() {
    let Some(cluster) = cluster("rights of the ServiceAccount") else {
        return;
    };
    let account = format!("system:serviceaccount:{NAMESPACE}:forebay");
    let ask = |lines: &[&str]| -> Vec<Value> {
        let questions = lines.iter().flat_map(|line| reviews(line, &account));
        let questions: Vec<Value> = questions.collect();
        let answers = cluster.create(&questions);
        assert_eq!(answers.len(), questions.len());
        answers
    };
    let mut wrong = Vec::new();
    for (lines, expected) in [(ALLOWED, true), (DENIED, false)] {
        for answer in ask(lines) {
            if answer["status"]["allowed"] != expected {
                wrong.push(format!(
                    "{} {}",
                    if expected { "denied" } else { "allowed" },
                    answer["spec"]["resourceAttributes"]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
