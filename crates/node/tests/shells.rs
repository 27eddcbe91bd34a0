//! The driver at a kubelet and at a container runtime, on Unix sockets.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_node::driver::{DeviceHealth, Health};
use forebay_node::kubelet::{Kubelet, Registration, Settings};
use forebay_node::runtime;
use forebay_nri::api::{self, Event, LinuxNamespace, LinuxPodSandbox, PodSandbox};
use forebay_nri::runtime::{FakeRuntime, Settings as RuntimeSettings};
use forebay_wire::kubelet::{dra_v1beta1, health_v1, health_v1alpha1};
use support::{FakeKubelet, Recorder, registry};

fn settings(root: &Path) -> Settings {
    let mut settings = Settings::new("forebay.dev");
    settings.root = root.to_owned();
    settings
}

async fn serve(driver: &Arc<Recorder>, settings: Settings) -> Kubelet {
    Kubelet::serve(Arc::clone(driver), settings)
        .await
        .expect("sockets")
}

#[tokio::test]
async fn a_kubelet_finds_the_driver_and_so_does_the_next_one() {
    let root = tempfile::tempdir().expect("a folder");
    let driver = Arc::new(Recorder::default());
    let kubelet = serve(&driver, settings(root.path())).await;
    let mut registration = kubelet.registration();
    assert_eq!(*registration.borrow(), Registration::Waiting);
    let sockets = registry(root.path());
    assert_eq!(
        sockets,
        [root.path().join("plugins_registry/forebay.dev-reg.sock")]
    );

    FakeKubelet::register(&sockets[0], Some("too new")).await;
    let refused = Registration::Refused("too new".to_owned());
    registration
        .wait_for(|now| *now == refused)
        .await
        .expect("it serves");
    // Another kubelet, after a restart, with the same claim.
    for _ in 0..2 {
        let fake = FakeKubelet::register(&sockets[0], None).await;
        registration
            .wait_for(|now| *now == Registration::Registered)
            .await
            .expect("it serves");
        assert_eq!(fake.info.r#type, "DRAPlugin");
        assert_eq!(fake.info.name, "forebay.dev");
        assert!(
            fake.info
                .supported_versions
                .contains(&"v1.DRAPlugin".to_owned())
        );
        let answer = &fake.prepare(&["a"]).await["uid-a"];
        assert_eq!(answer.error, "");
        assert_eq!(answer.devices[0].device_name, "nic-of-a");
        assert_eq!(answer.devices[0].share_id.as_deref(), Some("share"));
    }
    kubelet.stop().await;
    assert!(
        registry(root.path()).is_empty(),
        "the kubelet is told by the socket's going"
    );
}

#[tokio::test]
async fn a_claim_that_fails_takes_no_other_with_it() {
    let root = tempfile::tempdir().expect("a folder");
    let driver = Arc::new(Recorder::default());
    let _kubelet = serve(&driver, settings(root.path())).await;
    let fake = FakeKubelet::register(&registry(root.path())[0], None).await;
    let answers = fake.prepare(&["a", "unknown", "", "a"]).await;
    assert_eq!(answers["uid-a"].error, "");
    assert_eq!(
        answers["uid-unknown"].error,
        "claim team/unknown (uid-unknown): it does not exist"
    );
    let nameless = &answers["uid-"].error;
    assert!(nameless.contains("its name is empty"), "{nameless}");
    let mut done = driver.done();
    done.sort();
    assert_eq!(done, ["prepare a", "prepare unknown"], "each once");
    let errors = fake.unprepare(&["a", "unknown"]).await;
    assert!(errors.values().all(String::is_empty), "{errors:?}");
}

#[tokio::test]
async fn a_kubelet_of_the_version_before_is_understood() {
    let root = tempfile::tempdir().expect("a folder");
    let driver = Arc::new(Recorder::default());
    let _kubelet = serve(&driver, settings(root.path())).await;
    let fake = FakeKubelet::register(&registry(root.path())[0], None).await;
    let claim = dra_v1beta1::Claim {
        namespace: "team".to_owned(),
        name: "a".to_owned(),
        uid: "uid-a".to_owned(),
    };
    let claims = vec![claim];
    let answer = dra_v1beta1::dra_plugin_client::DraPluginClient::new(fake.endpoint)
        .node_prepare_resources(dra_v1beta1::NodePrepareResourcesRequest { claims })
        .await
        .expect("an answer")
        .into_inner();
    let device = &answer.claims["uid-a"].devices[0];
    assert_eq!(device.cdi_device_ids, ["forebay.dev/claim=uid-a"]);
}

#[tokio::test]
async fn health_is_told_at_once_and_when_it_changes_until_the_end() {
    let root = tempfile::tempdir().expect("a folder");
    let driver = Arc::new(Recorder::default());
    let kubelet = serve(&driver, settings(root.path())).await;
    let fake = FakeKubelet::register(&registry(root.path())[0], None).await;
    let mut old = health_v1alpha1::dra_resource_health_client::DraResourceHealthClient::new(
        fake.endpoint.clone(),
    )
    .node_watch_resources(health_v1alpha1::NodeWatchResourcesRequest {})
    .await
    .expect("a stream")
    .into_inner();
    let mut new =
        health_v1::dra_resource_health_client::DraResourceHealthClient::new(fake.endpoint.clone())
            .node_watch_resources(health_v1::NodeWatchResourcesRequest {})
            .await
            .expect("a stream")
            .into_inner();
    let first = new.message().await.expect("no error").expect("a message");
    assert!(first.devices.is_empty());
    driver.health.send_replace(vec![DeviceHealth {
        pool: "node-1".to_owned(),
        device: "nic0".to_owned(),
        health: Health::Unhealthy,
        message: "link is down".to_owned(),
        seen_at_s: 1_800_000_000,
    }]);
    let second = new.message().await.expect("no error").expect("a message");
    assert_eq!(
        second.devices[0].health(),
        health_v1::HealthStatus::Unhealthy
    );
    assert_eq!(second.devices[0].message, "link is down");
    while old
        .message()
        .await
        .expect("no error")
        .expect("a message")
        .devices
        .is_empty()
    {}
    kubelet.stop().await;
    assert_eq!(new.message().await.expect("no error"), None);
}

#[tokio::test]
async fn of_two_instances_one_works_on_claims_at_a_time() {
    let root = tempfile::tempdir().expect("a folder");
    let instance = |uid: &str, lock_timeout| Settings {
        pod_uid: Some(uid.to_owned()),
        lock_timeout,
        ..settings(root.path())
    };
    let (old, new) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    let old_kubelet = serve(&old, instance("1", Duration::from_secs(60))).await;
    let _new_kubelet = serve(&new, instance("2", Duration::ZERO)).await;
    let sockets = registry(root.path());
    assert_eq!(sockets.len(), 2, "{sockets:?}");
    let at_old = FakeKubelet::register(&sockets[0], None).await;
    let at_new = FakeKubelet::register(&sockets[1], None).await;

    let held = tokio::spawn(async move { at_old.prepare(&["held"]).await });
    while old.done().is_empty() {
        tokio::task::yield_now().await;
    }
    let answer = &at_new.prepare(&["a"]).await["uid-a"];
    assert!(
        answer.error.contains("another instance"),
        "{}",
        answer.error
    );
    assert!(new.done().is_empty());
    old.release.send_replace(true);
    assert_eq!(held.await.expect("no panic")["uid-held"].error, "");
    assert_eq!(at_new.prepare(&["a"]).await["uid-a"].error, "");
    old_kubelet.stop().await;
    assert_eq!(registry(root.path()), sockets[1..]);
}

#[tokio::test]
async fn what_was_begun_is_finished_when_it_is_to_stop() {
    let root = tempfile::tempdir().expect("a folder");
    let driver = Arc::new(Recorder::default());
    let kubelet = serve(&driver, settings(root.path())).await;
    let fake = FakeKubelet::register(&registry(root.path())[0], None).await;
    let held = tokio::spawn(async move { fake.prepare(&["held"]).await });
    while driver.done().is_empty() {
        tokio::task::yield_now().await;
    }
    let stopped = tokio::spawn(kubelet.stop());
    driver.release.send_replace(true);
    assert_eq!(held.await.expect("no panic")["uid-held"].error, "");
    stopped.await.expect("no panic");
}

#[tokio::test]
async fn sockets_of_dead_instances_are_removed_and_those_of_living_ones_stay() {
    let root = tempfile::tempdir().expect("a folder");
    let folder = root.path().join("plugins_registry");
    std::fs::create_dir_all(&folder).expect("a folder");
    let bind =
        |name: &str| std::os::unix::net::UnixListener::bind(folder.join(name)).expect("a socket");
    drop((
        bind("forebay.dev-reg.sock"),
        bind("forebay.dev-1-reg.sock"),
        bind("other-reg.sock"),
    ));
    let _living = bind("forebay.dev-2-reg.sock");
    let driver = Arc::new(Recorder::default());
    let _kubelet = serve(&driver, settings(root.path())).await;
    let names = [
        "forebay.dev-2-reg.sock",
        "forebay.dev-reg.sock",
        "other-reg.sock",
    ];
    assert_eq!(registry(root.path()), names.map(|name| folder.join(name)));
    FakeKubelet::register(&folder.join("forebay.dev-reg.sock"), None).await;
}

#[tokio::test]
async fn events_of_the_runtime_reach_the_driver_and_its_refusal_fails_the_sandbox() {
    let root = tempfile::tempdir().expect("a folder");
    let mut settings = runtime::settings();
    settings.socket = root.path().join("nri.sock");
    let fake = FakeRuntime::bind(&settings.socket, RuntimeSettings::default()).expect("a socket");
    let driver = Arc::new(Recorder::default());
    let served = Arc::clone(&driver);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        runtime::serve(served, &settings, |_| {}, stopped).await;
    });
    let pod = |name: &str| PodSandbox {
        name: name.to_owned(),
        linux: Some(LinuxPodSandbox {
            namespaces: vec![LinuxNamespace {
                r#type: "network".to_owned(),
                path: "/run/netns/p".to_owned(),
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let attached = fake
        .plugin(&[pod("p"), pod("q")], &[])
        .await
        .expect("a plugin");
    assert_eq!(attached.name, "00-forebay.dev");
    let host = PodSandbox {
        name: "on-host".to_owned(),
        ..Default::default()
    };
    for (event, pod) in [
        (Event::RunPodSandbox, &pod("p")),
        (Event::RunPodSandbox, &host),
        (Event::StopPodSandbox, &pod("p")),
        (Event::RemovePodSandbox, &pod("p")),
    ] {
        attached.tell(event, pod, None).await.expect("yes");
    }
    assert_eq!(
        driver.done(),
        [
            "synchronize 2",
            "attach p /run/netns/p",
            "attach on-host host",
            "detach p",
            "detach p"
        ]
    );
    for (name, words) in [
        ("refused", "forebay.dev: rdma0: link is down"),
        ("fault", "a fault in the driver"),
    ] {
        let refused = attached.tell(Event::RunPodSandbox, &pod(name), None).await;
        let error = refused.expect_err("the sandbox fails").to_string();
        assert!(error.contains(words), "{error}");
    }
    let create = async |name: &str, hooks: Option<api::Hooks>| {
        let container = Some(api::Container {
            hooks,
            ..Default::default()
        });
        let pod = Some(pod(name));
        let request = api::CreateContainerRequest { pod, container };
        let answer: Result<api::CreateContainerResponse, _> =
            attached.call("CreateContainer", &request).await;
        answer.map(|answer| answer.adjust.and_then(|adjust| adjust.hooks))
    };
    let added = create("p", None).await.expect("yes");
    let hook = &added.as_ref().expect("the guard").create_runtime[0];
    assert_eq!(
        (hook.path.as_str(), &hook.args[1][..]),
        ("/state/bin/forebay", "uid-p")
    );
    assert_eq!(create("p", added).await, Ok(None), "it has it already");
    assert_eq!(create("q", None).await, Ok(None), "no claims of ours");
    let refused = create("refused", None).await;
    let error = refused.expect_err("the container is not made").to_string();
    assert!(error.contains("no ledger"), "{error}");
    stop.send(()).expect("it runs");
    running.await.expect("it ends when it is told to");
}
