//! `forebay node controller` beside a real control plane, with the rights, the fence and the webhooks of
//! `deploy/node.yaml`: what is wrong is refused before a node sees it, nodes are labelled with their profile, and
//! the pod of an accelerator gets the NICs of its node by an annotation.

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "these tests need no relay")]
mod cluster;
mod support;

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cluster::{Cluster, Namespace};
use serde_json::{Value, json};
use support::{Program, forebay, free_port, get, root, skip, wait_for};

/// The node that is described as an A4: of those that every bed of tests has.
const NODE: &str = "c1-n3";
/// What of the chart's cluster-wide objects carries this label.
const OURS: &str = "app.kubernetes.io/name=forebay-node-controller";
const NAME: &str = "forebay-node-controller";
const PROFILE: &str = "forebay.dev/network-profile";
/// Kinds of `deploy/node.yaml` that are applied, of the controller and of classes.
const APPLIED: [&str; 12] = [
    "ServiceAccount",
    "Secret",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "DeviceClass",
    "Service",
];

/// A controller with the rights of its ServiceAccount.
struct Controller {
    cluster: &'static Cluster,
    namespace: Namespace,
    folder: tempfile::TempDir,
    pages: SocketAddr,
    _program: Program,
}

impl Controller {
    fn start(cluster: &'static Cluster) -> Controller {
        let namespace = cluster.namespace("controller");
        let port = free_port(1);
        install(cluster, &namespace.name, port);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kubeconfig = of_account(cluster, &namespace.name, folder.path());
        let pages = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(1)));
        let program = Program::start(
            forebay()
                .args(["node", "controller", "--namespace", &namespace.name])
                .args(["--listen", &format!("0.0.0.0:{port}")])
                .args(["--pages", &pages.to_string(), "--service", NAME])
                .args(["--secret", NAME, "--webhook-configuration"])
                .args(["forebay-node.forebay-node", "--log", "info", "--kubeconfig"])
                .arg(kubeconfig),
        );
        let controller = Controller {
            cluster,
            namespace,
            folder,
            pages,
            _program: program,
        };
        wait_for("the controller is ready", || get(pages, "/readyz").ok());
        controller
    }

    fn token_kubeconfig(&self) -> PathBuf {
        self.folder.path().join("account.json")
    }

    /// What the server says to `object`, which is not kept.
    fn dry(&self, object: &Value) -> Result<Value, String> {
        let arguments = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        self.create(&arguments, object)
    }

    fn create(&self, arguments: &[&str], object: &Value) -> Result<Value, String> {
        let mut child = self
            .cluster
            .command(arguments)
            .args(["-n", &self.namespace.name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("piped above");
        stdin
            .write_all(object.to_string().as_bytes())
            .expect("kubectl reads");
        drop(stdin);
        let output = child.wait_with_output().expect("our own child");
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap_or_default()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let kinds = "validatingwebhookconfigurations,mutatingwebhookconfigurations,clusterroles,\
                     clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings";
        self.cluster.kubectl(&["delete", kinds, "-l", OURS]);
        let classes = "deviceclasses,resourceslices";
        let part = "app.kubernetes.io/part-of=forebay";
        self.cluster
            .kubectl(&["delete", classes, "-l", part, "--wait=false"]);
        let none = json!({ "nvidia.com/gpu": null });
        let patch = json!({ "capacity": none, "allocatable": none });
        self.cluster.patch_status("node", "default", NODE, &patch);
        let labels = [
            PROFILE,
            "gke.networks.io/accelerator-network-profile",
            DRIVER,
        ];
        let gone = labels.map(|label| format!("{label}-"));
        let mut arguments = vec!["label", "node", NODE];
        arguments.extend(gone.iter().map(String::as_str));
        self.cluster.kubectl(&arguments);
    }
}

const DRIVER: &str = "forebay.dev/device-network";

/// Applies what `deploy/node.yaml` has for the controller, in a namespace of the test; the Service leads to
/// this process's host.
fn install(cluster: &Cluster, namespace: &str, port: u16) {
    let text = fs::read_to_string(root().join("deploy/node.yaml")).expect("deploy/node.yaml");
    let text = text
        .replace(
            "namespace: forebay-node\n",
            &format!("namespace: {namespace}\n"),
        )
        .replace(
            "serviceaccount:forebay-node:",
            &format!("serviceaccount:{namespace}:"),
        )
        .replace("port: 443\n", &format!("port: {port}\n"));
    let kind = |document: &str| {
        let line = document
            .lines()
            .find_map(|line| line.strip_prefix("kind: "));
        line.unwrap_or_default().to_owned()
    };
    let mut documents = Vec::new();
    for document in text.split("\n---\n") {
        let kind = kind(document);
        let of_controller = document.contains(NAME) || kind == "DeviceClass";
        if !of_controller || !APPLIED.contains(&kind.as_str()) {
            continue;
        }
        if kind != "Service" {
            documents.push(document.to_owned());
        }
    }
    let host = seen_from(cluster);
    documents.push(format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {NAME}, namespace: {namespace}}}, spec: {{type: \
         ExternalName, externalName: \"{host}\", ports: [{{port: {port}}}]}}}}"
    ));
    // Each with its own namespace, or with none.
    cluster.apply(namespace, &documents.join("\n---\n"));
}

