//! Manifests as a whole: what is installed comes up under the namespace's own pod security, the
//! examples are accepted, and the chart renders and installs with its options.

use crate::cluster::{NAMESPACE, cluster, helm, root, skip, yaml_files};

#[test]
fn what_is_installed_is_admitted_by_the_strictest_pod_security() {
    let Some(cluster) = cluster("install.yaml") else {
        return;
    };
    // The namespace enforces it, so pods of another kind would not be made.
    let enforced = cluster.kubectl(
        &[
            "get",
            "namespace",
            NAMESPACE,
            "-o",
            r"jsonpath={.metadata.labels.pod-security\.kubernetes\.io/enforce}",
        ],
        "",
    );
    assert_eq!(enforced.as_deref(), Ok("restricted"));
    let wait = [
        "rollout",
        "status",
        "deployment/forebay",
        "-n",
        NAMESPACE,
        "--timeout=120s",
    ];
    cluster.kubectl(&wait, "").expect("both pods");
}

#[test]
fn the_examples_are_accepted() {
    let Some(cluster) = cluster("deploy/demo") else {
        return;
    };
    for file in yaml_files(&root().join("deploy/demo")) {
        let path = file.to_str().expect("UTF-8");
        // Applied rather than tried: what is in a namespace needs the namespace.
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", path];
        cluster
            .kubectl(&apply, "")
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let delete = ["delete", "--wait=false", "--ignore-not-found", "-f", path];
        cluster
            .kubectl(&delete, "")
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

/// Options of the chart, each of which changes what is rendered.
const OPTIONS: &[&[&str]] = &[
    &[],
    &["placement=Dedicated"],
    &[
        "rbac.dedicated=true",
        "watchNamespaces={default,kube-system}",
    ],
    &["gkeClasses=true", "gateways.serviceType=NodePort"],
    &[
        "gateways.serviceType=None",
        "gateways.addresses={192.0.2.1,192.0.2.2}",
    ],
    &[
        "serviceAccount.create=false",
        "serviceAccount.name=mine",
        "rbac.create=false",
    ],
    &[
        "gatewayClass.create=false",
        "podDisruptionBudget.enabled=false",
        "topologySpread.enabled=false",
    ],
    &[
        "image.digest=sha256:0123456789012345678901234567890123456789012345678901234567890123",
        "imagePullSecrets={one,two}",
    ],
    &[
        "priorityClassName=system-cluster-critical",
        "extraArgs={--workers=2}",
        "admin.address=::",
    ],
];

#[test]
fn every_option_of_the_chart_renders_what_the_server_accepts() {
    let Some(cluster) = cluster("chart options") else {
        return;
    };
    let helm = match helm() {
        Ok(helm) => helm,
        Err(reason) => return skip("chart options", reason),
    };
    for options in OPTIONS {
        let mut arguments = vec![
            "template",
            "options",
            "deploy/chart/forebay",
            "-n",
            "default",
        ];
        for option in *options {
            arguments.extend(["--set", option]);
        }
        let rendered = helm(&arguments).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        let accepted = cluster.kubectl(&["create", "--dry-run=server", "-f", "-"], &rendered);
        // The class has one name, and install.yaml has it already.
        if let Err(complaint) = accepted {
            let others: Vec<&str> = complaint
                .lines()
                .filter(|line| {
                    !line.contains(
                        "gatewayclasses.gateway.networking.k8s.io \"forebay\" already exists",
                    )
                })
                .collect();
            assert!(others.is_empty(), "{options:?}: {others:?}\n{rendered}");
        }
    }
    for (option, complaint) in [
        ("replica=3", "not allowed"),
        ("replicas=0", "/replicas"),
        ("gateways.serviceType=ExternalName", "/gateways/serviceType"),
        ("drain.timeoutSeconds=5m", "/drain/timeoutSeconds"),
    ] {
        let arguments = ["template", "f", "deploy/chart/forebay", "--set", option];
        let said = helm(&arguments).expect_err("a value that is wrong");
        assert!(said.contains(complaint), "{option}: {said}");
    }
}

#[test]
fn the_chart_is_installed_upgraded_and_gone_again() {
    let Some(cluster) = cluster("chart") else {
        return;
    };
    let helm = match helm() {
        Ok(helm) => helm,
        Err(reason) => return skip("chart", reason),
    };
    let release = ["charted", "-n", "charted"];
    let chart = "deploy/chart/forebay";
    let set = [
        "--set",
        "gatewayClass.name=charted",
        "--wait",
        "--timeout",
        "120s",
    ];
    let install = [
        &[
            "install",
            release[0],
            chart,
            release[1],
            release[2],
            "--create-namespace",
        ][..],
        &set,
    ];
    helm(&install.concat()).expect("installed");
    let upgrade = [
        &[
            "upgrade",
            release[0],
            chart,
            release[1],
            release[2],
            "--set",
            "replicas=3",
        ][..],
        &set,
    ];
    helm(&upgrade.concat()).expect("upgraded");
    let ready = [
        "get",
        "deployment",
        "charted-forebay",
        "-n",
        "charted",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ];
    assert_eq!(cluster.kubectl(&ready, "").as_deref(), Ok("3"));
    helm(&["uninstall", release[0], release[1], release[2], "--wait"]).expect("gone");
    let left = [
        "get",
        "clusterrole,clusterrolebinding,gatewayclass",
        "-o",
        "name",
        "-l",
        "app.kubernetes.io/instance=charted",
    ];
    assert_eq!(cluster.kubectl(&left, "").as_deref(), Ok(""));
    // Definitions hold the users' objects: Helm leaves them.
    cluster
        .kubectl(&["get", "crd", "gatewayconfigs.forebay.dev"], "")
        .expect("the definitions stay");
    cluster
        .kubectl(&["delete", "namespace", "charted", "--wait=false"], "")
        .expect("the namespace goes");
}