/// The address at which the API server sees this host.
fn seen_from(cluster: &Cluster) -> std::net::IpAddr {
    let text = fs::read_to_string(cluster.kubeconfig()).expect("a kubeconfig");
    let config: Value = serde_json::from_str(&text).expect("the bed's kubeconfig is JSON");
    let server = config["clusters"][0]["cluster"]["server"].as_str();
    let server = server.expect("an address").trim_start_matches("https://");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket
        .connect(server.trim_end_matches('/'))
        .expect("a route");
    socket.local_addr().expect("bound").ip()
}

/// A kubeconfig with a token of the controller's ServiceAccount.
fn of_account(cluster: &Cluster, namespace: &str, folder: &Path) -> PathBuf {
    let text = fs::read_to_string(cluster.kubeconfig()).expect("a kubeconfig");
    let mut config: Value = serde_json::from_str(&text).expect("the bed's kubeconfig is JSON");
    let token = cluster.kubectl(&["create", "token", NAME, "-n", namespace]);
    config["users"][0]["user"] = json!({ "token": token.trim() });
    let path = folder.join("account.json");
    fs::write(&path, config.to_string()).expect("a writable folder");
    path
}

fn claim(driver: &str, parameters: &Value) -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": { "name": "nics" },
        "spec": { "devices": {
            "requests": [{ "name": "nic", "exactly": { "deviceClassName": "dra.net" } }],
            "config": [{ "opaque": { "driver": driver, "parameters": parameters } }],
        } },
    })
}

/// The path in the objects that the refusals below name.
const TYPO: &str = "spec.devices.config[0].opaque.parameters.interface.nme";

fn what_is_wrong_is_refused(controller: &Controller) {
    let typo = json!({ "interface": { "nme": "rdma0" } });
    // API servers take a webhook's configuration in when they see it, and take what is wrong until then.
    let why = wait_for("a typo is refused", || {
        controller.dry(&claim("dra.net", &typo)).err()
    });
    assert!(
        why.contains(TYPO) && why.contains("`name` is the nearest"),
        "{why}"
    );
    let template = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
        "metadata": { "name": "nics" }, "spec": { "spec": claim("dra.net", &typo)["spec"] },
    });
    let why = controller
        .dry(&template)
        .expect_err("a template with a typo");
    assert!(why.contains(&TYPO.replace("spec.", "spec.spec.")), "{why}");
    let class = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": { "name": "typo.test" },
        "spec": { "config": [{ "opaque": { "driver": "dra.net", "parameters": typo } }] },
    });
    let why = controller.dry(&class).expect_err("a class with a typo");
    assert!(
        why.contains("spec.config[0].opaque.parameters.interface.nme"),
        "{why}"
    );
    // The same in an older version of the API, if the server has it.
    let mut older = claim("dra.net", &typo);
    older["apiVersion"] = json!("resource.k8s.io/v1beta2");
    if let Err(why) = controller.dry(&older) {
        assert!(
            why.contains(TYPO) || why.contains("no matches for kind"),
            "{why}"
        );
    }
    let good = json!({ "interface": { "name": "rdma0", "mtu": 8896 } });
    controller
        .dry(&claim("dra.net", &good))
        .expect("what a node would accept");
    controller
        .dry(&claim("gpu.example.com", &typo))
        .expect("what is none of ours");
    let profile = json!({
        "apiVersion": "forebay.dev/v1alpha1", "kind": "NetworkProfile", "metadata": { "name": "fast" },
        "spec": {
            "nodeSelector": { "pool": "fast" },
            "requests": [{ "name": "nic", "deviceClassName": "dra.net", "selectors": ["device.x"] }],
        },
    });
    let why = controller
        .dry(&profile)
        .expect_err("a selector of no device");
    assert!(
        why.contains("spec.requests[0].selectors[0]") && why.contains("<input>:1:7"),
        "{why}"
    );
}

/// The slices of a described machine for [`NODE`].
fn publish(cluster: &Cluster, namespace: &str) {
    let machine = root().join("machines/a4-highgpu-8g.yaml");
    let output = forebay()
        .args([
            "node",
            "inventory",
            "--output",
            "json",
            "--node",
            NODE,
            "--machine",
        ])
        .arg(machine)
        .output()
        .expect("the program runs");
    let mut list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for slice in list["items"].as_array_mut().expect("slices") {
        slice["metadata"]["labels"] = json!({ "app.kubernetes.io/part-of": "forebay" });
    }
    cluster.apply(namespace, &list.to_string());
}

fn label(cluster: &Cluster, name: &str) -> Option<String> {
    let node = cluster.get("node", "default", NODE);
    let value = node["metadata"]["labels"][name].as_str();
    value.map(str::to_owned)
}

/// As people write it for GKE, and one annotation.
fn server(annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "deepseek", "annotations": annotations },
        "spec": {
            "nodeSelector": { "gke.networks.io/accelerator-network-profile": "auto" },
            "tolerations": [{ "operator": "Exists" }],
            "containers": [
                { "name": "vllm", "image": "none",
                  "resources": { "limits": { "nvidia.com/gpu": "8" } } },
                { "name": "logs", "image": "none" },
            ],
        },
    })
}

fn a_pod_gets_the_nics_of_its_node(controller: &Controller) {
    let (cluster, namespace) = (controller.cluster, controller.namespace.name.as_str());
    let patch =
        json!({ "capacity": { "nvidia.com/gpu": "8" }, "allocatable": { "nvidia.com/gpu": "8" } });
    cluster.patch_status("node", "default", NODE, &patch);
    cluster.kubectl(&[
        "label",
        "node",
        NODE,
        &format!("{DRIVER}=true"),
        "--overwrite",
    ]);
    publish(cluster, namespace);
    wait_for("the node is labelled with its profile", || {
        (label(cluster, PROFILE)? == "rdma-8").then_some(())
    });
    let gke = label(cluster, "gke.networks.io/accelerator-network-profile");
    assert_eq!(gke.as_deref(), Some("auto"));

    let plain = controller
        .dry(&server(&json!({})))
        .expect("a pod that asks for nothing");
    assert!(plain["spec"]["resourceClaims"].is_null(), "{plain}");
    let why = controller
        .dry(&server(&json!({ PROFILE: "fats" })))
        .expect_err("a profile that is not there");
    assert!(why.contains("no valid NetworkProfile fats"), "{why}");

    let asking = server(&json!({ PROFILE: "auto" }));
    let arguments = ["create", "-o", "json", "-f", "-"];
    let made = controller
        .create(&arguments, &asking)
        .expect("a pod that asks");
    let named =
        |container: usize| made["spec"]["containers"][container]["resources"]["claims"].clone();
    assert_eq!(
        (named(0), named(1)),
        (json!([{ "name": "forebay-nics" }]), Value::Null)
    );
    let pod = wait_for("the pod is scheduled", || {
        let pod = cluster.get("pod", namespace, "deepseek");
        pod["spec"]["nodeName"].as_str()?;
        Some(pod)
    });
    assert_eq!(pod["spec"]["nodeName"], NODE);
    let claim = pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str();
    let claim = cluster.get("resourceclaim", namespace, claim.expect("a claim"));
    let results = claim["status"]["allocation"]["devices"]["results"].as_array();
    assert_eq!(results.map(Vec::len), Some(8), "{claim}");
}

fn an_object_takes_the_place_of_what_is_derived(controller: &Controller) {
    let cluster = controller.cluster;
    let profile = json!({
        "apiVersion": "forebay.dev/v1alpha1", "kind": "NetworkProfile", "metadata": { "name": "pairs" },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": NODE },
            "requests": [{ "name": "nic", "deviceClassName": "mrdma.google.com", "count": 2 }],
        },
    });
    cluster.apply(&controller.namespace.name, &profile.to_string());
    wait_for("the node has the object's name", || {
        (label(cluster, PROFILE)? == "pairs").then_some(())
    });
    wait_for("the object has a status", || {
        let object = cluster.get("networkprofile", "default", "pairs");
        let accepted = object["status"]["conditions"][0]["status"] == "True";
        (accepted && object["status"]["nodes"] == 1).then_some(())
    });
    wait_for("people are told on the node", || {
        let field = format!("--field-selector=involvedObject.name={NODE},reason=NetworkProfile");
        let path = "-o=jsonpath={.items[*].message}";
        let told = cluster.kubectl(&["get", "events", "-n", "default", &field, path]);
        told.contains("it has the network profile pairs, from its NetworkProfile")
            .then_some(())
    });
    let mut asking = server(&json!({ PROFILE: "pairs" }));
    asking["metadata"]["name"] = json!("asks-for-pairs");
    let made = controller.dry(&asking).expect("a pod");
    assert_eq!(made["spec"]["nodeSelector"][PROFILE], "pairs");
    cluster.kubectl(&["delete", "networkprofile", "pairs"]);
    wait_for("the node has what is derived again", || {
        (label(cluster, PROFILE)? == "rdma-8").then_some(())
    });
}

fn claims_that_no_container_names_are_named(controller: &Controller) {
    let (cluster, namespace) = (controller.cluster, controller.namespace.name.as_str());
    let template = |name: &str, class: &str| {
        let request = json!({ "name": "nic", "exactly": { "deviceClassName": class } });
        json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
            "metadata": { "name": name },
            "spec": { "spec": { "devices": { "requests": [request] } } },
        })
    };
    let other = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass",
        "metadata": { "name": "others", "labels": { "app.kubernetes.io/part-of": "forebay" } },
        "spec": { "selectors": [{ "cel": { "expression": "device.driver == 'gpu.example.com'" } }] },
    });
    for object in [
        template("one-nic", "dra.net"),
        template("one-gpu", "others"),
        other,
    ] {
        cluster.apply(namespace, &object.to_string());
    }
    let claim =
        |name: &str, template: &str| json!({ "name": name, "resourceClaimTemplateName": template });
    let pod = |claims: &[Value]| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "names-none" },
            "spec": {
                "resourceClaims": claims,
                "initContainers": [{ "name": "first", "image": "none" }],
                "containers": [
                    { "name": "main", "image": "none", "resources": { "claims": [{ "name": "own" }] } },
                    { "name": "logs", "image": "none" },
                ],
            },
        })
    };
    let own = claim("own", "one-nic");
    let all = [
        own.clone(),
        claim("nics", "one-nic"),
        claim("gpus", "one-gpu"),
    ];
    let made = controller.dry(&pod(&all)).expect("a pod");
    let named = |list: &str, at: usize| made["spec"][list][at]["resources"]["claims"].clone();
    let (both, nics) = (
        json!([{ "name": "own" }, { "name": "nics" }]),
        json!([{ "name": "nics" }]),
    );
    assert_eq!(
        [
            named("containers", 0),
            named("containers", 1),
            named("initContainers", 0)
        ],
        [both, nics.clone(), nics]
    );
    assert_eq!(
        made["metadata"]["annotations"]["forebay.dev/claims-named"],
        "nics"
    );
    let made = controller.dry(&pod(&[own.clone(), claim("nics", "none-yet")]));
    let made = made.expect("a pod whose template is not there");
    assert!(made["metadata"]["annotations"]["forebay.dev/claims-named"].is_null());
    let made = controller
        .dry(&pod(&[own]))
        .expect("a pod that names its claim");
    assert!(made["spec"]["containers"][1]["resources"]["claims"].is_null());
}

fn the_account_may_set_its_labels_and_nothing_else_of_nodes(controller: &Controller) {
    let with_token = |arguments: &[&str]| {
        let mut command: Command = controller.cluster.command(arguments);
        let output = command
            .env("KUBECONFIG", controller.token_kubeconfig())
            .output()
            .expect("kubectl starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), stderr)
    };
    let (done, why) = with_token(&["label", "node", NODE, "pool=stolen"]);
    assert!(!done && why.contains("its three labels"), "{why}");
    let spec = [
        "patch",
        "node",
        NODE,
        "-p",
        r#"{"spec":{"unschedulable":true}}"#,
    ];
    let (done, why) = with_token(&spec);
    assert!(!done && why.contains("its three labels"), "{why}");
    let (done, why) = with_token(&["get", "secrets", "-n", &controller.namespace.name]);
    assert!(!done && why.contains("forbidden"), "{why}");
}

fn a_certificate_that_is_lost_is_made_anew_and_trusted(controller: &Controller) {
    let (cluster, namespace) = (controller.cluster, controller.namespace.name.as_str());
    let bundle = || {
        let kind = "validatingwebhookconfiguration";
        let object = cluster.get(kind, "default", "forebay-node.forebay-node");
        object["webhooks"][0]["clientConfig"]["caBundle"].clone()
    };
    let before = bundle();
    assert!(before.is_string(), "{before}");
    let empty = r#"{"data":null}"#;
    cluster.kubectl(&[
        "patch",
        "secret",
        NAME,
        "-n",
        namespace,
        "--type=merge",
        "-p",
        empty,
    ]);
    wait_for("another authority is trusted", || {
        let secret = cluster.get("secret", namespace, NAME);
        (secret["data"]["tls.key"].is_string() && bundle() != before).then_some(())
    });
    let typo = json!({ "interface": { "nme": "rdma0" } });
    wait_for("a typo is refused again", || {
        controller.dry(&claim("dra.net", &typo)).err()
    });
}

#[test]
fn wrong_parameters_are_refused_and_a_pod_gets_the_nics_of_its_node_by_an_annotation() {
    let cluster = match Cluster::find() {
        Ok(cluster) => cluster,
        Err(reason) => return skip("device controller", &reason),
    };
    let controller = Controller::start(cluster);
    what_is_wrong_is_refused(&controller);
    a_pod_gets_the_nics_of_its_node(&controller);
    an_object_takes_the_place_of_what_is_derived(&controller);
    claims_that_no_container_names_are_named(&controller);
    the_account_may_set_its_labels_and_nothing_else_of_nodes(&controller);
    a_certificate_that_is_lost_is_made_anew_and_trusted(&controller);
    let page = get(controller.pages, "/metrics").expect("a page");
    assert!(
        page.contains("forebay_webhook_reviews_total{result=\"denied\"}"),
        "{page}"
    );
}
